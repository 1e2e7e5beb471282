package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is the internet of a test in virtual time: servers by address, at the other ends of pipes.
type world struct {
	mu      sync.Mutex
	servers map[string]func(*dns.Msg) *dns.Msg // by network and address; nil: no answer
	asked   []string                           // address and question, in order
	dialled []string
	wg      sync.WaitGroup
}

// server answers questions with records in zone file form; a TTL must be given.
func server(records ...string) func(*dns.Msg) *dns.Msg {
	var rrs []dns.RR
	for _, s := range records {
		rr, err := dns.NewRR(s)
		if err != nil {
			panic(err)
		}
		rrs = append(rrs, rr)
	}
	return func(q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		name, known := strings.ToLower(q.Question[0].Name), false
		for i := 0; i <= len(rrs); i++ {
			for _, rr := range rrs {
				if rr.Header().Name != name {
					continue
				}
				known = true
				rr = dns.Copy(rr)
				if i == 0 {
					rr.Header().Name = q.Question[0].Name
				}
				if rr.Header().Rrtype == q.Question[0].Qtype {
					m.Answer = append(m.Answer, rr)
				} else if c, ok := rr.(*dns.CNAME); ok {
					m.Answer = append(m.Answer, rr)
					name = c.Target
				}
			}
			if len(m.Answer) == 0 || m.Answer[len(m.Answer)-1].Header().Rrtype != dns.TypeCNAME {
				break
			}
		}
		if !known {
			m.Rcode = dns.RcodeNameError
		}
		if len(m.Answer) == 0 || m.Answer[len(m.Answer)-1].Header().Rrtype == dns.TypeCNAME {
			soa, _ := dns.NewRR("example. 300 IN SOA ns.example. mail.example. 1 2 3 4 60")
			m.Ns = append(m.Ns, soa)
		}
		return m
	}
}

func (w *world) dial(ctx context.Context, network, address string) (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dialled = append(w.dialled, network+" "+address)
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("a name is dialled: %w", err)
	}
	answer, ok := w.servers[network+" "+address]
	if !ok {
		return nil, errors.New("connection refused")
	}
	here, there := net.Pipe()
	w.wg.Go(func() {
		defer there.Close()
		buf := make([]byte, 4096)
		for {
			var b []byte
			if network == "udp" {
				n, err := there.Read(buf)
				if err != nil {
					return
				}
				b = buf[:n]
			} else {
				var err error
				if b, err = readFrame(there, 65535); err != nil {
					return
				}
			}
			q := new(dns.Msg)
			if err := q.Unpack(b); err != nil {
				return
			}
			w.mu.Lock()
			w.asked = append(w.asked, fmt.Sprintf("%s %s %s", address, strings.ToLower(q.Question[0].Name), dns.TypeToString[q.Question[0].Qtype]))
			answer = w.servers[network+" "+address]
			w.mu.Unlock()
			if answer == nil {
				continue
			}
			m := answer(q)
			if m == nil {
				continue
			}
			out, err := m.Pack()
			if err != nil {
				return
			}
			if network == "udp" {
				there.Write(out)
			} else if writeFrame(there, out) != nil {
				return
			}
		}
	})
	return here, nil
}

func (w *world) set(at string, s func(*dns.Msg) *dns.Msg) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.servers[at] = s
}

// count says how many questions have been asked so far.
func (w *world) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.asked)
}

const up1, up2 = "udp://192.0.2.1", "udp://192.0.2.2"

// newWorld returns a resolver whose first upstream is answered by s. Call end at the test's end.
func newWorld(t testing.TB, cfg Config, s func(*dns.Msg) *dns.Msg) (r *Resolver, w *world, end func()) {
	t.Helper()
	w = &world{servers: map[string]func(*dns.Msg) *dns.Msg{"udp 192.0.2.1:53": s, "tcp 192.0.2.1:53": s}}
	cfg.Dial, cfg.Log = w.dial, slog.New(slog.DiscardHandler)
	if cfg.Upstreams == nil {
		cfg.Upstreams = []string{up1}
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r, w, func() {
		r.Close()
		w.wg.Wait()
	}
}

var outsider = netip.MustParseAddr("192.168.7.7")

// ask asks as a client does, with EDNS.
func ask(t testing.TB, r *Resolver, name string, qtype uint16, edit ...func(*dns.Msg)) *dns.Msg {
	t.Helper()
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	q.SetEdns0(4096, false)
	for _, f := range edit {
		f(q)
	}
	wire, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	out := r.handle(t.Context(), wire, outsider, false)
	m := new(dns.Msg)
	if err := m.Unpack(out); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if m.Id != q.Id || !m.Response || len(m.Question) != 1 || m.Question[0] != q.Question[0] {
		t.Fatalf("an answer to another question: %v", m)
	}
	return m
}

// show is an answer in short: the code and the records, or the zone that says no.
func show(m *dns.Msg) string {
	s := dns.RcodeToString[m.Rcode]
	for _, rr := range m.Answer {
		f := strings.Fields(rr.String())
		s += " " + strings.Join(f[3:], ":")
	}
	if len(m.Answer) == 0 {
		for _, rr := range m.Ns {
			if rr.Header().Rrtype == dns.TypeSOA {
				s += " SOA:" + rr.Header().Name
			}
		}
	}
	return s
}

func ede(m *dns.Msg) string {
	var out []string
	if o := m.IsEdns0(); o != nil {
		for _, o := range o.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok {
				out = append(out, fmt.Sprintf("%d %s", e.InfoCode, e.ExtraText))
			}
		}
	}
	return strings.Join(out, "; ")
}

var mesh = Config{
	Zones: []string{"weft", "Riverside.Mesh."},
	Names: func(_ context.Context, name string) ([]netip.Addr, bool) {
		switch name {
		case "anna.weft":
			return []netip.Addr{netip.MustParseAddr("200:1111::a"), netip.MustParseAddr("300:1111::a")}, true
		case "shop.riverside.mesh":
			return []netip.Addr{netip.MustParseAddr("200:2222::b")}, true
		case "bare.weft":
			return nil, true
		}
		return nil, false
	},
	Reverse: func(a netip.Addr) (string, bool) {
		return "anna.weft", a == netip.MustParseAddr("200:1111::a")
	},
}

