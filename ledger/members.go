package ledger

import (
	"fmt"
	"slices"

	"weft/ident"
	"weft/ledger/tx"
)

// The records that light clients read are in ledger/tx.
type (
	Member   = tx.Member
	Standing = tx.Standing
	Class    = tx.Class

	keyRole = tx.KeyRole
)

// The standings.
const (
	Active    = tx.Active
	Suspended = tx.Suspended
	Left      = tx.Left
	Expelled  = tx.Expelled
)

// The classes; limits are the parameters credit.….
const (
	ClassNew          = tx.ClassNew
	ClassFull         = tx.ClassFull
	ClassTrusted      = tx.ClassTrusted
	ClassOrganisation = tx.ClassOrganisation
)

// FlagDoubleSigned marks the operator of a validator that signed two blocks at one height.
const FlagDoubleSigned = 1

const (
	roleMember   = tx.RoleMember
	roleDelegate = tx.RoleDelegate
	roleVoid     = tx.RoleVoid
)

// CreditOf is the limit of a class.
func (p *Params) CreditOf(c Class) int64 {
	return [...]int64{p.CreditNew, p.CreditFull, p.CreditTrusted, p.CreditOrg}[c]
}

// register counts members.
type register struct {
	Last    uint64 // number of the newest member
	Active  uint64
	Pending uint32 // open applications
}

func (r *register) Fields(c *tx.Coder) {
	c.U64(&r.Last)
	c.U64(&r.Active)
	c.U32(&r.Pending)
}

const (
	kindMember = 'm'
	kindKey    = 'k'

	memberCount = 0 // second byte of the keys under kindMember
	memberByID  = 1 // tx.StateKeyMember
	memberApply = 2
)

var keyRegister = key(kindMember, uint8(memberCount))

func memberKey(id uint64) []byte { return tx.StateKeyMember(id) }

func (c *call) register() (r register) {
	c.load(keyRegister, &r)
	return r
}

// member returns the member of a number, whatever its standing.
func (c *call) member(id uint64) (m Member, ok bool) {
	ok = c.load(memberKey(id), &m)
	return m, ok
}

// memberByKey returns the member whose key k is now, whatever its standing.
func (c *call) memberByKey(k ident.PublicKey) (Member, bool) {
	var r keyRole
	if !c.load(key(kindKey, k), &r) || r.Role != roleMember {
		return Member{}, false
	}
	return c.member(r.Member)
}

// owner returns the key under which what k owns is now: k itself but after a re-key. Accounts, tabs, names and
// registrations that name an old key are its member's, so they are looked up by owner and need no rewriting.
func (c *call) owner(k ident.PublicKey) ident.PublicKey {
	var r keyRole
	if c.load(key(kindKey, k), &r) && r.Role == roleVoid {
		m, _ := c.member(r.Member)
		return m.Key
	}
	return k
}

// members calls f for all members, of any standing, in the order of their numbers, until it returns false. f does not write.
func (c *call) members(f func(Member) bool) {
	c.s.Scan(key(kindMember, uint8(memberByID)), func(_, v []byte) bool {
		var m Member
		mustDecode(v, &m)
		return f(m)
	})
}

func (c *call) saveMember(m *Member) { c.save(memberKey(m.ID), m) }

// enroll makes a member with an account. The caller has checked that the key is free. What it had as an applicant it keeps;
// books know that by the member's number from now on.
func (c *call) enroll(m Member) Member {
	r := c.register()
	r.Last++
	r.Active++
	m.ID, m.State, m.Joined, m.Changed, m.Height = r.Last, Active, c.Time, c.Time, c.Height
	c.save(keyRegister, &r)
	c.save(key(kindKey, m.Key), &keyRole{Member: m.ID, Role: roleMember})
	c.saveMember(&m)
	c.limit(&m)
	var a Account
	if c.load(accountKey(m.Key), &a); a.Balance != 0 {
		c.post("account:"+m.Key.String(), -a.Balance, "admission")
		c.post(fmt.Sprint("member:", m.ID), a.Balance, "admission")
	}
	return m
}

// limit gives the member's account the limit of the bylaws, or what is owed if that is more.
func (c *call) limit(m *Member) {
	var a Account
	k := accountKey(m.Key)
	had := c.load(k, &a)
	old := a.Limit
	if a.Limit = max(m.Limit(c.params()), -a.Balance); !had || a.Limit != old {
		c.save(k, &a)
	}
}

