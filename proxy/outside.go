package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"weft/ident"
)

// What Config.Outside says when it does not connect, so that clients are told which it was. Its error wraps one of these,
// an errno, a *net.DNSError or the context's error.
var (
	// ErrNoGateway: this node uses no gateway, or none that has addresses of that family.
	ErrNoGateway = errors.New("no internet gateway is in use; choose one with weft gateway use auto")
	// ErrPolicy: the gateway does not let its clients go there.
	ErrPolicy = errors.New("the gateway's policy refuses this destination")
	// ErrNoName: the name does not exist.
	ErrNoName = errors.New("there is no such name")
)

var errPrivate = errors.New("addresses of this machine and of private networks are not reached through the proxy")

// outside connects to what is not in the mesh.
func (p *Proxy) outside(ctx context.Context, network, host string, port uint16) (net.Conn, error) {
	if p.cfg.Outside == nil {
		return nil, errOutside
	}
	if err := checkHost(host); err != nil {
		return nil, err
	}
	c, err := p.cfg.Outside(ctx, network, host, port)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", host, err)
	}
	// A name may lead anywhere, at the will of whoever owns it: a page could name this machine, or the router at home.
	if a := addrPortOf(c.RemoteAddr()).Addr(); a.IsValid() && !MayLeave(a) {
		c.Close()
		return nil, fmt.Errorf("%s is %s: %w", host, a, errPrivate)
	}
	return c, nil
}

// checkHost refuses, before anybody is asked, what would lead to this machine or its networks: addresses, the name
// localhost (RFC 6761 section 6.3), and numbers that some resolvers take for addresses, like 127.1 or 0x7f000001.
func checkHost(host string) error {
	if a, err := netip.ParseAddr(host); err == nil {
		if !MayLeave(a) {
			return fmt.Errorf("%s: %w", host, errPrivate)
		}
		return nil
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	last := name[strings.LastIndexByte(name, '.')+1:]
	number := last != "" && strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") && strings.Trim(last[2:], "0123456789abcdef") == ""
	if last == "localhost" || number {
		return fmt.Errorf("%s: %w", host, errPrivate)
	}
	if last == "" || len(name) > 253 || strings.Contains(name, "..") || strings.ContainsAny(name, " /\\@:%[]\x00") {
		return fmt.Errorf("%q is no name: %w", host, ErrNoName)
	}
	return nil
}

// inward are the networks, beside those that netip knows, that lead to this machine, to its surroundings or to nobody: RFC
// 6890, and the addresses inside of which others are hidden.
var inward = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // leases of a gateway's other clients
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/96"),          // IPv4-compatible
	netip.MustParsePrefix("64:ff9b:1::/48"), // local translation, RFC 8215
	netip.MustParsePrefix("fec0::/10"),      // site-local
}

// MayLeave reports whether a is an address that the proxy lets its clients reach: in the mesh or in public networks, but not
// on this machine, on its links or in private networks. Config.Outside does well to ask it for each address of a name before
// it connects; the proxy asks again afterwards.
func MayLeave(a netip.Addr) bool {
	a = a.Unmap()
	if ident.MeshPrefix.Contains(a) {
		return true
	}
	if !a.IsGlobalUnicast() || a.IsPrivate() || a.Zone() != "" {
		return false
	}
	for _, p := range inward {
		if p.Contains(a) {
			return false
		}
	}
	if a.Is6() { // IPv4 inside: NAT64 (RFC 6052), 6to4 (RFC 3056)
		b := a.As16()
		switch {
		case netip.MustParsePrefix("64:ff9b::/96").Contains(a):
			return MayLeave(netip.AddrFrom4([4]byte(b[12:])))
		case netip.MustParsePrefix("2002::/16").Contains(a):
			return MayLeave(netip.AddrFrom4([4]byte(b[2:6])))
		}
	}
	return true
}
