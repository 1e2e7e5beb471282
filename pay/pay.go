// Package pay keeps tabs: what peers owe this node for what it carried for them, and what it owes them. It is the protocol of
// docs/spec/pay.md: quotes, vouchers, debt statuses, receipts and anchors inside the session of two nodes.
//
//   - As payee it bills by its own meter, says what is owed, books vouchers, and gives a [Verdict] on each debtor: full rate, or the free
//     tier. Nobody else is touched, and nobody is ever cut off.
//   - As payer it signs what is asked, but never more than its own meter says and a stated gap, nor beyond what the owner allows. It
//     opens tabs, tops them up and renews them through a [Settler].
//   - What is promised or believed is durable before anybody is told: a restart neither forgives nor resets.
//
// The chain is needed to open a tab and to claim, and for nothing between: tabs go on without it to their cap and lifetime.
//
// node makes one [Pay], hands it the messages of channel 3 ([Pay.Handle]), carries out its verdicts in gateway and forward and
// runs [Pay.Serve]. There is no socket and no clock in the machines: [Pay.Handle], [Pay.Tick] and [Pay.Settle] take the time,
// Serve alone reads it.
//
// All methods may be called from any goroutine. Config's functions must not call Tick, Settle or Flush; Member, Rate, Price and
// Tariff are called with the lock of the accounts held, each tick for each account: they are quick and call nothing here. Serve
// runs two goroutines: one ticks and is the only one to call Send and Enforce, one waits for the Settler. Memory is bounded by
// the limits below. This package imports ident and ledger/tx.
//
//	message.go   the messages as bytes
//	charge.go    bytes into money; readings of the meter
//	payee.go     what a peer owes: FREE → TRUST → OPEN → DUE → GRACE → THROTTLED
//	payer.go     what is owed to a peer: quotes, budget, signing
//	settle.go    the chain: open, top up, renew, claim
//	bill.go      lines with the readings that back them; the audit
//	store.go     records; the bbolt file
package pay

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/ident"
	"weft/ledger/tx"
)

// The bounds that this package promises, and the figures that they follow from (docs/spec/pay.md section 7).
const (
	// A payer that never signs costs its payee at most p·(E + R·(DetectTime + ShapeTime)) at the full rate R inside a tab, and T
	// in place of p·E outside of one, where that is more. What flows at the free tier is free.
	GraceTime  = 2 * time.Second              // between too much debt and the free tier
	meterLag   = time.Second                  // beacons come each second
	DetectTime = GraceTime + meterLag + every // until the verdict
	ShapeTime  = time.Second                  // until node has carried it out

	// A payee that asks for too much gets at most p·(GapBytes + GapPermille/1000·B) more than B bytes by the payer's own meter
	// cost.
	GapBytes    = 1 << 20
	GapPermille = 10

	// StartExposure is what a member may owe at first, in bytes; each payment on time makes it 4/3.
	StartExposure = 8 << 20
)

const (
	every        = 250 * time.Millisecond // between ticks while something moves
	idleEvery    = time.Second
	tickGap      = 50 * time.Millisecond // at least: peers' messages bring a tick forward, and may be many
	tellEvery    = 10 * time.Second      // between two times that the same free tier is enforced, as long as something moves
	guestLasts   = 10 * time.Minute
	storeEvery   = 10 * time.Second // readings that nobody waits for
	settleEvery  = time.Minute
	signSpacing  = 500 * time.Millisecond // at most two vouchers a second to one payee
	signEvery    = 10 * time.Second       // also when little is owed
	notice       = time.Minute            // before a price may rise, and between quotes
	fallEvery    = 5 * time.Second        // between lower ones
	quoteLife    = 24 * time.Hour
	priceEvery   = 10 * time.Second // between questions for a price, also whether one that is too high has fallen
	bookEvery    = time.Second      // vouchers of payers that are in no need: one write for all
	statusMin    = 500 * time.Millisecond
	statusSlow   = 5 * time.Second
	statusLate   = 10 * time.Second // to one that does not pay
	claimFresh   = 30 * time.Second // a status older than this is no reason to sign
	receiptEvery = time.Minute
	tabMargin    = time.Hour // before its end a tab is not relied on: clocks differ
	renewBefore  = 7 * 24 * time.Hour
	anchorAge    = 72 * time.Hour // an older one may hide that the payer has closed the tab: half of the ledger's window

	maxAccounts = 4096 // of each role
	maxOldTabs  = 1024 // with something to claim
)

