package lite

import (
	"encoding/binary"
	"errors"
	"fmt"

	"weft/ledger/tx"
)

// Bounds of messages.
const (
	MaxMessage = 40 << 10 // a block of 128 validators has 15.5 kB, one of four 0.9 kB
	maxText    = 200
)

// Message is what one neighbour tells another about the ledger (docs/spec/ledger-light.md section 6.5): a question or an answer. Answers repeat what
// they are about, so that questions need no numbers.
type Message interface {
	tx.Record
	kind() uint8
}

// GetBlock asks for a light block.
type GetBlock struct{ Height int64 } // 0: the newest

// Block answers GetBlock.
type Block struct{ LightBlock }

// GetRecord asks for a record of the state with its proof.
type GetRecord struct {
	Height int64 // after this block; 0: the newest that can be proven, one below the newest block
	Key    []byte
}

// Record answers GetRecord. Without a value it says that there is none, which nothing proves.
type Record struct {
	Height int64
	Key    []byte
	Value  []byte
	Proof  Proof
}

// Submit asks that a transaction be brought to the validators.
type Submit struct{ Tx []byte }

// Verdict answers Submit. It is one node's word; whether a transaction was applied, the nonce in the proven account says.
type Verdict struct {
	Tx   Hash   // tx.Hash
	Code uint32 // as of ledger.Result; 0: it waits for a block
	Text string // for people
}

// Nothing answers any question: not here, not now.
type Nothing struct {
	About uint8  // the kind of the question
	Text  string // for people
}

func (*GetBlock) kind() uint8  { return 1 }
func (*Block) kind() uint8     { return 2 }
func (*GetRecord) kind() uint8 { return 3 }
func (*Record) kind() uint8    { return 4 }
func (*Submit) kind() uint8    { return 5 }
func (*Verdict) kind() uint8   { return 6 }
func (*Nothing) kind() uint8   { return 7 }

// kindPart is a piece of a message: see Split.
const kindPart = 8

func newMessage(kind uint8) Message {
	for _, m := range []Message{&GetBlock{}, &Block{}, &GetRecord{}, &Record{}, &Submit{}, &Verdict{}, &Nothing{}} {
		if m.kind() == kind {
			return m
		}
	}
	return nil
}

// Fields implements tx.Record, as do those below.
func (m *GetBlock) Fields(c *tx.Coder) { codeHeight(c, &m.Height) }

func (m *GetRecord) Fields(c *tx.Coder) {
	codeHeight(c, &m.Height)
	codeSome(c, &m.Key, MaxKey)
}

func (m *Record) Fields(c *tx.Coder) {
	codeHeight(c, &m.Height)
	codeSome(c, &m.Key, MaxKey)
	c.Bytes(&m.Value, MaxValue)
	if len(m.Value) > 0 {
		m.Proof.Fields(c)
	}
}

func (m *Submit) Fields(c *tx.Coder) { codeSome(c, &m.Tx, tx.MaxLen) }

func (m *Verdict) Fields(c *tx.Coder) {
	c.Fixed(m.Tx[:])
	c.U32(&m.Code)
	c.Text(&m.Text, maxText)
}

func (m *Nothing) Fields(c *tx.Coder) {
	c.U8(&m.About)
	c.Text(&m.Text, maxText)
}

func codeHeight(c *tx.Coder, h *int64) {
	c.I64(h)
	if *h < 0 {
		c.Fail(fmt.Errorf("a height of %d", *h))
	}
}

// codeSome is bytes, at least one.
func codeSome(c *tx.Coder, b *[]byte, most int) {
	c.Bytes(b, most)
	if len(*b) == 0 {
		c.Fail(errors.New("nothing where something must be"))
	}
}

const messageVersion = 1

// Encode returns the bytes of a message, or an error when something in it is out of bounds.
func Encode(m Message) ([]byte, error) {
	if err := tx.Check(m); err != nil {
		return nil, fmt.Errorf("encode message for the ledger: %w", err)
	}
	return append([]byte{messageVersion, m.kind()}, tx.Encode(m)...), nil
}

