//go:build linux && !router

package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Outside is a pretend internet with documentation addresses (RFC 5737, RFC 3849), but for one, and real servers. Machines of the world
// get an uplink into it, with or without a NAT of their own making; the rest of the world can only reach it through them.
//
//	web    198.51.100.80  2001:db8:80::80   nginx: pages, a large file, uploads; and 192.31.196.81
//	ns     192.0.2.53     2001:db8:53::53   dnsmasq: the names below example.net
//	speed  198.51.100.201 2001:db8:5::201   nothing yet: for iperf3; and mail on port 25
//	isp    the router between them, which drops what has no place on the internet by knowing no way to it
type Outside struct {
	w       *World
	uplinks int
	houses  int
	mail    net.Listener
	mails   atomic.Int64
	ended   chan struct{} // the mail server's goroutine
}

// What is where, and by what name. Not below .test, which resolvers never ask anybody for (RFC 6761).
var (
	WebAddr4 = netip.MustParseAddr("198.51.100.80")
	WebAddr6 = netip.MustParseAddr("2001:db8:80::80")
	// Of the web server too; its name has no IPv6 address. It is no documentation address, for those must not cross NAT64 under
	// 64:ff9b::/96 (RFC 6052, section 3.1), but one of AS112, where there is no web server in the real internet (RFC 7535).
	Only4Addr  = netip.MustParseAddr("192.31.196.81")
	NameAddr4  = netip.MustParseAddr("192.0.2.53")
	NameAddr6  = netip.MustParseAddr("2001:db8:53::53")
	SpeedAddr4 = netip.MustParseAddr("198.51.100.201")
	SpeedAddr6 = netip.MustParseAddr("2001:db8:5::201")
)

const (
	WebName   = "www.example.net"
	Only4Name = "v4only.example.net"
	SpeedName = "speed.example.net"

	// Page is what the web server says at /. No other part of a world sends these words.
	Page = "A page of the world outside, for everybody to read.\n"
	// BigFile is the length of /big in bytes.
	BigFile = 200_000_000
)

// OutsideNets are all addresses of the pretend internet, as a filter of tcpdump.
const OutsideNets = "(net 192.0.2.0/24 or net 192.31.196.0/24 or net 198.51.100.0/24 or net 203.0.113.0/24 or ip6 net 2001:db8::/32)"

// AddOutside adds the pretend internet to a world and starts its servers.
func (w *World) AddOutside(ctx context.Context) (*Outside, error) {
	for _, program := range []string{"nginx", "dnsmasq"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("the pretend internet needs %q: %w", program, err)
		}
	}
	o := &Outside{w: w, ended: make(chan struct{})}
	if _, err := w.AddNode("isp"); err != nil {
		return nil, err
	}
	for i, s := range []struct {
		name       string
		net4, net6 string // the router's side; the server's addresses are in the same networks
		addrs      []string
	}{
		{"web", "198.51.100.1/25", "2001:db8:80::1/64", []string{WebAddr4.String() + "/25", Only4Addr.String() + "/24", WebAddr6.String() + "/64"}},
		{"ns", "192.0.2.1/24", "2001:db8:53::1/64", []string{NameAddr4.String() + "/24", NameAddr6.String() + "/64"}},
		{"speed", "198.51.100.129/25", "2001:db8:5::1/64", []string{SpeedAddr4.String() + "/25", SpeedAddr6.String() + "/64"}},
	} {
		if _, err := w.AddNode(s.name); err != nil {
			return nil, err
		}
		if _, err := w.AddLink("isp–"+s.name, []string{"isp", s.name}, Shape{}, 1); err != nil {
			return nil, err
		}
		for _, a := range []string{s.net4, s.net6} {
			if err := w.AddAddr("isp", "eth"+strconv.Itoa(i), netip.MustParsePrefix(a)); err != nil {
				return nil, err
			}
		}
		for _, a := range s.addrs {
			if err := w.AddAddr(s.name, "eth0", netip.MustParsePrefix(a)); err != nil {
				return nil, err
			}
		}
		if s.name == "web" {
			if err := w.AddAddr("isp", "eth0", netip.PrefixFrom(Only4Addr.Prev(), 24)); err != nil {
				return nil, err
			}
		}
		if err := w.defaultRoute(ctx, s.name, netip.MustParsePrefix(s.net4).Addr(), netip.MustParsePrefix(s.net6).Addr()); err != nil {
			return nil, err
		}
	}
	if _, err := w.Exec(ctx, "isp", "sh", "-ec", "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"); err != nil {
		return nil, err
	}
	if err := errors.Join(o.startWeb(ctx), o.startNames(ctx), o.startMail()); err != nil {
		return nil, fmt.Errorf("start the pretend internet: %w", err)
	}
	return o, nil
}

