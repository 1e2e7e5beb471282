package link_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/forward"
	"weft/ident"
	"weft/link"
	"weft/link/linktest"
	"weft/wire"
)

// Whole managers in virtual time, on the in-memory network.

type member struct {
	t     *testing.T
	host  *linktest.Host
	agent *ident.Agent
	plane *forward.Plane
	m     *link.Manager
	end   func()

	got, controls atomic.Int64
	slow          chan struct{} // Control waits for it

	mu  sync.Mutex // guards what follows
	log []entry
}

type entry struct {
	at     time.Time
	kind   string
	link   *link.Link
	reason error
}

func (n *member) add(e entry) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e.at = time.Now()
	n.log = append(n.log, e)
	if e.kind == "up" {
		n.plane.SetTable(n.table())
	}
}

// table routes to every neighbour directly.
func (n *member) table() forward.Table {
	t := forward.Table{}
	for _, l := range n.m.Links() {
		t[l.Peer().ID()] = forward.NextHop{Primary: l.Neighbour()}
	}
	return t
}

func (n *member) LinkUp(l *link.Link)              { n.add(entry{kind: "up", link: l}) }
func (n *member) LinkChanged(l *link.Link)         { n.add(entry{kind: "changed", link: l}) }
func (n *member) LinkDown(l *link.Link, err error) { n.add(entry{kind: "down", link: l, reason: err}) }
func (n *member) Control(*link.Link, byte, []byte) {
	n.controls.Add(1)
	if n.slow != nil {
		<-n.slow
	}
}
func (n *member) NewSink() forward.Sink              { return n }
func (n *member) Deliver([]byte, *forward.Neighbour) { n.got.Add(1) }
func (n *member) Flush()                             {}

func (n *member) count(kind string) (c int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.log {
		if e.kind == kind {
			c++
		}
	}
	return c
}

func (n *member) last(kind string) (e entry) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, x := range n.log {
		if x.kind == kind {
			e = x
		}
	}
	return e
}

func (n *member) key() ident.PublicKey { return n.agent.Public() }

// send sends one datagram to a neighbour.
func (n *member) send(to *member) error {
	return n.plane.Send(to.key().ID(), wire.ClassBulk, make([]byte, 200), 200)
}

func start(t *testing.T, h *linktest.Host, agent *ident.Agent, change func(*link.Config)) *member {
	t.Helper()
	n := &member{t: t, host: h, agent: agent}
	if agent == nil {
		var err error
		if n.agent, err = ident.Generate(); err != nil {
			t.Fatal(err)
		}
	}
	n.plane = forward.New(n.key().ID(), n)
	out := io.Discard
	if testing.Verbose() {
		out = io.Writer(os.Stderr)
	}
	cfg := link.Config{
		Agent: n.agent, Plane: n.plane, Handler: n, Underlay: h,
		Log: slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug})).With("self", n.key().ID()),
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if n.m, err = link.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := n.m.Serve(ctx); err != nil {
			t.Errorf("Serve: %v", err)
		}
	}()
	n.end = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	return n
}

func multicast(c *link.Config) { c.Multicast.Enabled = true }

func onPort(port int, peers ...string) func(*link.Config) {
	return func(c *link.Config) {
		c.Listen = []string{fmt.Sprintf("udp://[::]:%d", port)}
		for _, p := range peers {
			c.Peers = append(c.Peers, link.Peer{URI: p})
		}
	}
}

func peerURI(a netip.Addr, port int) string {
	return "udp://" + netip.AddrPortFrom(a, uint16(port)).String()
}

