package ledger

import (
	"cmp"
	"encoding/binary"
	"slices"

	"weft/ident"
	"weft/ledger/tx"
)

// Holding is a member's shares in the community.
type Holding struct {
	Count  uint32
	Paid   int64  // for them: what they are redeemed at
	Period uint64 // fiscal period of the last change …
	Low    int64  // … the least that was paid up in it …
	Before int64  // … and in the one before: interest is for what was held throughout
}

// Fields implements tx.Record.
func (h *Holding) Fields(c *tx.Coder) {
	c.U32(&h.Count)
	c.I64(&h.Paid)
	c.U64(&h.Period)
	c.I64(&h.Low)
	c.I64(&h.Before)
}

// through is what was paid up throughout a fiscal period.
func (h *Holding) through(period uint64) int64 {
	switch {
	case period > h.Period:
		return h.Paid
	case period == h.Period:
		return h.Low
	case period+1 == h.Period:
		return h.Before
	}
	return min(h.Before, h.Low, h.Paid)
}

func (c *call) addShares(member uint64, amount int64) error {
	var h Holding
	c.load(sharesKey(member), &h)
	if now := c.bookState().Period; h.Period != now {
		h.Before = h.through(now - 1)
		h.Period, h.Low = now, h.Paid
	}
	var err error
	if h.Paid, err = add(h.Paid, amount); err != nil {
		return err
	}
	h.Low = min(h.Low, h.Paid)
	c.save(sharesKey(member), &h)
	return nil
}

func (c *call) countShares(member uint64, by int64) {
	var h Holding
	c.load(sharesKey(member), &h)
	if h.Count = uint32(int64(h.Count) + by); h.Count == 0 && h.Paid == 0 {
		c.drop(sharesKey(member))
		return
	}
	c.save(sharesKey(member), &h)
}

// idle refuses while a job runs, whose counts must not change under it.
func (c *call) idle() error {
	if b := c.bookState(); b.FirstJob != b.NextJob {
		return refuse(CodeState, "the books are just paying out or charging everybody: try again in some minutes")
	}
	return nil
}

func (c *call) buyShares(from ident.PublicKey, b *tx.BuyShares) error {
	m, err := c.self(from)
	if err != nil {
		return err
	}
	if err := c.idle(); err != nil {
		return err
	}
	p := c.params()
	var h Holding
	c.load(sharesKey(m.ID), &h)
	count := int64(h.Count) + int64(b.Count)
	switch {
	case p.Share == 0:
		return refuse(CodeState, "this community sells no shares (member.share)")
	case b.Count == 0 || count < p.SharesLeast || count > p.SharesMost:
		return refuse(CodeValue, "a member holds %d to %d shares (share.least, share.most)", p.SharesLeast, p.SharesMost)
	}
	cost, rest := mulDiv(uint64(p.Share), uint64(b.Count), 1)
	if rest != 0 || cost > tx.MaxAmount {
		return refuse(CodeOverflow, "so many shares cost more than there is")
	}
	if own := c.balance(&m); int64(cost) > own {
		return refuse(CodeFunds, "shares are paid with own money, not with credit: they cost %d ncredit, and you own %d", cost, max(own, 0))
	}
	if err := c.entry("shares bought", on(hMember, m.ID, -int64(cost)), on(hFund, FundShares, int64(cost)),
		on(hShares, m.ID, int64(cost)), on(hClaims, hShares, -int64(cost))); err != nil {
		return err
	}
	c.countShares(m.ID, int64(b.Count))
	return nil
}

// redeemShares gives back what was paid, whatever a share costs now. Former members redeem too.
func (c *call) redeemShares(from ident.PublicKey, b *tx.RedeemShares) error {
	m, ok := c.memberByKey(from)
	if !ok || m.State == Suspended {
		return refuse(CodeForbid, "only members and former members redeem shares")
	}
	if err := c.idle(); err != nil {
		return err
	}
	var h Holding
	c.load(sharesKey(m.ID), &h)
	left := int64(h.Count) - int64(b.Count)
	switch {
	case b.Count == 0 || left < 0:
		return refuse(CodeValue, "you hold %d shares", h.Count)
	case m.State == Active && left < c.params().SharesLeast:
		return refuse(CodeForbid, "a member keeps %d shares at least (share.least)", c.params().SharesLeast)
	}
	q, _ := mulDiv(uint64(h.Paid), uint64(b.Count), uint64(h.Count))
	back := int64(q)
	if back > c.clearOf(FundShares) {
		return refuse(CodeFunds, "the fund of shares has %d ncredit now; the rest is invested: ask for less, or later", c.clearOf(FundShares))
	}
	if err := c.entry("shares redeemed", on(hFund, FundShares, -back), on(hMember, m.ID, back),
		on(hShares, m.ID, -back), on(hClaims, hShares, back)); err != nil {
		return err
	}
	c.countShares(m.ID, -int64(b.Count))
	return nil
}

