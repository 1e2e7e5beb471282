package gateway

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// naive is the policy as lists of prefixes and nothing clever: "" is yes.
func naive(rules []Rule, near []netip.Prefix, proto uint8, dst netip.Addr, port uint16) string {
	in := func(list string) bool {
		return slices.ContainsFunc(strings.Fields(list), func(s string) bool { return netip.MustParsePrefix(s).Contains(dst) })
	}
	if b := dst.As16(); dst.Is6() {
		var inner []netip.Addr
		v4 := func(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) }
		if netip.MustParsePrefix("2002::/16").Contains(dst) {
			inner = append(inner, v4(b[2:6]))
		}
		if netip.MustParsePrefix("2001::/32").Contains(dst) {
			inner = append(inner, v4(b[4:8]), v4(binary.BigEndian.AppendUint32(nil, ^binary.BigEndian.Uint32(b[12:]))))
		}
		if u := binary.BigEndian.Uint32(b[8:]); u == 0x5efe || u == 0x02005efe {
			inner = append(inner, v4(b[12:16]))
		}
		for _, a := range inner {
			if why := naive(rules, near, proto, a, port); why != "" {
				return why
			}
		}
	}
	if in("0.0.0.0/8 127.0.0.0/8 169.254.0.0/16 224.0.0.0/4 240.0.0.0/4 200::/7 ::/64 fe80::/10 fec0::/10 ff00::/8") {
		return "never"
	}
	for _, n := range near {
		if n.IsSingleIP() && n.Addr() == dst {
			return "own"
		}
	}
	open25 := false
	for _, r := range rules {
		if r.Proto != 0 && r.Proto != proto || r.Dest.IsValid() && !r.Dest.Contains(dst) {
			continue
		}
		if len(r.Ports) > 0 && (proto == protoICMP || !slices.ContainsFunc(r.Ports, func(p PortRange) bool { return port >= p.Lo && port <= p.Hi })) {
			continue
		}
		if r.Deny {
			return "denied"
		}
		if r.Dest.IsValid() && r.Dest.Bits() > 0 {
			return ""
		}
		open25 = true
		break
	}
	for _, n := range near {
		if n.Contains(dst) {
			return "near"
		}
	}
	if in("10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 192.0.0.0/24 192.88.99.0/24 198.18.0.0/15") || dst.Is6() && !in("2000::/3") {
		return "private"
	}
	if port == 25 && proto != protoICMP && !open25 {
		return "mail"
	}
	return ""
}

func TestPolicyOracle(t *testing.T) {
	bases := []string{"10.0.0.0", "10.255.255.255", "11.0.0.0", "0.0.0.1", "1.1.1.1", "127.0.0.1", "126.255.255.255", "128.0.0.0", "100.63.255.255", "100.64.0.0", "100.127.255.255",
		"100.128.0.0", "169.254.1.1", "172.15.255.255", "172.16.0.0", "172.31.255.255", "172.32.0.0", "192.0.0.8", "192.0.1.0", "192.0.2.1", "192.88.99.1", "192.88.98.1", "192.167.255.255",
		"192.168.0.0", "192.169.0.0", "198.17.255.255", "198.18.0.0", "198.19.255.255", "198.20.0.0", "198.51.100.1", "203.0.113.1", "223.255.255.255", "224.0.0.1", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::2:1", "::1.2.3.4", "64:ff9b::1.1.1.1", "64:ff9b:1::1", "100::1", "1ff::1", "200::1", "3ff:ffff::", "400::1", "2000::", "2001::a00:1", "2001:0:a00:1::", "2001:0:101:101::f5ff:fffe",
		"2001:db8::1", "2002:a00:1::", "2002:101:101::", "2003::5efe:a00:1", "2003::200:5efe:a00:1", "2003::300:5efe:a00:1", "3fff:ffff::", "4000::", "fc00::", "fd00::1", "fe7f::", "fe80::1", "febf::1", "fec0::1", "feff::", "ff02::1"}
	addresses := rapid.Custom(func(t *rapid.T) netip.Addr {
		switch rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0:
			return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "four")))
		case 1:
			return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "six"))).Unmap()
		}
		a := netip.MustParseAddr(rapid.SampledFrom(bases).Draw(t, "base"))
		switch rapid.IntRange(0, 3).Draw(t, "step") {
		case 0:
			if n := a.Next(); n.IsValid() {
				return n
			}
		case 1:
			if n := a.Prev(); n.IsValid() {
				return n
			}
		}
		return a
	})
	prefixes := rapid.Custom(func(t *rapid.T) netip.Prefix {
		a := addresses.Draw(t, "a")
		return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked()
	})
	ports := rapid.Uint16Range(20, 30)
	rules := rapid.Custom(func(t *rapid.T) Rule {
		r := Rule{Deny: rapid.Bool().Draw(t, "deny"), Proto: rapid.SampledFrom([]uint8{0, protoTCP, protoUDP, protoICMP}).Draw(t, "proto")}
		if r.Proto != protoICMP {
			for range rapid.IntRange(0, 2).Draw(t, "ranges") {
				lo := ports.Draw(t, "lo")
				r.Ports = append(r.Ports, PortRange{lo, max(lo, ports.Draw(t, "hi"))})
			}
		}
		if len(r.Ports) == 0 && r.Proto == 0 || rapid.Bool().Draw(t, "dest") {
			r.Dest = prefixes.Draw(t, "to")
		}
		return r
	})
	rapid.Check(t, func(t *rapid.T) {
		list, near := rapid.SliceOfN(rules, 0, 4).Draw(t, "rules"), rapid.SliceOfN(prefixes, 0, 3).Draw(t, "near")
		p, err := NewPolicy(list, near, netip.Prefix{})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list {
			if again, err := ParseRule(r.String()); err != nil || again.String() != r.String() {
				t.Fatalf("%v prints as %q and reads as %v: %v", r, r.String(), again, err)
			}
		}
		for range 20 {
			proto, dst, port := rapid.SampledFrom([]uint8{protoTCP, protoUDP, protoICMP}).Draw(t, "proto"), addresses.Draw(t, "dst"), ports.Draw(t, "port")
			why, ok := p.Permit(proto, netip.AddrPortFrom(dst, port))
			if want := naive(list, near, proto, dst, port); ok != (want == "") {
				t.Fatalf("%v port %d: permitted %v (%s), should be %q", dst, port, ok, why, want)
			}
		}
	})
}

