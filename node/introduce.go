package node

import (
	"time"

	"weft/ident"
)

// wantDirect asks for direct links with the nodes that traffic flows to: with many nodes on a LAN not all are linked, and nodes
// behind NATs first meet through others, but nobody should relay for two that can hear each other. A LAN is link's own
// business; elsewhere a neighbour of both introduces them.
func (n *Node) wantDirect() {
	for _, s := range n.sessions.Sessions() {
		if s.State != "open" || s.Idle >= 10*time.Second {
			continue
		}
		n.links.WantDirect(s.Peer)
		if n.links.LinkTo(s.Peer) == nil && n.cfg.Introduce.Direct {
			for _, by := range n.shared(s.Peer) {
				n.links.Introduce(s.Peer, by)
			}
		}
	}
}

// shared returns the neighbour that this node and another have in common, the one on the way first; at most one.
func (n *Node) shared(with ident.PublicKey) []ident.PublicKey {
	t := n.routing.table.Load()
	lsa, ok := t.Node(with.ID())
	if !ok {
		return nil
	}
	its := map[ident.NodeID]bool{}
	for i := range lsa.NumNeighbours() {
		its[lsa.Neighbour(i).ID] = true
	}
	hop, _ := t.Route(with.ID())
	var other []ident.PublicKey
	for _, l := range n.links.Links() {
		if !its[l.Peer().ID()] {
			continue
		}
		if l.ID() == hop.Link {
			return []ident.PublicKey{l.Peer()}
		}
		if other == nil {
			other = []ident.PublicKey{l.Peer()}
		}
	}
	return other
}