// Due is what waits for a former member.
type Due struct {
	Amount int64
	Since  int64 // the newest part of it, seconds since 1970
}

// Fields implements tx.Record.
func (d *Due) Fields(c *tx.Coder) {
	c.I64(&d.Amount)
	c.I64(&d.Since)
}

// payee is the leg by which a member gets money that it did not ask for: in its account, or, for former members, where it waits.
func (c *call) payee(m *Member, amount int64) leg {
	if m.State == Left || m.State == Expelled {
		return on(hDue, m.ID, amount)
	}
	return on(hMember, m.ID, amount)
}

func (c *call) addDue(member uint64, amount int64) error {
	var d Due
	c.load(dueKey(member), &d)
	var err error
	if d.Amount, err = add(d.Amount, amount); err != nil {
		return err
	}
	if years := c.params().UnclaimedYears; amount > 0 && years > 0 {
		d.Since = c.Time
		c.bookAt(c.Time+years*year, bookUnclaimed, member)
	}
	if d.Amount == 0 {
		c.drop(dueKey(member))
		return nil
	}
	c.save(dueKey(member), &d)
	return nil
}

func (c *call) claimDue(from ident.PublicKey) error {
	m, ok := c.memberByKey(from)
	var d Due
	if !ok || !c.load(dueKey(m.ID), &d) {
		return refuse(CodeUnknown, "nothing waits for you")
	}
	return c.entry("claimed", on(hDue, m.ID, -d.Amount), on(hMember, m.ID, d.Amount))
}

// unclaimed gives what nobody has claimed to the solidarity fund.
func (c *call) unclaimed(member uint64) {
	var d Due
	years := c.params().UnclaimedYears
	if !c.load(dueKey(member), &d) || years == 0 {
		return
	}
	if until := d.Since + years*year; until > c.Time {
		c.bookAt(until, bookUnclaimed, member)
		return
	}
	_ = c.try(func() error { // what fails is a fund that is too full: it waits on
		return c.entry("unclaimed", on(hDue, member, -d.Amount), on(hFund, FundSolidarity, d.Amount))
	})
}

// Vintage is a member's capital of a year.
type Vintage struct {
	Year   uint64
	Amount int64
}

// vintages returns a member's capital, oldest year first.
func (c *call) vintages(member uint64) (l []Vintage) {
	prefix := key(kindCapital, uint8(capitalYears), member)
	c.s.Scan(prefix, func(k, v []byte) bool {
		var s sum
		mustDecode(v, &s)
		l = append(l, Vintage{binary.BigEndian.Uint64(k[len(prefix):]), int64(s)})
		return true
	})
	return l
}

// addCapital credits a member's capital of a year. Gains first make good years that are negative, losses first take from the
// newest years that are not: so a member has years above zero or below, never both.
func (c *call) addCapital(member, vintage uint64, amount int64, period uint64) error {
	if amount == 0 {
		return nil
	}
	var legs []leg
	put := func(y uint64, v int64) {
		legs = append(legs, leg{holder{hCapital, member, y}, v, Mark{What: MarkRetained, Period: period, Member: member}})
	}
	left := amount
	l := c.vintages(member)
	slices.Reverse(l)
	for _, v := range l {
		if left > 0 == (v.Amount > 0) || left == 0 {
			continue
		}
		part := max(left, -v.Amount)
		if left > 0 {
			part = min(left, -v.Amount)
		}
		put(v.Year, part)
		left -= part
	}
	if left != 0 {
		put(vintage, left)
	}
	return c.entry("retained", append(legs, on(hClaims, hCapital, -amount))...)
}

