package gateway

import (
	"cmp"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"weft/ident"
)

// What a client believes, and when it acts. docs/spec/gateway.md section 6.
const (
	minMTU      = 1280
	maxMTU      = 9216
	minLifetime = time.Minute
	maxLifetime = 24 * time.Hour

	maxCandidates = 256

	askTries  = 4 // a request goes out after 0, 250, 750 and 1750 ms, and is given up after 3.75 s
	askFirst  = 250 * time.Millisecond
	askStale  = 10                     // times that a grant may be ahead of the offer that is known, a second apart
	askSecond = 300 * time.Millisecond // how long a better gateway that was asked too is waited for

	silence    = 700 * time.Millisecond // packets went out and nothing came
	probePings = 6                      // so many that loss alone hardly ever looks like death
	probeEvery = 150 * time.Millisecond
	probeAgain = time.Second // after a probe that was answered
	watchEvery = 100 * time.Millisecond
	watchFor   = 2 * time.Second // after the last packet; then the client sleeps until there is one

	keepActive  = 15 * time.Second
	keepStandby = 30 * time.Second
	keepAgain   = 2 * time.Second // after one that was not answered
	keepWait    = 3 * time.Second

	suspectAfter  = 4 * time.Second // the gateway answers, its internet does not
	suspectTries  = 4
	suspectFirst  = 30 * time.Second // until the next gateway may be suspected, doubled each time
	suspectLongst = 10 * time.Minute

	betterFor = time.Minute // so long another must be better by a quarter
	backFirst = 10 * time.Second
	backMost  = 20 * time.Minute
)

// Candidate is a gateway as the routing table shows it.
type Candidate struct {
	Key        ident.PublicKey
	Name       string
	Offer      Offer
	CostMicros uint32 // of the path there
	PathPrice  uint32 // of the path, nano-credits per MiB
}

// Mode says whether a gateway is used.
type Mode uint8

// The modes.
const (
	Off  Mode = iota // none
	Auto             // the best; none while this node offers its own line and that works
	Node             // one node, and no other
)

// Choice is what the owner wants.
type Choice struct {
	Mode     Mode
	Node     ident.PublicKey // with Mode Node
	Want     Families        // 0: IPv4 and IPv6, and DNS and NAT64 where there are any
	MaxPrice *uint32         // of gateway and path, nano-credits per MiB; nil: any
	// PriceWeight is how many microseconds of delay a price of 1000 nano-credits per MiB (about 1 milli-credit per GB) is
	// worth; 0 means 200.
	PriceWeight uint32
}

const (
	defaultPriceWeight = 200
	wantDefault        = IPv4 | IPv6 | IPv6Routed | NAT64 | DNS
)

func (c *Choice) check() error {
	if c.Mode > Node {
		return fmt.Errorf("use of gateways: the mode must be off, auto or a node")
	}
	if c.Mode == Node && c.Node.IsZero() {
		return fmt.Errorf("use of gateways: say which node")
	}
	if c.Want == 0 {
		c.Want = wantDefault
	}
	if c.Want&^allFamilies != 0 || !c.Want.four() && !c.Want.six() {
		return fmt.Errorf("use of gateways: IPv4, IPv6 or both must be wanted")
	}
	if c.PriceWeight == 0 {
		c.PriceWeight = defaultPriceWeight
	}
	return nil
}

// Use is the lease in force. The zero Use: there is none, and Reason says why.
type Use struct {
	Gateway  ident.PublicKey `json:"gateway"`
	Name     string          `json:"name,omitempty"`
	Families Families        `json:"families"`
	IPv4     netip.Addr      `json:"ipv4,omitzero"`
	IPv6     netip.Prefix    `json:"ipv6,omitzero"`  // leased; when it is not valid, IPv6 goes out under the mesh address
	NAT64    netip.Prefix    `json:"nat64,omitzero"` // for DNS64
	DNS      []netip.Addr    `json:"dns,omitempty"`  // mesh addresses of the gateway's resolver
	MTU      int             `json:"mtu"`            // of packets to the internet
	Price    uint32          `json:"price"`
	FreeTier bool            `json:"free_tier,omitempty"`
	Limits   Limits          `json:"limits"`
	Reason   string          `json:"reason"`
}

