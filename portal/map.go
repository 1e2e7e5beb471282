package portal

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"weft/api"
)

// The picture's size, and the room that labels need at its edges.
const (
	width, height = 720, 440
	margin        = 46
)

// picture is the network as a drawing: this node in the middle, every node as
// far from it as it is hops away, the branches of a tree of shortest hops side
// by side. The same network gives the same picture, so that it does not jump.
type picture struct {
	Width, Height int
	Nodes         []dot
	Lines         []line
	More          int // nodes that are not drawn
}

type dot struct {
	X, Y         float64
	Class, Label string // self, near or far; what is written below
	Title        string
}

type line struct {
	X1, Y1, X2, Y2 float64
	Class          string // tree or other
}

// draw lays out what can be reached from self by links that both ends list.
func draw(self, name string, lsdb []api.LSDBEntry) picture {
	pic := picture{Width: width, Height: height}
	nodes := make(map[string]*api.LSDBEntry, len(lsdb))
	for i := range lsdb {
		nodes[lsdb[i].ID] = &lsdb[i]
	}
	// Breadth first: who is how far, and through whom.
	type place struct {
		id       string
		hops     int
		children []*place
		leaves   int
		angle    float64
	}
	root := &place{id: self}
	at := map[string]*place{self: root}
	order := []*place{root}
	for i := 0; i < len(order); i++ {
		p := order[i]
		n := nodes[p.id]
		if n == nil {
			continue
		}
		var next []string
		for _, l := range n.Neighbours {
			if l.TwoWay && nodes[l.ID] != nil {
				next = append(next, l.ID)
			}
		}
		slices.Sort(next)
		for _, id := range next {
			if at[id] != nil {
				continue
			}
			if len(order) == maxNodes {
				break
			}
			q := &place{id: id, hops: p.hops + 1}
			at[id] = q
			p.children = append(p.children, q)
			order = append(order, q)
		}
	}
	pic.More = max(len(lsdb)-len(order), 0)

	// Every branch gets an angle as wide as its leaves are many.
	for _, p := range slices.Backward(order) {
		for _, c := range p.children {
			p.leaves += c.leaves
		}
		p.leaves = max(p.leaves, 1)
	}
	var fan func(p *place, from, to float64)
	fan = func(p *place, from, to float64) {
		p.angle = (from + to) / 2
		for _, c := range p.children {
			w := (to - from) * float64(c.leaves) / float64(p.leaves)
			fan(c, from, from+w)
			from += w
		}
	}
	fan(root, -math.Pi, math.Pi)
	far := max(order[len(order)-1].hops, 1)

	position := func(p *place) (x, y float64) {
		r := float64(p.hops) / float64(far)
		return width/2 + r*(width/2-margin)*math.Cos(p.angle), height/2 + r*(height/2-margin)*math.Sin(p.angle)
	}
	for _, p := range order {
		d := dot{Class: "far", Label: short(p.id), Title: p.id}
		if n := nodes[p.id]; n != nil {
			if d.Label = cut(n.Name); p.hops == 1 {
				d.Label = cmp.Or(d.Label, short(p.id))
			}
			d.Title = fmt.Sprintf("%s, %s, %d hops", who(n.Name, n.ID), n.Address, p.hops)
		}
		switch p.hops {
		case 0:
			d.Class = "self"
			d.Label = cmp.Or(cut(name), "this node")
		case 1:
			d.Class = "near"
		}
		d.X, d.Y = position(p)
		if len(order) > 60 && p.hops > 1 {
			d.Label = "" // no room for words
		}
		pic.Nodes = append(pic.Nodes, d)
		n := nodes[p.id]
		if n == nil {
			continue
		}
		for _, l := range n.Neighbours {
			q := at[l.ID]
			if q == nil || !l.TwoWay || l.ID < p.id || nodes[l.ID] == nil { // each link once
				continue
			}
			ln := line{Class: "other"}
			if slices.Contains(p.children, q) || slices.Contains(q.children, p) {
				ln.Class = "tree"
			}
			ln.X1, ln.Y1 = position(p)
			ln.X2, ln.Y2 = position(q)
			pic.Lines = append(pic.Lines, ln)
		}
	}
	return pic
}

func short(id string) string { return id[:min(len(id), 4)] }

// cut shortens a name to what fits under a dot.
func cut(name string) string {
	if r := []rune(name); len(r) > 12 {
		return string(r[:11]) + "…"
	}
	return name
}
