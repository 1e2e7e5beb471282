package ledger

import "weft/ledger/tx"

// maxLife is how far ahead a transaction may expire, in seconds: so long a courier may carry it.
const maxLife = 14 * 24 * 3600

// admit checks what every transaction must hold to and counts it: the nonce and the sender's rate are used up even if the
// transaction then fails.
func (c *call) admit(raw []byte) (tx.Tx, error) {
	t, err := tx.Parse(raw)
	if err != nil {
		return t, refuse(CodeMalform, "%v", err)
	}
	switch {
	case t.Chain != c.m.chain:
		return t, refuse(CodeChain, "this transaction is for another community's chain")
	case t.Expiry <= c.Time:
		return t, refuse(CodeExpired, "the transaction ran out %d seconds ago; make it again", c.Time-t.Expiry)
	case t.Expiry > c.Time+maxLife:
		return t, refuse(CodeExpired, "the transaction may run out at most %d days from now", maxLife/86400)
	}
	k := accountKey(t.Sender)
	var a Account
	c.load(k, &a)
	if t.Nonce != a.Nonce+1 {
		return t, refuse(CodeNonce, "nonce %d where %d comes next: was it applied already?", t.Nonce, a.Nonce+1)
	}
	if err := c.rate(t, &a); err != nil {
		return t, err
	}
	if err := tx.Verify(t, raw); err != nil {
		return t, refuse(CodeSig, "%v", err)
	}
	a.Nonce++
	c.save(k, &a)
	return t, nil
}
