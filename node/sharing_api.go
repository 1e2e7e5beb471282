package node

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"weft/api"
	"weft/config"
	"weft/gateway"
	"weft/ident"
	"weft/meter"
	"weft/wire"
)

// Gateway implements api.Sharer.
func (n *Node) Gateway(context.Context) (api.Gateway, error) {
	s := n.sharing
	st, ds := s.gw.Status(), s.dns.Stats()
	s.mu.Lock()
	want, use, line, problem, mode, whole, dnsAt := s.want, s.use, s.line, s.problem, s.mode, s.whole, slices.Clone(s.dnsAt)
	watched, ready := s.watched, s.through == s.use.Gateway
	s.mu.Unlock()
	out := api.Gateway{
		Offer: api.GatewayOffer{On: want.Offer, Mode: mode, Price: s.price(), DownBps: uint64(want.Down), UpBps: uint64(want.Up), Members: want.Members},
		DNS:   api.DNS{Listen: dnsAt, Redirect: whole && s.redirectTo() != 0, Queries: ds.Queries, Cached: ds.Hits},
	}
	o := &out.Offer
	if a := st.Offering.Offer; a != nil && want.Offer {
		o.Active, o.IPv4, o.IPv6 = true, a.Families&gateway.IPv4 != 0, a.Families&(gateway.IPv6|gateway.IPv6Routed) != 0
	}
	switch o.Line = line.Interface4; {
	case want.Interface != "":
		o.Line = want.Interface
	case o.Line == "":
		o.Line = line.Interface6
	}
	if want.Offer && !o.Active {
		switch o.Why = st.Offering.Text; {
		case problem != "":
			o.Why = problem
		case !use.Gateway.IsZero():
			o.Why = "this device has no line of its own now and uses another's; it shares its own when there is one"
		case watched && !line.IPv4 && !line.IPv6:
			o.Why = "this device has no line: no default route leads to the internet; shared as soon as one does"
		case st.Offering.Offer == nil && !st.Offering.On:
			o.Why = "it begins in a moment"
		}
	}
	for why, c := range st.Refused {
		if c > 0 {
			if o.Refused == nil {
				o.Refused = map[string]uint64{}
			}
			o.Refused[why] = c
		}
	}
	rates := n.sharing.rates()
	for _, c := range st.Offering.Clients {
		r := rates[c.Key]
		out.Clients = append(out.Clients, api.GatewayClient{ID: c.Key.ID().String(), Key: c.Key, Name: c.Name, IPv4: c.IPv4, Since: c.From,
			DownBytes: c.Down, UpBytes: c.Up, DownBps: 8 * r[0], UpBps: 8 * r[1], Flows: c.Flows, Member: c.Member})
	}
	out.Use = n.usingOf(st.Using, want.Use, whole, ready, problem)
	for _, u := range ds.Upstreams {
		out.DNS.Upstreams = append(out.DNS.Upstreams, api.DNSUpstream{URI: u.URI, RTTUs: u.RTT.Microseconds(), Asked: u.Sent, Failed: u.Failures, Problem: u.Error})
		out.DNS.Failed += u.Failures
	}
	return out, nil
}

// internet is Gateway and Guests in short.
func (n *Node) internet(ctx context.Context) (api.Internet, error) {
	g, err := n.Gateway(ctx)
	if err != nil {
		return api.Internet{}, err
	}
	out := api.Internet{Use: g.Use.State, Price: g.Use.Price, Offer: "off", Clients: len(g.Clients), Guests: -1}
	if g.Use.ID != "" {
		out.From = cmp.Or(g.Use.Name, g.Use.ID)
	}
	if g.Use.State == "searching" || g.Use.State == "failing" {
		out.Why = g.Use.Why
	}
	switch {
	case g.Offer.Active:
		out.Offer = "on"
	case g.Offer.On:
		out.Offer, out.Why = "waiting", cmp.Or(out.Why, g.Offer.Why)
	}
	if guests, err := n.Guests(ctx); err == nil && guests.On {
		out.Guests = len(guests.Clients)
	}
	return out, nil
}

