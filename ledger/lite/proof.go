package lite

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"weft/ledger/tx"
)

// Bounds of records and proofs.
const (
	MaxKey   = 256
	MaxValue = 32 << 10 // the longest records are lists: bylaws, entries that wait for a second signature
	MaxPath  = 64       // a tree of so many levels has more leaves than there can be
)

// Proof says that a key has a value in the state: the way from its leaf to the root of an IAVL tree (v1). There are no proofs that a
// key has none: forged ones have cost others dearly (Dragonberry, 2022), and the ledger writes "closed" rather than nothing.
type Proof struct {
	Version int64 // of the leaf: when it was written
	Path    []Step
}

// Step is an inner node on the way, without the child that the way comes from.
type Step struct {
	Height  uint8 // above the leaves, rising
	Size    int64 // leaves below it
	Version int64
	Left    bool // the sibling is the left child
	Sibling Hash
}

// Fields implements tx.Record.
func (p *Proof) Fields(c *tx.Coder) {
	c.I64(&p.Version)
	tx.List(c, &p.Path, MaxPath, func(c *tx.Coder, s *Step) {
		c.U8(&s.Height)
		c.I64(&s.Size)
		c.I64(&s.Version)
		c.Bool(&s.Left)
		c.Fixed(s.Sibling[:])
	})
}

// ErrProof is every refusal of a proof; test with errors.Is.
var ErrProof = errors.New("the proof is not valid")

// Root returns the root of the tree that the proof leads to. The forms of leaf and inner node are fixed here, so neither can pass for
// the other.
func (p *Proof) Root(key, value []byte) (Hash, error) {
	if len(key) == 0 || len(key) > MaxKey || len(value) == 0 || len(value) > MaxValue {
		return Hash{}, fmt.Errorf("%w: a key of %d bytes with a value of %d", ErrProof, len(key), len(value))
	}
	if p.Version < 0 || len(p.Path) > MaxPath {
		return Hash{}, fmt.Errorf("%w: a leaf that cannot be", ErrProof)
	}
	sum := sha256.Sum256(value)
	b := make([]byte, 0, 3*binary.MaxVarintLen64+max(len(key)+binary.MaxVarintLen64+1+len(sum), 2*(1+len(sum))))
	b = append(b, 0, 2) // signed varints: height 0, size 1
	b = binary.AppendVarint(b, p.Version)
	b = append(binary.AppendUvarint(b, uint64(len(key))), key...)
	b = append(append(b, byte(len(sum))), sum[:]...)
	sum = sha256.Sum256(b)
	var below uint8
	for _, s := range p.Path {
		if s.Height <= below || s.Height > math.MaxInt8 || s.Size < 2 || s.Version < 0 {
			return Hash{}, fmt.Errorf("%w: a node of height %d above one of %d, with %d leaves", ErrProof, s.Height, below, s.Size)
		}
		below = s.Height
		b = binary.AppendVarint(b[:0], int64(s.Height))
		b = binary.AppendVarint(b, s.Size)
		b = binary.AppendVarint(b, s.Version)
		l, r := sum, [32]byte(s.Sibling)
		if s.Left {
			l, r = r, l
		}
		b = append(append(b, byte(len(l))), l[:]...)
		b = append(append(b, byte(len(r))), r[:]...)
		sum = sha256.Sum256(b)
	}
	return sum, nil
}

// ParseICS23 reads an existence proof as IAVL makes it (cosmos.ics23.v1.CommitmentProof), with the key and the value that it is
// for: for the node beside an engine, which gives it on in the form of this package. Whether it leads to a root, Proof.Root says.
func ParseICS23(b []byte) (key, value []byte, p Proof, err error) {
	fail := func(err error) ([]byte, []byte, Proof, error) {
		return nil, nil, Proof{}, fmt.Errorf("%w: %w", ErrProof, err)
	}
	if len(b) > MaxKey+MaxValue+MaxPath*128 {
		return fail(fmt.Errorf("%d bytes are too many", len(b)))
	}
	var leaf bool
	err = each(b, 0, func(field int, _ uint64, v []byte) error {
		if field != 1 || leaf {
			return errors.New("it is none of existence")
		}
		return each(v, 0, func(field int, _ uint64, v []byte) error {
			switch field {
			case 1:
				key = append([]byte(nil), v...)
			case 2:
				value = append([]byte(nil), v...)
			case 3:
				leaf = true
				return parseLeaf(v, &p)
			case 4:
				if len(p.Path) == MaxPath {
					return fmt.Errorf("more than %d steps", MaxPath)
				}
				p.Path = append(p.Path, Step{})
				return parseStep(v, &p.Path[len(p.Path)-1])
			default:
				return errProto
			}
			return nil
		})
	})
	if err != nil {
		return fail(err)
	}
	if !leaf || len(key) == 0 || len(key) > MaxKey || len(value) == 0 || len(value) > MaxValue {
		return fail(errors.New("it has no leaf, or a key or value of a length that is not allowed"))
	}
	return key, value, p, nil
}

var errNode = errors.New("a node is not as IAVL has it")

// parseLeaf reads a LeafOp: SHA-256 (1) over prefix, key with its length as a varint (1) and SHA-256 (1) of the value likewise.
func parseLeaf(b []byte, p *Proof) error {
	var ops [5]uint64
	var prefix []byte
	err := each(b, 1<<1|1<<2|1<<3|1<<4, func(field int, u uint64, v []byte) error {
		switch field {
		case 1, 2, 3, 4:
			ops[field] = u
		case 5:
			prefix = v
		default:
			return errProto
		}
		return nil
	})
	if err != nil {
		return err
	}
	h, size, version, rest, ok := nodeHead(prefix)
	if !ok || h != 0 || size != 1 || len(rest) != 0 || ops != [5]uint64{1: 1, 3: 1, 4: 1} {
		return errNode
	}
	p.Version = version
	return nil
}

// parseStep reads an InnerOp: SHA-256 (1) over prefix, child and suffix.
func parseStep(b []byte, s *Step) error {
	var op uint64
	var prefix, suffix []byte
	err := each(b, 1<<1, func(field int, u uint64, v []byte) error {
		switch field {
		case 1:
			op = u
		case 2:
			prefix = v
		case 3:
			suffix = v
		default:
			return errProto
		}
		return nil
	})
	if err != nil {
		return err
	}
	h, size, version, rest, ok := nodeHead(prefix)
	if !ok || h < 1 || h > math.MaxInt8 || size < 2 || op != 1 {
		return errNode
	}
	s.Height, s.Size, s.Version = uint8(h), size, version
	switch {
	case len(rest) == 1 && rest[0] == 32 && len(suffix) == 33 && suffix[0] == 32:
		s.Sibling = Hash(suffix[1:])
	case len(rest) == 34 && rest[0] == 32 && rest[33] == 32 && len(suffix) == 0:
		s.Left, s.Sibling = true, Hash(rest[1:33])
	default:
		return errNode
	}
	return nil
}

// nodeHead reads height, size and version, in the shortest form of signed varints.
func nodeHead(b []byte) (height, size, version int64, rest []byte, ok bool) {
	for _, to := range []*int64{&height, &size, &version} {
		u, n := uvarint(b)
		if n == 0 || u&1 != 0 { // zigzag: odd is negative
			return 0, 0, 0, nil, false
		}
		*to, b = int64(u>>1), b[n:]
	}
	return height, size, version, b, true
}
