package ledger

import (
	"encoding/binary"

	"weft/ident"
	"weft/ledger/tx"
)

// A proposal's way:
//
//	notice ──▶ voting ──▶ passed ──▶ done        what was decided is in force
//	   │          │          └─────▶ failed      it could not be done any more: Why says why
//	   │          └─▶ rejected | noquorum
//	   └─▶ lapsed (too few supporters)           withdrawn by its author: from notice or voting
//
// Who may vote is settled when the vote opens, without a list: members who were active at the end of the block before, are so
// still, and have been members long enough. Majority, quorum and the version of the bylaws are noted then and hold to the end.
// Each ballot changes the tally at once, so closing a vote costs the same for ten members and ten thousand.

// Stage is where a proposal stands.
type Stage uint8

// The stages.
const (
	Notice    Stage = 0
	Voting    Stage = 1
	Passed    Stage = 2
	Done      Stage = 3
	Rejected  Stage = 4
	NoQuorum  Stage = 5
	Withdrawn Stage = 6
	Lapsed    Stage = 7
	Failed    Stage = 8
)

func (s Stage) String() string {
	if s > Failed {
		return "unknown"
	}
	return [...]string{"notice", "voting", "passed", "done", "rejected", "noquorum", "withdrawn", "lapsed", "failed"}[s]
}

// Proposal is what was proposed. It never changes.
type Proposal struct {
	ID       uint64
	Author   uint64 // member
	Made     int64  // seconds since 1970
	Title    string
	Text     string
	Document [32]byte // SHA-256 of a longer text, or zero
	From     int64    // the earliest time of its effect
	Action   tx.Action
}

// Fields implements tx.Record.
func (p *Proposal) Fields(c *tx.Coder) {
	c.U64(&p.ID)
	c.U64(&p.Author)
	c.I64(&p.Made)
	c.Text(&p.Title, 100)
	c.Text(&p.Text, 2000)
	c.Fixed(p.Document[:])
	c.I64(&p.From)
	tx.ActionField(c, &p.Action)
}

// Progress is how a proposal stands.
type Progress struct {
	Stage      Stage
	Opens      int64  // when its vote is to open
	Opened     int64  // when it did …
	OpenHeight int64  // … and in which block
	Closes     int64  // when it closes, or closed
	Effect     int64  // when it takes effect, or took
	Bylaws     uint64 // version of the bylaws at the opening
	Eligible   uint64 // members who may vote
	Quorum     uint64 // ballots that it needs
	Majority   int64  // permille of yes among yes and no
	VoterAge   int64  // membership that a voter needs, seconds
	Yes        uint64
	No         uint64
	Abstain    uint64
	Supporters uint64 // the author is one
	Why        Code   // why it failed: a code, as texts may change and the state may not
}

// Fields implements tx.Record.
func (p *Progress) Fields(c *tx.Coder) {
	c.U8((*uint8)(&p.Stage))
	c.I64(&p.Opens)
	c.I64(&p.Opened)
	c.I64(&p.OpenHeight)
	c.I64(&p.Closes)
	c.I64(&p.Effect)
	c.U64(&p.Bylaws)
	c.U64(&p.Eligible)
	c.U64(&p.Quorum)
	c.I64(&p.Majority)
	c.I64(&p.VoterAge)
	c.U64(&p.Yes)
	c.U64(&p.No)
	c.U64(&p.Abstain)
	c.U64(&p.Supporters)
	c.U32((*uint32)(&p.Why))
}

// Ballots is how many have voted.
func (p *Progress) Ballots() uint64 { return p.Yes + p.No + p.Abstain }

// Carries reports whether the tally, as it is, is a decision in favour.
func (p *Progress) Carries() bool {
	return p.Ballots() >= p.Quorum && p.Yes > p.No && int64(p.Yes)*1000 >= p.Majority*int64(p.Yes+p.No)
}

// Reason is why it failed, for people.
func (p *Progress) Reason() string {
	switch p.Why {
	case OK:
		return ""
	case CodeUnknown:
		return "what it is about does not exist any more"
	case CodeExists:
		return "what it asks for is so already"
	case CodeFunds:
		return "there was not enough money"
	case CodeTooMany:
		return "a bound of the bylaws was reached"
	case CodeValue:
		return "it does not go together with what was decided before"
	case CodeForbid:
		return "the bylaws do not allow it any more"
	}
	return "things had changed since it was proposed"
}

