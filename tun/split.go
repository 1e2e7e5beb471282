package tun

import "encoding/binary"

const (
	flagFIN = 0x01
	flagPSH = 0x08
	flagCWR = 0x80
)

// HeaderLen returns the length of the IPv6 header and the TCP or UDP header right behind it; false when p has no such headers.
func HeaderLen(ip []byte) (n int, ok bool) {
	l4, ok := Transport(ip)
	if !ok || ip[0]>>4 != 6 {
		return 0, false
	}
	switch l4.Proto {
	case ProtoTCP:
		if len(ip) < l4.Offset+20 {
			return 0, false
		}
		if n = l4.Offset + int(ip[l4.Offset+12]>>4)*4; n < l4.Offset+20 {
			return 0, false
		}
	case ProtoUDP:
		n = l4.Offset + 8
	default:
		return 0, false
	}
	return n, n <= len(ip)
}

// Cut cuts an IPv6 super-packet whose headers are hdr bytes long, as HeaderLen says, into packets of size payload bytes, the
// last may have fewer, and gives them to emit in order. Their checksums stay partial. Each lies in ip and is overwritten after
// emit returns: the header of the next one is written over its tail, so nothing but headers is copied.
func Cut(ip []byte, hdr, size int, emit func(ip []byte)) {
	const l4 = 40
	var head [l4 + 60]byte
	copy(head[:hdr], ip[:hdr])
	tcp := head[6] == ProtoTCP
	var flags byte
	var seq uint32
	if tcp {
		flags, seq = head[l4+13], binary.BigEndian.Uint32(head[l4+4:])
	}
	for at := hdr; at < len(ip); at += size {
		end := min(at+size, len(ip))
		seg := ip[at-hdr : end]
		copy(seg, head[:hdr])
		binary.BigEndian.PutUint16(seg[4:], uint16(len(seg)-l4))
		if tcp {
			binary.BigEndian.PutUint32(seg[l4+4:], seq)
			f := flags
			if end < len(ip) {
				f &^= flagFIN | flagPSH
			}
			if at > hdr {
				f &^= flagCWR
			}
			seg[l4+13] = f
			seq += uint32(end - at)
		} else {
			binary.BigEndian.PutUint16(seg[l4+4:], uint16(len(seg)-l4))
		}
		emit(seg)
	}
}

// Split is Cut for who needs packets of at most most bytes with whole checksums. TCP is cut into as few as fit, whatever
// SegSize says: a stream has no boundaries to keep. UDP is cut at its datagrams. False means that nothing was emitted,
// because p is not TCP or UDP right behind the IPv6 header or cannot be made to fit.
func Split(p Packet, most int, emit func(ip []byte)) bool {
	ip := p.Data
	hdr, ok := HeaderLen(ip)
	if !ok || most > 65535 {
		return false
	}
	size := int(p.SegSize)
	if ip[6] == ProtoTCP {
		size = most - hdr
	} else if size == 0 {
		size = len(ip) - hdr
	}
	if len(ip) <= hdr || size < 1 || hdr+min(size, len(ip)-hdr) > most {
		return false
	}
	Cut(ip, hdr, size, func(seg []byte) {
		FinishChecksum(seg)
		emit(seg)
	})
	return true
}
