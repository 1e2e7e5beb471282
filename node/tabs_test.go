package node

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/config"
	"weft/forward"
	"weft/ident"
	"weft/pay"
	"weft/wire"
)

func tabKey(i int) ident.PublicKey { return ident.PublicKey{byte(i), byte(i >> 8), byte(i >> 16), 1} }

// counting makes counters without a node; a member's, if so.
func counting(member bool) *counters {
	t := &tabs{relays: map[ident.PublicKey]uint16{}}
	t.members.known = map[ident.PublicKey]*standing{}
	t.self.Store(member)
	t.counts.init(t)
	return &t.counts
}

// one returns the only reading, or none.
func (c *counters) one(t *testing.T) (r pay.Reading) {
	t.Helper()
	l := c.listLocked(time.Now())
	if len(l) > 1 {
		t.Fatalf("%d accounts: %+v", len(l), l)
	}
	if len(l) == 1 {
		r = l[0]
	}
	return r
}

// TestStints: a count belongs to one role and begins at zero with it, never goes back, and begins anew when the roles change.
func TestStints(t *testing.T) {
	c, peer := counting(true), tabKey(1)
	c.outsideLocked(peer, 0, 10, 20, false)
	if l := c.listLocked(time.Now()); len(l) != 0 {
		t.Fatalf("who is neither gateway nor client has an account: %+v", l)
	}
	c.outsideLocked(peer, pay.Payee, 1000, 2000, false)
	first := c.one(t)
	if first.Role != pay.Payee || first.Peer != peer || first.Service != pay.Internet || first.Sent != 0 || first.Recv != 0 {
		t.Errorf("at first %+v", first)
	}
	c.outsideLocked(peer, pay.Payee, 1500, 2700, true)
	if r := c.one(t); r.Epoch != first.Epoch || r.Sent != 500 || r.Recv != 700 || !r.Gap {
		t.Errorf("then %+v", r)
	}
	// What is durable may be newer than the view that comes after it.
	c.outsideLocked(peer, pay.Payee, 1400, 2600, false)
	if r := c.one(t); r.Sent != 500 || r.Recv != 700 || r.Gap {
		t.Errorf("an older view: %+v", r)
	}
	// Without a lease nothing begins anew, also not when it is there again.
	c.outsideLocked(peer, 0, 1600, 2700, false)
	c.outsideLocked(peer, pay.Payee, 1700, 2700, false)
	if r := c.one(t); r.Epoch != first.Epoch || r.Sent != 700 {
		t.Errorf("after a pause %+v", r)
	}
	// The client becomes the gateway, and a client again: three counts that share nothing.
	c.outsideLocked(peer, pay.Payer, 1800, 2900, false)
	turned := c.one(t)
	if turned.Role != pay.Payer || turned.Epoch == first.Epoch || turned.Sent != 0 || turned.Recv != 0 {
		t.Errorf("with changed roles %+v", turned)
	}
	c.outsideLocked(peer, pay.Payer, 1900, 3900, false)
	if r := c.one(t); r.Epoch != turned.Epoch || r.Sent != 100 || r.Recv != 1000 {
		t.Errorf("with changed roles, later %+v", r)
	}
	c.outsideLocked(peer, pay.Payee, 1900, 3900, false)
	if r := c.one(t); r.Role != pay.Payee || r.Epoch == turned.Epoch || r.Epoch == first.Epoch || r.Sent != 0 || r.Recv != 0 {
		t.Errorf("with the roles of before %+v", r)
	}
}

// TestStintsLast: with a member a count goes on after a restart, with all that passed meanwhile; with a stranger it begins anew.
func TestStintsLast(t *testing.T) {
	c, member, stranger := counting(true), tabKey(1), tabKey(2)
	c.t.members.known[member] = &standing{member: true, at: time.Now()}
	for _, k := range []ident.PublicKey{member, stranger} {
		c.outsideLocked(k, pay.Payee, 1000, 2000, false)
		c.outsideLocked(k, pay.Payee, 1500, 2500, false)
	}
	before := map[ident.PublicKey]pay.Reading{}
	for _, r := range c.listLocked(time.Now()) {
		before[r.Peer] = r
	}
	if l := c.kept(); len(l) != 1 || l[0].Peer != member || !c.t.news.Load() {
		t.Fatalf("kept: %+v", l)
	}
	b, err := json.Marshal(c.kept())
	if err != nil {
		t.Fatal(err)
	}
	var kept []keptStint
	if err := json.Unmarshal(b, &kept); err != nil {
		t.Fatal(err)
	}
	next := counting(true)
	next.recall(kept)
	if l := next.listLocked(time.Now()); len(l) != 0 {
		t.Errorf("before the meter has said anything there is %+v", l)
	}
	next.outsideLocked(member, pay.Payee, 1700, 2500, false)
	next.outsideLocked(stranger, pay.Payee, 1700, 2500, false)
	for _, r := range next.listLocked(time.Now()) {
		was := before[r.Peer]
		if want := map[bool]uint64{true: was.Sent + 200}[r.Peer == member]; r.Sent != want || (r.Epoch == was.Epoch) != (r.Peer == member) {
			t.Errorf("after the restart %+v, before it %+v", r, was)
		}
	}
}

