//go:build !router

package netstack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/tun"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ tun.Device = (*Stack)(nil)

var (
	addrA = netip.MustParseAddr("200:1111::a")
	addrB = netip.MustParseAddr("200:1111::b")
)

// wire joins two devices as sessions do: what one reads is cut into segments and written to the other.
type wire struct {
	packets, supers atomic.Uint64
	drop            func(i uint64, p []byte) bool // nil: nothing is lost
	seen            func(p []byte, partial bool)
}

func (w *wire) run(t testing.TB, from, to tun.Device) {
	out := to.NewWriter()
	pkts := make([]tun.Packet, 32)
	for {
		n, err := from.Read(pkts)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("Read: %v", err)
			}
			return
		}
		for _, p := range pkts[:n] {
			if p.SegSize != 0 {
				w.supers.Add(1)
			}
			for _, s := range cut(p) {
				i := w.packets.Add(1)
				if w.seen != nil {
					w.seen(s, p.Partial)
				}
				if len(s) > from.MTU() {
					t.Errorf("a packet of %d bytes, MTU %d", len(s), from.MTU())
				}
				if w.drop == nil || !w.drop(i, s) {
					out.Write(s, p.Partial)
				}
			}
		}
		out.Flush()
	}
}

// cut splits a super-packet as session does, with partial checksums.
func cut(p tun.Packet) (out [][]byte) {
	if p.SegSize == 0 {
		return [][]byte{p.Data}
	}
	hdr, ok := tun.HeaderLen(p.Data)
	if !ok {
		panic("a super-packet without headers")
	}
	tun.Cut(p.Data, hdr, int(p.SegSize), func(ip []byte) {
		tun.SetPartial(ip)
		out = append(out, bytes.Clone(ip))
	})
	return out
}

func pair(t testing.TB, w *wire) (a, b *Stack) {
	t.Helper()
	open := func(addr netip.Addr) *Stack {
		s, err := New(Config{Addr: addr, MTU: 1400})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a, b = open(addrA), open(addrB)
	var wg sync.WaitGroup
	wg.Go(func() { w.run(t, a, b) })
	wg.Go(func() { w.run(t, b, a) })
	t.Cleanup(func() {
		a.Close()
		b.Close()
		wg.Wait()
	})
	return a, b
}

func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return c
}

// transfer sends size random bytes over a new connection in the mesh and checks that all arrive.
func transfer(t testing.TB, a, b *Stack, size int64) {
	t.Helper()
	l, err := b.Listen(ctx(t), "tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	send(t, a, l, size)
}

// send sends size random bytes to l, and reads an answer after the half-close.
func send(t testing.TB, a *Stack, l net.Listener, size int64) {
	t.Helper()
	defer l.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	got := sha256.New()
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			t.Errorf("Accept: %v", err)
			return
		}
		defer c.Close()
		if n, err := io.Copy(got, c); n != size || err != nil {
			t.Errorf("received %d of %d bytes: %v", n, size, err)
		}
		if _, err := c.Write([]byte("done")); err != nil { // after the other side has shut its half
			t.Errorf("Write: %v", err)
		}
	})
	c, err := a.DialContext(ctx(t), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := sha256.New()
	random := rand.NewChaCha8([32]byte{})
	if _, err := io.Copy(io.MultiWriter(c, want), io.LimitReader(random, size)); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(c); string(answer) != "done" || err != nil {
		t.Fatalf("answer %q, %v", answer, err)
	}
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Error("other bytes came out than went in")
	}
}

func TestTCP(t *testing.T) {
	var w wire
	a, b := pair(t, &w)
	transfer(t, a, b, 8<<20)
	if w.supers.Load() == 0 {
		t.Error("bulk data did not travel as super-packets")
	}
	got := b.stack.NICInfo()[nicID].Stats.Rx.Packets.Value()
	if got == 0 || got > w.packets.Load()/4 {
		t.Errorf("%d segments were delivered as %d: not merged", w.packets.Load(), got)
	}
}

func TestTCPUnderLoss(t *testing.T) {
	w := wire{drop: func(i uint64, p []byte) bool { return i%50 == 0 }}
	a, b := pair(t, &w)
	transfer(t, a, b, 1<<20)
}

func TestRefusedIsAnErrno(t *testing.T) {
	a, _ := pair(t, &wire{})
	_, err := a.DialContext(ctx(t), "tcp", "[200:1111::b]:9")
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial to a closed port: %v", err)
	}
	if _, err := a.Listen(ctx(t), "tcp", "[200:1111::c]:80"); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("listen on another's address: %v", err)
	}
}

func BenchmarkTCP(b *testing.B) {
	x, y := pair(b, &wire{})
	l, err := y.Listen(ctx(b), "tcp", ":80")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			b.Error(err)
			return
		}
		io.Copy(io.Discard, c)
		c.Close()
	})
	c, err := x.DialContext(ctx(b), "tcp", "[200:1111::b]:80")
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	c.Close()
}

