// Package nat64 lets devices that have IPv6 only reach the IPv4 internet: it turns one IPv6 packet into one IPv4 packet
// and back (RFC 7915, addresses by RFC 6052), and keeps the [Table] that says which IPv4 address stands for which of them.
//
// It is stateless beside that table, as TAYGA is: every device gets one IPv4 address from a private pool, and the NAT44
// that the gateway has anyway (the kernel's, or gateway/exit) does the rest. gateway owns the table and calls [Prefix.To4]
// for what clients send into the prefix and [Prefix.To6] for what comes back; dns uses [Prefix] alone, to make addresses.
//
// Packets with offloads cross too: a super-packet (GSO) as the one packet that it looks like, with the same segment size, and
// one whose transport checksum is partial when the caller puts the pseudo-header sum into the result anew
// (tun.SetPartial).
//
// The package starts no goroutine, opens no socket, has no clock ([Table.Tick] brings the time) and allocates nothing per
// packet. Everything may be called from any goroutine. Packets are as strangers sent them: what is malformed, or what
// must not be translated, is an error and never a panic.
package nat64

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// WellKnown is the prefix that every client knows without being told (RFC 6052 section 2.1). It stands for public
// IPv4 addresses only (section 3.1).
var WellKnown = netip.MustParsePrefix("64:ff9b::/96")

// Reasons for which a packet is not translated. Where the RFC wants the sender told, the reason says how; all others are
// dropped in silence.
var (
	ErrMalformed   = errors.New("nat64: malformed packet")
	ErrSource      = errors.New("nat64: illegal source address")
	ErrDestination = errors.New("nat64: destination cannot be translated")      // ICMPv6 1/0
	ErrHopLimit    = errors.New("nat64: hop limit used up")                     // ICMP 11/0, ICMPv6 3/0
	ErrRouting     = errors.New("nat64: source route not used up")              // ICMP 3/5, ICMPv6 4/0
	ErrExtension   = errors.New("nat64: extension header cannot be translated") // AH and what nobody knows
	ErrChecksum    = errors.New("nat64: UDP checksum missing")                  // forbidden in IPv6, or in a fragment of IPv4
	ErrICMP        = errors.New("nat64: no such ICMP message on the other side")
	ErrFragment    = errors.New("nat64: fragment of an ICMP message") // its checksum covers what is not there
)

// Prefix is where IPv4 addresses lie in IPv6 (RFC 6052 section 2.2). The zero value is none.
type Prefix struct {
	net    netip.Prefix
	base   [16]byte
	global bool // the well-known prefix: public addresses only
}

// NewPrefix checks a prefix: its length is 32, 40, 48, 56, 64 or 96, and bits 64 to 71 are zero.
func NewPrefix(p netip.Prefix) (Prefix, error) {
	if !p.IsValid() || !p.Addr().Is6() || p.Addr().Is4In6() || p.Addr().Zone() != "" || p != p.Masked() {
		return Prefix{}, fmt.Errorf("NAT64 prefix %s: must be an IPv6 prefix like %s", p, WellKnown)
	}
	switch p.Bits() {
	case 32, 40, 48, 56, 64, 96:
	default:
		return Prefix{}, fmt.Errorf("NAT64 prefix %s: its length must be 32, 40, 48, 56, 64 or 96 (RFC 6052)", p)
	}
	base := p.Addr().As16()
	if base[8] != 0 {
		return Prefix{}, fmt.Errorf("NAT64 prefix %s: bits 64 to 71 must be zero (RFC 6052)", p)
	}
	return Prefix{p, base, p == WellKnown}, nil
}

// Prefix returns the prefix as it was given.
func (p Prefix) Prefix() netip.Prefix { return p.net }

// Embed returns the IPv6 address that stands for v4. For one that may not be in the prefix, or that is no IPv4
// address, ok is false: with the well-known prefix only public addresses have one (RFC 6052 section 3.1).
func (p Prefix) Embed(v4 netip.Addr) (v6 netip.Addr, ok bool) {
	if !v4.Is4() || !p.net.IsValid() || p.global && !isGlobal(v4.As4()) {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16(p.embed(v4.As4())), true
}

// EmbedAny lays any IPv4 address into the prefix, public or not: for the two of RFC 7050, by which hosts find the prefix.
func (p Prefix) EmbedAny(v4 [4]byte) netip.Addr { return netip.AddrFrom16(p.embed(v4)) }

// Extract returns the IPv4 address that v6 stands for; ok as in Embed.
func (p Prefix) Extract(v6 netip.Addr) (v4 netip.Addr, ok bool) {
	if !v6.Is6() || !p.net.IsValid() {
		return netip.Addr{}, false
	}
	a, ok := p.extract(v6.As16())
	if !ok || p.global && !isGlobal(a) {
		return netip.Addr{}, false
	}
	return netip.AddrFrom4(a), true
}

// embed lays the four bytes behind the prefix, past byte 8, which stays zero.
func (p *Prefix) embed(v4 [4]byte) [16]byte {
	out := p.base
	at := p.net.Bits() / 8
	for _, b := range v4 {
		if at == 8 {
			at++
		}
		out[at] = b
		at++
	}
	return out
}

func (p *Prefix) extract(v6 [16]byte) (v4 [4]byte, ok bool) {
	at := p.net.Bits() / 8
	if [16]byte(v6) != p.base { // the common case is that they differ, behind the prefix
		for i := range at {
			if v6[i] != p.base[i] {
				return v4, false
			}
		}
	}
	if v6[8] != 0 {
		return v4, false
	}
	for i := range v4 {
		if at == 8 {
			at++
		}
		v4[i] = v6[at]
		at++
	}
	return v4, true // the suffix is not looked at (RFC 6052 section 2.2)
}

// isGlobal reports whether an IPv4 address is one of the public internet, after the registry of RFC 6890.
func isGlobal(a [4]byte) bool {
	switch {
	case a[0] == 0, a[0] == 10, a[0] == 127, a[0] >= 224,
		a[0] == 100 && a[1]&0xc0 == 64,
		a[0] == 169 && a[1] == 254,
		a[0] == 172 && a[1]&0xf0 == 16,
		a[0] == 192 && a[1] == 168,
		a[0] == 192 && a[1] == 0 && (a[2] == 0 || a[2] == 2),
		a[0] == 192 && a[1] == 88 && a[2] == 99,
		a[0] == 198 && (a[1]&0xfe == 18 || a[1] == 51 && a[2] == 100),
		a[0] == 203 && a[1] == 0 && a[2] == 113:
		return false
	}
	return true
}

// mayEmbed reports whether an IPv4 address may cross at all: no host has loopback, "this network", multicast or class E
// as its address (RFC 7915 section 4.1, 5.1).
func (p *Prefix) mayEmbed(a [4]byte) bool {
	if p.global {
		return isGlobal(a)
	}
	return a[0] != 0 && a[0] != 127 && a[0] < 224
}

// sum adds b to a ones' complement sum (RFC 1071). Sums are folded by fold.
func sum(s uint64, b []byte) uint64 {
	for len(b) >= 4 {
		s += uint64(binary.BigEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		s += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint64(b[0]) << 8
	}
	return s
}

func fold(s uint64) uint16 {
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// adjust replaces what summed to was by what sums to is in the checksum at b (RFC 1624, equation 3).
func adjust(b []byte, was, is uint64) {
	old := binary.BigEndian.Uint16(b)
	binary.BigEndian.PutUint16(b, ^fold(uint64(^old)+uint64(^fold(was))+is))
}
