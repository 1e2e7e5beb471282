package nat64

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"weft/tun"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	client6 = netip.MustParseAddr("200:1111::a")
	client4 = netip.MustParseAddr("100.64.0.7")
	server4 = netip.MustParseAddr("8.8.4.4")
	private = netip.MustParseAddr("192.168.1.1")
)

func prefix(t testing.TB, s string) Prefix {
	t.Helper()
	p, err := NewPrefix(netip.MustParsePrefix(s))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestEmbed holds RFC 6052 section 2.4, tables 1 and 2.
func TestEmbed(t *testing.T) {
	for _, v := range []struct{ prefix, v4, v6 string }{
		{"2001:db8::/32", "192.0.2.33", "2001:db8:c000:221::"},
		{"2001:db8:100::/40", "192.0.2.33", "2001:db8:1c0:2:21::"},
		{"2001:db8:122::/48", "192.0.2.33", "2001:db8:122:c000:2:2100::"},
		{"2001:db8:122:300::/56", "192.0.2.33", "2001:db8:122:3c0:0:221::"},
		{"2001:db8:122:344::/64", "192.0.2.33", "2001:db8:122:344:c0:2:2100::"},
		{"2001:db8:122:344::/96", "192.0.2.33", "2001:db8:122:344::192.0.2.33"},
		{"64:ff9b::/96", "8.8.8.8", "64:ff9b::8.8.8.8"},
	} {
		p := prefix(t, v.prefix)
		v4, v6 := netip.MustParseAddr(v.v4), netip.MustParseAddr(v.v6)
		if got, ok := p.Embed(v4); got != v6 || !ok {
			t.Errorf("%s in %s is %s, %v; want %s", v4, v.prefix, got, ok, v6)
		}
		if got, ok := p.Extract(v6); got != v4 || !ok {
			t.Errorf("%s out of %s is %s, %v; want %s", v6, v.prefix, got, ok, v4)
		}
		if _, ok := p.Extract(netip.MustParseAddr("2001:dead::1")); ok {
			t.Errorf("%s has an address that it does not hold", v.prefix)
		}
	}
	p := prefix(t, "64:ff9b::/96")
	for _, s := range []string{"10.0.0.1", "127.0.0.1", "192.168.1.1", "100.64.0.1", "169.254.1.1", "224.0.0.1", "255.255.255.255", "0.0.0.0", "::1"} {
		if got, ok := p.Embed(netip.MustParseAddr(s)); ok {
			t.Errorf("%s stands for %s, which is not public", got, s)
		}
	}
	if _, ok := p.Extract(netip.MustParseAddr("64:ff9b::10.0.0.1")); ok {
		t.Error("a private address came out of the well-known prefix")
	}
	for _, s := range []string{"64:ff9b::/64", "2001:db8::/33", "10.0.0.0/8", "2001:db8:0:0:ff00::/96", "2001:db8::1/96"} {
		_, err := NewPrefix(netip.MustParsePrefix(s))
		if ok := err == nil; ok != (s == "64:ff9b::/64") {
			t.Errorf("prefix %s: %v", s, err)
		}
	}
	if _, ok := (Prefix{}).Embed(server4); ok {
		t.Error("the zero prefix holds addresses")
	}
}

// What follows is a second, stupid implementation of packets and checksums.

func slowSum(b []byte) uint16 {
	var s uint32
	for i, x := range b {
		if i%2 == 0 {
			s += uint32(x) << 8
		} else {
			s += uint32(x)
		}
		for s > 0xffff {
			s = s&0xffff + s>>16
		}
	}
	return uint16(s)
}

func pseudo(src, dst netip.Addr, proto byte, length int) []byte {
	b := append(src.AsSlice(), dst.AsSlice()...)
	if src.Is4() {
		return append(b, 0, proto, byte(length>>8), byte(length))
	}
	return append(b, 0, 0, byte(length>>8), byte(length), 0, 0, 0, proto)
}

// seal fills in the transport checksum of a whole segment.
func seal(src, dst netip.Addr, proto byte, b []byte) []byte {
	at := map[byte]int{6: 16, 17: 6, 1: 2, 58: 2, 33: 6, 136: 6}[proto]
	b[at], b[at+1] = 0, 0
	all := bytes.Clone(b)
	if proto != 1 {
		all = append(pseudo(src, dst, proto, len(b)), b...)
	}
	c := ^slowSum(all)
	if c == 0 && proto != 1 && proto != 58 && proto != 6 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(b[at:], c)
	return b
}

func ip6(src, dst netip.Addr, proto byte, tos, hops byte, body []byte) []byte {
	b := []byte{0x60 | tos>>4, tos << 4, 0, 0, byte(len(body) >> 8), byte(len(body)), proto, hops}
	return append(append(append(b, src.AsSlice()...), dst.AsSlice()...), body...)
}

func ip4(src, dst netip.Addr, proto byte, tos, ttl byte, id, frag uint16, opts, body []byte) []byte {
	n := 20 + len(opts)
	b := []byte{0x40 | byte(n/4), tos, byte((n + len(body)) >> 8), byte(n + len(body)), byte(id >> 8), byte(id), byte(frag >> 8), byte(frag), ttl, proto, 0, 0}
	b = append(append(append(b, src.AsSlice()...), dst.AsSlice()...), opts...)
	binary.BigEndian.PutUint16(b[10:], ^slowSum(b))
	return append(b, body...)
}

// check verifies all that a receiver would verify of a whole packet.
func check(t interface{ Fatalf(string, ...any) }, p []byte) {
	var src, dst netip.Addr
	var proto byte
	var body []byte
	if p[0]>>4 == 4 {
		if slowSum(p[:int(p[0]&15)*4]) != 0xffff {
			t.Fatalf("wrong IPv4 header checksum: %x", p)
		}
		if int(binary.BigEndian.Uint16(p[2:])) != len(p) {
			t.Fatalf("wrong IPv4 length: %x", p)
		}
		src, dst, proto, body = netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:])), p[9], p[int(p[0]&15)*4:]
	} else {
		if int(binary.BigEndian.Uint16(p[4:]))+40 != len(p) {
			t.Fatalf("wrong IPv6 length: %x", p)
		}
		src, dst, proto, body = netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:])), p[6], p[40:]
	}
	if proto != 1 {
		body = append(pseudo(src, dst, proto, len(body)), body...)
	}
	switch proto {
	case 1, 6, 17, 33, 58, 136:
		if slowSum(body) != 0xffff {
			t.Fatalf("wrong checksum of protocol %d: %x", proto, p)
		}
	}
}

