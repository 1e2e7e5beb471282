package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"weft/api"
	"weft/config"
	"weft/dns"
	"weft/firewall"
	"weft/forward"
	"weft/gateway"
	"weft/gateway/host"
	"weft/ident"
	"weft/meter"
	"weft/pay"
	"weft/proxy"
	"weft/route"
	"weft/tun"
	"weft/wire"
)

// meterChannel is the number of meter's messages in a session (docs/spec/session.md section 3).
const meterChannel = 2

// sharing joins gateway with what carries out its decisions: the kernel (gateway/host) as root, gateway/exit and the
// userspace stack without; dns, meter and guest beside it. What is wanted and what is in force changes at many places, and is
// brought together in one: settle, on the goroutine of serve.
//
//	           line of this host there and offered        lease in force
//	root       host.Gateway: NAT between TUN and line      host.Client: default route and DNS into the TUN
//	no root    exit: the process's own sockets             addresses of the userspace stack, for the proxy
//
// A TUN is never both: while a lease is in force nothing is offered. (gateway uses none while the own line works.)
type sharing struct {
	n      *Node
	gw     *gateway.Gateway
	dns    *dns.Resolver
	meter  *meter.Meter
	rules  []gateway.Rule
	kick   chan struct{}
	guest  guests
	policy atomic.Pointer[gateway.Policy] // for the exit
	kept   atomic.Bool                    // the kernel did not end clients' connections

	mu        sync.Mutex // guards what follows
	want      config.Gateway
	wishes    uint64          // how often want was changed by command
	settled   uint64          // the wishes that settle has dealt with
	through   ident.PublicKey // the gateway that the way is laid through, or that failed with problem
	use       gateway.Use     // the lease in force
	line      host.State      // of this host
	watched   bool            // line is known
	problem   string          // why the wish is not fulfilled
	mode      string          // how it is: kernel or userspace
	whole     bool            // the lease serves the whole device
	offered   *config.Gateway
	offersDNS bool
	dnsAt     []string      // where the resolver listens
	asked     []string      // upstreams in force
	names     uint16        // the port at which the resolver answers at this node's mesh address; clients see 53. 0: it does not
	nat       *host.Gateway // the same as kernel and exit below, for ended
	away      *exitWay

	// The rest belongs to settle.
	chosen string    // the choice that gateway knows
	since  time.Time // when the own line came back; zero while it is down
	shared bool      // the log's last word on it
	kernel kernel
	exit   *exitWay
	shut   func() // takes back the firewall's rules for DNS
}

// lateCarrier is the session manager, which needs the gateway before it is there.
type lateCarrier struct{ n *Node }

func (c lateCarrier) SendOutside(peer ident.PublicKey, pkts ...tun.Packet) error {
	return c.n.sessions.SendOutside(peer, pkts...)
}

func (c lateCarrier) SendMessage(peer ident.PublicKey, channel byte, payload []byte) error {
	return c.n.sessions.SendMessage(peer, channel, payload)
}

func (c lateCarrier) Ping(ctx context.Context, peer ident.PublicKey) (time.Duration, error) {
	return c.n.sessions.Ping(ctx, peer)
}

