package economy

import (
	"math"
	"math/bits"
	"slices"

	"weft/pay"
)

// burst is something that a household wants: so many seconds at its rate.
type burst struct {
	at   int64
	home *node
	secs int64
}

// hours is how much of a day's use falls into which hour: the evening is what lines are bought for.
var hours = [24]int{3, 2, 1, 1, 1, 1, 2, 4, 5, 5, 5, 5, 6, 6, 5, 5, 6, 8, 10, 12, 13, 12, 9, 5}

// plan makes the wishes of a day.
func (w *world) plan(int) {
	total := 0
	for _, h := range hours {
		total += h
	}
	for _, n := range w.members {
		if n.gateway {
			continue
		}
		many := poisson(w.rng.Float64, n.busyness)
		for range many {
			k, h := w.rng.IntN(total), 0
			for k >= hours[h] {
				k -= hours[h]
				h++
			}
			secs := int64(min(max(math.Exp(w.rng.NormFloat64()*0.7+3.5), 8), 150))
			w.demand = append(w.demand, burst{w.now + int64(h)*hour + w.rng.Int64N(hour), n, secs})
		}
	}
	slices.SortStableFunc(w.demand, func(a, b burst) int { return compare(a.at, b.at) })
	if !w.o.peace {
		w.hostileDay()
	}
}

func poisson(random func() float64, mean float64) (n int) {
	for p := random(); p > math.Exp(-mean); p *= random() {
		n++
	}
	return n
}

// flow is a burst under way.
type flow struct {
	home, gw  *node
	path      []*node
	version   int
	from      int64
	until     int64
	acct      *account
	hops      []*account // carriage: of the link from path[i] to path[i+1]; the last link has none
	wanted    int64
	throttled int64
}

// startFlows lets the wishes begin whose time has come.
func (w *world) startFlows() {
	for len(w.demand) > 0 && w.demand[0].at <= w.now {
		b := w.demand[0]
		w.demand = w.demand[1:]
		gw := w.choose(b.home)
		f := &flow{home: b.home, gw: gw, from: w.now, until: w.now + b.secs, version: -1}
		f.acct = w.account(f.home, gw, pay.Internet)
		w.flows = append(w.flows, f)
		w.route(f)
		f.home.begins(f)
	}
}

// route finds the way again when something has changed.
func (w *world) route(f *flow) {
	if f.home.member == 0 { // a stranger stands beside its gateway
		f.path, f.version = []*node{f.gw, f.home}, w.version
	}
	if f.version == w.version {
		return
	}
	f.version = w.version
	f.path = w.path(f.gw, f.home)
	w.relays = max(w.relays, len(f.path)-2)
	f.hops = f.hops[:0]
	for i := range len(f.path) - 2 {
		f.hops = append(f.hops, w.account(f.path[i], f.path[i+1], pay.Carriage))
	}
}

// free is what a verdict lets through in a second; full when it holds nothing back. It is carried out a second after it was
// given (pay.ShapeTime), and lifted at once.
func (n *node) free(id pay.ID, now int64) uint64 {
	v := n.verdicts[id]
	if !v.FreeTier || now < v.since+2 {
		return full
	}
	return uint64(v.Kbit) * 125
}

// traffic carries what may pass in a second, and lets both ends of every account count it.
func (w *world) traffic() {
	if len(w.flows) == 0 {
		return
	}
	w.shares()
	live := w.flows[:0]
	for _, f := range w.flows {
		if w.now > f.from {
			w.carry(f)
		}
		for _, n := range f.path {
			n.wake(w.now + awake)
		}
		if w.now < f.until {
			live = append(live, f)
		} else {
			f.home.finishes(f)
		}
	}
	clear(w.flows[len(live):])
	w.flows = live
	for _, a := range w.accounts {
		if a.stepAt == w.now {
			a.peak = max(a.peak, a.moved)
			a.ends[0].count()
			a.ends[1].count()
		}
		if a.service == pay.Internet {
			a.judge(w.now)
		}
	}
	if w.now%2 == 0 {
		w.ratios()
	}
}

