package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"weft/ident"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a Backend with a fixed state.
type world struct {
	Hub
	status   Status
	peers    []Peer
	removed  string
	asked    PingRequest
	fw       Firewall
	gw       Gateway
	coop     Coop
	vouchers []Voucher
	err      error
}

func (w *world) Status(context.Context) (Status, error) { return w.status, w.err }
func (w *world) Peers(context.Context) ([]Peer, error)  { return w.peers, w.err }
func (w *world) Heard(context.Context) ([]Heard, error) { return nil, w.err }
func (w *world) Routes(context.Context) ([]Route, error) {
	return []Route{{ID: "r", Price: 1 << 60}}, w.err
}
func (w *world) LSDB(context.Context) ([]LSDBEntry, error) {
	return []LSDBEntry{{ID: "l", Position: &Position{1, 2}}}, w.err
}
func (w *world) Firewall(context.Context) (Firewall, error)   { return w.fw, w.err }
func (w *world) RemovePeer(_ context.Context, p string) error { w.removed = p; return w.err }
func (w *world) SetFirewall(_ context.Context, r FirewallRequest) (Firewall, error) {
	w.fw = Firewall{Groups: r.Groups}
	for _, rule := range r.Rules {
		w.fw.Rules = append(w.fw.Rules, FirewallRule{Rule: rule})
	}
	return w.fw, w.err
}
func (w *world) Trace(_ context.Context, target string) ([]TraceHop, error) {
	return []TraceHop{{ID: "self"}, {ID: target}}, w.err
}
func (w *world) AddPeer(_ context.Context, r PeerRequest) (Peer, error) {
	return Peer{URI: r.URI, Key: r.Key}, w.err
}
func (w *world) Invite(_ context.Context, r InviteRequest) (Invite, error) {
	return Invite{Peers: r.Peers}, w.err
}
func (w *world) Join(_ context.Context, r JoinRequest) (Joined, error) {
	return Joined{Name: r.Link}, w.err
}
func (w *world) Ping(ctx context.Context, r PingRequest) iter.Seq2[PingReply, error] {
	w.asked = r
	return func(yield func(PingReply, error) bool) {
		for i := 1; r.Count == 0 || i <= r.Count; i++ {
			if ctx.Err() != nil || !yield(PingReply{Seq: i, RTTUs: 7}, nil) {
				return
			}
		}
		if w.err != nil {
			yield(PingReply{}, w.err)
		}
	}
}

func key(t *testing.T) ident.PublicKey {
	t.Helper()
	a, err := ident.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return a.Public()
}

// serve runs the API of b on a socket until the test ends.
func serve(t *testing.T, b Backend) (*Client, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "api") // t.TempDir is too long for a socket on some systems
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	log := slog.New(slog.DiscardHandler)
	go func() { done <- Serve(ctx, ln, Handler(b, log), log) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Error("the socket is still there after Serve")
		}
	})
	return NewClient(path), path
}

