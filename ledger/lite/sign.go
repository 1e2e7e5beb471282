package lite

import (
	"errors"
	"fmt"
	"time"

	"weft/ledger/tx"
)

// Bounds of how long a transaction may be on its way. The ledger allows 14 days by its own time; a day is left for clocks.
const (
	DefaultLife = time.Hour
	MaxLife     = 13 * 24 * time.Hour
)

// Sender signs one account's transactions one after another. One key's transactions are signed in one place only: two would take the same
// nonce, and one of the two transactions would be refused.
type Sender struct {
	signer tx.Signer
	chain  tx.Chain
	known  bool
	proven uint64 // nonce in the proven account
	last   uint64 // nonce of the last one signed, at least proven
}

// NewSender returns the sender for s's account on a chain.
func NewSender(s tx.Signer, chain string) *Sender {
	return &Sender{signer: s, chain: tx.ChainOf(chain)}
}

// Proven sets the nonce of the account (tx.StateKeyAccount) as Client.Prove has found it true. Transactions up to it were applied. Whether those after it still will be is not known before they
// expire: Again gives them up.
func (s *Sender) Proven(a tx.Account) {
	s.known = true
	s.proven = max(s.proven, a.Nonce)
	s.last = max(s.last, s.proven)
}

// Pending is how many transactions were signed and not seen applied.
func (s *Sender) Pending() int { return int(s.last - s.proven) }

// Again lets the next transaction take the nonce after the proven one: after those that are pending have expired, or to
// replace them (of two with one nonce only one can be applied).
func (s *Sender) Again() { s.last = s.proven }

// ErrNonce is returned by Sign before Proven.
var ErrNonce = errors.New("the account's nonce is not known yet: ask a neighbour for its record first")

// Sign returns a signed transaction. now is the later of this device's clock and the newest trusted block's time; life is how long the transaction
// may take to get into a block, whole seconds up to MaxLife, 0 is DefaultLife.
func (s *Sender) Sign(now time.Time, life time.Duration, body tx.Body) ([]byte, error) {
	if !s.known {
		return nil, ErrNonce
	}
	if life == 0 {
		life = DefaultLife
	}
	if life < time.Second || life > MaxLife {
		return nil, fmt.Errorf("a transaction may be on its way for 1 second to %d days, not for %v", MaxLife/(24*time.Hour), life)
	}
	raw, err := tx.Tx{Chain: s.chain, Nonce: s.last + 1, Expiry: now.Add(life).Unix(), Body: body}.Sign(s.signer)
	if err != nil {
		return nil, fmt.Errorf("sign transaction: %w", err)
	}
	s.last++
	return raw, nil
}
