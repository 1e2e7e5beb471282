package route

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"time"

	"github.com/dchest/siphash"

	"weft/ident"
	"weft/wire"
)

const (
	// Window bounds the bytes that may be on their way over one link: a caller's queue must hold that much and one
	// message. LSAs that wait for room are a bit each, not a copy.
	Window = 256 << 10

	ackEvery     = 64 << 10
	floodDelay   = 3 * time.Millisecond   // gathers a burst into one message and lets duplicates cancel out
	refreshDelay = 10 * time.Second       // a refresh says nothing new: it may wait for company
	gatherLinks  = 10 * time.Millisecond  // after quiet, news of links is gathered for so long…
	gatherMore   = 150 * time.Millisecond // …and soon after other news for so long
	readyAfter   = 3 * time.Second        // a link is announced when the neighbour is synchronised, or after this
	resyncFirst  = 5 * time.Second
	resyncMost   = 5 * time.Minute
)

// link is one link to a neighbour and what we know that the neighbour has.
type link struct {
	info  LinkInfo
	peer  ident.NodeID
	upAt  time.Duration
	ready bool // announced in our LSA

	has     bitset // slots whose current LSA the neighbour has or will get
	pending bitset // slots to send
	flushAt time.Duration
	control []byte    // records that go first
	ranges  []idRange // summaries owed
	end     bool      // and then a mark that those were all
	done    bool      // owed once pending is empty: the neighbour has everything
	thanks  bool      // owed: we have everything

	answerAt time.Duration // not before then another digest on demand

	sent, acked    uint64
	received, told uint64

	verify bucket // signature checks
	work   bucket // entries looked at for digests and summaries

	waiting   map[ident.NodeID]parked
	waitBytes int

	resyncAt, resyncWait time.Duration
}

func byLinkID(l *link, id uint32) int { return cmp.Compare(l.info.ID, id) }

func (r *Router) newLink(info LinkInfo) *link {
	info.Cost = max(info.Cost, 1)
	return &link{
		info: info, peer: info.Peer.ID(), upAt: r.now, flushAt: never, resyncAt: never, resyncWait: resyncFirst,
		verify:  newBucket(r.lim.VerifyRate, r.lim.VerifyBurst, r.now),
		work:    newBucket(float64(r.lim.Nodes), 8*float64(r.lim.Nodes), r.now),
		waiting: map[ident.NodeID]parked{},
	}
}

// weight is the link's cost as join would see it if both ends said the same.
func (l *link) weight() uint64 {
	if l.info.Metered {
		return uint64(l.info.Cost) * meteredFactor
	}
	return uint64(l.info.Cost)
}

func (l *link) due() time.Duration {
	at := min(l.flushAt, l.resyncAt)
	if !l.ready {
		at = min(at, l.upAt+readyAfter)
	}
	return at
}

func (r *Router) dropLink(id uint32) {
	at, _ := slices.BinarySearchFunc(r.links, id, byLinkID)
	l := r.links[at]
	r.links = slices.Delete(r.links, at, at+1)
	r.spf.links = true
	r.spf.levels = true // the neighbour was a root of levels
	if l.ready {
		// Our own edge goes at once, whatever the damping of the announcement says. A parallel link keeps it.
		if !slices.ContainsFunc(r.links, func(o *link) bool { return o.peer == l.peer && o.ready }) {
			r.own.adjacent = slices.DeleteFunc(r.own.adjacent, func(a wire.Adjacency) bool { return a.ID == l.peer })
			r.relink(0)
		}
		r.scheduleNews(0)
	}
	r.wantSPF(true)
}

// flood queues a slot's LSA for every neighbour that does not have it.
func (r *Router) flood(s int32, lazy bool) {
	at := r.now + floodDelay
	switch {
	case s == 0 && !lazy: // our own word about our own links
		at = r.now
	case lazy:
		at = r.now + refreshDelay
	}
	for _, l := range r.links {
		if !l.has.get(s) {
			r.queue(l, s, at)
		}
	}
}

func (r *Router) queue(l *link, s int32, at time.Duration) {
	l.pending.set(s)
	l.flushAt = min(l.flushAt, at)
}

