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
	f := w.flow(user, gw, Internet, 1_250_000)
	w.run(time.Minute)
	before := [2]int{user.store.writes, gw.store.writes}
	w.run(5 * time.Minute)
	for i, p := range []*peer{user, gw} {
		if n := p.store.writes - before[i]; n < 20 || n > 70 { // a throttled account goes to and fro now and then
			t.Errorf("%d writes in 5 minutes", n)
		}
	}
	if f.debit().Bytes == 0 || f.debit().Voucher != (tx.Voucher{}) {
		t.Errorf("%+v", f.debit().debitRecord)
	}
}
