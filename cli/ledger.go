package cli

import (
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"weft/ident"
	"weft/ledger"
	"weft/ledger/bft"
	"weft/ledger/bft/bftclient"
	"weft/ledger/tx"
)

// ledgerCmd is the ledger's engine. All but status belong to the process that the node starts (weft-ledger).
type ledgerCmd struct {
	Status     ledgerStatusCmd     `cmd:"" default:"1" help:"Show blocks and validators."`
	Validators ledgerValidatorsCmd `cmd:"" help:"Show who votes on blocks."`
	Run        ledgerRunCmd        `cmd:"" hidden:"" help:"Run the engine; the node does it."`
	Found      ledgerFoundCmd      `cmd:"" hidden:"" help:"Make the folder of a community's first engine from a genesis on standard input."`
	Init       ledgerInitCmd       `cmd:"" hidden:"" help:"Make the folder of another engine from a genesis on standard input."`
}

type ledgerRunCmd struct {
	Dir       string         `required:"" help:"Data folder."`
	Listen    netip.AddrPort `help:"Where other engines reach this one."`
	Port      uint16         `help:"Where other validators' engines listen."`
	Heartbeat time.Duration  `default:"120s" help:"Between blocks when nothing happens."`
	Archive   bool           `help:"Keep every block."`
	Snapshots int64          `env:"WEFT_LEDGER_SNAPSHOTS" help:"Blocks between snapshots for newcomers; 0: the default."`
	Replay    int64          `env:"WEFT_LEDGER_REPLAY" help:"Newcomers replay a chain of at most so many blocks; 0: the default."`
}

func (c *ledgerRunCmd) Run(e *env) error {
	ctx := bftclient.Child(e.ctx, os.Stdin)
	return bft.Run(ctx, bft.Config{Dir: c.Dir, Listen: c.Listen, Port: c.Port, Heartbeat: c.Heartbeat, Archive: c.Archive, Snapshots: c.Snapshots, Replay: c.Replay,
		Log: slog.New(slog.NewTextHandler(e.err, &slog.HandlerOptions{Level: slog.LevelInfo}))})
}

type ledgerFoundCmd struct {
	Dir string          `required:"" help:"Data folder."`
	On  ident.PublicKey `required:"" help:"The node's key."`
}

func (c *ledgerFoundCmd) Run(e *env) error {
	b, err := io.ReadAll(io.LimitReader(os.Stdin, 4<<20))
	if err != nil {
		return err
	}
	var g ledger.Genesis
	if err := tx.Decode(b, &g); err != nil {
		return fmt.Errorf("the genesis on standard input: %w", err)
	}
	if g, err = bft.Found(c.Dir, g, c.On); err != nil {
		return err
	}
	_, err = fmt.Fprintln(e.out, hex.EncodeToString(tx.Encode(&g)))
	return err
}

type ledgerInitCmd struct {
	Dir  string `required:"" help:"Data folder."`
	Peer string `help:"ID@ADDRESS:PORT of an engine to begin with."`
}

func (c *ledgerInitCmd) Run(e *env) error {
	b, err := io.ReadAll(io.LimitReader(os.Stdin, 4<<20))
	if err != nil {
		return err
	}
	var peers []string
	if c.Peer != "" {
		peers = append(peers, c.Peer)
	}
	return bft.Join(c.Dir, b, peers...)
}

type ledgerStatusCmd struct{}

