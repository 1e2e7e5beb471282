package route

import (
	"cmp"
	"math"
	"slices"
	"time"

	"weft/wire"
)

const (
	infinite = math.MaxUint64
	// meteredFactor multiplies the cost of a metered link: as transit it loses to anything sixteen times worse, and still
	// carries when there is nothing else.
	meteredFactor = 16

	spfFirst   = 5 * time.Millisecond   // from a piece of news after quiet to the run: one failure is told by several nodes
	spfSecond  = 50 * time.Millisecond  // hold-down after a run; doubles with each …
	spfLeast   = 100 * time.Millisecond // … up to the long one, which lies between these and is
	spfMost    = 5 * time.Second        // spfPerNode for each node of each tree: five per cent of a slow router's time
	spfPerNode = 40 * time.Microsecond
	spfCalm    = 5 * time.Second // without a run: the hold-down starts short again
	tableLate  = time.Second     // until news that moves no path is in the table
)

// edge is one direction of a link that both ends list.
type edge struct {
	weight  uint64
	to      int32
	mtu     uint16
	metered bool
}

// add is a sum that stops at infinite.
func add(a, b uint64) uint64 {
	if s := a + b; s >= a {
		return s
	}
	return infinite
}

// minMTU carries any IPv6 packet (docs/spec/session.md section 5). Whoever announces less makes nobody else's packets
// smaller: a node on another of several best paths could otherwise stop what never comes near it.
const minMTU = 1312

// join makes the edge from the two ends' words: the dearer cost and the smaller MTU count, so neither end can make the
// link look better than the other says.
func join(to int32, a, b wire.Adjacency, metered bool) edge {
	x := edge{weight: uint64(max(a.Cost, b.Cost)), to: to, mtu: max(min(a.MTU, b.MTU), minMTU)}
	x.metered = metered || (a.Flags|b.Flags)&wire.AdjMetered != 0
	if x.metered {
		x.weight *= meteredFactor
	}
	return x
}

func (r *Router) flagsOf(s int32) wire.LSAFlags {
	if s == 0 {
		return r.local.Flags
	}
	return r.db.entries[s].lsa.Flags()
}

// relink works out the edges of slot u anew, with their other directions, and tells the trees what changed.
func (r *Router) relink(u int32) {
	var list []wire.Adjacency
	if u == 0 {
		list = r.own.adjacent
	} else {
		v := r.db.entries[u].lsa
		list = r.spf.list[:0]
		for i := range v.NumNeighbours() {
			list = append(list, v.Neighbour(i))
		}
		r.spf.list = list
	}
	fresh := r.spf.fresh[:0]
	self := r.db.entries[u].id
	for _, a := range list {
		v, ok := r.db.byID[a.ID]
		if !ok || r.db.entries[v].lsa == nil {
			continue
		}
		b, ok := r.listed(v, self)
		if !ok {
			continue
		}
		fresh = append(fresh, join(v, a, b, (r.flagsOf(u)|r.flagsOf(v))&wire.FlagMetered != 0))
	}
	r.spf.fresh = fresh
	r.setEdges(u, fresh)
}

// unlink takes all edges of u away.
func (r *Router) unlink(u int32) { r.setEdges(u, nil) }

func (r *Router) setEdges(u int32, fresh []edge) {
	e := &r.db.entries[u]
	gained := false
	for _, old := range e.edges {
		if edgeTo(fresh, old.to) < 0 {
			other := &r.db.entries[old.to]
			if i := edgeTo(other.edges, u); i >= 0 {
				other.edges = slices.Delete(other.edges, i, i+1)
			}
			r.moved(u, old.to, old.weight, infinite)
			r.spf.levels = true
		}
	}
	for _, x := range fresh {
		was := edge{weight: infinite}
		if i := edgeTo(e.edges, x.to); i >= 0 {
			if was = e.edges[i]; was == x {
				continue
			}
		} else {
			gained = true
		}
		other := &r.db.entries[x.to]
		back := x
		back.to = u
		if i := edgeTo(other.edges, u); i >= 0 {
			other.edges[i] = back
		} else {
			other.edges = append(other.edges, back)
		}
		r.moved(u, x.to, was.weight, x.weight)
		if was.weight == x.weight { // the MTU or the flag of a link in use
			r.moved(u, x.to, x.weight, infinite)
		}
	}
	e.edges = append(e.edges[:0], fresh...)
	if gained {
		r.raise(u)
		for i := 0; i < len(r.db.entries[u].edges); i++ {
			r.raise(r.db.entries[u].edges[i].to)
		}
	}
	if r.spf.anyDirty() || r.spf.levels {
		r.wantSPF(false)
	}
}

