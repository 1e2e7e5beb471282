package meter

import (
	"slices"
	"time"

	"weft/ident"
)

// Times and limits of docs/spec/meter.md sections 3 and 4.
const (
	windowLen    = 10 * time.Second
	badWindows   = 2 // in a row until a gap is reported
	goodWindows  = 2 // in a row until it is over
	pardonEvery  = time.Hour
	fastEvery    = 250 * time.Millisecond
	slowEvery    = time.Second
	maxRetries   = 5  // of the last beacon, while nobody answers
	idleReplies  = 8  // beacons that a peer may ask for while nothing is carried
	sentBeacons  = 16 // remembered, to know what an echo compares with
	oldEpochs    = 4  // of a peer, remembered so that none comes back
	maxByteRate  = 100_000_000_000 / 8
	minTolerance = 64 << 10
	maxTolerance = 1 << 20

	// What may overtake the first beacon of a new epoch.
	overtakePackets = 4096
	overtakeBytes   = 1 << 20
	overtake        = overtakeBytes + PacketBytes*overtakePackets
)

// Direction is a direction of traffic as this node sees it.
type Direction uint8

const (
	Out Direction = 0 // from this node to the peer
	In  Direction = 1 // from the peer to this node
)

func (d Direction) String() string { return [...]string{"out", "in"}[min(d, In)] }

// Reason is what is wrong with a peer's figures.
type Reason uint8

const (
	Agreed      Reason = iota // nothing
	Lossy                     // more was sent, or is said to have been, than arrived
	Silent                    // traffic flows, and no beacon, or no echo, comes
	Inflated                  // the peer says that more arrived than was sent, or counts what no line can carry
	Understated               // the peer says that it sent less than arrived
	Rewound                   // a count of the peer went back within one epoch
)

func (r Reason) String() string {
	return [...]string{"agreed", "lossy", "silent", "inflated", "understated", "rewound"}[min(r, Rewound)]
}

// Tolerance is how many billed bytes the two ends may differ by in a window in which sent billed bytes went one way: 64 KiB up to
// 10 Mbit/s, 1 MiB from 1 Gbit/s, evenly between, and never less than 1 % of what was sent, 5 % where the way begins with radio.
func Tolerance(sent uint64, window time.Duration, radio bool) uint64 {
	const lo, hi = 10_000, 1_000_000 // kbit/s
	ms := uint64(max(window.Milliseconds(), 1))
	kbit := min(max(min(sent, maxCounter)*8/ms, lo), hi)
	g := minTolerance + (maxTolerance-minTolerance)*(kbit-lo)/(hi-lo)
	if radio {
		return max(g, sent/20)
	}
	return max(g, sent/100)
}

// compared holds what one end sent against what the other received, at beacons that both know. Counters of either end begin again
// with its epoch, so a pair of epochs is compared as one stretch, and what is agreed adds up over the stretches.
type compared struct {
	known                bool
	sentEpoch, recvEpoch uint64
	sent, recv           Count // the counters at the last comparison
	pairSent, pairRecv   Count // since this pair of epochs began
	pairAgreed           Count
	agreed               Count // for life; never falls
}

// advance takes the next comparison. ok is false, and nothing has changed, when a counter went back within its epoch. dSent and
// dRecv are what came on top; fresh says that an epoch changed, so that they may not cover the same packets.
func (c *compared) advance(sentEpoch, recvEpoch uint64, sent, recv Count) (dSent, dRecv Count, fresh, ok bool) {
	baseSent, baseRecv := c.sent, c.recv
	fresh = !c.known || sentEpoch != c.sentEpoch || recvEpoch != c.recvEpoch
	if !c.known || sentEpoch != c.sentEpoch {
		baseSent = Count{}
	}
	if !c.known || recvEpoch != c.recvEpoch {
		baseRecv = Count{}
	}
	if sent.behind(baseSent) || recv.behind(baseRecv) {
		return Count{}, Count{}, fresh, false
	}
	dSent, dRecv = sent.minus(baseSent), recv.minus(baseRecv)
	if fresh {
		// What the receiver has from before the sender's new life must not make up for what it loses in this one. A little more than
		// was sent is what overtook the beacon.
		dRecv = least(dRecv, dSent.plus(Count{overtakePackets, overtakeBytes}))
		c.pairSent, c.pairRecv, c.pairAgreed = Count{}, Count{}, Count{}
	}
	c.pairSent, c.pairRecv = c.pairSent.plus(dSent), c.pairRecv.plus(dRecv)
	a := least(c.pairSent, c.pairRecv)
	c.agreed = c.agreed.plus(a.minus(c.pairAgreed))
	c.pairAgreed = a
	c.known, c.sentEpoch, c.recvEpoch, c.sent, c.recv = true, sentEpoch, recvEpoch, sent, recv
	return dSent, dRecv, fresh, true
}

