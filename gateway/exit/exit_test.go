//go:build !router && linux

package exit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/ident"
	"weft/tun"
	"weft/tun/netstack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ tun.Device = (*Exit)(nil)

var (
	nodeA  = netip.MustParseAddr("200:1111::a")
	leaseA = netip.MustParseAddr("100.64.0.1")
	leaseB = netip.MustParseAddr("100.64.0.2")
)

func TestMeshIsThatOfIdent(t *testing.T) {
	if mesh != ident.MeshPrefix {
		t.Errorf("%v, ident has %v", mesh, ident.MeshPrefix)
	}
}

func all(netip.Addr, byte, netip.AddrPort) bool { return true }

func open(t testing.TB, cfg Config) *Exit {
	t.Helper()
	if cfg.MTU == 0 {
		cfg.MTU = 1400
	}
	if cfg.Allow == nil {
		cfg.Allow = all
	}
	cfg.Log = slog.New(slog.DiscardHandler)
	e, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// carry moves packets from one device to another, as two sessions do.
func carry(from, to tun.Device) {
	w := to.NewWriter()
	pkts := make([]tun.Packet, 32)
	for {
		n, err := from.Read(pkts)
		if err != nil {
			return
		}
		for _, p := range pkts[:n] {
			if p.SegSize == 0 {
				w.Write(p.Data, p.Partial)
				continue
			}
			hdr, _ := tun.HeaderLen(p.Data)
			tun.Cut(p.Data, hdr, int(p.SegSize), func(ip []byte) {
				b := bytes.Clone(ip)
				tun.SetPartial(b)
				w.Write(b, true)
			})
		}
		w.Flush()
	}
}

// client joins a client with a lease to e. Only one client may be joined.
func client(t testing.TB, e tun.Device) *netstack.Stack {
	t.Helper()
	s, err := netstack.New(netstack.Config{Addr: nodeA, MTU: e.MTU()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetOutside(leaseA, nodeA); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { carry(s, e) })
	wg.Go(func() { carry(e, s) })
	t.Cleanup(func() { s.Close(); e.Close(); wg.Wait() })
	return s
}

func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return c
}

func dial(t testing.TB, s *netstack.Stack, network string, to netip.AddrPort) net.Conn {
	t.Helper()
	c, err := s.DialContext(ctx(t), network, to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return c
}

// serve accepts connections at a site of the internet.
func serve(t testing.TB, at netip.Addr, handle func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); handle(c) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// eventually waits for what other goroutines do.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// TestTCP sends and receives bulk data, ends one half before the other, and leaves nothing behind.
func TestTCP(t *testing.T) {
	if !internet(t) {
		return
	}
	e := open(t, Config{})
	s := client(t, e)
	const size = 8 << 20
	for _, site := range []netip.Addr{site4, site6} {
		at := serve(t, site, func(c *net.TCPConn) {
			got := sha256.New()
			if n, err := io.Copy(got, c); n != size || err != nil { // until the half-close
				t.Errorf("the site received %d of %d bytes, %v", n, size, err)
			}
			c.Write(got.Sum(nil))
			io.Copy(c, io.LimitReader(rand.NewChaCha8([32]byte{1}), size))
		})
		c := dial(t, s, "tcp", at)
		sent, want, got := sha256.New(), sha256.New(), sha256.New()
		if _, err := io.Copy(io.MultiWriter(c, sent), io.LimitReader(rand.NewChaCha8([32]byte{}), size)); err != nil {
			t.Fatal(err)
		}
		if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		sum := make([]byte, 32)
		if _, err := io.ReadFull(c, sum); err != nil || !bytes.Equal(sum, sent.Sum(nil)) {
			t.Fatalf("the site received something else, %v", err)
		}
		io.Copy(want, io.LimitReader(rand.NewChaCha8([32]byte{1}), size))
		if n, err := io.Copy(got, c); n != size || err != nil || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
			t.Errorf("received %d of %d bytes, %v", n, size, err)
		}
		c.Close()
	}
	eventually(t, "connections are forgotten", func() bool { e.expire(time.Now()); return e.Stats().TCP == 0 })
	if st := e.Stats(); st.Flows != 2 || st.Sent != 2*size || st.Received != 2*(size+32) || st.Bad+st.Failed+st.Refused != 0 {
		t.Errorf("%+v", st)
	}
	if e.book.held != 0 || len(e.book.accounts) != 0 || e.book.free != e.cfg.Memory-int64(e.cfg.MaxFlows)*floorCost {
		t.Errorf("the book is not even: %+v", e.book)
	}
}

// TestTCPFailures: the client learns what the gateway learns.
func TestTCPFailures(t *testing.T) {
	if !internet(t) {
		return
	}
	e := open(t, Config{
		Allow: func(client netip.Addr, proto byte, dst netip.AddrPort) bool {
			if client != leaseA && client != nodeA || proto != tun.ProtoTCP {
				t.Errorf("asked for %v, %d, %v", client, proto, dst)
			}
			return dst.Port() != 25
		},
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if _, port, _ := net.SplitHostPort(address); port == "7" {
				<-ctx.Done() // nobody answers
				return nil, ctx.Err()
			}
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
		ConnectTimeout: 50 * time.Millisecond,
	})
	s := client(t, e)
	for _, c := range []struct {
		to   netip.AddrPort
		want error
	}{
		{netip.AddrPortFrom(site4, 9), syscall.ECONNREFUSED},
		{netip.AddrPortFrom(site6, 9), syscall.ECONNREFUSED},
		{netip.AddrPortFrom(site4, 25), syscall.ECONNREFUSED},
		{netip.AddrPortFrom(site6, 25), syscall.ECONNREFUSED},
		{netip.AddrPortFrom(dead4, 80), syscall.EHOSTUNREACH},
		{netip.AddrPortFrom(dead6, 80), syscall.ENETUNREACH},
		{netip.AddrPortFrom(absent4, 80), syscall.ENETUNREACH},
		{netip.AddrPortFrom(absent6, 80), syscall.ENETUNREACH},
		{netip.AddrPortFrom(site4, 7), syscall.EHOSTUNREACH},
		{netip.AddrPortFrom(site6, 7), syscall.ENETUNREACH},
	} {
		short, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		_, err := s.DialContext(short, "tcp", c.to.String())
		cancel()
		if !errors.Is(err, c.want) {
			t.Errorf("%v: %v, want %v", c.to, err, c.want)
		}
	}
	eventually(t, "slots are free", func() bool { return e.Stats().TCP == 0 }) // a client may know before it is counted
	if st := e.Stats(); st.Refused != 2 || st.Failed != 8 || st.Flows != 0 {
		t.Errorf("%+v", st)
	}
}

// spy notes how large the packets are that clients get.
type spy struct {
	*Exit
	largest atomic.Int64
}

func (s *spy) Read(pkts []tun.Packet) (int, error) {
	n, err := s.Exit.Read(pkts)
	for _, p := range pkts[:n] {
		size := len(p.Data)
		if hdr, ok := tun.HeaderLen(p.Data); ok && p.SegSize != 0 {
			size = min(size, hdr+int(p.SegSize))
		}
		s.largest.Store(max(s.largest.Load(), int64(size)))
	}
	return n, err
}

// TestTooBig: a path in the mesh with a smaller MTU makes the segments smaller.
func TestTooBig(t *testing.T) {
	if !internet(t) {
		return
	}
	e := &spy{Exit: open(t, Config{MTU: 1500})}
	s := client(t, e)
	w := e.NewWriter()
	for _, site := range []netip.Addr{site4, site6} {
		more := make(chan struct{})
		at := serve(t, site, func(c *net.TCPConn) {
			c.Write(make([]byte, 100<<10))
			<-more
			c.Write(make([]byte, 100<<10))
		})
		c := dial(t, s, "tcp", at)
		if _, err := io.ReadFull(c, make([]byte, 100<<10)); err != nil {
			t.Fatal(err)
		}
		if got := e.largest.Load(); got > 1500 || got < 1450 {
			t.Errorf("%v: packets of %d bytes before", site, got)
		}
		here := c.LocalAddr().(*net.TCPAddr).AddrPort()
		sent := synPacket(at, here)[:len(synPacket(at, here))-12] // the beginning of what was too big
		if site.Is4() {
			m := append([]byte{3, 4, 0, 0, 0, 0, 1300 >> 8, 1300 & 0xff}, sent...)
			binary.BigEndian.PutUint16(m[2:], checksum(here.Addr(), site, protoICMP, m))
			w.Write(ipPacket(protoICMP, here.Addr(), site, m), false)
		} else {
			m := append([]byte{2, 0, 0, 0, 0, 0, 1300 >> 8, 1300 & 0xff}, sent...)
			binary.BigEndian.PutUint16(m[2:], checksum(here.Addr(), site, tun.ProtoICMPv6, m))
			w.Write(ipPacket(tun.ProtoICMPv6, here.Addr(), site, m), false)
		}
		w.Flush()
		e.largest.Store(0)
		close(more)
		if _, err := io.ReadFull(c, make([]byte, 100<<10)); err != nil {
			t.Fatal(err)
		}
		if got := e.largest.Load(); got > 1300 || got < 1200 {
			t.Errorf("%v: packets of %d bytes after, want 1300", site, got)
		}
		e.largest.Store(0)
	}
}

// TestTCPReset passes a reset in each direction.
func TestTCPReset(t *testing.T) {
	if !internet(t) {
		return
	}
	e := open(t, Config{})
	s := client(t, e)
	at := serve(t, site4, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 1))
		c.SetLinger(0)
	})
	c := dial(t, s, "tcp", at)
	c.Write([]byte("x"))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("after the site's reset: %v", err)
	}
	seen := make(chan error, 1)
	at = serve(t, site4, func(c *net.TCPConn) {
		c.Write([]byte("x"))
		_, err := c.Read(make([]byte, 1))
		seen <- err
	})
	c = dial(t, s, "tcp", at)
	io.ReadFull(c, make([]byte, 1))
	if err := s.SetOutside(leaseB, nodeA); err != nil { // which aborts
		t.Fatal(err)
	}
	if err := <-seen; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after the client's reset: %v", err)
	}
}

