package sim

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Report says what happened in a run. Times are virtual unless they say otherwise.
type Report struct {
	Name         string        `json:"name"`
	Nodes        int           `json:"nodes"`
	Links        int           `json:"links"`
	Degree       float64       `json:"degree"`
	Duration     time.Duration `json:"duration"`
	Converged    time.Duration `json:"converged"`   // everybody's routes to everybody optimal, from cold; zero: never
	LastChange   time.Duration `json:"last_change"` // of any table
	Asked        int           `json:"asked"`       // questions asked by applications at the start of their node
	Answered     int           `json:"answered"`
	AnswerMedian time.Duration `json:"answer_median"` // from asking
	AnswerP90    time.Duration `json:"answer_p90"`
	AnswerMost   time.Duration `json:"answer_most"`
	AnswerLast   time.Duration `json:"answer_last"` // when the last came, from cold
	Stretch      float64       `json:"stretch"`
	StretchMost  float64       `json:"stretch_most"`
	Stuck        int           `json:"stuck"`          // pairs, of those walked at the end, that forwarding did not join
	StartBytes   float64       `json:"start_bytes"`    // control bytes per link in the first ten seconds
	IdleBits     float64       `json:"idle_bits"`      // control bits per second and link, idle probes included, mean
	IdleBitsMost float64       `json:"idle_bits_most"` // … of the busiest link
	IdleWindow   time.Duration `json:"idle_window"`
	LSAs         int           `json:"lsas"`       // in the largest database
	LSDBBytes    int           `json:"lsdb_bytes"` // of the largest
	LSAsMade     uint64        `json:"lsas_made"`
	SPFRuns      uint64        `json:"spf_runs"`    // trees, all nodes together
	SPFSkipped   uint64        `json:"spf_skipped"` // changes of links that needed none
	Verified     uint64        `json:"verified"`    // signature checks that the nodes asked for
	Lies         uint64        `json:"lies"`
	Refused      uint64        `json:"refused"` // messages refused as forged or malformed
	TTLExpired   uint64        `json:"ttl_expired"`
	Events       uint64        `json:"events"`
	Real         time.Duration `json:"real"`
	Results      []Result      `json:"results"`
}

// Result is what became of one expectation.
type Result struct {
	Expect string `json:"expect"`
	Got    string `json:"got"`
	OK     bool   `json:"ok"`
}

// Err returns an error that names the expectations that failed, or nil.
func (r *Report) Err() error {
	var errs []error
	for _, x := range r.Results {
		if !x.OK {
			errs = append(errs, fmt.Errorf("%s: %s", x.Expect, x.Got))
		}
	}
	return errors.Join(errs...)
}

// WriteTo prints the report as a table.
func (r *Report) WriteTo(out io.Writer) (int64, error) {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(t, "%s\t"+format+"\n", append([]any{name}, args...)...)
	}
	row("world", "%s: %d nodes, %d links, mean degree %.1f, %s", r.Name, r.Nodes, r.Links, r.Degree, r.Duration)
	if r.Converged > 0 {
		row("converged", "%.2f s from cold", r.Converged.Seconds())
	} else {
		row("converged", "never")
	}
	row("asked at once", "%d of %d answered; median %.2f s, p90 %.2f s, longest %.2f s, last at %.2f s", r.Answered, r.Asked,
		r.AnswerMedian.Seconds(), r.AnswerP90.Seconds(), r.AnswerMost.Seconds(), r.AnswerLast.Seconds())
	row("stretch", "%.3f mean, %.3f most, %d pairs stuck", r.Stretch, r.StretchMost, r.Stuck)
	row("start", "%.1f kB of control a link in the first 10 s", r.StartBytes/1000)
	if r.IdleWindow > 0 {
		row("idle", "%.3f kbit/s a link over %s, busiest %.3f (probes included)", r.IdleBits/1000, r.IdleWindow, r.IdleBitsMost/1000)
	}
	row("database", "%d LSAs, %.1f kB", r.LSAs, float64(r.LSDBBytes)/1000)
	row("work a node", "%.1f trees computed, %.0f link changes skipped, %.0f signatures checked", per(r.SPFRuns, r.Nodes), per(r.SPFSkipped, r.Nodes), per(r.Verified, r.Nodes))
	row("own LSAs a node", "%.1f", per(r.LSAsMade, r.Nodes))
	if r.Lies > 0 {
		row("lies", "%d told, %d messages refused", r.Lies, r.Refused)
	}
	row("simulated", "%d events in %.1f s", r.Events, r.Real.Seconds())
	for _, x := range r.Results {
		mark := "ok"
		if !x.OK {
			mark = "FAILED"
		}
		row(mark, "%s: %s", x.Expect, x.Got)
	}
	t.Flush()
	n, err := io.WriteString(out, b.String())
	return int64(n), err
}

func per(n uint64, nodes int) float64 { return float64(n) / float64(max(nodes, 1)) }

