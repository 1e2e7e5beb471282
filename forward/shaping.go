package forward

import (
	"context"
	"errors"
	"sync"

	"weft/ident"
	"weft/shape"
	"weft/wire"
)

// A shaped neighbour gets no more bits than its rate: what is to be sent is copied into a queue (package shape) and leaves it
// on the goroutine that runs Serve. Control goes first; the rest in fair shares, one for each pair of previous neighbour (or
// this node) and destination; who waits too long is dropped. Probes go past the queue: they measure the link, not the queue.
//
// Header and MAC are completed when a datagram leaves the queue, not when it enters. So counters go out in the order in which
// they were given, however the queue reorders; a datagram that the queue drops takes no counter, and the neighbour does not
// take it for loss on the link; and what waited through a rekeying leaves under the new key. The MAC covers the header and
// the payload's last bytes, both of which are in the copy.

// wireOverhead is what UDP and IPv6 add to a datagram on the line.
const wireOverhead = 48

// shaping is the queue of one neighbour.
type shaping struct {
	n       *Neighbour
	q       *shape.Shaper[*parcel]
	scratch []byte // of emit: a burst
}

// parcel is a waiting datagram, complete but for what Seal writes.
type parcel struct {
	b   []byte
	own bool // this node's

	from    *Neighbour // where it came from, and
	counted bool       // whether its tally knows it: of those that a curb holds
}

// Waiting datagrams are copies in buffers of three sizes; those above, which no link of today has, are left to the collector.
// A queue holds at most maxWaiting, so a shaped link takes no more than some 4 MiB, and mostly far less: 250 ms of its rate.
const (
	tinyParcel  = 256
	smallParcel = 2048
	largeParcel = 9216
	maxWaiting  = 2048
)

var (
	tinyParcels  = sync.Pool{New: func() any { return &parcel{b: make([]byte, 0, tinyParcel)} }}
	smallParcels = sync.Pool{New: func() any { return &parcel{b: make([]byte, 0, smallParcel)} }}
	largeParcels = sync.Pool{New: func() any { return &parcel{b: make([]byte, 0, largeParcel)} }}
)

func newParcel(d []byte, own bool) *parcel {
	var p *parcel
	switch {
	case len(d) <= tinyParcel:
		p = tinyParcels.Get().(*parcel)
	case len(d) <= smallParcel:
		p = smallParcels.Get().(*parcel)
	case len(d) <= largeParcel:
		p = largeParcels.Get().(*parcel)
	default:
		p = &parcel{}
	}
	p.b, p.own = append(p.b[:0], d...), own
	return p
}

func (p *parcel) free() {
	p.from = nil
	switch cap(p.b) {
	case tinyParcel:
		tinyParcels.Put(p)
	case smallParcel:
		smallParcels.Put(p)
	case largeParcel:
		largeParcels.Put(p)
	}
}

func newShaping(n *Neighbour) *shaping {
	s := &shaping{n: n}
	s.q = shape.NewShaper(shape.Config{MaxPackets: maxWaiting}, s.emit, func(p *parcel) {
		n.plane.c.shed.Add(1)
		p.free()
	})
	return s
}

// put queues a copy of a datagram whose TTL, class and destination are set. from is nil for this node's own.
func (s *shaping) put(from *Neighbour, h wire.Hop) {
	key := spread(from, h.Dest())
	p := newParcel(h, from == nil)
	if h.Class() == wire.ClassControl {
		s.q.SubmitUrgent(key, 1, len(h)+wireOverhead, p)
	} else {
		s.q.Submit(key, 1, len(h)+wireOverhead, p)
	}
}

// spread is the flow of what goes from a neighbour, nil for this node, to a destination.
func spread(from *Neighbour, dest ident.NodeID) uint64 {
	key := uint64(dest)
	if from != nil {
		key ^= uint64(from.index) * 0x9e3779b97f4a7c15 // over all bits
	}
	return key
}