func (l *link) unqueue(s int32) { l.pending.clear(s) }

// setHas notes that the neighbour has the current LSA of a slot.
func (l *link) setHas(s int32) {
	l.has.set(s)
	l.pending.clear(s)
}

func (r *Router) wantResync(l *link) {
	if l.resyncAt == never {
		l.resyncAt = r.now + l.resyncWait
		l.resyncWait = min(2*l.resyncWait, resyncMost)
	}
}

// sendDigest tells the neighbour what we hold, in sums. From now on has is what it will know without asking: what we
// send after the digest, and what it sends.
func (r *Router) sendDigest(l *link, wanted bool) {
	l.has.reset()
	n := 0
	for _, s := range r.db.order {
		if r.db.entries[s].level == levelReachable {
			n++
		}
	}
	bucketBits := uint8(min(maxBucketBits, bits.Len(uint(n/8))))
	d := digest{wanted: wanted, bits: bucketBits, salt: r.cfg.Rand()}
	d.sums = r.sums(d.bits, d.salt)
	l.control = d.appendTo(l.control)
	l.flushAt = r.now
}

// sums adds up hashes of what is reachable, for each of 2^bits equal parts of the id space. The salt keeps anybody from
// preparing versions whose sums agree.
func (r *Router) sums(bucketBits uint8, salt uint64) []byte {
	sums := make([]byte, 8<<bucketBits)
	for _, s := range r.db.order {
		if e := &r.db.entries[s]; e.level == levelReachable && e.lsa != nil {
			addSum(sums, bucketBits, salt, e.summary())
		}
	}
	return sums
}

func addSum(sums []byte, bucketBits uint8, salt uint64, s summary) {
	var b [rangeEntry]byte
	appendSummary(b[:0], s)
	at := sums[8*(uint64(s.id)>>1>>(63-bucketBits)):] // two shifts: by 64 when there is one bucket
	binary.BigEndian.PutUint64(at, binary.BigEndian.Uint64(at)+siphash.Hash(salt, digestKey, b[:]))
}

const digestKey = 0x776566742f646967 // "weft/dig"

func (e *entry) summary() summary { return summary{e.id, e.lsa.Seq(), tagOf(e.lsa)} }

// Receive takes a control message that came over a link. An error means that the neighbour's software is broken or
// hostile; what came before the fault has been used. Unknown links are ignored: theirs are messages that were under way.
func (r *Router) Receive(now time.Time, id uint32, msg []byte) error {
	r.advance(now)
	l := r.link(id)
	if l == nil {
		return nil
	}
	err := r.receive(l, msg)
	r.run()
	return err
}

func (r *Router) receive(l *link, msg []byte) error {
	if len(msg) > MaxMessage {
		r.stats.Malformed++
		return fmt.Errorf("%w: %d bytes, at most %d", ErrMessage, len(msg), MaxMessage)
	}
	if l.received += uint64(len(msg)); l.received-l.told >= ackEvery {
		l.told = l.received
		l.control = appendAck(l.control, l.told)
		l.flushAt = r.now
	}
	var forged error
	for len(msg) > 0 {
		t, v, rest, err := nextRecord(msg)
		if err == nil {
			err = r.record(l, t, v)
		}
		if err != nil {
			if forged = err; t == recLSA {
				msg = rest
				continue // one bad LSA does not spoil the others
			}
			r.stats.Malformed++
			return err
		}
		msg = rest
	}
	return forged
}

