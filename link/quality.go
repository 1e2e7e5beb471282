package link

import (
	"math"
	"time"

	"weft/forward"
)

// Timing of the probes (docs/spec/link.md section 6).
const (
	pulse        = 200 * time.Millisecond // how often links with traffic are looked at
	quietAfter   = 300 * time.Millisecond // traffic goes out, nothing comes in: probe
	probeEvery   = 250 * time.Millisecond // while unanswered
	deadAfter    = 1300 * time.Millisecond
	deadIdle     = 3 * time.Second        // the same while nobody waits for an answer
	deadStream   = 4 * time.Second        // the same on a stream, where data queues up before probes
	deadProbes   = 3                      // at least so many unanswered probes before a link is dead
	lossyEvery   = 100 * time.Millisecond // while unanswered on a link that loses more than lossyFrom
	lossyFrom    = 0.05
	lossyDoubt   = 1e-6             // how likely all probes may have been lost when a link is called dead
	lossyProbes  = 30               // but no more than these
	activeFor    = 2 * time.Second  // after the last datagram a link counts as in use
	idleProbe    = 17 * time.Second // ± jitter
	meteredProbe = 60 * time.Second
	stallAfter   = 700 * time.Millisecond // this process itself was held up: no verdicts
	burstProbes  = 3                      // when something hints that the neighbour is gone
	burstEvery   = 15 * time.Millisecond
	burstVerdict = 60 * time.Millisecond
	activePulse  = 40 * time.Millisecond // how often links in use are looked at
	carrierAfter = 30 * time.Millisecond // of silence on a link in use: look at the interface
	changeEvery  = 4 * time.Second       // LinkChanged at most so often
)

// Cost of a link in µs: (baseCost + RTT/2) × ETX × operator's multiplier, in steps of a factor of costStep.
const (
	baseCost      = 500
	costStep      = 1.25
	costSlack     = 1.0 // in steps: the cost moves when the measured one is farther away than this
	maxETX        = 16.0
	meteredFactor = 4
	maxCost       = 1 << 28
	rttSamples    = 24
)

// quality estimates a link from its probes. The link's mu guards it.
type quality struct {
	rtts    [rttSamples]time.Duration // a minimum filter: queues come and go, the path stays
	n       int
	smooth  time.Duration
	lastRTT time.Time

	in, out    lossEstimate
	inSeen     lossMark // what came in, by our own count
	outSeen    lossMark // what went out, by the neighbour's count
	step       int      // the quantised cost
	have       bool
	lastChange time.Time
}

type lossMark struct {
	highest, received uint32
	valid             bool
}

// lossEstimate is a ratio over a sliding number of datagrams.
type lossEstimate struct{ sent, lost float64 }

const (
	lossWindow = 512
	lossPrior  = 24 // datagrams assumed to have arrived: one lost probe on an idle link is no 50 % loss
)

func (l *lossEstimate) add(sent, lost float64) {
	l.sent += sent
	l.lost += lost
	if l.sent > lossWindow {
		f := lossWindow / l.sent
		l.sent *= f
		l.lost *= f
	}
}

func (l *lossEstimate) ratio() float64 { return l.lost / (l.sent + lossPrior) }

// mark books the difference to the last report. Counters start afresh with every key epoch: then there is no difference
// to book.
func (l *lossEstimate) mark(last *lossMark, highest, received uint32) {
	sent, got := highest-last.highest, received-last.received
	ok := last.valid && sent < 1<<31 && got < 1<<31
	*last = lossMark{highest, received, true}
	if ok && sent > 0 {
		l.add(float64(sent), math.Max(0, float64(sent)-float64(got)))
	}
}

func (q *quality) addRTT(d time.Duration, now time.Time) {
	q.rtts[q.n%rttSamples] = d
	q.n++
	if q.smooth == 0 {
		q.smooth = d
	}
	q.smooth += (d - q.smooth) / 8
	q.lastRTT = now
}

// minRTT is the least of the last samples.
func (q *quality) minRTT() time.Duration {
	least := time.Duration(0)
	for _, d := range q.rtts[:min(q.n, rttSamples)] {
		if least == 0 || d < least {
			least = d
		}
	}
	return least
}

// etx is the expected number of transmissions over both directions.
func (q *quality) etx() float64 {
	return math.Min(maxETX, 1/math.Max(1/maxETX, (1-q.in.ratio())*(1-q.out.ratio())))
}

// update recomputes the quantised cost and reports whether it changed.
func (q *quality) update(multiplier int, metered bool, now time.Time) bool {
	if q.n == 0 {
		return false
	}
	c := (baseCost + float64(q.minRTT().Microseconds())/2) * q.etx() * float64(multiplier) / 1000
	if metered {
		c *= meteredFactor
	}
	exact := math.Log(math.Min(math.Max(c, 1), maxCost)) / math.Log(costStep)
	step := int(math.Round(exact))
	if q.have && (math.Abs(exact-float64(q.step)) <= costSlack || now.Sub(q.lastChange) < changeEvery) {
		return false
	}
	changed := !q.have || step != q.step
	q.step, q.have = step, true
	if changed {
		q.lastChange = now
	}
	return changed
}