// same compares all but the reason.
func (u *Use) same(o *Use) bool {
	a, b := *u, *o
	a.Reason, b.Reason, a.DNS, b.DNS = "", "", nil, nil
	return fmt.Sprint(a) == fmt.Sprint(b) && slices.Equal(u.DNS, o.DNS)
}

// inUse is the gateway in use as the packet path sees it.
type inUse struct {
	gateway ident.PublicKey
	v4      addr
	v6      mask
	has4    bool
	has6    bool
	routed  bool // v6 counts
	nat64   mask
	has64   bool
	since   time.Time
	speed   [2]speed // down and up, guarded by Gateway.mu

	idle       atomic.Bool   // the watcher sleeps: wake it
	sent       atomic.Uint64 // packets that make an answer likely
	recv       atomic.Uint64
	demand     atomic.Uint32 // packets that start something, since something came
	demandTo   atomic.Uint64 // a bit for each destination's hash
	bytesUp    atomic.Uint64
	bytesDown  atomic.Uint64
	packetsUp  atomic.Uint64
	packetsDow atomic.Uint64
}

// note counts a packet of the host for the watcher, and reports whether to wake it.
func (u *inUse) note(p *packet) (wake bool) {
	starts := p.class == classEcho
	switch p.key.proto() {
	case protoTCP:
		if p.flags&(tcpSYN|tcpFIN) == 0 && !p.payload {
			return false // bare acknowledgements have no answer
		}
		starts = p.flags&(tcpSYN|tcpACK) == tcpSYN
	case protoUDP:
		starts = p.key.dstPort() == 53 || p.key.dstPort() == 443
	}
	if p.class == classError || p.class == classEchoReply || p.class == classLaterFragment {
		return false
	}
	if starts {
		u.demand.Add(1)
		h := (p.key.dst.hi ^ p.key.dst.lo) * 0x9e3779b97f4a7c15 >> 58
		if u.demandTo.Load()&(1<<h) == 0 {
			u.demandTo.Or(1 << h)
		}
	}
	u.sent.Add(1)
	return u.idle.Load() && u.idle.CompareAndSwap(true, false)
}

// held is a gateway that this node asked, or has a lease of: the one in use and the one in reserve.
type held struct {
	c     Candidate
	asked time.Time // the first request of this attempt
	id    uint32    // of the request that is out; 0: none
	tries int
	next  time.Time // of asking

	granted bool
	grant   message
	offer   Families // of the offer when it was granted
	until   time.Time
	stale   int // grants that went beyond the offer, since one that did not
	ended   int // times that the gateway said it had no lease, since the last grant

	rtt     time.Duration // smoothed; 0: not measured
	keep    time.Time     // of the next keep-alive
	pinging bool
	misses  int
}

// backoff is why a gateway is left alone for a while.
type backoff struct {
	until time.Time
	fails int
	soft  bool // it may be tried all the same when there is no other
	why   string
}

// watch is what the client concludes from the traffic.
type watch struct {
	sent, recv  uint64
	lastSent    time.Time
	silentSince time.Time // zero: something came after what went out
	demandSince time.Time
	probing     bool
	probeEnd    time.Time
	probeNext   time.Time
	probeSent   int
	probeAfter  time.Time
}

// client is the using side. All of it is guarded by Gateway.mu, but for use.
type client struct {
	choice  Choice
	cands   []Candidate
	read    time.Time   // when cands were
	dirty   atomic.Bool // without g.mu
	doubt   atomic.Bool // without g.mu: probe the gateway in use
	held    []*held
	active  *held
	back    map[ident.PublicKey]backoff
	watch   watch
	use     atomic.Pointer[inUse]
	said    Use
	started bool // said was told at least once

	better, spare       rival // who may replace the one in use, and the one in reserve
	suspectNext         time.Time
	suspectWait         time.Duration
	failovers, switches uint64
	reason              string // of the last change
	changedAt           time.Time
}