// setState changes a member's standing and all that hangs on it.
func (c *call) setState(m *Member, s Standing) {
	r := c.register()
	if m.State == Active {
		r.Active--
	}
	if s == Active {
		r.Active++
	}
	c.save(keyRegister, &r)
	if m.State == Suspended && m.Until != 0 {
		c.notAt(m.Until, eventReinstate, number(m.ID))
		m.Until = 0
	}
	m.State, m.Changed, m.Height = s, c.Time, c.Height
	if s == Left || s == Expelled {
		c.dropDelegateKeys(m)
		c.dropDelegations(m.ID)
		c.dropRekeys(m.ID)
		c.endOffice(m)
	}
	c.saveMember(m)
	c.limit(m)
}

// actor returns the active member for whom k may propose and vote: its own key, or a delegate's.
func (c *call) actor(k ident.PublicKey) (Member, error) {
	var r keyRole
	if !c.load(key(kindKey, k), &r) || r.Role == roleVoid {
		return Member{}, refuse(CodeForbid, "only members may do this")
	}
	m, _ := c.member(r.Member)
	return m, mayAct(&m)
}

// self returns the active member whose own key k is.
func (c *call) self(k ident.PublicKey) (Member, error) {
	m, ok := c.memberByKey(k)
	if !ok {
		return m, refuse(CodeForbid, "only a member's own key may do this")
	}
	return m, mayAct(&m)
}

func mayAct(m *Member) error {
	if m.State != Active {
		return refuse(CodeState, "your membership is not active: %s", m.State)
	}
	return nil
}

// longEnough reports whether a member has been one for age seconds. Founders have.
func (c *call) longEnough(m *Member, age int64, at int64) bool {
	return m.Founder || m.Joined <= at-age
}

// useVouch counts a vouch of m against what the bylaws let a member give.
func (c *call) useVouch(m *Member) error {
	if err := c.mayVouch(m); err != nil {
		return err
	}
	if c.Time >= m.VouchedAt+c.params().VouchPeriod {
		m.VouchedAt, m.Vouched = c.Time, 0
	}
	m.Vouched++
	c.saveMember(m)
	return nil
}

func (c *call) mayVouch(m *Member) error {
	p := c.params()
	if !c.longEnough(m, p.VouchAge, c.Time) {
		return refuse(CodeState, "one may vouch after %d days of membership (member.vouch_age)", p.VouchAge/day)
	}
	if c.Time < m.VouchedAt+p.VouchPeriod && int64(m.Vouched) >= p.VouchesPerMember {
		return refuse(CodeTooMany, "a member may vouch %d times in %d days; wait", p.VouchesPerMember, p.VouchPeriod/day)
	}
	return nil
}

// Application is somebody who wants to be a member.
type Application struct {
	Key     ident.PublicKey
	Name    string
	Form    tx.Form
	Since   int64    // seconds since 1970
	Until   int64    // then it lapses
	Vouches []uint64 // members, the sponsor first
}

// Fields implements tx.Record.
func (a *Application) Fields(c *tx.Coder) {
	c.Key(&a.Key)
	c.Text(&a.Name, 60)
	c.U8((*uint8)(&a.Form))
	c.I64(&a.Since)
	c.I64(&a.Until)
	tx.List(c, &a.Vouches, 20, (*tx.Coder).U64)
}

func applicationKey(k ident.PublicKey) []byte { return key(kindMember, uint8(memberApply), k) }

