//go:build linux && !router

package netns

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"weft/api"
	"weft/lab/manifest"
)

// Build makes the world of a manifest: namespaces, links and configurations; no process runs yet. What only the simulator
// can do it refuses by name.
func Build(ctx context.Context, m *manifest.Manifest, opt Options) (*World, error) {
	plan, err := m.World()
	if err != nil {
		return nil, err
	}
	if err := refuse(m, plan); err != nil {
		return nil, err
	}
	w, err := New(opt)
	if err != nil {
		return nil, err
	}
	if err := w.build(ctx, m, plan); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// maxNodes is how many machines one kernel carries without becoming the thing that is measured.
const maxNodes = 200

func refuse(m *manifest.Manifest, plan *manifest.World) error {
	if len(plan.Nodes) > maxNodes {
		return fmt.Errorf("%d nodes are too many for namespaces (at most %d): run it with: weft lab sim", len(plan.Nodes), maxNodes)
	}
	for _, n := range plan.Nodes {
		if n.Liar != "" {
			return fmt.Errorf("node %s is a liar: only the simulator has those, run it with: weft lab sim", n.Name)
		}
	}
	for _, l := range plan.Links {
		if l.Cost != 0 || l.Metered {
			return fmt.Errorf("link %s–%s: found neighbours cannot be given a cost or be metered here; run it with weft lab sim, or set them with a [[peer]] in the node's config", l.A, l.B)
		}
	}
	for _, e := range plan.Events {
		if e.Do == manifest.Cost {
			return errors.New("event cost: only the simulator can change a cost, run it with: weft lab sim")
		}
		if e.Do == manifest.LinkDown || e.Do == manifest.LinkUp {
			if plan.Links[plan.Between(e.Link)[0]].LAN != "" {
				return fmt.Errorf("event %s: %s and %s are on a LAN and share no cable; use silent", e.Do, e.Link[0], e.Link[1])
			}
		}
	}
	for i, e := range m.Expect {
		if e.Stretch != 0 {
			return fmt.Errorf("expectation %d: the best path is only known to the simulator, run it with: weft lab sim", i+1)
		}
	}
	return nil
}

func (w *World) build(ctx context.Context, m *manifest.Manifest, plan *manifest.World) error {
	for _, n := range plan.Nodes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := w.AddNode(n.Name); err != nil {
			return err
		}
		if err := w.Configure(n.Name, config(n)); err != nil {
			return err
		}
	}
	shape := func(s manifest.Shape) Shape {
		return Shape{Rate: float64(s.Rate), Delay: s.Delay.Duration, Jitter: s.Jitter.Duration, Loss: s.Loss, Reorder: s.Reorder, Duplicate: s.Duplicate}
	}
	lay := func(name string, ends []string, s manifest.Shape) error {
		seed := fnv.New64a()
		fmt.Fprint(seed, m.Seed, name)
		l, err := w.AddLink(name, ends, shape(s), seed.Sum64())
		if err != nil {
			return err
		}
		if s.MTU != 0 {
			return w.setMTU(l, s.MTU)
		}
		return nil
	}
	lans := map[string]bool{}
	for _, l := range plan.Links {
		switch {
		case l.LAN == "":
			if err := lay(l.A+"–"+l.B, []string{l.A, l.B}, l.Shape); err != nil {
				return err
			}
		case !lans[l.LAN]:
			lans[l.LAN] = true
			i := slices.IndexFunc(m.LANs, func(lan manifest.LAN) bool { return lan.Name == l.LAN })
			if err := lay(l.LAN, m.LANs[i].Nodes, l.Shape); err != nil {
				return err
			}
		}
	}
	return nil
}

// config is the configuration of a node. Single settings stand before the tables, as TOML wants it.
func config(n manifest.Node) string {
	var s strings.Builder
	fmt.Fprintf(&s, "version = 1\nname = %q\n", n.Name)
	if n.Leaf {
		s.WriteString("role = \"leaf\"\n")
	}
	if n.Metered {
		s.WriteString("metered = true\n")
	}
	fmt.Fprintf(&s, "[tun]\nname = %q\n", Interface)
	if n.Price != 0 {
		fmt.Fprintf(&s, "[route]\nprice = %d\n", n.Price)
	}
	s.WriteString(n.Config)
	return s.String()
}

