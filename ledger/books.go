package ledger

import "weft/ledger/tx"

// books handles the transactions of tx/books.go.
func (c *call) books(tx.Tx) (known bool, err error) { return false, nil }

// checkMeasure reports whether members may vote on what the books shall do: a record of DecideBudget or DecideSurplus.
func (c *call) checkMeasure(d tx.Decision, measure []byte) error {
	return refuse(CodeUnknown, "the books know no such %s", d)
}

// doMeasure does it, when proposal number id has passed. An error undoes all of it and is noted with the proposal.
func (c *call) doMeasure(d tx.Decision, measure []byte, id uint64) error {
	return c.checkMeasure(d, measure)
}
