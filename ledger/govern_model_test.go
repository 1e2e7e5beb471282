package ledger

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weft/ident"
	"weft/ledger/tx"
)

// naive is members and votes written once more, as simply as can be: plain maps, voters as a list made when a vote opens, tallies
// counted anew each time, and what is due found by looking at everything.
type naive struct {
	rules struct {
		admission                                        string
		notice, window, support, age, quorum, least, per int64
		early                                            bool
	}
	now, height int64
	members     []*nMember // by number, from 1
	void        map[int]bool
	apps        map[int]*nApp
	props       []*nProp // by number, from 1
	trust       map[int]map[tx.Decision]int
	rekeys      []*nRekey
	free        int64 // the parameter that votes change
	version     uint64
	before      map[int]bool // members active at the end of the block before
	changed     map[int]bool // in this block
}

type nMember struct {
	agent         int
	state         Standing
	joined, until int64
	founder       bool
	quiet         int64
	class         Class
}

type nApp struct {
	until   int64
	vouches []int
}

type nProp struct {
	author        int
	action        tx.Action
	stage         Stage
	from          int64
	opens, closes int64
	effect        int64
	height        int64 // of the opening
	voters        map[int]bool
	eligible      int
	support       map[int]bool
	ballots       map[int]nBallot
}

type nBallot struct {
	choice tx.Choice
	by     int
}

type nRekey struct {
	member, agent int
	since         int64
	vouches       []int
	due, height   int64
}

func (n *naive) active() (c int) {
	for _, m := range n.members[1:] {
		if m.state == Active {
			c++
		}
	}
	return c
}

// of returns the number of the member whose key the agent's is, 0 for none.
func (n *naive) of(agent int) int {
	for id, m := range n.members {
		if m != nil && m.agent == agent {
			return id
		}
	}
	return 0
}

func (n *naive) acts(agent int) (id int, ok bool) {
	id = n.of(agent)
	return id, id != 0 && n.members[id].state == Active
}

func (n *naive) set(id int, s Standing) {
	m := n.members[id]
	m.state, m.until = s, 0
	n.changed[id] = true
	for _, p := range n.props[1:] {
		delete(p.voters, id)
	}
	if s == Left || s == Expelled {
		delete(n.trust, id)
		for from := range n.trust {
			for on, to := range n.trust[from] {
				if to == id {
					delete(n.trust[from], on)
				}
			}
		}
		n.rekeys = slices.DeleteFunc(n.rekeys, func(r *nRekey) bool { return r.member == id })
	}
}

func (n *naive) countActive(ids []int) (c int) {
	for _, id := range ids {
		if n.members[id].state == Active {
			c++
		}
	}
	return c
}

func (n *naive) vouched(a *nApp) bool { return n.countActive(a.vouches) >= min(2, n.active()) }

func (n *naive) admit(agent int) {
	delete(n.apps, agent)
	id := n.of(agent)
	if id == 0 {
		id = len(n.members)
		n.members = append(n.members, &nMember{agent: agent})
	}
	m := n.members[id]
	m.joined, m.founder, m.class = n.now, false, ClassNew
	n.set(id, Active)
}

func (n *naive) perhapsAdmit(agent int) {
	if id := n.of(agent); id != 0 && n.members[id].state == Expelled {
		return
	}
	if r := n.rules.admission; (r == "vouch" || r == "either") && n.vouched(n.apps[agent]) {
		n.admit(agent)
	}
}

// can reports whether an action could be done now.
func (n *naive) can(a tx.Action) bool {
	switch a := a.(type) {
	case *tx.ActStanding:
		if a.Member < 1 || int(a.Member) >= len(n.members) {
			return false
		}
		m := n.members[a.Member]
		if a.Step == tx.Reinstate {
			return m.state == Suspended
		}
		return (m.state == Active || m.state == Suspended) && !(m.state == Active && n.active() == 1)
	case *tx.ActAdmission:
		for agent, ap := range n.apps {
			if govKey(agent) != a.Applicant {
				continue
			}
			id := n.of(agent)
			if id != 0 && n.members[id].state == Expelled {
				return true
			}
			return n.rules.admission == "vote" || n.rules.admission == "either" || n.rules.admission == "both" && n.vouched(ap)
		}
		return false
	}
	return true
}