// sponsor checks an application up to the sponsor's signature and returns the sponsor. It writes nothing.
func (c *call) sponsor(from ident.PublicKey, b *tx.Apply) (Member, error) {
	p := c.params()
	var r keyRole
	if c.load(key(kindKey, from), &r) {
		if m, _ := c.member(r.Member); r.Role != roleMember || m.State == Active || m.State == Suspended {
			return m, refuse(CodeExists, "this key is a member's already")
		}
	}
	if c.s.Get(applicationKey(from)) != nil {
		return Member{}, refuse(CodeExists, "there is an application of this key already; it needs vouches")
	}
	if int64(c.register().Pending) >= p.Applications {
		return Member{}, refuse(CodeTooMany, "%d applications are open; wait until some are decided", p.Applications)
	}
	if p.Forms == FormsPersons && b.Form != tx.Person || p.Forms == FormsHouseholds && b.Form != tx.Household {
		return Member{}, refuse(CodeValue, "the bylaws do not have a %s as a member (member.forms)", b.Form)
	}
	if b.Called == "" {
		return Member{}, refuse(CodeValue, "an applicant needs a name")
	}
	s, err := c.self(b.Sponsor)
	if err != nil {
		return s, refuse(CodeForbid, "the sponsor is not an active member: ask another one")
	}
	if err := c.mayVouch(&s); err != nil {
		return s, refuse(CodeTooMany, "the sponsor cannot vouch now: ask another member")
	}
	if b.Until <= c.Time || b.Until > c.Time+30*day {
		return s, refuse(CodeExpired, "the sponsor's word has run out, or is for more than 30 days: ask for a new one")
	}
	if !b.Sponsor.Verify(tx.SponsorDomain, tx.SponsorMessage(c.m.chain, from, b.Until), b.Word) {
		return s, refuse(CodeSig, "the sponsor has not signed for this key")
	}
	return s, nil
}

func (c *call) applyFor(from ident.PublicKey, b *tx.Apply) error {
	s, err := c.sponsor(from, b)
	if err != nil {
		return err
	}
	if err := c.useVouch(&s); err != nil {
		return err
	}
	a := Application{Key: from, Name: b.Called, Form: b.Form, Since: c.Time, Until: c.Time + c.params().ApplicationLife, Vouches: []uint64{s.ID}}
	r := c.register()
	r.Pending++
	c.save(keyRegister, &r)
	c.save(applicationKey(from), &a)
	c.at(a.Until, eventApply, from[:])
	return c.admitIfVouched(&a)
}

// vouched reports whether enough active members vouch for an applicant.
func (c *call) vouched(a *Application) bool {
	var n int64
	for _, id := range a.Vouches {
		if m, _ := c.member(id); m.State == Active {
			n++
		}
	}
	if n == 0 || n >= c.params().Vouches {
		return n > 0
	}
	var able int64 // where fewer may vouch than the bylaws ask for, all of them must
	c.members(func(m Member) bool {
		if m.State == Active && c.longEnough(&m, c.params().VouchAge, c.Time) {
			able++
		}
		return able <= n
	})
	return n >= able
}

// admitIfVouched makes a member of an applicant where vouches alone suffice. Who was expelled comes back by vote only.
func (c *call) admitIfVouched(a *Application) error {
	p := c.params()
	if m, ok := c.memberByKey(a.Key); ok && m.State == Expelled || p.Admission == AdmitVote || p.Admission == AdmitBoth || !c.vouched(a) {
		return nil
	}
	c.admitMember(a)
	return nil
}

// admitMember ends an application with membership: a new number, or the old one of who comes back.
func (c *call) admitMember(a *Application) {
	c.dropApplication(a)
	class := ClassNew
	if a.Form == tx.Organisation {
		class = ClassOrganisation
	}
	m, back := c.memberByKey(a.Key)
	if back {
		m.Name, m.Form, m.Class, m.Grant, m.Founder, m.Joined = a.Name, a.Form, class, -1, false, c.Time
		c.setState(&m, Active)
	} else {
		m = c.enroll(Member{Key: a.Key, Name: a.Name, Form: a.Form, Class: class, Grant: -1})
	}
	c.data = number(m.ID)
}

func (c *call) dropApplication(a *Application) {
	c.notAt(a.Until, eventApply, a.Key[:])
	c.drop(applicationKey(a.Key))
	r := c.register()
	r.Pending--
	c.save(keyRegister, &r)
}

func (c *call) lapse(k ident.PublicKey) {
	var a Application
	if c.load(applicationKey(k), &a) {
		c.dropApplication(&a)
	}
}

func (c *call) vouch(from ident.PublicKey, b *tx.Vouch) error {
	m, err := c.self(from)
	if err != nil {
		return err
	}
	var a Application
	if !c.load(applicationKey(b.Applicant), &a) {
		return refuse(CodeUnknown, "there is no application of %s", b.Applicant)
	}
	if slices.Contains(a.Vouches, m.ID) {
		return refuse(CodeExists, "you vouch for this applicant already")
	}
	if len(a.Vouches) == 20 {
		return refuse(CodeTooMany, "20 members vouch for this applicant already")
	}
	if err := c.useVouch(&m); err != nil {
		return err
	}
	a.Vouches = append(a.Vouches, m.ID)
	c.save(applicationKey(a.Key), &a)
	return c.admitIfVouched(&a)
}

