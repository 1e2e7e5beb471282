package meter

import (
	"cmp"
	"math/bits"
	"slices"
	"time"

	"weft/ident"
)

// Figures of docs/spec/meter.md section 5. Ratios and factors are in permille.
const (
	ratioWindow   = 2 * time.Second
	ratioPatience = 15 * time.Second // that a window may wait for enough packets
	ratioPackets  = 100              // of a window, over all sessions
	destPackets   = 20               // of one session in a window, to count at all
	destWeight    = 256 << 10        // billed bytes of one session that count at most
	ratioBad      = 900
	mostRatio     = 1500 // more than all arrives when what was late in one window comes in the next: the average needs both
	worthKnowing  = 50   // permille lost on the last mile from which on it is remembered

	noPenalty   = 1000
	leastFactor = 1250
	mostFactor  = 8000
	healed      = 1100 // below this a penalty ends

	firstHalfLife = 10 * time.Minute
	mostOffences  = 5             // half-lives double up to 160 min
	forgetAfter   = 6 * time.Hour // without an offence one is forgotten

	maxNeighbours = 1024
	maxDests      = 4096 // of which something is remembered; and of one neighbour's window
	maxEvidence   = 16   // destinations that one penalty rests on
	destMemory    = 30 * time.Minute
)

// delivery learns from what arrives at the far ends which neighbours hand on what they are given. It owns no clock and no lock.
//
// One figure cannot tell whether the neighbour dropped a packet or someone behind it did. Two things can: what else goes through the
// same neighbour (so the median over sessions counts), and the same destination through another neighbour (so a penalty remembers what
// it rests on, and falls when the loss stays after the traffic has moved).
type delivery struct {
	neighbours map[ident.NodeID]*neighbour
	dests      map[ident.NodeID]*destination
}

type neighbour struct {
	window   map[ident.NodeID]tally
	started  time.Time // of the window; zero when nothing was sent
	ratio    int       // moving average; 0 when nothing is known
	previous int       // the window before, judged
	pending  int       // the newest window, not judged yet; 0 is none
	spare    int       // by how much more than all arrived in the window before it
	suspects map[ident.NodeID]int
	bad      int   // windows in a row
	history  uint8 // of windows, newest lowest: 1 was bad
	good     int
	sent     Count // for life of the process, as compared
	arrived  Count

	factor     int // what Penalise was last told, or would be: noPenalty … mostFactor
	told       int
	offences   int
	offended   time.Time
	healedAt   time.Time // up to when healing has been applied
	evidence   map[ident.NodeID]*evidence
	lastPassed time.Time
}

type tally struct{ sent, recv Count }

type evidence struct {
	ratio int // what arrived there through the neighbour
	alike int // windows in a row in which as little arrived by another way
}

// destination remembers that a node gets only so much by whatever way: its last mile, not a relay, loses the rest.
type destination struct {
	ratio int
	floor int
	seen  time.Time
}

func newDelivery() delivery {
	return delivery{map[ident.NodeID]*neighbour{}, map[ident.NodeID]*destination{}}
}

func (d *delivery) add(dest ident.NodeID, p passage, now time.Time) {
	n := d.neighbours[p.via]
	if n == nil {
		if len(d.neighbours) >= maxNeighbours {
			return
		}
		n = &neighbour{window: map[ident.NodeID]tally{}, factor: noPenalty, told: noPenalty}
		d.neighbours[p.via] = n
	}
	n.lastPassed = now
	if p.via == dest {
		// A neighbour that is itself the destination can gain nothing by dropping; the loss is the link's, which link measures.
		return
	}
	n.sent, n.arrived = n.sent.plus(p.sent), n.arrived.plus(p.recv)
	t, known := n.window[dest]
	if !known && len(n.window) >= maxDests {
		return
	}
	if n.started.IsZero() {
		n.started = now
	}
	n.window[dest] = tally{t.sent.plus(p.sent), t.recv.plus(p.recv)}
}

