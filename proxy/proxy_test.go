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