// TestForget: whoever gets an address next has none of its connections.
func TestForget(t *testing.T) {
	if !internet(t) {
		return
	}
	e := open(t, Config{})
	s := client(t, e)
	hold := func(c *net.TCPConn) { io.Copy(io.Discard, c) }
	four, six := dial(t, s, "tcp", serve(t, site4, hold)), dial(t, s, "tcp", serve(t, site6, hold))
	u, err := net.ListenPacket("udp4", site4.String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	dial(t, s, "udp", addrPortOf(u.LocalAddr())).Write([]byte("x"))
	eventually(t, "three flows", func() bool { st := e.Stats(); return st.TCP == 2 && st.UDP == 1 })
	e.Forget(leaseA)
	if _, err := four.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("after Forget: %v", err)
	}
	eventually(t, "they are gone", func() bool { e.expire(time.Now()); st := e.Stats(); return st.TCP == 1 && st.UDP == 0 })
	if _, err := six.Write([]byte("x")); err != nil {
		t.Errorf("another address's connection: %v", err)
	}
	e.Forget(clientOf(nodeA).Addr()) // of IPv6 the whole /64 goes
	eventually(t, "nothing is left", func() bool { e.expire(time.Now()); return e.Stats().TCP == 0 })
}

// TestUDP: one port for all destinations, answers only from those that were sent to, errors come back, idle ports go.
func TestUDP(t *testing.T) {
	if !internet(t) {
		return
	}
	e := open(t, Config{})
	s := client(t, e)
	for _, site := range []netip.Addr{site4, site6} {
		server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(site, 0)))
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		server.SetDeadline(time.Now().Add(30 * time.Second))
		c := dial(t, s, "udp", addrPortOf(server.LocalAddr()))
		buf := make([]byte, 65536)
		for _, size := range []int{0, 1, 1300, 1400, 50000} { // the last two travel in fragments
			sent := bytes.Repeat([]byte{byte(size)}, size)
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			n, from, err := server.ReadFrom(buf)
			if err != nil || !bytes.Equal(buf[:n], sent) {
				t.Fatalf("%v: %d bytes sent, %d received, %v", site, size, n, err)
			}
			server.WriteTo(buf[:n], from)
			if n, err = c.Read(buf); err != nil || !bytes.Equal(buf[:n], sent) {
				t.Fatalf("%v: %d bytes sent back, %d received, %v", site, size, n, err)
			}
		}
	}
	if st := e.Stats(); st.UDP != 2 {
		t.Errorf("%+v", st)
	}
	e.expire(time.Now().Add(119 * time.Second))
	if st := e.Stats(); st.UDP != 2 {
		t.Errorf("ports are forgotten too early: %+v", st)
	}
	e.expire(time.Now().Add(121 * time.Second))
	eventually(t, "idle ports are forgotten", func() bool { return e.Stats().UDP == 0 })
}

