//go:build linux && !router

package netns

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/ledger/bft/bftclient"
)

// ledger is what `weft ledger` tells on a node, as soon as its engine answers.
func (c *commons) ledger(node string) (s bftclient.Status) {
	c.t.Helper()
	c.until(node+"'s engine answers", func() bool { return c.Weft(c.ctx, node, &s, "ledger") == nil && s.Height > 0 })
	return s
}

// seats makes nodes' engines validators, by as many votes, in which all take part.
func (c *commons) seats(voters []string, operators map[string]string) {
	c.t.Helper()
	for node, name := range operators {
		st, err := c.Status(c.ctx, node)
		if err != nil {
			c.t.Fatal(err)
		}
		c.run(voters[0], "coop", "propose", "--validator", c.ledger(node).Key.String()+"@"+st.Key.String(), "--operator", name)
	}
	votes := make(chan error, len(voters))
	for _, v := range voters {
		go func() {
			for i := range len(operators) {
				err := c.Weft(c.ctx, v, nil, "coop", "vote", fmt.Sprint(i+1), "yes")
				for err != nil && c.ctx.Err() == nil && (strings.Contains(err.Error(), "has not begun") || strings.Contains(err.Error(), "no proposal")) {
					wait(c.ctx, 200*time.Millisecond)
					err = c.Weft(c.ctx, v, nil, "coop", "vote", fmt.Sprint(i+1), "yes")
				}
				if err != nil {
					votes <- err
					return
				}
			}
			votes <- nil
		}()
	}
	for range voters {
		if err := <-votes; err != nil {
			c.t.Fatal(err)
		}
	}
	for node := range operators {
		c.until(node+" votes on blocks", func() bool { return c.ledger(node).Validating })
	}
}

// meet waits until each of the nodes' engines hears validators, this many with itself, each over a connection of its own.
func (c *commons) meet(validators int, nodes ...string) {
	c.t.Helper()
	for _, n := range nodes {
		c.until(n+" hears the validators", func() bool {
			s := c.ledger(n)
			heard := 0
			for _, v := range s.Validators {
				if v.Reachable {
					heard++
				}
			}
			return heard >= validators && len(s.Peers) >= validators-1 && !s.CatchingUp
		})
	}
}

// halted waits until nodes say that no block can be made, and returns how long that took and what one says.
func (c *commons) halted(nodes ...string) (took time.Duration, said string) {
	c.t.Helper()
	began := time.Now()
	for _, n := range nodes {
		c.until(n+" says that the ledger has halted", func() bool {
			s := c.ledger(n)
			said = s.Halted
			return strings.Contains(said, "2 of 4 validators reachable") && strings.Count(said, "'s for ") == 2
		})
	}
	return time.Since(began), said
}

// later sends while no block can be made: what it returns waits for the end of it.
func (c *commons) later(node string, verb ...string) (await func()) {
	done := make(chan error, 1)
	go func() { done <- c.Weft(c.ctx, node, nil, verb...) }()
	return func() {
		c.t.Helper()
		if err := <-done; err != nil {
			// The command waits for a minute, and what it sent may get into a block after that: the balances tell.
			c.t.Logf("%s: %v: %v", node, verb, err)
		}
	}
}

// down ends weft on a node as a power cut would, and waits until its engine is gone too.
func (c *commons) down(node string) {
	c.t.Helper()
	p := c.Process(node)
	if err := c.Kill(node); err != nil {
		c.t.Fatal(err)
	}
	<-p.Done()
}

// balances waits until each node has what is its own, and has them audit the books.
func (c *commons) balances(want map[string]int64) {
	c.t.Helper()
	for n, v := range want {
		c.until(n+" has what is its own", func() bool { return c.coop(n).Balance == v })
	}
	for n := range want {
		if s := c.run(n, "coop", "audit"); !strings.Contains(s, "The books are right") {
			c.t.Errorf("%s audits: %s", n, s)
		}
	}
}

