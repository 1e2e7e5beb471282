package link

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"weft/ident"
	"weft/wire"
)

// The formats of docs/spec/link.md. All integers are big endian. A decoder takes exactly the bytes that its encoder
// makes; reserved bits and bytes are zero when sent and ignored when received, so that a later version can use them.

// beacon says "I am here" on a LAN (section 2):
//
//	 0  "weft" 4 | version 1 | flags 1 | UDP port 2
//	 8  instance 8
//	16  community 8
//	24  key 32
//
// It is not signed: it only ever makes a node dial, and the dial proves the key.
type beacon struct {
	Flags     byte
	Port      uint16
	Instance  uint64
	Community ident.Community
	Key       ident.PublicKey
}

const (
	beaconLen     = 56
	beaconMagic   = "weft"
	beaconVersion = 1
)

func (b beacon) appendTo(buf []byte) []byte {
	buf = append(buf, beaconMagic...)
	buf = append(buf, beaconVersion, b.Flags)
	buf = binary.BigEndian.AppendUint16(buf, b.Port)
	buf = binary.BigEndian.AppendUint64(buf, b.Instance)
	buf = append(buf, b.Community[:]...)
	return append(buf, b.Key[:]...)
}

func parseBeacon(b []byte) (beacon, error) {
	if len(b) != beaconLen || string(b[:4]) != beaconMagic {
		return beacon{}, errors.New("not a beacon")
	}
	if b[4] != beaconVersion {
		return beacon{}, fmt.Errorf("beacon of version %d", b[4])
	}
	r := beacon{
		Flags: b[5], Port: binary.BigEndian.Uint16(b[6:]), Instance: binary.BigEndian.Uint64(b[8:]),
		Community: ident.Community(b[16:24]), Key: ident.PublicKey(b[24:56]),
	}
	if r.Port == 0 {
		return beacon{}, errors.New("beacon without a port")
	}
	return r, nil
}

// hello opens a link in each direction (section 4):
//
//	 0  version 1 | flags 1 | mtu 2
//	 4  receiver index 4
//	 8  instance 8
//	16  community 8
//	24  proof 32
type hello struct {
	Version   byte
	Flags     byte
	MTU       uint16 // UDP payload bytes that fit on the sender's side of the path
	Index     uint32 // what the other side puts into its hop headers
	Instance  uint64 // random at every start of the program: tells a restart from a second dial
	Community ident.Community
	Proof     [32]byte // of knowing the community key; zero in the open network
}

const (
	helloLen     = 56
	helloVersion = 1
	flagMetered  = 1
)

func (h hello) appendTo(buf []byte) []byte {
	buf = append(buf, h.Version, h.Flags)
	buf = binary.BigEndian.AppendUint16(buf, h.MTU)
	buf = binary.BigEndian.AppendUint32(buf, h.Index)
	buf = binary.BigEndian.AppendUint64(buf, h.Instance)
	buf = append(buf, h.Community[:]...)
	return append(buf, h.Proof[:]...)
}

func parseHello(b []byte) (hello, error) {
	if len(b) < helloLen {
		return hello{}, fmt.Errorf("a HELLO has %d bytes, this has %d", helloLen, len(b))
	}
	h := hello{
		Version: b[0], Flags: b[1], MTU: binary.BigEndian.Uint16(b[2:]), Index: binary.BigEndian.Uint32(b[4:]),
		Instance: binary.BigEndian.Uint64(b[8:]), Community: ident.Community(b[16:24]), Proof: [32]byte(b[24:56]),
	}
	if h.Version != helloVersion { // the rest may mean something else there
		return h, fmt.Errorf("the neighbour speaks link version %d, this node speaks %d: update the older one", h.Version, helloVersion)
	}
	if h.MTU < minPathMTU {
		return h, fmt.Errorf("a path of %d bytes is too narrow, at least %d are needed", h.MTU, minPathMTU)
	}
	return h, nil
}

// Messages of the link stream, the first stream of a connection: a frame (see readFrame) whose first byte is one of these.
const (
	msgHello    = 1 // both ways, first
	msgReady    = 2 // dialer: the acceptor's HELLO was good
	msgRekey    = 3 // dialer: epoch 4 bytes; "I take datagrams under this epoch's key; use it"
	msgRekeyed  = 4 // acceptor: epoch 4 bytes; "I use it and take it"
	maxLinkMsg  = 1024
	maxReason   = 200
	maxControl  = 1 << 16
	frameHeader = 4
)

