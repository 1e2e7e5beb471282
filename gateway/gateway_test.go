package gateway

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/gateway/nat64"
	"weft/ident"
	"weft/tun"
)

func TestLeaseAndBrowse(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		gw, c := w.node(key(1), 5*time.Millisecond), w.node(key(2), 5*time.Millisecond)
		gw.mustOffer(plain)
		c.mustUse(both)
		time.Sleep(2 * time.Second)
		u := c.use()
		if u.Gateway != gw.key || !DefaultPool.Contains(u.IPv4) || u.Families != IPv4|IPv6|DNS || u.MTU != 1280 || u.Price != 1000 || !slices.Equal(u.DNS, []netip.Addr{gw.key.Addr()}) {
			t.Fatalf("the lease in force is %+v", u)
		}
		if !c.browse(web, 4000, time.Second) {
			t.Error("no answer over IPv4")
		}
		before := c.written()
		c.sendFromHost(tcp(c.key.Addr(), web6, 5000, 80, tcpSYN))
		time.Sleep(time.Second)
		if c.written() != before+1 {
			t.Error("no answer over IPv6")
		}
		before = c.written()
		c.sendFromHost(echo(u.IPv4, web, 7))
		time.Sleep(time.Second)
		if c.written() != before+1 {
			t.Error("no echo")
		}
		s := gw.Status().Offering
		if len(s.Clients) != 1 || s.Clients[0].IPv4 != u.IPv4 || s.Clients[0].Flows != 3 || s.Clients[0].Down == 0 {
			t.Errorf("the gateway sees %+v", s.Clients)
		}
		if got := c.Status().Using.Text; !strings.HasPrefix(got, "uses gw01: ") {
			t.Errorf("status: %s", got)
		}
		// The lease is renewed, again and again, and the address stays.
		time.Sleep(time.Hour)
		if now := c.use(); now.IPv4 != u.IPv4 || c.told() != 2 || len(gw.Status().Offering.Past) != 0 {
			t.Errorf("after an hour %+v, told %d times", now, c.told())
		}
	})
}

// A gateway that starts anew knows no lease, and gives the same address at once.
func TestGatewayRestarts(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		gw, c := w.node(key(1), 5*time.Millisecond), w.node(key(2), 5*time.Millisecond)
		gw.mustOffer(plain)
		c.mustUse(both)
		time.Sleep(2 * time.Second)
		was := c.use().IPv4
		gw.kill(false)
		gw.stop()
		<-gw.done
		gw.set(func() { gw.cut = false })
		gw.start()
		gw.mustOffer(plain)
		c.browse(web, 1, 500*time.Millisecond)
		if !c.browse(web, 2, 500*time.Millisecond) || c.use().IPv4 != was {
			t.Errorf("no answer after the restart, or another address: %v, was %v", c.use().IPv4, was)
		}
		if n := c.told(); n != 2 {
			t.Errorf("the host was set up %d times", n)
		}
	})
}

// failover measures how long new connections find no way after something happened, with two gateways.
func failover(t *testing.T, loss float64, happen func(first, second *node)) time.Duration {
	var took time.Duration
	in(t, func(t *testing.T, w *world) {
		a, b, c := w.node(key(1), 5*time.Millisecond), w.node(key(3), 20*time.Millisecond), w.node(key(2), 5*time.Millisecond)
		a.mustOffer(plain)
		b.mustOffer(plain)
		c.mustUse(both)
		time.Sleep(5 * time.Second)
		w.mu.Lock()
		w.loss = loss
		w.mu.Unlock()
		if c.use().Gateway != a.key || !c.browse(web, 999, time.Second) {
			t.Fatal("not at the nearer gateway")
		}
		if c.Status().Using.Standby != "gw03" {
			t.Fatal("no gateway in reserve")
		}
		happen(a, b)
		start := time.Now()
		for port := uint16(1000); ; port++ {
			if c.browse([]netip.Addr{web, web2}[port%2], port, 100*time.Millisecond) {
				break
			}
			if time.Since(start) > 30*time.Second {
				t.Fatalf("no way found: %+v", c.Status().Using)
			}
		}
		took = time.Since(start)
		if c.use().Gateway != b.key {
			t.Errorf("uses %v", c.use().Name)
		}
		if s := c.Status().Using; s.Failovers != 1 || s.LastReason == "" {
			t.Errorf("%d failovers, because %q", s.Failovers, s.LastReason)
		} else {
			t.Logf("%v: %s", took, s.LastReason)
		}
	})
	return took
}

