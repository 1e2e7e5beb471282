package ledger

import (
	"weft/ident"
	"weft/ledger/tx"
)

// EntryState is where an entry of the treasury stands.
type EntryState uint8

// The states.
const (
	EntryWaits     EntryState = 0 // for the second signature, or, a payout, for the treasurer
	EntryDone      EntryState = 1
	EntryLapsed    EntryState = 2
	EntryCancelled EntryState = 3
	EntryReversed  EntryState = 4
)

func (s EntryState) String() string {
	if s > EntryReversed {
		return "unknown"
	}
	return [...]string{"waits", "done", "lapsed", "cancelled", "reversed"}[s]
}

// Entry is something that was entered in the books by hand. It is kept as long as it can be reversed; the chain has it for ever.
type Entry struct {
	ID     uint64
	Body   tx.Body // what was sent
	By     uint64  // the member who sent it
	Second uint64  // the member who countersigned; 0: nobody has
	Made   int64   // seconds since 1970
	Until  int64   // while it waits: when it lapses; then: how long it is kept, and can be reversed
	State  EntryState
	Amount int64
	Other  uint64 // the entry that reverses this one, or that this one reverses; of a payout, the one that pays it, or waits to
	legs   []leg  // what it moved
}

// Fields implements tx.Record.
func (e *Entry) Fields(c *tx.Coder) {
	var kind tx.Kind
	if e.Body != nil {
		kind = e.Body.Kind()
	}
	c.U64(&e.ID)
	c.U16((*uint16)(&kind))
	if c.Reading() {
		e.Body = tx.New(kind)
	}
	if e.Body == nil {
		c.Fail(refuse(CodeMalform, "transaction kind %d is not known here", kind))
		return
	}
	e.Body.Fields(c)
	c.U64(&e.By)
	c.U64(&e.Second)
	c.I64(&e.Made)
	c.I64(&e.Until)
	c.U8((*uint8)(&e.State))
	c.I64(&e.Amount)
	c.U64(&e.Other)
	tx.List(c, &e.legs, 2000, func(c *tx.Coder, l *leg) { l.fields(c) })
}

func entryKey(id uint64) []byte { return key(kindEntry, uint8(entryByID), id) }

func (c *call) entryByID(id uint64) (e Entry, err error) {
	if !c.load(entryKey(id), &e) {
		return e, refuse(CodeUnknown, "there is no entry %d, or it is too old to be changed", id)
	}
	return e, nil
}

// newEntry numbers an entry. The caller saves it.
func (c *call) newEntry(by uint64, body tx.Body, amount int64) Entry {
	b := c.bookState()
	b.LastEntry++
	c.save(keyBooks, &b)
	c.data = number(b.LastEntry)
	return Entry{ID: b.LastEntry, Body: body, By: by, Made: c.Time, Amount: amount}
}

// booked saves an entry that has been carried out, until it can be reversed no more.
func (c *call) booked(e *Entry, legs []leg) {
	e.State, e.legs = EntryDone, legs
	c.keepEntry(e)
}

func (c *call) keepEntry(e *Entry) {
	e.Until = c.Time + c.params().ReversalTime
	c.save(entryKey(e.ID), e)
	c.bookAt(e.Until, bookPrune, e.ID)
}

// treasurer returns the member in office whose own key sent something.
func (c *call) treasurer(from ident.PublicKey) (Member, error) {
	m, err := c.self(from)
	if err == nil && !c.isTreasurer(m.ID) {
		err = refuse(CodeForbid, "only treasurers may do this")
	}
	return m, err
}

// mayCountersign reports whether a member may be the second person for an entry of another.
func (c *call) mayCountersign(by, second uint64) bool {
	m, ok := c.member(second)
	if !ok || m.State != Active || second == by {
		return false
	}
	others := false
	for _, t := range c.treasurers() {
		if t.Member == second {
			return true
		}
		others = others || t.Member != by
	}
	if w := uint64(c.params().Witness); w != 0 && w != by {
		if w == second {
			return true
		}
		wm, ok := c.member(w)
		others = others || ok && wm.State == Active
	}
	return !others // nobody is named: any other member
}

