// Package link is the room of neighbours: it finds them (beacons on the LAN, peers by URI), proves who they are (QUIC with
// mutual TLS 1.3, pinned by key), gives the packet path its keys, and watches how good each link is and whether it lives.
// docs/spec/link.md is normative.
//
// Only node uses link; link imports ident, wire and forward, and hears of routing only as opaque control messages. A
// [Manager] starts goroutines in Serve and all of them have ended when Serve returns. The exported methods of Manager and
// Link are safe for concurrent use and do not wait for the network.
//
// The path of a datagram is: socket → forward.Receiver, on the socket's one reader goroutine, with no hand-over and no
// allocation. Control datagrams leave that path at the first byte (wire.IsQUIC) and go to QUIC by way of an in-memory
// packet connection (mux), in which every neighbour has an address that stays the same when the neighbour roams. A link with
// a rate has one goroutine more, which empties its queue (forward.Neighbour.Serve).
//
//	sockets, streams ──data, probes──► forward.Receiver ──probes──► Link (quality, liveness)
//	      │                                                            │ dead, changed
//	      └──QUIC──► mux ──► quic-go ──► HELLO, control streams ──► Handler (node)
package link

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"weft/forward"
	"weft/ident"
	"weft/wire"
)

// Config says what a Manager works with. Agent, Plane and Handler are required.
type Config struct {
	Agent   *ident.Agent
	Plane   *forward.Plane
	Handler Handler
	Log     *slog.Logger // nil: silent

	CommunityKey [32]byte // zero: the open network
	Listen       []string // URIs; without an udp:// one, an UDP port of the system's choice is opened
	Peers        []Peer
	Multicast    Multicast
	Rates        []InterfaceRate // of links by interface; the first that fits counts
	LANCap       int             // with more nodes than this on a LAN, link to some of them only; zero: link to all

	Introductions Introductions

	Control  Control  // of the sockets that lead to neighbours; nil: none
	Underlay Underlay // nil: System(Control)
}

// Introductions say what a node does not do with nodes that share a neighbour with it.
type Introductions struct {
	Refuse bool // never be introduced to somebody who asks for it
	Silent bool // never introduce neighbours to one another
}

// Multicast configures discovery.
type Multicast struct {
	Enabled    bool
	Interfaces []string // patterns as of path.Match; empty: all
	Exclude    []string // patterns; stronger than Interfaces
}

// Peer is a neighbour that the operator names.
type Peer struct {
	URI        string          // udp://host:port, tls://host:port or wss://host[:port]/path
	Key        ident.PublicKey // zero: whoever answers there
	Multiplier int             // of the cost, in thousandths; zero: 1000
	Metered    bool
	Rate       int64 // bits/s that this node sends to it, with UDP and IP headers; zero: as Config.Rates say, else unbounded
}

// Handler gets what happens on links. The calls for one link are serial, LinkUp first and LinkDown last; a call may block
// for a while, and holds up only that link's control messages. It may call any method of the link.
type Handler interface {
	LinkUp(l *Link)
	LinkChanged(l *Link)
	LinkDown(l *Link, reason error)
	Control(l *Link, class byte, msg []byte)
}

// Manager keeps the links of one node.
type Manager struct {
	cfg       Config
	self      ident.PublicKey
	community ident.Community
	instance  uint64
	tls       *tls.Config
	start     time.Time
	under     Underlay

	run       context.Context // of Serve, for links, which outlive the calls that make them
	readers   *sync.WaitGroup // of Serve: who reads sockets and streams
	mux       *mux
	transport *quic.Transport
	links     sync.WaitGroup // connections, dials, and whoever starts them
	nextID    atomic.Uint32
	halfOpen  atomic.Int32
	kick      chan struct{} // wakes the pulse
	disc      *discovery
	intro     *introductions
	keep      *keeper

	mu       sync.Mutex // guards what follows; taken before Link.mu, never while a Handler runs
	serving  bool
	dialing  bool // peers have been started
	byKey    map[ident.PublicKey]*Link
	claims   map[ident.PublicKey]*claim
	peers    map[string]*peerState
	carriers map[uint16]carrier
	sockets  []*boundSocket
	listens  []Listener
	nextVia  uint16
	streams  map[*stream]struct{}
	closers  []io.Closer // of stream listeners
	draining bool        // no new streams
	ifaces   map[int]Interface
	refusals []Refusal
}

