//go:build linux && !router

package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weft/api"
	"weft/lab/manifest"
	"weft/lab/manifests"
)

// binary builds the program once. WEFT_BIN names one that is built already.
var binary = sync.OnceValues(func() (string, error) {
	if b := os.Getenv("WEFT_BIN"); b != "" {
		return filepath.Abs(b)
	}
	dir, err := os.MkdirTemp("", "weft-lab-test-")
	if err != nil {
		return "", err
	}
	scratch = dir
	if err := os.Chmod(dir, 0o755); err != nil { // nodes run it as other users
		return "", err
	}
	path := filepath.Join(dir, "weft")
	out, err := exec.Command("go", "build", "-o", path, "weft/cmd/weft").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build weft: %w\n%s", err, out)
	}
	return path, nil
})

// scratch is the folder of the built program; TestMain removes it.
var scratch string

// worldFor makes a world for a test of the real program, or says loudly why it cannot; build is what makes it. It lasts 3 min at
// most, shows its logs on failure, and nothing is left of it at the end.
func worldFor(t *testing.T, build func(context.Context, Options) (*World, error)) (*World, context.Context) {
	t.Helper()
	if err := Usable(); err != nil {
		t.Skipf("SKIPPED, the real program was NOT tested: %v", err)
	}
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	w, err := build(ctx, Options{Binary: bin})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			var logs strings.Builder
			w.WriteLogs(&logs, 40)
			t.Log("\n" + logs.String())
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w, ctx
}

// empty is how worldFor makes a world to be filled by the test.
func empty(_ context.Context, opt Options) (*World, error) { return New(opt) }

// village builds the world of a manifest for a test.
func village(t *testing.T, text string) (*World, context.Context) {
	t.Helper()
	m, err := manifest.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return worldFor(t, func(ctx context.Context, opt Options) (*World, error) { return Build(ctx, m, opt) })
}

const line2 = "[topology]\nkind = 'line'\nn = 2\n"

func start(t *testing.T, w *World, nodes ...string) {
	t.Helper()
	if len(nodes) == 0 {
		for _, n := range w.Nodes() {
			nodes = append(nodes, n.Name)
		}
	}
	for _, n := range nodes {
		if err := w.Start(n); err != nil {
			t.Fatal(err)
		}
	}
}

func address(t *testing.T, ctx context.Context, w *World, node string) netip.Addr {
	t.Helper()
	a, err := w.Address(ctx, node)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// reach pings until an answer comes, and fails the test when it took longer than within.
func reach(t *testing.T, ctx context.Context, w *World, from, to string, within time.Duration) {
	t.Helper()
	a := address(t, ctx, w, to)
	limit, cancel := context.WithTimeout(ctx, max(within, 15*time.Second))
	defer cancel()
	took, err := w.AwaitPing(limit, from, a)
	if err != nil {
		t.Fatal(err)
	}
	if took > within {
		t.Errorf("%s reached %s after %v, want ≤ %v", from, to, took, within)
	}
}

func serve(t *testing.T, ctx context.Context, w *World, node string, port uint16, page string) netip.AddrPort {
	t.Helper()
	at := netip.AddrPortFrom(address(t, ctx, w, node), port)
	stop, err := w.Serve(node, at, page)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return at
}

func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("SKIPPED: %s is not installed", p)
		}
	}
}