// Service is what is paid for.
type Service uint8

// The services.
const (
	Internet Service = 1 // a client's traffic through its gateway, both directions, all-in
	Carriage Service = 2 // gateway traffic over a link: the gateway's side pays the user's side what relays behind get
)

func (s Service) valid() bool { return s == Internet || s == Carriage }

func (s Service) String() string {
	switch s {
	case Internet:
		return "internet"
	case Carriage:
		return "carriage"
	}
	return "unknown"
}

// Role is this node's in an account.
type Role uint8

// The roles.
const (
	Payer Role = 1
	Payee Role = 2
)

func (r Role) String() string { return [...]string{"?", "payer", "payee"}[min(r, 2)] }

// ID names an account: who pays whom is its Role.
type ID struct {
	Peer    ident.PublicKey
	Service Service
}

// Reading is what the meter says of one account. Bytes are billed ones (docs/spec/meter.md section 1), cumulative in Epoch: what
// was sent as far as both ends agree, and what was received by this node's own count. For carriage each byte counts as many times
// as there are relays still to be paid, and what was sent is what is known to be delivered.
type Reading struct {
	ID
	Role Role
	Mark
	Gap bool // the ends differ by more than the tolerance, or the other end is silent
}

// Mark is a state of the counters of one account.
type Mark struct {
	Epoch      uint64 // changes when the counts begin again at 0
	Sent, Recv uint64
	Beacon     uint64 // number of the newest beacon that they rest on; 0: not known
}

// Meter is the counters. An account's reading shows up when the service begins, before it has moved much: bytes are billed from
// there.
type Meter interface {
	// Readings returns all accounts there are now.
	Readings() []Reading
	// Commit returns the same, once they are durable: after a crash none is smaller.
	Commit(now time.Time) ([]Reading, error)
}

// Tariff is what the community has voted, in force now.
type Tariff struct {
	FreeKbit        uint32 // free tier of a member
	GuestKbit       uint32 // of others
	ExposureLeast   uint64 // bytes
	ExposureMost    uint64
	ExposureSeconds uint64
	Trust           int64  // ncredit that a member may owe without a tab
	PriceMost       uint32 // ncredit per MiB
	TabLife         int64  // seconds, at most
}

// DefaultTariff is the ledger's default.
func DefaultTariff() Tariff {
	return Tariff{FreeKbit: 512, GuestKbit: 128, ExposureLeast: 8 << 20, ExposureMost: 256 << 20, ExposureSeconds: 4, Trust: 100_000_000, PriceMost: 1_000_000, TabLife: 30 * 86400}
}

// Verdict is what a peer may have of a service.
type Verdict struct {
	FreeTier bool   // false: the full rate
	Kbit     uint32 // of the free tier, kbit/s
}

// Wallet is what the owner allows. The zero Wallet pays nothing.
type Wallet struct {
	Budget   int64  // ncredit a calendar month (UTC), of all tabs together
	MaxPrice uint32 // ncredit per MiB
	TabSize  int64  // to set aside at once; 0: an eighth of Budget
}

// Config is what a Pay needs. Settler, VerifyAnchor and Enforce may be nil: then there are no tabs but what was stored, no
// anchors are believed, and verdicts are only for [Pay.Verdict].
type Config struct {
	Signer  tx.Signer       // the node's key
	Account ident.PublicKey // the member whose node this is: who is paid. Often the node's own key
	Chain   tx.Chain
	Log     *slog.Logger
	Store   Store
	Meter   Meter
	Settler Settler

	Send         func(peer ident.PublicKey, payload []byte) error // one datagram inside the session; may get lost
	Tariff       func() Tariff
	Member       func(node ident.PublicKey) bool // a member's node, in good standing
	Rate         func(ID) uint64                 // of the link or lease, bytes/s, both directions; 0: not known
	Price        func(ID) (price uint32, ok bool)
	Enforce      func(ID, Verdict)
	VerifyAnchor func(anchor []byte) (t tx.Tab, at time.Time, err error) // a tab's record, proven against a trusted block of time at
	Wallet       Wallet
}