// TestLocal: what is answered here, how, and that nobody is asked for it.
func TestLocal(t *testing.T) {
	r, w, end := newWorld(t, mesh, server())
	defer end()
	for _, v := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"anna.weft", dns.TypeAAAA, "NOERROR AAAA:200:1111::a AAAA:300:1111::a"},
		{"ANNA.weft", dns.TypeAAAA, "NOERROR AAAA:200:1111::a AAAA:300:1111::a"},
		{"anna.weft", dns.TypeA, "NOERROR SOA:weft."},
		{"anna.weft", dns.TypeTXT, "NOERROR SOA:weft."},
		{"bare.weft", dns.TypeAAAA, "NOERROR SOA:weft."},
		{"bob.weft", dns.TypeAAAA, "NXDOMAIN SOA:weft."},
		{"bob.weft", dns.TypeA, "NXDOMAIN SOA:weft."},
		{"weft", dns.TypeAAAA, "NOERROR SOA:weft."},
		{"weft", dns.TypeSOA, "NOERROR SOA:weft.:nobody.invalid.:1:3600:1200:604800:30"},
		{"shop.riverside.mesh", dns.TypeAAAA, "NOERROR AAAA:200:2222::b"},
		{"a.7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.1.1.1.0.0.2.0.ip6.arpa", dns.TypePTR, "NXDOMAIN SOA:2.0.ip6.arpa."},
		{"a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.1.1.1.0.0.2.0.ip6.arpa", dns.TypePTR, "NOERROR PTR:anna.weft."},
		{"a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.1.1.1.0.0.2.0.ip6.arpa", dns.TypeTXT, "NOERROR SOA:2.0.ip6.arpa."},
		{"a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.1.1.1.0.0.3.0.ip6.arpa", dns.TypePTR, "NXDOMAIN SOA:3.0.ip6.arpa."},
		{"1.1.1.1.0.0.3.0.ip6.arpa", dns.TypePTR, "NOERROR SOA:3.0.ip6.arpa."},
		{"2.0.ip6.arpa", dns.TypeNS, "NOERROR SOA:2.0.ip6.arpa."},
		{"localhost", dns.TypeA, "NOERROR A:127.0.0.1"},
		{"app.localhost", dns.TypeAAAA, "NOERROR AAAA:::1"},
		{"localhost", dns.TypeMX, "NOERROR SOA:localhost."},
		{"x.invalid", dns.TypeA, "NXDOMAIN SOA:invalid."},
		{"x.test", dns.TypeA, "NXDOMAIN SOA:test."},
		{"duckduckgo.onion", dns.TypeA, "NXDOMAIN SOA:onion."},
		{"onion", dns.TypeA, "NOERROR SOA:onion."},
		{"printer.local", dns.TypeA, "NXDOMAIN SOA:local."},
		{"x.alt", dns.TypeA, "NXDOMAIN SOA:alt."},
		{"nas.home.arpa", dns.TypeA, "NXDOMAIN SOA:home.arpa."},
		{"home.arpa", dns.TypeA, "NOERROR SOA:home.arpa."},
		{"_dns.resolver.arpa", dns.TypeSVCB, "NOERROR SOA:resolver.arpa."},
		{"1.0.0.127.in-addr.arpa", dns.TypePTR, "NOERROR PTR:localhost."},
		{"1.1.168.192.in-addr.arpa", dns.TypePTR, "NXDOMAIN SOA:168.192.in-addr.arpa."},
		{"1.1.31.172.in-addr.arpa", dns.TypePTR, "NXDOMAIN SOA:31.172.in-addr.arpa."},
		{"1.1.100.100.in-addr.arpa", dns.TypePTR, "NXDOMAIN SOA:100.100.in-addr.arpa."},
		{"lb._dns-sd._udp.0.1.168.192.in-addr.arpa", dns.TypePTR, "NXDOMAIN SOA:168.192.in-addr.arpa."},
		{"b._dns-sd._udp.1.168.192.in-addr.arpa", dns.TypePTR, "NOERROR SOA:168.192.in-addr.arpa."},
		{"255.255.255.255.in-addr.arpa", dns.TypePTR, "NXDOMAIN SOA:255.255.255.255.in-addr.arpa."},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa", dns.TypePTR, "NOERROR PTR:localhost."},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.e.f.ip6.arpa", dns.TypePTR, "NXDOMAIN SOA:8.e.f.ip6.arpa."},
	} {
		m := ask(t, r, v.name, v.qtype)
		if got := show(m); got != v.want {
			t.Errorf("%s %s: %s, want %s", v.name, dns.TypeToString[v.qtype], got, v.want)
		}
		if !m.Authoritative {
			t.Errorf("%s: not authoritative", v.name)
		}
	}
	if w.count() != 0 {
		t.Errorf("asked of others: %v", w.asked)
	}
	// And these are for others.
	for _, name := range []string{"weft.example", "notweft", "1.1.32.172.in-addr.arpa", "1.1.128.100.in-addr.arpa", "8.b.d.0.2.0.0.2.ip6.arpa", "in-addr.arpa", "arpa"} {
		before := w.count()
		ask(t, r, name, dns.TypePTR)
		if w.count() == before {
			t.Errorf("%s was answered here", name)
		}
	}
	before := w.count()
	if ask(t, r, "home.arpa", dns.TypeDS); w.count() == before {
		t.Error("home.arpa DS must be asked outside (RFC 8375)")
	}
}