func TestUDP(t *testing.T) {
	a, b := pair(t, &wire{})
	server, err := b.ListenPacket(ctx(t), "udp", ":53")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	c, err := a.DialContext(ctx(t), "udp", "[200:1111::b]:53")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	server.SetDeadline(time.Now().Add(20 * time.Second))
	for _, size := range []int{0, 1, 1352, 1353, 60000} { // the last two travel in fragments
		sent := bytes.Repeat([]byte{byte(size)}, size)
		if _, err := c.Write(sent); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 65536)
		n, from, err := server.ReadFrom(buf)
		if err != nil || !bytes.Equal(buf[:n], sent) {
			t.Fatalf("%d bytes sent, %d received, %v", size, n, err)
		}
		if _, err := server.WriteTo(buf[:n], from); err != nil {
			t.Fatal(err)
		}
		if n, err = c.Read(buf); err != nil || !bytes.Equal(buf[:n], sent) {
			t.Fatalf("%d bytes sent back, %d received, %v", size, n, err)
		}
	}
}

func TestItself(t *testing.T) {
	a, _ := pair(t, &wire{})
	transfer(t, a, a, 1<<20)
}

// alone returns a stack with nothing on the other side, and its writer.
func alone(t testing.TB) (*Stack, tun.Writer) {
	t.Helper()
	s, err := New(Config{Addr: addrA, MTU: 1400})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, s.NewWriter()
}

func packet(proto byte, payload []byte) []byte {
	p := make([]byte, 40, 40+len(payload))
	p[0], p[6], p[7] = 0x60, proto, 64
	binary.BigEndian.PutUint16(p[4:], uint16(len(payload)))
	copy(p[8:], addrB.AsSlice())
	copy(p[24:], addrA.AsSlice())
	return append(p, payload...)
}

func echo(id uint16) []byte {
	p := packet(tun.ProtoICMPv6, append([]byte{128, 0, 0, 0, byte(id >> 8), byte(id), 0, 1}, "ping"...))
	binary.BigEndian.PutUint16(p[42:], ^tun.Sum(p[40:], tun.PseudoSum(p, tun.ProtoICMPv6, len(p)-40)))
	return p
}

func TestEchoIsAnswered(t *testing.T) {
	s, w := alone(t)
	w.Write(echo(7), false)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	pkts := make([]tun.Packet, 4)
	n, err := s.Read(pkts)
	if n != 1 || err != nil {
		t.Fatal(n, err)
	}
	p := pkts[0].Data
	if p[40] != 129 || binary.BigEndian.Uint16(p[44:]) != 7 || !bytes.HasSuffix(p, []byte("ping")) || !bytes.Equal(p[24:40], addrB.AsSlice()) {
		t.Errorf("answer %x", p)
	}
	if pkts[0].Partial || pkts[0].SegSize != 0 {
		t.Error("an echo reply is no super-packet")
	}
}

func TestNothingElseIsForwardedOrRouted(t *testing.T) {
	s, w := alone(t)
	p := echo(1)
	p[39]++ // to another address
	binary.BigEndian.PutUint16(p[42:], 0)
	binary.BigEndian.PutUint16(p[42:], ^tun.Sum(p[40:], tun.PseudoSum(p, tun.ProtoICMPv6, len(p)-40)))
	w.Write(p, false)
	w.Write(echo(2), false)
	w.Flush()
	pkts := make([]tun.Packet, 4)
	n, err := s.Read(pkts)
	if n != 1 || err != nil || binary.BigEndian.Uint16(pkts[0].Data[44:]) != 2 {
		t.Errorf("%d packets, %v: want the answer to the second alone", n, err)
	}
}

func TestBadPacketsAreCounted(t *testing.T) {
	s, w := alone(t)
	good := packet(tun.ProtoUDP, []byte{0, 1, 0, 2, 0, 12, 0, 0, 'd', 'a', 't', 'a'})
	if !tun.FinishChecksum(good) {
		t.Fatal("no checksum")
	}
	flipped := bytes.Clone(good)
	flipped[50] ^= 1
	zero := bytes.Clone(good)
	zero[46], zero[47] = 0, 0
	for _, p := range [][]byte{{}, good[:39], good[:len(good)-1], append(bytes.Clone(good), 0), flipped, zero} {
		w.Write(p, false)
	}
	w.Write(bytes.Repeat([]byte{0x45}, 40), true)
	w.Flush()
	if got := s.Stats().Bad; got != 7 {
		t.Errorf("%d bad packets counted, want 7", got)
	}
	w.Write(good, false)
	w.Write(flipped, true) // partial: its field is no checksum yet
	w.Flush()
	if got := s.Stats().Bad; got != 7 {
		t.Errorf("%d bad packets counted after good ones, want 7", got)
	}
}

