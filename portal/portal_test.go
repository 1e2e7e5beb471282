package portal

import (
	"bufio"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"weft/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a node with a fixed look.
type world struct {
	mu     sync.Mutex
	status api.Status
	peers  []api.Peer
	routes []api.Route
	lsdb   []api.LSDBEntry
	err    error
	looks  int
	gw     api.Gateway
	guests api.Guests
}

func (w *world) Status(context.Context) (api.Status, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looks++
	return w.status, w.err
}
func (w *world) Peers(context.Context) ([]api.Peer, error) { return w.peers, nil }
func (w *world) Heard(context.Context) ([]api.Heard, error) {
	return []api.Heard{{ID: "abcd", Interface: "eth0"}}, nil
}
func (w *world) Routes(context.Context) ([]api.Route, error)        { return w.routes, nil }
func (w *world) LSDB(context.Context) ([]api.LSDBEntry, error)      { return w.lsdb, nil }
func (w *world) Events(context.Context) iter.Seq2[api.Event, error] { panic("not asked for") }

func (w *world) Gateway(context.Context) (api.Gateway, error) { return w.gw, nil }
func (w *world) Guests(context.Context) (api.Guests, error)   { return w.guests, nil }
func (w *world) Meter(context.Context) (api.Meter, error) {
	return api.Meter{Sessions: []api.MeterSession{{RecvBps: 16000, SentBps: 8000}}}, nil
}

func link(a, b string) (x, y api.LSDBNeighbour) {
	return api.LSDBNeighbour{ID: b, TwoWay: true}, api.LSDBNeighbour{ID: a, TwoWay: true}
}

// network makes n nodes, the first of which is self, joined as a random tree
// and some more links.
func network(n int) []api.LSDBEntry {
	r := rand.New(rand.NewPCG(1, 2))
	nodes := make([]api.LSDBEntry, n)
	for i := range nodes {
		nodes[i] = api.LSDBEntry{ID: fmt.Sprintf("%016x", i+1), Address: netip.MustParseAddr("200::1")}
	}
	join := func(i, j int) {
		for _, l := range nodes[i].Neighbours {
			if l.ID == nodes[j].ID {
				return
			}
		}
		x, y := link(nodes[i].ID, nodes[j].ID)
		nodes[i].Neighbours = append(nodes[i].Neighbours, x)
		nodes[j].Neighbours = append(nodes[j].Neighbours, y)
	}
	for i := 1; i < n; i++ {
		join(i, r.IntN(i))
		if i%3 == 0 && i > 3 {
			join(i, i-2)
		}
	}
	return nodes
}

func some() *world {
	lsdb := network(6)
	lsdb[1].Name = `<script>alert("x")</script>`
	return &world{
		status: api.Status{Version: "1.2", ID: lsdb[0].ID, Name: "roof", Address: netip.MustParseAddr("200::1"), Mode: "tun", TUN: "weft0", Counters: api.Counters{Nodes: 6, Routes: 5}},
		peers:  []api.Peer{{ID: lsdb[1].ID, Name: lsdb[1].Name, State: "up", Endpoint: "[fe80::1]:7117", RTTUs: 1500}, {URI: "udp://h:1", State: "connecting", LastError: `no answer <b>`}},
		routes: []api.Route{{ID: lsdb[2].ID, Name: "shed", Address: netip.MustParseAddr("200::3"), NextHop: lsdb[1].ID, Hops: 2, CostUs: 2500, Price: 7}},
		lsdb:   lsdb,
	}
}

func get(t *testing.T, h http.Handler, host, path string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest("GET", path, nil)
	r.Host = host
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

func TestPage(t *testing.T) {
	h := Handler(some())
	rec := get(t, h, "127.0.0.1:7118", "/")
	body := rec.Body.String()
	if rec.Code != 200 || !strings.HasPrefix(rec.Header().Get("Content-Type"), "text/html") {
		t.Fatalf("%d %s", rec.Code, body)
	}
	for _, want := range []string{"<title>roof – Weft</title>", "200::1", "weft0", "1.50 ms", "shed", "2.50 ms", "udp://h:1", "no answer &lt;b&gt;", "<svg class=\"map\"", "abcd on eth0", "http-equiv=\"refresh\"", "&lt;script&gt;"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Contains(body, "<script>alert") || strings.Contains(body, "no answer <b>") {
		t.Error("a name chosen by another node became markup")
	}
	if strings.Contains(body, "ZgotmplZ") || strings.Contains(body, "style=") || strings.Contains(body, "onclick") {
		t.Error("the page holds what its policy forbids")
	}
	csp := rec.Header().Get("Content-Security-Policy")
	if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
		t.Errorf("policy %q", csp)
	}
	for _, path := range []string{"/style.css", "/live.js"} {
		if rec := get(t, h, "localhost", path); rec.Code != 200 || rec.Body.Len() < 100 {
			t.Errorf("%s: %d", path, rec.Code)
		}
		if !strings.Contains(body, `"`+path+`"`) {
			t.Errorf("the page does not load %s", path)
		}
	}
	if rec := get(t, h, "localhost", "/nothing"); rec.Code != 404 {
		t.Errorf("/nothing: %d", rec.Code)
	}
	r := httptest.NewRequest("POST", "/", nil)
	r.Host = "localhost"
	post := httptest.NewRecorder()
	h.ServeHTTP(post, r)
	if post.Code != 405 {
		t.Errorf("POST: %d", post.Code)
	}

	// What browsers mend silently is still a mistake: the drawing is well formed.
	svg := body[strings.Index(body, "<svg class=\"map\""):]
	svg = svg[:strings.Index(svg, "</svg>")+len("</svg>")]
	d := xml.NewDecoder(strings.NewReader(svg))
	for {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("the map: %v\n%s", err, svg)
		}
	}
}

// TestHosts: a name that is not this device's own is refused, whatever it
// points at.
func TestHosts(t *testing.T) {
	h := Handler(some())
	for host, ok := range map[string]bool{
		"localhost": true, "LOCALHOST:7118": true, "127.0.0.1:7118": true, "[::1]:7118": true, "[200:1::2]:7118": true, "192.168.1.1": true,
		"evil.example": false, "evil.example:7118": false, "localhost.evil.example": false, "": false, "127.0.0.1.nip.io": false, "xlocalhost": false,
	} {
		for _, path := range []string{"/", "/live", "/live.js"} {
			if path == "/live" && ok {
				continue // does not end by itself
			}
			rec := get(t, h, host, path)
			if (rec.Code == 200) != ok || !ok && strings.Contains(rec.Body.String(), "200::1") {
				t.Errorf("host %q, %s: %d", host, path, rec.Code)
			}
		}
	}
}

func TestNodeInTrouble(t *testing.T) {
	w := some()
	w.err = api.Errorf(api.CodeInternal, "the <disk> is full").WithHint("empty it")
	rec := get(t, Handler(w), "localhost", "/")
	if body := rec.Body.String(); rec.Code != 200 || !strings.Contains(body, "the &lt;disk&gt; is full") || !strings.Contains(body, "empty it") {
		t.Errorf("%d %s", rec.Code, body)
	}
	rec = get(t, Handler(&world{}), "localhost", "/")
	if body := rec.Body.String(); rec.Code != 200 || !strings.Contains(body, "No neighbour yet") || !strings.Contains(body, "No other node") {
		t.Errorf("a node without anything: %d %s", rec.Code, body)
	}
}

// TestLive follows the page through a change, and sees that what does not
// change is not sent, and that a crowd of pages is one look a second.
func TestLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := some()
		h := Handler(w)
		ctx, cancel := context.WithCancel(t.Context())
		open := func() (*bufio.Scanner, *httptest.ResponseRecorder) {
			pr, pw := io.Pipe()
			rec := httptest.NewRecorder()
			r := httptest.NewRequestWithContext(ctx, "GET", "/live", nil)
			r.Host = "localhost"
			go func() {
				h.ServeHTTP(&pipeWriter{rec, pw}, r)
				pw.Close()
			}()
			s := bufio.NewScanner(pr)
			s.Buffer(nil, 1<<20)
			return s, rec
		}
		next := func(s *bufio.Scanner) string {
			for s.Scan() {
				if text, ok := strings.CutPrefix(s.Text(), "data: "); ok {
					var html string
					if err := json.Unmarshal([]byte(text), &html); err != nil {
						t.Fatal(err)
					}
					return html
				}
			}
			return ""
		}
		s, _ := open()
		if html := next(s); !strings.Contains(html, "shed") || strings.Contains(html, "<html") {
			t.Errorf("first: %s", html)
		}
		var crowd []*bufio.Scanner
		for range maxStreams - 1 {
			s, _ := open()
			crowd = append(crowd, s)
		}
		for _, s := range crowd {
			next(s)
		}
		if rec := get(t, h, "localhost", "/live"); rec.Code != http.StatusServiceUnavailable {
			t.Errorf("one page too many: %d", rec.Code)
		}
		for _, s := range crowd {
			go func() {
				for s.Scan() {
				}
			}()
		}
		time.Sleep(10 * time.Second)
		w.mu.Lock()
		if w.looks > 12 {
			t.Errorf("%d looks in 10 s for %d pages", w.looks, maxStreams)
		}
		w.status.Name = "cellar"
		w.mu.Unlock()
		for html := next(s); !strings.Contains(html, "cellar"); html = next(s) { // rates change at first
			if html == "" {
				t.Fatal("the stream ended")
			}
		}
		cancel()
		for s.Scan() {
		}
	})
}