// newSharing makes the parts. The device is there; sessions and links are not yet.
func newSharing(n *Node) (*sharing, error) {
	s := &sharing{n: n, want: n.cfg.Gateway, kick: make(chan struct{}, 1)}
	var err error
	if s.rules, err = egress(n.cfg.Gateway); err != nil {
		return nil, err
	}
	if s.meter, err = meter.New(meter.Config{
		Dir: n.opt.StateDir, Log: n.log.With("room", "meter"),
		Sessions: s.readSessions, Session: s.readSession, Links: n.routing.readLinks,
		Send: func(peer ident.PublicKey, payload []byte) error {
			class := wire.ClassBulk
			if b, err := meter.DecodeBeacon(payload); err == nil && b.Kind == meter.Outside {
				class = wire.ClassGateway
			}
			return n.sessions.SendAlong(peer, meterChannel, payload, class)
		},
		NextHop: n.routing.nextHop, LinkLoss: n.routing.linkLoss, Penalise: n.routing.penalise, Notify: s.meterEvent,
	}); err != nil {
		return nil, err
	}
	log := gateway.LogConfig{}
	if d := n.cfg.Gateway.LogDays; d > 0 {
		log = gateway.LogConfig{File: filepath.Join(n.opt.StateDir, "leases.log"), Days: d}
	}
	s.gw, err = gateway.New(gateway.Config{
		Self: n.self, Log: n.log.With("room", "gateway"), Carrier: lateCarrier{n}, Filter: n.firewall.Outside(), Host: n.device.NewWriter,
		Candidates: n.routing.gateways, Member: func(k ident.PublicKey) gateway.Tier {
			return gateway.Tier{Member: n.tabs.isMember(k) || n.cfg.Closed(), Barred: n.tabs.members.barred(k)}
		},
		Changed: s.changed, Announce: n.routing.announce, Name: func(k ident.PublicKey) string { return n.routing.name(k.ID()) }, LeaseLog: log,
		Ended: s.ended,
	})
	if err != nil {
		s.meter.Close()
		return nil, err
	}
	if s.dns, err = s.newDNS(); err != nil {
		s.meter.Close()
		return nil, fmt.Errorf("config: dns.upstream: %w", err)
	}
	if err := s.guest.open(s); err != nil {
		s.meter.Close()
		s.dns.Close()
		return nil, err
	}
	return s, nil
}

// egress reads the owner's rules about where traffic may go.
func egress(c config.Gateway) (rules []gateway.Rule, err error) {
	for _, list := range []struct {
		key, verb string
		rules     []string
	}{{"allow", "allow ", c.Allow}, {"deny", "deny ", c.Deny}} {
		for _, text := range list.rules {
			r, err := gateway.ParseRule(list.verb + text)
			if err != nil {
				return nil, fmt.Errorf("config: gateway.%s: %w", list.key, err)
			}
			rules = append(rules, r)
		}
	}
	if c.SMTP {
		rules = append(rules, gateway.Rule{Proto: tun.ProtoTCP, Ports: []gateway.PortRange{{Lo: 25, Hi: 25}}})
	}
	return rules, nil
}

// Check finds in a config what package config cannot know: the forms of the gateway's rules and of the resolver's upstreams.
func Check(c *config.Config) error {
	_, err := egress(c.Gateway)
	r, bad := dns.New(dns.Config{Log: slog.New(slog.DiscardHandler), Upstreams: c.DNS.Upstream,
		Dial: func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }})
	if bad != nil {
		return errors.Join(err, fmt.Errorf("config: dns.upstream: %w", bad))
	}
	return errors.Join(err, r.Close())
}

// close gives back what New took, for a node that never served.
func (s *sharing) close() {
	s.meter.Close()
	s.dns.Close()
}

// message takes what peers send inside sessions.
func (s *sharing) message(peer ident.PublicKey, channel byte, payload []byte) {
	switch channel {
	case gateway.Channel:
		s.gw.Handle(peer, payload)
	case meterChannel:
		s.meter.Handle(peer, payload)
	case pay.Channel:
		s.n.tabs.handle(peer, payload)
	}
}

// services are the parts that run.
func (s *sharing) services() []func(context.Context) error {
	list := []func(context.Context) error{s.gw.Serve, s.meter.Serve, s.serve}
	return append(list, s.guest.services()...)
}

// serve watches this host's lines and settles until ctx ends, then takes everything back.
func (s *sharing) serve(ctx context.Context) error {
	stop, err := s.watchLine()
	if err != nil { // a system whose lines cannot be watched: they count as there
		s.n.log.Debug("lines are not watched", "why", err)
	}
	defer stop()
	defer s.takeBack()
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.kick:
		case <-again.C:
		}
		if s.settle() {
			again.Reset(time.Hour)
		} else {
			again.Reset(3 * time.Second)
		}
	}
}

// stir makes serve settle soon.
func (s *sharing) stir() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// watchLine keeps line up to date.
func (s *sharing) watchLine() (stop func(), err error) {
	s.setPolicy(nil)
	if s.n.opt.World != nil {
		return func() {}, nil
	}
	changed := func(st host.State) {
		s.mu.Lock()
		s.line, s.watched = st, true
		s.mu.Unlock()
		s.setPolicy(st.Local)
		s.stir()
	}
	var ignore []string
	if s.n.mode == "tun" {
		ignore = []string{s.n.device.Name()}
	}
	u, err := host.OpenUplink(host.UplinkConfig{Ignore: ignore, Changed: changed, Log: s.n.log.With("room", "host")})
	if err != nil {
		return pollAddresses(changed), err
	}
	changed(u.State())
	return func() { u.Close() }, nil
}

