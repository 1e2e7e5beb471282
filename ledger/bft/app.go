//go:build engine

package bft

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
	"github.com/cometbft/cometbft/crypto/ed25519"
	"github.com/cometbft/cometbft/p2p"
	"github.com/cometbft/cometbft/proto/tendermint/crypto"
	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	dbm "github.com/cosmos/cosmos-db"
	"github.com/cosmos/iavl"

	"weft/ident"
	"weft/ledger"
	"weft/ledger/bft/bftclient"
	"weft/ledger/tx"
)

// rulesVersion is the newest version of the ledger's rules that this program knows.
const rulesVersion = ledger.RulesVersion

// App is the ledger as the engine sees it (ABCI 2.0).
type App struct {
	abci.BaseApplication
	cfg   Config
	log   *slog.Logger
	index *index

	mu          sync.Mutex
	db          dbm.DB
	tree        *iavl.MutableTree
	machine     *ledger.Machine
	head        ledger.Header // the newest block
	pool        *ledger.Pool
	pooled      int // transactions that wait, as far as they have been judged since the newest block, and their bytes
	pooledBytes int
	pooledSince time.Time // when the oldest of them came, or was judged again
	committed   time.Time // when the newest block came, or this engine began
	made        bool      // a block has come since
	done        block     // executed, not committed
	halted      string
	waiting     map[[32]byte][]chan bftclient.Result
	allowed     map[p2p.ID]bool                       // peers that may connect
	keep        func(now time.Time, head int64) int64 // first block to keep
	changed     func()                                // the validators have
	restore     *restore
	snaps       *snapshots
	// propose chooses what goes into a block: Machine.Propose, but for liars in tests.
	propose func(h ledger.Header, txs [][]byte, most int) [][]byte
}

// block is what FinalizeBlock leaves for Commit.
type block struct {
	ledger.Header
	txs [][]byte
	out ledger.Outcome
}

// openApp opens the state in dir, which may be empty.
func openApp(cfg Config) (*App, error) {
	a := &App{cfg: cfg, log: cfg.Log, waiting: map[[32]byte][]chan bftclient.Result{}, allowed: map[p2p.ID]bool{}, committed: time.Now()}
	var err error
	if a.db, err = dbm.NewGoLevelDB("state", filepath.Join(cfg.Dir, "tree"), nil); err != nil {
		return nil, fmt.Errorf("open the ledger's state: %w", err)
	}
	if a.index, err = openIndex(filepath.Join(cfg.Dir, "index")); err != nil {
		return nil, errors.Join(err, a.db.Close())
	}
	a.propose = func(h ledger.Header, txs [][]byte, most int) [][]byte { return a.machine.Propose(h, txs, most) }
	a.snaps = &snapshots{dir: filepath.Join(cfg.Dir, "snapshots"), log: cfg.Log}
	if err := a.load(); err != nil {
		return nil, errors.Join(err, a.index.close(), a.db.Close())
	}
	return a, nil
}

// load opens the newest version.
func (a *App) load() error {
	var err error
	if a.tree, err = openTree(a.db); err != nil {
		return err
	}
	if a.machine, err = ledger.New(newWorking(a.tree)); err != nil {
		return err
	}
	a.head = ledger.Header{Height: a.tree.Version(), Time: a.head.Time}
	a.pool = a.machine.Pool(a.head)
	return nil
}

func (a *App) close() error {
	a.snaps.wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.restore != nil {
		a.restore.close()
	}
	return errors.Join(a.tree.Close(), a.index.close(), a.db.Close())
}

// setTime tells the time of the newest block after a start: the tree does not have it.
func (a *App) setTime(t time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.head.Time = t.Unix()
	a.pool = a.machine.Pool(a.head)
}

// Info implements abci.Application.
func (a *App) Info(context.Context, *abci.RequestInfo) (*abci.ResponseInfo, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := &abci.ResponseInfo{Data: "weft", AppVersion: max(a.machine.Version(), 1), LastBlockHeight: a.tree.Version()}
	if r.LastBlockHeight > 0 {
		r.LastBlockAppHash = a.tree.Hash()
	}
	return r, nil
}

