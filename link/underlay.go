package link

import (
	"context"
	"net/netip"

	"weft/forward"
)

// Underlay is the network below the mesh: the operating system's sockets and interfaces ([System]), or the in-memory
// twin of package linktest, which runs in virtual time.
type Underlay interface {
	// Open binds a UDP socket. unreachable is called, from any goroutine, with endpoints that a datagram could not be
	// delivered to as far as the network says (which may be forged: verify); it must not block.
	Open(at netip.AddrPort, unreachable func(forward.Endpoint)) (Socket, error)
	// OpenBeacons opens the multicast socket of discovery.
	OpenBeacons() (Beacons, error)
	// Interfaces lists the network interfaces as they are now.
	Interfaces() ([]Interface, error)
	// Route tells by which interface datagrams to an address leave, and whether the address is on that very link.
	Route(to forward.Endpoint) (via Interface, onLink bool, err error)
	// Watch calls changed after interfaces or addresses changed, until ctx ends. down names interfaces that this change
	// took away or left without carrier.
	Watch(ctx context.Context, changed func(down []int)) error
}

// Message is one read of a Socket: datagrams of Seg bytes each, the last may be shorter, all from one endpoint.
type Message struct {
	Buf  []byte // room for the read; the caller's
	N    int    // bytes read
	Seg  int
	From forward.Endpoint // Via is zero: the caller numbers sockets
}

// Socket is a UDP socket with batches. Receive belongs to one goroutine; Send and Close are safe for concurrent use.
type Socket interface {
	// Receive blocks until there is something and fills as many messages as there are. It returns net.ErrClosed after Close.
	Receive(msgs []Message) (int, error)
	// Send sends datagrams of seg bytes each, as forward.Sender does.
	Send(to forward.Endpoint, buf []byte, seg int) error
	LocalPort() uint16
	Close() error
}

// carrierChecker is a Socket that can look at an interface's carrier without waiting for the system to report it.
type carrierChecker interface {
	Carrier(iface string) bool
}

// Beacons is the multicast socket of discovery. Receive belongs to one goroutine; the rest is safe for concurrent use.
type Beacons interface {
	Join(iface int) error
	Leave(iface int)
	Send(iface int, b []byte) error
	// Receive returns one beacon; from.Scope is the interface that it came in by. It returns net.ErrClosed after Close.
	Receive(b []byte) (n int, from forward.Endpoint, err error)
	Close() error
}

// Interface is a network interface.
type Interface struct {
	Index     int
	Name      string
	MTU       int
	Running   bool // up and with carrier
	Multicast bool // and not point-to-point: a LAN
	Addrs     []netip.Prefix
}

// receiveBatch and receiveBuffer shape the reads of a socket: a read of UDP GRO gives up to 64 KiB.
const (
	receiveBatch  = 8
	receiveBuffer = 1 << 16
	socketBuffer  = 4 << 20
)

func newBatch() []Message {
	msgs := make([]Message, receiveBatch)
	for i := range msgs {
		msgs[i].Buf = make([]byte, receiveBuffer)
	}
	return msgs
}

// endpointOf converts a resolved address.
func endpointOf(a netip.AddrPort, scope uint32) forward.Endpoint {
	return forward.Endpoint{IP: a.Addr().As16(), Scope: scope, Port: a.Port()}
}

func addrOf(e forward.Endpoint) netip.Addr { return netip.AddrFrom16(e.IP).Unmap() }
