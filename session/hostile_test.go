package session

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/forward"
	"weft/ident"
	"weft/tun"
	"weft/wire"
)

// A session may be dropped while its handshake runs: what the answer yields then belongs to nobody.
func TestDroppedSessionLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, b := w.add([32]byte{}), w.add([32]byte{})
		w.mu.Lock()
		w.tap = func(from, to *peer, d []byte) []byte {
			if d[wire.HopLen] == typeResp {
				from.w.nodes[to.agent.Public().ID()].m.drop(b.agent.Public())
			}
			return d
		}
		w.mu.Unlock()
		a.send(b, []byte("lost with its session"))
		time.Sleep(10 * time.Second)
		a.m.mu.RLock()
		sessions, indices := len(a.m.byID), len(a.m.byIndex)
		a.m.mu.RUnlock()
		if sessions != 0 || indices != 0 || a.m.pending.Load() != 0 {
			t.Fatalf("left: %d sessions, %d keys, %d bytes", sessions, indices, a.m.pending.Load())
		}
		w.mu.Lock()
		w.tap = nil
		w.mu.Unlock()
		b.expect(t, a.send(b, []byte("anew")), 2*time.Second)
	})
}

func (m *Manager) drop(peer ident.PublicKey) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.byID[peer.ID()]; s != nil {
		m.dropLocked(s)
	}
}

// counted is a filter that knows whether it was released more often than made.
type counted struct {
	allow
	open *int
}

func (c counted) Release() { *c.open-- }

func TestDroppingTwiceSparesTheNextSession(t *testing.T) {
	a, _ := ident.Generate()
	b, _ := ident.Generate()
	open := 0
	m, err := New(Config{Agent: a, Device: quiet{}, Resolver: &world{}, Filter: func(ident.PublicKey) Filter { open++; return counted{open: &open} }})
	if err != nil {
		t.Fatal(err)
	}
	session := func() *Session {
		s := m.session(b.Public(), true)
		k := &keypair{s: s, local: 1}
		m.own(k, func() *keypair { return s.adoptLocked(k) })
		return s
	}
	old := session()
	m.drop(b.Public())
	next := session()
	m.mu.Lock()
	m.dropLocked(old) // the timers had it on their list
	m.mu.Unlock()
	if m.session(b.Public(), false) != next || open != 1 {
		t.Errorf("the next session went with the old one; %d filters open", open)
	}
}

// The first packet under new keys may be the only one for long, and may come the moment the answer leaves.
func TestKeysAreInPlaceBeforeTheAnswer(t *testing.T) {
	ag, _ := ident.Generate()
	bg, _ := ident.Generate()
	w := &world{nodes: map[ident.NodeID]*peer{ag.Public().ID(): {agent: ag}}, room: 1420}
	b, err := New(Config{Agent: bg, Device: quiet{}, Resolver: w, Filter: func(ident.PublicKey) Filter { return allow{} }})
	if err != nil {
		t.Fatal(err)
	}
	answered := false
	b.Bind(planeFunc(func(buf []byte, _ int) {
		answered = true
		s := b.session(ag.Public(), false)
		k := s.next[0]
		if k == nil || b.byIndex[binary.BigEndian.Uint32(buf[wire.HopLen+4:])] != k {
			t.Error("the answer left before its keys were in place")
		}
		s.promote(k)
		if s.cur.Load() != k {
			t.Error("not taken into use")
		}
	}))
	var a handshaker
	if err := a.init(ag, [32]byte{}); err != nil {
		t.Fatal(err)
	}
	e, err := a.buildInit(bg.Public(), 7, &attempt{tries: 1}, 1)
	if err != nil {
		t.Fatal(err)
	}
	b.newController().handshake(e)
	if !answered {
		t.Fatal("no answer")
	}
}

// An Init proves a key but not that its writer knows the key of a closed network: to the firewall, which takes who has a
// session there for a member, he is nobody.
func TestStrangersGetNoFilter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, b, stranger := w.add([32]byte{1}), w.add([32]byte{1}), w.add([32]byte{})
		var mu sync.Mutex
		asked := map[ident.PublicKey]int{}
		b.m.cfg.Filter = func(k ident.PublicKey) Filter {
			mu.Lock()
			defer mu.Unlock()
			asked[k]++
			return allow{}
		}
		stranger.send(b, []byte("let me in"))
		time.Sleep(3 * time.Second)
		b.expect(t, a.send(b, []byte("a member")), time.Second)
		mu.Lock()
		defer mu.Unlock()
		if b.m.session(stranger.agent.Public(), false) == nil {
			t.Fatal("the stranger's Init did not arrive")
		}
		if asked[stranger.agent.Public()] != 0 || asked[a.agent.Public()] != 1 {
			t.Errorf("filters: %v", asked)
		}
	})
}

