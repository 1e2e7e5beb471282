package sim

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weft/lab/manifest"
)

func run(t *testing.T, m *manifest.Manifest) *Report {
	t.Helper()
	r, err := Run(t.Context(), m, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.WriteTo(t.Output())
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	return r
}

// TestNeighbourhood200 is the target of the design for 200 nodes, idle for two hours so that refreshes are in it.
func TestNeighbourhood200(t *testing.T) {
	r := run(t, Random(200, 1, 2*time.Hour))
	if r.Answered != r.Asked {
		t.Errorf("%d of %d answered", r.Answered, r.Asked)
	}
}

// TestNeighbourhoodLarge is for make soak: WEFT_SIM_NODES=1000.
func TestNeighbourhoodLarge(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("WEFT_SIM_NODES"))
	if err != nil {
		t.Skip("set WEFT_SIM_NODES")
	}
	run(t, Random(n, 1, 3*time.Hour))
}

// TestManifests runs every manifest that ships, as weft lab run would.
func TestManifests(t *testing.T) {
	files, err := filepath.Glob("../manifests/*.toml")
	if err != nil || len(files) == 0 {
		t.Fatal("no manifests", err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			m, err := manifest.Load(f)
			if err != nil {
				t.Fatal(err)
			}
			run(t, m)
		})
	}
}

func dur(d time.Duration) manifest.Duration { return manifest.Duration{Duration: d} }

// TestLiars puts every kind of liar into one neighbourhood, two of each: the honest nodes find the best paths all the
// same, and nothing that a liar sends makes an honest node's words refused.
func TestLiars(t *testing.T) {
	m := Random(60, 3, 0)
	for i, kind := range []string{"claims", "cheap", "forger", "replayer", "sybil"} {
		for j := range 2 {
			name := "n" + strconv.Itoa(10*i+5*j+1)
			m.Nodes = append(m.Nodes, manifest.Node{Name: name, Liar: kind})
		}
	}
	m.Duration = dur(60 * time.Second)
	m.Events = []manifest.Event{{At: dur(20 * time.Second), Do: manifest.Kill, Node: "n3"}, {At: dur(35 * time.Second), Do: manifest.Restart, Node: "n3"}}
	m.Expect = []manifest.Expect{{Converged: dur(5 * time.Second)}, {Converged: dur(20 * time.Second), After: dur(20 * time.Second)}, {Converged: dur(5 * time.Second), After: dur(35 * time.Second)}}
	r := run(t, m)
	if r.Lies == 0 || r.Refused == 0 {
		t.Errorf("%d lies, %d refused: the liars did not lie", r.Lies, r.Refused)
	}
}

// TestTurmoil kills, cuts, parts and heals a neighbourhood with lossy links, and wants it whole after each.
func TestTurmoil(t *testing.T) {
	m := Random(80, 4, 0)
	m.Defaults.Loss = 0.05
	w, err := m.World()
	if err != nil {
		t.Fatal(err)
	}
	at := 10 * time.Second
	event := func(e manifest.Event, within time.Duration) {
		e.At = dur(at)
		m.Events = append(m.Events, e)
		m.Expect = append(m.Expect, manifest.Expect{After: dur(at), Converged: dur(within)})
		at += within + 5*time.Second
	}
	var west []string
	for i := range 40 {
		west = append(west, "n"+strconv.Itoa(i))
	}
	first := [2]string{w.Links[0].A, w.Links[0].B}
	event(manifest.Event{Do: manifest.LinkDown, Link: first}, 2*time.Second)
	event(manifest.Event{Do: manifest.LinkUp, Link: first}, 3*time.Second)
	event(manifest.Event{Do: manifest.Cost, Link: first, Cost: 77}, 3*time.Second)
	event(manifest.Event{Do: manifest.Kill, Node: "n7"}, 20*time.Second) // idle links notice by their next probe, or by a hint
	event(manifest.Event{Do: manifest.Restart, Node: "n7"}, 5*time.Second)
	event(manifest.Event{Do: manifest.Partition, Groups: [][]string{west}}, 20*time.Second)
	event(manifest.Event{Do: manifest.Heal}, 5*time.Second)
	event(manifest.Event{Do: manifest.Partition, Groups: [][]string{west}}, 90*time.Second) // long enough for both sides to forget
	event(manifest.Event{Do: manifest.Heal}, 5*time.Second)
	event(manifest.Event{Do: manifest.Silent, Node: "n9"}, 20*time.Second)
	event(manifest.Event{Do: manifest.Heal, Node: "n9"}, 5*time.Second)
	m.Duration = dur(at)
	if r := run(t, m); r.Stuck != 0 || r.TTLExpired != 0 {
		t.Errorf("%d pairs stuck, %d packets looped until their TTL ended", r.Stuck, r.TTLExpired)
	}
}

// TestRepeatable: the same manifest gives the same run to the last event.
func TestRepeatable(t *testing.T) {
	var first *Report
	for range 2 {
		m := Random(50, 5, time.Minute)
		r, err := Run(t.Context(), m, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Real = 0
		if first == nil {
			first = r
		} else if d := cmp.Diff(first, r); d != "" {
			t.Error(d)
		}
	}
}

// TestFailedExpectation: a report says what was not reached.
func TestFailedExpectation(t *testing.T) {
	m := Random(10, 6, 0)
	m.Expect = []manifest.Expect{{From: "n0", To: "n9", Unreached: true, After: dur(5 * time.Second)}, {Converged: dur(time.Millisecond)}}
	r, err := Run(t.Context(), m, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Err(); err == nil || len(r.Results) != 2 || r.Results[0].OK || r.Results[1].OK {
		t.Errorf("%v %+v", err, r.Results)
	}
}

// TestCancel: a run ends with its context.
func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, Random(100, 1, time.Hour), nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
