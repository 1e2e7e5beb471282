// Package exit is a gateway's way to the internet without root: a tun.Device whose host is the internet. Packets that
// clients send to the outside end here, in a TCP/IP stack inside the process (gvisor), and go on through the process's own
// sockets: TCP is connected first and answered then, UDP keeps one socket for each of a client's ports (RFC 4787), echo
// requests go through ping sockets. What comes back is read from the device, with the addresses that the client knows.
//
// node makes an [Exit] and gives it to gateway as the device. Everything but Read and a Writer (one goroutine each) may be
// called from any goroutine. [Exit.Close] ends all flows and returns when its goroutines have: one that reaps, two for each
// TCP connection, one for each UDP port in use, one for each family of ping sockets.
//
// Nothing is unbounded. Each flow has a floor of memory (floorCost) that its slot guarantees, and there are MaxFlows slots,
// of which one client (an IPv4 address, or a /64 of IPv6) gets MaxFlowsPerClient. What Config.Memory has beyond all floors
// is lent to the TCP connections that move bytes, a quarter of it at most to one client, and taken back from those that
// rest. Beside that are what waits for Read and fragments that wait for their rest (4 MiB each, and for fragments as much
// for each family), and kernel buffers, which the kernel bounds.
//
// Builds with the router tag leave gvisor out; [Open] then says so.
package exit

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// Config says how an Exit reaches the internet and how much of the machine it may use. Zero values are the defaults.
type Config struct {
	MTU int // the largest IP packet to and from clients; 1280 to 65535
	Log *slog.Logger

	// Allow is asked before anything is sent to dst, which is the address really used, after Translate: for each TCP
	// connection, each UDP datagram and each echo request (port 0). It must be quick. Without it there is no Exit. Whatever
	// it says, loopback, link-local, multicast, reserved and mesh addresses are out of reach.
	Allow func(client netip.Addr, proto byte, dst netip.AddrPort) bool
	// Translate says where a destination really is, such as the IPv4 address inside a NAT64 address; false leaves it as it
	// is. nil: all are where they say.
	Translate func(dst netip.Addr) (netip.Addr, bool)

	// Control is called with each socket before it is used, as net.Dialer.Control is: to mark it, so that the kernel does
	// not route it into a tunnel of this very node.
	Control func(network, address string, c syscall.RawConn) error
	// Dial connects with network tcp4 or tcp6; nil: from the host, with Control.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// ListenPacket opens a socket with network udp4 or udp6; nil: of the host, with Control.
	ListenPacket func(ctx context.Context, network, address string) (net.PacketConn, error)

	MaxFlows          int   // TCP connections and UDP ports of all clients; default 2048
	MaxFlowsPerClient int   // of one client; default a quarter of MaxFlows
	Memory            int64 // bytes for flows, at least 80 KiB for each of MaxFlows; default 256 MiB or what MaxFlows need

	ConnectTimeout time.Duration // of TCP; default 20 s
	UDPIdle        time.Duration // a UDP port is forgotten after; default 2 min (RFC 4787 section 4.3)
	DNSIdle        time.Duration // the same for a port that has only sent to port 53; default 10 s
}

// Stats counts what an Exit does, since Open where it is no count of the present.
type Stats struct {
	TCP, UDP, Pings int // open now

	Flows   uint64 // TCP connections and UDP ports that were let through
	Refused uint64 // packets and connections that Allow or the fixed rules refused
	Limited uint64 // the same, by a limit
	Failed  uint64 // TCP connections that the outside did not take, and sockets that could not be opened
	Dropped uint64 // packets lost: queues full, or of a kind that does not go through
	Bad     uint64 // malformed packets from clients

	Sent, Received uint64 // payload bytes to and from the outside
}
