// Package node puts a Weft node together: it makes the parts, joins what one needs to what another offers, runs them, and
// answers the admin API about all of them. It is the only room that imports every other; only cli and lab import it.
//
// A Node owns everything that it starts: Serve returns when all goroutines have ended and what was changed on the host is
// as it was. Many nodes run in one process. Methods are safe for concurrent use, those of api.Backend once Ready is closed.
//
//	host ⇄ tun ⇄ session ⇄ forward ⇄ link ⇄ neighbours
//	     │        │firewall    ▲table   │control messages
//	     │        └── names ── routing (route) ◄──┘
//	     └⇄ ygg (what no LSA names) ⇄ Yggdrasil's network
//
// Lock order: routing.mu before link's locks; nothing is called back with routing.mu held but route itself.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/api"
	"weft/config"
	"weft/firewall"
	"weft/forward"
	"weft/gateway/host"
	"weft/ident"
	"weft/link"
	"weft/portal"
	"weft/proxy"
	"weft/session"
	"weft/tun"
	"weft/wire"
)

// Options are what a node is made of.
type Options struct {
	Config   *config.Config // not changed
	StateDir string
	Log      *slog.Logger
	World    *World // nil: the operating system
}

// World stands in for the operating system, so that whole nodes run in virtual time. A node in such a world has no socket,
// portal or proxies: its owner calls it directly.
type World struct {
	Underlay link.Underlay
	Device   tun.Device
}

// Node is one Weft node.
type Node struct {
	opt   Options
	cfg   *config.Config
	log   *slog.Logger
	agent *ident.Agent
	self  ident.PublicKey

	routing  *routing
	firewall *firewall.Firewall
	plane    *forward.Plane
	sessions *session.Manager
	links    *link.Manager
	ygg      *yggPlane // nil: off
	sharing  *sharing
	coop     *coop
	tabs     *tabs
	device   tun.Device
	mode     string // "tun" or "userspace"
	net      network
	hub      api.Hub

	started time.Time
	ready   chan struct{}
	portal  string // URLs and addresses that are really bound
	socks   string
	http    string

	mu    sync.Mutex // guards added
	added config.Added
}

// New reads the node's key (making one on the first start) and checks that the parts can be made. It touches nothing but
// the state directory.
func New(opt Options) (*Node, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	agent, created, err := ident.Load(opt.StateDir)
	if err != nil {
		return nil, err
	}
	added, err := config.LoadAdded(opt.StateDir)
	if err != nil {
		return nil, err
	}
	cfg := *opt.Config
	cfg.Peers = slices.Clone(cfg.Peers)
	cfg.Add(added)
	n := &Node{opt: opt, cfg: &cfg, log: opt.Log, agent: agent, self: agent.Public(), ready: make(chan struct{}), added: added}
	if created {
		n.log.Info("new key", "address", n.self.Addr())
	}
	rules, err := firewall.ParseRules(n.cfg.Firewall.Rules, n.cfg.Firewall.Groups)
	if err != nil {
		return nil, fmt.Errorf("firewall: %w", err)
	}
	if n.firewall, err = firewall.New(n.self, rules, time.Now()); err != nil {
		return nil, fmt.Errorf("firewall: %w", err)
	}
	if n.routing, err = newRouting(n); err != nil {
		return nil, err
	}
	return n, nil
}

