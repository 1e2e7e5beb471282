package route

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"weft/ident"
	"weft/wire"
)

// Levels say how an LSA hangs on this node.
const (
	levelNone      = 0 // cut off: kept for a short while
	levelNear      = 1 // joined to a neighbour, but not, by links that both ends list, to us: kept, not passed on
	levelReachable = 2 // joined to us by links that both ends list: part of the network, flooded, in the digest
)

const (
	cutOffGrace   = time.Minute            // how long a cut-off LSA is kept: most partitions heal at once
	waitingFor    = 5 * time.Second        // how long an LSA waits for the ones that join it to the network
	waitingBytes  = 512 << 10              // per neighbour
	arrivalEvery  = 500 * time.Millisecond // LSAs of one node that are taken, on average …
	arrivalBurst  = 2 * time.Second        // … and how far ahead of that it may run; an honest node stays below (origin.go)
	retryEvery    = 100 * time.Millisecond
	sweepEvery    = 30 * time.Second
	forgedPenalty = 64 // a false signature costs as many checks
	evictEvery    = 250 * time.Millisecond
	evictShare    = 64 // one part in so many goes at once when the database is full
)

// entry is one node of the database.
type entry struct {
	id      ident.NodeID
	lsa     wire.LSAView  // immutable; nil for a free slot
	born    time.Duration // when it was originated, by the age it came with
	arrival time.Duration // when the LSAs taken so far would have come at arrivalEvery
	lost    time.Duration // when level fell to levelNone
	stamp   uint64        // rises with every node added
	transit uint64        // metric of going through the node
	edges   []edge        // links that both ends list
	price   uint32
	level   uint8
}

// database holds LSAs in slots: small integers that index every other array.
type database struct {
	entries []entry
	free    []int32
	byID    map[ident.NodeID]int32
	byKey   map[uint64]int32 // by the first eight bytes of the key: finds duplicates without hashing
	order   []int32          // slots by rising id
	bytes   int
	evictAt time.Duration // not before then again
	stamp   uint64
	stack   []int32
}

func (d *database) init() {
	d.byID = map[ident.NodeID]int32{}
	d.byKey = map[uint64]int32{}
}

func keyPrefix(k []byte) uint64 { return binary.LittleEndian.Uint64(k) }

func (d *database) find(id ident.NodeID) (int, bool) {
	return slices.BinarySearchFunc(d.order, id, func(s int32, id ident.NodeID) int { return cmp.Compare(d.entries[s].id, id) })
}

// add makes an empty entry.
func (d *database) add(id ident.NodeID, key ident.PublicKey) int32 {
	var s int32
	if n := len(d.free); n > 0 {
		s, d.free = d.free[n-1], d.free[:n-1]
	} else {
		s = int32(len(d.entries))
		d.entries = append(d.entries, entry{})
	}
	d.stamp++
	edges := d.entries[s].edges[:0]
	d.entries[s] = entry{id: id, stamp: d.stamp, edges: edges}
	d.byID[id] = s
	d.byKey[keyPrefix(key[:])] = s
	at, _ := d.find(id)
	d.order = slices.Insert(d.order, at, s)
	return s
}

// newer reports whether a, of the same id, replaces b. The order is total and the same everywhere, whatever arrives first.
func newer(a, b wire.LSAView) bool {
	if ka, kb := a[4:36], b[4:36]; !bytes.Equal(ka, kb) {
		return bytes.Compare(ka, kb) < 0 // two keys of one id: the smaller stays
	}
	if sa, sb := a.Seq(), b.Seq(); sa != sb {
		return sa > sb
	}
	return bytes.Compare(a, b) > 0 // two devices with one key
}

// isRefresh reports whether v says nothing new, for anybody: after a gap in the numbers a neighbour may hold a version
// between the two, to which v is news.
func isRefresh(old, v wire.LSAView) bool {
	return old != nil && sameButSeq(old, v) && v.Seq() == old.Seq()+1
}