func (n *naive) do(a tx.Action) {
	switch a := a.(type) {
	case *tx.ActTariff:
		fmt.Sscan(a.Settings[0].Value, &n.free)
		n.version++
	case *tx.ActStanding:
		n.set(int(a.Member), []Standing{Active, Suspended, Expelled}[a.Step])
		if a.Step == tx.Suspend {
			n.members[a.Member].until = n.now + day
		}
	case *tx.ActAdmission:
		for agent := range n.apps {
			if govKey(agent) == a.Applicant {
				n.admit(agent)
				return
			}
		}
	}
}

func (p *nProp) tally() (yes, no, abstain uint64) {
	for _, b := range p.ballots {
		switch b.choice {
		case tx.Yes:
			yes++
		case tx.No:
			no++
		default:
			abstain++
		}
	}
	return
}

func (n *naive) open(p *nProp) {
	if int64(len(p.support))-1 < n.rules.support {
		p.stage, p.closes = Lapsed, n.now
		return
	}
	p.stage, p.height, p.closes, p.voters = Voting, n.height, n.now+n.rules.window, map[int]bool{}
	p.eligible = 0
	for id := range n.before {
		m := n.members[id]
		if !m.founder && m.joined > n.now-n.rules.age {
			continue
		}
		p.eligible++
		if !n.changed[id] {
			p.voters[id] = true
		}
	}
}

func (n *naive) close(p *nProp, when int64) {
	if len(p.ballots) != p.eligible && n.height < p.height+10 {
		p.closes = n.now + hour
		return
	}
	yes, no, _ := p.tally()
	q := (p.eligible*int(n.rules.quorum) + 999) / 1000
	q = min(max(q, int(n.rules.least)), p.eligible)
	switch majority := majorities[p.action.Decision()]; {
	case len(p.ballots) < q:
		p.stage = NoQuorum
	case yes <= no || int64(yes*1000) < majority*int64(yes+no):
		p.stage = Rejected
	default:
		p.stage, p.effect = Passed, max(p.from, when)
	}
}

// due looks at everything, does what is first, and looks again.
func (n *naive) due() {
	type event struct {
		at   int64
		what byte
		name []byte
		do   func()
	}
	for {
		var l []event
		for id, p := range n.props {
			switch {
			case p == nil:
			case p.stage == Notice:
				l = append(l, event{p.opens, 1, number(uint64(id)), func() { n.open(p) }})
			case p.stage == Voting:
				when := p.closes
				l = append(l, event{p.closes, 2, number(uint64(id)), func() { n.close(p, when) }})
			case p.stage == Passed:
				l = append(l, event{p.effect, 3, number(uint64(id)), func() {
					if p.stage = Failed; n.can(p.action) {
						p.stage = Done
						n.do(p.action)
					}
				}})
			}
		}
		for agent, a := range n.apps {
			k := govKey(agent)
			l = append(l, event{a.until, 4, k[:], func() { delete(n.apps, agent) }})
		}
		for _, r := range n.rekeys {
			k := govKey(r.agent)
			name := append(number(uint64(r.member)), k[:]...)
			gone := func() { n.rekeys = slices.DeleteFunc(n.rekeys, func(o *nRekey) bool { return o == r }) }
			if r.due == 0 {
				l = append(l, event{r.since + 30*day, 5, name, gone})
				continue
			}
			l = append(l, event{r.due, 6, name, func() {
				if n.height < r.height+10 {
					r.due = n.now + hour
					return
				}
				gone()
				if n.countActive(r.vouches) >= 2 && n.unused(r.agent) {
					n.rekeys = slices.DeleteFunc(n.rekeys, func(o *nRekey) bool { return o.member == r.member })
					m := n.members[r.member]
					n.void[m.agent] = true
					delete(n.apps, m.agent)
					m.agent = r.agent
				}
			}})
		}
		for id, m := range n.members {
			if m != nil && m.state == Suspended {
				l = append(l, event{m.until, 7, number(uint64(id)), func() { n.set(id, Active) }})
			}
		}
		l = slices.DeleteFunc(l, func(e event) bool { return e.at > n.now })
		if len(l) == 0 {
			return
		}
		slices.SortFunc(l, func(a, b event) int {
			return bytes.Compare(eventKey(a.at, a.what, a.name), eventKey(b.at, b.what, b.name))
		})
		l[0].do()
	}
}

