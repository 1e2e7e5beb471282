package host

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	gatewayTables = "weft-gw-" // and the name of the TUN
	closed4       = "closed4"
	closed6       = "closed6"
	// everywhere stands in closed6 for all interfaces; no interface can be called so.
	everywhere = "*"
	// tunGroup is the interface group of gateways' TUNs, where IPv6 forwarding is for all interfaces or none.
	tunGroup = 7764
)

// Gateway is an open gateway.
type Gateway struct {
	c       GatewayConfig
	log     *slog.Logger
	nl      *netlink.Handle
	flows   *netlink.Handle // conntrack
	tun     netlink.Link
	table   *table
	journal *journal
	routes  []netip.Prefix
	uplink  *Uplink
	force   bool // force_forwarding exists

	wan4, wan6, local4, local6, shut4, shut6 *nftables.Set

	mu      sync.Mutex
	shut    map[string][]string // closed4 and closed6: interfaces whose forwarding we have switched on
	blocked []string
	closed  bool
}

// OpenGateway begins to carry packets. It recovers first what a killed process has left behind.
func OpenGateway(c GatewayConfig) (*Gateway, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if err := Recover(c.StateFile); err != nil {
		return nil, err
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("talk to the kernel's routing: %w", err)
	}
	flows, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		nl.Close()
		return nil, fmt.Errorf("talk to the kernel's table of connections: %w", err)
	}
	g := &Gateway{c: c, log: logger(c.Log), nl: nl, flows: flows, journal: newJournal(c.StateFile), shut: map[string][]string{}}
	if err := g.open(); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

func (c *GatewayConfig) check() error {
	if err := checkName("TUN", c.TUN); err != nil {
		return err
	}
	if c.WAN != "" {
		if err := checkName("WAN", c.WAN); err != nil {
			return err
		}
		if c.WAN == c.TUN {
			return fmt.Errorf("the line cannot be the TUN %s: leave it empty to take the one with the default route", c.TUN)
		}
	}
	switch p := c.Pool; {
	case p == netip.Prefix{}:
		if !c.IPv6 {
			return errors.New("a gateway needs IPv4 (a pool), IPv6 or both")
		}
	case !p.IsValid() || p != p.Masked() || !cgnat.Contains(p.Addr()) || p.Bits() < cgnat.Bits() || p.Bits() > 30:
		return fmt.Errorf("the pool %v is not a network of 2 addresses or more within %v", p, cgnat)
	}
	if p := c.Prefix6; p != (netip.Prefix{}) {
		if !c.IPv6 {
			return fmt.Errorf("the prefix %v is of no use when IPv6 is off", p)
		}
		if !p.IsValid() || p != p.Masked() || !outside(p.Addr()) || !p.Addr().Is6() || p.Bits() < 16 || p.Bits() > 126 {
			return fmt.Errorf("%v is not a network of global IPv6 addresses", p)
		}
	}
	for _, p := range c.Deny {
		if !p.IsValid() || p.Addr().Is4In6() {
			return fmt.Errorf("%v is not a network that can be denied", p)
		}
	}
	return checkStateFile(c.StateFile)
}

func checkName(what, name string) error {
	if name == "" || len(name) >= unix.IFNAMSIZ || name == "." || name == ".." || strings.ContainsAny(name, "/ \t\n*") {
		return fmt.Errorf("%s: %q is not the name of an interface", what, name)
	}
	return nil
}

func checkStateFile(path string) error {
	if path == "" {
		return errors.New("no state file: without one, nothing could be restored after a crash")
	}
	if st, err := os.Stat(filepath.Dir(path)); err != nil || !st.IsDir() {
		return fmt.Errorf("the folder of the state file %s does not exist: make it", path)
	}
	return nil
}

