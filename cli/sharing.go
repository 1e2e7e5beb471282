package cli

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"weft/api"
	"weft/config"
)

type gatewayCmd struct {
	Status gatewayStatusCmd `cmd:"" default:"1" help:"Show whose internet line is shared with whom."`
	Offer  gatewayOfferCmd  `cmd:"" help:"Share this device's internet line, now and after every start."`
	Stop   gatewayStopCmd   `cmd:"" help:"Stop sharing it."`
	Use    gatewayUseCmd    `cmd:"" help:"Choose where the internet comes from: auto, a node, or off."`
}

type gatewayStatusCmd struct{}

func (c *gatewayStatusCmd) Run(e *env) error {
	g, err := e.node().Gateway(e.ctx)
	if err != nil {
		return err
	}
	return e.printGateway(g)
}

func (e *env) printGateway(g api.Gateway) error {
	if e.json {
		return e.printJSON(g)
	}
	e.printOffer(g)
	e.say("")
	e.printUse(g.Use)
	if d := g.DNS; len(d.Listen) > 0 {
		all := ""
		if d.Redirect {
			all = ", for all programs of this device"
		}
		e.say("\nNames      answered on %s%s: %d questions, %d from memory, %d without an answer", strings.Join(d.Listen, ", "), all, d.Queries, d.Cached, d.Failed)
		for _, u := range d.Upstreams {
			e.say("           %s  %s  %s", clean(u.URI), micros(u.RTTUs), clean(u.Problem))
		}
	}
	return nil
}

func (e *env) printOffer(g api.Gateway) {
	o := g.Offer
	switch {
	case !o.On:
		e.say("Sharing    off. To share this device's line: weft gateway offer")
		return
	case !o.Active:
		e.say("Sharing    on, but not now: %s", clean(o.Why))
		return
	}
	var families []string
	if o.IPv4 {
		families = append(families, "IPv4")
	}
	if o.IPv6 {
		families = append(families, "IPv6")
	}
	e.say("Sharing    %s over %s, %s, %s down, %s up%s", strings.Join(families, " and "), cmp.Or(clean(o.Line), "this device's line"), config.FormatPrice(uint64(o.Price)),
		limit(o.DownBps), limit(o.UpBps), map[bool]string{true: ", with members only"}[o.Members])
	if len(g.Clients) == 0 {
		e.say("           with nobody yet")
	} else {
		t := columns("CLIENT", "ADDRESS", ">SINCE", ">DOWN", ">UP", ">DOWN/S", ">UP/S", ">FLOWS", "")
		for _, x := range g.Clients {
			t.row(who(x.Name, x.ID), x.IPv4, since(x.Since), size(x.DownBytes), size(x.UpBytes), bps(x.DownBps), bps(x.UpBps), x.Flows, map[bool]string{true: "member", false: " "}[x.Member])
		}
		t.print(e.out)
	}
	if len(o.Refused) > 0 {
		var parts []string
		for _, why := range slices.Sorted(maps.Keys(o.Refused)) {
			parts = append(parts, fmt.Sprintf("%d %s", o.Refused[why], why))
		}
		e.say("           packets refused: %s", clean(strings.Join(parts, ", ")))
	}
}

func (e *env) printUse(u api.GatewayUse) {
	switch u.State {
	case "off":
		e.say("Internet   from no gateway. To use one: weft gateway use auto")
	case "up":
		how := "programs that use the proxy"
		if u.Whole {
			how = "the whole device"
		}
		e.say("Internet   from %s for %s, %s, for %s", who(u.Name, u.ID), since(u.Since), config.FormatPrice(uint64(u.Price)), how)
		if u.IPv4.IsValid() {
			e.say("           IPv4 as %s", u.IPv4)
		}
		if u.IPv6.IsValid() {
			e.say("           IPv6 as %s", u.IPv6)
		}
		if u.Standby != "" {
			e.say("           %s stands by", clean(u.Standby))
		}
	case "resting":
		e.say("Internet   by the own line, which is shared; a gateway is used when it fails")
	case "searching":
		e.say("Internet   searching: %s", clean(u.Why))
		if u.Choice == "auto" {
			e.say("           The first that suits is used as soon as it is there.")
		}
	default:
		e.say("Internet   %s: %s", clean(u.State), clean(u.Why))
	}
	switch {
	case u.Failovers == 1:
		e.say("           changed once, because: %s", clean(u.Last))
	case u.Failovers > 1:
		e.say("           changed %d times; the last time because: %s", u.Failovers, clean(u.Last))
	}
	if len(u.Candidates) > 0 {
		t := columns("GATEWAY", "OFFER", ">PRICE IN ALL", ">WAY", ">RTT", ">SCORE", "STATE", "")
		for _, x := range u.Candidates {
			t.row(who(x.Name, x.ID), x.Offer, config.FormatPrice(x.Price), micros(x.CostUs), micros(x.RTTUs), x.Score, x.State, cmp.Or(x.Refused, " "))
		}
		t.print(e.out)
	}
}

