package nat64

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// Sizes of headers, in bytes.
const (
	header4  = 20
	header6  = 40
	headerFr = 8

	// Headroom is what a packet grows by at most on its way to IPv6, but for the packets inside ICMP errors, which grow
	// by as much again.
	Headroom = header6 - header4 + headerFr

	// noDF is the longest IPv4 packet that others may cut (RFC 7915 section 5.1): longer ones take part in path MTU
	// discovery.
	noDF = 1260

	minMTU6 = 1280
)

const (
	protoICMP4    = 1
	protoTCP      = 6
	protoUDP      = 17
	protoDCCP     = 33
	protoRouting  = 43
	protoFragment = 44
	protoAH       = 51
	protoICMP6    = 58
	protoNone     = 59
	protoDstOpts  = 60
	protoMobility = 135
	protoUDPLite  = 136
	protoHIP      = 139
	protoShim6    = 140
)

// dummy stands for routers whose address cannot cross, as the source of ICMP errors (RFC 7600 section 4.8, rule R-22):
// without it the "packet too big" of a home router with a private address would be lost.
var dummy = [4]byte{192, 0, 0, 8}

// packet is one IP header, taken apart before anything is written, since source and target may share memory.
type packet struct {
	src6, dst6 [16]byte
	src4, dst4 [4]byte
	tos, hops  byte
	proto      byte   // of what follows all headers
	frag       bool   // there is a fragment header, or MF or an offset
	offset     uint16 // of the fragment, in units of 8 bytes
	more       bool
	df         bool
	id         uint32
	length     int    // bytes that follow the headers, by the header's own count
	body       []byte // those of them that are here; fewer only inside ICMP errors
}

// fragmented reports whether only a part is here.
func (k *packet) fragmented() bool { return k.offset != 0 || k.more }

// parse6 takes an IPv6 packet apart. Options for hops and hosts are skipped (RFC 7915 section 5.1). Of inner packets, as
// they are in ICMP errors, the end may be missing.
func (k *packet) parse6(b []byte, inner bool) error {
	if len(b) < header6 || b[0]>>4 != 6 {
		return ErrMalformed
	}
	size := int(binary.BigEndian.Uint16(b[4:]))
	if header6+size > len(b) && !inner {
		return ErrMalformed
	}
	k.tos = b[0]<<4 | b[1]>>4
	k.hops = b[7]
	k.src6, k.dst6 = [16]byte(b[8:]), [16]byte(b[24:])
	next := b[6]
	rest := b[header6:min(len(b), header6+size)]
	for first := true; ; first = false {
		n := 0
		switch next {
		case 0: // hop by hop
			if !first {
				return ErrMalformed
			}
			fallthrough
		case protoDstOpts, protoRouting:
			if len(rest) < 8 {
				return ErrMalformed
			}
			n = 8 + int(rest[1])*8
			if next == protoRouting && rest[3] != 0 {
				return ErrRouting
			}
		case protoFragment:
			if k.frag || len(rest) < headerFr {
				return ErrMalformed
			}
			n = headerFr
			w := binary.BigEndian.Uint16(rest[2:])
			k.frag, k.offset, k.more = true, w>>3, w&1 != 0
			k.id = binary.BigEndian.Uint32(rest[4:])
		case protoAH, protoMobility, protoHIP, protoShim6, protoNone, protoICMP4: // ICMP of the wrong family has no meaning
			return ErrExtension
		default:
			k.proto, k.length, k.body = next, size, rest
			return k.checkFragment()
		}
		if n > len(rest) {
			return ErrMalformed
		}
		next, rest, size = rest[0], rest[n:], size-n
		if k.fragmented() && (next == 0 || next == protoDstOpts || next == protoRouting || next == protoFragment) {
			return ErrExtension // without it, the offsets of all fragments would be wrong
		}
	}
}

// checkFragment refuses fragments that no sender makes, or that reach beyond the largest packet.
func (k *packet) checkFragment() error {
	if k.more && k.length%8 != 0 || int(k.offset)*8+k.length > 65535 {
		return ErrMalformed
	}
	return nil
}