func tcpSegment(data []byte) []byte {
	return append([]byte{0x9c, 0x40, 0, 80, 1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x18, 1, 0, 0, 0, 0, 0}, data...)
}

func udpDatagram(data []byte) []byte {
	n := 8 + len(data)
	return append([]byte{0x9c, 0x40, 0, 53, byte(n >> 8), byte(n), 0, 0}, data...)
}

// inPlace6 puts p where To6 can leave it.
func inPlace6(p []byte) (dst, at []byte) {
	buf := make([]byte, 20, 20+len(p)+Headroom*2)
	buf = append(buf, p...)
	return buf[:0], buf[20:]
}

// TestRoundTrip: a packet to IPv4 and back is the same packet, but for what RFC 7915 says is lost; and in both forms a
// receiver finds all checksums right.
func TestRoundTrip(t *testing.T) {
	prefixes := []string{"64:ff9b::/96", "2001:db8::/32", "2001:db8:100::/40", "2001:db8:122::/48", "2001:db8:122:300::/56", "2001:db8:122:344::/64"}
	rapid.Check(t, func(t *rapid.T) {
		x, _ := NewPrefix(netip.MustParsePrefix(rapid.SampledFrom(prefixes).Draw(t, "prefix")))
		src := netip.AddrFrom16([16]byte(append([]byte{2}, rapid.SliceOfN(rapid.Byte(), 15, 15).Draw(t, "src")...)))
		dst, _ := x.Embed(server4)
		data := rapid.SliceOfN(rapid.Byte(), 0, 1400).Draw(t, "data")
		tos, hops := rapid.Byte().Draw(t, "tos"), rapid.ByteRange(3, 255).Draw(t, "hops")
		proto := rapid.SampledFrom([]byte{6, 17, 33, 136, 58, 50, 132}).Draw(t, "proto")
		body := data
		switch proto {
		case 6:
			body = seal(src, dst, proto, tcpSegment(data))
		case 17, 136:
			body = seal(src, dst, proto, udpDatagram(data))
		case 33:
			body = seal(src, dst, proto, append(make([]byte, 12), data...))
		case 58:
			body = seal(src, dst, proto, append([]byte{128 + rapid.ByteRange(0, 1).Draw(t, "reply"), 0, 0, 0, 1, 2, 3, 4}, data...))
		}
		p := ip6(src, dst, proto, tos, hops, body)
		want := bytes.Clone(p)
		want[7] -= 2

		four, err := x.To4(nil, p, client4)
		if err != nil {
			t.Fatalf("To4: %v", err)
		}
		check(t, four)
		if four[1] != tos || four[8] != hops-1 {
			t.Fatalf("TOS %d, TTL %d; want %d, %d", four[1], four[8], tos, hops-1)
		}
		if df := four[6]&0x40 != 0; df != (len(four) > 1260) {
			t.Fatalf("DF is %v in a packet of %d bytes", df, len(four))
		}
		q := bytes.Clone(p)
		if moved, err := x.To4(q[20:20], q, client4); err != nil || !bytes.Equal(moved, four) || &moved[0] != &q[20] {
			t.Fatalf("in place: %v, %x; want %x", err, moved, four)
		}
		// The way back swaps the ends, which leaves all checksums as they were.
		back := bytes.Clone(four)
		copy(back[12:], server4.AsSlice())
		copy(back[16:], client4.AsSlice())
		at := map[byte]int{6: 56, 17: 46, 33: 46, 58: 42, 136: 46}[proto]
		six, err := x.To6(nil, back, src)
		if err != nil {
			t.Fatalf("To6: %v", err)
		}
		check(t, six)
		copy(want[8:], dst.AsSlice())
		copy(want[24:], src.AsSlice())
		if at != 0 && slowSum(want[at:at+2])^slowSum(six[at:at+2]) == 0xffff {
			copy(want[at:], six[at:at+2]) // the two zeros of ones' complement
		}
		if diff := cmp.Diff(want, six); diff != "" {
			t.Fatalf("came back as another packet: %s", diff)
		}
		into, from := inPlace6(back)
		if moved, err := x.To6(into, from, src); err != nil || !bytes.Equal(moved, six) || &moved[0] != &into[:1][0] {
			t.Fatalf("in place: %v, %x; want %x", err, moved, six)
		}
	})
}