type pipeWriter struct {
	*httptest.ResponseRecorder
	w io.Writer
}

func (p *pipeWriter) Write(b []byte) (int, error) { return p.w.Write(b) }
func (p *pipeWriter) Flush()                      {}

func TestGone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := some()
	w.err = errors.New("cancelled")
	r := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
	r.Host = "localhost"
	h := Handler(w)
	h.ServeHTTP(httptest.NewRecorder(), r)
	w.err = nil
	if rec := get(t, h, "localhost", "/"); !strings.Contains(rec.Body.String(), "shed") {
		t.Error("a reader that left spoils the page of the next")
	}
}

func TestDraw(t *testing.T) {
	for _, n := range []int{0, 1, 2, 6, 40, maxNodes, maxNodes + 1, 2000} {
		nodes := network(n)
		pic := draw(fmt.Sprintf("%016x", 1), "me", nodes)
		if want := max(1, min(n, maxNodes)); len(pic.Nodes) != want || pic.More != max(n-maxNodes, 0) {
			t.Errorf("%d nodes: %d drawn, %d more", n, len(pic.Nodes), pic.More)
		}
		seen := map[[2]float64]bool{}
		for i, d := range pic.Nodes {
			if d.X < margin-1 || d.X > width-margin+1 || d.Y < margin-1 || d.Y > height-margin+1 {
				t.Errorf("%d nodes: dot %d lies outside at %v, %v", n, i, d.X, d.Y)
			}
			if at := [2]float64{d.X, d.Y}; seen[at] {
				t.Errorf("%d nodes: two dots at %v", n, at)
			} else {
				seen[at] = true
			}
		}
		tree := 0
		for _, l := range pic.Lines {
			if l.Class == "tree" {
				tree++
			}
		}
		if tree != len(pic.Nodes)-1 {
			t.Errorf("%d nodes: %d links in the tree of %d dots", n, tree, len(pic.Nodes))
		}
	}

	// A link that only one end lists, and a node that nobody reaches, are not drawn.
	lsdb := network(3)
	lsdb[0].Neighbours = append(lsdb[0].Neighbours, api.LSDBNeighbour{ID: "liar"})
	lsdb = append(lsdb, api.LSDBEntry{ID: "liar", Neighbours: []api.LSDBNeighbour{{ID: lsdb[0].ID}}})
	if pic := draw(lsdb[0].ID, "", lsdb); len(pic.Nodes) != 3 || pic.More != 1 {
		t.Errorf("%d drawn, %d more", len(pic.Nodes), pic.More)
	}
}