// TestProtocol: what is not an ordinary question.
func TestProtocol(t *testing.T) {
	r, w, end := newWorld(t, mesh, server())
	defer end()
	for _, v := range []struct {
		what string
		q    func(*dns.Msg)
		want string
	}{
		{"ANY", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeANY }, `NOERROR HINFO:"RFC8482":""`},
		{"AXFR", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }, "REFUSED"},
		{"IXFR", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeIXFR }, "REFUSED"},
		{"CHAOS", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, "REFUSED"},
		{"NOTIFY", func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }, "NOTIMP"},
		{"no RD", func(m *dns.Msg) { m.RecursionDesired = false }, "REFUSED"},
		{"EDNS 1", func(m *dns.Msg) { m.IsEdns0().SetVersion(1) }, dns.RcodeToString[dns.RcodeBadVers]},
	} {
		if got := show(ask(t, r, "www.example", dns.TypeA, v.q)); !strings.HasPrefix(got, v.want) {
			t.Errorf("%s: %s, want %s", v.what, got, v.want)
		}
	}
	if w.count() != 0 {
		t.Errorf("asked of others: %v", w.asked)
	}
	for _, junk := range []string{"", "short", "\x00\x01\x80\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01"} {
		if out := r.handle(t.Context(), []byte(junk), outsider, true); out != nil {
			t.Errorf("%q was answered with %x", junk, out)
		}
	}
	if out := r.handle(t.Context(), []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xff"), outsider, true); len(out) != 12 || out[3]&15 != dns.RcodeFormatError {
		t.Errorf("a broken question: %x", out)
	}
	m := ask(t, r, "anna.weft", dns.TypeAAAA, func(m *dns.Msg) { m.Extra = nil })
	if len(m.Extra) != 0 {
		t.Error("EDNS for who has none")
	}
}

// TestCache: answers count down, are asked for again when over, and coalesce.
func TestCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		zone := server("www.example. 100 IN A 198.51.100.1", "short.example. 1 IN A 198.51.100.2", "never.example. 0 IN A 198.51.100.3",
			"long.example. 9999999 IN A 198.51.100.4", "gone.example. 60 IN CNAME nowhere.example.")
		r, w, end := newWorld(t, Config{}, zone)
		defer end()
		ttl := func(name string) (uint32, int) {
			t.Helper()
			before := w.count()
			m := ask(t, r, name, dns.TypeA)
			if m.Rcode != dns.RcodeSuccess || len(m.Answer) == 0 {
				t.Fatalf("%s: %s %s", name, show(m), ede(m))
			}
			return m.Answer[0].Header().Ttl, w.count() - before
		}
		for _, v := range []struct {
			after time.Duration
			name  string
			ttl   uint32
			asked int
		}{
			{0, "www.example", 100, 1},
			{40 * time.Second, "www.example", 60, 0},
			{0, "WWW.Example", 60, 0},
			{60 * time.Second, "www.example", 100, 1},
			{0, "short.example", 5, 1},
			{4 * time.Second, "short.example", 1, 0},
			{2 * time.Second, "short.example", 5, 1},
			{0, "never.example", 5, 1},
			{0, "never.example", 5, 1},
			{0, "long.example", 86400, 1},
			{0, "gone.example", 60, 1},
			{59 * time.Second, "gone.example", 1, 0},
		} {
			time.Sleep(v.after)
			if got, asked := ttl(v.name); got != v.ttl && v.name != "never.example" || asked != v.asked {
				t.Errorf("%s: TTL %d, asked %d times; want %d, %d", v.name, got, asked, v.ttl, v.asked)
			}
		}
		// Negative answers live as long as the SOA's minimum.
		before := w.count()
		for range 3 {
			if got := show(ask(t, r, "no.example", dns.TypeA)); got != "NXDOMAIN SOA:example." {
				t.Error(got)
			}
			if got := show(ask(t, r, "www.example", dns.TypeAAAA)); got != "NOERROR SOA:example." {
				t.Error(got)
			}
			time.Sleep(20 * time.Second)
		}
		ask(t, r, "no.example", dns.TypeA)
		if n := w.count() - before; n != 3 {
			t.Errorf("asked %d times for what is not there, want 3", n)
		}
		r.Flush()
		if _, asked := ttl("long.example"); asked != 1 {
			t.Error("the cache has outlived Flush")
		}
		s := r.Stats()
		if s.Hits == 0 || s.Misses == 0 || s.CacheEntries != 1 || s.CacheBytes < overhead {
			t.Errorf("%+v", s)
		}

		// Many ask at once: one question goes out.
		w.set("udp 192.0.2.1:53", func(q *dns.Msg) *dns.Msg {
			time.Sleep(200 * time.Millisecond)
			return zone(q)
		})
		before = w.count()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if _, err := r.Lookup(t.Context(), "www.example", "ip4"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := w.count() - before; n != 1 {
			t.Errorf("50 equal questions were asked %d times", n)
		}
	})
}

// TestPrefetch: what is in use is asked for before it expires.
func TestPrefetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w, end := newWorld(t, Config{}, server("www.example. 100 IN A 198.51.100.1"))
		defer end()
		for range 4 {
			ask(t, r, "www.example", dns.TypeA)
		}
		time.Sleep(95 * time.Second)
		for range 3 {
			if m := ask(t, r, "www.example", dns.TypeA); m.Answer[0].Header().Ttl != 5 && m.Answer[0].Header().Ttl != 100 {
				t.Error(m)
			}
		}
		synctest.Wait()
		if n := w.count(); n != 2 {
			t.Errorf("asked %d times, want 2", n)
		}
		if m := ask(t, r, "www.example", dns.TypeA); m.Answer[0].Header().Ttl != 100 {
			t.Errorf("not renewed: %v", m)
		}
	})
}

