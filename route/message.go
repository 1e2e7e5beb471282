package route

import (
	"encoding/binary"
	"errors"
	"fmt"

	"weft/ident"
)

// A control message is one or more records, each type 1, length 2, value (docs/spec/route.md section 3). Unknown types
// are skipped, so that records can be added.
type recordType uint8

const (
	recDigest recordType = 1 // flags 1, log2 of the number of buckets 1, salt 8, buckets × 8
	recRange  recordType = 2 // low id 8, high id 8, entries × (id 8, seq 8, tag 4), ids rising
	recLSA    recordType = 3 // age 4 (s), signed LSA
	recMark   recordType = 4 // mark 1
	recAck    recordType = 5 // bytes of messages received since the link came up, 8
)

// Marks drive the first synchronisation of a link.
const (
	markEnd   = 1 // "that was my last range: send what I lack"
	markDone  = 2 // "you have everything that you lacked"
	markReady = 3 // "I have received everything: use me"
)

const (
	// MaxMessage bounds one control message in bytes; Receive refuses longer ones and Outbox makes none.
	MaxMessage = 60 << 10

	recordHeader  = 3
	digestFixed   = 10
	maxBucketBits = 8
	rangeFixed    = 16
	rangeEntry    = 20
	lsaFixed      = 4
	digestWanted  = 1 // flag: answer with a digest of your own
)

// ErrMessage is wrapped by the errors of Receive that mean a malformed message, ErrForged by those that mean a false
// signature. An honest neighbour causes neither, so the caller may close the link.
var (
	ErrMessage = errors.New("malformed routing message")
	ErrForged  = errors.New("forged LSA")
)

func appendRecord(b []byte, t recordType, size int) []byte {
	return append(b, byte(t), byte(size>>8), byte(size))
}

func appendMark(b []byte, mark byte) []byte { return append(appendRecord(b, recMark, 1), mark) }

func appendAck(b []byte, n uint64) []byte {
	return binary.BigEndian.AppendUint64(appendRecord(b, recAck, 8), n)
}

func appendLSA(b []byte, age uint32, lsa []byte) []byte {
	b = appendRecord(b, recLSA, lsaFixed+len(lsa))
	b = binary.BigEndian.AppendUint32(b, age)
	return append(b, lsa...)
}

// nextRecord splits the first record off b.
func nextRecord(b []byte) (t recordType, value, rest []byte, err error) {
	if len(b) < recordHeader {
		return 0, nil, nil, fmt.Errorf("%w: record header cut short", ErrMessage)
	}
	size := int(binary.BigEndian.Uint16(b[1:]))
	if len(b) < recordHeader+size {
		return 0, nil, nil, fmt.Errorf("%w: record of type %d cut short", ErrMessage, b[0])
	}
	return recordType(b[0]), b[recordHeader : recordHeader+size], b[recordHeader+size:], nil
}

// digest is the body of a recDigest: one sum for each of 2^bits ranges of equal size of the id space.
type digest struct {
	wanted bool
	bits   uint8
	salt   uint64
	sums   []byte
}

func (d digest) appendTo(b []byte) []byte {
	b = appendRecord(b, recDigest, digestFixed+len(d.sums))
	flags := byte(0)
	if d.wanted {
		flags = digestWanted
	}
	b = append(b, flags, d.bits)
	b = binary.BigEndian.AppendUint64(b, d.salt)
	return append(b, d.sums...)
}

func parseDigest(v []byte) (digest, error) {
	if len(v) < digestFixed || v[1] > maxBucketBits || len(v) != digestFixed+8<<v[1] || v[0]&^digestWanted != 0 {
		return digest{}, fmt.Errorf("%w: digest of %d bytes", ErrMessage, len(v))
	}
	return digest{v[0]&digestWanted != 0, v[1], binary.BigEndian.Uint64(v[2:]), v[digestFixed:]}, nil
}

// summary names one LSA version: tag is the start of its signature, which tells two LSAs of one sequence number apart.
type summary struct {
	id  ident.NodeID
	seq uint64
	tag uint32
}

func appendSummary(b []byte, s summary) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(s.id))
	b = binary.BigEndian.AppendUint64(b, s.seq)
	return binary.BigEndian.AppendUint32(b, s.tag)
}

// idRange is a closed range of ids.
type idRange struct{ low, high ident.NodeID }

// summaries reads the entries of a recRange in place.
type summaries []byte

func (s summaries) len() int { return len(s) / rangeEntry }
func (s summaries) at(i int) summary {
	b := s[i*rangeEntry:]
	return summary{ident.NodeID(binary.BigEndian.Uint64(b)), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint32(b[16:])}
}

func parseRange(v []byte) (idRange, summaries, error) {
	if len(v) < rangeFixed || (len(v)-rangeFixed)%rangeEntry != 0 {
		return idRange{}, nil, fmt.Errorf("%w: range of %d bytes", ErrMessage, len(v))
	}
	r := idRange{ident.NodeID(binary.BigEndian.Uint64(v)), ident.NodeID(binary.BigEndian.Uint64(v[8:]))}
	s := summaries(v[rangeFixed:])
	for i := range s.len() {
		id := s.at(i).id
		if id < r.low || id > r.high || i > 0 && id <= s.at(i-1).id {
			return idRange{}, nil, fmt.Errorf("%w: range entry %d out of order", ErrMessage, i)
		}
	}
	if r.low > r.high {
		return idRange{}, nil, fmt.Errorf("%w: range upside down", ErrMessage)
	}
	return r, s, nil
}
