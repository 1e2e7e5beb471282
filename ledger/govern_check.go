package ledger

import (
	"encoding/binary"
	"fmt"

	"weft/ident"
	"weft/ledger/tx"
)

// beginGovern writes the first bylaws.
func (c *call) beginGovern(g Genesis) error {
	p := DefaultParams()
	for _, s := range g.Settings {
		if err := p.Set(s.Name, s.Value); err != nil {
			return err
		}
	}
	if err := p.Check(); err != nil {
		return err
	}
	if c.Time < 1 || int64(len(g.Validators)) > p.Validators {
		return fmt.Errorf("a community begins after 1970 and with at most %d validators", p.Validators)
	}
	p.Version = 1
	c.saveParams(&p)
	return nil
}

// beginOffices makes the first founder treasurer and starts the first validators, after the founders are members.
func (c *call) beginOffices(g Genesis) error {
	var s validatorSet
	for _, v := range g.Validators {
		if c.s.Get(validatorKey(v.Key)) != nil || v.Operator < 1 || v.Operator > uint64(len(g.Founders)) || v.Key.IsZero() || v.Node.IsZero() {
			return fmt.Errorf("validator %s: it stands there twice, lacks a key, or its operator is not a founder", v.Key)
		}
		c.save(validatorKey(v.Key), &Validator{Key: v.Key, Operator: v.Operator, Node: v.Node, Power: 1, Since: c.Time})
		s.N++
	}
	c.save(keyValidators, &s)
	return c.doElection(&tx.ActElection{Member: 1})
}

