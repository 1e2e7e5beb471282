// Package ygg is the Yggdrasil plane: the node as a full node of the Yggdrasil network (yggdrasil-go's own core), under the
// node's key and so under the same address. session gives it the packets for addresses that no LSA names ([Plane.Send]); what
// comes from there it hands to the same device, through the same firewall. docs/spec/ygg.md says what is ours about it.
//
// node makes one [Plane] and runs Serve; nobody else imports the package. The plane reads from the core on a goroutine of its
// own, looks after itself on another, and serves the admin socket on more; Serve waits for all of these. The core has
// goroutines that it ends, but cannot be waited for. Methods are safe for concurrent use; memory is bounded whatever the
// network sends. With the build tag no_ygg the package is empty but for [ErrAbsent].
package ygg

import (
	"errors"
	"log/slog"
	"time"

	"weft/ident"
	"weft/tun"
)

// ErrAbsent is what New returns in a program that was built without the plane.
var ErrAbsent = errors.New("this program was built without the Yggdrasil plane (tag no_ygg): set [yggdrasil] enabled = \"off\"")

// Config is what a Plane needs.
type Config struct {
	Agent  *ident.Agent
	Device tun.Device
	// Filter is the firewall's view of a node; it is asked once for as long as the node is in touch.
	Filter func(ident.PublicKey) Filter
	Log    *slog.Logger

	Peers     []string // URIs as Yggdrasil writes them
	Listen    []string
	Multicast []Multicast
	Allowed   []ident.PublicKey // who may dial in; empty: anybody
	Password  string            // of the group, GroupPassword of Yggdrasil
	Admin     string            // unix:///PATH or tcp://HOST:PORT; empty: none
	// BarredPort is a TCP port of the mesh that this plane neither sends to nor takes from: the one over which the plane
	// itself is carried, which would otherwise end up inside itself.
	BarredPort uint16
}

// Filter decides about the packets of one node, as session.Filter does.
type Filter interface {
	Out(ip []byte)
	In(ip []byte) bool
	Release()
}

// Multicast is discovery on the interfaces whose names match Regex.
type Multicast struct {
	Regex    string
	Beacon   bool // tell others
	Listen   bool // dial others
	Port     uint16
	Priority uint8
	Password string
}

// Peer is one link of the plane, or one that was asked for.
type Peer struct {
	URI     string          // without its options
	Key     ident.PublicKey // zero while it was never reached
	Up      bool
	Inbound bool
	Asked   bool // by config or AddPeer, not found or dialled in
	Carried bool // over the mesh itself
	Error   string
	RTT     time.Duration
	Cost    uint64
	Uptime  time.Duration
	Rx, Tx  uint64 // bytes
}