// TestLargeNetwork: the page stays small, whatever the network.
func TestLargeNetwork(t *testing.T) {
	w := some()
	w.lsdb = network(5000)
	for _, n := range w.lsdb {
		w.routes = append(w.routes, api.Route{ID: n.ID, Address: n.Address})
		w.peers = append(w.peers, api.Peer{ID: n.ID})
	}
	if rec := get(t, Handler(w), "localhost", "/"); rec.Body.Len() > 300_000 {
		t.Errorf("the page has %d bytes", rec.Body.Len())
	}
}

func TestHistory(t *testing.T) {
	var h history
	now := time.Unix(1e9, 0)
	for i := range 200 {
		h.add(now.Add(time.Duration(i)*time.Second), uint64(i)*2000, uint64(i)*1000)
	}
	g := h.graph()
	if n := len(strings.Fields(g.In)); n != samples || g.InRate != "2.0 kB/s" || g.OutRate != "1.0 kB/s" {
		t.Errorf("%d points, %s in, %s out", n, g.InRate, g.OutRate)
	}
	if !strings.HasPrefix(g.In, "0.0,1.0 ") || !strings.HasSuffix(g.In, "240.0,1.0 ") || !strings.HasSuffix(g.Out, "240.0,20.0 ") {
		t.Errorf("in %q, out %q", g.In, g.Out)
	}
	h.add(now.Add(201*time.Second), 0, 0) // the node started anew
	h.add(now.Add(202*time.Second), 10, 10)
	if g := h.graph(); g.InRate != "10 B/s" {
		t.Errorf("after a restart: %s", g.InRate)
	}
	h.add(now.Add(time.Hour), 20, 20)
	if g := h.graph(); len(strings.Fields(g.In)) != 1 {
		t.Error("old rates stand beside new ones")
	}
}