// InitChain implements abci.Application. The first state is the genesis' bytes, quoted as JSON because Comet's file is JSON.
func (a *App) InitChain(_ context.Context, r *abci.RequestInitChain) (*abci.ResponseInitChain, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	g, err := parseState(r.AppStateBytes)
	if err != nil {
		return nil, fmt.Errorf("genesis: %w", err)
	}
	if g.Chain != r.ChainId || g.Time != r.Time.Unix() {
		return nil, errors.New("genesis: the engine's chain id and time are not the ledger's")
	}
	if err := a.machine.Init(g); err != nil {
		return nil, fmt.Errorf("genesis: %w", err)
	}
	var vals []abci.ValidatorUpdate
	for _, v := range a.machine.Validators() {
		vals = append(vals, power(v.Key, int64(v.Power)))
	}
	a.head.Time = g.Time
	a.pool = a.machine.Pool(a.head)
	return &abci.ResponseInitChain{Validators: vals, AppHash: a.tree.WorkingHash()}, nil
}

func power(k ident.PublicKey, p int64) abci.ValidatorUpdate {
	return abci.UpdateValidator(k[:], p, ed25519.KeyType)
}

// CheckTx implements abci.Application: what may wait, and after each block again what may go on waiting.
func (a *App) CheckTx(_ context.Context, r *abci.RequestCheckTx) (*abci.ResponseCheckTx, error) {
	if len(r.Tx) > MaxTxBytes {
		return &abci.ResponseCheckTx{Code: uint32(ledger.CodeMalform), Log: "the transaction is too long"}, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	// Comet itself would drop a transaction that it has no room for after the ledger has taken it, without a word to the sender.
	if r.Type == abci.CheckTxType_New && (a.pooled >= MaxPoolTxs || a.pooledBytes+len(r.Tx) > MaxPoolBytes) {
		return &abci.ResponseCheckTx{Code: uint32(ledger.CodeTooMany), Log: "too many transactions wait for a block; send it again in a minute"}, nil
	}
	res := a.pool.Take(r.Tx)
	if res.Code == ledger.OK {
		if a.pooled == 0 {
			a.pooledSince = time.Now()
		}
		a.pooled, a.pooledBytes = a.pooled+1, a.pooledBytes+len(r.Tx)
	}
	return &abci.ResponseCheckTx{Code: uint32(res.Code), Log: res.Text, Data: res.Data, GasWanted: 1}, nil
}

// header is the block as the ledger sees it. A validator's key follows from its address: the ledger forgets no validator.
func (a *App) header(height int64, t time.Time, proposer []byte, bad []abci.Misbehavior) ledger.Header {
	h := ledger.Header{Height: height, Time: t.Unix()}
	if len(bad) == 0 && proposer == nil {
		return h
	}
	keys := map[string]ident.PublicKey{}
	for _, v := range a.machine.Validators() {
		keys[string(ed25519.PubKey(v.Key[:]).Address())] = v.Key
	}
	h.Proposer = keys[string(proposer)]
	for _, m := range bad {
		// An attack on light clients needs validators that sign two blocks as well; Comet breaks it up into those.
		if k, ok := keys[string(m.Validator.Address)]; ok && m.Type != abci.MisbehaviorType_UNKNOWN {
			h.Evidence = append(h.Evidence, ledger.Misbehaviour{Validator: k, Height: m.Height})
		}
	}
	return h
}

// PrepareProposal implements abci.Application.
func (a *App) PrepareProposal(_ context.Context, r *abci.RequestPrepareProposal) (*abci.ResponsePrepareProposal, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	// Comet counts each transaction with its protobuf frame: a tag and a length of at most three bytes.
	most := max(int(r.MaxTxBytes)-4*len(r.Txs), 0)
	return &abci.ResponsePrepareProposal{Txs: a.propose(a.header(r.Height, r.Time, r.ProposerAddress, r.Misbehavior), r.Txs, most)}, nil
}

// ProcessProposal implements abci.Application: no vote for a block that no honest proposer makes. The answer depends on the state
// and the block alone, so that all honest validators give the same.
func (a *App) ProcessProposal(_ context.Context, r *abci.RequestProcessProposal) (*abci.ResponseProcessProposal, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.machine.CheckBlock(a.header(r.Height, r.Time, r.ProposerAddress, r.Misbehavior), r.Txs); err != nil {
		a.log.Warn("refusing to vote for a proposed block", "height", r.Height, "proposer", fmt.Sprintf("%X", r.ProposerAddress), "err", err)
		return &abci.ResponseProcessProposal{Status: abci.ResponseProcessProposal_REJECT}, nil
	}
	return &abci.ResponseProcessProposal{Status: abci.ResponseProcessProposal_ACCEPT}, nil
}

// FinalizeBlock implements abci.Application.
func (a *App) FinalizeBlock(_ context.Context, r *abci.RequestFinalizeBlock) (*abci.ResponseFinalizeBlock, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if u, ok := a.machine.Upgrade(); ok && r.Height >= u.Height && u.Version > rulesVersion {
		a.halted = fmt.Sprintf("from block %d on the community's rules are version %d, and this program knows version %d: update weft and weft-ledger on this machine; nothing is lost, and the ledger goes on when enough validators have", u.Height, u.Version, rulesVersion)
		return nil, errors.New(a.halted)
	}
	before := a.machine.Version()
	h := a.header(r.Height, r.Time, r.ProposerAddress, r.Misbehavior)
	out := a.machine.Block(h, r.Txs)
	res := &abci.ResponseFinalizeBlock{AppHash: a.tree.WorkingHash()}
	for _, t := range out.Results {
		// Code and Data are in the block's hash; Log is not.
		res.TxResults = append(res.TxResults, &abci.ExecTxResult{Code: uint32(t.Code), Data: t.Data, Log: t.Text, GasWanted: 1, GasUsed: 1})
	}
	for _, v := range out.Validators {
		res.ValidatorUpdates = append(res.ValidatorUpdates, power(v.Key, v.Power))
	}
	if v := a.machine.Version(); v != before {
		res.ConsensusParamUpdates = &cmtproto.ConsensusParams{Version: &cmtproto.VersionParams{App: v}}
	}
	a.done = block{h, r.Txs, out}
	return res, nil
}

// Commit implements abci.Application. Postings and results are written first: a crash in between is a replay, which writes them
// again, the same.
func (a *App) Commit(context.Context, *abci.RequestCommit) (*abci.ResponseCommit, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	results, err := a.index.add(a.done)
	if err != nil {
		return nil, fmt.Errorf("write the postings of block %d: %w", a.done.Height, err)
	}
	_, v, err := a.tree.SaveVersion()
	if err != nil {
		return nil, fmt.Errorf("write the state of block %d: %w", a.done.Height, err)
	}
	if v != a.done.Height {
		return nil, fmt.Errorf("the state's version is %d at height %d", v, a.done.Height)
	}
	a.head, a.committed, a.made = ledger.Header{Height: v, Time: a.done.Time}, time.Now(), true
	a.pool, a.pooled, a.pooledBytes = a.machine.Pool(a.head), 0, 0 // Comet has all that wait judged again now
	for _, r := range results {
		for _, c := range a.waiting[r.Hash] {
			c <- r // has room for one
		}
		delete(a.waiting, r.Hash)
	}
	if len(a.done.out.Validators) > 0 && a.changed != nil {
		a.changed()
	}
	a.done = block{}
	if v%a.cfg.Snapshots == 0 {
		a.snaps.make(a.tree, v)
	}
	// In steps, as deleting a few versions costs as much as deleting many.
	if to := a.snaps.floor(v - a.cfg.Versions); to > 0 && v%max(a.cfg.Versions/20, 1) == 0 {
		if err := a.tree.DeleteVersionsTo(to); err != nil {
			a.log.Warn("could not delete old states", "to", to, "err", err) // tried again next time
		}
	}
	r := &abci.ResponseCommit{}
	if !a.cfg.Archive && a.keep != nil && v%100 == 0 {
		r.RetainHeight = a.keep(time.Unix(a.head.Time, 0), v)
	}
	return r, nil
}

// at returns the state after a height; 0 is the newest.
func (a *App) at(height int64) (*iavl.ImmutableTree, int64, error) {
	if height == 0 {
		height = a.tree.Version()
	}
	if height < 1 || height > a.tree.Version() {
		return nil, 0, fmt.Errorf("there is no state of height %d: the newest is %d", height, a.tree.Version())
	}
	t, err := a.tree.GetImmutable(height)
	if err != nil {
		return nil, 0, fmt.Errorf("the state of height %d is no longer kept: ask for one of the last %d", height, a.cfg.Versions)
	}
	return t, height, nil
}

// get returns a value and the proof that it is in the state after height, whose root is the app hash in header height+1.
func (a *App) get(key []byte, height int64, prove bool) (bftclient.Value, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t, height, err := a.at(height)
	if err != nil {
		return bftclient.Value{}, err
	}
	v := bftclient.Value{Height: height}
	if v.Value, err = t.Get(key); err != nil || !prove || v.Value == nil {
		return v, err
	}
	p, err := t.GetMembershipProof(key)
	if err != nil {
		return v, err
	}
	v.Proof, err = p.Marshal()
	return v, err
}

// maxPage bounds an answer to scan.
const maxPage = 1000

// scan returns entries with a prefix, from the first behind a key on.
func (a *App) scan(prefix, behind []byte, limit int, height int64) (bftclient.Page, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t, height, err := a.at(height)
	if err != nil {
		return bftclient.Page{}, err
	}
	if limit <= 0 || limit > maxPage {
		limit = maxPage
	}
	p, start := bftclient.Page{Height: height}, prefix
	if bytes.HasPrefix(behind, prefix) {
		start = append(behind[:len(behind):len(behind)], 0)
	}
	view{t}.scan(prefix, start, func(k, v []byte) bool {
		if len(p.Entries) == limit {
			p.More = true
			return false
		}
		p.Entries = append(p.Entries, bftclient.Entry{Key: bytes.Clone(k), Value: bytes.Clone(v)})
		return true
	})
	return p, nil
}

// Query implements abci.Application. Comet itself asks here whether a peer may connect; people ask over the socket.
func (a *App) Query(_ context.Context, r *abci.RequestQuery) (*abci.ResponseQuery, error) {
	switch {
	case strings.HasPrefix(r.Path, "/p2p/filter/addr/"):
		return &abci.ResponseQuery{}, nil // who it is decides, not where
	case strings.HasPrefix(r.Path, "/p2p/filter/id/"):
		if !a.mayConnect(p2p.ID(strings.TrimPrefix(r.Path, "/p2p/filter/id/"))) {
			return &abci.ResponseQuery{Code: 1, Log: "not a peer of this engine"}, nil
		}
		return &abci.ResponseQuery{}, nil
	case r.Path == "key" || r.Path == "":
		v, err := a.get(r.Data, r.Height, r.Prove)
		if err != nil {
			return &abci.ResponseQuery{Code: 1, Log: err.Error()}, nil
		}
		q := &abci.ResponseQuery{Key: r.Data, Value: v.Value, Height: v.Height}
		if v.Proof != nil {
			q.ProofOps = &crypto.ProofOps{Ops: []crypto.ProofOp{{Type: "ics23:iavl", Key: r.Data, Data: v.Proof}}}
		}
		return q, nil
	}
	return &abci.ResponseQuery{Code: 1, Log: "there is no such question"}, nil
}

// mayConnect: validators, whose id is their consensus key's address, and peers that the owner named.
func (a *App) mayConnect(id p2p.ID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.allowed[id] {
		return true
	}
	for _, v := range a.machine.Validators() {
		if v.Power > 0 && idOf(v.Key) == id {
			return true
		}
	}
	return false
}

// idOf is the id of the engine that has a consensus key: one key serves both, so that who is in the state can be dialled. What
// Comet's handshake signs is 32 bytes, which no vote is.
func idOf(k ident.PublicKey) p2p.ID { return p2p.PubKeyToID(ed25519.PubKey(k[:])) }

// await returns a channel on which the result of a transaction comes when its block is committed, and what forgets it.
func (a *App) await(hash [32]byte) (<-chan bftclient.Result, func()) {
	c := make(chan bftclient.Result, 1)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting[hash] = append(a.waiting[hash], c)
	return c, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		l := a.waiting[hash]
		for i := range l {
			if l[i] == c {
				l = append(l[:i], l[i+1:]...)
				break
			}
		}
		if a.waiting[hash] = l; len(l) == 0 {
			delete(a.waiting, hash)
		}
	}
}

