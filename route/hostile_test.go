package route

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"weft/ident"
	"weft/wire"
)

// victim is one router with two neighbours: an honest one, over link 1, and a hostile one, over link 2, of whose key the
// test makes what it likes.
type victim struct {
	t        *testing.T
	r        *Router
	now      time.Time
	self     ident.PublicKey
	honest   ident.PublicKey
	hostile  ident.PublicKey
	verified int
}

func newVictim(t *testing.T, limits Limits) *victim {
	v := &victim{t: t, now: epoch, self: testKey(0), honest: testKey(1), hostile: testKey(2)}
	v.r = New(Config{Self: v.self, Sign: testSign(v.self), Verify: func(l wire.LSAView) bool { v.verified++; return testVerify(l) },
		Rand: rand.New(rand.NewPCG(1, 1)).Uint64, Limits: limits}, v.now)
	for i, k := range []ident.PublicKey{v.honest, v.hostile} {
		v.r.LinkUp(v.now, LinkInfo{ID: uint32(i + 1), Peer: k, Cost: 100, MTU: 1400})
		v.receive(uint32(i+1), appendMark(nil, markReady))
		v.flood(uint32(i+1), makeLSA(k, 1, v.near(v.self)))
	}
	v.pass(3 * time.Second)
	if v.r.Table().Len() != 3 {
		t.Fatal("the network has not come up")
	}
	return v
}

func (v *victim) near(keys ...ident.PublicKey) (list []wire.Adjacency) {
	for _, k := range keys {
		list = append(list, wire.Adjacency{ID: k.ID(), Cost: 100, MTU: 1400})
	}
	return list
}

