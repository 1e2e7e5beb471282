package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weft/api"
	"weft/config"
	"weft/forward"
	"weft/gateway"
	"weft/ident"
	"weft/ledger"
	"weft/ledger/bft/bftclient"
	"weft/ledger/lite"
	"weft/ledger/tx"
	"weft/link"
	"weft/meter"
	"weft/pay"
	"weft/route"
	"weft/wire"
)

// tabs joins package pay with what it needs: the ledger (through coop) settles, meter and forward count, gateway and forward carry
// out its verdicts, and what the members have voted is in force here from the block on in which it takes effect.
//
//	ledger ──rules, members, tabs──▶ pay ──verdicts──▶ gateway (internet), forward (carriage)
//	                                  ▲
//	meter, forward ──counters─────────┘
//
// Without a community there is nothing to pay with, and nothing costs.
type tabs struct {
	n     *Node
	pay   atomic.Pointer[pay.Pay]            // nil: no community yet
	rules atomic.Pointer[rules]              // nil: not known yet
	self  atomic.Bool                        // this node's key is a member's, or registered as one's
	owner atomic.Pointer[ident.PublicKey]    // that member's key, to whom others open tabs; nil: not known, as of a member's own
	again atomic.Pointer[context.CancelFunc] // has the books opened anew

	members register
	counts  counters
	news    atomic.Bool // there is something to keep in tabs.json

	// Only for watch:
	proved []byte               // the bylaws in force as last read
	told   map[pay.ID]pay.State // what events have said of this node's own debts

	telling sync.Mutex // held while pay is told what the owner allows, so that the last word stands; taken before pay's and mu

	mu      sync.Mutex // guards what follows
	problem string     // why no tabs are kept
	wallet  config.Wallet
	account tx.Account                 // as last heard
	slow    map[ident.NodeID]uint32    // neighbours that get the free tier alone for what they owe carriage for, kbit/s
	relays  map[ident.PublicKey]uint16 // on the way to clients, as of when there was one last
}

// rules are what the members have voted, in force now.
type rules struct {
	pay.Tariff
	Version  uint64
	Carriage uint32 // ncredit per MiB and relay
	Lambda   uint32 // µs per 1,000,000 ncredit/MiB
}

func rulesOf(p *ledger.Params) *rules {
	u32 := func(v int64) uint32 { return uint32(min(max(v, 0), 1<<32-1)) }
	return &rules{Version: p.Version, Carriage: u32(p.Carriage), Lambda: u32(p.Lambda * 1000), Tariff: pay.Tariff{
		FreeKbit: u32(p.FreeKbit), GuestKbit: u32(p.GuestKbit), ExposureLeast: uint64(p.ExposureMin), ExposureMost: uint64(p.ExposureMax),
		ExposureSeconds: uint64(p.ExposureSeconds), Trust: p.Trust, PriceMost: u32(p.PriceCap), TabLife: p.TabLife,
	}}
}

const (
	rulesEvery  = 3 * time.Second // between questions whether a vote has changed anything
	memberEvery = time.Minute     // a member's standing
	maxRegister = 4096
	maxCounted  = 4096 // peers whose counts are kept without a session or link
	askLedger   = 30 * time.Second
	waitLedger  = 2 * time.Minute // for a block with a transaction
)

func newTabs(n *Node) *tabs {
	t := &tabs{n: n, wallet: n.cfg.Wallet, slow: map[ident.NodeID]uint32{}, relays: map[ident.PublicKey]uint16{}}
	t.members.known = map[ident.PublicKey]*standing{}
	t.counts.init(t)
	return t
}

// serve keeps tabs in a community until ctx ends.
func (t *tabs) serve(ctx context.Context, f coopFile) error {
	t.recall()
	t.isMember(t.n.self) // the first to be asked for
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { t.watch(ctx) })
	for t.rules.Load() == nil || !t.members.knows(t.n.self) { // what things cost, and whether this node is paid, is the members' to say
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(100 * time.Millisecond):
		}
	}
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		err := t.keepBooks(ctx, f)
		if ctx.Err() != nil {
			return err
		}
		if err == nil { // for another owner
			pause = time.Second
			continue
		}
		t.n.log.Error("no tabs are kept: nothing is paid, and nobody pays; it is tried again", "err", err)
		t.mu.Lock()
		t.problem = err.Error()
		t.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// keepBooks keeps tabs until ctx ends, or this node becomes another member's; its error then is that of the last write.
