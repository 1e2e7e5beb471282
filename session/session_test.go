package session

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"weft/forward"
	"weft/ident"
	"weft/tun"
	"weft/tun/tuntest"
	"weft/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world joins managers by wires with a delay; tap may change or drop each datagram, and may call inject for more.
type world struct {
	t     *testing.T
	delay time.Duration
	nodes map[ident.NodeID]*peer
	room  int
	gone  map[ident.NodeID]bool // no route

	elsewhere func(*tun.Packet) (int, bool)
	outside   Outside // of all nodes
	message   func(ident.PublicKey, byte, []byte)
	mu        sync.Mutex
	tap       func(from, to *peer, d []byte) []byte
	ctx       context.Context
	stop      context.CancelFunc
	wg        sync.WaitGroup
}

type peer struct {
	w     *world
	agent *ident.Agent
	m     *Manager
	dev   *tuntest.Device
	wire  chan []byte
	cut   bool
	stop  context.CancelFunc
	done  chan struct{}
}

type allow struct{}

func (allow) Out([]byte)     {}
func (allow) In([]byte) bool { return true }
func (allow) Release()       {}

func newWorld(t *testing.T) *world {
	w := &world{t: t, delay: 5 * time.Millisecond, nodes: map[ident.NodeID]*peer{}, room: 1420}
	w.ctx, w.stop = context.WithCancel(t.Context())
	return w
}

func (w *world) add(psk [32]byte) *peer {
	a, err := ident.Generate()
	if err != nil {
		w.t.Fatal(err)
	}
	return w.start(a, psk)
}

func (w *world) start(a *ident.Agent, psk [32]byte) *peer {
	p := &peer{w: w, agent: a, dev: tuntest.New(1420, 1024), wire: make(chan []byte, 4096), done: make(chan struct{})}
	m, err := New(Config{Agent: a, Device: p.dev, Resolver: w, PSK: psk, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Filter: func(ident.PublicKey) Filter { return allow{} }, Elsewhere: w.elsewhere, Outside: w.outside, Message: w.message})
	if err != nil {
		w.t.Fatal(err)
	}
	m.Bind(p)
	p.m = m
	w.mu.Lock()
	w.nodes[a.Public().ID()] = p
	w.mu.Unlock()
	ctx, cancel := context.WithCancel(w.ctx)
	p.stop = cancel
	w.wg.Add(2)
	go func() { defer w.wg.Done(); m.Serve(ctx); close(p.done) }()
	go func() {
		defer w.wg.Done()
		sink := m.NewSink()
		for {
			select {
			case d := <-p.wire:
				time.Sleep(w.delay) // virtual
				sink.Deliver(d, nil)
				for n := len(p.wire); n > 0; n-- {
					sink.Deliver(<-p.wire, nil)
				}
				sink.Flush()
			case <-ctx.Done():
				return
			}
		}
	}()
	return p
}

func (w *world) close() { w.stop(); w.wg.Wait() }

// Send implements Plane.
func (p *peer) Send(dest ident.NodeID, class wire.Class, buf []byte, seg int) error {
	w := p.w
	w.mu.Lock()
	to, tap := w.nodes[dest], w.tap
	w.mu.Unlock()
	if to == nil || to.cut || p.cut {
		return forward.ErrNoRoute
	}
	for at := 0; at < len(buf); at += seg {
		d := bytes.Clone(buf[at:min(at+seg, len(buf))])
		if tap != nil {
			d = tap(p, to, d)
		}
		if d == nil {
			continue
		}
		select {
		case to.wire <- d:
		default:
		}
	}
	return nil
}

// ByAddr and Room implement Resolver.
func (w *world) ByAddr(a netip.Addr) (ident.PublicKey, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.nodes {
		k := p.agent.Public()
		if k.Addr() == a || k.Subnet().Contains(a) {
			return k, true
		}
	}
	return ident.PublicKey{}, false
}

func (w *world) Room(id ident.NodeID) (int, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.nodes[id]
	return w.room, ok && !w.gone[id]
}

const tcpPSH = 0x08

