// Package lite is a light client of the community's chain, for nodes that run no engine: routers. It signs transactions, and it
// verifies what any neighbour says about the chain: headers by the signatures of the validators, records by a proof against a
// header. It believes no neighbour. docs/spec/ledger-light.md is the normative text.
//
// node owns a [Client], carries the messages (Encode, Parse) between neighbours and keeps what Save returns. The package is pure:
// no socket, no file, no clock (time comes in as an argument), no goroutine. Nothing here is safe for concurrent use but
// functions that take no receiver. It imports ident, ledger/tx, the verifier of signatures and the standard library alone, so that a
// router's program stays small; what CometBFT and IAVL hash and sign is encoded by hand in proto.go and proof.go, and tests hold that
// against the originals.
//
//	lite.go    what a light block is, and its bounds
//	proto.go   the bytes that CometBFT hashes and signs; reading its own encoding
//	verify.go  when a header may be trusted because an older one is
//	proof.go   a record is in the state: existence proofs of IAVL
//	client.go  the state machine: what is trusted, what to ask for next, forks
//	wire.go    what neighbours say to each other
//	sign.go    transactions of this node
package lite

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"time"

	"weft/ident"
	"weft/ledger/tx"
)

// Bounds of what is accepted from anybody.
const (
	MaxValidators = 128
	MaxChain      = 50      // bytes of a chain id, as CometBFT has it
	maxPower      = 1 << 53 // of one validator: three times the sum of all stays far from the end of an int64
)

// Hash is a SHA-256 digest.
type Hash [32]byte

func (h Hash) String() string { return fmt.Sprintf("%X", h[:]) }

// Header is the header of a CometBFT block, version 11 of its block protocol (v0.38 to v0.40).
type Header struct {
	App            uint64 // version of the state machine
	Chain          string
	Height         int64
	Time           time.Time // the median of the validators' clocks when they voted for the block before
	Last           BlockID   // the block before; zero at the first
	LastCommit     Hash
	Data           Hash
	Validators     Hash // of LightBlock.Set
	NextValidators Hash
	Consensus      Hash
	AppHash        []byte // root of the state after the block before: 32 bytes, or none
	LastResults    Hash
	Evidence       Hash
	Proposer       [20]byte
}

// BlockID names a block, and the parts that it travelled in.
type BlockID struct {
	Hash      Hash
	Parts     uint32
	PartsHash Hash
}

// Commit is the validators' word for a block. It names no block: it is for the header beside it.
type Commit struct {
	Round     int32
	Parts     uint32
	PartsHash Hash
	Votes     []Vote // one for each validator, in the order of the set
}

// Vote is one validator's. A vote for no block and none at all are the same here: neither counts. It carries no address: a vote is
// the validator's at whose place it stands (CSA-2026-001).
type Vote struct {
	For  bool // the rest is zero otherwise
	Time time.Time
	Sig  ident.Signature
}

// Validator is one of those who decide on blocks.
type Validator struct {
	Key   ident.PublicKey // consensus key
	Power int64
}

// Address is CometBFT's short name of a validator.
func (v Validator) Address() [20]byte {
	h := sha256.Sum256(v.Key[:])
	return [20]byte(h[:20])
}

// LightBlock is all that is needed to verify a header.
type LightBlock struct {
	Header Header
	Commit Commit
	Set    []Validator // at the header's height, in CometBFT's order
}

