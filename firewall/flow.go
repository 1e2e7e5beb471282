package firewall

import (
	"encoding/binary"
	"hash/maphash"
	"iter"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"weft/ident"
)

// Timeouts in seconds, counted from a flow's last packet.
const (
	timeoutEstablished = 2*3600 + 4*60 // RFC 5382 REQ-5
	timeoutTransitory  = 4 * 60        // RFC 5382 REQ-5: half open or closing
	timeoutReset       = 10
	timeoutUDP         = 5 * 60 // RFC 4787 REQ-5, the recommended value
	timeoutEcho        = 60     // RFC 5508 REQ-1
	timeoutFragment    = 60     // RFC 8200 section 4.5: as long as the receiver reassembles
)

// flowKey names a flow as seen from this node: the address here, the address there (two words each), and in the last
// word the port here, the port there and the protocol. Fragments put their identification in place of the ports, echo
// its identifier in place of the port here.
type flowKey [5]uint64

func le(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

func tail(here, there uint16, proto uint8) uint64 {
	return uint64(here) | uint64(there)<<16 | uint64(proto)<<32
}

func (k *flowKey) local() (hi, lo uint64)  { return k[0], k[1] }
func (k *flowKey) remote() (hi, lo uint64) { return k[2], k[3] }
func (k *flowKey) here() uint16            { return uint16(k[4]) }
func (k *flowKey) there() uint16           { return uint16(k[4] >> 16) }
func (k *flowKey) proto() uint8            { return uint8(k[4] >> 32) }

func addrOf(hi, lo uint64) netip.Addr {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], hi)
	binary.LittleEndian.PutUint64(b[8:], lo)
	return netip.AddrFrom16(b).Unmap()
}

// What is known of a flow.
const (
	startedHere uint8 = 1 << iota
	seenIn
	seenOut
	finIn
	finOut
	wasReset
	established
	refused // the peer started it under rules that no longer hold
)

// flow is one slot of a table; until == 0 is a free one.
type flow struct {
	key   flowKey
	until uint32 // the second from which on it has expired
	gen   uint32 // the rules' generation that let it in
	state uint8
}

// closed reports whether TCP has ended the flow.
func (fl *flow) closed() bool {
	return fl.state&wasReset != 0 || fl.state&(finIn|finOut) == finIn|finOut
}

// seen notes a packet in the direction side (seenIn or seenOut) and sets the time-out.
func (fl *flow) seen(side, flags uint8, now uint32) {
	fl.state |= side
	if fl.key.proto() != protoTCP {
		fl.until = now + idleTimeout(fl.key.proto())
		return
	}
	if fl.closed() {
		return // the time it has left was set when it closed; more packets do not buy more
	}
	if flags&rst != 0 {
		fl.state |= wasReset
		fl.until = now + timeoutReset
		return
	}
	if flags&fin != 0 {
		fl.state |= side << 2 // finIn, finOut
		if fl.closed() {
			fl.until = now + timeoutTransitory
			return
		}
	}
	if fl.state&(seenIn|seenOut) == seenIn|seenOut && flags&(syn|ack) == ack && fl.state&refused == 0 {
		fl.state |= established
	}
	if fl.state&(established|refused) == established {
		fl.until = now + timeoutEstablished
	} else {
		fl.until = now + timeoutTransitory
	}
}

func idleTimeout(proto uint8) uint32 {
	if proto == protoICMP {
		return timeoutEcho
	}
	return timeoutUDP
}

func (fl *flow) describe(peer ident.PublicKey, now uint32) Flow {
	d := Flow{
		Peer:   peer,
		Local:  netip.AddrPortFrom(addrOf(fl.key.local()), fl.key.here()),
		Remote: netip.AddrPortFrom(addrOf(fl.key.remote()), fl.key.there()),
		Here:   fl.state&startedHere != 0,
		Left:   time.Duration(fl.until-now) * time.Second,
	}
	switch p := fl.key.proto(); p {
	case protoTCP:
		d.Proto = "tcp"
	case protoUDP:
		d.Proto = "udp"
	case protoICMP:
		d.Proto = "icmp"
	default:
		d.Proto = strconv.Itoa(int(p))
	}
	both := fl.state&(seenIn|seenOut) == seenIn|seenOut
	switch {
	case fl.state&refused != 0:
		d.State = "refused"
	case fl.state&wasReset != 0:
		d.State = "reset"
	case fl.state&(finIn|finOut) != 0:
		d.State = "closing"
	case fl.state&established != 0, fl.key.proto() != protoTCP && both:
		d.State = "open"
	default:
		d.State = "new"
	}
	return d
}

