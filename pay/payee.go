package pay

import (
	"cmp"
	"slices"
	"time"

	"weft/ident"
	"weft/ledger/tx"
)

// State is where a payer stands with its payee, or what becomes of a tab (docs/spec/pay.md section 4).
//
//	FREE ──member──▶ TRUST ──tab──▶ OPEN ──owed > E/2──▶ DUE ──owed > E──▶ GRACE ──2 s──▶ THROTTLED
//	                   ▲              │   ◀── what is owed was paid ──────────┴──────────────┘
//	                   └─ used up, ended, closing;  the tab: CLAIM ──paid or gone──▶ SETTLED
type State uint8

// The states. A peer is in one of the first six, a tab that is over in one of the others.
const (
	Free      State = iota // not a member: the guests' free tier, which costs nothing
	Trust                  // no tab that is of use: may owe T
	Open                   // may owe E
	Due                    // owes more than half of that: is asked to pay
	Grace                  // owes more than all of it
	Throttled              // the free tier, until the debt is half of E, or of T
	Claim                  // a tab with something left to claim
	Settled                // a tab that is done with
)

var stateNames = [...]string{"free", "trust", "open", "due", "grace", "throttled", "claim", "settled"}

func (s State) String() string { return stateNames[min(s, Settled)] }

// held is a tab of which this node is the payee, with the newest voucher.
type held struct {
	tx.Tab
	ID      ID
	Proven  int64 // when the record was so, seconds since 1970
	Base    int64 // claimed before this node knew the tab: not for what it has served
	Voucher tx.Voucher
	Phase   State // 0 while it is relied on
	Lost    int64 // Settled: what could not be claimed any more
	claimAt time.Time
	lookAt  time.Time
}

// worth is what the newest voucher counts for.
func (h *held) worth() int64 {
	return max(min(h.Voucher.Amount, h.Earmark)-h.Base, 0)
}

// claimable is what a claim would bring.
func (h *held) claimable() int64 {
	if h.Voucher.Seq == 0 {
		return 0
	}
	return max(min(h.Voucher.Amount, h.Earmark)-h.Claimed, 0)
}

func (h *held) key() tabKey { return tabKey{h.Tab.ID, h.Epoch} }

// live reports whether service may be given on the strength of the tab.
func (h *held) live(now time.Time) bool {
	return !h.Closing() && now.Before(time.Unix(h.Expiry, 0).Add(-tabMargin)) && h.Voucher.Amount < h.Earmark
}

// bookable reports whether a voucher can still be claimed in time.
func (h *held) bookable(now time.Time) bool {
	if h.Closing() {
		return now.Before(time.Unix(h.Until, 0).Add(-tabMargin))
	}
	return now.Before(time.Unix(h.Expiry, 0))
}

// creditRecord is what lasts of a credit.
type creditRecord struct {
	Last     Mark
	Seen     bool
	Bytes    uint64
	Charged  charge
	Forgiven charge
	Paid     int64 // by tabs that are over
	HasTab   bool
	Tab      held
	Exposure uint64
	Grown    int64 // paid on time since Exposure rose last
	Late     bool  // throttled
	Quote    Quote // in force; Seq 0: none
	Next     Quote // announced; Seq 0: none
	HasLine  bool
	Line     Line
}

// credit is what one peer owes for one service.
type credit struct {
	ID
	creditRecord
	tab *held // &Tab, nil when there is none

	state      State
	graceSince time.Time
	decayAt    time.Time
	moved      time.Time
	gap        bool
	quotedAt   time.Time

	number     uint32
	statusAt   time.Time
	statusOwed int64
	repeats    uint // since it changed
	answer     bool // a status is due whatever has changed
	lateSince  time.Time
	receiptAt  time.Time

	pending, staged       *tx.Voucher
	pendingAt             time.Time
	pendingTab, stagedTab *held
	dirty, writeNow       bool
	writing               bool // it is in the write that is under way
	stored                bool
	writtenAt             time.Time

	vouchers, asks bucket
	anchors        bucket
	anchor         joining

	readAt time.Time // when the meter knew it last

	told     Verdict
	toldOnce bool
	toldAt   time.Time
}

// joining is an anchor of which parts have come.
type joining struct {
	id   uint32
	want uint8
	have uint8 // bits
	data []byte
}

func (p *Pay) newCreditLocked(id ID) *credit {
	c := &credit{ID: id}
	c.Exposure = StartExposure
	p.credits[id] = c
	return c
}