func TestRuleErrorsSayWhatIsRight(t *testing.T) {
	for s, want := range map[string]string{
		"":                          "allow or deny",
		"block tcp 25":              "allow or deny",
		"deny":                      "does not say what",
		"deny tcp 0":                "from 1 to 65535",
		"deny tcp 70000":            "from 1 to 65535",
		"deny tcp 90-80":            "80-90",
		"deny icmp 1":               "no ports",
		"deny tcp 80 example.org":   "neither an address nor a prefix",
		"deny 203.0.113.7/24":       "did you mean 203.0.113.0/24",
		"deny ::ffff:1.2.3.4":       "IPv4 address alone",
		"deny 203.0.113.0/24 80":    "too much",
		"deny fe80::1%eth0":         "neither",
		"deny tcp 6881-6889,80-":    "from 1 to 65535",
		"allow sctp 203.0.113.0/24": "neither an address",
	} {
		if _, err := ParseRule(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", s, err, want)
		}
	}
}

func TestRules(t *testing.T) {
	var rules []Rule
	for _, s := range []string{"deny 203.0.113.0/24", "deny tcp 6881-6889", "allow tcp 25 198.51.100.7", "allow tcp 631 192.168.1.20", "deny ::/0", "allow 10.0.0.0/8"} {
		r, err := ParseRule(s)
		if err != nil {
			t.Fatal(err)
		}
		if r.String() != s {
			t.Errorf("%q prints as %q", s, r)
		}
		rules = append(rules, r)
	}
	p, err := NewPolicy(rules, []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24"), netip.MustParsePrefix("10.0.0.1/32")}, netip.Prefix{})
	if err != nil {
		t.Fatal(err)
	}
	for dst, want := range map[string]bool{
		"203.0.113.9:80": false, "192.0.2.1:6881": false, "192.0.2.1:6890": true, "198.51.100.7:25": true, "198.51.100.8:25": false, "192.168.1.20:631": true,
		"192.168.1.20:80": false, "192.168.1.21:631": false, "[2001:db8::1]:80": false, "10.2.3.4:80": true, "10.0.0.1:80": false, "127.0.0.1:80": false,
	} {
		if why, ok := p.Permit(protoTCP, netip.MustParseAddrPort(dst)); ok != want {
			t.Errorf("%s: %v (%s)", dst, ok, why)
		}
	}
}

// A rule that opens a port opens it on the internet: neither in the owner's networks nor with other clients.
func TestRuleWithoutDestination(t *testing.T) {
	local := []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24"), netip.MustParsePrefix("192.168.1.1/32"), netip.MustParsePrefix("2001:db8:1::/64"),
		netip.MustParsePrefix("2001:db8:1::1/128")}
	for _, text := range []string{"allow tcp 25", "allow 25", "allow tcp", "allow 0.0.0.0/0", "allow ::/0"} {
		r, err := ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		p, err := NewPolicy([]Rule{r}, local, netip.Prefix{})
		if err != nil {
			t.Fatal(err)
		}
		for _, dst := range []string{"192.168.1.20:25", "192.168.1.1:25", "10.0.0.1:25", "100.86.0.9:25", "[2001:db8:1::20]:25", "[2001:db8:1::1]:25", "[fd00::1]:25"} {
			if _, ok := p.Permit(protoTCP, netip.MustParseAddrPort(dst)); ok {
				t.Errorf("%q opens %s", text, dst)
			}
		}
		four, six := "203.0.113.7:25", "[2001:db8:2::1]:25"
		for dst, want := range map[string]bool{four: text != "allow ::/0", six: text != "allow 0.0.0.0/0"} {
			if why, ok := p.Permit(protoTCP, netip.MustParseAddrPort(dst)); ok != want {
				t.Errorf("%q: %s is permitted: %v (%s)", text, dst, ok, why)
			}
		}
	}
}

func FuzzRule(f *testing.F) {
	for _, s := range []string{"deny 203.0.113.0/24", "deny tcp 6881-6889", "allow udp 53,80-90 2001:db8::/32", "deny icmp"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRule(s)
		if err != nil {
			return
		}
		again, err := ParseRule(r.String())
		if err != nil || again.String() != r.String() {
			t.Fatalf("%q prints as %q: %v", s, r.String(), err)
		}
	})
}
