package guest

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// The system tests run this test program again inside network namespaces: as the router, as a server on the internet, and as
// a device that asks for an address.
func TestMain(m *testing.M) {
	switch os.Getenv("GST_ROLE") {
	case "router":
		roleRouter()
	case "server":
		roleServer()
	case "dhcp":
		roleDHCPClient()
	case "otherdhcp":
		roleOtherDHCP()
	default:
		goleak.VerifyTestMain(m)
	}
}

// routerSpec is the part of a [Config] that goes to another process.
type routerSpec struct {
	StateDir string
	DHCP     DHCP
	TLS      bool
	Access   Access
	Mesh     MeshAccess
	DNSPort  uint16
	Services []Port
}

func (r routerSpec) config() Config {
	c := Config{Interface: guestIf, StateDir: r.StateDir, DHCP: r.DHCP, Access: r.Access, Mesh: r.Mesh, DNSPort: r.DNSPort, Services: r.Services, Prefix: netip.MustParsePrefix("301:1:2:3::/64"),
		Range: netip.MustParsePrefix("10.99.8.0/24"), Out: []string{"gst-tun"}, MTU: 1400, Domain: "weft", Name: "Test <Street>"}
	if r.TLS {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			fatal(err)
		}
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"portal.weft"}, NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
		if err != nil {
			fatal(err)
		}
		c.Host, c.TLS = "portal.weft", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	}
	return c
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// roleRouter serves guests and obeys lines on its input; it answers every line with one of JSON.
func roleRouter() {
	var spec routerSpec
	if err := json.Unmarshal([]byte(os.Getenv("GST_CONFIG")), &spec); err != nil {
		fatal(err)
	}
	cfg := spec.config()
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	g, err := Open(cfg)
	if err != nil {
		fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- g.Serve(ctx) }()
	go func() {
		in := bufio.NewScanner(os.Stdin)
		for in.Scan() {
			f := strings.Fields(in.Text())
			var out any = "ok"
			switch f[0] {
			case "uplink":
				g.SetUplink(f[1] == "1", f[2] == "1")
			case "create":
				minutes, _ := strconv.ParseInt(f[1], 10, 64)
				bytes, _ := strconv.ParseUint(f[2], 10, 64)
				v, err := g.Vouchers().Create(Spec{Name: "test", Minutes: minutes, Bytes: bytes})
				if err != nil {
					fatal(err)
				}
				out = v[0]
			case "renew":
				bytes, _ := strconv.ParseUint(f[2], 10, 64)
				v, err := g.Vouchers().Renew(f[1], Renewal{Bytes: bytes})
				if err == nil {
					err = g.Refresh(f[1])
				}
				if err != nil {
					fatal(err)
				}
				out = v
			case "revoke":
				v, err := g.Vouchers().Revoke(f[1])
				if err == nil {
					err = g.Refresh(f[1])
				}
				if err != nil {
					fatal(err)
				}
				out = v
			case "status":
				out = g.Status()
			}
			b, _ := json.Marshal(out)
			fmt.Println(string(b))
		}
	}()
	if err := <-done; err != nil {
		fatal(err)
	}
	os.Exit(0)
}

