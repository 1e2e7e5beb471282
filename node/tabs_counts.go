package node

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"weft/forward"
	"weft/ident"
	"weft/meter"
	"weft/pay"
	"weft/route"
	"weft/wire"
)

// counters turn what meter and forward count into pay's readings. A count belongs to one account: of internet traffic, to the
// one in which the peer is what it is now, gateway or client. When they change places the count begins anew.
type counters struct {
	t *tabs

	mu       sync.Mutex // guards what follows
	epoch    uint64     // of this process
	stints   map[ident.PublicKey]*stint
	carried  map[accountKey]*carried
	hauls    map[uint32]*haulage // by the index of the link
	peaks    map[pay.ID]*peak
	table    *route.Table              // of far and gateways
	far      map[uint32]int            // hops to the farthest node behind a link
	gateways map[ident.NodeID]struct{} // who announces a gateway
}

// stint is the time for which a peer is this node's gateway, or its client.
type stint struct {
	role       pay.Role
	epoch      uint64
	base, last [2]uint64 // sent, received
	gap        bool
	seen       time.Time // when there was a session last
	kept       bool      // in tabs.json
	waits      bool      // of a run before: the meter has not said yet how far it is
}

type accountKey struct {
	peer ident.PublicKey
	role pay.Role
}

// carried sums up the links to one neighbour in one role.
type carried struct {
	base, sum [2]uint64 // sent, received: when billing began, and now
	shown     bool
}

// haulKey names a counter of a link.
type haulKey struct {
	dest ident.NodeID
	hops uint8
	sent bool
}

// haulage is one link: what its counters were, and what was carried over it at this node's cost and for its benefit.
type haulage struct {
	last               map[haulKey]uint64
	pays, earns        map[haulKey]pay.Haul
	paid, earned       pay.Carried
	paidSum, earnedSum [2]uint64
}

// peak is the most that an account moved in a second.
type peak struct {
	at    time.Time
	bytes uint64
	most  uint64
}

func (c *counters) init(t *tabs) {
	c.t, c.epoch = t, rand.Uint64()
	c.stints, c.carried, c.peaks = map[ident.PublicKey]*stint{}, map[accountKey]*carried{}, map[pay.ID]*peak{}
	c.hauls = map[uint32]*haulage{}
}

// Readings implements pay.Meter.
func (c *counters) Readings() []pay.Reading {
	s := c.t.n.sharing
	view := s.meter.View()
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	using := s.gateway()
	here := map[ident.PublicKey]bool{}
	for _, v := range view.Sessions {
		if v.Kind != meter.Outside {
			continue
		}
		here[v.Peer] = true
		role := pay.Role(0)
		if v.Peer == using {
			role = pay.Payer
		} else if _, ok := s.gw.LeaseOf(v.Peer); ok {
			role = pay.Payee
		}
		c.outsideLocked(v.Peer, role, v.Out.Agreed.Billed(), v.In.Total.Billed(), v.Out.Gap || v.In.Gap)
	}
	c.forgetLocked(here, now)
	c.carryLocked(&view)
	return c.listLocked(now)
}

// Commit implements pay.Meter.
func (c *counters) Commit(now time.Time) ([]pay.Reading, error) {
	totals, err := c.t.n.sharing.meter.Commit(now)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for peer, st := range c.stints {
		if st.waits {
			continue
		}
		p := totals.Find(peer)
		c.outsideLocked(peer, 0, p.Outside.Delivered.Billed(), p.Outside.Recv.Billed(), st.gap)
	}
	return c.listLocked(now), nil
}

// kept are the stints that last.
func (c *counters) kept() (l []keptStint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for peer, s := range c.stints {
		if s.kept {
			l = append(l, keptStint{peer, s.role, s.epoch, s.base})
		}
	}
	slices.SortFunc(l, func(a, b keptStint) int { return bytes.Compare(a.Peer[:], b.Peer[:]) })
	return l
}

// recall goes on with stints of a run before. Those of this run stay.
func (c *counters) recall(l []keptStint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range l[:min(len(l), maxCounted)] {
		if c.stints[k.Peer] == nil && (k.Role == pay.Payer || k.Role == pay.Payee) {
			c.stints[k.Peer] = &stint{role: k.Role, epoch: k.Epoch, base: k.Base, last: k.Base, seen: time.Now(), kept: true, waits: true}
		}
	}
}

// stintLasts is how long a peer without a session is remembered: its counts go on when it is back sooner.
const stintLasts = 15 * time.Minute

// forgetLocked drops peers that have had no session for long, or that are too many: keys cost nothing. Who comes back begins anew.
func (c *counters) forgetLocked(here map[ident.PublicKey]bool, now time.Time) {
	for peer, st := range c.stints {
		if here[peer] {
			st.seen = now
		}
	}
	full := len(c.stints) > maxCounted
	maps.DeleteFunc(c.stints, func(peer ident.PublicKey, st *stint) bool {
		gone := !here[peer] && (full || now.Sub(st.seen) > stintLasts)
		if gone {
			if st.kept {
				c.t.news.Store(true)
			}
			delete(c.peaks, pay.ID{Peer: peer, Service: pay.Internet})
		}
		return gone
	})
}

