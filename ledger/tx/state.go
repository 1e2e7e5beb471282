package tx

import (
	"fmt"

	"weft/ident"
)

// Records of the ledger's state that light clients read, and the keys under which they lie in the store: a proof is of such a key
// and of the record's bytes (Decode). docs/spec/ledger.md section 1.

// MaxLabel bounds a name, as RFC 1123 does.
const MaxLabel = 63

const (
	maxTerms   = 200
	maxContact = 100
)

// StateKeyAccount is the key of an account.
func StateKeyAccount(k ident.PublicKey) []byte { return append([]byte{'a'}, k[:]...) }

// StateKeyTab is the key of a tab.
func StateKeyTab(id TabID) []byte { return append([]byte{'t'}, id[:]...) }

// StateKeyName is the key of a name.
func StateKeyName(label string) []byte { return append([]byte{'n', 0}, label...) }

// StateKeyNode is the key of a node's registration.
func StateKeyNode(k ident.PublicKey) []byte { return append([]byte{'g', 0}, k[:]...) }

// StateKeyRevocation is the key of a revocation.
func StateKeyRevocation(k ident.PublicKey) []byte { return append([]byte{'r'}, k[:]...) }

// Account is the money of one key, and how much else the ledger keeps for it.
type Account struct {
	Balance int64  // ncredit; may be negative down to -Limit. What is set aside in tabs is not in it
	Limit   int64  // credit that the community grants
	Nonce   uint64 // of the last transaction
	// The sender's rate: Sent transactions since Window began (seconds since 1970).
	Window int64
	Sent   uint32

	Tabs    uint32 // that it pays from
	Names   uint32
	Nodes   uint32 // registered
	Revoked uint32 // keys of nodes, in all
}

// Fields implements Record.
func (a *Account) Fields(c *Coder) {
	c.I64(&a.Balance)
	c.I64(&a.Limit)
	c.U64(&a.Nonce)
	c.I64(&a.Window)
	c.U32(&a.Sent)
	c.U32(&a.Tabs)
	c.U32(&a.Names)
	c.U32(&a.Nodes)
	c.U32(&a.Revoked)
}

// Tab is what one member has set aside for another, to be claimed with vouchers. One that is settled has no record.
type Tab struct {
	ID      TabID
	Epoch   uint32 // of this opening: no two on a chain have the same
	Number  uint32 // tells tabs of the same payer and payee apart
	PayerID uint64 // members: a tab stays theirs when they change their keys
	PayeeID uint64
	Payer   ident.PublicKey // their keys when it was opened
	Payee   ident.PublicKey
	Signer  ident.PublicKey // signs the vouchers of this epoch, whatever becomes of the payer's key
	Earmark int64           // ncredit set aside since it was opened; Earmark − Claimed is there now
	Claimed int64
	Opened  int64 // seconds since 1970
	Expiry  int64
	// Once it is closing, vouchers are paid until both this time has come and this block.
	Until      int64 // seconds since 1970; 0: it is open
	UntilBlock int64
}

// Fields implements Record.
func (t *Tab) Fields(c *Coder) {
	c.Fixed(t.ID[:])
	c.U32(&t.Epoch)
	c.U32(&t.Number)
	c.U64(&t.PayerID)
	c.U64(&t.PayeeID)
	c.Key(&t.Payer)
	c.Key(&t.Payee)
	c.Key(&t.Signer)
	c.Amount(&t.Earmark)
	c.Amount(&t.Claimed)
	c.I64(&t.Opened)
	c.I64(&t.Expiry)
	c.I64(&t.Until)
	c.I64(&t.UntilBlock)
	if t.Claimed > t.Earmark {
		c.Fail(fmt.Errorf("a tab from which %d of %d ncredit were paid", t.Claimed, t.Earmark))
	}
}

// Closing reports whether the end of the tab has been announced.
func (t *Tab) Closing() bool { return t.Until != 0 }

// Left is what vouchers can still claim.
func (t *Tab) Left() int64 { return t.Earmark - t.Claimed }

// NameEntry is one name. Since a state can be read at any time, a reader compares Until with its own clock.
type NameEntry struct {
	Label string
	Owner uint64          // a member
	Node  ident.PublicKey // where it leads
	Since int64           // seconds since 1970
	Until int64           // then it leads nowhere …
	Kept  int64           // … and from then on it is free; until then its owner may renew it
	Offer uint64          // a member who may take it; 0: none
}

// Fields implements Record.
func (n *NameEntry) Fields(c *Coder) {
	c.Text(&n.Label, MaxLabel)
	c.U64(&n.Owner)
	c.Key(&n.Node)
	c.I64(&n.Since)
	c.I64(&n.Until)
	c.I64(&n.Kept)
	c.U64(&n.Offer)
}

// Node is a node that is registered as a member's.
type Node struct {
	Key     ident.PublicKey
	Member  uint64
	Roles   uint8  // Role…
	Price   uint32 // ncredit per MiB
	Terms   string
	Contact string
	Since   int64 // seconds since 1970
	Until   int64
}

// Fields implements Record.
func (n *Node) Fields(c *Coder) {
	c.Key(&n.Key)
	c.U64(&n.Member)
	roles(c, &n.Roles)
	c.U32(&n.Price)
	c.Text(&n.Terms, maxTerms)
	c.Text(&n.Contact, maxContact)
	c.I64(&n.Since)
	c.I64(&n.Until)
}

func roles(c *Coder, v *uint8) {
	c.U8(v)
	if *v&^allRoles != 0 {
		c.Fail(fmt.Errorf("roles %#x are not known here", *v))
	}
}

// Revocation is a node's key that nobody should trust any more.
type Revocation struct {
	Key    ident.PublicKey
	Member uint64 // who revoked it
	Time   int64  // seconds since 1970
	Height int64
	Reason string
}

// Fields implements Record.
func (r *Revocation) Fields(c *Coder) {
	c.Key(&r.Key)
	c.U64(&r.Member)
	c.I64(&r.Time)
	c.I64(&r.Height)
	c.Text(&r.Reason, maxTerms)
}