func (c *ledgerStatusCmd) Run(e *env) error {
	cl := e.ledger()
	defer cl.Close()
	s, err := cl.Status(e.ctx)
	if err != nil {
		return plainLedger(err)
	}
	if e.json {
		return e.printJSON(s)
	}
	e.say("Chain      %s, rules %d", clean(s.Chain), s.Rules)
	e.say("Block      %d of %s, %s", s.Height, time.Unix(s.Time, 0).Local().Format("2006-01-02 15:04:05"), s.Hash)
	e.say("Engine     %s, key %s%s", s.ID, s.Key, map[bool]string{true: ", a validator"}[s.Validating])
	if s.Base > 1 {
		e.say("Kept       blocks from %d on", s.Base)
	}
	e.say("Waiting    %s", count(s.Waiting, "transaction"))
	if s.CatchingUp {
		e.say("           catching up with the others")
	}
	if s.Halted != "" {
		e.say("           halted: %s", clean(s.Halted))
	}
	if s.Height > 0 {
		if err := e.books(func(m *ledger.Machine, _ time.Time) error {
			if u, ok := m.Upgrade(); ok {
				e.say("Upgrade    to rules %d from block %d on, by proposal %d: every machine that keeps the ledger needs a weft and a weft-ledger that know them by then", u.Version, u.Height, u.Proposal)
			}
			gateways, relays := 0, 0
			for _, n := range m.Registrations() {
				gateways += int(n.Roles & tx.RoleGateway)
				relays += int(n.Roles & tx.RoleRelay / tx.RoleRelay)
			}
			e.say("Registered %s, %s (weft coop node)", count(gateways, "gateway"), count(relays, "relay"))
			return nil
		}); err != nil {
			return err
		}
	}
	e.printValidators(s)
	return nil
}

type ledgerValidatorsCmd struct{}

func (c *ledgerValidatorsCmd) Run(e *env) error {
	cl := e.ledger()
	defer cl.Close()
	s, err := cl.Status(e.ctx)
	if err != nil {
		return plainLedger(err)
	}
	if e.json {
		return e.printJSON(append([]bftclient.Validator{}, s.Validators...))
	}
	e.printValidators(s)
	e.say("To make another engine one of them: weft coop propose --validator KEY@NODE --operator MEMBER")
	return nil
}

func (e *env) printValidators(s bftclient.Status) {
	t := columns("VALIDATOR", "OPERATOR", "NODE", ">POWER", "")
	for _, v := range s.Validators {
		note := map[bool]string{true: "this one", false: " "}[v.Self]
		if !v.Self && !v.Reachable {
			note = "never heard since the engine was started"
			if v.Heard > 0 {
				note = "not heard for " + time.Since(time.Unix(v.Heard, 0)).Round(time.Second).String()
			}
		}
		t.row(v.Key, fmt.Sprintf("member %d", v.Operator), v.Node, v.Power, note)
	}
	t.print(e.out)
}

// beginsLate says that the first blocks are not kept here.
type beginsLate struct{ from, height int64 }

func (b beginsLate) Error() string {
	return fmt.Sprintf("the ledger here begins at block %d of %d: the blocks before were deleted, or this node began with a snapshot; ask a node that keeps all blocks", b.from, b.height)
}

// auditState audits what can be audited without the first blocks: whether all that the state says now goes together. That is no full
// audit, so it never succeeds; what it found and what it could not look at is told apart.
func (e *env) auditState(cl *bftclient.Client, late beginsLate) error {
	live, err := cl.State(e.ctx, late.height)
	if err != nil {
		return plainLedger(err)
	}
	store, records := ledger.NewMem(), 0
	live.Scan(nil, func(k, v []byte) bool {
		store.Set(k, v)
		records++
		return true
	})
	if err := live.Err(); err != nil {
		return plainLedger(err)
	}
	m, err := ledger.New(store)
	if err != nil {
		return err
	}
	broken := []string{}
	if err := m.Check(); err != nil {
		broken = append(broken, err.Error())
	}
	if e.json {
		if err := e.printJSON(map[string]any{"height": late.height, "first_block": late.from, "records": records, "state_ok": len(broken) == 0, "differences": broken, "ok": false}); err != nil {
			return err
		}
	} else {
		if len(broken) == 0 {
			e.say("Checked      all %s of the state after block %d agree with each other: money and claims sum to zero,", count(records, "record"), late.height)
			e.say("             and accounts, tabs, funds, members, votes and fiscal periods are in order.")
		}
		for _, d := range broken {
			e.say("DIFFERENT    %s", clean(d))
		}
		e.say("Not checked  how each balance came about, and how surpluses were divided: that takes every block from the first on.")
	}
	if len(broken) > 0 {
		return errFailed
	}
	return late
}
