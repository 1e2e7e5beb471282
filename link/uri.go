package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	glob "path"
	"slices"
	"strconv"

	"weft/ident"
)

// uri is a parsed peer or listener address.
type uri struct {
	scheme string // udp, tls or wss
	host   string // name or address, without brackets; may be empty in a listener
	zone   string // of a link-local address
	port   uint16
	path   string // of wss
}

const schemes = "udp://host:port, tls://host:port or wss://host[:port]/path"

// parseURI reads the address of a peer, or of a listener.
func parseURI(s string, listener bool) (uri, error) {
	bad := func(format string, a ...any) (uri, error) {
		what := "peer"
		if listener {
			what = "listen address"
		}
		return uri{}, fmt.Errorf("%s %q: %w", what, s, fmt.Errorf(format, a...))
	}
	p, err := url.Parse(s)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return bad("%w; write %s", err, schemes)
	}
	u := uri{scheme: p.Scheme, host: p.Hostname(), path: p.Path}
	switch u.scheme {
	case "udp", "tls":
		if u.path != "" {
			return bad("%s:// takes no path", u.scheme)
		}
	case "wss":
		if u.path == "" {
			u.path = "/"
		}
	case "":
		return bad("no scheme; write %s", schemes)
	default:
		return bad("unknown scheme %q; write %s", u.scheme, schemes)
	}
	if p.User != nil || p.RawQuery != "" || p.Fragment != "" || p.Opaque != "" {
		return bad("has more than host, port and path; write %s, and what else is known of a peer (key, cost, metered) beside it", schemes)
	}
	if u.host == "" && !listener {
		return bad("no host; write %s", schemes)
	}
	switch port := p.Port(); {
	case port == "" && u.scheme == "wss":
		u.port = 443
	case port == "":
		return bad("no port; write %s", schemes)
	default:
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 && !listener {
			return bad("port %s is not between 1 and 65535", port)
		}
		u.port = uint16(n)
	}
	if a, err := netip.ParseAddr(u.host); err == nil {
		if ident.MeshPrefix.Contains(a) {
			return bad("%s is an address inside the mesh; a peer needs an address of the network below it", u.host)
		}
		u.host, u.zone = a.WithZone("").String(), a.Zone()
		if a.Is6() && a.IsLinkLocalUnicast() && u.zone == "" && !listener {
			return bad("a link-local address needs its interface, as in udp://[%s%%25eth0]:%d", u.host, u.port)
		}
	}
	return u, nil
}

// resolve returns the addresses behind a URI's host.
func (m *Manager) resolve(ctx context.Context, u uri) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(u.host); err == nil {
		return []netip.Addr{a.Unmap().WithZone(u.zone)}, nil
	}
	names := net.DefaultResolver
	if m.cfg.Control != nil { // the question must not depend on the mesh that it is to build
		d := net.Dialer{Control: m.cfg.Control}
		names = &net.Resolver{PreferGo: true, Dial: d.DialContext}
	}
	addrs, err := names.LookupNetIP(ctx, "ip", u.host)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", u.host, err)
	}
	addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool { return ident.MeshPrefix.Contains(a.Unmap()) })
	if len(addrs) == 0 {
		return nil, fmt.Errorf("%s has no address outside the mesh", u.host)
	}
	return addrs, nil
}

// listenAddr is the address to bind for a udp:// listener.
func (m *Manager) listenAddr(u uri) (netip.AddrPort, error) {
	if u.host == "" {
		return netip.AddrPortFrom(netip.Addr{}, u.port), nil
	}
	a, err := netip.ParseAddr(u.host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("listen address udp://%s: give an IP address, not a name", u.host)
	}
	return netip.AddrPortFrom(a.WithZone(u.zone), u.port), nil
}

// scope turns the zone of an address into an interface number.
func (m *Manager) scope(a netip.Addr) (uint32, error) {
	if a.Zone() == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(a.Zone(), 10, 32); err == nil {
		return uint32(n), nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range m.ifaces {
		if i.Name == a.Zone() {
			return uint32(i.Index), nil
		}
	}
	return 0, fmt.Errorf("there is no interface %q", a.Zone())
}

func checkPatterns(patterns []string) error {
	for _, p := range patterns {
		if _, err := glob.Match(p, "eth0"); err != nil {
			return fmt.Errorf("interface pattern %q: %w; write names with * and ?, as in eth*", p, err)
		}
	}
	return nil
}

func matchesAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, _ := glob.Match(p, name) // checkPatterns saw them all
		return ok
	})
}
