//go:build engine

package bft

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	abci "github.com/cometbft/cometbft/abci/types"
	sm "github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/store"
	"github.com/cometbft/cometbft/types"

	"weft/ledger"
	"weft/ledger/tx"
)

// month is a community whose blocks are made by this test, in virtual time: the real application on disk, checking all invariants after
// every block, and beside it the block and state stores that CometBFT would fill with four validators' signatures.
type month struct {
	t                 testing.TB
	members, founders int
	app               *App
	dir               string
	genesis           ledger.Genesis
	now               time.Time
	state             sm.State
	states            sm.Store
	blocks            *store.BlockStore
	dbs               []dbm.DB
	commit            *types.Commit
	nonces            []uint64
	rand              *rand.Rand

	headers []ledger.Header // of all blocks, for the audit
	txs     [][][]byte
	roots   [][]byte
	sent    map[string]int
	checked time.Duration
}

// due is something that somebody does at a time; it returns what it signs.
type due struct {
	at   time.Time
	by   int
	body func() tx.Body
	done func(data []byte)
}

func newMonth(t testing.TB, members int) *month {
	// The books' month ends while the test watches, and its surplus is divided.
	begin := time.Date(2026, 1, 10, 6, 0, 0, 0, time.UTC)
	m := &month{t: t, members: members, dir: t.TempDir(), now: begin, nonces: make([]uint64, members), rand: rand.New(rand.NewPCG(5, 6)), sent: map[string]int{}}
	var dirs []string
	for i := range 4 {
		dirs = append(dirs, filepath.Join(m.dir, fmt.Sprint("key", i)))
	}
	m.founders = min(members-4, 100)
	m.genesis = testGenesis(t, m.founders, dirs...)
	m.genesis.Time = begin.Unix()
	for _, s := range []string{"vote.window=172800", "year.months=1", "year.grace=86400", "surplus.minor=1", "treasury.two_person=1000000000000000",
		"member.vouch_age=0", "member.applications=1000", "credit.new=1000000000000", "credit.full=1000000000000", "credit.trusted=1000000000000"} {
		name, value, _ := strings.Cut(s, "=")
		m.genesis.Settings = append(m.genesis.Settings, tx.Setting{Name: name, Value: value})
	}
	dir := filepath.Join(m.dir, "engine")
	if err := Join(dir, tx.Encode(&m.genesis)); err != nil {
		t.Fatal(err)
	}
	m.app = m.open(dir)
	doc, err := types.GenesisDocFromFile(filepath.Join(dir, genesisFile))
	if err != nil {
		t.Fatal(err)
	}
	if m.state, err = sm.MakeGenesisState(doc); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"blockstore", "state"} {
		db, err := dbm.NewGoLevelDB(name, data)
		if err != nil {
			t.Fatal(err)
		}
		m.dbs = append(m.dbs, db)
	}
	m.blocks, m.states = store.NewBlockStore(m.dbs[0]), sm.NewStore(m.dbs[1], sm.StoreOptions{DiscardABCIResponses: true})
	m.commit = &types.Commit{}
	r, err := m.app.InitChain(t.Context(), &abci.RequestInitChain{ChainId: m.genesis.Chain, Time: doc.GenesisTime, AppStateBytes: doc.AppState})
	if err != nil {
		t.Fatal(err)
	}
	m.state.AppHash = r.AppHash
	m.app.machine.Strict = true
	t.Cleanup(func() {
		_ = m.app.close()
		for _, db := range m.dbs {
			_ = db.Close()
		}
	})
	return m
}

func (m *month) open(dir string) *App {
	c := Config{Dir: dir}
	if err := c.check(); err != nil {
		m.t.Fatal(err)
	}
	a, err := openApp(c)
	if err != nil {
		m.t.Fatal(err)
	}
	a.machine.Strict = true
	return a
}

