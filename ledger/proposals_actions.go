package ledger

import (
	"weft/ident"
	"weft/ledger/tx"
)

// checkAction reports whether members may decide a: that it could be done now. What has changed when it takes effect is seen
// then, by doAction, which checks anew.
func (c *call) checkAction(a tx.Action) error {
	switch a := a.(type) {
	case *tx.ActText:
		return nil
	case *tx.ActBylaws:
		_, err := c.changedParams(a.Settings, tx.DecideBylaws)
		return err
	case *tx.ActTariff:
		_, err := c.changedParams(a.Settings, tx.DecideTariff)
		return err
	case *tx.ActBudget:
		return c.checkMeasure(tx.DecideBudget, a.Measure)
	case *tx.ActSurplus:
		return c.checkMeasure(tx.DecideSurplus, a.Measure)
	case *tx.ActValidators:
		return c.checkValidators(a)
	case *tx.ActBlock:
		return c.checkBlock(a)
	case *tx.ActAdmission:
		_, err := c.admissible(a.Applicant)
		return err
	case *tx.ActStanding:
		_, err := c.checkStanding(a)
		return err
	case *tx.ActCredit:
		_, err := c.checkCredit(a)
		return err
	case *tx.ActElection:
		_, err := c.checkElection(a)
		return err
	case *tx.ActUpgrade:
		return c.checkUpgrade(a)
	case *tx.ActRekey:
		_, err := c.checkRekey(&a.Rekey)
		return err
	}
	return refuse(CodeMalform, "this decision is not known here")
}

func (c *call) doAction(p *Proposal) error {
	if err := c.checkAction(p.Action); err != nil {
		return err
	}
	switch a := p.Action.(type) {
	case *tx.ActBylaws:
		return c.changeParams(a.Settings, tx.DecideBylaws)
	case *tx.ActTariff:
		return c.changeParams(a.Settings, tx.DecideTariff)
	case *tx.ActBudget:
		return c.doMeasure(tx.DecideBudget, a.Measure, p.ID)
	case *tx.ActSurplus:
		return c.doMeasure(tx.DecideSurplus, a.Measure, p.ID)
	case *tx.ActValidators:
		c.queueValidators(a)
	case *tx.ActBlock:
		return c.doBlock(a, p.ID)
	case *tx.ActAdmission:
		ap, err := c.admissible(a.Applicant)
		if err == nil {
			c.admitMember(&ap)
		}
		return err
	case *tx.ActStanding:
		return c.doStanding(a)
	case *tx.ActCredit:
		m, err := c.checkCredit(a)
		if err == nil {
			m.Class, m.Grant, m.Aid = Class(a.Class), a.Grant, a.Solidarity
			c.saveMember(&m)
			c.limit(&m)
		}
		return err
	case *tx.ActElection:
		return c.doElection(a)
	case *tx.ActUpgrade:
		c.save(keyUpgrade, &Upgrade{a.Height, a.Version, p.ID})
	case *tx.ActRekey:
		m, err := c.checkRekey(&a.Rekey)
		if err == nil {
			c.moveKey(&m, a.Rekey.New)
		}
		return err
	}
	return nil
}

// changedParams returns the parameters as they would be.
func (c *call) changedParams(s []tx.Setting, d tx.Decision) (Params, error) {
	p := *c.params()
	if len(s) == 0 {
		return p, refuse(CodeValue, "no parameter is named")
	}
	l := p.List()
	byName := make(map[string]Param, len(l))
	for _, r := range l {
		byName[r.Name] = r
	}
	for _, s := range s {
		r, ok := byName[s.Name]
		if !ok {
			return p, refuse(CodeUnknown, "there is no parameter %q, or it is named twice", s.Name)
		}
		if d == tx.DecideTariff && r.Class != tx.DecideTariff {
			return p, refuse(CodeForbid, "%s is no part of the tariff: propose a change of the bylaws", s.Name)
		}
		if err := r.set(s.Value); err != nil {
			return p, err
		}
		delete(byName, s.Name)
	}
	return p, p.Check()
}

