package tx

import "fmt"

// The kinds of this file.
const (
	KindDeposit      Kind = 300
	KindPayout       Kind = 301
	KindPaid         Kind = 302
	KindCancel       Kind = 303
	KindSpend        Kind = 304
	KindCountersign  Kind = 305
	KindReverse      Kind = 306
	KindCharge       Kind = 307
	KindShareBill    Kind = 308
	KindContribute   Kind = 309
	KindBuyShares    Kind = 310
	KindRedeemShares Kind = 311
	KindClaim        Kind = 312
)

func newBooks(k Kind) Body {
	switch k {
	case KindDeposit:
		return &Deposit{}
	case KindPayout:
		return &Payout{}
	case KindPaid:
		return &Paid{}
	case KindCancel:
		return &Cancel{}
	case KindSpend:
		return &Spend{}
	case KindCountersign:
		return &Countersign{}
	case KindReverse:
		return &Reverse{}
	case KindCharge:
		return &Charge{}
	case KindShareBill:
		return &ShareBill{}
	case KindContribute:
		return &Contribute{}
	case KindBuyShares:
		return &BuyShares{}
	case KindRedeemShares:
		return &RedeemShares{}
	case KindClaim:
		return &Claim{}
	}
	return nil
}

// Way is how money comes in or leaves.
type Way uint8

// The ways.
const (
	Cash   Way = 0
	Bank   Way = 1
	Mobile Way = 2 // mobile money
)

func (w Way) String() string {
	if w > Mobile {
		return fmt.Sprintf("way %d", uint8(w))
	}
	return [...]string{"cash", "bank", "mobile"}[w]
}

// ParseWay is the inverse of String.
func ParseWay(s string) (Way, error) {
	for w := Cash; w <= Mobile; w++ {
		if w.String() == s {
			return w, nil
		}
	}
	return 0, fmt.Errorf("money moves by cash, bank or mobile, not by %q", s)
}

// Classes is how many margin classes there are: 1 to Classes. 0 is what all of them share.
const Classes = 8

// MaxRef bounds references: the number of a receipt, a bank's or a mobile-money operator's text.
const MaxRef = 120

// Deposit is a treasurer's word that money came in, for a member's account or into a fund.
type Deposit struct {
	Member    uint64 // whose account; 0 with Fund
	Fund      uint64 // 0 with Member
	Amount    int64
	Way       Way
	Class     uint8 // with Fund: income from business with non-members in this class; 0: a gift, a grant, a loan
	Last      bool  // belongs to the fiscal period before, which is still being closed
	Reference string
}

func (*Deposit) Kind() Kind   { return KindDeposit }
func (*Deposit) Name() string { return "deposit" }
func (t *Deposit) Fields(c *Coder) {
	c.U64(&t.Member)
	c.U64(&t.Fund)
	c.Amount(&t.Amount)
	among(c, &t.Way, Cash, Mobile, "way of paying")
	among(c, &t.Class, 0, Classes, "margin class")
	c.Bool(&t.Last)
	c.Text(&t.Reference, MaxRef)
}

// Payout asks the treasurer for money of the sender's account, which is set aside until it is paid, cancelled or lapses.
type Payout struct {
	Amount int64
	Way    Way
	Where  string // a bank account, a telephone number
}

func (*Payout) Kind() Kind   { return KindPayout }
func (*Payout) Name() string { return "payout" }
func (t *Payout) Fields(c *Coder) {
	c.Amount(&t.Amount)
	among(c, &t.Way, Cash, Mobile, "way of paying")
	c.Text(&t.Where, MaxRef)
}

// Paid is a treasurer's word that a payout was paid.
type Paid struct {
	Payout    uint64 // entry
	Reference string
}

func (*Paid) Kind() Kind   { return KindPaid }
func (*Paid) Name() string { return "paid" }
func (t *Paid) Fields(c *Coder) {
	c.U64(&t.Payout)
	c.Text(&t.Reference, MaxRef)
}

// Cancel takes a waiting entry back: its author may, and a treasurer may refuse a payout.
type Cancel struct {
	Entry  uint64
	Reason string
}

func (*Cancel) Kind() Kind   { return KindCancel }
func (*Cancel) Name() string { return "cancel" }
func (t *Cancel) Fields(c *Coder) {
	c.U64(&t.Entry)
	c.Text(&t.Reason, MaxRef)
}

// Spend is a treasurer's payment out of a budget that the members voted.
type Spend struct {
	Budget    uint64 // the number of its proposal
	Amount    int64
	Member    uint64 // to whose account; 0: it leaves the community
	Way       Way    // when it leaves
	Last      bool   // a cost of the fiscal period before, which is still being closed
	Reference string
}

