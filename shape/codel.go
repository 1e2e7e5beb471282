package shape

import "math/bits"

// codel is the state of RFC 8289 section 5.3 for one flow: it drops when all of a flow's packets of one interval waited for
// longer than the target, and more and more often until they no longer do.
type codel struct {
	firstAbove int64 // when the delay will have been above target for an interval; 0: it is not
	dropNext   int64
	drops      uint64 // since dropping began
	lastDrops  uint64 // when it began the last time
	dropping   bool
}

// controlLaw is t + interval/√n (RFC 8289 section 5.5), in integers: routers have no floating point.
func controlLaw(t, interval int64, n uint64) int64 {
	return t + interval<<16/int64(root(min(n, 1<<31)<<32))
}

// root is the integer square root, by Newton's method from above.
func root(n uint64) uint64 {
	if n == 0 {
		return 0
	}
	x := uint64(1) << ((bits.Len64(n) + 1) / 2)
	for {
		y := (x + n/x) / 2
		if y >= x {
			return x
		}
		x = y
	}
}

// take is RFC 8289's dodequeue: the flow's oldest, and whether it may be dropped.
func (q *Queue[T]) take(f *flow[T], now int64) (p *packet[T], late bool) {
	p = f.pop()
	if p == nil {
		f.firstAbove = 0
		return nil, false
	}
	q.gone(p)
	switch {
	case now-p.at < q.target || f.bytes <= mtu:
		f.firstAbove = 0
	case f.firstAbove == 0:
		f.firstAbove = now + q.interval
	default:
		late = now >= f.firstAbove
	}
	return p, late
}

// dequeue returns the flow's next packet, after dropping what CoDel wants dropped.
func (q *Queue[T]) dequeue(f *flow[T], now int64) *packet[T] {
	p, late := q.take(f, now)
	switch {
	case f.dropping && !late:
		f.dropping = false
	case f.dropping:
		for f.dropping && now >= f.dropNext {
			f.drops++
			q.dropLate(f, p)
			if p, late = q.take(f, now); !late {
				f.dropping = false
			} else {
				f.dropNext = controlLaw(f.dropNext, q.interval, f.drops)
			}
		}
	case late:
		q.dropLate(f, p)
		p, _ = q.take(f, now)
		f.dropping = true
		since := f.drops - f.lastDrops
		f.drops = 1
		if since > 1 && now-f.dropNext < 16*q.interval { // it stopped a moment ago: go on where it was
			f.drops = since
		}
		f.dropNext = controlLaw(now, q.interval, f.drops)
		f.lastDrops = f.drops
	}
	return p
}

func (q *Queue[T]) dropLate(f *flow[T], p *packet[T]) {
	f.droppedPackets++
	f.droppedBytes += uint64(p.size)
	q.stats.Late++
	q.stats.LateBytes += uint64(p.size)
	q.onDrop(q.recycle(p))
}
