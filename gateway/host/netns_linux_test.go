package host

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// The world of these tests, made of real kernels. What is opened runs in processes of their own, which can be killed.
//
//	la ──────── gw ════════ w ════════ cl        ── 192.168.7.0/24, fd07::/64    ══ 192.0.2.0/24, 2001:db8:1::/64 and 10.9.1.0/24, 2001:db8:9::/64
//	gateway's   │ wt0       198.51.100.1, .53    │ wt0
//	LAN         │           2001:db8:99::1, ::53 │
//	            └────────── the mesh ────────────┘  two TUNs and a goroutine between them

const (
	poolText = "100.77.0.0/16"
	lease4   = "100.77.0.9"
	meshCl   = "201:aaaa::1"
	meshGw   = "202:bbbb::1"
	web4     = "http://198.51.100.1:8080/"
	web6     = "http://[2001:db8:99::1]:8080/"
	ownCl4   = "10.9.1.2"
	ownCl6   = "2001:db8:9::2"
	ownGw4   = "192.0.2.1"
	ownGw6   = "2001:db8:1::1"
)

func TestMain(m *testing.M) {
	if job := os.Getenv("WEFT_HOST_JOB"); job != "" {
		os.Exit(helper(job))
	}
	goleak.VerifyTestMain(m)
}

// job is what a process of its own does in a namespace.
type job struct {
	Kind      string // gateway, client, recover, uplink, resolve, get
	TUN       string
	WAN       string
	Pool      netip.Prefix
	IPv6      bool
	Prefix6   netip.Prefix
	Deny      []netip.Prefix
	NoForce   bool
	Addrs     ClientAddrs
	KeepOwn   bool
	DNSPort   uint16
	StateFile string
	Target    string // resolve: the server; get: the URL
	TCP       bool
	Marked    bool
}

// helper is main of such a process: it opens, says "ready" or what went wrong, and obeys lines: "close", "update JSON", "blocked".
func helper(text string) int {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		fmt.Println(err)
		return 1
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	var closer io.Closer
	var err error
	say := func(v any) { b, _ := json.Marshal(v); fmt.Println(string(b)) }
	switch j.Kind {
	case "gateway":
		closer, err = OpenGateway(GatewayConfig{TUN: j.TUN, WAN: j.WAN, Pool: j.Pool, IPv6: j.IPv6, Prefix6: j.Prefix6, Deny: j.Deny, DNSPort: j.DNSPort, StateFile: j.StateFile,
			Log: log, noForce: j.NoForce, Changed: func(State) { fmt.Println("changed") }})
	case "client":
		closer, err = OpenClient(ClientConfig{TUN: j.TUN, Addrs: j.Addrs, KeepOwn: j.KeepOwn, DNSPort: j.DNSPort, StateFile: j.StateFile, Log: log})
	case "uplink":
		var u *Uplink
		if u, err = OpenUplink(UplinkConfig{Ignore: []string{"wt0"}, Changed: func(s State) { say(s) }}); err == nil {
			say(u.State())
			closer = u
		}
	case "recover":
		err = Recover(j.StateFile)
	case "prefixes":
		var p []netip.Prefix
		p, err = HostPrefixes("wt0")
		say(p)
	case "resolve":
		d := net.Dialer{}
		if j.Marked {
			d.Control = Control
		}
		r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			if j.TCP {
				network = "tcp"
			}
			return d.DialContext(ctx, network, j.Target)
		}}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		var ips []netip.Addr
		if ips, err = r.LookupNetIP(ctx, "ip4", "who.example."); err == nil {
			fmt.Println(ips)
		}
	case "get":
		d := net.Dialer{}
		if j.Marked {
			d.Control = Control
		}
		c := http.Client{Transport: &http.Transport{DialContext: d.DialContext}, Timeout: 5 * time.Second}
		var res *http.Response
		if res, err = c.Get(j.Target); err == nil {
			io.Copy(os.Stdout, res.Body)
			res.Body.Close()
		}
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if closer == nil {
		return 0
	}
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var err error
		switch word, arg, _ := strings.Cut(in.Text(), " "); word {
		case "close":
			if err := errors.Join(closer.Close(), closer.Close()); err != nil {
				fmt.Println(err)
				return 1
			}
			if err := goleak.Find(); err != nil {
				fmt.Println(err)
				return 1
			}
			return 0
		case "update":
			var a ClientAddrs
			if err = json.Unmarshal([]byte(arg), &a); err == nil {
				err = closer.(*Client).Update(a)
			}
		case "forget":
			err = closer.(*Gateway).Forget([]netip.Addr{netip.MustParseAddr(arg)})
		case "flows":
			var all []*netlink.ConntrackFlow
			all, err = netlink.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4)
			n := 0
			for _, f := range all {
				if f.Forward.SrcIP.String() == arg {
					n++
				}
			}
			fmt.Println(n)
		case "blocked":
			fmt.Println(closer.(*Gateway).Blocked())
		}
		if err != nil {
			fmt.Println(err)
		} else {
			fmt.Println("ok")
		}
	}
	return 1
}

