//go:build engine

package bft

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/cometbft/cometbft/config"
	"github.com/cometbft/cometbft/libs/log"
	"github.com/cometbft/cometbft/node"
	"github.com/cometbft/cometbft/p2p"
	"github.com/cometbft/cometbft/privval"
	"github.com/cometbft/cometbft/proxy"
	sm "github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/types"

	"weft/ident"
	"weft/ledger"
	"weft/ledger/bft/bftclient"
	"weft/ledger/tx"
)

// Files in Dir. The key's two belong together: a validator that forgets what it signed may sign twice and lose its seat.
const (
	keyFile     = "validator.key.json"
	signedFile  = "validator.signed.json"
	genesisFile = "genesis.json"
	peersFile   = "peers"
)

// Found makes the folder of a community's first engine. When g names no validator, this engine becomes the only one, operated by
// the first founder on a node. It returns the genesis as it is written; its bytes (tx.Encode) are what others Join with.
func Found(dir string, g ledger.Genesis, on ident.PublicKey) (ledger.Genesis, error) {
	k, err := Key(dir)
	if err != nil {
		return g, err
	}
	if len(g.Validators) == 0 {
		g.Validators = []ledger.FirstValidator{{Key: k, Operator: 1, Node: on}}
	}
	if err := tx.Check(&g); err != nil {
		return g, fmt.Errorf("found a community: %w", err)
	}
	return g, Join(dir, tx.Encode(&g))
}

// Join makes the folder of an engine of an existing community: genesis is the bytes of its ledger.Genesis, peers (ID@[address]:port)
// begin the list that AddPeer and RemovePeer of its socket change.
func Join(dir string, genesis []byte, peers ...string) error {
	for _, p := range peers {
		if _, err := parsePeer(p); err != nil {
			return err
		}
	}
	var g ledger.Genesis
	if err := tx.Decode(genesis, &g); err != nil {
		return fmt.Errorf("read the community's beginning: %w", err)
	}
	m, err := ledger.New(ledger.NewMem())
	if err != nil {
		return err
	}
	if err := m.Init(g); err != nil {
		return fmt.Errorf("begin the community: %w", err)
	}
	if _, err := Key(dir); err != nil {
		return err
	}
	file := filepath.Join(dir, genesisFile)
	if _, err := os.Stat(file); err == nil {
		return fmt.Errorf("there is a community in %s already", dir)
	}
	quoted, err := json.Marshal(genesis)
	if err != nil {
		return err
	}
	p := types.DefaultConsensusParams()
	p.Block.MaxBytes, p.Block.MaxGas = MaxBlockBytes, -1
	p.Evidence.MaxAgeDuration, p.Evidence.MaxAgeNumBlocks, p.Evidence.MaxBytes = EvidenceWindow, EvidenceBlocks, 64<<10
	p.Version.App = 1
	doc := types.GenesisDoc{ChainID: g.Chain, GenesisTime: time.Unix(g.Time, 0).UTC(), InitialHeight: 1, ConsensusParams: p, AppState: quoted}
	for _, v := range g.Validators {
		u := power(v.Key, 1)
		pub, err := types.PB2TM.ValidatorUpdates([]abciUpdate{u})
		if err != nil {
			return err
		}
		doc.Validators = append(doc.Validators, types.GenesisValidator{PubKey: pub[0].PubKey, Power: 1})
	}
	if err := doc.ValidateAndComplete(); err != nil {
		return fmt.Errorf("begin the community: %w", err)
	}
	if err := doc.SaveAs(file); err != nil || len(peers) == 0 {
		return err
	}
	return writePeers(dir, peers)
}

func unquote(b []byte) (raw []byte, err error) { return raw, json.Unmarshal(b, &raw) }

// Key returns the consensus key of the engine in dir, which it makes if there is none. Its private part stays in dir (mode 0600).
func Key(dir string) (ident.PublicKey, error) {
	pv, err := signer(dir)
	if err != nil {
		return ident.PublicKey{}, err
	}
	return ident.PublicKey(pv.Key.PubKey.Bytes()), nil
}

