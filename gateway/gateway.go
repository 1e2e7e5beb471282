// Package gateway shares internet lines: it offers this node's line to others and leases addresses to them, says what they
// may send and how much, and on the other side chooses a gateway, keeps a second one in reserve and moves to it within
// three seconds when the first fails. docs/spec/gateway.md is its protocol.
//
// A [Gateway] is both sides. It has no socket: session gives it what the host sends outside ([Gateway.FromHost]), what
// peers send outside ([Gateway.FromPeer]) and messages ([Gateway.Handle]); it sends through a [Carrier], writes to a
// [tun.Writer], and tells node by callbacks what to announce and how to set up the host. gateway/host, gateway/exit and
// dns do what it says.
//
//	                       client                                          gateway
//	host ─ FromHost: the lease's addresses? ─ session ───▶ FromPeer: lease, source, Policy, flows ─ (queue) ─▶ host, internet
//	host ◀ FromPeer: firewall: an answer? ─── session ◀─── FromHost: whose address? ────────────── (queue) ─┘
//
// A client that owes ([Gateway.Throttle]) waits in a queue of its own before those of the line; one goroutine empties them all.
//
// FromHost and FromPeer may be called from many goroutines at once; they never block and allocate nothing, except that what
// has to wait is copied. All else happens in Serve, which runs until its context ends and has waited for its goroutines
// then; Changed and Announce come from it, one at a time, with no lock held. Every method is safe for concurrent use.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"weft/gateway/nat64"
	"weft/ident"
	"weft/tun"
)

// Carrier is what session does for this package; a *session.Manager is one.
type Carrier interface {
	SendOutside(peer ident.PublicKey, pkts ...tun.Packet) error
	SendMessage(peer ident.PublicKey, channel byte, payload []byte) error
	Ping(ctx context.Context, peer ident.PublicKey) (time.Duration, error)
}

// Filter is this node's own firewall towards the internet; firewall.Outside is one.
type Filter interface {
	Out(ip []byte)
	In(ip []byte) bool
}

// Config is what a Gateway needs. Functions are called from Serve's goroutines and must not call the Gateway, Candidates,
// Member and Name least of all: a lock is held then.
type Config struct {
	Self    ident.PublicKey
	Log     *slog.Logger
	Carrier Carrier
	Filter  Filter            // nil: what comes from gateways is not filtered
	Host    func() tun.Writer // a writer for packets that waited or were made here, of the device that session reads outside packets from

	Candidates func() []Candidate           // gateways in the routing table that can be reached; not this node
	Member     func(ident.PublicKey) Tier   // nil: everybody is a member of weight 1
	Changed    func(Use)                    // the lease in force changed: set up host, netstack and DNS
	Announce   func(offer []byte)           // for the LSA; nil: nothing is offered
	Name       func(ident.PublicKey) string // of a client, for people; may be nil
	LeaseLog   LogConfig

	// Ended is told of addresses that clients have given back, a second later at most: IPv4 addresses, mesh addresses and, by their
	// first address, /64s. Whoever gets an IPv4 address next must not inherit its connections, so until Ended returns nobody else does;
	// and what no client waits for must not take others' places. One call at a time; nil: there are none to inherit.
	Ended func(addrs []netip.Addr)
}

// Gateway shares and uses internet lines.
type Gateway struct {
	cfg    Config
	log    *leaseLog
	start  time.Time
	sec    atomic.Uint32 // seconds since start, plus one
	wake   chan struct{}
	inbox  chan inMessage
	pongs  chan pong
	news   chan struct{}
	self   addr   // this node's mesh address
	selfN  uint64 // and the upper half of its /64
	dead   atomic.Uint64
	counts [reasons]atomic.Uint64 // refused packets of both directions
	noties *rate.Limiter          // notices to those without a lease
	fresh  *rate.Limiter          // new leases for those who are no members

	leases  *leases
	policy  atomic.Pointer[Policy]
	table64 atomic.Pointer[translator]
	up      *line // to the host
	down    *line // to peers
	held    *throttles

	mu      sync.Mutex // guards what follows; taken before leases.mu and lease.mu
	offer   *OfferConfig
	local   []netip.Prefix
	gen     uint32
	uplink  uplink
	load    uint8
	loadAt  time.Time
	loadUse [2]uint64 // bytes at loadAt
	ids     uint32
	out     []outMessage
	probes  []probeOut
	repeats []repeat
	said    []byte // announced last
	toldUse bool   // client.said has been told
	client  client

	inMu    sync.Mutex              // guards what follows; taken last
	pending map[ident.PublicKey]int // messages in inbox
	serving bool
}

