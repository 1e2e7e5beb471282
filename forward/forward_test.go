package forward

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"weft/ident"
	"weft/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is a plane whose links end in other nodes' receivers: a world without sockets.
type node struct {
	key   ident.PublicKey
	plane *Plane
	got   [][]byte
}

func (n *node) NewSink() Sink                    { return n }
func (n *node) Deliver(d []byte, via *Neighbour) { n.got = append(n.got, bytes.Clone(d[wire.HopLen:])) }
func (n *node) Flush()                           {}

func newNode(i byte) *node {
	n := &node{key: ident.PublicKey{0: 0x40, 1: i}}
	n.plane = New(n.key.ID(), n)
	return n
}

// pipe delivers at once to the other end's receiver. last keeps what went through, tap may change or drop it.
type pipe struct {
	to    *Receiver
	from  Endpoint
	last  []byte
	tap   func([]byte) []byte
	bulks int
}

func (p *pipe) Send(buf []byte, seg int) error {
	p.last = bytes.Clone(buf)
	p.bulks++
	b := bytes.Clone(buf)
	if p.tap != nil {
		b = p.tap(b)
	}
	if b != nil && p.to != nil {
		p.to.Receive(p.from, b, seg)
		p.to.Flush()
	}
	return nil
}

type events struct {
	probes int
	moved  int
}

func (e *events) Probe(Endpoint, uint64, [16]byte) { e.probes++ }
func (e *events) Moved(Endpoint)                   { e.moved++ }

type linkEnd struct {
	n  *Neighbour
	p  *pipe
	ev *events
}

func connect(t testing.TB, a, b *node) (ab, ba linkEnd) {
	t.Helper()
	ab, ba = linkEnd{p: &pipe{}, ev: &events{}}, linkEnd{p: &pipe{}, ev: &events{}}
	var err error
	if ab.n, err = a.plane.Add(b.key, ab.p, ab.ev); err != nil {
		t.Fatal(err)
	}
	if ba.n, err = b.plane.Add(a.key, ba.p, ba.ev); err != nil {
		t.Fatal(err)
	}
	ab.p.to, ba.p.to = b.plane.NewReceiver(), a.plane.NewReceiver()
	ab.p.from, ba.p.from = Endpoint{Port: 1}, Endpoint{Port: 2}
	k1, k2 := wire.HopKey{K0: rand.Uint64(), K1: 1}, wire.HopKey{K0: rand.Uint64(), K1: 2}
	ab.n.Install(0, ba.n.Index(), k1, k2)
	ba.n.Install(0, ab.n.Index(), k2, k1)
	return ab, ba
}

// burst makes count datagrams with payloads of size bytes, the last one short bytes.
func burst(count, size, short int) (buf []byte, seg int, payloads [][]byte) {
	seg = wire.HopLen + size
	for i := range count {
		n := size
		if i == count-1 {
			n = short
		}
		p := bytes.Repeat([]byte{byte(i + 1)}, n)
		payloads = append(payloads, p)
		buf = append(append(buf, make([]byte, wire.HopLen)...), p...)
	}
	return buf, seg, payloads
}

func TestRelayKeepsBurstsWhole(t *testing.T) {
	a, b, c := newNode(1), newNode(2), newNode(3)
	ab, _ := connect(t, a, b)
	bc, _ := connect(t, b, c)
	a.plane.SetTable(Table{c.key.ID(): {Primary: ab.n}})
	b.plane.SetTable(Table{c.key.ID(): {Primary: bc.n}})
	buf, seg, want := burst(40, 1000, 500)
	if err := a.plane.Send(c.key.ID(), wire.ClassBulk, buf, seg); err != nil {
		t.Fatal(err)
	}
	if len(c.got) != 40 || !bytes.Equal(c.got[39], want[39]) || !bytes.Equal(c.got[0], want[0]) {
		t.Fatalf("%d of 40 datagrams arrived", len(c.got))
	}
	if bc.p.bulks != 1 {
		t.Errorf("the relay cut one burst into %d", bc.p.bulks)
	}
	if got := b.plane.Counts(); got.Relayed != 40 {
		t.Errorf("counts: %+v", got)
	}
	if h := wire.Hop(bc.p.last); h.TTL() != wire.DefaultTTL-1 || h.Dest() != c.key.ID() {
		t.Errorf("relayed header has ttl %d, dest %v", h.TTL(), h.Dest())
	}
}

