package pay

import (
	"testing"
	"time"

	"weft/ident"
)

// BenchmarkBook is what a voucher costs its payee without the disk: parse, verify, encode the record, book, answer. The disk is
// waited for once for all vouchers of a tick.
func BenchmarkBook(b *testing.B) {
	w := newWorld(b)
	user, gw := w.add(), w.add()
	f := w.flow(user, gw, Internet, 1_250_000)
	w.run(30 * time.Second)
	f.rate = 0
	w.run(20 * time.Second)
	v := f.credit().Tab.Voucher
	raw := make([][]byte, b.N)
	for i := range raw {
		v.Seq, v.Amount = v.Seq+1, v.Amount+1
		s, err := v.Sign(user.a)
		if err != nil {
			b.Fatal(err)
		}
		e := s.Encode()
		raw[i] = e[:]
	}
	gw.pay.cfg.Send = func(ident.PublicKey, []byte) error { return nil }
	b.ResetTimer()
	for i := range raw {
		gw.pay.Handle(w.now, user.key, raw[i])
		w.now = w.now.Add(bookEvery)
		gw.pay.Tick(w.now)
	}
	b.StopTimer()
	if got := f.credit().Tab.Voucher.Seq; got != v.Seq {
		b.Fatalf("booked %d of %d", got, v.Seq)
	}
}

// BenchmarkSecond is a second of a 100 Mbit/s link, both ends together: meters, ticks, statuses, vouchers. Divide by a second for
// the share of a core.
func BenchmarkSecond(b *testing.B) {
	w := newWorld(b)
	user, gw := w.add(), w.add()
	user.pay.SetWallet(Wallet{Budget: 1e15, MaxPrice: testPrice, TabSize: 90 * credits})
	f := w.flow(user, gw, Internet, 12_500_000)
	w.run(30 * time.Second)
	before := f.debit().Voucher.Seq
	b.ResetTimer()
	for range b.N {
		w.run(time.Second)
		w.chain.balance[user.key] = 1e15
	}
	b.StopTimer()
	b.ReportMetric(float64(f.debit().Voucher.Seq-before)/float64(b.N), "vouchers/op")
}