type translator struct {
	prefix nat64.Prefix
	table  *nat64.Table
	mtu    uint16        // of what goes to clients
	id     atomic.Uint32 // of fragments
}

// speed is a rate of bytes, looked at once a second and smoothed.
type speed struct {
	last, perSecond uint64
}

func (s *speed) look(bytes, seconds uint64) {
	now := (bytes - s.last) / max(seconds, 1)
	s.last = bytes
	s.perSecond = (s.perSecond + now) / 2
}

// uplink is the state of the own line.
type uplink struct {
	four, six   bool
	known       bool
	back        time.Time // since when it is there again; announced after it has lasted
	count4, cn6 bool      // what is announced
}

// uplinkSettle is how long a line that was lost must be back to be offered again.
const uplinkSettle = 5 * time.Second

type inMessage struct {
	peer ident.PublicKey
	m    message
	lost bool // no message: the peer sent outside packets without a lease
}

type outMessage struct {
	to      ident.PublicKey
	payload []byte
}

type pong struct {
	peer  ident.PublicKey
	rtt   time.Duration
	ok    bool
	probe bool
}

type probeOut struct {
	peer  ident.PublicKey
	limit time.Duration
	probe bool
}

// repeat is a notice that is said again, since it may be lost.
type repeat struct {
	to      ident.PublicKey
	payload []byte
	at      time.Time
	left    int
}

const (
	noticeTimes = 3
	noticeEvery = 250 * time.Millisecond
	perPeer     = 4 // messages of one peer that may wait
	maxInbox    = 512
)

// New makes a Gateway that offers and uses nothing yet.
func New(cfg Config) (*Gateway, error) {
	if cfg.Self.IsZero() || cfg.Carrier == nil || cfg.Host == nil || cfg.Log == nil {
		return nil, errors.New("a gateway needs a key, a carrier, a host and a logger")
	}
	if cfg.Member == nil {
		cfg.Member = func(ident.PublicKey) Tier { return Tier{Member: true, Weight: 1} }
	}
	if cfg.Candidates == nil {
		cfg.Candidates = func() []Candidate { return nil }
	}
	g := &Gateway{
		cfg: cfg, start: time.Now(), wake: make(chan struct{}, 1), inbox: make(chan inMessage, maxInbox), pongs: make(chan pong, 64),
		news: make(chan struct{}, 1), leases: newLeases(), pending: map[ident.PublicKey]int{}, ids: rand.Uint32(),
		self: addrOf(cfg.Self.Addr()), selfN: addrOf(cfg.Self.Subnet().Addr()).hi,
		noties: rate.NewLimiter(20, 40), fresh: rate.NewLimiter(50, 100),
	}
	var err error
	if g.log, err = newLeaseLog(cfg.LeaseLog); err != nil {
		return nil, err
	}
	if cfg.Ended != nil {
		g.leases.resting = map[addr]ident.PublicKey{}
	}
	g.sec.Store(1)
	g.client.back = map[ident.PublicKey]backoff{}
	g.client.choice = Choice{Mode: Off, Want: wantDefault, PriceWeight: defaultPriceWeight}
	none, err := NewPolicy(nil, nil, netip.Prefix{})
	if err != nil {
		return nil, err
	}
	g.policy.Store(none)
	g.up, g.down, g.held = newLine(g.emitUp), newLine(g.emitDown), newThrottles(g)
	return g, nil
}

func (g *Gateway) kick() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

