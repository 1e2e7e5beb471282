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