// TestUDPErrors: what the gateway learns of a datagram, the client is told.
func TestUDPErrors(t *testing.T) {
	if !internet(t) {
		return
	}
	e := open(t, Config{Allow: func(_ netip.Addr, _ byte, dst netip.AddrPort) bool { return dst.Port() != 25 }})
	w := e.NewWriter()
	pkts := make([]tun.Packet, 8)
	for _, to := range []netip.AddrPort{
		netip.AddrPortFrom(site4, 9), netip.AddrPortFrom(site6, 9), // nobody listens
		netip.AddrPortFrom(site4, 25), netip.AddrPortFrom(site6, 25), // not allowed
	} {
		from := leaseA
		if to.Addr().Is6() {
			from = nodeA
		}
		sent := udpPacket(netip.AddrPortFrom(from, 5000), to, "x")
		w.Write(bytes.Clone(sent), false)
		w.Flush()
		n, err := e.Read(pkts)
		if n != 1 || err != nil {
			t.Fatal(n, err)
		}
		src, dst, l4, ok := parse(pkts[0].Data)
		m := pkts[0].Data[l4.Offset:]
		if !ok || src != to.Addr() || dst != from || checksum(src, dst, l4.Proto, m) != 0 {
			t.Errorf("%v: %x", to, pkts[0].Data)
		}
		if from.Is4() && (m[0] != 3 || m[1] != 3) || from.Is6() && (m[0] != 1 || m[1] != 4) {
			t.Errorf("%v: type %d, code %d, want that the port is unreachable", to, m[0], m[1])
		}
		_, _, l4, _ = parse(sent)
		if !bytes.Equal(m[8+l4.Offset:8+l4.Offset+4], sent[l4.Offset:l4.Offset+4]) || !bytes.Equal(m[8+l4.Offset-8:8+l4.Offset], sent[l4.Offset-8:l4.Offset]) {
			t.Errorf("%v: about another packet: %x", to, m)
		}
	}
}

