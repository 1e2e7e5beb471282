package api

import (
	"net/netip"
	"time"

	"weft/ident"
)

// Names of units stand in the JSON names: _us is microseconds, _s seconds,
// _ms milliseconds. Ids are 16 hex digits, keys 64.

// Status is the node at a glance.
type Status struct {
	Version   string          `json:"version"`             // version of the program
	Key       ident.PublicKey `json:"key"`                 // public key, the node's identity
	ID        string          `json:"id"`                  // short form of the key
	Address   netip.Addr      `json:"address"`             // the node's IPv6 address in the mesh
	Subnet    netip.Prefix    `json:"subnet"`              // the /64 for devices behind the node
	Name      string          `json:"name,omitempty"`      // what the node calls itself; names are not unique
	Role      string          `json:"role"`                // router or leaf
	Metered   bool            `json:"metered"`             // every link of it costs money or battery
	Community string          `json:"community,omitempty"` // id of the closed network; empty in the open one

	Mode   string   `json:"mode"`             // tun or userspace
	TUN    string   `json:"tun,omitempty"`    // name of the TUN interface
	MTU    int      `json:"mtu"`              // of the TUN interface or userspace stack
	Listen []string `json:"listen"`           // URIs at which neighbours reach the node
	Seen   []string `json:"seen,omitempty"`   // addresses and ports at which neighbours see the node; NAT says whether they are its own
	NAT    bool     `json:"nat"`              // a NAT stands between the node and a neighbour
	Portal string   `json:"portal,omitempty"` // URL of the portal
	SOCKS  string   `json:"socks,omitempty"`  // address of the SOCKS5 proxy
	HTTP   string   `json:"http,omitempty"`   // address of the HTTP proxy

	// Yggdrasil is how the Yggdrasil plane does: absent (not in this program), off, alone (no link yet), up, or shared.
	Yggdrasil string `json:"yggdrasil"`

	Internet Internet  `json:"internet"`           // who shares it with whom, in short
	Started  time.Time `json:"started"`            // when the node came up
	UptimeS  int64     `json:"uptime_s"`           // seconds since then
	Counters Counters  `json:"counters"`           // totals since the start
	Sessions []Session `json:"sessions"`           // end-to-end sessions in use
	Warnings []string  `json:"warnings,omitempty"` // what the owner should look at, in plain words
}

// Internet is in short what GET /v1/gateway and GET /v1/guests tell in full.
type Internet struct {
	Use     string `json:"use"`            // where it is taken from: off (no gateway), resting (own line works), searching, up, failing
	From    string `json:"from,omitempty"` // name of the gateway in use, or its id
	Price   uint32 `json:"price"`          // of that gateway, ncredit per MiB
	Why     string `json:"why,omitempty"`  // what is wrong with the use or the offer, in plain words
	Offer   string `json:"offer"`          // of the own line: off, waiting (for the line), on
	Clients int    `json:"clients"`        // nodes that have a lease on the own line
	Guests  int    `json:"guests"`         // devices without Weft behind this node; -1 when there is no network for them
}

// Counters are totals since the node started.
type Counters struct {
	Links            int    `json:"links"`             // neighbours that are up
	Nodes            int    `json:"nodes"`             // nodes in the link-state database, this one included
	Routes           int    `json:"routes"`            // destinations that can be reached
	RxPackets        uint64 `json:"rx_packets"`        // received from neighbours
	RxBytes          uint64 `json:"rx_bytes"`          // received from neighbours
	TxPackets        uint64 `json:"tx_packets"`        // sent to neighbours
	TxBytes          uint64 `json:"tx_bytes"`          // sent to neighbours
	ForwardedPackets uint64 `json:"forwarded_packets"` // carried for others
	ForwardedBytes   uint64 `json:"forwarded_bytes"`   // carried for others
	LocalRxPackets   uint64 `json:"local_rx_packets"`  // delivered to this device
	LocalTxPackets   uint64 `json:"local_tx_packets"`  // sent by this device

	// Dropped counts packets thrown away, by reason.
	Dropped map[string]uint64 `json:"dropped,omitempty"`
}