func (n *naive) unused(agent int) bool {
	return n.of(agent) == 0 && !n.void[agent] && n.apps[agent] == nil
}

func (n *naive) prop(id uint64) *nProp {
	if id < 1 || id >= uint64(len(n.props)) {
		return nil
	}
	return n.props[id]
}

// apply executes a transaction and reports whether it is allowed.
func (n *naive) apply(agent int, body tx.Body, other int) bool {
	if n.void[agent] {
		return false
	}
	id, acts := n.acts(agent)
	switch b := body.(type) {
	case *tx.Apply:
		_, sponsor := n.acts(other)
		if n.apps[agent] != nil || !sponsor || id != 0 && (acts || n.members[id].state == Suspended) {
			return false
		}
		n.apps[agent] = &nApp{until: n.now + 3*day, vouches: []int{n.of(other)}}
		n.perhapsAdmit(agent)
	case *tx.Vouch:
		a := n.apps[other]
		if !acts || a == nil || slices.Contains(a.vouches, id) {
			return false
		}
		a.vouches = append(a.vouches, id)
		n.perhapsAdmit(other)
	case *tx.Unvouch:
		a := n.apps[other]
		if id == 0 || a == nil || !slices.Contains(a.vouches, id) {
			return false
		}
		a.vouches = slices.DeleteFunc(a.vouches, func(v int) bool { return v == id })
	case *tx.Leave:
		if id == 0 || n.members[id].state == Left || n.members[id].state == Expelled || acts && n.active() == 1 {
			return false
		}
		n.set(id, Left)
	case *tx.Delegate:
		if !acts {
			return false
		}
		if b.To == 0 {
			if _, had := n.trust[id][b.On]; !had {
				return false
			}
			delete(n.trust[id], b.On)
			return true
		}
		if int(b.To) >= len(n.members) || int(b.To) == id || n.members[b.To].state != Active {
			return false
		}
		who := map[int]bool{id: true}
		for from, t := range n.trust {
			for _, to := range t {
				if to == int(b.To) {
					who[from] = true
				}
			}
		}
		already := false
		for _, to := range n.trust[id] {
			already = already || to == int(b.To)
		}
		if len(who) > 2 && !already {
			return false
		}
		if n.trust[id] == nil {
			n.trust[id] = map[tx.Decision]int{}
		}
		n.trust[id][b.On] = int(b.To)
	case *tx.Propose:
		mine, all := int64(0), 0
		for _, p := range n.props[1:] {
			if p.stage == Notice || p.stage == Voting {
				all++
				if p.author == id {
					mine++
				}
			}
		}
		if !acts || mine >= n.rules.per || all >= 10 || !n.can(b.Action) {
			return false
		}
		p := &nProp{author: id, action: b.Action, from: b.From, opens: n.now + n.rules.notice, support: map[int]bool{id: true}, ballots: map[int]nBallot{}}
		n.props = append(n.props, p)
		if a, ok := b.Action.(*tx.ActAdmission); ok {
			for agent, ap := range n.apps {
				if govKey(agent) == a.Applicant {
					ap.until = max(ap.until, max(n.now+n.rules.notice+2*n.rules.window, b.From)+week)
				}
			}
		}
		n.unanimous(p)
	case *tx.Support:
		p := n.prop(b.Proposal)
		if !acts || p == nil || p.stage != Notice || p.support[id] {
			return false
		}
		p.support[id] = true
		n.unanimous(p)
	case *tx.Withdraw:
		p := n.prop(b.Proposal)
		if !acts || p == nil || p.author != id || p.stage != Notice && (p.stage != Voting || n.now >= p.closes) {
			return false
		}
		p.stage = Withdrawn
	case *tx.Vote:
		p := n.prop(b.Proposal)
		if !acts || p == nil || p.stage != Voting || n.now >= p.closes || !p.voters[id] {
			return false
		}
		if old, ok := p.ballots[id]; ok && old.by == 0 && old.choice == b.Choice {
			return false
		}
		p.ballots[id] = nBallot{b.Choice, 0}
		for from := range n.trust {
			to, ok := n.trust[from][p.action.Decision()]
			if !ok {
				to = n.trust[from][0]
			}
			if old, voted := p.ballots[from]; to == id && p.voters[from] && (!voted || old.by != 0) {
				p.ballots[from] = nBallot{b.Choice, id}
			}
		}
		if len(p.ballots) == p.eligible && n.rules.early {
			p.closes = n.now
		}
	case *tx.Rekey:
		if !acts || int(b.Member) == id || int(b.Member) >= len(n.members) || b.Member == 0 || !n.unused(other) {
			return false
		}
		if n.now < n.members[b.Member].quiet {
			return false
		}
		var mine *nRekey
		count := 0
		for _, r := range n.rekeys {
			if r.member != int(b.Member) {
				continue
			}
			count++
			if slices.Contains(r.vouches, id) || r.agent != other && r.due != 0 {
				return false
			}
			if r.agent == other {
				mine = r
			}
		}
		if mine == nil {
			if count >= 5 {
				return false
			}
			mine = &nRekey{member: int(b.Member), agent: other, since: n.now}
			n.rekeys = append(n.rekeys, mine)
		}
		mine.vouches = append(mine.vouches, id)
		if mine.due == 0 && n.countActive(mine.vouches) >= 2 {
			mine.due, mine.height = n.now+day, n.height
		}
	case *tx.Unrekey:
		for i, r := range n.rekeys {
			if id == 0 || r.member != int(b.Member) || !slices.Contains(r.vouches, id) {
				continue
			}
			r.vouches = slices.DeleteFunc(r.vouches, func(v int) bool { return v == id })
			if len(r.vouches) == 0 {
				n.rekeys = slices.Delete(n.rekeys, i, i+1)
			} else if r.due != 0 && n.countActive(r.vouches) < 2 {
				r.due, r.since = 0, n.now
			}
			return true
		}
		return false
	case *tx.Veto:
		had := len(n.rekeys)
		n.rekeys = slices.DeleteFunc(n.rekeys, func(r *nRekey) bool { return r.member == id })
		if len(n.rekeys) == had {
			return false
		}
		n.members[id].quiet = n.now + 30*day
	}
	return true
}