// emit sends what is due, as few bursts.
func (s *shaping) emit(batch []*parcel) {
	for len(batch) > 0 {
		seg := len(batch[0].b)
		run, size := 1, seg
		for run < min(len(batch), MaxBurst) && len(batch[run-1].b) == seg && len(batch[run].b) <= seg && size+len(batch[run].b) <= MaxBurstBytes {
			size += len(batch[run].b)
			run++
		}
		s.send(batch[:run], seg)
		batch = batch[run:]
	}
}

// send seals and sends one burst.
func (s *shaping) send(run []*parcel, seg int) {
	n, c := s.n, &s.n.plane.c
	defer func() {
		for _, p := range run {
			p.free()
		}
	}()
	k := n.keys.Load()
	if k == nil {
		c.noKeys.Add(uint64(len(run)))
		return
	}
	counter := n.reserve(k, len(run))
	own := 0
	for _, p := range run {
		wire.Hop(p.b).Seal(k.send, wire.KindData, k.epoch, k.peerIndex, counter)
		counter++
		if p.own {
			own++
		}
	}
	c.sent.Add(uint64(own))
	c.relayed.Add(uint64(len(run) - own))
	buf := run[0].b
	if len(run) > 1 {
		s.scratch = s.scratch[:0]
		for _, p := range run {
			s.scratch = append(s.scratch, p.b...)
		}
		buf = s.scratch
	}
	if n.transmit(buf, seg, len(run)) != nil {
		return
	}
	n.handed.mu.Lock()
	defer n.handed.mu.Unlock()
	for _, p := range run {
		if f := n.handed.add(n.plane, wire.Hop(p.b)); p.own {
			f.OwnPackets++
			f.OwnBytes += uint64(len(p.b) - wire.HopLen)
		}
	}
}

// SetRate bounds what is sent to the neighbour, in bits/s with UDP and IP headers; 0 does not. A rate holds while Serve runs.
// What waits when a rate is taken away leaves at once.
func (n *Neighbour) SetRate(bitsPerSecond int64) {
	n.pace.mu.Lock()
	defer n.pace.mu.Unlock()
	n.pace.rate = max(bitsPerSecond, 0)
	n.shapeLocked()
}

// shapeLocked puts the rate in force: the packet path sees a queue when there is a rate and somebody who empties it.
func (n *Neighbour) shapeLocked() {
	s := n.pace.s
	if s == nil {
		return
	}
	if n.pace.rate == 0 || !n.pace.serving {
		n.queue.Store(nil)
		s.q.SetRate(0)
		return
	}
	s.q.SetRate(n.pace.rate)
	n.queue.Store(s)
}

// Serve lets the datagrams of a shaped neighbour go at its rate until ctx ends; what waits then is dropped. link runs it for
// links that have a rate. Without it a neighbour is not shaped.
func (n *Neighbour) Serve(ctx context.Context) error {
	n.pace.mu.Lock()
	if n.pace.serving {
		n.pace.mu.Unlock()
		return errors.New("forward: Serve runs already for this neighbour")
	}
	n.pace.serving = true
	if n.pace.s == nil {
		n.pace.s = newShaping(n)
	}
	s := n.pace.s
	n.shapeLocked()
	n.pace.mu.Unlock()
	defer func() {
		n.pace.mu.Lock()
		defer n.pace.mu.Unlock()
		n.pace.serving = false
		n.shapeLocked()
	}()
	return s.q.Serve(ctx)
}

// Queue returns the rate in force (bits/s; 0: not shaped) and what the queue of a shaped neighbour did and holds.
func (n *Neighbour) Queue() (rate int64, st shape.Stats) {
	n.pace.mu.Lock()
	defer n.pace.mu.Unlock()
	if s := n.pace.s; s != nil {
		st = s.q.Stats()
		if n.pace.serving {
			rate = n.pace.rate
		}
	}
	return rate, st
}