func (r *creditRecord) worth() int64 {
	if !r.HasTab {
		return 0
	}
	return r.Tab.worth()
}

// owed is what the peer owes; negative: it has paid ahead.
func (r *creditRecord) owed() int64 {
	return r.Charged.Amount - r.Forgiven.Amount - r.Paid - r.worth()
}

func (c *credit) busy(now time.Time) bool {
	return now.Sub(c.moved) < 10*time.Second || c.pending != nil || c.pendingTab != nil || c.state == Grace || c.answer
}

func (c *credit) verdict(t *Tariff) Verdict {
	switch {
	case c.state == Free && c.Quote.Price != 0:
		return Verdict{true, t.GuestKbit}
	case c.state == Throttled:
		return Verdict{true, t.FreeKbit}
	}
	return Verdict{}
}

// meterCreditLocked bills what has moved.
func (p *Pay) meterCreditLocked(c *credit, r *Reading, t *Tariff, now time.Time) {
	c.gap = r.Gap
	p.quoteLocked(c, t, now)
	if !c.Seen {
		c.Seen, c.Last, c.dirty = true, r.Mark, true
		return
	}
	n := r.since(&c.Last)
	if n == 0 && r.Epoch == c.Last.Epoch && r.Sent >= c.Last.Sent && r.Recv >= c.Last.Recv {
		return
	}
	if n > 0 {
		c.moved = now
	}
	c.dirty = true
	if p.cfg.Member(c.Peer) { // a guest's traffic is free
		p.lineLocked(Payee, c.ID, &c.HasLine, &c.Line, &c.Quote, c.tab, &c.Last, &r.Mark, n, c.Charged.Rem, now)
		c.Bytes = min(c.Bytes+n, maxBytes)
		before := c.Charged.Amount
		c.Charged.add(n, c.Quote.Price)
		c.Line.Amount += c.Charged.Amount - before
	}
	c.Last = r.Mark
}

// quoteLocked keeps a price in force: a higher one is announced a minute before, a lower one holds at once.
func (p *Pay) quoteLocked(c *credit, t *Tariff, now time.Time) {
	if c.Next.Seq != 0 && now.Unix() >= c.Next.From {
		c.Quote, c.Next, c.dirty, c.answer = c.Next, Quote{}, true, true
	}
	newest := &c.Quote
	if c.Next.Seq != 0 {
		newest = &c.Next
	}
	price, ok := p.cfg.Price(c.ID)
	if !ok {
		price = 0
	}
	price = min(price, t.PriceMost)
	stale := now.Unix() > newest.Until-int64(quoteLife/time.Second)/2
	spacing := notice
	if price < c.Quote.Price { // such as when the members have voted a lower one: who is refused earns nothing
		spacing = fallEvery
	}
	if newest.Seq != 0 && price == newest.Price && !stale || !c.quotedAt.IsZero() && now.Sub(c.quotedAt) < spacing {
		return
	}
	from := now.Unix()
	if c.Quote.Seq != 0 && price > c.Quote.Price {
		from += int64(notice / time.Second)
	}
	q := Quote{Service: c.Service, Price: price, Seller: p.self, Account: p.cfg.Account, Seq: max(uint64(max(now.Unix(), 0)), newest.Seq+1),
		FreeKbit: t.FreeKbit, Exposure: min(exposureCap(t, p.cfg.Rate(c.ID)), maxBytes), From: from, Until: from + int64(quoteLife/time.Second)}
	q.sign(p.cfg.Signer)
	if from > now.Unix() {
		c.Next = q
	} else {
		c.Quote, c.Next = q, Quote{}
	}
	c.quotedAt, c.dirty = now, true
	p.sendLocked(c.Peer, &q)
}

// judgeLocked lets debt decay, finds the peer's state and says what is owed.
func (p *Pay) judgeLocked(c *credit, t *Tariff, now time.Time) {
	p.quoteLocked(c, t, now)
	p.decayLocked(c, t, now)
	live := c.tab != nil && c.tab.live(now)
	limit := t.Trust
	if live {
		limit = Cost(min(c.Exposure, exposureCap(t, p.cfg.Rate(c.ID))), c.Quote.Price)
	}
	owed := c.owed()
	if c.Late && owed <= limit/2 {
		c.Late, c.dirty, c.writeNow, c.answer = false, true, true, true
	}
	was := c.state
	switch {
	case !p.cfg.Member(c.Peer):
		c.state = Free
	case c.Late:
		c.state = Throttled
	case owed > limit:
		if was != Grace && was != Throttled {
			c.state, c.graceSince = Grace, now
		} else if now.Sub(c.graceSince) >= GraceTime {
			c.state, c.Late, c.dirty, c.writeNow = Throttled, true, true, true
		}
	case owed > limit/2:
		c.state = Due
	case live:
		c.state = Open
	default:
		c.state = Trust
	}
	if c.gap && c.state != Free { // as long as the meters differ there is nothing to owe by
		c.state = Throttled
	}
	if c.state == Throttled && was != Throttled {
		c.lateSince = now
	}
	p.statusLocked(c, t, owed, limit, now)
}

