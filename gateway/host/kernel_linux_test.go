package host

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"
)

var (
	pool   = netip.MustParsePrefix(poolText)
	leases = ClientAddrs{IPv4: netip.MustParseAddr(lease4), IPv6: netip.MustParseAddr(meshCl)}
)

func gatewayJob() job { return job{Kind: "gateway", TUN: "wt0", Pool: pool, IPv6: true} }
func clientJob() job  { return job{Kind: "client", TUN: "wt0", Addrs: leases} }

// foreign are rules of somebody else, in families and names near ours.
const foreign = `
table inet filter {
	set hosts { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.168.0.0/16 } }
	chain input { type filter hook input priority 0; policy accept; ip saddr @hosts tcp dport 9 drop; }
	chain forward { type filter hook forward priority 0; policy accept; }
}
table ip nat { chain post { type nat hook postrouting priority 100; oifname "nothing0" masquerade; }; }
table inet weft-gw { chain forward { type filter hook forward priority 0; policy accept; }; }
`

// TestGatewayCarries is the whole way: a host behind the mesh reaches the internet as its gateway, and nothing else there.
func TestGatewayCarries(t *testing.T) {
	for _, noForce := range []bool{false, true} {
		t.Run(fmt.Sprintf("noForce=%v", noForce), func(t *testing.T) {
			w := newWorld(t)
			for _, n := range []string{"gw", "cl"} {
				w.sh(n, "cat > "+w.dir+"/rules <<'E'\n"+foreign+"E\nnft -f "+w.dir+"/rules; for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $f; done")
			}
			w.mesh()
			w.ip("cl", "link set wt0 mtu 1400") // more than the gateway's, so that its clamp is needed
			w.web("w", "198.51.100.1:8080", "[2001:db8:99::1]:8080", "192.0.2.254:8080", "[2001:db8:1::254]:8080")
			w.web("gw", "0.0.0.0:8080", "[::]:8080")
			w.web("la", "192.168.7.2:8080", "[fd07::2]:8080")
			w.web("cl", "0.0.0.0:9090", "[::]:9090")
			gwBefore, clBefore := w.snapshot("gw"), w.snapshot("cl")
			gwRules, clRules := w.sh("gw", "nft list ruleset"), w.sh("cl", "nft list ruleset")
			w.expect("cl", web4, ownCl4)
			w.expect("cl", web6, ownCl6)
			w.expect("la", web4, "")

			j := gatewayJob()
			j.NoForce = noForce
			gw := w.open("gw", j)
			cl := w.open("cl", clientJob())

			w.expect("cl", web4, ownGw4)
			w.expect("cl", web6, ownGw6)
			for url, most := range map[string]int{web4: w.mtu - 40, web6: w.mtu - 60} {
				var mss int
				if fmt.Sscan(w.get("cl", url+"mss"), &mss); mss == 0 || mss > most {
					t.Errorf("%s sends segments of %d bytes, %d fit", url, mss, most)
				}
			}
			if got := len(w.get("cl", web4+"big")) + len(w.get("cl", web6+"big")); got != 2<<20 {
				t.Errorf("%d bytes arrived", got)
			}
			// The mesh is as it was.
			w.expect("cl", "http://["+meshGw+"]:8080/", meshCl)
			w.expect("gw", "http://["+meshCl+"]:9090/", meshGw)
			// A gateway's host may speak to a lease; nobody behind it may.
			w.expect("gw", "http://"+lease4+":9090/", "192.168.7.1")
			// Nothing of the gateway's own.
			for _, to := range []string{"192.168.7.2", "[fd07::2]", "192.168.7.1", "[fd07::1]", ownGw4, "[" + ownGw6 + "]", "192.0.2.254", "[2001:db8:1::254]"} {
				if got := w.get("cl", "http://"+to+":8080/", "--connect-timeout", "0.5"); got != "" {
					t.Errorf("a lease reaches %s as %s", to, got)
				}
			}
			// The client's own neighbours stay its own.
			w.expect("cl", "http://10.9.1.1:8080/", "") // nobody listens there, and it is not the gateway's
			// The gateway's host is no router for others, either way.
			w.expect("la", web4, "")
			w.expect("la", web6, "")
			w.expect("w", "http://192.168.7.2:8080/", "")
			w.expect("w", "http://[fd07::2]:8080/", "")
			w.expect("w", "http://"+lease4+":9090/", "")
			// Answers would not find back anyway: count what was stopped at the door.
			w.drops("gw", "forward", "@closed4")
			if noForce {
				w.drops("gw", "forward", "iifgroup")
			} else {
				w.drops("gw", "forward", "@closed6")
			}
			// Sources without a lease do not get out.
			w.ip("cl", "addr add 100.78.0.1/32 dev wt0")
			if got := w.get("cl", web4, "--interface", "100.78.0.1", "--connect-timeout", "0.5"); got != "" {
				t.Errorf("a source without a lease is seen as %s", got)
			}
			w.drops("gw", "prerouting", "ip saddr != "+poolText)
			w.ip("cl", "addr del 100.78.0.1/32 dev wt0")
			// The host's own network works as before.
			w.expect("gw", web4, ownGw4)
			w.expect("gw", web6, ownGw6)
			for node, rules := range map[string]string{"gw": gwRules, "cl": clRules} {
				if got := w.sh(node, "nft list ruleset"); !strings.HasPrefix(got, rules) {
					t.Errorf("rules of others in %s changed:\n%s\nto\n%s", node, rules, got)
				}
			}

			cl.close()
			w.expect("cl", web4, ownCl4)
			w.expect("cl", web6, ownCl6)
			w.same("cl", clBefore)
			gw.close()
			w.same("gw", gwBefore)
			if left, _ := filepath.Glob(w.dir + "/gw-*"); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// drops asserts that a rule of the gateway has dropped something.
func (w *world) drops(node, chain, rule string) {
	w.t.Helper()
	for _, l := range strings.Split(w.sh(node, "nft list chain inet weft-gw-wt0 "+chain), "\n") {
		if strings.Contains(l, rule) && strings.HasSuffix(l, "drop") && !strings.Contains(l, "packets 0") {
			return
		}
	}
	w.t.Errorf("no packet was dropped by %q in %s", rule, chain)
}

// TestRouterStaysRouter: what the owner lets pass passes on.
func TestRouterStaysRouter(t *testing.T) {
	w := newWorld(t)
	w.sh("gw", "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
	w.ip("w", "route add "+poolText+" via "+ownGw4)
	w.mesh()
	w.web("w", "198.51.100.1:8080", "[2001:db8:99::1]:8080")
	w.web("la", "192.168.7.2:8080", "[fd07::2]:8080")
	w.web("cl", "0.0.0.0:9090")
	before := w.snapshot("gw")
	gw := w.open("gw", gatewayJob())
	cl := w.open("cl", clientJob())
	for _, noRouter := range []string{"192.168.7.2", "[fd07::2]"} {
		if w.get("w", "http://"+noRouter+":8080/") == "" {
			t.Errorf("%s is not reachable any more", noRouter)
		}
		w.expect("cl", "http://"+noRouter+":8080/", "")
	}
	w.expect("la", web4, "192.168.7.2")
	w.expect("la", web6, "fd07::2")
	w.expect("cl", web4, ownGw4)
	w.expect("cl", web6, ownGw6)
	w.expect("w", "http://"+lease4+":9090/", "")
	w.expect("la", "http://"+lease4+":9090/", "")
	cl.close()
	gw.close()
	w.same("gw", before)
}

// TestRoutedPrefix: with a prefix of its own, a lease is seen as itself.
func TestRoutedPrefix(t *testing.T) {
	w := newWorld(t)
	w.mesh()
	w.web("w", "[2001:db8:99::1]:8080")
	w.ip("w", "route add 2001:db8:77::/64 via "+ownGw6)
	w.web("cl", "[::]:9090")
	before := w.snapshot("gw")
	j := gatewayJob()
	j.Pool, j.Prefix6 = netip.Prefix{}, netip.MustParsePrefix("2001:db8:77::/64")
	gw := w.open("gw", j)
	c := clientJob()
	c.Addrs = ClientAddrs{IPv6: netip.MustParseAddr("2001:db8:77::9")}
	cl := w.open("cl", c)
	w.expect("cl", web6, "2001:db8:77::9")
	w.expect("w", "http://[2001:db8:77::9]:9090/", "")
	w.expect("cl", "http://["+meshGw+"]:1/", "")
	// A mesh address as a source would not come back, and does not go out.
	cl.update(ClientAddrs{IPv6: netip.MustParseAddr(meshCl)})
	w.expect("cl", web6, "")
	cl.close()
	gw.close()
	w.same("gw", before)
}

// TestKill: after kill -9 the host's own network works by itself, and Recover leaves nothing.
func TestKill(t *testing.T) {
	for _, noForce := range []bool{false, true} {
		t.Run(fmt.Sprintf("noForce=%v", noForce), func(t *testing.T) {
			w := newWorld(t)
			w.web("w", "198.51.100.1:8080", "[2001:db8:99::1]:8080")
			w.names("w", "5.6.7.8", "198.51.100.53:53")
			w.names("cl", "1.2.3.4", "127.0.0.1:5353", "[::1]:5353")
			gwBefore, clBefore := w.snapshot("gw"), w.snapshot("cl")
			w.mesh()
			j, c := gatewayJob(), clientJob()
			j.NoForce, c.DNSPort = noForce, 5353
			gw := w.open("gw", j)
			cl := w.open("cl", c)
			w.expect("cl", web4, ownGw4)
			w.expect("cl", web6, ownGw6)
			w.resolves("cl", job{Target: "198.51.100.53:53"}, "1.2.3.4")

			cl.kill()
			w.unplug("cl")
			if rules := w.sh("cl", "nft list ruleset"); rules != "" {
				t.Errorf("the kernel kept\n%s", rules)
			}
			w.expect("cl", web4, ownCl4)
			w.expect("cl", web6, ownCl6)
			w.resolves("cl", job{Target: "198.51.100.53:53"}, "5.6.7.8")
			w.recover("cl", "cl-client")
			w.same("cl", clBefore)

			gw.kill()
			if rules := w.sh("gw", "nft list ruleset"); rules != "" {
				t.Errorf("the kernel kept\n%s", rules)
			}
			w.expect("gw", web4, ownGw4)
			w.expect("gw", web6, ownGw6)
			w.recover("gw", "gw-gateway") // with the TUN still there: its route has to go too
			if routes := w.sh("gw", "ip route show dev wt0"); routes != "" {
				t.Errorf("left: %s", routes)
			}
			w.unplug("gw")
			w.same("gw", gwBefore)
			w.recover("gw", "gw-gateway") // again: nothing to do
			w.same("gw", gwBefore)
		})
	}
}

func (w *world) recover(node, file string) {
	w.t.Helper()
	if said, err := w.once(node, job{Kind: "recover", StateFile: filepath.Join(w.dir, file)}); err != nil {
		w.t.Errorf("recover: %v %s", err, said)
	}
	if _, err := os.Stat(filepath.Join(w.dir, file)); err == nil {
		w.t.Error("the state file is still there")
	}
}

func (w *world) resolves(node string, j job, want string) {
	w.t.Helper()
	j.Kind = "resolve"
	if want != "" {
		want = "[" + want + "]"
	}
	if got, err := w.once(node, j); got != want && (err == nil || want != "") {
		w.t.Errorf("%+v in %s: %s %v, want %s", j, node, got, err, want)
	}
}

// TestRestartAfterKill: a new start needs no Recover of its own.
func TestRestartAfterKill(t *testing.T) {
	w := newWorld(t)
	gwBefore, clBefore := w.snapshot("gw"), w.snapshot("cl")
	w.web("w", "198.51.100.1:8080")
	w.mesh()
	for range 2 {
		gw, cl := w.open("gw", gatewayJob()), w.open("cl", clientJob())
		w.expect("cl", web4, ownGw4)
		cl.kill()
		gw.kill()
	}
	gw, cl := w.open("gw", gatewayJob()), w.open("cl", clientJob())
	w.expect("cl", web4, ownGw4)
	cl.close()
	gw.close()
	w.unplug("gw")
	w.unplug("cl")
	w.same("gw", gwBefore)
	w.same("cl", clBefore)
}

// TestRecoverFromTheMiddle: the state file of a process that died while net.ipv6.conf.all.forwarding was being written.
func TestRecoverFromTheMiddle(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot("gw")
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	write := func(boot string) {
		t.Helper()
		b, _ := json.Marshal(stateFile{Version: 1, Boot: strings.TrimSpace(boot), Sysctls: []change{{forwardAll6, "0", "1"}},
			Keep: map[string]string{"net/ipv6/conf/eth0/forwarding": "0", "net/ipv6/conf/eth0/accept_ra": "1", "net/ipv6/conf/gone0/accept_ra": "1"}})
		if err := os.WriteFile(filepath.Join(w.dir, "state"), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.sh("gw", "echo 2 > /proc/sys/net/ipv6/conf/eth0/accept_ra")
	write(string(boot))
	w.recover("gw", "state")
	w.same("gw", before)
	w.sh("gw", "echo 2 > /proc/sys/net/ipv6/conf/eth0/accept_ra; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
	write(string(boot))
	w.recover("gw", "state")
	if got := w.sh("gw", "cd /proc/sys/net/ipv6/conf; cat all/forwarding eth0/forwarding eth0/accept_ra"); got != "0\n0\n1\n" {
		t.Errorf("%q", got)
	}
	// Of another boot: what is now is the owner's.
	w.sh("gw", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
	write("another")
	w.recover("gw", "state")
	if got := w.sh("gw", "cat /proc/sys/net/ipv6/conf/all/forwarding"); got != "1\n" {
		t.Errorf("%q", got)
	}
}

// TestDNS: questions go to the resolver, whomever they are for; the resolver's own do not, nor those to loopback and in the mesh.
func TestDNS(t *testing.T) {
	w := newWorld(t)
	w.mesh()
	w.names("w", "5.6.7.8", "198.51.100.53:53", "[2001:db8:99::53]:53", "10.9.1.1:53")
	w.names("cl", "1.2.3.4", "127.0.0.1:5353", "[::1]:5353")
	w.names("cl", "9.9.9.9", "127.0.0.53:53")
	w.names("gw", "7.7.7.7", "["+meshGw+"]:53")
	resolv, _ := os.ReadFile("/etc/resolv.conf")
	gw := w.open("gw", gatewayJob())
	c := clientJob()
	c.DNSPort = 5353
	out := []string{"198.51.100.53:53", "[2001:db8:99::53]:53", "10.9.1.1:53", "203.0.113.1:53"}
	check := func(tcp bool, want string) {
		t.Helper()
		for _, to := range out {
			if to == "203.0.113.1:53" && want != "1.2.3.4" {
				continue // nobody is there
			}
			w.resolves("cl", job{Target: to, TCP: tcp}, want)
		}
		w.resolves("cl", job{Target: "127.0.0.53:53", TCP: tcp}, "9.9.9.9")
		w.resolves("cl", job{Target: "[" + meshGw + "]:53", TCP: tcp}, "7.7.7.7")
		w.resolves("cl", job{Target: "198.51.100.53:53", TCP: tcp, Marked: true}, "5.6.7.8")
	}
	for _, tcp := range []bool{false, true} {
		check(tcp, "5.6.7.8")
		cl := w.open("cl", c)
		check(tcp, "1.2.3.4")
		// Without IPv6, a question to a resolver with an IPv6 address is still answered.
		cl.update(ClientAddrs{IPv4: leases.IPv4})
		check(tcp, "1.2.3.4")
		cl.update(ClientAddrs{IPv6: leases.IPv6})
		check(tcp, "1.2.3.4")
		cl.close()
		check(tcp, "5.6.7.8")
	}
	gw.close()
	if now, _ := os.ReadFile("/etc/resolv.conf"); string(now) != string(resolv) {
		t.Error("resolv.conf changed")
	}
}

// TestClientFamilies: a family that the lease lacks leaks nowhere, or stays the host's own.
func TestClientFamilies(t *testing.T) {
	w := newWorld(t)
	w.mesh()
	w.web("w", "198.51.100.1:8080", "[2001:db8:99::1]:8080", "10.9.1.1:8080", "[2001:db8:9::1]:8080")
	gw := w.open("gw", gatewayJob())
	before := w.snapshot("cl")
	only4, only6 := ClientAddrs{IPv4: leases.IPv4}, ClientAddrs{IPv6: leases.IPv6}

	cl := w.open("cl", clientJob())
	w.expect("cl", web6, ownGw6)
	cl.update(only4)
	w.expect("cl", web4, ownGw4)
	refused := func(url string) {
		t.Helper()
		if said, err := w.once("cl", job{Kind: "get", Target: url}); err == nil || !strings.Contains(said, "unreachable") && !strings.Contains(said, "no route") {
			t.Errorf("%s is not refused at once: %s %v", url, said, err)
		}
	}
	refused(web6)
	w.expect("cl", "http://[2001:db8:9::1]:8080/", ownCl6) // the LAN
	cl.update(only6)
	w.expect("cl", web6, ownGw6)
	refused(web4)
	w.expect("cl", "http://10.9.1.1:8080/", ownCl4)
	cl.update(ClientAddrs{})
	refused(web4)
	refused(web6)
	cl.update(ClientAddrs{IPv4: netip.MustParseAddr("100.77.0.10"), IPv6: leases.IPv6})
	w.expect("cl", web4, ownGw4)
	if got := w.sh("cl", "ip -4 addr show dev wt0"); strings.Contains(got, lease4) || !strings.Contains(got, "100.77.0.10/32") {
		t.Errorf("the TUN has %s", got)
	}
	cl.close()
	w.same("cl", before)

	j := clientJob()
	j.KeepOwn, j.Addrs = true, only4
	cl = w.open("cl", j)
	w.expect("cl", web4, ownGw4)
	w.expect("cl", web6, ownCl6)
	cl.update(only6)
	w.expect("cl", web4, ownCl4)
	w.expect("cl", web6, ownGw6)
	cl.update(leases)
	w.expect("cl", web4, ownGw4)
	w.expect("cl", web6, ownGw6)
	cl.close()
	w.same("cl", before)
	gw.close()
}

// TestClientStaysReachable: marked sockets and answers use the own line, also with the strictest rp_filter.
func TestClientStaysReachable(t *testing.T) {
	w := newWorld(t)
	w.sh("cl", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $f; done")
	w.mesh()
	w.web("w", "198.51.100.1:8080", "[2001:db8:99::1]:8080")
	w.web("cl", "0.0.0.0:9090", "[::]:9090")
	gw, cl := w.open("gw", gatewayJob()), w.open("cl", clientJob())
	w.expect("cl", web4, ownGw4)
	for url, want := range map[string]string{web4: ownCl4, web6: ownCl6} {
		if got, err := w.once("cl", job{Kind: "get", Target: url, Marked: true}); got != want {
			t.Errorf("a marked socket is seen as %s %v, want %s", got, err, want)
		}
	}
	// From far away, not from the LAN: 198.51.100.1 is no neighbour of the client's.
	for from, to := range map[string]string{"198.51.100.1": ownCl4, "2001:db8:99::1": "[" + ownCl6 + "]"} {
		if got := w.get("w", "http://"+to+":9090/", "--interface", from); got != from {
			t.Errorf("the client is not reachable from %s: %q", from, got)
		}
	}
	cl.close()
	gw.close()
}

// TestOnlyOneClient: the second node of a host is told.
func TestOnlyOneClient(t *testing.T) {
	w := newWorld(t)
	w.mesh()
	w.tun("cl", "wt1", "203:cccc::1", "203:cccc::/32")
	cl := w.open("cl", clientJob())
	with := w.snapshot("cl")
	j := clientJob()
	j.TUN, j.StateFile = "wt1", filepath.Join(w.dir, "second")
	if p, said := w.start("cl", j); p != nil || !strings.Contains(said, "another node") {
		t.Fatalf("%v %s", p, said)
	}
	w.same("cl", with)
	j.StateFile = "" // that of the first
	if p, said := w.start("cl", j); p != nil || !strings.Contains(said, "belongs to a process that runs") {
		t.Fatalf("%v %s", p, said)
	}
	w.same("cl", with)
	w.recover("cl", "third")
	w.same("cl", with)
	cl.close()
	j.StateFile = filepath.Join(w.dir, "second")
	w.open("cl", j).close()
}

// TestHalfWay: when the kernel refuses something late, all is as before.
func TestHalfWay(t *testing.T) {
	w := newWorld(t)
	w.mesh()
	w.ip("gw", "link set wt0 down")
	w.ip("cl", "link set wt0 down")
	gwBefore, clBefore := w.snapshot("gw"), w.snapshot("cl")
	if p, said := w.start("gw", gatewayJob()); p != nil || !strings.Contains(said, "route 100.77.0.0/16 into wt0") {
		t.Fatalf("%v %s", p, said)
	}
	if p, said := w.start("cl", clientJob()); p != nil || !strings.Contains(said, "default route of table 7764") {
		t.Fatalf("%v %s", p, said)
	}
	w.same("gw", gwBefore)
	w.same("cl", clBefore)
	w.ip("gw", "addr add 100.77.200.1/24 dev lan0")
	gwBefore = w.snapshot("gw")
	if p, said := w.start("gw", gatewayJob()); p != nil || !strings.Contains(said, "overlaps 100.77.200.0/24") {
		t.Fatalf("%v %s", p, said)
	}
	j := gatewayJob()
	j.TUN = "none0"
	if p, said := w.start("gw", j); p != nil || !strings.Contains(said, "find the TUN none0") {
		t.Fatalf("%v %s", p, said)
	}
	w.same("gw", gwBefore)
	if left, _ := filepath.Glob(w.dir + "/*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	said, err := w.once("gw", job{Kind: "prefixes"})
	var taken []netip.Prefix
	if json.Unmarshal([]byte(said), &taken); err != nil || FreePool(pool, taken).String() != "100.64.0.0/16" {
		t.Errorf("%v %s", err, said)
	}
}

// TestTwoGateways: two nodes on one host, which come and go in any order; only the last one switches forwarding off.
func TestTwoGateways(t *testing.T) {
	for _, noForce := range []bool{false, true} {
		t.Run(fmt.Sprintf("noForce=%v", noForce), func(t *testing.T) {
			w := newWorld(t)
			w.mesh()
			w.tun("gw", "wt1", "203:cccc::1", "203:cccc::/32")
			w.web("w", "198.51.100.1:8080", "[2001:db8:99::1]:8080")
			before := w.snapshot("gw")
			a, b := gatewayJob(), gatewayJob()
			a.NoForce, b.NoForce = noForce, noForce
			b.TUN, b.Pool, b.StateFile = "wt1", netip.MustParsePrefix("100.78.0.0/16"), filepath.Join(w.dir, "second")
			cl := w.open("cl", clientJob())
			check := func() {
				t.Helper()
				w.expect("cl", web4, ownGw4)
				w.expect("cl", web6, ownGw6)
				w.expect("la", web4, "")
				w.expect("la", web6, "")
			}
			carries := func() {
				t.Helper()
				six := "eth0/force_forwarding"
				if noForce {
					six = "all/forwarding"
				}
				if got := w.sh("gw", "cd /proc/sys/net; cat ipv4/conf/eth0/forwarding ipv6/conf/"+six); got != "1\n1\n" {
					t.Errorf("forwarding is %q", got)
				}
			}
			ga, gb := w.open("gw", a), w.open("gw", b)
			check()
			gb.close()
			carries()
			check()
			gb = w.open("gw", b)
			ga.close()
			carries() // for the other one
			ga = w.open("gw", a)
			check()
			gb.kill()
			check()
			w.recover("gw", "second")
			check()
			ga.close()
			w.same("gw", before)
			cl.close()
		})
	}
}

// TestFollowsTheLine: the default route moves to another interface, and goes; a line with a carrier lost is none.
func TestFollowsTheLine(t *testing.T) {
	w := newWorld(t)
	w.mesh()
	w.web("w", "198.51.100.1:8080", "[2001:db8:99::1]:8080")
	w.cable("gw", "eth1", "w", "togw1")
	w.ip("gw", "addr add 192.0.3.1/24 dev eth1", "addr add 2001:db8:3::1/64 dev eth1 nodad")
	w.ip("w", "addr add 192.0.3.254/24 dev togw1", "addr add 2001:db8:3::254/64 dev togw1 nodad")
	before := w.snapshot("gw")
	watch := w.open("gw", job{Kind: "uplink"})
	state := func(fits func(s State) bool) {
		t.Helper()
		watch.await(func(line string) bool {
			var s State
			return json.Unmarshal([]byte(line), &s) == nil && fits(s)
		})
	}
	gw, cl := w.open("gw", gatewayJob()), w.open("cl", clientJob())
	w.expect("cl", web4, ownGw4)
	w.ip("gw", "route replace default via 192.0.3.254", "route replace default via 2001:db8:3::254")
	state(func(s State) bool { return s.IPv4 && s.IPv6 && s.Interface4 == "eth1" && s.Interface6 == "eth1" })
	gw.await(func(l string) bool { return l == "changed" })
	w.awaitSet("gw", `"eth1"`)
	w.expect("cl", web4, "192.0.3.1")
	w.expect("cl", web6, "2001:db8:3::1")
	w.expect("la", web4, "")
	w.expect("w", "http://192.168.7.2:8080/", "")
	w.ip("w", "link set togw1 down")
	state(func(s State) bool { return !s.IPv4 && !s.IPv6 && s.Interface4 == "" })
	w.ip("w", "link set togw1 up", "addr replace 2001:db8:3::254/64 dev togw1 nodad")
	state(func(s State) bool { return s.IPv4 && s.IPv6 && within(s.Local, netip.MustParseAddr("192.168.7.9")) })
	w.ip("gw", "addr add 172.20.0.1/16 dev lan0")
	state(func(s State) bool { return within(s.Local, netip.MustParseAddr("172.20.9.9")) })
	w.ip("gw", "route del default via 192.0.3.254", "route del default via 2001:db8:3::254", "addr del 172.20.0.1/16 dev lan0")
	state(func(s State) bool { return !s.IPv4 && !s.IPv6 })
	w.expect("cl", web4, "")
	w.ip("gw", "route add default via 192.0.2.254", "route add default via 2001:db8:1::254")
	state(func(s State) bool { return s.Interface4 == "eth0" && s.Interface6 == "eth0" })
	watch.close()
	cl.close()
	gw.close()
	w.same("gw", before)
}

// TestForget: whoever gets an address next has none of its connections.
func TestForget(t *testing.T) {
	w := newWorld(t)
	w.mesh()
	w.web("w", "198.51.100.1:8080")
	gw, cl := w.open("gw", gatewayJob()), w.open("cl", clientJob())
	w.expect("cl", web4, ownGw4)
	flows := func() string {
		said := strings.Fields(gw.tell("flows " + lease4))
		return said[len(said)-1] // the line may have changed meanwhile
	}
	if flows() == "0" {
		t.Fatal("the kernel knows no connection of the lease")
	}
	gw.tell("forget 100.86.200.200")
	if flows() == "0" {
		t.Error("connections of another address were ended")
	}
	gw.tell("forget " + lease4)
	if n := flows(); n != "0" {
		t.Errorf("%s connections are left", n)
	}
	w.expect("cl", web4, ownGw4)
	cl.close()
	gw.close()
}

// TestMeshDNS: where another program has port 53, the mesh's questions to this host go past it, and nobody else's do.
func TestMeshDNS(t *testing.T) {
	w := newWorld(t)
	w.mesh()
	const theirs, ours = "203.0.113.1", "203.0.113.2"
	w.names("gw", theirs, "[::]:53")
	w.names("gw", ours, "["+meshGw+"]:7153")
	for _, tcp := range []bool{false, true} {
		w.resolves("cl", job{Target: "[" + meshGw + "]:53", TCP: tcp}, theirs)
	}
	j := gatewayJob()
	j.DNSPort = 7153
	gw := w.open("gw", j)
	for _, tcp := range []bool{false, true} {
		w.resolves("cl", job{Target: "[" + meshGw + "]:53", TCP: tcp}, ours)
		w.resolves("la", job{Target: "192.168.7.1:53", TCP: tcp}, theirs)
		w.resolves("gw", job{Target: "[" + meshGw + "]:53", TCP: tcp}, theirs)
	}
	gw.close()
	w.resolves("cl", job{Target: "[" + meshGw + "]:53", TCP: true}, theirs)
}

// TestOwnAddresses: an Uplink names this host's own addresses beside the networks they lie in, so that a rule for a network does not
// open the host.
func TestOwnAddresses(t *testing.T) {
	w := newWorld(t)
	watch := w.open("gw", job{Kind: "uplink"})
	w.ip("gw", "addr add 172.20.0.1/16 dev lan0", "addr add 2001:db8:20::1/64 dev lan0 nodad")
	watch.await(func(line string) bool {
		var s State
		if json.Unmarshal([]byte(line), &s) != nil {
			return false
		}
		for _, p := range []string{"172.20.0.0/16", "172.20.0.1/32", "192.168.7.0/24", "192.168.7.1/32", ownGw4 + "/32", "2001:db8:20::/64", "2001:db8:20::1/128", ownGw6 + "/128"} {
			if !slices.Contains(s.Local, netip.MustParsePrefix(p)) {
				return false
			}
		}
		return true
	})
	watch.close()
}

// awaitSet waits until the gateway's set of lines names an interface.
func (w *world) awaitSet(node, name string) {
	w.t.Helper()
	for range 200 {
		if strings.Contains(w.sh(node, "nft list set inet weft-gw-wt0 wan4; nft list set inet weft-gw-wt0 wan6 | tail -2"), name) {
			return
		}
	}
	w.t.Fatalf("%s does not become a line", name)
}

// TestFixedLine: a line that is named is the only one; networks that are denied are not reached.
func TestFixedLine(t *testing.T) {
	w := newWorld(t)
	w.mesh()
	w.web("w", "198.51.100.1:8080", "198.51.100.53:8080")
	w.web("la", "192.168.7.2:8080")
	j := gatewayJob()
	j.WAN, j.IPv6, j.Deny = "lan0", false, []netip.Prefix{netip.MustParsePrefix("198.51.100.53/32")}
	gw, cl := w.open("gw", j), w.open("cl", clientJob())
	w.expect("cl", web4, "")
	w.expect("cl", "http://192.168.7.2:8080/", "") // connected, even to a line
	gw.close()
	j.WAN = "eth0"
	gw = w.open("gw", j)
	w.expect("cl", web4, ownGw4)
	w.expect("cl", web6, "")
	w.expect("cl", "http://198.51.100.53:8080/", "")
	cl.close()
	gw.close()
}

// TestDropsOfOthers: they are seen and named.
func TestDropsOfOthers(t *testing.T) {
	w := newWorld(t)
	w.mesh()
	w.sh("gw", "nft add table ip filter; nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'")
	gw := w.open("gw", gatewayJob())
	if got := gw.tell("blocked"); got != "[ip filter FORWARD]" {
		t.Error(got)
	}
	gw.close()
}

// TestOldKernelTable: where the kernel cannot own a table, Recover removes it.
func TestOldKernelTable(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot("gw")
	b, _ := json.Marshal(stateFile{Version: 1, Tables: []string{gatewayTables + "wt0"}})
	if err := os.WriteFile(filepath.Join(w.dir, "state"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	w.sh("gw", "nft add table inet weft-gw-wt0; nft add table inet weft-client; ip rule add pref 7766 not fwmark 0x77000074 table 7764 protocol 119")
	w.recover("gw", "state")
	w.same("gw", before)
}

// TestHearsAdvertisements: a host whose default route came by router advertisement keeps it, and learns it again, where IPv6 forwarding can
// only be switched on for all.
func TestHearsAdvertisements(t *testing.T) {
	w := newWorld(t)
	w.mesh()
	w.web("w", "[2001:db8:99::1]:8080")
	w.ip("gw", "route del default via 2001:db8:1::254")
	w.ip("w", "addr add fe80::aa/64 dev togw nodad")
	w.sh("w", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding") // or its neighbours do not believe that it is a router
	advertise := func() {
		t.Helper()
		w.in("w", func() error {
			ifi, err := net.InterfaceByName("togw")
			if err != nil {
				return err
			}
			zone := strconv.Itoa(ifi.Index)
			c, err := icmp.ListenPacket("ip6:ipv6-icmp", "fe80::aa%"+zone)
			if err != nil {
				return err
			}
			defer c.Close()
			if err := c.IPv6PacketConn().SetMulticastHopLimit(255); err != nil {
				return err
			}
			body := make([]byte, 12) // RFC 4861 section 4.2: a lifetime, nothing else
			binary.BigEndian.PutUint16(body[2:], 1800)
			m, err := (&icmp.Message{Type: ipv6.ICMPTypeRouterAdvertisement, Body: &icmp.RawBody{Data: body}}).Marshal(nil)
			if err != nil {
				return err
			}
			_, err = c.WriteTo(m, &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: zone})
			return err
		})
		for range 200 {
			if strings.Contains(w.sh("gw", "ip -6 route show default"), "proto ra") {
				return
			}
		}
		t.Fatal("the host does not hear a router advertisement")
	}
	advertise()
	w.expect("gw", web6, ownGw6)
	j := gatewayJob()
	j.NoForce = true
	gw, cl := w.open("gw", j), w.open("cl", clientJob())
	w.expect("gw", web6, ownGw6)
	w.expect("cl", web6, ownGw6)
	w.sh("gw", "ip -6 route flush proto ra")
	advertise()
	w.expect("gw", web6, ownGw6)
	gw.close()
	w.expect("gw", web6, ownGw6)
	w.sh("gw", "ip -6 route flush proto ra")
	advertise()
	cl.close()
}
