package gateway

import (
	"encoding/binary"
	"net/netip"

	"weft/tun"
)

// IP protocol numbers that mean something here.
const (
	protoICMP     = 1
	protoTCP      = 6
	protoUDP      = 17
	protoFragment = 44
	protoICMP6    = 58

	keyFragment = 255 // in flow keys: the later fragments of a packet
	minFragment = 512 // bytes; a host fragments at 1,280 or more, so only an attack has smaller ones before the last
)

// TCP flags.
const (
	tcpFIN = 1 << 0
	tcpSYN = 1 << 1
	tcpRST = 1 << 2
	tcpACK = 1 << 4
)

// addr is an IP address in two words, an IPv4 one as ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2): cheap to compare and to mask.
type addr struct{ hi, lo uint64 }

const mapped = 0xffff << 32

func addrOf(a netip.Addr) addr {
	b := a.As16()
	return addr{binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:])}
}

func addr4(v uint32) addr { return addr{0, mapped | uint64(v)} }

func (a addr) is4() bool { return a.hi == 0 && a.lo>>32 == 0xffff }

func (a addr) netip() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], a.hi)
	binary.BigEndian.PutUint64(b[8:], a.lo)
	return netip.AddrFrom16(b).Unmap()
}

// isMesh reports whether the address lies in 200::/7.
func (a addr) isMesh() bool { return a.hi>>57 == 0x02>>1 }

// mask is a prefix over addr.
type mask struct {
	addr, bits addr
	six        bool // of IPv6: ::/0 does not contain IPv4
}

func maskOf(p netip.Prefix) mask {
	n := p.Bits()
	if p.Addr().Is4() {
		n += 96
	}
	m := addr{^uint64(0), ^uint64(0)}
	if n <= 64 {
		m.hi, m.lo = ^uint64(0)<<(64-n), 0
	} else {
		m.lo = ^uint64(0) << (128 - n)
	}
	a := addrOf(p.Addr())
	return mask{addr{a.hi & m.hi, a.lo & m.lo}, m, p.Addr().Is6()}
}

func (m *mask) contains(a addr) bool {
	return a.hi&m.bits.hi == m.addr.hi && a.lo&m.bits.lo == m.addr.lo && m.six != a.is4()
}

// flowKey names a flow as its packets carry it. Echo has its identifier in place of both ports, fragments their
// identification.
type flowKey struct {
	src, dst addr
	tail     uint64
}

func tail(src, dst uint16, proto uint8) uint64 {
	return uint64(src) | uint64(dst)<<16 | uint64(proto)<<32
}

func (k *flowKey) proto() uint8    { return uint8(k.tail >> 32) }
func (k *flowKey) dstPort() uint16 { return uint16(k.tail >> 16) }

// reverse is the key of the packets that answer.
func (k flowKey) reverse() flowKey {
	t := k.tail
	if k.proto() != keyFragment {
		t = t&^0xffffffff | t>>16&0xffff | t&0xffff<<16
	}
	return flowKey{k.dst, k.src, t}
}

type class uint8

const (
	classFlow          class = iota // TCP and UDP
	classEcho                       // an echo request
	classEchoReply                  //
	classError                      // an ICMP error; about tells what it quotes
	classLaterFragment              // nothing of the transport header is in it
)

// packet is what this package needs to know of an IP packet.
type packet struct {
	key      flowKey
	about    flowKey
	class    class
	flags    uint8  // TCP's
	at       uint16 // of the transport header
	payload  bool   // there is something behind a TCP header
	fragment bool   // a first fragment with more to come
	id       uint32 // of the fragments
}

func (p *packet) fragmentKey() flowKey {
	return flowKey{p.key.src, p.key.dst, uint64(p.id) | keyFragment<<32}
}

// parse reads the headers of ip. A stranger's packet must agree with every length it states, and may have no IPv4 options
// and no IPv6 extension header but one for fragments: the internet drops the others anyway (RFC 7126, RFC 7872), and each
// of them is a way to show a filter something else than the receiver sees. host says that the packet comes from this
// machine's own kernel: lengths of super-packets do not matter then, and IPv4 options may stand.
func (p *packet) parse(ip []byte, host bool) reason {
	if len(ip) < 20 {
		return malformed
	}
	switch ip[0] >> 4 {
	case 4:
		return p.parse4(ip, host)
	case 6:
		return p.parse6(ip, host)
	}
	return malformed
}

