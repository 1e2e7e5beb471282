package host

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nobody is the IPv4 dummy address (RFC 7600 section 4.8, IANA: not a global source). The TUN has it when the lease has no IPv4, because with
// the last address of an interface the kernel removes all its IPv4 routes, and for a moment packets would take the own line.
var nobody = netip.AddrFrom4([4]byte{192, 0, 0, 8})

const clientTable = "weft-client" // one name for all nodes of a host: only one of them can have the default route

// Client is a host whose traffic goes into a TUN.
type Client struct {
	c       ClientConfig
	log     *slog.Logger
	nl      *netlink.Handle
	tun     netlink.Link
	table   *table
	journal *journal
	fence   *nftables.Chain

	mu     sync.Mutex
	addrs  ClientAddrs
	sure   bool           // addrs is what the kernel has
	given  []netip.Prefix // addresses that the TUN has from us
	ruled  [2]bool        // IPv4, IPv6: rules are there
	closed bool
}

func (a ClientAddrs) check() error {
	if a.IPv4.IsValid() && (!a.IPv4.Is4() || !a.IPv4.IsGlobalUnicast()) {
		return fmt.Errorf("%v is not an IPv4 address that a host can have", a.IPv4)
	}
	if a.IPv6.IsValid() && (!a.IPv6.Is6() || !outside(a.IPv6) && !mesh.Contains(a.IPv6)) {
		return fmt.Errorf("%v is not an IPv6 address that a host can have", a.IPv6)
	}
	return nil
}

// OpenClient sends this host's traffic into the TUN. It recovers first what a killed process has left behind. ErrBusy: another node on
// this host does it already.
func OpenClient(c ClientConfig) (*Client, error) {
	if err := errors.Join(checkName("TUN", c.TUN), c.Addrs.check(), checkStateFile(c.StateFile)); err != nil {
		return nil, err
	}
	if err := Recover(c.StateFile); err != nil {
		return nil, err
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("talk to the kernel's routing: %w", err)
	}
	k := &Client{c: c, log: logger(c.Log), nl: nl, journal: newJournal(c.StateFile)}
	if err := k.open(); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

func (k *Client) open() (err error) {
	if k.tun, err = k.nl.LinkByName(k.c.TUN); err != nil {
		return fmt.Errorf("find the TUN %s: %w", k.c.TUN, err)
	}
	k.table, err = newTable(clientTable, k.log)
	if errors.Is(err, fs.ErrExist) {
		return ErrBusy
	}
	if err != nil {
		return err
	}
	if err := k.journal.note(clientTable); err != nil { // now that it is surely ours
		return err
	}
	if err := k.table.change(k.rules); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.applyLocked(k.c.Addrs)
}

// Update follows a change of the lease. Connections that had the old addresses break; nothing goes out by the own line meanwhile.
func (k *Client) Update(a ClientAddrs) error {
	if err := a.check(); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return net.ErrClosed
	}
	if k.sure && a == k.addrs {
		return nil
	}
	return k.applyLocked(a)
}

