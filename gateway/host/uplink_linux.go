package host

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// settle is how long an Uplink waits after a change before it looks again: a router that learns the whole internet's routes
// reports thousands.
const settle = 100 * time.Millisecond

// Uplink watches which lines this host has.
type Uplink struct {
	c      UplinkConfig
	log    *slog.Logger
	nl     *netlink.Handle
	events *os.File
	poke   chan struct{}
	done   chan struct{}
	wg     sync.WaitGroup
	once   sync.Once

	mu    sync.Mutex
	state State
}

// OpenUplink looks, and watches from then on. Default routes count when they are in the main table.
func OpenUplink(c UplinkConfig) (*Uplink, error) {
	events, err := subscribe()
	if err != nil {
		return nil, fmt.Errorf("watch the network: %w", err)
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		events.Close()
		return nil, fmt.Errorf("watch the network: %w", err)
	}
	u := &Uplink{c: c, log: logger(c.Log), nl: nl, events: events, poke: make(chan struct{}, 1), done: make(chan struct{})}
	if u.state, err = look(nl, c.Ignore); err != nil {
		events.Close()
		nl.Close()
		return nil, err
	}
	u.wg.Go(u.listen)
	u.wg.Go(u.work)
	return u, nil
}

// State returns the latest state.
func (u *Uplink) State() State {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.state
}

// Close waits for the last call of Changed to return. It must not be called by Changed.
func (u *Uplink) Close() error {
	u.once.Do(func() {
		close(u.done)
		u.events.Close()
		u.wg.Wait()
		u.nl.Close()
	})
	return nil
}

