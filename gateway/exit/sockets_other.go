//go:build !router && !linux

package exit

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/net/icmp"
)

// receive calls each with what c receives, until it is closed.
func receive(c net.PacketConn, each func(b []byte, from netip.AddrPort), _ func(to netip.AddrPort, why unreachable)) {
	readAll(c, each)
}

func sender(c net.PacketConn) func(b []byte, to netip.AddrPort) error { return writeTo(c) }

// wantErrors does nothing: only Linux tells which datagram has failed.
func wantErrors(net.PacketConn, bool) {}

// openPing opens a socket for echo requests. control is not called with it.
func openPing(_ context.Context, v4 bool, control func(string, string, syscall.RawConn) error) (c net.PacketConn, raw bool, err error) {
	if control != nil {
		return nil, false, errors.New("ping sockets cannot be kept out of the tunnel on this system")
	}
	if v4 {
		c, err = icmp.ListenPacket("udp4", "0.0.0.0")
	} else {
		c, err = icmp.ListenPacket("udp6", "::")
	}
	return c, false, err
}
