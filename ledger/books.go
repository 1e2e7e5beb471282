package ledger

import (
	"encoding/binary"
	"fmt"

	"weft/ledger/tx"
)

// books handles the transactions of tx/books.go.
func (c *call) books(t tx.Tx) (known bool, err error) {
	from := t.Sender
	switch b := t.Body.(type) {
	case *tx.Deposit:
		return true, c.deposit(from, b)
	case *tx.Payout:
		return true, c.payout(from, b)
	case *tx.Paid:
		return true, c.paid(from, b)
	case *tx.Cancel:
		return true, c.cancel(from, b)
	case *tx.Spend:
		return true, c.spend(from, b)
	case *tx.Countersign:
		return true, c.countersign(from, b)
	case *tx.Reverse:
		return true, c.reverse(from, b)
	case *tx.Charge:
		return true, c.charge(from, b)
	case *tx.ShareBill:
		return true, c.shareBill(from, b)
	case *tx.Contribute:
		return true, c.contribute(from, b)
	case *tx.BuyShares:
		return true, c.buyShares(from, b)
	case *tx.RedeemShares:
		return true, c.redeemShares(from, b)
	case *tx.Claim:
		return true, c.claimDue(from)
	}
	return false, nil
}

// The books have two layers, and each sums to zero by itself.
//
// Money: members' accounts, tabs, funds, what is set aside for payouts, what waits for former members, and the world, whose
// balance is minus what the community has in cash and banks.
//
// Claims, which are no money: members' capital, shares and arrears, each with a contra account. The money that stands behind
// them is in the funds "capital" and "shares", or was invested.

// The kinds of holder. Numbers are part of stored entries.
const (
	hMember  = 1 // a member's account
	hFund    = 2
	hWorld   = 3 // id: the way
	hPayout  = 4 // set aside: id of the entry
	hDue     = 5 // waits for a former member
	hCapital = 6 // of a member (id) and a year (sub)
	hShares  = 7
	hArrears = 8 // of a member (id) on a line (sub)
	hClaims  = 9 // contra account; id: the kind
)

var holderNames = [...]string{hMember: "member", hFund: "fund", hWorld: "world", hPayout: "payout", hDue: "due", hCapital: "capital", hShares: "shares", hArrears: "arrears", hClaims: "claims"}

// holder is one account of the books.
type holder struct {
	kind    uint8
	id, sub uint64
}

func (h holder) String() string {
	name := holderNames[h.kind]
	switch h.kind {
	case hFund:
		return "fund:" + fundName(h.id)
	case hWorld:
		return "world:" + tx.Way(h.id).String()
	case hCapital, hArrears:
		return fmt.Sprintf("%s:%d:%d", name, h.id, h.sub)
	case hClaims:
		return "claims:" + holderNames[h.id]
	}
	return fmt.Sprintf("%s:%d", name, h.id)
}

func (h holder) claim() bool { return h.kind >= hCapital }

// Mark says what a posting means for a fiscal period. Refunds can be computed from marks alone, and audits do.
type Mark struct {
	What   uint8  // Mark…
	Class  uint8  // margin class
	Period uint64 // fiscal period
	Member uint64
	Bytes  int64 // carried for the amount
}

// The meanings.
const (
	MarkPaid       = 1 // a member paid for service
	MarkAid        = 2 // the solidarity fund did, for a member that is not named
	MarkOthers     = 3 // business with non-members
	MarkCostMember = 4 // costs of business with members, …
	MarkCostOthers = 5 // … with others, …
	MarkCostBoth   = 6 // … with both
	MarkRefund     = 7 // the part of a refund that is paid
	MarkRetained   = 8 // the part that becomes capital
	MarkInterest   = 9 // on shares
	MarkRetired    = 10
)

func (k *Mark) fields(c *tx.Coder) {
	c.U8(&k.What)
	if k.What == 0 {
		return
	}
	c.U8(&k.Class)
	c.U64(&k.Period)
	c.U64(&k.Member)
	c.I64(&k.Bytes)
}

