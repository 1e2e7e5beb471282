//go:build !router

package proxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/ident"
	"weft/tun"
	"weft/tun/netstack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	keyA = ident.PublicKey{1, 2, 3}
	keyB = ident.PublicKey{4, 5, 6}
)

// mesh joins two userspace stacks, as two nodes' sessions would.
func mesh(t testing.TB) (a, b *netstack.Stack) {
	t.Helper()
	open := func(k ident.PublicKey) *netstack.Stack {
		s, err := netstack.New(netstack.Config{Addr: k.Addr(), MTU: 65000})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a, b = open(keyA), open(keyB)
	var wg sync.WaitGroup
	carry := func(from, to tun.Device) {
		w := to.NewWriter()
		pkts := make([]tun.Packet, 16)
		for {
			n, err := from.Read(pkts)
			if err != nil {
				return
			}
			for _, p := range pkts[:n] {
				w.Write(p.Data, p.Partial) // the MTU is above the size of super-packets: nothing to cut
			}
			w.Flush()
		}
	}
	wg.Go(func() { carry(a, b) })
	wg.Go(func() { carry(b, a) })
	t.Cleanup(func() { a.Close(); b.Close(); wg.Wait() })
	return a, b
}

// start serves cfg's proxy on a free port until the test ends, and returns its address.
func start(t testing.TB, cfg Config) string {
	t.Helper()
	cfg.Log = slog.New(slog.DiscardHandler)
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	run(t, func(ctx context.Context) error { return p.ServeListener(ctx, l) })
	return l.Addr().String()
}

// run serves until the test ends.
func run(t testing.TB, serve func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Serve: %v", err)
		}
	})
}

// site serves HTTP on port 80 of a stack.
func site(t testing.TB, s *netstack.Stack) {
	t.Helper()
	l, err := s.Listen(t.Context(), "tcp", ":80")
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
}