// changed is gateway's word that another lease is in force, or none.
func (s *sharing) changed(u gateway.Use) {
	s.mu.Lock()
	before := s.use
	s.use = u
	s.mu.Unlock()
	text := "no gateway is in use"
	if !u.Gateway.IsZero() {
		text = "the internet comes from " + s.n.routing.nameOf(u.Gateway)
	}
	if before.Gateway != u.Gateway {
		s.n.log.Info(text, "reason", u.Reason)
		s.n.hub.Publish(api.Event{Kind: api.EventGateway, ID: u.Gateway.ID().String(), Name: u.Name, Text: text + ": " + u.Reason})
	}
	s.stir()
}

// settle makes the host fit the wish, the line and the lease. It reports whether it could.
func (s *sharing) settle() bool {
	s.mu.Lock()
	want, use, line, watched, wishes := s.want, s.use, s.line, s.watched, s.wishes
	s.mu.Unlock()
	using := !use.Gateway.IsZero()
	var errs []error
	offer := want.Offer && !using
	if watched {
		s.gw.SetUplink(line.IPv4, line.IPv6)
		if err := s.gw.SetLocal(line.Local); err != nil { // clients might reach what is not known: better none
			offer = false
			errs = append(errs, err)
		}
	} else if offer && s.n.opt.World == nil {
		offer = false
		errs = append(errs, errors.New("the addresses of this device are not known, so clients could reach its own network"))
	}
	live := watched && (line.IPv4 && want.IPv4 || line.IPv6 && want.IPv6 == "nat")
	if !live || s.since.IsZero() {
		s.since = time.Time{}
		if live {
			s.since = time.Now()
		}
	}
	wait := live && using && want.Offer && want.Use == "auto"
	stable := live && time.Since(s.since) >= lineStable
	choice := choiceFor(want, using, stable, s.chosen == "off" && live)
	if choice != want.Use && using && s.chosen != choice {
		s.n.log.Info("the own line is back and is used again")
	}
	errs = append(errs, s.choose(choice))
	if !offer {
		s.stopOffer() // before the kernel forgets what to do with clients' packets
	}
	whole, err := s.route(want, use, offer)
	errs = append(errs, err)
	s.mu.Lock()
	s.nat, s.away = s.kernel.gateway, s.exit
	s.mu.Unlock()
	switch {
	case err == nil && offer:
		errs = append(errs, s.announce(want))
	case offer:
		s.stopOffer()
	}
	errs = append(errs, s.openDNS(offer), s.upstreams(use))
	if s.isOffered() {
		errs = append(errs, s.choose(want.Use)) // from now on gateway itself uses none while the line is there
	}
	s.guest.setUplink(line, watched, use)
	s.tellShared(offer && err == nil && (!watched || line.IPv4 && want.IPv4 || line.IPv6 && want.IPv6 == "nat"))
	err = errors.Join(errs...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.whole, s.settled, s.through = whole, wishes, use.Gateway
	problem := ""
	if err != nil {
		problem = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	if problem != "" && problem != s.problem {
		s.n.log.Warn("sharing the internet", "problem", problem)
	}
	s.problem = problem
	return err == nil && !wait
}

// lineStable is how long the own line must be back before another's is left for it: a little longer than gateway waits until it
// counts the line as there, or it would take the next lease at once.
const lineStable = 12 * time.Second

// choiceFor is the choice that gateway is told. The owner's, except for who shares a line and takes another's while it is down:
// as long as a lease is in force nothing is offered, and gateway does not know that the line is shared. So the lease is given up
// here when the line is back, and no other taken until the offer stands.
func choiceFor(want config.Gateway, using, stable, leaving bool) string {
	if want.Offer && want.Use == "auto" && (using && stable || !using && leaving) {
		return "off"
	}
	return want.Use
}

// choose tells gateway the choice, if it does not know it. A node that is not known yet is an error, and tried again.
func (s *sharing) choose(text string) error {
	if s.chosen == text {
		return nil
	}
	choice, _, err := s.n.choiceOf(text)
	if err == nil {
		err = s.gw.Use(choice)
	}
	if err == nil {
		s.chosen = text
	}
	return err
}

func (s *sharing) isOffered() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.offered != nil
}

func (s *sharing) stopOffer() {
	s.gw.StopOffer()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offered = nil
}

// ended ends the connections of addresses that clients have given back.
func (s *sharing) ended(addrs []netip.Addr) {
	s.mu.Lock()
	nat, away := s.nat, s.away
	s.mu.Unlock()
	if away != nil {
		for _, a := range addrs {
			away.dev.Forget(a)
		}
	}
	if nat != nil {
		if err := nat.Forget(addrs); err != nil {
			if !s.kept.Swap(true) { // clients come and go: once is enough
				s.n.log.Warn("connections of clients that have gone are kept: a client that gets such an address may see what is still on its way", "err", err)
			}
		}
	}
}

// tellShared notes in the log when others begin to use this device's line, and when they no longer can.
func (s *sharing) tellShared(shared bool) {
	if shared == s.shared {
		return
	}
	s.shared = shared
	s.n.log.Info(map[bool]string{true: "this device's internet line is shared", false: "this device's internet line is not shared now"}[shared])
}

// announce offers the line as the owner wants, if that is not said already.
func (s *sharing) announce(want config.Gateway) error {
	want.Price = config.Price(s.price())
	s.mu.Lock()
	names := s.names != 0
	same := s.offered != nil && equalOffers(*s.offered, want) && s.offersDNS == names
	s.mu.Unlock()
	if same {
		return nil
	}
	o := gateway.OfferConfig{
		IPv4: want.IPv4, IPv6: want.IPv6 == "nat", DNS: names, Price: uint32(want.Price), DownKbps: want.Down.Kbit(), UpKbps: want.Up.Kbit(),
		MembersOnly: want.Members, Metered: s.n.cfg.Metered, Rules: s.rules, Pool: s.pool(), MTU: s.mtu(),
	}
	if p, err := netip.ParsePrefix(s.n.cfg.Gateway.NAT64); err == nil && want.IPv4 {
		o.NAT64 = p
	}
	if err := s.gw.Offer(o); err != nil {
		return err
	}
	s.mu.Lock()
	s.offered, s.offersDNS = &want, names
	s.mu.Unlock()
	return nil
}

// price is what the owner asks, but no more than the members allow.
func (s *sharing) price() uint32 {
	s.mu.Lock()
	p := uint32(s.want.Price)
	s.mu.Unlock()
	if r := s.n.tabs.rules.Load(); r != nil {
		p = min(p, r.PriceMost)
	}
	return p
}

// lineRate is what others may have of the line, both directions together, in bits a second; 0: it is not limited.
func (s *sharing) lineRate() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.want.Down == 0 || s.want.Up == 0 {
		return 0
	}
	return uint64(s.want.Down) + uint64(s.want.Up)
}

