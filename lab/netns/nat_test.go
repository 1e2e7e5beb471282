//go:build linux && !router

package netns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/api"
)

// Worlds with an internet in the middle: a segment with documentation addresses, and home routers that hide what is behind them.

// internet is a world whose nodes stand on one public segment or behind routers on it.
type internet struct {
	*World
	t   *testing.T
	ctx context.Context
}

const (
	public4 = "192.0.2."
	public6 = "2001:db8::"
)

// newInternet makes a world. homes are nodes behind a router of their own, NAME behind router NAME-r; outside are nodes on the
// public segment.
func newInternet(t *testing.T, outside, homes []string) *internet {
	t.Helper()
	needs(t, "nft")
	w, ctx := worldFor(t, empty)
	n := &internet{World: w, t: t, ctx: ctx}
	ends := append([]string(nil), outside...)
	for _, o := range outside {
		n.add(o)
	}
	for i, h := range homes {
		n.add(h)
		n.add(h + "-r")
		n.home(h, h+"-r", i+1)
		ends = append(ends, h+"-r")
	}
	if _, err := w.AddLink("internet", ends, Shape{}, 1); err != nil {
		t.Fatal(err)
	}
	for i, o := range outside {
		n.addr(o, "eth0", fmt.Sprintf("%s%d/24", public4, i+1), fmt.Sprintf("%s%x/64", public6, i+1))
	}
	for i, h := range homes {
		n.addr(h+"-r", "eth1", fmt.Sprintf("%s%d/24", public4, i+101), fmt.Sprintf("%s%x/64", public6, i+0x101))
		n.sh(h+"-r", "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
		n.nft(h+"-r", nat)
	}
	for i, h := range homes {
		for _, o := range append(outside, ends[len(outside):]...) { // everybody knows the way to the house's IPv6 network
			if o != h+"-r" {
				dev := "eth0"
				if strings.HasSuffix(o, "-r") {
					dev = "eth1"
				}
				n.sh(o, fmt.Sprintf("ip -6 route add 2001:db8:%x::/64 via %s%x dev %s", i+1, public6, i+0x101, dev))
			}
		}
	}
	return n
}

// nat is a home router as they are sold: IPv4 goes through a NAT that keeps one port for each inner one, nothing comes in
// that was not asked for, in either family, and the router itself is silent.
const nat = `
table ip nat {
	chain post {
		type nat hook postrouting priority srcnat
		oifname "eth1" masquerade
	}
}
table inet filter {
	chain input {
		type filter hook input priority filter
		iifname "eth1" meta l4proto udp ct state new drop
	}
	chain forward {
		type filter hook forward priority filter; policy drop
		ct state established,related accept
		iifname != "eth1" accept
	}
}
`

func (n *internet) add(name string) {
	n.t.Helper()
	if _, err := n.AddNode(name); err != nil {
		n.t.Fatal(err)
	}
}

func (n *internet) addr(node, ifname string, addrs ...string) {
	n.t.Helper()
	for _, a := range addrs {
		if err := n.AddAddr(node, ifname, netip.MustParsePrefix(a)); err != nil {
			n.t.Fatalf("%s %s: %v", node, a, err)
		}
	}
}

func (n *internet) sh(node, script string) {
	n.t.Helper()
	if _, err := n.Exec(n.ctx, node, "sh", "-ec", script); err != nil {
		n.t.Fatal(err)
	}
}

func (n *internet) nft(node, rules string) {
	n.t.Helper()
	file := filepath.Join(n.Dir, node, "rules.nft")
	if err := os.WriteFile(file, []byte(rules), 0o644); err != nil {
		n.t.Fatal(err)
	}
	n.sh(node, "nft -f "+file)
}

// home connects a node to its router; the network of house i is 10.0.i.0/24 and 2001:db8:i::/64.
func (n *internet) home(node, router string, i int) {
	n.t.Helper()
	l, err := n.AddLink(node+"–"+router, []string{node, router}, Shape{}, 1)
	if err != nil {
		n.t.Fatal(err)
	}
	n.addr(router, "eth0", fmt.Sprintf("10.0.%d.1/24", i), fmt.Sprintf("2001:db8:%x::1/64", i))
	n.addr(node, l.end(node).Interface, fmt.Sprintf("10.0.%d.2/24", i), fmt.Sprintf("2001:db8:%x::2/64", i))
	n.sh(node, fmt.Sprintf("ip route replace default via 10.0.%d.1; ip -6 route replace default via 2001:db8:%x::1", i, i))
}

// run starts weft on a node with peers and more configuration.
func (n *internet) run(node, conf string, peers ...string) {
	n.t.Helper()
	text := fmt.Sprintf("version = 1\nname = %q\n%s\n[tun]\nname = %q\n", node, conf, Interface)
	for _, p := range peers {
		text += fmt.Sprintf("[[peer]]\nuri = %q\n", p)
	}
	if err := n.Configure(node, text); err != nil {
		n.t.Fatal(err)
	}
	if err := n.Start(node); err != nil {
		n.t.Fatal(err)
	}
}

// endpoint returns where a node has another one as a neighbour; empty when it has not.
func (n *internet) endpoint(node, other string) string {
	var peers []api.Peer
	if err := n.Weft(n.ctx, node, &peers, "peers"); err != nil {
		return ""
	}
	for _, p := range peers {
		if p.Name == other && p.State == "up" {
			return p.Endpoint
		}
	}
	return ""
}

// await waits until a node has another one as a neighbour at an endpoint that starts with a prefix.
func (n *internet) await(node, other, prefix string, limit time.Duration) time.Duration {
	n.t.Helper()
	begun, at := time.Now(), ""
	for time.Since(begun) < limit && n.ctx.Err() == nil {
		if at = n.endpoint(node, other); at != "" && strings.HasPrefix(at, prefix) {
			return time.Since(begun)
		}
		wait(n.ctx, 100*time.Millisecond)
	}
	n.t.Fatalf("%s has %s at %q, not at %s… within %v", node, other, at, prefix, limit)
	return 0
}

// Two nodes behind routers of their own that both know a third get a link without it, while they talk.
func TestTwoBehindNATs(t *testing.T) {
	for _, family := range []string{"ip4", "ip6"} {
		t.Run(family, func(t *testing.T) {
			n := newInternet(t, []string{"third"}, []string{"anna", "ben"})
			third, ben := "udp://192.0.2.1:7117", "udp://192.0.2.102:"
			if family == "ip6" {
				third, ben = "udp://[2001:db8::1]:7117", "udp://[2001:db8:2::2]:"
				for _, r := range []string{"anna-r", "ben-r"} {
					n.nft(r, "table ip off {\n chain forward {\n type filter hook forward priority -1; policy drop\n }\n}\n")
				}
			} else {
				for _, r := range []string{"anna-r", "ben-r"} {
					n.nft(r, "table ip6 off {\n chain forward {\n type filter hook forward priority -1; policy drop\n }\n}\n")
				}
			}
			n.run("third", "")
			n.run("anna", "", third)
			n.run("ben", "", third)
			reach(t, n.ctx, n.World, "anna", "ben", 10*time.Second)
			if at := n.endpoint("anna", "ben"); at != "" {
				t.Fatalf("they are linked before anybody introduced them: %s", at)
			}
			if st, err := n.Status(n.ctx, "anna"); err != nil || st.NAT != (family == "ip4") {
				t.Errorf("anna says that she is behind a NAT: %v, seen at %v; %v", st.NAT, st.Seen, err)
			}
			p, err := n.StartPing("anna", address(t, n.ctx, n.World, "ben"), 50*time.Millisecond, 0)
			if err != nil {
				t.Fatal(err)
			}
			<-p.First()
			t.Log("direct after", n.await("anna", "ben", ben, 15*time.Second))
			n.await("ben", "anna", "udp://", 2*time.Second)
			wait(n.ctx, 2*time.Second)
			var hops []api.TraceHop
			if err := n.Weft(n.ctx, "anna", &hops, "trace", address(t, n.ctx, n.World, "ben").String()); err != nil {
				t.Fatal(err)
			}
			if len(hops) != 2 {
				t.Errorf("the way to ben has %d hops: %+v", len(hops)-1, hops)
			}
			if r := p.Stop(); r.Gap > time.Second {
				t.Errorf("the change cut them off for %v", r.Gap)
			}
			if err := n.Kill("third"); err != nil {
				t.Fatal(err)
			}
			wait(n.ctx, 3*time.Second)
			reach(t, n.ctx, n.World, "anna", "ben", time.Second)
		})
	}
}

// download reads what a node serves on TCP port 80 until stop is called, which returns how long nothing came at worst.
func (n *internet) download(at, from string) (stop func() (gap time.Duration, bytes int64, err error)) {
	n.t.Helper()
	to := netip.AddrPortFrom(address(n.t, n.ctx, n.World, from), 80)
	l, err := n.Listen(from, to)
	if err != nil {
		n.t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		page := make([]byte, 32<<10)
		for {
			if _, err := c.Write(page); err != nil {
				return
			}
			wait(n.ctx, 5*time.Millisecond)
		}
	}()
	node, err := n.node(at)
	if err != nil {
		n.t.Fatal(err)
	}
	var c net.Conn
	if err := inside(node.ns, func() (err error) {
		c, err = net.DialTimeout("tcp", to.String(), 10*time.Second)
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	type result struct {
		gap   time.Duration
		bytes int64
		err   error
	}
	done := make(chan result, 1)
	ended := make(chan struct{})
	go func() {
		var r result
		buf, last := make([]byte, 64<<10), time.Now()
		for {
			k, err := c.Read(buf)
			now := time.Now()
			r.gap, last = max(r.gap, now.Sub(last)), now
			r.bytes += int64(k)
			if err != nil {
				select {
				case <-ended:
				default:
					r.err = err
				}
				done <- r
				return
			}
		}
	}()
	return func() (time.Duration, int64, error) {
		close(ended)
		c.SetReadDeadline(time.Now())
		r := <-done
		c.Close()
		l.Close()
		<-served
		return r.gap, r.bytes, r.err
	}
}

// A laptop in mid-download goes from one network to another: new interface, new address, new NAT. The download goes on.
func TestRoamingLaptop(t *testing.T) {
	for _, from := range []string{"third", "ben"} {
		t.Run("from "+from, func(t *testing.T) {
			n := newInternet(t, []string{"third"}, []string{"laptop", "ben", "phone"})
			if _, err := n.AddLink("mobile", []string{"laptop", "phone-r"}, Shape{}, 1); err != nil {
				t.Fatal(err)
			}
			n.addr("phone-r", "eth2", "10.0.9.1/24")
			n.sh("laptop", "ip link set eth1 down")
			third, open := "udp://192.0.2.1:7117", "[firewall]\nrules = [\"allow tcp 80 from any\"]"
			n.run("third", open)
			n.run("laptop", "", third)
			n.run("ben", open, third)
			reach(t, n.ctx, n.World, "laptop", "ben", 10*time.Second)
			stop := n.download("laptop", from)
			if from == "ben" {
				n.await("laptop", "ben", "udp://", 15*time.Second)
			}
			wait(n.ctx, 2*time.Second)
			n.sh("laptop", "ip link set eth0 down; sleep 0.3; ip link set eth1 up; ip addr add 10.0.9.2/24 dev eth1; ip route add default via 10.0.9.1")
			wait(n.ctx, 6*time.Second)
			n.sh("laptop", "ip link set eth0 up; ip route add default via 10.0.1.1 metric 10; ip route del default via 10.0.9.1; ip link set eth1 down")
			wait(n.ctx, 6*time.Second)
			gap, bytes, err := stop()
			t.Logf("%d bytes, longest gap %v", bytes, gap)
			if err != nil {
				t.Errorf("the connection broke: %v", err)
			}
			if gap > 3*time.Second {
				t.Errorf("the download stood still for %v, want ≤ 3 s", gap)
			}
		})
	}
}

// Where a router lets no UDP through, peers are reached by TLS and then by WebSockets, whether they were named or told so while UDP
// worked; and by UDP again when that works.
func TestUDPBlocked(t *testing.T) {
	const listen = `listen = ["udp://[::]:7117", "tls://[::]:443", "wss://[::]:8443/weft"]`
	udp, tls, wss := "udp://192.0.2.1:7117", "tls://192.0.2.1:443", "wss://192.0.2.1:8443/weft"
	block := func(what string) string {
		return "table inet block {\n chain forward {\n type filter hook forward priority -2\n " + what + " drop\n }\n}\n"
	}
	n := newInternet(t, []string{"third"}, []string{"anna", "ben", "carl"})
	n.run("third", listen)
	n.nft("anna-r", block("meta l4proto udp"))
	n.run("anna", "", udp, tls, wss)
	n.nft("ben-r", block("meta l4proto udp")+block("tcp dport 443"))
	n.run("ben", "", udp, tls, wss)
	n.run("carl", "", udp)
	n.await("carl", "third", udp, 5*time.Second)
	n.await("anna", "third", "tls://", 8*time.Second)
	n.await("ben", "third", "wss://", 15*time.Second)
	reach(t, n.ctx, n.World, "anna", "ben", 5*time.Second)
	reach(t, n.ctx, n.World, "ben", "carl", 5*time.Second)

	n.nft("carl-r", block("meta l4proto udp"))
	t.Log("TLS after UDP", n.await("carl", "third", "tls://", 25*time.Second))
	reach(t, n.ctx, n.World, "carl", "anna", 5*time.Second)
	n.sh("carl-r", "nft delete table inet block")
	n.addr("carl", "eth0", "10.0.3.9/24") // something changed: look at once
	t.Log("UDP again after", n.await("carl", "third", udp, 10*time.Second))
	reach(t, n.ctx, n.World, "carl", "anna", 5*time.Second)
}

// A router that forgets after 30 seconds, as many do, does not cut off the idle node behind it.
func TestIdleBehindNAT(t *testing.T) {
	n := newInternet(t, []string{"third"}, []string{"anna"})
	n.sh("anna-r", "echo 30 > /proc/sys/net/netfilter/nf_conntrack_udp_timeout; echo 30 > /proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream")
	n.run("third", "")
	n.run("anna", "", "udp://192.0.2.1:7117")
	reach(t, n.ctx, n.World, "anna", "third", 10*time.Second)
	since := func() (since time.Time) {
		var peers []api.Peer
		if err := n.Weft(n.ctx, "third", &peers, "peers"); err != nil || len(peers) != 1 {
			t.Fatalf("third has %+v, %v", peers, err)
		}
		return peers[0].Since
	}
	before := since()
	wait(n.ctx, 45*time.Second) // its tests of the router among them
	reach(t, n.ctx, n.World, "third", "anna", 500*time.Millisecond)
	if after := since(); !after.Equal(before) {
		t.Errorf("the link of %v went and came again at %v", before, after)
	}
}
