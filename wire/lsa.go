package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"weft/ident"
)

// A link-state advertisement is one node's signed word about itself (docs/spec/wire.md section 3):
//
//	 0  'L' 1 | version 1 | flags 2
//	 4  key 32
//	36  seq 8
//	44  lifetime 4 (s)
//	48  community 8
//	56  carriage price 4 (ncredit per MiB)
//	60  neighbours 2 | extension bytes 2
//	64  neighbours × 16: id 8, cost 4 (µs), mtu 2, flags 2, in rising order of id
//	…   extensions: type 1, length 2, value; in rising order of type, each at most once
//	…   signature 64 over everything before it, domain weft/lsa/1
//
// A link counts only when both ends list it, so an LSA can lie about nobody but its own node.
type LSA struct {
	Key        ident.PublicKey
	Seq        uint64
	Lifetime   uint32 // seconds from origination
	Flags      LSAFlags
	Community  ident.Community
	Price      uint32 // ncredit per MiB carried
	Neighbours []Adjacency
	Extensions []Extension
}

// LSAFlags say how a node wants to be used.
type LSAFlags uint16

const (
	FlagLeaf    LSAFlags = 1 << iota // never a transit node
	FlagMetered                      // every link of it costs money or battery: avoid as transit
)

// Adjacency is one neighbour as an LSA lists it.
type Adjacency struct {
	ID    ident.NodeID
	Cost  uint32 // µs, at least 1
	MTU   uint16 // bytes of end-to-end packet that fit, hop header excluded
	Flags AdjFlags
}

// AdjFlags describe one link.
type AdjFlags uint16

// AdjMetered marks a link that costs money or battery.
const AdjMetered AdjFlags = 1

// Extension is one optional part of an LSA. Unknown types are carried and ignored.
type Extension struct {
	Type  ExtType
	Value []byte
}

// ExtType numbers the extensions.
type ExtType uint8

const (
	ExtName     ExtType = 1 // UTF-8, 1 to 63 bytes
	ExtPosition ExtType = 2 // blurred: latitude and longitude, int32 each, 1e-7 degree
	ExtGateway  ExtType = 3 // gateway offer, opaque so far

	ExtYggdrasil ExtType = 4 // the way into Yggdrasil's network is shared: TCP port in the mesh, docs/spec/ygg.md
)

// Limits of an LSA. Memory in every node of the network is what they protect.
const (
	MaxNeighbours = 256
	MaxExtBytes   = 512
	MaxSeq        = 1<<63 - 1
	MaxLifetime   = 24 * 3600
	lsaFixed      = 64
	adjLen        = 16
	MaxLSA        = lsaFixed + MaxNeighbours*adjLen + MaxExtBytes + 64
	lsaVersion    = 1
)

// ErrLSA is wrapped by every error of ParseLSA.
var ErrLSA = errors.New("malformed LSA")

// AppendTo appends the unsigned encoding of l to b. It fails when l breaks a limit or an order, so that what this node
// signs every node accepts.
func (l *LSA) AppendTo(b []byte) ([]byte, error) {
	ext := 0
	for _, e := range l.Extensions {
		ext += 3 + len(e.Value)
	}
	at := len(b)
	b = append(b, 'L', lsaVersion)
	b = binary.BigEndian.AppendUint16(b, uint16(l.Flags))
	b = append(b, l.Key[:]...)
	b = binary.BigEndian.AppendUint64(b, l.Seq)
	b = binary.BigEndian.AppendUint32(b, l.Lifetime)
	b = append(b, l.Community[:]...)
	b = binary.BigEndian.AppendUint32(b, l.Price)
	b = binary.BigEndian.AppendUint16(b, uint16(min(len(l.Neighbours), 0xffff)))
	b = binary.BigEndian.AppendUint16(b, uint16(min(ext, 0xffff)))
	for _, n := range l.Neighbours {
		b = binary.BigEndian.AppendUint64(b, uint64(n.ID))
		b = binary.BigEndian.AppendUint32(b, n.Cost)
		b = binary.BigEndian.AppendUint16(b, n.MTU)
		b = binary.BigEndian.AppendUint16(b, uint16(n.Flags))
	}
	for _, e := range l.Extensions {
		b = append(b, byte(e.Type))
		b = binary.BigEndian.AppendUint16(b, uint16(len(e.Value)))
		b = append(b, e.Value...)
	}
	if _, err := viewUnsigned(b[at:]); err != nil {
		return b[:at], err
	}
	return b, nil
}

// Sign encodes l and appends the signature that sign makes over it.
func (l *LSA) Sign(sign func(msg []byte) ident.Signature) ([]byte, error) {
	b, err := l.AppendTo(nil)
	if err != nil {
		return nil, err
	}
	sig := sign(b)
	return append(b, sig[:]...), nil
}

// LSAView reads a signed LSA in place. Only ViewLSA makes valid ones; its accessors never fail and allocate nothing.
type LSAView []byte

// ViewLSA checks the form of a signed LSA, not its signature, and returns a view of b.
func ViewLSA(b []byte) (LSAView, error) {
	if len(b) > MaxLSA {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrLSA, len(b), MaxLSA)
	}
	if len(b) < lsaFixed+64 {
		return nil, fmt.Errorf("%w: %d bytes, at least %d", ErrLSA, len(b), lsaFixed+64)
	}
	if _, err := viewUnsigned(b[:len(b)-64]); err != nil {
		return nil, err
	}
	return LSAView(b), nil
}