// The reasons of a refusal; test with errors.Is.
var (
	// ErrInvalid: the block cannot be one of this chain. Whoever sent it errs or lies.
	ErrInvalid = errors.New("the block is not valid")
	// ErrFar: too few of the validators that are trusted signed it; a block in between is needed.
	ErrFar = errors.New("too few validators that are known here signed the block: one in between is needed")
	// ErrExpired: the newest trusted block is too old to trust anything by it.
	ErrExpired = errors.New("what this node knows of the ledger is too old: give it a fresh checkpoint (the height and hash of a new block) from a member whom you trust")
	// ErrFork: two blocks that contradict each other are signed by the validators. Nothing is believed any more.
	ErrFork = errors.New("the validators signed two blocks that contradict each other: show the evidence to the community, and start from a checkpoint that it agrees on")
)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// check holds a block to the bounds and to itself; it verifies no signature. It returns the hash of the header.
func (b *LightBlock) check(chain string) (Hash, error) {
	h := &b.Header
	switch {
	case h.Chain != chain:
		return Hash{}, invalid("it is of chain %q, not of %q", h.Chain, chain)
	case h.Height < 1:
		return Hash{}, invalid("height %d", h.Height)
	case b.Commit.Round < 0:
		return Hash{}, invalid("round %d", b.Commit.Round)
	case len(b.Set) == 0 || len(b.Set) > MaxValidators:
		return Hash{}, invalid("%d validators, where 1 to %d may be", len(b.Set), MaxValidators)
	case len(b.Commit.Votes) != len(b.Set):
		return Hash{}, invalid("%d votes of %d validators", len(b.Commit.Votes), len(b.Set))
	case len(h.AppHash) != 0 && len(h.AppHash) != len(Hash{}):
		return Hash{}, invalid("a state hash of %d bytes", len(h.AppHash))
	case !timeFits(h.Time):
		return Hash{}, invalid("the time %v", h.Time)
	}
	for i, v := range b.Set {
		if v.Power < 1 || v.Power > maxPower {
			return Hash{}, invalid("a validator's power of %d", v.Power)
		}
		for _, w := range b.Set[:i] {
			if v.Key == w.Key {
				return Hash{}, invalid("a validator stands there twice")
			}
		}
		if t := b.Commit.Votes[i].Time; b.Commit.Votes[i].For && !timeFits(t) {
			return Hash{}, invalid("a vote's time %v", t)
		}
	}
	if setHash(b.Set) != h.Validators {
		return Hash{}, invalid("the validators are not those that the header names")
	}
	return h.Hash(), nil
}

// timeFits reports whether t is from 1970 to 9999: what a header's field holds, and no fewer bytes for ours.
func timeFits(t time.Time) bool { return t.Unix() >= 0 && t.Unix() <= maxTime }

const maxTime = 253402300799 // 9999-12-31T23:59:59Z

// Fields implements tx.Record.
func (b *LightBlock) Fields(c *tx.Coder) {
	b.Header.fields(c)
	b.Commit.fields(c)
	tx.List(c, &b.Set, MaxValidators, func(c *tx.Coder, v *Validator) {
		c.Key(&v.Key)
		c.I64(&v.Power)
	})
}

func (h *Header) fields(c *tx.Coder) {
	c.U64(&h.App)
	c.Text(&h.Chain, MaxChain)
	c.I64(&h.Height)
	codeTime(c, &h.Time)
	last := h.Last != BlockID{}
	c.Bool(&last)
	if last {
		c.Fixed(h.Last.Hash[:])
		c.U32(&h.Last.Parts)
		c.Fixed(h.Last.PartsHash[:])
		if h.Last == (BlockID{}) {
			c.Fail(errors.New("a block before that is none"))
		}
	}
	for _, x := range []*Hash{&h.LastCommit, &h.Data, &h.Validators, &h.NextValidators, &h.Consensus} {
		c.Fixed(x[:])
	}
	c.Bytes(&h.AppHash, len(Hash{}))
	if n := len(h.AppHash); n != 0 && n != len(Hash{}) {
		c.Fail(fmt.Errorf("a state hash of %d bytes", n))
	}
	c.Fixed(h.LastResults[:])
	c.Fixed(h.Evidence[:])
	c.Fixed(h.Proposer[:])
}

func (m *Commit) fields(c *tx.Coder) {
	r := uint32(m.Round)
	c.U32(&r)
	if r > math.MaxInt32 {
		c.Fail(errors.New("a negative round"))
	}
	m.Round = int32(r)
	c.U32(&m.Parts)
	c.Fixed(m.PartsHash[:])
	tx.List(c, &m.Votes, MaxValidators, func(c *tx.Coder, v *Vote) {
		c.Bool(&v.For)
		if v.For {
			codeTime(c, &v.Time)
			c.Fixed(v.Sig[:])
		}
	})
}

// codeTime is seconds since 1970 in 8 bytes and nanoseconds in 4.
func codeTime(c *tx.Coder, t *time.Time) {
	sec, nano := t.Unix(), uint32(t.Nanosecond())
	c.I64(&sec)
	c.U32(&nano)
	if sec < 0 || sec > maxTime || nano >= 1e9 {
		c.Fail(errors.New("a time that cannot be"))
		return
	}
	if c.Reading() {
		*t = time.Unix(sec, int64(nano)).UTC()
	}
}