// within fails unless ok comes true in virtual time d; it returns how long that took.
func within(t *testing.T, d time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > d {
			t.Fatalf("not within %v: %s", d, what)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(began)
}

func linked(a, b *member) func() bool {
	return func() bool {
		return a.m.LinkTo(b.key()) != nil && b.m.LinkTo(a.key()) != nil && a.count("up") > 0 && b.count("up") > 0
	}
}

func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

func TestDiscovery(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := linktest.New(1)
		lan := n.Segment(linktest.Quality{Delay: time.Millisecond})
		a := start(t, n.Host(lan), nil, multicast)
		defer a.end()
		time.Sleep(time.Hour) // its beacons are rare by now
		b := start(t, n.Host(lan), nil, multicast)
		defer b.end()
		within(t, 400*time.Millisecond, "two nodes on a LAN find each other", linked(a, b))
		time.Sleep(10 * time.Minute)
		if a.count("up") != 1 || b.count("up") != 1 || a.count("down")+b.count("down") != 0 {
			t.Errorf("ups %d and %d, downs %d and %d", a.count("up"), b.count("up"), a.count("down"), b.count("down"))
		}
		if h := a.m.Heard(); len(h) != 1 || h[0].Key != b.key() || !h[0].Linked || h[0].Error != "" || !h[0].Member {
			t.Errorf("heard %+v", h)
		}
		if l := a.m.Links()[0]; l.MTU() != 1420 || l.Interface() != "eth0" || !strings.HasPrefix(l.Endpoint(), "udp://[fe80::") {
			t.Errorf("link over %s at %s with MTU %d", l.Interface(), l.Endpoint(), l.MTU())
		}
	})
}

// Both ends dial at the same time, at every offset: there is one link, and it never goes.
func TestSimultaneousDials(t *testing.T) {
	for seed := range uint64(12) {
		bubble(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			n := linktest.New(seed)
			lan := n.Segment(linktest.Quality{Delay: time.Duration(r.IntN(30)) * time.Millisecond, Jitter: time.Duration(seed%3) * time.Millisecond})
			ha, hb := n.Host(lan), n.Host(lan)
			both := func(port int, peer string) func(*link.Config) {
				return func(c *link.Config) {
					onPort(port, peer)(c)
					c.Multicast.Enabled = seed%2 == 0
				}
			}
			a := start(t, ha, nil, both(1000, peerURI(hb.Addr(lan), 1000)))
			defer a.end()
			time.Sleep(time.Duration(r.IntN(60)) * time.Millisecond)
			b := start(t, hb, nil, both(1000, peerURI(ha.Addr(lan), 1000)))
			defer b.end()
			within(t, 3*time.Second, "link", linked(a, b))
			time.Sleep(5 * time.Minute)
			// Discovery may trade the routed path for the link-local one, once.
			most := 1
			if seed%2 == 0 {
				most = 2
			}
			for _, x := range []*member{a, b} {
				if x.count("up") > most || x.count("up")-x.count("down") != 1 {
					t.Errorf("seed %d: %d ups, %d downs (%v)", seed, x.count("up"), x.count("down"), x.last("down").reason)
				}
				if p := x.m.Peers()[0]; p.State != link.PeerConnected {
					t.Errorf("seed %d: peer %+v", seed, p)
				}
			}
		})
	}
}

