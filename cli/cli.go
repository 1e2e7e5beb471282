// Package cli is weft's command line: one type for each verb, in plain words
// for people and with --json for programs. The verbs talk to the running node
// through package api; only `weft up` is a node, and only `weft init`, `weft
// id` and what works without a node touch the state directory.
//
// cmd/weft is its only importer. Main is called once; it may be called again
// in tests, for it keeps nothing between calls.
//
// The rules of its texts: results go to standard output, everything else to
// standard error; an error says what is wrong and, after "hint:", what to do;
// names that other nodes chose are printed without control characters. Exit
// status is 0 for success, 1 for failure and 2 for a command or configuration
// that cannot be read.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/alecthomas/kong"

	"weft/api"
	"weft/config"
	"weft/ident"
)

// verbs are all commands and the flags that every one of them takes.
type verbs struct {
	State  string `placeholder:"DIR" help:"State directory: key, socket, what commands added (default: ${state})."`
	Config string `placeholder:"FILE" help:"Config file (default: ${config}, or weft.toml in --state)."`
	JSON   bool   `name:"json" help:"Print JSON."`

	Up       upCmd       `cmd:"" help:"Run the node. As root it makes a network interface, otherwise it offers proxies."`
	Init     initCmd     `cmd:"" help:"Make this node's key and a commented config file."`
	ID       idCmd       `cmd:"" name:"id" help:"Show this node's key and address."`
	Status   statusCmd   `cmd:"" help:"Show the node at a glance."`
	Peers    peersCmd    `cmd:"" help:"Show, add and remove neighbours."`
	Routes   routesCmd   `cmd:"" help:"Show the best path to every node."`
	Ping     pingCmd     `cmd:"" help:"Ping a node, by address, key, id or name."`
	Trace    traceCmd    `cmd:"" help:"Show the path to a node, with costs and prices."`
	LSDB     lsdbCmd     `cmd:"" name:"lsdb" help:"Show the link-state database: every node and its links."`
	Firewall firewallCmd `cmd:"" help:"Show and change who may reach this device."`
	Gateway  gatewayCmd  `cmd:"" help:"Share the internet: offer this device's line, or use another's."`
	Meter    meterCmd    `cmd:"" help:"Show who carried what for whom."`
	Guest    guestCmd    `cmd:"" help:"Show devices without Weft behind this node."`
	Coop     coopCmd     `cmd:"" help:"The community: members, votes, bylaws, books."`
	Wallet   walletCmd   `cmd:"" help:"Show and spend this node's money."`
	Ledger   ledgerCmd   `cmd:"" help:"Show the state of the community's ledger."`
	Voucher  voucherCmd  `cmd:"" help:"Make and manage vouchers that let guests in."`
	Invite   inviteCmd   `cmd:"" help:"Make a link and a QR code with which others join."`
	Join     joinCmd     `cmd:"" help:"Join with a link that someone made with weft invite."`
	Version  versionCmd  `cmd:"" help:"Show the version."`
	labVerbs
}

// env is what a verb works with.
type env struct {
	ctx      context.Context
	out, err io.Writer
	json     bool
	paths    config.Paths
}

// usageError is one that the user can only mend by another command or config.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// errFailed says that the verb has told what is wrong and the exit status is 1.
var errFailed = errors.New("failed")

// exit is how kong leaves after --help.
type exit int

