package lite

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestFollow(t *testing.T) {
	c := steady(200, set(0, 1, 2, 3))
	cl := c.client(t)
	now := genesis.Add(200 * time.Minute)
	for _, h := range []int{2, 3, 50, 200, 100, 101} {
		if n, err := cl.Update(now, c.blocks[h-1]); n != Trusted || err != nil {
			t.Fatalf("block %d: %v, %v", h, n, err)
		}
		if n, err := cl.Update(now, clone(c.blocks[h-1])); n != Known || err != nil {
			t.Fatalf("block %d again: %v, %v", h, n, err)
		}
	}
	if h := cl.Newest().Header.Height; h != 200 {
		t.Fatal("newest is", h)
	}
	if h, ok := cl.Want(now); h != 0 || !ok {
		t.Fatal("wants", h, ok)
	}
}

// changing is a chain whose set changes by one of four every 20 blocks, so that blocks 60 apart share one validator.
func changing(n int) *testChain {
	c := &testChain{id: "test-1"}
	of := func(h int) []Validator { k := h / 20; return set(k, k+1, k+2, k+3) }
	for h := 1; h <= n; h++ {
		c.add(of(h), of(h+1), 0)
	}
	return c
}

// TestBisect: Want leads from the checkpoint to the newest block in few steps, whatever is lied on the way.
func TestBisect(t *testing.T) {
	c := changing(1000)
	now := genesis.Add(1000 * time.Minute)
	cl := c.client(t)
	steps := 0
	for ; cl.Newest().Header.Height < 1000; steps++ {
		h, ok := cl.Want(now)
		if !ok || steps > 300 {
			t.Fatalf("stuck at %d after %d steps, wants %d", cl.Newest().Header.Height, steps, h)
		}
		if h == 0 {
			h = 1000
		}
		if _, err := cl.Update(now, c.blocks[h-1]); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d blocks asked for on the way over 1000 with 50 changes of the set", steps)
}

// TestWaiting: a block that was too far is trusted as soon as the one between is.
func TestWaiting(t *testing.T) {
	c := changing(70)
	now := genesis.Add(70 * time.Minute)
	cl := c.client(t)
	if n, err := cl.Update(now, c.blocks[69]); n != Later || err != nil {
		t.Fatal(n, err)
	}
	if h, ok := cl.Want(now); h != 35 || !ok {
		t.Fatal(h, ok)
	}
	if n, err := cl.Update(now, c.blocks[34]); n != Trusted || err != nil {
		t.Fatal(n, err)
	}
	if h := cl.Newest().Header.Height; h != 70 {
		t.Fatal("newest is", h)
	}
}

// TestOtherPowers: the set beside a header is the one that it names, to the last vote's weight.
func TestOtherPowers(t *testing.T) {
	c := steady(9, set(0, 1, 2, 3))
	now := genesis.Add(time.Hour)
	for i, change := range []func(s []Validator) []Validator{
		func(s []Validator) []Validator { s[0].Power = 10; return s },
		func(s []Validator) []Validator { s[0], s[1] = s[1], s[0]; return s },
		func(s []Validator) []Validator { return s[:3] },
		func(s []Validator) []Validator { s[3].Power = 0; return s },
		func(s []Validator) []Validator { s[3].Power = -1; return s },
		func(s []Validator) []Validator { s[3].Power = maxPower + 1; return s },
		func(s []Validator) []Validator { s[3] = s[2]; return s },
		func(s []Validator) []Validator { return nil },
	} {
		b := clone(c.blocks[8])
		b.Set = change(b.Set)
		b.Commit.Votes = b.Commit.Votes[:len(b.Set)]
		for i := range b.Set {
			sign(b, i, now)
		}
		if err := Verify(c.blocks[0], b, now, DefaultPeriod); !errors.Is(err, ErrInvalid) {
			t.Errorf("change %d: %v", i, err)
		}
	}
}

// TestLiars: any mix of true blocks, forged ones and blocks of other sets, in any order; what is trusted is of the true chain, and
// honest answers to Want always lead to its end.
func TestLiars(t *testing.T) {
	c := changing(120)
	wrong := &testChain{id: "test-1"} // by nobody's validators
	for range 200 {
		wrong.add(set(100, 101, 102, 103), set(100, 101, 102, 103), 9)
	}
	now := genesis.Add(200 * time.Minute)
	rapid.Check(t, func(t *rapid.T) {
		cl := c.client(t)
		honest := 0
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				cl.Update(now, wrong.blocks[rapid.IntRange(0, 199).Draw(t, "wrong")])
			case 1:
				b := clone(c.blocks[rapid.IntRange(0, 119).Draw(t, "height")])
				spoil(t, b)
				if b.Header.Height > 120 || b.Header.Hash() != c.blocks[b.Header.Height-1].Header.Hash() {
					if n, err := cl.Update(now, b); n == Trusted || err == nil && n != Later {
						t.Fatal("a forged block is", n)
					}
				}
			case 2:
				if _, err := cl.Update(now, c.blocks[rapid.IntRange(0, 119).Draw(t, "height")]); err != nil && !errors.Is(err, ErrFar) {
					t.Fatal(err)
				}
			default:
				h, ok := cl.Want(now)
				if !ok {
					t.Fatal("wants nothing")
				}
				if h <= 120 {
					cl.Update(now, c.blocks[(h+119)%120])
				}
			}
		}
		for cl.Newest().Header.Height < 120 {
			if honest++; honest > 100 {
				t.Fatal("no way to the end")
			}
			h, _ := cl.Want(now)
			if h == 0 || h > 120 { // nobody has it: the neighbour offers its newest
				h = 120
			}
			if _, err := cl.Update(now, c.blocks[h-1]); err != nil && !errors.Is(err, ErrFar) {
				t.Fatal(err)
			}
		}
		for _, k := range cl.kept {
			if k.Header.Height > 120 || k.hash != c.blocks[k.Header.Height-1].Header.Hash() {
				t.Fatal("trusts a block that is not of the chain")
			}
		}
		if cl.Fork() != nil {
			t.Fatal("a fork where none is")
		}
		load, err := Load(cl.Save())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(load.Save(), cl.Save()) {
			t.Fatal("not the same after loading")
		}
	})
}