// Two machines, one cable, no configuration at all: they find each other. One lets people in, and ssh and curl work.
func TestTwoStrangers(t *testing.T) {
	needs(t, "sshd", "ssh", "ssh-keygen", "curl")
	w, ctx := village(t, line2)
	for _, n := range w.Nodes() {
		if err := w.Configure(n.Name, ""); err != nil { // not even a name
			t.Fatal(err)
		}
	}
	start(t, w)
	reach(t, ctx, w, "n0", "n1", 5*time.Second)
	reach(t, ctx, w, "n1", "n0", time.Second)

	page := serve(t, ctx, w, "n1", 80, "hello over the mesh\n")
	curl := func(from string, to netip.AddrPort) (string, error) {
		out, err := w.Exec(ctx, from, "curl", "-sS", "-m", "3", "http://"+to.String()+"/")
		return string(out), err
	}
	if got, err := curl("n0", page); err == nil {
		t.Fatalf("the firewall is closed by default, and still n0 fetched %q", got)
	}
	if err := w.Weft(ctx, "n1", nil, "firewall", "add", "allow tcp 22,80 from any"); err != nil {
		t.Fatal(err)
	}
	if got, err := curl("n0", page); err != nil || got != "hello over the mesh\n" {
		t.Fatalf("curl: %q, %v", got, err)
	}
	back := serve(t, ctx, w, "n0", 80, "not for you\n")
	if got, err := curl("n1", back); err == nil {
		t.Errorf("n0 opened nothing, and still n1 fetched %q", got)
	}

	dir := filepath.Join(w.Dir, "ssh")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	conf := fmt.Sprintf("ListenAddress [%s]:22\nHostKey %s/host\nAuthorizedKeysFile %s/user.pub\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPidFile none\n",
		address(t, ctx, w, "n1"), dir, dir)
	if err := os.WriteFile(filepath.Join(dir, "sshd_config"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // sshd does not start without it
		t.Fatal(err)
	}
	d, err := w.Spawn("n1", "sshd", sshd, "-D", "-e", "-f", filepath.Join(dir, "sshd_config"))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.AwaitListen(ctx, "n1", 22, d); err != nil {
		t.Fatal(err)
	}
	out, err := w.Exec(ctx, "n0", "ssh", "-i", filepath.Join(dir, "user"), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes",
		"-o", "ConnectTimeout=5", "root@"+address(t, ctx, w, "n1").String(), "echo $WEFT_LAB_NODE; readlink /proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	id, err := inode(w.Prefix + "-n1")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), id) {
		t.Errorf("ssh landed in %q, want %s", out, id)
	}
}

func TestLineOfFive(t *testing.T) {
	needs(t, "curl")
	w, ctx := village(t, "[topology]\nkind='line'\nn=5\n[[node]]\nname='n4'\nconfig='''\n[firewall]\nrules = [\"allow tcp 80 from any\"]\n'''\n")
	start(t, w)
	reach(t, ctx, w, "n0", "n4", 6*time.Second)
	// Larger than any path or socket buffer on the way, so that segments, not single packets, cross the relays.
	page := strings.Repeat("five in a row. ", 1<<17)
	at := serve(t, ctx, w, "n4", 80, page)
	out, err := w.Exec(ctx, "n0", "curl", "-sS", "-m", "20", "http://"+at.String()+"/")
	if err != nil {
		t.Fatal(err)
	}
	if string(out) != page {
		t.Errorf("the page of %d bytes arrived as %d other bytes", len(page), len(out))
	}
	var hops []api.TraceHop
	if err := w.Weft(ctx, "n0", &hops, "trace", at.Addr().String()); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, h := range hops {
		names = append(names, h.Name)
	}
	if got := strings.Join(names, " "); !strings.HasSuffix(got, "n1 n2 n3 n4") {
		t.Errorf("trace goes %s", got)
	}
	for _, relay := range []string{"n1", "n2", "n3"} {
		st, err := w.Status(ctx, relay)
		if err != nil {
			t.Fatal(err)
		}
		if st.Counters.ForwardedBytes < uint64(len(page)) {
			t.Errorf("%s says it carried %d bytes of a page of %d", relay, st.Counters.ForwardedBytes, len(page))
		}
		if len(st.Sessions) > 0 && st.Counters.LocalRxPackets > 1000 {
			t.Errorf("%s opened %d packets that were not for it", relay, st.Counters.LocalRxPackets)
		}
	}
}

func TestRingHealsWhenARelayIsKilled(t *testing.T) {
	w, ctx := village(t, "[topology]\nkind='ring'\nn=4\n")
	start(t, w)
	for _, n := range []string{"n1", "n2", "n3"} {
		reach(t, ctx, w, "n0", n, 6*time.Second)
	}
	to := address(t, ctx, w, "n2")
	var hops []api.TraceHop
	if err := w.Weft(ctx, "n0", &hops, "trace", to.String()); err != nil {
		t.Fatal(err)
	}
	if len(hops) != 3 {
		t.Fatalf("the trace has %d hops: %+v", len(hops), hops)
	}
	relay := hops[1].Name
	before, err := w.Status(ctx, relay)
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.StartPing("n0", to, 10*time.Millisecond, 0)
	if err != nil {
		t.Fatal(err)
	}
	<-p.First()
	if err := w.Kill(relay); err != nil {
		t.Fatal(err)
	}
	wait(ctx, 4*time.Second)
	if rep := p.Stop(); rep.Gap > 3*time.Second {
		t.Errorf("killing %s cut n0 from n2 for %v, want ≤ 3 s", relay, rep.Gap)
	}
	start(t, w, relay)
	reach(t, ctx, w, "n0", relay, 3*time.Second)
	after, err := w.Status(ctx, relay)
	if err != nil {
		t.Fatal(err)
	}
	if before.Key != after.Key || before.Address != after.Address {
		t.Errorf("%s came back as %s, was %s", relay, after.Key, before.Key)
	}
}

// wait lets the real kernel and real programs go on for a while.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func TestDiamondHealsOnCarrierLossAndSilence(t *testing.T) {
	w, ctx := village(t, "[topology]\nkind='diamond'\nn=2\n")
	start(t, w)
	for _, n := range []string{"n1", "n2", "n3"} {
		reach(t, ctx, w, "n0", n, 6*time.Second)
	}
	to := address(t, ctx, w, "n3")
	relay := func() string {
		t.Helper()
		for {
			var hops []api.TraceHop
			if err := w.Weft(ctx, "n0", &hops, "trace", to.String()); err == nil && len(hops) == 3 {
				return hops[1].Name
			}
			if wait(ctx, 50*time.Millisecond); ctx.Err() != nil {
				t.Fatal("n0 finds no way to n3")
			}
		}
	}
	for _, f := range []struct {
		name  string
		fault func(l *Link, on bool) error
		limit time.Duration
	}{
		// The limits tell the ways of noticing apart on a busy machine; what must be reached (100 ms, 2 s) `weft lab bench` checks.
		{"carrier loss", func(l *Link, on bool) error { return w.SetCarrier(l, "n3", !on) }, 700 * time.Millisecond},
		{"silence", func(l *Link, on bool) error { return w.SetSilent(l, "n3", on) }, 3 * time.Second},
	} {
		for { // both ways are there
			var peers []api.Peer
			if err := w.Weft(ctx, "n3", &peers, "peers"); err == nil && len(peers) == 2 && peers[0].State == "up" && peers[1].State == "up" {
				break
			}
			if wait(ctx, 50*time.Millisecond); ctx.Err() != nil {
				t.Fatal("n3 has not both neighbours")
			}
		}
		used := relay()
		l, err := w.Link(used, "n3")
		if err != nil {
			t.Fatal(err)
		}
		p, err := w.StartPing("n0", to, 10*time.Millisecond, 0)
		if err != nil {
			t.Fatal(err)
		}
		<-p.First()
		wait(ctx, 500*time.Millisecond)
		if err := f.fault(l, true); err != nil {
			t.Fatal(err)
		}
		wait(ctx, 3*time.Second)
		rep := p.Stop()
		t.Logf("%s: gap %v", f.name, rep.Gap)
		if rep.Gap > f.limit {
			t.Errorf("%s between %s and n3: gap %v, want ≤ %v", f.name, used, rep.Gap, f.limit)
		}
		if now := relay(); now == used {
			t.Errorf("%s: the traffic still goes through %s", f.name, used)
		}
		if err := f.fault(l, false); err != nil {
			t.Fatal(err)
		}
	}
}

