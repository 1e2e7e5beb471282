package forward

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"weft/ident"
	"weft/shape"
	"weft/wire"
)

// A throttled neighbour owes for the gateway traffic that this node relays: as the gateway's side of the link it pays for what
// comes from it to users, and for what goes to it for gateways. Of both together it gets no more than its rate. What is over
// waits in a queue (package shape): what is tiny goes first, the rest in fair shares for each pair of previous neighbour and
// destination, so that behind one user's flood others can still browse.
//
// A datagram from the neighbour counts as handed over (Flow) when it leaves the queue, not when it enters: nobody is billed for
// what was held back until it was dropped. All routes are looked up then.

// curb is the queue of a throttled neighbour. It is made at the first Throttle, and empties at once while there is no rate.
type curb struct {
	mu sync.Mutex // guards what follows
	q  *shape.Queue[*parcel]
}

const (
	maxHeld     = 512                   // datagrams that wait for one neighbour
	heldTarget  = 50 * time.Millisecond // delay that may stand: at a few hundred kbit/s TCP loses too much with less
	heldFlows   = 256
	tinyHeld    = 256 // bytes of a datagram that goes first: acknowledgements, questions for names, pings, calls
	throttleGap = time.Millisecond
)

// Throttle bounds the gateway traffic (wire.ClassGateway) that this node relays and for which this neighbour owes as the
// gateway's side, both directions together: what came from it for a destination that is no gateway, and what is to be sent to it
// for one that is (SetGateways). kbit is in kbit/s (1000 bit) of whole datagrams, hop header included; 0 lifts it. All
// else of the neighbour passes untouched. It holds while [Plane.Serve] runs.
func (n *Neighbour) Throttle(kbit uint32) {
	p := n.plane
	p.mu.Lock()
	defer p.mu.Unlock()
	c := n.curbed
	if c == nil {
		if slots := *p.slots.Load(); kbit == 0 || slots[n.index&slotMask] != n {
			return
		}
		c = &curb{q: shape.NewQueue(shape.Config{MaxPackets: maxHeld, MaxFlows: heldFlows, Target: heldTarget}, func(x *parcel) {
			p.c.shed.Add(1)
			x.free()
		})}
		n.curbed = c
		p.curbed = append(slices.Clone(p.curbed), n) // Serve goes through the one before
	}
	c.mu.Lock()
	c.q.SetRate(p.now(), int64(kbit)*1000)
	c.mu.Unlock()
	n.throttleLocked()
	p.kick()
}

// throttleLocked shows the packet path the queue when there is a rate, and somebody who empties it.
func (n *Neighbour) throttleLocked() {
	n.curbed.mu.Lock()
	limited := n.curbed.q.Rate() != 0
	n.curbed.mu.Unlock()
	if limited && n.plane.serving {
		n.curb.Store(n.curbed)
	} else {
		n.curb.Store(nil)
	}
}

// SetGateways says which nodes offer a way to the internet: Throttle tells by it which side of a link owes. The caller must not
// change ids afterwards.
func (p *Plane) SetGateways(ids map[ident.NodeID]struct{}) { p.gateways.Store(&ids) }

func (p *Plane) isGateway(id ident.NodeID) bool {
	_, ok := (*p.gateways.Load())[id]
	return ok
}

func (p *Plane) now() int64 { return int64(time.Since(p.start)) }

func (p *Plane) kick() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// hold queues a copy of a datagram as it came from a neighbour. counted says that its tally knows it.
func (p *Plane) hold(c *curb, from *Neighbour, h wire.Hop, counted bool) {
	x := newParcel(h, false)
	x.from, x.counted = from, counted
	key := spread(from, h.Dest())
	now := p.now()
	c.mu.Lock()
	first := c.q.Len() == 0
	if len(h) <= tinyHeld {
		c.q.PushUrgent(now, key, 1, len(h), x)
	} else {
		c.q.Push(now, key, 1, len(h), x)
	}
	c.mu.Unlock()
	if first {
		p.kick()
	}
}

// Serve lets the datagrams of throttled neighbours go at their rates until ctx ends; what waits then is dropped. Without it no
// neighbour is throttled.
func (p *Plane) Serve(ctx context.Context) error {
	if !p.serve(true) {
		return errors.New("forward: Serve runs already for this plane")
	}
	defer p.serve(false)
	timer := time.NewTimer(0)
	defer timer.Stop()
	batch := make([]*parcel, 0, shape.Batch)
	for ctx.Err() == nil {
		p.mu.Lock()
		curbed := p.curbed
		p.mu.Unlock()
		next, more := time.Duration(0), false // 0: nothing waits
		for _, n := range curbed {
			got, wait := n.curbed.due(p.now(), batch)
			for i, x := range got {
				p.letGo(x)
				got[i] = nil
			}
			more = more || len(got) == cap(batch)
			if wait > 0 && (next == 0 || wait < next) {
				next = wait
			}
		}
		if more {
			continue
		}
		var due <-chan time.Time
		if next > 0 {
			timer.Reset(max(next, throttleGap))
			due = timer.C
		}
		select {
		case <-ctx.Done():
		case <-due:
		case <-p.wake:
		}
	}
	return nil
}

// serve puts all throttles in force, or out of it. It fails when they are.
func (p *Plane) serve(on bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if on && p.serving {
		return false
	}
	p.serving = on
	for _, n := range p.curbed {
		n.throttleLocked()
		if !on {
			n.curbed.drain()
		}
	}
	return true
}

// due takes what may go now, and says how long the next one waits; 0 when there is none, or the batch is full.
func (c *curb) due(now int64, batch []*parcel) ([]*parcel, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(batch) < cap(batch) {
		x, ok, wait := c.q.Pop(now)
		if !ok {
			return batch, time.Duration(wait)
		}
		batch = append(batch, x)
	}
	return batch, 0
}

func (c *curb) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.q.Drain()
}

// letGo sends a datagram on its way that was held.
func (p *Plane) letGo(x *parcel) {
	defer x.free()
	h := wire.Hop(x.b)
	if !x.counted {
		x.from.mu.Lock()
		x.from.flows.add(p, h)
		x.from.mu.Unlock()
	}
	if h.TTL() <= 1 {
		p.c.ttl.Add(1)
		return
	}
	to, why := p.pick(h.Dest(), x.from)
	if !p.transit.Load() {
		to, why = nil, &p.c.noRoute
	}
	if to == nil {
		why.Add(1)
		return
	}
	lowerTTL(h)
	if q := to.queue.Load(); q != nil {
		q.put(x.from, h)
		return
	}
	k := to.keys.Load()
	if k == nil {
		p.c.noKeys.Add(1)
		return
	}
	h.Seal(k.send, wire.KindData, k.epoch, k.peerIndex, to.reserve(k, 1))
	p.c.relayed.Add(1)
	if to.transmit(h, len(h), 1) == nil {
		to.hand(keyOf(h), 1, len(h)-wire.HopLen, false)
	}
}

// uncurb ends what waits for a neighbour that is gone. Plane.mu is held.
func (p *Plane) uncurb(n *Neighbour) {
	if n.curbed == nil {
		return
	}
	n.curb.Store(nil)
	n.curbed.drain()
	p.curbed = slices.DeleteFunc(slices.Clone(p.curbed), func(x *Neighbour) bool { return x == n })
}