func TestSilence(t *testing.T) {
	pair := func(t *testing.T) (lan *linktest.Segment, a, b *member) {
		n := linktest.New(1)
		lan = n.Segment(linktest.Quality{Delay: 2 * time.Millisecond})
		ha, hb := n.Host(lan), n.Host(lan)
		a = start(t, ha, nil, onPort(1000))
		b = start(t, hb, nil, onPort(1000, peerURI(ha.Addr(lan), 1000)))
		within(t, time.Second, "link", linked(a, b))
		return lan, a, b
	}
	t.Run("under traffic", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			lan, a, b := pair(t)
			defer a.end()
			defer b.end()
			time.Sleep(time.Minute)
			for phase := range 10 { // the pulse is at another point each time
				for range 30 + phase {
					if err := a.send(b); err != nil {
						t.Fatal(err)
					}
					time.Sleep(51 * time.Millisecond)
				}
				lan.Set(linktest.Quality{Silence: true})
				began := time.Now()
				downs := a.count("down")
				within(t, 1600*time.Millisecond, "silence noticed", func() bool {
					_ = a.send(b)
					return a.count("down") > downs
				})
				if d := a.last("down").at.Sub(began); d < 900*time.Millisecond {
					t.Errorf("gave up after only %v", d)
				}
				if len(a.m.Links()) != 0 {
					t.Fatal("link still listed")
				}
				lan.Set(linktest.Quality{Delay: 2 * time.Millisecond})
				ups := a.count("up")
				within(t, 3*time.Second, "link back", func() bool { return a.count("up") > ups && b.m.LinkTo(a.key()) != nil })
				within(t, 5*time.Second, "settled", func() bool { return a.m.LinkTo(b.key()) != nil })
				time.Sleep(3 * time.Second)
			}
		})
	})
	t.Run("idle", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			lan, a, b := pair(t)
			defer a.end()
			defer b.end()
			time.Sleep(time.Minute)
			lan.Set(linktest.Quality{Silence: true})
			within(t, 24*time.Second, "silence noticed", func() bool { return a.count("down") == 1 && b.count("down") == 1 })
			if r := a.last("down").reason.Error(); !strings.Contains(r, "silent") {
				t.Errorf("reason %q", r)
			}
		})
	})
	t.Run("one way", func(t *testing.T) { // traffic that is never answered keeps a link up, and back-and-forth silence is two-sided
		bubble(t, func(t *testing.T) {
			_, a, b := pair(t)
			defer a.end()
			defer b.end()
			for range 600 {
				if err := a.send(b); err != nil {
					t.Fatal(err)
				}
				time.Sleep(50 * time.Millisecond)
			}
			if a.count("down")+b.count("down") != 0 {
				t.Errorf("down: %v", a.last("down").reason)
			}
		})
	})
}

// An idle link is nearly silent.
func TestIdleTraffic(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := linktest.New(1)
		lan := n.Segment(linktest.Quality{Delay: time.Millisecond})
		ha := n.Host(lan)
		a := start(t, ha, nil, onPort(1000))
		defer a.end()
		b := start(t, n.Host(lan), nil, onPort(1000, peerURI(ha.Addr(lan), 1000)))
		defer b.end()
		within(t, time.Second, "link", linked(a, b))
		time.Sleep(time.Minute)
		_, before := n.Traffic()
		const minutes = 30
		time.Sleep(minutes * time.Minute)
		_, after := n.Traffic()
		rate := float64(after-before) * 8 / (minutes * 60) / 2
		t.Logf("%.0f bit/s each way", rate)
		if rate > 100 {
			t.Errorf("an idle link takes %.0f bit/s each way", rate)
		}
		if a.count("down")+b.count("down") != 0 {
			t.Error("the link went down")
		}
	})
}

func TestKilledNeighbour(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := linktest.New(1)
		lan := n.Segment(linktest.Quality{Delay: time.Millisecond})
		ha, hb := n.Host(lan), n.Host(lan)
		a := start(t, ha, nil, onPort(1000, peerURI(hb.Addr(lan), 1000)))
		defer a.end()
		b := start(t, hb, nil, onPort(1000))
		defer b.end()
		within(t, 3*time.Second, "link", linked(a, b))
		time.Sleep(time.Minute)
		hb.Crash()
		took := within(t, 120*time.Millisecond, "a closed port noticed", func() bool {
			_ = a.send(b)
			return a.count("down") == 1
		})
		t.Logf("noticed after %v", took)
		time.Sleep(2 * time.Second)
		b2 := start(t, hb, b.agent, onPort(1000))
		defer b2.end()
		took = within(t, time.Second, "link after restart", func() bool { return a.count("up") == 2 && b2.count("up") == 1 })
		t.Logf("back after %v", took)
	})
}