// Session is one end-to-end encrypted session.
type Session struct {
	Key     ident.PublicKey `json:"key"`               // the other end
	ID      string          `json:"id"`                // short form of its key
	Address netip.Addr      `json:"address"`           // its mesh address
	Name    string          `json:"name,omitempty"`    // its name, if it has one
	State   string          `json:"state"`             // handshake, up or rekey
	Cipher  string          `json:"cipher,omitempty"`  // AES-256-GCM or ChaCha20-Poly1305
	AgeS    int64           `json:"age_s"`             // since the current keys were made
	LastRxS int64           `json:"last_rx_s"`         // since something was last received; -1 for never
	RxBytes uint64          `json:"rx_bytes"`          // opened
	TxBytes uint64          `json:"tx_bytes"`          // sealed
	MTU     int             `json:"mtu,omitempty"`     // inner bytes that fit on the path
	Dropped uint64          `json:"dropped,omitempty"` // refused: forged, replayed or not ours
}

// PeerRequest names a peer to dial.
type PeerRequest struct {
	URI     string          `json:"uri"`               // udp://, tls:// or wss:// with host and port
	Key     ident.PublicKey `json:"key,omitzero"`      // accept only this key
	Cost    float64         `json:"cost,omitempty"`    // multiplier on the link's cost; 0 means 1
	Metered bool            `json:"metered,omitempty"` // the link costs money or battery
	Save    bool            `json:"save,omitempty"`    // keep it for the next start
}

// Peer is a neighbour, or one that was asked for and does not answer yet.
type Peer struct {
	URI        string          `json:"uri,omitempty"`        // as configured; empty for a neighbour that was found or dialled in
	Key        ident.PublicKey `json:"key,omitzero"`         // unset while it was never reached
	ID         string          `json:"id,omitempty"`         // short form of the key
	Address    netip.Addr      `json:"address,omitzero"`     // its mesh address
	Name       string          `json:"name,omitempty"`       // its name, if it has one
	State      string          `json:"state"`                // up, connecting or down
	Source     string          `json:"source,omitempty"`     // config, command, multicast, introduced, inbound, or yggdrasil for links of that plane
	Endpoint   string          `json:"endpoint,omitempty"`   // where its datagrams come from
	RTTUs      int64           `json:"rtt_us"`               // smoothed round trip
	Loss       float64         `json:"loss"`                 // share of probes lost, 0 to 1
	CostUs     uint32          `json:"cost_us"`              // what routing counts for the link
	Multiplier float64         `json:"multiplier"`           // the operator's factor in it
	Metered    bool            `json:"metered"`              // the link costs money or battery
	MTU        int             `json:"mtu"`                  // end-to-end packet bytes that fit
	Since      time.Time       `json:"since,omitzero"`       // when the state was entered
	RxPackets  uint64          `json:"rx_packets"`           // received on the link
	RxBytes    uint64          `json:"rx_bytes"`             // received on the link
	TxPackets  uint64          `json:"tx_packets"`           // sent on the link
	TxBytes    uint64          `json:"tx_bytes"`             // sent on the link
	LastError  string          `json:"last_error,omitempty"` // why it is not up
}

// Heard is a node whose beacon was heard on a local network.
type Heard struct {
	Key       ident.PublicKey `json:"key"`                 // as the beacon claims
	ID        string          `json:"id"`                  // short form of the key
	Address   netip.Addr      `json:"address"`             // its mesh address
	Endpoint  string          `json:"endpoint"`            // where it can be dialled
	Interface string          `json:"interface,omitempty"` // where it was heard
	Community string          `json:"community,omitempty"` // the closed network it belongs to, where that is this node's
	Member    bool            `json:"member"`              // it belongs to this node's network, as it says
	Linked    bool            `json:"linked"`              // it is a neighbour
	LastS     int64           `json:"last_s"`              // seconds since it was last heard
}

