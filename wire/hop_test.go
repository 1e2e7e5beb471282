package wire

import (
	"bytes"
	"encoding/hex"
	"testing"

	"pgregory.net/rapid"

	"weft/ident"
)

// Golden datagrams, as docs/spec/wire.md section 2 gives them.
func TestHopVectors(t *testing.T) {
	key := NewHopKey([16]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
	for _, c := range []struct {
		kind    Kind
		epoch   uint8
		index   uint32
		counter uint64
		ttl     uint8
		class   Class
		dest    ident.NodeID
		payload string
		want    string
	}{
		{KindData, 0, 0x01020304, 1, 64, ClassBulk, 0x1122334455667788, "00112233445566778899aabbccddeeff",
			"004000000102030411223344556677880000000000000001a84f7cd715a3e0a200112233445566778899aabbccddeeff"},
		{KindData, 5, 0xfffffffe, 1 << 40, 1, ClassGateway, 1, "0400000000000001000000000000000100112233445566778899aabbccddeeff",
			"05010200fffffffe0000000000000001000001000000000004902d44f62f31120400000000000001000000000000000100112233445566778899aabbccddeeff"},
		{KindProbe, 15, 7, 9, 0, ClassControl, 0xaabbccddeeff0011, "000102030405060708090a0b0c0d0e0f",
			"1f00010000000007aabbccddeeff0011000000000000000961455b6fa206812a000102030405060708090a0b0c0d0e0f"},
	} {
		p, err := hex.DecodeString(c.payload)
		if err != nil {
			t.Fatal(err)
		}
		h := Hop(append(make([]byte, HopLen), p...))
		h.Start(c.ttl, c.class, c.dest)
		h.Seal(key, c.kind, c.epoch, c.index, c.counter)
		if got := hex.EncodeToString(h); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}

func TestHopRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := Hop(append(make([]byte, HopLen), rapid.SliceOfN(rapid.Byte(), TagLen, 100).Draw(t, "payload")...))
		key := HopKey{rapid.Uint64().Draw(t, "k0"), rapid.Uint64().Draw(t, "k1")}
		kind := rapid.SampledFrom([]Kind{KindData, KindProbe}).Draw(t, "kind")
		epoch, index, counter := rapid.Byte().Draw(t, "epoch"), rapid.Uint32().Draw(t, "index"), rapid.Uint64().Draw(t, "counter")
		ttl, class, dest := rapid.Byte().Draw(t, "ttl"), Class(rapid.Byte().Draw(t, "class")), ident.NodeID(rapid.Uint64().Draw(t, "dest"))
		h.Start(ttl, class, dest)
		h.Seal(key, kind, epoch, index, counter)
		if h.Kind() != kind || h.Epoch() != epoch&15 || h.Index() != index || h.Counter() != counter || h.TTL() != ttl || h.Class() != class || h.Dest() != dest {
			t.Fatalf("%x reads as %v %v %v %v %v %v %v", h[:HopLen], h.Kind(), h.Epoch(), h.Index(), h.Counter(), h.TTL(), h.Class(), h.Dest())
		}
		if IsQUIC(h[0]) || KindOf(h[0]) != kind || !h.Authentic(key) {
			t.Fatal("a datagram of ours is taken for another's")
		}
		at := rapid.IntRange(0, HopLen+TagLen-1).Draw(t, "at")
		if at >= HopLen {
			at = len(h) - TagLen + at - HopLen
		}
		bad := Hop(bytes.Clone(h))
		bad[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if bad.Authentic(key) {
			t.Fatalf("bit %d changed and nobody noticed", at)
		}
	})
}

func BenchmarkSealHop(b *testing.B) {
	h := Hop(make([]byte, 1400))
	for b.Loop() {
		h.Seal(HopKey{1, 2}, KindData, 0, 1, 1)
	}
}