func TestQueueIsBounded(t *testing.T) {
	s, w := alone(t)
	for i := range 3 * maxQueued { // answers that nobody reads
		w.Write(echo(uint16(i)), false)
	}
	w.Flush()
	if s.link.queue.n > maxQueued || s.link.bytes > maxQueuedMem {
		t.Errorf("%d packets of %d bytes are queued", s.link.queue.n, s.link.bytes)
	}
	if s.Stats().Dropped == 0 {
		t.Error("drops are not counted")
	}
	pkts := make([]tun.Packet, 64)
	n, err := s.Read(pkts)
	if n != len(pkts) || err != nil {
		t.Fatal(n, err)
	}
	for i := range pkts {
		if id := binary.BigEndian.Uint16(pkts[i].Data[44:]); int(id) != i {
			t.Fatalf("packet %d has number %d", i, id)
		}
	}
}

func TestCloseEndsEverything(t *testing.T) {
	a, b := pair(t, &wire{})
	l, err := b.Listen(ctx(t), "tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	u, err := b.ListenPacket(ctx(t), "udp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	c, err := a.DialContext(ctx(t), "tcp", "[200:1111::b]:80")
	if err != nil {
		t.Fatal(err)
	}
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ends := func(what string, f func() error) {
		wg.Go(func() {
			if f() == nil {
				t.Errorf("%s went on", what)
			}
		})
	}
	ends("Accept", func() error { _, err := l.Accept(); return err })
	ends("ReadFrom", func() error { _, _, err := u.ReadFrom(make([]byte, 1)); return err })
	ends("Read", func() error { _, err := in.Read(make([]byte, 1)); return err })
	ends("Dial", func() error { _, err := b.DialContext(ctx(t), "tcp", "[200:1111::c]:80"); return err })
	b.Close()
	b.Close()
	wg.Wait()
	if _, err := b.Listen(ctx(t), "tcp", ":81"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Listen after Close: %v", err)
	}
	if err := b.NewWriter().Flush(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Flush after Close: %v", err)
	}
	c.Close()
	in.Close()
	u.Close()
	l.Close()
}

func TestDialGivesUpWithItsContext(t *testing.T) {
	a, _ := alone(t)
	c, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.DialContext(c, "tcp", "[200:1111::b]:80"); !errors.Is(err, context.Canceled) {
		t.Errorf("dial with a dead context: %v", err)
	}
	c, cancel = context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error)
	go func() {
		_, err := a.DialContext(c, "tcp", "[200:1111::b]:80")
		done <- err
	}()
	if _, err := a.Read(make([]tun.Packet, 1)); err != nil { // its SYN
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("dial after cancel: %v", err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for _, c := range []Config{{addrA, 1279}, {addrA, 65536}, {netip.MustParseAddr("10.0.0.1"), 1400}, {MTU: 1400}} {
		if s, err := New(c); err == nil {
			s.Close()
			t.Errorf("New(%+v) succeeded", c)
		}
	}
}

// FuzzWriter: what a peer sends may be anything.
func FuzzWriter(f *testing.F) {
	f.Add(echo(1), false)
	f.Add(packet(tun.ProtoTCP, append([]byte{0, 1, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 0, 9, 0, 0, 0, 0}, "payload"...)), true)
	f.Add(packet(tun.ProtoUDP, []byte{0, 1, 0, 2, 0, 8, 0, 0}), true)
	f.Add(packet(44, []byte{58, 0, 0, 1, 0, 0, 0, 1, 128, 0, 0, 0, 0, 0, 0, 1}), true)
	f.Add(packet4(tun.ProtoTCP, append([]byte{0, 1, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 0, 9, 0, 0, 0, 0}, "payload"...)), true)
	f.Add(packet4(tun.ProtoUDP, []byte{0, 1, 0, 2, 0, 8, 0, 0}), false)
	f.Add(packet4(1, []byte{8, 0, 0xf7, 0xfd, 0, 1, 0, 1}), false)
	s, err := New(Config{Addr: addrA, MTU: 1400})
	if err != nil {
		f.Fatal(err)
	}
	if err := s.SetOutside(leaseA, netip.Addr{}); err != nil {
		f.Fatal(err)
	}
	l, err := s.Listen(context.Background(), "tcp", ":80")
	if err != nil {
		f.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		pkts := make([]tun.Packet, 64)
		for {
			if _, err := s.Read(pkts); err != nil {
				return
			}
		}
	})
	f.Cleanup(func() { l.Close(); s.Close(); wg.Wait() })
	w := s.NewWriter()
	f.Fuzz(func(t *testing.T, p []byte, partial bool) {
		w.Write(p, partial)
		if len(p) > 44 { // once more, where the next segment would be
			q := bytes.Clone(p)
			if tcp, hdr := splitTCP(p); hdr != 0 {
				binary.BigEndian.PutUint32(q[tcp+4:], binary.BigEndian.Uint32(p[tcp+4:])+uint32(len(p)-hdr))
			}
			w.Write(q, partial)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	})
}
