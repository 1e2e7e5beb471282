package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// halfPipe is a net.Pipe whose ends can shut their sending halves.
type halfPipe struct {
	net.Conn
	in  *io.PipeReader
	out *io.PipeWriter
}

func (p halfPipe) Read(b []byte) (int, error)  { return p.in.Read(b) }
func (p halfPipe) Write(b []byte) (int, error) { return p.out.Write(b) }
func (p halfPipe) CloseWrite() error           { return p.out.Close() }
func (p halfPipe) Close() error {
	p.in.CloseWithError(net.ErrClosed)
	return p.out.Close()
}

func newPipe() (a, b halfPipe) {
	r1, w1 := io.Pipe()
	r2, w2 := io.Pipe()
	return halfPipe{in: r1, out: w2}, halfPipe{in: r2, out: w1}
}

func TestJoinClosesWhatIsIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, x := newPipe()
		b, y := newPipe()
		begin := time.Now()
		var ended time.Duration
		var wg sync.WaitGroup
		wg.Go(func() { join(t.Context(), x, y); ended = time.Since(begin) })
		time.Sleep(2 * time.Hour)
		a.Write([]byte("still here"))
		buf := make([]byte, 100)
		if n, _ := b.Read(buf); string(buf[:n]) != "still here" {
			t.Errorf("%q came through", buf[:n])
		}
		wg.Wait()
		if ended != 2*time.Hour+idleTCP {
			t.Errorf("closed after %v", ended)
		}
	})
}

func TestJoinPassesHalfCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, x := newPipe()
		b, y := newPipe()
		begin := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() { join(t.Context(), x, y) })
		wg.Go(func() { io.WriteString(a, "question"); a.CloseWrite() })
		if q, err := io.ReadAll(b); string(q) != "question" || err != nil {
			t.Errorf("%q, %v", q, err)
		}
		time.Sleep(idleHalfClosed - time.Second)
		wg.Go(func() { io.WriteString(b, "answer") }) // and forgets to close
		buf := make([]byte, 6)
		if _, err := io.ReadFull(a, buf); string(buf) != "answer" || err != nil {
			t.Errorf("%q, %v", buf, err)
		}
		wg.Wait()
		if d := time.Since(begin); d != 2*idleHalfClosed-time.Second {
			t.Errorf("closed after %v", d)
		}
	})
}

func TestJoinEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, x := newPipe()
		_, y := newPipe()
		begin := time.Now()
		join(ctx, x, y)
		if d := time.Since(begin); d != time.Minute {
			t.Errorf("ended after %v", d)
		}
	})
}

// fakeListener hands out connections with addresses of the test's choice.
type fakeListener struct {
	at    net.Addr
	conns chan net.Conn
	once  sync.Once
}

type fakeConn struct {
	net.Conn
	from   netip.AddrPort
	closed atomic.Bool
}

func (c *fakeConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.from) }
func (c *fakeConn) Close() error         { c.closed.Store(true); return nil }
func (l *fakeListener) Close() error     { l.once.Do(func() { close(l.conns) }); return nil }
func (l *fakeListener) Addr() net.Addr   { return l.at }
func (l *fakeListener) Accept() (net.Conn, error) {
	if c, ok := <-l.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func TestAcceptIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		l := &fakeListener{conns: make(chan net.Conn, 10)}
		var running atomic.Int32
		done := make(chan error)
		go func() {
			done <- accept(ctx, l, 3, 2, func(ctx context.Context, c net.Conn) {
				running.Add(1)
				<-ctx.Done()
				running.Add(-1)
			})
		}()
		conns := make([]*fakeConn, 6)
		for i, from := range []string{"[300:1::1]:1", "[300:1::2]:1", "[300:1::3]:1", "[200::1]:1", "[200:0:0:1::1]:1", "[200:0:0:2::1]:1"} {
			conns[i] = &fakeConn{from: netip.MustParseAddrPort(from)}
			l.conns <- conns[i]
		}
		synctest.Wait()
		if running.Load() != 3 {
			t.Errorf("%d connections are served, may be 3", running.Load())
		}
		if !conns[2].closed.Load() {
			t.Error("the third connection of one /64 is not closed")
		}
		if conns[3].closed.Load() || conns[4].closed.Load() || len(l.conns) != 2 {
			t.Error("others do not wait for their turn")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if running.Load() != 0 {
			t.Error("accept did not wait for its goroutines")
		}
	})
}