// A neighbour that restarts between two probes replaces its old link at once.
func TestRestart(t *testing.T) {
	for _, discovered := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			n := linktest.New(1)
			lan := n.Segment(linktest.Quality{Delay: time.Millisecond})
			ha, hb := n.Host(lan), n.Host(lan)
			conf := onPort(1000, peerURI(ha.Addr(lan), 1000))
			if discovered {
				conf = multicast
			}
			a := start(t, ha, nil, func(c *link.Config) {
				onPort(1000)(c)
				c.Multicast.Enabled = discovered
			})
			defer a.end()
			b := start(t, hb, nil, conf)
			defer b.end()
			within(t, 3*time.Second, "link", linked(a, b))
			time.Sleep(time.Minute)
			hb.Crash()
			time.Sleep(10 * time.Millisecond)
			b2 := start(t, hb, b.agent, conf)
			defer b2.end()
			within(t, 500*time.Millisecond, "the new link", func() bool { return a.count("up") == 2 && b2.count("up") == 1 })
			time.Sleep(time.Minute)
			if a.count("up") != 2 || a.count("down") != 1 || b2.count("down") != 0 {
				t.Errorf("ups %d, downs %d and %d", a.count("up"), a.count("down"), b2.count("down"))
			}
		})
	}
}

func TestCarrier(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := linktest.New(1)
		lan := n.Segment(linktest.Quality{Delay: time.Millisecond})
		ha, hb := n.Host(lan), n.Host(lan)
		a, b := start(t, ha, nil, multicast), start(t, hb, nil, multicast)
		defer a.end()
		defer b.end()
		within(t, time.Second, "link", linked(a, b))
		time.Sleep(time.Minute)
		nb := a.m.Links()[0].Neighbour()
		ha.Plug(lan, false)
		if nb.Up() {
			t.Error("the packet path was not told at once")
		}
		within(t, time.Millisecond, "carrier loss noticed", func() bool { return a.count("down") == 1 })
		time.Sleep(5 * time.Second)
		ha.Plug(lan, true)
		within(t, time.Second, "link back", func() bool { return a.count("up") == 2 && b.count("up") == 2 })
	})
}

// A neighbour whose address changes keeps its link, and QUIC notices nothing.
func TestRoaming(t *testing.T) {
	for _, who := range []string{"dialer", "acceptor"} {
		bubble(t, func(t *testing.T) {
			n := linktest.New(1)
			lan := n.Segment(linktest.Quality{Delay: time.Millisecond})
			ha, hb := n.Host(lan), n.Host(lan)
			a := start(t, ha, nil, onPort(1000))
			defer a.end()
			b := start(t, hb, nil, onPort(1000, peerURI(ha.Addr(lan), 1000)))
			defer b.end()
			within(t, time.Second, "link", linked(a, b))
			mover, other, h := b, a, hb
			if who == "acceptor" {
				mover, other, h = a, b, ha
			}
			for range 3 {
				time.Sleep(time.Minute)
				h.Renumber()
				got := other.got.Load()
				if err := mover.send(other); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Millisecond)
				if other.got.Load() != got+1 {
					t.Fatal("a datagram from the new address was not taken")
				}
				got = mover.got.Load()
				if err := other.send(mover); err != nil {
					t.Fatal(err)
				}
				controls := mover.controls.Load()
				if err := other.m.Links()[0].SendControl(link.ClassRoute, []byte("still there?")); err != nil {
					t.Fatal(err)
				}
				if err := mover.m.Links()[0].SendControl(link.ClassRoute, []byte("yes")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				if mover.got.Load() != got+1 || mover.controls.Load() != controls+1 {
					t.Errorf("%s: %d datagrams and %d control messages followed to the new address", who, mover.got.Load()-got, mover.controls.Load()-controls)
				}
			}
			if a.count("down")+b.count("down") != 0 {
				t.Errorf("down: %v, %v", a.last("down").reason, b.last("down").reason)
			}
		})
	}
}

// A move while the link is idle is found out by the next probe.
func TestRoamingIdle(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := linktest.New(1)
		lan := n.Segment(linktest.Quality{Delay: time.Millisecond})
		ha, hb := n.Host(lan), n.Host(lan)
		a := start(t, ha, nil, onPort(1000))
		defer a.end()
		b := start(t, hb, nil, onPort(1000, peerURI(ha.Addr(lan), 1000)))
		defer b.end()
		within(t, time.Second, "link", linked(a, b))
		for range 20 {
			time.Sleep(time.Duration(rand.IntN(60)) * time.Second)
			hb.Renumber()
			time.Sleep(time.Minute)
			if err := a.m.Links()[0].SendControl(link.ClassRoute, []byte("x")); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second) // who moves in the very millisecond may lose the message with the link
		}
		if b.controls.Load() < 20 || a.count("up") != 1+a.count("down") {
			t.Errorf("%d messages, %d ups, %d downs", b.controls.Load(), a.count("up"), a.count("down"))
		}
	})
}

