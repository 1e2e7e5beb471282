package firewall

import (
	"reflect"
	"strings"
	"testing"
)

// FuzzPacket: whatever arrives, nothing crashes, and a node that has no rules and asked for nothing receives echo requests
// to itself only.
func FuzzPacket(f *testing.F) {
	here, there := at(me.Addr(), 40000), at(friend.Addr(), 80)
	f.Add(tcp(there, here, syn))
	f.Add(udp(there, here))
	f.Add(icmp(friend.Addr(), me.Addr(), 128, 1, nil))
	f.Add(icmp(friend.Addr(), me.Addr(), 2, 0, udp(here, there)))
	f.Add(fragment(append(udp(there, here), make([]byte, 2000)...), 1, 0, 1024))
	f.Add(ip6(friend.Addr(), me.Addr(), protoDestOpts, []byte{protoTCP, 0, 0, 0, 0, 0, 0, 0}))
	closed, open := newFirewall(f), newFirewall(f, "allow any from any", "allow any to behind from any")
	f.Fuzz(func(t *testing.T, ip []byte) {
		p, q := closed.Peer(friend, false), open.Peer(friend, false)
		defer p.Release()
		defer q.Release()
		if p.In(ip) {
			if len(ip) < 48 || string(ip[24:40]) != string(me.Addr().AsSlice()) {
				t.Fatal("passed, but not to this node")
			}
			if !q.In(ip) {
				t.Fatal("an open firewall is stricter than a closed one")
			}
			var pk packet
			if !pk.parse(ip, inbound, false) || pk.class != classEchoRequest && pk.class != classLaterFragment {
				t.Fatalf("passed, but is of class %d", pk.class)
			}
		}
		q.In(ip)
		q.Out(ip)
		q.In(ip)
	})
}

// FuzzRule: what parses prints, and parses again to the same.
func FuzzRule(f *testing.F) {
	for _, s := range []string{
		"allow tcp 22 from key:" + friend.String(),
		"allow any from group:family",
		"allow tcp 8000-8100,9000 to behind from community",
		"block icmp to 300::1 from any",
		"block any 53 to 300:1::/64 from any",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRule(s)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "firewall rule ") {
				t.Fatalf("an error that does not name the rule: %v", err)
			}
			return
		}
		again, err := ParseRule(r.String())
		if err != nil {
			t.Fatalf("%q prints as %q: %v", s, r.String(), err)
		}
		if !reflect.DeepEqual(r, again) {
			t.Fatalf("%q: %+v, printed and read %+v", s, r, again)
		}
	})
}

func TestRuleErrorsSayWhatIsAllowed(t *testing.T) {
	for s, want := range map[string]string{
		"":                                  "allow or block",
		"permit tcp from any":               "allow or block",
		"allow sctp from any":               "any, tcp, udp or icmp",
		"allow tcp 0 from any":              "from 1 to 65535",
		"allow tcp 70000 from any":          "from 1 to 65535",
		"allow tcp 90-80 from any":          "upwards",
		"allow icmp 1 from any":             "no ports",
		"allow tcp 22":                      "from SOURCE",
		"allow tcp 22 from":                 "group:NAME",
		"allow tcp 22 from friends":         "group:NAME",
		"allow tcp 22 from key:12":          "64 hex digits",
		"allow tcp 22 from group:A":         "a-z",
		"allow tcp 22 to 10.0.0.1 from any": "IPv6",
		"allow tcp 22 from any please":      "ends there",
	} {
		if _, err := ParseRule(s); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `"`+s+`"`) {
			t.Errorf("%q: %v; want it to say %q", s, err, want)
		}
	}
	f := newFirewall(t)
	for s, want := range map[string]string{
		"allow tcp 22 from group:nobody":       `no group "nobody"`,
		"allow tcp 22 to 300:dead::1 from any": "is not this node's",
		"allow tcp 22 to 200::/7 from any":     "is not this node's",
	} {
		err := f.SetRules(mustRules(t, "allow tcp 1 from any", s))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "rule 2") {
			t.Errorf("%q: %v; want it to name rule 2 and say %q", s, err, want)
		}
	}
	if len(f.Rules().List) != 0 {
		t.Error("rules with an error came into force")
	}
}