func (t *tabs) keepBooks(ctx context.Context, f coopFile) (err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	t.again.Store(&stop)
	defer t.again.Store(nil)
	account := t.n.self
	if k := t.owner.Load(); k != nil {
		account = *k
	}
	store, err := pay.OpenFile(t.n.opt.StateDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	p, err := pay.New(pay.Config{
		Signer: t.n.agent, Account: account, Chain: tx.ChainOf(f.Chain), Log: t.n.log.With("room", "pay"), Store: store, Meter: &t.counts, Settler: settler{t.n.coop},
		Send: func(peer ident.PublicKey, payload []byte) error {
			return t.n.sessions.SendMessage(peer, pay.Channel, payload)
		},
		Tariff: func() pay.Tariff { return t.rules.Load().Tariff }, Member: t.isMember, Rate: t.rate, Price: t.price, Enforce: t.enforce,
		VerifyAnchor: t.n.coop.verifyAnchor, Wallet: t.purse(),
	})
	if err != nil {
		return err
	}
	t.pay.Store(p)
	defer t.pay.Store(nil)
	t.mu.Lock()
	t.problem = ""
	t.mu.Unlock()
	t.allow()          // what the owner has said meanwhile
	t.n.sharing.stir() // offers know the price cap now
	return p.Serve(ctx)
}

// handle takes a message of channel 3.
func (t *tabs) handle(peer ident.PublicKey, payload []byte) {
	if p := t.pay.Load(); p != nil {
		p.Handle(time.Now(), peer, payload)
	}
}

// allow tells pay what the owner allows now.
func (t *tabs) allow() {
	t.telling.Lock()
	defer t.telling.Unlock()
	if p := t.pay.Load(); p != nil {
		p.SetWallet(t.purse())
	}
}

// purse is what the owner allows, as pay knows it, and no price above what the members allow: a gateway may name an old one after a
// vote.
func (t *tabs) purse() pay.Wallet {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := pay.Wallet{Budget: int64(t.wallet.Cap), MaxPrice: t.rules.Load().PriceMost}
	if own := uint32(t.n.cfg.Gateway.MaxPrice); own != 0 {
		w.MaxPrice = min(w.MaxPrice, own)
	}
	return w
}

// price is what this node asks for: as a gateway its own price and the carriage of all relays on the way, as a relay the voted carriage.
func (t *tabs) price(id pay.ID) (uint32, bool) {
	r := t.rules.Load()
	if !t.self.Load() {
		return 0, false // without an account there is no way to be paid
	}
	if id.Service == pay.Carriage {
		return r.Carriage, r.Carriage > 0
	}
	own := t.n.sharing.price()
	hop, ok := t.n.routing.table.Load().Route(id.Peer.ID())
	t.mu.Lock()
	defer t.mu.Unlock()
	if ok && hop.Hops > 0 {
		if len(t.relays) >= maxCounted {
			clear(t.relays)
		}
		t.relays[id.Peer] = hop.Hops - 1
	} // else it is away: the price stays, or it would have to rise again when it is back
	return uint32(min(uint64(own)+uint64(t.relays[id.Peer])*uint64(r.Carriage), 1<<32-1)), true
}

// rate is what may flow for an account, both directions, in bytes/s: what the owner gives of the line, or the most that was seen.
func (t *tabs) rate(id pay.ID) uint64 {
	if id.Service == pay.Internet {
		if bits := t.n.sharing.lineRate(); bits > 0 {
			return bits / 8
		}
	}
	return t.counts.peak(id)
}

// enforce carries out a verdict.
func (t *tabs) enforce(id pay.ID, v pay.Verdict) {
	kbit := uint32(0)
	if v.FreeTier {
		kbit = max(v.Kbit, 1)
	}
	if id.Service == pay.Internet {
		t.n.sharing.gw.Throttle(id.Peer, kbit)
		return
	}
	t.mu.Lock()
	if kbit == 0 {
		delete(t.slow, id.Peer.ID())
	} else {
		t.slow[id.Peer.ID()] = kbit
	}
	t.mu.Unlock()
	for _, l := range t.n.routing.linkList() {
		if l.Peer() == id.Peer {
			l.Neighbour().Throttle(kbit)
		}
	}
}

// slowed is the rate of a neighbour's gateway traffic in kbit/s, 0: as it comes.
func (t *tabs) slowed(id ident.NodeID) uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.slow[id]
}

