package forward

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"runtime"
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

// pace runs a neighbour's Serve; end stops it and waits.
func pace(t testing.TB, n *Neighbour) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.Serve(ctx); err != nil {
			t.Error(err)
		}
	})
	return func() { cancel(); wg.Wait() }
}

// three nodes in a row, all routes known.
func row(t testing.TB) (a, b, c *node, ab, ba, bc, cb linkEnd) {
	a, b, c = newNode(1), newNode(2), newNode(3)
	ab, ba = connect(t, a, b)
	bc, cb = connect(t, b, c)
	a.plane.SetTable(Table{b.key.ID(): {Primary: ab.n}, c.key.ID(): {Primary: ab.n}})
	b.plane.SetTable(Table{a.key.ID(): {Primary: ba.n}, c.key.ID(): {Primary: bc.n}})
	c.plane.SetTable(Table{a.key.ID(): {Primary: cb.n}, b.key.ID(): {Primary: cb.n}})
	return a, b, c, ab, ba, bc, cb
}

func (n *node) send(t testing.TB, to *node, class wire.Class, count, size int) {
	t.Helper()
	buf, seg, _ := burst(count, size, size)
	if err := n.plane.Send(to.key.ID(), class, buf, seg); err != nil {
		t.Fatal(err)
	}
}

func TestShapedRelayKeepsItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c, _, _, bc, cb := row(t)
		const size = 1420 // 1500 on the line
		a.send(t, c, 0, 60, size)
		if len(c.got) != 60 {
			t.Fatalf("%d arrived over a link without a rate", len(c.got))
		}
		bc.n.SetRate(3_000_000) // 250 datagrams/s
		a.send(t, c, 0, 60, size)
		if len(c.got) != 120 {
			t.Fatal("shaped without Serve: what would wait for ever went away")
		}
		end := pace(t, bc.n)
		synctest.Wait()
		if rate, _ := bc.n.Queue(); rate != 3_000_000 {
			t.Errorf("rate %d", rate)
		}
		c.got = nil
		for range 40 { // 2400 datagrams, at twice the rate
			a.send(t, c, 0, 60, size)
			time.Sleep(120 * time.Millisecond)
		}
		synctest.Wait()
		if got := len(c.got); got < 4.8*250-3 || got > 4.8*250+3 {
			t.Errorf("%d datagrams in 4.8 s at 250 a second", got)
		}
		counts, st := b.plane.Counts(), cb.n.Stats()
		if counts.Shed == 0 || counts.Relayed != 120+uint64(len(c.got)) {
			t.Errorf("%+v", counts)
		}
		if st.Replayed != 0 || st.BadMAC != 0 || st.HighestCounter != st.RecvPackets {
			t.Errorf("a drop in the queue looks like loss on the link: %+v", st)
		}
		if ttl := wire.Hop(bc.p.last).TTL(); ttl != wire.DefaultTTL-1 {
			t.Errorf("TTL %d", ttl)
		}
		if !bytes.Equal(c.got[0], bytes.Repeat([]byte{1}, size)) {
			t.Error("the payload changed in the queue")
		}
		before := len(c.got)
		_, q := bc.n.Queue()
		bc.n.SetRate(0)
		synctest.Wait()
		a.send(t, c, 0, 1, size)
		synctest.Wait()
		if want := before + int(q.Waiting) + 1; q.Waiting == 0 || len(c.got) != want {
			t.Errorf("%d datagrams after the rate was taken away, want %d", len(c.got), want)
		}
		end()
		if bc.n.queue.Load() != nil {
			t.Error("still shaped after Serve")
		}
	})
}