func (g *Gateway) tell() {
	g.toldUse = false
	select {
	case g.news <- struct{}{}:
	default:
	}
}

// Serve runs the gateway until ctx ends. Then clients are told, and gateways that this node used; Changed is not called.
func (g *Gateway) Serve(ctx context.Context) error {
	g.inMu.Lock()
	if g.serving {
		g.inMu.Unlock()
		return errors.New("the gateway runs already")
	}
	g.serving = true
	g.inMu.Unlock()
	grp, ctx := errgroup.WithContext(ctx)
	grp.Go(func() error { return g.up.shaper.Serve(ctx) })
	grp.Go(func() error { return g.down.shaper.Serve(ctx) })
	grp.Go(func() error { g.held.serve(ctx); return nil })
	grp.Go(func() error { g.callbacks(ctx); return nil })
	grp.Go(func() error { g.loop(ctx, grp); return nil })
	if g.cfg.Ended != nil {
		grp.Go(func() error { g.endings(ctx); return nil })
	}
	err := grp.Wait()
	g.inMu.Lock()
	g.serving = false
	g.inMu.Unlock()
	return err
}

func (g *Gateway) loop(ctx context.Context, grp *errgroup.Group) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			g.shutdown()
			return
		case <-timer.C:
		case <-g.wake:
		case m := <-g.inbox:
			g.take(&m)
		case p := <-g.pongs:
			g.mu.Lock()
			g.pong(p.peer, p.rtt, p.ok, p.probe, time.Now())
			g.mu.Unlock()
		}
		g.mu.Lock()
		now := time.Now()
		next := earliest(g.clientStep(now), g.serverStep(now))
		g.mu.Unlock()
		g.flush(ctx, grp)
		timer.Reset(max(time.Until(next), time.Millisecond))
	}
}

// flush sends what the step decided to, with no lock held.
func (g *Gateway) flush(ctx context.Context, grp *errgroup.Group) {
	g.mu.Lock()
	out, probes := g.out, g.probes
	g.out, g.probes = nil, nil
	g.mu.Unlock()
	for _, o := range out {
		// An error is no route: the message is lost like any other.
		_ = g.cfg.Carrier.SendMessage(o.to, Channel, o.payload)
	}
	for _, p := range probes {
		grp.Go(func() error {
			pctx, cancel := context.WithTimeout(ctx, p.limit)
			defer cancel()
			rtt, err := g.cfg.Carrier.Ping(pctx, p.peer)
			select {
			case g.pongs <- pong{p.peer, rtt, err == nil, p.probe}:
			case <-ctx.Done():
			}
			return nil
		})
	}
	g.log.flush()
}

// callbacks tells node, always the latest state.
func (g *Gateway) callbacks(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.news:
		}
		g.mu.Lock()
		use, tellUse := g.client.said, !g.toldUse && g.client.started
		g.toldUse = true
		offer := g.offerBytesLocked()
		tellOffer := string(offer) != string(g.said)
		g.said = offer
		g.mu.Unlock()
		if tellUse && g.cfg.Changed != nil {
			g.cfg.Changed(use)
		}
		if tellOffer && g.cfg.Announce != nil {
			g.cfg.Announce(offer)
		}
	}
}

// endings has the connections ended of addresses that were given back, all of a second together: it may be dear.
func (g *Gateway) endings(ctx context.Context) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	var done []netip.Addr
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if done = g.leases.rested(done); len(done) > 0 {
			g.cfg.Ended(done)
		}
	}
}

func (g *Gateway) shutdown() {
	g.mu.Lock()
	for _, h := range g.client.held {
		if h.granted {
			g.send(h.c.Key, &message{kind: msgRelease, id: g.nextID()})
		}
	}
	g.client.held, g.client.active = nil, nil
	g.client.use.Store(nil)
	g.client.said, g.client.started = Use{}, false
	for _, l := range g.leases.all() {
		g.send(l.key, &message{kind: msgNotice, id: g.nextID(), code: CodeClosing})
		g.endLease(l, time.Now())
	}
	out := g.out
	g.out, g.probes, g.repeats, g.said = nil, nil, nil, nil
	g.mu.Unlock()
	for _, o := range out {
		_ = g.cfg.Carrier.SendMessage(o.to, Channel, o.payload)
	}
	g.log.flush()
}

