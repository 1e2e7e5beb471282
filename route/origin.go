package route

import (
	"cmp"
	"slices"
	"time"

	"weft/ident"
	"weft/wire"
)

// damping holds the least time to the next own LSA after each in a row: the first news goes out at once, a flapping
// link costs the network one LSA every four seconds.
var damping = [...]time.Duration{0, 400 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second}

const (
	newsBurst    = 6                // so many links that died or came in a row are told at once, whatever else was told just before…
	newsRate     = 1.0 / 8          // …and one more every eight seconds
	calmAfter    = 10 * time.Second // without an LSA of ours: the damping starts short again
	fightFirst   = 100 * time.Millisecond
	fightMost    = 5 * time.Minute
	fightForget  = 15 * time.Minute
	doubleProof  = 3       // so many answers to our own name in a row mean another device, not an old life of ours
	seqMargin    = 1 << 16 // above the stored number: what may have been used since it was stored
	refreshParts = 8       // refresh after 3/8 of the lifetime: two tries may be lost
)

// origin is this node's own LSA: what it says, when it may say it, and who else says it.
type origin struct {
	adjacent []wire.Adjacency // what we count on now: as announced, less the links that have died since
	seq      uint64
	at       time.Duration // when the next is due
	last     time.Duration
	level    int
	urgent   bool   // what is due goes round the damping
	news     bucket // news of links that died or came which may still go round the damping

	refreshAt time.Duration
	doubled   bool // the newest LSA under our key is not ours
	fights    int
	fightAt   time.Duration // not before, because of a double
	lastFight time.Duration
	worn      time.Duration // sequence numbers are used up until then
}

func (o *origin) init(stored uint64) {
	o.at, o.refreshAt = never, never
	o.news = newBucket(newsRate, newsBurst, 0)
	if stored > 0 {
		o.seq = min(stored, wire.MaxSeq-1-seqMargin) + seqMargin
	}
}

func (o *origin) calm() { o.level, o.last = 0, o.last-calmAfter }

func (o *origin) due() time.Duration { return max(min(o.at, o.refreshAt), o.fightAt, o.worn) }

// scheduleOrigin asks for a new own LSA, after a wait that gathers what happens together and as damping allows.
func (r *Router) scheduleOrigin(wait time.Duration) {
	o := &r.own
	if r.now-o.last > calmAfter {
		o.level = 0
	}
	o.at = min(o.at, max(r.now+wait, o.last+damping[o.level]))
}

// scheduleNews tells of a link that died or came without the damping: until the others know, what they send by the dead link
// is lost, and whoever was restarted is not reached. Damping is for what can wait, such as costs, and for a link that
// keeps dying.
func (r *Router) scheduleNews(wait time.Duration) {
	o := &r.own
	r.scheduleOrigin(wait)
	if at := r.now + wait; o.at > at && o.news.take(r.now, 1) {
		o.at, o.urgent = at, true
	}
}

// gatherTime is how long the news of a link that came waits for more of its kind: a node that starts gets all its links
// within a moment, and a network that starts should not be told of them one by one.
func (r *Router) gatherTime() time.Duration {
	if r.now-r.own.last > calmAfter {
		return gatherLinks
	}
	return gatherMore
}