// Retirement is capital that is being paid back, by a vote.
type Retirement struct {
	tx.Retire
	Years []RetiredYear
}

// RetiredYear is how much of a year's capital is paid back: all of it, or so many units, by Cut.
type RetiredYear struct {
	Year  uint64
	All   bool
	Minor int64
	Cut   Cut
}

// Fields implements tx.Record.
func (r *Retirement) Fields(c *tx.Coder) {
	r.Retire.Fields(c)
	tx.List(c, &r.Years, 1000, func(c *tx.Coder, y *RetiredYear) {
		c.U64(&y.Year)
		c.Bool(&y.All)
		c.I64(&y.Minor)
		for _, v := range []*uint64{&y.Cut.Left, &y.Cut.Weight, &y.Cut.Rem, &y.Cut.ID} {
			c.U64(v)
		}
	})
}

// Sheet is what the community has, owes and owns.
type Sheet struct {
	Cash     int64 // in cash and banks
	Lent     int64 // members' accounts below zero
	Owed     int64 // members' accounts above zero, tabs, payouts, what waits for former members
	Funds    int64 // Cash + Lent − Owed
	Capital  int64 // of the funds and what was bought with them: members' capital …
	Shares   int64 // … and shares
	Arrears  int64 // what members could not pay yet: in no fund
	Accounts uint64
}

// sheet reads all accounts: for votes on capital and for people.
func (c *call) sheet() (s Sheet) {
	c.s.Scan([]byte{kindAccount}, func(_, v []byte) bool {
		var a Account
		mustDecode(v, &a)
		s.Lent += max(-a.Balance, 0)
		s.Accounts++
		return true
	})
	c.s.Scan(key(kindFund, uint8(fundByID)), func(_, v []byte) bool {
		var f Fund
		mustDecode(v, &f)
		s.Funds += f.Balance
		return true
	})
	s.Cash = c.cash()
	s.Owed = s.Cash + s.Lent - s.Funds
	for i, to := range []*int64{&s.Capital, &s.Shares, &s.Arrears} {
		var v sum
		c.load(claimsKey(uint64(hCapital+i)), &v)
		*to = -int64(v)
	}
	return s
}

func (c *call) checkRetire(r *tx.Retire) error {
	p := c.params()
	if p.Retirement != RetireAny && uint8(p.Retirement) != uint8(r.Method) {
		return refuse(CodeForbid, "the bylaws pay capital back by another method (capital.retirement)")
	}
	if r.Amount < p.Minor {
		return refuse(CodeValue, "a retirement of nothing")
	}
	s := c.sheet()
	kept, _ := mulDiv(positive(s.Capital), uint64(p.RetireEquity), 1000)
	equity, _ := mulDiv(positive(s.Cash+s.Lent), uint64(p.EquityLeast), 1000)
	debt, _ := mulDiv(positive(s.Funds), uint64(p.DebtMost), 1000)
	switch {
	case r.Amount > c.clearOf(FundCapital):
		return refuse(CodeFunds, "the capital fund has %d ncredit", c.clearOf(FundCapital))
	case r.Amount > s.Capital-int64(kept):
		return refuse(CodeFunds, "of %d ncredit of capital %d are kept (capital.kept)", s.Capital, kept)
	case p.EquityLeast > 0 && s.Funds-r.Amount < int64(equity):
		return refuse(CodeFunds, "%d ncredit must be left in funds: the bylaws want that share of all assets (capital.equity)", equity)
	case p.DebtMost > 0 && s.Owed > int64(debt):
		return refuse(CodeFunds, "%d ncredit are owed; with more than %d no capital is paid back (capital.debt)", s.Owed, debt)
	}
	return nil
}