// cost is the quantised cost in µs.
func (q *quality) cost() uint32 {
	return uint32(math.Max(1, math.Round(math.Pow(costStep, float64(q.step)))))
}

// liveness is the state machine that tells a silent neighbour from an idle one. The link's mu guards it.
//
//	        nothing to do for idleProbe                     answered, or any datagram
//	idle ───────────────────────────────► probing ──────────────────────────────────► idle
//	  │  traffic out, quietAfter nothing in  ▲  │ deadAfter of silence, ≥ deadProbes unanswered
//	  └──────────────────────────────────────┘  └──────────────────────────────────► dead
//	hint (ICMP, a beacon of a new instance) ─► burst ─ burstVerdict of silence ─► dead
type liveness struct {
	heard      time.Time // last sign of life
	received   uint64    // Stats.RecvPackets at that time
	lastTick   time.Time
	lastProbe  time.Time
	unanswered int       // probes since the last sign of life
	firstProbe time.Time // of those
	nextIdle   time.Time
	burstFrom  time.Time // zero: none
	bursts     int
}

// verdict is what the state machine wants done.
type verdict int

const (
	nothing verdict = iota
	sendProbe
	declareDead
	checkCarrier // the kernel reports a lost carrier up to a second late
)

// tick looks at the link. idle is the (jittered) pause until the next idle probe; rtt and loss, both of a round trip,
// stretch the limits on long and on lossy paths.
func (v *liveness) tick(now time.Time, st forward.Stats, idle, rtt time.Duration, loss float64, stream bool) (verdict, time.Time) {
	if st.RecvPackets != v.received {
		v.received = st.RecvPackets
		v.heard = now
		if st.LastRecv.After(now.Add(-pulse*2)) && st.LastRecv.Before(now) {
			v.heard = st.LastRecv
		}
		v.unanswered = 0
		v.burstFrom = time.Time{}
	}
	if stalled := !v.lastTick.IsZero() && now.Sub(v.lastTick) > stallAfter; stalled && v.unanswered > 0 {
		// The readers were held up as well, most likely. Start over.
		v.firstProbe, v.heard, v.unanswered = now, now, 1
		v.burstFrom = time.Time{}
	}
	v.lastTick = now
	slow := max(0, 4*rtt-pulse)

	if !v.burstFrom.IsZero() {
		if now.Sub(v.burstFrom) >= burstVerdict+slow && v.bursts >= burstProbes {
			return declareDead, now
		}
		if v.bursts < burstProbes && !now.Before(v.burstFrom.Add(time.Duration(v.bursts)*burstEvery)) {
			v.bursts++
			v.probed(now, idle)
			return sendProbe, now.Add(burstEvery)
		}
		return nothing, now.Add(burstEvery)
	}

	every, enough := probeEvery, deadProbes
	if loss > lossyFrom {
		every = lossyEvery
		enough = min(max(enough, int(math.Ceil(math.Log(lossyDoubt)/math.Log(loss)))), lossyProbes)
	}
	quiet := now.Sub(v.heard)
	active := !st.LastSent.IsZero() && now.Sub(st.LastSent) < activeFor
	limit := deadAfter
	switch {
	case stream:
		limit = deadStream
	case !active:
		limit = deadIdle
	}
	step := pulse
	if active {
		step = activePulse
	}
	switch {
	case v.unanswered >= enough && quiet >= limit+slow && now.Sub(v.firstProbe) >= deadAfter-quietAfter-pulse+slow:
		return declareDead, now
	case v.unanswered > 0 && now.Sub(v.firstProbe) >= quietAfter, active && quiet >= quietAfter:
		if now.Sub(v.lastProbe) >= every-every/5 {
			v.probed(now, idle)
			return sendProbe, now.Add(min(step, every))
		}
		return nothing, now.Add(min(step, every))
	case !now.Before(v.nextIdle):
		v.probed(now, idle)
		return sendProbe, now.Add(step)
	case active && quiet >= carrierAfter:
		return checkCarrier, now.Add(step)
	}
	return nothing, now.Add(step)
}

func (v *liveness) probed(now time.Time, idle time.Duration) {
	if v.unanswered == 0 {
		v.firstProbe = now
	}
	v.unanswered++
	v.lastProbe = now
	v.nextIdle = now.Add(idle)
}

// suspect starts a burst, unless one is running or the neighbour was just heard.
func (v *liveness) suspect(now time.Time) bool {
	if !v.burstFrom.IsZero() {
		return false
	}
	v.burstFrom, v.bursts = now, 0
	return true
}