func TestFailover(t *testing.T) {
	for name, x := range map[string]struct {
		happen func(a, b *node)
		most   time.Duration
	}{
		"killed, unnoticed by routing": {func(a, b *node) { a.kill(false) }, 3 * time.Second},
		"killed and gone":              {func(a, b *node) { a.kill(true) }, 200 * time.Millisecond},
		"killed after idling":          {func(a, b *node) { time.Sleep(20 * time.Minute); a.kill(false) }, 3 * time.Second},
		"offer stopped":                {func(a, b *node) { a.StopOffer() }, 200 * time.Millisecond},
		"stopped":                      {func(a, b *node) { a.stop() }, 200 * time.Millisecond},
		"uplink lost":                  {func(a, b *node) { a.SetUplink(false, false) }, 200 * time.Millisecond},
		"IPv4 lost":                    {func(a, b *node) { a.SetUplink(false, true) }, 200 * time.Millisecond},
		"reachable, but its internet is dead and it does not know": {func(a, b *node) {
			a.set(func() { a.deaf = true })
		}, 6 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			if took := failover(t, 0, x.happen); took > x.most {
				t.Errorf("took %v", took)
			}
		})
	}
	t.Run("killed, with loss", func(t *testing.T) {
		if took := failover(t, 0.05, func(a, b *node) { a.kill(false) }); took > 4*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestChoice(t *testing.T) {
	limit := uint32(5000)
	for name, x := range map[string]struct {
		near, far OfferConfig
		choice    Choice
		want      byte
	}{
		"the nearer of equals":           {plain, plain, both, 1},
		"the cheaper, if much cheaper":   {with(plain, func(c *OfferConfig) { c.Price = 1_000_000 }), plain, both, 3},
		"the nearer, if a little dearer": {with(plain, func(c *OfferConfig) { c.Price = 5_000 }), plain, both, 1},
		"nobody above the cap":           {with(plain, func(c *OfferConfig) { c.Price = 5_001 }), plain, Choice{Mode: Auto, MaxPrice: &limit}, 3},
		"the one the owner names":        {plain, plain, Choice{Mode: Node, Node: key(3)}, 3},
		"the wider line":                 {with(plain, func(c *OfferConfig) { c.DownKbps = 1000 }), plain, both, 3},
		"one with IPv4":                  {with(plain, func(c *OfferConfig) { c.IPv4 = false }), plain, both, 3},
		"none but for members":           {with(plain, func(c *OfferConfig) { c.MembersOnly = true }), plain, both, 3},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				a, b, c := w.node(key(1), 5*time.Millisecond), w.node(key(3), 20*time.Millisecond), w.node(key(2), 0)
				a.set(func() { a.members = func(ident.PublicKey) Tier { return Tier{} } })
				a.mustOffer(x.near)
				b.mustOffer(x.far)
				time.Sleep(time.Second)
				c.mustUse(x.choice)
				time.Sleep(5 * time.Second)
				if c.use().Gateway != key(x.want) {
					t.Errorf("uses %q: %+v", c.use().Name, c.Status().Using)
				}
			})
		})
	}
}

func with(c OfferConfig, f func(*OfferConfig)) OfferConfig {
	f(&c)
	return c
}

