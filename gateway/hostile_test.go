package gateway

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"weft/gateway/nat64"
	"weft/ident"
	"weft/tun"
)

// nowhere is a carrier and a host that lose everything.
type nowhere struct{}

func (nowhere) SendOutside(ident.PublicKey, ...tun.Packet) error { return nil }
func (nowhere) SendMessage(ident.PublicKey, byte, []byte) error  { return nil }
func (nowhere) Ping(context.Context, ident.PublicKey) (time.Duration, error) {
	return 0, context.Canceled
}
func (nowhere) Write([]byte, bool) {}
func (nowhere) Flush() error       { return nil }

// bare is a gateway that does not run.
func bare(t testing.TB) *Gateway {
	g, err := New(Config{Self: key(1), Log: slog.New(slog.DiscardHandler), Carrier: nowhere{}, Host: func() tun.Writer { return nowhere{} }})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// serving is one with a client.
func serving(t testing.TB, c OfferConfig, client ident.PublicKey) (*Gateway, *message) {
	g := bare(t)
	if err := g.Offer(c); err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g, g.request(client, &message{kind: msgRequest, id: 1, families: wantDefault}, time.Now())
}

// What a client may not do, and what it is told.
func TestHostileClient(t *testing.T) {
	k := key(9)
	routed := with(unshaped, func(c *OfferConfig) { c.Routed = netip.MustParsePrefix("2001:db8:7::/56"); c.NAT64 = nat64.WellKnown })
	g, m := serving(t, routed, k)
	if m.kind != msgGrant {
		t.Fatalf("no grant: %+v", m)
	}
	if err := g.SetLocal([]netip.Prefix{netip.MustParsePrefix("203.0.113.1/32"), netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::1/128")}); err != nil {
		t.Fatal(err)
	}
	other := key(8)
	g.mu.Lock()
	theirs := g.request(other, &message{kind: msgRequest, id: 1, families: wantDefault}, time.Now())
	g.mu.Unlock()
	me, a := k.Addr(), netip.MustParseAddr
	first := func(b []byte) []byte { return fragment(b, 7, 0, 1024, true) }
	options := tcp(m.v4, web, 1, 80, tcpSYN)
	options = append(append(append([]byte{}, options[:20]...), 0x83, 3, 4, 0), options[20:]...) // loose source route
	options[0], options[3] = 0x46, byte(len(options))
	hop := ip(me, web6, 0, append([]byte{protoTCP, 0, 1, 4, 0, 0, 0, 0}, tcp(me, web6, 1, 80, tcpSYN)[40:]...))
	long := tcp(m.v4, web, 1, 80, tcpSYN)
	icmpErr := func(inner []byte) []byte {
		return ip(m.v4, web, protoICMP, append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, inner...))
	}
	for name, x := range map[string]struct {
		ip   []byte
		want reason
	}{
		"to the web":                   {tcp(m.v4, web, 1, 80, tcpSYN), passed},
		"to the web over IPv6":         {tcp(me, web6, 1, 80, tcpSYN), passed},
		"from a device behind":         {tcp(k.Subnet().Addr().Next(), web6, 1, 80, tcpSYN), passed},
		"from the routed prefix":       {tcp(m.v6.Addr().Next(), web6, 1, 80, tcpSYN), passed},
		"through NAT64":                {tcp(me, a("64:ff9b::8.8.8.8"), 1, 80, tcpSYN), passed},
		"another's address":            {tcp(theirs.v4, web, 1, 80, tcpSYN), wrongSource},
		"another's mesh address":       {tcp(other.Addr(), web6, 1, 80, tcpSYN), wrongSource},
		"another's prefix":             {tcp(theirs.v6.Addr(), web6, 1, 80, tcpSYN), wrongSource},
		"the gateway's address":        {tcp(key(1).Addr(), web6, 1, 80, tcpSYN), wrongSource},
		"an address of the web":        {tcp(web, web2, 1, 80, tcpSYN), wrongSource},
		"to the LAN":                   {tcp(m.v4, lan, 1, 80, tcpSYN), private},
		"to another client":            {tcp(m.v4, theirs.v4, 1, 80, tcpSYN), private},
		"to loopback":                  {tcp(m.v4, a("127.0.0.1"), 1, 80, tcpSYN), private},
		"to link-local":                {tcp(m.v4, a("169.254.169.254"), 1, 80, tcpSYN), private},
		"to multicast":                 {udp(m.v4, a("224.0.0.251"), 1, 5353, 4), private},
		"to broadcast":                 {udp(m.v4, a("255.255.255.255"), 1, 67, 4), private},
		"to the gateway's own address": {tcp(m.v4, a("203.0.113.1"), 1, 80, tcpSYN), local},
		"to its own over IPv6":         {tcp(me, a("2001:db8::1"), 1, 80, tcpSYN), local},
		"to its network":               {tcp(m.v4, web2, 1, 80, tcpSYN), local},
		"to a mesh address":            {tcp(m.v6.Addr(), other.Addr(), 1, 80, tcpSYN), meshAddress},
		"LAN through NAT64":            {tcp(me, a("64:ff9b::192.168.0.1"), 1, 80, tcpSYN), private},
		"own through NAT64":            {tcp(me, a("64:ff9b::203.0.113.1"), 1, 80, tcpSYN), local},
		"LAN through 6to4":             {tcp(me, a("2002:c0a8:1::1"), 1, 80, tcpSYN), private},
		"LAN through Teredo":           {tcp(me, a("2001:0:c0a8:1::1"), 1, 80, tcpSYN), private},
		"LAN as a Teredo client":       {tcp(me, a("2001:0:808:808:0:0:3f57:fffe"), 1, 80, tcpSYN), private},
		"LAN through ISATAP":           {tcp(me, a("2001:db8::5efe:192.168.0.1"), 1, 80, tcpSYN), private},
		"IPv4-mapped":                  {tcp(me, web6, 1, 80, tcpSYN)[:0:0], malformed},
		"local addresses":              {tcp(me, a("fd00::1"), 1, 80, tcpSYN), private},
		"mail":                         {tcp(m.v4, web, 1, 25, tcpSYN), smtpClosed},
		"mail over IPv6":               {tcp(me, web6, 1, 25, tcpSYN), smtpClosed},
		"later fragment alone":         {fragment(udp(m.v4, web, 1, 80, 3000), 99, 1024, 2048, true), fragmentFirst},
		"first fragment to the LAN":    {first(udp(m.v4, lan, 1, 80, 3000)), private},
		"tiny first fragment":          {fragment(udp(m.v4, web, 1, 80, 3000), 7, 0, 8, true), malformed},
		"overlapping fragment":         {fragment(udp(m.v4, web, 1, 80, 3000), 7, 8, 1024, true), malformed},
		"fragment past the end":        {fragment(udp(m.v4, web, 1, 80, 3000), 7, 1024, 1032, true), malformed},
		"IPv4 options":                 {options, malformed},
		"IPv6 hop-by-hop options":      {hop, protocol},
		"more than the header says":    {append(long, 0), malformed},
		"less than the header says":    {long[:39], malformed},
		"a null scan":                  {tcp(m.v4, web, 1, 80, 0), malformed},
		"SYN and FIN":                  {tcp(m.v4, web, 1, 80, tcpSYN|tcpFIN), malformed},
		"IP in IP":                     {ip(m.v4, web, 4, tcp(lan, lan, 1, 80, tcpSYN)), protocol},
		"6in4":                         {ip(m.v4, web, 41, tcp(me, web6, 1, 80, tcpSYN)), protocol},
		"GRE":                          {ip(m.v4, web, 47, make([]byte, 40)), protocol},
		"ICMP redirect":                {ip(m.v4, web, protoICMP, append([]byte{5, 0, 0, 0, 0, 0, 0, 0}, tcp(web, m.v4, 80, 1, tcpSYN)...)), protocol},
		"router advertisement":         {ip(me, web6, protoICMP6, append([]byte{134, 0}, make([]byte, 20)...)), protocol},
		"echo reply to nothing":        {ip(m.v4, web, protoICMP, make([]byte, 16)), unsolicited},
		"ICMP error about nothing":     {icmpErr(udp(web, m.v4, 9, 9, 0)), unsolicited},
		"ICMP error to another":        {icmpErr(udp(web2, m.v4, 80, 1, 0)), malformed},
		"ICMPv6 in IPv4":               {ip(m.v4, web, protoICMP6, make([]byte, 16)), protocol},
	} {
		before := g.counts[x.want].Load()
		got := g.FromPeer(k, x.ip, false)
		if x.want == passed && !got && name != "through NAT64" || x.want != passed && (got || g.counts[x.want].Load() != before+1) {
			t.Errorf("%s: passed %v, want %q; refused so far %v", name, got, reasonText[x.want], g.Status().Refused)
		}
	}
	if g.FromPeer(key(77), tcp(m.v4, web, 1, 80, tcpSYN), false) || g.counts[noLease].Load() == 0 {
		t.Error("another key sends under the client's address")
	}
	// Fragments pass after their first, and errors about what came back.
	whole := udp(m.v4, web, 1, 80, 3000)
	for i, f := range [][]byte{first(whole), fragment(whole, 7, 1024, 2048, true), fragment(whole, 7, 2048, 3008, false)} {
		if !g.FromPeer(k, f, false) {
			t.Errorf("fragment %d was refused: %v", i, g.Status().Refused)
		}
	}
	if !g.FromPeer(k, icmpErr(tcp(web, m.v4, 80, 1, tcpACK)), false) {
		t.Error("an error about a flow of its own was refused")
	}
	// A change of policy cuts what is open.
	if err := g.SetLocal([]netip.Prefix{netip.MustParsePrefix("203.0.113.80/32")}); err != nil {
		t.Fatal(err)
	}
	if g.FromPeer(k, tcp(m.v4, web, 1, 80, tcpACK), false) || g.FromPeer(k, fragment(whole, 7, 1024, 2048, true), false) {
		t.Error("an open flow outlives the policy")
	}
}

func TestFlowFlood(t *testing.T) {
	k := key(9)
	g, m := serving(t, with(unshaped, func(c *OfferConfig) { c.Limits = Limits{Flows: 500, NewFlows: 100} }), k)
	passed := 0
	send := func(second int, from, to uint16) {
		g.sec.Store(uint32(second))
		for port := from; port < to; port++ {
			if g.FromPeer(k, udp(m.v4, web, port, 80, 4), false) {
				passed++
			}
		}
	}
	send(1000, 1, 10000)
	if passed != 400 {
		t.Errorf("%d flows at once, want 400", passed)
	}
	send(1001, 10000, 20000)
	if passed < 500 || passed > 510 {
		t.Errorf("%d flows after a second, want 500", passed)
	}
	send(1002, 20000, 30000)
	if passed > 510 || g.counts[tooManyFlows].Load() == 0 || g.counts[tooFast].Load() == 0 {
		t.Errorf("%d flows, want no more than 500: %v", passed, g.Status().Refused)
	}
	if !g.FromPeer(k, udp(m.v4, web, 1, 80, 4), false) {
		t.Error("an open flow suffers")
	}
	if c := g.Status().Offering.Clients[0]; c.Flows != 500 {
		t.Errorf("%d flows are told", c.Flows)
	}
	send(1100, 1, 201) // all but the one have expired
	if passed < 700 || passed > 710 {
		t.Errorf("%d flows after they expired, want 700", passed)
	}
	used := maxFlowsAll - g.leases.budget.Load()
	if used > 4*512 {
		t.Errorf("%d slots are taken", used)
	}
	g.StopOffer()
	if left := g.leases.budget.Load(); left != maxFlowsAll {
		t.Errorf("%d slots were given back of %d", left, maxFlowsAll)
	}
}

// Many keys take leases: members keep their part, addresses are all different, and all come back.
func TestLeaseFlood(t *testing.T) {
	g := bare(t)
	g.cfg.Member = func(k ident.PublicKey) Tier { return Tier{Member: k[2] == 1} }
	if err := g.Offer(with(plain, func(c *OfferConfig) { c.MaxLeases = 80 })); err != nil {
		t.Fatal(err)
	}
	codes := map[Code]int{}
	seen := map[netip.Addr]bool{}
	g.mu.Lock()
	defer g.mu.Unlock()
	ask := func(i int, member byte) {
		k := ident.PublicKey{byte(i), byte(i >> 8), member, 5}
		m := g.request(k, &message{kind: msgRequest, id: 1, families: IPv4}, time.Now())
		codes[m.code]++
		if m.kind == msgGrant && (seen[m.v4] || !DefaultPool.Contains(m.v4)) {
			t.Errorf("%v was leased twice", m.v4)
		}
		seen[m.v4] = true
	}
	for i := range 1000 {
		ask(i, 0)
	}
	if codes[0] != 60 || codes[CodeFull] == 0 || codes[CodeSlowDown] == 0 {
		t.Errorf("others got %v, want 60 leases", codes)
	}
	clear(codes)
	for i := range 100 {
		ask(i, 1)
	}
	if codes[0] != 20 || codes[CodeFull] != 80 {
		t.Errorf("members got %v, want 20 leases", codes)
	}
	for _, l := range g.leases.all() {
		g.endLease(l, time.Now())
	}
	if n := len(g.leases.byAddr) + len(g.leases.byNet) + len(g.leases.byKey); n != 0 {
		t.Errorf("%d entries are left", n)
	}
}

// Who takes an address that another client has just given back must not get what is still on its way to that one.
func TestAddressRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan []netip.Addr)
		g, err := New(Config{Self: key(1), Log: slog.New(slog.DiscardHandler), Carrier: nowhere{}, Host: func() tun.Writer { return nowhere{} },
			Ended: func(a []netip.Addr) { ended <- a }})
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Offer(with(unshaped, func(c *OfferConfig) { c.NAT64 = nat64.WellKnown })); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.Serve(ctx) }()
		ask := func(k ident.PublicKey, had netip.Addr) netip.Addr {
			g.mu.Lock()
			defer g.mu.Unlock()
			return g.request(k, &message{kind: msgRequest, id: 1, families: IPv4, v4: had}, time.Now()).v4
		}
		victim := key(9)
		v4 := ask(victim, netip.Addr{})
		// A key whose first place is the victim's address: some 65,000 tries find one.
		thief := ident.PublicKey{7}
		for n := uint32(0); ; n++ {
			binary.BigEndian.PutUint32(thief[1:], n)
			if addr4(uint32(addrOf(DefaultPool.Addr()).lo)+reserved+uint32(place("weft/lease4/1", thief[:], 0, 1<<16-reserved-1))) == addrOf(v4) {
				break
			}
		}
		release := func(k ident.PublicKey) {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.endLease(g.leases.of(k), time.Now())
		}
		release(victim)
		if a := ask(thief, v4); a == v4 || !a.IsValid() {
			t.Fatalf("the thief got %v at once", a)
		}
		release(thief)
		if a := ask(victim, v4); a != v4 {
			t.Errorf("whoever had it gets %v back", a)
		}
		release(victim)
		if a := <-ended; !slices.Contains(a, v4) || !slices.Contains(a, victim.Addr()) || !slices.Contains(a, victim.Subnet().Addr()) || !slices.Contains(a, thief.Addr()) {
			t.Errorf("ended: %v", a)
		}
		synctest.Wait()
		time.Sleep(time.Second)
		synctest.Wait()
		if a := ask(thief, v4); a != v4 {
			t.Errorf("after its connections were ended it is %v", a)
		}
		tr := g.table64.Load()
		six := netip.MustParseAddr("2001:db8::7")
		mapped, ok := tr.table.Map(nat64.Owner(thief), six)
		if !ok {
			t.Fatal("no NAT64")
		}
		tr.table.Release(nat64.Owner(thief))
		if again, _ := tr.table.Map(nat64.Owner(victim), six); again == mapped {
			t.Error("an address of NAT64 goes to another client at once")
		}
		if a := <-ended; !slices.Contains(a, mapped) {
			t.Errorf("ended: %v, want %v", a, mapped)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A peer cannot fill the queue of messages for others, whatever it sends.
func TestMessageFlood(t *testing.T) {
	g := bare(t)
	g.serving = true
	good := (&message{kind: msgRequest, id: 1, families: IPv4}).appendTo(nil)
	for i := range 100 {
		g.Handle(key(5), good)
		g.Handle(key(6), good[:i%len(good)])
	}
	if len(g.inbox) != 2*perPeer {
		t.Errorf("%d messages wait, want %d", len(g.inbox), 2*perPeer)
	}
	for i := range 10 * maxInbox {
		g.Handle(ident.PublicKey{byte(i), byte(i >> 8), byte(i >> 16)}, good)
	}
	if len(g.inbox) != maxInbox || g.Status().BadMsgs == 0 {
		t.Errorf("%d messages wait, %d counted", len(g.inbox), g.Status().BadMsgs)
	}
}

// Refused packets are answered, so that programs fail at once, but not without end.
func TestProhibitedIsTold(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		gw, c := w.node(key(1), time.Millisecond), w.node(key(2), time.Millisecond)
		gw.mustOffer(plain)
		c.mustUse(both)
		time.Sleep(2*time.Second + 500*time.Millisecond)
		for i := range uint16(100) {
			c.sendFromHost(tcp(c.use().IPv4, lan, i, 80, tcpSYN))
		}
		time.Sleep(100 * time.Millisecond)
		if n := c.written(); n != answersPerSecond {
			t.Fatalf("%d answers, want %d", n, answersPerSecond)
		}
		var p packet
		if r := p.parse(c.packets()[0], false); r != passed || p.class != classError || p.about.dstPort() != 80 || tun.Sum(c.packets()[0][:20], 0) != 0xffff || tun.Sum(c.packets()[0][20:], 0) != 0xffff {
			t.Errorf("answer %x: %v %+v", c.packets()[0], r, p)
		}
		time.Sleep(2 * time.Second)
		before := c.written()
		c.sendFromHost(tcp(c.key.Addr(), netip.MustParseAddr("fd00::1"), 1, 80, tcpSYN))
		time.Sleep(time.Second)
		b := c.packets()[len(c.packets())-1]
		if c.written() != before+1 || b[6] != protoICMP6 || tun.Sum(b[40:], tun.PseudoSum(b, protoICMP6, len(b)-40)) != 0xffff {
			t.Errorf("answer over IPv6: %x", b)
		}
	})
}