// rival is somebody better, and since when.
type rival struct {
	key   ident.PublicKey
	since time.Time
}

// ripe reports whether key has been better for long enough; better false forgets it.
func (r *rival) ripe(key ident.PublicKey, better bool, now time.Time) bool {
	if !better {
		*r = rival{}
		return false
	}
	if r.key != key || r.since.IsZero() {
		*r = rival{key, now}
	}
	return now.Sub(r.since) >= betterFor
}

// score says what a gateway costs, in microseconds of delay and what is worth as much. Less is better. Integers, so that all
// nodes count alike.
func (c *Choice) score(x *Candidate, h *held, b backoff) uint64 {
	s := uint64(10_000) // so that nobody moves for a millisecond
	if h != nil && h.rtt > 0 {
		s += uint64(h.rtt.Microseconds())
	} else {
		s += 2 * uint64(x.CostMicros)
	}
	price, families := x.Offer.Price, x.Offer.Families
	if h != nil && h.granted {
		price, families = h.grant.price, h.grant.families
	}
	s += (uint64(price) + uint64(x.PathPrice)) * uint64(c.PriceWeight) / 1000
	if kbps := x.Offer.DownKbps; kbps != 0 {
		s += min(250_000_000/uint64(kbps), 1_000_000) // a quarter of a megabit takes so long
	} else {
		s += 20_000
	}
	s += [4]uint64{0, 5_000, 20_000, 60_000}[x.Offer.Load&3]
	if x.Offer.Metered {
		s += 20_000
	}
	if x.Offer.MembersOnly && h != nil && h.granted && h.grant.grantBits&grantFreeTier != 0 {
		s += 200_000
	}
	if c.Want.four() && !families.four() {
		s += 200_000
	}
	if c.Want.six() && !families.six() {
		s += 50_000
	}
	return s + 20_000*uint64(min(b.fails, 5))
}

// suits says why a candidate cannot be used, "" when it can.
func (c *Choice) suits(x *Candidate) string {
	switch {
	case c.Mode == Off:
		return "no gateway is to be used"
	case c.Mode == Node && x.Key != c.Node:
		return "another gateway is chosen"
	case !(x.Offer.Families.four() && c.Want.four() || x.Offer.Families.six() && c.Want.six()):
		return "it has none of the address families that are wanted"
	case c.MaxPrice != nil && uint64(x.Offer.Price)+uint64(x.PathPrice) > uint64(*c.MaxPrice):
		return fmt.Sprintf("%s is more than the %s that are allowed", FormatPrice(x.Offer.Price+x.PathPrice), FormatPrice(*c.MaxPrice))
	}
	return ""
}

// absurd says what is wrong with a grant, "" when it can be believed.
func (c *Choice) absurd(x *Candidate, m *message) string {
	f := m.families
	switch {
	case f&^c.Want != 0:
		return fmt.Sprintf("it grants %v where %v was asked for", f, c.Want)
	case !f.four() && !f.six():
		return "it grants no way to the internet"
	case (f&IPv4 != 0) != m.v4.IsValid():
		return "IPv4 and its address do not go together"
	case m.v4.IsValid() && (!carrierRange.Contains(m.v4) || m.v4.As4()[3] == 0 && m.v4 == carrierRange.Addr()):
		return fmt.Sprintf("the IPv4 address %v is not of %v", m.v4, carrierRange)
	case (f&IPv6Routed != 0) != m.v6.IsValid():
		return "IPv6 and its prefix do not go together"
	case m.v6.IsValid() && (m.v6.Bits() < 48 || !globalRange.Contains(m.v6.Addr())):
		return fmt.Sprintf("the IPv6 prefix %v is not a global one of 48 bits or more", m.v6)
	case (f&NAT64 != 0) != m.nat64.IsValid():
		return "NAT64 and its prefix do not go together"
	case m.nat64.IsValid() && checkNAT64(m.nat64) != nil:
		return checkNAT64(m.nat64).Error()
	case (f&DNS != 0) != (len(m.dns) > 0):
		return "DNS and its servers do not go together"
	case m.mtu < minMTU || m.mtu > maxMTU:
		return fmt.Sprintf("the MTU %d is not from %d to %d", m.mtu, minMTU, maxMTU)
	case m.lifetime < uint32(minLifetime/time.Second) || m.lifetime > uint32(maxLifetime/time.Second):
		return fmt.Sprintf("a lease of %d s is not from %v to %v", m.lifetime, minLifetime, maxLifetime)
	case c.MaxPrice != nil && uint64(m.price)+uint64(x.PathPrice) > uint64(*c.MaxPrice):
		return fmt.Sprintf("%s is more than allowed", FormatPrice(m.price))
	}
	for _, a := range m.dns {
		if a != x.Key.Addr() && !x.Key.Subnet().Contains(a) {
			return fmt.Sprintf("the DNS server %v is not the gateway's", a)
		}
	}
	return ""
}