// TestClientServer calls every method of Backend over the socket and expects
// what the Backend answers directly.
func TestClientServer(t *testing.T) {
	k := key(t)
	w := &world{
		status: Status{Version: "1", Key: k, ID: k.ID().String(), Address: k.Addr(), Subnet: k.Subnet(), Started: time.Unix(1e9, 0).UTC(),
			Counters: Counters{RxBytes: 1<<64 - 1, Dropped: map[string]uint64{"mac": 3}}},
		peers: []Peer{{URI: "udp://[::1]:1", State: "connecting"}, {Key: k, Address: k.Addr(), RTTUs: 5, Loss: 0.25, Since: time.Unix(1e9, 0).UTC()}},
	}
	c, _ := serve(t, w)
	ctx := t.Context()
	same := func(name string, got, want any, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if d := cmp.Diff(want, got, cmpopts.EquateComparable(w.status.Address, w.status.Subnet)); d != "" {
			t.Errorf("%s:\n%s", name, d)
		}
	}
	status, err := c.Status(ctx)
	want := w.status
	want.Listen, want.Sessions = []string{}, []Session{} // never null
	same("Status", status, want, err)
	peers, err := c.Peers(ctx)
	same("Peers", peers, w.peers, err)
	heard, err := c.Heard(ctx)
	same("Heard", heard, []Heard{}, err)
	routes, err := c.Routes(ctx)
	same("Routes", routes, []Route{{ID: "r", Price: 1 << 60}}, err)
	lsdb, err := c.LSDB(ctx)
	same("LSDB", lsdb, []LSDBEntry{{ID: "l", Position: &Position{1, 2}, Neighbours: []LSDBNeighbour{}}}, err)
	hops, err := c.Trace(ctx, "200::1 &x=y")
	same("Trace", hops, []TraceHop{{ID: "self"}, {ID: "200::1 &x=y"}}, err)
	peer, err := c.AddPeer(ctx, PeerRequest{URI: "u", Key: k})
	same("AddPeer", peer, Peer{URI: "u", Key: k}, err)
	same("RemovePeer", w.removed, "", nil)
	same("RemovePeer", nil, nil, c.RemovePeer(ctx, "tls://a?b=c&d"))
	same("RemovePeer", w.removed, "tls://a?b=c&d", nil)
	inv, err := c.Invite(ctx, InviteRequest{Peers: []string{"p"}})
	same("Invite", inv, Invite{Peers: []string{"p"}}, err)
	joined, err := c.Join(ctx, JoinRequest{Link: "weft://join/x"})
	same("Join", joined, Joined{Name: "weft://join/x"}, err)
	groups := map[string][]ident.PublicKey{"g": {k}}
	fw := Firewall{Rules: []FirewallRule{{Rule: "allow tcp 22 from group:g"}}, Groups: groups}
	set, err := c.SetFirewall(ctx, FirewallRequest{Rules: []string{"allow tcp 22 from group:g"}, Groups: groups})
	same("SetFirewall", set, fw, err)
	got, err := c.Firewall(ctx)
	same("Firewall", got, fw, err)
}

func TestPingStream(t *testing.T) {
	w := &world{}
	c, _ := serve(t, w)
	n := 0
	for r, err := range c.Ping(t.Context(), PingRequest{Target: "x", Count: 5}) {
		n++
		if err != nil || r.Seq != n || r.RTTUs != 7 {
			t.Fatalf("reply %d: %+v, %v", n, r, err)
		}
	}
	if n != 5 || w.asked.Target != "x" {
		t.Errorf("%d replies of 5, asked %+v", n, w.asked)
	}

	// Without a count the stream ends when the reader leaves.
	for r := range c.Ping(t.Context(), PingRequest{Target: "x"}) {
		if r.Seq == 100 {
			break
		}
	}

	// An error after some replies reaches the reader with its code.
	w.err = Errorf(CodeTargetUnreachable, "gone").WithHint("wait")
	var last error
	n = 0
	for _, err := range c.Ping(t.Context(), PingRequest{Target: "x", Count: 2}) {
		n++
		last = err
	}
	if e := AsError(last); n != 3 || e.Code != CodeTargetUnreachable || e.Hint != "wait" {
		t.Errorf("after %d values: %v", n, last)
	}
}

func TestEventsOverSocket(t *testing.T) {
	w := &world{}
	c, _ := serve(t, w)
	got := make(chan Event)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e, err := range c.Events(ctx) {
			if err != nil {
				t.Error(err)
				return
			}
			got <- e
		}
	}()
	for { // until the reader is there, events pass it by
		w.Publish(Event{Kind: EventLinkUp, Text: "hello"})
		select {
		case e := <-got:
			if e.Kind != EventLinkUp || e.Text != "hello" || e.Seq == 0 || e.Time.IsZero() {
				t.Errorf("got %+v", e)
			}
			cancel()
			go func() {
				for range got { // what was still on its way
				}
			}()
			<-done
			close(got)
			return
		default:
			runtime.Gosched()
		}
	}
}