func (p *packet) parse4(ip []byte, host bool) reason {
	at := int(ip[0]&0x0f) * 4
	if at < 20 || len(ip) < at {
		return malformed
	}
	if !host && (at != 20 || int(binary.BigEndian.Uint16(ip[2:])) != len(ip) || ip[8] == 0) {
		return malformed
	}
	p.key.src, p.key.dst = addr4(binary.BigEndian.Uint32(ip[12:])), addr4(binary.BigEndian.Uint32(ip[16:]))
	frag := binary.BigEndian.Uint16(ip[6:])
	offset, more := int(frag&0x1fff)*8, frag&0x2000 != 0
	if offset != 0 || more {
		// The protocol is part of what identifies IPv4 fragments (RFC 791 section 3.2).
		p.id = uint32(binary.BigEndian.Uint16(ip[4:])) | uint32(ip[9])<<16
		if r := p.fragmentOf(offset, len(ip)-at, more); r != passed || offset != 0 {
			return r
		}
	}
	return p.transport(ip[at:], at, ip[9], false, host)
}

func (p *packet) parse6(ip []byte, host bool) reason {
	if len(ip) < 40 || !host && (int(binary.BigEndian.Uint16(ip[4:]))+40 != len(ip) || ip[7] == 0) {
		return malformed
	}
	p.key.src = addr{binary.BigEndian.Uint64(ip[8:]), binary.BigEndian.Uint64(ip[16:])}
	p.key.dst = addr{binary.BigEndian.Uint64(ip[24:]), binary.BigEndian.Uint64(ip[32:])}
	if p.key.src.is4() || p.key.dst.is4() {
		return malformed // ::ffff:0:0/96 never travels; here it would pass for IPv4
	}
	proto, at := ip[6], 40
	if proto == protoFragment {
		if len(ip) < 48 {
			return malformed
		}
		field := binary.BigEndian.Uint16(ip[42:])
		p.id = binary.BigEndian.Uint32(ip[44:])
		proto, at = ip[40], 48
		if field&0xfff9 != 0 { // else an atomic fragment (RFC 6946): a whole packet
			if r := p.fragmentOf(int(field&^7), len(ip)-48, field&1 != 0); r != passed || field&^7 != 0 {
				return r
			}
		}
	}
	return p.transport(ip[at:], at, proto, true, host)
}

// fragmentOf checks a fragment of size bytes. Behind it p is a later fragment when offset is not 0.
func (p *packet) fragmentOf(offset, size int, more bool) reason {
	if more && (size%8 != 0 || size < minFragment) || offset+size > 65535 || offset != 0 && offset < minFragment || size == 0 {
		return malformed
	}
	p.fragment = more && offset == 0
	if offset != 0 {
		p.class = classLaterFragment
		p.key = p.fragmentKey()
	}
	return passed
}

// transport reads the transport header b, which stands at at.
func (p *packet) transport(b []byte, at int, proto uint8, six, host bool) reason {
	p.at = uint16(at)
	switch proto {
	case protoTCP:
		if len(b) < 20 || int(b[12]>>4)*4 < 20 || int(b[12]>>4)*4 > len(b) {
			return malformed
		}
		p.flags = b[13]
		switch f := p.flags & (tcpFIN | tcpSYN | tcpRST | tcpACK); {
		case f == 0, f&tcpSYN != 0 && f&(tcpFIN|tcpRST) != 0, f == tcpFIN:
			return malformed // no TCP sends these; scanners do
		}
		p.payload = len(b) > int(b[12]>>4)*4
	case protoUDP:
		if len(b) < 8 || !host && !p.fragment && int(binary.BigEndian.Uint16(b[4:])) != len(b) {
			return malformed
		}
	case protoICMP, protoICMP6:
		if six != (proto == protoICMP6) {
			return protocol
		}
		return p.icmp(b, six)
	default:
		return protocol
	}
	p.key.tail = tail(binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), proto)
	return passed
}

