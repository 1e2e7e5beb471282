package tun

import "encoding/binary"

const (
	flagFIN = 0x01
	flagPSH = 0x08
	flagCWR = 0x80
)

// Split cuts an IPv6 super-packet into packets of at most most bytes with whole checksums, and gives them to emit in order.
// TCP is cut into as few as fit, whatever SegSize says: a stream has no boundaries to keep. UDP is cut at its datagrams. Each
// packet lies in p.Data and is overwritten after emit returns: the header of the next one is written over its tail. False
// means that nothing was emitted, because p is not TCP or UDP right behind the IPv6 header or cannot be made to fit.
func Split(p Packet, most int, emit func(ip []byte)) bool {
	ip := p.Data
	l4, ok := Transport(ip)
	if !ok || ip[0]>>4 != 6 || most > 65535 {
		return false
	}
	hdr, tcp := l4.Offset+8, l4.Proto == ProtoTCP
	if tcp {
		if len(ip) < l4.Offset+20 {
			return false
		}
		hdr = l4.Offset + int(ip[l4.Offset+12]>>4)*4
		if hdr < l4.Offset+20 {
			return false
		}
	} else if l4.Proto != ProtoUDP {
		return false
	}
	size := int(p.SegSize)
	if tcp {
		size = most - hdr
	} else if size == 0 {
		size = len(ip) - hdr
	}
	if len(ip) <= hdr || size < 1 || hdr+min(size, len(ip)-hdr) > most {
		return false
	}
	var head [40 + 60]byte
	copy(head[:hdr], ip[:hdr])
	var flags byte
	var seq uint32
	if tcp {
		flags, seq = head[l4.Offset+13], binary.BigEndian.Uint32(head[l4.Offset+4:])
	}
	for at := hdr; at < len(ip); at += size {
		end := min(at+size, len(ip))
		seg := ip[at-hdr : end]
		copy(seg, head[:hdr])
		binary.BigEndian.PutUint16(seg[4:], uint16(len(seg)-40))
		if tcp {
			binary.BigEndian.PutUint32(seg[l4.Offset+4:], seq)
			f := flags
			if end < len(ip) {
				f &^= flagFIN | flagPSH
			}
			if at > hdr {
				f &^= flagCWR
			}
			seg[l4.Offset+13] = f
			seq += uint32(end - at)
		} else {
			binary.BigEndian.PutUint16(seg[l4.Offset+4:], uint16(len(seg)-l4.Offset))
		}
		FinishChecksum(seg)
		emit(seg)
	}
	return true
}
