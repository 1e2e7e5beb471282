package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"
	"pgregory.net/rapid"
)

func TestAdvert(t *testing.T) {
	a := advert{mac: MAC{2, 0, 0, 0, 0, 1}, prefix: netip.MustParsePrefix("301:1:2:3::/64"), router: 600 * time.Second, routes: []netip.Prefix{meshPrefix()},
		dns: netip.MustParseAddr("301:1:2:3::1"), domain: "weft", mtu: 1400, portal: "https://portal.weft/captive/api"}
	// Written down field by field from the RFCs.
	want := strings.Join([]string{
		"86000000" + "40000258" + "00000000" + "00000000", // RFC 4861 4.2: type, hop limit 64, router lifetime 600
		"0101" + "020000000001",                           // 4.6.1: source link-layer address
		"05010000" + "00000578",                           // 4.6.4: MTU
		"030440c0" + "00001c20" + "00000708" + "00000000" + "03010001000200030000000000000000",   // 4.6.2: on-link, autonomous; 7200 s, 1800 s
		"18020700" + "00000258" + "0200000000000000",                                             // RFC 4191 2.3: 200::/7
		"19030000" + "00000258" + "03010001000200030000000000000001",                             // RFC 8106 5.1
		"1f020000" + "00000258" + "0477656674000000",                                             // 5.2
		"2505" + hex.EncodeToString([]byte(a.portal)) + strings.Repeat("00", 40-2-len(a.portal)), // RFC 8910 2.3
	}, "")
	got := a.appendTo(nil)
	if d := cmp.Diff(want, hex.EncodeToString(got)); d != "" {
		t.Error(d)
	}
	if m, err := icmp.ParseMessage(58, got); err != nil || m.Type != ipv6.ICMPTypeRouterAdvertisement {
		t.Errorf("%v %v", m, err)
	}
	a.last = true
	bye := a.appendTo(nil)
	if binary.BigEndian.Uint16(bye[6:]) != 0 || bytes.Contains(bye, []byte("https")) || bytes.Contains(bye, []byte{0, 0, 2, 0x58}) {
		t.Errorf("goodbye: %x", bye)
	}
}

// TestAdvertOptions: whatever is in it, options are whole units, as long as they say.
func TestAdvertOptions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := advert{portal: rapid.StringN(0, 3000, 3000).Draw(t, "portal"), domain: rapid.StringMatching(`[a-z.]{0,300}`).Draw(t, "domain"), mtu: rapid.IntRange(0, 9000).Draw(t, "mtu")}
		for range rapid.IntRange(0, 3).Draw(t, "routes") {
			ip := netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "ip")))
			a.routes = append(a.routes, netip.PrefixFrom(ip, rapid.IntRange(0, 128).Draw(t, "bits")))
		}
		b := a.appendTo(nil)
		for o := b[16:]; len(o) > 0; o = o[int(o[1])*8:] {
			if len(o) < 8 || o[1] == 0 || int(o[1])*8 > len(o) {
				t.Fatalf("broken at %x", o)
			}
		}
	})
}

func FuzzSolicitation(f *testing.F) {
	f.Add([]byte{133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 1}, true, 255)
	f.Add([]byte{133, 0, 0, 0, 0, 0, 0, 0, 1, 0}, false, 255)
	f.Fuzz(func(t *testing.T, b []byte, unspecified bool, hops int) {
		from := netip.MustParseAddr("fe80::1")
		if unspecified {
			from = netip.IPv6Unspecified()
		}
		if parseSolicitation(b, from, hops) == nil && (hops != 255 || len(b)%8 != 0 || unspecified && len(b) > 8 && b[8] == 1) {
			t.Fatalf("accepted %x", b)
		}
	})
}

