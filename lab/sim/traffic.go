package sim

import (
	"container/heap"
	"slices"
	"time"

	"weft/lab/manifest"
)

// echo is one packet on its way to a node and back.
type echo struct {
	from, to int
	back     bool
	ttl      int
	sent     time.Duration
	answer   func()
}

// start sends an echo from its source; it is lost without a word when there is no way.
func (w *world) start(e *echo) {
	e.ttl = 64
	e.sent = w.now
	w.packet(e, e.from, -1)
}

// packet is an echo at node i, which forwards it by its table: to the alternate when the primary link is down.
func (w *world) packet(e *echo, i, via int) {
	n := w.nodes[i]
	if n.r == nil {
		return
	}
	if via >= 0 {
		if l := w.links[via]; l.silent > 0 || !l.up[0] || !l.up[1] {
			return
		}
	}
	target := e.to
	if e.back {
		target = e.from
	}
	if i == target {
		if e.back {
			e.answer()
			return
		}
		e.back, e.ttl = true, 64
		target = e.from
		if i == target {
			e.answer()
			return
		}
	}
	if e.ttl--; e.ttl <= 0 {
		w.report.TTLExpired++
		return
	}
	h, ok := n.r.Table().Route(w.nodes[target].id)
	if !ok {
		return
	}
	id := int(h.Link - 1)
	if !w.believes(id, i) {
		if id = int(h.Alt) - 1; id < 0 || !w.believes(id, i) {
			return
		}
	}
	l := w.links[id]
	if l.silent > 0 || w.deadEnd(id) {
		w.notice(id, true)
		return
	}
	if l.spec.Loss > 0 && w.rng.Float64() < l.spec.Loss {
		return
	}
	delay := l.spec.Delay.Duration
	if l.spec.Jitter.Duration > 0 {
		delay += time.Duration(w.rng.Int64N(int64(l.spec.Jitter.Duration)))
	}
	if l.spec.Rate > 0 {
		delay += time.Duration(echoBytes * 8 / float64(l.spec.Rate) * 1e9)
	}
	w.push(event{at: w.now + delay, kind: evPacket, a: w.other(id, i), b: id, echo: e})
}

// believes reports whether node i thinks that a link is up.
func (w *world) believes(id, i int) bool {
	for end, j := range w.ends(id) {
		if i == j && w.links[id].up[end] {
			return true
		}
	}
	return false
}

// question is an echo that an application repeats until it is answered.
type question struct {
	from, to int
	asked    time.Duration
	answered time.Duration // zero: not yet
}

// steady sends echoes all the time, to find gaps.
type steady struct {
	from, to   int
	until      time.Duration
	first      time.Duration
	lastAnswer time.Duration // sending time of the youngest that was answered
	answers    []time.Duration
	sent       int
}

// wait is a moment from which somebody waits for convergence.
type wait struct{ after, done time.Duration }

// idle is a window in which control traffic is measured.
type idle struct {
	after, until time.Duration
	start, stop  []uint64
}

// expect prepares what the expectations need to be measured.
func (w *world) expect() {
	for i, n := range w.w.Nodes { // everybody has somebody to talk to from the first moment
		for range 2 {
			if len(w.w.Nodes) > 1 {
				to := w.rng.IntN(len(w.w.Nodes) - 1)
				if to >= i {
					to++
				}
				w.asked = append(w.asked, &question{from: i, to: to, asked: n.Start.Duration})
				w.push(event{at: n.Start.Duration, kind: evAsk, a: len(w.asked) - 1, b: 0})
			}
		}
	}
	w.waits = []*wait{{}}
	w.push(event{at: min(w.end, startWindow), kind: evStart})
	for _, x := range w.m.Expect {
		until := x.Until.Duration
		if until == 0 {
			until = w.end
		}
		if x.Converged.Duration != 0 && x.After.Duration != 0 {
			w.waits = append(w.waits, &wait{after: x.After.Duration})
		}
		if x.Gap.Duration != 0 || x.Unreached {
			pairs := w.pairs(x)
			w.flows = append(w.flows, len(pairs))
			for _, p := range pairs {
				w.steady = append(w.steady, &steady{from: p[0], to: p[1], first: x.After.Duration, until: until, lastAnswer: x.After.Duration})
				w.push(event{at: x.After.Duration, kind: evAsk, a: len(w.steady) - 1, b: 1})
			}
		}
		if x.Within.Duration != 0 && (x.After.Duration != 0 || !all(x.From) || !all(x.To)) {
			pairs := w.pairs(x)
			w.counted = append(w.counted, len(pairs))
			for _, p := range pairs {
				at := max(x.After.Duration, w.w.Nodes[p[0]].Start.Duration)
				w.asked = append(w.asked, &question{from: p[0], to: p[1], asked: at})
				w.push(event{at: at, kind: evAsk, a: len(w.asked) - 1, b: 0})
			}
		}
		if x.Idle != 0 {
			w.idles = append(w.idles, &idle{after: x.After.Duration, until: until})
			w.push(event{at: x.After.Duration, kind: evIdleStart, a: len(w.idles) - 1})
			w.push(event{at: until, kind: evIdleEnd, a: len(w.idles) - 1})
		}
	}
	w.push(event{at: checkEvery, kind: evCheck})
}