// Pay is a node's accounts with all peers.
type Pay struct {
	cfg  Config
	self ident.PublicKey
	wake chan struct{}
	kick chan struct{} // for the Settler's goroutine

	ticking  sync.Mutex // held by Tick; taken first
	settling sync.Mutex // held by Settle; taken first
	writing  sync.Mutex // held for a write of the store, and from the encoding of what is written; taken before mu

	mu      sync.Mutex // guards what follows
	credits map[ID]*credit
	debits  map[ID]*debit
	old     map[tabKey]*held // payee: tabs that are over, until they are settled
	// forgotten had a verdict that nobody will lift any more.
	forgotten []ID
	wallet    Wallet
	spent     months
	lineSeq   uint64
	lines     int    // closed ones in the store
	closing   []Line // closed and not yet written
	// Of a write under way: how many of closing, and how many old ones go.
	linesOut, linesGone int
	out                 []message
	counts              Counts
	failed              error // of the last write
	retryAt             time.Time
}

// Counts is what was refused or went wrong, for people.
type Counts struct {
	Malformed uint64 // datagrams that were no messages
	Refused   uint64 // messages that were not believed
	Flood     uint64 // messages beyond the rate
}

type message struct {
	to      ident.PublicKey
	payload []byte
}

type tabKey struct {
	id    tx.TabID
	epoch uint32
}

// New loads what is stored.
func New(cfg Config) (*Pay, error) {
	if cfg.Signer == nil || cfg.Log == nil || cfg.Store == nil || cfg.Meter == nil || cfg.Send == nil || cfg.Tariff == nil ||
		cfg.Member == nil || cfg.Rate == nil || cfg.Price == nil {
		return nil, errors.New("keep tabs: a function, the meter, the store, the signer or the logger is missing from the config")
	}
	p := &Pay{
		cfg: cfg, self: cfg.Signer.Public(), wake: make(chan struct{}, 1), kick: make(chan struct{}, 1), wallet: cfg.Wallet,
		credits: map[ID]*credit{}, debits: map[ID]*debit{}, old: map[tabKey]*held{}, spent: months{},
	}
	if p.cfg.Account.IsZero() {
		p.cfg.Account = p.self
	}
	if err := p.load(); err != nil {
		return nil, fmt.Errorf("read tabs: %w", err)
	}
	return p, nil
}

// SetWallet puts the owner's wishes in force.
func (p *Pay) SetWallet(w Wallet) {
	p.mu.Lock()
	p.wallet = w
	for _, d := range p.debits {
		d.openAt, d.lookAt, d.opens = time.Time{}, time.Time{}, 0
		if d.Quote.Price > w.MaxPrice { // from now on: nothing is counted until there is a price that suits
			d.refused, d.Quote, d.dirty = uint64(d.Quote.Price), Quote{}, true
			d.quotes, d.askedAt = nil, time.Time{}
		}
	}
	p.mu.Unlock()
	nudge(p.kick)
	nudge(p.wake)
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Serve ticks and settles until ctx ends; then it writes what there is.
func (p *Pay) Serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		t := time.NewTimer(0)
		defer t.Stop()
		var last time.Time
		for {
			select {
			case <-ctx.Done():
				return p.Flush(time.Now())
			case <-t.C:
			case <-p.wake:
				if wait := tickGap - time.Since(last); wait > 0 {
					t.Reset(wait)
					continue
				}
			}
			last = time.Now()
			t.Reset(p.Tick(last))
		}
	})
	g.Go(func() error {
		t := time.NewTicker(settleEvery)
		defer t.Stop()
		told := false
		for {
			err := p.Settle(ctx, time.Now())
			if err != nil && !told && ctx.Err() == nil {
				p.cfg.Log.Warn("the ledger cannot be reached, or refuses; tabs go on without it", "err", err)
			} else if err == nil && told {
				p.cfg.Log.Info("the ledger answers again")
			}
			told = err != nil
			select {
			case <-ctx.Done():
				return nil
			case <-t.C:
			case <-p.kick:
				// Who opens tabs in a hurry does so each two seconds at most.
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(2 * time.Second):
				}
			}
		}
	})
	return g.Wait()
}