// leg is one side of an entry.
type leg struct {
	holder
	amount int64
	mark   Mark
}

func (l *leg) fields(c *tx.Coder) {
	c.U8(&l.kind)
	c.U64(&l.id)
	c.U64(&l.sub)
	c.I64(&l.amount)
	l.mark.fields(c)
}

func on(kind uint8, id uint64, amount int64) leg { return leg{holder{kind, id, 0}, amount, Mark{}} }

// The funds that every community has. Voted ones are numbered from FirstVoted.
const (
	FundOperating  = 1
	FundReserve    = 2
	FundSolidarity = 3
	FundUpstream   = 4
	FundCapital    = 5 // what members' retained refunds are paid back from
	FundShares     = 6 // what shares are redeemed from
	FundClearing   = 7 // holds a year's refunds while they are paid out
	FirstVoted     = 100
)

var fundNames = [...]string{"", "operating", "reserve", "solidarity", "upstream", "capital", "shares", "clearing"}

func fundName(id uint64) string {
	if id < uint64(len(fundNames)) {
		return fundNames[id]
	}
	return fmt.Sprint(id)
}

// Fund is money for a purpose.
type Fund struct {
	ID       uint64
	Name     string
	Balance  int64
	Proposal uint64 // that began it; 0: there from the first block on
}

// Fields implements tx.Record.
func (f *Fund) Fields(c *tx.Coder) {
	c.U64(&f.ID)
	c.Text(&f.Name, 40)
	c.I64(&f.Balance)
	c.U64(&f.Proposal)
}

// bookState is what the books have one of.
type bookState struct {
	Period      uint64 // number of the open fiscal period
	LastEntry   uint64
	LastFund    uint64
	LastLine    uint64
	FirstJob    uint64                // jobs from here …
	NextJob     uint64                // … to before here wait or run
	Carry       [tx.Classes + 1]int64 // losses with members, by class (0: pooled), that coming margins make good
	CarryOthers int64                 // losses with others, likewise
	NextFee     int64                 // when membership fees fall due next; 0: there are none
}

func (b *bookState) Fields(c *tx.Coder) {
	c.U64(&b.Period)
	c.U64(&b.LastEntry)
	c.U64(&b.LastFund)
	c.U64(&b.LastLine)
	c.U64(&b.FirstJob)
	c.U64(&b.NextJob)
	for i := range b.Carry {
		c.I64(&b.Carry[i])
	}
	c.I64(&b.CarryOthers)
	c.I64(&b.NextFee)
}

// sum is one number.
type sum int64

func (s *sum) Fields(c *tx.Coder) { c.I64((*int64)(s)) }

const (
	kindFund    = 'f'
	kindEntry   = 'e'
	kindPeriod  = 'y'
	kindCapital = 'c'
	kindResult  = 'l'

	fundState  = 0 // second byte of the keys under kindFund
	fundByID   = 1
	fundWorld  = 2 // way
	fundClaims = 3 // kind of claim: the contra account
	fundBudget = 4 // proposal
	fundLine   = 5 // tariff line
	fundSigned = 6 // member: what a treasurer entered alone

	entryByID   = 1 // second byte of the keys under kindEntry
	entryQueue  = 2 // time 8, what 1, id 8
	entryPayout = 3 // entry: set aside

	capitalYears   = 1 // second byte of the keys under kindCapital: member, year
	capitalShares  = 2
	capitalArrears = 3 // member, line
	capitalDue     = 4

	resultJob    = 1 // second byte of the keys under kindResult
	resultPatron = 2 // period, member
	resultAllot  = 3 // period, member
)

var keyBooks = key(kindFund, uint8(fundState))