var worlds atomic.Int32

type world struct {
	t      *testing.T
	prefix string
	dir    string
	mtu    int
	tuns   map[string]*os.File
	wg     sync.WaitGroup
}

// newWorld builds it; everything goes away with the test.
func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, the kernel was NOT tested: network namespaces need root")
	}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED, the kernel was NOT tested: %v", err)
		}
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("SKIPPED, the kernel was NOT tested: %v", err)
	}
	w := &world{t: t, prefix: fmt.Sprintf("ghost%dx%d-", os.Getpid(), worlds.Add(1)), dir: t.TempDir(), mtu: 1280, tuns: map[string]*os.File{}}
	for _, n := range []string{"la", "gw", "w", "cl"} {
		name := w.prefix + n
		w.run("ip", "netns", "add", name)
		t.Cleanup(func() { w.run("ip", "netns", "del", name) })
		w.sh(n, "echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding; echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad; echo 1 > /proc/sys/net/ipv6/conf/all/accept_ra")
		w.ip(n, "link set lo up")
	}
	t.Cleanup(func() {
		for _, f := range w.tuns {
			f.Close()
		}
		w.wg.Wait()
	})
	w.cable("la", "eth0", "gw", "lan0")
	w.cable("gw", "eth0", "w", "togw")
	w.cable("cl", "eth0", "w", "tocl")
	w.ip("la", "addr add 192.168.7.2/24 dev eth0", "addr add fd07::2/64 dev eth0 nodad", "route add default via 192.168.7.1", "route add default via fd07::1")
	w.ip("gw", "addr add 192.168.7.1/24 dev lan0", "addr add fd07::1/64 dev lan0 nodad", "addr add "+ownGw4+"/24 dev eth0", "addr add "+ownGw6+"/64 dev eth0 nodad",
		"route add default via 192.0.2.254", "route add default via 2001:db8:1::254")
	w.ip("w", "addr add 192.0.2.254/24 dev togw", "addr add 2001:db8:1::254/64 dev togw nodad", "addr add 10.9.1.1/24 dev tocl", "addr add 2001:db8:9::1/64 dev tocl nodad",
		"addr add 198.51.100.1/32 dev lo", "addr add 198.51.100.53/32 dev lo", "addr add 2001:db8:99::1/128 dev lo nodad", "addr add 2001:db8:99::53/128 dev lo nodad",
		"route add 192.168.7.0/24 via "+ownGw4, "route add fd07::/64 via "+ownGw6)
	w.ip("cl", "addr add "+ownCl4+"/24 dev eth0", "addr add "+ownCl6+"/64 dev eth0 nodad", "route add default via 10.9.1.1", "route add default via 2001:db8:9::1")
	return w
}

func (w *world) run(args ...string) string {
	w.t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (w *world) ip(node string, lines ...string) {
	w.t.Helper()
	c := exec.Command("ip", "-n", w.prefix+node, "-b", "-")
	c.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := c.CombinedOutput(); err != nil {
		w.t.Fatalf("%s: %q: %v: %s", node, lines, err, out)
	}
}

func (w *world) sh(node, script string) string {
	w.t.Helper()
	return w.run("ip", "netns", "exec", w.prefix+node, "sh", "-ec", script)
}

func (w *world) cable(a, ifa, b, ifb string) {
	w.t.Helper()
	w.ip(a, fmt.Sprintf("link add %s type veth peer name %s netns %s", ifa, ifb, w.prefix+b), "link set "+ifa+" up")
	w.ip(b, "link set "+ifb+" up")
}

// in runs f in a node's namespace, on a thread that is thrown away afterwards. Sockets that f opens stay there.
func (w *world) in(node string, f func() error) {
	w.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ns, err := netns.GetFromName(w.prefix + node)
		if err == nil {
			err = netns.Set(ns)
			ns.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		w.t.Fatalf("in %s: %v", node, err)
	}
}

// tun makes a TUN with a mesh address and the route to the mesh, as package tun does.
func (w *world) tun(node, name, addr, route string) {
	w.t.Helper()
	w.in(node, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			return err
		}
		w.tuns[node+name] = os.NewFile(uintptr(fd), name)
		return nil
	})
	w.ip(node, fmt.Sprintf("link set %s mtu %d up", name, w.mtu), fmt.Sprintf("addr add %s/128 dev %s nodad noprefixroute", addr, name), fmt.Sprintf("route add %s dev %s src %s", route, name, addr))
}

