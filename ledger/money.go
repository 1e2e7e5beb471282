package ledger

import (
	"weft/ident"
	"weft/ledger/tx"
)

// money handles the transactions of tx/money.go.
func (c *call) money(t tx.Tx) (known bool, err error) {
	switch b := t.Body.(type) {
	case *tx.Transfer:
		return true, c.transfer(t.Sender, b)
	}
	return false, nil
}

func (c *call) transfer(from ident.PublicKey, b *tx.Transfer) error {
	if b.Amount == 0 {
		return refuse(CodeValue, "a transfer of nothing")
	}
	if b.To == from {
		return refuse(CodeValue, "a transfer to oneself")
	}
	return c.pay(from, b.To, b.Amount, b.Memo)
}

// pay moves money between accounts. Neither end may be left below its limit.
func (c *call) pay(from, to ident.PublicKey, amount int64, memo string) error {
	var f, t Account
	if !c.load(accountKey(to), &t) {
		return refuse(CodeUnknown, "there is no account %s", to)
	}
	c.load(accountKey(from), &f)
	var err error
	if f.Balance, err = add(f.Balance, -amount); err != nil {
		return err
	}
	if f.Balance < -f.Limit {
		return refuse(CodeFunds, "not enough: %d ncredit are missing", -f.Limit-f.Balance)
	}
	if t.Balance, err = add(t.Balance, amount); err != nil {
		return err
	}
	c.save(accountKey(from), &f)
	c.save(accountKey(to), &t)
	c.post("account:"+from.String(), -amount, memo)
	c.post("account:"+to.String(), amount, memo)
	return nil
}

// post notes one side of an entry.
func (c *call) post(account string, amount int64, memo string) {
	c.postings = append(c.postings, Posting{Height: c.Height, Time: c.Time, Tx: c.tx, Account: account, Amount: amount, Memo: memo})
}