// checkGovern verifies what must be true of members, votes and validators.
func (m *Machine) checkGovern() error {
	c := m.view(Header{})
	for _, f := range []func() error{c.params().Check, c.checkMembers, c.checkProposals, c.checkDelegations, c.checkSets} {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// complaint keeps the first error.
type complaint struct{ err error }

func (e *complaint) must(ok bool, format string, args ...any) {
	if !ok && e.err == nil {
		e.err = fmt.Errorf(format, args...)
	}
}

func (c *call) checkMembers() error {
	var e complaint
	r, active, pending, last := c.register(), uint64(0), uint32(0), uint64(0)
	open := map[uint64]uint32{}
	c.s.Scan(key(kindProposal, uint8(proposalProgress)), func(k, v []byte) bool {
		var g Progress
		mustDecode(v, &g)
		if g.Stage == Notice || g.Stage == Voting {
			p, _, _ := c.proposal(binary.BigEndian.Uint64(k[2:]))
			open[p.Author]++
		}
		return true
	})
	c.members(func(m Member) bool {
		last++
		e.must(m.ID == last, "member %d has number %d", last, m.ID)
		if m.State == Active {
			active++
		}
		k, ok := c.memberByKey(m.Key)
		e.must(ok && k.ID == m.ID, "the key of member %d does not lead to it", m.ID)
		for _, d := range m.Delegates {
			var role keyRole
			e.must(c.load(key(kindKey, d), &role) && role == keyRole{Member: m.ID, Role: roleDelegate}, "delegate %s of member %d does not lead to it", d, m.ID)
		}
		var a Account
		e.must(c.load(accountKey(m.Key), &a), "member %d has no account", m.ID)
		e.must((m.State == Suspended) == (m.Until != 0), "member %d is %s until %d", m.ID, m.State, m.Until)
		e.must(m.State != Suspended || c.s.Get(eventKey(m.Until, eventReinstate, number(m.ID))) != nil, "nothing ends the suspension of member %d", m.ID)
		e.must(m.Open == open[m.ID], "member %d has %d open proposals, not %d", m.ID, open[m.ID], m.Open)
		return true
	})
	e.must(r.Last == last && r.Active == active, "the register has %d members, %d active; it says %+v", last, active, r)
	e.must(active > 0, "no member is active")
	c.s.Scan(key(kindMember, uint8(memberApply)), func(_, v []byte) bool {
		var a Application
		mustDecode(v, &a)
		pending++
		e.must(c.s.Get(eventKey(a.Until, eventApply, a.Key[:])) != nil, "nothing ends the application of %s", a.Key)
		return true
	})
	e.must(r.Pending == pending, "%d applications are open, not %d", pending, r.Pending)
	c.s.Scan([]byte{kindKey}, func(k, v []byte) bool {
		var role keyRole
		mustDecode(v, &role)
		_, ok := c.member(role.Member)
		e.must(ok, "key %x leads to no member", k[1:])
		if role.Role == roleVoid {
			e.must(c.s.Get(accountKey(ident.PublicKey(k[1:]))) == nil, "the void key %x has an account", k[1:])
		}
		return true
	})
	c.s.Scan([]byte{kindRekey}, func(_, v []byte) bool {
		var r Rekeying
		mustDecode(v, &r)
		ev := eventKey(r.Since+30*day, eventRekeyEnd, r.name())
		if r.Due != 0 {
			ev = eventKey(r.Due, eventRekey, r.name())
		}
		e.must(c.s.Get(ev) != nil && len(r.Vouches) > 0, "the new key of member %d waits for nothing", r.Member)
		return true
	})
	return e.err
}

func (c *call) checkProposals() error {
	var e complaint
	var a agenda
	c.load(keyAgenda, &a)
	var last uint64
	var open uint32
	c.s.Scan(key(kindProposal, uint8(proposalStatic)), func(_, v []byte) bool {
		var p Proposal
		mustDecode(v, &p)
		last++
		_, g, err := c.proposal(p.ID)
		e.must(err == nil && p.ID == last, "proposal %d: %v", p.ID, err)
		switch g.Stage {
		case Notice:
			open++
			e.must(c.s.Get(eventKey(g.Opens, eventOpen, number(p.ID))) != nil, "nothing opens the vote on proposal %d", p.ID)
		case Voting:
			open++
			e.must(c.s.Get(eventKey(g.Closes, eventClose, number(p.ID))) != nil, "nothing closes the vote on proposal %d", p.ID)
			var n [4]uint64
			c.s.Scan(key(kindBallot, p.ID), func(_, v []byte) bool {
				var b Ballot
				mustDecode(v, &b)
				n[b.Choice]++
				return true
			})
			e.must(n == [4]uint64{0, g.Yes, g.No, g.Abstain}, "the ballots on proposal %d are %v, the tally is %+v", p.ID, n, g)
		case Passed:
			e.must(c.s.Get(eventKey(g.Effect, eventEffect, number(p.ID))) != nil, "proposal %d has passed and nothing comes of it", p.ID)
		}
		e.must(g.Ballots() <= g.Eligible, "proposal %d has %d ballots of %d voters", p.ID, g.Ballots(), g.Eligible)
		return true
	})
	e.must(a == agenda{last, open}, "there are %d proposals, %d open; the agenda says %+v", last, open, a)
	return e.err
}

func (c *call) checkDelegations() error {
	var e complaint
	ways := 0
	c.s.Scan(key(kindDelegation, uint8(delegationsOf)), func(k, v []byte) bool {
		from := binary.BigEndian.Uint64(k[2:])
		var d delegations
		mustDecode(v, &d)
		seen := map[uint64]bool{}
		for _, o := range d.L {
			e.must(o.To != from && c.s.Get(key(kindDelegation, uint8(delegationsTo), o.To, from)) != nil, "the delegation from %d to %d has no way back", from, o.To)
			if !seen[o.To] {
				seen[o.To] = true
				ways++
			}
		}
		return true
	})
	c.s.Scan(key(kindDelegation, uint8(delegationsTo)), func(_, _ []byte) bool { ways--; return true })
	e.must(ways == 0, "%d delegations have no way there", -ways)
	return e.err
}

func (c *call) checkSets() error {
	var e complaint
	s, n := c.validatorSet(), uint64(0)
	for _, v := range c.validators() {
		n += uint64(v.Power)
		op, _ := c.member(v.Operator)
		e.must(v.Power == 0 || op.State == Active || op.State == Suspended, "the operator of validator %s is no member", v.Key)
	}
	e.must(s.N == n && s.Head <= s.Tail, "there are %d validators; the set says %+v", n, s)
	var blocks, count blockCount
	c.s.Scan(key(kindBlock, uint8(1)), func(_, _ []byte) bool { blocks.N++; return true })
	c.load(keyBlockCount, &count)
	e.must(blocks == count, "%d nodes are blocked, not %d", blocks.N, count.N)
	return e.err
}
