package bftclient

import (
	"encoding/hex"
	"errors"
	"fmt"

	"weft/ident"
)

// TrustFile in an engine's folder names a block that is known to be the chain's ([Trust]): an engine that has no block yet begins
// with a snapshot that follows from it.
const TrustFile = "trust"

// Trust is the contents of TrustFile, from the status of an engine that is believed.
func Trust(s Status) []byte { return fmt.Appendf(nil, "%d %s\n", s.Height, s.Hash) }

// Hash is a SHA-256, hexadecimal in JSON.
type Hash [32]byte

func (h Hash) String() string               { return hex.EncodeToString(h[:]) }
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hash) UnmarshalText(b []byte) error {
	if len(b) != 64 {
		return errors.New("a hash has 64 hexadecimal digits")
	}
	_, err := hex.Decode(h[:], b)
	return err
}

// Result is what became of a transaction. Code is ledger.Code, 0 is success.
type Result struct {
	Hash   Hash
	Code   uint32
	Text   string `json:",omitempty"` // why it was refused, for people
	Data   []byte `json:",omitempty"`
	Height int64  // of its block; 0 while it waits for one
	Index  int    // in its block
}

// Value is an entry of the state after Height. Proof is an ICS-23 existence proof, against the app hash in header Height+1; none
// when there is no value.
type Value struct {
	Height int64
	Value  []byte
	Proof  []byte `json:",omitempty"`
}

// Entry is a key and its value.
type Entry struct{ Key, Value []byte }

// Page is a part of a scan.
type Page struct {
	Height  int64
	Entries []Entry
	More    bool // there are others behind the last
}

// Posting is ledger.Posting.
type Posting struct {
	Height  int64
	Time    int64
	Tx      int
	Account string
	Amount  int64
	Memo    string
}

// Postings are those of an account.
type Postings struct {
	List     []Posting
	Next     int64 // height at which the next page begins; 0: this was the last
	From, To int64 // the blocks whose postings this engine has
}

// Block is a block as the ledger executes it.
type Block struct {
	Height   int64
	Time     int64
	Hash     Hash
	AppHash  []byte // of the state before it, which is the state after Height-1
	Proposer []byte // address: the first 20 bytes of the SHA-256 of its consensus key
	Txs      [][]byte
	Evidence []Evidence `json:",omitempty"`
}

// Evidence is proof in a block that a validator signed twice.
type Evidence struct {
	Validator []byte // address
	Height    int64
}

// Blocks are some in a row.
type Blocks struct {
	List     []Block
	From, To int64 // the blocks that this engine has
}

// Validator is a voting engine.
type Validator struct {
	Key       ident.PublicKey
	Node      ident.PublicKey
	Operator  uint64 // member
	Power     int64
	Self      bool  `json:",omitempty"`
	Reachable bool  // there is a connection on which something came within the last seconds
	Heard     int64 `json:",omitempty"` // when something came from it, seconds since 1970; 0: not since this engine was started
}

// Status is how the engine does.
type Status struct {
	Chain      string
	Pid        int             // of the engine's process
	ID         string          // of this engine, for others' list of peers
	Key        ident.PublicKey // consensus key
	Height     int64
	Time       int64 // of the newest block, seconds since 1970
	Hash       Hash  // of the newest block: a newcomer may begin from here
	AppHash    []byte
	Base       int64 // the oldest block that is kept
	Begin      int64 // a snapshot that a newcomer should begin from; 0: from the first block, as all are here
	Validators []Validator
	Validating bool // this engine is one of them
	Peers      []string
	CatchingUp bool
	Waiting    int    // transactions
	Halted     string `json:",omitempty"` // why no block can be made, in words for people
	Rules      uint64 // version of the ledger's rules
}