// Ready is closed when the node is up and answers the API.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Serve runs the node until ctx ends or a part of it fails for good.
func (n *Node) Serve(ctx context.Context) (err error) {
	var services []func(context.Context) error
	if n.opt.World == nil { // first of all: two nodes in one state directory would be one identity twice
		sock, err := api.Listen(n.cfg.Socket(n.opt.StateDir))
		if err != nil {
			return err
		}
		defer sock.Close()
		services = append(services, func(ctx context.Context) error { return api.Serve(ctx, sock, api.Handler(n, n.log), n.log) })
	}
	if err := n.attach(); err != nil {
		return err
	}
	defer n.device.Close()
	if err := n.compose(); err != nil {
		return err
	}
	if n.ygg != nil {
		defer n.ygg.plane.Close()
		services = append(services, n.ygg.serve)
	}
	services = append(services, n.sharing.services()...)
	services = append(services, n.coop.serve)
	if n.opt.World == nil {
		more, err := n.listen()
		if err != nil {
			return err
		}
		services = append(services, more...)
	}
	n.started = time.Now()
	// What stands on sessions ends before them, so that it can take its leave of other nodes.
	core, stopCore := context.WithCancel(context.WithoutCancel(ctx))
	defer stopCore()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.sessions.Serve(core) })
	g.Go(func() error { return n.plane.Serve(core) })
	g.Go(func() error { return n.links.Serve(core) })
	g.Go(func() error { return n.routing.serve(core) })
	upper, upperCtx := errgroup.WithContext(ctx)
	upper.Go(func() error { return n.tick(upperCtx) })
	for _, s := range services {
		upper.Go(func() error { return s(upperCtx) })
	}
	g.Go(func() error {
		defer stopCore()
		return upper.Wait()
	})
	close(n.ready)
	n.log.Info("node is up", "address", n.self.Addr(), "mode", n.mode)
	err = g.Wait()
	if errors.Is(err, context.Canceled) && ctx.Err() != nil && context.Cause(ctx) == context.Canceled {
		err = nil
	}
	return err
}

// attach makes the device: a TUN when the config and the system allow one, else the userspace stack.
func (n *Node) attach() error {
	const tunMTU = 1420 // what an end-to-end packet carries over a 1500-byte underlay, docs/spec/session.md section 5
	mtu := n.cfg.TUN.MTU
	if mtu == 0 {
		mtu = tunMTU
	}
	if w := n.opt.World; w != nil {
		n.device, n.mode = w.Device, "tun"
		return nil
	}
	if n.cfg.TUN.Enabled != config.Off {
		name := n.cfg.TUN.Name
		if name == "auto" {
			name = ""
		}
		dev, err := tun.Open(tun.Config{Name: name, MTU: mtu, Addr: n.self.Addr(), Routes: []netip.Prefix{ident.MeshPrefix}})
		if err == nil {
			n.device, n.mode, n.net = dev, "tun", proxy.Host{Addr: n.self.Addr()}
			return nil
		}
		if n.cfg.TUN.Enabled == config.On {
			return err
		}
		n.log.Info("no network interface, using the userspace stack", "why", err)
	}
	stack, err := newStack(n.self.Addr(), mtu)
	if err != nil {
		return err
	}
	n.device, n.mode, n.net = stack, "userspace", stack
	return nil
}

// compose makes the parts that need the device.
func (n *Node) compose() (err error) {
	key := n.cfg.Community.Key.Reveal()
	if err := n.openYgg(); err != nil {
		return err
	}
	defer func() {
		if err != nil && n.ygg != nil {
			n.ygg.plane.Close()
		}
	}()
	if n.coop, err = newCoop(n); err != nil {
		return err
	}
	n.tabs = newTabs(n)
	if n.sharing, err = newSharing(n); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			n.sharing.close()
		}
	}()
	n.sessions, err = session.New(session.Config{
		Agent: n.agent, Device: n.device, Resolver: n.routing, PSK: key, Log: n.log.With("room", "session"),
		// In a closed network every session is with a member: the handshake needs the community key.
		Filter:    func(k ident.PublicKey) session.Filter { return n.firewall.Peer(k, n.cfg.Closed()) },
		Elsewhere: n.elsewhere(), Outside: n.sharing.gw, Message: n.sharing.message,
	})
	if err != nil {
		return err
	}
	n.plane = forward.New(n.self.ID(), n.sessions)
	n.sessions.Bind(n.plane)
	n.plane.SetTransit(n.cfg.Role != config.RoleLeaf)
	n.routing.plane = n.plane
	lc := link.Config{
		Agent: n.agent, Plane: n.plane, Handler: n.routing, Log: n.log.With("room", "link"), CommunityKey: key,
		Listen: n.listenURIs(), LANCap: n.cfg.Multicast.Cap,
		Multicast: link.Multicast{Enabled: n.cfg.Multicast.Enabled, Interfaces: n.cfg.Multicast.Interfaces, Exclude: n.cfg.Multicast.Exclude},
	}
	lc.Introductions = link.Introductions{Refuse: !n.cfg.Introduce.Direct, Silent: !n.cfg.Introduce.Offer}
	if w := n.opt.World; w != nil {
		lc.Underlay = w.Underlay
	} else if n.mode == "tun" { // else nothing of this host's is ever routed into the mesh
		lc.Control = host.Control
	}
	for _, r := range n.cfg.Rates {
		lc.Rates = append(lc.Rates, link.InterfaceRate{Pattern: r.Interface, Bits: int64(r.Rate)})
	}
	for _, p := range n.cfg.Peers {
		lc.Peers = append(lc.Peers, linkPeer(p))
	}
	n.links, err = link.New(lc)
	return err
}

