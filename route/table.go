package route

import (
	"cmp"
	"encoding/binary"
	"iter"
	"net/netip"
	"slices"
	"time"

	"weft/ident"
	"weft/wire"
)

// Hop is where traffic for one node goes.
type Hop struct {
	Link    uint32 // of the next hop
	Alt     uint32 // link to use while the next hop is down; zero: none is free of loops
	MTU     uint16 // of the whole path
	Hops    uint16
	Metered bool   // the path uses a metered link
	Cost    uint64 // path metric
	Price   uint64 // sum of the carriage prices of the nodes between, ncredit per MiB
}

// Table is the outcome of one computation: immutable, so everybody may read it at once and keep it.
type Table struct {
	gen        uint64
	forwarding uint64
	self       ident.NodeID
	nodes      []tableNode // by rising id
	byAddr     []addrOf    // by rising prefix
}

type tableNode struct {
	id     ident.NodeID
	lsa    wire.LSAView
	hop    Hop
	parent int32 // index of the node before on the path; -1 for this node, and with no path
}

// addrOf finds a node by the first eight bytes that its address and its subnet share.
type addrOf struct {
	prefix uint64
	node   int32
}

// Gen rises with every change, Forwarding only when the links, alternates or MTUs of the routes have changed.
func (t *Table) Gen() uint64        { return t.gen }
func (t *Table) Forwarding() uint64 { return t.forwarding }

// Len is the number of nodes known to be part of the network, this one included.
func (t *Table) Len() int { return len(t.nodes) }

func (t *Table) find(id ident.NodeID) (int, bool) {
	return slices.BinarySearchFunc(t.nodes, id, func(n tableNode, id ident.NodeID) int { return cmp.Compare(n.id, id) })
}

// Route returns the way to a node. There is none to this node itself.
func (t *Table) Route(id ident.NodeID) (Hop, bool) {
	if i, ok := t.find(id); ok && t.nodes[i].hop.Link != 0 {
		return t.nodes[i].hop, true
	}
	return Hop{}, false
}

// Routes yields all routes by rising id.
func (t *Table) Routes() iter.Seq2[ident.NodeID, Hop] {
	return func(yield func(ident.NodeID, Hop) bool) {
		for i := range t.nodes {
			if n := &t.nodes[i]; n.hop.Link != 0 && !yield(n.id, n.hop) {
				return
			}
		}
	}
}

// Node returns the LSA of a node, which the caller must not change.
func (t *Table) Node(id ident.NodeID) (wire.LSAView, bool) {
	if i, ok := t.find(id); ok {
		return t.nodes[i].lsa, true
	}
	return nil, false
}

// Nodes yields the LSAs of all nodes of the network by rising id.
func (t *Table) Nodes() iter.Seq2[ident.NodeID, wire.LSAView] {
	return func(yield func(ident.NodeID, wire.LSAView) bool) {
		for i := range t.nodes {
			if !yield(t.nodes[i].id, t.nodes[i].lsa) {
				return
			}
		}
	}
}

// ByAddr returns the key of the node that an address in 200::/8 belongs to, or whose subnet in 300::/8 it lies in.
// Subnets have 56 bits that depend on the key: should two nodes share one, the smaller key has it for everybody.
func (t *Table) ByAddr(a netip.Addr) (ident.PublicKey, bool) {
	if !ident.MeshPrefix.Contains(a) {
		return ident.PublicKey{}, false
	}
	b := a.As16()
	host := b[0]&1 == 0
	b[0] &^= 1
	prefix := binary.BigEndian.Uint64(b[:])
	i, _ := slices.BinarySearchFunc(t.byAddr, prefix, func(x addrOf, p uint64) int { return cmp.Compare(x.prefix, p) })
	for ; i < len(t.byAddr) && t.byAddr[i].prefix == prefix; i++ {
		if key := t.nodes[t.byAddr[i].node].lsa.Key(); !host || key.Addr() == a {
			return key, true
		}
	}
	return ident.PublicKey{}, false
}

// PathHop is one node on a path.
type PathHop struct {
	ID    ident.NodeID
	Cost  uint64 // metric up to here
	Price uint32 // carriage price of the node; it is owed only if the path goes on
}

// Path lists the nodes of one best path to a node, the node last and this one not among them; nil if there is none.
// Nodes between may choose another path of the same metric.
func (t *Table) Path(id ident.NodeID) (path []PathHop) {
	i, ok := t.find(id)
	if !ok || t.nodes[i].hop.Link == 0 {
		return nil
	}
	for at := int32(i); at >= 0 && t.nodes[at].parent >= 0; at = t.nodes[at].parent {
		n := &t.nodes[at]
		path = append(path, PathHop{n.id, n.hop.Cost, n.lsa.Price()})
	}
	slices.Reverse(path)
	return path
}

