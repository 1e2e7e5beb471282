package guest

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Limits of a store. One voucher takes about 300 bytes of file, and every activation writes the file anew.
const (
	MaxVouchers   = 5000
	maxDevices    = 64
	maxMinutes    = 10 * 366 * 24 * 60
	maxText       = 200 // bytes of a name or a note
	maxCode       = 64  // bytes of an imported code
	maxStoreBytes = 32 << 20
)

// codeLetters are 22 letters that cannot be taken for a digit or for each other, so that a phone shows one keyboard. Ten
// of them are 44.6 bits.
const (
	codeLetters = "ABCDEFGHJKMNPQRSTVWXYZ"
	codeLength  = 10
)

// Voucher lets devices use the internet for some time, some bytes, or both.
type Voucher struct {
	ID           string    `json:"id"`
	Name         string    `json:"name,omitempty"`
	Note         string    `json:"note,omitempty"`
	Code         string    `json:"code"`
	Minutes      int64     `json:"minutes,omitempty"`       // 0: no end
	FromCreation bool      `json:"from_creation,omitempty"` // minutes run from creation, not from first use
	Bytes        uint64    `json:"bytes,omitempty"`         // both directions, all devices together; 0: no limit
	Devices      int       `json:"devices"`                 // how many different devices may use it
	Created      time.Time `json:"created"`
	Deadline     time.Time `json:"deadline,omitzero"`  // first use must be before
	Activated    time.Time `json:"activated,omitzero"` // first use
	Revoked      time.Time `json:"revoked,omitzero"`
	Used         uint64    `json:"used,omitempty"` // bytes
	MACs         []MAC     `json:"macs,omitempty"`

	// What pirania keeps of a voucher and we do not, so that it comes out as it went in.
	Author       string `json:"author_node,omitempty"`
	Changes      int64  `json:"mod_counter,omitempty"`
	Unrestricted bool   `json:"unrestricted,omitempty"`
	Removed      bool   `json:"removed,omitempty"` // duration 0 in older pirania
}

// Ends returns when the voucher's time is over; the zero time if it is not running or has no end.
func (v *Voucher) Ends() time.Time {
	from := v.Activated
	if v.FromCreation {
		from = v.Created
	}
	if v.Minutes == 0 || from.IsZero() {
		return time.Time{}
	}
	return from.Add(time.Duration(v.Minutes) * time.Minute)
}

// The states of a voucher.
const (
	VoucherNew     = "new"     // nobody has used it
	VoucherActive  = "active"  // in use
	VoucherExpired = "expired" // its time is over, or it was not used before the deadline
	VoucherUsedUp  = "used up" // its bytes are
	VoucherRevoked = "revoked"
)

// State returns what the voucher is worth at now.
func (v *Voucher) State(now time.Time) string {
	end := v.Ends()
	switch {
	case !v.Revoked.IsZero():
		return VoucherRevoked
	case v.Removed, !end.IsZero() && !now.Before(end), v.Activated.IsZero() && !v.Deadline.IsZero() && !now.Before(v.Deadline):
		return VoucherExpired
	case v.Bytes > 0 && v.Used >= v.Bytes:
		return VoucherUsedUp
	case v.Activated.IsZero():
		return VoucherNew
	}
	return VoucherActive
}

// Spec says what vouchers to create.
type Spec struct {
	Count        int // 0: one
	Name, Note   string
	Minutes      int64 // 0: no end
	FromCreation bool
	Bytes        uint64 // 0: no limit
	Devices      int    // 0: one
	Deadline     time.Time
}

// What [Vouchers.Redeem] may refuse with.
var (
	ErrNoVoucher    = errors.New("no voucher has this code: look again for letters that were mistyped")
	ErrVoucherOver  = errors.New("this voucher is used up or its time is over: ask for a new one")
	ErrVoucherTaken = errors.New("this voucher is in use on other devices already: ask for one of your own")
)

// Vouchers is a store of vouchers in one JSON file. The file is replaced as a whole, by rename after fsync, before any
// change is answered: what was granted is never forgotten by a crash. What devices have used is kept in memory between
// calls of [Vouchers.Flush].
type Vouchers struct {
	path string
	now  func() time.Time

	mu    sync.Mutex
	all   []Voucher // in the order of creation; MACs are never changed in place
	dirty bool
}