// applyLocked gives the TUN its addresses, the table its routes, and last of all sends the traffic there.
func (k *Client) applyLocked(a ClientAddrs) error {
	k.sure = false
	// What the lease no longer has is fenced off before it is routed.
	if err := k.table.change(func(c *nftables.Conn) error { k.writeFence(c, a); return nil }); err != nil {
		return err
	}
	var errs []error
	var given []netip.Prefix
	for i, addr := range []netip.Addr{a.IPv4, a.IPv6} {
		has := addr.IsValid()
		if i == 0 && !has && !k.c.KeepOwn {
			addr = nobody
		}
		if addr.IsValid() && !mesh.Contains(addr) { // the TUN has its mesh address
			p := netip.PrefixFrom(addr, addr.BitLen())
			na := &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NOPREFIXROUTE}
			if i == 1 {
				na.Flags |= unix.IFA_F_NODAD
			}
			if err := k.nl.AddrReplace(k.tun, na); err != nil {
				return fmt.Errorf("give %s the address %v: %w", k.c.TUN, addr, err)
			}
			given = append(given, p)
			if !slices.Contains(k.given, p) {
				k.given = append(k.given, p) // so that Close removes it whatever happens below
			}
		}
		family := []int{netlink.FAMILY_V4, netlink.FAMILY_V6}[i]
		if !has && k.c.KeepOwn {
			if k.ruled[i] {
				errs = append(errs, k.deleteRules(family), k.deleteRoute(family))
				k.ruled[i] = false
			}
			continue
		}
		r := k.route(family)
		if addr.IsValid() {
			r.Src = addr.AsSlice()
		}
		r.MTU = k.c.MTU
		if err := k.nl.RouteReplace(r); err != nil {
			return fmt.Errorf("make %s the default route of table %d: %w", k.c.TUN, Table, err)
		}
		if i == 0 {
			// A packet's mark decides where a strict rp_filter looks for the way back.
			if err := k.journal.set("net/ipv4/conf/all/src_valid_mark", "1", ""); err != nil {
				return err
			}
		}
		if !k.ruled[i] {
			k.ruled[i] = true // also when only some of them could be made
			for _, r := range rulesOf(family) {
				if err := k.nl.RuleAdd(r); err != nil {
					return fmt.Errorf("add routing rule %d: %w (does this kernel have policy routing? CONFIG_IP_MULTIPLE_TABLES)", r.Priority, err)
				}
			}
		}
	}
	for _, p := range k.given {
		if slices.Contains(given, p) {
			continue
		}
		if err := k.nl.AddrDel(k.tun, &netlink.Addr{IPNet: ipNet(p)}); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("take the address %v from %s: %w", p, k.c.TUN, err))
		}
	}
	k.given, k.addrs, k.sure = given, a, len(errs) == 0
	return errors.Join(errs...)
}

// gone: what was to be deleted does not exist any more.
func gone(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EADDRNOTAVAIL)
}

func (k *Client) route(family int) *netlink.Route {
	r := tunRoute(default6, k.tun.Attrs().Index)
	if family == netlink.FAMILY_V4 {
		r = tunRoute(default4, k.tun.Attrs().Index)
	}
	r.Table = Table
	return r
}

func (k *Client) deleteRoute(family int) error {
	if err := k.nl.RouteDel(k.route(family)); err != nil && !gone(err) {
		return fmt.Errorf("delete the default route of table %d: %w", Table, err)
	}
	return nil
}

func (k *Client) deleteRules(family int) error {
	var errs []error
	for _, r := range rulesOf(family) {
		if err := k.nl.RuleDel(r); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("delete routing rule %d: %w", r.Priority, err))
		}
	}
	return errors.Join(errs...)
}

// rulesOf returns the three rules of a family, in an order in which no packet goes astray while they are made one by one.
func rulesOf(family int) []*netlink.Rule {
	rule := func(nr int) *netlink.Rule {
		r := netlink.NewRule()
		r.Family, r.Priority, r.Protocol = family, Priority+nr, Protocol
		return r
	}
	own, local, all := rule(0), rule(1), rule(2)
	own.Mark, own.Table = Mark, unix.RT_TABLE_MAIN
	local.Table, local.SuppressPrefixlen = unix.RT_TABLE_MAIN, 0
	all.Mark, all.Invert, all.Table = Mark, true, Table
	return []*netlink.Rule{own, local, all}
}

// Close takes everything back. It may be called again.
func (k *Client) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil
	}
	k.closed = true
	var errs []error
	for i, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if k.ruled[i] {
			errs = append(errs, k.deleteRules(family), k.deleteRoute(family))
		}
	}
	for _, p := range k.given {
		if err := k.nl.AddrDel(k.tun, &netlink.Addr{IPNet: ipNet(p)}); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("take the address %v from %s: %w", p, k.c.TUN, err))
		}
	}
	if k.table != nil {
		errs = append(errs, k.journal.undo(nil), k.table.close())
	}
	k.nl.Close()
	return errors.Join(errs...)
}