// lineOf says in plain words what internet line a node announces, "" when it announces none that can be read.
func lineOf(v wire.LSAView) string {
	b := v.Extension(wire.ExtGateway)
	if b == nil {
		return ""
	}
	o, err := gateway.ParseOffer(b)
	if err != nil {
		return ""
	}
	return o.String()
}

// rates are bytes a second that peers are sent and received from, outside traffic.
func (s *sharing) rates() map[ident.PublicKey][2]uint64 {
	out := map[ident.PublicKey][2]uint64{}
	for _, v := range s.meter.View().Sessions {
		if v.Kind == meter.Outside {
			out[v.Peer] = [2]uint64{v.Out.Rate, v.In.Rate}
		}
	}
	return out
}

func (n *Node) usingOf(u gateway.Using, choice string, whole, ready bool, problem string) api.GatewayUse {
	out := api.GatewayUse{Choice: choice, State: "searching", Why: u.Text, Since: u.Since, Standby: u.Standby, Failovers: u.Failovers, Last: u.LastReason}
	switch {
	case choice == "off":
		out.State = "off"
	case u.Use != nil:
		switch {
		case problem != "":
			out.State, out.Why = "failing", problem
		case ready:
			out.State = "up"
		}
		out.ID, out.Name, out.IPv4, out.Price, out.Whole = u.Use.Gateway.ID().String(), u.Use.Name, u.Use.IPv4, u.Use.Price, whole
		switch {
		case u.Use.IPv6.IsValid():
			out.IPv6 = u.Use.IPv6.Addr()
		case u.Use.Families&gateway.IPv6 != 0:
			out.IPv6 = n.self.Addr()
		}
	case n.sharing.resting():
		out.State = "resting"
	case choice != "auto":
		out.Why = n.missing(choice, u.Candidates, out.Why)
	}
	for _, c := range u.Candidates {
		if choice == "off" {
			c.State, c.Why = "possible", ""
		}
		out.Candidates = append(out.Candidates, api.GatewayCandidate{ID: c.Key.ID().String(), Name: c.Name, Offer: c.Text, Price: c.Price,
			RTTUs: c.RTT.Microseconds(), Score: c.Score, State: c.State, Refused: c.Why})
		if u.Use != nil && c.Key == u.Use.Gateway {
			out.RTTUs = c.RTT.Microseconds()
		}
		if hop, ok := n.routing.table.Load().Route(c.Key.ID()); ok {
			out.Candidates[len(out.Candidates)-1].CostUs = uint32(min(hop.Cost, 1<<32-1))
		}
	}
	return out
}

// missing says why the one gateway that the owner chose is not in use, unless why does.
func (n *Node) missing(choice string, list []gateway.CandidateRow, why string) string {
	key, err := n.find(choice)
	if err != nil {
		if k, bad := ident.ParsePublicKey(choice); bad == nil {
			choice = k.ID().String()
		}
		return "there is no way to " + choice + ", which is chosen; another: weft gateway use auto"
	}
	if slices.ContainsFunc(list, func(c gateway.CandidateRow) bool { return c.Key == key }) {
		return why
	}
	name := n.routing.nameOf(key)
	if _, ok := n.routing.table.Load().Route(key.ID()); !ok {
		return "there is no way to " + name + ", which is chosen; another: weft gateway use auto"
	}
	return name + ", which is chosen, offers no internet; another: weft gateway use auto"
}

// resting reports whether no gateway is wanted because the own line works and is shared.
func (s *sharing) resting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.want.Offer && s.want.Use == "auto" && (s.line.IPv4 || s.line.IPv6)
}