// Drift sums up what one direction comes apart by: what this node has counted itself and both ends do not agree on. In each window a
// tolerance of it is forgiven and the rest stays, so who cheats in some windows and not in others gets no further than who cheats in
// all. The zero value is ready.
type Drift struct {
	sum      uint64 // billed bytes
	most     uint64 // moved in one window since sum was 0: the limit
	pardoned time.Time
}

// Take adds a window: what is not agreed has grown by so many billed bytes (or shrunk, when what was late or under way is agreed), moved
// is the traffic by this node's own count, and forgiven what may be missing. As grown is never more than moved, one window alone
// never brings the sum above its limit.
func (d *Drift) Take(grown int64, moved, forgiven uint64) {
	if d.sum == 0 {
		d.most = 0
	}
	d.most = max(d.most, moved)
	d.sum = uint64(max(int64(d.sum)+grown-int64(min(forgiven, maxCounter)), 0))
}

// Over reports whether more is missing, beyond what is forgiven, than the traffic of the fullest window.
func (d *Drift) Over() bool { return d.sum > d.most }

// Settle reports whether a gap may end, now that windows are good. When too much is missing still it may once an hour, and then all is
// forgiven: a line that was dead for half a minute is no reason to hold an honest end back for long.
func (d *Drift) Settle(now time.Time) (may, pardoned bool) {
	if !d.Over() {
		return true, false
	}
	if !d.pardoned.IsZero() && now.Sub(d.pardoned) < pardonEvery {
		return false, false
	}
	d.sum, d.pardoned = 0, now
	return true, true
}

// ledger is what lasts of one kind of traffic with one peer. It is written as a whole, so the totals and the counters that are in
// them already are always of the same moment: nothing is counted twice, whatever is killed when.
type ledger struct {
	sentTotal, recvTotal Count // this node's own count, for life

	epoch      uint64 // of the counters that are in the totals up to here
	sent, recv Count
	prevEpoch  uint64 // not stored: a reading from before the last change of epochs that comes late

	out, in compared
}

// absorb takes a reading of the session's counters into the totals. Readings may come in any order.
func (l *ledger) absorb(epoch uint64, sent, recv Count) (dSent, dRecv Count) {
	if epoch != l.epoch {
		if epoch == l.prevEpoch && epoch != 0 {
			return Count{}, Count{}
		}
		l.prevEpoch, l.epoch, l.sent, l.recv = l.epoch, epoch, Count{}, Count{}
	}
	dSent, dRecv = sent.minus(l.sent), recv.minus(l.recv)
	l.sent, l.recv = most(l.sent, sent), most(l.recv, recv)
	l.sentTotal, l.recvTotal = l.sentTotal.plus(dSent), l.recvTotal.plus(dRecv)
	return dSent, dRecv
}

// apart is the billed bytes of each direction that this node has counted and both ends do not agree on, for life: what got lost, what
// the peer does not admit, and what is under way. It shrinks when that is agreed.
func (l *ledger) apart() [2]uint64 {
	return [2]uint64{Out: l.sentTotal.minus(l.out.agreed).Billed(), In: l.recvTotal.minus(l.in.agreed).Billed()}
}

// sentBeacon is what an echo is compared with.
type sentBeacon struct {
	seq   uint32 // 0: the place is free
	sent  Count
	via   ident.NodeID
	viaOK bool
}

// heard is the newest beacon that has come, and this node's own count when it came.
type heard struct {
	seq        uint32
	epoch      uint64
	sent, recv Count
	at         time.Time
	ownEpoch   uint64
	ownRecv    Count
}

// verdict is what is held of one direction.
type verdict struct {
	gap       bool
	reason    Reason
	lost      uint64 // billed bytes by which the ends differed in the last bad window, or in all that told together
	bad, good int    // windows in a row
	drift     Drift
	apart     uint64 // of the ledger, when the last window ended
	last      Reason // of the bad ones
	flagged   Reason // in this window, by a single beacon

	// Compared in this window.
	sent, recv uint64
	compared   bool
	moved      uint64 // billed bytes by this node's own count
}