// TestCacheBound: the size is held, the least used goes, and a big answer does not push out all.
func TestCacheBound(t *testing.T) {
	var c cache
	c.init(64 << 10)
	now := time.Unix(1e9, 0)
	k := func(i int) key { return key{name: fmt.Sprintf("n%d.example.", i), qtype: dns.TypeTXT} }
	txt := func(i, size int) answer {
		rr := &dns.TXT{Hdr: dns.RR_Header{Name: k(i).name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 300}}
		for ; size > 0; size -= 200 {
			rr.Txt = append(rr.Txt, strings.Repeat("x", 200))
		}
		return answer{rrs: []dns.RR{rr}}
	}
	for i := range 1000 {
		c.put(k(i), txt(i, 400), now)
		if _, state := c.get(k(0), now); state != fresh {
			t.Fatalf("what is in use was dropped after %d others", i)
		}
		if c.size > c.max || len(c.entries) != c.recent.Len() {
			t.Fatalf("%d bytes of %d", c.size, c.max)
		}
	}
	if _, state := c.get(k(500), now); state != absent {
		t.Error("what nobody wants is still there")
	}
	c.put(k(2000), txt(2000, 20<<10), now)
	if _, state := c.get(k(2000), now); state != absent {
		t.Error("one answer took a third of the cache")
	}
	c.clear()
	if c.size != 0 || len(c.entries) != 0 {
		t.Error("not empty")
	}
}

// TestStale: when nobody answers, what was known helps for an hour, and says so.
func TestStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w, end := newWorld(t, Config{}, server("www.example. 100 IN A 198.51.100.1"))
		defer end()
		ask(t, r, "www.example", dns.TypeA)
		ask(t, r, "no.example", dns.TypeA)
		w.set("udp 192.0.2.1:53", nil) // the line is cut
		time.Sleep(10 * time.Minute)
		began := time.Now()
		m := ask(t, r, "www.example", dns.TypeA)
		if show(m) != "NOERROR A:198.51.100.1" || m.Answer[0].Header().Ttl != staleTTL || !strings.HasPrefix(ede(m), "3 ") {
			t.Errorf("%s %q", show(m), ede(m))
		}
		if d := time.Since(began); d != staleAfter {
			t.Errorf("after %v, want %v", d, staleAfter)
		}
		time.Sleep(askTime)
		began = time.Now() // nobody waits for those who have failed just now
		if m := ask(t, r, "no.example", dns.TypeA); show(m) != "NXDOMAIN SOA:example." || !strings.HasPrefix(ede(m), "19 ") || time.Since(began) != 0 {
			t.Errorf("%s %q", show(m), ede(m))
		}
		if m := ask(t, r, "new.example", dns.TypeA); m.Rcode != dns.RcodeServerFailure || !strings.HasPrefix(ede(m), "22 no DNS server answers: ") {
			t.Errorf("%s %q", show(m), ede(m))
		}
		time.Sleep(time.Hour)
		if m := ask(t, r, "www.example", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
			t.Errorf("still served after an hour: %s", show(m))
		}
		// SERVFAIL is no reason to forget either.
		w.set("udp 192.0.2.1:53", server("www.example. 100 IN A 198.51.100.1"))
		ask(t, r, "www.example", dns.TypeA)
		w.set("udp 192.0.2.1:53", func(q *dns.Msg) *dns.Msg { return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure) })
		time.Sleep(10 * time.Minute)
		if m := ask(t, r, "www.example", dns.TypeA); show(m) != "NOERROR A:198.51.100.1" || !strings.HasPrefix(ede(m), "3 ") {
			t.Errorf("%s %q", show(m), ede(m))
		}
	})
}

// TestNoUpstream: who asks in vain is told why.
func TestNoUpstream(t *testing.T) {
	why := "no gateway in use: weft gateway use auto"
	r, _, end := newWorld(t, Config{Upstreams: []string{}, Why: func() string { return why }}, nil)
	defer end()
	if m := ask(t, r, "www.example", dns.TypeA); m.Rcode != dns.RcodeServerFailure || ede(m) != "14 "+why {
		t.Errorf("%s %q", show(m), ede(m))
	}
	_, err := r.Lookup(t.Context(), "www.example", "ip")
	var de *net.DNSError
	if !errors.As(err, &de) || de.Err != why || de.IsNotFound || !de.IsTemporary {
		t.Errorf("%#v", err)
	}
}

// TestHedge: a server that is silent costs 300 ms once; then the other is asked first.
func TestHedge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w, end := newWorld(t, Config{Upstreams: []string{up1, up2}}, nil)
		defer end()
		w.set("udp 192.0.2.2:53", server("a.example. 100 IN A 198.51.100.1", "b.example. 100 IN A 198.51.100.1"))
		began := time.Now()
		if got := show(ask(t, r, "a.example", dns.TypeA)); got != "NOERROR A:198.51.100.1" {
			t.Fatal(got)
		}
		if d := time.Since(began); d != hedge {
			t.Errorf("after %v, want %v", d, hedge)
		}
		synctest.Wait() // the silent one has been given up by now
		began = time.Now()
		ask(t, r, "b.example", dns.TypeA)
		if d := time.Since(began); d != 0 {
			t.Errorf("the silent server was asked first again: %v", d)
		}
		// One that refuses costs nothing, and rests.
		w.mu.Lock()
		delete(w.servers, "udp 192.0.2.1:53")
		w.mu.Unlock()
		if err := r.SetUpstreams([]string{up1, up2}); err != nil {
			t.Fatal(err)
		}
		r.Reconnect()
		began = time.Now()
		ask(t, r, "c.example", dns.TypeA)
		if d := time.Since(began); d != 0 {
			t.Errorf("after %v", d)
		}
		s := r.Stats().Upstreams
		if len(s) != 2 || !s[0].Resting || s[0].Failures != 1 || s[0].Error == "" || s[1].Resting || s[1].Sent != 3 {
			t.Errorf("%+v", s)
		}
		// A server that says SERVFAIL is asked once, and the next one after it.
		w.set("udp 192.0.2.1:53", func(q *dns.Msg) *dns.Msg { return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure) })
		r.Reconnect()
		before := w.count()
		if got := show(ask(t, r, "a.example", dns.TypeA)); got != "NOERROR A:198.51.100.1" {
			t.Error(got)
		}
		r.Flush()
		w.set("udp 192.0.2.2:53", func(q *dns.Msg) *dns.Msg { return new(dns.Msg).SetRcode(q, dns.RcodeRefused) })
		if m := ask(t, r, "a.example", dns.TypeA); !slices.Contains([]int{dns.RcodeServerFailure, dns.RcodeRefused}, m.Rcode) {
			t.Error(show(m))
		}
		if n := w.count() - before; n != 2 {
			t.Errorf("asked %d times, want 2", n)
		}
	})
}

