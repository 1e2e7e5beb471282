// Package bftclient talks to the ledger's engine, which runs in a process of its own, and keeps that process running. Programs and
// rooms that want the ledger import this; it links nothing of CometBFT.
//
// [Client] is safe for concurrent use and starts no goroutine that outlives a call. [Supervise] runs until its context ends and
// waits for what it started.
package bftclient

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"time"

	"weft/ident"
)

// Socket is the name of the engine's socket in its data folder.
const Socket = "ledger.sock"

// maxAnswer bounds what is read of an answer: a page of blocks.
const maxAnswer = 64 << 20

// Client is a way to the engine in a data folder.
type Client struct{ http *http.Client }

// New returns a client; the engine need not run yet.
func New(dir string) *Client {
	path := filepath.Join(dir, Socket)
	return &Client{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
		MaxIdleConns: 4, IdleConnTimeout: 30 * time.Second,
	}}}
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Error is the engine's refusal of a question.
type Error struct {
	Status int // as in HTTP
	Text   string
}

func (e *Error) Error() string { return e.Text }

func (c *Client) do(ctx context.Context, method, path string, q url.Values, body []byte, out any) error {
	r, err := http.NewRequestWithContext(ctx, method, "http://ledger/"+path+"?"+q.Encode(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := c.http.Do(r)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return fmt.Errorf("the ledger does not run here: %w", err)
		}
		return fmt.Errorf("ask the ledger: %w", err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("ask the ledger: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		return &Error{res.StatusCode, string(bytes.TrimSpace(b))}
	}
	if raw, ok := out.(*[]byte); ok {
		*raw = b
		return nil
	}
	return json.Unmarshal(b, out)
}

func num(n int64) string { return strconv.FormatInt(n, 10) }

// Status tells how the engine does.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.do(ctx, "GET", "status", nil, nil, &s)
}

// Submit hands a signed transaction to the engine, which judges it and passes it on. A refusal is a Result with a code, not an
// error. Height is 0: it waits for a block.
func (c *Client) Submit(ctx context.Context, raw []byte) (r Result, err error) {
	return r, c.do(ctx, "POST", "tx", nil, raw, &r)
}

// Finalise is Submit, and then waits until the transaction is in a block, or ctx ends: then it may still get into one.
func (c *Client) Finalise(ctx context.Context, raw []byte) (r Result, err error) {
	return r, c.do(ctx, "POST", "tx", url.Values{"wait": {"1"}}, raw, &r)
}

// Result returns what became of a transaction, by its hash (tx.Hash); Height is 0 when no block of this engine's has it.
func (c *Client) Result(ctx context.Context, hash [32]byte) (r Result, err error) {
	return r, c.do(ctx, "GET", "result", url.Values{"hash": {hex.EncodeToString(hash[:])}}, nil, &r)
}

// Get returns an entry of the state after a height (0: the newest), with proof if asked for.
func (c *Client) Get(ctx context.Context, key []byte, height int64, prove bool) (v Value, err error) {
	q := url.Values{"key": {hex.EncodeToString(key)}, "height": {num(height)}}
	if prove {
		q.Set("prove", "1")
	}
	return v, c.do(ctx, "GET", "get", q, nil, &v)
}

// Scan returns entries with a prefix in the order of their keys, those behind a key (nil: from the first), at most limit.
func (c *Client) Scan(ctx context.Context, prefix, behind []byte, limit int, height int64) (p Page, err error) {
	return p, c.do(ctx, "GET", "scan", url.Values{"prefix": {hex.EncodeToString(prefix)}, "behind": {hex.EncodeToString(behind)}, "limit": {strconv.Itoa(limit)}, "height": {num(height)}}, nil, &p)
}

// LightBlock returns header, commit and validators of a height (0: the newest that is signed) in the bytes that ledger/lite reads:
// CometBFT's LightBlock, protobuf.
func (c *Client) LightBlock(ctx context.Context, height int64) (b []byte, err error) {
	return b, c.do(ctx, "GET", "light", url.Values{"height": {num(height)}}, nil, &b)
}

// Blocks returns blocks in a row, from a height on: as many as fit into an answer, up to a height.
func (c *Client) Blocks(ctx context.Context, from, to int64) (l Blocks, err error) {
	return l, c.do(ctx, "GET", "blocks", url.Values{"from": {num(from)}, "to": {num(to)}}, nil, &l)
}

// Genesis returns the chain's first state: the bytes of ledger.Genesis.
func (c *Client) Genesis(ctx context.Context) (b []byte, err error) {
	return b, c.do(ctx, "GET", "genesis", nil, nil, &b)
}

// Postings returns an account's postings from a height on.
func (c *Client) Postings(ctx context.Context, account string, from int64, limit int) (p Postings, err error) {
	return p, c.do(ctx, "GET", "postings", url.Values{"account": {account}, "from": {num(from)}, "limit": {strconv.Itoa(limit)}}, nil, &p)
}

// AddPeer connects the engine to another, ID@[address]:port, and keeps doing so after a restart. RemovePeer ends that.
func (c *Client) AddPeer(ctx context.Context, peer string) error {
	return c.do(ctx, "POST", "peers", url.Values{"add": {peer}}, nil, &struct{}{})
}

// RemovePeer forgets a peer. One that is a validator is still let in.
func (c *Client) RemovePeer(ctx context.Context, peer string) error {
	return c.do(ctx, "POST", "peers", url.Values{"remove": {peer}}, nil, &struct{}{})
}

// LetFollow lets an engine, by its id, connect to this one for half an hour, beside the owner's peers and the validators. on is the
// key of its node, zero when it is not known: members' nodes go first. It fails when there is no room.
func (c *Client) LetFollow(ctx context.Context, id string, on ident.PublicKey) error {
	q := url.Values{"follow": {id}}
	if !on.IsZero() {
		q.Set("on", on.String())
	}
	return c.do(ctx, "POST", "peers", q, nil, &struct{}{})
}

// State is the state after one height as a read-only ledger.Store, so that all questions that package ledger answers can be asked
// from here: ledger.New(state). An error makes everything that follows empty; see Err.
type State struct {
	c      *Client
	ctx    context.Context
	height int64
	err    error
}

// State returns the state after a height, 0: the newest now. It belongs to one goroutine, for as long as ctx lasts.
func (c *Client) State(ctx context.Context, height int64) (*State, error) {
	if height == 0 {
		s, err := c.Status(ctx)
		if err != nil {
			return nil, err
		}
		height = s.Height
	}
	return &State{c: c, ctx: ctx, height: height}, nil
}

// Height is whose state it is.
func (s *State) Height() int64 { return s.height }

// Err is the first error; what was read before it is right.
func (s *State) Err() error { return s.err }

// Get implements ledger.Store.
func (s *State) Get(key []byte) []byte {
	if s.err != nil {
		return nil
	}
	var v Value
	v, s.err = s.c.Get(s.ctx, key, s.height, false)
	return v.Value
}

// Set implements ledger.Store: it is an error.
func (s *State) Set([]byte, []byte) {
	if s.err == nil {
		s.err = errors.New("the ledger is changed by transactions alone")
	}
}

// Scan implements ledger.Store.
func (s *State) Scan(prefix []byte, f func(key, value []byte) bool) {
	var behind []byte
	for s.err == nil {
		var p Page
		if p, s.err = s.c.Scan(s.ctx, prefix, behind, 1000, s.height); s.err != nil {
			return
		}
		for _, e := range p.Entries {
			if !f(e.Key, e.Value) {
				return
			}
			behind = e.Key
		}
		if !p.More {
			return
		}
	}
}