// icmp reads an ICMP message: echo and errors, for the rest belongs to one link (RFC 792, RFC 4443).
func (p *packet) icmp(b []byte, six bool) reason {
	if len(b) < 8 {
		return malformed
	}
	proto, request, reply, err := uint8(protoICMP), uint8(8), uint8(0), b[0] == 3 || b[0] == 11 || b[0] == 12
	if six {
		proto, request, reply, err = protoICMP6, 128, 129, b[0] >= 1 && b[0] <= 4
	}
	id := binary.BigEndian.Uint16(b[4:])
	p.key.tail = tail(id, id, proto)
	switch {
	case b[0] == request:
		p.class = classEcho
	case b[0] == reply:
		p.class = classEchoReply
	case err:
		p.class = classError
		p.key.tail = tail(0, 0, proto)
		if p.fragment || !p.quoted(b[8:], six) {
			return malformed
		}
	default:
		return protocol
	}
	return passed
}

// quoted reads what an ICMP error quotes: the headers of a packet that was sent to, or by, whom the error goes to.
func (p *packet) quoted(q []byte, six bool) bool {
	var at int
	var proto uint8
	if six {
		if len(q) < 48 || q[0]>>4 != 6 {
			return false
		}
		p.about.src = addr{binary.BigEndian.Uint64(q[8:]), binary.BigEndian.Uint64(q[16:])}
		p.about.dst = addr{binary.BigEndian.Uint64(q[24:]), binary.BigEndian.Uint64(q[32:])}
		proto, at = q[6], 40
		if proto == protoFragment {
			if binary.BigEndian.Uint16(q[42:])&^7 != 0 {
				return false
			}
			proto, at = q[40], 48
		}
	} else {
		if len(q) < 28 || q[0]>>4 != 4 {
			return false
		}
		if at = int(q[0]&0x0f) * 4; at < 20 || binary.BigEndian.Uint16(q[6:])&0x1fff != 0 {
			return false
		}
		p.about.src, p.about.dst = addr4(binary.BigEndian.Uint32(q[12:])), addr4(binary.BigEndian.Uint32(q[16:]))
		proto = q[9]
	}
	if len(q) < at+8 || p.about.src != p.key.dst {
		return false // told to somebody who did not send it
	}
	b := q[at:]
	switch proto {
	case protoTCP, protoUDP:
		p.about.tail = tail(binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), proto)
	case protoICMP, protoICMP6:
		if six != (proto == protoICMP6) {
			return false
		}
		id := binary.BigEndian.Uint16(b[4:])
		p.about.tail = tail(id, id, proto)
	default:
		return false
	}
	return true
}

// prohibited builds in buf the ICMP error "communication administratively prohibited" (RFC 1812 section 5.2.7.1: type 3 code
// 13; RFC 4443 section 3.1: type 1 code 1) that answers ip. It seems to come from where ip was to go, which is what the
// sender's host finds least strange: no address of this gateway is on the way that the sender knows. nil: none is due.
func prohibited(buf, ip []byte, p *packet) []byte {
	if p.class == classError || p.class == classEchoReply || p.class == classLaterFragment || p.flags&tcpRST != 0 {
		return nil
	}
	if ip[0]>>4 == 4 {
		if p.key.dst.lo>>28&0xf >= 0xe { // multicast, broadcast: never answered
			return nil
		}
		quote := ip[:min(len(ip), 548)]
		b := append(buf[:0], 0x45, 0, 0, 0, 0, 0, 0, 0, 64, protoICMP, 0, 0)
		b = append(append(b, ip[16:20]...), ip[12:16]...)
		b = append(append(b, 3, 13, 0, 0, 0, 0, 0, 0), quote...)
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint16(b[10:], ^tun.Sum(b[:20], 0))
		binary.BigEndian.PutUint16(b[22:], ^tun.Sum(b[20:], 0))
		return b
	}
	if p.key.dst.hi>>56 == 0xff {
		return nil
	}
	quote := ip[:min(len(ip), 1280-48)]
	b := append(buf[:0], 0x60, 0, 0, 0, 0, 0, protoICMP6, 64)
	b = append(append(b, ip[24:40]...), ip[8:24]...)
	b = append(append(b, 1, 1, 0, 0, 0, 0, 0, 0), quote...)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	binary.BigEndian.PutUint16(b[42:], ^tun.Sum(b[40:], tun.PseudoSum(b, protoICMP6, len(b)-40)))
	return b
}
