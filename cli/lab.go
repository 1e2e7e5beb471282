//go:build linux && !router

package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"weft/lab/bench"
	"weft/lab/manifest"
	"weft/lab/manifests"
	"weft/lab/netns"
	"weft/lab/peers"
	"weft/lab/sim"
)

type labVerbs struct {
	Lab labCmd `cmd:"" help:"Build test worlds, simulate and measure."`
}

type labCmd struct {
	Run     labRunCmd     `cmd:"" help:"Run a test world from a manifest and check what it expects."`
	Demo    labDemoCmd    `cmd:"" help:"Show a neighbourhood of six nodes at work."`
	Sim     labSimCmd     `cmd:"" help:"Simulate a world of many routing cores in virtual time. Needs no root."`
	Economy labEconomyCmd `cmd:"" help:"Let honest and hostile households trade for a month in virtual time; who lost what? Needs no root."`
	Bench   labBenchCmd   `cmd:"" help:"Measure Weft beside Yggdrasil, WireGuard and the kernel."`
	Peer    labPeerCmd    `cmd:"" hidden:"" passthrough:"" help:"Run another system to measure against."`
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

type labSimCmd struct {
	File  string        `arg:"" optional:"" help:"Manifest, or the name of a world that comes with weft; without it a random neighbourhood."`
	Nodes int           `default:"200" help:"Nodes of the random neighbourhood."`
	Seed  uint64        `default:"1" help:"Of the random neighbourhood."`
	Idle  time.Duration `default:"1m" help:"How long the random neighbourhood stays idle, to count its control traffic."`
}

func (c *labSimCmd) Run(e *env) error {
	var m *manifest.Manifest
	var err error
	switch {
	case c.File != "":
		m, err = manifests.Load(c.File)
	case c.Nodes < 2 || c.Idle < 0:
		err = errors.New("a neighbourhood has at least 2 nodes and idles for no less than 0s")
	default:
		m = sim.Random(c.Nodes, c.Seed, c.Idle)
	}
	if err != nil {
		return usageError{err}
	}
	told := time.Now()
	r, err := sim.Run(e.ctx, m, func(p sim.Progress) {
		if time.Since(told) > 2*time.Second {
			told = time.Now()
			e.tell("%s of %s simulated: %d nodes, %d of %d questions answered", p.Now.Round(time.Millisecond), p.End, p.Nodes, p.Answered, p.Asked)
		}
	})
	if err != nil {
		return fmt.Errorf("simulate: %w", err)
	}
	if e.json {
		err = e.printJSON(r)
	} else {
		_, err = r.WriteTo(e.out)
	}
	if err == nil && r.Err() != nil {
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
