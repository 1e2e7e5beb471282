package meter

import (
	"testing"
	"testing/synctest"
	"time"

	"weft/ident"
)

// diamond is a source that reaches destinations by way of relay b or relay c, whichever costs less: the link's cost times what the
// meter says, with a tenth of hysteresis as route has.
type diamond struct {
	*world
	a, b, c *node
	dests   []*node
	at      *node // the relay in use
	moves   int
}

func newDiamond(w *world, costB, costC, dests int) *diamond {
	d := &diamond{world: w, a: w.node("a"), b: w.node("b"), c: w.node("c")}
	for i := range dests {
		d.dests = append(d.dests, w.node("d"+string(rune('0'+i))))
	}
	d.at = d.b
	d.a.via = func(to *node) *node {
		if to == d.b || to == d.c {
			return to
		}
		d.a.mu.Lock()
		defer d.a.mu.Unlock()
		cost := func(n *node, c int) int {
			if f := d.a.penalties[n.id]; f > 0 {
				return c * f / 1000
			}
			return c
		}
		cb, cc := cost(d.b, costB), cost(d.c, costC)
		switch {
		case d.at == d.b && cc*10 < cb*9:
			d.at, d.moves = d.c, d.moves+1
		case d.at == d.c && cb*10 < cc*9:
			d.at, d.moves = d.b, d.moves+1
		}
		return d.at
	}
	return d
}

func (d *diamond) where() *node {
	d.a.mu.Lock()
	defer d.a.mu.Unlock()
	return d.at
}

func (d *diamond) moved() int {
	d.a.mu.Lock()
	defer d.a.mu.Unlock()
	return d.moves
}

// step sends to every destination, and a little back.
func (d *diamond) step(k Kind, packets int) func() {
	return func() {
		for _, to := range d.dests {
			d.a.send(to, k, packets, size)
			to.send(d.a, k, packets/10, size)
		}
	}
}

func (n *node) factor(of *node) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if f := n.penalties[of.id]; f > 0 {
		return f
	}
	return noPenalty
}

// TestDropper: a relay that drops 30 % loses its traffic within about ten seconds (a window begins when it begins), also when the
// other way costs more; the honest relay is not blamed, and the traffic stays with it.
func TestDropper(t *testing.T) {
	for _, c := range []struct {
		name    string
		kind    Kind
		costC   int
		dests   int
		packets int
		within  time.Duration
	}{
		{"one session", Outside, 100, 1, 20, 12 * time.Second},
		{"five sessions", Outside, 100, 5, 10, 12 * time.Second},
		{"the other way costs half as much again", Outside, 150, 2, 20, 12 * time.Second},
		{"the other way costs three times as much", Outside, 300, 2, 20, 20 * time.Second},
		{"mesh traffic", Mesh, 100, 2, 20, 16 * time.Second},
		{"little traffic", Outside, 100, 1, 2, 16 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			virtual(t, func(t *testing.T, w *world) {
				d := newDiamond(w, 100, c.costC, c.dests)
				w.flow(time.Minute, d.step(c.kind, c.packets))
				if d.where() != d.b || len(d.a.toldOf()) > 0 {
					t.Fatalf("with all honest: at %s, penalties %v", d.where().name, d.a.toldOf())
				}
				w.lose(func(_, _, via *node) int {
					if via == d.b {
						return 300
					}
					return 0
				})
				start := time.Now()
				var moved time.Duration
				w.flow(2*time.Minute, func() {
					d.step(c.kind, c.packets)()
					if d.where() == d.c && moved == 0 {
						moved = time.Since(start)
					}
				})
				if moved == 0 || moved > c.within {
					t.Errorf("moved after %v, want %v; told %v", moved, c.within, d.a.toldOf())
				}
				t.Logf("moved after %v", moved)
				if d.moved() != 1 || d.a.factor(d.c) != noPenalty {
					t.Errorf("%d moves, told %v (b is %v, c is %v)", d.moved(), d.a.toldOf(), d.b.id, d.c.id)
				}
				for _, n := range d.a.meter().View().Neighbours {
					if n.Neighbour == d.b.id && (n.Delivered > 900 || n.Penalty == noPenalty) {
						t.Errorf("b in the view: %+v", n)
					}
				}
			})
		})
	}
}

