package route

import (
	"testing"
	"time"
)

func TestTwoNodes(t *testing.T) {
	w := newWorld(t, 1)
	a, b := w.addNode(Local{Name: "a"}), w.addNode(Local{Name: "b"})
	w.addWire(a, b, 100)
	w.mustConverge(100 * time.Millisecond)
}

func TestMesh(t *testing.T) {
	w := newWorld(t, 2)
	w.randomMesh(60, 80, func() uint32 { return 1 + w.rng.Uint32N(1000) })
	w.mustConverge(5 * time.Second)
	for i := range 3 {
		t.Logf("%+v", w.nodes[i].r.Stats())
	}
}
