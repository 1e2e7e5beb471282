package tx

import "weft/ident"

// KindTransfer and the others of this file.
const (
	KindTransfer Kind = 100
)

func newMoney(k Kind) Body {
	switch k {
	case KindTransfer:
		return &Transfer{}
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
