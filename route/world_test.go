package route

import (
	"bytes"
	"container/heap"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"weft/ident"
	"weft/wire"
)

// The tests' signature is a keyed hash: quick, and only the tests' own sign function makes it. Real signatures are tested
// in ident and wire, and once here in TestRealSignatures.
func testSign(key ident.PublicKey) func([]byte) ident.Signature {
	return func(msg []byte) ident.Signature {
		return ident.Signature(sha512.Sum512(append([]byte("test"+string(key[:])), msg...)))
	}
}

func testVerify(v wire.LSAView) bool { return testSign(v.Key())(v.Signed()) == v.Signature() }

func testKey(i int) ident.PublicKey {
	return ident.PublicKey(sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i))))
}

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// world is a small network in virtual time: routers joined by links that are reliable and ordered while they last.
type world struct {
	tb    testing.TB
	now   time.Duration
	rng   *rand.Rand
	queue eventQueue
	order uint64
	nodes []*testNode
	wires []*testWire

	alternates [2]int // routes with and without one, counted by checkAlternates
}

type testNode struct {
	r     *Router
	key   ident.PublicKey
	local Local
	dead  bool
	life  int
	timer time.Duration
	seq   uint64
	lims  Limits
	skew  time.Duration // its clock is ahead by so much
}

// testWire joins nodes a and b; its link ID at both ends is its index plus one. Costs may differ by end.
type testWire struct {
	a, b    int
	cost    [2]uint32
	mtu     [2]uint16
	metered bool
	up      bool
	life    int
	delay   time.Duration
	lastAt  [2]time.Duration
	bytes   uint64
}

type event struct {
	at    time.Duration
	order uint64
	do    func()
}

type eventQueue []event

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].order < q[j].order
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *eventQueue) Push(x any)   { *q = append(*q, x.(event)) }
func (q *eventQueue) Pop() any {
	old := *q
	x := old[len(old)-1]
	*q = old[:len(old)-1]
	return x
}

func newWorld(tb testing.TB, seed uint64) *world {
	return &world{tb: tb, rng: rand.New(rand.NewPCG(seed, 1))}
}

func (w *world) at(d time.Duration, do func()) {
	w.order++
	heap.Push(&w.queue, event{w.now + d, w.order, do})
}

func (w *world) clock(i int) time.Time { return epoch.Add(w.now + w.nodes[i].skew) }

func (w *world) addNode(local Local) int {
	w.nodes = append(w.nodes, &testNode{key: testKey(len(w.nodes)), local: local, dead: true, timer: never})
	w.boot(len(w.nodes) - 1)
	return len(w.nodes) - 1
}

// boot starts a node that is dead, with the sequence number it has stored.
func (w *world) boot(i int) {
	n := w.nodes[i]
	n.dead = false
	n.life++
	n.timer = never
	n.r = New(Config{Self: n.key, Sign: testSign(n.key), Verify: testVerify, Rand: w.rng.Uint64, Seq: n.seq, Local: n.local, Limits: n.lims}, w.clock(i))
	w.after(i)
	for id := range w.wires {
		if w.wires[id].a == i || w.wires[id].b == i {
			w.raise(id)
		}
	}
}

// kill ends a node; its neighbours notice at once.
func (w *world) kill(i int) {
	for id, x := range w.wires {
		if x.a == i || x.b == i {
			up := x.up
			w.cut(id)
			x.up = up
		}
	}
	w.nodes[i].dead = true
	w.nodes[i].r = nil
}

func (w *world) addWire(a, b int, cost uint32) int {
	w.wires = append(w.wires, &testWire{a: a, b: b, cost: [2]uint32{cost, cost}, mtu: [2]uint16{1400, 1400}, delay: time.Millisecond})
	w.raise(len(w.wires) - 1)
	return len(w.wires) - 1
}

func (w *world) info(id, end int) LinkInfo {
	x := w.wires[id]
	peer := x.b
	if end == 1 {
		peer = x.a
	}
	return LinkInfo{uint32(id + 1), w.nodes[peer].key, x.cost[end], x.mtu[end], x.metered}
}

