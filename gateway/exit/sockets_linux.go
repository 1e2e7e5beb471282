//go:build !router

package exit

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// datagrams are buffers for receiving: one for each socket that is being read just now, not for each that is open.
var datagrams = sync.Pool{New: func() any { return new([datagram]byte) }}

// receive calls each with what c receives and failed with what the network says of datagrams that c has sent, until c is
// closed. What each is given is only lent.
func receive(c net.PacketConn, each func(b []byte, from netip.AddrPort), failed func(to netip.AddrPort, why unreachable)) {
	u, ok := c.(*net.UDPConn)
	if !ok {
		readAll(c, each)
		return
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return
	}
	for raw.Read(func(fd uintptr) bool { return drain(int(fd), each, failed) }) == nil {
	}
}

// drain reads what there is; false if there is nothing. No one socket may keep a buffer, or its caller, for long.
func drain(fd int, each func([]byte, netip.AddrPort), failed func(netip.AddrPort, unreachable)) bool {
	buf := datagrams.Get().(*[datagram]byte)
	defer datagrams.Put(buf)
	for range 64 {
		n, from, err := unix.Recvfrom(fd, buf[:], unix.MSG_DONTWAIT)
		switch err {
		case nil:
			each(buf[:n], sockAddr(from))
		case unix.EINTR:
		case unix.EAGAIN:
			if !drainErrors(fd, buf[:], failed) {
				return false
			}
		default:
			drainErrors(fd, buf[:], failed)
		}
	}
	return true
}

// drainErrors reads the socket's error queue (ip(7), IP_RECVERR); false if it is empty.
func drainErrors(fd int, buf []byte, failed func(netip.AddrPort, unreachable)) (any bool) {
	var control [512]byte
	for range 16 {
		_, n, _, to, err := unix.Recvmsg(fd, buf, control[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			return any
		}
		any = true
		msgs, err := unix.ParseSocketControlMessage(control[:n])
		if err != nil {
			continue
		}
		for _, m := range msgs {
			// struct sock_extended_err: the errno, then origin, type and code
			if len(m.Data) < 7 || m.Header.Type != unix.IP_RECVERR && m.Header.Type != unix.IPV6_RECVERR {
				continue
			}
			switch unix.Errno(binary.NativeEndian.Uint32(m.Data)) {
			case unix.ECONNREFUSED:
				failed(sockAddr(to), noPort)
			case unix.EHOSTUNREACH:
				failed(sockAddr(to), noHost)
			case unix.ENETUNREACH:
				failed(sockAddr(to), noNetwork)
			}
		}
	}
	return any
}

// wantErrors makes the kernel keep what the network says of datagrams. Without it the clients wait a little longer.
func wantErrors(c net.PacketConn, v4 bool) {
	u, ok := c.(*net.UDPConn)
	if !ok {
		return
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if v4 {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1)
		} else {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
		}
	})
}

// sender returns what sends a datagram, and never waits: whoever sends is session's goroutine.
func sender(c net.PacketConn) func(b []byte, to netip.AddrPort) error {
	u, ok := c.(*net.UDPConn)
	if !ok {
		return writeTo(c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return writeTo(c)
	}
	return func(b []byte, to netip.AddrPort) error {
		var sa unix.Sockaddr
		if to.Addr().Is4() {
			sa = &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
		} else {
			sa = &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
		}
		var err error
		if cerr := raw.Write(func(fd uintptr) bool {
			// Twice, since what is reported first may be the failure of an earlier datagram.
			for range 2 {
				if err = unix.Sendto(int(fd), b, unix.MSG_DONTWAIT, sa); err == nil || err == unix.EAGAIN {
					break
				}
			}
			return true
		}); cerr != nil {
			return cerr
		}
		return err
	}
}

func sockAddr(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// openPing opens a socket for echo requests: a ping socket, which needs no rights where net.ipv4.ping_group_range allows it,
// else a raw one.
func openPing(ctx context.Context, v4 bool, control func(string, string, syscall.RawConn) error) (c net.PacketConn, raw bool, err error) {
	family, proto, kind, at := unix.AF_INET6, unix.IPPROTO_ICMPV6, "ip6:ipv6-icmp", "::"
	if v4 {
		family, proto, kind, at = unix.AF_INET, unix.IPPROTO_ICMP, "ip4:icmp", "0.0.0.0"
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		c, rawErr := (&net.ListenConfig{Control: control}).ListenPacket(ctx, kind, at)
		if rawErr != nil {
			return nil, false, fmt.Errorf("%w; %w", err, rawErr)
		}
		return c, true, nil
	}
	file := os.NewFile(uintptr(fd), kind)
	defer file.Close() // FilePacketConn has its own
	if c, err = net.FilePacketConn(file); err != nil {
		return nil, false, err
	}
	if control != nil {
		conn, err := c.(syscall.Conn).SyscallConn()
		if err == nil {
			err = control(kind, at, conn)
		}
		if err != nil {
			c.Close()
			return nil, false, err
		}
	}
	return c, false, nil
}