func TestClosedNetworkRefusesAStranger(t *testing.T) {
	m, err := manifests.Load("closed-network")
	if err != nil {
		t.Fatal(err)
	}
	if err := Usable(); err != nil {
		t.Skipf("SKIPPED, the real program was NOT tested: %v", err)
	}
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	rep, err := Run(t.Context(), m, Options{Binary: bin}, &out)
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if rep.Failed() > 0 {
		t.Errorf("%+v\n%s", rep.Expect, out.String())
	}
}

// An ordinary user without any capability fetches a page from another node.
func TestUserspaceFetchesAPageThroughSOCKS(t *testing.T) {
	needs(t, "curl", "setpriv")
	w, ctx := village(t, line2+"[[node]]\nname='n1'\nconfig='''\n[firewall]\nrules = [\"allow tcp 80 from any\"]\n'''\n")
	if err := w.RunAs("n0", 65534); err != nil {
		t.Fatal(err)
	}
	if err := w.Configure("n0", ""); err != nil {
		t.Fatal(err)
	}
	start(t, w)
	at := serve(t, ctx, w, "n1", 80, "for everybody\n")
	st, err := w.Status(ctx, "n0")
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode != "userspace" || st.SOCKS == "" {
		t.Fatalf("n0 runs in mode %q with SOCKS at %q", st.Mode, st.SOCKS)
	}
	uid, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.Process("n0").Pid))
	if err != nil || !strings.Contains(string(uid), "Uid:\t65534\t65534") || !strings.Contains(string(uid), "CapEff:\t0000000000000000") {
		t.Fatalf("n0 does not run as an ordinary user (%v):\n%s", err, uid)
	}
	reach(t, ctx, w, "n1", "n0", 6*time.Second)
	out, err := w.Exec(ctx, "n0", "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
		"curl", "-sS", "-m", "10", "--proxy", "socks5h://"+st.SOCKS, "http://"+at.String()+"/")
	if err != nil || string(out) != "for everybody\n" {
		t.Errorf("%q, %v", out, err)
	}
	links, err := w.Exec(ctx, "n0", "ip", "-o", "link")
	if err != nil || strings.Count(string(links), "\n") != 2 {
		t.Errorf("an ordinary user's node has more than lo and eth0: %v\n%s", err, links)
	}
}

