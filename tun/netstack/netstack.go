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
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
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
	link  *Link
	addr  tcpip.Address
	stack *stack.Stack

	mu     sync.RWMutex // Close and SetOutside take it to be sure that no endpoint is made behind their backs
	closed bool
	done   chan struct{} // closed with closed
	v4, v6 outside
}

// New starts a stack.
func New(cfg Config) (*Stack, error) {
	if !cfg.Addr.Is6() || cfg.Addr.Is4In6() || cfg.Addr.Zone() != "" {
		return nil, fmt.Errorf("start userspace stack: %s is not an IPv6 address", cfg.Addr)
	}
	if cfg.MTU < header.IPv6MinimumMTU || cfg.MTU > 65535 {
		return nil, fmt.Errorf("start userspace stack: MTU %d: may be 1280 to 65535", cfg.MTU)
	}
	s := &Stack{link: NewLink(cfg.MTU), addr: tcpip.AddrFrom16(cfg.Addr.As16()), done: make(chan struct{})}
	s.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
		HandleLocal:        true, // the node can talk to itself
	})
	if err := s.configure(); err != nil {
		s.Close()
		return nil, fmt.Errorf("start userspace stack: %w", err)
	}
	return s, nil
}

func (s *Stack) configure() error {
	if err := Tune(s.stack); err != nil {
		return err
	}
	if err := s.stack.CreateNIC(nicID, s.link); err != nil {
		return fmt.Errorf("make interface: %w", errorOf(err))
	}
	addr := tcpip.ProtocolAddress{Protocol: ipv6.ProtocolNumber, AddressWithPrefix: s.addr.WithPrefix()}
	if err := s.stack.AddProtocolAddress(nicID, addr, stack.AddressProperties{}); err != nil {
		return fmt.Errorf("add address: %w", errorOf(err))
	}
	s.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}, {Destination: header.IPv6EmptySubnet, NIC: nicID}})
	return nil
}

// Tune sets the options of TCP and UDP that suit long, lossy ways; for Stack and for other rooms' stacks.
func Tune(s *stack.Stack) error {
	sack := tcpip.TCPSACKEnabled(true)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	// gvisor's RACK is slow to see ACKs and retransmits what has arrived, and its CUBIC overflows an int (gvisor issues
	// 9778 and 11632); classic recovery and Reno are what others run in production.
	recovery := tcpip.TCPRecovery(0)
	reno := tcpip.CongestionControlOption("reno")
	recv := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: 256 << 10, Max: 4 << 20}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: 256 << 10, Max: 4 << 20}
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &recovery, &reno, &recv, &send} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("set TCP option %T: %w", o, errorOf(err))
		}
	}
	for _, o := range []any{
		tcpip.SendBufferSizeOption{Min: 4 << 10, Default: 256 << 10, Max: 1 << 20},
		tcpip.ReceiveBufferSizeOption{Min: 4 << 10, Default: 256 << 10, Max: 1 << 20},
	} {
		if err := s.SetOption(o); err != nil {
			return fmt.Errorf("set option %T: %w", o, errorOf(err))
		}
	}
	return nil
}

// Name implements tun.Device.
func (*Stack) Name() string { return "userspace" }

// MTU implements tun.Device.
func (s *Stack) MTU() int { return int(s.link.mtu) }

// Read implements tun.Device.
func (s *Stack) Read(pkts []tun.Packet) (int, error) { return s.link.Read(pkts) }

// NewWriter implements tun.Device.
func (s *Stack) NewWriter() tun.Writer { return s.link.NewWriter() }

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
	s.link.Shut()
	s.stack.Wait()
	return nil
}

// endpoint makes an endpoint and starts it. Close aborts those that have been started, and no others can be.
func (s *Stack) endpoint(proto tcpip.TransportProtocolNumber, netProto tcpip.NetworkProtocolNumber, wq *waiter.Queue, start func(tcpip.Endpoint) error) (tcpip.Endpoint, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, net.ErrClosed
	}
	ep, terr := s.stack.NewEndpoint(proto, netProto, wq)
	if terr != nil {
		return nil, errorOf(terr)
	}
	if err := start(ep); err != nil {
		ep.Close()
		return nil, err
	}
	return ep, nil
}

