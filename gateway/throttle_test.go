package gateway

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/gateway/nat64"
	"weft/ident"
	"weft/tun"
)

// books is a carrier and a host that note what goes to and from each client, and lose it.
type books struct {
	nowhere
	mu    sync.Mutex
	bytes map[ident.PublicKey]*[2]int // billed: down, up
	pings map[uint16]time.Duration    // when one went through, by id
	owner map[netip.Addr]ident.PublicKey
	start time.Time
}

func (b *books) note(k ident.PublicKey, dir int, p tun.Packet) {
	segs, hdr := 1, 0
	if p.SegSize != 0 {
		hdr, _ = tun.HeaderLen(p.Data)
		segs = (len(p.Data) - hdr + int(p.SegSize) - 1) / int(p.SegSize)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bytes[k] == nil {
		b.bytes[k] = new([2]int)
	}
	b.bytes[k][dir] += len(p.Data) + (segs-1)*hdr + segs*billed
	if p.Data[0]>>4 == 4 && p.Data[9] == protoICMP && p.Data[20] != 3 {
		b.pings[binary.BigEndian.Uint16(p.Data[24:])] = time.Since(b.start)
	}
}

func (b *books) SendOutside(peer ident.PublicKey, pkts ...tun.Packet) error {
	for _, p := range pkts {
		b.note(peer, 0, p)
	}
	return nil
}

func (b *books) Write(p []byte, partial bool) {
	src, _, _ := ends(p)
	b.mu.Lock()
	k := b.owner[src.netip()]
	b.mu.Unlock()
	b.note(k, 1, tun.Packet{Data: p})
}

func (b *books) of(k ident.PublicKey) (down, up int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if x := b.bytes[k]; x != nil {
		return x[0], x[1]
	}
	return 0, 0
}

func (b *books) both(k ident.PublicKey) int { down, up := b.of(k); return down + up }

// counter is a gateway that runs, as session and the device see it.
type counter struct {
	*Gateway
	*books
	t *testing.T
}

func counting(t *testing.T, c OfferConfig, f func(c *counter)) {
	synctest.Test(t, func(t *testing.T) {
		b := &books{bytes: map[ident.PublicKey]*[2]int{}, pings: map[uint16]time.Duration{}, owner: map[netip.Addr]ident.PublicKey{}, start: time.Now()}
		g, err := New(Config{Self: key(1), Log: slog.New(slog.DiscardHandler), Carrier: b, Host: func() tun.Writer { return b }})
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Offer(c); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := g.Serve(ctx); err != nil {
				t.Error(err)
			}
		})
		defer func() { stop(); wg.Wait() }()
		synctest.Wait()
		f(&counter{g, b, t})
	})
}

// lease has a client ask for one.
func (c *counter) lease(k ident.PublicKey) netip.Addr {
	c.Gateway.mu.Lock()
	m := c.request(k, &message{kind: msgRequest, id: 1, families: wantDefault | NAT64}, time.Now())
	c.Gateway.mu.Unlock()
	if m.kind != msgGrant {
		c.t.Fatalf("refused: %+v", m)
	}
	c.books.mu.Lock()
	defer c.books.mu.Unlock()
	c.owner[m.v4], c.owner[k.Addr()] = k, k
	return m.v4
}

func (c *counter) end(k ident.PublicKey) {
	c.Gateway.mu.Lock()
	defer c.Gateway.mu.Unlock()
	c.endLease(c.leases.of(k), time.Now())
}

func (c *counter) up(k ident.PublicKey, ip []byte) bool {
	ok := c.FromPeer(k, ip, false)
	if ok {
		c.note(k, 1, tun.Packet{Data: ip})
	}
	return ok
}

func (c *counter) down(p tun.Packet) bool {
	k, ok := c.FromHost(&p)
	if ok {
		c.note(k, 0, p)
	}
	return ok
}

// waiting counts what throttles hold back.
func (c *counter) waiting() (n int) {
	c.held.mu.Lock()
	defer c.held.mu.Unlock()
	for _, th := range c.held.busy {
		n += th.q.Len()
	}
	if n != c.held.waiting {
		c.t.Errorf("%d packets wait, %d are counted", n, c.held.waiting)
	}
	return n
}

