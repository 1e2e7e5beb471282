//go:build linux && !router

package netns

import (
	"context"
	"strconv"
	"strings"
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

// payingVillage: kim keeps the ledger, gina has the line, rick and rob are between, una uses it, and vic hangs at rick. All are
// members; una and vic have money.
func payingVillage(t *testing.T, bylaws ...string) paid {
	t.Helper()
	s := newShared(t)
	if err := engine(); err != nil {
		t.Fatal(err)
	}
	s.node("kim", 0, "")
	s.node("gina", 0, upstream)
	s.node("rick", 0, "")
	s.node("rob", 0, "")
	s.node("una", 0, "")
	s.node("vic", 0, "")
	s.line(Shape{}, "kim", "gina", "rick", "rob", "una")
	s.line(Shape{}, "rick", "vic")
	s.uplink("gina", 0)
	s.start()
	c := &commons{s.World, t, s.ctx}
	reach(t, s.ctx, s.World, "kim", "una", 15*time.Second)
	reach(t, s.ctx, s.World, "kim", "vic", 15*time.Second)
	found := []string{"coop", "found", "--name", "Oak", "--called", "Kim"}
	for _, set := range append(bylaws, "vote.window=3600", "member.vouch_age=0", "vote.notice=0", "tariff.trust=2000000") { // 10 MB at 0.20/GB
		found = append(found, "--set", set)
	}
	c.run("kim", found...)
	for _, n := range []string{"gina", "rick", "rob", "una", "vic"} {
		c.run(n, "coop", "join", "kim")
	}
	c.admit("kim", "gina", "Gina")
	c.admit("kim", "rick", "Rick", "gina")
	c.admit("kim", "rob", "Rob", "gina")
	c.admit("kim", "una", "Una", "gina")
	c.admit("kim", "vic", "Vic", "gina")
	c.run("kim", "coop", "deposit", "Una", "20.00", "receipt 1")
	c.run("kim", "coop", "deposit", "Vic", "20.00", "receipt 2")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		for _, n := range s.runs {
			if node, err := s.World.node(n); err == nil && t.Failed() {
				for _, verb := range []string{"wallet", "meter"} {
					out, err := s.Exec(ctx, n, c.argv(node, verb)...)
					t.Logf("%s's %s (%v):\n%s", n, verb, err, out)
				}
			}
		}
	})
	p := paid{s, c}
	for _, n := range s.runs {
		c.until(n+" knows that it is a member's", func() bool { return p.wallet(n).Member })
	}
	return p
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
	t.Parallel() // it mostly waits
	p := payingVillage(t)
	c := p.c
	c.run("una", "wallet", "cap", "10.00")
	c.run("gina", "wallet", "cap", "10.00") // out of which she pays rick …
	c.run("rick", "wallet", "cap", "10.00") // … and he pays rob
	p.offer("gina", "0.20/GB")
	c.run("una", "gateway", "use", "auto")
	una := p.browser("una")
	p.online(una, 20*time.Second)
	c.until("una knows the price", func() bool { return p.wallet("una").Price > 0 })

	const size = 200e6
	rate := una.download("http://"+WebAddr4.String()+"/big", size, "-r", "0-"+strconv.Itoa(size-1))
	t.Logf("200 MB through a paid gateway and two relays at %.0f Mbit/s", rate/1e6)
	una.upload(p.Outside, "from-una", 20e6)
	const all = size + 20e6
	p.paidUp("gina", "una", "internet", all)
	p.paidUp("rick", "gina", "carriage", 2*all) // each byte once for him, once for rob
	p.paidUp("rob", "rick", "carriage", all)

	for _, n := range []string{"rob", "rick", "gina"} {
		c.run(n, "wallet", "settle")
	}
	spent, earned, first, second := p.balance("una")-20e9, p.balance("gina"), p.balance("rick"), p.balance("rob")
	if spent >= 0 || earned <= 0 || first <= 0 || second <= 0 || spent+earned+first+second != 0 {
		t.Errorf("una %d, gina %d, rick %d, rob %d ncredit: una should have paid what the others got", spent, earned, first, second)
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
	hauled := p.account("rob", "rick", "payee", "carriage").Bytes
	for name, got := range map[string]int64{"rick": first, "rob": second} {
		if want, gap := pay.Cost(hauled, w.Carriage), pay.Cost(2*pay.Gap(hauled), w.Carriage); got < want-gap || got > want+gap {
			t.Errorf("%s has %d ncredit of carriage, want %d, within %d", name, got, want, gap)
		}
	}
	t.Logf("una paid %d ncredit for %d billed bytes at %d ncredit/MiB; gina has %d of it, rick %d and rob %d", -spent, a.Bytes, a.Price, earned, first, second)
	for _, n := range []string{"una", "gina", "rick"} {
		c.run(n, "wallet", "audit")
		c.run(n, "wallet", "bill")
	}

	// What the members vote is in force without anybody's doing: prices have fallen, and the next bytes cost less.
	c.run("una", "coop", "propose", "--set", "tariff.price_most=100000", "--set", "tariff.carriage=2000")
	for _, n := range p.runs {
		c.vote(n, "1")
	}
	c.until("the new prices are in force everywhere", func() bool {
		return p.wallet("una").Price == 100000 && p.wallet("rick").Carriage == 2000 && p.wallet("rob").Carriage == 2000 && p.wallet("gina").Carriage == 2000
	})
	was := *p.account("gina", "una", "payee", "internet")
	una.download("http://"+WebAddr4.String()+"/big", size, "-r", "0-"+strconv.Itoa(size-1))
	p.paidUp("gina", "una", "internet", was.Bytes+size)
	p.paidUp("rob", "rick", "carriage", hauled+size)
	now := *p.account("gina", "una", "payee", "internet")
	if got, want, gap := now.Paid-was.Paid, pay.Cost(now.Bytes-was.Bytes, 100000), pay.Cost(pay.Gap(size), 100000); got < want-gap || got > want+gap {
		t.Errorf("after the vote %d bytes cost %d ncredit, want %d at the new price", now.Bytes-was.Bytes, got, want)
	}

	// Tabs need no ledger. While it is out of reach they go on; when it is back all is claimed, once.
	for _, n := range []string{"rob", "rick", "gina"} {
		c.run(n, "wallet", "settle")
	}
	u, g, r, b := p.balance("una"), p.balance("gina"), p.balance("rick"), p.balance("rob")
	link, err := p.Link("kim", "gina")
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range []string{"kim", "gina"} {
		if err := p.SetSilent(link, end, true); err != nil {
			t.Fatal(err)
		}
	}
	was = *p.account("gina", "una", "payee", "internet")
	if rate := una.download("http://"+WebAddr4.String()+"/big", size, "-r", "0-"+strconv.Itoa(size-1)); rate < 20e6 {
		t.Errorf("without the ledger una gets %.0f Mbit/s", rate/1e6)
	}
	p.paidUp("gina", "una", "internet", was.Bytes+size)
	if said := c.refused("gina", "wallet", "settle"); !strings.Contains(said, "nothing is lost") {
		t.Errorf("without the ledger, claiming says: %s", said)
	}
	for _, end := range []string{"kim", "gina"} {
		if err := p.SetSilent(link, end, false); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second time there is nothing left
		for _, n := range []string{"rob", "rick", "gina"} {
			c.until(n+" can claim again", func() bool { return p.Weft(p.ctx, n, nil, "wallet", "settle") == nil })
		}
	}
	du, dg, dr, db := p.balance("una")-u, p.balance("gina")-g, p.balance("rick")-r, p.balance("rob")-b
	if du >= 0 || dg <= 0 || dr <= 0 || db <= 0 || du+dg+dr+db != 0 {
		t.Errorf("after the partition una %d, gina %d, rick %d, rob %d ncredit", du, dg, dr, db)
	}
	for _, n := range p.runs {
		c.run(n, "wallet", "audit")
		c.run(n, "wallet", "bill")
	}
	c.run("kim", "coop", "audit")
}