func (n *naive) unanimous(p *nProp) {
	if !n.rules.early {
		return
	}
	for id, m := range n.members {
		if m != nil && m.state == Active && !p.support[id] {
			return
		}
	}
	n.open(p)
}

func TestGovernAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := &naive{members: make([]*nMember, 1), props: make([]*nProp, 1), void: map[int]bool{}, apps: map[int]*nApp{}, trust: map[int]map[tx.Decision]int{}, free: 512, version: 1, now: govStart}
		n.rules.admission = rapid.SampledFrom([]string{"vouch", "vote", "either", "both"}).Draw(t, "admission")
		n.rules.notice = rapid.SampledFrom([]int64{0, 3600}).Draw(t, "notice")
		n.rules.support = rapid.SampledFrom([]int64{0, 0, 1}).Draw(t, "support")
		n.rules.age = rapid.SampledFrom([]int64{0, 5000}).Draw(t, "age")
		n.rules.quorum = rapid.SampledFrom([]int64{0, 300, 600}).Draw(t, "quorum")
		n.rules.least = rapid.SampledFrom([]int64{1, 3}).Draw(t, "least")
		n.rules.early = rapid.Bool().Draw(t, "early")
		n.rules.window, n.rules.per = 7200, 2
		early := "no"
		if n.rules.early {
			early = "yes"
		}
		founders := rapid.IntRange(1, 4).Draw(t, "founders")
		g := Genesis{Chain: "gov-1", Time: govStart}
		for _, s := range []string{"member.admission", n.rules.admission, "vote.notice", fmt.Sprint(n.rules.notice), "vote.window", "7200", "propose.support", fmt.Sprint(n.rules.support),
			"vote.age", fmt.Sprint(n.rules.age), "vote.quorum", fmt.Sprint(n.rules.quorum), "vote.quorum_most", "0", "vote.quorum_least", fmt.Sprint(n.rules.least), "vote.early", early,
			"proxy.most", "2", "rekey.vouches", "2", "rekey.delay", fmt.Sprint(day), "member.application_life", fmt.Sprint(3 * day), "propose.each", "2", "propose.all", "10",
			"tx.each", "10000", "member.vouch_age", "0", "member.vouches_each", "1000", "vote.kept", fmt.Sprint(10 * year)} {
			if len(g.Settings) == 0 || g.Settings[len(g.Settings)-1].Value != "" {
				g.Settings = append(g.Settings, tx.Setting{Name: s})
			} else {
				g.Settings[len(g.Settings)-1].Value = s
			}
		}
		for i := 1; i <= founders; i++ {
			g.Founders = append(g.Founders, Founder{Key: govKey(i), Name: "x"})
			n.members = append(n.members, &nMember{agent: i, founder: true, joined: govStart})
		}
		w := &gov{store: NewMem(), now: govStart}
		w.m, _ = New(w.store)
		w.m.Strict = true
		if err := w.m.Init(g); err != nil {
			t.Fatal(err)
		}
		replica := w.store.Clone()
		other, _ := New(replica)
		for range rapid.IntRange(1, 60).Draw(t, "blocks") {
			n.before, n.changed = map[int]bool{}, map[int]bool{}
			for id, m := range n.members {
				if m != nil && m.state == Active {
					n.before[id] = true
				}
			}
			dt := rapid.SampledFrom([]int64{0, 1, 1, 1, 600, 3600, day, 10 * day}).Draw(t, "dt")
			n.now += dt
			n.height++
			var txs [][]byte
			type sent struct {
				agent, other int
				body         tx.Body
			}
			var what []sent
			nonces := map[int]uint64{}
			for range rapid.IntRange(0, 3).Draw(t, "txs") {
				s := sent{agent: rapid.IntRange(1, 8).Draw(t, "agent"), other: rapid.IntRange(1, 8).Draw(t, "other")}
				s.body = draw(t, n, s.agent, s.other)
				what = append(what, s)
			}
			// Nonces are the ledger's business alone: take them from its state, and count on only when a transaction was admitted.
			n.due()
			w.now, w.height = n.now, n.height
			for _, s := range what {
				if _, ok := nonces[s.agent]; !ok {
					var a Account
					load(w.store, accountKey(govKey(s.agent)), &a)
					nonces[s.agent] = a.Nonce
				}
				nonces[s.agent]++
				raw, err := tx.Tx{Chain: tx.ChainOf("gov-1"), Nonce: nonces[s.agent], Expiry: n.now + day, Body: s.body}.Sign(govAgent(s.agent))
				if err != nil {
					t.Fatal(err)
				}
				txs = append(txs, raw)
			}
			unadmitted := map[int]bool{}
			out := w.m.Block(Header{Height: n.height, Time: n.now}, txs)
			// Another machine, sometimes started anew, comes to the same state.
			if rapid.IntRange(0, 9).Draw(t, "restart") == 0 {
				other, _ = New(replica)
			}
			other.Block(Header{Height: n.height, Time: n.now}, txs)
			if k, same := w.store.Equal(replica); !same {
				t.Fatalf("height %d: two machines differ at %q", n.height, k)
			}
			for i, s := range what {
				if unadmitted[s.agent] { // a stranger's refused application uses no nonce: the next one does not fit
					if out.Results[i].Code == OK {
						t.Fatalf("height %d: %T of %d was applied out of order", n.height, s.body, s.agent)
					}
					continue
				}
				got := out.Results[i]
				if rk, ok := s.body.(*tx.Rekey); ok && rk.Word == (ident.Signature{}) { // the member came in this very block: nothing could be signed
					if got.Code == OK {
						t.Fatalf("height %d: a new key that has not signed was taken", n.height)
					}
				} else if want := n.apply(s.agent, s.body, s.other); (got.Code == OK) != want {
					t.Fatalf("height %d: %T %+v of agent %d about %d: %+v, the model says %v", n.height, s.body, s.body, s.agent, s.other, got, want)
				}
				if got.Code != OK && w.store.Get(accountKey(govKey(s.agent))) == nil {
					unadmitted[s.agent] = true
				}
			}
			n.compare(t, w.m)
		}
	})
}