func TestErrors(t *testing.T) {
	w := &world{}
	c, path := serve(t, w)
	for code := range codeStatus {
		w.err = fmt.Errorf("while asking: %w", Errorf(code, "no %s", "x").WithHint("do y"))
		_, err := c.Status(t.Context())
		if e := AsError(err); e.Code != code || e.Detail != "no x" || e.Hint != "do y" || e.Status != codeStatus[code] {
			t.Errorf("%s came back as %#v", code, e)
		}
		if !errors.Is(err, &Error{Code: code}) {
			t.Errorf("errors.Is does not see %s", code)
		}
	}
	w.err = errors.New("disk on fire")
	if _, err := c.Routes(t.Context()); AsError(err).Code != CodeInternal || AsError(err).Status != 500 {
		t.Errorf("a plain error came back as %v", err)
	}
	w.err = nil

	raw := func(method, target, body string) (int, string, string) {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: weft\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", method, target, len(body), body)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, resp.Header.Get("Content-Type"), string(b)
	}
	for _, tt := range []struct {
		method, target, body string
		status               int
		want                 string
	}{
		{"POST", "/v1/peers", `{"uri":"x","colour":"red"}`, 400, "colour"},
		{"POST", "/v1/peers", `{"uri":"x"}{}`, 400, "more than one"},
		{"POST", "/v1/peers", `{`, 400, "bad_request"},
		{"POST", "/v1/peers", `"` + strings.Repeat("x", maxBody) + `"`, 400, "too large"},
		{"POST", "/v1/ping", `{"target":"x","count":-1}`, 400, "negative"},
		{"DELETE", "/v1/peers", "", 400, "query parameter peer"},
		{"GET", "/v1/nothing", "", 404, "openapi.json"},
		{"PATCH", "/v1/peers", "", 404, "there is no PATCH"},
	} {
		status, ctype, body := raw(tt.method, tt.target, tt.body)
		if status != tt.status || ctype != "application/problem+json" || !strings.Contains(body, tt.want) {
			t.Errorf("%s %s: %d %s %s, want %d and %q", tt.method, tt.target, status, ctype, body, tt.status, tt.want)
		}
	}
	if status, _, body := raw("GET", "/v1/openapi.json", ""); status != 200 || !json.Valid([]byte(body)) {
		t.Errorf("openapi.json: %d", status)
	}
}

func TestReadOnlyChangesNothing(t *testing.T) {
	h := ReadOnly(&world{}, slog.New(slog.DiscardHandler))
	for _, e := range endpoints {
		r := httptest.NewRequest(e.method, e.path+"?peer=x&target=x", strings.NewReader("{}"))
		ctx, cancel := context.WithCancel(t.Context())
		if e.stream {
			cancel()
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r.WithContext(ctx))
		cancel()
		if e.changes != (rec.Code == 404) {
			t.Errorf("%s %s answers %d", e.method, e.path, rec.Code)
		}
		if e.method != "GET" && !e.changes {
			t.Errorf("%s %s is not GET and is not marked as a change", e.method, e.path)
		}
	}
}

func TestSSE(t *testing.T) {
	rec := httptest.NewRecorder()
	r := httptest.NewRequest("POST", "/v1/ping", strings.NewReader(`{"target":"x","count":2}`))
	r.Header.Set("Accept", "text/event-stream")
	Handler(&world{err: errors.New("stop")}, slog.New(slog.DiscardHandler)).ServeHTTP(rec, r)
	if got := rec.Header().Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("Content-Type %q", got)
	}
	events := strings.Split(strings.TrimSpace(rec.Body.String()), "\n\n")
	if len(events) != 3 || !strings.HasPrefix(events[0], "event: message\ndata: {\"seq\":1,") || !strings.HasPrefix(events[2], "event: problem\ndata: {\"type\":\"urn:weft:error:internal\"") {
		t.Errorf("events: %q", events)
	}
}