func fundKey(id uint64) []byte { return key(kindFund, uint8(fundByID), id) }
func capitalKey(member, year uint64) []byte {
	return key(kindCapital, uint8(capitalYears), member, year)
}
func sharesKey(member uint64) []byte { return key(kindCapital, uint8(capitalShares), member) }
func arrearsKey(member, line uint64) []byte {
	return key(kindCapital, uint8(capitalArrears), member, line)
}
func dueKey(member uint64) []byte { return key(kindCapital, uint8(capitalDue), member) }
func patronKey(period, member uint64) []byte {
	return key(kindResult, uint8(resultPatron), period, member)
}
func allotKey(period, member uint64) []byte {
	return key(kindResult, uint8(resultAllot), period, member)
}
func claimsKey(kind uint64) []byte          { return key(kindFund, uint8(fundClaims), kind) }
func worldKey(way uint64) []byte            { return key(kindFund, uint8(fundWorld), way) }
func (c *call) bookState() (b bookState)    { c.load(keyBooks, &b); return b }
func (c *call) fund(id uint64) (Fund, bool) { f := Fund{}; ok := c.load(fundKey(id), &f); return f, ok }
func (c *call) available(m *Member) int64   { return max(c.balance(m)+m.Limit(c.params()), 0) }
func (c *call) balance(m *Member) int64 {
	a := Account{}
	c.load(accountKey(m.Key), &a)
	return a.Balance
}
func (c *call) clearOf(id uint64) (sum int64) { f, _ := c.fund(id); return f.Balance }

// beginBooks opens the funds and the first fiscal period.
func (c *call) beginBooks() {
	for id, name := range fundNames {
		if id > 0 {
			c.save(fundKey(uint64(id)), &Fund{ID: uint64(id), Name: name})
		}
	}
	b := bookState{LastFund: FirstVoted - 1, FirstJob: 1, NextJob: 1}
	c.save(keyBooks, &b)
	c.openPeriod(c.Time)
}

// entry books legs that sum to zero in each layer: all or, with an error, none, if the caller is in a transaction or in try.
func (c *call) entry(memo string, legs ...leg) error { return c.enter(false, memo, legs) }

// enter is entry; with force, accounts may fall below their limits: what an entry gave by mistake is owed back.
func (c *call) enter(force bool, memo string, legs []leg) error {
	var money, claims int64
	for _, l := range legs {
		if l.claim() {
			claims += l.amount
		} else {
			money += l.amount
		}
	}
	if money != 0 || claims != 0 {
		panic(fmt.Sprintf("ledger: entry %q sums to %d and %d", memo, money, claims))
	}
	for _, l := range legs {
		if l.amount == 0 && l.mark.Bytes == 0 {
			continue
		}
		if err := c.apply(l, force); err != nil {
			return err
		}
		if err := c.tally(l); err != nil {
			return err
		}
		c.post(l.String(), l.amount, memo)
		c.postings[len(c.postings)-1].Mark = l.mark
	}
	return nil
}

func (c *call) apply(l leg, force bool) error {
	switch l.kind {
	case hMember:
		m, ok := c.member(l.id)
		var a Account
		if !ok || !c.load(accountKey(m.Key), &a) {
			return refuse(CodeUnknown, "there is no member %d", l.id)
		}
		limit := max(m.Limit(c.params()), -a.Balance)
		var err error
		if a.Balance, err = add(a.Balance, l.amount); err != nil {
			return err
		}
		if l.amount < 0 && a.Balance < -limit && !force {
			return refuse(CodeFunds, "the account of member %d lacks %d ncredit", l.id, -limit-a.Balance)
		}
		a.Limit = max(m.Limit(c.params()), -a.Balance)
		c.save(accountKey(m.Key), &a)
		return nil
	case hFund:
		f, ok := c.fund(l.id)
		if !ok {
			return refuse(CodeUnknown, "there is no fund %d", l.id)
		}
		var err error
		if f.Balance, err = add(f.Balance, l.amount); err != nil {
			return err
		}
		if f.Balance < 0 {
			return refuse(CodeFunds, "the fund %s lacks %d ncredit", f.Name, -f.Balance)
		}
		c.save(fundKey(l.id), &f)
		return nil
	case hWorld:
		if err := c.addSum(worldKey(l.id), l.amount); err != nil {
			return err
		}
		if l.amount > 0 && c.cash() < 0 {
			return refuse(CodeFunds, "there is not so much in cash and banks: %d ncredit are missing", -c.cash())
		}
		return nil
	case hPayout:
		return c.addSum(key(kindEntry, uint8(entryPayout), l.id), l.amount)
	case hDue:
		return c.addDue(l.id, l.amount)
	case hCapital:
		return c.addSum(capitalKey(l.id, l.sub), l.amount)
	case hShares:
		return c.addShares(l.id, l.amount)
	case hArrears:
		return c.addSum(arrearsKey(l.id, l.sub), l.amount)
	case hClaims:
		return c.addSum(claimsKey(l.id), l.amount)
	}
	panic("ledger: a holder of an unknown kind")
}

