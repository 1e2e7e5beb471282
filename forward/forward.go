// Package forward is the packet path: a batch of datagrams comes in from a neighbour, each is checked against its hop
// header, looked up, and leaves again for the next neighbour or for this node. Payloads are never decrypted here.
//
// Only link adds neighbours, only node sets tables; session is the [Local] that gets what is addressed to this node.
// A [Receiver] belongs to one goroutine; everything else is safe for concurrent use. No goroutine is started and nothing
// is allocated per packet. link runs [Neighbour.Serve] for links with a rate, node [Plane.Serve] for neighbours that it
// throttles. forward knows no money: it counts what came and what went per (neighbour, destination, class, relays passed),
// others draw conclusions and tell it whom to throttle.
//
// What happens to one datagram (docs/spec/wire.md section 2):
//
//	          short, unknown index or epoch, bad MAC, replay
//	arrives ────────────────────────────────────────────────► counted, dropped
//	   │ authentic
//	   ├─ probe ─────────────► Events.Probe
//	   ├─ for this node ─────► Sink.Deliver
//	   ├─ gateway traffic that a throttled neighbour owes for ─► copied into its queue ─► dropped, or due: goes on here
//	   ├─ ttl ≤ 1, no route, or only back where it came from ► counted, dropped
//	   └─ else ttl-1 ──┬─ next hop has no rate ─► new counter, new MAC ─► its Sender
//	                   └─ next hop is shaped ─► copied into its queue ─┬─ no room, late ─► counted, dropped
//	                                                                   └─ due ─► new counter, new MAC ─► its Sender
//
// Invariants: a datagram that is not authentic and fresh is never forwarded, delivered or counted as traffic; a counter
// is used at most once per link direction and epoch, and given at the moment of sending: a queue reorders no counters and
// its drops leave no gaps. What is counted as handed to a neighbour, its Sender took; both ends of a link count the same
// relays passed.
package forward

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"weft/ident"
	"weft/wire"
)

// Endpoint is where a neighbour's datagrams come from or go to. IPv4 is stored 4-in-6. Via numbers the socket or stream.
type Endpoint struct {
	IP    [16]byte
	Scope uint32
	Port  uint16
	Via   uint16
}

// AddrPort returns the endpoint's address; the zone of a link-local address is its interface number.
func (e Endpoint) AddrPort() netip.AddrPort {
	a := netip.AddrFrom16(e.IP).Unmap()
	if e.Scope != 0 && a.Is6() {
		a = a.WithZone(fmt.Sprint(e.Scope))
	}
	return netip.AddrPortFrom(a, e.Port)
}

// Sender sends buf as datagrams of seg bytes each (the last may be shorter), at most [MaxBurst] of them and
// [MaxBurstBytes] in all. It keeps nothing of buf and is safe for concurrent use.
type Sender interface {
	Send(buf []byte, seg int) error
}

// Bounds of one Sender.Send: what one UDP GSO send takes (Linux UDP_MAX_SEGMENTS, 16-bit UDP length).
const (
	MaxBurst      = 64
	MaxBurstBytes = 65000
)

// Events tells the link room what the packet path saw of a neighbour. Calls come from reader goroutines and must not block.
type Events interface {
	// Probe hands over an authentic, fresh probe: 8 bytes of the destination field and 16 of payload, all under the MAC.
	Probe(from Endpoint, dest uint64, payload [wire.TagLen]byte)
	// Moved says that the newest authentic datagram came from another endpoint than the one before.
	Moved(from Endpoint)
}

// Local makes sinks for what is addressed to this node.
type Local interface {
	NewSink() Sink
}

// Sink takes end-to-end packets on one goroutine. dgram is the whole datagram, hop header included as it came: wire.DefaultTTL
// less its TTL are the relays that it passed, if its source is honest. The packet starts at wire.HopLen. The sink may overwrite
// all of it and must be done with it when Flush returns.
type Sink interface {
	Deliver(dgram []byte, via *Neighbour)
	Flush()
}

// NextHop is a forwarding entry. Alternate may be nil; it is loop-free, so it is used the moment Primary is down.
type NextHop struct {
	Primary, Alternate *Neighbour
}

// Table maps destinations to next hops. It is immutable once given to SetTable.
type Table map[ident.NodeID]NextHop

// Counts are what the plane did with datagrams since it was made. Relayed and Sent count what was given to a Sender, for shaped
// links when it leaves the queue.
type Counts struct {
	Relayed, Delivered, Sent       uint64
	NoRoute, TTLExpired, Bounced   uint64 // Bounced: the only way was back
	Malformed, UnknownLink, BadMAC uint64
	Replayed, SendErrors, NoKeys   uint64
	Shed                           uint64 // by the queues of shaped links: no room, or waited too long
}

// Plane is the packet path of one node.
type Plane struct {
	self  ident.NodeID
	local Local

	table   atomic.Pointer[Table]
	slots   atomic.Pointer[[]*Neighbour] // copy on write; index & slotMask finds the neighbour
	transit atomic.Bool

	gateways atomic.Pointer[map[ident.NodeID]struct{}]
	start    time.Time // of now
	serving  atomic.Bool
	wake     chan struct{} // for Serve

	c counters

	mu     sync.Mutex   // guards writes to slots, and what follows
	curbed []*Neighbour // that have a curb; copy on write
}

type counters struct {
	relayed, delivered, sent       atomic.Uint64
	noRoute, ttl, bounced          atomic.Uint64
	malformed, unknownLink, badMAC atomic.Uint64
	replayed, sendErrors, noKeys   atomic.Uint64
	shed                           atomic.Uint64
}

const (
	maxNeighbours = 1 << 12
	slotMask      = maxNeighbours - 1
)

