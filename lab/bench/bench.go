//go:build linux && !router

// Package bench measures Weft beside the systems that people would use instead, in one run on one machine: Yggdrasil as a
// library peer, WireGuard in userspace, and the kernel's own forwarding. Absolute figures say more about the machine than
// about the program, so every figure is printed as a ratio, and the systems take turns within a run so that a noisy
// neighbour hurts all alike.
//
// `weft lab bench` and the smoke tests use it, as root. Run waits for everything that it starts.
package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/lab/netns"
)

// Options say what to measure.
type Options struct {
	Binary   string       // the weft program; empty leaves weft out
	Self     []string     // how to run `lab peer`; default: this program
	Runs     int          // how often; figures are medians. Default 5, or 1 when Short
	Short    bool         // a smoke test: seconds, two systems' worth of trust
	Only     []string     // names of systems, topologies or measures; of each kind only the named ones are run
	Log      *slog.Logger // nil: say nothing
	Progress func(done, total int, what string)
}

// The names that Only knows.
var (
	Systems    = []string{"weft", paying, "yggdrasil", plane, "wireguard", "wireguard-hops", "kernel", "kernel-plain"}
	Topologies = []string{"line2", "line3", "line5", "diamond", "join", "gateway"}
	Measures   = []string{"tcp", "down", "udp", "rtt", "idle", "heal", "join"}
)

// Report is the outcome for machines.
type Report struct {
	Started time.Time      `json:"started"`
	Machine Machine        `json:"machine"`
	Runs    int            `json:"runs"`
	Short   bool           `json:"short"`
	Results []*Result      `json:"results"`
	Targets []TargetResult `json:"targets"`
	Errors  []string       `json:"errors,omitempty"`
}

// Machine is where it ran.
type Machine struct {
	CPUs   int    `json:"cpus"`
	Arch   string `json:"arch"`
	Go     string `json:"go"`
	Kernel string `json:"kernel"`
}

// Result is one figure of one system on one topology.
type Result struct {
	Topology string    `json:"topology"`
	System   string    `json:"system"`
	Measure  string    `json:"measure"`
	Unit     string    `json:"unit"`
	Median   float64   `json:"median"`
	Values   []float64 `json:"values"`
}

// figures are what the measures yield, in the order of the table.
var figures = []struct {
	name, unit, title string
	more              bool // more is better
}{
	{"tcp", "Gbit/s", "TCP, one stream", true},
	{"cpu-endpoint", "s/GB", "CPU per GB, endpoint", false},
	{"cpu-relay", "s/GB", "CPU per GB, relay", false},
	{"cpu-gateway", "s/GB", "CPU per GB, gateway", false},
	{"down", "Gbit/s", "TCP down, one stream", true},
	{"cpu-down", "s/GB", "CPU per GB down, all nodes", false},
	{"udp", "kpkt/s", "UDP 1200 B, < 1 % loss", true},
	{"rtt", "ms", "RTT median", false},
	{"rtt99", "ms", "RTT p99", false},
	{"rss-idle", "MB", "memory, idle", false},
	{"rss-load", "MB", "memory, loaded", false},
	{"cpu-idle", "%", "CPU, idle", false},
	{"heal-kill", "ms", "heal: relay killed", false},
	{"heal-down", "ms", "heal: link down", false},
	{"heal-silent", "ms", "heal: silent drop", false},
	{"join", "s", "a node joins: first ping", false},
}

// bench is one run of Run.
type bench struct {
	opt    Options
	report *Report
	steps  int
	done   int
}

// Run measures. The report is good as far as it goes even when there is an error: a system that failed is left out of it.
func Run(ctx context.Context, opt Options) (*Report, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Runs == 0 {
		opt.Runs = 5
		if opt.Short {
			opt.Runs = 1
		}
	}
	if len(opt.Self) == 0 {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find this program: %w", err)
		}
		opt.Self = []string{self}
	}
	for _, name := range opt.Only {
		if !slices.Contains(slices.Concat(Systems, Topologies, Measures), name) {
			return nil, fmt.Errorf("nothing called %q to measure: systems are %s; topologies %s; measures %s", name,
				strings.Join(Systems, ", "), strings.Join(Topologies, ", "), strings.Join(Measures, ", "))
		}
	}
	if err := netns.Usable(); err != nil {
		return nil, err
	}
	release, err := netns.Alone(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	var uts syscall.Utsname
	syscall.Uname(&uts)
	kernel := ""
	for _, c := range uts.Release {
		if c == 0 {
			break
		}
		kernel += string(rune(c))
	}
	b := &bench{opt: opt, report: &Report{
		Started: time.Now().UTC(), Runs: opt.Runs, Short: opt.Short,
		Machine: Machine{CPUs: runtime.NumCPU(), Arch: runtime.GOARCH, Go: runtime.Version(), Kernel: kernel},
	}}
	err = b.run(ctx)
	b.report.finish()
	return b.report, err
}

