//go:build linux && !router

package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/api"
	"weft/ledger/bft/bftclient"
)

// engine builds the ledger's program beside the one under test.
var engine = sync.OnceValue(func() error {
	bin, err := binary()
	if err != nil {
		return err
	}
	path := filepath.Join(filepath.Dir(bin), "weft-ledger")
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	out, err := exec.Command("go", "build", "-tags", "engine", "-o", path, "weft/cmd/weft").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build weft-ledger: %w\n%s", err, out)
	}
	return nil
})

// commons is a village with a ledger.
type commons struct {
	*World
	t   *testing.T
	ctx context.Context
}

// run runs a verb of which only success matters.
func (c *commons) run(node string, verb ...string) string {
	c.t.Helper()
	n, err := c.World.node(node)
	if err != nil {
		c.t.Fatal(err)
	}
	out, err := c.Exec(c.ctx, node, c.argv(n, verb...)...)
	if err != nil {
		c.t.Fatalf("weft %v on %s: %v\n%s", verb, node, err, out)
	}
	return strings.TrimSpace(string(out))
}

// refused runs a verb that must fail, and returns what it says.
func (c *commons) refused(node string, verb ...string) string {
	c.t.Helper()
	n, err := c.World.node(node)
	if err != nil {
		c.t.Fatal(err)
	}
	out, err := c.Exec(c.ctx, node, c.argv(n, verb...)...)
	if err == nil {
		c.t.Fatalf("weft %v on %s did what it must not:\n%s", verb, node, out)
	}
	return err.Error()
}

func (c *commons) coop(node string) (s api.Coop) {
	c.t.Helper()
	if err := c.Weft(c.ctx, node, &s, "coop"); err != nil {
		c.t.Fatal(err)
	}
	return s
}

// until waits for something that takes a while.
func (c *commons) until(what string, ok func() bool) {
	c.t.Helper()
	for begin := time.Now(); !ok(); wait(c.ctx, 200*time.Millisecond) {
		if time.Since(begin) > 40*time.Second || c.ctx.Err() != nil {
			c.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// admit makes a node's owner a member, for whom the sponsor and others vouch.
func (c *commons) admit(sponsor, node, name string, vouchers ...string) {
	c.t.Helper()
	st, err := c.Status(c.ctx, node)
	if err != nil {
		c.t.Fatal(err)
	}
	word := strings.Fields(c.run(sponsor, "coop", "sponsor", st.Key.String()))[0]
	c.run(node, "coop", "apply", "--name", name, word)
	for _, v := range vouchers { // who keeps the ledger too may hear of the application a moment later
		c.until(v+" has vouched for "+name, func() bool {
			return c.Weft(c.ctx, v, nil, "coop", "vouch", name) == nil || c.coop(node).Member != 0
		})
	}
	c.until(name+" is a member", func() bool { return c.coop(node).Member != 0 })
}

// vote says yes to a proposal, as soon as its vote has begun.
func (c *commons) vote(node, proposal string) {
	c.t.Helper()
	var err error
	c.until(node+" has voted", func() bool {
		err = c.Weft(c.ctx, node, nil, "coop", "vote", proposal, "yes")
		return err == nil || !strings.Contains(err.Error(), "has not begun") && !strings.Contains(err.Error(), "no proposal")
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

// A community from its founding on: members, money, votes, a second validator, a halt and its end, an audit.
func TestCommunity(t *testing.T) {
	t.Parallel() // it mostly waits
	w, ctx := village(t, "[topology]\nkind = 'line'\nn = 3\n")
	if err := engine(); err != nil {
		t.Fatal(err)
	}
	start(t, w)
	c := &commons{w, t, ctx}
	reach(t, ctx, w, "n0", "n2", 15*time.Second)

	const day = "86400"
	c.run("n0", "coop", "found", "--name", "Oak Street", "--called", "Fay", "--set", "vote.window=3600", "--set", "member.vouch_age=0", "--set", "vote.notice=0",
		"--set", "rekey.delay="+day)
	c.refused("n0", "coop", "found", "--name", "Again", "--called", "Fay")
	c.run("n2", "coop", "join", "n0")           // a light client, two hops away
	c.run("n1", "coop", "join", "n0", "--full") // with the whole ledger
	c.until("n1 has the ledger", func() bool { return c.coop("n1").State == "keeping" && c.coop("n1").Height > 0 })
	c.admit("n0", "n2", "Bea")
	c.admit("n0", "n1", "Cal", "n2")
	c.until("n2 has verified its own account", func() bool { return c.coop("n2").Verified })

	c.run("n0", "coop", "deposit", "Bea", "20.00", "receipt 1")
	c.run("n2", "wallet", "send", "Cal", "12.50", "bread")
	if said := c.refused("n2", "wallet", "send", "Cal", "1000"); !strings.Contains(said, "not enough") {
		t.Errorf("too much was refused with: %s", said)
	}
	c.until("Cal has the money", func() bool { return c.coop("n1").Balance == 12_500_000_000 })

	// A vote that all take part in ends at once, and what it decides holds.
	c.run("n2", "coop", "propose", "--set", "tariff.price_most=200000")
	for _, n := range []string{"n0", "n1", "n2"} {
		c.vote(n, "1")
	}
	rules := map[string]string{}
	c.until("the vote has taken effect", func() bool {
		return c.Weft(ctx, "n1", &rules, "coop", "bylaws", "tariff.price_most") == nil && rules["tariff.price_most"] == "200000"
	})

	// Cal's engine becomes a validator by vote.
	var mine bftclient.Status
	if err := c.Weft(ctx, "n1", &mine, "ledger"); err != nil {
		t.Fatal(err)
	}
	cal, err := c.Status(ctx, "n1")
	if err != nil {
		t.Fatal(err)
	}
	c.run("n0", "coop", "propose", "--validator", mine.Key.String()+"@"+cal.Key.String(), "--operator", "Cal")
	for _, n := range []string{"n0", "n1", "n2"} {
		c.vote(n, "2")
	}
	c.until("there are two validators", func() bool { return c.coop("n0").Validators == 2 && c.coop("n1").Validating })
	c.run("n2", "wallet", "send", "Cal", "0.50")
	c.until("both have it", func() bool { return c.coop("n1").Balance == 13_000_000_000 })

	// Without one of two the chain halts, loses nothing, and goes on when it is back.
	if err := w.Kill("n1"); err != nil {
		t.Fatal(err)
	}
	if p := w.Process("n1"); p != nil {
		_ = p.Stop(5 * time.Second)
	}
	later := make(chan error, 1)
	go func() {
		limit, cancel := context.WithTimeout(ctx, 60*time.Second)
		defer cancel()
		later <- w.Weft(limit, "n2", nil, "wallet", "send", "Fay", "1.00")
	}()
	wait(ctx, time.Second)
	start(t, w, "n1")
	if err := <-later; err != nil {
		t.Errorf("what was sent during the halt: %v", err)
	}
	c.until("all agree", func() bool {
		return c.coop("n0").Balance == 1_000_000_000 && c.coop("n1").Height >= c.coop("n0").Height
	})

	for _, n := range []string{"n0", "n1", "n2"} {
		if said := c.run(n, "coop", "audit"); !strings.Contains(said, "The books are right") {
			t.Errorf("%s audits: %s", n, said)
		}
	}
	if csv := c.run("n2", "coop", "export"); !strings.Contains(csv, "bread") {
		t.Errorf("the books lack an entry:\n%s", csv)
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Error("too slow")
	}
}