// Keys change every hour, with traffic in both directions, and nothing is lost.
func TestRekey(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := linktest.New(1)
		lan := n.Segment(linktest.Quality{Delay: 20 * time.Millisecond, Jitter: 15 * time.Millisecond})
		ha, hb := n.Host(lan), n.Host(lan)
		a := start(t, ha, nil, onPort(1000))
		defer a.end()
		b := start(t, hb, nil, onPort(1000, peerURI(ha.Addr(lan), 1000)))
		defer b.end()
		within(t, time.Second, "link", linked(a, b))
		sent := int64(0)
		for hour := range 18 { // the epoch number in the header wraps at 16
			time.Sleep(time.Hour - 4*time.Second - time.Duration(hour)*time.Second/4)
			for range 300 {
				if err := a.send(b); err != nil {
					t.Fatal(err)
				}
				if err := b.send(a); err != nil {
					t.Fatal(err)
				}
				sent++
				time.Sleep(30 * time.Millisecond)
			}
		}
		time.Sleep(time.Second)
		if a.got.Load() != sent || b.got.Load() != sent {
			t.Errorf("of %d datagrams %d and %d arrived; %+v %+v", sent, b.got.Load(), a.got.Load(), a.plane.Counts(), b.plane.Counts())
		}
		if h := a.m.Links()[0].Neighbour().Stats().HighestCounter; h > 1500 {
			t.Errorf("counter %d: the keys were never changed", h)
		}
		if a.count("down")+b.count("down") != 0 {
			t.Errorf("down: %v", a.last("down").reason)
		}
	})
}

func TestLossAndCost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := linktest.New(7)
		lan := n.Segment(linktest.Quality{Delay: 10 * time.Millisecond})
		ha, hb := n.Host(lan), n.Host(lan)
		a := start(t, ha, nil, onPort(1000))
		defer a.end()
		b := start(t, hb, nil, func(c *link.Config) {
			onPort(1000)(c)
			c.Peers = []link.Peer{{URI: peerURI(ha.Addr(lan), 1000), Multiplier: 2000}}
		})
		defer b.end()
		within(t, time.Second, "link", linked(a, b))
		la, lb := a.m.Links()[0], b.m.Links()[0]
		// 500 µs + 20 ms / 2 = 10.5 ms
		if c := la.Cost(); c < 10500*8/10 || c > 10500*12/10 {
			t.Errorf("cost %d of a link with 20 ms", c)
		}
		if c := lb.Cost(); c < 21000*8/10 || c > 21000*12/10 {
			t.Errorf("cost %d with multiplier 2", c)
		}
		clean := la.Cost()
		lan.Set(linktest.Quality{Delay: 10 * time.Millisecond, Loss: 0.3})
		for range 6000 {
			_ = a.send(b)
			_ = b.send(a)
			time.Sleep(10 * time.Millisecond)
		}
		out, in := la.Loss()
		if out < 0.2 || out > 0.4 || in < 0.2 || in > 0.4 {
			t.Errorf("loss %.2f out, %.2f in, want 0.3", out, in)
		}
		if f := float64(la.Cost()) / float64(clean); f < 1.6 || f > 2.6 { // ETX of 0.7 × 0.7 is 2.04
			t.Errorf("cost rose by %.2f", f)
		}
		if a.count("down")+b.count("down") != 0 {
			t.Errorf("down: %v", a.last("down").reason)
		}
		if c := a.count("changed"); c > 8 {
			t.Errorf("%d changes of cost in a minute", c)
		}
	})
}

