package pay

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"weft/ident"
	"weft/ledger/tx"
)

// Channel is the number of these messages in a session (docs/spec/session.md section 3).
const Channel = 3

// Domains of what is signed here; vouchers have tx.VoucherDomain.
const (
	QuoteDomain   ident.Domain = "weft/quote/1"
	ReceiptDomain ident.Domain = "weft/receipt/1"
)

// Lengths and bounds of messages. Each begins with its type and version.
const (
	quoteLen   = 176
	statusLen  = 84
	receiptLen = 128
	askLen     = 4
	partHead   = 12
	partMost   = 1024
	MaxAnchor  = 8 * partMost // bytes of an anchor, in as many parts as it takes

	typeVoucher = 1
	typeQuote   = 2
	typeStatus  = 3
	typeReceipt = 4
	typeAnchor  = 5
	typeAsk     = 6

	version = 1
	sigLen  = 64

	maxBytes = 1<<60 - 1 // no count is larger, so that nothing computed from two of them overflows
	maxTime  = 1 << 40   // seconds
)

// ErrMessage is wrapped by all errors of [ParseMessage].
var ErrMessage = errors.New("not a message of a tab")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMessage, fmt.Sprintf(format, args...))
}

// Message is one of *VoucherMessage, *Quote, *DebtStatus, *Receipt, *TabAnchor and *Ask.
type Message interface{ AppendTo([]byte) []byte }

// VoucherMessage is a voucher: from a payer, the newest; from a payee, the newest that it has, for a payer that has forgotten.
type VoucherMessage struct{ tx.Voucher }

// AppendTo appends tx.VoucherLen bytes.
func (m *VoucherMessage) AppendTo(b []byte) []byte {
	v := m.Encode()
	return append(b, v[:]...)
}

// OverheadRule says what a packet is billed beyond its bytes. There is one: docs/spec/meter.md section 1.
const OverheadRule = 1

// Quote is a price, signed by its seller.
//
//	0   type 2 | version 1 | service 1 | overhead rule 1 (= 1)
//	4   price 4               ncredit per MiB
//	8   seller's key 32       the node
//	40  account 32            the member to whom a tab is opened
//	72  sequence number 8     rising
//	80  free tier 4           kbit/s
//	84  zero 4
//	88  exposure 8            bytes, for a payer of good standing
//	96  from 8                seconds since 1970
//	104 until 8
//	112 signature 64
type Quote struct {
	Service     Service
	Price       uint32
	Seller      ident.PublicKey
	Account     ident.PublicKey
	Seq         uint64
	FreeKbit    uint32
	Exposure    uint64
	From, Until int64
	Sig         ident.Signature

	id uint64 // once it is signed or read; 0: not computed
}

// body is what is signed.
func (q *Quote) body() []byte {
	b := make([]byte, 0, quoteLen)
	b = append(b, typeQuote, version, byte(q.Service), OverheadRule)
	b = binary.BigEndian.AppendUint32(b, q.Price)
	b = append(append(b, q.Seller[:]...), q.Account[:]...)
	b = binary.BigEndian.AppendUint64(b, q.Seq)
	b = binary.BigEndian.AppendUint32(b, q.FreeKbit)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint64(b, q.Exposure)
	b = binary.BigEndian.AppendUint64(b, uint64(q.From))
	return binary.BigEndian.AppendUint64(b, uint64(q.Until))
}

// AppendTo implements Message.
func (q *Quote) AppendTo(b []byte) []byte { return append(append(b, q.body()...), q.Sig[:]...) }

// ID names the quote in vouchers: the first 8 bytes of the SHA-256 of what is signed.
func (q *Quote) ID() uint64 {
	if q.id != 0 {
		return q.id
	}
	h := sha256.Sum256(q.body())
	return binary.BigEndian.Uint64(h[:])
}

func (q *Quote) sign(s tx.Signer) {
	q.Sig, q.id = s.Sign(QuoteDomain, q.body()), 0
	q.id = q.ID()
}

// Verify reports whether the seller has signed.
func (q *Quote) Verify() bool { return q.Seller.Verify(QuoteDomain, q.body(), q.Sig) }

// Asks of a payee, bits.
const (
	AskTopUp  = 1 << 0 // the tab is nearly used up
	AskRenew  = 1 << 1 // it ends soon
	AskAnchor = 1 << 2 // no tab is known, or it is of no more use
	AskMeter  = 1 << 3 // the meters differ

	allAsks = AskTopUp | AskRenew | AskAnchor | AskMeter
)