func (*Spend) Kind() Kind   { return KindSpend }
func (*Spend) Name() string { return "spend" }
func (t *Spend) Fields(c *Coder) {
	c.U64(&t.Budget)
	c.Amount(&t.Amount)
	c.U64(&t.Member)
	among(c, &t.Way, Cash, Mobile, "way of paying")
	c.Bool(&t.Last)
	c.Text(&t.Reference, MaxRef)
}

// Countersign is the second person's signature under a waiting entry.
type Countersign struct{ Entry uint64 }

func (*Countersign) Kind() Kind        { return KindCountersign }
func (*Countersign) Name() string      { return "countersign" }
func (t *Countersign) Fields(c *Coder) { c.U64(&t.Entry) }

// Reverse books the opposite of an entry. Both stay in the books.
type Reverse struct {
	Entry  uint64
	Reason string
}

func (*Reverse) Kind() Kind   { return KindReverse }
func (*Reverse) Name() string { return "reverse" }
func (t *Reverse) Fields(c *Coder) {
	c.U64(&t.Entry)
	c.Text(&t.Reason, MaxRef)
}

// Charge bills a member by a line of the tariff, which says the price: the treasurer says how much was used.
type Charge struct {
	Member uint64
	Line   uint64
	Bytes  uint64
	Times  uint32 // of the line's flat fee
	Last   bool
	Memo   string
}

func (*Charge) Kind() Kind   { return KindCharge }
func (*Charge) Name() string { return "charge" }
func (t *Charge) Fields(c *Coder) {
	c.U64(&t.Member)
	c.U64(&t.Line)
	c.U64(&t.Bytes)
	c.U32(&t.Times)
	c.Bool(&t.Last)
	c.Text(&t.Memo, MaxRef)
}

// Part is a member's part in a shared bill.
type Part struct {
	Member uint64
	Usage  uint64 // bytes, or whatever else the members measure by
}

// MaxParts bounds a shared bill.
const MaxParts = 100

// ShareBill divides an upstream bill: the same for everybody, and the rest by use.
type ShareBill struct {
	Line  uint64
	Bill  int64
	Equal int64 // that each pays whatever it used
	Parts []Part
	Last  bool
	Memo  string
}

func (*ShareBill) Kind() Kind   { return KindShareBill }
func (*ShareBill) Name() string { return "sharebill" }
func (t *ShareBill) Fields(c *Coder) {
	c.U64(&t.Line)
	c.Amount(&t.Bill)
	c.Amount(&t.Equal)
	List(c, &t.Parts, MaxParts, func(c *Coder, p *Part) {
		c.U64(&p.Member)
		c.U64(&p.Usage)
	})
	c.Bool(&t.Last)
	c.Text(&t.Memo, MaxRef)
}

// Contribute gives money of the sender's account to a fund. It is a gift: it counts for no refund.
type Contribute struct {
	Fund   uint64
	Amount int64
	Memo   string
}

func (*Contribute) Kind() Kind   { return KindContribute }
func (*Contribute) Name() string { return "contribute" }
func (t *Contribute) Fields(c *Coder) {
	c.U64(&t.Fund)
	c.Amount(&t.Amount)
	c.Text(&t.Memo, MaxRef)
}

// BuyShares buys shares in the community at their price.
type BuyShares struct{ Count uint32 }

func (*BuyShares) Kind() Kind        { return KindBuyShares }
func (*BuyShares) Name() string      { return "buyshares" }
func (t *BuyShares) Fields(c *Coder) { c.U32(&t.Count) }

// RedeemShares gives shares back for what was paid for them.
type RedeemShares struct{ Count uint32 }

func (*RedeemShares) Kind() Kind        { return KindRedeemShares }
func (*RedeemShares) Name() string      { return "redeemshares" }
func (t *RedeemShares) Fields(c *Coder) { c.U32(&t.Count) }

// Claim takes what waits for a former member into its account.
type Claim struct{}

func (*Claim) Kind() Kind    { return KindClaim }
func (*Claim) Name() string  { return "claim" }
func (*Claim) Fields(*Coder) {}

// Measure is what a proposal of DecideBudget or DecideSurplus has the books do.
type Measure interface {
	Record
	Measure() uint8
	Decision() Decision
}

// EncodeMeasure returns the bytes that ActBudget and ActSurplus carry: the measure's number, then its fields.
func EncodeMeasure(m Measure) ([]byte, error) {
	if err := Check(m); err != nil {
		return nil, err
	}
	b := append([]byte{m.Measure()}, Encode(m)...)
	if len(b) > MaxMeasure {
		return nil, fmt.Errorf("a measure of %d bytes is too long: at most %d", len(b), MaxMeasure)
	}
	return b, nil
}