// addSum changes a number of the store. A zero is not kept.
func (c *call) addSum(k []byte, amount int64) error {
	var s sum
	c.load(k, &s)
	v, err := add(int64(s), amount)
	if err != nil {
		return err
	}
	if s = sum(v); s == 0 {
		c.drop(k)
		return nil
	}
	c.save(k, &s)
	return nil
}

// cash is what the community has in cash and banks: deposits less withdrawals.
func (c *call) cash() (total int64) {
	for w := tx.Cash; w <= tx.Mobile; w++ {
		var s sum
		c.load(worldKey(uint64(w)), &s)
		total -= int64(s)
	}
	return total
}

// try does f, and undoes all of it when it fails: for what falls due, where no transaction does so.
func (c *call) try(f func() error) error {
	outer, posted := c.s, len(c.postings)
	c.s = newOverlay(outer)
	err := f()
	if err == nil {
		c.s.flush()
	} else {
		c.postings = c.postings[:posted]
	}
	c.s = outer
	return err
}

// The events of the books, in the order in which they happen at one time.
const (
	bookLapse     = 1 // a waiting entry lapses
	bookPrune     = 2 // an entry is forgotten
	bookYear      = 3 // a fiscal period ends
	bookSettle    = 4 // its books close: period
	bookMonth     = 5 // fees
	bookUnclaimed = 6 // member
)

const (
	booksPerBlock = 100 // events
	page          = 250 // members that a job handles in a block
)

func bookKey(at int64, what uint8, id uint64) []byte {
	return key(kindEntry, uint8(entryQueue), uint64(max(at, 0)), what, id)
}

func (c *call) bookAt(at int64, what uint8, id uint64)    { c.s.Set(bookKey(at, what, id), []byte{1}) }
func (c *call) bookNotAt(at int64, what uint8, id uint64) { c.drop(bookKey(at, what, id)) }

// dueBooks handles what has fallen due, oldest first, then a page of the job at the head of the queue.
func (c *call) dueBooks() {
	for range booksPerBlock {
		var k []byte
		c.s.Scan(key(kindEntry, uint8(entryQueue)), func(first, _ []byte) bool {
			k = append(k, first...)
			return false
		})
		if k == nil {
			break
		}
		when, what, id := int64(binary.BigEndian.Uint64(k[2:])), k[10], binary.BigEndian.Uint64(k[11:])
		if when > c.Time {
			break
		}
		c.drop(k)
		switch what {
		case bookLapse:
			c.lapseEntry(id)
		case bookPrune:
			c.drop(entryKey(id))
		case bookYear:
			c.endPeriod(when)
		case bookSettle:
			c.settle(id)
		case bookMonth:
			c.startFees(when)
		case bookUnclaimed:
			c.unclaimed(id)
		}
	}
	if c.params().MemberFee > 0 && c.bookState().NextFee == 0 {
		c.nextFees(c.Time)
	}
	c.work()
}

// Job is work that takes more than one block: a page of members in each.
type Job struct {
	Kind   uint8  // Job…
	ID     uint64 // of the period, or of the proposal
	When   int64  // of fees: the beginning of their month
	Cursor uint64 // member up to which it is done
	Plan   Retirement
}

