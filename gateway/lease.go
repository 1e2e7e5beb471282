package gateway

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"weft/gateway/nat64"
	"weft/ident"
)

// DefaultPool is where leased IPv4 addresses come from. All gateways of a neighbourhood should have the same pool, so that a
// client gets the same address from each of them; one whose own line has an address in it takes another part of 100.64.0.0/10.
var DefaultPool = netip.MustParsePrefix("100.86.0.0/16")

var (
	carrierRange = netip.MustParsePrefix("100.64.0.0/10")
	globalRange  = netip.MustParsePrefix("2000::/3")
)

// Bounds and defaults of the serving side.
const (
	DefaultMaxLeases = 512
	maxMaxLeases     = 8192
	defaultLifetime  = 10 * time.Minute
	leaseGrace       = time.Minute // a lease is kept so much longer than was told
	maxFlowsAll      = 65536       // slots of all clients together beyond baseFlows each: 4 MiB
	defaultFlows     = 2048
	defaultNewFlows  = 100
	probes           = 16 // places that a client's hash may lead to before the pool counts as full
	reserved         = 2  // addresses at the start of the pool: the network's and the gateway's own
	answersPerSecond = 10 // ICMP to one client
)

// Limits bound what one client may use. Zero fields: no limit for rates, the defaults for flows.
type Limits struct {
	DownKbps uint32 `json:"down_kbps,omitempty"` // to the client, 1000 bit/s
	UpKbps   uint32 `json:"up_kbps,omitempty"`
	Flows    uint32 `json:"flows,omitempty"`     // open at once; 2048
	NewFlows uint32 `json:"new_flows,omitempty"` // a second; 100, and four times that at once
}

// or fills the fields that are zero from o.
func (l Limits) or(o Limits) Limits {
	for _, f := range []struct{ to, from *uint32 }{{&l.DownKbps, &o.DownKbps}, {&l.UpKbps, &o.UpKbps}, {&l.Flows, &o.Flows}, {&l.NewFlows, &o.NewFlows}} {
		if *f.to == 0 {
			*f.to = *f.from
		}
	}
	return l
}

// Tier is what the community says of a client.
type Tier struct {
	Name   string // for people
	Member bool
	Barred bool   // not served at all
	Weight int    // its share against others'; 0 means 1
	Limits Limits // zero fields: the gateway's
}

// lease is a client of this gateway.
type lease struct {
	key      ident.PublicKey
	from     time.Time
	until    time.Time // guarded by Gateway.mu
	speed    [2]speed  // down and up; the same
	v4       netip.Addr
	v6       netip.Prefix
	own      addr   // the client's mesh address
	net      uint64 // and the upper half of its /64
	routed   mask   // v6
	share    uint64 // key in the queues
	families atomic.Uint32
	tier     atomic.Pointer[terms]
	throttle atomic.Pointer[throttle] // nil: none

	mu       sync.Mutex // guards what follows
	flows    flows
	tokens   uint32 // for new flows
	tokensAt uint32
	answers  uint32 // ICMP that may still be sent in this second
	answerAt uint32
	up, down bucket

	packetsUp, packetsDown, bytesUp, bytesDown atomic.Uint64
	refused                                    [reasons]atomic.Uint64
}

// terms are what a lease was granted under.
type terms struct {
	name   string
	member bool
	free   bool // the free tier
	weight int
	price  uint32
	limits Limits
}

// bucket holds a rate: tokens are bytes. What exceeds it is dropped, since it has had its chance to wait in the queue of the
// line, where CoDel tells senders early; this is the wall behind it.
type bucket struct {
	tokens int64
	at     int64 // ns
}

const bucketDepth = 250 * time.Millisecond

