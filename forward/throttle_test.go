package forward

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"weft/ident"
	"weft/wire"
)

// book is a Sender that notes what it was given, and loses it.
type book struct {
	mu      sync.Mutex
	bytes   map[flowKey]int // whole datagrams
	packets map[flowKey]int
	slowest time.Duration // of those of pingSize, since pinged
	pinged  time.Time
}

const pingSize = 100 // of the payload

func newBook() *book { return &book{bytes: map[flowKey]int{}, packets: map[flowKey]int{}} }

func (b *book) Send(buf []byte, seg int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for at := 0; at < len(buf); at += seg {
		h := wire.Hop(buf[at:min(at+seg, len(buf))])
		k := flowKey{dest: h.Dest(), class: h.Class()}
		b.bytes[k] += len(h)
		b.packets[k]++
		if len(h.Payload()) == pingSize {
			b.slowest = max(b.slowest, time.Since(b.pinged))
		}
	}
	return nil
}

func (b *book) of(class wire.Class, dest ident.NodeID) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.packets[flowKey{dest: dest, class: class}]
}

func (b *book) size(class wire.Class, dest ident.NodeID) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes[flowKey{dest: dest, class: class}]
}

// village is a user behind a relay behind a gateway, seen at the relay; a second user and a second gateway are on the user's side.
type village struct {
	user, relay, gate     *node
	user2, gate2          ident.NodeID // behind user
	toUser, toGate        *book        // what the relay sends
	fromUser, owes, other *Neighbour   // the user's end; the relay's neighbours: the gateway, the user
	end                   func()
}

