package manifest

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// World is a manifest with its topology expanded, its defaults filled in and its names checked.
type World struct {
	Nodes  []Node
	Links  []WorldLink
	Events []Event // by time
}

// WorldLink is a link with the indexes of its ends in World.Nodes.
type WorldLink struct {
	Link
	From, To int
	LAN      string // the LAN that this is a pair of; empty for a cable
}

// Bounds of a world, so that a typing error does not eat the machine.
const (
	MaxNodes = 20_000
	MaxLinks = 200_000
)

// World expands the manifest. The same manifest always gives the same world.
func (m *Manifest) World() (*World, error) {
	w := &World{}
	var links []Link
	if m.Topology != nil {
		var err error
		if w.Nodes, links, err = m.Topology.generate(m.Seed); err != nil {
			return nil, err
		}
	}
	index := map[string]int{}
	for i, n := range w.Nodes {
		index[n.Name] = i
	}
	for _, n := range m.Nodes { // a node of the file replaces a generated one of the same name
		if n.Name == "" || n.Name == "*" {
			return nil, errors.New("a [[node]] needs a name other than *")
		}
		switch n.Liar {
		case "", "claims", "cheap", "forger", "replayer", "sybil":
		default:
			return nil, fmt.Errorf("node %s: unknown kind of liar %q: use claims, cheap, forger, replayer or sybil", n.Name, n.Liar)
		}
		if i, ok := index[n.Name]; ok {
			if m.Topology == nil || i >= m.Topology.count() {
				return nil, fmt.Errorf("node %s is there twice", n.Name)
			}
			if n.Start.Duration == 0 {
				n.Start = w.Nodes[i].Start
			}
			w.Nodes[i] = n
			continue
		}
		index[n.Name] = len(w.Nodes)
		w.Nodes = append(w.Nodes, n)
	}
	if len(w.Nodes) == 0 {
		return nil, errors.New("no nodes: add a [topology] or [[node]] entries")
	}
	generated := len(links)
	at := map[[2]int]int{}
	for i, l := range append(links, m.Links...) {
		a, okA := index[l.A]
		b, okB := index[l.B]
		if !okA || !okB {
			return nil, fmt.Errorf("link %s–%s: no node %q", l.A, l.B, pick(okA, l.B, l.A))
		}
		if a == b {
			return nil, fmt.Errorf("link %s–%s joins a node to itself", l.A, l.B)
		}
		l.Shape = l.Shape.or(m.Defaults)
		if err := l.check(); err != nil {
			return nil, fmt.Errorf("link %s–%s: %w", l.A, l.B, err)
		}
		pair := [2]int{min(a, b), max(a, b)}
		if j, ok := at[pair]; ok && i >= generated && j < generated { // the file replaces a generated link; it may add parallel ones of its own
			w.Links[j] = WorldLink{Link: l, From: a, To: b}
			at[pair] = generated
			continue
		}
		if _, ok := at[pair]; !ok {
			at[pair] = i
		}
		w.Links = append(w.Links, WorldLink{Link: l, From: a, To: b})
	}
	if err := w.addLANs(m, index); err != nil {
		return nil, err
	}
	if len(w.Nodes) > MaxNodes || len(w.Links) > MaxLinks {
		return nil, fmt.Errorf("%d nodes and %d links: at most %d and %d", len(w.Nodes), len(w.Links), MaxNodes, MaxLinks)
	}
	node := func(what, name string) error {
		if _, ok := index[name]; !ok {
			return fmt.Errorf("%s: no node %q", what, name)
		}
		return nil
	}
	for i, e := range m.Events {
		what := fmt.Sprintf("event %d (%s at %s)", i+1, e.Do, e.At)
		needNode, needLink := false, false
		switch e.Do {
		case Kill, Restart:
			needNode = true
		case LinkDown, LinkUp:
			needLink = true
		case Cost:
			needLink = true
			if e.Cost == 0 {
				return nil, fmt.Errorf("%s: say which cost, at least 1", what)
			}
		case Silent:
			needNode = e.Link == [2]string{}
			needLink = !needNode
		case Heal:
			needNode, needLink = e.Node != "", e.Link != [2]string{}
		case Partition:
			if len(e.Groups) == 0 {
				return nil, fmt.Errorf("%s: name at least one group of nodes", what)
			}
			for _, g := range e.Groups {
				for _, n := range g {
					if err := node(what, n); err != nil {
						return nil, err
					}
				}
			}
		default:
			return nil, fmt.Errorf("%s: unknown action; use kill, restart, link-down, link-up, silent, partition, heal or cost", what)
		}
		if needNode {
			if err := node(what, e.Node); err != nil {
				return nil, err
			}
		}
		if needLink && len(w.Between(e.Link)) == 0 {
			return nil, fmt.Errorf("%s: no link %s–%s", what, e.Link[0], e.Link[1])
		}
	}
	for i, e := range m.Expect {
		what := fmt.Sprintf("expectation %d", i+1)
		for _, n := range []string{e.From, e.To} {
			if n != "" && n != "*" {
				if err := node(what, n); err != nil {
					return nil, err
				}
			}
		}
		if e.Within.Duration == 0 && e.Gap.Duration == 0 && e.Converged.Duration == 0 && e.Stretch == 0 && e.Idle == 0 && !e.Unreached {
			return nil, fmt.Errorf("%s demands nothing: set within, gap, converged, stretch, idle or unreached", what)
		}
		if e.Until.Duration != 0 && e.Until.Duration < e.After.Duration {
			return nil, fmt.Errorf("%s ends before it starts", what)
		}
	}
	w.Events = slices.Clone(m.Events)
	slices.SortStableFunc(w.Events, func(a, b Event) int { return cmp.Compare(a.At.Duration, b.At.Duration) })
	return w, nil
}