// take reports whether size bytes may pass at kbps now. One packet, however large, passes a full bucket.
func (b *bucket) take(kbps uint32, size int, now int64) bool {
	if kbps == 0 {
		return true
	}
	perSecond := int64(kbps) * 125
	depth := max(perSecond*int64(bucketDepth)/int64(time.Second), 32<<10)
	if d := now - b.at; d > 0 {
		d = min(d, int64(time.Second)) // more than fills it
		if add := perSecond * (d / 1000) / 1e6; add > 0 {
			b.tokens = min(b.tokens+add, depth)
			b.at = now
		}
	}
	if b.tokens < int64(size) && b.tokens < depth {
		return false
	}
	b.tokens -= int64(size)
	return true
}

// owns reports whether the client may send from a, and with which family.
func (l *lease) owns(a addr) (Families, bool) {
	switch {
	case a.is4():
		return IPv4, l.v4.IsValid() && a == addrOf(l.v4)
	case a == l.own, a.hi == l.net:
		return IPv6, true
	}
	return IPv6Routed, l.v6.IsValid() && l.routed.contains(a)
}

// pass decides about a packet of the client.
func (l *lease) pass(p *packet, now uint32, pol *Policy, budget *atomic.Int64) reason {
	need, ok := l.owns(p.key.src)
	if !ok {
		return wrongSource
	}
	if pol.is64 && pol.nat64.contains(p.key.dst) {
		need = NAT64
	}
	if Families(l.families.Load())&need == 0 {
		return familyClosed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch p.class {
	case classLaterFragment:
		f := l.flows.find(&p.key, now)
		if f == nil || f.gen != pol.gen {
			return fragmentFirst
		}
		f.seen(p, now)
		return passed
	case classError: // about a packet that the client received: of a flow of its own, the other way round
		k := p.about.reverse()
		if f := l.flows.find(&k, now); f == nil || f.gen != pol.gen || k.dst != p.key.dst {
			return unsolicited
		}
		return passed
	case classEchoReply:
		return unsolicited // nothing outside can have asked
	}
	f := l.flows.find(&p.key, now)
	if f == nil || f.gen != pol.gen {
		if r := pol.judge(p.key.proto(), p.key.dst, p.key.dstPort()); r != passed {
			if f != nil {
				f.until = now
			}
			return r
		}
		if f == nil {
			if f, ok = l.open(&p.key, now, budget); !ok {
				return tooFast
			}
			if f == nil {
				return tooManyFlows
			}
		}
		f.gen = pol.gen
	}
	f.seen(p, now)
	if p.fragment { // it takes its later ones along
		k := p.fragmentKey()
		f := l.flows.find(&k, now)
		if f == nil {
			if f = l.flows.insert(&k, now, int(l.most()), budget); f == nil {
				return tooManyFlows
			}
		}
		f.gen = pol.gen
		f.seen(p, now)
	}
	return passed
}

func (l *lease) most() uint32 {
	if t := l.tier.Load(); t.limits.Flows != 0 {
		return t.limits.Flows
	}
	return defaultFlows
}

// open makes a flow. ok is false when the client opens them too fast, f is nil when it has too many.
func (l *lease) open(k *flowKey, now uint32, budget *atomic.Int64) (f *flow, ok bool) {
	rate := l.tier.Load().limits.NewFlows
	if rate == 0 {
		rate = defaultNewFlows
	}
	if now != l.tokensAt {
		l.tokens = uint32(min(uint64(l.tokens)+uint64(now-l.tokensAt)*uint64(rate), 4*uint64(rate)))
		l.tokensAt = now
	}
	if l.tokens == 0 {
		return nil, false
	}
	if f = l.flows.insert(k, now, int(l.most()), budget); f != nil {
		l.tokens--
	}
	return f, true
}

// mayAnswer limits the ICMP that the client's packets cause.
func (l *lease) mayAnswer(now uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.answerAt != now {
		l.answerAt, l.answers = now, answersPerSecond
	}
	if l.answers == 0 {
		return false
	}
	l.answers--
	return true
}

// leases are the clients, as the packet path finds them. Its lock is taken before a lease's.
type leases struct {
	mu     sync.RWMutex
	seed   maphash.Seed
	byKey  map[ident.PublicKey]*lease
	byAddr map[addr]*lease   // IPv4 and mesh addresses, single routed addresses
	byNet  map[uint64]*lease // /64s, by their upper half
	taken  map[addr]bool     // IPv4 addresses that NAT64 uses
	// resting are addresses whose connections have yet to be ended: until then nobody else gets one of IPv4. The zero key: NAT64
	// had it. nil: nobody ends any.
	resting map[addr]ident.PublicKey
	slow    map[ident.PublicKey]*throttle // of clients with a lease and without
	budget  atomic.Int64                  // flow slots that tables may still take
}

func newLeases() *leases {
	s := &leases{seed: maphash.MakeSeed(), byKey: map[ident.PublicKey]*lease{}, byAddr: map[addr]*lease{}, byNet: map[uint64]*lease{}, taken: map[addr]bool{},
		slow: map[ident.PublicKey]*throttle{}}
	s.budget.Store(maxFlowsAll)
	return s
}

func (s *leases) of(key ident.PublicKey) *lease {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.byKey[key]
}

// to finds whom a packet from outside is for.
func (s *leases) to(dst addr) *lease {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if l := s.byAddr[dst]; l != nil {
		return l
	}
	if dst.is4() {
		return nil
	}
	return s.byNet[dst.hi]
}

func (s *leases) all() []*lease {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]*lease, 0, len(s.byKey))
	for _, l := range s.byKey {
		out = append(out, l)
	}
	return out
}