func (w *World) defaultRoute(ctx context.Context, node string, via4, via6 netip.Addr) error {
	_, err := w.Exec(ctx, node, "sh", "-ec", fmt.Sprintf("ip route replace default via %s; ip -6 route replace default via %s", via4, via6))
	return err
}

// startWeb runs nginx, with everything that it writes in the node's folder.
func (o *Outside) startWeb(ctx context.Context) error {
	n, err := o.w.node("web")
	if err != nil {
		return err
	}
	for _, dir := range []string{"pages", "up", "tmp"} {
		if err := os.MkdirAll(filepath.Join(n.Dir, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(n.Dir, "pages", "index.html"), []byte(Page), 0o644); err != nil {
		return err
	}
	big := filepath.Join(n.Dir, "pages", "big")
	if err := os.WriteFile(big, nil, 0o644); err != nil {
		return err
	}
	if err := os.Truncate(big, BigFile); err != nil { // a hole: takes no place on the disk
		return err
	}
	conf := filepath.Join(n.Dir, "nginx.conf")
	if err := os.WriteFile(conf, []byte(strings.ReplaceAll(nginxConf, "DIR", n.Dir)), 0o644); err != nil {
		return err
	}
	p, err := o.w.Spawn("web", "nginx", "nginx", "-e", "stderr", "-p", n.Dir, "-c", conf)
	if err != nil {
		return err
	}
	return o.w.AwaitListen(ctx, "web", 80, p)
}

const nginxConf = `
daemon off;
user root;
worker_processes 1;
pid DIR/tmp/nginx.pid;
error_log stderr warn;
events {}
http {
	log_format visit "$remote_addr $request_method $request_uri $status $body_bytes_sent";
	access_log DIR/visits visit;
	default_type text/plain;
	client_body_temp_path DIR/tmp/body;
	proxy_temp_path DIR/tmp/proxy;
	fastcgi_temp_path DIR/tmp/fastcgi;
	uwsgi_temp_path DIR/tmp/uwsgi;
	scgi_temp_path DIR/tmp/scgi;
	client_max_body_size 0;
	sendfile on;
	server {
		listen 80;
		listen [::]:80;
		root DIR/pages;
		location /up/ {
			root DIR;
			dav_methods PUT DELETE;
		}
		location = /whoami {
			return 200 "$remote_addr\n";
		}
	}
}
`

// startNames runs dnsmasq. It knows the names of the pretend internet and asks nobody else.
func (o *Outside) startNames(ctx context.Context) error {
	n, err := o.w.node("ns")
	if err != nil {
		return err
	}
	conf := filepath.Join(n.Dir, "dnsmasq.conf")
	text := fmt.Sprintf("no-resolv\nno-hosts\nno-poll\nlocal=/example.net/\nlog-queries\nuser=root\ngroup=root\npid-file=%s/dnsmasq.pid\nlocal-ttl=60\n"+
		"host-record=%s,%s,%s\nhost-record=%s,%s\nhost-record=%s,%s,%s\n", n.Dir,
		WebName, WebAddr4, WebAddr6, Only4Name, Only4Addr, SpeedName, SpeedAddr4, SpeedAddr6)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return err
	}
	p, err := o.w.Spawn("ns", "dnsmasq", "dnsmasq", "--keep-in-foreground", "--log-facility=-", "--conf-file="+conf)
	if err != nil {
		return err
	}
	return o.w.AwaitListen(ctx, "ns", 53, p)
}

// startMail greets whoever comes to the mail port and counts them. It ends with the world.
func (o *Outside) startMail() error {
	l, err := o.w.Listen("speed", netip.MustParseAddrPort("[::]:25"))
	if err != nil {
		return err
	}
	o.mail = l
	go func() {
		defer close(o.ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			o.mails.Add(1)
			c.SetDeadline(time.Now().Add(time.Second))
			io.WriteString(c, "220 speed.example.net ESMTP\r\n")
			c.Close()
		}
	}()
	o.w.mu.Lock()
	o.w.ends = append(o.w.ends, func() { l.Close(); <-o.ended })
	o.w.mu.Unlock()
	return nil
}

// Mails counts the connections that mail servers outside have had.
func (o *Outside) Mails() int { return int(o.mails.Load()) }

// Uplink is a machine's way to the pretend internet.
type Uplink struct {
	Link         *Link
	Interface    string // of the machine
	Addr4, Addr6 netip.Addr
	Via4, Via6   netip.Addr
}

// Uplink connects a node to the pretend internet, with public addresses and default routes, at a rate in bit/s in each
// direction (0: as fast as it goes). The queue before the slow link is the kernel's, and long: as people have it at home.
func (o *Outside) Uplink(ctx context.Context, node string, rate float64) (Uplink, error) {
	l, err := o.w.AddLink("isp–"+node, []string{"isp", node}, Shape{Rate: rate}, 1)
	if err != nil {
		return Uplink{}, err
	}
	k := o.uplinks
	o.uplinks++
	net4 := netip.AddrFrom4([4]byte{203, 0, 113, byte(4 * k)})
	net6 := netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0x01, byte(k)})
	via6 := net6.As16()
	via6[15] = 1
	addr6 := via6
	addr6[15] = 2
	u := Uplink{
		Link: l, Interface: l.end(node).Interface, Via4: net4.Next(), Addr4: net4.Next().Next(),
		Via6: netip.AddrFrom16(via6), Addr6: netip.AddrFrom16(addr6),
	}
	for _, a := range []struct {
		node, dev string
		addr      netip.Prefix
	}{
		{"isp", l.end("isp").Interface, netip.PrefixFrom(u.Via4, 30)}, {"isp", l.end("isp").Interface, netip.PrefixFrom(u.Via6, 64)},
		{node, u.Interface, netip.PrefixFrom(u.Addr4, 30)}, {node, u.Interface, netip.PrefixFrom(u.Addr6, 64)},
	} {
		if err := o.w.AddAddr(a.node, a.dev, a.addr); err != nil {
			return Uplink{}, fmt.Errorf("uplink of %s: %w", node, err)
		}
	}
	return u, o.w.defaultRoute(ctx, node, u.Via4, u.Via6)
}