// roleServer is a web server on the internet.
func roleServer() {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/big/"):
			n, _ := strconv.Atoi(r.URL.Path[5:])
			w.Header().Set("Content-Length", strconv.Itoa(n))
			_, _ = w.Write(make([]byte, n))
		case r.URL.Path == "/generate_204":
			w.WriteHeader(204)
		default:
			host, _, _ := net.SplitHostPort(r.RemoteAddr)
			fmt.Fprintf(w, "hello %s\n", host)
		}
	})
	for _, port := range []string{":80", ":443", ":8080"} {
		l, err := net.Listen("tcp", port)
		if err != nil {
			fatal(err)
		}
		go func() { _ = http.Serve(l, h) }()
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// roleDHCPClient asks for an address where no DHCP client is installed, and prints the answer.
func roleDHCPClient() {
	ifi, err := net.InterfaceByName(os.Getenv("GST_IF"))
	if err != nil {
		fatal(err)
	}
	lc := net.ListenConfig{Control: bindTo(ifi.Name)}
	c, err := lc.ListenPacket(context.Background(), "udp4", "0.0.0.0:68")
	if err != nil {
		fatal(err)
	}
	mac := MAC(ifi.HardwareAddr)
	ask := func(m *dhcpMessage) *dhcpMessage {
		for range 10 {
			if _, err := c.WriteTo(m.appendTo(nil), &net.UDPAddr{IP: net.IPv4bcast, Port: 67}); err != nil {
				fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			buf := make([]byte, 1500)
			if n, _, err := c.ReadFrom(buf); err == nil {
				if r, err := parseDHCP(buf[:n]); err == nil && r.xid == m.xid {
					return r
				}
			}
		}
		fatal(fmt.Errorf("no answer"))
		return nil
	}
	offer := ask(&dhcpMessage{op: 1, xid: 77, flags: 0x8000, mac: mac, options: []dhcpOption{{optType, []byte{dhcpDiscover}}, {55, []byte{1, 3, 6, 114}}}})
	req := &dhcpMessage{op: 1, xid: 78, flags: 0x8000, mac: mac, options: []dhcpOption{{optType, []byte{dhcpRequest}}, {55, []byte{1, 3, 6, 114}}, {optHostname, []byte("phone")}}}
	req.addAddr(optRequested, offer.your)
	req.addAddr(optServer, offer.addr(optServer))
	ack := ask(req)
	if ack.kind() != dhcpAck {
		fatal(fmt.Errorf("answer of type %d", ack.kind()))
	}
	fmt.Printf("%s %s %s %s\n", ack.your, ack.addr(optRouter), ack.addr(optDNS), ack.option(optPortal))
	os.Exit(0)
}

// roleOtherDHCP is somebody else's DHCP server.
func roleOtherDHCP() {
	lc := net.ListenConfig{Control: bindTo(os.Getenv("GST_IF"))}
	c, err := lc.ListenPacket(context.Background(), "udp4", "0.0.0.0:67")
	if err != nil {
		fatal(err)
	}
	fmt.Println("ready")
	l := newLeases(&Config{Range: netip.MustParsePrefix("172.31.7.0/24"), Log: slog.New(slog.DiscardHandler), Now: time.Now}, "/nonexistent")
	buf := make([]byte, 1500)
	for {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			fatal(err)
		}
		if m, err := parseDHCP(buf[:n]); err == nil {
			if r, _ := l.answer(m); r != nil {
				_, _ = c.WriteTo(r.appendTo(nil), &net.UDPAddr{IP: net.IPv4bcast, Port: 68})
			}
		}
	}
}

const (
	nsRouter = "gst-router"
	nsPhone  = "gst-phone"
	nsNet    = "gst-net"
	guestIf  = "br-guest"
)

func needRoot(t *testing.T, tools ...string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: NOT ROOT. Guests in network namespaces are not tested; run as root")
	}
	for _, tool := range append(tools, "ip", "curl") {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: %s IS NOT INSTALLED. Guests in network namespaces are not tested", tool)
		}
	}
}

