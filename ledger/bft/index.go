//go:build engine

package bft

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	dbm "github.com/cosmos/cosmos-db"

	"weft/ledger"
	"weft/ledger/bft/bftclient"
	"weft/ledger/tx"
)

// index holds what people ask for and the state does not need: postings by account for statements, and what became of each
// transaction. It is derived from blocks alone; package ledger executes them again to rebuild it (App.reindex).
//
//	h                            height up to which it goes, 8; height from which it goes, 8
//	p account 0 height 8 n 4     a posting, JSON
//	r hash 32                    a result, JSON
type index struct{ db dbm.DB }

func openIndex(dir string) (*index, error) {
	db, err := dbm.NewGoLevelDB("index", filepath.Clean(dir), nil)
	if err != nil {
		return nil, fmt.Errorf("open the index of postings: %w", err)
	}
	return &index{db}, nil
}

func (x *index) close() error { return x.db.Close() }

// span returns the heights that are in the index; 0, 0 when it is empty.
func (x *index) span() (from, to int64, err error) {
	b, err := x.db.Get([]byte{'h'})
	if err != nil || len(b) != 16 {
		return 0, 0, err
	}
	return int64(binary.BigEndian.Uint64(b[8:])), int64(binary.BigEndian.Uint64(b)), nil
}

func postingKey(account string, height int64, n uint32) []byte {
	k := append(append([]byte{'p'}, account...), 0)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(k, uint64(height)), n)
}

// add writes a block's postings and results. Writing a block twice changes nothing.
func (x *index) add(b block) ([]bftclient.Result, error) {
	w := x.db.NewBatch()
	defer w.Close()
	var results []bftclient.Result
	for i, p := range b.out.Postings {
		j, err := json.Marshal(bftclient.Posting{Height: p.Height, Time: p.Time, Tx: p.Tx, Account: p.Account, Amount: p.Amount, Memo: p.Memo})
		if err != nil {
			return nil, err
		}
		if strings.IndexByte(p.Account, 0) >= 0 {
			return nil, fmt.Errorf("an account has the name %q", p.Account)
		}
		if err := w.Set(postingKey(p.Account, b.Height, uint32(i)), j); err != nil {
			return nil, err
		}
	}
	for i, t := range b.out.Results {
		h := tx.Hash(b.txs[i])
		r := resultOf(t)
		r.Hash, r.Height, r.Index = h, b.Height, i
		results = append(results, r)
		if t.Code == ledger.CodeNonce || t.Code == ledger.CodeMalform {
			if known, err := x.db.Has(append([]byte{'r'}, h[:]...)); err != nil || known {
				continue // a repetition: what became of it the first time counts
			}
		}
		j, err := json.Marshal(r)
		if err != nil {
			return nil, err
		}
		if err := w.Set(append([]byte{'r'}, h[:]...), j); err != nil {
			return nil, err
		}
	}
	from, to, err := x.span()
	if err != nil {
		return nil, err
	}
	if from == 0 || b.Height > to+1 {
		from = b.Height // what lies before a gap may be missing
	}
	span := binary.BigEndian.AppendUint64(nil, uint64(max(b.Height, to)))
	if err := w.Set([]byte{'h'}, binary.BigEndian.AppendUint64(span, uint64(from))); err != nil {
		return nil, err
	}
	if len(b.out.Postings)+len(results) > 0 {
		return results, w.WriteSync()
	}
	return results, w.Write()
}

func resultOf(r ledger.Result) bftclient.Result {
	return bftclient.Result{Code: uint32(r.Code), Text: r.Text, Data: r.Data}
}

// result returns what became of a transaction.
func (x *index) result(hash [32]byte) (bftclient.Result, bool, error) {
	var r bftclient.Result
	b, err := x.db.Get(append([]byte{'r'}, hash[:]...))
	if err != nil || b == nil {
		return r, false, err
	}
	return r, true, json.Unmarshal(b, &r)
}

// postings returns an account's postings from a height on. A page ends with a block's last posting, unless one block has more
// than a page.
func (x *index) postings(account string, from int64, limit int) (bftclient.Postings, error) {
	out := bftclient.Postings{}
	var err error
	if out.From, out.To, err = x.span(); err != nil {
		return out, err
	}
	if limit <= 0 || limit > maxPage {
		limit = maxPage
	}
	it, err := x.db.Iterator(postingKey(account, max(from, 0), 0), after(append(append([]byte{'p'}, account...), 0)))
	if err != nil {
		return out, err
	}
	defer it.Close()
	for ; it.Valid(); it.Next() {
		var p bftclient.Posting
		if err := json.Unmarshal(it.Value(), &p); err != nil {
			return out, err
		}
		if n := len(out.List); n >= limit && out.List[n-1].Height != p.Height || n >= 10*maxPage {
			out.Next = p.Height
			break
		}
		out.List = append(out.List, p)
	}
	return out, it.Error()
}