// DebtStatus is what a payee says is owed.
//
//	0   type 3 | version 1 | service 1 | state 1
//	4   asks 1 | zero 3
//	8   tab 16                zero: none is relied on
//	24  epoch 4
//	28  free tier 4           kbit/s
//	32  sequence number 8     of the newest voucher booked
//	40  signed 8              ncredit, of that voucher
//	48  owed 8                ncredit beyond it; negative: paid ahead
//	56  exposure 8            bytes
//	64  bytes 8               billed in all, by the payee's count
//	72  quote 8               in force
//	80  number 4              rising: an older status is ignored
type DebtStatus struct {
	Service  Service
	State    State
	Asks     uint8
	Tab      tx.TabID
	Epoch    uint32
	FreeKbit uint32
	Seq      uint64
	Signed   int64
	Owed     int64
	Exposure uint64
	Bytes    uint64
	Quote    uint64
	Number   uint32
}

// AppendTo implements Message.
func (m *DebtStatus) AppendTo(b []byte) []byte {
	b = append(b, typeStatus, version, byte(m.Service), byte(m.State), m.Asks, 0, 0, 0)
	b = append(b, m.Tab[:]...)
	b = binary.BigEndian.AppendUint32(b, m.Epoch)
	b = binary.BigEndian.AppendUint32(b, m.FreeKbit)
	for _, v := range [...]uint64{m.Seq, uint64(m.Signed), uint64(m.Owed), m.Exposure, m.Bytes, m.Quote} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return binary.BigEndian.AppendUint32(b, m.Number)
}

// Receipt is a payee's signed word that it has booked a voucher.
//
//	0   type 4 | version 1 | service 1 | zero 1
//	4   tab 16
//	20  epoch 4
//	24  sequence number 8
//	32  amount 8, bytes 8     of the voucher
//	48  time 8                seconds since 1970
//	56  meter hash 8          the first bytes of the voucher's
//	64  signature 64
type Receipt struct {
	Service Service
	Tab     tx.TabID
	Epoch   uint32
	Seq     uint64
	Amount  int64
	Bytes   uint64
	Time    int64
	Meter   [8]byte
	Sig     ident.Signature
}

func (m *Receipt) body() []byte {
	b := make([]byte, 0, receiptLen)
	b = append(b, typeReceipt, version, byte(m.Service), 0)
	b = append(b, m.Tab[:]...)
	b = binary.BigEndian.AppendUint32(b, m.Epoch)
	for _, v := range [...]uint64{m.Seq, uint64(m.Amount), m.Bytes, uint64(m.Time)} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return append(b, m.Meter[:]...)
}

// AppendTo implements Message.
func (m *Receipt) AppendTo(b []byte) []byte { return append(append(b, m.body()...), m.Sig[:]...) }

// Verify reports whether payee has signed.
func (m *Receipt) Verify(payee ident.PublicKey) bool {
	return payee.Verify(ReceiptDomain, m.body(), m.Sig)
}

// TabAnchor is a part of a proof that a tab exists: what is in it, the light client knows.
//
//	0   type 5 | version 1 | service 1 | parts 1
//	4   number 1 | zero 1 | length of all 2
//	8   id 4                  of this proof
//	12  data                  1024 bytes, or what is left for the last part
type TabAnchor struct {
	Service Service
	Parts   uint8
	Number  uint8 // from 0
	Len     uint16
	ID      uint32
	Data    []byte // a view of the datagram
}

// AppendTo implements Message.
func (m *TabAnchor) AppendTo(b []byte) []byte {
	b = append(b, typeAnchor, version, byte(m.Service), m.Parts, m.Number, 0)
	b = binary.BigEndian.AppendUint16(b, m.Len)
	b = binary.BigEndian.AppendUint32(b, m.ID)
	return append(b, m.Data...)
}

// splitAnchor cuts an anchor into parts; none when it is empty or too long.
func splitAnchor(s Service, id uint32, anchor []byte) (parts []TabAnchor) {
	n := (len(anchor) + partMost - 1) / partMost
	if n == 0 || len(anchor) > MaxAnchor {
		return nil
	}
	for i := range n {
		parts = append(parts, TabAnchor{Service: s, Parts: uint8(n), Number: uint8(i), Len: uint16(len(anchor)), ID: id,
			Data: anchor[i*partMost : min(len(anchor), (i+1)*partMost)]})
	}
	return parts
}

// Ask is a payer's question: what is the price, what do I owe?
//
//	0   type 6 | version 1 | service 1 | zero 1
type Ask struct{ Service Service }

// AppendTo implements Message.
func (m *Ask) AppendTo(b []byte) []byte { return append(b, typeAsk, version, byte(m.Service), 0) }