// watch keeps rules and members up to date.
func (t *tabs) watch(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var asked time.Time
	for {
		now := time.Now()
		due := t.members.due(now)
		if now.Sub(asked) >= rulesEvery || len(due) > 0 {
			limit, cancel := context.WithTimeout(ctx, 10*time.Second)
			err := t.look(limit, now, due)
			cancel()
			if err != nil && ctx.Err() == nil {
				t.n.log.Debug("the ledger cannot be asked", "err", err)
			}
			asked = time.Now()
		}
		if t.news.Swap(false) && t.rules.Load() != nil {
			t.keep()
		}
		t.tell()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look asks the ledger for the bylaws in force and for members.
func (t *tabs) look(ctx context.Context, now time.Time, due []ident.PublicKey) error {
	cl := t.n.coop.client()
	defer cl.Close()
	b, err := t.bylaws(ctx, cl)
	if err != nil {
		return err
	}
	p := ledger.Params{}
	if err := tx.Decode(b, &p); err != nil {
		return fmt.Errorf("the bylaws: %w", err)
	}
	r := rulesOf(&p)
	if old := t.rules.Load(); old != nil && r.Version < old.Version && !t.n.coop.keeps() { // a proof is of what was once
		return fmt.Errorf("the node that keeps the ledger shows bylaws of version %d, and version %d was in force already", r.Version, old.Version)
	}
	t.proved = b
	changed := t.adopt(r)
	for _, k := range due {
		st, owner, err := t.n.coop.memberOf(ctx, cl, k)
		if err != nil {
			return err
		}
		if k == t.n.self && st >= ofNode {
			changed = t.own(owner) || changed
		}
		changed = t.members.note(now, k, st, t.n.coop.keeps()) || changed
	}
	t.self.Store(t.members.is(now, t.n.self))
	if changed {
		t.keep()
	}
	return nil
}

// own notes whose node this is, and reports whether that is news.
func (t *tabs) own(k ident.PublicKey) bool {
	was := t.owner.Swap(&k)
	if was != nil && *was == k {
		return false
	}
	if stop := t.again.Load(); stop != nil && (was != nil || k != t.n.self) {
		(*stop)()
	}
	return true
}

// bylaws returns the record of the bylaws in force. To a node that follows another's ledger new ones are proved; that they are the
// same as before it takes from that node's word, which could as well prove old ones. There are always some.
func (t *tabs) bylaws(ctx context.Context, cl *bftclient.Client) ([]byte, error) {
	k := tx.StateKeyBylaws()
	if t.proved != nil && !t.n.coop.keeps() {
		if v, err := cl.Get(ctx, k, 0, false); err != nil || bytes.Equal(v.Value, t.proved) {
			return t.proved, err
		}
	}
	b, _, err := t.n.coop.record(ctx, cl, k)
	if err == nil && len(b) == 0 {
		err = errors.New("the ledger shows no bylaws")
	}
	return b, err
}

// adopt puts rules in force, and reports whether they are others than before.
func (t *tabs) adopt(r *rules) bool {
	old := t.rules.Swap(r)
	if old != nil && *old == *r {
		return false
	}
	if err := t.n.routing.say(func(l *route.Local) { l.Price, l.Lambda = r.Carriage, r.Lambda }); err != nil {
		t.n.log.Error("the voted price of carriage is not announced", "err", err)
	}
	t.allow()
	if old != nil {
		t.n.log.Info("what the members voted is in force", "version", r.Version)
		t.n.hub.Publish(api.Event{Kind: api.EventWallet, Text: "what the members voted is in force: the bylaws and tariff have changed"})
	}
	t.n.sharing.stir()
	return true
}

// isMember reports whether a node is a member's, in good standing. Who is not known yet is asked for.
func (t *tabs) isMember(k ident.PublicKey) bool { return t.members.is(time.Now(), k) }

// tell publishes when a node to which this one owes gives the free tier alone, and when that is over.
func (t *tabs) tell() {
	p := t.pay.Load()
	if p == nil {
		return
	}
	told := map[pay.ID]pay.State{}
	defer func() { t.told = told }()
	for _, a := range p.View(time.Now()).Accounts {
		if a.Role != pay.Payer {
			continue
		}
		was := t.told[a.ID]
		told[a.ID] = a.State
		name := t.n.routing.nameOf(a.ID.Peer)
		switch {
		case a.State == was:
		case a.State == pay.Throttled:
			t.n.hub.Publish(api.Event{Kind: api.EventWallet, ID: a.ID.Peer.ID().String(), Name: t.n.routing.name(a.ID.Peer.ID()),
				Text: name + " gives the free tier alone, since something is owed that is not paid; see: weft wallet"})
		case was == pay.Throttled:
			t.n.hub.Publish(api.Event{Kind: api.EventWallet, ID: a.ID.Peer.ID().String(), Name: t.n.routing.name(a.ID.Peer.ID()), Text: name + " gives the full rate again"})
		}
	}
}

// tabsFile is what lasts of rules and members, for a start without the ledger in reach.
type tabsFile struct {
	Rules   *rules
	Members []ident.PublicKey
	Owner   *ident.PublicKey `json:",omitempty"` // of this node
	Account tx.Account
	Stints  []keptStint `json:",omitempty"`
}

// keptStint is a stint of this node with a member: its counts go on after a restart, however the node ended.
type keptStint struct {
	Peer  ident.PublicKey
	Role  pay.Role
	Epoch uint64
	Base  [2]uint64
}

func (t *tabs) file() string { return filepath.Join(t.n.coop.dir, "tabs.json") }

func (t *tabs) keep() {
	f := tabsFile{Rules: t.rules.Load(), Members: t.members.list(), Owner: t.owner.Load(), Stints: t.counts.kept()}
	t.mu.Lock()
	f.Account = t.account
	t.mu.Unlock()
	b, err := json.Marshal(f)
	if err == nil {
		err = config.WriteFile(t.file(), b)
	}
	if err != nil {
		t.n.log.Warn("rules and members are not kept", "err", err)
	}
}

func (t *tabs) recall() {
	var f tabsFile
	if b, err := os.ReadFile(t.file()); err != nil || json.Unmarshal(b, &f) != nil || f.Rules == nil {
		return
	}
	t.members.recall(f.Members)
	t.owner.Store(f.Owner)
	t.mu.Lock()
	t.account = f.Account
	t.mu.Unlock()
	t.counts.recall(f.Stints)
	t.self.Store(slices.Contains(f.Members, t.n.self))
	t.adopt(f.Rules)
}

// register remembers who is a member's node.
type register struct {
	mu    sync.Mutex // guards known
	known map[ident.PublicKey]*standing
}

type standing struct {
	member bool
	sure   bool      // the key was shown to be a member's own: its record is never deleted
	at     time.Time // when the ledger said so; zero: never
	asked  bool      // somebody wants to know
	times  uint      // in a row that the answer was no
}

// The standings of a key, as the ledger has them.
const (
	ofNobody   = iota // there is no record of it
	ofInactive        // void, or of one who is not in good standing
	ofNode            // a member's node or delegate
	ofMember          // a member
)

func (r *register) is(now time.Time, k ident.PublicKey) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.known[k]
	if s == nil {
		if len(r.known) >= maxRegister {
			r.shrinkLocked(now)
		}
		if len(r.known) >= maxRegister {
			return false
		}
		s = &standing{}
		r.known[k] = s
	}
	every := memberEvery
	if !s.member { // may become one any moment; who has been none for long is asked for less often
		every = memberEvery / 12 << min(s.times/12, 2)
	}
	s.asked = s.asked || now.Sub(s.at) >= every
	return s.member
}

// shrinkLocked forgets an eighth: strangers first, whoever they are, since anybody can make up keys; then members of whom nobody has
// asked lately.
func (r *register) shrinkLocked(now time.Time) {
	most := maxRegister / 8 * 7
	for _, goes := range []func(*standing) bool{
		func(s *standing) bool { return !s.member && !s.at.IsZero() },
		func(s *standing) bool { return !s.member },
		func(s *standing) bool { return now.Sub(s.at) > memberEvery && !s.asked },
	} {
		for k, s := range r.known {
			if len(r.known) <= most {
				return
			}
			if goes(s) {
				delete(r.known, k)
			}
		}
	}
}

// due returns some of those to be asked for.
func (r *register) due(time.Time) (l []ident.PublicKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, s := range r.known {
		if s.asked && len(l) < 64 {
			l = append(l, k)
		}
	}
	return l
}

// note keeps an answer, and reports whether it is news. That there is no record of somebody who was a member is true of no ledger;
// of one that another node keeps it is not believed (own: this node does).
func (r *register) note(now time.Time, k ident.PublicKey, st int, own bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.known[k]
	if s == nil {
		return false
	}
	was := *s
	*s = standing{member: st >= ofNode, sure: st == ofMember, at: now}
	if st == ofNobody && was.sure && !own {
		s.member, s.sure = was.member, true
	}
	if !s.member {
		s.times = was.times + 1
	}
	return was.member != s.member
}

func (r *register) knows(k ident.PublicKey) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.known[k]
	return s != nil && (s.member || !s.at.IsZero())
}