func TestFlowsAreCountedPerDestinationAndClass(t *testing.T) {
	a, b, c := newNode(1), newNode(2), newNode(3)
	ab, ba := connect(t, a, b)
	a.plane.SetTable(Table{c.key.ID(): {Primary: ab.n}, b.key.ID(): {Primary: ab.n}})
	b.plane.SetTable(Table{c.key.ID(): {}})
	for _, class := range []wire.Class{wire.ClassBulk, wire.ClassGateway, wire.ClassBulk} {
		for _, d := range []ident.NodeID{b.key.ID(), c.key.ID()} {
			buf, seg, _ := burst(2, 100, 100)
			if err := a.plane.Send(d, class, buf, seg); err != nil {
				t.Fatal(err)
			}
		}
	}
	total := map[flowKey]Flow{}
	for _, f := range ba.n.Flows() {
		total[flowKey{dest: f.Dest, class: f.Class}] = f
	}
	for _, d := range []ident.NodeID{b.key.ID(), c.key.ID()} {
		if f := total[flowKey{dest: d, class: wire.ClassBulk}]; f.Packets != 4 || f.Bytes != 400 {
			t.Errorf("bulk to %v: %+v", d, f)
		}
		if f := total[flowKey{dest: d, class: wire.ClassGateway}]; f.Packets != 2 || f.Bytes != 200 {
			t.Errorf("gateway to %v: %+v", d, f)
		}
	}
}

func TestFlowTableIsBounded(t *testing.T) {
	a, b := newNode(1), newNode(2)
	ab, ba := connect(t, a, b)
	known := Table{}
	for i := range 3 * maxFlows {
		known[ident.NodeID(i+1000)] = NextHop{}
	}
	b.plane.SetTable(known)
	for i := range 3 * maxFlows {
		d := ident.NodeID(i + 1000)
		a.plane.SetTable(Table{d: {Primary: ab.n}})
		buf, seg, _ := burst(1, 64, 64)
		if err := a.plane.Send(d, 0, buf, seg); err != nil {
			t.Fatal(err)
		}
	}
	var sum uint64
	fl := ba.n.Flows()
	for _, f := range fl {
		sum += f.Packets
	}
	if len(fl) > maxFlows+int(wire.NumClasses) || sum != 3*maxFlows {
		t.Errorf("%d entries with %d packets", len(fl), sum)
	}
}

// Destinations that a neighbour makes up share one entry, and leave the others their places.
func TestInventedDestinationsAreNotKept(t *testing.T) {
	a, b := newNode(1), newNode(2)
	ab, ba := connect(t, a, b)
	send := func(d ident.NodeID) {
		a.plane.SetTable(Table{d: {Primary: ab.n}})
		buf, seg, _ := burst(1, 64, 64)
		a.plane.Send(d, 0, buf, seg)
	}
	const real = 7
	send(real) // before the route is known
	for i := range ident.NodeID(2 * maxFlows) {
		send(1000 + i)
	}
	send(real)
	b.plane.SetTable(Table{real: {}})
	send(real)
	send(b.key.ID())
	got := map[ident.NodeID]uint64{}
	for _, f := range ba.n.Flows() {
		got[f.Dest] = f.Packets
	}
	if len(got) != 3 || got[0] != 2*maxFlows+2 || got[real] != 1 || got[b.key.ID()] != 1 {
		t.Errorf("%d entries: %v others, %v, %v", len(got), got[0], got[real], got[b.key.ID()])
	}
}