func draw(t *rapid.T, n *naive, agent, other int) tx.Body {
	prop := func() uint64 { return uint64(rapid.IntRange(max(1, len(n.props)-4), len(n.props)).Draw(t, "prop")) }
	member := func() uint64 { return uint64(rapid.IntRange(0, len(n.members)).Draw(t, "member")) }
	switch rapid.IntRange(0, 17).Draw(t, "kind") {
	case 0, 1:
		until := n.now + week
		return &tx.Apply{Called: "x", Sponsor: govKey(other), Until: until, Word: govAgent(other).Sign(tx.SponsorDomain, tx.SponsorMessage(tx.ChainOf("gov-1"), govKey(agent), until))}
	case 2, 3:
		return &tx.Vouch{Applicant: govKey(other)}
	case 4:
		return &tx.Unvouch{Applicant: govKey(other)}
	case 5:
		return &tx.Leave{}
	case 6:
		return &tx.Delegate{On: rapid.SampledFrom([]tx.Decision{0, tx.DecideText, tx.DecideTariff, tx.DecideStanding}).Draw(t, "on"), To: member()}
	case 7, 8:
		from := rapid.SampledFrom([]int64{0, 0, n.now + day, n.now + 3*day}).Draw(t, "from")
		var a tx.Action = &tx.ActText{}
		switch rapid.IntRange(0, 4).Draw(t, "action") {
		case 0:
			a = &tx.ActTariff{Settings: []tx.Setting{{Name: "tariff.free", Value: fmt.Sprint(rapid.IntRange(100, 999).Draw(t, "free"))}}}
		case 1, 2:
			a = &tx.ActStanding{Member: member(), Step: tx.Step(rapid.IntRange(0, 2).Draw(t, "step")), Days: 1}
		case 3:
			a = &tx.ActAdmission{Applicant: govKey(other)}
		}
		return &tx.Propose{Title: "x", From: from, Action: a}
	case 9, 10:
		return &tx.Support{Proposal: prop()}
	case 11:
		return &tx.Withdraw{Proposal: prop()}
	case 12, 13, 14:
		return &tx.Vote{Proposal: prop(), Choice: tx.Choice(rapid.IntRange(1, 3).Draw(t, "choice"))}
	case 15:
		m := member()
		r := &tx.Rekey{Member: m, New: govKey(other)}
		if m > 0 && int(m) < len(n.members) {
			r.Word = govAgent(other).Sign(tx.RekeyDomain, tx.RekeyMessage(tx.ChainOf("gov-1"), m, govKey(n.members[m].agent), govKey(other)))
		}
		return r
	case 16:
		return &tx.Unrekey{Member: member()}
	}
	return &tx.Veto{}
}