// ParseMessage reads a message without checking signatures. What it takes encodes to the same bytes again. A *TabAnchor is a view
// of b.
func ParseMessage(b []byte) (Message, error) {
	if len(b) < 4 || b[1] != version {
		return nil, malformed("%d bytes, or a version that is not known here", len(b))
	}
	u := func(at int) uint64 { return binary.BigEndian.Uint64(b[at:]) }
	i := func(at int) int64 { return int64(u(at)) }
	want := map[byte]int{typeVoucher: tx.VoucherLen, typeQuote: quoteLen, typeStatus: statusLen, typeReceipt: receiptLen, typeAsk: askLen}[b[0]]
	if b[0] == typeAnchor {
		want = max(len(b), partHead+1)
	}
	if want == 0 || len(b) != want {
		return nil, malformed("type %d with %d bytes", b[0], len(b))
	}
	if b[0] == typeVoucher {
		v, err := tx.ParseVoucher(b)
		if err != nil {
			return nil, malformed("%v", err)
		}
		return &VoucherMessage{v}, nil
	}
	s := Service(b[2])
	if !s.valid() {
		return nil, malformed("service %d", s)
	}
	switch b[0] {
	case typeQuote:
		q := &Quote{Service: s, Price: binary.BigEndian.Uint32(b[4:]), Seller: ident.PublicKey(b[8:40]), Account: ident.PublicKey(b[40:72]),
			Seq: u(72), FreeKbit: binary.BigEndian.Uint32(b[80:]), Exposure: u(88), From: i(96), Until: i(104), Sig: ident.Signature(b[112:176])}
		if b[3] != OverheadRule || binary.BigEndian.Uint32(b[84:]) != 0 || q.Exposure > maxBytes || q.From < 0 || q.Until < q.From || q.Until > maxTime {
			return nil, malformed("a quote with a field that cannot be")
		}
		q.id = q.ID()
		return q, nil
	case typeStatus:
		m := &DebtStatus{Service: s, State: State(b[3]), Asks: b[4], Tab: tx.TabID(b[8:24]), Epoch: binary.BigEndian.Uint32(b[24:]),
			FreeKbit: binary.BigEndian.Uint32(b[28:]), Seq: u(32), Signed: i(40), Owed: i(48), Exposure: u(56), Bytes: u(64), Quote: u(72),
			Number: binary.BigEndian.Uint32(b[80:])}
		if m.State > Throttled || m.Asks&^allAsks != 0 || b[5]|b[6]|b[7] != 0 || m.Signed < 0 || m.Signed > tx.MaxAmount ||
			m.Owed > tx.MaxAmount || m.Owed < -tx.MaxAmount || m.Exposure > maxBytes || m.Bytes > maxBytes {
			return nil, malformed("a status with a field that cannot be")
		}
		return m, nil
	case typeReceipt:
		m := &Receipt{Service: s, Tab: tx.TabID(b[4:20]), Epoch: binary.BigEndian.Uint32(b[20:]), Seq: u(24), Amount: i(32), Bytes: u(40),
			Time: i(48), Meter: [8]byte(b[56:64]), Sig: ident.Signature(b[64:128])}
		if b[3] != 0 || m.Amount < 0 || m.Amount > tx.MaxAmount || m.Time < 0 || m.Time > maxTime {
			return nil, malformed("a receipt with a field that cannot be")
		}
		return m, nil
	case typeAnchor:
		m := &TabAnchor{Service: s, Parts: b[3], Number: b[4], Len: binary.BigEndian.Uint16(b[6:]), ID: binary.BigEndian.Uint32(b[8:]), Data: b[partHead:]}
		parts := (int(m.Len) + partMost - 1) / partMost
		size := min(partMost, int(m.Len)-int(m.Number)*partMost)
		if b[5] != 0 || m.Len == 0 || m.Len > MaxAnchor || int(m.Parts) != parts || m.Number >= m.Parts || len(m.Data) != size {
			return nil, malformed("part %d of %d with %d bytes of %d", m.Number, m.Parts, len(m.Data), m.Len)
		}
		return m, nil
	default:
		if b[3] != 0 {
			return nil, malformed("an ask with something in it")
		}
		return &Ask{s}, nil
	}
}

// TabNumber returns the smallest number of a tab that pays a node for a service; the lowest 8 bits are the payer's to choose, so
// that it can open another while one is closing, and one from each of its routers. The number is in the tab's id, so one tab
// cannot pay two nodes of one member, which would each take the same voucher. It is the first 3 bytes of
// SHA-256("weft/tab-number/1" ‖ 0 ‖ node's key ‖ service).
func TabNumber(payee ident.PublicKey, s Service) uint32 {
	b := append([]byte("weft/tab-number/1\x00"), payee[:]...)
	h := sha256.Sum256(append(b, byte(s)))
	return uint32(h[0])<<24 | uint32(h[1])<<16 | uint32(h[2])<<8
}

// clampAmount keeps a sum within what a message may hold.
func clampAmount(n int64) int64 { return min(max(n, -tx.MaxAmount), tx.MaxAmount) }

func satAdd(a, b int64) int64 {
	switch {
	case b > 0 && a > math.MaxInt64-b:
		return math.MaxInt64
	case b < 0 && a < math.MinInt64-b:
		return math.MinInt64
	}
	return a + b
}