// OfferGateway implements api.Sharer.
func (n *Node) OfferGateway(ctx context.Context, r api.OfferRequest) (api.Gateway, error) {
	o := config.Offer{On: r.On, Price: config.Price(r.Price), Down: config.Rate(r.DownBps), Up: config.Rate(r.UpBps), IPv4: r.IPv4, IPv6: "off", Members: r.Members}
	if r.IPv6 {
		o.IPv6 = "nat"
	}
	switch {
	case r.On && !r.IPv4 && !r.IPv6:
		return api.Gateway{}, api.Errorf(api.CodeBadRequest, "neither IPv4 nor IPv6 would be shared")
	case r.On && r.Members && !n.cfg.Closed():
		return api.Gateway{}, api.Errorf(api.CodeBadRequest, "this node is in the open network, which has no members").WithHint("share with everybody, or found a closed network: weft init --closed")
	case r.DownBps > 1e12 || r.UpBps > 1e12:
		return api.Gateway{}, api.Errorf(api.CodeBadRequest, "no line has more than 1000 Gbit/s")
	}
	s := n.sharing
	s.mu.Lock()
	w := &s.want
	w.Offer, w.Price, w.Down, w.Up, w.IPv4, w.IPv6, w.Members = o.On, o.Price, o.Down, o.Up, o.IPv4, o.IPv6, o.Members
	s.wishes++
	s.mu.Unlock()
	if !r.Once {
		if err := n.remember(func(a *config.Added) { sharingOf(a).Offer = &o }); err != nil {
			return api.Gateway{}, err
		}
	}
	s.stir()
	return n.settled(ctx, func(g api.Gateway) bool { return !r.On || g.Offer.Active || g.Offer.Why != "" })
}

func sharingOf(a *config.Added) *config.Sharing {
	if a.Gateway == nil {
		a.Gateway = &config.Sharing{}
	} else {
		c := *a.Gateway
		a.Gateway = &c
	}
	return a.Gateway
}

// remember changes what commands have added, on disk and here.
func (n *Node) remember(change func(*config.Added)) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	a := n.added
	change(&a)
	if err := a.Save(n.opt.StateDir); err != nil {
		return err
	}
	n.added = a
	return nil
}

// settled waits a moment for the last wish to come true, so that whoever asked sees what became of it.
func (n *Node) settled(ctx context.Context, done func(api.Gateway) bool) (api.Gateway, error) {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for i := 0; ; i++ {
		n.sharing.mu.Lock()
		dealt := n.sharing.settled == n.sharing.wishes
		n.sharing.mu.Unlock()
		g, err := n.Gateway(ctx)
		if err != nil || dealt && done(g) || i == 100 {
			return g, err
		}
		select {
		case <-ctx.Done():
			return g, ctx.Err()
		case <-t.C:
		}
	}
}

// UseGateway implements api.Sharer.
func (n *Node) UseGateway(ctx context.Context, r api.UseRequest) (api.Gateway, error) {
	choice, text, err := n.choiceOf(r.Choice)
	if err != nil {
		return api.Gateway{}, err
	}
	s := n.sharing
	s.mu.Lock()
	s.want.Use = text
	s.wishes++
	s.mu.Unlock()
	if !r.Once {
		if err := n.remember(func(a *config.Added) { sharingOf(a).Use = text }); err != nil {
			return api.Gateway{}, err
		}
	}
	s.stir()
	return n.settled(ctx, func(g api.Gateway) bool {
		return choice.Mode == gateway.Off && g.Use.ID == "" || g.Use.State == "up" || g.Use.State == "resting" || g.Use.State == "failing" || choice.Mode != gateway.Off && hopeless(g.Use)
	})
}

// hopeless reports whether none of the gateways that are known can be used.
func hopeless(u api.GatewayUse) bool {
	return !slices.ContainsFunc(u.Candidates, func(c api.GatewayCandidate) bool { return c.Refused == "" })
}

