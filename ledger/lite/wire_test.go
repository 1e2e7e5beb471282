package lite

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"weft/ident"
	"weft/ledger/tx"
)

// examples are one message of each kind, and some at their bounds.
func examples(t testing.TB) []Message {
	t.Helper()
	s := set(0, 1, 2, 3)
	c := steady(2, s)
	b := clone(c.blocks[1])
	b.Commit.Votes[2] = Vote{}
	return []Message{
		&GetBlock{},
		&GetBlock{Height: 1<<63 - 1},
		&Block{*c.blocks[0]},
		&Block{*b},
		&GetRecord{Height: 7, Key: tx.StateKeyAccount(pub(0))},
		&Record{Height: 7, Key: tx.StateKeyAccount(pub(0))},
		&Record{Height: 7, Key: []byte("akey"), Value: []byte("value"), Proof: Proof{Version: 3, Path: []Step{{1, 2, 3, true, Hash{1}}, {2, 4, 5, false, Hash{2}}}}},
		&Record{Key: bytes.Repeat([]byte{1}, MaxKey), Value: bytes.Repeat([]byte{2}, MaxValue), Proof: Proof{Path: make([]Step, MaxPath)}},
		&Submit{Tx: bytes.Repeat([]byte{3}, tx.MaxLen)},
		&Verdict{Tx: Hash{9}, Code: 5, Text: "nonce 3 where 4 comes next"},
		&Nothing{About: 1, Text: "this node has no newer block"},
	}
}

func TestMessages(t *testing.T) {
	for _, m := range examples(t) {
		b, err := Encode(m)
		if err != nil {
			t.Fatalf("%T: %v", m, err)
		}
		got, err := Parse(b)
		if err != nil {
			t.Fatalf("%T: %v", m, err)
		}
		if d := cmp.Diff(m, got); d != "" {
			t.Errorf("%T: %s", m, d)
		}
		for i := range b { // every byte counts
			if _, err := Parse(b[:i]); err == nil {
				t.Fatalf("%T cut to %d bytes passes", m, i)
			}
			if i > 300 {
				break
			}
		}
		if _, err := Parse(append(b, 0)); err == nil {
			t.Fatalf("%T with a byte too many passes", m)
		}
	}
	for _, m := range []Message{
		&GetBlock{Height: -1}, &GetRecord{}, &GetRecord{Key: make([]byte, MaxKey+1)}, &Submit{}, &Submit{Tx: make([]byte, tx.MaxLen+1)},
		&Record{Key: []byte("k"), Value: make([]byte, MaxValue+1)}, &Record{Key: []byte("k"), Value: []byte("v"), Proof: Proof{Path: make([]Step, MaxPath+1)}},
		&Block{}, &Nothing{Text: "\x07"}, &Block{LightBlock{Header: Header{Chain: "x", Time: time.Unix(-1, 0)}}},
		&Block{LightBlock{Header: Header{Chain: "x", Time: genesis, AppHash: []byte{1}}}},
		&Block{LightBlock{Header: Header{Chain: "x", Time: genesis}, Commit: Commit{Round: -1}}},
	} {
		if b, err := Encode(m); err == nil {
			t.Errorf("%T out of bounds passes as %x", m, b)
		}
	}
}

// TestGolden: the bytes of docs/spec/ledger-light.md section 6.7. They never change.
func TestGolden(t *testing.T) {
	want, err := os.ReadFile(filepath.Join("testdata", "messages.txt"))
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, m := range examples(t) {
		b, err := Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		text := hex.EncodeToString(b)
		if len(text) > 3000 {
			text = "sha256:" + hex.EncodeToString(sum[:])
		}
		got.WriteString(text + "\n")
	}
	if d := cmp.Diff(string(want), got.String()); d != "" {
		t.Error(d)
	}
}