// storeFile is the file's form.
type storeFile struct {
	Version  int       `json:"version"`
	Vouchers []Voucher `json:"vouchers"`
}

// OpenVouchers reads the store at path, which need not exist yet. now is nil for the system's clock.
func OpenVouchers(path string, now func() time.Time) (*Vouchers, error) {
	if now == nil {
		now = time.Now
	}
	s := &Vouchers{path: path, now: now}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read vouchers: %w", err)
	}
	if s.all, err = decodeStore(b); err != nil {
		return nil, fmt.Errorf("read vouchers in %s: %w; put a backup in its place, or move it away to begin without vouchers", path, err)
	}
	return s, nil
}

func decodeStore(b []byte) ([]Voucher, error) {
	if len(b) > maxStoreBytes {
		return nil, errors.New("the file is too large to be ours")
	}
	var f storeFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, err
	}
	if f.Version != 1 {
		return nil, fmt.Errorf("its version is %d, and this program knows 1: use a newer Weft", f.Version)
	}
	if err := checkAll(f.Vouchers); err != nil {
		return nil, err
	}
	return f.Vouchers, nil
}

// checkAll holds vouchers against the limits and finds twins.
func checkAll(all []Voucher) error {
	if len(all) > MaxVouchers {
		return fmt.Errorf("there may be %d vouchers, not %d: remove old ones first", MaxVouchers, len(all))
	}
	ids, codes := map[string]bool{}, map[string]bool{}
	for i := range all {
		v := &all[i]
		code := plainCode(v.Code)
		switch {
		case v.ID == "" || len(v.ID) > maxCode:
			return fmt.Errorf("voucher %d has no usable ID", i+1)
		case code == "" || len(v.Code) > maxCode:
			return fmt.Errorf("voucher %s has no usable code", v.ID)
		case ids[v.ID]:
			return fmt.Errorf("two vouchers have the ID %s", v.ID)
		case codes[code]:
			return fmt.Errorf("voucher %s has the code of another", v.ID)
		case v.Minutes < 0 || v.Minutes > maxMinutes:
			return fmt.Errorf("voucher %s: %d minutes are not between 0 and %d", v.ID, v.Minutes, maxMinutes)
		case v.Devices < 1 || v.Devices > maxDevices || len(v.MACs) > maxDevices:
			return fmt.Errorf("voucher %s: a voucher is for 1 to %d devices", v.ID, maxDevices)
		case len(v.Name) > maxText || len(v.Note) > maxText || len(v.Author) > maxText:
			return fmt.Errorf("voucher %s: name and note may have %d bytes", v.ID, maxText)
		}
		ids[v.ID], codes[code] = true, true
	}
	return nil
}

// plainCode is a code without what people add when they type: case, spaces, hyphens, dots.
func plainCode(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return -1
	}, s)
}

// saveLocked makes next the store, or leaves everything as it is.
func (s *Vouchers) saveLocked(next []Voucher) error {
	b, err := json.MarshalIndent(storeFile{1, next}, "", " ")
	if err != nil {
		return err
	}
	if err := writeFile(s.path, append(b, '\n')); err != nil {
		return fmt.Errorf("save vouchers: %w", err)
	}
	s.all, s.dirty = next, false
	return nil
}

// writeFile replaces a file so that a crash at any moment leaves the old or the new one, whole.
func writeFile(path string, b []byte) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if d, derr := os.Open(filepath.Dir(path)); derr == nil { // systems that cannot sync a folder do not need it
		_ = d.Sync()
		_ = d.Close()
	}
	return nil
}

// randomLetters returns n letters; every combination is as likely as any other.
func randomLetters(n int) string {
	const fair = 256 / len(codeLetters) * len(codeLetters)
	out, buf := make([]byte, 0, n), make([]byte, 32)
	for len(out) < n {
		_, _ = rand.Read(buf) // never fails: it ends the program instead
		for _, b := range buf {
			if int(b) < fair && len(out) < n {
				out = append(out, codeLetters[int(b)%len(codeLetters)])
			}
		}
	}
	return string(out)
}