// sameButSeq reports whether a and b differ in nothing but number and signature.
func sameButSeq(a, b wire.LSAView) bool {
	return len(a) == len(b) && bytes.Equal(a[:36], b[:36]) && bytes.Equal(a[44:len(a)-64], b[44:len(b)-64])
}

func tagOf(v wire.LSAView) uint32 { return binary.BigEndian.Uint32(v[len(v)-64:]) }

// receiveLSA takes one flooded LSA. The cheap checks come first; the signature is the last.
func (r *Router) receiveLSA(l *link, age uint32, b []byte) error {
	r.stats.Received++
	if len(b) >= 36 {
		if s, ok := r.db.byKey[keyPrefix(b[4:])]; ok && bytes.Equal(r.db.entries[s].lsa, b) {
			r.stats.Duplicates++
			l.setHas(s)
			return nil
		}
	}
	v, err := wire.ViewLSA(b)
	if err != nil {
		r.stats.Malformed++
		return fmt.Errorf("%w: %w", ErrMessage, err)
	}
	if age >= v.Lifetime() {
		r.stats.Stale++
		return nil
	}
	return r.consider(l, v, r.now-time.Duration(age)*time.Second)
}

// consider installs v, parks it or drops it. v may alias a message: install and park copy.
func (r *Router) consider(l *link, v wire.LSAView, born time.Duration) error {
	id := v.Key().ID()
	s, known := r.db.byID[id]
	if known && r.db.entries[s].lsa != nil {
		e := &r.db.entries[s]
		if s == 0 && v.Key() != r.cfg.Self {
			r.stats.IDCollision = true // another key with our id: nothing to be done but to say so
			return nil
		}
		if !newer(v, e.lsa) {
			switch {
			case bytes.Equal(v, e.lsa):
				r.stats.Duplicates++
				l.setHas(s)
			default:
				r.stats.Stale++
				if !l.has.get(s) { // what is on its way already need not go twice
					r.queue(l, s, r.now)
				}
			}
			return nil
		}
		if s != 0 && e.arrival-r.now > arrivalBurst {
			r.park(l, id, v, born, true)
			return nil
		}
	} else if !r.plausible(id, v) {
		r.park(l, id, v, born, false)
		return nil
	}
	if !l.verify.take(r.now, 1) {
		r.stats.RateLimited++
		r.park(l, id, v, born, true)
		return nil
	}
	r.stats.Verified++
	if !r.cfg.Verify(v) {
		r.stats.BadSignature++
		l.verify.level = max(0, l.verify.level-forgedPenalty)
		return fmt.Errorf("%w of %s", ErrForged, id)
	}
	if s == 0 && known {
		r.meetDouble(l, wire.LSAView(bytes.Clone(v)), born)
		return nil
	}
	nodes, size := 1, len(v)
	if known {
		nodes, size = 0, len(v)-len(r.db.entries[s].lsa)
	}
	if !r.makeRoom(v, nodes, size) {
		r.stats.Refused++
		return nil
	}
	if s, known = r.db.byID[id]; !known { // new, or just thrown out
		s = r.db.add(id, v.Key())
	} else if r.db.entries[s].lsa.Key() != v.Key() {
		r.db.byKey[keyPrefix(v[4:])] = s
	}
	r.install(s, wire.LSAView(bytes.Clone(v)), born, l)
	return nil
}

// plausible reports whether a node not in the database yet would hang on the network: it is a neighbour of ours, or it
// and a node that we hold list each other. An invented node is listed by nobody honest and stops here, unverified.
func (r *Router) plausible(id ident.NodeID, v wire.LSAView) bool {
	for _, l := range r.links {
		if l.peer == id && l.info.Peer == v.Key() {
			return true
		}
	}
	for i := range v.NumNeighbours() {
		if u, ok := r.db.byID[v.Neighbour(i).ID]; ok && r.db.entries[u].level != levelNone {
			if _, ok := r.listed(u, id); ok {
				return true
			}
		}
	}
	return false
}