func TestSolicitation(t *testing.T) {
	good := []byte{133, 0, 0, 0, 0, 0, 0, 0}
	link := append(good, 1, 1, 2, 0, 0, 0, 0, 1)
	any6, from := netip.IPv6Unspecified(), netip.MustParseAddr("fe80::1")
	for _, c := range []struct {
		b    []byte
		from netip.Addr
		hops int
		ok   bool
	}{{good, from, 255, true}, {link, from, 255, true}, {good, any6, 255, true}, {link, any6, 255, false}, {good, from, 64, false}, {good[:7], from, 255, false}, {append(good, 1, 0), from, 255, false}} {
		if err := parseSolicitation(c.b, c.from, c.hops); (err == nil) != c.ok {
			t.Errorf("%x from %s: %v", c.b, c.from, err)
		}
	}
}

// TestAdvertiser watches the timing of RFC 4861 section 6.2 in virtual time.
func TestAdvertiser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type sent struct {
			at   time.Duration
			to   netip.Addr
			last bool
		}
		var log []sent
		begin := time.Now()
		solicit, change := make(chan netip.Addr), make(chan struct{})
		ctx, stop := context.WithCancel(t.Context())
		a := &advertiser{log: slog.New(slog.DiscardHandler), solicit: solicit, change: change,
			make: func(last bool) []byte { return []byte{map[bool]byte{true: 1}[last]} },
			send: func(b []byte, to netip.Addr) error {
				log = append(log, sent{time.Since(begin), to, b[0] == 1})
				return nil
			}}
		done := make(chan struct{})
		go func() { a.run(ctx); close(done) }()
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := len(log); n < 18 || n > 56 { // every 67 to 200 s
			t.Errorf("%d advertisements in an hour", n)
		}
		for i, s := range log {
			if s.to != allNodes() || s.last {
				t.Errorf("%+v", s)
			}
			if i == 0 {
				continue
			}
			gap := s.at - log[i-1].at
			if gap > maxInterval || gap < minInterval && i >= initialCount || i < initialCount && gap > initialInterval {
				t.Errorf("gap %d is %v", i, gap)
			}
		}

		// Many devices ask at once: each gets its own answer within half a second, those without address one for all, not
		// more often than every 3 s; a flood gets no more than the limit.
		log = nil
		for i := range 500 {
			solicit <- netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 14: byte(i >> 8), 15: byte(i)})
			solicit <- netip.IPv6Unspecified()
			change <- struct{}{}
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		multi, uni := 0, 0
		for _, s := range log {
			if s.to == allNodes() {
				multi++
			} else {
				uni++
			}
		}
		if multi < 1 || multi > 2 || uni < 30 || uni > 50 {
			t.Errorf("a flood has got %d multicasts and %d unicasts", multi, uni)
		}

		log = nil
		for range 120 { // 12 seconds of asking
			solicit <- netip.IPv6Unspecified()
			change <- struct{}{}
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		if n := len(log); n < 3 || n > 5 {
			t.Errorf("%d multicasts in 12 s", n)
		}

		log = nil
		stop()
		<-done
		if len(log) != 1 || !log[0].last {
			t.Errorf("goodbye: %+v", log)
		}
	})
}

// TestAdvertiserRetries: an interface that is down for a while is tried again, and not given up.
func TestAdvertiserRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		ctx, stop := context.WithCancel(t.Context())
		a := &advertiser{log: slog.New(slog.DiscardHandler), make: func(bool) []byte { return nil }, send: func([]byte, netip.Addr) error {
			n++
			return context.DeadlineExceeded
		}}
		done := make(chan struct{})
		go func() { a.run(ctx); close(done) }()
		time.Sleep(29 * time.Second)
		synctest.Wait()
		if n != 10 {
			t.Errorf("%d tries in 29 s", n)
		}
		stop()
		<-done
	})
}

func newTestLeases(t testing.TB, c *clock) *leases {
	cfg := testConfig(t, c)
	if err := cfg.fill(); err != nil {
		t.Fatal(err)
	}
	return newLeases(&cfg, filepath.Join(cfg.StateDir, "leases.json"))
}

func request(kind byte, mac MAC, change func(*dhcpMessage)) *dhcpMessage {
	m := &dhcpMessage{op: 1, xid: 7, mac: mac}
	m.add(optType, kind)
	if change != nil {
		change(m)
	}
	return m
}

