// Package shape holds back what a line of a given rate cannot take yet, and decides who goes next: fair shares by weight,
// little delay for who sends little, a bound on the delay of who sends much, a bound on memory. It knows sizes and keys of
// what waits, and not what it is.
//
// [Queue] is the decision alone: no goroutine, no clock (time is an argument: nanoseconds of any clock that never goes
// back), for one goroutine at a time. [Shaper] is a Queue in real time: Submit never blocks and may be called from
// anywhere; the one goroutine that runs Serve lets go what has become due. No goroutine is started here. forward uses a
// Shaper for each shaped link, gateway one for each direction of its line.
//
//	Push, by key ─► flow ┐                                                       rate
//	Push, by key ─► flow ┼─ deficit round robin, new flows first ─ CoDel each ─┐  │
//	PushUrgent ──────────┴─ first in, first out, at most half of the rate ─────┴──▼──► Pop
//
// The parts: deficit round robin, M. Shreedhar and G. Varghese, "Efficient Fair Queueing using Deficit Round Robin", 1995;
// new flows first, RFC 8290 section 4.2; CoDel, RFC 8289 section 5. When the queue is full, the flow with the most bytes by
// its weight loses its oldest (RFC 8290 section 4.1.2). Once the flows and their buffers exist nothing is allocated.
package shape

import (
	"math/bits"
	"time"
)

// Config shapes a queue. The zero value is a queue without a rate and with the defaults.
type Config struct {
	Rate       int64         // bits/s; 0: unlimited
	Burst      time.Duration // how long a line may have been idle and still make up for it; 0: 2 ms
	Quantum    int           // bytes that a flow of weight 1 may send a round; 0: 1514, a full Ethernet frame
	MaxBytes   int64         // that wait in all; 0: what the rate carries in 250 ms, from 64 KiB to 4 MiB
	MaxPackets int           // that wait in all; 0: 4096
	MaxFlows   int           // told apart, idle ones included; 0: 1024. Those beyond share one flow of weight 1
	Target     time.Duration // CoDel: delay that may stand; 0: 5 ms. At low rates it is 1.5 packets of 1514 bytes
	Interval   time.Duration // CoDel: for how long it may; 0: 100 ms
}

const (
	mtu        = 1514
	second     = int64(time.Second)
	maxCatchUp = int64(10 * time.Millisecond) // of a line with a backlog, when Pop comes late
	maxWeight  = 1 << 16
	maxFavour  = 16 // quanta that new flows may take in a row while others wait
	maxDebt    = 64 // rounds that a flow may miss for what it sent as urgent
	minBytes   = 64 << 10
	maxBytes   = 4 << 20
	urgentSlab = int64(50 * time.Millisecond) // urgent bytes that may come at once, at the urgent share of the rate
	packetSlab = 64
)

// packet is something that waits.
type packet[T any] struct {
	item T
	size int64
	at   int64 // of Push
	next *packet[T]
}

// fifo is a line of packets.
type fifo[T any] struct {
	head, tail *packet[T]
	bytes      int64
	count      int
}

func (l *fifo[T]) push(p *packet[T]) {
	if l.tail == nil {
		l.head = p
	} else {
		l.tail.next = p
	}
	l.tail = p
	l.bytes += p.size
	l.count++
}

func (l *fifo[T]) pop() *packet[T] {
	p := l.head
	if p == nil {
		return nil
	}
	if l.head = p.next; l.head == nil {
		l.tail = nil
	}
	p.next = nil
	l.bytes -= p.size
	l.count--
	return p
}

// flow is what waits under one key. It is on exactly one ring:
//
//	      Push                  emptied, others wait, or quantum used up
//	idle ──────► fresh ────────────────────────────────────────────────► turns
//	  ▲            │ emptied, nobody else waits                            │ empty at its turn
//	  └────────────┴───────────────────────────────────────────────────────┘
type flow[T any] struct {
	fifo[T]
	codel
	key        uint64
	weight     int64
	credit     int64 // bytes that it may still send in this round
	on         *ring[T]
	prev, next *flow[T]

	sentPackets, sentBytes       uint64
	droppedPackets, droppedBytes uint64
}

// ring is an ordered set of flows.
type ring[T any] struct{ head, tail *flow[T] }