// listed returns what the node in slot u says of its link to id. For this node it is the links as they are now, not as
// last announced: a dead link is out at once.
func (r *Router) listed(u int32, id ident.NodeID) (wire.Adjacency, bool) {
	if u == 0 {
		at, ok := slices.BinarySearchFunc(r.own.adjacent, id, func(a wire.Adjacency, id ident.NodeID) int { return cmp.Compare(a.ID, id) })
		if !ok {
			return wire.Adjacency{}, false
		}
		return r.own.adjacent[at], true
	}
	if v := r.db.entries[u].lsa; v != nil {
		return adjacency(v, id)
	}
	return wire.Adjacency{}, false
}

// adjacency finds what an LSA says of its node's link to id.
func adjacency(v wire.LSAView, id ident.NodeID) (wire.Adjacency, bool) {
	low, high := 0, v.NumNeighbours()
	for low < high {
		mid := (low + high) / 2
		switch a := v.Neighbour(mid); {
		case a.ID == id:
			return a, true
		case a.ID < id:
			low = mid + 1
		default:
			high = mid
		}
	}
	return wire.Adjacency{}, false
}

// install puts a verified LSA into its slot and passes it on.
func (r *Router) install(s int32, v wire.LSAView, born time.Duration, from *link) {
	e := &r.db.entries[s]
	old := e.lsa
	refresh := isRefresh(old, v)
	r.db.bytes += len(v) - len(old)
	e.lsa, e.born, e.arrival = v, born, max(e.arrival, r.now)+arrivalEvery
	for _, l := range r.links {
		l.has.clear(s)
	}
	if from != nil {
		from.setHas(s)
	}
	before := e.level
	if !refresh {
		r.suspect(s, old, v)
		r.stats.Installed++
		r.spf.stale(r.now)
		r.weigh(s)
		r.relink(s)
		r.raise(s)
		r.promote = append(r.promote, s)
	}
	if before == levelReachable {
		r.flood(s, refresh)
	}
}

// suspect notes the links to neighbours that node s has just stopped listing: they may have died on it, and so on us.
func (r *Router) suspect(s int32, old, v wire.LSAView) {
	if s == 0 || old == nil {
		return
	}
	for _, l := range r.links {
		if _, was := adjacency(old, l.peer); was && !slices.Contains(r.suspects, l.info.ID) {
			if _, is := adjacency(v, l.peer); !is {
				r.suspects = append(r.suspects, l.info.ID)
			}
		}
	}
}

// remove takes a node out of the database.
func (r *Router) remove(s int32) {
	e := &r.db.entries[s]
	r.unlink(s)
	r.db.bytes -= len(e.lsa)
	delete(r.db.byID, e.id)
	if p := keyPrefix(e.lsa[4:]); r.db.byKey[p] == s {
		delete(r.db.byKey, p)
	}
	at, _ := r.db.find(e.id)
	r.db.order = slices.Delete(r.db.order, at, at+1)
	for _, l := range r.links {
		l.has.clear(s)
		l.unqueue(s)
	}
	r.spf.forget(s)
	r.spf.stale(r.now)
	*e = entry{edges: e.edges[:0]}
	r.db.free = append(r.db.free, s)
}

// raise lifts a slot to the level that its links give it, and everything behind it. Falling is relevel's work.
func (r *Router) raise(s int32) {
	r.db.stack = append(r.db.stack[:0], s)
	for len(r.db.stack) > 0 {
		u := r.db.stack[len(r.db.stack)-1]
		r.db.stack = r.db.stack[:len(r.db.stack)-1]
		e := &r.db.entries[u]
		level := e.level
		if e.lsa != nil && level == levelNone && r.isPeer(e.id) {
			level = levelNear
		}
		for _, x := range e.edges {
			level = max(level, r.db.entries[x.to].level)
		}
		if level == e.level {
			continue
		}
		r.setLevel(u, level)
		for _, x := range e.edges {
			if r.db.entries[x.to].level < level {
				r.db.stack = append(r.db.stack, x.to)
			}
		}
	}
}

