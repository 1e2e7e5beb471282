package firewall

import "encoding/binary"

// IP protocol numbers that mean something here.
const (
	protoHopByHop  = 0
	protoICMPv4    = 1
	protoTCP       = 6
	protoUDP       = 17
	protoRouting   = 43
	protoFragment  = 44
	protoICMP      = 58
	protoNone      = 59
	protoDestOpts  = 60
	maxExtensions  = 8   // headers between the IPv6 header and the transport; nobody sends more in good faith
	minFragment    = 512 // bytes; senders fragment at 1280 or more, so only an attack has smaller ones before the last
	ipv6HeaderSize = 40
	ipv4HeaderSize = 20
)

// TCP flags.
const (
	fin uint8 = 1 << 0
	syn uint8 = 1 << 1
	rst uint8 = 1 << 2
	ack uint8 = 1 << 4
)

type direction bool

const (
	inbound  direction = false
	outbound direction = true
)

type class uint8

const (
	classFlow          class = iota // TCP, UDP and whatever else has two ends
	classEchoRequest                // ICMPv6 128
	classEchoReply                  // ICMPv6 129
	classError                      // ICMPv6 1 to 127
	classLaterFragment              // no transport header in it
)

// packet is what the firewall needs to know of an IP packet.
type packet struct {
	key      flowKey
	about    flowKey // of an ICMP error: the flow that it is about
	class    class
	flags    uint8 // TCP's
	fragment bool  // a first fragment with more to come
	id       uint32
}

// fragmentKey is where the later fragments of a first one are looked up.
func (p *packet) fragmentKey() flowKey {
	k := p.key
	k[4] = uint64(p.id) | protoFragment<<32
	return k
}

// parse reads the headers of ip and reports whether they make sense. Inbound packets are held to every length they state;
// outbound ones come from this host, and may be super-packets.
//
// IPv4 is taken only where allow4 says so, with its addresses as ::ffff:0:0/96 and ICMP as ICMPv6 that says the same.
func (p *packet) parse(ip []byte, dir direction, allow4 bool) bool {
	if allow4 && len(ip) >= ipv4HeaderSize && ip[0]>>4 == 4 {
		return p.parse4(ip, dir)
	}
	if len(ip) < ipv6HeaderSize || ip[0]>>4 != 6 {
		return false
	}
	here, there := 24, 8
	if dir == outbound {
		here, there = 8, 24
	} else if len(ip) != ipv6HeaderSize+int(binary.BigEndian.Uint16(ip[4:])) {
		return false
	}
	p.key = flowKey{le(ip[here:]), le(ip[here+8:]), le(ip[there:]), le(ip[there+8:])}
	proto, at := ip[6], ipv6HeaderSize
	if proto != protoTCP && proto != protoUDP {
		var later, ok bool
		if proto, at, later, ok = p.extensions(ip, false); !ok {
			return false
		}
		if later {
			p.class = classLaterFragment
			p.key = p.fragmentKey()
			return true
		}
	}
	return p.transport(ip[at:], proto, dir)
}

// mapped returns an IPv4 address as the words of ::ffff:a.b.c.d.
func mapped(b []byte) (hi, lo uint64) {
	return 0, 0xffff0000 | uint64(binary.LittleEndian.Uint32(b))<<32
}

// parse4 is parse for IPv4 (RFC 791).
func (p *packet) parse4(ip []byte, dir direction) bool {
	hdr := int(ip[0]&0x0f) * 4
	if hdr < ipv4HeaderSize || hdr > len(ip) || dir == inbound && int(binary.BigEndian.Uint16(ip[2:])) != len(ip) {
		return false
	}
	here, there := 16, 12
	if dir == outbound {
		here, there = 12, 16
	}
	p.key[0], p.key[1] = mapped(ip[here:])
	p.key[2], p.key[3] = mapped(ip[there:])
	word, proto := binary.BigEndian.Uint16(ip[6:]), ip[9]
	p.id = uint32(binary.BigEndian.Uint16(ip[4:])) | uint32(proto)<<16
	offset := int(word&0x1fff) * 8
	p.fragment = word&0x2000 != 0
	switch {
	case offset == 0:
		return p.transport(ip[hdr:], icmpOf4(proto), dir)
	case offset < 64 || offset+len(ip)-hdr > 65535: // would overwrite the header that was judged (RFC 1858)
		return false
	}
	p.class = classLaterFragment
	p.key = p.fragmentKey()
	return true
}

// icmpOf4 makes ICMP one protocol; ICMPv6 over IPv4 means nothing, as ICMP over IPv6.
func icmpOf4(proto uint8) uint8 {
	switch proto {
	case protoICMPv4:
		return protoICMP
	case protoICMP:
		return protoNone
	}
	return proto
}

// type6 is the ICMPv6 type that says the same as an ICMP type (RFC 792), 255 when none does.
func type6(t uint8) uint8 {
	switch t {
	case 8:
		return 128
	case 0:
		return 129
	case 3, 11, 12: // unreachable, time exceeded, parameter problem
		return 1
	}
	return 255
}