func (a *App) validators() []ledger.Validator {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.machine.Validators()
}

// parseState reads the first state out of Comet's genesis file.
func parseState(b []byte) (ledger.Genesis, error) {
	var g ledger.Genesis
	raw, err := unquote(b)
	if err != nil {
		return g, err
	}
	return g, tx.Decode(raw, &g)
}

func (a *App) haltedFor() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.halted
}

func (a *App) height() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tree.Version()
}

// seats returns the validators, the version of the rules, and what their operators are called.
func (a *App) seats() ([]ledger.Validator, uint64, map[uint64]string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	vals, names := a.machine.Validators(), map[uint64]string{}
	for _, v := range vals {
		m, _ := a.machine.Member(v.Operator)
		names[v.Operator] = cmp.Or(m.Name, fmt.Sprint("member ", v.Operator))
	}
	return vals, a.machine.Version(), names
}

// last returns when the newest block came, or, with here false, when this engine began, since which none has; and since when a
// transaction waits, if one does.
func (a *App) last() (block time.Time, here bool, oldest time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.committed, a.made, a.pooledSince
}

// isMember tells whether a key is an active member's.
func (a *App) isMember(k ident.PublicKey) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	m, was, ok := a.machine.MemberByKey(k)
	return ok && !was && m.State == ledger.Active
}

func (a *App) setAllowed(ids map[p2p.ID]bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.allowed = ids
}

// setKeep sets what says which blocks to keep, and what is called when the validators have changed; neither may call back.
func (a *App) setKeep(keep func(now time.Time, head int64) int64, changed func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keep, a.changed = keep, changed
}