// Parse reads a message. Each has one form: what Parse accepts, Encode gives back byte for byte.
func Parse(b []byte) (Message, error) {
	if len(b) < 2 || len(b) > MaxMessage {
		return nil, fmt.Errorf("a message of %d bytes: 2 to %d are allowed", len(b), MaxMessage)
	}
	m := newMessage(b[1])
	if b[0] != messageVersion || m == nil {
		return nil, fmt.Errorf("message %d of version %d is not known here", b[1], b[0])
	}
	if err := tx.Decode(b[2:], m); err != nil {
		return nil, fmt.Errorf("message %d: %w", b[1], err)
	}
	return m, nil
}

// A part is version 1 | kind 1 | id 4 | index 1 | count 1 | data.
const (
	partHeader = 8
	maxParts   = 48
	maxJoining = 2
)

// Split cuts a message into parts of at most size bytes, for carriers of datagrams. What fits stays whole. id tells the messages apart that are
// on the way to one neighbour: any number that changes.
func Split(msg []byte, id uint32, size int) ([][]byte, error) {
	if len(msg) <= size {
		return [][]byte{msg}, nil
	}
	each := size - partHeader
	if each < 1 || len(msg) > MaxMessage || (len(msg)+each-1)/each > maxParts {
		return nil, fmt.Errorf("a message of %d bytes does not go into %d parts of %d", len(msg), maxParts, size)
	}
	count := (len(msg) + each - 1) / each
	parts := make([][]byte, 0, count)
	for i := range count {
		p := binary.BigEndian.AppendUint32([]byte{messageVersion, kindPart}, id)
		p = append(p, byte(i), byte(count))
		parts = append(parts, append(p, msg[i*each:min((i+1)*each, len(msg))]...))
	}
	return parts, nil
}

// Joiner puts the parts of one neighbour's messages together, in whatever order they come. It holds at most two messages, 80 kB; a third pushes the
// older out. The zero Joiner is ready.
type Joiner struct{ joining []*joining }

type joining struct {
	id    uint32
	parts [][]byte
	left  int
	size  int
}

// Add takes a datagram and returns the message that it is or completes, nil when more must come.
func (j *Joiner) Add(b []byte) ([]byte, error) {
	if len(b) < 2 || b[1] != kindPart || b[0] != messageVersion {
		return b, nil
	}
	if len(b) <= partHeader || b[7] < 2 || b[7] > maxParts || b[6] >= b[7] {
		return nil, errors.New("a part of a message that cannot be")
	}
	id, index, count, data := binary.BigEndian.Uint32(b[2:]), int(b[6]), int(b[7]), b[partHeader:]
	at := -1
	for i, m := range j.joining {
		if m.id == id {
			at = i
		}
	}
	if at >= 0 && len(j.joining[at].parts) != count { // another message took the number
		j.drop(at)
		at = -1
	}
	if at < 0 {
		if len(j.joining) == maxJoining {
			j.drop(0)
		}
		j.joining = append(j.joining, &joining{id: id, parts: make([][]byte, count), left: count})
		at = len(j.joining) - 1
	}
	m := j.joining[at]
	if m.parts[index] != nil {
		return nil, nil
	}
	if m.size += len(data); m.size > MaxMessage {
		j.drop(at)
		return nil, fmt.Errorf("a message in parts is longer than %d bytes", MaxMessage)
	}
	m.parts[index] = append([]byte(nil), data...)
	if m.left--; m.left > 0 {
		return nil, nil
	}
	j.drop(at)
	whole := make([]byte, 0, m.size)
	for _, p := range m.parts {
		whole = append(whole, p...)
	}
	return whole, nil
}

func (j *Joiner) drop(i int) { j.joining = append(j.joining[:i:i], j.joining[i+1:]...) }
