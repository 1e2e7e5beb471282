//go:build engine

package lite

// The originals as oracles: CometBFT's light client, IAVL and ICS-23. With the tag of the engine, as they are as large here as there; they
// do not build for 32-bit MIPS at all.

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cometbft/cometbft/crypto"
	"github.com/cometbft/cometbft/crypto/ed25519"
	"github.com/cometbft/cometbft/light"
	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	cmtversion "github.com/cometbft/cometbft/proto/tendermint/version"
	"github.com/cometbft/cometbft/types"
	dbm "github.com/cosmos/cosmos-db"
	"github.com/cosmos/iavl"
	iavldb "github.com/cosmos/iavl/db"
	ics23 "github.com/cosmos/ics23/go"
	"pgregory.net/rapid"
)

func cometKey(i int) ed25519.PrivKey { return ed25519.PrivKey(valKeys[i]) }

// cometSet makes a set of CometBFT's, in its order.
func cometSet(numbers []int, powers []int64) *types.ValidatorSet {
	var vals []*types.Validator
	for i, n := range numbers {
		vals = append(vals, types.NewValidator(cometKey(n).PubKey(), powers[i]))
	}
	return types.NewValidatorSet(vals)
}

func hash32(t *rapid.T, name string) []byte {
	h := sha256.Sum256(binary.BigEndian.AppendUint32([]byte(name), rapid.Uint32().Draw(t, name)))
	return h[:]
}

func cometTime(t *rapid.T, from time.Time) time.Time {
	return from.Add(time.Duration(rapid.Int64Range(0, 10*int64(time.Hour)).Draw(t, "time"))).UTC()
}

func cometHeader(t *rapid.T, height int64, at time.Time, vals, next *types.ValidatorSet) *types.Header {
	h := &types.Header{
		Version: cmtversion.Consensus{Block: 11, App: rapid.Uint64().Draw(t, "app")},
		ChainID: "coop-1", Height: height, Time: at,
		LastCommitHash: hash32(t, "last commit"), DataHash: hash32(t, "data"),
		ValidatorsHash: vals.Hash(), NextValidatorsHash: next.Hash(),
		ConsensusHash: hash32(t, "params"), AppHash: hash32(t, "app hash"), LastResultsHash: hash32(t, "results"), EvidenceHash: hash32(t, "evidence"),
		ProposerAddress: vals.Validators[0].Address,
	}
	if rapid.Bool().Draw(t, "has last") {
		h.LastBlockID = types.BlockID{Hash: hash32(t, "last"), PartSetHeader: types.PartSetHeader{Total: rapid.Uint32Range(0, 5).Draw(t, "last parts"), Hash: hash32(t, "last parts hash")}}
	}
	if height == 1 {
		h.AppHash = nil
	}
	return h
}

