package pay

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"weft/ident"
	"weft/ledger"
	"weft/ledger/tx"
)

// books is the real ledger in a world: each transaction gets a block of its own.
type books struct {
	w      *world
	m      *ledger.Machine
	height int64
	down   bool
}

func newBooks(t testing.TB, w *world) *books {
	t.Helper()
	m, err := ledger.New(ledger.NewMem())
	if err != nil {
		t.Fatal(err)
	}
	m.Strict = true
	b := &books{w: w, m: m}
	g := ledger.Genesis{Chain: chainID, Time: w.now.Unix()}
	for i, p := range w.peers {
		g.Founders = append(g.Founders, ledger.Founder{Key: p.key, Name: fmt.Sprint("member ", i), Limit: 10 * credits})
		p.settler = &bookkeeper{b, p.a}
		p.start()
	}
	if err := m.Init(g); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *books) block(txs ...[]byte) ledger.Outcome {
	b.height++
	return b.m.Block(ledger.Header{Height: b.height, Time: b.w.now.Unix()}, txs)
}

// bookkeeper is the ledger as one member's node reaches it.
type bookkeeper struct {
	*books
	a *ident.Agent
}

func (k *bookkeeper) Account(context.Context) (tx.Account, error) {
	if k.down {
		return tx.Account{}, errDown
	}
	a, _ := k.m.Account(k.a.Public())
	return tx.Account{Balance: a.Balance, Limit: a.Limit, Nonce: a.Nonce, Tabs: a.Tabs}, nil
}

func (k *bookkeeper) Tab(_ context.Context, id tx.TabID) (tx.Tab, []byte, time.Time, error) {
	if k.down {
		return tx.Tab{}, nil, time.Time{}, errDown
	}
	k.block()
	t, ok := k.m.Tab(id)
	if !ok {
		return tx.Tab{}, nil, time.Time{}, ErrNoTab
	}
	at := k.w.now.Truncate(time.Second)
	return t, anchorOf(&t, at), at, nil
}

func (k *bookkeeper) Submit(_ context.Context, body tx.Body) ([]byte, error) {
	if k.down {
		return nil, errDown
	}
	a, _ := k.m.Account(k.a.Public())
	raw, err := tx.Tx{Chain: testChain, Nonce: a.Nonce + 1, Expiry: k.w.now.Unix() + 3600, Body: body}.Sign(k.a)
	if err != nil {
		return nil, err
	}
	switch r := k.block(raw).Results[0]; r.Code {
	case ledger.OK:
		return r.Data, nil
	case ledger.CodeExists:
		return nil, ErrTaken
	default:
		return nil, errors.New(r.Text)
	}
}

// On the real ledger: a user −X, the gateway +Y, the relay +Z, X = Y + Z; and X is the price times both meters. With the chain
// away for a week in between, and early closing at the end.
func TestLedger(t *testing.T) {
	w := newWorld(t)
	user, gw, relay := w.add(), w.add(), w.add()
	b := newBooks(t, w)
	relay.price[Carriage] = testPrice / 5
	balance := func(p *peer) int64 {
		a, _ := b.m.Account(p.key)
		n := a.Balance
		for _, f := range w.flows {
			if d := p.pay.debits[ID{f.payee.key, f.service}]; d != nil && d.tab != nil && f.payer == p {
				if tab, ok := b.m.Tab(d.Tab.ID); ok {
					n += tab.Left()
				}
			}
		}
		return n
	}
	f, g := w.flow(user, gw, Internet, 10_000_000), w.flow(gw, relay, Carriage, 10_000_000)
	use := func(d time.Duration) {
		f.rate, g.rate = 10_000_000, 10_000_000
		w.run(d)
		f.rate, g.rate = 0, 0
		w.run(12 * time.Second)
	}
	use(20 * time.Second)
	w.leap(25 * time.Hour)
	b.down = true
	for range 7 {
		use(10 * time.Second)
		w.leap(24 * time.Hour)
	}
	before := balance(gw)
	b.down = false
	w.leap(2 * time.Hour)
	w.leap(25 * time.Hour)
	if balance(gw) <= before {
		t.Error("nothing was claimed on return")
	}
	x, y, z := -balance(user), balance(gw), balance(relay)
	price, carriage := Cost(f.full, testPrice), Cost(g.full, testPrice/5)
	near(t, "the user's bill", x, price, Cost(GapBytes, testPrice))
	near(t, "the relay's income", z, carriage, Cost(GapBytes, testPrice))
	if x != y+z || f.slow+g.slow != 0 {
		t.Errorf("%d is not %d and %d; %d bytes slow", x, y, z, f.slow+g.slow)
	}
	for _, p := range w.peers {
		p.mustAudit()
	}
	// Claimed again nothing is paid: the ledger refuses, and nobody minds.
	c := f.credit()
	c.Tab.Claimed = 0
	c.Tab.claimAt = time.Time{}
	w.run(10 * time.Second)
	if -balance(user) != x {
		t.Errorf("paid twice: %d, was %d", -balance(user), x)
	}
	w.leap(time.Hour)
	if c.Tab.Claimed != c.Tab.Voucher.Amount {
		t.Errorf("claimed %d of %d", c.Tab.Claimed, c.Tab.Voucher.Amount)
	}
	// The user closes. What is signed is claimed in the window.
	use(20 * time.Second)
	if _, err := user.settler.Submit(t.Context(), &tx.TabClose{Tab: f.debit().Tab.ID, Epoch: f.debit().Tab.Epoch}); err != nil {
		t.Fatal(err)
	}
	w.leap(61 * time.Minute)
	near(t, "the user's bill after it closed", -balance(user), Cost(f.full, testPrice), Cost(GapBytes, testPrice))
	if s := f.credit().state; s != Trust {
		t.Errorf("state %s on a closing tab", s)
	}
	// And comes back with another tab.
	use(60 * time.Second)
	if c := f.credit(); c.state != Open || c.Tab.Number == c.Tab.Number&^0xff {
		t.Errorf("state %s, number %#x", c.state, c.Tab.Number)
	}
	if err := b.m.Check(); err != nil {
		t.Error(err)
	}
	for _, p := range w.peers {
		p.mustAudit()
	}
}
