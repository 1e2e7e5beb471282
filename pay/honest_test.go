package pay

import (
	"testing"
	"time"

	"weft/ledger/tx"
)

func near(t *testing.T, what string, got, want, tolerance int64) {
	t.Helper()
	if got < want-tolerance || got > want+tolerance {
		t.Errorf("%s is %d, want %d within %d", what, got, want, tolerance)
	}
}

// Two honest nodes at 100 Mbit/s: full rate throughout, and what is promised is price times both meters.
func TestHonest(t *testing.T) {
	for _, rate := range []uint64{20_000, 1_250_000, 12_500_000} {
		w := newWorld(t)
		user, gw := w.add(), w.add()
		f := w.flow(user, gw, Internet, rate)
		w.run(2 * time.Minute)
		f.rate = 0
		w.run(20 * time.Second)
		if f.slow != 0 {
			t.Errorf("at %d bytes/s an honest user was throttled: %d bytes slow", rate, f.slow)
		}
		c, d := f.credit(), f.debit()
		want := Cost(f.full, testPrice)
		near(t, "promised", f.promised(), want, Cost(GapBytes, testPrice))
		if d.Signed != f.promised() || c.owed() < 0 || c.owed() > Cost(GapBytes, testPrice) || c.Bytes != d.Bytes {
			t.Errorf("signed %d, promised %d, owed %d; %d and %d bytes", d.Signed, f.promised(), c.owed(), c.Bytes, d.Bytes)
		}
		if c.state != Open {
			t.Errorf("state %s", c.state)
		}
		t.Logf("%d bytes/s: promised %d of %d, forgiven %d, exposure %d MiB, %d writes of the payer, %d of the payee", rate, f.promised(), want, c.Forgiven.Amount, c.Exposure>>20, user.store.writes, gw.store.writes)
		a, b := user.mustAudit(), gw.mustAudit()
		if a.Paid != d.Signed || b.Earned != f.promised() || rate > 1e6 && a.Receipts == 0 {
			t.Errorf("audits %+v and %+v", a, b)
		}
		// A day later it is claimed, once.
		w.leap(25 * time.Hour)
		if got := w.chain.paid[gw.key]; got != f.promised() {
			t.Errorf("claimed %d of %d", got, f.promised())
		}
		if w.chain.total() != 200*credits {
			t.Errorf("money was made: %d", w.chain.total())
		}
	}
}

// A month at 20 Mbit/s in bursts: the tab is topped up and renewed, the bill has lines by day, and the budget is kept.
func TestMonth(t *testing.T) {
	w := newWorld(t)
	user, gw := w.add(), w.add()
	user.pay.SetWallet(Wallet{Budget: 15 * credits / 10, MaxPrice: testPrice, TabSize: credits / 4})
	f := w.flow(user, gw, Internet, 0)
	tab := tx.TabID{}
	for day := range 28 {
		f.rate = 12_500_000
		w.run(60 * time.Second)
		f.rate = 0
		w.run(12 * time.Second)
		w.leap(24*time.Hour - 75*time.Second)
		if day == 0 {
			tab = f.debit().Tab.ID
		}
	}
	d := f.debit()
	if d.Tab.ID != tab {
		t.Errorf("the tab was not kept: %s, then %s", tab, d.Tab.ID)
	}
	spent := user.pay.View(w.now).Spent
	if spent != 15*credits/10 || d.Signed != spent || !user.pay.View(w.now).Accounts[0].Dry {
		t.Errorf("spent %d, signed %d", spent, d.Signed)
	}
	lines, err := user.pay.Bill(w.now.Add(-40*24*time.Hour), w.now)
	if err != nil || len(lines) < 27 {
		t.Errorf("%d lines, %v", len(lines), err)
	}
	user.mustAudit()
	gw.mustAudit()
	f.rate = 12_500_000
	w.run(4 * time.Minute)
	if f.slow == 0 {
		t.Error("a budget that is used up changes nothing")
	}
	// A smaller budget holds at once, whatever was set aside before.
	user.pay.SetWallet(Wallet{Budget: 20 * credits, MaxPrice: testPrice, TabSize: credits})
	w.run(time.Minute)
	signed := f.debit().Signed
	user.pay.SetWallet(Wallet{Budget: signed + 1000, MaxPrice: testPrice, TabSize: credits})
	w.run(time.Minute)
	if got := f.debit().Signed; got != signed+1000 {
		t.Errorf("signed %d beyond a budget of 1000", got-signed)
	}
	f.rate = 0
	w.run(12 * time.Second)
	if w.chain.total() != 200*credits {
		t.Errorf("money was made: %d", w.chain.total())
	}
}

