package nat64

import (
	"encoding/binary"
	"net/netip"
)

// maxError6 is how long an ICMPv6 error may be (RFC 4443 section 2.4).
const maxError6 = minMTU6

// plateaus are the MTUs that are common, for routers which say "too big" but not how big (RFC 1191 section 7).
var plateaus = [...]int{65535, 32000, 17914, 8166, 4352, 2002, 1492, 1280}

// Source returns the address that [Table.Map] has to know for [Prefix.To4]: a packet's source, and for an ICMPv6 error the
// destination of the packet that it is about. So an error by a router in front of a device comes from the device's address,
// where the sender expects it. The caller must check that the address is the client's, since nobody has until then.
func Source(p []byte) (netip.Addr, bool) {
	var k, in packet
	if k.parse6(p, false) != nil {
		return netip.Addr{}, false
	}
	if k.proto == protoICMP6 && !k.fragmented() && len(k.body) >= 8 && k.body[0] < 128 {
		if in.parse6(k.body[8:], true) != nil {
			return netip.Addr{}, false
		}
		return netip.AddrFrom16(in.dst6), true
	}
	return netip.AddrFrom16(k.src6), true
}

// error4 appends an ICMPv6 error as ICMP (RFC 7915 section 5.2, 5.3).
func (x *Prefix) error4(dst []byte, k *packet) ([]byte, error) {
	h := [8]byte(k.body)
	about := k.body[8:]
	value := binary.BigEndian.Uint32(h[4:])
	var typ, code byte
	var rest uint32
	switch h[0] {
	case 1: // unreachable
		typ, code = 3, 1
		switch h[1] {
		case 1:
			code = 10
		case 4:
			code = 3
		case 0, 2, 3:
		default:
			return nil, ErrICMP
		}
		about = original(about, int(h[4])*8)
	case 2: // too big
		typ, code = 3, 4
		rest = min(max(value, minMTU6)-(header6-header4), 65535)
	case 3: // time exceeded
		typ, code = 11, h[1]
		about = original(about, int(h[4])*8)
	case 4: // parameter problem
		switch h[1] {
		case 0:
			p, ok := pointer4(value)
			if !ok {
				return nil, ErrICMP
			}
			typ, rest = 12, uint32(p)<<24
		case 1:
			typ, code = 3, 2
		default:
			return nil, ErrICMP
		}
	default:
		return nil, ErrICMP // neighbour discovery, MLD and the like end here
	}

	var in packet
	if in.parse6(about, true) != nil || header4+in.length > 65535 {
		return nil, ErrMalformed
	}
	var ok bool
	if in.src4, ok = x.extract(in.src6); !ok || !x.mayEmbed(in.src4) {
		return nil, ErrICMP // about a packet that never came through here
	}
	in.dst4 = k.src4
	dst, out := tail(dst, header4+8+header4+len(in.body))
	copy(out[48:], in.body)
	if in.proto == protoICMP6 {
		if in.fragmented() || len(in.body) == 0 || in.body[0] != 128 && in.body[0] != 129 {
			return nil, ErrICMP // no error about an error (RFC 1122 section 3.2.2)
		}
		in.proto = protoICMP4
		in.echo4(out[48:])
	} else {
		in.shift(out[48:], in.pseudo6(), in.pseudo4())
	}
	in.put4(out[28:], in.length, in.hops)
	out[20], out[21], out[22], out[23] = typ, code, 0, 0
	binary.BigEndian.PutUint32(out[24:], rest)
	binary.BigEndian.PutUint16(out[22:], ^fold(sum(0, out[20:])))
	k.put4(out, len(out)-header4, k.hops-1)
	return dst, nil
}

