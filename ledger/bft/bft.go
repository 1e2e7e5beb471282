// Package bft runs the ledger under CometBFT: blocks in, app hashes out, on as many validators as the members voted in.
//
// It is the only room that knows the engine, which is large (some 125 modules) and is therefore a process of its own: `weft ledger
// run` calls [Run], and the node starts and watches that process with ledger/bft/bftclient, which links none of it. Both talk over
// a unix socket in the data folder. docs/spec/ledger.md section 5 is the normative text.
//
//	mempool ─ CheckTx ─ Pool.Take        a transaction is judged before it is passed on, and again after each block
//	propose ─ Machine.Propose            what an honest proposer puts into a block
//	vote    ─ Machine.CheckBlock         no vote for a block that no honest proposer makes
//	decide  ─ Machine.Block              executed into the working tree; its root is the app hash
//	commit  ─ postings, then the tree    a crash before it is a replay: Comet gives the block again
//
// State is one IAVL tree whose version is the height; the keys are those of package ledger. Nothing else decides the app hash.
//
// Built with the tag engine. Without it the package is its settings and a Run that says what is missing: routers have no engine.
//
// Goroutines: Run starts Comet's own and one for the socket, and returns when all have ended. The application is called by Comet
// under one lock and by the socket under the same.
package bft

import (
	"errors"
	"log/slog"
	"net/netip"
	"time"
)

// Config is one engine.
type Config struct {
	Dir       string         // everything lies here; no two engines may have the same. Made if it is missing
	Listen    netip.AddrPort // where other engines reach this one: an address in the mesh
	Peers     []string       // ID@[address]:port of engines to keep a connection to
	Port      uint16         // where other validators listen on their nodes' addresses; 0: dial Peers alone, not who is in the state
	Heartbeat time.Duration  // between blocks when there is nothing to do, 60 to 300 s: bounds how far block time is behind; 0 is 120 s
	Archive   bool           // keep every block: somebody should
	KeepFor   time.Duration  // how long blocks are kept otherwise; 0 is 400 days, so that a year can be audited
	Versions  int64          // how many states can be asked for with proof; 0 is 1000
	Snapshots int64          // blocks between snapshots for newcomers; 0 is 500
	// Trust lets an empty Dir begin with a neighbour's snapshot instead of all blocks: a block known to be the chain's, at most 14
	// days old. nil: what the file bftclient.TrustFile in Dir names; without it the chain is replayed from the first block.
	Trust  *Trust
	Replay int64         // newcomers are told to begin with a snapshot when the chain is longer than so many blocks; 0 is 20 000
	Gossip time.Duration // pause between looks at what a peer lacks; 0 is 50 ms
	Log    *slog.Logger

	hook func(*engine) // tests look inside
}

// Trust is a block that is known to belong to the chain.
type Trust struct {
	Height int64
	Hash   [32]byte
}

// The limits of the engine. They are consensus parameters or hold at every validator alike.
const (
	MaxBlockBytes  = 1 << 20
	MaxTxBytes     = 4 << 10
	MaxPoolBytes   = 4 << 20
	MaxPoolTxs     = 5000
	EvidenceWindow = 14 * 24 * time.Hour // as light clients trust a header so long
	EvidenceBlocks = 100_000
	DefaultPort    = 26656
	maxHeartbeat   = 300 * time.Second
)

// check fills in defaults.
func (c *Config) check() error {
	if c.Dir == "" {
		return errors.New("an engine needs a data folder")
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = 120 * time.Second
	}
	if c.KeepFor == 0 {
		c.KeepFor = 400 * 24 * time.Hour
	}
	if c.KeepFor < EvidenceWindow+24*time.Hour {
		return errors.New("blocks must be kept for 15 days at least: evidence and light clients need them")
	}
	if c.Versions == 0 {
		c.Versions = 1000
	}
	if c.Snapshots == 0 {
		c.Snapshots = 500
	}
	if c.Replay == 0 {
		c.Replay = 20_000
	}
	if c.Snapshots < 0 || c.Versions < 10 {
		return errors.New("an engine keeps 10 states at least")
	}
	if c.Gossip == 0 {
		c.Gossip = 50 * time.Millisecond
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}
