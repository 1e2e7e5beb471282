package route

import (
	"testing"
	"time"
)

func TestTwoNodes(t *testing.T) {
	w := newWorld(t, 1)
	a, b := w.addNode(Local{Name: "a"}), w.addNode(Local{Name: "b"})
	w.addWire(a, b, 100)
	w.mustConverge(50 * time.Millisecond)
}

// TestMesh brings up sixty nodes at once, and wants alternates for most routes.
func TestMesh(t *testing.T) {
	w := newWorld(t, 2)
	w.randomMesh(60, 120, func() uint32 { return 1 + w.rng.Uint32N(1000) })
	w.mustConverge(3 * time.Second)
	w.run(10 * time.Second)
	if err := w.checkAlternates(); err != nil {
		t.Fatal(err)
	}
	if err := w.checkStructure(); err != nil {
		t.Fatal(err)
	}
	with, without := w.alternates[0], w.alternates[1]
	t.Logf("%d routes have an alternate, %d have none", with, without)
	if with < 4*without {
		t.Errorf("only %d routes of %d have an alternate", with, with+without)
	}
}

// TestLocalLimits: what SetLocal takes fits an LSA.
func TestLocalLimits(t *testing.T) {
	w := newWorld(t, 3)
	w.addNode(Local{})
	r := w.nodes[0].r
	for _, bad := range []Local{{Name: string(make([]byte, 64))}, {Flags: 0x8000}, {Gateway: make([]byte, 510)}, {Position: make([]byte, 300), Gateway: make([]byte, 300)}, {Gateway: make([]byte, 500), Yggdrasil: make([]byte, 2)}} {
		if err := r.SetLocal(w.clock(0), bad); err == nil {
			t.Errorf("SetLocal takes %d %d %d %x", len(bad.Name), len(bad.Position), len(bad.Gateway), bad.Flags)
		}
	}
	if err := r.SetLocal(w.clock(0), Local{Name: string(make([]byte, 63)), Position: make([]byte, 8), Gateway: make([]byte, 512-9-63-8)}); err != nil {
		t.Error(err)
	}
	w.run(time.Minute)
	if v, ok := r.Table().Node(r.Self()); !ok || len(v.Extension(3)) != 432 {
		t.Error("the gateway offer is not in the LSA")
	}
}