func edgeTo(edges []edge, to int32) int {
	return slices.IndexFunc(edges, func(x edge) bool { return x.to == to })
}

// weigh brings the cost of going through a node up to date.
func (r *Router) weigh(s int32) {
	e := &r.db.entries[s]
	t := uint64(infinite)
	if e.price = r.local.Price; s != 0 {
		e.price = e.lsa.Price()
	}
	if r.flagsOf(s)&wire.FlagLeaf == 0 {
		t = uint64(e.price) * uint64(r.local.Lambda) / 1_000_000
	}
	if t != e.transit {
		e.transit = t
		for _, t := range r.spf.trees {
			t.dirty = true
		}
	}
}

// reweigh follows a change of lambda or of our own flags.
func (r *Router) reweigh() {
	for _, s := range r.db.order {
		if r.db.entries[s].lsa != nil || s == 0 {
			r.weigh(s)
		}
	}
	r.relink(0)
}

// moved tells the trees that an edge has changed its weight. Distances are a potential: as long as no edge is shorter
// than the difference of its ends (and no edge that a shortest path may use has changed) they all stand, whatever else
// moved. So most far-away noise is settled here with a few additions and no run.
func (r *Router) moved(u, v int32, before, after uint64) {
	via := func(t *tree, a, b int32, w uint64) uint64 {
		d := add(t.at(a), w)
		if a != t.root {
			d = add(d, r.db.entries[a].transit)
		}
		return d
	}
	matters := u == 0 || v == 0 // a neighbour: another choice of alternates at least
	r.spf.links = r.spf.links || matters
	for _, t := range r.spf.trees {
		if t.dirty {
			matters = true
			continue
		}
		du, dv := t.at(u), t.at(v)
		if before != infinite {
			there, back := via(t, u, v, before), via(t, v, u, before)
			t.dirty = there != infinite && there == dv || back != infinite && back == du
		}
		if after != infinite {
			there, back := via(t, u, v, after), via(t, v, u, after)
			t.dirty = t.dirty || there != infinite && there <= dv || back != infinite && back <= du
		}
		matters = matters || t.dirty
	}
	if !matters {
		r.stats.SPFSkipped++
	}
}

// tree holds the distances from one root.
type tree struct {
	root  int32
	dist  []uint64
	dirty bool
}

func (t *tree) at(s int32) uint64 {
	if int(s) < len(t.dist) {
		return t.dist[s]
	}
	return infinite
}

// hop is what the own tree knows of a node beside its distance. MTU, price, length and metered flag are the worst over all
// paths of the same metric, since the nodes on the way choose among those.
type pathInfo struct {
	parent  int32 // one of the best, for Path
	first   int32 // slot of the neighbour that traffic goes to
	mtu     uint16
	hops    uint16
	metered bool
	price   uint64
}

// spf runs and schedules the shortest path computation.
type spf struct {
	trees  []*tree // [0] is this node's own, the others those of neighbours
	paths  []pathInfo
	heap   []heapItem
	list   []wire.Adjacency
	fresh  []edge
	links  bool // our own links have changed: the table must be made anew
	levels bool // links have gone: relevel

	at   time.Duration // next run
	late time.Duration // next table without a run
	alts time.Duration // when the alternates are due
	last time.Duration // last run
	hold time.Duration // least time between runs
}

func (s *spf) init() {
	s.trees = []*tree{{dirty: true}}
	s.at, s.late, s.alts = never, never, never
	s.last = -spfMost
	s.hold = spfSecond
}

func (s *spf) due() time.Duration { return min(s.at, s.late, s.alts) }

func (s *spf) anyDirty() bool {
	return s.links || slices.ContainsFunc(s.trees, func(t *tree) bool { return t.dirty })
}

// stale notes news that moves no path: the table follows at leisure.
func (s *spf) stale(now time.Duration) { s.late = min(s.late, now+tableLate) }

