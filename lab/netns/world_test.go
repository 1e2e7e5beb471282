//go:build linux && !router

package netns

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain lets the lab's test programs take turns: `go test ./...` runs several at once.
func TestMain(m *testing.M) {
	if Usable() == nil {
		release, err := Alone(context.Background())
		if err != nil {
			panic(err)
		}
		_ = release // the lock ends with the process
	}
	// Of all ledgers in these worlds: newcomers begin with a snapshot.
	os.Setenv("WEFT_LEDGER_SNAPSHOTS", "10")
	os.Setenv("WEFT_LEDGER_REPLAY", "1")
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if scratch != "" {
			os.RemoveAll(scratch)
		}
		os.Exit(code)
	}))
}

// bare makes a world with no program in it, or says loudly why it cannot.
func bare(t *testing.T) *World {
	t.Helper()
	if err := Usable(); err != nil {
		t.Skipf("SKIPPED, the kernel worlds were NOT tested: %v", err)
	}
	w, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		for _, dir := range []string{"/run/netns", os.TempDir()} {
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Error(err)
			}
			for _, e := range entries {
				if strings.HasPrefix(e.Name(), w.Prefix+"-") {
					t.Errorf("the world left %s/%s behind", dir, e.Name())
				}
			}
		}
	})
	return w
}

// pair joins a and b by a link of the given shape, with an address at each end.
func pair(t *testing.T, w *World, shape Shape) (l *Link, b netip.Addr) {
	t.Helper()
	for _, n := range []string{"a", "b"} {
		if _, err := w.AddNode(n); err != nil {
			t.Fatal(err)
		}
	}
	l, err := w.AddLink("a-b", []string{"a", "b"}, shape, 1)
	if err != nil {
		t.Fatal(err)
	}
	for node, p := range map[string]string{"a": "fd00::1/64", "b": "fd00::2/64"} {
		if err := w.AddAddr(node, "eth0", netip.MustParsePrefix(p)); err != nil {
			t.Fatal(err)
		}
	}
	return l, netip.MustParseAddr("fd00::2")
}

func TestCableAndItsFaults(t *testing.T) {
	for name, shape := range map[string]Shape{"veth": {}, "wire": {Delay: 5 * time.Millisecond}} {
		t.Run(name, func(t *testing.T) {
			w := bare(t)
			l, to := pair(t, w, shape)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if _, err := w.AwaitPing(ctx, "a", to); err != nil {
				t.Fatal(err)
			}
			fault := func(what string, on func(bool) error, carrier string) {
				t.Helper()
				p, err := w.StartPing("a", to, 10*time.Millisecond, 0)
				if err != nil {
					t.Fatal(err)
				}
				<-p.First()
				if err := on(true); err != nil {
					t.Fatal(err)
				}
				time.Sleep(300 * time.Millisecond) // the kernel's clock, not ours
				out, err := w.Exec(ctx, "a", "cat", "/sys/class/net/eth0/carrier")
				if got := strings.TrimSpace(string(out)); err != nil || got != carrier {
					t.Errorf("%s: carrier %q, want %q (%v)", what, got, carrier, err)
				}
				if err := on(false); err != nil {
					t.Fatal(err)
				}
				if _, err := w.AwaitPing(ctx, "a", to); err != nil {
					t.Fatalf("after %s: %v", what, err)
				}
				if r := p.Stop(); r.Gap < 250*time.Millisecond || r.Gap > 5*time.Second {
					t.Errorf("%s of 0.3 s: gap %v", what, r.Gap)
				}
			}
			fault("silence", func(on bool) error { return w.SetSilent(l, "b", on) }, "1")
			fault("carrier loss", func(on bool) error {
				if err := w.SetCarrier(l, "b", !on); err != nil || on {
					return err
				}
				// Taking an interface down loses its addresses, as it does on any machine.
				w.AddAddr("b", "eth0", netip.MustParsePrefix("fd00::2/64"))
				return nil
			}, "0")
		})
	}
}