const (
	paramsNow     = 0 // second byte of the keys under kindParams
	paramsHistory = 1 // version → parameters
	paramsUpgrade = 2
	paramsProgram = 3

	kindParams = 'p'
)

func historyKey(version uint64) []byte { return key(kindParams, uint8(paramsHistory), version) }

func (c *call) changeParams(s []tx.Setting, d tx.Decision) error {
	p, err := c.changedParams(s, d)
	if err != nil {
		return err
	}
	p.Version++
	c.saveParams(&p)
	return nil
}

func (c *call) saveParams(p *Params) {
	p.Since = c.Time
	c.save(keyParams, p)
	c.save(historyKey(p.Version), p)
	c.bylaws = nil
}

// paramsAt returns the parameters that were in force at a time: for years that began under other rules.
func (c *call) paramsAt(t int64) *Params {
	var found *Params
	c.s.Scan(key(kindParams, uint8(paramsHistory)), func(k, v []byte) bool {
		p := new(Params)
		mustDecode(v, p)
		if found == nil || p.Since <= t {
			found = p
		}
		return p.Since <= t
	})
	return found
}

// admissible returns an application that a vote may decide.
func (c *call) admissible(k ident.PublicKey) (Application, error) {
	var a Application
	if !c.load(applicationKey(k), &a) {
		return a, refuse(CodeUnknown, "there is no open application of %s", k)
	}
	m, _ := c.memberByKey(k)
	switch rule := c.params().Admission; {
	case m.State == Expelled: // always by vote
	case rule == AdmitVouch:
		return a, refuse(CodeState, "here applicants become members by vouches, not by a vote (member.admission)")
	case rule == AdmitBoth && !c.vouched(&a):
		return a, refuse(CodeState, "more members must vouch for the applicant before the vote")
	}
	return a, nil
}

// keepApplication makes an application last until it is decided.
func (c *call) keepApplication(k ident.PublicKey, until int64) {
	var a Application
	if c.load(applicationKey(k), &a) && a.Until < until {
		c.notAt(a.Until, eventApply, k[:])
		a.Until = until
		c.at(a.Until, eventApply, k[:])
		c.save(applicationKey(k), &a)
	}
}

func (c *call) checkStanding(a *tx.ActStanding) (Member, error) {
	m, ok := c.member(a.Member)
	if !ok {
		return m, refuse(CodeUnknown, "there is no member %d", a.Member)
	}
	last := m.State == Active && c.register().Active == 1
	switch {
	case a.Step == tx.Reinstate && m.State != Suspended:
		return m, refuse(CodeState, "member %d is not suspended but %s", m.ID, m.State)
	case a.Step != tx.Reinstate && m.State != Active && m.State != Suspended:
		return m, refuse(CodeState, "member %d is no member any more: %s", m.ID, m.State)
	case a.Step != tx.Reinstate && last:
		return m, refuse(CodeState, "member %d is the last active member", m.ID)
	case a.Step == tx.Suspend && (a.Days == 0 || int64(a.Days) > c.params().SuspendDays):
		return m, refuse(CodeValue, "a suspension is for 1 to %d days (member.suspension)", c.params().SuspendDays)
	}
	return m, nil
}

func (c *call) doStanding(a *tx.ActStanding) error {
	m, err := c.checkStanding(a)
	if err != nil {
		return err
	}
	switch a.Step {
	case tx.Reinstate:
		c.setState(&m, Active)
	case tx.Suspend:
		if m.State == Suspended {
			c.notAt(m.Until, eventReinstate, number(m.ID))
			m.Until = 0
		}
		until := c.Time + int64(a.Days)*day
		c.setState(&m, Suspended)
		m.Until = until
		c.saveMember(&m)
		c.at(until, eventReinstate, number(m.ID))
	case tx.Expel:
		if err := c.resignAll(m.ID); err != nil {
			return err
		}
		c.setState(&m, Expelled)
	}
	return nil
}

