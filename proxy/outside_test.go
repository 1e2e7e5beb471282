//go:build !router

package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// far is the outside as a gateway would show it: names and addresses that lead to servers of the test.
type far struct {
	mu      sync.Mutex
	asked   []string
	servers map[string]string // network and host: where it is
}

// hidden is a connection that does not tell that its other end is on this machine.
type hidden struct {
	net.Conn
	at net.Addr
}

func (h *hidden) RemoteAddr() net.Addr { return h.at }

func (f *far) dial(ctx context.Context, network, host string, port uint16) (net.Conn, error) {
	f.mu.Lock()
	f.asked = append(f.asked, fmt.Sprintf("%s %s %d", network, host, port))
	f.mu.Unlock()
	switch host {
	case "none.example":
		return nil, ErrNoGateway
	case "policy.example":
		return nil, fmt.Errorf("port 25: %w", ErrPolicy)
	case "noname.example":
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	case "slow.example":
		return nil, context.DeadlineExceeded
	case "closed.example":
		return nil, syscall.ECONNREFUSED
	}
	to, ok := f.servers[network+" "+host]
	if !ok {
		return nil, errors.New("unknown to the test")
	}
	c, err := (&net.Dialer{}).DialContext(ctx, network, to)
	if err != nil || host == "rebound.example" {
		return c, err
	}
	at := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.80"), port)
	if network == "udp" {
		return &hidden{c, net.UDPAddrFromAddrPort(at)}, nil
	}
	return &hidden{c, net.TCPAddrFromAddrPort(at)}, nil
}

func (f *far) reset() (asked []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	asked, f.asked = f.asked, nil
	return asked
}

// outside starts a proxy of a node whose gateway leads to a site and to an echo of datagrams.
func outside(t testing.TB) (proxy string, f *far) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %s", r.Method, r.Host, r.URL, body)
	})}
	done := make(chan struct{})
	go func() { srv.Serve(l); close(done) }()
	t.Cleanup(func() { srv.Close(); <-done })
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	echoUDP(t, u)
	site, echo := l.Addr().String(), u.LocalAddr().String()
	f = &far{servers: map[string]string{
		"tcp site.example": site, "tcp rebound.example": site, "tcp 192.0.2.80": site, "tcp 2001:db8::80": site,
		"udp echo.example": echo, "udp 192.0.2.80": echo, "udp rebound.example": echo,
	}}
	a, _ := mesh(t)
	return start(t, Config{Mesh: a, Outside: f.dial}), f
}

// failures are what clients are told of each kind.
var failures = []struct {
	host   string
	socks  byte
	status int
	kind   string
	text   string
}{
	{"none.example", replyNetwork, http.StatusServiceUnavailable, "destination_unavailable", "weft gateway use auto"},
	{"policy.example", replyForbidden, http.StatusForbidden, "destination_ip_prohibited", "gateway's policy"},
	{"noname.example", replyHost, http.StatusBadGateway, "dns_error", "no such host"},
	{"slow.example", replyTTL, http.StatusGatewayTimeout, "connection_timeout", "deadline"},
	{"closed.example", replyRefused, http.StatusBadGateway, "connection_refused", "refused"},
	{"rebound.example", replyForbidden, http.StatusForbidden, "destination_ip_prohibited", "this machine"},
}

func TestOutside(t *testing.T) {
	proxy, f := outside(t)
	for _, c := range []struct {
		target []byte
		asked  string
	}{
		{named("site.example", 80), "tcp site.example 80"},
		{literal(netip.MustParseAddr("192.0.2.80"), 443), "tcp 192.0.2.80 443"},
		{literal(netip.MustParseAddr("2001:db8::80"), 80), "tcp 2001:db8::80 80"},
	} {
		conn, code, _ := dialSOCKS(t, proxy, cmdConnect, c.target)
		if asked := f.reset(); code != replyOK || len(asked) != 1 || asked[0] != c.asked {
			t.Fatalf("CONNECT %q: code %d, asked for %q", c.target, code, asked)
		}
		io.WriteString(conn, "GET /x HTTP/1.0\r\nHost: b\r\n\r\n")
		if answer, err := io.ReadAll(conn); err != nil || !bytes.HasSuffix(answer, []byte("GET b /x ")) {
			t.Errorf("%s: %q, %v", c.asked, answer, err)
		}
	}
	tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: proxy}), DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	client := http.Client{Transport: tr, Timeout: 20 * time.Second}
	res, err := client.Post("http://site.example/path", "text/plain", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if string(got) != "POST site.example /path body" {
		t.Errorf("through the HTTP proxy: %q", got)
	}
	for _, c := range failures {
		if _, code, _ := dialSOCKS(t, proxy, cmdConnect, named(c.host, 80)); code != c.socks {
			t.Errorf("SOCKS %s: code %d, want %d", c.host, code, c.socks)
		}
		res, err := client.Get("http://" + c.host + "/")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != c.status || !strings.Contains(string(body), c.text) || !strings.HasSuffix(res.Header.Get("Proxy-Status"), "="+c.kind) {
			t.Errorf("HTTP %s: %s, %q, %q", c.host, res.Status, res.Header.Get("Proxy-Status"), body)
		}
		conn, err := net.Dial("tcp", proxy)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(conn, "CONNECT %s:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", c.host)
		answer, _ := io.ReadAll(conn)
		conn.Close()
		if !bytes.HasPrefix(answer, fmt.Appendf(nil, "HTTP/1.1 %d ", c.status)) || !bytes.Contains(answer, []byte(c.text)) {
			t.Errorf("HTTP CONNECT %s: %q", c.host, answer)
		}
	}
}

