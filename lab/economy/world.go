package economy

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"weft/ident"
	"weft/ledger/tx"
	"weft/pay"
)

// node is one household's router, a gateway, or a stranger's.
type node struct {
	w       *world
	index   int
	a       *ident.Agent
	key     ident.PublicKey
	id      ident.NodeID
	member  uint64
	paidIn  int64
	gateway bool
	kind    Player
	rng     *rand.Rand

	pay      *pay.Pay
	store    *store
	ends     []*end
	readings []pay.Reading
	verdicts map[pay.ID]given
	inbox    []packet
	drafts   []packet // in no order
	outbox   []packet
	awake    int64 // until
	busy     bool
	down     int64 // until
	lastKept int64
	charged  int64  // by the tariff's lines
	wanted   uint64 // of a gateway's line in this step, bytes/s

	// A home.
	rate     uint64  // bytes/s, both directions
	busyness float64 // bursts a day
	links    []*link
	avoid    map[int]int64 // gateways, by index, until

	lies lies
}

// given is a verdict and since when.
type given struct {
	pay.Verdict
	since int64
}

type packet struct {
	from, to *node
	b        []byte
}

type link struct {
	a, b *node
	cost float64
}

func (l *link) other(n *node) *node {
	if l.a == n {
		return l.b
	}
	return l.a
}

type world struct {
	o          Options
	rng        *rand.Rand
	begin, now int64
	nodes      []*node // members first, then strangers
	members    []*node
	gateways   []*node
	byKey      map[ident.PublicKey]*node
	links      []*link
	chain      *chain
	accounts   []*account
	demand     []burst
	flows      []*flow
	over       bool
	log        *slog.Logger

	hops    []*hop
	hopOf   map[[2]int]*hop
	trees   map[int]*tree
	version int

	carried, vouchers uint64
	votedAt           int64
	votedHeight       int64
	funded, aided     int64
	unsettled         []string // who could not settle at the end, and why
	reboots           int
	days              []Day
	sybils            []sybil
	slow              [slows]int64 // seconds of honest homes
	usedHonest        int64
	relays            int     // most on a way
	dropShare         float64 // of homes, behind relays that drop, while nobody knows
	dropCarried       uint64  // that went by them
	dropped           uint64
}

func compare[T cmp.Ordered](a, b T) int { return cmp.Compare(a, b) }

func (w *world) time() time.Time { return time.Unix(w.now, 0).UTC() }

// agent makes the key of a number: the same seed, the same keys.
func (w *world) agent(i int) *ident.Agent {
	seed := make([]byte, 32)
	for k := range 8 {
		seed[k], seed[8+k] = byte(w.o.Seed>>(8*k)), byte(i>>(8*k))
	}
	a, err := ident.FromSeed(seed)
	if err != nil {
		panic(err) // 32 bytes are a seed
	}
	return a
}

func (n *node) name() string {
	if n.gateway {
		return fmt.Sprint("gateway ", n.index)
	}
	return fmt.Sprint("home ", n.index)
}

func (w *world) add() *node {
	n := &node{w: w, index: len(w.nodes), store: &store{m: map[string][]byte{}}, verdicts: map[pay.ID]given{}, avoid: map[int]int64{}}
	n.a = w.agent(n.index + 1)
	n.key = n.a.Public()
	n.id = n.key.ID()
	n.rng = rand.New(rand.NewPCG(w.o.Seed, uint64(n.index)))
	w.nodes = append(w.nodes, n)
	w.byKey[n.key] = n
	return n
}

