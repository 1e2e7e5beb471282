package pay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"weft/ledger/tx"
)

// Settler is the ledger as pay needs it: node makes one over an engine or a light client, tests over a ledger.Machine. All calls
// may take long and fail without harm; what a Tab or an Account says must be proven or come from the owner's own engine.
type Settler interface {
	// Account returns the account of Config.Account.
	Account(ctx context.Context) (tx.Account, error)
	// Tab returns a tab's record as of time at, and an anchor that proves it to the payee, at most MaxAnchor bytes. It returns
	// ErrNoTab when the ledger surely has none, ErrUnproven when it has none by somebody's word alone; any other error means that
	// nobody knows.
	Tab(ctx context.Context, id tx.TabID) (t tx.Tab, anchor []byte, at time.Time, err error)
	// Submit signs a body as Config.Account, waits until it was executed and returns its data. It returns ErrTaken when a tab's
	// number is taken, and any other error when it was refused or nobody knows. That it was executed may be somebody's word, too.
	Submit(ctx context.Context, body tx.Body) (data []byte, err error)
}

// Errors of a Settler; test with errors.Is.
var (
	ErrNoTab = errors.New("the ledger has no such tab")
	ErrTaken = errors.New("this number is taken")
	// ErrUnproven is an ErrNoTab. Whoever is asked may hide a tab, and be its payer: a payee goes on claiming.
	ErrUnproven = fmt.Errorf("%w, by the word of who keeps it", ErrNoTab)
)

const (
	claimEvery = 24 * time.Hour
	lookEvery  = time.Hour
	openTries  = 16
)

// Settle does at the ledger what is due: looks at tabs, claims, opens, tops up and renews. It waits for the Settler, and ends at
// the first call that fails: without the chain nothing here is urgent. Calls wait for each other.
func (p *Pay) Settle(ctx context.Context, now time.Time) error {
	if p.cfg.Settler == nil {
		return nil
	}
	p.settling.Lock()
	defer p.settling.Unlock()
	return errors.Join(p.settlePayee(ctx, now), p.settlePayer(ctx, now))
}

// Claim presents the newest voucher of every tab now, instead of once a day.
func (p *Pay) Claim(ctx context.Context, now time.Time) error {
	if p.cfg.Settler == nil {
		return nil
	}
	p.settling.Lock()
	defer p.settling.Unlock()
	p.mu.Lock()
	for _, h := range p.heldTabsLocked() {
		h.claimAt = time.Time{}
	}
	p.mu.Unlock()
	return p.settlePayee(ctx, now)
}

// change alters accounts and tabs while nothing is being written, and then writes what write returns.
func (p *Pay) change(f func() []Entry) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	p.mu.Lock()
	b := f()
	p.mu.Unlock()
	if len(b) == 0 {
		return nil
	}
	return p.cfg.Store.Write(b)
}

// holderEntry is the record that a tab is in.
func (p *Pay) holderEntryLocked(h *held) Entry {
	if c := p.credits[h.ID]; c != nil && c.tab == h {
		return c.entry()
	}
	return h.entry()
}

// heldLocked finds a tab, in use or over; nil when it is neither.
func (p *Pay) heldLocked(k tabKey) *held {
	if h := p.old[k]; h != nil {
		return h
	}
	for _, c := range p.credits {
		if c.tab != nil && c.tab.key() == k {
			return c.tab
		}
	}
	return nil
}

func (h *held) ending(now time.Time) bool {
	return h.Phase == Claim || h.Closing() || now.After(time.Unix(h.Expiry, 0).Add(-claimEvery))
}

// mayBeGone reports whether a tab that is not shown any more can have ended. Its payer cannot end it sooner, and a payee who has closed it
// himself need not be told.
func (h *held) mayBeGone(now time.Time) bool {
	end := h.Expiry
	if h.Closing() {
		end = h.Until
	}
	return now.Unix() >= end || now.Sub(time.Unix(h.Proven, 0)) > anchorAge
}

