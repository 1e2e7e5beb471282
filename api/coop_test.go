package api

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
)

func (w *world) Coop(context.Context) (Coop, error) { return w.coop, w.err }
func (w *world) FoundCoop(_ context.Context, r CoopFound) (Coop, error) {
	w.coop = Coop{State: "keeping", Chain: r.Name, Balance: -1 << 60}
	return w.coop, w.err
}
func (w *world) JoinCoop(_ context.Context, r CoopJoin) (Coop, error) {
	return Coop{State: "following", Keeper: r.Node}, w.err
}
func (w *world) Transact(_ context.Context, r CoopTx) (CoopResult, error) {
	return CoopResult{Code: uint32(r.Kind), Data: r.Body}, w.err
}
func (w *world) Sponsor(_ context.Context, r CoopSponsor) (CoopWord, error) {
	return CoopWord{Sponsor: r.Key, Word: []byte{1}}, w.err
}
func (w *world) Agree(_ context.Context, r CoopAgree) (CoopAgreement, error) {
	return CoopAgreement{To: r.To, Member: r.Member, Word: []byte{2}}, w.err
}
func (w *world) LedgerHandler() http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { fmt.Fprint(rw, r.URL.Path) })
}

func TestCoop(t *testing.T) {
	w := &world{}
	c, _ := serve(t, w)
	ctx := t.Context()
	if g, err := c.FoundCoop(ctx, CoopFound{Name: "street"}); err != nil || g.Chain != "street" {
		t.Errorf("found: %+v, %v", g, err)
	}
	if g, err := c.Coop(ctx); err != nil || g.Balance != -1<<60 {
		t.Errorf("status: %+v, %v", g, err)
	}
	if g, err := c.JoinCoop(ctx, CoopJoin{Node: "gw"}); err != nil || g.Keeper != "gw" {
		t.Errorf("join: %+v, %v", g, err)
	}
	if r, err := c.Transact(ctx, CoopTx{Kind: 100, Body: []byte{0, 255}}); err != nil || r.Code != 100 || !bytes.Equal(r.Data, []byte{0, 255}) {
		t.Errorf("transact: %+v, %v", r, err)
	}
	if r, err := c.Agree(ctx, CoopAgree{To: "rekey", Member: 3}); err != nil || len(r.Word) != 1 || r.To != "rekey" || r.Member != 3 {
		t.Errorf("agree: %+v, %v", r, err)
	}
	if r, err := c.Sponsor(ctx, CoopSponsor{}); err != nil || len(r.Word) != 1 {
		t.Errorf("sponsor: %+v, %v", r, err)
	}
	h := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.DialLedger(ctx) }}}
	res, err := h.Get("http://node" + LedgerPath + "/get")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); string(b) != "/get" {
		t.Errorf("the ledger was asked for %q", b)
	}
}