// cometCommit lets each validator vote in its way.
func cometCommit(t *rapid.T, h *types.Header, vals *types.ValidatorSet, ways []string) *types.Commit {
	id := types.BlockID{Hash: h.Hash(), PartSetHeader: types.PartSetHeader{Total: rapid.Uint32Range(1, 3).Draw(t, "parts"), Hash: hash32(t, "parts hash")}}
	m := &types.Commit{Height: h.Height, Round: rapid.Int32Range(0, 3).Draw(t, "round"), BlockID: id}
	for i, v := range vals.Validators {
		at := cometTime(t, h.Time)
		s := types.CommitSig{BlockIDFlag: types.BlockIDFlagCommit, ValidatorAddress: v.Address, Timestamp: at}
		voteFor := id
		switch ways[i] {
		case "absent":
			m.Signatures = append(m.Signatures, types.NewCommitSigAbsent())
			continue
		case "nil":
			s.BlockIDFlag = types.BlockIDFlagNil
			voteFor = types.BlockID{}
		case "other block":
			voteFor.Hash = append([]byte{}, voteFor.Hash...)
			voteFor.Hash[3] ^= 1
		}
		vote := &types.Vote{Type: cmtproto.PrecommitType, Height: h.Height, Round: m.Round, BlockID: voteFor, Timestamp: at, ValidatorAddress: v.Address, ValidatorIndex: int32(i)}
		key := cometKeyOf(v.PubKey)
		if ways[i] == "other key" {
			key = cometKey(150)
		}
		sig, err := key.Sign(types.VoteSignBytes("coop-1", vote.ToProto()))
		if err != nil {
			t.Fatal(err)
		}
		s.Signature = sig
		switch ways[i] {
		case "bad":
			s.Signature[rapid.IntRange(0, 63).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		case "address":
			s.ValidatorAddress = vals.Validators[(i+1)%len(vals.Validators)].Address
			if len(vals.Validators) == 1 {
				s.ValidatorAddress = crypto.Address(bytes.Repeat([]byte{7}, 20))
			}
		case "late": // the time is part of what is signed
			s.Timestamp = s.Timestamp.Add(1)
		}
		m.Signatures = append(m.Signatures, s)
	}
	return m
}

func cometKeyOf(k crypto.PubKey) ed25519.PrivKey {
	for i := range 40 {
		if cometKey(i).PubKey().Equals(k) {
			return cometKey(i)
		}
	}
	panic("no validator of the tests")
}

func cometBytes(t interface{ Fatal(...any) }, h *types.Header, m *types.Commit, vals *types.ValidatorSet) []byte {
	pb, err := (&types.LightBlock{SignedHeader: &types.SignedHeader{Header: h, Commit: m}, ValidatorSet: vals}).ToProto()
	if err != nil {
		t.Fatal(err)
	}
	b, err := pb.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestBytesAreComets: what is hashed and signed.
func TestBytesAreComets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		vals := drawSet(t, "set")
		h := cometHeader(t, rapid.Int64Range(1, 1<<40).Draw(t, "height"), cometTime(t, genesis), vals, vals)
		if rapid.Bool().Draw(t, "whole second") {
			h.Time = h.Time.Truncate(time.Second)
		}
		ways := make([]string, vals.Size())
		m := cometCommit(t, h, vals, ways)
		b, err := ParseComet(cometBytes(t, h, m, vals))
		if err != nil {
			t.Fatal(err)
		}
		if got := b.Header.Hash(); !bytes.Equal(got[:], h.Hash()) {
			t.Fatalf("header hash %v, CometBFT says %v", got, h.Hash())
		}
		if got := setHash(b.Set); !bytes.Equal(got[:], vals.Hash()) {
			t.Fatalf("set hash %v, CometBFT says %X", got, vals.Hash())
		}
		id := BlockID{b.Header.Hash(), b.Commit.Parts, b.Commit.PartsHash}
		for i, v := range b.Commit.Votes {
			if got, want := b.Commit.signBytes(b.Header.Chain, b.Header.Height, id.proto(), v.Time), m.VoteSignBytes("coop-1", int32(i)); !bytes.Equal(got, want) {
				t.Fatalf("vote %d\n%x\nCometBFT says\n%x", i, got, want)
			}
			if a := b.Set[i].Address(); !bytes.Equal(a[:], vals.Validators[i].Address) {
				t.Fatalf("address %x, CometBFT says %x", a, vals.Validators[i].Address)
			}
		}
		// Ours and back.
		raw, err := Encode(&Block{*b})
		if err != nil {
			t.Fatal(err)
		}
		back, err := Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if lb := back.(*Block); lb.Header.Hash() != b.Header.Hash() {
			t.Fatal("another header after encoding")
		}
	})
}

func drawSet(t *rapid.T, name string) *types.ValidatorSet {
	n := rapid.SampledFrom([]int{1, 4, 7}).Draw(t, name)
	numbers := rapid.Permutation([]int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}).Draw(t, name+" members")[:n]
	powers := make([]int64, n)
	for i := range powers {
		powers[i] = rapid.SampledFrom([]int64{1, 1, 1, 2, 3, 300}).Draw(t, "power")
	}
	return cometSet(numbers, powers)
}

// count tells how often each outcome occurred: an agreement on refusals alone would prove little.
type count map[string]int

// TestVerifyAgreesWithComet: the same verdict as light.Verify on thousands of blocks, most of them wrong in some way.
func TestVerifyAgreesWithComet(t *testing.T) {
	seen := count{}
	rapid.Check(t, func(t *rapid.T) {
		for range 30 {
			verifyBoth(t, seen)
		}
	})
	t.Logf("%v", seen)
	for _, k := range []string{"accepted next", "accepted far", "far", "expired", "invalid"} {
		if seen[k] == 0 {
			t.Errorf("no block was %s", k)
		}
	}
}