// A lost message now and then, even a third of all: nobody honest is throttled for long, nothing is paid twice.
func TestLossy(t *testing.T) {
	w := newWorld(t)
	w.loss = 0.3
	user, gw := w.add(), w.add()
	f := w.flow(user, gw, Internet, 5_000_000)
	w.run(5 * time.Minute)
	if f.throttledFor > 3*time.Second {
		t.Errorf("throttled for %v", f.throttledFor)
	}
	w.loss, f.rate = 0, 0
	w.run(20 * time.Second)
	if o := f.credit().owed(); o > Cost(GapBytes, testPrice) {
		t.Errorf("owed %d; the payer says %d and has %+v", o, f.debit().owed(), f.debit().status)
	}
	near(t, "promised and forgiven", f.promised()+f.credit().Forgiven.Amount, Cost(f.full+f.slow, testPrice), Cost(GapBytes, testPrice))
	t.Logf("%d of %d forgiven", f.credit().Forgiven.Amount, Cost(f.full+f.slow, testPrice))
	user.mustAudit()
	gw.mustAudit()
}

// The last voucher is lost: it is sent again when the payee's status shows an older one, and after a restart of the payer too.
func TestLostLast(t *testing.T) {
	for _, restart := range []bool{false, true} {
		w := newWorld(t)
		user, gw := w.add(), w.add()
		f := w.flow(user, gw, Internet, 1_250_000)
		w.run(time.Minute)
		f.rate = 0
		user.filter = func(_ *peer, b []byte) []byte {
			if b[0] == typeVoucher {
				return nil
			}
			return b
		}
		w.run(12 * time.Second)
		if f.debit().Signed == f.promised() {
			t.Fatal("nothing was lost")
		}
		if restart {
			user.crash(time.Second)
		}
		user.filter = nil
		w.run(30 * time.Second)
		if s := f.debit().Voucher.Amount; s != f.promised() || f.credit().owed() > Cost(GapBytes, testPrice) {
			t.Errorf("signed %d, promised %d", s, f.promised())
		}
	}
}

// The chain is away for three weeks: tabs go on to their cap and lifetime, and all claims are paid once when it is back.
func TestPartition(t *testing.T) {
	w := newWorld(t)
	user, gw := w.add(), w.add()
	user.pay.SetWallet(Wallet{Budget: 50 * credits, MaxPrice: testPrice, TabSize: credits})
	f := w.flow(user, gw, Internet, 12_500_000)
	w.run(30 * time.Second)
	w.chain.down = true
	for range 20 {
		f.rate = 6_000_000
		w.run(30 * time.Second)
		f.rate = 0
		w.run(11 * time.Second)
		w.leap(24 * time.Hour)
	}
	if f.slow != 0 {
		t.Errorf("throttled below the cap: %d", f.slow)
	}
	// Up to the cap …
	f.rate = 12_500_000
	w.run(20 * time.Minute)
	if got := f.promised(); got != credits {
		t.Errorf("promised %d of a tab of %d", got, credits)
	}
	if s := f.debit().Signed; s != credits {
		t.Errorf("signed %d of a tab of %d", s, credits)
	}
	// … and T beyond.
	f.checkPayee(0, w.tar.Trust)
	if f.throttledFor == 0 {
		t.Error("a tab that is used up changes nothing")
	}
	if w.chain.paid[gw.key] >= credits {
		t.Error("claimed without a chain")
	}
	f.rate = 0
	w.chain.down = false
	w.leap(25 * time.Hour)
	w.leap(25 * time.Hour)
	if got := w.chain.paid[gw.key]; got < credits || got > f.promised() {
		t.Errorf("claimed %d, promised %d", got, f.promised())
	}
	// The tab has gone on: the debt was paid as soon as it could be topped up.
	if o := f.credit().owed(); o > Cost(GapBytes, testPrice) {
		t.Errorf("still owed: %d", o)
	}
	if w.chain.total() != 200*credits {
		t.Errorf("money was made: %d", w.chain.total())
	}
	user.mustAudit()
	gw.mustAudit()
}