// Noise moves nobody; a gateway that is better for a minute does, once.
func TestHysteresis(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		a, b, c := w.node(key(1), 15*time.Millisecond), w.node(key(3), 16*time.Millisecond), w.node(key(2), 0)
		a.mustOffer(plain)
		b.mustOffer(plain)
		c.mustUse(both)
		time.Sleep(3 * time.Second)
		first := c.use().Gateway
		for i := range 2000 { // an hour and more of noise of ten milliseconds
			for _, n := range []*node{a, b} {
				n.set(func() { n.delay = time.Duration(12+(i*7+int(n.key[0])*5)%10) * time.Millisecond })
			}
			time.Sleep(2 * time.Second)
		}
		if s := c.Status().Using; s.Switches != 0 || s.Failovers != 0 || c.use().Gateway != first {
			t.Fatalf("noise made %d switches and %d failovers", s.Switches, s.Failovers)
		}
		n := w.nodes[first]
		n.set(func() { n.delay = 150 * time.Millisecond })
		time.Sleep(30 * time.Second)
		if c.use().Gateway != first {
			t.Error("moved within half a minute")
		}
		time.Sleep(10 * time.Minute)
		if s := c.Status().Using; s.Switches != 1 || c.use().Gateway == first {
			t.Errorf("%d switches, %s", s.Switches, s.Text)
		}
	})
}

// One-way traffic and one dead destination make nobody move; nor do two gateways without internet make it flap.
func TestNoFlapping(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		a, b, c := w.node(key(1), 15*time.Millisecond), w.node(key(3), 16*time.Millisecond), w.node(key(2), 0)
		a.set(func() { a.deaf = true })
		b.set(func() { b.deaf = true })
		a.mustOffer(plain)
		b.mustOffer(plain)
		c.mustUse(both)
		time.Sleep(3 * time.Second)
		for range 600 {
			c.sendFromHost(tcp(c.use().IPv4, web, 1, 443, tcpSYN))
			c.sendFromHost(udp(c.use().IPv4, web, 2, 9999, 10))
			time.Sleep(time.Second)
		}
		if s := c.Status().Using; s.Failovers != 0 {
			t.Errorf("a dead destination: %d failovers, %s", s.Failovers, s.LastReason)
		}
		for i := range uint16(3600) {
			c.sendFromHost(tcp(c.use().IPv4, web, i, 443, tcpSYN))
			c.sendFromHost(tcp(c.use().IPv4, web2, i, 443, tcpSYN))
			time.Sleep(time.Second)
		}
		if s := c.Status().Using; s.Failovers == 0 || s.Failovers > 15 {
			t.Errorf("an hour without internet: %d failovers", s.Failovers)
		}
	})
}

// The owner of a line uses it, and a neighbour's when it fails.
func TestOwnLine(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		a, c := w.node(key(1), 5*time.Millisecond), w.node(key(2), 5*time.Millisecond)
		a.mustOffer(plain)
		c.mustOffer(plain)
		c.mustUse(both)
		time.Sleep(5 * time.Second)
		if c.use().Gateway == a.key {
			t.Fatal("uses a neighbour's line though its own works")
		}
		c.SetUplink(true, true)
		c.SetUplink(false, false)
		time.Sleep(time.Second)
		if c.use().Gateway != a.key || c.OfferBytes() != nil {
			t.Fatalf("does not use the neighbour's: %+v", c.Status().Using)
		}
		c.SetUplink(true, true)
		time.Sleep(time.Second)
		if c.OfferBytes() != nil {
			t.Error("offers a line that is back for a second only")
		}
		time.Sleep(10 * time.Second)
		if !c.use().Gateway.IsZero() || c.OfferBytes() == nil {
			t.Errorf("does not return to its own: %s", c.Status().Using.Text)
		}
	})
}

