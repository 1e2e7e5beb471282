package link_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"weft/link"
	"weft/link/linktest"
)

// apart is three nodes: two, each behind a router of its own, that both dialed a third on the outer segment.
type apart struct {
	net           *linktest.Network
	inA, inB, out *linktest.Segment
	ra, rb        *linktest.Router
	ha, hb, ht    *linktest.Host
	a, b, t       *member
}

var lan = linktest.Quality{Delay: time.Millisecond}

func newApart(t *testing.T, ka, kb linktest.NAT, v6 bool, change ...func(*link.Config)) *apart {
	n := linktest.New(3)
	w := &apart{net: n, inA: n.Segment(lan), inB: n.Segment(lan), out: n.Segment(linktest.Quality{Delay: 10 * time.Millisecond})}
	w.ra, w.rb = n.Router(w.inA, w.out, ka), n.Router(w.inB, w.out, kb)
	w.ht, w.ha, w.hb = n.Host(w.out), n.Host(w.inA), n.Host(w.inB)
	third := peerURI(w.ht.Addr4(w.out), 1000)
	if v6 {
		third = peerURI(w.ht.Addr(w.out), 1000)
	}
	more := func(c *link.Config) {
		for _, f := range change {
			f(c)
		}
	}
	w.t = start(t, w.ht, nil, func(c *link.Config) { onPort(1000)(c); more(c) })
	w.a = start(t, w.ha, nil, func(c *link.Config) { onPort(1000, third)(c); more(c) })
	w.b = start(t, w.hb, nil, func(c *link.Config) { onPort(1000, third)(c); more(c) })
	within(t, 2*time.Second, "both have the third", func() bool { return linked(w.a, w.t)() && linked(w.b, w.t)() })
	time.Sleep(time.Second)
	return w
}

func (w *apart) end() {
	w.a.end()
	w.b.end()
	w.t.end()
}

func (w *apart) direct() bool { return linked(w.a, w.b)() }

// Two nodes behind NATs that let in only what answers get a direct link when a third introduces them, whoever asks.
func TestIntroduction(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, who := range []string{"a", "b", "both"} {
			t.Run(fmt.Sprintf("v6=%v/%s", v6, who), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					w := newApart(t, linktest.NAT{No6: !v6}, linktest.NAT{No6: !v6}, v6)
					defer w.end()
					if who != "b" {
						w.a.m.Introduce(w.b.key(), w.t.key())
					}
					if who != "a" {
						w.b.m.Introduce(w.a.key(), w.t.key())
					}
					took := within(t, time.Second, "a direct link", w.direct)
					t.Log(took)
					l := w.a.m.LinkTo(w.b.key())
					if !strings.HasPrefix(l.Endpoint(), "udp://") {
						t.Errorf("the link is %s", l.Endpoint())
					}
					got := w.b.got.Load()
					within(t, time.Second, "the handler's table", func() bool { return w.a.send(w.b) == nil }) // LinkTo knows the link a little earlier
					time.Sleep(50 * time.Millisecond)
					if w.b.got.Load() != got+1 {
						t.Error("nothing flows")
					}
					if seen, nat := w.a.m.Seen(); nat == v6 || len(seen) == 0 || seen[0].Addr() == w.ha.Addr4(w.inA) {
						t.Errorf("a thinks that it is seen at %v, through a NAT: %v", seen, nat)
					}
					// Used, it stays; unused, it goes.
					for range 20 {
						time.Sleep(time.Minute)
						if err := w.b.send(w.a); err != nil {
							t.Fatal(err)
						}
					}
					if !w.direct() || w.a.count("down") != 0 {
						t.Fatalf("a link in use is gone: %v", w.a.last("down").reason)
					}
					time.Sleep(6 * time.Minute)
					if w.direct() || w.a.m.LinkTo(w.t.key()) == nil || w.b.m.LinkTo(w.t.key()) == nil {
						t.Error("the unused link stays, or the asked-for ones went")
					}
				})
			})
		}
	}
}

