package ledger

import (
	"encoding/binary"
	"slices"

	"weft/ledger/tx"
)

// civil is the day of a time (seconds since 1970, UTC) in the Gregorian calendar.
func civil(t int64) (y, m, d int64) {
	z := t / day
	if t%day < 0 {
		z--
	}
	z += 719468 // days from 1 March of year 0, so that leap days end a year
	era := z / 146097
	doe := z - era*146097
	yoe := (doe - doe/1460 + doe/36524 - doe/146096) / 365
	doy := doe - (365*yoe + yoe/4 - yoe/100)
	mp := (5*doy + 2) / 153
	d, m, y = doy-(153*mp+2)/5+1, mp+3, yoe+era*400
	if m > 12 {
		m -= 12
		y++
	}
	return y, m, d
}

// fromCivil is the beginning of a day.
func fromCivil(y, m, d int64) int64 {
	if m <= 2 {
		y--
		m += 12
	}
	doy := (153*(m-3)+2)/5 + d - 1
	era := y / 400
	yoe := y - era*400
	return (era*146097 + yoe*365 + yoe/4 - yoe/100 + doy - 719468) * day
}

// nextMonth is the beginning of the month after t.
func nextMonth(t int64) int64 {
	y, m, _ := civil(t)
	if m++; m > 12 {
		y, m = y+1, 1
	}
	return fromCivil(y, m, 1)
}

// periodEnd is the end of the fiscal period in which t lies: the first of a month, a whole number of periods after the
// beginning of a fiscal year.
func periodEnd(t, first, months int64) int64 {
	for {
		t = nextMonth(t)
		if _, m, _ := civil(t); (m-first+12)%months == 0 {
			return t
		}
	}
}

// PeriodState is where a fiscal period stands.
type PeriodState uint8

// The states.
const (
	PeriodOpen     PeriodState = 0
	PeriodClosing  PeriodState = 1 // over; what belongs to it may still be booked
	PeriodPaying   PeriodState = 2 // divided; members get their parts, a page in each block
	PeriodFinished PeriodState = 3
)

func (s PeriodState) String() string {
	if s > PeriodFinished {
		return "unknown"
	}
	return [...]string{"open", "closing", "paying", "finished"}[s]
}

// Rules are the bylaws by which a fiscal period's surplus is divided: those in force when it began, as nobody may change the
// terms of business that was done already.
type Rules struct {
	Months, Reserve, Solidarity, Interest, Cash, CashLeast, Minor, Basis, Loss, Pooled, SharedBy, Lock int64
}

func (r *Rules) fields(c *tx.Coder) {
	for _, v := range []*int64{&r.Months, &r.Reserve, &r.Solidarity, &r.Interest, &r.Cash, &r.CashLeast, &r.Minor, &r.Basis, &r.Loss, &r.Pooled, &r.SharedBy, &r.Lock} {
		c.I64(v)
	}
}

// RulesOf takes the rules from bylaws.
func RulesOf(p *Params) Rules {
	return Rules{p.FiscalMonths, p.Reserve, p.Solidarity, p.ShareInterest, p.Cash, p.CashLeast, p.Minor, p.PatronageBasis, p.Loss, p.Pooled, p.SharedBy, p.AssetLock}
}

// ClassTotals is the business of a margin class in a fiscal period; of class 0, the costs that all share.
type ClassTotals struct {
	Paid   int64 // by members for service
	Aid    int64 // by the solidarity fund for members
	Others int64 // by non-members
	Bytes  int64 // carried
	Costs  [3]int64
}

func (t *ClassTotals) fields(c *tx.Coder) {
	for _, v := range []*int64{&t.Paid, &t.Aid, &t.Others, &t.Bytes, &t.Costs[0], &t.Costs[1], &t.Costs[2]} {
		c.I64(v)
	}
}

// Group is a surplus and how it was divided: of one margin class or, pooled, of all.
type Group struct {
	Class      uint8 // 0: all
	Margin     int64 // of business with members
	Carried    int64 // losses of former periods that it made good
	Interest   int64 // on shares
	Reserve    int64 // for the reserve: by bylaw, and what no member may have
	Solidarity int64
	Alloc      int64 // among members; negative: a loss that members bear
	Cut        Cut   // in units of Rules.Minor
}

func (g *Group) fields(c *tx.Coder) {
	c.U8(&g.Class)
	for _, v := range []*int64{&g.Margin, &g.Carried, &g.Interest, &g.Reserve, &g.Solidarity, &g.Alloc} {
		c.I64(v)
	}
	for _, v := range []*uint64{&g.Cut.Left, &g.Cut.Weight, &g.Cut.Rem, &g.Cut.ID} {
		c.U64(v)
	}
}