// move takes f from where it is to the end of r.
func (r *ring[T]) move(f *flow[T]) {
	f.leave()
	f.on, f.prev = r, r.tail
	if r.tail == nil {
		r.head = f
	} else {
		r.tail.next = f
	}
	r.tail = f
}

func (f *flow[T]) leave() {
	r := f.on
	if r == nil {
		return
	}
	if f.prev == nil {
		r.head = f.next
	} else {
		f.prev.next = f.next
	}
	if f.next == nil {
		r.tail = f.prev
	} else {
		f.next.prev = f.prev
	}
	f.on, f.prev, f.next = nil, nil, nil
}

// Queue decides who goes next. It is for one goroutine at a time. The times that it is given must not go back.
type Queue[T any] struct {
	conf   Config
	onDrop func(T)

	quantum          int64
	target, interval int64
	limit            int64 // bytes
	burst            int64

	flows              map[uint64]*flow[T]
	rest               *flow[T] // of all keys beyond MaxFlows
	fresh, turns, idle ring[T]
	urgent             fifo[T]
	favoured           int64 // bytes that new flows took since the last turn of the others
	bytes              int64
	count              int
	spare              *packet[T]

	free       int64 // when the line has sent what Pop returned; in the past: what it could have sent in between
	part       int64 // of a nanosecond, in 1/rate: what free left out
	urgentFree int64 // the same for the urgent at their share of the rate

	stats Stats
}

// Stats are what a queue did so far and what it holds.
type Stats struct {
	Packets, Bytes   uint64        // that Pop returned
	Full, FullBytes  uint64        // dropped because there was no room, or by Drain
	Late, LateBytes  uint64        // dropped because they waited too long (CoDel)
	Waiting, Backlog int64         // packets and bytes in the queue
	Delay            time.Duration // how long the oldest of them has waited
}

// FlowStats are the same for one flow.
type FlowStats struct {
	Key              uint64
	Shared           bool // no flow of its own: all keys beyond MaxFlows; Key is 0
	Weight           int
	Packets, Bytes   uint64 // that Pop returned
	Dropped          uint64 // packets, for whatever reason
	DroppedBytes     uint64
	Waiting, Backlog int64         // packets and bytes in the queue
	Delay            time.Duration // how long the oldest of them has waited
}

// NewQueue makes a queue. drop, if not nil, gets what is not going to be returned by Pop; it is called within Push, Pop and
// Drain and must not call the queue.
func NewQueue[T any](c Config, drop func(T)) *Queue[T] {
	or := func(d, def time.Duration) int64 {
		if d <= 0 {
			d = def
		}
		return int64(d)
	}
	if c.Quantum <= 0 {
		c.Quantum = mtu
	}
	if c.MaxPackets <= 0 {
		c.MaxPackets = 4096
	}
	if c.MaxFlows <= 0 {
		c.MaxFlows = 1024
	}
	if drop == nil {
		drop = func(T) {}
	}
	q := &Queue[T]{
		conf: c, onDrop: drop, quantum: int64(c.Quantum), burst: or(c.Burst, 2*time.Millisecond),
		interval: or(c.Interval, 100*time.Millisecond), flows: map[uint64]*flow[T]{},
	}
	q.setRate(c.Rate)
	return q
}

// Rate returns the rate in bits/s; 0 is unlimited.
func (q *Queue[T]) Rate() int64 { return q.conf.Rate }

// SetRate changes the rate (bits/s; 0: unlimited), also of what waits already.
func (q *Queue[T]) SetRate(now, rate int64) {
	old := q.conf.Rate
	q.setRate(rate)
	rescale := func(free int64) int64 { // what is on the line still has the same bits
		if free <= now || old == 0 || q.conf.Rate == 0 {
			return min(free, now)
		}
		hi, lo := bits.Mul64(uint64(free-now), uint64(old))
		if hi >= uint64(q.conf.Rate) {
			return free
		}
		d, _ := bits.Div64(hi, lo, uint64(q.conf.Rate))
		return now + int64(min(d, uint64(time.Hour)))
	}
	q.free, q.urgentFree, q.part = rescale(q.free), rescale(q.urgentFree), 0
	for q.bytes > q.limit {
		q.dropLongest()
	}
}