// live is what is known of one kind of traffic only while the session is there.
type live struct {
	radio bool
	gone  bool // there is no session; only what is held of the peer is kept

	seq       uint32
	epoch     uint64       // that seq belongs to
	ring      []sentBeacon // sentBeacons of them, once there was one
	last      time.Time    // of the last beacon sent
	lastSent  Count        // counters in it
	lastRecv  Count
	confirmed Count // sent, in the last beacon that was echoed
	settled   bool  // it was echoed twice, so that what was late is in it
	echoed    uint32
	retries   int
	replies   int // left while nothing is carried
	owe       bool

	via    ident.NodeID // of the beacon compared last
	viaOK  bool
	heard  heard
	former []uint64
	stale  uint64 // beacons that came twice, late, or of an epoch that was over

	started time.Time // of the window; zero when nothing moves
	ended   time.Time // of the window before it
	dir     [2]verdict

	samples []sample // oldest first, one a second
}

type sample struct {
	at         time.Time
	sent, recv uint64
}

const maxSamples = 11

// newLive makes what is known of a kind of traffic of which so much was apart before.
func newLive(apart [2]uint64) *live {
	v := &live{replies: idleReplies}
	for d := range v.dir {
		v.dir[d].apart = apart[d]
	}
	return v
}

// rates returns bytes a second out and in, over the last second and over ten.
func (v *live) rates(now time.Time) (out1, in1, out10, in10 uint64) {
	n := len(v.samples)
	if n < 2 || now.Sub(v.samples[n-1].at) > 5*time.Second {
		return
	}
	per := func(from int) (uint64, uint64) {
		a, b := v.samples[from], v.samples[n-1]
		ms := uint64(max(b.at.Sub(a.at).Milliseconds(), 1))
		return (b.sent - a.sent) * 1000 / ms, (b.recv - a.recv) * 1000 / ms
	}
	out1, in1 = per(n - 2)
	out10, in10 = per(0)
	return
}

func (v *live) sample(l *ledger, now time.Time) {
	if n := len(v.samples); n > 0 && now.Sub(v.samples[n-1].at) < slowEvery-fastEvery/2 {
		return
	}
	if len(v.samples) == maxSamples {
		v.samples = slices.Delete(v.samples, 0, 1)
	}
	v.samples = append(v.samples, sample{now, l.sentTotal.Bytes, l.recvTotal.Bytes})
}

// moved notes traffic by this node's own count.
func (v *live) moved(dSent, dRecv Count, now time.Time) {
	if dSent == (Count{}) && dRecv == (Count{}) {
		return
	}
	if v.started.IsZero() {
		v.started = now
	}
	v.dir[Out].moved += dSent.Billed()
	v.dir[In].moved += dRecv.Billed()
	v.retries, v.replies = 0, idleReplies
}

// leave returns what is kept of v when the session ends: what is held of a peer, and the window that is under way, or nil when that is
// nothing. Who opens another session is not believed again for that, and what was never compared in the old one is not forgotten.
func (v *live) leave(now time.Time) *live {
	kept := &live{gone: true, replies: idleReplies, radio: v.radio, dir: v.dir, started: v.started, ended: v.ended}
	if kept.forgotten(now) {
		return nil
	}
	return kept
}

// forgotten reports whether nothing is held of a peer any more.
func (v *live) forgotten(now time.Time) bool {
	if !v.started.IsZero() {
		return false
	}
	for d := range v.dir {
		if w := &v.dir[d]; w.gap || w.bad > 0 || w.drift.sum > resting(now.Sub(v.ended)) {
			return false
		}
	}
	return true
}

// resting is what is forgiven while nothing moves.
func resting(d time.Duration) uint64 { return minTolerance * uint64(max(d, 0)/windowLen) }

// interval is the time between two beacons of a kind, and the bytes after which one comes earlier.
func interval(k Kind) (time.Duration, uint64) {
	if k == Outside {
		return time.Second, 1 << 20
	}
	return 2 * time.Second, 4 << 20
}

// due reports whether a beacon is to be sent: after traffic, because the peer waits for an echo, or again because nobody has
// answered the last one. An idle session with nothing open sends none.
func (v *live) due(l *ledger, k Kind, now time.Time) bool {
	every, volume := interval(k)
	since := every << maxRetries
	if !v.last.IsZero() {
		since = now.Sub(v.last) + fastEvery/5 // ticks are not exact
	}
	if since < fastEvery {
		return false
	}
	var carried Count
	if v.epoch == l.epoch {
		carried = l.sent.minus(v.lastSent).plus(l.recv.minus(v.lastRecv))
	} else {
		carried = l.sent.plus(l.recv)
	}
	switch {
	case carried.Packets > 0:
		return since >= every || carried.Bytes >= volume
	case v.owe && v.replies > 0:
		return since >= every
	case v.open(l):
		return v.retries < maxRetries && since >= every<<v.retries
	}
	return false
}