// unvouch takes a vouch back; the one who gave it does not get it back to spend.
func (c *call) unvouch(from ident.PublicKey, b *tx.Unvouch) error {
	m, ok := c.memberByKey(from)
	if !ok {
		return refuse(CodeForbid, "only members vouch")
	}
	var a Application
	if !c.load(applicationKey(b.Applicant), &a) {
		return refuse(CodeUnknown, "there is no open application of %s", b.Applicant)
	}
	i := slices.Index(a.Vouches, m.ID)
	if i < 0 {
		return refuse(CodeUnknown, "you do not vouch for this applicant")
	}
	a.Vouches = slices.Delete(a.Vouches, i, i+1)
	c.save(applicationKey(a.Key), &a)
	return nil
}

// leave ends a membership in good order: nothing owed on either side, and somebody left to run the community.
func (c *call) leave(from ident.PublicKey) error {
	m, ok := c.memberByKey(from)
	if !ok || m.State == Left || m.State == Expelled {
		return refuse(CodeForbid, "you are not a member")
	}
	var a Account
	if c.load(accountKey(from), &a); a.Balance != 0 {
		return refuse(CodeFunds, "your account is at %d ncredit: bring it to zero before you leave", a.Balance)
	}
	if a.Tabs != 0 {
		return refuse(CodeState, "you pay from %d tabs still: close them and wait for their end", a.Tabs)
	}
	if m.State == Active && c.register().Active == 1 {
		return refuse(CodeState, "you are the last active member")
	}
	if err := c.resignAll(m.ID); err != nil {
		return err
	}
	c.setState(&m, Left)
	return nil
}

func (c *call) rename(from ident.PublicKey, b *tx.Rename) error {
	m, err := c.self(from)
	if err != nil {
		return err
	}
	if b.To == "" {
		return refuse(CodeValue, "a member needs a name")
	}
	m.Name = b.To
	c.saveMember(&m)
	return nil
}

// free reports whether a key belongs to nobody, so that a member may take it: no role, no application, no money.
func (c *call) free(k ident.PublicKey) error {
	var a Account
	switch {
	case c.s.Get(key(kindKey, k)) != nil:
		return refuse(CodeExists, "the key %s is, or was, a member's", k)
	case c.s.Get(applicationKey(k)) != nil:
		return refuse(CodeExists, "the key %s has applied for membership", k)
	case c.load(accountKey(k), &a) && (a.Balance != 0 || a.Limit != 0):
		return refuse(CodeExists, "the key %s has an account with money", k)
	}
	return nil
}

// dropDelegateKeys takes the keys that act for a member from it. The caller saves m.
func (c *call) dropDelegateKeys(m *Member) {
	for _, d := range m.Delegates {
		c.drop(key(kindKey, d))
	}
	m.Delegates = nil
}

// setDelegates replaces the keys that may act for a household or an organisation.
func (c *call) setDelegates(from ident.PublicKey, b *tx.Delegates) error {
	m, err := c.self(from)
	if err != nil {
		return err
	}
	p := c.params()
	if m.Form == tx.Person && len(b.Keys) > 0 {
		return refuse(CodeForbid, "a person acts with its own key; delegates are for households and organisations")
	}
	if int64(len(b.Keys)) > p.Delegates {
		return refuse(CodeTooMany, "at most %d delegates (member.delegates)", p.Delegates)
	}
	c.dropDelegateKeys(&m)
	for _, d := range b.Keys {
		if err := c.free(d.Key); err != nil {
			return err
		}
		if !d.Key.Verify(tx.DelegateDomain, tx.DelegateMessage(c.m.chain, m.ID, d.Key), d.Word) {
			return refuse(CodeSig, "the key %s has not agreed to act for you", d.Key)
		}
		c.save(key(kindKey, d.Key), &keyRole{Member: m.ID, Role: roleDelegate})
		if c.s.Get(accountKey(d.Key)) == nil {
			c.save(accountKey(d.Key), &Account{})
		}
		m.Delegates = append(m.Delegates, d.Key)
	}
	c.saveMember(&m)
	return nil
}

func mustDecode(b []byte, r tx.Record) {
	if err := tx.Decode(b, r); err != nil {
		panic("ledger: the store is damaged: " + err.Error())
	}
}