// TestBeginsWithMembership: what passed before this node was a member is nobody's debt, neither to it nor its own.
func TestBeginsWithMembership(t *testing.T) {
	c, client, relayed := counting(false), tabKey(1), tabKey(2)
	link := newHaulage()
	w := &ways{self: 1, hops: func(ident.NodeID) int { return 3 }}
	carry := func(bytes uint64) {
		link.take(w, relayed.ID(), 0, 0, nil, []forward.Flow{{Dest: 9, Class: wire.ClassGateway, Bytes: bytes}})
		c.sumLocked(accountKey{relayed, pay.Payee}, &link.earned, &link.earnedSum, link.earns)
	}
	c.outsideLocked(client, pay.Payee, 0, 0, false)
	c.outsideLocked(client, pay.Payee, 5000, 0, false)
	carry(1000)
	if l := c.listLocked(time.Now()); len(l) != 0 {
		t.Fatalf("a guest bills %+v", l)
	}
	c.t.self.Store(true)
	for _, r := range c.listLocked(time.Now()) {
		if r.Sent != 0 || r.Recv != 0 {
			t.Errorf("billed from before: %+v", r)
		}
	}
	c.outsideLocked(client, pay.Payee, 5100, 0, false)
	carry(1010)
	for _, r := range c.listLocked(time.Now()) {
		if want := map[pay.Service]uint64{pay.Internet: 100, pay.Carriage: 30}[r.Service]; r.Sent+r.Recv != want {
			t.Errorf("%v: %+v, want %d", r.Service, r, want)
		}
	}
}

// The mesh of the tests below: far (50) – peer – this node (1) – other (60), of which 7 and 8 offer a way to the internet.
const nearUser, farUser, serving = ident.NodeID(50), ident.NodeID(51), ident.NodeID(7)

func gatewayFlow(dest ident.NodeID, hops uint8, bytes uint64) forward.Flow {
	return forward.Flow{Dest: dest, Class: wire.ClassGateway, Hops: hops, Bytes: bytes, Packets: 1}
}

func handed(l ...forward.Flow) (out []forward.Handed) {
	for _, f := range l {
		out = append(out, forward.Handed{Flow: f})
	}
	return out
}

// sums are what a link's hauls are worth: paid and earned, each sent and received.
func (h *haulage) sums(c *counters, peer ident.PublicKey) [4]uint64 {
	c.sumLocked(accountKey{peer, pay.Payer}, &h.paid, &h.paidSum, h.pays)
	c.sumLocked(accountKey{peer, pay.Payee}, &h.earned, &h.earnedSum, h.earns)
	return [4]uint64{h.paidSum[0], h.paidSum[1], h.earnedSum[0], h.earnedSum[1]}
}