func TestParts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var j Joiner
		type part struct {
			msg  int
			data []byte
		}
		var parts []part
		var msgs [][]byte
		for i := range rapid.IntRange(1, maxJoining).Draw(t, "messages") {
			m := bytes.Repeat([]byte{byte(i)}, rapid.IntRange(2, MaxMessage).Draw(t, "length"))
			m[0], m[1] = messageVersion, 2
			msgs = append(msgs, m)
			ps, err := Split(m, uint32(i), 1100)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range ps {
				if len(p) > 1100 {
					t.Fatal(len(p))
				}
				parts = append(parts, part{i, p}, part{i, p}) // datagrams come twice
			}
		}
		done := map[int]bool{}
		for _, p := range rapid.Permutation(parts).Draw(t, "order") {
			m, err := j.Add(p.data)
			if err != nil {
				t.Fatal(err)
			}
			if m != nil {
				if !bytes.Equal(m, msgs[p.msg]) {
					t.Fatal("another message")
				}
				done[p.msg] = true
			}
		}
		if len(done) != len(msgs) {
			t.Fatalf("%d of %d messages came", len(done), len(msgs))
		}
	})
	if _, err := Split(make([]byte, MaxMessage), 1, 100); err == nil {
		t.Error("too many parts pass")
	}
	var j Joiner
	for _, b := range [][]byte{{1, 8}, {1, 8, 0, 0, 0, 1, 0, 2}, {1, 8, 0, 0, 0, 1, 2, 2, 5}, {1, 8, 0, 0, 0, 1, 0, 1, 5}, {1, 8, 0, 0, 0, 1, 0, 49, 5}} {
		if m, err := j.Add(b); err == nil {
			t.Errorf("%x passes as %x", b, m)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, m := range examples(f) {
		b, err := Encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Parse(b)
		if err != nil {
			return
		}
		again, err := Encode(m)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x became %x (%v)", b, again, err)
		}
		switch m := m.(type) {
		case *Block:
			c, err := New(Trust{Chain: "test-1", Height: 1, Hash: Hash{1}})
			if err != nil {
				t.Fatal(err)
			}
			c.Update(genesis, &m.LightBlock)
			if m.check(m.Header.Chain); m.Header.Height > 0 {
				Verify(&m.LightBlock, &m.LightBlock, genesis, DefaultPeriod)
			}
		case *Record:
			m.Proof.Root(m.Key, m.Value)
		}
	})
}

func FuzzParts(f *testing.F) {
	ps, err := Split(make([]byte, 3000), 7, 1100)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ps[0], ps[1], ps[2])
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		var j Joiner
		for _, p := range [][]byte{a, b, c, a} {
			if m, err := j.Add(p); err != nil && m != nil {
				t.Fatal("a message and an error")
			}
		}
		size := 0
		for _, m := range j.joining {
			size += m.size
		}
		if len(j.joining) > maxJoining || size > maxJoining*MaxMessage {
			t.Fatal("out of bounds")
		}
	})
}

func FuzzLoad(f *testing.F) {
	c := steady(3, set(0, 1))
	cl := c.client(f)
	f.Add(cl.Save())
	cl.Update(genesis.Add(time.Hour), c.blocks[2])
	f.Add(cl.Save())
	cl.Update(genesis.Add(time.Hour), c.fork(2).add(set(0, 1), set(0, 1), 1))
	f.Add(cl.Save())
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Load(b)
		if err != nil {
			return
		}
		if !bytes.Equal(c.Save(), b) {
			t.Fatalf("%x became %x", b, c.Save())
		}
		c.Status(genesis)
		c.Want(genesis)
	})
}

// captured is what a real chain of one validator gave: its first block, a later one, an account with its proof, the first block's hash and
// the account's key.
func captured(t testing.TB, version string) (first, later, proof, value, hash, key []byte) {
	t.Helper()
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("testdata", version, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(strings.ReplaceAll(s, "\n", ""))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	meta := strings.Fields(string(read("meta.txt")))
	return unhex(string(read("first.hex"))), unhex(string(read("later.hex"))), unhex(string(read("proof.hex"))), unhex(string(read("value.hex"))), unhex(meta[0]), unhex(meta[1])
}

// TestRealChains: from the checkpoint to a proven record, on what CometBFT v0.40.0 and v0.38.26 with IAVL v1.2.8 made.
func TestRealChains(t *testing.T) {
	for _, version := range []string{"v0.40.0", "v0.38.26"} {
		t.Run(version, func(t *testing.T) {
			first, later, proof, value, hash, key := captured(t, version)
			b1, err := ParseComet(first)
			if err != nil {
				t.Fatal(err)
			}
			bn, err := ParseComet(later)
			if err != nil {
				t.Fatal(err)
			}
			now := bn.Header.Time.Add(time.Minute)
			c, err := New(Trust{Chain: b1.Header.Chain, Height: 1, Hash: Hash(hash)})
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range []*LightBlock{b1, bn} {
				raw, err := Encode(&Block{*b}) // over the wire
				if err != nil {
					t.Fatal(err)
				}
				m, err := Parse(raw)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("block %d has %d bytes", b.Header.Height, len(raw))
				if n, err := c.Update(now, &m.(*Block).LightBlock); n != Trusted || err != nil {
					t.Fatal(n, err)
				}
			}
			k, v, p, err := ParseICS23(proof)
			if err != nil || !bytes.Equal(k, key) || !bytes.Equal(v, value) {
				t.Fatal(err)
			}
			t.Logf("proof has %d bytes over %d levels", len(tx.Encode(&p)), len(p.Path))
			if at, err := c.Prove(now, key, value, &p, bn.Header.Height-1); err != nil || !at.Equal(bn.Header.Time) {
				t.Fatal(at, err)
			}
			v[0] ^= 1
			if _, err := c.Prove(now, key, v, &p, bn.Header.Height-1); !errors.Is(err, ErrProof) {
				t.Fatal(err)
			}
		})
	}
}

func FuzzParseComet(f *testing.F) {
	for _, v := range []string{"v0.40.0", "v0.38.26"} {
		first, later, _, _, _, _ := captured(f, v)
		f.Add(first)
		f.Add(later)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		lb, err := ParseComet(b)
		if err != nil {
			return
		}
		raw, err := Encode(&Block{*lb})
		if err != nil {
			return // such as a chain id that is not UTF-8
		}
		m, err := Parse(raw)
		if err != nil || m.(*Block).Header.Hash() != lb.Header.Hash() {
			t.Fatalf("another block after encoding (%v)", err)
		}
	})
}