// TestSharing looks at the internet in the states that it can be in.
func TestSharing(t *testing.T) {
	w := some()
	w.gw.Use.State = "off"
	show := func(want ...string) {
		t.Helper()
		body := get(t, Handler(w), "localhost", "/").Body.String()
		for _, s := range want {
			if !strings.Contains(body, s) {
				t.Errorf("the page lacks %q", s)
			}
		}
		if strings.Contains(body, "<b>evil</b>") || strings.Contains(body, "style=") {
			t.Error("a name chosen by another node became markup")
		}
	}
	show("From no gateway", "weft gateway offer")
	w.gw.Use = api.GatewayUse{State: "up", Name: "<b>evil</b>", Price: 104858, Whole: true, Since: time.Now(), Standby: "shed",
		Candidates: []api.GatewayCandidate{{Name: "shed", Offer: "IPv4; free", State: "in reserve", RTTUs: 1500}, {Name: "far", State: "unsuitable", Refused: "too dear"}}}
	show("&lt;b&gt;evil&lt;/b&gt;", "0.1 credits/GB", "the whole device", "shed stands by", "in reserve", "unsuitable: too dear", "through gateways", "in 2.0 kB/s", "out 1.0 kB/s")
	w.gw.Use = api.GatewayUse{State: "searching", Why: "nobody offers any"}
	w.gw.Offer = api.GatewayOffer{On: true, Why: "no line"}
	show("searching: nobody offers any", "not now: no line")
	w.gw.Offer = api.GatewayOffer{On: true, Active: true, Line: "eth0", DownBps: 40e6}
	show("line eth0 is shared: free, 40 Mbit/s down, no limit up", "Nobody uses it yet")
	w.gw.Clients = []api.GatewayClient{{Name: "roof", IPv4: netip.MustParseAddr("100.64.0.9"), DownBytes: 5e6, Flows: 3}}
	w.guests = api.Guests{On: true, Interface: "br-guest", Clients: []api.Guest{{}, {}}}
	show("100.64.0.9", "5.0 MB", "br-guest: 2")
}
