package economy

import (
	"math"
	"time"

	"weft/ident"
	"weft/meter"
	"weft/pay"
)

// account is one payer, one payee and one service: what is true of it, and what each end counts.
type account struct {
	payer, payee *node
	service      pay.Service
	ends         [2]*end // the payer's, the payee's

	// True billed bytes, by what the payee may bill and what the payer must pay by: of internet the same; of carriage what the
	// payee received, and what the payer knows to be delivered. By the price of the time.
	payeeFull, payeeSlow, payerOwn [periods]uint64
	peak                           uint64 // most in a step
	throttled                      int64  // seconds in which less flowed than was wanted, by the payee's verdict
	outside                        bool   // more was owed than a tab allows while there was none to rely on
	reboots                        [2]int
	began                          int64
	cut                            bool // at some time without a tab, as the ledger was out of reach

	// Internet: one window of 10 s, each way as each end sees it.
	window  window
	windows int    // judged
	allowed uint64 // Σ of the tolerances of judged windows, bytes
	pardons int    // gaps of the payer that ended though much was missing

	// The slow tier in this step, shared by what is carried.
	stepAt int64
	left   uint64
	slow   bool
	moved  uint64
}

// end is an account as one node's meter has it.
type end struct {
	*account
	role    pay.Role
	r       pay.Reading // as shown to pay
	kept    pay.Mark    // durable
	carried pay.Carried
	hauls   map[ident.NodeID]*pay.Haul
	touched []*pay.Haul
	link    uint64 // epoch of the link's counters
	factor  float64
	gap     bool
	bad     int
	good    int
	drift   [2]meter.Drift // out and in
}

func (e *end) peer() *node {
	if e.role == pay.Payer {
		return e.payee
	}
	return e.payer
}

func (e *end) node() *node {
	if e.role == pay.Payer {
		return e.payer
	}
	return e.payee
}

// account finds or makes an account, and shows it to both ends.
func (w *world) account(payer, payee *node, s pay.Service) *account {
	id := pay.ID{Peer: payee.key, Service: s}
	for _, e := range payer.ends {
		if e.role == pay.Payer && e.r.ID == id {
			return e.account
		}
	}
	a := &account{payer: payer, payee: payee, service: s, began: w.now, cut: w.chain.down}
	for i, role := range []pay.Role{pay.Payer, pay.Payee} {
		e := &end{account: a, role: role, factor: 1, hauls: map[ident.NodeID]*pay.Haul{}, link: 1}
		n := e.node()
		e.r = pay.Reading{ID: pay.ID{Peer: e.peer().key, Service: s}, Role: role, Mark: pay.Mark{Epoch: 1}}
		e.kept = e.r.Mark
		n.ends = append(n.ends, e)
		n.readings = append(n.readings, e.r)
		a.ends[i] = e
	}
	w.accounts = append(w.accounts, a)
	return a
}

// Readings implements pay.Meter. What a hostile node shows is what its lie makes of it.
func (n *node) Readings() []pay.Reading {
	for i, e := range n.ends {
		r := e.r
		if f := n.shows(e); f != 1 {
			r.Sent, r.Recv = uint64(float64(r.Sent)*f), uint64(float64(r.Recv)*f)
		}
		r.Gap = e.gap && !n.hostile()
		n.readings[i] = r
	}
	return n.readings
}

// Commit implements pay.Meter.
func (n *node) Commit(time.Time) ([]pay.Reading, error) {
	for _, e := range n.ends {
		e.kept = e.r.Mark
	}
	return n.Readings(), nil
}

// crash loses what was not durable: the sessions' totals go back to what was written, the links' counters begin anew.
func (e *end) crash() {
	if e.service == pay.Internet {
		e.r.Mark = e.kept
	} else {
		e.link++
		e.r.Mark = pay.Mark{Epoch: e.r.Epoch + 1}
		e.kept, e.carried = e.r.Mark, pay.Carried{}
		clear(e.hauls)
	}
	e.touched = e.touched[:0]
}

// haul notes what passed the link for one node.
func (e *end) haul(dest ident.NodeID, sent, recv uint64, relays, delivered int) {
	h := e.hauls[dest]
	if h == nil {
		h = &pay.Haul{Dest: dest}
		e.hauls[dest] = h
	}
	h.Sent, h.Recv, h.Relays, h.Delivered = h.Sent+sent, h.Recv+recv, relays, delivered
	e.touched = append(e.touched, h)
}

