package tx

import (
	"encoding/binary"

	"weft/ident"
)

// KindTransfer and the others of this file.
const (
	KindTransfer Kind = 100

	KindTabOpen  Kind = 101
	KindTabTopUp Kind = 102
	KindTabRenew Kind = 103
	KindTabClaim Kind = 104
	KindTabClose Kind = 105

	KindNameRegister Kind = 110
	KindNameRenew    Kind = 111
	KindNameSet      Kind = 112
	KindNameOffer    Kind = 113
	KindNameRelease  Kind = 114

	KindNodeRegister Kind = 120
	KindNodeRemove   Kind = 121
	KindNodeRevoke   Kind = 122
)

func newMoney(k Kind) Body {
	switch k {
	case KindTransfer:
		return &Transfer{}
	case KindTabOpen:
		return &TabOpen{}
	case KindTabTopUp:
		return &TabTopUp{}
	case KindTabRenew:
		return &TabRenew{}
	case KindTabClaim:
		return &TabClaim{}
	case KindTabClose:
		return &TabClose{}
	case KindNameRegister:
		return &NameRegister{}
	case KindNameRenew:
		return &NameRenew{}
	case KindNameSet:
		return &NameSet{}
	case KindNameOffer:
		return &NameOffer{}
	case KindNameRelease:
		return &NameRelease{}
	case KindNodeRegister:
		return &NodeRegister{}
	case KindNodeRemove:
		return &NodeRemove{}
	case KindNodeRevoke:
		return &NodeRevoke{}
	}
	return nil
}

// Transfer gives money to another account.
type Transfer struct {
	To     ident.PublicKey
	Amount int64 // ncredit
	Memo   string
}

func (*Transfer) Kind() Kind   { return KindTransfer }
func (*Transfer) Name() string { return "transfer" }
func (t *Transfer) Fields(c *Coder) {
	c.Key(&t.To)
	c.Amount(&t.Amount)
	c.Text(&t.Memo, 200)
}

// TabOpen sets money of the sender aside, so that vouchers to the payee are sure to be paid.
type TabOpen struct {
	Payee   ident.PublicKey // a member's key
	Number  uint32          // tells the sender's tabs for this payee apart
	Signer  ident.PublicKey // signs the vouchers; zero: the sender
	Earmark int64           // ncredit
	Expiry  int64           // seconds since 1970
}

func (*TabOpen) Kind() Kind   { return KindTabOpen }
func (*TabOpen) Name() string { return "tab-open" }
func (t *TabOpen) Fields(c *Coder) {
	c.Key(&t.Payee)
	c.U32(&t.Number)
	c.Key(&t.Signer)
	c.Amount(&t.Earmark)
	c.I64(&t.Expiry)
}

// Opened is the data of a TabOpen that was executed.
type Opened struct {
	Tab   TabID
	Epoch uint32
}

// Fields implements Record.
func (o *Opened) Fields(c *Coder) {
	c.Fixed(o.Tab[:])
	c.U32(&o.Epoch)
}

// TabTopUp sets more aside.
type TabTopUp struct {
	Tab    TabID
	Epoch  uint32
	Amount int64
}

func (*TabTopUp) Kind() Kind   { return KindTabTopUp }
func (*TabTopUp) Name() string { return "tab-top-up" }
func (t *TabTopUp) Fields(c *Coder) {
	c.Fixed(t.Tab[:])
	c.U32(&t.Epoch)
	c.Amount(&t.Amount)
}

// TabRenew lets a tab live longer.
type TabRenew struct {
	Tab    TabID
	Epoch  uint32
	Expiry int64
}

func (*TabRenew) Kind() Kind   { return KindTabRenew }
func (*TabRenew) Name() string { return "tab-renew" }
func (t *TabRenew) Fields(c *Coder) {
	c.Fixed(t.Tab[:])
	c.U32(&t.Epoch)
	c.I64(&t.Expiry)
}

// MaxClaims bounds the vouchers in one transaction.
const MaxClaims = 24

// TabClaim presents vouchers, of one tab or many. Anyone may: the money goes to the payee's account.
type TabClaim struct{ Vouchers [][VoucherLen]byte } // 1 to MaxClaims

func (*TabClaim) Kind() Kind   { return KindTabClaim }
func (*TabClaim) Name() string { return "tab-claim" }
func (t *TabClaim) Fields(c *Coder) {
	List(c, &t.Vouchers, MaxClaims, func(c *Coder, v *[VoucherLen]byte) { c.Fixed(v[:]) })
}

// Claimed is what became of one voucher of a TabClaim. The transaction's data is one after the other, 12 bytes each.
type Claimed struct {
	Code uint32 // as of a transaction; 0: paid
	Paid int64  // ncredit
}

// Fields implements Record.
func (r *Claimed) Fields(c *Coder) {
	c.U32(&r.Code)
	c.Amount(&r.Paid)
}

// ParseClaimed reads the data of a TabClaim that was executed.
func ParseClaimed(data []byte) (l []Claimed, err error) {
	for ; len(data) > 0; data = data[12:] {
		var r Claimed
		if err := Decode(data[:min(12, len(data))], &r); err != nil {
			return nil, err
		}
		l = append(l, r)
	}
	return l, nil
}

