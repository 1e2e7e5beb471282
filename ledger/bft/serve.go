//go:build engine

package bft

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
	"github.com/cometbft/cometbft/mempool"
	"github.com/cometbft/cometbft/p2p"

	"weft/ident"
	"weft/ledger/bft/bftclient"
	"weft/ledger/tx"
)

// abciUpdate is a change of a validator as Comet has it.
type abciUpdate = abci.ValidatorUpdate

// Bounds of the socket. Who may open it is the owner's programs.
const (
	maxWaiting = 10 * time.Minute // for a block
	pageBytes  = 8 << 20
	pageBlocks = 1000
)

// serve answers bftclient until ctx ends.
func (e *engine) serve(ctx context.Context) error {
	path := filepath.Join(e.cfg.Dir, bftclient.Socket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) { // of an engine that was killed: the folder is ours
		return fmt.Errorf("open the ledger's socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("open the ledger's socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return errors.Join(err, l.Close())
	}
	s := &http.Server{Handler: e.handler(), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx }}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	err = s.Close()
	<-done
	return err
}

// refusal is an answer with a status of HTTP.
type refusal struct {
	status int
	error
}

func bad(err error) error { return refusal{http.StatusBadRequest, err} }

func (e *engine) handler() http.Handler {
	m := http.NewServeMux()
	handle := func(pattern string, f func(*http.Request) (any, error)) {
		m.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			out, err := f(r)
			if err != nil {
				status := http.StatusInternalServerError
				var x refusal
				if errors.As(err, &x) {
					status = x.status
				}
				http.Error(w, err.Error(), status)
				return
			}
			if b, ok := out.([]byte); ok {
				w.Header().Set("Content-Type", "application/octet-stream")
				_, _ = w.Write(b)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(out)
		})
	}
	handle("GET /status", func(*http.Request) (any, error) { return e.status(), nil })
	handle("GET /genesis", func(*http.Request) (any, error) { return tx.Encode(&e.genesis), nil })
	handle("POST /tx", func(r *http.Request) (any, error) {
		raw, err := io.ReadAll(io.LimitReader(r.Body, MaxTxBytes+1))
		if err != nil {
			return nil, bad(err)
		}
		return e.submit(r.Context(), raw, r.URL.Query().Get("wait") != "")
	})
	handle("GET /result", func(r *http.Request) (any, error) {
		var h bftclient.Hash
		if err := h.UnmarshalText([]byte(r.URL.Query().Get("hash"))); err != nil {
			return nil, bad(err)
		}
		res, _, err := e.app.index.result(h)
		res.Hash = h
		return res, err
	})
	handle("GET /get", func(r *http.Request) (any, error) {
		q := r.URL.Query()
		key, err := hex.DecodeString(q.Get("key"))
		height, err2 := number(q.Get("height"))
		if err := errors.Join(err, err2); err != nil {
			return nil, bad(err)
		}
		prove := q.Get("prove") != ""
		if prove && height == 0 {
			height = max(e.node.BlockStore().Height()-1, 1) // the newest state whose root is in a signed header
		}
		v, err := e.app.get(key, height, prove)
		if err != nil {
			return nil, refusal{http.StatusNotFound, err}
		}
		return v, nil
	})
	handle("GET /scan", func(r *http.Request) (any, error) {
		q := r.URL.Query()
		prefix, err := hex.DecodeString(q.Get("prefix"))
		behind, err2 := hex.DecodeString(q.Get("behind"))
		height, err3 := number(q.Get("height"))
		limit, err4 := number(q.Get("limit"))
		if err := errors.Join(err, err2, err3, err4); err != nil {
			return nil, bad(err)
		}
		p, err := e.app.scan(prefix, behind, int(min(limit, maxPage)), height)
		if err != nil {
			return nil, refusal{http.StatusNotFound, err}
		}
		return p, nil
	})
	handle("GET /light", func(r *http.Request) (any, error) {
		height, err := number(r.URL.Query().Get("height"))
		if err != nil {
			return nil, bad(err)
		}
		lb, err := e.lightBlock(height)
		if err != nil {
			return nil, refusal{http.StatusNotFound, err}
		}
		return encodeLight(lb)
	})
	handle("GET /blocks", func(r *http.Request) (any, error) {
		from, err := number(r.URL.Query().Get("from"))
		to, err2 := number(r.URL.Query().Get("to"))
		if err := errors.Join(err, err2); err != nil {
			return nil, bad(err)
		}
		return e.blocks(from, to), nil
	})
	handle("GET /postings", func(r *http.Request) (any, error) {
		q := r.URL.Query()
		from, err := number(q.Get("from"))
		limit, err2 := number(q.Get("limit"))
		if err := errors.Join(err, err2); err != nil {
			return nil, bad(err)
		}
		return e.app.index.postings(q.Get("account"), from, int(min(limit, maxPage)))
	})
	handle("POST /peers", func(r *http.Request) (any, error) {
		q := r.URL.Query()
		var err error
		if p := q.Get("add"); p != "" {
			err = e.setPeer(p, true)
		}
		if p := q.Get("remove"); p != "" && err == nil {
			err = e.setPeer(p, false)
		}
		if id := q.Get("follow"); id != "" && err == nil {
			if !engineID.MatchString(id) {
				return nil, bad(fmt.Errorf("%q is no engine's id", id))
			}
			var on ident.PublicKey
			if err := on.UnmarshalText([]byte(q.Get("on"))); q.Has("on") && err != nil {
				return nil, bad(err)
			}
			if err := e.follow(p2p.ID(id), on, time.Now()); err != nil {
				return nil, refusal{http.StatusServiceUnavailable, err}
			}
		}
		if err != nil {
			return nil, bad(err)
		}
		return struct{}{}, nil
	})
	return m
}

