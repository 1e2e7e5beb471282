// Package config is what the owner of a node may choose: one typed struct, read
// strictly from TOML, with defaults, the places where files lie, and what
// commands such as `weft peers add` and `weft join` have added.
//
// A key that does not exist or a value that cannot hold is an error that names
// the file, the line and what is allowed, found before anything touches the
// system. The commented example that `weft init` writes comes from the same
// struct, so it cannot lie.
//
// cli, node and lab may import config; config imports firewall (for the form of
// its rules) and ident. A Config is plain data without locks: whoever shares
// one does not change it. The functions keep no state.
package config

import (
	"math"
	"slices"

	"weft/ident"
)

// Version is the version of the format that this program writes.
const Version = 1

// Defaults that others need to know.
const (
	DefaultListen = "udp://[::]:7117"
	DefaultPortal = "127.0.0.1:7118"
	DefaultSOCKS  = "127.0.0.1:7119"
	DefaultDNS    = "127.0.0.1:7153"
)

// Config is a node's configuration. The doc tags become the comments of the
// example; the toml tags are the keys.
type Config struct {
	Version int    `toml:"version" doc:"Version of this file's format."`
	Name    string `toml:"name" doc:"What this node calls itself, at most 63 bytes. Names are not unique; the address is." example:"\"roof\""`
	Role    Role   `toml:"role" doc:"router carries traffic for others, leaf only its own (a phone, a laptop on battery)."`
	Metered bool   `toml:"metered" doc:"Every link of this node costs money or battery: others avoid the way through it."`

	Listen []string `toml:"listen" doc:"Where neighbours reach this node: udp://, tls:// or wss:// with address and port. [] listens nowhere.\nWhen this is not set and the port is taken, a free one is used."`

	Peers     []Peer     `toml:"peer" doc:"Nodes to connect to that multicast does not find: one [[peer]] for each."`
	Multicast Multicast  `toml:"multicast" doc:"Finding neighbours on the local network."`
	Introduce Introduce  `toml:"introduce" doc:"Direct links between nodes that share a neighbour, also through NATs. The neighbour tells each the other's address."`
	Community Community  `toml:"community" doc:"A closed network: only nodes with the same key link with each other."`
	TUN       TUN        `toml:"tun" doc:"The network interface through which programs on this device reach the mesh."`
	Userspace Userspace  `toml:"userspace" doc:"Without root there is no network interface: programs use these proxies instead.\nThe proxies also run beside the interface when set here."`
	Gateway   Gateway    `toml:"gateway" doc:"Sharing the internet: who has a line shares it, who has none uses it."`
	DNS       DNS        `toml:"dns" doc:"Names: those of the mesh, and through the gateway all others."`
	Guest     Guest      `toml:"guest" doc:"A network for devices without Weft: phones, televisions, visitors."`
	Wallet    Wallet     `toml:"wallet" doc:"What this node may spend on the internet and on carriage, by itself and without asking, in a community that has prices."`
	Rates     []LinkRate `toml:"rate" doc:"How fast the links on an interface are, when something behind it is slower than the interface: one [[rate]] for each."`
	Forwards  []Forward  `toml:"forward" doc:"Ports of this device that lead to a node: one [[forward]] for each."`
	Exposes   []Expose   `toml:"expose" doc:"Ports of this node in the mesh that lead to a service elsewhere: one [[expose]] for each.\nThe firewall must allow them too."`
	Yggdrasil Yggdrasil  `toml:"yggdrasil" doc:"The Yggdrasil network: this node is a node of it too, under the same address. What no Weft node is known for goes there.\nThe firewall covers it."`
	Firewall  Firewall   `toml:"firewall" doc:"Who may open connections to this device over the mesh. Nobody, unless a rule says so; ping always works."`
	Portal    Portal     `toml:"portal" doc:"The page that shows what this node does."`
	API       API        `toml:"api" doc:"The socket that weft's other commands use."`
	Route     Route      `toml:"route" doc:"How this node takes part in routing."`
	Log       Log        `toml:"log" doc:"What is written to standard error."`

	// ListenSet and Portal.Set say that the file chose: then a port that is
	// taken is an error and not a reason for another port.
	ListenSet bool `toml:"-"`
}