// udp makes a UDP packet; tcp a TCP super-packet or segment. Checksums are partial.
func udp(from, to netip.Addr, payload []byte) []byte {
	b := make([]byte, 48+len(payload))
	ipv6(b, from, to, tun.ProtoUDP)
	binary.BigEndian.PutUint16(b[40:], 1000)
	binary.BigEndian.PutUint16(b[42:], 2000)
	binary.BigEndian.PutUint16(b[44:], uint16(8+len(payload)))
	copy(b[48:], payload)
	tun.SetPartial(b)
	return b
}

func tcp(from, to netip.Addr, seq uint32, payload []byte) []byte {
	b := make([]byte, 60+len(payload))
	ipv6(b, from, to, tun.ProtoTCP)
	binary.BigEndian.PutUint16(b[40:], 1000)
	binary.BigEndian.PutUint16(b[42:], 80)
	binary.BigEndian.PutUint32(b[44:], seq)
	b[52], b[53] = 5<<4, 0x10|tcpPSH
	copy(b[60:], payload)
	tun.SetPartial(b)
	return b
}

func ipv6(b []byte, from, to netip.Addr, proto byte) {
	binary.BigEndian.PutUint32(b, 6<<28|0x2a<<20|0xabcde)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	b[6], b[7] = proto, 61
	copy(b[8:], from.AsSlice())
	copy(b[24:], to.AsSlice())
}

func (p *peer) addr() netip.Addr { return p.agent.Public().Addr() }

func (p *peer) send(to *peer, payload []byte) []byte {
	b := udp(p.addr(), to.addr(), payload)
	p.dev.Inject(tun.Packet{Data: b, Partial: true})
	tun.FinishChecksum(b)
	return b
}

func (p *peer) expect(t *testing.T, want []byte, within time.Duration) {
	t.Helper()
	if got := p.take(within); !bytes.Equal(got, want) {
		t.Fatalf("got  %x\nwant %x", got, want)
	}
}

func (p *peer) take(within time.Duration) []byte {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case got := <-p.dev.Out():
		return got
	case <-timer.C:
		return nil
	}
}

func TestPacketsArriveAsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, b := w.add([32]byte{}), w.add([32]byte{})
		begun := time.Now()
		want := a.send(b, []byte("first, it waits for the handshake"))
		b.expect(t, want, time.Second)
		if d := time.Since(begun); d > 4*w.delay {
			t.Errorf("the first packet took %v", d)
		}
		for i := range 50 {
			b.expect(t, a.send(b, bytes.Repeat([]byte{byte(i)}, 20*i)), time.Second)
			a.expect(t, b.send(a, bytes.Repeat([]byte{byte(i)}, 20*i)), time.Second)
		}
		if n := a.m.Counts().HandshakesSent + b.m.Counts().HandshakesSent; n != 1 {
			t.Errorf("%d handshakes for one session", n)
		}
	})
}

func TestSuperPacketsAreCutAndComeOutAsSegments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, b := w.add([32]byte{}), w.add([32]byte{})
		for round := range 2 { // through the queue first, then directly
			data := make([]byte, 50_000+round)
			for i := range data {
				data[i] = byte(i * 7)
			}
			a.dev.Inject(tun.Packet{Data: tcp(a.addr(), b.addr(), 100, data), SegSize: 1360, Partial: true})
			at := 0
			for at < len(data) {
				got := b.take(time.Second)
				if got == nil {
					t.Fatalf("round %d: silence after %d bytes", round, at)
				}
				n := min(1360, len(data)-at)
				want := tcp(a.addr(), b.addr(), 100+uint32(at), data[at:at+n])
				if at+n < len(data) {
					want[53] &^= tcpPSH
				}
				tun.FinishChecksum(want)
				if !bytes.Equal(got, want) {
					t.Fatalf("round %d, byte %d:\n got %x\nwant %x", round, at, got[:70], want[:70])
				}
				at += n
			}
		}
	})
}

func TestSubnetPacketsKeepTheirAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, b := w.add([32]byte{}), w.add([32]byte{})
		behind := b.agent.Public().Subnet().Addr().Next()
		p := udp(a.addr(), behind, []byte("to a device behind b"))
		a.dev.Inject(tun.Packet{Data: p, Partial: true})
		tun.FinishChecksum(p)
		b.expect(t, p, time.Second)
		// A source that is not a's is refused before it leaves.
		a.dev.Inject(tun.Packet{Data: udp(b.addr(), behind, []byte("spoofed")), Partial: true})
		if got := b.take(time.Second); got != nil {
			t.Errorf("a foreign source passed: %x", got)
		}
	})
}

func TestTooBigIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, b := w.add([32]byte{}), w.add([32]byte{})
		b.expect(t, a.send(b, []byte("open")), time.Second)
		w.mu.Lock()
		w.room = 1320
		w.mu.Unlock()
		a.send(b, make([]byte, 1372)) // 1420 in all
		got := a.take(time.Second)
		if len(got) < 48 || got[6] != tun.ProtoICMPv6 || got[40] != icmpTooBig || binary.BigEndian.Uint32(got[44:]) != 1320 {
			t.Fatalf("got %x", got)
		}
		b.expect(t, a.send(b, make([]byte, 1272)), time.Second) // 1320 in all
	})
}

func TestUnknownDestinationIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a := w.add([32]byte{})
		a.dev.Inject(tun.Packet{Data: udp(a.addr(), netip.MustParseAddr("200:1::1"), nil), Partial: true})
		if got := a.take(time.Second); len(got) < 48 || got[40] != icmpUnreachable {
			t.Fatalf("got %x", got)
		}
	})
}

// TestElsewhere: what no LSA names or leads to goes to the other network, and back to the mesh as soon as there is a way.
func TestElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		var got []tun.Packet
		mtu, ok := 0, true
		w.elsewhere = func(p *tun.Packet) (int, bool) {
			q := *p
			q.Data = bytes.Clone(p.Data)
			got = append(got, q)
			return mtu, ok
		}
		a, b := w.add([32]byte{}), w.add([32]byte{})
		stranger := netip.MustParseAddr("200:1::1")
		super := tun.Packet{Data: tcp(a.addr(), stranger, 1, make([]byte, 9000)), SegSize: 1300, Partial: true}
		a.dev.Inject(super)
		synctest.Wait()
		if len(got) != 1 || !bytes.Equal(got[0].Data, super.Data) || got[0].SegSize != 1300 || !got[0].Partial {
			t.Fatalf("%d packets went elsewhere, changed: %v", len(got), len(got) == 1)
		}
		a.dev.Inject(tun.Packet{Data: udp(stranger, stranger, nil), Partial: true}) // a forged source goes nowhere
		if p := a.take(time.Second); len(p) < 48 || p[40] != icmpUnreachable || len(got) != 1 {
			t.Errorf("a forged source was not refused: %d packets", len(got))
		}
		w.mu.Lock()
		w.gone = map[ident.NodeID]bool{b.agent.Public().ID(): true} // known, but no way there
		w.mu.Unlock()
		a.send(b, []byte("one"))
		synctest.Wait()
		if len(got) != 2 {
			t.Fatal("an unreachable node was not asked for elsewhere")
		}
		w.mu.Lock()
		clear(w.gone)
		w.mu.Unlock()
		b.expect(t, a.send(b, []byte("two")), time.Second)
		if len(got) != 2 {
			t.Error("a reachable node was asked for elsewhere")
		}
		mtu = 1300
		a.dev.Inject(tun.Packet{Data: udp(a.addr(), stranger, make([]byte, 1372))})
		if p := a.take(time.Second); len(p) < 48 || p[40] != icmpTooBig || binary.BigEndian.Uint32(p[44:]) != 1300 {
			t.Errorf("too big was not told: %x", p)
		}
		mtu, ok = 0, false
		a.dev.Inject(tun.Packet{Data: udp(a.addr(), stranger, nil)})
		if p := a.take(time.Second); len(p) < 48 || p[40] != icmpUnreachable {
			t.Errorf("that nothing leads there was not told: %x", p)
		}
	})
}