var engineID = regexp.MustCompile(`^[0-9a-f]{40}$`)

func number(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err == nil && n < 0 {
		err = fmt.Errorf("%d is negative", n)
	}
	return n, err
}

// submit hands a transaction to the mempool, and waits for its block if asked to.
func (e *engine) submit(ctx context.Context, raw []byte, wait bool) (bftclient.Result, error) {
	hash := tx.Hash(raw)
	if len(raw) > MaxTxBytes {
		return bftclient.Result{Hash: hash, Code: 1, Text: fmt.Sprintf("a transaction has at most %d bytes", MaxTxBytes)}, nil
	}
	final, forget := e.app.await(hash)
	defer forget()
	judged := make(chan *abci.ResponseCheckTx, 1)
	err := e.node.Mempool().CheckTx(raw, func(r *abci.ResponseCheckTx) { judged <- r }, mempool.TxInfo{})
	switch {
	case errors.Is(err, mempool.ErrTxInCache): // it waits, or was in a block lately
		if r, ok, err := e.app.index.result(hash); err != nil || ok {
			return r, err
		}
		if !wait {
			return bftclient.Result{Hash: hash}, nil
		}
	case err != nil:
		return bftclient.Result{}, refusal{http.StatusServiceUnavailable, fmt.Errorf("the engine takes no transactions now: %w", err)}
	default:
		select {
		case r := <-judged:
			res := bftclient.Result{Hash: hash, Code: r.Code, Text: r.Log, Data: r.Data}
			if r.Code != 0 {
				// Perhaps it is refused because it is in a block already: then that counts.
				if old, ok, err := e.app.index.result(hash); err != nil || ok {
					return old, err
				}
				return res, nil
			}
			if !wait {
				return res, nil
			}
		case <-ctx.Done():
			return bftclient.Result{}, ctx.Err()
		}
	}
	ctx, cancel := context.WithTimeout(ctx, maxWaiting)
	defer cancel()
	select {
	case r := <-final:
		return r, nil
	case <-ctx.Done():
		return bftclient.Result{}, refusal{http.StatusGatewayTimeout, errors.New("no block has it yet; ask for its result later")}
	}
}

// blocks returns blocks in a row.
func (e *engine) blocks(from, to int64) bftclient.Blocks {
	store := e.node.BlockStore()
	out := bftclient.Blocks{From: store.Base(), To: store.Height(), List: []bftclient.Block{}}
	if to == 0 || to > out.To {
		to = out.To
	}
	size := 0
	for h := max(from, out.From, 1); h <= to && len(out.List) < pageBlocks && size < pageBytes; h++ {
		b := store.LoadBlock(h)
		if b == nil {
			break // pruned meanwhile
		}
		x := bftclient.Block{Height: h, Time: b.Time.Unix(), Hash: bftclient.Hash(b.Hash()), AppHash: b.AppHash, Proposer: b.ProposerAddress, Txs: b.Txs.ToSliceOfBytes()}
		for _, m := range b.Evidence.Evidence.ToABCI() {
			x.Evidence = append(x.Evidence, bftclient.Evidence{Validator: m.Validator.Address, Height: m.Height})
		}
		size += b.Size()
		out.List = append(out.List, x)
	}
	return out
}
