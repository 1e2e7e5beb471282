package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"golang.org/x/net/ipv6"

	"weft/forward"
)

// Control changes a socket before it is bound or connected, as net.Dialer and net.ListenConfig call it.
type Control = func(network, address string, c syscall.RawConn) error

// System returns the operating system's network. control, nil for none, is called for every socket that leads to neighbours
// by address, so that they can be kept apart from what the host sends through the mesh.
func System(control Control) Underlay { return system{control} }

type system struct{ control Control }

func (s system) Open(at netip.AddrPort, unreachable func(forward.Endpoint)) (Socket, error) {
	return openUDP(at, unreachable, s.control)
}

func (system) Interfaces() ([]Interface, error) {
	ifis, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	out := make([]Interface, 0, len(ifis))
	for _, i := range ifis {
		d := Interface{
			Index: i.Index, Name: i.Name, MTU: i.MTU,
			Running:   i.Flags&net.FlagUp != 0 && i.Flags&net.FlagRunning != 0,
			Multicast: i.Flags&net.FlagMulticast != 0 && i.Flags&net.FlagPointToPoint == 0,
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it went away meanwhile
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok {
					ones, _ := n.Mask.Size()
					d.Addrs = append(d.Addrs, netip.PrefixFrom(ip.Unmap(), ones))
				}
			}
		}
		out = append(out, d)
	}
	return out, nil
}

// Route asks the kernel by connecting a UDP socket, which sends nothing, and looks whose address it got.
func (s system) Route(to forward.Endpoint) (Interface, bool, error) {
	ifis, err := s.Interfaces()
	if err != nil {
		return Interface{}, false, err
	}
	if to.Scope != 0 {
		for _, i := range ifis {
			if i.Index == int(to.Scope) {
				return i, true, nil
			}
		}
		return Interface{}, false, fmt.Errorf("no interface has number %d", to.Scope)
	}
	d := net.Dialer{Control: s.control}
	c, err := d.Dial("udp", to.AddrPort().String())
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		return Interface{}, false, fmt.Errorf("no way to %s: %w", to.AddrPort().Addr(), err)
	}
	local := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	c.Close()
	dest := addrOf(to)
	for _, i := range ifis {
		for _, p := range i.Addrs {
			if p.Addr() == local {
				return i, p.Contains(dest) || dest.IsLoopback(), nil
			}
		}
	}
	return Interface{}, false, fmt.Errorf("no interface has address %s", local)
}

// beaconGroup and beaconPort are where discovery happens (docs/spec/link.md section 2).
var beaconGroup = netip.MustParseAddr("ff02::7765:6674") // "weft"

const beaconPort = 7769

type udpBeacons struct {
	conn *net.UDPConn
	p    *ipv6.PacketConn
}

func (system) OpenBeacons() (Beacons, error) {
	c, err := listenBeacons()
	if err != nil {
		return nil, fmt.Errorf("open multicast socket: %w", err)
	}
	b := &udpBeacons{conn: c, p: ipv6.NewPacketConn(c)}
	_ = b.p.SetControlMessage(ipv6.FlagInterface, true) // Windows has none; Receive does without
	err = errors.Join(
		b.p.SetMulticastHopLimit(1),
		b.p.SetMulticastLoopback(true), // several nodes on one host
	)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("open multicast socket: %w", err)
	}
	return b, nil
}

func (b *udpBeacons) Join(iface int) error {
	err := b.p.JoinGroup(&net.Interface{Index: iface}, &net.UDPAddr{IP: beaconGroup.AsSlice()})
	if err != nil && !joinedAlready(err) {
		return fmt.Errorf("join multicast group: %w", err)
	}
	return nil
}

func (b *udpBeacons) Leave(iface int) {
	_ = b.p.LeaveGroup(&net.Interface{Index: iface}, &net.UDPAddr{IP: beaconGroup.AsSlice()}) // the kernel left by itself if the interface is gone
}

func (b *udpBeacons) Send(iface int, msg []byte) error {
	_, err := b.conn.WriteToUDP(msg, &net.UDPAddr{IP: beaconGroup.AsSlice(), Port: beaconPort, Zone: strconv.Itoa(iface)})
	if err != nil {
		return fmt.Errorf("send beacon: %w", err)
	}
	return nil
}

func (b *udpBeacons) Receive(buf []byte) (int, forward.Endpoint, error) {
	for {
		n, cm, src, err := b.p.ReadFrom(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return 0, forward.Endpoint{}, net.ErrClosed
			}
			return 0, forward.Endpoint{}, fmt.Errorf("read multicast socket: %w", err)
		}
		ua, ok := src.(*net.UDPAddr)
		if !ok {
			continue
		}
		var iface uint32
		if cm != nil {
			iface = uint32(cm.IfIndex)
		} else {
			iface = zoneIndex(ua.Zone) // a link-local source has one
		}
		return n, endpointOf(ua.AddrPort(), iface), nil
	}
}

func (b *udpBeacons) Close() error { return b.conn.Close() }

// zoneIndex turns the zone of an address into an interface number.
func zoneIndex(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if i, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(i)
	}
	ifi, err := net.InterfaceByName(zone)
	if err != nil {
		return 0
	}
	return uint32(ifi.Index)
}