// mesh joins the TUNs wt0 of gw and cl.
func (w *world) mesh() {
	w.t.Helper()
	w.tun("gw", "wt0", meshGw, "200::/7")
	w.tun("cl", "wt0", meshCl, "200::/7")
	w.join(w.tuns["gwwt0"], w.tuns["clwt0"])
}

func (w *world) join(a, b *os.File) {
	for _, p := range [][2]*os.File{{a, b}, {b, a}} {
		w.wg.Go(func() {
			buf := make([]byte, 65536)
			for {
				n, err := p[0].Read(buf)
				if err != nil {
					return
				}
				if _, err := p[1].Write(buf[:n]); errors.Is(err, os.ErrClosed) {
					return
				}
			}
		})
	}
}

// unplug closes a TUN, as the death of its process does.
func (w *world) unplug(node string) {
	w.tuns[node+"wt0"].Close()
	for range 100 {
		if exec.Command("ip", "-n", w.prefix+node, "link", "show", "wt0").Run() != nil {
			return
		}
		runtime.Gosched()
	}
	w.t.Fatal("the TUN stays")
}

// web serves on a port of a node: it answers with who asked; /big is long; /mss tells the segment size in use.
func (w *world) web(node string, addrs ...string) {
	w.t.Helper()
	type key struct{}
	srv := &http.Server{ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, key{}, c) }}
	srv.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/big":
			rw.Write(make([]byte, 1<<20))
		case "/mss":
			raw, _ := r.Context().Value(key{}).(*net.TCPConn).SyscallConn()
			raw.Control(func(fd uintptr) {
				n, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG)
				fmt.Fprint(rw, n, err)
			})
		default:
			host, _, _ := net.SplitHostPort(r.RemoteAddr)
			fmt.Fprint(rw, host)
		}
	})
	w.t.Cleanup(func() { srv.Close() })
	for _, a := range addrs {
		var l net.Listener
		network := "tcp4"
		if a[0] == '[' {
			network = "tcp6"
		}
		w.in(node, func() (err error) { l, err = net.Listen(network, a); return err })
		w.wg.Go(func() { srv.Serve(l) })
	}
}

// names serves DNS: every name has the one address.
func (w *world) names(node, answer string, addrs ...string) {
	w.t.Helper()
	h := dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.ParseIP(answer)})
		}
		rw.WriteMsg(m)
	})
	for _, a := range addrs {
		u, s := &dns.Server{Handler: h}, &dns.Server{Handler: h}
		w.in(node, func() (err error) {
			if u.PacketConn, err = net.ListenPacket("udp", a); err == nil {
				s.Listener, err = net.Listen("tcp", a)
			}
			return err
		})
		for _, srv := range []*dns.Server{u, s} {
			up := make(chan struct{})
			srv.NotifyStartedFunc = func() { close(up) }
			w.wg.Go(func() { srv.ActivateAndServe() })
			<-up
			w.t.Cleanup(func() { srv.Shutdown() })
		}
	}
}

// proc is a helper that runs.
type proc struct {
	w   *world
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	err strings.Builder
}

func (w *world) command(node string, j job) *exec.Cmd {
	w.t.Helper()
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	text, err := json.Marshal(j)
	if err != nil {
		w.t.Fatal(err)
	}
	// ip(8) becomes the program, so its pid is the program's.
	cmd := exec.Command("ip", "netns", "exec", w.prefix+node, self)
	cmd.Env = append(os.Environ(), "WEFT_HOST_JOB="+string(text))
	return cmd
}

// start runs a job and returns when it is ready, or with what it said instead.
func (w *world) start(node string, j job) (*proc, string) {
	w.t.Helper()
	if j.StateFile == "" {
		j.StateFile = filepath.Join(w.dir, node+"-"+j.Kind)
	}
	p := &proc{w: w, cmd: w.command(node, j)}
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		w.t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	p.cmd.Stderr = &p.err
	if err := p.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	p.out = bufio.NewScanner(out)
	w.t.Cleanup(func() {
		p.cmd.Process.Kill()
		p.cmd.Wait()
		if w.t.Failed() && p.err.Len() > 0 {
			w.t.Logf("%s in %s wrote: %s", j.Kind, node, p.err.String())
		}
	})
	var said []string
	for p.out.Scan() {
		if p.out.Text() == "ready" {
			return p, strings.Join(said, "\n")
		}
		said = append(said, p.out.Text())
	}
	return nil, strings.Join(said, "\n")
}

