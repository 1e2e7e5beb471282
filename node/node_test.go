package node

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"weft/api"
	"weft/config"
	"weft/ident"
	"weft/link/linktest"
	"weft/tun"
	"weft/tun/tuntest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// village is a few whole nodes on an in-memory network, in virtual time.
type village struct {
	t      *testing.T
	net    *linktest.Network
	houses []*house
}

type house struct {
	*Node
	host *linktest.Host
	dev  *tuntest.Device
	dir  string
	cfg  *config.Config
	stop context.CancelFunc
	done chan error
	sent uint32 // numbers what reach sends
}

func newVillage(t *testing.T) *village { return &village{t: t, net: linktest.New(7)} }

func (v *village) house(set func(*config.Config), on ...*linktest.Segment) *house {
	cfg := config.Default()
	if set != nil {
		set(cfg)
	}
	h := &house{host: v.net.Host(on...), dir: v.t.TempDir(), cfg: cfg}
	v.start(h)
	return h
}

func (v *village) start(h *house) {
	v.t.Helper()
	h.dev = tuntest.New(1420, 256)
	n, err := New(Options{Config: h.cfg, StateDir: h.dir, Log: slog.New(slog.NewTextHandler(v.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("at", h.cfg.Name), World: &World{Underlay: h.host, Device: h.dev}})
	if err != nil {
		v.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	h.Node, h.stop, h.done = n, stop, make(chan error, 1)
	go func() { h.done <- n.Serve(ctx) }()
	select {
	case <-n.Ready():
	case err := <-h.done:
		v.t.Fatalf("%s did not start: %v", h.cfg.Name, err)
	}
	v.houses = append(v.houses, h)
}

// close ends all nodes, as a bubble wants it, and shows what they thought when the test failed.
func (v *village) close() {
	for _, h := range v.houses {
		if v.t.Failed() {
			peers, _ := h.Peers(v.t.Context())
			routes, _ := h.Routes(v.t.Context())
			v.t.Logf("%s: %d peers, routes %+v, route core %+v", h.cfg.Name, len(peers), routes, func() any { s, _ := h.routing.stats(); return s }())
		}
		h.stop()
	}
	for _, h := range v.houses {
		if err := <-h.done; err != nil {
			v.t.Errorf("node ended with %v", err)
		}
	}
}

// reach sends packets until one comes out at the other end, and returns how long that took.
func reach(t *testing.T, a, b *house, within time.Duration) time.Duration {
	t.Helper()
	begun, first := time.Now(), a.sent
	for time.Since(begun) < within {
		a.dev.Inject(tun.Packet{Data: packet(a, b, a.sent), Partial: true})
		a.sent++
		wait := time.NewTimer(20 * time.Millisecond)
	drain:
		for {
			select {
			case p := <-b.dev.Out():
				if len(p) == 52 && p[6] == tun.ProtoUDP && [16]byte(p[8:24]) == a.self.Addr().As16() && binary.BigEndian.Uint32(p[48:]) >= first {
					wait.Stop()
					return time.Since(begun)
				}
			case <-a.dev.Out(): // errors to a's host
			case <-wait.C:
				break drain
			}
		}
	}
	t.Fatalf("%s does not reach %s within %v", a.cfg.Name, b.cfg.Name, within)
	return 0
}

func packet(a, b *house, i uint32) []byte {
	p := make([]byte, 52)
	p[0], p[5], p[6], p[7] = 0x60, 12, tun.ProtoUDP, 64
	copy(p[8:], a.self.Addr().AsSlice())
	copy(p[24:], b.self.Addr().AsSlice())
	binary.BigEndian.PutUint16(p[40:], 7)
	binary.BigEndian.PutUint16(p[42:], 9)
	binary.BigEndian.PutUint16(p[44:], 12)
	binary.BigEndian.PutUint32(p[48:], i)
	tun.SetPartial(p)
	return p
}

func named(name string) func(*config.Config) {
	return func(c *config.Config) {
		c.Name = name
		c.Firewall.Rules = []string{"allow udp 9 from any"}
	}
}

var cable = linktest.Quality{Delay: 2 * time.Millisecond}

// line makes n houses in a row.
func (v *village) line(n int) (hs []*house, cables []*linktest.Segment) {
	for range n - 1 {
		cables = append(cables, v.net.Segment(cable))
	}
	for i := range n {
		var on []*linktest.Segment
		if i > 0 {
			on = append(on, cables[i-1])
		}
		if i < n-1 {
			on = append(on, cables[i])
		}
		hs = append(hs, v.house(named(fmt.Sprintf("h%d", i)), on...))
	}
	return hs, cables
}

func TestLineFindsItselfAndCarries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t)
		defer v.close()
		hs, _ := v.line(5)
		t.Logf("first packet over four links after %v", reach(t, hs[0], hs[4], 5*time.Second))
		reach(t, hs[4], hs[0], time.Second)

		routes, _ := hs[0].Routes(t.Context())
		if len(routes) != 4 {
			t.Errorf("%d routes, want 4", len(routes))
		}
		for _, r := range routes {
			if r.Name == "h4" && (r.Hops != 4 || r.NextName != "h1") {
				t.Errorf("route to h4: %+v", r)
			}
		}
		hops, err := hs[0].Trace(t.Context(), "h4")
		if err != nil || len(hops) != 5 || hops[4].RTTUs < 16000 {
			t.Errorf("trace: %+v, %v", hops, err)
		}
		n := 0
		for r, err := range hs[0].Ping(t.Context(), api.PingRequest{Target: "h3", Count: 3, IntervalMs: 100}) {
			if err != nil || r.Lost || r.RTTUs < 12000 {
				t.Errorf("ping: %+v %v", r, err)
			}
			n++
		}
		if n != 3 {
			t.Errorf("%d replies", n)
		}
		if s, _ := hs[2].Status(t.Context()); s.Counters.ForwardedPackets == 0 || s.Counters.Nodes != 5 {
			t.Errorf("status of the middle: %+v", s.Counters)
		}
	})
}

func TestJoinerIsReachedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t)
		defer v.close()
		hs, cables := v.line(4)
		reach(t, hs[0], hs[3], 5*time.Second)
		time.Sleep(time.Minute)
		last := v.house(named("new"), v.net.Segment(cable), cables[2])
		if d := reach(t, last, hs[0], 5*time.Second); d > 2*time.Second {
			t.Errorf("the first packet of a new node took %v", d)
		}
	})
}

// A diamond a–b–d, a–c–d; whatever happens to the way in use, the other takes over.
func TestDiamondHeals(t *testing.T) {
	for _, c := range []struct {
		name  string
		hurt  func(v *village, ab, bd *linktest.Segment, b *house)
		limit time.Duration
	}{
		{"cable pulled", func(v *village, ab, bd *linktest.Segment, b *house) { b.host.Plug(ab, false) }, 2 * time.Second},
		{"silence", func(v *village, ab, bd *linktest.Segment, b *house) { bd.Set(linktest.Quality{Silence: true}) }, 2 * time.Second},
		{"killed", func(v *village, ab, bd *linktest.Segment, b *house) { b.host.Crash() }, 2 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newVillage(t)
				defer v.close()
				ab, bd := v.net.Segment(cable), v.net.Segment(cable)
				slow := linktest.Quality{Delay: 8 * time.Millisecond}
				ac, cd := v.net.Segment(slow), v.net.Segment(slow)
				a, b := v.house(named("a"), ab, ac), v.house(named("b"), ab, bd)
				cc, d := v.house(named("c"), ac, cd), v.house(named("d"), bd, cd)
				reach(t, a, d, 5*time.Second)
				time.Sleep(20 * time.Second)
				reach(t, a, d, time.Second)
				before, _ := cc.Status(t.Context())
				c.hurt(v, ab, bd, b)
				gap := reach(t, a, d, 5*time.Second)
				t.Logf("gap %v", gap)
				if gap > c.limit {
					t.Errorf("gap %v, at most %v", gap, c.limit)
				}
				if after, _ := cc.Status(t.Context()); after.Counters.ForwardedPackets <= before.Counters.ForwardedPackets {
					t.Error("the other way was not used")
				}
			})
		})
	}
}

func TestClosedNetworkRefusesStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t)
		defer v.close()
		lan := v.net.Segment(cable)
		member := func(name string, key byte) func(*config.Config) {
			return func(c *config.Config) { named(name)(c); c.Community.Key = config.Secret{key} }
		}
		a, b := v.house(member("a", 1), lan), v.house(member("b", 1), lan)
		x, o := v.house(member("x", 2), lan), v.house(named("o"), lan)
		reach(t, a, b, 5*time.Second)
		time.Sleep(20 * time.Second)
		for _, h := range []*house{a, b, x, o} {
			s, _ := h.Status(t.Context())
			want := map[string]int{"a": 1, "b": 1, "x": 0, "o": 0}[s.Name]
			if s.Counters.Links != want {
				t.Errorf("%s has %d links, want %d", s.Name, s.Counters.Links, want)
			}
		}
	})
}

func TestFirewallIsClosedByDefault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t)
		defer v.close()
		lan := v.net.Segment(cable)
		a := v.house(named("a"), lan)
		b := v.house(func(c *config.Config) { c.Name = "b" }, lan)
		reach(t, b, a, 5*time.Second) // a lets port 9 in, b nothing
		a.dev.Inject(tun.Packet{Data: packet(a, b, 1), Partial: true})
		time.Sleep(time.Second)
		for len(b.dev.Out()) > 0 {
			if p := <-b.dev.Out(); p[6] == tun.ProtoUDP && binary.BigEndian.Uint16(p[42:]) == 9 {
				t.Fatal("a packet came through a closed firewall")
			}
		}
		if _, err := b.SetFirewall(t.Context(), api.FirewallRequest{Rules: []string{"allow udp 9 from key:" + a.self.String()}}); err != nil {
			t.Fatal(err)
		}
		reach(t, a, b, time.Second)
	})
}

func TestRestartKeepsIdentityAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t)
		defer v.close()
		lan := v.net.Segment(cable)
		a, b := v.house(named("a"), lan), v.house(named("b"), lan)
		reach(t, a, b, 5*time.Second)
		time.Sleep(30 * time.Second)
		was := b.self
		b.host.Crash() // as kill -9: nothing is said
		b.stop()
		<-b.done
		v.houses = v.houses[:1]
		b.host = v.net.Host(lan)
		v.start(b)
		if d := reach(t, a, b, 5*time.Second); d > 3*time.Second {
			t.Errorf("back after %v", d)
		}
		if b.self != was {
			t.Error("another identity after a restart")
		}
	})
}

func TestTwoDevicesWithOneKeyAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t)
		defer v.close()
		hs, cables := v.line(3)
		reach(t, hs[0], hs[2], 5*time.Second)
		twin := &house{host: v.net.Host(cables[1]), dir: t.TempDir(), cfg: hs[0].cfg}
		key, err := os.ReadFile(filepath.Join(hs[0].dir, ident.KeyFile))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(twin.dir, ident.KeyFile), key, 0o600); err != nil {
			t.Fatal(err)
		}
		v.start(twin)
		told := func(h *house) bool { s, _ := h.Status(t.Context()); return len(s.Warnings) > 0 }
		for range 120 {
			time.Sleep(time.Second)
			if told(twin) || told(hs[0]) {
				break
			}
		}
		if !told(twin) && !told(hs[0]) {
			t.Error("nobody noticed that two devices have one key")
		}
	})
}