func (s Shape) check() error {
	for what, p := range map[string]float64{"loss": s.Loss, "reorder": s.Reorder, "duplicate": s.Duplicate} {
		if p < 0 || p >= 1 {
			return fmt.Errorf("%s %v is not in 0…1", what, p)
		}
	}
	return nil
}

// addLANs adds a link for every two nodes of each LAN.
func (w *World) addLANs(m *Manifest, index map[string]int) error {
	names := map[string]bool{}
	for _, lan := range m.LANs {
		if lan.Name == "" || names[lan.Name] {
			return fmt.Errorf("a [[lan]] needs a name of its own, not %q", lan.Name)
		}
		names[lan.Name] = true
		shape := lan.Shape.or(m.Defaults)
		if err := shape.check(); err != nil {
			return fmt.Errorf("lan %s: %w", lan.Name, err)
		}
		if len(lan.Nodes) < 2 || len(lan.Nodes)*len(lan.Nodes)/2 > MaxLinks {
			return fmt.Errorf("lan %s: %d nodes", lan.Name, len(lan.Nodes))
		}
		on := map[string]bool{}
		for i, a := range lan.Nodes {
			if _, ok := index[a]; !ok || on[a] {
				return fmt.Errorf("lan %s: no node %q, or it is there twice", lan.Name, a)
			}
			on[a] = true
			for _, b := range lan.Nodes[:i] {
				w.Links = append(w.Links, WorldLink{Link: Link{A: b, B: a, Shape: shape}, From: index[b], To: index[a], LAN: lan.Name})
			}
		}
	}
	return nil
}

// Between returns the indexes in Links of the links between two nodes.
func (w *World) Between(pair [2]string) (at []int) {
	for i, l := range w.Links {
		if l.A == pair[0] && l.B == pair[1] || l.A == pair[1] && l.B == pair[0] {
			at = append(at, i)
		}
	}
	return at
}

// Node returns the index of a node by name, or -1.
func (w *World) Node(name string) int {
	return slices.IndexFunc(w.Nodes, func(n Node) bool { return n.Name == name })
}

func pick(first bool, a, b string) string {
	if first {
		return a
	}
	return b
}

func (s Shape) or(d Shape) Shape {
	s.Delay.Duration = cmp.Or(s.Delay.Duration, d.Delay.Duration)
	s.Jitter.Duration = cmp.Or(s.Jitter.Duration, d.Jitter.Duration)
	s.Rate = cmp.Or(s.Rate, d.Rate)
	s.Loss = cmp.Or(s.Loss, d.Loss)
	s.Cost = cmp.Or(s.Cost, d.Cost)
	s.Reorder = cmp.Or(s.Reorder, d.Reorder)
	s.Duplicate = cmp.Or(s.Duplicate, d.Duplicate)
	s.MTU = cmp.Or(s.MTU, d.MTU)
	return s
}