// block makes a block of what was signed, as a proposer and a voter would, and returns the results.
func (m *month) block(at time.Time, txs ...[]byte) []*abci.ExecTxResult {
	m.t.Helper()
	m.now = at
	ctx, h := m.t.Context(), m.state.LastBlockHeight+1
	for _, raw := range txs {
		if r, err := m.app.CheckTx(ctx, &abci.RequestCheckTx{Tx: raw, Type: abci.CheckTxType_New}); err != nil || r.Code != 0 {
			m.t.Fatalf("%s: %v %+v", at, err, r)
		}
	}
	p, err := m.app.PrepareProposal(ctx, &abci.RequestPrepareProposal{Height: h, Time: at, Txs: txs, MaxTxBytes: MaxBlockBytes})
	if err != nil || len(p.Txs) != len(txs) {
		m.t.Fatalf("%s: %d of %d transactions are proposed: %v", at, len(p.Txs), len(txs), err)
	}
	if v, err := m.app.ProcessProposal(ctx, &abci.RequestProcessProposal{Height: h, Time: at, Txs: p.Txs}); err != nil || v.Status != abci.ResponseProcessProposal_ACCEPT {
		m.t.Fatalf("%s: %v %v", at, v, err)
	}
	began := time.Now()
	r, err := m.app.FinalizeBlock(ctx, &abci.RequestFinalizeBlock{Height: h, Time: at, Txs: p.Txs}) // panics when an invariant is broken
	if err != nil {
		m.t.Fatal(err)
	}
	m.checked += time.Since(began)
	if _, err := m.app.Commit(ctx, &abci.RequestCommit{}); err != nil {
		m.t.Fatal(err)
	}
	m.headers, m.txs, m.roots = append(m.headers, ledger.Header{Height: h, Time: at.Unix()}), append(m.txs, p.Txs), append(m.roots, r.AppHash)
	m.keep(h, at, p.Txs, r)
	return r.TxResults
}

// keep writes what CometBFT does.
func (m *month) keep(h int64, at time.Time, txs [][]byte, r *abci.ResponseFinalizeBlock) {
	var l types.Txs
	for _, raw := range txs {
		l = append(l, raw)
	}
	b := types.MakeBlock(h, l, m.commit, nil)
	b.Header.Populate(m.state.Version.Consensus, m.genesis.Chain, at, m.state.LastBlockID, m.state.Validators.Hash(), m.state.NextValidators.Hash(),
		m.state.ConsensusParams.Hash(), m.state.AppHash, m.state.LastResultsHash, m.state.Validators.GetProposer().Address)
	parts, err := b.MakePartSet(types.BlockPartSizeBytes)
	if err != nil {
		m.t.Fatal(err)
	}
	id := types.BlockID{Hash: b.Hash(), PartSetHeader: parts.Header()}
	c := &types.Commit{Height: h, BlockID: id}
	for _, v := range m.state.Validators.Validators {
		sig := make([]byte, 64)
		for i := range sig {
			sig[i] = byte(m.rand.Uint32())
		}
		c.Signatures = append(c.Signatures, types.CommitSig{BlockIDFlag: types.BlockIDFlagCommit, ValidatorAddress: v.Address, Timestamp: at, Signature: sig})
	}
	m.blocks.SaveBlock(b, parts, c)
	m.commit = c
	s := &m.state
	s.LastBlockHeight, s.LastBlockID, s.LastBlockTime, s.AppHash, s.LastResultsHash = h, id, at, r.AppHash, sm.TxResultsHash(r.TxResults)
	s.LastValidators, s.Validators, s.NextValidators = s.Validators, s.NextValidators, s.NextValidators.CopyIncrementProposerPriority(1)
	if err := m.states.Save(*s); err != nil {
		m.t.Fatal(err)
	}
}

// run lets time go by until end: what is due gets into a block of its own, with a proof block a moment later; in between beats the heart.
func (m *month) run(end time.Time, list []due) {
	m.t.Helper()
	slices.SortStableFunc(list, func(a, b due) int { return a.at.Compare(b.at) })
	const heartbeat = 120 * time.Second
	for {
		next := end
		if len(list) > 0 && list[0].at.Before(end) {
			next = list[0].at
		}
		for m.now.Add(heartbeat).Before(next) {
			m.block(m.now.Add(heartbeat))
			for m.app.machine.Busy() { // a surplus is divided, a page in each block
				m.block(m.now.Add(time.Second))
			}
		}
		if next == end {
			return
		}
		d := list[0]
		list = list[1:]
		at := d.at
		if !at.After(m.now) {
			at = m.now.Add(time.Second)
		}
		body := d.body()
		if body == nil {
			continue
		}
		m.nonces[d.by]++
		raw, err := tx.Tx{Chain: tx.ChainOf(m.genesis.Chain), Nonce: m.nonces[d.by], Expiry: at.Unix() + 3600, Body: body}.Sign(founder(m.t, d.by))
		if err != nil {
			m.t.Fatal(err)
		}
		res := m.block(at, raw)[0]
		if res.Code != 0 {
			m.t.Fatalf("%s: %s of member %d: code %d: %s", at, tx.Name(body.Kind()), d.by+1, res.Code, res.Log)
		}
		m.sent[tx.Name(body.Kind())]++
		if d.done != nil {
			d.done(res.Data)
		}
		m.block(at.Add(time.Second))
	}
}

