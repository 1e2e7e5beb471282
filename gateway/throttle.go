package gateway

import (
	"context"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weft/ident"
	"weft/shape"
	"weft/tun"
)

// A client that owes gets no more than its throttle lets pass, both directions together. What is over waits in a queue of its own
// (package shape), in front of those of the line, whose shares others keep: what is tiny goes first, then all its flows in turn.
// So beside its own flood it still gets answers to pings, names and the first packets of pages.

const (
	maxThrottled = maxMaxLeases // clients: there is always room for all that have a lease
	maxHeld      = 2048         // packets that wait in all; beyond it each client has its part of them
	maxHeldEach  = 64
	leastHeld    = 8
	heldFlows    = 64                    // of one client told apart
	heldTarget   = 50 * time.Millisecond // delay that may stand: at a few hundred kbit/s TCP loses too much with less
	heldGrain    = time.Millisecond
	billed       = 64 // bytes that a packet is billed beyond its own, so that a rate is one of billed bytes: docs/spec/meter.md section 1
)

// throttles lets go what throttled clients may send and get, on one goroutine for all of them.
type throttles struct {
	g     *Gateway
	start time.Time
	wake  chan struct{}
	seed  maphash.Seed

	mu      sync.Mutex  // guards what follows and the queues; taken after leases.mu
	busy    []*throttle // that have something waiting
	waiting int         // packets of all
}

// throttle is the queue of one client, kept while it has leases and while it has none.
type throttle struct {
	of   *throttles
	rate atomic.Int64 // bit/s
	q    *shape.Queue[*item]
	busy bool
}

func newThrottles(g *Gateway) *throttles {
	return &throttles{g: g, start: g.start, wake: make(chan struct{}, 1), seed: maphash.MakeSeed()}
}

// Throttle gives a client at most kbit (kbit/s of 1000 bit, billed bytes: 64 more than its own for each packet) of outside
// traffic, both directions together, from now on and also of what waits already; 0 lifts it. It holds with whatever lease the
// client has, also later ones, until lifted, and while Serve runs: without it nothing of this client passes. Other clients
// notice nothing. Where there are 8,192 already, one without a lease makes way: who is to be throttled is told again now and then
// while it has traffic.
func (g *Gateway) Throttle(client ident.PublicKey, kbit uint32) {
	s := g.leases
	s.mu.Lock()
	defer s.mu.Unlock()
	th := s.slow[client]
	if th == nil {
		if kbit == 0 {
			return
		}
		if len(s.slow) >= maxThrottled {
			if s.byKey[client] == nil || !s.forgetThrottle() {
				return
			}
		}
		th = &throttle{of: g.held}
		th.q = shape.NewQueue(shape.Config{MaxPackets: maxHeldEach, MaxFlows: heldFlows, Target: heldTarget}, func(it *item) {
			g.refuse(it.lease, overRate)
			it.line.put(it)
		})
		s.slow[client] = th
	}
	th.set(int64(kbit) * 1000)
	if kbit == 0 {
		delete(s.slow, client)
		th = nil // what waits goes on at once
	}
	if l := s.byKey[client]; l != nil {
		l.throttle.Store(th)
	}
}

// forgetThrottle makes room: of a client that has no lease. Lest strangers with ever new keys fill it and all after them go free.
func (s *leases) forgetThrottle() bool {
	for k, th := range s.slow {
		if s.byKey[k] == nil {
			th.set(0)
			delete(s.slow, k)
			return true
		}
	}
	return false
}

func (th *throttle) set(rate int64) {
	h := th.of
	h.mu.Lock()
	if th.rate.Swap(rate) == rate {
		h.mu.Unlock()
		return
	}
	before := th.q.Len()
	th.q.SetRate(h.now(), rate)
	h.waiting += th.q.Len() - before
	h.mu.Unlock()
	h.kick()
}

func (h *throttles) now() int64 { return int64(time.Since(h.start)) }

func (h *throttles) kick() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// put queues a packet. It does not block.
func (th *throttle) put(it *item) {
	h := th.of
	it.held = true
	var p packet
	p.parse(it.pkt.Data, true) // on an error the key is what could be read, which is the same for all like it
	key, size := maphash.Comparable(h.seed, p.key), it.billed()
	now := h.now()
	h.mu.Lock()
	before := th.q.Len()
	if h.waiting >= maxHeld && before >= max(maxHeld/len(h.busy), leastHeld) {
		h.mu.Unlock()
		h.g.refuse(it.lease, overRate)
		it.line.put(it)
		return
	}
	if size <= tiny+billed {
		th.q.PushUrgent(now, key, 1, size, it)
	} else {
		th.q.Push(now, key, 1, size, it)
	}
	h.waiting += th.q.Len() - before
	first := !th.busy
	if first {
		th.busy = true
		h.busy = append(h.busy, th)
	}
	h.mu.Unlock()
	if first {
		h.kick()
	}
}

// billed is how many bytes a packet or super-packet is billed.
func (it *item) billed() int {
	p := &it.pkt
	if p.SegSize != 0 {
		if hdr, ok := tun.HeaderLen(p.Data); ok {
			n := (len(p.Data) - hdr + int(p.SegSize) - 1) / int(p.SegSize)
			return len(p.Data) + (n-1)*hdr + n*billed
		}
	}
	return len(p.Data) + billed
}

// serve lets go what has become due until ctx ends; what waits then is dropped.
func (h *throttles) serve(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	room := make([]*item, 0, shape.Batch)
	for ctx.Err() == nil {
		batch, wait := h.due(room)
		for i, it := range batch {
			if it.lease.families.Load() != 0 {
				it.line.submit(it.lease, it)
			} else { // the lease has ended, and its addresses may be another's
				it.line.put(it)
			}
			batch[i] = nil
		}
		if len(batch) == cap(room) {
			continue // perhaps there is more
		}
		var due <-chan time.Time
		if wait > 0 {
			timer.Reset(max(time.Duration(wait), heldGrain))
			due = timer.C
		}
		select {
		case <-ctx.Done():
		case <-due:
		case <-h.wake:
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, th := range h.busy {
		th.q.Drain()
		th.busy = false
	}
	h.busy, h.waiting = nil, 0
}

// due fills a batch with what may go now, and says how many nanoseconds the next one waits; 0: nothing does.
func (h *throttles) due(batch []*item) (_ []*item, wait int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	for _, th := range h.busy {
		before := th.q.Len()
		for len(batch) < cap(batch) {
			it, ok, w := th.q.Pop(now)
			if !ok {
				if w > 0 && (wait == 0 || w < wait) {
					wait = w
				}
				break
			}
			batch = append(batch, it)
		}
		h.waiting += th.q.Len() - before
	}
	h.busy = slices.DeleteFunc(h.busy, func(th *throttle) bool {
		th.busy = th.q.Len() > 0
		return !th.busy
	})
	return batch, wait
}