// Noise in the round trip time must not move the cost.
func TestCostIsStable(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := linktest.New(3)
		lan := n.Segment(linktest.Quality{Delay: 4 * time.Millisecond, Jitter: 8 * time.Millisecond})
		ha, hb := n.Host(lan), n.Host(lan)
		a := start(t, ha, nil, onPort(1000))
		defer a.end()
		b := start(t, hb, nil, onPort(1000, peerURI(ha.Addr(lan), 1000)))
		defer b.end()
		within(t, time.Second, "link", linked(a, b))
		time.Sleep(2 * time.Minute)
		before := a.count("changed")
		time.Sleep(2 * time.Hour)
		if c := a.count("changed") - before; c > 12 { // of some 800 samples that differ by a factor of up to three
			t.Errorf("%d changes of cost in two hours of the same link", c)
		}
	})
}

func TestSlowNeighbour(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := linktest.New(1)
		lan := n.Segment(linktest.Quality{Delay: time.Millisecond})
		ha := n.Host(lan)
		a := start(t, ha, nil, func(c *link.Config) {
			onPort(1000)(c)
			c.Handler.(*member).slow = make(chan struct{})
		})
		defer a.end()
		defer close(a.slow)
		b := start(t, n.Host(lan), nil, onPort(1000, peerURI(ha.Addr(lan), 1000)))
		defer b.end()
		within(t, time.Second, "link", linked(a, b))
		l := b.m.Links()[0]
		msg := make([]byte, 60000)
		queued := 0
		for ; queued < 1000; queued++ {
			if err := l.SendControl(link.ClassRoute, msg); err != nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if queued < 50 || queued > 100 {
			t.Errorf("%d messages of %d bytes were queued", queued, len(msg))
		}
		within(t, time.Second, "link closed", func() bool { return b.count("down") == 1 })
		if r := b.last("down").reason.Error(); !strings.Contains(r, "too slowly") {
			t.Errorf("reason %q", r)
		}
	})
}

func TestLANCap(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := linktest.New(1)
		lan := n.Segment(linktest.Quality{Delay: time.Millisecond})
		const size = 24
		var all []*member
		for range size {
			x := start(t, n.Host(lan), nil, func(c *link.Config) {
				multicast(c)
				c.LANCap = 4
			})
			defer x.end()
			all = append(all, x)
			time.Sleep(10 * time.Second)
		}
		time.Sleep(30 * time.Minute)
		links := 0
		for _, x := range all {
			links += len(x.m.Links())
			if got := len(x.m.Heard()); got != size-1 {
				t.Errorf("heard %d", got)
			}
		}
		if most := size * 8; links > most { // 1, 2, 4, 16 away, both ways
			t.Errorf("%d link ends on a LAN of %d, at most %d expected", links, size, most)
		}
		seen := map[ident.PublicKey]bool{}
		var visit func(k ident.PublicKey)
		visit = func(k ident.PublicKey) {
			if seen[k] {
				return
			}
			seen[k] = true
			for _, x := range all {
				if x.key() == k {
					for _, l := range x.m.Links() {
						visit(l.Peer())
					}
				}
			}
		}
		visit(all[0].key())
		if len(seen) != size {
			t.Errorf("only %d of %d are connected", len(seen), size)
		}
		// Traffic to one that was left out gets a direct link, which goes again.
		a := all[0]
		var b *member
		for _, x := range all[1:] {
			if a.m.LinkTo(x.key()) == nil {
				b = x
			}
		}
		if b == nil {
			t.Fatal("linked with all")
		}
		a.m.WantDirect(b.key())
		within(t, time.Second, "direct link", linked(a, b))
		for range 20 {
			time.Sleep(time.Minute)
			a.m.WantDirect(b.key())
		}
		if a.m.LinkTo(b.key()) == nil {
			t.Error("the direct link went while it was wanted")
		}
		time.Sleep(15 * time.Minute)
		if a.m.LinkTo(b.key()) != nil {
			t.Error("the direct link stays for ever")
		}
	})
}

func beaconBytes(key ident.PublicKey, port uint16, instance uint64) []byte {
	b := append([]byte("weft"), 1, 0)
	b = binary.BigEndian.AppendUint16(b, port)
	b = binary.BigEndian.AppendUint64(b, instance)
	b = append(b, make([]byte, 8)...)
	return append(b, key[:]...)
}