// TestUDPMapping looks from outside: two destinations see one port, and strangers get nothing through.
func TestUDPMapping(t *testing.T) {
	if !internet(t) {
		return
	}
	e := open(t, Config{})
	var servers [3]*net.UDPConn
	for i, a := range []netip.Addr{site4, site4, netip.MustParseAddr("127.0.0.9")} {
		var err error
		if servers[i], err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0))); err != nil {
			t.Fatal(err)
		}
		defer servers[i].Close()
		servers[i].SetDeadline(time.Now().Add(30 * time.Second))
	}
	w := e.NewWriter()
	var seen [2]netip.AddrPort
	buf := make([]byte, 100)
	for i := range seen {
		w.Write(udpPacket(netip.AddrPortFrom(leaseA, 4000), addrPortOf(servers[i].LocalAddr()), "hello"), false)
		w.Flush()
		_, from, err := servers[i].ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		seen[i] = addrPortOf(from)
	}
	if seen[0] != seen[1] {
		t.Errorf("one port of the client is %v and %v outside", seen[0], seen[1])
	}
	servers[2].WriteTo([]byte("stranger"), net.UDPAddrFromAddrPort(seen[0]))
	eventually(t, "the stranger's datagram is dropped", func() bool { return e.Stats().Dropped == 1 })
	servers[1].WriteTo([]byte("friend"), net.UDPAddrFromAddrPort(seen[0]))
	pkts := make([]tun.Packet, 4)
	n, err := e.Read(pkts)
	if n != 1 || err != nil || !bytes.HasSuffix(pkts[0].Data, []byte("friend")) {
		t.Fatalf("%d packets, %v, %q", n, err, pkts[0].Data)
	}
	src, dst, l4, ok := parse(pkts[0].Data)
	if !ok || src != site4 || dst != leaseA || binary.BigEndian.Uint16(pkts[0].Data[l4.Offset+2:]) != 4000 || !tun.FinishChecksum(pkts[0].Data) {
		t.Errorf("answer %x", pkts[0].Data)
	}
	// Port 53 alone is forgotten sooner.
	w.Write(udpPacket(netip.AddrPortFrom(leaseA, 4001), netip.AddrPortFrom(site4, 53), "query"), false)
	w.Flush()
	if st := e.Stats(); st.UDP != 2 {
		t.Fatalf("%+v", st)
	}
	e.expire(time.Now().Add(11 * time.Second))
	eventually(t, "the resolver's port is forgotten", func() bool { return e.Stats().UDP == 1 })
}

