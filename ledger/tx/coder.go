// Package tx is the ledger's transactions as bytes: what a member signs, a router sends and a validator executes
// (docs/spec/ledger.md section 2). Its formats are fixed-width and big-endian, one byte string for each value, so that what
// was signed is never encoded anew. It knows nothing of balances; ledger decides what a transaction does.
//
// The package has no state and starts no goroutine. It imports ident and the standard library alone, so that a router's client
// stays small.
package tx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unicode/utf8"

	"weft/ident"
)

// Coder walks the fields of a record in their order and writes or reads them: one function describes both directions.
// After the first error it does nothing more.
type Coder struct {
	reading bool
	b       []byte
	err     error
}

// Record is anything with fields.
type Record interface{ Fields(*Coder) }

// Encode returns the bytes of a record.
func Encode(r Record) []byte {
	var c Coder
	r.Fields(&c)
	if c.err != nil {
		panic(fmt.Sprintf("tx: encode %T: %v", r, c.err)) // a value that no Decode returns: the caller's mistake, see Check
	}
	return c.b
}

// Check reports whether a record can be encoded: texts and lists are within their bounds.
func Check(r Record) error {
	var c Coder
	r.Fields(&c)
	return c.err
}

// Decode reads a record that fills all of b.
func Decode(b []byte, r Record) error {
	c := Coder{reading: true, b: b}
	r.Fields(&c)
	if c.err == nil && len(c.b) != 0 {
		return fmt.Errorf("%d bytes too many", len(c.b))
	}
	return c.err
}

// Reading tells the direction.
func (c *Coder) Reading() bool { return c.reading }

// Fail notes an error of the record's own rules.
func (c *Coder) Fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

var errShort = errors.New("too short")

func (c *Coder) take(n int) []byte {
	if c.err != nil {
		return nil
	}
	if len(c.b) < n {
		c.err = errShort
		return nil
	}
	b := c.b[:n]
	c.b = c.b[n:]
	return b
}

func (c *Coder) U8(v *uint8) {
	if !c.reading {
		c.b = append(c.b, *v)
	} else if b := c.take(1); b != nil {
		*v = b[0]
	}
}

func (c *Coder) U16(v *uint16) {
	if !c.reading {
		c.b = binary.BigEndian.AppendUint16(c.b, *v)
	} else if b := c.take(2); b != nil {
		*v = binary.BigEndian.Uint16(b)
	}
}

func (c *Coder) U32(v *uint32) {
	if !c.reading {
		c.b = binary.BigEndian.AppendUint32(c.b, *v)
	} else if b := c.take(4); b != nil {
		*v = binary.BigEndian.Uint32(b)
	}
}

func (c *Coder) U64(v *uint64) {
	if !c.reading {
		c.b = binary.BigEndian.AppendUint64(c.b, *v)
	} else if b := c.take(8); b != nil {
		*v = binary.BigEndian.Uint64(b)
	}
}

// I64 is two's complement.
func (c *Coder) I64(v *int64) {
	u := uint64(*v)
	c.U64(&u)
	*v = int64(u)
}

// Amount is a sum of money in ncredit: 0 to MaxAmount.
func (c *Coder) Amount(v *int64) {
	c.I64(v)
	if *v < 0 || *v > MaxAmount {
		c.Fail(fmt.Errorf("an amount of %d is not allowed", *v))
	}
}

// MaxAmount bounds every sum that a transaction names, in ncredit: a thousand million credits. Sums of such sums stay far
// from the end of an int64 only if they are checked, which the ledger does.
const MaxAmount = math.MaxInt64 / 8

// Bool is 0 or 1.
func (c *Coder) Bool(v *bool) {
	var b uint8
	if *v {
		b = 1
	}
	c.U8(&b)
	if b > 1 {
		c.Fail(fmt.Errorf("%d is neither 0 nor 1", b))
	}
	*v = b == 1
}

// Fixed is exactly len(v) bytes.
func (c *Coder) Fixed(v []byte) {
	if !c.reading {
		c.b = append(c.b, v...)
	} else if b := c.take(len(v)); b != nil {
		copy(v, b)
	}
}

func (c *Coder) Key(v *ident.PublicKey) { c.Fixed(v[:]) }

// Bytes is a length of 2 bytes and at most most bytes.
func (c *Coder) Bytes(v *[]byte, most int) {
	n := uint16(min(len(*v), math.MaxUint16))
	if len(*v) > most {
		c.Fail(fmt.Errorf("%d bytes where at most %d may be", len(*v), most))
		return
	}
	c.U16(&n)
	if !c.reading {
		c.b = append(c.b, *v...)
		return
	}
	if int(n) > most {
		c.Fail(fmt.Errorf("%d bytes where at most %d may be", n, most))
		return
	}
	if b := c.take(int(n)); b != nil {
		*v = append([]byte(nil), b...)
	}
}

// Text is Bytes in UTF-8 without control characters but line feeds.
func (c *Coder) Text(v *string, most int) {
	b := []byte(*v)
	c.Bytes(&b, most)
	if c.err != nil {
		return
	}
	if err := checkText(b); err != nil {
		c.Fail(err)
		return
	}
	*v = string(b)
}

func checkText(b []byte) error {
	if !utf8.Valid(b) {
		return errors.New("a text is not UTF-8")
	}
	for _, r := range string(b) {
		if r < 0x20 && r != '\n' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return errors.New("a text has control characters")
		}
	}
	return nil
}

// List is a number of 2 bytes and as many entries, at most most.
func List[T any](c *Coder, v *[]T, most int, each func(*Coder, *T)) {
	if len(*v) > most {
		c.Fail(fmt.Errorf("%d entries where at most %d may be", len(*v), most))
		return
	}
	n := uint16(len(*v))
	c.U16(&n)
	if c.reading {
		if int(n) > most {
			c.Fail(fmt.Errorf("%d entries where at most %d may be", n, most))
			return
		}
		*v = nil
		if n > 0 && c.err == nil {
			*v = make([]T, n)
		}
	}
	for i := range *v {
		each(c, &(*v)[i])
	}
}