// ahead says what of a grant goes beyond the offer, "" when nothing does. It may be that the news of an offer is on its way.
func ahead(x *Candidate, m *message) string {
	switch {
	case m.families&^x.Offer.Families != 0:
		return fmt.Sprintf("it grants %v where %v was offered", m.families, x.Offer.Families)
	case m.price > x.Offer.Price:
		return fmt.Sprintf("it asks for %s and has offered %s", FormatPrice(m.price), FormatPrice(x.Offer.Price))
	}
	return ""
}

// tangled says whether a grant would take what this device has already, "" when it does not: an address of its own networks on the TUN
// cuts off whoever has it there, and with a prefix of theirs the gateway would get the traffic of all devices in it.
func (g *Gateway) tangled(m *message) string {
	for _, p := range g.local {
		// Wider ones say where the internet is, or are pools of a gateway on this host.
		if m.v6.IsValid() && p.Bits() >= 32 && p.Overlaps(m.v6) {
			return fmt.Sprintf("the IPv6 prefix %v overlaps %v, where this device is already", m.v6, p)
		}
		if m.v4.IsValid() && p.Bits() > 16 && p.Contains(m.v4) {
			return fmt.Sprintf("the IPv4 address %v lies in %v, where this device is already", m.v4, p)
		}
	}
	return ""
}

func (c *client) find(key ident.PublicKey) *held {
	for _, h := range c.held {
		if h.c.Key == key {
			return h
		}
	}
	return nil
}

// standby is the gateway in reserve.
func (c *client) standby() *held {
	for _, h := range c.held {
		if h != c.active {
			return h
		}
	}
	return nil
}

func (c *client) backOf(key ident.PublicKey, now time.Time) (b backoff, off bool) {
	b = c.back[key]
	return b, b.until.After(now)
}

// leave drops a gateway and leaves it alone for wait at least; 0: it may be asked again at once.
func (g *Gateway) leave(h *held, now time.Time, why string, wait time.Duration, soft bool) {
	c := &g.client
	c.held = slices.DeleteFunc(c.held, func(x *held) bool { return x == h })
	if h.granted {
		g.send(h.c.Key, &message{kind: msgRelease, id: g.nextID()})
	}
	if wait > 0 {
		b := c.back[h.c.Key]
		if b.fails > 0 && now.Sub(b.until) > 10*time.Minute {
			b.fails = 0
		}
		wait = min(wait<<min(b.fails, 8), max(wait, backMost))
		c.back[h.c.Key] = backoff{now.Add(wait), b.fails + 1, soft, why}
	}
	if h == c.active {
		c.active = nil
		c.reason = fmt.Sprintf("left %s: %s", nameOf(&h.c), why)
		c.failovers++
	}
}

func nameOf(c *Candidate) string {
	if c.Name != "" {
		return c.Name
	}
	return c.Key.ID().String()
}

// activate makes h the gateway in use.
func (g *Gateway) activate(h *held, now time.Time, why string) {
	c := &g.client
	if c.active != nil {
		c.switches++
	}
	c.active, c.changedAt = h, now
	c.better, c.watch = rival{}, watch{}
	if why != "" {
		c.reason = why
	}
	h.keep = now
	g.publish(now)
}

