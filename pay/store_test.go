package pay

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func mustFile(t testing.TB, dir string) *File {
	t.Helper()
	f, err := OpenFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func all(t testing.TB, s Store, prefix string) map[string]string {
	t.Helper()
	m := map[string]string{}
	if err := s.Scan([]byte(prefix), func(k, v []byte) error { m[string(k)] = string(v); return nil }); err != nil {
		t.Fatal(err)
	}
	return m
}

// The file does what the store in memory does.
func TestFile(t *testing.T) {
	dir := t.TempDir()
	f, mem := mustFile(t, dir), &memory{m: map[string][]byte{}}
	rng := rand.New(rand.NewPCG(5, 6))
	for range 40 {
		var batch []Entry
		for range 1 + rng.IntN(6) {
			e := Entry{Key: []byte{"abc"[rng.IntN(3)], byte(rng.IntN(5))}}
			if rng.IntN(4) > 0 {
				e.Value = bytes.Repeat([]byte{byte(rng.Uint32())}, 1+rng.IntN(300))
			}
			batch = append(batch, e)
		}
		if err := errors.Join(f.Write(batch), mem.Write(batch)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = mustFile(t, dir)
	for _, prefix := range []string{"", "a", "b", "d"} {
		got, want := all(t, f, prefix), all(t, mem, prefix)
		if len(got) != len(want) {
			t.Errorf("%q: %d records, want %d", prefix, len(got), len(want))
		}
		for k, v := range want {
			if got[k] != v {
				t.Errorf("%q: record %x differs", prefix, k)
			}
		}
	}
	if _, err := OpenFile(dir); err == nil || !strings.Contains(err.Error(), "another node") {
		t.Errorf("opened twice: %v", err)
	}
}

// A spoilt file is an error that says so: no debt is forgotten behind the owner's back, and nothing panics.
func TestDamagedFile(t *testing.T) {
	dir := t.TempDir()
	f := mustFile(t, dir)
	want := map[string]string{}
	for i := range 50 {
		k, v := []byte{'x', byte(i)}, bytes.Repeat([]byte{byte(i)}, 200)
		want[string(k)] = string(v)
		if err := f.Write([]Entry{{k, v}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, FileName))
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(7, 8))
	found := 0
	for i := range 150 {
		bad := bytes.Clone(good)
		switch i {
		case 0:
			bad = bad[:len(bad)/2]
		case 1:
			clear(bad)
		default:
			at := rng.IntN(len(bad))
			for j := range 1 + rng.IntN(64) {
				bad[(at+j)%len(bad)] ^= byte(1 + rng.IntN(255))
			}
		}
		d := t.TempDir()
		if err := os.WriteFile(filepath.Join(d, FileName), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := OpenFile(d)
		if err != nil {
			found++
			continue
		}
		got := map[string]string{}
		if err := f.Scan(nil, func(k, v []byte) error { got[string(k)] = string(v); return nil }); err != nil {
			found++
		} else {
			for k, v := range got {
				if want[k] != v {
					t.Errorf("record %x was spoilt and nobody noticed", k)
				}
			}
		}
		f.Close()
	}
	t.Logf("%d of 150 were found", found)
}