// Period is a fiscal period.
type Period struct {
	ID         uint64
	Start, End int64 // seconds since 1970
	State      PeriodState
	Rules      Rules
	Classes    [tx.Classes + 1]ClassTotals

	// Once its books are closed:
	Others    int64 // margin of business with non-members, which goes to the reserve
	Interest  int64 // on shares, of all members
	Allocated int64 // Σ of the members' shares
	Cash      int64 // the part that is paid
	NoCash    bool  // the funds could not pay the cash part: all became capital
	Last      uint64
	Groups    []Group
}

// Fields implements tx.Record.
func (p *Period) Fields(c *tx.Coder) {
	c.U64(&p.ID)
	c.I64(&p.Start)
	c.I64(&p.End)
	c.U8((*uint8)(&p.State))
	p.Rules.fields(c)
	for i := range p.Classes {
		p.Classes[i].fields(c)
	}
	c.I64(&p.Others)
	c.I64(&p.Interest)
	c.I64(&p.Allocated)
	c.I64(&p.Cash)
	c.Bool(&p.NoCash)
	c.U64(&p.Last)
	tx.List(c, &p.Groups, tx.Classes+1, func(c *tx.Coder, g *Group) { g.fields(c) })
}

// Vintage is the year of capital that the period makes.
func (p *Period) Vintage() uint64 {
	y, _, _ := civil(p.End - 1)
	return uint64(y)
}

func periodKey(id uint64) []byte { return key(kindPeriod, id) }

func (c *call) period(id uint64) (p Period) {
	c.load(periodKey(id), &p)
	return p
}

func (c *call) openPeriod(start int64) {
	b, rules := c.bookState(), c.params()
	b.Period++
	c.save(keyBooks, &b)
	p := Period{ID: b.Period, Start: start, End: periodEnd(c.Time, rules.FiscalMonth, rules.FiscalMonths), Rules: RulesOf(rules)}
	c.save(periodKey(p.ID), &p)
	c.bookAt(p.End, bookYear, p.ID)
}

func (c *call) endPeriod(when int64) {
	p := c.period(c.bookState().Period)
	p.State = PeriodClosing
	c.save(periodKey(p.ID), &p)
	c.openPeriod(when)
	next := c.period(c.bookState().Period) // the books close before the next period ends, which may be shorter
	c.bookAt(min(when+c.params().YearGrace, next.End-1), bookSettle, p.ID)
}

// bookInto returns the fiscal period for a new entry: the open one, or the last.
func (c *call) bookInto(last bool) (uint64, error) {
	open := c.bookState().Period
	if !last {
		return open, nil
	}
	if p := c.period(open - 1); p.ID == 0 || p.State != PeriodClosing {
		return 0, refuse(CodeState, "the books of the fiscal period before are closed, or there is none")
	}
	return open - 1, nil
}

// stillOpen is the period for the reversal of what was booked into one: the same while it takes entries, or the open one.
func (c *call) stillOpen(id uint64) uint64 {
	if p := c.period(id); p.State == PeriodOpen || p.State == PeriodClosing {
		return id
	}
	return c.bookState().Period
}

// Patron is a member's business in a fiscal period.
type Patron struct{ Classes []PatronClass }

// PatronClass is the part of a margin class.
type PatronClass struct {
	Class uint8
	Paid  int64 // what the member itself paid
	Bytes int64
}

// Fields implements tx.Record.
func (p *Patron) Fields(c *tx.Coder) {
	tx.List(c, &p.Classes, tx.Classes, func(c *tx.Coder, l *PatronClass) {
		c.U8(&l.Class)
		c.I64(&l.Paid)
		c.I64(&l.Bytes)
	})
}

// stake is a patron's claim on the surplus of a class, or of all: the weight by the bylaws' basis, and never more than was paid.
func (p *Patron) stake(id uint64, class uint8, r *Rules) Stake {
	var paid, use int64
	for _, l := range p.Classes {
		if class == 0 || l.Class == class {
			paid += l.Paid
			use += l.Bytes
		}
	}
	s := Stake{ID: id, Weight: positive(paid), Cap: positive(paid) / uint64(r.Minor)}
	if r.Basis == BasisBytes {
		s.Weight = positive(use)
	}
	return s
}