// publish gives the packet path and Changed the lease in force.
func (g *Gateway) publish(now time.Time) {
	c := &g.client
	u := Use{Reason: c.reason}
	if h := c.active; h == nil {
		c.use.Store(nil)
		c.watch = watch{}
	} else {
		m := &h.grant
		u = Use{
			Gateway: h.c.Key, Name: h.c.Name, Families: m.families, IPv4: m.v4, IPv6: m.v6, NAT64: m.nat64, DNS: m.dns, MTU: int(m.mtu), Price: m.price,
			FreeTier: m.grantBits&grantFreeTier != 0, Limits: Limits{m.downKbps, m.upKbps, m.flows, m.newFlows}, Reason: c.reason,
		}
		if old := c.use.Load(); old == nil || old.gateway != h.c.Key || !c.said.same(&u) {
			n := &inUse{gateway: h.c.Key, has4: m.families&IPv4 != 0, has6: m.families.six() || m.families&NAT64 != 0, routed: m.v6.IsValid(), has64: m.nat64.IsValid(), since: now}
			if n.has4 {
				n.v4 = addrOf(m.v4)
			}
			if n.routed {
				n.v6 = maskOf(m.v6)
			}
			if n.has64 {
				n.nat64 = maskOf(m.nat64)
			}
			if old != nil && old.gateway == h.c.Key {
				n.since = old.since
				n.bytesUp.Store(old.bytesUp.Load())
				n.bytesDown.Store(old.bytesDown.Load())
			}
			c.watch = watch{}
			c.use.Store(n)
		}
	}
	if !c.started || !c.said.same(&u) {
		c.said, c.started = u, true
		g.tell()
	}
}

// clientStep does what is due on the using side, and returns when to come again.
func (g *Gateway) clientStep(now time.Time) (next time.Time) {
	c := &g.client
	next = now.Add(time.Second)
	if c.choice.Mode == Off && len(c.held) == 0 && c.active == nil {
		if !c.started {
			g.publish(now)
		}
		return next
	}
	if c.dirty.Load() || now.Sub(c.read) >= time.Second {
		g.readCandidates(now)
	}
	resting := g.restingLocked()
	for _, h := range slices.Clone(c.held) {
		x := slices.IndexFunc(c.cands, func(x Candidate) bool { return x.Key == h.c.Key })
		switch {
		case resting:
			g.leave(h, now, "the own line is used", 0, false)
		case x < 0:
			g.leave(h, now, "it is gone or offers nothing any more", 0, false)
		default:
			h.c = c.cands[x]
			if why := c.choice.suits(&h.c); why != "" {
				g.leave(h, now, why, 0, false)
			}
		}
	}
	if !resting {
		g.recruit(now)
	}
	for _, h := range slices.Clone(c.held) {
		next = earliest(next, g.ask(h, now), g.keepAlive(h, now))
	}
	g.elect(now)
	next = earliest(next, g.watchTraffic(now))
	if c.active == nil && (c.use.Load() != nil || !c.started) {
		if resting {
			c.reason = "the own line is used"
		}
		g.publish(now)
	}
	return next
}

// restingLocked: the node shares its own line, and that works.
func (g *Gateway) restingLocked() bool {
	return g.client.choice.Mode == Auto && g.offer != nil && g.liveFamilies() != 0
}

func earliest(t time.Time, more ...time.Time) time.Time {
	for _, x := range more {
		if !x.IsZero() && x.Before(t) {
			t = x
		}
	}
	return t
}

func (g *Gateway) readCandidates(now time.Time) {
	c := &g.client
	c.dirty.Store(false)
	c.read = now
	c.cands = c.cands[:0]
	for _, x := range g.cfg.Candidates() {
		if x.Key == g.cfg.Self || x.Key.IsZero() || len(c.cands) == maxCandidates {
			continue
		}
		c.cands = append(c.cands, x)
	}
	for k, b := range c.back { // long past
		if now.Sub(b.until) > 10*time.Minute {
			delete(c.back, k)
		}
	}
}

