// Package netstack is a tun.Device without an operating system behind it: a TCP/IP stack in the process (gvisor), for a
// node that runs without root, on any system. What the node itself and the apps do in the mesh goes through
// [Stack.DialContext], [Stack.Listen] and [Stack.ListenPacket], which have the shapes of net.Dialer and net.ListenConfig.
//
// Outside the mesh it goes from the addresses that a gateway leases, IPv4 and IPv6, which [Stack.SetOutside] sets and changes.
//
// node makes a [Stack] and gives it to session as the device and to proxy as the network. Everything but the device's Read
// and a Writer (one goroutine each) may be called from any goroutine. [Stack.Close] ends all connections and returns when
// the stack's goroutines have.
//
// Bulk TCP travels as super-packets: the stack hands over up to 60,000 bytes at once with a partial checksum, which session
// cuts, and segments that arrive in a row go to the stack as one.
//
// gateway/exit builds its stack on the same [Link] and [Tune].
//
// Builds with the router tag leave gvisor out; [New] then says so.
package netstack

import "net/netip"

// Config says what the stack is in the mesh.
type Config struct {
	Addr netip.Addr // the node's address
	MTU  int        // the largest IP packet that the mesh carries for it; at least 1280 (RFC 8200 section 5)
}
