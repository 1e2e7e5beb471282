package pay

import (
	"testing"
	"time"

	"weft/ledger/tx"
)

// What somebody owes who pays nothing is kept each ten seconds, however often others pay: a crash forgives it no more than that.
func TestDebtsAreKeptBesidePayers(t *testing.T) {
	w := newWorld(t)
	gw, pays, owes := w.add(), w.add(), w.add()
	w.tar.Trust = 100 * credits
	owes.wallet = Wallet{}
	owes.start()
	f := w.flow(pays, gw, Internet, 12_500_000)
	w.open(f)
	g := w.flow(owes, gw, Internet, 1_250_000)
	w.run(3 * time.Minute)
	before := g.credit().Charged.Amount
	if before == 0 || f.credit().Tab.Voucher.Seq < 60 {
		t.Fatalf("%d ncredit are owed, %d vouchers were signed beside it", before, f.credit().Tab.Voucher.Seq)
	}
	gw.crash(0)
	gw.start()
	after := int64(0)
	if c := g.credit(); c != nil {
		after = c.Charged.Amount
	}
	if lost, most := before-after, Cost(1_250_000*11, testPrice); lost > most {
		t.Errorf("of %d ncredit that are owed %d are forgotten, at most %d", before, lost, most)
	}
}

// Who signs nothing writes its counts each ten seconds, not with each tick: flash wears out.
func TestWritesNowAndThen(t *testing.T) {
	w := newWorld(t)
	user, gw := w.add(), w.add()
	user.wallet = Wallet{MaxPrice: testPrice}
	user.start()
	f := w.flow(user, gw, Internet, 20_000)
	w.run(time.Minute)
	before := [2]int{user.store.writes, gw.store.writes}
	w.run(5 * time.Minute)
	for i, p := range []*peer{user, gw} {
		if n := p.store.writes - before[i]; n < 20 || n > 70 { // a throttled account goes to and fro now and then
			t.Errorf("%d writes in 5 minutes", n)
		}
	}
	f.rate = 1_250_000 // now a crash would make it forget what it will never sign for
	w.run(10*time.Second + step)
	bytes := f.debit().Bytes
	user.crash(0)
	user.start()
	if d := f.debit(); d == nil || d.Bytes < bytes-GapBytes-1_250_000/4 {
		t.Errorf("of %d bytes a crash leaves %+v", bytes, d)
	}
	if f.debit().Bytes == 0 || f.debit().Voucher != (tx.Voucher{}) {
		t.Errorf("%+v", f.debit().debitRecord)
	}
}

// A clock that jumps there and back, as that of a router that begins in 1970 at each start, makes no money to spend: each month has
// its budget once.
func TestClockJumps(t *testing.T) {
	w := newWorld(t)
	user, gw := w.add(), w.add()
	f := w.flow(user, gw, Internet, 1_250_000)
	w.open(f)
	user.pay.SetWallet(Wallet{Budget: f.debit().Signed + 100_000, MaxPrice: testPrice, TabSize: credits})
	w.run(time.Minute)
	spent := user.pay.View(w.now).Spent
	if spent != f.debit().Signed {
		t.Fatalf("spent %d, signed %d", spent, f.debit().Signed)
	}
	for _, years := range []int{-57, 8, -57} {
		there := w.now.AddDate(years, 0, 0)
		user.pay.mu.Lock()
		user.pay.spent.add(there, 1000)
		b := user.pay.spent.entries(there)
		user.pay.mu.Unlock()
		if err := user.store.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	for _, when := range []string{"when the clock is right again", "after a start"} {
		if got := user.pay.View(w.now).Spent; got != spent {
			t.Errorf("%s %d are spent, were %d", when, got, spent)
		}
		if got := user.pay.View(w.now.AddDate(-57, 0, 0)).Spent; got != 2000 {
			t.Errorf("%s %d are spent in 1970", when, got)
		}
		if err := user.pay.Flush(w.now); err != nil {
			t.Fatal(err)
		}
		user.start()
	}
	m := months{}
	for i := range 100 {
		at := w.now.AddDate(0, i, 0)
		m.add(at, 1)
		if m.entries(at); len(m) > maxMonths || m.in(at) != 1 {
			t.Fatalf("%d months are kept", len(m))
		}
	}
}
