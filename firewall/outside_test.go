package firewall

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

// packet4 makes an IPv4 packet of a protocol with ports or whatever head begins with.
func packet4(from, to string, proto byte, head ...byte) []byte {
	b := append(make([]byte, 20), head...)
	b[0], b[8], b[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], netip.MustParseAddr(from).AsSlice())
	copy(b[16:], netip.MustParseAddr(to).AsSlice())
	return b
}

func packet6(from, to string, proto byte, head ...byte) []byte {
	b := append(make([]byte, 40), head...)
	b[0], b[6], b[7] = 0x60, proto, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(head)))
	copy(b[8:], netip.MustParseAddr(from).AsSlice())
	copy(b[24:], netip.MustParseAddr(to).AsSlice())
	return b
}

func udpHead(src, dst uint16) []byte {
	return []byte{byte(src >> 8), byte(src), byte(dst >> 8), byte(dst), 0, 8, 0, 0}
}

func tcpHead(src, dst uint16, flags byte) []byte {
	return append(udpHead(src, dst)[:4], 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 1, 0, 0, 0, 0)
}

// From the internet come answers and nothing else, whatever the rules allow.
func TestOutsideIsClosed(t *testing.T) {
	rules, err := ParseRules([]string{"allow any from any", "allow any to behind from any"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := New(me, rules, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	p := f.Outside()
	const us4, web4, us6, web6 = "100.64.0.9", "192.0.2.1", "200::9", "2001:db8::1"
	for name, c := range map[string]struct{ out, in []byte }{
		"tcp4":    {packet4(us4, web4, 6, tcpHead(1000, 80, syn)...), packet4(web4, us4, 6, tcpHead(80, 1000, syn|ack)...)},
		"udp4":    {packet4(us4, web4, 17, udpHead(1000, 53)...), packet4(web4, us4, 17, udpHead(53, 1000)...)},
		"echo4":   {packet4(us4, web4, 1, 8, 0, 0, 0, 0, 7, 0, 1), packet4(web4, us4, 1, 0, 0, 0, 0, 0, 7, 0, 1)},
		"tcp6":    {packet6(us6, web6, 6, tcpHead(1000, 80, syn)...), packet6(web6, us6, 6, tcpHead(80, 1000, syn|ack)...)},
		"echo6":   {packet6(us6, web6, 58, 128, 0, 0, 0, 0, 7, 0, 1), packet6(web6, us6, 58, 129, 0, 0, 0, 0, 7, 0, 1)},
		"error4":  {packet4(us4, web4, 17, udpHead(9, 9)...), packet4("198.51.100.1", us4, 1, append([]byte{3, 4, 0, 0, 0, 0, 5, 0}, packet4(us4, web4, 17, udpHead(9, 9)...)...)...)},
		"expired": {packet4(us4, web4, 6, tcpHead(9, 9, syn)...), packet4("198.51.100.1", us4, 1, append([]byte{11, 0, 0, 0, 0, 0, 0, 0}, packet4(us4, web4, 6, tcpHead(9, 9, syn)[:8]...)...)...)},
	} {
		if p.In(c.in) {
			t.Errorf("%s: an answer to nothing passed", name)
		}
		p.Out(c.out)
		if !p.In(c.in) {
			t.Errorf("%s: the answer was refused", name)
		}
	}
	for name, in := range map[string][]byte{
		"echo request 4": packet4(web4, us4, 1, 8, 0, 0, 0, 0, 7, 0, 1),
		"echo request 6": packet6(web6, us6, 58, 128, 0, 0, 0, 0, 7, 0, 1),
		"other port":     packet4(web4, us4, 17, udpHead(53, 1001)...),
		"other host":     packet4("192.0.2.2", us4, 17, udpHead(53, 1000)...),
		"from the mesh":  packet6("200::8", us6, 17, udpHead(53, 1000)...),
		"stolen error":   packet4(web4, "100.64.0.8", 1, append([]byte{3, 4, 0, 0, 0, 0, 5, 0}, packet4(us4, web4, 17, udpHead(9, 9)...)...)...),
		"later fragment": func() []byte { b := packet4(web4, us4, 17, make([]byte, 64)...); b[7] = 100; return b }(),
		"longer":         append(packet4(web4, us4, 17, udpHead(53, 1000)...), 0),
	} {
		if p.In(in) {
			t.Errorf("%s passed", name)
		}
	}
	// The fragments of an answer come in once its first one has.
	first := packet4(web4, us4, 17, append(udpHead(53, 1000), make([]byte, 64)...)...)
	binary.BigEndian.PutUint16(first[24:], 500)
	first[5], first[6] = 77, 0x20
	later := packet4(web4, us4, 17, make([]byte, 64)...)
	later[5], later[7] = 77, 9
	if p.In(later) || !p.In(first) || !p.In(later) {
		t.Error("fragments of an answer")
	}
	// IPv4 is no way round for a peer of the mesh.
	peer := f.Peer(friend, true)
	if peer.In(packet4(web4, us4, 17, udpHead(53, 1000)...)) {
		t.Error("a mesh peer sent IPv4")
	}
	f.Tick(time.Unix(10*3600, 0))
	if p.In(packet4(web4, us4, 17, udpHead(53, 1000)...)) {
		t.Error("a flow lives for ever")
	}
}

func FuzzOutside(f *testing.F) {
	f.Add(packet4("192.0.2.1", "100.64.0.9", 17, udpHead(53, 1000)...))
	f.Add(packet4("192.0.2.1", "100.64.0.9", 1, append([]byte{3, 4, 0, 0, 0, 0, 5, 0}, packet4("100.64.0.9", "192.0.2.1", 17, udpHead(9, 9)...)...)...))
	f.Add(packet6("2001:db8::1", "200::9", 58, 128, 0, 0, 0, 0, 7, 0, 1))
	fw, err := New(me, Rules{}, time.Unix(0, 0))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, ip []byte) {
		if fw.Outside().In(ip) {
			t.Fatalf("an answer to nothing passed: %x", ip)
		}
	})
}