func (w *World) setMTU(l *Link, mtu int) error {
	for _, e := range l.Ends {
		n, err := w.node(e.Node)
		if err != nil {
			return err
		}
		link, err := n.nl.LinkByName(e.Interface)
		if err != nil {
			return err
		}
		if err := n.nl.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("set the MTU of %s on %s: %w", e.Interface, e.Node, err)
		}
	}
	return nil
}

// Report is how a run of a manifest went.
type Report struct {
	Name    string        `json:"name"`
	Seconds float64       `json:"seconds"`
	Events  []EventReport `json:"events"`
	Expect  []Verdict     `json:"expect"`
	Nodes   []NodeReport  `json:"nodes"`
}

// EventReport is one thing that was done to the world.
type EventReport struct {
	At   float64 `json:"at"` // seconds since the start
	What string  `json:"what"`
}

// Verdict is one expectation and what came of it.
type Verdict struct {
	What string `json:"what"`
	Want string `json:"want"`
	Got  string `json:"got"`
	Met  bool   `json:"met"`
}

// NodeReport is what a node's program used.
type NodeReport struct {
	Name       string  `json:"name"`
	Address    string  `json:"address,omitempty"`
	CPUSeconds float64 `json:"cpu_seconds"`
	RSSMB      float64 `json:"rss_mb"`
}

// Failed counts the expectations that were not met.
func (r *Report) Failed() (n int) {
	for _, v := range r.Expect {
		if !v.Met {
			n++
		}
	}
	return n
}

// WriteTable prints the report for people.
func (r *Report) WriteTable(out io.Writer) error {
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "expected\twant\tgot\t")
	for _, v := range r.Expect {
		verdict := "ok"
		if !v.Met {
			verdict = "FAILED"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", v.What, v.Want, v.Got, verdict)
	}
	fmt.Fprintln(tw, "\t\t\t\nnode\taddress\tCPU s\tmemory MB")
	for _, n := range r.Nodes {
		fmt.Fprintf(tw, "%s\t%s\t%.2f\t%.1f\n", n.Name, n.Address, n.CPUSeconds, n.RSSMB)
	}
	return tw.Flush()
}

// Progress tells people what happens while a world runs.
type Progress struct {
	out io.Writer
	bar *mpb.Bar
	mpb *mpb.Progress
	at  func() time.Duration
}

// NewProgress prints one line per event and, on a terminal, a bar of the time.
func NewProgress(out io.Writer, total time.Duration) *Progress {
	start := time.Now()
	p := &Progress{out: out, at: func() time.Duration { return time.Since(start) }}
	f, ok := out.(*os.File)
	if !ok {
		return p
	}
	if st, err := f.Stat(); err != nil || st.Mode()&os.ModeCharDevice == 0 {
		return p
	}
	p.mpb = mpb.New(mpb.WithOutput(out), mpb.WithWidth(48))
	p.bar = p.mpb.AddBar(int64(total), mpb.PrependDecorators(decor.Any(func(decor.Statistics) string {
		return fmt.Sprintf("%5.1fs of %.0fs ", p.at().Seconds(), total.Seconds())
	})))
	return p
}

// Say prints a line with the time since the start.
func (p *Progress) Say(format string, args ...any) {
	line := fmt.Sprintf("%7.2fs  %s\n", p.at().Seconds(), fmt.Sprintf(format, args...))
	if p.mpb != nil {
		p.mpb.Write([]byte(line))
		p.bar.SetCurrent(int64(p.at()))
		return
	}
	io.WriteString(p.out, line)
}

// tick moves the bar.
func (p *Progress) tick() {
	if p.bar != nil {
		p.bar.SetCurrent(int64(p.at()))
	}
}

// Done takes the bar away.
func (p *Progress) Done() {
	if p.mpb != nil {
		p.bar.Abort(true)
		p.mpb.Wait()
	}
}

// Run builds a manifest's world, runs its timetable, checks what it expects and takes everything down again. An expectation
// that is not met is in the report and is no error.
func Run(ctx context.Context, m *manifest.Manifest, opt Options, out io.Writer) (report *Report, err error) {
	plan, err := m.World()
	if err != nil {
		return nil, err
	}
	w, err := Build(ctx, m, opt)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil || report.Failed() > 0 {
			w.WriteLogs(out, 15)
		}
		err = errors.Join(err, w.Close())
	}()
	total := length(m, plan)
	p := NewProgress(out, total)
	defer p.Done()
	p.Say("%s: %d nodes, %d links", m.Name, len(plan.Nodes), len(w.links))
	r := &runner{w: w, m: m, plan: plan, p: p, start: time.Now(), report: &Report{Name: m.Name}}
	if err := r.run(ctx, total); err != nil {
		return nil, err
	}
	return r.report, nil
}

