package dns

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// certificate makes one for dns.example and 127.0.0.1, its own authority.
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool, string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "dns.example"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"dns.example"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, x, x, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	pin := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}, roots, base64.StdEncoding.EncodeToString(pin[:])
}

// servers are real ones on loopback: UDP, TCP and DoT by miekg's, DoH by net/http.
type servers struct {
	plain, dot, doh string // addresses
	mu              sync.Mutex
	seen            []*dns.Msg
	protos          []string // of HTTP
}

func (s *servers) note(q *dns.Msg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, q)
}

func startServers(t *testing.T, cert tls.Certificate, answer func(*dns.Msg) *dns.Msg) *servers {
	t.Helper()
	s := &servers{}
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	tcp := listen()
	udp, err := net.ListenPacket("udp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conf := &tls.Config{Certificates: []tls.Certificate{cert}}
	dot := tls.NewListener(listen(), conf)
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		s.note(q)
		m := answer(q)
		if _, ok := w.RemoteAddr().(*net.UDPAddr); ok {
			m.Truncate(512)
		}
		w.WriteMsg(m)
	})
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait) // the last to run
	for _, srv := range []*dns.Server{{Listener: tcp}, {PacketConn: udp}, {Listener: dot}} {
		srv.Handler = handler
		up := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(up) }
		wg.Go(func() { srv.ActivateAndServe() })
		<-up
		t.Cleanup(func() { srv.Shutdown() })
	}
	web := &http.Server{TLSConfig: conf.Clone(), ErrorLog: nil, Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		b, err := io.ReadAll(io.LimitReader(req.Body, 65536))
		q := new(dns.Msg)
		if err != nil || q.Unpack(b) != nil || req.Header.Get("Content-Type") != "application/dns-message" || req.URL.Path != "/dns-query" {
			http.Error(w, "no question", http.StatusBadRequest)
			return
		}
		s.note(q)
		s.mu.Lock()
		s.protos = append(s.protos, req.Proto)
		s.mu.Unlock()
		out, _ := answer(q).Pack()
		w.Header().Set("Content-Type", "application/dns-message")
		w.Write(out)
	})}
	web.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	doh := listen()
	wg.Go(func() { web.ServeTLS(doh, "", "") })
	t.Cleanup(func() { web.Close() })
	s.plain, s.dot, s.doh = tcp.Addr().String(), dot.Addr().String(), doh.Addr().String()
	return s
}

// recorder is a dialler that remembers whom it has dialled.
type recorder struct {
	mu      sync.Mutex
	dialled []string
}

func (r *recorder) dial(ctx context.Context, network, address string) (net.Conn, error) {
	r.mu.Lock()
	r.dialled = append(r.dialled, network+" "+address)
	r.mu.Unlock()
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.dialled
	r.dialled = nil
	return out
}