func (g *Gateway) nextID() uint32 {
	if g.ids++; g.ids == 0 {
		g.ids = 1
	}
	return g.ids
}

// send queues a message; g.mu is held.
func (g *Gateway) send(to ident.PublicKey, m *message) {
	g.out = append(g.out, outMessage{to, m.appendTo(nil)})
}

// notice sends a message that is repeated, since there is no answer to it.
func (g *Gateway) notice(to ident.PublicKey, code Code, left Families, now time.Time) {
	m := message{kind: msgNotice, id: g.nextID(), code: code, families: left}
	b := m.appendTo(nil)
	g.out = append(g.out, outMessage{to, b})
	g.repeats = append(g.repeats, repeat{to, b, now.Add(noticeEvery), noticeTimes - 1})
}

func (g *Gateway) ping(key ident.PublicKey, limit time.Duration) {
	g.probes = append(g.probes, probeOut{key, limit, false})
}

func (g *Gateway) pingProbe(key ident.PublicKey, limit time.Duration) {
	g.probes = append(g.probes, probeOut{key, limit, true})
}

// Handle takes a message that came on Channel. It does not block and keeps nothing of payload.
func (g *Gateway) Handle(peer ident.PublicKey, payload []byte) {
	m, _, err := parseMessage(payload)
	if err != nil {
		g.dead.Add(1)
		return
	}
	g.post(inMessage{peer: peer, m: m})
}

// post queues for the loop, a few of each peer.
func (g *Gateway) post(m inMessage) {
	g.inMu.Lock()
	full := g.pending[m.peer] >= perPeer || !g.serving
	if !full {
		select {
		case g.inbox <- m:
			g.pending[m.peer]++
		default:
			full = true
		}
	}
	g.inMu.Unlock()
	if full {
		g.dead.Add(1)
	}
}

// take deals with a message from the queue.
func (g *Gateway) take(in *inMessage) {
	g.inMu.Lock()
	if g.pending[in.peer]--; g.pending[in.peer] <= 0 {
		delete(g.pending, in.peer)
	}
	g.inMu.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	switch {
	case in.lost:
		g.send(in.peer, &message{kind: msgNotice, id: g.nextID(), code: CodeLeaseEnded})
	case in.m.kind == msgRequest:
		g.send(in.peer, g.request(in.peer, &in.m, now))
	case in.m.kind == msgRelease:
		if l := g.leases.of(in.peer); l != nil {
			g.endLease(l, now)
		}
	default:
		g.fromGateway(in.peer, &in.m, now)
	}
}

// Offer shares this node's line from now on, or changes how. On an error nothing changes.
func (g *Gateway) Offer(c OfferConfig) error {
	c.Rules = slices.Clone(c.Rules)
	if err := c.check(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	pol, err := NewPolicy(c.Rules, g.local, c.NAT64)
	if err != nil {
		return err
	}
	var tr *translator
	if c.NAT64.IsValid() {
		if tr = g.table64.Load(); tr == nil || tr.prefix.Prefix() != c.NAT64 || tr.mtu != c.MTU || g.offer == nil || g.offer.Pool != c.Pool {
			tr = &translator{mtu: c.MTU}
			if tr.prefix, err = nat64.NewPrefix(c.NAT64); err != nil {
				return err
			}
			if tr.table, err = g.leases.translation(c.Pool); err != nil {
				return err
			}
			g.leases.mu.Lock()
			clear(g.leases.taken) // by the table before
			g.leases.mu.Unlock()
		}
	}
	now := time.Now()
	old := g.offer
	g.offer = &c
	g.setPolicy(pol)
	g.table64.Store(tr)
	share := int64(100 - c.ReservePercent)
	g.up.setRate(int64(c.UpKbps) * 1000 * share / 100)
	g.down.setRate(int64(c.DownKbps) * 1000 * share / 100)
	for _, l := range g.leases.all() {
		if old.Pool != c.Pool || old.Routed != c.Routed { // its addresses are no more
			g.endLease(l, now)
		}
		g.notice(l.key, CodeTerms, g.liveFamilies(), now)
	}
	g.tell()
	g.kick()
	return nil
}

// StopOffer ends sharing: clients are told and leave at once.
func (g *Gateway) StopOffer() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.offer == nil {
		return
	}
	g.offer = nil
	now := time.Now()
	for _, l := range g.leases.all() {
		g.notice(l.key, CodeNoOffer, 0, now)
		g.endLease(l, now)
	}
	g.table64.Store(nil)
	g.up.setRate(0)
	g.down.setRate(0)
	g.tell()
	g.kick()
}