// sizes are the bytes on disk of each folder of the engine.
func (m *month) sizes() map[string]int64 { return m.sizesOf(m.app.cfg.Dir) }

func (m *month) sizesOf(dir string) map[string]int64 {
	by := map[string]int64{}
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			if i, err := d.Info(); err == nil {
				rel, _ := filepath.Rel(dir, p)
				parts := strings.Split(rel, string(filepath.Separator))
				by[filepath.Join(parts[:min(len(parts)-1, 2)]...)] += i.Size()
			}
		}
		return nil
	})
	return by
}

// restart goes on with a new engine's application, which begins from the newest snapshot of this one and executes the blocks since.
func (m *month) restart() {
	m.t.Helper()
	m.app.snaps.wait()
	ctx := context.Background()
	l, err := m.app.ListSnapshots(ctx, &abci.RequestListSnapshots{})
	if err != nil || len(l.Snapshots) == 0 {
		m.t.Fatalf("there is no snapshot to go on from: %v", err)
	}
	s := l.Snapshots[len(l.Snapshots)-1]
	b := m.open(filepath.Join(m.dir, "again"))
	if r, err := b.OfferSnapshot(ctx, &abci.RequestOfferSnapshot{Snapshot: s, AppHash: m.roots[s.Height-1]}); err != nil || r.Result != abci.ResponseOfferSnapshot_ACCEPT {
		m.t.Fatalf("%v %v", r, err)
	}
	for i := range s.Chunks {
		c, err := m.app.LoadSnapshotChunk(ctx, &abci.RequestLoadSnapshotChunk{Height: s.Height, Format: s.Format, Chunk: i})
		if err != nil {
			m.t.Fatal(err)
		}
		if r, err := b.ApplySnapshotChunk(ctx, &abci.RequestApplySnapshotChunk{Index: i, Chunk: c.Chunk}); err != nil || r.Result != abci.ResponseApplySnapshotChunk_ACCEPT {
			m.t.Fatalf("piece %d: %v %v", i, r, err)
		}
	}
	b.machine.Strict = true
	b.setTime(time.Unix(m.headers[s.Height-1].Time, 0))
	for h := int64(s.Height) + 1; h <= m.state.LastBlockHeight; h++ {
		r, err := b.FinalizeBlock(ctx, &abci.RequestFinalizeBlock{Height: h, Time: time.Unix(m.headers[h-1].Time, 0), Txs: m.txs[h-1]})
		if err != nil || !bytes.Equal(r.AppHash, m.roots[h-1]) {
			m.t.Fatalf("block %d gives another root after the snapshot of %d: %v", h, s.Height, err)
		}
		if _, err := b.Commit(ctx, &abci.RequestCommit{}); err != nil {
			m.t.Fatal(err)
		}
	}
	if err := m.app.close(); err != nil {
		m.t.Fatal(err)
	}
	// The old files go on to count for the disk: swap the application alone.
	old := m.app.cfg.Dir
	m.app = b
	for _, d := range []string{"tree", "index", "snapshots"} {
		if err := os.RemoveAll(filepath.Join(old, d)); err != nil {
			m.t.Fatal(err)
		}
	}
	m.t.Logf("went on from the snapshot of block %d, and executed %d blocks", s.Height, m.state.LastBlockHeight-int64(s.Height))
}

