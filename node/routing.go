package node

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weft/api"
	"weft/config"
	"weft/forward"
	"weft/gateway"
	"weft/ident"
	"weft/link"
	"weft/route"
	"weft/wire"
)

// routing drives the routing core: links tell it what happens (it is their link.Handler), it gives the core the time,
// sends the core's messages and turns the core's tables into forwarding tables. The core is serialised by mu.
type routing struct {
	n     *Node
	plane *forward.Plane
	table atomic.Pointer[route.Table]
	wake  chan struct{}

	mu        sync.Mutex // guards what follows
	core      *route.Router
	local     route.Local          // what this node says of itself
	penalties map[ident.NodeID]int // permille on the cost of links to neighbours that lose what they should carry
	links     map[uint32]*link.Link
	forwarded uint64 // route.Table.Forwarding of the table in force
	linkGen   uint64 // counts link changes: they ask for a new forwarding table too
	builtGen  uint64
}

func newRouting(n *Node) (*routing, error) {
	r := &routing{n: n, wake: make(chan struct{}, 1), links: map[uint32]*link.Link{}, penalties: map[ident.NodeID]int{}}
	local, err := localOf(n.cfg)
	if err != nil {
		return nil, err
	}
	r.local = local
	r.core = route.New(route.Config{
		Self: n.self, Community: ident.SharedKey(n.cfg.Community.Key.Reveal()), Rand: rand.Uint64, Seq: n.loadSeq(), Local: local,
		Sign: func(msg []byte) ident.Signature { return n.agent.Sign(ident.DomainLSA, msg) },
	}, time.Now())
	r.table.Store(r.core.Table())
	return r, nil
}

func localOf(c *config.Config) (route.Local, error) {
	l := route.Local{Name: c.Name, Price: c.Route.Price, Lambda: uint32(c.Route.Lambda * 1000)}
	if c.Role == config.RoleLeaf {
		l.Flags |= wire.FlagLeaf
	}
	if c.Metered {
		l.Flags |= wire.FlagMetered
	}
	if lat, lon, ok := c.Route.BlurredPosition(); ok {
		l.Position = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, uint32(lat)), uint32(lon))
	}
	return l, nil
}

// serve gives the core the time until ctx ends.
func (r *routing) serve(ctx context.Context) error {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			r.mu.Lock()
			seq := r.core.Stats().Seq
			r.mu.Unlock()
			r.n.saveSeq(seq)
			return ctx.Err()
		case <-t.C:
		case <-r.wake:
		}
		r.mu.Lock()
		now := time.Now()
		r.core.Tick(now)
		r.settleLocked()
		next := r.core.Next()
		r.mu.Unlock()
		if next.IsZero() {
			next = now.Add(time.Hour)
		}
		t.Reset(max(0, time.Until(next)))
	}
}

// do runs one event through the core and everything that follows from it.
func (r *routing) do(f func(now time.Time)) {
	r.mu.Lock()
	f(time.Now())
	r.settleLocked()
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}: // the core may want the time sooner now
	default:
	}
}

// say changes what this node says of itself in its LSA.
func (r *routing) say(change func(*route.Local)) (err error) {
	r.do(func(now time.Time) {
		local := r.local
		change(&local)
		if err = r.core.SetLocal(now, local); err == nil {
			r.local = local
		}
	})
	return err
}

// settleLocked sends what the core wants sent and installs its table.
func (r *routing) settleLocked() {
	for _, m := range r.core.Outbox() {
		l := r.links[m.Link]
		if l == nil {
			continue
		}
		if err := l.SendControl(link.ClassRoute, m.Bytes); err != nil {
			r.n.log.Debug("control message not sent", "peer", l.Peer(), "err", err) // the link closes itself
		}
	}
	for _, id := range r.core.Suspects() { // other nodes miss this neighbour
		if l := r.links[id]; l != nil {
			l.Suspect()
		}
	}
	t := r.core.Table()
	old := r.table.Swap(t)
	if old != t && r.n.sharing != nil {
		r.n.sharing.gw.CandidatesChanged()
	}
	if old != t && r.plane != nil {
		r.plane.SetGateways(gatewayIDs(t))
	}
	if old == t && r.builtGen == r.linkGen || r.plane == nil {
		return
	}
	if f := t.Forwarding(); f != r.forwarded || r.builtGen != r.linkGen {
		r.forwarded, r.builtGen = f, r.linkGen
		r.plane.SetTable(r.buildLocked(t))
		r.n.hub.Publish(api.Event{Kind: api.EventRoutes, Text: fmt.Sprintf("%d nodes can be reached", t.Len()-1)})
	}
}