func sh(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func in(t *testing.T, ns string, args ...string) string {
	t.Helper()
	return sh(t, append([]string{"ip", "netns", "exec", ns}, args...)...)
}

// world makes a router with a guest bridge, a LAN of the owner's and a way out, a phone, and the internet beyond.
func world(t *testing.T) {
	t.Helper()
	for _, ns := range []string{nsRouter, nsPhone, nsNet} {
		_ = exec.Command("ip", "netns", "del", ns).Run() // of a run that was killed
		sh(t, "ip", "netns", "add", ns)
		t.Cleanup(func() {
			out, _ := exec.Command("ip", "netns", "pids", ns).Output() // a dnsmasq, when a test has failed
			for _, f := range strings.Fields(string(out)) {
				if pid, err := strconv.Atoi(f); err == nil {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
			_ = exec.Command("ip", "netns", "del", ns).Run()
		})
		in(t, ns, "ip", "link", "set", "lo", "up")
	}
	sh(t, "ip", "link", "add", "gst-lan", "netns", nsRouter, "type", "veth", "peer", "name", "wlan0", "netns", nsPhone)
	sh(t, "ip", "link", "add", "gst-tun", "netns", nsRouter, "type", "veth", "peer", "name", "eth0", "netns", nsNet)
	for _, c := range []string{
		"link add br-guest type bridge", "link set br-guest up", "link set gst-lan master br-guest", "link set gst-lan up",
		"addr add 100.64.9.2/24 dev gst-tun", "link set gst-tun up", "addr add fd99::2/64 dev gst-tun nodad",
		"route add default via 100.64.9.1", "-6 route add 200::/7 via fd99::1", "-6 route add default via fd99::1",
		"link add gst-home type bridge", "link set gst-home up", "addr add 192.168.77.1/24 dev gst-home",
	} {
		in(t, nsRouter, append([]string{"ip"}, strings.Fields(c)...)...)
	}
	for _, c := range []string{
		"addr add 100.64.9.1/24 dev eth0", "addr add fd99::1/64 dev eth0 nodad", "link set eth0 up",
		"addr add 203.0.113.5/32 dev lo", "addr add 2001:db8::5/128 dev lo nodad", "addr add 201:5::5/128 dev lo nodad",
		"-6 route add 301:1:2:3::/64 via fd99::2",
	} {
		in(t, nsNet, append([]string{"ip"}, strings.Fields(c)...)...)
	}
	in(t, nsPhone, "sh", "-c", "echo 64 > /proc/sys/net/ipv6/conf/wlan0/accept_ra_rt_info_max_plen; echo 2 > /proc/sys/net/ipv6/conf/wlan0/accept_ra")
	in(t, nsPhone, "ip", "link", "set", "wlan0", "up")
}

// proc is this program in a namespace.
type proc struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	end chan struct{}
}

func start(t *testing.T, ns, role string, env ...string) *proc {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", ns, self)
	cmd.Env = append(os.Environ(), append(env, "GST_ROLE="+role)...)
	cmd.Stderr = &logWriter{t: t, who: role}
	inp, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	outp, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &proc{t: t, cmd: cmd, in: inp, out: bufio.NewScanner(outp), end: make(chan struct{})}
	t.Cleanup(p.kill)
	return p
}

type logWriter struct {
	t   *testing.T
	who string
}

func (l *logWriter) Write(b []byte) (int, error) {
	l.t.Logf("%s: %s", l.who, strings.TrimSpace(string(b)))
	return len(b), nil
}

func (p *proc) line() string {
	p.t.Helper()
	if !p.out.Scan() {
		p.t.Fatal("the process has ended")
	}
	return p.out.Text()
}

func (p *proc) ask(line string, into any) {
	p.t.Helper()
	if _, err := io.WriteString(p.in, line+"\n"); err != nil {
		p.t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(p.line()), into); err != nil {
		p.t.Fatal(err)
	}
}

func (p *proc) kill() { p.signal(syscall.SIGKILL) }

func (p *proc) signal(s syscall.Signal) {
	select {
	case <-p.end:
		return
	default:
	}
	close(p.end)
	_ = p.cmd.Process.Signal(s)
	_ = p.cmd.Wait()
}

// eventually polls, because kernels and radios take their time; what it waits for has no deadline of its own.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(40 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("still not: %s", what)
}

// curl asks from the phone and returns the status, where it is sent, and the body.
func curl(t *testing.T, args ...string) (status, location, body string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "body")
	out, _ := exec.Command("ip", append([]string{"netns", "exec", nsPhone, "curl", "-s", "-g", "--max-time", "8", "-o", file, "-w", "%{http_code} %{redirect_url} %{exitcode}"}, args...)...).Output()
	f := strings.Split(string(out), " ")
	b, _ := os.ReadFile(file)
	if len(f) != 3 {
		return string(out), "", string(b)
	}
	if f[0] == "000" {
		f[0] = "exit " + f[2]
	}
	return f[0], f[1], string(b)
}