// A neighbour that floods, and one that calls its flood control, leave this node its share, and others their pings.
func TestShapedLinkIsShared(t *testing.T) {
	for _, class := range []wire.Class{wire.ClassBulk, wire.ClassControl} {
		synctest.Test(t, func(t *testing.T) {
			a, b, c, _, _, bc, _ := row(t)
			d := newNode(4)
			db, _ := connect(t, d, b)
			d.plane.SetTable(Table{c.key.ID(): {Primary: db.n}})
			bc.n.SetRate(3_000_000)
			defer pace(t, bc.n)()
			synctest.Wait()
			got := map[int]int{} // by size
			var pinged time.Time
			var worst time.Duration
			bc.p.tap = func(buf []byte) []byte {
				n := len(buf) - wire.HopLen
				if n == 100 {
					worst = max(worst, time.Since(pinged))
				}
				got[n]++
				return nil
			}
			bc.n.sender = single{bc.p}
			for i := range 5000 { // 5 s
				a.send(t, c, class, 1, 1400)
				if i%2 == 0 {
					b.send(t, c, wire.ClassBulk, 1, 1401)
				}
				if i%101 == 0 {
					pinged = time.Now()
					d.send(t, c, wire.ClassControl, 1, 100)
				}
				time.Sleep(time.Millisecond)
				synctest.Wait()
			}
			if r := float64(got[1401]) / float64(got[1400]); r < 0.9 || r > 1.15 {
				t.Errorf("class %d: this node sent %d, the flood %d", class, got[1401], got[1400])
			}
			if got[100] != 50 || worst > 30*time.Millisecond {
				t.Errorf("class %d: %d of 50 pings, the slowest after %v", class, got[100], worst)
			}
		})
	}
}

// single takes bursts apart.
type single struct{ *pipe }

func (s single) Send(buf []byte, seg int) error {
	for at := 0; at < len(buf); at += seg {
		if err := s.pipe.Send(buf[at:min(at+seg, len(buf))], seg); err != nil {
			return err
		}
	}
	return nil
}

// Control overtakes, and what waited through a rekeying leaves under the new key: the receiver's window takes all of it.
func TestQueueReordersNoCounters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _, c, ab, ba, _, _ := row(t)
		ab.n.SetRate(1_000_000)
		defer pace(t, ab.n)()
		synctest.Wait()
		var counters []uint64
		var classes []wire.Class
		ab.n.sender = single{ab.p}
		ab.p.tap = func(d []byte) []byte {
			h := wire.Hop(d)
			counters = append(counters, h.Counter())
			classes = append(classes, h.Class())
			return d
		}
		a.send(t, c, wire.ClassBulk, 10, 1400)
		a.send(t, c, wire.ClassControl, 1, 100)
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
		if i := slices.Index(classes, wire.ClassControl); i < 0 || i > 1 {
			t.Errorf("control came after %d others", i)
		}
		if !slices.IsSorted(counters) {
			t.Errorf("counters %v", counters)
		}
		x, y := wire.HopKey{K0: 5}, wire.HopKey{K0: 6}
		ba.n.Install(1, ab.n.Index(), y, x)
		ab.n.Install(1, ba.n.Index(), x, y)
		time.Sleep(time.Second)
		synctest.Wait()
		if len(c.got) != 11 || ba.n.Stats().Replayed+ba.n.Stats().BadMAC != 0 {
			t.Errorf("%d of 11 arrived: %+v", len(c.got), ba.n.Stats())
		}
	})
}

// What has become due together goes as one burst.
func TestDueDatagramsAreGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _, ab, _, _, _ := row(t)
		ab.n.SetRate(500_000_000)
		defer pace(t, ab.n)()
		synctest.Wait()
		for range 20 {
			a.send(t, b, 0, 40, 1400)
			a.send(t, b, 0, 1, 8900)
			a.send(t, b, 0, 1, 20_000)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if len(b.got) != 20*42 {
			t.Fatalf("%d of %d arrived", len(b.got), 20*42)
		}
		if ab.p.bulks > 150 {
			t.Errorf("%d datagrams left in %d sends", len(b.got), ab.p.bulks)
		}
	})
}

func TestShapedNeighbourThatEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _, ab, _, _, _ := row(t)
		ab.n.SetRate(100_000)
		end := pace(t, ab.n)
		synctest.Wait()
		if err := ab.n.Serve(t.Context()); err == nil {
			t.Error("Serve ran twice")
		}
		a.send(t, b, 0, 10, 1400)
		synctest.Wait()
		end()
		if c := a.plane.Counts(); len(b.got) != 1 || c.Shed != 9 || c.Sent != 1 {
			t.Errorf("%d arrived, %+v", len(b.got), c)
		}
	})
}

