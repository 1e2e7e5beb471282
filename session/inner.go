package session

import (
	"encoding/binary"

	"weft/tun"
)

// The end-to-end packet (docs/spec/session.md section 2):
//
//	data   4 | flags | 0 0 | receiver index 4 | counter 8 | AEAD(inner packet) … tag 16
//
// The nonce is the header's first four bytes and the counter, so the flags cannot be changed on the way. What is inside
// (section 3) is told by the high nibble of its first byte, which for a whole IP packet is the IP version:
//
//	mesh IPv6   0x10 | next header | hop limit | traffic class | flow label 4 | transport …
//	echo        0x20, 0x30 | 0 0 0 | id 8 | time 8     request, reply
//	raw IP      0x4v, 0x6v: the packet itself          for the /64 behind a node, and through a gateway
//	message     0x50 | channel | 0 0 | payload         between parts of the two nodes
//	keep-alive  nothing at all
//
// A mesh IPv6 packet goes from the sender's own address to the receiver's, so both are left out. With flagPartial the
// transport checksum is not there either: the AEAD vouches for the bytes, and the receiver's kernel finishes the sum if it
// ever needs to.
const (
	typeInit   = 1
	typeResp   = 2
	typeCookie = 3
	typeData   = 4

	dataHeader = 16
	aeadTag    = 16
	overhead   = dataHeader + aeadTag

	flagPartial = 0x01
	flagsKnown  = flagPartial

	innerMesh        = 0x10
	innerEchoRequest = 0x20
	innerEchoReply   = 0x30
	innerMessage     = 0x50
	innerTypeMask    = 0xf0

	meshHeader    = 8
	echoLen       = 20
	messageHeader = 4
	ipv4Header    = 20
	ipv6Header    = 40
)

// compact writes the mesh header of an IPv6 packet into h.
func compact(h, ip []byte) {
	h[0] = innerMesh
	h[1], h[2] = ip[6], ip[7]
	word := binary.BigEndian.Uint32(ip)
	h[3] = byte(word >> 20)
	binary.BigEndian.PutUint32(h[4:], word&0xfffff)
}

// expand writes the IPv6 header that h stands for into ip[:40]; h may lie inside ip.
func expand(ip, h []byte, payload int, src, dst *[16]byte) {
	next, hops, class, flow := h[1], h[2], h[3], binary.BigEndian.Uint32(h[4:])&0xfffff
	binary.BigEndian.PutUint32(ip, 6<<28|uint32(class)<<20|flow)
	binary.BigEndian.PutUint16(ip[4:], uint16(payload))
	ip[6], ip[7] = next, hops
	copy(ip[8:], src[:])
	copy(ip[24:], dst[:])
}

// outside reports whether a packet is not between two addresses of the mesh. ip holds a whole IP header.
func outside(ip []byte) bool {
	// ident.MeshPrefix, 200::/7, compared as the first byte that it is.
	return ip[0]>>4 == 4 || ip[8]&0xfe != 2 || ip[24]&0xfe != 2
}

// whole reports whether ip is one IP packet as long as its header says.
func whole(ip []byte) bool {
	switch {
	case len(ip) >= ipv6Header && ip[0]>>4 == 6:
		return int(binary.BigEndian.Uint16(ip[4:]))+ipv6Header == len(ip)
	case len(ip) >= ipv4Header && ip[0]>>4 == 4:
		return int(binary.BigEndian.Uint16(ip[2:])) == len(ip) && ip[0]&0x0f >= 5 && int(ip[0]&0x0f)*4 <= len(ip)
	}
	return false
}

// ICMPv6 error messages to the own host (RFC 4443 sections 3.1, 3.2).
const (
	icmpUnreachable = 1
	icmpTooBig      = 2
	codeNoRoute     = 0
	codeAddress     = 3
)

// icmp4TooBig makes an ICMP "fragmentation needed" (RFC 792, RFC 1191 section 4) about ip as if its destination had sent it.
func icmp4TooBig(ip []byte, mtu int) []byte {
	quote := ip[:min(len(ip), 576-ipv4Header-8)]
	b := make([]byte, ipv4Header+8+len(quote))
	b[0], b[8], b[9] = 0x45, 64, 1
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:16], ip[16:20])
	copy(b[16:20], ip[12:16])
	binary.BigEndian.PutUint16(b[10:], ^tun.Sum(b[:ipv4Header], 0))
	b[20], b[21] = 3, 4
	binary.BigEndian.PutUint16(b[26:], uint16(mtu))
	copy(b[28:], quote)
	binary.BigEndian.PutUint16(b[22:], ^tun.Sum(b[20:], 0))
	return b
}

// icmpError makes an ICMPv6 error about ip as if its destination had sent it.
func icmpError(ip []byte, typ, code byte, arg uint32) []byte {
	quote := ip[:min(len(ip), 1280-ipv6Header-8)]
	b := make([]byte, ipv6Header+8+len(quote))
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(quote)))
	b[6], b[7] = tun.ProtoICMPv6, 64
	copy(b[8:24], ip[24:40])
	copy(b[24:40], ip[8:24])
	b[40], b[41] = typ, code
	binary.BigEndian.PutUint32(b[44:], arg)
	copy(b[48:], quote)
	binary.BigEndian.PutUint16(b[42:], ^tun.Sum(b[40:], tun.PseudoSum(b, tun.ProtoICMPv6, len(b)-ipv6Header)))
	return b
}
