// Package host is what sharing the internet changes in the kernel of this machine, and how it is taken back: always, also after kill -9.
//
// [OpenGateway] makes a machine carry packets of leases from a TUN to its line; [OpenClient] sends a whole machine's traffic and its DNS
// questions into a TUN; [OpenUplink] tells which lines there are. node opens them, gateway and dns say with what. The package knows
// interfaces and prefixes, no mesh: of the mesh only that its addresses lie in 200::/7. It works on Linux, as root or with
// CAP_NET_ADMIN. Elsewhere all but [FreePool] return [ErrUnsupported], [Control] does nothing, and [Recover] finds nothing to undo.
//
// Everything is checked before anything is touched, and what fails half way is taken back. Each open thing owns at most three
// goroutines, and its Close waits for them. Methods may be called from any goroutine. The network namespace is that of the thread which
// opens; where threads differ in it, Open and Close belong on the same one, and only explicit WANs are for such programs.
//
// # How it is taken back
//
//   - nftables: tables of our own, never a change in others'. They carry the owner flag (Linux 5.12), so that the kernel removes them when
//     the process that made them is gone, however it went. On older kernels Recover does it.
//   - addresses and routes hang on the TUN and go with it.
//   - policy rules carry [Protocol]. Left behind they point to an empty table and change nothing; Recover deletes them.
//   - sysctls are written into the state file, flushed to disk, before they are changed. Close and Recover put the old value back, unless
//     somebody has changed it since. After a reboot there is nothing to put back.
//
// # A gateway does not make a router of its host
//
// For IPv4, forwarding is switched on for the TUN and the line alone; IPv6 has such a switch since Linux 6.17 (force_forwarding). Before,
// only net.ipv6.conf.all.forwarding works; interfaces then keep their own forwarding and accept_ra, so that the host still hears router
// advertisements. What we have switched on for others too, the forward chain closes again: new connections that come in on such an
// interface go nowhere but where they could before, nowhere. Names of such interfaces are in the sets closed4 and closed6 of the table,
// where the next gateway on this host finds them and does not take our doing for the owner's. Who makes the host a router while
// a gateway is open (Docker does at its start) must open the gateway again.
//
// Packets for addresses of this host, for networks connected to it, for other interfaces than the line, or from sources that have
// no lease are dropped. Between mesh addresses nothing is changed: that is the node's firewall.
//
// An accept of ours cannot overrule a drop of somebody else's. Where another table drops forwarded packets (Docker, firewalld,
// OpenWrt), its owner has to let the TUN through: [Gateway.Blocked] names the chains, and a warning says how. Rules of the old
// iptables-legacy and firewalld's closing reject cannot be seen. A strict rp_filter does no harm: the way back to a lease is the TUN.
//
// A TUN is either a gateway's or a client's, never both at once: the gateway drops sources without a lease.
//
// # A client's routes
//
// In each family, in the manner of wg-quick:
//
//	7764: fwmark Mark      → main     the underlay's own packets go by the line
//	7765: main, but its default route  LAN, mesh and other specific routes
//	7766: not fwmark Mark  → 7764     all else: default dev TUN
//
// A conversation that others begin with this host on its own line is answered there: it is marked (conntrack mark, only where that is free),
// so that a server stays reachable. The same mark lets a strict rp_filter pass (src_valid_mark).
//
// A family that the lease lacks is refused at once ("no route"), so that it does not go out by the own line; KeepOwn leaves it alone.
// That is done by a rule in the owned table and not by an unreachable route, because such a route hangs on no interface and would survive
// the process.
//
// DNS: UDP and TCP port 53, to whomever but loopback and mesh addresses, is redirected to the resolver. /etc/resolv.conf is not touched;
// encrypted DNS is left alone.
package host

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
)

const (
	// Mark is the fwmark of what must go out by the host's own line: the underlay's sockets, see [Control]. Its bits stay clear of those of
	// mwan3 (0x3f00), Kubernetes (0xc000), pbr and Tailscale (0xff0000).
	Mark = 0x77000074
	// tunnelMark is the fwmark of the resolver's own questions, see [ControlTunnel].
	tunnelMark = 0x77000075
	// Table is the routing table of a client.
	Table = 7764
	// Priority is that of the first of a client's three rules; the others follow.
	Priority = 7764
	// Protocol marks rules and routes as ours (rtnetlink's protocol field, `ip rule` and `ip route` show "proto 119").
	Protocol = 119
)

var (
	// ErrBusy: another node on this host is a client already.
	ErrBusy = errors.New("another node on this host sends its traffic into the mesh already: only one can; stop it there (weft gateway use off) or leave this one without")
	// ErrUnsupported: this system's kernel cannot do it.
	ErrUnsupported = errors.New("sharing through the kernel works on Linux only: use the userspace exit and the proxy")
)