// dhcp gives the phone an IPv4 address by the best client that is installed.
func dhcp(t *testing.T) string {
	t.Helper()
	for _, c := range [][]string{{"udhcpc"}, {"busybox", "udhcpc"}} {
		if _, err := exec.LookPath(c[0]); err != nil {
			continue
		}
		script := filepath.Join(t.TempDir(), "script")
		err := os.WriteFile(script, []byte("#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip addr add $ip/$mask dev $interface\nip route add default via $router\necho \"$ip $router $dns $opt114\"\n"), 0o755)
		if err != nil {
			t.Fatal(err)
		}
		args := append(c, "-i", "wlan0", "-n", "-q", "-f", "-O", "114", "-s", script, "-x", "hostname:phone", "-t", "10", "-T", "1")
		out := strings.TrimSpace(in(t, nsPhone, args...))
		t.Logf("%s: %s", c[0], out)
		for _, l := range strings.Split(out, "\n") {
			if strings.HasPrefix(l, "10.") {
				return l
			}
		}
		t.Fatal("the DHCP client got no address")
	}
	t.Log("NO UDHCPC: the address is asked for by our own client")
	p := start(t, nsPhone, "dhcp", "GST_IF=wlan0")
	l := p.line()
	f := strings.Fields(l)
	in(t, nsPhone, "ip", "addr", "add", f[0]+"/24", "dev", "wlan0")
	in(t, nsPhone, "ip", "route", "add", "default", "via", f[1])
	return l
}

func serve(t *testing.T, cfg routerSpec) *proc {
	t.Helper()
	b, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, nsRouter, "router", "GST_CONFIG="+string(b))
	want := "own"
	if cfg.DHCP == DHCPDnsmasq {
		want = "dnsmasq"
	}
	eventually(t, "DHCP is served", func() bool {
		var s Status
		p.ask("status", &s)
		return s.DHCP == want
	})
	return p
}

// phoneV6 waits for the phone's own address in the prefix.
func phoneV6(t *testing.T) {
	t.Helper()
	eventually(t, "the phone has made an address", func() bool {
		out := in(t, nsPhone, "ip", "-6", "addr", "show", "dev", "wlan0", "scope", "global", "-tentative")
		return strings.Contains(out, "301:1:2:3:")
	})
}

func tables(t *testing.T) string { return in(t, nsRouter, "nft", "list", "tables") }

func TestGuestsOnOwnDHCP(t *testing.T) { testGuests(t, DHCPOwn) }
func TestGuestsOnDnsmasq(t *testing.T) {
	if _, err := exec.LookPath("dnsmasq"); err != nil {
		t.Skip("SKIPPED: DNSMASQ IS NOT INSTALLED")
	}
	testGuests(t, DHCPDnsmasq)
}