// A gateway that grants nonsense is left, and the reason is told.
func TestHostileGateway(t *testing.T) {
	for name, rude := range map[string]func(m *message){
		"of 100.64.0.0/10":     func(m *message) { m.v4 = netip.MustParseAddr("192.168.1.1") },
		"MTU":                  func(m *message) { m.mtu = 65000 },
		"MTU 600":              func(m *message) { m.mtu = 600 },
		"asks for":             func(m *message) { m.price = 1001 },
		"not from":             func(m *message) { m.lifetime = 1 },
		"is not the gateway's": func(m *message) { m.dns = []netip.Addr{netip.MustParseAddr("2001:db8::53")} },
		"where":                func(m *message) { m.families |= IPv6Routed; m.v6 = netip.MustParsePrefix("2001:db8:1::/64") },
		"do not go together":   func(m *message) { m.v4 = netip.Addr{} },
		"no way":               func(m *message) { m.families = DNS; m.v4 = netip.Addr{} },
		"lies in":              func(m *message) { m.v4 = netip.MustParseAddr("100.70.1.1") },
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				a, b, c := w.node(key(1), 5*time.Millisecond), w.node(key(3), 50*time.Millisecond), w.node(key(2), 0)
				a.set(func() {
					a.rude = func(m *message) *message {
						if m.kind == msgGrant {
							rude(m)
						}
						return m
					}
				})
				a.mustOffer(plain)
				b.mustOffer(plain)
				time.Sleep(time.Second)
				if err := c.SetLocal([]netip.Prefix{netip.MustParsePrefix("100.70.1.0/24")}); err != nil {
					t.Fatal(err)
				}
				c.mustUse(both)
				time.Sleep(20 * time.Second)
				if c.use().Gateway != b.key {
					t.Fatalf("uses %+v", c.use())
				}
				for _, row := range c.Status().Using.Candidates {
					if row.Key == a.key && (row.State != "left alone" || !strings.Contains(row.Why, name)) {
						t.Errorf("%s: %s", row.State, row.Why)
					}
				}
			})
		})
	}
}

// A gateway that leases a client the client's own network would get what all devices there send.
func TestGrantOfOwnNetwork(t *testing.T) {
	g := bare(t)
	if err := g.SetLocal([]netip.Prefix{netip.MustParsePrefix("2001:db8:1::/64"), netip.MustParsePrefix("2001:db8:1::7/128"), netip.MustParsePrefix("100.70.1.0/24"),
		netip.MustParsePrefix("100.86.0.0/16"), netip.MustParsePrefix("2000::/3")}); err != nil {
		t.Fatal(err)
	}
	for prefix, bad := range map[string]bool{"2001:db8:1::/64": true, "2001:db8:1::/48": true, "2001:db8:1::1/128": true, "2001:db8:2::/64": false} {
		if why := g.tangled(&message{v6: netip.MustParsePrefix(prefix)}); (why != "") != bad {
			t.Errorf("%s: %q", prefix, why)
		}
	}
	for a, bad := range map[string]bool{"100.70.1.1": true, "100.70.2.1": false, "100.86.0.9": false} {
		if why := g.tangled(&message{v4: netip.MustParseAddr(a)}); (why != "") != bad {
			t.Errorf("%s: %q", a, why)
		}
	}
}

// Nothing but answers from the gateway in use reaches the client's host.
func TestClientIsClosed(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		a, b, c := w.node(key(1), 5*time.Millisecond), w.node(key(3), 9*time.Millisecond), w.node(key(2), 0)
		a.mustOffer(plain)
		b.mustOffer(plain)
		c.mustUse(both)
		time.Sleep(5 * time.Second)
		to := c.use().IPv4
		for _, x := range []struct {
			from ident.PublicKey
			ip   []byte
			want bool
		}{
			{a.key, tcp(web, to, 443, 1, tcpSYN|tcpACK), true}, // firewall.Outside would look at the flow
			{b.key, tcp(web, to, 443, 1, tcpSYN|tcpACK), false},
			{a.key, tcp(netip.MustParseAddr("127.0.0.1"), to, 443, 1, tcpSYN|tcpACK), false},
			{a.key, tcp(web, netip.MustParseAddr("192.168.1.1"), 443, 1, tcpSYN|tcpACK), false},
			{a.key, tcp(web, netip.MustParseAddr("100.64.9.9"), 443, 1, tcpSYN|tcpACK), false},
			{a.key, tcp(web6, c.key.Addr(), 443, 1, tcpSYN|tcpACK), true},
			{a.key, tcp(web6, netip.MustParseAddr("2001:db8::1"), 443, 1, tcpSYN|tcpACK), false},
			{a.key, []byte{0x45}, false},
			{a.key, nil, false},
		} {
			if got := c.FromPeer(x.from, x.ip, false); got != x.want {
				t.Errorf("%x from %v: %v", x.ip, x.from.ID(), got)
			}
		}
	})
}