// TestOutsideIsNotInside: nothing that names this machine or a private network reaches the hook.
func TestOutsideIsNotInside(t *testing.T) {
	proxy, f := outside(t)
	for _, host := range []string{
		"127.0.0.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1", "255.255.255.255",
		"::1", "::", "fe80::1", "fe80::1%lo", "fd00::1", "ff02::1", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::1",
		"localhost", "LocalHost.", "x.localhost", "127.1", "2130706433", "0x7f000001", "0x7f.0.0.0x1", "017700000001", "127.0.0.1.", "0x",
	} {
		if _, code, _ := dialSOCKS(t, proxy, cmdConnect, named(host, 80)); code != replyForbidden {
			t.Errorf("SOCKS %s: code %d", host, code)
		}
	}
	for _, host := range []string{"a b.example", "a/b", "[x]", "x@y", "%6c", strings.Repeat("a", 254)} {
		if _, code, _ := dialSOCKS(t, proxy, cmdConnect, named(host, 80)); code != replyHost {
			t.Errorf("SOCKS %q: code %d", host, code)
		}
	}
	if asked := f.reset(); len(asked) != 0 {
		t.Errorf("asked for %q", asked)
	}
	for _, a := range []string{"192.0.2.1", "8.8.8.8", "2001:db8::1", "200::1", "300:1::1", "64:ff9b::808:808", "::ffff:8.8.8.8"} {
		if !MayLeave(netip.MustParseAddr(a)) {
			t.Errorf("%s may not leave", a)
		}
	}
}

func TestOutsideAssociate(t *testing.T) {
	proxy, f := outside(t)
	control, code, relay := dialSOCKS(t, proxy, cmdAssociate, literal(netip.IPv4Unspecified(), 0))
	if code != replyOK {
		t.Fatalf("UDP ASSOCIATE: code %d", code)
	}
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(relay))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	send := func(target []byte, payload string) { c.Write(append(append([]byte{0, 0, 0}, target...), payload...)) }
	buf := make([]byte, 2048)
	for _, inside := range []string{"127.0.0.1", "localhost", "rebound.example"} {
		send(named(inside, 53), "stolen")
	}
	for range 2 {
		for _, target := range [][]byte{named("echo.example", 53), literal(netip.MustParseAddr("192.0.2.80"), 53)} {
			send(target, "hello")
			n, err := c.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			d, payload, err := parseDatagram(buf[:n])
			if err != nil || d.host != "192.0.2.80" || d.port != 53 || string(payload) != "[hello]" {
				t.Errorf("answer from %v: %q, %v", d, payload, err)
			}
		}
	}
	seen := map[string]int{}
	for _, a := range f.reset() {
		seen[a]++
	}
	if seen["udp echo.example 53"] != 1 || seen["udp 192.0.2.80 53"] != 1 || seen["udp 127.0.0.1 53"]+seen["udp localhost 53"] != 0 {
		t.Errorf("asked for %v", seen)
	}
	for i := range 2 * maxOutside { // the oldest give way
		send(literal(netip.MustParseAddr("192.0.2.80"), uint16(1000+i)), "x")
		if _, err := c.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
	control.Close()
}

// TestCurl is a client that we have not written.
func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("SKIPPED: curl is not installed")
	}
	proxy, f := outside(t)
	run := func(args ...string) string {
		cmd := exec.CommandContext(t.Context(), curl, append([]string{"--silent", "--show-error", "--max-time", "20", "--noproxy", ""}, args...)...)
		cmd.Env = []string{"PATH=/usr/bin:/bin"}
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	for _, args := range [][]string{
		{"--socks5-hostname", proxy}, {"--proxy", "http://" + proxy}, {"--proxytunnel", "--proxy", "http://" + proxy},
	} {
		if got := run(append(args, "--data", "body", "http://site.example/x")...); got != "POST site.example /x body" {
			t.Errorf("curl %q: %q", args, got)
		}
		if asked := f.reset(); len(asked) != 1 || asked[0] != "tcp site.example 80" {
			t.Errorf("curl %q: asked for %q", args, asked)
		}
	}
	for _, c := range failures {
		if got := run("--proxy", "http://"+proxy, "--write-out", " %{http_code}", "http://"+c.host+"/"); !strings.Contains(got, c.text) || !strings.HasSuffix(got, fmt.Sprint(c.status)) {
			t.Errorf("curl %s: %q", c.host, got)
		}
		if got := run("--socks5-hostname", proxy, "http://"+c.host+"/"); !strings.Contains(got, fmt.Sprintf("(%d)", c.socks)) {
			t.Errorf("curl %s by SOCKS: %q", c.host, got)
		}
	}
}

// FuzzHost: what passes is a public address or something that no resolver takes for an address.
func FuzzHost(f *testing.F) {
	for _, s := range []string{"example.org", "127.0.0.1", "0x7f.1", "::1", "localhost.", "200::1", "", ".", "1.2.3.4.", "xn--a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, host string) {
		if checkHost(host) != nil {
			return
		}
		if a, err := netip.ParseAddr(strings.TrimSuffix(host, ".")); err == nil && !MayLeave(a) {
			t.Errorf("%q passes", host)
		}
		last := host[strings.LastIndexByte(strings.TrimSuffix(host, "."), '.')+1:]
		if strings.TrimSuffix(last, ".") == "" || strings.EqualFold(strings.TrimSuffix(last, "."), "localhost") {
			t.Errorf("%q passes", host)
		}
	})
}