// somebodyElse reports whether there is anybody who could countersign.
func (c *call) somebodyElse(by uint64) bool {
	m, _ := c.member(by)
	n := c.register().Active
	return n > 1 || n == 1 && m.State != Active
}

// signed is what a treasurer has entered alone since a time.
type signed struct{ Since, Sum int64 }

func (s *signed) Fields(c *tx.Coder) { c.I64(&s.Since); c.I64(&s.Sum) }

// needsSecond reports whether an entry needs a second person: it is large, or with others of the day it is, or it is in its
// author's favour. In a community of one there is nobody to ask.
func (c *call) needsSecond(by, for_ uint64, amount int64) bool {
	if !c.somebodyElse(by) {
		return false
	}
	var s signed
	k := key(kindFund, uint8(fundSigned), by)
	if c.load(k, &s); c.Time >= s.Since+day {
		s = signed{Since: c.Time}
	}
	if by == for_ || s.Sum+amount >= c.params().TwoPerson {
		return true
	}
	s.Sum += amount // both below MaxAmount
	c.save(k, &s)
	return false
}

// file carries an entry of a treasurer out, or lets it wait for the second person.
func (c *call) file(by, for_ uint64, body tx.Body, amount int64) error {
	if amount <= 0 {
		return refuse(CodeValue, "an entry of nothing")
	}
	e := c.newEntry(by, body, amount)
	if !c.needsSecond(by, for_, amount) {
		return c.carryOut(&e)
	}
	// What cannot be done now need not wait: a trial.
	trial := *c
	trial.s = newOverlay(c.s)
	probe := e
	if err := trial.carryOut(&probe); err != nil {
		return err
	}
	e.Until = c.Time + c.params().PendingLife
	c.save(entryKey(e.ID), &e)
	c.bookAt(e.Until, bookLapse, e.ID)
	return nil
}

// carryOut does what an entry says.
func (c *call) carryOut(e *Entry) error {
	var legs []leg
	var memo string
	switch b := e.Body.(type) {
	case *tx.Deposit:
		to := on(hMember, b.Member, b.Amount)
		if b.Fund != 0 {
			to = on(hFund, b.Fund, b.Amount)
			if b.Class != 0 {
				p, err := c.bookInto(b.Last)
				if err != nil {
					return err
				}
				to.mark = Mark{What: MarkOthers, Class: b.Class, Period: p}
			}
		}
		legs, memo = []leg{on(hWorld, uint64(b.Way), -b.Amount), to}, "deposit, "+b.Reference
	case *tx.Paid:
		p, err := c.entryByID(b.Payout)
		if err != nil {
			return err
		}
		ask, ok := p.Body.(*tx.Payout)
		if !ok || p.State != EntryWaits {
			return refuse(CodeState, "entry %d is not a payout that waits", b.Payout)
		}
		legs, memo = []leg{on(hPayout, p.ID, -p.Amount), on(hWorld, uint64(ask.Way), p.Amount)}, "paid out, "+b.Reference
		c.bookNotAt(p.Until, bookLapse, p.ID)
		p.State, p.Other = EntryDone, e.ID
		c.keepEntry(&p)
	case *tx.Spend:
		var g Budget
		if !c.load(budgetKey(b.Budget), &g) {
			return refuse(CodeUnknown, "there is no budget %d: a proposal makes one", b.Budget)
		}
		switch {
		case g.Until != 0 && c.Time >= g.Until:
			return refuse(CodeState, "budget %d has ended", g.ID)
		case b.Amount > g.Left:
			return refuse(CodeFunds, "of budget %d %d ncredit are left", g.ID, g.Left)
		case g.Member != 0 && g.Member != b.Member:
			return refuse(CodeForbid, "budget %d is for member %d only", g.ID, g.Member)
		}
		from := on(hFund, g.Fund, -b.Amount)
		if g.Cost {
			p, err := c.bookInto(b.Last)
			if err != nil {
				return err
			}
			from.mark = Mark{What: MarkCostMember + uint8(g.Business), Class: g.Class, Period: p}
		}
		to := on(hWorld, uint64(b.Way), b.Amount)
		if b.Member != 0 {
			to = on(hMember, b.Member, b.Amount)
		}
		g.Left -= b.Amount
		c.save(budgetKey(g.ID), &g)
		legs, memo = []leg{from, to}, g.Purpose+", "+b.Reference
	case *tx.Reverse:
		o, err := c.entryByID(b.Entry)
		if err != nil {
			return err
		}
		if err := c.reversible(&o); err != nil {
			return err
		}
		for _, l := range o.legs {
			if l.kind == hArrears {
				legs = append(legs, c.forgive(l)...)
				continue
			}
			if l.kind == hClaims && l.id == hArrears {
				continue // forgive has the other side
			}
			l.amount, l.mark.Bytes = -l.amount, -l.mark.Bytes
			if l.mark.What != 0 {
				l.mark.Period = c.stillOpen(l.mark.Period)
			}
			legs = append(legs, l)
		}
		if s, ok := o.Body.(*tx.Spend); ok {
			var g Budget
			if c.load(budgetKey(s.Budget), &g) {
				g.Left += s.Amount
				c.save(budgetKey(g.ID), &g)
			}
		}
		o.State, o.Other, e.Other = EntryReversed, e.ID, o.ID
		c.save(entryKey(o.ID), &o)
		if err := c.enter(true, "reversal, "+b.Reason, legs); err != nil {
			return err
		}
		c.booked(e, legs)
		return nil
	}
	if err := c.entry(memo, legs...); err != nil {
		return err
	}
	c.booked(e, legs)
	return nil
}

