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
// for one that is (SetGateways). kbit is in kbit/s (1000 bit) of whole datagrams, hop header included: of billed bytes; 0 lifts
// it, and what waits leaves at once. All else of the neighbour passes untouched.
func (n *Neighbour) Throttle(kbit uint32) {
	p, rate := n.plane, int64(kbit)*1000
	p.mu.Lock()
	c := n.curbed
	if c == nil {
		if slots := *p.slots.Load(); kbit == 0 || slots[n.index&slotMask] != n {
			p.mu.Unlock()
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
	same := c.q.Rate() == rate
	if !same {
		c.q.SetRate(p.now(), rate)
		n.curb.Store(c)
		if kbit == 0 {
			n.curb.Store(nil)
		}
	}
	c.mu.Unlock()
	p.mu.Unlock()
	if !same {
		p.stir(c)
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

// stir has what is due of a queue let go: by Serve, or here where nobody runs it.
func (p *Plane) stir(c *curb) {
	if p.serving.Load() {
		select {
		case p.wake <- struct{}{}:
		default:
		}
		return
	}
	var room [4]*parcel
	for more := true; more; {
		more, _ = p.release(c, room[:0])
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
	if first || !p.serving.Load() {
		p.stir(c)
	}
}

// Serve lets what waits for throttled neighbours go the moment it is due, until ctx ends; what waits then is dropped. Without it
// rates hold as well, but what waits leaves only when more comes.
func (p *Plane) Serve(ctx context.Context) error {
	if !p.serving.CompareAndSwap(false, true) {
		return errors.New("forward: Serve runs already for this plane")
	}
	defer func() {
		p.serving.Store(false)
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, n := range p.curbed {
			n.curbed.drain()
		}
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	room := make([]*parcel, 0, shape.Batch)
	for ctx.Err() == nil {
		p.mu.Lock()
		curbed := p.curbed
		p.mu.Unlock()
		again, next := false, time.Duration(0) // 0: nothing waits
		for _, n := range curbed {
			more, wait := p.release(n.curbed, room)
			again = again || more
			if wait > 0 && (next == 0 || wait < next) {
				next = wait
			}
		}
		if again {
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

// release lets go a batch of what is due. It reports whether there may be more, or how long the next one waits; 0: there is none.
func (p *Plane) release(c *curb, batch []*parcel) (more bool, wait time.Duration) {
	c.mu.Lock()
	now := p.now()
	for len(batch) < cap(batch) {
		x, ok, ns := c.q.Pop(now)
		if !ok {
			wait = time.Duration(ns)
			break
		}
		batch = append(batch, x)
	}
	c.mu.Unlock()
	for i, x := range batch {
		p.letGo(x)
		batch[i] = nil
	}
	return len(batch) == cap(batch), wait
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