// TestHauls: who pays for what passes over a link, and how many times it counts.
func TestHauls(t *testing.T) {
	hops := map[ident.NodeID]int{nearUser: 1, farUser: 3, serving: 2}
	w := func(serves bool, gateways ...ident.NodeID) *ways {
		x := &ways{self: 1, serves: serves, hops: func(d ident.NodeID) int { return hops[d] }, gateways: map[ident.NodeID]struct{}{}, delivered: map[ident.NodeID]int{}}
		for _, g := range gateways {
			x.gateways[g] = struct{}{}
		}
		return x
	}
	const n = 1000
	for _, c := range []struct {
		name         string
		w            *ways
		handed       []forward.Flow
		flows        []forward.Flow
		beyond, here int
		ratio        int
		want         [4]uint64
	}{
		{name: "a relay hands on a download: it pays the relays behind, without itself and the user", w: w(false, serving), handed: []forward.Flow{gatewayFlow(farUser, 2, n)}, want: [4]uint64{2 * n}},
		{name: "to the user itself there is no relay", w: w(false, serving), handed: []forward.Flow{gatewayFlow(nearUser, 2, n)}},
		{name: "a gateway sends a download", w: w(true, 1), handed: []forward.Flow{gatewayFlow(farUser, 0, n)}, want: [4]uint64{2 * n}},
		{name: "what does not arrive is not paid", w: w(true, 1), handed: []forward.Flow{gatewayFlow(farUser, 0, n)}, ratio: 900, want: [4]uint64{2 * n * 9 / 10}},
		{name: "what a user sends itself is nobody's download", w: w(false, serving), handed: []forward.Flow{gatewayFlow(farUser, 0, n)}},
		{name: "an upload that is handed on earns for the relays that it passed", w: w(false, serving), handed: []forward.Flow{gatewayFlow(serving, 2, n)}, here: 4, want: [4]uint64{0, 0, 2 * n}},
		{name: "but for no more than there are", w: w(false, serving), handed: []forward.Flow{gatewayFlow(serving, 9, n)}, here: 4, want: [4]uint64{0, 0, 4 * n}},
		{name: "a download that comes earns for this node and those behind", w: w(false, serving), flows: []forward.Flow{gatewayFlow(farUser, 3, n)}, want: [4]uint64{0, 0, 0, 3 * n}},
		{name: "its own downloads earn nothing", w: w(false, serving), flows: []forward.Flow{gatewayFlow(1, 3, n)}},
		{name: "an upload that comes is paid for the relays that it passed", w: w(false, serving), flows: []forward.Flow{gatewayFlow(serving, 2, n)}, beyond: 5, want: [4]uint64{0, 2 * n}},
		{name: "a made-up TTL pays no more than there are", w: w(true, 1), flows: []forward.Flow{gatewayFlow(1, forward.MaxHops, n)}, beyond: 2, want: [4]uint64{0, 2 * n}},
		{name: "from the user itself there is no relay", w: w(true, 1), flows: []forward.Flow{gatewayFlow(1, 0, n)}, beyond: 2},
		{name: "other traffic costs nothing", w: w(true, 1), handed: []forward.Flow{{Dest: farUser, Class: wire.ClassBulk, Bytes: n}}, flows: []forward.Flow{{Dest: farUser, Class: wire.ClassControl, Bytes: n}}},
		{name: "nor what is for nobody known", w: w(true, 1), handed: []forward.Flow{gatewayFlow(0, 0, n)}, flows: []forward.Flow{gatewayFlow(0, 3, n), gatewayFlow(99, 3, n)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, peer, counts := newHaulage(), tabKey(3), counting(true)
			if c.ratio > 0 {
				c.w.delivered[peer.ID()] = c.ratio
			}
			for range 2 { // counters that stand still add nothing
				h.take(c.w, peer.ID(), c.beyond, c.here, handed(c.handed...), c.flows)
				if got := h.sums(counts, peer); got != c.want {
					t.Errorf("paid and earned %v, want %v", got, c.want)
				}
			}
		})
	}
}

// TestHaulsLater: what was carried is judged once. A node that becomes a gateway later, or moves away, changes nothing of what was,
// and a link that begins anew is counted from there.
func TestHaulsLater(t *testing.T) {
	c, h, peer := counting(true), newHaulage(), tabKey(3)
	far := 3
	w := &ways{self: 1, hops: func(ident.NodeID) int { return far }, gateways: map[ident.NodeID]struct{}{serving: {}}}
	take := func(bytes uint64) [4]uint64 {
		h.take(w, peer.ID(), 4, 4, nil, []forward.Flow{gatewayFlow(farUser, 2, bytes)})
		return h.sums(c, peer)
	}
	if got, want := take(1000), [4]uint64{0, 0, 0, 3000}; got != want {
		t.Fatalf("%v, want %v", got, want)
	}
	w.gateways[farUser] = struct{}{}
	if got, want := take(1000), [4]uint64{0, 0, 0, 3000}; got != want {
		t.Errorf("it becomes a gateway: %v, want %v", got, want)
	}
	if got, want := take(1500), [4]uint64{0, 1000, 0, 3000}; got != want {
		t.Errorf("as a gateway it gets uploads: %v, want %v", got, want)
	}
	delete(w.gateways, farUser)
	far = 5
	if got, want := take(1600), [4]uint64{0, 1000, 0, 3500}; got != want {
		t.Errorf("a user again, and farther away: %v, want %v", got, want)
	}
	if got, want := take(40), [4]uint64{0, 1000, 0, 3500}; got != want {
		t.Errorf("counters began anew: %v, want %v", got, want)
	}
	if got, want := take(50), [4]uint64{0, 1000, 0, 3550}; got != want {
		t.Errorf("and go on: %v, want %v", got, want)
	}
}

