package route

import (
	"cmp"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"weft/ident"
	"weft/wire"
)

// crowd makes the LSAs of a random mesh of n nodes in which node 0 has the key of the router under test, and the LSAs are
// in an order in which each is joined to one before.
func crowd(n, degree int, seed uint64) (keys []ident.PublicKey, lsas []wire.LSAView) {
	rng := rand.New(rand.NewPCG(seed, 2))
	type pair struct{ a, b int }
	links := map[pair]uint32{}
	for i := 1; i < n; i++ {
		for range degree / 2 {
			j := max(0, i-1-rng.IntN(min(i, 200))) // near in number, as neighbours are near in space
			links[pair{j, i}] = 100 + rng.Uint32N(5000)
		}
	}
	near := make([][]wire.Adjacency, n)
	keys = make([]ident.PublicKey, n)
	for i := range keys {
		keys[i] = testKey(i)
	}
	for p, cost := range links {
		near[p.a] = append(near[p.a], wire.Adjacency{ID: keys[p.b].ID(), Cost: cost, MTU: 1400})
		near[p.b] = append(near[p.b], wire.Adjacency{ID: keys[p.a].ID(), Cost: cost, MTU: 1400})
	}
	for i := range keys {
		lsas = append(lsas, makeLSA(keys[i], 1, near[i]))
	}
	return keys, lsas
}

func makeLSA(key ident.PublicKey, seq uint64, near []wire.Adjacency, ext ...wire.Extension) wire.LSAView {
	near = sortedAdjacencies(near)
	b, err := (&wire.LSA{Key: key, Seq: seq, Lifetime: 4 * 3600, Neighbours: near, Extensions: ext}).Sign(testSign(key))
	if err != nil {
		panic(err)
	}
	return b
}

// feed makes a router for node 0 that has learned the crowd from its neighbours.
func feed(tb testing.TB, keys []ident.PublicKey, lsas []wire.LSAView) (*Router, time.Time) {
	now := epoch
	r := New(Config{Self: keys[0], Sign: testSign(keys[0]), Verify: func(wire.LSAView) bool { return true }, Rand: func() uint64 { return 7 }}, now)
	byID := map[ident.NodeID]int{}
	for i, k := range keys {
		byID[k.ID()] = i
	}
	var ids []uint32
	for i := range lsas[0].NumNeighbours() {
		a := lsas[0].Neighbour(i)
		id := uint32(i + 1)
		ids = append(ids, id)
		r.LinkUp(now, LinkInfo{ID: id, Peer: keys[byID[a.ID]], Cost: a.Cost, MTU: a.MTU})
		if err := r.Receive(now, id, appendMark(nil, markReady)); err != nil {
			tb.Fatal(err)
		}
	}
	now = now.Add(2 * time.Second)
	r.Tick(now)
	var msg []byte
	flush := func() {
		if err := r.Receive(now, ids[0], msg); err != nil {
			tb.Fatal(err)
		}
		r.Outbox()
		msg = msg[:0]
	}
	for _, v := range lsas[1:] {
		if len(msg)+len(v)+lsaFixed+recordHeader > MaxMessage {
			flush()
		}
		msg = appendLSA(msg, 0, v)
	}
	flush()
	for range 20 {
		now = now.Add(10 * time.Second)
		r.Tick(now)
		r.Outbox()
	}
	if got := r.Table().Len(); got != len(keys) {
		tb.Fatalf("%d of %d nodes; %+v", got, len(keys), r.Stats())
	}
	return r, now
}

func BenchmarkSPF10000(b *testing.B) {
	keys, lsas := crowd(10_000, 6, 1)
	r, _ := feed(b, keys, lsas)
	b.ReportMetric(float64(len(r.links)), "neighbours")
	for b.Loop() {
		for _, t := range r.spf.trees {
			t.dirty = true
		}
		r.spf.links = true
		r.dijkstra(r.spf.trees[0], true)
		r.alternateTrees()
		r.makeTable()
	}
}

func BenchmarkSPF10000Primary(b *testing.B) {
	keys, lsas := crowd(10_000, 6, 1)
	r, _ := feed(b, keys, lsas)
	for b.Loop() {
		r.dijkstra(r.spf.trees[0], true)
	}
}

func BenchmarkReceiveDuplicate(b *testing.B) {
	keys, lsas := crowd(1000, 6, 1)
	r, now := feed(b, keys, lsas)
	msg := appendLSA(nil, 0, lsas[500])
	for b.Loop() {
		r.Receive(now, 1, msg)
	}
}

// TestMemory10000 holds the database of 10,000 nodes against its budget.
func TestMemory10000(t *testing.T) {
	if testing.Short() {
		t.Skip("large")
	}
	keys, lsas := crowd(10_000, 6, 1)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	r, _ := feed(t, keys, lsas)
	runtime.GC()
	runtime.ReadMemStats(&after)
	used := float64(after.HeapAlloc-before.HeapAlloc) / (1 << 20)
	t.Logf("10,000 nodes, %d neighbours: %.1f MiB, of it LSAs %.1f MiB", len(r.links), used, float64(r.db.bytes)/(1<<20))
	if used > 15 {
		t.Errorf("%.1f MiB, at most 15", used)
	}
	runtime.KeepAlive(keys)
	runtime.KeepAlive(lsas)
	runtime.KeepAlive(r)
}

func sortedAdjacencies(near []wire.Adjacency) []wire.Adjacency {
	near = slices.Clone(near)
	slices.SortFunc(near, func(a, b wire.Adjacency) int { return cmp.Compare(a.ID, b.ID) })
	return near
}