// dialSOCKS does a client's part and returns the reply code.
func dialSOCKS(t testing.TB, proxy string, cmd byte, target []byte) (net.Conn, byte, netip.AddrPort) {
	t.Helper()
	c, err := net.Dial("tcp", proxy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	c.Write([]byte{5, 2, 1, 0}) // offers GSSAPI and none
	var m [2]byte
	if _, err := io.ReadFull(c, m[:]); err != nil || m != [2]byte{5, 0} {
		t.Fatalf("method %v, %v", m, err)
	}
	c.Write(append([]byte{5, cmd, 0}, target...))
	code, bound := readReply(t, c)
	return c, code, bound
}

func readReply(t testing.TB, c net.Conn) (byte, netip.AddrPort) {
	t.Helper()
	head := make([]byte, 4)
	if _, err := io.ReadFull(c, head); err != nil {
		t.Fatal(err)
	}
	size := map[byte]int{addrIPv4: 6, addrIPv6: 18}[head[3]]
	rest := make([]byte, size)
	if _, err := io.ReadFull(c, rest); err != nil {
		t.Fatal(err)
	}
	ip, _ := netip.AddrFromSlice(rest[:size-2])
	return head[1], netip.AddrPortFrom(ip, binary.BigEndian.Uint16(rest[size-2:]))
}

func named(host string, port uint16) []byte {
	return binary.BigEndian.AppendUint16(append([]byte{addrName, byte(len(host))}, host...), port)
}

func literal(a netip.Addr, port uint16) []byte { return appendAddr(nil, netip.AddrPortFrom(a, port)) }

func TestSOCKSConnect(t *testing.T) {
	a, b := mesh(t)
	site(t, b)
	proxy := start(t, Config{Mesh: a, Resolve: func(_ context.Context, name string) (netip.Addr, error) {
		if name == keyB.ID().String() {
			return keyB.Addr(), nil
		}
		return netip.Addr{}, errors.New("unknown")
	}})
	for _, target := range [][]byte{
		literal(keyB.Addr(), 80),
		named(keyB.Addr().String(), 80),
		named(keyB.String()+".weft", 80),
		named(strings.ToUpper(keyB.ID().String())+".WEFT.", 80),
	} {
		c, code, bound := dialSOCKS(t, proxy, cmdConnect, target)
		if code != replyOK || bound.Addr() != keyA.Addr() {
			t.Fatalf("CONNECT %q: code %d, bound to %s", target, code, bound)
		}
		// The request ends with a half-close, as some clients do.
		io.WriteString(c, "GET /x HTTP/1.0\r\nHost: b\r\n\r\n")
		c.(*net.TCPConn).CloseWrite()
		answer, err := io.ReadAll(c)
		if err != nil || !bytes.HasSuffix(answer, []byte("GET b /x ")) {
			t.Errorf("CONNECT %q: %q, %v", target, answer, err)
		}
	}
	for _, c := range []struct {
		cmd    byte
		target []byte
		want   byte
	}{
		{cmdConnect, literal(netip.MustParseAddr("192.0.2.1"), 80), replyForbidden},
		{cmdConnect, literal(netip.MustParseAddr("2001:db8::1"), 80), replyForbidden},
		{cmdConnect, literal(netip.MustParseAddr("::ffff:127.0.0.1"), 80), replyForbidden},
		{cmdConnect, named("example.org", 80), replyForbidden},
		{cmdConnect, named(".weft", 80), replyForbidden},
		{cmdConnect, named("nobody.weft", 80), replyHost},
		{cmdConnect, literal(keyB.Addr(), 81), replyRefused},
		{2, literal(keyB.Addr(), 80), replyCommand}, // BIND
		{cmdConnect, []byte{9, 0, 0}, replyAddressType},
	} {
		if _, code, _ := dialSOCKS(t, proxy, c.cmd, c.target); code != c.want {
			t.Errorf("command %d %q: code %d, want %d", c.cmd, c.target, code, c.want)
		}
	}
}

func TestHTTPProxy(t *testing.T) {
	a, b := mesh(t)
	site(t, b)
	proxy := start(t, Config{Mesh: a, User: "me", Password: "secret"})
	tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", User: url.UserPassword("me", "secret"), Host: proxy})}
	defer tr.CloseIdleConnections()
	client := http.Client{Transport: tr, Timeout: 20 * time.Second}
	host := keyB.String() + ".weft"
	res, err := client.Post("http://"+host+"/path?q=1", "text/plain", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if want := "POST " + host + " /path?q=1 body"; string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for target, want := range map[string]int{
		"http://example.org/":                     http.StatusForbidden,
		"http://unknown.weft/":                    http.StatusBadGateway,
		"http://[" + keyB.Addr().String() + "]:9": http.StatusBadGateway,
	} {
		res, err := client.Get(target)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %s, want %d", target, res.Status, want)
		}
	}

	c, err := net.Dial("tcp", proxy)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(c, "CONNECT %s:80 HTTP/1.1\r\nHost: x\r\n\r\n", host)
	r := bufio.NewReader(c)
	if line, _ := r.ReadString('\n'); !strings.Contains(line, " 407 ") {
		t.Errorf("CONNECT without a password: %q", line)
	}
	fmt.Fprintf(c, "CONNECT %s:80 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic bWU6c2VjcmV0\r\n\r\nGET /c HTTP/1.0\r\nHost: h\r\n\r\n", host)
	rest, err := io.ReadAll(r)
	if err != nil || !bytes.Contains(rest, []byte(" 200 Connection established\r\n\r\nHTTP/1.0 200 OK")) || !bytes.HasSuffix(rest, []byte("GET h /c ")) {
		t.Errorf("CONNECT: %q, %v", rest, err)
	}
}

func TestSOCKSPassword(t *testing.T) {
	a, b := mesh(t)
	site(t, b)
	proxy := start(t, Config{Mesh: a, User: "me", Password: "secret"})
	try := func(methods []byte, login string) (net.Conn, []byte) {
		c, err := net.Dial("tcp", proxy)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(20 * time.Second))
		c.Write(append([]byte{5, byte(len(methods))}, methods...))
		m := make([]byte, 2)
		if _, err := io.ReadFull(c, m); err != nil {
			t.Fatal(err)
		}
		if m[1] != methodUser {
			return c, m
		}
		io.WriteString(c, login)
		if _, err := io.ReadFull(c, m); err != nil {
			t.Fatal(err)
		}
		return c, m
	}
	if _, m := try([]byte{0}, ""); m[1] != methodRefused {
		t.Errorf("without a password: %v", m)
	}
	for _, wrong := range []string{"\x01\x02me\x05wrong", "\x01\x02me\x00", "\x01\x00\x06secret", "\x01\x03me2\x06secret"} {
		c, m := try([]byte{0, 2}, wrong)
		if m[1] == 0 {
			t.Errorf("login %q succeeded", wrong)
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("login %q: the connection goes on", wrong)
		}
	}
	c, m := try([]byte{0, 2}, "\x01\x02me\x06secret")
	if m != nil && m[1] != 0 {
		t.Fatalf("login: %v", m)
	}
	c.Write(append([]byte{5, cmdConnect, 0}, literal(keyB.Addr(), 80)...))
	if code, _ := readReply(t, c); code != replyOK {
		t.Errorf("CONNECT after login: %d", code)
	}
}