// Ballot is a member's vote on a proposal.
type Ballot struct {
	Choice tx.Choice
	By     uint64 // the member who cast it for this one by delegation; 0: itself
	Time   int64  // seconds since 1970
}

// Fields implements tx.Record.
func (b *Ballot) Fields(c *tx.Coder) {
	c.U8((*uint8)(&b.Choice))
	c.U64(&b.By)
	c.I64(&b.Time)
}

// agenda counts proposals.
type agenda struct {
	Last uint64 // number of the newest
	Open uint32 // in notice or voting
}

func (a *agenda) Fields(c *tx.Coder) {
	c.U64(&a.Last)
	c.U32(&a.Open)
}

const (
	kindBallot     = 'Q'
	kindDelegation = 'd'

	maxAhead = 2 * year // how far ahead a proposal's effect may lie
)

var keyAgenda = key(kindProposal, uint8(proposalCount))

func proposalKey(id uint64) []byte { return key(kindProposal, uint8(proposalStatic), id) }
func progressKey(id uint64) []byte { return key(kindProposal, uint8(proposalProgress), id) }
func supportKey(id, member uint64) []byte {
	return key(kindProposal, uint8(proposalSupport), id, member)
}
func ballotKey(id, member uint64) []byte { return key(kindBallot, id, member) }

func (c *call) proposal(id uint64) (p Proposal, g Progress, err error) {
	if !c.load(proposalKey(id), &p) {
		return p, g, refuse(CodeUnknown, "there is no proposal %d", id)
	}
	c.load(progressKey(id), &g)
	return p, g, nil
}

func (c *call) propose(from ident.PublicKey, b *tx.Propose) error {
	m, err := c.actor(from)
	if err != nil {
		return err
	}
	p := c.params()
	var a agenda
	c.load(keyAgenda, &a)
	switch {
	case b.Title == "":
		return refuse(CodeValue, "a proposal needs a title")
	case !c.longEnough(&m, p.ProposeAge, c.Time):
		return refuse(CodeState, "one may propose after %d days of membership (propose.age)", p.ProposeAge/day)
	case int64(m.Open) >= p.OpenPerMember:
		return refuse(CodeTooMany, "%d proposals of yours are open; wait, or withdraw one (propose.each)", m.Open)
	case int64(a.Open) >= p.OpenTotal:
		return refuse(CodeTooMany, "%d proposals are open; wait until some are decided (propose.all)", a.Open)
	case b.From < 0 || b.From > c.Time+maxAhead:
		return refuse(CodeValue, "a proposal takes effect within two years")
	}
	if err := c.checkAction(b.Action); err != nil {
		return err
	}
	a.Last++
	a.Open++
	m.Open++
	c.save(keyAgenda, &a)
	c.saveMember(&m)
	c.save(proposalKey(a.Last), &Proposal{a.Last, m.ID, c.Time, b.Title, b.Text, b.Document, b.From, b.Action})
	g := Progress{Opens: c.Time + p.Notice, Supporters: 1}
	c.at(g.Opens, eventOpen, number(a.Last))
	c.s.Set(supportKey(a.Last, m.ID), []byte{1})
	if ad, ok := b.Action.(*tx.ActAdmission); ok {
		c.keepApplication(ad.Applicant, max(c.Time+p.Notice+2*p.Voting, b.From)+week)
	}
	c.data = number(a.Last)
	return c.saveSupported(a.Last, &g)
}

// saveSupported saves the progress of a proposal that has a new supporter. When all active members support it there is nobody
// whom notice would serve: the vote opens.
func (c *call) saveSupported(id uint64, g *Progress) error {
	c.save(progressKey(id), g)
	active := c.register().Active
	if c.params().VotingEarly == 0 || g.Supporters < active {
		return nil
	}
	var n uint64
	c.s.Scan(key(kindProposal, uint8(proposalSupport), id), func(k, _ []byte) bool {
		if m, _ := c.member(binary.BigEndian.Uint64(k[10:])); m.State == Active {
			n++
		}
		return true
	})
	if n == active {
		c.notAt(g.Opens, eventOpen, number(id))
		c.openVote(id)
	}
	return nil
}