type brokenListener struct{ fakeListener }

func (*brokenListener) Accept() (net.Conn, error) { return nil, errors.New("broken") }

func TestAcceptReportsABrokenListener(t *testing.T) {
	l := &brokenListener{fakeListener{conns: make(chan net.Conn)}}
	if err := accept(t.Context(), l, 1, 0, nil); err == nil {
		t.Error("no error")
	}
}

// FuzzDest: what parses prints to the same bytes, and the reader takes just as much as the parser.
func FuzzDest(f *testing.F) {
	f.Add(appendAddr(nil, netip.MustParseAddrPort("10.0.0.1:80")))
	f.Add(append(appendAddr(nil, netip.MustParseAddrPort("[200::1]:80")), "payload"...))
	f.Add([]byte("\x03\x03abc\x00\x50rest"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, rest, err := parseDest(b)
		r := bufio.NewReader(strings.NewReader(string(b)))
		d2, err2 := readDest(r)
		if (err == nil) != (err2 == nil) || err == nil && d != d2 {
			t.Fatalf("parsed %v, %v; read %v, %v", d, err, d2, err2)
		}
		if err != nil {
			return
		}
		if after, _ := io.ReadAll(r); string(after) != string(rest) {
			t.Fatalf("rest %q, left to read %q", rest, after)
		}
		if b[0] == addrName {
			if d.host != string(b[2:2+int(b[1])]) {
				t.Fatalf("name %q", d.host)
			}
			return
		}
		a := netip.MustParseAddr(d.host)
		again, _, err := parseDest(appendAddr(nil, netip.AddrPortFrom(a, d.port)))
		if err != nil || again != d {
			t.Fatalf("%v, again %v, %v", d, again, err)
		}
	})
}

// FuzzProxy throws bytes at the whole of both protocols.
func FuzzProxy(f *testing.F) {
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50"))
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x03\x06x.weft\x00\x50"))
	f.Add([]byte("CONNECT x.weft:80 HTTP/1.1\r\nHost: x\r\n\r\n"))
	f.Add([]byte("GET http://x.weft/ HTTP/1.1\r\nHost: x\r\n\r\n"))
	p, err := New(Config{Mesh: nowhere{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l := &fakeListener{at: &net.TCPAddr{IP: net.IPv6loopback}, conns: make(chan net.Conn, 1)}
		client, server := net.Pipe()
		l.conns <- server
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.ServeListener(ctx, l) }()
		go func() { client.Write(b); client.Close() }()
		io.Copy(io.Discard, client)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// nowhere is a mesh in which nobody answers.
type nowhere struct{}

var errNowhere = errors.New("nobody is there")

func (nowhere) DialContext(context.Context, string, string) (net.Conn, error) { return nil, errNowhere }
func (nowhere) Listen(context.Context, string, string) (net.Listener, error)  { return nil, errNowhere }
func (nowhere) ListenPacket(context.Context, string, string) (net.PacketConn, error) {
	return nil, errNowhere
}

func TestHostStaysOnItsAddress(t *testing.T) {
	h := Host{Addr: netip.IPv6Loopback()}
	l, err := h.Listen(t.Context(), "tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a := addrPortOf(l.Addr()); a.Addr() != h.Addr {
		t.Errorf("listens on %s", a)
	}
	c, err := h.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if a := addrPortOf(c.LocalAddr()); a.Addr() != h.Addr {
		t.Errorf("dials from %s", a)
	}
	u, err := h.ListenPacket(t.Context(), "udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if a := addrPortOf(u.LocalAddr()); a.Addr() != h.Addr {
		t.Errorf("receives on %s", a)
	}
}
