package shape

import (
	"container/heap"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const ms = int64(time.Millisecond)

// endless is a queue in which nothing is dropped.
func endless(rate int64) Config {
	return Config{Rate: rate, MaxBytes: 1 << 40, MaxPackets: 1 << 30, MaxFlows: 1 << 20, Interval: time.Hour}
}

// The oracle of fairness is a fluid: of what was sent while all of them waited, each flow has its weight's share. Deficit
// round robin differs from it by no more than a quantum and a packet at either end (Shreedhar and Varghese, theorem 3.2).
func TestSharesAreThoseOfAFluid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 12).Draw(t, "flows")
		weights, sizes := make([]int, n), make([]int, n)
		q := NewQueue[int](endless(0), nil)
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		const each = 4 << 20
		for i := range n {
			weights[i] = rapid.IntRange(1, 16).Draw(t, "weight")
			sizes[i] = rapid.SampledFrom([]int{40, 200, 1500, 9000}).Draw(t, "size")
			for sum := 0; sum < each; {
				s := 1 + r.IntN(sizes[i])
				q.Push(0, uint64(i), weights[i], s, i<<20|s)
				sum += s
			}
		}
		served := make([]float64, n)
		for total, end := 0, rapid.IntRange(0, each).Draw(t, "end"); total < end; { // all still wait
			item, ok, _ := q.Pop(0)
			if !ok {
				t.Fatal("empty")
			}
			served[item>>20] += float64(item & (1<<20 - 1))
			total += item & (1<<20 - 1)
		}
		var all, sum float64
		for i := range n {
			all += served[i]
			sum += float64(weights[i])
		}
		for i := range n {
			w := float64(weights[i])
			// In any round of the others it had one too: ±1 round, and the first quantum of a new flow.
			slack := 2*mtu*w + mtu + 2*9000
			if fair := all * w / sum; math.Abs(served[i]-fair) > slack {
				t.Fatalf("flow %d of weight %v had %v of %v bytes, fair is %v ± %v", i, w, served[i], all, fair, slack)
			}
		}
	})
}

// model is the stupid twin of the queue: lists.
type model struct {
	t       *rapid.T
	flows   map[uint64][]entry
	urgent  []entry
	weights map[uint64]int
	dropped []entry
}

type entry struct {
	id, size int
	key      uint64
}

func (m *model) sum() (count int, bytes int64) {
	for _, l := range m.flows {
		for _, e := range l {
			count++
			bytes += int64(e.size)
		}
	}
	for _, e := range m.urgent {
		count++
		bytes += int64(e.size)
	}
	return count, bytes
}

func (m *model) length(key uint64) (sum int64) {
	for _, e := range m.flows[key] {
		sum += int64(e.size)
	}
	return sum
}

// overflow drops as the rule says, and holds what the queue dropped against it: among equals the queue may choose.
func (m *model) overflow(maxCount int, maxBytes int64) {
	for {
		count, bytes := m.sum()
		if count <= maxCount && bytes <= maxBytes {
			break
		}
		if len(m.dropped) == 0 {
			m.t.Fatalf("%d packets with %d bytes wait, at most %d and %d may", count, bytes, maxCount, maxBytes)
		}
		d := m.dropped[0]
		m.dropped = m.dropped[1:]
		most := 0.0
		for k := range m.flows {
			most = max(most, float64(m.length(k))/float64(m.weights[k]))
		}
		l := m.flows[d.key]
		switch {
		case most == 0 && len(m.urgent) > 0 && m.urgent[0] == d:
			m.urgent = m.urgent[1:]
		case len(l) == 0 || l[0] != d:
			m.t.Fatalf("%+v was dropped and is not the oldest of its flow", d)
		case float64(m.length(d.key))/float64(m.weights[d.key]) < most*(1-1e-9):
			m.t.Fatalf("%+v was dropped from a flow of %d bytes by weight %d, but another has %v", d, m.length(d.key), m.weights[d.key], most)
		default:
			m.flows[d.key] = l[1:]
		}
	}
	if len(m.dropped) > 0 {
		m.t.Fatalf("%d dropped with room for them", len(m.dropped))
	}
}

func TestQueueAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{t: t, flows: map[uint64][]entry{}, weights: map[uint64]int{}}
		c := Config{
			Rate:     rapid.SampledFrom([]int64{0, 64_000, 3_000_001, 1e9}).Draw(t, "rate"),
			MaxBytes: rapid.Int64Range(3000, 50_000).Draw(t, "bytes"), MaxPackets: rapid.IntRange(1, 60).Draw(t, "packets"),
			MaxFlows: 64, Interval: time.Hour,
		}
		q := NewQueue(c, func(e entry) { m.dropped = append(m.dropped, e) })
		now, id := rapid.Int64Range(0, 1<<50).Draw(t, "now"), 0
		var popped, since, largest int64 = 0, now, 0
		rate := c.Rate
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "do") {
			case 0, 1, 2, 3:
				e := entry{id, rapid.IntRange(1, 2000).Draw(t, "size"), rapid.Uint64Range(0, 5).Draw(t, "key")}
				id++
				m.weights[e.key] = rapid.IntRange(1, 4).Draw(t, "weight")
				m.flows[e.key] = append(m.flows[e.key], e)
				q.Push(now, e.key, m.weights[e.key], e.size, e)
				m.overflow(c.MaxPackets, c.MaxBytes)
			case 4:
				e := entry{id, rapid.IntRange(1, 2000).Draw(t, "size"), rapid.Uint64Range(0, 5).Draw(t, "key")}
				id++
				if rate > 0 && q.urgentFree > now+urgentSlab {
					m.weights[e.key] = 1
					m.flows[e.key] = append(m.flows[e.key], e)
				} else {
					m.urgent = append(m.urgent, e)
				}
				q.PushUrgent(now, e.key, 1, e.size, e)
				m.overflow(c.MaxPackets, c.MaxBytes)
			case 5:
				now += rapid.Int64Range(0, 100*ms).Draw(t, "pause")
			case 6:
				if rapid.IntRange(0, 9).Draw(t, "change") == 0 {
					rate = rapid.SampledFrom([]int64{0, 10_000, 1e7}).Draw(t, "new rate")
					q.SetRate(now, rate)
					popped, since, largest = 0, now, 0
				}
			default:
				count, _ := m.sum()
				e, ok, wait := q.Pop(now)
				if !ok && wait > 0 {
					if rate == 0 || count == 0 {
						t.Fatalf("%d wait, at rate %d, and are to wait for %d ns", count, rate, wait)
					}
					now += wait
					e, ok, _ = q.Pop(now)
				}
				if ok != (count > 0) {
					t.Fatalf("%d wait, Pop says %v", count, ok)
				}
				if !ok {
					break
				}
				if len(m.urgent) > 0 {
					if m.urgent[0] != e {
						t.Fatalf("%+v went before the urgent %+v", e, m.urgent[0])
					}
					m.urgent = m.urgent[1:]
				} else if l := m.flows[e.key]; len(l) == 0 || l[0] != e {
					t.Fatalf("%+v is not the oldest of its flow", e)
				} else {
					m.flows[e.key] = l[1:]
				}
				popped += int64(e.size)
				largest = max(largest, int64(e.size))
				slack := max(maxCatchUp, int64(2*time.Millisecond))
				if rate > 0 && float64(popped-largest)*8e9 > float64(rate)*float64(now-since+slack)+8e9 {
					t.Fatalf("%d bytes within %d ns at %d bits/s", popped, now-since, rate)
				}
			}
			count, bytes := m.sum()
			s := q.Stats(now)
			if q.Len() != count || s.Backlog != bytes || s.Waiting != int64(count) {
				t.Fatalf("%+v, the model has %d packets with %d bytes", s, count, bytes)
			}
		}
		count, _ := m.sum()
		m.dropped = nil
		if q.Drain(); len(m.dropped) != count || q.Len() != 0 {
			t.Fatalf("%d of %d drained, %d left", len(m.dropped), count, q.Len())
		}
	})
}

// More keys than flows: what is held stays bounded, nothing is lost but by the rule, and all of it comes out.
func TestFlowsAreBounded(t *testing.T) {
	c := endless(0)
	c.MaxFlows = 8
	q := NewQueue[int](c, func(int) { t.Error("dropped") })
	for round := range 3 {
		for i := range 1000 {
			q.Push(0, uint64(round*1000+i), 1, 100, i)
		}
		if len(q.flows) != 8 || len(q.Flows(0)) != 9 {
			t.Fatalf("%d flows", len(q.flows))
		}
		for n := range 1000 {
			if _, ok, _ := q.Pop(0); !ok {
				t.Fatalf("%d of 1000 came out", n)
			}
		}
	}
	for _, f := range q.Flows(0) {
		if f.Shared != (f.Key == 0 && f.Packets > 100) {
			t.Errorf("%+v", f)
		}
	}
}

