package tx

import (
	"encoding/binary"
	"fmt"

	"weft/ident"
)

// Records of members and votes that light clients read, and their keys in the store (docs/spec/ledger.md section 3.1). To know a
// member by its key takes two proofs: of StateKeyKey, and of StateKeyMember.

// StateKeyBylaws is the key of the parameters in force, a Bylaws.
func StateKeyBylaws() []byte { return []byte{'p', 0} }

// StateKeyKey is the key of a KeyRole.
func StateKeyKey(k ident.PublicKey) []byte { return append([]byte{'k'}, k[:]...) }

// StateKeyMember is the key of a Member.
func StateKeyMember(id uint64) []byte { return binary.BigEndian.AppendUint64([]byte{'m', 1}, id) }

// StateKeyBlocked is the key of a Blocked.
func StateKeyBlocked(node ident.PublicKey) []byte { return append([]byte{'b', 1}, node[:]...) }

// Bylaws are the parameters in force as every client can read them, whether it knows them or not.
type Bylaws struct {
	Version  uint64 // one more with each change
	Since    int64  // seconds since 1970
	Settings []Setting
}

// Fields implements Record.
func (b *Bylaws) Fields(c *Coder) {
	c.U64(&b.Version)
	c.I64(&b.Since)
	List(c, &b.Settings, 1000, func(c *Coder, s *Setting) { s.Fields(c) })
}

// Get returns a parameter's value as text.
func (b *Bylaws) Get(name string) (value string, ok bool) {
	for _, s := range b.Settings {
		if s.Name == name {
			return s.Value, true
		}
	}
	return "", false
}

// Standing is where a member stands.
type Standing uint8

// The standings.
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

// Member is one entry of the members' register. Numbers begin at 1 and are never used again. A record is never deleted: capital
// of former members stays theirs.
type Member struct {
	ID        uint64
	Key       ident.PublicKey // now; changes with a re-key
	Name      string
	Form      Form
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

// Fields implements Record.
func (m *Member) Fields(c *Coder) {
	c.U64(&m.ID)
	c.Key(&m.Key)
	c.Text(&m.Name, 60)
	among(c, &m.Form, Person, Organisation, "form of membership")
	among(c, &m.State, Active, Expelled, "standing")
	among(c, &m.Class, ClassNew, ClassOrganisation, "class of member")
	c.Bool(&m.Founder)
	c.I64(&m.Grant)
	c.I64(&m.Joined)
	c.I64(&m.Changed)
	c.I64(&m.Height)
	c.I64(&m.Until)
	c.U8(&m.Flags)
	List(c, &m.Delegates, 8, func(c *Coder, k *ident.PublicKey) { c.Key(k) })
	c.U32(&m.Vouched)
	c.I64(&m.VouchedAt)
	c.U32(&m.Open)
	c.I64(&m.Quiet)
	c.I64(&m.Aid)
	c.U32(&m.Terms)
	c.I64(&m.TermEnd)
}

// Credits is what classes are worth: the bylaws.
type Credits interface{ CreditOf(Class) int64 }

// Limit is the credit that the bylaws grant the member now: nothing to who is not active.
func (m *Member) Limit(p Credits) int64 {
	switch {
	case m.State != Active:
		return 0
	case m.Grant >= 0:
		return m.Grant
	}
	return p.CreditOf(m.Class)
}

// KeyRole says whose a key is. A key that was replaced is void and never comes back.
type KeyRole struct {
	Member uint64
	Role   uint8
}

// The roles.
const (
	RoleMember   = 0
	RoleDelegate = 1
	RoleVoid     = 2 // was the member's key
)

// Fields implements Record.
func (r *KeyRole) Fields(c *Coder) {
	c.U64(&r.Member)
	among(c, &r.Role, RoleMember, RoleVoid, "role of a key")
}

// Blocked is an entry of the block list: a node that no member's node routes for.
type Blocked struct {
	Node     ident.PublicKey
	Since    int64
	Until    int64 // seconds since 1970; 0: until a vote
	Proposal uint64
}

// Fields implements Record.
func (b *Blocked) Fields(c *Coder) {
	c.Key(&b.Node)
	c.I64(&b.Since)
	c.I64(&b.Until)
	c.U64(&b.Proposal)
}