// open is start that must succeed.
func (w *world) open(node string, j job) *proc {
	w.t.Helper()
	p, said := w.start(node, j)
	if p == nil {
		w.t.Fatalf("%s in %s: %s", j.Kind, node, said)
	}
	return p
}

// tell sends a line and returns what is said until "ok".
func (p *proc) tell(line string) string {
	p.w.t.Helper()
	fmt.Fprintln(p.in, line)
	var said []string
	for p.out.Scan() {
		if p.out.Text() == "ok" {
			return strings.Join(said, "\n")
		}
		said = append(said, p.out.Text())
	}
	p.w.t.Fatalf("%s: %q", line, said)
	return ""
}

func (p *proc) update(a ClientAddrs) {
	p.w.t.Helper()
	b, _ := json.Marshal(a)
	if said := p.tell("update " + string(b)); said != "" {
		p.w.t.Fatal(said)
	}
}

// await reads what a process says until a line fits.
func (p *proc) await(fits func(line string) bool) {
	p.w.t.Helper()
	for p.out.Scan() {
		if fits(p.out.Text()) {
			return
		}
	}
	p.w.t.Fatal("it ended")
}

func (p *proc) close() {
	p.w.t.Helper()
	fmt.Fprintln(p.in, "close")
	var said []string
	for p.out.Scan() {
		said = append(said, p.out.Text())
	}
	if err := p.cmd.Wait(); err != nil {
		p.w.t.Fatalf("close: %v: %q", err, said)
	}
}

// kill is kill -9; the process is gone when it returns.
func (p *proc) kill() {
	p.w.t.Helper()
	p.cmd.Process.Kill()
	if err := p.cmd.Wait(); err == nil || !p.cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() {
		p.w.t.Fatalf("not killed: %v", err)
	}
}

// once runs a job to its end.
func (w *world) once(node string, j job) (string, error) {
	w.t.Helper()
	if j.StateFile == "" {
		j.StateFile = filepath.Join(w.dir, node+"-none")
	}
	out, err := w.command(node, j).Output()
	return strings.TrimSpace(string(out)), err
}

// get fetches with curl, as people do; empty when it fails.
func (w *world) get(node, url string, args ...string) string {
	w.t.Helper()
	args = append([]string{"netns", "exec", w.prefix + node, "curl", "-sS", "-g", "--connect-timeout", "2", "--max-time", "10"}, append(args, url)...)
	out, err := exec.Command("ip", args...).Output()
	if err != nil {
		return ""
	}
	return string(out)
}

func (w *world) expect(node, url, want string) {
	w.t.Helper()
	var args []string
	if want == "" { // an answer takes a millisecond here; more patience would only make passing slower
		args = []string{"--connect-timeout", "0.5"}
	}
	if got := w.get(node, url, args...); got != want {
		w.t.Errorf("%s gets %s: it was seen as %q, want %q", node, url, got, want)
	}
}

var volatile = regexp.MustCompile(`expires \d+sec|counter packets \d+ bytes \d+|.*fe80:.*\n`)

// snapshot is all that could be changed in a node's kernel. Link-local addresses and routes are left out: they come when the kernel has time.
func (w *world) snapshot(node string) string {
	w.t.Helper()
	// stderr complains of interfaces whose other end is in a namespace that is just being made or removed. Routes of addresses come a little
	// later than these.
	s := w.sh(node, `exec 2>/dev/null
		for a in $(ip -6 -o addr show scope global | awk '{print $4}' | cut -d/ -f1); do
			for i in $(seq 300); do if ip -6 route show table local | grep -q "^local $a "; then break; fi; done
		done
		ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; ip addr show | grep -v wt0; nft list ruleset
		cd /proc/sys/net; grep -s . ipv4/ip_forward ipv4/conf/*/forwarding ipv4/conf/*/src_valid_mark ipv4/conf/*/rp_filter ipv6/conf/*/forwarding ipv6/conf/*/force_forwarding ipv6/conf/*/accept_ra`)
	return volatile.ReplaceAllString(s, "")
}

func (w *world) same(node, before string) {
	w.t.Helper()
	after := w.snapshot(node)
	if after == before {
		return
	}
	seen := map[string]int{}
	for _, l := range strings.Split(before, "\n") {
		seen[l]--
	}
	for _, l := range strings.Split(after, "\n") {
		seen[l]++
	}
	for l, n := range seen {
		if n != 0 {
			w.t.Errorf("%s changed (%+d): %s", node, n, l)
		}
	}
}
