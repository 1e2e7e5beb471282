package link

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"weft/forward"
)

func openPair(t testing.TB, host string) (a, b *udpSocket, toA, toB forward.Endpoint) {
	t.Helper()
	ip := netip.MustParseAddr(host)
	open := func() (*udpSocket, forward.Endpoint) {
		s, err := openUDP(netip.AddrPort{}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s.(*udpSocket), endpointOf(netip.AddrPortFrom(ip, s.LocalPort()), 0)
	}
	a, toA = open()
	b, toB = open()
	return a, b, toA, toB
}

// drain reads until want bytes arrived.
func drain(t testing.TB, s Socket, msgs []Message, want int) (out []byte, reads int, from forward.Endpoint) {
	t.Helper()
	for len(out) < want {
		n, err := s.Receive(msgs)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range msgs[:n] {
			if m.Seg <= 0 || m.Seg > m.N {
				t.Fatalf("read of %d bytes in segments of %d", m.N, m.Seg)
			}
			out = append(out, m.Buf[:m.N]...)
			from = m.From
			reads++
		}
	}
	return out, reads, from
}

func TestBurst(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			a, b, toA, toB := openPair(t, host)
			msgs := newBatch()
			for _, size := range []struct{ total, seg int }{{100, 100}, {64 * 1000, 1000}, {2500, 1000}, {forward.MaxBurstBytes, 1452}, {60000, 1452}} {
				buf := make([]byte, size.total)
				for i := range buf {
					buf[i] = byte(i * 7)
				}
				if err := a.Send(toB, buf, size.seg); err != nil {
					t.Fatal(err)
				}
				got, reads, from := drain(t, b, msgs, len(buf))
				if !bytes.Equal(got, buf) {
					t.Fatalf("%v: bytes differ", size)
				}
				if from != toA {
					t.Fatalf("came from %v, not %v", from.AddrPort(), toA.AddrPort())
				}
				if !a.noGSO.Load() && reads > 2 {
					t.Errorf("%v: took %d reads: no GRO", size, reads)
				}
			}
		})
	}
}

// A path that takes no GSO (here: segments above the MTU of the loopback) is served one datagram at a time.
func TestBurstWithoutGSO(t *testing.T) {
	a, b, _, toB := openPair(t, "127.0.0.1")
	a.noGSO.Store(true)
	buf := bytes.Repeat([]byte{1, 2, 3, 4}, 1000)
	if err := a.Send(toB, buf, 900); err != nil {
		t.Fatal(err)
	}
	got, _, _ := drain(t, b, newBatch(), len(buf))
	if !bytes.Equal(got, buf) {
		t.Fatal("bytes differ")
	}
}

