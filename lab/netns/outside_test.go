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
)

// outsideWorld makes a world with a pretend internet.
func outsideWorld(t *testing.T) (*World, *Outside, context.Context) {
	t.Helper()
	needs(t, "nginx", "dnsmasq", "iperf3", "tcpdump", "curl", "nft", "setpriv")
	w, ctx := worldFor(t, empty)
	o, err := w.AddOutside(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return w, o, ctx
}

// browser is a program on a node that fetches pages: curl, with what the node needs to be told.
type browser struct {
	t    *testing.T
	ctx  context.Context
	w    *World
	node string
	as   []string // what runs it: setpriv and its words
	args []string // its proxy
}

func (b browser) try(args ...string) (string, error) {
	argv := append(append(append([]string{}, b.as...), "curl", "-sS", "-m", "15"), b.args...)
	out, err := b.w.Exec(b.ctx, b.node, append(argv, args...)...)
	return string(out), err
}

func (b browser) fetch(args ...string) string {
	b.t.Helper()
	out, err := b.try(args...)
	if err != nil {
		b.t.Error(err)
	}
	return out
}

// page fetches a page and compares it.
func (b browser) page(want string, args ...string) {
	b.t.Helper()
	if got := b.fetch(args...); got != want && !b.t.Failed() {
		b.t.Errorf("curl %s on %s: %q, want %q", strings.Join(args, " "), b.node, got, want)
	}
}

// refused says that nothing may answer there. A short time-out is enough: the network answers in milliseconds.
func (b browser) refused(url, why string) {
	b.t.Helper()
	if got, err := b.try("-m", "2", "-g", url); err == nil {
		b.t.Errorf("%s: %s fetched %s: %q", why, b.node, url, got)
	}
}

// download fetches a file of a size, and says how fast it came in bit/s.
func (b browser) download(url string, size int64, args ...string) float64 {
	b.t.Helper()
	var n int64
	var rate float64
	got := b.fetch(append(args, "-m", "60", "-o", "/dev/null", "-w", "%{size_download} %{speed_download}", url)...)
	if fmt.Sscan(got, &n, &rate); n != size {
		b.t.Errorf("%s fetched %d bytes of %s, want %d", b.node, n, url, size)
	}
	return rate * 8
}

// upload sends a file of a size to the web server, and looks what it kept.
func (b browser) upload(o *Outside, name string, size int64, args ...string) {
	b.t.Helper()
	file := filepath.Join(b.w.Dir, name)
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		b.t.Fatal(err)
	}
	b.fetch(append(args, "-m", "60", "-T", file, "http://"+WebName+"/up/"+name)...)
	if kept, err := o.Uploaded(name); err != nil || kept != size {
		b.t.Errorf("the web server keeps %d bytes of the %d that %s sent: %v", kept, size, b.node, err)
	}
}

// resolve asks a name server at an address, as seen from a node.
func resolve(ctx context.Context, w *World, node string, server netip.AddrPort, network, name string) ([]netip.Addr, error) {
	n, err := w.node(node)
	if err != nil {
		return nil, err
	}
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, proto, _ string) (c net.Conn, err error) {
		err = inside(n.ns, func() error {
			var d net.Dialer
			c, err = d.DialContext(ctx, proto, server.String())
			return err
		})
		return c, err
	}}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return r.LookupNetIP(ctx, network, name+".")
}