// Handle takes a datagram that came inside the session with peer. It checks signatures, writes nothing and does not wait: what
// follows from the message happens in the next Tick, which Serve brings forward.
func (p *Pay) Handle(now time.Time, peer ident.PublicKey, payload []byte) {
	m, err := ParseMessage(payload)
	if err != nil {
		p.mu.Lock()
		p.counts.Malformed++
		p.mu.Unlock()
		return
	}
	var ok bool
	switch m := m.(type) {
	case *VoucherMessage:
		if p.isOwn(&m.Voucher) {
			ok = p.hearEcho(now, peer, &m.Voucher)
		} else {
			ok = p.hearVoucher(now, peer, &m.Voucher)
		}
	case *Quote:
		ok = p.hearQuote(now, peer, m)
	case *DebtStatus:
		ok = p.hearStatus(now, peer, m)
	case *Receipt:
		ok = p.hearReceipt(now, peer, m)
	case *TabAnchor:
		ok = p.hearAnchor(now, peer, m)
	case *Ask:
		ok = p.hearAsk(now, peer, m)
	}
	if !ok {
		p.mu.Lock()
		p.counts.Refused++
		p.mu.Unlock()
		return
	}
	nudge(p.wake)
}

// isOwn tells a voucher that this node has signed, which a payee sends back, from one that the peer gives.
func (p *Pay) isOwn(v *tx.Voucher) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range p.debits {
		if d.tab != nil && d.tab.ID == v.Tab {
			return true
		}
	}
	return false
}

// Tick reads the meter, judges, signs and books; it returns when to come again. Calls wait for each other.
func (p *Pay) Tick(now time.Time) time.Duration {
	p.ticking.Lock()
	defer p.ticking.Unlock()
	readings := p.cfg.Meter.Readings()

	p.mu.Lock()
	tariff := p.cfg.Tariff()
	for i := range readings {
		if r := &readings[i]; r.Service.valid() {
			p.absorbLocked(r, &tariff, now)
		}
	}
	busy, sign := false, false
	for _, c := range p.credits {
		p.judgeLocked(c, &tariff, now)
		busy = busy || c.busy(now)
	}
	for _, d := range p.debits {
		sign = p.wantsLocked(d, now) || sign
		busy = busy || d.busy(now)
	}
	blocked := now.Before(p.retryAt)
	p.shrinkLocked(now)
	p.mu.Unlock()

	if !blocked {
		var durable []Reading
		var err error
		if sign {
			if durable, err = p.cfg.Meter.Commit(now); err != nil {
				p.cfg.Log.Error("nothing is paid while the meter cannot keep its counts", "err", err)
			}
		}
		p.commit(now, durable, err == nil && sign)
	}

	p.mu.Lock()
	type turn struct {
		id ID
		v  Verdict
	}
	var turns []turn
	for _, c := range p.credits {
		v := c.verdict(&tariff)
		if v != c.told || !c.toldOnce || v.FreeTier && now.Sub(c.toldAt) >= tellEvery && now.Sub(c.moved) < tellEvery {
			c.told, c.toldOnce, c.toldAt = v, true, now
			turns = append(turns, turn{c.ID, v})
		}
	}
	for _, id := range p.forgotten {
		turns = append(turns, turn{id, Verdict{}})
	}
	p.forgotten = nil
	out := p.out
	p.out = nil
	p.mu.Unlock()
	for _, m := range out {
		_ = p.cfg.Send(m.to, m.payload) // a datagram may get lost: all that matters is said again
	}
	if p.cfg.Enforce != nil {
		slices.SortFunc(turns, func(a, b turn) int { return compareID(a.id, b.id) })
		for _, t := range turns {
			p.cfg.Enforce(t.id, t.v)
		}
	}
	if busy {
		return every
	}
	return idleEvery
}

func compareID(a, b ID) int {
	return cmp.Or(bytes.Compare(a.Peer[:], b.Peer[:]), cmp.Compare(a.Service, b.Service))
}

