package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/forward"
)

// udpSocket is the hot path of the underlay on Linux: recvmmsg with UDP GRO in, sendmsg with UDP GSO out, raw socket
// addresses both ways, and no allocation per batch. The Go runtime's poller parks the reader when there is nothing.
//
// One dual-stack socket serves IPv6 and IPv4 (as 4-in-6), so that a node has one port. Where IPv6 is missing it is an
// IPv4 socket.
type udpSocket struct {
	conn        *net.UDPConn
	raw         syscall.RawConn
	v4          bool
	port        uint16
	unreachable func(forward.Endpoint)

	noGSO   atomic.Bool // the kernel has no UDP GSO at all
	senders sync.Pool   // *sendOp

	recv recvOp

	errMu  sync.Mutex // guards what follows
	errBuf [512]byte
	errSA  unix.RawSockaddrInet6
	errOOB [256]byte
}

// mmsghdr is struct mmsghdr; Go's alignment of the last field equals C's on every Linux port.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

const oobSize = 64 // one cmsg of 4 bytes, with room

// recvOp is the state of one batch read, made once so that the poller's callback need not be a fresh closure.
type recvOp struct {
	hdrs [receiveBatch]mmsghdr
	iovs [receiveBatch]unix.Iovec
	sas  [receiveBatch]unix.RawSockaddrInet6
	oobs [receiveBatch][oobSize]byte
	want int
	big  bool // the last reads were long: few of them at a time stay in the cache
	n    int
	err  syscall.Errno
	call func(fd uintptr) bool
}

// sendOp is the state of one send.
type sendOp struct {
	hdr  unix.Msghdr
	iov  unix.Iovec
	sa   unix.RawSockaddrInet6
	oob  [24]byte // CMSG_SPACE(2), on every port at most 24
	n    int
	err  syscall.Errno
	try  func(fd uintptr)
	wait func(fd uintptr) bool
}

func openUDP(at netip.AddrPort, unreachable func(forward.Endpoint), control Control) (Socket, error) {
	s := &udpSocket{unreachable: unreachable}
	lc := net.ListenConfig{Control: func(network, address string, c syscall.RawConn) (err error) {
		if control != nil {
			if err := control(network, address, c); err != nil {
				return err
			}
		}
		if e := c.Control(func(fd uintptr) { err = s.options(int(fd), network == "udp4") }); e != nil {
			return e
		}
		return err
	}}
	network, host := "udp", ""
	switch {
	case !at.Addr().IsValid() || at.Addr() == netip.IPv6Unspecified():
	case at.Addr().Is4():
		network, host = "udp4", at.Addr().String()
	default:
		network, host = "udp6", at.Addr().String()
	}
	pc, err := lc.ListenPacket(context.Background(), network, net.JoinHostPort(host, fmt.Sprint(at.Port())))
	if err != nil && network == "udp" { // a host without IPv6
		pc, err = lc.ListenPacket(context.Background(), "udp4", net.JoinHostPort("", fmt.Sprint(at.Port())))
	}
	if err != nil {
		return nil, fmt.Errorf("open UDP socket: %w", err)
	}
	s.conn = pc.(*net.UDPConn)
	if s.raw, err = s.conn.SyscallConn(); err != nil {
		s.conn.Close()
		return nil, fmt.Errorf("open UDP socket: %w", err)
	}
	s.port = uint16(s.conn.LocalAddr().(*net.UDPAddr).Port)
	var domain int
	if err := s.raw.Control(func(fd uintptr) {
		domain, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
	}); err != nil {
		s.conn.Close()
		return nil, fmt.Errorf("open UDP socket: %w", err)
	}
	s.v4 = domain == unix.AF_INET
	s.recv.call = s.receiveCall
	s.senders.New = func() any {
		op := new(sendOp)
		op.try = op.sendTry
		op.wait = op.sendWait
		return op
	}
	return s, nil
}

// options sets what the socket wants before it is bound. Only the errors that make the socket useless are returned.
func (s *udpSocket) options(fd int, v4 bool) error {
	for _, o := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[0], socketBuffer) != nil { // needs root
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[1], socketBuffer) // as much as the system allows
		}
	}
	// Without GRO (before Linux 5.0) every datagram is a message of its own; that works too.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	// Errors of single destinations are queued, so that a killed neighbour is noticed at once.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	if !v4 {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
	}
	if _, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT); err != nil {
		s.noGSO.Store(true)
	}
	return nil
}

func (s *udpSocket) LocalPort() uint16 { return s.port }
func (s *udpSocket) Close() error      { return s.conn.Close() }