func (c *call) support(from ident.PublicKey, b *tx.Support) error {
	m, err := c.actor(from)
	if err != nil {
		return err
	}
	_, g, err := c.proposal(b.Proposal)
	switch {
	case err != nil:
		return err
	case g.Stage != Notice:
		return refuse(CodeState, "proposal %d is not in its time of notice: it is %s", b.Proposal, g.Stage)
	case c.s.Get(supportKey(b.Proposal, m.ID)) != nil:
		return refuse(CodeExists, "you support this proposal already")
	}
	c.s.Set(supportKey(b.Proposal, m.ID), []byte{1})
	g.Supporters++
	return c.saveSupported(b.Proposal, &g)
}

func (c *call) withdraw(from ident.PublicKey, b *tx.Withdraw) error {
	m, err := c.actor(from)
	if err != nil {
		return err
	}
	p, g, err := c.proposal(b.Proposal)
	switch {
	case err != nil:
		return err
	case p.Author != m.ID:
		return refuse(CodeForbid, "only its author withdraws a proposal")
	case g.Stage == Notice:
		c.notAt(g.Opens, eventOpen, number(p.ID))
	case g.Stage == Voting && c.Time < g.Closes:
		c.notAt(g.Closes, eventClose, number(p.ID))
	default:
		return refuse(CodeState, "proposal %d is closed: it is %s", p.ID, g.Stage)
	}
	g.Closes = c.Time
	c.conclude(&p, &g, Withdrawn)
	return nil
}

// conclude ends the debate on a proposal.
func (c *call) conclude(p *Proposal, g *Progress, s Stage) {
	g.Stage = s
	c.save(progressKey(p.ID), g)
	var a agenda
	c.load(keyAgenda, &a)
	a.Open--
	c.save(keyAgenda, &a)
	if m, ok := c.member(p.Author); ok {
		m.Open--
		c.saveMember(&m)
	}
	c.at(c.Time+c.params().BallotsKept, eventPrune, number(p.ID))
}

// openVote opens the vote, or ends what found too few supporters.
func (c *call) openVote(id uint64) {
	p, g, err := c.proposal(id)
	if err != nil {
		return
	}
	b := c.params()
	if int64(g.Supporters)-1 < b.ProposeSupport {
		g.Closes = c.Time
		c.conclude(&p, &g, Lapsed)
		return
	}
	g.Stage, g.Opened, g.OpenHeight, g.Closes = Voting, c.Time, c.Height, c.Time+b.Voting
	g.Bylaws, g.Majority, g.VoterAge = b.Version, b.Majority[p.Action.Decision()], b.VoterAge
	g.Eligible = c.electorate(b.VoterAge)
	g.Quorum = quorum(b, g.Eligible)
	c.save(progressKey(id), &g)
	c.at(g.Closes, eventClose, number(id))
}

// electors is what electorate has counted: it is the same all through a block.
type electors struct {
	counted bool
	age     int64
	n       uint64
}

// electorate counts who may vote in a vote that opens in this block: as of the end of the block before.
func (c *call) electorate(age int64) uint64 {
	if age == 0 {
		var r register
		load(c.m.base, keyRegister, &r)
		return r.Active
	}
	if c.voters.counted && c.voters.age == age {
		return c.voters.n
	}
	var n uint64
	c.m.base.Scan(key(kindMember, uint8(memberByID)), func(_, v []byte) bool {
		var m Member
		mustDecode(v, &m)
		if m.State == Active && c.longEnough(&m, age, c.Time) {
			n++
		}
		return true
	})
	c.voters = electors{true, age, n}
	return n
}

// quorum is how many of n voters must take part.
func quorum(p *Params, n uint64) uint64 {
	q := (n*uint64(p.QuorumPermille) + 999) / 1000
	if p.QuorumMost > 0 {
		q = min(q, uint64(p.QuorumMost))
	}
	return min(max(q, uint64(p.QuorumLeast)), n)
}

// mayVote reports whether an active member has a vote in an open vote.
func (c *call) mayVote(m *Member, g *Progress) bool {
	return m.State == Active && m.Height < g.OpenHeight && c.longEnough(m, g.VoterAge, g.Opened)
}

