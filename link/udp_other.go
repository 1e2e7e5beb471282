//go:build !linux

package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"weft/forward"
)

// udpSocket is the portable socket: one datagram a read and a send, on Go's own dual-stack UDP socket.
type udpSocket struct {
	conn        *net.UDPConn
	unreachable func(forward.Endpoint)
}

func openUDP(at netip.AddrPort, unreachable func(forward.Endpoint), control Control) (Socket, error) {
	host := ""
	if at.Addr().IsValid() && at.Addr() != netip.IPv6Unspecified() {
		host = at.Addr().String()
	}
	lc := net.ListenConfig{Control: control}
	pc, err := lc.ListenPacket(context.Background(), "udp", net.JoinHostPort(host, fmt.Sprint(at.Port())))
	if err != nil {
		return nil, fmt.Errorf("open UDP socket: %w", err)
	}
	c := pc.(*net.UDPConn)
	_ = c.SetReadBuffer(socketBuffer) // as much as the system allows
	_ = c.SetWriteBuffer(socketBuffer)
	return &udpSocket{conn: c, unreachable: unreachable}, nil
}

func (s *udpSocket) LocalPort() uint16 { return uint16(s.conn.LocalAddr().(*net.UDPAddr).Port) }
func (s *udpSocket) Close() error      { return s.conn.Close() }

func (s *udpSocket) Receive(msgs []Message) (int, error) {
	for range 1000 {
		n, from, err := s.conn.ReadFromUDPAddrPort(msgs[0].Buf)
		if errors.Is(err, net.ErrClosed) {
			return 0, net.ErrClosed
		}
		if err != nil { // Windows reports an unreachable peer as an error of the next read
			continue
		}
		msgs[0].N, msgs[0].Seg = n, n
		msgs[0].From = endpointOf(from, zoneIndex(from.Addr().Zone()))
		return 1, nil
	}
	return 0, errors.New("read UDP socket: it keeps failing")
}

func (s *udpSocket) Send(to forward.Endpoint, buf []byte, seg int) error {
	ap := to.AddrPort()
	for at := 0; at < len(buf); at += seg {
		if _, err := s.conn.WriteToUDPAddrPort(buf[at:min(at+seg, len(buf))], ap); err != nil {
			return err
		}
	}
	return nil
}