func (r *Router) isPeer(id ident.NodeID) bool {
	return slices.ContainsFunc(r.links, func(l *link) bool { return l.peer == id })
}

// setLevel moves a node between levels, and floods it when it becomes reachable.
func (r *Router) setLevel(u int32, level uint8) {
	e := &r.db.entries[u]
	before := e.level
	e.level = level
	switch {
	case level == levelNone:
		e.lost = r.now
	case before == levelNone:
		r.promote = append(r.promote, u)
		if e.lost != 0 && r.now-e.lost > cutOffGrace/2 { // the neighbours may have dropped it meanwhile
			for _, l := range r.links {
				l.has.clear(u)
			}
		}
	}
	if level == levelReachable {
		r.flood(u, false)
	}
	r.spf.stale(r.now)
}

// relevel works out all levels anew after links have gone: first from this node, then from its neighbours.
func (r *Router) relevel() {
	r.spf.levels = false
	level := make([]uint8, len(r.db.entries))
	spread := func(s int32, to uint8) {
		if level[s] >= to {
			return
		}
		level[s] = to
		stack := append(r.db.stack[:0], s)
		for len(stack) > 0 {
			u := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			for _, x := range r.db.entries[u].edges {
				if level[x.to] < to {
					level[x.to] = to
					stack = append(stack, x.to)
				}
			}
		}
		r.db.stack = stack
	}
	spread(0, levelReachable)
	for _, l := range r.links {
		if s, ok := r.db.byID[l.peer]; ok {
			spread(s, levelNear)
		}
	}
	for s := range r.db.entries {
		if e := &r.db.entries[s]; e.lsa != nil && e.level != level[s] {
			r.setLevel(int32(s), level[s])
		}
	}
}

// parked is an LSA that waits, its signature unchecked, for its place in the network or for a token.
type parked struct {
	lsa   wire.LSAView
	born  time.Duration
	until time.Duration
	retry bool // waits for time to pass, not for another LSA
}

func (r *Router) park(l *link, id ident.NodeID, v wire.LSAView, born time.Duration, retry bool) {
	old, there := l.waiting[id]
	if there && !newer(v, old.lsa) {
		return
	}
	if !there && len(l.waiting) >= r.lim.Waiting || l.waitBytes+len(v)-len(old.lsa) > waitingBytes {
		r.stats.Dropped++
		r.wantResync(l)
		return
	}
	l.waitBytes += len(v) - len(old.lsa)
	l.waiting[id] = parked{wire.LSAView(bytes.Clone(v)), born, r.now + waitingFor, retry}
	r.retryAt = min(r.retryAt, r.now+retryEvery)
}

func (l *link) unpark(id ident.NodeID) {
	l.waitBytes -= len(l.waiting[id].lsa)
	delete(l.waiting, id)
}

// promoteWaiting takes in the waiting LSAs that newly installed ones have joined to the network.
func (r *Router) promoteWaiting() {
	for len(r.promote) > 0 {
		u := r.promote[len(r.promote)-1]
		r.promote = r.promote[:len(r.promote)-1]
		e := &r.db.entries[u]
		if e.level == levelNone || e.lsa == nil {
			continue
		}
		for _, l := range r.links {
			if len(l.waiting) == 0 {
				continue
			}
			v := r.db.entries[u].lsa // installing may move entries
			for i := range v.NumNeighbours() {
				id := v.Neighbour(i).ID
				if p, ok := l.waiting[id]; ok && !p.retry {
					l.unpark(id)
					r.consider(l, p.lsa, p.born) // a forged one is counted; its sender is long gone from the stack
				}
			}
		}
	}
}