// Refusal is somebody who wanted a link and did not get one.
type Refusal struct {
	Key      ident.PublicKey
	Endpoint string
	Reason   string
	Time     time.Time
	Count    int
}

// Listener is a place where neighbours can dial this node.
type Listener struct {
	URI  string // as configured
	Port uint16 // really bound
}

const maxRefusals = 32

// New checks the configuration. It opens nothing: Serve does.
func New(cfg Config) (*Manager, error) {
	if cfg.Agent == nil || cfg.Plane == nil || cfg.Handler == nil {
		return nil, errors.New("link: Agent, Plane and Handler are required")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Underlay == nil {
		cfg.Underlay = System(cfg.Control)
	}
	for _, l := range cfg.Listen {
		if _, err := parseURI(l, true); err != nil {
			return nil, err
		}
	}
	if err := checkPatterns(append(slices.Clone(cfg.Multicast.Interfaces), cfg.Multicast.Exclude...)); err != nil {
		return nil, err
	}
	if err := checkRates(cfg.Rates); err != nil {
		return nil, err
	}
	cert, err := cfg.Agent.Certificate()
	if err != nil {
		return nil, err
	}
	var seed [8]byte
	rand.Read(seed[:])
	m := &Manager{
		cfg: cfg, self: cfg.Agent.Public(), community: ident.SharedKey(cfg.CommunityKey), instance: binary.BigEndian.Uint64(seed[:]),
		tls: tlsConfig(cert), start: time.Now(), under: cfg.Underlay,
		byKey: map[ident.PublicKey]*Link{}, claims: map[ident.PublicKey]*claim{}, peers: map[string]*peerState{},
	}
	m.intro, m.keep = newIntroductions(m), newKeeper(m)
	for _, p := range cfg.Peers {
		if err := m.AddPeer(p); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// boundSocket is an open UDP socket with its number.
type boundSocket struct {
	Socket
	via uint16
	at  netip.AddrPort
}

func (s *boundSocket) String() string { return "udp" }

// Serve opens the sockets and keeps links until ctx ends, then says good-bye to the neighbours and returns nil. It may be
// called again afterwards.
func (m *Manager) Serve(ctx context.Context) (err error) {
	m.mu.Lock()
	if m.serving {
		m.mu.Unlock()
		return errors.New("link: Serve runs already")
	}
	m.serving = true
	m.mu.Unlock()

	run, cancel := context.WithCancelCause(ctx)
	var readers sync.WaitGroup
	m.mu.Lock()
	m.run, m.readers, m.mux, m.kick = run, &readers, newMux(), make(chan struct{}, 1)
	m.carriers, m.sockets, m.listens, m.nextVia = map[uint16]carrier{}, nil, nil, firstStreamVia
	m.streams, m.closers, m.draining = map[*stream]struct{}{}, nil, false
	m.mu.Unlock()
	defer func() {
		cancel(nil)
		m.mu.Lock()
		m.dialing = false
		m.mu.Unlock()
		m.links.Wait() // links end with the run context and say good-bye while sockets still work
		if m.transport != nil {
			m.transport.Close()
		}
		m.mux.Close()
		m.mu.Lock()
		m.serving = false
		sockets := m.sockets
		m.mu.Unlock()
		for _, s := range sockets {
			s.Close()
		}
		m.closeStreams()
		readers.Wait()
	}()

	if err := m.refreshInterfaces(); err != nil {
		return err
	}
	if err := m.openSockets(); err != nil {
		return err
	}
	for _, s := range m.sockets {
		readers.Go(func() {
			if err := m.read(s); err != nil {
				cancel(err)
			}
		})
	}
	m.transport = &quic.Transport{
		Conn: m.mux, ConnectionIDLength: 8, StatelessResetKey: m.resetKey(),
		VerifySourceAddress: func(net.Addr) bool { return m.halfOpen.Load() >= retryFrom },
		ConnContext:         m.connContext,
	}
	ln, err := m.transport.Listen(m.tls, quicConfig())
	if err != nil {
		return fmt.Errorf("listen for control connections: %w", err)
	}
	m.links.Go(func() { m.acceptLoop(run, ln) })
	m.links.Go(func() { m.pulse(run) })
	m.links.Go(func() { m.keep.run(run) })
	if err := m.listenStreams(cancel); err != nil {
		return err
	}
	if m.cfg.Multicast.Enabled {
		if d, err := newDiscovery(m); err != nil { // a host without IPv6 still has its configured peers
			m.cfg.Log.Warn("no discovery on LANs", "err", err)
		} else {
			m.mu.Lock()
			m.disc = d
			m.mu.Unlock()
			m.links.Go(func() { d.run(run) })
			readers.Go(d.read)
		}
	}
	m.links.Go(func() {
		if err := m.under.Watch(run, m.interfacesChanged); err != nil {
			m.cfg.Log.Warn("interface changes go unnoticed", "err", err)
		}
	})
	m.mu.Lock()
	m.dialing = true
	for _, p := range m.peers {
		m.startPeerLocked(p)
	}
	m.mu.Unlock()

	<-run.Done()
	if cause := context.Cause(run); ctx.Err() == nil && cause != nil {
		return cause
	}
	return nil
}

// resetKey is the same at every start, so that a neighbour's QUIC learns at its next packet that this node restarted.
func (m *Manager) resetKey() *quic.StatelessResetKey {
	own := m.cfg.Agent.X25519()
	secret, err := m.cfg.Agent.DH(own[:]) // only this key's owner can compute it
	if err != nil {
		return nil
	}
	h := sha256.Sum256(append([]byte("weft/quic-reset/1\x00"), secret...))
	return (*quic.StatelessResetKey)(&h)
}

func (m *Manager) openSockets() error {
	var at []netip.AddrPort
	var uris []string
	for _, l := range m.cfg.Listen {
		u, err := parseURI(l, true)
		if err != nil {
			return err
		}
		if u.scheme == "udp" {
			ap, err := m.listenAddr(u)
			if err != nil {
				return err
			}
			at, uris = append(at, ap), append(uris, l)
		}
	}
	if len(at) == 0 {
		at, uris = append(at, netip.AddrPort{}), append(uris, "udp://[::]:0")
	}
	for i, ap := range at {
		s, err := m.under.Open(ap, m.unreachable)
		if err != nil {
			return fmt.Errorf("%s: %w", uris[i], err)
		}
		b := &boundSocket{Socket: s, via: uint16(i), at: ap}
		m.mu.Lock()
		m.sockets = append(m.sockets, b)
		m.carriers[b.via] = b
		m.listens = append(m.listens, Listener{uris[i], s.LocalPort()})
		m.mu.Unlock()
	}
	return nil
}

// read is the loop of one socket: the packet path begins here.
func (m *Manager) read(s *boundSocket) error {
	rx := m.cfg.Plane.NewReceiver()
	msgs := newBatch()
	for {
		n, err := s.Receive(msgs)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		for i := range msgs[:n] {
			msgs[i].From.Via = s.via
			m.dispatch(rx, s, msgs[i].From, msgs[i].Buf[:msgs[i].N], msgs[i].Seg)
		}
		rx.Flush()
	}
}

// dispatch parts control from data. One GRO read may hold both: runs of data go to the packet path as they are, or nowhere
// when rx is nil.
func (m *Manager) dispatch(rx *forward.Receiver, via carrier, from forward.Endpoint, buf []byte, seg int) {
	if seg <= 0 {
		return
	}
	start := 0
	for at := 0; at < len(buf); at += seg {
		control := wire.IsQUIC(buf[at])
		if !control && !isKnock(buf[at]) {
			continue
		}
		if start < at && rx != nil {
			rx.Receive(from, buf[start:at], seg)
		}
		end := min(at+seg, len(buf))
		if control {
			m.mux.deliver(from, via, buf[at:end])
		} else {
			m.intro.knocked(from, buf[at:end])
		}
		start = end
	}
	if start < len(buf) && rx != nil {
		rx.Receive(from, buf[start:], seg)
	}
}

// connContext bounds the handshakes that others began.
func (m *Manager) connContext(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	if m.halfOpen.Add(1) > maxHalfOpen {
		m.halfOpen.Add(-1)
		return nil, errBusy
	}
	p := info.RemoteAddr.(*path)
	held := m.mux.hold(p.canonical())
	h := &halfOpen{}
	h.done = func() { h.once.Do(func() { m.halfOpen.Add(-1) }) }
	context.AfterFunc(ctx, func() {
		h.done()
		m.mux.release(held)
	})
	return context.WithValue(ctx, halfOpenKey{}, h), nil
}

type (
	halfOpenKey struct{}
	halfOpen    struct {
		once sync.Once
		done func()
	}
)

func (m *Manager) acceptLoop(ctx context.Context, ln *quic.Listener) {
	defer ln.Close()
	for {
		conn, err := ln.Accept(ctx)
		if err != nil {
			return
		}
		m.links.Go(func() {
			p := m.mux.hold(conn.RemoteAddr().(*path).canonical())
			m.accept(ctx, conn, p)
			if h, ok := conn.Context().Value(halfOpenKey{}).(*halfOpen); ok {
				h.done()
			}
		})
	}
}

// pulse looks at all links, five times a second or when a link wants it sooner; not at all when there is none.
func (m *Manager) pulse(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.kick:
		case <-timer.C:
		}
		links := m.Links()
		now := time.Now()
		next := time.Time{}
		for _, l := range links {
			if t := l.tick(now); next.IsZero() || t.Before(next) {
				next = t
			}
		}
		if next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(time.Until(next), burstEvery/4))
		}
	}
}

