package pay

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/ident"
)

// The free tier is said again as long as something moves: whoever enforces it may have had to forget.
func TestTellsAgain(t *testing.T) {
	w := newWorld(t)
	gw, guest, idle := w.add(), w.add(), w.add()
	guest.guest, idle.guest = true, true
	w.flow(guest, gw, Internet, 125_000)
	f := w.flow(idle, gw, Internet, 125_000)
	w.run(10 * time.Second)
	f.rate = 0
	w.run(30 * time.Second)
	want := Verdict{true, w.tar.GuestKbit}
	for _, p := range []*peer{guest, idle} {
		if v := gw.verdicts[ID{p.key, Internet}]; v != want {
			t.Errorf("verdict %+v", v)
		}
		delete(gw.verdicts, ID{p.key, Internet})
	}
	w.run(tellEvery + step)
	if v := gw.verdicts[ID{guest.key, Internet}]; v != want {
		t.Errorf("of a guest that goes on: %+v", v)
	}
	if v, ok := gw.verdicts[ID{idle.key, Internet}]; ok {
		t.Errorf("of a guest that is silent: %+v", v)
	}
	f.rate = 125_000
	w.run(3 * time.Second)
	if v := gw.verdicts[ID{idle.key, Internet}]; v != want {
		t.Errorf("when it goes on: %+v", v)
	}
}

// A guest that the meter knows no more is forgotten, and its verdict lifted; a member that owes is not.
func TestForgetsGuests(t *testing.T) {
	w := newWorld(t)
	gw, guest, member := w.add(), w.add(), w.add()
	guest.guest, member.silent = true, true
	w.flow(guest, gw, Internet, 125_000)
	w.flow(member, gw, Internet, 12_500_000)
	w.run(20 * time.Second)
	w.flows = nil
	if v := gw.verdicts[ID{guest.key, Internet}]; !v.FreeTier {
		t.Errorf("verdict %+v", v)
	}
	for _, p := range []*peer{guest, member} {
		delete(gw.meter.now, ID{p.key, Internet})
	}
	w.run(guestLasts - time.Minute)
	if len(gw.pay.credits) != 2 {
		t.Errorf("%d accounts after a while", len(gw.pay.credits))
	}
	w.run(2 * time.Minute)
	if gw.pay.credits[ID{guest.key, Internet}] != nil || gw.pay.credits[ID{member.key, Internet}] == nil {
		t.Errorf("accounts: %v", gw.pay.credits)
	}
	if v := gw.verdicts[ID{guest.key, Internet}]; v.FreeTier {
		t.Errorf("the verdict stays: %+v", v)
	}
	gw.meter.of(ID{guest.key, Internet}, Payee).Epoch = 2
	w.run(2 * time.Second)
	if v := gw.verdicts[ID{guest.key, Internet}]; !v.FreeTier {
		t.Errorf("back again it has %+v", v)
	}
}

// A payee that talks without end costs its payer no more than a tick now and then.
func TestStatusFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		me, peer := agent(t, 1), agent(t, 2).Public()
		m := &busyMeter{locked: locked{c: newCounters()}}
		m.c.of(ID{peer, Internet}, Payer)
		p, err := New(Config{Signer: me, Chain: testChain, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Store: &memory{m: map[string][]byte{}}, Meter: m,
			Send: func(ident.PublicKey, []byte) error { return nil }, Tariff: DefaultTariff, Member: func(ident.PublicKey) bool { return true },
			Rate: func(ID) uint64 { return 0 }, Price: func(ID) (uint32, bool) { return testPrice, true }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Serve(ctx) }()
		time.Sleep(time.Second)
		before := m.read.Load()
		for i := range 10_000 { // 10 s
			p.Handle(time.Now(), peer, (&DebtStatus{Service: Internet, State: Open, Number: uint32(i + 1)}).AppendTo(nil))
			time.Sleep(time.Millisecond)
		}
		if n := m.read.Load() - before; n > int64(10*time.Second/tickGap)+1 || n < 20 {
			t.Errorf("%d ticks in 10 s", n)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

type busyMeter struct {
	locked
	read atomic.Int64
}

func (m *busyMeter) Readings() []Reading {
	m.read.Add(1)
	return m.locked.Readings()
}
