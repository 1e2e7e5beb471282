//go:build linux && !router && !no_ygg

package netns

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"weft/api"
	"weft/lab/peers"
)

// stockSeed gives the stock node of a name its key.
func stockSeed(node string) [32]byte { return sha256.Sum256([]byte("stock " + node)) }

// stock starts a stock Yggdrasil node, core and interface of its own, and returns when its interface is there.
func stock(t *testing.T, ctx context.Context, w *World, node string, args ...string) (*Process, netip.Addr) {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.Spawn(node, "yggdrasil", append([]string{bin, "lab", "peer", "yggdrasil", "--seed", fmt.Sprintf("%x", stockSeed(node))}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	until(t, ctx, "the stock node on "+node, func() bool {
		b, err := os.ReadFile(p.Log)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(b), peers.Ready)
	})
	return p, peers.YggdrasilAddr(stockSeed(node))
}

// until waits for something that the programs do in their own time.
func until(t *testing.T, ctx context.Context, what string, ok func() bool) {
	t.Helper()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("never happened: %s", what)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// between gives the two ends of the link between two neighbours addresses and returns those.
func between(t *testing.T, w *World, a, b string, net byte) (netip.Addr, netip.Addr) {
	t.Helper()
	l, err := w.Link(a, b)
	if err != nil {
		t.Fatal(err)
	}
	var at [2]netip.Addr
	for i, node := range []string{a, b} {
		at[i] = netip.AddrFrom4([4]byte{10, 77, net, byte(i + 1)})
		for _, e := range l.Ends {
			if e.Node == node {
				if err := w.AddAddr(node, e.Interface, netip.PrefixFrom(at[i], 24)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return at[0], at[1]
}

// yggOnly is the config of a node that finds no Weft neighbour.
func yggOnly(rest string) string {
	return "[multicast]\nenabled = false\n[firewall]\nrules = [\"allow tcp 5001 from any\"]\n[yggdrasil]\nenabled = \"on\"\n" + rest
}

// pings waits for an answer.
func pings(t *testing.T, ctx context.Context, w *World, from string, to netip.Addr) {
	t.Helper()
	// A cold Yggdrasil network of stock nodes alone answers after seconds, and now and then after a minute: its own look-ups
	// wait for the tree to settle.
	limit, cancel := context.WithTimeout(ctx, 100*time.Second)
	defer cancel()
	if _, err := w.AwaitPing(limit, from, to); err != nil {
		t.Fatal(err)
	}
}

// transfer sends size bytes from one node to another by TCP and compares what arrives. After each part of it, but the last,
// something is done.
func transfer(t *testing.T, ctx context.Context, w *World, from, to string, at netip.Addr, size int64, between ...func()) {
	t.Helper()
	ln, err := w.Listen(to, netip.AddrPortFrom(at, 5001))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	type result struct {
		n   int64
		sum [32]byte
	}
	got := make(chan result, 1)
	go func() {
		var r result
		defer func() { got <- r }()
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		h := sha256.New()
		r.n, _ = io.Copy(h, c)
		r.sum = [32]byte(h.Sum(nil))
	}()
	n, err := w.node(from)
	if err != nil {
		t.Fatal(err)
	}
	var c net.Conn
	err = inside(n.ns, func() (err error) {
		c, err = net.DialTimeout("tcp", netip.AddrPortFrom(at, 5001).String(), 10*time.Second)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer context.AfterFunc(ctx, func() { c.Close(); ln.Close() })()
	h := sha256.New()
	chunk := make([]byte, 1<<16)
	for i := range chunk {
		chunk[i] = byte(i * 31)
	}
	parts := int64(len(between) + 1)
	for i := range parts {
		for sent := int64(0); sent < size/parts; sent += int64(len(chunk)) {
			chunk[0]++
			h.Write(chunk)
			if _, err := c.Write(chunk); err != nil {
				t.Fatalf("part %d from %s to %s, after %d bytes: %v", i, from, to, sent, err)
			}
		}
		if i < parts-1 {
			between[i]()
		}
	}
	c.Close()
	if r := <-got; r.n != size || r.sum != [32]byte(h.Sum(nil)) {
		t.Errorf("%s got %d of %d bytes from %s, whole: %v", to, r.n, size, from, r.sum == [32]byte(h.Sum(nil)))
	}
}

// yggPeer finds a peer of the plane in what weft peers says.
func yggPeer(t *testing.T, ctx context.Context, w *World, node, uri string) (p api.Peer) {
	t.Helper()
	var all []api.Peer
	if err := w.Weft(ctx, node, &all, "peers"); err != nil {
		t.Fatal(err)
	}
	for _, x := range all {
		if x.Source == "yggdrasil" && (x.URI == uri || uri == "") {
			p = x
		}
	}
	return p
}

const hundredMB = 100 << 20 / 65536 * 65536

// TestStockNeighbour: ping, a page and 100 MB each way between a Weft node and a stock one, whose interface takes large
// packets; then, after a restart of it with a small one, transfers both ways that must learn of it.
func TestStockNeighbour(t *testing.T) {
	w, ctx := village(t, line2)
	_, at := between(t, w, "n0", "n1", 1)
	uri := fmt.Sprintf("tcp://%s:9001", at)
	if err := w.Configure("n0", yggOnly(fmt.Sprintf("peers = [%q]\n", uri))); err != nil {
		t.Fatal(err)
	}
	start(t, w, "n0")
	p, there := stock(t, ctx, w, "n1", "--listen", uri)
	here := address(t, ctx, w, "n0")
	pings(t, ctx, w, "n0", there)
	pings(t, ctx, w, "n1", here)
	stop, err := w.Serve("n1", netip.AddrPortFrom(there, 80), "a page of stock")
	if err != nil {
		t.Fatal(err)
	}
	page, err := w.Exec(ctx, "n0", "curl", "-s", "-m", "10", fmt.Sprintf("http://[%s]/", there))
	stop()
	if err != nil || string(page) != "a page of stock" {
		t.Errorf("curl: %q, %v", page, err)
	}
	transfer(t, ctx, w, "n0", "n1", there, hundredMB)
	transfer(t, ctx, w, "n1", "n0", here, hundredMB)
	if x := yggPeer(t, ctx, w, "n0", uri); x.State != "up" || x.Address != there || x.RTTUs == 0 || x.RxBytes < hundredMB {
		t.Errorf("weft peers: %+v", x)
	}
	// The firewall stands on this plane, too.
	ln, err := w.Listen("n0", netip.AddrPortFrom(here, 5002))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Exec(ctx, "n1", "curl", "-s", "-m", "2", fmt.Sprintf("http://[%s]:5002/", here)); err == nil || !strings.Contains(err.Error(), "exit status 28") {
		t.Errorf("port 5002 was reached past the firewall: %v", err)
	}
	ln.Close()

	p.Kill()
	until(t, ctx, "the peer is seen to be down", func() bool { return yggPeer(t, ctx, w, "n0", uri).State != "up" })
	stock(t, ctx, w, "n1", "--listen", uri, "--mtu", "1300")
	until(t, ctx, "the peer is up again", func() bool { return yggPeer(t, ctx, w, "n0", uri).State == "up" })
	pings(t, ctx, w, "n0", there)
	transfer(t, ctx, w, "n0", "n1", there, 20<<20)
	transfer(t, ctx, w, "n1", "n0", here, 20<<20)
}

const line3 = "[topology]\nkind = 'line'\nn = 3\n"

// TestStockInTheMiddle: two Weft nodes with nothing but a stock node between them.
func TestStockInTheMiddle(t *testing.T) {
	w, ctx := village(t, line3)
	_, left := between(t, w, "n0", "n1", 1)
	right, _ := between(t, w, "n1", "n2", 2)
	stock(t, ctx, w, "n1", "--listen", fmt.Sprintf("tcp://%s:9001", left), "--listen", fmt.Sprintf("tls://%s:9002", right))
	for node, uri := range map[string]string{"n0": fmt.Sprintf("tcp://%s:9001", left), "n2": fmt.Sprintf("tls://%s:9002", right)} {
		if err := w.Configure(node, yggOnly(fmt.Sprintf("peers = [%q]\n", uri))); err != nil {
			t.Fatal(err)
		}
	}
	start(t, w, "n0", "n2")
	a, c := address(t, ctx, w, "n0"), address(t, ctx, w, "n2")
	pings(t, ctx, w, "n0", c)
	pings(t, ctx, w, "n2", a)
	transfer(t, ctx, w, "n0", "n2", c, 20<<20)
	transfer(t, ctx, w, "n2", "n0", a, 20<<20)
}

// TestWeftInTheMiddle: two stock nodes with nothing but a Weft node between them.
func TestWeftInTheMiddle(t *testing.T) {
	w, ctx := village(t, line3)
	_, left := between(t, w, "n0", "n1", 1)
	right, _ := between(t, w, "n1", "n2", 2)
	if err := w.Configure("n1", yggOnly(fmt.Sprintf("listen = [\"tcp://%s:9001\", \"quic://%s:9002\"]\n", left, right))); err != nil {
		t.Fatal(err)
	}
	start(t, w, "n1")
	address(t, ctx, w, "n1")
	_, a := stock(t, ctx, w, "n0", "--peer", fmt.Sprintf("tcp://%s:9001", left))
	_, c := stock(t, ctx, w, "n2", "--peer", fmt.Sprintf("quic://%s:9002", right))
	pings(t, ctx, w, "n0", c)
	transfer(t, ctx, w, "n0", "n2", c, 20<<20)
	transfer(t, ctx, w, "n2", "n0", a, 20<<20)
}

// TestWrongPasswordIsSaid: the owner reads why there is no link.
func TestWrongPasswordIsSaid(t *testing.T) {
	w, ctx := village(t, line2)
	_, at := between(t, w, "n0", "n1", 1)
	stock(t, ctx, w, "n1", "--listen", fmt.Sprintf("tls://%s:9001?password=sesame", at))
	if err := w.Configure("n0", yggOnly("")); err != nil {
		t.Fatal(err)
	}
	start(t, w, "n0")
	address(t, ctx, w, "n0")
	uri := fmt.Sprintf("tls://%s:9001", at)
	if err := w.Weft(ctx, "n0", nil, "peers", "add", "ygg+"+uri+"?password=simsim"); err != nil {
		t.Fatal(err)
	}
	until(t, ctx, "the status says why", func() bool { return strings.Contains(yggPeer(t, ctx, w, "n0", uri).LastError, "password is wrong") })
	if err := w.Weft(ctx, "n0", nil, "peers", "rm", "ygg+"+uri); err != nil {
		t.Fatal(err)
	}
	if err := w.Weft(ctx, "n0", nil, "peers", "add", "ygg+"+uri+"?password=sesame"); err != nil {
		t.Fatal(err)
	}
	until(t, ctx, "the link is up", func() bool { return yggPeer(t, ctx, w, "n0", uri).State == "up" })
}

// TestNeighbourShares: n0 has no peer in Yggdrasil's network; its neighbour n1 has one, and lets others through when told to.
func TestNeighbourShares(t *testing.T) {
	w, ctx := village(t, line3)
	_, at := between(t, w, "n1", "n2", 2)
	stock(t, ctx, w, "n2", "--listen", fmt.Sprintf("tcp://%s:9001", at))
	there := peers.YggdrasilAddr(stockSeed("n2"))
	middle := fmt.Sprintf("[yggdrasil]\npeers = [\"tcp://%s:9001\"]\n[[yggdrasil.multicast]]\nregex = \"none\"\n", at)
	alone := "[[yggdrasil.multicast]]\nregex = \"none\"\n"
	if err := w.Configure("n0", alone); err != nil {
		t.Fatal(err)
	}
	if err := w.Configure("n1", middle); err != nil {
		t.Fatal(err)
	}
	start(t, w, "n0", "n1")
	reach(t, ctx, w, "n0", "n1", 10*time.Second)
	until(t, ctx, "n1 has its peer", func() bool { return yggPeer(t, ctx, w, "n1", "").State == "up" })
	if _, err := w.Exec(ctx, "n0", "ping", "-c", "8", "-i", "1", "-W", "1", there.String()); err == nil {
		t.Error("n0 reached Yggdrasil's network though n1 does not share")
	}
	if err := w.Stop("n1"); err != nil {
		t.Fatal(err)
	}
	if err := w.Configure("n1", strings.Replace(middle, "[yggdrasil]\n", "[yggdrasil]\nshare = true\n", 1)); err != nil {
		t.Fatal(err)
	}
	start(t, w, "n1")
	pings(t, ctx, w, "n0", there)
	var s api.Status
	if err := w.Weft(ctx, "n1", &s, "status"); err != nil || s.Yggdrasil != "shared" {
		t.Errorf("n1 says %q, %v", s.Yggdrasil, err)
	}
}

// TestFlowMovesPlanes: one TCP connection goes over Yggdrasil, then natively, when the nodes become neighbours, then over
// Yggdrasil again.
func TestFlowMovesPlanes(t *testing.T) {
	w, ctx := village(t, line2)
	_, at := between(t, w, "n0", "n1", 1)
	uri := fmt.Sprintf("tcp://%s:9001", at)
	native := fmt.Sprintf("udp://%s:7117", at)
	if err := w.Configure("n0", yggOnly(fmt.Sprintf("peers = [%q]\n", uri))); err != nil {
		t.Fatal(err)
	}
	if err := w.Configure("n1", yggOnly(fmt.Sprintf("listen = [%q]\n", uri))); err != nil {
		t.Fatal(err)
	}
	start(t, w)
	there := address(t, ctx, w, "n1")
	pings(t, ctx, w, "n0", there)
	// on reports which plane carried more bytes of n0 since the last call, in megabytes.
	var last [2]uint64
	on := func(want string) {
		t.Helper()
		var s api.Status
		if err := w.Weft(ctx, "n0", &s, "status"); err != nil {
			t.Fatal(err)
		}
		now := [2]uint64{s.Counters.TxBytes >> 20, yggPeer(t, ctx, w, "n0", uri).TxBytes >> 20}
		last[0] = min(last[0], now[0]) // the counter sums up the links that there are
		nativeMB, yggMB := now[0]-last[0], now[1]-last[1]
		if last = now; want == "native" && nativeMB < 2*yggMB || want == "yggdrasil" && yggMB < 2*nativeMB {
			t.Errorf("native %d MB, Yggdrasil %d MB, want it to be %s", nativeMB, yggMB, want)
		}
	}
	reachable := func() bool {
		var routes []api.Route
		if err := w.Weft(ctx, "n0", &routes, "routes"); err != nil {
			t.Fatal(err)
		}
		return len(routes) == 1 && !routes[0].Unreachable
	}
	transfer(t, ctx, w, "n0", "n1", there, 90<<20, func() {
		on("yggdrasil")
		if err := w.Weft(ctx, "n0", nil, "peers", "add", native); err != nil {
			t.Fatal(err)
		}
		until(t, ctx, "they are neighbours", reachable)
	}, func() {
		on("native")
		if err := w.Weft(ctx, "n0", nil, "peers", "rm", native); err != nil {
			t.Fatal(err)
		}
		until(t, ctx, "they are strangers again", func() bool { return !reachable() })
	})
	on("yggdrasil")
}

// TestMulticastFindsStock: a Weft node without any config and a stock node on one cable find each other, if their passwords agree.
func TestMulticastFindsStock(t *testing.T) {
	w, ctx := village(t, line2)
	start(t, w, "n0")
	here := address(t, ctx, w, "n0")
	p, there := stock(t, ctx, w, "n1", "--multicast", ".*")
	pings(t, ctx, w, "n0", there)
	pings(t, ctx, w, "n1", here)
	p.Kill()
	until(t, ctx, "the link is gone", func() bool { return yggPeer(t, ctx, w, "n0", "").State != "up" })
	stock(t, ctx, w, "n1", "--multicast", ".*", "--password", "other")
	for range 5 { // beacons come every second or two at first
		if _, err := w.Exec(ctx, "n0", "ping", "-c", "1", "-W", "1", there.String()); err == nil {
			t.Fatal("a node with another password was linked")
		}
		if x := yggPeer(t, ctx, w, "n0", ""); x.State == "up" {
			t.Fatalf("a link with another password is up: %+v", x)
		}
		time.Sleep(time.Second)
	}
}