func (m *Manager) kickPulse() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// Links returns the links that are up.
func (m *Manager) Links() []*Link {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := slices.SortedFunc(maps.Values(m.byKey), func(a, b *Link) int { return cmp.Compare(a.id, b.id) })
	return slices.DeleteFunc(all, func(l *Link) bool { return l.ctx.Err() != nil })
}

// LinkTo returns the link with a neighbour, or nil.
func (m *Manager) LinkTo(peer ident.PublicKey) *Link {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.byKey[peer]; l != nil && l.ctx.Err() == nil {
		return l
	}
	return nil
}

// Listeners says where neighbours can dial this node, with the ports that were really bound.
func (m *Manager) Listeners() []Listener {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.listens)
}

// Refusals returns the last ones that were turned away, newest last.
func (m *Manager) Refusals() []Refusal {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.refusals)
}

func (m *Manager) refused(key ident.PublicKey, ep forward.Endpoint, err error) {
	m.cfg.Log.Debug("link refused", "peer", key.ID(), "endpoint", ep.AddrPort(), "reason", err)
	m.mu.Lock()
	defer m.mu.Unlock()
	r := Refusal{Key: key, Endpoint: ep.AddrPort().String(), Reason: err.Error(), Time: time.Now(), Count: 1}
	for i, old := range m.refusals {
		if old.Key == key && old.Reason == r.Reason {
			r.Count += old.Count
			m.refusals = slices.Delete(m.refusals, i, i+1)
			break
		}
	}
	if len(m.refusals) == maxRefusals {
		m.refusals = slices.Delete(m.refusals, 0, 1)
	}
	m.refusals = append(m.refusals, r)
}