func FuzzParseICS23(f *testing.F) {
	for _, v := range []string{"v0.40.0", "v0.38.26"} {
		_, _, proof, _, _, _ := captured(f, v)
		f.Add(proof)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		key, value, p, err := ParseICS23(b)
		if err != nil {
			return
		}
		if _, err := Encode(&Record{Key: key, Value: value, Proof: p}); err != nil {
			t.Fatal(err)
		}
		p.Root(key, value)
	})
}

func TestSender(t *testing.T) {
	agent, err := ident.FromSeed(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	s := NewSender(agent, "test-1")
	body := &tx.Transfer{To: pub(0), Amount: 5}
	if _, err := s.Sign(genesis, 0, body); !errors.Is(err, ErrNonce) {
		t.Fatal(err)
	}
	s.Proven(tx.Account{Nonce: 41})
	nonces := []uint64{}
	next := func(life time.Duration) tx.Tx {
		t.Helper()
		raw, err := s.Sign(genesis, life, body)
		if err != nil {
			t.Fatal(err)
		}
		x, err := tx.Parse(raw)
		if err != nil || tx.Verify(x, raw) != nil || x.Chain != tx.ChainOf("test-1") || x.Sender != agent.Public() {
			t.Fatal(x, err)
		}
		nonces = append(nonces, x.Nonce)
		return x
	}
	if x := next(0); x.Expiry != genesis.Add(DefaultLife).Unix() {
		t.Fatal(x.Expiry)
	}
	next(MaxLife)
	s.Proven(tx.Account{Nonce: 42})
	if s.Pending() != 1 {
		t.Fatal(s.Pending())
	}
	next(time.Minute)
	s.Proven(tx.Account{Nonce: 40}) // an old proof: no step back
	next(0)
	s.Again()
	next(0)
	if d := cmp.Diff([]uint64{42, 43, 44, 45, 43}, nonces); d != "" {
		t.Error(d)
	}
	for _, life := range []time.Duration{-1, time.Millisecond, MaxLife + 1} {
		if _, err := s.Sign(genesis, life, body); err == nil {
			t.Errorf("a life of %v passes", life)
		}
	}
	if _, err := s.Sign(genesis, 0, &tx.Transfer{Memo: strings.Repeat("x", 1000)}); err == nil || s.Pending() != 1 {
		t.Error("a body out of bounds passes, or takes a nonce", err)
	}
}

func TestCheckpoints(t *testing.T) {
	for _, x := range []Trust{{}, {Chain: "c", Height: 1}, {Chain: "c", Hash: Hash{1}}, {Height: 1, Hash: Hash{1}}, {Chain: strings.Repeat("c", 51), Height: 1, Hash: Hash{1}},
		{Chain: "c", Height: 1, Hash: Hash{1}, Period: time.Second}, {Chain: "c", Height: 1, Hash: Hash{1}, Period: 1000 * 24 * time.Hour}} {
		if _, err := New(x); err == nil {
			t.Errorf("%+v passes", x)
		}
	}
}

func BenchmarkVerify1(b *testing.B) { benchVerify(b, 1) }
func BenchmarkVerify4(b *testing.B) { benchVerify(b, 4) }
func BenchmarkVerify7(b *testing.B) { benchVerify(b, 7) }

func benchVerify(b *testing.B, n int) {
	c := steady(3, set([]int{0, 1, 2, 3, 4, 5, 6}[:n]...))
	now := genesis.Add(time.Hour)
	for b.Loop() {
		if err := Verify(c.blocks[0], c.blocks[2], now, DefaultPeriod); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkProof(b *testing.B) {
	_, _, proof, _, _, _ := captured(b, "v0.40.0")
	key, value, p, err := ParseICS23(proof)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := p.Root(key, value); err != nil {
			b.Fatal(err)
		}
	}
}