// rules writes the table.
func (k *Client) rules(c *nftables.Conn) error {
	t, tun := k.table, k.c.TUN

	// What others begin with this host on its own line is answered there. The mark comes first of all, so that filters of the way back see
	// it (firewalld's at -290), then into conntrack.
	first := t.chain(c, "arrive", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -310)
	t.rule(c, first, notIif(tun), notIif("lo"), mark(expr.CmpOpEq, 0), toHere(), setMark(Mark))
	remember := t.chain(c, "remember", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -150)
	t.rule(c, remember, mark(expr.CmpOpEq, Mark), state(expr.CtStateBitNEW), ctMark(0), setCtMark(Mark))
	t.rule(c, remember, ctMark(Mark), reply(), setMark(Mark)) // answers of what this host forwards to, as to a container
	answer := t.chain(c, "answer", nftables.ChainTypeRoute, nftables.ChainHookOutput, -150)
	t.rule(c, answer, ctMark(Mark), reply(), setMark(Mark))

	if k.c.DNSPort != 0 {
		dns := t.chain(c, "dns", nftables.ChainTypeNAT, nftables.ChainHookOutput, -100)
		t.rule(c, dns, mark(expr.CmpOpEq, Mark), accept())
		t.rule(c, dns, mark(expr.CmpOpEq, tunnelMark), accept())
		t.rule(c, dns, oif("lo"), accept())
		t.rule(c, dns, ipv(6), dst().in(mesh), accept())
		for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			t.rule(c, dns, l4(proto), dport(53), redirect(k.c.DNSPort))
		}
	}

	k.fence = c.AddChain(&nftables.Chain{Table: t.Table, Name: "fence"})
	for name, hook := range map[string]*nftables.ChainHook{"output": nftables.ChainHookOutput, "forward": nftables.ChainHookForward} {
		t.rule(c, t.chain(c, name, nftables.ChainTypeFilter, hook, 0), oif(tun), jump(k.fence))
	}
	return nil
}

// writeFence refuses what would go into the TUN in a family that the lease lacks. The redirection of DNS comes before it, and the interface
// that rules see afterwards is still the old one: hence loopback.
func (k *Client) writeFence(c *nftables.Conn, a ClientAddrs) {
	t := k.table
	c.FlushChain(k.fence)
	if !a.IPv4.IsValid() {
		t.rule(c, k.fence, ipv(4), dst().not(netip.MustParsePrefix("127.0.0.0/8")), noRoute())
	}
	if !a.IPv6.IsValid() {
		t.rule(c, k.fence, ipv(6), dst().not(mesh), dst().not(netip.MustParsePrefix("::1/128")), dst().not(netip.MustParsePrefix("fe80::/10")),
			dst().not(netip.MustParsePrefix("ff00::/8")), noRoute())
	}
}

// Control marks a socket of the underlay, so that it goes out by the host's own line while a client is open. For net.Dialer and
// net.ListenConfig. Without the right to set a mark (CAP_NET_ADMIN) there is no client either: that is no error.
func Control(_, _ string, c syscall.RawConn) error { return setSocketMark(c, Mark) }

// ControlTunnel marks a socket of the node's resolver: what it asks goes into the TUN like everything else, but is not sent back
// to the resolver.
func ControlTunnel(_, _ string, c syscall.RawConn) error { return setSocketMark(c, tunnelMark) }

func setSocketMark(c syscall.RawConn, mark int) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark) }); cerr != nil {
		return fmt.Errorf("mark a socket: %w", cerr)
	}
	if err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("mark a socket: %w", err)
	}
	return nil
}