func (c *call) checkCredit(a *tx.ActCredit) (Member, error) {
	m, ok := c.member(a.Member)
	switch {
	case !ok:
		return m, refuse(CodeUnknown, "there is no member %d", a.Member)
	case m.State == Left || m.State == Expelled:
		return m, refuse(CodeState, "member %d is no member any more: %s", m.ID, m.State)
	case a.Solidarity < 0 || a.Solidarity > c.Time+maxAhead+2*year:
		return m, refuse(CodeValue, "the solidarity tier is granted for at most two years")
	}
	return m, nil
}

// Officer is a treasurer.
type Officer struct {
	Member uint64
	Since  int64
	Until  int64 // end of the term, seconds since 1970
}

type officers struct{ L []Officer }

func (o *officers) Fields(c *tx.Coder) {
	tx.List(c, &o.L, 100, func(c *tx.Coder, o *Officer) {
		c.U64(&o.Member)
		c.I64(&o.Since)
		c.I64(&o.Until)
	})
}

const memberOffice = 3

var keyOffice = key(kindMember, uint8(memberOffice))

// treasurers returns who is in office: whose term runs and who is active. When no term runs any more, those whose
// term is over stay until others are elected, as bills do not wait.
func (c *call) treasurers() (in []Officer) {
	var o officers
	c.load(keyOffice, &o)
	var over []Officer
	for _, f := range o.L {
		if m, _ := c.member(f.Member); m.State != Active {
			continue
		}
		if f.Until > c.Time {
			in = append(in, f)
		} else {
			over = append(over, f)
		}
	}
	if in == nil {
		return over
	}
	return in
}

func (c *call) isTreasurer(member uint64) bool {
	for _, f := range c.treasurers() {
		if f.Member == member {
			return true
		}
	}
	return false
}

func (c *call) checkElection(a *tx.ActElection) (officers, error) {
	p := c.params()
	var o officers
	m, ok := c.member(a.Member)
	if !ok || m.State != Active {
		if !a.Remove {
			return o, refuse(CodeState, "member %d is not an active member", a.Member)
		}
	}
	c.load(keyOffice, &o)
	var rest officers
	found := false
	for _, f := range o.L {
		switch {
		case f.Member == a.Member:
			found = true
		case f.Until > c.Time:
			rest.L = append(rest.L, f)
		}
	}
	switch {
	case a.Remove && !found:
		return o, refuse(CodeUnknown, "member %d is not a treasurer", a.Member)
	case a.Remove:
		// Others whose term is over stay where they are: an election of somebody new ends that, not a removal.
		rest.L = nil
		for _, f := range o.L {
			if f.Member != a.Member {
				rest.L = append(rest.L, f)
			}
		}
	case int64(len(rest.L)) >= p.TreasurersMost:
		return o, refuse(CodeTooMany, "there are %d treasurers already (treasurer.most)", len(rest.L))
	case p.TreasurerTerms > 0 && int64(c.terms(&m)) >= p.TreasurerTerms:
		return o, refuse(CodeForbid, "member %d has been treasurer for %d terms in a row: somebody else's turn (treasurer.terms)", m.ID, m.Terms)
	}
	return rest, nil
}

// terms is how many terms in a row a member has served: a pause as long as a term ends the row.
func (c *call) terms(m *Member) uint32 {
	if m.TermEnd+c.params().TreasurerTerm <= c.Time {
		return 0
	}
	return m.Terms
}

func (c *call) doElection(a *tx.ActElection) error {
	o, err := c.checkElection(a)
	if err != nil {
		return err
	}
	m, _ := c.member(a.Member)
	if a.Remove {
		m.TermEnd = min(m.TermEnd, c.Time)
	} else {
		m.Terms, m.TermEnd = c.terms(&m)+1, c.Time+c.params().TreasurerTerm
		o.L = append(o.L, Officer{m.ID, c.Time, m.TermEnd})
	}
	c.saveMember(&m)
	c.saveOffice(o)
	return nil
}

func (c *call) saveOffice(o officers) {
	if len(o.L) == 0 {
		c.drop(keyOffice)
		return
	}
	c.save(keyOffice, &o)
}

