package ledger

import (
	"fmt"

	"weft/ident"
	"weft/ledger/tx"
)

// Standing is where a member stands.
type Standing uint8

// The standings. A record is never deleted: capital of former members stays theirs.
const (
	Active    Standing = 0
	Suspended Standing = 1 // no vote, no credit, until Member.Until or a vote
	Left      Standing = 2
	Expelled  Standing = 3
)

func (s Standing) String() string {
	if s > Expelled {
		return fmt.Sprintf("standing %d", uint8(s))
	}
	return [...]string{"active", "suspended", "left", "expelled"}[s]
}

// Class is a member's credit class.
type Class uint8

// The classes; limits are the parameters credit.….
const (
	ClassNew          Class = 0
	ClassFull         Class = 1
	ClassTrusted      Class = 2
	ClassOrganisation Class = 3
)

func (c Class) String() string {
	if c > ClassOrganisation {
		return fmt.Sprintf("class %d", uint8(c))
	}
	return [...]string{"new", "full", "trusted", "organisation"}[c]
}

// Member is one entry of the members' register. Numbers begin at 1 and are never used again.
type Member struct {
	ID        uint64
	Key       ident.PublicKey // now; changes with a re-key
	Name      string
	Form      tx.Form
	State     Standing
	Class     Class
	Founder   bool              // from the first block on: rules on the length of membership do not count
	Grant     int64             // a credit limit of its own, by vote; -1: that of the class
	Joined    int64             // seconds since 1970
	Changed   int64             // of State: time …
	Height    int64             // … and block
	Until     int64             // end of a suspension
	Flags     uint8             // Flag…
	Delegates []ident.PublicKey // may propose and vote for it
	Vouched   uint32            // vouches given since VouchedAt
	VouchedAt int64
	Open      uint32 // own proposals that are open
	Quiet     int64  // no new key by vouches before this time: the present one has objected
	Aid       int64  // on the solidarity tier until then
	Terms     uint32 // as treasurer, in a row
	TermEnd   int64  // of the last of them
}

// FlagDoubleSigned marks the operator of a validator that signed two blocks at one height.
const FlagDoubleSigned = 1

// Fields implements tx.Record.
func (m *Member) Fields(c *tx.Coder) {
	c.U64(&m.ID)
	c.Key(&m.Key)
	c.Text(&m.Name, 60)
	c.U8((*uint8)(&m.Form))
	c.U8((*uint8)(&m.State))
	c.U8((*uint8)(&m.Class))
	c.Bool(&m.Founder)
	c.I64(&m.Grant)
	c.I64(&m.Joined)
	c.I64(&m.Changed)
	c.I64(&m.Height)
	c.I64(&m.Until)
	c.U8(&m.Flags)
	tx.List(c, &m.Delegates, 8, func(c *tx.Coder, k *ident.PublicKey) { c.Key(k) })
	c.U32(&m.Vouched)
	c.I64(&m.VouchedAt)
	c.U32(&m.Open)
	c.I64(&m.Quiet)
	c.I64(&m.Aid)
	c.U32(&m.Terms)
	c.I64(&m.TermEnd)
}

// Limit is the credit that the bylaws grant the member now: nothing to who is not active.
func (m *Member) Limit(p *Params) int64 {
	switch {
	case m.State != Active:
		return 0
	case m.Grant >= 0:
		return m.Grant
	}
	return [...]int64{p.CreditNew, p.CreditFull, p.CreditTrusted, p.CreditOrg}[m.Class]
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

// A key belongs to a member in a role, for ever: a key that was replaced is void and never comes back.
type keyRole struct {
	Member uint64
	Role   uint8
}

const (
	roleMember   = 0
	roleDelegate = 1
	roleVoid     = 2 // was the member's key
)

func (r *keyRole) Fields(c *tx.Coder) {
	c.U64(&r.Member)
	c.U8(&r.Role)
}

const (
	kindMember = 'm'
	kindKey    = 'k'

	memberCount = 0 // second byte of the keys under kindMember
	memberByID  = 1
	memberApply = 2
)

var keyRegister = key(kindMember, uint8(memberCount))

func memberKey(id uint64) []byte { return key(kindMember, uint8(memberByID), id) }

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

// enroll makes a member with an account. The caller has checked that the key is free.
func (c *call) enroll(m Member) Member {
	r := c.register()
	r.Last++
	r.Active++
	m.ID, m.State, m.Joined, m.Changed, m.Height = r.Last, Active, c.Time, c.Time, c.Height
	c.save(keyRegister, &r)
	c.save(key(kindKey, m.Key), &keyRole{Member: m.ID, Role: roleMember})
	c.saveMember(&m)
	var a Account
	c.load(accountKey(m.Key), &a)
	a.Limit = m.Limit(c.params())
	c.save(accountKey(m.Key), &a)
	return m
}

func mustDecode(b []byte, r tx.Record) {
	if err := tx.Decode(b, r); err != nil {
		panic("ledger: the store is damaged: " + err.Error())
	}
}
