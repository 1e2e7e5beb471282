package pay

import (
	"time"

	"weft/ident"
	"weft/ledger/tx"
)

// debitRecord is what lasts of a debit.
type debitRecord struct {
	Last    Mark
	Seen    bool
	Bytes   uint64 // by the own meter, at a price
	Charged charge
	Signed  int64  // of all tabs
	At      uint64 // Bytes when the last voucher was signed

	HasTab  bool
	Tab     tx.Tab
	Proven  int64
	Voucher tx.Voucher      // newest; Seq 0: none
	Number  uint32          // of the last tab, and …
	Payee   ident.PublicKey // … its payee

	Quote   Quote // by which this node counts; Seq 0: none
	HasLine bool
	Line    Line
}

// debit is what this node owes one peer for one service.
type debit struct {
	ID
	debitRecord
	tab *tx.Tab // &Tab, nil when there is none

	quotes     []offered // announced
	refused    uint64    // price above the owner's
	status     DebtStatus
	heard      time.Time
	heardBytes uint64 // Bytes then
	gap        bool
	moved      time.Time
	signedAt   time.Time
	sentAt     time.Time
	askedAt    time.Time
	anchorAt   time.Time
	anchorID   uint32
	tries      uint
	anchor     []byte
	wants      bool
	openAt     time.Time // when to try again to open a tab
	opens      uint      // tries
	lookAt     time.Time // when to look at the tab again

	staged          *tx.Voucher
	stagedRec       *debitRecord
	send            bool // the newest voucher is to be sent (again)
	dirty, writeNow bool
	writing         bool   // it is in the write that is under way
	kept, keeping   uint64 // Bytes as last written, and in the write that is under way
	stored          bool
	writtenAt       time.Time

	echoes, quoting, receipts bucket
}

// offered is a quote and when it came, by the own clock.
type offered struct {
	Quote
	at time.Time
}

func (p *Pay) newDebitLocked(id ID) *debit {
	d := &debit{ID: id}
	p.debits[id] = d
	return d
}

// owed is what this node owes by its own meter.
func (r *debitRecord) owed() int64 { return r.Charged.Amount - r.Signed }

func (d *debit) busy(now time.Time) bool {
	return now.Sub(d.moved) < 10*time.Second || d.wants
}

// meterDebitLocked counts what has moved at the price in force. Until there is one, it waits: the first price that is accepted
// holds for what came before.
func (p *Pay) meterDebitLocked(d *debit, r *Reading, now time.Time) {
	d.gap = r.Gap
	if !d.Seen {
		d.Seen, d.Last, d.dirty = true, r.Mark, true
	}
	if d.Quote.Seq == 0 {
		again := now.Sub(d.askedAt)
		if d.askedAt.IsZero() || again >= time.Second && r.since(&d.Last) > 0 || again >= priceEvery {
			d.askedAt = now
			p.sendLocked(d.Peer, &Ask{d.Service})
		}
		if d.refused != 0 { // dearer than the owner wants: nothing is owed, and node goes elsewhere
			d.Last = r.Mark
		}
		return
	}
	n := r.since(&d.Last)
	if n == 0 && r.Epoch == d.Last.Epoch && r.Sent >= d.Last.Sent && r.Recv >= d.Last.Recv {
		return
	}
	if n > 0 {
		d.moved = now
	}
	d.dirty = true
	p.lineLocked(Payer, d.ID, &d.HasLine, &d.Line, &d.Quote, payerTab(d), &d.Last, &r.Mark, n, d.Charged.Rem, now)
	d.Bytes = min(d.Bytes+n, maxBytes)
	before := d.Charged.Amount
	d.Charged.add(n, d.Quote.Price)
	d.Line.Amount += d.Charged.Amount - before
	d.Last = r.Mark
}

func payerTab(d *debit) *held {
	if d.tab == nil {
		return nil
	}
	return &held{Tab: d.Tab}
}

