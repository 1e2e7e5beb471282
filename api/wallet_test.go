package api

import (
	"context"
	"testing"
)

func (w *world) Wallet(context.Context) (Wallet, error) {
	return Wallet{State: "on", Spent: 1 << 60}, w.err
}
func (w *world) SetWallet(_ context.Context, r WalletRequest) (Wallet, error) {
	return Wallet{State: "on", Cap: r.Cap}, w.err
}
func (w *world) SettleWallet(context.Context) (Wallet, error) {
	return Wallet{State: "on", Earned: 5}, w.err
}
func (w *world) Bill(_ context.Context, month string) ([]BillLine, error) {
	return []BillLine{{Role: "payer", Name: month, First: Readings{Series: 1<<64 - 1}}}, w.err
}
func (w *world) AuditWallet(context.Context) (WalletAudit, error) {
	return WalletAudit{Lines: 3}, w.err
}

func TestWallet(t *testing.T) {
	c, _ := serve(t, &world{})
	ctx := t.Context()
	if g, err := c.Wallet(ctx); err != nil || g.Spent != 1<<60 || g.Accounts == nil || g.Days == nil {
		t.Errorf("wallet: %+v, %v", g, err)
	}
	if g, err := c.SetWallet(ctx, WalletRequest{Cap: 7}); err != nil || g.Cap != 7 {
		t.Errorf("cap: %+v, %v", g, err)
	}
	if g, err := c.SettleWallet(ctx); err != nil || g.Earned != 5 {
		t.Errorf("settle: %+v, %v", g, err)
	}
	if l, err := c.Bill(ctx, "2026-11"); err != nil || len(l) != 1 || l[0].Name != "2026-11" || l[0].First.Series != 1<<64-1 {
		t.Errorf("bill: %+v, %v", l, err)
	}
	if a, err := c.AuditWallet(ctx); err != nil || a.Lines != 3 || a.Findings == nil {
		t.Errorf("audit: %+v, %v", a, err)
	}
}
