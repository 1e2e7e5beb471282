//go:build linux && !router && !no_ygg

package netns

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/api"
)

// slaac waits until a device has a mesh address of the router's /64 by advertisement, and returns it.
func slaac(t *testing.T, ctx context.Context, w *World, node, ifname string) (at netip.Addr) {
	t.Helper()
	until(t, ctx, node+" gets a mesh address by router advertisement", func() bool {
		out, err := w.Exec(ctx, node, "ip", "-6", "-o", "addr", "show", "dev", ifname, "scope", "global")
		if err != nil {
			return false
		}
		for f := range strings.FieldsSeq(string(out)) {
			if p, err := netip.ParsePrefix(f); err == nil && strings.HasPrefix(f, "3") {
				at = p.Addr()
			}
		}
		return at.IsValid() && !strings.Contains(string(out), "tentative")
	})
	return at
}

// television tells a device's kernel to take the routes that a router advertises (RFC 4191), as phones, NetworkManager and
// systemd-networkd do. Without it a device reaches the mesh only while the router is its way to the internet, too.
func television(t *testing.T, ctx context.Context, w *World, node, ifname string) {
	t.Helper()
	if _, err := w.Exec(ctx, node, "sh", "-c", "echo 64 > /proc/sys/net/ipv6/conf/"+ifname+"/accept_ra_rt_info_max_plen"); err != nil {
		t.Fatal(err)
	}
}

// settled waits until a node sees a Yggdrasil network of at least this size that has been the same for 3 s: itself, its neighbours,
// and whoever else the tree, which depends on the keys, shows it. Paths that the core learns earlier may lead nowhere, and it
// believes them for a minute.
func settled(t *testing.T, ctx context.Context, w *World, node string, least int) {
	t.Helper()
	var last string
	var since time.Time
	until(t, ctx, "the network of Yggdrasil nodes settles", func() bool {
		c, err := net.Dial("unix", filepath.Join(w.Dir, node+".sock"))
		if err != nil {
			return false
		}
		defer c.Close()
		var said struct {
			Response struct {
				Tree []struct{ Key, Parent string }
			}
		}
		fmt.Fprintln(c, `{"request":"getTree"}`)
		if err := json.NewDecoder(c).Decode(&said); err != nil {
			t.Fatal(err)
		}
		if now := fmt.Sprint(said.Response.Tree); now != last || len(said.Response.Tree) < least {
			last, since = now, time.Now()
		}
		return time.Since(since) > 3*time.Second
	})
}