func ipPacket(proto byte, from, to netip.Addr, transport []byte) []byte {
	var p []byte
	if from.Is4() {
		p = []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, proto, 0, 0}
		binary.BigEndian.PutUint16(p[2:], uint16(20+len(transport)))
	} else {
		p = []byte{0x60, 0, 0, 0, 0, 0, proto, 64}
		binary.BigEndian.PutUint16(p[4:], uint16(len(transport)))
	}
	p = append(append(p, from.AsSlice()...), to.AsSlice()...)
	if from.Is4() {
		binary.BigEndian.PutUint16(p[10:], ^tun.Sum(p, 0))
	}
	return append(p, transport...)
}

func udpPacket(from, to netip.AddrPort, payload string) []byte {
	u := binary.BigEndian.AppendUint16(nil, from.Port())
	u = binary.BigEndian.AppendUint16(u, to.Port())
	u = binary.BigEndian.AppendUint16(u, uint16(8+len(payload)))
	p := ipPacket(tun.ProtoUDP, from.Addr(), to.Addr(), append(append(u, 0, 0), payload...))
	tun.FinishChecksum(p)
	return p
}

func synPacket(from, to netip.AddrPort) []byte {
	s := binary.BigEndian.AppendUint16(nil, from.Port())
	s = binary.BigEndian.AppendUint16(s, to.Port())
	p := ipPacket(tun.ProtoTCP, from.Addr(), to.Addr(), append(s, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0))
	tun.FinishChecksum(p)
	return p
}

func echoPacket(from, to netip.Addr, id, seq uint16) []byte {
	kind, proto := byte(8), byte(protoICMP)
	if from.Is6() {
		kind, proto = 128, tun.ProtoICMPv6
	}
	m := []byte{kind, 0, 0, 0}
	m = binary.BigEndian.AppendUint16(m, id)
	m = append(binary.BigEndian.AppendUint16(m, seq), "how are you?"...)
	binary.BigEndian.PutUint16(m[2:], checksum(from, to, proto, m))
	return ipPacket(proto, from, to, m)
}

// testPing sends echo requests of two clients with the same identifiers and sees each get its own replies.
func testPing(t *testing.T, raw bool) {
	e := open(t, Config{})
	w := e.NewWriter()
	for i, p := range e.ping {
		if p == nil || p.raw != raw {
			t.Fatalf("pinger %d: %+v, want raw %v", i, p, raw)
		}
	}
	got := map[netip.Addr]int{}
	pkts := make([]tun.Packet, 8)
	for _, c := range []struct{ from, to netip.Addr }{{leaseA, site4}, {leaseB, site4}, {nodeA, site6}, {netip.MustParseAddr("300:1::1"), site6}} {
		w.Write(echoPacket(c.from, c.to, 7, 8), false)
		w.Flush()
		n, err := e.Read(pkts)
		if n != 1 || err != nil {
			t.Fatal(n, err)
		}
		p := pkts[0].Data
		src, dst, l4, ok := parse(p)
		m := p[l4.Offset:]
		if !ok || src != c.to || checksum(src, dst, l4.Proto, m) != 0 || !bytes.Equal(m[4:8], []byte{0, 7, 0, 8}) || !bytes.HasSuffix(m, []byte("how are you?")) {
			t.Errorf("%v: reply %x", c, p)
		}
		if kind := m[0]; src.Is4() && kind != 0 || src.Is6() && kind != 129 {
			t.Errorf("%v: type %d", c, kind)
		}
		got[dst]++
	}
	if len(got) != 4 {
		t.Errorf("replies to %v", got)
	}
	if st := e.Stats(); st.Pings != 0 || len(e.book.accounts) != 0 || st.Sent != 4*12 || st.Received != 4*12 {
		t.Errorf("%+v", st)
	}
}