func within(t *testing.T, what string, got, want, percent int) {
	t.Helper()
	if got < want*(100-percent)/100 || got > want*(100+percent)/100 {
		t.Errorf("%s: %d, want %d", what, got, want)
	}
}

var lines = map[string]OfferConfig{
	"a line without a rate": unshaped,
	"a fast line":           plain,
	"a narrow line":         {IPv4: true, IPv6: true, DownKbps: 3000, UpKbps: 3000},
}

// Floods both ways get the throttle's rate together; beside them pings and questions for names pass, and others notice nothing.
func TestThrottle(t *testing.T) {
	for name, offer := range lines {
		for _, mix := range [][2]int{{1, 1}, {1, 0}, {0, 1}} {
			t.Run(name, func(t *testing.T) {
				counting(t, offer, func(c *counter) {
					k, other := key(2), key(3)
					c.Throttle(k, 512) // before there is a lease
					a, b := c.lease(k), c.lease(other)
					sent, asked := map[uint16]time.Duration{}, 0
					for i := range 2000 { // 10 s
						if mix[0] == 1 && i%20 == 0 { // 3.4 Mbit/s, in super-packets
							c.down(tun.Packet{Data: udp(web, a, 9, 1, 40_000), SegSize: 1200, Partial: true})
						}
						if mix[1] == 1 { // 2 Mbit/s
							c.up(k, udp(a, web, 1, 9, 1172))
						}
						if i%50 == 0 {
							id := uint16(i + 1)
							sent[id], sent[id+1] = time.Since(c.books.start), time.Since(c.books.start)
							c.up(k, echo(a, web2, id))
							c.down(tun.Packet{Data: echo(web2, a, id+1)})
							asked++
						}
						up, down := c.up(other, udp(b, web, 1, 9, 1172)), c.down(tun.Packet{Data: udp(web, b, 9, 1, 1172)})
						if offer.UpKbps == 0 && !(up && down) {
							c.t.Fatal("another client's packets wait")
						}
						time.Sleep(5 * time.Millisecond)
					}
					within(t, "both directions", c.both(k), 640_000, 10)
					down, up := c.of(k)
					if mix == [2]int{1, 1} && (down < up/2 || up < down/2) {
						t.Errorf("down got %d, up %d", down, up)
					}
					down, up = c.of(other) // 1172 + 28 + 64, 2000 times each way
					within(t, "another's downloads", down, 2000*1264, 2)
					within(t, "another's uploads", up, 2000*1264, 2)
					c.books.mu.Lock()
					defer c.books.mu.Unlock()
					for id, at := range sent {
						if got, ok := c.pings[id]; !ok || got-at > 60*time.Millisecond {
							t.Errorf("ping %d: %v, after %v", id, ok, got-at)
						}
					}
					if asked == 0 || len(sent) != 2*asked {
						t.Error("no pings")
					}
				})
			})
		}
	}
}

// A page's first packets do not wait behind the client's own flood: each flow has its turn.
func TestThrottleFlowsTakeTurns(t *testing.T) {
	counting(t, unshaped, func(c *counter) {
		k := key(2)
		a := c.lease(k)
		c.Throttle(k, 512)
		for i := range 200 { // a second to fill the queue
			c.up(k, udp(a, web, 1, 9, 1172))
			if i > 100 && i%20 == 0 {
				c.down(tun.Packet{Data: udp(web2, a, 53, uint16(i), 400)})
			}
			time.Sleep(5 * time.Millisecond)
		}
		time.Sleep(60 * time.Millisecond)
		if down, _ := c.of(k); down != 4*(428+billed) {
			t.Errorf("%d bytes of answers beside an upload", down)
		}
	})
}