// TestLossyLastMile: what is lost behind both relays alike blames neither for long: the traffic looks once whether the other way is
// better, and then nobody is penalised, however long the loss goes on.
func TestLossyLastMile(t *testing.T) {
	for _, dests := range []int{1, 3} {
		virtual(t, func(t *testing.T, w *world) {
			d := newDiamond(w, 100, 110, dests)
			w.lose(func(_, to, _ *node) int {
				if to == d.dests[0] {
					return 300
				}
				return 0
			})
			w.flow(time.Minute, d.step(Outside, 20))
			if d.a.factor(d.b) != noPenalty || d.a.factor(d.c) != noPenalty {
				t.Errorf("%d destinations, after a minute: b %d, c %d", dests, d.a.factor(d.b), d.a.factor(d.c))
			}
			for _, p := range d.a.toldOf() {
				if p.neighbour == d.c.id {
					t.Errorf("%d destinations: the second relay was blamed: %v", dests, d.a.toldOf())
				}
			}
			if dests > 1 && len(d.a.toldOf()) > 0 {
				t.Errorf("one lossy destination of %d blames a relay: %v", dests, d.a.toldOf())
			}
			told, moves := len(d.a.toldOf()), d.moved()
			w.flow(15*time.Minute, d.step(Outside, 20))
			if len(d.a.toldOf()) != told || d.moved() > moves+1 || moves > 2 {
				t.Errorf("%d destinations: %d moves, %v told", dests, d.moved(), d.a.toldOf())
			}
		})
	}
}

// TestRadioLossIsNotBlamed: what the link loses by itself is in its cost already.
func TestRadioLossIsNotBlamed(t *testing.T) {
	virtual(t, func(t *testing.T, w *world) {
		d := newDiamond(w, 100, 100, 2)
		d.a.linkLoss[d.b.id] = 200
		w.lose(func(_, _, via *node) int {
			if via == d.b {
				return 200
			}
			return 0
		})
		w.flow(10*time.Minute, d.step(Outside, 20))
		if len(d.a.toldOf()) > 0 || d.where() != d.b {
			t.Errorf("told %v", d.a.toldOf())
		}
	})
}

// TestBurstsAreNotLoss: bursts, an eighth of what goes in a window, that now overtake a beacon and now fall behind, blame nobody.
func TestBurstsAreNotLoss(t *testing.T) {
	virtual(t, func(t *testing.T, w *world) {
		d := newDiamond(w, 100, 100, 1)
		w.step = time.Second / 4
		w.flow(time.Hour, d.step(Outside, 50))
		if told := d.a.toldOf(); len(told) > 0 {
			t.Errorf("told %v", told)
		}
	})
}

// TestNeighbourAsDestination: loss to a neighbour itself is the link's, whoever claims it.
func TestNeighbourAsDestination(t *testing.T) {
	virtual(t, func(t *testing.T, w *world) {
		d := newDiamond(w, 100, 100, 1)
		d.b.lie(func(b *Beacon) bool {
			b.Recv, b.EchoRecv = Count{b.Recv.Packets / 2, b.Recv.Bytes / 2}, Count{b.EchoRecv.Packets / 2, b.EchoRecv.Bytes / 2}
			return true
		})
		w.flow(5*time.Minute, func() { d.step(Outside, 20)(); d.a.send(d.b, Mesh, 50, size) })
		if len(d.a.toldOf()) > 0 {
			t.Errorf("told %v", d.a.toldOf())
		}
	})
}