func testGuests(t *testing.T, how DHCP) {
	needRoot(t, "nft")
	world(t)
	server := start(t, nsNet, "server")
	server.line()
	cfg := routerSpec{StateDir: t.TempDir(), DHCP: how}
	r := serve(t, cfg)
	var ok string
	r.ask("uplink 1 0", &ok)

	if got := dhcp(t); !strings.HasPrefix(got, "10.99.8.") || !strings.Contains(got, " 10.99.8.1 10.99.8.1") {
		t.Errorf("DHCP said %q", got)
	}
	phoneV6(t)
	// Without a way out over IPv6 the router is no default router, but it is the way to the mesh.
	if out := in(t, nsPhone, "ip", "-6", "route"); !strings.Contains(out, "200::/7 via fe80") || strings.Contains(out, "default via") {
		t.Errorf("the phone's routes: %s", out)
	}
	if out := in(t, nsPhone, "cat", "/proc/sys/net/ipv6/conf/wlan0/mtu"); out != "1400\n" {
		t.Errorf("the phone's MTU: %s", out)
	}
	r.ask("uplink 1 1", &ok)
	eventually(t, "the router is the default router", func() bool {
		return strings.Contains(in(t, nsPhone, "ip", "-6", "route"), "default via fe80")
	})

	// Captive: every probe is led to the page, over both families.
	for _, p := range []string{"/generate_204", "/gen_204", "/hotspot-detect.html", "/library/test/success.html", "/connecttest.txt", "/ncsi.txt", "/redirect",
		"/success.txt", "/canonical.html", "/check_network_status.txt", "/kindle-wifi/wifistub.html", "/whatever?x=1"} {
		if st, loc, _ := curl(t, "http://203.0.113.5"+p); st != "302" || loc != "http://10.99.8.1/" {
			t.Errorf("%s while captive: %s %s", p, st, loc)
		}
	}
	if st, loc, _ := curl(t, "http://[2001:db8::5]/generate_204"); st != "302" || loc != "http://[301:1:2:3::1]/" {
		t.Errorf("a probe over IPv6 while captive: %s %s", st, loc)
	}
	if st, _, _ := curl(t, "https://203.0.113.5/"); st != "exit 7" { // refused, neither hijacked nor left hanging
		t.Errorf("HTTPS while captive: %s", st)
	}
	if st, _, _ := curl(t, "http://203.0.113.5:8080/"); st != "exit 7" {
		t.Errorf("another port while captive: %s", st)
	}
	if st, _, body := curl(t, "http://[201:5::5]/"); st != "200" || !strings.HasPrefix(body, "hello 301:1:2:3:") {
		t.Errorf("the mesh without voucher: %s %q", st, body)
	}
	st, _, body := curl(t, "-H", "Accept-Language: de", "http://10.99.8.1/")
	if st != "200" || !strings.Contains(body, "Gutscheincode") || !strings.Contains(body, "Test &lt;Street&gt;") {
		t.Errorf("the page: %s %s", st, body)
	}
	if st, _, body := curl(t, "http://10.99.8.1/captive/api"); st != "200" || !strings.Contains(body, `"captive":true`) {
		t.Errorf("the API while captive: %s %s", st, body)
	}

	// Staying without internet: probes are answered as their servers would.
	if st, _, _ := curl(t, "-X", "POST", "http://10.99.8.1/stay"); st != "303" {
		t.Errorf("stay: %s", st)
	}
	if st, _, _ := curl(t, "http://203.0.113.5/generate_204"); st != "204" {
		t.Errorf("Android's probe of one that stays: %s", st)
	}
	if st, _, body := curl(t, "http://203.0.113.5/hotspot-detect.html"); st != "200" || !strings.Contains(body, "<BODY>Success</BODY>") {
		t.Errorf("Apple's probe of one that stays: %s %s", st, body)
	}
	if st, _, _ := curl(t, "https://203.0.113.5/"); st != "exit 7" {
		t.Errorf("HTTPS of one that stays: %s", st)
	}

	// Somebody configures the interface anew: what it lost comes back.
	in(t, nsRouter, "ip", "addr", "flush", "dev", guestIf, "scope", "global")
	eventually(t, "the page is back", func() bool {
		st, _, _ := curl(t, "http://10.99.8.1/")
		return st == "200"
	})

	// A wrong and a right code.
	var v Voucher
	r.ask("create 60 3000000", &v)
	if _, _, body := curl(t, "-d", "code=WRONG-WRONG", "http://10.99.8.1/voucher"); !strings.Contains(body, "No voucher has this code") {
		t.Errorf("a wrong code: %s", body)
	}
	if st, loc, body := curl(t, "-d", "code="+strings.ToLower(strings.ReplaceAll(v.Code, "-", "+")), "http://10.99.8.1/voucher"); st != "303" || loc != "http://10.99.8.1/" {
		t.Fatalf("the right code: %s %s %s", st, loc, body)
	}
	if st, _, body := curl(t, "http://203.0.113.5/"); st != "200" || body != "hello 100.64.9.2\n" {
		t.Errorf("the internet with a voucher: %s %q", st, body)
	}
	if st, _, _ := curl(t, "http://203.0.113.5/generate_204"); st != "204" {
		t.Errorf("a probe with a voucher: %s", st)
	}
	if st, _, body := curl(t, "http://[2001:db8::5]:8080/"); st != "200" || !strings.HasPrefix(body, "hello 301:1:2:3:") {
		t.Errorf("the internet over IPv6 with a voucher: %s %q", st, body)
	}
	// What is the owner's stays his: his LAN, other services of the router, the router's other addresses.
	for _, u := range []string{"http://192.168.77.1:8480/", "http://192.168.77.9/", "http://100.64.9.1:8080/", "http://100.64.9.2/", "http://[fd99::2]:8480/", "http://10.99.8.1:22/"} {
		if st, _, _ := curl(t, u); st != "exit 7" {
			t.Errorf("%s: %s, want a refusal", u, st)
		}
	}
	if st, _, body := curl(t, "http://10.99.8.1/captive/api"); st != "200" || !strings.Contains(body, `"captive":false`) || !strings.Contains(body, `"seconds-remaining":35`) || !strings.Contains(body, `"bytes-remaining":29`) {
		t.Errorf("the API with a voucher: %s %s", st, body)
	}

	if testing.Verbose() {
		t.Log(in(t, nsRouter, "nft", "list", "table", "inet", "weft-guest-br-guest"))
	}
	// Two thirds of the quota; counted in both directions.
	if st, _, body := curl(t, "http://203.0.113.5/big/2000000"); st != "200" || len(body) != 2000000 {
		t.Errorf("a download: %s, %d bytes", st, len(body))
	}
	var s Status
	eventually(t, "the download is counted", func() bool {
		r.ask("status", &s)
		return len(s.Clients) == 1 && s.Clients[0].Down > 2000000 && s.Clients[0].Up > 1000
	})
	if c := s.Clients[0]; c.State != StateAllowed || c.Voucher != v.ID || c.BytesLeft == nil || *c.BytesLeft > 1000000 || *c.BytesLeft < 700000 || len(c.Addrs) < 2 || c.Name != "phone" {
		t.Errorf("status: %+v", c)
	}

	// A restart keeps what is left, and lets the device in before it asks.
	r.signal(syscall.SIGTERM)
	if out := tables(t); strings.Contains(out, "weft") {
		t.Errorf("after the end there is still: %s", out)
	}
	if out := in(t, nsRouter, "ip", "addr", "show", "dev", guestIf); strings.Contains(out, "10.99.8.1") || strings.Contains(out, "301:1:2:3") {
		t.Errorf("after the end there are still addresses: %s", out)
	}
	if out := in(t, nsRouter, "cat", "/proc/sys/net/ipv6/conf/all/forwarding", "/proc/sys/net/ipv4/conf/gst-tun/forwarding"); out != "0\n0\n" {
		t.Errorf("after the end the kernel still forwards: %q", out)
	}
	if out := in(t, nsPhone, "ip", "-6", "route"); strings.Contains(out, "default via fe80") {
		t.Errorf("the router has not said goodbye: %s", out)
	}
	r = serve(t, cfg)
	r.ask("uplink 1 1", &ok)
	eventually(t, "the internet works after a restart", func() bool {
		st, _, _ := curl(t, "http://203.0.113.5/")
		return st == "200"
	})
	r.ask("status", &s)
	if len(s.Clients) != 1 || s.Clients[0].BytesLeft == nil || *s.Clients[0].BytesLeft > 1000000 {
		t.Errorf("status after a restart: %+v", s.Clients)
	}

	// The quota's end: the kernel stops at the byte, and the device is captive again.
	if st, _, body := curl(t, "http://203.0.113.5/big/2000000"); st == "200" && len(body) == 2000000 {
		t.Error("twice the quota went through")
	}
	eventually(t, "captive again", func() bool {
		st, _, _ := curl(t, "http://203.0.113.5/generate_204")
		return st == "302"
	})
	r.ask("status", &s)
	if s.Clients[0].State != StateExpired {
		t.Errorf("status after the quota: %+v", s.Clients[0])
	}
	// More bytes: in force at once.
	r.ask("renew "+v.ID+" 1000000", &v)
	if st, _, _ := curl(t, "http://203.0.113.5/"); st != "200" {
		t.Errorf("after a renewal: %s", st)
	}
	r.ask("revoke "+v.ID, &v)
	if st, _, _ := curl(t, "http://203.0.113.5/"); st != "302" {
		t.Errorf("after a revocation: %s", st)
	}

	// A crash: no table stays.
	if out := tables(t); !strings.Contains(out, "weft-guest-br-guest") {
		t.Errorf("while running there is no table: %s", out)
	}
	r.kill()
	if out := tables(t); strings.Contains(out, "weft") {
		t.Errorf("after kill -9 there is still: %s", out)
	}
	// What the crash left of dnsmasq is not taken for somebody else's server, and addresses and settings not for the owner's.
	in(t, nsRouter, "ip", "addr", "add", "10.55.5.1/24", "dev", guestIf)
	r = serve(t, cfg)
	r.signal(syscall.SIGTERM)
	if out := in(t, nsRouter, "ip", "addr", "show", "dev", guestIf); strings.Contains(out, "10.99.8.1") || strings.Contains(out, "301:1:2:3") || !strings.Contains(out, "10.55.5.1") {
		t.Errorf("after a crash, a start and the end the addresses are: %s", out)
	}
	if out := in(t, nsRouter, "cat", "/proc/sys/net/ipv6/conf/all/forwarding", "/proc/sys/net/ipv4/conf/gst-tun/forwarding"); out != "0\n0\n" {
		t.Errorf("after a crash, a start and the end the kernel still forwards: %q", out)
	}
	pids := strings.Fields(sh(t, "ip", "netns", "pids", nsRouter))
	for _, pid := range pids {
		b, _ := os.ReadFile("/proc/" + pid + "/cmdline")
		t.Errorf("after the end there still runs: %q", b)
	}
}