// TestEncrypted: each kind of upstream against a real server, and against one that is not who it should be.
func TestEncrypted(t *testing.T) {
	cert, roots, pin := certificate(t)
	other, otherRoots, otherPin := certificate(t)
	_ = other
	zone := server("www.example. 100 IN A 198.51.100.1")
	s := startServers(t, cert, func(q *dns.Msg) *dns.Msg {
		m := zone(q)
		m.AuthenticatedData = true
		return m
	})
	_, dohPort, _ := net.SplitHostPort(s.doh)
	for _, v := range []struct {
		uri   string
		roots *x509.CertPool
		want  string // of the error
		ad    bool
		dial  string
	}{
		{"udp://" + s.plain, roots, "", false, "udp " + s.plain},
		{"tcp://" + s.plain, roots, "", false, "tcp " + s.plain},
		{"tls://" + s.dot + "#dns.example", roots, "", true, "tcp " + s.dot},
		{"tls://" + s.dot + "#pin-sha256=" + pin, otherRoots, "", true, "tcp " + s.dot},
		{"tls://" + s.dot + "#dns.example,pin-sha256=" + pin, roots, "", true, "tcp " + s.dot},
		{"https://dns.example:" + dohPort + "/dns-query@127.0.0.1", roots, "", true, "tcp " + s.doh},
		{"tls://" + s.dot + "#evil.example", roots, "certificate is valid for dns.example", false, "tcp " + s.dot},
		{"tls://" + s.dot + "#dns.example", otherRoots, "unknown authority", false, "tcp " + s.dot},
		{"tls://" + s.dot + "#pin-sha256=" + otherPin, roots, "another key than the pinned one", false, "tcp " + s.dot},
		{"tls://" + s.dot + "#evil.example,pin-sha256=" + pin, roots, "certificate is valid for dns.example", false, "tcp " + s.dot},
		{"tls://" + s.dot + "#dns.example,pin-sha256=" + pin, otherRoots, "unknown authority", false, "tcp " + s.dot},
		{"https://evil.example:" + dohPort + "/dns-query@127.0.0.1", roots, "certificate is valid for dns.example", false, "tcp " + s.doh},
		{"https://dns.example:" + dohPort + "/other@127.0.0.1", roots, "400 Bad Request", false, "tcp " + s.doh},
	} {
		t.Run(strings.ReplaceAll(v.uri, "/", "_"), func(t *testing.T) {
			var rec recorder
			r, err := New(Config{Dial: rec.dial, Log: slog.New(slog.DiscardHandler), Upstreams: []string{v.uri}, RootCAs: v.roots})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			for i := range 3 {
				m := ask(t, r, fmt.Sprintf("n%d.www.example", i), dns.TypeA)
				if v.want == "" && m.Rcode != dns.RcodeNameError || v.want != "" && (m.Rcode != dns.RcodeServerFailure || !strings.Contains(r.Stats().Upstreams[0].Error, v.want)) {
					t.Fatalf("%s %q; upstream: %s", show(m), ede(m), r.Stats().Upstreams[0].Error)
				}
			}
			m := ask(t, r, "www.example", dns.TypeA, func(m *dns.Msg) { m.AuthenticatedData = true })
			if v.want == "" && (show(m) != "NOERROR A:198.51.100.1" || m.AuthenticatedData != v.ad) {
				t.Errorf("%s, AD is %v", show(m), m.AuthenticatedData)
			}
			dialled := rec.take()
			if slices.ContainsFunc(dialled, func(d string) bool { return d != v.dial }) {
				t.Errorf("dialled %v", dialled)
			}
			if v.want == "" && !strings.HasPrefix(v.uri, "udp") && len(dialled) != 1 {
				t.Errorf("%d connections for 4 questions", len(dialled))
			}
			if v.want == "" && len(dialled) > 1 && r.Stats().Upstreams[0].RTT <= 0 {
				t.Error("no RTT")
			}
		})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.ContainsFunc(s.protos, func(p string) bool { return p != "HTTP/2.0" }) || len(s.protos) == 0 {
		t.Errorf("DoH over %v", s.protos)
	}
	for _, q := range s.seen {
		opt := q.IsEdns0()
		if opt == nil || opt.UDPSize() != udpSize {
			t.Errorf("no EDNS0: %v", q)
			continue
		}
		padded := slices.ContainsFunc(opt.Option, func(o dns.EDNS0) bool { return o.Option() == dns.EDNS0PADDING })
		if padded && q.Len()%padTo != 0 {
			t.Errorf("a question of %d bytes over TLS", q.Len())
		}
	}
}

// TestFallback: plain servers answer what those over TLS cannot; while these can, nobody else is asked.
func TestFallback(t *testing.T) {
	cert, roots, _ := certificate(t)
	s := startServers(t, cert, server("www.example. 100 IN A 198.51.100.1"))
	var rec recorder
	r, err := New(Config{Dial: rec.dial, Log: slog.New(slog.DiscardHandler), RootCAs: roots,
		Upstreams: []string{"udp://" + s.plain, "tls://" + s.dot + "#dns.example"}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ask(t, r, "www.example", dns.TypeA)
	if d := rec.take(); len(d) != 1 || d[0] != "tcp "+s.dot {
		t.Errorf("dialled %v", d)
	}
	if err := r.SetUpstreams([]string{"udp://" + s.plain, "tls://" + s.dot + "#evil.example"}); err != nil {
		t.Fatal(err)
	}
	r.Flush()
	if got := show(ask(t, r, "www.example", dns.TypeA)); got != "NOERROR A:198.51.100.1" {
		t.Error(got)
	}
	if d := rec.take(); len(d) != 2 || d[1] != "udp "+s.plain {
		t.Errorf("dialled %v", d)
	}
}

// TestManyAtOnce: hundreds of questions by many clients share one connection, and each gets its own answer.
func TestManyAtOnce(t *testing.T) {
	cert, roots, _ := certificate(t)
	s := startServers(t, cert, func(q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		var i int
		fmt.Sscanf(strings.ToLower(q.Question[0].Name), "n%d.", &i)
		m.Answer = []dns.RR{addrRR(q.Question[0].Name, netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}))}
		return m
	})
	_, dohPort, _ := net.SplitHostPort(s.doh)
	for _, uri := range []string{"tls://" + s.dot + "#dns.example", "https://dns.example:" + dohPort + "/dns-query@127.0.0.1", "tcp://" + s.plain} {
		var rec recorder
		r, err := New(Config{Dial: rec.dial, Log: slog.New(slog.DiscardHandler), Upstreams: []string{uri}, RootCAs: roots})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range 300 {
			wg.Go(func() {
				a, err := r.Lookup(t.Context(), fmt.Sprintf("n%d.example", i), "ip4")
				if want := netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}); err != nil || len(a) != 1 || a[0] != want {
					t.Errorf("%s: %v, %v; want %s", uri, a, err, want)
				}
			})
		}
		wg.Wait()
		if d := rec.take(); len(d) > 12 { // miekg's server closes a connection after 128 questions
			t.Errorf("%s: %d connections", uri, len(d))
		}
		r.Close()
	}
}