func TestListen(t *testing.T) {
	_, path := serve(t, &world{})
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != socketMode && runtime.GOOS != "windows" {
		t.Errorf("socket: %v, %v", fi.Mode(), err)
	}
	_, err := Listen(path)
	if e := AsError(err); e.Code != CodeAlreadyRunning || !strings.Contains(e.Hint, "--state") {
		t.Errorf("a second node on the same socket: %v", err)
	}

	// What a killed node leaves behind is replaced.
	stale := path + "2"
	ln, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	if _, err := NewClient(stale).Status(t.Context()); AsError(err).Code != CodeNotRunning {
		t.Errorf("a dead node's socket: %v", err)
	}
	ln, err = Listen(stale)
	if err != nil {
		t.Fatalf("a dead node's socket is in the way: %v", err)
	}
	ln.Close()

	file := path + "3"
	if err := os.WriteFile(file, []byte("diary"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file); err == nil {
		t.Error("a file that is no socket was replaced")
	}
	if b, _ := os.ReadFile(file); string(b) != "diary" {
		t.Error("the file is gone")
	}
	if _, err := Listen(filepath.Join(t.TempDir(), strings.Repeat("x", 120))); err == nil || !strings.Contains(AsError(err).Hint, "[api]") {
		t.Errorf("a long path: %v", err)
	}
	if _, err := NewClient(path + "4").Status(t.Context()); AsError(err).Code != CodeNotRunning {
		t.Errorf("no node: %v", err)
	}
}

func TestHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h Hub
		ctx, cancel := context.WithCancel(t.Context())
		var got []uint64
		hold := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for e := range h.Events(ctx) {
				got = append(got, e.Seq)
				<-hold
			}
		}()
		synctest.Wait()
		for range 1000 { // the reader is stuck: Publish must not be
			h.Publish(Event{})
		}
		close(hold)
		synctest.Wait()
		h.Publish(Event{})
		synctest.Wait()
		cancel()
		<-done
		if n := len(got); n != hubBuffer+2 || got[0] != 1 || got[n-1] != 1001 {
			t.Errorf("got %d events, %d to %d", n, got[0], got[n-1])
		}
		if len(h.readers) != 0 {
			t.Error("a reader stays after its end")
		}

		ctx, cancel = context.WithCancel(t.Context())
		for range maxReaders {
			go func() {
				for range h.Events(ctx) {
				}
			}()
		}
		synctest.Wait()
		for _, err := range h.Events(ctx) {
			if AsError(err).Code != CodeTooMany {
				t.Errorf("one reader too many: %v", err)
			}
		}
		cancel()
	})
}