func TestForgedReplayedAndTamperedAreDropped(t *testing.T) {
	a, b := newNode(1), newNode(2)
	ab, ba := connect(t, a, b)
	a.plane.SetTable(Table{b.key.ID(): {Primary: ab.n}})
	send := func() {
		buf, seg, _ := burst(1, 200, 200)
		if err := a.plane.Send(b.key.ID(), 0, buf, seg); err != nil {
			t.Fatal(err)
		}
	}
	send()
	if len(b.got) != 1 {
		t.Fatal("nothing arrived")
	}
	ab.p.to.Receive(ab.p.from, bytes.Clone(ab.p.last), len(ab.p.last)) // replay
	if len(b.got) != 1 || b.plane.Counts().Replayed != 1 || ba.n.Stats().Replayed != 1 {
		t.Errorf("a replay passed: %+v", b.plane.Counts())
	}
	for i := range ab.p.last {
		if i >= wire.HopLen && i < len(ab.p.last)-wire.TagLen {
			continue // the payload's middle is guarded end to end
		}
		f := bytes.Clone(ab.p.last)
		binary.BigEndian.PutUint64(f[16:], 99) // a fresh counter, so only the MAC can tell
		wire.Hop(f).Seal(wire.HopKey{K0: 1}, wire.KindData, 0, ba.n.Index(), 99)
		f[i] ^= 1
		ab.p.to.Receive(ab.p.from, f, len(f))
	}
	if len(b.got) != 1 {
		t.Error("a forged datagram passed")
	}
	for i := range wire.HopLen {
		f := bytes.Clone(ab.p.last)
		f[i] ^= 1
		ab.p.to.Receive(ab.p.from, f, len(f))
	}
	if len(b.got) != 1 {
		t.Error("a tampered header passed")
	}
}

func TestAlternateTakesOverAtOnceAndNothingBounces(t *testing.T) {
	a, b, c, d := newNode(1), newNode(2), newNode(3), newNode(4)
	ab, _ := connect(t, a, b)
	ac, _ := connect(t, a, c)
	bd, _ := connect(t, b, d)
	cd, _ := connect(t, c, d)
	id := d.key.ID()
	a.plane.SetTable(Table{id: {Primary: ab.n, Alternate: ac.n}})
	b.plane.SetTable(Table{id: {Primary: bd.n}})
	c.plane.SetTable(Table{id: {Primary: cd.n}})
	send := func() error { buf, seg, _ := burst(1, 64, 64); return a.plane.Send(id, 0, buf, seg) }
	if err := send(); err != nil || len(d.got) != 1 {
		t.Fatal("primary", err, len(d.got))
	}
	ab.n.SetUp(false)
	if err := send(); err != nil || len(d.got) != 2 || cd.p.bulks != 1 {
		t.Fatal("alternate", err, len(d.got))
	}
	ac.n.SetUp(false)
	if err := send(); err != ErrNoRoute {
		t.Fatal("with both down:", err)
	}
	// A relay whose only way is back drops instead of returning the packet.
	ab.n.SetUp(true)
	_, ba := b, connectExisting(b, a)
	b.plane.SetTable(Table{id: {Primary: ba}})
	if err := send(); err != nil || b.plane.Counts().Bounced != 1 {
		t.Errorf("bounce: %v %+v", err, b.plane.Counts())
	}
}

func connectExisting(at, to *node) *Neighbour {
	for _, n := range *at.plane.slots.Load() {
		if n.peer == to.key {
			return n
		}
	}
	return nil
}

func TestLoopEndsByTTL(t *testing.T) {
	a, b, c := newNode(1), newNode(2), newNode(3)
	ab, _ := connect(t, a, b)
	bc, _ := connect(t, b, c)
	ca, _ := connect(t, c, a)
	id := ident.NodeID(77)
	a.plane.SetTable(Table{id: {Primary: ab.n}})
	b.plane.SetTable(Table{id: {Primary: bc.n}})
	c.plane.SetTable(Table{id: {Primary: ca.n}})
	buf, seg, _ := burst(1, 64, 64)
	if err := a.plane.Send(id, 0, buf, seg); err != nil {
		t.Fatal(err)
	}
	if n := a.plane.Counts().TTLExpired + b.plane.Counts().TTLExpired + c.plane.Counts().TTLExpired; n != 1 {
		t.Errorf("%d expired", n)
	}
}