func (r *Router) record(l *link, t recordType, v []byte) error {
	switch t {
	case recLSA:
		if len(v) < lsaFixed {
			return fmt.Errorf("%w: LSA record of %d bytes", ErrMessage, len(v))
		}
		err := r.receiveLSA(l, binary.BigEndian.Uint32(v), v[lsaFixed:])
		r.promoteWaiting()
		return err
	case recDigest:
		d, err := parseDigest(v)
		if err != nil {
			return err
		}
		r.compare(l, d)
	case recRange:
		span, list, err := parseRange(v)
		if err != nil {
			return err
		}
		r.answer(l, span, list)
	case recMark:
		if len(v) != 1 {
			return fmt.Errorf("%w: mark of %d bytes", ErrMessage, len(v))
		}
		switch v[0] {
		case markEnd:
			l.done = true
			l.flushAt = min(l.flushAt, r.now)
		case markDone:
			l.thanks = true
			l.flushAt = r.now
		case markReady:
			if !l.ready {
				l.ready = true
				r.scheduleNews(r.gatherTime())
			}
		}
	case recAck:
		if len(v) != 8 {
			return fmt.Errorf("%w: acknowledgement of %d bytes", ErrMessage, len(v))
		}
		n := binary.BigEndian.Uint64(v)
		if n > l.sent || n < l.acked {
			return fmt.Errorf("%w: acknowledges %d bytes of %d", ErrMessage, n, l.sent)
		}
		l.acked = n
		if l.owes() {
			l.flushAt = min(l.flushAt, r.now)
		}
	}
	return nil
}

// compare sets the ranges in which a neighbour's digest differs from ours, to tell it what we have there.
func (r *Router) compare(l *link, d digest) {
	if !l.work.take(r.now, float64(len(r.db.order)+1)) {
		r.stats.RateLimited++
		return
	}
	if d.wanted && r.now >= l.answerAt {
		l.answerAt = r.now + time.Second
		r.sendDigest(l, false)
	}
	sums := r.sums(d.bits, d.salt)
	l.ranges = l.ranges[:0]
	l.end = true
	l.flushAt = min(l.flushAt, r.now)
	size := ident.NodeID(1) << 1 << (63 - d.bits) // zero, meaning 2^64, for one bucket
	for i := range 1 << d.bits {
		if string(sums[8*i:8*i+8]) == string(d.sums[8*i:8*i+8]) {
			continue
		}
		low := size * ident.NodeID(i)
		high := low + size - 1
		if n := len(l.ranges); n > 0 && l.ranges[n-1].high+1 == low {
			l.ranges[n-1].high = high
		} else {
			l.ranges = append(l.ranges, idRange{low, high})
		}
	}
}

// answer queues what the neighbour lacks in a range of which it has listed all that it has.
func (r *Router) answer(l *link, span idRange, list summaries) {
	at, _ := r.db.find(span.low)
	end := at
	for end < len(r.db.order) && r.db.entries[r.db.order[end]].id <= span.high {
		end++
	}
	if !l.work.take(r.now, float64(end-at)) {
		r.stats.RateLimited++
		return
	}
	i := 0
	for _, s := range r.db.order[at:end] {
		e := &r.db.entries[s]
		for i < list.len() && list.at(i).id < e.id {
			i++
		}
		lacks := e.level == levelReachable // of what is not, an older version that the neighbour holds is still put right
		if i < list.len() {
			if theirs := list.at(i); theirs.id == e.id {
				ours := e.lsa.Seq()
				lacks = theirs.seq < ours || theirs.seq == ours && theirs.tag != tagOf(e.lsa)
				if theirs.seq == ours && theirs.tag == tagOf(e.lsa) {
					l.setHas(s)
				}
			}
		}
		if lacks && !l.has.get(s) {
			r.queue(l, s, r.now)
		}
	}
}

// owes reports whether there is something to send that needs room in the window.
func (l *link) owes() bool {
	return l.pending.count > 0 || len(l.ranges) > 0 || l.end || l.done
}

// Outbox returns the messages that are due. They must be sent in this order, reliably; if that fails the link must go
// down (LinkDown), since the protocol does not repeat itself.
func (r *Router) Outbox() (out []Message) {
	for _, l := range r.links {
		if l.flushAt <= r.now {
			out = r.flush(l, out)
		}
	}
	return out
}