func equalOffers(a, b config.Gateway) bool {
	return a.Offer == b.Offer && a.Price == b.Price && a.Down == b.Down && a.Up == b.Up && a.IPv4 == b.IPv4 && a.IPv6 == b.IPv6 && a.Members == b.Members
}

// mtu is what of an outside packet fits into this node's device and session: the addresses are not left out there as between
// mesh addresses (docs/spec/session.md section 3).
func (s *sharing) mtu() uint16 { return uint16(max(s.n.device.MTU()-32, 1280)) }

// pool is where leases come from.
func (s *sharing) pool() netip.Prefix {
	if s.kernel.pool.IsValid() {
		return s.kernel.pool
	}
	return gateway.DefaultPool
}

// openDNS lets clients ask this node's resolver while it shares its line; what they may ask, Recurse says. Another program's
// resolver at that port stays closed: see serveMeshDNS.
func (s *sharing) openDNS(offer bool) error {
	s.mu.Lock()
	offer = offer && s.names != 0
	s.mu.Unlock()
	switch {
	case offer && s.shut == nil:
		var rules []firewall.Rule
		for _, text := range []string{"allow udp 53 from any", "allow tcp 53 from any"} {
			r, err := firewall.ParseRule(text)
			if err != nil {
				return err
			}
			rules = append(rules, r)
		}
		shut, err := s.n.firewall.Open(rules...)
		if err != nil {
			return err
		}
		s.shut = shut
	case !offer && s.shut != nil:
		s.shut()
		s.shut = nil
	}
	return nil
}