// Who comes anew all the time does not starve who waits.
func TestNewFlowsDoNotStarveTheOthers(t *testing.T) {
	q := NewQueue[int](endless(0), nil)
	for range 1000 {
		q.Push(0, 1, 1, 1500, 1)
	}
	got := 0
	for i := range 10_000 {
		q.Push(0, uint64(i+10), 1, 1500, 0)
		item, _, _ := q.Pop(0)
		got += item
	}
	if got < 500 {
		t.Errorf("%d packets of a patient flow among 10000", got)
	}
}

// Calling everything urgent helps no one to more than half of the line.
func TestUrgentIsBounded(t *testing.T) {
	const rate = 10_000_000
	q := NewQueue[int](Config{Rate: rate}, nil)
	var got [2]int
	for now := int64(0); now < 5*second; now += ms {
		for range 2 { // 24 Mbit/s each
			q.PushUrgent(now, 1, 1, 1500, 0)
			q.Push(now, 2, 1, 1500, 1)
		}
		for {
			item, ok, _ := q.Pop(now)
			if !ok {
				break
			}
			got[item]++
		}
	}
	total := float64(got[0] + got[1])
	if share := float64(got[1]) / total; share < 0.48 || share > 0.52 || total*1500*8 < 5*rate*0.99 || total*1500*8 > 5*rate*1.01 {
		t.Errorf("ordinary packets had %.2f of %v bits", share, total*1500*8)
	}
}

func TestRateChangesAtOnce(t *testing.T) {
	q := NewQueue[int](endless(1000), nil)
	for range 100 {
		q.Push(0, 1, 1, 1250, 0)
	}
	q.Pop(0)
	_, ok, wait := q.Pop(0)
	if ok || wait < 9*second {
		t.Fatalf("at 1 kbit/s: %v, wait %d", ok, wait)
	}
	q.SetRate(0, 1_000_000)
	if _, ok, wait = q.Pop(0); ok || wait > 10*ms {
		t.Fatalf("at 1 Mbit/s: %v, wait %d", ok, wait)
	}
	q.SetRate(0, 0)
	for i := range 99 {
		if _, ok, _ := q.Pop(0); !ok {
			t.Fatalf("without a rate: %d of 99", i)
		}
	}
}

// An idle line has saved up two milliseconds and no more.
func TestIdleLineMakesUpForABurst(t *testing.T) {
	q := NewQueue[int](endless(20_000_000), nil)
	for now := second; now < 10*second; now += second {
		n := 0
		for range 100 {
			q.Push(now, 1, 1, 1000, 0)
		}
		for ; ; n++ {
			if _, ok, _ := q.Pop(now); !ok {
				break
			}
		}
		if n < 5 || n > 7 { // 5 in 2 ms, and the one that overdraws
			t.Fatalf("%d packets at once", n)
		}
		for q.Len() > 0 {
			_, _, wait := q.Pop(now)
			now += wait
		}
	}
}

// Nothing is lost in rounding: 44 bytes at an odd rate, half a million times.
func TestRateIsExact(t *testing.T) {
	const rate, size, n = 123_456_789, 44, 500_000
	q := NewQueue[int](endless(rate), nil)
	now := int64(0)
	for range n {
		q.Push(now, 1, 1, size, 0)
		for {
			_, ok, wait := q.Pop(now)
			if ok {
				break
			}
			now += wait
		}
		q.Push(now, 1, 1, size, 0) // never idle
		for {
			_, ok, wait := q.Pop(now)
			if ok {
				break
			}
			now += wait
		}
	}
	want := float64(2*n*size*8) / rate * 1e9
	if d := float64(now) - want; math.Abs(d) > 1e4 {
		t.Errorf("%v ns too long", d)
	}
}

// Who sends the next packet just when the last one is gone is not new each time.
func TestNoGainFromLookingNew(t *testing.T) {
	q := NewQueue[int](endless(0), nil)
	for range 10_000 {
		for greedy := range 4 {
			q.Push(0, uint64(greedy), 1, 1500, 0)
		}
	}
	got, waits, last := 0, 0, 0
	for range 10_000 {
		if waits == 0 && last == 0 {
			q.Push(0, 9, 1, 1500, 1)
			waits++
		}
		last, _, _ = q.Pop(0)
		got += last
		waits -= last
	}
	if got < 1800 || got > 2200 {
		t.Errorf("%d of 10000 packets, the fair share is 2000", got)
	}
}