// wants says whether Only lets a name through: all names of a kind do when none of the kind is listed.
func (b *bench) wants(kind []string, name string) bool {
	listed := false
	for _, o := range b.opt.Only {
		listed = listed || slices.Contains(kind, o)
	}
	return !listed || slices.Contains(b.opt.Only, name)
}

func (b *bench) run(ctx context.Context) error {
	var errs []error
	for _, topology := range Topologies {
		measures, systems, _ := b.plan(topology)
		b.steps += b.opt.Runs * len(systems) * len(measures)
	}
	for _, topology := range Topologies {
		if err := b.topology(ctx, topology); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", topology, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	for _, err := range errs {
		b.report.Errors = append(b.report.Errors, err.Error())
	}
	return errors.Join(errs...)
}

// measure is one thing to do with a rig, once per run.
type measure struct {
	name string
	do   func(context.Context, *rig) error
}

// plan says what a topology measures and of which systems.
func (b *bench) plan(topology string) (measures []measure, systems []string, idle bool) {
	add := func(name string, do func(context.Context, *rig) error) {
		if b.wants(Measures, name) {
			measures = append(measures, measure{name, do})
		}
	}
	can := Systems
	switch topology {
	case "diamond":
		can = []string{"weft", "yggdrasil"}
		add("heal", b.heal)
	case "join":
		can = []string{"weft", "yggdrasil"}
		if b.opt.Short {
			can = can[:1] // Yggdrasil takes a minute to join
		}
		add("join", b.join)
	case "gateway":
		can = []string{"weft", paying, "wireguard", "kernel", "kernel-plain"}
		add("tcp", b.tcp)
		add("down", b.download)
		add("rtt", b.rtt)
	default:
		add("tcp", b.tcp)
		add("udp", b.udp)
		add("rtt", b.rtt)
		idle = b.wants(Measures, "idle")
	}
	for _, s := range can {
		if b.wants(Systems, s) && (s != "weft" && s != plane && s != paying || b.opt.Binary != "") && (s != paying || topology == "gateway" && b.hasLedger()) && (s != "wireguard-hops" || nodes[topology] > 2) {
			systems = append(systems, s)
		}
	}
	if !b.wants(Topologies, topology) || len(systems) == 0 {
		return nil, nil, false
	}
	return measures, systems, idle
}

// hasLedger reports whether the ledger's program stands beside weft, as after make build.
func (b *bench) hasLedger() bool {
	_, err := os.Stat(filepath.Join(filepath.Dir(b.opt.Binary), "weft-ledger"))
	return err == nil
}

// nodes counts a topology's.
var nodes = map[string]int{"line2": 2, "line3": 3, "line5": 5, "diamond": 4, "join": 6, "gateway": 4}

// topology builds one world per system, then lets them take turns.
func (b *bench) topology(ctx context.Context, topology string) (err error) {
	measures, systems, idle := b.plan(topology)
	if len(measures) == 0 && !idle {
		return nil
	}

	var rigs []*rig
	defer func() {
		for _, r := range rigs {
			err = errors.Join(err, r.w.Close())
		}
	}()
	for _, system := range systems {
		r, buildErr := b.build(topology, system, nodes[topology])
		if r != nil {
			rigs = append(rigs, r)
		}
		if buildErr != nil {
			return fmt.Errorf("build the world of %s: %w", system, buildErr)
		}
	}
	b.say(topology + ": waiting for all systems to be ready")
	ready := make([]error, len(rigs))
	var g errgroup.Group
	for i, r := range rigs {
		g.Go(func() error { ready[i] = r.ready(ctx); return nil })
	}
	g.Wait()
	for i, r := range rigs {
		if ready[i] != nil {
			err = errors.Join(err, r.fail("start", ready[i]))
		}
	}
	if idle {
		err = errors.Join(err, b.idle(ctx, rigs))
	}
	for run := range b.opt.Runs {
		for _, m := range measures {
			for k := range rigs {
				r := rigs[(k+run)%len(rigs)] // another one begins each time
				b.done++
				if r.failed || ctx.Err() != nil {
					continue
				}
				b.say(fmt.Sprintf("%s: %s, %s, run %d of %d", topology, m.name, r.system, run+1, b.opt.Runs))
				if mErr := m.do(ctx, r); mErr != nil {
					err = errors.Join(err, r.fail(m.name, mErr))
				}
			}
		}
	}
	return errors.Join(err, ctx.Err())
}