func TestReplayReorderTamperTruncate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, b := w.add([32]byte{}), w.add([32]byte{})
		b.expect(t, a.send(b, []byte("open")), time.Second)
		a.expect(t, b.send(a, []byte("open")), time.Second)
		var kept [][]byte
		w.mu.Lock()
		w.tap = func(from, to *peer, d []byte) []byte { kept = append(kept, bytes.Clone(d)); return nil }
		w.mu.Unlock()
		var want [][]byte
		for i := range 10 {
			want = append(want, a.send(b, []byte{byte(i)}))
		}
		synctest.Wait()
		w.mu.Lock()
		w.tap = nil
		w.mu.Unlock()
		kept = kept[:10]
		for i := 9; i >= 0; i-- { // backwards, each thrice, between mutilated copies
			for n := range kept[i] {
				if n < wire.HopLen {
					continue
				}
				bad := bytes.Clone(kept[i])
				bad[n] ^= 0x10
				b.wire <- bad
			}
			for n := wire.HopLen + 1; n < len(kept[i]); n += 5 {
				b.wire <- bytes.Clone(kept[i][:n])
			}
			for range 3 {
				b.wire <- bytes.Clone(kept[i])
			}
			b.expect(t, want[i], time.Second)
		}
		if got := b.take(time.Second); got != nil {
			t.Fatalf("something else came out: %x", got)
		}
		if c := b.m.Counts(); c.Replayed != 20 {
			t.Errorf("replayed: %d, want 20", c.Replayed)
		}
	})
}

func TestVeryLongPathsConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.delay = 1500 * time.Millisecond // 3 s there and back
		a, b := w.add([32]byte{}), w.add([32]byte{})
		a.send(b, []byte("by way of the moon"))
		if b.take(40*time.Second) == nil {
			t.Fatal("no session over a path of 3 s")
		}
	})
}

func TestRekeyLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, b := w.add([32]byte{}), w.add([32]byte{})
		for range 4000 { // 400 s
			b.expect(t, a.send(b, []byte("tick")), time.Second)
			a.expect(t, b.send(a, []byte("tock")), time.Second)
			time.Sleep(90 * time.Millisecond)
		}
		if n := a.m.Counts().HandshakesOK + b.m.Counts().HandshakesOK; n < 3 || n > 8 {
			t.Errorf("%d handshakes in 400 s", n)
		}
		for _, s := range a.m.Sessions() {
			if s.Age > rejectAfter {
				t.Errorf("keys are %v old", s.Age)
			}
		}
	})
}

func TestOneWayTrafficRekeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, b := w.add([32]byte{}), w.add([32]byte{})
		b.expect(t, a.send(b, []byte("open")), time.Second)
		for range 4000 {
			a.expect(t, b.send(a, []byte("only the responder talks")), time.Second)
			time.Sleep(95 * time.Millisecond)
		}
	})
}

func TestRestartedPeerIsFoundAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, b := w.add([32]byte{}), w.add([32]byte{})
		b.expect(t, a.send(b, []byte("open")), time.Second)
		b.stop()
		<-b.done
		b2 := w.start(b.agent, [32]byte{})
		begun := time.Now()
		for b2.take(50*time.Millisecond) == nil {
			a.send(b2, []byte("hello?"))
			if time.Since(begun) > 3*time.Second {
				t.Fatal("silence for 3 s after a restart")
			}
		}
		t.Logf("back after %v", time.Since(begun))
	})
}

// When routing lost a peer and finds it again, nobody waits for a timer to learn that it was restarted.
func TestPeerThatWasAwayIsAskedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, b := w.add([32]byte{}), w.add([32]byte{})
		b.expect(t, a.send(b, []byte("open")), time.Second)
		b.stop()
		<-b.done
		w.mu.Lock()
		w.gone = map[ident.NodeID]bool{b.agent.Public().ID(): true}
		w.mu.Unlock()
		for range 20 {
			a.send(b, []byte("nobody there"))
			time.Sleep(50 * time.Millisecond)
		}
		b2 := w.start(b.agent, [32]byte{})
		w.mu.Lock()
		w.gone = nil
		w.mu.Unlock()
		begun := time.Now()
		for b2.take(10*time.Millisecond) == nil {
			a.send(b2, []byte("hello?"))
			if time.Since(begun) > 100*time.Millisecond {
				t.Fatal("silence for 100 ms after the peer came back")
			}
		}
	})
}

func TestHandshakeSurvivesLossAndReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, b := w.add([32]byte{}), w.add([32]byte{})
		n := 0
		var inits [][]byte
		var mu sync.Mutex
		w.tap = func(from, to *peer, d []byte) []byte {
			mu.Lock()
			defer mu.Unlock()
			if n++; n <= 3 {
				return nil
			}
			if d[wire.HopLen] == typeInit {
				inits = append(inits, bytes.Clone(d))
			}
			return d
		}
		b.expect(t, a.send(b, []byte("through a bad patch")), 3*time.Second)
		// Old Inits change nothing for the session in use.
		for range 200 {
			mu.Lock()
			old := inits
			mu.Unlock()
			for _, i := range old {
				b.wire <- bytes.Clone(i)
			}
			time.Sleep(20 * time.Millisecond)
			b.expect(t, a.send(b, []byte("steady")), time.Second)
			a.expect(t, b.send(a, []byte("steady")), time.Second)
		}
	})
}

func TestClockSetBackCanStillConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, b := w.add([32]byte{}), w.add([32]byte{})
		b.expect(t, a.send(b, []byte("open")), time.Second)
		s := b.m.session(a.agent.Public(), false)
		time.Sleep(time.Second)
		synctest.Wait()
		s.newest = 1 << 60 // as if a's clock had been far ahead then
		a.stop()
		<-a.done
		a2 := w.start(a.agent, [32]byte{})
		b.expect(t, a2.send(b, []byte("from 1970")), 3*time.Second)
	})
}

func TestClosedNetworkNeedsTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, b, c := w.add([32]byte{1}), w.add([32]byte{1}), w.add([32]byte{2})
		b.expect(t, a.send(b, []byte("members")), time.Second)
		c.send(b, []byte("stranger"))
		if got := b.take(10 * time.Second); got != nil {
			t.Errorf("a stranger got through: %x", got)
		}
	})
}

// Under load, an Init that does not name its sender is dropped before any Diffie–Hellman, one that does gets a cookie, and
// one with a cookie gets through. The bubble keeps a slow processor from ending the turns that the test counts.
func TestUnderLoadOnlyProvenSourcesCost(t *testing.T) {
	synctest.Test(t, testUnderLoad)
}

