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

// cut splits a TCP super-packet, with partial checksums.
func cut(p tun.Packet) [][]byte {
	if p.SegSize == 0 {
		return [][]byte{p.Data}
	}
	hdr := 40 + int(p.Data[52]>>4)*4
	var out [][]byte
	for off := hdr; off < len(p.Data); off += int(p.SegSize) {
		end := min(off+int(p.SegSize), len(p.Data))
		s := append(bytes.Clone(p.Data[:hdr]), p.Data[off:end]...)
		binary.BigEndian.PutUint16(s[4:], uint16(len(s)-40))
		binary.BigEndian.PutUint32(s[44:], binary.BigEndian.Uint32(p.Data[44:])+uint32(off-hdr))
		if end < len(p.Data) {
			s[53] &^= 0x09 // FIN and PSH belong to the last
		}
		tun.SetPartial(s)
		out = append(out, s)
	}
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

// transfer sends size random bytes over a new connection and checks that all arrive.
func transfer(t testing.TB, a, b *Stack, size int64) {
	t.Helper()
	l, err := b.Listen(ctx(t), "tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
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
	c, err := a.DialContext(ctx(t), "tcp", net.JoinHostPort(b.addr.String(), port(l.Addr())))
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

func port(a net.Addr) string {
	_, p, _ := net.SplitHostPort(a.String())
	return p
}

func TestTCP(t *testing.T) {
	var w wire
	a, b := pair(t, &w)
	transfer(t, a, b, 8<<20)
	if w.supers.Load() == 0 {
		t.Error("bulk data did not travel as super-packets")
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
