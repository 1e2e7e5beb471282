package node

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/api"
	"weft/config"
	"weft/gateway"
	"weft/gateway/host"
	"weft/guest"
)

// guests is the network for devices without Weft; nil parts mean that there is none.
type guests struct {
	s   *sharing
	g   *guest.Guests
	why string // there is none
	cfg guest.Config
}

// open makes the guest network that the config asks for.
func (gs *guests) open(s *sharing) error {
	gs.s = s
	c := s.n.cfg.Guest
	switch {
	case c.Interface == "":
		gs.why = "set [guest] interface to the interface or bridge that guests are on"
		return nil
	case s.n.mode != "tun" || s.n.opt.World != nil:
		gs.why = "guests need root and a network interface"
		s.n.log.Warn("no network for guests", "why", gs.why)
		return nil
	}
	network, err := netip.ParsePrefix(c.Network)
	if err != nil {
		return fmt.Errorf("guest.network: %w", err)
	}
	access := guest.AccessVoucher
	if c.Mode == "open" {
		access = guest.AccessOpen
	}
	out := []string{s.n.device.Name()}
	if u, err := host.OpenUplink(host.UplinkConfig{Ignore: out}); err == nil { // a router that has a line of its own
		st := u.State()
		for _, i := range []string{st.Interface4, st.Interface6} {
			if i != "" && !slices.Contains(out, i) {
				out = append(out, i)
			}
		}
		u.Close()
	}
	gs.cfg = guest.Config{StateDir: s.n.opt.StateDir, Interface: c.Interface, Prefix: s.n.self.Subnet(), Range: network.Masked(), Out: out, MTU: int(s.mtu()),
		DHCP: guest.DHCP(c.DHCP), Access: access, DNSPort: 53, Domain: "weft", Name: s.n.cfg.Name, Welcome: c.Welcome, Log: s.n.log.With("room", "guest")}
	if c.Host != "" {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return fmt.Errorf("guest.certificate: %w", err)
		}
		if err := pair.Leaf.VerifyHostname(c.Host); err != nil {
			return fmt.Errorf("guest.certificate: %w", err)
		}
		gs.cfg.Host, gs.cfg.TLS = c.Host, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	}
	gs.g, err = guest.Open(gs.cfg)
	if err != nil {
		return fmt.Errorf("guests: %w", err)
	}
	return nil
}

// portal returns the addresses of the first page's name.
func (gs *guests) portal(name string) ([]netip.Addr, bool) {
	if gs.g == nil || gs.cfg.Host == "" || !strings.EqualFold(name, gs.cfg.Host) {
		return nil, false
	}
	var out []netip.Addr
	for _, a := range []netip.Addr{gs.cfg.Addr4(), gs.cfg.Addr6()} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out, true
}

func (gs *guests) services() []func(context.Context) error {
	if gs.g == nil {
		return nil
	}
	return []func(context.Context) error{gs.g.Serve, gs.serveDNS}
}

// serveDNS answers guests at this node's addresses among them, which appear when Serve has made them.
func (gs *guests) serveDNS(ctx context.Context) error {
	for {
		var socks []io.Closer
		var err error
		for _, a := range []netip.Addr{gs.cfg.Addr4(), gs.cfg.Addr6()} {
			if !a.IsValid() {
				continue
			}
			var more []io.Closer
			if more, err = openDNSSockets(netip.AddrPortFrom(a, 53), false); err != nil {
				break
			}
			for _, s := range more {
				socks = append(socks, gs.g.Names(s))
			}
		}
		if err == nil {
			return gs.s.dns.Serve(ctx, socks...)
		}
		for _, c := range socks {
			c.Close()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
			if errors.Is(err, net.ErrClosed) {
				return err
			}
		}
	}
}

// setUplink tells guests whether there is a way to the internet.
func (gs *guests) setUplink(line host.State, watched bool, use gateway.Use) {
	if gs.g == nil {
		return
	}
	if use.Gateway.IsZero() {
		gs.g.SetUplink(watched && line.IPv4, watched && line.IPv6)
		return
	}
	gs.g.SetUplink(use.Families&gateway.IPv4 != 0, use.Families&(gateway.IPv6|gateway.IPv6Routed) != 0)
}

var errNoGuests = api.Errorf(api.CodeBadRequest, "this node has no network for guests")

func (gs *guests) store() (*guest.Vouchers, error) {
	if gs.g == nil {
		return nil, errNoGuests.WithHint("%s", gs.why)
	}
	return gs.g.Vouchers(), nil
}