func all(name string) bool { return name == "" || name == "*" }

// pairs lists the pairs that an expectation names. Where it says everybody, every node has two partners.
func (w *world) pairs(x manifest.Expect) (out [][2]int) {
	pick := func(name string) []int {
		if !all(name) {
			return []int{w.w.Node(name)}
		}
		if len(w.w.Nodes) <= 12 {
			var list []int
			for i := range w.w.Nodes {
				list = append(list, i)
			}
			return list
		}
		return []int{w.rng.IntN(len(w.w.Nodes)), w.rng.IntN(len(w.w.Nodes))}
	}
	from := pick(x.From)
	if all(x.From) {
		from = from[:0]
		for i := range w.w.Nodes {
			from = append(from, i)
		}
	}
	for _, a := range from {
		for _, b := range pick(x.To) {
			if a != b {
				out = append(out, [2]int{a, b})
			}
		}
	}
	return out
}

func (w *world) ask(e event) {
	if e.b == 1 {
		s := w.steady[e.a]
		if w.now > s.until {
			return
		}
		s.sent++
		x := &echo{from: s.from, to: s.to}
		x.answer = func() {
			if x.sent > s.lastAnswer || len(s.answers) == 0 {
				s.lastAnswer = x.sent
				s.answers = append(s.answers, x.sent)
			}
		}
		w.start(x)
		w.push(event{at: w.now + echoEvery, kind: evAsk, a: e.a, b: 1})
		return
	}
	q := w.asked[e.a]
	if q.answered != 0 {
		return
	}
	x := &echo{from: q.from, to: q.to, answer: func() {
		if q.answered == 0 {
			q.answered = w.now
		}
	}}
	w.start(x)
	w.push(event{at: w.now + retry, kind: evAsk, a: e.a, b: 0})
}

// gap is the longest time without an answered echo.
func (s *steady) gap() time.Duration {
	last, worst := s.first, time.Duration(0)
	for _, at := range s.answers {
		worst = max(worst, at-last)
		last = at
	}
	return max(worst, s.until-last) - min(echoEvery, max(worst, s.until-last))
}

// traffic returns the control bytes of each link so far.
func (w *world) traffic() []uint64 {
	b := make([]uint64, len(w.links))
	for i, l := range w.links {
		b[i] = l.bytes
	}
	return b
}

// check looks whether all have converged, as long as somebody waits for that.
func (w *world) check() {
	again := false
	var due []*wait
	for _, x := range w.waits {
		if x.done == 0 {
			again = true
			if x.after < w.now || x.after == 0 { // not in the moment itself: the event may come after this check
				due = append(due, x)
			}
		}
	}
	if !again {
		return
	}
	wait := checkEvery
	if len(due) > 0 && w.allKnown() {
		if w.optimal() {
			for _, x := range due {
				x.done = w.now
			}
		} else {
			wait = 2 * checkEvery
		}
	}
	w.push(event{at: w.now + wait, kind: evCheck})
}

// parts labels the live nodes by connected part of the real network.
func (w *world) parts() (label []int, size map[int]int) {
	label = make([]int, len(w.nodes))
	for i := range label {
		label[i] = -1
	}
	size = map[int]int{}
	for i, n := range w.nodes {
		if n.r == nil || label[i] >= 0 {
			continue
		}
		label[i] = i
		stack := []int{i}
		for len(stack) > 0 {
			u := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			size[i]++
			for _, id := range w.nodes[u].links {
				if v := w.other(id, u); w.works(id) && label[v] < 0 {
					label[v] = i
					stack = append(stack, v)
				}
			}
		}
	}
	return label, size
}

