package pay

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"time"

	"weft/ledger/tx"
)

// mib is what a price is for.
const mib = 1 << 20

// charge is money to the 2^-20th of an ncredit, so that a sum does not depend on how often it was added to.
type charge struct {
	Amount int64 // ncredit
	Rem    uint64
}

// add adds the price of some bytes. It stops at tx.MaxAmount, which nobody lives to see.
func (c *charge) add(n uint64, price uint32) {
	hi, lo := bits.Mul64(n, uint64(price))
	lo, carry := bits.Add64(lo, c.Rem, 0)
	hi += carry
	if hi >= 1<<19 {
		c.Amount = tx.MaxAmount
		return
	}
	c.Amount = min(satAdd(c.Amount, int64(hi<<44|lo>>20)), tx.MaxAmount)
	c.Rem = lo & (mib - 1)
}

// Cost is the price of some bytes in ncredit, rounded down. price is in ncredit per MiB.
func Cost(n uint64, price uint32) int64 {
	var c charge
	c.add(n, price)
	return c.Amount
}

// Gap is how many bytes above n by its own meter a payer pays for at most.
func Gap(n uint64) uint64 { return GapBytes + n/1000*GapPermille }

// since is what has moved since an earlier mark. Counts that have gone back, as after a crash, begin anew where they are.
func (m *Mark) since(last *Mark) uint64 {
	if m.Epoch != last.Epoch {
		return min(m.Sent, maxBytes) + min(m.Recv, maxBytes)
	}
	return m.Sent - min(m.Sent, last.Sent) + m.Recv - min(m.Recv, last.Recv)
}

// Hash stands for the counters in a voucher: SHA-256("weft/pay-meter/1" ‖ 0 ‖ epoch ‖ sent ‖ received ‖ beacon), 8 bytes each.
func (m *Mark) Hash() [32]byte {
	b := []byte("weft/pay-meter/1\x00")
	for _, v := range [...]uint64{m.Epoch, m.Sent, m.Recv, m.Beacon} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return sha256.Sum256(b)
}

// Fields implements tx.Record.
func (m *Mark) Fields(c *tx.Coder) {
	c.U64(&m.Epoch)
	c.U64(&m.Sent)
	c.U64(&m.Recv)
	c.U64(&m.Beacon)
}

// Fields implements tx.Record.
func (c *charge) Fields(k *tx.Coder) {
	k.Amount(&c.Amount)
	k.U64(&c.Rem)
}

// exposureCap is what somebody in good standing may owe, in bytes.
func exposureCap(t *Tariff, rate uint64) uint64 {
	return min(max(t.ExposureSeconds*min(rate, 1<<40), t.ExposureLeast), t.ExposureMost)
}

// freeBytes is what the free tier carries in d.
func freeBytes(kbit uint32, d time.Duration) uint64 {
	return uint64(kbit) * 125 * uint64(max(d, 0)/time.Millisecond) / 1000
}