// TestFragments: fragments cross one by one and are the whole again on the other side.
func TestFragments(t *testing.T) {
	x := prefix(t, "64:ff9b::/96")
	dst, _ := x.Embed(server4)
	rapid.Check(t, func(t *rapid.T) {
		data := rapid.SliceOfN(rapid.Byte(), 1400, 6000).Draw(t, "data")
		whole := ip6(client6, dst, 17, 0, 64, seal(client6, dst, 17, udpDatagram(data)))
		mtu := rapid.IntRange(1280, 2000).Draw(t, "mtu")
		var joined []byte
		last := false
		err := Fragment(whole, mtu, 0xabcd1234, make([]byte, mtu), func(f []byte) error {
			if len(f) > mtu {
				t.Fatalf("a fragment of %d bytes, MTU %d", len(f), mtu)
			}
			four, err := x.To4(nil, f, client4)
			if err != nil {
				return err
			}
			if slowSum(four[:20]) != 0xffff {
				t.Fatalf("wrong header checksum")
			}
			w := binary.BigEndian.Uint16(four[6:])
			if len(whole) > mtu && (int(w&0x1fff)*8 != len(joined) || w&0x4000 != 0 || binary.BigEndian.Uint16(four[4:]) != 0x1234) {
				t.Fatalf("offset and flags %x, id %x, have %d bytes", w, four[4:6], len(joined))
			}
			joined = append(joined, four[20:]...)
			last = w&0x2000 == 0

			// And back.
			copy(four[12:], server4.AsSlice())
			copy(four[16:], client4.AsSlice())
			into, from := inPlace6(four)
			six, err := x.To6(into, from, client6)
			if err != nil {
				return err
			}
			plain, err := x.To6(nil, four, client6)
			if err != nil || !bytes.Equal(six, plain) {
				t.Fatalf("in place: %x, otherwise: %x, %v", six, plain, err)
			}
			if w&0x2000 != 0 && (six[6] != 44 || !bytes.Equal(six[42:44], f[42:44]) || binary.BigEndian.Uint32(six[44:]) != 0x1234) {
				t.Fatalf("fragment header %x, was %x", six[40:48], f[40:48])
			}
			return nil
		})
		if err != nil || !last {
			t.Fatalf("%v, last seen: %v", err, last)
		}
		check(t, ip4(client4, server4, 17, 0, 64, 0, 0, nil, joined))
	})
}