// newWorld lays out streets: a grid in which some neighbours do not see each other, with gateways far apart.
func newWorld(o Options) (*world, error) {
	w := &world{o: o, rng: rand.New(rand.NewPCG(o.Seed, 2027)), begin: time.Date(2027, 3, 1, 0, 0, 0, 0, time.UTC).Unix(), byKey: map[ident.PublicKey]*node{},
		log: slog.New(slog.NewTextHandler(io.Discard, nil)), hopOf: map[[2]int]*hop{}, trees: map[int]*tree{}}
	w.now = w.begin
	gateways := max(4, o.Homes/30)
	all := o.Homes + gateways
	side := 1
	for side*side < all {
		side++
	}
	for range all {
		w.add()
	}
	w.members = slices.Clone(w.nodes)
	w.streets(side)
	w.chooseGateways(gateways)
	plans := []uint64{625_000, 1_250_000, 2_500_000, 5_000_000}
	for _, n := range w.members {
		if n.gateway {
			continue
		}
		n.rate, n.busyness = plans[w.rng.IntN(len(plans))], 2
		if w.rng.IntN(10) == 0 {
			n.rate, n.busyness = plans[3], 10
		}
	}
	var err error
	if w.chain, err = newChain(w, w.members); err != nil {
		return nil, err
	}
	if !o.peace {
		w.cast()
	}
	if o.tamper != nil {
		o.tamper(w)
	}
	for _, n := range w.members {
		if err := n.start(); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// streets links neighbours of a grid: first such that all are reached, then four of five of the rest.
func (w *world) streets(side int) {
	group := make([]int, len(w.members))
	for i := range group {
		group[i] = i
	}
	find := func(i int) int {
		for group[i] != i {
			i = group[i]
		}
		return i
	}
	var all []*link
	for i, n := range w.members {
		for _, j := range []int{i + 1, i + side} {
			if j < len(w.members) && (j != i+1 || j%side != 0) {
				all = append(all, &link{n, w.members[j], 10 + float64(w.rng.IntN(4))})
			}
		}
	}
	w.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, l := range all {
		a, b := find(l.a.index), find(l.b.index)
		if a == b && w.rng.IntN(5) == 0 {
			continue
		}
		group[a] = b
		w.links = append(w.links, l)
		l.a.links, l.b.links = append(l.a.links, l), append(l.b.links, l)
	}
}

// chooseGateways takes nodes far from each other, by hops.
func (w *world) chooseGateways(many int) {
	next := w.members[w.rng.IntN(len(w.members))]
	far := make([]int, len(w.members))
	for i := range far {
		far[i] = 1 << 30
	}
	for range many {
		next.gateway = true
		w.gateways = append(w.gateways, next)
		at := map[*node]int{next: 0}
		for queue := []*node{next}; len(queue) > 0; queue = queue[1:] {
			n := queue[0]
			far[n.index] = min(far[n.index], at[n])
			for _, l := range n.links {
				if o := l.other(n); !has(at, o) {
					at[o] = at[n] + 1
					queue = append(queue, o)
				}
			}
		}
		for _, n := range w.members {
			if far[n.index] > far[next.index] {
				next = n
			}
		}
	}
}

func has[K comparable, V any](m map[K]V, k K) bool { _, ok := m[k]; return ok }

// tree is the ways from one gateway to all.
type tree struct {
	version int
	parent  []*node
	cost    []float64
}

type reach struct {
	n    *node
	cost float64
}

type frontier []reach

func (f frontier) Len() int { return len(f) }
func (f frontier) Less(i, j int) bool {
	return f[i].cost < f[j].cost || f[i].cost == f[j].cost && f[i].n.index < f[j].n.index
}
func (f frontier) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f *frontier) Push(x any)   { *f = append(*f, x.(reach)) }
func (f *frontier) Pop() any     { l := len(*f) - 1; x := (*f)[l]; *f = (*f)[:l]; return x }

// tree computes the cheapest ways, with what delivered ratios say of links.
func (w *world) tree(gw *node) *tree {
	t := w.trees[gw.index]
	if t != nil && t.version == w.version {
		return t
	}
	t = &tree{version: w.version, parent: make([]*node, len(w.members)), cost: make([]float64, len(w.members))}
	for i := range t.cost {
		t.cost[i] = 1e18
	}
	t.cost[gw.index] = 0
	f := &frontier{{gw, 0}}
	for f.Len() > 0 {
		r := heap.Pop(f).(reach)
		if r.cost > t.cost[r.n.index] {
			continue
		}
		for _, l := range r.n.links {
			o := l.other(r.n)
			c := r.cost + l.cost*max(w.penalty(r.n, o), w.penalty(o, r.n))
			if c < t.cost[o.index] {
				t.cost[o.index], t.parent[o.index] = c, r.n
				heap.Push(f, reach{o, c})
			}
		}
	}
	w.trees[gw.index] = t
	return t
}

// path is from the gateway to the home.
func (w *world) path(gw, home *node) []*node {
	t := w.tree(gw)
	p := []*node{home}
	for n := home; n != gw; {
		n = t.parent[n.index]
		p = append(p, n)
	}
	slices.Reverse(p)
	return p
}

// choose is the nearest gateway that did not disappoint.
func (w *world) choose(home *node) *node {
	var best *node
	cost := 0.0
	for _, pass := range []bool{true, false} {
		for _, g := range w.gateways {
			if pass && home.avoid[g.index] > w.now {
				continue
			}
			if c := w.tree(g).cost[home.index]; best == nil || c < cost {
				best, cost = g, c
			}
		}
		if best != nil {
			break
		}
	}
	return best
}

// start runs the node's pay on what its store has.
func (n *node) start() error {
	w := n.w
	n.verdicts = map[pay.ID]given{} // whoever carries them out starts anew as well
	cfg := pay.Config{
		Signer: n.a, Chain: w.chain.tag, Log: w.log, Store: n.store, Meter: n, Settler: &book{n},
		Send:   n.send,
		Tariff: func() pay.Tariff { return w.chain.tariff },
		Member: func(k ident.PublicKey) bool { return w.chain.members[k] },
		Rate: func(id pay.ID) uint64 {
			if o := w.byKey[id.Peer]; id.Service == pay.Internet && o != nil {
				return max(o.rate, n.rate)
			}
			return linkRate
		},
		Price: func(id pay.ID) (uint32, bool) {
			if id.Service == pay.Carriage {
				return uint32(w.chain.params.Carriage), true
			}
			return uint32(w.chain.params.PriceCap), true
		},
		Enforce: func(id pay.ID, v pay.Verdict) {
			if old := n.verdicts[id]; old.Verdict != v && !n.lies.mild {
				n.verdicts[id] = given{v, w.now}
			}
		},
		VerifyAnchor: w.chain.verifyAnchor,
		Wallet:       pay.Wallet{Budget: 1000 * credit, MaxPrice: 2 * priceBefore, TabSize: credit},
	}
	p, err := pay.New(cfg)
	if err != nil {
		return fmt.Errorf("start %s: %w", n.name(), err)
	}
	n.pay = p
	return nil
}

const linkRate = 25_000_000 // bytes/s of a link between homes

// send is pay's way to a peer.
func (n *node) send(to ident.PublicKey, b []byte) error {
	o := n.w.byKey[to]
	if o == nil || n.w.over && o.pay == nil {
		return nil
	}
	n.watch(o, b)
	n.drafts = append(n.drafts, packet{n, o, b})
	return nil
}

// watch notes what a payee says of who has no tab to rely on.
func (n *node) watch(to *node, b []byte) {
	m, err := pay.ParseMessage(b)
	if err != nil {
		return
	}
	s, ok := m.(*pay.DebtStatus)
	if !ok || s.Asks&pay.AskAnchor == 0 {
		return
	}
	for _, e := range n.ends {
		if e.role == pay.Payee && e.payer == to && e.service == s.Service && s.Owed > 0 {
			e.outside = true
			e.cut = e.cut || n.w.chain.down // its tab was used up, or ended, and there is no other
		}
	}
}

// run handles what has come, and ticks. It touches nothing of other nodes.
func (n *node) run(now time.Time) {
	for _, p := range n.inbox {
		n.pay.Handle(now, p.from.key, p.b)
	}
	n.inbox = n.inbox[:0]
	n.busy = n.pay.Tick(now) < time.Second
	// The order in which pay goes over its accounts is no part of what it promises. What it sends goes by its player's hands.
	slices.SortStableFunc(n.drafts, func(a, b packet) int {
		return cmp.Or(cmp.Compare(a.to.index, b.to.index), slices.Compare(a.b, b.b))
	})
	for _, p := range n.drafts {
		for _, m := range n.sends(p.to, p.b) {
			n.outbox = append(n.outbox, packet{n, p.to, m})
		}
	}
	n.drafts = n.drafts[:0]
}

// rounds lets messages and their answers pass within a step: a way takes a twentieth of a second.
func (w *world) rounds() error {
	var list []*node
	for round := range 4 {
		list = list[:0]
		for _, n := range w.nodes {
			if n.pay != nil && (round == 0 && n.awake >= w.now || len(n.inbox) > 0) {
				list = append(list, n)
			}
		}
		if len(list) == 0 {
			break
		}
		now := w.time().Add(time.Duration(round) * 50 * time.Millisecond)
		w.each(list, func(n *node) { n.run(now) })
		for _, n := range list {
			for _, p := range n.outbox {
				if p.b[0] == 1 {
					w.vouchers++
				}
				if p.to.pay != nil {
					p.to.inbox = append(p.to.inbox, p)
					p.to.wake(w.now + 1)
				}
			}
			n.outbox = n.outbox[:0]
			if n.busy {
				n.wake(w.now + 1)
			}
			if n.store.dead {
				n.crash()
			}
		}
	}
	return nil
}

// each calls f for all nodes, on all cores.
func (w *world) each(list []*node, f func(*node)) {
	workers := min(runtime.GOMAXPROCS(0), len(list)/2)
	if workers < 2 {
		for _, n := range list {
			f(n)
		}
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(list)); i = next.Add(1) - 1 {
				f(list[i])
			}
		})
	}
	wg.Wait()
}

