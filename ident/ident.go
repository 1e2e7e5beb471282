// Package ident holds what makes a node itself: its Ed25519 key, the identifiers and addresses that follow from the key,
// and signatures that cannot be taken for one another.
//
// Every room may import ident; ident imports no other room. All functions are safe for concurrent use. The private key
// lives inside an [Agent] and is never printed or logged; it leaves it for one library only (docs/adr/0004).
package ident

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"strings"

	"filippo.io/edwards25519"
	"github.com/hdevalence/ed25519consensus"
)

// PublicKey is an Ed25519 public key (RFC 8032): the name of a node for life.
type PublicKey [ed25519.PublicKeySize]byte

// NodeID is the short form of a key that packet headers and link-state advertisements carry: the first eight bytes, big
// endian, of SHA-256("weft/node-id/1" 0x00 key). docs/spec/wire.md section 1. Zero is never a valid NodeID.
type NodeID uint64

// Community names a closed or open community: the first eight bytes of a hash of its key. Zero is the open network.
type Community [8]byte

// Signature is an Ed25519 signature over a domain-separated message.
type Signature [ed25519.SignatureSize]byte

// Domain is the ASCII tag that separates one kind of signed object from every other.
type Domain string

// The domains in use. A new kind of signed object gets a new line here, so that no two can collide.
const (
	DomainLSA    Domain = "weft/lsa/1"    // docs/spec/route.md
	DomainInvite Domain = "weft/invite/1" // docs/spec/link.md
)

// SharedKey derives the Community of a community key.
func SharedKey(key [32]byte) Community {
	if key == ([32]byte{}) {
		return Community{}
	}
	h := sha256.New()
	h.Write([]byte("weft/community/1\x00"))
	h.Write(key[:])
	return Community(h.Sum(nil)[:8])
}

// ID returns the key's NodeID.
func (k PublicKey) ID() NodeID {
	var msg [len(nodeIDTag) + len(k)]byte
	copy(msg[:], nodeIDTag)
	copy(msg[len(nodeIDTag):], k[:])
	sum := sha256.Sum256(msg[:])
	id := NodeID(binary.BigEndian.Uint64(sum[:8]))
	if id == 0 { // one key in 2^64; keep zero free as "no node"
		id = 1
	}
	return id
}

const nodeIDTag = "weft/node-id/1\x00"

// String prints the NodeID as 16 hex digits.
func (id NodeID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// ParseNodeID reads the 16 hex digits that String prints.
func ParseNodeID(s string) (NodeID, error) {
	if len(s) != 16 {
		return 0, fmt.Errorf("a node id has 16 hex digits, this has %d", len(s))
	}
	var b [8]byte
	if _, err := hex.Decode(b[:], []byte(s)); err != nil {
		return 0, fmt.Errorf("a node id has 16 hex digits: %w", err)
	}
	return NodeID(binary.BigEndian.Uint64(b[:])), nil
}

// String prints the key as 64 hex digits, the form Yggdrasil uses.
func (k PublicKey) String() string { return hex.EncodeToString(k[:]) }

// IsZero reports whether k is unset.
func (k PublicKey) IsZero() bool { return k == PublicKey{} }

// ParsePublicKey reads the 64 hex digits that String prints.
func ParsePublicKey(s string) (PublicKey, error) {
	var k PublicKey
	s = strings.TrimSpace(s)
	if len(s) != 2*len(k) {
		return k, fmt.Errorf("a key has %d hex digits, this has %d", 2*len(k), len(s))
	}
	if _, err := hex.Decode(k[:], []byte(s)); err != nil {
		return PublicKey{}, fmt.Errorf("a key is written in hex digits: %w", err)
	}
	return k, nil
}

// MarshalText prints the key as String does.
func (k PublicKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads what MarshalText prints.
func (k *PublicKey) UnmarshalText(b []byte) (err error) {
	*k, err = ParsePublicKey(string(b))
	return err
}

// Addr returns the node's IPv6 address in 200::/7, by Yggdrasil's derivation (docs/spec/wire.md section 1): 0x02, then
// the number of leading one bits in the inverted key, then the bits after the first zero.
func (k PublicKey) Addr() netip.Addr {
	var inv [33]byte // one spare byte so that the shift below can read past the end
	for i, b := range k {
		inv[i] = ^b
	}
	ones := 0
	for i := range k {
		n := bits.LeadingZeros8(k[i])
		ones += n
		if n < 8 {
			break
		}
	}
	a := [16]byte{0: 0x02, 1: byte(ones)}
	skip := ones + 1 // the run of ones and the zero that ends it
	for i := 2; i < len(a); i++ {
		at := skip + 8*(i-2)
		if at/8 >= len(k) {
			break
		}
		a[i] = inv[at/8]<<(at%8) | byte(uint16(inv[at/8+1])>>(8-at%8))
	}
	return netip.AddrFrom16(a)
}

// Subnet returns the /64 in 300::/8 that belongs to the node for the devices behind it.
func (k PublicKey) Subnet() netip.Prefix {
	a := k.Addr().As16()
	a[0] |= 1
	clear(a[8:])
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// MeshPrefix is the range that holds every node's address and subnet.
var MeshPrefix = netip.MustParsePrefix("200::/7")

// X25519 returns the Diffie–Hellman form of the key (RFC 7748, the birational map of section 4.1), or an error when the
// bytes are not a point of the curve or lie in the small subgroup.
func (k PublicKey) X25519() ([32]byte, error) {
	p, err := new(edwards25519.Point).SetBytes(k[:])
	if err != nil {
		return [32]byte{}, fmt.Errorf("read key as curve point: %w", err)
	}
	if new(edwards25519.Point).MultByCofactor(p).Equal(edwards25519.NewIdentityPoint()) == 1 {
		return [32]byte{}, errors.New("key lies in the small subgroup")
	}
	return [32]byte(p.BytesMontgomery()), nil
}

// Verify reports whether sig is k's signature over msg in domain d, by the ZIP-215 rules, so that every node and the
// ledger accept exactly the same set of signatures.
func (k PublicKey) Verify(d Domain, msg []byte, sig Signature) bool {
	return ed25519consensus.Verify(k[:], tagged(d, msg), sig[:])
}

func tagged(d Domain, msg []byte) []byte {
	b := make([]byte, 0, len(d)+1+len(msg))
	b = append(b, d...)
	b = append(b, 0)
	return append(b, msg...)
}