// TabClose ends a tab: at once when the payee sends it; when the payer does, the payee has time to claim first.
type TabClose struct {
	Tab   TabID
	Epoch uint32
}

func (*TabClose) Kind() Kind   { return KindTabClose }
func (*TabClose) Name() string { return "tab-close" }
func (t *TabClose) Fields(c *Coder) {
	c.Fixed(t.Tab[:])
	c.U32(&t.Epoch)
}

// NameRegister takes a free name, or one that its owner has offered to the sender.
type NameRegister struct {
	Label string
	Node  ident.PublicKey // where it leads
}

func (*NameRegister) Kind() Kind   { return KindNameRegister }
func (*NameRegister) Name() string { return "name-register" }
func (t *NameRegister) Fields(c *Coder) {
	c.Text(&t.Label, MaxLabel)
	c.Key(&t.Node)
}

// NameRenew keeps a name for another term.
type NameRenew struct{ Label string }

func (*NameRenew) Kind() Kind        { return KindNameRenew }
func (*NameRenew) Name() string      { return "name-renew" }
func (t *NameRenew) Fields(c *Coder) { c.Text(&t.Label, MaxLabel) }

// NameSet lets a name lead to another node.
type NameSet struct {
	Label string
	Node  ident.PublicKey
}

func (*NameSet) Kind() Kind   { return KindNameSet }
func (*NameSet) Name() string { return "name-set" }
func (t *NameSet) Fields(c *Coder) {
	c.Text(&t.Label, MaxLabel)
	c.Key(&t.Node)
}

// NameOffer lets another member take a name, by a NameRegister of his own.
type NameOffer struct {
	Label string
	To    uint64 // a member's number; 0: nobody any more
}

func (*NameOffer) Kind() Kind   { return KindNameOffer }
func (*NameOffer) Name() string { return "name-offer" }
func (t *NameOffer) Fields(c *Coder) {
	c.Text(&t.Label, MaxLabel)
	c.U64(&t.To)
}

// NameRelease gives a name back.
type NameRelease struct{ Label string }

func (*NameRelease) Kind() Kind        { return KindNameRelease }
func (*NameRelease) Name() string      { return "name-release" }
func (t *NameRelease) Fields(c *Coder) { c.Text(&t.Label, MaxLabel) }

// Domains of what nodes sign and members send.
const (
	NodeDomain   ident.Domain = "weft/node/1"
	RevokeDomain ident.Domain = "weft/revoke/1"
)

// NodeMessage is what a node signs to be a member's: chain tag 8 | member's number 8 | node's key 32.
func NodeMessage(chain Chain, member uint64, node ident.PublicKey) []byte {
	b := binary.BigEndian.AppendUint64(chain[:len(chain):len(chain)], member)
	return append(b, node[:]...)
}

// RevokeMessage is what a node signs so that any member may revoke its key, say when it is lost: chain tag 8 | node's key 32.
func RevokeMessage(chain Chain, node ident.PublicKey) []byte {
	return append(chain[:len(chain):len(chain)], node[:]...)
}

// What a node does for others, bits of Node.Roles.
const (
	RoleGateway = 1
	RoleRelay   = 2

	allRoles = RoleGateway | RoleRelay
)

// NodeRegister says that a node is the sender's, and on what terms it serves as gateway or relay. Sent again, it replaces what
// stands there and lets it live longer.
type NodeRegister struct {
	Node    ident.PublicKey
	Roles   uint8           // 0: none, but it is the sender's
	Price   uint32          // ncredit per MiB, both directions; 0: free of charge
	Terms   string          // for people
	Contact string          // for people
	Until   int64           // seconds since 1970
	Word    ident.Signature // of the node over NodeMessage, NodeDomain; zero when the sender is the node
}

func (*NodeRegister) Kind() Kind   { return KindNodeRegister }
func (*NodeRegister) Name() string { return "node-register" }
func (t *NodeRegister) Fields(c *Coder) {
	c.Key(&t.Node)
	roles(c, &t.Roles)
	c.U32(&t.Price)
	c.Text(&t.Terms, maxTerms)
	c.Text(&t.Contact, maxContact)
	c.I64(&t.Until)
	c.Fixed(t.Word[:])
}

// NodeRemove ends the registration of a node of the sender's.
type NodeRemove struct{ Node ident.PublicKey }

func (*NodeRemove) Kind() Kind        { return KindNodeRemove }
func (*NodeRemove) Name() string      { return "node-remove" }
func (t *NodeRemove) Fields(c *Coder) { c.Key(&t.Node) }

// NodeRevoke says that a node's key is nobody's any more: stolen, or thrown away. There is no way back. The node must be
// registered as the sender's, or its key must have signed for this.
type NodeRevoke struct {
	Node   ident.PublicKey
	Reason string
	Word   ident.Signature // of the node over RevokeMessage, RevokeDomain; or zero
}

func (*NodeRevoke) Kind() Kind   { return KindNodeRevoke }
func (*NodeRevoke) Name() string { return "node-revoke" }
func (t *NodeRevoke) Fields(c *Coder) {
	c.Key(&t.Node)
	c.Text(&t.Reason, maxTerms)
	c.Fixed(t.Word[:])
}