// Everybody on the way can forge cookies, and Resps that cost two Diffie–Hellmans each: neither may keep a node busy.
func TestForgedAnswersCostLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, b := w.add([32]byte{}), w.add([32]byte{})
		var forger, blind handshaker
		if forger.init(b.agent, [32]byte{}) != nil || blind.init(b.agent, [32]byte{}) != nil {
			t.Fatal("init")
		}
		resps := 0
		w.mu.Lock()
		w.tap = func(from, to *peer, d []byte) []byte {
			e := d[wire.HopLen:]
			if from != a || e[0] != typeInit {
				return d
			}
			back := func(e []byte) { a.wire <- append(make([]byte, wire.HopLen), e...) }
			if c, err := forger.buildCookie(e, a.agent.Public().ID()); err == nil {
				back(c)
			}
			for range 100 {
				r := make([]byte, respLen)
				r[0] = typeResp
				copy(r[8:12], e[4:8])
				forger.macs(r, a.agent.Public(), nil, 0)
				back(r)
				resps++
			}
			return nil
		}
		w.mu.Unlock()
		a.send(b, []byte("stopped by the relay"))
		time.Sleep(time.Second)
		if n := a.m.Counts().HandshakesSent; n < 2 || n > 6 { // 0, 0.2, 0.6 s, and one at once for the first cookie
			t.Errorf("%d Inits in a second", n)
		}
		if resps == 0 || a.m.Counts().HandshakesBad == 0 {
			t.Error("nothing was forged")
		}
		s := a.m.session(b.agent.Public(), false)
		if s.attempt.bad > maxBadResps {
			t.Errorf("%d forged Resps were worked on", s.attempt.bad)
		}
	})
}

// An echo reply counts only from the node that was asked, and says nothing about the time.
func TestPongsOfOthersAreIgnored(t *testing.T) {
	ag, _ := ident.Generate()
	m, err := New(Config{Agent: ag, Device: quiet{}, Resolver: &world{}})
	if err != nil {
		t.Fatal(err)
	}
	asked, other := ident.PublicKey{1}, ident.PublicKey{2}
	answer := make(chan time.Duration, 1)
	m.pings[1] = ping{asked, m.now(), answer}
	m.pong(other, 1)
	m.pong(asked, 2)
	if len(answer) != 0 {
		t.Fatal("a stranger answered")
	}
	m.pong(asked, 1)
	if len(answer) != 1 {
		t.Fatal("the answer was not heard")
	}
}

// What waits for handshakes is bounded over all sessions too.
func TestPendingIsBounded(t *testing.T) {
	ag, _ := ident.Generate()
	m, err := New(Config{Agent: ag, Device: quiet{}, Resolver: &world{}, Filter: func(ident.PublicKey) Filter { return allow{} }})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		s := m.session(ident.PublicKey{0: 1, 1: byte(i)}, true)
		for range 10 {
			s.queue(&tun.Packet{Data: make([]byte, 60_000)})
		}
	}
	held := 0
	for _, s := range m.byID {
		for _, p := range s.pending {
			held += len(p.Data)
		}
	}
	if held > maxPendingAll || held < maxPendingAll/2 || int64(held) != m.pending.Load() {
		t.Errorf("%d bytes wait, %d are counted", held, m.pending.Load())
	}
	for _, s := range m.byID {
		m.drop(s.peer)
	}
	if n := m.pending.Load(); n != 0 {
		t.Errorf("%d bytes left", n)
	}
}

// A crowd that calls this node cannot keep it from calling others.
func TestStrangersLeaveRoom(t *testing.T) {
	ag, _ := ident.Generate()
	m, err := New(Config{Agent: ag, Device: quiet{}, Resolver: &world{}, Filter: func(ident.PublicKey) Filter { return allow{} }})
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxSessions + 100 {
		m.sessionUpTo(ident.PublicKey{0: 1, 1: byte(i), 2: byte(i >> 8)}, maxStrangers)
	}
	if n := len(m.byID); n != maxStrangers {
		t.Fatalf("%d sessions", n)
	}
	if m.session(ident.PublicKey{9}, true) == nil {
		t.Error("no room for a call of our own")
	}
}