// absorbLocked takes a reading into its account, which it makes.
func (p *Pay) absorbLocked(r *Reading, tariff *Tariff, now time.Time) {
	switch r.Role {
	case Payee:
		c := p.credits[r.ID]
		if c == nil {
			c = p.newCreditLocked(r.ID)
		}
		c.readAt = now
		p.meterCreditLocked(c, r, tariff, now)
	case Payer:
		d := p.debits[r.ID]
		if d == nil {
			d = p.newDebitLocked(r.ID)
		}
		p.meterDebitLocked(d, r, now)
	}
}

// commit makes durable what has changed, and only then acts on it: vouchers that came are booked, vouchers that were signed go
// out.
func (p *Pay) commit(now time.Time, durable []Reading, sign bool) {
	p.writing.Lock()
	defer p.writing.Unlock()
	p.mu.Lock()
	if sign {
		for i := range durable {
			if r := &durable[i]; r.Role == Payer && r.Service.valid() {
				if d := p.debits[r.ID]; d != nil {
					p.meterDebitLocked(d, r, now)
				}
			}
		}
		p.signLocked(now)
	}
	book := sign
	for _, c := range p.credits {
		book = book || c.pending != nil && (c.state >= Due || now.Sub(c.pendingAt) >= bookEvery) || c.pendingTab != nil
	}
	var b []Entry
	for _, c := range p.credits {
		if c.writing = c.stage(book, now); c.writing {
			b = append(b, c.entries()...)
		}
	}
	for _, d := range p.debits {
		if d.writing = d.stage(now); d.writing {
			b = append(b, d.entry())
		}
	}
	if len(b) == 0 {
		p.mu.Unlock()
		return
	}
	b = append(b, p.spent.entries(now)...)
	b = p.closedLinesLocked(b)
	p.mu.Unlock()

	err := p.cfg.Store.Write(b)

	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		if p.failed == nil {
			p.cfg.Log.Error("tabs cannot be written: nothing is signed or booked until they can", "err", err)
		}
		p.failed, p.retryAt = err, now.Add(2*time.Second)
	} else {
		p.failed = nil
	}
	for _, c := range p.credits {
		p.settleStageLocked(c, err == nil, now)
	}
	for _, d := range p.debits {
		p.settleSignLocked(d, err == nil, now)
	}
	p.linesWrittenLocked(err == nil)
}

// Flush writes all that has changed since it was last written.
func (p *Pay) Flush(now time.Time) error {
	p.ticking.Lock()
	defer p.ticking.Unlock()
	p.mu.Lock()
	for _, c := range p.credits {
		c.writeNow = c.writeNow || c.dirty
	}
	for _, d := range p.debits {
		d.writeNow = d.writeNow || d.dirty
	}
	p.mu.Unlock()
	p.commit(now, nil, false)
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

// shrinkLocked forgets accounts that owe nothing and hold nothing, such as guests', when the meter has known nothing of them for
// long, or for a little while when there are too many. Who has a debt or a tab stays, and is bounded by membership.
func (p *Pay) shrinkLocked(now time.Time) {
	for id, c := range p.credits {
		if idle := now.Sub(c.readAt); idle < guestLasts && (len(p.credits) <= maxAccounts || idle < tellEvery) {
			continue
		}
		if c.tab == nil && c.pendingTab == nil && c.owed() <= 0 && !c.stored {
			delete(p.credits, id)
			if c.told.FreeTier {
				p.forgotten = append(p.forgotten, id)
			}
		}
	}
	for id, d := range p.debits {
		if len(p.debits) <= maxAccounts {
			break
		}
		if d.tab == nil && !d.stored {
			delete(p.debits, id)
		}
	}
}

func (p *Pay) sendLocked(to ident.PublicKey, m Message) {
	p.out = append(p.out, message{to, m.AppendTo(nil)})
}

// Verdict says what a peer may have. Who is not known may have all: nothing has been carried for it yet.
func (p *Pay) Verdict(id ID) Verdict {
	t := p.cfg.Tariff()
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.credits[id]
	if c == nil {
		return Verdict{}
	}
	return c.verdict(&t)
}

// bucket is a rate limit that needs no clock of its own.
type bucket struct {
	left float64
	at   time.Time
}

func (b *bucket) take(now time.Time, perSecond, burst float64) bool {
	if b.at.IsZero() {
		b.left = burst
	} else if d := now.Sub(b.at).Seconds(); d > 0 {
		b.left = min(burst, b.left+d*perSecond)
	}
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}