func (g *Gateway) open() error {
	tun, err := g.nl.LinkByName(g.c.TUN)
	if err != nil {
		return fmt.Errorf("find the TUN %s: %w", g.c.TUN, err)
	}
	taken, err := HostPrefixes(g.c.TUN)
	if err != nil {
		return err
	}
	var routes []netip.Prefix
	if g.c.Pool.IsValid() {
		routes = append(routes, g.c.Pool)
		if i := slices.IndexFunc(taken, g.c.Pool.Overlaps); i >= 0 {
			return fmt.Errorf("the pool %v overlaps %v, which this host uses already: choose another part of %v", g.c.Pool, taken[i], cgnat)
		}
	}
	if p := g.c.Prefix6; p.IsValid() {
		routes = append(routes, p)
		// Networks around it are where it was cut from; only what is as large or smaller would be torn apart.
		if i := slices.IndexFunc(taken, func(t netip.Prefix) bool { return t.Overlaps(p) && t.Bits() >= p.Bits() }); i >= 0 {
			return fmt.Errorf("the prefix %v is used on this host already (%v): give the gateway one of its own", p, taken[i])
		}
	}
	_, err = os.Stat(sysctlRoot + "net/ipv6/conf/" + g.c.TUN + "/force_forwarding")
	g.force = err == nil && !g.c.noForce
	if g.c.IPv6 {
		if _, err := os.Stat(sysctlRoot + "net/ipv6/conf/" + g.c.TUN); err != nil {
			return fmt.Errorf("IPv6 is switched off on this host: switch it on, or leave IPv6 out: %w", err)
		}
	}

	name := gatewayTables + g.c.TUN
	if err := g.journal.note(name); err != nil {
		return err
	}
	g.table, err = newTable(name, g.log)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("another process is a gateway with %s already: %w", g.c.TUN, err)
	}
	if err != nil {
		return err
	}
	g.tun = tun // from here on it is ours
	if err := g.table.change(g.rules); err != nil {
		return err
	}
	if g.c.IPv6 && !g.force {
		if err := g.nl.LinkSetGroup(tun, tunGroup); err != nil {
			return fmt.Errorf("put %s into a group: %w", g.c.TUN, err)
		}
	}
	for _, p := range routes {
		if err := g.journal.note("", poolRoute{p, g.c.TUN}); err != nil {
			return err
		}
		r := tunRoute(p, g.tun.Attrs().Index)
		r.MTU = g.c.MTU
		if err := g.nl.RouteReplace(r); err != nil {
			return fmt.Errorf("route %v into %s: %w", p, g.c.TUN, err)
		}
		g.routes = append(g.routes, p)
	}
	if err := g.forward(g.c.TUN, false); err != nil {
		return err
	}
	g.mu.Lock() // until the first state is in the kernel, no later one
	defer g.mu.Unlock()
	g.uplink, err = OpenUplink(UplinkConfig{Ignore: []string{g.c.TUN}, Log: g.c.Log, Changed: g.changed})
	if err != nil {
		return err
	}
	return g.followLocked(g.uplink.State())
}

// tunRoute makes the route of a network into a TUN.
func tunRoute(p netip.Prefix, link int) *netlink.Route {
	r := &netlink.Route{LinkIndex: link, Dst: ipNet(p), Protocol: Protocol}
	if p.Addr().Is4() {
		r.Scope = netlink.SCOPE_LINK
	}
	return r
}

// State returns which lines there are.
func (g *Gateway) State() State { return g.uplink.State() }

// Blocked names the chains of others ("ip filter FORWARD") that drop forwarded packets unless their own rules let them through. Leases
// get nothing until those do.
func (g *Gateway) Blocked() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.blocked)
}

// Close takes everything back and waits for what runs. It may be called again.
func (g *Gateway) Close() error {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil
	}
	g.closed = true
	g.mu.Unlock()
	var errs []error
	if g.uplink != nil {
		errs = append(errs, g.uplink.Close())
	}
	// What was switched on is switched off before the rules go that guard it.
	errs = append(errs, g.journal.undo(neededByOthers(gatewayTables+g.c.TUN)))
	for _, p := range g.routes {
		if err := g.nl.RouteDel(tunRoute(p, g.tun.Attrs().Index)); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("take back the route of %v: %w", p, err))
		}
	}
	if g.tun != nil {
		if err := g.nl.LinkSetGroup(g.tun, int(g.tun.Attrs().Group)); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("put %s into its group again: %w", g.c.TUN, err))
		}
		errs = append(errs, g.table.close())
	}
	g.nl.Close()
	g.flows.Close()
	return errors.Join(errs...)
}