// FromHost sends under the lease's addresses only, and says at once when there is no way.
func TestHostWithoutLease(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		a, c := w.node(key(1), 5*time.Millisecond), w.node(key(2), 0)
		if c.sendFromHost(tcp(netip.MustParseAddr("100.64.1.1"), web, 1, 443, tcpSYN)) {
			t.Error("sent without a gateway")
		}
		time.Sleep(time.Second)
		if c.written() != 1 || c.packets()[0][20] != 3 || c.packets()[0][21] != 13 {
			t.Errorf("the host was told %x", c.packets())
		}
		a.mustOffer(plain)
		c.mustUse(both)
		time.Sleep(5 * time.Second)
		for _, src := range []string{"100.64.1.1", "192.168.0.1", "2001:db8::1", key(1).Addr().String()} {
			dst := web
			if strings.Contains(src, ":") {
				dst = web6
			}
			if c.sendFromHost(tcp(netip.MustParseAddr(src), dst, 1, 443, tcpSYN)) {
				t.Errorf("sent with source %s", src)
			}
		}
		if !c.sendFromHost(tcp(c.key.Subnet().Addr().Next(), web6, 1, 443, tcpSYN)) {
			t.Error("a device behind the node cannot send")
		}
	})
}

// A lease's addresses: the same from every gateway, and after a day without.
func TestSameAddressEverywhere(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		a, b := w.node(key(1), 5*time.Millisecond), w.node(key(3), 5*time.Millisecond)
		routed := with(plain, func(c *OfferConfig) { c.Routed = netip.MustParsePrefix("2001:db8:7::/56") })
		a.mustOffer(routed)
		b.mustOffer(routed)
		seen := map[netip.Addr]bool{}
		for n := range byte(60) {
			k := key(n + 10)
			x := a.request(k, &message{kind: msgRequest, id: 1, families: wantDefault}, time.Now())
			y := b.request(k, &message{kind: msgRequest, id: 1, families: wantDefault}, time.Now())
			if x.v4 != y.v4 || x.v6 != y.v6 || x.v6.Bits() != 64 || seen[x.v4] || seen[x.v6.Addr()] {
				t.Errorf("%v and %v, %v and %v", x.v4, y.v4, x.v6, y.v6)
			}
			seen[x.v4], seen[x.v6.Addr()] = true, true
		}
	})
}