// Peer is a node to connect to.
type Peer struct {
	URI     string          `toml:"uri" doc:"udp://HOST:PORT, tls://HOST:PORT or wss://HOST[:PORT][/PATH]" example:"\"udp://192.0.2.7:7117\""`
	Key     ident.PublicKey `toml:"key,omitempty" doc:"Accept only the node with this key, 64 hex digits (see: weft id)." example:"\"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a\""`
	Cost    float64         `toml:"cost,omitempty" doc:"Multiplier on the link's measured cost, 0.01 to 1000: above 1 avoids it, below 1 prefers it." example:"1.0"`
	Metered bool            `toml:"metered,omitempty" doc:"The link costs money or battery." example:"false"`
	Rate    Rate            `toml:"rate,omitempty" doc:"What the link can send each second, when something on the way is slower than the interface." example:"\"20 Mbit/s\""`

	Source Source `toml:"-"`
}

// Source says who asked for a peer.
type Source string

// The sources.
const (
	FromConfig  Source = "config"
	FromCommand Source = "command"
)

// Multicast is discovery on local networks.
type Multicast struct {
	Enabled    bool     `toml:"enabled" doc:"Send and hear beacons."`
	Interfaces []string `toml:"interfaces" doc:"Interfaces to use, * matches any letters." example:"[\"eth*\", \"wlan0\"]"`
	Exclude    []string `toml:"exclude" doc:"Interfaces not to use, stronger than interfaces." example:"[\"docker*\"]"`
	Cap        int      `toml:"cap" doc:"With more nodes of its network than this on one local network, 1 to 64, a node links with some of them only.\nThe others are reached through those."`
}

// Introduce is how nodes behind NATs get direct links.
type Introduce struct {
	Direct bool `toml:"direct" doc:"Ask for a direct link with nodes that this node exchanges traffic with, and agree when such a node asks."`
	Offer  bool `toml:"offer" doc:"Bring neighbours together that ask for it, so that their traffic need not go through here."`
}

// Community is a closed network.
type Community struct {
	Key Secret `toml:"key" doc:"64 hex digits, the same on all nodes. Whoever knows it is in: keep it secret.\nweft init --closed makes one, weft invite hands it on."`
}

// TUN is the network interface.
type TUN struct {
	Enabled Switch `toml:"enabled" doc:"auto makes an interface when it is allowed to, on insists on one, off never makes one."`
	Name    string `toml:"name" doc:"Name of the interface; auto takes a free one." example:"\"weft0\""`
	MTU     int    `toml:"mtu" doc:"1280 to 65535; 0 lets weft choose."`
}

// Userspace is how programs reach the mesh without an interface.
type Userspace struct {
	SOCKS string `toml:"socks" doc:"SOCKS5 and HTTP proxy on one port: an address and port of this device, auto (127.0.0.1:7119 or a free port, without root only) or off."`
	HTTP  string `toml:"http" doc:"One more port for the same: an address and port of this device, or off." example:"\"127.0.0.1:7120\""`
}

// Forward leads a local port to a node.
type Forward struct {
	Listen string `toml:"listen" doc:"Address and port of this device." example:"\"127.0.0.1:8080\""`
	To     string `toml:"to" doc:"A node and a port: its address, or its name or key with .weft behind it." example:"\"[200:db8::1]:80\""`
	Proto  Proto  `toml:"proto,omitempty" doc:"tcp or udp; tcp when left out." example:"\"tcp\""`
}

// Expose leads a port of the node in the mesh to a service.
type Expose struct {
	Port  int    `toml:"port" doc:"Port in the mesh, 1 to 65535." example:"80"`
	To    string `toml:"to" doc:"Address and port of the service." example:"\"127.0.0.1:8080\""`
	Proto Proto  `toml:"proto,omitempty" doc:"tcp or udp; tcp when left out." example:"\"tcp\""`
}

