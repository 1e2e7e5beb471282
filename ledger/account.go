package ledger

import (
	"encoding/binary"
	"math"

	"weft/ident"
	"weft/ledger/tx"
)

// Keys of the store: one byte for the kind of record, then its name. Numbers are big-endian, so that Scan has them in order.
var (
	keyChain = []byte("!chain") // the chain's id
)

func key(kind byte, parts ...any) []byte {
	k := []byte{kind}
	for _, p := range parts {
		switch p := p.(type) {
		case ident.PublicKey:
			k = append(k, p[:]...)
		case uint64:
			k = binary.BigEndian.AppendUint64(k, p)
		case uint32:
			k = binary.BigEndian.AppendUint32(k, p)
		case uint8:
			k = append(k, p)
		case []byte:
			k = append(k, p...)
		case string:
			k = append(k, p...)
		default:
			panic("ledger: a key of an unknown type")
		}
	}
	return k
}

// load reads a record into r and reports whether it is there. What is there was written by save: it can be read.
func (c *call) load(k []byte, r tx.Record) bool { return load(c.s, k, r) }

func load(s Store, k []byte, r tx.Record) bool {
	b := s.Get(k)
	if b == nil {
		return false
	}
	if err := tx.Decode(b, r); err != nil {
		panic("ledger: the store is damaged at key " + string(k) + ": " + err.Error())
	}
	return true
}

func (c *call) save(k []byte, r tx.Record) { c.s.Set(k, tx.Encode(r)) }
func (c *call) drop(k []byte)              { c.s.Set(k, nil) }

// Account is the money of one key. It is a record of ledger/tx, since light clients read it.
type Account = tx.Account

const kindAccount = 'a'

func accountKey(k ident.PublicKey) []byte { return tx.StateKeyAccount(k) }

// add returns a+b, refusing what does not fit.
func add(a, b int64) (int64, error) {
	if b > 0 && a > math.MaxInt64-b || b < 0 && a < math.MinInt64-b {
		return 0, refuse(CodeOverflow, "the sum of %d and %d is too large", a, b)
	}
	return a + b, nil
}