// flush makes messages of what the link owes, as far as the window allows.
func (r *Router) flush(l *link, out []Message) []Message {
	l.flushAt = never
	b := l.control
	l.control = nil
	if l.thanks {
		b = appendMark(b, markReady)
		l.thanks = false
	}
	push := func() {
		if len(b) > 0 {
			l.sent += uint64(len(b))
			r.stats.SentMessages++
			r.stats.SentBytes += uint64(len(b))
			out = append(out, Message{l.info.ID, b})
			b = nil
		}
	}
	room := func(n int) bool { // for a record of n bytes more
		if len(b)+n > MaxMessage {
			push()
		}
		return l.sent-l.acked+uint64(len(b)+n) <= Window
	}
	for len(l.ranges) > 0 && room(recordHeader+rangeFixed+rangeEntry) {
		var left bool
		b, left = r.appendRange(b, &l.ranges[0])
		if left {
			push()
			continue
		}
		l.ranges = l.ranges[1:]
	}
	if len(l.ranges) == 0 && l.end && room(recordHeader+1) {
		b = appendMark(b, markEnd)
		l.end = false
	}
	if l.pending.count > 0 {
		for _, s := range r.outward(l) {
			v := r.db.entries[s].lsa
			if !room(recordHeader + lsaFixed + len(v)) {
				break
			}
			if b == nil {
				b = make([]byte, 0, min(MaxMessage, 32+l.pending.count*(len(v)+lsaFixed+recordHeader)))
			}
			b = appendLSA(b, r.age(s), v)
			l.setHas(s)
			r.stats.SentLSAs++
		}
	}
	if l.done && l.pending.count == 0 && room(recordHeader+1) {
		b = appendMark(b, markDone)
		l.done = false
	}
	push()
	return out
}

// outward returns the slots to send, nearest first: so each LSA meets one that joins it to the network.
func (r *Router) outward(l *link) []int32 {
	slots := l.pending.slots()
	t := r.spf.trees[0]
	slices.SortFunc(slots, func(a, b int32) int {
		return cmp.Or(cmp.Compare(t.at(a), t.at(b)), cmp.Compare(r.db.entries[a].stamp, r.db.entries[b].stamp))
	})
	return slots
}

// appendRange lists what we have in a range, as far as one message goes. When some is left it cuts the range down.
func (r *Router) appendRange(b []byte, span *idRange) (_ []byte, left bool) {
	at, _ := r.db.find(span.low)
	end := at
	most := (MaxMessage - len(b) - recordHeader - rangeFixed) / rangeEntry
	for end < len(r.db.order) && r.db.entries[r.db.order[end]].id <= span.high && end-at < most {
		end++
	}
	high := span.high
	if left = end < len(r.db.order) && r.db.entries[r.db.order[end]].id <= span.high; left {
		high = r.db.entries[r.db.order[end]].id - 1
	}
	header := len(b)
	b = appendRecord(b, recRange, 0)
	b = binary.BigEndian.AppendUint64(b, uint64(span.low))
	b = binary.BigEndian.AppendUint64(b, uint64(high))
	for _, s := range r.db.order[at:end] {
		if e := &r.db.entries[s]; e.lsa != nil {
			b = appendSummary(b, e.summary())
		}
	}
	binary.BigEndian.PutUint16(b[header+1:], uint16(len(b)-header-recordHeader))
	span.low = high + 1
	return b, left
}

// age is how many seconds ago the LSA in a slot was originated.
func (r *Router) age(s int32) uint32 {
	return uint32(max(0, (r.now-r.db.entries[s].born)/time.Second))
}

// bitset is a set of slots.
type bitset struct {
	words []uint64
	count int
}

func (b *bitset) get(s int32) bool {
	return int(s>>6) < len(b.words) && b.words[s>>6]>>(s&63)&1 != 0
}

func (b *bitset) set(s int32) {
	for int(s>>6) >= len(b.words) {
		b.words = append(b.words, 0)
	}
	if !b.get(s) {
		b.words[s>>6] |= 1 << (s & 63)
		b.count++
	}
}

func (b *bitset) clear(s int32) {
	if b.get(s) {
		b.words[s>>6] &^= 1 << (s & 63)
		b.count--
	}
}

func (b *bitset) reset() { clear(b.words); b.count = 0 }

func (b *bitset) slots() []int32 {
	out := make([]int32, 0, b.count)
	for i, w := range b.words {
		for ; w != 0; w &= w - 1 {
			out = append(out, int32(64*i+bits.TrailingZeros64(w)))
		}
	}
	return out
}