// A tab ends while the chain is away. The vouchers are claimed within the window when it is back.
func TestExpiry(t *testing.T) {
	w := newWorld(t)
	user, gw := w.add(), w.add()
	f := w.flow(user, gw, Internet, 5_000_000)
	w.run(40 * time.Second)
	f.rate = 0
	w.run(12 * time.Second)
	promised := f.promised()
	w.chain.down = true
	w.leap(31 * 24 * time.Hour)
	if s := f.credit().state; s != Trust {
		t.Errorf("state %s after the tab's end", s)
	}
	w.chain.down = false
	w.chain.expire()
	w.leap(time.Hour)
	if got := w.chain.paid[gw.key]; got != promised {
		t.Errorf("claimed %d of %d", got, promised)
	}
	// The user comes back: a new tab, with another number, while the old one is closing.
	f.rate = 5_000_000
	w.run(time.Minute)
	f.rate = 0
	w.run(12 * time.Second)
	if c := f.credit(); c.state != Open || len(gw.pay.old) != 1 {
		t.Errorf("state %s, %d old tabs", c.state, len(gw.pay.old))
	}
	w.leap(8 * 24 * time.Hour)
	w.leap(2 * time.Hour)
	near(t, "claimed", w.chain.paid[gw.key], Cost(f.full, testPrice), Cost(2*GapBytes, testPrice))
	for _, h := range gw.pay.old {
		if h.Phase != Settled || h.Lost != 0 {
			t.Errorf("an old tab is %s, lost %d", h.Phase, h.Lost)
		}
	}
	user.mustAudit()
	gw.mustAudit()
}

// The tariff changes: a rise is announced a minute before, and both sides bill by it from the same second, more or less.
func TestPriceChange(t *testing.T) {
	w := newWorld(t)
	user, gw := w.add(), w.add()
	f := w.flow(user, gw, Internet, 1_250_000)
	w.run(2 * time.Minute)
	before := f.full
	gw.price[Internet] = 2 * testPrice
	w.run(30 * time.Second)
	if q := f.debit().Quote; q.Price != testPrice {
		t.Errorf("the price rose at once: %d", q.Price)
	}
	w.run(2 * time.Minute)
	if q := f.debit().Quote; q.Price != 2*testPrice {
		t.Errorf("the price did not rise: %d", q.Price)
	}
	gw.price[Internet] = testPrice / 2
	w.run(2 * time.Minute)
	f.rate = 0
	w.run(20 * time.Second)
	if f.slow != 0 {
		t.Errorf("throttled by a change of price: %d", f.slow)
	}
	near(t, "signed", f.debit().Signed, f.credit().Charged.Amount, Cost(GapBytes, 2*testPrice))
	if f.debit().Signed <= Cost(before, testPrice) {
		t.Error("nothing was signed after the change")
	}
	user.mustAudit()
	gw.mustAudit()
	// The owner lowers the limit: nothing more is counted or signed. And raises it again.
	user.pay.SetWallet(Wallet{Budget: 20 * credits, MaxPrice: testPrice / 4, TabSize: credits})
	f.rate = 1_250_000
	signed := f.debit().Signed
	w.run(20 * time.Second)
	if f.debit().Signed != signed || user.pay.View(w.now).Accounts[0].Refused != testPrice/2 {
		t.Errorf("signed %d above the owner's limit: %+v", f.debit().Signed-signed, user.pay.View(w.now).Accounts)
	}
	user.pay.SetWallet(user.wallet)
	w.run(time.Minute)
	if f.debit().Signed == signed {
		t.Error("nothing is signed after the limit was raised again")
	}
	f.slow = 0
	// Above the owner's limit nothing is signed, and the owner sees why.
	gw.price[Internet] = 300_000
	f.rate = 1_250_000
	w.run(4 * time.Minute)
	v := user.pay.View(w.now)
	if len(v.Accounts) != 1 || v.Accounts[0].Refused != 300_000 || f.slow == 0 {
		t.Errorf("%+v, slow %d", v.Accounts, f.slow)
	}
	user.mustAudit()
}

