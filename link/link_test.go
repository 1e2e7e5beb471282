package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/forward"
	"weft/ident"
	"weft/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is a Manager with a handler that keeps what it saw.
type node struct {
	t     testing.TB
	agent *ident.Agent
	plane *forward.Plane
	m     *Manager
	stop  func()

	mu       sync.Mutex
	cond     *sync.Cond
	events   []event
	packets  [][]byte
	onUp     func(*Link)
	onCtl    func(l *Link, class byte, msg []byte)
	linkOpen map[uint32]bool
}

type event struct {
	kind   string // up, changed, down, control
	link   *Link
	reason error
	class  byte
	msg    string
}

func (n *node) add(e event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if (e.kind == "up") == n.linkOpen[e.link.ID()] {
		n.t.Errorf("%s of link %d, open=%v", e.kind, e.link.ID(), n.linkOpen[e.link.ID()])
	}
	n.linkOpen[e.link.ID()] = e.kind != "down"
	n.events = append(n.events, e)
	n.cond.Broadcast()
}

func (n *node) LinkUp(l *Link) {
	n.add(event{kind: "up", link: l})
	if n.onUp != nil {
		n.onUp(l)
	}
}
func (n *node) LinkChanged(l *Link)         { n.add(event{kind: "changed", link: l}) }
func (n *node) LinkDown(l *Link, err error) { n.add(event{kind: "down", link: l, reason: err}) }
func (n *node) Control(l *Link, class byte, msg []byte) {
	if n.onCtl != nil {
		n.onCtl(l, class, msg)
	}
	n.add(event{kind: "control", link: l, class: class, msg: string(msg)})
}

// NewSink, Deliver and Flush make node the plane's Local.
func (n *node) NewSink() forward.Sink { return n }
func (n *node) Deliver(d []byte, _ *forward.Neighbour) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.packets = append(n.packets, append([]byte(nil), d[wire.HopLen:]...))
	n.cond.Broadcast()
}
func (n *node) Flush() {}

// wait blocks until ok says so about the state; within a bubble or under go test's own time limit.
func (n *node) wait(ok func() bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for !ok() {
		n.cond.Wait()
	}
}

func (n *node) count(kind string) int {
	c := 0
	for _, e := range n.events {
		if e.kind == kind {
			c++
		}
	}
	return c
}

// last returns the newest event of a kind, after waiting for at least want of them.
func (n *node) last(kind string, want int) event {
	var e event
	n.wait(func() bool { return n.count(kind) >= want })
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, x := range n.events {
		if x.kind == kind {
			e = x
		}
	}
	return e
}

func newNode(t testing.TB, change func(*Config)) *node {
	t.Helper()
	n := &node{t: t, linkOpen: map[uint32]bool{}}
	n.cond = sync.NewCond(&n.mu)
	var err error
	if n.agent, err = ident.Generate(); err != nil {
		t.Fatal(err)
	}
	n.build(change)
	return n
}

func (n *node) build(change func(*Config)) {
	n.t.Helper()
	n.plane = forward.New(n.agent.Public().ID(), n)
	cfg := Config{Agent: n.agent, Plane: n.plane, Handler: n}
	if testing.Verbose() {
		cfg.Log = slog.New(slog.NewTextHandler(testWriter{n.t}, &slog.HandlerOptions{Level: slog.LevelDebug})).With("self", n.agent.Public().ID())
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if n.m, err = New(cfg); err != nil {
		n.t.Fatal(err)
	}
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// start runs Serve until the test ends or stop is called.
func (n *node) start() {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.m.Serve(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Errorf("Serve: %v", err)
		}
	})
	n.t.Cleanup(n.stop)
}

// listening waits until the node's listener of a scheme is bound and returns its address on the loopback.
func (n *node) listening(scheme string) string {
	for {
		for _, l := range n.m.Listeners() {
			if strings.HasPrefix(l.URI, scheme) {
				path := ""
				if scheme == "wss" {
					path = "/link"
				}
				return fmt.Sprintf("%s://127.0.0.1:%d%s", scheme, l.Port, path)
			}
		}
		time.Sleep(time.Millisecond) // a real socket of a real system: there is nothing to wait on
	}
}

func (n *node) key() ident.PublicKey { return n.agent.Public() }

func listen(uris ...string) func(*Config) {
	return func(c *Config) { c.Listen = uris }
}

// Every scheme carries a link: control messages in order in both directions, probes, data.
func TestConformance(t *testing.T) {
	for _, scheme := range []string{"udp", "tls", "wss"} {
		t.Run(scheme, func(t *testing.T) {
			uri := scheme + "://127.0.0.1:0"
			if scheme == "wss" {
				uri += "/link"
			}
			a, b := newNode(t, listen(uri)), newNode(t, nil)
			a.start()
			b.start()
			if err := b.m.AddPeer(Peer{URI: a.listening(scheme)}); err != nil {
				t.Fatal(err)
			}
			conformance(t, a, b)
			if got := b.m.Peers()[0]; got.State != PeerConnected || got.Key != a.key() || got.Error != "" {
				t.Errorf("peer status %+v", got)
			}
			if mtu := a.m.Links()[0].MTU(); scheme != "udp" && mtu != 1420 {
				t.Errorf("MTU of a stream is %d", mtu)
			}
			// Leaving says so.
			b.stop()
			if e := a.last("down", 1); !hasCode(e.reason, codeLeaving) || !strings.Contains(e.reason.Error(), "stopping") {
				t.Errorf("the neighbour's good-bye arrived as %v", e.reason)
			}
		})
	}
}