// The packet path allocates nothing where nothing has to wait.
func TestAllocs(t *testing.T) {
	k := key(9)
	g, m := serving(t, OfferConfig{IPv4: true, IPv6: true}, k)
	up, up6 := tcp(m.v4, web, 1, 80, tcpACK), tcp(k.Addr(), web6, 1, 80, tcpACK)
	down := tun.Packet{Data: tcp(web, m.v4, 80, 1, tcpACK)}
	bad := tcp(lan, web, 1, 80, tcpACK)
	c := bare(t)
	u := &inUse{gateway: k, has4: true, has6: true, v4: addrOf(m.v4)}
	c.client.use.Store(u)
	out, back := tun.Packet{Data: tcp(m.v4, web, 1, 80, tcpACK|tcpSYN)}, tcp(web, m.v4, 80, 1, tcpACK)
	port := uint16(0)
	for name, f := range map[string]func() bool{
		"a client's packet":           func() bool { return g.FromPeer(k, up, false) },
		"a client's IPv6 packet":      func() bool { return g.FromPeer(k, up6, false) },
		"a packet for a client":       func() bool { _, ok := g.FromHost(&down); return ok },
		"a refused one":               func() bool { return !g.FromPeer(k, bad, false) },
		"a packet to a gateway":       func() bool { _, ok := c.FromHost(&out); return ok },
		"a packet from a gateway":     func() bool { return c.FromPeer(k, back, false) },
		"the first of a flow, judged": func() bool { port++; return g.policy.Load().judge(protoTCP, addrOf(web), port|1<<15) == passed },
	} {
		if n := testing.AllocsPerRun(100, func() {
			if !f() {
				t.Errorf("%s: wrong verdict", name)
			}
		}); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func BenchmarkFromPeer(b *testing.B) {
	k := key(9)
	g, m := serving(b, OfferConfig{IPv4: true}, k)
	p := tcp(m.v4, web, 1, 80, tcpACK)
	for b.Loop() {
		g.FromPeer(k, p, false)
	}
}

func BenchmarkFromHost(b *testing.B) {
	k := key(9)
	g, m := serving(b, OfferConfig{IPv4: true}, k)
	p := tun.Packet{Data: tcp(web, m.v4, 80, 1, tcpACK)}
	for b.Loop() {
		g.FromHost(&p)
	}
}

// FuzzFromPeer: whatever a client sends, nothing crashes, and what passes is from it and not to where nobody may go.
func FuzzFromPeer(f *testing.F) {
	k := key(9)
	_, m := serving(f, unshaped, k)
	f.Add(tcp(m.v4, web, 1, 80, tcpSYN))
	f.Add(udp(k.Addr(), web6, 1, 80, 9))
	f.Add(echo(m.v4, web, 1))
	f.Add(fragment(udp(m.v4, web, 1, 80, 3000), 7, 0, 1024, true))
	f.Add(ip(m.v4, web, protoICMP, append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, udp(web, m.v4, 9, 9, 0)...)))
	f.Fuzz(func(t *testing.T, b []byte) {
		g, m := serving(t, unshaped, k)
		if g.FromPeer(k, b, false) {
			src, dst, _ := ends(b)
			if src.netip() != m.v4 && src.netip() != k.Addr() && !k.Subnet().Contains(src.netip()) {
				t.Fatalf("passed with source %v", src.netip())
			}
			if why := naive(nil, nil, protoUDP, dst.netip(), 1); why != "" {
				t.Fatalf("passed to %v: %s", dst.netip(), why)
			}
		}
		p := tun.Packet{Data: b}
		g.FromHost(&p)
		g.FromPeer(key(3), b, true)
	})
}