// retryWaiting gives up what waited too long and tries again what waited for a token.
func (r *Router) retryWaiting() {
	r.retryAt = never
	for _, l := range r.links {
		if len(l.waiting) == 0 {
			continue
		}
		var again []ident.NodeID
		for id, p := range l.waiting {
			switch {
			case r.now >= p.until && !p.retry:
				l.unpark(id)
				r.stats.Dropped++
				r.wantResync(l)
			case p.retry:
				again = append(again, id)
			}
		}
		slices.Sort(again) // map order must not decide what a run does
		for _, id := range again {
			p := l.waiting[id]
			l.unpark(id)
			r.consider(l, p.lsa, p.born)
		}
		if len(l.waiting) > 0 {
			r.retryAt = r.now + retryEvery
		}
	}
	r.promoteWaiting()
}

// sweep drops what has expired or has been cut off for long.
func (r *Router) sweep() {
	r.sweepAt = r.now + sweepEvery
	if r.spf.levels {
		r.relevel()
	}
	for s := 1; s < len(r.db.entries); s++ {
		e := &r.db.entries[s]
		if e.lsa == nil {
			continue
		}
		expired := r.now-e.born >= time.Duration(e.lsa.Lifetime())*time.Second
		if expired && e.level == levelReachable {
			// Its refresh has not reached us, or our clock has jumped: somebody may hold a younger one.
			for _, l := range r.links {
				r.wantResync(l)
			}
		}
		if expired || e.level == levelNone && r.now-e.lost >= cutOffGrace {
			r.stats.Expired++
			r.remove(int32(s))
		}
	}
	if r.spf.anyDirty() || r.spf.levels {
		r.wantSPF(false)
	}
}

// makeRoom reports whether an LSA that adds so many nodes and bytes may come in, after throwing out worse ones if need be. Worst are nodes of other
// communities; among those the ones behind the neighbour that brought most; among those the farthest. So a crowd of
// invented nodes, which all hang behind one liar, pushes itself out first.
func (r *Router) makeRoom(v wire.LSAView, nodes, size int) bool {
	fits := func() bool { return len(r.db.order)+nodes <= r.lim.Nodes && r.db.bytes+size <= r.lim.Bytes }
	if nodes <= 0 && size <= 0 || fits() {
		return true
	}
	if r.now < r.db.evictAt { // weighing everyone up costs more than any LSA is worth
		return false
	}
	r.db.evictAt = r.now + evictEvery
	if r.spf.levels || r.spf.trees[0].dirty { // judge by routes as they are, not as they were
		r.runSPF()
	}
	behind := map[int32]int{}
	for _, s := range r.db.order {
		behind[r.spf.firstOf(s)]++
	}
	type rank struct {
		foreign bool
		crowd   int
		dist    uint64
	}
	compare := func(a, b rank) int {
		if a.foreign != b.foreign {
			if b.foreign {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.crowd, b.crowd), cmp.Compare(a.dist, b.dist))
	}
	ranks := make([]rank, len(r.db.entries))
	var slots []int32
	for _, s := range r.db.order {
		if s != 0 {
			e := &r.db.entries[s]
			ranks[s] = rank{e.lsa.Community() != r.cfg.Community, behind[r.spf.firstOf(s)], r.spf.trees[0].at(s)}
			slots = append(slots, s)
		}
	}
	slices.SortFunc(slots, func(a, b int32) int {
		return cmp.Or(compare(ranks[b], ranks[a]), cmp.Compare(r.db.entries[b].id, r.db.entries[a].id))
	})
	// The newcomer stands one link behind the nearest node that it is joined to.
	mine := rank{v.Community() != r.cfg.Community, 0, infinite}
	for i := range v.NumNeighbours() {
		a := v.Neighbour(i)
		if u, ok := r.db.byID[a.ID]; ok {
			if d := add(r.spf.trees[0].at(u), uint64(a.Cost)); d < mine.dist {
				mine.dist, mine.crowd = d, behind[r.spf.firstOf(u)]
			}
		}
	}
	if len(slots) == 0 || compare(mine, ranks[slots[0]]) >= 0 {
		return false
	}
	for i, s := range slots[:max(1, len(slots)/evictShare)] {
		if i > 0 && compare(mine, ranks[s]) >= 0 {
			break
		}
		r.stats.Evicted++
		r.remove(s)
	}
	r.wantSPF(false)
	return fits()
}