func (r *routing) buildLocked(t *route.Table) forward.Table {
	out := make(forward.Table, t.Len())
	for id, hop := range t.Routes() {
		var next forward.NextHop
		if l := r.links[hop.Link]; l != nil {
			next.Primary = l.Neighbour()
		}
		if l := r.links[hop.Alt]; l != nil {
			next.Alternate = l.Neighbour()
		}
		if next.Primary == nil {
			next.Primary, next.Alternate = next.Alternate, nil
		}
		if next.Primary != nil {
			out[id] = next
		}
	}
	return out
}

func (r *routing) infoLocked(l *link.Link) route.LinkInfo {
	cost := uint64(l.Cost())
	if p := r.penalties[l.Peer().ID()]; p > 1000 {
		cost = min(cost*uint64(p)/1000, math.MaxUint32)
	}
	return route.LinkInfo{ID: l.ID(), Peer: l.Peer(), Cost: uint32(cost), MTU: l.MTU(), Metered: l.Metered()}
}

// LinkUp implements link.Handler.
func (r *routing) LinkUp(l *link.Link) {
	r.do(func(now time.Time) {
		r.links[l.ID()] = l
		r.linkGen++
		r.core.LinkUp(now, r.infoLocked(l))
	})
	r.publish(api.EventLinkUp, l, "link up with "+r.nameOf(l.Peer()))
}

// LinkChanged implements link.Handler.
func (r *routing) LinkChanged(l *link.Link) {
	r.do(func(now time.Time) { r.core.LinkChanged(now, r.infoLocked(l)) })
}

// LinkDown implements link.Handler.
func (r *routing) LinkDown(l *link.Link, reason error) {
	r.do(func(now time.Time) {
		delete(r.links, l.ID())
		r.linkGen++
		r.core.LinkDown(now, l.ID())
	})
	r.publish(api.EventLinkDown, l, fmt.Sprintf("link down with %s: %v", r.nameOf(l.Peer()), reason))
}

// Control implements link.Handler.
func (r *routing) Control(l *link.Link, class byte, msg []byte) {
	if class != link.ClassRoute {
		return // classes of later versions
	}
	var err error
	r.do(func(now time.Time) { err = r.core.Receive(now, l.ID(), msg) })
	if err != nil {
		l.Close("bad routing message: " + err.Error())
	}
}

func (r *routing) publish(k api.EventKind, l *link.Link, text string) {
	r.n.hub.Publish(api.Event{Kind: k, ID: l.Peer().ID().String(), Name: r.name(l.Peer().ID()), Text: text})
}

// ByAddr implements session.Resolver.
func (r *routing) ByAddr(a netip.Addr) (ident.PublicKey, bool) { return r.table.Load().ByAddr(a) }

// Room implements session.Resolver.
func (r *routing) Room(id ident.NodeID) (int, bool) {
	hop, ok := r.table.Load().Route(id)
	return int(hop.MTU), ok
}

// name returns what a node calls itself.
func (r *routing) name(id ident.NodeID) string {
	if v, ok := r.table.Load().Node(id); ok {
		return string(v.Extension(wire.ExtName))
	}
	return ""
}

// nameOf names a node for people.
func (r *routing) nameOf(k ident.PublicKey) string {
	if s := r.name(k.ID()); s != "" {
		return s
	}
	return k.Addr().String()
}

func (r *routing) stats() (route.Stats, []route.LSAInfo) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.core.Stats(), r.core.LSDB()
}

// linkList is all links.
func (r *routing) linkList() []*link.Link {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.links))
}

// gatewayIDs are the nodes that announce a gateway, this one among them.
func gatewayIDs(t *route.Table) map[ident.NodeID]struct{} {
	out := map[ident.NodeID]struct{}{}
	for id, v := range t.Nodes() {
		if b := v.Extension(wire.ExtGateway); b != nil {
			if _, err := gateway.ParseOffer(b); err == nil {
				out[id] = struct{}{}
			}
		}
	}
	return out
}
