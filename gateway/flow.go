package gateway

import (
	"hash/maphash"
	"sync/atomic"
)

// Seconds that a flow is remembered after its last packet, like the kernel's tables, for they are what is protected here.
const (
	idleOpen   = 2*3600 + 4*60 // TCP that got further than its first packet (RFC 5382 REQ-5)
	idleNew    = 60            // a SYN
	idleFin    = 60
	idleReset  = 5
	idleUDP    = 30  // until it has lasted
	idleStream = 120 // UDP that lasted longer than streamAfter
	idleEcho   = 30
	idlePieces = 30 // fragments

	streamAfter = 2 // seconds
)

// flow is one slot of a table; until == 0 is a free one.
type flow struct {
	key   flowKey
	until uint32 // the second from which on it has expired
	since uint32
	gen   uint32 // the policy that let it pass
	over  bool   // FIN or RST was seen: packets do not lengthen its time
}

const (
	ways      = 8
	baseFlows = 16 // slots that every client may have, whatever the others use
)

// flows is a hash table in buckets of a fixed size: a flow lives in the one bucket that its hash names. The seed is secret,
// so nobody can aim at a bucket. In a full bucket of a full table the flow with the least time left gives way; that costs
// it another look at the policy, and nothing else.
type flows struct {
	seed    maphash.Seed
	buckets [][ways]flow // a power of two
	live    int          // not yet swept
	swept   uint32
}

func (t *flows) find(k *flowKey, now uint32) *flow {
	if len(t.buckets) == 0 {
		return nil
	}
	b := &t.buckets[maphash.Comparable(t.seed, *k)&uint64(len(t.buckets)-1)]
	for i := range b {
		if b[i].key == *k && b[i].until > now {
			return &b[i]
		}
	}
	return nil
}

// insert returns a slot for k, which is not in the table; nil when there are most live ones already. budget is how many
// slots all tables may still take beyond baseFlows each.
func (t *flows) insert(k *flowKey, now uint32, most int, budget *atomic.Int64) *flow {
	if t.live >= most {
		if t.swept == now {
			return nil
		}
		if t.sweep(now); t.live >= most {
			return nil
		}
	}
	if len(t.buckets) == 0 {
		t.buckets = make([][ways]flow, baseFlows/ways)
	}
	for {
		b := &t.buckets[maphash.Comparable(t.seed, *k)&uint64(len(t.buckets)-1)]
		worst := &b[0]
		for i := range b {
			if b[i].until <= now {
				if b[i].until == 0 {
					t.live++
				}
				b[i] = flow{key: *k, since: now, until: now + 1}
				return &b[i]
			}
			if b[i].until < worst.until {
				worst = &b[i]
			}
		}
		if len(t.buckets)*ways >= 4*most || // fuller ones have full buckets
			!t.grow(budget) {
			*worst = flow{key: *k, since: now, until: now + 1}
			return worst
		}
	}
}

// grow doubles the table, if the budget allows. No bucket overflows by it.
func (t *flows) grow(budget *atomic.Int64) bool {
	more := int64(len(t.buckets) * ways)
	if budget.Add(-more) < 0 {
		budget.Add(more)
		return false
	}
	old := t.buckets
	t.buckets = make([][ways]flow, 2*len(old))
	for i := range old {
		for j := range old[i] {
			f := &old[i][j]
			if f.until == 0 {
				continue
			}
			b := &t.buckets[maphash.Comparable(t.seed, f.key)&uint64(len(t.buckets)-1)]
			for n := range b {
				if b[n].until == 0 {
					b[n] = *f
					break
				}
			}
		}
	}
	return true
}

// sweep frees the slots of what has expired and counts what is left.
func (t *flows) sweep(now uint32) {
	t.swept, t.live = now, 0
	for i := range t.buckets {
		for j := range t.buckets[i] {
			if f := &t.buckets[i][j]; f.until <= now {
				*f = flow{}
			} else {
				t.live++
			}
		}
	}
}

// free gives everything back.
func (t *flows) free(budget *atomic.Int64) {
	budget.Add(int64(max(0, len(t.buckets)*ways-baseFlows)))
	t.buckets, t.live = nil, 0
}

// seen sets the time that is left after a packet of the client.
func (f *flow) seen(p *packet, now uint32) {
	idle := uint32(idleEcho)
	switch f.key.proto() {
	case protoTCP:
		switch {
		case p.flags&tcpRST != 0:
			f.over, f.until = true, now+idleReset
			return
		case p.flags&tcpFIN != 0 && !f.over:
			f.over, f.until = true, now+idleFin
			return
		case p.flags&(tcpSYN|tcpACK) == tcpSYN:
			f.over = false
			idle = idleNew
		case f.over:
			return
		default:
			idle = idleOpen
		}
	case protoUDP:
		idle = idleUDP
		if now-f.since > streamAfter {
			idle = idleStream
		}
	case keyFragment:
		idle = idlePieces
	}
	f.until = now + idle
}