// outsideLocked takes the totals of the outside traffic with a peer. role 0 is the one that it has.
func (c *counters) outsideLocked(peer ident.PublicKey, role pay.Role, sent, recv uint64, gap bool) {
	st := c.stints[peer]
	if role != 0 && (st == nil || st.role != role) {
		st = &stint{role: role, epoch: rand.Uint64(), base: [2]uint64{sent, recv}, last: [2]uint64{sent, recv}, seen: time.Now()}
		c.stints[peer] = st
	}
	if st == nil {
		return
	}
	st.last = [2]uint64{max(st.last[0], sent), max(st.last[1], recv)} // a view may be older than what was committed
	st.gap, st.waits = gap, false
}

// carryLocked takes what passed over the links.
func (c *counters) carryLocked(view *meter.View) {
	r := c.t.n.routing
	table := r.table.Load()
	delivered := map[ident.NodeID]int{}
	for _, v := range view.Neighbours {
		if v.Delivered >= 0 {
			delivered[v.Neighbour] = v.Delivered
		}
	}
	links := r.linkList()
	if c.table != table {
		c.table, c.far, c.gateways = table, map[uint32]int{}, gatewayIDs(table)
		for _, hop := range table.Routes() {
			c.far[hop.Link] = max(c.far[hop.Link], int(hop.Hops))
		}
	}
	w := ways{self: r.n.self.ID(), hops: func(dest ident.NodeID) int {
		hop, _ := table.Route(dest)
		return int(hop.Hops)
	}, gateways: c.gateways, delivered: delivered}
	_, w.serves = w.gateways[w.self]
	at := map[uint32]ident.NodeID{}
	for _, l := range links {
		at[l.ID()] = l.Peer().ID()
	}
	behind := reachOf(c.far, at)
	seen := map[uint32]bool{}
	near := map[ident.PublicKey]bool{}
	for _, l := range links {
		peer, nb := l.Peer(), l.Neighbour()
		seen[nb.Index()], near[peer] = true, true
		nb.Throttle(c.t.slowed(peer.ID())) // also of links that came after the verdict
		h := c.hauls[nb.Index()]
		if h == nil {
			h = newHaulage()
			c.hauls[nb.Index()] = h
		}
		beyond, here := behind.relays(peer.ID())
		h.take(&w, peer.ID(), beyond, here, nb.Handed(), nb.Flows())
		c.sumLocked(accountKey{peer, pay.Payer}, &h.paid, &h.paidSum, h.pays)
		c.sumLocked(accountKey{peer, pay.Payee}, &h.earned, &h.earnedSum, h.earns)
	}
	maps.DeleteFunc(c.hauls, func(i uint32, _ *haulage) bool { return !seen[i] })
	if len(c.carried) > maxCounted {
		maps.DeleteFunc(c.carried, func(k accountKey, _ *carried) bool {
			if near[k.peer] {
				return false
			}
			delete(c.peaks, pay.ID{Peer: k.peer, Service: pay.Carriage})
			return true
		})
	}
}

// reaches is how many hops it is to the farthest node behind each neighbour.
type reaches map[ident.NodeID]int

// reachOf sums up links, far by their ids, to the neighbours at their ends: of several links to one, each end chooses for itself
// which it uses.
func reachOf(far map[uint32]int, at map[uint32]ident.NodeID) reaches {
	r := reaches{}
	for link, id := range at {
		r[id] = max(r[id], far[link])
	}
	return r
}

// relays is the most that an upload can have passed: beyond a neighbour, or on this node's side of it.
func (r reaches) relays(neighbour ident.NodeID) (beyond, here int) {
	for id, far := range r {
		if id != neighbour {
			here = max(here, far)
		}
	}
	return max(r[neighbour]-1, 0), here
}

// ways is what the routing table says, as carriage is billed by it.
type ways struct {
	self      ident.NodeID
	hops      func(dest ident.NodeID) int // 0: no way is known
	gateways  map[ident.NodeID]struct{}
	serves    bool                 // this node is one of them
	delivered map[ident.NodeID]int // permille of what a neighbour is given that is known to arrive
}

func newHaulage() *haulage {
	return &haulage{last: map[haulKey]uint64{}, pays: map[haulKey]pay.Haul{}, earns: map[haulKey]pay.Haul{}}
}

