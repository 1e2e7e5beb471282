package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"weft/ident"
)

// LogConfig says what is kept of leases: times and keys, never where anybody went.
type LogConfig struct {
	File string // "": memory only
	Days int    // kept in the file; 0: there is no file
}

// LeaseTime is who had a lease when.
type LeaseTime struct {
	Key   ident.PublicKey `json:"key"`
	From  time.Time       `json:"from"`
	Until time.Time       `json:"until,omitzero"` // zero: still
}

const (
	logRing    = 256
	logWaiting = 1 << 20 // bytes that may wait for a disk
	pruneEvery = 6 * time.Hour
)

// leaseLog keeps the last leases in memory, and in a file of lines "FROM UNTIL KEY", where UNTIL is - when a lease begins.
type leaseLog struct {
	cfg LogConfig

	mu     sync.Mutex
	ring   []LeaseTime
	lines  []byte // not written yet
	pruned time.Time
	now    time.Time // of a pruning that is due; zero: none
	failed error     // of the last write
	limit  *rate.Limiter
}

func newLeaseLog(c LogConfig) (*leaseLog, error) {
	if c.Days < 0 || c.Days > 3660 {
		return nil, fmt.Errorf("lease log of %d days: from 0 (none) to 3660 are possible", c.Days)
	}
	return &leaseLog{cfg: c, limit: rate.NewLimiter(1, 4*DefaultMaxLeases)}, nil
}

func (l *leaseLog) kept() bool { return l.cfg.File != "" && l.cfg.Days > 0 }

func (l *leaseLog) lineLocked(from, until time.Time, key ident.PublicKey) {
	// Whoever takes and returns leases all day must not fill the disk: 8 MB a day at most.
	if !l.kept() || len(l.lines) > logWaiting || !l.limit.Allow() {
		return
	}
	end := "-"
	if !until.IsZero() {
		end = until.UTC().Format(time.RFC3339)
	}
	l.lines = fmt.Appendf(l.lines, "%s %s %s\n", from.UTC().Format(time.RFC3339), end, key)
}

func (l *leaseLog) begin(key ident.PublicKey, from time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lineLocked(from, time.Time{}, key)
}

func (l *leaseLog) end(key ident.PublicKey, from, until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lineLocked(from, until, key)
	if len(l.ring) == logRing {
		l.ring = append(l.ring[:0], l.ring[1:]...)
	}
	l.ring = append(l.ring, LeaseTime{key, from, until})
}

// prune asks for what is too old to be removed with the next flush.
func (l *leaseLog) prune(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.kept() && (l.pruned.IsZero() || now.Sub(l.pruned) >= pruneEvery) {
		l.pruned, l.now = now, now
	}
}

// flush writes what waits. It is called with no lock of the Gateway held, for a disk may be slow.
func (l *leaseLog) flush() {
	l.mu.Lock()
	lines, now := l.lines, l.now
	l.lines, l.now = nil, time.Time{}
	l.mu.Unlock()
	var err error
	if len(lines) > 0 {
		err = l.write(lines)
	}
	if err == nil && !now.IsZero() {
		err = l.removeOld(now.AddDate(0, 0, -l.cfg.Days))
	}
	if len(lines) > 0 || !now.IsZero() {
		l.mu.Lock()
		l.failed = err
		l.mu.Unlock()
	}
}

func (l *leaseLog) write(lines []byte) error {
	f, err := os.OpenFile(l.cfg.File, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the lease log: %w", err)
	}
	_, err = f.Write(lines)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the lease log: %w", err)
	}
	return nil
}

// removeOld rewrites the file without the leases that ended, or of which nothing else is known than that they began, before a time.
func (l *leaseLog) removeOld(before time.Time) error {
	b, err := os.ReadFile(l.cfg.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("read the lease log: %w", err)
	}
	var keep []byte
	for line := range bytes.Lines(b) {
		w := bytes.Fields(line)
		if len(w) != 3 {
			continue
		}
		at := w[1]
		if string(at) == "-" {
			at = w[0]
		}
		if t, err := time.Parse(time.RFC3339, string(at)); err == nil && !t.Before(before) {
			keep = append(keep, line...)
		}
	}
	if len(keep) == len(b) {
		return nil
	}
	tmp := l.cfg.File + ".new"
	if err := os.WriteFile(tmp, keep, 0o600); err != nil {
		return fmt.Errorf("rewrite the lease log: %w", err)
	}
	if err := os.Rename(tmp, l.cfg.File); err != nil {
		return fmt.Errorf("rewrite the lease log: %w", err)
	}
	return nil
}

// last returns the leases that ended, oldest first, and what is wrong with the file.
func (l *leaseLog) last() ([]LeaseTime, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]LeaseTime(nil), l.ring...), l.failed
}
