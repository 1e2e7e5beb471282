// Package route is the routing core: a signed link-state database, kept equal with the neighbours', shortest paths with
// loop-free alternates over it, and an immutable forwarding table. docs/spec/route.md is the normative text.
//
// It is pure: events and messages in, messages and tables out. It has no socket, no goroutine, no clock and no random
// source of its own, so that ten thousand cores run in one process in virtual time. It imports ident and wire only, and
// knows neither links nor money. node drives it; lab/sim drives many.
//
// A [Router] is not safe for concurrent use: the caller serialises. Its [Table] is immutable and may be read by all.
//
// After every call the caller sends what Outbox returns, looks at Table, and calls Tick no later than Next.
package route

import (
	"fmt"
	"math"
	"slices"
	"time"

	"weft/ident"
	"weft/wire"
)

// Config is what a Router needs from outside.
type Config struct {
	Self      ident.PublicKey
	Community ident.Community
	Sign      func(msg []byte) ident.Signature // in ident.DomainLSA
	Verify    func(wire.LSAView) bool          // nil: LSAView.Verify
	Rand      func() uint64                    // jitter and salts
	Seq       uint64                           // the last sequence number stored, see Stats.Seq; zero when none is known
	Local     Local
	Limits    Limits
}

// Local is what this node says of itself beside its links.
type Local struct {
	Name     string        // at most 63 bytes
	Flags    wire.LSAFlags // leaf, metered
	Price    uint32        // carriage price, ncredit per MiB
	Position []byte        // wire.ExtPosition
	Gateway  []byte        // wire.ExtGateway

	Yggdrasil []byte // wire.ExtYggdrasil
	Lambda    uint32 // µs of path metric per 1,000,000 ncredit/MiB of a transit node's price; must be one value in a whole network
}

// Limits bound memory and CPU; zero fields take the default.
type Limits struct {
	Nodes       int           // LSAs kept (20,000)
	Bytes       int           // their size together (24 MiB)
	Waiting     int           // LSAs per neighbour whose place in the network is not known yet (1,024, and 512 KiB)
	VerifyRate  float64       // signature checks per second and neighbour (200) …
	VerifyBurst float64       // … after a burst for synchronisation (Nodes)
	Alternates  int           // neighbours looked at for alternates (16)
	Lifetime    time.Duration // of this node's LSA (4 h); refreshed after 3/8 of it
}

func (l Limits) orDefault() Limits {
	def := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	def(&l.Nodes, 20_000)
	def(&l.Bytes, 24<<20)
	def(&l.Waiting, 1024)
	def(&l.Alternates, 16)
	if l.VerifyRate <= 0 {
		l.VerifyRate = 200
	}
	if l.VerifyBurst <= 0 {
		l.VerifyBurst = float64(l.Nodes)
	}
	if l.Lifetime < time.Minute || l.Lifetime > wire.MaxLifetime*time.Second {
		l.Lifetime = 4 * time.Hour
	}
	return l
}

// LinkInfo describes one link to a neighbour whose key the link has proved. IDs are the caller's, never zero; several
// links may lead to one neighbour.
type LinkInfo struct {
	ID      uint32
	Peer    ident.PublicKey
	Cost    uint32 // µs; zero counts as one
	MTU     uint16 // bytes of end-to-end packet that fit
	Metered bool
}

// Message is a control message to send, reliably and in order, over a link.
type Message struct {
	Link  uint32
	Bytes []byte
}

const never = time.Duration(math.MaxInt64)

// Router is the routing core of one node.
type Router struct {
	cfg   Config
	lim   Limits
	self  ident.NodeID
	local Local

	seen time.Time     // the caller's clock at the last call
	now  time.Duration // our own, which never runs backwards

	db    database
	links []*link // by ID
	spf   spf
	own   origin
	table *Table
	stats Stats

	sweepAt time.Duration
	retryAt time.Duration
	promote []int32 // slots that may have made waiting LSAs plausible

	suspects []uint32
}

// New makes a router for a node without links. Self must be the key that Sign signs with.
func New(cfg Config, now time.Time) *Router {
	if cfg.Verify == nil {
		cfg.Verify = wire.LSAView.Verify
	}
	r := &Router{cfg: cfg, lim: cfg.Limits.orDefault(), self: cfg.Self.ID(), seen: now, sweepAt: sweepEvery, retryAt: never, table: &Table{}}
	r.db.init()
	r.spf.init()
	r.own.init(cfg.Seq)
	s := r.db.add(r.self, cfg.Self) // slot 0 is this node for ever
	r.db.entries[s].level = levelReachable
	if err := checkLocal(cfg.Local); err == nil {
		r.local = cfg.Local
	}
	r.originate()
	r.own.calm() // the first word does not count against the damping of the next
	r.runSPF()
	return r
}

// Self returns this node's id.
func (r *Router) Self() ident.NodeID { return r.self }

// Table returns the current table: a new pointer whenever something in it has changed.
func (r *Router) Table() *Table { return r.table }