func signer(dir string) (*privval.FilePV, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the ledger's folder: %w", err)
	}
	key, signed := filepath.Join(dir, keyFile), filepath.Join(dir, signedFile)
	// Comet ends the process when a file cannot be read: look first.
	_, err := os.ReadFile(key)
	if errors.Is(err, os.ErrNotExist) {
		pv := privval.GenFilePV(key, signed)
		pv.Save()
		return pv, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the validator's key: %w", err)
	}
	if _, err := os.ReadFile(signed); errors.Is(err, os.ErrNotExist) {
		pv := privval.LoadFilePVEmptyState(key, signed) // comet() looks at the chain for what it signed
		pv.Save()
		return pv, nil
	} else if err != nil {
		return nil, fmt.Errorf("read what the validator has signed: %w", err)
	}
	return privval.LoadFilePV(key, signed), nil
}

// comet are Comet's settings: research and reasons in docs/spec/ledger.md section 5.
func (c *Config) comet(fresh bool) *config.Config {
	cc := config.DefaultConfig()
	cc.SetRoot(c.Dir)
	cc.Genesis = genesisFile
	cc.PrivValidatorKey, cc.PrivValidatorState = keyFile, signedFile
	cc.DBBackend = "goleveldb"
	cc.FilterPeers = true
	cc.RPC.ListenAddress = ""
	cc.TxIndex.Indexer = "null"
	cc.Storage.DiscardABCIResponses = true

	cc.P2P.ListenAddress = "tcp://" + c.Listen.String()
	cc.P2P.ExternalAddress = c.Listen.String()
	cc.P2P.PexReactor = false
	cc.P2P.AddrBookStrict = false // mesh addresses are not in Comet's list of the internet's
	cc.P2P.AllowDuplicateIP = true
	cc.P2P.PersistentPeersMaxDialPeriod = dialPeriod
	cc.P2P.DialTimeout = 3 * time.Second
	cc.P2P.HandshakeTimeout = 10 * time.Second
	cc.P2P.FlushThrottleTimeout = 5 * time.Millisecond
	cc.P2P.MaxNumInboundPeers = maxValidators + maxPeers + maxFollowers // so that nobody takes another's place

	cc.Mempool.MaxTxBytes, cc.Mempool.MaxTxsBytes, cc.Mempool.Size = MaxTxBytes, 2*MaxPoolBytes, 2*MaxPoolTxs // never reached: see CheckTx

	cc.Consensus.CreateEmptyBlocks = false
	cc.Consensus.CreateEmptyBlocksInterval = c.Heartbeat
	cc.Consensus.TimeoutPropose, cc.Consensus.TimeoutProposeDelta = time.Second, 500*time.Millisecond
	cc.Consensus.TimeoutPrevote, cc.Consensus.TimeoutPrevoteDelta = 500*time.Millisecond, 500*time.Millisecond
	cc.Consensus.TimeoutPrecommit, cc.Consensus.TimeoutPrecommitDelta = 500*time.Millisecond, 500*time.Millisecond
	cc.Consensus.TimeoutCommit, cc.Consensus.SkipTimeoutCommit = 0, true
	cc.Consensus.PeerGossipSleepDuration = c.Gossip
	// Who has lost the record of what it signed waits for a block without its signature. With the record there is no need, and
	// a restart would wait for no reason.
	if fresh {
		cc.Consensus.DoubleSignCheckHeight = 2
	}
	cc.StateSync.Enable = c.Trust != nil
	cc.StateSync.DiscoveryTime = 5 * time.Second
	return cc
}

const dialPeriod = 5 * time.Second

// engine is Comet with the application.
type engine struct {
	cfg     Config
	log     *slog.Logger
	app     *App
	key     ident.PublicKey
	genesis ledger.Genesis
	node    *node.Node
	states  sm.Store
	light   *lightReactor
	dbs     []dbm.DB
	failed  chan error
	dial    chan struct{} // wakes the dialler

	mu        sync.Mutex
	peers     []string             // ID@address:port, as named by the owner
	followers []follower           // engines that asked to be let in
	heard     map[p2p.ID]time.Time // validators: when anything came from them
}

