//go:build engine

package bft

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
	"github.com/cometbft/cometbft/privval"
	"github.com/cometbft/cometbft/types"

	"weft/ledger"
	"weft/ledger/tx"
)

// A block that no honest proposer makes gets no vote.
func TestRefusesBlocks(t *testing.T) {
	a := testApp(t, t.TempDir())
	defer a.close()
	good, next := transfer(t, 0, 1, 1), transfer(t, 0, 1, 2)
	forged := slices.Clone(good)
	forged[len(forged)-1] ^= 1
	foreign, err := tx.Tx{Chain: tx.ChainOf("other"), Nonce: 1, Expiry: time.Now().Unix() + 60, Body: &tx.Transfer{To: founder(t, 1).Public(), Amount: 1}}.Sign(founder(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		txs  [][]byte
		want bool
	}{
		{"nothing", nil, true},
		{"one", [][]byte{good}, true},
		{"two in order", [][]byte{good, next}, true},
		{"two out of order", [][]byte{next, good}, false},
		{"one twice", [][]byte{good, good}, false},
		{"a forged signature", [][]byte{forged}, false},
		{"another chain's", [][]byte{foreign}, false},
		{"nonsense", [][]byte{{1, 2, 3}}, false},
		{"an empty one", [][]byte{{}}, false},
		{"a stranger's", [][]byte{signedBy(t, "stranger", 1)}, false},
	} {
		r, err := a.ProcessProposal(t.Context(), &abci.RequestProcessProposal{Txs: c.txs, Height: 1, Time: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Status == abci.ResponseProcessProposal_ACCEPT; got != c.want {
			t.Errorf("%s: accepted %v, want %v", c.name, got, c.want)
		}
	}
	if stranger := idOf(agent(t, "stranger").Public()); a.mayConnect(stranger) || !a.mayConnect(idOf(a.validators()[0].Key)) {
		t.Error("a stranger may connect, or a validator may not")
	}
	p, err := a.PrepareProposal(t.Context(), &abci.RequestPrepareProposal{Txs: [][]byte{good, forged, next, good, foreign}, MaxTxBytes: MaxBlockBytes, Height: 1, Time: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Txs) != 2 || string(p.Txs[0]) != string(good) || string(p.Txs[1]) != string(next) {
		t.Errorf("an honest proposer proposes %d transactions", len(p.Txs))
	}
}

func signedBy(t testing.TB, name string, nonce uint64) []byte {
	t.Helper()
	raw, err := tx.Tx{Chain: tx.ChainOf(testChain), Nonce: nonce, Expiry: time.Now().Unix() + 60, Body: &tx.Transfer{To: founder(t, 1).Public(), Amount: 1}}.Sign(agent(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// testApp is an application that has begun.
func testApp(t testing.TB, dir string) *App {
	t.Helper()
	g, err := Found(dir, testGenesis(t, 3), agent(t, "node").Public())
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Dir: dir}
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	a, err := openApp(c)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := types.GenesisDocFromFile(dir + "/" + genesisFile)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.InitChain(t.Context(), &abci.RequestInitChain{ChainId: g.Chain, Time: doc.GenesisTime, AppStateBytes: doc.AppState}); err != nil {
		t.Fatal(err)
	}
	return a
}

// One validator of four proposes forgeries and repetitions: the others go on without its blocks. Then the members vote a fifth
// in, one resigns, and one that has signed twice is put out.
func TestValidators(t *testing.T) {
	var liar, honest *engine
	forged := transfer(t, 1, 2, 1)
	forged[len(forged)-1] ^= 1
	w := newNetwork(t, 5, 4, 3, 0, func(i int, c *Config) {
		switch i {
		case 0:
			c.hook = func(e *engine) { honest = e }
		case 3:
			c.hook = func(e *engine) {
				liar = e
				e.app.propose = func(_ ledger.Header, txs [][]byte, _ int) [][]byte { return append(txs, forged) }
			}
		}
	})
	w.start()
	w.meet(3)
	p := w.peers[0]
	lies := 0
	for n := range uint64(4) {
		p.pay(0, 1, n+1)
	}
	top := p.status().Height
	b, err := p.client.Blocks(context.Background(), 1, top)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range b.List {
		if string(x.Proposer) == string(liar.node.PrivValidator().(*privval.FilePV).GetAddress()) {
			lies++
		}
		for _, raw := range x.Txs {
			if string(raw) == string(forged) {
				t.Errorf("block %d has the forgery", x.Height)
			}
		}
	}
	if lies != 0 {
		t.Errorf("%d blocks of the liar's are in the chain", lies)
	}

	voters := func(i int) int {
		n := 0
		for _, v := range w.peers[i].status().Validators {
			if v.Power > 0 {
				n++
			}
		}
		return n
	}
	k, err := Key(w.peers[4].cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	r := p.final(signed(t, 0, 5, &tx.Propose{Title: "a fifth", Action: &tx.ActValidators{Changes: []tx.ValidatorChange{{Key: k, Operator: 2, Node: agent(t, "fifth").Public()}}}}))
	p.height(r.Height + 2) // the vote opens with the block after, and there is one: the state has changed
	for i, n := range []uint64{6, 1, 1} {
		r = p.final(signed(t, i, n, &tx.Vote{Proposal: 1, Choice: tx.Yes}))
	}
	eventually(t, 20*time.Second, "five validators", func() error {
		if n := voters(4); n != 5 || !w.peers[4].status().Validating {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	p.final(signed(t, 2, 2, &tx.Resign{})) // founder 3 operates the third
	eventually(t, 20*time.Second, "four validators", func() error {
		if n := voters(0); n != 4 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	r = p.pay(0, 1, 7)
	w.same(r.Height)

	// The liar signs twice.
	pv := liar.node.PrivValidator().(*privval.FilePV)
	h := honest.node.BlockStore().Height() - 1
	meta := honest.node.BlockStore().LoadBlockMeta(h)
	vals, err := honest.states.LoadValidators(h)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := types.NewMockDuplicateVoteEvidenceWithValidator(h, meta.Header.Time, types.NewMockPVWithParams(pv.Key.PrivKey, false, false), testChain)
	if err != nil {
		t.Fatal(err)
	}
	ev.ValidatorPower, ev.TotalVotingPower = 1, vals.TotalVotingPower()
	if err := honest.node.EvidencePool().AddEvidence(ev); err != nil {
		t.Fatal(err)
	}
	n := uint64(7)
	eventually(t, 30*time.Second, "the one who signed twice to be put out", func() error {
		n++
		r = p.pay(0, 1, n)
		if v := voters(0); v != 3 {
			return fmt.Errorf("%d validators", v)
		}
		return nil
	})
	w.same(r.Height)
}
