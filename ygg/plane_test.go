//go:build !no_ygg

package ygg

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Arceliar/ironwood/types"
	"github.com/yggdrasil-network/yggdrasil-go/src/address"
	"github.com/yggdrasil-network/yggdrasil-go/src/core"
	"go.uber.org/goleak"

	"weft/ident"
	"weft/tun"
	"weft/tun/tuntest"
)

// The core ends a QUIC link by its stream and leaves the connection under it to the idle time-out.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/quic-go/quic-go.(*Conn).run"), goleak.IgnoreAnyFunction("github.com/quic-go/quic-go.(*sendQueue).Run"),
		goleak.IgnoreAnyFunction("github.com/quic-go/quic-go.(*Transport).runSendQueue"), goleak.IgnoreAnyFunction("github.com/quic-go/quic-go.(*Transport).listen"),
		goleak.IgnoreTopFunction("github.com/yggdrasil-network/yggdrasil-go/src/core.(*linkQUICListener).Accept"),
		goleak.IgnoreTopFunction("github.com/yggdrasil-network/yggdrasil-go/src/core.(*linkWSListener).Accept"))
}

// open lets everything pass and counts.
type open struct{ out, in, released atomic.Int64 }

func (f *open) Out([]byte)     { f.out.Add(1) }
func (f *open) In([]byte) bool { f.in.Add(1); return true }
func (f *open) Release()       { f.released.Add(1) }

// shut lets nothing in.
type shut struct{ open }

func (*shut) In([]byte) bool { return false }

// node is a plane with a device, running.
type node struct {
	*Plane
	dev    *tuntest.Device
	addr   netip.Addr
	filter *open
}

func begin(t *testing.T, set func(*Config)) *node {
	t.Helper()
	agent, err := ident.Generate()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{dev: tuntest.New(1420, 512), addr: agent.Public().Addr(), filter: &open{}}
	cfg := Config{Agent: agent, Device: n.dev, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Filter: func(ident.PublicKey) Filter { return n.filter }}
	if set != nil {
		set(&cfg)
	}
	if n.Plane, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		n.dev.Close()
		if err := <-done; err != context.Canceled {
			t.Errorf("Serve ended with %v", err)
		}
	})
	return n
}

// linked skips a test with links under the race detector: ironwood's Debug.GetPeers, the only way to learn of them, reads a
// peer's times while the peer writes them (network/debug.go). A wrong latency is all that can come of it.
func linked(t *testing.T) {
	t.Helper()
	if raceDetector {
		t.Skip("SKIPPED under the race detector: the Yggdrasil library has a race of its own")
	}
}

// join links two planes by a pipe in the process.
func join(t *testing.T, a, b *node) {
	t.Helper()
	linked(t)
	x, y := net.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- a.Carry(ctx, b.self, false, x) }()
	go func() { done <- b.Carry(ctx, a.self, true, y) }()
	t.Cleanup(func() { cancel(); <-done; <-done })
}

// eventually asks until the answer is yes.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatal("never happened: " + what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// datagram is a UDP packet.
func datagram(from, to netip.Addr, payload int) []byte {
	b := make([]byte, 48+payload)
	b[0], b[6], b[7] = 0x60, tun.ProtoUDP, 64
	binary.BigEndian.PutUint16(b[4:], uint16(8+payload))
	f, d := from.As16(), to.As16()
	copy(b[8:], f[:])
	copy(b[24:], d[:])
	binary.BigEndian.PutUint16(b[40:], 1000)
	binary.BigEndian.PutUint16(b[42:], 2000)
	binary.BigEndian.PutUint16(b[44:], uint16(8+payload))
	for i := range payload {
		b[48+i] = byte(i)
	}
	return b
}

// stream is a TCP super-packet with a partial checksum.
func stream(from, to netip.Addr, payload int, seg uint16, seq uint32) tun.Packet {
	b := make([]byte, 60+payload)
	b[0], b[6], b[7] = 0x60, tun.ProtoTCP, 64
	f, d := from.As16(), to.As16()
	copy(b[8:], f[:])
	copy(b[24:], d[:])
	binary.BigEndian.PutUint16(b[40:], 1000)
	binary.BigEndian.PutUint16(b[42:], 2000)
	binary.BigEndian.PutUint32(b[44:], seq)
	b[52], b[53] = 5<<4, 0x18
	for i := range payload {
		b[60+i] = byte(i * 3)
	}
	tun.SetPartial(b)
	return tun.Packet{Data: b, SegSize: seg, Partial: true}
}