// choiceOf reads auto, off or a node; text is how the choice is kept.
func (n *Node) choiceOf(text string) (gateway.Choice, string, error) {
	c := gateway.Choice{}
	if m := uint32(n.cfg.Gateway.MaxPrice); m > 0 {
		c.MaxPrice = &m
	}
	switch strings.TrimSpace(text) {
	case "off":
		return c, "off", nil
	case "auto":
		c.Mode = gateway.Auto
		return c, "auto", nil
	case "":
		return c, "", api.Errorf(api.CodeBadRequest, "say auto, off or which node")
	}
	key, err := n.find(text)
	if err != nil {
		return c, "", err
	}
	if key == n.self {
		return c, "", api.Errorf(api.CodeBadRequest, "this is the node itself; its own line needs no gateway")
	}
	c.Mode, c.Node = gateway.Node, key
	return c, key.String(), nil
}

// Meter implements api.Sharer.
func (n *Node) Meter(context.Context) (api.Meter, error) {
	v := n.sharing.meter.View()
	using, serves := n.sharing.gateway(), n.sharing.serves()
	offers := map[ident.PublicKey]bool{} // who was used before is a gateway still
	for _, c := range n.routing.gateways() {
		offers[c.Key] = true
	}
	out := api.Meter{}
	for _, s := range v.Sessions {
		if s.Kind != meter.Outside || s.Out.Total.Packets+s.In.Total.Packets == 0 {
			continue
		}
		role := "gateway"
		if _, ok := n.sharing.gw.LeaseOf(s.Peer); ok && s.Peer != using || serves && !offers[s.Peer] {
			role = "client"
		}
		m := api.MeterSession{ID: s.Peer.ID().String(), Name: n.routing.name(s.Peer.ID()), Role: role,
			Total:   api.Traffic{SentBytes: s.Out.Total.Bytes, SentPackets: s.Out.Total.Packets, RecvBytes: s.In.Total.Bytes, RecvPackets: s.In.Total.Packets},
			Agreed:  api.Traffic{SentBytes: s.Out.Agreed.Bytes, SentPackets: s.Out.Agreed.Packets, RecvBytes: s.In.Agreed.Bytes, RecvPackets: s.In.Agreed.Packets},
			SentBps: 8 * s.Out.Rate, RecvBps: 8 * s.In.Rate, State: "good", BeaconMs: s.BeaconAge.Milliseconds(),
			Billed: s.Out.Agreed.Billed() + s.In.Agreed.Billed()}
		for _, d := range []meter.DirectionView{s.Out, s.In} {
			if d.Gap {
				m.State, m.Reason = "gap", d.Reason.String()
			}
		}
		if s.Out.Gap {
			m.GapSent = int64(s.Out.Lost)
		}
		if s.In.Gap {
			m.GapRecv = int64(s.In.Lost)
		}
		out.Sessions = append(out.Sessions, m)
	}
	for _, l := range v.Neighbours {
		m := api.MeterLink{ID: l.Neighbour.String(), Name: n.routing.name(l.Neighbour), Classes: map[string]api.Traffic{}, Delivered: l.Delivered, Penalty: l.Penalty}
		for _, c := range l.Classes {
			m.Classes[className(c.Class)] = api.Traffic{SentBytes: c.Sent.Bytes, SentPackets: c.Sent.Packets, RecvBytes: c.Recv.Bytes, RecvPackets: c.Recv.Packets}
		}
		out.Links = append(out.Links, m)
	}
	for _, u := range v.Use {
		add := func(t *api.Traffic, x meter.Use) {
			t.SentBytes += x.OutsideSent.Bytes
			t.SentPackets += x.OutsideSent.Packets
			t.RecvBytes += x.OutsideRecv.Bytes
			t.RecvPackets += x.OutsideRecv.Packets
		}
		add(&out.Today, u.Today)
		add(&out.Month, u.Month)
	}
	return out, nil
}

// gateway is the gateway in use, the zero key if none is.
func (s *sharing) gateway() ident.PublicKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.use.Gateway
}

// serves reports whether the owner shares the line of this node.
func (s *sharing) serves() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.want.Offer
}

func className(c uint8) string {
	switch wire.Class(c) {
	case wire.ClassBulk:
		return "bulk"
	case wire.ClassControl:
		return "control"
	case wire.ClassGateway:
		return "gateway"
	}
	return "other"
}