// parse4 takes an IPv4 packet apart. Options are skipped (RFC 7915 section 4.1).
func (k *packet) parse4(b []byte, inner bool) error {
	if len(b) < header4 || b[0]>>4 != 4 {
		return ErrMalformed
	}
	ihl, size := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if ihl < header4 || ihl > len(b) || size < ihl || size > len(b) && !inner {
		return ErrMalformed
	}
	if !inner && fold(sum(0, b[:ihl])) != 0xffff {
		return ErrMalformed
	}
	if !inner && sourceRouted(b[header4:ihl]) {
		return ErrRouting
	}
	w := binary.BigEndian.Uint16(b[6:])
	k.df, k.more, k.offset = w&0x4000 != 0, w&0x2000 != 0, w&0x1fff
	k.frag = k.more || k.offset != 0
	k.id = uint32(binary.BigEndian.Uint16(b[4:]))
	k.tos, k.hops, k.proto = b[1], b[8], b[9]
	k.src4, k.dst4 = [4]byte(b[12:]), [4]byte(b[16:])
	k.length, k.body = size-ihl, b[ihl:min(size, len(b))]
	switch k.proto {
	case 0, protoRouting, protoFragment, protoAH, protoICMP6, protoNone, protoDstOpts, protoMobility, protoHIP, protoShim6:
		return ErrExtension // these would become headers of IPv6
	}
	return k.checkFragment()
}

// sourceRouted reports whether options hold a source route with hops to go (RFC 791 section 3.1).
func sourceRouted(o []byte) bool {
	for len(o) > 0 {
		switch o[0] {
		case 0:
			return false
		case 1:
			o = o[1:]
			continue
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return false // nonsense is ignored like all other options
		}
		if (o[0] == 0x83 || o[0] == 0x89) && o[1] >= 3 && o[2] <= o[1] {
			return true
		}
		o = o[o[1]:]
	}
	return false
}

// pseudo6 and pseudo4 sum the addresses of pseudo headers.
func (k *packet) pseudo6() uint64 { return sum(sum(0, k.src6[:]), k.dst6[:]) }
func (k *packet) pseudo4() uint64 { return sum(sum(0, k.src4[:]), k.dst4[:]) }

// To4 translates an IPv6 packet whose destination lies in the prefix and appends the result to dst. src4 is what stands
// for the packet's [Source], by [Table.Map]; the destination follows from the prefix. The hop limit is decremented.
//
// dst may be p[20:20]: then a plain packet stays where it is and only gets another header, and p is lost. Otherwise dst must
// not overlap p.
func (x Prefix) To4(dst, p []byte, src4 netip.Addr) ([]byte, error) {
	var k packet
	if err := k.parse6(p, false); err != nil {
		return nil, err
	}
	if !src4.Is4() || !x.net.IsValid() || k.src6[0] == 0xff || k.src6 == ([16]byte{}) {
		return nil, ErrSource
	}
	to, ok := x.extract(k.dst6)
	if !ok || !x.mayEmbed(to) {
		return nil, ErrDestination
	}
	if k.hops <= 1 {
		return nil, ErrHopLimit
	}
	if header4+k.length > 65535 {
		return nil, ErrMalformed // no tunnel carries these
	}
	k.src4, k.dst4 = src4.As4(), to
	if err := k.checkUDP6(); err != nil {
		return nil, err
	}
	start := len(dst)
	if k.proto != protoICMP6 {
		dst = grow(dst, header4+len(k.body))
		out := dst[start:]
		copy(out[header4:], k.body)
		k.shift(out[header4:], k.pseudo6(), k.pseudo4())
		k.put4(out, k.length, k.hops-1)
		return dst, nil
	}
	if k.fragmented() {
		return nil, ErrFragment
	}
	if len(k.body) < 8 {
		return nil, ErrMalformed
	}
	k.proto = protoICMP4
	if t := k.body[0]; t == 128 || t == 129 {
		dst = grow(dst, header4+len(k.body))
		out := dst[start:]
		copy(out[header4:], k.body)
		k.echo4(out[header4:])
		k.put4(out, k.length, k.hops-1)
		return dst, nil
	}
	return x.error4(dst, &k)
}

// checkUDP6 refuses UDP without a checksum, which IPv6 does not have (RFC 8200 section 8.1); tunnels that may do
// without (RFC 6935) do not go through translators.
func (k *packet) checkUDP6() error {
	if k.proto == protoUDP && k.offset == 0 {
		if len(k.body) < 8 {
			return ErrMalformed
		}
		if k.body[6] == 0 && k.body[7] == 0 {
			return ErrChecksum
		}
	}
	return nil
}