// reach sends packets from a until one is written at b's host, which it returns.
func reach(t *testing.T, a, b *node, make func() tun.Packet) []byte {
	t.Helper()
	var got []byte
	eventually(t, "a packet gets through", func() bool {
		p := make()
		a.Send(&p)
		select {
		case got = <-b.dev.Out():
			return true
		case <-time.After(20 * time.Millisecond):
			return false
		}
	})
	for { // the others that were sent meanwhile
		select {
		case <-b.dev.Out():
		case <-time.After(50 * time.Millisecond):
			return got
		}
	}
}

// TestSameAddress: the addresses of ident are the library's.
func TestSameAddress(t *testing.T) {
	for range 200 {
		pub, _, _ := ed25519.GenerateKey(nil)
		k := ident.PublicKey(pub)
		if want := netip.AddrFrom16(*address.AddrForKey(pub)); k.Addr() != want {
			t.Fatalf("%s: address %s, Yggdrasil says %s", k, k.Addr(), want)
		}
		s := *address.SubnetForKey(pub)
		if got := k.Subnet().Addr().As16(); !bytes.Equal(got[:8], s[:]) {
			t.Fatalf("%s: subnet %s, Yggdrasil says %x", k, k.Subnet(), s)
		}
	}
	n := begin(t, nil)
	if got := n.core.Address().String(); got != n.addr.String() {
		t.Errorf("the core has %s, the node %s", got, n.addr)
	}
	if got := n.core.Subnet(); got.String() != n.self.Subnet().String() {
		t.Errorf("the core has %s, the node %s", got.String(), n.self.Subnet())
	}
}

// TestTwoPlanes: two nodes over a link in the process; a packet for an unknown key waits for the lookup and is not lost.
func TestTwoPlanes(t *testing.T) {
	a, b := begin(t, nil), begin(t, nil)
	p := tun.Packet{Data: datagram(a.addr, b.addr, 100)}
	if _, ok := a.Send(&p); ok {
		t.Error("a node without a link took a packet")
	}
	join(t, a, b)
	eventually(t, "link", func() bool { return a.up.Load() && b.up.Load() })
	sent := datagram(a.addr, b.addr, 100)
	got := reach(t, a, b, func() tun.Packet { return tun.Packet{Data: bytes.Clone(sent)} })
	if !bytes.Equal(got, sent) {
		t.Errorf("sent % x\n got % x", sent, got)
	}
	// The subnet behind a node leads to it as well, and from it.
	behind := b.self.Subnet().Addr().Next()
	got = reach(t, b, a, func() tun.Packet { return tun.Packet{Data: datagram(behind, a.addr, 10)} })
	if [16]byte(got[8:24]) != behind.As16() {
		t.Errorf("came from % x", got[8:24])
	}
	got = reach(t, a, b, func() tun.Packet { return tun.Packet{Data: datagram(a.addr, behind, 10)} })
	if [16]byte(got[24:40]) != behind.As16() {
		t.Errorf("came to % x", got[24:40])
	}
	// A super-packet arrives whole, its checksum finished.
	p = stream(a.addr, b.addr, 30000, 1360, 1)
	got = reach(t, a, b, func() tun.Packet { return stream(a.addr, b.addr, 30000, 1360, 1) })
	if len(got) != len(p.Data) || !bytes.Equal(got[60:], p.Data[60:]) || !sumOK(got) || int(binary.BigEndian.Uint16(got[4:])) != len(got)-40 {
		t.Errorf("%d bytes sent, %d arrived, checksum %v", len(p.Data), len(got), sumOK(got))
	}
	if a.filter.out.Load() == 0 || b.filter.in.Load() == 0 {
		t.Error("the firewall was not asked")
	}
	for _, n := range []*node{a, b} {
		ps := n.Peers()
		if len(ps) != 1 || !ps[0].Up || !ps[0].Carried || ps[0].Rx == 0 || ps[0].Tx == 0 {
			t.Errorf("peers: %+v", ps)
		}
	}
}