func (q *Queue[T]) setRate(rate int64) {
	rate = max(rate, 0)
	q.conf.Rate = rate
	q.target = int64(q.conf.Target)
	if q.target <= 0 {
		q.target = int64(5 * time.Millisecond)
	}
	q.limit = q.conf.MaxBytes
	if q.limit <= 0 {
		q.limit = maxBytes
		if rate > 0 {
			q.limit = min(max(rate/8/4, minBytes), maxBytes)
		}
	}
	if rate > 0 {
		q.target = max(q.target, mtu*8*second*3/2/rate) // RFC 8289 section 4.4: one packet alone must fit
	}
}

// Push adds something of size bytes to the flow of a key. The weight, at least 1, is the flow's from now on: against
// another it gets its weight's share of the rate.
func (q *Queue[T]) Push(now int64, key uint64, weight, size int, item T) {
	f := q.flow(key)
	if f != q.rest {
		f.weight = min(max(int64(weight), 1), maxWeight)
	}
	q.wake(now)
	f.push(q.packet(now, size, item))
	if f.on != &q.fresh && f.on != &q.turns {
		f.credit = q.quantum
		q.fresh.move(f)
	}
	q.bound()
}

// PushUrgent adds something that goes before all flows. So that nobody starves the others by calling everything urgent, what
// is more than half of the rate takes its turn in the flow of its key, as with Push, and what goes first counts against the
// turns of that flow.
func (q *Queue[T]) PushUrgent(now int64, key uint64, weight, size int, item T) {
	if rate := q.conf.Rate; rate > 0 {
		if q.urgentFree > now+urgentSlab {
			q.Push(now, key, weight, size, item)
			return
		}
		q.urgentFree = max(q.urgentFree, now) + 2*int64(size)*8*second/rate
		if f := q.flows[key]; f != nil && f.head != nil { // what went first is off its share
			f.credit = max(f.credit-int64(size), -maxDebt*q.quantum*f.weight)
		}
	}
	q.wake(now)
	q.urgent.push(q.packet(now, size, item))
	q.bound()
}

// wake ends an idle time of the line: what it might have sent before counts for a burst at most.
func (q *Queue[T]) wake(now int64) {
	if q.count == 0 {
		q.free = max(q.free, now-q.burst)
	}
}

// Pop returns what goes next. When there is nothing that may go now, ok is false, and wait says how many nanoseconds until
// there is; 0 when nothing waits.
func (q *Queue[T]) Pop(now int64) (item T, ok bool, wait int64) {
	if q.count == 0 {
		return item, false, 0
	}
	rate := q.conf.Rate
	if rate > 0 && q.free > now {
		return item, false, q.free - now
	}
	p := q.urgent.pop()
	if p != nil {
		q.gone(p)
	} else if p = q.next(now); p == nil {
		return item, false, 0
	}
	if rate > 0 {
		t := p.size*8*second + q.part // below 2^63 up to a gigabyte
		q.free = max(q.free, now-maxCatchUp) + t/rate
		q.part = t % rate
	}
	q.stats.Packets++
	q.stats.Bytes += uint64(p.size)
	return q.recycle(p), true, 0
}

// next is RFC 8290 section 4.2.
func (q *Queue[T]) next(now int64) *packet[T] {
	for {
		if q.turns.head == nil {
			q.favoured = 0
		}
		f := q.fresh.head
		isFresh := f != nil && (q.turns.head == nil || q.favoured < maxFavour*q.quantum)
		if !isFresh {
			f = q.turns.head
		}
		if f == nil {
			return nil
		}
		if f.credit <= 0 {
			f.credit += q.quantum * f.weight
			q.turns.move(f)
			continue
		}
		p := q.dequeue(f, now)
		if p == nil {
			if isFresh && q.turns.head != nil {
				q.turns.move(f) // or it would come back at once as a new one
			} else {
				q.idle.move(f)
			}
			continue
		}
		f.credit -= p.size
		f.sentPackets++
		f.sentBytes += uint64(p.size)
		if isFresh {
			q.favoured += p.size
		} else {
			q.favoured = 0
		}
		return p
	}
}

// bound drops until what waits is within the bounds.
func (q *Queue[T]) bound() {
	for q.bytes > q.limit || q.count > q.conf.MaxPackets {
		q.dropLongest()
	}
}

