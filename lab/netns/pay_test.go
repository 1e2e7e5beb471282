//go:build linux && !router

package netns

import (
	"context"
	"strconv"
	"testing"
	"time"

	"weft/api"
	"weft/pay"
)

// paid is a village with a ledger in which one shares a line, another carries and a third pays.
type paid struct {
	*shared
	c *commons
}

// payingVillage: gina has the line, rick is between, una uses it, and vic hangs at rick too. All are members; una and vic have money.
func payingVillage(t *testing.T, found ...string) paid {
	t.Helper()
	s := newShared(t)
	if err := engine(); err != nil {
		t.Fatal(err)
	}
	s.node("gina", 0, upstream)
	s.node("rick", 0, "")
	s.node("una", 0, "")
	s.node("vic", 0, "")
	s.line(Shape{}, "gina", "rick", "una")
	s.line(Shape{}, "rick", "vic")
	s.uplink("gina", 0)
	s.start()
	c := &commons{s.World, t, s.ctx}
	reach(t, s.ctx, s.World, "gina", "una", 15*time.Second)
	reach(t, s.ctx, s.World, "gina", "vic", 15*time.Second)
	c.run("gina", append([]string{"coop", "found", "--name", "Oak", "--called", "Gina", "--set", "vote.window=3600", "--set", "member.vouch_age=0",
		"--set", "vote.notice=0"}, found...)...)
	for _, n := range []string{"rick", "una", "vic"} {
		c.run(n, "coop", "join", "gina")
	}
	c.admit("gina", "rick", "Rick")
	c.admit("gina", "una", "Una", "rick")
	c.admit("gina", "vic", "Vic", "rick")
	c.run("gina", "coop", "deposit", "Una", "20.00", "receipt 1")
	c.run("gina", "coop", "deposit", "Vic", "20.00", "receipt 2")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		for _, n := range s.runs {
			if node, err := s.World.node(n); err == nil && t.Failed() {
				out, err := s.Exec(ctx, n, c.argv(node, "wallet")...)
				t.Logf("%s's wallet (%v):\n%s", n, err, out)
			}
		}
	})
	return paid{s, c}
}

func (p paid) wallet(node string) (w api.Wallet) {
	p.t.Helper()
	if err := p.Weft(p.ctx, node, &w, "wallet"); err != nil {
		p.t.Fatal(err)
	}
	return w
}

// account is what a node keeps with another, nil when there is nothing.
func (p paid) account(node, with, role, service string) *api.WalletAccount {
	for _, a := range p.wallet(node).Accounts {
		if a.Name == with && a.Role == role && a.Service == service {
			return &a
		}
	}
	return nil
}

// meter is what a node's meter counted with another, in billed bytes.
func (p paid) meter(node, with string) uint64 {
	p.t.Helper()
	var m api.Meter
	if err := p.Weft(p.ctx, node, &m, "meter"); err != nil {
		p.t.Fatal(err)
	}
	for _, s := range m.Sessions {
		if s.Name == with {
			return s.Billed
		}
	}
	return 0
}

// Members pay for the line that one of them shares, and the one between is paid for carrying.
func TestPay(t *testing.T) {
	p := payingVillage(t)
	c := p.c
	const asked = "0.20/GB"
	c.run("una", "wallet", "cap", "10.00")
	c.run("gina", "wallet", "cap", "10.00") // out of which she pays rick
	p.offer("gina", asked)
	c.run("una", "gateway", "use", "auto")
	una := p.browser("una")
	p.online(una, 20*time.Second)
	c.until("una knows the price", func() bool { return p.wallet("una").Price > 0 })

	const size = 200e6
	rate := una.download("http://"+WebAddr4.String()+"/big", size, "-r", "0-"+strconv.Itoa(size-1))
	t.Logf("200 MB through a paid gateway and a relay at %.0f Mbit/s", rate/1e6)
	p.paidUp("gina", "una", "internet", size)
	p.paidUp("rick", "gina", "carriage", size)

	before := map[string]int64{"una": 20e9}
	c.run("rick", "wallet", "settle")
	c.run("gina", "wallet", "settle")
	spent, earned, carried := p.balance("una")-before["una"], p.balance("gina"), p.balance("rick")
	if spent >= 0 || earned <= 0 || carried <= 0 || spent+earned+carried != 0 {
		t.Errorf("una %d, gina %d, rick %d ncredit: una should have paid what the two got", spent, earned, carried)
	}
	a, w := p.account("una", "gina", "payer", "internet"), p.wallet("una")
	for _, at := range []string{"una", "gina"} {
		with := map[string]string{"una": "gina", "gina": "una"}[at]
		billed := p.meter(at, with)
		want := pay.Cost(billed, a.Price)
		if gap := pay.Cost(pay.Gap(billed), a.Price); -spent < want-gap || -spent > want+gap {
			t.Errorf("una paid %d ncredit; by %s's meter %d bytes cost %d, and the gap is %d", -spent, at, billed, want, gap)
		}
	}
	if want := pay.Cost(p.account("rick", "gina", "payee", "carriage").Bytes, w.Carriage); carried != want {
		t.Errorf("rick got %d ncredit, want %d", carried, want)
	}
	t.Logf("una paid %d ncredit for %d billed bytes at %d ncredit/MiB; gina has %d of it and rick %d", -spent, a.Bytes, a.Price, earned, carried)
	for _, n := range []string{"una", "gina", "rick"} {
		c.run(n, "wallet", "audit")
		c.run(n, "wallet", "bill")
	}
	c.run("gina", "coop", "audit")
}

func (p paid) offer(node, price string) {
	p.c.run(node, "gateway", "offer", "--price", price)
	p.c.until(node+" shares its line", func() bool {
		var g api.Gateway
		return p.Weft(p.ctx, node, &g, "gateway") == nil && g.Offer.Active
	})
}

// paidUp waits until the payee has vouchers for all that it carried, which is more than bytes.
func (p paid) paidUp(payee, payer, service string, bytes uint64) {
	p.t.Helper()
	p.c.until(payer+" has signed for the "+service+" that "+payee+" carried", func() bool {
		a := p.account(payee, payer, "payee", service)
		return a != nil && a.Bytes > bytes && a.Paid > 0 && a.Owed <= 0
	})
}

// balance is a member's account with what is set aside in its tabs: what it has.
func (p paid) balance(node string) int64 {
	p.t.Helper()
	w := p.wallet(node)
	sum := w.Balance
	for _, a := range w.Accounts {
		if a.Role == "payer" {
			sum += a.TabLeft
		}
	}
	return sum
}
