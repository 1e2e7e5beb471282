package link_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/forward"
	"weft/ident"
	"weft/link"
	"weft/wire"
)

// Managers between real kernels: two network namespaces joined by a veth pair, one process in each. The processes are this
// test binary again, told by the environment to be a node.

const helperEnv = "WEFT_LINK_TEST_NODE"

// printer is a helper's handler: it prints events for the parent and sends to every neighbour all the time.
type printer struct {
	plane *forward.Plane
	m     *link.Manager
}

func (p *printer) say(kind string, l *link.Link, more string) {
	fmt.Printf("%s %v %s %s\n", kind, l.Peer(), l.Endpoint(), more)
}
func (p *printer) LinkUp(l *link.Link)                { p.say("up", l, fmt.Sprint(l.MTU())) }
func (p *printer) LinkChanged(*link.Link)             {}
func (p *printer) LinkDown(l *link.Link, err error)   { p.say("down", l, err.Error()) }
func (p *printer) Control(*link.Link, byte, []byte)   {}
func (p *printer) NewSink() forward.Sink              { return p }
func (p *printer) Deliver([]byte, *forward.Neighbour) {}
func (p *printer) Flush()                             {}
func (p *printer) table() (t forward.Table, peers []ident.NodeID) {
	t = forward.Table{}
	for _, l := range p.m.Links() {
		t[l.Peer().ID()] = forward.NextHop{Primary: l.Neighbour()}
		peers = append(peers, l.Peer().ID())
	}
	return t, peers
}

func TestHelperNode(t *testing.T) {
	if os.Getenv(helperEnv) == "" {
		t.Skip("run by the kernel tests only")
	}
	agent, err := ident.FromSeed([]byte(strings.Repeat(os.Getenv(helperEnv), 32)))
	if err != nil {
		t.Fatal(err)
	}
	p := &printer{}
	p.plane = forward.New(agent.Public().ID(), p)
	p.m, err = link.New(link.Config{Agent: agent, Plane: p.plane, Handler: p, Multicast: link.Multicast{Enabled: true, Interfaces: []string{"veth*"}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- p.m.Serve(ctx) }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return
		case <-tick.C:
			table, peers := p.table()
			p.plane.SetTable(table)
			for _, id := range peers {
				_ = p.plane.Send(id, wire.ClassBulk, make([]byte, 100), 100)
			}
		}
	}
}

type helper struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string
}

func (h *helper) expect(what string, limit time.Duration) (line string, took time.Duration) {
	h.t.Helper()
	began := time.Now()
	timeout := time.After(limit)
	for {
		select {
		case line, ok := <-h.lines:
			if !ok {
				h.t.Fatalf("the node ended before %q", what)
			}
			h.t.Log(h.cmd.Args[3], line)
			if strings.HasPrefix(line, what) {
				return line, time.Since(began)
			}
		case <-timeout:
			h.t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v: %s", args, err, out)
	}
}

func TestKernel(t *testing.T) {
	if testing.Short() || os.Getuid() != 0 {
		t.Skip("makes network namespaces: needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip(8)")
	}
	ns := []string{fmt.Sprintf("lk%d-a", os.Getpid()), fmt.Sprintf("lk%d-b", os.Getpid())}
	for _, n := range ns {
		if out, err := exec.Command("ip", "netns", "add", n).CombinedOutput(); err != nil {
			t.Skipf("no network namespaces here: %s", out)
		}
		t.Cleanup(func() { ip(t, "netns", "del", n) })
		ip(t, "-n", n, "link", "set", "lo", "up")
	}
	ip(t, "-n", ns[0], "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", ns[1])
	for _, n := range ns {
		ip(t, "netns", "exec", n, "sysctl", "-qw", "net.ipv6.conf.veth0.accept_dad=0")
		ip(t, "-n", n, "link", "set", "veth0", "up")
	}
	run := func(i int) *helper {
		h := &helper{t: t, lines: make(chan string, 1000)}
		h.cmd = exec.Command("ip", "netns", "exec", ns[i], os.Args[0], "-test.run=^TestHelperNode$", "-test.count=1")
		h.cmd.Env = append(os.Environ(), helperEnv+"="+string(rune('a'+i)))
		out, err := h.cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := h.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() {
			defer close(h.lines)
			for s := bufio.NewScanner(out); s.Scan(); {
				h.lines <- s.Text()
			}
			_ = h.cmd.Wait()
		}()
		t.Cleanup(func() {
			_ = h.cmd.Process.Kill()
			for range h.lines {
			}
		})
		return h
	}
	a, b := run(0), run(1)
	line, _ := a.expect("up", 5*time.Second)
	if !strings.Contains(line, "udp://[fe80:") || !strings.HasSuffix(line, " 1420") {
		t.Errorf("link %q", line)
	}
	b.expect("up", 5*time.Second)

	// Killed: its port is closed, which ICMP tells.
	_ = b.cmd.Process.Kill()
	_, took := a.expect("down", 2*time.Second)
	t.Logf("killed neighbour noticed after %v", took)
	if took > 800*time.Millisecond { // 90 ms as a rule; silence alone would take 1.3 s
		t.Errorf("noticed a killed neighbour after %v", took)
	}
	b = run(1)
	_, took = b.expect("up", 5*time.Second)
	a.expect("up", 5*time.Second)
	t.Logf("link %v after the restart", took)

	time.Sleep(1200 * time.Millisecond) // the kernel reports changes of a carrier at most once a second
	// Carrier loss, at the far end of the cable.
	ip(t, "-n", ns[1], "link", "set", "veth0", "down")
	_, took = a.expect("down", 2*time.Second)
	t.Logf("carrier loss noticed after %v", took)
	if took > 800*time.Millisecond {
		t.Errorf("noticed carrier loss after %v", took)
	}
	b.expect("down", 2*time.Second)
	ip(t, "-n", ns[1], "link", "set", "veth0", "up")
	_, took = a.expect("up", 5*time.Second)
	t.Logf("link %v after the carrier came back", took)
	b.expect("up", 5*time.Second)

	// A good-bye.
	_ = b.cmd.Process.Signal(unix.SIGTERM)
	line, _ = a.expect("down", 2*time.Second)
	if !strings.Contains(line, "stopping") {
		t.Errorf("a good-bye arrived as %q", line)
	}
}