// error6 appends an ICMP error as ICMPv6 (RFC 7915 section 4.2, 4.3).
func (x *Prefix) error6(dst []byte, k *packet) ([]byte, error) {
	h := [8]byte(k.body)
	about := k.body[8:]
	var in packet
	var typ, code byte
	var rest uint32
	switch h[0] {
	case 3, 11, 12:
		if !(h[0] == 3 && h[1] == 4) {
			about = original(about, int(h[5])*4)
		}
	default:
		return nil, ErrICMP
	}
	if in.parse4(about, true) != nil {
		return nil, ErrMalformed
	}
	if in.src4 != k.dst4 {
		return nil, ErrICMP // about a packet of somebody else
	}
	switch h[0] {
	case 3: // unreachable
		typ = 1
		switch h[1] {
		case 0, 1, 5, 6, 7, 8, 11, 12:
		case 2:
			typ, code, rest = 4, 1, 6
		case 3:
			code = 4
		case 4:
			typ = 2
			mtu := int(binary.BigEndian.Uint16(h[6:]))
			if mtu == 0 {
				whole := in.length + header4
				for _, p := range plateaus {
					if mtu = p; p < whole {
						break
					}
				}
			}
			rest = uint32(max(mtu+header6-header4, minMTU6))
		case 9, 10, 13, 15:
			code = 1
		default:
			return nil, ErrICMP
		}
	case 11: // time exceeded
		typ, code = 3, h[1]
	case 12: // parameter problem
		p, ok := pointer6(h[4])
		if !ok || h[1] != 0 && h[1] != 2 {
			return nil, ErrICMP
		}
		typ, rest = 4, uint32(p)
	}

	in.src6 = k.dst6
	if !x.mayEmbed(in.dst4) {
		return nil, ErrICMP
	}
	in.dst6 = x.embed(in.dst4)
	hdr := in.size6()
	n := min(len(in.body), maxError6-header6-8-hdr)
	dst, out := tail(dst, header6+8+hdr+n)
	data := out[48+hdr:]
	copy(data, in.body)
	if in.proto == protoICMP4 {
		if in.fragmented() || len(data) == 0 || data[0] != 0 && data[0] != 8 {
			return nil, ErrICMP
		}
		in.proto = protoICMP6
		in.echo6(data)
	} else if in.proto != protoUDP || len(data) < 8 || data[6] != 0 || data[7] != 0 { // none stays none: the rest is not here
		in.shift(data, in.pseudo4(), in.pseudo6())
	}
	in.put6(out[48:], in.length, in.hops)
	out[40], out[41], out[42], out[43] = typ, code, 0, 0
	binary.BigEndian.PutUint32(out[44:], rest)
	c := ^fold(sum(k.pseudo6()+uint64(len(out)-header6)+protoICMP6, out[header6:]))
	binary.BigEndian.PutUint16(out[42:], c)
	k.put6(out, len(out)-header6, k.hops-1)
	return dst, nil
}

// tail makes b n bytes longer and returns the new part too.
func tail(b []byte, n int) (all, added []byte) {
	all = grow(b, n)
	return all, all[len(b):]
}

// original cuts off the extensions of an ICMP error (RFC 4884), which are for those who look at single hops. n is the length
// that the message gives for the packet that it is about; 0 when there are none.
func original(about []byte, n int) []byte {
	if n >= 128 && n < len(about) {
		return about[:n]
	}
	return about
}

// pointer4 says which byte of an IPv4 header corresponds to one of the IPv6 header (RFC 7915 figure 6).
func pointer4(p uint32) (byte, bool) {
	switch {
	case p <= 1:
		return byte(p), true
	case p == 4, p == 5:
		return 2, true
	case p == 6:
		return 9, true
	case p == 7:
		return 8, true
	case p >= 8 && p <= 23:
		return 12, true
	case p >= 24 && p <= 39:
		return 16, true
	}
	return 0, false
}

// pointer6 is the other way (RFC 7915 figure 3).
func pointer6(p byte) (byte, bool) {
	switch {
	case p <= 1:
		return p, true
	case p == 2, p == 3:
		return 4, true
	case p == 8:
		return 7, true
	case p == 9:
		return 6, true
	case p >= 12 && p <= 15:
		return 8, true
	case p >= 16 && p <= 19:
		return 24, true
	}
	return 0, false
}