// closing returns the neighbours whose windows end, so that their links' loss can be asked for without a lock.
func (d *delivery) closing(now time.Time) (ids []ident.NodeID) {
	for id, n := range d.neighbours {
		if !n.started.IsZero() && now.Sub(n.started) >= ratioWindow {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// close ends one neighbour's window. loss is what its link loses by itself, in permille.
func (d *delivery) close(id ident.NodeID, loss int, now time.Time) {
	n := d.neighbours[id]
	if n == nil {
		return
	}
	var all tally
	for _, t := range n.window {
		all.sent = all.sent.plus(t.sent)
	}
	if all.sent.Packets < ratioPackets && now.Sub(n.started) < ratioPatience {
		return // not enough to judge by yet
	}
	enough := all.sent.Packets >= ratioPackets
	type share struct {
		dest      ident.NodeID
		raw, fair int // delivered; and with what is known to be lost elsewhere put back
		weight    uint64
	}
	var shares []share
	var total uint64
	for dest, t := range n.window {
		if t.sent.Packets < destPackets {
			continue
		}
		s := share{dest: dest, raw: permille(t.recv.Billed(), t.sent.Billed()), weight: min(t.sent.Billed(), destWeight)}
		s.raw = min(mostRatio, s.raw*1000/max(1000-loss, 100))
		s.fair = min(mostRatio, s.raw*1000/d.expected(id, dest, s.raw, now))
		shares, total = append(shares, s), total+s.weight
	}
	n.started = now
	if len(n.window) == 0 {
		n.started = time.Time{}
	}
	clear(n.window)
	if !enough || len(shares) == 0 {
		return
	}

	// The upper median: the largest ratio that at least half of the weight reaches.
	slices.SortFunc(shares, func(a, b share) int { return cmp.Or(-cmp.Compare(a.fair, b.fair), cmp.Compare(a.dest, b.dest)) })
	ratio, sum := 0, uint64(0)
	for _, s := range shares {
		if sum += s.weight; 2*sum >= total {
			ratio = s.fair
			break
		}
	}
	suspects := map[ident.NodeID]int{}
	for _, s := range shares {
		if s.fair < ratioBad && len(suspects) < maxEvidence {
			suspects[s.dest] = s.raw
		}
	}
	// The window before is judged now: what was late in it has come in this one, and what came early in the one before it.
	judged, known := n.pending, n.pending > 0
	if judged < 1000 {
		judged = min(judged+n.spare, 1000)
		late := min(1000-judged, max(ratio-1000, 0))
		judged, ratio, n.spare = judged+late, ratio-late, 0
	} else {
		judged, n.spare = 1000, judged-1000
	}
	before := n.suspects
	n.pending, n.suspects = max(ratio, 1), suspects
	if known {
		n.judge(judged, before, now)
	}
}

// judge takes the ratio of one window into what is held of the neighbour. suspects are the destinations that got little, and how much.
func (n *neighbour) judge(ratio int, suspects map[ident.NodeID]int, now time.Time) {
	if n.ratio == 0 {
		n.ratio = noPenalty
	}
	n.ratio = (n.ratio + ratio) / 2
	previous := n.previous
	n.previous = ratio
	n.history <<= 1
	if ratio >= ratioBad {
		n.bad, n.good = 0, n.good+1
		return
	}
	n.bad++
	n.history |= 1
	if bits.OnesCount8(n.history&0x0f) < 2 || n.ratio >= ratioBad { // two of four: dropping every other window pays no better
		return
	}
	worst := max((ratio+previous)/2, 1)
	factor := min(max(1_000_000_000/(worst*worst), leastFactor), mostFactor)
	if n.factor == noPenalty || n.good >= 5 {
		n.offences, n.offended = min(n.offences+1, mostOffences), now
	} else if n.bad%2 == 0 {
		factor = max(factor, min(2*n.factor, mostFactor)) // it did not help: what goes there still gets lost
	}
	n.factor, n.good, n.healedAt = max(n.factor, factor), 0, now
	if n.evidence == nil {
		n.evidence = map[ident.NodeID]*evidence{}
	}
	for dest, raw := range suspects {
		if n.evidence[dest] != nil || len(n.evidence) < maxEvidence {
			n.evidence[dest] = &evidence{ratio: raw}
		}
	}
}

// expected is what may be hoped to arrive at dest through neighbour id when raw did, seeing what other ways deliver; and it draws
// the conclusions for those other ways.
func (d *delivery) expected(id, dest ident.NodeID, raw int, now time.Time) int {
	hope := 1000
	if k := d.dests[dest]; k != nil {
		k.seen = now
		// It follows what arrives, but not below what two ways had in common: a relay cannot wear it down.
		if k.ratio = max(k.ratio+(raw-k.ratio)/8, k.floor); k.ratio >= 1000-worthKnowing {
			delete(d.dests, dest)
		} else {
			hope = k.ratio
		}
	}
	for other, n := range d.neighbours {
		e := n.evidence[dest]
		if other == id || e == nil {
			continue
		}
		if raw > (1000+e.ratio)/2 { // it loses less than half as much: the other neighbour was to blame
			e.alike = 0
			continue
		}
		hope = min(hope, max(e.ratio, raw))
		if e.alike++; e.alike < 2 {
			continue
		}
		if d.dests[dest] == nil && len(d.dests) < maxDests {
			d.dests[dest] = &destination{max(e.ratio, raw), min(e.ratio, raw), now}
		}
		delete(n.evidence, dest)
		if len(n.evidence) == 0 {
			n.factor, n.ratio, n.bad, n.history, n.offences = noPenalty, noPenalty, 0, 0, max(n.offences-1, 0)
			n.pending, n.suspects = 0, nil
		}
	}
	return max(hope, 1)
}

// heal lets penalties fade and forgets what is over. It returns the neighbours whose penalty has changed enough to tell.
func (d *delivery) heal(now time.Time) (tell []penalty) {
	for id, n := range d.neighbours {
		if n.factor > noPenalty {
			// An eighth of a half-life at a time: 2^(-1/8) is 917 permille.
			step := firstHalfLife << max(n.offences-1, 0) / 8
			for n.factor > noPenalty && now.Sub(n.healedAt) >= step {
				n.healedAt = n.healedAt.Add(step)
				n.factor = noPenalty + (n.factor-noPenalty)*917/1000
				if n.factor < healed {
					n.factor, n.evidence = noPenalty, nil
				}
			}
		}
		if n.offences > 0 && n.factor == noPenalty && now.Sub(n.offended) >= forgetAfter {
			n.offences, n.offended = n.offences-1, now
		}
		if diff := n.factor - n.told; diff != 0 && (n.factor == noPenalty || n.told == noPenalty || max(diff, -diff)*20 >= n.told) {
			n.told = n.factor
			tell = append(tell, penalty{id, n.factor})
		}
		if n.factor == noPenalty && n.offences == 0 && now.Sub(n.lastPassed) > destMemory {
			delete(d.neighbours, id)
		}
	}
	for dest, k := range d.dests {
		if now.Sub(k.seen) > destMemory {
			delete(d.dests, dest)
		}
	}
	slices.SortFunc(tell, func(a, b penalty) int { return cmp.Compare(a.neighbour, b.neighbour) })
	return tell
}

type penalty struct {
	neighbour ident.NodeID
	permille  int
}

// permille is how much of whole part is, at most mostRatio.
func permille(part, whole uint64) int {
	return int(min(part*1000/max(whole, 1), mostRatio))
}