func sumOK(p []byte) bool {
	l4, _ := tun.Transport(p)
	return tun.Sum(p[l4.Offset:], tun.PseudoSum(p, l4.Proto, len(p)-l4.Offset)) == 0xffff
}

// stock is a Yggdrasil core as others run it.
type stock struct {
	*core.Core
	self ident.PublicKey
}

func startStock(t *testing.T, opts ...core.SetupOption) *stock {
	t.Helper()
	linked(t)
	pub, priv, _ := ed25519.GenerateKey(nil)
	agent, err := ident.FromSeed(priv.Seed())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := agent.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	c, err := core.New(&tls.Certificate{Certificate: cert.Certificate, PrivateKey: priv}, nil, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	return &stock{c, ident.PublicKey(pub)}
}

// listen opens a port of the stock node and returns its URI.
func (s *stock) listen(t *testing.T, uri string) string {
	t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Listen(u, "")
	if err != nil {
		t.Fatal(err)
	}
	at := *u // the core keeps u
	at.Host = l.Addr().String()
	return at.String()
}

// packets yields what the stock node gets.
func (s *stock) packets(t *testing.T) <-chan []byte {
	ch := make(chan []byte, 64)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 65535)
		for {
			n, _, err := s.ReadFrom(b)
			if err != nil {
				return
			}
			select {
			case ch <- bytes.Clone(b[:n]):
			default:
			}
		}
	}()
	t.Cleanup(func() { s.Stop(); <-done })
	return ch
}

// TestPacketTooBig: a stock peer with a small interface says so once; from then on it gets what fits, and the host hears of
// it only when it must cut smaller, too.
func TestPacketTooBig(t *testing.T) {
	s := startStock(t)
	in := s.packets(t)
	n := begin(t, func(c *Config) { c.Peers = []string{s.listen(t, "tcp://127.0.0.1:0")} })
	to := s.self.Addr()
	next := func(pay int) (got []byte) {
		eventually(t, "a packet", func() bool {
			p := stream(n.addr, to, pay, 1360, 7)
			n.Send(&p)
			select {
			case got = <-in:
				return true
			case <-time.After(30 * time.Millisecond):
				return false
			}
		})
		for {
			select {
			case <-in:
			case <-time.After(100 * time.Millisecond):
				return got
			}
		}
	}
	if got := next(40000); len(got) != 40060 {
		t.Fatalf("%d bytes, want one large packet", len(got))
	}
	for _, c := range []struct{ mtu, most int }{{9000, 9000}, {1300, 1300}, {100, 1280}} {
		ptb := make([]byte, 48+100)
		ptb[0], ptb[6], ptb[7] = 0x60, tun.ProtoICMPv6, 64
		binary.BigEndian.PutUint16(ptb[4:], 108)
		f, d := to.As16(), n.addr.As16()
		copy(ptb[8:], f[:])
		copy(ptb[24:], d[:])
		ptb[40] = 2
		binary.BigEndian.PutUint32(ptb[44:], uint32(c.mtu))
		if _, err := s.WriteTo(ptb, types.Addr(n.self[:])); err != nil {
			t.Fatal(err)
		}
		contact := n.contacts.from(s.self)
		eventually(t, "the MTU is learned", func() bool { return contact.limit(n.now(), mostPacket) == c.most })
		heard := false
		select {
		case p := <-n.dev.Out():
			heard = p[40] == 2
		case <-time.After(100 * time.Millisecond):
		}
		if want := c.mtu < 1420; heard != want {
			t.Errorf("MTU %d: the host heard of it: %v, want %v", c.mtu, heard, want)
		}
		p := stream(n.addr, to, 40000, 1360, 7)
		if mtu := n.transmit(contact, &p); mtu != 0 {
			t.Fatalf("MTU %d: refused with %d", c.mtu, mtu)
		}
		sum := 0
		for sum < 40000 {
			select {
			case got := <-in:
				if len(got) > c.most || !sumOK(got) {
					t.Fatalf("MTU %d: a packet of %d bytes, checksum %v", c.mtu, len(got), sumOK(got))
				}
				sum += len(got) - 60
			case <-time.After(5 * time.Second):
				t.Fatalf("MTU %d: only %d bytes came", c.mtu, sum)
			}
		}
	}
	contact := n.contacts.from(s.self)
	p := tun.Packet{Data: datagram(n.addr, to, 1400)}
	if mtu := n.transmit(contact, &p); mtu != 1280 {
		t.Errorf("a datagram of 1448 bytes was answered with MTU %d, want 1280", mtu)
	}
	if got := contact.limit(n.now()+int64(mtuLife), mostPacket); got != mostPacket {
		t.Errorf("the MTU is still %d after its life", got)
	}
}

