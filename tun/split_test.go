package tun

import (
	"bytes"
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"
)

// superPacket makes a TCP or UDP super-packet as a kernel hands it over.
func superPacket(proto byte, options, payload int, flags byte, seg uint16) Packet {
	hdr := 40 + 8
	if proto == ProtoTCP {
		hdr = 40 + 20 + options
	}
	b := make([]byte, hdr+payload)
	b[0], b[6], b[7] = 0x60, proto, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	for i := range 16 {
		b[8+i], b[24+i] = byte(i+1), byte(2*i)
	}
	binary.BigEndian.PutUint16(b[40:], 1234)
	binary.BigEndian.PutUint16(b[42:], 80)
	if proto == ProtoTCP {
		binary.BigEndian.PutUint32(b[44:], 0xfffffff0) // so that the sequence wraps
		b[52], b[53] = byte((20+options)/4)<<4, flags
		for i := range options {
			b[60+i] = 1
		}
	} else {
		binary.BigEndian.PutUint16(b[44:], uint16(8+payload))
	}
	for i := range payload {
		b[hdr+i] = byte(i * 7)
	}
	return Packet{Data: b, SegSize: seg, Partial: true}
}

// checksumOK verifies a transport checksum the slow way.
func checksumOK(p []byte) bool {
	l4, _ := Transport(p)
	return Sum(p[l4.Offset:], PseudoSum(p, l4.Proto, len(p)-l4.Offset)) == 0xffff
}

// TestSplit puts the pieces together again: that must give the payload, the sequence numbers and the flags of the whole.
func TestSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		proto := rapid.SampledFrom([]byte{ProtoTCP, ProtoUDP}).Draw(t, "proto")
		payload := rapid.IntRange(1, 9000).Draw(t, "payload")
		options := rapid.IntRange(0, 10).Draw(t, "options") * 4
		seg := rapid.IntRange(1, 1400).Draw(t, "seg")
		most := rapid.IntRange(1280, 9200).Draw(t, "most")
		flags := byte(rapid.IntRange(0, 255).Draw(t, "flags"))
		p := superPacket(proto, options, payload, flags, uint16(seg))
		whole := bytes.Clone(p.Data)
		hdr := len(whole) - payload
		var got []byte
		n := 0
		ok := Split(p, most, func(ip []byte) {
			if len(ip) > most || int(binary.BigEndian.Uint16(ip[4:])) != len(ip)-40 || !checksumOK(ip) {
				t.Fatalf("piece %d of %d bytes, length field %d, checksum %v", n, len(ip), binary.BigEndian.Uint16(ip[4:]), checksumOK(ip))
			}
			if !bytes.Equal(ip[6:44], whole[6:44]) {
				t.Fatal("addresses or ports changed")
			}
			last := hdr+len(got)+len(ip)-hdr == len(whole)
			if proto == ProtoTCP {
				if s := binary.BigEndian.Uint32(ip[44:]); s != uint32(0xfffffff0)+uint32(len(got)) {
					t.Fatalf("piece %d has sequence %#x", n, s)
				}
				want := flags
				if !last {
					want &^= 0x09
				}
				if n > 0 {
					want &^= 0x80
				}
				if ip[53] != want {
					t.Fatalf("piece %d has flags %#x, want %#x", n, ip[53], want)
				}
				if !last && len(ip) != most {
					t.Fatalf("piece %d has %d bytes, %d would fit", n, len(ip), most)
				}
			} else if !last && len(ip) != hdr+seg {
				t.Fatalf("a datagram of %d bytes became one of %d", seg, len(ip)-hdr)
			}
			got = append(got, ip[hdr:]...)
			n++
		})
		if !ok {
			if proto == ProtoUDP && hdr+min(seg, payload) > most {
				return
			}
			t.Fatal("refused")
		}
		if !bytes.Equal(got, whole[hdr:]) {
			t.Fatal("the pieces are not the whole")
		}
	})
}

func TestSplitRefuses(t *testing.T) {
	no := func(ip []byte) { t.Errorf("emitted %d bytes", len(ip)) }
	tcp := superPacket(ProtoTCP, 0, 3000, 0x10, 1000)
	short := superPacket(ProtoTCP, 0, 3000, 0x10, 1000)
	short.Data[52] = 0x10 // a header of four bytes
	other := superPacket(ProtoTCP, 0, 3000, 0x10, 1000)
	other.Data[6] = 132
	for name, c := range map[string]struct {
		p    Packet
		most int
	}{
		"no room":      {tcp, 60},
		"short header": {short, 1280},
		"sctp":         {other, 1280},
		"cut":          {Packet{Data: tcp.Data[:50], SegSize: 10}, 1280},
		"too large":    {tcp, 70000},
		"datagram":     {superPacket(ProtoUDP, 0, 3000, 0, 1300), 1280},
	} {
		if Split(c.p, c.most, no) {
			t.Errorf("%s: not refused", name)
		}
	}
}
