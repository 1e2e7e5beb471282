package tun

import "encoding/binary"

const (
	flagFIN = 0x01
	flagPSH = 0x08
	flagCWR = 0x80
)

// HeaderLen returns the length of the IP header and the TCP or UDP header right behind it; false when p has no such headers.
func HeaderLen(ip []byte) (n int, ok bool) {
	l4, ok := Transport(ip)
	if !ok {
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

// maxHeaders is the longest that HeaderLen returns: IPv4 with options and TCP with options.
const maxHeaders = 60 + 60

// Cut cuts a super-packet whose headers are hdr bytes long, as HeaderLen says, into packets of size payload bytes, the
// last may have fewer, and gives them to emit in order. Their checksums stay partial. Each lies in ip and is overwritten after
// emit returns: the header of the next one is written over its tail, so nothing but headers is copied.
func Cut(ip []byte, hdr, size int, emit func(ip []byte)) {
	l4 := 40
	if ip[0]>>4 == 4 {
		l4 = int(ip[0]&0x0f) * 4
	}
	var head [maxHeaders]byte
	copy(head[:hdr], ip[:hdr])
	v4 := ip[0]>>4 == 4
	proto, id := head[6], uint16(0)
	if v4 {
		proto, id = head[9], binary.BigEndian.Uint16(head[4:])
	}
	tcp := proto == ProtoTCP
	var flags byte
	var seq uint32
	if tcp {
		flags, seq = head[l4+13], binary.BigEndian.Uint32(head[l4+4:])
	}
	for at := hdr; at < len(ip); at += size {
		end := min(at+size, len(ip))
		seg := ip[at-hdr : end]
		copy(seg, head[:hdr])
		if v4 {
			binary.BigEndian.PutUint16(seg[2:], uint16(len(seg)))
			binary.BigEndian.PutUint16(seg[4:], id)
			id++
			sumIPv4(seg[:l4])
		} else {
			binary.BigEndian.PutUint16(seg[4:], uint16(len(seg)-l4))
		}
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

// sumIPv4 fills in the checksum of an IPv4 header.
func sumIPv4(h []byte) {
	h[10], h[11] = 0, 0
	binary.BigEndian.PutUint16(h[10:], ^Sum(h, 0))
}

// Fragment cuts an IPv4 packet into fragments of at most most bytes (RFC 791 section 3.2) and gives copies of them to emit,
// in order. The packet's transport checksum must be whole. False means that nothing was emitted: the packet may not be
// fragmented, or most leaves no room.
func Fragment(ip []byte, most int, emit func(ip []byte)) bool {
	if len(ip) < 20 || ip[0]>>4 != 4 || ip[6]&0x40 != 0 {
		return false
	}
	hdr := int(ip[0]&0x0f) * 4
	room := (most - hdr) &^ 7
	if hdr < 20 || len(ip) <= hdr || room < 8 {
		return false
	}
	flags := binary.BigEndian.Uint16(ip[6:])
	b := make([]byte, hdr+room)
	for at := hdr; at < len(ip); at += room {
		end := min(at+room, len(ip))
		h := hdr
		if at == hdr {
			copy(b, ip[:hdr])
		} else if hdr > 20 {
			h = copyOptions(b, ip[:hdr])
		}
		f := b[:h+copy(b[h:], ip[at:end])]
		word := flags&0x2000 | (flags&0x1fff + uint16((at-hdr)/8))
		if end < len(ip) {
			word |= 0x2000
		}
		binary.BigEndian.PutUint16(f[2:], uint16(len(f)))
		binary.BigEndian.PutUint16(f[6:], word)
		sumIPv4(f[:h])
		emit(f)
	}
	return true
}

// copyOptions writes the header of a later fragment: only options with the copied bit go along (RFC 791 section 3.1).
func copyOptions(b, head []byte) int {
	n := copy(b[:20], head)
	for o := head[20:]; len(o) > 0 && o[0] != 0; {
		size := 1
		if o[0] != 1 {
			if len(o) < 2 || int(o[1]) < 2 || int(o[1]) > len(o) {
				break
			}
			size = int(o[1])
		}
		if o[0]&0x80 != 0 {
			n += copy(b[n:60], o[:size])
		}
		o = o[size:]
	}
	for n%4 != 0 {
		b[n] = 0
		n++
	}
	b[0] = 0x40 | byte(n/4)
	return n
}

// Split is Cut for who needs packets of at most most bytes with whole checksums. TCP is cut into as few as fit, whatever
// SegSize says: a stream has no boundaries to keep. UDP is cut at its datagrams. False means that nothing was emitted,
// because p is not TCP or UDP right behind the IP header or cannot be made to fit.
func Split(p Packet, most int, emit func(ip []byte)) bool {
	ip := p.Data
	hdr, ok := HeaderLen(ip)
	if !ok || most > 65535 {
		return false
	}
	size := int(p.SegSize)
	if l4, _ := Transport(ip); l4.Proto == ProtoTCP {
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
