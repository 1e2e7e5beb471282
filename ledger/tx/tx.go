package tx

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"weft/ident"
)

// Domain separates signatures of transactions from all others.
const Domain ident.Domain = "weft/tx/1"

// MaxLen bounds a transaction.
const MaxLen = 4096

// Kind is what a transaction does.
type Kind uint16

// Chain tells chains apart: the first 8 bytes of SHA-256("weft/chain/1" ‖ 0 ‖ chain id).
type Chain [8]byte

// ChainOf returns the tag of a chain id.
func ChainOf(id string) (c Chain) {
	h := sha256.Sum256([]byte("weft/chain/1\x00" + id))
	copy(c[:], h[:])
	return c
}

// Body is what a transaction of one kind carries.
type Body interface {
	Record
	Kind() Kind
}

// Tx is one transaction:
//
//	0   version 1 (= 1) | 0
//	2   kind 2
//	4   chain tag 8
//	12  sender's key 32
//	44  nonce 8            one more than the sender's last
//	52  expiry 8           seconds since 1970, block time: later it is void
//	60  body
//	-64 signature 64       Domain over all before it
type Tx struct {
	Chain  Chain
	Sender ident.PublicKey
	Nonce  uint64
	Expiry int64
	Body   Body
}

const (
	headLen = 60
	sigLen  = 64
)

// Signer signs with the key that it is the public half of; *ident.Agent is one.
type Signer interface {
	Public() ident.PublicKey
	Sign(d ident.Domain, msg []byte) ident.Signature
}

// Sign returns the signed bytes of t, whose sender becomes the signer.
func (t Tx) Sign(s Signer) ([]byte, error) {
	t.Sender = s.Public()
	if err := Check(t.Body); err != nil {
		return nil, err
	}
	b := make([]byte, headLen, headLen+256)
	b[0] = 1
	binary.BigEndian.PutUint16(b[2:], uint16(t.Body.Kind()))
	copy(b[4:], t.Chain[:])
	copy(b[12:], t.Sender[:])
	binary.BigEndian.PutUint64(b[44:], t.Nonce)
	binary.BigEndian.PutUint64(b[52:], uint64(t.Expiry))
	b = append(b, Encode(t.Body)...)
	if len(b)+sigLen > MaxLen {
		return nil, fmt.Errorf("a transaction of %d bytes is too long: at most %d", len(b)+sigLen, MaxLen)
	}
	sig := s.Sign(Domain, b)
	return append(b, sig[:]...), nil
}

// Parse reads a transaction. It does not check the signature: Verify does, and costs more.
func Parse(raw []byte) (Tx, error) {
	if len(raw) < headLen+sigLen || len(raw) > MaxLen {
		return Tx{}, fmt.Errorf("a transaction of %d bytes: %d to %d are allowed", len(raw), headLen+sigLen, MaxLen)
	}
	if raw[0] != 1 || raw[1] != 0 {
		return Tx{}, fmt.Errorf("transaction version %d.%d is not known here", raw[0], raw[1])
	}
	t := Tx{Chain: Chain(raw[4:12]), Sender: ident.PublicKey(raw[12:44]), Nonce: binary.BigEndian.Uint64(raw[44:]), Expiry: int64(binary.BigEndian.Uint64(raw[52:]))}
	kind := Kind(binary.BigEndian.Uint16(raw[2:]))
	if t.Body = New(kind); t.Body == nil {
		return Tx{}, fmt.Errorf("transaction kind %d is not known here", kind)
	}
	if err := Decode(raw[headLen:len(raw)-sigLen], t.Body); err != nil {
		return Tx{}, fmt.Errorf("%s transaction: %w", Name(kind), err)
	}
	return t, nil
}

// ErrSignature is returned by Verify.
var ErrSignature = errors.New("the signature is not the sender's")

// Verify checks the signature of raw, which Parse has read as t. Rules are ZIP-215's, as everywhere (ident).
func Verify(t Tx, raw []byte) error {
	n := len(raw) - sigLen
	if !t.Sender.Verify(Domain, raw[:n], ident.Signature(raw[n:])) {
		return ErrSignature
	}
	return nil
}

// Hash names a transaction: SHA-256 of its bytes, as CometBFT has it.
func Hash(raw []byte) [32]byte { return sha256.Sum256(raw) }