// Many flows with one packet each wait long, and there is nothing that CoDel could shorten.
func TestSinglePacketsAreNeverLate(t *testing.T) {
	w := newWorld(Config{Rate: 20_000_000})
	for i := range 100 {
		var next func()
		next = func() { w.send(uint64(i), 1, 1500, func(*parcel, bool) { w.after(1, next) }) }
		w.after(int64(i), next)
	}
	w.run(5 * second)
	if s := w.q.Stats(w.now); s.Late+s.Full > 0 || s.Packets < 8000 {
		t.Errorf("%+v", s)
	}
}

func TestControlLaw(t *testing.T) {
	for n, want := range map[uint64]int64{1: 100, 4: 50, 16: 25, 100: 10, 10_000: 1} {
		if got := controlLaw(7*second, 100*ms, n) - 7*second; got < want*ms-1000 || got > want*ms+1000 {
			t.Errorf("interval/√%d is %d ns, want %d ms", n, got, want)
		}
	}
}

func TestNothingIsAllocatedPerPacket(t *testing.T) {
	q := NewQueue[int](Config{Rate: 1e9, MaxFlows: 16, MaxPackets: 200}, func(int) {})
	now, key := int64(0), uint64(0)
	step := func() {
		for range 100 {
			now += 4000
			key++
			q.Push(now, key%64, 1, 1000, 1)
			q.Push(now, 3, 1, 1000, 1)
			q.PushUrgent(now, 4, 1, 100, 1)
			q.Pop(now)
			q.Pop(now)
		}
	}
	step()
	if n := testing.AllocsPerRun(1000, step); n != 0 {
		t.Errorf("%v allocations in 300 packets", n)
	}
}

func TestRootAgainstFloat(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint64().Draw(t, "n")
		r := root(n)
		if r > 1<<32 || r*r > n || r < 1<<32-1 && (r+1)*(r+1) <= n {
			t.Fatalf("root(%d) = %d", n, r)
		}
	})
}

// world runs senders around one queue in virtual time.
type world struct {
	q      *Queue[*parcel]
	now    int64
	events events
	seq    int
	line   bool // an event of the line is under way
}

type parcel struct {
	at   int64
	done func(p *parcel, dropped bool)
}

