package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// The state file: what a process has changed and the kernel does not take back by itself.

const sysctlRoot = "/proc/sys/"

// maxState bounds what is read of a state file; a real one has some hundred bytes.
const maxState = 1 << 20

type change struct {
	Key string `json:"key"` // below /proc/sys
	Old string `json:"old"`
	New string `json:"new"`
}

type poolRoute struct {
	Dst netip.Prefix `json:"dst"`
	Dev string       `json:"dev"`
}

type stateFile struct {
	Version int         `json:"version"`
	Boot    string      `json:"boot"` // of /proc/sys/kernel/random/boot_id: sysctls live as long
	Tables  []string    `json:"tables,omitempty"`
	Routes  []poolRoute `json:"routes,omitempty"`
	Sysctls []change    `json:"sysctls,omitempty"`
	// Keep holds what the kernel overwrites while one of Sysctls is being written; it is not empty only for that moment.
	Keep map[string]string `json:"keep,omitempty"`
}

// journal is an open state file.
type journal struct {
	path string

	mu sync.Mutex
	s  stateFile
}

func bootID() string {
	s, _ := readSysctl("kernel/random/boot_id")
	return s
}

func newJournal(path string) *journal {
	return &journal{path: path, s: stateFile{Version: 1, Boot: bootID()}}
}

// loadJournal returns nil when there is no file.
func loadJournal(path string) (*journal, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what to restore: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read what to restore: %w", err)
	}
	b := make([]byte, min(st.Size(), maxState))
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("read what to restore: %w", err)
	}
	s, err := parseState(b)
	if err != nil {
		return nil, fmt.Errorf("read what to restore from %s: %w (look at the sysctls that it names, then delete it)", path, err)
	}
	return &journal{path: path, s: s}, nil
}

// parseState checks what it reads: nothing but network sysctls is ever written because of this file.
func parseState(b []byte) (stateFile, error) {
	var s stateFile
	if err := json.Unmarshal(b, &s); err != nil {
		return s, err
	}
	if s.Version != 1 {
		return s, fmt.Errorf("version %d is not known", s.Version)
	}
	keys := slices.Collect(maps.Keys(s.Keep))
	for _, c := range s.Sysctls {
		keys = append(keys, c.Key)
	}
	for _, k := range keys {
		if !strings.HasPrefix(k, "net/ipv4/conf/") && !strings.HasPrefix(k, "net/ipv6/conf/") || !filepath.IsLocal(k) || filepath.Clean(k) != k {
			return s, fmt.Errorf("%q is not a sysctl of ours", k)
		}
	}
	for _, t := range s.Tables {
		if !strings.HasPrefix(t, "weft-") {
			return s, fmt.Errorf("%q is not a table of ours", t)
		}
	}
	for _, r := range s.Routes {
		if !r.Dst.IsValid() {
			return s, errors.New("a route without a destination")
		}
	}
	return s, nil
}

// saveLocked replaces the file as a whole, and returns when it is on the disk.
func (j *journal) saveLocked() error {
	b, err := json.MarshalIndent(&j.s, "", "\t")
	if err != nil {
		return fmt.Errorf("write what to restore: %w", err)
	}
	if err := writeSynced(j.path, append(b, '\n')); err != nil {
		return fmt.Errorf("write what to restore: %w", err)
	}
	return nil
}

func writeSynced(path string, b []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it has its name
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// note records a table or a route before it is made.
func (j *journal) note(table string, routes ...poolRoute) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if table != "" && !slices.Contains(j.s.Tables, table) {
		j.s.Tables = append(j.s.Tables, table)
	}
	j.s.Routes = append(j.s.Routes, routes...)
	return j.saveLocked()
}

