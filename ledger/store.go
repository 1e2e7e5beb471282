package ledger

import (
	"bytes"
	"slices"
	"sort"
	"strings"
)

// Store is an ordered key-value store. Values are not changed by either side after they were handed over. An empty value is
// none: Set(k, nil) deletes.
type Store interface {
	Get(key []byte) []byte
	Set(key, value []byte)
	// Scan calls f for each key with the prefix, in order, until f returns false. f does not write.
	Scan(prefix []byte, f func(key, value []byte) bool)
}

// Mem is a Store in memory, for tests and for replaying a chain.
type Mem struct {
	keys   []string // sorted
	values map[string][]byte
}

// NewMem returns an empty store.
func NewMem() *Mem { return &Mem{values: map[string][]byte{}} }

func (m *Mem) Get(key []byte) []byte { return m.values[string(key)] }

func (m *Mem) Set(key, value []byte) {
	k := string(key)
	_, had := m.values[k]
	at, _ := slices.BinarySearch(m.keys, k)
	switch {
	case len(value) == 0 && had:
		delete(m.values, k)
		m.keys = slices.Delete(m.keys, at, at+1)
	case len(value) == 0:
	case had:
		m.values[k] = value
	default:
		m.values[k] = value
		m.keys = slices.Insert(m.keys, at, k)
	}
}

func (m *Mem) Scan(prefix []byte, f func(key, value []byte) bool) {
	p := string(prefix)
	for i := sort.SearchStrings(m.keys, p); i < len(m.keys) && strings.HasPrefix(m.keys[i], p); i++ {
		if !f([]byte(m.keys[i]), m.values[m.keys[i]]) {
			return
		}
	}
}

// Clone returns a copy that shares no state.
func (m *Mem) Clone() *Mem {
	c := &Mem{keys: slices.Clone(m.keys), values: make(map[string][]byte, len(m.values))}
	for _, k := range m.keys {
		c.values[k] = m.values[k]
	}
	return c
}

// Equal compares two stores and names the first key that differs.
func (m *Mem) Equal(o *Mem) (string, bool) {
	for i, k := range m.keys {
		if i >= len(o.keys) || o.keys[i] != k {
			return k, false
		}
		if !bytes.Equal(m.values[k], o.values[k]) {
			return k, false
		}
	}
	if len(o.keys) > len(m.keys) {
		return o.keys[len(m.keys)], false
	}
	return "", true
}

// overlay keeps writes apart from the store below until flush, which makes them in the order of the keys: an IAVL tree's
// hash depends on the order of writes, so it must be the same everywhere.
type overlay struct {
	below Store
	Mem        // what was written; deletions are in gone
	gone  *Mem // keys deleted, with a value of one byte
}

func newOverlay(below Store) *overlay { return &overlay{below: below, Mem: *NewMem(), gone: NewMem()} }

func (o *overlay) Get(key []byte) []byte {
	if v := o.Mem.Get(key); v != nil {
		return v
	}
	if o.gone.Get(key) != nil {
		return nil
	}
	return o.below.Get(key)
}

func (o *overlay) Set(key, value []byte) {
	o.Mem.Set(key, value)
	if len(value) == 0 {
		o.gone.Set(key, []byte{1})
	} else {
		o.gone.Set(key, nil)
	}
}

// Scan merges the two layers.
func (o *overlay) Scan(prefix []byte, f func(key, value []byte) bool) {
	p := string(prefix)
	i := sort.SearchStrings(o.keys, p)
	mine := func(before []byte) bool { // own keys before a key of the layer below; nil: all that are left
		for ; i < len(o.keys) && strings.HasPrefix(o.keys[i], p) && (before == nil || o.keys[i] < string(before)); i++ {
			if !f([]byte(o.keys[i]), o.values[o.keys[i]]) {
				return false
			}
		}
		return true
	}
	more := true
	o.below.Scan(prefix, func(k, v []byte) bool {
		if more = mine(k); !more {
			return false
		}
		if i < len(o.keys) && o.keys[i] == string(k) || o.gone.Get(k) != nil {
			return true // written over, or gone; the former comes with the next own key
		}
		more = f(k, v)
		return more
	})
	if more {
		mine(nil)
	}
}

// flush writes to the layer below, in the order of the keys.
func (o *overlay) flush() {
	i, j := 0, 0
	for i < len(o.keys) || j < len(o.gone.keys) {
		if j == len(o.gone.keys) || i < len(o.keys) && o.keys[i] < o.gone.keys[j] {
			o.below.Set([]byte(o.keys[i]), o.values[o.keys[i]])
			i++
		} else {
			if k := []byte(o.gone.keys[j]); o.below.Get(k) != nil {
				o.below.Set(k, nil)
			}
			j++
		}
	}
	o.Mem, o.gone = *NewMem(), NewMem()
}