// look sees what the ledger says of tabs at which nobody has looked for a while.
func (p *Pay) look(ctx context.Context, now time.Time) error {
	p.mu.Lock()
	var look []tabKey
	for _, h := range p.heldTabsLocked() {
		if h.Phase != Settled && (h.lookAt.IsZero() || now.Sub(h.lookAt) >= lookEvery) {
			look = append(look, h.key())
		}
	}
	p.mu.Unlock()
	for _, k := range look {
		t, _, at, err := p.cfg.Settler.Tab(ctx, k.id)
		if err != nil && !errors.Is(err, ErrNoTab) {
			return fmt.Errorf("look at tab %s: %w", k.id, err)
		}
		unproven := errors.Is(err, ErrUnproven)
		if err := p.change(func() []Entry {
			if h := p.heldLocked(k); unproven && h != nil && !h.mayBeGone(now) {
				p.cfg.Log.Warn("the ledger shows a tab no more that must be there: it is claimed from all the same", "tab", k.id)
				h.lookAt = now
				return nil
			}
			return p.sawLocked(k, &t, at, err != nil, now)
		}); err != nil {
			return fmt.Errorf("keep what the ledger says of tab %s: %w", k.id, err)
		}
	}
	return nil
}

func (p *Pay) settlePayee(ctx context.Context, now time.Time) error {
	if err := p.look(ctx, now); err != nil {
		return err
	}
	p.mu.Lock()
	var due []tabKey
	var vouchers []tx.Voucher
	for _, h := range p.heldTabsLocked() {
		if h.Phase == Settled || h.claimable() == 0 {
			continue
		}
		if now.Sub(h.claimAt) >= claimEvery || h.ending(now) && (h.claimAt.IsZero() || now.Sub(h.claimAt) >= lookEvery || h.Voucher.Amount >= h.Earmark) {
			due, vouchers = append(due, h.key()), append(vouchers, h.Voucher)
		}
	}
	p.mu.Unlock()
	for len(due) > 0 {
		n := min(len(due), tx.MaxClaims)
		if err := p.claim(ctx, due[:n], vouchers[:n], now); err != nil {
			return err
		}
		due, vouchers = due[n:], vouchers[n:]
	}
	if err := p.look(ctx, now); err != nil { // what came of the claims
		return err
	}
	return p.forgetSettled(now)
}

// sawLocked takes what the ledger says of a tab.
func (p *Pay) sawLocked(k tabKey, t *tx.Tab, at time.Time, gone bool, now time.Time) []Entry {
	h := p.heldLocked(k)
	if h == nil {
		return nil
	}
	h.lookAt = now
	if gone || t.Epoch != h.Epoch {
		// What it was worth was given for service and is gone, or was claimed by somebody else for this node: the ledger paid it
		// to the same account.
		c := p.credits[h.ID]
		h.Lost, h.Phase = h.claimable(), Settled
		if h.Lost > 0 {
			p.cfg.Log.Warn("a tab ended before its last voucher was claimed", "tab", h.Tab.ID, "ncredit", h.Lost)
		}
		if c == nil || c.tab != h {
			return []Entry{h.entry()}
		}
		c.Paid = satAdd(c.Paid, h.worth())
		over := *h
		p.old[over.key()] = &over
		c.HasTab, c.Tab, c.tab = false, held{}, nil
		return []Entry{over.entry(), c.entry()}
	}
	old := h.Tab
	proven := h.Proven
	h.renew(t, at.Unix())
	if h.Phase == Claim && h.claimable() == 0 {
		h.Phase = Settled
	}
	if h.Tab == old && h.Phase != Settled && h.Proven/86400 == proven/86400 {
		return nil
	}
	return []Entry{p.holderEntryLocked(h)}
}