type event struct {
	at  int64
	seq int
	do  func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

func newWorld(c Config) *world {
	w := &world{}
	w.q = NewQueue(c, func(p *parcel) { p.done(p, true) })
	return w
}

func (w *world) after(d int64, do func()) {
	w.seq++
	heap.Push(&w.events, event{w.now + d, w.seq, do})
}

func (w *world) run(until int64) {
	for len(w.events) > 0 && w.events[0].at <= until {
		e := heap.Pop(&w.events).(event)
		w.now = e.at
		e.do()
	}
	w.now = until
}

func (w *world) send(key uint64, weight, size int, done func(*parcel, bool)) {
	w.q.Push(w.now, key, weight, size, &parcel{w.now, done})
	if !w.line {
		w.serve()
	}
}

func (w *world) serve() {
	w.line = false
	for {
		p, ok, wait := w.q.Pop(w.now)
		if !ok {
			if wait > 0 {
				w.line = true
				w.after(max(wait, ms), w.serve) // as a timer does
			}
			return
		}
		p.done(p, false)
	}
}

// download is a sender like TCP: a window that grows by one a round trip and halves at a loss.
func (w *world) download(key uint64, rtt int64, delay func(int64)) (bytes *int) {
	bytes = new(int)
	window, flying, cut := 2.0, 0, int64(0)
	slow := true
	var send func()
	done := func(p *parcel, dropped bool) {
		if !dropped {
			*bytes += 1500
			if delay != nil {
				delay(w.now - p.at)
			}
		}
		w.after(rtt, func() {
			flying--
			switch {
			case !dropped && slow:
				window++
			case !dropped:
				window += 1 / window
			case p.at >= cut:
				window, cut, slow = max(window/2, 1), w.now, false
			}
			send()
		})
	}
	send = func() {
		for ; flying < int(window); flying++ {
			w.send(key, 1, 1500, done)
		}
	}
	w.after(0, send)
	return bytes
}

// A member's ping under another's flood and the downloads of others, at a 20 Mbit/s line.
func TestPingUnderAFlood(t *testing.T) {
	for _, floods := range []int{1, 10} {
		w := newWorld(Config{Rate: 20_000_000})
		for i := range floods {
			var flood func()
			flood = func() {
				w.send(uint64(100+i), 1, 1500, func(*parcel, bool) {})
				w.after(ms, flood)
			}
			w.after(int64(i)*ms/10, flood)
		}
		var bulk []*int
		for i := range 8 {
			bulk = append(bulk, w.download(uint64(200+i), 20*ms, nil))
		}
		var worst, sum int64
		pings, lost := 0, 0
		var ping func()
		ping = func() {
			w.send(1, 1, 100, func(p *parcel, dropped bool) {
				if dropped {
					lost++
				}
				worst = max(worst, w.now-p.at)
				sum += w.now - p.at
			})
			pings++
			w.after(17_317_000, ping) // out of step with everything else
		}
		w.after(500*ms, ping)
		w.run(30 * second)
		t.Logf("%d floods: %d pings, worst %v, mean %v; %+v", floods, pings, time.Duration(worst), time.Duration(sum/int64(pings)), w.q.Stats(w.now))
		if lost > 0 || worst > 5*ms {
			t.Errorf("%d floods: %d of %d pings lost, the slowest took %v", floods, lost, pings, time.Duration(worst))
		}
		total := 0
		for i, b := range bulk {
			total += *b
			if *b < 30*20_000_000/8/(8+floods)/2 {
				t.Errorf("%d floods: download %d had %d bytes", floods, i, *b)
			}
		}
		if s := w.q.Stats(w.now); float64(s.Bytes) < 0.98*30*20_000_000/8 {
			t.Errorf("the line was not full: %d bytes", s.Bytes)
		}
	}
}

// One greedy sender that listens to losses waits about as long as the target, and fills the line.
func TestCoDelHoldsOneFlowNearTarget(t *testing.T) {
	for _, rate := range []int64{5_000_000, 20_000_000, 100_000_000} {
		w := newWorld(Config{Rate: rate})
		var delays []int64
		bytes := w.download(1, 20*ms, func(d int64) {
			if w.now > 5*second {
				delays = append(delays, d)
			}
		})
		w.run(35 * second)
		var sum int64
		for _, d := range delays {
			sum += d
		}
		mean := time.Duration(sum / int64(len(delays)))
		use := float64(*bytes) * 8 / (35 * float64(rate))
		s := w.q.Stats(w.now)
		t.Logf("%d bits/s: mean delay %v, use %.2f, %d late, %d full", rate, mean, use, s.Late, s.Full)
		if mean > 15*time.Millisecond || use < 0.85 || s.Late == 0 {
			t.Errorf("%d bits/s: mean delay %v, use %.2f, %+v", rate, mean, use, s)
		}
	}
}

// Weights are tiers: with everyone flooding, a member of weight 4 has four times what one of weight 1 has.
func TestTiersUnderAFlood(t *testing.T) {
	w := newWorld(Config{Rate: 20_000_000})
	got := map[int]int{}
	for _, weight := range []int{1, 2, 4} {
		var flood func()
		flood = func() {
			w.send(uint64(weight), weight, 1000, func(_ *parcel, dropped bool) {
				if !dropped {
					got[weight]++
				}
			})
			w.after(ms/4, flood)
		}
		w.after(0, flood)
	}
	w.run(20 * second)
	for _, weight := range []int{2, 4} {
		if r := float64(got[weight]) / float64(got[1]); math.Abs(r-float64(weight)) > 0.05*float64(weight) {
			t.Errorf("weight %d had %.2f times what weight 1 had", weight, r)
		}
	}
}

func BenchmarkPushPop(b *testing.B) {
	q := NewQueue[*int](Config{Rate: 1e9}, nil)
	now := int64(0)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		now += 12_000
		q.Push(now, uint64(i%32), 1, 1500, nil)
		q.Pop(now)
	}
}

func BenchmarkOverflow(b *testing.B) {
	q := NewQueue[*int](Config{Rate: 1e6}, nil)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		q.Push(0, uint64(i%32), 1, 1500, nil)
	}
}