func testUnderLoad(t *testing.T) {
	ag, _ := ident.Generate()
	bg, _ := ident.Generate()
	w := &world{nodes: map[ident.NodeID]*peer{ag.Public().ID(): {agent: ag}}, room: 1420}
	b, err := New(Config{Agent: bg, Device: quiet{}, Resolver: w, Filter: func(ident.PublicKey) Filter { return allow{} }})
	if err != nil {
		t.Fatal(err)
	}
	var answer []byte
	b.Bind(planeFunc(func(buf []byte, _ int) { answer = bytes.Clone(buf[wire.HopLen:]) }))
	c := b.newController()
	var a handshaker
	if err := a.init(ag, [32]byte{}); err != nil {
		t.Fatal(err)
	}
	at := attempt{tries: 1}
	build := func() []byte {
		e, err := a.buildInit(bg.Public(), 7, &at, 1)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	for range 10 * maxHandshakes { // forgeries: anybody can make mac1, nobody the rest
		e := build()
		e[50] ^= 1
		a.macs(e, bg.Public(), nil, 0)
		b.takeHandshake(e)
	}
	if n := b.Counts().QueueDrops; len(b.work) != maxHandshakes || n != 9*maxHandshakes {
		t.Fatalf("%d wait, %d dropped", len(b.work), n)
	}
	c.handshake(build())
	if answer != nil || len(b.Sessions()) != 0 {
		t.Fatal("a nameless Init was worked on under load")
	}
	at.tries = 3
	c.handshake(build())
	if len(answer) != cookieLen || b.Counts().Cookies != 1 || len(b.Sessions()) != 0 {
		t.Fatalf("no cookie: %x", answer)
	}
	if err := a.readCookie(answer, bg.Public(), &at, 1); err != nil {
		t.Fatal(err)
	}
	c.handshake(build())
	if len(answer) != respLen || len(b.Sessions()) != 1 {
		t.Fatalf("with a cookie: %x", answer)
	}
	for len(b.work) > 0 {
		c.handshake(<-b.work)
	}
	if n := b.Counts().HandshakesBad; len(b.Sessions()) != 1 || n != 0 {
		t.Errorf("forgeries worked on: %d, sessions: %d", n, len(b.Sessions()))
	}
	// A cookie lets its owner in once in a turn, however many Inits he makes of it.
	served := func(n int) (got int) {
		for range n {
			answer = nil
			if c.handshake(build()); len(answer) == respLen {
				got++
			}
		}
		return got
	}
	if n := served(50); n != 0 {
		t.Errorf("a source that has had its turn was served %d times more", n)
	}
	b.start = b.start.Add(-turn)
	if n := served(50); n != 1 {
		t.Errorf("in the next turn it was served %d times", n)
	}
	for id := ident.NodeID(1); id < 2*turnMost; id++ {
		c.takesTurn(id, b.now())
	}
	if len(c.served) > turnMost {
		t.Errorf("%d sources in one turn", len(c.served))
	}
	b.start = b.start.Add(-loadedFor)
	at = attempt{tries: 1}
	if n := served(1); n != 1 {
		t.Error("after the load a nameless Init is still refused")
	}
}

// The cookie exchange itself, step by step.
func TestCookieProvesTheSource(t *testing.T) {
	ag, _ := ident.Generate()
	bg, _ := ident.Generate()
	var a, b handshaker
	if a.init(ag, [32]byte{}) != nil || b.init(bg, [32]byte{}) != nil {
		t.Fatal("init")
	}
	at := attempt{tries: 1}
	e, err := a.buildInit(bg.Public(), 5, &at, 1)
	if err != nil || !b.plausible(e) {
		t.Fatal("first Init", err)
	}
	if b.hint(e) != 0 {
		t.Error("the first Init names its sender")
	}
	at.tries = 2
	e, _ = a.buildInit(bg.Public(), 5, &at, 1)
	id := b.hint(e)
	if id != ag.Public().ID() || b.provesSource(e, id) {
		t.Fatalf("hint %v, want %v", id, ag.Public().ID())
	}
	c, err := b.buildCookie(e, id)
	if err != nil || !a.plausible(c) {
		t.Fatal("cookie", err)
	}
	bad := bytes.Clone(c)
	bad[40] ^= 1
	if a.readCookie(bad, bg.Public(), &at, 1) == nil {
		t.Error("a forged cookie was kept")
	}
	if err := a.readCookie(c, bg.Public(), &at, 1); err != nil {
		t.Fatal(err)
	}
	e, _ = a.buildInit(bg.Public(), 5, &at, 2)
	if !b.provesSource(e, b.hint(e)) {
		t.Error("the cookie does not prove the source")
	}
	if b.provesSource(e, id+1) {
		t.Error("the cookie proves another source")
	}
	if _, err := b.readInit(e); err != nil {
		t.Error(err)
	}
}

func TestPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, b := w.add([32]byte{}), w.add([32]byte{})
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			d, err := a.m.Ping(ctx, b.agent.Public())
			cancel()
			if err != nil || d < 2*w.delay || d > 4*w.delay {
				t.Errorf("ping: %v %v", d, err)
			}
		}
	})
}

func TestIdleSessionsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, b := w.add([32]byte{}), w.add([32]byte{})
		b.expect(t, a.send(b, []byte("open")), time.Second)
		sent := a.m.Counts().Sealed + b.m.Counts().Sealed
		time.Sleep(10 * time.Minute)
		if len(a.m.Sessions())+len(b.m.Sessions()) != 0 || len(a.m.byIndex)+len(b.m.byIndex) != 0 {
			t.Errorf("left: %v %v", a.m.Sessions(), b.m.Sessions())
		}
		if n := a.m.Counts().Sealed + b.m.Counts().Sealed - sent; n > 2 {
			t.Errorf("an idle session sent %d packets", n)
		}
		b.expect(t, a.send(b, []byte("again")), time.Second)
	})
}

func TestSessionTableIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a := w.add([32]byte{})
		for i := range maxSessions + 100 {
			a.m.session(ident.PublicKey{0: 1, 1: byte(i), 2: byte(i >> 8)}, true)
		}
		if n := len(a.m.byID); n > maxSessions {
			t.Errorf("%d sessions", n)
		}
	})
}

func TestOpenAndSealAllocateNothing(t *testing.T) {
	ag, _ := ident.Generate()
	bg, _ := ident.Generate()
	w := &world{nodes: map[ident.NodeID]*peer{}, room: 1420}
	mk := func(a *ident.Agent) *Manager {
		m, err := New(Config{Agent: a, Device: quiet{}, Resolver: w, Filter: func(ident.PublicKey) Filter { return allow{} }})
		if err != nil {
			t.Fatal(err)
		}
		w.nodes[a.Public().ID()] = &peer{agent: a}
		return m
	}
	a, b := mk(ag), mk(bg)
	sa, sb := a.session(bg.Public(), true), b.session(ag.Public(), true)
	aead, _ := suiteAES.aead([32]byte{1})
	ka := &keypair{s: sa, send: aead, recv: aead, remote: 5, created: a.now()}
	kb := &keypair{s: sb, send: aead, recv: aead, local: 5, created: b.now()}
	sa.confirmLocked(ka)
	sb.confirmLocked(kb)
	sa.cur.Store(ka)
	b.byIndex[5] = kb
	in := b.newInbound()
	a.Bind(planeFunc(func(buf []byte, seg int) {
		for at := 0; at < len(buf); at += seg {
			in.Deliver(buf[at:min(at+seg, len(buf))], nil)
		}
		in.Flush()
	}))
	o := a.newOutbound()
	tmpl := tcp(ag.Public().Addr(), bg.Public().Addr(), 1, make([]byte, 60000))
	buf := bytes.Clone(tmpl)
	p := tun.Packet{Data: buf, SegSize: 1360, Partial: true}
	n := testing.AllocsPerRun(100, func() {
		copy(buf, tmpl)
		o.now = a.now()
		o.packet(&p)
		o.flush()
	})
	if n != 0 {
		t.Errorf("%v allocations for a super-packet", n)
	}
	if b.Counts().Opened == 0 || b.Counts().BadPacket != 0 {
		t.Errorf("%+v", b.Counts())
	}
}

type planeFunc func(buf []byte, seg int)

func (f planeFunc) Send(_ ident.NodeID, _ wire.Class, buf []byte, seg int) error {
	f(buf, seg)
	return nil
}

// quiet is a device that swallows everything.
type quiet struct{}

func (quiet) Name() string                   { return "quiet" }
func (quiet) MTU() int                       { return 1420 }
func (quiet) Read([]tun.Packet) (int, error) { select {} }
func (quiet) NewWriter() tun.Writer          { return quiet{} }
func (quiet) Write([]byte, bool)             {}
func (quiet) Flush() error                   { return nil }
func (quiet) Close() error                   { return nil }

// No end-to-end packet whatsoever may panic, and none that was not sealed may come out.
func FuzzDeliver(f *testing.F) {
	ag, _ := ident.Generate()
	m, err := New(Config{Agent: ag, Device: quiet{}, Resolver: &world{nodes: map[ident.NodeID]*peer{}}, Filter: func(ident.PublicKey) Filter { return allow{} }})
	if err != nil {
		f.Fatal(err)
	}
	m.Bind(planeFunc(func([]byte, int) {}))
	s := m.session(ident.PublicKey{1}, true)
	aead, _ := suiteChaCha.aead([32]byte{3})
	k := &keypair{s: s, send: aead, recv: aead, local: 1, created: m.now()}
	k.s.confirmLocked(k)
	m.byIndex[1] = k
	f.Add([]byte{4, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1}, false)
	f.Add(append([]byte{innerMesh}, make([]byte, 60)...), true)
	f.Add([]byte{0x60, 0, 0, 0}, true)
	f.Add([]byte{innerEchoReply, 0, 0, 0}, true)
	counter := uint64(0)
	c := &controller{m: m, o: m.newOutbound(), attempts: map[uint32]*Session{}}
	in := m.newInbound()
	f.Fuzz(func(t *testing.T, b []byte, sealed bool) {
		d := make([]byte, wire.HopLen, wire.HopLen+len(b)+64)
		if sealed { // a peer with keys can say anything too
			counter++
			e := []byte{4, byte(len(b)) & 1, 0, 0, 0, 0, 0, 1}
			e = binary.BigEndian.AppendUint64(e, counter)
			nonce := append(bytes.Clone(e[:4]), e[8:16]...)
			d = append(d, e...)
			d = aead.Seal(d, nonce, b, nil)
		} else {
			d = append(d, b...)
			if len(d) < wire.MinHop {
				d = append(d, make([]byte, wire.MinHop-len(d))...)
			}
		}
		in.Deliver(d, nil)
		in.Flush()
		for len(m.work) > 0 {
			c.handshake(<-m.work)
		}
	})
}