// traces is everything that a program could leave in the kernel's network configuration.
func traces(t *testing.T, ctx context.Context, w *World, node string) string {
	t.Helper()
	out, err := w.Exec(ctx, node, "sh", "-c", `
		ip -o link | sed 's/ state .*//'
		ip -o addr | sed 's/valid_lft.*//'
		ip route show table all
		ip -6 route show table all | sed 's/ expires [^ ]*//'
		ip rule; ip -6 rule
		nft list ruleset 2>/dev/null
		ip xfrm state; ip maddr show dev eth0
		for f in /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/*/forwarding /proc/sys/net/ipv4/conf/*/rp_filter /proc/sys/net/ipv6/conf/*/accept_ra; do echo "$f $(cat $f)"; done
		ls /proc/net/vlan 2>/dev/null; cat /proc/net/unix | awk '{print $8}' | sort
		true`)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(out), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestSIGTERMLeavesNothingBehind(t *testing.T) {
	w, ctx := village(t, line2)
	before := traces(t, ctx, w, "n0")
	start(t, w)
	reach(t, ctx, w, "n0", "n1", 6*time.Second)
	if during := traces(t, ctx, w, "n0"); during == before {
		t.Fatal("a running node leaves no trace at all: this test sees nothing")
	}
	p := w.Process("n0")
	begin := time.Now()
	if err := w.Stop("n0"); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("the node took %v to end", d)
	}
	if after := traces(t, ctx, w, "n0"); after != before {
		t.Errorf("after SIGTERM\n%s\nbefore\n%s", after, before)
	}
	if err := p.Signal(0); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("the process is still there: %v", err)
	}
	n, err := w.node("n0")
	if err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(n.StateDir() + "/*.sock")
	if err != nil || len(left) > 0 {
		t.Errorf("the node left %v (%v)", left, err)
	}
	start(t, w, "n0")
	reach(t, ctx, w, "n0", "n1", 3*time.Second)
}