// claim presents vouchers. Presented twice they pay once. What was paid is believed when the tab shows it.
func (p *Pay) claim(ctx context.Context, tabs []tabKey, vouchers []tx.Voucher, now time.Time) error {
	body := &tx.TabClaim{}
	for i := range vouchers {
		body.Vouchers = append(body.Vouchers, vouchers[i].Encode())
	}
	data, err := p.cfg.Settler.Submit(ctx, body)
	if err == nil {
		var results []tx.Claimed
		if results, err = tx.ParseClaimed(data); err == nil && len(results) != len(tabs) {
			err = errors.New("the ledger's answer is for other vouchers")
		}
	}
	werr := p.change(func() (b []Entry) {
		for _, k := range tabs {
			h := p.heldLocked(k)
			if h == nil {
				continue
			}
			h.lookAt = time.Time{} // whatever came of it, the ledger knows best
			if err != nil {
				continue
			}
			h.claimAt = now
			b = append(b, p.holderEntryLocked(h))
		}
		return b
	})
	if err != nil {
		return fmt.Errorf("claim %d vouchers: %w", len(tabs), err)
	}
	if werr != nil {
		return fmt.Errorf("keep what was claimed: %w", werr)
	}
	return nil
}

// forgetSettled drops tabs that are done with: their lines stay in the bill.
func (p *Pay) forgetSettled(now time.Time) error {
	return p.change(func() (b []Entry) {
		for k, h := range p.old {
			if h.Phase == Settled && now.After(time.Unix(h.Expiry, 0).Add(renewBefore)) {
				delete(p.old, k)
				b = append(b, Entry{Key: h.entry().Key})
			}
		}
		return b
	})
}

func (p *Pay) settlePayer(ctx context.Context, now time.Time) error {
	p.mu.Lock()
	var all []*debit
	for _, d := range p.debits {
		if d.Quote.Seq != 0 && d.Quote.Price > 0 {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b *debit) int { return compareID(a.ID, b.ID) })
	p.mu.Unlock()
	for _, d := range all {
		if err := p.settleDebit(ctx, d, now); err != nil {
			return fmt.Errorf("tab for %s of %s: %w", d.Service, d.Peer, err)
		}
	}
	return nil
}

// settleDebit keeps one tab such that what is owed can be signed for. It looks before it acts, so what was done and forgotten in
// a crash is not done twice.
func (p *Pay) settleDebit(ctx context.Context, d *debit, now time.Time) error {
	p.mu.Lock()
	has, id := d.tab != nil, d.Tab.ID
	active := d.owed() > 0 || now.Sub(d.moved) < lookEvery
	low := has && d.Voucher.Amount > d.Tab.Earmark/5*4
	late := has && now.After(time.Unix(d.Tab.Expiry, 0).Add(-renewBefore))
	look := has && (d.anchor == nil || low || late || d.status.Asks&AskAnchor != 0) && active && !now.Before(d.lookAt)
	if look {
		d.lookAt = now.Add(time.Minute) // unless something comes of it
	}
	p.mu.Unlock()
	switch {
	case !has && active && p.wants(d):
		return p.open(ctx, d, now)
	case !look:
		return nil
	}
	t, anchor, at, err := p.cfg.Settler.Tab(ctx, id)
	if err != nil && !errors.Is(err, ErrNoTab) {
		p.mu.Lock()
		d.lookAt = now.Add(5 * time.Second) // nobody knows yet, as when the mesh is just coming up
		p.mu.Unlock()
		return err
	}
	if err != nil || t.Epoch != d.Tab.Epoch || t.Closing() || now.After(time.Unix(t.Expiry, 0).Add(-tabMargin)) {
		if err := p.change(func() []Entry {
			d.HasTab, d.tab, d.anchor, d.lookAt = false, nil, nil, time.Time{}
			return []Entry{d.entry()}
		}); err != nil {
			return err
		}
		if active && p.wants(d) {
			return p.open(ctx, d, now)
		}
		return nil
	}
	if err := p.adopt(d, &t, anchor, at); err != nil {
		return err
	}
	done := false
	if low {
		p.mu.Lock()
		n := min(p.tabSizeLocked(), p.wallet.Budget-p.spent.in(now)-(t.Earmark-d.Voucher.Amount))
		p.mu.Unlock()
		if n, err = p.affordable(ctx, n); err != nil {
			return err
		}
		if n > 0 {
			if _, err := p.cfg.Settler.Submit(ctx, &tx.TabTopUp{Tab: id, Epoch: t.Epoch, Amount: n}); err != nil {
				return fmt.Errorf("top up: %w", err)
			}
			done = true
		}
	}
	if late {
		if _, err := p.cfg.Settler.Submit(ctx, &tx.TabRenew{Tab: id, Epoch: t.Epoch, Expiry: p.expiry(now)}); err != nil {
			return fmt.Errorf("renew: %w", err)
		}
		done = true
	}
	if !done {
		return nil
	}
	p.mu.Lock()
	d.lookAt = now.Add(2 * time.Second)
	p.mu.Unlock()
	if t, anchor, at, err = p.cfg.Settler.Tab(ctx, id); err != nil {
		return err
	}
	return p.adopt(d, &t, anchor, at)
}