// serve runs Serve on loopback ports; the same number for UDP and TCP.
func serve(t *testing.T, r *Resolver) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.Serve(ctx, l, p) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String()
}

// TestServe: a real client over real sockets.
func TestServe(t *testing.T) {
	r, w, end := newWorld(t, mesh, server("www.example. 100 IN A 198.51.100.1"))
	defer end()
	at := serve(t, r)
	for _, network := range []string{"udp", "tcp"} {
		c := &dns.Client{Net: network}
		for name, want := range map[string]string{"www.example.": "NOERROR A:198.51.100.1", "anna.weft.": "NOERROR SOA:weft."} {
			m, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), at)
			if err != nil || show(m) != want {
				t.Errorf("%s %s: %v, %v", network, name, m, err)
			}
		}
	}
	// The standard library's resolver.
	std := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, at)
	}}
	a, err := std.LookupNetIP(t.Context(), "ip", "anna.weft.")
	if err != nil || len(a) != 2 {
		t.Errorf("net.Resolver: %v, %v", a, err)
	}
	names, err := std.LookupAddr(t.Context(), "200:1111::a")
	if err != nil || !slices.Equal(names, []string{"anna.weft."}) {
		t.Errorf("net.Resolver: %v, %v", names, err)
	}

	// Many questions on one connection at once; a slow one holds up no other.
	release := make(chan struct{})
	w.set("udp 192.0.2.1:53", func(q *dns.Msg) *dns.Msg {
		<-release
		return new(dns.Msg).SetReply(q)
	})
	conn, err := dns.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	slow := new(dns.Msg).SetQuestion("slow.example.", dns.TypeA)
	quick := new(dns.Msg).SetQuestion("anna.weft.", dns.TypeAAAA)
	if err := errors.Join(conn.WriteMsg(slow), conn.WriteMsg(quick)); err != nil {
		t.Fatal(err)
	}
	if m, err := conn.ReadMsg(); err != nil || m.Id != quick.Id {
		t.Errorf("first answer: %v, %v", m, err)
	}
	close(release)
	if m, err := conn.ReadMsg(); err != nil || m.Id != slow.Id {
		t.Errorf("second answer: %v, %v", m, err)
	}
	// Who has shut its half still gets its answer.
	half, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	wire, err := quick.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(writeFrame(half, wire), half.(*net.TCPConn).CloseWrite()); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(half); err != nil || len(b) < 12 {
		t.Errorf("after half a close: %x, %v", b, err)
	}
	// A length that lies closes the connection.
	if _, err := conn.Write([]byte{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	if err := r.Serve(t.Context(), io.NopCloser(nil)); err == nil {
		t.Error("serves on what is no listener")
	}
}

// TestPlaces: a client with many questions does not keep others out, and neighbours never the owner.
func TestPlaces(t *testing.T) {
	c := newPlaces(maxConns, maxConnsPer)
	one := netip.MustParseAddr("192.168.1.2")
	n := 0
	for c.enter(one) {
		n++
	}
	if n != maxConnsPer || !c.enter(netip.MustParseAddr("192.168.1.3")) {
		t.Errorf("%d places of one client", n)
	}
	c.leave(one)
	if !c.enter(one) {
		t.Error("a place that was left stays taken")
	}
	for i := range maxConns {
		c.enter(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	if c.all != maxConns*3/4 {
		t.Errorf("%d places taken by neighbours", c.all)
	}
	for range maxConns {
		c.enter(netip.MustParseAddr("127.0.0.1"))
	}
	if c.all != maxConns {
		t.Errorf("%d places taken", c.all)
	}
}

// TestDnsmasq: a server that others wrote, as upstream and, in front, as client.
func TestDnsmasq(t *testing.T) {
	bin, err := exec.LookPath("dnsmasq")
	if err != nil {
		t.Skip("SKIPPED: no dnsmasq on this machine; apt install dnsmasq-base")
	}
	user := os.Getenv("USER")
	if os.Getuid() == 0 {
		user = "root"
	}
	start := func(args []string) (at string, ok bool) {
		l, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free just now
		if err != nil {
			t.Fatal(err)
		}
		at = l.Addr().String()
		_, port, _ := net.SplitHostPort(at)
		l.Close()
		cmd := exec.Command(bin, append([]string{"--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--pid-file=", "--bind-interfaces",
			"--listen-address=127.0.0.1", "--user=" + user, "--port=" + port}, args...)...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
		for range 100 { // until it is up
			if c, err := net.Dial("tcp", at); err == nil {
				c.Close()
				return at, true
			}
			time.Sleep(20 * time.Millisecond)
		}
		return "", false
	}
	run := func(args ...string) string {
		for range 3 { // somebody else may have taken the port
			if at, ok := start(args); ok {
				return at
			}
		}
		t.Skip("SKIPPED: dnsmasq does not start here")
		return ""
	}
	args := []string{"--local=/example/", "--address=/www.example/198.51.100.1", "--address=/www.example/2001:db9::1", "--cname=alias.example,host.example",
		"--host-record=host.example,198.51.100.2", "--rebind-localhost-ok", "--host-record=evil.example,127.0.0.1"}
	big := strings.Repeat("x", 250)
	for i := range 10 {
		args = append(args, fmt.Sprintf("--txt-record=big.example,%d%s", i, big))
	}
	at := run(args...)
	var rec recorder
	cfg := mesh
	cfg.Dial, cfg.Log, cfg.Upstreams = rec.dial, slog.New(slog.DiscardHandler), []string{"udp://" + at}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	front := run("--server="+strings.Replace(serve(t, r), ":", "#", 1), "--cache-size=0")
	ask := func(c *dns.Client, name string, qtype uint16) *dns.Msg {
		t.Helper()
		q := new(dns.Msg).SetQuestion(name, qtype)
		q.SetEdns0(1232, false)
		m, _, err := c.Exchange(q, front)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	c := &dns.Client{Timeout: 10 * time.Second}
	for _, v := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"www.example.", dns.TypeA, "NOERROR A:198.51.100.1"},
		{"www.example.", dns.TypeAAAA, "NOERROR AAAA:2001:db9::1"},
		{"alias.example.", dns.TypeA, "NOERROR CNAME:host.example. A:198.51.100.2"},
		{"evil.example.", dns.TypeA, "NOERROR"},
		{"no.example.", dns.TypeA, "NXDOMAIN"},
		{"anna.weft.", dns.TypeAAAA, "NOERROR AAAA:200:1111::a AAAA:300:1111::a"},
		{"bob.weft.", dns.TypeAAAA, "NXDOMAIN SOA:weft."},
	} {
		if got := show(ask(c, v.name, v.qtype)); got != v.want {
			t.Errorf("%s %s: %s, want %s", v.name, dns.TypeToString[v.qtype], got, v.want)
		}
	}
	if m := ask(c, "big.example.", dns.TypeTXT); !m.Truncated {
		t.Error("2.5 kB over UDP")
	}
	c.Net = "tcp"
	if m := ask(c, "big.example.", dns.TypeTXT); len(m.Answer) != 10 {
		t.Errorf("%d of 10 records over TCP", len(m.Answer))
	}
	if d := rec.take(); !slices.Contains(d, "tcp "+at) || !slices.Contains(d, "udp "+at) {
		t.Errorf("dialled %v", d)
	}
}

// TestNoLeak: no file of this package has a way to the network but Config.Dial and the listeners that it is given.
func TestNoLeak(t *testing.T) {
	may := map[string][]string{ // all that is used of packages which can open sockets
		"net": {"Addr", "Conn", "DNSError", "ErrClosed", "Error", "IP", "JoinHostPort", "Listener", "PacketConn", "TCPAddr", "UDPAddr"},
		"dns": {"A", "AAAA", "CNAME", "CanonicalName", "Class*", "Copy", "DNAME", "EDNS0_*", "ExtendedErrorCode*", "HINFO", "HTTPS", "IsDomainName", "IsSubDomain",
			"MaxMsgSize", "MinMsgSize", "Msg", "MsgHdr", "OPT", "Opcode*", "PTR", "Question", "RR", "RR_Header", "Rcode*", "SOA", "SVCB*", "SplitDomainName", "Type*"},
		"http": {"MethodPost", "NewRequestWithContext", "StatusOK", "Transport"},
		"tls":  {"Client", "Config", "ConnectionState", "NewLRUClientSessionCache", "VersionTLS12"},
	}
	err := filepath.WalkDir(".", func(p string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, i := range f.Imports {
			if s, _ := strconv.Unquote(i.Path.Value); s == "os" || s == "os/exec" || strings.HasPrefix(s, "golang.org/x/net") || strings.HasPrefix(s, "golang.org/x/sys") {
				t.Errorf("%s imports %s", p, s)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := s.X.(*ast.Ident); ok {
				if list, ok := may[x.Name]; ok && !slices.ContainsFunc(list, func(m string) bool {
					head, any := strings.CutSuffix(m, "*")
					return m == s.Sel.Name || any && strings.HasPrefix(s.Sel.Name, head)
				}) {
					t.Errorf("%s uses %s.%s", p, x.Name, s.Sel.Name)
				}
				if x.Name == "syscall" && !strings.HasPrefix(s.Sel.Name, "E") {
					t.Errorf("%s uses %s.%s", p, x.Name, s.Sel.Name)
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