// forgive reverses arrears: what is still owed is owed no more, and what has been collected of it since goes back.
func (c *call) forgive(l leg) []leg {
	var owed sum
	c.load(arrearsKey(l.id, l.sub), &owed)
	still := min(l.amount, int64(owed))
	line, _ := c.line(l.sub)
	from := on(hFund, line.Fund, still-l.amount)
	from.mark = Mark{What: MarkPaid, Class: line.Class, Period: c.bookState().Period, Member: l.id}
	return []leg{{l.holder, -still, Mark{}}, on(hClaims, hArrears, still), from, on(hMember, l.id, l.amount-still)}
}

func (c *call) deposit(from ident.PublicKey, b *tx.Deposit) error {
	t, err := c.treasurer(from)
	if err != nil {
		return err
	}
	switch {
	case (b.Member == 0) == (b.Fund == 0):
		return refuse(CodeValue, "a deposit is for a member or for a fund")
	case b.Fund == FundClearing || b.Fund == FundShares:
		return refuse(CodeForbid, "the fund %s takes no deposits", fundName(b.Fund))
	case b.Member != 0 && (b.Class != 0 || b.Last):
		return refuse(CodeValue, "a deposit for a member is no income of a margin class or a period")
	case b.Class != 0 && b.Fund != FundOperating && b.Fund != FundUpstream:
		return refuse(CodeValue, "income of a margin class goes to the fund operating or upstream")
	case b.Reference == "":
		return refuse(CodeValue, "a deposit needs a reference: the number of a receipt or a transfer")
	}
	return c.file(t.ID, b.Member, b, b.Amount)
}

// payout sets money aside that a member wants paid. Only what one owns can be paid out, not credit.
func (c *call) payout(from ident.PublicKey, b *tx.Payout) error {
	m, ok := c.memberByKey(from)
	if !ok || m.State == Suspended {
		return refuse(CodeForbid, "only members and former members have money paid out")
	}
	if own := c.balance(&m); b.Amount == 0 || b.Amount > own {
		return refuse(CodeFunds, "a payout is of 1 to %d ncredit: what you own; credit is not paid out", max(own, 0))
	}
	e := c.newEntry(m.ID, b, b.Amount)
	e.Until = c.Time + c.params().PendingLife
	c.save(entryKey(e.ID), &e)
	c.bookAt(e.Until, bookLapse, e.ID)
	return c.entry("payout asked for", on(hMember, m.ID, -b.Amount), on(hPayout, e.ID, b.Amount))
}