func TestPing(t *testing.T) {
	if internet(t) {
		groups(t, "0 0")
		testPing(t, false)
	}
}

func TestPingRaw(t *testing.T) {
	if internet(t) {
		groups(t, "1 0")
		testPing(t, true)
	}
}

func TestPingIsBounded(t *testing.T) {
	if !internet(t) {
		return
	}
	e := open(t, Config{Translate: func(netip.Addr) (netip.Addr, bool) { return dead4, true }})
	w := e.NewWriter()
	p := e.ping[0]
	p.out = func([]byte, netip.AddrPort) error { return nil } // lost
	for i := range 2 * maxPingsPerClient {
		w.Write(echoPacket(leaseA, site4, 1, uint16(i)), false)
	}
	w.Write(echoPacket(leaseB, site4, 1, 1), false)
	if st := e.Stats(); st.Pings != maxPingsPerClient+1 || st.Limited != maxPingsPerClient {
		t.Errorf("%+v", st)
	}
	e.Forget(leaseB)
	if st := e.Stats(); st.Pings != maxPingsPerClient {
		t.Errorf("after Forget: %+v", st)
	}
	e.expire(time.Now().Add(pingTime + time.Second))
	if st := e.Stats(); st.Pings != 0 || len(e.book.accounts) != 0 {
		t.Errorf("after their time: %+v", st)
	}
}