// It holds within a second also for what waits in the queue of the line, a lower one replaces a higher, and when it is lifted
// all passes again.
func TestThrottleBeginsAndEnds(t *testing.T) {
	counting(t, lines["a narrow line"], func(c *counter) {
		k := key(2)
		a := c.lease(k)
		flood := func(d time.Duration) int {
			before := c.both(k)
			for range d / (2 * time.Millisecond) { // 4.8 Mbit/s each way
				c.up(k, udp(a, web, 1, 9, 1172))
				c.down(tun.Packet{Data: udp(web, a, 9, 1, 1172)})
				time.Sleep(2 * time.Millisecond)
			}
			return c.both(k) - before
		}
		free := flood(2 * time.Second)
		if q := c.Gateway.up.shaper.Stats(); q.Backlog < 50_000 {
			c.t.Fatalf("%d bytes wait", q.Backlog)
		}
		c.Throttle(k, 100)
		if got := flood(time.Second); got > 12_500+3*1264 {
			t.Errorf("%d bytes in the first second at 100 kbit/s", got)
		}
		c.Throttle(k, 1000)
		within(t, "another rate", flood(10*time.Second), 1_250_000, 10)
		c.Throttle(k, 0)
		flood(time.Second)
		within(t, "lifted", flood(2*time.Second), free, 5)
		if c.leases.of(k).throttle.Load() != nil || len(c.leases.slow) != 0 || c.waiting() != 0 {
			t.Error("something is left of the throttle")
		}
	})
}

// A lease that ends takes with it what waits, since its addresses may be another's next, and the next one begins throttled.
func TestThrottleOutlivesLeases(t *testing.T) {
	counting(t, unshaped, func(c *counter) {
		k := key(2)
		a := c.lease(k)
		c.Throttle(k, 64)
		for range 50 {
			c.up(k, udp(a, web, 1, 9, 1172))
		}
		time.Sleep(100 * time.Millisecond)
		before := c.both(k)
		c.end(k)
		time.Sleep(30 * time.Second)
		if got := c.both(k); got != before {
			t.Errorf("%d bytes of a lease that ended", got-before)
		}
		if n := c.waiting(); n != 0 {
			t.Errorf("%d still wait", n)
		}
		for range 20 { // many leases are no more than one
			a = c.lease(k)
			for range 100 {
				c.up(k, udp(a, web, 1, 9, 1172))
				time.Sleep(5 * time.Millisecond)
			}
			c.end(k)
		}
		if got := c.both(k) - before; got > 80_000*11/10 {
			t.Errorf("%d bytes in 10 s at 64 kbit/s", got)
		}
		c.Throttle(k, 0)
		a = c.lease(k)
		if !c.up(k, udp(a, web, 1, 9, 1172)) {
			t.Error("lifted without a lease, and it holds on")
		}
	})
}

// What the gateway makes or translates for a client is its traffic too.
func TestThrottleNAT64AndAnswers(t *testing.T) {
	prefix := netip.MustParsePrefix("64:ff9b:1:2::/96")
	for name, line := range lines {
		t.Run(name, func(t *testing.T) {
			counting(t, with(line, func(c *OfferConfig) { c.NAT64 = prefix }), func(c *counter) {
				k := key(2)
				a := c.lease(k)
				p, err := nat64.NewPrefix(prefix)
				if err != nil {
					c.t.Fatal(err)
				}
				to, _ := p.Embed(web)
				c.Throttle(k, 64)
				out := func() []byte {
					b := udp(k.Addr(), to, 1000, 53, 1100)
					tun.FinishChecksum(b)
					return b
				}
				c.up(k, out())
				time.Sleep(time.Second)
				c.books.mu.Lock()
				wrote := c.bytes[ident.PublicKey{}] // the address that stands for it is nobody's lease
				c.books.mu.Unlock()
				if wrote == nil {
					c.t.Fatalf("nothing was translated: %v", c.Status().Refused)
				}
				before := wrote[1]
				v4, ok := c.table64.Load().table.Map(nat64.Owner(k), k.Addr())
				if !ok {
					c.t.Fatal("no address")
				}
				for range 2000 {
					c.up(k, out())
					in := udp(web, v4, 53, 1000, 1100)
					tun.FinishChecksum(in)
					binary.BigEndian.PutUint16(in[10:], ^tun.Sum(in[:20], 0))
					c.down(tun.Packet{Data: in})
					c.up(k, udp(a, lan, 1, 9, 1000)) // is told that it must not: 10 answers a second of 576 bytes
					time.Sleep(5 * time.Millisecond)
				}
				c.books.mu.Lock()
				got := wrote[1] - before + c.bytes[k][0]
				c.books.mu.Unlock()
				within(t, "translated and answered", got, 80_000, 12)
			})
		})
	}
}

