package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/api"
	"weft/config"
	"weft/firewall"
	"weft/ident"
	"weft/route"
	"weft/tun"
	"weft/wire"
	"weft/ygg"
)

// The Yggdrasil plane stands beside the native one, at the same device and behind the same firewall. What is decided here is
// who reaches Yggdrasil's network through whom (docs/spec/ygg.md section 3): a node whose owner shares, and that has a peer,
// says so in its LSA and takes links of the plane inside the mesh; a node without a peer dials the nearest of these.

// yggPort is the TCP port in the mesh on which a node that shares takes links of the plane.
const yggPort = 7116

// yggHello begins such a link, both ways.
const yggHello = "weft/ygg/1\n"

const (
	yggSettle    = 3 * time.Second  // a peer must hold so long before its network is offered to others
	yggWithdraw  = 5 * time.Second  // after so long without a peer it is offered no more…
	yggDialAfter = 6 * time.Second  // …and only then another's is looked for
	yggReturn    = 10 * time.Second // own peers must hold so long before another's network is let go
	yggMaxGuests = 64
	yggLeastWait = time.Second // between two tries of the same node, doubling…
	yggMostWait  = time.Minute // …up to this
)

// yggPlane is the plane and its place in the mesh.
type yggPlane struct {
	n     *Node
	plane *ygg.Plane

	mu      sync.Mutex // guards what follows
	own     time.Time  // since when a peer that was asked for is up; zero: none is
	lost    time.Time  // since when none is
	offered bool
}

// openYgg makes the plane when config and program have it; n.ygg stays nil when not.
func (n *Node) openYgg() error {
	c := &n.cfg.Yggdrasil
	if n.opt.World != nil || c.Enabled == config.Off || c.Enabled == config.Auto && (n.cfg.Closed() || !ygg.Built) {
		return nil
	}
	cfg := ygg.Config{
		Agent: n.agent, Device: n.device, Log: n.log.With("room", "ygg"),
		// The key is proven to whoever speaks under it, on either plane; who else knows the community key is not.
		Filter: func(k ident.PublicKey) ygg.Filter { return n.firewall.Peer(k, false) },
		Peers:  c.Peers, Listen: c.Listen, Allowed: c.Allowed, Password: c.Password, Admin: c.Admin, BarredPort: yggPort,
	}
	for _, m := range c.Multicast {
		cfg.Multicast = append(cfg.Multicast, ygg.Multicast{Regex: m.Regex, Beacon: m.Beacon, Listen: m.Listen, Port: m.Port, Priority: m.Priority, Password: m.Password})
	}
	if len(c.Multicast) == 0 && n.cfg.Multicast.Enabled {
		if re, ok := namesRegex(n.cfg.Multicast.Interfaces, n.cfg.Multicast.Exclude); ok {
			// Stock nodes hear the beacon and connect. Weft nodes would only link twice with one another, each pair of a LAN.
			cfg.Multicast = []ygg.Multicast{{Regex: re, Beacon: true}}
		} else {
			n.log.Warn("no multicast discovery of Yggdrasil nodes: the patterns in [multicast] are too rich for it; write [[yggdrasil.multicast]]")
		}
	}
	plane, err := ygg.New(cfg)
	if err != nil {
		return err
	}
	n.ygg = &yggPlane{n: n, plane: plane, lost: time.Now().Add(-yggDialAfter)}
	if len(c.Peers) > 0 {
		n.ygg.lost = time.Now() // they get their chance first
	}
	return nil
}

// elsewhere is what session asks for addresses without an LSA.
func (n *Node) elsewhere() func(*tun.Packet) (int, bool) {
	if n.ygg == nil {
		return nil
	}
	return n.ygg.plane.Send
}