// recruit sees that the best gateways are asked: one to use and one in reserve.
func (g *Gateway) recruit(now time.Time) {
	c := &g.client
	most := 2
	if c.choice.Mode == Node {
		most = 1
	}
	type scored struct {
		x     *Candidate
		score uint64
		off   bool
	}
	var free []scored
	for i := range c.cands {
		x := &c.cands[i]
		b, off := c.backOf(x.Key, now)
		if c.find(x.Key) == nil && c.choice.suits(x) == "" && (!off || b.soft) {
			free = append(free, scored{x, c.choice.score(x, nil, b), off})
		}
	}
	slices.SortStableFunc(free, func(a, b scored) int {
		return cmp.Or(cmp.Compare(bit(a.off, 1), bit(b.off, 1)), cmp.Compare(a.score, b.score))
	})
	for len(c.held) < most && len(free) > 0 {
		if free[0].off && len(c.held) > 0 {
			break // only for want of any other
		}
		c.held = append(c.held, &held{c: *free[0].x, asked: now, next: now})
		free = free[1:]
	}
	// The reserve makes room for somebody who is better by a quarter for a minute.
	s := c.standby()
	if c.active == nil || s == nil || len(free) == 0 || free[0].off {
		c.spare.ripe(ident.PublicKey{}, false, now)
		return
	}
	mine := c.choice.score(&s.c, s, c.back[s.c.Key])
	if c.spare.ripe(free[0].x.Key, free[0].score*4 <= mine*3, now) {
		c.spare = rival{}
		g.leave(s, now, "a better one is there for the reserve", 0, false)
		c.held = append(c.held, &held{c: *free[0].x, asked: now, next: now})
	}
}

// ask sends the requests that are due and returns when the next is.
func (g *Gateway) ask(h *held, now time.Time) time.Time {
	c := &g.client
	if h.granted {
		if h.offer != h.c.Offer.Families && h.id == 0 { // it has more or less to give now
			h.offer = h.c.Offer.Families
			h.next = now
		}
		if !now.Before(h.until) {
			g.leave(h, now, "the lease has ended and was not renewed", backFirst, true)
			return now
		}
	} else if h.tries >= askTries && !now.Before(h.next) {
		g.leave(h, now, "it does not answer requests", backFirst, true)
		return now
	}
	if now.Before(h.next) {
		return h.next
	}
	if h.id == 0 {
		h.id, h.tries = g.nextID(), 0
	}
	m := message{kind: msgRequest, id: h.id, families: c.choice.Want}
	if u := c.use.Load(); u != nil && u.has4 {
		m.v4 = u.v4.netip()
	} else if h.granted {
		m.v4 = h.grant.v4
	}
	g.send(h.c.Key, &m)
	h.next = now.Add(askFirst << min(h.tries, 6))
	h.tries++
	return h.next
}

// keepAlive measures and keeps the session and its way warm.
func (g *Gateway) keepAlive(h *held, now time.Time) time.Time {
	if !h.granted || h.pinging {
		return time.Time{}
	}
	if now.Before(h.keep) {
		return h.keep
	}
	h.pinging = true
	g.ping(h.c.Key, keepWait)
	return time.Time{}
}

// pong takes the result of a ping.
func (g *Gateway) pong(key ident.PublicKey, rtt time.Duration, ok, probe bool, now time.Time) {
	c := &g.client
	h := c.find(key)
	if h == nil {
		return
	}
	if ok {
		h.misses = 0
		if h.rtt == 0 {
			h.rtt = rtt
		} else {
			h.rtt += (rtt - h.rtt) / 8
		}
		h.rtt = max(h.rtt, time.Microsecond)
		if h == c.active && c.watch.probing { // alive: but do its packets get anywhere?
			c.watch.probing = false
			c.watch.probeAfter = now.Add(probeAgain)
			c.watch.silentSince = time.Time{}
		}
	}
	if probe {
		return
	}
	h.pinging = false
	switch {
	case ok && h == c.active:
		h.keep = now.Add(keepActive)
	case ok:
		h.keep = now.Add(keepStandby)
	default:
		h.keep = now.Add(keepAgain)
		if h.misses++; h == c.active {
			g.probe(now)
		} else if h.misses >= 3 {
			g.leave(h, now, "it does not answer pings", backFirst, true)
		}
	}
}