// A television without Weft has a mesh address from its router. Stock Yggdrasil nodes, next to the router, behind another stock
// node and behind a Weft node, and native nodes reach it as far as the router's firewall lets them; it reaches all of them.
func TestStockNodesReachGuests(t *testing.T) {
	needs(t, "curl")
	w, ctx := worldFor(t, empty)
	for _, n := range []string{"tv", "router", "near", "far", "friend", "beyond"} {
		if _, err := w.AddNode(n); err != nil {
			t.Fatal(err)
		}
	}
	television(t, ctx, w, "tv", "default")
	for i, l := range [][]string{{"router", "tv"}, {"router", "near"}, {"near", "far"}, {"router", "friend"}, {"friend", "beyond"}} {
		if _, err := w.AddLink(strings.Join(l, "–"), l, Shape{}, uint64(i)); err != nil {
			t.Fatal(err)
		}
	}
	uri := func(a, b string, net byte) string {
		at, _ := between(t, w, a, b, net)
		return fmt.Sprintf("tcp://%s:9001", at)
	}
	toNear, toFar, toFriend, toBeyond := uri("router", "near", 1), uri("near", "far", 2), uri("router", "friend", 3), uri("friend", "beyond", 4)
	for node, conf := range map[string]string{
		"router": fmt.Sprintf("[guest]\ninterface = \"eth0\"\n[yggdrasil]\nadmin = \"unix://%s/router.sock\"\nlisten = [%q, %q]\n", w.Dir, toNear, toFriend),
		"friend": fmt.Sprintf("[firewall]\nrules = [\"allow tcp 5001 from any\"]\n[yggdrasil]\npeers = [%q]\nlisten = [%q]\n", toFriend, toBeyond),
	} {
		if err := w.Configure(node, fmt.Sprintf("version = 1\nname = %q\n%s[tun]\nname = %q\n", node, conf, Interface)); err != nil {
			t.Fatal(err)
		}
	}
	start(t, w, "router", "friend")
	here := address(t, ctx, w, "router")
	at := map[string]netip.Addr{"friend": address(t, ctx, w, "friend")}
	_, at["near"] = stock(t, ctx, w, "near", "--peer", toNear, "--listen", toFar)
	_, at["far"] = stock(t, ctx, w, "far", "--peer", toFar)
	_, at["beyond"] = stock(t, ctx, w, "beyond", "--peer", toBeyond)
	others := []string{"near", "far", "beyond", "friend"}
	tv := slaac(t, ctx, w, "tv", "eth0")
	settled(t, ctx, w, "router", 3) // with near and friend
	for _, from := range others {
		began := time.Now()
		pings(t, ctx, w, from, here)
		t.Logf("%s reaches the router after %v", from, time.Since(began).Round(time.Millisecond))
	}

	const size = 20 << 20
	page := strings.Repeat("a page of the television. ", size/26)
	for _, port := range []uint16{5000, 5002} {
		stop, err := w.Serve("tv", netip.AddrPortFrom(tv, port), page)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(stop)
	}
	closed := func() uint64 {
		t.Helper()
		var fw api.Firewall
		if err := w.Weft(ctx, "router", &fw, "firewall"); err != nil {
			t.Fatal(err)
		}
		return fw.Counts["closed"]
	}
	// shut says that neither a port nor ping gets through, and that the router counts why.
	shut := func(port uint16) {
		t.Helper()
		before := closed()
		var wg sync.WaitGroup
		for _, from := range others {
			wg.Go(func() {
				b := browser{t: t, ctx: ctx, w: w, node: from}
				if got, err := b.try("-m", "0.7", "-o", "/dev/null", "-g", fmt.Sprintf("http://[%s]:%d/", tv, port)); err == nil {
					t.Errorf("%s reached port %d of the device: %q", from, port, got)
				}
			})
			wg.Go(func() {
				if _, err := w.Exec(ctx, from, "ping", "-c", "1", "-W", "0.7", tv.String()); err == nil {
					t.Errorf("the device answers %s's ping", from)
				}
			})
		}
		wg.Wait()
		if n := closed() - before; n < uint64(2*len(others)) {
			t.Errorf("the router refused a connection and a ping of %d nodes, and counts %d", len(others), n)
		}
	}
	shut(5000)
	// What the device begins is answered, on either plane.
	for _, to := range others {
		began := time.Now()
		pings(t, ctx, w, "tv", at[to])
		t.Logf("the device reaches %s after %v", to, time.Since(began).Round(time.Millisecond))
		transfer(t, ctx, w, "tv", to, at[to], size/4)
	}
	stop, err := w.Serve("far", netip.AddrPortFrom(at["far"], 80), page)
	if err != nil {
		t.Fatal(err)
	}
	browser{t: t, ctx: ctx, w: w, node: "tv"}.download(fmt.Sprintf("http://[%s]/", at["far"]), int64(len(page)), "-g")
	stop()
	shut(5000) // it opened nothing

	allow := func(rule string) {
		t.Helper()
		if err := w.Weft(ctx, "router", nil, "firewall", "add", rule); err != nil {
			t.Fatal(err)
		}
	}
	allow("allow tcp 5000-5001 to behind from any")
	for _, from := range others {
		began := time.Now()
		b := browser{t: t, ctx: ctx, w: w, node: from}
		b.download(fmt.Sprintf("http://[%s]:5000/", tv), int64(len(page)), "-g")
		down := time.Since(began)
		transfer(t, ctx, w, from, "tv", tv, size)
		t.Logf("%s fetched 20 MB in %v and sent as much in %v", from, down.Round(time.Millisecond), (time.Since(began) - down).Round(time.Millisecond))
	}
	shut(5002)
	// A packet that is too large for the device's network: the router says so to the other end, which then cuts it.
	allow("allow icmp to " + tv.String() + " from any")
	for _, from := range others {
		until(t, ctx, from+" pings the device with packets larger than its network takes", func() bool {
			_, err := w.Exec(ctx, from, "ping", "-c", "1", "-W", "0.5", "-s", "3000", tv.String())
			return err == nil
		})
	}
	if _, err := w.Exec(ctx, "near", "ping", "-c", "1", "-W", "0.3", tv.Next().String()); err == nil {
		t.Error("an address that nobody has answers")
	}
}