// shift corrects the transport's checksum in b for other addresses. Length and protocol stay, so the rest of the
// pseudo header does.
func (k *packet) shift(b []byte, was, is uint64) {
	if k.offset != 0 {
		return
	}
	at := 6
	switch k.proto {
	case protoTCP:
		at = 16
	case protoUDP, protoDCCP, protoUDPLite:
	default:
		return
	}
	if len(b) < at+2 {
		return // inside an ICMP error; or what the receiver will drop
	}
	adjust(b[at:], was, is)
	if b[at] == 0 && b[at+1] == 0 && k.proto != protoTCP && k.proto != protoDCCP {
		b[at], b[at+1] = 0xff, 0xff // zero means none (RFC 768)
	}
}

// echo4 turns an ICMPv6 echo message into ICMP's: another type, and no pseudo header.
func (k *packet) echo4(b []byte) {
	t := uint64(b[0])
	b[0] = 8
	if t == 129 {
		b[0] = 0
	}
	if len(b) >= 4 {
		adjust(b[2:], t<<8+k.pseudo6()+uint64(k.length)+protoICMP6, uint64(b[0])<<8)
	}
}

// echo6 is the other way.
func (k *packet) echo6(b []byte) {
	t := uint64(b[0])
	b[0] = 128
	if t == 0 {
		b[0] = 129
	}
	if len(b) >= 4 {
		adjust(b[2:], t<<8, uint64(b[0])<<8+k.pseudo6()+uint64(k.length)+protoICMP6)
	}
}

// put4 writes the IPv4 header for length bytes of payload.
func (k *packet) put4(b []byte, length int, ttl byte) {
	b[0], b[1] = 0x45, k.tos
	binary.BigEndian.PutUint16(b[2:], uint16(header4+length))
	var id, w uint16
	switch {
	case k.frag:
		id, w = uint16(k.id), k.offset
		if k.more {
			w |= 0x2000
		}
	case header4+length > noDF:
		w = 0x4000
	default:
		// Others may cut it, so it needs an identification that differs from that of its neighbours (RFC 6864). There is
		// no counter here; what changes from packet to packet of a flow is in the transport header.
		id = fold(sum(0, b[header4:min(len(b), header4+20)]))
	}
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], w)
	b[8], b[9], b[10], b[11] = ttl, k.proto, 0, 0
	copy(b[12:], k.src4[:])
	copy(b[16:], k.dst4[:])
	binary.BigEndian.PutUint16(b[10:], ^fold(sum(0, b[:header4])))
}

// To6 translates an IPv4 packet and appends the result to dst. dst6 is whom the packet's destination stands for
// ([Table.Reverse]); the source follows from the prefix. The time to live is decremented.
//
// dst may begin 20 bytes before p in the same array (buf[k:k], where p is buf[k+20:]): then a plain packet stays where it is
// and only gets another header, p is lost, and so may be the bytes behind it, up to dst's capacity. Otherwise dst must not
// overlap p.
//
// A packet longer than 1280 bytes whose sender allowed cutting (no DF) is translated whole; [Fragment] cuts it.
func (x Prefix) To6(dst, p []byte, dst6 netip.Addr) ([]byte, error) {
	var k packet
	if err := k.parse4(p, false); err != nil {
		return nil, err
	}
	if !dst6.Is6() || dst6.Is4In6() || k.dst4[0] >= 224 || k.dst4[0] == 127 || k.dst4[0] == 0 {
		return nil, ErrDestination
	}
	if k.hops <= 1 {
		return nil, ErrHopLimit
	}
	if !x.net.IsValid() {
		return nil, ErrSource
	}
	k.dst6 = dst6.As16()
	icmpError := k.proto == protoICMP4 && !k.fragmented() && len(k.body) >= 8 && k.body[0] != 0 && k.body[0] != 8
	if !x.mayEmbed(k.src4) {
		if !icmpError || k.src4[0] == 0 || k.src4[0] == 127 || k.src4[0] >= 224 {
			return nil, ErrSource
		}
		k.src6 = x.embed(dummy)
	} else {
		k.src6 = x.embed(k.src4)
	}
	if k.proto == protoUDP && k.offset == 0 {
		if len(k.body) < 8 {
			return nil, ErrMalformed
		}
		if k.body[6] == 0 && k.body[7] == 0 && k.more {
			return nil, ErrChecksum // it covers what is not here (RFC 7915 section 4.5)
		}
	}
	start := len(dst)
	hdr := k.size6()
	if k.proto != protoICMP4 {
		dst = grow(dst, hdr+len(k.body))
		out := dst[start:]
		copy(out[hdr:], k.body)
		if b := out[hdr:]; k.proto == protoUDP && k.offset == 0 && b[6] == 0 && b[7] == 0 {
			k.fillUDP(b)
		} else {
			k.shift(b, k.pseudo4(), k.pseudo6())
		}
		k.put6(out, k.length, k.hops-1)
		return dst, nil
	}
	if k.fragmented() {
		return nil, ErrFragment
	}
	if len(k.body) < 8 {
		return nil, ErrMalformed
	}
	k.proto = protoICMP6
	if icmpError {
		return x.error6(dst, &k)
	}
	dst = grow(dst, hdr+len(k.body))
	out := dst[start:]
	copy(out[hdr:], k.body)
	k.echo6(out[hdr:])
	k.put6(out, k.length, k.hops-1)
	return dst, nil
}