// Four validators over links of 30 ms, real processes: they find each other by the chain's state; one dies and all goes on, a second one dies
// and all halts, says so and resumes; one loses its ledger and begins with a snapshot; a partition in which packets vanish loses nothing and
// does nothing twice; and the founder goes for good.
func TestValidators(t *testing.T) {
	t.Parallel() // it mostly waits
	w, ctx := village(t, "[topology]\nkind = 'ring'\nn = 4\n[defaults]\ndelay = '30ms'\n")
	if err := engine(); err != nil {
		t.Fatal(err)
	}
	start(t, w)
	c := &commons{w, t, ctx}
	all := []string{"n0", "n1", "n2", "n3"}
	for _, n := range all[1:] {
		reach(t, ctx, w, "n0", n, 30*time.Second)
	}
	began := time.Now()
	step := func(format string, args ...any) {
		t.Logf("%5.1f s  "+format, append([]any{time.Since(began).Seconds()}, args...)...)
	}
	c.run("n0", "coop", "found", "--name", "Ring", "--called", "Fay", "--set", "vote.window=3600", "--set", "member.vouch_age=0", "--set", "vote.notice=0")
	for _, n := range all[1:] {
		c.run(n, "coop", "join", "n0", "--full")
	}
	for _, n := range all[1:] {
		c.until(n+" has the ledger", func() bool { return c.coop(n).State == "keeping" && c.coop(n).Height > 0 })
	}
	c.admit("n0", "n1", "Bea")
	c.admit("n0", "n2", "Cal", "n1")
	c.admit("n0", "n3", "Dee", "n1")
	step("four members, four engines")
	c.seats(all, map[string]string{"n1": "Bea", "n2": "Cal", "n3": "Dee"})
	// n2 and n3 have only ever been introduced to n0.
	c.meet(4, all...)
	step("four validators, each connected with each")

	c.run("n0", "coop", "deposit", "Bea", "20.00", "receipt 1")
	var took []time.Duration
	for range 5 {
		at := time.Now()
		c.run("n1", "wallet", "send", "Cal", "1.00")
		took = append(took, time.Since(at))
	}
	slices.Sort(took)
	step("a payment is final after %v, %v at most, by the command line and over links of 30 ms", took[2].Round(time.Millisecond), took[4].Round(time.Millisecond))

	c.down("n3")
	at := time.Now()
	c.run("n1", "wallet", "send", "Cal", "1.00")
	step("without one of four a payment is final after %v", time.Since(at).Round(time.Millisecond))
	c.down("n2")
	long, said := c.halted("n0", "n1")
	step("without two it halts, told after %v: %s", long.Round(100*time.Millisecond), said)
	if why := c.coop("n1").Why; !strings.Contains(why, "2 of 4 validators reachable") {
		t.Errorf("weft coop says: %q", why)
	}
	// n3 has its key and the record of what it signed, which are its seat, and loses all the rest.
	dir := filepath.Join(c.must("n3").StateDir(), "coop", "engine")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "validator.") {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	height := c.ledger("n0").Height
	await := c.later("n1", "wallet", "send", "Cal", "1.00")
	start(t, w, "n2")
	await()
	c.balances(map[string]int64{"n1": 13e9, "n2": 7e9})
	step("one of them is back, and what was sent is final: nothing is lost")
	start(t, w, "n3")
	c.until("n3 has the ledger again", func() bool {
		var s bftclient.Status
		return w.Weft(ctx, "n3", &s, "ledger") == nil && s.Height >= height && !s.CatchingUp && s.Validating
	})
	if s := c.ledger("n3"); s.Base <= 1 {
		t.Errorf("n3 has replayed the chain from block %d instead of beginning with a snapshot", s.Base)
	}
	var audit struct {
		First   int64 `json:"first_block"`
		Height  int64
		Records int
		State   bool `json:"state_ok"`
		OK      bool
	}
	if said := c.refused("n3", "coop", "audit"); !strings.Contains(said, "the ledger here begins at block ") {
		t.Errorf("without the first blocks, an audit says: %s", said)
	}
	if out, err := c.Exec(ctx, "n3", c.argv(c.must("n3"), "coop", "audit", "--json")...); err == nil || json.Unmarshal(out, &audit) != nil ||
		audit.OK || !audit.State || audit.First <= 1 || audit.Records < 20 || audit.Height < height {
		t.Errorf("without the first blocks, an audit says %s: %v", out, err)
	}
	c.meet(4, all...)
	step("the other lost its ledger of %d blocks and has begun with a snapshot", height)

	if err := w.Partition([]string{"n0", "n1"}, []string{"n2", "n3"}); err != nil {
		t.Fatal(err)
	}
	awaits := []func(){c.later("n1", "wallet", "send", "Cal", "2.00"), c.later("n2", "wallet", "send", "Bea", "0.50")}
	long, said = c.halted(all...)
	step("cut in two where packets vanish, told everywhere after %v: %s", long.Round(100*time.Millisecond), said)
	if err := w.Heal(); err != nil {
		t.Fatal(err)
	}
	at = time.Now()
	for _, await := range awaits {
		await()
	}
	c.balances(map[string]int64{"n1": 11.5e9, "n2": 8.5e9})
	step("healed: both payments are final %v later, once each", time.Since(at).Round(100*time.Millisecond))
	c.meet(4, all...)

	c.down("n0")
	for _, n := range all[1:] {
		if err := w.Stop(n); err != nil {
			t.Fatal(err)
		}
	}
	start(t, w, all[1:]...)
	c.meet(3, all[1:]...)
	at = time.Now()
	c.run("n1", "wallet", "send", "Cal", "1.00")
	c.balances(map[string]int64{"n1": 10.5e9, "n2": 9.5e9})
	step("the founder is gone for good; the others, restarted, have found each other, and a payment is final after %v", time.Since(at).Round(time.Millisecond))
	if ctx.Err() == context.DeadlineExceeded {
		t.Error("too slow")
	}
}

func (c *commons) must(node string) *Node {
	c.t.Helper()
	n, err := c.World.node(node)
	if err != nil {
		c.t.Fatal(err)
	}
	return n
}
