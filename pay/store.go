package pay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"weft/ident"
	"weft/ledger/tx"
)

// FileName is the file in the state directory.
const FileName = "pay.db"

// Entry is a record; a nil Value deletes.
type Entry struct{ Key, Value []byte }

// Store keeps records. Write is all or nothing, and durable when it returns.
type Store interface {
	Scan(prefix []byte, f func(key, value []byte) error) error // in the order of keys; what f gets is not kept
	Write([]Entry) error
}

// Kinds of records: the first byte of a key.
const (
	kindCredit = 'c' // peer 32, service 1
	kindDebit  = 'd' // the same
	kindOld    = 'o' // tab 16, epoch 4
	kindLine   = 'l' // number 8
	kindMonth  = 'm' // month 8
)

func (id ID) key(kind byte) []byte {
	return append(append([]byte{kind}, id.Peer[:]...), byte(id.Service))
}

func lineKey(n uint64) []byte { return binary.BigEndian.AppendUint64([]byte{kindLine}, n) }

// entry is the record as it will be once what is staged is in it.
func (c *credit) entry() Entry {
	r := c.creditRecord
	r.apply(c.stagedTab, c.staged, c.Exposure)
	return Entry{c.ID.key(kindCredit), tx.Encode(&r)}
}

// entries is entry, and the record of the tab that a staged one replaces.
func (c *credit) entries() []Entry {
	r := c.creditRecord
	if over := r.apply(c.stagedTab, c.staged, c.Exposure); over != nil {
		return []Entry{c.entry(), over.entry()}
	}
	return []Entry{c.entry()}
}

func (d *debit) entry() Entry {
	r := &d.debitRecord
	if d.stagedRec != nil {
		r = d.stagedRec
	}
	return Entry{d.ID.key(kindDebit), tx.Encode(r)}
}

func (h *held) entry() Entry {
	k := append([]byte{kindOld}, h.Tab.ID[:]...)
	return Entry{binary.BigEndian.AppendUint32(k, h.Epoch), tx.Encode(h)}
}

// load reads all records but closed lines.
func (p *Pay) load() error {
	err := p.cfg.Store.Scan(nil, func(k, v []byte) error {
		if len(k) == 0 {
			return errors.New("a record without a key")
		}
		id := ID{}
		if k[0] == kindCredit || k[0] == kindDebit {
			if len(k) != 34 || !Service(k[33]).valid() {
				return fmt.Errorf("a record with key %x", k)
			}
			id = ID{ident.PublicKey(k[1:33]), Service(k[33])}
		}
		switch k[0] {
		case kindCredit:
			c := p.newCreditLocked(id)
			if err := tx.Decode(v, &c.creditRecord); err != nil {
				return fmt.Errorf("what %s owes: %w", id.Peer, err)
			}
			if c.HasTab {
				c.tab = &c.Tab
				c.Tab.ID = id
			}
			c.stored = true
		case kindDebit:
			d := p.newDebitLocked(id)
			if err := tx.Decode(v, &d.debitRecord); err != nil {
				return fmt.Errorf("what is owed to %s: %w", id.Peer, err)
			}
			if d.HasTab {
				d.tab = &d.Tab
			}
			d.stored = true
		case kindOld:
			h := &held{}
			if err := tx.Decode(v, h); err != nil {
				return fmt.Errorf("a tab that is over: %w", err)
			}
			p.old[h.key()] = h
		case kindLine:
			if len(k) != 9 {
				return fmt.Errorf("a line with key %x", k)
			}
			p.lines++
			p.lineSeq = max(p.lineSeq, binary.BigEndian.Uint64(k[1:]))
		case kindMonth:
			var m month
			if err := tx.Decode(v, &m); err != nil {
				return fmt.Errorf("what was spent in a month: %w", err)
			}
			p.spent[m.Month] = max(p.spent[m.Month], m.Spent)
		default:
			return fmt.Errorf("a record of unknown kind %q: the file is of a newer weft", k[0])
		}
		return nil
	})
	return err
}