// forget drops a link that is torn down.
func (m *Manager) forget(l *Link) {
	m.mu.Lock()
	was := m.byKey[l.peer] == l
	if was {
		delete(m.byKey, l.peer)
	}
	d := m.disc
	m.mu.Unlock()
	m.intro.linkDown(l)
	if was && d != nil {
		d.linkDown(l)
	}
}

// carrier finds a socket or stream by its number.
func (m *Manager) carrier(via uint16) carrier {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.carriers[via]
}

// socketFor picks the socket to dial an address from.
func (m *Manager) socketFor(a netip.Addr) *boundSocket {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.socketForLocked(a)
}

func (m *Manager) socketForLocked(a netip.Addr) *boundSocket {
	for _, s := range m.sockets {
		bound := s.at.Addr()
		if !bound.IsValid() || bound == netip.IPv6Unspecified() || bound.Is4() == a.Is4() {
			return s
		}
	}
	return nil
}

func (m *Manager) rankOf(w way) int {
	switch {
	case w.ep.Via >= firstStreamVia:
		return rankStream
	case w.ep.Scope != 0:
		return rankLAN
	}
	return rankRouted
}

// pathMTU returns the interface that a path leaves by (zero when unknown), the UDP payload that fits, and whether routers are
// on the way.
func (m *Manager) pathMTU(ep forward.Endpoint, via carrier) (iface, mtu int, far bool) {
	if ep.Via >= firstStreamVia {
		return 0, defaultPathMTU, false
	}
	i, onLink, err := m.under.Route(ep)
	if err != nil {
		return 0, defaultPathMTU, true
	}
	mtu = i.MTU - 48
	if !onLink {
		mtu = min(mtu, defaultPathMTU) // a jumbo frame may not survive the next hop
	}
	return i.Index, min(max(mtu, minPathMTU), maxPathMTU), !onLink
}