func (s *spf) forget(slot int32) {
	s.trees = slices.DeleteFunc(s.trees, func(t *tree) bool { return t.root == slot && slot != 0 })
	for _, t := range s.trees {
		if int(slot) < len(t.dist) {
			t.dist[slot] = infinite
		}
	}
}

func (s *spf) firstOf(slot int32) int32 {
	if int(slot) < len(s.paths) && s.trees[0].at(slot) != infinite {
		return s.paths[slot].first
	}
	return -1
}

// wantSPF schedules a run, in the manner of RFC 8405: at once after quiet, then held down for longer and longer, up to a
// time in proportion to the work. What concerns our own links does not wait for the long hold-down.
func (r *Router) wantSPF(urgent bool) {
	s := &r.spf
	if r.now-s.last > spfCalm {
		s.hold = spfSecond
	}
	at := max(r.now+spfFirst, s.last+s.hold)
	if urgent {
		at = max(r.now, s.last+spfSecond)
	}
	s.at = min(s.at, at)
}

// runSPF brings distances, alternates and the table up to date.
func (r *Router) runSPF() {
	s := &r.spf
	if s.levels {
		r.relevel()
	}
	quiet := r.now-s.last > spfCalm
	scheduled := r.now >= s.at
	altsDue := r.now >= s.alts
	lateDue := r.now >= s.late
	s.at = never
	news := s.trees[0].dirty || s.links || lateDue
	if s.trees[0].dirty {
		r.stats.SPFRuns++
		r.dijkstra(s.trees[0], true)
	}
	// Alternates take a tree for each neighbour. In the turmoil of a start or a large failure they wait until it calms.
	if quiet || altsDue {
		s.alts, news = never, true
		r.alternateTrees()
	} else if s.alts == never && (news && !lateDue || s.anyDirty()) {
		s.alts = r.now + 2*s.hold
	}
	s.links = false
	if scheduled {
		long := min(max(spfPerNode*time.Duration(len(r.db.order)*(1+min(len(r.links), r.lim.Alternates))), spfLeast), spfMost)
		s.last, s.hold = r.now, min(2*s.hold, long)
	}
	if news {
		s.late = never
		r.makeTable()
	}
}

// alternateTrees makes the trees of the neighbours up to date.
func (r *Router) alternateTrees() {
	s := &r.spf
	near := slices.Clone(r.db.entries[0].edges)
	slices.SortFunc(near, func(a, b edge) int {
		return cmp.Or(cmp.Compare(a.weight, b.weight), cmp.Compare(r.db.entries[a.to].id, r.db.entries[b.to].id))
	})
	near = near[:min(len(near), r.lim.Alternates)]
	trees := s.trees[:1:1]
	for _, x := range near {
		i := slices.IndexFunc(s.trees[1:], func(t *tree) bool { return t.root == x.to })
		t := &tree{root: x.to, dirty: true}
		if i >= 0 {
			t = s.trees[1+i]
		}
		if t.dirty {
			r.stats.SPFRuns++
			r.dijkstra(t, false)
		}
		trees = append(trees, t)
	}
	s.trees = trees
}

type heapItem struct {
	dist uint64
	slot int32
}

// dijkstra computes the distances from t's root; for our own tree the paths as well. Leaves are reached, never crossed.
func (r *Router) dijkstra(t *tree, own bool) {
	n := len(r.db.entries)
	t.dirty = false
	t.dist = slices.Grow(t.dist[:0], n)[:n]
	for i := range t.dist {
		t.dist[i] = infinite
	}
	dist, entries := t.dist, r.db.entries
	paths := r.spf.paths
	if own {
		paths = slices.Grow(paths[:0], n)[:n]
		r.spf.paths = paths
		paths[t.root] = pathInfo{parent: -1, first: -1, mtu: math.MaxUint16}
	}
	dist[t.root] = 0
	h := append(r.spf.heap[:0], heapItem{0, t.root})
	for len(h) > 0 {
		top := h[0]
		h = heapPop(h)
		u := top.slot
		if top.dist != dist[u] { // an older, longer way
			continue
		}
		base := top.dist
		if u != t.root {
			base = add(base, entries[u].transit)
		}
		if base == infinite {
			continue
		}
		for _, x := range entries[u].edges {
			d := add(base, x.weight)
			if d > dist[x.to] || d == infinite {
				continue
			}
			if own {
				p := pathInfo{parent: u, first: x.to, mtu: x.mtu, metered: x.metered, hops: 1}
				if u != t.root {
					q := &paths[u]
					p.first, p.mtu = q.first, min(q.mtu, x.mtu)
					p.metered = p.metered || q.metered
					p.hops = q.hops + 1
					p.price = q.price + uint64(entries[u].price)
				}
				if q := &paths[x.to]; d == dist[x.to] { // another path as good
					q.mtu, q.price = min(q.mtu, p.mtu), max(q.price, p.price)
					q.hops, q.metered = max(q.hops, p.hops), q.metered || p.metered
					if entries[p.first].id < entries[q.first].id { // any order will do, as long as it is always the same
						q.first, q.parent = p.first, p.parent
					}
				} else {
					*q = p
				}
			}
			if d < dist[x.to] {
				dist[x.to] = d
				h = heapPush(h, heapItem{d, x.to})
			}
		}
	}
	r.spf.heap = h
}