func (v *victim) pass(d time.Duration) {
	for end := v.now.Add(d); v.now.Before(end); {
		v.now = minTime(end, v.r.Next())
		v.r.Tick(v.now)
		v.r.Outbox()
	}
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func (v *victim) receive(link uint32, msg []byte) error {
	err := v.r.Receive(v.now, link, msg)
	v.r.Outbox()
	return err
}

func (v *victim) flood(link uint32, lsas ...wire.LSAView) error {
	var msg []byte
	for _, l := range lsas {
		msg = appendLSA(msg, 0, l)
	}
	return v.receive(link, msg)
}

func heap0() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestMillionFakeLSAs floods LSAs of nodes that do not exist. None may cost a signature check or a place in the database.
func TestMillionFakeLSAs(t *testing.T) {
	count := 1_000_000
	if testing.Short() {
		count = 50_000
	}
	v := newVictim(t, Limits{})
	before, checked := heap0(), v.verified
	fake := makeLSA(testKey(99), 1, v.near(v.hostile, v.honest, testKey(98))) // claims to be everybody's neighbour
	for i := 0; i < count; {
		var msg []byte
		for range 200 {
			binary.BigEndian.PutUint64(fake[4:], rand.Uint64()) // another key each time
			binary.BigEndian.PutUint64(fake[12:], uint64(i))
			msg = appendLSA(msg, 0, fake)
			i++
		}
		v.receive(2, msg)
		if i%10_000 == 0 {
			v.pass(10 * time.Millisecond)
		}
	}
	s := v.r.Stats()
	t.Logf("%+v", s)
	if v.verified != checked {
		t.Errorf("%d signatures checked", v.verified-checked)
	}
	if s.Malformed != 0 || s.Dropped < uint64(count)/2 {
		t.Fatal("the flood did not get as far as it should")
	}
	if s.Nodes != 3 || s.Waiting > 1024 {
		t.Errorf("%d nodes, %d waiting", s.Nodes, s.Waiting)
	}
	if grown := int64(heap0()) - int64(before); grown > 4<<20 {
		t.Errorf("memory grew by %d bytes", grown)
	}
	v.pass(time.Minute)
	if s := v.r.Stats(); s.Waiting != 0 {
		t.Errorf("%d still wait", s.Waiting)
	}
	// And the network still learns.
	v.flood(1, makeLSA(v.honest, 2, v.near(v.self, testKey(50))), makeLSA(testKey(50), 1, v.near(v.honest)))
	v.pass(5 * time.Second)
	if _, ok := v.r.Table().Route(testKey(50).ID()); !ok {
		t.Error("an honest newcomer is not found after the flood")
	}
}

// TestForgedUpdates floods LSAs of a real node with false signatures: only so many are looked at.
func TestForgedUpdates(t *testing.T) {
	v := newVictim(t, Limits{VerifyRate: 10, VerifyBurst: 1000})
	checked := v.verified
	forged := makeLSA(v.honest, 2, v.near(v.self))
	for i := range 100_000 {
		binary.BigEndian.PutUint64(forged[36:], uint64(i+2))
		if err := v.flood(2, forged); err != nil && !errors.Is(err, ErrForged) {
			t.Fatal(err)
		}
	}
	if got := v.verified - checked; got > 20 {
		t.Errorf("%d checks of forged signatures", got)
	}
	// The honest link's own budget is untouched: a real update passes at once.
	real := makeLSA(v.honest, 500_000, v.near(v.self, testKey(7)))
	if err := v.flood(1, real); err != nil {
		t.Fatal(err)
	}
	if s := v.r.db.byID[v.honest.ID()]; string(v.r.db.entries[s].lsa) != string(real) {
		t.Error("the real update was not taken")
	}
}

// TestLiarClaimsNeighbours: a link that only one end lists does not exist, and a cheap word does not beat a dear one.
func TestLiarClaimsNeighbours(t *testing.T) {
	v := newVictim(t, Limits{})
	far := testKey(60)
	v.flood(1, makeLSA(v.honest, 2, append(v.near(v.self), wire.Adjacency{ID: far.ID(), Cost: 1000, MTU: 1400})),
		makeLSA(far, 1, []wire.Adjacency{{ID: v.honest.ID(), Cost: 1000, MTU: 1350}}))
	lie := makeLSA(v.hostile, 2, []wire.Adjacency{{ID: v.self.ID(), Cost: 1, MTU: 1400}, {ID: far.ID(), Cost: 1, MTU: 1400}})
	v.flood(2, lie)
	v.pass(10 * time.Second)
	h, ok := v.r.Table().Route(far.ID())
	if !ok || h.Link != 1 || h.Cost != 1100 || h.MTU != 1350 {
		t.Errorf("route to the far node: %+v", h)
	}
	if h, _ := v.r.Table().Route(v.hostile.ID()); h.Cost != 100 {
		t.Errorf("the liar made its link cost %d", h.Cost)
	}
}

// TestFullDatabase fills the database with invented nodes behind the hostile neighbour. The honest side keeps its place
// and takes newcomers, and what the hostile one brought gives way; members of the own community come before strangers.
func TestFullDatabase(t *testing.T) {
	v := newVictim(t, Limits{Nodes: 300})
	crowd := []ident.PublicKey{v.hostile}
	var near []ident.PublicKey
	for i := range 200 {
		near = append(near, testKey(1000+i))
	}
	v.flood(2, makeLSA(v.hostile, 2, v.near(append(near, v.self)...)))
	crowd = append(crowd, near...)
	for i, k := range near { // each brings five more
		more := []ident.PublicKey{v.hostile}
		for j := range 5 {
			more = append(more, testKey(2000+5*i+j))
		}
		v.flood(2, makeLSA(k, 1, v.near(more...)))
		for _, m := range more[1:] {
			v.flood(2, makeLSA(m, 1, v.near(k)))
			crowd = append(crowd, m)
		}
		v.pass(20 * time.Millisecond)
	}
	s := v.r.Stats()
	if s.Nodes > 300 || s.Nodes < 250 {
		t.Fatalf("%d nodes held, at most 300 wanted", s.Nodes)
	}
	// Eighty honest nodes in a line behind the honest neighbour.
	chain := []ident.PublicKey{v.self, v.honest}
	for i := range 80 {
		chain = append(chain, testKey(5000+i))
		at := len(chain) - 2
		v.flood(1, makeLSA(chain[at], 2, v.near(chain[at-1], chain[at+1])), makeLSA(chain[at+1], 1, v.near(chain[at])))
		v.pass(500 * time.Millisecond)
	}
	v.pass(5 * time.Second)
	found := 0
	for i := range 80 {
		if _, ok := v.r.Table().Route(testKey(5000 + i).ID()); ok {
			found++
		}
	}
	if found < 70 || v.r.Stats().Nodes > 300 {
		t.Errorf("%d of 80 honest nodes found a place among %d; %+v", found, v.r.Stats().Nodes, v.r.Stats())
	}
}

// TestReplay: old LSAs change nothing and are answered with the newer one, once.
func TestReplay(t *testing.T) {
	v := newVictim(t, Limits{})
	old := v.r.db.entries[v.r.db.byID[v.honest.ID()]].lsa
	v.flood(1, makeLSA(v.honest, 5, v.near(v.self, testKey(70))))
	v.pass(time.Second)
	v.r.links[1].has.reset() // as if the link had just come up
	if err := v.r.Receive(v.now, 2, appendLSA(nil, 0, old)); err != nil {
		t.Fatal(err)
	}
	answered := false
	for _, m := range v.r.Outbox() {
		for b := m.Bytes; len(b) > 0; {
			kind, value, rest, err := nextRecord(b)
			if err != nil {
				t.Fatal(err)
			}
			if kind == recLSA && m.Link == 2 {
				l, err := wire.ViewLSA(value[lsaFixed:])
				answered = answered || err == nil && l.Key() == v.honest && l.Seq() == 5
			}
			b = rest
		}
	}
	if !answered {
		t.Error("the replay was not answered with the newer LSA")
	}
	if err := v.r.Receive(v.now, 2, appendLSA(nil, 0, old)); err != nil || len(v.r.Outbox()) != 0 {
		t.Error("a second replay was answered again")
	}
}

// TestSameKeyTwice: two devices with one key do not war, say so, and everybody keeps one of the two words.
func TestSameKeyTwice(t *testing.T) {
	w := newWorld(t, 4)
	a, m, b, o := w.addNode(Local{}), w.addNode(Local{}), w.addNode(Local{}), w.addNode(Local{})
	w.nodes[b].key = w.nodes[a].key
	w.boot(b)
	w.addWire(a, m, 10)
	w.addWire(m, o, 10)
	w.addWire(o, b, 10)
	w.run(time.Hour)
	for _, i := range []int{a, b} {
		s := w.nodes[i].r.Stats()
		if !s.DuplicateKey {
			t.Errorf("node %d has not noticed: %+v", i, s)
		}
		if s.Originated > 60 {
			t.Errorf("node %d made %d LSAs in an hour of war", i, s.Originated)
		}
	}
	x := w.nodes[m].r.db.byID[w.nodes[a].key.ID()]
	y := w.nodes[o].r.db.byID[w.nodes[a].key.ID()]
	w.run(15 * time.Second)
	if string(w.nodes[m].r.db.entries[x].lsa) != string(w.nodes[o].r.db.entries[y].lsa) {
		t.Error("the nodes between hold different LSAs of the doubled key")
	}
}

// TestLostSequenceNumber: a restart that has forgotten its number is back within a round trip.
func TestLostSequenceNumber(t *testing.T) {
	w := newWorld(t, 5)
	w.randomMesh(10, 10, func() uint32 { return 1 + w.rng.Uint32N(100) })
	w.run(5 * time.Second)
	for range 20 { // wear the number up
		w.setCost(0, 5, 5)
		w.run(5 * time.Second)
		w.setCost(0, 90, 90)
		w.run(5 * time.Second)
	}
	old := w.nodes[0].seq
	w.kill(0)
	w.run(10 * time.Second)
	w.nodes[0].seq = 0
	w.boot(0)
	w.mustConverge(2 * time.Second)
	if got := w.nodes[0].r.Stats(); got.Seq <= old || got.DuplicateKey {
		t.Errorf("number %d after %d, %+v", got.Seq, old, got)
	}
}

// TestSequenceLimit: at the last number the node falls silent until its last word is dead, then starts again at one.
func TestSequenceLimit(t *testing.T) {
	w := newWorld(t, 6)
	a, b, c := w.addNode(Local{}), w.addNode(Local{}), w.addNode(Local{})
	for _, i := range []int{a, b, c} {
		w.nodes[i].lims.Lifetime = 10 * time.Minute
		w.kill(i)
	}
	w.nodes[a].seq = wire.MaxSeq - 3
	for _, i := range []int{a, b, c} {
		w.boot(i)
	}
	id := w.addWire(a, b, 10)
	w.addWire(b, c, 10)
	for range 4 {
		w.run(5 * time.Second)
		w.cut(id)
		w.run(5 * time.Second)
		w.raise(id)
	}
	if s := w.nodes[a].r.Stats(); !s.SeqExhausted {
		t.Fatalf("the numbers are not used up: %+v", s)
	}
	w.run(20 * time.Minute)
	if s := w.nodes[a].r.Stats(); s.SeqExhausted || s.Seq > 100 {
		t.Errorf("it has not started again: %+v", s)
	}
	if err := w.check(); err != nil {
		t.Error(err)
	}
}

// TestClockJumps: a clock set back or far ahead leaves a network that heals itself.
func TestClockJumps(t *testing.T) {
	w := newWorld(t, 7)
	w.randomMesh(8, 8, func() uint32 { return 1 + w.rng.Uint32N(100) })
	w.mustConverge(5 * time.Second)
	n := w.nodes[0]
	jump := func(by time.Duration) {
		n.skew += by
		n.r.Tick(w.clock(0))
		n.timer = never
		w.after(0)
	}
	jump(-24 * time.Hour) // nothing is new again, and the timers go on
	if next := n.r.Next(); next.Sub(w.clock(0)) > time.Minute {
		t.Errorf("after the clock was set back the next timer is in %v", next.Sub(w.clock(0)))
	}
	w.setCost(0, 55, 55)
	w.mustConverge(5 * time.Second)
	jump(29 * time.Hour) // everything in node 0 is dead of age at once, and it asks its neighbours again
	if n := n.r.Stats().Nodes; n != 1 {
		t.Fatalf("%d nodes held after everything has died", n)
	}
	w.mustConverge(time.Minute)
}

// TestRefresh runs a network past many lifetimes: nothing expires while its node lives, and a dead node's LSA does.
func TestRefresh(t *testing.T) {
	w := newWorld(t, 8)
	w.randomMesh(12, 10, func() uint32 { return 1 + w.rng.Uint32N(100) })
	w.mustConverge(24 * time.Hour)
	for i, n := range w.nodes {
		s := n.r.Stats()
		if s.Expired != 0 || s.Originated < 12 || s.Originated > 40 {
			t.Errorf("node %d: %d own LSAs in a day, %d expired", i, s.Originated, s.Expired)
		}
	}
	w.kill(11)
	w.mustConverge(3 * time.Minute)
	if n := w.nodes[0].r.Stats().Nodes; n != 11 {
		t.Errorf("%d nodes held after one of 12 has died", n)
	}
}

// TestDamping: a link that flaps for a minute costs the network few LSAs, and the first news goes out at once.
func TestDamping(t *testing.T) {
	w := newWorld(t, 9)
	w.randomMesh(6, 4, func() uint32 { return 10 })
	w.run(time.Minute)
	before := w.nodes[w.wires[0].a].r.Stats().Originated
	w.cut(0)
	if got := w.nodes[w.wires[0].a].r.Stats().Originated; got != before+1 {
		t.Error("the first news was not told at once")
	}
	for range 120 {
		w.raise(0)
		w.run(250 * time.Millisecond)
		w.cut(0)
		w.run(250 * time.Millisecond)
	}
	if n := w.nodes[w.wires[0].a].r.Stats().Originated - before; n > 25 {
		t.Errorf("%d LSAs in a minute of flapping", n)
	}
	w.raise(0)
	w.mustConverge(20 * time.Second)
}

// TestSyncOfEqualDatabases: two nodes that hold the same LSAs exchange little when a link comes up between them.
func TestSyncOfEqualDatabases(t *testing.T) {
	w := newWorld(t, 10)
	w.randomMesh(300, 450, func() uint32 { return 1 + w.rng.Uint32N(1000) })
	w.run(2 * time.Minute)
	if n := w.nodes[0].r.Table().Len(); n != 300 {
		t.Fatal(n)
	}
	id := w.addWire(3, 290, 50)
	w.run(3 * time.Second)
	if b := w.wires[id].bytes; b > 2000 {
		t.Errorf("%d bytes for the synchronisation of equal databases", b)
	} else {
		t.Logf("%d bytes", b)
	}
	cut := w.addNode(Local{})
	id = w.addWire(3, cut, 50)
	w.run(3 * time.Second)
	if n := w.nodes[cut].r.Table().Len(); n != 301 {
		t.Errorf("the newcomer knows %d nodes", n)
	}
	t.Logf("a newcomer: %d bytes", w.wires[id].bytes)
}

// TestFarNoise: cost changes that move no path of ours run no shortest path computation.
func TestFarNoise(t *testing.T) {
	w := newWorld(t, 11)
	for range 12 {
		w.addNode(Local{})
	}
	for i := 1; i < 12; i++ {
		w.addWire(i-1, i, 10)
	}
	far := w.addWire(9, 11, 1000) // beside the path over node 10
	w.run(time.Minute)
	s := w.nodes[0].r.Stats()
	table := w.nodes[0].r.Table().Forwarding()
	for i := range uint32(20) {
		w.setCost(far, 1001+i, 1001+i)
		w.run(10 * time.Second)
	}
	after := w.nodes[0].r.Stats()
	if after.SPFRuns != s.SPFRuns || after.SPFSkipped < s.SPFSkipped+19 {
		t.Errorf("%d runs for noise that cannot matter, %d skipped", after.SPFRuns-s.SPFRuns, after.SPFSkipped-s.SPFSkipped)
	}
	if w.nodes[0].r.Table().Forwarding() != table {
		t.Error("the forwarding table changed")
	}
	if err := w.check(); err != nil {
		t.Error(err)
	}
}

// TestSuspects: the other neighbours of a dead node are hinted at it.
func TestSuspects(t *testing.T) {
	w := newWorld(t, 12)
	a, m, b := w.addNode(Local{}), w.addNode(Local{}), w.addNode(Local{})
	am := w.addWire(a, m, 10)
	mb := w.addWire(m, b, 10)
	w.addWire(a, b, 500)
	w.mustConverge(20 * time.Second)
	w.nodes[b].r.Suspects()
	w.nodes[a].r.LinkDown(w.clock(a), uint32(am+1)) // a notices that m is gone, b has not yet
	w.after(a)
	w.run(50 * time.Millisecond)
	if s := w.nodes[b].r.Suspects(); len(s) != 1 || s[0] != uint32(mb+1) {
		t.Errorf("suspects %v, want link %d", s, mb+1)
	}
}

// TestMetered: a metered way is taken only when there is no other.
func TestMetered(t *testing.T) {
	w := newWorld(t, 13)
	a, m, b, c := w.addNode(Local{}), w.addNode(Local{Flags: wire.FlagMetered}), w.addNode(Local{}), w.addNode(Local{})
	w.addWire(a, m, 10)
	w.addWire(m, b, 10)
	ac := w.addWire(a, c, 100)
	w.addWire(c, b, 100)
	w.mustConverge(10 * time.Second)
	if h, _ := w.nodes[a].r.Table().Route(w.nodes[b].key.ID()); h.Metered || h.Link != uint32(ac+1) {
		t.Errorf("the metered node is used: %+v", h)
	}
	w.cut(ac)
	w.mustConverge(10 * time.Second)
	if h, ok := w.nodes[a].r.Table().Route(w.nodes[b].key.ID()); !ok || !h.Metered {
		t.Errorf("the metered node is not used when there is nothing else: %+v", h)
	}
}

// TestParallelLinks: the better of two links carries, the other one is the alternate, and takes over in the same call.
func TestParallelLinks(t *testing.T) {
	w := newWorld(t, 14)
	a, b := w.addNode(Local{}), w.addNode(Local{})
	good, bad := w.addWire(a, b, 10), w.addWire(a, b, 30)
	w.mustConverge(10 * time.Second)
	h, _ := w.nodes[a].r.Table().Route(w.nodes[b].key.ID())
	if h.Link != uint32(good+1) || h.Alt != uint32(bad+1) {
		t.Fatalf("%+v", h)
	}
	w.cut(good)
	if h, _ := w.nodes[a].r.Table().Route(w.nodes[b].key.ID()); h.Link != uint32(bad+1) || h.Alt != 0 {
		t.Errorf("after the better link died: %+v", h)
	}
	w.mustConverge(10 * time.Second)
}

// TestRealSignatures joins three nodes with real keys.
func TestRealSignatures(t *testing.T) {
	w := newWorld(t, 15)
	for i := range 3 {
		agent, err := ident.Generate()
		if err != nil {
			t.Fatal(err)
		}
		sign := func(m []byte) ident.Signature { return agent.Sign(ident.DomainLSA, m) }
		w.addNode(Local{})
		w.nodes[i].key = agent.Public()
		w.nodes[i].r = New(Config{Self: agent.Public(), Sign: sign, Rand: w.rng.Uint64}, w.clock(i))
	}
	w.addWire(0, 1, 10)
	w.addWire(1, 2, 10)
	w.mustConverge(5 * time.Second)
	if w.nodes[0].r.Stats().Verified == 0 {
		t.Error("nothing was verified")
	}
	key := w.nodes[2].key
	for _, a := range []struct {
		addr string
		want bool
	}{{key.Addr().String(), true}, {key.Subnet().Addr().Next().String(), true}, {"2001:db8::1", false}, {"200::1", false}} {
		if got, ok := w.nodes[0].r.Table().ByAddr(mustAddr(a.addr)); ok != a.want || ok && got != key {
			t.Errorf("ByAddr(%s) = %v, %v", a.addr, got, ok)
		}
	}
	if p := w.nodes[0].r.Table().Path(key.ID()); len(p) != 2 || p[1].ID != key.ID() || p[1].Cost != 20 {
		t.Errorf("path %v", p)
	}
}

func mustAddr(s string) netip.Addr { return netip.MustParseAddr(s) }

// TestTinyMTU: a node on one of several best paths announces an MTU that no IPv6 packet fits. Traffic that never comes near
// it must not suffer.
func TestTinyMTU(t *testing.T) {
	v := newVictim(t, Limits{})
	far := testKey(60)
	v.flood(1, makeLSA(v.honest, 2, v.near(v.self, far)), makeLSA(far, 1, v.near(v.honest, v.hostile)))
	tiny := v.near(v.self, far)
	for i := range tiny {
		tiny[i].MTU = 0
	}
	v.flood(2, makeLSA(v.hostile, 2, tiny))
	v.pass(10 * time.Second)
	if h, ok := v.r.Table().Route(far.ID()); !ok || h.Cost != 200 || h.MTU != minMTU {
		t.Errorf("route to the far node: %+v", h)
	}
}