func (r *register) list() (l []ident.PublicKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, s := range r.known {
		if s.member {
			l = append(l, k)
		}
	}
	slices.SortFunc(l, func(a, b ident.PublicKey) int { return bytes.Compare(a[:], b[:]) })
	return l
}

func (r *register) recall(l []ident.PublicKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range l[:min(len(l), maxRegister)] {
		if r.known[k] == nil {
			r.known[k] = &standing{member: true}
		}
	}
}

// counters turn what meter and forward count into pay's readings. A count belongs to one account: of internet traffic, to the
// one in which the peer is what it is now, gateway or client. When they change places the count begins anew.
type counters struct {
	t *tabs

	mu      sync.Mutex // guards what follows
	epoch   uint64     // of this process
	stints  map[ident.PublicKey]*stint
	carried map[accountKey]*carried
	hauls   map[uint32]*haulage // by the index of the link
	peaks   map[pay.ID]*peak
	table   *route.Table   // of far
	far     map[uint32]int // hops to the farthest node behind a link
}

// stint is the time for which a peer is this node's gateway, or its client.
type stint struct {
	role       pay.Role
	epoch      uint64
	base, last [2]uint64 // sent, received
	gap        bool
	seen       time.Time // when there was a session last
	kept       bool      // in tabs.json
}

type accountKey struct {
	peer ident.PublicKey
	role pay.Role
}

// carried sums up the links to one neighbour in one role.
type carried struct {
	base, sum [2]uint64 // sent, received: when billing began, and now
	shown     bool
}

// haulKey names a counter of a link.
type haulKey struct {
	dest ident.NodeID
	hops uint8
	sent bool
}

// haulage is one link: what its counters were, and what was carried over it at this node's cost and for its benefit.
type haulage struct {
	last               map[haulKey]uint64
	pays, earns        map[haulKey]pay.Haul
	paid, earned       pay.Carried
	paidSum, earnedSum [2]uint64
}

// peak is the most that an account moved in a second.
type peak struct {
	at    time.Time
	bytes uint64
	most  uint64
}

func (c *counters) init(t *tabs) {
	c.t, c.epoch = t, rand.Uint64()
	c.stints, c.carried, c.peaks = map[ident.PublicKey]*stint{}, map[accountKey]*carried{}, map[pay.ID]*peak{}
	c.hauls = map[uint32]*haulage{}
}