// TestBehavesWhenPenalised: a relay that drops while it is trusted and behaves while it is not is trusted for less and less of the
// time, and over hours gets little of what it could have dropped.
func TestBehavesWhenPenalised(t *testing.T) {
	virtual(t, func(t *testing.T, w *world) {
		d := newDiamond(w, 100, 130, 1)
		w.lose(func(_, _, via *node) int {
			if via == d.b && d.a.factor(d.b) == noPenalty {
				return 300
			}
			return 0
		})
		var viaB, sent int
		var offences []time.Time
		w.step = time.Second / 2
		time.Sleep(30 * time.Millisecond) // not at the moment of a tick: it is about droppers, not bursts
		w.flow(6*time.Hour, func() {
			d.step(Outside, 100)()
			sent++
			if d.where() == d.b {
				viaB++
			}
			for len(offences) < len(d.a.toldOf()) {
				offences = append(offences, time.Now())
			}
		})
		if d.a.factor(d.c) != noPenalty {
			t.Errorf("the honest one is blamed: %v", d.a.toldOf())
		}
		var first []time.Duration // of each penalty: how long until it was over
		var begun time.Time
		for i, p := range d.a.toldOf() {
			switch {
			case p.permille == noPenalty:
				first = append(first, offences[i].Sub(begun))
				begun = time.Time{}
			case begun.IsZero():
				begun = offences[i]
			}
		}
		t.Logf("%d of %d steps by the dropper, penalties of %v, %d moves", viaB, sent, first, d.moved())
		if len(first) < 2 || first[1] < first[0]*3/2 {
			t.Errorf("penalties do not grow: %v", first)
		}
		if viaB*4 > sent {
			t.Errorf("the dropper still has %d of %d steps", viaB, sent)
		}
		if d.moved() > 30 {
			t.Errorf("%d moves in six hours", d.moved())
		}
		if p := d.a.meter().View().Neighbours; len(p) == 0 {
			t.Error("nobody in the view")
		}
	})
}

// TestAlternatingDropper: dropping in every other window pays no better.
func TestAlternatingDropper(t *testing.T) {
	virtual(t, func(t *testing.T, w *world) {
		d := newDiamond(w, 100, 100, 2)
		start := time.Now()
		w.lose(func(_, _, via *node) int {
			if via == d.b && time.Since(start)/ratioWindow%2 == 1 {
				return 400
			}
			return 0
		})
		w.flow(time.Minute, d.step(Outside, 20))
		if d.where() != d.c || d.a.factor(d.c) != noPenalty {
			t.Errorf("at %s, told %v", d.where().name, d.a.toldOf())
		}
	})
}

// TestPenaltyHeals: one offence is over in some half-lives, and is told in steps, not each second.
func TestPenaltyHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDelivery()
		via, dest := ident.NodeID(1), ident.NodeID(2)
		pass := func(recv uint64) []penalty {
			d.add(dest, passage{via, Count{200, 200_000}, Count{recv, recv * 1000}}, time.Now())
			time.Sleep(ratioWindow)
			for _, id := range d.closing(time.Now()) {
				d.close(id, 0, time.Now())
			}
			return d.heal(time.Now())
		}
		pass(200)
		for range 2 {
			if told := pass(100); len(told) != 0 {
				t.Fatalf("one bad window tells %v", told)
			}
		}
		told := pass(200)
		if len(told) != 1 || told[0].permille != 4000 {
			t.Fatalf("two windows of a half: %v", told)
		}
		start, n, half := time.Now(), 0, time.Duration(0)
		for d.neighbours[via] != nil && d.neighbours[via].factor > noPenalty {
			time.Sleep(time.Second)
			told := d.heal(time.Now())
			n += len(told)
			if half == 0 && d.neighbours[via].factor <= 2500 {
				half = time.Since(start)
			}
		}
		if half < 9*time.Minute || half > 11*time.Minute {
			t.Errorf("half after %v", half)
		}
		if end := time.Since(start); end < 40*time.Minute || end > 60*time.Minute || n > 40 {
			t.Errorf("over after %v, told %d times", end, n)
		}
		if f := d.neighbours[via]; f.offences != 1 || f.evidence != nil {
			t.Errorf("left: %+v", f)
		}
		time.Sleep(forgetAfter + time.Minute)
		d.heal(time.Now())
		d.heal(time.Now())
		if len(d.neighbours) != 0 {
			t.Error("not forgotten")
		}
	})
}

// TestDeliveryBounded: destinations and neighbours that are made up fill no memory.
func TestDeliveryBounded(t *testing.T) {
	d, now := newDelivery(), time.Now()
	for i := range 3 * maxDests {
		d.add(ident.NodeID(1<<32)+ident.NodeID(i), passage{1, Count{1, 1}, Count{1, 1}}, now)
		d.add(1<<40, passage{ident.NodeID(i), Count{1, 1}, Count{1, 1}}, now)
	}
	if len(d.neighbours) > maxNeighbours || len(d.neighbours[1].window) > maxDests {
		t.Errorf("%d neighbours, %d destinations", len(d.neighbours), len(d.neighbours[1].window))
	}
}