// open reports whether a beacon is to be asked for an echo of: when the last count has not been echoed, and once more when it has, but
// something had not arrived by then that may have since.
func (v *live) open(l *ledger) bool {
	if v.confirmed.behind(l.sent) {
		return true
	}
	c := &l.out
	return v.seq > 0 && !v.settled && c.known && c.sentEpoch == l.epoch && c.pairRecv.behind(c.pairSent)
}

// beacon makes the next beacon and remembers it.
func (v *live) beacon(l *ledger, k Kind, via ident.NodeID, viaOK bool, now time.Time) Beacon {
	if v.epoch != l.epoch || v.ring == nil {
		v.epoch, v.seq, v.ring, v.confirmed, v.echoed, v.settled = l.epoch, 0, make([]sentBeacon, sentBeacons), Count{}, 0, false
		v.lastSent, v.lastRecv = Count{}, Count{}
	}
	if l.sent == v.lastSent && l.recv == v.lastRecv {
		if v.owe && v.replies > 0 {
			v.replies--
		} else {
			v.retries++
		}
	}
	v.seq++
	v.ring[v.seq%sentBeacons] = sentBeacon{v.seq, l.sent, via, viaOK}
	v.last, v.lastSent, v.lastRecv, v.owe = now, l.sent, l.recv, false
	b := Beacon{Kind: k, Ask: v.open(l), Seq: v.seq, Epoch: l.epoch, Sent: l.sent, Recv: l.recv}
	if h := &v.heard; h.seq != 0 && h.ownEpoch == l.epoch {
		b.EchoSeq, b.EchoEpoch, b.EchoRecv = h.seq, h.epoch, h.ownRecv
	}
	return b
}

// passage is what went to a peer, and what of it arrived, between two beacons that took the same way.
type passage struct {
	via        ident.NodeID
	sent, recv Count
}

// hear takes a beacon of the peer. l must hold a reading from after it came.
func (v *live) hear(l *ledger, b *Beacon, now time.Time) (p passage, ok bool) {
	h := &v.heard
	switch {
	case h.seq == 0:
	case b.Epoch == h.epoch:
		if b.Seq <= h.seq {
			v.stale++
			return
		}
		if b.Sent.behind(h.sent) || b.Recv.behind(h.recv) {
			v.flag(Rewound, b.Sent.behind(h.sent), b.Recv.behind(h.recv), now)
			return
		}
		if claim := b.Sent.minus(h.sent); claim.Bytes > maxByteRate*uint64(now.Sub(h.at)/time.Second+1) {
			v.flag(Inflated, true, false, now)
			return
		}
	case slices.Contains(v.former, b.Epoch):
		v.stale++
		return
	default:
		if len(v.former) == oldEpochs {
			v.former = slices.Delete(v.former, 0, 1)
		}
		v.former = append(v.former, h.epoch)
	}
	if b.Sent.Bytes/65535 > b.Sent.Packets {
		v.flag(Inflated, true, false, now)
		return
	}

	dSent, dRecv, _, good := l.in.advance(b.Epoch, l.epoch, b.Sent, l.recv)
	if !good {
		v.flag(Rewound, true, false, now)
		return
	}
	v.note(In, dSent, dRecv, now)
	p, ok = v.echo(l, b, now)
	*h = heard{b.Seq, b.Epoch, b.Sent, b.Recv, now, l.epoch, l.recv}
	v.owe = v.owe || b.Ask
	return
}

// echo compares what had been sent at one of this node's beacons with what the peer says had arrived by then.
func (v *live) echo(l *ledger, b *Beacon, now time.Time) (p passage, ok bool) {
	if b.EchoSeq == 0 || b.EchoEpoch != l.epoch || b.EchoEpoch != v.epoch || v.ring == nil {
		return // none, or of an epoch that is over
	}
	if b.EchoSeq > v.seq || b.Recv.behind(b.EchoRecv) {
		v.flag(Inflated, false, true, now)
		return
	}
	s := &v.ring[b.EchoSeq%sentBeacons]
	if b.EchoSeq <= v.echoed || s.seq != b.EchoSeq {
		return // known already, or forgotten
	}
	c := &l.out
	if c.known && c.sentEpoch == l.epoch && c.recvEpoch == b.Epoch {
		if b.EchoRecv.behind(c.recv) {
			v.flag(Rewound, false, true, now)
			return
		}
		// It cannot have got what has not been sent, even by now. The slack is for what was under way when the pair of epochs began.
		if c.pairRecv.plus(b.EchoRecv.minus(c.recv)).Billed() > c.pairSent.plus(l.sent.minus(c.sent)).Billed()+overtake {
			v.flag(Inflated, false, true, now)
			return
		}
	}
	dSent, dRecv, fresh, good := c.advance(l.epoch, b.Epoch, s.sent, b.EchoRecv)
	if !good {
		v.flag(Rewound, false, true, now)
		return
	}
	v.note(Out, dSent, dRecv, now)
	v.settled = v.confirmed == s.sent
	v.echoed, v.confirmed, v.retries = b.EchoSeq, s.sent, 0
	if s.viaOK && v.viaOK && v.via == s.via && !fresh {
		p, ok = passage{s.via, dSent, dRecv}, true
	}
	v.via, v.viaOK = s.via, s.viaOK
	return
}