func TestWireDelaysLosesRepeatsAndReorders(t *testing.T) {
	w := bare(t)
	l, to := pair(t, w, Shape{Delay: 20 * time.Millisecond})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := w.AwaitPing(ctx, "a", to); err != nil {
		t.Fatal(err)
	}
	run := func() PingReport {
		t.Helper()
		p, err := w.StartPing("a", to, 2*time.Millisecond, 500)
		if err != nil {
			t.Fatal(err)
		}
		r, err := p.Wait(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := run(); r.Median < 38*time.Millisecond || r.Median > 60*time.Millisecond || r.Received != r.Sent {
		t.Errorf("20 ms each way: %+v", r)
	}
	if err := w.Reshape(l, Shape{Delay: time.Millisecond, Loss: 0.2}); err != nil {
		t.Fatal(err)
	}
	// 36 % of the round trips are lost; 500 of them stay within 10 points of that with a margin of 4 sigma.
	if r := run(); float64(r.Received) < 0.54*500 || float64(r.Received) > 0.74*500 {
		t.Errorf("20 %% loss each way: %d of 500 came back", r.Received)
	}
	shape := func(s Shape) PingReport {
		t.Helper()
		if err := w.Reshape(l, s); err != nil {
			t.Fatal(err)
		}
		return run()
	}
	if r := shape(Shape{Delay: 10 * time.Millisecond, Jitter: 8 * time.Millisecond, Duplicate: 0.2}); r.Duplicates < 50 || r.Overtaken != 0 || r.Received != r.Sent {
		t.Errorf("a fifth twice and jitter, but nothing overtakes: %+v", r)
	}
	if r := shape(Shape{Delay: 10 * time.Millisecond, Reorder: 0.2}); r.Overtaken < 5 || r.Duplicates != 0 || r.Received != r.Sent {
		t.Errorf("a fifth overtakes: %+v", r)
	}
}

func TestRateLimits(t *testing.T) {
	for name, shape := range map[string]Shape{"kernel": {Rate: 20e6}, "wire": {Rate: 20e6, Delay: time.Millisecond}} {
		t.Run(name, func(t *testing.T) {
			w := bare(t)
			_, to := pair(t, w, shape)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			f, err := w.Iperf(ctx, FlowSpec{From: "a", To: "b", Addr: to, Time: 2 * time.Second, Warmup: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			if f.BitsPerSecond < 12e6 || f.BitsPerSecond > 24e6 {
				t.Errorf("a link of 20 Mbit/s carried %.1f Mbit/s", f.BitsPerSecond/1e6)
			}
		})
	}
}

func TestLAN(t *testing.T) {
	for name, shape := range map[string]Shape{"bridge": {}, "switch": {Delay: time.Millisecond}} {
		t.Run(name, func(t *testing.T) {
			w := bare(t)
			names := []string{"a", "b", "c", "d"}
			for _, n := range names {
				if _, err := w.AddNode(n); err != nil {
					t.Fatal(err)
				}
			}
			l, err := w.AddLink("lan", names, shape, 1)
			if err != nil {
				t.Fatal(err)
			}
			for i, n := range names {
				if err := w.AddAddr(n, "eth0", netip.PrefixFrom(netip.MustParseAddr("fd00::"+string(rune('1'+i))), 64)); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			for _, to := range []string{"fd00::2", "fd00::4"} {
				if _, err := w.AwaitPing(ctx, "a", netip.MustParseAddr(to)); err != nil {
					t.Fatal(err)
				}
			}
			unheard := func(from, to, why string) {
				t.Helper()
				short, stop := context.WithTimeout(ctx, 300*time.Millisecond)
				defer stop()
				if _, err := w.AwaitPing(short, from, netip.MustParseAddr(to)); err == nil {
					t.Error(why)
				}
			}
			for _, on := range []bool{true, false} {
				if err := w.SetDeaf(l, "a", "b", on); err != nil {
					t.Fatal(err)
				}
				if on {
					unheard("a", "fd00::2", "a and b hear each other through their silence")
				} else if _, err := w.AwaitPing(ctx, "a", netip.MustParseAddr("fd00::2")); err != nil {
					t.Error(err)
				}
				if _, err := w.AwaitPing(ctx, "b", netip.MustParseAddr("fd00::3")); err != nil {
					t.Errorf("silence between a and b hurt c: %v", err)
				}
			}
			if err := w.SetCarrier(l, "d", false); err != nil {
				t.Fatal(err)
			}
			unheard("a", "fd00::4", "d answers with its cable out")
			if _, err := w.AwaitPing(ctx, "a", netip.MustParseAddr("fd00::3")); err != nil {
				t.Errorf("pulling d's cable hurt c: %v", err)
			}
		})
	}
}

func TestProcessesEndWithTheWorld(t *testing.T) {
	w := bare(t)
	if _, err := w.AddNode("a"); err != nil {
		t.Fatal(err)
	}
	// A process that ignores SIGTERM, with a child in a process group of its own.
	p, err := w.Spawn("a", "stubborn", "sh", "-c", "trap '' TERM; setsid sleep 1000 & echo up; while :; do sleep 1; done")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.WaitLine(t.Context(), "up"); err != nil {
		t.Fatal(err)
	}
	u, err := p.Usage()
	if err != nil || u.RSS == 0 {
		t.Errorf("usage %+v, %v", u, err)
	}
	if err := p.Stop(100 * time.Millisecond); err == nil {
		t.Error("a process that ignores SIGTERM was said to have ended well")
	}
	id, err := inode(w.Prefix + "-a")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if pids := pidsIn(map[string]bool{id: true}); len(pids) > 0 {
		t.Errorf("processes %v outlived the world", pids)
	}
}