// Use says which gateway this node uses.
func (g *Gateway) Use(c Choice) error {
	if c.MaxPrice != nil {
		p := *c.MaxPrice
		c.MaxPrice = &p
	}
	if err := c.check(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	for _, h := range slices.Clone(g.client.held) {
		if why := c.suits(&h.c); why != "" {
			g.leave(h, now, why, 0, false)
		} else if h.granted && c.Want != g.client.choice.Want {
			h.next, h.id = now, 0
		}
	}
	g.client.choice = c
	clear(g.client.back) // the owner may know more
	if g.client.active == nil {
		g.client.reason = map[bool]string{true: "the owner wants none", false: "none was found yet"}[c.Mode == Off]
		g.publish(now)
	}
	g.client.dirty.Store(true)
	g.kick()
	return nil
}

// CandidatesChanged says that Candidates has something new: call it when the routing table changed.
func (g *Gateway) CandidatesChanged() {
	g.client.dirty.Store(true) // without g.mu: the caller may hold a lock that Candidates takes
	g.kick()
}

// Doubt says that the gateway in use did not answer something that this package does not see, such as a question to its
// resolver, for half a second or so: it is probed now, and left if it is dead.
func (g *Gateway) Doubt() {
	if !g.client.doubt.Swap(true) {
		g.kick()
	}
}

// SetUplink says whether the own line reaches the IPv4 and the IPv6 internet. Until the first call both count as there. When a
// family is lost, clients are told and the offer is changed at once; when it is back, after some seconds.
func (g *Gateway) SetUplink(four, six bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	u := &g.uplink
	if u.known && u.four == four && u.six == six {
		return
	}
	now := time.Now()
	before := g.liveFamilies()
	first := !u.known
	u.known, u.four, u.six = true, four, six
	if first {
		u.count4, u.cn6 = four, six
	} else {
		u.count4, u.cn6 = u.count4 && four, u.cn6 && six
		u.back = now
	}
	if left := g.liveFamilies(); left != before && g.offer != nil {
		for _, l := range g.leases.all() {
			if Families(l.families.Load())&^left != 0 {
				g.notice(l.key, CodeUplinkLost, left, now)
			}
		}
		g.tell()
	}
	g.kick()
}

// SetLocal says which addresses this machine has (as /32 and /128) and which networks it is connected to: clients reach
// neither. Leave out the network of an uplink with public addresses, or its neighbours there are out of reach too.
func (g *Gateway) SetLocal(prefixes []netip.Prefix) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var rules []Rule
	var six netip.Prefix
	if g.offer != nil {
		rules, six = g.offer.Rules, g.offer.NAT64
	}
	pol, err := NewPolicy(rules, prefixes, six)
	if err != nil {
		return err
	}
	g.local = slices.Clone(prefixes)
	g.setPolicy(pol)
	return nil
}

func (g *Gateway) setPolicy(p *Policy) {
	g.gen++
	p.gen = g.gen
	g.policy.Store(p)
}

// liveFamilies are those of the offer that the line has now; 0 when nothing is offered.
func (g *Gateway) liveFamilies() Families {
	if g.offer == nil {
		return 0
	}
	f := g.offer.families()
	if g.uplink.known {
		if !g.uplink.count4 {
			f &^= IPv4 | NAT64
		}
		if !g.uplink.cn6 {
			f &^= IPv6 | IPv6Routed
		}
	}
	if !f.four() && !f.six() {
		return 0
	}
	return f
}

