package ledger

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"

	"weft/ident"
	"weft/ledger/tx"
)

// Line is a line of the tariff in force, by a vote. Line 0 is the membership fee, whose price is the parameter tariff.member_fee.
type Line struct{ tx.SetLine }

func lineKey(id uint64) []byte { return key(kindFund, uint8(fundLine), id) }

func (c *call) line(id uint64) (l Line, ok bool) {
	if id == 0 {
		return Line{tx.SetLine{Called: "membership", Class: 1, Fund: FundOperating, Fee: c.params().MemberFee}}, true
	}
	ok = c.load(lineKey(id), &l)
	return l, ok
}

func (c *call) checkLine(l *tx.SetLine) error {
	if _, ok := c.fund(l.Fund); !ok || l.Fund != FundOperating && l.Fund != FundUpstream {
		return refuse(CodeValue, "what members pay for service goes to the fund operating or upstream")
	}
	if l.Line != 0 {
		old, ok := c.line(l.Line)
		if !ok {
			return refuse(CodeUnknown, "the tariff has no line %d", l.Line)
		}
		if old.Class != l.Class {
			return refuse(CodeForbid, "a line stays in its margin class: make a new one")
		}
	} else if c.bookState().LastLine >= 200 {
		return refuse(CodeTooMany, "the tariff has 200 lines: change one")
	}
	if l.Called == "" {
		return refuse(CodeValue, "a line needs a name")
	}
	for i, b := range l.Blocks {
		if (b.Bytes == 0) != (i == len(l.Blocks)-1) {
			return refuse(CodeValue, "each block but the last says for how many bytes its price is; the last one is for all that follow")
		}
	}
	return nil
}

func (c *call) setLine(l *tx.SetLine) {
	if l.Line == 0 {
		b := c.bookState()
		b.LastLine++
		c.save(keyBooks, &b)
		l.Line = b.LastLine
	}
	c.save(lineKey(l.Line), &Line{*l})
}

// Price is what a use costs by this line: the fee, so many times, and the bytes block by block, a GB being 10⁹ of them; at most the cap.
// Fractions of an ncredit are dropped, block by block. ok is false when the sum does not fit.
func (l *Line) Price(times uint32, bytes uint64) (amount int64, ok bool) {
	sum, ok := l.price(times, bytes)
	if l.Cap > 0 && (!ok || sum > l.Cap) {
		return l.Cap, true
	}
	return sum, ok
}

func (l *Line) price(times uint32, bytes uint64) (int64, bool) {
	hi, sum := bits.Mul64(uint64(l.Fee), uint64(times))
	if hi != 0 || sum > tx.MaxAmount {
		return 0, false
	}
	for _, b := range l.Blocks {
		n := bytes
		if b.Bytes != 0 {
			n = min(n, b.Bytes)
		}
		bytes -= n
		hi, lo := bits.Mul64(n, uint64(b.Price))
		if hi >= 1e9 {
			return 0, false
		}
		q, _ := bits.Div64(hi, lo, 1e9)
		if q > tx.MaxAmount || sum+q > tx.MaxAmount {
			return 0, false
		}
		sum += q
	}
	return int64(sum), true
}

// Pseudonym is what the public books call who is helped by the solidarity fund in a fiscal period. It keeps names out of printed
// accounts; who replays the chain can find out who it is.
func Pseudonym(chain tx.Chain, period, member uint64) string {
	b := append([]byte("weft/aid/1\x00"), chain[:]...)
	b = binary.BigEndian.AppendUint64(b, period)
	h := sha256.Sum256(binary.BigEndian.AppendUint64(b, member))
	return fmt.Sprintf("aid-%x", h[:5])
}

// bill charges a member by a line. The solidarity fund pays its part for members on its tier as far as it reaches; what the
// member cannot pay becomes arrears, as nobody is cut off. It returns what was booked.
func (c *call) bill(m *Member, id uint64, l *Line, amount int64, bytes uint64, period uint64, memo string) (all []leg, err error) {
	if bytes > math.MaxInt64 || amount < 0 {
		return nil, refuse(CodeValue, "a use of %d bytes cannot be", bytes)
	}
	p := c.params()
	if m.State == Left || m.State == Expelled { // business with non-members, paid at once
		to := on(hFund, l.Fund, amount)
		to.mark = Mark{What: MarkOthers, Class: l.Class, Period: period, Bytes: int64(bytes)}
		all = []leg{on(hMember, m.ID, -amount), to}
		return all, c.entry(memo, all...)
	}
	if m.Aid > c.Time {
		if aid := min(permille(amount, p.SolidarityPercent), c.clearOf(FundSolidarity)); aid > 0 {
			to := on(hFund, l.Fund, aid)
			to.mark = Mark{What: MarkAid, Class: l.Class, Period: period}
			legs := []leg{on(hFund, FundSolidarity, -aid), to}
			if err := c.entry(Pseudonym(c.m.chain, period, m.ID), legs...); err != nil {
				return nil, err
			}
			all, amount = append(all, legs...), amount-aid
		}
	}
	pay := min(amount, c.available(m))
	to := on(hFund, l.Fund, pay)
	to.mark = Mark{What: MarkPaid, Class: l.Class, Period: period, Member: m.ID, Bytes: int64(bytes)}
	legs := []leg{on(hMember, m.ID, -pay), to}
	if owed := amount - pay; owed > 0 {
		arrears := leg{holder{hArrears, m.ID, id}, owed, Mark{}}
		legs = append(legs, arrears, on(hClaims, hArrears, -owed))
	}
	return append(all, legs...), c.entry(memo, legs...)
}

