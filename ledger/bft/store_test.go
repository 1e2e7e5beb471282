//go:build engine

package bft

import (
	"bytes"
	"testing"

	abci "github.com/cometbft/cometbft/abci/types"
	dbm "github.com/cosmos/cosmos-db"
	"github.com/cosmos/iavl"
	"pgregory.net/rapid"

	"weft/ledger"
)

// The tree is a store like the one in memory, and its snapshot is the same tree.
func TestStoreAgainstMem(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tree, err := openTree(dbm.NewMemDB())
		if err != nil {
			t.Fatal(err)
		}
		var s ledger.Store = newWorking(tree)
		m := ledger.NewMem()
		keys := rapid.SampledFrom([]string{"a", "aa", "ab", "b", "b\xff", "b\xff\xff", "\xff", "\xff\xff", "c"})
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			k := []byte(keys.Draw(t, "key"))
			switch rapid.IntRange(0, 4).Draw(t, "op") {
			case 0:
				s.Set(k, nil)
				m.Set(k, nil)
			case 1:
				if _, _, err := tree.SaveVersion(); err != nil {
					t.Fatal(err)
				}
			default:
				v := []byte(rapid.StringN(1, 5, -1).Draw(t, "value"))
				s.Set(k, v)
				m.Set(k, v)
			}
			if !bytes.Equal(s.Get(k), m.Get(k)) {
				t.Fatalf("%q is %q, want %q", k, s.Get(k), m.Get(k))
			}
			for _, p := range []string{"", "a", "b", "b\xff", "\xff", "x"} {
				var got, want []string
				s.Scan([]byte(p), func(k, v []byte) bool { got = append(got, string(k)+"="+string(v)); return len(got) < 4 })
				m.Scan([]byte(p), func(k, v []byte) bool { want = append(want, string(k)+"="+string(v)); return len(want) < 4 })
				if len(got) != len(want) {
					t.Fatalf("scan %q: %q, want %q", p, got, want)
				}
				for i := range got {
					if got[i] != want[i] {
						t.Fatalf("scan %q: %q, want %q", p, got, want)
					}
				}
			}
		}
		_, v, err := tree.SaveVersion()
		if err != nil {
			t.Fatal(err)
		}
		if tree.Size() == 0 {
			return
		}
		it, err := tree.GetImmutable(v)
		if err != nil {
			t.Fatal(err)
		}
		ex, err := it.Export()
		if err != nil {
			t.Fatal(err)
		}
		defer ex.Close()
		var b []byte
		for n, err := ex.Next(); err == nil; n, err = ex.Next() {
			b = appendNode(b, n)
		}
		other, err := openTree(dbm.NewMemDB())
		if err != nil {
			t.Fatal(err)
		}
		in, err := other.Import(v)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		r := restore{meta: snapshotOf(v), in: in}
		for len(b) > 0 { // in pieces of any size
			n := min(rapid.IntRange(1, 40).Draw(t, "piece"), len(b))
			if err := r.add(b[:n]); err != nil {
				t.Fatal(err)
			}
			b = b[n:]
		}
		if err := in.Commit(); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Load(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(tree.Hash(), other.Hash()) {
			t.Fatalf("root %x after a snapshot, %x before", other.Hash(), tree.Hash())
		}
	})
}

// Whatever a peer sends as a snapshot or a light block does no harm; a node that can be read is written as it was.
func FuzzSnapshot(f *testing.F) {
	f.Add(appendNode(nil, &iavl.ExportNode{Key: []byte("k"), Value: []byte("v"), Version: 1}))
	f.Add(appendNode(appendNode(appendNode(nil, &iavl.ExportNode{Key: []byte("a"), Value: []byte("1"), Version: 1}),
		&iavl.ExportNode{Key: []byte("b"), Value: []byte("2"), Version: 1}), &iavl.ExportNode{Key: []byte("b"), Version: 1, Height: 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, rest, err := takeNode(b); err == nil && n != nil && !bytes.Equal(appendNode(nil, n), b[:len(b)-len(rest)]) {
			t.Fatalf("%x is written as %x", b, appendNode(nil, n))
		}
		tree, err := openTree(dbm.NewMemDB())
		if err != nil {
			t.Fatal(err)
		}
		in, err := tree.Import(3)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		r := restore{meta: snapshotOf(3), in: in}
		_ = r.add(b)
		_, _ = decodeLight(b)
	})
}

func snapshotOf(height int64) *abci.Snapshot { return &abci.Snapshot{Height: uint64(height)} }