func (c *call) vote(from ident.PublicKey, b *tx.Vote) error {
	m, err := c.actor(from)
	if err != nil {
		return err
	}
	p, g, err := c.proposal(b.Proposal)
	switch {
	case err != nil:
		return err
	case g.Stage == Notice:
		return refuse(CodeState, "the vote on proposal %d has not begun", p.ID)
	case g.Stage != Voting || c.Time >= g.Closes:
		return refuse(CodeState, "the vote on proposal %d is over", p.ID)
	case !c.mayVote(&m, &g):
		return refuse(CodeForbid, "you were not yet a voter when this vote began")
	}
	var old Ballot
	if c.load(ballotKey(p.ID, m.ID), &old) && old.By == 0 && old.Choice == b.Choice {
		return refuse(CodeExists, "you have voted %s already", b.Choice)
	}
	c.cast(p.ID, &g, m.ID, Ballot{Choice: b.Choice, Time: c.Time})
	if c.params().Proxy != 0 {
		for i, id := range c.proxiesOf(m.ID) {
			if int64(i) >= c.params().ProxyLimit {
				break // the bylaws may have lowered it
			}
			d, _ := c.member(id)
			var own Ballot
			if c.proxy(id, p.Action.Decision()) != m.ID || !c.mayVote(&d, &g) || c.load(ballotKey(p.ID, id), &own) && own.By == 0 {
				continue
			}
			c.cast(p.ID, &g, id, Ballot{Choice: b.Choice, By: m.ID, Time: c.Time})
		}
	}
	if g.Ballots() == g.Eligible && c.params().VotingEarly != 0 {
		c.notAt(g.Closes, eventClose, number(p.ID))
		g.Closes = c.Time
		c.at(g.Closes, eventClose, number(p.ID))
	}
	c.save(progressKey(p.ID), &g)
	return nil
}

// cast writes a ballot and counts it, in place of the member's former one.
func (c *call) cast(id uint64, g *Progress, member uint64, b Ballot) {
	count := func(ch tx.Choice) *uint64 { return [...]*uint64{&g.Yes, &g.No, &g.Abstain}[ch-1] }
	var old Ballot
	if c.load(ballotKey(id, member), &old) {
		*count(old.Choice)--
	}
	*count(b.Choice)++
	c.save(ballotKey(id, member), &b)
}

// closeVote counts nothing: the tally is there.
func (c *call) closeVote(id uint64, when int64) {
	p, g, err := c.proposal(id)
	if err != nil {
		return
	}
	all := g.Ballots() == g.Eligible
	if !all && c.Height < g.OpenHeight+fewestBlocks {
		g.Closes = c.Time + shortest // the chain stood still: members had no chance to vote
		c.save(progressKey(id), &g)
		c.at(g.Closes, eventClose, number(id))
		return
	}
	switch {
	case g.Ballots() < g.Quorum:
		c.conclude(&p, &g, NoQuorum)
	case !g.Carries():
		c.conclude(&p, &g, Rejected)
	default:
		g.Effect = max(p.From, when)
		c.conclude(&p, &g, Passed)
		c.at(g.Effect, eventEffect, number(id))
	}
}

// takeEffect does what was decided: all of it, or nothing and the reason is noted.
func (c *call) takeEffect(id uint64) {
	p, g, err := c.proposal(id)
	if err != nil {
		return
	}
	outer, posted := c.s, len(c.postings)
	c.s = newOverlay(outer)
	if err = c.doAction(&p); err == nil {
		c.s.flush()
	} else {
		c.postings = c.postings[:posted]
	}
	c.s, c.bylaws = outer, nil
	g.Stage = Done
	if err != nil {
		g.Stage, g.Why = Failed, resultOf(err).Code
	}
	c.save(progressKey(id), &g)
}

// prune forgets ballots and supporters of a vote long over, a part in each block. The tally stays.
func (c *call) prune(id uint64) {
	const most = 500
	var old [][]byte
	collect := func(k, _ []byte) bool {
		old = append(old, append([]byte(nil), k...))
		return len(old) < most
	}
	c.s.Scan(key(kindBallot, id), collect)
	if len(old) < most {
		c.s.Scan(key(kindProposal, uint8(proposalSupport), id), collect)
	}
	for _, k := range old {
		c.drop(k)
	}
	if len(old) == most {
		c.at(c.Time+1, eventPrune, number(id))
	}
}

