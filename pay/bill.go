package pay

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"time"

	"weft/ident"
	"weft/ledger/tx"
)

// maxLines bounds the bill: two years of 25 accounts a day.
const maxLines = 20_000

// Line is a part of a bill: one account at one price in one tab, for a day at most. The readings at its ends back it: its Bytes
// are what moved between them, its Amount is Bytes at Price.
type Line struct {
	Number      uint64 // 0: not closed yet
	Role        Role
	ID          ID
	From, Until time.Time // UTC
	Quote       uint64
	Price       uint32 // ncredit per MiB
	First, Last Mark
	Bytes       uint64
	Amount      int64  // ncredit
	Rem         uint64 // in 2^-20 ncredit: what was left over before
	Forgiven    int64  // of debts, payee only
	Tab         tx.TabID
	Epoch       uint32
	Signer      ident.PublicKey
	Signed      int64      // by vouchers within the line
	Voucher     tx.Voucher // the newest of them; Seq 0: none
	At          Mark       // the counters that it rests on, payer only
	Receipt     Receipt    // the payee's word for one of them, payer only; Seq 0: none
}

// Fields implements tx.Record.
func (l *Line) Fields(c *tx.Coder) {
	c.U64(&l.Number)
	c.U8((*uint8)(&l.Role))
	c.Key(&l.ID.Peer)
	c.U8((*uint8)(&l.ID.Service))
	for _, t := range [...]*time.Time{&l.From, &l.Until} {
		s := t.Unix()
		c.I64(&s)
		*t = time.Unix(s, 0).UTC()
	}
	c.U64(&l.Quote)
	c.U32(&l.Price)
	l.First.Fields(c)
	l.Last.Fields(c)
	c.U64(&l.Bytes)
	c.I64(&l.Amount)
	c.U64(&l.Rem)
	c.I64(&l.Forgiven)
	c.Fixed(l.Tab[:])
	c.U32(&l.Epoch)
	c.Key(&l.Signer)
	c.I64(&l.Signed)
	codeVoucher(c, &l.Voucher)
	l.At.Fields(c)
	has := l.Receipt.Seq != 0
	c.Bool(&has)
	if has {
		b := make([]byte, receiptLen)
		copy(b, l.Receipt.AppendTo(nil))
		c.Fixed(b)
		if c.Reading() {
			m, err := ParseMessage(b)
			if r, ok := m.(*Receipt); ok {
				l.Receipt = *r
			} else {
				c.Fail(fmt.Errorf("a receipt: %w", err))
			}
		}
	}
}

// sign notes a voucher in the line.
func (l *Line) sign(v *tx.Voucher, at *Mark, n int64) {
	l.Voucher, l.Signed = *v, satAdd(l.Signed, n)
	l.Tab, l.Epoch = v.Tab, v.Epoch
	if at != nil {
		l.At = *at
	}
}

// lineLocked adds to the line of an account what moved from one mark to another; it closes the line first when day, price, tab or
// the counters' epoch have changed, or something moved that was not billed.
func (p *Pay) lineLocked(role Role, id ID, has *bool, l *Line, q *Quote, tab *held, last, to *Mark, n uint64, rem uint64, now time.Time) {
	now = now.UTC().Truncate(time.Second)
	var id16 tx.TabID
	var epoch uint32
	var signer ident.PublicKey
	if tab != nil {
		id16, epoch, signer = tab.Tab.ID, tab.Epoch, tab.Signer
	}
	// The counters went back, or began again: First and Last could not back the bytes between.
	broken := to.Epoch != last.Epoch || to.Sent < last.Sent || to.Recv < last.Recv
	if *has && (now.YearDay() != l.From.YearDay() || now.Year() != l.From.Year() || l.Quote != q.ID() || l.Tab != id16 || l.Epoch != epoch || l.Last != *last || broken) {
		p.lineSeq++
		l.Number = p.lineSeq
		p.closing = append(p.closing, *l)
		*has = false
	}
	if !*has {
		first := *last
		if broken {
			first = Mark{Epoch: to.Epoch, Sent: to.Sent, Recv: to.Recv}
			if to.Epoch != last.Epoch {
				first.Sent, first.Recv = 0, 0
			} else {
				first.Sent, first.Recv = min(to.Sent, last.Sent), min(to.Recv, last.Recv)
			}
		}
		*has = true
		*l = Line{Role: role, ID: id, From: now, Quote: q.ID(), Price: q.Price, First: first, Rem: rem, Tab: id16, Epoch: epoch, Signer: signer}
	}
	l.Until, l.Last = now, *to
	l.Bytes = min(l.Bytes+n, maxBytes)
}

// closedLinesLocked adds closed lines to what is written, and drops the oldest when there are too many.
func (p *Pay) closedLinesLocked(b []Entry) []Entry {
	p.linesOut = len(p.closing)
	for i := range p.closing {
		b = append(b, Entry{lineKey(p.closing[i].Number), tx.Encode(&p.closing[i])})
	}
	p.linesGone = max(0, p.lines+len(p.closing)-maxLines)
	for i := range p.linesGone {
		if n := p.lineSeq - uint64(p.lines+len(p.closing)) + 1 + uint64(i); n <= p.lineSeq {
			b = append(b, Entry{Key: lineKey(n)})
		}
	}
	return b
}