// echoUDP answers every datagram on port 7 of a stack with itself in brackets.
func echoUDP(t testing.TB, c net.PacketConn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo(fmt.Appendf(nil, "[%s]", buf[:n]), from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
}

func TestSOCKSAssociate(t *testing.T) {
	a, b := mesh(t)
	server, err := b.ListenPacket(t.Context(), "udp", ":7")
	if err != nil {
		t.Fatal(err)
	}
	echoUDP(t, server)
	proxy := start(t, Config{Mesh: a})
	control, code, relay := dialSOCKS(t, proxy, cmdAssociate, literal(netip.IPv4Unspecified(), 0))
	if code != replyOK || !relay.Addr().IsLoopback() {
		t.Fatalf("UDP ASSOCIATE: code %d, relay %s", code, relay)
	}
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(relay))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	send := func(frag byte, target []byte, payload string) {
		c.Write(append(append([]byte{0, 0, frag}, target...), payload...))
	}
	send(0, named("example.org", 7), "outside")
	send(1, literal(keyB.Addr(), 7), "fragment")
	c.Write([]byte{0, 0})
	send(0, named(keyB.String()+".weft", 7), "hello")
	buf := make([]byte, 2048)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	d, payload, err := parseDatagram(buf[:n])
	if err != nil || d.host != keyB.Addr().String() || d.port != 7 || string(payload) != "[hello]" {
		t.Errorf("answer from %v: %q, %v", d, payload, err)
	}
	// Another program on this machine may not use the association.
	thief, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(relay))
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Close()
	thief.Write(append(append([]byte{0, 0, 0}, literal(keyB.Addr(), 7)...), "stolen"...))
	send(0, literal(keyB.Addr(), 7), "mine")
	if n, err = c.Read(buf); err != nil || !bytes.HasSuffix(buf[:n], []byte("[mine]")) {
		t.Errorf("after the thief: %q, %v", buf[:n], err)
	}
	// It ends with its connection.
	control.Close()
	for end := time.Now().Add(20 * time.Second); ; {
		send(0, literal(keyB.Addr(), 7), "more")
		c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := c.Read(buf); err != nil && failureOf(err) == failedRefused {
			break // nobody listens any more
		}
		if time.Now().After(end) {
			t.Fatal("the association outlives its connection")
		}
	}
}