// spoil changes a block so that some check must fail, or nothing of weight is changed.
func spoil(t *rapid.T, b *LightBlock) {
	v := &b.Commit.Votes[rapid.IntRange(0, len(b.Set)-1).Draw(t, "vote")]
	switch rapid.IntRange(0, 6).Draw(t, "spoil") {
	case 0:
		b.Header.AppHash = bytes.Repeat([]byte{7}, 32)
	case 1:
		b.Header.Time = b.Header.Time.Add(time.Second)
	case 2:
		b.Header.Validators, b.Set = setHash(set(100)), set(100)
		b.Commit.Votes = make([]Vote, 1)
		sign(b, 0, b.Header.Time)
	case 3:
		b.Header.NextValidators = setHash(set(100))
	case 4:
		b.Header.Height++
	case 5:
		b.Header.Data[0] ^= 1
		v.Sig[5] ^= 1
	default:
		b.Header.Last.Hash[1] ^= 1
	}
}

// TestForks: blocks that contradict each other, all well signed.
func TestForks(t *testing.T) {
	s := set(0, 1, 2, 3)
	now := genesis.Add(time.Hour)
	for name, other := range map[string]func(c *testChain) *LightBlock{
		"same height": func(c *testChain) *LightBlock { f := c.fork(29); return f.add(s, s, 1) },
		"parent": func(c *testChain) *LightBlock {
			f := c.fork(29)
			f.add(s, s, 1)
			return f.add(s, s, 1) // 31, after another 30
		},
		"time": func(c *testChain) *LightBlock {
			f := c.fork(24)
			b := f.add(s, s, 1)
			b.Header.Time = c.blocks[29].Header.Time
			for i := range s {
				sign(b, i, b.Header.Time)
			}
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := steady(40, s)
			cl := c.client(t)
			for _, h := range []int{20, 30} {
				if n, err := cl.Update(now, c.blocks[h-1]); n != Trusted || err != nil {
					t.Fatal(n, err)
				}
			}
			if n, err := cl.Update(now, other(c)); n != Refused || !errors.Is(err, ErrFork) {
				t.Fatal(n, err)
			}
			for _, b := range []*LightBlock{c.blocks[34], c.blocks[29], c.blocks[0]} { // nothing goes on
				if n, err := cl.Update(now, b); n != Refused || !errors.Is(err, ErrFork) {
					t.Fatal(n, err)
				}
			}
			if _, ok := cl.Want(now); ok {
				t.Fatal("wants a block after a fork")
			}
			if _, err := cl.Prove(now, []byte("k"), []byte("v"), &Proof{}, 29); !errors.Is(err, ErrFork) {
				t.Fatal(err)
			}
			back, err := Load(cl.Save())
			if err != nil {
				t.Fatal(err)
			}
			if st := back.Status(now); st.State != Forked || back.Fork() == nil || back.Fork().A.Header.Hash() != cl.Fork().A.Header.Hash() || back.Fork().B.Header.Hash() != cl.Fork().B.Header.Hash() {
				t.Fatalf("%+v", st)
			}
		})
	}
	// After a restart only the newest block is left to tell by, and it does.
	c := steady(40, s)
	cl := c.client(t)
	cl.Update(now, c.blocks[29])
	cl, err := Load(cl.Save())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Update(now, c.fork(29).add(s, s, 1)); !errors.Is(err, ErrFork) {
		t.Fatal(err)
	}
	// One validator of four that signs twice is no fork: the others' signatures are missing.
	cl = c.client(t)
	cl.Update(now, c.blocks[29])
	b := c.fork(29).add(s, s, 1)
	for i := range 3 {
		b.Commit.Votes[i] = Vote{}
	}
	if n, err := cl.Update(now, b); n != Refused || errors.Is(err, ErrFork) || cl.Fork() != nil {
		t.Fatal(n, err)
	}
}