func limit(bps uint64) string {
	if bps == 0 {
		return "no limit"
	}
	return config.Rate(bps).String()
}

func bps(v uint64) string {
	if v < 1000 {
		return fmt.Sprintf("%d bit/s", v)
	}
	for _, u := range []string{"kbit/s", "Mbit/s", "Gbit/s"} {
		if f := float64(v) / 1000; f < 1000 || u == "Gbit/s" {
			return fmt.Sprintf("%.1f %s", f, u)
		}
		v /= 1000
	}
	return ""
}

type gatewayOfferCmd struct {
	Price       string `help:"What traffic costs: credits per GB like 0.10/GB, or ncredit per MiB." default:"0"`
	Down        string `help:"Download that others may have together, such as 20M; 0 is no limit." default:"0"`
	Up          string `help:"Upload, likewise." default:"0"`
	IPv4        bool   `name:"ipv4" negatable:"" default:"true" help:"Share IPv4."`
	IPv6        bool   `name:"ipv6" negatable:"" default:"true" help:"Share IPv6."`
	MembersOnly bool   `help:"Share with members of this node's community only."`
	Once        bool   `help:"Forget it when the node stops."`
}

func (c *gatewayOfferCmd) Run(e *env) error {
	price, err := config.ParsePrice(c.Price)
	if err != nil {
		return usageError{fmt.Errorf("--price: %w", err)}
	}
	down, err := config.ParseRate(c.Down)
	if err != nil {
		return usageError{fmt.Errorf("--down: %w", err)}
	}
	up, err := config.ParseRate(c.Up)
	if err != nil {
		return usageError{fmt.Errorf("--up: %w", err)}
	}
	if !c.IPv4 && !c.IPv6 {
		return usageError{fmt.Errorf("with --no-ipv4 and --no-ipv6 nothing is left to share; to stop: weft gateway stop")}
	}
	g, err := e.node().OfferGateway(e.ctx, api.OfferRequest{On: true, Price: price, DownBps: uint64(down), UpBps: uint64(up), IPv4: c.IPv4, IPv6: c.IPv6,
		Members: c.MembersOnly, Once: c.Once})
	if err != nil {
		return err
	}
	if !e.json {
		e.printOffer(g)
		if !g.Offer.Active {
			return nil
		}
		if c.Down == "0" || c.Up == "0" {
			e.say("           Without --down and --up nothing keeps one neighbour, or your own downloads, from crowding out the rest.")
		}
		e.say("\nOthers' traffic now leaves through your line and under its address. What they cannot reach: your own network, this device, and port 25.")
		e.say("To change what is closed: [gateway] in the config file. To stop: weft gateway stop")
		return nil
	}
	return e.printJSON(g)
}

type gatewayStopCmd struct {
	Once bool `help:"Only until the node stops."`
}

func (c *gatewayStopCmd) Run(e *env) error {
	g, err := e.node().OfferGateway(e.ctx, api.OfferRequest{IPv4: true, IPv6: true, Once: c.Once})
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(g)
	}
	e.say("The line is no longer shared.")
	return nil
}

type gatewayUseCmd struct {
	Choice string `arg:"" help:"auto, off, or a gateway by name, id, key or address."`
	Once   bool   `help:"Forget it when the node stops."`
}

func (c *gatewayUseCmd) Run(e *env) error {
	g, err := e.node().UseGateway(e.ctx, api.UseRequest{Choice: c.Choice, Once: c.Once})
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(g)
	}
	hope := func(c api.GatewayCandidate) bool { return c.Refused == "" }
	for i := 0; g.Use.State == "searching" && slices.ContainsFunc(g.Use.Candidates, hope) && i < 50; i++ { // it takes a round trip or two
		select {
		case <-e.ctx.Done():
			return e.ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
		if g, err = e.node().Gateway(e.ctx); err != nil {
			return err
		}
	}
	e.printUse(g.Use)
	return nil
}

type meterCmd struct {
	Watch bool `short:"w" help:"Go on, each second, until interrupted; with --json a line each."`
}

