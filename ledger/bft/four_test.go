//go:build engine

package bft

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/ledger/bft/bftclient"
)

// Four validators: one dies and nothing stops; a second dies and all stops, and says so; one comes back and it goes on, with what
// was sent meanwhile. Then they are cut in two halves, and healed.
func TestFour(t *testing.T) {
	w := newNetwork(t, 4, 4, 3, 0, nil)
	w.start()
	w.meet(3)
	r := w.peers[0].pay(0, 1, 1)
	w.same(r.Height)

	w.stop(3)
	r = w.peers[0].pay(0, 1, 2)
	w.stop(2)
	eventually(t, 10*time.Second, "the halt to be told", func() error {
		if s := w.peers[0].status(); !strings.HasPrefix(s.Halted, "2 of 4 validators reachable, and more than two thirds are needed for a block; the last came ") {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	waits := make(chan bftclient.Result, 1)
	go func() {
		r, err := w.peers[1].client.Finalise(context.Background(), transfer(t, 0, 1, 3))
		if err != nil {
			t.Error(err)
		}
		waits <- r
	}()
	select {
	case r := <-waits:
		t.Fatalf("final with two of four: %+v", r)
	case <-time.After(3 * time.Second):
	}
	w.again(2)
	select {
	case r = <-waits:
		if r.Code != 0 || r.Height == 0 {
			t.Fatalf("%+v", r)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("three of four do not go on: %+v", w.peers[0].status())
	}
	if s := w.peers[0].status(); s.Halted != "" {
		t.Errorf("halted still: %q", s.Halted)
	}
	w.again(3)
	w.peers[3].height(r.Height) // it catches up
	w.same(r.Height)
	w.meet(3)

	w.split(map[int]int{0: 1, 1: 1, 2: 2, 3: 2})
	eventually(t, 10*time.Second, "both halves to halt", func() error {
		for _, p := range w.peers {
			if s := p.status(); s.Halted == "" {
				return fmt.Errorf("%v", s.Peers)
			}
		}
		return nil
	})
	go func() {
		r, err := w.peers[3].client.Finalise(context.Background(), transfer(t, 0, 1, 4))
		if err != nil {
			t.Error(err)
		}
		waits <- r
	}()
	time.Sleep(time.Second)
	w.split(nil)
	select {
	case r = <-waits:
	case <-time.After(40 * time.Second):
		t.Fatalf("healed, but: %+v", w.peers[0].status())
	}
	w.same(r.Height)
	if n := nonceOf(t, w.peers[0].client, 0); n != 4 {
		t.Errorf("%d transactions have been applied, want 4", n)
	}
}

// A partition in which packets vanish, and no connection is closed: both halves notice before Comet does (after 105 s) and say who is
// not heard, and when the way is there again what was sent meanwhile is executed once.
func TestVanish(t *testing.T) {
	w := newNetwork(t, 4, 4, 3, 0, nil)
	w.start()
	w.meet(3)
	w.peers[0].pay(0, 1, 1)

	cut := time.Now()
	w.vanish(map[int]int{0: 1, 1: 1, 2: 2, 3: 2})
	waits := make(chan bftclient.Result, 2)
	for _, at := range []int{0, 3} { // the same transaction on both sides
		go func() {
			r, err := w.peers[at].client.Finalise(context.Background(), transfer(t, 0, 1, 2))
			if err != nil {
				t.Error(err)
			}
			waits <- r
		}()
	}
	for i, p := range w.peers {
		eventually(t, 60*time.Second, "the halt to be told", func() error {
			s := p.status()
			if !strings.HasPrefix(s.Halted, "2 of 4 validators reachable") || strings.Count(s.Halted, "'s for ") != 2 {
				return fmt.Errorf("validator %d says %q", i, s.Halted)
			}
			for _, v := range s.Validators {
				if !v.Self && v.Heard < cut.Unix()-int64(beatPeriod/time.Second)-1 {
					return fmt.Errorf("validator %d says of another: %+v, cut at %d", i, v, cut.Unix())
				}
			}
			return nil
		})
	}
	t.Logf("told after %v: %s", time.Since(cut).Round(time.Second), w.peers[0].status().Halted)
	time.Sleep(max(0, patience+beatPeriod-time.Since(cut))) // the connections have been let go of
	w.vanish(nil)
	healed := time.Now()
	var first bftclient.Result
	for range 2 {
		select {
		case r := <-waits:
			if r.Code != 0 || r.Height == 0 || first.Height != 0 && r.Height != first.Height {
				t.Errorf("%+v, %+v", r, first)
			}
			first = r
		case <-time.After(60 * time.Second):
			t.Fatalf("healed, but: %+v", w.peers[0].status())
		}
	}
	t.Logf("final %v after the way was there again", time.Since(healed).Round(time.Millisecond))
	w.same(first.Height)
	if n := nonceOf(t, w.peers[0].client, 0); n != 2 {
		t.Errorf("%d transactions have been applied, want 2", n)
	}
	w.meet(3)
}

// A validator that has lost all but its key begins from another's snapshot, and takes part again.
func TestStateSync(t *testing.T) {
	w := newNetwork(t, 4, 4, 3, 0, func(_ int, c *Config) { c.Snapshots = 5; c.Versions = 20 })
	w.start()
	w.meet(3)
	nonce := uint64(0)
	for range 8 {
		nonce++
		w.peers[0].pay(0, 1, nonce)
	}
	lost := w.peers[3]
	w.stop(3)
	for _, d := range []string{"data", "tree", "index", "snapshots"} {
		if err := os.RemoveAll(filepath.Join(lost.cfg.Dir, d)); err != nil {
			t.Fatal(err)
		}
	}
	for range 4 {
		nonce++
		w.peers[0].pay(0, 1, nonce)
	}
	s := w.peers[0].status()
	lost.cfg.Trust = &Trust{Height: s.Height, Hash: s.Hash}
	w.again(3)
	eventually(t, 40*time.Second, "the snapshot", func() error {
		if x := lost.status(); x.Height < s.Height || x.CatchingUp {
			return fmt.Errorf("height %d of %d, catching up: %v", x.Height, s.Height, x.CatchingUp)
		}
		return nil
	})
	if x := lost.status(); x.Base <= 1 {
		t.Errorf("it has replayed the chain from block %d instead", x.Base)
	}
	nonce++
	r := lost.pay(0, 1, nonce)
	w.same(r.Height)
	w.stop(1) // three of four: the one that was lost is needed
	nonce++
	w.peers[0].pay(0, 1, nonce)
}