// Main runs a command line without the program's name and returns the exit
// status. When ctx ends, what runs stops in good order.
func Main(ctx context.Context, args []string, out, errOut io.Writer) (status int) {
	e := &env{ctx: ctx, out: out, err: errOut}
	defer func() {
		if r := recover(); r != nil {
			code, ok := r.(exit)
			if !ok {
				panic(r)
			}
			status = int(code)
		}
	}()
	usual, pathErr := config.FindPaths("", "")
	var v verbs
	k, err := kong.New(&v,
		kong.Name("weft"),
		kong.Description("The internet that its neighbourhood owns. Begin with: weft up"),
		kong.Writers(out, errOut),
		kong.Exit(func(code int) { panic(exit(code)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Vars{"state": usual.State, "config": usual.Config, "portal": config.DefaultPortal},
		kong.Vars(labVars()),
	)
	if err != nil {
		return e.fail(err)
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	kctx, err := k.Parse(args)
	if err != nil {
		return e.fail(unreadable(err, args))
	}
	e.json = v.JSON
	if v.State == "" && pathErr != nil {
		return e.fail(pathErr)
	}
	if e.paths, err = config.FindPaths(v.State, v.Config); err != nil {
		return e.fail(err)
	}
	verb, _, _ := strings.Cut(kctx.Command(), " ")
	if v.State == "" && !slices.Contains([]string{"up", "init", "id"}, verb) { // those are about one's own node
		e.systemNode()
	}
	return e.fail(kctx.Run(e))
}

// unreadable says what is wrong with a command line, and where its command is explained. A number below zero looks like a flag to
// the parser, and no verb takes one.
func unreadable(err error, args []string) error {
	at := "weft"
	if p, ok := errors.AsType[*kong.ParseError](err); ok {
		for _, step := range p.Context.Path {
			if step.Command != nil {
				at += " " + step.Command.Name
			}
		}
	}
	if strings.HasPrefix(err.Error(), "unknown flag -") {
		for _, a := range args {
			if _, bad := strconv.ParseFloat(a, 64); bad == nil && strings.HasPrefix(a, "-") {
				err = fmt.Errorf("%s: a sum or number is not below zero", a)
				break
			}
		}
	}
	return usageError{fmt.Errorf("%w; see: %s --help", err, at)}
}

// systemNode turns an ordinary user without a node of their own to the one that
// root runs. Whether they may talk to it is for the socket to say.
func (e *env) systemNode() {
	for _, own := range []string{config.Default().Socket(e.paths.State), filepath.Join(e.paths.State, ident.KeyFile)} {
		if _, err := os.Stat(own); err == nil {
			return
		}
	}
	if _, err := os.Stat(config.Default().Socket(config.SystemState)); err == nil || errors.Is(err, fs.ErrPermission) {
		e.paths.State = config.SystemState
	}
}

// fail tells an error and returns the exit status.
func (e *env) fail(err error) int {
	if err == nil {
		return 0
	}
	if errors.Is(err, errFailed) {
		return 1
	}
	fmt.Fprintf(e.err, "weft: %v\n", err)
	if p, ok := errors.AsType[*api.Error](err); ok && p.Hint != "" {
		fmt.Fprintf(e.err, "hint: %s\n", p.Hint)
	}
	_, usage := errors.AsType[usageError](err)
	_, one := errors.AsType[*config.Error](err)
	_, many := errors.AsType[config.Errors](err)
	if usage || one || many {
		return 2
	}
	return 1
}

// config reads the config file, with what commands added.
func (e *env) config() (*config.Config, error) {
	c, err := config.Load(e.paths.Config, e.paths.Chosen)
	if err != nil {
		return nil, err
	}
	added, err := config.LoadAdded(e.paths.State)
	if err != nil {
		return nil, err
	}
	c.Add(added)
	return c, nil
}

// node returns the running node. A config that cannot be read does not keep
// anyone from looking at a node that runs.
func (e *env) node() api.Backend {
	c, err := config.Load(e.paths.Config, false)
	if err != nil {
		c = config.Default()
	}
	return api.NewClient(c.Socket(e.paths.State))
}

// printJSON prints v for programs.
func (e *env) printJSON(v any) error {
	enc := json.NewEncoder(e.out)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// printLine prints v on one line, for streams.
func (e *env) printLine(v any) error {
	if err := json.NewEncoder(e.out).Encode(v); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

func (e *env) say(format string, args ...any) { fmt.Fprintf(e.out, format+"\n", args...) }

// tell says something beside the result.
func (e *env) tell(format string, args ...any) { fmt.Fprintf(e.err, format+"\n", args...) }