// OfferBytes is what belongs into the LSA; nil when nothing is offered.
func (g *Gateway) OfferBytes() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.offerBytesLocked()
}

func (g *Gateway) offerBytesLocked() []byte {
	if f := g.liveFamilies(); f != 0 {
		return g.offerLocked(f).AppendTo(nil)
	}
	return nil
}

func (g *Gateway) offerLocked(f Families) Offer {
	c := g.offer
	o := Offer{
		Families: f, MembersOnly: c.MembersOnly, Metered: c.Metered, FreeTier: c.MembersOnly && c.FreeTierKbps != 0, SMTPClosed: true, Load: g.load,
		Price: c.Price, DownKbps: uint32(uint64(c.DownKbps) * uint64(100-c.ReservePercent) / 100), UpKbps: uint32(uint64(c.UpKbps) * uint64(100-c.ReservePercent) / 100),
	}
	for _, r := range c.Rules {
		o.Filtered = o.Filtered || r.Deny
		if !r.Deny && !r.Dest.IsValid() && r.Proto != protoUDP && r.Proto != protoICMP &&
			(len(r.Ports) == 0 || slices.ContainsFunc(r.Ports, func(p PortRange) bool { return p.Lo <= 25 && 25 <= p.Hi })) {
			o.SMTPClosed = false
		}
	}
	return o
}

// request answers a client.
func (g *Gateway) request(peer ident.PublicKey, m *message, now time.Time) *message {
	refuse := func(c Code, wait time.Duration, text string) *message {
		return &message{kind: msgRefuse, id: m.id, code: c, lifetime: uint32(wait / time.Second), text: text}
	}
	if g.offer == nil {
		return refuse(CodeNoOffer, time.Minute, "")
	}
	live := g.liveFamilies()
	if live == 0 {
		return refuse(CodeUplinkLost, 10*time.Second, "")
	}
	tier := g.cfg.Member(peer)
	t := &terms{name: tier.Name, member: tier.Member, weight: max(tier.Weight, 1), price: g.offer.Price, limits: tier.Limits.or(g.offer.Limits)}
	switch {
	case tier.Barred:
		return refuse(CodeBarred, time.Hour, tier.Name)
	case !tier.Member && g.offer.MembersOnly && g.offer.FreeTierKbps == 0:
		return refuse(CodeMembers, 10*time.Minute, "ask a member to let you in")
	case !tier.Member && g.offer.MembersOnly:
		t.free, t.price, t.weight = true, 0, 1
		t.limits.DownKbps, t.limits.UpKbps = g.offer.FreeTierKbps, g.offer.FreeTierKbps
	}
	give := live & m.families
	if !give.four() && !give.six() {
		return refuse(CodeFamilies, time.Minute, fmt.Sprintf("there is %v", live))
	}
	l := g.leases.of(peer)
	if l != nil && (give&IPv4 != 0 && !l.v4.IsValid() || give&IPv6Routed != 0 && !l.v6.IsValid()) {
		g.endLease(l, now) // it has not the addresses that are wanted now
		l = nil
	}
	if l == nil {
		n := len(g.leases.byKey) // it changes under g.mu only
		most := g.offer.MaxLeases
		if !tier.Member {
			if !g.fresh.Allow() {
				return refuse(CodeSlowDown, 10*time.Second, "")
			}
			most -= most / 4
		}
		if n >= most {
			return refuse(CodeFull, time.Minute, "")
		}
		if l = g.leases.add(peer, give, g.offer.Pool, g.offer.Routed, m.v4, now); l == nil {
			return refuse(CodeFull, time.Minute, "no address is left")
		}
		g.log.begin(l.key, l.from)
	}
	if give&IPv6Routed != 0 && !l.v6.IsValid() {
		give &^= IPv6Routed
	}
	l.tier.Store(t)
	l.families.Store(uint32(give))
	l.until = now.Add(g.offer.Lifetime + leaseGrace)
	r := &message{
		kind: msgGrant, id: m.id, families: give, lifetime: uint32(g.offer.Lifetime / time.Second), price: t.price, mtu: g.offer.MTU,
		downKbps: t.limits.DownKbps, upKbps: t.limits.UpKbps, flows: t.limits.Flows, newFlows: t.limits.NewFlows, grantBits: bit(t.free, grantFreeTier),
	}
	if give&IPv4 != 0 {
		r.v4 = l.v4
	}
	if give&IPv6Routed != 0 {
		r.v6 = l.v6
	}
	if give&NAT64 != 0 {
		r.nat64 = g.offer.NAT64
	}
	if give&DNS != 0 {
		r.dns = []netip.Addr{g.cfg.Self.Addr()}
	}
	return r
}