// Who reaches the limit has the free tier, and nobody else notices. Who is killed loses no credit, and makes none.
func TestPayLimit(t *testing.T) {
	t.Parallel()    // it mostly waits
	const line = 40 // Mbit/s
	p := payingVillage(t, "tariff.carriage=50000")
	c := p.c
	c.run("una", "wallet", "cap", "0.01") // some 30 MB
	for _, n := range []string{"vic", "gina", "rick"} {
		c.run(n, "wallet", "cap", "10.00")
	}
	p.offer("gina", "0.20/GB", "--down", "40M", "--up", "40M")
	c.run("una", "gateway", "use", "auto")
	c.run("vic", "gateway", "use", "auto")
	una, vic := p.browser("una"), p.browser("vic")
	p.online(una, 20*time.Second)
	p.online(vic, 20*time.Second)
	c.until("they know the price", func() bool { return p.wallet("una").Price > 0 && p.wallet("vic").Price > 0 })

	go una.try("-m", "120", "-o", "/dev/null", "http://"+WebAddr4.String()+"/big") // ends with the world
	c.until("una has used up what she allows, and has the free tier", func() bool {
		a := p.account("gina", "una", "payee", "internet")
		w := p.wallet("una")
		return a != nil && a.State == "throttled" && w.Spent == w.Cap && a.Paid == w.Spent // nothing is on its way
	})
	a := p.account("gina", "una", "payee", "internet")
	rate := uint64(2 * line * 1e6 / 8)
	if bound := pay.Cost(a.Exposure+rate*uint64((pay.DetectTime+pay.ShapeTime)/time.Millisecond)/1000, a.Price); a.Owed > bound {
		t.Errorf("una owes %d ncredit, the bound is %d", a.Owed, bound)
	}
	wait(p.ctx, pay.ShapeTime)
	before := p.meter("una", "gina")
	begin := time.Now()
	if got := vic.download("http://"+WebAddr4.String()+"/big", 20e6, "-r", "0-"+strconv.Itoa(20e6-1)); got < 0.7*line*1e6 {
		t.Errorf("beside una, vic gets %.1f of %d Mbit/s", got/1e6, line)
	}
	vic.page(Page, "http://"+WebAddr4.String()+"/")
	una.page(Page, "-m", "20", "http://"+WebAddr4.String()+"/") // light browsing goes on beside the download
	reach(t, p.ctx, p.World, "una", "vic", time.Second)         // and the mesh is free
	wait(p.ctx, max(0, 4*time.Second-time.Since(begin)))
	took := time.Since(begin).Seconds() + 1 // the meter is a second behind
	w := p.wallet("una")
	got, most := float64(p.meter("una", "gina")-before)*8, float64(w.FreeKbit)*1000*took*1.1+8*128<<10
	if got > most {
		t.Errorf("in the free tier una got %.0f kbit in %.1f s, at most %.0f", got/1000, took, most/1000)
	}
	t.Logf("in the free tier una gets %.0f kbit/s", got/1000/took)
	if !strings.Contains(w.Why, "weft wallet cap") {
		t.Errorf("una is told: %q", w.Why)
	}
	c.run("una", "wallet", "cap", "10.00")
	c.until("una has the full rate again", func() bool { return p.account("gina", "una", "payee", "internet").State != "throttled" })

	// Killed in the middle of it, both go on where they were, and what was promised is claimed once.
	for _, dead := range []string{"una", "gina"} {
		paid, got := p.account("gina", "una", "payee", "internet").Paid, p.balance("gina")
		if err := p.Kill(dead); err != nil {
			t.Fatal(err)
		}
		if proc := p.Process(dead); proc != nil {
			_ = proc.Stop(5 * time.Second)
		}
		p.start(dead)
		p.online(una, 30*time.Second)
		una.download("http://"+WebAddr4.String()+"/big", 5e6, "-r", "0-4999999")
		p.paidUp("gina", "una", "internet", 0)
		if now := p.account("gina", "una", "payee", "internet").Paid; now <= paid {
			t.Errorf("after %s was killed, una has promised %d ncredit; before it was %d", dead, now, paid)
		}
		for _, n := range []string{"rob", "rick", "gina"} {
			c.until(n+" can claim", func() bool { return p.Weft(p.ctx, n, nil, "wallet", "settle") == nil })
		}
		if now := p.balance("gina"); now <= got {
			t.Errorf("after %s was killed, gina has %d ncredit; before it was %d", dead, now, got)
		}
	}

	// A gateway that does not pay for carriage has the free tier for its clients' traffic, at the first relay; and the mesh is free.
	c.run("gina", "wallet", "cap", "0")
	stop, end := context.WithCancel(p.ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b := una
		b.ctx = stop
		for stop.Err() == nil {
			b.try("-m", "60", "-o", "/dev/null", "http://"+WebAddr4.String()+"/big")
		}
	}()
	c.until("rick gives gina's gateway the free tier", func() bool { return p.account("rick", "gina", "payee", "carriage").State == "throttled" })
	wait(p.ctx, pay.ShapeTime)
	end()
	<-ended
	if got, err := una.try("-m", "3", "-o", "/dev/null", "-w", "%{size_download}", "http://"+WebAddr4.String()+"/big"); err == nil {
		t.Errorf("una fetched all of it: %s", got)
	} else if n, _, _ := strings.Cut(got, " "); len(n) > 6 {
		t.Errorf("through a relay that is not paid una fetched %s bytes in 3 s", n)
	}
	reach(t, p.ctx, p.World, "una", "gina", time.Second)
	c.run("gina", "wallet", "cap", "10.00")
	c.until("rick carries at the full rate again", func() bool { return p.account("rick", "gina", "payee", "carriage").State != "throttled" })
	una.download("http://"+WebAddr4.String()+"/big", 5e6, "-r", "0-4999999")
	for _, n := range []string{"rob", "rick", "gina"} {
		c.run(n, "wallet", "settle")
	}
	sum := int64(0)
	for _, n := range p.runs {
		sum += p.balance(n)
	}
	if sum != 40e9 {
		t.Errorf("all have %d ncredit together; 40 credits were paid in", sum)
	}
	c.run("kim", "coop", "audit")
	for _, n := range p.runs {
		c.run(n, "wallet", "audit")
	}
}