func newVillage(t testing.TB, serve bool) *village {
	a, b, c, ab, ba, bc, cb := row(t)
	v := &village{user: a, relay: b, gate: c, user2: 77, gate2: 78, toUser: newBook(), toGate: newBook(), fromUser: ab.n, owes: bc.n, other: ba.n}
	ba.n.sender, bc.n.sender = v.toUser, v.toGate
	ida, idb, idc := a.key.ID(), b.key.ID(), c.key.ID()
	b.plane.SetTable(Table{ida: {Primary: ba.n}, v.user2: {Primary: ba.n}, v.gate2: {Primary: ba.n}, idc: {Primary: bc.n}})
	c.plane.SetTable(Table{ida: {Primary: cb.n}, idb: {Primary: cb.n}, v.user2: {Primary: cb.n}, v.gate2: {Primary: cb.n}})
	b.plane.SetGateways(map[ident.NodeID]struct{}{idc: {}, v.gate2: {}})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	if serve {
		wg.Go(func() {
			if err := b.plane.Serve(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	v.end = func() { cancel(); wg.Wait() }
	return v
}

func (n *node) sendTo(t testing.TB, to ident.NodeID, class wire.Class, count, size int) {
	t.Helper()
	buf, seg, _ := burst(count, size, size)
	if err := n.plane.Send(to, class, buf, seg); err != nil {
		t.Fatal(err)
	}
}

// Floods both ways through a throttled neighbour get the rate together, pings pass beside them, and nothing else is touched.
func TestThrottledNeighbour(t *testing.T) {
	for _, serve := range []bool{true, false} {
		for _, mix := range []struct{ up, down int }{{1, 1}, {4, 0}, {0, 4}, {1, 3}} {
			synctest.Test(t, func(t *testing.T) {
				v := newVillage(t, serve)
				defer v.end()
				synctest.Wait()
				user, relay, gate := v.user.key.ID(), v.relay.key.ID(), v.gate.key.ID()
				v.owes.Throttle(512)
				const size, steps = 1300, 1000
				for i := range steps { // 10 s; 4.2 Mbit/s
					for range mix.up {
						v.user.sendTo(t, gate, wire.ClassGateway, 2, size)
					}
					for range mix.down {
						v.gate.sendTo(t, user, wire.ClassGateway, 2, size)
					}
					if i%50 == 0 {
						for _, b := range []*book{v.toUser, v.toGate} {
							b.mu.Lock()
							b.pinged = time.Now()
							b.mu.Unlock()
						}
						v.user.sendTo(t, gate, wire.ClassGateway, 1, pingSize)
						v.gate.sendTo(t, user, wire.ClassGateway, 1, pingSize)
					}
					// What is no business of the throttle.
					v.user.sendTo(t, gate, wire.ClassBulk, 1, size)
					v.gate.sendTo(t, user, wire.ClassControl, 1, size)
					v.gate.sendTo(t, relay, wire.ClassGateway, 1, size)   // the relay's own
					v.relay.sendTo(t, gate, wire.ClassControl, 1, size)   //
					v.gate.sendTo(t, v.gate2, wire.ClassGateway, 1, size) // here the throttled is the user's side
					time.Sleep(10 * time.Millisecond)
				}
				up, down := v.toGate.size(wire.ClassGateway, gate), v.toUser.size(wire.ClassGateway, user)
				if got, want := up+down, 512_000/8*10; got < want*9/10 || got > want*11/10 {
					t.Errorf("served %v, %+v: %d + %d bytes in 10 s, want %d", serve, mix, up, down, want)
				}
				if mix.up == mix.down && (up < down*8/10 || down < up*8/10) {
					t.Errorf("up got %d, down %d", up, down)
				}
				if n := v.toUser.of(wire.ClassControl, user); n != steps {
					t.Errorf("%d of %d control", n, steps)
				}
				if n := v.toGate.of(wire.ClassBulk, gate); n != steps {
					t.Errorf("%d of %d bulk", n, steps)
				}
				if n := v.toGate.of(wire.ClassControl, gate); n != steps {
					t.Errorf("%d of %d of the relay's own", n, steps)
				}
				if n := len(v.relay.got); n != steps {
					t.Errorf("%d of %d for the relay itself", n, steps)
				}
				if n := v.toUser.of(wire.ClassGateway, v.gate2); n != steps {
					t.Errorf("%d of %d to another gateway", n, steps)
				}
				if w := max(v.toUser.slowest, v.toGate.slowest); serve && w > 60*time.Millisecond {
					t.Errorf("%+v: the slowest ping waited for %v", mix, w)
				}
				if v.relay.plane.Counts().Shed == 0 {
					t.Error("nothing was dropped")
				}
			})
		}
	}
}

// What a throttled neighbour hands over counts when it passes, and not when it is dropped.
func TestHeldBackIsNotCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t, true)
		defer v.end()
		user := v.user.key.ID()
		from := func() (n uint64) {
			for _, f := range v.owes.Flows() {
				if f.Hops != 0 {
					t.Errorf("%+v", f)
				}
				n += f.Packets
			}
			return n
		}
		v.owes.Throttle(512)
		for range 500 {
			v.gate.sendTo(t, user, wire.ClassGateway, 3, 1300)
			time.Sleep(10 * time.Millisecond)
		}
		synctest.Wait()
		if got := v.toUser.of(wire.ClassGateway, user); from() != uint64(got) || got == 0 || got > 400 {
			t.Errorf("%d passed, %d are counted", got, from())
		}
		st := v.owes.Stats()
		if st.RecvPackets != 1500 || st.HighestCounter != 1500 {
			t.Errorf("the link seems to lose: %+v", st)
		}
		before := v.toUser.of(wire.ClassGateway, user)
		v.owes.Throttle(0)
		synctest.Wait()
		if waited := v.toUser.of(wire.ClassGateway, user) - before; waited == 0 || waited > maxHeld {
			t.Errorf("%d were waiting", waited)
		}
		before = v.toUser.of(wire.ClassGateway, user)
		v.gate.sendTo(t, user, wire.ClassGateway, 50, 1300)
		if got := v.toUser.of(wire.ClassGateway, user); got != before+50 || from() != uint64(got) {
			t.Errorf("lifted: %d of 50, %d counted of %d", got-before, from(), got)
		}
	})
}

