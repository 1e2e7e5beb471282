//go:build !router && linux

package exit

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"weft/tun"
	"weft/tun/netstack"
)

// FuzzWriter: clients may send anything. Nothing of it leaves the process.
func FuzzWriter(f *testing.F) {
	from4, to4 := netip.AddrPortFrom(leaseA, 1000), netip.AddrPortFrom(site4, 80)
	from6, to6 := netip.AddrPortFrom(nodeA, 1000), netip.AddrPortFrom(site6, 80)
	for _, p := range [][]byte{
		synPacket(from4, to4), synPacket(from6, to6), udpPacket(from4, to4, "x"), udpPacket(from6, to6, "x"),
		echoPacket(leaseA, site4, 1, 2), echoPacket(nodeA, site6, 1, 2),
		ipPacket(44, nodeA, site6, append([]byte{17, 0, 0, 1, 0, 0, 0, 1}, "fragment"...)),
		ipPacket(protoICMP, leaseA, site4, append([]byte{3, 4, 0, 0, 0, 0, 5, 0}, synPacket(to4, from4)...)),
		ipPacket(tun.ProtoICMPv6, nodeA, site6, append([]byte{2, 0, 0, 0, 0, 0, 5, 0}, synPacket(to6, from6)...)),
	} {
		f.Add(p, false)
		f.Add(p, true)
	}
	e, err := Open(Config{
		MTU: 1400, Log: slog.New(slog.DiscardHandler), Allow: all,
		Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no") },
		ListenPacket: func(context.Context, string, string) (net.PacketConn, error) {
			return &void{done: make(chan struct{})}, nil
		},
	})
	if err != nil {
		f.Fatal(err)
	}
	for _, p := range e.ping {
		if p != nil {
			p.out = func([]byte, netip.AddrPort) error { return errors.New("no") }
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		pkts := make([]tun.Packet, 64)
		for {
			if _, err := e.Read(pkts); err != nil {
				return
			}
		}
	})
	f.Cleanup(func() { e.Close(); wg.Wait() })
	w := e.NewWriter()
	f.Fuzz(func(t *testing.T, p []byte, partial bool) {
		w.Write(bytes.Clone(p), partial)
		if src, dst, l4, ok := parse(p); ok && (!src.IsValid() || !dst.IsValid() || l4.Offset > len(p)) {
			t.Fatalf("%v, %v, %+v", src, dst, l4)
		}
		if len(p) > 60 && tun.FinishChecksum(p) { // once more, to get further
			w.Write(p, partial)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzReply: strangers may send anything to a raw ping socket.
func FuzzReply(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 1, 0, 7, 'x'}, true)
	f.Add([]byte{129, 0, 0, 0, 0, 1, 0, 7}, false)
	f.Fuzz(func(t *testing.T, b []byte, v4 bool) {
		e := &Exit{book: newBook(1, 1, floorCost)}
		p := newPinger(e, &void{}, v4, true)
		p.id, p.next = 1, 6
		if _, ok := p.note(request{client: leaseA, dst: site4, real: site4, at: time.Now()}); !ok {
			t.Fatal("no room")
		}
		p.answer(b, netip.AddrPortFrom(site6, 0)) // from another than was asked
		if len(p.sent) != 1 {
			t.Fatal("a stranger's reply was taken")
		}
	})
}

// void is a socket from which nothing comes.
type void struct {
	once sync.Once
	done chan struct{}
}

func (v *void) ReadFrom([]byte) (int, net.Addr, error)    { <-v.done; return 0, nil, net.ErrClosed }
func (v *void) WriteTo(b []byte, _ net.Addr) (int, error) { return len(b), nil }
func (v *void) Close() error                              { v.once.Do(func() { close(v.done) }); return nil }
func (v *void) LocalAddr() net.Addr                       { return &net.UDPAddr{} }
func (v *void) SetDeadline(time.Time) error               { return nil }
func (v *void) SetReadDeadline(time.Time) error           { return nil }
func (v *void) SetWriteDeadline(time.Time) error          { return nil }

// benchmark joins a client in this process to a site on the loopback interface, which the exit finds at another address.
func benchmark(b *testing.B, handle func(*net.TCPConn)) net.Conn {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if c, err := l.Accept(); err == nil {
			handle(c.(*net.TCPConn))
			c.Close()
		}
	})
	e := open(b, Config{Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, l.Addr().String())
	}})
	var s *netstack.Stack = client(b, e)
	c := dial(b, s, "tcp", netip.AddrPortFrom(site4, 80))
	c.SetDeadline(time.Time{})
	b.Cleanup(func() { c.Close(); e.Close(); l.Close(); wg.Wait() })
	return c
}

// BenchmarkUpload and BenchmarkDownload include the client's stack and the cutting of super-packets, on the same cores.
func BenchmarkUpload(b *testing.B) {
	c := benchmark(b, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	buf := make([]byte, 64<<10)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDownload(b *testing.B) {
	c := benchmark(b, func(c *net.TCPConn) {
		buf := make([]byte, 64<<10)
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	})
	buf := make([]byte, 64<<10)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
}