// TestReach: of two links to one neighbour each end chooses for itself which it uses. What comes by the one that this node's own
// routes do not use has passed as many relays.
func TestReach(t *testing.T) {
	const rick, vic = ident.NodeID(3), ident.NodeID(4)
	r := reachOf(map[uint32]int{1: 4, 3: 2}, map[uint32]ident.NodeID{1: rick, 2: rick, 3: vic})
	if beyond, here := r.relays(rick); beyond != 3 || here != 2 {
		t.Errorf("beyond rick %d relays and here %d, want 3 and 2", beyond, here)
	}
	if beyond, here := r.relays(vic); beyond != 1 || here != 4 {
		t.Errorf("beyond vic %d relays and here %d, want 1 and 4", beyond, here)
	}
	if beyond, here := r.relays(5); beyond != 0 || here != 4 {
		t.Errorf("beyond one that leads nowhere %d relays and here %d, want 0 and 4", beyond, here)
	}
}

// TestCountsAreBounded: peers come with ever new keys, and those that are gone are forgotten; who is there never is.
func TestCountsAreBounded(t *testing.T) {
	c := counting(true)
	now := time.Now()
	here := map[ident.PublicKey]bool{tabKey(0): true}
	for i := range 2 * maxCounted {
		c.outsideLocked(tabKey(i), pay.Payee, 1, 1, false)
		if i%64 == 0 {
			c.forgetLocked(here, now)
			c.listLocked(now)
		}
	}
	c.forgetLocked(here, now)
	if len(c.stints) > maxCounted+1 || len(c.peaks) > maxCounted+64 {
		t.Errorf("%d stints and %d peaks", len(c.stints), len(c.peaks))
	}
	c.outsideLocked(tabKey(0), pay.Payee, 500, 1, false)
	c.outsideLocked(tabKey(7), pay.Payee, 1, 1, false)
	c.forgetLocked(here, now.Add(stintLasts+time.Second))
	if l := c.listLocked(now); len(l) != 1 || l[0].Peer != tabKey(0) || l[0].Sent != 499 {
		t.Errorf("%+v", l)
	}
}

// TestRegister: strangers push no member out, however many they are, and no member who is new is kept out by them.
func TestRegister(t *testing.T) {
	r := &register{known: map[ident.PublicKey]*standing{}}
	now := time.Now()
	vera, new := tabKey(1<<20), tabKey(1<<20+1)
	r.is(now, vera)
	r.note(now, vera, ofMember, false)
	for i := range 3 * maxRegister {
		r.is(now, tabKey(i))
		if len(r.known) > maxRegister {
			t.Fatalf("%d keys are kept", len(r.known))
		}
	}
	if !r.is(now, vera) {
		t.Error("strangers have pushed a member out")
	}
	r.is(now, new)
	r.note(now, new, ofMember, false)
	if !r.is(now, new) {
		t.Error("strangers keep a new member out")
	}
}

// TestRegisterAsks: a newcomer is asked for often, a guest who stays one less, a member once a minute.
func TestRegisterAsks(t *testing.T) {
	r := &register{known: map[ident.PublicKey]*standing{}}
	begin := time.Now()
	asked := func(k ident.PublicKey, st int, from, until time.Duration) (n int) {
		for at := from; at < until; at += time.Second {
			r.is(begin.Add(at), k)
			if len(r.due(begin)) > 0 {
				r.note(begin.Add(at), k, st, false)
				n++
			}
		}
		return n
	}
	if n := asked(tabKey(1), ofNobody, 0, time.Minute); n != 12 {
		t.Errorf("a newcomer is asked for %d times in the first minute", n)
	}
	if n := asked(tabKey(1), ofNobody, time.Hour, 2*time.Hour); n > 190 {
		t.Errorf("a guest is asked for %d times in an hour", n)
	}
	if n := asked(tabKey(1), ofMember, 2*time.Hour, 3*time.Hour); n != 60 {
		t.Errorf("a member is asked for %d times in an hour", n)
	}
}

// TestHiddenMembers: whoever keeps the ledger cannot make a member nobody by saying that there is no record of it. Records of what
// was decided count, and so does what this node's own ledger says.
func TestHiddenMembers(t *testing.T) {
	for _, c := range []struct {
		name    string
		was, is int
		own     bool
		want    bool
	}{
		{"a member is hidden", ofMember, ofNobody, false, true},
		{"a member is suspended", ofMember, ofInactive, false, false},
		{"the own ledger knows none", ofMember, ofNobody, true, false},
		{"a node's registration has ended", ofNode, ofNobody, false, false},
		{"a stranger", ofNobody, ofNobody, false, false},
		{"a newcomer", ofNobody, ofMember, false, true},
		{"a member is put on the block list", ofMember, ofBlocked, false, false},
		{"and taken off it", ofBlocked, ofMember, false, true},
	} {
		r := &register{known: map[ident.PublicKey]*standing{}}
		now := time.Now()
		r.is(now, tabKey(1))
		r.note(now, tabKey(1), c.was, c.own)
		for range 2 {
			news := r.note(now, tabKey(1), c.is, c.own)
			if got := r.is(now, tabKey(1)); got != c.want {
				t.Errorf("%s: a member is %v", c.name, got)
			}
			if got := r.barred(tabKey(1)); got != (c.is == ofBlocked) {
				t.Errorf("%s: barred is %v", c.name, got)
			}
			if news && (c.was >= ofNode) == c.want {
				t.Errorf("%s: is news", c.name)
			}
			c.was = c.is
			if c.want {
				c.was = ofMember
			}
		}
	}
}