// Behind a throttled neighbour one user's flood leaves another its share.
func TestThrottledUsersShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t, true)
		defer v.end()
		v.owes.Throttle(1000)
		user := v.user.key.ID()
		for i := range 1000 {
			v.gate.sendTo(t, user, wire.ClassGateway, 5, 1300)
			if i%4 == 0 { // 0.27 Mbit/s
				v.gate.sendTo(t, v.user2, wire.ClassGateway, 1, 1300)
			}
			time.Sleep(10 * time.Millisecond)
		}
		synctest.Wait()
		if n := v.toUser.of(wire.ClassGateway, v.user2); n < 245 {
			t.Errorf("beside a flood %d of 250 datagrams passed", n)
		}
	})
}

// A throttle goes with its neighbour, and so do those that wait; Serve runs once at a time, and drops them in the end.
func TestThrottleEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t, true)
		synctest.Wait()
		if err := v.relay.plane.Serve(t.Context()); err == nil {
			t.Error("Serve runs twice")
		}
		v.owes.Throttle(64)
		user := v.user.key.ID()
		v.gate.sendTo(t, user, wire.ClassGateway, 20, 1300)
		synctest.Wait()
		v.relay.plane.Remove(v.owes)
		v.owes.Throttle(64)
		if len(v.relay.plane.curbed) != 0 || v.owes.curbed.q.Len() != 0 {
			t.Error("a removed neighbour's datagrams still wait")
		}
		before := v.toUser.of(wire.ClassGateway, user)
		time.Sleep(time.Minute)
		if v.toUser.of(wire.ClassGateway, user) != before {
			t.Error("they were sent")
		}
		v.other.Throttle(64) // it owes for what goes to the gateway behind it
		v.gate.sendTo(t, user, wire.ClassBulk, 1, 1300)
		v.end()
		v.other.Throttle(32)
	})
}

// TestThrottleFromEverywhere is for the race detector.
func TestThrottleFromEverywhere(t *testing.T) {
	v := newVillage(t, true)
	defer v.end()
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			for n := range 200 {
				v.owes.Throttle(uint32(n%3) * 1e6)
				v.relay.plane.SetGateways(map[ident.NodeID]struct{}{v.gate.key.ID(): {}})
				if i == 0 {
					v.owes.Flows()
				}
			}
		})
	}
	for range 200 {
		v.gate.sendTo(t, v.user.key.ID(), wire.ClassGateway, 10, 200)
		v.user.sendTo(t, v.gate.key.ID(), wire.ClassGateway, 10, 1000)
	}
	wg.Wait()
}

func TestThrottledAllocatesNothing(t *testing.T) {
	v := newVillage(t, false)
	defer v.end()
	v.owes.Throttle(512)
	buf, seg, _ := burst(40, 1400, 1400)
	flood := func() { v.gate.plane.Send(v.user.key.ID(), wire.ClassGateway, buf, seg) }
	into := v.gate.plane.neighbour((*v.gate.plane.slots.Load())[0].index)
	kept := &keep{}
	into.sender = kept
	r := v.relay.plane.NewReceiver()
	step := func() { flood(); r.Receive(Endpoint{Port: 1}, kept.buf, seg) }
	for range 100 {
		step()
	}
	if n := testing.AllocsPerRun(500, step); n != 0 && !raceEnabled {
		t.Errorf("%v allocations for 40 datagrams to a throttled neighbour", n)
	}
}