// start opens everything and begins to take part.
func start(ctx context.Context, cfg Config) (_ *engine, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	e := &engine{cfg: cfg, log: cfg.Log, failed: make(chan error, 1), dial: make(chan struct{}, 1), heard: map[p2p.ID]time.Time{}}
	doc, err := types.GenesisDocFromFile(filepath.Join(cfg.Dir, genesisFile))
	if err != nil {
		return nil, fmt.Errorf("there is no community in %s: found or join one first (%w)", cfg.Dir, err)
	}
	if e.genesis, err = parseState(doc.AppState); err != nil {
		return nil, fmt.Errorf("read the community's beginning: %w", err)
	}
	pv, err := signer(cfg.Dir)
	if err != nil {
		return nil, err
	}
	e.key = ident.PublicKey(pv.Key.PubKey.Bytes())
	if e.app, err = openApp(cfg); err != nil { // its database is locked: no two engines in one folder
		return nil, err
	}
	defer func() {
		if err != nil {
			e.closeAll()
		}
	}()
	if cfg.hook != nil {
		cfg.hook(e)
	}
	if e.peers, err = e.readPeers(); err != nil {
		return nil, err
	}
	if cfg.Trust == nil && e.app.height() == 0 {
		if cfg.Trust, err = readTrust(cfg.Dir); err != nil {
			return nil, err
		}
	}
	cc := cfg.comet(pv.LastSignState.Height == 0)
	provider := func(x *config.DBContext) (dbm.DB, error) {
		db, err := config.DefaultDBProvider(x)
		if err != nil {
			return nil, err
		}
		g := &gentle{DB: db}
		e.dbs = append(e.dbs, g)
		if x.ID == "state" {
			e.states = sm.NewStore(g, sm.StoreOptions{DiscardABCIResponses: true})
		}
		return g, nil
	}
	e.light = newLightReactor(e)
	options := []node.Option{node.CustomReactors(map[string]p2p.Reactor{"LIGHT": e.light})}
	if cfg.Trust != nil {
		options = append(options, node.StateProvider(&provenance{e: e, trust: *cfg.Trust, doc: doc, known: map[int64]*types.LightBlock{}}))
	}
	e.node, err = node.NewNodeWithContext(ctx, cc, pv, &p2p.NodeKey{PrivKey: pv.Key.PrivKey}, proxy.NewLocalClientCreator(e.app),
		func() (*types.GenesisDoc, error) { return doc, nil }, provider, node.DefaultMetricsProvider(cc.Instrumentation), logger{e.log, e.fail}, options...)
	if err != nil {
		if h := e.app.haltedFor(); h != "" {
			return nil, errors.New(h)
		}
		return nil, fmt.Errorf("start the ledger's engine: %w", err)
	}
	if m := e.node.BlockStore().LoadBlockMeta(e.app.height()); m != nil {
		e.app.setTime(m.Header.Time)
	}
	if err := e.reindex(ctx); err != nil {
		return nil, err
	}
	e.app.setKeep(e.retain, e.wake)
	e.allow()
	if err := e.node.Start(); err != nil {
		return nil, fmt.Errorf("start the ledger's engine: %w; is another program listening on %s?", err, cfg.Listen)
	}
	return e, nil
}

func (e *engine) fail(err error) {
	select {
	case e.failed <- err:
	default:
	}
}

// stop ends the engine and closes its files.
func (e *engine) stop() error {
	err := e.node.Stop()
	e.node.Wait()
	e.light.close()
	return errors.Join(err, e.closeAll())
}

func (e *engine) closeAll() error {
	var err error
	for _, db := range e.dbs {
		err = errors.Join(err, db.Close())
	}
	return errors.Join(err, e.app.close())
}