// Readings implements pay.Meter.
func (c *counters) Readings() []pay.Reading {
	s := c.t.n.sharing
	view := s.meter.View()
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	using := s.gateway()
	here := map[ident.PublicKey]bool{}
	for _, v := range view.Sessions {
		if v.Kind != meter.Outside {
			continue
		}
		here[v.Peer] = true
		role := pay.Role(0)
		if v.Peer == using {
			role = pay.Payer
		} else if _, ok := s.gw.LeaseOf(v.Peer); ok {
			role = pay.Payee
		}
		c.outsideLocked(v.Peer, role, v.Out.Agreed.Billed(), v.In.Total.Billed(), v.Out.Gap || v.In.Gap)
	}
	c.forgetLocked(here, now)
	c.carryLocked(&view)
	return c.listLocked(now)
}

// Commit implements pay.Meter.
func (c *counters) Commit(now time.Time) ([]pay.Reading, error) {
	totals, err := c.t.n.sharing.meter.Commit(now)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for peer, st := range c.stints {
		p := totals.Find(peer)
		c.outsideLocked(peer, 0, p.Outside.Delivered.Billed(), p.Outside.Recv.Billed(), st.gap)
	}
	return c.listLocked(now), nil
}

// kept are the stints that last.
func (c *counters) kept() (l []keptStint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for peer, s := range c.stints {
		if s.kept {
			l = append(l, keptStint{peer, s.role, s.epoch, s.base})
		}
	}
	slices.SortFunc(l, func(a, b keptStint) int { return bytes.Compare(a.Peer[:], b.Peer[:]) })
	return l
}

// recall goes on with stints of a run before. Those of this run stay.
func (c *counters) recall(l []keptStint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range l[:min(len(l), maxCounted)] {
		if c.stints[k.Peer] == nil && (k.Role == pay.Payer || k.Role == pay.Payee) {
			c.stints[k.Peer] = &stint{role: k.Role, epoch: k.Epoch, base: k.Base, last: k.Base, seen: time.Now(), kept: true}
		}
	}
}

// stintLasts is how long a peer without a session is remembered: its counts go on when it is back sooner.
const stintLasts = 15 * time.Minute

// forgetLocked drops peers that have had no session for long, or that are too many: keys cost nothing. Who comes back begins anew.
func (c *counters) forgetLocked(here map[ident.PublicKey]bool, now time.Time) {
	for peer, st := range c.stints {
		if here[peer] {
			st.seen = now
		}
	}
	full := len(c.stints) > maxCounted
	maps.DeleteFunc(c.stints, func(peer ident.PublicKey, st *stint) bool {
		gone := !here[peer] && (full || now.Sub(st.seen) > stintLasts)
		if gone {
			if st.kept {
				c.t.news.Store(true)
			}
			delete(c.peaks, pay.ID{Peer: peer, Service: pay.Internet})
		}
		return gone
	})
}

// outsideLocked takes the totals of the outside traffic with a peer. role 0 is the one that it has.
func (c *counters) outsideLocked(peer ident.PublicKey, role pay.Role, sent, recv uint64, gap bool) {
	st := c.stints[peer]
	if role != 0 && (st == nil || st.role != role) {
		st = &stint{role: role, epoch: rand.Uint64(), base: [2]uint64{sent, recv}, last: [2]uint64{sent, recv}, seen: time.Now()}
		c.stints[peer] = st
	}
	if st == nil {
		return
	}
	st.last = [2]uint64{max(st.last[0], sent), max(st.last[1], recv)} // a view may be older than what was committed
	st.gap = gap
}

// carryLocked takes what passed over the links.
func (c *counters) carryLocked(view *meter.View) {
	r := c.t.n.routing
	table := r.table.Load()
	delivered := map[ident.NodeID]int{}
	for _, v := range view.Neighbours {
		if v.Delivered >= 0 {
			delivered[v.Neighbour] = v.Delivered
		}
	}
	w := ways{self: r.n.self.ID(), hops: func(dest ident.NodeID) int {
		hop, _ := table.Route(dest)
		return int(hop.Hops)
	}, gateways: gatewayIDs(table), delivered: delivered}
	_, w.serves = w.gateways[w.self]
	links := r.linkList()
	if c.table != table {
		c.table, c.far = table, map[uint32]int{}
		for _, hop := range table.Routes() {
			c.far[hop.Link] = max(c.far[hop.Link], int(hop.Hops))
		}
	}
	at := map[uint32]ident.NodeID{}
	for _, l := range links {
		at[l.ID()] = l.Peer().ID()
	}
	behind := reachOf(c.far, at)
	seen := map[uint32]bool{}
	near := map[ident.PublicKey]bool{}
	for _, l := range links {
		peer, nb := l.Peer(), l.Neighbour()
		seen[nb.Index()], near[peer] = true, true
		nb.Throttle(c.t.slowed(peer.ID())) // also of links that came after the verdict
		h := c.hauls[nb.Index()]
		if h == nil {
			h = newHaulage()
			c.hauls[nb.Index()] = h
		}
		beyond, here := behind.relays(peer.ID())
		h.take(&w, peer.ID(), beyond, here, nb.Handed(), nb.Flows())
		c.sumLocked(accountKey{peer, pay.Payer}, &h.paid, &h.paidSum, h.pays)
		c.sumLocked(accountKey{peer, pay.Payee}, &h.earned, &h.earnedSum, h.earns)
	}
	maps.DeleteFunc(c.hauls, func(i uint32, _ *haulage) bool { return !seen[i] })
	if len(c.carried) > maxCounted {
		maps.DeleteFunc(c.carried, func(k accountKey, _ *carried) bool {
			if near[k.peer] {
				return false
			}
			delete(c.peaks, pay.ID{Peer: k.peer, Service: pay.Carriage})
			return true
		})
	}
}