// A heap of four children a node: fewer cache lines than the usual two, and no interface calls.
func heapPush(h []heapItem, x heapItem) []heapItem {
	h = append(h, x)
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 4
		if h[up].dist <= x.dist {
			break
		}
		h[i] = h[up]
		i = up
	}
	h[i] = x
	return h
}

func heapPop(h []heapItem) []heapItem {
	n := len(h) - 1
	x := h[n]
	h = h[:n]
	if n == 0 {
		return h
	}
	i := 0
	for {
		c := 4*i + 1
		if c >= n {
			break
		}
		best := c
		for j := c + 1; j < min(c+4, n); j++ {
			if h[j].dist < h[best].dist {
				best = j
			}
		}
		if h[best].dist >= x.dist {
			break
		}
		h[i] = h[best]
		i = best
	}
	h[i] = x
	return h
}

// candidate is a neighbour that alternates may go to.
type candidate struct {
	t       *tree
	link    *link
	weight  uint64 // of the edge to it
	transit uint64
}

// candidates lists the neighbours whose trees are up to date.
func (r *Router) candidates() (list []candidate) {
	for _, t := range r.spf.trees[1:] {
		i := edgeTo(r.db.entries[0].edges, t.root)
		l := r.bestLink(t.root, nil)
		if !t.dirty && i >= 0 && l != nil {
			list = append(list, candidate{t, l, r.db.entries[0].edges[i].weight, r.db.entries[t.root].transit})
		}
	}
	return list
}

// alternate chooses the link that traffic for slot d takes when the primary neighbour is gone (RFC 5286), nil for none.
// Inequality 1 says that the alternate's own shortest paths do not come back through us; inequality 3, preferred, that
// they avoid the primary neighbour as well, so that its death is covered. second is another link to the primary
// neighbour, gap what it costs more.
func (r *Router) alternate(d int32, list []candidate, second *link, gap uint64) *link {
	self, own := r.db.entries[0].transit, r.spf.trees[0].at(d)
	e := r.spf.paths[d].first
	viaE := uint64(0) // beyond which node protection is void; zero: not known
	if i := slices.IndexFunc(list, func(c candidate) bool { return c.t.root == e }); i >= 0 {
		viaE = add(list[i].t.at(d), list[i].transit)
	}
	var best *link
	bestNode, bestCost := false, uint64(infinite)
	take := func(l *link, node bool, cost uint64) {
		if best == nil || node && !bestNode || node == bestNode && cost < bestCost {
			best, bestNode, bestCost = l, node, cost
		}
	}
	for _, c := range list {
		n, there := c.t.root, c.t.at(d)
		if n == e || there == infinite {
			continue
		}
		beyond := there
		if n != d {
			beyond = add(beyond, c.transit) // infinite for a leaf: it carries for nobody
		}
		if beyond == infinite || there >= add(add(c.t.at(0), self), own) {
			continue
		}
		// Nothing protects from the death of the destination itself, so every alternate is as good there.
		take(c.link, d == e || there < add(c.t.at(e), viaE), add(c.weight, beyond))
	}
	if second != nil {
		take(second, d == e, add(own, gap))
	}
	return best
}

// bestLink returns the best usable link to the neighbour in slot s, other than one.
func (r *Router) bestLink(s int32, other *link) (best *link) {
	id := r.db.entries[s].id
	for _, l := range r.links {
		if l.peer == id && l != other && l.ready && (best == nil || l.weight() < best.weight()) {
			best = l
		}
	}
	return best
}