func TestParseTarget(t *testing.T) {
	k := key(t)
	for in, want := range map[string]Target{
		k.String():                    {Key: k},
		k.ID().String():               {ID: k.ID()},
		k.Addr().String():             {Addr: k.Addr()},
		"[" + k.Addr().String() + "]": {Addr: k.Addr()},
		" roof ":                      {Name: "roof"},
		"Café":                        {Name: "Café"},
	} {
		if got, err := ParseTarget(in); err != nil || got != want {
			t.Errorf("ParseTarget(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", " ", "1.2.3.4", "2001:db8::1", "fe80::1%eth0", strings.Repeat("x", 64), "\xff"} {
		if got, err := ParseTarget(in); AsError(err).Code != CodeBadTarget {
			t.Errorf("ParseTarget(%q) = %+v, %v", in, got, err)
		}
	}
}

func invitation(t testing.TB) (Invitation, *ident.Agent) {
	a, err := ident.FromSeed(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return Invitation{Inviter: a.Public(), Name: "roof", Expires: time.Unix(2e9, 0), CommunityKey: [32]byte{1, 2, 3},
		Peers: []string{"udp://192.0.2.1:7117", "wss://example.org/weft"}}, a
}

// The golden link that docs/spec/link.md quotes.
const goldenLink = "weft://join/AQHqSmxj4pxSCr71UHsTLsX5lUd2rr6-e5JCHuppFEbSLAAAAAB3NZQAAQIDAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEcm9vZgIUdWRwOi8vMTkyLjAuMi4xOjcxMTcWd3NzOi8vZXhhbXBsZS5vcmcvd2VmdIVZXcedRgG98p2-mHiK8y1oX822ZLVU7dcRts_79J0eyMRbHEAmdr_ugSUAgjIdG9gbCrHwfOxvHp6aatQlNQLPe2na"

func TestInvitation(t *testing.T) {
	v, a := invitation(t)
	sign := func(m []byte) ident.Signature { return a.Sign(ident.DomainInvite, m) }
	now := time.Unix(1.9e9, 0)
	link, err := v.Link(sign)
	if err != nil {
		t.Fatal(err)
	}
	if len(link) > 500 {
		t.Errorf("the link has %d characters, too many for a QR code in a terminal", len(link))
	}
	if link != goldenLink {
		t.Errorf("the format changed: the link is now %s", link)
	}
	got, err := ParseInvitation(" "+link+"\n", now)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(v, got); d != "" {
		t.Error(d)
	}
	open := Invitation{Inviter: a.Public()}
	link2, err := open.Link(sign)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseInvitation(link2, now); err != nil || !cmp.Equal(got, open) {
		t.Errorf("an invitation without anything: %+v, %v", got, err)
	}

	if _, err := ParseInvitation(link, time.Unix(2e9+1, 0)); AsError(err).Code != CodeInviteExpired {
		t.Errorf("a lapsed invitation: %v", err)
	}
	for i := len(LinkPrefix); i < len(link); i++ {
		b := []byte(link)
		b[i] ^= 1
		if _, err := ParseInvitation(string(b), now); AsError(err).Code != CodeInviteInvalid {
			t.Fatalf("a typo at %d: %v", i, err)
		}
		if _, err := ParseInvitation(link[:i], now); AsError(err).Code != CodeInviteInvalid {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	other, err := ident.Generate()
	if err != nil {
		t.Fatal(err)
	}
	forged, err := v.Link(func(m []byte) ident.Signature { return other.Sign(ident.DomainInvite, m) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseInvitation(forged, now); AsError(err).Code != CodeInviteInvalid || !strings.Contains(err.Error(), "signature") {
		t.Errorf("an invitation in another's name: %v", err)
	}

	for name, bad := range map[string]Invitation{
		"many peers": {Peers: make([]string, MaxInvitePeers+1)},
		"long peer":  {Peers: []string{strings.Repeat("x", 201)}},
		"escape":     {Peers: []string{"\x1b[2J"}},
		"empty peer": {Peers: []string{""}},
		"name":       {Name: "\x1b[2J"},
	} {
		if _, err := bad.Link(sign); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// FuzzInvitation: what parses is signed over the very same bytes, so there is
// one link for one invitation.
func FuzzInvitation(f *testing.F) {
	v, a := invitation(f)
	sign := func(m []byte) ident.Signature { return a.Sign(ident.DomainInvite, m) }
	for _, v := range []Invitation{v, {Inviter: a.Public()}} {
		link, err := v.Link(sign)
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(link))
		var body []byte
		v.Link(func(m []byte) ident.Signature { body = bytes.Clone(m); return ident.Signature{} })
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ParseInvitation(string(b), time.Time{})
		v, exp, err := parseInvitation(b)
		if err != nil {
			return
		}
		if exp != 0 {
			v.Expires = time.Unix(int64(exp), 0)
		}
		var again []byte
		if _, err := v.Link(func(m []byte) ident.Signature { again = bytes.Clone(m); return ident.Signature{} }); err != nil {
			t.Fatalf("parsed but cannot be written: %v", err)
		}
		if !bytes.Equal(again, b) {
			t.Fatalf("%x is written again as %x", b, again)
		}
	})
}