func (s *udpSocket) Receive(msgs []Message) (int, error) {
	op := &s.recv
	op.want = min(len(msgs), receiveBatch)
	if op.big {
		op.want = min(op.want, 2)
	}
	for i := range op.want {
		h := &op.hdrs[i].hdr
		op.iovs[i].Base = &msgs[i].Buf[0]
		op.iovs[i].SetLen(len(msgs[i].Buf))
		h.Iov = &op.iovs[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&op.sas[i]))
		h.Namelen = uint32(unsafe.Sizeof(op.sas[i]))
		h.Control = &op.oobs[i][0]
		h.SetControllen(oobSize)
		h.Flags = 0
	}
	for {
		if err := s.raw.Read(op.call); err != nil {
			if errors.Is(err, net.ErrClosed) {
				return 0, net.ErrClosed
			}
			return 0, fmt.Errorf("read UDP socket: %w", err)
		}
		switch op.err {
		case 0:
		case unix.EINTR:
			continue
		case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EMSGSIZE, unix.EACCES, unix.EPROTO,
			unix.ENETDOWN, unix.EHOSTDOWN, unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.ENONET, unix.ENOMEM, unix.ENOBUFS:
			// About some datagram sent before (RECVERR), or passing: the queue of errors says which.
			s.drainErrors()
			continue
		default:
			return 0, fmt.Errorf("read UDP socket: %w", op.err)
		}
		break
	}
	total := 0
	for i := range op.n {
		m, h := &msgs[i], &op.hdrs[i]
		total += int(h.len)
		m.N = int(h.len)
		m.Seg = m.N
		m.From = parseSockaddr(&op.sas[i])
		if seg := groSize(op.oobs[i][:], int(h.hdr.Controllen)); seg > 0 {
			m.Seg = seg
		}
	}
	op.big = total > op.n*receiveBuffer/4
	return op.n, nil
}

func (s *udpSocket) receiveCall(fd uintptr) bool {
	op := &s.recv
	n, _, e := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&op.hdrs[0])), uintptr(op.want), unix.MSG_DONTWAIT, 0, 0)
	op.n, op.err = int(n), e
	return e != unix.EAGAIN
}

// groSize finds the segment size in control data; zero when there is none.
func groSize(oob []byte, n int) int {
	for n >= unix.SizeofCmsghdr && n <= len(oob) {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		size := int(h.Len)
		if size < unix.SizeofCmsghdr || size > n {
			return 0
		}
		if h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && size >= unix.CmsgLen(4) {
			return int(int32(binary.NativeEndian.Uint32(oob[unix.CmsgLen(0):])))
		}
		step := unix.CmsgSpace(size - unix.CmsgLen(0))
		if step > n {
			return 0
		}
		oob, n = oob[step:], n-step
	}
	return 0
}

func parseSockaddr(sa *unix.RawSockaddrInet6) forward.Endpoint {
	var e forward.Endpoint
	if sa.Family == unix.AF_INET {
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		e.IP[10], e.IP[11] = 0xff, 0xff
		copy(e.IP[12:], sa4.Addr[:])
		e.Port = ntohs(sa4.Port)
		return e
	}
	e.IP, e.Port = sa.Addr, ntohs(sa.Port)
	if sa.Addr[0] == 0xfe && sa.Addr[1]&0xc0 == 0x80 { // a scope only means something for link-local addresses
		e.Scope = sa.Scope_id
	}
	return e
}

func ntohs(v uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], v)
	return binary.BigEndian.Uint16(b[:])
}

func (s *udpSocket) Send(to forward.Endpoint, buf []byte, seg int) error {
	if len(buf) == 0 {
		return nil
	}
	op := s.senders.Get().(*sendOp)
	defer s.senders.Put(op)
	if s.v4 && !addrOf(to).Is4() {
		return unix.EAFNOSUPPORT
	}
	op.address(to, s.v4)
	if len(buf) > seg && !s.noGSO.Load() {
		err := s.send(op, buf, seg)
		switch err {
		case unix.EIO, unix.EINVAL: // no checksum offload on that device, or the segments exceed its MTU
		default:
			return asError(err)
		}
	}
	for at := 0; at < len(buf); at += seg {
		if err := s.send(op, buf[at:min(at+seg, len(buf))], 0); err != 0 {
			return asError(err)
		}
	}
	return nil
}

func asError(e syscall.Errno) error {
	switch e {
	case 0:
		return nil
	case unix.EBADF:
		return net.ErrClosed
	}
	return e
}

