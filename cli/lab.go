//go:build linux && !router

package cli

import (
	"fmt"
	"os"
	"strings"

	"weft/lab/bench"
	"weft/lab/manifests"
	"weft/lab/netns"
	"weft/lab/peers"
)

type labVerbs struct {
	Lab labCmd `cmd:"" help:"Build test worlds, simulate and measure."`
}

type labCmd struct {
	Run   labRunCmd   `cmd:"" help:"Run a test world from a manifest and check what it expects."`
	Demo  labDemoCmd  `cmd:"" help:"Show a neighbourhood of six nodes at work."`
	Bench labBenchCmd `cmd:"" help:"Measure Weft beside Yggdrasil, WireGuard and the kernel."`
	Peer  labPeerCmd  `cmd:"" hidden:"" passthrough:"" help:"Run another system to measure against."`
}

type labRunCmd struct {
	File string `arg:"" help:"Manifest, or the name of a world that comes with weft."`
}

func (c *labRunCmd) Run(e *env) error {
	m, err := manifests.Load(c.File)
	if err != nil {
		return usageError{err}
	}
	opt, err := e.lab()
	if err != nil {
		return err
	}
	r, err := netns.Run(e.ctx, m, opt, e.err)
	if err != nil {
		return err
	}
	if e.json {
		err = e.printJSON(r)
	} else {
		err = r.WriteTable(e.out)
	}
	if err == nil && r.Failed() > 0 {
		err = errFailed
	}
	return err
}

type labDemoCmd struct {
	Keep bool `help:"Keep the neighbourhood up until Ctrl-C."`
}

func (c *labDemoCmd) Run(e *env) error {
	opt, err := e.lab()
	if err != nil {
		return err
	}
	return netns.Demo(e.ctx, opt, c.Keep, e.out)
}

type labBenchCmd struct {
	Short bool     `help:"A smoke test: no figures to quote."`
	Runs  int      `help:"How often each; figures are medians (default: 5)."`
	Only  []string `help:"Only these systems (${systems}), topologies (${topologies}) or measures (${measures})."`
}

func (c *labBenchCmd) Run(e *env) error {
	opt, err := e.lab()
	if err != nil {
		return err
	}
	r, err := bench.Run(e.ctx, bench.Options{Binary: opt.Binary, Self: []string{opt.Binary}, Runs: c.Runs, Short: c.Short, Only: c.Only, Progress: func(done, total int, what string) {
		e.tell("%d/%d %s", done, total, what)
	}})
	if r == nil {
		return err
	}
	if e.json {
		if printErr := e.printJSON(r); printErr != nil {
			return printErr
		}
	} else if printErr := r.WriteTable(e.out); printErr != nil {
		return printErr
	}
	if err != nil { // the report has told it
		return errFailed
	}
	return nil
}

// labVars are the names that the help of the lab's verbs lists.
func labVars() map[string]string {
	return map[string]string{
		"systems": strings.Join(bench.Systems, ", "), "topologies": strings.Join(bench.Topologies, ", "), "measures": strings.Join(bench.Measures, ", "),
	}
}

// lab is how worlds run: every node is this same program.
func (e *env) lab() (netns.Options, error) {
	self, err := os.Executable()
	if err != nil {
		return netns.Options{}, fmt.Errorf("find this program: %w", err)
	}
	return netns.Options{Binary: self}, netns.Usable()
}

// labPeerCmd is how `weft lab bench` runs other systems: as processes of their own.
type labPeerCmd struct {
	Args []string `arg:"" optional:""`
}

func (c *labPeerCmd) Run(e *env) error {
	if err := peers.Run(e.ctx, c.Args, e.out); err != nil {
		return fmt.Errorf("run the peer: %w", err)
	}
	return nil
}