// Forget ends the connections that the kernel translates for addresses of the pool, so that whoever is given one next does not get what
// is still on its way to the one before. It reads the kernel's whole table of connections once: give it many at a time.
func (g *Gateway) Forget(addrs []netip.Addr) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || len(addrs) == 0 {
		return nil
	}
	of := flowsOf{}
	for _, a := range addrs {
		of[a] = true
	}
	if _, err := g.flows.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, of); err != nil {
		return fmt.Errorf("end the connections of addresses that were given back: %w", err)
	}
	return nil
}

// flowsOf picks the connections that certain addresses began.
type flowsOf map[netip.Addr]bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flowsOf) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	a, ok := netip.AddrFromSlice(c.Forward.SrcIP)
	return ok && f[a.Unmap()]
}

// changed is called by the uplink.
func (g *Gateway) changed(s State) {
	g.mu.Lock()
	err := g.followLocked(s)
	g.mu.Unlock()
	if err != nil {
		g.log.Error("the gateway could not follow a change of the network", "error", err)
	}
	if g.c.Changed != nil {
		g.c.Changed(s)
	}
}

// followLocked writes into the kernel what lines there are.
func (g *Gateway) followLocked(s State) error {
	w4, w6 := s.wans4, s.wans6
	if g.c.WAN != "" {
		w4, w6 = []string{g.c.WAN}, []string{g.c.WAN}
	}
	if !g.c.Pool.IsValid() {
		w4 = nil
	}
	if !g.c.IPv6 {
		w6 = nil
	}
	var errs []error
	// Switched on in this order, so that no interface forwards for others for a moment: first closed, then on.
	for _, w := range w4 {
		errs = append(errs, g.forward4(w, true))
	}
	for _, w := range w6 {
		errs = append(errs, g.forward6(w, true))
	}
	local := slices.Concat(s.Local, g.c.Deny)
	errs = append(errs, g.table.change(func(c *nftables.Conn) error {
		for _, e := range []struct {
			set  *nftables.Set
			vals []nftables.SetElement
		}{
			{g.wan4, names(w4)}, {g.wan6, names(w6)}, {g.local4, intervals(merge(local, false))}, {g.local6, intervals(merge(local, true))},
		} {
			c.FlushSet(e.set)
			if len(e.vals) == 0 {
				continue
			}
			if err := c.SetAddElements(e.set, e.vals); err != nil {
				return err
			}
		}
		return nil
	}))
	g.lookForDropsLocked()
	return errors.Join(errs...)
}

// forward switches forwarding on for packets that come in on an interface, in the families that are shared. With guard, the forward chain
// closes to others what was not open before.
func (g *Gateway) forward(dev string, guard bool) error {
	var err4, err6 error
	if g.c.Pool.IsValid() {
		err4 = g.forward4(dev, guard)
	}
	if g.c.IPv6 {
		err6 = g.forward6(dev, guard)
	}
	return errors.Join(err4, err6)
}

func (g *Gateway) forward4(dev string, guard bool) error {
	return g.switchOn("net/ipv4/conf/"+dev+"/forwarding", closed4, dev, guard)
}

func (g *Gateway) forward6(dev string, guard bool) error {
	if !g.force {
		return g.switchOn(forwardAll6, closed6, everywhere, true)
	}
	// Where the owner has made the host a router, there is nothing to do, unless it was another gateway.
	if on, err := readSysctl(forwardAll6); err != nil || on == "1" && !others(gatewayTables+g.c.TUN, closed6)[everywhere] {
		return err
	}
	return g.switchOn("net/ipv6/conf/"+dev+"/force_forwarding", closed6, dev, guard)
}

// switchOn writes 1 into a forwarding sysctl. Who comes in on dev and was not forwarded before, is stopped by the set named closed.
func (g *Gateway) switchOn(key, closed, dev string, guard bool) error {
	now, err := readSysctl(key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the interface has just gone, or is yet to come
	}
	if err != nil {
		return err
	}
	was := now
	if others(gatewayTables+g.c.TUN, closed)[dev] {
		was = "0" // it is on only for the other gateway
	}
	if was != "0" {
		return nil
	}
	if guard && !slices.Contains(g.shut[closed], dev) {
		set := g.shut4
		if closed == closed6 {
			set = g.shut6
		}
		err := g.table.change(func(c *nftables.Conn) error {
			if dev == everywhere {
				g.guardAll6(c)
			}
			return c.SetAddElements(set, names([]string{dev}))
		})
		if err != nil {
			return err
		}
		g.shut[closed] = append(g.shut[closed], dev)
	}
	return g.journal.set(key, "1", was)
}