// DecodeMeasure is the inverse of EncodeMeasure.
func DecodeMeasure(b []byte) (Measure, error) {
	if len(b) == 0 || len(b) > MaxMeasure {
		return nil, fmt.Errorf("a measure of %d bytes: 1 to %d are allowed", len(b), MaxMeasure)
	}
	for _, m := range []Measure{&NewBudget{}, &NewFund{}, &MoveFund{}, &SetLine{}, &Retire{}} {
		if m.Measure() == b[0] {
			return m, Decode(b[1:], m)
		}
	}
	return nil, fmt.Errorf("there is no measure %d", b[0])
}

// Business is with whom: margins of the two are never mixed.
type Business uint8

// The kinds of business.
const (
	WithMembers Business = 0
	WithOthers  Business = 1
	WithBoth    Business = 2 // a cost that is divided by what came in from each
)

// NewBudget lets the treasurers spend money of a fund.
type NewBudget struct {
	Fund     uint64
	Amount   int64
	Cost     bool // a cost of the fiscal period; otherwise it is invested, and no margin is less for it
	Class    uint8
	Business Business
	Member   uint64 // to this member only; 0: anybody
	Until    int64  // seconds since 1970; 0: no end
	Purpose  string
}

func (*NewBudget) Measure() uint8     { return 1 }
func (*NewBudget) Decision() Decision { return DecideBudget }
func (m *NewBudget) Fields(c *Coder) {
	c.U64(&m.Fund)
	c.Amount(&m.Amount)
	c.Bool(&m.Cost)
	among(c, &m.Class, 0, Classes, "margin class")
	among(c, &m.Business, WithMembers, WithBoth, "kind of business")
	c.U64(&m.Member)
	c.I64(&m.Until)
	c.Text(&m.Purpose, 200)
}

// NewFund begins a fund.
type NewFund struct{ Called string }

func (*NewFund) Measure() uint8     { return 2 }
func (*NewFund) Decision() Decision { return DecideBudget }
func (m *NewFund) Fields(c *Coder)  { c.Text(&m.Called, 40) }

// MoveFund moves money between funds.
type MoveFund struct {
	From, To uint64
	Amount   int64
	Why      string
}

func (*MoveFund) Measure() uint8     { return 3 }
func (*MoveFund) Decision() Decision { return DecideBudget }
func (m *MoveFund) Fields(c *Coder) {
	c.U64(&m.From)
	c.U64(&m.To)
	c.Amount(&m.Amount)
	c.Text(&m.Why, 200)
}

// Block is a step of a price by use.
type Block struct {
	Bytes uint64 // how many this price is for; 0: all that follow
	Price int64  // ncredit per GB (10⁹ bytes)
}

// SetLine makes or changes a line of the tariff. A charge is the fee, so many times as the charge says, and the price of the
// bytes block by block, and never more than the cap.
type SetLine struct {
	Line   uint64 // 0: a new one
	Called string
	Class  uint8
	Fund   uint64
	Fee    int64
	Blocks []Block
	Cap    int64 // 0: none
	Shared bool  // bills are divided by it (ShareBill); fee and blocks are of no meaning
	Ended  bool
}

func (*SetLine) Measure() uint8     { return 4 }
func (*SetLine) Decision() Decision { return DecideBudget }
func (m *SetLine) Fields(c *Coder) {
	c.U64(&m.Line)
	c.Text(&m.Called, 40)
	among(c, &m.Class, 1, Classes, "margin class")
	c.U64(&m.Fund)
	c.Amount(&m.Fee)
	List(c, &m.Blocks, 8, func(c *Coder, b *Block) {
		c.U64(&b.Bytes)
		c.Amount(&b.Price)
	})
	c.Amount(&m.Cap)
	c.Bool(&m.Shared)
	c.Bool(&m.Ended)
}

// Method is which capital is paid back.
type Method uint8

// The methods.
const (
	FIFO    Method = 0 // oldest years first
	LIFO    Method = 1 // newest years first
	Percent Method = 2 // all years alike
	Hybrid  Method = 3 // a part oldest first, the rest all years alike
)

func (m Method) String() string {
	if m > Hybrid {
		return fmt.Sprintf("method %d", uint8(m))
	}
	return [...]string{"fifo", "lifo", "percent", "hybrid"}[m]
}

// Retire pays members' capital back out of the capital fund.
type Retire struct {
	Method Method
	Amount int64
	Oldest uint16 // with Hybrid: permille of the amount that goes to the oldest years first
}

func (*Retire) Measure() uint8     { return 10 }
func (*Retire) Decision() Decision { return DecideSurplus }
func (m *Retire) Fields(c *Coder) {
	among(c, &m.Method, FIFO, Hybrid, "method of retirement")
	c.Amount(&m.Amount)
	c.U16(&m.Oldest)
	if m.Oldest > 1000 {
		c.Fail(fmt.Errorf("%d permille are more than all", m.Oldest))
	}
}