// Run runs the engine until ctx ends or it cannot go on, and serves bftclient's socket in cfg.Dir.
func Run(ctx context.Context, cfg Config) error {
	e, err := start(ctx, cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { e.dialler(ctx) })
	wg.Go(func() { e.beat(ctx) })
	wg.Go(func() {
		if err := e.serve(ctx); err != nil {
			e.fail(err)
		}
	})
	select {
	case <-ctx.Done():
	case err = <-e.failed:
		if h := e.app.haltedFor(); h != "" {
			err = errors.New(h)
		}
	}
	cancel()
	wg.Wait()
	return errors.Join(err, e.stop())
}

// readTrust reads the block that an empty folder is to begin from, if it names one.
func readTrust(dir string) (*Trust, error) {
	file := filepath.Join(dir, bftclient.TrustFile)
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the block to begin from: %w", err)
	}
	height, hash, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	var h bftclient.Hash
	n, err := strconv.ParseInt(height, 10, 64)
	if err = errors.Join(err, h.UnmarshalText([]byte(hash))); err != nil || n < 1 {
		return nil, fmt.Errorf("%s names no block to begin from: remove it, or write HEIGHT HASH (%w)", file, err)
	}
	return &Trust{n, h}, nil
}

// begin is the snapshot that a newcomer should begin from: when not all blocks are here, or so many that replaying them takes long.
func (e *engine) begin(base, height int64) int64 {
	if base <= 1 && height <= e.cfg.Replay {
		return 0
	}
	l, err := e.app.ListSnapshots(context.Background(), nil)
	if err != nil || len(l.Snapshots) == 0 {
		return 0
	}
	return int64(l.Snapshots[len(l.Snapshots)-1].Height)
}