// TestErrors4 and TestErrors6 hold the tables of RFC 7915 sections 4.2 and 5.2, with packets inside.
func TestErrorsTo4(t *testing.T) {
	x := prefix(t, "64:ff9b::/96")
	srv, _ := x.Embed(server4)
	inner := ip6(srv, client6, 6, 0, 50, seal(srv, client6, 6, tcpSegment([]byte("hello"))))
	echo := ip6(srv, client6, 58, 0, 50, seal(srv, client6, 58, []byte{128, 0, 0, 0, 1, 2, 3, 4, 5}))
	for _, v := range []struct {
		typ, code byte
		rest      uint32
		want      string
	}{
		{1, 0, 0, "3/1 0"}, {1, 1, 0, "3/10 0"}, {1, 2, 0, "3/1 0"}, {1, 3, 0, "3/1 0"}, {1, 4, 0, "3/3 0"}, {1, 5, 0, ""},
		{2, 0, 1400, "3/4 1380"}, {2, 0, 1000, "3/4 1260"}, {2, 0, 1 << 31, "3/4 65535"},
		{3, 0, 0, "11/0 0"}, {3, 1, 0, "11/1 0"},
		{4, 1, 6, "3/2 0"}, {4, 2, 40, ""},
		{4, 0, 0, "12/0 0"}, {4, 0, 1, "12/0 16777216"}, {4, 0, 2, ""}, {4, 0, 4, "12/0 33554432"}, {4, 0, 6, "12/0 150994944"},
		{4, 0, 7, "12/0 134217728"}, {4, 0, 8, "12/0 201326592"}, {4, 0, 39, "12/0 268435456"}, {4, 0, 40, ""},
		{133, 0, 0, ""}, {135, 0, 0, ""}, {130, 0, 0, ""}, {0, 0, 0, ""}, {255, 0, 0, ""},
	} {
		for _, in := range [][]byte{inner, echo} {
			body := append([]byte{v.typ, v.code, 0, 0, byte(v.rest >> 24), byte(v.rest >> 16), byte(v.rest >> 8), byte(v.rest)}, in...)
			router := netip.MustParseAddr("300:1111::1")
			p := ip6(router, srv, 58, 0, 64, seal(router, srv, 58, body))
			if got, ok := Source(p); v.want != "" && (got != client6 || !ok) {
				t.Errorf("%d/%d: Source is %s", v.typ, v.code, got)
			}
			four, err := x.To4(nil, p, client4)
			if v.want == "" {
				if !errors.Is(err, ErrICMP) {
					t.Errorf("%d/%d: %v", v.typ, v.code, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%d/%d: %v", v.typ, v.code, err)
				continue
			}
			check(t, four)
			check(t, four[28:])
			if got := fmt.Sprintf("%d/%d %d", four[20], four[21], binary.BigEndian.Uint32(four[24:])); got != v.want {
				t.Errorf("%d/%d %d became %s, want %s", v.typ, v.code, v.rest, got, v.want)
			}
			if !bytes.Equal(four[40:48], append(server4.AsSlice(), client4.AsSlice()...)) {
				t.Errorf("the packet inside is from %v to %v", four[40:44], four[44:48])
			}
			if moved, err := x.To4(p[20:20], p, client4); err != nil || !bytes.Equal(moved, four) {
				t.Errorf("in place: %v, %x; want %x", err, moved, four)
			}
		}
	}
}

func TestErrorsTo6(t *testing.T) {
	x := prefix(t, "64:ff9b::/96")
	srv, _ := x.Embed(server4)
	inner := ip4(client4, server4, 17, 0, 50, 7, 0x4000, nil, seal(client4, server4, 17, udpDatagram([]byte("hello"))))
	echo := ip4(client4, server4, 1, 0, 50, 7, 0x4000, nil, seal(client4, server4, 1, []byte{8, 0, 0, 0, 1, 2, 3, 4, 5}))
	for _, v := range []struct {
		typ, code byte
		rest      uint32
		want      string
	}{
		{3, 0, 0, "1/0 0"}, {3, 1, 0, "1/0 0"}, {3, 2, 0, "4/1 6"}, {3, 3, 0, "1/4 0"}, {3, 4, 1400, "2/0 1420"}, {3, 4, 500, "2/0 1280"},
		{3, 4, 0, "2/0 1300"}, {3, 5, 0, "1/0 0"}, {3, 6, 0, "1/0 0"}, {3, 7, 0, "1/0 0"}, {3, 8, 0, "1/0 0"}, {3, 9, 0, "1/1 0"},
		{3, 10, 0, "1/1 0"}, {3, 11, 0, "1/0 0"}, {3, 12, 0, "1/0 0"}, {3, 13, 0, "1/1 0"}, {3, 14, 0, ""}, {3, 15, 0, "1/1 0"}, {3, 16, 0, ""},
		{4, 0, 0, ""}, {5, 0, 0, ""}, {11, 0, 0, "3/0 0"}, {11, 1, 0, "3/1 0"},
		{12, 0, 0, "4/0 0"}, {12, 0, 1 << 24, "4/0 1"}, {12, 2, 2 << 24, "4/0 4"}, {12, 0, 4 << 24, ""}, {12, 0, 8 << 24, "4/0 7"}, {12, 0, 9 << 24, "4/0 6"},
		{12, 0, 10 << 24, ""}, {12, 0, 12 << 24, "4/0 8"}, {12, 0, 16 << 24, "4/0 24"}, {12, 0, 20 << 24, ""}, {12, 1, 0, ""},
		{13, 0, 0, ""}, {9, 0, 0, ""}, {15, 0, 0, ""},
	} {
		for _, in := range [][]byte{inner, echo} {
			for _, router := range []netip.Addr{netip.MustParseAddr("9.9.9.9"), private} {
				body := append([]byte{v.typ, v.code, 0, 0, byte(v.rest >> 24), byte(v.rest >> 16), byte(v.rest >> 8), byte(v.rest)}, in...)
				p := ip4(router, client4, 1, 0, 64, 1, 0, nil, seal(router, client4, 1, body))
				six, err := x.To6(nil, p, client6)
				if v.want == "" {
					if !errors.Is(err, ErrICMP) {
						t.Errorf("%d/%d: %v", v.typ, v.code, err)
					}
					continue
				}
				if err != nil {
					t.Errorf("%d/%d: %v", v.typ, v.code, err)
					continue
				}
				check(t, six)
				check(t, six[48:])
				if got := fmt.Sprintf("%d/%d %d", six[40], six[41], binary.BigEndian.Uint32(six[44:])); got != v.want {
					t.Errorf("%d/%d %d became %s, want %s", v.typ, v.code, v.rest, got, v.want)
				}
				if !bytes.Equal(six[56:88], append(client6.AsSlice(), srv.AsSlice()...)) {
					t.Errorf("the packet inside is %x", six[48:])
				}
				into, from := inPlace6(p)
				if moved, err := x.To6(into, from, client6); err != nil || !bytes.Equal(moved, six) {
					t.Errorf("in place: %v, %x; want %x", err, moved, six)
				}
			}
		}
	}
	// About a packet that somebody else has sent.
	alien := ip4(client4, server4, 1, 0, 64, 1, 0, nil, seal(client4, server4, 1, append([]byte{3, 1, 0, 0, 0, 0, 0, 0},
		ip4(client4.Next(), server4, 17, 0, 50, 7, 0x4000, nil, udpDatagram(nil))...)))
	copy(alien[12:], server4.AsSlice())
	copy(alien[16:], client4.AsSlice())
	if got, err := x.To6(nil, alien, client6); !errors.Is(err, ErrICMP) {
		t.Errorf("an error about somebody else's packet: %x, %v", got, err)
	}
	// A router that does not say how big: the next plateau below (RFC 1191).
	big := ip4(client4, server4, 17, 0, 50, 7, 0x4000, nil, seal(client4, server4, 17, udpDatagram(make([]byte, 1472))))
	p := ip4(server4, client4, 1, 0, 64, 1, 0, nil, seal(server4, client4, 1, append([]byte{3, 4, 0, 0, 0, 0, 0, 0}, big...)))
	six, err := x.To6(nil, p, client6)
	if err != nil || binary.BigEndian.Uint32(six[44:]) != 1512 || len(six) != 1280 {
		t.Errorf("%d bytes say MTU %d, %v; want 1280 bytes, 1492+20", len(six), binary.BigEndian.Uint32(six[44:]), err)
	}
	// Extensions (RFC 4884) are cut off.
	inner = append(inner, make([]byte, 128-len(inner))...)
	ext := append(bytes.Clone(inner), 0x20, 0, 0, 0, 0, 8, 1, 1, 1, 2, 3, 4)
	p = ip4(server4, client4, 1, 0, 64, 1, 0, nil, seal(server4, client4, 1, append([]byte{11, 0, 0, 0, 0, 32, 0, 0}, ext...)))
	if six, err = x.To6(nil, p, client6); err != nil || six[44] != 0 || len(six) != 88+13 {
		t.Errorf("extensions: %v, %x", err, six)
	}
}

// TestUDPZero: a sum that comes out as zero is written as its other form, since zero means that there is none.
func TestUDPZero(t *testing.T) {
	x := prefix(t, "64:ff9b::/96")
	srv, _ := x.Embed(server4)
	d := seal(client4, server4, 17, udpDatagram([]byte{0, 0}))
	d[8], d[9] = d[6], d[7] // now the sum over all is 0xffff
	p := ip6(client6, srv, 17, 0, 64, seal(client6, srv, 17, d))
	four, err := x.To4(nil, p, client4)
	if err != nil || four[26] != 0xff || four[27] != 0xff {
		t.Fatalf("%x, %v", four, err)
	}
	check(t, four)
}

// TestRefused: each reason has its error.
func TestRefused(t *testing.T) {
	x := prefix(t, "64:ff9b::/96")
	srv, _ := x.Embed(server4)
	good := func() []byte {
		return ip6(client6, srv, 17, 0, 64, seal(client6, srv, 17, udpDatagram([]byte("hello"))))
	}
	ext := func(kind byte, hdr ...byte) []byte {
		p := good()
		return ip6(client6, srv, kind, 0, 64, append(append([]byte{17}, hdr...), p[40:]...))
	}
	at := func(p []byte, i int, v byte) []byte { p[i] = v; return p }
	for _, v := range []struct {
		name string
		p    []byte
		want error
	}{
		{"good", good(), nil},
		{"hop by hop", ext(0, 0, 1, 4, 0, 0, 0, 0), nil},
		{"destination options", ext(60, 0, 1, 4, 0, 0, 0, 0), nil},
		{"routing, used up", ext(43, 0, 4, 0, 0, 0, 0, 0), nil},
		{"routing", ext(43, 0, 4, 1, 0, 0, 0, 0), ErrRouting},
		{"AH", ext(51, 4, 0, 0, 0, 0, 0, 0), ErrExtension},
		{"mobility", ext(135, 0, 0, 0, 0, 0, 0, 0), ErrExtension},
		{"atomic fragment", ext(44, 0, 0, 0, 0, 0, 0, 1), nil},
		{"long extension", ext(60, 255, 1, 4, 0, 0, 0, 0), ErrMalformed},
		{"odd fragment", ext(44, 0, 0, 1, 0, 0, 0, 1), ErrMalformed},
		{"short", good()[:39], ErrMalformed},
		{"cut", good()[:45], ErrMalformed},
		{"version", at(good(), 0, 0x40), ErrMalformed},
		{"hop limit", at(good(), 7, 1), ErrHopLimit},
		{"no UDP checksum", at(at(good(), 46, 0), 47, 0), ErrChecksum},
		{"multicast source", at(good(), 8, 0xff), ErrSource},
		{"other destination", at(good(), 24, 0x20), ErrDestination},
		{"private destination", at(good(), 36, 10), ErrDestination},
		{"loopback destination", at(good(), 36, 127), ErrDestination},
		{"ICMP of IPv4", at(good(), 6, 1), ErrExtension},
		{"fragment of ICMP", at(ext(44, 0, 0, 8, 0, 0, 0, 1), 40, 58), ErrFragment},
		{"empty ICMP", ip6(client6, srv, 58, 0, 64, nil), ErrMalformed},
	} {
		if got, err := x.To4(nil, v.p, client4); !errors.Is(err, v.want) || err == nil && got[9] != 17 {
			t.Errorf("%s: %x, %v; want %v", v.name, got, err, v.want)
		}
	}
	dgram := seal(server4, client4, 17, udpDatagram([]byte("hello")))
	none := udpDatagram([]byte("hello"))
	four := func(src netip.Addr, ttl byte, frag uint16, opts, body []byte) []byte {
		return ip4(src, client4, 17, 0, ttl, 1, frag, opts, body)
	}
	for _, v := range []struct {
		name string
		p    []byte
		want error
	}{
		{"good", four(server4, 64, 0, nil, dgram), nil},
		{"record route", four(server4, 64, 0, []byte{7, 7, 4, 0, 0, 0, 0, 0}, dgram), nil},
		{"source route", four(server4, 64, 0, []byte{0x83, 7, 4, 0, 0, 0, 0, 0}, dgram), ErrRouting},
		{"source route, used up", four(server4, 64, 0, []byte{1, 0x89, 7, 8, 0, 0, 0, 0}, dgram), nil},
		{"TTL", four(server4, 1, 0, nil, dgram), ErrHopLimit},
		{"private source", four(private, 64, 0, nil, dgram), ErrSource},
		{"multicast source", four(netip.MustParseAddr("224.0.0.1"), 64, 0, nil, dgram), ErrSource},
		{"no checksum", four(server4, 64, 0, nil, none), nil},
		{"no checksum, fragment", four(server4, 64, 0x2000, nil, append(none, 0, 0, 0)), ErrChecksum},
		{"header checksum", at(four(server4, 64, 0, nil, dgram), 8, 63), ErrMalformed},
		{"cut", four(server4, 64, 0, nil, dgram)[:27], ErrMalformed},
		{"beyond the end", four(server4, 64, 0x1fff, nil, dgram), ErrMalformed},
	} {
		got, err := x.To6(nil, v.p, client6)
		if !errors.Is(err, v.want) {
			t.Errorf("%s: %x, %v; want %v", v.name, got, err, v.want)
		}
		if err == nil {
			check(t, got)
		}
	}
	if _, err := (Prefix{}).To4(nil, good(), client4); err == nil {
		t.Error("the zero prefix translates")
	}
	if _, err := (Prefix{}).To6(nil, four(server4, 64, 0, nil, dgram), client6); err == nil {
		t.Error("the zero prefix translates")
	}
}

// TestOffload: a super-packet with a partial checksum crosses both ways.
func TestOffload(t *testing.T) {
	x := prefix(t, "64:ff9b::/96")
	srv, _ := x.Embed(server4)
	p := ip6(client6, srv, 6, 0, 64, seal(client6, srv, 6, tcpSegment(make([]byte, 60000))))
	want, err := x.To4(nil, p, client4)
	if err != nil {
		t.Fatal(err)
	}
	tun.SetPartial(p)
	four, err := x.To4(nil, p, client4)
	if err != nil || !tun.SetPartial(four) {
		t.Fatal(err)
	}
	if partial := bytes.Clone(want); !tun.SetPartial(partial) || !bytes.Equal(four, partial) {
		t.Error("another packet with a partial checksum than without")
	}
	if !tun.FinishChecksum(four) || !bytes.Equal(four, want) {
		t.Error("the checksum does not come out right")
	}
	check(t, four)
}

func TestNoAllocations(t *testing.T) {
	x := prefix(t, "64:ff9b::/96")
	srv, _ := x.Embed(server4)
	six := ip6(client6, srv, 6, 0, 64, seal(client6, srv, 6, tcpSegment(make([]byte, 1200))))
	four := ip4(server4, client4, 6, 0, 64, 1, 0x4000, nil, seal(server4, client4, 6, tcpSegment(make([]byte, 1200))))
	buf := make([]byte, 0, 2000)
	tab := table(t, 10, 10)
	tab.Map(Owner{1}, client6)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := x.To4(buf, six, client4); err != nil {
			t.Fatal(err)
		}
		if _, err := x.To6(buf, four, client6); err != nil {
			t.Fatal(err)
		}
		a, _ := tab.Map(Owner{1}, client6)
		tab.Reverse(a)
	}); n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
}