// expiry is the latest end that a tab may have; block time may be an hour behind.
func (p *Pay) expiry(now time.Time) int64 {
	return now.Add(time.Duration(p.cfg.Tariff().TabLife)*time.Second - tabMargin).Unix()
}

func (p *Pay) wants(d *debit) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return d.owed() > 0 && p.wallet.Budget > 0
}

func (p *Pay) tabSizeLocked() int64 {
	if p.wallet.TabSize > 0 {
		return p.wallet.TabSize
	}
	return p.wallet.Budget / 8
}

// affordable is n, or less when the account has less.
func (p *Pay) affordable(ctx context.Context, n int64) (int64, error) {
	if n <= 0 {
		return 0, nil
	}
	a, err := p.cfg.Settler.Account(ctx)
	if err != nil {
		return 0, err
	}
	return max(0, min(n, satAdd(a.Balance, a.Limit), tx.MaxAmount)), nil
}

// open opens a tab, or finds the one that it asked for before a crash: ids follow from keys and numbers, and it looks before it
// asks.
func (p *Pay) open(ctx context.Context, d *debit, now time.Time) error {
	p.mu.Lock()
	base, payee := TabNumber(d.Peer, d.Service), d.Quote.Account
	number := base
	if d.Payee == payee && d.Number&^0xff == base {
		number = d.Number
	}
	budget := min(p.tabSizeLocked(), p.wallet.Budget-p.spent.in(now))
	p.mu.Unlock()
	for range openTries {
		id := tx.TabIDOf(p.cfg.Chain, p.cfg.Account, payee, number)
		t, anchor, at, err := p.cfg.Settler.Tab(ctx, id)
		switch {
		case err == nil && t.Signer == p.self && !t.Closing() && now.Before(time.Unix(t.Expiry, 0).Add(-tabMargin)) && t.Left() > 0:
			return p.adopt(d, &t, anchor, at)
		case err == nil: // another router's, or closing
			number = base | (number+1)&0xff
			continue
		case !errors.Is(err, ErrNoTab):
			return err
		}
		earmark, err := p.affordable(ctx, budget)
		if err != nil {
			return err
		}
		if earmark == 0 {
			return errors.New("there is no money for a tab: pay in, raise the limit or the month's budget")
		}
		_, err = p.cfg.Settler.Submit(ctx, &tx.TabOpen{Payee: payee, Number: number, Signer: p.self, Earmark: earmark, Expiry: p.expiry(now)})
		if err != nil && !errors.Is(err, ErrTaken) {
			return err
		}
	}
	return errors.New("no number for a tab is free; close some")
}

// adopt puts a tab of this node's in use.
func (p *Pay) adopt(d *debit, t *tx.Tab, anchor []byte, at time.Time) error {
	defer nudge(p.wake)
	return p.change(func() []Entry {
		if d.tab == nil || d.Tab.ID != t.ID || d.Tab.Epoch != t.Epoch {
			if d.Voucher.Tab != t.ID || d.Voucher.Epoch != t.Epoch {
				d.Voucher = tx.Voucher{}
			}
			d.send = false
		}
		if d.tab == nil || d.Tab != *t || string(anchor) != string(d.anchor) {
			d.tries, d.anchorAt = 0, time.Time{}
		}
		d.HasTab, d.Tab, d.Proven, d.anchor = true, *t, at.Unix(), anchor
		d.Number, d.Payee = t.Number, t.Payee
		d.tab = &d.Tab
		return []Entry{d.entry()}
	})
}