func (c *meterCmd) Run(e *env) error {
	for {
		m, err := e.node().Meter(e.ctx)
		if err != nil {
			return err
		}
		if e.json {
			show := e.printJSON
			if c.Watch {
				show = e.printLine
			}
			if err := show(m); err != nil {
				return err
			}
		} else {
			if c.Watch && isTerminal(e.out) {
				fmt.Fprint(e.out, "\x1b[H\x1b[2J") // cursor home, clear
			}
			e.printMeter(m)
		}
		if !c.Watch {
			return nil
		}
		select {
		case <-e.ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

func (e *env) printMeter(m api.Meter) {
	switch {
	case len(m.Sessions) == 0 && m.Month == api.Traffic{}:
		e.say("No traffic through a gateway has been counted yet.")
	case len(m.Sessions) == 0:
		e.say("No session through a gateway is open now.")
	default:
		t := columns("WITH", "WHICH IS", ">SENT", ">RECEIVED", ">ARRIVED THERE", ">ARRIVED HERE", ">SENT/S", ">RECEIVED/S", ">LOST", "STATE", "")
		for _, s := range m.Sessions {
			t.row(who(s.Name, s.ID), s.Role, size(s.Total.SentBytes), size(s.Total.RecvBytes), size(s.Agreed.SentBytes), size(s.Agreed.RecvBytes),
				bps(s.SentBps), bps(s.RecvBps), size(uint64(max(s.GapSent, 0)+max(s.GapRecv, 0))), s.State, cmp.Or(s.Reason, " "))
		}
		t.print(e.out)
		e.say("Both ends count, and tell each other inside their encrypted session: a bill never says more than arrived.")
	}
	if len(m.Links) > 0 {
		e.say("")
		t := columns("NEIGHBOUR", ">BULK IN", ">BULK OUT", ">GATEWAY IN", ">GATEWAY OUT", ">DELIVERED", "")
		for _, l := range m.Links {
			delivered, note := "", " "
			if l.Delivered >= 0 {
				delivered = fmt.Sprintf("%.1f %%", float64(l.Delivered)/10)
			}
			if l.Penalty > 1000 {
				note = fmt.Sprintf("loses what it should carry: avoided, cost × %.1f", float64(l.Penalty)/1000)
			}
			t.row(who(l.Name, l.ID), size(l.Classes["bulk"].RecvBytes), size(l.Classes["bulk"].SentBytes), size(l.Classes["gateway"].RecvBytes), size(l.Classes["gateway"].SentBytes), delivered, note)
		}
		t.print(e.out)
	}
	e.say("\nThis household, through gateways: today %s in, %s out; this month %s in, %s out (UTC).", size(m.Today.RecvBytes), size(m.Today.SentBytes), size(m.Month.RecvBytes), size(m.Month.SentBytes))
}

type voucherCmd struct {
	List   voucherListCmd   `cmd:"" default:"1" help:"Show the vouchers."`
	Create voucherCreateCmd `cmd:"" help:"Make vouchers for guests."`
	Revoke voucherRevokeCmd `cmd:"" help:"End a voucher at once."`
	Import voucherImportCmd `cmd:"" help:"Take vouchers from a file that export or pirania wrote."`
	Export voucherExportCmd `cmd:"" help:"Write all vouchers, in pirania's form."`
}

type voucherListCmd struct{}

func (c *voucherListCmd) Run(e *env) error {
	v, err := e.node().Vouchers(e.ctx)
	if err != nil {
		return err
	}
	if !e.json && len(v) == 0 {
		e.say("There are no vouchers. To make one: weft voucher create --minutes 120")
		return nil
	}
	return e.printVouchers(v)
}

func (e *env) printVouchers(v []api.Voucher) error {
	if e.json {
		return e.printJSON(v)
	}
	t := columns("CODE", "STATE", ">TIME", ">DATA", ">USED", ">DEVICES", "EXPIRES", "NOTE")
	for _, x := range v {
		expires := "-"
		if !x.Expires.IsZero() {
			expires = x.Expires.Local().Format("2006-01-02 15:04")
		}
		devices := fmt.Sprint(len(x.MACs))
		if x.Devices > 0 {
			devices += fmt.Sprintf(" of %d", x.Devices)
		}
		t.row(x.Code, x.State, orNoLimit(x.Minutes > 0, span(int64(x.Minutes)*60)), orNoLimit(x.Bytes > 0, size(uint64(max(x.Bytes, 0)))), size(x.Used), devices, expires, cmp.Or(x.Note, " "))
	}
	t.print(e.out)
	return nil
}

func orNoLimit(limited bool, s string) string {
	if limited {
		return s
	}
	return "no limit"
}

type voucherCreateCmd struct {
	Count   int    `short:"n" default:"1" help:"How many."`
	Minutes int    `default:"0" help:"How long one lasts from its first use; 0 is no limit."`
	Data    string `default:"0" help:"How much data, such as 500MB or 2GB; 0 is no limit."`
	Devices int    `default:"1" help:"How many devices may use one, at most 64."`
	Note    string `help:"For whom it is."`
}

func (c *voucherCreateCmd) Run(e *env) error {
	data, err := parseSize(c.Data)
	if err != nil {
		return usageError{fmt.Errorf("--data: %w", err)}
	}
	switch {
	case c.Count < 1 || c.Count > 1000:
		return usageError{fmt.Errorf("--count: must be 1 to 1000")}
	case c.Minutes < 0:
		return usageError{fmt.Errorf("--minutes: must not be negative; 0 is no limit")}
	case c.Devices < 1 || c.Devices > 64:
		return usageError{fmt.Errorf("--devices: must be 1 to 64")}
	case data > 0 && data < 1e6:
		return usageError{fmt.Errorf("--data: %s opens no page; the least is 1MB; 0 is no limit", size(uint64(data)))}
	}
	v, err := e.node().MakeVouchers(e.ctx, api.VoucherRequest{Count: c.Count, Note: c.Note, Minutes: c.Minutes, Bytes: data, Devices: c.Devices})
	if err != nil {
		return err
	}
	if err := e.printVouchers(v); err != nil || e.json {
		return err
	}
	e.say("\nGuests type the code on the page that opens when they join the Wi-Fi.")
	return nil
}

// parseSize reads bytes such as 500MB.
func parseSize(s string) (int64, error) {
	var v float64
	var unit string
	n, err := fmt.Sscanf(strings.TrimSpace(s), "%f%s", &v, &unit)
	factor, ok := map[string]float64{"": 1, "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "MiB": 1 << 20, "GiB": 1 << 30}[unit]
	if n == 0 || (err != nil && n != 1) || !ok || !(v >= 0) || v*factor > 1e15 {
		return 0, fmt.Errorf("%q is no amount of data; written like 500MB or 2GB; 0 is no limit", s)
	}
	return int64(v * factor), nil
}

type voucherRevokeCmd struct {
	Code string `arg:"" help:"The voucher's code."`
}

func (c *voucherRevokeCmd) Run(e *env) error {
	if err := e.node().RevokeVoucher(e.ctx, c.Code); err != nil {
		return err
	}
	e.say("%s is revoked. Who was online with it is back at the first page.", clean(c.Code))
	return nil
}

type voucherImportCmd struct {
	File string `arg:"" help:"The file; - is standard input."`
}

func (c *voucherImportCmd) Run(e *env) error {
	var text []byte
	var err error
	if c.File == "-" {
		text, err = io.ReadAll(io.LimitReader(os.Stdin, 1<<20))
	} else {
		text, err = os.ReadFile(c.File)
	}
	if err != nil {
		return err
	}
	r, err := e.node().ImportVouchers(e.ctx, api.VoucherFile{JSON: string(text)})
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(r)
	}
	e.say("%s taken, %d were known.", count(r.Added, "voucher"), r.Known)
	for _, why := range r.Refused {
		e.say("refused: %s", clean(why))
	}
	return nil
}

type voucherExportCmd struct{}

func (c *voucherExportCmd) Run(e *env) error {
	f, err := e.node().ExportVouchers(e.ctx)
	if err != nil {
		return err
	}
	_, err = io.WriteString(e.out, f.JSON)
	return err
}

type guestCmd struct {
	Status guestStatusCmd `cmd:"" default:"1" help:"Show the devices without Weft behind this node."`
}

type guestStatusCmd struct{}

func (c *guestStatusCmd) Run(e *env) error {
	g, err := e.node().Guests(e.ctx)
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(g)
	}
	if !g.On {
		e.say("No network for guests: %s", clean(g.Why))
		return nil
	}
	e.say("Guests on %s get %s and %s (DHCP: %s). Their first page: %s", clean(g.Interface), g.Network, g.Subnet, g.DHCP, g.Portal)
	if len(g.Clients) == 0 {
		e.say("Nobody is here.")
		return nil
	}
	t := columns("DEVICE", "NAME", "ADDRESSES", "STATE", "VOUCHER", ">TIME LEFT", ">DATA LEFT", ">USED")
	for _, x := range g.Clients {
		left, data := "-", "-"
		if x.State == "allowed" {
			left, data = orNoLimit(x.LeftS >= 0, span(max(x.LeftS, 0))), orNoLimit(x.LeftBytes >= 0, size(uint64(max(x.LeftBytes, 0))))
		}
		t.row(x.MAC, cmp.Or(x.Name, " "), strings.Join(x.Addresses, " "), x.State, cmp.Or(x.Voucher, " "), left, data, size(x.Bytes))
	}
	t.print(e.out)
	return nil
}