// elect chooses who is used among those with a lease.
func (g *Gateway) elect(now time.Time) {
	c := &g.client
	s := c.standby()
	if c.active == nil {
		var best, waiting *held
		for _, h := range c.held {
			if !h.granted {
				if now.Sub(h.asked) < askSecond {
					waiting = h
				}
			} else if best == nil || g.scoreOf(h) < g.scoreOf(best) {
				best = h
			}
		}
		if best == nil || waiting != nil && c.use.Load() == nil && g.scoreOf(waiting) < g.scoreOf(best) {
			return
		}
		why := "the best of those that were found"
		if c.use.Load() != nil { // one was just lost
			why = c.reason
		} else if c.choice.Mode == Node {
			why = "chosen by the owner"
		}
		g.activate(best, now, why)
		return
	}
	if s == nil || !s.granted {
		c.better.ripe(ident.PublicKey{}, false, now)
		return
	}
	mine, other := g.scoreOf(c.active), g.scoreOf(s)
	if c.better.ripe(s.c.Key, other*4 <= mine*3, now) {
		g.activate(s, now, fmt.Sprintf("%s has been better than %s for a minute (%d against %d)", nameOf(&s.c), nameOf(&c.active.c), other, mine))
	}
}

func (g *Gateway) scoreOf(h *held) uint64 {
	return g.client.choice.score(&h.c, h, g.client.back[h.c.Key])
}

// watchTraffic looks whether what goes out is answered, and returns when to look again.
func (g *Gateway) watchTraffic(now time.Time) time.Time {
	c, w := &g.client, &g.client.watch
	u := c.use.Load()
	if c.active == nil || u == nil {
		return time.Time{}
	}
	sent, recv := u.sent.Load(), u.recv.Load()
	if sent != w.sent {
		w.lastSent = now
	}
	switch {
	case recv != w.recv:
		w.silentSince, w.demandSince, w.probing = time.Time{}, time.Time{}, false
		u.demand.Store(0)
		u.demandTo.Store(0)
		if now.Sub(c.changedAt) > time.Minute {
			c.suspectWait = 0
		}
	case sent != w.sent && w.silentSince.IsZero():
		w.silentSince = now
	}
	w.sent, w.recv = sent, recv
	if u.demand.Load() > 0 && w.demandSince.IsZero() {
		w.demandSince = now
	}
	if w.probing {
		if !now.Before(w.probeEnd) {
			g.leave(c.active, now, fmt.Sprintf("it was silent and answered none of %d pings", probePings), backFirst, true)
			g.elect(now)
			return now
		}
		if w.probeSent < probePings && !now.Before(w.probeNext) {
			w.probeSent++
			w.probeNext = w.probeNext.Add(probeEvery)
			g.pingProbe(c.active.c.Key, w.probeEnd.Sub(now))
		}
		if w.probeSent == probePings {
			return earliest(w.probeEnd, now.Add(watchEvery))
		}
		return earliest(w.probeEnd, w.probeNext, now.Add(watchEvery))
	}
	doubt := c.doubt.Swap(false)
	if (doubt || !w.silentSince.IsZero() && now.Sub(w.silentSince) >= silence) && !now.Before(w.probeAfter) {
		g.probe(now)
		return now
	}
	s := c.standby()
	if !w.demandSince.IsZero() && now.Sub(w.demandSince) >= suspectAfter && u.demand.Load() >= suspectTries && bits.OnesCount64(u.demandTo.Load()) >= 2 &&
		s != nil && s.granted && !now.Before(c.suspectNext) {
		c.suspectWait = min(max(2*c.suspectWait, suspectFirst), suspectLongst)
		c.suspectNext = now.Add(c.suspectWait)
		g.leave(c.active, now, "it answers, but nothing comes back from the internet through it", time.Minute, true)
		g.elect(now)
		return now
	}
	if now.Sub(w.lastSent) > watchFor && w.silentSince.IsZero() {
		u.idle.Store(true)
		if u.sent.Load() == sent {
			return time.Time{}
		}
		u.idle.Store(false)
	}
	return now.Add(watchEvery)
}