// conformance checks a link that is about to come up between two nodes.
func conformance(t *testing.T, a, b *node) {
	t.Helper()
	la, lb := a.last("up", 1).link, b.last("up", 1).link
	if la.Peer() != b.key() || lb.Peer() != a.key() {
		t.Fatalf("peers are %v and %v", la.Peer(), lb.Peer())
	}
	for _, l := range []*Link{la, lb} {
		if l.RTT() <= 0 || l.Cost() < 400 || l.MTU() < 1200 {
			t.Errorf("link: RTT %v, cost %d, MTU %d", l.RTT(), l.Cost(), l.MTU())
		}
	}
	const each = 50
	for i := range each {
		for _, class := range []byte{ClassRoute, ClassPay, 5} {
			for _, l := range []*Link{la, lb} {
				if err := l.SendControl(class, []byte(fmt.Sprintf("%d/%d", class, i))); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	big := strings.Repeat("x", maxControl)
	if err := la.SendControl(ClassMeter, []byte(big)); err != nil {
		t.Fatal(err)
	}
	if err := la.SendControl(ClassMeter, []byte(big+"x")); err == nil || !strings.Contains(err.Error(), "65536") {
		t.Errorf("an oversize message gave %v", err)
	}
	if err := la.SendControl(0, []byte("x")); err == nil {
		t.Error("class 0 was accepted")
	}
	a.wait(func() bool { return a.count("control") == 3*each })
	b.wait(func() bool { return b.count("control") == 3*each+1 })
	for _, n := range []*node{a, b} {
		next := map[byte]int{}
		for _, e := range n.events {
			if e.kind != "control" || e.class == ClassMeter {
				continue
			}
			if want := fmt.Sprintf("%d/%d", e.class, next[e.class]); e.msg != want {
				t.Fatalf("message %q, want %q", e.msg, want)
			}
			next[e.class]++
		}
	}
	// Data in both directions.
	for _, d := range []struct {
		from, to *node
		l        *Link
	}{{a, b, la}, {b, a, lb}} {
		d.from.plane.SetTable(forward.Table{d.to.key().ID(): {Primary: d.l.Neighbour()}})
		buf := make([]byte, 3*1000)
		for i := range buf {
			buf[i] = byte(i)
		}
		if err := d.from.plane.Send(d.to.key().ID(), wire.ClassBulk, buf, 1000); err != nil {
			t.Fatal(err)
		}
		d.to.wait(func() bool { return len(d.to.packets) == 3 })
	}
}

func TestCommunity(t *testing.T) {
	key := func(b byte) func(*Config) { return func(c *Config) { c.CommunityKey = [32]byte{b} } }
	for _, c := range []struct {
		name           string
		server, client func(*Config)
		want           string
	}{
		{"members", key(1), key(1), ""},
		{"stranger", key(1), key(0), "this network is closed; ask a member for an invite"},
		{"open node", key(0), key(1), "your network is closed"},
		{"other network", key(1), key(2), "another closed network"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := newNode(t, c.server), newNode(t, c.client)
			a.start()
			b.start()
			if err := b.m.AddPeer(Peer{URI: a.listening("udp")}); err != nil {
				t.Fatal(err)
			}
			if c.want == "" {
				conformance(t, a, b)
				return
			}
			poll(t, "a clear reason at the dialer", func() bool { return strings.Contains(b.m.Peers()[0].Error, c.want) })
			poll(t, "a clear reason at the acceptor", func() bool {
				r := a.m.Refusals()
				return len(r) == 1 && r[0].Key == b.key() && strings.Contains(r[0].Reason, c.want)
			})
			if n := len(a.m.Links()) + len(b.m.Links()); n != 0 {
				t.Errorf("%d links", n)
			}
		})
	}
}

// poll waits on state of a real network for which there is no event.
func poll(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s", what)
		}
	}
}

func TestPinAndSelf(t *testing.T) {
	a, b, other := newNode(t, nil), newNode(t, nil), newNode(t, nil)
	a.start()
	b.start()
	if err := b.m.AddPeer(Peer{URI: a.listening("udp"), Key: other.key()}); err != nil {
		t.Fatal(err)
	}
	poll(t, "refusal of a wrong key", func() bool { return strings.Contains(b.m.Peers()[0].Error, "expected was "+other.key().String()) })
	if err := a.m.AddPeer(Peer{URI: a.listening("udp")}); err != nil {
		t.Fatal(err)
	}
	poll(t, "refusal of ourselves", func() bool { return strings.Contains(a.m.Peers()[0].Error, "this node itself") })
	if err := a.m.AddPeer(Peer{URI: "udp://127.0.0.1:9", Key: a.key()}); !errors.Is(err, errSelf) {
		t.Errorf("a peer with our own key gave %v", err)
	}
}
