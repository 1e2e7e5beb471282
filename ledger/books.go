package ledger

import "weft/ledger/tx"

// books handles the transactions of tx/books.go.
func (c *call) books(tx.Tx) (known bool, err error) { return false, nil }