// extensions walks the extension headers (RFC 8200 section 4) and returns the protocol behind them and where it starts, or
// later for a fragment that does not have it. A quote in an ICMP error may be cut short.
func (p *packet) extensions(ip []byte, quote bool) (proto uint8, at int, later, ok bool) {
	proto, at = ip[6], ipv6HeaderSize
	for range maxExtensions {
		switch proto {
		case protoHopByHop, protoDestOpts, protoRouting:
			if len(ip) < at+8 {
				return 0, 0, false, false
			}
			if proto == protoHopByHop && at != ipv6HeaderSize { // RFC 8200 section 4.1: only first
				return 0, 0, false, false
			}
			if proto == protoRouting && ip[at+3] != 0 { // segments left: we are no waypoint (RFC 5095)
				return 0, 0, false, false
			}
			proto, at = ip[at], at+8+8*int(ip[at+1])
		case protoFragment:
			if len(ip) < at+8 || p.fragment {
				return 0, 0, false, false
			}
			offset, more := int(binary.BigEndian.Uint16(ip[at+2:])&^7), ip[at+3]&1 != 0
			p.id = binary.BigEndian.Uint32(ip[at+4:])
			size := len(ip) - at - 8
			switch {
			case !quote && more && (size%8 != 0 || size < minFragment), offset+size > 65535:
				return 0, 0, false, false
			case offset != 0 && offset < minFragment: // would overwrite the header that was judged
				return 0, 0, false, false
			case offset != 0:
				return 0, 0, true, true
			}
			p.fragment = more // neither offset nor more: an atomic fragment, RFC 6946
			proto, at = ip[at], at+8
		case protoNone:
			return 0, 0, false, false
		default:
			if at > len(ip) || p.fragment && at > ipv6HeaderSize+minFragment/2 {
				return 0, 0, false, false
			}
			return proto, at, false, true
		}
		if at > len(ip) {
			return 0, 0, false, false
		}
	}
	return 0, 0, false, false
}

// transport reads the transport header at the start of b.
func (p *packet) transport(b []byte, proto uint8, dir direction) bool {
	switch proto {
	case protoTCP:
		if len(b) < 20 || int(b[12]>>4)*4 < 20 || int(b[12]>>4)*4 > len(b) {
			return false
		}
		p.flags = b[13]
		switch f := p.flags & (fin | syn | rst | ack); {
		case f == 0, f&syn != 0 && f&(fin|rst) != 0, f == fin:
			return false // no TCP sends these; scanners do
		}
		p.ports(b, proto, dir)
	case protoUDP:
		if len(b) < 8 {
			return false
		}
		if n := int(binary.BigEndian.Uint16(b[4:])); dir == inbound && !p.fragment && n != len(b) {
			return false
		}
		p.ports(b, proto, dir)
	case protoICMP:
		return p.icmp(b, dir)
	default:
		p.key[4] = tail(0, 0, proto)
	}
	return true
}

func (p *packet) ports(b []byte, proto uint8, dir direction) {
	src, dst := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	if dir == outbound {
		p.key[4] = tail(src, dst, proto)
	} else {
		p.key[4] = tail(dst, src, proto)
	}
}

// icmp reads an ICMPv6 message (RFC 4443). Neighbour discovery, multicast listening and the rest belong to one link and
// have no business in the mesh.
func (p *packet) icmp(b []byte, dir direction) bool {
	if len(b) < 8 {
		return false
	}
	t := b[0]
	if v4 := p.key[1]&0xffffffff == 0xffff0000 && p.key[0] == 0; v4 {
		t = type6(t)
	}
	switch {
	case t == 128 || t == 129:
		p.class = classEchoRequest
		if t == 129 {
			p.class = classEchoReply
		}
		p.key[4] = tail(binary.BigEndian.Uint16(b[4:]), 0, protoICMP)
		return true
	case t >= 1 && t < 128:
		p.class = classError
		p.key[4] = tail(0, 0, protoICMP)
		if p.fragment {
			return false // RFC 4443 section 2.4(c): an error fits the minimum MTU
		}
		if dir == inbound {
			return p.quoted(b[8:])
		}
		return true
	}
	return false
}

// quoted reads the packet that an ICMP error quotes: one that this node sent.
func (p *packet) quoted(ip []byte) bool {
	if p.key[1]&0xffffffff == 0xffff0000 && p.key[0] == 0 {
		return p.quoted4(ip)
	}
	if len(ip) < ipv6HeaderSize || ip[0]>>4 != 6 {
		return false
	}
	var q packet
	proto, at, later, ok := q.extensions(ip, true)
	if !ok || later || len(ip) < at+8 {
		return false
	}
	b := ip[at:]
	p.about = flowKey{le(ip[8:]), le(ip[16:]), le(ip[24:]), le(ip[32:])}
	return p.aboutFlow(b, proto)
}

// quoted4 is quoted for IPv4.
func (p *packet) quoted4(ip []byte) bool {
	if len(ip) < ipv4HeaderSize || ip[0]>>4 != 4 {
		return false
	}
	hdr := int(ip[0]&0x0f) * 4
	if hdr < ipv4HeaderSize || len(ip) < hdr+8 || binary.BigEndian.Uint16(ip[6:])&0x1fff != 0 {
		return false
	}
	p.about[0], p.about[1] = mapped(ip[12:])
	p.about[2], p.about[3] = mapped(ip[16:])
	return p.aboutFlow(ip[hdr:], icmpOf4(ip[9]))
}

// aboutFlow completes the key of the flow that an error is about from the start of its transport header.
func (p *packet) aboutFlow(b []byte, proto uint8) bool {
	if p.about[0] != p.key[0] || p.about[1] != p.key[1] {
		return false // told to somebody who did not send it
	}
	switch proto {
	case protoTCP, protoUDP:
		p.about[4] = tail(binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), proto)
	case protoICMP:
		p.about[4] = tail(binary.BigEndian.Uint16(b[4:]), 0, protoICMP)
	default:
		p.about[4] = tail(0, 0, proto)
	}
	return true
}