// decayLocked forgives what the free tier would have carried. In OPEN nothing is forgiven: what is owed there gets paid, and the
// bill is the meters' figures times the price.
func (p *Pay) decayLocked(c *credit, t *Tariff, now time.Time) {
	if c.decayAt.IsZero() || c.state == Open || c.owed() <= 0 {
		c.decayAt = now
		return
	}
	d := now.Sub(c.decayAt)
	if d < 100*time.Millisecond {
		return
	}
	c.decayAt = now
	f, owed := c.Forgiven, c.owed()
	f.add(freeBytes(t.FreeKbit, d), c.Quote.Price)
	if more := f.Amount - c.Forgiven.Amount; more > owed {
		f = charge{c.Forgiven.Amount + owed, 0}
	}
	c.Line.Forgiven += f.Amount - c.Forgiven.Amount
	c.Forgiven, c.dirty = f, true
}

// statusLocked says what is owed, when it is time to.
func (p *Pay) statusLocked(c *credit, t *Tariff, owed, limit int64, now time.Time) {
	changed := owed != c.statusOwed
	wait := time.Duration(-1)
	switch {
	case c.answer:
		wait = every
	case c.state == Throttled && now.Sub(c.lateSince) > statusLate:
		wait = statusLate
	case c.state >= Due:
		wait = statusMin
	case owed > 0 && changed && owed > limit/16:
		wait = statusMin
	case owed > 0 && changed:
		wait = statusSlow
	case owed > 0: // the last one may be lost, or the payer cannot pay now
		wait = statusSlow << min(c.repeats, 10)
	}
	if c.state == Free && !c.answer || wait < 0 || now.Sub(c.statusAt) < wait && !c.statusAt.IsZero() {
		return
	}
	m := DebtStatus{Service: c.Service, State: c.state, FreeKbit: t.FreeKbit, Owed: clampAmount(owed), Bytes: c.Bytes, Quote: c.Quote.ID(),
		Exposure: min(c.Exposure, exposureCap(t, p.cfg.Rate(c.ID)), maxBytes)}
	if h := c.tab; h != nil && h.bookable(now) {
		m.Tab, m.Epoch, m.Seq, m.Signed = h.Tab.ID, h.Epoch, h.Voucher.Seq, h.Voucher.Amount
		if h.Voucher.Amount > h.Earmark/5*4 {
			m.Asks |= AskTopUp
		}
		if now.After(time.Unix(h.Expiry, 0).Add(-renewBefore)) {
			m.Asks |= AskRenew
		}
		if !h.live(now) {
			m.Asks |= AskAnchor
		}
	} else {
		m.Asks |= AskAnchor
	}
	if c.gap {
		m.Asks |= AskMeter
	}
	if c.repeats++; changed {
		c.repeats = 0
	}
	c.number++
	m.Number = c.number
	c.statusAt, c.statusOwed, c.answer = now, owed, false
	p.sendLocked(c.Peer, &m)
}

// hearAsk answers with price and debt, once a second at most.
func (p *Pay) hearAsk(now time.Time, peer ident.PublicKey, m *Ask) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.credits[ID{peer, m.Service}]
	if c == nil || c.Quote.Seq == 0 || !c.asks.take(now, 1, 3) {
		return false
	}
	c.answer = true
	p.sendLocked(peer, &c.Quote)
	if c.Next.Seq != 0 {
		p.sendLocked(peer, &c.Next)
	}
	return true
}