func (c *call) paid(from ident.PublicKey, b *tx.Paid) error {
	t, err := c.treasurer(from)
	if err != nil {
		return err
	}
	if b.Reference == "" {
		return refuse(CodeValue, "a payment needs a reference: the number of a receipt or a transfer")
	}
	p, err := c.entryByID(b.Payout)
	if err != nil {
		return err
	}
	if _, ok := p.Body.(*tx.Payout); !ok || p.State != EntryWaits {
		return refuse(CodeState, "entry %d is not a payout that waits", b.Payout)
	}
	if o, err := c.entryByID(p.Other); err == nil && o.State == EntryWaits {
		return refuse(CodeExists, "entry %d says already that payout %d was paid; it waits for a second person: countersign or cancel it", o.ID, p.ID)
	}
	if err := c.file(t.ID, p.By, b, p.Amount); err != nil {
		return err
	}
	return c.beingPaid(p.ID)
}

// beingPaid notes at a payout the newest entry, if that waits to pay it. The payout does not lapse under it.
func (c *call) beingPaid(payout uint64) error {
	p, err := c.entryByID(payout)
	if err != nil || p.State != EntryWaits {
		return err
	}
	c.bookNotAt(p.Until, bookLapse, p.ID)
	p.Other = c.bookState().LastEntry
	p.Until = max(p.Until, c.Time+c.params().PendingLife+day)
	c.save(entryKey(p.ID), &p)
	c.bookAt(p.Until, bookLapse, p.ID)
	return nil
}

func (c *call) spend(from ident.PublicKey, b *tx.Spend) error {
	t, err := c.treasurer(from)
	if err != nil {
		return err
	}
	if b.Reference == "" {
		return refuse(CodeValue, "a payment needs a reference: the number of a bill")
	}
	return c.file(t.ID, b.Member, b, b.Amount)
}

// countersign carries a waiting entry out. The author stays responsible for it; so it is void when he is out of office.
func (c *call) countersign(from ident.PublicKey, b *tx.Countersign) error {
	m, err := c.self(from)
	if err != nil {
		return err
	}
	e, err := c.entryByID(b.Entry)
	if err != nil {
		return err
	}
	_, payout := e.Body.(*tx.Payout)
	switch {
	case e.State != EntryWaits || payout:
		return refuse(CodeState, "entry %d does not wait for a signature: %s", e.ID, e.State)
	case c.Time >= e.Until:
		return refuse(CodeExpired, "entry %d has lapsed", e.ID)
	case !c.isTreasurer(e.By):
		return refuse(CodeState, "member %d, who made entry %d, is not treasurer any more", e.By, e.ID)
	case !c.mayCountersign(e.By, m.ID):
		return refuse(CodeForbid, "entry %d is countersigned by another treasurer, or by who the bylaws name (treasury.witness)", e.ID)
	}
	c.bookNotAt(e.Until, bookLapse, e.ID)
	e.Second = m.ID
	return c.carryOut(&e)
}

// cancel takes back what waits. Nothing is deleted: the entry says that it was cancelled.
func (c *call) cancel(from ident.PublicKey, b *tx.Cancel) error {
	m, ok := c.memberByKey(from)
	if !ok {
		return refuse(CodeForbid, "only members may do this")
	}
	e, err := c.entryByID(b.Entry)
	if err != nil {
		return err
	}
	if e.State != EntryWaits {
		return refuse(CodeState, "entry %d does not wait any more: %s", e.ID, e.State)
	}
	if e.By != m.ID && !(m.State == Active && c.isTreasurer(m.ID)) {
		return refuse(CodeForbid, "only its author and treasurers may cancel an entry")
	}
	return c.endEntry(&e, EntryCancelled, b.Reason)
}

// endEntry ends a waiting entry that was not carried out. A payout's money goes back.
func (c *call) endEntry(e *Entry, s EntryState, why string) error {
	c.bookNotAt(e.Until, bookLapse, e.ID)
	e.State = s
	c.keepEntry(e)
	if _, ok := e.Body.(*tx.Payout); !ok {
		return nil
	}
	return c.entry("payout "+s.String()+": "+why, on(hPayout, e.ID, -e.Amount), on(hMember, e.By, e.Amount))
}

