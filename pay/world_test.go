package pay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/ident"
	"weft/ledger/tx"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	chainID   = "pay-1"
	testPrice = 100_000 // ncredit per MiB
	credits   = 1_000_000_000
)

var testChain = tx.ChainOf(chainID)

func agent(t testing.TB, i int) *ident.Agent {
	t.Helper()
	seed := make([]byte, 32)
	seed[0], seed[1], seed[31] = byte(i), byte(i>>8), 77
	a, err := ident.FromSeed(seed)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// memory is a Store that can die at a write: before it, after it, or for a while.
type memory struct {
	m      map[string][]byte
	writes int
	dieAt  int  // 0: never
	after  bool // the write that it dies at is durable
	dead   bool
	broken bool // writes fail, and nothing is kept
}

var errDied = errors.New("the store has died")

func (s *memory) Scan(prefix []byte, f func(k, v []byte) error) error {
	var keys []string
	for k := range s.m {
		if strings.HasPrefix(k, string(prefix)) {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	for _, k := range keys {
		if err := f([]byte(k), slices.Clone(s.m[k])); err != nil {
			return err
		}
	}
	return nil
}

func (s *memory) Write(l []Entry) error {
	if s.dead || s.broken {
		return errDied
	}
	s.writes++
	if s.dieAt == s.writes {
		s.dead = true
		if !s.after {
			return errDied
		}
	}
	for _, e := range l {
		if e.Value == nil {
			delete(s.m, string(e.Key))
		} else {
			s.m[string(e.Key)] = slices.Clone(e.Value)
		}
	}
	if s.dead {
		return errDied
	}
	return nil
}

// counters is a Meter with a memory of its own.
type counters struct {
	now     map[ID]*Reading
	kept    map[ID]Reading
	commits int
	err     error
}

func newCounters() *counters { return &counters{now: map[ID]*Reading{}, kept: map[ID]Reading{}} }

func (c *counters) Readings() (l []Reading) {
	for _, r := range c.now {
		l = append(l, *r)
	}
	slices.SortFunc(l, func(a, b Reading) int { return compareID(a.ID, b.ID) })
	return l
}

func (c *counters) Commit(time.Time) ([]Reading, error) {
	c.commits++
	if c.err != nil {
		return nil, c.err
	}
	for id, r := range c.now {
		c.kept[id] = *r
	}
	return c.Readings(), nil
}

func (c *counters) crash() {
	for id := range c.now {
		r := c.kept[id]
		r.ID, r.Role = id, c.now[id].Role
		*c.now[id] = r
	}
}

func (c *counters) of(id ID, role Role) *Reading {
	if c.now[id] == nil {
		c.now[id] = &Reading{ID: id, Role: role, Mark: Mark{Epoch: 1}}
	}
	return c.now[id]
}

// chain is a ledger in maps, with what pay needs.
type chain struct {
	w       *world
	tabs    map[tx.TabID]*tx.Tab
	balance map[ident.PublicKey]int64
	limit   map[ident.PublicKey]int64
	epoch   uint32
	down    bool
	txs     int
	paid    map[ident.PublicKey]int64
}

var errDown = errors.New("the chain is out of reach")

func (c *chain) expire() {
	now := c.w.now.Unix()
	for id, t := range c.tabs {
		if !t.Closing() && now >= t.Expiry {
			t.Until = now + 7*86400
		}
		if t.Closing() && now >= t.Until {
			c.balance[t.Payer] += t.Left()
			delete(c.tabs, id)
		}
	}
}

// member is the chain as one member's node reaches it.
type member struct {
	*chain
	key ident.PublicKey
	cut bool
}

func (m *member) Account(context.Context) (tx.Account, error) {
	if m.down || m.cut {
		return tx.Account{}, errDown
	}
	return tx.Account{Balance: m.balance[m.key], Limit: m.limit[m.key]}, nil
}

func (m *member) Tab(_ context.Context, id tx.TabID) (tx.Tab, []byte, time.Time, error) {
	if m.down || m.cut {
		return tx.Tab{}, nil, time.Time{}, errDown
	}
	m.expire()
	t := m.tabs[id]
	if t == nil {
		return tx.Tab{}, nil, time.Time{}, ErrNoTab
	}
	at := m.w.now.Truncate(time.Second)
	return *t, anchorOf(t, at), at, nil
}

// anchorOf is a proof that everybody believes, padded to take several parts.
func anchorOf(t *tx.Tab, at time.Time) []byte {
	return append(fmt.Appendf(nil, "%020d", at.Unix()), append(tx.Encode(t), make([]byte, 2200)...)...)
}

func verifyAnchor(b []byte) (t tx.Tab, at time.Time, err error) {
	var s int64
	if len(b) < 2220 {
		return t, at, errors.New("too short")
	}
	if _, err := fmt.Sscanf(string(b[:20]), "%d", &s); err != nil {
		return t, at, err
	}
	return t, time.Unix(s, 0), tx.Decode(b[20:len(b)-2200], &t)
}

func (m *member) Submit(_ context.Context, body tx.Body) ([]byte, error) {
	if m.down || m.cut {
		return nil, errDown
	}
	m.expire()
	m.txs++
	spend := func(n int64) error {
		if m.balance[m.key]-n < -m.limit[m.key] {
			return errors.New("not enough money")
		}
		m.balance[m.key] -= n
		return nil
	}
	switch b := body.(type) {
	case *tx.TabOpen:
		id := tx.TabIDOf(testChain, m.key, b.Payee, b.Number)
		if m.tabs[id] != nil {
			return nil, ErrTaken
		}
		if err := spend(b.Earmark); err != nil {
			return nil, err
		}
		m.epoch++
		m.tabs[id] = &tx.Tab{ID: id, Epoch: m.epoch, Number: b.Number, Payer: m.key, Payee: b.Payee, Signer: b.Signer, Earmark: b.Earmark, Opened: m.w.now.Unix(), Expiry: b.Expiry}
		return tx.Encode(&tx.Opened{Tab: id, Epoch: m.epoch}), nil
	case *tx.TabTopUp:
		t := m.tabs[b.Tab]
		if t == nil || t.Epoch != b.Epoch || t.Closing() {
			return nil, errors.New("no such tab")
		}
		if err := spend(b.Amount); err != nil {
			return nil, err
		}
		t.Earmark += b.Amount
		return nil, nil
	case *tx.TabRenew:
		t := m.tabs[b.Tab]
		if t == nil || t.Epoch != b.Epoch || t.Closing() || b.Expiry <= t.Expiry || b.Expiry > m.w.now.Unix()+30*86400 {
			return nil, errors.New("not renewed")
		}
		t.Expiry = b.Expiry
		return nil, nil
	case *tx.TabClaim:
		var data []byte
		any := false
		for _, raw := range b.Vouchers {
			v, err := tx.ParseVoucher(raw[:])
			r := tx.Claimed{Code: 7}
			t := m.tabs[v.Tab]
			if err == nil && t != nil && t.Epoch == v.Epoch && v.Chain == testChain && v.Verify(t.Signer) {
				if n := min(v.Amount, t.Earmark) - t.Claimed; n > 0 {
					r = tx.Claimed{Paid: n}
					t.Claimed += n
					m.balance[t.Payee] += n
					m.paid[t.Payee] += n
					any = true
				}
			}
			data = append(data, tx.Encode(&r)...)
		}
		if !any {
			return nil, errors.New("nothing was paid")
		}
		return data, nil
	}
	return nil, errors.New("what is this?")
}

// total is all money there is.
func (c *chain) total() (n int64) {
	for _, b := range c.balance {
		n += b
	}
	for _, t := range c.tabs {
		n += t.Left()
	}
	return n
}

// peer is one node.
type peer struct {
	w        *world
	a        *ident.Agent
	key      ident.PublicKey
	pay      *Pay
	store    *memory
	meter    *counters
	chain    *member
	settler  Settler // in place of chain
	guest    bool
	wallet   Wallet
	price    map[Service]uint32
	rate     uint64
	verdicts map[ID]Verdict
	down     time.Time // crashed until
	silent   bool      // its messages are lost
	filter   func(to *peer, payload []byte) []byte
	noSettle bool
}

type packet struct {
	from, to *peer
	b        []byte
}

// flow is traffic from a gateway to a user, or over a link: the payee has carried it for the payer.
type flow struct {
	payer, payee *peer
	service      Service
	rate         uint64 // bytes/s that the payer would take
	eager        bool   // the meters know at once
	lie          func(n uint64) (payer, payee uint64)

	full, slow   uint64 // bytes carried, by verdict
	hidden       [2]uint64
	shaped       Verdict
	shapedAt     time.Time
	shapedUntil  Verdict
	throttledFor time.Duration
}

type world struct {
	t     testing.TB
	began time.Time
	now   time.Time
	peers []*peer
	flows []*flow
	wire  []packet
	chain *chain
	loss  float64
	rng   *rand.Rand
	n     int
	tar   Tariff
}

const step = 250 * time.Millisecond

func newWorld(t testing.TB) *world {
	w := &world{t: t, now: time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC), rng: rand.New(rand.NewPCG(1, 2)), tar: DefaultTariff()}
	w.began = w.now
	w.chain = &chain{w: w, tabs: map[tx.TabID]*tx.Tab{}, balance: map[ident.PublicKey]int64{}, limit: map[ident.PublicKey]int64{}, paid: map[ident.PublicKey]int64{}}
	return w
}

// add makes a member with 100 credits and a budget.
func (w *world) add() *peer {
	w.t.Helper()
	a := agent(w.t, len(w.peers)+1)
	p := &peer{w: w, a: a, key: a.Public(), store: &memory{m: map[string][]byte{}}, meter: newCounters(), price: map[Service]uint32{Internet: testPrice, Carriage: testPrice},
		verdicts: map[ID]Verdict{}, wallet: Wallet{Budget: 20 * credits, MaxPrice: 200_000, TabSize: credits}, rate: 12_500_000}
	p.chain = &member{chain: w.chain, key: p.key}
	w.chain.balance[p.key] = 100 * credits
	w.peers = append(w.peers, p)
	p.start()
	return p
}

func (p *peer) start() {
	p.w.t.Helper()
	p.verdicts = map[ID]Verdict{} // whoever carries them out starts anew as well
	var err error
	settler := p.settler
	if settler == nil {
		settler = p.chain
	}
	p.pay, err = New(Config{
		Signer: p.a, Chain: testChain, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Store: p.store, Meter: p.meter, Settler: settler,
		Send: func(to ident.PublicKey, b []byte) error {
			q := p.w.of(to)
			if q == nil || p.silent || p.w.rng.Float64() < p.w.loss {
				return nil
			}
			if p.filter != nil {
				if b = p.filter(q, b); b == nil {
					return nil
				}
			}
			p.w.wire = append(p.w.wire, packet{p, q, slices.Clone(b)})
			return nil
		},
		Tariff: func() Tariff { return p.w.tar },
		Member: func(k ident.PublicKey) bool { q := p.w.of(k); return q != nil && !q.guest },
		Rate:   func(ID) uint64 { return p.rate },
		Price:  func(id ID) (uint32, bool) { return p.price[id.Service], true },
		Enforce: func(id ID, v Verdict) {
			p.verdicts[id] = v
		},
		VerifyAnchor: verifyAnchor, Wallet: p.wallet,
	})
	if err != nil {
		p.w.t.Fatal(err)
	}
}

// crash is kill -9: what was not durable is gone.
func (p *peer) crash(away time.Duration) {
	p.meter.crash()
	p.store.dead, p.store.dieAt = false, 0
	p.down = p.w.now.Add(away)
	p.pay = nil
}

func (w *world) of(k ident.PublicKey) *peer {
	for _, p := range w.peers {
		if p.key == k {
			return p
		}
	}
	return nil
}

func (w *world) flow(payer, payee *peer, s Service, rate uint64) *flow {
	f := &flow{payer: payer, payee: payee, service: s, rate: rate}
	w.flows = append(w.flows, f)
	payer.meter.of(ID{payee.key, s}, Payer)
	payee.meter.of(ID{payer.key, s}, Payee)
	return f
}

func (w *world) step() {
	w.now = w.now.Add(step)
	w.n++
	for _, f := range w.flows {
		f.step()
	}
	mail := w.wire
	w.wire = nil
	for _, m := range mail {
		if m.to.pay != nil {
			m.to.pay.Handle(w.now, m.from.key, m.b)
		}
	}
	for _, p := range w.peers {
		if p.pay == nil {
			if w.now.Before(p.down) {
				continue
			}
			p.start()
		}
		p.pay.Tick(w.now)
		if w.n%8 == 0 && !p.noSettle {
			_ = p.pay.Settle(context.Background(), w.now) // out of reach in some tests
		}
		if p.store.dead {
			p.crash(2 * time.Second)
		}
	}
}

// step carries what may pass. The verdict is carried out ShapeTime after it was given; the meters know a second later.
func (f *flow) step() {
	w := f.payer.w
	v := f.payee.verdicts[ID{f.payer.key, f.service}]
	if v != f.shapedUntil {
		f.shapedUntil, f.shapedAt = v, w.now
	}
	if w.now.Sub(f.shapedAt) >= ShapeTime || !f.shapedUntil.FreeTier {
		f.shaped = f.shapedUntil
	}
	if f.payer.pay == nil || f.payee.pay == nil { // a node is down: no session
		return
	}
	n := f.rate / 4
	if f.shaped.FreeTier {
		n = min(n, freeBytes(f.shaped.Kbit, step))
		f.slow += n
		f.throttledFor += step
	} else {
		f.full += n
	}
	a, b := n, n
	if f.lie != nil {
		a, b = f.lie(n)
	}
	f.hidden[0] += a
	f.hidden[1] += b
	if w.n%4 == 0 || f.eager {
		f.payer.meter.of(ID{f.payee.key, f.service}, Payer).Recv += f.hidden[0]
		f.payee.meter.of(ID{f.payer.key, f.service}, Payee).Sent += f.hidden[1]
		f.hidden = [2]uint64{}
	}
}

func (w *world) run(d time.Duration) {
	for range d / step {
		w.step()
	}
}

// leap lets time pass in which nothing flows and chains go on.
func (w *world) leap(d time.Duration) {
	w.now = w.now.Add(d)
	w.run(3 * time.Second)
}

func (f *flow) credit() *credit {
	return f.payee.pay.credits[ID{f.payer.key, f.service}]
}

func (f *flow) debit() *debit {
	return f.payer.pay.debits[ID{f.payee.key, f.service}]
}

// promised is the newest vouchers' sum that the payee holds.
func (f *flow) promised() int64 {
	c := f.credit()
	n := c.worth()
	return n + c.Paid
}

// checkPayee holds the payee's loss against the bound: all that was carried and is neither promised nor what the free tier would
// have carried.
func (f *flow) checkPayee(exposure uint64, trust int64) {
	w := f.payer.w
	w.t.Helper()
	price := f.payee.price[f.service]
	c := f.credit()
	unpaid := Cost(f.full+f.slow, price) - f.promised() - c.Forgiven.Amount
	if free := Cost(freeBytes(w.tar.FreeKbit, w.now.Sub(w.began)+time.Second), price); c.Forgiven.Amount > free {
		w.t.Errorf("forgiven %d, the free tier would have carried %d", c.Forgiven.Amount, free)
	}
	bound := max(Cost(exposure, price), trust) + Cost(uint64(float64(f.rate)*(DetectTime+ShapeTime+step).Seconds()), price)
	if unpaid > bound {
		w.t.Errorf("the payee loses %d ncredit, the bound is %d (%d bytes at the full rate, %d at the free tier, promised %d)", unpaid, bound, f.full, f.slow, f.promised())
	}
}

func (p *peer) mustAudit() Audited {
	p.w.t.Helper()
	a, err := p.pay.Audit(p.w.now)
	if err != nil {
		p.w.t.Fatal(err)
	}
	for _, f := range a.Findings {
		p.w.t.Errorf("audit of %s: %s (line %d, %s to %s)", p.key.String()[:6], f.Text, f.Line.Number, f.Line.From, f.Line.Until)
	}
	return a
}