// TestSilentTLS: a server over TLS that does not even shake hands holds up plain ones for a moment, and then no more.
func TestSilentTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w, end := newWorld(t, Config{Upstreams: []string{up1, "tls://192.0.2.2#dns.example"}}, server("a.example. 100 IN A 198.51.100.1"))
		defer end()
		w.set("tcp 192.0.2.2:853", nil)
		for _, want := range []time.Duration{patience, 0} {
			began := time.Now()
			if got := show(ask(t, r, "a.example", dns.TypeA)); got != "NOERROR A:198.51.100.1" {
				t.Error(got)
			}
			if d := time.Since(began); d < want || d > want+hedge {
				t.Errorf("after %v, want %v", d, want)
			}
			synctest.Wait() // it is known to be silent now
			r.mu.Lock()
			r.cache.clear()
			r.mu.Unlock()
		}
		if err := r.SetUpstreams([]string{"tls://192.0.2.2#dns.example"}); err != nil {
			t.Fatal(err)
		}
		r.Flush()
		if m := ask(t, r, "a.example", dns.TypeA); m.Rcode != dns.RcodeServerFailure || !strings.Contains(ede(m), "deadline exceeded") {
			t.Errorf("%s %q", show(m), ede(m))
		}
	})
}

// TestGatewayChange: a question that waits for a dead gateway's server is asked of the new one's at once.
func TestGatewayChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w, end := newWorld(t, Config{}, nil)
		defer end()
		w.set("tcp 192.0.2.2:53", server("a.example. 100 IN A 198.51.100.1"))
		w.set("tcp 192.0.2.9:53", nil)
		if err := r.SetUpstreams([]string{"tcp://192.0.2.9"}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			if got := show(ask(t, r, "a.example", dns.TypeA)); got != "NOERROR A:198.51.100.1" {
				t.Error(got)
			}
		})
		time.Sleep(time.Second)
		if err := r.SetUpstreams([]string{"tcp://192.0.2.2"}); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if d := time.Since(began); d != time.Second {
			t.Errorf("after %v", d)
		}
	})
}

// TestFlushInFlight: what was asked through the old gateway is not kept for the new one.
func TestFlushInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		zone := server("a.example. 100 IN A 198.51.100.1")
		r, w, end := newWorld(t, Config{}, func(q *dns.Msg) *dns.Msg {
			time.Sleep(200 * time.Millisecond)
			return zone(q)
		})
		defer end()
		var wg sync.WaitGroup
		wg.Go(func() { ask(t, r, "a.example", dns.TypeA) })
		time.Sleep(100 * time.Millisecond)
		r.Flush()
		wg.Wait()
		before := w.count()
		if ask(t, r, "a.example", dns.TypeA); w.count() == before {
			t.Error("the old answer was kept")
		}
	})
}

// TestClosed: after Close nobody is asked, and those who ask are told so at once.
func TestClosed(t *testing.T) {
	r, w, end := newWorld(t, Config{}, server("a.example. 100 IN A 198.51.100.1"))
	end()
	if m := ask(t, r, "a.example", dns.TypeA); m.Rcode != dns.RcodeServerFailure || w.count() != 0 {
		t.Error(show(m))
	}
	if err := r.SetUpstreams([]string{up2}); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	r.Flush()
	r.Close()
}

// TestForged: an answer that does not repeat id, question and letters is not believed.
func TestForged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good := server("www.example. 100 IN A 198.51.100.1")
		evil := func(q *dns.Msg) *dns.Msg { return server("www.example. 100 IN A 198.51.100.66")(q) }
		r, w, end := newWorld(t, Config{}, good)
		defer end()
		for what, forge := range map[string]func(q *dns.Msg) *dns.Msg{
			"id":       func(q *dns.Msg) *dns.Msg { m := evil(q); m.Id++; return m },
			"question": func(q *dns.Msg) *dns.Msg { m := evil(q); m.Question[0].Name = "other.example."; return m },
			"type":     func(q *dns.Msg) *dns.Msg { m := evil(q); m.Question[0].Qtype = dns.TypeAAAA; return m },
			"letters": func(q *dns.Msg) *dns.Msg {
				m := evil(q)
				m.Question[0].Name = flip(m.Question[0].Name)
				return m
			},
			"no answer": func(q *dns.Msg) *dns.Msg { m := evil(q); m.Response = false; return m },
			"none":      func(q *dns.Msg) *dns.Msg { m := evil(q); m.Question = nil; return m },
		} {
			w.set("udp 192.0.2.1:53", forge)
			r.Flush()
			m := ask(t, r, "www.example", dns.TypeA)
			if got := show(m); what == "letters" && got != "NOERROR A:198.51.100.1" || what != "letters" && m.Rcode != dns.RcodeServerFailure {
				t.Errorf("%s: %s", what, got)
			}
		}
	})
	seen := map[string]bool{}
	for range 64 {
		s := mixCase("www.example.")
		if !strings.EqualFold(s, "www.example.") {
			t.Fatal(s)
		}
		seen[s] = true
	}
	if len(seen) < 50 {
		t.Errorf("only %d ways to write a name", len(seen))
	}
}

// flip changes the case of the first letter.
func flip(s string) string { return string(s[0]^0x20) + s[1:] }

