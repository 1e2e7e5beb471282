// Package firewall decides which packets of other nodes may reach this one: the node itself and the devices behind it.
//
// It is closed to what others start, except ICMPv6 echo to the node itself, and open to answers: an outbound packet opens
// the way back for its flow. Rules (see [ParseRule]) open or shut more, by key, by group of keys, by protocol and port; the
// first that matches decides. Rules speak of who may start a flow. A block rule therefore does not cut what this node
// itself asked for.
//
// It sits on the packet path, between session and tun. session owns one [Peer] per remote key and calls [Peer.Out] and
// [Peer.In]; node owns the [Firewall], calls [Firewall.Tick] about once a second (that is the only clock) and
// [Firewall.SetRules] when the owner changes something. The package starts no goroutine, opens no socket, allocates
// nothing per packet, and every method may be called from any goroutine. Memory is bounded whatever peers send: a peer can
// only push out its own flows.
//
// Who sent a packet is not decided here: session has authenticated the peer. This package imports ident alone.
package firewall

import (
	"fmt"
	"hash/maphash"
	"iter"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weft/ident"
)

// Limits bound the memory that flows may take. A flow is 56 bytes.
const (
	MaxFlowsPerPeer = 4096  // slots of one peer's table
	MaxFlowsOutside = 32768 // slots of the internet's table: a household may hang on it
	MaxFlows        = 65536 // slots of all tables together, beyond the baseFlows that every peer always has
	maxIdlePeers    = 1024  // peers without a session whose flows are still remembered
	sweepEvery      = 30    // seconds between clearing out what has expired
)

// Firewall is one node's firewall.
type Firewall struct {
	self   local
	start  time.Time
	sec    atomic.Uint32 // seconds since start, plus one: 0 marks a free slot
	rules  atomic.Pointer[compiled]
	seed   maphash.Seed
	budget atomic.Int64 // slots that tables may still take
	out    *Peer        // the internet

	mu     sync.Mutex
	user   Rules
	opened []opened // what apps opened, in the order they asked
	nextID uint64
	peers  map[ident.PublicKey]*Peer
	swept  uint32
	gone   Stats // counters of peers that were forgotten
}

type opened struct {
	id   uint64
	rule Rule
}

// local is what belongs to this node, as the words of flow keys.
type local struct {
	addr, net netip.Prefix
	a         [2]uint64 // the node's address
	n         uint64    // the upper half of the subnet behind it
}

func localOf(k ident.PublicKey) local {
	l := local{addr: netip.PrefixFrom(k.Addr(), 128), net: k.Subnet()}
	a, n := k.Addr().As16(), k.Subnet().Addr().As16()
	l.a = [2]uint64{le(a[:]), le(a[8:])}
	l.n = le(n[:])
	return l
}

// owns reports whether the address (hi, lo) is the node's own or lies behind it.
func (l *local) owns(hi, lo uint64) (self, behind bool) {
	return hi == l.a[0] && lo == l.a[1], hi == l.n
}

// compiled is one immutable generation of the rules.
type compiled struct {
	list   []Rule
	groups map[string]map[ident.PublicKey]bool
	hits   []atomic.Uint64 // flows decided by each rule
	users  int             // how many of list come from the owner; the rest was opened by apps
}

// New returns the firewall of node self. Its clock stands at now until [Firewall.Tick].
func New(self ident.PublicKey, rules Rules, now time.Time) (*Firewall, error) {
	f := &Firewall{self: localOf(self), start: now, seed: maphash.MakeSeed(), peers: map[ident.PublicKey]*Peer{}}
	f.sec.Store(1)
	f.budget.Store(MaxFlows)
	f.out = &Peer{f: f, outside: true, users: 1, table: table{seed: f.seed, most: MaxFlowsOutside}}
	if err := f.SetRules(rules); err != nil {
		return nil, err
	}
	return f, nil
}

// SetRules replaces the owner's rules, at once and for flows that are open too: what a peer started and would now be
// refused is cut. On an error nothing changes.
func (f *Firewall) SetRules(rules Rules) error {
	if err := rules.check(f.self); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.user = rules.clone()
	f.compileLocked()
	return nil
}

// Rules returns the owner's rules.
func (f *Firewall) Rules() Rules {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.user.clone()
}

// Open adds rules for as long as an app serves; shut takes them back. They stand behind the owner's, so the owner's
// block rules win. Groups are the owner's.
func (f *Firewall) Open(rules ...Rule) (shut func(), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := (Rules{List: rules, Groups: f.user.Groups}).check(f.self); err != nil {
		return nil, err
	}
	if len(f.opened)+len(rules) > MaxRules {
		return nil, fmt.Errorf("open %d more ports: apps may have %d rules, and %d are in use", len(rules), MaxRules, len(f.opened))
	}
	f.nextID++
	id := f.nextID
	for _, r := range rules {
		f.opened = append(f.opened, opened{id, r.clone()})
	}
	f.compileLocked()
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.opened = slices.DeleteFunc(f.opened, func(o opened) bool { return o.id == id })
		f.compileLocked()
	}, nil
}