func BenchmarkTo4(b *testing.B) {
	x := prefix(b, "64:ff9b::/96")
	srv, _ := x.Embed(server4)
	p := ip6(client6, srv, 6, 0, 64, seal(client6, srv, 6, tcpSegment(make([]byte, 1200))))
	buf := make([]byte, 0, 2000)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if _, err := x.To4(buf, p, client4); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzTranslate(f *testing.F) {
	x := prefix(f, "64:ff9b::/96")
	srv, _ := x.Embed(server4)
	dgram := ip6(client6, srv, 17, 0, 64, seal(client6, srv, 17, udpDatagram([]byte("hello"))))
	f.Add(dgram)
	f.Add(ip6(client6, srv, 58, 0, 64, seal(client6, srv, 58, append([]byte{2, 0, 0, 0, 0, 0, 5, 0}, ip6(srv, client6, 6, 0, 9, tcpSegment(nil))...))))
	f.Add(ip6(client6, srv, 44, 0, 64, append([]byte{17, 0, 0, 1, 0, 0, 0, 1}, dgram[40:]...)))
	in := ip4(client4, server4, 17, 0, 64, 1, 0, nil, udpDatagram(nil))
	f.Add(ip4(server4, client4, 17, 0, 64, 1, 0x2000, nil, append(udpDatagram(nil), 1, 2, 3, 4, 5, 6, 7, 8)))
	f.Add(ip4(server4, client4, 1, 0, 64, 1, 0, nil, append([]byte{3, 4, 0, 0, 0, 0, 5, 0}, in...)))
	f.Add(ip4(private, client4, 1, 0, 64, 1, 0, []byte{1, 1, 1, 0}, append([]byte{12, 0, 0, 0, 8, 0, 0, 0}, in...)))
	f.Fuzz(func(t *testing.T, p []byte) {
		if out, err := x.To4(nil, p, client4); err == nil {
			var k packet
			if err := k.parse4(out, false); err != nil {
				t.Fatalf("made a packet that does not parse: %v, %x", err, out)
			}
			if len(out) > len(p) || netip.AddrFrom4(k.src4) != client4 {
				t.Fatalf("%x became %x", p, out)
			}
			q := bytes.Clone(p)
			if in, err := x.To4(q[20:20], q, client4); err != nil || !bytes.Equal(in, out) {
				t.Fatalf("in place %x, %v; want %x", in, err, out)
			}
		}
		if len(p) >= 20 && p[0]>>4 == 4 { // let the fuzzer past the checksum
			p = bytes.Clone(p)
			if n := int(p[0]&15) * 4; n >= 20 && n <= len(p) {
				p[10], p[11] = 0, 0
				binary.BigEndian.PutUint16(p[10:], ^slowSum(p[:n]))
			}
		}
		if out, err := x.To6(nil, p, client6); err == nil {
			var k packet
			if err := k.parse6(out, false); err != nil {
				t.Fatalf("made a packet that does not parse: %v, %x", err, out)
			}
			if len(out) > len(p)+2*Headroom || netip.AddrFrom16(k.dst6) != client6 {
				t.Fatalf("%x became %x", p, out)
			}
			into, from := inPlace6(p)
			if in, err := x.To6(into, from, client6); err != nil || !bytes.Equal(in, out) {
				t.Fatalf("in place %x, %v; want %x", in, err, out)
			}
		}
		Source(p)
		Fragment(p, 1280, 1, make([]byte, 1280), func([]byte) error { return nil })
	})
}

// table returns one whose pool is 100.64.0.0/10.
func table(t testing.TB, most, perOwner int) *Table {
	t.Helper()
	next, free := client4, []netip.Addr(nil)
	tab, err := NewTable(TableConfig{Max: most, PerOwner: perOwner, Idle: time.Hour,
		Take: func(Owner, netip.Addr) (netip.Addr, bool) {
			if n := len(free); n > 0 {
				a := free[n-1]
				free = free[:n-1]
				return a, true
			}
			next = next.Next()
			return next, true
		},
		Give: func(a netip.Addr) { free = append(free, a) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func TestTable(t *testing.T) {
	tab := table(t, 4, 3)
	start := time.Unix(1e9, 0)
	tab.Tick(start)
	a, b := Owner{1}, Owner{2}
	dev := func(i byte) netip.Addr { return netip.AddrFrom16([16]byte{3, 15: i}) }
	first, ok := tab.Map(a, dev(1))
	if again, ok2 := tab.Map(a, dev(1)); !ok || !ok2 || first != again {
		t.Fatal("no address, or two")
	}
	if v6, owner, ok := tab.Reverse(first); v6 != dev(1) || owner != a || !ok {
		t.Errorf("Reverse: %v %v %v", v6, owner, ok)
	}
	if _, ok := tab.Map(b, dev(1)); ok {
		t.Error("an address of one owner served another")
	}
	tab.Map(a, dev(2))
	tab.Map(a, dev(3))
	if _, ok := tab.Map(a, dev(4)); ok {
		t.Error("more than the owner's share")
	}
	tab.Map(b, dev(11))
	if _, ok := tab.Map(b, dev(12)); ok {
		t.Error("more than the table may hold")
	}
	tab.Tick(start.Add(4 * time.Minute))
	tab.Map(a, dev(1))
	tab.Map(a, dev(3))
	tab.Tick(start.Add(6 * time.Minute))
	if _, ok := tab.Map(a, dev(5)); !ok {
		t.Error("an owner's oldest address makes no room for its newest")
	}
	if v4, ok := tab.Map(a, dev(1)); !ok || v4 != first {
		t.Error("the wrong one made room")
	}
	tab.Tick(start.Add(62 * time.Minute))
	if n := tab.Len(); n != 3 {
		t.Errorf("%d addresses in use, want 3: %v's was idle", n, b)
	}
	tab.Tick(start) // never backwards
	tab.Release(a)
	if n := tab.Len(); n != 0 || len(tab.owners) != 0 || len(tab.by4) != 0 {
		t.Errorf("%d addresses after the lease's end", n)
	}
	for _, bad := range []string{"1.2.3.4", "::ffff:1.2.3.4"} {
		if _, ok := tab.Map(a, netip.MustParseAddr(bad)); ok {
			t.Errorf("%s has got an address", bad)
		}
	}
}

// TestTableModel: beside the table a map.
func TestTableModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		tab := table(t, 8, 3)
		now := time.Unix(1e9, 0)
		tab.Tick(now)
		type use struct {
			v4    netip.Addr
			owner Owner
		}
		model := map[netip.Addr]use{}
		for range 60 {
			switch rapid.IntRange(0, 9).Draw(rt, "what") {
			default:
				o := Owner{rapid.ByteRange(1, 4).Draw(rt, "owner")}
				v6 := netip.AddrFrom16([16]byte{3, 15: rapid.ByteRange(1, 12).Draw(rt, "v6")})
				v4, ok := tab.Map(o, v6)
				if old, had := model[v6]; had && tab.Len() == len(model) && ok && (old.v4 != v4 || old.owner != o) {
					rt.Fatalf("%s moved from %v to %v", v6, old, v4)
				}
				if !ok {
					continue
				}
				model[v6] = use{v4, o}
			case 8:
				now = now.Add(time.Duration(rapid.IntRange(0, 40).Draw(rt, "minutes")) * time.Minute)
				tab.Tick(now)
			case 9:
				tab.Release(Owner{rapid.ByteRange(1, 4).Draw(rt, "owner")})
			}
			seen, per := map[netip.Addr]bool{}, map[Owner]int{}
			for v6, u := range model {
				back, owner, ok := tab.Reverse(u.v4)
				if !ok || back != v6 {
					delete(model, v6)
					continue
				}
				if seen[u.v4] || owner != u.owner {
					rt.Fatalf("%s stands for two, or has changed hands", u.v4)
				}
				seen[u.v4] = true
				per[owner]++
			}
			if tab.Len() != len(model) || tab.Len() > 8 || per[Owner{1}] > 3 {
				rt.Fatalf("%d in the table, %d in the model, %v", tab.Len(), len(model), per)
			}
		}
	})
}