// LinkUp adds a link. A link of the same ID that is still there goes down first.
func (r *Router) LinkUp(now time.Time, info LinkInfo) {
	r.advance(now)
	if r.link(info.ID) != nil {
		r.dropLink(info.ID)
	}
	l := r.newLink(info)
	at, _ := slices.BinarySearchFunc(r.links, info.ID, byLinkID)
	r.links = slices.Insert(r.links, at, l)
	if s, ok := r.db.byID[l.peer]; ok {
		r.raise(s)
	}
	r.sendDigest(l, false)
	r.run()
}

// LinkChanged tells of a new cost, MTU or metered flag. Unknown links and other keys than before are ignored.
func (r *Router) LinkChanged(now time.Time, info LinkInfo) {
	r.advance(now)
	if l := r.link(info.ID); l != nil && l.info.Peer == info.Peer {
		info.Cost = max(info.Cost, 1)
		if l.info != info {
			l.info = info
			if l.ready {
				r.scheduleOrigin(gatherLinks)
				r.spf.links = true
				r.wantSPF(false)
			}
		}
	}
	r.run()
}

// LinkDown removes a link. Routes leave it at once; the news is flooded at once unless the node has been flapping.
func (r *Router) LinkDown(now time.Time, id uint32) {
	r.advance(now)
	if r.link(id) != nil {
		r.dropLink(id)
	}
	r.run()
}

// SetLocal changes what this node says of itself.
func (r *Router) SetLocal(now time.Time, local Local) error {
	if err := checkLocal(local); err != nil {
		return err
	}
	r.advance(now)
	if r.local.Lambda != local.Lambda || r.local.Flags != local.Flags {
		r.local = local
		r.reweigh()
		r.wantSPF(false)
	}
	r.local = local
	r.scheduleOrigin(gatherLinks)
	r.run()
	return nil
}

func checkLocal(l Local) error {
	size := 9 + len(l.Name) + len(l.Position) + len(l.Gateway)
	if len(l.Yggdrasil) > 0 {
		size += 3 + len(l.Yggdrasil)
	}
	switch {
	case len(l.Name) > 63:
		return fmt.Errorf("node name has %d bytes, at most 63", len(l.Name))
	case l.Flags&^(wire.FlagLeaf|wire.FlagMetered) != 0:
		return fmt.Errorf("unknown node flags %#x", uint16(l.Flags))
	case size > wire.MaxExtBytes:
		return fmt.Errorf("name, position and offers take %d bytes together, at most %d", size, wire.MaxExtBytes)
	}
	return nil
}

// Suspects returns, once, the links whose neighbour another node has just stopped listing. It may be dead: the caller does
// well to probe them at once, since otherwise a quiet link finds out only when traffic runs into it.
func (r *Router) Suspects() []uint32 {
	s := r.suspects
	r.suspects = nil
	return s
}

// Tick does what is due. Calling it early or late is harmless.
func (r *Router) Tick(now time.Time) {
	r.advance(now)
	r.run()
}

// Next returns when Tick has something to do or Outbox something to send.
func (r *Router) Next() time.Time {
	at := min(r.sweepAt, r.retryAt, r.own.due(), r.spf.due())
	for _, l := range r.links {
		at = min(at, l.due())
	}
	return r.seen.Add(max(0, at-r.now))
}

// advance moves the router's own clock. It counts only steps forward, so that a wall clock set back neither stops the
// timers nor makes anything old again.
func (r *Router) advance(now time.Time) {
	if step := now.Sub(r.seen); step > 0 {
		r.now += step
	}
	r.seen = now
}

func (r *Router) run() {
	for _, l := range r.links {
		if !l.ready && r.now >= l.upAt+readyAfter { // a neighbour that never finishes still gets a link
			l.ready = true
			r.scheduleNews(r.gatherTime())
		}
		if r.now >= l.resyncAt {
			l.resyncAt = never
			r.sendDigest(l, true)
		}
	}
	r.promoteWaiting()
	if r.now >= r.retryAt {
		r.retryWaiting()
	}
	if r.now >= r.own.due() {
		r.originate()
	}
	if r.now >= r.sweepAt {
		r.sweep()
	}
	r.promoteWaiting()
	if r.now >= r.spf.due() {
		r.runSPF()
	}
}

func (r *Router) link(id uint32) *link {
	if at, ok := slices.BinarySearchFunc(r.links, id, byLinkID); ok {
		return r.links[at]
	}
	return nil
}

// bucket is a token bucket that fills as the router's clock runs.
type bucket struct {
	level, rate, burst float64
	at                 time.Duration
}

func newBucket(rate, burst float64, now time.Duration) bucket { return bucket{burst, rate, burst, now} }

// take takes n tokens, or none and reports false.
func (b *bucket) take(now time.Duration, n float64) bool {
	b.level = min(b.burst, b.level+b.rate*(now-b.at).Seconds())
	b.at = now
	if b.level < n {
		return false
	}
	b.level -= n
	return true
}