func viewUnsigned(b []byte) (LSAView, error) {
	fail := func(s string, args ...any) (LSAView, error) {
		return nil, fmt.Errorf("%w: "+s, append([]any{ErrLSA}, args...)...)
	}
	if len(b) < lsaFixed || b[0] != 'L' || b[1] != lsaVersion {
		return fail("not an LSA of version %d", lsaVersion)
	}
	v := LSAView(b)
	if f := v.Flags(); f&^(FlagLeaf|FlagMetered) != 0 {
		return fail("unknown flags %#x", uint16(f))
	}
	if s := v.Seq(); s == 0 || s > MaxSeq {
		return fail("sequence number %d out of range", s)
	}
	if l := v.Lifetime(); l == 0 || l > MaxLifetime {
		return fail("lifetime %d s out of range", l)
	}
	n, ext := v.NumNeighbours(), int(binary.BigEndian.Uint16(b[62:]))
	if n > MaxNeighbours || ext > MaxExtBytes || len(b) != lsaFixed+n*adjLen+ext {
		return fail("%d neighbours and %d extension bytes in %d bytes", n, ext, len(b))
	}
	self := v.Key().ID()
	var last ident.NodeID
	for i := range n {
		a := v.Neighbour(i)
		if a.ID <= last || a.ID == self {
			return fail("neighbour %d out of order or self", i)
		}
		if a.Cost == 0 || a.Flags&^AdjMetered != 0 {
			return fail("neighbour %d has cost %d, flags %#x", i, a.Cost, uint16(a.Flags))
		}
		last = a.ID
	}
	lastType := ExtType(0)
	for e := b[lsaFixed+n*adjLen:]; len(e) > 0; {
		if len(e) < 3 || ExtType(e[0]) <= lastType {
			return fail("extension out of order")
		}
		size := int(binary.BigEndian.Uint16(e[1:]))
		if len(e) < 3+size {
			return fail("extension %d cut short", e[0])
		}
		lastType, e = ExtType(e[0]), e[3+size:]
	}
	return v, nil
}

func (v LSAView) Flags() LSAFlags      { return LSAFlags(binary.BigEndian.Uint16(v[2:])) }
func (v LSAView) Key() ident.PublicKey { return ident.PublicKey(v[4:36]) }
func (v LSAView) Seq() uint64          { return binary.BigEndian.Uint64(v[36:]) }
func (v LSAView) Lifetime() uint32     { return binary.BigEndian.Uint32(v[44:]) }
func (v LSAView) Community() ident.Community {
	return ident.Community(v[48:56])
}
func (v LSAView) Price() uint32      { return binary.BigEndian.Uint32(v[56:]) }
func (v LSAView) NumNeighbours() int { return int(binary.BigEndian.Uint16(v[60:])) }

// Neighbour returns the i-th adjacency.
func (v LSAView) Neighbour(i int) Adjacency {
	b := v[lsaFixed+i*adjLen:]
	return Adjacency{
		ID:    ident.NodeID(binary.BigEndian.Uint64(b)),
		Cost:  binary.BigEndian.Uint32(b[8:]),
		MTU:   binary.BigEndian.Uint16(b[12:]),
		Flags: AdjFlags(binary.BigEndian.Uint16(b[14:])),
	}
}

// Extensions yields the extensions in order; the values alias v.
func (v LSAView) Extensions() iter.Seq[Extension] {
	return func(yield func(Extension) bool) {
		at := lsaFixed + v.NumNeighbours()*adjLen
		end := at + int(binary.BigEndian.Uint16(v[62:]))
		for at < end {
			size := int(binary.BigEndian.Uint16(v[at+1:]))
			if !yield(Extension{ExtType(v[at]), v[at+3 : at+3+size]}) {
				return
			}
			at += 3 + size
		}
	}
}

// Extension returns the value of one extension, nil when it is absent.
func (v LSAView) Extension(t ExtType) []byte {
	for e := range v.Extensions() {
		if e.Type == t {
			return e.Value
		}
	}
	return nil
}

// Signed returns the bytes under the signature, Signature the signature.
func (v LSAView) Signed() []byte             { return v[:len(v)-64] }
func (v LSAView) Signature() ident.Signature { return ident.Signature(v[len(v)-64:]) }

// Verify reports whether the LSA is signed by the key that it names.
func (v LSAView) Verify() bool { return v.Key().Verify(ident.DomainLSA, v.Signed(), v.Signature()) }

// Decode copies the view into an LSA.
func (v LSAView) Decode() LSA {
	l := LSA{Key: v.Key(), Seq: v.Seq(), Lifetime: v.Lifetime(), Flags: v.Flags(), Community: v.Community(), Price: v.Price()}
	for i := range v.NumNeighbours() {
		l.Neighbours = append(l.Neighbours, v.Neighbour(i))
	}
	for e := range v.Extensions() {
		l.Extensions = append(l.Extensions, Extension{e.Type, append([]byte(nil), e.Value...)})
	}
	return l
}