// NATs that give every destination another port are not overcome: the third goes on relaying, and the attempts stay few.
func TestIntroductionSymmetric(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newApart(t, linktest.NAT{Symmetric: true, No6: true}, linktest.NAT{Symmetric: true, No6: true}, false)
		defer w.end()
		before, _ := w.net.Traffic()
		w.a.m.Introduce(w.b.key(), w.t.key())
		time.Sleep(10 * time.Second)
		after, _ := w.net.Traffic()
		if w.direct() {
			t.Fatal("this NAT is not what it claims to be")
		}
		if after-before > 400 {
			t.Errorf("the attempt took %d datagrams", after-before)
		}
		// It is not tried again and again.
		for range 600 {
			w.a.m.Introduce(w.b.key(), w.t.key())
			time.Sleep(time.Second)
		}
		if again, _ := w.net.Traffic(); again-after > 3000 {
			t.Errorf("ten minutes of wishing took %d datagrams", again-after)
		}
		// A NAT that lets more through is found when it is time again.
		w.ra.Set(linktest.NAT{No6: true})
		w.rb.Set(linktest.NAT{No6: true})
		w.ra.Reboot()
		w.rb.Reboot()
		within(t, 2*time.Hour, "another try", func() bool {
			time.Sleep(5 * time.Second)
			w.a.m.Introduce(w.b.key(), w.t.key())
			return w.direct()
		})
	})
}

// Owners may refuse, and nobody is introduced to whom it is no neighbour of.
func TestIntroductionRefused(t *testing.T) {
	for name, conf := range map[string]link.Introductions{"third": {Silent: true}, "second": {Refuse: true}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newApart(t, linktest.NAT{}, linktest.NAT{}, false, func(c *link.Config) { c.Introductions = conf })
				defer w.end()
				for range 60 {
					w.a.m.Introduce(w.b.key(), w.t.key())
					time.Sleep(time.Second)
				}
				if w.direct() {
					t.Error("a link against the owner's will")
				}
			})
		})
	}
	bubble(t, func(t *testing.T) {
		w := newApart(t, linktest.NAT{}, linktest.NAT{}, false)
		defer w.end()
		w.a.m.Introduce([32]byte{9}, w.t.key())
		w.a.m.Introduce(w.b.key(), [32]byte{9})
		w.a.m.Introduce(w.t.key(), w.t.key())
		time.Sleep(time.Minute)
		if w.a.count("up")+w.b.count("up") != 2 {
			t.Error("links out of nothing")
		}
	})
}

// A node that changes networks keeps its link: no handshake, and nobody else hears of it.
func TestRoamingToAnotherNetwork(t *testing.T) {
	for _, busy := range []bool{true, false} {
		bubble(t, func(t *testing.T) {
			n := linktest.New(3)
			wifi, mobile, out := n.Segment(lan), n.Segment(lan), n.Segment(linktest.Quality{Delay: 10 * time.Millisecond})
			n.Router(wifi, out, linktest.NAT{})
			n.Router(mobile, out, linktest.NAT{})
			ht, ha := n.Host(out), n.Host(wifi, mobile)
			third := start(t, ht, nil, onPort(1000))
			defer third.end()
			a := start(t, ha, nil, onPort(1000, peerURI(ht.Addr4(out), 1000)))
			defer a.end()
			within(t, 2*time.Second, "link", linked(a, third))
			for range 3 {
				for _, away := range []*linktest.Segment{wifi, mobile} {
					time.Sleep(time.Minute)
					got := a.got.Load()
					ha.Plug(away, false)
					sent := 0
					took := within(t, 3*time.Second, "the link on the other network", func() bool {
						if busy {
							sent++
							_ = third.send(a)
							_ = a.send(third)
						} else if time.Sleep(500 * time.Millisecond); true {
							_ = third.send(a)
						}
						time.Sleep(20 * time.Millisecond)
						return a.got.Load() > got
					})
					if busy && took > 200*time.Millisecond {
						t.Errorf("the gap was %v", took)
					}
					time.Sleep(5 * time.Second)
					ha.Plug(away, true)
				}
			}
			if a.count("down")+third.count("down") != 0 {
				t.Errorf("the link went down: %v, %v", a.last("down").reason, third.last("down").reason)
			}
		})
	}
}