func TestNAT64(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		gw, c := w.node(key(1), 5*time.Millisecond), w.node(key(2), 5*time.Millisecond)
		prefix := netip.MustParsePrefix("64:ff9b:1:2::/96")
		gw.mustOffer(with(plain, func(c *OfferConfig) { c.NAT64 = prefix }))
		c.mustUse(both)
		time.Sleep(2 * time.Second)
		if c.use().NAT64 != prefix {
			t.Fatalf("granted %+v", c.use())
		}
		p, err := nat64.NewPrefix(prefix)
		if err != nil {
			t.Fatal(err)
		}
		to, _ := p.Embed(web)
		out := udp(c.key.Addr(), to, 1000, 53, 40)
		tun.FinishChecksum(out)
		c.sendFromHost(out)
		time.Sleep(time.Second)
		if len(gw.packets()) != 1 || len(c.packets()) != 1 {
			t.Fatalf("%d packets at the gateway, %d at the client: %v", len(gw.packets()), len(c.packets()), gw.Status().Refused)
		}
		if src, dst, _ := ends(gw.packets()[0]); !DefaultPool.Contains(src.netip()) || dst.netip() != web {
			t.Errorf("went out from %v to %v", src.netip(), dst.netip())
		}
		if src, dst, _ := ends(c.packets()[0]); src.netip() != to || dst.netip() != c.key.Addr() {
			t.Errorf("came back from %v to %v", src.netip(), dst.netip())
		}
		// What is too long and may be cut is cut.
		in := udp(web, netip.AddrFrom4([4]byte(gw.packets()[0][12:16])), 53, 1000, 1400)
		tun.FinishChecksum(in)
		binary.BigEndian.PutUint16(in[10:], ^tun.Sum(in[:20], 0))
		gw.sendFromHost(in)
		time.Sleep(time.Second)
		if got := c.packets(); len(got) != 3 || got[1][6] != protoFragment || got[2][6] != protoFragment || len(got[1]) > 1280 || len(got[2]) > 1280 {
			t.Errorf("a long packet came as %d: %v", len(got)-1, gw.Status().Refused)
		}
		bad, _ := p.Embed(lan)
		before := len(gw.packets())
		c.sendFromHost(udp(c.key.Addr(), bad, 1000, 53, 40))
		time.Sleep(time.Second)
		if len(gw.packets()) != before {
			t.Error("reached the gateway's LAN through NAT64")
		}
	})
}

// Members share the line by weight; nobody's flood starves another.
func TestFairShare(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		gw := w.node(key(1), time.Millisecond)
		gw.set(func() { gw.deaf = true })
		gw.set(func() { gw.members = func(k ident.PublicKey) Tier { return Tier{Member: true, Weight: int(k[0])} } })
		gw.mustOffer(with(plain, func(c *OfferConfig) { c.UpKbps, c.DownKbps, c.ReservePercent = 10_000, 10_000, 20 }))
		got := map[netip.Addr]int{}
		var cs []*node
		for _, k := range []byte{2, 4} {
			c := w.node(key(k), time.Millisecond)
			c.mustUse(both)
			cs = append(cs, c)
		}
		time.Sleep(3 * time.Second)
		for range 1000 { // each sends 12 Mbit/s for a second
			for _, c := range cs {
				gw.FromPeer(c.key, udp(c.use().IPv4, web, 1, 9, 1472), false)
			}
			time.Sleep(time.Millisecond)
		}
		total := 0
		for _, p := range gw.packets() {
			src, _, _ := ends(p)
			got[src.netip()] += len(p)
			total += len(p)
		}
		if bits := total * 8; bits < 7_600_000 || bits > 8_400_000 {
			t.Errorf("%d bits in a second, want 8,000,000", bits)
		}
		if r := float64(got[cs[1].use().IPv4]) / float64(got[cs[0].use().IPv4]); r < 1.8 || r > 2.2 {
			t.Errorf("weight 4 got %.2f times what weight 2 got", r)
		}
	})
}

// Super-packets of the host are cut where they would hold up the line.
func TestSuperPacketsAreCut(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		gw, c := w.node(key(1), time.Millisecond), w.node(key(2), time.Millisecond)
		gw.mustOffer(with(plain, func(c *OfferConfig) { c.DownKbps = 20_000 }))
		c.mustUse(both)
		time.Sleep(3 * time.Second)
		big := udp(web, c.use().IPv4, 53, 1, 40_000)
		if _, ok := gw.FromHost(&tun.Packet{Data: big, SegSize: 1000, Partial: true}); ok {
			t.Fatal("not held back")
		}
		time.Sleep(time.Second)
		if s := gw.Status().Offering.Clients[0]; s.DownRate < 10_000 || s.DownRate > 40_028 {
			t.Errorf("a rate of %d bytes/s", s.DownRate)
		}
		n := 0
		for _, p := range c.packets() {
			n += len(p) - 28
			if len(p) > 5028 {
				t.Errorf("a piece of %d bytes takes the line for more than 2 ms", len(p))
			}
		}
		if n != 40_000 {
			t.Errorf("%d bytes arrived", n)
		}
	})
}