// others returns what other gateways on this host have in a set: interfaces that forward only because of them.
func others(self, set string) map[string]bool {
	out := map[string]bool{}
	tables, err := findTables(func(n string) bool { return strings.HasPrefix(n, gatewayTables) && n != self })
	if err != nil || len(tables) == 0 {
		return out
	}
	c, err := nftables.New()
	if err != nil {
		return out
	}
	for _, t := range tables {
		s, err := c.GetSetByName(t, set)
		if err != nil {
			continue
		}
		s.Table = t
		elems, err := c.GetSetElements(s)
		if err != nil {
			continue
		}
		for _, e := range elems {
			name, _, _ := strings.Cut(string(e.Key), "\x00")
			out[name] = true
		}
	}
	return out
}

// neededByOthers returns a function that tells which sysctls other gateways still need.
func neededByOthers(self string) func(key string) bool {
	on4, on6 := others(self, closed4), others(self, closed6)
	return func(key string) bool {
		if key == forwardAll6 {
			return on6[everywhere]
		}
		dev := filepath.Base(filepath.Dir(key))
		return strings.HasPrefix(key, "net/ipv4/") && on4[dev] || strings.HasPrefix(key, "net/ipv6/") && on6[dev]
	}
}

// rules writes the table.
func (g *Gateway) rules(c *nftables.Conn) error {
	t, tun := g.table, g.c.TUN
	set := func(name string, key nftables.SetDatatype, interval bool) *nftables.Set {
		s := &nftables.Set{Table: t.Table, Name: name, KeyType: key, Interval: interval}
		if key == nftables.TypeIFName {
			s.KeyByteOrder = binaryutil.NativeEndian // for `nft list ruleset` to show names
		}
		return s
	}
	g.wan4, g.wan6 = set("wan4", nftables.TypeIFName, false), set("wan6", nftables.TypeIFName, false)
	g.shut4, g.shut6 = set(closed4, nftables.TypeIFName, false), set(closed6, nftables.TypeIFName, false)
	g.local4, g.local6 = set("local4", nftables.TypeIPAddr, true), set("local6", nftables.TypeIP6Addr, true)
	for _, s := range []*nftables.Set{g.wan4, g.wan6, g.shut4, g.shut6, g.local4, g.local6} {
		if err := c.AddSet(s, nil); err != nil {
			return err
		}
	}

	// Who may come out of the TUN, and what of this host it may reach: before anybody's rules translate destinations.
	pre := t.chain(c, "prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -150)
	t.rule(c, pre, notIif(tun), accept())
	t.rule(c, pre, withinMesh(), accept())
	if g.c.Pool.IsValid() {
		t.rule(c, pre, ipv(4), src().not(g.c.Pool), drop())
	} else {
		t.rule(c, pre, ipv(4), drop())
	}
	switch {
	case !g.c.IPv6:
		t.rule(c, pre, ipv(6), drop())
	case g.c.Prefix6.IsValid():
		t.rule(c, pre, ipv(6), src().not(g.c.Prefix6), drop())
	default:
		t.rule(c, pre, ipv(6), src().not(mesh), drop())
	}
	t.rule(c, pre, answers(), accept()) // this host may speak to leases
	t.rule(c, pre, toHere(), drop())

	in := t.chain(c, "input", nftables.ChainTypeFilter, nftables.ChainHookInput, 0)
	t.rule(c, in, notIif(tun), accept())
	t.rule(c, in, withinMesh(), accept())
	t.rule(c, in, answers(), accept())
	t.rule(c, in, drop()) // broadcast, multicast, and what others' rules have sent here

	fwd := t.chain(c, "forward", nftables.ChainTypeFilter, nftables.ChainHookForward, 0)
	t.rule(c, fwd, withinMesh(), accept())
	t.rule(c, fwd, iif(tun), clampMSS())
	t.rule(c, fwd, oif(tun), clampMSS())
	t.rule(c, fwd, iif(tun), ipv(4), dst().inSet(g.local4), drop())
	t.rule(c, fwd, iif(tun), ipv(6), dst().inSet(g.local6), drop())
	t.rule(c, fwd, iif(tun), ipv(4), ifnameIn(expr.MetaKeyOIFNAME, g.wan4), accept())
	t.rule(c, fwd, iif(tun), ipv(6), ifnameIn(expr.MetaKeyOIFNAME, g.wan6), accept())
	t.rule(c, fwd, iif(tun), drop())
	t.rule(c, fwd, answers(), accept())
	if g.c.Pool.IsValid() {
		t.rule(c, fwd, oif(tun), ipv(4), dst().in(g.c.Pool), drop())
	}
	if g.c.Prefix6.IsValid() {
		t.rule(c, fwd, oif(tun), ipv(6), dst().in(g.c.Prefix6), drop())
	}
	t.rule(c, fwd, ipv(4), ifnameIn(expr.MetaKeyIIFNAME, g.shut4), drop())
	t.rule(c, fwd, ipv(6), ifnameIn(expr.MetaKeyIIFNAME, g.shut6), drop())

	if g.c.DNSPort != 0 {
		dns := t.chain(c, "dns", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, -100)
		for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			t.rule(c, dns, iif(tun), withinMesh(), toHere(), l4(proto), dport(53), redirect(g.c.DNSPort))
		}
	}

	nat := t.chain(c, "postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, 100)
	if g.c.Pool.IsValid() {
		t.rule(c, nat, ipv(4), ifnameIn(expr.MetaKeyOIFNAME, g.wan4), src().in(g.c.Pool), masquerade())
	}
	if g.c.IPv6 && !g.c.Prefix6.IsValid() {
		t.rule(c, nat, ipv(6), ifnameIn(expr.MetaKeyOIFNAME, g.wan6), src().in(mesh), masquerade())
	}
	return nil
}

// guardAll6 is for kernels that forward IPv6 on all interfaces or on none. TUNs of other gateways, which may come later, are known by
// their group.
func (g *Gateway) guardAll6(c *nftables.Conn) {
	fwd := &nftables.Chain{Name: "forward", Table: g.table.Table}
	g.table.rule(c, fwd, ipv(6), notFromGroup(tunGroup), drop())
}

// lookForDropsLocked says once which chains of others drop what we forward.
func (g *Gateway) lookForDropsLocked() {
	var now []string
	chains, err := g.listChains()
	if err != nil {
		g.log.Warn("could not read the rules of this host's firewall", "error", err)
		return
	}
	for _, ch := range chains {
		v4, v6 := ch.Table.Family != nftables.TableFamilyIPv6, ch.Table.Family != nftables.TableFamilyIPv4
		if ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward || ch.Policy == nil || *ch.Policy != nftables.ChainPolicyDrop ||
			!(v4 && g.c.Pool.IsValid() || v6 && g.c.IPv6) {
			continue
		}
		family := "inet"
		switch ch.Table.Family {
		case nftables.TableFamilyINet:
		case nftables.TableFamilyIPv4:
			family = "ip"
		case nftables.TableFamilyIPv6:
			family = "ip6"
		default:
			continue
		}
		now = append(now, fmt.Sprintf("%s %s %s", family, ch.Table.Name, ch.Name))
	}
	slices.Sort(now)
	for _, b := range now {
		if !slices.Contains(g.blocked, b) {
			g.log.Warn("the firewall of this host drops forwarded packets: let them through from and to the TUN, or clients get nothing "+
				"(Docker: iptables -I DOCKER-USER -i TUN -j ACCEPT, and the same with -o; firewalld: firewall-cmd --zone=trusted --add-interface=TUN; "+
				"OpenWrt: a zone for TUN with forwarding to wan)", "chain", b, "tun", g.c.TUN)
		}
	}
	g.blocked = now
}

func (g *Gateway) listChains() ([]*nftables.Chain, error) {
	g.table.mu.Lock()
	defer g.table.mu.Unlock()
	return g.table.c.ListChains()
}