// Create makes vouchers. More than one are named NAME-1, NAME-2 and so on.
func (s *Vouchers) Create(spec Spec) ([]Voucher, error) {
	n := max(spec.Count, 1)
	if n > MaxVouchers {
		return nil, fmt.Errorf("create vouchers: there may be %d", MaxVouchers)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next := slices.Clone(s.all)
	for i := range n {
		name := spec.Name
		if n > 1 {
			name = fmt.Sprintf("%s-%d", name, i+1)
		}
		code := randomLetters(codeLength)
		next = append(next, Voucher{ID: randomLetters(6), Name: name, Note: spec.Note, Code: code[:5] + "-" + code[5:],
			Minutes: spec.Minutes, FromCreation: spec.FromCreation, Bytes: spec.Bytes, Devices: max(spec.Devices, 1),
			Created: s.now().Truncate(time.Second), Deadline: spec.Deadline, Changes: 1})
		for s.hasID(next[:len(next)-1], next[len(next)-1].ID) {
			next[len(next)-1].ID = randomLetters(6)
		}
	}
	if err := checkAll(next); err != nil {
		return nil, fmt.Errorf("create vouchers: %w", err)
	}
	if err := s.saveLocked(next); err != nil {
		return nil, err
	}
	return slices.Clone(next[len(next)-n:]), nil
}

func (s *Vouchers) hasID(in []Voucher, id string) bool {
	return slices.ContainsFunc(in, func(v Voucher) bool { return v.ID == id })
}

// List returns all vouchers, the oldest first.
func (s *Vouchers) List() []Voucher {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.all)
}

// Get returns the voucher with this ID, or else with this code. [Vouchers.Revoke] and [Vouchers.Renew] find one the same way.
func (s *Vouchers) Get(id string) (Voucher, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.findLocked(id); i >= 0 {
		return s.all[i], true
	}
	return Voucher{}, false
}

func (s *Vouchers) indexLocked(id string) int {
	return slices.IndexFunc(s.all, func(v Voucher) bool { return v.ID == id })
}

func (s *Vouchers) findLocked(id string) int {
	if i := s.indexLocked(id); i >= 0 {
		return i
	}
	code := plainCode(id)
	return slices.IndexFunc(s.all, func(v Voucher) bool { return code != "" && plainCode(v.Code) == code })
}

// change edits one voucher and saves.
func (s *Vouchers) change(id string, edit func(*Voucher) error) (Voucher, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.findLocked(id)
	if i < 0 {
		return Voucher{}, fmt.Errorf("there is no voucher %q: `weft voucher list` shows those that are", id)
	}
	next := slices.Clone(s.all)
	if err := edit(&next[i]); err != nil {
		return Voucher{}, err
	}
	next[i].Changes++
	if err := checkAll(next); err != nil {
		return Voucher{}, err
	}
	if err := s.saveLocked(next); err != nil {
		return Voucher{}, err
	}
	return next[i], nil
}

// Revoke ends a voucher at once. It stays in the list.
func (s *Vouchers) Revoke(id string) (Voucher, error) {
	return s.change(id, func(v *Voucher) error {
		if v.Revoked.IsZero() {
			v.Revoked = s.now().Truncate(time.Second)
		}
		return nil
	})
}

// Renewal is what [Vouchers.Renew] adds.
type Renewal struct {
	Minutes       int64  // more
	Bytes         uint64 // more
	ForgetDevices bool   // it may be redeemed on other devices
}

// Renew gives a voucher more minutes or bytes, or frees it from its devices. What had no limit keeps none. Time that was
// over before is not counted: minutes run from now then. A revoked voucher stays revoked.
func (s *Vouchers) Renew(id string, r Renewal) (Voucher, error) {
	return s.change(id, func(v *Voucher) error {
		now := s.now().Truncate(time.Second)
		if !v.Revoked.IsZero() {
			return fmt.Errorf("voucher %s is revoked: create a new one", id)
		}
		if r.Minutes < 0 {
			return errors.New("a voucher cannot be given negative minutes")
		}
		if r.Minutes > 0 && (v.Minutes > 0 || v.Removed) {
			if end := v.Ends(); !end.IsZero() && end.Before(now) {
				v.Minutes = 0
				if v.FromCreation {
					v.Created = now
				} else {
					v.Activated = now
				}
			}
			v.Minutes, v.Removed = v.Minutes+r.Minutes, false
		}
		if v.Bytes > 0 {
			if v.Bytes+r.Bytes < v.Bytes {
				return errors.New("that is more bytes than there are")
			}
			v.Bytes += r.Bytes
		}
		if !v.Deadline.IsZero() && v.Deadline.Before(now) {
			v.Deadline = time.Time{}
		}
		if r.ForgetDevices {
			v.MACs = nil
		}
		return nil
	})
}

