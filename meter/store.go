package meter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"weft/ident"
)

// FileName is the file in the state directory.
const FileName = "meter.db"

// Records are fixed-width, big-endian, and end in a CRC-32C, because bbolt checks its meta pages only, and a bill must not rest on
// a flipped bit.
const (
	countLen    = 16
	comparedLen = 1 + 16 + 6*countLen
	ledgerLen   = 2*countLen + 8 + 2*countLen + 2*comparedLen
	peerLen     = numKinds * ledgerLen
	linkLen     = 8 + 4*countLen
	useLen      = 4 * countLen
	sumLen      = 4

	fileVersion = 1
	keepDays    = 400
)

var (
	bucketMeta  = []byte("meta")
	bucketPeers = []byte("peers") // key 32 → two ledgers
	bucketLinks = []byte("links") // node id 8, class 1 → carried
	bucketDays  = []byte("days")  // day since 1970 4, key 32 → Use
	keyVersion  = []byte("version")
)

// castagnoli is built by the standard library once and never changes.
func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// errDamaged is wrapped by what says that the file's content cannot be trusted, unlike a disk that is full or not there.
var errDamaged = errors.New("the file is damaged")

// errPanicked says that bbolt gave up half-way, perhaps with its locks held: the database must not be touched again, not even closed.
var errPanicked = fmt.Errorf("%w: reading it failed", errDamaged)

// errNewer says that the file is good and not for this program.
var errNewer = errors.New("the file is of a newer weft")

// linkKey is one class of traffic exchanged with one neighbour.
type linkKey struct {
	neighbour ident.NodeID
	class     uint8
}

// carried is what lasts of it.
type carried struct {
	sentTotal, recvTotal Count
	epoch                uint64 // of the counters that are in the totals up to here
	sent, recv           Count
}

// Use is what one peer sent and received, by this node's own count.
type Use struct {
	OutsideSent, OutsideRecv, MeshSent, MeshRecv Count
}

// Billed is the number of bytes that u is billed as, all kinds and directions together.
func (u Use) Billed() uint64 {
	return u.OutsideSent.Billed() + u.OutsideRecv.Billed() + u.MeshSent.Billed() + u.MeshRecv.Billed()
}

func (u Use) plus(v Use) Use {
	return Use{u.OutsideSent.plus(v.OutsideSent), u.OutsideRecv.plus(v.OutsideRecv), u.MeshSent.plus(v.MeshSent), u.MeshRecv.plus(v.MeshRecv)}
}

type dayKey struct {
	day  uint32
	peer ident.PublicKey
}

// batch is what one transaction writes. A nil value deletes.
type batch struct {
	peers map[ident.PublicKey]*[numKinds]ledger
	links map[linkKey]*carried
	days  map[dayKey]*Use
}

func (b *batch) empty() bool { return len(b.peers)+len(b.links)+len(b.days) == 0 }

// contents is what a file holds.
type contents struct {
	peers map[ident.PublicKey][numKinds]ledger
	links map[linkKey]carried
	days  []uint32 // that have rows, ascending
}

// store is the file. Its methods are called one at a time.
type store struct {
	path    string
	db      *bolt.DB
	written uint64 // bytes given to the disk since the file was opened
	days    []uint32
}

// guard runs f and turns a panic, and a fault in the mapped file, into an error: bbolt answers damage with either.
func guard(f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errPanicked, r)
		}
	}()
	return f()
}

// openStore opens the file in dir and reads it whole. A damaged one is moved aside, where a person can look at it, and a new one
// begun; aside then says so. err is for what trying again may mend, or an owner must.
func openStore(dir string, now time.Time) (s *store, c contents, aside error, err error) {
	s = &store{path: filepath.Join(dir, FileName)}
	for range 2 {
		if c, err = s.open(); err == nil {
			return s, c, aside, nil
		}
		if !errors.Is(err, errDamaged) {
			return nil, c, aside, err
		}
		if aside, err = s.moveAside(err, now); err != nil {
			return nil, c, aside, err
		}
	}
	return nil, c, aside, fmt.Errorf("open %s: a new file is damaged as well; check the disk", s.path)
}