// startRetire plans a retirement when its turn has come, if it may still be.
func (c *call) startRetire(j *Job) bool {
	r := &j.Plan
	if c.checkRetire(&r.Retire) != nil {
		return false
	}
	byYear := map[uint64][]Stake{} // looked up by a sorted list
	var years []uint64
	prefix := key(kindCapital, uint8(capitalYears))
	minor := uint64(c.params().Minor)
	c.s.Scan(prefix, func(k, v []byte) bool {
		var s sum
		mustDecode(v, &s)
		if s > 0 {
			y := binary.BigEndian.Uint64(k[len(prefix)+8:])
			if byYear[y] == nil {
				years = append(years, y)
			}
			byYear[y] = append(byYear[y], Stake{binary.BigEndian.Uint64(k[len(prefix):]), uint64(s), uint64(s) / minor})
		}
		return true
	})
	slices.Sort(years)
	totals := make([]Stake, len(years))
	for i, y := range years {
		for _, s := range byYear[y] {
			totals[i].Weight += s.Weight
		}
		totals[i].ID, totals[i].Cap = y, totals[i].Weight
	}
	for i, amount := range plan(&r.Retire, totals) {
		if amount == 0 {
			continue
		}
		y := RetiredYear{Year: years[i], All: amount == int64(totals[i].Weight), Minor: int64(minor)}
		if !y.All {
			var err error
			if y.Cut, _, err = Divide(uint64(amount)/minor, byYear[years[i]]); err != nil {
				return false
			}
		}
		r.Years = append(r.Years, y)
	}
	return true
}

// plan says how much of each year is paid back. totals are the years, oldest first.
func plan(r *tx.Retire, totals []Stake) []int64 {
	out := make([]int64, len(totals))
	take := func(i int, left int64) int64 {
		part := min(left, int64(totals[i].Weight)-out[i])
		out[i] += part
		return left - part
	}
	first := r.Amount
	switch r.Method {
	case tx.Percent:
		first = 0
	case tx.Hybrid:
		first = permille(r.Amount, int64(r.Oldest))
	}
	left := first
	for i := range totals {
		if r.Method == tx.LIFO {
			i = len(totals) - 1 - i
		}
		left = take(i, left)
	}
	rest := make([]Stake, len(totals))
	for i := range totals {
		n := totals[i].Weight - uint64(out[i])
		rest[i] = Stake{totals[i].ID, n, n}
	}
	if cut, _, err := Divide(uint64(r.Amount-first), rest); err == nil && r.Amount > first {
		for i := range rest {
			out[i] += int64(cut.Share(rest[i]))
		}
	}
	return out
}

// share is how much of a member's capital of the year is paid back.
func (y *RetiredYear) share(member uint64, capital int64) int64 {
	if y.All {
		return capital
	}
	return int64(y.Cut.Share(Stake{member, uint64(capital), uint64(capital) / uint64(y.Minor)})) * y.Minor
}

// retire pays a member's capital back. What it owes is paid from it first, if the bylaws say so.
func (c *call) retire(m *Member, j *Job) {
	var legs []leg
	var total int64
	for _, v := range c.vintages(m.ID) {
		i, ok := slices.BinarySearchFunc(j.Plan.Years, v.Year, func(y RetiredYear, n uint64) int {
			return cmp.Compare(y.Year, n)
		})
		if !ok || v.Amount <= 0 {
			continue
		}
		if part := j.Plan.Years[i].share(m.ID, v.Amount); part > 0 {
			legs = append(legs, leg{holder{hCapital, m.ID, v.Year}, -part, Mark{What: MarkRetired, Member: m.ID, Period: j.ID}})
			total += part
		}
	}
	if total == 0 {
		return
	}
	_ = c.try(func() error { // what fails is an account that is too full, or the fund, which others spent: then this member keeps its capital
		legs = append(legs, on(hClaims, hCapital, total), on(hFund, FundCapital, -total))
		offset := c.params().Offset == 1
		if m.State == Left || m.State == Expelled {
			var debt int64
			if offset {
				debt = min(total, max(-c.balance(m), 0)+c.arrears(m.ID))
			}
			legs = append(legs, on(hDue, m.ID, total-debt), on(hMember, m.ID, debt))
		} else {
			legs = append(legs, on(hMember, m.ID, total))
		}
		if err := c.entry("capital paid back", legs...); err != nil || !offset {
			return err
		}
		return c.collect(m)
	})
}

// arrears is what a member owes for service.
func (c *call) arrears(member uint64) (total int64) {
	c.s.Scan(key(kindCapital, uint8(capitalArrears), member), func(_, v []byte) bool {
		var s sum
		mustDecode(v, &s)
		total += int64(s)
		return true
	})
	return total
}
