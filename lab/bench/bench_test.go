//go:build linux && !router

package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"weft/lab/netns"
	"weft/lab/peers"
)

// TestMain lets the test program be its own peer, as the weft program is.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "lab" && os.Args[2] == "peer" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		if err := peers.Run(ctx, os.Args[3:], os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// A short run of every benchmark: every system starts, is measured, and yields a figure for every measure that it takes.
func TestShort(t *testing.T) {
	if err := netns.Usable(); err != nil {
		t.Skipf("SKIPPED, nothing was measured: %v", err)
	}
	weft := os.Getenv("WEFT_BIN")
	if weft == "" {
		weft = filepath.Join(t.TempDir(), "weft")
		if out, err := exec.Command("go", "build", "-o", weft, "weft/cmd/weft").CombinedOutput(); err != nil {
			t.Fatalf("build weft: %v\n%s", err, out)
		}
		if out, err := exec.Command("go", "build", "-tags", "engine", "-o", weft+"-ledger", "weft/cmd/weft").CombinedOutput(); err != nil {
			t.Fatalf("build weft-ledger: %v\n%s", err, out)
		}
	}
	for _, c := range []struct {
		name    string
		only    []string
		systems []string
		figures []string
	}{
		{"line2", []string{"tcp", "udp", "rtt", "idle"}, []string{"weft", "yggdrasil", plane, "wireguard", "kernel", "kernel-plain"}, []string{"tcp", "udp", "rtt", "rtt99"}},
		{"line3", []string{"tcp", "rtt", "weft", "yggdrasil", "wireguard", "wireguard-hops"}, []string{"weft", "yggdrasil", "wireguard", "wireguard-hops"}, []string{"tcp", "cpu-endpoint", "rtt"}},
		{"line5", []string{"tcp", "rtt", "weft", "kernel"}, []string{"weft", "kernel"}, []string{"tcp", "rtt"}},
		{"diamond", []string{"heal", "weft"}, []string{"weft"}, []string{"heal-kill", "heal-down", "heal-silent"}},
		{"join", []string{"join"}, []string{"weft"}, []string{"join"}},
		{"gateway", []string{"tcp", "down", "rtt", "weft", paying, "wireguard", "kernel"}, []string{"weft", paying, "wireguard", "kernel"}, []string{"tcp", "down", "rtt"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			rep, err := Run(t.Context(), Options{
				Short: true, Only: append(c.only, c.name), Binary: weft,
				Progress: func(done, total int, what string) { t.Logf("%d/%d %s", done, total, what) },
			})
			if err != nil {
				t.Error(err)
			}
			if rep == nil {
				return
			}
			for _, s := range c.systems {
				for _, f := range c.figures {
					if v, ok := rep.get(c.name, s, f); !ok || v < 0 || v == 0 && !strings.HasPrefix(f, "heal") {
						t.Errorf("%s of %s is %v (measured: %v)", f, s, v, ok)
					}
				}
			}
			var table strings.Builder
			if err := rep.WriteTable(&table); err != nil {
				t.Error(err)
			}
			t.Log("\n" + table.String())
		})
	}
}

func TestTargetsCompareInTheRightDirection(t *testing.T) {
	r := Report{Results: []*Result{
		{Topology: "line2", System: "weft", Measure: "tcp", Values: []float64{9, 3, 4}},
		{Topology: "line2", System: "yggdrasil", Measure: "tcp", Values: []float64{1, 2}},
		{Topology: "line2", System: "weft", Measure: "cpu-endpoint", Values: []float64{1}},
		{Topology: "line2", System: "yggdrasil", Measure: "cpu-endpoint", Values: []float64{2}},
		{Topology: "join", System: "weft", Measure: "join", Values: []float64{1.5}},
	}}
	r.finish()
	got := map[string]TargetResult{}
	for _, x := range r.Targets {
		got[x.Measure] = x
	}
	for measure, want := range map[string]TargetResult{
		"tcp":          {"weft", "line2", "tcp", "yggdrasil", "≥ 2.4x", 4 / 1.5, true},
		"cpu-endpoint": {"weft", "line2", "cpu-endpoint", "yggdrasil", "≤ 0.45x", 0.5, false},
		"join":         {"weft", "join", "join", "", "≤ 2", 1.5, true},
	} {
		if got[measure] != want {
			t.Errorf("%s: %+v, want %+v", measure, got[measure], want)
		}
	}
	if len(r.Targets) != 3 {
		t.Errorf("%d targets of which three were measured", len(r.Targets))
	}
}
