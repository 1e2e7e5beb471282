//go:build engine

package bft

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cometbft/cometbft/p2p"

	"weft/ident"
)

func engineName(i int) string { return fmt.Sprintf("%040x", i) }

// Followers take nobody's place: neither a validator's nor one in the owner's list; members' nodes displace strangers, and who has
// not asked for long is forgotten.
func TestFollowersTakeNoPlace(t *testing.T) {
	var e *engine
	w := newNetwork(t, 2, 2, 50, 0, func(i int, c *Config) {
		if i == 0 {
			c.hook = func(x *engine) { e = x }
		}
	})
	w.start()
	w.meet(1)
	c, ctx := w.peers[0].client, context.Background()
	members := 0
	member := func() ident.PublicKey { members++; return founder(t, members).Public() }
	letIn := func(i int) bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		for _, f := range e.followers {
			if string(f.id) == engineName(i) {
				return e.app.mayConnect(f.id)
			}
		}
		return false
	}
	for i := range maxStrangers {
		if err := c.LetFollow(ctx, engineName(i), agent(t, fmt.Sprint("stranger ", i)).Public()); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.LetFollow(ctx, engineName(maxStrangers), ident.PublicKey{}); err == nil || !strings.Contains(err.Error(), "become a member") {
		t.Errorf("a stranger too many: %v", err)
	}
	if err := c.LetFollow(ctx, engineName(0), ident.PublicKey{}); err != nil {
		t.Errorf("one that asks again: %v", err)
	}
	for i := range 3 * maxFollowers { // one node with many engines has the place of one
		if err := c.LetFollow(ctx, engineName(5000+i), founder(t, 0).Public()); err != nil {
			t.Fatal(err)
		}
	}
	for i := range maxFollowers - maxStrangers - 1 {
		if err := c.LetFollow(ctx, engineName(100+i), member()); err != nil {
			t.Fatal(err)
		}
	}
	if !letIn(0) || !letIn(1) || !letIn(100) {
		t.Error("followers are not let in")
	}
	if err := c.LetFollow(ctx, engineName(200), member()); err != nil {
		t.Fatal(err)
	}
	if letIn(1) || !letIn(0) || !letIn(200) || len(e.followers) != maxFollowers {
		t.Errorf("a member's node did not take the place of the stranger that asked longest ago: %v", e.followers)
	}
	for i := range maxStrangers - 1 {
		if err := c.LetFollow(ctx, engineName(201+i), member()); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.LetFollow(ctx, engineName(300), member()); err == nil || letIn(300) {
		t.Error("there is room for one too many")
	}
	// The owner's list is as long as ever, and the validator is let in.
	for i := range maxPeers - 1 {
		if err := c.AddPeer(ctx, engineName(1000+i)+"@[200::1]:7172"); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.AddPeer(ctx, engineName(2000)+"@[200::1]:7172"); err == nil {
		t.Error("the owner's list has no bound")
	}
	if k, err := Key(w.peers[1].cfg.Dir); err != nil || !e.app.mayConnect(idOf(k)) {
		t.Errorf("the other validator is not let in: %v", err)
	}
	for _, bad := range []string{"", "x", strings.Repeat("A", 40), engineName(1) + "0"} {
		if err := c.LetFollow(ctx, bad, ident.PublicKey{}); bad != "" && err == nil {
			t.Errorf("%q is an engine", bad)
		}
	}
	// Half an hour later.
	e.tidy(time.Now().Add(followFor + time.Second))
	e.mu.Lock()
	n := len(e.followers)
	e.mu.Unlock()
	if n != 0 || e.app.mayConnect(p2p.ID(engineName(200))) {
		t.Errorf("%d followers are never forgotten", n)
	}
	w.peers[0].pay(0, 1, 1) // both validators take part still
}

// Validators find each other by the chain's state alone: each dials who is in it, at the port of its node.
func TestWanted(t *testing.T) {
	var engines [3]*engine
	w := newNetwork(t, 3, 2, 3, 0, func(i int, c *Config) {
		c.Port = 7172
		c.hook = func(x *engine) { engines[i] = x }
	})
	w.start()
	w.meet(1)
	other, err := Key(w.peers[1].cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	at := fmt.Sprintf("%s@[%s]:7172", idOf(other), agent(t, w.peers[1].cfg.Dir).Public().Addr())
	alone := func(i int) *engine {
		engines[i].mu.Lock()
		engines[i].peers = nil // its owner named nobody
		engines[i].mu.Unlock()
		return engines[i]
	}
	if l := alone(0).wanted(false); !slices.Equal(l, []string{at}) {
		t.Errorf("a validator wants %v, not %s", l, at)
	}
	if l := alone(2).wanted(false); len(l) != 0 {
		t.Errorf("an engine without a vote tries %v at all times", l)
	}
	if l := engines[2].wanted(true); len(l) != 2 || !slices.Contains(l, at) {
		t.Errorf("an engine that nobody let in tries %v", l)
	}
}

// When all validators are there and yet no block comes, the status says so, by the heartbeat that is overdue.
func TestOverdue(t *testing.T) {
	var e *engine
	w := newNetwork(t, 1, 1, 3, 0, func(_ int, c *Config) { c.hook = func(x *engine) { e = x } })
	w.start()
	p := w.peers[0]
	p.height(p.pay(0, 1, 1).Height + 1) // the proof block; after it nothing happens for a minute
	late := func(d time.Duration) string {
		e.app.mu.Lock()
		e.app.committed = time.Now().Add(-d)
		e.app.mu.Unlock()
		return p.status().Halted
	}
	if said := late(time.Minute); said != "" { // the heartbeat is a minute
		t.Errorf("on time, but: %s", said)
	}
	if said := late(time.Minute + overdue + time.Second); !strings.HasPrefix(said, "no block for 73 s, with 0 transactions waiting, though 1 of 1 validators are reachable") {
		t.Errorf("overdue, but: %q", said)
	}
	p.pay(0, 1, 2)
	if said := p.status().Halted; said != "" {
		t.Errorf("a block has come, but: %s", said)
	}
	w.stop(0)
	w.again(0)
	if said := p.status().Halted; said != "" {
		t.Errorf("just started, but: %s", said)
	}
}
