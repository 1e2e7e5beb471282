//go:build linux && !router

package netns

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft/api"
	"weft/ledger"
	"weft/ledger/bft/bftclient"
	"weft/ledger/tx"
)

// pastFounding begins a community on a node whose first fiscal period is over, and whose books of it close in a while: founders are who lives
// at the nodes, in their order. All else of it is as weft coop found has it.
func (c *commons) pastFounding(closes time.Duration, founders map[string]string, order []string, settings ...string) {
	c.t.Helper()
	keeper, err := c.World.node(order[0])
	if err != nil {
		c.t.Fatal(err)
	}
	now := time.Now().UTC()
	end := time.Date(now.Year(), now.Month()-1, 1, 0, 0, 0, 0, time.UTC) // 28 to 62 days ago: less than a period's grace
	g := ledger.Genesis{Time: end.AddDate(0, 0, -20).Unix()}
	for _, s := range append(settings, "year.months=3", "year.month="+strconv.Itoa(int(end.Month())), "year.grace="+strconv.FormatInt(int64(now.Add(closes).Sub(end)/time.Second), 10)) {
		name, value, _ := strings.Cut(s, "=")
		g.Settings = append(g.Settings, tx.Setting{Name: name, Value: value})
	}
	for _, n := range order {
		st, err := c.Status(c.ctx, n)
		if err != nil {
			c.t.Fatal(err)
		}
		g.Founders = append(g.Founders, ledger.Founder{Key: st.Key, Name: founders[n], Limit: 20e9})
	}
	key := g.Founders[0].Key
	g.Chain = ledger.ChainID("oak-street", now.Format("20060102"), key)
	if err := c.Stop(order[0]); err != nil {
		c.t.Fatal(err)
	}
	dir := filepath.Join(keeper.StateDir(), "coop")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		c.t.Fatal(err)
	}
	bin, err := binary()
	if err != nil {
		c.t.Fatal(err)
	}
	cmd := exec.CommandContext(c.ctx, filepath.Join(filepath.Dir(bin), "weft-ledger"), "ledger", "found", "--dir", filepath.Join(dir, "engine"), "--on", key.String())
	cmd.Stdin = bytes.NewReader(tx.Encode(&g))
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("found: %v\n%s", err, out)
	}
	b, err := json.Marshal(map[string]any{"Chain": g.Chain, "Keep": true})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "coop.json"), b, 0o600)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	// Block 1 has the time of the founding. The engine comes to the present by itself, at its next heartbeat: here, at once.
	run := exec.CommandContext(c.ctx, cmd.Path, "ledger", "run", "--dir", filepath.Join(dir, "engine"), "--listen", "127.0.0.1:0", "--heartbeat", "1s")
	stop, err := run.StdinPipe() // it runs for as long as this is open
	if err == nil {
		err = run.Start()
	}
	if err != nil {
		c.t.Fatal(err)
	}
	cl := bftclient.New(filepath.Join(dir, "engine"))
	defer cl.Close()
	c.until("the ledger has come to the present", func() bool {
		s, err := cl.Status(c.ctx)
		return err == nil && time.Since(time.Unix(s.Time, 0)) < time.Hour
	})
	if err := errors.Join(stop.Close(), run.Wait()); err != nil {
		c.t.Fatal(err)
	}
	start(c.t, c.World, order[0])
	c.until("the ledger has begun", func() bool {
		var s api.Coop
		return c.Weft(c.ctx, order[0], &s, "coop") == nil && s.State == "keeping" && s.Height > 1
	})
}

// decide proposes something at the first node and has all vote for it.
func (c *commons) decide(voters []string, verb ...string) {
	c.t.Helper()
	var made struct{ Number uint64 }
	if err := c.Weft(c.ctx, voters[0], &made, append([]string{"coop", "propose"}, verb...)...); err != nil {
		c.t.Fatal(err)
	}
	id := strconv.FormatUint(made.Number, 10)
	for _, n := range voters {
		c.vote(n, id)
	}
	c.until(fmt.Sprintf("%v is done", verb), func() bool {
		var l []struct{ Stage string }
		err := c.Weft(c.ctx, voters[0], &l, "coop", "proposals", id)
		if err == nil && len(l) == 1 && l[0].Stage == "failed" {
			c.t.Fatalf("%v has failed", verb)
		}
		return err == nil && len(l) == 1 && l[0].Stage == "done"
	})
}

// leads asks a node's resolver, as programs on that node do, where a name leads.
func (c *commons) leads(node, name string) (netip.Addr, error) {
	own, err := c.Address(c.ctx, node)
	if err != nil {
		return own, err
	}
	l, err := resolve(c.ctx, c.World, node, netip.AddrPortFrom(own, 53), "ip6", name)
	if err != nil {
		return netip.Addr{}, err
	}
	return l[0], nil
}