// Stats returns what was lost since the start.
func (s *Stack) Stats() Stats { return s.link.Stats() }

// DialContext connects to a literal address like [200:…]:80, since the stack has no resolver: to one in the mesh from the
// node's address, to any other from the leased address of its family (see [Stack.SetOutside]); without one it fails with
// syscall.ENETUNREACH. network is tcp or udp, with or without 4 or 6.
func (s *Stack) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	proto, err := protoOf(network)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	to, err := netip.ParseAddrPort(address)
	if err == nil && (to.Addr().Is4In6() || to.Addr().IsUnspecified() || !fits(network, to.Addr())) {
		err = fmt.Errorf("no destination for %s", network)
	}
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: &net.AddrError{Err: err.Error(), Addr: address}}
	}
	c, err := s.dial(ctx, proto, to)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: addrOf(proto, to), Err: err}
	}
	return c, nil
}

// fits reports whether network, of any family unless it names one, may lead to a.
func fits(network string, a netip.Addr) bool {
	switch network[len(network)-1] {
	case '4':
		return a.Is4()
	case '6':
		return a.Is6()
	}
	return true
}

func (s *Stack) dial(ctx context.Context, proto tcpip.TransportProtocolNumber, to netip.AddrPort) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var wq waiter.Queue
	entry, connected := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	pending := false
	var forget func()
	ep, err := s.endpoint(proto, netOf(to.Addr()), &wq, func(ep tcpip.Endpoint) error {
		from := tcpip.FullAddress{NIC: nicID, Addr: s.addr}
		if !mesh.Contains(to.Addr()) {
			var err error
			if from.Addr, forget, err = s.lease(to.Addr(), ep); err != nil {
				return err
			}
		}
		terr := ep.Bind(from)
		if terr == nil {
			terr = ep.Connect(full(to))
			if _, pending = terr.(*tcpip.ErrConnectStarted); pending {
				terr = nil
			}
		}
		if terr != nil {
			if forget != nil {
				forget()
			}
			return errorOf(terr)
		}
		return nil
	})
	if err != nil {
		return nil, err
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
			} else if tcp.EndpointState(ep.State()) != tcp.StateEstablished && tcp.EndpointState(ep.State()) != tcp.StateCloseWait {
				err = syscall.ECONNRESET // aborted in the meantime
			}
		}
	}
	if err != nil {
		if forget != nil {
			forget()
		}
		ep.Close()
		return nil, err
	}
	switch {
	case forget == nil && proto == udp.ProtocolNumber:
		return gonet.NewUDPConn(&wq, ep), nil
	case forget == nil:
		return gonet.NewTCPConn(&wq, ep), nil
	case proto == udp.ProtocolNumber:
		return &leasedUDP{gonet.NewUDPConn(&wq, ep), forget}, nil
	}
	return &leasedTCP{gonet.NewTCPConn(&wq, ep), forget}, nil
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
	ep, err := s.endpoint(proto, ipv6.ProtocolNumber, &wq, func(ep tcpip.Endpoint) error {
		if !at.Addr().Is6() || !at.Addr().IsUnspecified() && tcpip.AddrFrom16(at.Addr().As16()) != s.addr {
			return syscall.EADDRNOTAVAIL
		}
		// Always the node's address: nothing is served to whoever reaches a leased one.
		terr := ep.Bind(tcpip.FullAddress{NIC: nicID, Addr: s.addr, Port: at.Port()})
		if terr == nil && proto == tcp.ProtocolNumber {
			terr = ep.Listen(backlog)
		}
		if terr != nil {
			return errorOf(terr)
		}
		return nil
	})
	if err != nil {
		return nil, nil, &net.OpError{Op: "listen", Net: network, Addr: addrOf(proto, at), Err: err}
	}
	return &wq, ep, nil
}

func protoOf(network string) (tcpip.TransportProtocolNumber, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
		return tcp.ProtocolNumber, nil
	case "udp", "udp4", "udp6":
		return udp.ProtocolNumber, nil
	}
	return 0, net.UnknownNetworkError(network)
}

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}

func netOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
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