// TestMonth is days of a community in virtual time: every member's neighbour claims once a day what the member owes him, every member pays
// somebody once a day, the treasurer charges all for the month and pays the bills, members vote, a fiscal period ends and its surplus is
// divided; half way an engine that begins with a snapshot takes over; and an audit derives it all a second time. All invariants hold in
// every block. WEFT_SOAK makes it 30 days of 300 members, which is measured; else it is short.
func TestMonth(t *testing.T) {
	members, days := 24, 2
	if os.Getenv("WEFT_SOAK") != "" {
		members, days = 300, 30
	}
	m := newMonth(t, members)
	if days < 30 { // the month ends a day before the end all the same
		m.run(time.Date(2026, 1, 10, 7, 0, 0, 0, time.UTC), nil)
		m.block(time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC))
	}
	first := m.now
	began := time.Now()
	measure := func(a tx.Measure) tx.Action {
		b, err := tx.EncodeMeasure(a)
		if err != nil {
			t.Fatal(err)
		}
		return &tx.ActBudget{Measure: b}
	}
	var list []due
	at := func(d time.Duration, by int, body func() tx.Body, done func([]byte)) {
		list = append(list, due{first.Add(d), by, body, done})
	}
	within := func(from, to time.Duration) time.Duration { return from + time.Duration(m.rand.Int64N(int64(to-from))) }
	// vote proposes something and has most members vote within a few hours.
	vote := func(d time.Duration, by int, title string, a tx.Action, all bool, decided func(id uint64)) {
		var id uint64
		at(d, by, func() tx.Body { return &tx.Propose{Title: title, Action: a} }, func(data []byte) {
			for _, x := range data {
				id = id<<8 | uint64(x)
			}
			if decided != nil {
				decided(id)
			}
		})
		voters := members
		if all {
			voters = m.founders // the others are no members yet
		}
		for i := range voters {
			if all || m.rand.IntN(10) < 7 {
				choice := tx.Yes
				if !all && m.rand.IntN(5) == 0 {
					choice = tx.No
				}
				at(within(d+time.Minute, d+5*time.Hour), i, func() tx.Body { return &tx.Vote{Proposal: id, Choice: choice} }, nil)
			}
		}
	}
	const hour, day = time.Hour, 24 * time.Hour
	length := time.Duration(days) * day
	var budget uint64
	vote(time.Minute, 0, "what a line costs", measure(&tx.SetLine{Called: "line", Class: 1, Fund: ledger.FundOperating, Fee: 12e9}), true, nil)
	vote(2*time.Minute, 1, "the bills", measure(&tx.NewBudget{Fund: ledger.FundOperating, Amount: 9e9, Cost: true, Purpose: "upstream"}), true, func(id uint64) { budget = id })
	for i := m.founders; i < members; i++ {
		key := founder(t, i).Public()
		at(within(3*time.Minute, 30*time.Minute), i, func() tx.Body {
			sponsor, until := founder(t, i%m.founders), m.now.Unix()+86400
			return &tx.Apply{Called: fmt.Sprint("member ", i+1), Sponsor: sponsor.Public(), Until: until, Word: sponsor.Sign(tx.SponsorDomain, tx.SponsorMessage(tx.ChainOf(m.genesis.Chain), key, until))}
		}, nil)
		for v := 1; v <= 2; v++ {
			at(within(hour, 2*hour), (i+v)%m.founders, func() tx.Body {
				if m.app.isMember(key) {
					return nil // the sponsor and one more are enough
				}
				return &tx.Vouch{Applicant: key}
			}, nil)
		}
	}
	tabs, owed := make([]tx.Opened, members), make([]int64, members)
	for i := range members {
		payee := founder(t, (i+1)%members).Public()
		at(within(3*hour, 5*hour), i, func() tx.Body {
			return &tx.TabOpen{Payee: payee, Earmark: 9e9, Expiry: m.now.Unix() + 29*86400}
		}, func(data []byte) {
			if err := tx.Decode(data, &tabs[i]); err != nil {
				t.Fatal(err)
			}
		})
		for d := day / 2; d < length; d += day {
			at(within(d, d+day/3), (i+1)%members, func() tx.Body { // the payee claims
				owed[i] += 1e6 + m.rand.Int64N(1e7)
				v, err := tx.Voucher{Chain: tx.ChainOf(m.genesis.Chain), Tab: tabs[i].Tab, Epoch: tabs[i].Epoch, Amount: owed[i]}.Sign(founder(t, i))
				if err != nil {
					t.Fatal(err)
				}
				return &tx.TabClaim{Vouchers: [][tx.VoucherLen]byte{v.Encode()}}
			}, nil)
			to := founder(t, (i+1+m.rand.IntN(members-1))%members).Public()
			at(within(d, d+day/3), i, func() tx.Body { return &tx.Transfer{To: to, Amount: 1 + m.rand.Int64N(1e9), Memo: "eggs"} }, nil)
		}
		if days >= 30 {
			at(within(20*day, 21*day), i, func() tx.Body {
				return &tx.TabRenew{Tab: tabs[i].Tab, Epoch: tabs[i].Epoch, Expiry: m.now.Unix() + 29*86400}
			}, nil)
		}
		at(within(6*hour, 11*hour), 0, func() tx.Body { return &tx.Charge{Member: uint64(i + 1), Line: 1, Times: 1, Memo: "January"} }, nil)
	}
	for d := 3 * day; d+2*day < length; d += 3 * day {
		vote(d, m.rand.IntN(members), fmt.Sprint("day ", int(d/day)), &tx.ActText{}, false, nil)
	}
	for i := range 10 {
		at(within(2*hour, 5*hour), 0, func() tx.Body {
			return &tx.Deposit{Member: uint64(2 + i), Amount: 10e9, Reference: fmt.Sprint("receipt ", i)}
		}, nil)
	}
	at(11*hour, 0, func() tx.Body { return &tx.Spend{Budget: budget, Amount: 9e9, Reference: "bill 1"} }, nil)

	half := first.Add(length / 2)
	var before, after []due
	for _, d := range list {
		if d.at.Before(half) {
			before = append(before, d)
		} else {
			after = append(after, d)
		}
	}
	base := m.sizes()
	m.run(half, before)
	m.restart()
	m.run(first.Add(length), after)
	took := time.Since(began)

	p := m.app.machine.Periods()
	if len(p) == 0 || p[0].State != ledger.PeriodFinished || p[0].Allocated == 0 {
		t.Errorf("the fiscal period has not been divided: %+v", p)
	}
	began = time.Now()
	i := 0
	r, err := ledger.Audit(m.genesis, func() (ledger.Header, [][]byte, bool) {
		if i == len(m.headers) {
			return ledger.Header{}, nil, false
		}
		i++
		return m.headers[i-1], m.txs[i-1], true
	}, newWorking(m.app.tree))
	if err != nil || !r.OK() || r.Periods == 0 || r.Height != m.state.LastBlockHeight {
		t.Errorf("the audit at block %d of %d, %d periods: %v %v", r.Height, m.state.LastBlockHeight, r.Periods, err, r.Differences)
	}
	total := 0
	for _, n := range m.sent {
		total += n
	}
	t.Logf("%d days of %d members: %d blocks with %d transactions (%v) in %v, %v of it executing and checking; audited in %v", days, members, len(m.headers), total, m.sent,
		took.Round(time.Second), m.checked.Round(time.Second), time.Since(began).Round(time.Millisecond))
	m.app.snaps.wait()
	sum, year := int64(0), int64(0)
	sizes := m.sizes()
	for dir, n := range m.sizesOf(filepath.Join(m.dir, "engine")) {
		if strings.HasPrefix(dir, "data") {
			sizes[dir] = n
		}
	}
	for _, dir := range sortedKeys(sizes) {
		n := sizes[dir]
		sum += n
		grows := n - base[dir]
		if dir == "tree" || strings.HasPrefix(dir, "snapshots") {
			grows = 0 // as large as the state and its last versions
		} else if dir == "index" {
			grows *= 2 // it was begun anew half way
		}
		year += n - grows + int64(float64(grows)*365/float64(days))
		t.Logf("%8.2f MB  %s", float64(n)/1e6, dir)
	}
	t.Logf("%8.2f MB after %d days; a year of this comes to %.2f GB, less what pruning deletes after 400 days; the consensus log comes on top", float64(sum)/1e6, days, float64(year)/1e9)
}

func sortedKeys(m map[string]int64) (l []string) {
	for k := range m {
		l = append(l, k)
	}
	slices.SortFunc(l, cmp.Compare)
	return l
}
