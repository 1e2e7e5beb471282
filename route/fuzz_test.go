package route

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"weft/ident"
	"weft/wire"
)

// FuzzReceive feeds messages of a neighbour to a router: whatever comes, it neither panics nor breaks its own books, and
// what it says stays within the limits.
func FuzzReceive(f *testing.F) {
	self, peer := testKey(0), testKey(1)
	lsa := makeLSA(peer, 1, []wire.Adjacency{{ID: self.ID(), Cost: 5, MTU: 1400}})
	f.Add(appendLSA(nil, 0, lsa))
	f.Add(appendMark(appendAck(nil, 0), markReady))
	f.Add(digest{wanted: true, bits: 1, salt: 7, sums: make([]byte, 16)}.appendTo(nil))
	span := appendRecord(nil, recRange, rangeFixed+rangeEntry)
	span = append(span, make([]byte, 8)...)
	span = append(span, bytes.Repeat([]byte{0xff}, 8)...)
	f.Add(appendMark(appendSummary(span, summary{peer.ID(), 1, 2}), markEnd))
	f.Add(append(appendMark(nil, markDone), 200, 0, 1, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		now := epoch
		r := New(Config{Self: self, Sign: testSign(self), Verify: func(wire.LSAView) bool { return true }, Rand: func() uint64 { return 3 }, Limits: Limits{Nodes: 50}}, now)
		r.LinkUp(now, LinkInfo{ID: 1, Peer: peer, Cost: 9, MTU: 1400})
		for range 3 {
			err := r.Receive(now, 1, b)
			if err != nil && !errors.Is(err, ErrMessage) && !errors.Is(err, ErrForged) {
				t.Fatal(err)
			}
			for _, m := range r.Outbox() {
				if len(m.Bytes) == 0 || len(m.Bytes) > MaxMessage {
					t.Fatalf("message of %d bytes", len(m.Bytes))
				}
				if err := New(Config{Self: peer, Sign: testSign(peer), Rand: func() uint64 { return 3 }}, now).Receive(now, 1, m.Bytes); err != nil {
					t.Fatal(err)
				}
			}
			now = now.Add(3 * time.Second)
			r.Tick(now)
		}
		w := &world{tb: t, nodes: []*testNode{{r: r, key: self}}}
		now = now.Add(time.Minute)
		r.Tick(now)
		r.Outbox()
		for _, l := range r.links {
			clear(l.waiting)
			l.waitBytes, l.pending = 0, bitset{}
		}
		if err := w.checkStructure(); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzRecords: what is parsed is encoded to the same bytes again.
func FuzzRecords(f *testing.F) {
	f.Add(byte(recDigest), digest{wanted: true, bits: 0, salt: 7, sums: make([]byte, 8)}.appendTo(nil)[recordHeader:])
	f.Add(byte(recRange), make([]byte, rangeFixed+rangeEntry))
	f.Fuzz(func(t *testing.T, kind byte, v []byte) {
		if len(v) > MaxMessage {
			return
		}
		switch recordType(kind) {
		case recDigest:
			if d, err := parseDigest(v); err == nil && !bytes.Equal(d.appendTo(nil)[recordHeader:], v) {
				t.Fatal("a digest changes when it is encoded again")
			}
		case recRange:
			span, list, err := parseRange(v)
			if err != nil {
				return
			}
			b := appendSummary(nil, summary{span.low, uint64(span.high), 0})[:rangeFixed]
			last := ident.NodeID(0)
			for i := range list.len() {
				s := list.at(i)
				if s.id < span.low || s.id > span.high || i > 0 && s.id <= last {
					t.Fatal("an entry out of order")
				}
				last = s.id
				b = appendSummary(b, s)
			}
			if !bytes.Equal(b, v) {
				t.Fatal("a range changes when it is encoded again")
			}
		}
	})
}