// Remove forgets vouchers that have been over, used up or revoked since before, and says how many.
func (s *Vouchers) Remove(before time.Time) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	next := slices.DeleteFunc(slices.Clone(s.all), func(v Voucher) bool {
		last := v.Revoked
		for _, t := range []time.Time{v.Created, v.Activated, v.Ends(), v.Deadline} {
			if last.Before(t) && v.Revoked.IsZero() {
				last = t
			}
		}
		st := v.State(now)
		return st != VoucherNew && st != VoucherActive && last.Before(before)
	})
	n := len(s.all) - len(next)
	if n == 0 {
		return 0, nil
	}
	return n, s.saveLocked(next)
}

// Redeem binds a device to the voucher with this code, and starts the voucher if it is new. When it returns without error
// the activation is on disk. A device that has it already gets it again.
func (s *Vouchers) Redeem(code string, mac MAC) (Voucher, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	want := sha256.Sum256([]byte(plainCode(code)))
	found := -1
	for i := range s.all { // all of them, whatever is found: time must not tell how near a guess was
		have := sha256.Sum256([]byte(plainCode(s.all[i].Code)))
		found = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(want[:], have[:]), i, found)
	}
	if found < 0 || len(code) > 2*maxCode {
		return Voucher{}, ErrNoVoucher
	}
	v := s.all[found]
	now := s.now()
	if st := v.State(now); st != VoucherNew && st != VoucherActive {
		return Voucher{}, ErrVoucherOver
	}
	if slices.Contains(v.MACs, mac) && !v.Activated.IsZero() {
		return v, nil
	}
	if len(v.MACs) >= v.Devices {
		return Voucher{}, ErrVoucherTaken
	}
	v.MACs = append(slices.Clone(v.MACs), mac)
	if v.Activated.IsZero() {
		v.Activated = now.Truncate(time.Second)
	}
	v.Changes++
	next := slices.Clone(s.all)
	next[found] = v
	if err := s.saveLocked(next); err != nil {
		return Voucher{}, err
	}
	return v, nil
}

// For returns the voucher that a device may use: of several the one that ends first, so that nothing goes to waste.
func (s *Vouchers) For(mac MAC) (Voucher, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	var best *Voucher
	for i := range s.all {
		v := &s.all[i]
		if !slices.Contains(v.MACs, mac) || v.State(now) != VoucherActive {
			continue
		}
		if best == nil || sooner(v, best) < 0 {
			best = v
		}
	}
	if best == nil {
		return Voucher{}, false
	}
	return *best, true
}

func sooner(a, b *Voucher) int {
	x, y := a.Ends(), b.Ends()
	switch {
	case x.IsZero() != y.IsZero():
		if x.IsZero() {
			return 1
		}
		return -1
	case !x.Equal(y):
		return x.Compare(y)
	}
	return cmp.Compare(a.ID, b.ID)
}

// devices returns every device that holds an active voucher.
func (s *Vouchers) devices() []MAC {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	var out []MAC
	for i := range s.all {
		if s.all[i].State(now) == VoucherActive {
			out = append(out, s.all[i].MACs...)
		}
	}
	return out
}

// Use counts bytes that went over a voucher. They are on disk after the next [Vouchers.Flush] or other change.
func (s *Vouchers) Use(id string, bytes uint64) {
	if bytes == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.indexLocked(id); i >= 0 {
		s.all[i].Used += bytes
		s.dirty = true
	}
}

// shift moves what was started at or after since by d: the clock has been set, and the time that people have paid for has not
// passed. Routers without a clock of their own start in the past and learn the time later.
func (s *Vouchers) shift(since time.Time, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.all {
		v := &s.all[i]
		for _, t := range []*time.Time{&v.Created, &v.Activated} {
			if !t.IsZero() && !t.Before(since) {
				*t = t.Add(d)
				s.dirty = true
			}
		}
	}
}

// Flush writes what has been used, if anything has.
func (s *Vouchers) Flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.dirty {
		return nil
	}
	return s.saveLocked(s.all)
}