// size6 is the length of the IPv6 headers.
func (k *packet) size6() int {
	if k.frag {
		return header6 + headerFr
	}
	return header6
}

// fillUDP computes a checksum where IPv4 had none.
func (k *packet) fillUDP(b []byte) {
	c := ^fold(sum(k.pseudo6()+uint64(len(b))+protoUDP, b))
	if c == 0 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(b[6:], c)
}

// put6 writes the IPv6 headers for length bytes of payload.
func (k *packet) put6(b []byte, length int, hops byte) {
	next := k.proto
	if k.frag {
		next, length = protoFragment, length+headerFr
		b[40], b[41] = k.proto, 0
		w := k.offset << 3
		if k.more {
			w |= 1
		}
		binary.BigEndian.PutUint16(b[42:], w)
		binary.BigEndian.PutUint32(b[44:], k.id)
	}
	b[0], b[1], b[2], b[3] = 0x60|k.tos>>4, k.tos<<4, 0, 0
	binary.BigEndian.PutUint16(b[4:], uint16(length))
	b[6], b[7] = next, hops
	copy(b[8:], k.src6[:])
	copy(b[24:], k.dst6[:])
}

// grow makes b n bytes longer, in place where it has room.
func grow(b []byte, n int) []byte { return slices.Grow(b, n)[:len(b)+n] }

// Fragment cuts an IPv6 packet without extension headers into fragments of at most mtu bytes, and calls emit with each, in a
// part of buf, which must hold mtu bytes. id must differ from that of other packets between the same addresses (RFC 8200
// section 4.5). It is for what To6 makes of packets without DF that are longer than the way to the client allows.
func Fragment(p []byte, mtu int, id uint32, buf []byte, emit func([]byte) error) error {
	if len(p) < header6 || p[0]>>4 != 6 || header6+int(binary.BigEndian.Uint16(p[4:])) != len(p) || mtu < minMTU6 || len(buf) < mtu {
		return ErrMalformed
	}
	if len(p) <= mtu {
		return emit(buf[:copy(buf, p)])
	}
	if p[6] == protoFragment || p[6] == 0 || p[6] == protoDstOpts || p[6] == protoRouting {
		return ErrExtension
	}
	part := (mtu - header6 - headerFr) &^ 7
	for off := 0; off < len(p)-header6; off += part {
		data := p[header6+off : min(len(p), header6+off+part)]
		w := uint16(off)
		if header6+off+part < len(p) {
			w |= 1
		}
		copy(buf, p[:header6])
		binary.BigEndian.PutUint16(buf[4:], uint16(headerFr+len(data)))
		buf[6], buf[40], buf[41] = protoFragment, p[6], 0
		binary.BigEndian.PutUint16(buf[42:], w)
		binary.BigEndian.PutUint32(buf[44:], id)
		copy(buf[48:], data)
		if err := emit(buf[:48+len(data)]); err != nil {
			return err
		}
	}
	return nil
}
