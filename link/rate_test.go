package link_test

import (
	"strings"
	"testing"
	"time"

	"weft/forward"
	"weft/ident"
	"weft/link"
	"weft/link/linktest"
	"weft/wire"
)

// flood sends datagrams of 1500 bytes on the line for a time, one each millisecond: 12 Mbit/s.
func (n *member) flood(to *member, d time.Duration) {
	n.t.Helper()
	n.stream(to, d, time.Millisecond)
}

func (n *member) stream(to *member, d, every time.Duration) {
	n.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(every) {
		if err := n.plane.Send(to.key().ID(), wire.ClassBulk, make([]byte, 1452), 1452); err != nil {
			n.t.Fatal(err)
		}
	}
}

// mbits is what a member got of a flood within a time.
func mbits(datagrams int64, d time.Duration) float64 {
	return float64(datagrams) * 1500 * 8 / 1e6 / d.Seconds()
}

// A rate is of one direction and one neighbour: whoever dialed, and however the key came to be known.
func TestPeerRate(t *testing.T) {
	for _, named := range []bool{true, false} {
		bubble(t, func(t *testing.T) {
			n := linktest.New(1)
			cable := n.Segment(linktest.Quality{Delay: time.Millisecond})
			ha, hb := n.Host(cable), n.Host(cable)
			b := start(t, hb, nil, onPort(1000))
			defer b.end()
			a := start(t, ha, nil, func(c *link.Config) {
				p := link.Peer{URI: peerURI(hb.Addr(cable), 1000), Rate: 3_000_000}
				if named {
					p.Key = b.key()
				}
				c.Peers = []link.Peer{p}
				c.Rates = []link.InterfaceRate{{Pattern: "*", Bits: 100_000}} // what is said of the peer is stronger
			})
			defer a.end()
			within(t, 2*time.Second, "link", linked(a, b))
			if got := a.m.LinkTo(b.key()).Rate(); got != 3_000_000 {
				t.Fatalf("rate %d", got)
			}
			if got := b.m.LinkTo(a.key()).Rate(); got != 0 {
				t.Fatalf("the neighbour's rate is %d", got)
			}
			a.flood(b, 5*time.Second)
			if r := mbits(b.got.Load(), 5*time.Second); r < 2.95 || r > 3.05 {
				t.Errorf("%.2f of 3 Mbit/s", r)
			}
			time.Sleep(time.Second)
			b.flood(a, time.Second)
			time.Sleep(10 * time.Millisecond)
			if got := a.got.Load(); got != 1000 {
				t.Errorf("%d of 1000 came over the other direction", got)
			}
			if out, _ := a.m.LinkTo(b.key()).Loss(); out > 0 {
				t.Errorf("what the queue dropped passes for loss on the link: %v", out)
			}
			if a.count("down")+b.count("down") != 0 {
				t.Errorf("the link went down: %v", a.last("down").reason)
			}
		})
	}
}

// What is said of a peer holds for its link also when the peer dialed it.
func TestRateOfAPeerThatDials(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := linktest.New(1)
		cable := n.Segment(linktest.Quality{Delay: time.Millisecond})
		ha, hb := n.Host(cable), n.Host(cable)
		agent, err := ident.Generate()
		if err != nil {
			t.Fatal(err)
		}
		b := start(t, hb, nil, func(c *link.Config) {
			onPort(1000)(c)
			c.Peers = []link.Peer{{URI: peerURI(ha.Addr(cable), 9), Key: agent.Public(), Rate: 2_000_000}} // nothing answers there
		})
		defer b.end()
		a := start(t, ha, agent, onPort(1000, peerURI(hb.Addr(cable), 1000)))
		defer a.end()
		within(t, 2*time.Second, "link", linked(a, b))
		if got := b.m.LinkTo(a.key()).Rate(); got != 2_000_000 {
			t.Errorf("rate %d", got)
		}
	})
}

// Interfaces have rates by name, for links of every origin.
func TestInterfaceRate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := linktest.New(1)
		lan, radio := n.Segment(linktest.Quality{}), n.Segment(linktest.Quality{Delay: time.Millisecond})
		a := start(t, n.Host(lan, radio), nil, func(c *link.Config) {
			c.Multicast.Enabled = true
			c.Rates = []link.InterfaceRate{{"wlan*", 1_000_000}, {"eth1", 2_000_000}, {"eth*", 0}}
		})
		defer a.end()
		b := start(t, n.Host(lan), nil, multicast)
		defer b.end()
		c := start(t, n.Host(radio), nil, multicast)
		defer c.end()
		within(t, 2*time.Second, "links", func() bool { return linked(a, b)() && linked(a, c)() })
		a.flood(b, 2*time.Second)
		a.flood(c, 2*time.Second)
		time.Sleep(10 * time.Millisecond)
		if r := mbits(b.got.Load(), 2*time.Second); r < 11.9 {
			t.Errorf("%.2f Mbit/s over the interface without a rate", r)
		}
		if r := mbits(c.got.Load(), 2*time.Second); r < 1.95 || r > 2.1 {
			t.Errorf("%.2f of 2 Mbit/s over the shaped interface", r)
		}
	})
}