// takeBack leaves the host as it was.
func (s *sharing) takeBack() {
	if err := s.kernel.close(); err != nil {
		s.n.log.Error("the host's network is not all as it was", "err", err)
	}
	if s.exit != nil {
		s.exit.close()
		s.exit = nil
	}
	s.openDNS(false)
	s.dns.Close()
}

// readSessions gives the meter the sessions' counters.
func (s *sharing) readSessions() []meter.SessionReading {
	list := s.n.sessions.Sessions()
	out := make([]meter.SessionReading, len(list))
	for i := range list {
		out[i] = readingOf(list[i])
	}
	return out
}

func (s *sharing) readSession(peer ident.PublicKey) (meter.SessionReading, bool) {
	i, ok := s.n.sessions.With(peer)
	return readingOf(i), ok
}

func (s *sharing) meterEvent(e meter.Event) {
	text := fmt.Sprintf("the meters of this node and %s agree again", s.n.routing.nameOf(e.Peer))
	if e.Gap {
		text = fmt.Sprintf("the meters of this node and %s differ: %v", s.n.routing.nameOf(e.Peer), e.Reason)
	}
	s.n.hub.Publish(api.Event{Kind: api.EventMeter, ID: e.Peer.ID().String(), Name: s.n.routing.name(e.Peer.ID()), Text: text})
}

// newDNS makes the resolver.
func (s *sharing) newDNS() (*dns.Resolver, error) {
	n := s.n
	zones := []string{"weft"}
	if h := n.cfg.Guest.Host; h != "" {
		zones = append(zones, h)
	}
	return dns.New(dns.Config{
		Dial: s.dialUpstream, Upstreams: n.cfg.DNS.Upstream, Zones: zones, Names: s.meshName, Reverse: s.reverse,
		DNS64: func() (netip.Prefix, bool) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.use.NAT64, n.cfg.DNS.DNS64 && s.use.NAT64.IsValid()
		},
		WantDNS64: s.wantDNS64, Recurse: s.mayRecurse, Why: s.whyNoDNS, Log: n.log.With("room", "dns"),
	})
}

// meshName finds the address of a name that ends in .weft, and of the guests' first page.
func (s *sharing) meshName(ctx context.Context, name string) ([]netip.Addr, bool) {
	if a, ok := s.guest.portal(name); ok {
		return a, true
	}
	if addrs, there, ours := s.n.coop.resolve(ctx, name); ours {
		return addrs, there
	}
	key, err := s.n.find(strings.TrimSuffix(name, ".weft"))
	if err != nil {
		return nil, false
	}
	return []netip.Addr{key.Addr()}, true
}

func (s *sharing) reverse(a netip.Addr) (string, bool) {
	key, ok := s.n.routing.ByAddr(a)
	if a == s.n.self.Addr() {
		key, ok = s.n.self, true
	}
	if !ok || key.Addr() != a {
		return "", false
	}
	if name := s.n.routing.name(key.ID()); dnsLabel(name) {
		return name + ".weft", true
	}
	return key.ID().String() + ".weft", true
}