// capture records a link between two nodes and ends with the test.
func capture(t *testing.T, ctx context.Context, w *World, a, b string) *Capture {
	t.Helper()
	l, err := w.Link(a, b)
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.Capture(ctx, a, l.end(a).Interface)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// clear lists what an observer on a captured wire learns of who talks to whom outside: packets to or from there, questions
// to name servers, words of the page. It is an error when the wire carried nothing at all.
func (c *Capture) clear(ctx context.Context) (seen []string, err error) {
	all, err := c.Matching(ctx, "")
	if err != nil {
		return nil, err
	}
	if len(all) < 20 {
		return nil, fmt.Errorf("only %d packets on a wire that should carry many: this sees nothing", len(all))
	}
	seen, err = c.Matching(ctx, OutsideNets+" or port 53 or port 853 or port 80 or port 443 or net 100.64.0.0/10")
	if err != nil {
		return nil, err
	}
	for _, words := range []string{Page[:20], "example", "GET /", "HTTP/1"} {
		found, err := c.Holds(words)
		if err != nil {
			return nil, err
		}
		if found {
			seen = append(seen, fmt.Sprintf("the words %q", words))
		}
	}
	return seen, nil
}

// kernelLine joins nodes to a line with addresses 10.9.i.0/24 and fd09:0:0:i::/64 in which the kernel forwards; the last
// one translates for all to its uplink.
func kernelLine(t *testing.T, ctx context.Context, w *World, o *Outside, rate float64, names ...string) Uplink {
	t.Helper()
	last := len(names) - 1
	for _, n := range names {
		if _, err := w.AddNode(n); err != nil {
			t.Fatal(err)
		}
	}
	script := make([]string, len(names))
	for i := range last {
		l, err := w.AddLink(names[i]+"–"+names[i+1], names[i:i+2], Shape{}, 1)
		if err != nil {
			t.Fatal(err)
		}
		for k, e := range l.Ends {
			for _, a := range []string{fmt.Sprintf("10.9.%d.%d/24", i, k+1), fmt.Sprintf("fd09:0:0:%d::%d/64", i, k+1)} {
				if err := w.AddAddr(e.Node, e.Interface, netip.MustParsePrefix(a)); err != nil {
					t.Fatal(err)
				}
			}
		}
		script[i] += fmt.Sprintf("ip route replace default via 10.9.%d.2; ip -6 route replace default via fd09:0:0:%d::2\n", i, i)
		for k := range i { // and back
			script[i+1] += fmt.Sprintf("ip route add 10.9.%d.0/24 via 10.9.%d.1; ip -6 route add fd09:0:0:%d::/64 via fd09:0:0:%d::1\n", k, i, k, i)
		}
	}
	up, err := o.Uplink(ctx, names[last], rate)
	if err != nil {
		t.Fatal(err)
	}
	script[last] += fmt.Sprintf("nft 'table inet nat { chain post { type nat hook postrouting priority srcnat; oifname %q masquerade; }; }'\n", up.Interface)
	for i, n := range names {
		if i > 0 {
			script[i] += "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding\n"
		}
		if _, err := w.Exec(ctx, n, "sh", "-ec", script[i]); err != nil {
			t.Fatal(err)
		}
	}
	return up
}

// The pretend internet by itself, with no Weft in the world: what the tests of gateways lean on works, and their eyes see.
func TestOutside(t *testing.T) {
	w, o, ctx := outsideWorld(t)
	up := kernelLine(t, ctx, w, o, 0, "anna", "r1", "r2", "gw")
	house, err := o.AddHouse(ctx, "gw")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.SetResolver("anna", NameAddr4); err != nil {
		t.Fatal(err)
	}
	wire := capture(t, ctx, w, "r1", "r2")
	anna := browser{t: t, ctx: ctx, w: w, node: "anna"}
	for family, want := range map[string]string{"-4": up.Addr4.String(), "-6": up.Addr6.String()} {
		anna.page(Page, family, "http://"+WebName+"/")
		anna.page(want+"\n", family, "http://"+WebName+"/whoami")
	}
	anna.page(Page, "http://"+Only4Name+"/")
	if got, err := anna.try("-6", "http://"+Only4Name+"/"); err == nil {
		t.Errorf("a name without an IPv6 address has one: %q", got)
	}
	if err := wire.Stop(); err != nil {
		t.Fatal(err)
	}
	if seen, err := wire.clear(ctx); err != nil || len(seen) < 20 {
		t.Errorf("clear traffic on the wire is not seen: %q, %v", seen, err)
	}

	anna.download("http://"+WebName+"/big", BigFile, "-4")
	anna.upload(o, "upload4", 20e6, "-4")
	anna.upload(o, "upload6", 20e6, "-6")
	visits, err := o.Visits()
	if err != nil || len(visits) < 8 || visits[0].From != up.Addr4 && visits[0].From != up.Addr6 || visits[0].Path != "/" || visits[0].Status != 200 {
		t.Errorf("the web server's log says %+v, %v", visits, err)
	}

	for _, q := range []struct {
		network, name string
		want          netip.Addr
	}{{"ip4", WebName, WebAddr4}, {"ip6", WebName, WebAddr6}, {"ip4", Only4Name, Only4Addr}, {"ip6", Only4Name, netip.Addr{}}, {"ip4", "nobody.example.net", netip.Addr{}}} {
		for _, server := range []netip.Addr{NameAddr4, NameAddr6} {
			got, err := resolve(ctx, w, "anna", netip.AddrPortFrom(server, 53), q.network, q.name)
			if q.want.IsValid() && (err != nil || len(got) != 1 || got[0] != q.want) || !q.want.IsValid() && err == nil {
				t.Errorf("%s of %s from %s: %v, %v; want %v", q.network, q.name, server, got, err, q.want)
			}
		}
	}
	asked, err := o.Asked()
	if err != nil || !strings.Contains(strings.Join(asked, "\n"), "AAAA "+WebName+" "+up.Addr6.String()) {
		t.Errorf("the name server's log says %q, %v", asked, err)
	}

	for _, a := range []netip.Addr{house.Addr4, house.Addr6} { // a gateway that does nothing against it lets strangers in
		anna.page(house.Page, "-g", "http://"+netip.AddrPortFrom(a, 80).String()+"/")
		isp := browser{t: t, ctx: ctx, w: w, node: "isp"}
		isp.refused("http://"+netip.AddrPortFrom(a, 80).String()+"/", "the internet knows no way into a house")
	}
	if got, err := anna.try("-m", "3", "telnet://"+SpeedName+":25"); !strings.Contains(got, "220 speed") || o.Mails() == 0 {
		t.Errorf("the mail server said %q and counted %d: %v", got, o.Mails(), err)
	}
	f, err := w.Iperf(ctx, FlowSpec{From: "anna", To: "speed", Addr: SpeedAddr6, Time: time.Second, Port: 5202, Back: true, Extra: []string{"-P", "2"}})
	if err != nil || f.BitsPerSecond < 50e6 {
		t.Errorf("iperf3: %+v, %v", f, err)
	}
}

// An uplink of 20 Mbit/s carries that in both directions, and a flood fills its long queue: what a gateway has to prevent.
func TestSlowUplink(t *testing.T) {
	w, o, ctx := outsideWorld(t)
	kernelLine(t, ctx, w, o, 20e6, "anna", "gw")
	for _, back := range []bool{false, true} {
		p, err := w.StartPing("anna", WebAddr4, 20*time.Millisecond, 0)
		if err != nil {
			t.Fatal(err)
		}
		<-p.First()
		f, err := w.Iperf(ctx, FlowSpec{From: "anna", To: "speed", Addr: SpeedAddr4, Time: 2 * time.Second, Warmup: time.Second, Back: back, Extra: []string{"-P", "4"}})
		r := p.Stop()
		if err != nil || f.BitsPerSecond < 14e6 || f.BitsPerSecond > 22e6 {
			t.Errorf("an uplink of 20 Mbit/s carried %.1f Mbit/s (download: %v): %v", f.BitsPerSecond/1e6, back, err)
		}
		if r.P99 < 30*time.Millisecond {
			t.Errorf("a flood made nobody wait (download: %v): %+v", back, r)
		}
		t.Logf("download %v: %.1f Mbit/s, ping median %v, p99 %v", back, f.BitsPerSecond/1e6, r.Median, r.P99)
	}
}