// reaches is how many hops it is to the farthest node behind each neighbour.
type reaches map[ident.NodeID]int

// reachOf sums up links, far by their ids, to the neighbours at their ends: of several links to one, each end chooses for itself
// which it uses.
func reachOf(far map[uint32]int, at map[uint32]ident.NodeID) reaches {
	r := reaches{}
	for link, id := range at {
		r[id] = max(r[id], far[link])
	}
	return r
}

// relays is the most that an upload can have passed: beyond a neighbour, or on this node's side of it.
func (r reaches) relays(neighbour ident.NodeID) (beyond, here int) {
	for id, far := range r {
		if id != neighbour {
			here = max(here, far)
		}
	}
	return max(r[neighbour]-1, 0), here
}

// ways is what the routing table says, as carriage is billed by it.
type ways struct {
	self      ident.NodeID
	hops      func(dest ident.NodeID) int // 0: no way is known
	gateways  map[ident.NodeID]struct{}
	serves    bool                 // this node is one of them
	delivered map[ident.NodeID]int // permille of what a neighbour is given that is known to arrive
}

func newHaulage() *haulage {
	return &haulage{last: map[haulKey]uint64{}, pays: map[haulKey]pay.Haul{}, earns: map[haulKey]pay.Haul{}}
}

// take judges what the counters of a link to a neighbour have gained. How many relays an upload has passed, its header says, which
// the user wrote: it counts up to what there can be, the most relays beyond the neighbour, or here on this node's side of it.
func (h *haulage) take(w *ways, peer ident.NodeID, beyond, here int, handed []forward.Handed, flows []forward.Flow) {
	ratio, ok := w.delivered[peer]
	if !ok {
		ratio = 1000
	}
	for _, f := range handed {
		_, up := w.gateways[f.Dest]
		switch n := h.more(f.Flow, true); {
		case n == 0:
		case up:
			haul(h.earns, f.Flow, n, 0, min(int(f.Hops), here), 1000)
		case f.Hops > 0 || w.serves: // what a user sends itself is nobody's download
			haul(h.pays, f.Flow, n, 0, w.hops(f.Dest)-1, ratio)
		}
	}
	for _, f := range flows {
		_, up := w.gateways[f.Dest]
		switch n := h.more(f, false); {
		case n == 0:
		case up:
			haul(h.pays, f, 0, n, min(int(f.Hops), beyond), 0)
		case f.Dest != w.self:
			haul(h.earns, f, 0, n, w.hops(f.Dest), 0)
		}
	}
}

// more is what one of the link's counters has gained. What it is worth is judged as things stand now: who is a gateway and how far
// away changes, and what was carried before is not counted a second time for that.
func (h *haulage) more(f forward.Flow, sent bool) uint64 {
	if f.Class != wire.ClassGateway || f.Dest == 0 {
		return 0
	}
	k := haulKey{f.Dest, f.Hops, sent}
	n := f.Bytes - min(h.last[k], f.Bytes)
	h.last[k] = f.Bytes
	return n
}

func haul(m map[haulKey]pay.Haul, f forward.Flow, sent, recv uint64, relays, delivered int) {
	k := haulKey{f.Dest, f.Hops, sent > 0}
	h := m[k]
	h.Sent += sent
	h.Recv += recv
	h.Relays, h.Delivered = relays, delivered
	m[k] = h
}

// sumLocked adds what a link has gained to its neighbour's account.
func (c *counters) sumLocked(k accountKey, sums *pay.Carried, last *[2]uint64, hauls map[haulKey]pay.Haul) {
	list := make([]pay.Haul, 0, len(hauls))
	for k, h := range hauls { // Carried tells hauls apart by an id: that of a node, its hops and the direction is nobody's
		h.Dest = k.dest ^ ident.NodeID(k.hops)<<56
		if k.sent {
			h.Dest = ^h.Dest
		}
		list = append(list, h)
	}
	sent, recv := sums.Add(c.epoch, list)
	s := c.carried[k]
	if s == nil {
		if sent+recv == 0 {
			return
		}
		s = &carried{}
		c.carried[k] = s
	}
	s.sum[0] += sent - last[0]
	s.sum[1] += recv - last[1]
	*last = [2]uint64{sent, recv}
}