// TestTruncated: TCP has what UDP could not hold, and clients get what their own way can hold.
func TestTruncated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var records []string
		for i := range 200 {
			records = append(records, fmt.Sprintf("big.example. 100 IN A 198.51.100.%d", i))
		}
		zone := server(records...)
		r, w, end := newWorld(t, Config{}, zone)
		defer end()
		w.set("udp 192.0.2.1:53", func(q *dns.Msg) *dns.Msg {
			m := new(dns.Msg).SetReply(q)
			m.Truncated = true
			return m
		})
		if m := ask(t, r, "big.example", dns.TypeA); len(m.Answer) != 200 || m.Truncated {
			t.Errorf("%d records, %v", len(m.Answer), m.Truncated)
		}
		for _, v := range []struct{ size, most int }{{0, 512}, {600, 600}, {4096, udpSize}} {
			q := new(dns.Msg).SetQuestion("big.example.", dns.TypeA)
			if v.size > 0 {
				q.SetEdns0(uint16(v.size), false)
			}
			wire, _ := q.Pack()
			out := r.handle(t.Context(), wire, outsider, true)
			m := new(dns.Msg)
			if err := m.Unpack(out); err != nil || !m.Truncated || len(out) > v.most || len(out) < v.most-40 {
				t.Errorf("%d bytes for a client that takes %d: %v", len(out), v.size, err)
			}
		}
		// One connection serves all.
		before := len(w.dialled)
		r.Flush()
		ask(t, r, "big.example", dns.TypeA)
		r.mu.Lock()
		r.cache.clear()
		r.mu.Unlock()
		ask(t, r, "big.example", dns.TypeA)
		tcp := 0
		for _, d := range w.dialled[before:] {
			if strings.HasPrefix(d, "tcp") {
				tcp++
			}
		}
		if tcp != 1 {
			t.Errorf("%d connections, want 1", tcp)
		}
		time.Sleep(idleStream + time.Second)
		r.mu.Lock()
		alive := r.pool.list[0].stream.alive()
		r.mu.Unlock()
		if alive {
			t.Error("an idle connection is kept for ever")
		}
	})
}

// TestRebinding: no name of the outside has an address in here.
func TestRebinding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		zone := server("mixed.example. 100 IN A 127.0.0.1", "mixed.example. 100 IN A 198.51.100.1", "mesh.example. 100 IN AAAA 200:1111::a",
			"sub.example. 100 IN AAAA 300::1", "mapped.example. 100 IN AAAA ::ffff:127.0.0.1", "nat.example. 100 IN AAAA 64:ff9b::7f00:1",
			"zero.example. 100 IN A 0.0.0.0", "lan.example. 100 IN A 192.168.1.1", "nat2.example. 100 IN AAAA 64:ff9b::c0a8:101",
			"web.example. 100 IN HTTPS 1 . ipv6hint=200:1111::a", "ok.example. 100 IN AAAA 2001:db9::1")
		r, _, end := newWorld(t, mesh, zone)
		defer end()
		strict := mesh
		strict.Guarded = append(MeshAndLoopback(), Private()...)
		s, _, end2 := newWorld(t, strict, zone)
		defer end2()
		off := mesh
		off.Guarded = []netip.Prefix{}
		o, _, end3 := newWorld(t, off, zone)
		defer end3()
		for _, v := range []struct {
			name              string
			qtype             uint16
			want, strict, off int
		}{
			{"mixed.example", dns.TypeA, 1, 1, 2}, {"mesh.example", dns.TypeAAAA, 0, 0, 1}, {"sub.example", dns.TypeAAAA, 0, 0, 1},
			{"mapped.example", dns.TypeAAAA, 0, 0, 1}, {"nat.example", dns.TypeAAAA, 0, 0, 1}, {"zero.example", dns.TypeA, 0, 0, 1},
			{"lan.example", dns.TypeA, 1, 0, 1}, {"nat2.example", dns.TypeAAAA, 1, 0, 1}, {"web.example", dns.TypeHTTPS, 0, 0, 1},
			{"ok.example", dns.TypeAAAA, 1, 1, 1},
		} {
			for range 2 { // from upstream and from the cache
				m := ask(t, r, v.name, v.qtype)
				if len(m.Answer) != v.want || (v.want != v.off) != strings.HasPrefix(ede(m), "15 ") || m.Rcode != dns.RcodeSuccess {
					t.Errorf("%s: %s %q", v.name, show(m), ede(m))
				}
			}
			if m := ask(t, s, v.name, v.qtype); len(m.Answer) != v.strict {
				t.Errorf("strict, %s: %s", v.name, show(m))
			}
			if m := ask(t, o, v.name, v.qtype); len(m.Answer) != v.off {
				t.Errorf("off, %s: %s", v.name, show(m))
			}
		}
	})
}