// hearQuote keeps a quote that its seller has signed and that the owner's limit allows.
func (p *Pay) hearQuote(now time.Time, peer ident.PublicKey, q *Quote) bool {
	p.mu.Lock()
	d := p.debits[ID{peer, q.Service}]
	ok := d != nil && q.Seller == peer && q.Seq != 0 && q.Seq > d.Quote.Seq && d.quoting.take(now, 0.5, 6)
	p.mu.Unlock()
	if !ok || !q.Verify() {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range d.quotes {
		if d.quotes[i].Seq == q.Seq {
			return true
		}
	}
	if len(d.quotes) >= 4 {
		d.quotes = d.quotes[1:]
	}
	d.quotes = append(d.quotes, offered{*q, now})
	if d.Quote.Seq == 0 {
		p.priceLocked(d, q.ID(), now)
	}
	return true
}

// priceLocked puts a quote in force: what the payee says is in force, when it is not dearer, or was announced a minute ago by
// this node's own clock, and the owner's limit allows it.
func (p *Pay) priceLocked(d *debit, id uint64, now time.Time) {
	if d.Quote.Seq != 0 && d.Quote.ID() == id {
		return
	}
	for i := range d.quotes {
		q := &d.quotes[i]
		if q.ID() != id {
			continue
		}
		switch {
		case q.Price > p.wallet.MaxPrice && q.Price > 0:
			d.refused = uint64(q.Price)
			return
		case d.Quote.Seq != 0 && q.Price > d.Quote.Price && now.Sub(q.at) < notice-5*time.Second:
			return
		}
		d.refused = 0
		d.Quote, d.dirty = q.Quote, true
		d.quotes = d.quotes[i+1:]
		return
	}
	if d.askedAt.IsZero() || now.Sub(d.askedAt) >= 2*time.Second {
		d.askedAt = now
		p.sendLocked(d.Peer, &Ask{d.Service})
	}
}

// hearStatus notes what the payee wants.
func (p *Pay) hearStatus(now time.Time, peer ident.PublicKey, m *DebtStatus) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.debits[ID{peer, m.Service}]
	if d == nil {
		return false
	}
	// Numbers begin again when the payee does; an old status is sorted out by what it says was signed.
	if m.Number < d.status.Number && now.Sub(d.heard) < 5*time.Second {
		return false
	}
	d.status, d.heard, d.heardBytes = *m, now, d.Bytes
	p.priceLocked(d, m.Quote, now)
	if d.tab != nil && m.Tab == d.Tab.ID && m.Epoch == d.Epoch() && m.Seq < d.Voucher.Seq && now.Sub(d.sentAt) >= 2*time.Second {
		d.send = true // it was lost
	}
	if m.Asks&(AskTopUp|AskRenew) != 0 || m.Asks&AskAnchor != 0 && d.anchor == nil {
		nudge(p.kick)
	}
	return true
}

// Epoch is that of the tab in use.
func (d *debitRecord) Epoch() uint32 { return d.Tab.Epoch }

// claimedLocked is what the payee wants now, beyond what was signed.
func (d *debit) claimed(now time.Time) int64 {
	if now.Sub(d.heard) > claimFresh {
		return 0
	}
	owed := d.status.Owed
	if d.tab != nil && d.status.Tab == d.Tab.ID && d.status.Epoch == d.Tab.Epoch {
		owed -= d.Voucher.Amount - min(d.Voucher.Amount, d.status.Signed) // on its way
	}
	return owed
}

// payableLocked is how much more to sign for: what is claimed, but not above the own meter and the gap, nor beyond budget and tab.
func (p *Pay) payableLocked(d *debit, now time.Time) int64 {
	own := d.owed()
	if !d.gap {
		own = satAdd(own, Cost(Gap(d.Bytes), d.Quote.Price))
	}
	n := min(d.claimed(now), own)
	left := p.wallet.Budget - p.spent.in(now)
	return max(0, min(n, left, d.Tab.Earmark-d.Voucher.Amount))
}

// wantsLocked reports whether it is time to sign, and sends what was lost and anchors that are missing.
func (p *Pay) wantsLocked(d *debit, now time.Time) bool {
	d.wants = false
	if d.Quote.Seq == 0 || d.Quote.Price == 0 && d.owed() == 0 {
		return false
	}
	// What is owed is not said any more, or was not since a restart. Where the payee has forgiven, this node's own count stays above
	// what is wanted: as long as nothing moves there is nothing to ask.
	fresh := now.Sub(d.heard) <= claimFresh
	if d.owed() > 0 && !fresh && (d.heard.IsZero() || d.status.Owed > 0 || d.Bytes != d.heardBytes) && now.Sub(d.askedAt) >= 10*time.Second {
		d.askedAt = now
		p.sendLocked(d.Peer, &Ask{d.Service})
	}
	if d.tab == nil {
		if d.owed() > 0 && !now.Before(d.openAt) {
			d.openAt = now.Add(10 * time.Second << min(d.opens, 5))
			d.opens++
			nudge(p.kick)
		}
		return false
	}
	d.opens = 0
	known := d.status.Tab == d.Tab.ID && d.status.Epoch == d.Tab.Epoch && fresh
	if fresh && (d.status.Asks&AskAnchor != 0 || !known && d.owed() > 0) { // else the answer to Ask will tell: a proof costs the payee much
		p.sendAnchorLocked(d, now)
	} else if known {
		d.tries = 0
	}
	if !known {
		return false
	}
	if d.send {
		d.send, d.sentAt = false, now
		p.sendLocked(d.Peer, &VoucherMessage{d.Voucher})
	}
	n := p.payableLocked(d, now)
	if n <= 0 || !d.signedAt.IsZero() && now.Sub(d.signedAt) < signSpacing {
		return false
	}
	quarter := Cost(min(max(d.status.Exposure, 1<<20), 256<<20), d.Quote.Price) / 4
	d.wants = n >= quarter || d.status.State >= Due || now.Sub(d.signedAt) >= signEvery
	return d.wants
}