func TestLeafRelaysNothing(t *testing.T) {
	a, b, c := newNode(1), newNode(2), newNode(3)
	ab, _ := connect(t, a, b)
	bc, _ := connect(t, b, c)
	a.plane.SetTable(Table{c.key.ID(): {Primary: ab.n}, b.key.ID(): {Primary: ab.n}})
	b.plane.SetTable(Table{c.key.ID(): {Primary: bc.n}})
	b.plane.SetTransit(false)
	for _, d := range []*node{c, b} {
		buf, seg, _ := burst(1, 64, 64)
		if err := a.plane.Send(d.key.ID(), 0, buf, seg); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.got) != 0 || len(b.got) != 1 {
		t.Errorf("leaf: relayed %d, got %d", len(c.got), len(b.got))
	}
}

func TestEpochsOverlap(t *testing.T) {
	a, b := newNode(1), newNode(2)
	ab, ba := connect(t, a, b)
	a.plane.SetTable(Table{b.key.ID(): {Primary: ab.n}})
	send := func() { buf, seg, _ := burst(1, 64, 64); a.plane.Send(b.key.ID(), 0, buf, seg) }
	x, y := wire.HopKey{K0: 5}, wire.HopKey{K0: 6}
	ba.n.Install(1, ab.n.Index(), y, x) // b is ahead
	send()                              // a still uses epoch 0
	if len(b.got) != 1 {
		t.Fatal("the previous epoch was refused")
	}
	old := bytes.Clone(ab.p.last)
	ab.n.Install(1, ba.n.Index(), x, y)
	send()
	if len(b.got) != 2 {
		t.Fatal("the new epoch was refused")
	}
	ab.p.to.Receive(ab.p.from, old, len(old))
	ba.n.Install(2, ab.n.Index(), y, x)
	ba.n.Install(3, ab.n.Index(), y, x)
	send()
	if len(b.got) != 2 {
		t.Error("an epoch two behind passed")
	}
}

func TestProbesAndRoaming(t *testing.T) {
	a, b := newNode(1), newNode(2)
	ab, ba := connect(t, a, b)
	if err := ab.n.SendProbe(nil, 42, [16]byte{1}); err != nil || ba.ev.probes != 1 {
		t.Fatal("probe", err, ba.ev.probes)
	}
	f := bytes.Clone(ab.p.last)
	ab.p.from = Endpoint{Port: 99}
	ab.p.to.Receive(Endpoint{Port: 98}, f, len(f)) // a replay from elsewhere moves nothing
	if ba.ev.moved != 0 {
		t.Error("a replay moved the link")
	}
	ab.n.SendProbe(nil, 43, [16]byte{1})
	if ba.ev.probes != 2 || ba.ev.moved != 1 {
		t.Errorf("after roaming: %d probes, %d moves", ba.ev.probes, ba.ev.moved)
	}
}

func TestRemovedNeighbourHearsNothing(t *testing.T) {
	a, b := newNode(1), newNode(2)
	ab, ba := connect(t, a, b)
	a.plane.SetTable(Table{b.key.ID(): {Primary: ab.n}})
	b.plane.Remove(ba.n)
	buf, seg, _ := burst(1, 64, 64)
	a.plane.Send(b.key.ID(), 0, buf, seg)
	if len(b.got) != 0 || b.plane.Counts().UnknownLink != 1 {
		t.Errorf("%+v", b.plane.Counts())
	}
	again, err := b.plane.Add(a.key, &pipe{}, &events{})
	if err != nil || again.Index() == ba.n.Index() {
		t.Errorf("slot came back with the same index: %v", err)
	}
}

// The naive window keeps every counter it saw.
func TestWindowAgainstOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w Window
		seen, highest := map[uint64]bool{}, uint64(0)
		base := rapid.SampledFrom([]uint64{0, 5000, 1 << 40, ^uint64(0) - 3*WindowSize}).Draw(t, "base")
		for range rapid.IntRange(1, 300).Draw(t, "n") {
			c := base + rapid.Uint64Range(0, 3*WindowSize).Draw(t, "c")
			want := c != 0 && c <= ^uint64(0)-WindowSize && !seen[c] && (c > highest || highest-c < WindowSize)
			if got := w.Accept(c); got != want {
				t.Fatalf("counter %d after %d: %v, want %v", c, highest, got, want)
			}
			if want {
				seen[c], highest = true, max(highest, c)
			}
		}
	})
}

