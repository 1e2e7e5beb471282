package firewall

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/ident"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	me     = ident.PublicKey{1, 2, 3}
	friend = ident.PublicKey{4, 5, 6}
	other  = ident.PublicKey{7, 8, 9}
	t0     = time.Unix(1_800_000_000, 0)
)

// behind returns an address in k's subnet.
func behind(k ident.PublicKey, n byte) netip.Addr {
	a := k.Subnet().Addr().As16()
	a[15] = n
	return netip.AddrFrom16(a)
}

func ip6(src, dst netip.Addr, proto uint8, payload []byte) []byte {
	b := make([]byte, 40, 40+len(payload))
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	b[6], b[7] = proto, 64
	s, d := src.As16(), dst.As16()
	copy(b[8:], s[:])
	copy(b[24:], d[:])
	return append(b, payload...)
}

func tcp(src, dst netip.AddrPort, flags uint8) []byte {
	b := make([]byte, 24)
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	b[12], b[13] = 5<<4, flags
	return ip6(src.Addr(), dst.Addr(), protoTCP, b)
}

func udp(src, dst netip.AddrPort) []byte {
	b := make([]byte, 12)
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
	return ip6(src.Addr(), dst.Addr(), protoUDP, b)
}

func icmp(src, dst netip.Addr, typ uint8, id uint16, body []byte) []byte {
	b := make([]byte, 8, 8+len(body))
	b[0] = typ
	binary.BigEndian.PutUint16(b[4:], id)
	return ip6(src, dst, protoICMP, append(b, body...))
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func newFirewall(t testing.TB, rules ...string) *Firewall {
	t.Helper()
	f, err := New(me, mustRules(t, rules...), t0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func mustRules(t testing.TB, rules ...string) Rules {
	t.Helper()
	rs, err := ParseRules(rules, map[string][]string{"family": {friend.String()}, "empty": nil})
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

func expect(t testing.TB, p *Peer, ip []byte, want bool, what string) {
	t.Helper()
	if got := p.In(ip); got != want {
		t.Errorf("%s: In = %v, want %v", what, got, want)
	}
}

func TestClosedByDefaultAndRepliesPass(t *testing.T) {
	f := newFirewall(t)
	p := f.Peer(friend, false)
	here, there := at(me.Addr(), 40000), at(friend.Addr(), 80)
	expect(t, p, tcp(there, at(me.Addr(), 22), syn), false, "SYN to a closed port")
	expect(t, p, udp(there, here), false, "UDP nobody asked for")
	expect(t, p, icmp(friend.Addr(), me.Addr(), 128, 1, nil), true, "echo request")
	expect(t, p, icmp(friend.Addr(), behind(me, 1), 128, 1, nil), false, "echo request to a device behind")
	expect(t, p, icmp(friend.Addr(), me.Addr(), 129, 1, nil), false, "echo reply nobody asked for")

	p.Out(tcp(here, there, syn))
	expect(t, p, tcp(there, here, syn|ack), true, "SYN+ACK")
	p.Out(tcp(here, there, ack))
	expect(t, p, tcp(there, here, ack), true, "data")
	expect(t, p, tcp(there, at(me.Addr(), 40001), ack), false, "data to another port")
	expect(t, p, tcp(there, here, syn), false, "the server connects back over the same ports")

	p.Out(udp(here, there))
	expect(t, p, udp(there, here), true, "UDP reply")
	p.Out(icmp(me.Addr(), friend.Addr(), 128, 7, nil))
	expect(t, p, icmp(friend.Addr(), me.Addr(), 129, 7, nil), true, "echo reply")
	expect(t, p, icmp(friend.Addr(), me.Addr(), 129, 8, nil), false, "echo reply with another identifier")

	// Another peer gains nothing from it.
	q := f.Peer(other, false)
	expect(t, q, udp(at(other.Addr(), 80), here), false, "another peer")
	expect(t, q, udp(there, here), false, "another peer with a stolen address")
}

func TestRules(t *testing.T) {
	f := newFirewall(t,
		"block tcp 25 from any",
		"allow tcp 22,8000-8100 from group:family",
		"allow udp from key:"+other.String(),
		"allow any 53 from community",
		"allow tcp 80 to behind from any",
		"allow icmp to "+behind(me, 9).String()+" from group:family",
		"block icmp from key:"+other.String(),
		"allow tcp 25 from any",
	)
	fam, stranger := f.Peer(friend, true), f.Peer(other, false)
	here := func(port uint16) netip.AddrPort { return at(me.Addr(), port) }
	dev := at(behind(me, 3), 80)
	for _, c := range []struct {
		who  *Peer
		ip   func(from netip.AddrPort) []byte
		want bool
		what string
	}{
		{fam, func(s netip.AddrPort) []byte { return tcp(s, here(22), syn) }, true, "family, ssh"},
		{fam, func(s netip.AddrPort) []byte { return tcp(s, here(8100), syn) }, true, "family, end of the range"},
		{fam, func(s netip.AddrPort) []byte { return tcp(s, here(8101), syn) }, false, "family, beyond the range"},
		{fam, func(s netip.AddrPort) []byte { return udp(s, here(53)) }, true, "member, DNS over UDP"},
		{fam, func(s netip.AddrPort) []byte { return tcp(s, here(53), syn) }, true, "member, DNS over TCP"},
		{fam, func(s netip.AddrPort) []byte { return udp(s, here(54)) }, false, "member, other UDP"},
		{fam, func(s netip.AddrPort) []byte { return tcp(s, here(25), syn) }, false, "blocked before allowed"},
		{fam, func(s netip.AddrPort) []byte { return ip6(s.Addr(), me.Addr(), 132, make([]byte, 16)) }, false, "SCTP"},
		{fam, func(s netip.AddrPort) []byte { return icmp(s.Addr(), behind(me, 9), 128, 1, nil) }, true, "family pings the device"},
		{fam, func(s netip.AddrPort) []byte { return icmp(s.Addr(), behind(me, 8), 128, 1, nil) }, false, "family pings another device"},
		{stranger, func(s netip.AddrPort) []byte { return tcp(s, here(22), syn) }, false, "stranger, ssh"},
		{stranger, func(s netip.AddrPort) []byte { return udp(s, here(7)) }, true, "UDP by key"},
		{stranger, func(s netip.AddrPort) []byte { return tcp(s, here(53), syn) }, false, "no member, DNS"},
		{stranger, func(s netip.AddrPort) []byte { return tcp(s, here(80), syn) }, false, "the rule for devices is not for the node"},
		{stranger, func(s netip.AddrPort) []byte { return tcp(s, dev, syn) }, true, "web of a device"},
		{stranger, func(s netip.AddrPort) []byte { return icmp(s.Addr(), me.Addr(), 128, 1, nil) }, false, "blocked echo"},
	} {
		expect(t, c.who, c.ip(at(c.who.key.Addr(), 40000)), c.want, c.what)
		expect(t, c.who, c.ip(at(behind(c.who.key, 7), 40000)), c.want, c.what+", from a device behind the peer")
	}
	if s := f.InForce(); s[0].Hits != 2 || s[7].Hits != 0 {
		t.Errorf("hits of the first and the last rule: %d and %d, want 2 and 0", s[0].Hits, s[7].Hits)
	}
	if s := f.Stats(); s.Blocked != 4 {
		t.Errorf("%d blocked, want 4", s.Blocked)
	}
}

func TestNewRulesCutWhatTheyRefuse(t *testing.T) {
	f := newFirewall(t, "allow any from any")
	p := f.Peer(friend, false)
	here, there := at(me.Addr(), 22), at(friend.Addr(), 40000)
	expect(t, p, tcp(there, here, syn), true, "SYN")
	p.Out(tcp(here, there, syn|ack))
	expect(t, p, tcp(there, here, ack), true, "data")
	mine := at(me.Addr(), 50000)
	p.Out(tcp(mine, there, syn))
	expect(t, p, tcp(there, mine, syn|ack), true, "SYN+ACK to my connection")
	if err := f.SetRules(mustRules(t)); err != nil {
		t.Fatal(err)
	}
	expect(t, p, tcp(there, here, ack), false, "data of a connection that may be no more")
	p.Out(tcp(here, there, ack)) // the server's retransmission must not reopen it
	expect(t, p, tcp(there, here, ack), false, "data after our retransmission")
	expect(t, p, tcp(there, here, syn), false, "a new SYN")
	expect(t, p, tcp(there, mine, ack), true, "data of my own connection")
	if err := f.SetRules(mustRules(t, "allow tcp 22 from any")); err != nil {
		t.Fatal(err)
	}
	expect(t, p, tcp(there, here, ack), true, "data after it is allowed again")
}

func TestAppsOpenBehindTheOwnersRules(t *testing.T) {
	f := newFirewall(t, "block tcp 7000 from group:family")
	rule, err := ParseRule("allow tcp 7000 from any")
	if err != nil {
		t.Fatal(err)
	}
	shut, err := f.Open(rule)
	if err != nil {
		t.Fatal(err)
	}
	p, q := f.Peer(friend, false), f.Peer(other, false)
	expect(t, p, tcp(at(friend.Addr(), 1), at(me.Addr(), 7000), syn), false, "blocked by the owner")
	expect(t, q, tcp(at(other.Addr(), 1), at(me.Addr(), 7000), syn), true, "opened by the app")
	if s := f.InForce(); len(s) != 2 || s[0].App || !s[1].App {
		t.Errorf("in force: %+v", s)
	}
	shut()
	expect(t, q, tcp(at(other.Addr(), 2), at(me.Addr(), 7000), syn), false, "after the app has ended")
	expect(t, q, tcp(at(other.Addr(), 1), at(me.Addr(), 7000), ack), false, "the app's connection after it has ended")
}

func TestICMPErrors(t *testing.T) {
	f := newFirewall(t)
	p := f.Peer(friend, false)
	here, there := at(me.Addr(), 40000), at(friend.Addr(), 80)
	sent := udp(here, there)
	tooBig := func(quote []byte) []byte { return icmp(friend.Addr(), me.Addr(), 2, 0, quote) }
	expect(t, p, tooBig(sent), false, "about a packet never sent")
	p.Out(sent)
	expect(t, p, tooBig(sent), true, "about a packet sent")
	expect(t, p, tooBig(sent[:48]), true, "with the shortest quote")
	expect(t, p, tooBig(sent[:47]), false, "with a shorter one")
	expect(t, p, icmp(friend.Addr(), behind(me, 1), 2, 0, sent), false, "told to another address")
	expect(t, p, icmp(behind(friend, 1), me.Addr(), 3, 0, sent), true, "told by a router behind the peer")
	expect(t, p, icmp(friend.Addr(), me.Addr(), 135, 0, make([]byte, 16)), false, "neighbour solicitation")
	ping := icmp(me.Addr(), friend.Addr(), 128, 5, nil)
	expect(t, p, tooBig(ping), false, "about an echo never sent")
	p.Out(ping)
	expect(t, p, tooBig(ping), true, "about an echo sent")
	q := f.Peer(other, false)
	expect(t, q, icmp(other.Addr(), me.Addr(), 2, 0, sent), false, "about a packet to somebody else")
}

func fragment(ip []byte, id uint32, offset, size int) []byte {
	payload := ip[40:]
	end := min(offset+size, len(payload))
	h := make([]byte, 8)
	h[0] = ip[6]
	binary.BigEndian.PutUint16(h[2:], uint16(offset))
	if end < len(payload) {
		h[3] |= 1
	}
	binary.BigEndian.PutUint32(h[4:], id)
	src, _ := netip.AddrFromSlice(ip[8:24])
	dst, _ := netip.AddrFromSlice(ip[24:40])
	return ip6(src, dst, protoFragment, append(h, payload[offset:end]...))
}

func TestFragments(t *testing.T) {
	f := newFirewall(t, "allow udp 53 from any")
	p := f.Peer(friend, false)
	there := at(friend.Addr(), 1000)
	big := func(port uint16) []byte {
		b := append(udp(there, at(me.Addr(), port)), make([]byte, 3000)...)
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
		binary.BigEndian.PutUint16(b[44:], uint16(len(b)-40))
		return b
	}
	good, bad := big(53), big(54)
	expect(t, p, fragment(good, 1, 1232, 1232), false, "a later fragment before the first")
	expect(t, p, fragment(good, 1, 0, 1232), true, "a first fragment")
	expect(t, p, fragment(good, 1, 1232, 1232), true, "the second")
	expect(t, p, fragment(good, 1, 2464, 1232), true, "the last")
	expect(t, p, fragment(good, 2, 1232, 1232), false, "of another packet")
	expect(t, p, fragment(bad, 1, 0, 1232), false, "a first fragment to a closed port under the same number")
	expect(t, p, fragment(bad, 3, 0, 1232), false, "a first fragment to a closed port")
	expect(t, p, fragment(bad, 3, 1232, 1232), false, "the second of it")
	expect(t, p, fragment(good, 4, 0, 256), false, "a tiny first fragment")
	expect(t, p, fragment(good, 1, 8, 1232), false, "one that overwrites the header")
	expect(t, p, fragment(good, 5, 0, 4000), true, "an atomic fragment")
	f.Tick(t0.Add(timeoutFragment * time.Second))
	expect(t, p, fragment(good, 1, 1232, 1232), false, "a fragment too late")
}

func TestExtensionHeaders(t *testing.T) {
	f := newFirewall(t, "allow tcp 80 from any")
	p := f.Peer(friend, false)
	inner := tcp(at(friend.Addr(), 1000), at(me.Addr(), 80), syn)
	wrap := func(headers ...uint8) []byte { // each of 8 bytes
		b := inner[40:]
		next := uint8(protoTCP)
		for i := len(headers) - 1; i >= 0; i-- {
			b = append([]byte{next, 0, 0, 0, 0, 0, 0, 0}, b...)
			next = headers[i]
		}
		return ip6(friend.Addr(), me.Addr(), next, b)
	}
	expect(t, p, wrap(protoHopByHop, protoDestOpts, protoRouting, protoDestOpts), true, "options before TCP")
	expect(t, p, wrap(protoDestOpts, protoHopByHop), false, "hop-by-hop options not first")
	expect(t, p, wrap(60, 60, 60, 60, 60, 60, 60, 60, 60), false, "too many headers")
	waypoint := wrap(protoRouting)
	waypoint[43] = 1
	expect(t, p, waypoint, false, "a routing header with a segment left")
	long := wrap(protoDestOpts)
	long[41] = 200
	expect(t, p, long, false, "a header longer than the packet")
	expect(t, p, wrap(protoDestOpts, protoNone), false, "no next header")
	for n := range inner {
		expect(t, p, inner[:n], false, "a truncated packet")
	}
	for _, flags := range []uint8{0, fin, syn | fin, syn | rst, 0x20} {
		expect(t, p, tcp(at(friend.Addr(), 1), at(me.Addr(), 80), flags), false, "TCP flags nobody sends")
	}
	v4 := make([]byte, 60)
	v4[0] = 0x45
	expect(t, p, v4, false, "IPv4")
}

func TestTimeouts(t *testing.T) {
	f := newFirewall(t)
	p := f.Peer(friend, false)
	now := t0
	pass := func(d time.Duration) { now = now.Add(d); f.Tick(now) }
	here, there := at(me.Addr(), 40000), at(friend.Addr(), 80)

	p.Out(udp(here, there))
	pass(timeoutUDP*time.Second - time.Second)
	expect(t, p, udp(there, here), true, "UDP just in time")
	pass(timeoutUDP*time.Second - time.Second)
	expect(t, p, udp(there, here), true, "UDP again: answers keep it open")
	pass(timeoutUDP * time.Second)
	expect(t, p, udp(there, here), false, "UDP too late")

	p.Out(tcp(here, there, syn))
	pass(timeoutTransitory * time.Second)
	expect(t, p, tcp(there, here, syn|ack), false, "SYN+ACK too late")
	p.Out(tcp(here, there, syn))
	expect(t, p, tcp(there, here, syn|ack), true, "SYN+ACK")
	p.Out(tcp(here, there, ack))
	pass(2 * time.Hour)
	expect(t, p, tcp(there, here, ack), true, "two idle hours")
	p.Out(tcp(here, there, fin|ack))
	pass(time.Hour)
	expect(t, p, tcp(there, here, ack), true, "the other half stays open")
	expect(t, p, tcp(there, here, fin|ack), true, "its end")
	pass(timeoutTransitory*time.Second - time.Second)
	expect(t, p, tcp(there, here, fin|ack), true, "a FIN again")
	pass(time.Second)
	expect(t, p, tcp(there, here, fin|ack), false, "after the end")

	p.Out(tcp(here, there, syn))
	expect(t, p, tcp(there, here, rst|ack), true, "refused")
	pass(timeoutReset * time.Second)
	expect(t, p, tcp(there, here, ack), false, "data after a reset")
	f.Tick(t0) // back in time: nothing may come to life
	expect(t, p, tcp(there, here, ack), false, "data after the clock was set back")
}

func TestFloodStaysBoundedAndSparesTheEstablished(t *testing.T) {
	f := newFirewall(t, "allow any from any")
	p := f.Peer(friend, false)
	here, there := at(me.Addr(), 40000), at(friend.Addr(), 80)
	p.Out(tcp(here, there, syn))
	p.In(tcp(there, here, syn|ack))
	p.Out(tcp(here, there, ack))
	ip := tcp(there, here, syn)
	for i := range 200_000 {
		binary.BigEndian.PutUint32(ip[40:], uint32(i)) // both ports
		p.In(ip)
	}
	if n := p.table.slots(); n > MaxFlowsPerPeer {
		t.Errorf("%d slots, may be %d", n, MaxFlowsPerPeer)
	}
	if f.Stats().Evicted == 0 {
		t.Error("nothing was evicted")
	}
	if err := f.SetRules(mustRules(t)); err != nil { // so that only the flow itself lets it in
		t.Fatal(err)
	}
	expect(t, p, tcp(there, here, ack), true, "the established connection")

	// Many peers together stay in the budget, and a newcomer still gets in and out.
	for i := range 40 {
		q := f.Peer(ident.PublicKey{100, byte(i)}, false)
		for j := range 5000 {
			q.Out(udp(at(me.Addr(), uint16(j)), at(q.key.Addr(), 53)))
		}
	}
	if left := f.budget.Load(); left < 0 {
		t.Errorf("budget overdrawn: %d", left)
	}
	late := f.Peer(other, false)
	late.Out(udp(here, at(other.Addr(), 53)))
	expect(t, late, udp(at(other.Addr(), 53), here), true, "a newcomer's answer")

	f.Tick(t0.Add(24 * time.Hour))
	if left := f.budget.Load(); left != MaxFlows {
		t.Errorf("all has expired, and the budget is %d of %d", left, MaxFlows)
	}
}

func TestFlowsOutliveSessions(t *testing.T) {
	f := newFirewall(t)
	here, there := at(me.Addr(), 40000), at(friend.Addr(), 80)
	p := f.Peer(friend, false)
	p.Out(udp(here, there))
	p.Release()
	expect(t, p, udp(there, here), false, "without a session")
	f.Tick(t0.Add(time.Minute))
	expect(t, f.Peer(friend, false), udp(there, here), true, "in the next session")
	if flows := f.Flows(0); len(flows) != 1 || flows[0].Local != here || flows[0].Remote != there || !flows[0].Here || flows[0].State != "open" || flows[0].Left != timeoutUDP*time.Second {
		t.Errorf("flows: %+v", flows)
	}
	p.Release()
	f.Tick(t0.Add(time.Hour))
	if len(f.peers) != 0 {
		t.Error("a peer without session and flows is still remembered")
	}
	for i := range 3 * maxIdlePeers {
		q := f.Peer(ident.PublicKey{1, byte(i), byte(i >> 8)}, false)
		q.Out(udp(here, at(q.key.Addr(), 80)))
		q.Release()
	}
	if len(f.peers) > maxIdlePeers {
		t.Errorf("%d peers without session are remembered, may be %d", len(f.peers), maxIdlePeers)
	}
	if s := f.Stats(); s.Opened != 1+3*maxIdlePeers {
		t.Errorf("%d flows counted, want %d", s.Opened, 1+3*maxIdlePeers)
	}
}

func TestConcurrentUse(t *testing.T) {
	f := newFirewall(t, "allow udp from any")
	p := f.Peer(friend, false)
	var wg sync.WaitGroup
	work := func(do func(i int)) {
		wg.Go(func() {
			for i := range 2000 {
				do(i)
			}
		})
	}
	pair := func(i int) (netip.AddrPort, netip.AddrPort) {
		return at(me.Addr(), uint16(i%300)), at(friend.Addr(), 9)
	}
	work(func(i int) { a, b := pair(i); p.Out(udp(a, b)) })
	work(func(i int) { a, b := pair(i); p.In(udp(b, a)) })
	work(func(i int) { a, b := pair(i); p.In(tcp(b, a, ack)) })
	work(func(i int) { f.Tick(t0.Add(time.Duration(i) * time.Second)) })
	work(func(i int) {
		if i%100 == 0 {
			f.SetRules(Rules{})
			f.Stats()
			f.Flows(10)
			f.InForce()
		}
	})
	work(func(i int) {
		if i%100 == 0 {
			f.Peer(friend, i%200 == 0).Release()
		}
	})
	wg.Wait()
}

func TestNoAllocationPerPacket(t *testing.T) {
	f := newFirewall(t, "allow udp from any")
	p := f.Peer(friend, false)
	here, there := at(me.Addr(), 40000), at(friend.Addr(), 80)
	out, in, echo := tcp(here, there, ack), tcp(there, here, ack), icmp(friend.Addr(), me.Addr(), 128, 1, nil)
	flood := udp(there, here)
	i := 0
	for range 100_000 { // to its full size
		i++
		binary.BigEndian.PutUint32(flood[40:], uint32(i))
		p.In(flood)
	}
	if n := testing.AllocsPerRun(1000, func() {
		p.Out(out)
		p.In(in)
		p.In(echo)
		p.In(out) // misdirected
		i++
		binary.BigEndian.PutUint32(flood[40:], uint32(i))
		p.In(flood) // a new flow each time
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkInSameFlow(b *testing.B) {
	f := newFirewall(b)
	p := f.Peer(friend, false)
	here, there := at(me.Addr(), 40000), at(friend.Addr(), 80)
	p.Out(tcp(here, there, ack))
	in := tcp(there, here, ack)
	b.ReportAllocs()
	for b.Loop() {
		if !p.In(in) {
			b.Fatal("dropped")
		}
	}
}

func BenchmarkOutSameFlow(b *testing.B) {
	f := newFirewall(b)
	p := f.Peer(friend, false)
	out := tcp(at(me.Addr(), 40000), at(friend.Addr(), 80), ack)
	b.ReportAllocs()
	for b.Loop() {
		p.Out(out)
	}
}

func BenchmarkInAmongFlows(b *testing.B) {
	f := newFirewall(b, "allow udp from any")
	p := f.Peer(friend, false)
	in := udp(at(friend.Addr(), 80), at(me.Addr(), 40000))
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		binary.BigEndian.PutUint16(in[40:], uint16(i)%1000)
		p.In(in)
	}
}

func BenchmarkInRefused(b *testing.B) {
	f := newFirewall(b, "allow tcp 22 from group:family", "allow udp 53 from community")
	p := f.Peer(friend, false)
	in := tcp(at(friend.Addr(), 80), at(me.Addr(), 80), syn)
	b.ReportAllocs()
	for b.Loop() {
		p.In(in)
	}
}
