package route

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weft/wire"
)

// TestModel throws random events at random networks and then compares every node with the oracle.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t, rapid.Uint64().Draw(rt, "seed"))
		n := rapid.IntRange(2, 14).Draw(rt, "nodes")
		lambda := rapid.SampledFrom([]uint32{0, 0, 1000}).Draw(rt, "lambda")
		// Few distinct costs make many ties, many make none.
		most := rapid.SampledFrom([]uint32{3, 1000}).Draw(rt, "most")
		cost := func() uint32 { return 1 + w.rng.Uint32N(most) }
		for i := range n {
			l := Local{Lambda: lambda, Price: w.rng.Uint32N(100_000)}
			switch w.rng.IntN(8) {
			case 0:
				l.Flags = wire.FlagLeaf
			case 1:
				l.Flags = wire.FlagMetered
			}
			w.addNode(l)
			if i > 0 {
				w.addWire(i, w.rng.IntN(i), cost())
			}
		}
		for range rapid.IntRange(0, 12).Draw(rt, "extra") {
			if a, b := w.rng.IntN(n), w.rng.IntN(n); a != b {
				x := w.wires[w.addWire(a, b, cost())]
				x.delay = time.Duration(1+w.rng.IntN(40)) * time.Millisecond
			}
		}
		for range rapid.IntRange(0, 25).Draw(rt, "events") {
			id := w.rng.IntN(len(w.wires))
			i := w.rng.IntN(n)
			switch rapid.IntRange(0, 7).Draw(rt, "event") {
			case 0, 1:
				if w.wires[id].up {
					w.cut(id)
				} else {
					w.raise(id)
				}
			case 2:
				w.setCost(id, cost(), cost()) // the ends may differ
			case 3: // a restart that has lost its number, or has an old one
				if !w.nodes[i].dead {
					w.kill(i)
					w.nodes[i].seq = w.rng.Uint64N(3)
				} else {
					w.boot(i)
				}
			case 4: // a partition: all wires between two halves
				for id, x := range w.wires {
					if x.up && x.a%2 != x.b%2 {
						w.cut(id)
					}
				}
			case 5: // and its end
				for id, x := range w.wires {
					if !x.up {
						w.raise(id)
					}
				}
			case 6:
				if node := w.nodes[i]; !node.dead {
					node.local.Price = w.rng.Uint32N(100_000)
					node.local.Flags ^= wire.FlagLeaf
					if err := node.r.SetLocal(w.clock(i), node.local); err != nil {
						t.Fatal(err)
					}
					w.after(i)
				}
			case 7:
				w.run(time.Duration(rapid.IntRange(0, 100_000).Draw(rt, "ms")) * time.Millisecond)
			}
			w.run(time.Duration(w.rng.IntN(100)) * time.Millisecond)
		}
		w.run(30*time.Second + time.Duration(n)*(refreshDelay+time.Second)) // a refresh may take its time at every hop
		if err := w.check(); err != nil {
			rt.Fatal(err)
		}
		if err := w.checkAlternates(); err != nil {
			rt.Fatal(err)
		}
		if err := w.checkStructure(); err != nil {
			rt.Fatal(err)
		}
	})
}

// checkAlternates lets every link that is some node's primary fail, one at a time, and forwards by brute force: the node
// before the failure uses its alternate, all others their tables as they were. Nothing may come back or loop. Where the
// oracle finds a neighbour whose best paths avoid the failed node altogether, the alternate must avoid it too.
func (w *world) checkAlternates() error {
	dist := make([][]uint64, len(w.nodes))
	for i := range w.nodes {
		dist[i] = w.oracle(i)
	}
	for i, n := range w.nodes {
		if n.dead {
			continue
		}
		for id, h := range n.r.Table().Routes() {
			to := w.index(id)
			primary := w.other(int(h.Link-1), i)
			protects := w.protected(i, primary, to, dist)
			if h.Alt == 0 {
				if protects {
					return fmt.Errorf("node %d to %d: no alternate, though there is one that avoids %d", i, to, primary)
				}
				w.alternates[1]++
				continue
			}
			w.alternates[0]++
			if h.Alt == h.Link {
				return fmt.Errorf("node %d to %d: the alternate is the primary", i, to)
			}
			at := w.other(int(h.Alt-1), i)
			for hops := 0; at != to; hops++ {
				if hops > len(w.nodes) || at == i {
					return fmt.Errorf("node %d to %d: the alternate comes back or loops", i, to)
				}
				if at == primary && protects {
					return fmt.Errorf("node %d to %d: the alternate runs over %d, though there is one that does not", i, to, primary)
				}
				next, ok := w.nodes[at].r.Table().Route(id)
				if !ok {
					return fmt.Errorf("node %d to %d: the alternate ends at %d", i, to, at)
				}
				at = w.other(int(next.Link-1), at)
			}
		}
	}
	return nil
}

// protected reports whether node i has a neighbour, other than the primary, that may carry and whose best paths to the
// destination avoid both i and the primary.
func (w *world) protected(i, primary, to int, dist [][]uint64) bool {
	if primary == to {
		return false
	}
	through := func(k int) uint64 {
		if w.nodes[k].local.Flags&wire.FlagLeaf != 0 {
			return infinite
		}
		return uint64(w.nodes[k].local.Price) * uint64(w.nodes[i].local.Lambda) / 1_000_000
	}
	for id := range w.wires {
		if !w.usable(id) || w.wires[id].a != i && w.wires[id].b != i {
			continue
		}
		n := w.other(id, i)
		if n == primary || n != to && through(n) == infinite || dist[n][to] == infinite {
			continue
		}
		if dist[n][to] < add(add(dist[n][i], through(i)), dist[i][to]) && dist[n][to] < add(add(dist[n][primary], through(primary)), dist[primary][to]) {
			return true
		}
	}
	return false
}

func (w *world) index(id interface{ String() string }) int {
	for i, n := range w.nodes {
		if n.key.ID().String() == id.String() {
			return i
		}
	}
	return -1
}

// checkStructure looks inside: edges are symmetric, skipped runs would have changed nothing, nothing waits for ever.
func (w *world) checkStructure() error {
	for i, n := range w.nodes {
		if n.dead {
			continue
		}
		r := n.r
		for _, s := range r.db.order {
			for _, x := range r.db.entries[s].edges {
				back := edgeTo(r.db.entries[x.to].edges, s)
				if back < 0 || r.db.entries[x.to].edges[back].weight != x.weight {
					return fmt.Errorf("node %d: edge %d–%d is not the same from both ends", i, s, x.to)
				}
			}
		}
		for _, t := range r.spf.trees {
			if t.dirty {
				return fmt.Errorf("node %d: a tree is still dirty", i)
			}
			fresh := &tree{root: t.root}
			r.dijkstra(fresh, false)
			for _, s := range r.db.order {
				if fresh.at(s) != t.at(s) {
					return fmt.Errorf("node %d: distance from %d to %d is %d, a new run says %d", i, t.root, s, t.at(s), fresh.at(s))
				}
			}
		}
		for _, l := range r.links {
			if len(l.waiting) > 0 || l.pending.count > 0 || l.waitBytes != 0 {
				return fmt.Errorf("node %d: %d LSAs wait, %d to send", i, len(l.waiting), l.pending.count)
			}
		}
		total := 0
		for _, s := range r.db.order {
			total += len(r.db.entries[s].lsa)
		}
		if total != r.db.bytes || len(r.db.byID) != len(r.db.order) {
			return fmt.Errorf("node %d: the books say %d bytes, there are %d", i, r.db.bytes, total)
		}
	}
	return nil
}