func (w *world) ends(id int) [2]int { return [2]int{w.wires[id].a, w.wires[id].b} }

// raise brings a wire up at both ends, if both live.
func (w *world) raise(id int) {
	x := w.wires[id]
	x.up = true
	if w.nodes[x.a].dead || w.nodes[x.b].dead {
		return
	}
	x.life++
	for end, i := range w.ends(id) {
		w.nodes[i].r.LinkUp(w.clock(i), w.info(id, end))
	}
	w.after(x.a)
	w.after(x.b)
}

func (w *world) cut(id int) {
	x := w.wires[id]
	x.up = false
	x.life++
	for _, i := range w.ends(id) {
		if !w.nodes[i].dead {
			w.nodes[i].r.LinkDown(w.clock(i), uint32(id+1))
			w.after(i)
		}
	}
}

func (w *world) setCost(id int, a, b uint32) {
	x := w.wires[id]
	x.cost = [2]uint32{a, b}
	for end, i := range w.ends(id) {
		if !w.nodes[i].dead {
			w.nodes[i].r.LinkChanged(w.clock(i), w.info(id, end))
			w.after(i)
		}
	}
}

// after sends what a node wants to send and sets its timer.
func (w *world) after(i int) {
	n := w.nodes[i]
	if n.dead {
		return
	}
	for _, m := range n.r.Outbox() {
		if len(m.Bytes) > MaxMessage {
			w.tb.Fatalf("message of %d bytes", len(m.Bytes))
		}
		w.send(i, m)
	}
	n.seq = n.r.Stats().Seq
	next := n.r.Next().Sub(epoch) - n.skew
	if next < n.timer {
		n.timer = next
		life := n.life
		w.at(max(0, next-w.now), func() {
			if n.dead || n.life != life || n.timer != next {
				return
			}
			n.timer = never
			n.r.Tick(w.clock(i))
			w.after(i)
		})
	}
}

func (w *world) send(from int, m Message) {
	x := w.wires[m.Link-1]
	end, to := 0, x.b
	if from == x.b {
		end, to = 1, x.a
	}
	x.bytes += uint64(len(m.Bytes))
	life := x.life
	due := max(w.now+x.delay, x.lastAt[end]) // in order
	x.lastAt[end] = due
	w.at(due-w.now, func() {
		if x.life != life || !x.up || w.nodes[to].dead {
			return
		}
		if err := w.nodes[to].r.Receive(w.clock(to), m.Link, m.Bytes); err != nil {
			w.tb.Fatalf("node %d refuses what %d sent: %v", to, from, err)
		}
		w.after(to)
	})
}

func (w *world) run(d time.Duration) {
	end := w.now + d
	for len(w.queue) > 0 && w.queue[0].at <= end {
		e := heap.Pop(&w.queue).(event)
		w.now = max(w.now, e.at)
		e.do()
	}
	w.now = end
}

// usable reports whether a wire can carry.
func (w *world) usable(id int) bool {
	x := w.wires[id]
	return x.up && !w.nodes[x.a].dead && !w.nodes[x.b].dead
}

// weight returns what the network counts for the wires between a wire's two ends: each end announces the best of its
// own, and the dearer word counts.
func (w *world) weight(id int) uint64 {
	x := w.wires[id]
	words := [2]uint64{infinite, infinite}
	for other, y := range w.wires {
		if !w.usable(other) || (y.a != x.a || y.b != x.b) && (y.a != x.b || y.b != x.a) {
			continue
		}
		for end, c := range y.cost {
			if y.a != x.a {
				end = 1 - end
			}
			words[end] = min(words[end], uint64(c))
		}
	}
	c := max(words[0], words[1])
	if (w.nodes[x.a].local.Flags|w.nodes[x.b].local.Flags)&wire.FlagMetered != 0 {
		c *= meteredFactor
	}
	return c
}