// place is the n-th place in a pool of size places that a name's hash leads to: its own, and then strides that differ from
// name to name, so that those who meet once do not meet again. docs/spec/gateway.md section 4.
func place(tag string, name []byte, n int, size uint64) uint64 {
	h := sha256.New()
	h.Write([]byte(tag))
	h.Write([]byte{0})
	h.Write(name)
	d := h.Sum(nil)
	at, stride := binary.BigEndian.Uint64(d), binary.BigEndian.Uint64(d[8:])
	return (at%size + uint64(n)*(stride%size|1)) % size
}

// rest takes an address out of use that key had.
func (s *leases) rest(a addr, key ident.PublicKey) {
	if s.resting != nil {
		s.resting[a] = key
	}
}

// rested returns the addresses that rest, but for those that whoever had them has again. done are those whose connections have been
// ended since.
func (s *leases) rested(done []netip.Addr) (next []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range done {
		delete(s.resting, addrOf(a))
	}
	for a := range s.resting {
		if s.byAddr[a] == nil && (a.is4() || s.byNet[a.hi] == nil) {
			next = append(next, a.netip())
		} else {
			delete(s.resting, a)
		}
	}
	return next
}

// pick4 chooses an IPv4 address of the pool for a name: prefer, if it is one of those that the name's hash leads to. key is
// whose lease it is for; zero: for NAT64.
func (s *leases) pick4(pool netip.Prefix, tag string, name []byte, prefer netip.Addr, key ident.PublicKey) (netip.Addr, bool) {
	size := uint64(1) << (32 - pool.Bits())
	base := uint32(addrOf(pool.Addr()).lo)
	var first netip.Addr
	for n := range probes {
		a := addr4(base + reserved + uint32(place(tag, name, n, size-reserved-1))) // nor the last, a broadcast address
		if s.byAddr[a] != nil || s.taken[a] {
			continue
		}
		if had, rests := s.resting[a]; rests && (key.IsZero() || had != key) {
			continue
		}
		if b := a.netip(); !first.IsValid() || b == prefer {
			first = b
			if b == prefer || !prefer.IsValid() {
				break
			}
		}
	}
	return first, first.IsValid()
}

// pick6 chooses a global address, or a /64 where the prefix is wide enough for one for everybody.
func (s *leases) pick6(routed netip.Prefix, key ident.PublicKey) (netip.Prefix, bool) {
	base := addrOf(routed.Addr())
	for n := range probes {
		if routed.Bits() <= 56 {
			size := uint64(1) << (64 - routed.Bits())
			hi := base.hi | (1 + place("weft/lease6/1", key[:], n, size-1)) // 0 is the gateway's
			if s.byNet[hi] == nil {
				return netip.PrefixFrom(addr{hi, 0}.netip(), 64), true
			}
			continue
		}
		size := uint64(1) << min(128-routed.Bits(), 63)
		a := addr{base.hi, base.lo | (2 + place("weft/lease6/1", key[:], n, size-2))}
		if s.byAddr[a] == nil {
			return netip.PrefixFrom(a.netip(), 128), true
		}
	}
	return netip.Prefix{}, false
}

