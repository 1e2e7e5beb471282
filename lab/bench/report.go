//go:build linux && !router

package bench

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// target is what Weft must reach, against another system in the same run or as a plain bound.
type target struct {
	topology, figure string
	against          string // empty: bound is absolute
	bound            float64
	of               string // the system; empty: weft
}

var targets = []target{
	{"line2", "tcp", "yggdrasil", 2.4, ""},
	{"line3", "tcp", "yggdrasil", 2.4, ""},
	{"line5", "tcp", "yggdrasil", 2.5, ""},
	{"line2", "tcp", "wireguard", 1, ""},
	{"line2", "cpu-endpoint", "yggdrasil", 0.45, ""},
	{"line3", "cpu-endpoint", "yggdrasil", 0.45, ""},
	{"line5", "cpu-endpoint", "yggdrasil", 0.45, ""},
	{"line3", "cpu-relay", "yggdrasil", 0.45, ""},
	{"line5", "cpu-relay", "yggdrasil", 0.45, ""},
	{"line2", "udp", "yggdrasil", 1.4, ""},
	{"line3", "udp", "yggdrasil", 1.4, ""},
	{"line5", "udp", "yggdrasil", 1.4, ""},
	{"line2", "rtt", "yggdrasil", 1, ""},
	{"line3", "rtt", "yggdrasil", 1, ""},
	{"line5", "rtt", "yggdrasil", 1, ""},
	{"line2", "rtt", "wireguard", 1.2, ""},
	{"diamond", "heal-kill", "", 2000, ""},
	{"diamond", "heal-down", "", 100, ""},
	{"diamond", "heal-silent", "", 2000, ""},
	{"join", "join", "", 2, ""},
	{"line2", "rss-idle", "", 25, ""},
	{"line5", "rss-idle", "", 25, ""},
	{"line2", "cpu-idle", "", 0.5, ""},
	{"line5", "cpu-idle", "", 0.5, ""},
	// Tabs cost next to nothing: within 3 %.
	{"gateway", "tcp", "weft", 0.97, paying},
	{"gateway", "down", "weft", 0.97, paying},
	// The Yggdrasil plane is Yggdrasil: within 10 %, docs/spec/ygg.md.
	{"line2", "tcp", "yggdrasil", 0.9, plane},
	{"line3", "tcp", "yggdrasil", 0.9, plane},
}

// TargetResult says whether one target was met. Targets whose figures were not measured are left out.
type TargetResult struct {
	System   string  `json:"system"`
	Topology string  `json:"topology"`
	Measure  string  `json:"measure"`
	Against  string  `json:"against,omitempty"`
	Want     string  `json:"want"`
	Got      float64 `json:"got"`
	Met      bool    `json:"met"`
}

func (r *Report) get(topology, system, figure string) (float64, bool) {
	for _, x := range r.Results {
		if x.Topology == topology && x.System == system && x.Measure == figure {
			return x.Median, true
		}
	}
	return 0, false
}

func (r *Report) finish() {
	for _, x := range r.Results {
		x.Median = median(x.Values)
	}
	for _, t := range targets {
		of := cmp.Or(t.of, "weft")
		got, ok := r.get(t.topology, of, t.figure)
		if !ok {
			continue
		}
		more := false
		for _, f := range figures {
			if f.name == t.figure {
				more = f.more
			}
		}
		if t.against != "" {
			base, ok := r.get(t.topology, t.against, t.figure)
			if !ok || base == 0 {
				continue
			}
			got /= base
		}
		sign, met := "≤", got <= t.bound
		if more {
			sign, met = "≥", got >= t.bound
		}
		want := fmt.Sprintf("%s %g", sign, t.bound)
		if t.against != "" {
			want += "x"
		}
		r.Targets = append(r.Targets, TargetResult{of, t.topology, t.figure, t.against, want, got, met})
	}
}

func median(v []float64) float64 {
	s := slices.Clone(v)
	slices.Sort(s)
	switch n := len(s); {
	case n == 0:
		return 0
	case n%2 == 1:
		return s[n/2]
	default:
		return (s[n/2-1] + s[n/2]) / 2
	}
}

// WriteTable prints the report for people: one row per figure and system with weft's ratio to it, then the targets.
func (r *Report) WriteTable(out io.Writer) error {
	fmt.Fprintf(out, "%d CPUs, %s, %s, Linux %s; medians of %d runs\n", r.Machine.CPUs, r.Machine.Arch, r.Machine.Go, r.Machine.Kernel, r.Runs)
	if r.Short {
		fmt.Fprintln(out, "A smoke test: the figures are too short to quote.")
	}
	for _, topology := range Topologies {
		var systems []string
		for _, s := range Systems {
			if slices.ContainsFunc(r.Results, func(x *Result) bool { return x.Topology == topology && x.System == s }) {
				systems = append(systems, s)
			}
		}
		if len(systems) == 0 {
			continue
		}
		fmt.Fprintln(out)
		tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintf(tw, "%s\t\t%s\t\n", topology, strings.Join(systems, "\t"))
		for _, f := range figures {
			weft, haveWeft := r.get(topology, "weft", f.name)
			row, any := "", false
			for _, s := range systems {
				v, ok := r.get(topology, s, f.name)
				any = any || ok
				switch {
				case !ok:
					row += "–\t"
				case haveWeft && s != "weft" && v > 0:
					row += fmt.Sprintf("%s (%.2fx)\t", number(v), weft/v)
				default:
					row += number(v) + "\t"
				}
			}
			if any {
				fmt.Fprintf(tw, "%s\t%s\t%s\n", f.title, f.unit, row)
			}
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, "\n(…x) is weft's figure divided by that system's.")
	if len(r.Targets) > 0 {
		fmt.Fprintln(out)
		tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(tw, "target\tagainst\twant\tgot\t")
		for _, t := range r.Targets {
			verdict := "met"
			if !t.Met {
				verdict = "MISSED"
			}
			against := t.Against
			if against == "" {
				against = "–"
			}
			what := t.Topology + " " + t.Measure
			if t.System != "weft" {
				what += " " + t.System
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", what, against, t.Want, number(t.Got), verdict)
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	for _, e := range r.Errors {
		fmt.Fprintf(out, "\nfailed: %s\n", e)
	}
	return nil
}

func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