// moveAside renames the file and returns what to tell the owner.
func (s *store) moveAside(cause error, now time.Time) (aside, err error) {
	s.drop(cause)
	to := fmt.Sprintf("%s.damaged-%s", s.path, now.UTC().Format("20060102-150405"))
	if err := os.Rename(s.path, to); err != nil {
		return nil, fmt.Errorf("move the damaged %s aside: %w; move it away by hand and start again", s.path, err)
	}
	return fmt.Errorf("%s could not be read (%w); it is now %s, and counting begins anew: keep it if totals are in dispute", s.path, cause, to), nil
}

func (s *store) open() (contents, error) {
	c := contents{peers: map[ident.PublicKey][numKinds]ledger{}, links: map[linkKey]carried{}}
	// First to read only, which needs none of the file's free pages: what is damaged shall be found before anything is written.
	if info, err := os.Stat(s.path); err == nil && info.Size() > 0 {
		err := s.with(true, func(db *bolt.DB) error { return db.View(func(tx *bolt.Tx) error { return c.load(tx) }) })
		if err != nil {
			return c, err
		}
		if err := s.db.Close(); err != nil {
			return c, fmt.Errorf("close %s: %w", s.path, err)
		}
		s.db = nil
	}
	err := s.with(false, func(db *bolt.DB) error {
		return db.Update(func(tx *bolt.Tx) error {
			if tx.Bucket(bucketMeta) != nil {
				return nil
			}
			for _, name := range [][]byte{bucketMeta, bucketPeers, bucketLinks, bucketDays} {
				if _, err := tx.CreateBucketIfNotExists(name); err != nil {
					return err
				}
			}
			return tx.Bucket(bucketMeta).Put(keyVersion, []byte{fileVersion})
		})
	})
	s.days = c.days
	return c, err
}

// with opens the database and does one thing with it.
func (s *store) with(readOnly bool, f func(*bolt.DB) error) error {
	err := guard(func() error {
		// A millisecond: whoever holds the lock is another node, which will not go away by waiting.
		db, err := bolt.Open(s.path, 0o600, &bolt.Options{ReadOnly: readOnly, Timeout: time.Millisecond, FreelistType: bolt.FreelistMapType})
		if err != nil {
			return err
		}
		s.db = db
		return f(db)
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, berrors.ErrTimeout):
		err = fmt.Errorf("open %s: another node runs with this state directory; stop it or use another --state", s.path)
	case errors.Is(err, errDamaged):
	case errors.Is(err, errNewer), errors.As(err, new(syscall.Errno)): // the disk, or the owner
		err = fmt.Errorf("open %s: %w", s.path, err)
	default: // bbolt's own complaints: sizes, magic numbers, checksums
		err = fmt.Errorf("%w: %w", errDamaged, err)
	}
	s.drop(err)
	return err
}

// drop closes the database after an error. Where bbolt has panicked it is left as it is: the process keeps a map and a descriptor of
// a file that is about to be moved, which is better than waiting for a lock that nobody will give back.
func (s *store) drop(err error) {
	if errors.Is(err, errPanicked) {
		s.db = nil
	}
	s.close() // the error that led here says more than one of closing
}

// close gives the file back.
func (s *store) close() error {
	if s.db == nil {
		return nil
	}
	db := s.db
	s.db = nil
	if err := guard(db.Close); err != nil {
		return fmt.Errorf("close %s: %w", s.path, err)
	}
	return nil
}