func verifyBoth(t *rapid.T, seen count) {
	baseSet := drawSet(t, "base")
	nextSet := baseSet
	if rapid.IntRange(0, 2).Draw(t, "change") == 0 {
		nextSet = drawSet(t, "next")
	}
	height := rapid.Int64Range(1, 1000).Draw(t, "height")
	gap := rapid.SampledFrom([]int64{1, 2, 5, 1, 2, 0, -1, 3000}).Draw(t, "gap")
	if height+gap < 1 {
		gap = 1
	}
	named := nextSet
	if rapid.IntRange(0, 5).Draw(t, "named") == 0 {
		named = drawSet(t, "other")
	}
	baseHeader := cometHeader(t, height, cometTime(t, genesis), baseSet, named)
	good := func(n int) []string { return make([]string, n) }
	baseCommit := cometCommit(t, baseHeader, baseSet, good(baseSet.Size()))

	at := baseHeader.Time.Add(rapid.SampledFrom([]time.Duration{time.Second, 1, time.Hour, time.Hour, 0, -1, -time.Hour}).Draw(t, "step"))
	nextHeader := cometHeader(t, height+gap, at, nextSet, nextSet)
	ways := good(nextSet.Size())
	wrongAddress := false
	for i := range ways {
		ways[i] = rapid.SampledFrom([]string{"", "", "", "", "", "", "", "nil", "absent", "absent", "bad", "other block", "other key", "late", "address"}).Draw(t, "way")
	}
	if rapid.Bool().Draw(t, "honest") {
		for i := range ways {
			if ways[i] != "nil" && ways[i] != "absent" {
				ways[i] = ""
			}
		}
	}
	if rapid.IntRange(0, 3).Draw(t, "all") == 0 {
		ways = good(nextSet.Size())
	}
	for _, w := range ways {
		wrongAddress = wrongAddress || w == "address"
	}
	nextCommit := cometCommit(t, nextHeader, nextSet, ways)
	shownSet := nextSet
	switch rapid.SampledFrom([]string{"", "", "", "", "", "hash", "hash and id", "commit height", "chain", "round", "parts", "set", "fewer", "protocol"}).Draw(t, "forge") {
	case "hash":
		forgeHeader(t, nextHeader)
	case "hash and id":
		forgeHeader(t, nextHeader)
		nextCommit.BlockID.Hash = nextHeader.Hash()
	case "commit height":
		nextCommit.Height++
	case "chain":
		nextHeader.ChainID = "coop-2"
		nextCommit.BlockID.Hash = nextHeader.Hash()
	case "round":
		nextCommit.Round++
	case "parts":
		nextCommit.BlockID.PartSetHeader.Total++
	case "set":
		shownSet = drawSet(t, "shown")
	case "fewer":
		nextCommit.Signatures = nextCommit.Signatures[:len(nextCommit.Signatures)-1]
	case "protocol":
		nextHeader.Version.Block = 12
		nextCommit.BlockID.Hash = nextHeader.Hash()
	}
	now := nextHeader.Time.Add(rapid.SampledFrom([]time.Duration{0, time.Hour, time.Hour, -MaxDrift, -MaxDrift + 1, -2 * MaxDrift}).Draw(t, "now"))
	period := 24 * time.Hour
	switch rapid.IntRange(0, 9).Draw(t, "expired") {
	case 0:
		now = baseHeader.Time.Add(period)
	case 1:
		now = baseHeader.Time.Add(period - 1)
	}

	want := light.Verify(&types.SignedHeader{Header: baseHeader, Commit: baseCommit}, baseSet,
		&types.SignedHeader{Header: nextHeader, Commit: nextCommit}, shownSet, period, now, MaxDrift, light.DefaultTrustLevel)

	base, err := ParseComet(cometBytes(t, baseHeader, baseCommit, baseSet))
	if err != nil {
		t.Fatal(err)
	}
	next, got := ParseComet(cometBytes(t, nextHeader, nextCommit, shownSet))
	if got == nil {
		got = Verify(base, next, now, period)
	}
	var far light.ErrNewValSetCantBeTrusted
	var old light.ErrOldHeaderExpired
	switch {
	case wrongAddress:
		// CometBFT looks no further than to the last vote that it needs; here every address is held against the set.
		if got == nil {
			t.Fatalf("a vote under another's address passed; CometBFT says %v", want)
		}
	case (want == nil) != (got == nil):
		t.Fatalf("CometBFT says: %v\nwe say: %v\nways %v", want, got, ways)
	case errors.As(want, &far) && !errors.Is(got, ErrFar) && len(nextCommit.Signatures) == shownSet.Size(), errors.Is(got, ErrFar) && !errors.As(want, &far) && len(nextCommit.Signatures) > 1:
		t.Fatalf("CometBFT says: %v\nwe say: %v", want, got)
	case errors.Is(got, ErrExpired) && !errors.As(want, &old):
		t.Fatalf("CometBFT says: %v\nwe say: %v", want, got)
	}
	switch {
	case got == nil && gap == 1:
		seen["accepted next"]++
	case got == nil:
		seen["accepted far"]++
	case errors.Is(got, ErrFar):
		seen["far"]++
	case errors.Is(got, ErrExpired):
		seen["expired"]++
	default:
		seen["invalid"]++
	}
}

