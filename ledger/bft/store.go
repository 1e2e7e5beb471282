//go:build engine

package bft

import (
	"fmt"

	dbm "github.com/cosmos/cosmos-db"
	"github.com/cosmos/iavl"
	iavldb "github.com/cosmos/iavl/db"
)

// cacheNodes is how many nodes of the tree are kept in memory: some 200 bytes each.
const cacheNodes = 20_000

// openTree opens the tree in a database at its newest version. There is no fast index: it would double what is written, and the
// tree of a community is some 17 levels deep at most.
func openTree(db dbm.DB) (*iavl.MutableTree, error) {
	t := iavl.NewMutableTree(iavldb.NewWrapper(db), cacheNodes, true, iavl.NewNopLogger())
	if _, err := t.Load(); err != nil {
		return nil, fmt.Errorf("open the ledger's state: %w; when it is damaged, move the data folder away and begin from a snapshot", err)
	}
	return t, nil
}

// reader is what both kinds of tree can do.
type reader interface {
	Get(key []byte) ([]byte, error)
	Iterator(start, end []byte, ascending bool) (iavldb.Iterator, error)
}

// view is a ledger.Store that cannot be written to.
type view struct{ t reader }

// A store cannot return errors: one that cannot be read or written must stop the engine rather than let it go on with another
// state than everybody else's.
func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("the ledger's state cannot be read or written: %v", err))
	}
}

func (v view) Get(key []byte) []byte {
	b, err := v.t.Get(key)
	must(err)
	return b
}

func (v view) Set(key, _ []byte) { panic(fmt.Sprintf("a write to a past state, key %x", key)) }

func (v view) Scan(prefix []byte, f func(key, value []byte) bool) {
	v.scan(prefix, prefix, f)
}

// scan begins at start, which has the prefix.
func (v view) scan(prefix, start []byte, f func(key, value []byte) bool) {
	if len(start) == 0 {
		start = nil
	}
	it, err := v.t.Iterator(start, after(prefix), true)
	must(err)
	defer it.Close()
	for ; it.Valid(); it.Next() {
		if !f(it.Key(), it.Value()) {
			return
		}
	}
	must(it.Error())
}

// after is the first key behind all that have the prefix; nil when there is none.
func after(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			end := append([]byte(nil), prefix[:i+1]...)
			end[i]++
			return end
		}
	}
	return nil
}

// working is the ledger.Store on the working tree. The tree's shape, and so its root, depends on the order of writes; it is the
// order in which package ledger makes them.
type working struct {
	view
	tree *iavl.MutableTree
}

func newWorking(t *iavl.MutableTree) working { return working{view{t}, t} }

func (w working) Set(key, value []byte) {
	if len(value) == 0 {
		_, _, err := w.tree.Remove(key)
		must(err)
		return
	}
	_, err := w.tree.Set(key, value)
	must(err)
}