// A community's life with real processes: names in DNS, a lost key and a new one, a year's surplus, its division and the capital's way back,
// the solidarity tier.
func TestCommunityLife(t *testing.T) {
	t.Parallel() // it mostly waits
	w, ctx := village(t, "[topology]\nkind = 'line'\nn = 4\n")
	if err := engine(); err != nil {
		t.Fatal(err)
	}
	start(t, w)
	c := &commons{w, t, ctx}
	reach(t, ctx, w, "n0", "n3", 15*time.Second)
	begun := time.Now()
	for range 3 {
		address(t, ctx, w, "n0")
	}
	verb := time.Since(begun) / 3 // a verb's time on this machine just now: the books stay open for long enough to charge two members, on a busy machine too
	c.pastFounding(22*time.Second+60*verb, map[string]string{"n0": "Fay", "n1": "Bea", "n3": "Cal"}, []string{"n0", "n1", "n3"},
		"vote.notice=0", "vote.window=3600", "rekey.vouches=2", fmt.Sprintf("rekey.delay=%d", int((14*time.Second+30*verb)/time.Second)), "surplus.cash=0", "surplus.cash_least=0", "surplus.reserve=0", "surplus.solidarity=100", "member.vouch_age=0", "tx.each=1000")
	reach(t, ctx, w, "n3", "n0", 15*time.Second) // n0 was away for a moment
	for _, n := range []string{"n1", "n2", "n3"} {
		c.run(n, "coop", "join", "n0")
	}
	all := []string{"n0", "n1", "n3"}

	// Cal's key is gone with the device. Two vouch for the one on a new device; the old one is told, and holds until the new one's time has come
	// and ten blocks with it.
	word := c.run("n2", "coop", "rekey", "Cal")
	word = strings.Fields(word)[0]
	c.run("n0", "coop", "rekey", "vouch", word)
	c.run("n1", "coop", "rekey", "vouch", word)
	if s := c.coop("n3"); len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "weft coop rekey veto") {
		t.Errorf("who loses the membership is not warned: %+v", s)
	}
	if st, err := c.Status(ctx, "n3"); err != nil || len(st.Warnings) == 0 || !strings.Contains(strings.Join(st.Warnings, " "), "rekey veto") {
		t.Errorf("nor by the node's status: %v, %v", st.Warnings, err)
	}

	// What was used in the period before is billed while its books are open; nobody has paid in yet, so it is on credit.
	c.decide(all, "--line", "Internet=6.00")
	c.run("n0", "coop", "charge", "Bea", "Internet", "--last")
	c.run("n0", "coop", "charge", "Cal", "Internet", "--last")

	// A name: registered, in others' DNS, handed on, and gone.
	bea, fay := address(t, ctx, w, "n1"), address(t, ctx, w, "n0")
	const name = "bakery.oak-street.weft"
	if at, err := c.leads("n0", name); err == nil {
		t.Errorf("nobody's name leads to %v", at)
	}
	c.run("n1", "coop", "name", "register", "bakery")
	if s := c.coop("n1"); len(s.Names) != 1 || s.Names[0] != name {
		t.Errorf("%+v", s)
	}
	for _, n := range []string{"n0", "n2"} { // one keeps the ledger, the other proves what it hears
		c.until(n+" knows the name", func() bool { at, err := c.leads(n, name); return err == nil && at == bea })
	}
	if said := c.refused("n3", "coop", "name", "register", "bakery"); !strings.Contains(said, "taken") {
		t.Error(said)
	}
	c.run("n1", "coop", "name", "transfer", name, "Fay")
	c.run("n0", "coop", "name", "register", "bakery")
	c.until("the name leads to n0", func() bool { at, err := c.leads("n0", name); return err == nil && at == fay })
	c.run("n1", "coop", "node", "register", "--gateway", "--price", "0.05")
	if s := c.coop("n1"); !strings.Contains(s.Registered, "member 2's, as gateway") {
		t.Errorf("%+v", s)
	}

	// The new key's time comes.
	if err := w.Kill("n3"); err != nil {
		t.Fatal(err)
	}
	c.until("Cal has a new key", func() bool { // time passes with blocks, and blocks come with transactions
		c.run("n0", "wallet", "send", "Bea", "0.01")
		s := c.coop("n2")
		return s.Member == 3 && s.Called == "Cal"
	})
	all[2] = "n2"

	// The books of the period before close by themselves: 12 credits of surplus, a tenth for solidarity, the rest members' capital.
	type allotments struct {
		Period     struct{ State string }
		Allotments []struct {
			Member  uint64
			Capital int64 `json:"capital_ncredit"`
		}
	}
	var year allotments
	c.until("the surplus is divided", func() bool {
		c.run("n0", "wallet", "send", "Bea", "0.01")
		return c.Weft(ctx, "n2", &year, "coop", "allocate", "1") == nil && year.Period.State == "finished"
	})
	if l := year.Allotments; len(l) != 2 || l[0].Member != 2 || l[0].Capital != 5.4e9 || l[1].Member != 3 || l[1].Capital != 5.4e9 {
		t.Errorf("%+v", year)
	}
	type capital []struct {
		Member uint64
		Amount int64 `json:"amount_ncredit"`
	}
	before := c.coop("n2").Balance
	c.decide(all, "--retire", "4.00")
	var left capital
	c.until("capital is paid back", func() bool {
		c.run("n0", "wallet", "send", "Bea", "0.01")
		return c.Weft(ctx, "n0", &left, "coop", "capital", "Cal") == nil && len(left) == 1 && left[0].Amount == 3.4e9
	})
	c.until("Cal has it", func() bool { return c.coop("n2").Balance == before+2e9 })

	// The fund has 1.20 now: half of what Cal uses, as far as it reaches.
	c.decide(all, "--solidarity", "Cal")
	before = c.coop("n2").Balance
	c.run("n0", "coop", "charge", "Cal", "Internet")
	c.until("the solidarity fund has helped", func() bool { return c.coop("n2").Balance == before-4.8e9 })

	if said := c.run("n0", "coop", "audit"); !strings.Contains(said, "The books are right") {
		t.Error(said)
	}
	// Without the ledger names lead where they led last.
	c.until("n2 has the name's new node", func() bool { at, err := c.leads("n2", name); return err == nil && at == fay })
	if err := w.Kill("n0"); err != nil {
		t.Fatal(err)
	}
	if at, err := c.leads("n2", name); err != nil || at != fay {
		t.Errorf("without the ledger the name leads to %v, %v", at, err)
	}
}