// New makes the packet path of node self. local takes what is addressed to it.
func New(self ident.NodeID, local Local) *Plane {
	p := &Plane{self: self, local: local, start: time.Now(), wake: make(chan struct{}, 1)}
	p.table.Store(&Table{})
	p.slots.Store(&[]*Neighbour{})
	p.transit.Store(true)
	p.gateways.Store(&map[ident.NodeID]struct{}{})
	return p
}

// SetTable replaces the forwarding table. The caller must not change t afterwards.
func (p *Plane) SetTable(t Table) { p.table.Store(&t) }

// SetTransit says whether datagrams of others are relayed at all; a leaf relays none.
func (p *Plane) SetTransit(on bool) { p.transit.Store(on) }

// Counts returns the plane's counters.
func (p *Plane) Counts() Counts {
	c := &p.c
	return Counts{
		Relayed: c.relayed.Load(), Delivered: c.delivered.Load(), Sent: c.sent.Load(),
		NoRoute: c.noRoute.Load(), TTLExpired: c.ttl.Load(), Bounced: c.bounced.Load(),
		Malformed: c.malformed.Load(), UnknownLink: c.unknownLink.Load(), BadMAC: c.badMAC.Load(),
		Replayed: c.replayed.Load(), SendErrors: c.sendErrors.Load(), NoKeys: c.noKeys.Load(),
		Shed: c.shed.Load(),
	}
}

// Add makes a neighbour. It carries nothing until Install gives it keys.
func (p *Plane) Add(peer ident.PublicKey, s Sender, ev Events) (*Neighbour, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := *p.slots.Load()
	slot := -1
	for i, n := range old {
		if n == nil {
			slot = i
			break
		}
	}
	if slot < 0 {
		if len(old) == maxNeighbours {
			return nil, fmt.Errorf("too many neighbours: at most %d", maxNeighbours)
		}
		slot = len(old)
	}
	slots := append([]*Neighbour(nil), old...)
	if slot == len(slots) {
		slots = append(slots, nil)
	}
	n := &Neighbour{
		plane: p, peer: peer, id: peer.ID(), sender: s, events: ev,
		index: rand.Uint32()&^slotMask | uint32(slot), // the high bits tell a neighbour from the slot's last one
		flows: newTally(),
	}
	n.handed.tally = newTally()
	n.up.Store(true)
	slots[slot] = n
	p.slots.Store(&slots)
	return n, nil
}

// Remove forgets a neighbour. Tables that still name it drop what they would send to it.
func (p *Plane) Remove(n *Neighbour) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n.up.Store(false)
	slots := append([]*Neighbour(nil), *p.slots.Load()...)
	if i := int(n.index & slotMask); i < len(slots) && slots[i] == n {
		slots[i] = nil
		p.slots.Store(&slots)
		p.uncurb(n)
	}
}

func (p *Plane) neighbour(index uint32) *Neighbour {
	slots := *p.slots.Load()
	if i := int(index & slotMask); i < len(slots) {
		if n := slots[i]; n != nil && n.index == index {
			return n
		}
	}
	return nil
}

// pick returns the neighbour that leads to dest: the primary, or its alternate when the primary is down or is the one
// the datagram came from.
func (p *Plane) pick(dest ident.NodeID, from *Neighbour) (*Neighbour, *atomic.Uint64) {
	hop, ok := (*p.table.Load())[dest]
	if !ok {
		return nil, &p.c.noRoute
	}
	if n := hop.Primary; n != nil && n != from && n.up.Load() {
		return n, nil
	}
	if n := hop.Alternate; n != nil && n != from && n.up.Load() {
		return n, nil
	}
	if from != nil && (hop.Primary == from || hop.Alternate == from) {
		return nil, &p.c.bounced
	}
	return nil, &p.c.noRoute
}

// leadsTo reports whether the table knows dest.
func (p *Plane) leadsTo(dest ident.NodeID) bool { _, ok := (*p.table.Load())[dest]; return ok }

// ErrNoRoute is returned by Send when no neighbour leads to the destination.
var ErrNoRoute = errors.New("no route to that node")

// Send starts datagrams of this node on their way to dest. buf holds datagrams of seg bytes each (the last may be
// shorter), each with wire.HopLen bytes free in front of its end-to-end packet. The bounds are those of Sender.Send. What is
// queued for a shaped neighbour is on its way: when it is dropped there, nobody hears of it.
func (p *Plane) Send(dest ident.NodeID, class wire.Class, buf []byte, seg int) error {
	n, _ := p.pick(dest, nil)
	if n == nil {
		p.c.noRoute.Add(1)
		return ErrNoRoute
	}
	k := n.keys.Load()
	if k == nil {
		p.c.noKeys.Add(1)
		return ErrNoRoute
	}
	count := (len(buf) + seg - 1) / seg
	if q := n.queue.Load(); q != nil {
		for at := 0; at < len(buf); at += seg {
			h := wire.Hop(buf[at:min(at+seg, len(buf))])
			h.Start(wire.DefaultTTL, class, dest)
			q.put(nil, h)
		}
		return nil
	}
	first := n.reserve(k, count)
	for at := 0; at < len(buf); at += seg {
		h := wire.Hop(buf[at:min(at+seg, len(buf))])
		h.Start(wire.DefaultTTL, class, dest)
		h.Seal(k.send, wire.KindData, k.epoch, k.peerIndex, first)
		first++
	}
	p.c.sent.Add(uint64(count))
	if err := n.transmit(buf, seg, count); err != nil {
		return err
	}
	n.hand(flowKey{dest: dest, class: class}, count, len(buf)-count*wire.HopLen, true)
	return nil
}

// coarse is the plane's clock for "when was a neighbour last heard": monotonic nanoseconds.
func coarse() int64 { return int64(time.Since(epoch)) }

var epoch = time.Now()