// House is a private network behind a node, with one machine in it that trusts everybody there.
type House struct {
	Node         string // the machine: NODE-lan
	Interface    string // the node's, into the house
	Addr4, Addr6 netip.Addr
	Via4, Via6   netip.Addr // the node's own addresses in it
	Page         string     // what the machine serves on port 80
}

// AddHouse puts a private network behind a node. Its machine sends what it does not know to the node, so that nothing
// but the node keeps strangers from talking to it.
func (o *Outside) AddHouse(ctx context.Context, node string) (House, error) {
	name := node + "-lan"
	if _, err := o.w.AddNode(name); err != nil {
		return House{}, err
	}
	l, err := o.w.AddLink(node+"–"+name, []string{node, name}, Shape{}, 1)
	if err != nil {
		return House{}, err
	}
	o.houses++
	k := byte(o.houses)
	h := House{
		Node: name, Interface: l.end(node).Interface, Page: "private papers of " + node + "\n",
		Via4: netip.AddrFrom4([4]byte{192, 168, k, 1}), Addr4: netip.AddrFrom4([4]byte{192, 168, k, 2}),
		Via6: netip.AddrFrom16([16]byte{0xfd, 0, 7: k, 15: 1}), Addr6: netip.AddrFrom16([16]byte{0xfd, 0, 7: k, 15: 2}),
	}
	for _, a := range []struct {
		node, dev string
		addr      netip.Prefix
	}{
		{node, h.Interface, netip.PrefixFrom(h.Via4, 24)}, {node, h.Interface, netip.PrefixFrom(h.Via6, 64)},
		{name, "eth0", netip.PrefixFrom(h.Addr4, 24)}, {name, "eth0", netip.PrefixFrom(h.Addr6, 64)},
	} {
		if err := o.w.AddAddr(a.node, a.dev, a.addr); err != nil {
			return House{}, fmt.Errorf("house of %s: %w", node, err)
		}
	}
	if err := o.w.defaultRoute(ctx, name, h.Via4, h.Via6); err != nil {
		return House{}, err
	}
	stop, err := o.w.Serve(name, netip.MustParseAddrPort("[::]:80"), h.Page)
	if err != nil {
		return House{}, err
	}
	o.w.mu.Lock()
	o.w.ends = append(o.w.ends, stop)
	o.w.mu.Unlock()
	return h, nil
}

