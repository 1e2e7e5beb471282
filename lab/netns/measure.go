//go:build linux && !router

package netns

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Pings is a stream of echo requests that runs in the background.
type Pings struct {
	cmd      *exec.Cmd
	interval time.Duration
	done     chan struct{}

	mu      sync.Mutex
	replies []reply
	said    string // the last line that is no reply: why nothing came
	first   chan struct{}
}

type reply struct {
	seq int
	at  float64 // seconds since the epoch
	rtt time.Duration
}

// PingReport is what a stream of pings saw.
type PingReport struct {
	Sent, Received int
	Duplicates     int // replies that came again
	Overtaken      int // replies that came after a later one's
	Median, P95    time.Duration
	P99, Max       time.Duration
	// Gap is the longest time between two replies that followed each other, less the interval at which requests went out:
	// how long the path was dead. A stream that ended unanswered counts up to its end.
	Gap time.Duration
}

// StartPing sends echo requests from a node to an address at an interval until Stop, or until count are out when it is not 0.
func (w *World) StartPing(node string, to netip.Addr, interval time.Duration, count int) (*Pings, error) {
	n, err := w.node(node)
	if err != nil {
		return nil, err
	}
	argv := []string{"ping", "-n", "-D", "-W", "1", "-i", strconv.FormatFloat(interval.Seconds(), 'f', 4, 64)}
	if count > 0 {
		argv = append(argv, "-c", strconv.Itoa(count))
	}
	cmd := w.command(context.Background(), n, append(argv, to.String()))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start ping on %s: %w", node, err)
	}
	p := &Pings{cmd: cmd, interval: interval, done: make(chan struct{}), first: make(chan struct{})}
	go func() {
		defer close(p.done)
		sc := bufio.NewScanner(out)
		for sc.Scan() {
			p.line(sc.Text())
		}
		cmd.Wait()
	}()
	return p, nil
}

// line takes one line of ping's output, as in "[1763772000.123456] 64 bytes from ::1: icmp_seq=4 ttl=64 time=0.05 ms".
func (p *Pings) line(s string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var r reply
	var ok [3]bool
	for _, f := range strings.Fields(s) {
		switch k, v, _ := strings.Cut(f, "="); {
		case strings.HasPrefix(f, "[") && strings.HasSuffix(f, "]"):
			at, err := strconv.ParseFloat(f[1:len(f)-1], 64)
			r.at, ok[0] = at, err == nil
		case k == "icmp_seq":
			seq, err := strconv.Atoi(v)
			r.seq, ok[1] = seq, err == nil
		case k == "time":
			ms, err := strconv.ParseFloat(v, 64)
			r.rtt, ok[2] = time.Duration(ms*float64(time.Millisecond)), err == nil
		}
	}
	if ok != [3]bool{true, true, true} {
		if s != "" && !strings.HasPrefix(s, "PING") && !strings.HasPrefix(s, "---") {
			p.said = s
		}
		return
	}
	if len(p.replies) == 0 {
		close(p.first)
	}
	p.replies = append(p.replies, r)
}

// First is closed when the first reply has come.
func (p *Pings) First() <-chan struct{} { return p.first }

// Stop ends the stream and reports on it.
func (p *Pings) Stop() PingReport {
	end := time.Now()                    // ping may wait for the last reply; that is no gap of the network
	p.cmd.Process.Signal(syscall.SIGINT) // it sums up and ends
	<-p.done
	return p.report(end)
}

// Wait waits until a counted stream is out.
func (p *Pings) Wait(ctx context.Context) (PingReport, error) {
	select {
	case <-p.done:
		r := p.report(time.Time{})
		if r.Received == 0 {
			return r, fmt.Errorf("no ping came back: %s", p.said)
		}
		return r, nil
	case <-ctx.Done():
		p.Stop()
		return PingReport{}, ctx.Err()
	}
}

// report sums up a stream that was watched until end; a zero end is when the last reply came.
func (p *Pings) report(end time.Time) PingReport {
	p.mu.Lock()
	defer p.mu.Unlock()
	var r PingReport
	if len(p.replies) == 0 {
		return r
	}
	var rtts []time.Duration
	seen := map[int]bool{}
	first, last, at := p.replies[0].seq, 0, p.replies[0].at
	step := p.interval.Seconds()
	gap := 0.0
	for _, x := range p.replies {
		if seen[x.seq] {
			r.Duplicates++
		} else {
			seen[x.seq] = true
			rtts = append(rtts, x.rtt)
			if x.seq < last {
				r.Overtaken++
			}
		}
		last = max(last, x.seq)
		gap, at = max(gap, x.at-at-step), x.at
	}
	if !end.IsZero() {
		gap = max(gap, float64(end.UnixNano())/1e9-at-step)
	}
	slices.Sort(rtts)
	r.Received = len(rtts)
	r.Sent = last - first + 1
	share := func(hundredths int) time.Duration { return rtts[min(len(rtts)-1, len(rtts)*hundredths/100)] }
	r.Median, r.P95, r.P99, r.Max = share(50), share(95), share(99), share(100)
	r.Gap = time.Duration(max(0, gap) * 1e9)
	return r
}