// TestDNS64 holds what RFC 6147 section 5 asks for.
func TestDNS64(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		zone := server("four.example. 500 IN A 8.8.4.4", "both.example. 100 IN A 8.8.4.4", "both.example. 100 IN AAAA 2001:db9::1",
			"alias.example. 100 IN CNAME four.example.", "lan.example. 100 IN A 10.0.0.1", "mapped.example. 100 IN A 8.8.4.4",
			"mapped.example. 100 IN AAAA ::ffff:8.8.4.4", "4.4.8.8.in-addr.arpa. 100 IN PTR dns.example.", "six.example. 100 IN AAAA 2001:db9::1")
		cfg := mesh
		prefix := "64:ff9b::/96"
		cfg.DNS64 = func() (netip.Prefix, bool) { return netip.MustParsePrefix(prefix), true }
		cfg.WantDNS64 = func(src netip.Addr) bool { return src == outsider }
		r, w, end := newWorld(t, cfg, zone)
		defer end()
		for _, v := range []struct {
			name  string
			qtype uint16
			want  string
		}{
			{"four.example", dns.TypeAAAA, "NOERROR AAAA:64:ff9b::808:404"},
			{"four.example", dns.TypeA, "NOERROR A:8.8.4.4"},
			{"both.example", dns.TypeAAAA, "NOERROR AAAA:2001:db9::1"},
			{"alias.example", dns.TypeAAAA, "NOERROR CNAME:four.example. AAAA:64:ff9b::808:404"},
			{"lan.example", dns.TypeAAAA, "NOERROR SOA:example."},
			{"mapped.example", dns.TypeAAAA, "NOERROR AAAA:64:ff9b::808:404"},
			{"no.example", dns.TypeAAAA, "NXDOMAIN SOA:example."},
			{"six.example", dns.TypeAAAA, "NOERROR AAAA:2001:db9::1"},
			{"anna.weft", dns.TypeAAAA, "NOERROR AAAA:200:1111::a AAAA:300:1111::a"},
			{"ipv4only.arpa", dns.TypeAAAA, "NOERROR AAAA:64:ff9b::c000:aa AAAA:64:ff9b::c000:ab"},
			{"ipv4only.arpa", dns.TypeA, "NOERROR A:192.0.0.170 A:192.0.0.171"},
			{"x.ipv4only.arpa", dns.TypeA, "NXDOMAIN SOA:ipv4only.arpa."},
			{"4.0.4.0.8.0.8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.b.9.f.f.4.6.0.0.ip6.arpa", dns.TypePTR, "NOERROR CNAME:4.4.8.8.in-addr.arpa. PTR:dns.example."},
		} {
			for range 2 {
				if got := show(ask(t, r, v.name, v.qtype)); got != v.want {
					t.Errorf("%s %s: %s, want %s", v.name, dns.TypeToString[v.qtype], got, v.want)
				}
			}
		}
		r.Flush()
		if m := ask(t, r, "four.example", dns.TypeAAAA); m.Answer[0].Header().Ttl != 60 || !strings.HasPrefix(ede(m), "29 ") {
			t.Errorf("TTL %d, want that of the SOA; %q", m.Answer[0].Header().Ttl, ede(m))
		}
		validating := func(m *dns.Msg) { m.CheckingDisabled = true; m.IsEdns0().SetDo() }
		if got := show(ask(t, r, "four.example", dns.TypeAAAA, validating)); got != "NOERROR SOA:example." {
			t.Errorf("for who validates: %s", got)
		}
		if a, err := r.Lookup(t.Context(), "four.example", "ip"); err != nil || !cmp.Equal(a, []netip.Addr{netip.MustParseAddr("8.8.4.4")}, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })) {
			t.Errorf("for the node itself: %v, %v", a, err)
		}
		// AAAA that fails is no AAAA (section 5.1.2).
		w.set("udp 192.0.2.1:53", func(q *dns.Msg) *dns.Msg {
			if q.Question[0].Qtype == dns.TypeAAAA {
				return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
			}
			return zone(q)
		})
		r.Flush()
		if got := show(ask(t, r, "four.example", dns.TypeAAAA)); got != "NOERROR AAAA:64:ff9b::808:404" {
			t.Error(got)
		}
		prefix = "2001:db8:64::/48"
		if got := show(ask(t, r, "lan.example", dns.TypeAAAA)); got != "NOERROR AAAA:2001:db8:64:a00:0:100::" {
			t.Errorf("another prefix: %s", got)
		}
	})
}

// TestAuthentic: AD is believed over TLS only, which TestEncrypted shows; never over plain DNS.
func TestAuthentic(t *testing.T) {
	zone := server("www.example. 100 IN A 198.51.100.1")
	r, _, end := newWorld(t, Config{}, func(q *dns.Msg) *dns.Msg {
		m := zone(q)
		m.AuthenticatedData = true
		return m
	})
	defer end()
	if ask(t, r, "www.example", dns.TypeA, func(m *dns.Msg) { m.IsEdns0().SetDo() }).AuthenticatedData {
		t.Error("AD over plain DNS")
	}
}

// TestDNSSEC: who sets DO gets signatures, who does not gets none, and neither gets what the other's cache holds.
func TestDNSSEC(t *testing.T) {
	sig, err := dns.NewRR("www.example. 100 IN RRSIG A 13 2 100 20300101000000 20200101000000 1 example. AAAA")
	if err != nil {
		t.Fatal(err)
	}
	zone := server("www.example. 100 IN A 198.51.100.1")
	r, w, end := newWorld(t, Config{}, func(q *dns.Msg) *dns.Msg {
		m := zone(q)
		m.Answer = append(m.Answer, sig)
		m.SetEdns0(1232, q.IsEdns0().Do())
		return m
	})
	defer end()
	for range 2 {
		if m := ask(t, r, "www.example", dns.TypeA); len(m.Answer) != 1 || m.IsEdns0().Do() {
			t.Error(show(m))
		}
		if m := ask(t, r, "www.example", dns.TypeA, func(m *dns.Msg) { m.IsEdns0().SetDo() }); len(m.Answer) != 2 || !m.IsEdns0().Do() {
			t.Error(show(m))
		}
	}
	if w.count() != 2 {
		t.Errorf("asked %d times, want 2", w.count())
	}
}

// TestRecurse: strangers may ask for names of the mesh only.
func TestRecurse(t *testing.T) {
	cfg := mesh
	cfg.Recurse = func(src netip.Addr) bool { return src != outsider }
	r, w, end := newWorld(t, cfg, server())
	defer end()
	if m := ask(t, r, "www.example", dns.TypeA); m.Rcode != dns.RcodeRefused || !strings.HasPrefix(ede(m), "18 ") {
		t.Errorf("%s %q", show(m), ede(m))
	}
	if m := ask(t, r, "anna.weft", dns.TypeAAAA); m.Rcode != dns.RcodeSuccess {
		t.Error(show(m))
	}
	if w.count() != 0 {
		t.Errorf("asked of others: %v", w.asked)
	}
}

// TestNames: a mesh that does not answer in time is a failure, not "no such name".
func TestNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _, end := newWorld(t, Config{Zones: []string{"weft"}, Names: func(ctx context.Context, _ string) ([]netip.Addr, bool) {
			<-ctx.Done()
			return nil, false
		}}, server())
		defer end()
		if m := ask(t, r, "slow.weft", dns.TypeAAAA); m.Rcode != dns.RcodeServerFailure {
			t.Error(show(m))
		}
	})
}

