package tx

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"weft/ident"
)

// VoucherDomain separates signatures of vouchers from all others.
const VoucherDomain ident.Domain = "weft/voucher/1"

// VoucherLen is the length of every voucher.
const VoucherLen = 160

// TabID names a tab: what one member has set aside to pay another by vouchers.
type TabID [16]byte

// TabIDOf returns the id of the tab that payer opens for payee. number tells tabs of the same two apart, such as one for each of
// the payer's routers. The keys are those in force when the tab is opened. It is the first 16 bytes of
// SHA-256("weft/tab/1" ‖ 0 ‖ chain tag 8 ‖ payer 32 ‖ payee 32 ‖ number 4).
func TabIDOf(chain Chain, payer, payee ident.PublicKey, number uint32) (id TabID) {
	b := append([]byte("weft/tab/1\x00"), chain[:]...)
	b = append(append(b, payer[:]...), payee[:]...)
	h := sha256.Sum256(binary.BigEndian.AppendUint32(b, number))
	copy(id[:], h[:])
	return id
}

// String prints 32 hex digits.
func (id TabID) String() string { return hex.EncodeToString(id[:]) }

// ParseTabID reads what String prints.
func ParseTabID(s string) (id TabID, err error) {
	if len(s) != 2*len(id) {
		return id, fmt.Errorf("a tab's id has %d hex digits, this has %d", 2*len(id), len(s))
	}
	if _, err = hex.Decode(id[:], []byte(s)); err != nil {
		return TabID{}, fmt.Errorf("a tab's id is written in hex digits: %w", err)
	}
	return id, nil
}

// Voucher is a payer's promise, given to a payee off the chain: in this opening of the tab I owe Amount in all, for Bytes in all.
// Each voucher stands for all before it, so the payee keeps the newest alone. The ledger reads Chain, Tab, Epoch and Amount and checks
// the signature; the rest is between the two.
//
//	0   type 1 (= 1) | version 1 (= 1)
//	2   flags 2               zero
//	4   chain tag 8
//	12  tab 16
//	28  epoch 4               of the tab: each opening has its own
//	32  sequence number 8     rising by one or more
//	40  amount 8              ncredit, cumulative in this epoch: 0 to MaxAmount
//	48  bytes 8               billed, cumulative in this epoch
//	56  quote 8               names the price that holds
//	64  meter hash 32         SHA-256 of the counters that this is based on, or zero
//	96  signature 64          VoucherDomain over all before it, by the tab's signer
type Voucher struct {
	Chain  Chain
	Tab    TabID
	Epoch  uint32
	Seq    uint64
	Amount int64
	Bytes  uint64
	Quote  uint64
	Meter  [32]byte
	Sig    ident.Signature
}

// Encode returns the voucher's bytes. Parse of them gives the same voucher if Amount is within its bounds.
func (v Voucher) Encode() (b [VoucherLen]byte) {
	b[0], b[1] = 1, 1
	copy(b[4:], v.Chain[:])
	copy(b[12:], v.Tab[:])
	binary.BigEndian.PutUint32(b[28:], v.Epoch)
	binary.BigEndian.PutUint64(b[32:], v.Seq)
	binary.BigEndian.PutUint64(b[40:], uint64(v.Amount))
	binary.BigEndian.PutUint64(b[48:], v.Bytes)
	binary.BigEndian.PutUint64(b[56:], v.Quote)
	copy(b[64:], v.Meter[:])
	copy(b[96:], v.Sig[:])
	return b
}

// Sign returns v signed by s.
func (v Voucher) Sign(s Signer) (Voucher, error) {
	if v.Amount < 0 || v.Amount > MaxAmount {
		return v, fmt.Errorf("an amount of %d is not allowed", v.Amount)
	}
	b := v.Encode()
	v.Sig = s.Sign(VoucherDomain, b[:VoucherLen-sigLen])
	return v, nil
}

// ParseVoucher reads a voucher. It does not check the signature: Verify does, and costs more.
func ParseVoucher(b []byte) (v Voucher, err error) {
	switch {
	case len(b) != VoucherLen:
		return v, fmt.Errorf("a voucher has %d bytes, this has %d", VoucherLen, len(b))
	case b[0] != 1 || b[1] != 1:
		return v, fmt.Errorf("voucher type %d, version %d is not known here", b[0], b[1])
	case b[2] != 0 || b[3] != 0:
		return v, errors.New("a voucher has flags that are not known here")
	}
	v = Voucher{Chain: Chain(b[4:12]), Tab: TabID(b[12:28]), Epoch: binary.BigEndian.Uint32(b[28:]),
		Seq: binary.BigEndian.Uint64(b[32:]), Amount: int64(binary.BigEndian.Uint64(b[40:])), Bytes: binary.BigEndian.Uint64(b[48:]),
		Quote: binary.BigEndian.Uint64(b[56:]), Meter: [32]byte(b[64:96]), Sig: ident.Signature(b[96:])}
	if v.Amount < 0 || v.Amount > MaxAmount {
		return Voucher{}, errors.New("a voucher's amount is out of bounds")
	}
	return v, nil
}

// Verify reports whether k signed the voucher.
func (v Voucher) Verify(k ident.PublicKey) bool {
	b := v.Encode()
	return k.Verify(VoucherDomain, b[:VoucherLen-sigLen], v.Sig)
}
