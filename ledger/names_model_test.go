package ledger

import (
	"testing"

	"pgregory.net/rapid"

	"weft/ledger/tx"
)

// A name by the model: whose, since when it must be renewed, and to whom it is offered.
type modelName struct {
	owner, node, offer int
	until              int64
}

// Names against plain maps: four labels, two of which look alike.
func TestNamesAgainstModel(t *testing.T) {
	alike := map[string]string{"corner": "comer", "comer": "corner"}
	rapid.Check(t, func(rt *rapid.T) {
		w := newGov(t, 3, "name.each=2", "tx.each=10000")
		names := map[string]*modelName{}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			now := w.now + rapid.SampledFrom([]int64{1, day, 200 * day, 365 * day}).Draw(rt, "seconds")
			from, label := rapid.IntRange(1, 3).Draw(rt, "from"), rapid.SampledFrom([]string{"corner", "comer", "bakery", "well"}).Draw(rt, "label")
			node, to := rapid.IntRange(20, 21).Draw(rt, "node"), rapid.IntRange(0, 4).Draw(rt, "to")
			for l, n := range names {
				if now >= n.until+30*86400 {
					delete(names, l)
				}
			}
			n, mine := names[label], 0
			for _, o := range names {
				if o.owner == from {
					mine++
				}
			}
			own := n != nil && n.owner == from
			var body tx.Body
			var ok bool
			switch rapid.IntRange(0, 5).Draw(rt, "kind") {
			case 0, 1:
				body = &tx.NameRegister{Label: label, Node: govKey(node)}
				if ok = mine < 2 && names[alike[label]] == nil && (n == nil || !own && n.offer == from); ok {
					names[label] = &modelName{owner: from, node: node, until: now + 365*86400}
				}
			case 2:
				body = &tx.NameRenew{Label: label}
				if ok = own; ok {
					n.until = now + 365*86400
				}
			case 3:
				body = &tx.NameSet{Label: label, Node: govKey(node)}
				if ok = own; ok {
					n.node = node
				}
			case 4:
				body = &tx.NameOffer{Label: label, To: uint64(to)}
				if ok = own && to <= 3 && to != from; ok {
					n.offer = to
				}
			case 5:
				body = &tx.NameRelease{Label: label}
				if ok = own; ok {
					delete(names, label)
				}
			}
			w.now = now
			if r := w.block(0, w.sign(from, body)).Results[0]; ok != (r.Code == OK) {
				rt.Fatalf("%s %s by %d: the model says %v, the ledger %+v", tx.Name(body.Kind()), label, from, ok, r)
			}
			if got := w.m.Names(); len(got) != len(names) {
				rt.Fatalf("%d names, and by the model %d", len(got), len(names))
			}
			for l, n := range names {
				got, _ := w.m.Name(l)
				if got.Owner != uint64(n.owner) || got.Node != govKey(n.node) || got.Offer != uint64(n.offer) || got.Until != n.until {
					rt.Fatalf("%s is %+v, and by the model %+v", l, got, *n)
				}
				if _, leads := w.m.Resolve(l, now); leads != (now < n.until) {
					rt.Fatalf("%s leads somewhere: %v", l, leads)
				}
			}
		}
	})
}