func (n *node) wake(until int64) { n.awake = max(n.awake, until) }

func (w *world) attend(seconds int64) {
	for _, n := range w.nodes {
		n.wake(w.now + seconds)
	}
}

// busy reports whether anybody is awake after this second.
func (w *world) busy() bool {
	if len(w.flows) > 0 {
		return true
	}
	for _, n := range w.nodes {
		if n.awake > w.now || n.down > 0 {
			return true
		}
	}
	return false
}

// step is a second.
func (w *world) step() error {
	for _, n := range w.nodes {
		if n.down > 0 && n.down <= w.now {
			n.revive()
		}
	}
	w.traffic()
	if err := w.rounds(); err != nil {
		return err
	}
	for _, n := range w.nodes {
		if n.pay == nil || n.awake < w.now {
			continue
		}
		if (w.now+int64(n.index))%settle == 0 {
			w.settle(n)
		}
		if w.now-n.lastKept >= 10 { // the meter writes each 10 s
			n.lastKept = w.now
			for _, e := range n.ends {
				e.kept = e.r.Mark
			}
		}
	}
	return nil
}

func (w *world) settle(n *node) {
	_ = n.pay.Settle(context.Background(), w.time()) // out of reach at times: tabs go on without it
	if n.store.dead {
		n.crash()
	}
}