// add makes a lease with what of families can be had; nil when there is no address.
func (s *leases) add(key ident.PublicKey, families Families, pool, routed netip.Prefix, prefer netip.Addr, now time.Time) *lease {
	a := addrOf(key.Addr())
	l := &lease{key: key, from: now, own: a, net: addrOf(key.Subnet().Addr()).hi, share: binary.BigEndian.Uint64(key[:8])}
	l.flows.seed = s.seed
	s.mu.Lock()
	defer s.mu.Unlock()
	l.throttle.Store(s.slow[key])
	ok := true
	if families&IPv4 != 0 {
		if l.v4, ok = s.pick4(pool, "weft/lease4/1", key[:], prefer, key); !ok {
			return nil
		}
		s.byAddr[addrOf(l.v4)] = l
	}
	if families&IPv6Routed != 0 {
		if l.v6, ok = s.pick6(routed, key); ok {
			l.routed = maskOf(l.v6)
			if l.v6.IsSingleIP() {
				s.byAddr[l.routed.addr] = l
			} else {
				s.byNet[l.routed.addr.hi] = l
			}
		}
	}
	s.byKey[key], s.byAddr[a], s.byNet[l.net] = l, l, l
	return l
}

// remove ends a lease; its packets pass no more.
func (s *leases) remove(l *lease) {
	s.mu.Lock()
	delete(s.byKey, l.key)
	delete(s.byAddr, l.own)
	delete(s.byNet, l.net)
	s.rest(l.own, l.key)
	s.rest(addr{l.net, 0}, l.key)
	if l.v4.IsValid() {
		delete(s.byAddr, addrOf(l.v4))
		s.rest(addrOf(l.v4), l.key)
	}
	if l.v6.IsValid() {
		delete(s.byAddr, l.routed.addr)
		delete(s.byNet, l.routed.addr.hi)
	}
	s.mu.Unlock()
	l.mu.Lock()
	l.flows.free(&s.budget)
	l.families.Store(0)
	l.mu.Unlock()
}

// translation is the table of NAT64 over the same pool of addresses.
func (s *leases) translation(pool netip.Prefix) (*nat64.Table, error) {
	return nat64.NewTable(nat64.TableConfig{
		Max: maxMaxLeases, PerOwner: 32, Idle: time.Hour,
		Take: func(owner nat64.Owner, v6 netip.Addr) (netip.Addr, bool) {
			s.mu.Lock()
			defer s.mu.Unlock()
			a := v6.As16()
			v4, ok := s.pick4(pool, "weft/lease64/1", a[:], netip.Addr{}, ident.PublicKey{})
			if ok {
				s.taken[addrOf(v4)] = true
			}
			return v4, ok
		},
		Give: func(v4 netip.Addr) {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.taken, addrOf(v4))
			s.rest(addrOf(v4), ident.PublicKey{})
		},
	})
}

// OfferConfig is what the owner of a line shares, and how.
type OfferConfig struct {
	IPv4   bool         // IPv4, translated
	IPv6   bool         // IPv6 under the clients' mesh addresses, translated (NAT66)
	Routed netip.Prefix // a global IPv6 prefix that is routed to this node, of at most 112 bits: clients get addresses of it
	NAT64  netip.Prefix // serve this NAT64 prefix, a /96, normally 64:ff9b::/96; the zero Prefix: none
	DNS    bool         // this node resolves for clients, at its mesh address

	Pool           netip.Prefix // of leased IPv4 addresses, within 100.64.0.0/10; zero: DefaultPool
	Price          uint32       // nano-credits per MiB
	DownKbps       uint32       // capacity of the line, 1000 bit/s: to clients, from clients. 0: not told and not shaped
	UpKbps         uint32
	ReservePercent int // of the capacity, kept for the own household
	MembersOnly    bool
	FreeTierKbps   uint32 // with MembersOnly: others get so much, for nothing; 0: they get no lease
	Metered        bool   // the line costs by volume
	Rules          []Rule
	Limits         Limits        // of every client
	MaxLeases      int           // 0: DefaultMaxLeases; a quarter of them only for members
	MTU            uint16        // of what clients send; 0: 1280, which passes everywhere
	Lifetime       time.Duration // of a lease; 0: 10 minutes
}

