package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weft/api"
	"weft/config"
	"weft/ident"
	"weft/ledger"
	"weft/ledger/bft/bftclient"
	"weft/ledger/tx"
	"weft/pay"
	"weft/route"
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
