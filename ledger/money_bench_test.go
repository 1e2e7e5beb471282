package ledger

import (
	"testing"

	"weft/ledger/tx"
)

// On one core, in memory: blocks of 500 transactions by as many members, with and without signatures that were checked before (in
// the pool, or as a proposal).
func BenchmarkTransfer(b *testing.B) {
	for _, known := range []bool{false, true} {
		name := "new"
		if known {
			name = "known"
		}
		b.Run(name, func(b *testing.B) {
			const n = 500
			w := newGov(b, n)
			w.m.Strict = false
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				var txs [][]byte
				for i := 1; i <= n; i++ {
					txs = append(txs, w.sign(i, &tx.Transfer{To: govKey(i%n + 1), Amount: 1}))
				}
				h := Header{Height: w.height + 1, Time: w.now + 1}
				if known {
					if err := w.m.CheckBlock(h, txs); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
				if r := w.block(1, txs...).Results[n-1]; r.Code != OK {
					b.Fatalf("%+v", r)
				}
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "tx/s")
		})
	}
}

// Claims of 20 vouchers each, from 100 tabs.
func BenchmarkClaim(b *testing.B) {
	const n = 100
	w := newGov(b, n, "tab.each=1000")
	w.m.Strict = false
	tabs := make([]tx.Opened, n)
	for i := range tabs {
		w.now++
		if err := tx.Decode(w.must(i+1, &tx.TabOpen{Payee: govKey((i+1)%n + 1), Signer: govKey(1001), Earmark: 100, Expiry: w.now + 20*day}), &tabs[i]); err != nil {
			b.Fatal(err)
		}
	}
	vouchers, amount := 0, int64(0)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		if amount++; amount == 100 { // tabs are used up: all over again
			amount = 1
			for i := range tabs {
				w.must((i+1)%n+1, &tx.TabClose{Tab: tabs[i].Tab, Epoch: tabs[i].Epoch})
				w.must((i+1)%n+1, &tx.Transfer{To: govKey(i + 1), Amount: 99})
				if err := tx.Decode(w.must(i+1, &tx.TabOpen{Payee: govKey((i+1)%n + 1), Signer: govKey(1001), Earmark: 100, Expiry: w.now + 20*day}), &tabs[i]); err != nil {
					b.Fatal(err)
				}
			}
		}
		var txs [][]byte
		for at := 0; at < n; at += 20 {
			var c tx.TabClaim
			for i := at; i < at+20; i++ {
				c.Vouchers = append(c.Vouchers, w.voucher(tabs[i], 1001, amount))
			}
			txs = append(txs, w.sign(at+1, &c))
		}
		b.StartTimer()
		for _, r := range w.block(60, txs...).Results {
			if r.Code != OK || len(r.Data) != 20*12 {
				b.Fatalf("%+v", r)
			}
		}
		vouchers += n
	}
	b.ReportMetric(float64(vouchers)/b.Elapsed().Seconds(), "vouchers/s")
}