func TestRateLimit(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		gw, c := w.node(key(1), time.Millisecond), w.node(key(2), time.Millisecond)
		gw.mustOffer(OfferConfig{IPv4: true, MembersOnly: true, FreeTierKbps: 1000, Price: 7})
		gw.set(func() { gw.members = func(ident.PublicKey) Tier { return Tier{Name: "guest"} } })
		c.mustUse(both)
		time.Sleep(3 * time.Second)
		u := c.use()
		if !u.FreeTier || u.Price != 0 || u.Limits.DownKbps != 1000 {
			t.Fatalf("granted %+v", u)
		}
		passed := 0
		for range 5000 {
			if gw.FromPeer(c.key, udp(u.IPv4, web, 1, 9, 1222), false) {
				passed += 1250
			}
			time.Sleep(2 * time.Millisecond)
		}
		if passed < 1_200_000 || passed > 1_350_000 { // ten seconds and what the bucket held
			t.Errorf("%d bytes in 10 s at 1 Mbit/s", passed)
		}
	})
}

func TestOfferErrors(t *testing.T) {
	g := bare(t)
	for want, c := range map[string]OfferConfig{
		"no way to the internet": {},
		"lease pool":             {IPv4: true, Pool: netip.MustParsePrefix("10.0.0.0/8")},
		"routed prefix":          {Routed: netip.MustParsePrefix("fd00::/48")},
		"NAT64 prefix":           {NAT64: netip.MustParsePrefix("2001:db8::/64")},
		"percent":                {IPv4: true, ReservePercent: 100},
		"MTU":                    {IPv4: true, MTU: 100},
		"leases at most":         {IPv4: true, MaxLeases: 1e6},
		"leases of":              {IPv4: true, Lifetime: time.Second},
	} {
		if err := g.Offer(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
	for want, c := range map[string]Choice{"which node": {Mode: Node}, "off, auto": {Mode: 9}, "must be wanted": {Mode: Auto, Want: DNS}} {
		if err := g.Use(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
	if fmt.Sprint(g.Status().Offering.Text) != "this node shares no line" {
		t.Error("an offer with an error is in force")
	}
}

// Names are asked of the gateway's mesh address, which this package does not see: whoever asks tells of silence.
func TestDoubt(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		a, b, c := w.node(key(1), 5*time.Millisecond), w.node(key(3), 20*time.Millisecond), w.node(key(2), 0)
		a.mustOffer(plain)
		b.mustOffer(plain)
		c.mustUse(both)
		time.Sleep(20 * time.Minute)
		c.Doubt()
		time.Sleep(2 * time.Second)
		if c.use().Gateway != a.key {
			t.Fatal("left a gateway that answers")
		}
		a.kill(false)
		c.Doubt()
		time.Sleep(1100 * time.Millisecond)
		if c.use().Gateway != b.key {
			t.Errorf("still uses %s", c.use().Name)
		}
	})
}

// A bad way is not a dead gateway.
func TestLossIsNotDeath(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		a, b, c := w.node(key(1), 15*time.Millisecond), w.node(key(3), 16*time.Millisecond), w.node(key(2), 0)
		a.mustOffer(plain)
		b.mustOffer(plain)
		w.mu.Lock()
		w.loss = 0.1
		w.mu.Unlock()
		c.mustUse(both)
		time.Sleep(10 * time.Second)
		for i := range uint16(3600) {
			c.browse(web, i, time.Second)
		}
		if s := c.Status().Using; s.Failovers != 0 || s.Use == nil {
			t.Errorf("%d failovers, %s", s.Failovers, s.LastReason)
		}
	})
}