// TestForkFoundByBisection: the wrong branch is far away, and the block between shows it.
func TestForkFoundByBisection(t *testing.T) {
	c := changing(100)
	f := c.fork(30)
	for h := 31; h <= 100; h++ {
		k := h / 20
		f.add(set(k, k+1, k+2, k+3), set((h+1)/20, (h+1)/20+1, (h+1)/20+2, (h+1)/20+3), 5)
	}
	now := genesis.Add(100 * time.Minute)
	cl := c.client(t)
	cl.Update(now, c.blocks[39])
	for range 50 {
		h, ok := cl.Want(now)
		if !ok {
			break
		}
		if h == 0 {
			h = 100
		}
		cl.Update(now, f.blocks[h-1])
		cl.Update(now, c.blocks[h-1])
	}
	if cl.Fork() == nil {
		t.Fatal("both branches were shown and no fork found")
	}
}

func TestStatus(t *testing.T) {
	c := steady(10, set(0))
	cl, err := New(c.trust(3))
	if err != nil {
		t.Fatal(err)
	}
	if h, ok := cl.Want(genesis); h != 3 || !ok {
		t.Fatal(h, ok)
	}
	if n, err := cl.Update(genesis, c.blocks[4]); n != Refused || !errors.Is(err, ErrFar) {
		t.Fatal(n, err)
	}
	if n, err := cl.Update(genesis, c.blocks[2]); n != Refused || !errors.Is(err, ErrInvalid) { // two minutes ahead of the clock
		t.Fatal(n, err)
	}
	at := c.blocks[2].Header.Time
	if s := cl.Status(at); s.State != Waiting {
		t.Fatal(s)
	}
	forged := clone(c.blocks[2])
	forged.Header.AppHash = bytes.Repeat([]byte{1}, 32)
	sign(forged, 0, at)
	if n, err := cl.Update(at, forged); n != Refused || !errors.Is(err, ErrInvalid) {
		t.Fatal(n, err)
	}
	if n, err := cl.Update(at, c.blocks[2]); n != Trusted || err != nil {
		t.Fatal(n, err)
	}
	for _, x := range []struct {
		after time.Duration
		state State
		text  string
	}{
		{time.Second, Good, "Up to date: block 3, 1 second old."},
		{30 * time.Minute, Good, "block 3, 30 minutes old"},
		{-2 * time.Minute, WrongTime, "Set the clock"},
		{3 * time.Hour, Late, "No news of the ledger for 3 hours"},
		{50 * time.Hour, Late, "without news by 15 November"},
		{DefaultPeriod, Expired, "14 days old"},
	} {
		s := cl.Status(at.Add(x.after))
		if s.State != x.state || !strings.Contains(strings.ToLower(s.Text), strings.ToLower(x.text)) {
			t.Errorf("after %v: %d %q", x.after, s.State, s.Text)
		}
	}
	if _, ok := cl.Want(at.Add(DefaultPeriod)); ok {
		t.Error("wants a block that it cannot judge")
	}
	if n, err := cl.Update(at.Add(DefaultPeriod), c.blocks[3]); n != Refused || !errors.Is(err, ErrExpired) {
		t.Error(n, err)
	}
}