// A flood of made-up beacons costs neither memory nor many dials, and real neighbours are still found.
func TestBeaconFlood(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := linktest.New(1)
		lan := n.Segment(linktest.Quality{Delay: time.Millisecond})
		a := start(t, n.Host(lan), nil, multicast)
		defer a.end()
		evil := n.Host(lan)
		s, err := evil.OpenBeacons()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		time.Sleep(time.Minute)
		before, _ := n.Traffic()
		r := rand.New(rand.NewPCG(1, 2))
		const fakes = 20000
		for i := range fakes {
			var k ident.PublicKey
			for j := range k {
				k[j] = byte(r.Uint32())
			}
			if err := s.Send(1, beaconBytes(k, uint16(1+i%60000), r.Uint64())); err != nil {
				t.Fatal(err)
			}
			if i%100 == 0 {
				time.Sleep(10 * time.Millisecond)
			}
		}
		time.Sleep(10 * time.Second)
		if h := len(a.m.Heard()); h > 1024 {
			t.Errorf("%d heard nodes are kept", h)
		}
		after, _ := n.Traffic()
		if own := after - before - fakes; own > 4000 { // 20 dials a second for 12 s, a few datagrams each, and their repetitions
			t.Errorf("%d datagrams answered the flood", own)
		}
		b := start(t, n.Host(lan), nil, multicast)
		defer b.end()
		within(t, 10*time.Second, "real neighbour", linked(a, b))
	})
}

// Two nodes with one key on a LAN do not link, and say what is wrong.
func TestSameKey(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := linktest.New(1)
		lan := n.Segment(linktest.Quality{Delay: time.Millisecond})
		ha := n.Host(lan)
		a := start(t, ha, nil, func(c *link.Config) { onPort(1000)(c); multicast(c) })
		defer a.end()
		b := start(t, n.Host(lan), a.agent, func(c *link.Config) { onPort(1000, peerURI(ha.Addr(lan), 1000))(c); multicast(c) })
		defer b.end()
		time.Sleep(time.Minute)
		if len(a.m.Links())+len(b.m.Links()) != 0 {
			t.Error("a link with oneself")
		}
		if h := a.m.Heard(); len(h) != 1 || !strings.Contains(h[0].Error, "this node's key") {
			t.Errorf("heard %+v", h)
		}
		if p := b.m.Peers()[0]; !strings.Contains(p.Error, "this node itself") {
			t.Errorf("peer %+v", p)
		}
	})
}

// A forged hint that the neighbour is gone only makes this node look.
func TestForgedHints(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := linktest.New(1)
		lan := n.Segment(linktest.Quality{Delay: 5 * time.Millisecond})
		a, b := start(t, n.Host(lan), nil, multicast), start(t, n.Host(lan), nil, multicast)
		defer a.end()
		defer b.end()
		within(t, time.Second, "link", linked(a, b))
		s, err := n.Host(lan).OpenBeacons()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for i := range 300 {
			if err := s.Send(1, beaconBytes(b.key(), 9, uint64(i))); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if a.count("down") != 0 {
			t.Errorf("down: %v", a.last("down").reason)
		}
	})
}

// Nodes on one LAN whose beacons cross a lossy, reordering air still link.
func TestLossyLAN(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := linktest.New(5)
		lan := n.Segment(linktest.Quality{Delay: 3 * time.Millisecond, Jitter: 20 * time.Millisecond, Loss: 0.2})
		a, b := start(t, n.Host(lan), nil, multicast), start(t, n.Host(lan), nil, multicast)
		defer a.end()
		defer b.end()
		within(t, 10*time.Second, "link", linked(a, b))
		for range 3600 { // one way, so that only probes tell
			_ = a.send(b)
			time.Sleep(time.Second)
		}
		time.Sleep(time.Hour)
		if d := a.count("down"); d > 1 {
			t.Errorf("went down %d times in an hour with 20 %% loss", d)
		}
	})
}
