//go:build !router

package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"weft/tun"
)

const (
	nicID   = tcpip.NICID(1)
	backlog = 256
)

// Stack is a TCP/IP stack that is a tun.Device.
type Stack struct {
	link  *link
	addr  tcpip.Address
	stack *stack.Stack

	mu     sync.RWMutex // Close takes it to be sure that no endpoint is made behind its back
	closed bool
	done   chan struct{} // closed with closed
}

// New starts a stack.
func New(cfg Config) (*Stack, error) {
	if !cfg.Addr.Is6() || cfg.Addr.Is4In6() || cfg.Addr.Zone() != "" {
		return nil, fmt.Errorf("start userspace stack: %s is not an IPv6 address", cfg.Addr)
	}
	if cfg.MTU < header.IPv6MinimumMTU || cfg.MTU > 65535 {
		return nil, fmt.Errorf("start userspace stack: MTU %d: may be 1280 to 65535", cfg.MTU)
	}
	s := &Stack{link: newLink(cfg.MTU), addr: tcpip.AddrFrom16(cfg.Addr.As16()), done: make(chan struct{})}
	s.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol6},
		HandleLocal:        true, // the node can talk to itself
	})
	if err := s.configure(); err != nil {
		s.Close()
		return nil, fmt.Errorf("start userspace stack: %w", err)
	}
	return s, nil
}

func (s *Stack) configure() error {
	sack := tcpip.TCPSACKEnabled(true)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	// gvisor's RACK is slow to see ACKs and retransmits what has arrived, and its CUBIC overflows an int (gvisor issues
	// 9778 and 11632); classic recovery and Reno are what others run in production.
	recovery := tcpip.TCPRecovery(0)
	reno := tcpip.CongestionControlOption("reno")
	recv := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: 256 << 10, Max: 4 << 20}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: 256 << 10, Max: 4 << 20}
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &recovery, &reno, &recv, &send} {
		if err := s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("set TCP option %T: %w", o, errorOf(err))
		}
	}
	for _, o := range []any{
		tcpip.SendBufferSizeOption{Min: 4 << 10, Default: 256 << 10, Max: 1 << 20},
		tcpip.ReceiveBufferSizeOption{Min: 4 << 10, Default: 256 << 10, Max: 1 << 20},
	} {
		if err := s.stack.SetOption(o); err != nil {
			return fmt.Errorf("set option %T: %w", o, errorOf(err))
		}
	}
	if err := s.stack.CreateNIC(nicID, s.link); err != nil {
		return fmt.Errorf("make interface: %w", errorOf(err))
	}
	addr := tcpip.ProtocolAddress{Protocol: ipv6.ProtocolNumber, AddressWithPrefix: s.addr.WithPrefix()}
	if err := s.stack.AddProtocolAddress(nicID, addr, stack.AddressProperties{}); err != nil {
		return fmt.Errorf("add address: %w", errorOf(err))
	}
	s.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv6EmptySubnet, NIC: nicID}})
	return nil
}

// Name implements tun.Device.
func (*Stack) Name() string { return "userspace" }

// MTU implements tun.Device.
func (s *Stack) MTU() int { return int(s.link.mtu) }

// Read implements tun.Device.
func (s *Stack) Read(pkts []tun.Packet) (int, error) { return s.link.Read(pkts) }

// NewWriter implements tun.Device.
func (s *Stack) NewWriter() tun.Writer { return &writer{l: s.link} }

// Close implements tun.Device. It ends every connection, listener and dial, and waits for the stack's goroutines.
func (s *Stack) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.done)
	s.mu.Unlock()
	s.stack.Close()
	s.link.shut()
	s.stack.Wait()
	return nil
}

// endpoint makes an endpoint and starts it. Close aborts those that have been started, and no others can be.
func (s *Stack) endpoint(proto tcpip.TransportProtocolNumber, wq *waiter.Queue, start func(tcpip.Endpoint) tcpip.Error) (tcpip.Endpoint, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, net.ErrClosed
	}
	ep, terr := s.stack.NewEndpoint(proto, ipv6.ProtocolNumber, wq)
	if terr != nil {
		return nil, errorOf(terr)
	}
	if terr := start(ep); terr != nil {
		ep.Close()
		return nil, errorOf(terr)
	}
	return ep, nil
}

// Stats counts what the stack has lost.
type Stats struct {
	Dropped uint64 // packets to the mesh, because the queue was full
	Bad     uint64 // packets from the mesh, malformed or with a wrong checksum
}

// Stats returns the sums since the start.
func (s *Stack) Stats() Stats { return Stats{Dropped: s.link.dropped.Load(), Bad: s.link.bad.Load()} }

// DialContext connects from the node's address. network is tcp, tcp6, udp or udp6; address is a literal like
// [200:…]:80, since the stack has no resolver.
func (s *Stack) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	proto, err := protoOf(network)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	to, err := netip.ParseAddrPort(address)
	if err == nil && (!to.Addr().Is6() || to.Addr().Is4In6()) {
		err = errors.New("the mesh has IPv6 addresses only")
	}
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: &net.AddrError{Err: err.Error(), Addr: address}}
	}
	c, err := s.dial(ctx, proto, full(to))
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: addrOf(proto, to), Err: err}
	}
	return c, nil
}