// Yggdrasil is the node's part in the Yggdrasil network.
type Yggdrasil struct {
	Enabled   Switch            `toml:"enabled" doc:"auto takes part, unless this is a closed network or a program without Yggdrasil; on insists; off never does."`
	Peers     []string          `toml:"peers" doc:"Nodes to connect to, as Yggdrasil writes them: tcp://, tls://, quic://, ws://, wss:// with host and port, unix:///PATH,\nsocks://PROXY/HOST:PORT. Options: ?key=HEX, password=, priority=, maxbackoff=, sni=, interface=." example:"[\"tls://192.0.2.7:443\"]"`
	Listen    []string          `toml:"listen" doc:"Where Yggdrasil nodes reach this one: tcp://, tls://, quic://, ws:// with address and port, unix:///PATH." example:"[\"tls://[::]:9002\"]"`
	Allowed   []ident.PublicKey `toml:"allowed_public_keys" doc:"Who may connect to listen; empty is anybody. It is no firewall." example:"[]"`
	Password  string            `toml:"group_password" doc:"Talk only to nodes with the same password, GroupPassword in yggdrasil.conf." example:"\"\""`
	Share     bool              `toml:"share" doc:"Weft nodes without a Yggdrasil peer of their own may reach that network through this node, when it has peers."`
	Admin     string            `toml:"admin" doc:"Admin socket for yggdrasilctl and the like: unix:///PATH or tcp://127.0.0.1:PORT; empty is none." example:"\"unix:///run/yggdrasil.sock\""`
	Multicast []YggMulticast    `toml:"multicast" doc:"Finding Yggdrasil nodes on the local network. Without any of these, beacons go out on the interfaces of [multicast]:\nYggdrasil nodes that hear them connect, and Weft nodes do not link twice with one another."`

	PeersAdded []string `toml:"-"` // those of Peers that commands have added
}

// YggMulticast is discovery of Yggdrasil nodes on some interfaces.
type YggMulticast struct {
	Regex    string `toml:"regex" doc:"Regular expression that the interface's name matches." example:"\"eth.*\""`
	Beacon   bool   `toml:"beacon" doc:"Tell others about this node." example:"true"`
	Listen   bool   `toml:"listen" doc:"Connect to those that are heard." example:"true"`
	Port     uint16 `toml:"port,omitempty" doc:"TCP port for those who connect; 0 takes any." example:"0"`
	Priority uint8  `toml:"priority,omitempty" doc:"0 to 254; of several links with a node the lowest is used." example:"0"`
	Password string `toml:"password,omitempty" doc:"Only nodes with the same password are heard." example:"\"\""`
}

// Firewall rules on who may open connections to this device.
type Firewall struct {
	Rules  []string            `toml:"rules" doc:"allow|block PROTO [PORTS] [to DEST] from SOURCE; the first that matches decides.\nPROTO: any, tcp, udp, icmp. PORTS: 22 or 80,443,8000-8100. DEST: self (left out), behind, or an address behind this node.\nSOURCE: any, community, group:NAME or key:HEX." example:"[\"allow tcp 22 from group:family\", \"allow tcp 80,443 from any\"]"`
	Groups map[string][]string `toml:"groups" doc:"Groups of keys: name = [\"64 hex digits\", …]." example:"[]"`
}

// Portal is the local web page.
type Portal struct {
	Listen string `toml:"listen" doc:"Address and port, or off. When this is not set and the port is taken, the next free one is used."`

	Set bool `toml:"-"`
}

// API is the socket for commands.
type API struct {
	Socket string `toml:"socket" doc:"Path of the unix socket; empty is weft.sock in the state directory." example:"\"/run/weft/weft.sock\""`
}