// TestTranslate: an IPv6 client reaches IPv4 through NAT64 addresses, and the policy sees where it really goes.
func TestTranslate(t *testing.T) {
	if !internet(t) {
		return
	}
	nat64 := netip.MustParsePrefix("64:ff9b::/96")
	to6 := func(a netip.Addr) netip.Addr {
		b := nat64.Addr().As16()
		copy(b[12:], a.AsSlice())
		return netip.AddrFrom16(b)
	}
	e := open(t, Config{
		Translate: func(a netip.Addr) (netip.Addr, bool) {
			if !nat64.Contains(a) {
				return a, false
			}
			b := a.As16()
			return netip.AddrFrom4([4]byte(b[12:])), true
		},
		Allow: func(_ netip.Addr, _ byte, dst netip.AddrPort) bool {
			if !dst.Addr().Is4() || forbidden(dst.Addr()) {
				t.Errorf("asked for %v", dst)
			}
			return true
		},
	})
	w := e.NewWriter()
	w.Write(echoPacket(nodeA, to6(site4), 1, 2), false)
	pkts := make([]tun.Packet, 1)
	if n, err := e.Read(pkts); n != 1 || err != nil || pkts[0].Data[40] != 129 || !bytes.Equal(pkts[0].Data[8:24], to6(site4).AsSlice()) {
		t.Fatalf("echo: %v, %x", err, pkts[0].Data)
	}
	s := client(t, e)
	at := serve(t, site4, func(c *net.TCPConn) { io.Copy(c, c) })
	c := dial(t, s, "tcp", netip.AddrPortFrom(to6(site4), at.Port()))
	c.Write([]byte("hi"))
	buf := make([]byte, 100)
	if _, err := io.ReadFull(c, buf[:2]); err != nil {
		t.Error(err)
	}
	server, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(site4, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	u := dial(t, s, "udp", netip.AddrPortFrom(to6(site4), addrPortOf(server.LocalAddr()).Port()))
	u.Write([]byte("hi"))
	_, from, err := server.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	server.WriteTo([]byte("ho"), from)
	if n, err := u.Read(buf); err != nil || string(buf[:n]) != "ho" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	if _, err := s.DialContext(ctx(t), "tcp", netip.AddrPortFrom(to6(netip.MustParseAddr("127.0.0.1")), at.Port()).String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("to the gateway's loopback: %v", err)
	}
}

// TestFloodOfFlows: one client takes all it can, and another's flows are as before.
func TestFloodOfFlows(t *testing.T) {
	if !internet(t) {
		return
	}
	dialled := make(chan struct{}, 1000)
	e := open(t, Config{
		MaxFlows: 64, MaxFlowsPerClient: 16, Memory: 64*floorCost + 8<<20,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if host, _, _ := net.SplitHostPort(address); host == absent4.String() {
				dialled <- struct{}{}
				<-ctx.Done() // a black hole
				return nil, ctx.Err()
			}
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	})
	s := client(t, e)
	at := serve(t, site4, func(c *net.TCPConn) { io.Copy(c, c) })
	before := dial(t, s, "tcp", at)
	w := e.NewWriter()
	for i := range 500 {
		w.Write(synPacket(netip.AddrPortFrom(leaseB, uint16(1000+i)), netip.AddrPortFrom(absent4, 80)), false)
		w.Write(udpPacket(netip.AddrPortFrom(leaseB, uint16(1000+i)), netip.AddrPortFrom(site4, 9), "x"), false)
	}
	w.Flush()
	st := e.Stats()
	if st.TCP+st.UDP > 17 || st.Limited < 900 {
		t.Errorf("after the flood: %+v", st)
	}
	after := dial(t, s, "tcp", at)
	for _, c := range []net.Conn{before, after} {
		c.Write([]byte("echo"))
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Errorf("another's connection: %v", err)
		}
	}
	// The flooder's own SYNs, sent again, take no second slot; its RSTs free the slots.
	for i := range 500 {
		p := synPacket(netip.AddrPortFrom(leaseB, uint16(1000+i)), netip.AddrPortFrom(absent4, 80))
		p[33] = 4
		tun.FinishChecksum(p)
		w.Write(p, false)
	}
	w.Flush()
	eventually(t, "the slots of those who gave up are free", func() bool { return e.Stats().TCP == 2 })
}

// TestMemoryIsLent: connections that move bytes get more, within bounds, and give it back when they rest.
func TestMemoryIsLent(t *testing.T) {
	if !internet(t) {
		return
	}
	const spare = 8 << 20
	e := open(t, Config{MaxFlows: 64, MaxFlowsPerClient: 32, Memory: 64*floorCost + spare})
	s := client(t, e)
	at := serve(t, site4, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	var conns []net.Conn
	for range 12 {
		conns = append(conns, dial(t, s, "tcp", at))
	}
	lent := func() (int64, int64) {
		e.mu.Lock()
		defer e.mu.Unlock()
		var one int64
		for _, a := range e.book.accounts {
			one += a.lent
		}
		return spare - e.book.free, one
	}
	eventually(t, "all are open", func() bool { return e.Stats().Flows == 12 })
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() {
			if _, err := c.Write(make([]byte, 2<<20)); err != nil {
				t.Error(err)
			}
			if sum, one := lent(); sum != one || one > spare/4 {
				t.Errorf("%d bytes are lent, %d to one client", sum, one)
			}
		})
	}
	wg.Wait()
	if sum, _ := lent(); sum < spare/8 {
		t.Errorf("only %d bytes are lent", sum)
	}
	eventually(t, "what rests costs the least", func() bool {
		e.expire(time.Now().Add(restTime + time.Second))
		sum, one := lent()
		return sum == one && sum <= 12*(cost(startSize)-floorCost)
	})
	for _, c := range conns {
		c.Close()
	}
	eventually(t, "all is given back", func() bool { e.expire(time.Now()); sum, _ := lent(); return sum == 0 && e.Stats().TCP == 0 })
}