// lease takes an address as a device does.
func takeLease(t testing.TB, l *leases, mac MAC) netip.Addr {
	t.Helper()
	offer, _ := l.answer(request(dhcpDiscover, mac, nil))
	if offer == nil || offer.kind() != dhcpOffer {
		t.Fatalf("no offer for %s: %+v", mac, offer)
	}
	ack, _ := l.answer(request(dhcpRequest, mac, func(m *dhcpMessage) {
		m.addAddr(optServer, l.cfg.Addr4())
		m.addAddr(optRequested, offer.your)
		m.add(optHostname, []byte("<tv>")...)
	}))
	if ack == nil || ack.kind() != dhcpAck || ack.your != offer.your {
		t.Fatalf("no address for %s: %+v", mac, ack)
	}
	return ack.your
}

// A guest that takes all addresses under made-up MACs writes no line a packet into the log, and nobody searches the range for each.
func TestFloodOfDiscovers(t *testing.T) {
	c := newClock()
	l := newTestLeases(t, c)
	var out bytes.Buffer
	l.log = slog.New(slog.NewTextHandler(&out, nil))
	mac := func(i int) MAC { return MAC{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)} }
	n := 0
	for l.full.IsZero() {
		l.answer(request(dhcpDiscover, mac(n), nil))
		n++
	}
	for i := range 5000 {
		if r, _ := l.answer(request(dhcpDiscover, mac(n+i), nil)); r != nil {
			t.Fatal("an address out of nothing")
		}
		if i%100 == 0 {
			c.add(10 * time.Millisecond)
		}
	}
	if lines := strings.Count(out.String(), "\n"); lines != 1 {
		t.Errorf("%d lines", lines)
	}
	c.add(offerTime) // nobody has taken the offers
	if a := takeLease(t, l, macA); !l.usable(a) {
		t.Errorf("%v", a)
	}
}

func TestDHCP(t *testing.T) {
	c := newClock()
	l := newTestLeases(t, c)
	us := netip.MustParseAddr("10.1.2.1")
	a := takeLease(t, l, macA)
	if !l.usable(a) || l.names()[macA] != "tv" {
		t.Errorf("%s, %v", a, l.names())
	}
	if again := takeLease(t, l, macA); again != a {
		t.Errorf("another address: %s after %s", again, a)
	}
	if b := takeLease(t, l, macB); b == a {
		t.Error("one address for two")
	}
	// Renewing goes to the device's address; somebody else's address is refused.
	ack, to := l.answer(request(dhcpRequest, macA, func(m *dhcpMessage) { m.client = a }))
	if ack == nil || ack.kind() != dhcpAck || to != a {
		t.Errorf("renewal: %+v to %s", ack, to)
	}
	if nak, to := l.answer(request(dhcpRequest, macB, func(m *dhcpMessage) { m.addAddr(optRequested, a) })); nak == nil || nak.kind() != dhcpNak || to.String() != "255.255.255.255" {
		t.Errorf("an address of another: %+v", nak)
	}
	if nak, _ := l.answer(request(dhcpRequest, MAC{2, 9}, func(m *dhcpMessage) { m.addAddr(optRequested, netip.MustParseAddr("192.168.1.5")) })); nak == nil || nak.kind() != dhcpNak {
		t.Errorf("an address of another network: %+v", nak)
	}
	// A restart keeps leases; without its file a device gets the same address all the same.
	if err := l.flush(); err != nil {
		t.Fatal(err)
	}
	l2 := newLeases(l.cfg, l.path)
	if len(l2.byMAC) != 2 || l2.byMAC[macA].Addr != a || l2.names()[macA] != "tv" {
		t.Errorf("after a restart: %+v", l2.byMAC)
	}
	if got := takeLease(t, newLeases(l.cfg, filepath.Join(t.TempDir(), "none")), macA); got != a {
		t.Errorf("%s without the file, %s with it", got, a)
	}
	// Release and decline.
	l.answer(request(dhcpRelease, macA, func(m *dhcpMessage) { m.client = a; m.addAddr(optServer, us) }))
	if l.byMAC[macA] != nil {
		t.Error("released, and still held")
	}
	a = takeLease(t, l, macA)
	l.answer(request(dhcpDecline, macA, func(m *dhcpMessage) { m.addAddr(optRequested, a); m.addAddr(optServer, us) }))
	if got := takeLease(t, l, macA); got == a {
		t.Error("declined, and given again")
	}
	if r, _ := l.answer(request(dhcpInform, MAC{2, 5}, func(m *dhcpMessage) { m.client = netip.MustParseAddr("10.1.2.200") })); r == nil || r.option(optLease) != nil || r.addr(optDNS) != us {
		t.Errorf("inform: %+v", r)
	}
	// Not for us.
	for _, m := range []*dhcpMessage{
		request(dhcpDiscover, macA, func(m *dhcpMessage) { m.op = 2 }),
		request(dhcpDiscover, macA, func(m *dhcpMessage) { m.relay = us }),
		request(dhcpDiscover, MAC{}, nil), request(dhcpDiscover, MAC{1}, nil), request(99, macA, nil),
		request(dhcpRequest, macA, func(m *dhcpMessage) { m.addAddr(optServer, netip.MustParseAddr("10.1.2.254")) }),
	} {
		if r, _ := l.answer(m); r != nil {
			t.Errorf("%+v was answered by %+v", m, r)
		}
	}
	if len(l.others) != 1 {
		t.Error("another server was not noticed")
	}
}