func (t *Topology) count() int {
	if t.Kind == "diamond" {
		return t.N + 2
	}
	return t.N
}

func (t *Topology) generate(seed uint64) ([]Node, []Link, error) {
	least := map[string]int{"line": 1, "ring": 3, "grid": 1, "diamond": 1, "geometric": 2}[t.Kind]
	if least == 0 {
		return nil, nil, fmt.Errorf("unknown topology %q: use line, ring, grid, diamond or geometric", t.Kind)
	}
	if t.N < least || t.N > MaxNodes {
		return nil, nil, fmt.Errorf("topology %s takes n from %d to %d, not %d", t.Kind, least, MaxNodes, t.N)
	}
	if t.Degree != 0 && !(t.Degree >= 2 && t.Degree <= 64) {
		return nil, nil, fmt.Errorf("degree %v: use 2 to 64", t.Degree)
	}
	if t.Width < 0 {
		return nil, nil, fmt.Errorf("width %d is negative", t.Width)
	}
	rng := rand.New(rand.NewPCG(seed, 0x746f706f))
	n := t.count()
	nodes := make([]Node, n)
	for i := range nodes {
		nodes[i].Name = name(i)
		if t.Spread.Duration > 0 {
			nodes[i].Start.Duration = time.Duration(rng.Int64N(int64(t.Spread.Duration))).Round(time.Millisecond)
		}
	}
	var links []Link
	join := func(a, b int) { links = append(links, Link{A: name(a), B: name(b)}) }
	switch t.Kind {
	case "line":
		for i := 1; i < n; i++ {
			join(i-1, i)
		}
	case "ring":
		for i := range n {
			join(i, (i+1)%n)
		}
	case "grid":
		width := cmp.Or(t.Width, int(math.Round(math.Sqrt(float64(n)))))
		for i := range n {
			if (i+1)%width != 0 && i+1 < n {
				join(i, i+1)
			}
			if i+width < n {
				join(i, i+width)
			}
		}
	case "diamond":
		for i := 1; i <= t.N; i++ {
			join(0, i)
			join(i, n-1)
		}
	case "geometric":
		geometric(rng, n, cmp.Or(t.Degree, 6), join)
	}
	return nodes, links, nil
}

// geometric puts n nodes at random on a unit square and joins those near each other, as houses with radios are. Parts
// that come out separate are joined by their shortest gap, as neighbours would see to.
func geometric(rng *rand.Rand, n int, degree float64, join func(a, b int)) {
	type point struct{ x, y float64 }
	p := make([]point, n)
	for i := range p {
		p[i] = point{rng.Float64(), rng.Float64()}
	}
	dist2 := func(a, b int) float64 {
		dx, dy := p[a].x-p[b].x, p[a].y-p[b].y
		return dx*dx + dy*dy
	}
	part := make([]int, n) // union-find
	for i := range part {
		part[i] = i
	}
	root := func(i int) int {
		for part[i] != i {
			part[i] = part[part[i]]
			i = part[i]
		}
		return i
	}
	r2 := degree / (math.Pi * float64(n-1))
	for a := range n {
		for b := a + 1; b < n; b++ {
			if dist2(a, b) < r2 {
				join(a, b)
				part[root(a)] = root(b)
			}
		}
	}
	for {
		var home, away []int
		for i := range n {
			if root(i) == root(0) {
				home = append(home, i)
			} else {
				away = append(away, i)
			}
		}
		if len(away) == 0 {
			return
		}
		bestA, bestB, best := 0, 0, math.Inf(1)
		for _, a := range home {
			for _, b := range away {
				if d := dist2(a, b); d < best {
					bestA, bestB, best = a, b, d
				}
			}
		}
		join(bestA, bestB)
		part[root(bestB)] = root(bestA)
	}
}

func name(i int) string { return fmt.Sprintf("n%d", i) }