func (b *bench) say(what string) {
	if b.opt.Progress != nil {
		b.opt.Progress(b.done, b.steps, what)
	}
}

func (b *bench) add(r *rig, figure string, v float64) {
	for _, res := range b.report.Results {
		if res.Topology == r.topology && res.System == r.system && res.Measure == figure {
			res.Values = append(res.Values, v)
			return
		}
	}
	for _, f := range figures {
		if f.name == figure {
			b.report.Results = append(b.report.Results, &Result{Topology: r.topology, System: r.system, Measure: figure, Unit: f.unit, Values: []float64{v}})
		}
	}
}

// pick is the shorter time in a smoke test.
func (b *bench) pick(full, short time.Duration) time.Duration {
	if b.opt.Short {
		return short
	}
	return full
}

// idle watches all systems at once do nothing.
func (b *bench) idle(ctx context.Context, rigs []*rig) error {
	d := b.pick(15*time.Second, 2*time.Second)
	b.say(fmt.Sprintf("all systems idle for %v", d))
	before := make([][]netns.Usage, len(rigs))
	for i, r := range rigs {
		before[i] = r.usage()
	}
	start := time.Now()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
	}
	for i, r := range rigs {
		if r.failed || !r.overlay() {
			continue
		}
		after, took := r.usage(), time.Since(start).Seconds()
		var cpu, rss []float64
		for k := range after {
			if r.procs[k] != nil {
				cpu = append(cpu, (after[k].CPU-before[i][k].CPU).Seconds()/took*100)
				rss = append(rss, float64(after[k].RSS)/1e6)
			}
		}
		b.add(r, "cpu-idle", slices.Max(cpu))
		b.add(r, "rss-idle", slices.Max(rss))
	}
	return nil
}

func (b *bench) tcp(ctx context.Context, r *rig) error {
	peak := make([]int64, len(r.nodes))
	stop := make(chan struct{})
	var g errgroup.Group
	g.Go(func() error {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			for i, u := range r.usage() {
				peak[i] = max(peak[i], u.RSS)
			}
			select {
			case <-stop:
				return nil
			case <-tick.C:
			}
		}
	})
	speed, cpu, err := b.stream(ctx, r, false)
	close(stop)
	g.Wait()
	if err != nil {
		return err
	}
	b.add(r, "tcp", speed)
	if !r.overlay() || speed == 0 {
		return nil
	}
	var ends, relays []float64
	for i := range r.nodes {
		switch {
		case r.procs[i] == nil:
		case i == r.far && r.topology == "gateway":
			b.add(r, "cpu-gateway", cpu[i])
		case i == 0 || i == r.far:
			ends = append(ends, cpu[i])
		default:
			relays = append(relays, cpu[i])
		}
	}
	b.add(r, "cpu-endpoint", mean(ends))
	if len(relays) > 0 {
		b.add(r, "cpu-relay", mean(relays))
	}
	b.add(r, "rss-load", float64(slices.Max(peak))/1e6)
	return nil
}

// download is tcp the other way round, in which most of people's traffic goes.
func (b *bench) download(ctx context.Context, r *rig) error {
	speed, cpu, err := b.stream(ctx, r, true)
	if err != nil {
		return err
	}
	b.add(r, "down", speed)
	if r.overlay() && speed > 0 {
		sum := 0.0
		for _, c := range cpu {
			sum += c
		}
		b.add(r, "cpu-down", sum)
	}
	return nil
}

// stream runs one TCP stream from the first node to the target, or back, and returns its speed in Gbit/s and what it
// took of each node's processor in seconds per gigabyte.
func (b *bench) stream(ctx context.Context, r *rig, back bool) (speed float64, cpu []float64, err error) {
	before := r.usage()
	flow, err := r.w.Iperf(ctx, netns.FlowSpec{From: r.nodes[0], To: r.last(), Addr: r.target(), Time: b.pick(4*time.Second, time.Second), Back: back})
	if err != nil {
		return 0, nil, err
	}
	cpu = make([]float64, len(r.nodes))
	if gb := float64(flow.Bytes) / 1e9; gb > 0 {
		for i, after := range r.usage() {
			cpu[i] = (after.CPU - before[i].CPU).Seconds() / gb
		}
	}
	return flow.BitsPerSecond / 1e9, cpu, nil
}

