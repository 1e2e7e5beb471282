package pay

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/ident"
	"weft/ledger/tx"
)

// locked makes counters safe for the two goroutines of Serve.
type locked struct {
	mu sync.Mutex
	c  *counters
}

func (l *locked) Readings() []Reading {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.c.Readings()
}

func (l *locked) Commit(now time.Time) ([]Reading, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.c.Commit(now)
}

// noChain is a Settler whose calls hang until they are given up.
type noChain struct{}

func (noChain) Account(ctx context.Context) (tx.Account, error) {
	<-ctx.Done()
	return tx.Account{}, ctx.Err()
}
func (noChain) Tab(ctx context.Context, _ tx.TabID) (t tx.Tab, b []byte, at time.Time, err error) {
	<-ctx.Done()
	return t, b, at, ctx.Err()
}
func (noChain) Submit(ctx context.Context, _ tx.Body) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestServe runs both goroutines on the real file: a tab that is known is paid from while the Settler hangs; when Serve ends all
// is stored.
func TestServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		user, gw := agent(t, 1), agent(t, 2)
		nodes := map[ident.PublicKey]*Pay{}
		meters := map[ident.PublicKey]*locked{}
		var mu sync.Mutex
		verdicts := map[ID]Verdict{}
		dirs := map[ident.PublicKey]string{user.Public(): t.TempDir(), gw.Public(): t.TempDir()}
		open := func(a *ident.Agent) (*Pay, *File) {
			f := mustFile(t, dirs[a.Public()])
			p, err := New(Config{Signer: a, Chain: testChain, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Store: f, Meter: meters[a.Public()], Settler: noChain{},
				Send: func(to ident.PublicKey, b []byte) error {
					if q := nodes[to]; q != nil {
						q.Handle(time.Now(), a.Public(), b)
					}
					return nil
				},
				Tariff: DefaultTariff, Member: func(ident.PublicKey) bool { return true }, Rate: func(ID) uint64 { return 1_250_000 },
				Price:   func(ID) (uint32, bool) { return testPrice, true },
				Enforce: func(id ID, v Verdict) { mu.Lock(); verdicts[id] = v; mu.Unlock() }, VerifyAnchor: verifyAnchor,
				Wallet: Wallet{Budget: credits, MaxPrice: testPrice},
			})
			if err != nil {
				t.Fatal(err)
			}
			return p, f
		}
		var files []*File
		for _, a := range []*ident.Agent{user, gw} {
			meters[a.Public()] = &locked{c: newCounters()}
			p, f := open(a)
			nodes[a.Public()], files = p, append(files, f)
		}
		uid, gid := ID{gw.Public(), Internet}, ID{user.Public(), Internet}
		meters[user.Public()].c.of(uid, Payer)
		meters[gw.Public()].c.of(gid, Payee)
		tab := tx.Tab{Epoch: 1, Number: TabNumber(gw.Public(), Internet), Payer: user.Public(), Payee: gw.Public(), Signer: user.Public(), Earmark: credits, Expiry: time.Now().Unix() + 20*86400}
		tab.ID = tx.TabIDOf(testChain, tab.Payer, tab.Payee, tab.Number)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, p := range nodes {
			wg.Go(func() {
				if err := p.Serve(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(2 * time.Second)
		// As if the ledger had answered before it went away.
		p := nodes[user.Public()]
		p.mu.Lock()
		d := p.debits[uid]
		p.mu.Unlock()
		if err := p.adopt(d, &tab, anchorOf(&tab, time.Now()), time.Now()); err != nil {
			t.Fatal(err)
		}
		for range 60 {
			time.Sleep(time.Second)
			for key, id := range map[ident.PublicKey]ID{user.Public(): uid, gw.Public(): gid} {
				m := meters[key]
				m.mu.Lock()
				m.c.now[id].Recv += 1_250_000
				m.mu.Unlock()
			}
		}
		time.Sleep(15 * time.Second)
		v := nodes[gw.Public()].View(time.Now())
		if len(v.Accounts) != 1 || v.Accounts[0].State != Open || v.Accounts[0].Owed != 0 {
			t.Fatalf("%+v", v)
		}
		near(t, "paid", v.Accounts[0].Paid, Cost(60*1_250_000, testPrice), Cost(GapBytes, testPrice)) // less what was forgiven before there was a tab
		mu.Lock()
		if v, ok := verdicts[gid]; !ok || v.FreeTier {
			t.Errorf("verdicts %v", verdicts)
		}
		mu.Unlock()
		cancel()
		wg.Wait()
		for _, f := range files {
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		nodes = map[ident.PublicKey]*Pay{}
		again, _ := open(gw)
		if got := again.View(time.Now()).Accounts; len(got) != 1 || fmt.Sprint(got[0].Tab, got[0].Paid, got[0].Bytes) != fmt.Sprint(v.Accounts[0].Tab, v.Accounts[0].Paid, v.Accounts[0].Bytes) {
			t.Errorf("after a restart %+v, was %+v", got, v.Accounts)
		}
	})
}