func TestKillAndRestartKeepsTheIdentity(t *testing.T) {
	w, ctx := village(t, line2)
	start(t, w)
	reach(t, ctx, w, "n0", "n1", 6*time.Second)
	before, err := w.Status(ctx, "n1")
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		if err := w.Kill("n1"); err != nil {
			t.Fatal(err)
		}
		if round == 1 {
			wait(ctx, 3*time.Second) // long enough for n0 to have given it up
		}
		begin := time.Now()
		start(t, w, "n1")
		reach(t, ctx, w, "n0", "n1", 3*time.Second)
		t.Logf("back after %v", time.Since(begin))
		after, err := w.Status(ctx, "n1")
		if err != nil {
			t.Fatal(err)
		}
		if after.Key != before.Key || after.Address != before.Address {
			t.Fatalf("n1 came back as %s, was %s", after.Key, before.Key)
		}
	}
}

func TestManyNodesOnOneLANStayUnderTheCap(t *testing.T) {
	const count, limit = 14, 4
	var m strings.Builder
	var names []string
	for i := range count {
		fmt.Fprintf(&m, "[[node]]\nname='h%d'\nconfig='''\n[multicast]\ncap = %d\n'''\n", i, limit)
		names = append(names, fmt.Sprintf("'h%d'", i))
	}
	fmt.Fprintf(&m, "[[lan]]\nname='street'\nnodes=[%s]\n", strings.Join(names, ","))
	w, ctx := village(t, m.String())
	start(t, w)
	// All boot at once, as after a power cut, and at first link with whom they hear first. Then they choose.
	reach(t, ctx, w, "h0", fmt.Sprintf("h%d", count-1), 10*time.Second)
	most, links := 0, 0
	for settled := false; !settled && ctx.Err() == nil; {
		wait(ctx, time.Second)
		most, links = 0, 0
		for _, n := range w.Nodes() {
			var peers []api.Peer
			if err := w.Weft(ctx, n.Name, &peers, "peers"); err != nil {
				t.Fatal(err)
			}
			up := 0
			for _, p := range peers {
				if p.State == "up" {
					up++
				}
			}
			most, links = max(most, up), links+up
		}
		// Each chooses at most so many and may be chosen by as many. A few links more stay for minutes, as traffic flowed over them.
		settled = links <= 2*limit*count
	}
	if links > 2*limit*count {
		t.Errorf("with a cap of %d, %d of %d links are there; one node keeps %d", limit, links/2, count*(count-1)/2, most)
	}
	for i := 1; i < count; i++ {
		reach(t, ctx, w, "h0", fmt.Sprintf("h%d", i), time.Second)
	}
	t.Logf("%d nodes keep %.1f neighbours each with a cap of %d", count, float64(links)/count, limit)
}

// However a run ends, it or the next one cleans up: a signal, and a kill that leaves no time to.
func TestRunsThatAreEndedLeaveNothing(t *testing.T) {
	if err := Usable(); err != nil {
		t.Skipf("SKIPPED, the real program was NOT tested: %v", err)
	}
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	left := func(pid int) (found []string) {
		for _, pattern := range []string{"/run/netns/wl%dx*", os.TempDir() + "/wl%dx*"} {
			paths, err := filepath.Glob(fmt.Sprintf(pattern, pid))
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, paths...)
		}
		return found
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			cmd := exec.Command(bin, "lab", "run", "line2")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			pid := cmd.Process.Pid
			inodes := map[string]bool{}
			for deadline := time.Now().Add(10 * time.Second); len(inodes) < 2 || len(pidsIn(inodes)) < 2; wait(t.Context(), 20*time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("the run of pid %d does not begin", pid)
				}
				for _, node := range []string{"n0", "n1"} {
					if id, err := inode(fmt.Sprintf("wl%dx1-%s", pid, node)); err == nil {
						inodes[id] = true
					}
				}
			}
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			cmd.Wait() // with an error, as it was interrupted
			if sig == syscall.SIGKILL {
				if len(left(pid)) == 0 {
					t.Error("a killed run left nothing to sweep: this test sees nothing")
				}
				Sweep()
			}
			if found := left(pid); len(found) > 0 {
				t.Errorf("%v left %v", sig, found)
			}
			if pids := pidsIn(inodes); len(pids) > 0 {
				t.Errorf("%v left processes %v", sig, pids)
			}
		})
	}
}