// tally adds what a leg means to its fiscal period.
func (c *call) tally(l leg) error {
	if l.mark.What == 0 || l.mark.What > MarkCostBoth {
		return nil
	}
	p := c.period(l.mark.Period)
	t := &p.Classes[l.mark.Class]
	into, amount := &t.Paid, l.amount
	switch l.mark.What {
	case MarkAid:
		into = &t.Aid
	case MarkOthers:
		into = &t.Others
	case MarkCostMember, MarkCostOthers, MarkCostBoth:
		into, amount = &t.Costs[l.mark.What-MarkCostMember], -amount
	}
	var err error
	if *into, err = add(*into, amount); err != nil {
		return err
	}
	if t.Bytes, err = add(t.Bytes, l.mark.Bytes); err != nil {
		return err
	}
	c.save(periodKey(p.ID), &p)
	if l.mark.What != MarkPaid {
		return nil
	}
	var pt Patron
	k := patronKey(p.ID, l.mark.Member)
	c.load(k, &pt)
	i := slices.IndexFunc(pt.Classes, func(x PatronClass) bool { return x.Class == l.mark.Class })
	if i < 0 {
		i = len(pt.Classes)
		pt.Classes = append(pt.Classes, PatronClass{Class: l.mark.Class})
	}
	x := &pt.Classes[i]
	if x.Paid, err = add(x.Paid, l.amount); err != nil {
		return err
	}
	if x.Bytes, err = add(x.Bytes, l.mark.Bytes); err != nil {
		return err
	}
	c.save(k, &pt)
	return nil
}

// Allotment is what a member got of a fiscal period's surplus.
type Allotment struct {
	Member   uint64
	Share    int64 // of the surplus; negative: of a loss
	Cash     int64 // of it, paid
	Retained int64 // of it, made capital
	Interest int64 // on shares
}

// Fields implements tx.Record.
func (a *Allotment) Fields(c *tx.Coder) {
	c.U64(&a.Member)
	c.I64(&a.Share)
	c.I64(&a.Cash)
	c.I64(&a.Retained)
	c.I64(&a.Interest)
}

// allotment computes a member's part from the period's cuts: by itself, so that it can be done a page at a time.
func (p *Period) allotment(id uint64, pt *Patron, shares int64) Allotment {
	a, r := Allotment{Member: id}, &p.Rules
	for i := range p.Groups {
		g := &p.Groups[i]
		if g.Alloc == 0 {
			continue
		}
		s := pt.stake(id, g.Class, r)
		if g.Alloc < 0 {
			s.Cap = NoCap
		}
		share := int64(g.Cut.Share(s)) * r.Minor
		if g.Alloc < 0 {
			a.Share -= share
			a.Retained -= share
			continue
		}
		cash := int64(0)
		if !p.NoCash {
			cash = permille(share/r.Minor, r.Cash) * r.Minor
		}
		a.Share += share
		a.Cash += cash
		a.Retained += share - cash
	}
	if a.Cash < r.CashLeast { // too small to pay: credited as capital
		a.Retained += a.Cash
		a.Cash = 0
	}
	if p.Interest > 0 {
		a.Interest = r.interest(shares)
	}
	return a
}

// interest on paid-up shares, to whole units.
func (r *Rules) interest(paid int64) int64 {
	q, _ := mulDiv(positive(paid), uint64(r.Interest*r.Months), 12_000)
	return int64(q) / r.Minor * r.Minor
}

// settle closes the books of a period: it divides the surplus and moves the sums; members get theirs by a job.
//
//	M_member = what members paid and the solidarity fund paid for them − costs        M_others apart, to the reserve
//	M_alloc  = M_member − losses carried − share interest − reserve − solidarity
//	share_i  = floor(M_alloc · patronage_i / P), units left over to the largest remainders, ties to the lower member number
//	cash_i   = floor(share_i · cash), the rest is capital of the period's year
func (c *call) settle(id uint64) {
	if b := c.bookState(); b.FirstJob != b.NextJob { // a job that is running may change what is counted here: after it
		c.bookAt(c.Time+1, bookSettle, id)
		return
	}
	if err := c.try(func() error { return c.divide(id) }); err != nil {
		c.bookAt(c.Time+30*day, bookSettle, id) // sums that do not fit: nothing is lost, and an entry may mend it
	}
}