func TestDHCPRunsOut(t *testing.T) {
	c := newClock()
	l := newTestLeases(t, c)
	seen := map[netip.Addr]bool{}
	for i := range 253 {
		seen[takeLease(t, l, MAC{2, 3, byte(i)})] = true
	}
	if len(seen) != 253 {
		t.Errorf("%d addresses of 253", len(seen))
	}
	if r, _ := l.answer(request(dhcpDiscover, MAC{2, 4}, nil)); r != nil {
		t.Errorf("one too many: %+v", r)
	}
	c.add(leaseTime)
	takeLease(t, l, MAC{2, 4})
	if len(l.byAddr) != 253 {
		t.Errorf("%d leases", len(l.byAddr))
	}
	// Offers that nobody takes come free soon.
	l = newTestLeases(t, c)
	for i := range 300 {
		l.answer(request(dhcpDiscover, MAC{2, 3, byte(i >> 8), byte(i)}, nil))
	}
	c.add(offerTime)
	takeLease(t, l, macA)
}

// TestDHCPInvariants: whatever devices ask, no address has two owners and none is given that may not be.
func TestDHCPInvariants(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := newClock()
		l := newTestLeases(t, c)
		owner := map[netip.Addr]MAC{}
		until := map[netip.Addr]time.Time{}
		for range rapid.IntRange(1, 60).Draw(rt, "n") {
			mac := MAC{2, byte(rapid.IntRange(1, 5).Draw(rt, "mac"))}
			addr := netip.AddrFrom4([4]byte{10, 1, 2, byte(rapid.IntRange(0, 255).Draw(rt, "addr"))})
			if len(owner) > 0 && rapid.Bool().Draw(rt, "known") {
				for a := range owner {
					addr = min4(addr, a)
				}
			}
			m := request(byte(rapid.IntRange(1, 8).Draw(rt, "kind")), mac, nil)
			if rapid.Bool().Draw(rt, "server") {
				m.addAddr(optServer, l.cfg.Addr4())
			}
			if rapid.Bool().Draw(rt, "wish") {
				m.addAddr(optRequested, addr)
			} else {
				m.client = addr
			}
			r, _ := l.answer(m)
			if r != nil && r.kind() == dhcpAck && m.kind() == dhcpRequest {
				if !l.usable(r.your) {
					rt.Fatalf("gave %s", r.your)
				}
				if o, ok := owner[r.your]; ok && o != mac && c.now().Before(until[r.your]) {
					rt.Fatalf("%s belongs to %s and was given to %s", r.your, o, mac)
				}
				owner[r.your], until[r.your] = mac, c.now().Add(leaseTime)
			}
			if m.kind() == dhcpRelease || m.kind() == dhcpDecline {
				for a, o := range owner {
					if o == mac && l.byMAC[mac] == nil {
						delete(owner, a)
					}
				}
			}
			c.add(time.Duration(rapid.IntRange(0, 2000).Draw(rt, "s")) * time.Second)
		}
	})
}