// readPeers merges the configured peers and those that were added over the socket.
func (e *engine) readPeers() ([]string, error) {
	b, err := os.ReadFile(filepath.Join(e.cfg.Dir, peersFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read the list of peers: %w", err)
	}
	all := append(slices.Clone(e.cfg.Peers), strings.Fields(string(b))...)
	for _, p := range all {
		if _, err := parsePeer(p); err != nil {
			return nil, err
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

func writePeers(dir string, peers []string) error {
	if err := os.WriteFile(filepath.Join(dir, peersFile), []byte(strings.Join(peers, "\n")+"\n"), 0o600); err != nil {
		return fmt.Errorf("write the list of peers: %w", err)
	}
	return nil
}

// parsePeer reads ID@address:port. There are no names: mesh addresses do not change.
func parsePeer(s string) (*p2p.NetAddress, error) {
	id, at, ok := strings.Cut(s, "@")
	if _, err := netip.ParseAddrPort(at); !ok || err != nil {
		return nil, fmt.Errorf("%q is no peer: write ID@[address]:port", s)
	}
	a, err := p2p.NewNetAddressString(p2p.IDAddressString(p2p.ID(strings.ToLower(id)), at))
	if err != nil {
		return nil, fmt.Errorf("%q is no peer: %w", s, err)
	}
	return a, nil
}

// Bounds of who may connect besides the validators, of whom the state has at most maxValidators.
const (
	maxPeers      = 50 // in the owner's list
	maxFollowers  = 32 // engines that asked, beside the owner's list
	maxStrangers  = 8  // of them, such as belong to no member
	followFor     = 30 * time.Minute
	maxValidators = 100
)

// follower is an engine that asked to be let in: to learn, not to vote.
type follower struct {
	id     p2p.ID
	on     ident.PublicKey // its node, zero if that is not known
	member bool            // whose owner is a member
	asked  time.Time       // last
}

// follow lets an engine connect to this one, which does not dial it, for followFor; one of each node. Members' nodes go first: when there is
// no room, one takes the place of the stranger that asked longest ago. Validators and the owner's own peers need no place and lose none.
func (e *engine) follow(id p2p.ID, on ident.PublicKey, now time.Time) error {
	member := e.app.isMember(on)
	e.mu.Lock()
	defer e.mu.Unlock()
	strangers, oldest := 0, -1
	e.followers = slices.DeleteFunc(e.followers, func(f follower) bool { return f.id == id || !on.IsZero() && f.on == on || now.Sub(f.asked) > followFor })
	for i, f := range e.followers {
		if f.member {
			continue
		}
		if strangers++; oldest < 0 || f.asked.Before(e.followers[oldest].asked) {
			oldest = i
		}
	}
	switch {
	case !member && (strangers >= maxStrangers || len(e.followers) >= maxFollowers):
		return fmt.Errorf("%d engines follow this one already; ask another node that keeps the ledger, or become a member", len(e.followers))
	case len(e.followers) >= maxFollowers && oldest < 0:
		return fmt.Errorf("%d members' engines follow this one already; ask another node that keeps the ledger", len(e.followers))
	case len(e.followers) >= maxFollowers:
		e.followers = slices.Delete(e.followers, oldest, oldest+1)
	}
	e.followers = append(e.followers, follower{id, on, member, now})
	e.allowLocked()
	return nil
}

// tidy forgets followers that have not asked for long, and ends the connections of all who may no longer have one.
func (e *engine) tidy(now time.Time) {
	e.mu.Lock()
	e.followers = slices.DeleteFunc(e.followers, func(f follower) bool { return now.Sub(f.asked) > followFor })
	e.allowLocked()
	e.mu.Unlock()
	sw := e.node.Switch()
	for _, p := range peersOf(sw.Peers()) {
		if !e.app.mayConnect(p.ID()) {
			sw.StopPeerGracefully(p)
		}
	}
}

// setPeer adds a peer or removes it, for good.
func (e *engine) setPeer(peer string, add bool) error {
	a, err := parsePeer(peer)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.peers = slices.DeleteFunc(e.peers, func(p string) bool { return strings.HasPrefix(p, string(a.ID)+"@") })
	if add {
		if len(e.peers) >= maxPeers {
			return fmt.Errorf("there are %d peers already: remove one first", maxPeers)
		}
		e.peers = append(e.peers, string(a.ID)+"@"+peer[strings.IndexByte(peer, '@')+1:])
	}
	if err := writePeers(e.cfg.Dir, e.peers); err != nil {
		return err
	}
	e.allowLocked()
	if !add { // it may still be a follower or a validator
		if p := e.node.Switch().Peers().Get(a.ID); p != nil && !e.app.mayConnect(a.ID) {
			e.node.Switch().StopPeerGracefully(p)
		}
	}
	e.wake()
	return nil
}

// wake has the dialler look who is missing.
func (e *engine) wake() {
	select {
	case e.dial <- struct{}{}:
	default:
	}
}

func (e *engine) allow() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.allowLocked()
}

func (e *engine) allowLocked() {
	ids := map[p2p.ID]bool{}
	for _, p := range e.peers {
		id, _, _ := strings.Cut(p, "@")
		ids[p2p.ID(strings.ToLower(id))] = true
	}
	for _, f := range e.followers {
		ids[f.id] = true
	}
	e.app.setAllowed(ids)
}

// wanted are all peers to which there should be a connection: the owner's, and the validators that the state names, which is known
// to every engine and so needs no exchange of addresses. Validators let in each other; an engine that is none is let in where it
// asked, and tries them all only now and then, or when nobody has let it in (eager).
func (e *engine) wanted(eager bool) []string {
	e.mu.Lock()
	l := slices.Clone(e.peers)
	e.mu.Unlock()
	vals := e.app.validators()
	votes := slices.ContainsFunc(vals, func(v ledger.Validator) bool { return v.Key == e.key && v.Power > 0 })
	if e.cfg.Port == 0 || !votes && !eager {
		return l
	}
	for _, v := range vals {
		id := string(idOf(v.Key))
		if v.Power == 0 || v.Key == e.key || slices.ContainsFunc(l, func(p string) bool { return strings.HasPrefix(p, id+"@") }) {
			continue
		}
		l = append(l, fmt.Sprintf("%s@%s", id, netip.AddrPortFrom(v.Node.Addr(), e.cfg.Port)))
	}
	return l
}

// dialler connects to who is wanted and not there: at once when that changes, every second while nobody at all is there, as after a start,
// and every dialPeriod otherwise. Comet itself gives up after some hours.
func (e *engine) dialler(ctx context.Context) {
	t := time.NewTimer(0)
	defer t.Stop()
	alone := 0
	for round := 0; ; round++ {
		sw := e.node.Switch()
		pause := dialPeriod
		if sw.Peers().Size() > 0 {
			alone = 0
		} else if alone++; alone < 30 {
			pause = time.Second
		}
		t.Reset(pause)
		var missing []string
		for _, p := range e.wanted(round%12 == 0 || sw.Peers().Size() == 0) {
			if a, err := parsePeer(p); err == nil && !sw.Peers().Has(a.ID) && a.ID != idOf(e.key) {
				missing = append(missing, p)
			}
		}
		if len(missing) > 0 {
			if err := sw.DialPeersAsync(missing); err != nil {
				e.log.Debug("dial peers", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-e.dial:
		}
	}
}

// retain returns the first block to keep.
func (e *engine) retain(now time.Time, head int64) int64 {
	store := e.node.BlockStore()
	base, least := store.Base(), max(e.cfg.Versions, 2*e.cfg.Snapshots)+10
	old := now.Add(-e.cfg.KeepFor)
	n := sort.Search(int(max(head-least-base, 0)), func(i int) bool {
		m := store.LoadBlockMeta(base + int64(i))
		return m == nil || m.Header.Time.After(old)
	})
	if n == 0 {
		return 0
	}
	return base + int64(n)
}

// reindex executes all blocks again, in memory, when the index of postings lacks some that the state has: it was deleted, or lost
// in a power cut. Without the first blocks, as after a snapshot, the index begins where it can.
func (e *engine) reindex(ctx context.Context) error {
	_, to, err := e.app.index.span()
	head := e.app.height()
	if err != nil || to >= head || head == 0 {
		return err
	}
	store := e.node.BlockStore()
	if store.Base() != 1 {
		e.log.Warn("statements begin later than the chain: the blocks before are not here", "from", head+1)
		return nil
	}
	e.log.Info("building the index of postings anew", "blocks", head)
	m, err := ledger.New(ledger.NewMem())
	if err != nil {
		return err
	}
	if err := m.Init(e.genesis); err != nil {
		return err
	}
	shadow := &App{machine: m}
	for h := int64(1); h <= head && ctx.Err() == nil; h++ {
		b := store.LoadBlock(h)
		if b == nil {
			return fmt.Errorf("block %d is missing", h)
		}
		header := shadow.header(h, b.Time, b.ProposerAddress, b.Evidence.Evidence.ToABCI())
		if _, err := e.app.index.add(block{header, b.Txs.ToSliceOfBytes(), m.Block(header, b.Txs.ToSliceOfBytes())}); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// status tells how the engine does.
func (e *engine) status() bftclient.Status {
	store, sw := e.node.BlockStore(), e.node.Switch()
	s := bftclient.Status{
		Chain: e.genesis.Chain, Pid: os.Getpid(), ID: string(idOf(e.key)), Key: e.key, Height: min(store.Height(), e.app.height()), Base: store.Base(),
		CatchingUp: e.node.ConsensusReactor().WaitSync(), Waiting: e.node.Mempool().Size(), Peers: []string{},
	}
	if m := store.LoadBlockMeta(s.Height); m != nil {
		s.Time, s.Hash, s.AppHash = m.Header.Time.Unix(), bftclient.Hash(m.BlockID.Hash), m.Header.AppHash
	}
	s.Begin = e.begin(s.Base, s.Height)
	for _, p := range peersOf(sw.Peers()) {
		s.Peers = append(s.Peers, string(p.ID()))
	}
	slices.Sort(s.Peers)
	heard := e.listen(sw)
	voters, reachable := 0, 0
	vals, rules, names := e.app.seats()
	s.Rules = rules
	var lost []string
	for _, v := range vals {
		if v.Power == 0 {
			continue
		}
		w := bftclient.Validator{Key: v.Key, Node: v.Node, Operator: v.Operator, Power: int64(v.Power), Self: v.Key == e.key}
		at := heard[idOf(v.Key)]
		silent := time.Since(at)
		w.Reachable = w.Self || silent < silence && slices.Contains(s.Peers, string(idOf(v.Key)))
		if !at.IsZero() {
			w.Heard = at.Unix()
		}
		if voters++; w.Reachable {
			reachable++
		} else if at.IsZero() {
			lost = append(lost, names[v.Operator]+"'s since this engine was started")
		} else {
			lost = append(lost, fmt.Sprintf("%s's for %d s", names[v.Operator], int(silent.Seconds())))
		}
		s.Validating = s.Validating || w.Self
		s.Validators = append(s.Validators, w)
	}
	block, here, oldest := e.app.last()
	idle, due := int(time.Since(block).Seconds()), e.cfg.Heartbeat
	if !here { // none since this engine was started: by the block's own time
		idle = int(max(time.Now().Unix()-s.Time, 0))
	}
	if !s.Validating {
		due = max(due, maxHeartbeat) // this engine does not know theirs
	}
	switch h := e.app.haltedFor(); {
	case h != "":
		s.Halted = h
	case s.CatchingUp:
	case voters > 0 && s.Validating && 3*reachable <= 2*voters:
		s.Halted = fmt.Sprintf("%d of %d validators reachable, and more than two thirds are needed for a block; the last came %d s ago. Not heard: %s. What was sent waits until enough of them are back; nothing is lost",
			reachable, voters, idle, strings.Join(lost, ", "))
	case voters > 0 && reachable == 0:
		s.Halted = fmt.Sprintf("none of the %d validators is reachable, and no block has come for %d s: what this engine tells may be old", voters, idle)
	case s.Waiting > 0 && time.Since(oldest) > overdue && time.Since(block) > overdue, time.Since(block) > due+overdue:
		s.Halted = fmt.Sprintf("no block for %d s, with %s waiting, though %d of %d validators are reachable from here: look whether they can reach each other and whether their clocks are right", idle, transactions(s.Waiting), reachable, voters)
		if len(lost) > 0 {
			s.Halted += ". Not heard: " + strings.Join(lost, ", ")
		}
	}
	return s
}

func transactions(n int) string {
	if n == 1 {
		return "1 transaction"
	}
	return fmt.Sprintf("%d transactions", n)
}

// peersOf lists a set of peers, whose method for it has another name in each line of Comet.
func peersOf(set any) []p2p.Peer {
	switch s := set.(type) {
	case interface{ Copy() []p2p.Peer }:
		return s.Copy()
	case interface{ List() []p2p.Peer }:
		return s.List()
	}
	panic("this CometBFT lists no peers")
}

// logger passes Comet's log on. What it calls information is of interest to those who debug.
type logger struct {
	l    *slog.Logger
	fail func(error)
}

func (l logger) Debug(string, ...any)       {}
func (l logger) Info(msg string, kv ...any) { l.l.Debug(msg, clean(kv)...) }
func (l logger) Warn(msg string, kv ...any) { l.l.Info(msg, clean(kv)...) }
func (l logger) Error(msg string, kv ...any) {
	if strings.HasPrefix(msg, "CONSENSUS FAILURE") {
		var why any
		for i := 0; i+1 < len(kv); i += 2 {
			if kv[i] == "err" {
				why = kv[i+1]
			}
		}
		l.fail(fmt.Errorf("the engine cannot go on: %v", why))
	}
	if msg == "Error dialing peer" { // tried again in seconds, and status tells who is missing
		l.l.Debug(msg, clean(kv)...)
		return
	}
	l.l.Warn(msg, clean(kv)...)
}
func (l logger) With(kv ...any) log.Logger { return logger{l.l.With(clean(kv)...), l.fail} }

// clean makes values texts: some of Comet's are too lazy to be printed later.
func clean(kv []any) []any {
	out := make([]any, len(kv))
	for i, v := range kv {
		if i%2 == 0 {
			out[i] = fmt.Sprint(v)
			continue
		}
		out[i] = lazy{v}
	}
	return out
}

type lazy struct{ v any }

func (l lazy) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(l.v)) }