// TestIdleConnections end when their time is over, and not before.
func TestIdleConnections(t *testing.T) {
	if !internet(t) {
		return
	}
	e := open(t, Config{})
	s := client(t, e)
	at := serve(t, site4, func(c *net.TCPConn) { io.Copy(io.Discard, c); c.Read(make([]byte, 1)) })
	whole := dial(t, s, "tcp", at)
	eventually(t, "one is open", func() bool { return e.Stats().Flows == 1 })
	e.expire(time.Now().Add(idleTCP - time.Minute))
	if _, err := whole.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	e.expire(time.Now().Add(idleTCP + time.Minute))
	if _, err := whole.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("an idle connection: %v", err)
	}
}

// TestCloseEndsEverything, whatever state it is in.
func TestCloseEndsEverything(t *testing.T) {
	if !internet(t) {
		return
	}
	e := open(t, Config{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if host, _, _ := net.SplitHostPort(address); host == absent4.String() {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}})
	s := client(t, e)
	at := serve(t, site4, func(c *net.TCPConn) { io.Copy(c, c) })
	c := dial(t, s, "tcp", at)
	w := e.NewWriter()
	w.Write(synPacket(netip.AddrPortFrom(leaseB, 1), at), false)                                // its handshake never ends
	w.Write(synPacket(netip.AddrPortFrom(leaseB, 2), netip.AddrPortFrom(absent4, 80)), false)   // it never connects
	w.Write(udpPacket(netip.AddrPortFrom(leaseB, 2), netip.AddrPortFrom(site4, 9), "x"), false) // a port
	w.Write(echoPacket(leaseB, site4, 1, 1), false)
	w.Flush()
	eventually(t, "all are under way", func() bool { st := e.Stats(); return st.TCP == 3 && st.UDP == 1 })
	e.Close()
	e.Close()
	if _, err := e.Read(make([]tun.Packet, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read after Close: %v", err)
	}
	if err := w.Flush(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Flush after Close: %v", err)
	}
	c.Close()
}

// TestForbidden: what no policy can open.
func TestForbidden(t *testing.T) {
	if !internet(t) {
		return
	}
	e := open(t, Config{Allow: func(_ netip.Addr, _ byte, dst netip.AddrPort) bool { t.Errorf("asked for %v", dst); return true }})
	w := e.NewWriter()
	n := uint64(0)
	for _, to := range []string{
		"127.0.0.1", "0.0.0.0", "0.1.2.3", "169.254.169.254", "224.0.0.1", "255.255.255.255", "240.0.0.1",
		"::", "::1", "::ffff:127.0.0.1", "::7f00:1", "fe80::1", "fec0::1", "ff02::1", "200:1::1", "3ff:1::1",
	} {
		from, to := leaseA, netip.MustParseAddr(to)
		if to.Is6() {
			from = nodeA
		}
		w.Write(synPacket(netip.AddrPortFrom(from, 1000), netip.AddrPortFrom(to, 80)), false)
		w.Write(udpPacket(netip.AddrPortFrom(from, 1000), netip.AddrPortFrom(to, 80), "x"), false)
		w.Write(echoPacket(from, to, 1, 1), false)
		w.Flush()
		if n += 3; e.Stats().Refused != n {
			t.Errorf("%v: %d refused, want %d", to, e.Stats().Refused, n)
		}
	}
	for _, from := range []string{"0.0.0.0", "127.0.0.1", "224.0.0.1"} {
		w.Write(udpPacket(netip.AddrPortFrom(netip.MustParseAddr(from), 1), netip.AddrPortFrom(site4, 80), "x"), false)
	}
	w.Flush()
	if st := e.Stats(); st.Refused != n+3 || st.UDP+st.TCP != 0 {
		t.Errorf("%+v", st)
	}
}

func TestConfigIsChecked(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for _, c := range []Config{
		{MTU: 1400, Log: log}, {MTU: 1400, Allow: all}, {MTU: 1279, Log: log, Allow: all}, {MTU: 65536, Log: log, Allow: all},
		{MTU: 1400, Log: log, Allow: all, MaxFlows: -1}, {MTU: 1400, Log: log, Allow: all, MaxFlowsPerClient: -1},
		{MTU: 1400, Log: log, Allow: all, MaxFlows: 1000, Memory: 1 << 20},
	} {
		if e, err := Open(c); err == nil {
			e.Close()
			t.Errorf("Open(%+v) succeeded", c)
		}
	}
}
