package ledger

import (
	"encoding/binary"

	"weft/ledger/tx"
)

// booksTotal is what the books hold of money: funds, payouts, what waits for former members, and the world's minus.
func (m *Machine) booksTotal() (total int64) {
	for _, b := range m.TrialBalance() {
		if b.kind == hFund || b.kind == hPayout || b.kind == hDue || b.kind == hWorld {
			total += b.Amount
		}
	}
	return total
}

// Balance is one line of the trial balance.
type Balance struct {
	Account string
	Amount  int64
	kind    uint8
}

// TrialBalance returns every account of the books that is not at zero, in a fixed order. Money sums to zero, and so do claims.
func (m *Machine) TrialBalance() (l []Balance) {
	c := m.view(Header{})
	put := func(h holder, amount int64) {
		if amount != 0 {
			l = append(l, Balance{h.String(), amount, h.kind})
		}
	}
	m.base.Scan([]byte{kindAccount}, func(k, v []byte) bool {
		var a Account
		mustDecode(v, &a)
		if a.Balance != 0 {
			l = append(l, Balance{c.holder([32]byte(k[1:])), a.Balance, hMember})
		}
		return true
	})
	for _, t := range list[tx.Tab](m.base, []byte{kindTab}) {
		if left := t.Left(); left != 0 {
			l = append(l, Balance{tabHolder(t.ID), left, 0})
		}
	}
	for _, f := range list[Fund](m.base, key(kindFund, uint8(fundByID))) {
		put(holder{hFund, f.ID, 0}, f.Balance)
	}
	sums := func(kind uint8, two bool, prefix []byte) {
		m.base.Scan(prefix, func(k, v []byte) bool {
			var s sum
			mustDecode(v, &s)
			h := holder{kind: kind, id: binary.BigEndian.Uint64(k[len(prefix):])}
			if two {
				h.sub = binary.BigEndian.Uint64(k[len(prefix)+8:])
			}
			put(h, int64(s))
			return true
		})
	}
	sums(hWorld, false, key(kindFund, uint8(fundWorld)))
	sums(hPayout, false, key(kindEntry, uint8(entryPayout)))
	m.base.Scan(key(kindCapital, uint8(capitalDue)), func(k, v []byte) bool {
		var d Due
		mustDecode(v, &d)
		put(holder{hDue, binary.BigEndian.Uint64(k[2:]), 0}, d.Amount)
		return true
	})
	sums(hCapital, true, key(kindCapital, uint8(capitalYears)))
	m.base.Scan(key(kindCapital, uint8(capitalShares)), func(k, v []byte) bool {
		var h Holding
		mustDecode(v, &h)
		put(holder{hShares, binary.BigEndian.Uint64(k[2:]), 0}, h.Paid)
		return true
	})
	sums(hArrears, true, key(kindCapital, uint8(capitalArrears)))
	sums(hClaims, false, key(kindFund, uint8(fundClaims)))
	return l
}

// checkBooks verifies what must be true of funds, entries, periods and capital.
func (m *Machine) checkBooks() error {
	c := m.view(Header{})
	var e complaint
	var claims int64
	for _, b := range m.TrialBalance() {
		if b.kind >= hCapital {
			claims += b.Amount
		}
		e.must(b.Amount >= 0 || b.kind == hWorld || b.kind == hClaims || b.kind == hMember || b.kind == hCapital, "%s is at %d", b.Account, b.Amount)
	}
	e.must(claims == 0, "claims sum to %d", claims)
	e.must(c.cash() >= 0, "cash is at %d", c.cash())
	books := c.bookState()
	open, jobs := 0, uint64(0)
	for _, p := range list[Period](m.base, []byte{kindPeriod}) {
		if p.State == PeriodOpen {
			open++
			e.must(p.ID == books.Period, "period %d is open, and so is %d", p.ID, books.Period)
		}
		var paid, bytes [tx.Classes + 1]int64
		m.base.Scan(key(kindResult, uint8(resultPatron), p.ID), func(_, v []byte) bool {
			var pt Patron
			mustDecode(v, &pt)
			for _, l := range pt.Classes {
				paid[l.Class] += l.Paid
				bytes[l.Class] += l.Bytes
			}
			return true
		})
		for i := range paid {
			e.must(paid[i] == p.Classes[i].Paid, "period %d, class %d: members paid %d, not %d", p.ID, i, paid[i], p.Classes[i].Paid)
		}
		var share, cash int64
		for _, a := range list[Allotment](m.base, key(kindResult, uint8(resultAllot), p.ID)) {
			e.must(a.Share == a.Cash+a.Retained, "period %d, member %d: %d are not %d and %d", p.ID, a.Member, a.Share, a.Cash, a.Retained)
			share, cash = share+a.Share, cash+a.Cash
		}
		if p.State == PeriodFinished {
			e.must(share == p.Allocated && cash == p.Cash, "period %d: %d and %d in cash were allocated, not %d and %d", p.ID, share, cash, p.Allocated, p.Cash)
		}
	}
	e.must(open == 1, "%d fiscal periods are open", open)
	m.base.Scan(key(kindResult, uint8(resultJob)), func([]byte, []byte) bool { jobs++; return true })
	e.must(jobs == books.NextJob-books.FirstJob, "%d jobs wait, not %d", jobs, books.NextJob-books.FirstJob)
	if jobs == 0 {
		e.must(c.clearOf(FundClearing) == 0, "%d are left over of refunds", c.clearOf(FundClearing))
	}
	var waiting int64
	for _, x := range list[Entry](m.base, key(kindEntry, uint8(entryByID))) {
		e.must(x.ID <= books.LastEntry, "entry %d has a number that was not given", x.ID)
		at, what := x.Until, uint8(bookPrune)
		if x.State == EntryWaits {
			what = bookLapse
			if _, ok := x.Body.(*tx.Payout); ok {
				waiting += x.Amount
			}
		}
		e.must(c.s.Get(bookKey(at, what, x.ID)) != nil, "entry %d will never end", x.ID)
	}
	m.base.Scan(key(kindEntry, uint8(entryPayout)), func(_, v []byte) bool {
		var s sum
		mustDecode(v, &s)
		waiting -= int64(s)
		return true
	})
	e.must(waiting == 0, "payouts differ by %d from what is set aside", waiting)
	return e.err
}
