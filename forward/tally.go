package forward

import (
	"weft/ident"
	"weft/wire"
)

// MaxHops is the most that is told apart of relays passed; what passed more counts as this many. It bounds what a neighbour
// that makes up TTLs can have counted apart.
const MaxHops = 16

// Flow counts what a neighbour handed over for one destination in one class. Bytes are those of the end-to-end packets.
type Flow struct {
	Dest  ident.NodeID
	Class wire.Class
	// Hops is how many relays datagrams of wire.ClassGateway had passed when they were on this link: 0 when the neighbour that
	// sends on it is their source. Both ends of the link count the same. It is only as true as the source's TTL and those of the
	// relays before. Of other classes 0.
	Hops    uint8
	Packets uint64
	Bytes   uint64
}

// Handed counts what was handed to a neighbour for one destination in one class: the other side of [Flow].
type Handed struct {
	Flow
	OwnPackets, OwnBytes uint64 // of these, what this node itself sent; the rest it relayed
}

// flowKey is what is counted apart.
type flowKey struct {
	dest  ident.NodeID
	class wire.Class
	hops  uint8
}

// keyOf reads the header as it is on the link that is counted: a relay has lowered the TTL of what it sends.
func keyOf(h wire.Hop) flowKey {
	k := flowKey{dest: h.Dest(), class: h.Class()}
	if k.class == wire.ClassGateway {
		k.hops = min(wire.DefaultTTL-min(h.TTL(), wire.DefaultTTL), MaxHops)
	}
	return k
}

// maxFlows bounds the destinations counted one by one per neighbour and direction; the rest share the entry of NodeID zero. So
// do those that nobody has heard of: a neighbour that makes them up fills no memory, and no places of those that it pays for.
// Nor do hops take places: each destination has room for all MaxHops+1 of them.
const maxFlows = 4096

// tally counts datagrams by destination, class and hops. Who has one guards it.
type tally struct {
	flows   map[flowKey]*entry // by destination and class alone; hops follow in a list
	lastKey flowKey
	last    *entry // of lastKey
}

type entry struct {
	Handed
	next *entry // of the same destination and class, with other hops
}

func newTally() tally { return tally{flows: map[flowKey]*entry{}} }

// add books one datagram, and returns its entry.
func (t *tally) add(p *Plane, h wire.Hop) *entry {
	key := keyOf(h)
	f := t.last
	if f == nil || key != t.lastKey {
		f = t.find(p, key)
	}
	f.Packets++
	f.Bytes += uint64(len(h) - wire.HopLen)
	return f
}

// find returns the entry for a key, which may be a shared one.
func (t *tally) find(p *Plane, asked flowKey) *entry {
	at := flowKey{dest: asked.dest, class: asked.class}
	if at.class >= wire.NumClasses {
		at.class = wire.ClassBulk
	}
	f := t.flows[at]
	t.last = nil
	known := f != nil || at.dest == p.self || p.leadsTo(at.dest)
	if f == nil {
		if !known || len(t.flows) >= maxFlows {
			at.dest = 0
			f = t.flows[at]
		}
		if f == nil {
			f = newEntry(at, asked.hops)
			t.flows[at] = f
		}
	}
	for f.Hops != asked.hops {
		if f.next == nil {
			f.next = newEntry(at, asked.hops)
		}
		f = f.next
	}
	if known {
		t.lastKey, t.last = asked, f
	}
	return f
}

func newEntry(at flowKey, hops uint8) *entry {
	return &entry{Handed: Handed{Flow: Flow{Dest: at.dest, Class: at.class, Hops: hops}}}
}

// all returns the entries.
func (t *tally) all() []Handed {
	out := make([]Handed, 0, len(t.flows))
	for _, f := range t.flows {
		for ; f != nil; f = f.next {
			out = append(out, f.Handed)
		}
	}
	return out
}