// Visit is one request that the web server answered.
type Visit struct {
	From   netip.Addr
	Method string
	Path   string
	Status int
}

// Visits lists the requests that the web server has answered so far.
func (o *Outside) Visits() ([]Visit, error) {
	n, err := o.w.node("web")
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(n.Dir, "visits"))
	if err != nil {
		return nil, fmt.Errorf("read the web server's log: %w", err)
	}
	var all []Visit
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 5 {
			continue // its last line may be half written
		}
		from, err := netip.ParseAddr(f[0])
		if err != nil {
			return nil, fmt.Errorf("read the web server's log: %w", err)
		}
		status, _ := strconv.Atoi(f[3])
		all = append(all, Visit{from, f[1], f[2], status})
	}
	return all, nil
}

// Uploaded is how many bytes of an upload to /up/NAME the web server keeps.
func (o *Outside) Uploaded(name string) (int64, error) {
	n, err := o.w.node("web")
	if err != nil {
		return 0, err
	}
	st, err := os.Stat(filepath.Join(n.Dir, "up", name))
	if err != nil {
		return 0, fmt.Errorf("nothing was uploaded as %s: %w", name, err)
	}
	return st.Size(), nil
}

// Asked lists what the name server was asked so far, as "A www.example.net 203.0.113.2".
func (o *Outside) Asked() ([]string, error) {
	n, err := o.w.node("ns")
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(n.Dir, "dnsmasq.log"))
	if err != nil {
		return nil, fmt.Errorf("read the name server's log: %w", err)
	}
	var all []string
	for line := range strings.Lines(string(b)) { // "dnsmasq: query[A] www.example.net from 203.0.113.2"
		_, query, ok := strings.Cut(line, "query[")
		if f := strings.Fields(query); ok && len(f) == 4 {
			all = append(all, strings.TrimSuffix(f[0], "]")+" "+f[1]+" "+f[3])
		}
	}
	return all, nil
}

// SetResolver makes every program that starts on the node from now on read its name servers from a resolv.conf of the node.
func (w *World) SetResolver(node string, servers ...netip.Addr) error {
	n, err := w.node(node)
	if err != nil {
		return err
	}
	text := "options timeout:2 attempts:3\n"
	for _, s := range servers {
		text += "nameserver " + s.String() + "\n"
	}
	path := filepath.Join(n.Dir, "resolv.conf")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("name servers of %s: %w", node, err)
	}
	n.resolv = path
	return nil
}

// Capture is what goes over one interface, as tcpdump sees it.
type Capture struct {
	w    *World
	node string
	file string
	proc *Process
}

// Capture records what goes over an interface of a node, until Stop.
func (w *World) Capture(ctx context.Context, node, ifname string) (*Capture, error) {
	n, err := w.node(node)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(n.Dir, ifname+".pcap")
	p, err := w.Spawn(node, "tcpdump-"+ifname, "tcpdump", "-Z", "root", "-n", "-U", "--immediate-mode", "-B", "16384", "-i", ifname, "-w", file)
	if err != nil {
		return nil, err
	}
	if _, err := p.WaitLine(ctx, "tcpdump: listening"); err != nil {
		return nil, err
	}
	return &Capture{w, node, file, p}, nil
}

// Stop ends the recording.
func (c *Capture) Stop() error { return c.proc.Stop(5 * time.Second) }

// Matching lists the packets that a filter of tcpdump lets through, a line each.
func (c *Capture) Matching(ctx context.Context, filter string) ([]string, error) {
	out, err := c.w.Exec(ctx, c.node, "tcpdump", "-Z", "root", "-n", "-r", c.file, filter)
	if err != nil {
		return nil, err
	}
	text := strings.TrimSpace(string(out))
	if text == "" {
		return nil, nil
	}
	return strings.Split(text, "\n"), nil
}

// Holds says whether some packet carries these bytes in clear.
func (c *Capture) Holds(text string) (bool, error) {
	b, err := os.ReadFile(c.file)
	return err == nil && strings.Contains(string(b), text), err
}