// TestPortalWithCertificate: with TLS the portal is announced (RFC 8910), and its API speaks TLS (RFC 8908). Beside it: a
// voucher is a device's, not an address's, and there is one server of guests per interface.
func TestPortalWithCertificate(t *testing.T) {
	needRoot(t)
	for _, how := range []DHCP{DHCPOwn, DHCPDnsmasq} {
		t.Run(string(how), func(t *testing.T) {
			if _, err := exec.LookPath("dnsmasq"); how == DHCPDnsmasq && err != nil {
				t.Skip("SKIPPED: DNSMASQ IS NOT INSTALLED")
			}
			world(t)
			start(t, nsNet, "server").line()
			spec := routerSpec{StateDir: t.TempDir(), DHCP: how, TLS: true}
			r := serve(t, spec)
			const url = "https://portal.weft/captive/api"
			if got := dhcp(t); !strings.HasSuffix(got, " "+hex.EncodeToString([]byte(url))) && !strings.HasSuffix(got, " "+url) {
				t.Errorf("DHCP said %q", got)
			}
			secure := []string{"-k", "--resolve", "portal.weft:443:10.99.8.1"}
			if st, _, body := curl(t, append(secure, url)...); st != "200" || !strings.Contains(body, `"user-portal-url":"https://portal.weft/"`) {
				t.Errorf("the API: %s %s", st, body)
			}
			if st, loc, _ := curl(t, "http://203.0.113.5/generate_204"); st != "302" || loc != "https://portal.weft/" {
				t.Errorf("a probe: %s %s", st, loc)
			}
			if st, _, _ := curl(t, "https://203.0.113.5/"); st != "exit 7" {
				t.Errorf("HTTPS elsewhere: %s", st)
			}

			var v Voucher
			r.ask("create 60 0", &v)
			if st, _, _ := curl(t, append(secure, "-d", "code="+v.Code, "https://portal.weft/voucher")...); st != "303" {
				t.Errorf("redeem: %s", st)
			}
			if st, _, _ := curl(t, "http://203.0.113.5/"); st != "200" {
				t.Errorf("with a voucher: %s", st)
			}
			in(t, nsPhone, "ip", "link", "set", "wlan0", "address", "02:00:00:00:00:99") // another device takes the address
			eventually(t, "the other device is captive", func() bool {
				st, _, _ := curl(t, "http://203.0.113.5/")
				return st == "302"
			})
			if _, _, body := curl(t, append(secure, "-d", "code="+v.Code, "https://portal.weft/voucher")...); !strings.Contains(body, "in use on other devices") {
				t.Errorf("a voucher for one device on a second one: %s", body)
			}

			in(t, nsRouter, "ip", "addr", "flush", "dev", guestIf)
			eventually(t, "the address that advertisements come from is back", func() bool {
				return strings.Contains(in(t, nsRouter, "ip", "addr", "show", "dev", guestIf, "scope", "link"), "fe80::")
			})

			b, _ := json.Marshal(spec)
			second := start(t, nsRouter, "router", "GST_CONFIG="+string(b))
			if second.out.Scan() {
				t.Errorf("a second server for the same interface said %q", second.out.Text())
			}
		})
	}
}