func (c *counters) listLocked(now time.Time) []pay.Reading {
	var out []pay.Reading
	earns := c.t.self.Load() // who has no account bills nobody and owes nobody, and begins when there is one
	for peer, s := range c.stints {
		if !earns {
			s.base = s.last
			continue
		}
		if !s.kept && c.t.isMember(peer) {
			s.kept = true
			c.t.news.Store(true)
		}
		id := pay.ID{Peer: peer, Service: pay.Internet}
		m := pay.Mark{Epoch: s.epoch, Sent: s.last[0] - s.base[0], Recv: s.last[1] - s.base[1]}
		out = append(out, pay.Reading{ID: id, Role: s.role, Mark: m, Gap: s.gap})
		c.paceLocked(id, m.Sent+m.Recv, now)
	}
	for k, s := range c.carried {
		if !earns {
			s.base, s.shown = s.sum, true
			continue
		}
		id := pay.ID{Peer: k.peer, Service: pay.Carriage}
		m := pay.Mark{Epoch: c.epoch}
		if s.shown { // an account begins at zero, or what has moved already would not be billed
			m.Sent, m.Recv = s.sum[0]-s.base[0], s.sum[1]-s.base[1]
		}
		s.shown = true
		out = append(out, pay.Reading{ID: id, Role: k.role, Mark: m})
		if k.role == pay.Payee {
			c.paceLocked(id, m.Sent+m.Recv, now)
		}
	}
	return out
}

func (c *counters) paceLocked(id pay.ID, bytes uint64, now time.Time) {
	p := c.peaks[id]
	if p == nil || bytes < p.bytes {
		p = &peak{at: now, bytes: bytes}
		c.peaks[id] = p
	}
	if d := now.Sub(p.at); d >= time.Second {
		p.most = max(p.most, uint64(float64(bytes-p.bytes)/d.Seconds()))
		p.at, p.bytes = now, bytes
	}
}

func (c *counters) peak(id pay.ID) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.peaks[id]; p != nil {
		return p.most
	}
	return 0
}

// settler is the ledger as pay sees it.
type settler struct{ c *coop }

func (s settler) Account(ctx context.Context) (tx.Account, error) {
	ctx, cancel := context.WithTimeout(ctx, askLedger)
	defer cancel()
	cl := s.c.client()
	defer cl.Close()
	var a tx.Account
	b, _, err := s.c.record(ctx, cl, tx.StateKeyAccount(s.c.n.self))
	if err == nil && len(b) > 0 {
		err = tx.Decode(b, &a)
	}
	return a, err
}

func (s settler) Tab(ctx context.Context, id tx.TabID) (t tx.Tab, anchor []byte, at time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, askLedger) // one who keeps silent, or proves nothing, holds up no claim of other tabs for ever
	defer cancel()
	cl := s.c.client()
	defer cl.Close()
	k := tx.StateKeyTab(id)
	if b, err := cl.Get(ctx, k, 0, false); err != nil {
		return t, nil, at, err
	} else if len(b.Value) == 0 {
		if s.c.keeps() {
			return t, nil, at, pay.ErrNoTab
		}
		return t, nil, at, pay.ErrUnproven // who opens one all the same is refused by the ledger
	}
	for { // the block that proves it comes soon after the one that has it
		v, err := cl.Get(ctx, k, 0, true)
		if err != nil {
			return t, nil, at, err
		}
		if len(v.Value) > 0 {
			if anchor, at, err = s.c.anchor(ctx, cl, k, v); err != nil {
				return t, nil, at, err
			}
			return t, anchor, at, tx.Decode(v.Value, &t)
		}
		select {
		case <-ctx.Done():
			return t, nil, at, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// look is Tab without the anchor.
func (s settler) look(ctx context.Context, id tx.TabID) (t tx.Tab, err error) {
	cl := s.c.client()
	defer cl.Close()
	b, _, err := s.c.record(ctx, cl, tx.StateKeyTab(id))
	if err == nil && len(b) == 0 {
		err = pay.ErrNoTab
	}
	if err == nil {
		err = tx.Decode(b, &t)
	}
	return t, err
}

func (s settler) Submit(ctx context.Context, body tx.Body) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, waitLedger)
	defer cancel()
	r, err := s.c.transact(ctx, body)
	switch {
	case err != nil:
		return nil, err
	case ledger.Code(r.Code) == ledger.CodeExists:
		return nil, pay.ErrTaken
	case r.Code != 0:
		return nil, fmt.Errorf("the ledger refuses: %s", r.Text)
	}
	return r.Data, nil
}

// record returns a record of the ledger's newest state, or nothing, and when that was so. A node that follows another's ledger has
// it proved; that there is none, it takes from that node's word.
func (c *coop) record(ctx context.Context, cl *bftclient.Client, k []byte) (value []byte, at time.Time, err error) {
	keep := c.keeps()
	v, err := cl.Get(ctx, k, 0, !keep)
	if err != nil || len(v.Value) == 0 || keep {
		return v.Value, time.Now(), err
	}
	at, err = c.prove(ctx, cl, k, v)
	return v.Value, at, err
}