// shares divides each gateway's line among its flows.
func (w *world) shares() {
	for _, g := range w.gateways {
		g.wanted = 0
	}
	for _, f := range w.flows {
		f.gw.wanted += f.home.rate
	}
}

const lineRate = 62_500_000 // bytes/s of a gateway's line

// begin opens the step of an account.
func (a *account) begin(now int64, id pay.ID) {
	if a.stepAt == now {
		return
	}
	a.stepAt, a.moved = now, 0
	a.left = a.payee.free(id, now)
	a.slow = a.left != full
}

func (w *world) carry(f *flow) {
	w.route(f)
	for _, n := range f.path {
		if n.pay == nil {
			return
		}
	}
	rate := f.home.rate
	if f.gw.wanted > lineRate {
		rate = rate * lineRate / f.gw.wanted
	}
	n := rate
	f.acct.begin(w.now, pay.ID{Peer: f.home.key, Service: pay.Internet})
	n = min(n, f.acct.left)
	for i, a := range f.hops {
		a.begin(w.now, pay.ID{Peer: f.path[i].key, Service: pay.Carriage})
		n = min(n, a.left)
	}
	if f.home.kind == Honest {
		f.wanted++
		w.usedHonest++
		if n < rate {
			f.throttled++
			w.slow[w.cause(f)]++
		}
	}
	if f.acct.slow {
		f.acct.throttled++
	}
	down, up := n-n/10, n/10
	last := len(f.path) - 1
	arrived := make([]uint64, last+1) // down, at path[i]
	rising := make([]uint64, last+1)  // up, at path[i]
	arrived[0], rising[last] = down, up
	for i := 1; i <= last; i++ {
		arrived[i] = arrived[i-1]
		if i > 1 {
			arrived[i] = f.path[i-1].keeps(arrived[i-1])
		}
	}
	for i := last - 1; i >= 0; i-- {
		rising[i] = rising[i+1]
		if i < last-1 {
			rising[i] = f.path[i+1].keeps(rising[i+1])
		}
	}
	got, upGot := arrived[last], rising[0]
	if got < down {
		w.dropCarried += n
		w.dropped += n - got - upGot
	}
	w.carried += got + upGot
	// What a payer has sent it must believe to have arrived when its payee says so (meter.md section 4).
	f.acct.book(w, got+upGot, got+min(up, uint64(float64(upGot)*f.gw.claims(f.acct))))
	f.acct.agree(w.now, down, got, up, upGot)
	for i, a := range f.hops {
		u, v := a.ends[0], a.ends[1]
		relays := uint64(last - 1 - i)
		delivered := 1000
		if arrived[i+1] > 0 {
			delivered = int(got * 1000 / arrived[i+1])
		}
		u.haul(f.home.id, arrived[i+1], rising[i], int(relays), delivered)
		v.haul(f.home.id, rising[i], arrived[i+1], int(relays), 1000)
		a.book(w, (arrived[i+1]+rising[i])*relays, (got+rising[i])*relays)
		if a.left != full {
			a.left -= min(a.left, n)
		}
	}
	if f.acct.left != full {
		f.acct.left -= min(f.acct.left, n)
	}
	if last > 1 {
		w.hop(f.gw, f.path[1]).add(f.home, down, got)
		w.hop(f.home, f.path[last-1]).add(f.gw, up, upGot)
	}
}

// cause says why an honest home gets less than it wants.
func (w *world) cause(f *flow) int {
	a := f.acct
	for i := 0; !a.slow && i < len(f.hops); i++ {
		a = f.hops[i]
	}
	switch {
	case a.payee.hostile() && a == f.acct:
		return slowBiller
	case a.payee.hostile():
		return slowPadding
	case a.ends[1].gap:
		return slowGap
	case a.cut || w.chain.down:
		return slowCut
	case a.payer.hostile():
		return slowDebtor
	case a == f.acct:
		return slowOwes
	}
	return slowRelay
}

// The causes.
const (
	slowBiller = iota
	slowPadding
	slowGap
	slowCut
	slowDebtor
	slowRelay
	slowOwes
	slows
)

