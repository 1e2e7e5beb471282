package link

import (
	"testing"

	"weft/forward"
)

// A neighbour that sends with another's address roams there as far as its own data goes, and gets nothing of the other's.
func TestRoamingCapturesNobody(t *testing.T) {
	x := newMux()
	at := func(port uint16) forward.Endpoint { return forward.Endpoint{Port: port} }
	a, b := x.hold(newPath(at(1), nil)), x.hold(newPath(at(2), nil))
	x.move(a, at(2), nil)
	if x.paths[at(2)] != b || a.to.Load().ep != at(2) {
		t.Fatal("a took b's place")
	}
	x.move(a, at(3), nil)
	if x.paths[at(3)] != a || x.paths[at(2)] != b {
		t.Fatal("a did not move on")
	}
	x.release(a)
	x.release(b)
	if x.count() != 0 {
		t.Errorf("%d paths left", x.count())
	}
}