func TestRelayAllocatesNothing(t *testing.T) {
	a, b, c := newNode(1), newNode(2), newNode(3)
	ab, _ := connect(t, a, b)
	bc, _ := connect(t, b, c)
	a.plane.SetTable(Table{c.key.ID(): {Primary: ab.n}})
	b.plane.SetTable(Table{c.key.ID(): {Primary: bc.n}})
	in := &hold{}
	ab.n.sender = in
	bc.n.sender = discard{}
	r := b.plane.NewReceiver()
	buf, seg, _ := burst(40, 1400, 1400)
	if n := testing.AllocsPerRun(200, func() {
		a.plane.Send(c.key.ID(), 0, buf, seg)
		r.Receive(Endpoint{Port: 1}, buf, seg)
		r.Flush()
	}); n != 0 {
		t.Errorf("%v allocations for 40 relayed packets", n)
	}
	if b.plane.Counts().Relayed == 0 {
		t.Error("nothing was relayed")
	}
}

type discard struct{}

func (discard) Send([]byte, int) error { return nil }

type hold struct{}

func (*hold) Send([]byte, int) error { return nil }

// No bytes whatsoever may panic or pass.
func FuzzReceive(f *testing.F) {
	a, b := newNode(1), newNode(2)
	ab, ba := connect(f, a, b)
	a.plane.SetTable(Table{b.key.ID(): {Primary: ab.n}})
	buf, seg, _ := burst(2, 64, 60)
	ab.p.to = nil
	a.plane.Send(b.key.ID(), 0, buf, seg)
	f.Add(ab.p.last, seg)
	f.Add([]byte{}, 0)
	f.Add(bytes.Repeat([]byte{0}, 100), 1)
	ba.n.Install(0, 1, wire.HopKey{}, wire.HopKey{K0: 123}) // other keys: nothing fuzzed can be right
	r := b.plane.NewReceiver()
	f.Fuzz(func(t *testing.T, data []byte, seg int) {
		r.Receive(Endpoint{}, data, seg)
		r.Flush()
		if len(b.got) != 0 {
			t.Fatal("a forgery was delivered")
		}
	})
}

func BenchmarkRelay(b *testing.B) {
	x, y, z := newNode(1), newNode(2), newNode(3)
	xy, _ := connect(b, x, y)
	yz, _ := connect(b, y, z)
	x.plane.SetTable(Table{z.key.ID(): {Primary: xy.n}})
	y.plane.SetTable(Table{z.key.ID(): {Primary: yz.n}})
	xy.n.sender, yz.n.sender = discard{}, discard{}
	r := y.plane.NewReceiver()
	buf, seg, _ := burst(40, 1400, 1400)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		x.plane.Send(z.key.ID(), 0, buf, seg)
		r.Receive(Endpoint{Port: 1}, buf, seg)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/40, "ns/packet")
}

// BenchmarkRelayGateway is the class for which relays are paid.
func BenchmarkRelayGateway(b *testing.B) {
	x, y, z := newNode(1), newNode(2), newNode(3)
	xy, _ := connect(b, x, y)
	yz, _ := connect(b, y, z)
	x.plane.SetTable(Table{z.key.ID(): {Primary: xy.n}})
	y.plane.SetTable(Table{z.key.ID(): {Primary: yz.n}})
	xy.n.sender, yz.n.sender = discard{}, discard{}
	r := y.plane.NewReceiver()
	buf, seg, _ := burst(40, 1400, 1400)
	b.ReportAllocs()
	for b.Loop() {
		x.plane.Send(z.key.ID(), wire.ClassGateway, buf, seg)
		r.Receive(Endpoint{Port: 1}, buf, seg)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/40, "ns/packet")
}