// TestForged: who sends under another's address, to another's, or what is no packet, is not heard.
func TestForged(t *testing.T) {
	a, b := begin(t, nil), begin(t, nil)
	join(t, a, b)
	other := netip.MustParseAddr("200:1234::1")
	good := func() []byte { return datagram(b.addr, a.addr, 10) }
	for name, ip := range map[string][]byte{
		"source":      datagram(other, a.addr, 10),
		"destination": datagram(b.addr, other, 10),
		"short":       good()[:39],
		"long":        append(good(), 1),
		"cut":         good()[:50],
		"version 4":   append([]byte{0x45}, good()[1:]...),
		"empty":       {},
	} {
		if ok, _ := a.receive(b.self, ip); ok {
			t.Errorf("%s: taken", name)
		}
	}
	if ok, _ := a.receive(b.self, good()); !ok {
		t.Error("an honest packet was not taken")
	}
	if ok, _ := a.receive(a.self, datagram(a.addr, a.addr, 10)); ok {
		t.Error("the node took a packet from itself")
	}
}

// TestBarred: the connection that carries the plane is never inside it.
func TestBarred(t *testing.T) {
	a, b := begin(t, func(c *Config) { c.BarredPort = 2000 }), begin(t, nil)
	join(t, a, b)
	eventually(t, "link", func() bool { return a.up.Load() })
	p := stream(a.addr, b.addr, 10, 0, 1)
	if _, ok := a.Send(&p); ok {
		t.Error("the plane carries itself")
	}
	p = stream(b.addr, a.addr, 10, 0, 1)
	tun.FinishChecksum(p.Data)
	if ok, _ := a.receive(b.self, p.Data); ok {
		t.Error("the plane takes what carries it")
	}
}

// TestFirewallDecides: what the firewall refuses does not reach the host.
func TestFirewallDecides(t *testing.T) {
	f := &shut{}
	a, b := begin(t, nil), begin(t, func(c *Config) { c.Filter = func(ident.PublicKey) Filter { return f } })
	join(t, a, b)
	eventually(t, "link", func() bool { return a.up.Load() && b.up.Load() })
	if ok, _ := b.receive(a.self, datagram(a.addr, b.addr, 10)); ok {
		t.Error("passed")
	}
	b.contacts.sweep(b.now() + int64(contactLife) + int64(time.Minute))
	if f.released.Load() != 1 {
		t.Errorf("released %d times", f.released.Load())
	}
}

// TestBounds: a flood of keys and of unknown destinations takes no more than its share.
func TestBounds(t *testing.T) {
	n := begin(t, nil)
	var key ident.PublicKey
	for i := range maxContacts + 500 {
		binary.BigEndian.PutUint32(key[4:], uint32(i+1))
		n.contacts.from(key)
	}
	if got := len(n.contacts.byKey); got != maxContacts {
		t.Errorf("%d contacts, may be %d", got, maxContacts)
	}
	if got := n.filter.released.Load(); got != 500 {
		t.Errorf("%d filters released, want 500", got)
	}
	for i := range 4000 {
		dst := [16]byte{0x02, 200, 8: byte(i >> 8), 9: byte(i)}
		for range 3 {
			p := tun.Packet{Data: datagram(n.addr, netip.AddrFrom16(dst), 1200)}
			n.contacts.to(dst, &p)
		}
	}
	if got := len(n.contacts.waiting); got > maxHeldDests || n.contacts.heldBytes > maxHeldBytes {
		t.Errorf("%d destinations with %d bytes", got, n.contacts.heldBytes)
	}
	n.contacts.sweep(n.now() + int64(heldLife) + 1)
	if len(n.contacts.waiting) != 0 || n.contacts.heldBytes != 0 {
		t.Errorf("%d destinations with %d bytes are left", len(n.contacts.waiting), n.contacts.heldBytes)
	}
}