func (f *Firewall) compileLocked() {
	c := &compiled{list: slices.Clone(f.user.List), users: len(f.user.List), groups: map[string]map[ident.PublicKey]bool{}}
	for _, o := range f.opened {
		c.list = append(c.list, o.rule)
	}
	for name, keys := range f.user.Groups {
		set := make(map[ident.PublicKey]bool, len(keys))
		for _, k := range keys {
			set[k] = true
		}
		c.groups[name] = set
	}
	c.hits = make([]atomic.Uint64, len(c.list))
	f.rules.Store(c)
}

// Tick moves the clock. Flows expire by it, to the second; it never runs backwards.
func (f *Firewall) Tick(now time.Time) {
	d := now.Sub(f.start)
	if d < 0 {
		return
	}
	sec := uint32(min(d/time.Second+1, 1<<31))
	for {
		old := f.sec.Load()
		if sec <= old {
			return
		}
		if f.sec.CompareAndSwap(old, sec) {
			break
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if sec-f.swept < sweepEvery {
		return
	}
	f.swept = sec
	f.out.mu.Lock()
	f.out.table.sweep(sec, &f.budget)
	f.out.lastIn, f.out.lastOut = nil, nil
	f.out.mu.Unlock()
	for key, p := range f.peers {
		p.mu.Lock()
		live := p.table.sweep(sec, &f.budget)
		p.lastIn, p.lastOut = nil, nil // sweeping may have moved the flows
		if live == 0 && p.users == 0 {
			f.forgetLocked(key, p)
		}
		p.mu.Unlock()
	}
}

// forgetLocked drops a peer; both locks are held.
func (f *Firewall) forgetLocked(key ident.PublicKey, p *Peer) {
	f.gone.add(p.stats)
	p.table.free(&f.budget)
	delete(f.peers, key)
}

// Peer returns the state for key, for one session. community says whether the key belongs to this node's community.
// Flows outlive a session, so that the next one finds them; call [Peer.Release] at the session's end.
func (f *Firewall) Peer(key ident.PublicKey, community bool) *Peer {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.peers[key]
	if p == nil {
		f.makeRoomLocked()
		p = &Peer{f: f, key: key, at: localOf(key)}
		p.table.seed, p.table.most = f.seed, MaxFlowsPerPeer
		f.peers[key] = p
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// A node is met on two planes at once at times, and not both know it for a member.
	p.community = community || p.users > 0 && p.community
	p.users++
	p.rules = nil // to be filtered anew for this peer
	return p
}

// Outside returns the state for what is not in the mesh: the internet as seen through a gateway. Nothing can be started
// from there, whatever the rules say, neither flow nor echo: In passes answers alone, from whichever gateway they come.
// IPv4 packets are judged here too. It is never released.
func (f *Firewall) Outside() *Peer { return f.out }

// makeRoomLocked forgets a peer without session when there are too many of them.
func (f *Firewall) makeRoomLocked() {
	if len(f.peers) < maxIdlePeers {
		return
	}
	idle, victim := 0, (*Peer)(nil)
	for _, p := range f.peers {
		p.mu.Lock()
		if p.users == 0 {
			idle++
			victim = p // Go's map order makes this a random one
		}
		p.mu.Unlock()
	}
	if idle >= maxIdlePeers {
		victim.mu.Lock()
		f.forgetLocked(victim.key, victim)
		victim.mu.Unlock()
	}
}

// Peer is the firewall's state for one remote key. In and Out may be called from different goroutines at once.
type Peer struct {
	f       *Firewall
	key     ident.PublicKey
	at      local
	outside bool // no peer but the internet

	mu        sync.Mutex
	users     int
	community bool
	rules     *compiled  // the generation that mine was filtered from
	gen       uint32     // counts generations, for flows
	mine      []peerRule // the rules that can match this peer
	table     table
	lastIn    *flow // the flow of the previous packet in each direction
	lastOut   *flow
	stats     Stats
}

// peerRule is a rule whose source is known to match.
type peerRule struct {
	rule  *Rule
	index int
}

// Release says that the session is over: nothing passes any more. The peer's flows are kept until they expire.
func (p *Peer) Release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.users = max(0, p.users-1)
}

// Out notes an outbound packet, or super-packet, to this peer: what answers it may come in.
func (p *Peer) Out(ip []byte) {
	var pk packet
	if !pk.parse(ip, outbound, p.outside) {
		return // it goes out all the same; it just opens nothing
	}
	switch pk.class {
	case classFlow, classEchoRequest:
	default:
		return // replies, errors and later fragments open nothing
	}
	now := p.f.sec.Load()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users == 0 {
		return
	}
	fl := p.lastOut
	if fl == nil || fl.key != pk.key || fl.until <= now {
		if fl = p.table.find(&pk.key, now); fl == nil {
			if pk.flags&rst != 0 || !p.ours(&pk.key) {
				return
			}
			fl = p.insert(&pk.key, now)
			fl.state = startedHere
			p.stats.Opened++
		}
		p.lastOut = fl
	}
	if pk.key.proto() == protoTCP {
		if pk.flags&(syn|ack) == syn && (fl.state&(startedHere|refused) != startedHere || fl.closed()) {
			fl.state = startedHere // the port is used again, now by us
		}
		if fl.closed() && pk.flags&(syn|fin|rst) == 0 && fl.state&wasReset != 0 {
			fl.state &^= wasReset // our side did not believe the reset
		}
	}
	fl.seen(seenOut, pk.flags, now)
}

// In decides about a packet from this peer: true lets it pass.
func (p *Peer) In(ip []byte) bool {
	var pk packet
	if !pk.parse(ip, inbound, p.outside) {
		p.mu.Lock()
		p.stats.Malformed++
		p.mu.Unlock()
		return false
	}
	now := p.f.sec.Load()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users == 0 {
		return false
	}
	if p.rules != p.f.rules.Load() {
		p.filterLocked()
	}
	if pk.class == classFlow {
		if fl := p.lastIn; fl != nil && fl.key == pk.key && fl.until > now && fl.gen == p.gen && !pk.fragment {
			if pk.flags&syn == 0 && fl.state&refused == 0 { // the common case
				fl.seen(seenIn, pk.flags, now)
				p.stats.Passed++
				return true
			}
		}
	}
	pass := p.inSlow(&pk, now)
	if pass {
		p.stats.Passed++
	}
	return pass
}

func (p *Peer) inSlow(pk *packet, now uint32) bool {
	if !p.ours(&pk.key) {
		p.stats.Misdirected++
		return false
	}
	switch pk.class {
	case classFlow:
		if !p.inFlow(pk, now) {
			return false
		}
	case classEchoRequest: // the reply needs no state, so none is kept
		if !p.judge(&pk.key) {
			return false
		}
	case classEchoReply, classError:
		about := &pk.key
		if pk.class == classError {
			about = &pk.about
		}
		fl := p.table.find(about, now)
		if fl == nil || fl.state&refused != 0 {
			p.stats.Unsolicited++
			return false
		}
		if pk.class == classEchoReply {
			fl.seen(seenIn, 0, now)
		}
	case classLaterFragment:
		if p.table.find(&pk.key, now) == nil {
			p.stats.Fragments++
			return false
		}
		return true
	}
	if pk.fragment { // a first fragment that may pass takes its later ones along
		k := pk.fragmentKey()
		fl := p.table.find(&k, now)
		if fl == nil {
			fl = p.insert(&k, now)
		}
		fl.until = now + timeoutFragment
	}
	return true
}

// inFlow decides about a packet of a protocol with flows.
func (p *Peer) inFlow(pk *packet, now uint32) bool {
	start := pk.key.proto() == protoTCP && pk.flags&(syn|ack) == syn
	fl := p.table.find(&pk.key, now)
	switch {
	case fl == nil:
		if !p.judge(&pk.key) {
			return false
		}
		if pk.flags&rst != 0 {
			return true // the end of nothing: no state
		}
		fl = p.insert(&pk.key, now)
		p.stats.Opened++
	case start && (fl.closed() || fl.state&startedHere != 0 && fl.state&established != 0):
		// A new connection over an old one's ports must not profit from the old one.
		if !p.judge(&pk.key) {
			return false
		}
		fl.state = 0
	case fl.state&startedHere == 0 && fl.gen != p.gen:
		// The rules have changed since the peer started this.
		if !p.judge(&pk.key) {
			// Kept as refused: without a trace of it, our side's next segment would look like a flow of our own.
			fl.state |= refused
			fl.gen = p.gen
			fl.until = now + timeoutTransitory
			return false
		}
		fl.state &^= refused
	case fl.state&refused != 0:
		p.stats.Closed++
		return false
	}
	fl.gen = p.gen
	fl.seen(seenIn, pk.flags, now)
	p.lastIn = fl
	return true
}

// judge asks the rules whether the peer may start the flow.
func (p *Peer) judge(k *flowKey) bool {
	if p.outside {
		p.stats.Closed++
		return false
	}
	_, behind := p.f.self.owns(k.local())
	for _, r := range p.mine {
		if r.rule.matches(k, behind) {
			p.rules.hits[r.index].Add(1)
			if r.rule.Action == Block {
				p.stats.Blocked++
				return false
			}
			return true
		}
	}
	if k.proto() == protoICMP && !behind {
		return true // echo requests: the only ICMP that is judged
	}
	p.stats.Closed++
	return false
}

// ours reports whether the key's ends are this node's and the peer's, or behind them; of the internet it is enough that the
// other end is not in the mesh, since only flows that the host began are let in.
func (p *Peer) ours(k *flowKey) bool {
	if p.outside {
		return byte(k[2])&0xfe != 2 // ident.MeshPrefix, 200::/7: words are little-endian
	}
	a, b := p.f.self.owns(k.local())
	c, d := p.at.owns(k.remote())
	return (a || b) && (c || d)
}

// filterLocked picks the rules that can match this peer.
func (p *Peer) filterLocked() {
	c := p.f.rules.Load()
	p.rules, p.mine = c, nil
	p.gen++
	for i := range c.list {
		r := &c.list[i]
		var match bool
		switch r.From.Kind {
		case Anyone:
			match = true
		case Members:
			match = p.community
		case Group:
			match = c.groups[r.From.Group][p.key]
		case Key:
			match = r.From.Key == p.key
		}
		if match {
			p.mine = append(p.mine, peerRule{r, i})
		}
	}
}

func (p *Peer) insert(k *flowKey, now uint32) *flow {
	fl, evicted, moved := p.table.insert(k, now, &p.f.budget)
	if moved {
		p.lastIn, p.lastOut = nil, nil
	}
	if evicted {
		p.stats.Evicted++
	}
	fl.gen = p.gen
	return fl
}

// Stats count packets, except where they say otherwise.
type Stats struct {
	Passed      uint64 `json:"passed"`
	Closed      uint64 `json:"closed"`      // refused because no rule allows it
	Blocked     uint64 `json:"blocked"`     // refused by a block rule
	Malformed   uint64 `json:"malformed"`   // not IP, truncated, contradictory, or with headers nobody should send
	Unsolicited uint64 `json:"unsolicited"` // ICMP errors and echo replies that answer nothing
	Fragments   uint64 `json:"fragments"`   // later fragments whose first did not pass before
	Misdirected uint64 `json:"misdirected"` // between addresses that are not the peer's and ours
	Opened      uint64 `json:"opened"`      // flows
	Evicted     uint64 `json:"evicted"`     // flows that gave way to newer ones
}

func (s *Stats) add(o Stats) {
	s.Passed += o.Passed
	s.Closed += o.Closed
	s.Blocked += o.Blocked
	s.Malformed += o.Malformed
	s.Unsolicited += o.Unsolicited
	s.Fragments += o.Fragments
	s.Misdirected += o.Misdirected
	s.Opened += o.Opened
	s.Evicted += o.Evicted
}

// Stats returns the sums since the start.
func (f *Firewall) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	sum := f.gone
	for p := range f.allLocked() {
		p.mu.Lock()
		sum.add(p.stats)
		p.mu.Unlock()
	}
	return sum
}

// allLocked yields every peer and the internet.
func (f *Firewall) allLocked() iter.Seq[*Peer] {
	return func(yield func(*Peer) bool) {
		if !yield(f.out) {
			return
		}
		for _, p := range f.peers {
			if !yield(p) {
				return
			}
		}
	}
}

// RuleStatus is a rule in force and how many flows it has decided since it came into force.
type RuleStatus struct {
	Rule Rule   `json:"rule"`
	App  bool   `json:"app"` // opened by an app, not written by the owner
	Hits uint64 `json:"hits"`
}

// InForce lists the rules in the order they are asked. What none of them decides is refused, except echo requests to
// the node itself.
func (f *Firewall) InForce() []RuleStatus {
	c := f.rules.Load()
	out := make([]RuleStatus, len(c.list))
	for i, r := range c.list {
		out[i] = RuleStatus{Rule: r.clone(), App: i >= c.users, Hits: c.hits[i].Load()}
	}
	return out
}

// Flow describes one open flow.
type Flow struct {
	Peer   ident.PublicKey `json:"peer"`
	Proto  string          `json:"proto"`
	Local  netip.AddrPort  `json:"local"`
	Remote netip.AddrPort  `json:"remote"`
	Here   bool            `json:"here"`  // this side started it
	State  string          `json:"state"` // new, open, closing, reset, refused
	Left   time.Duration   `json:"left"`  // until it is forgotten if nothing more is seen
}

// Flows lists the open flows, at most limit of them (0: all).
func (f *Firewall) Flows(limit int) []Flow {
	now := f.sec.Load()
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Flow
	for p := range f.allLocked() {
		p.mu.Lock()
		for fl := range p.table.all(now) {
			if limit > 0 && len(out) == limit {
				break
			}
			if fl.key.proto() != protoFragment {
				out = append(out, fl.describe(p.key, now))
			}
		}
		p.mu.Unlock()
	}
	return out
}
