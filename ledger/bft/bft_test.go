//go:build engine

package bft

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/ledger"
	"weft/ledger/bft/bftclient"
	"weft/ledger/tx"
)

// One validator: what is paid is final at once, is there after a restart, and does not apply twice.
func TestSingle(t *testing.T) {
	w := newNetwork(t, 1, 1, 3, 0, nil)
	p := w.peers[0]
	w.start()
	ctx := context.Background()
	r := p.pay(0, 1, 1)
	if got, err := p.client.Result(ctx, r.Hash); err != nil || got.Height != r.Height || got.Code != 0 {
		t.Errorf("result %+v, want %+v (%v)", got, r, err)
	}
	again, err := p.client.Submit(ctx, transfer(t, 0, 1, 1))
	if err != nil || again.Height == 0 && again.Code != uint32(ledger.CodeNonce) {
		t.Errorf("a repetition: %+v %v", again, err)
	}
	if r, err := p.client.Submit(ctx, []byte("nonsense")); err != nil || r.Code != uint32(ledger.CodeMalform) {
		t.Errorf("nonsense: %+v %v", r, err)
	}
	if s := p.status(); s.Halted != "" || !s.Validating || len(s.Validators) != 1 {
		t.Errorf("%+v", s)
	}
	ps, err := p.client.Postings(ctx, "member:1", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("postings %+v", ps)
	st, err := p.client.State(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	m, err := ledger.New(st)
	if err != nil {
		t.Fatal(err)
	}
	if v := m.Validators(); len(v) != 1 || st.Err() != nil {
		t.Errorf("validators over the socket: %v %v", v, st.Err())
	}
	if err := m.Check(); err != nil || st.Err() != nil {
		t.Errorf("invariants over the socket: %v %v", err, st.Err())
	}
	for _, bad := range []string{"", "x", "x@127.0.0.1:1", "name@example.org:26656", p.status().ID + "@example.org:26656"} {
		if err := p.client.AddPeer(ctx, bad); err == nil && bad != "" {
			t.Errorf("%q is taken for a peer", bad)
		}
	}
	other := string(idOf(agent(t, "other").Public())) + "@127.0.0.1:9"
	if err := p.client.AddPeer(ctx, other); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(p.cfg.Dir, peersFile)); err != nil || !strings.Contains(string(b), other) {
		t.Errorf("the list of peers is %q (%v)", b, err)
	}
	if err := p.client.RemovePeer(ctx, other); err != nil {
		t.Error(err)
	}
	for _, f := range []string{keyFile, signedFile, bftclient.Socket} {
		if i, err := os.Stat(filepath.Join(p.cfg.Dir, f)); err != nil || i.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, i.Mode(), err)
		}
	}
	if _, err := start(ctx, p.cfg); err == nil {
		t.Error("two engines run in one folder")
	}
	before := p.status()
	p.stop()
	p.start()
	if s := p.status(); s.Height < before.Height || s.Hash != before.Hash && s.Height == before.Height {
		t.Errorf("after a restart %+v, before %+v", s, before)
	}
	if n := nonceOf(t, p.client, 0); n != 1 {
		t.Errorf("nonce %d after a restart", n)
	}
	p.pay(0, 1, 2)
	g, err := p.client.Genesis(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var gen ledger.Genesis
	if err := tx.Decode(g, &gen); err != nil || gen.Chain != testChain {
		t.Errorf("genesis %+v %v", gen, err)
	}
}