// length is how long the run takes: as the manifest says, but not less than its last event or expectation needs.
func length(m *manifest.Manifest, plan *manifest.World) time.Duration {
	d := m.Duration.Duration
	if d > 0 {
		return d
	}
	for _, n := range plan.Nodes {
		d = max(d, n.Start.Duration)
	}
	for _, e := range plan.Events {
		d = max(d, e.At.Duration+2*time.Second)
	}
	for _, e := range m.Expect {
		d = max(d, e.Until.Duration, e.After.Duration+max(e.Within.Duration, e.Converged.Duration), e.After.Duration+time.Second)
	}
	return max(d, 5*time.Second)
}

type runner struct {
	w      *World
	m      *manifest.Manifest
	plan   *manifest.World
	p      *Progress
	start  time.Time
	report *Report
}

// at waits for a moment of the run.
func (r *runner) at(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(time.Until(r.start.Add(d)))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func (r *runner) run(ctx context.Context, total time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	verdicts := make([]Verdict, len(r.m.Expect))
	for i, e := range r.m.Expect {
		wg.Go(func() {
			verdicts[i] = r.check(ctx, e, total)
			if verdicts[i].Met {
				r.p.Say("ok: %s: %s", verdicts[i].What, verdicts[i].Got)
			} else if ctx.Err() == nil {
				r.p.Say("FAILED: %s: want %s, got %s", verdicts[i].What, verdicts[i].Want, verdicts[i].Got)
			}
		})
	}
	type step struct {
		at   time.Duration
		what string
		do   func() error
	}
	var steps []step
	for _, n := range r.plan.Nodes {
		steps = append(steps, step{n.Start.Duration, "start " + n.Name, func() error { return r.w.Start(n.Name) }})
	}
	for _, e := range r.plan.Events {
		steps = append(steps, step{e.At.Duration, describe(e), func() error { return r.do(e) }})
	}
	for s := range time.Duration(total / time.Second) {
		steps = append(steps, step{at: s * time.Second, do: func() error { r.p.tick(); return nil }})
	}
	slices.SortStableFunc(steps, func(a, b step) int { return int(a.at - b.at) })
	for _, s := range steps {
		if err := r.at(ctx, s.at); err != nil {
			return err
		}
		if s.what != "" {
			r.p.Say("%s", s.what)
		}
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
		if s.what != "" {
			r.report.Events = append(r.report.Events, EventReport{time.Since(r.start).Seconds(), s.what})
		}
	}
	if err := r.at(ctx, total); err != nil {
		return err
	}
	wg.Wait()
	r.report.Expect = verdicts
	r.report.Seconds = time.Since(r.start).Seconds()
	for _, n := range r.w.Nodes() {
		nr := NodeReport{Name: n.Name}
		if p := r.w.running(n); p != nil {
			u, err := p.Usage()
			if err != nil {
				return err
			}
			nr.CPUSeconds, nr.RSSMB = u.CPU.Seconds(), float64(u.RSS)/1e6
			if a, err := r.w.Address(ctx, n.Name); err == nil {
				nr.Address = a.String()
			}
		}
		r.report.Nodes = append(r.report.Nodes, nr)
	}
	return nil
}

func describe(e manifest.Event) string {
	switch {
	case e.Node != "":
		return e.Do + " " + e.Node
	case e.Link != [2]string{}:
		return e.Do + " " + e.Link[0] + "–" + e.Link[1]
	case len(e.Groups) > 0:
		var g []string
		for _, names := range e.Groups {
			g = append(g, strings.Join(names, ","))
		}
		return e.Do + " " + strings.Join(g, " | ")
	}
	return e.Do
}

func (r *runner) do(e manifest.Event) error {
	switch e.Do {
	case manifest.Kill:
		return r.w.Kill(e.Node)
	case manifest.Restart:
		return r.w.Start(e.Node)
	case manifest.LinkDown, manifest.LinkUp:
		l, err := r.w.Link(e.Link[0], e.Link[1])
		if err != nil {
			return err
		}
		return r.w.SetCarrier(l, e.Link[1], e.Do == manifest.LinkUp)
	case manifest.Silent, manifest.Heal:
		on := e.Do == manifest.Silent
		if e.Link != [2]string{} {
			return r.deaf(e.Link[0], e.Link[1], on)
		}
		for _, l := range r.w.links {
			for _, end := range l.Ends {
				if e.Node == "" || e.Node == end.Node {
					if err := r.w.SetSilent(l, end.Node, on); err != nil {
						return err
					}
				}
			}
		}
		if e.Node == "" {
			return r.w.Heal()
		}
		return nil
	case manifest.Partition:
		return r.w.Partition(e.Groups...)
	}
	return fmt.Errorf("unknown event %q", e.Do)
}

func (r *runner) deaf(a, b string, on bool) error {
	l, err := r.w.Link(a, b)
	if err != nil {
		return err
	}
	return r.w.SetDeaf(l, a, b, on)
}

// pairs goes over every two nodes that share a link; where choose says so, it makes them deaf to each other or not.
func (w *World) pairs(choose func(a, b string) (change, deaf bool)) error {
	w.mu.Lock()
	links := slices.Clone(w.links)
	w.mu.Unlock()
	for _, l := range links {
		for i, a := range l.Ends {
			for _, b := range l.Ends[:i] {
				if change, deaf := choose(a.Node, b.Node); change {
					if err := w.SetDeaf(l, a.Node, b.Node, deaf); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// Partition makes the links between different groups silent; nodes that are not named form one more group.
func (w *World) Partition(groups ...[]string) error {
	group := map[string]int{}
	for i, g := range groups {
		for _, n := range g {
			group[n] = i + 1
		}
	}
	return w.pairs(func(a, b string) (bool, bool) { return group[a] != group[b], true })
}

// Heal ends every silence between two nodes, Partition's too.
func (w *World) Heal() error {
	return w.pairs(func(a, b string) (bool, bool) { return true, false })
}

// window is what an expectation watches.
func (r *runner) window(e manifest.Expect, total time.Duration) (after, until time.Duration) {
	if until = e.Until.Duration; until == 0 {
		until = total
	}
	return e.After.Duration, until
}

func (r *runner) check(ctx context.Context, e manifest.Expect, total time.Duration) Verdict {
	after, until := r.window(e, total)
	var what, want, got []string
	met := true
	demand := func(w string, bound string, f func() (string, bool)) {
		g, ok := f()
		what, want, got = append(what, w), append(want, bound), append(got, g)
		met = met && ok
	}
	name := func(s string) string {
		if s == "" {
			return "*"
		}
		return s
	}
	pair := fmt.Sprintf("%s → %s", name(e.From), name(e.To))
	if err := r.at(ctx, after); err != nil {
		return Verdict{What: pair, Got: err.Error()}
	}
	if e.Within.Duration > 0 {
		demand(pair+" answers", "≤ "+e.Within.String(), func() (string, bool) { return r.within(ctx, e) })
	}
	if e.Converged.Duration > 0 {
		demand("all know all", "≤ "+e.Converged.String(), func() (string, bool) { return r.converged(ctx, e.Converged.Duration) })
	}
	if e.Gap.Duration > 0 {
		demand(pair+" gap", "≤ "+e.Gap.String(), func() (string, bool) { return r.gap(ctx, e, until) })
	}
	if e.Unreached {
		demand(pair, "unreached", func() (string, bool) { return r.unreached(ctx, e, until) })
	}
	if e.Idle > 0 {
		demand("control per link", "≤ "+e.Idle.String()+"/s", func() (string, bool) { return r.idle(ctx, e, until) })
	}
	return Verdict{strings.Join(what, ", "), strings.Join(want, ", "), strings.Join(got, ", "), met}
}

// each runs f for every pair that the expectation names, a few at a time, and keeps the worst: the first error, else the longest.
func (r *runner) each(e manifest.Expect, f func(from, to string) (time.Duration, error)) (worst time.Duration, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, 32)
	for _, from := range r.plan.Nodes {
		for _, to := range r.plan.Nodes {
			if from.Name == to.Name || !(e.From == "" || e.From == "*" || e.From == from.Name) || !(e.To == "" || e.To == "*" || e.To == to.Name) {
				continue
			}
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				d, pairErr := f(from.Name, to.Name)
				mu.Lock()
				defer mu.Unlock()
				worst = max(worst, d)
				if err == nil {
					err = pairErr
				}
			})
		}
	}
	wg.Wait()
	return worst, err
}

func (r *runner) within(ctx context.Context, e manifest.Expect) (string, bool) {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, e.Within.Duration+2*time.Second) // to say how late, not only that
	defer cancel()
	worst, err := r.each(e, func(from, to string) (time.Duration, error) {
		addr, err := r.w.Address(ctx, to)
		if err == nil {
			_, err = r.w.AwaitPing(ctx, from, addr)
		}
		return time.Since(begin), err
	})
	if err != nil {
		return err.Error(), false
	}
	return worst.Round(time.Millisecond).String(), worst <= e.Within.Duration
}

func (r *runner) gap(ctx context.Context, e manifest.Expect, until time.Duration) (string, bool) {
	worst, err := r.each(e, func(from, to string) (time.Duration, error) {
		addr, err := r.w.Address(ctx, to)
		if err != nil {
			return 0, err
		}
		p, err := r.w.StartPing(from, addr, 10*time.Millisecond, 0)
		if err != nil {
			return 0, err
		}
		err = r.at(ctx, until)
		rep := p.Stop()
		if err == nil && rep.Received == 0 {
			err = fmt.Errorf("no ping from %s to %s came back", from, to)
		}
		return rep.Gap, err
	})
	if err != nil {
		return err.Error(), false
	}
	return worst.Round(time.Millisecond).String(), worst <= e.Gap.Duration
}

func (r *runner) unreached(ctx context.Context, e manifest.Expect, until time.Duration) (string, bool) {
	reached := ""
	var mu sync.Mutex
	_, err := r.each(e, func(from, to string) (time.Duration, error) {
		addr, err := r.w.Address(ctx, to)
		if err != nil {
			return 0, err
		}
		limit, cancel := context.WithDeadline(ctx, r.start.Add(until))
		defer cancel()
		if _, err := r.w.AwaitPing(limit, from, addr); err == nil {
			mu.Lock()
			reached = from + " reached " + to
			mu.Unlock()
		}
		return 0, ctx.Err()
	})
	if err != nil {
		return err.Error(), false
	}
	if reached != "" {
		return reached, false
	}
	return "unreached", true
}

func (r *runner) converged(ctx context.Context, limit time.Duration) (string, bool) {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, limit+2*time.Second)
	defer cancel()
	for {
		lacking := ""
		for _, n := range r.w.Nodes() {
			var routes []api.Route
			if err := r.w.Weft(ctx, n.Name, &routes, "routes"); err != nil {
				lacking = err.Error()
				break
			}
			known := 1
			for _, route := range routes {
				if !route.Unreachable && route.NextHop != "" {
					known++
				}
			}
			if known < len(r.plan.Nodes) {
				lacking = fmt.Sprintf("%s knows a way to %d of %d nodes", n.Name, known-1, len(r.plan.Nodes)-1)
				break
			}
		}
		took := time.Since(begin)
		if lacking == "" {
			return took.Round(time.Millisecond).String(), took <= limit
		}
		select {
		case <-ctx.Done():
			return lacking, false
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// idle counts what all nodes send on their links; pings of other expectations in the same window count too.
func (r *runner) idle(ctx context.Context, e manifest.Expect, until time.Duration) (string, bool) {
	count := func() (sum int64, err error) {
		for _, l := range r.w.links {
			for _, end := range l.Ends {
				out, err := r.w.Exec(ctx, end.Node, "cat", "/sys/class/net/"+end.Interface+"/statistics/tx_bytes")
				if err != nil {
					return 0, err
				}
				v, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
				if err != nil {
					return 0, err
				}
				sum += v
			}
		}
		return sum, nil
	}
	before, err := count()
	begin := time.Now()
	if err == nil {
		err = r.at(ctx, until)
	}
	after, err2 := count()
	if err = errors.Join(err, err2); err != nil {
		return err.Error(), false
	}
	rate := manifest.Rate(float64(after-before) * 8 / time.Since(begin).Seconds() / float64(max(1, len(r.w.links))))
	return fmt.Sprintf("%.2f kbit/s", float64(rate)/1e3), rate <= e.Idle
}