// makeTable writes the table from the trees.
func (r *Router) makeTable() {
	s := &r.spf
	own := s.trees[0]
	old := r.table
	t := &Table{gen: old.gen + 1, self: r.self, nodes: make([]tableNode, 0, len(r.db.order))}
	list := r.candidates()
	index := make([]int32, len(r.db.entries))
	// What to do with each neighbour, by slot.
	type way struct {
		link, second *link
		gap          uint64
	}
	ways := map[int32]way{}
	for _, x := range r.db.entries[0].edges {
		w := way{link: r.bestLink(x.to, nil)}
		if w.link == nil {
			continue
		}
		if w.second = r.bestLink(x.to, w.link); w.second != nil {
			w.gap = w.second.weight() - w.link.weight()
		}
		ways[x.to] = w
	}
	var lastFirst int32 = -1
	var w way
	for _, slot := range r.db.order {
		e := &r.db.entries[slot]
		if e.level != levelReachable || e.lsa == nil {
			continue
		}
		index[slot] = int32(len(t.nodes))
		n := tableNode{id: e.id, lsa: e.lsa, parent: -1}
		if cost := own.at(slot); slot != 0 && cost != infinite {
			p := &s.paths[slot]
			if p.first != lastFirst {
				lastFirst, w = p.first, ways[p.first]
			}
			if w.link != nil {
				n.parent = p.parent // a slot for now
				n.hop = Hop{Link: w.link.info.ID, MTU: p.mtu, Hops: p.hops, Metered: p.metered, Cost: cost, Price: p.price}
				if alt := r.alternate(slot, list, w.second, w.gap); alt != nil {
					n.hop.Alt = alt.info.ID
				}
			}
		}
		t.nodes = append(t.nodes, n)
	}
	same := len(t.nodes) == len(old.nodes)
	sameNodes := same
	for i := range t.nodes {
		n := &t.nodes[i]
		if n.parent >= 0 {
			n.parent = index[n.parent]
		}
		if same || sameNodes {
			o := &old.nodes[i]
			sameNodes = sameNodes && o.id == n.id
			same = same && o.id == n.id && o.hop.Link == n.hop.Link && o.hop.Alt == n.hop.Alt && o.hop.MTU == n.hop.MTU
		}
	}
	if t.forwarding = old.forwarding; !same {
		t.forwarding++
	}
	if t.byAddr = old.byAddr; !sameNodes {
		t.byAddr = make([]addrOf, len(t.nodes))
		for i := range t.nodes {
			a := t.nodes[i].lsa.Key().Addr().As16()
			t.byAddr[i] = addrOf{binary.BigEndian.Uint64(a[:]), int32(i)}
		}
		slices.SortFunc(t.byAddr, func(a, b addrOf) int {
			return cmp.Or(cmp.Compare(a.prefix, b.prefix), slices.Compare(t.nodes[a.node].lsa[4:36], t.nodes[b.node].lsa[4:36]))
		})
	}
	r.table = t
	r.stats.Tables++
}

// LSAInfo is one line of the database listing.
type LSAInfo struct {
	LSA       wire.LSAView // not to be changed
	Age       time.Duration
	Left      time.Duration // until it dies of age
	Reachable bool
}

// LSDB lists the database by rising id, with ages as of the last call.
func (r *Router) LSDB() []LSAInfo {
	list := make([]LSAInfo, 0, len(r.db.order))
	for _, s := range r.db.order {
		if e := &r.db.entries[s]; e.lsa != nil {
			age := r.now - e.born
			list = append(list, LSAInfo{e.lsa, age, time.Duration(e.lsa.Lifetime())*time.Second - age, e.level == levelReachable})
		}
	}
	return list
}

// Stats are counters since New, and a few states.
type Stats struct {
	Seq       uint64 // own sequence number: store it now and then, Config.Seq wants it back
	Nodes     int    // LSAs held
	Bytes     int    // their size
	Reachable int    // nodes in the network, this one included
	Waiting   int    // LSAs that wait for their place
	Links     int

	Originated   uint64 // own LSAs signed
	Received     uint64 // LSAs received, of these …
	Installed    uint64 // … new and not just refreshed
	Duplicates   uint64
	Stale        uint64 // older than what we had, or dead of age
	Verified     uint64 // signature checks
	BadSignature uint64
	Malformed    uint64 // LSAs and messages
	RateLimited  uint64 // put off or refused for rate
	Dropped      uint64 // never found a place, or there was no room to wait
	Refused      uint64 // no room in the database
	Evicted      uint64 // gave way to better ones
	Expired      uint64 // died of age, or cut off for long
	SentMessages uint64
	SentBytes    uint64
	SentLSAs     uint64

	SPFRuns    uint64 // trees computed
	SPFSkipped uint64 // changes of links that could not matter
	Tables     uint64

	FightBacks   uint64 // answers to LSAs under our own key
	DuplicateKey bool   // another device uses this key: tell the user
	IDCollision  bool   // another key has the same NodeID: make a new key
	SeqExhausted bool   // this node is mute until its last LSA has died of age
}

// Stats returns the counters.
func (r *Router) Stats() Stats {
	s := r.stats
	s.Seq, s.Nodes, s.Bytes, s.Reachable, s.Links = r.own.seq, len(r.db.order), r.db.bytes, r.table.Len(), len(r.links)
	for _, l := range r.links {
		s.Waiting += len(l.waiting)
	}
	return s
}