// Keys go when they are too old, each by itself: an answer that has just been given stands.
func TestNewKeysOutliveOldOnes(t *testing.T) {
	ag, _ := ident.Generate()
	m, err := New(Config{Agent: ag, Device: quiet{}, Resolver: &world{}, Filter: func(ident.PublicKey) Filter { return allow{} }})
	if err != nil {
		t.Fatal(err)
	}
	s := m.session(ident.PublicKey{1}, true)
	s.made = 1
	old, fresh := &keypair{s: s, local: 1, created: 1}, &keypair{s: s, local: 2, created: int64(rejectAfter)}
	m.own(old, func() *keypair { return s.adoptLocked(old) })
	m.own(fresh, func() *keypair { s.next[0] = fresh; return nil })
	m.newController().check(s, int64(rejectAfter)+2)
	if s.cur.Load() != nil || m.byIndex[1] != nil || !old.dead.Load() {
		t.Error("the old keys are still there")
	}
	if s.next[0] != fresh || m.byIndex[2] != fresh {
		t.Error("the new keys went with the old ones")
	}
	m.newController().check(s, 2*int64(rejectAfter)+2)
	if s.next[0] != nil || len(m.byIndex) != 0 {
		t.Error("unconfirmed keys stay for ever")
	}
}

// At the limit of its counter a key is replaced, and beyond it never used.
func TestCounterAtItsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, b := w.add([32]byte{}), w.add([32]byte{})
		b.expect(t, a.send(b, []byte("open")), time.Second)
		s := a.m.session(b.agent.Public(), false)
		worn := s.cur.Load()
		worn.counter.Store(rekeyPackets)
		b.expect(t, a.send(b, []byte("far ahead")), time.Second)
		time.Sleep(time.Second)
		if s.cur.Load() == worn {
			t.Error("worn keys were not replaced")
		}
		b.expect(t, a.send(b, []byte("fresh keys")), time.Second)
		last := s.cur.Load()
		last.counter.Store(rekeyPackets + 1<<30)
		b.expect(t, a.send(b, []byte("waits for yet others")), time.Second)
		if s.cur.Load() == last || last.counter.Load() != rekeyPackets+1<<30 {
			t.Error("a key was used beyond its limit")
		}
	})
}

// Two devices with one key take the session from each other; whoever the network leads to is reached, and nothing grows.
func TestTwoDevicesWithOneKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		b, one := w.add([32]byte{}), w.add([32]byte{})
		b.expect(t, one.send(b, []byte("one")), time.Second)
		two := w.start(one.agent, [32]byte{})
		for i := range 10 {
			from := []*peer{one, two}[i%2]
			w.mu.Lock()
			w.nodes[one.agent.Public().ID()] = from
			w.mu.Unlock()
			want := from.send(b, []byte{byte(i)})
			time.Sleep(3 * time.Second)
			from.send(b, []byte{byte(i), 1}) // the first may be lost with keys that the other has replaced
			got := b.take(time.Second)
			if !bytes.Equal(got, want) && got == nil {
				t.Fatalf("round %d: silence", i)
			}
			for b.take(time.Second) != nil {
			}
		}
		b.m.mu.RLock()
		defer b.m.mu.RUnlock()
		if len(b.m.byID) != 1 || len(b.m.byIndex) > 4 {
			t.Errorf("%d sessions, %d keys", len(b.m.byID), len(b.m.byIndex))
		}
	})
}

// What a peer with good keys may not do inside its session: speak for others, to others, or say wrong lengths.
func TestPeersSpeakForThemselvesOnly(t *testing.T) {
	ag, _ := ident.Generate()
	bg, _ := ident.Generate()
	dev := &sink{}
	m, err := New(Config{Agent: ag, Device: dev, Resolver: &world{}, Filter: func(ident.PublicKey) Filter { return allow{} }})
	if err != nil {
		t.Fatal(err)
	}
	s := m.session(bg.Public(), true)
	aead, _ := suiteAES.aead([32]byte{1})
	k := &keypair{s: s, local: 7, created: m.now(), recv: aead, send: aead}
	m.own(k, func() *keypair { return s.adoptLocked(k) })
	in, counter := m.newInbound(), uint64(0)
	give := func(pt []byte) bool {
		counter++
		d := make([]byte, wire.HopLen+dataHeader, 2000)
		e := d[wire.HopLen:]
		e[0] = typeData
		binary.BigEndian.PutUint32(e[4:], 7)
		binary.BigEndian.PutUint64(e[8:], counter)
		nonce := append(append([]byte{}, e[:4]...), e[8:16]...)
		d = aead.Seal(d, nonce, pt, nil)
		before := dev.n
		in.Deliver(d, (*forward.Neighbour)(nil))
		in.Flush()
		return dev.n > before
	}
	self, peer := ag.Public(), bg.Public()
	other := ident.PublicKey{0x40, 3}
	good := udp(peer.Addr(), self.Addr(), []byte("x"))
	if !give(good) || !give(udp(peer.Subnet().Addr().Next(), self.Subnet().Addr().Next(), nil)) {
		t.Fatal("honest packets were dropped")
	}
	long, short := append(bytes.Clone(good), 0), good[:len(good)-1]
	v4 := make([]byte, 40)
	v4[0] = 0x45
	for name, p := range map[string][]byte{
		"foreign source":         udp(other.Addr(), self.Addr(), nil),
		"foreign source subnet":  udp(other.Subnet().Addr(), self.Addr(), nil),
		"our own address":        udp(self.Addr(), self.Addr(), nil),
		"foreign destination":    udp(peer.Addr(), other.Addr(), nil),
		"destination of its own": udp(peer.Addr(), peer.Addr(), nil),
		"longer than it says":    long,
		"shorter than it says":   short,
		"no whole header":        good[:39],
		"IPv4":                   v4,
		"mesh without header":    {innerMesh, 17, 64},
		"reserved type":          {0x50, 0, 0, 0},
		"long echo":              append([]byte{innerEchoRequest}, make([]byte, echoLen)...),
	} {
		if give(p) {
			t.Errorf("%s: reached the host", name)
		}
	}
}