// crash is a loss of power: what was not written is gone.
func (n *node) crash() {
	if n.pay == nil {
		return
	}
	n.pay = nil
	n.store.dead, n.store.dieAt = false, 0
	n.inbox, n.drafts, n.outbox = n.inbox[:0], n.drafts[:0], n.outbox[:0]
	n.down = n.w.now + 2 + int64(n.rng.IntN(4))
	n.w.reboots++
	for _, e := range n.ends {
		e.crash()
		if e.stepAt >= n.w.now-int64((meterKept+Step)/time.Second) { // else the meter had written it all
			e.account.reboots[e.role-1]++
		}
	}
}

// revive starts a node that was down.
func (n *node) revive() {
	n.down = 0
	if n.pay != nil {
		return
	}
	if err := n.start(); err != nil {
		panic(err) // its own store was written by the same program
	}
	n.wake(n.w.now + awake)
}

// store is a pay.Store that can die at a write, before or after it.
type store struct {
	m      map[string][]byte
	writes int
	dieAt  int // 0: never
	after  bool
	dead   bool
}

var errDied = errors.New("the power is gone")

// Scan implements pay.Store.
func (s *store) Scan(prefix []byte, f func(k, v []byte) error) error {
	var keys []string
	for k := range s.m {
		if strings.HasPrefix(k, string(prefix)) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		if err := f([]byte(k), s.m[k]); err != nil {
			return err
		}
	}
	return nil
}

// Write implements pay.Store: all or nothing.
func (s *store) Write(l []pay.Entry) error {
	if s.dead {
		return errDied
	}
	s.writes++
	s.dead = s.dieAt > 0 && s.writes >= s.dieAt
	if s.dead && !s.after {
		return errDied
	}
	for _, e := range l {
		if e.Value == nil {
			delete(s.m, string(e.Key))
		} else {
			s.m[string(e.Key)] = e.Value
		}
	}
	if s.dead {
		return errDied
	}
	return nil
}

// openTabs are those that a member pays from, on the chain.
func (c *chain) openTabs(n *node) []tx.Tab {
	pays, _ := c.m.Tabs(n.member)
	return pays
}
