package economy

import (
	"cmp"
	"slices"

	"weft/ledger/tx"
	"weft/pay"
)

// Player is how a node behaves.
type Player uint8

// The players. All but Honest, RebootHome, RebootGateway and RebootRelay lie.
const (
	Honest Player = iota
	OverBiller
	UnderReporter
	SlyReporter
	TurnReporter
	FreeRider
	EarlyCloser
	Replayer
	Dropper
	RebootHome
	RebootGateway
	RebootRelay
	PaddingRelay
	Accomplice
	Sybil
	players
)

var playerNames = [players]struct{ name, what string }{
	Honest:        {"honest", "pays, bills and carries as the program does"},
	OverBiller:    {"over-billing gateway", "its meter says 1.5 times what it carried to one half of its clients, 1.009 times to the other"},
	UnderReporter: {"under-reporting user", "its meter says half of what it got"},
	SlyReporter:   {"sly under-reporter", "its meter says 0.9 % less than it got: too little for a gap"},
	TurnReporter:  {"alternating under-reporter", "its meter leaves out 7 s in each other window, so that never two in a row are bad"},
	FreeRider:     {"free rider", "opens tabs and never sends a voucher"},
	EarlyCloser:   {"early closer", "signs nothing for the day's last use, and closes all its tabs right after it"},
	Replayer:      {"replayer", "sends old vouchers, vouchers of other chains, epochs, tabs and amounts, old anchors, and its old transactions"},
	Dropper:       {"drop-and-keep relay", "drops 30 % of what it relays, and wants to be paid for all that it was given"},
	RebootHome:    {"rebooting user", "loses power each hour, at some write; relays too"},
	RebootGateway: {"rebooting gateway", "the same, as payee of many"},
	RebootRelay:   {"rebooting relay", "the same, as payee and payer of carriage"},
	PaddingRelay:  {"colluding relay", "bills 1.3 times what it carried, for users and a gateway that do not ask"},
	Accomplice:    {"colluding user", "signs half as much again as it used, for whoever its gateway is"},
	Sybil:         {"sybil newcomers", "strangers with fresh keys each evening hour, who take all that they are given"},
}

func (p Player) String() string { return playerNames[p].name }

// lies are what a hostile node remembers.
type lies struct {
	vouchers [][]byte
	anchors  [][]byte
	raw      [][]byte // transactions
	turn     int
	last     int64 // when the last burst of the day begins
	closing  bool
	mild     bool                          // a test's: verdicts are not carried out
	sign     func(to *node, v *tx.Voucher) // a test's: what is signed is changed
}

// hostile reports whether the node lies. One that loses power does not.
func (n *node) hostile() bool {
	switch n.kind {
	case Honest, RebootHome, RebootGateway, RebootRelay:
		return false
	}
	return true
}

