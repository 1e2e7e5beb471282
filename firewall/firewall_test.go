package firewall

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/ident"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	me     = ident.PublicKey{1, 2, 3}
	friend = ident.PublicKey{4, 5, 6}
	other  = ident.PublicKey{7, 8, 9}
	t0     = time.Unix(1_800_000_000, 0)
)

// behind returns an address in k's subnet.
func behind(k ident.PublicKey, n byte) netip.Addr {
	a := k.Subnet().Addr().As16()
	a[15] = n
	return netip.AddrFrom16(a)
}

func ip6(src, dst netip.Addr, proto uint8, payload []byte) []byte {
	b := make([]byte, 40, 40+len(payload))
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	b[6], b[7] = proto, 64
	s, d := src.As16(), dst.As16()
	copy(b[8:], s[:])
	copy(b[24:], d[:])
	return append(b, payload...)
}

func tcp(src, dst netip.AddrPort, flags uint8) []byte {
	b := make([]byte, 24)
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	b[12], b[13] = 5<<4, flags
	return ip6(src.Addr(), dst.Addr(), protoTCP, b)
}

func udp(src, dst netip.AddrPort) []byte {
	b := make([]byte, 12)
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
	return ip6(src.Addr(), dst.Addr(), protoUDP, b)
}

func icmp(src, dst netip.Addr, typ uint8, id uint16, body []byte) []byte {
	b := make([]byte, 8, 8+len(body))
	b[0] = typ
	binary.BigEndian.PutUint16(b[4:], id)
	return ip6(src, dst, protoICMP, append(b, body...))
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func newFirewall(t testing.TB, rules ...string) *Firewall {
	t.Helper()
	f, err := New(me, mustRules(t, rules...), t0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func mustRules(t testing.TB, rules ...string) Rules {
	t.Helper()
	rs, err := ParseRules(rules, map[string][]string{"family": {friend.String()}, "empty": nil})
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

func expect(t testing.TB, p *Peer, ip []byte, want bool, what string) {
	t.Helper()
	if got := p.In(ip); got != want {
		t.Errorf("%s: In = %v, want %v", what, got, want)
	}
}

func TestClosedByDefaultAndRepliesPass(t *testing.T) {
	f := newFirewall(t)
	p := f.Peer(friend, false)
	here, there := at(me.Addr(), 40000), at(friend.Addr(), 80)
	expect(t, p, tcp(there, at(me.Addr(), 22), syn), false, "SYN to a closed port")
	expect(t, p, udp(there, here), false, "UDP nobody asked for")
	expect(t, p, icmp(friend.Addr(), me.Addr(), 128, 1, nil), true, "echo request")
	expect(t, p, icmp(friend.Addr(), behind(me, 1), 128, 1, nil), false, "echo request to a device behind")
	expect(t, p, icmp(friend.Addr(), me.Addr(), 129, 1, nil), false, "echo reply nobody asked for")

	p.Out(tcp(here, there, syn))
	expect(t, p, tcp(there, here, syn|ack), true, "SYN+ACK")
	p.Out(tcp(here, there, ack))
	expect(t, p, tcp(there, here, ack), true, "data")
	expect(t, p, tcp(there, at(me.Addr(), 40001), ack), false, "data to another port")
	expect(t, p, tcp(there, here, syn), false, "the server connects back over the same ports")

	p.Out(udp(here, there))
	expect(t, p, udp(there, here), true, "UDP reply")
	p.Out(icmp(me.Addr(), friend.Addr(), 128, 7, nil))
	expect(t, p, icmp(friend.Addr(), me.Addr(), 129, 7, nil), true, "echo reply")
	expect(t, p, icmp(friend.Addr(), me.Addr(), 129, 8, nil), false, "echo reply with another identifier")

	// Another peer gains nothing from it.
	q := f.Peer(other, false)
	expect(t, q, udp(at(other.Addr(), 80), here), false, "another peer")
	expect(t, q, udp(there, here), false, "another peer with a stolen address")
}