func (p *Pay) linesWrittenLocked(ok bool) {
	if ok {
		p.lines += p.linesOut - p.linesGone
		p.closing = slices.Delete(p.closing, 0, p.linesOut)
	}
	p.linesOut, p.linesGone = 0, 0
}

// Bill returns the lines that touch the time between from and until, oldest first; the open ones last.
func (p *Pay) Bill(from, until time.Time) ([]Line, error) {
	var all []Line
	err := p.cfg.Store.Scan([]byte{kindLine}, func(_, v []byte) error {
		var l Line
		if err := tx.Decode(v, &l); err != nil {
			return err
		}
		all = append(all, l)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the bill: %w", err)
	}
	p.mu.Lock()
	for i := range p.closing {
		if !slices.ContainsFunc(all, func(l Line) bool { return l.Number == p.closing[i].Number }) {
			all = append(all, p.closing[i])
		}
	}
	var open []Line
	for _, c := range p.credits {
		if c.HasLine {
			open = append(open, c.Line)
		}
	}
	for _, d := range p.debits {
		if d.HasLine {
			open = append(open, d.Line)
		}
	}
	p.mu.Unlock()
	slices.SortFunc(open, func(a, b Line) int { return cmp.Or(compareID(a.ID, b.ID), cmp.Compare(a.Role, b.Role)) })
	all = append(all, open...)
	return slices.DeleteFunc(all, func(l Line) bool { return l.Until.Before(from) || l.From.After(until) }), nil
}

// Finding is something in the books that cannot be.
type Finding struct {
	Line Line
	Text string
}

// Audited is what an audit has looked at.
type Audited struct {
	Lines, Vouchers, Receipts  int
	Bytes                      uint64 // billed, both roles
	Unbilled                   uint64 // between lines: at no price, or for a guest
	Rewound                    uint64 // by which the own meter went back between lines, as after a crash: counted again if they came again
	Paid, Earned, Owing, Owned int64  // signed; booked; not yet signed for by this node; not yet by others
	Findings                   []Finding
}

// Audit checks every line against the readings that back it, every voucher and receipt against its signature and its line, the
// sums against the accounts, and the newest readings against the meter as it is now. An empty list of findings means that all of
// it agrees.
func (p *Pay) Audit(now time.Time) (Audited, error) {
	lines, err := p.Bill(time.Time{}, now.Add(24*time.Hour))
	if err != nil {
		return Audited{}, err
	}
	var a Audited
	bad := func(l Line, format string, args ...any) {
		a.Findings = append(a.Findings, Finding{l, fmt.Sprintf(format, args...)})
	}
	type account struct {
		role Role
		id   ID
	}
	before := map[account]Line{}
	signed := map[account]int64{}
	dearest := map[account]uint32{} // a price that falls makes no gap smaller that was paid before
	for _, l := range lines {
		a.Lines++
		a.Bytes += l.Bytes
		k := account{l.Role, l.ID}
		dearest[k] = max(dearest[k], l.Price)
		c := charge{0, l.Rem}
		c.add(l.Bytes, l.Price)
		if c.Amount != l.Amount {
			bad(l, "%d bytes at %d ncredit per MiB cost %d ncredit, not %d", l.Bytes, l.Price, c.Amount, l.Amount)
		}
		if n := l.Last.since(&l.First); n != l.Bytes {
			bad(l, "the readings say %d bytes, the line %d", n, l.Bytes)
		}
		if b, ok := before[k]; ok && b.Last.Epoch == l.First.Epoch {
			a.Unbilled += l.First.since(&b.Last)
			a.Rewound += b.Last.since(&l.First)
		}
		before[k] = l
		if v := &l.Voucher; v.Seq != 0 {
			a.Vouchers++
			signer := l.Signer
			if l.Role == Payer {
				signer = p.self
				a.Paid = satAdd(a.Paid, l.Signed)
				if v.Meter != l.At.Hash() {
					bad(l, "voucher %d rests on other counters than the line's", v.Seq)
				}
			} else {
				a.Earned = satAdd(a.Earned, l.Signed)
			}
			if !signer.IsZero() && !v.Verify(signer) {
				bad(l, "voucher %d is not signed by %s", v.Seq, signer)
			}
			if v.Tab != l.Tab || v.Epoch != l.Epoch || v.Chain != p.cfg.Chain {
				bad(l, "voucher %d is of another tab", v.Seq)
			}
		}
		signed[k] = satAdd(signed[k], l.Signed)
		if r := &l.Receipt; r.Seq != 0 {
			a.Receipts++
			if !r.Verify(l.ID.Peer) {
				bad(l, "the receipt for voucher %d is not signed by the payee", r.Seq)
			}
		}
	}
	readings := p.cfg.Meter.Readings()
	p.mu.Lock()
	defer p.mu.Unlock()
	full := p.lines+len(p.closing) < maxLines // else the oldest lines are gone, and sums cannot be checked
	for id, d := range p.debits {
		a.Owing = satAdd(a.Owing, max(d.owed(), 0))
		if over := d.Signed - d.Charged.Amount - Cost(Gap(d.Bytes), max(dearest[account{Payer, id}], d.Quote.Price)); over > 0 && d.Quote.Seq != 0 {
			bad(d.Line, "%d ncredit were signed beyond the own meter and the gap", over)
		}
		if n := signed[account{Payer, id}]; full && n != d.Signed {
			bad(d.Line, "the lines say %d ncredit were signed, the account %d", n, d.Signed)
		}
	}
	for _, c := range p.credits {
		a.Owned = satAdd(a.Owned, max(c.owed(), 0))
		if c.tab != nil && c.tab.Voucher.Seq != 0 && !c.tab.Voucher.Verify(c.tab.Signer) {
			bad(c.Line, "the newest voucher is not signed by the tab's signer")
		}
	}
	for _, r := range readings {
		l, ok := before[account{r.Role, r.ID}]
		if ok && l.Last.Epoch == r.Epoch && (r.Sent < l.Last.Sent || r.Recv < l.Last.Recv) {
			bad(l, "the meter has counted less than the bill: was its file lost?")
		}
	}
	return a, nil
}

// AccountView is one account for people. Money is in ncredit.
type AccountView struct {
	Role      Role
	ID        ID
	State     State
	Price     uint32
	Refused   uint32 // what the peer asks, when that is above the owner's limit; payer only
	Owed      int64  // by this account's payer, as this node counts
	Claimed   int64  // as the payee says, payer only
	Bytes     uint64 // billed in all
	Paid      int64  // signed, or booked, in all
	Exposure  uint64 // bytes
	Tab       tx.Tab // zero: none
	Left      int64  // of the tab
	LeftBytes uint64 // what that buys at the price in force
	Gap       bool
	Dry       bool // the month's budget is used up; false where there is none
}

// View is all accounts for people.
type View struct {
	Accounts   []AccountView // by peer, service and role
	Over       []TabView     // payee: tabs that are over and not settled, or not long ago
	Budget     int64         // of this month
	Spent      int64
	Counts     Counts
	StoreError string
}

// TabView is a tab that is over.
type TabView struct {
	ID              ID
	Tab             tx.TabID
	State           State // Claim or Settled
	Promised, Taken int64
	Lost            int64
}

// View returns the accounts as of the last tick.
func (p *Pay) View(now time.Time) View {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := View{Budget: p.wallet.Budget, Spent: p.spent.in(now), Counts: p.counts}
	if p.failed != nil {
		v.StoreError = p.failed.Error()
	}
	buys := func(n int64, price uint32) uint64 {
		if n <= 0 || price == 0 {
			return 0
		}
		return min(uint64(n)/uint64(price), maxBytes/mib) * mib
	}
	for _, c := range p.credits {
		a := AccountView{Role: Payee, ID: c.ID, State: c.state, Price: c.Quote.Price, Owed: c.owed(), Bytes: c.Bytes, Paid: satAdd(c.Paid, c.worth()), Exposure: c.Exposure, Gap: c.gap}
		if c.tab != nil {
			a.Tab, a.Left = c.tab.Tab, c.tab.Earmark-min(c.tab.Voucher.Amount, c.tab.Earmark)
			a.LeftBytes = buys(a.Left, a.Price)
		}
		v.Accounts = append(v.Accounts, a)
	}
	for _, d := range p.debits {
		a := AccountView{Role: Payer, ID: d.ID, State: d.status.State, Price: d.Quote.Price, Refused: uint32(d.refused), Owed: d.owed(), Claimed: d.claimed(now), Bytes: d.Bytes,
			Paid: d.Signed, Exposure: d.status.Exposure, Gap: d.gap, Dry: d.Quote.Price > 0 && v.Budget > 0 && v.Spent >= v.Budget}
		if d.tab != nil {
			a.Tab, a.Left = d.Tab, d.Tab.Earmark-d.Voucher.Amount
			a.LeftBytes = buys(a.Left, a.Price)
		}
		v.Accounts = append(v.Accounts, a)
	}
	for _, h := range p.old {
		v.Over = append(v.Over, TabView{ID: h.ID, Tab: h.Tab.ID, State: h.Phase, Promised: min(h.Voucher.Amount, h.Earmark), Taken: h.Claimed, Lost: h.Lost})
	}
	slices.SortFunc(v.Accounts, func(a, b AccountView) int { return cmp.Or(compareID(a.ID, b.ID), cmp.Compare(a.Role, b.Role)) })
	slices.SortFunc(v.Over, func(a, b TabView) int { return bytes.Compare(a.Tab[:], b.Tab[:]) })
	return v
}