// month is what was signed for in one month.
type month struct {
	Month int64 // year·12 + month
	Spent int64
}

// months are the sums of some, by month. A clock that jumps, as that of a router which begins in 1970 at each start, begins no month
// that was there already a second time.
type months map[int64]int64

const maxMonths = 24

func monthOf(t time.Time) int64 {
	t = t.UTC()
	return int64(t.Year())*12 + int64(t.Month())
}

func (m months) in(now time.Time) int64 { return m[monthOf(now)] }

func (m months) add(now time.Time, n int64) {
	k := monthOf(now)
	m[k] = max(0, satAdd(m[k], n))
}

func monthKey(k int64) []byte { return binary.BigEndian.AppendUint64([]byte{kindMonth}, uint64(k)) }

// entries are the records of what add has changed, and of the oldest, which makes way.
func (m months) entries(now time.Time) []Entry {
	k := monthOf(now)
	spent, ok := m[k]
	if !ok {
		return nil
	}
	b := []Entry{{monthKey(k), tx.Encode(&month{k, spent})}}
	if len(m) > maxMonths {
		oldest := k
		for other := range m {
			if other != k && (oldest == k || other < oldest) {
				oldest = other
			}
		}
		delete(m, oldest)
		b = append(b, Entry{Key: monthKey(oldest)})
	}
	return b
}

// Fields implements tx.Record.
func (m *month) Fields(c *tx.Coder) {
	c.I64(&m.Month)
	c.I64(&m.Spent)
}

func codeVoucher(c *tx.Coder, v *tx.Voucher) {
	b := v.Encode()
	has := v.Seq != 0
	c.Bool(&has)
	if !has {
		*v = tx.Voucher{}
		return
	}
	c.Fixed(b[:])
	if c.Reading() {
		var err error
		if *v, err = tx.ParseVoucher(b[:]); err != nil {
			c.Fail(err)
		}
	}
}

func codeQuote(c *tx.Coder, q *Quote) {
	has := q.Seq != 0
	c.Bool(&has)
	if !has {
		*q = Quote{}
		return
	}
	b := make([]byte, quoteLen)
	copy(b, q.AppendTo(nil))
	c.Fixed(b)
	if c.Reading() {
		m, err := ParseMessage(b)
		if got, ok := m.(*Quote); ok {
			*q = *got
		} else {
			c.Fail(fmt.Errorf("a quote: %w", errors.Join(err, ErrMessage)))
		}
	}
}

// Fields implements tx.Record.
func (h *held) Fields(c *tx.Coder) {
	c.Key(&h.ID.Peer)
	c.U8((*uint8)(&h.ID.Service))
	h.Tab.Fields(c)
	c.I64(&h.Proven)
	c.Amount(&h.Base)
	codeVoucher(c, &h.Voucher)
	c.U8((*uint8)(&h.Phase))
	c.I64(&h.Lost)
	at := int64(0)
	if !h.claimAt.IsZero() {
		at = h.claimAt.Unix()
	}
	c.I64(&at)
	if c.Reading() && at != 0 {
		h.claimAt = time.Unix(at, 0)
	}
}

// Fields implements tx.Record.
func (r *creditRecord) Fields(c *tx.Coder) {
	r.Last.Fields(c)
	c.Bool(&r.Seen)
	c.U64(&r.Bytes)
	r.Charged.Fields(c)
	r.Forgiven.Fields(c)
	c.I64(&r.Paid)
	c.Bool(&r.HasTab)
	if r.HasTab {
		r.Tab.Fields(c)
	}
	c.U64(&r.Exposure)
	c.I64(&r.Grown)
	c.Bool(&r.Late)
	codeQuote(c, &r.Quote)
	codeQuote(c, &r.Next)
	c.Bool(&r.HasLine)
	if r.HasLine {
		r.Line.Fields(c)
	}
}