// works reports whether a link really carries, whatever anybody thinks.
func (w *world) works(id int) bool {
	l := w.links[id]
	return !l.down && l.silent == 0 && !w.deadEnd(id) && w.nodes[l.spec.From].closed == w.nodes[l.spec.To].closed
}

// allKnown is the cheap half of the check: everybody has started and knows enough nodes.
func (w *world) allKnown() bool {
	for _, n := range w.nodes {
		if n.r == nil && n.life == 0 {
			return false
		}
	}
	label, size := w.parts()
	for i, n := range w.nodes {
		if n.r != nil && n.liar == nil && n.r.Table().Len() < size[label[i]] {
			return false
		}
	}
	return true
}

// optimal is the dear half: every honest node's route to every node of its part costs what the best path in the real
// network costs, and it has none to nodes of other parts.
func (w *world) optimal() bool {
	label, _ := w.parts()
	for i, n := range w.nodes {
		if n.r == nil || n.liar != nil {
			continue
		}
		dist := w.truth(i)
		t := n.r.Table()
		for j, m := range w.nodes {
			if i == j || m.liar != nil {
				continue
			}
			h, ok := t.Route(m.id)
			if want := m.r != nil && label[i] == label[j] && dist[j] != unreached; ok != want || ok && h.Cost != dist[j] {
				return false
			}
		}
	}
	return true
}

const unreached = 1 << 62

type pathItem struct {
	dist uint64
	node int
}
type pathHeap []pathItem

func (h pathHeap) Len() int           { return len(h) }
func (h pathHeap) Less(i, j int) bool { return h[i].dist < h[j].dist }
func (h pathHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *pathHeap) Push(x any)        { *h = append(*h, x.(pathItem)) }
func (h *pathHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// weight is what the network should count for a link: all parallel links of a pair have one cost, the least.
func (w *world) weight(id int) uint64 {
	l := w.links[id]
	c := uint64(l.cost)
	if l.spec.Metered || w.nodes[l.spec.From].spec.Metered || w.nodes[l.spec.To].spec.Metered {
		c *= 16
	}
	return c
}

// truth is a textbook Dijkstra over the real network.
func (w *world) truth(from int) []uint64 {
	dist := make([]uint64, len(w.nodes))
	for i := range dist {
		dist[i] = unreached
	}
	dist[from] = 0
	h := pathHeap{{0, from}}
	for len(h) > 0 {
		x := heap.Pop(&h).(pathItem)
		if x.dist != dist[x.node] || x.node != from && w.nodes[x.node].spec.Leaf {
			continue
		}
		for _, id := range w.nodes[x.node].links {
			v := w.other(id, x.node)
			if d := x.dist + w.weight(id); w.works(id) && d < dist[v] {
				dist[v] = d
				heap.Push(&h, pathItem{d, v})
			}
		}
	}
	return dist
}

// stretch walks random pairs by the tables as they are now and compares with the best.
func (w *world) stretch() (mean, worst float64, stuck int) {
	var alive []int
	for i, n := range w.nodes {
		if n.r != nil && n.liar == nil {
			alive = append(alive, i)
		}
	}
	label, _ := w.parts()
	total, count := 0.0, 0
	sources := slices.Clone(alive)
	w.rng.Shuffle(len(sources), func(i, j int) { sources[i], sources[j] = sources[j], sources[i] })
	for _, a := range sources[:min(len(sources), 200)] {
		dist := w.truth(a)
		for range min(len(alive), 100) {
			b := alive[w.rng.IntN(len(alive))]
			if a == b || label[a] != label[b] || dist[b] == unreached {
				continue
			}
			cost, ok := w.walk(a, b)
			if !ok {
				stuck++
				continue
			}
			s := float64(cost) / float64(dist[b])
			total += s
			worst = max(worst, s)
			count++
		}
	}
	if count == 0 {
		return 0, 0, stuck
	}
	return total / float64(count), worst, stuck
}

func (w *world) walk(a, b int) (cost uint64, ok bool) {
	to := w.nodes[b].id
	for range len(w.nodes) {
		if a == b {
			return cost, true
		}
		n := w.nodes[a]
		if n.r == nil {
			return 0, false
		}
		h, ok := n.r.Table().Route(to)
		if !ok || !w.works(int(h.Link-1)) {
			return 0, false
		}
		cost += w.weight(int(h.Link - 1))
		a = w.other(int(h.Link-1), a)
	}
	return 0, false
}