// hearVoucher takes a voucher if it is worth more than the last. It counts once it is durable.
func (p *Pay) hearVoucher(now time.Time, peer ident.PublicKey, v *tx.Voucher) bool {
	p.mu.Lock()
	c := p.creditOfTabLocked(peer, v.Tab)
	ok, answer := p.voucherFitsLocked(c, v, now)
	if !ok || !c.vouchers.take(now, 4, 8) {
		if ok {
			p.counts.Flood++
		}
		if answer {
			// The payer does not know what it has signed: it is told, in its own words.
			if c.tab.Voucher.Seq != 0 {
				p.sendLocked(peer, &VoucherMessage{c.tab.Voucher})
			}
			c.answer = true
		}
		p.mu.Unlock()
		return answer
	}
	signer := c.tab.Signer
	p.mu.Unlock()

	if !v.Verify(signer) { // some 60 µs, with no lock held
		return false
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	if again, _ := p.voucherFitsLocked(c, v, now); !again {
		return false
	}
	if c.pending == nil {
		c.pendingAt = now
	}
	c.pending = v
	return true
}

func (p *Pay) creditOfTabLocked(peer ident.PublicKey, id tx.TabID) *credit {
	for _, s := range [...]Service{Internet, Carriage} {
		if c := p.credits[ID{peer, s}]; c != nil && c.tab != nil && c.tab.Tab.ID == id {
			return c
		}
	}
	return nil
}

// voucherFitsLocked judges all of a voucher but its signature. answer is true for one that the peer should not have sent if it
// knew what it has signed; telling it is limited.
func (p *Pay) voucherFitsLocked(c *credit, v *tx.Voucher, now time.Time) (ok, answer bool) {
	if c == nil || c.tab == nil {
		return false, false
	}
	h := c.tab
	if v.Chain != p.cfg.Chain || v.Tab != h.Tab.ID || v.Epoch != h.Epoch || !h.bookable(now) {
		return false, false
	}
	last := &h.Voucher
	for _, w := range [...]*tx.Voucher{c.staged, c.pending} {
		if w != nil && w.Epoch == h.Epoch && w.Tab == h.Tab.ID {
			last = w
		}
	}
	if v.Seq <= last.Seq || v.Amount < last.Amount || v.Bytes < last.Bytes {
		return false, c.asks.take(now, 1, 3)
	}
	return true, false
}

// hearAnchor joins the parts of an anchor, has it verified and relies on the tab once that is durable.
func (p *Pay) hearAnchor(now time.Time, peer ident.PublicKey, m *TabAnchor) bool {
	p.mu.Lock()
	c := p.credits[ID{peer, m.Service}]
	if c == nil || p.cfg.VerifyAnchor == nil || !p.cfg.Member(peer) {
		p.mu.Unlock()
		return false
	}
	j := &c.anchor
	if j.want == 0 || j.id != m.ID || j.want != m.Parts || len(j.data) != int(m.Len) {
		if !c.anchors.take(now, 0.2, 3) { // a proof costs many signatures
			p.counts.Flood++
			p.mu.Unlock()
			return false
		}
		*j = joining{id: m.ID, want: m.Parts, data: make([]byte, m.Len)}
	}
	copy(j.data[int(m.Number)*partMost:], m.Data)
	j.have |= 1 << m.Number
	if j.have != 1<<j.want-1 {
		p.mu.Unlock()
		return true
	}
	anchor := j.data
	*j = joining{}
	p.mu.Unlock()

	t, at, err := p.cfg.VerifyAnchor(anchor)
	if err != nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.relyLocked(c, &t, at, now)
}

// relyLocked stages a tab if it is this account's and good for something.
func (p *Pay) relyLocked(c *credit, t *tx.Tab, at, now time.Time) bool {
	if t.Signer != c.Peer || t.Payee != p.cfg.Account || t.Number&^0xff != TabNumber(p.self, c.Service) || t.ID != tx.TabIDOf(p.cfg.Chain, t.Payer, t.Payee, t.Number) ||
		now.Sub(at) > anchorAge {
		return false
	}
	h := held{Tab: *t, ID: c.ID, Proven: at.Unix(), Base: t.Claimed, claimAt: now}
	if old := c.tab; old != nil && old.key() == h.key() {
		if h.Proven <= old.Proven && h.Earmark <= old.Earmark && h.Expiry <= old.Expiry {
			c.answer = true // known: the payer has missed that
			return true
		}
	} else {
		if !h.live(now) || old != nil && h.Epoch < old.Epoch || p.old[h.key()] != nil || len(p.old) >= maxOldTabs {
			return false
		}
	}
	c.pendingTab = &h
	return true
}

// renew takes a newer record of the tab. What was seen once does not become less by an older proof.
func (h *held) renew(t *tx.Tab, proven int64) {
	old := h.Tab
	h.Tab, h.Proven = *t, max(h.Proven, proven)
	h.Earmark, h.Claimed, h.Expiry = max(h.Earmark, old.Earmark), max(h.Claimed, old.Claimed), max(h.Expiry, old.Expiry)
	if old.Closing() {
		h.Until, h.UntilBlock = old.Until, old.UntilBlock
	}
}

// stage moves what waits into what is being written, if it is time to book, and reports whether there is anything to write.
func (c *credit) stage(book bool, now time.Time) bool {
	if book {
		c.staged, c.stagedTab = c.pending, c.pendingTab
		c.pending, c.pendingTab = nil, nil
	}
	if c.writtenAt.IsZero() {
		c.writtenAt = now
	}
	if !c.HasTab && c.stagedTab == nil && c.Charged == (charge{}) && c.Paid == 0 {
		return false // a guest: there is nothing that must last
	}
	if c.staged != nil || c.stagedTab != nil || c.writeNow || c.dirty && now.Sub(c.writtenAt) >= storeEvery {
		c.writeNow, c.dirty = false, false
		return true
	}
	return false
}

// apply puts a tab and a voucher into a record, and returns the tab that they replace. It is done twice: on a copy, to write it,
// and on the account once that is durable.
func (r *creditRecord) apply(tab *held, v *tx.Voucher, most uint64) (over *held) {
	if tab != nil {
		if r.HasTab && r.Tab.key() == tab.key() {
			r.Tab.renew(&tab.Tab, tab.Proven)
		} else {
			if r.HasTab {
				r.Paid = satAdd(r.Paid, r.Tab.worth())
				o := r.Tab
				o.Phase = Claim
				over = &o
			}
			r.HasTab, r.Tab = true, *tab
		}
	}
	if v == nil || !r.HasTab || r.Tab.key() != (tabKey{v.Tab, v.Epoch}) {
		return over
	}
	before := r.worth()
	r.Tab.Voucher = *v
	paid := r.worth() - before
	r.Line.sign(v, nil, paid)
	if !r.Late {
		r.Grown = satAdd(r.Grown, paid)
		if step := Cost(r.Exposure, r.Quote.Price) / 4; r.Grown >= step && step > 0 {
			r.Exposure, r.Grown = min(r.Exposure/3*4+r.Exposure%3, most), 0
			r.Exposure = max(r.Exposure, StartExposure)
		}
	}
	return over
}

// settleStageLocked acts on what is durable now, or takes back what could not be written.
func (p *Pay) settleStageLocked(c *credit, ok bool, now time.Time) {
	if !c.writing {
		return
	}
	v, tab := c.staged, c.stagedTab
	c.staged, c.stagedTab, c.writing = nil, nil, false
	if !ok {
		// What has come meanwhile is newer.
		if c.pending == nil {
			c.pending = v
		}
		if c.pendingTab == nil {
			c.pendingTab = tab
		}
		c.dirty, c.writeNow = true, true
		return
	}
	c.stored, c.writtenAt = true, now
	if v == nil && tab == nil {
		return
	}
	t := p.cfg.Tariff()
	if over := c.apply(tab, v, exposureCap(&t, p.cfg.Rate(c.ID))); over != nil {
		p.old[over.key()] = over
		nudge(p.kick)
	}
	c.tab = &c.Tab
	c.answer = true
	if v != nil && now.Sub(c.receiptAt) >= receiptEvery {
		c.receiptAt = now
		r := Receipt{Service: c.Service, Tab: v.Tab, Epoch: v.Epoch, Seq: v.Seq, Amount: v.Amount, Bytes: v.Bytes, Time: now.Unix(), Meter: [8]byte(v.Meter[:8])}
		r.Sig = p.cfg.Signer.Sign(ReceiptDomain, r.body())
		p.sendLocked(c.Peer, &r)
	}
	// The state follows at once: who has paid is not kept waiting.
	p.judgeLocked(c, &t, now)
	if c.writeNow {
		nudge(p.wake)
	}
}

// heldTabs returns all tabs with vouchers or of interest, those in use first.
func (p *Pay) heldTabsLocked() (l []*held) {
	for _, c := range p.credits {
		if c.tab != nil {
			l = append(l, c.tab)
		}
	}
	for _, h := range p.old {
		l = append(l, h)
	}
	slices.SortFunc(l, func(a, b *held) int {
		return cmp.Or(slices.Compare(a.Tab.ID[:], b.Tab.ID[:]), cmp.Compare(a.Epoch, b.Epoch))
	})
	return l
}
