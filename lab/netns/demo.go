//go:build linux && !router

package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"weft/api"
	"weft/lab/manifests"
)

// Listen opens a TCP listener of this process inside the node's namespace.
func (w *World) Listen(node string, at netip.AddrPort) (net.Listener, error) {
	n, err := w.node(node)
	if err != nil {
		return nil, err
	}
	var l net.Listener
	err = inside(n.ns, func() (err error) {
		l, err = net.Listen("tcp", at.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", node, err)
	}
	return l, nil
}

// Serve serves a page from the node until stop is called, which waits for the server.
func (w *World) Serve(node string, at netip.AddrPort, page string) (stop func(), err error) {
	l, err := w.Listen(node, at)
	if err != nil {
		return nil, err
	}
	srv := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { io.WriteString(rw, page) })}
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.Serve(l) // returns when it is closed
	}()
	return func() { srv.Close(); <-done }, nil
}

// Demo builds a neighbourhood of six nodes and shows it at work: they find each other, ping, trace, a page is fetched, a relay
// dies and the traffic finds another way. With keep the neighbourhood stays up until ctx ends. Nothing is left behind.
func Demo(ctx context.Context, opt Options, keep bool, out io.Writer) (err error) {
	m, err := manifests.Load("demo")
	if err != nil {
		return err
	}
	w, err := Build(ctx, m, opt)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			w.WriteLogs(out, 15)
		}
		err = errors.Join(err, w.Close())
		if err == nil {
			fmt.Fprintln(out, "\nAll processes and namespaces of the neighbourhood are gone again.")
		}
	}()
	d := demo{w: w, out: out}
	fmt.Fprint(out, `
   laptop            server ~~~~~~~~ garden
     :              (radio)         (radio)
     :                 :               :
    anna ---+------- relay             :
            |                          :
            +------- bernd ~~~~~~~~~~~~+
          street

`)
	if err := d.show(ctx); err != nil {
		return err
	}
	if !keep {
		return nil
	}
	fmt.Fprintf(out, `
The neighbourhood stays up until you press Ctrl-C. In another terminal, as root:

  ip netns list                                  its machines start with %[1]s-
  ip netns exec %[1]s-laptop ping %[2]s
  %[3]s status --state %[4]s/laptop/state
  %[3]s trace %[2]s --state %[4]s/laptop/state
`, w.Prefix, d.addr["server"], w.opt.Binary, w.Dir)
	<-ctx.Done()
	return nil
}

type demo struct {
	w    *World
	out  io.Writer
	addr map[string]netip.Addr
}

func (d *demo) step(format string, args ...any) {
	fmt.Fprintf(d.out, "\n== %s\n", fmt.Sprintf(format, args...))
}

// run shows a command as a person would type it on the node, and what it prints.
func (d *demo) run(ctx context.Context, node, shown string, argv ...string) error {
	fmt.Fprintf(d.out, "%s$ %s\n", node, shown)
	b, err := d.w.Exec(ctx, node, argv...)
	for line := range strings.Lines(string(b)) {
		fmt.Fprintf(d.out, "  %s", line)
	}
	return err
}

func (d *demo) show(ctx context.Context) error {
	w := d.w
	d.step("Six machines start weft. None knows any other: they find their neighbours by multicast")
	begin := time.Now()
	if err := w.StartAll(); err != nil {
		return err
	}
	limit, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	d.addr = map[string]netip.Addr{}
	for _, n := range w.Nodes() {
		a, err := w.Address(limit, n.Name)
		if err != nil {
			return err
		}
		d.addr[n.Name] = a
	}
	for _, from := range []string{"laptop", "garden"} {
		for _, to := range w.Nodes() {
			if to.Name == from {
				continue
			}
			if _, err := w.AwaitPing(limit, from, d.addr[to.Name]); err != nil {
				return err
			}
		}
	}
	fmt.Fprintf(d.out, "After %.1f s the laptop and the garden reach everybody.\n\n", time.Since(begin).Seconds())
	tw := tabwriter.NewWriter(d.out, 2, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "  node\taddress\tneighbours")
	for _, n := range w.Nodes() {
		var peers []api.Peer
		if err := w.Weft(ctx, n.Name, &peers, "peers"); err != nil {
			return err
		}
		var names []string
		for _, p := range peers {
			if p.State == "up" {
				names = append(names, cmpName(p))
			}
		}
		slices.Sort(names)
		names = slices.Compact(names) // two nodes can have several links: one for each plane
		fmt.Fprintf(tw, "  %s\t%s\t%s\n", n.Name, d.addr[n.Name], strings.Join(names, ", "))
	}
	if err := tw.Flush(); err != nil {
		return err
	}

	server := d.addr["server"]
	d.step("The laptop pings the server, and asks which way that goes")
	if err := d.run(ctx, "laptop", "ping -c 3 "+server.String(), "ping", "-n", "-c", "3", "-i", "0.2", server.String()); err != nil {
		return err
	}
	trace := func() error {
		n, err := w.node("laptop")
		if err != nil {
			return err
		}
		return d.run(ctx, "laptop", "weft trace "+server.String(), w.argv(n, "trace", server.String())...)
	}
	if err := trace(); err != nil {
		return err
	}

	d.step("The server has a page for the neighbours")
	stop, err := w.Serve("server", netip.AddrPortFrom(server, 80), "Welcome to the street's own page.\n")
	if err != nil {
		return err
	}
	defer stop()
	if _, err := exec.LookPath("curl"); err != nil {
		fmt.Fprintln(d.out, "(curl is not installed: the page is not fetched)")
	} else if err := d.run(ctx, "laptop", "curl http://["+server.String()+"]/", "curl", "-sS", "-m", "5", "http://["+server.String()+"]/"); err != nil {
		return err
	}

	d.step("The relay dies (kill -9) while the laptop pings the server a hundred times a second")
	p, err := w.StartPing("laptop", server, 10*time.Millisecond, 0)
	if err != nil {
		return err
	}
	pause := func(d time.Duration) {
		select {
		case <-ctx.Done():
		case <-time.After(d):
		}
	}
	pause(time.Second)
	if err := w.Kill("relay"); err != nil {
		p.Stop()
		return err
	}
	pause(5 * time.Second)
	rep := p.Stop()
	if err := ctx.Err(); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "The longest silence was %s; %d of %d pings came back. The way is now another one:\n", rep.Gap.Round(time.Millisecond), rep.Received, rep.Sent)
	if err := trace(); err != nil {
		return err
	}

	d.step("The relay comes back with the same identity")
	begin = time.Now()
	if err := w.Start("relay"); err != nil {
		return err
	}
	again, cancelAgain := context.WithTimeout(ctx, 20*time.Second)
	defer cancelAgain()
	if _, err := w.AwaitPing(again, "laptop", d.addr["relay"]); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "It answers the laptop %s s after its start.\n", strconv.FormatFloat(time.Since(begin).Seconds(), 'f', 2, 64))
	return nil
}

func cmpName(p api.Peer) string {
	if p.Name != "" {
		return p.Name
	}
	return p.ID
}