// endOffice takes a member who goes out of office. The caller saves m.
func (c *call) endOffice(m *Member) {
	var o, rest officers
	c.load(keyOffice, &o)
	for _, f := range o.L {
		if f.Member != m.ID {
			rest.L = append(rest.L, f)
		}
	}
	if len(rest.L) != len(o.L) {
		m.TermEnd = min(m.TermEnd, c.Time)
		c.saveOffice(rest)
	}
}

// Blocked is an entry of the block list.
type Blocked = tx.Blocked

const kindBlock = 'b'

type blockCount struct{ N uint64 }

func (b *blockCount) Fields(c *tx.Coder) { c.U64(&b.N) }

var keyBlockCount = key(kindBlock, uint8(0))

func blockKey(k ident.PublicKey) []byte { return tx.StateKeyBlocked(k) }

func (c *call) checkBlock(a *tx.ActBlock) error {
	if len(a.Changes) == 0 {
		return refuse(CodeValue, "no node is named")
	}
	for i, b := range a.Changes {
		for _, o := range a.Changes[:i] {
			if o.Node == b.Node {
				return refuse(CodeValue, "node %s is named twice", b.Node)
			}
		}
		switch {
		case b.Unblock && c.s.Get(blockKey(b.Node)) == nil:
			return refuse(CodeUnknown, "node %s is not blocked", b.Node)
		case !b.Unblock && b.Until != 0 && b.Until <= c.Time:
			return refuse(CodeValue, "the block of %s would end before it begins", b.Node)
		}
	}
	return nil
}

func (c *call) doBlock(a *tx.ActBlock, proposal uint64) error {
	for _, ch := range a.Changes {
		c.unblock(ch.Node)
		if ch.Unblock {
			continue
		}
		var n blockCount
		c.load(keyBlockCount, &n)
		if int64(n.N) >= c.params().BlockList {
			return refuse(CodeTooMany, "the block list is full (block.most)")
		}
		n.N++
		c.save(keyBlockCount, &n)
		c.save(blockKey(ch.Node), &Blocked{Node: ch.Node, Since: c.Time, Until: ch.Until, Proposal: proposal})
		if ch.Until != 0 {
			c.at(ch.Until, eventUnblock, ch.Node[:])
		}
	}
	return nil
}

func (c *call) unblock(node ident.PublicKey) {
	var b Blocked
	if !c.load(blockKey(node), &b) {
		return
	}
	if b.Until != 0 {
		c.notAt(b.Until, eventUnblock, node[:])
	}
	c.drop(blockKey(node))
	var n blockCount
	c.load(keyBlockCount, &n)
	n.N--
	c.save(keyBlockCount, &n)
}

// Upgrade is a change of the ledger's own rules that has been decided.
type Upgrade struct {
	Height   int64
	Version  uint64
	Proposal uint64
}

// Fields implements tx.Record.
func (u *Upgrade) Fields(c *tx.Coder) {
	c.I64(&u.Height)
	c.U64(&u.Version)
	c.U64(&u.Proposal)
}

var (
	keyUpgrade = key(kindParams, uint8(paramsUpgrade))
	keyProgram = key(kindParams, uint8(paramsProgram))
)

// programVersion returns the version of the ledger's rules in force: 1 at first.
func programVersion(s Store) uint64 {
	var u Upgrade
	if load(s, keyProgram, &u) {
		return u.Version
	}
	return 1
}

// upgradeNotice is how many blocks there are at least between a decision and the upgrade.
const upgradeNotice = 20

func (c *call) checkUpgrade(a *tx.ActUpgrade) error {
	switch {
	case a.Version <= programVersion(c.s):
		return refuse(CodeValue, "version %d is in force already", programVersion(c.s))
	case a.Height < c.Height+upgradeNotice:
		return refuse(CodeState, "height %d is too near, or past: take one from %d on", a.Height, c.Height+upgradeNotice)
	}
	return nil
}

// dueUpgrade puts an upgrade in force at its height. The engine stops a program that does not know the version before it gets here.
func (c *call) dueUpgrade() {
	var u Upgrade
	if c.load(keyUpgrade, &u) && c.Height >= u.Height {
		c.drop(keyUpgrade)
		c.save(keyProgram, &u)
	}
}