func min4(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return a
	}
	return b
}

func FuzzDHCP(f *testing.F) {
	f.Add(dhcpProbe(macA, 1))
	f.Add(request(dhcpRequest, macA, func(m *dhcpMessage) {
		m.addAddr(optRequested, netip.MustParseAddr("10.1.2.9"))
		m.add(77, make([]byte, 600)...)
	}).appendTo(nil))
	l := newTestLeases(f, newClock())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseDHCP(b)
		if err != nil {
			return
		}
		again, err := parseDHCP(m.appendTo(nil))
		if err != nil {
			if len(m.appendTo(nil)) > maxDHCP {
				return
			}
			t.Fatal(err)
		}
		if !bytes.Equal(m.appendTo(nil), again.appendTo(nil)) {
			t.Fatalf("%x", b)
		}
		if r, to := l.answer(m); r != nil {
			if out, err := parseDHCP(r.appendTo(nil)); err != nil || out.xid != m.xid || out.mac != m.mac || !to.Is4() {
				t.Fatalf("answer %+v: %v", r, err)
			}
		}
	})
}

func FuzzOffer(f *testing.F) {
	m := &dhcpMessage{op: 2, xid: 9}
	m.add(optType, dhcpOffer)
	m.addAddr(optServer, netip.MustParseAddr("192.168.1.1"))
	p := udpBroadcast(m.appendTo(nil))
	p[21], p[23] = 67, 68
	if s, ok := dhcpOfferIn(p, 9); !ok || s.String() != "192.168.1.1" {
		f.Error(s, ok)
	}
	if _, ok := dhcpOfferIn(p, 8); ok {
		f.Error("somebody else's answer")
	}
	f.Add(p, uint32(9))
	f.Fuzz(func(t *testing.T, b []byte, xid uint32) { dhcpOfferIn(b, xid) })
}

func FuzzDnsmasqLeases(f *testing.F) {
	f.Add("1772370000 02:00:00:00:00:0a 10.1.2.9 phone 01:02:00:00:00:00:0a\n1772370000 02:00:00:00:00:0b 10.1.2.10 * *\nduid x\n")
	f.Fuzz(func(t *testing.T, s string) {
		for m, n := range dnsmasqNames(s) {
			if cleanName(n) != n || m.String() == "" {
				t.Fatalf("%q", n)
			}
		}
	})
}

func TestDnsmasqConfig(t *testing.T) {
	c := Config{Interface: "br-guest", StateDir: "/x", Range: netip.MustParsePrefix("10.1.0.0/22"), Out: []string{"weft0"}, MTU: 1400}
	if err := c.fill(); err != nil {
		t.Fatal(err)
	}
	got := dnsmasqConfig(&c, "/x/l", "/x/p")
	for _, want := range []string{"port=0\n", "interface=br-guest\n", "bind-interfaces\n", "dhcp-range=10.1.0.2,10.1.3.254,255.255.252.0,3600s\n", "dhcp-option=3,10.1.0.1\n", "dhcp-option=26,1400\n", "dhcp-leasefile=/x/l\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestMAC(t *testing.T) {
	for s, ok := range map[string]bool{"02:00:00:00:00:0a": true, "02-00-00-00-00-0A": true, "02:00:00:00:00": false, "02:00:00:00:00:0g": false, "0200:00:00:00:00:0": false, "": false} {
		m, err := ParseMAC(s)
		if (err == nil) != ok || ok && m != macA {
			t.Errorf("%q: %s, %v", s, m, err)
		}
	}
}