// dnsLabel reports whether a node's name can stand in DNS as it is.
func dnsLabel(s string) bool {
	return s != "" && len(s) <= 63 && !strings.ContainsFunc(s, func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
}

// wantDNS64: devices behind this node may have IPv6 alone; this host itself when the lease has no IPv4.
func (s *sharing) wantDNS64(src netip.Addr) bool {
	if s.n.self.Subnet().Contains(src) {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	own := !src.IsValid() || src.IsLoopback() || src == s.n.self.Addr()
	return own && !s.use.IPv4.IsValid()
}

// mayRecurse lets this host, its guests and the clients with a lease ask for names of the outside.
func (s *sharing) mayRecurse(src netip.Addr) bool {
	if !ident.MeshPrefix.Contains(src) || src == s.n.self.Addr() || s.n.self.Subnet().Contains(src) {
		return true
	}
	key, ok := s.n.routing.ByAddr(src)
	if !ok || key.Addr() != src { // devices behind a client ask the client
		return false
	}
	_, ok = s.gw.LeaseOf(key)
	return ok
}

func (s *sharing) whyNoDNS() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.use.Gateway.IsZero() && len(s.asked) == 1 {
		return "the gateway in use has no resolver, and the servers of this system are on the own line: set [dns] upstream"
	}
	if s.use.Gateway.IsZero() && s.watched && !s.line.IPv4 && !s.line.IPv6 {
		return "no gateway is in use and this device has no line: weft gateway use auto"
	}
	return ""
}

// upstreams says whom the resolver asks: whom the owner names, else the gateway in use, else the servers of this system.
func (s *sharing) upstreams(use gateway.Use) error {
	list := s.n.cfg.DNS.Upstream
	if len(list) == 0 {
		for _, a := range use.DNS {
			list = append(list, "udp://"+netip.AddrPortFrom(a, 53).String())
		}
	}
	if len(list) == 0 && s.n.opt.World == nil {
		// With a gateway that has no resolver, a server of the LAN would tell the own line's owner every name.
		list = systemServers(!use.Gateway.IsZero())
	}
	s.mu.Lock()
	via := use.Gateway.String()
	same := slices.Equal(s.asked, append([]string{via}, list...))
	s.asked = append([]string{via}, list...)
	s.mu.Unlock()
	if same {
		return nil
	}
	defer s.dns.Flush() // another view of the internet
	return s.dns.SetUpstreams(list)
}

// dialUpstream connects to a DNS server: of the mesh, through the gateway in use, or by this host's own line.
func (s *sharing) dialUpstream(ctx context.Context, network, address string) (net.Conn, error) {
	if at, err := netip.ParseAddrPort(address); err == nil && ident.MeshPrefix.Contains(at.Addr()) {
		c, err := s.n.net.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &doubting{Conn: c, doubt: s.gw.Doubt}, nil
	}
	s.mu.Lock()
	using, fenced := !s.use.Gateway.IsZero(), strict(s.want) && !s.want.Offer
	s.mu.Unlock()
	switch {
	case !using && fenced:
		return nil, errors.New("no gateway can be reached, and the own line may not be used ([gateway] strict)")
	case !using:
		d := net.Dialer{Control: host.Control}
		return d.DialContext(ctx, network, address)
	case s.n.mode == "tun":
		d := net.Dialer{Control: host.ControlTunnel}
		return d.DialContext(ctx, network, address)
	}
	return s.n.net.DialContext(ctx, network, address)
}

// doubting is a connection to the gateway's resolver that tells when it is silent: gateway sees outside packets only, and names
// come first.
type doubting struct {
	net.Conn
	doubt func()
	mu    sync.Mutex // guards timer
	timer *time.Timer
}

const dnsPatience = 500 * time.Millisecond

func (d *doubting) Write(b []byte) (int, error) {
	d.mu.Lock()
	if d.timer == nil {
		d.timer = time.AfterFunc(dnsPatience, d.doubt)
	}
	d.mu.Unlock()
	return d.Conn.Write(b)
}

func (d *doubting) Read(b []byte) (int, error) {
	n, err := d.Conn.Read(b)
	if err == nil {
		d.calm()
	}
	return n, err
}

func (d *doubting) Close() error {
	d.calm()
	return d.Conn.Close()
}

func (d *doubting) calm() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

// dialOutside is the proxy's way to what is not in the mesh: through the gateway in use and no other way.
func (s *sharing) dialOutside(ctx context.Context, network, name string, port uint16) (net.Conn, error) {
	s.mu.Lock()
	using, reason := !s.use.Gateway.IsZero(), s.use.Reason
	choice := s.want.Use
	if using && s.n.mode == "tun" && !s.whole { // the kernel's routes still lead to the own line
		using, reason = false, "this device's traffic does not go through the gateway yet"
		if s.problem != "" {
			reason = s.problem
		}
	}
	s.mu.Unlock()
	if !using {
		if choice == "off" {
			return nil, proxy.ErrNoGateway
		}
		return nil, fmt.Errorf("%w: %s", proxy.ErrNoGateway, reason)
	}
	addrs := []netip.Addr{}
	if a, err := netip.ParseAddr(name); err == nil {
		addrs = append(addrs, a.Unmap())
	} else if addrs, err = s.dns.Lookup(ctx, name, "ip"); err != nil {
		return nil, err
	}
	var last error
	for _, a := range addrs {
		if !proxy.MayLeave(a) {
			last = fmt.Errorf("%w: %s is %s, which is not on the internet", proxy.ErrPolicy, name, a)
			continue
		}
		if s.n.mode == "tun" {
			var d net.Dialer
			c, err := d.DialContext(ctx, network, netip.AddrPortFrom(a, port).String())
			if err == nil {
				return c, nil
			}
			last = err
			continue
		}
		c, err := s.n.net.DialContext(ctx, network, netip.AddrPortFrom(a, port).String())
		if err == nil {
			return c, nil
		}
		last = err
	}
	return nil, last
}

// gateways lists the gateways that the routing table knows a way to.
func (r *routing) gateways() []gateway.Candidate {
	t := r.table.Load()
	var out []gateway.Candidate
	for id, v := range t.Nodes() {
		b := v.Extension(wire.ExtGateway)
		if b == nil || id == r.n.self.ID() {
			continue
		}
		o, err := gateway.ParseOffer(b)
		if err != nil {
			continue // of a later version, or of a liar: either way not for us
		}
		hop, ok := t.Route(id)
		if !ok {
			continue
		}
		out = append(out, gateway.Candidate{Key: v.Key(), Name: string(v.Extension(wire.ExtName)), Offer: o,
			CostMicros: uint32(min(hop.Cost, 1<<32-1)), PathPrice: uint32(min(hop.Price, 1<<32-1))})
	}
	return out
}

// announce puts a gateway's offer into this node's LSA.
func (r *routing) announce(offer []byte) {
	if err := r.say(func(l *route.Local) { l.Gateway = offer }); err != nil {
		r.n.log.Error("the offer is not announced", "err", err)
	}
}

// penalise multiplies the cost of the link to a neighbour that loses what it should carry.
func (r *routing) penalise(id ident.NodeID, permille int) {
	r.do(func(now time.Time) {
		if permille <= 1000 {
			delete(r.penalties, id)
		} else {
			r.penalties[id] = permille
		}
		for _, l := range r.links {
			if l.Peer().ID() == id {
				r.core.LinkChanged(now, r.infoLocked(l))
			}
		}
	})
	text := r.nameOfID(id) + " carries well again"
	if permille > 1000 {
		text = r.nameOfID(id) + " loses what it should carry: traffic avoids it"
	}
	r.n.hub.Publish(api.Event{Kind: api.EventMeter, ID: id.String(), Name: r.name(id), Text: text})
}

func (r *routing) nameOfID(id ident.NodeID) string {
	if s := r.name(id); s != "" {
		return s
	}
	return id.String()
}

// nextHop tells which neighbour this node hands packets for a node to.
func (r *routing) nextHop(dest ident.NodeID) (ident.NodeID, bool) {
	hop, ok := r.table.Load().Route(dest)
	if !ok {
		return 0, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.links[hop.Link]; l != nil {
		return l.Peer().ID(), true
	}
	return 0, false
}

// linkLoss is what the link to a neighbour loses by itself, in permille.
func (r *routing) linkLoss(id ident.NodeID) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.links {
		if l.Peer().ID() == id {
			out, _ := l.Loss()
			return int(out * 1000)
		}
	}
	return 0
}

// addFlow adds a flow without its hops, which the meter does not tell apart: those that differ in them alone stand together.
func addFlow(to []meter.Flow, f forward.Flow) []meter.Flow {
	m := meter.Flow{Dest: f.Dest, Class: uint8(f.Class), Packets: f.Packets, Bytes: f.Bytes}
	if n := len(to); n > 0 && to[n-1].Dest == m.Dest && to[n-1].Class == m.Class {
		to[n-1].Packets += m.Packets
		to[n-1].Bytes += m.Bytes
		return to
	}
	return append(to, m)
}

// readLinks gives the meter the counters of the packet path.
func (r *routing) readLinks() []meter.LinkReading {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]meter.LinkReading, 0, len(r.links))
	for _, l := range r.links {
		nb := l.Neighbour()
		m := meter.LinkReading{Neighbour: l.Peer().ID(), Epoch: uint64(l.Since().UnixNano()) ^ uint64(nb.Index())<<40}
		for _, f := range nb.Flows() {
			m.Recv = addFlow(m.Recv, f)
		}
		for _, f := range nb.Handed() {
			m.Sent = addFlow(m.Sent, f.Flow)
		}
		out = append(out, m)
	}
	return out
}