// Guests implements api.Host.
func (n *Node) Guests(context.Context) (api.Guests, error) {
	gs := &n.sharing.guest
	if gs.g == nil {
		return api.Guests{Why: gs.why}, nil
	}
	st := gs.g.Status()
	out := api.Guests{On: true, Interface: st.Interface, Mode: string(config.GuestMd(n.cfg.Guest.Mode)), Portal: st.Portal, Subnet: st.Prefix.String(),
		Network: st.Range.String(), DHCP: st.DHCP}
	codes := map[string]string{} // people know vouchers by these
	for _, v := range gs.g.Vouchers().List() {
		codes[v.ID] = v.Code
	}
	for _, c := range st.Clients {
		g := guestOf(c)
		g.Voucher = cmp.Or(codes[g.Voucher], g.Voucher)
		out.Clients = append(out.Clients, g)
	}
	return out, nil
}

func guestOf(c guest.Client) api.Guest {
	g := api.Guest{MAC: c.MAC.String(), Name: c.Name, State: c.State, Voucher: c.Voucher, LeftS: -1, LeftBytes: -1, Bytes: c.Down + c.Up}
	for _, a := range c.Addrs {
		g.Addresses = append(g.Addresses, a.String())
	}
	if !c.Ends.IsZero() {
		g.LeftS = int64(c.Left / time.Second)
	}
	if c.BytesLeft != nil {
		g.LeftBytes = int64(min(*c.BytesLeft, 1<<62))
	}
	return g
}

// Vouchers implements api.Host.
func (n *Node) Vouchers(context.Context) ([]api.Voucher, error) {
	v, err := n.sharing.guest.store()
	if err != nil {
		return nil, err
	}
	var out []api.Voucher
	for _, x := range v.List() {
		out = append(out, voucherOf(x))
	}
	return out, nil
}

func voucherOf(v guest.Voucher) api.Voucher {
	out := api.Voucher{Code: v.Code, Note: v.Note, Minutes: int(v.Minutes), Bytes: int64(min(v.Bytes, 1<<62)), Devices: v.Devices, State: v.State(time.Now()),
		Created: v.Created, Activated: v.Activated, Expires: v.Ends(), Used: v.Used}
	for _, m := range v.MACs {
		out.MACs = append(out.MACs, m.String())
	}
	return out
}

// MakeVouchers implements api.Host.
func (n *Node) MakeVouchers(_ context.Context, req api.VoucherRequest) ([]api.Voucher, error) {
	v, err := n.sharing.guest.store()
	if err != nil {
		return nil, err
	}
	if req.Count < 1 || req.Count > 1000 || req.Minutes < 0 || req.Bytes < 0 || req.Devices < 0 {
		return nil, api.Errorf(api.CodeBadRequest, "count must be 1 to 1000; minutes, bytes and devices must not be negative")
	}
	made, err := v.Create(guest.Spec{Count: req.Count, Note: req.Note, Minutes: int64(req.Minutes), Bytes: uint64(req.Bytes), Devices: req.Devices})
	if err != nil {
		return nil, api.Errorf(api.CodeBadRequest, "%v", err)
	}
	out := make([]api.Voucher, len(made))
	for i := range made {
		out[i] = voucherOf(made[i])
	}
	return out, nil
}

// RevokeVoucher implements api.Host.
func (n *Node) RevokeVoucher(_ context.Context, code string) error {
	v, err := n.sharing.guest.store()
	if err != nil {
		return err
	}
	plain := func(s string) string {
		return strings.Map(func(r rune) rune {
			if r == '-' || r == ' ' {
				return -1
			}
			return r
		}, strings.ToUpper(s))
	}
	for _, x := range v.List() {
		if plain(x.Code) != plain(code) && x.ID != code {
			continue
		}
		if _, err := v.Revoke(x.ID); err != nil {
			return api.Errorf(api.CodeBadRequest, "%v", err)
		}
		return n.sharing.guest.g.Refresh(x.ID)
	}
	return api.Errorf(api.CodeBadRequest, "no voucher has the code %q", code).WithHint("weft voucher list")
}

// ImportVouchers implements api.Host.
func (n *Node) ImportVouchers(_ context.Context, f api.VoucherFile) (api.VoucherImport, error) {
	v, err := n.sharing.guest.store()
	if err != nil {
		return api.VoucherImport{}, err
	}
	list, err := guest.ParsePirania(strings.NewReader(f.JSON))
	if err != nil {
		return api.VoucherImport{}, api.Errorf(api.CodeBadRequest, "%v", err)
	}
	added, err := v.Import(list)
	if err != nil {
		return api.VoucherImport{}, api.Errorf(api.CodeBadRequest, "%v", err)
	}
	return api.VoucherImport{Added: added, Known: len(list) - added}, nil
}

// ExportVouchers implements api.Host.
func (n *Node) ExportVouchers(context.Context) (api.VoucherFile, error) {
	v, err := n.sharing.guest.store()
	if err != nil {
		return api.VoucherFile{}, err
	}
	b, err := json.MarshalIndent(v.Export(), "", "  ")
	if err != nil {
		return api.VoucherFile{}, err
	}
	return api.VoucherFile{JSON: string(b) + "\n"}, nil
}