func (v *live) note(d Direction, dSent, dRecv Count, now time.Time) {
	if v.started.IsZero() {
		v.started = now
	}
	w := &v.dir[d]
	w.sent, w.recv, w.compared = w.sent+dSent.Billed(), w.recv+dRecv.Billed(), true
}

// flag marks a beacon that cannot be true. What it says is not used.
func (v *live) flag(r Reason, in, out bool, now time.Time) {
	if v.started.IsZero() {
		v.started = now
	}
	if in {
		v.dir[In].flagged = r
	}
	if out {
		v.dir[Out].flagged = r
	}
}

// judge ends the window when it is time and returns the directions whose verdict has changed.
func (v *live) judge(l *ledger, now time.Time) (changed [2]bool) {
	for d := range v.dir { // what cannot be true needs no second window
		if w := &v.dir[d]; w.flagged != Agreed && (!w.gap || w.reason != w.flagged) {
			changed[d] = !w.gap // another reason is no news: a peer shall not fill logs by making them up
			w.gap, w.reason, w.lost = true, w.flagged, 0
		}
	}
	length := now.Sub(v.started)
	if v.started.IsZero() || length < windowLen {
		return
	}
	var rested uint64
	if !v.ended.IsZero() {
		rested = resting(v.started.Sub(v.ended))
	}
	idle, apart := true, l.apart()
	for d := range v.dir {
		w := &v.dir[d]
		w.drift.Take(int64(apart[d])-int64(w.apart), w.moved, Tolerance(w.moved, length, v.radio)+rested)
		w.apart = apart[d]
		idle = idle && w.moved == 0 && !w.compared && w.flagged == Agreed
		reason, lost := w.window(Direction(d), length, v.radio)
		switch {
		case reason == Agreed && w.drift.Over() && !w.gap: // no window by itself, but all together
			w.gap, w.reason, w.lost, changed[d] = true, w.missing(Direction(d)), w.drift.sum, true
			w.good = 0
		case reason == Agreed && !w.compared: // nothing to judge by
		case reason == Agreed:
			w.bad, w.good = 0, w.good+1
			if w.gap && w.good >= goodWindows {
				if may, _ := w.drift.Settle(now); may {
					w.gap, w.reason, w.lost, changed[d] = false, Agreed, 0, true
				}
			}
		default:
			// A queue that fills and empties makes a gap one way and then the other; only one that goes on is one.
			if reason != w.last {
				w.bad = 0
			}
			w.bad, w.good, w.last = w.bad+1, 0, reason
			if (w.bad >= badWindows || w.drift.Over()) && !w.gap {
				w.gap, w.reason, changed[d] = true, reason, true
			}
			if w.gap {
				w.lost = lost
			}
		}
		w.sent, w.recv, w.compared, w.moved, w.flagged = 0, 0, false, 0, Agreed
	}
	v.started, v.ended = now, now
	if idle {
		v.started = time.Time{}
	}
	return
}

// missing is why what this node has counted is not agreed.
func (w *verdict) missing(d Direction) Reason {
	switch {
	case !w.compared:
		return Silent
	case d == Out:
		return Lossy
	}
	return Understated
}

// window says what is wrong with what was compared in one window.
func (w *verdict) window(d Direction, length time.Duration, radio bool) (Reason, uint64) {
	g := Tolerance(max(w.sent, w.moved), length, radio)
	switch {
	case w.flagged != Agreed:
		return w.flagged, 0
	case !w.compared && w.moved > g:
		return Silent, w.moved
	case w.sent > w.recv+g:
		return Lossy, w.sent - w.recv
	case w.recv > w.sent+g && d == Out:
		return Inflated, w.recv - w.sent
	case w.recv > w.sent+g:
		return Understated, w.recv - w.sent
	}
	return Agreed, 0
}
