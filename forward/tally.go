package forward

import (
	"weft/ident"
	"weft/wire"
)

// Flow counts what a neighbour handed over for one destination in one class. Bytes are those of the end-to-end packets.
type Flow struct {
	Dest    ident.NodeID
	Class   wire.Class
	Packets uint64
	Bytes   uint64
}

// Handed counts what was handed to a neighbour for one destination in one class: the other side of [Flow].
type Handed struct {
	Flow
	OwnPackets, OwnBytes uint64 // of these, what this node itself sent; the rest it relayed
}

type flowKey struct {
	dest  ident.NodeID
	class wire.Class
}

// maxFlows bounds the destinations counted one by one per neighbour and direction; the rest share the entry of NodeID zero. So
// do those that nobody has heard of: a neighbour that makes them up fills no memory, and no places of those that it pays for.
const maxFlows = 4096

// tally counts datagrams by destination and class. Who has one guards it.
type tally struct {
	flows   map[flowKey]*Handed
	lastKey flowKey
	last    *Handed // of lastKey
}

func newTally() tally { return tally{flows: map[flowKey]*Handed{}} }

// add books one datagram, and returns its entry.
func (t *tally) add(p *Plane, h wire.Hop) *Handed {
	key := flowKey{h.Dest(), h.Class()}
	f := t.last
	if f == nil || key != t.lastKey {
		f = t.find(p, key)
	}
	f.Packets++
	f.Bytes += uint64(len(h) - wire.HopLen)
	return f
}

// find returns the entry for a key, which may be the shared one.
func (t *tally) find(p *Plane, asked flowKey) *Handed {
	key := asked
	if key.class >= wire.NumClasses {
		key.class = wire.ClassBulk
	}
	f := t.flows[key]
	t.last = nil
	known := f != nil || key.dest == p.self || p.leadsTo(key.dest)
	if f == nil {
		if !known || len(t.flows) >= maxFlows {
			key.dest = 0
			f = t.flows[key]
		}
		if f == nil {
			f = &Handed{Flow: Flow{Dest: key.dest, Class: key.class}}
			t.flows[key] = f
		}
	}
	if known {
		t.lastKey, t.last = asked, f
	}
	return f
}