// TestRaiseMSS checks the option and the sum against one computed anew, wherever the option stands.
func TestRaiseMSS(t *testing.T) {
	from, to := netip.MustParseAddr("200::1"), netip.MustParseAddr("200::2")
	syn := func(options []byte, flags byte) []byte {
		for len(options)%4 != 0 {
			options = append(options, 0)
		}
		p := stream(from, to, 0, 0, 9).Data
		p = append(p, options...)
		p[52], p[53] = byte(20+len(options))/4<<4, flags
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		tun.FinishChecksum(p)
		return p
	}
	for name, c := range map[string]struct {
		options []byte
		flags   byte
		at      int
		want    uint16
	}{
		"plain":       {[]byte{2, 4, 5, 80}, 0x02, 62, 65475},
		"syn ack":     {[]byte{1, 1, 2, 4, 5, 80}, 0x12, 64, 65475},
		"odd":         {[]byte{1, 2, 4, 5, 80, 1, 1, 1}, 0x02, 63, 65475},
		"behind":      {[]byte{4, 2, 2, 4, 5, 80}, 0x02, 64, 65475},
		"no syn":      {[]byte{2, 4, 5, 80}, 0x10, 62, 1360},
		"larger":      {[]byte{2, 4, 0xff, 0xff}, 0x02, 62, 65535},
		"ended":       {[]byte{0, 2, 4, 5, 80}, 0x02, 63, 1360},
		"wrong":       {[]byte{2, 3, 5, 80}, 0x02, 62, 1360},
		"loop":        {[]byte{8, 0, 2, 4, 5, 80}, 0x02, 64, 1360},
		"cut":         {[]byte{3, 60, 2, 4, 5, 80}, 0x02, 64, 1360},
		"kind at end": {[]byte{1, 1, 1, 2}, 0x02, 58, 0},
	} {
		p := syn(c.options, c.flags)
		raiseMSS(p, 65475)
		if got := binary.BigEndian.Uint16(p[c.at:]); got != c.want && c.want != 0 {
			t.Errorf("%s: MSS %d, want %d", name, got, c.want)
		}
		if !sumOK(p) {
			t.Errorf("%s: the checksum is wrong", name)
		}
	}
}

// FuzzReceive: whatever a peer sends is taken or refused, never a panic.
func FuzzReceive(f *testing.F) {
	self, err := ident.FromSeed(make([]byte, 32))
	if err != nil {
		f.Fatal(err)
	}
	peer, err := ident.FromSeed(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		f.Fatal(err)
	}
	p := &Plane{cfg: Config{Device: tuntest.New(1420, 1), Filter: func(ident.PublicKey) Filter { return &open{} }, BarredPort: 9}, self: self.Public(), start: time.Now()}
	p.contacts.init(p)
	f.Add(datagram(peer.Public().Addr(), self.Public().Addr(), 3))
	f.Add(stream(peer.Public().Addr(), self.Public().Addr(), 3, 0, 1).Data)
	f.Fuzz(func(t *testing.T, b []byte) {
		ok, _ := p.receive(peer.Public(), bytes.Clone(b))
		if ok && (len(b) < 40 || b[0]>>4 != 6) {
			t.Error("took what is no IPv6 packet")
		}
		raiseMSS(b, 9000)
	})
}