func forgeHeader(t *rapid.T, h *types.Header) {
	h.AppHash = append([]byte{}, h.AppHash...)
	fields := [][]byte{h.LastCommitHash, h.DataHash, h.ConsensusHash, h.LastResultsHash, h.EvidenceHash, h.AppHash}
	switch i := rapid.IntRange(0, len(fields)+2).Draw(t, "field"); {
	case i < len(fields) && len(fields[i]) > 0:
		fields[i][rapid.IntRange(0, 31).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
	case i == len(fields):
		h.Version.App++
	case i == len(fields)+1:
		h.Time = h.Time.Add(1)
	default:
		h.Height++
	}
}

// TestMutatedBytes: bytes of a light block, changed anywhere. What passes here passes CometBFT, too.
func TestMutatedBytes(t *testing.T) {
	passed := 0
	rapid.Check(t, func(t *rapid.T) {
		vals := cometSet([]int{0, 1, 2, 3}, []int64{1, 1, 1, 1})
		h1 := cometHeader(t, 5, genesis, vals, vals)
		h2 := cometHeader(t, 9, genesis.Add(time.Hour), vals, vals)
		m1, m2 := cometCommit(t, h1, vals, make([]string, 4)), cometCommit(t, h2, vals, []string{"", "nil", "", ""})
		base, err := ParseComet(cometBytes(t, h1, m1, vals))
		if err != nil {
			t.Fatal(err)
		}
		now := genesis.Add(2 * time.Hour)
		for range 20 {
			b := cometBytes(t, h2, m2, vals)
			mutate(t, &b)
			next, err := ParseComet(b)
			if err == nil {
				err = Verify(base, next, now, DefaultPeriod)
			}
			if err != nil {
				continue
			}
			passed++
			var pb cmtproto.LightBlock
			if err := pb.Unmarshal(b); err != nil {
				t.Fatalf("passed here; CometBFT cannot read it: %v", err)
			}
			// Proposer and turns are in no hash; nobody's verdict depends on them.
			pb.ValidatorSet.Proposer = nil
			clean := cmtproto.ValidatorSet{Validators: pb.ValidatorSet.Validators, Proposer: pb.ValidatorSet.Validators[0]}
			pb.ValidatorSet = &clean
			lb, err := types.LightBlockFromProto(&pb)
			if err != nil {
				t.Fatalf("passed here; CometBFT says: %v", err)
			}
			if err := light.Verify(&types.SignedHeader{Header: h1, Commit: m1}, vals, lb.SignedHeader, lb.ValidatorSet, DefaultPeriod, now, MaxDrift, light.DefaultTrustLevel); err != nil {
				if strings.Contains(err.Error(), "invalid commit") && strings.Contains(err.Error(), "CommitSig") {
					continue // the form of a vote that does not count (nil, absent), which is not looked at here
				}
				t.Fatalf("passed here; CometBFT says: %v", err)
			}
		}
	})
	t.Logf("%d changed blocks passed both", passed)
}

func mutate(t *rapid.T, b *[]byte) {
	for range rapid.IntRange(1, 3).Draw(t, "changes") {
		i := rapid.IntRange(0, len(*b)-1).Draw(t, "at")
		switch rapid.IntRange(0, 4).Draw(t, "how") {
		case 0:
			*b = append((*b)[:i:i], (*b)[i+1:]...)
		case 1:
			*b = append((*b)[:i:i], append([]byte{rapid.Byte().Draw(t, "byte")}, (*b)[i:]...)...)
		case 2:
			(*b)[i] = rapid.Byte().Draw(t, "byte")
		default:
			(*b)[i] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		}
	}
}

// tree is a real IAVL tree with some history.
func newTree(t interface{ Fatal(...any) }, keys int, history int) (*iavl.MutableTree, map[string][]byte) {
	tree := iavl.NewMutableTree(iavldb.NewWrapper(dbm.NewMemDB()), 0, false, iavl.NewNopLogger())
	want := map[string][]byte{}
	for v := range history {
		for i := range keys {
			if i%history != v && v > 0 && i%(v+3) != 0 {
				continue
			}
			k := append([]byte{'a'}, binary.BigEndian.AppendUint32(bytes.Repeat([]byte{byte(i * 37)}, 28), uint32(i))...)
			val := binary.BigEndian.AppendUint64([]byte{1}, uint64(i*history+v))
			if _, err := tree.Set(k, val); err != nil {
				t.Fatal(err)
			}
			want[string(k)] = val
		}
		if _, _, err := tree.SaveVersion(); err != nil {
			t.Fatal(err)
		}
	}
	return tree, want
}

// TestProofsAreIAVLs: real proofs pass, changed ones prove nothing that is not in the tree, and what passes here passes ICS-23.
func TestProofsAreIAVLs(t *testing.T) {
	for _, n := range []int{1, 2, 3, 50, 700} {
		tree, want := newTree(t, n, 4)
		root := tree.Hash()
		if _, err := tree.Set([]byte("x"), []byte("y")); err != nil { // not saved: proofs are of a saved version
			t.Fatal(err)
		}
		saved, err := tree.GetImmutable(tree.Version())
		if err != nil {
			t.Fatal(err)
		}
		var keys []string
		for k, v := range want {
			keys = append(keys, k)
			if len(keys) > 60 {
				break
			}
			ep, err := saved.GetMembershipProof([]byte(k))
			if err != nil {
				t.Fatal(err)
			}
			raw, err := ep.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			key, value, p, err := ParseICS23(raw)
			if err != nil {
				t.Fatal(err)
			}
			got, err := p.Root(key, value)
			if err != nil || !bytes.Equal(got[:], root) || string(key) != k || !bytes.Equal(value, v) {
				t.Fatalf("key %x: root %v, IAVL says %X (%v)", k, got, root, err)
			}
		}
		rapid.Check(t, func(t *rapid.T) {
			k := rapid.SampledFrom(keys).Draw(t, "key")
			ep, err := saved.GetMembershipProof([]byte(k))
			if err != nil {
				t.Fatal(err)
			}
			for range 20 {
				raw, err := ep.Marshal()
				if err != nil {
					t.Fatal(err)
				}
				mutate(t, &raw)
				key, value, p, err := ParseICS23(raw)
				if err != nil {
					continue
				}
				got, err := p.Root(key, value)
				if err != nil || !bytes.Equal(got[:], root) {
					continue
				}
				var pb ics23.CommitmentProof
				if err := pb.Unmarshal(raw); err != nil || !ics23.VerifyMembership(ics23.IavlSpec, root, &pb, key, value) {
					t.Fatalf("passed here, not by ICS-23 (%v)", err)
				}
				if !bytes.Equal(want[string(key)], value) {
					t.Fatalf("proved %x = %x, which is not in the tree", key, value)
				}
			}
		})
	}
}

// TestNoProofOfAbsence: they are refused as a kind.
func TestNoProofOfAbsence(t *testing.T) {
	tree, _ := newTree(t, 20, 2)
	p, err := tree.GetNonMembershipProof([]byte("nothing"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := p.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := ParseICS23(raw); !errors.Is(err, ErrProof) {
		t.Fatal(err)
	}
}