// The kinds of job.
const (
	JobFees   = 1
	JobAllot  = 2
	JobRetire = 3
)

// Fields implements tx.Record.
func (j *Job) Fields(c *tx.Coder) {
	c.U8(&j.Kind)
	c.U64(&j.ID)
	c.I64(&j.When)
	c.U64(&j.Cursor)
	j.Plan.Fields(c)
}

func jobKey(n uint64) []byte { return key(kindResult, uint8(resultJob), n) }

func (c *call) queueJob(j Job) {
	b := c.bookState()
	c.save(jobKey(b.NextJob), &j)
	b.NextJob++
	c.save(keyBooks, &b)
}

// work does a page of the first job. One job runs at a time, so that none sees half of another's work.
func (c *call) work() {
	b := c.bookState()
	if b.FirstJob == b.NextJob {
		return
	}
	var j Job
	k := jobKey(b.FirstJob)
	c.load(k, &j)
	if j.Kind == JobRetire && j.Cursor == 0 && !c.startRetire(&j) {
		j.Cursor = c.register().Last
	}
	last := c.register().Last
	for n := 0; n < page && j.Cursor < last; n++ {
		j.Cursor++
		m, ok := c.member(j.Cursor)
		if !ok {
			continue
		}
		switch j.Kind {
		case JobFees:
			c.fee(&m, &j)
		case JobAllot:
			c.allot(&m, j.ID)
		case JobRetire:
			c.retire(&m, &j)
		}
	}
	if j.Cursor < last {
		c.save(k, &j)
		return
	}
	c.drop(k)
	b = c.bookState()
	b.FirstJob++
	c.save(keyBooks, &b)
	if j.Kind == JobAllot {
		c.endAllot(j.ID)
	}
}

// checkMeasure reports whether members may vote on what the books shall do: a record of DecideBudget or DecideSurplus.
func (c *call) checkMeasure(d tx.Decision, measure []byte) error {
	_, err := c.measure(d, measure)
	return err
}

func (c *call) measure(d tx.Decision, raw []byte) (tx.Measure, error) {
	m, err := tx.DecodeMeasure(raw)
	if err != nil {
		return nil, refuse(CodeUnknown, "%v", err)
	}
	if m.Decision() != d {
		return nil, refuse(CodeMalform, "this measure is a matter of %s, not of %s", m.Decision(), d)
	}
	switch m := m.(type) {
	case *tx.NewBudget:
		return m, c.checkBudget(m)
	case *tx.NewFund:
		if m.Called == "" {
			return m, refuse(CodeValue, "a fund needs a name")
		}
		if c.bookState().LastFund >= FirstVoted+200 {
			return m, refuse(CodeTooMany, "there are 200 funds already")
		}
	case *tx.MoveFund:
		return m, c.checkMove(m)
	case *tx.SetLine:
		return m, c.checkLine(m)
	case *tx.Retire:
		return m, c.checkRetire(m)
	}
	return m, nil
}

// doMeasure does it, when proposal number id has passed. An error undoes all of it and is noted with the proposal.
func (c *call) doMeasure(d tx.Decision, measure []byte, id uint64) error {
	m, err := c.measure(d, measure)
	if err != nil {
		return err
	}
	switch m := m.(type) {
	case *tx.NewBudget:
		c.save(budgetKey(id), &Budget{ID: id, NewBudget: *m, Left: m.Amount})
	case *tx.NewFund:
		b := c.bookState()
		b.LastFund++
		c.save(keyBooks, &b)
		c.save(fundKey(b.LastFund), &Fund{ID: b.LastFund, Name: m.Called, Proposal: id})
	case *tx.MoveFund:
		return c.entry(m.Why, on(hFund, m.From, -m.Amount), on(hFund, m.To, m.Amount))
	case *tx.SetLine:
		c.setLine(m)
	case *tx.Retire:
		c.queueJob(Job{Kind: JobRetire, ID: id, Plan: Retirement{Retire: *m}})
	}
	return nil
}
