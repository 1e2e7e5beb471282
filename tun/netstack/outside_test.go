//go:build !router

package netstack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"weft/ident"
	"weft/tun"
)

var (
	leaseA  = netip.MustParseAddr("100.64.0.1")
	leaseA2 = netip.MustParseAddr("100.64.0.2")
	globalA = netip.MustParseAddr("2001:db8:1::a")
	site4   = netip.MustParseAddr("192.0.2.80")
	site6   = netip.MustParseAddr("2001:db8:2::80")
)

func TestMeshIsThatOfIdent(t *testing.T) {
	if mesh != ident.MeshPrefix {
		t.Errorf("%v, ident has %v", mesh, ident.MeshPrefix)
	}
}

// internet makes b, beside a node, the two sites of the tests.
func internet(t testing.TB, b *Stack) {
	t.Helper()
	for _, s := range []netip.Addr{site4, site6} {
		a := tcpip.ProtocolAddress{Protocol: netOf(s), AddressWithPrefix: tcpip.AddrFromSlice(s.AsSlice()).WithPrefix()}
		if err := b.stack.AddProtocolAddress(nicID, a, stack.AddressProperties{}); err != nil {
			t.Fatal(err)
		}
	}
}

func listen(t testing.TB, b *Stack, at netip.AddrPort) net.Listener {
	t.Helper()
	proto := ipv4.ProtocolNumber
	if at.Addr().Is6() {
		proto = ipv6.ProtocolNumber
	}
	l, err := gonet.ListenTCP(b.stack, full(at), proto)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestOutsideNeedsALease(t *testing.T) {
	a, _ := alone(t)
	for _, to := range []netip.Addr{site4, site6} {
		for _, network := range []string{"tcp", "udp"} {
			_, err := a.DialContext(ctx(t), network, netip.AddrPortFrom(to, 80).String())
			if !errors.Is(err, syscall.ENETUNREACH) || !strings.Contains(err.Error(), "weft gateway use") {
				t.Errorf("dial %s %v: %v", network, to, err)
			}
		}
	}
	if err := a.SetOutside(leaseA, netip.Addr{}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.DialContext(ctx(t), "tcp", "[2001:db8::1]:80"); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("IPv6 with a lease of IPv4: %v", err)
	}
	for network, to := range map[string]string{"tcp4": "[2001:db8::1]:80", "tcp6": "192.0.2.1:80", "tcp": "[::ffff:192.0.2.1]:80", "udp": "0.0.0.0:1"} {
		var e *net.AddrError
		if _, err := a.DialContext(ctx(t), network, to); !errors.As(err, &e) {
			t.Errorf("dial %s %s: %v", network, to, err)
		}
	}
	for _, bad := range [][2]netip.Addr{{site6, site6}, {site4, site4}, {netip.MustParseAddr("::ffff:192.0.2.1"), site6}, {site4, netip.MustParseAddr("::ffff:192.0.2.1")}} {
		if a.SetOutside(bad[0], bad[1]) == nil {
			t.Errorf("SetOutside(%v, %v) succeeded", bad[0], bad[1])
		}
	}
}

// TestOutsideTCP moves bulk data between two stacks: it leaves from the leased address, as super-packets, and arrives merged.
func TestOutsideTCP(t *testing.T) {
	for _, c := range []struct {
		name     string
		from, to netip.Addr
	}{
		{"IPv4", leaseA, site4},
		{"IPv6", globalA, site6},
		{"IPv6 from the node's address", addrA, site6},
	} {
		t.Run(c.name, func(t *testing.T) {
			var mu sync.Mutex
			sources := map[netip.Addr]bool{}
			w := wire{seen: func(p []byte, partial bool) {
				if !whole(p) || !partial && !checksumOK(p) {
					t.Errorf("sent a bad packet: %x", p[:40])
				}
				from, _ := netip.AddrFromSlice(p[8:24])
				if p[0]>>4 == 4 {
					from, _ = netip.AddrFromSlice(p[12:16])
				}
				mu.Lock()
				defer mu.Unlock()
				sources[from] = true
			}}
			a, b := pair(t, &w)
			internet(t, b)
			v4, v6 := netip.Addr{}, c.from
			if c.from.Is4() {
				v4, v6 = c.from, netip.Addr{}
			}
			if err := a.SetOutside(v4, v6); err != nil {
				t.Fatal(err)
			}
			send(t, a, listen(t, b, netip.AddrPortFrom(c.to, 80)), 8<<20)
			if w.supers.Load() == 0 {
				t.Error("bulk data did not travel as super-packets")
			}
			if got := b.stack.NICInfo()[nicID].Stats.Rx.Packets.Value(); got == 0 || got > w.packets.Load()/4 {
				t.Errorf("%d segments were delivered as %d: not merged", w.packets.Load(), got)
			}
			mu.Lock()
			defer mu.Unlock()
			if len(sources) != 2 || !sources[c.from] || !sources[c.to] {
				t.Errorf("packets from %v, want %v and %v", sources, c.from, c.to)
			}
		})
	}
}

func TestOutsideUDP(t *testing.T) {
	a, b := pair(t, &wire{})
	internet(t, b)
	if err := a.SetOutside(leaseA, globalA); err != nil {
		t.Fatal(err)
	}
	for _, to := range []netip.Addr{site4, site6} {
		at := full(netip.AddrPortFrom(to, 53))
		server, err := gonet.DialUDP(b.stack, &at, nil, netOf(to))
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		c, err := a.DialContext(ctx(t), "udp", netip.AddrPortFrom(to, 53).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		server.SetDeadline(time.Now().Add(20 * time.Second))
		for _, size := range []int{1, 1372, 60000} { // the last travels in fragments
			sent := bytes.Repeat([]byte{byte(size)}, size)
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 65536)
			n, from, err := server.ReadFrom(buf)
			if err != nil || !bytes.Equal(buf[:n], sent) {
				t.Fatalf("%d bytes sent, %d received, %v", size, n, err)
			}
			server.WriteTo(buf[:n], from)
			if n, err = c.Read(buf); err != nil || !bytes.Equal(buf[:n], sent) {
				t.Fatalf("%d bytes sent back, %d received, %v", size, n, err)
			}
		}
	}
}

// TestLeaseChange: connections from the old address end at once, connecting ones too; those in the mesh and of the other
// family go on.
func TestLeaseChange(t *testing.T) {
	a, b := pair(t, &wire{})
	internet(t, b)
	if err := a.SetOutside(leaseA, addrA); err != nil {
		t.Fatal(err)
	}
	dial := func(network string, to netip.Addr) net.Conn {
		t.Helper()
		c, err := a.DialContext(ctx(t), network, netip.AddrPortFrom(to, 80).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(20 * time.Second))
		return c
	}
	var servers sync.WaitGroup
	t.Cleanup(servers.Wait)
	for _, at := range []netip.Addr{site4, site6, addrB} {
		l := listen(t, b, netip.AddrPortFrom(at, 80))
		t.Cleanup(func() { l.Close() })
		servers.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				servers.Go(func() { io.Copy(c, c); c.Close() })
			}
		})
	}
	t.Cleanup(func() { b.Close() })
	works := func(c net.Conn) {
		t.Helper()
		buf := make([]byte, 4)
		if _, err := c.Write([]byte("echo")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "echo" {
			t.Fatalf("%q, %v", buf, err)
		}
	}
	tcp4, udp4, tcp6, tcpMesh := dial("tcp", site4), dial("udp", site4), dial("tcp", site6), dial("tcp", addrB)
	for _, c := range []net.Conn{tcp4, tcp6, tcpMesh} {
		works(c)
	}
	if got := tcp4.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != leaseA {
		t.Errorf("IPv4 leaves from %v", got)
	}
	pending := make(chan error)
	go func() {
		_, err := a.DialContext(ctx(t), "tcp", "192.0.2.99:80") // nobody is there
		pending <- err
	}()
	for { // until it is known
		a.v4.mu.Lock()
		n := len(a.v4.conns)
		a.v4.mu.Unlock()
		if n == 3 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err := a.SetOutside(leaseA2, addrA); err != nil {
		t.Fatal(err)
	}
	if err := <-pending; err == nil || errors.Is(err, ctx(t).Err()) {
		t.Errorf("connecting from the old address: %v", err)
	}
	for _, c := range []net.Conn{tcp4, udp4} {
		if n, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, errTimeout(err)) {
			t.Errorf("from the old address: read %d, %v", n, err)
		}
		if _, err := c.Write([]byte("x")); err == nil {
			t.Error("writes from the old address")
		}
	}
	works(tcp6)
	works(tcpMesh)
	again := dial("tcp", site4)
	works(again)
	if got := again.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != leaseA2 {
		t.Errorf("leaves from %v after the change", got)
	}
	if err := a.SetOutside(leaseA2, globalA); err != nil { // the node's address is no lease any more, but stays the node's
		t.Fatal(err)
	}
	if _, err := tcp6.Read(make([]byte, 1)); err == nil {
		t.Error("IPv6 goes on from the old address")
	}
	works(tcpMesh)
	works(again)
	if err := a.SetOutside(netip.Addr{}, netip.Addr{}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.DialContext(ctx(t), "tcp", "192.0.2.80:80"); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("after the end of the lease: %v", err)
	}
	works(tcpMesh)
	again.Close()
	if n := len(a.v4.conns) + len(a.v6.conns); n != 0 {
		t.Errorf("%d connections are remembered", n)
	}
}

