//go:build engine

package bft

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"

	"weft/ledger/lite"
)

func finalise(t testing.TB, a *App, h int64, at time.Time, txs ...[]byte) []byte {
	t.Helper()
	r, err := a.FinalizeBlock(t.Context(), &abci.RequestFinalizeBlock{Height: h, Time: at, Txs: txs})
	if err != nil {
		t.Fatal(err)
	}
	for i, x := range r.TxResults {
		if x.Code != 0 {
			t.Fatalf("transaction %d of block %d: %d %s", i, h, x.Code, x.Log)
		}
	}
	return r.AppHash
}

func commit(t testing.TB, a *App) {
	t.Helper()
	if _, err := a.Commit(t.Context(), &abci.RequestCommit{}); err != nil {
		t.Fatal(err)
	}
}

func reopen(t testing.TB, a *App) *App {
	t.Helper()
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	b, err := openApp(a.cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A block that was executed and not committed is as if it had never been, and gives the same root when it comes again.
func TestCrashBeforeCommit(t *testing.T) {
	a := testApp(t, t.TempDir())
	now := time.Now()
	finalise(t, a, 1, now)
	commit(t, a)
	before := a.tree.Hash()
	one := finalise(t, a, 2, now, transfer(t, 0, 1, 1))
	a = reopen(t, a)
	i, err := a.Info(t.Context(), &abci.RequestInfo{})
	if err != nil || i.LastBlockHeight != 1 || !bytes.Equal(i.LastBlockAppHash, before) {
		t.Fatalf("%+v %v, want root %x", i, err, before)
	}
	if two := finalise(t, a, 2, now, transfer(t, 0, 1, 1)); !bytes.Equal(one, two) {
		t.Errorf("root %x, then %x", one, two)
	}
	// The index is written, the tree is not: the block comes again.
	if _, err := a.index.add(a.done); err != nil {
		t.Fatal(err)
	}
	a = reopen(t, a)
	finalise(t, a, 2, now, transfer(t, 0, 1, 1))
	commit(t, a)
	p, err := a.index.postings("member:1", 0, 0)
	if err != nil || len(p.List) != 1 || p.From != 1 || p.To != 2 {
		t.Errorf("%+v %v", p, err)
	}
	if err := a.close(); err != nil {
		t.Error(err)
	}
}

// Old states go, newer ones stay and can be proven.
func TestVersions(t *testing.T) {
	a := testApp(t, t.TempDir())
	defer a.close()
	a.cfg.Versions, a.cfg.Snapshots = 20, 10
	now := time.Now()
	for h := int64(1); h <= 60; h++ {
		finalise(t, a, h, now.Add(time.Duration(h)*time.Second), transfer(t, 0, 1, uint64(h)))
		commit(t, a)
	}
	a.snaps.wait()
	key := append([]byte{'a'}, pub(t, 1)...)
	if _, err := a.get(key, 10, true); err == nil {
		t.Error("the state of height 10 is kept though 20 states are enough")
	}
	for _, h := range []int64{45, 60} {
		v, err := a.get(key, h, true)
		if err != nil {
			t.Fatal(err)
		}
		k, value, proof, err := lite.ParseICS23(v.Proof)
		if err != nil || !bytes.Equal(k, key) || !bytes.Equal(value, v.Value) {
			t.Fatalf("proof of height %d: %v", h, err)
		}
		tree, err := a.tree.GetImmutable(h)
		if err != nil {
			t.Fatal(err)
		}
		if root, err := proof.Root(key, value); err != nil || !bytes.Equal(root[:], tree.Hash()) {
			t.Errorf("height %d: root %x %v, want %x", h, root, err, tree.Hash())
		}
	}
	l, err := a.ListSnapshots(t.Context(), &abci.RequestListSnapshots{})
	if err != nil || len(l.Snapshots) == 0 || l.Snapshots[len(l.Snapshots)-1].Height > 58 {
		t.Errorf("snapshots %v %v", l, err)
	}
}

// A snapshot is taken piece by piece; a damaged piece, a root that is not the chain's, and lies about its size are refused.
func TestSnapshotLies(t *testing.T) {
	a := testApp(t, t.TempDir())
	defer a.close()
	big := 40_000
	for i := range big { // a state of more than one chunk, which no ledger would check
		must2(a.tree.Set([]byte{0xf0, byte(i >> 16), byte(i >> 8), byte(i)}, bytes.Repeat([]byte{byte(i)}, 30+rand.IntN(3))))
	}
	finalise(t, a, 1, time.Now())
	commit(t, a)
	a.snaps.make(a.tree, 1)
	a.snaps.wait()
	l, err := a.snaps.list()
	if err != nil || len(l) != 1 || l[0].Chunks < 2 {
		t.Fatalf("%v %v", l, err)
	}
	meta, root := l[0], a.tree.Hash()
	chunk := func(i uint32) []byte {
		r, err := a.LoadSnapshotChunk(t.Context(), &abci.RequestLoadSnapshotChunk{Height: 1, Format: snapshotFormat, Chunk: i})
		if err != nil || len(r.Chunk) == 0 {
			t.Fatalf("chunk %d: %v", i, err)
		}
		return r.Chunk
	}
	c := Config{Dir: t.TempDir()}
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	b, err := openApp(c)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	offer := func(change func(*abci.Snapshot), root []byte) abci.ResponseOfferSnapshot_Result {
		m := *meta
		if change != nil {
			change(&m)
		}
		r, err := b.OfferSnapshot(t.Context(), &abci.RequestOfferSnapshot{Snapshot: &m, AppHash: root})
		if err != nil {
			t.Fatal(err)
		}
		return r.Result
	}
	apply := func(i uint32, x []byte) *abci.ResponseApplySnapshotChunk {
		r, err := b.ApplySnapshotChunk(t.Context(), &abci.RequestApplySnapshotChunk{Index: i, Chunk: x, Sender: "s"})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for name, change := range map[string]func(*abci.Snapshot){
		"format": func(m *abci.Snapshot) { m.Format = 9 },
		"hash":   func(m *abci.Snapshot) { m.Hash = make([]byte, 32) },
		"chunks": func(m *abci.Snapshot) { m.Chunks++ },
		"none":   func(m *abci.Snapshot) { m.Chunks = 0; m.Metadata = nil },
		"height": func(m *abci.Snapshot) { m.Height = 1 << 63 },
	} {
		if got := offer(change, root); got == abci.ResponseOfferSnapshot_ACCEPT {
			t.Errorf("%s: accepted", name)
		}
	}
	all := func() (r *abci.ResponseApplySnapshotChunk) {
		for i := range meta.Chunks {
			r = apply(i, chunk(i))
		}
		return r
	}
	if got := offer(nil, make([]byte, 32)); got != abci.ResponseOfferSnapshot_ACCEPT {
		t.Fatal(got)
	}
	if r := all(); r.Result != abci.ResponseApplySnapshotChunk_REJECT_SNAPSHOT || b.tree.Version() != 0 {
		t.Fatalf("another root: %v, version %d", r.Result, b.tree.Version())
	}
	offer(nil, root)
	spoilt := bytes.Clone(chunk(0))
	spoilt[100] ^= 1
	if r := apply(0, spoilt); r.Result != abci.ResponseApplySnapshotChunk_RETRY || len(r.RejectSenders) != 1 {
		t.Fatalf("a damaged piece: %+v", r)
	}
	if r := all(); r.Result != abci.ResponseApplySnapshotChunk_ACCEPT {
		t.Fatal(r.Result)
	}
	if !bytes.Equal(b.tree.Hash(), root) || b.tree.Version() != 1 {
		t.Errorf("root %x, want %x", b.tree.Hash(), root)
	}
	finalise(t, b, 2, time.Now(), transfer(t, 0, 1, 1))
	commit(t, b)
}

func must2(_ bool, err error) { must(err) }

// A light client follows the chain over the socket and believes a proof; and the index of postings, when it is lost, comes back.
func TestLightClientAndIndex(t *testing.T) {
	w := newNetwork(t, 1, 1, 3, 0, nil)
	w.start()
	p, ctx := w.peers[0], context.Background()
	first, err := p.client.LightBlock(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	lb, err := lite.ParseComet(first)
	if err != nil {
		t.Fatal(err)
	}
	b, err := p.client.Blocks(ctx, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	c, err := lite.New(lite.Trust{Chain: testChain, Height: 1, Hash: lite.Hash(b.List[0].Hash), Period: EvidenceWindow})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Update(time.Now(), lb); err != nil {
		t.Fatal(err)
	}
	for n := range uint64(5) {
		p.pay(0, 1, n+1)
	}
	h := p.status().Height
	p.height(h + 1) // the proof block
	key := append([]byte{'a'}, pub(t, 1)...)
	v, err := p.client.Get(ctx, key, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := p.client.LightBlock(ctx, v.Height+1)
	if err != nil {
		t.Fatal(err)
	}
	if lb, err = lite.ParseComet(raw); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Update(time.Now(), lb); err != nil {
		t.Fatal(err)
	}
	_, value, proof, err := lite.ParseICS23(v.Proof)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Prove(time.Now(), key, value, &proof, v.Height); err != nil {
		t.Errorf("a true balance is not believed: %v", err)
	}
	value = bytes.Clone(value)
	value[0] ^= 1
	if _, err := c.Prove(time.Now(), key, value, &proof, v.Height); err == nil {
		t.Error("a false balance is believed")
	}

	was, err := p.client.Postings(ctx, "member:2", 0, 0)
	if err != nil || len(was.List) == 0 {
		t.Fatal(was, err)
	}
	p.stop()
	if err := os.RemoveAll(filepath.Join(p.cfg.Dir, "index")); err != nil {
		t.Fatal(err)
	}
	p.start()
	is, err := p.client.Postings(ctx, "member:2", 0, 0)
	if err != nil || len(is.List) != len(was.List) || is.From != 1 {
		t.Errorf("postings after the index was lost: %+v, before %+v (%v)", is, was, err)
	}
}