// subscribe returns a socket on which the kernel reports changes of links, addresses and routes.
func subscribe() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	var groups uint32
	for _, g := range []int{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE} {
		groups |= 1 << (g - 1)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// listen turns any report, also one that was lost for want of room, into a poke.
func (u *Uplink) listen() {
	b := make([]byte, 4096)
	for {
		if _, err := u.events.Read(b); err != nil && !errors.Is(err, unix.ENOBUFS) {
			if !errors.Is(err, os.ErrClosed) {
				u.log.Error("the kernel reports no more changes of the network: restart the node", "error", err)
			}
			return
		}
		select {
		case u.poke <- struct{}{}:
		default:
		}
	}
}

func (u *Uplink) work() {
	for {
		select {
		case <-u.done:
			return
		case <-u.poke:
		}
		wait := time.NewTimer(settle)
		select {
		case <-u.done:
			wait.Stop()
			return
		case <-wait.C:
		}
		select { // what was reported meanwhile is seen below
		case <-u.poke:
		default:
		}
		s, err := look(u.nl, u.c.Ignore)
		if err != nil {
			u.log.Warn("could not read the state of the network", "error", err)
			continue // the next report brings it
		}
		u.mu.Lock()
		same := s.Equal(u.state)
		u.state = s
		u.mu.Unlock()
		if !same && u.c.Changed != nil {
			u.c.Changed(s)
		}
	}
}

// look reads the state of the host.
func look(nl *netlink.Handle, ignore []string) (State, error) {
	var s State
	links, err := retry(func() ([]netlink.Link, error) { return nl.LinkList() })
	if err != nil {
		return s, fmt.Errorf("list interfaces: %w", err)
	}
	alive, ignored := map[int]string{}, map[int]bool{}
	for _, l := range links {
		a := l.Attrs()
		switch {
		case slices.Contains(ignore, a.Name):
			ignored[a.Index] = true
		case a.RawFlags&unix.IFF_UP != 0 && a.RawFlags&unix.IFF_LOWER_UP != 0 && a.RawFlags&unix.IFF_LOOPBACK == 0:
			alive[a.Index] = a.Name
		}
	}
	local, own, seen6, err := addresses(nl, ignored)
	if err != nil {
		return s, err
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := retry(func() ([]netlink.Route, error) { return nl.RouteList(nil, family) }) // main table only
		if err != nil {
			return s, fmt.Errorf("list routes: %w", err)
		}
		best, wans, name := -1, []string(nil), ""
		for _, r := range routes {
			dst := prefixOf(r.Dst)
			if r.Dst == nil || dst.Bits() == 0 {
				if r.Type != unix.RTN_UNICAST {
					continue
				}
				for _, hop := range hops(r) {
					dev, ok := alive[hop.LinkIndex]
					if !ok || hop.Flags&(unix.RTNH_F_DEAD|unix.RTNH_F_LINKDOWN) != 0 {
						continue
					}
					if best < 0 || r.Priority < best {
						best, name = r.Priority, dev
					}
					wans = append(wans, dev)
				}
				continue
			}
			if r.Gw == nil && r.Via == nil && len(r.MultiPath) == 0 && r.Type == unix.RTN_UNICAST && !ignored[r.LinkIndex] {
				local = append(local, dst)
			}
		}
		slices.Sort(wans)
		wans = slices.Compact(wans)
		if family == netlink.FAMILY_V4 {
			s.IPv4, s.Interface4, s.wans4 = name != "", name, wans
		} else if seen6 {
			s.IPv6, s.Interface6, s.wans6 = name != "", name, wans
		}
	}
	// Own addresses stand beside the networks they lie in: who opens a network has not opened this host.
	s.Local = append(append(merge(local, false), merge(local, true)...), own...)
	s.Local = slices.DeleteFunc(s.Local, func(p netip.Prefix) bool { return mesh.Contains(p.Addr()) })
	slices.SortFunc(s.Local, netip.Prefix.Compare)
	s.Local = slices.Compact(s.Local)
	return s, nil
}

// hops returns the next hops of a route.
func hops(r netlink.Route) []netlink.NexthopInfo {
	if len(r.MultiPath) == 0 {
		return []netlink.NexthopInfo{{LinkIndex: r.LinkIndex, Flags: r.Flags}}
	}
	out := make([]netlink.NexthopInfo, len(r.MultiPath))
	for i, h := range r.MultiPath {
		out[i] = *h
	}
	return out
}

// addresses returns the networks of all addresses, the addresses themselves, and whether one of them can be seen on the IPv6 internet, or by
// who translates it.
func addresses(nl *netlink.Handle, ignored map[int]bool) (nets, own []netip.Prefix, seen6 bool, err error) {
	all, err := retry(func() ([]netlink.Addr, error) { return nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, nil, false, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range all {
		if ignored[a.LinkIndex] {
			continue
		}
		p := prefixOf(a.IPNet)
		nets = append(nets, p)
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			ip = ip.Unmap()
			own = append(own, netip.PrefixFrom(ip, ip.BitLen()))
		}
		if a.Peer != nil {
			nets = append(nets, prefixOf(a.Peer))
		}
		seen6 = seen6 || p.Addr().Is6() && outside(p.Addr())
	}
	return nets, own, seen6, nil
}

// HostPrefixes returns what a new network of this host must not overlap: its addresses and the destinations of its routes, of all
// tables, but for default routes and the interfaces to ignore.
func HostPrefixes(ignore ...string) ([]netip.Prefix, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("read the host's networks: %w", err)
	}
	defer nl.Close()
	ignored := map[int]bool{}
	for _, name := range ignore {
		if l, err := nl.LinkByName(name); err == nil {
			ignored[l.Attrs().Index] = true
		}
	}
	out, _, _, err := addresses(nl, ignored)
	if err != nil {
		return nil, err
	}
	routes, err := retry(func() ([]netlink.Route, error) {
		return nl.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if p := prefixOf(r.Dst); p.Bits() > 0 && !ignored[r.LinkIndex] {
			out = append(out, p)
		}
	}
	return append(merge(out, false), merge(out, true)...), nil
}

// retry asks again when the kernel says that the answer changed while it was read.
func retry[T any](ask func() (T, error)) (v T, err error) {
	for range 5 {
		if v, err = ask(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return v, err
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if size == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, bits).Masked()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
