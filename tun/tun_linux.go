package tun

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Why our own code and not wireguard/tun: that package cuts super-packets and computes every checksum in userspace, both
// ways. Here the kernel's virtio-net header is passed on instead: segments travel with partial checksums under the
// session's AEAD, and whole runs go back to the kernel as one super-packet. docs/adr/0002.

// vnetLen is the length of struct virtio_net_hdr (linux/virtio_net.h).
const vnetLen = 10

const (
	vnetNeedsCsum = 1
	gsoNone       = 0
	gsoTCPv4      = 1
	gsoTCPv6      = 4
	gsoUDPL4      = 5
)

// maxGSO is the largest super-packet that the host may hand over: sealed, its segments still fit one UDP GSO send.
const maxGSO = 61000

// arenaLen bounds what one Read gathers. A packet may have 64 KiB, so three of them fit.
const arenaLen = 192 << 10

type device struct {
	file   *os.File
	conn   syscall.RawConn
	name   string
	mtu    int
	link   int
	tsoOK  bool
	usoOK  bool
	closed atomic.Bool

	arena []byte
	// what the read callback works on; kept here so that no closure is made per Read
	pkts   []Packet
	n      int
	err    error
	readFn func(fd uintptr) bool
}

// Config says what the OS TUN should look like.
type Config struct {
	Name   string // empty: weft0, weft1, …
	MTU    int
	Addr   netip.Addr     // the node's address
	Routes []netip.Prefix // what leads into the mesh
}

// Open makes the TUN, gives it its address and routes, and brings it up. All of it goes with the device when it is closed.
func Open(c Config) (Device, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w (root or CAP_NET_ADMIN is needed; without it, set [tun] enabled = \"off\")", err)
	}
	name := c.Name
	if name == "" {
		name = "weft%d"
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("TUN name %q: %w", c.Name, err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make a network interface: %w", err)
	}
	d := &device{name: ifr.Name(), mtu: c.MTU, arena: make([]byte, arenaLen)}
	const tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	const uso = 0x20 | 0x40 // TUN_F_USO4, TUN_F_USO6, Linux 6.2
	if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tso|uso) == nil {
		d.tsoOK, d.usoOK = true, true
	} else if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tso) == nil {
		d.tsoOK = true
	}
	d.file = os.NewFile(uintptr(fd), "/dev/net/tun")
	if d.conn, err = d.file.SyscallConn(); err != nil {
		d.file.Close()
		return nil, fmt.Errorf("watch TUN: %w", err)
	}
	d.readFn = d.drain
	if err := d.configure(c); err != nil {
		d.file.Close()
		return nil, err
	}
	return d, nil
}

func (d *device) configure(c Config) error {
	link, err := netlink.LinkByName(d.name)
	if err != nil {
		return fmt.Errorf("find TUN %s: %w", d.name, err)
	}
	d.link = link.Attrs().Index
	if err := netlink.LinkSetMTU(link, c.MTU); err != nil {
		return fmt.Errorf("set MTU %d of %s: %w", c.MTU, d.name, err)
	}
	if d.tsoOK {
		// Best effort: where the kernel refuses, super-packets go out in two sends.
		_ = netlink.LinkSetGSOMaxSize(link, maxGSO)
	}
	// No router solicitations, no link-local clutter: the mesh is not a LAN.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+d.name+"/addr_gen_mode", []byte("1"), 0)
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+d.name+"/accept_ra", []byte("0"), 0)
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: c.Addr.AsSlice(), Mask: net.CIDRMask(128, 128)}, Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("give %s the address %v: %w (is IPv6 switched off on this machine?)", d.name, c.Addr, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", d.name, err)
	}
	for _, p := range c.Routes {
		r := &netlink.Route{LinkIndex: d.link, Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			r.Src = c.Addr.AsSlice()
		}
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("route %v into %s: %w", p, d.name, err)
		}
	}
	return nil
}

func (d *device) Name() string { return d.name }
func (d *device) MTU() int     { return d.mtu }

func (d *device) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	return d.file.Close()
}

// Read parks until the TUN is readable, then takes packets until it is dry, the arena is full or pkts is.
func (d *device) Read(pkts []Packet) (int, error) {
	d.pkts, d.n, d.err = pkts, 0, nil
	if err := d.conn.Read(d.readFn); err != nil {
		if d.closed.Load() || errors.Is(err, os.ErrClosed) {
			return 0, net.ErrClosed
		}
		return 0, fmt.Errorf("read TUN: %w", err)
	}
	if d.n == 0 && d.err != nil {
		if d.closed.Load() {
			return 0, net.ErrClosed
		}
		return 0, fmt.Errorf("read TUN: %w", d.err)
	}
	return d.n, nil
}

func (d *device) drain(fd uintptr) bool {
	at := 0
	for d.n < len(d.pkts) && arenaLen-at >= vnetLen+65536 {
		b := d.arena[at:]
		n, err := unix.Read(int(fd), b)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return d.n > 0
		case err != nil:
			d.err = err
			return true
		}
		if p, ok := parseVnet(b[:n]); ok {
			d.pkts[d.n] = p
			d.n++
			at += (n + 15) &^ 15
		}
	}
	return true
}

// parseVnet reads the virtio-net header in front of a packet. What it cannot express in a Packet it completes itself.
func parseVnet(b []byte) (Packet, bool) {
	if len(b) < vnetLen+20 {
		return Packet{}, false
	}
	flags, gso := b[0], b[1]
	size := binary.NativeEndian.Uint16(b[4:])
	start, offset := int(binary.NativeEndian.Uint16(b[6:])), int(binary.NativeEndian.Uint16(b[8:]))
	p := Packet{Data: b[vnetLen:]}
	if flags&vnetNeedsCsum != 0 {
		l4, ok := Transport(p.Data)
		field, known := csumField(l4.Proto)
		switch {
		case ok && known && start == l4.Offset && offset == field:
			p.Partial = true
		case gso != gsoNone || start+offset+2 > len(p.Data):
			return Packet{}, false
		default: // something exotic: finish it here
			t := p.Data[start:]
			init := binary.BigEndian.Uint16(t[offset:])
			t[offset], t[offset+1] = 0, 0
			binary.BigEndian.PutUint16(t[offset:], ^Sum(t, init))
		}
	}
	if gso != gsoNone {
		if size == 0 || !p.Partial {
			return Packet{}, false
		}
		p.SegSize = size
	}
	return p, true
}