// A family that is lost is taken from the lease, and comes back with the line.
func TestPartOfTheLine(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		a, c := w.node(key(1), 5*time.Millisecond), w.node(key(2), 5*time.Millisecond)
		a.mustOffer(plain)
		a.SetUplink(true, true)
		c.mustUse(both)
		time.Sleep(2 * time.Second)
		was := c.use()
		a.SetUplink(false, true)
		time.Sleep(time.Second)
		if u := c.use(); u.Gateway != a.key || u.Families != IPv6|DNS || u.IPv4.IsValid() {
			t.Fatalf("without IPv4: %+v", u)
		}
		if c.sendFromHost(tcp(was.IPv4, web, 1, 80, tcpSYN)) {
			t.Error("sent to a line that is down")
		}
		a.SetUplink(true, true)
		time.Sleep(10 * time.Second)
		if u := c.use(); u.IPv4 != was.IPv4 || u.Families != was.Families {
			t.Errorf("with IPv4 again: %+v", u)
		}
		// The only gateway goes and comes.
		a.StopOffer()
		time.Sleep(time.Second)
		if !c.use().Gateway.IsZero() || c.use().Reason == "" {
			t.Errorf("without an offer: %+v", c.use())
		}
		a.mustOffer(plain)
		time.Sleep(7 * time.Second)
		if c.use().IPv4 != was.IPv4 {
			t.Errorf("with an offer again: %+v", c.use())
		}
	})
}

// Who raises the price loses those whose cap is below it, and tells the others.
func TestPriceRises(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		a, c, d := w.node(key(1), 5*time.Millisecond), w.node(key(2), 5*time.Millisecond), w.node(key(3), 5*time.Millisecond)
		a.mustOffer(plain)
		limit := uint32(1500)
		c.mustUse(Choice{Mode: Auto, MaxPrice: &limit})
		d.mustUse(both)
		time.Sleep(2 * time.Second)
		a.set(func() { a.slow = 3 * time.Second }) // the lease protocol is faster than the news
		a.mustOffer(with(plain, func(c *OfferConfig) { c.Price = 2000 }))
		time.Sleep(6 * time.Second)
		if !c.use().Gateway.IsZero() || d.use().Price != 2000 {
			t.Errorf("after the price rose: %+v and %+v", c.use(), d.use())
		}
		if s := d.Status().Using; s.Failovers != 0 {
			t.Errorf("who pays was cut off: %s", s.LastReason)
		}
		if row := c.Status().Using.Candidates[0]; row.State != "unsuitable" || !strings.Contains(row.Why, "allowed") {
			t.Errorf("told: %+v", row)
		}
	})
}

// Many clients and gateways at once over a lossy way: all get on, all addresses differ, and all move when half of the gateways die.
func TestNeighbourhood(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		var gws, cs []*node
		for i := range byte(4) {
			gw := w.node(key(i+1), time.Duration(5+i)*time.Millisecond)
			gw.mustOffer(plain)
			gws = append(gws, gw)
		}
		w.mu.Lock()
		w.loss = 0.03
		w.mu.Unlock()
		for i := range byte(40) {
			c := w.node(key(i+10), time.Duration(i%7)*time.Millisecond)
			c.mustUse(both)
			cs = append(cs, c)
		}
		time.Sleep(10 * time.Second)
		seen := map[netip.Addr]bool{}
		for _, c := range cs {
			if u := c.use(); !u.IPv4.IsValid() || seen[u.IPv4] {
				t.Errorf("%v: %+v", c.key.ID(), u)
			}
			seen[c.use().IPv4] = true
		}
		gws[0].kill(false)
		gws[1].kill(true)
		for i := range uint16(30) {
			for _, c := range cs {
				c.sendFromHost(tcp(c.use().IPv4, web, 100+i, 443, tcpSYN))
			}
			time.Sleep(100 * time.Millisecond)
		}
		for _, c := range cs {
			if u := c.use(); u.Gateway != gws[2].key && u.Gateway != gws[3].key {
				t.Errorf("%v uses %q after 3 s", c.key.ID(), u.Name)
			}
		}
	})
}