// oracle is the stupidest shortest path there is: Bellman-Ford over the true network.
func (w *world) oracle(from int) []uint64 {
	dist := make([]uint64, len(w.nodes))
	for i := range dist {
		dist[i] = infinite
	}
	dist[from] = 0
	through := func(i int) uint64 {
		if i == from {
			return 0
		}
		if w.nodes[i].local.Flags&wire.FlagLeaf != 0 {
			return infinite
		}
		return uint64(w.nodes[i].local.Price) * uint64(w.nodes[from].local.Lambda) / 1_000_000
	}
	for again := true; again; {
		again = false
		for id, x := range w.wires {
			if !w.usable(id) {
				continue
			}
			for _, p := range [][2]int{{x.a, x.b}, {x.b, x.a}} {
				if d := add(add(dist[p[0]], through(p[0])), w.weight(id)); d < dist[p[1]] {
					dist[p[1]] = d
					again = true
				}
			}
		}
	}
	return dist
}

// connected labels nodes by connected part.
func (w *world) connected() []int {
	part := make([]int, len(w.nodes))
	for i := range part {
		part[i] = i
	}
	for again := true; again; {
		again = false
		for id, x := range w.wires {
			if w.usable(id) && part[x.a] != part[x.b] {
				part[x.a] = min(part[x.a], part[x.b])
				part[x.b] = part[x.a]
				again = true
			}
		}
	}
	return part
}

// check compares every node with the oracle and with the others of its part.
func (w *world) check() error {
	part := w.connected()
	for i, n := range w.nodes {
		if n.dead {
			continue
		}
		t := n.r.Table()
		dist := w.oracle(i)
		members := 0
		for j, m := range w.nodes {
			if m.dead {
				continue
			}
			h, ok := t.Route(m.key.ID())
			want := dist[j] != infinite && i != j
			if part[i] == part[j] {
				members++
				theirs := m.r.db.entries[0].lsa
				s, have := n.r.db.byID[m.key.ID()]
				if !have || !bytes.Equal(n.r.db.entries[s].lsa, theirs) {
					return fmt.Errorf("node %d has not the LSA of %d (have %v)", i, j, have)
				}
			}
			if ok != want || ok && h.Cost != dist[j] {
				return fmt.Errorf("node %d to %d: route %v %+v, best is %d", i, j, ok, h, dist[j])
			}
			if ok {
				if err := w.walk(i, j, dist[j]); err != nil {
					return err
				}
			}
		}
		if t.Len() != members {
			return fmt.Errorf("node %d counts %d nodes, there are %d", i, t.Len(), members)
		}
	}
	return nil
}

// walk forwards by the nodes' tables and adds up what it costs.
func (w *world) walk(from, to int, want uint64) error {
	at, cost := from, uint64(0)
	for range len(w.nodes) {
		if at == to {
			if cost != want {
				return fmt.Errorf("forwarding from %d to %d costs %d, best is %d", from, to, cost, want)
			}
			return nil
		}
		h, ok := w.nodes[at].r.Table().Route(w.nodes[to].key.ID())
		if !ok || !w.usable(int(h.Link-1)) {
			return fmt.Errorf("forwarding from %d to %d stops at %d", from, to, at)
		}
		if at != from {
			cost += uint64(w.nodes[at].local.Price) * uint64(w.nodes[from].local.Lambda) / 1_000_000
		}
		cost += w.weight(int(h.Link - 1))
		at = w.other(int(h.Link-1), at)
	}
	return fmt.Errorf("forwarding from %d to %d loops", from, to)
}

func (w *world) other(id, end int) int {
	if w.wires[id].a == end {
		return w.wires[id].b
	}
	return w.wires[id].a
}

// mustConverge runs until the network is quiet and checks it.
func (w *world) mustConverge(d time.Duration) {
	w.tb.Helper()
	w.run(d)
	if err := w.check(); err != nil {
		w.tb.Fatal(err)
	}
}

// randomMesh makes a connected random graph.
func (w *world) randomMesh(n, extra int, cost func() uint32) {
	for i := range n {
		w.addNode(Local{})
		if i > 0 {
			w.addWire(i, w.rng.IntN(i), cost())
		}
	}
	for range extra {
		if a, b := w.rng.IntN(n), w.rng.IntN(n); a != b {
			w.addWire(a, b, cost())
		}
	}
}