// A link that moves to another interface gets its rate, and keeps its goroutine.
func TestRateFollowsTheInterface(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := linktest.New(3)
		wifi, mobile, out := n.Segment(lan), n.Segment(lan), n.Segment(linktest.Quality{Delay: 10 * time.Millisecond})
		n.Router(wifi, out, linktest.NAT{})
		n.Router(mobile, out, linktest.NAT{})
		ht, ha := n.Host(out), n.Host(wifi, mobile)
		third := start(t, ht, nil, onPort(1000))
		defer third.end()
		a := start(t, ha, nil, func(c *link.Config) {
			onPort(1000, peerURI(ht.Addr4(out), 1000))(c)
			c.Rates = []link.InterfaceRate{{"eth1", 500_000}}
		})
		defer a.end()
		within(t, 2*time.Second, "link", linked(a, third))
		l := a.m.LinkTo(third.key())
		for i := range 3 {
			if got := l.Rate(); got != 0 {
				t.Fatalf("over %s at %d", l.Interface(), got)
			}
			ha.Plug(wifi, false)
			within(t, time.Second, "the rate of the other interface", func() bool { return l.Rate() == 500_000 })
			time.Sleep(10 * time.Second)
			before := third.got.Load()
			a.flood(third, 4*time.Second)
			if r := mbits(third.got.Load()-before, 4*time.Second); r < 0.45 || r > 0.55 {
				t.Errorf("%d: %.2f of 0.5 Mbit/s", i, r)
			}
			ha.Plug(wifi, true)
			ha.Plug(mobile, false)
			time.Sleep(10 * time.Second)
			ha.Plug(mobile, true)
			time.Sleep(10 * time.Second)
		}
		if a.m.LinkTo(third.key()) != l {
			t.Errorf("another link: %v", a.last("down").reason)
		}
	})
}

// What shaping is for: in front of a slow line with a deep buffer, a flood makes neither the link slow nor lossy.
func TestShapingKeepsASlowLineQuick(t *testing.T) {
	const line = 2_000_000
	measure := func(t *testing.T, rate int64) (rtt time.Duration, loss, throughput float64) {
		n := linktest.New(1)
		cable := n.Segment(linktest.Quality{Delay: 5 * time.Millisecond, Rate: line, Buffer: 300 * time.Millisecond})
		hb := n.Host(cable)
		b := start(t, hb, nil, onPort(1000))
		defer b.end()
		a := start(t, n.Host(cable), nil, func(c *link.Config) {
			c.Peers = []link.Peer{{URI: peerURI(hb.Addr(cable), 1000), Rate: rate}}
		})
		defer a.end()
		within(t, 2*time.Second, "link", linked(a, b))
		a.stream(b, 30*time.Second, 5*time.Millisecond) // 2.4 Mbit/s: with more, the link that is not shaped dies
		l := a.m.LinkTo(b.key())
		if l == nil {
			t.Fatal("the link went down")
		}
		loss, _ = l.Loss()
		return l.RTT(), loss, mbits(b.got.Load(), 30*time.Second)
	}
	bubble(t, func(t *testing.T) {
		rtt, loss, got := measure(t, 0)
		t.Logf("not shaped: RTT %v, loss %.2f, %.2f Mbit/s", rtt, loss, got)
		if rtt < 100*time.Millisecond || loss < 0.05 {
			t.Errorf("the line is not as bad as it should be: RTT %v, loss %.2f", rtt, loss)
		}
	})
	bubble(t, func(t *testing.T) {
		rtt, loss, got := measure(t, line*95/100)
		t.Logf("shaped: RTT %v, loss %.2f, %.2f Mbit/s", rtt, loss, got)
		if rtt > 30*time.Millisecond || loss > 0 || got < line*0.93/1e6 {
			t.Errorf("RTT %v, loss %.2f, %.2f Mbit/s", rtt, loss, got)
		}
	})
}

func TestBadRates(t *testing.T) {
	agent, err := ident.Generate()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		rates []link.InterfaceRate
		peer  int64
		want  string
	}{
		{rates: []link.InterfaceRate{{"eth[", 1e6}}, want: "eth["},
		{rates: []link.InterfaceRate{{"eth0", 1e6}, {"wlan0", -1}}, want: "wlan0"},
		{rates: []link.InterfaceRate{{"eth0", 20}}, want: "at least"},
		{peer: 20, want: "at least"},
		{peer: -5, want: "udp://10.0.0.1:1"},
	} {
		n := &member{t: t, agent: agent}
		cfg := link.Config{
			Agent: agent, Plane: forward.New(agent.Public().ID(), n), Handler: n, Rates: c.rates, Underlay: linktest.New(1).Host(),
			Peers: []link.Peer{{URI: "udp://10.0.0.1:1", Rate: c.peer}},
		}
		if _, err := link.New(cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
