// Package ledger is the community's books as a deterministic state machine: accounts, tabs, members, votes, tariffs, treasury and
// names. docs/spec/ledger.md is the normative text. ledger/bft runs it under CometBFT; tests run it alone.
//
// It is pure: state lives in a [Store], time is the block's, and the same blocks give the same state, bit by bit, on every
// machine. No floats, no clock, no randomness, no goroutine, and no map is ranged into state. A [Machine] belongs to one
// goroutine.
//
//	Block(header, txs):
//	   what has become due (votes that close, parameters that take effect, tabs that run out)
//	   each transaction:  Parse → chain, expiry, nonce, rate → signature → handler      all or nothing: an overlay is kept or dropped
//	   invariants (in tests, and when asked for)
//
// Invariants: Σ balances + Σ earmarks + Σ funds = deposits − withdrawals; no account below its limit; a transaction applies at
// most once; an empty block in which nothing falls due changes nothing.
package ledger

import (
	"errors"
	"fmt"

	"weft/ident"
	"weft/ledger/tx"
)

// Header is what the ledger needs to know of a block.
type Header struct {
	Height   int64
	Time     int64           // seconds since 1970, as the validators agree
	Proposer ident.PublicKey // zero when not known
	Evidence []Misbehaviour
}

// Misbehaviour is proof that a validator signed two blocks at one height.
type Misbehaviour struct {
	Validator ident.PublicKey // its consensus key
	Height    int64
}

// Power is a change of the validator set; 0 removes.
type Power struct {
	Key   ident.PublicKey // consensus key
	Power int64
}

// Result is what became of one transaction. Code is part of the block's hash, Text is not.
type Result struct {
	Code Code
	Text string // for people; empty when Code is OK
	Data []byte // such as the number of a new proposal
}

// Outcome is what a block did.
type Outcome struct {
	Results    []Result
	Validators []Power // changes, sorted by key
	Postings   []Posting
}

// Posting is one side of an entry in the books: for statements and exports, not part of the state.
type Posting struct {
	Height  int64
	Time    int64
	Tx      int    // index in the block, -1 for what fell due
	Account string // member:12, fund:solidarity, tab:…, world
	Amount  int64  // ncredit; the postings of one entry sum to zero
	Memo    string
	Mark    Mark // what it means for a fiscal period; zero for most
}

// Code is why a transaction was refused. Codes are stable; 0 is success.
type Code uint32

// The codes.
const (
	OK           Code = 0
	CodeMalform  Code = 1  // cannot be read
	CodeSig      Code = 2  // not signed by its sender
	CodeChain    Code = 3  // for another chain
	CodeExpired  Code = 4  // too late, or expires too far ahead
	CodeNonce    Code = 5  // applied already, or one before it is missing
	CodeRate     Code = 6  // the sender sends too much
	CodeUnknown  Code = 7  // names something that does not exist
	CodeForbid   Code = 8  // the sender may not
	CodeFunds    Code = 9  // not enough money
	CodeState    Code = 10 // not now: closed, suspended, too early, too late
	CodeValue    Code = 11 // a value that cannot be
	CodeExists   Code = 12 // is there already
	CodeTooMany  Code = 13 // a bound is reached
	CodeOverflow Code = 14 // a sum does not fit
)

// Error is a refusal: a code for programs and a text that says what to do.
type Error struct {
	Code Code
	Text string
}

func (e *Error) Error() string { return e.Text }

func refuse(c Code, format string, args ...any) error { return &Error{c, fmt.Sprintf(format, args...)} }

func resultOf(err error) Result {
	if err == nil {
		return Result{}
	}
	var e *Error
	if errors.As(err, &e) {
		return Result{Code: e.Code, Text: e.Text}
	}
	return Result{Code: CodeValue, Text: err.Error()}
}

// Machine is the ledger on a store.
type Machine struct {
	base  Store
	chain tx.Chain
	// Transactions whose signature was found good.
	verified map[[32]byte]bool
	// Strict checks all invariants after each block and panics when one is broken: for tests and audits.
	Strict bool
}

// New returns the machine whose state is in s: empty before Init.
func New(s Store) (*Machine, error) {
	m := &Machine{base: s}
	if b := s.Get(keyChain); b != nil {
		m.chain = tx.ChainOf(string(b))
	}
	return m, nil
}

// Block executes a block. The caller makes the state durable afterwards.
func (m *Machine) Block(h Header, txs [][]byte) Outcome {
	c := &call{m: m, Header: h, s: newOverlay(m.base), tx: -1}
	var out Outcome
	c.due()
	for i, raw := range txs {
		out.Results = append(out.Results, c.deliver(i, raw))
	}
	out.Validators = c.validatorChanges()
	out.Postings = c.postings
	c.s.flush()
	if m.Strict {
		if err := m.Check(); err != nil {
			panic(fmt.Sprintf("ledger: invariant broken at height %d: %v", h.Height, err))
		}
	}
	return out
}

// Pool judges transactions for the mempool: as Block would after those that it has taken already, but without executing them.
type Pool struct{ c *call }

// Pool returns a judge on the present state; h is the newest block. Make a new one after each block.
func (m *Machine) Pool(h Header) *Pool {
	return &Pool{&call{m: m, Header: h, s: newOverlay(m.base), tx: -1}}
}

// Take reports whether a transaction may wait for a block.
func (p *Pool) Take(raw []byte) Result {
	// A trial run, so that what cannot work is told to its sender at once. It is then in no block, so its nonce is still free; but
	// it counts as an attempt.
	trial := *p.c
	trial.s = newOverlay(p.c.s)
	t, err := trial.admit(raw)
	if err != nil {
		return resultOf(err)
	}
	if err := trial.execute(t); err != nil {
		p.attempt(t)
		return resultOf(err)
	}
	trial.s.flush()
	return Result{Data: trial.data}
}

// attempt counts a refused transaction towards its sender's rate.
func (p *Pool) attempt(t tx.Tx) {
	k := accountKey(t.Sender)
	var a Account
	if p.c.load(k, &a) && p.c.rate(t, &a) == nil {
		p.c.save(k, &a)
	}
}

// call is one block, or one judgement, in progress.
type call struct {
	m *Machine
	Header
	s        *overlay
	tx       int // index of the transaction in the block; -1: none
	data     []byte
	postings []Posting
	bylaws   *Params           // in force, once read: they change only in due
	touched  []ident.PublicKey // validators that may have changed
	voters   electors          // counted once in a block
}

// deliver executes one transaction: all of it or, but for nonce and rate, nothing.
func (c *call) deliver(i int, raw []byte) Result {
	c.tx, c.data = i, nil
	defer func() { c.tx = -1 }()
	t, err := c.admit(raw)
	if err != nil {
		return resultOf(err)
	}
	outer, posted := c.s, len(c.postings)
	c.s = newOverlay(outer)
	err = c.execute(t)
	if err != nil {
		c.s, c.postings = outer, c.postings[:posted]
		return resultOf(err)
	}
	c.s.flush()
	c.s = outer
	return Result{Data: c.data}
}

// execute runs the handler of the transaction's kind.
func (c *call) execute(t tx.Tx) error {
	for _, group := range []func(*call, tx.Tx) (bool, error){(*call).money, (*call).govern, (*call).books} {
		if known, err := group(c, t); known {
			return err
		}
	}
	return refuse(CodeMalform, "transaction kind %d is not known here", t.Body.Kind())
}
