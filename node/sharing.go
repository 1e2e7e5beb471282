package node

import (
	"context"

	"weft/api"
)

// Gateway implements api.Sharer.
func (n *Node) Gateway(context.Context) (api.Gateway, error) {
	return api.Gateway{Use: api.GatewayUse{Choice: n.cfg.Gateway.Use, State: "off"}}, nil
}

var errNotYet = api.Errorf(api.CodeBadRequest, "this program cannot do that yet")

func (n *Node) OfferGateway(context.Context, api.OfferRequest) (api.Gateway, error) {
	return api.Gateway{}, errNotYet
}
func (n *Node) UseGateway(context.Context, api.UseRequest) (api.Gateway, error) {
	return api.Gateway{}, errNotYet
}
func (n *Node) Meter(context.Context) (api.Meter, error)        { return api.Meter{}, errNotYet }
func (n *Node) Guests(context.Context) (api.Guests, error)      { return api.Guests{}, errNotYet }
func (n *Node) Vouchers(context.Context) ([]api.Voucher, error) { return nil, errNotYet }
func (n *Node) MakeVouchers(context.Context, api.VoucherRequest) ([]api.Voucher, error) {
	return nil, errNotYet
}
func (n *Node) RevokeVoucher(context.Context, string) error { return errNotYet }
func (n *Node) ImportVouchers(context.Context, api.VoucherFile) (api.VoucherImport, error) {
	return api.VoucherImport{}, errNotYet
}
func (n *Node) ExportVouchers(context.Context) (api.VoucherFile, error) {
	return api.VoucherFile{}, errNotYet
}