const datagram = 1200

// udp searches the highest rate of datagrams of which 99 of 100 arrive.
func (b *bench) udp(ctx context.Context, r *rig) error {
	d := b.pick(2*time.Second, time.Second)
	try := func(rate float64) (got float64, good bool, err error) {
		f, err := r.w.Iperf(ctx, netns.FlowSpec{From: r.nodes[0], To: r.last(), Addr: r.target(), Time: d, UDP: datagram, Rate: rate * datagram * 8})
		if err != nil {
			return 0, false, err
		}
		sent := float64(f.Packets) / f.Seconds
		return sent * (1 - f.Lost), f.Lost < 0.01, nil
	}
	best, low, high, rate := 0.0, 0.0, 0.0, 20e3
	fine, tries := 1.05, 14
	if b.opt.Short {
		fine, tries = 1.6, 3
	}
	for range tries {
		got, good, err := try(rate)
		if err != nil {
			return err
		}
		if good {
			best, low = max(best, got), rate
			if got < rate*0.9 {
				break // the sender is at its end, not the network
			}
		} else {
			high = rate
		}
		switch {
		case high == 0:
			rate *= 2
		case low == 0:
			rate /= 2
		case high/low < fine:
			b.add(r, "udp", best/1e3)
			return nil
		default:
			rate = (low + high) / 2
		}
	}
	b.add(r, "udp", best/1e3)
	return nil
}

func (b *bench) rtt(ctx context.Context, r *rig) error {
	count := 1000
	if b.opt.Short {
		count = 200
	}
	p, err := r.w.StartPing(r.nodes[0], r.target(), 2*time.Millisecond, count)
	if err != nil {
		return err
	}
	rep, err := p.Wait(ctx)
	if err != nil {
		return err
	}
	b.add(r, "rtt", rep.Median.Seconds()*1e3)
	b.add(r, "rtt99", rep.P99.Seconds()*1e3)
	return nil
}

// heal breaks the relay of the diamond that carries the traffic, in three ways.
func (b *bench) heal(ctx context.Context, r *rig) error {
	dest := r.nodes[3]
	for _, fault := range []string{"kill", "down", "silent"} {
		p, err := r.w.StartPing(r.nodes[0], r.addr[3], 10*time.Millisecond, 0)
		if err != nil {
			return err
		}
		relay, err := r.carrying(ctx, 1, 2)
		if err != nil {
			p.Stop()
			return err
		}
		l, err := r.w.Link(r.nodes[relay], dest)
		if err != nil {
			p.Stop()
			return err
		}
		var undo func() error
		switch fault {
		case "kill":
			r.procs[relay].Kill()
			undo = func() error { return r.start(ctx, relay) }
		case "down":
			err = r.w.SetCarrier(l, dest, false)
			undo = func() error {
				if err := r.w.SetCarrier(l, dest, true); err != nil {
					return err
				}
				return r.underlay()
			}
		case "silent":
			err = r.w.SetSilent(l, dest, true)
			undo = func() error { return r.w.SetSilent(l, dest, false) }
		}
		if err != nil {
			p.Stop()
			return err
		}
		// Long enough that healing by time-out shows; a stream that is still dead then counts with what it lost so far.
		if err := sleep(ctx, b.pick(10*time.Second, 3*time.Second)); err != nil {
			p.Stop()
			return err
		}
		rep := p.Stop()
		b.add(r, "heal-"+fault, rep.Gap.Seconds()*1e3)
		if err := undo(); err != nil {
			return err
		}
		if err := r.ready(ctx); err != nil {
			return fmt.Errorf("recover from %s: %w", fault, err)
		}
		if err := sleep(ctx, b.pick(3*time.Second, time.Second)); err != nil { // both relays in use again
			return err
		}
	}
	return nil
}

// join starts a sixth node at the end of a running line of five.
func (b *bench) join(ctx context.Context, r *rig) error {
	begin := time.Now()
	if err := r.start(ctx, 5); err != nil {
		return err
	}
	limit, cancel := context.WithTimeout(ctx, 100*time.Second)
	defer cancel()
	if _, err := r.w.AwaitPing(limit, r.nodes[5], r.addr[0]); err != nil {
		return err
	}
	b.add(r, "join", time.Since(begin).Seconds())
	if err := r.stop(5); err != nil {
		return err
	}
	return sleep(ctx, b.pick(5*time.Second, time.Second)) // the line forgets it
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func mean(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(max(1, len(v)))
}
