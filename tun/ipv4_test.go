package tun

import (
	"bytes"
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"
)

// inIPv4 puts the transport part of an IPv6 packet behind an IPv4 header with options bytes of options.
func inIPv4(p6 []byte, options int) []byte {
	b := append(make([]byte, 20+options), p6[40:]...)
	b[0], b[8], b[9] = 0x40|byte((20+options)/4), 64, p6[6]
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[4:], 0xfffe) // so that the identification wraps
	copy(b[12:], []byte{100, 64, 1, 2, 192, 0, 2, 7})
	for i := range options {
		b[20+i] = 1
	}
	sumIPv4(b[:20+options])
	return b
}

func TestSplitIPv4(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		proto := rapid.SampledFrom([]byte{ProtoTCP, ProtoUDP}).Draw(t, "proto")
		payload := rapid.IntRange(1, 9000).Draw(t, "payload")
		seg := rapid.IntRange(1, 1000).Draw(t, "seg")
		options := rapid.IntRange(0, 10).Draw(t, "options") * 4
		p := superPacket(proto, rapid.IntRange(0, 10).Draw(t, "tcp options")*4, payload, 0x18, uint16(seg))
		p.Data = inIPv4(p.Data, options)
		whole := bytes.Clone(p.Data)
		hdr := len(whole) - payload
		var got []byte
		id := uint16(0xfffe)
		if !Split(p, 1280, func(ip []byte) {
			if len(ip) > 1280 || int(binary.BigEndian.Uint16(ip[2:])) != len(ip) || Sum(ip[:20+options], 0) != 0xffff || !checksumOK(ip) {
				t.Fatalf("a piece of %d bytes with length %d and sums %v, %v", len(ip), binary.BigEndian.Uint16(ip[2:]), Sum(ip[:20+options], 0) == 0xffff, checksumOK(ip))
			}
			if binary.BigEndian.Uint16(ip[4:]) != id || !bytes.Equal(ip[12:20], whole[12:20]) {
				t.Fatal("identification or addresses are wrong")
			}
			id++
			got = append(got, ip[hdr:]...)
		}) {
			t.Fatal("refused")
		}
		if !bytes.Equal(got, whole[hdr:]) {
			t.Fatal("the pieces are not the whole")
		}
	})
}

// Fragments, put together by their offsets, are the packet again; those of a fragment too.
func TestFragment(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		options := rapid.IntRange(0, 10).Draw(t, "options") * 4
		p := inIPv4(superPacket(ProtoUDP, 0, rapid.IntRange(1, 5000).Draw(t, "payload"), 0, 0).Data, options)
		base := rapid.SampledFrom([]uint16{0, 0x2000, 0x2010, 0x0020}).Draw(t, "of a fragment")
		binary.BigEndian.PutUint16(p[6:], base)
		for i := 20; i < 20+options; { // random options, some of which go into every fragment
			o, n := rapid.SampledFrom([]byte{0x94, 0x44, 1}).Draw(t, "option"), 4
			if o == 1 || i+n > 20+options {
				p[i] = 1
				i++
				continue
			}
			p[i], p[i+1] = o, byte(n)
			i += n
		}
		most := rapid.IntRange(68, 1500).Draw(t, "most")
		whole := bytes.Clone(p)
		got := make([]byte, len(p)-20-options)
		var seen, n int
		more := true
		ok := Fragment(p, most, func(f []byte) {
			hdr := int(f[0]&0x0f) * 4
			word := binary.BigEndian.Uint16(f[6:])
			at := int(word&0x1fff-base&0x1fff) * 8
			if len(f) > most || int(binary.BigEndian.Uint16(f[2:])) != len(f) || Sum(f[:hdr], 0) != 0xffff || !bytes.Equal(f[12:20], whole[12:20]) {
				t.Fatalf("fragment %d is no packet", n)
			}
			if n == 0 && !bytes.Equal(f[20:hdr], whole[20:20+options]) {
				t.Fatal("the first fragment lacks options")
			}
			seen += copy(got[at:], f[hdr:])
			more = word&0x2000 != 0
			n++
		})
		if !ok {
			if options == 40 && most == 68 || most-20-options < 8 {
				return
			}
			t.Fatal("refused")
		}
		if seen != len(got) || !bytes.Equal(got, whole[20+options:]) || more != (base&0x2000 != 0) {
			t.Fatalf("%d fragments with %d of %d bytes, more %v", n, seen, len(got), more)
		}
	})
	no := func([]byte) { t.Error("emitted") }
	p := inIPv4(superPacket(ProtoUDP, 0, 2000, 0, 0).Data, 0)
	p[6] = 0x40
	if Fragment(p, 1280, no) || Fragment(p[:10], 1280, no) || Fragment(superPacket(ProtoUDP, 0, 2000, 0, 0).Data, 1280, no) {
		t.Error("fragmented what must not be")
	}
}