// send makes one sendmsg, of segments of seg bytes when seg is not zero.
func (s *udpSocket) send(op *sendOp, buf []byte, seg int) syscall.Errno {
	op.iov.Base = &buf[0]
	op.iov.SetLen(len(buf))
	op.hdr.Iov = &op.iov
	op.hdr.SetIovlen(1)
	op.hdr.Control = nil
	op.hdr.SetControllen(0)
	if seg > 0 {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&op.oob[0]))
		h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
		h.SetLen(unix.CmsgLen(2))
		binary.NativeEndian.PutUint16(op.oob[unix.CmsgLen(0):], uint16(seg))
		op.hdr.Control = &op.oob[0]
		op.hdr.SetControllen(unix.CmsgSpace(2))
	}
	defer func() { op.iov.Base = nil }() // the pool must not keep the caller's buffer alive
	for try := 0; ; try++ {
		// Control, not Write: it takes no lock, so that senders do not wait for one another.
		if s.raw.Control(op.try) != nil {
			return unix.EBADF
		}
		if op.err == unix.EAGAIN { // the send buffer is full: wait for room, which is the back-pressure that TCP above needs
			if s.raw.Write(op.wait) != nil {
				return unix.EBADF
			}
		}
		switch op.err {
		case unix.EINTR:
			continue
		case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH: // perhaps about an earlier datagram (RECVERR)
			s.drainErrors()
			if try < 2 {
				continue
			}
		}
		return op.err
	}
}

func (op *sendOp) sendTry(fd uintptr) {
	n, _, e := unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&op.hdr)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	op.n, op.err = int(n), e
}

func (op *sendOp) sendWait(fd uintptr) bool {
	op.sendTry(fd)
	return op.err != unix.EAGAIN
}

func (op *sendOp) address(to forward.Endpoint, v4 bool) {
	op.hdr.Name = (*byte)(unsafe.Pointer(&op.sa))
	if v4 {
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(&op.sa))
		*sa = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: ntohs(to.Port), Addr: [4]byte(to.IP[12:])}
		op.hdr.Namelen = unix.SizeofSockaddrInet4
		return
	}
	op.sa = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: ntohs(to.Port), Addr: to.IP, Scope_id: to.Scope}
	op.hdr.Namelen = unix.SizeofSockaddrInet6
}

// drainErrors reads the queue of ICMP errors and reports the destinations that nobody listens at.
func (s *udpSocket) drainErrors() {
	s.errMu.Lock()
	defer s.errMu.Unlock()
	var refused [8]forward.Endpoint
	n := 0
	_ = s.raw.Control(func(fd uintptr) {
		for range 64 {
			iov := unix.Iovec{Base: &s.errBuf[0]}
			iov.SetLen(len(s.errBuf))
			h := unix.Msghdr{Name: (*byte)(unsafe.Pointer(&s.errSA)), Namelen: unix.SizeofSockaddrInet6, Iov: &iov, Control: &s.errOOB[0]}
			h.SetIovlen(1)
			h.SetControllen(len(s.errOOB))
			s.errSA = unix.RawSockaddrInet6{}
			_, _, e := unix.Syscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&h)), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if e != 0 {
				return
			}
			if n < len(refused) && refusedErr(s.errOOB[:], int(h.Controllen)) {
				refused[n] = parseSockaddr(&s.errSA)
				n++
			}
		}
	})
	if s.unreachable == nil {
		return
	}
	for _, e := range refused[:n] {
		s.unreachable(e)
	}
}

// refusedErr reports whether the control data of the error queue speaks of a closed port or an unreachable host.
func refusedErr(oob []byte, n int) bool {
	msgs, err := unix.ParseSocketControlMessage(oob[:min(n, len(oob))])
	if err != nil {
		return false
	}
	for _, m := range msgs {
		ours := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR ||
			m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		if ours && len(m.Data) >= 4 {
			switch syscall.Errno(binary.NativeEndian.Uint32(m.Data)) {
			case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH:
				return true
			}
		}
	}
	return false
}

// Carrier asks the driver (ETHTOOL_GLINK): rtnetlink reports changes of a carrier at most once a second.
func (s *udpSocket) Carrier(iface string) bool {
	type value struct{ cmd, data uint32 }
	type ifreq struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	v := &value{cmd: unix.ETHTOOL_GLINK}
	r := &ifreq{data: unsafe.Pointer(v)}
	copy(r.name[:unix.IFNAMSIZ-1], iface)
	carrier := true
	_ = s.raw.Control(func(fd uintptr) {
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, fd, unix.SIOCETHTOOL, uintptr(unsafe.Pointer(r))); e == 0 {
			carrier = v.data != 0
		}
	})
	return carrier
}