// leafRoot is a state of one record.
func stateOf(t testing.TB, key, value string) (root [32]byte) {
	r, err := (&Proof{Version: 1}).Root([]byte(key), []byte(value))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestProve(t *testing.T) {
	s := set(0, 1, 2, 3)
	c := steady(10, s)
	c.state = stateOf(t, "akey", "value")
	c.add(s, s, 0) // 11: the state after 10
	cl := c.client(t)
	now := genesis.Add(time.Hour)
	p := &Proof{Version: 1}
	if _, err := cl.Prove(now, []byte("akey"), []byte("value"), p, 10); !errors.Is(err, ErrHeader) {
		t.Fatal(err)
	}
	if n, err := cl.Update(now, c.blocks[10]); n != Trusted || err != nil {
		t.Fatal(n, err)
	}
	at, err := cl.Prove(now, []byte("akey"), []byte("value"), p, 10)
	if err != nil || !at.Equal(c.blocks[10].Header.Time) {
		t.Fatal(at, err)
	}
	for _, x := range []struct {
		key, value string
		p          Proof
		height     int64
		want       error
	}{
		{"akey", "valuf", *p, 10, ErrProof},
		{"akez", "value", *p, 10, ErrProof},
		{"akey", "value", Proof{Version: 2}, 10, ErrProof},
		{"akey", "value", Proof{Version: -1}, 10, ErrProof},
		{"akey", "", *p, 10, ErrProof},
		{"", "value", *p, 10, ErrProof},
		{"akey", "value", *p, 0, ErrProof}, // block 1 has no state before it
		{"akey", "value", *p, 9, ErrHeader},
		{"akey", "value", *p, 11, ErrHeader},
		{"akey", "value", *p, -1 << 63, ErrHeader},
		{"akey", "value", Proof{Version: 1, Path: []Step{{Height: 0, Size: 2}}}, 10, ErrProof},
		{"akey", "value", Proof{Version: 1, Path: []Step{{Height: 1, Size: 2}, {Height: 1, Size: 3}}}, 10, ErrProof},
		{"akey", "value", Proof{Version: 1, Path: make([]Step, MaxPath+1)}, 10, ErrProof},
	} {
		if _, err := cl.Prove(now, []byte(x.key), []byte(x.value), &x.p, x.height); !errors.Is(err, x.want) {
			t.Errorf("%+v: %v", x, err)
		}
	}
	if _, err := cl.Prove(now.Add(DefaultPeriod), []byte("akey"), []byte("value"), p, 10); !errors.Is(err, ErrExpired) {
		t.Error(err)
	}
}

// TestStateIsBounded: the largest set there may be.
func TestStateIsBounded(t *testing.T) {
	var numbers []int
	for i := range MaxValidators {
		numbers = append(numbers, i)
	}
	s := set(numbers...)
	c := steady(maxKept+3, s)
	cl := c.client(t)
	now := genesis.Add(2 * time.Hour)
	for _, b := range c.blocks[1:] {
		if n, err := cl.Update(now, b); n != Trusted || err != nil {
			t.Fatal(n, err)
		}
	}
	if len(cl.kept) != maxKept {
		t.Fatal(len(cl.kept), "blocks kept")
	}
	if _, err := cl.Update(now, c.fork(maxKept+2).add(s, s, 1)); !errors.Is(err, ErrFork) {
		t.Fatal(err)
	}
	if n := len(cl.Save()); n > MaxState {
		t.Fatal("a state of", n, "bytes")
	} else {
		t.Log("state of", n, "bytes with", MaxValidators, "validators and a fork")
	}
	if b, err := Encode(&Block{*c.blocks[3]}); err != nil || len(b) > MaxMessage {
		t.Fatal(len(b), err)
	}
	if _, err := Load(cl.Save()); err != nil {
		t.Fatal(err)
	}
	small := steady(2, set(0, 1, 2, 3)).client(t)
	t.Log("state of", len(small.Save()), "bytes with 4 validators")
}