// memberOf asks what a key is: that of a member in good standing, of a node that is registered as one's, or of nobody; and for the
// key of that member.
func (c *coop) memberOf(ctx context.Context, cl *bftclient.Client, k ident.PublicKey) (what int, owner ident.PublicKey, err error) {
	var id uint64
	st := ofMember
	b, _, err := c.record(ctx, cl, tx.StateKeyKey(k))
	if err != nil {
		return ofNobody, owner, err
	}
	if len(b) > 0 {
		var r tx.KeyRole
		if err := tx.Decode(b, &r); err != nil {
			return ofNobody, owner, fmt.Errorf("the register: %w", err)
		}
		switch r.Role {
		case tx.RoleVoid:
			return ofInactive, owner, nil
		case tx.RoleDelegate:
			st = ofNode
		}
		id = r.Member
	} else {
		var n tx.Node
		if b, _, err = c.record(ctx, cl, tx.StateKeyNode(k)); err != nil || len(b) == 0 {
			return ofNobody, owner, err
		}
		if err := tx.Decode(b, &n); err != nil {
			return ofNobody, owner, fmt.Errorf("registered nodes: %w", err)
		}
		if time.Now().Unix() > n.Until {
			return ofInactive, owner, nil
		}
		id, st = n.Member, ofNode
	}
	var m tx.Member
	b, _, err = c.record(ctx, cl, tx.StateKeyMember(id))
	if err == nil && len(b) == 0 {
		err = errors.New("it leads to no member")
	}
	if err == nil {
		err = tx.Decode(b, &m)
	}
	if err != nil {
		return ofNobody, owner, fmt.Errorf("the register: %w", err)
	}
	if m.State != tx.Active {
		return ofInactive, owner, nil
	}
	return st, m.Key, nil
}

// anchor makes the proof of a record that another node of the community can check with what it has verified itself: a block with
// its signatures, and the path from the record to the root of the state in that block. Both are messages of docs/spec/ledger-light.md
// section 6.5, after two bytes that are the length of the first.
func (c *coop) anchor(ctx context.Context, cl *bftclient.Client, k []byte, v bftclient.Value) ([]byte, time.Time, error) {
	at, err := c.prove(ctx, cl, k, v)
	if err != nil {
		return nil, at, err
	}
	raw, err := cl.LightBlock(ctx, v.Height+1)
	if err != nil {
		return nil, at, err
	}
	block, err := lite.ParseComet(raw)
	if err != nil {
		return nil, at, err
	}
	pk, pv, proof, err := lite.ParseICS23(v.Proof)
	if err != nil {
		return nil, at, err
	}
	first, err := lite.Encode(&lite.Block{LightBlock: *block})
	if err != nil {
		return nil, at, err
	}
	second, err := lite.Encode(&lite.Record{Height: v.Height, Key: pk, Value: pv, Proof: proof})
	if err != nil {
		return nil, at, err
	}
	b := append(append(binary.BigEndian.AppendUint16(nil, uint16(len(first))), first...), second...)
	if len(b) > pay.MaxAnchor {
		return nil, at, fmt.Errorf("the proof has %d bytes, too many to show: there are %d validators", len(b), len(block.Set))
	}
	return b, at, nil
}

// verifyAnchor is pay's: what another node's anchor proves.
func (c *coop) verifyAnchor(b []byte) (t tx.Tab, at time.Time, err error) {
	block, record, err := parseAnchor(b)
	if err != nil {
		return t, at, err
	}
	if err := tx.Decode(record.Value, &t); err != nil {
		return t, at, err
	}
	if string(record.Key) != string(tx.StateKeyTab(t.ID)) {
		return t, at, errors.New("the anchor's record is no tab")
	}
	c.light.mu.Lock()
	defer c.light.mu.Unlock()
	l, now := c.light.c, time.Now()
	if l == nil {
		return t, at, errors.New("no block is trusted yet")
	}
	if _, err := l.Update(now, &block.LightBlock); err != nil {
		return t, at, err
	}
	at, err = l.Prove(now, record.Key, record.Value, &record.Proof, record.Height)
	return t, at, err
}

func parseAnchor(b []byte) (*lite.Block, *lite.Record, error) {
	bad := errors.New("this is no anchor")
	if len(b) < 2 {
		return nil, nil, bad
	}
	n := int(binary.BigEndian.Uint16(b))
	if len(b) < 2+n {
		return nil, nil, bad
	}
	first, err := lite.Parse(b[2 : 2+n])
	if err != nil {
		return nil, nil, err
	}
	second, err := lite.Parse(b[2+n:])
	if err != nil {
		return nil, nil, err
	}
	block, ok := first.(*lite.Block)
	record, isRecord := second.(*lite.Record)
	if !ok || !isRecord || len(record.Value) == 0 {
		return nil, nil, bad
	}
	return block, record, nil
}

// linkList is all links.
func (r *routing) linkList() []*link.Link {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.links))
}

// gatewayIDs are the nodes that announce a gateway, this one among them.
func gatewayIDs(t *route.Table) map[ident.NodeID]struct{} {
	out := map[ident.NodeID]struct{}{}
	for id, v := range t.Nodes() {
		if b := v.Extension(wire.ExtGateway); b != nil {
			if _, err := gateway.ParseOffer(b); err == nil {
				out[id] = struct{}{}
			}
		}
	}
	return out
}
