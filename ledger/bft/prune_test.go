//go:build engine

package bft

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/ledger/bft/bftclient"
	"weft/ledger/lite"
	"weft/ledger/tx"
)

// held is what lies in the engine's databases now: how many blocks' bodies, headers and nodes of the tree.
type held struct{ bodies, headers, nodes, bytes int }

func look(t *testing.T, e *engine) (h held) {
	t.Helper()
	for i, db := range e.dbs {
		it, err := db.Iterator(nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		for ; it.Valid(); it.Next() {
			switch k := string(it.Key()); {
			case i == 0 && strings.HasPrefix(k, "P:"):
				h.bodies++
			case i == 0 && strings.HasPrefix(k, "H:"):
				h.headers++
			}
		}
		it.Close()
	}
	it, err := e.app.db.Iterator(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	for ; it.Valid(); it.Next() {
		h.nodes++
		h.bytes += len(it.Key()) + len(it.Value())
	}
	return h
}

// A chain that is longer than what is kept: old blocks and states go, and what is left does not grow; what evidence and light clients
// need stays as long as they may come; and a newcomer, who cannot have the first blocks any more, begins with a snapshot.
func TestPruning(t *testing.T) {
	var e *engine
	w := newNetwork(t, 2, 1, 3, 0, func(i int, c *Config) {
		c.Snapshots, c.Versions = 10, 20
		if i == 0 {
			c.hook = func(x *engine) {
				e = x
				e.cfg.KeepFor = -time.Minute // no block is too young, however many there are in a second; check asks for 15 days at least
			}
		}
	})
	p, newcomer := w.peers[0], w.peers[1]
	p.start()
	p.height(1)
	nonce := uint64(0)
	until := func(h int64) held {
		for p.status().Height < h {
			nonce++
			p.pay(0, 1, nonce)
		}
		// Comet prunes when it has the next block, and waits for nobody.
		eventually(t, time.Minute, "pruning", func() error {
			if s := p.status(); s.Base < h-140 {
				return fmt.Errorf("block %d is kept at %d", s.Base, s.Height)
			}
			return nil
		})
		e.app.snaps.wait()
		return look(t, e)
	}
	a := until(310)
	b := until(610)
	t.Logf("at 310: %+v, at 610: %+v", a, b)
	if b.bodies > 150 || b.nodes > a.nodes+a.nodes/2 || b.bytes > a.bytes+a.bytes/2 {
		t.Errorf("what is kept grows: %+v at block 310, %+v at 610", a, b)
	}
	if b.headers < 600 {
		t.Errorf("headers are kept for evidence and light clients, 14 days or 100 000 blocks: there are %d", b.headers)
	}
	c, ctx := p.client, context.Background()
	s := p.status()
	if l, err := c.Blocks(ctx, 1, 0); err != nil || l.From != s.Base || l.From < 400 || len(l.List) == 0 || l.List[0].Height != l.From {
		t.Errorf("blocks from %d on: %v", l.From, err)
	}
	if _, err := c.Get(ctx, append([]byte{'a'}, pub(t, 1)...), s.Height-100, true); err == nil || !strings.Contains(err.Error(), "no longer kept") {
		t.Errorf("a state that is pruned: %v", err)
	}
	// A light client that trusts a block from before goes on.
	old, err := c.LightBlock(ctx, 5)
	if err != nil {
		t.Fatalf("a light client's trusted block is gone: %v", err)
	}
	trusted, err := lite.ParseComet(old)
	if err != nil {
		t.Fatal(err)
	}
	light, err := lite.New(lite.Trust{Chain: testChain, Height: 5, Hash: trusted.Header.Hash(), Period: lite.DefaultPeriod})
	if err != nil {
		t.Fatal(err)
	}
	for {
		h, ok := light.Want(time.Now())
		if !ok {
			break
		}
		raw, err := c.LightBlock(ctx, h)
		if err != nil {
			t.Fatal(err)
		}
		block, err := lite.ParseComet(raw)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := light.Update(time.Now(), block); err != nil {
			t.Fatal(err)
		}
		if n := light.Newest(); n != nil && n.Header.Height >= s.Height {
			break
		}
	}

	// Statements go back to the first block all the same: postings are never pruned.
	if l, err := c.Postings(ctx, "member:1", 0, 3); err != nil || l.From != 1 || len(l.List) == 0 || l.List[0].Height > 5 {
		t.Errorf("postings: %+v %v", l, err)
	}

	// A restart goes on from where it was, and a newcomer is told to begin with a snapshot, which it does.
	w.stop(0)
	w.again(0)
	s = p.status()
	if s.Begin == 0 || s.Begin > s.Height-2 {
		t.Fatalf("a newcomer should begin with the snapshot of %d, at block %d", s.Begin, s.Height)
	}
	if err := os.WriteFile(filepath.Join(newcomer.cfg.Dir, bftclient.TrustFile), bftclient.Trust(s), 0o600); err != nil {
		t.Fatal(err)
	}
	newcomer.start()
	k, err := Key(newcomer.cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.LetFollow(ctx, string(idOf(k)), agent(t, "newcomer").Public()); err != nil {
		t.Fatal(err)
	}
	nonce++
	r := p.pay(0, 1, nonce)
	newcomer.height(r.Height)
	n := newcomer.status()
	if n.Base <= 1 || n.CatchingUp {
		t.Errorf("the newcomer: %+v", n)
	}
	key := append([]byte{'a'}, pub(t, 1)...)
	have, err := newcomer.client.Get(ctx, key, r.Height, false)
	want, err2 := c.Get(ctx, key, r.Height, false)
	if err != nil || err2 != nil || len(want.Value) == 0 || string(have.Value) != string(want.Value) {
		t.Errorf("the newcomer has %x, not %x: %v %v", have.Value, want.Value, err, err2)
	}
}

// What stands in the file that names a block to begin from is read strictly.
func TestReadTrust(t *testing.T) {
	dir := t.TempDir()
	if x, err := readTrust(dir); x != nil || err != nil {
		t.Errorf("%v %v", x, err)
	}
	hash := tx.Hash([]byte("x"))
	s := bftclient.Status{Height: 7, Hash: hash}
	good := string(bftclient.Trust(s))
	for text, ok := range map[string]bool{good: true, "": false, "7": false, "-1 " + hex.EncodeToString(hash[:]): false, "x" + good: false, good + "x": false, "0" + good[1:]: false} {
		if err := os.WriteFile(filepath.Join(dir, bftclient.TrustFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		x, err := readTrust(dir)
		if ok != (err == nil) || ok && (x.Height != 7 || x.Hash != hash) {
			t.Errorf("%q: %v %v", text, x, err)
		}
	}
}