// collect takes what a member owes from what it has, oldest line first.
func (c *call) collect(m *Member) error {
	type owed struct {
		line   uint64
		amount int64
	}
	var l []owed
	prefix := key(kindCapital, uint8(capitalArrears), m.ID)
	c.s.Scan(prefix, func(k, v []byte) bool {
		var s sum
		mustDecode(v, &s)
		l = append(l, owed{binary.BigEndian.Uint64(k[len(prefix):]), int64(s)})
		return true
	})
	for _, o := range l {
		has := c.available(m)
		pay := min(o.amount, has)
		if pay == 0 {
			return nil
		}
		line, _ := c.line(o.line)
		to := on(hFund, line.Fund, pay)
		to.mark = Mark{What: MarkPaid, Class: line.Class, Period: c.bookState().Period, Member: m.ID}
		if err := c.entry("arrears, "+line.Called, on(hMember, m.ID, -pay), to,
			leg{holder{hArrears, m.ID, o.line}, -pay, Mark{}}, on(hClaims, hArrears, pay)); err != nil {
			return err
		}
	}
	return nil
}

func (c *call) charge(from ident.PublicKey, b *tx.Charge) error {
	t, err := c.treasurer(from)
	if err != nil {
		return err
	}
	m, ok := c.member(b.Member)
	if !ok {
		return refuse(CodeUnknown, "there is no member %d", b.Member)
	}
	l, ok := c.line(b.Line)
	if !ok || b.Line == 0 || l.Ended || l.Shared {
		return refuse(CodeUnknown, "the tariff has no line %d by which to charge", b.Line)
	}
	amount, ok := l.Price(b.Times, b.Bytes)
	if !ok || amount == 0 && b.Bytes == 0 {
		return refuse(CodeValue, "by line %d this costs nothing, or more than there is", b.Line)
	}
	period, err := c.bookInto(b.Last)
	if err != nil {
		return err
	}
	e := c.newEntry(t.ID, b, amount)
	legs, err := c.bill(&m, b.Line, &l, amount, b.Bytes, period, l.Called+", "+b.Memo)
	if err != nil {
		return err
	}
	c.booked(&e, legs)
	return nil
}

// shareBill divides an upstream bill among those who use it.
func (c *call) shareBill(from ident.PublicKey, b *tx.ShareBill) error {
	t, err := c.treasurer(from)
	if err != nil {
		return err
	}
	l, ok := c.line(b.Line)
	if !ok || b.Line == 0 || l.Ended || !l.Shared {
		return refuse(CodeUnknown, "the tariff has no line %d by which a bill is shared", b.Line)
	}
	if b.Bill == 0 {
		return refuse(CodeValue, "a bill of nothing")
	}
	stakes := make([]Stake, len(b.Parts))
	for i, p := range b.Parts {
		stakes[i] = Stake{ID: p.Member, Weight: p.Usage}
	}
	parts, err := CostShare(b.Bill, b.Equal, stakes)
	if err != nil {
		return refuse(CodeValue, "%v", err)
	}
	period, err := c.bookInto(b.Last)
	if err != nil {
		return err
	}
	e := c.newEntry(t.ID, b, b.Bill)
	var all []leg
	for _, p := range slices.SortedFunc(slices.Values(b.Parts), func(a, b tx.Part) int { return cmp.Compare(a.Member, b.Member) }) {
		m, ok := c.member(p.Member)
		part := parts[p.Member]
		switch {
		case !ok || m.State == Left || m.State == Expelled:
			return refuse(CodeState, "member %d is none, or not any more: a bill is shared among members", p.Member)
		case l.Cap > 0 && part > l.Cap:
			return refuse(CodeValue, "the part of member %d is %d ncredit, over the cap of line %d", p.Member, part, b.Line)
		}
		legs, err := c.bill(&m, b.Line, &l, part, p.Usage, period, l.Called+", "+b.Memo)
		if err != nil {
			return err
		}
		all = append(all, legs...)
	}
	c.booked(&e, all)
	return nil
}

// startFees begins to charge the membership fee of the month that begins at when.
func (c *call) startFees(when int64) {
	if c.params().MemberFee == 0 {
		b := c.bookState()
		b.NextFee = 0
		c.save(keyBooks, &b)
		return
	}
	c.nextFees(when)
	c.queueJob(Job{Kind: JobFees, When: when})
}

// nextFees waits for the month after a time. After a halt of the chain each month is charged in its turn.
func (c *call) nextFees(after int64) {
	b := c.bookState()
	b.NextFee = nextMonth(after)
	c.save(keyBooks, &b)
	c.bookAt(b.NextFee, bookMonth, 0)
}

// fee charges a member for a month, and what it owes of former ones first.
func (c *call) fee(m *Member, j *Job) {
	if m.State != Active || m.Joined >= j.When {
		return
	}
	l, _ := c.line(0)
	y, mo, _ := civil(j.When)
	_ = c.try(func() error { // what fails is a sum that does not fit: that member is not charged
		if err := c.collect(m); err != nil {
			return err
		}
		_, err := c.bill(m, 0, &l, l.Fee, 0, c.bookState().Period, fmt.Sprintf("membership %04d-%02d", y, mo))
		return err
	})
}