func (c *call) divide(id uint64) error {
	p, b := c.period(id), c.bookState()
	type patron struct {
		id uint64
		Patron
	}
	var patrons []patron
	prefix := key(kindResult, uint8(resultPatron), id)
	c.s.Scan(prefix, func(k, v []byte) bool {
		x := patron{id: binary.BigEndian.Uint64(k[len(prefix):])}
		mustDecode(v, &x.Patron)
		patrons = append(patrons, x)
		return true
	})
	shares := map[uint64]int64{} // looked up, never ranged over
	var interest int64
	prefix = key(kindCapital, uint8(capitalShares))
	c.s.Scan(prefix, func(k, v []byte) bool {
		var h Holding
		mustDecode(v, &h)
		m := binary.BigEndian.Uint64(k[len(prefix):])
		shares[m] = h.through(id)
		interest += p.Rules.interest(shares[m])
		return true
	})
	members, others, err := p.margins()
	if err != nil {
		return err
	}
	f := c.clearOf(FundOperating) + c.clearOf(FundUpstream) // what there is to pay with

	// Business with others.
	p.Others = others
	toReserve := others - b.CarryOthers
	if b.CarryOthers = max(-toReserve, 0); toReserve < 0 {
		toReserve = 0
	}

	// Business with members.
	groups := make([]Group, 0, tx.Classes)
	if p.Rules.Pooled == 1 {
		var all int64
		for _, m := range members {
			if all, err = add(all, m); err != nil {
				return err
			}
		}
		groups = append(groups, Group{Margin: all})
	} else {
		for class := uint8(1); class <= tx.Classes; class++ {
			if members[class] != 0 || b.Carry[class] != 0 {
				groups = append(groups, Group{Class: class, Margin: members[class]})
			}
		}
	}
	net := make([]Stake, len(groups)) // what is left when losses are made good
	var gains int64
	for i := range groups {
		g := &groups[i]
		g.Carried = min(b.Carry[g.Class], max(g.Margin, 0))
		b.Carry[g.Class] -= g.Carried
		if g.Margin < 0 {
			continue
		}
		m := g.Margin - g.Carried
		net[i] = Stake{uint64(g.Class), uint64(m), uint64(m)}
		gains += m
	}
	if interest <= gains && interest <= f {
		p.Interest = interest
	}
	cut, _, err := Divide(uint64(p.Interest), net)
	if err != nil {
		return err
	}
	var solidarity int64
	minor := p.Rules.Minor
	for i := range groups {
		g := &groups[i]
		stakes := make([]Stake, len(patrons))
		for j := range patrons {
			stakes[j] = patrons[j].stake(patrons[j].id, g.Class, &p.Rules)
		}
		if g.Margin < 0 {
			if err := c.loss(&p, &b, g, stakes); err != nil {
				return err
			}
			continue
		}
		g.Interest = int64(cut.Share(net[i]))
		base := int64(net[i].Weight) - g.Interest
		g.Reserve = permille(base, p.Rules.Reserve) / minor * minor
		g.Solidarity = permille(base, p.Rules.Solidarity) / minor * minor
		left := base - g.Reserve - g.Solidarity
		if p.Rules.Lock == 1 {
			g.Reserve, left = g.Reserve+left, 0
		}
		var rest uint64
		if g.Cut, rest, err = Divide(uint64(left/minor), stakes); err != nil {
			return err
		}
		g.Reserve += int64(rest) * minor
		g.Alloc = (left/minor - int64(rest)) * minor // a fraction of a unit stays in the fund
		toReserve, solidarity = toReserve+g.Reserve, solidarity+g.Solidarity
	}
	p.Groups = groups

	// The sums, exactly; all becomes capital when the funds lack the cash.
	var cash, retained int64
	for i := range patrons {
		a := p.allotment(patrons[i].id, &patrons[i].Patron, 0)
		cash += a.Cash
	}
	if cash > c.clearOf(FundOperating)+c.clearOf(FundUpstream)-p.Interest {
		p.NoCash, cash = true, 0
	}
	for i := range groups {
		p.Allocated += groups[i].Alloc
		retained += max(groups[i].Alloc, 0)
	}
	retained -= cash
	p.Cash, p.State, p.Last = cash, PeriodPaying, c.register().Last
	c.save(keyBooks, &b)
	c.save(periodKey(id), &p)
	for _, to := range []struct {
		fund   uint64
		amount int64
	}{{FundClearing, p.Interest + cash}, {FundSolidarity, solidarity}, {FundReserve, toReserve}, {FundCapital, retained}} {
		if err := c.drain(to.fund, to.amount); err != nil {
			return err
		}
	}
	c.queueJob(Job{Kind: JobAllot, ID: id})
	return nil
}

