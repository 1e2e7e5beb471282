// Package tun moves IP packets between the host and the mesh, in batches: the operating system's TUN with offloads
// (Linux), a userspace stack (tun/netstack) or an in-memory twin for tests (tun/tuntest), all behind [Device].
//
// session reads and writes devices; node makes them. tun knows nothing of the mesh but its address range.
package tun

import (
	"encoding/binary"
	"errors"
)

// Packet is one IP packet from the host.
type Packet struct {
	// Data is the packet, or, when SegSize is not zero, a TCP or UDP super-packet to be cut into segments of SegSize
	// payload bytes. The reader may overwrite all of it.
	Data    []byte
	SegSize uint16
	// Partial: the TCP or UDP checksum field holds only the pseudo-header sum; whoever needs
	// the real one computes it. It is only set when the transport header follows the IP header directly.
	Partial bool
}

// Device is one attachment to a host. Close makes Read return net.ErrClosed.
type Device interface {
	Name() string
	MTU() int
	// Read blocks until there is a packet and fills pkts from the front. The packets are valid until the next Read. Only
	// one goroutine may read.
	Read(pkts []Packet) (int, error)
	// NewWriter returns a writer for one goroutine.
	NewWriter() Writer
	Close() error
}

// Writer gathers packets for the host.
type Writer interface {
	// Write takes one IP packet, never a super-packet. p must stay untouched until Flush returns; the writer may change it.
	// Packets of a flow keep their order.
	Write(p []byte, partial bool)
	// Flush hands over what Write took. An error says how many packets were lost.
	Flush() error
}

// ErrUnsupported is returned where this system has no TUN that Weft can use; the userspace mode works everywhere.
var ErrUnsupported = errors.New("no TUN on this system: run without it ([tun] enabled = \"off\") and use the proxy")

// L4 describes where the transport header of an IP packet is.
type L4 struct {
	Proto  byte // IP protocol number of what follows the IP header
	Offset int  // of the transport header
}

// IP protocol numbers used here.
const (
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
)

// Transport finds the transport header right behind the IP header. IPv6 extension headers are not walked: Proto is then
// the first extension's number.
func Transport(p []byte) (L4, bool) {
	if len(p) < 20 {
		return L4{}, false
	}
	switch p[0] >> 4 {
	case 6:
		if len(p) < 40 {
			return L4{}, false
		}
		return L4{p[6], 40}, true
	case 4:
		off := int(p[0]&0x0f) * 4
		if off < 20 || len(p) < off || binary.BigEndian.Uint16(p[6:])&0x3fff != 0 { // a fragment has no transport header
			return L4{}, false
		}
		return L4{p[9], off}, true
	}
	return L4{}, false
}

// csumField returns where the checksum lies inside a transport header.
func csumField(proto byte) (int, bool) {
	switch proto {
	case ProtoTCP:
		return 16, true
	case ProtoUDP:
		return 6, true
	}
	return 0, false
}

// PseudoSum returns the folded, not complemented, pseudo-header sum (RFC 8200 section 8.1, RFC 9293 section 3.1) for an IP
// packet whose transport part is length bytes.
func PseudoSum(p []byte, proto byte, length int) uint16 {
	var sum uint64
	if p[0]>>4 == 6 {
		sum = sumWords(p[8:40], 0)
	} else {
		sum = sumWords(p[12:20], 0)
	}
	return fold(sum + uint64(proto) + uint64(length))
}

// SetPartial puts the pseudo-header sum into the checksum field, as a sender with checksum offload leaves it.
func SetPartial(p []byte) bool {
	l4, ok := Transport(p)
	if !ok {
		return false
	}
	at, ok := csumField(l4.Proto)
	if !ok || len(p) < l4.Offset+at+2 {
		return false
	}
	binary.BigEndian.PutUint16(p[l4.Offset+at:], PseudoSum(p, l4.Proto, len(p)-l4.Offset))
	return true
}

// FinishChecksum computes the whole TCP or UDP checksum of p, whatever its field holds.
func FinishChecksum(p []byte) bool {
	l4, ok := Transport(p)
	if !ok {
		return false
	}
	at, ok := csumField(l4.Proto)
	if !ok || len(p) < l4.Offset+at+2 {
		return false
	}
	t := p[l4.Offset:]
	t[at], t[at+1] = 0, 0
	c := ^Sum(t, PseudoSum(p, l4.Proto, len(t)))
	if c == 0 && l4.Proto == ProtoUDP {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(t[at:], c)
	return true
}

// Sum adds b to a folded ones' complement sum (RFC 1071).
func Sum(b []byte, initial uint16) uint16 { return fold(sumWords(b, uint64(initial))) }

func sumWords(b []byte, sum uint64) uint64 {
	for len(b) >= 8 { // 32-bit pieces into 64 bits: no carry is lost for any packet
		v := binary.BigEndian.Uint64(b)
		sum += v>>32 + v&0xffffffff
		b = b[8:]
	}
	for len(b) >= 2 {
		sum += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	return sum
}

func fold(sum uint64) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
