package api

import (
	"context"
	"iter"
)

// Backend is all that a node offers to its owner. It is eight small interfaces
// in one; who needs less asks for less. The node implements it, Client speaks
// it over the socket.
type Backend interface {
	Viewer
	Prober
	Peering
	Gatekeeper
	Sharer
	Host
	Cooper
	Purse
}

// Viewer reads the state of a node. Lists come in a stable order.
type Viewer interface {
	Status(ctx context.Context) (Status, error)
	Peers(ctx context.Context) ([]Peer, error)
	Heard(ctx context.Context) ([]Heard, error)
	Routes(ctx context.Context) ([]Route, error)
	LSDB(ctx context.Context) ([]LSDBEntry, error)
	// Events yields what happens from now on until ctx ends. A slow reader
	// misses events, which Event.Seq shows. An error ends the sequence.
	Events(ctx context.Context) iter.Seq2[Event, error]
}

// Prober tests paths.
type Prober interface {
	// Ping yields one reply for each ping, lost ones included, until
	// req.Count or the end of ctx. An error ends the sequence.
	Ping(ctx context.Context, req PingRequest) iter.Seq2[PingReply, error]
	// Trace returns the path to the target from this node (which is the first
	// hop) to the target (which is the last).
	Trace(ctx context.Context, target string) ([]TraceHop, error)
}

// Peering changes whom the node links with.
type Peering interface {
	AddPeer(ctx context.Context, req PeerRequest) (Peer, error)
	// RemovePeer ends a peering; peer is its URI, key or id.
	RemovePeer(ctx context.Context, peer string) error
	Invite(ctx context.Context, req InviteRequest) (Invite, error)
	Join(ctx context.Context, req JoinRequest) (Joined, error)
}

// Gatekeeper rules on who may reach this device.
type Gatekeeper interface {
	Firewall(ctx context.Context) (Firewall, error)
	// SetFirewall replaces the owner's groups and rules until the next start and returns
	// what holds now.
	SetFirewall(ctx context.Context, req FirewallRequest) (Firewall, error)
}