func (g *Gateway) endLease(l *lease, now time.Time) {
	g.leases.remove(l)
	if tr := g.table64.Load(); tr != nil {
		tr.table.Release(nat64.Owner(l.key))
	}
	g.log.end(l.key, l.from, now)
}

// serverStep does what is due on the serving side.
func (g *Gateway) serverStep(now time.Time) (next time.Time) {
	next = now.Add(time.Second)
	sec := uint32(now.Sub(g.start)/time.Second) + 1
	if past := sec - g.sec.Load(); past != 0 { // once a second
		g.sec.Store(sec)
		for _, l := range g.leases.all() {
			l.speed[0].look(l.bytesDown.Load(), uint64(past))
			l.speed[1].look(l.bytesUp.Load(), uint64(past))
			if now.After(l.until) {
				g.endLease(l, now)
			}
		}
		if u := g.client.use.Load(); u != nil {
			u.speed[0].look(u.bytesDown.Load(), uint64(past))
			u.speed[1].look(u.bytesUp.Load(), uint64(past))
		}
		if tr := g.table64.Load(); tr != nil {
			tr.table.Tick(now)
		}
		g.measureLoad(now)
		g.log.prune(now)
	}
	if u := &g.uplink; u.known && (u.four != u.count4 || u.six != u.cn6) {
		if settled := u.back.Add(uplinkSettle); now.Before(settled) {
			next = earliest(next, settled)
		} else {
			u.count4, u.cn6 = u.four, u.six
			g.tell()
		}
	}
	for i := range g.repeats {
		if r := &g.repeats[i]; !now.Before(r.at) {
			g.out = append(g.out, outMessage{r.to, r.payload})
			r.left--
			r.at = now.Add(noticeEvery)
		}
	}
	g.repeats = slices.DeleteFunc(g.repeats, func(r repeat) bool { return r.left <= 0 })
	for i := range g.repeats {
		next = earliest(next, g.repeats[i].at)
	}
	return next
}

const loadEvery = 30 * time.Second

// measureLoad says how busy the line is, coarsely and slowly.
func (g *Gateway) measureLoad(now time.Time) {
	if g.offer == nil {
		g.load = 0
		return
	}
	past := now.Sub(g.loadAt)
	if past < loadEvery {
		return
	}
	used := [2]uint64{g.down.bytes.Load(), g.up.bytes.Load()}
	percent := uint64(len(g.leases.byKey)) * 100 / uint64(g.offer.MaxLeases)
	for i, kbps := range []uint32{g.offer.DownKbps, g.offer.UpKbps} {
		if !g.loadAt.IsZero() && kbps != 0 {
			percent = max(percent, (used[i]-g.loadUse[i])*8*100/uint64(past.Milliseconds())/uint64(kbps))
		}
	}
	g.loadAt, g.loadUse = now, used
	if l := loadOf(percent, g.load); l != g.load {
		g.load = l
		g.tell()
	}
}

// loadOf steps up at 25, 50 and 85 percent, and down a little below, so that the announcement stands still.
func loadOf(percent uint64, old uint8) (l uint8) {
	for i, p := range []uint64{25, 50, 85} {
		if uint8(i) < old {
			p -= 10
		}
		if percent >= p {
			l = uint8(i) + 1
		}
	}
	return l
}