// count ends the step of a carriage account's end.
func (e *end) count() {
	if len(e.touched) == 0 {
		return
	}
	l := make([]pay.Haul, len(e.touched))
	for i, h := range e.touched {
		l[i] = *h
	}
	e.touched = e.touched[:0]
	e.r.Sent, e.r.Recv = e.carried.Add(e.link, l)
}

// window is what the two ends of a session say of 10 s.
type window struct {
	began int64
	// Down, from the gateway to the home: what was truly sent and received, and what each says to the other.
	sent, got, saysSent, saysGot         uint64
	upSent, upGot, upSaysSent, upSaysGot uint64
}

const windowLen = 10

// agree is a second of a session: what was sent and received, as both count it and tell each other in beacons.
func (a *account) agree(now int64, sent, got, upSent, upGot uint64) {
	w := &a.window
	if w.began == 0 {
		w.began = now - 1
	}
	saysGot := uint64(float64(got) * a.payer.reports(a, now))
	claim := a.payee.claims(a)
	saysSent, upSaysGot := uint64(float64(sent)*claim), uint64(float64(upGot)*claim)
	w.sent, w.got, w.saysSent, w.saysGot = w.sent+sent, w.got+got, w.saysSent+saysSent, w.saysGot+saysGot
	w.upSent, w.upGot, w.upSaysSent, w.upSaysGot = w.upSent+upSent, w.upGot+upGot, w.upSaysSent+upSent, w.upSaysGot+upSaysGot

	user, gw := a.ends[0], a.ends[1]
	// What this end sent counts as far as both agree, what it received by its own count (meter.md section 4).
	user.r.Recv += saysGot
	user.r.Sent += min(upSent, upSaysGot)
	gw.r.Sent += min(sent, saysGot)
	gw.r.Recv += upGot
	user.r.Beacon, gw.r.Beacon = user.r.Beacon+1, gw.r.Beacon+1
}

// judge ends the window when it is time. Who lies ignores its own verdict.
func (a *account) judge(now int64) {
	w := &a.window
	if w.began == 0 || now-w.began < windowLen {
		return
	}
	span := time.Duration(now-w.began) * time.Second
	g, up := meter.Tolerance(w.sent, span, false), meter.Tolerance(w.upSent, span, false)
	a.allowed += g + up
	a.windows++
	user, gw := a.ends[0], a.ends[1]
	user.drift[meter.Out].Take(int64(w.upSent-min(w.upSent, w.upSaysGot)), w.upSent, up)
	user.drift[meter.In].Take(int64(w.got-min(w.got, w.saysSent)), w.got, g)
	gw.drift[meter.Out].Take(int64(w.sent-min(w.sent, w.saysGot)), w.sent, g)
	gw.drift[meter.In].Take(int64(w.upGot-min(w.upGot, w.upSaysSent)), w.upGot, up)
	user.verdict(w.saysSent > w.got+g || w.upSaysGot > w.upSent+up || w.upSent > w.upSaysGot+up, now)
	a.pardons += gw.verdict(w.sent > w.saysGot+g || w.saysGot > w.sent+g || w.upGot > w.upSaysSent+up, now)
	*w = window{}
}

// verdict takes a window: two bad ones in a row are a gap, or much that is missing in all; two good ones end it, once an hour also when
// much is missing. It returns how often the latter has happened, by direction.
func (e *end) verdict(bad bool, now int64) (pardons int) {
	over := e.drift[meter.Out].Over() || e.drift[meter.In].Over()
	switch {
	case bad:
		e.bad, e.good = e.bad+1, 0
		e.gap = e.gap || e.bad >= 2 || over
	case over && !e.gap:
		e.gap, e.bad, e.good = true, 0, 0
	default:
		if e.bad, e.good = 0, e.good+1; e.gap && e.good >= 2 {
			e.gap = false
			for d := range e.drift {
				may, pardoned := e.drift[d].Settle(time.Unix(now, 0))
				e.gap = e.gap || !may
				if pardoned {
					pardons++
				}
			}
		}
	}
	return pardons
}

// full is a rate that holds nothing back.
const full = math.MaxUint64
