package lite

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/ident"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// genesis is when test chains begin.
var genesis = time.Date(2026, 11, 1, 12, 0, 0, 123456789, time.UTC)

// testChain makes blocks that are signed by keys it has. It is written without the room's Verify, so that both may be wrong only in ways of
// their own; what is hashed and signed, the tests against CometBFT hold.
type testChain struct {
	id     string
	blocks []*LightBlock // height 1 first
	state  [32]byte
}

// valKeys are the keys of the tests' validators.
var valKeys = func() (keys [160]ed25519.PrivateKey) {
	for i := range keys {
		seed := sha256.Sum256(binary.BigEndian.AppendUint32([]byte("validator"), uint32(i)))
		keys[i] = ed25519.NewKeyFromSeed(seed[:])
	}
	return keys
}()

func pub(i int) ident.PublicKey { return ident.PublicKey(valKeys[i].Public().(ed25519.PublicKey)) }

// set returns validators by their numbers, one power each.
func set(numbers ...int) (s []Validator) {
	for _, n := range numbers {
		s = append(s, Validator{pub(n), 1})
	}
	return s
}

func keyOf(k ident.PublicKey) ed25519.PrivateKey {
	for i, key := range valKeys {
		if pub(i) == k {
			return key
		}
	}
	panic("no validator of the tests")
}

// add makes the next block, with the set now and the set after; salt tells forks apart.
func (c *testChain) add(now, after []Validator, salt byte) *LightBlock {
	b := &LightBlock{Set: now}
	h := &b.Header
	h.App, h.Chain, h.Height = 1, c.id, int64(len(c.blocks)+1)
	h.Time = genesis.Add(time.Duration(len(c.blocks)) * time.Minute)
	if n := len(c.blocks); n > 0 {
		last := c.blocks[n-1]
		h.Last = BlockID{last.Header.Hash(), last.Commit.Parts, last.Commit.PartsHash}
		h.AppHash = append([]byte(nil), c.state[:]...)
	}
	fill := func(name string) Hash { return sha256.Sum256([]byte{byte(h.Height), salt, name[0]}) }
	h.LastCommit, h.Data, h.Consensus, h.LastResults, h.Evidence = fill("commit"), fill("data"), fill("params"), fill("results"), fill("evidence")
	h.Validators, h.NextValidators = setHash(now), setHash(after)
	h.Proposer = now[0].Address()
	b.Commit = Commit{Round: int32(h.Height % 3), Parts: 1, PartsHash: fill("parts"), Votes: make([]Vote, len(now))}
	for i := range now {
		sign(b, i, h.Time.Add(time.Duration(i)*time.Second))
	}
	c.blocks = append(c.blocks, b)
	return b
}

// sign lets validator i vote.
func sign(b *LightBlock, i int, at time.Time) {
	id := BlockID{b.Header.Hash(), b.Commit.Parts, b.Commit.PartsHash}
	msg := b.Commit.signBytes(b.Header.Chain, b.Header.Height, id.proto(), at)
	b.Commit.Votes[i] = Vote{true, at, ident.Signature(ed25519.Sign(keyOf(b.Set[i].Key), msg))}
}

// clone copies a block deeply.
func clone(b *LightBlock) *LightBlock {
	c := *b
	c.Header.AppHash = append([]byte(nil), b.Header.AppHash...)
	c.Commit.Votes = append([]Vote(nil), b.Commit.Votes...)
	c.Set = append([]Validator(nil), b.Set...)
	return &c
}

// steady is a chain of n blocks by one set.
func steady(n int, s []Validator) *testChain {
	c := &testChain{id: "test-1"}
	for range n {
		c.add(s, s, 0)
	}
	return c
}

// fork is a copy of the chain's first n blocks, to go on otherwise.
func (c *testChain) fork(n int) *testChain {
	return &testChain{id: c.id, blocks: append([]*LightBlock(nil), c.blocks[:n]...), state: c.state}
}

func (c *testChain) trust(height int64) Trust {
	return Trust{Chain: c.id, Height: height, Hash: c.blocks[height-1].Header.Hash(), Period: DefaultPeriod}
}

// fataler is a test, of testing or rapid.
type fataler interface{ Fatal(...any) }

// client returns one that trusts the first block.
func (c *testChain) client(t fataler) *Client {
	cl, err := New(c.trust(1))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := cl.Update(genesis, c.blocks[0]); n != Trusted || err != nil {
		t.Fatal(n, err)
	}
	return cl
}