// errTimeout returns err if it is a time-out, else an error that is not.
func errTimeout(err error) error {
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return err
	}
	return io.ErrNoProgress
}

// TestListenersAreOfTheMesh: what the node serves is not served to whoever reaches its leased address.
func TestListenersAreOfTheMesh(t *testing.T) {
	a, b := pair(t, &wire{})
	if err := a.SetOutside(netip.Addr{}, globalA); err != nil {
		t.Fatal(err)
	}
	if err := b.SetOutside(netip.Addr{}, site6); err != nil {
		t.Fatal(err)
	}
	l, err := a.Listen(ctx(t), "tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := b.DialContext(ctx(t), "tcp", netip.AddrPortFrom(globalA, 80).String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("from outside: %v", err)
	}
	c, err := b.DialContext(ctx(t), "tcp", netip.AddrPortFrom(addrA, 80).String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// packet4 makes an IPv4 packet from site4 to leaseA.
func packet4(proto byte, payload []byte) []byte {
	p := make([]byte, 20, 20+len(payload))
	p[0], p[8], p[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(p[2:], uint16(20+len(payload)))
	copy(p[12:], site4.AsSlice())
	copy(p[16:], leaseA.AsSlice())
	binary.BigEndian.PutUint16(p[10:], ^tun.Sum(p, 0))
	return append(p, payload...)
}

func TestBadIPv4IsCounted(t *testing.T) {
	s, w := alone(t)
	good := packet4(tun.ProtoUDP, []byte{0, 1, 0, 2, 0, 12, 0, 0, 'd', 'a', 't', 'a'})
	w.Write(bytes.Clone(good), false) // no checksum is allowed
	tun.FinishChecksum(good)
	w.Write(bytes.Clone(good), false)
	if got := s.Stats().Bad; got != 0 {
		t.Errorf("%d good packets are bad", got)
	}
	header := bytes.Clone(good)
	header[8]-- // a TTL without its checksum
	flipped := bytes.Clone(good)
	flipped[30] ^= 1
	short := bytes.Clone(good)
	short[0] = 0x44
	long := bytes.Clone(good)
	long[0] = 0x4f
	loop := bytes.Clone(good)
	loop[12] = 127
	loop[10], loop[11] = 0, 0
	binary.BigEndian.PutUint16(loop[10:], ^tun.Sum(loop[:20], 0))
	tun.FinishChecksum(loop)
	for _, p := range [][]byte{loop, good[:19], good[:len(good)-1], append(bytes.Clone(good), 0), header, flipped, short, long} {
		w.Write(p, false)
	}
	w.Flush()
	if got := s.Stats().Bad; got != 8 {
		t.Errorf("%d bad packets counted, want 8", got)
	}
}
