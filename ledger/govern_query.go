package ledger

import (
	"encoding/binary"

	"weft/ident"
	"weft/ledger/tx"
)

// What follows reads the committed state for command line, portal and engine. It changes nothing.

// view is a call that is thrown away.
func (m *Machine) view(h Header) *call { return &call{m: m, Header: h, s: newOverlay(m.base), tx: -1} }

// Params returns the bylaws and tariffs in force.
func (m *Machine) Params() Params { return *m.view(Header{}).params() }

// ParamsAt returns those that were in force at a time (seconds since 1970).
func (m *Machine) ParamsAt(t int64) Params { return *m.view(Header{}).paramsAt(t) }

// Member returns the member of a number, of any standing.
func (m *Machine) Member(id uint64) (Member, bool) { return m.view(Header{}).member(id) }

// MemberByKey returns the member whose key k is, or for whom k is a delegate; was reports that k was its key once and is void.
func (m *Machine) MemberByKey(k ident.PublicKey) (mb Member, was, ok bool) {
	var r keyRole
	if !load(m.base, key(kindKey, k), &r) {
		return mb, false, false
	}
	mb, ok = m.Member(r.Member)
	return mb, r.Role == roleVoid, ok
}

// Members calls f for all members, of any standing, in the order of their numbers, until it returns false.
func (m *Machine) Members(f func(Member) bool) { m.view(Header{}).members(f) }

// ActiveMembers counts those with a vote.
func (m *Machine) ActiveMembers() uint64 { return m.view(Header{}).register().Active }

// list returns all records under a prefix.
func list[T any, P interface {
	*T
	tx.Record
}](s Store, prefix []byte) (l []T) {
	s.Scan(prefix, func(_, b []byte) bool {
		var v T
		mustDecode(b, P(&v))
		l = append(l, v)
		return true
	})
	return l
}

// Applications returns who has applied, in the order of their keys.
func (m *Machine) Applications() []Application {
	return list[Application](m.base, key(kindMember, uint8(memberApply)))
}

// Rekeyings returns the new keys that wait, in the order of the members: a member's own program warns of them.
func (m *Machine) Rekeyings() []Rekeying { return list[Rekeying](m.base, []byte{kindRekey}) }

// Proposal returns a proposal and how it stands.
func (m *Machine) Proposal(id uint64) (Proposal, Progress, bool) {
	p, g, err := m.view(Header{}).proposal(id)
	return p, g, err == nil
}

// Proposals calls f for all proposals, newest first, until it returns false.
func (m *Machine) Proposals(f func(Proposal, Progress) bool) {
	var a agenda
	load(m.base, keyAgenda, &a)
	for id := a.Last; id > 0; id-- {
		if p, g, ok := m.Proposal(id); !ok || !f(p, g) {
			return
		}
	}
}

// Scheduled returns the proposals that have passed and wait for their time, in the order of their effect.
func (m *Machine) Scheduled() (l []Proposal) {
	m.base.Scan(key(kindProposal, uint8(proposalQueue)), func(k, _ []byte) bool {
		if k[10] == eventEffect {
			p, _, _ := m.Proposal(binary.BigEndian.Uint64(k[11:]))
			l = append(l, p)
		}
		return true
	})
	return l
}

// Cast is a member's ballot.
type Cast struct {
	Member uint64
	Ballot
}

// Ballots returns the ballots on a proposal in the order of the members: none when they are forgotten (vote.kept).
func (m *Machine) Ballots(id uint64) (l []Cast) {
	m.base.Scan(key(kindBallot, id), func(k, b []byte) bool {
		v := Cast{Member: binary.BigEndian.Uint64(k[9:])}
		mustDecode(b, &v.Ballot)
		l = append(l, v)
		return true
	})
	return l
}

// MayVote reports whether a member has a vote on a proposal that is open now.
func (m *Machine) MayVote(id, member uint64) bool {
	c := m.view(Header{})
	_, g, err := c.proposal(id)
	mb, ok := c.member(member)
	return err == nil && ok && g.Stage == Voting && c.mayVote(&mb, &g)
}

// Delegations returns whom a member lets vote for it, and who lets it vote for them.
func (m *Machine) Delegations(member uint64) (to []Delegation, from []uint64) {
	c := m.view(Header{})
	return c.delegations(member).L, c.proxiesOf(member)
}

// BlockList returns the blocked nodes in the order of their keys.
func (m *Machine) BlockList() []Blocked { return list[Blocked](m.base, key(kindBlock, uint8(1))) }

// Validators returns all that are or were validators, in the order of their keys: Power tells. The engine finds keys for
// evidence, and peers' nodes, in it.
func (m *Machine) Validators() []Validator {
	return list[Validator](m.base, key(kindValidator, uint8(1)))
}

// Treasurers returns who is in office at a time.
func (m *Machine) Treasurers(now int64) []Officer { return m.view(Header{Time: now}).treasurers() }

// RulesVersion is the newest version of the ledger's rules that this program knows.
const RulesVersion = 1

// Version is the version of the ledger's rules in force.
func (m *Machine) Version() uint64 { return programVersion(m.base) }

// Upgrade returns the upgrade that has been decided and waits for its height. A program that does not know its version must stop
// before it executes the block of that height.
func (m *Machine) Upgrade() (Upgrade, bool) {
	var u Upgrade
	ok := load(m.base, keyUpgrade, &u)
	return u, ok
}