func TestLookup(t *testing.T) {
	r, _, end := newWorld(t, mesh, server("www.example. 100 IN A 198.51.100.1", "www.example. 100 IN AAAA 2001:db9::1"))
	defer end()
	for _, v := range []struct{ name, network, want string }{
		{"www.example", "ip", "[2001:db9::1 198.51.100.1]"},
		{"www.example.", "ip4", "[198.51.100.1]"},
		{"WWW.example", "ip6", "[2001:db9::1]"},
		{"anna.weft", "ip", "[200:1111::a 300:1111::a]"},
		{"192.0.2.7", "ip", "[192.0.2.7]"},
		{"anna.weft", "ip4", "lookup anna.weft: no such host"},
		{"bob.weft", "ip", "lookup bob.weft: no such host"},
		{"no.example", "ip", "lookup no.example: no such host"},
		{"", "ip", "lookup : not a domain name"},
		{strings.Repeat("x", 64) + ".example", "ip", "lookup " + strings.Repeat("x", 64) + ".example: not a domain name"},
		{"www.example", "tcp", "lookup www.example: unknown network tcp"},
	} {
		a, err := r.Lookup(t.Context(), v.name, v.network)
		got := fmt.Sprint(a)
		if err != nil {
			got = err.Error()
		}
		if got != v.want {
			t.Errorf("%s %s: %s, want %s", v.name, v.network, got, v.want)
		}
	}
}

// TestLimiter: a client has its rate, others theirs, and memory is bounded.
func TestLimiter(t *testing.T) {
	l := newLimiter(10)
	now := time.Unix(1e9, 0)
	allowed := func(s string, n int) (passed int) {
		for range n {
			if l.allow(netip.MustParseAddr(s), now) {
				passed++
			}
		}
		return passed
	}
	if n := allowed("192.168.1.2", 100); n != 40 {
		t.Errorf("%d at once, want 40", n)
	}
	if n := allowed("192.168.1.3", 100); n != 40 {
		t.Errorf("another client: %d", n)
	}
	if n := allowed("2001:db8::1", 20) + allowed("2001:db8::2", 100); n != 40 {
		t.Errorf("one /64: %d", n)
	}
	if n := allowed("200:1111::1", 100) + allowed("200:1111::2", 100); n != 80 {
		t.Errorf("two nodes: %d", n)
	}
	if n := allowed("127.0.0.1", 1000); n != 1000 {
		t.Errorf("this machine: %d", n)
	}
	now = now.Add(time.Second)
	if n := allowed("192.168.1.2", 100); n != 10 {
		t.Errorf("a second later: %d, want 10", n)
	}
	for i := range 3 * maxClients {
		l.allow(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), now)
	}
	if len(l.buckets) > maxClients {
		t.Errorf("%d buckets", len(l.buckets))
	}
}

// TestUpstreamForms: what is refused, and that the error names it.
func TestUpstreamForms(t *testing.T) {
	r, _, end := newWorld(t, Config{}, nil)
	defer end()
	pin := "pin-sha256=" + "E9CZ9INDbd+2eRQozYqqbQ2yXLVKB9+xcprMF+44U1g="
	for uri, want := range map[string]string{
		"9.9.9.9":                                         "9.9.9.9:53",
		"2620:fe::fe":                                     "[2620:fe::fe]:53",
		"udp://9.9.9.9":                                   "9.9.9.9:53",
		"udp://[2620:fe::fe]:5353":                        "[2620:fe::fe]:5353",
		"tcp://9.9.9.9":                                   "9.9.9.9:53",
		"tls://9.9.9.9#dns.quad9.net":                     "9.9.9.9:853",
		"tls://9.9.9.9:8853#" + pin:                       "9.9.9.9:8853",
		"tls://9.9.9.9#dns.quad9.net," + pin:              "9.9.9.9:853",
		"https://dns.quad9.net/dns-query@9.9.9.9":         "9.9.9.9:443",
		"https://dns.quad9.net:8443/dns-query@2620:fe::9": "[2620:fe::9]:8443",
		"https://9.9.9.9/dns-query":                       "9.9.9.9:443",
		"":                                                "",
		"dns.example":                                     "",
		"udp://dns.example":                               "",
		"udp://0.0.0.0":                                   "",
		"udp://9.9.9.9:0":                                 "",
		"udp://9.9.9.9:99999":                             "",
		"udp://9.9.9.9/x":                                 "",
		"udp://9.9.9.9#x":                                 "",
		"ftp://9.9.9.9":                                   "",
		"tls://9.9.9.9":                                   "",
		"tls://9.9.9.9#a,b":                               "",
		"tls://9.9.9.9#pin-sha256=abc":                    "",
		"tls://dns.example#dns.example":                   "",
		"https://dns.example/dns-query":                   "",
		"https://dns.example@9.9.9.9":                     "",
		"https://dns.example/dns-query@x":                 "",
		"https://dns.example/q?x=1@9.9.9.9":               "",
		"udp://user@9.9.9.9":                              "",
		"udp://9.9.9.9%25eth0":                            "",
	} {
		u, err := r.parseUpstream(uri)
		if (err == nil) != (want != "") || err == nil && u.address != want {
			t.Errorf("%q: %+v, %v; want %q", uri, u, err, want)
		}
		if err != nil && !strings.Contains(err.Error(), "upstream") {
			t.Errorf("%q: %v", uri, err)
		}
	}
	if err := r.SetUpstreams(slices.Repeat([]string{up1}, maxUpstreams+1)); err == nil {
		t.Error("too many upstreams")
	}
	if _, err := New(Config{Dial: r.cfg.Dial, Log: r.cfg.Log, Zones: []string{"weft"}}); err == nil {
		t.Error("zones without names")
	}
	if _, err := New(Config{}); err == nil {
		t.Error("an empty config")
	}
}