func (p paid) offer(node, price string, more ...string) {
	p.c.run(node, append([]string{"gateway", "offer", "--price", price}, more...)...)
	p.c.until(node+" shares its line", func() bool {
		var g api.Gateway
		return p.Weft(p.ctx, node, &g, "gateway") == nil && g.Offer.Active
	})
}

// paidUp waits until nothing more comes, and the payee has vouchers for all that it carried, which is more than bytes.
func (p paid) paidUp(payee, payer, service string, bytes uint64) {
	p.t.Helper()
	var last uint64
	p.c.until(payer+" has signed for the "+service+" that "+payee+" carried", func() bool {
		wait(p.ctx, 2*time.Second) // the meter's beacons come each second
		a := p.account(payee, payer, "payee", service)
		if a == nil {
			return false
		}
		quiet := a.Bytes-last < 100e3
		last = a.Bytes
		return quiet && a.Bytes > bytes && a.Paid > 0 && a.Owed < 1000
	})
}

// balance is a member's account with what is set aside in its tabs: what it has.
func (p paid) balance(node string) int64 {
	p.t.Helper()
	w := p.wallet(node)
	sum := w.Balance
	for _, a := range w.Accounts {
		if a.Role == "payer" {
			sum += a.Earmark - a.Claimed
		}
	}
	return sum
}