// cast gives the parts: relays to those whom most ways pass, users to those behind honest gateways.
func (w *world) cast() {
	sets := max(1, w.o.Homes/100)
	for i, g := range w.gateways {
		if i/4 >= sets {
			break
		}
		switch i % 4 {
		case 1:
			g.kind = OverBiller
		case 3:
			g.kind = RebootGateway
		}
	}
	transit := make([]int, len(w.members))
	home := make([]*node, len(w.members))
	for _, n := range w.members {
		if n.gateway {
			continue
		}
		home[n.index] = w.choose(n)
		for _, r := range w.path(home[n.index], n) {
			if r != n {
				transit[r.index]++
			}
		}
	}
	free := slices.DeleteFunc(slices.Clone(w.members), func(n *node) bool { return n.gateway || n == w.members[0] || n == w.members[len(w.members)-1] })
	slices.SortStableFunc(free, func(a, b *node) int { return cmp.Compare(transit[b.index], transit[a.index]) })
	for range sets {
		for _, k := range []Player{Dropper, RebootRelay, PaddingRelay} {
			i := slices.IndexFunc(free, func(n *node) bool {
				return !slices.ContainsFunc(n.links, func(l *link) bool { o := l.other(n); return o.kind != Honest && !o.gateway })
			})
			if i < 0 {
				i = 0
			}
			free[i].kind = k
			if k == Dropper {
				w.dropShare += float64(transit[free[i].index]) / float64(w.o.Homes)
			}
			free = slices.Delete(free, i, i+1)
		}
	}
	// Users: those that relay least come first, and of those the ones that use most: who uses nothing can cheat nobody.
	slices.SortStableFunc(free, func(a, b *node) int {
		lie := func(n *node) int {
			if home[n.index].kind == Honest {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(lie(a), lie(b)), cmp.Compare(min(transit[a.index], 2), min(transit[b.index], 2)), cmp.Compare(b.rate, a.rate))
	})
	for range sets {
		for _, k := range []Player{UnderReporter, SlyReporter, TurnReporter, FreeRider, EarlyCloser, Replayer, RebootHome, Accomplice} {
			free[0].kind = k
			free[0].busyness = max(free[0].busyness, 6)
			free = free[1:]
		}
	}
}

// keeps is what a relay passes on of what it is given.
func (n *node) keeps(b uint64) uint64 {
	if n.kind == Dropper {
		return b * 7 / 10
	}
	return b
}

// shows is what the node's meter makes of an account before pay sees it.
func (n *node) shows(e *end) float64 {
	switch {
	case n.kind == OverBiller && e.role == pay.Payee && e.service == pay.Internet:
		return n.claims(e.account)
	case n.kind == PaddingRelay && e.role == pay.Payee && e.service == pay.Carriage:
		return 1.3
	}
	return 1
}

// claims is what a gateway tells a client's meter that it carried, for each byte that it did.
func (n *node) claims(a *account) float64 {
	if n.kind != OverBiller {
		return 1
	}
	if a.payer.index%2 == 0 {
		return 1.5
	}
	return 1.009
}

// reports is what a client tells its gateway's meter that it got, of each byte.
func (n *node) reports(a *account, now int64) float64 {
	switch n.kind {
	case UnderReporter:
		return 0.5
	case SlyReporter:
		return 0.991
	case TurnReporter:
		if a.windows%2 == 0 && now-a.window.began <= 7 {
			return 0
		}
	}
	return 1
}

// begins and finishes are a burst's ends.
func (n *node) begins(f *flow) {
	if n.kind == EarlyCloser {
		n.lies.closing = f.from >= n.lies.last
	}
}

func (n *node) finishes(f *flow) {
	switch n.kind {
	case Honest:
		// It paid, and was held back: the next gateway for a day (docs/spec/pay.md: "SHOULD use another way").
		if f.throttled*3 > f.wanted {
			n.avoid[f.gw.index] = n.w.now + day
		}
	case EarlyCloser:
		if n.lies.closing && n.pay != nil {
			for _, t := range n.w.chain.openTabs(n) {
				if !t.Closing() && !n.w.chain.down {
					_, _ = n.w.chain.submit(n.a, &tx.TabClose{Tab: t.ID, Epoch: t.Epoch}) // refused: it has closed by itself
				}
			}
		}
	case Replayer:
		for _, raw := range n.lies.raw[:min(len(n.lies.raw), 2)] {
			n.w.chain.replay(raw)
		}
		n.lies.raw = n.lies.raw[min(len(n.lies.raw), 2):]
	}
}

// remember keeps a replayer's transactions.
func (n *node) remember(raw []byte) {
	if n.kind == Replayer && len(n.lies.raw) < 100 {
		n.lies.raw = append(n.lies.raw, raw)
	}
}

const (
	typeVoucher = 1
	typeAnchor  = 5
)

// sends is what becomes of a message that pay wants to send. It runs on many nodes at once, and knows its own node alone.
func (n *node) sends(to *node, b []byte) [][]byte {
	if b[0] == typeVoucher && n.lies.sign != nil {
		b = n.resign(b, func(v *tx.Voucher) { n.lies.sign(to, v) })
	}
	switch n.kind {
	case FreeRider:
		if b[0] == typeVoucher {
			return nil
		}
	case EarlyCloser:
		if b[0] == typeVoucher && n.lies.closing {
			return nil
		}
	case Accomplice:
		if b[0] == typeVoucher {
			b = n.resign(b, func(v *tx.Voucher) { v.Amount += v.Amount / 2 })
		}
	case Replayer:
		return n.replays(b)
	}
	return [][]byte{b}
}

// resign changes a voucher and signs it.
func (n *node) resign(b []byte, change func(*tx.Voucher)) []byte {
	v, err := tx.ParseVoucher(b)
	if err != nil {
		return b
	}
	change(&v)
	if v, err = v.Sign(n.a); err != nil {
		return b
	}
	e := v.Encode()
	return e[:]
}

// replays sends a genuine voucher in the beginning, and everything but that later.
func (n *node) replays(b []byte) [][]byte {
	l := &n.lies
	l.turn++
	switch b[0] {
	case typeAnchor:
		if len(l.anchors) < 64 {
			l.anchors = append(l.anchors, b)
		}
		return [][]byte{l.anchors[l.turn%len(l.anchors)], b}
	case typeVoucher:
		if len(l.vouchers) < 64 {
			l.vouchers = append(l.vouchers, b)
			return [][]byte{b, b}
		}
		bad := [][]byte{l.vouchers[l.turn%len(l.vouchers)]}
		for _, change := range []func(*tx.Voucher){
			func(v *tx.Voucher) { v.Chain[0]++ },
			func(v *tx.Voucher) { v.Epoch-- },
			func(v *tx.Voucher) { v.Tab[3]++ },
			func(v *tx.Voucher) { v.Amount /= 2 },
			func(v *tx.Voucher) { v.Seq = 1 },
		} {
			bad = append(bad, n.resign(b, change))
		}
		return bad[l.turn%len(bad) : l.turn%len(bad)+1]
	}
	return [][]byte{b}
}

// hostileHour is the clock of those who do something each hour.
func (w *world) hostileHour(h int) {
	for _, n := range w.members {
		switch n.kind {
		case RebootHome, RebootGateway, RebootRelay:
			if n.pay != nil && n.store.dieAt == 0 {
				n.store.dieAt, n.store.after = n.store.writes+1+n.rng.IntN(8), n.rng.IntN(2) == 0
			}
		}
	}
	if h := h % 24; !w.o.peace && h >= 18 && h < 23 {
		w.newcomers()
	}
}

// sybil is a stranger that came for an hour.
type sybil struct {
	*node
	a *account
}

const sybilStay = 60 // seconds

// newcomers are strangers with fresh keys at honest gateways: they take what they are given for some minutes.
func (w *world) newcomers() {
	for range 2 {
		n := w.add()
		n.kind, n.rate = Sybil, 5_000_000
		if err := n.start(); err != nil {
			panic(err) // an empty store
		}
		var honest []*node
		for _, g := range w.gateways {
			if g.kind == Honest {
				honest = append(honest, g)
			}
		}
		g := honest[w.rng.IntN(len(honest))]
		a := w.account(n, g, pay.Internet)
		f := &flow{home: n, gw: g, from: w.now, until: w.now + sybilStay, version: -1, acct: a}
		w.flows = append(w.flows, f)
		w.route(f)
		w.sybils = append(w.sybils, sybil{n, a})
	}
}

// hostileDay tells an early closer which burst is its last of the day.
func (w *world) hostileDay() {
	for _, b := range w.demand {
		if b.home.kind == EarlyCloser {
			b.home.lies.last = max(b.home.lies.last, b.at)
		}
	}
}
