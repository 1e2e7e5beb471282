package lite

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"weft/ident"
)

// What CometBFT hashes and signs are messages of Protocol Buffers: fields in ascending order, none that is zero, but embedded
// messages that cannot be absent always. (spec/core/data_structures.md and spec/core/encoding.md of CometBFT)

func putUint(b []byte, field int, v uint64) []byte {
	if v == 0 {
		return b
	}
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(field)<<3), v)
}

func putFixed64(b []byte, field int, v uint64) []byte {
	if v == 0 {
		return b
	}
	return binary.LittleEndian.AppendUint64(binary.AppendUvarint(b, uint64(field)<<3|1), v)
}

// putBytes leaves an empty value out, putMessage writes it.
func putBytes(b []byte, field int, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	return putMessage(b, field, v)
}

func putMessage(b []byte, field int, v []byte) []byte {
	b = binary.AppendUvarint(b, uint64(field)<<3|2)
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

func protoTime(t time.Time) []byte {
	return putUint(putUint(nil, 1, uint64(t.Unix())), 2, uint64(t.Nanosecond()))
}

// proto is the same for a BlockID and for CanonicalBlockID.
func (id BlockID) proto() []byte {
	if id == (BlockID{}) {
		return putMessage(nil, 2, nil)
	}
	parts := putBytes(putUint(nil, 1, uint64(id.Parts)), 2, id.PartsHash[:])
	return putMessage(putBytes(nil, 1, id.Hash[:]), 2, parts)
}

const blockProtocol = 11

// Hash is what validators sign: the root of a Merkle tree over the fields.
func (h *Header) Hash() Hash {
	one := func(v []byte) []byte { return putBytes(nil, 1, v) } // a wrapper message with one field
	return merkle([][]byte{
		putUint(putUint(nil, 1, blockProtocol), 2, h.App),
		one([]byte(h.Chain)),
		putUint(nil, 1, uint64(h.Height)),
		protoTime(h.Time),
		h.Last.proto(),
		one(h.LastCommit[:]),
		one(h.Data[:]),
		one(h.Validators[:]),
		one(h.NextValidators[:]),
		one(h.Consensus[:]),
		one(h.AppHash),
		one(h.LastResults[:]),
		one(h.Evidence[:]),
		one(h.Proposer[:]),
	})
}

// setHash is the root over the validators' keys and powers.
func setHash(set []Validator) Hash {
	leaves := make([][]byte, len(set))
	for i, v := range set {
		leaves[i] = putUint(putMessage(nil, 1, putBytes(nil, 1, v.Key[:])), 2, uint64(v.Power))
	}
	return merkle(leaves)
}

// merkle is the tree of RFC 6962 section 2.1.
func merkle(leaves [][]byte) Hash {
	switch len(leaves) {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return sha256.Sum256(append([]byte{0}, leaves[0]...))
	}
	k := 1 // the largest power of two below the number
	for k*2 < len(leaves) {
		k *= 2
	}
	l, r := merkle(leaves[:k]), merkle(leaves[k:])
	return sha256.Sum256(append(append([]byte{1}, l[:]...), r[:]...))
}

// signBytes is what a validator signed at a time: a precommit in canonical form, with its length before it. id is the block's.
func (m *Commit) signBytes(chain string, height int64, id []byte, at time.Time) []byte {
	b := make([]byte, 0, 192)
	b = putUint(b, 1, 2) // precommit
	b = putFixed64(b, 2, uint64(height))
	b = putFixed64(b, 3, uint64(m.Round))
	b = putMessage(b, 4, id)
	b = putMessage(b, 5, protoTime(at))
	b = putBytes(b, 6, []byte(chain))
	return append(binary.AppendUvarint(make([]byte, 0, len(b)+2), uint64(len(b))), b...)
}

var errProto = errors.New("it is no message of Protocol Buffers as CometBFT writes them")

// each walks the fields of a message: those whose bit is in ints are numbers (u), all others bytes (v); no other kind occurs. Fields must not
// go backwards, and numbers are in their shortest form, so that few byte strings mean the same.
func each(b []byte, ints uint32, f func(field int, u uint64, v []byte) error) error {
	last := 0
	for len(b) > 0 {
		tag, n := uvarint(b)
		if n == 0 || tag>>3 == 0 || tag>>3 > 31 {
			return errProto
		}
		b = b[n:]
		field, number := int(tag>>3), ints>>(tag>>3)&1 == 1
		u, n := uvarint(b)
		if n == 0 || field < last || number && tag&7 != 0 || !number && tag&7 != 2 {
			return errProto
		}
		b, last = b[n:], field
		var v []byte
		if !number {
			if u > uint64(len(b)) {
				return errProto
			}
			v, b = b[:u:u], b[u:]
		}
		if err := f(field, u, v); err != nil {
			return err
		}
	}
	return nil
}

// uvarint is binary.Uvarint for the shortest form alone; n is 0 when there is none.
func uvarint(b []byte) (v uint64, n int) {
	v, n = binary.Uvarint(b)
	if n <= 0 || n > 1 && b[n-1] == 0 {
		return 0, 0
	}
	return v, n
}

// maxComet bounds CometBFT's encoding of a light block: some 250 bytes for each validator.
const maxComet = 64 << 10

// ParseComet reads a light block as CometBFT encodes it (tendermint.types.LightBlock): for the node beside an engine, which gives it on
// in the form of this package. It refuses commits for another block than the header's, votes under another's address, keys that are
// not Ed25519, and what has no place in a LightBlock here. It verifies no signature.
func ParseComet(b []byte) (*LightBlock, error) {
	if len(b) > maxComet {
		return nil, fmt.Errorf("a light block of %d bytes: at most %d", len(b), maxComet)
	}
	p := cometParser{}
	if err := p.lightBlock(b); err != nil {
		return nil, fmt.Errorf("read light block of CometBFT: %w", err)
	}
	lb := &p.LightBlock
	switch h := lb.Header.Hash(); {
	case p.protocol != blockProtocol:
		return nil, invalid("block protocol %d where %d is known", p.protocol, blockProtocol)
	case p.height != lb.Header.Height:
		return nil, invalid("the commit is for height %d, the header for %d", p.height, lb.Header.Height)
	case p.id.Hash != h:
		return nil, invalid("the commit is for block %v, the header is %v", p.id.Hash, h)
	case len(p.addresses) != len(lb.Set):
		return nil, invalid("%d votes of %d validators", len(p.addresses), len(lb.Set))
	}
	for i, a := range p.addresses {
		if want := lb.Set[i].Address(); lb.Commit.Votes[i].For && !bytes.Equal(a, want[:]) {
			return nil, invalid("vote %d stands under the address %X where %X belongs", i, a, want)
		}
	}
	return lb, nil
}

// cometParser fills a LightBlock; the rest is what that leaves out, to be checked.
type cometParser struct {
	LightBlock
	protocol  uint64
	height    int64 // of the commit
	id        BlockID
	addresses [][]byte // of the votes
}

func (p *cometParser) lightBlock(b []byte) error {
	return each(b, 0, func(field int, _ uint64, v []byte) error {
		switch field {
		case 1: // SignedHeader
			return each(v, 0, func(field int, _ uint64, v []byte) error {
				switch field {
				case 1:
					return p.header(v)
				case 2:
					return p.commit(v)
				}
				return errProto
			})
		case 2: // ValidatorSet
			return each(v, 1<<3, func(field int, _ uint64, v []byte) error {
				switch field {
				case 1:
					return p.validator(v)
				case 2: // who proposes: in no hash
					return new(cometParser).validator(v)
				case 3: // the sum of the powers: in no hash
					return nil
				}
				return errProto
			})
		}
		return errProto
	})
}

func (p *cometParser) header(b []byte) error {
	h := &p.Header
	return each(b, 1<<3, func(field int, u uint64, v []byte) error {
		switch field {
		case 1:
			return each(v, 1<<1|1<<2, func(field int, u uint64, _ []byte) error {
				switch field {
				case 1:
					p.protocol = u
				case 2:
					h.App = u
				default:
					return errProto
				}
				return nil
			})
		case 2:
			h.Chain = string(v)
			if len(v) > MaxChain {
				return fmt.Errorf("a chain id of %d bytes", len(v))
			}
		case 3:
			h.Height = int64(u)
		case 4:
			return parseTime(v, &h.Time)
		case 5:
			return parseBlockID(v, &h.Last)
		case 6, 7, 8, 9, 10, 12, 13:
			return copyAll([]*Hash{&h.LastCommit, &h.Data, &h.Validators, &h.NextValidators, &h.Consensus, nil, &h.LastResults, &h.Evidence}[field-6][:], v)
		case 11:
			if len(v) != len(Hash{}) {
				return fmt.Errorf("a state hash of %d bytes", len(v))
			}
			h.AppHash = bytes.Clone(v)
		case 14:
			return copyAll(h.Proposer[:], v)
		default:
			return errProto
		}
		return nil
	})
}

func (p *cometParser) commit(b []byte) error {
	m := &p.Commit
	return each(b, 1<<1|1<<2, func(field int, u uint64, v []byte) error {
		switch field {
		case 1:
			p.height = int64(u)
		case 2:
			if u > math.MaxInt32 {
				return fmt.Errorf("round %d", u)
			}
			m.Round = int32(u)
		case 3:
			if err := parseBlockID(v, &p.id); err != nil {
				return err
			}
			m.Parts, m.PartsHash = p.id.Parts, p.id.PartsHash
		case 4:
			return p.vote(v)
		default:
			return errProto
		}
		return nil
	})
}

func (p *cometParser) vote(b []byte) error {
	if len(p.addresses) == MaxValidators {
		return fmt.Errorf("more than %d votes", MaxValidators)
	}
	var flag uint64
	var address, sig, at []byte
	err := each(b, 1<<1, func(field int, u uint64, v []byte) error {
		switch field {
		case 1:
			flag = u
		case 2:
			address = v
		case 3:
			at = v
		case 4:
			sig = v
		default:
			return errProto
		}
		return nil
	})
	if err != nil {
		return err
	}
	var vote Vote
	switch flag {
	case 1, 3: // absent; for no block
		if _, _, err := parseTimestamp(at); err != nil {
			return err
		}
	case 2:
		vote.For = true
		if err := parseTime(at, &vote.Time); err != nil {
			return err
		}
		if err := copyAll(vote.Sig[:], sig); err != nil {
			return err
		}
	default:
		return fmt.Errorf("a vote of kind %d", flag)
	}
	p.addresses = append(p.addresses, address)
	p.Commit.Votes = append(p.Commit.Votes, vote)
	return nil
}

func (p *cometParser) validator(b []byte) error {
	if len(p.Set) == MaxValidators {
		return fmt.Errorf("more than %d validators", MaxValidators)
	}
	var val Validator
	var address []byte
	err := each(b, 1<<3|1<<4, func(field int, u uint64, v []byte) error {
		switch field {
		case 1:
			address = v
		case 2:
			return each(v, 0, func(field int, _ uint64, v []byte) error {
				if field != 1 {
					return errors.New("a validator's key is not Ed25519")
				}
				return copyAll(val.Key[:], v)
			})
		case 3:
			val.Power = int64(u)
		case 4: // its turn to propose: in no hash
		default:
			return errProto
		}
		return nil
	})
	if err != nil {
		return err
	}
	if want := val.Address(); !bytes.Equal(address, want[:]) || val.Key == (ident.PublicKey{}) {
		return errors.New("a validator's address is not its key's")
	}
	p.Set = append(p.Set, val)
	return nil
}

func parseBlockID(b []byte, id *BlockID) error {
	return each(b, 0, func(field int, _ uint64, v []byte) error {
		switch field {
		case 1:
			return copyAll(id.Hash[:], v)
		case 2:
			return each(v, 1<<1, func(field int, u uint64, v []byte) error {
				switch field {
				case 1:
					if u > math.MaxUint32 {
						return errProto
					}
					id.Parts = uint32(u)
				case 2:
					return copyAll(id.PartsHash[:], v)
				default:
					return errProto
				}
				return nil
			})
		}
		return errProto
	})
}

func parseTime(b []byte, t *time.Time) error {
	sec, nano, err := parseTimestamp(b)
	if err != nil {
		return err
	}
	if sec > maxTime || nano >= 1e9 {
		return errors.New("a time that cannot be")
	}
	*t = time.Unix(int64(sec), int64(nano)).UTC()
	return nil
}

func parseTimestamp(b []byte) (sec, nano uint64, err error) {
	err = each(b, 1<<1|1<<2, func(field int, u uint64, _ []byte) error {
		switch field {
		case 1:
			sec = u
		case 2:
			nano = u
		default:
			return errProto
		}
		return nil
	})
	return sec, nano, err
}

func copyAll(to, from []byte) error {
	if len(from) != len(to) {
		return fmt.Errorf("%d bytes where %d belong", len(from), len(to))
	}
	copy(to, from)
	return nil
}
