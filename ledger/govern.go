package ledger

import "weft/ledger/tx"

// govern handles the transactions of tx/govern.go.
func (c *call) govern(tx.Tx) (known bool, err error) { return false, nil }

// rate counts a transaction of a's owner and refuses it when there are too many.
func (c *call) rate(t tx.Tx, a *Account) error {
	const window, most = 60, 20
	if c.s.Get(accountKey(t.Sender)) == nil {
		return refuse(CodeForbid, "only members send transactions")
	}
	if c.Time >= a.Window+window {
		a.Window, a.Sent = c.Time, 0
	}
	if a.Sent >= most {
		return refuse(CodeRate, "more than %d transactions in %d seconds; wait", most, window)
	}
	a.Sent++
	return nil
}

// due does what has fallen due at the beginning of a block.
func (c *call) due() {}

// validatorChanges returns what the block changed in the validator set, sorted by key.
func (c *call) validatorChanges() []Power { return nil }