// What a neighbour slips in front of another's datagrams, from the same source address, spoils nothing of theirs: the
// kernel hands over both in one buffer.
func TestMixedBufferIsSortedByIndex(t *testing.T) {
	a, b, c := newNode(1), newNode(2), newNode(3)
	ab, _ := connect(t, a, b)
	cb, _ := connect(t, c, b)
	a.plane.SetTable(Table{b.key.ID(): {Primary: ab.n}})
	c.plane.SetTable(Table{b.key.ID(): {Primary: cb.n}})
	var caught [][]byte
	keep := func(d []byte) []byte { caught = append(caught, d); return nil }
	ab.p.tap, cb.p.tap = keep, keep
	for range 3 {
		for _, from := range []*node{c, a} {
			buf, seg, _ := burst(1, 64, 64)
			from.plane.Send(b.key.ID(), 0, buf, seg)
		}
	}
	bad := bytes.Clone(caught[0])
	bad[5] ^= 0xff // an index that nobody has
	mixed := append(slices.Concat(caught...), bad...)
	ab.p.to.Receive(Endpoint{Port: 1}, mixed, len(caught[0]))
	if len(b.got) != 6 || b.plane.Counts().UnknownLink != 1 {
		t.Errorf("%d of 6 delivered: %+v", len(b.got), b.plane.Counts())
	}
	ab.p.to.Receive(Endpoint{Port: 1}, mixed[:7], 3) // shorter than any header
}

// Keys that are in force already are not installed or expected anew: that would start counters and windows afresh, and let
// everything pass again.
func TestSameKeysTwiceReopenNothing(t *testing.T) {
	a, b := newNode(1), newNode(2)
	ab, ba := connect(t, a, b)
	a.plane.SetTable(Table{b.key.ID(): {Primary: ab.n}})
	send := func() { buf, seg, _ := burst(1, 64, 64); a.plane.Send(b.key.ID(), 0, buf, seg) }
	x, y := wire.HopKey{K0: 5}, wire.HopKey{K0: 6}
	ab.n.Install(1, ba.n.Index(), x, y)
	ba.n.Expect(1, x)
	send()
	old := bytes.Clone(ab.p.last)
	again := func(what string) {
		t.Helper()
		ab.p.to.Receive(ab.p.from, bytes.Clone(old), len(old))
		if len(b.got) != 1 {
			t.Fatalf("after %s an old datagram passed again", what)
		}
	}
	ba.n.Expect(1, x)
	again("expecting twice")
	ba.n.Install(1, ab.n.Index(), y, x)
	again("installing")
	ba.n.Install(1, ab.n.Index(), y, x)
	ba.n.Expect(1, x)
	again("installing twice")
	counter := ab.n.keys.Load().counter.Load()
	ab.n.Install(1, ba.n.Index(), x, y)
	if ab.n.keys.Load().counter.Load() != counter {
		t.Error("a counter started again under the same key")
	}
}

// All sixteen epochs in turn, and round again: what was sent under an epoch's number in the round before stays out.
func TestEpochsWrap(t *testing.T) {
	a, b := newNode(1), newNode(2)
	ab, ba := connect(t, a, b)
	a.plane.SetTable(Table{b.key.ID(): {Primary: ab.n}})
	var old [][]byte
	for e := 1; e < 40; e++ {
		x, y := wire.HopKey{K0: uint64(e), K1: 1}, wire.HopKey{K0: uint64(e), K1: 2}
		ba.n.Install(uint8(e), ab.n.Index(), y, x)
		ab.n.Install(uint8(e), ba.n.Index(), x, y)
		n := len(b.got)
		buf, seg, _ := burst(1, 64, 64)
		a.plane.Send(b.key.ID(), 0, buf, seg)
		if len(b.got) != n+1 {
			t.Fatalf("epoch %d: lost", e)
		}
		for _, d := range old {
			ab.p.to.Receive(ab.p.from, bytes.Clone(d), len(d))
		}
		if len(b.got) != n+1 {
			t.Fatalf("epoch %d: an old datagram passed", e)
		}
		old = append(old, bytes.Clone(ab.p.last))
	}
}

// Counters at the end of their range: a neighbour that jumps there closes its own link and nothing else.
func TestCountersAtTheirLimit(t *testing.T) {
	const top = ^uint64(0)
	for _, c := range []uint64{0, top, top - 1, top - WindowSize + 1} {
		var w Window
		if w.Accept(c) || w.Highest() != 0 {
			t.Errorf("counter %#x passed", c)
		}
	}
	var w Window
	if last := top - WindowSize; !w.Accept(last) || w.Accept(last) || !w.Accept(last-WindowSize+1) || w.Accept(last-WindowSize) || w.Accept(last+1) {
		t.Error("the window is wrong at the end of the range")
	}
}