// appendFrame adds one length-prefixed message.
func appendFrame(buf, msg []byte) []byte {
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(msg)))
	return append(buf, msg...)
}

// readFrame reads one message of 1 to limit bytes. Memory grows with what arrives, not with what is announced.
func readFrame(r io.Reader, limit int) ([]byte, error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > uint32(limit) {
		return nil, protocolError(fmt.Sprintf("a message of %d bytes, allowed are 1 to %d", n, limit))
	}
	msg := make([]byte, min(int(n), 4096))
	for at := 0; ; {
		k, err := io.ReadFull(r, msg[at:])
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if at += k; at == int(n) {
			return msg, nil
		}
		msg = append(msg, make([]byte, min(int(n)-at, len(msg)))...)
	}
}

// exporter is what a QUIC connection's TLS state gives: RFC 8446 section 7.5.
type exporter func(label string, context []byte, length int) ([]byte, error)

// Labels of the exporter (section 5).
const (
	labelHop   = "EXPORTER-weft-hop"
	labelProof = "EXPORTER-weft-community"
)

// hopKeys derives the data keys of an epoch: what the dialer sends under and what the acceptor sends under.
func hopKeys(export exporter, epoch uint32) (dialer, acceptor wire.HopKey, err error) {
	b, err := export(labelHop, binary.BigEndian.AppendUint32(nil, epoch), 32)
	if err != nil {
		return dialer, acceptor, fmt.Errorf("derive link keys: %w", err)
	}
	return wire.NewHopKey([16]byte(b[:16])), wire.NewHopKey([16]byte(b[16:])), nil
}

// communityProof proves to the other end of this very TLS connection that one knows the community's key. The role is in
// it so that a proof cannot be sent back.
func communityProof(export exporter, key [32]byte, dialer bool) ([32]byte, error) {
	if key == ([32]byte{}) {
		return [32]byte{}, nil
	}
	b, err := export(labelProof, nil, 32)
	if err != nil {
		return [32]byte{}, fmt.Errorf("derive community proof: %w", err)
	}
	role := "acceptor"
	if dialer {
		role = "dialer"
	}
	h := hmac.New(sha256.New, key[:])
	h.Write(b)
	h.Write([]byte(role))
	return [32]byte(h.Sum(nil)), nil
}

// probe measures a link (section 6). It travels in 24 authenticated bytes, the first eight in the destination field:
//
//	0  flags 1 | 0 1 | sequence 2 | echo 4
//	8  time 4 | highest counter 4 | received 4 | 0 4
type probe struct {
	Flags    byte
	Seq      uint16
	Echo     uint32 // the time of the probe that this answers
	Time     uint32 // sender's clock, µs; wraps
	Highest  uint32 // highest counter of this epoch that the sender got from the receiver, low bits
	Received uint32 // how many datagrams of all epochs the sender got from the receiver, low bits
}

const (
	probeAsks    = 1 // wants an answer
	probeAnswers = 2 // Echo is valid
)

func (p probe) encode() (dest uint64, payload [16]byte) {
	dest = uint64(p.Flags)<<56 | uint64(p.Seq)<<32 | uint64(p.Echo)
	binary.BigEndian.PutUint32(payload[0:], p.Time)
	binary.BigEndian.PutUint32(payload[4:], p.Highest)
	binary.BigEndian.PutUint32(payload[8:], p.Received)
	return dest, payload
}

func decodeProbe(dest uint64, payload [16]byte) probe {
	return probe{
		Flags: byte(dest >> 56), Seq: uint16(dest >> 32), Echo: uint32(dest),
		Time:    binary.BigEndian.Uint32(payload[0:]),
		Highest: binary.BigEndian.Uint32(payload[4:]), Received: binary.BigEndian.Uint32(payload[8:]),
	}
}

// clock is a probe's time: microseconds that wrap after 71 minutes, far above any round trip.
func clock(since, now time.Time) uint32 { return uint32(now.Sub(since).Microseconds()) }

// cleanReason makes a peer's words fit for a log line and a status page.
func cleanReason(s string) string {
	b := make([]byte, 0, min(len(s), maxReason))
	for i := 0; i < len(s) && len(b) < maxReason; i++ {
		if c := s[i]; c >= ' ' && c < 0x7f {
			b = append(b, c)
		} else {
			b = append(b, '?')
		}
	}
	return string(b)
}