// Fields implements tx.Record.
func (r *debitRecord) Fields(c *tx.Coder) {
	r.Last.Fields(c)
	c.Bool(&r.Seen)
	c.U64(&r.Bytes)
	r.Charged.Fields(c)
	c.I64(&r.Signed)
	c.U64(&r.At)
	c.Bool(&r.HasTab)
	r.Tab.Fields(c)
	c.I64(&r.Proven)
	codeVoucher(c, &r.Voucher)
	c.U32(&r.Number)
	c.Key(&r.Payee)
	codeQuote(c, &r.Quote)
	c.Bool(&r.HasLine)
	if r.HasLine {
		r.Line.Fields(c)
	}
}

var bucketRecords = []byte("pay1")

// errDamaged says that the file's content cannot be trusted.
var errDamaged = errors.New("the file is damaged")

// File is the bbolt file, a Store. Each record carries a CRC-32C over key and value.
type File struct {
	db   *bolt.DB
	path string
}

// OpenFile opens the file in a state directory. A damaged one is an error that says what to do: what is owed is not made to
// vanish by beginning anew.
func OpenFile(dir string) (*File, error) {
	f := &File{path: filepath.Join(dir, FileName)}
	err := guard(func() (err error) {
		// A millisecond: whoever holds the lock is another node.
		if f.db, err = bolt.Open(f.path, 0o600, &bolt.Options{Timeout: time.Millisecond, FreelistType: bolt.FreelistMapType}); err != nil {
			return err
		}
		return f.db.Update(func(tx *bolt.Tx) error {
			_, err := tx.CreateBucketIfNotExists(bucketRecords)
			return err
		})
	})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("open %s: another node runs with this state directory; stop it or use another --state", f.path)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w; put back a copy of it, or move it away: then what peers owe is forgotten, and what was signed is learnt from them", f.path, err)
	}
	return f, nil
}

// guard turns a panic, and a fault in the mapped file, into an error: bbolt answers damage with either.
func guard(f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errDamaged, r)
		}
	}()
	return f()
}

func checksum(k, v []byte) uint32 {
	return crc32.Checksum(append(slices.Clone(k), v...), crc32.MakeTable(crc32.Castagnoli))
}

// Scan implements Store.
func (f *File) Scan(prefix []byte, each func(key, value []byte) error) error {
	return guard(func() error {
		return f.db.View(func(tx *bolt.Tx) error {
			b := tx.Bucket(bucketRecords)
			if b == nil {
				return fmt.Errorf("%w: no records", errDamaged)
			}
			c := b.Cursor()
			for k, v := c.Seek(prefix); k != nil && len(k) >= len(prefix) && string(k[:len(prefix)]) == string(prefix); k, v = c.Next() {
				if len(v) < 4 || checksum(k, v[:len(v)-4]) != binary.BigEndian.Uint32(v[len(v)-4:]) {
					return fmt.Errorf("read %s: %w: a record has a wrong checksum; put back a copy of the file, or move it away", f.path, errDamaged)
				}
				if err := each(k, v[:len(v)-4]); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// Write implements Store.
func (f *File) Write(l []Entry) error {
	err := guard(func() error {
		return f.db.Update(func(tx *bolt.Tx) error {
			b := tx.Bucket(bucketRecords)
			if b == nil {
				return fmt.Errorf("%w: no records", errDamaged)
			}
			for _, e := range l {
				var err error
				if e.Value == nil {
					err = b.Delete(e.Key)
				} else {
					err = b.Put(e.Key, binary.BigEndian.AppendUint32(slices.Clone(e.Value), checksum(e.Key, e.Value)))
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("write %s: %w", f.path, err)
	}
	return nil
}

// Close gives the file back.
func (f *File) Close() error {
	if err := guard(f.db.Close); err != nil {
		return fmt.Errorf("close %s: %w", f.path, err)
	}
	return nil
}