// roamed follows up on a neighbour that moved: another interface, perhaps a smaller MTU.
func (m *Manager) roamed(l *Link) {
	l.spawn(func() { // asks the kernel: not on the reader's goroutine
		d := l.path.to.Load()
		iface, mtu, far := m.pathMTU(d.ep, d.via)
		l.iface.Store(int64(iface))
		l.far.Store(far)
		l.shape()
		l.mu.Lock()
		narrower := mtu < l.pathMTU
		if narrower {
			l.pathMTU = mtu
		}
		l.mu.Unlock()
		l.log.Info("neighbour moved", "endpoint", l.Endpoint())
		m.intro.greet(l, false)
		if narrower {
			l.changed()
		}
	})
}

// unreachable is told by sockets that an endpoint refused a datagram. ICMP can be forged, so it only makes us look.
func (m *Manager) unreachable(ep forward.Endpoint) {
	for _, l := range m.Links() {
		if d := l.path.to.Load().ep; d.IP == ep.IP && d.Port == ep.Port && (ep.Scope == 0 || d.Scope == ep.Scope) {
			l.Suspect()
		}
	}
}

// hasCarrier asks for an interface's carrier; where that cannot be known it has one.
func (m *Manager) hasCarrier(iface int) bool {
	m.mu.Lock()
	i, ok := m.ifaces[iface]
	var c carrierChecker
	if len(m.sockets) > 0 {
		c, _ = m.sockets[0].Socket.(carrierChecker)
	}
	m.mu.Unlock()
	return !ok || c == nil || c.Carrier(i.Name)
}

func (m *Manager) refreshInterfaces() error {
	list, err := m.under.Interfaces()
	if err != nil {
		return err
	}
	byIndex := make(map[int]Interface, len(list))
	for _, i := range list {
		byIndex[i.Index] = i
	}
	m.mu.Lock()
	m.ifaces = byIndex
	m.mu.Unlock()
	return nil
}