// margins are the margins of each class with members, and of all business with others. Costs that classes share are divided
// by the bylaws' key, costs of both kinds of business by what came in from each.
func (p *Period) margins() (members [tx.Classes + 1]int64, others int64, err error) {
	keys := make([]Stake, tx.Classes)
	any := false
	for i := range keys {
		t := &p.Classes[i+1]
		keys[i] = Stake{ID: uint64(i + 1), Cap: NoCap}
		in := positive(t.Paid + t.Aid + t.Others)
		switch {
		case p.Rules.SharedBy == SharedRevenue:
			keys[i].Weight = in
		case p.Rules.SharedBy == SharedBytes:
			keys[i].Weight = positive(t.Bytes)
		case in > 0:
			keys[i].Weight = 1
		}
		any = any || keys[i].Weight > 0
	}
	if !any {
		keys[0].Weight = 1
	}
	classes := p.Classes
	for kind, cost := range classes[0].Costs {
		cut, _, err := Divide(positive(cost), keys)
		if err != nil {
			return members, 0, err
		}
		for i := range keys {
			classes[i+1].Costs[kind] += int64(cut.Share(keys[i]))
		}
		if cost < 0 { // more was reversed than booked
			classes[1].Costs[kind] += cost
		}
	}
	for i := 1; i <= tx.Classes; i++ {
		t := &classes[i]
		in, out := t.Paid+t.Aid, t.Others
		both := []Stake{{1, positive(in), NoCap}, {2, positive(out), NoCap}}
		if in <= 0 && out <= 0 {
			both[0].Weight = 1
		}
		cut, _, err := Divide(positive(t.Costs[2]), both)
		if err != nil {
			return members, 0, err
		}
		members[i] = in - t.Costs[0] - int64(cut.Share(both[0])) - min(t.Costs[2], 0)
		if others, err = add(others, out-t.Costs[1]-int64(cut.Share(both[1]))); err != nil {
			return members, 0, err
		}
	}
	return members, others, nil
}

// loss deals with a loss as the bylaws say.
func (c *call) loss(p *Period, b *bookState, g *Group, stakes []Stake) error {
	lost := -g.Margin
	switch p.Rules.Loss {
	case LossReserve:
		cover := min(lost, c.clearOf(FundReserve))
		if err := c.entry("loss of a fiscal period", on(hFund, FundReserve, -cover), on(hFund, FundOperating, cover)); err != nil {
			return err
		}
		g.Reserve, lost = -cover, lost-cover
	case LossMembers:
		for i := range stakes {
			stakes[i].Cap = NoCap
		}
		cut, rest, err := Divide(uint64(lost/p.Rules.Minor), stakes)
		if err != nil {
			return err
		}
		if rest == 0 {
			g.Cut, g.Alloc = cut, -(lost / p.Rules.Minor * p.Rules.Minor)
			lost += g.Alloc
			cover := min(-g.Alloc, c.clearOf(FundCapital))
			if err := c.entry("loss borne by capital", on(hFund, FundCapital, -cover), on(hFund, FundOperating, cover)); err != nil {
				return err
			}
		}
	}
	var err error
	b.Carry[g.Class], err = add(b.Carry[g.Class], lost)
	return err
}

// drain moves a surplus out of the funds that it came into, as far as the money is there: what was spent on the network instead is
// not there, which the books of capital bear.
func (c *call) drain(to uint64, amount int64) error {
	for _, from := range []uint64{FundOperating, FundUpstream} {
		part := min(amount, c.clearOf(from))
		if err := c.entry("surplus", on(hFund, from, -part), on(hFund, to, part)); err != nil {
			return err
		}
		amount -= part
	}
	return nil
}

// allot gives a member its part of a divided surplus.
func (c *call) allot(m *Member, period uint64) {
	p := c.period(period)
	var pt Patron
	var h Holding
	c.load(patronKey(period, m.ID), &pt)
	c.load(sharesKey(m.ID), &h)
	a := p.allotment(m.ID, &pt, h.through(period))
	if a == (Allotment{Member: m.ID}) {
		return
	}
	err := c.try(func() error {
		c.save(allotKey(period, m.ID), &a)
		if a.Cash+a.Interest != 0 {
			cash, interest := c.payee(m, a.Cash), c.payee(m, a.Interest)
			cash.mark = Mark{What: MarkRefund, Period: period, Member: m.ID}
			interest.mark = Mark{What: MarkInterest, Period: period, Member: m.ID}
			if err := c.entry("refund and share interest", on(hFund, FundClearing, -a.Cash-a.Interest), cash, interest); err != nil {
				return err
			}
		}
		return c.addCapital(m.ID, p.Vintage(), a.Retained, period)
	})
	if err != nil { // an account that is too full; the clearing fund keeps it
		c.drop(allotKey(period, m.ID))
	}
}

// endAllot ends the payment of a surplus.
func (c *call) endAllot(period uint64) {
	p := c.period(period)
	p.State = PeriodFinished
	c.save(periodKey(period), &p)
}