// A free community: price 0. Nobody is asked for anything, guests included.
func TestFree(t *testing.T) {
	w := newWorld(t)
	user, gw := w.add(), w.add()
	user.guest = true
	gw.price[Internet] = 0
	f := w.flow(user, gw, Internet, 12_500_000)
	w.run(time.Minute)
	if f.slow != 0 || f.debit().Signed != 0 || len(w.chain.tabs) != 0 {
		t.Errorf("slow %d, signed %d, %d tabs", f.slow, f.debit().Signed, len(w.chain.tabs))
	}
}

// Counters that begin anew, as a link's do with each process: nothing is billed twice, nothing that was counted is lost.
func TestEpochs(t *testing.T) {
	w := newWorld(t)
	gw, relay := w.add(), w.add()
	f := w.flow(gw, relay, Carriage, 1_250_000)
	for i := range 5 {
		w.run(20 * time.Second)
		for _, r := range []*Reading{gw.meter.of(ID{relay.key, Carriage}, Payer), relay.meter.of(ID{gw.key, Carriage}, Payee)} {
			r.Mark = Mark{Epoch: uint64(10 + i)}
		}
	}
	w.run(20 * time.Second)
	f.rate = 0
	w.run(12 * time.Second)
	for _, r := range []*Reading{gw.meter.of(ID{relay.key, Carriage}, Payer), relay.meter.of(ID{gw.key, Carriage}, Payee)} {
		r.Mark = Mark{Epoch: 99, Recv: 60_000_000} // already further than the epoch before
	}
	w.run(12 * time.Second)
	if c, d := f.credit(), f.debit(); c.Bytes != f.full+60_000_000 || d.Bytes != c.Bytes {
		t.Errorf("%d carried, %d and %d billed", f.full, c.Bytes, d.Bytes)
	}
	if a := gw.mustAudit(); a.Lines < 5 {
		t.Errorf("%+v", a)
	}
	relay.mustAudit()
}

// A user pays its gateway, the gateway its relay: each by its own meter, and the user's price is what the others get together.
func TestCarriage(t *testing.T) {
	w := newWorld(t)
	user, gw, relay := w.add(), w.add(), w.add()
	gw.price[Internet] = testPrice
	relay.price[Carriage] = testPrice / 5
	a, b := w.flow(user, gw, Internet, 5_000_000), w.flow(gw, relay, Carriage, 5_000_000)
	w.run(90 * time.Second)
	a.rate, b.rate = 0, 0
	w.run(15 * time.Second)
	w.leap(25 * time.Hour)
	x, y := w.chain.paid[gw.key], w.chain.paid[relay.key]
	near(t, "the gateway's income", x, Cost(a.full, testPrice), Cost(GapBytes, testPrice))
	near(t, "the relay's income", y, Cost(b.full, testPrice/5), Cost(GapBytes, testPrice))
	if a.slow+b.slow != 0 || w.chain.total() != 300*credits {
		t.Errorf("slow %d, money %d", a.slow+b.slow, w.chain.total())
	}
	for _, p := range w.peers {
		p.mustAudit()
	}
}

// A debt that the payee has forgiven stays in the payer's own count. Nobody talks about it as long as nothing moves: a proof of a
// tab costs its payee many signatures.
func TestQuiet(t *testing.T) {
	w := newWorld(t)
	user, gw := w.add(), w.add()
	f := w.flow(user, gw, Internet, 12_500_000)
	w.run(time.Minute)
	f.rate = 0
	w.run(time.Minute)
	if f.debit().owed() <= 0 || f.credit().owed() > 0 {
		t.Fatalf("the payer owes %d by its own count, %d by the payee's: nothing was forgiven", f.debit().owed(), f.credit().owed())
	}
	sent := 0
	count := func(_ *peer, b []byte) []byte { sent++; return b }
	user.filter, gw.filter = count, count
	w.run(20 * time.Minute)
	if sent > 0 {
		t.Errorf("%d messages in 20 minutes in which nothing moved", sent)
	}
	f.rate = 12_500_000 // it goes on as before, without a proof
	proofs := 0
	gw.pay.cfg.VerifyAnchor = func(b []byte) (tx.Tab, time.Time, error) { proofs++; return verifyAnchor(b) }
	before := f.promised()
	w.run(time.Minute)
	if f.promised() <= before || f.slow > 0 || proofs > 0 {
		t.Errorf("promised %d, was %d; %d bytes slow, %d proofs", f.promised(), before, f.slow, proofs)
	}
}