// What one end counts as handed over, the other counts as received: by destination and class, over both kinds of link.
func TestHandedIsWhatTheOtherEndCounts(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		shaped := rapid.Bool().Draw(rt, "shaped")
		check := func(t testing.TB) {
			a, b, c, ab, ba, bc, cb := row(t)
			var ends []func()
			if shaped {
				for _, n := range []*Neighbour{ab.n, bc.n} {
					n.SetRate(1_000_000)
					ends = append(ends, pace(t, n))
				}
				synctest.Wait()
			}
			own := uint64(0)
			for range rapid.IntRange(1, 30).Draw(rt, "sends") {
				from := rapid.SampledFrom([]*node{a, b}).Draw(rt, "from")
				class := wire.Class(rapid.IntRange(0, 4).Draw(rt, "class"))
				n := rapid.IntRange(1, 60).Draw(rt, "count")
				if from == b {
					own += uint64(n)
				}
				from.send(t, c, class, n, rapid.IntRange(16, 900).Draw(rt, "size"))
				if rapid.Bool().Draw(rt, "to b") {
					a.send(t, b, class, 1, 100)
				}
			}
			if shaped {
				time.Sleep(time.Minute)
			}
			for _, end := range ends {
				end()
			}
			sort := func(f []Flow) []Flow {
				slices.SortFunc(f, func(x, y Flow) int { return cmp.Or(cmp.Compare(x.Dest, y.Dest), cmp.Compare(x.Class, y.Class)) })
				return f
			}
			for _, l := range [][2]*Neighbour{{ab.n, ba.n}, {bc.n, cb.n}} {
				var sent []Flow
				owned := uint64(0)
				for _, h := range l[0].Handed() {
					sent = append(sent, h.Flow)
					owned += h.OwnPackets
				}
				if got := sort(l[1].Flows()); !slices.Equal(got, sort(sent)) {
					rt.Fatalf("received and handed over differ: %s", gocmp.Diff(got, sent))
				}
				if l[0] == bc.n && !shaped && owned != own || l[0] == bc.n && owned > own {
					rt.Fatalf("%d datagrams are its own, want %d", owned, own)
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

// One read may hold datagrams of several flows, which leave as one burst.
func TestHandedOfAMixedBurst(t *testing.T) {
	a, b, c, ab, _, bc, _ := row(t)
	d := ident.NodeID(99)
	a.plane.SetTable(Table{c.key.ID(): {Primary: ab.n}, d: {Primary: ab.n}})
	b.plane.SetTable(Table{c.key.ID(): {Primary: bc.n}, d: {Primary: bc.n}})
	kept := &keep{}
	ab.n.sender = kept
	var all []byte
	for i, to := range []ident.NodeID{c.key.ID(), d, c.key.ID(), c.key.ID()} {
		buf, seg, _ := burst(1, 100, 100)
		a.plane.Send(to, wire.Class(i/3*2), buf, seg)
		all = append(all, kept.buf...)
	}
	b.plane.NewReceiver().Receive(Endpoint{Port: 1}, all, len(kept.buf))
	got := map[flowKey]uint64{}
	for _, h := range bc.n.Handed() {
		got[flowKey{dest: h.Dest, class: h.Class}] = h.Bytes
	}
	want := map[flowKey]uint64{{dest: c.key.ID()}: 200, {dest: c.key.ID(), class: 2}: 100, {dest: d}: 100}
	if !maps.Equal(got, want) || bc.p.bulks != 1 {
		t.Errorf("%v in %d bursts, want %v in one", got, bc.p.bulks, want)
	}
}

func TestHandedIsBoundedAndCountsWhatWasTaken(t *testing.T) {
	a, b := newNode(1), newNode(2)
	ab, _ := connect(t, a, b)
	ab.n.sender = discard{}
	known := Table{}
	for i := range 2 * maxFlows {
		known[ident.NodeID(i+1000)] = NextHop{Primary: ab.n}
	}
	a.plane.SetTable(known)
	for i := range 2 * maxFlows {
		buf, seg, _ := burst(1, 64, 64)
		if err := a.plane.Send(ident.NodeID(i+1000), 0, buf, seg); err != nil {
			t.Fatal(err)
		}
	}
	sum := uint64(0)
	all := ab.n.Handed()
	for _, h := range all {
		sum += h.Packets
	}
	if len(all) != maxFlows+1 || sum != 2*maxFlows {
		t.Errorf("%d entries with %d packets", len(all), sum)
	}
	ab.n.sender = broken{}
	buf, seg, _ := burst(1, 64, 64)
	a.plane.Send(1000, 0, buf, seg)
	after := uint64(0)
	for _, h := range ab.n.Handed() {
		after += h.Packets
	}
	if after != sum {
		t.Error("what the Sender refused counts as handed over")
	}
}

func TestShapedHandedCountsWhatWasTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _, ab, _, _, _ := row(t)
		ab.n.sender = broken{}
		ab.n.SetRate(1_000_000)
		defer pace(t, ab.n)()
		synctest.Wait()
		a.send(t, b, 0, 3, 1000)
		time.Sleep(time.Second)
		synctest.Wait()
		if h := ab.n.Handed(); len(h) != 0 || a.plane.Counts().SendErrors == 0 {
			t.Errorf("%+v was handed over, %+v", h, a.plane.Counts())
		}
	})
}

type broken struct{}

func (broken) Send([]byte, int) error { return context.Canceled }

type counting struct{ n atomic.Int64 }

func (c *counting) Send(buf []byte, seg int) error {
	c.n.Add(int64((len(buf) + seg - 1) / seg))
	return nil
}

func TestShapedRelayAllocatesNothing(t *testing.T) {
	a, b, c, ab, _, bc, _ := row(t)
	out := &counting{}
	kept := &keep{}
	ab.n.sender, bc.n.sender = kept, out
	bc.n.SetRate(1e12)
	defer pace(t, bc.n)()
	for bc.n.queue.Load() == nil {
		runtime.Gosched()
	}
	r := b.plane.NewReceiver()
	buf, seg, _ := burst(40, 1400, 1400)
	step := func() {
		want := out.n.Load() + 40
		a.plane.Send(c.key.ID(), 0, buf, seg)
		r.Receive(Endpoint{Port: 1}, kept.buf, seg)
		for out.n.Load() != want {
			runtime.Gosched()
		}
	}
	for range 100 {
		step()
	}
	if n := testing.AllocsPerRun(500, step); n != 0 && !raceEnabled {
		t.Errorf("%v allocations for 40 datagrams over a shaped link", n)
	}
	bc.n.SetRate(100_000) // nearly all of it is dropped
	flood := func() {
		a.plane.Send(c.key.ID(), 0, buf, seg)
		r.Receive(Endpoint{Port: 1}, kept.buf, seg)
	}
	for range 100 {
		flood()
	}
	if n := testing.AllocsPerRun(500, flood); n != 0 && !raceEnabled {
		t.Errorf("%v allocations for 40 datagrams that find no room", n)
	}
	if b.plane.Counts().Shed == 0 {
		t.Error("there was room")
	}
}

// keep keeps what was sent last.
type keep struct{ buf []byte }

func (k *keep) Send(buf []byte, _ int) error { k.buf = append(k.buf[:0], buf...); return nil }

// From many goroutines, with rates that come and go: for the race detector.
func TestShapingFromEverywhere(t *testing.T) {
	a, b := newNode(1), newNode(2)
	ab, _ := connect(t, a, b)
	out := &counting{}
	ab.n.sender = out
	a.plane.SetTable(Table{b.key.ID(): {Primary: ab.n}})
	end := pace(t, ab.n)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 500 {
				buf, seg, _ := burst(4, 1000, 500)
				a.plane.Send(b.key.ID(), wire.Class(g%3), buf, seg)
				if i%50 == g {
					ab.n.SetRate(int64(i%3) * 1e9)
				}
				ab.n.Queue()
			}
		})
	}
	wg.Wait()
	end()
	_, q := ab.n.Queue()
	if got := uint64(out.n.Load()) + a.plane.Counts().Shed + uint64(q.Waiting); got != 4*500*4 {
		t.Errorf("%d of %d datagrams are accounted for", got, 4*500*4)
	}
}

func BenchmarkRelayShaped(b *testing.B) {
	x, y, z, xy, _, yz, _ := row(b)
	kept, out := &keep{}, &counting{}
	xy.n.sender, yz.n.sender = kept, out
	buf, seg, _ := burst(40, 1400, 1400)
	yz.n.SetRate(1e12)
	defer pace(b, yz.n)()
	r := y.plane.NewReceiver()
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		want := out.n.Load() + 40
		x.plane.Send(z.key.ID(), 0, buf, seg)
		r.Receive(Endpoint{Port: 1}, kept.buf, seg)
		for out.n.Load() < want {
			runtime.Gosched()
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/40, "ns/packet")
}