// load reads and checks every record.
func (c *contents) load(tx *bolt.Tx) error {
	meta := tx.Bucket(bucketMeta)
	if meta == nil {
		// bbolt's own first pages and nothing more: killed before the first transaction.
		return tx.ForEach(func(name []byte, _ *bolt.Bucket) error { return fmt.Errorf("%w: bucket %q alone", errDamaged, name) })
	}
	if v := meta.Get(keyVersion); len(v) != 1 {
		return fmt.Errorf("%w: no version", errDamaged)
	} else if v[0] != fileVersion {
		return fmt.Errorf("%w: version %d, and this program reads %d; update weft, or move the file away to begin anew", errNewer, v[0], fileVersion)
	}
	each := func(name []byte, keyLen, valueLen int, f func(k, v []byte)) error {
		b := tx.Bucket(name)
		if b == nil {
			return fmt.Errorf("%w: no bucket %s", errDamaged, name)
		}
		return b.ForEach(func(k, v []byte) error {
			if len(k) != keyLen || len(v) != valueLen+sumLen {
				return fmt.Errorf("%w: a record of %d and %d bytes in %s", errDamaged, len(k), len(v), name)
			}
			if checkRecord(k, v) == nil {
				return fmt.Errorf("%w: a record in %s has a wrong checksum", errDamaged, name)
			}
			f(k, v[:valueLen])
			return nil
		})
	}
	return errors.Join(
		each(bucketPeers, len(ident.PublicKey{}), peerLen, func(k, v []byte) {
			var l [numKinds]ledger
			d := decoder(v)
			for i := range l {
				l[i] = d.ledger()
			}
			c.peers[ident.PublicKey(k)] = l
		}),
		each(bucketLinks, 9, linkLen, func(k, v []byte) {
			d := decoder(v)
			c.links[linkKey{ident.NodeID(binary.BigEndian.Uint64(k)), k[8]}] =
				carried{d.count(), d.count(), d.u64(), d.count(), d.count()}
		}),
		each(bucketDays, 4+len(ident.PublicKey{}), useLen, func(k, _ []byte) {
			day := binary.BigEndian.Uint32(k)
			if n := len(c.days); n == 0 || c.days[n-1] != day {
				c.days = append(c.days, day)
			}
		}),
	)
}

// checkRecord returns v without its checksum, or nil when that is wrong. The checksum covers the key too: a value under another's
// key is damage.
func checkRecord(k, v []byte) []byte {
	if len(v) < sumLen {
		return nil
	}
	body := v[:len(v)-sumLen]
	if checksum(append(slices.Clone(k), body...)) != binary.BigEndian.Uint32(v[len(body):]) {
		return nil
	}
	return body
}

func put(b *bolt.Bucket, k, body []byte) error {
	sum := checksum(append(slices.Clone(k), body...))
	return b.Put(k, binary.BigEndian.AppendUint32(body, sum))
}

