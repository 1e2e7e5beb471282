package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"weft/ident"
	"weft/ledger"
	"weft/ledger/bft/bftclient"
	"weft/ledger/lite"
	"weft/ledger/tx"
	"weft/pay"
)

// settler is the ledger as pay sees it.
type settler struct{ c *coop }

func (s settler) Account(ctx context.Context) (tx.Account, error) {
	ctx, cancel := context.WithTimeout(ctx, askLedger)
	defer cancel()
	cl := s.c.client()
	defer cl.Close()
	var a tx.Account
	_, err := s.c.load(ctx, cl, tx.StateKeyAccount(s.c.n.self), &a)
	return a, err
}

func (s settler) Tab(ctx context.Context, id tx.TabID) (t tx.Tab, anchor []byte, at time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, askLedger) // one who keeps silent, or proves nothing, holds up no claim of other tabs for ever
	defer cancel()
	cl := s.c.client()
	defer cl.Close()
	k := tx.StateKeyTab(id)
	if b, err := cl.Get(ctx, k, 0, false); err != nil {
		return t, nil, at, err
	} else if len(b.Value) == 0 {
		if s.c.keeps() {
			return t, nil, at, pay.ErrNoTab
		}
		return t, nil, at, pay.ErrUnproven // who opens one all the same is refused by the ledger
	}
	for { // the block that proves it comes soon after the one that has it
		v, err := cl.Get(ctx, k, 0, true)
		if err != nil {
			return t, nil, at, err
		}
		if len(v.Value) > 0 {
			if anchor, at, err = s.c.anchor(ctx, cl, k, v); err != nil {
				return t, nil, at, err
			}
			return t, anchor, at, tx.Decode(v.Value, &t)
		}
		select {
		case <-ctx.Done():
			return t, nil, at, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// look is Tab without the anchor.
func (s settler) look(ctx context.Context, id tx.TabID) (t tx.Tab, err error) {
	cl := s.c.client()
	defer cl.Close()
	ok, err := s.c.load(ctx, cl, tx.StateKeyTab(id), &t)
	if err == nil && !ok {
		err = pay.ErrNoTab
	}
	return t, err
}

func (s settler) Submit(ctx context.Context, body tx.Body) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, waitLedger)
	defer cancel()
	r, err := s.c.transact(ctx, body)
	switch {
	case err != nil:
		return nil, err
	case ledger.Code(r.Code) == ledger.CodeExists:
		return nil, pay.ErrTaken
	case r.Code != 0:
		return nil, fmt.Errorf("the ledger refuses: %s", r.Text)
	}
	return r.Data, nil
}

// record returns a record of the ledger's newest state, or nothing, and when that was so. A node that follows another's ledger has
// it proved; that there is none, it takes from that node's word.
func (c *coop) record(ctx context.Context, cl *bftclient.Client, k []byte) (value []byte, at time.Time, err error) {
	keep := c.keeps()
	v, err := cl.Get(ctx, k, 0, !keep)
	if err != nil || len(v.Value) == 0 || keep {
		return v.Value, time.Now(), err
	}
	at, err = c.prove(ctx, cl, k, v)
	return v.Value, at, err
}

// load reads a record as record does, and reports whether there is one.
func (c *coop) load(ctx context.Context, cl *bftclient.Client, k []byte, r tx.Record) (ok bool, err error) {
	b, _, err := c.record(ctx, cl, k)
	if err != nil || len(b) == 0 {
		return false, err
	}
	return true, tx.Decode(b, r)
}