// dropLongest takes the oldest from the flow that has most waiting by its weight. It looks at all flows that have anything:
// this is the way of a packet that is lost anyhow.
func (q *Queue[T]) dropLongest() {
	var longest *flow[T]
	for _, r := range [...]*ring[T]{&q.fresh, &q.turns} {
		for f := r.head; f != nil; f = f.next {
			if longest == nil || f.bytes*longest.weight > longest.bytes*f.weight {
				longest = f
			}
		}
	}
	if longest == nil || longest.head == nil {
		q.dropHead(&q.urgent)
		return
	}
	longest.droppedPackets++
	longest.droppedBytes += uint64(longest.head.size)
	q.dropHead(&longest.fifo)
}

func (q *Queue[T]) dropHead(l *fifo[T]) {
	p := l.pop()
	q.gone(p)
	q.stats.Full++
	q.stats.FullBytes += uint64(p.size)
	q.onDrop(q.recycle(p))
}

// flow finds the flow of a key, or makes it; the one that has been idle for longest makes room.
func (q *Queue[T]) flow(key uint64) *flow[T] {
	f := q.flows[key]
	if f != nil {
		return f
	}
	if len(q.flows) < q.conf.MaxFlows {
		f = &flow[T]{}
	} else if f = q.idle.head; f != nil && f == q.rest {
		f = f.next
	}
	if f == nil {
		if q.rest == nil {
			q.rest = &flow[T]{weight: 1}
		}
		return q.rest
	}
	if f.on != nil {
		f.leave()
		delete(q.flows, f.key)
		*f = flow[T]{}
	}
	f.key = key
	q.flows[key] = f
	return f
}

func (q *Queue[T]) packet(now int64, size int, item T) *packet[T] {
	p := q.spare
	if p == nil {
		slab := make([]packet[T], packetSlab)
		for i := range slab[1:] {
			slab[i].next = &slab[i+1]
		}
		p = &slab[0]
	}
	q.spare = p.next
	p.item, p.size, p.at, p.next = item, int64(max(size, 0)), now, nil
	q.bytes += p.size
	q.count++
	return p
}

// gone books that p has left its line.
func (q *Queue[T]) gone(p *packet[T]) {
	q.bytes -= p.size
	q.count--
}

func (q *Queue[T]) recycle(p *packet[T]) T {
	item := p.item
	var none T
	p.item, p.next = none, q.spare
	q.spare = p
	return item
}

// Drain drops all that waits.
func (q *Queue[T]) Drain() {
	for q.urgent.head != nil {
		q.dropHead(&q.urgent)
	}
	for _, r := range [...]*ring[T]{&q.fresh, &q.turns} {
		for f := r.head; f != nil; f = f.next {
			for f.head != nil {
				q.dropHead(&f.fifo)
			}
		}
	}
}

// Len returns how many wait.
func (q *Queue[T]) Len() int { return q.count }

// Stats describes the queue.
func (q *Queue[T]) Stats(now int64) Stats {
	s := q.stats
	s.Waiting, s.Backlog = int64(q.count), q.bytes
	age := func(l *fifo[T]) {
		if l.head != nil {
			s.Delay = max(s.Delay, time.Duration(now-l.head.at))
		}
	}
	age(&q.urgent)
	for _, r := range [...]*ring[T]{&q.fresh, &q.turns} {
		for f := r.head; f != nil; f = f.next {
			age(&f.fifo)
		}
	}
	return s
}

// Flows describes the flows: those that wait, and of the others as many as there is room for, the longest idle first.
func (q *Queue[T]) Flows(now int64) []FlowStats {
	out := make([]FlowStats, 0, len(q.flows)+1)
	for _, r := range [...]*ring[T]{&q.fresh, &q.turns, &q.idle} {
		for f := r.head; f != nil; f = f.next {
			s := FlowStats{
				Key: f.key, Shared: f == q.rest, Weight: int(f.weight), Packets: f.sentPackets, Bytes: f.sentBytes,
				Dropped: f.droppedPackets, DroppedBytes: f.droppedBytes, Waiting: int64(f.count), Backlog: f.bytes,
			}
			if f.head != nil {
				s.Delay = time.Duration(now - f.head.at)
			}
			out = append(out, s)
		}
	}
	return out
}