// Route is the part in routing.
type Route struct {
	Price    uint32    `toml:"price" doc:"What this node asks for carrying others' traffic, in ncredit per MiB."`
	Lambda   float64   `toml:"lambda" doc:"How much a price counts when this node chooses a way: µs of cost per 1000 ncredit per MiB, 0 to 1000.\nNodes of a community use the same."`
	Position []float64 `toml:"position" doc:"Latitude and longitude in degrees, for the map. They are rounded to about 1 km before anyone is told." example:"[52.52, 13.40]"`
}

// Log is what is logged.
type Log struct {
	Level  Level  `toml:"level" doc:"debug, info, warn or error."`
	Format Format `toml:"format" doc:"text for people, json for programs."`
}

// Default returns the configuration of a node whose file says nothing.
func Default() *Config {
	return &Config{
		Version:   Version,
		Role:      RoleRouter,
		Listen:    []string{DefaultListen},
		Multicast: Multicast{Enabled: true, Interfaces: []string{"*"}, Exclude: []string{"docker*", "virbr*", "weft*", "tun*", "wg*"}, Cap: 8},
		Introduce: Introduce{Direct: true, Offer: true},
		TUN:       TUN{Enabled: Auto, Name: "auto"},
		Userspace: Userspace{SOCKS: "auto", HTTP: "off"},
		Yggdrasil: Yggdrasil{Enabled: Auto},
		Gateway:   Gateway{Use: "off", IPv4: true, IPv6: "nat", NAT64: "64:ff9b::/96"},
		DNS:       DNS{Listen: DefaultDNS, Redirect: true, DNS64: true},
		Guest:     Guest{Mode: "voucher", Network: "10.77.0.1/24", DHCP: "auto"},
		Portal:    Portal{Listen: DefaultPortal},
		Route:     Route{Lambda: 1},
		Log:       Log{Level: "info", Format: "text"},
	}
}

// Multiplier returns the cost multiplier in thousandths, 1000 when none is set.
func (p Peer) Multiplier() uint32 {
	if p.Cost == 0 {
		return 1000
	}
	return uint32(math.Round(p.Cost * 1000))
}

// BlurredPosition returns latitude and longitude in units of 1e-7 degree,
// rounded to 0.01 degree, about 1 km; ok is false when none is set.
func (r Route) BlurredPosition() (lat, lon int32, ok bool) {
	if len(r.Position) != 2 {
		return 0, 0, false
	}
	blur := func(deg float64) int32 { return int32(math.Round(deg*100)) * 100_000 }
	return blur(r.Position[0]), blur(r.Position[1]), true
}

// Closed reports whether the node belongs to a closed network.
func (c *Config) Closed() bool { return c.Community.Key != Secret{} }

// Add joins what commands have added to what the file says; the file wins.
func (c *Config) Add(a Added) {
	for _, p := range a.Peers {
		known := false
		for _, q := range c.Peers {
			known = known || q.URI == p.URI
		}
		if !known {
			p.Source = FromCommand
			c.Peers = append(c.Peers, p)
		}
	}
	for _, u := range a.YggdrasilPeers {
		if !slices.Contains(c.Yggdrasil.Peers, u) {
			c.Yggdrasil.Peers = append(slices.Clip(c.Yggdrasil.Peers), u)
			c.Yggdrasil.PeersAdded = append(slices.Clip(c.Yggdrasil.PeersAdded), u)
		}
	}
	if !c.Closed() {
		c.Community.Key = a.CommunityKey
	}
	if a.Wallet != nil {
		c.Wallet = *a.Wallet
	}
	if g := a.Gateway; g != nil { // what was said last holds
		if g.Use != "" {
			c.Gateway.Use = g.Use
		}
		if o := g.Offer; o != nil {
			c.Gateway.Offer, c.Gateway.Price, c.Gateway.Down, c.Gateway.Up = o.On, o.Price, o.Down, o.Up
			c.Gateway.IPv4, c.Gateway.IPv6 = o.IPv4, o.IPv6
			c.Gateway.Members = o.Members
		}
	}
}
