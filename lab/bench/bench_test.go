//go:build linux && !router

package bench

import (
	"context"
	"fmt"
	"os"
	"os/signal"
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

func TestSmoke(t *testing.T) {
	if err := netns.Usable(); err != nil {
		t.Skipf("SKIPPED, nothing was measured: %v", err)
	}
	only := []string{"line2", "line3"}
	if v := os.Getenv("BENCH_ONLY"); v != "" {
		only = strings.Split(v, ",")
	}
	rep, err := Run(t.Context(), Options{
		Short: os.Getenv("BENCH_FULL") == "", Only: only, Binary: os.Getenv("WEFT_BIN"),
		Progress: func(done, total int, what string) { t.Logf("%d/%d %s", done, total, what) },
	})
	if rep != nil {
		var table strings.Builder
		if err := rep.WriteTable(&table); err != nil {
			t.Error(err)
		}
		t.Log("\n" + table.String())
	}
	if err != nil {
		t.Fatal(err)
	}
}