// sink counts what reaches the host.
type sink struct {
	quiet
	n int
}

func (s *sink) NewWriter() tun.Writer  { return s }
func (s *sink) Write(p []byte, _ bool) { s.n++ }
func (s *sink) Flush() error           { return nil }

// Sessions dropped at any moment on either side, while packets and handshakes are under way: everything heals, and no key is
// left that no session knows.
func TestDropsUnderTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, b := w.add([32]byte{}), w.add([32]byte{})
		rng := rand.New(rand.NewPCG(1, 2))
		var wg sync.WaitGroup
		for _, p := range [][2]*peer{{a, b}, {b, a}} {
			wg.Go(func() {
				for i := range 3000 {
					p[0].send(p[1], []byte{byte(i)})
					p[0].take(time.Millisecond)
				}
			})
		}
		for range 300 {
			time.Sleep(time.Duration(rng.IntN(int(20 * time.Millisecond))))
			p := []*peer{a, b}
			rng.Shuffle(2, func(i, j int) { p[i], p[j] = p[j], p[i] })
			p[0].m.drop(p[1].agent.Public())
			p[0].m.Sessions()
		}
		wg.Wait()
		time.Sleep(5 * time.Second)
		for _, p := range []*peer{a, b} {
			for p.take(time.Millisecond) != nil {
			}
		}
		b.expect(t, a.send(b, []byte("healed")), 3*time.Second)
		a.expect(t, b.send(a, []byte("both ways")), 3*time.Second)
		synctest.Wait()
		for _, p := range []*peer{a, b} {
			known := map[*keypair]bool{}
			for _, s := range p.m.byID {
				for _, k := range []*keypair{s.cur.Load(), s.prev, s.next[0], s.next[1]} {
					known[k] = true
				}
			}
			for i, k := range p.m.byIndex {
				if !known[k] || k.local != i || k.dead.Load() {
					t.Errorf("key %x belongs to nobody", i)
				}
			}
			if p.m.pending.Load() != 0 {
				t.Errorf("%d bytes wait for nothing", p.m.pending.Load())
			}
		}
	})
}

// A foreign source stays here, also right behind an own one to the same destination.
func TestForeignSourceInABatch(t *testing.T) {
	ag, _ := ident.Generate()
	bg, _ := ident.Generate()
	w := &world{nodes: map[ident.NodeID]*peer{bg.Public().ID(): {agent: bg}}, room: 1420}
	dev := &sink{}
	m, err := New(Config{Agent: ag, Device: dev, Resolver: w, Filter: func(ident.PublicKey) Filter { return allow{} }})
	if err != nil {
		t.Fatal(err)
	}
	m.Bind(planeFunc(func([]byte, int) {}))
	s := m.session(bg.Public(), true)
	aead, _ := suiteAES.aead([32]byte{1})
	k := &keypair{s: s, local: 7, created: m.now(), recv: aead, send: aead}
	m.own(k, func() *keypair { return s.adoptLocked(k) })
	o := m.newOutbound()
	o.now = m.now()
	behind := bg.Public().Subnet().Addr()
	for i, src := range []netip.Addr{ag.Public().Addr(), ident.PublicKey{3}.Addr(), ag.Public().Subnet().Addr()} {
		o.packet(&tun.Packet{Data: udp(src, behind, nil), Partial: true})
		if want := []uint64{1, 1, 2}[i]; k.counter.Load() != want {
			t.Errorf("from %v: %d packets sealed, want %d", src, k.counter.Load(), want)
		}
	}
	if dev.n != 1 {
		t.Errorf("the host was told %d times", dev.n)
	}
}