// interfacesChanged takes links on interfaces that went down, down at once, unless they have another way.
func (m *Manager) interfacesChanged(down []int) {
	for _, l := range m.Links() {
		if i := int(l.iface.Load()); i != 0 && slices.Contains(down, i) && !l.roam(down) {
			l.die(errCarrier)
		}
	}
	m.mu.Lock()
	before := m.ifaces
	m.mu.Unlock()
	if m.refreshInterfaces() != nil {
		return
	}
	m.mu.Lock()
	after, d := m.ifaces, m.disc
	gained := false
	for i, now := range after {
		was := before[i]
		gained = gained || now.Running && (!was.Running || !slices.Equal(was.Addrs, now.Addrs))
	}
	if gained {
		for _, p := range m.peers {
			p.hurry()
		}
	}
	m.mu.Unlock()
	for _, l := range m.Links() {
		i := int(l.iface.Load())
		switch was, now := before[i], after[i]; {
		case was.Running && !now.Running:
			if !l.roam([]int{i}) {
				l.die(errCarrier)
			}
		case i != 0 && !sameAddrs(was.Addrs, now.Addrs):
			l.readdress(now)
		case l.rank == rankRouted:
			l.rerouted()
		}
		l.shape() // it may leave by another interface now
	}
	if gained {
		m.intro.movedAway()
		m.keep.reset()
	}
	if d != nil {
		d.interfacesChanged()
	}
}

func sameAddrs(a, b []netip.Prefix) bool { return slices.Equal(a, b) }

// readdress looks whether a link still has a way after its interface's addresses changed. A link-local path needs only
// the interface; another one needs a route.
func (l *Link) readdress(now Interface) {
	ep := l.path.to.Load().ep
	if ep.Scope != 0 {
		if !slices.ContainsFunc(now.Addrs, func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() && p.Addr().Is6() }) {
			l.die(errCarrier)
		}
		return
	}
	if l.rank == rankStream {
		l.Suspect()
	} else if !l.roam(nil) {
		l.die(errCarrier)
	}
}

// roam keeps a link over a routed path whose way out has changed: the neighbour learns the new one from the next probe, which
// goes out at once, and no handshake is needed. It reports whether there is a way that does not use the interfaces gone.
func (l *Link) roam(gone []int) bool {
	if l.rank != rankRouted {
		return false
	}
	via, onLink, err := l.m.under.Route(l.path.to.Load().ep)
	if err != nil || slices.Contains(gone, via.Index) {
		return false
	}
	l.iface.Store(int64(via.Index))
	l.far.Store(!onLink)
	l.log.Info("this node moved", "interface", via.Name, "endpoint", l.Endpoint())
	if l.met.Load() {
		l.Suspect() // a NAT before the neighbour does not know this node's new place: find out soon
	}
	l.mu.Lock()
	l.live.nextIdle = time.Now()
	l.mu.Unlock()
	l.m.kickPulse()
	return true
}

// rerouted looks whether the system sends the link's datagrams another way now.
func (l *Link) rerouted() {
	i := l.iface.Load()
	if via, _, err := l.m.under.Route(l.path.to.Load().ep); err == nil && int64(via.Index) != i {
		l.roam(nil)
	}
}

func (m *Manager) interfaceName(index int) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ifaces[index].Name
}

// Heard is a node whose beacon arrived.
type Heard struct {
	Key       ident.PublicKey
	Interface string
	Endpoint  string
	Member    bool // of this node's community, as far as the beacon says
	Linked    bool
	Chosen    bool // by the LAN cap
	Last      time.Time
	Error     string // of the last dial
}

// Heard returns the nodes on the LANs around.
func (m *Manager) Heard() []Heard {
	m.mu.Lock()
	d := m.disc
	m.mu.Unlock()
	if d == nil {
		return nil
	}
	return d.list()
}

// WantDirect asks for a direct link with a node on the LAN that the LAN cap left out, because traffic flows to it. The
// link goes away when it has been idle for some minutes.
func (m *Manager) WantDirect(key ident.PublicKey) {
	m.mu.Lock()
	d, l := m.disc, m.byKey[key]
	m.mu.Unlock()
	if l != nil {
		l.mu.Lock()
		l.wanted = time.Now()
		l.mu.Unlock()
		return
	}
	if d != nil {
		d.want(key)
	}
}

func equal(a, b [32]byte) bool { return hmac.Equal(a[:], b[:]) }