// probe begins to ask whether the gateway in use is there.
func (g *Gateway) probe(now time.Time) {
	w := &g.client.watch
	if w.probing || g.client.active == nil {
		return
	}
	wait := max(probePings*probeEvery, min(3*g.client.active.rtt, keepWait)) // some ways are slow
	w.probing, w.probeSent, w.probeNext, w.probeEnd = true, 0, now, now.Add(wait)
}

// fromGateway takes a message of the serving side.
func (g *Gateway) fromGateway(peer ident.PublicKey, m *message, now time.Time) {
	c := &g.client
	h := c.find(peer)
	if h == nil {
		if m.kind == msgGrant { // too late: it is not wanted any more
			g.send(peer, &message{kind: msgRelease, id: m.id})
		}
		return
	}
	switch m.kind {
	case msgGrant:
		if h.id == 0 || m.id != h.id {
			return
		}
		why := c.choice.absurd(&h.c, m)
		if why == "" {
			why = g.tangled(m)
		}
		if why == "" {
			if why = ahead(&h.c, m); why != "" && h.stale < askStale {
				h.stale++
				h.id, h.tries, h.next = 0, 0, now.Add(time.Second)
				return
			}
		}
		if why != "" {
			h.granted = true // so that it is released
			g.cfg.Log.Warn("gateway made no sense", "gateway", peer, "why", why)
			g.leave(h, now, why, 10*time.Minute, false)
			break
		}
		first := !h.granted
		h.granted, h.grant, h.offer, h.id, h.tries, h.ended, h.stale = true, *m, h.c.Offer.Families, 0, 0, 0, 0
		life := time.Duration(m.lifetime) * time.Second
		h.until, h.next = now.Add(life), now.Add(life/2)
		if first {
			h.keep = now
		}
		if h == c.active {
			g.publish(now)
		}
	case msgRefuse:
		if h.id == 0 || m.id != h.id {
			return
		}
		wait := min(max(time.Duration(m.lifetime)*time.Second, 5*time.Second), time.Hour)
		why := "it refused: it " + m.code.String()
		if m.text != "" {
			why += " (" + m.text + ")"
		}
		g.leave(h, now, why, wait, false)
	case msgNotice:
		g.noticed(h, m, now)
	}
	g.elect(now)
}

func (g *Gateway) noticed(h *held, m *message, now time.Time) {
	c := &g.client
	switch m.code {
	case CodeTerms:
		h.next, h.id = now, 0
	case CodeLeaseEnded:
		if h.ended++; h.ended > 3 {
			g.leave(h, now, "it ends the lease again and again", backFirst, true)
			return
		}
		if h.id == 0 {
			h.next = now
		}
	case CodeUplinkLost:
		if left := h.grant.families & m.families; h.granted && (left.four() && c.choice.Want.four() || left.six() && c.choice.Want.six()) {
			s := c.standby()
			if h == c.active && s != nil && s.granted && covers(s.grant.families, c.choice.Want) > covers(left, c.choice.Want) {
				h.grant.families = trim(&h.grant, left)
				c.active = nil
				c.failovers++
				g.activate(s, now, fmt.Sprintf("left %s: it has lost part of its line", nameOf(&h.c)))
				return
			}
			h.grant.families = trim(&h.grant, left)
			if h == c.active {
				g.publish(now)
			}
			return
		}
		fallthrough
	default:
		g.leave(h, now, "it "+m.code.String(), 5*time.Second, false)
	}
}

// covers counts the wanted families that can be reached.
func covers(f, want Families) int {
	return int(bit(f.four() && want.four(), 1)) + int(bit(f.six() && want.six(), 1))
}

// trim takes from a grant what is no more.
func trim(m *message, left Families) Families {
	if left&IPv4 == 0 {
		m.v4 = netip.Addr{}
	}
	if left&IPv6Routed == 0 {
		m.v6 = netip.Prefix{}
	}
	if left&NAT64 == 0 {
		m.nat64 = netip.Prefix{}
	}
	if left&DNS == 0 {
		m.dns = nil
	}
	return left
}
