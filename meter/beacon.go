package meter

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// PacketBytes is what a packet is billed for beyond its inner bytes: the hop header (32), the data header (16) and the tag (16) that
// Weft itself puts round each packet on every link alike. docs/spec/meter.md section 1 says why it is this number.
const PacketBytes = 64

// Count is packets and their inner bytes: whole IP packets as the host sees them, before anything is left out or put round.
type Count struct {
	Packets, Bytes uint64
}

// Billed is the number of bytes that c is billed as.
func (c Count) Billed() uint64 { return c.Bytes + PacketBytes*c.Packets }

func (c Count) plus(d Count) Count { return Count{c.Packets + d.Packets, c.Bytes + d.Bytes} }

// minus is the difference, and nothing where it would be negative.
func (c Count) minus(d Count) Count {
	return Count{c.Packets - min(c.Packets, d.Packets), c.Bytes - min(c.Bytes, d.Bytes)}
}

// behind reports whether a part of c is less than the same of d.
func (c Count) behind(d Count) bool { return c.Packets < d.Packets || c.Bytes < d.Bytes }

func least(a, b Count) Count { return Count{min(a.Packets, b.Packets), min(a.Bytes, b.Bytes)} }
func most(a, b Count) Count  { return Count{max(a.Packets, b.Packets), max(a.Bytes, b.Bytes)} }

// Kind tells apart the two sorts of traffic of a session, which are counted, compared and billed apart.
type Kind uint8

const (
	Outside  Kind = 0 // to or from the internet, through a gateway at one end
	Mesh     Kind = 1 // between the two nodes and what lies behind them
	numKinds      = 2
)

func (k Kind) String() string { return [...]string{"outside", "mesh"}[min(k, Mesh)] }

// The beacon as bytes (docs/spec/meter.md section 2).
const (
	BeaconLen     = 76
	beaconVersion = 1
	flagAsk       = 0x01
	maxCounter    = 1<<60 - 1 // no counter of a beacon is larger, so that nothing computed from two of them overflows
)

// ErrBeacon is wrapped by all errors of [DecodeBeacon].
var ErrBeacon = errors.New("not a meter beacon")

// Beacon is what one end of a session says of one kind of its traffic. All counts are cumulative since Epoch began.
type Beacon struct {
	Kind  Kind
	Ask   bool   // the sender waits for an echo of this or a later beacon
	Seq   uint32 // from 1, rising by one; begins again with each Epoch
	Epoch uint64
	Sent  Count // sealed for the peer when the beacon was made
	Recv  Count // authentic and fresh from the peer when the beacon was made

	// The echo: of the peer's newest beacon that has come, what had been received at the moment when it came. EchoSeq 0 is none.
	EchoSeq   uint32
	EchoEpoch uint64
	EchoRecv  Count
}

// AppendTo appends the beacon's BeaconLen bytes.
func (b *Beacon) AppendTo(p []byte) ([]byte, error) {
	if err := b.check(); err != nil {
		return p, err
	}
	var flags byte
	if b.Ask {
		flags = flagAsk
	}
	p = append(p, beaconVersion, byte(b.Kind), flags, 0)
	p = binary.BigEndian.AppendUint32(p, b.Seq)
	for _, v := range [...]uint64{b.Epoch, b.Sent.Packets, b.Sent.Bytes, b.Recv.Packets, b.Recv.Bytes, b.EchoEpoch, b.EchoRecv.Packets, b.EchoRecv.Bytes} {
		p = binary.BigEndian.AppendUint64(p, v)
	}
	return binary.BigEndian.AppendUint32(p, b.EchoSeq), nil
}

// DecodeBeacon reads a beacon. What it takes encodes to the same bytes again.
func DecodeBeacon(p []byte) (Beacon, error) {
	if len(p) != BeaconLen {
		return Beacon{}, fmt.Errorf("%w: %d bytes, want %d", ErrBeacon, len(p), BeaconLen)
	}
	if p[0] != beaconVersion || p[2]&^flagAsk != 0 || p[3] != 0 {
		return Beacon{}, fmt.Errorf("%w: version %d, flags %#x, reserved byte %d", ErrBeacon, p[0], p[2], p[3])
	}
	u := func(at int) uint64 { return binary.BigEndian.Uint64(p[at:]) }
	b := Beacon{
		Kind: Kind(p[1]), Ask: p[2]&flagAsk != 0, Seq: binary.BigEndian.Uint32(p[4:]), Epoch: u(8),
		Sent: Count{u(16), u(24)}, Recv: Count{u(32), u(40)},
		EchoEpoch: u(48), EchoRecv: Count{u(56), u(64)}, EchoSeq: binary.BigEndian.Uint32(p[72:]),
	}
	return b, b.check()
}

// check holds a beacon against the rules that need no other beacon.
func (b *Beacon) check() error {
	switch {
	case b.Kind >= numKinds:
		return fmt.Errorf("%w: kind %d", ErrBeacon, b.Kind)
	case b.Seq == 0:
		return fmt.Errorf("%w: sequence number 0", ErrBeacon)
	case b.EchoSeq == 0 && (b.EchoEpoch != 0 || b.EchoRecv != Count{}):
		return fmt.Errorf("%w: echo of nothing", ErrBeacon)
	}
	for _, c := range [...]Count{b.Sent, b.Recv, b.EchoRecv} {
		if c.Packets > maxCounter/PacketBytes || c.Bytes > maxCounter {
			return fmt.Errorf("%w: a count of %d packets and %d bytes", ErrBeacon, c.Packets, c.Bytes)
		}
	}
	return nil
}
