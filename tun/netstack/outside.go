//go:build !router

package netstack

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// mesh is ident.MeshPrefix: a device imports nothing of the mesh, and a test sees that the two stay the same.
var mesh = netip.MustParsePrefix("200::/7")

// outside is what the stack has to leave the mesh with in one family of addresses.
type outside struct {
	addr netip.Addr // the leased address; the zero Addr is none

	mu    sync.Mutex // taken with Stack.mu held, or alone
	conns map[tcpip.Endpoint]struct{}
}

// SetOutside says from which addresses a gateway lets this node leave the mesh, one of each family; the zero Addr is none. v6
// may be the node's own address. Connections from an address that is no longer here end at once, so that applications try
// again by the new way; those in the mesh go on. After a change of gateway that leaves an address as it was, call it with
// zero Addrs first: the new gateway knows nothing of the old one's connections.
func (s *Stack) SetOutside(v4, v6 netip.Addr) error {
	if v4.IsValid() && !v4.Is4() || v6.IsValid() && (!v6.Is6() || v6.Is4In6() || v6.Zone() != "") {
		return fmt.Errorf("leave the mesh from %v and %v: may be an IPv4 and an IPv6 address", v4, v6)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("leave the mesh: %w", errors.New("the stack is closed"))
	}
	return errors.Join(s.replace(&s.v4, v4), s.replace(&s.v6, v6))
}

// replace runs with Stack.mu held.
func (s *Stack) replace(o *outside, a netip.Addr) error {
	if o.addr == a {
		return nil
	}
	old := o.addr
	o.addr = netip.Addr{}
	o.mu.Lock()
	conns := o.conns
	o.conns = nil
	o.mu.Unlock()
	for ep := range conns {
		ep.Abort()
	}
	if old.IsValid() && !s.own(old) {
		s.stack.RemoveAddress(nicID, tcpip.AddrFromSlice(old.AsSlice())) // fails if it is not there, which is as well
	}
	if a.IsValid() && !s.own(a) {
		addr := tcpip.ProtocolAddress{Protocol: netOf(a), AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix()}
		if err := s.stack.AddProtocolAddress(nicID, addr, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("leave the mesh from %v: %w", a, errorOf(err))
		}
	}
	o.addr = a
	return nil
}

func (s *Stack) own(a netip.Addr) bool { return tcpip.AddrFromSlice(a.AsSlice()) == s.addr }

// lease returns the address from which ep may reach to, and notes ep; forget takes it back. Stack.mu is held for reading.
func (s *Stack) lease(to netip.Addr, ep tcpip.Endpoint) (from tcpip.Address, forget func(), err error) {
	o, family := &s.v6, "IPv6"
	if to.Is4() {
		o, family = &s.v4, "IPv4"
	}
	if !o.addr.IsValid() {
		return from, nil, fmt.Errorf("%w: no gateway gives this node %s addresses outside the mesh; choose one with weft gateway use auto", syscall.ENETUNREACH, family)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conns == nil {
		o.conns = map[tcpip.Endpoint]struct{}{}
	}
	o.conns[ep] = struct{}{}
	return tcpip.AddrFromSlice(o.addr.AsSlice()), func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.conns, ep)
	}, nil
}

// leasedTCP and leasedUDP are connections to the outside, of which the stack has a list.
type leasedTCP struct {
	*gonet.TCPConn
	forget func()
}

// Close implements net.Conn.
func (c *leasedTCP) Close() error { c.forget(); return c.TCPConn.Close() }

type leasedUDP struct {
	*gonet.UDPConn
	forget func()
}

// Close implements net.Conn.
func (c *leasedUDP) Close() error { c.forget(); return c.UDPConn.Close() }
