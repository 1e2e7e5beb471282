package ledger

import (
	"fmt"

	"weft/ident"
	"weft/ledger/tx"
)

const (
	// maxLife is how far ahead a transaction may expire, in seconds: so long a courier may carry it.
	maxLife = 14 * 24 * 3600

	// MaxBlockCost bounds the work of a block, in signatures to verify: about 0.3 s of one core, a second of a small computer's.
	MaxBlockCost = 4000

	// MaxBlockBytes bounds the transactions of a block together.
	MaxBlockBytes = 1 << 20
)

// admit checks what every transaction must hold to and counts it: the nonce and the sender's rate are used up even if the
// transaction then fails. What is cheap to find out comes first, the signature last.
func (c *call) admit(raw []byte) (tx.Tx, error) {
	t, err := tx.Parse(raw)
	if err != nil {
		return t, refuse(CodeMalform, "%v", err)
	}
	switch {
	case t.Chain != c.m.chain:
		return t, refuse(CodeChain, "this transaction is for another community's chain")
	case t.Expiry <= c.Time:
		return t, refuse(CodeExpired, "the transaction ran out at %d, and it is %d now; make it again", t.Expiry, c.Time)
	case t.Expiry > c.Time+maxLife:
		return t, refuse(CodeExpired, "the transaction may run out at most %d days from now", maxLife/day)
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
	if !c.m.verifyOnce(tx.Hash(raw), func() bool { return tx.Verify(t, raw) == nil }) {
		return t, refuse(CodeSig, "%v", tx.ErrSignature)
	}
	a.Nonce++
	c.save(k, &a)
	return t, nil
}

// maxVerified bounds the memory of what was verified: half a megabyte.
const maxVerified = 1 << 14

// verifyOnce returns what good does, and remembers of what it said yes to, which what names. Each signature is seen three times, in
// the pool, in a proposal and in a block, and costs more than all else.
func (m *Machine) verifyOnce(what [32]byte, good func() bool) bool {
	if m.verified[what] {
		return true
	}
	if !good() {
		return false
	}
	if m.verified == nil || len(m.verified) >= maxVerified {
		m.verified = map[[32]byte]bool{}
	}
	m.verified[what] = true
	return true
}

// cost is how many signatures a transaction makes everybody verify.
func cost(t tx.Tx) int {
	switch b := t.Body.(type) {
	case *tx.TabClaim:
		return 1 + len(b.Vouchers)
	case *tx.Delegates:
		return 1 + len(b.Keys)
	case *tx.Apply, *tx.Rekey, *tx.Propose, *tx.NodeRegister, *tx.NodeRevoke:
		return 2
	}
	return 1
}

// gate decides which transactions may stand in a block: those that admit takes, one after the other, on the state at the block's
// beginning. They are not executed: so one depends on those before it by its sender's nonce and rate alone.
type gate struct {
	c           *call
	cost, bytes int
}

func (m *Machine) gate(h Header) *gate {
	c := m.view(h)
	c.due()
	return &gate{c: c}
}

func (g *gate) take(raw []byte) error {
	t, err := g.c.admit(raw)
	if err != nil {
		return err
	}
	g.cost += cost(t)
	g.bytes += len(raw)
	if g.cost > MaxBlockCost || g.bytes > MaxBlockBytes {
		return refuse(CodeTooMany, "the block is full")
	}
	return nil
}

// CheckBlock reports why a proposed block must not be voted for: a transaction in it is malformed, repeated, out of its sender's
// order, too many for its sender's rate, or not signed, or the block is too large. It depends on the state and the block alone. A
// transaction that is admitted and then fails, for want of money say, is no fault of the proposer's.
func (m *Machine) CheckBlock(h Header, txs [][]byte) error {
	g := m.gate(h)
	for i, raw := range txs {
		if err := g.take(raw); err != nil {
			return fmt.Errorf("transaction %d of the block: %w", i, err)
		}
	}
	return nil
}

// Propose returns those of txs, in their order, that together make a block which CheckBlock accepts with the same header, and of at
// most most bytes.
func (m *Machine) Propose(h Header, txs [][]byte, most int) (l [][]byte) {
	g := m.gate(h)
	left := map[ident.PublicKey]bool{}
	for _, raw := range txs {
		t, err := tx.Parse(raw)
		if err != nil || left[t.Sender] {
			continue
		}
		if g.bytes+len(raw) > min(most, MaxBlockBytes) || g.cost+cost(t) > MaxBlockCost {
			left[t.Sender] = true // what follows from this sender would lack a nonce
			continue
		}
		if g.take(raw) == nil {
			l = append(l, raw)
		}
	}
	return l
}