// Delegation is one member's trust in another. It goes one step: who is trusted votes for those who trust him directly, and
// not for those who trust them. So there are no loops, nobody gathers more than proxy.most, and everybody knows who votes for
// him. A member's own ballot always counts instead.
type Delegation struct {
	On tx.Decision // 0: on everything for which nobody else is named
	To uint64
}

type delegations struct{ L []Delegation } // in the order of On

func (d *delegations) Fields(c *tx.Coder) {
	tx.List(c, &d.L, int(tx.Decisions), func(c *tx.Coder, d *Delegation) {
		c.U8((*uint8)(&d.On))
		c.U64(&d.To)
	})
}

const (
	delegationsOf = 0 // second byte of the keys under kindDelegation: from → delegations
	delegationsTo = 1 // to, from: for the way back
)

func (c *call) delegations(from uint64) (d delegations) {
	c.load(key(kindDelegation, uint8(delegationsOf), from), &d)
	return d
}

// proxy returns who votes for a member on a decision, 0 when nobody does.
func (c *call) proxy(from uint64, on tx.Decision) (to uint64) {
	for _, d := range c.delegations(from).L {
		if d.On == 0 || d.On == on {
			to = d.To // that for all comes first
		}
	}
	return to
}

// proxiesOf returns the members who name one for anything, in order.
func (c *call) proxiesOf(to uint64) (from []uint64) {
	c.s.Scan(key(kindDelegation, uint8(delegationsTo), to), func(k, _ []byte) bool {
		from = append(from, binary.BigEndian.Uint64(k[10:]))
		return true
	})
	return from
}

func (c *call) delegate(from ident.PublicKey, b *tx.Delegate) error {
	m, err := c.self(from)
	if err != nil {
		return err
	}
	p := c.params()
	d := c.delegations(m.ID)
	var next []Delegation
	had := false
	for _, o := range d.L {
		if o.On < b.On {
			next = append(next, o)
		}
	}
	if b.To != 0 {
		next = append(next, Delegation{b.On, b.To})
	}
	for _, o := range d.L {
		if o.On > b.On {
			next = append(next, o)
		}
		had = had || o.On == b.On
	}
	if b.To == 0 {
		if !had {
			return refuse(CodeUnknown, "you have not delegated this")
		}
		c.saveDelegations(m.ID, d.L, next)
		return nil
	}
	to, ok := c.member(b.To)
	switch {
	case p.Proxy == 0:
		return refuse(CodeForbid, "the bylaws do not allow to vote for others (proxy.allowed)")
	case !ok:
		return refuse(CodeUnknown, "there is no member %d", b.To)
	case to.ID == m.ID:
		return refuse(CodeValue, "a delegation to oneself")
	case to.State != Active:
		return refuse(CodeState, "member %d is not active", b.To)
	case c.s.Get(key(kindDelegation, uint8(delegationsTo), to.ID, m.ID)) == nil && int64(len(c.proxiesOf(to.ID))) >= p.ProxyLimit:
		return refuse(CodeTooMany, "member %d may vote for %d others and does (proxy.most)", b.To, p.ProxyLimit)
	}
	c.saveDelegations(m.ID, d.L, next)
	return nil
}

// saveDelegations replaces a member's delegations, both ways.
func (c *call) saveDelegations(from uint64, old, next []Delegation) {
	for _, o := range old {
		c.drop(key(kindDelegation, uint8(delegationsTo), o.To, from))
	}
	for _, n := range next {
		c.s.Set(key(kindDelegation, uint8(delegationsTo), n.To, from), []byte{1})
	}
	k := key(kindDelegation, uint8(delegationsOf), from)
	if len(next) == 0 {
		c.drop(k)
		return
	}
	c.save(k, &delegations{next})
}

// dropDelegations forgets those from a member and those to it.
func (c *call) dropDelegations(id uint64) {
	c.saveDelegations(id, c.delegations(id).L, nil)
	for _, from := range c.proxiesOf(id) {
		d := c.delegations(from)
		var next []Delegation
		for _, o := range d.L {
			if o.To != id {
				next = append(next, o)
			}
		}
		c.saveDelegations(from, d.L, next)
	}
}