// originate signs and installs a new LSA of ours.
func (r *Router) originate() {
	o := &r.own
	forced := r.now >= o.refreshAt || o.doubled
	o.at = never
	if o.seq >= wire.MaxSeq {
		// Nothing can be said above the last number. When it has died of age everywhere the count starts again.
		e := &r.db.entries[0]
		o.worn = max(r.now, e.born+time.Duration(e.lsa.Lifetime())*time.Second) + 2*sweepEvery
		o.refreshAt = o.worn
		o.seq = 0
		r.stats.SeqExhausted = true
		return
	}
	if r.stats.SeqExhausted {
		r.stats.SeqExhausted = false
		r.db.bytes -= len(r.db.entries[0].lsa)
		r.db.entries[0].lsa = nil // dead everywhere: a number below it counts again
	}
	l := wire.LSA{
		Key: r.cfg.Self, Seq: o.seq + 1, Lifetime: uint32(r.lim.Lifetime / time.Second),
		Flags: r.local.Flags, Community: r.cfg.Community, Price: r.local.Price, Neighbours: r.adjacencies(),
	}
	for _, x := range []wire.Extension{{Type: wire.ExtName, Value: []byte(r.local.Name)}, {Type: wire.ExtPosition, Value: r.local.Position},
		{Type: wire.ExtGateway, Value: r.local.Gateway}, {Type: wire.ExtYggdrasil, Value: r.local.Yggdrasil}} {
		if len(x.Value) > 0 {
			l.Extensions = append(l.Extensions, x)
		}
	}
	b, err := l.AppendTo(nil)
	if err != nil { // checkLocal and adjacencies keep every limit
		panic("route: own LSA: " + err.Error())
	}
	if old := r.db.entries[0].lsa; !forced && old != nil && sameButSeq(old, append(b, old[len(old)-64:]...)) {
		o.adjacent = l.Neighbours // what happened has undone itself meanwhile
		r.relink(0)
		return
	}
	sig := r.cfg.Sign(b)
	b = append(b, sig[:]...)
	o.seq++
	o.doubled = false
	r.stats.Originated++
	o.adjacent = l.Neighbours
	o.last = r.now
	if !o.urgent { // urgent news has a bucket of its own and does not hold up what comes after
		o.level = min(o.level+1, len(damping)-1)
	}
	o.urgent = false
	jitter := time.Duration(r.cfg.Rand() % uint64(r.lim.Lifetime/refreshParts/4))
	o.refreshAt = r.now + 3*r.lim.Lifetime/refreshParts - jitter
	r.spf.links = true
	r.install(0, wire.LSAView(b), r.now, nil)
	r.relink(0) // install skips it when only the number is new, but a double's word may have stood there
}

// adjacencies lists the neighbours by rising id, each with its best link.
func (r *Router) adjacencies() []wire.Adjacency {
	best := map[ident.NodeID]*link{}
	for _, l := range r.links {
		if b := best[l.peer]; l.ready && l.peer != r.self && (b == nil || l.weight() < b.weight()) {
			best[l.peer] = l
		}
	}
	list := make([]*link, 0, len(best))
	for _, l := range best {
		list = append(list, l)
	}
	if len(list) > wire.MaxNeighbours { // keep the best
		slices.SortFunc(list, func(a, b *link) int { return cmp.Or(cmp.Compare(a.weight(), b.weight()), cmp.Compare(a.peer, b.peer)) })
		list = list[:wire.MaxNeighbours]
	}
	slices.SortFunc(list, func(a, b *link) int { return cmp.Compare(a.peer, b.peer) })
	out := make([]wire.Adjacency, len(list))
	for i, l := range list {
		out[i] = wire.Adjacency{ID: l.peer, Cost: l.info.Cost, MTU: l.info.MTU}
		if l.info.Metered {
			out[i].Flags = wire.AdjMetered
		}
	}
	return out
}

// meetDouble takes a verified LSA of our own key that is newer than ours. Either it is from an earlier life of ours whose
// number we have lost, or another device has our key. We pass it on, as everybody does, and answer with a higher number:
// soon the first time, then after longer and longer waits, so that two devices do not keep the network busy.
func (r *Router) meetDouble(from *link, v wire.LSAView, born time.Duration) {
	o := &r.own
	if r.now-o.lastFight > fightForget {
		o.fights = 0
	}
	o.fights++
	o.lastFight = r.now
	r.stats.FightBacks++
	r.stats.DuplicateKey = o.fights >= doubleProof
	o.doubled = true
	o.seq = max(o.seq, v.Seq())
	wait := fightFirst << min(2*(o.fights-1), 20)
	wait = min(wait, fightMost)
	wait += time.Duration(r.cfg.Rand() % uint64(wait/2)) // two doubles must not keep step
	o.fightAt = r.now + wait
	if o.fights == 1 {
		o.fightAt = 0
	}
	o.at = min(o.at, r.now+wait)
	r.install(0, v, born, from)
}