func (n *naive) compare(t *rapid.T, m *Machine) {
	fail := func(what string, got, want any) {
		t.Helper()
		t.Fatalf("height %d: %s is %+v, the model says %+v", n.height, what, got, want)
	}
	if p := m.Params(); p.FreeKbit != n.free || p.Version != n.version {
		fail("the bylaws", []any{p.FreeKbit, p.Version}, []any{n.free, n.version})
	}
	last := 0
	m.Members(func(mb Member) bool {
		last++
		if last >= len(n.members) {
			fail("a member", mb, "there is none")
		}
		w := n.members[last]
		if mb.Key != govKey(w.agent) || mb.State != w.state || mb.Joined != w.joined || mb.Until != w.until || mb.Quiet != w.quiet {
			fail("a member", mb, *w)
		}
		return true
	})
	if last != len(n.members)-1 || m.ActiveMembers() != uint64(n.active()) {
		fail("the register", last, len(n.members)-1)
	}
	apps := m.Applications()
	if len(apps) != len(n.apps) {
		fail("applications", apps, n.apps)
	}
	for agent, w := range n.apps {
		i := slices.IndexFunc(apps, func(a Application) bool { return a.Key == govKey(agent) })
		if i < 0 || apps[i].Until != w.until || len(apps[i].Vouches) != len(w.vouches) {
			fail("an application", apps, *w)
		}
	}
	if l := m.Rekeyings(); len(l) != len(n.rekeys) {
		fail("new keys", l, n.rekeys)
	}
	for id, w := range n.props {
		if w == nil {
			continue
		}
		_, g, _ := m.Proposal(uint64(id))
		yes, no, abstain := w.tally()
		if g.Stage != w.stage || g.Yes != yes || g.No != no || g.Abstain != abstain || g.Eligible != uint64(w.eligible) || g.Supporters != uint64(len(w.support)) {
			fail(fmt.Sprint("proposal ", id), g, *w)
		}
		for _, b := range m.Ballots(uint64(id)) {
			if w.ballots[int(b.Member)] != (nBallot{b.Choice, int(b.By)}) {
				fail(fmt.Sprint("a ballot on ", id), b, w.ballots[int(b.Member)])
			}
		}
	}
	if _, _, more := m.Proposal(uint64(len(n.props))); more {
		fail("the number of proposals", "more", len(n.props)-1)
	}
	for id := 1; id < len(n.members); id++ {
		to, _ := m.Delegations(uint64(id))
		if len(to) != len(n.trust[id]) {
			fail("delegations", to, n.trust[id])
		}
		for _, d := range to {
			if n.trust[id][d.On] != int(d.To) {
				fail("a delegation", d, n.trust[id])
			}
		}
	}
}

// Whatever state a community is in, an empty block in which nothing is due changes nothing.
func TestEmptyBlockChangesNothing(t *testing.T) {
	w := newGov(t, 3, "vote.notice=3600", "member.vouches=3")
	w.must(9, w.apply(9, 1))
	w.propose(1, &tx.ActText{})
	r := w.rekey(3, 3, 30)
	w.must(1, &r)
	for range 3000 {
		next := int64(0)
		w.store.Scan(key(kindProposal, uint8(proposalQueue)), func(k, _ []byte) bool {
			next = int64(binary.BigEndian.Uint64(k[2:]))
			return false
		})
		w.store.Scan(key(kindEntry, uint8(entryQueue)), func(k, _ []byte) bool { // or in the books: a fiscal period ends
			if at := int64(binary.BigEndian.Uint64(k[2:])); next == 0 || at < next {
				next = at
			}
			return false
		})
		before := w.store.Clone()
		out := w.block(3600)
		if k, same := before.Equal(w.store); !same && (next == 0 || next > w.now) {
			t.Fatalf("at %d an empty block changed %q", w.now, k)
		}
		if len(out.Validators) != 0 || len(out.Postings) != 0 {
			t.Fatalf("%+v", out)
		}
	}
}