func FuzzHandshakePackets(f *testing.F) {
	ag, _ := ident.Generate()
	bg, _ := ident.Generate()
	var a, b handshaker
	a.init(ag, [32]byte{})
	b.init(bg, [32]byte{})
	at := attempt{tries: 2}
	e, err := a.buildInit(bg.Public(), 5, &at, 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(e)
	f.Add(make([]byte, respLen))
	f.Add(make([]byte, cookieLen))
	f.Fuzz(func(t *testing.T, e []byte) {
		if !b.plausible(e) {
			return
		}
		switch e[0] {
		case typeInit:
			b.hint(e)
			if o, err := b.readInit(e); err == nil && o.peer != ag.Public() {
				t.Fatal("an Init from nobody")
			}
		case typeResp:
			if _, err := b.readResp(e, &at); err == nil {
				t.Fatal("a Resp from nobody")
			}
		case typeCookie:
			if b.readCookie(e, ag.Public(), &attempt{}, 1) == nil {
				t.Fatal("a cookie from nobody")
			}
		}
	})
}

// The whole of what a node does with a super-packet but the system calls: cut, sealed, hop headers made by a real plane on
// one side; opened and gathered on the other.
func BenchmarkSuperPacket(b *testing.B) {
	for _, s := range []suite{suiteAES, suiteChaCha} {
		b.Run(s.String(), func(b *testing.B) {
			ag, _ := ident.Generate()
			bg, _ := ident.Generate()
			w := &world{nodes: map[ident.NodeID]*peer{ag.Public().ID(): {agent: ag}, bg.Public().ID(): {agent: bg}}, room: 1420}
			mk := func(a *ident.Agent) *Manager {
				m, err := New(Config{Agent: a, Device: quiet{}, Resolver: w, Filter: func(ident.PublicKey) Filter { return allow{} }})
				if err != nil {
					b.Fatal(err)
				}
				return m
			}
			from, to := mk(ag), mk(bg)
			sf, st := from.session(bg.Public(), true), to.session(ag.Public(), true)
			aead, _ := s.aead([32]byte{1})
			kf := &keypair{s: sf, send: aead, recv: aead, remote: 5, created: from.now()}
			kt := &keypair{s: st, send: aead, recv: aead, local: 5, created: to.now()}
			sf.confirmLocked(kf)
			st.confirmLocked(kt)
			sf.cur.Store(kf)
			to.byIndex[5] = kt
			in := to.newInbound()
			open := true
			from.Bind(planeFunc(func(buf []byte, seg int) {
				if !open {
					return
				}
				for at := 0; at < len(buf); at += seg {
					in.Deliver(buf[at:min(at+seg, len(buf))], nil)
				}
				in.Flush()
			}))
			tmpl := tcp(ag.Public().Addr(), bg.Public().Addr(), 1, make([]byte, 60000))
			buf := bytes.Clone(tmpl)
			p := tun.Packet{Data: buf, SegSize: 1348, Partial: true}
			o := from.newOutbound()
			for _, both := range []bool{false, true} {
				open = both
				b.Run(map[bool]string{false: "seal", true: "seal and open"}[both], func(b *testing.B) {
					b.SetBytes(60000)
					b.ReportAllocs()
					for b.Loop() {
						copy(buf[:120], tmpl)
						o.now = from.now()
						o.packet(&p)
						o.flush()
					}
				})
			}
		})
	}
}