// sendAnchorLocked sends the proof of the tab: after 2, 4, 8 … 256 s again while the payee does not know it.
func (p *Pay) sendAnchorLocked(d *debit, now time.Time) {
	if d.anchor == nil {
		nudge(p.kick)
		return
	}
	if !d.anchorAt.IsZero() && now.Sub(d.anchorAt) < 2*time.Second<<min(d.tries, 7) {
		return
	}
	d.anchorAt = now
	d.tries++
	d.anchorID++
	for _, part := range splitAnchor(d.Service, d.anchorID^uint32(now.Unix()), d.anchor) {
		p.sendLocked(d.Peer, &part)
	}
}

// signLocked signs for all who want it, by counts that are durable.
func (p *Pay) signLocked(now time.Time) {
	for _, d := range p.debits {
		if !d.wants {
			continue
		}
		n := p.payableLocked(d, now)
		if n <= 0 {
			continue
		}
		v := tx.Voucher{Chain: p.cfg.Chain, Tab: d.Tab.ID, Epoch: d.Tab.Epoch, Seq: d.Voucher.Seq + 1, Amount: d.Voucher.Amount + n,
			Bytes: d.Voucher.Bytes + d.Bytes - d.At, Quote: d.Quote.ID(), Meter: d.Last.Hash()}
		v, err := v.Sign(p.cfg.Signer)
		if err != nil {
			p.cfg.Log.Error("a voucher cannot be signed", "err", err)
			continue
		}
		rec := d.debitRecord
		rec.Signed, rec.Voucher, rec.At = satAdd(rec.Signed, n), v, rec.Bytes
		rec.Line.sign(&v, &rec.Last, n)
		d.staged, d.stagedRec = &v, &rec
		p.spent.add(now, n)
	}
}

// stage reports whether there is anything to write.
func (d *debit) stage(now time.Time) bool {
	if d.writtenAt.IsZero() {
		d.writtenAt = now
	}
	// What a crash makes this node forget and its payee not is more than it will sign for: a part of the gap, then.
	if d.staged != nil || d.writeNow || d.dirty && (now.Sub(d.writtenAt) >= storeEvery || d.Bytes-min(d.Bytes, d.kept) >= GapBytes/8) {
		d.keeping = d.Bytes
		d.writeNow, d.dirty = false, false
		return true
	}
	return false
}

// settleSignLocked sends a voucher that is durable. One that may or may not be is never sent: the next has the same number.
func (p *Pay) settleSignLocked(d *debit, ok bool, now time.Time) {
	if !d.writing {
		return
	}
	v, rec := d.staged, d.stagedRec
	d.staged, d.stagedRec, d.writing = nil, nil, false
	if !ok {
		d.dirty, d.writeNow = true, true
		if v != nil {
			p.spent.add(now, -(v.Amount - d.Voucher.Amount))
		}
		return
	}
	d.stored, d.writtenAt, d.kept = true, now, d.keeping
	if v == nil {
		return
	}
	n := v.Amount - d.Voucher.Amount
	d.Signed, d.Voucher, d.At = satAdd(d.Signed, n), *v, rec.At
	d.Line.sign(v, &rec.Last, n)
	d.signedAt, d.sentAt, d.wants = now, now, false
	p.sendLocked(d.Peer, &VoucherMessage{*v})
}

// hearEcho takes back a voucher that this node has signed and forgotten.
func (p *Pay) hearEcho(now time.Time, peer ident.PublicKey, v *tx.Voucher) bool {
	p.mu.Lock()
	var d *debit
	for _, s := range [...]Service{Internet, Carriage} {
		if e := p.debits[ID{peer, s}]; e != nil && e.tab != nil && e.Tab.ID == v.Tab {
			d = e
		}
	}
	ok := d != nil && v.Chain == p.cfg.Chain && v.Epoch == d.Tab.Epoch && v.Seq > d.Voucher.Seq && v.Amount >= d.Voucher.Amount && d.echoes.take(now, 0.2, 3)
	p.mu.Unlock()
	if !ok || !v.Verify(p.self) {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if d.tab == nil || d.Tab.ID != v.Tab || d.Tab.Epoch != v.Epoch || v.Seq <= d.Voucher.Seq || v.Amount < d.Voucher.Amount || d.staged != nil {
		return false
	}
	// It was for what this node has forgotten as well, so nothing is owed more or less by it.
	d.Voucher, d.dirty, d.writeNow = *v, true, true
	return true
}

// hearReceipt keeps the payee's word beside the voucher it is for.
func (p *Pay) hearReceipt(now time.Time, peer ident.PublicKey, m *Receipt) bool {
	p.mu.Lock()
	d := p.debits[ID{peer, m.Service}]
	ok := d != nil && d.tab != nil && m.Tab == d.Tab.ID && m.Epoch == d.Tab.Epoch && m.Seq <= d.Voucher.Seq && m.Amount <= d.Voucher.Amount && d.receipts.take(now, 0.1, 3)
	p.mu.Unlock()
	if !ok || !m.Verify(peer) {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	d.Line.Receipt, d.dirty = *m, true
	return true
}