// TestWhy: the owner is told what to do, and not of a cap that is not there.
func TestWhy(t *testing.T) {
	for _, c := range []struct {
		a     pay.AccountView
		limit int64
		want  string
	}{
		{pay.AccountView{State: pay.Open, Price: 5}, 0, ""},
		{pay.AccountView{State: pay.Open, Price: 5, Dry: true}, 0, ""},
		{pay.AccountView{State: pay.Throttled, Price: 5, Dry: true}, 0, "how much a month may cost"},
		{pay.AccountView{State: pay.Throttled, Price: 5, Dry: true}, 1e9, "cap of 1.00 credits is reached"},
		{pay.AccountView{State: pay.Throttled, Price: 5}, 1e9, "is there money"},
		{pay.AccountView{State: pay.Throttled, Price: 5, Gap: true}, 1e9, "differ"},
		{pay.AccountView{State: pay.Open, Refused: 7}, 1e9, "more than you want to pay"},
	} {
		if got := why(c.a, c.limit); !strings.Contains(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%+v with a cap of %d: %q, want %q", c.a, c.limit, got, c.want)
		}
	}
}

// TestBooksLater: while the file cannot be opened the owner is told why, and when it can be, tabs are kept.
func TestBooksLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t)
		h := v.house(func(c *config.Config) { c.Name = "gina"; c.Wallet.Cap = 5 })
		defer v.close()
		synctest.Wait() // until the node knows that it has no community
		held, err := pay.OpenFile(h.dir)
		if err != nil {
			t.Fatal(err)
		}
		f := coopFile{Chain: "oak-1", Keep: true}
		h.coop.mu.Lock()
		h.coop.file = f
		h.coop.mu.Unlock()
		b, err := json.Marshal(tabsFile{Rules: &rules{Tariff: pay.DefaultTariff(), Version: 3}, Members: []ident.PublicKey{h.self}})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(h.coop.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(h.tabs.file(), b, 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- h.tabs.serve(ctx, f) }()
		time.Sleep(5 * time.Second)
		w, err := h.Wallet(t.Context())
		if err != nil || w.State != "starting" || !strings.Contains(w.Problem, "another node") {
			t.Errorf("while the file is another's: %+v, %v", w, err)
		}
		if err := held.Close(); err != nil {
			t.Fatal(err)
		}
		h.tabs.mu.Lock()
		h.tabs.wallet.Cap = 7 // as SetWallet does, while there is no Pay to tell
		h.tabs.mu.Unlock()
		time.Sleep(2 * time.Minute)
		if w, err = h.Wallet(t.Context()); err != nil || w.State != "on" || w.Problem != "" || w.Bylaws != 3 {
			t.Errorf("when it is free: %+v, %v", w, err)
		}
		if p := h.tabs.pay.Load(); p == nil || p.View(time.Now()).Budget != 7 {
			t.Error("pay does not know the cap")
		}
		// It turns out to be another member's node: others open tabs to him from now on, and the books go on.
		was := h.tabs.pay.Load()
		owner := tabKey(77)
		h.tabs.own(h.self)
		time.Sleep(time.Second)
		if h.tabs.pay.Load() != was {
			t.Error("its own key makes another of it")
		}
		if !h.tabs.own(owner) {
			t.Error("another owner is no news")
		}
		time.Sleep(3 * time.Second)
		if p := h.tabs.pay.Load(); p == nil || p == was || p.View(time.Now()).Budget != 7 {
			t.Error("the books are not opened for another owner")
		}
		h.tabs.keep()
		h.tabs.owner.Store(nil)
		if h.tabs.recall(); h.tabs.owner.Load() == nil || *h.tabs.owner.Load() != owner {
			t.Error("the owner is forgotten")
		}
		stop()
		if err := <-done; err != nil {
			t.Errorf("tabs ended with %v", err)
		}
	})
}