// A router that forgets its mappings, or a provider that gives it another address, costs no link that is in use.
func TestRouterReboots(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newApart(t, linktest.NAT{No6: true}, linktest.NAT{No6: true}, false)
		defer w.end()
		for range 5 {
			time.Sleep(10 * time.Second)
			w.ra.Reboot()
			got := w.a.got.Load()
			within(t, 100*time.Millisecond, "datagrams come to the new mapping", func() bool {
				if err := w.a.send(w.t); err != nil {
					t.Fatal(err)
				}
				if err := w.t.send(w.a); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Millisecond)
				return w.a.got.Load() > got
			})
		}
		if w.a.count("down")+w.t.count("down") != 0 {
			t.Errorf("the link went down: %v", w.t.last("down").reason)
		}
	})
}

// Keep-alives find out how long the NAT's memory is, and the node stays reachable all the while, with few datagrams.
func TestKeepAlive(t *testing.T) {
	for _, timeout := range []time.Duration{20 * time.Second, 30 * time.Second, time.Minute, 5 * time.Minute} {
		t.Run(timeout.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				kind := linktest.NAT{Timeout: timeout, No6: true}
				w := newApart(t, kind, kind, false)
				defer w.end()
				for range 60 { // an hour, every minute a word from outside
					time.Sleep(time.Minute)
					got := w.a.got.Load()
					if err := w.t.send(w.a); err != nil {
						t.Fatal(err)
					}
					time.Sleep(50 * time.Millisecond)
					if w.a.got.Load() != got+1 {
						t.Fatal("a cannot be reached")
					}
				}
				sent := w.a.m.LinkTo(w.t.key()).Neighbour().Stats().SentPackets
				_, before := w.net.Traffic()
				for range 6 { // quite silent from here on
					time.Sleep(10 * time.Minute)
					got := w.a.got.Load()
					if err := w.t.send(w.a); err != nil {
						t.Fatal(err)
					}
					time.Sleep(50 * time.Millisecond)
					if w.a.got.Load() != got+1 {
						t.Fatal("a cannot be reached")
					}
				}
				probes := w.a.m.LinkTo(w.t.key()).Neighbour().Stats().SentPackets - sent
				_, after := w.net.Traffic()
				pause := time.Hour / time.Duration(probes) * 2 // of three datagrams two are a's
				t.Logf("%d probes in an hour, %d bytes in all", probes, after-before)
				if pause > timeout || pause < min(timeout, 2*time.Minute)/2 {
					t.Errorf("an exchange every %v or so", pause)
				}
				if n := w.a.count("down") + w.t.count("down"); n != 0 {
					t.Errorf("%d links went down: %v", n, w.t.last("down").reason)
				}
			})
		})
	}
}

// On a metered link nothing is tested and little is said.
func TestKeepAliveMetered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newApart(t, linktest.NAT{No6: true}, linktest.NAT{No6: true}, false, func(c *link.Config) {
			for i := range c.Peers {
				c.Peers[i].Metered = true
			}
		})
		defer w.end()
		_, before := w.net.Traffic()
		time.Sleep(time.Hour)
		_, after := w.net.Traffic()
		if rate := float64(after-before) * 8 / 3600 / 2; rate > 50 { // half of it is about the port that the NAT changes each time
			t.Errorf("an idle metered link takes %.0f bit/s", rate)
		}
		if w.a.count("down")+w.t.count("down") != 0 {
			t.Errorf("the link went down: %v", w.a.last("down").reason)
		}
	})
}