// TestOpenAndTap: the other ways in, and the other ways to treat the mesh.
func TestOpenAndTap(t *testing.T) {
	needRoot(t)
	world(t)
	start(t, nsNet, "server").line()
	expect := func(what, url, want string) {
		t.Helper()
		if st, _, _ := curl(t, url); st != want {
			t.Errorf("%s: %s, want %s", what, st, want)
		}
	}
	const internet, mesh = "http://203.0.113.5/", "http://[201:5::5]/"
	spec := routerSpec{StateDir: t.TempDir(), DHCP: DHCPOwn, Access: AccessOpen, Mesh: MeshClosed, Services: []Port{{"udp", 4000}, {"tcp", 22}}}
	r := serve(t, spec)
	dhcp(t)
	phoneV6(t)
	if out := in(t, nsPhone, "ip", "-6", "route"); strings.Contains(out, "200::/7") {
		t.Errorf("a way to a closed mesh: %s", out)
	}
	expect("the internet of an open network", internet, "200")
	expect("a closed mesh", mesh, "exit 7")
	var s Status
	eventually(t, "the guest is counted", func() bool {
		_, _, _ = curl(t, internet)
		r.ask("status", &s)
		return len(s.Clients) == 1 && s.Clients[0].State == StateAllowed && s.Clients[0].Down > 0 && s.Clients[0].Up > 0
	})
	r.signal(syscall.SIGTERM)

	spec.Access, spec.Mesh, spec.DNSPort = AccessTap, MeshVoucher, 5300
	r = serve(t, spec)
	var ok string
	r.ask("uplink 1 1", &ok)
	eventually(t, "there is a way to the mesh", func() bool {
		return strings.Contains(in(t, nsPhone, "ip", "-6", "route"), "200::/7")
	})
	expect("the internet before the tap", internet, "302")
	expect("the mesh before the tap", mesh, "302")
	if st, _, _ := curl(t, "-X", "POST", "http://10.99.8.1/tap"); st != "303" {
		t.Errorf("tap: %s", st)
	}
	expect("the internet after the tap", internet, "200")
	expect("the mesh after the tap", mesh, "200")
	expect("the resolver's port, where nobody listens here", "http://10.99.8.1:53/", "exit 7")
	expect("an open service, where nobody listens", "http://10.99.8.1:22/", "exit 7")
}

// TestOtherDHCPServer: where somebody serves already, we do not.
func TestOtherDHCPServer(t *testing.T) {
	needRoot(t)
	world(t)
	in(t, nsPhone, "ip", "addr", "add", "172.31.7.1/24", "dev", "wlan0")
	o := start(t, nsPhone, "otherdhcp", "GST_IF=wlan0")
	o.line()
	b, _ := json.Marshal(routerSpec{StateDir: t.TempDir(), DHCP: DHCPAuto})
	r := start(t, nsRouter, "router", "GST_CONFIG="+string(b))
	eventually(t, "the other server is seen", func() bool {
		var s Status
		r.ask("status", &s)
		return s.DHCP == "off: 172.31.7.1 serves DHCP on this network already"
	})
}

// TestProbePacket: what is sent below IP is a packet that IP accepts.
func TestProbePacket(t *testing.T) {
	p := udpBroadcast(dhcpProbe(MAC{2, 0, 0, 0, 0, 1}, 9))
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(p[i])<<8 | uint32(p[i+1])
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	if sum != 0xffff || p[9] != unix.IPPROTO_UDP {
		t.Errorf("checksum %x", sum)
	}
}
