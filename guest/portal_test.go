package guest

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// get asks the portal as a device at from, which thinks that it talks to u.
func get(t testing.TB, g *Guests, from netip.Addr, method, u, body string, head ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, u, strings.NewReader(body))
	r.RequestURI = ""
	if i, err := url.Parse(u); err == nil {
		r.URL = &url.URL{Path: i.Path, RawQuery: i.RawQuery} // as a server sees it
	}
	if method == "POST" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(head); i += 2 {
		r.Header.Set(head[i], head[i+1])
	}
	r.RemoteAddr = netip.AddrPortFrom(from, 5555).String()
	w := httptest.NewRecorder()
	g.Handler().ServeHTTP(w, r)
	res := w.Result()
	if cc := res.Header.Get("Cache-Control"); !strings.Contains(cc, "no-store") {
		t.Errorf("%s %s may be cached: %q", method, u, cc)
	}
	if len(res.Cookies()) > 0 {
		t.Errorf("%s %s sets a cookie", method, u)
	}
	return res
}

func text(t testing.TB, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// probes are the questions of operating systems, whole, and what each takes for a yes.
var probes = []struct {
	url, body string
	status    int
}{
	{"http://connectivitycheck.gstatic.com/generate_204", "", 204},
	{"http://www.google.com/gen_204", "", 204},
	{"http://captive.apple.com/hotspot-detect.html", "<HTML><HEAD><TITLE>Success</TITLE></HEAD><BODY>Success</BODY></HTML>", 200},
	{"http://www.apple.com/library/test/success.html", "<HTML><HEAD><TITLE>Success</TITLE></HEAD><BODY>Success</BODY></HTML>", 200},
	{"http://www.msftconnecttest.com/connecttest.txt", "Microsoft Connect Test", 200},
	{"http://www.msftncsi.com/ncsi.txt", "Microsoft NCSI", 200},
	{"http://detectportal.firefox.com/success.txt?ipv4", "success\n", 200},
	{"http://detectportal.firefox.com/canonical.html", `<meta http-equiv="refresh" content="0;url=https://support.mozilla.org/kb/captive-portal"/>`, 200},
	{"http://nmcheck.gnome.org/check_network_status.txt", "NetworkManager is online\n", 200},
}

func TestProbes(t *testing.T) {
	c := newClock()
	g, _ := opened(t, c, nil)
	for _, p := range append(probes, probes[0]) {
		r := get(t, g, addrA, "GET", p.url, "")
		if r.StatusCode != 302 || r.Header.Get("Location") != "http://10.1.2.1/" {
			t.Errorf("%s while captive: %d %q", p.url, r.StatusCode, r.Header.Get("Location"))
		}
	}
	if r := get(t, g, addrA, "GET", "http://www.msftconnecttest.com/redirect", ""); r.StatusCode != 302 {
		t.Errorf("Windows' browser: %d", r.StatusCode)
	}
	if r := get(t, g, addrA, "POST", "http://bank.example/login", "secret=1"); r.StatusCode != 511 {
		t.Errorf("a form that was meant for others: %d", r.StatusCode)
	}
	if r := get(t, g, addrA, "POST", "http://10.1.2.1/stay", ""); r.StatusCode != 303 || r.Header.Get("Location") != "/" {
		t.Errorf("stay: %d", r.StatusCode)
	}
	for _, p := range probes {
		for _, method := range []string{"GET", "HEAD"} {
			r := get(t, g, addrA, method, p.url, "")
			if body := text(t, r); r.StatusCode != p.status || method == "GET" && body != p.body || method == "HEAD" && body != "" {
				t.Errorf("%s %s of one that stays: %d %q", method, p.url, r.StatusCode, body)
			}
		}
		if r := get(t, g, addrB, "GET", p.url, ""); r.StatusCode != 302 {
			t.Errorf("%s of another device: %d", p.url, r.StatusCode)
		}
	}
	if r := get(t, g, addrA, "GET", "http://example.com/", ""); r.StatusCode != 302 {
		t.Errorf("another page of one that stays: %d", r.StatusCode)
	}
}

func TestPage(t *testing.T) {
	c := newClock()
	g, _ := opened(t, c, func(c *Config) { c.Name, c.Welcome = `<b>"Fonte"`, "Ask Ana & Bo" })
	v := create(t, g.store, Spec{Minutes: 90, Bytes: 2e9})
	page := func(lang string) string {
		r := get(t, g, addrA, "GET", "http://10.1.2.1/", "", "Accept-Language", lang)
		if r.StatusCode != 200 || r.Header.Get("Content-Type") != "text/html; charset=utf-8" {
			t.Errorf("%d %v", r.StatusCode, r.Header)
		}
		return text(t, r)
	}
	p := page("")
	for _, want := range []string{"&lt;b&gt;&#34;Fonte&#34;", "Ask Ana &amp; Bo", `name="code"`, "Stay without internet", "http://10.1.2.1/", "no way to the internet", `lang="en"`} {
		if !strings.Contains(p, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Contains(p, "<script") || strings.Contains(p, "src=") || strings.Contains(p, "@import") {
		t.Error("the page needs more than HTML")
	}
	if len(p) > 5000 {
		t.Errorf("the page has %d bytes", len(p))
	}
	for lang, want := range map[string]string{"es-AR,es;q=0.9,en;q=0.8": "Código del vale", "de": "Gutscheincode", "pt, fr;q=0.5, en;q=0.1": "Code du bon", "zz": "Voucher code"} {
		if !strings.Contains(page(lang), want) {
			t.Errorf("%s: no %q", lang, want)
		}
	}
	g.SetUplink(true, false)
	if strings.Contains(page("en"), "no way to the internet") {
		t.Error("there is a way")
	}
	r := get(t, g, addrA, "POST", "http://10.1.2.1/voucher", "code=%3Cscript%3E")
	if b := text(t, r); !strings.Contains(b, "No voucher has this code") || strings.Contains(b, "script>") {
		t.Errorf("wrong code: %s", b)
	}
	if r := get(t, g, addrA, "POST", "http://10.1.2.1/voucher", "code="+v.Code); r.StatusCode != 303 {
		t.Errorf("right code: %d %s", r.StatusCode, text(t, r))
	}
	c.add(30 * time.Minute)
	if p = page("en"); !strings.Contains(p, "Time left: 60 min") || !strings.Contains(p, `width="67%"`) || !strings.Contains(p, "Data left: 2.0 GB") || strings.Contains(p, "Stay without") {
		t.Errorf("after login: %s", p)
	}
	c.add(time.Hour)
	tick(t, g)
	if p = page("en"); !strings.Contains(p, "used up") || !strings.Contains(p, `name="code"`) {
		t.Errorf("after the end: %s", p)
	}
	if r := get(t, g, netip.MustParseAddr("10.1.2.77"), "GET", "http://10.1.2.1/", ""); r.StatusCode != 403 {
		t.Errorf("a stranger: %d", r.StatusCode)
	}
	for range 6 {
		r = get(t, g, addrA, "POST", "http://10.1.2.1/voucher", "code=NO")
	}
	if r.StatusCode != 429 {
		t.Errorf("one that guesses: %d", r.StatusCode)
	}
	if r := get(t, g, addrA, "POST", "http://10.1.2.1/voucher", "code="+strings.Repeat("A", 2*maxBody)); r.StatusCode != 400 {
		t.Errorf("a form that is too large: %d", r.StatusCode)
	}
	if r := get(t, g, addrA, "GET", "http://10.1.2.1/voucher", ""); r.StatusCode != 303 {
		t.Errorf("reload of a form: %d", r.StatusCode)
	}
}

func TestCaptiveAPI(t *testing.T) {
	c := newClock()
	g, _ := opened(t, c, func(c *Config) { c.Venue = "https://fonte.example/" })
	ask := func() map[string]any {
		r := get(t, g, addrA, "GET", "http://10.1.2.1/captive/api", "")
		if r.Header.Get("Content-Type") != "application/captive+json" || !strings.Contains(r.Header.Get("Cache-Control"), "private") {
			t.Errorf("%v", r.Header)
		}
		var m map[string]any
		if err := json.NewDecoder(r.Body).Decode(&m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := ask()
	if m["captive"] != true || m["user-portal-url"] != "http://10.1.2.1/" || m["venue-info-url"] != "https://fonte.example/" || m["can-extend-session"] != true || m["seconds-remaining"] != nil {
		t.Errorf("%v", m)
	}
	v := create(t, g.store, Spec{Minutes: 2, Bytes: 5000})
	if _, err := g.desk.redeem(addrA, v.Code); err != nil {
		t.Fatal(err)
	}
	c.add(30 * time.Second)
	if m = ask(); m["captive"] != false || m["seconds-remaining"] != 90.0 || m["bytes-remaining"] != 5000.0 {
		t.Errorf("%v", m)
	}
}

// TestWords: no language lacks a text, and amounts go in once.
func TestWords(t *testing.T) {
	for _, w := range []words{english(), spanish(), german(), french()} {
		b, err := json.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]string
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatal(err)
		}
		for k, s := range m {
			want := 0
			if k == "Left" || k == "BytesLeft" {
				want = 1
			}
			if s == "" || strings.Count(s, "%s") != want {
				t.Errorf("%s: %q", k, s)
			}
		}
	}
}

func TestFloodIsTurnedAway(t *testing.T) {
	g, _ := opened(t, newClock(), nil)
	busy := false
	for range 5 * maxRequests {
		busy = busy || get(t, g, addrA, "GET", "http://10.1.2.1/", "").StatusCode == 503
	}
	if !busy {
		t.Error("no end to it")
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	b := newBounded(nil)
	a := netip.MustParseAddr("10.1.2.3")
	for range maxConnsPerAddr {
		if !b.enter(a) {
			t.Fatal("too few")
		}
	}
	if b.enter(a) {
		t.Error("too many of one")
	}
	n := maxConnsPerAddr
	for b.enter(netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)})) {
		n++
	}
	if n != maxConns {
		t.Errorf("%d connections", n)
	}
	x, y := net.Pipe()
	defer y.Close()
	c := &boundedConn{Conn: x, leave: func() { b.leave(a) }}
	_, _ = c.Close(), c.Close()
	if b.each[a] != maxConnsPerAddr-1 || !b.enter(a) {
		t.Error("closing frees one place, once")
	}
}

func TestConfig(t *testing.T) {
	c := newClock()
	bad := map[string]func(*Config){
		"interface":    func(c *Config) { c.Interface = "../x" },
		"folder":       func(c *Config) { c.StateDir = "" },
		"/64":          func(c *Config) { c.Prefix = netip.MustParsePrefix("300::/63") },
		"/16 and":      func(c *Config) { c.Range = netip.MustParsePrefix("10.0.0.0/8") },
		"private":      func(c *Config) { c.Range = netip.MustParsePrefix("8.8.8.0/24") },
		"leave":        func(c *Config) { c.Out = nil },
		"cannot leave": func(c *Config) { c.Out = []string{"br-guest"} },
		"MTU":          func(c *Config) { c.MTU = 900 },
		"dhcp":         func(c *Config) { c.DHCP = "isc" },
		"access":       func(c *Config) { c.Access = "free" },
		"mesh":         func(c *Config) { c.Mesh = "open" },
		"different":    func(c *Config) { c.PortalPort = 53 },
		"names of":     func(c *Config) { c.Host = "a b" },
		"session":      func(c *Config) { c.Session = time.Second },
		"service":      func(c *Config) { c.Services = []Port{{"sctp", 1}} },
		"or both":      func(c *Config) { c.Prefix, c.Range = netip.Prefix{}, netip.Prefix{} },
	}
	for want, change := range bad {
		cfg := testConfig(t, c)
		change(&cfg)
		if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func FuzzAcceptLanguage(f *testing.F) {
	f.Add("es-AR,es;q=0.9,en;q=0.8")
	f.Add(strings.Repeat("de;q=NaN,", 40))
	f.Fuzz(func(t *testing.T, s string) {
		lang, w := wordsFor(s)
		if !slices.Contains([]string{"en", "es", "de", "fr"}, lang) || w.What == "" {
			t.Fatal(lang)
		}
	})
}

func FuzzPortal(f *testing.F) {
	f.Add("GET", "/", "10.1.2.1", "", "en")
	f.Add("POST", "/voucher", "10.1.2.1", "code=ABCDE-FGHJK", "de")
	f.Add("POST", "/stay", "[301:1:2:3::1]:80", "", "")
	f.Add("GET", "/generate_204", "connectivitycheck.gstatic.com", "", "")
	f.Add("PUT", "//x/../y", "[", "", "")
	c := newClock()
	g, gate := opened(f, c, nil)
	create(f, g.store, Spec{})
	f.Fuzz(func(t *testing.T, method, path, host, body, lang string) {
		c.add(time.Second)
		gate.t = t
		r := &http.Request{Method: method, URL: &url.URL{Path: path}, Host: host, Body: io.NopCloser(strings.NewReader(body)), Header: http.Header{
			"Accept-Language": {lang}, "Content-Type": {"application/x-www-form-urlencoded"}}, RemoteAddr: "10.1.2.10:5", Proto: "HTTP/1.1"}
		w := httptest.NewRecorder()
		g.portal.limit.SetBurst(1 << 30)
		g.Handler().ServeHTTP(w, r)
		if w.Code >= 500 && w.Code != 511 && w.Code != 503 {
			t.Fatalf("%d: %s", w.Code, w.Body)
		}
		if l := w.Header().Get("Location"); l != "" && l != "/" && l != "http://10.1.2.1/" {
			t.Fatalf("sent to %q", l)
		}
		if len(gate.in) > 0 {
			t.Fatal("guessed")
		}
	})
}