// check fills in defaults, and says what is wrong.
func (c *OfferConfig) check() error {
	if !c.IPv4 && !c.IPv6 && !c.Routed.IsValid() && !c.NAT64.IsValid() {
		return fmt.Errorf("the offer has no way to the internet: switch on IPv4 or IPv6")
	}
	if !c.Pool.IsValid() {
		c.Pool = DefaultPool
	}
	if !c.Pool.Addr().Is4() || c.Pool != c.Pool.Masked() || c.Pool.Bits() < 10 || c.Pool.Bits() > 24 || !carrierRange.Contains(c.Pool.Addr()) {
		return fmt.Errorf("lease pool %v: it must be a part of %v of 10 to 24 bits, such as %v", c.Pool, carrierRange, DefaultPool)
	}
	if r := c.Routed; r.IsValid() && (!r.Addr().Is6() || r != r.Masked() || r.Bits() < 16 || r.Bits() > 112 || !globalRange.Contains(r.Addr())) {
		return fmt.Errorf("routed prefix %v: it must be a global IPv6 prefix of 16 to 112 bits, such as 2001:db8:7::/56", r)
	}
	if r := c.NAT64; r.IsValid() {
		if err := checkNAT64(r); err != nil {
			return err
		}
	}
	if c.ReservePercent < 0 || c.ReservePercent > 95 {
		return fmt.Errorf("a reserve of %d percent: from 0 to 95 is possible", c.ReservePercent)
	}
	if c.MaxLeases == 0 {
		c.MaxLeases = DefaultMaxLeases
	}
	if c.MaxLeases < 1 || c.MaxLeases > maxMaxLeases {
		return fmt.Errorf("%d leases at most: from 1 to %d are possible", c.MaxLeases, maxMaxLeases)
	}
	if c.MTU == 0 {
		c.MTU = minMTU
	}
	if c.MTU < minMTU || c.MTU > maxMTU {
		return fmt.Errorf("an MTU of %d: from %d to %d is possible", c.MTU, minMTU, maxMTU)
	}
	if c.Lifetime == 0 {
		c.Lifetime = defaultLifetime
	}
	if c.Lifetime < minLifetime || c.Lifetime > maxLifetime {
		return fmt.Errorf("leases of %v: from %v to %v is possible", c.Lifetime, minLifetime, maxLifetime)
	}
	return nil
}

func checkNAT64(p netip.Prefix) error {
	if p.Bits() != 96 || !globalRange.Contains(p.Addr()) && p != nat64.WellKnown && !localNAT64.Contains(p.Addr()) {
		return fmt.Errorf("NAT64 prefix %v: it must be %v, a /96 of %v, or a global /96", p, nat64.WellKnown, localNAT64)
	}
	if _, err := nat64.NewPrefix(p); err != nil {
		return err
	}
	return nil
}

// localNAT64 is for networks that translate for themselves (RFC 8215).
var localNAT64 = netip.MustParsePrefix("64:ff9b:1::/48")

// families are those of the whole offer.
func (c *OfferConfig) families() (f Families) {
	for _, x := range []struct {
		is bool
		f  Families
	}{{c.IPv4, IPv4}, {c.IPv6, IPv6}, {c.Routed.IsValid(), IPv6Routed}, {c.NAT64.IsValid(), NAT64}, {c.DNS, DNS}} {
		if x.is {
			f |= x.f
		}
	}
	return f
}