// namesRegex turns patterns of interface names into one regular expression, as Yggdrasil wants it. Only names and beginnings
// of names (wlan*) can be turned.
func namesRegex(include, exclude []string) (string, bool) {
	plain := func(p string) bool { return !strings.ContainsAny(strings.TrimSuffix(p, "*"), `*?[\`) }
	if !slices.ContainsFunc(append(slices.Clone(include), exclude...), func(p string) bool { return !plain(p) }) {
		var alts []string
		for _, p := range include {
			begin, open := strings.CutSuffix(p, "*")
			var rest []string
			hidden := false
			for _, x := range exclude {
				if ok, _ := path.Match(x, begin); ok && strings.HasSuffix(x, "*") || x == p {
					hidden = true
				} else if tail, ok := strings.CutPrefix(x, begin); ok {
					rest = append(rest, tail)
				}
			}
			switch {
			case hidden:
			case open:
				alts = append(alts, regexp.QuoteMeta(begin)+avoid(rest))
			default:
				alts = append(alts, regexp.QuoteMeta(begin))
			}
		}
		if len(alts) == 0 {
			return "", false
		}
		return "^(?:" + strings.Join(alts, "|") + ")$", true
	}
	return "", false
}

// avoid is a regular expression for all that matches none of the patterns, each a name or the beginning of one and *. Go's
// have no way to say not.
func avoid(patterns []string) string {
	if len(patterns) == 0 {
		return ".*"
	}
	next := map[rune][]string{}
	var letters []rune
	for _, p := range patterns {
		if p == "" {
			continue
		}
		r := []rune(p)
		if _, ok := next[r[0]]; !ok {
			letters = append(letters, r[0])
		}
		next[r[0]] = append(next[r[0]], string(r[1:]))
	}
	var alts []string
	if !slices.Contains(patterns, "") { // else this very name is taken
		alts = append(alts, "")
	}
	if len(letters) == 0 {
		return "(?:.+)"
	}
	class := ""
	for _, l := range letters {
		class += fmt.Sprintf(`\x{%x}`, l)
		if rest := next[l]; !slices.Contains(rest, "*") {
			alts = append(alts, regexp.QuoteMeta(string(l))+avoid(rest))
		}
	}
	alts = append(alts, "[^"+class+"].*")
	return "(?:" + strings.Join(alts, "|") + ")"
}

// serve runs the plane until ctx ends.
func (y *yggPlane) serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return y.plane.Serve(ctx) })
	g.Go(func() error { return y.watch(ctx) })
	g.Go(func() error { return y.uplink(ctx) })
	return g.Wait()
}

// hasOwn reports since when a peer that the owner asked for is up, or since when none is.
func (y *yggPlane) hasOwn() (has bool, since time.Duration) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if !y.own.IsZero() {
		return true, time.Since(y.own)
	}
	return false, time.Since(y.lost)
}

// watch looks after the peers once a second, and offers what they lead to when the owner wants that.
func (y *yggPlane) watch(ctx context.Context) error {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	var stop func()
	defer func() {
		if stop != nil {
			stop()
		}
	}()
	for {
		up := slices.ContainsFunc(y.plane.Peers(), func(p ygg.Peer) bool { return p.Up && p.Asked })
		y.mu.Lock()
		if now := time.Now(); up && y.own.IsZero() {
			y.own = now
		} else if !up && !y.own.IsZero() {
			y.own, y.lost = time.Time{}, now
		}
		y.mu.Unlock()
		has, since := y.hasOwn()
		switch {
		case !y.n.cfg.Yggdrasil.Share:
		case stop == nil && has && since >= yggSettle:
			var err error
			if stop, err = y.offer(ctx); err != nil {
				y.n.log.Warn("the way into Yggdrasil is not shared", "err", err)
			}
		case stop != nil && !has && since >= yggWithdraw:
			stop()
			stop = nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

// offer opens the port, tells the mesh, and takes links until stop, which waits for them.
func (y *yggPlane) offer(ctx context.Context) (stop func(), err error) {
	n := y.n
	ln, err := n.net.Listen(ctx, "tcp", fmt.Sprintf(":%d", yggPort))
	if err != nil {
		return nil, fmt.Errorf("open port %d in the mesh: %w", yggPort, err)
	}
	rule, err := firewall.ParseRule(fmt.Sprintf("allow tcp %d from any", yggPort))
	if err != nil {
		panic("node: " + err.Error())
	}
	shut, err := n.firewall.Open(rule)
	if err != nil {
		ln.Close()
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		slots := make(chan struct{}, yggMaxGuests)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			select {
			case slots <- struct{}{}:
				wg.Go(func() {
					defer func() { <-slots }()
					y.guest(ctx, conn)
				})
			default:
				conn.Close()
			}
		}
	})
	y.announce(true)
	return func() {
		y.announce(false)
		cancel()
		ln.Close()
		shut()
		wg.Wait()
	}, nil
}

// announce puts the offer into this node's LSA, or takes it out.
func (y *yggPlane) announce(on bool) {
	var port []byte
	if on {
		port = binary.BigEndian.AppendUint16(nil, yggPort)
	}
	if err := y.n.routing.say(func(l *route.Local) { l.Yggdrasil = port }); err != nil {
		on = false
		y.n.log.Warn("the offer of Yggdrasil is not announced", "err", err)
	}
	y.mu.Lock()
	y.offered = on
	y.mu.Unlock()
}

// guest takes one link.
func (y *yggPlane) guest(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	at, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return
	}
	key, ok := y.n.routing.ByAddr(at.Addr())
	if !ok || key.Addr() != at.Addr() { // the node itself, not a device behind it
		return
	}
	if err := greet(ctx, conn); err == nil {
		err = y.plane.Carry(ctx, key, true, conn)
		y.n.log.Debug("a neighbour's link to Yggdrasil ended", "peer", key, "why", err)
	}
}

// greet says hello and hears it.
func greet(ctx context.Context, conn net.Conn) error {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(conn, yggHello); err != nil {
		return err
	}
	b := make([]byte, len(yggHello))
	if _, err := io.ReadFull(conn, b); err != nil {
		return err
	}
	if !bytes.Equal(b, []byte(yggHello)) {
		return errors.New("the other side speaks another version")
	}
	return conn.SetDeadline(time.Time{})
}

// offers lists the nodes that share, the nearest first.
func offers(t *route.Table, self ident.PublicKey) (out []offerOf) {
	for id, v := range t.Nodes() {
		x := v.Extension(wire.ExtYggdrasil)
		hop, ok := t.Route(id)
		if ok && len(x) >= 2 && v.Key() != self {
			out = append(out, offerOf{v.Key(), binary.BigEndian.Uint16(x), hop.Cost})
		}
	}
	slices.SortFunc(out, func(a, b offerOf) int {
		if a.cost != b.cost {
			if a.cost < b.cost {
				return -1
			}
			return 1
		}
		return bytes.Compare(a.key[:], b.key[:])
	})
	return out
}

type offerOf struct {
	key  ident.PublicKey
	port uint16
	cost uint64
}

// uplink keeps a link with the nearest node that shares, as long as this node has no peer of its own.
func (y *yggPlane) uplink(ctx context.Context) error {
	type history struct {
		wait time.Duration
		next time.Time
	}
	tried := map[ident.PublicKey]history{}
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		if has, since := y.hasOwn(); has || since < yggDialAfter {
			continue
		}
		list := offers(y.n.routing.table.Load(), y.n.self)
		for k := range tried {
			if !slices.ContainsFunc(list, func(o offerOf) bool { return o.key == k }) {
				delete(tried, k)
			}
		}
		i := slices.IndexFunc(list, func(o offerOf) bool { return !time.Now().Before(tried[o.key].next) })
		if i < 0 {
			continue
		}
		begun := time.Now()
		err := y.dial(ctx, list[i])
		if ctx.Err() != nil {
			return ctx.Err()
		}
		h := tried[list[i].key]
		if h.wait = min(max(2*h.wait, yggLeastWait), yggMostWait); time.Since(begun) > yggMostWait {
			h.wait = yggLeastWait
		}
		h.next = time.Now().Add(h.wait + rand.N(h.wait/2))
		tried[list[i].key] = h
		y.n.log.Debug("link to Yggdrasil over the mesh ended", "peer", list[i].key, "why", err)
	}
}

// dial holds one link until it breaks, is not offered any more, or is not needed any more.
func (y *yggPlane) dial(ctx context.Context, o offerOf) error {
	wait, cancel := context.WithTimeout(ctx, 5*time.Second)
	conn, err := y.n.net.DialContext(wait, "tcp", netip.AddrPortFrom(o.key.Addr(), o.port).String())
	cancel()
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := greet(ctx, conn); err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	g, ctx := errgroup.WithContext(ctx)
	done := make(chan struct{})
	g.Go(func() error {
		defer close(done)
		return y.plane.Carry(ctx, o.key, false, conn)
	})
	g.Go(func() error {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		for {
			select {
			case <-done:
				return nil
			case <-ctx.Done():
				return nil
			case <-t.C:
			}
			if has, since := y.hasOwn(); has && since >= yggReturn {
				return errors.New("own peers are back")
			}
			if !slices.ContainsFunc(offers(y.n.routing.table.Load(), y.n.self), func(x offerOf) bool { return x.key == o.key }) {
				return errors.New("it is not offered any more")
			}
		}
	})
	return g.Wait()
}

// Parts says which of the parts that a build may leave out are in this program.
func Parts() map[string]bool { return map[string]bool{"yggdrasil": ygg.Built} }

// yggState is how the plane does, for api.Status.
func (n *Node) yggState() string {
	switch {
	case n.ygg == nil && !ygg.Built:
		return "absent"
	case n.ygg == nil:
		return "off"
	case slices.ContainsFunc(n.ygg.plane.Peers(), func(p ygg.Peer) bool { return p.Up }):
		n.ygg.mu.Lock()
		defer n.ygg.mu.Unlock()
		if n.ygg.offered {
			return "shared"
		}
		return "up"
	}
	return "alone"
}

// yggPeers lists the plane's links.
func (n *Node) yggPeers() (out []api.Peer) {
	if n.ygg == nil {
		return nil
	}
	for _, p := range n.ygg.plane.Peers() {
		x := api.Peer{URI: p.URI, Source: "yggdrasil", State: "connecting", Multiplier: 1, LastError: p.Error, RTTUs: p.RTT.Microseconds(), CostUs: uint32(min(p.Cost*1000, 1<<32-1)),
			RxBytes: p.Rx, TxBytes: p.Tx}
		if !p.Asked {
			x.URI, x.Endpoint = "", p.URI
		}
		switch {
		case p.Up:
			x.State, x.Since = "up", time.Now().Add(-p.Uptime)
		case p.Error != "":
			x.State = "down"
		}
		if !p.Key.IsZero() {
			x.Key, x.ID, x.Address, x.Name = p.Key, p.Key.ID().String(), p.Key.Addr(), n.routing.name(p.Key.ID())
		}
		out = append(out, x)
	}
	return out
}

// addYggPeer is AddPeer for the plane; n.mu is held.
func (n *Node) addYggPeerLocked(uri string, save bool) error {
	if err := config.CheckYggdrasilURI(uri, false); err != nil {
		return api.Errorf(api.CodeBadURI, "%v", err)
	}
	if !ygg.Built {
		return api.Errorf(api.CodeBadURI, "%s is a peer in the Yggdrasil network, and this program was built without it", withoutOptions(uri)).WithHint("a program built without the tag no_ygg has it; a peer of Weft has udp://, tls:// or wss://")
	}
	if n.ygg == nil {
		return api.Errorf(api.CodeBadURI, "%s is a peer in the Yggdrasil network, and this node takes no part in it", uri).WithHint("set [yggdrasil] enabled = \"on\" and start it again; a peer of Weft has udp://, tls:// or wss://")
	}
	if slices.ContainsFunc(n.ygg.plane.Peers(), func(p ygg.Peer) bool { return p.Asked && config.SameYggdrasilPeer(p.URI, uri) }) {
		return api.Errorf(api.CodePeerExists, "%s is a peer already", uri).WithHint("weft peers shows how it does")
	}
	if err := n.ygg.plane.AddPeer(uri); err != nil {
		return api.Errorf(api.CodeBadURI, "%v", err)
	}
	if save {
		n.added.PutYggdrasil(uri)
		if err := n.added.Save(n.opt.StateDir); err != nil {
			return fmt.Errorf("the peer is dialled, but not kept for the next start: %w", err)
		}
	}
	n.hub.Publish(api.Event{Kind: api.EventPeers, Text: "peer added: " + withoutOptions(uri)})
	return nil
}

// withoutOptions drops what may be a password.
func withoutOptions(uri string) string { uri, _, _ = strings.Cut(uri, "?"); return uri }

// removeYggPeerLocked is RemovePeer for the plane: known is false when it has no such peer.
func (n *Node) removeYggPeerLocked(peer string) (known bool, err error) {
	uri, _ := config.YggdrasilURI(peer)
	if n.ygg == nil || !slices.ContainsFunc(n.ygg.plane.Peers(), func(p ygg.Peer) bool { return p.Asked && config.SameYggdrasilPeer(p.URI, uri) }) {
		return false, nil
	}
	if err := n.ygg.plane.RemovePeer(uri); err != nil {
		return true, err
	}
	if n.added.RemoveYggdrasil(uri) {
		if err := n.added.Save(n.opt.StateDir); err != nil {
			return true, err
		}
	}
	n.hub.Publish(api.Event{Kind: api.EventPeers, Text: "peer removed: " + withoutOptions(uri)})
	if slices.ContainsFunc(n.cfg.Yggdrasil.Peers, func(u string) bool {
		return config.SameYggdrasilPeer(u, uri) && !slices.Contains(n.cfg.Yggdrasil.PeersAdded, u)
	}) {
		return true, api.Errorf(api.CodePeerFixed, "%s is gone until the next start: it stands in the config file", withoutOptions(uri)).WithHint("take it out of peers in [yggdrasil] as well")
	}
	return true, nil
}