// table is a hash table of flows in buckets of a fixed size, like a CPU cache: a flow lives in the one bucket that its
// hash names. A full bucket makes the table grow while it may; after that the flow with the least time left gives way,
// so half-open connections and probes go before established ones. The seed is secret, so nobody can aim at a bucket.
type table struct {
	seed    maphash.Seed
	most    int      // slots
	buckets []bucket // a power of two
}

const (
	ways      = 8
	baseFlows = 16 // slots that every peer may have, whatever the others use
)

type bucket [ways]flow

func (t *table) bucket(k *flowKey) *bucket {
	return &t.buckets[maphash.Comparable(t.seed, *k)&uint64(len(t.buckets)-1)]
}

// find returns the live flow k, or nil.
func (t *table) find(k *flowKey, now uint32) *flow {
	if len(t.buckets) == 0 {
		return nil
	}
	b := t.bucket(k)
	for i := range b {
		if b[i].key == *k && b[i].until > now {
			return &b[i]
		}
	}
	return nil
}

// insert returns a fresh slot for k, which must not be in the table. evicted: another flow was lost for it; moved: the
// table was rebuilt, so pointers into it are stale.
func (t *table) insert(k *flowKey, now uint32, budget *atomic.Int64) (fl *flow, evicted, moved bool) {
	if len(t.buckets) == 0 {
		t.buckets = make([]bucket, baseFlows/ways)
	}
	for {
		b := t.bucket(k)
		fl = &b[0]
		for i := range b {
			if b[i].until <= now {
				b[i] = flow{key: *k, until: now + 1}
				return &b[i], false, moved
			}
			if b[i].until < fl.until {
				fl = &b[i]
			}
		}
		if !t.grow(now, budget) {
			*fl = flow{key: *k, until: now + 1}
			return fl, true, moved
		}
		moved = true
	}
}

func (t *table) slots() int { return len(t.buckets) * ways }

// grow doubles the table, if the limits allow.
func (t *table) grow(now uint32, budget *atomic.Int64) bool {
	if t.slots()*2 > t.most {
		return false
	}
	if budget.Add(-int64(t.slots())) < 0 {
		budget.Add(int64(t.slots()))
		return false
	}
	t.rebuild(2*len(t.buckets), now)
	return true
}

// rebuild moves the live flows into n buckets. Growing never overfills a bucket; when shrinking does, it gives up.
func (t *table) rebuild(n int, now uint32) bool {
	next := table{seed: t.seed, most: t.most, buckets: make([]bucket, n)}
	for fl := range t.all(now) {
		b := next.bucket(&fl.key)
		i := 0
		for ; i < ways && b[i].until != 0; i++ {
		}
		if i == ways {
			return false
		}
		b[i] = *fl
	}
	t.buckets = next.buckets
	return true
}

// all yields the live flows.
func (t *table) all(now uint32) iter.Seq[*flow] {
	return func(yield func(*flow) bool) {
		for i := range t.buckets {
			for j := range t.buckets[i] {
				if fl := &t.buckets[i][j]; fl.until > now && !yield(fl) {
					return
				}
			}
		}
	}
}

// sweep gives back memory of a table that is mostly empty, and returns how many flows live.
func (t *table) sweep(now uint32, budget *atomic.Int64) (live int) {
	for range t.all(now) {
		live++
	}
	if live == 0 {
		t.free(budget)
		return 0
	}
	if half := t.slots() / 2; half >= baseFlows && live <= half/4 && t.rebuild(len(t.buckets)/2, now) {
		budget.Add(int64(half))
	}
	return live
}

func (t *table) free(budget *atomic.Int64) {
	budget.Add(int64(max(0, t.slots()-baseFlows)))
	t.buckets = nil
}