// write makes b durable, all or nothing.
func (s *store) write(b *batch) error {
	if s.db == nil {
		return fmt.Errorf("write %s: %w", s.path, os.ErrClosed)
	}
	var added []uint32
	var gone int
	err := guard(func() error {
		return s.db.Update(func(tx *bolt.Tx) error {
			peers, links, days := tx.Bucket(bucketPeers), tx.Bucket(bucketLinks), tx.Bucket(bucketDays)
			if peers == nil || links == nil || days == nil {
				return fmt.Errorf("%w: a bucket is missing", errDamaged)
			}
			days.FillPercent = 0.9 // rows come in the order of their days
			for k, v := range b.peers {
				key := slices.Clone(k[:])
				if v == nil {
					if err := peers.Delete(key); err != nil {
						return err
					}
					continue
				}
				body := make([]byte, 0, peerLen+sumLen)
				for i := range v {
					body = v[i].append(body)
				}
				if err := put(peers, key, body); err != nil {
					return err
				}
			}
			for k, v := range b.links {
				key := append(binary.BigEndian.AppendUint64(nil, uint64(k.neighbour)), k.class)
				if v == nil {
					if err := links.Delete(key); err != nil {
						return err
					}
					continue
				}
				body := make([]byte, 0, linkLen+sumLen)
				body = appendCount(appendCount(body, v.sentTotal), v.recvTotal)
				body = binary.BigEndian.AppendUint64(body, v.epoch)
				body = appendCount(appendCount(body, v.sent), v.recv)
				if err := put(links, key, body); err != nil {
					return err
				}
			}
			for k, v := range b.days {
				key := append(binary.BigEndian.AppendUint32(nil, k.day), k.peer[:]...)
				if v == nil {
					if err := days.Delete(key); err != nil {
						return err
					}
					continue
				}
				body := make([]byte, 0, useLen+sumLen)
				for _, c := range [...]Count{v.OutsideSent, v.OutsideRecv, v.MeshSent, v.MeshRecv} {
					body = appendCount(body, c)
				}
				if err := put(days, key, body); err != nil {
					return err
				}
				if !slices.Contains(s.days, k.day) && !slices.Contains(added, k.day) {
					added = append(added, k.day)
				}
			}
			// Days are counted, not subtracted from today: a clock that was wrong once must not cost a year's history.
			gone = max(len(s.days)+len(added)-keepDays, 0)
			gone = min(gone, len(s.days))
			for _, day := range s.days[:gone] {
				prefix := binary.BigEndian.AppendUint32(nil, day)
				c := days.Cursor()
				for k, _ := c.Seek(prefix); k != nil && binary.BigEndian.Uint32(k) == day; k, _ = c.Seek(prefix) {
					if err := days.Delete(slices.Clone(k)); err != nil {
						return err
					}
				}
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("write %s: %w", s.path, err)
	}
	if len(added) > 0 || gone > 0 {
		s.days = append(slices.Clone(s.days[gone:]), added...)
		slices.Sort(s.days)
	}
	stats := s.db.Stats()
	s.written = uint64(stats.TxStats.GetPageAlloc())
	return nil
}

// use reads the rows of the days from first to last, in their order.
func (s *store) use(first, last uint32, f func(day uint32, peer ident.PublicKey, u Use)) error {
	if s.db == nil {
		return fmt.Errorf("read %s: %w", s.path, os.ErrClosed)
	}
	err := guard(func() error {
		return s.db.View(func(tx *bolt.Tx) error {
			c := tx.Bucket(bucketDays).Cursor()
			for k, v := c.Seek(binary.BigEndian.AppendUint32(nil, first)); k != nil; k, v = c.Next() {
				body := checkRecord(k, v)
				if len(k) != 4+len(ident.PublicKey{}) || len(body) != useLen {
					return fmt.Errorf("%w: a day's record", errDamaged)
				}
				day := binary.BigEndian.Uint32(k)
				if day > last {
					return nil
				}
				d := decoder(body)
				f(day, ident.PublicKey(k[4:]), Use{d.count(), d.count(), d.count(), d.count()})
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("read %s: %w", s.path, err)
	}
	return nil
}

func appendCount(b []byte, c Count) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, c.Packets), c.Bytes)
}

func (l *ledger) append(b []byte) []byte {
	b = appendCount(appendCount(b, l.sentTotal), l.recvTotal)
	b = binary.BigEndian.AppendUint64(b, l.epoch)
	b = appendCount(appendCount(b, l.sent), l.recv)
	for _, c := range [...]*compared{&l.out, &l.in} {
		var known byte
		if c.known {
			known = 1
		}
		b = append(b, known)
		b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, c.sentEpoch), c.recvEpoch)
		for _, n := range [...]Count{c.sent, c.recv, c.pairSent, c.pairRecv, c.pairAgreed, c.agreed} {
			b = appendCount(b, n)
		}
	}
	return b
}

// decoder reads a record whose length has been checked.
type decoder []byte

func (d *decoder) u64() uint64 {
	v := binary.BigEndian.Uint64(*d)
	*d = (*d)[8:]
	return v
}

func (d *decoder) count() Count { return Count{d.u64(), d.u64()} }

func (d *decoder) ledger() ledger {
	l := ledger{sentTotal: d.count(), recvTotal: d.count(), epoch: d.u64(), sent: d.count(), recv: d.count()}
	for _, c := range [...]*compared{&l.out, &l.in} {
		known := (*d)[0] == 1
		*d = (*d)[1:]
		*c = compared{known, d.u64(), d.u64(), d.count(), d.count(), d.count(), d.count(), d.count(), d.count()}
	}
	return l
}