// Route is the best path to one node.
type Route struct {
	ID          string          `json:"id"`                    // destination
	Key         ident.PublicKey `json:"key"`                   // its key
	Address     netip.Addr      `json:"address"`               // its mesh address
	Subnet      netip.Prefix    `json:"subnet"`                // the /64 behind it
	Name        string          `json:"name,omitempty"`        // its name, if it has one
	NextHop     string          `json:"next_hop"`              // id of the neighbour that packets go to
	NextName    string          `json:"next_name,omitempty"`   // its name, if it has one
	Alternate   string          `json:"alternate,omitempty"`   // id of the loop-free alternate neighbour
	CostUs      uint32          `json:"cost_us"`               // sum of the links' costs
	Price       uint64          `json:"price"`                 // ncredit per MiB, sum over the relays
	MTU         int             `json:"mtu"`                   // end-to-end packet bytes that fit on the path
	Hops        int             `json:"hops"`                  // links on the path
	Unreachable bool            `json:"unreachable,omitempty"` // known but without a path
}

// TraceHop is one node on the path to a target.
type TraceHop struct {
	ID      string          `json:"id"`              // node
	Key     ident.PublicKey `json:"key,omitzero"`    // its key
	Address netip.Addr      `json:"address"`         // its mesh address
	Name    string          `json:"name,omitempty"`  // its name, if it has one
	CostUs  uint32          `json:"cost_us"`         // cost of the path up to here
	Price   uint64          `json:"price"`           // ncredit per MiB that this node asks
	RTTUs   int64           `json:"rtt_us"`          // measured round trip to it; 0 when it was not probed
	Offer   string          `json:"offer,omitempty"` // the internet line that it shares, in plain words
}

// LSDBEntry is one node's signed link-state advertisement.
type LSDBEntry struct {
	Key        ident.PublicKey `json:"key"`                 // who signed it
	ID         string          `json:"id"`                  // short form of the key
	Address    netip.Addr      `json:"address"`             // its mesh address
	Name       string          `json:"name,omitempty"`      // its name, if it has one
	Seq        uint64          `json:"seq"`                 // rises with every change
	AgeS       int64           `json:"age_s"`               // since it was received
	LifetimeS  int64           `json:"lifetime_s"`          // until it lapses, from its making
	Role       string          `json:"role"`                // router or leaf
	Metered    bool            `json:"metered"`             // avoid as transit
	Community  string          `json:"community,omitempty"` // id of its closed network
	Price      uint32          `json:"price"`               // ncredit per MiB carried
	Offer      string          `json:"offer,omitempty"`     // the internet line that it shares, in plain words
	Position   *Position       `json:"position,omitempty"`  // where it says that it stands, blurred
	Reachable  bool            `json:"reachable"`           // there is a path to it
	Bytes      int             `json:"bytes"`               // size of the advertisement
	Neighbours []LSDBNeighbour `json:"neighbours"`          // its links
}

// LSDBNeighbour is one link as an advertisement lists it.
type LSDBNeighbour struct {
	ID      string `json:"id"`             // the other end
	Name    string `json:"name,omitempty"` // its name, if it has one
	CostUs  uint32 `json:"cost_us"`        // of this direction
	MTU     int    `json:"mtu"`            // end-to-end packet bytes that fit
	Metered bool   `json:"metered"`        // the link costs money or battery
	TwoWay  bool   `json:"two_way"`        // the other end lists it too: only then it counts
}

// Position is a blurred place on the map, in degrees.
type Position struct {
	Lat float64 `json:"lat"` // north is positive
	Lon float64 `json:"lon"` // east is positive
}

// PingRequest asks for pings to a target: a mesh address, a 64-digit key, a
// 16-digit id or a name that only one node has.
type PingRequest struct {
	Target     string `json:"target"`      // whom to ping
	Count      int    `json:"count"`       // how many; 0 means until the caller ends
	IntervalMs int    `json:"interval_ms"` // between two; 0 means 1000
}