// Over a line of four nodes both ends of each link count the same, relays passed included, whatever is sent at once and however
// links are shaped and throttled.
func TestHopsAgree(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		shaped := rapid.Bool().Draw(rt, "shaped")
		throttled := rapid.Bool().Draw(rt, "throttled")
		check := func(t testing.TB) {
			var nodes [4]*node
			var right, left [4]linkEnd // of node i, to i+1 and to i-1
			for i := range nodes {
				nodes[i] = newNode(byte(i + 1))
				if i > 0 {
					right[i-1], left[i] = connect(t, nodes[i-1], nodes[i])
				}
			}
			for i, n := range nodes {
				table := Table{}
				for j, to := range nodes {
					if j > i {
						table[to.key.ID()] = NextHop{Primary: right[i].n}
					} else if j < i {
						table[to.key.ID()] = NextHop{Primary: left[i].n}
					}
				}
				n.plane.SetTable(table)
				n.plane.SetGateways(map[ident.NodeID]struct{}{nodes[3].key.ID(): {}})
			}
			var ends []func()
			var order atomic.Int64 // the links of a test are for one goroutine at a time
			if shaped {
				right[1].p.tap = func(b []byte) []byte { order.Add(1); return b }
				right[1].n.SetRate(1_000_000)
				ends = append(ends, pace(t, right[1].n))
			}
			if throttled {
				right[1].n.Throttle(400)
				right[2].n.Throttle(500)
			}
			if shaped {
				synctest.Wait()
			}
			index := map[ident.NodeID]int{}
			for i, n := range nodes {
				index[n.key.ID()] = i
			}
			for range rapid.IntRange(1, 30).Draw(rt, "sends") {
				from, to := rapid.IntRange(0, 3).Draw(rt, "from"), rapid.IntRange(0, 3).Draw(rt, "to")
				if from == to {
					continue
				}
				class := wire.Class(rapid.IntRange(0, 3).Draw(rt, "class"))
				nodes[from].send(t, nodes[to], class, rapid.IntRange(1, 60).Draw(rt, "count"), rapid.IntRange(16, 900).Draw(rt, "size"))
				if shaped {
					synctest.Wait()
					order.Add(1)
				}
			}
			if shaped {
				time.Sleep(time.Minute)
			}
			for i := range nodes { // what still waits
				for _, e := range []linkEnd{right[i], left[i]} {
					if e.n != nil {
						e.n.Throttle(0)
					}
					if shaped {
						synctest.Wait()
						order.Add(1)
					}
				}
			}
			if shaped {
				time.Sleep(time.Minute)
			}
			for _, end := range ends {
				end()
			}
			sort := func(f []Flow) []Flow {
				slices.SortFunc(f, func(x, y Flow) int {
					return cmp.Or(cmp.Compare(x.Dest, y.Dest), cmp.Compare(x.Class, y.Class), cmp.Compare(x.Hops, y.Hops))
				})
				return f
			}
			for i := range 3 {
				for _, l := range [][2]*Neighbour{{right[i].n, left[i+1].n}, {left[i+1].n, right[i].n}} {
					sent, got := []Flow{}, sort(l[1].Flows())
					for _, h := range l[0].Handed() {
						if f := h.Flow; throttled && l[1].curbed != nil && f.Class == wire.ClassGateway { // what is held back may be dropped
							f.Packets, f.Bytes = 0, 0
							for _, g := range got {
								if g.Dest == f.Dest && g.Class == f.Class && g.Hops == f.Hops && g.Packets <= h.Packets && g.Bytes <= h.Bytes {
									f = g
								}
							}
							if f.Packets != 0 {
								sent = append(sent, f)
							}
							continue
						}
						sent = append(sent, h.Flow)
					}
					if d := gocmp.Diff(got, sort(sent)); d != "" {
						rt.Fatalf("link %d: received and handed over differ: %s", i, d)
					}
					behind := i // relays that those on this side may have passed
					if l[0] == left[i+1].n {
						behind = 2 - i
					}
					for _, f := range got {
						if int(f.Hops) > behind || f.Class != wire.ClassGateway && f.Hops != 0 {
							rt.Fatalf("link %d: %+v", i, f)
						}
					}
				}
			}
		}
		if shaped {
			synctest.Test(t, func(t *testing.T) { check(t) })
		} else {
			check(t)
		}
	})
}