func (s *Stack) dial(ctx context.Context, proto tcpip.TransportProtocolNumber, to tcpip.FullAddress) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var wq waiter.Queue
	entry, connected := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	pending := false
	ep, err := s.endpoint(proto, &wq, func(ep tcpip.Endpoint) tcpip.Error {
		terr := ep.Connect(to)
		if _, pending = terr.(*tcpip.ErrConnectStarted); pending {
			return nil
		}
		return terr
	})
	if err != nil {
		return nil, err
	}
	if proto == udp.ProtocolNumber {
		return gonet.NewUDPConn(&wq, ep), nil
	}
	if pending {
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-s.done:
			err = net.ErrClosed
		case <-connected:
			if terr := ep.LastError(); terr != nil {
				err = errorOf(terr)
			}
		}
	}
	if err != nil {
		ep.Close()
		return nil, err
	}
	return gonet.NewTCPConn(&wq, ep), nil
}

// Listen accepts TCP connections from the mesh. address is :PORT or the node's own address and a port; port 0 picks one.
func (s *Stack) Listen(_ context.Context, network, address string) (net.Listener, error) {
	wq, ep, err := s.bind(network, address, tcp.ProtocolNumber)
	if err != nil {
		return nil, err
	}
	return gonet.NewTCPListener(s.stack, wq, ep), nil
}

// ListenPacket receives UDP from the mesh; address is as for Listen.
func (s *Stack) ListenPacket(_ context.Context, network, address string) (net.PacketConn, error) {
	wq, ep, err := s.bind(network, address, udp.ProtocolNumber)
	if err != nil {
		return nil, err
	}
	return gonet.NewUDPConn(wq, ep), nil
}

func (s *Stack) bind(network, address string, want tcpip.TransportProtocolNumber) (*waiter.Queue, tcpip.Endpoint, error) {
	fail := func(err error) (*waiter.Queue, tcpip.Endpoint, error) {
		return nil, nil, &net.OpError{Op: "listen", Net: network, Err: &net.AddrError{Err: err.Error(), Addr: address}}
	}
	proto, err := protoOf(network)
	if err != nil {
		return fail(err)
	}
	if proto != want {
		return fail(net.UnknownNetworkError(network))
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fail(err)
	}
	if host == "" {
		host = "::"
	}
	at, err := netip.ParseAddrPort(net.JoinHostPort(host, port))
	if err != nil {
		return fail(err)
	}
	var wq waiter.Queue
	ep, err := s.endpoint(proto, &wq, func(ep tcpip.Endpoint) tcpip.Error {
		if a := tcpip.AddrFrom16(at.Addr().As16()); !at.Addr().IsUnspecified() && a != s.addr {
			return &tcpip.ErrBadLocalAddress{}
		}
		if terr := ep.Bind(full(at)); terr != nil || proto == udp.ProtocolNumber {
			return terr
		}
		return ep.Listen(backlog)
	})
	if err != nil {
		return nil, nil, &net.OpError{Op: "listen", Net: network, Addr: addrOf(proto, at), Err: err}
	}
	return &wq, ep, nil
}

func protoOf(network string) (tcpip.TransportProtocolNumber, error) {
	switch network {
	case "tcp", "tcp6":
		return tcp.ProtocolNumber, nil
	case "udp", "udp6":
		return udp.ProtocolNumber, nil
	}
	return 0, net.UnknownNetworkError(network)
}

func full(a netip.AddrPort) tcpip.FullAddress {
	f := tcpip.FullAddress{NIC: nicID, Port: a.Port()}
	if !a.Addr().IsUnspecified() {
		f.Addr = tcpip.AddrFrom16(a.Addr().As16())
	}
	return f
}

func addrOf(proto tcpip.TransportProtocolNumber, a netip.AddrPort) net.Addr {
	if proto == tcp.ProtocolNumber {
		return net.TCPAddrFromAddrPort(a)
	}
	return net.UDPAddrFromAddrPort(a)
}

// errorOf turns the stack's errors into those of the operating system, so that callers tell a refusal from a time-out in
// one way, whatever the device is.
func errorOf(e tcpip.Error) error {
	switch e.(type) {
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrConnectionReset, *tcpip.ErrAborted, *tcpip.ErrConnectionAborted:
		return syscall.ECONNRESET
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	case *tcpip.ErrHostUnreachable, *tcpip.ErrHostDown:
		return syscall.EHOSTUNREACH
	case *tcpip.ErrNetworkUnreachable, *tcpip.ErrNoNet:
		return syscall.ENETUNREACH
	case *tcpip.ErrPortInUse, *tcpip.ErrNoPortAvailable:
		return syscall.EADDRINUSE
	case *tcpip.ErrBadLocalAddress:
		return syscall.EADDRNOTAVAIL
	case *tcpip.ErrClosedForSend, *tcpip.ErrClosedForReceive, *tcpip.ErrInvalidEndpointState:
		return net.ErrClosed
	}
	return errors.New(e.String())
}