// finish fills in the report.
func (w *world) finish(real time.Duration) {
	r := w.report
	r.Nodes, r.Links, r.Duration, r.Events, r.Real = len(w.nodes), len(w.links), w.end, w.events, real
	r.Degree = 2 * float64(r.Links) / float64(r.Nodes)
	r.Converged = w.waits[0].done
	r.Stretch, r.StretchMost, r.Stuck = w.stretch()
	var times []time.Duration
	for _, q := range w.asked[:min(len(w.asked), 2*len(w.nodes))] {
		r.Asked++
		if q.answered != 0 {
			r.Answered++
			times = append(times, q.answered-q.asked)
			r.AnswerLast = max(r.AnswerLast, q.answered)
		}
	}
	if slices.Sort(times); len(times) > 0 {
		r.AnswerMedian, r.AnswerP90, r.AnswerMost = times[len(times)/2], times[len(times)*9/10], times[len(times)-1]
	}
	for _, n := range w.nodes {
		if n.r == nil {
			continue
		}
		s := n.r.Stats()
		r.LSAs, r.LSDBBytes = max(r.LSAs, s.Nodes), max(r.LSDBBytes, s.Bytes)
		r.LSAsMade += s.Originated
		r.SPFRuns += s.SPFRuns
		r.SPFSkipped += s.SPFSkipped
		r.Verified += s.Verified
	}
	if len(w.startBytes) > 0 {
		for _, b := range w.startBytes {
			r.StartBytes += float64(b) / float64(len(w.links))
		}
	}
	if len(w.idles) > 0 {
		r.IdleBits, r.IdleBitsMost, r.IdleWindow = w.idles[0].rate()
	}
	w.judge()
}

// rate returns bits per second and link in the window, idle probes included.
func (x *idle) rate() (mean, most float64, window time.Duration) {
	window = x.until - x.after
	probes := float64(probeExchange) / probeEvery.Seconds() * 8
	for i := range x.stop {
		bits := float64(x.stop[i]-x.start[i])*8/window.Seconds() + probes
		mean += bits / float64(len(x.stop))
		most = max(most, bits)
	}
	return mean, most, window
}

// judge compares the expectations with what happened.
func (w *world) judge() {
	r := w.report
	asked := w.asked[min(len(w.asked), 2*len(w.nodes)):]
	steady, idles, waits := w.steady, w.idles, w.waits[1:]
	for _, x := range w.m.Expect {
		who := "everybody"
		if !all(x.From) || !all(x.To) {
			who = or(x.From, "everybody") + " to " + or(x.To, "everybody")
		}
		since := ""
		if x.After.Duration > 0 {
			since = " after " + x.After.String()
		}
		add := func(ok bool, expect, format string, args ...any) {
			r.Results = append(r.Results, Result{expect, fmt.Sprintf(format, args...), ok})
		}
		if x.Converged.Duration != 0 {
			got := w.waits[0]
			if x.After.Duration != 0 {
				got, waits = waits[0], waits[1:]
			}
			took := got.done - got.after
			add(got.done != 0 && took <= x.Converged.Duration, fmt.Sprintf("converged within %s%s", x.Converged, since), "%s", took0(got.done != 0, took))
		}
		if x.Within.Duration != 0 {
			list := w.asked[:min(len(w.asked), 2*len(w.nodes))]
			if x.After.Duration != 0 || !all(x.From) || !all(x.To) {
				n := w.counted[0]
				w.counted = w.counted[1:]
				list, asked = asked[:n], asked[n:]
			}
			worst, ok := time.Duration(0), true
			for _, q := range list {
				if q.answered == 0 {
					ok = false
				}
				from := x.After.Duration // from cold, or from the moment named
				if x.After.Duration == 0 && (!all(x.From) || !all(x.To)) {
					from = q.asked // a node that joins counts from its own start
				}
				worst = max(worst, q.answered-from)
			}
			add(ok && worst <= x.Within.Duration, fmt.Sprintf("%s answered within %s%s", who, x.Within, since), "%s", took0(ok, worst))
		}
		if x.Gap.Duration != 0 || x.Unreached {
			n := w.flows[0]
			w.flows = w.flows[1:]
			worst, answers := time.Duration(0), 0
			for _, s := range steady[:n] {
				worst = max(worst, s.gap())
				answers += len(s.answers)
			}
			steady = steady[n:]
			if x.Gap.Duration != 0 {
				add(answers > 0 && worst <= x.Gap.Duration, fmt.Sprintf("%s: no gap above %s%s", who, x.Gap, since), "longest %s", worst)
			}
			if x.Unreached {
				add(answers == 0, fmt.Sprintf("%s: unreached%s", who, since), "%d answers", answers)
			}
		}
		if x.Stretch != 0 {
			add(r.Stuck == 0 && r.Stretch > 0 && r.Stretch <= x.Stretch+1e-9, fmt.Sprintf("stretch at most %.2f", x.Stretch), "%.3f", r.Stretch)
		}
		if x.Idle != 0 {
			mean, most, window := idles[0].rate()
			idles = idles[1:]
			add(mean <= float64(x.Idle), fmt.Sprintf("idle control at most %s/s a link%s", x.Idle, since), "%.0f bit/s over %s, busiest %.0f", mean, window, most)
		}
	}
}

func or(name, other string) string {
	if all(name) {
		return other
	}
	return name
}

func took0(ok bool, d time.Duration) string {
	if !ok {
		return "never"
	}
	return d.Round(time.Millisecond).String()
}