func freePort(t testing.TB, network string) string {
	t.Helper()
	if network == "udp" {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.LocalAddr().String()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestForwards goes all the way: a local port of A, the mesh, an exposed port of B, a local service of B.
func TestForwards(t *testing.T) {
	a, b := mesh(t)
	service, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hi") })}
	done := make(chan struct{})
	go func() { srv.Serve(service); close(done) }()
	t.Cleanup(func() { srv.Close(); <-done })
	udpService, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	echoUDP(t, udpService)

	parse := func(f Forward, err error) Forward {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	log := slog.New(slog.DiscardHandler)
	portB, err := New(Config{Mesh: b, Log: log, Exposed: []Forward{
		parse(ParseExpose("tcp 80 -> " + service.Addr().String())),
		parse(ParseExpose("udp 53 -> " + udpService.LocalAddr().String())),
	}})
	if err != nil {
		t.Fatal(err)
	}
	tcpPort, udpPort, proxyPort := freePort(t, "tcp"), freePort(t, "udp"), freePort(t, "tcp")
	portA, err := New(Config{Mesh: a, Log: log, Listen: []string{proxyPort}, Forwards: []Forward{
		parse(ParseForward("tcp " + tcpPort + " -> " + keyB.String() + ".weft:80")),
		parse(ParseForward("udp " + udpPort + " -> [" + keyB.Addr().String() + "]:53")),
	}})
	if err != nil {
		t.Fatal(err)
	}
	run(t, portB.Serve)
	run(t, portA.Serve)

	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	client := http.Client{Transport: tr, Timeout: 20 * time.Second}
	var body []byte
	for range 100 { // until both have opened their ports
		res, err := client.Get("http://" + tcpPort)
		if err == nil {
			body, _ = io.ReadAll(res.Body)
			res.Body.Close()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if string(body) != "hi" {
		t.Fatalf("through the TCP forward: %q", body)
	}
	for _, name := range []string{"one", "two"} { // two clients, each gets its own answers
		c, err := net.Dial("udp", udpPort)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		for range 2 {
			io.WriteString(c, name)
			buf := make([]byte, 100)
			if n, err := c.Read(buf); err != nil || string(buf[:n]) != "["+name+"]" {
				t.Fatalf("through the UDP forward: %q, %v", buf[:n], err)
			}
		}
	}
	// Connections that are open when the proxy ends are closed: run's cleanup and goleak see to it.
	if _, code, _ := dialSOCKS(t, proxyPort, cmdConnect, literal(keyB.Addr(), 80)); code != replyOK {
		t.Errorf("the proxy's own port: code %d", code)
	}
	if err := portA.Serve(t.Context()); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second Serve on the same ports: %v", err)
	}
}

func TestConfigErrorsSayWhatIsAllowed(t *testing.T) {
	fwd, err := ParseForward("tcp localhost:8080 -> nas.weft:80")
	if err != nil || fwd.String() != "tcp 127.0.0.1:8080 -> nas.weft:80" {
		t.Fatal(fwd, err)
	}
	exp, err := ParseExpose("udp 53 -> [::1]:5353")
	if err != nil || exp.String() != "udp 53 -> [::1]:5353" {
		t.Fatal(exp, err)
	}
	if proto, port := exp.Port(); proto != "udp" || port != 53 {
		t.Error(proto, port)
	}
	for s, want := range map[string]string{
		"tcp 8080 -> [200::1]:80":             "127.0.0.1:8080",
		"tcp 127.0.0.1:80 -> nas.weft":        "127.0.0.1:8080",
		"sctp 127.0.0.1:80 -> nas.weft:80":    "tcp or udp",
		"tcp 127.0.0.1:80 => nas.weft:80":     "->",
		"tcp 127.0.0.1:80 -> nas.weft:0":      "1 to 65535",
		"tcp example.org:80 -> nas.weft:80":   "127.0.0.1:8080",
		"tcp 127.0.0.1:99999 -> nas.weft:80":  "127.0.0.1:8080",
		"tcp 127.0.0.1:80 -> nas.weft:80 now": "->",
	} {
		if _, err := ParseForward(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("forward %q: %v; want it to say %q", s, err, want)
		}
	}
	for _, s := range []string{"tcp 0 -> 127.0.0.1:1", "tcp :80 -> 127.0.0.1:1", "tcp 70000 -> 127.0.0.1:1", "tcp 80 -> 127.0.0.1"} {
		if _, err := ParseExpose(s); err == nil {
			t.Errorf("expose %q is accepted", s)
		}
	}
	log := slog.New(slog.DiscardHandler)
	host := Host{Addr: keyA.Addr()}
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{Mesh: host, Log: log, Listen: []string{"0.0.0.0:1080"}}, "set a user and password"},
		{Config{Mesh: host, Log: log, Listen: []string{":1080"}}, "127.0.0.1:1080"},
		{Config{Mesh: host, Log: log, Listen: []string{"1080"}}, "127.0.0.1:1080"},
		{Config{Mesh: host, Log: log, User: "me"}, "come together"},
		{Config{Mesh: host, Log: log, User: "m:e", Password: "x"}, "colon"},
		{Config{Mesh: host, Log: log, Forwards: []Forward{exp}}, "is no forward"},
		{Config{Mesh: host, Log: log, Exposed: []Forward{fwd}}, "exposes nothing"},
	} {
		if _, err := New(c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v; want it to say %q", c.cfg, err, c.want)
		}
	}
	p, err := New(Config{Mesh: host, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.ServeListener(t.Context(), &fakeListener{conns: make(chan net.Conn)}); err == nil || !strings.Contains(err.Error(), "set a user and password") {
		t.Errorf("served a listener of unknown address: %v", err)
	}
	if _, err := New(Config{Mesh: host, Log: log, Listen: []string{"0.0.0.0:1080"}, User: "me", Password: "x"}); err != nil {
		t.Error(err)
	}
}

func TestAPageCannotUseTheProxyAsAServer(t *testing.T) {
	a, _ := mesh(t)
	proxy := start(t, Config{Mesh: a})
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	res, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Get("http://" + proxy + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusBadRequest {
		t.Errorf("status %s", res.Status)
	}
}