// set writes a sysctl after recording its old value. was, when not empty, is the value that the owner of the host had chosen, where that is
// not the present one.
func (j *journal) set(key, val, was string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	old, err := readSysctl(key)
	if err != nil {
		return err
	}
	if was == "" {
		was = old
	}
	if was == val {
		return nil
	}
	if !slices.ContainsFunc(j.s.Sysctls, func(c change) bool { return c.Key == key }) {
		j.s.Sysctls = append(j.s.Sysctls, change{key, was, val})
		if err := j.saveLocked(); err != nil {
			return err
		}
	}
	if old == val {
		return nil
	}
	return j.writeLocked(key, val)
}

// undo puts all back, last change first, except for what others still need, which is forgotten: they have recorded it too. Then the file
// goes. An error leaves the file with what is left to do.
func (j *journal) undo(needed func(key string) bool) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	var errs []error
	if j.s.Boot == bootID() {
		keep := maps.Clone(j.s.Keep)
		var left []change
		for _, c := range slices.Backward(j.s.Sysctls) {
			if needed != nil && needed(c.Key) {
				continue
			}
			now, err := readSysctl(c.Key)
			if errors.Is(err, fs.ErrNotExist) || err == nil && now != c.New {
				continue // the interface is gone, or somebody has decided otherwise
			}
			if err == nil {
				err = j.writeLocked(c.Key, c.Old)
			}
			if err != nil {
				left, errs = append(left, c), append(errs, err)
			}
		}
		for k, v := range keep {
			if err := writeSysctl(k, v); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		slices.Reverse(left)
		j.s.Sysctls = left
	}
	if len(errs) > 0 {
		return errors.Join(append(errs, j.saveLocked())...)
	}
	if err := os.Remove(j.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget what was restored: %w", err)
	}
	return nil
}

func readSysctl(key string) (string, error) {
	b, err := os.ReadFile(sysctlRoot + key)
	if err != nil {
		return "", fmt.Errorf("read sysctl: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func writeSysctl(key, val string) error {
	f, err := os.OpenFile(sysctlRoot+key, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("set sysctl to %s: %w (in a container, /proc/sys may be read-only: set it outside)", val, err)
	}
	_, err = f.WriteString(val)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("set sysctl %s to %s: %w", key, val, err)
	}
	return nil
}

// forwardAll6 is the one sysctl whose writing overwrites others.
const forwardAll6 = "net/ipv6/conf/all/forwarding"

// writeLocked writes a sysctl. net.ipv6.conf.all.forwarding sets that of every interface, and forgets the default routes that came by router
// advertisement where accept_ra is 1 (linux/net/ipv6/addrconf.c, addrconf_fixup_forwarding). All that we want of it is that the
// kernel forwards, so the interfaces get back what they had: they stay hosts where they were, and hear advertisements.
func (j *journal) writeLocked(key, val string) error {
	if key != forwardAll6 {
		return writeSysctl(key, val)
	}
	dirs, err := os.ReadDir(sysctlRoot + "net/ipv6/conf")
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	keep := map[string]string{}
	var hearing []string
	for _, d := range dirs {
		if d.Name() == "all" {
			continue
		}
		at := "net/ipv6/conf/" + d.Name() + "/"
		fwd, err1 := readSysctl(at + "forwarding")
		ra, err2 := readSysctl(at + "accept_ra")
		if err1 != nil || err2 != nil {
			continue // gone meanwhile
		}
		keep[at+"forwarding"], keep[at+"accept_ra"] = fwd, ra
		if fwd == "0" && ra == "1" {
			hearing = append(hearing, at+"accept_ra")
		}
	}
	maps.Copy(keep, j.s.Keep) // of a process that was killed right here
	j.s.Keep = keep
	if err := j.saveLocked(); err != nil {
		return err
	}
	gone := func(err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	var errs []error
	for _, k := range hearing {
		errs = append(errs, gone(writeSysctl(k, "2")))
	}
	errs = append(errs, writeSysctl(key, val))
	for _, what := range []string{"/forwarding", "/accept_ra"} { // the first decides how the second is understood
		for k, v := range keep {
			if strings.HasSuffix(k, what) {
				errs = append(errs, gone(writeSysctl(k, v)))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	j.s.Keep = nil
	return j.saveLocked()
}