// take judges what the counters of a link to a neighbour have gained. How many relays an upload has passed, its header says, which
// the user wrote: it counts up to what there can be, the most relays beyond the neighbour, or here on this node's side of it.
func (h *haulage) take(w *ways, peer ident.NodeID, beyond, here int, handed []forward.Handed, flows []forward.Flow) {
	ratio, ok := w.delivered[peer]
	if !ok {
		ratio = 1000
	}
	for _, f := range handed {
		_, up := w.gateways[f.Dest]
		switch n := h.more(f.Flow, true); {
		case n == 0:
		case up:
			haul(h.earns, f.Flow, n, 0, min(int(f.Hops), here), 1000)
		case f.Hops > 0 || w.serves: // what a user sends itself is nobody's download
			haul(h.pays, f.Flow, n, 0, w.hops(f.Dest)-1, ratio)
		}
	}
	for _, f := range flows {
		_, up := w.gateways[f.Dest]
		switch n := h.more(f, false); {
		case n == 0:
		case up:
			haul(h.pays, f, 0, n, min(int(f.Hops), beyond), 0)
		case f.Dest != w.self:
			haul(h.earns, f, 0, n, w.hops(f.Dest), 0)
		}
	}
}

// more is what one of the link's counters has gained. What it is worth is judged as things stand now: who is a gateway and how far
// away changes, and what was carried before is not counted a second time for that.
func (h *haulage) more(f forward.Flow, sent bool) uint64 {
	if f.Class != wire.ClassGateway || f.Dest == 0 {
		return 0
	}
	k := haulKey{f.Dest, f.Hops, sent}
	n := f.Bytes - min(h.last[k], f.Bytes)
	h.last[k] = f.Bytes
	return n
}

func haul(m map[haulKey]pay.Haul, f forward.Flow, sent, recv uint64, relays, delivered int) {
	k := haulKey{f.Dest, f.Hops, sent > 0}
	h := m[k]
	h.Sent += sent
	h.Recv += recv
	h.Relays, h.Delivered = relays, delivered
	m[k] = h
}

// sumLocked adds what a link has gained to its neighbour's account.
func (c *counters) sumLocked(k accountKey, sums *pay.Carried, last *[2]uint64, hauls map[haulKey]pay.Haul) {
	list := make([]pay.Haul, 0, len(hauls))
	for k, h := range hauls { // Carried tells hauls apart by an id: that of a node, its hops and the direction is nobody's
		h.Dest = k.dest ^ ident.NodeID(k.hops)<<56
		if k.sent {
			h.Dest = ^h.Dest
		}
		list = append(list, h)
	}
	sent, recv := sums.Add(c.epoch, list)
	s := c.carried[k]
	if s == nil {
		if sent+recv == 0 {
			return
		}
		s = &carried{}
		c.carried[k] = s
	}
	s.sum[0] += sent - last[0]
	s.sum[1] += recv - last[1]
	*last = [2]uint64{sent, recv}
}

func (c *counters) listLocked(now time.Time) []pay.Reading {
	var out []pay.Reading
	earns := c.t.self.Load() // who has no account bills nobody and owes nobody, and begins when there is one
	for peer, s := range c.stints {
		if s.waits { // a reading below the last would have all of it counted again
			continue
		}
		if !earns {
			s.base = s.last
			continue
		}
		if !s.kept && c.t.isMember(peer) {
			s.kept = true
			c.t.news.Store(true)
		}
		id := pay.ID{Peer: peer, Service: pay.Internet}
		m := pay.Mark{Epoch: s.epoch, Sent: s.last[0] - s.base[0], Recv: s.last[1] - s.base[1]}
		out = append(out, pay.Reading{ID: id, Role: s.role, Mark: m, Gap: s.gap})
		c.paceLocked(id, m.Sent+m.Recv, now)
	}
	for k, s := range c.carried {
		if !earns {
			s.base, s.shown = s.sum, true
			continue
		}
		id := pay.ID{Peer: k.peer, Service: pay.Carriage}
		m := pay.Mark{Epoch: c.epoch}
		if s.shown { // an account begins at zero, or what has moved already would not be billed
			m.Sent, m.Recv = s.sum[0]-s.base[0], s.sum[1]-s.base[1]
		}
		s.shown = true
		out = append(out, pay.Reading{ID: id, Role: k.role, Mark: m})
		if k.role == pay.Payee {
			c.paceLocked(id, m.Sent+m.Recv, now)
		}
	}
	return out
}

func (c *counters) paceLocked(id pay.ID, bytes uint64, now time.Time) {
	p := c.peaks[id]
	if p == nil || bytes < p.bytes {
		p = &peak{at: now, bytes: bytes}
		c.peaks[id] = p
	}
	if d := now.Sub(p.at); d >= time.Second {
		p.most = max(p.most, uint64(float64(bytes-p.bytes)/d.Seconds()))
		p.at, p.bytes = now, bytes
	}
}

func (c *counters) peak(id pay.ID) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.peaks[id]; p != nil {
		return p.most
	}
	return 0
}
