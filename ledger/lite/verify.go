package lite

import (
	"time"

	"github.com/hdevalence/ed25519consensus"
)

// MaxDrift is how far a block's time may be ahead of this node's clock.
const MaxDrift = time.Minute

// Verify reports whether next may be trusted because base, an older block of the same chain, is: nil, or an error that is
// ErrInvalid, ErrFar or ErrExpired. It decides as CometBFT's light.Verify with a trust level of 1/3:
//
//   - base is not older than period, next is younger than base and not from the future;
//   - next is the very next block and has the validators that base names for it; or more than 1/3 of base's validators, by power,
//     signed next, so that at least one honest one did;
//   - more than 2/3 of next's own validators, by power, signed it.
func Verify(base, next *LightBlock, now time.Time, period time.Duration) error {
	h, err := next.check(base.Header.Chain)
	if err != nil {
		return err
	}
	return verify(base, next, h, now, period)
}

// verify is Verify for a block that was checked.
func verify(base, next *LightBlock, h Hash, now time.Time, period time.Duration) error {
	switch {
	case expired(&base.Header, now, period):
		return ErrExpired
	case next.Header.Height <= base.Header.Height:
		return invalid("height %d does not come after %d", next.Header.Height, base.Header.Height)
	case !next.Header.Time.After(base.Header.Time):
		return invalid("its time %v is not after %v, an older block's", next.Header.Time, base.Header.Time)
	case !next.Header.Time.Before(now.Add(MaxDrift)):
		return invalid("its time %v is not yet, at %v: set this device's clock, or the sender lies", next.Header.Time, now.UTC())
	}
	s := newSignatures(next, h)
	if next.Header.Height == base.Header.Height+1 {
		if next.Header.Validators != base.Header.NextValidators {
			return invalid("its validators are not those that the block before names")
		}
	} else if err := s.byTrusted(base.Set); err != nil {
		return err
	}
	return s.byOwn()
}

func expired(h *Header, now time.Time, period time.Duration) bool {
	return !h.Time.Add(period).After(now)
}

// signatures verifies each signature of a block at most once.
type signatures struct {
	b    *LightBlock
	id   []byte // the block's, as it is signed
	good []bool
}

func newSignatures(b *LightBlock, h Hash) *signatures {
	id := BlockID{h, b.Commit.Parts, b.Commit.PartsHash}
	return &signatures{b: b, id: id.proto(), good: make([]bool, len(b.Set))}
}

// verify checks vote i, by the rules of ZIP-215 as CometBFT does.
func (s *signatures) verify(i int) error {
	v := &s.b.Commit.Votes[i]
	if !s.good[i] && !ed25519consensus.Verify(s.b.Set[i].Key[:], s.b.Commit.signBytes(s.b.Header.Chain, s.b.Header.Height, s.id, v.Time), v.Sig[:]) {
		return invalid("the signature of validator %d is wrong", i)
	}
	s.good[i] = true
	return nil
}

// byTrusted asks for more than a third of a set that is trusted. It counts before it verifies: the latter is a thousand times dearer.
func (s *signatures) byTrusted(set []Validator) error {
	var total, signed int64
	for _, t := range set {
		total += t.Power
	}
	var count []int
	for i := range s.b.Set {
		if !s.b.Commit.Votes[i].For || signed*3 > total {
			continue
		}
		for _, t := range set {
			if t.Key == s.b.Set[i].Key {
				signed += t.Power
				count = append(count, i)
				break
			}
		}
	}
	if signed*3 <= total {
		return ErrFar
	}
	for _, i := range count {
		if err := s.verify(i); err != nil {
			return err
		}
	}
	return nil
}

// byOwn asks for more than two thirds of the block's own set.
func (s *signatures) byOwn() error {
	var total, signed int64
	for _, v := range s.b.Set {
		total += v.Power
	}
	var count []int
	for i, v := range s.b.Set {
		if s.b.Commit.Votes[i].For && signed*3 <= total*2 {
			signed += v.Power
			count = append(count, i)
		}
	}
	if signed*3 <= total*2 {
		return invalid("its validators have not signed it by more than two thirds")
	}
	for _, i := range count {
		if err := s.verify(i); err != nil {
			return err
		}
	}
	return nil
}