var (
	mesh     = netip.MustParsePrefix("200::/7")       // addresses that are never "outside"
	cgnat    = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598: where leases come from
	default4 = netip.MustParsePrefix("0.0.0.0/0")
	default6 = netip.MustParsePrefix("::/0")
)

// GatewayConfig says what a gateway shares.
type GatewayConfig struct {
	TUN string // where packets of leases come from; it exists
	WAN string // the line; empty: the interfaces with a default route, per family, whichever these are at the time
	// Pool holds the clients' IPv4 addresses, a part of 100.64.0.0/10; it is routed into the TUN. The zero value: no IPv4.
	Pool netip.Prefix
	IPv6 bool
	// Prefix6 is routed to this host by its provider; clients have addresses of it, nothing is translated. The zero value: clients come with
	// mesh addresses and leave with the host's (NAT66).
	Prefix6   netip.Prefix
	MTU       int            // of packets to leases; 0: the TUN's
	DNSPort   uint16         // what the mesh asks of port 53 here is led to this port; 0: no
	Deny      []netip.Prefix // further destinations that no client may reach; connected networks are always among them
	Changed   func(State)    // called when the line changes, one call at a time; may be nil
	StateFile string         // remembers what to restore after a crash; nobody else's
	Log       *slog.Logger

	noForce bool // tests: as on a kernel without force_forwarding
}

// ClientAddrs are what a lease gives.
type ClientAddrs struct {
	IPv4 netip.Addr // the zero value: the gateway gives no IPv4
	IPv6 netip.Addr // the source of IPv6 packets: the mesh address, or a global one of the gateway's. The zero value: no IPv6
}

// ClientConfig says how this host uses a gateway.
type ClientConfig struct {
	TUN       string
	Addrs     ClientAddrs
	MTU       int    // of packets by the default route; 0: the TUN's
	KeepOwn   bool   // a family that the lease lacks keeps its own line; otherwise it is refused
	DNSPort   uint16 // where the resolver listens on 127.0.0.1 and ::1, UDP and TCP; 0 leaves DNS alone
	StateFile string // remembers what to restore after a crash; nobody else's, not the gateway's
	Log       *slog.Logger
}

// State is what lines a host has.
type State struct {
	IPv4, IPv6 bool // there is a default route by an interface that is up and has a carrier (IPv6: and an address to be seen with)
	// Interface4 and Interface6 have the best default route of their family.
	Interface4, Interface6 string
	// Local holds the networks connected to this host and its own addresses, sorted: what clients must never reach.
	Local []netip.Prefix

	wans4, wans6 []string // all interfaces with a live default route
}

// Equal compares two states.
func (s State) Equal(o State) bool {
	return s.IPv4 == o.IPv4 && s.IPv6 == o.IPv6 && s.Interface4 == o.Interface4 && s.Interface6 == o.Interface6 &&
		slices.Equal(s.Local, o.Local) && slices.Equal(s.wans4, o.wans4) && slices.Equal(s.wans6, o.wans6)
}

// UplinkConfig says what to watch.
type UplinkConfig struct {
	Ignore  []string    // interfaces that are no lines of this host: the node's TUNs
	Changed func(State) // called on every change, one call at a time, never during OpenUplink; may be nil
	Log     *slog.Logger
}

// FreePool returns a /16 of 100.64.0.0/10 that overlaps nothing of taken: preferred when that is one, otherwise the first. The zero
// Prefix when all are taken. Default routes in taken do not count.
func FreePool(preferred netip.Prefix, taken []netip.Prefix) netip.Prefix {
	free := func(p netip.Prefix) bool {
		return !slices.ContainsFunc(taken, func(t netip.Prefix) bool { return t.Bits() > 0 && t.Overlaps(p) })
	}
	if preferred = preferred.Masked(); preferred.Bits() == 16 && cgnat.Contains(preferred.Addr()) && free(preferred) {
		return preferred
	}
	for second := byte(64); second < 128; second++ {
		if p := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, second}), 16); free(p) {
			return p
		}
	}
	return netip.Prefix{}
}

// merge sorts prefixes of one family and drops those that lie in others, as interval sets want them.
func merge(in []netip.Prefix, v6 bool) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range in {
		if p.IsValid() && p.Addr().Is6() == v6 {
			out = append(out, p.Masked())
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	n := 0
	for _, p := range out { // a network sorts before what lies in it
		if n == 0 || !out[n-1].Overlaps(p) {
			out[n] = p
			n++
		}
	}
	return out[:n]
}

// outside reports whether a is an address that a packet on the internet may have.
func outside(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.Is4In6() && a.Zone() == "" && !mesh.Contains(a)
}

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
