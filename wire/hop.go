// Package wire is the codec: the frames that neighbours exchange and the objects that nodes sign. Every decoder is
// bounded, never panics, and re-encodes to the same bytes; the formats are normative in docs/spec/wire.md.
//
// wire knows no socket and no state; every room may import it, and it imports only ident. All functions are safe for
// concurrent use.
package wire

import (
	"encoding/binary"

	"github.com/dchest/siphash"

	"weft/ident"
)

// The hop header opens every datagram between two neighbours (docs/spec/wire.md section 2):
//
//	 0        1        2        3        4                 8
//	+--------+--------+--------+--------+-----------------+
//	|kind+ep | ttl    | class  | 0      | receiver index  |
//	+--------+--------+--------+--------+-----------------+
//	| destination NodeID                                  |  8
//	| counter                                             | 16
//	| mac                                                 | 24
//	+-----------------------------------------------------+
//	| end-to-end packet …                                 | 32
//
// The receiver index is the one that the neighbour chose for this link; it finds the link when the sender's address has
// changed. All integers are big endian. The first byte keeps QUIC's fixed bit (0x40) clear, RFC 9000 section 17.
const (
	HopLen     = 32
	TagLen     = 16 // the last bytes of an end-to-end packet: its AEAD tag
	MinHop     = HopLen + TagLen
	QUICBit    = 0x40
	DefaultTTL = 64
)

// Kind says what a hop datagram carries. It stands in the high bits of the first byte: 0x00 or 0x10; 0x20 and 0x30
// are free for unauthenticated link set-up (beacons, introductions).
type Kind uint8

const (
	KindData  Kind = 0x00 // an end-to-end packet for the destination
	KindProbe Kind = 0x10 // link quality, never forwarded; the destination field carries probe data
	KindSetup Kind = 0x20 // not a hop datagram: link set-up before keys exist
)

// Class is the traffic class of a datagram. Relays may treat classes apart and meters count them apart.
type Class uint8

const (
	ClassBulk    Class = 0 // everything else
	ClassControl Class = 1 // handshakes, pings, meter beacons: first in every queue
	ClassGateway Class = 2 // inside a gateway session: carriage is owed on it
	NumClasses         = 3
)

const (
	epochMask = 0x0f
	kindMask  = 0xb0
)

// KindOf returns the kind in a datagram's first byte.
func KindOf(first byte) Kind { return Kind(first & kindMask) }

// IsQUIC reports whether a datagram belongs to the QUIC control channel.
func IsQUIC(first byte) bool { return first&QUICBit != 0 }

// Hop is a view of a datagram of at least MinHop bytes. The accessors do not check the length; Check does, once.
type Hop []byte

// Check reports whether b is long enough for a hop header and a tag.
func Check(b []byte) bool { return len(b) >= MinHop }

func (h Hop) Kind() Kind              { return KindOf(h[0]) }
func (h Hop) Epoch() uint8            { return h[0] & epochMask }
func (h Hop) TTL() uint8              { return h[1] }
func (h Hop) Class() Class            { return Class(h[2]) }
func (h Hop) Index() uint32           { return binary.BigEndian.Uint32(h[4:]) }
func (h Hop) Dest() ident.NodeID      { return ident.NodeID(binary.BigEndian.Uint64(h[8:])) }
func (h Hop) Counter() uint64         { return binary.BigEndian.Uint64(h[16:]) }
func (h Hop) mac() uint64             { return binary.BigEndian.Uint64(h[24:]) }
func (h Hop) Payload() []byte         { return h[HopLen:] }
func (h Hop) SetTTL(ttl uint8)        { h[1] = ttl }
func (h Hop) SetDest(id ident.NodeID) { binary.BigEndian.PutUint64(h[8:], uint64(id)) }
func (h Hop) SetClass(c Class)        { h[2] = byte(c) }
func (h Hop) Start(ttl uint8, c Class, dest ident.NodeID) {
	h[1], h[2], h[3] = ttl, byte(c), 0
	h.SetDest(dest)
}

// HopKey is the 128-bit SipHash key of one direction of one link in one epoch.
type HopKey struct{ K0, K1 uint64 }

// NewHopKey reads a key from 16 bytes.
func NewHopKey(b [16]byte) HopKey {
	return HopKey{binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])}
}

// Seal writes kind, epoch, receiver index and counter into the header and closes it with the MAC: SipHash-2-4 over the
// first 24 header bytes and the last 16 bytes of the datagram. TTL, class and destination must be set before.
func (h Hop) Seal(k HopKey, kind Kind, epoch uint8, index uint32, counter uint64) {
	h[0] = byte(kind) | epoch&epochMask
	binary.BigEndian.PutUint32(h[4:], index)
	binary.BigEndian.PutUint64(h[16:], counter)
	binary.BigEndian.PutUint64(h[24:], h.sum(k))
}

// Authentic reports whether the MAC is right for the key.
func (h Hop) Authentic(k HopKey) bool { return h.sum(k) == h.mac() }

func (h Hop) sum(k HopKey) uint64 {
	var b [24 + TagLen]byte
	copy(b[:24], h[:24])
	copy(b[24:], h[len(h)-TagLen:])
	return siphash.Hash(k.K0, k.K1, b[:])
}