// AwaitPing pings until an answer comes and says how long that took. It starts anew when ping gives up, as it does while there is no route.
func (w *World) AwaitPing(ctx context.Context, node string, to netip.Addr) (time.Duration, error) {
	start := time.Now()
	said := "no answer"
	for {
		p, err := w.StartPing(node, to, 20*time.Millisecond, 0)
		if err != nil {
			return 0, err
		}
		select {
		case <-p.First():
			took := time.Since(start)
			p.Stop()
			return took, nil
		case <-p.done:
			p.mu.Lock()
			if p.said != "" {
				said = p.said
			}
			p.mu.Unlock()
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
				continue
			}
		case <-ctx.Done():
			p.Stop()
		}
		return 0, fmt.Errorf("%s cannot ping %s: %s (waited %v)", node, to, said, time.Since(start).Round(time.Millisecond))
	}
}

// Flow is what one iperf3 run moved.
type Flow struct {
	BitsPerSecond float64 // received
	Bytes         int64   // received
	Packets       int64   // UDP: sent
	Lost          float64 // UDP: share lost
	Seconds       float64
}

// FlowSpec says what to run between two nodes.
type FlowSpec struct {
	From, To string
	Addr     netip.Addr    // where To listens
	Time     time.Duration // whole seconds: iperf3 knows no less
	Bytes    int64         // ends after so many instead; Time is then how long it may take
	Warmup   time.Duration // whole seconds, left out of the figures
	UDP      int           // payload bytes per datagram; 0 is TCP
	Rate     float64       // UDP: bit/s
	Port     int           // 0: iperf3's own. Flows at the same time to the same node each need one
	Back     bool          // the server sends
	Extra    []string
}

// Iperf runs iperf3 once: a server on To, a client on From.
func (w *World) Iperf(ctx context.Context, f FlowSpec) (Flow, error) {
	port := cmp.Or(f.Port, 5201)
	name := "iperf3-" + strconv.Itoa(port)
	srv, err := w.Spawn(f.To, name, "iperf3", "-s", "-1", "--forceflush", "-p", strconv.Itoa(port), "-B", f.Addr.String())
	if err != nil {
		return Flow{}, err
	}
	defer srv.Kill()
	if err := w.AwaitListen(ctx, f.To, port, srv); err != nil {
		return Flow{}, err
	}
	argv := []string{"iperf3", "-J", "-c", f.Addr.String(), "-p", strconv.Itoa(port)}
	if f.Bytes > 0 {
		argv = append(argv, "-n", strconv.FormatInt(f.Bytes, 10))
	} else {
		argv = append(argv, "-t", whole(f.Time))
	}
	if f.Back {
		argv = append(argv, "-R")
	}
	if f.Warmup > 0 {
		argv = append(argv, "-O", whole(f.Warmup))
	}
	if f.UDP > 0 {
		argv = append(argv, "-u", "-l", strconv.Itoa(f.UDP), "-b", strconv.FormatFloat(f.Rate, 'f', 0, 64))
	}
	ctx, cancel := context.WithTimeout(ctx, f.Time+f.Warmup+10*time.Second)
	defer cancel()
	out, err := w.Exec(ctx, f.From, append(argv, f.Extra...)...)
	var res struct {
		Error string
		End   struct {
			SumReceived struct {
				Bits    float64 `json:"bits_per_second"`
				Bytes   int64
				Seconds float64
			} `json:"sum_received"`
			Sum struct {
				Packets     int64
				LostPackets int64 `json:"lost_packets"`
				Seconds     float64
			}
		}
	}
	if jsonErr := json.Unmarshal(out, &res); jsonErr == nil && res.Error != "" {
		return Flow{}, fmt.Errorf("iperf3 from %s to %s: %s", f.From, f.To, res.Error)
	}
	if err != nil {
		return Flow{}, err
	}
	flow := Flow{BitsPerSecond: res.End.SumReceived.Bits, Bytes: res.End.SumReceived.Bytes, Seconds: res.End.SumReceived.Seconds}
	if f.UDP > 0 {
		flow.Packets, flow.Seconds = res.End.Sum.Packets, res.End.Sum.Seconds
		if flow.Packets == 0 {
			return flow, errors.New("iperf3 sent no datagram")
		}
		flow.Lost = float64(res.End.Sum.LostPackets) / float64(flow.Packets)
	}
	return flow, nil
}

func whole(d time.Duration) string {
	return strconv.Itoa(max(1, int((d+time.Second-1)/time.Second)))
}

// AwaitListen waits until something on the node listens on the TCP port; p is who should.
func (w *World) AwaitListen(ctx context.Context, node string, port int, p *Process) error {
	n, err := w.node(node)
	if err != nil {
		return err
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		listening, err := n.listens(port)
		if err != nil {
			return err
		}
		if listening {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s on %s ended before it listened: %s", p.Name, node, tail(p.Log, 5))
		case <-ctx.Done():
			return fmt.Errorf("%s on %s does not listen on port %d: %w", p.Name, node, port, ctx.Err())
		case <-tick.C:
		}
	}
}

// listens says whether a program on the node listens on the TCP port.
func (n *Node) listens(port int) (found bool, err error) {
	want := fmt.Sprintf(":%04X", port)
	err = inside(n.ns, func() error {
		for _, table := range []string{"tcp", "tcp6"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + table)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(b)) {
				if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], want) && f[3] == "0A" {
					found = true
				}
			}
		}
		return nil
	})
	return found, err
}