func (c *call) lapseEntry(id uint64) {
	if e, err := c.entryByID(id); err == nil && e.State == EntryWaits {
		if err := c.try(func() error { return c.endEntry(&e, EntryLapsed, "nobody signed in time") }); err != nil {
			c.bookAt(c.Time+day, bookLapse, id) // an account that is too full: it cannot be, but money must not hang
		}
	}
}

func (c *call) reverse(from ident.PublicKey, b *tx.Reverse) error {
	t, err := c.treasurer(from)
	if err != nil {
		return err
	}
	e, err := c.entryByID(b.Entry)
	if err != nil {
		return err
	}
	if err := c.reversible(&e); err != nil {
		return err
	}
	if b.Reason == "" {
		return refuse(CodeValue, "a reversal needs a reason")
	}
	favours := uint64(0)
	for _, l := range e.legs {
		if l.kind == hMember && l.id == t.ID {
			favours = t.ID
		}
	}
	return c.file(t.ID, favours, b, e.Amount)
}

func (c *call) reversible(e *Entry) error {
	switch e.Body.(type) {
	case *tx.Reverse, *tx.Payout, *tx.Paid:
		return refuse(CodeForbid, "entry %d is a %s, which is not reversed: make the entry that is right", e.ID, tx.Name(e.Body.Kind()))
	}
	switch {
	case e.State != EntryDone:
		return refuse(CodeState, "entry %d is not one that was carried out: %s", e.ID, e.State)
	case c.Time >= e.Until:
		return refuse(CodeExpired, "entry %d is too old to be reversed", e.ID)
	}
	return nil
}

func (c *call) contribute(from ident.PublicKey, b *tx.Contribute) error {
	m, err := c.self(from)
	if err != nil {
		return err
	}
	if b.Amount == 0 {
		return refuse(CodeValue, "a gift of nothing")
	}
	if b.Fund == FundClearing || b.Fund == FundShares {
		return refuse(CodeForbid, "the fund %s takes no gifts", fundName(b.Fund))
	}
	return c.entry("gift, "+b.Memo, on(hMember, m.ID, -b.Amount), on(hFund, b.Fund, b.Amount))
}

// Budget is money of a fund that treasurers may spend, by a vote.
type Budget struct {
	ID uint64 // the number of its proposal
	tx.NewBudget
	Left int64
}

// Fields implements tx.Record.
func (b *Budget) Fields(c *tx.Coder) {
	c.U64(&b.ID)
	b.NewBudget.Fields(c)
	c.I64(&b.Left)
}

func budgetKey(id uint64) []byte { return key(kindFund, uint8(fundBudget), id) }

func (c *call) checkBudget(b *tx.NewBudget) error {
	if _, ok := c.fund(b.Fund); !ok || b.Fund == FundClearing {
		return refuse(CodeUnknown, "there is no fund %d to spend from", b.Fund)
	}
	switch {
	case b.Amount == 0:
		return refuse(CodeValue, "a budget of nothing")
	case b.Purpose == "":
		return refuse(CodeValue, "a budget needs a purpose")
	case b.Until != 0 && b.Until <= c.Time:
		return refuse(CodeValue, "the budget ends before it begins")
	case b.Cost && b.Fund != FundOperating && b.Fund != FundUpstream:
		return refuse(CodeValue, "costs of a fiscal period are paid from the funds operating and upstream; take one of them, or do not call it a cost")
	case b.Member != 0:
		if _, ok := c.member(b.Member); !ok {
			return refuse(CodeUnknown, "there is no member %d", b.Member)
		}
	}
	return nil
}

func (c *call) checkMove(m *tx.MoveFund) error {
	from, ok := c.fund(m.From)
	_, ok2 := c.fund(m.To)
	switch {
	case !ok || !ok2 || m.From == m.To:
		return refuse(CodeUnknown, "money moves between two funds that exist")
	case m.From == FundClearing || m.To == FundClearing || m.From == FundShares:
		return refuse(CodeForbid, "the funds clearing and shares are not moved by votes")
	case m.Amount == 0 || m.Why == "":
		return refuse(CodeValue, "a movement needs an amount and a reason")
	case m.Amount > from.Balance:
		return refuse(CodeFunds, "the fund %s has %d ncredit", from.Name, from.Balance)
	}
	return nil
}
