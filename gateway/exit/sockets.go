//go:build !router

package exit

import (
	"errors"
	"net"
	"net/netip"
)

// datagram is the largest that a socket delivers.
const datagram = 64 << 10

// readAll receives with a buffer of its own, for connections that are no sockets of the system.
func readAll(c net.PacketConn, each func(b []byte, from netip.AddrPort)) {
	buf := make([]byte, datagram)
	for {
		n, from, err := c.ReadFrom(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			var timeout net.Error
			if !errors.As(err, &timeout) { // not of the network's making: it would come again at once
				return
			}
		default:
			each(buf[:n], addrPortOf(from))
		}
	}
}

func addrPortOf(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		ap = a.AddrPort()
	case *net.IPAddr:
		ip, _ := netip.AddrFromSlice(a.IP)
		ap = netip.AddrPortFrom(ip, 0)
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// writeTo sends with the connection's own method.
func writeTo(c net.PacketConn) func(b []byte, to netip.AddrPort) error {
	return func(b []byte, to netip.AddrPort) error {
		_, err := c.WriteTo(b, net.UDPAddrFromAddrPort(to))
		return err
	}
}