// Memory is bounded: in clients that are throttled, and in packets that wait for all of them; each has its part.
func TestThrottleIsBounded(t *testing.T) {
	counting(t, unshaped, func(c *counter) {
		for i := range uint32(maxThrottled + 10) {
			k := key(9)
			binary.BigEndian.PutUint32(k[8:], i)
			c.Throttle(k, 64)
		}
		if n := len(c.leases.slow); n != maxThrottled {
			t.Errorf("%d throttles", n)
		}
		for k := range c.leases.slow {
			c.Throttle(k, 0)
		}
		const clients = 150
		var addrs []netip.Addr
		for i := range clients {
			c.Throttle(key(byte(i+20)), 128)
			addrs = append(addrs, c.lease(key(byte(i+20))))
		}
		most := 0
		for range 1000 { // 10 s
			for i, a := range addrs {
				c.up(key(byte(i+20)), udp(a, web, 1, 9, 900))
			}
			most = max(most, c.waiting())
			time.Sleep(10 * time.Millisecond)
		}
		if most > maxHeld+clients*leastHeld || most < maxHeld/2 {
			t.Errorf("%d packets waited", most)
		}
		for i := range addrs {
			within(t, "one of many", c.both(key(byte(i+20))), 160_000, 10)
		}
	})
}

func TestThrottledAllocatesNothing(t *testing.T) {
	k := key(9)
	g, m := serving(t, unshaped, k)
	g.Throttle(k, 512)
	p, big := udp(m.v4, web, 1, 80, 1000), tun.Packet{Data: udp(web, m.v4, 80, 1, 10_000), SegSize: 1000, Partial: true}
	step := func() { g.FromPeer(k, p, false); g.FromHost(&big) }
	for range 200 {
		step()
	}
	if n := testing.AllocsPerRun(200, step); n > 0 && !raceEnabled {
		t.Errorf("%v allocations", n)
	}
}

// TestThrottleFromEverywhere is for the race detector.
func TestThrottleFromEverywhere(t *testing.T) {
	counting(t, unshaped, func(c *counter) {
		k := key(2)
		a := c.lease(k)
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				for n := range 300 {
					switch i {
					case 0:
						c.Throttle(k, uint32(n%3)*200)
					case 1:
						c.up(k, udp(a, web, 1, 9, 1000))
					case 2:
						c.down(tun.Packet{Data: udp(web, a, 9, 1, 10_000), SegSize: 1000, Partial: true})
					}
					if n%10 == 0 {
						time.Sleep(time.Millisecond)
					}
				}
			})
		}
		wg.Wait()
		c.end(k)
	})
}

// Strangers with ever new keys do not use up the places: who has a lease is throttled, however many were before. Nobody who has a
// lease makes way.
func TestThrottleHasRoom(t *testing.T) {
	counting(t, unshaped, func(c *counter) {
		stays, k := key(2), key(3)
		a := c.lease(stays)
		c.Throttle(stays, 512)
		for i := range maxThrottled + 100 {
			var stranger ident.PublicKey
			binary.BigEndian.PutUint64(stranger[:], uint64(i)|1<<40)
			c.Throttle(stranger, 128)
		}
		if n := len(c.leases.slow); n > maxThrottled {
			t.Errorf("%d are throttled", n)
		}
		b := c.lease(k)
		c.Throttle(k, 512)
		for range 2000 { // 10 s
			c.up(k, udp(b, web, 1, 9, 1172))
			c.up(stays, udp(a, web, 1, 9, 1172))
			time.Sleep(5 * time.Millisecond)
		}
		within(t, "a client after so many strangers", c.both(k), 640_000, 10)
		within(t, "one from before them", c.both(stays), 640_000, 10)
	})
}