func TestSocketsAllocateNothing(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector makes sync.Pool forget")
	}
	a, b, _, toB := openPair(t, "::1")
	msgs := newBatch()
	buf := make([]byte, 40*1400)
	one := make([]byte, 1400)
	got := 0
	allocs := testing.AllocsPerRun(200, func() {
		if err := a.Send(toB, buf, 1400); err != nil {
			t.Fatal(err)
		}
		if err := a.Send(toB, one, 1400); err != nil {
			t.Fatal(err)
		}
		for got = 0; got < len(buf)+len(one); {
			n, err := b.Receive(msgs)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range msgs[:n] {
				got += m.N
			}
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations per batch", allocs)
	}
}

func TestUnreachable(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		told := make(chan forward.Endpoint, 16)
		s, err := openUDP(netip.AddrPort{}, func(e forward.Endpoint) { told <- e }, nil)
		if err != nil {
			t.Fatal(err)
		}
		gone, err := openUDP(netip.AddrPort{}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		to := endpointOf(netip.AddrPortFrom(netip.MustParseAddr(host), gone.LocalPort()), 0)
		gone.Close()
		var reader sync.WaitGroup
		reader.Go(func() {
			if _, err := s.Receive(newBatch()); err != net.ErrClosed {
				t.Errorf("Receive: %v", err)
			}
		})
		if err := s.Send(to, []byte("x"), 1); err != nil {
			t.Fatal(err)
		}
		if got := <-told; got != to {
			t.Errorf("told of %v, not %v", got.AddrPort(), to.AddrPort())
		}
		s.Close()
		reader.Wait()
	}
}

// One sender's trouble with a dead destination must not fail another's datagrams.
func TestErrorsOfOthers(t *testing.T) {
	a, b, _, toB := openPair(t, "127.0.0.1")
	dead := toB
	dead.Port = 9
	msgs := newBatch()
	for range 50 {
		_ = a.Send(dead, []byte("x"), 1)
		if err := a.Send(toB, []byte("y"), 1); err != nil {
			t.Fatal(err)
		}
		drain(t, b, msgs, 1)
	}
}

func TestParseLinkMessages(t *testing.T) {
	message := func(kind uint16, index int32, flags uint32) []byte {
		b := make([]byte, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg)
		binary.NativeEndian.PutUint32(b, uint32(len(b)))
		binary.NativeEndian.PutUint16(b[4:], kind)
		binary.NativeEndian.PutUint32(b[unix.SizeofNlMsghdr+4:], uint32(index))
		binary.NativeEndian.PutUint32(b[unix.SizeofNlMsghdr+8:], flags)
		return b
	}
	b := message(unix.RTM_NEWLINK, 3, unix.IFF_UP|unix.IFF_RUNNING)
	b = append(b, message(unix.RTM_NEWLINK, 4, unix.IFF_UP)...)
	b = append(b, message(unix.RTM_DELLINK, 5, unix.IFF_UP|unix.IFF_RUNNING)...)
	if down, any := parseLinkMessages(b); !any || !slices.Equal(down, []int{4, 5}) {
		t.Errorf("down %v, any %v", down, any)
	}
	route := message(unix.RTM_NEWROUTE, 4, 0)
	if down, any := parseLinkMessages(route); !any || down != nil {
		t.Errorf("a default route gave %v %v", down, any)
	}
	route[unix.SizeofNlMsghdr+1] = 24
	if down, any := parseLinkMessages(route); any || down != nil {
		t.Errorf("a route to one network gave %v %v", down, any)
	}
}

func FuzzOOB(f *testing.F) {
	f.Add(make([]byte, oobSize), 20)
	f.Fuzz(func(t *testing.T, oob []byte, n int) {
		if n >= 0 && len(oob) >= n {
			groSize(oob, n)
		}
		refusedErr(oob, max(n, 0))
		parseLinkMessages(oob)
	})
}

func BenchmarkSocket(b *testing.B) {
	s, r, _, to := openPair(b, "::1")
	msgs := newBatch()
	buf := make([]byte, 44*1452)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Send(to, buf, 1452); err != nil {
			b.Fatal(err)
		}
		for got := 0; got < len(buf); {
			n, err := r.Receive(msgs)
			if err != nil {
				b.Fatal(err)
			}
			for _, m := range msgs[:n] {
				got += m.N
			}
		}
	}
}

// BenchmarkPingPong is the latency that the poller adds: what a ping through two sockets costs.
func BenchmarkPingPong(b *testing.B) {
	x, y, toX, toY := openPair(b, "::1")
	var echo sync.WaitGroup
	echo.Go(func() {
		msgs := newBatch()
		for {
			n, err := y.Receive(msgs)
			if err != nil {
				return
			}
			for _, m := range msgs[:n] {
				_ = y.Send(toX, m.Buf[:m.N], m.N)
			}
		}
	})
	msgs := newBatch()
	buf := make([]byte, 100)
	for b.Loop() {
		if err := x.Send(toY, buf, 100); err != nil {
			b.Fatal(err)
		}
		if _, err := x.Receive(msgs); err != nil {
			b.Fatal(err)
		}
	}
	y.Close()
	echo.Wait()
}

// BenchmarkPingPongBlocking is the same with plain blocking reads, to compare with.
func BenchmarkPingPongBlocking(b *testing.B) {
	open := func() (int, *unix.SockaddrInet6) {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
		if err != nil {
			b.Fatal(err)
		}
		sa := &unix.SockaddrInet6{Addr: netip.MustParseAddr("::1").As16()}
		if err := unix.Bind(fd, sa); err != nil {
			b.Fatal(err)
		}
		got, _ := unix.Getsockname(fd)
		return fd, got.(*unix.SockaddrInet6)
	}
	x, toX := open()
	y, toY := open()
	var echo sync.WaitGroup
	echo.Go(func() {
		buf := make([]byte, 2000)
		for {
			n, _, err := unix.Recvfrom(y, buf, 0)
			if err != nil || n == 0 {
				return
			}
			_ = unix.Sendto(y, buf[:n], 0, toX)
		}
	})
	buf := make([]byte, 2000)
	for b.Loop() {
		if err := unix.Sendto(x, buf[:100], 0, toY); err != nil {
			b.Fatal(err)
		}
		if _, _, err := unix.Recvfrom(x, buf, 0); err != nil {
			b.Fatal(err)
		}
	}
	_ = unix.Sendto(x, nil, 0, toY)
	echo.Wait()
	unix.Close(x)
	unix.Close(y)
}