func linkPeer(p config.Peer) link.Peer {
	return link.Peer{URI: p.URI, Key: p.Key, Multiplier: int(p.Multiplier()), Metered: p.Metered, Rate: int64(p.Rate)}
}

// listenURIs gives way to whoever has the default port already, unless the owner asked for it by name.
func (n *Node) listenURIs() []string {
	uris := append([]string(nil), n.cfg.Listen...)
	if n.cfg.ListenSet || n.opt.World != nil {
		return uris
	}
	for i, u := range uris {
		addr, ok := strings.CutPrefix(u, "udp://")
		if !ok {
			continue
		}
		c, err := net.ListenPacket("udp", addr)
		if err != nil {
			host, _, _ := net.SplitHostPort(addr)
			uris[i] = "udp://" + net.JoinHostPort(host, "0")
			n.log.Info("the port is taken, using a free one", "uri", u)
			continue
		}
		c.Close()
	}
	return uris
}

// listen opens the portal, the proxies and the port forwards; each result serves one of them.
func (n *Node) listen() (services []func(context.Context) error, err error) {
	if services, err = n.openProxies(); err != nil {
		return nil, err
	}
	more, err := n.sharing.listen()
	if err != nil {
		return nil, err
	}
	services = append(services, more...)
	at := n.cfg.Portal.Listen
	if at == "off" || at == "" {
		return services, nil
	}
	ln, err := net.Listen("tcp", at)
	if err != nil && !n.cfg.Portal.Set {
		ln, err = nextFree(at)
	}
	if err != nil {
		return nil, fmt.Errorf("portal: %w (set [portal] listen to another port, or to \"off\")", err)
	}
	n.portal = "http://" + ln.Addr().String() + "/"
	h := portal.Handler(n)
	return append(services, func(ctx context.Context) error { return serveHTTP(ctx, ln, h) }), nil
}

// nextFree tries the ports after a taken one, then any.
func nextFree(at string) (net.Listener, error) {
	ap, err := netip.ParseAddrPort(at)
	if err != nil {
		return nil, err
	}
	for i := range uint16(20) {
		if ln, err := net.Listen("tcp", netip.AddrPortFrom(ap.Addr(), ap.Port()+1+i).String()); err == nil {
			return ln, nil
		}
	}
	return net.Listen("tcp", netip.AddrPortFrom(ap.Addr(), 0).String())
}

func serveHTTP(ctx context.Context, ln net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if srv.Shutdown(grace) != nil {
		srv.Close()
	}
	<-done
	return ctx.Err()
}

// tick does what needs doing now and then.
func (n *Node) tick(ctx context.Context) error {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-t.C:
			n.firewall.Tick(now)
			if i%5 == 0 {
				n.wantDirect()
			}
		}
	}
}

// saveSeq and loadSeq keep the sequence number of this node's LSA over restarts, so that the first one after a restart is
// news at once. Losing the file costs one round trip with a neighbour.
func (n *Node) seqFile() string { return filepath.Join(n.opt.StateDir, "lsa.seq") }

func (n *Node) loadSeq() (seq uint64) {
	b, err := os.ReadFile(n.seqFile())
	if err == nil {
		_, err = fmt.Sscan(string(b), &seq)
	}
	if err != nil || seq > wire.MaxSeq/2 {
		return 0
	}
	return seq
}

func (n *Node) saveSeq(seq uint64) {
	if err := config.WriteFile(n.seqFile(), fmt.Appendln(nil, seq)); err != nil {
		n.log.Warn("sequence number is not kept", "err", err)
	}
}