var slowNames = [slows]string{
	"its gateway wants more than its meter says, until it has left that gateway",
	"a relay on its way wants more for carriage than the meters say, and holds the link back",
	"traffic got lost on the way: the meters differ, until routing avoids the relay",
	"the ledger was out of reach, and it or a relay had no tab yet",
	"a relay on its way does not pay the next one",
	"an honest relay owes the next one",
	"it owes",
}

// periods of price: before the vote, while it becomes known, after.
const (
	periods = 3
	notice  = 180 // seconds
)

func (w *world) period() int {
	switch {
	case w.votedAt == 0:
		return 0
	case w.now <= w.votedAt+notice:
		return 1
	}
	return 2
}

// book adds to the truth of an account.
func (a *account) book(w *world, payee, payer uint64) {
	p := w.period()
	a.moved += max(payee, payer)
	if a.slow {
		a.payeeSlow[p] += payee
	} else {
		a.payeeFull[p] += payee
	}
	a.payerOwn[p] += payer
}

// hop is what one end of sessions knows of a neighbour: how much of what it is given arrives (meter.md section 6).
type hop struct {
	from, to *node
	samples  []sample
	ratio    float64
	history  uint8
	bad      int
	factor   float64
	halfLife float64
	at       int64 // factor was so
}

type sample struct {
	dest      *node
	sent, got uint64
}

func (w *world) hop(from, to *node) *hop {
	k := [2]int{from.index, to.index}
	h := w.hopOf[k]
	if h == nil {
		h = &hop{from: from, to: to, ratio: 1, factor: 1, halfLife: 600}
		w.hopOf[k] = h
		w.hops = append(w.hops, h)
	}
	return h
}

func (w *world) penalty(from, to *node) float64 {
	if h := w.hopOf[[2]int{from.index, to.index}]; h != nil {
		return h.factor
	}
	return 1
}

func (h *hop) add(dest *node, sent, got uint64) {
	if sent == 0 {
		return
	}
	for i := range h.samples {
		if s := &h.samples[i]; s.dest == dest {
			s.sent, s.got = s.sent+sent, s.got+got
			return
		}
	}
	h.samples = append(h.samples, sample{dest, sent, got})
}

// ratios judges a window of 2 s for each neighbour that was given something, and lets old penalties fade.
func (w *world) ratios() {
	for _, h := range w.hops {
		was := h.factor
		if len(h.samples) > 0 {
			h.judge()
			h.samples = h.samples[:0]
		}
		if h.factor > 1 && w.now-h.at >= 60 {
			h.factor = 1 + (h.factor-1)*math.Pow(0.5, float64(w.now-h.at)/h.halfLife)
			if h.factor < 1.1 {
				h.factor, h.ratio, h.history, h.bad = 1, 1, 0, 0
			}
			h.at = w.now
		}
		if h.factor != was {
			if was == 1 {
				h.at = w.now
			}
			w.version++
		}
	}
}

// judge takes the upper median over sessions, by weight.
func (h *hop) judge() {
	slices.SortStableFunc(h.samples, func(a, b sample) int { return compare(b.got*a.sent, a.got*b.sent) })
	var all, sum uint64
	for _, s := range h.samples {
		all += min(s.sent, 256<<10)
	}
	ratio := 1.0
	for _, s := range h.samples {
		if sum += min(s.sent, 256<<10); 2*sum >= all {
			ratio = float64(s.got) / float64(s.sent)
			break
		}
	}
	h.ratio = (h.ratio + ratio) / 2
	h.history <<= 1
	if ratio >= 0.9 {
		h.bad = 0
		return
	}
	h.history |= 1
	h.bad++
	switch {
	case bits.OnesCount8(h.history&0x0f) < 2 || h.ratio >= 0.9:
	case h.factor == 1:
		h.factor = min(max(1/(h.ratio*h.ratio), 1.25), 8)
		h.halfLife = min(h.halfLife*2, 9600)
	case h.bad%2 == 0:
		h.factor = min(h.factor*2, 8)
	}
}
