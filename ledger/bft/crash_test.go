//go:build engine

package bft

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"weft/ledger"
	"weft/ledger/bft/bftclient"
	"weft/ledger/tx"
)

// TestMain is also the engine's process for TestKill.
func TestMain(m *testing.M) {
	if dir := os.Getenv("BFT_CHILD"); dir != "" {
		beat := time.Minute
		if s := os.Getenv("BFT_BEAT"); s != "" {
			beat, _ = time.ParseDuration(s)
		}
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := Run(bftclient.Child(ctx, os.Stdin), Config{Dir: dir, Listen: netip.MustParseAddrPort(os.Getenv("BFT_LISTEN")), Peers: strings.Fields(os.Getenv("BFT_PEERS")), Heartbeat: beat}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// An engine that is killed again and again, at any moment, loses nothing that was final and applies nothing twice; its supervisor
// starts it again, and ends it in the end.
func TestKill(t *testing.T) {
	rounds := 6
	if os.Getenv("WEFT_SOAK") != "" {
		rounds = 200
	}
	dir := filepath.Join(t.TempDir(), "engine")
	g := testGenesis(t, 3)
	if _, err := Found(dir, g, agent(t, "node").Public()); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- bftclient.Supervise(ctx, bftclient.Supervisor{Exe: exe, Log: slog.New(slog.DiscardHandler), Pause: 10 * time.Millisecond, Most: 20 * time.Millisecond,
			Env: []string{"BFT_CHILD=" + dir, "BFT_LISTEN=" + freePort(t).String()}})
	}()
	c := bftclient.New(dir)
	defer c.Close()
	final := uint64(0)
	for range rounds {
		var s bftclient.Status
		eventually(t, 20*time.Second, "the engine", func() (err error) { s, err = c.Status(ctx); return err })
		kill := time.AfterFunc(time.Duration(rand.IntN(150))*time.Millisecond, func() { _ = syscall.Kill(s.Pid, syscall.SIGKILL) })
		for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
			// What was not answered is sent again, the same bytes: a nonce counts once.
			r, err := c.Finalise(ctx, transfer(t, 0, 1, final+1))
			if err != nil {
				break
			}
			if r.Code == uint32(ledger.CodeNonce) { // its block was final before the answer got through
				n := nonceOf(t, c, 0)
				if n <= final {
					t.Fatalf("refused as a repetition, but %d are applied of %d: %+v", n, final, r)
				}
				final = n
				continue
			}
			if r.Code != 0 || r.Height == 0 {
				t.Fatalf("%+v", r)
			}
			final++
		}
		kill.Stop()
	}
	eventually(t, 20*time.Second, "the engine", func() error { _, err := c.Status(ctx); return err })
	st, err := c.State(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	var a, b ledger.Account
	for i, x := range []*ledger.Account{&a, &b} {
		if err := tx.Decode(st.Get(append([]byte{'a'}, pub(t, i)...)), x); err != nil {
			t.Fatal(err)
		}
	}
	if a.Nonce < final || a.Nonce > final+1 || b.Balance != int64(a.Nonce) || a.Balance != -b.Balance {
		t.Errorf("%d transfers were final; the state has nonce %d, balances %d and %d", final, a.Nonce, a.Balance, b.Balance)
	}
	m, err := ledger.New(st)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Check(); err != nil || st.Err() != nil {
		t.Error(err, st.Err())
	}
	posted, from := 0, int64(0)
	for {
		p, err := c.Postings(ctx, "member:2", from, 7)
		if err != nil {
			t.Fatal(err)
		}
		posted += len(p.List)
		if from = p.Next; from == 0 {
			break
		}
	}
	if posted != int(a.Nonce) {
		t.Errorf("%d postings of %d transfers", posted, a.Nonce)
	}
	t.Logf("%d transfers over %d kills", a.Nonce, rounds)
	cancel()
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the supervisor does not end")
	}
	if _, err := c.Status(context.Background()); err == nil {
		t.Error("the engine runs on without its supervisor")
	}
}