// memberOf asks what a key is: that of a member in good standing, of a node that is registered as one's, or of nobody; and for the
// key of that member.
func (c *coop) memberOf(ctx context.Context, cl *bftclient.Client, k ident.PublicKey) (what int, owner ident.PublicKey, err error) {
	var x tx.Blocked
	ok, err := c.load(ctx, cl, tx.StateKeyBlocked(k), &x)
	switch {
	case err != nil:
		return ofNobody, owner, fmt.Errorf("the block list: %w", err)
	case ok && (x.Until == 0 || time.Now().Unix() < x.Until):
		return ofBlocked, owner, nil
	}
	var id uint64
	st := ofMember
	var r tx.KeyRole
	if ok, err = c.load(ctx, cl, tx.StateKeyKey(k), &r); err != nil {
		return ofNobody, owner, fmt.Errorf("the register: %w", err)
	}
	if ok {
		switch r.Role {
		case tx.RoleVoid:
			return ofInactive, owner, nil
		case tx.RoleDelegate:
			st = ofNode
		}
		id = r.Member
	} else {
		var n tx.Node
		if ok, err = c.load(ctx, cl, tx.StateKeyNode(k), &n); err != nil {
			return ofNobody, owner, fmt.Errorf("registered nodes: %w", err)
		}
		if !ok {
			return ofNobody, owner, nil
		}
		if time.Now().Unix() > n.Until {
			return ofInactive, owner, nil
		}
		id, st = n.Member, ofNode
	}
	var m tx.Member
	if ok, err = c.load(ctx, cl, tx.StateKeyMember(id), &m); err == nil && !ok {
		err = errors.New("it leads to no member")
	}
	if err != nil {
		return ofNobody, owner, fmt.Errorf("the register: %w", err)
	}
	if m.State != tx.Active {
		return ofInactive, owner, nil
	}
	return st, m.Key, nil
}

// anchor makes the proof of a record that another node of the community can check with what it has verified itself: a block with
// its signatures, and the path from the record to the root of the state in that block. Both are messages of docs/spec/ledger-light.md
// section 6.5, after two bytes that are the length of the first.
func (c *coop) anchor(ctx context.Context, cl *bftclient.Client, k []byte, v bftclient.Value) ([]byte, time.Time, error) {
	at, err := c.prove(ctx, cl, k, v)
	if err != nil {
		return nil, at, err
	}
	raw, err := cl.LightBlock(ctx, v.Height+1)
	if err != nil {
		return nil, at, err
	}
	block, err := lite.ParseComet(raw)
	if err != nil {
		return nil, at, err
	}
	pk, pv, proof, err := lite.ParseICS23(v.Proof)
	if err != nil {
		return nil, at, err
	}
	first, err := lite.Encode(&lite.Block{LightBlock: *block})
	if err != nil {
		return nil, at, err
	}
	second, err := lite.Encode(&lite.Record{Height: v.Height, Key: pk, Value: pv, Proof: proof})
	if err != nil {
		return nil, at, err
	}
	b := append(append(binary.BigEndian.AppendUint16(nil, uint16(len(first))), first...), second...)
	if len(b) > pay.MaxAnchor {
		return nil, at, fmt.Errorf("the proof has %d bytes, too many to show: there are %d validators", len(b), len(block.Set))
	}
	return b, at, nil
}

// verifyAnchor is pay's: what another node's anchor proves.
func (c *coop) verifyAnchor(b []byte) (t tx.Tab, at time.Time, err error) {
	block, record, err := parseAnchor(b)
	if err != nil {
		return t, at, err
	}
	if err := tx.Decode(record.Value, &t); err != nil {
		return t, at, err
	}
	if string(record.Key) != string(tx.StateKeyTab(t.ID)) {
		return t, at, errors.New("the anchor's record is no tab")
	}
	c.light.mu.Lock()
	defer c.light.mu.Unlock()
	l, now := c.light.c, time.Now()
	if l == nil {
		return t, at, errors.New("no block is trusted yet")
	}
	if _, err := l.Update(now, &block.LightBlock); err != nil {
		return t, at, err
	}
	at, err = l.Prove(now, record.Key, record.Value, &record.Proof, record.Height)
	return t, at, err
}

func parseAnchor(b []byte) (*lite.Block, *lite.Record, error) {
	bad := errors.New("this is no anchor")
	if len(b) < 2 {
		return nil, nil, bad
	}
	n := int(binary.BigEndian.Uint16(b))
	if len(b) < 2+n {
		return nil, nil, bad
	}
	first, err := lite.Parse(b[2 : 2+n])
	if err != nil {
		return nil, nil, err
	}
	second, err := lite.Parse(b[2+n:])
	if err != nil {
		return nil, nil, err
	}
	block, ok := first.(*lite.Block)
	record, isRecord := second.(*lite.Record)
	if !ok || !isRecord || len(record.Value) == 0 {
		return nil, nil, bad
	}
	return block, record, nil
}