// TestPeers: links by every transport, a wrong password said in plain words, and removal.
func TestPeers(t *testing.T) {
	s := startStock(t)
	a := begin(t, nil)
	up := func(uri string) Peer {
		for _, p := range a.Peers() {
			if strings.HasPrefix(uri, p.URI) {
				return p
			}
		}
		return Peer{}
	}
	for _, scheme := range []string{"tcp", "tls", "quic", "ws", "wss", "unix", "socks", "sockstls"} {
		var uri string
		switch scheme {
		case "unix":
			uri = "unix://" + filepath.Join(t.TempDir(), "sock")
			s.listen(t, uri)
		case "wss": // as behind a web server: that ends TLS
			uri = "wss://" + relay(t, strings.TrimPrefix(s.listen(t, "ws://127.0.0.1:0"), "ws://"))
		case "socks":
			uri = "socks://" + socksServer(t) + "/" + strings.TrimPrefix(s.listen(t, "tcp://127.0.0.1:0"), "tcp://")
		case "sockstls":
			uri = "sockstls://" + socksServer(t) + "/" + strings.TrimPrefix(s.listen(t, "tls://127.0.0.1:0"), "tls://")
		default:
			uri = s.listen(t, scheme+"://127.0.0.1:0")
		}
		if err := a.AddPeer(uri); err != nil {
			t.Fatal(err)
		}
		eventually(t, scheme+" comes up", func() bool { return up(uri).Up })
		if p := up(uri); p.Key != s.self || !p.Asked || p.Inbound {
			t.Errorf("%s: %+v", scheme, p)
		}
		if err := a.RemovePeer(uri); err != nil {
			t.Fatal(err)
		}
		eventually(t, scheme+" goes", func() bool { return !up(uri).Up })
	}
	locked := s.listen(t, "tcp://127.0.0.1:0?password=sesame")
	if err := a.AddPeer(strings.Replace(locked, "sesame", "simsim", 1)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the wrong password is refused", func() bool { return strings.Contains(up(locked).Error, "password is wrong") })
	if up(locked).Up {
		t.Error("the link is up")
	}
	if err := a.RemovePeer(locked); err != nil {
		t.Error(err)
	}
	if err := a.RemovePeer(locked); err == nil {
		t.Error("removed twice")
	}
	for _, bad := range []string{"udp://127.0.0.1:1", "%", "tcp://127.0.0.1:1?priority=900", "tcp://127.0.0.1:2?maxbackoff=soon"} {
		if err := a.AddPeer(bad); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}

// relay is a TLS server that passes everything on to another address.
func relay(t *testing.T, to string) string {
	agent, err := ident.Generate()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := agent.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, ln, func(c net.Conn) (net.Conn, error) { return net.Dial("tcp", to) })
	return ln.Addr().String()
}

// serve passes what comes in on to where dial leads, until the test ends.
func serve(t *testing.T, ln net.Listener, dial func(net.Conn) (net.Conn, error)) {
	var wg sync.WaitGroup
	pass := func(c net.Conn) {
		defer c.Close()
		to, err := dial(c)
		if err != nil {
			return
		}
		wg.Go(func() { io.Copy(to, c); to.Close() })
		io.Copy(c, to)
	}
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { pass(c) })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
}

// socksServer is a SOCKS5 proxy that knows CONNECT to IPv4 addresses and asks for nothing (RFC 1928).
func socksServer(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, ln, func(c net.Conn) (net.Conn, error) {
		b := make([]byte, 10)
		if _, err := io.ReadFull(c, b[:2]); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, make([]byte, b[1])); err != nil {
			return nil, err
		}
		c.Write([]byte{5, 0})
		if _, err := io.ReadFull(c, b); err != nil || b[1] != 1 || b[3] != 1 {
			return nil, errors.New("not a CONNECT to an IPv4 address")
		}
		to, err := net.Dial("tcp", netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[8:])).String())
		if err == nil {
			c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
		}
		return to, err
	})
	return ln.Addr().String()
}

// TestFailsWhole: what cannot be opened is an error, and nothing is left.
func TestFailsWhole(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	agent, err := ident.Generate()
	if err != nil {
		t.Fatal(err)
	}
	at := busy.Addr().String()
	for name, set := range map[string]func(*Config){
		"listen": func(c *Config) { c.Listen = []string{"tcp://" + at} },
		"peer":   func(c *Config) { c.Peers = []string{"udp://" + at} },
		"regex":  func(c *Config) { c.Multicast = []Multicast{{Regex: "("}} },
	} {
		cfg := Config{Agent: agent, Device: tuntest.New(1420, 1), Log: slog.New(slog.DiscardHandler), Filter: func(ident.PublicKey) Filter { return &open{} }}
		set(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestSocketsOfTheDead: what a run left that was killed keeps no node from listening; what somebody listens on does.
func TestSocketsOfTheDead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "peer.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	agent, err := ident.Generate()
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Agent: agent, Device: tuntest.New(1420, 1), Log: slog.New(slog.DiscardHandler), Listen: []string{"unix://" + path}}
	if p, err := New(cfg); err == nil || !strings.Contains(err.Error(), "somebody answers") {
		t.Fatalf("a socket in use: %v, %v", p, err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	n := begin(t, func(c *Config) { c.Listen = cfg.Listen })
	s := startStock(t)
	u, err := url.Parse("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.AddPeer(u, ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a node connects by the socket", func() bool { return len(n.Peers()) == 1 && n.Peers()[0].Up })
}
