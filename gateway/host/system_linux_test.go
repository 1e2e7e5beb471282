package host

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestIntervals reads the elements as the kernel does, and compares with the prefixes that they were made of.
func TestIntervals(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		in := merge(rapid.SliceOfN(prefixes(v6), 0, 20).Draw(t, "in"), v6)
		elems := intervals(in)
		probe := prefixes(v6).Draw(t, "probe").Addr()
		if rapid.Bool().Draw(t, "edge") && len(in) > 0 {
			if p := after(in[0]); p.IsValid() {
				probe = p
			}
		}
		got, last := false, []byte(nil)
		for i, e := range elems {
			if e.IntervalEnd != (i%2 == 1) {
				t.Fatalf("two beginnings or ends in a row at %x", e.Key)
			}
			if last != nil && bytes.Compare(last, e.Key) >= 0 {
				t.Fatalf("%x after %x", e.Key, last)
			}
			if last = e.Key; bytes.Compare(e.Key, probe.AsSlice()) <= 0 {
				got = !e.IntervalEnd
			}
		}
		if got != within(in, probe) {
			t.Fatalf("%v in %v: %v", probe, in, got)
		}
	})
}

func TestConfigsAreChecked(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "state")
	pfx := netip.MustParsePrefix
	good := GatewayConfig{TUN: "w0", Pool: pfx("100.64.0.0/16"), StateFile: file}
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*GatewayConfig){
		"not the name":     func(c *GatewayConfig) { c.TUN = "../../etc" },
		"name of an":       func(c *GatewayConfig) { c.TUN = "a-name-that-is-long" },
		"not the name of":  func(c *GatewayConfig) { c.WAN = "eth*" },
		"cannot be the":    func(c *GatewayConfig) { c.WAN = c.TUN },
		"needs IPv4":       func(c *GatewayConfig) { c.Pool = netip.Prefix{} },
		"the pool":         func(c *GatewayConfig) { c.Pool = pfx("10.0.0.0/16") },
		"the pool 100.64":  func(c *GatewayConfig) { c.Pool = pfx("100.64.0.1/16") },
		"the pool 100.0":   func(c *GatewayConfig) { c.Pool = pfx("100.0.0.0/8") },
		"of no use":        func(c *GatewayConfig) { c.Prefix6 = pfx("2001:db8::/64") },
		"of global IPv6":   func(c *GatewayConfig) { c.IPv6, c.Prefix6 = true, pfx("200::/64") },
		"global IPv6 addr": func(c *GatewayConfig) { c.IPv6, c.Prefix6 = true, pfx("10.0.0.0/16") },
		"be denied":        func(c *GatewayConfig) { c.Deny = []netip.Prefix{{}} },
		"no state file":    func(c *GatewayConfig) { c.StateFile = "" },
		"does not exist":   func(c *GatewayConfig) { c.StateFile = filepath.Join(dir, "no", "state") },
	} {
		c := good
		change(&c)
		if _, err := OpenGateway(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
	for _, a := range []ClientAddrs{
		{IPv4: netip.MustParseAddr("127.0.0.1")}, {IPv4: netip.MustParseAddr("::1")}, {IPv4: netip.MustParseAddr("2001:db8::1")},
		{IPv6: netip.MustParseAddr("100.64.0.1")}, {IPv6: netip.MustParseAddr("fe80::1")}, {IPv6: netip.MustParseAddr("::ffff:1.2.3.4")},
	} {
		if _, err := OpenClient(ClientConfig{TUN: "w0", Addrs: a, StateFile: file}); err == nil || !strings.Contains(err.Error(), "that a host can have") {
			t.Errorf("%v: %v", a, err)
		}
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("something was written")
	}
}

// FuzzState: whatever the file holds, nothing but sysctls of network interfaces may be written because of it, and what is accepted says
// the same when it is written again.
func FuzzState(f *testing.F) {
	f.Add([]byte(`{"version":1,"boot":"x","tables":["weft-gw-w0"],"routes":[{"dst":"100.64.0.0/16","dev":"w0"}],"sysctls":[{"key":"net/ipv4/conf/eth0.7/forwarding","old":"0","new":"1"}]}`))
	f.Add([]byte(`{"version":1,"keep":{"net/ipv6/conf/../../../kernel/core_pattern":"|x"}}`))
	f.Add([]byte(`{"version":1,"sysctls":[{"key":"kernel/core_pattern"}]}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseState(b)
		if err != nil {
			return
		}
		for _, c := range s.Sysctls {
			if full := filepath.Clean(sysctlRoot + c.Key); !strings.HasPrefix(full, "/proc/sys/net/ipv4/conf/") && !strings.HasPrefix(full, "/proc/sys/net/ipv6/conf/") {
				t.Fatal(full)
			}
		}
		again, err := json.Marshal(&s)
		if err != nil {
			t.Fatal(err)
		}
		s2, err := parseState(again)
		if err != nil {
			t.Fatal(err)
		}
		third, _ := json.Marshal(&s2)
		if diff := cmp.Diff(string(again), string(third)); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestStateFileIsWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	j := newJournal(path)
	if err := j.note("weft-gw-w0", poolRoute{netip.MustParsePrefix("100.64.0.0/16"), "w0"}); err != nil {
		t.Fatal(err)
	}
	got, err := loadJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(j.s, got.s, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if left, _ := filepath.Glob(path + ".*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadJournal(path); err == nil || !strings.Contains(err.Error(), "delete it") {
		t.Errorf("half a file: %v", err)
	}
	if j, err := loadJournal(path + "x"); j != nil || err != nil {
		t.Errorf("no file: %v %v", j, err)
	}
}