// PingReply is the outcome of one ping.
type PingReply struct {
	Seq     int        `json:"seq"`             // from 1
	Address netip.Addr `json:"address"`         // who was pinged
	Name    string     `json:"name,omitempty"`  // its name, if it has one
	RTTUs   int64      `json:"rtt_us"`          // round trip; 0 when lost
	Bytes   int        `json:"bytes"`           // payload bytes
	Lost    bool       `json:"lost,omitempty"`  // no answer in time
	Error   string     `json:"error,omitempty"` // why it was lost, when that is known
}

// Firewall is who may open connections to this device over the mesh. What no
// rule lets in is refused, except replies and ICMPv6 echo.
type Firewall struct {
	Rules  []FirewallRule               `json:"rules"`           // in the order in which they are asked; the first that matches decides
	Groups map[string][]ident.PublicKey `json:"groups"`          // named lists of keys
	Counts map[string]uint64            `json:"counts,omitzero"` // packets, by what became of them
}

// FirewallRule is one rule in force.
type FirewallRule struct {
	Rule string `json:"rule"`          // such as: allow tcp 22 from group:friends
	App  bool   `json:"app,omitempty"` // opened by an app or by [[expose]], not written by the owner
	Hits uint64 `json:"hits"`          // flows that it decided on
}

// FirewallRequest replaces the owner's rules.
type FirewallRequest struct {
	Rules  []string                     `json:"rules"`  // allow|block PROTO [PORTS] [to DEST] from SOURCE
	Groups map[string][]ident.PublicKey `json:"groups"` // named lists of keys
}

// InviteRequest asks for an invitation.
type InviteRequest struct {
	Peers     []string `json:"peers,omitempty"`     // URIs to carry; empty means where this node can be reached
	ExpiresS  int64    `json:"expires_s,omitempty"` // seconds that it holds; 0 means for ever
	NoNetwork bool     `json:"no_key,omitempty"`    // leave the key of a closed network out
}

// Invite is an invitation to this network.
type Invite struct {
	Link      string    `json:"link"`                // weft://join/…
	Peers     []string  `json:"peers"`               // URIs that it carries
	Community string    `json:"community,omitempty"` // id of the closed network whose key it carries
	Expires   time.Time `json:"expires,omitzero"`    // when it lapses
	Warnings  []string  `json:"warnings,omitempty"`  // such as: none of the addresses can be reached from elsewhere
}

// JoinRequest carries an invitation.
type JoinRequest struct {
	Link string `json:"link"` // weft://join/…
}

// Joined is what an invitation led to.
type Joined struct {
	Inviter   ident.PublicKey `json:"inviter"`             // who signed it
	Name      string          `json:"name,omitempty"`      // what the inviter calls itself
	Peers     []string        `json:"peers"`               // peers that were added
	Community string          `json:"community,omitempty"` // id of the closed network that was joined
	Restart   bool            `json:"restart,omitempty"`   // the node must be started anew for it to take effect
}

// Event says that something changed.
type Event struct {
	Seq  uint64    `json:"seq"`            // rises by one with each event of the node; a gap means that some were missed
	Time time.Time `json:"time"`           // when
	Kind EventKind `json:"kind"`           // what kind of thing
	ID   string    `json:"id,omitempty"`   // the node that it is about
	Name string    `json:"name,omitempty"` // its name, if it has one
	Text string    `json:"text"`           // in plain words
}

// EventKind says what an event is about.
type EventKind string

// The kinds of event. Programs ignore those that they do not know.
const (
	EventLinkUp   EventKind = "link_up"   // a neighbour came up
	EventLinkDown EventKind = "link_down" // a neighbour went
	EventRoutes   EventKind = "routes"    // the forwarding table changed
	EventPeers    EventKind = "peers"     // a peer was added, removed or could not be reached
	EventFirewall EventKind = "firewall"  // the rules changed
	EventGateway  EventKind = "gateway"   // another gateway is in use, or none
	EventMeter    EventKind = "meter"     // two meters differ, or a neighbour loses what it should carry
	EventWallet   EventKind = "wallet"    // somebody gives the free tier alone, or the full rate again; the tariff changed
	EventWarning  EventKind = "warning"   // Status.Warnings changed
)