// Each link counts the relays of its own place in the way.
func TestHopsOfALine(t *testing.T) {
	a, b, c, ab, ba, bc, cb := row(t)
	a.send(t, c, wire.ClassGateway, 10, 100)
	c.send(t, a, wire.ClassGateway, 20, 100)
	b.send(t, c, wire.ClassGateway, 5, 100)
	a.send(t, c, wire.ClassBulk, 7, 100)
	want := func(what string, n *Neighbour, want map[flowKey]uint64) {
		t.Helper()
		got := map[flowKey]uint64{}
		for _, f := range n.Flows() {
			got[flowKey{f.Dest, f.Class, f.Hops}] = f.Packets
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	ida, idc := a.key.ID(), c.key.ID()
	want("from a at b", ba.n, map[flowKey]uint64{{idc, wire.ClassGateway, 0}: 10, {idc, wire.ClassBulk, 0}: 7})
	want("from b at c", cb.n, map[flowKey]uint64{{idc, wire.ClassGateway, 0}: 5, {idc, wire.ClassGateway, 1}: 10, {idc, wire.ClassBulk, 0}: 7})
	want("from c at b", bc.n, map[flowKey]uint64{{ida, wire.ClassGateway, 0}: 20})
	want("from b at a", ab.n, map[flowKey]uint64{{ida, wire.ClassGateway, 1}: 20})
}

// with seals a datagram that begins with another TTL than 64.
func (n *Neighbour) with(ttl uint8, class wire.Class, dest ident.NodeID) []byte {
	h := wire.Hop(make([]byte, wire.HopLen+100))
	h.Start(ttl, class, dest)
	k := n.keys.Load()
	h.Seal(k.send, wire.KindData, k.epoch, k.peerIndex, n.reserve(k, 1))
	return h
}

// In one burst there may be datagrams that differ in their TTLs alone. What begins above 64 counts as 64 at both ends of each link,
// and what passed more than MaxHops as MaxHops.
func TestHopsOfForgedTTLs(t *testing.T) {
	_, b, c, ab, ba, bc, cb := row(t)
	var all []byte
	for _, ttl := range []uint8{64, 64, 63, 64, 255, 65, 48, 40, 2} {
		all = append(all, ab.n.with(ttl, wire.ClassGateway, c.key.ID())...)
	}
	b.plane.NewReceiver().Receive(Endpoint{Port: 1}, all, wire.HopLen+100)
	hops := func(f []Flow) map[uint8]uint64 {
		m := map[uint8]uint64{}
		for _, f := range f {
			m[f.Hops] += f.Packets
		}
		return m
	}
	if got, want := hops(ba.n.Flows()), (map[uint8]uint64{0: 5, 1: 1, 16: 3}); !maps.Equal(got, want) {
		t.Errorf("in: %v, want %v", got, want)
	}
	var sent []Flow
	for _, h := range bc.n.Handed() {
		sent = append(sent, h.Flow)
	}
	want := map[uint8]uint64{1: 5, 2: 1, 16: 3}
	if got := hops(sent); !maps.Equal(got, want) || bc.p.bulks != 1 {
		t.Errorf("out: %v in %d bursts, want %v in one", got, bc.p.bulks, want)
	}
	if got := hops(cb.n.Flows()); !maps.Equal(got, want) {
		t.Errorf("at the end: %v, want %v", got, want)
	}
}

// Who makes up TTLs gets more entries for the destinations it names, and takes no other's place.
func TestLiarsFillNoTally(t *testing.T) {
	self := newNode(1)
	known := Table{}
	for i := range maxFlows + 1 {
		known[ident.NodeID(i+1000)] = NextHop{}
	}
	self.plane.SetTable(known)
	tally := newTally()
	h := wire.Hop(make([]byte, wire.MinHop))
	for i := range maxFlows - 1 {
		for ttl := range 256 {
			h.Start(uint8(ttl), wire.ClassGateway, ident.NodeID(i+1000))
			tally.add(self.plane, h)
		}
	}
	h.Start(64, wire.ClassGateway, 1000+maxFlows-1)
	if f := tally.add(self.plane, h); f.Dest != 1000+maxFlows-1 {
		t.Errorf("no place for another destination: %+v", f.Flow)
	}
	if n := len(tally.all()); n != (maxFlows-1)*(MaxHops+1)+1 {
		t.Errorf("%d entries", n)
	}
}
