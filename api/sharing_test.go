package api

import (
	"context"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func (w *world) Gateway(context.Context) (Gateway, error) { return w.gw, w.err }
func (w *world) OfferGateway(_ context.Context, r OfferRequest) (Gateway, error) {
	w.gw.Offer = GatewayOffer{On: r.On, Price: r.Price}
	return w.gw, w.err
}
func (w *world) UseGateway(_ context.Context, r UseRequest) (Gateway, error) {
	w.gw.Use = GatewayUse{Choice: r.Choice, IPv4: netip.MustParseAddr("100.64.0.1")}
	return w.gw, w.err
}
func (w *world) Meter(context.Context) (Meter, error) {
	return Meter{Links: []MeterLink{{ID: "n", Classes: map[string]Traffic{"bulk": {SentBytes: 1 << 60}}}}}, w.err
}
func (w *world) Guests(context.Context) (Guests, error)      { return Guests{Why: "off"}, w.err }
func (w *world) Vouchers(context.Context) ([]Voucher, error) { return w.vouchers, w.err }
func (w *world) MakeVouchers(_ context.Context, r VoucherRequest) ([]Voucher, error) {
	for range r.Count {
		w.vouchers = append(w.vouchers, Voucher{Code: "ABCD", Minutes: r.Minutes})
	}
	return w.vouchers, w.err
}
func (w *world) RevokeVoucher(_ context.Context, code string) error { w.removed = code; return w.err }
func (w *world) ImportVouchers(_ context.Context, f VoucherFile) (VoucherImport, error) {
	return VoucherImport{Refused: []string{f.JSON}}, w.err
}
func (w *world) ExportVouchers(context.Context) (VoucherFile, error) {
	return VoucherFile{JSON: "[]"}, w.err
}

func TestSharing(t *testing.T) {
	w := &world{}
	c, _ := serve(t, w)
	ctx := t.Context()
	g, err := c.OfferGateway(ctx, OfferRequest{On: true, Price: 7})
	if err != nil || !g.Offer.On || g.Offer.Price != 7 || g.Clients == nil {
		t.Errorf("offer: %+v, %v", g, err)
	}
	if g, err = c.UseGateway(ctx, UseRequest{Choice: "auto"}); err != nil || g.Use.Choice != "auto" || g.Use.Candidates == nil {
		t.Errorf("use: %+v, %v", g, err)
	}
	again, err := c.Gateway(ctx)
	if diff := cmp.Diff(g, again, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); err != nil || diff != "" {
		t.Errorf("status: %v %s", err, diff)
	}
	m, err := c.Meter(ctx)
	if err != nil || m.Sessions == nil || m.Links[0].Classes["bulk"].SentBytes != 1<<60 {
		t.Errorf("meter: %+v, %v", m, err)
	}
	if gs, err := c.Guests(ctx); err != nil || gs.Clients == nil || gs.Why != "off" {
		t.Errorf("guests: %+v, %v", gs, err)
	}
	if v, err := c.MakeVouchers(ctx, VoucherRequest{Count: 2, Minutes: 60}); err != nil || len(v) != 2 {
		t.Errorf("vouchers: %v, %v", v, err)
	}
	if v, err := c.Vouchers(ctx); err != nil || len(v) != 2 || v[0].Minutes != 60 {
		t.Errorf("vouchers: %v, %v", v, err)
	}
	if err := c.RevokeVoucher(ctx, "AB CD"); err != nil || w.removed != "AB CD" {
		t.Errorf("revoked %q, %v", w.removed, err)
	}
	if i, err := c.ImportVouchers(ctx, VoucherFile{JSON: "x"}); err != nil || i.Refused[0] != "x" {
		t.Errorf("import: %v, %v", i, err)
	}
	if f, err := c.ExportVouchers(ctx); err != nil || f.JSON != "[]" {
		t.Errorf("export: %v, %v", f, err)
	}
}
