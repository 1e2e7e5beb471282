package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv6"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	probeTime  = 3 * time.Second  // how long other DHCP servers may take to answer
	probeAgain = 10 * time.Minute // when there was one
	mendEvery  = 5                // seconds between looks at addresses and settings
)

// Serve serves guests until ctx ends, and takes back what it has changed: addresses, kernel settings, the table. It needs root.
// Calling it twice at once is an error of the caller.
func (g *Guests) Serve(ctx context.Context) (err error) {
	cfg := &g.cfg
	link, err := netlink.LinkByName(cfg.Interface)
	if err != nil {
		return fmt.Errorf("find the guests' interface %s: %w; make it first (on OpenWrt: a bridge device and an interface with protocol static)", cfg.Interface, err)
	}
	attrs := link.Attrs()
	if len(attrs.HardwareAddr) != 6 {
		return fmt.Errorf("the guests' interface %s is no Ethernet device or bridge", cfg.Interface)
	}
	var undo []func() error
	defer func() {
		for i := len(undo) - 1; i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
	}()

	// The table stands before there are addresses and forwarding, so that guests are never without it.
	kernel, err := openGate(cfg, attrs.Index)
	if err != nil {
		return err
	}
	undo = append(undo, kernel.close)
	sys := &host{cfg: cfg, link: link, known: map[netip.Prefix]bool{}}
	if err := sys.reclaim(); err != nil {
		cfg.Log.Warn("what the last run changed for guests could not be taken back whole", "err", err)
	}
	undo = append(undo, sys.restore)
	if err := sys.apply(); err != nil {
		return err
	}
	handed := newLeases(cfg, filepath.Join(cfg.StateDir, "leases.json"))
	leaseFile := filepath.Join(cfg.StateDir, "dnsmasq.leases")
	kernel.nameOf = func() map[MAC]string {
		if b, err := os.ReadFile(leaseFile); err == nil && len(b) < 4<<20 && strings.HasPrefix(*g.dhcp.Load(), "dnsmasq") {
			return dnsmasqNames(string(b))
		}
		return handed.names()
	}
	g.setDHCP("off")
	if err := g.desk.open(kernel); err != nil {
		return errors.Join(err, g.desk.close())
	}
	undo = append(undo, g.desk.close)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	eg, ctx := errgroup.WithContext(ctx)
	if err := g.servePortal(ctx, eg); err != nil {
		return err // nothing runs yet
	}
	if cfg.Prefix.IsValid() {
		conn, err := openICMP(cfg.Interface)
		if err != nil {
			cancel()
			return errors.Join(err, eg.Wait())
		}
		g.serveAdverts(ctx, eg, conn, attrs.Index)
	}
	if cfg.Range.IsValid() && cfg.DHCP != DHCPOff {
		eg.Go(func() error { return g.serveDHCP(ctx, attrs.Index, MAC(attrs.HardwareAddr), handed, leaseFile) })
	}
	eg.Go(func() error {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		failing := false
		for n := 1; ; n++ {
			select {
			case <-ctx.Done():
				return handed.flush()
			case <-t.C:
			}
			if n%mendEvery == 0 {
				if err := sys.apply(); err != nil && ctx.Err() == nil {
					return err // to be started again: all sockets are bound to what was
				}
			}
			err := g.desk.tick()
			if n%10 == 0 {
				err = errors.Join(err, handed.flush())
			}
			if err != nil && !failing {
				cfg.Log.Error("guests are not counted or shut out as they should be; trying again every second", "err", err)
			}
			failing = err != nil
		}
	})
	cfg.Log.Info("serving guests", "interface", cfg.Interface, "prefix", cfg.Prefix, "range", cfg.Range, "access", cfg.Access)
	return eg.Wait()
}

func (g *Guests) setDHCP(s string) { g.dhcp.Store(&s) }

// host is what this room changes on the system beside the table. The kernel does not take that back by itself, so it is noted in
// a file: a run after kill -9 begins by taking back what the last one changed, and would otherwise take it for the owner's.
type host struct {
	cfg   *Config
	link  netlink.Link
	done  []change
	known map[netip.Prefix]bool // addresses that were looked after once
}

// change is one change of the system: an address that the interface was given, or a kernel setting.
type change struct {
	Interface string       `json:"interface,omitempty"`
	Addr      netip.Prefix `json:"addr,omitzero"`
	Setting   string       `json:"setting,omitempty"` // below /proc/sys/net
	Was       string       `json:"was,omitempty"`
	Set       string       `json:"set,omitempty"`
}

// undo takes the change back, unless somebody else has changed it since.
func (c change) undo() error {
	if c.Setting != "" {
		if readSysctl(c.Setting) != c.Set {
			return nil // gone, or somebody else's now
		}
		return os.WriteFile("/proc/sys/net/"+c.Setting, []byte(c.Was), 0)
	}
	link, err := netlink.LinkByName(c.Interface)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err == nil {
		err = netlink.AddrDel(link, ipNet(c.Addr))
	}
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("take the address %s from %s: %w", c.Addr, c.Interface, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
}

// changes is the file. What was changed before the system was started again is long gone.
type changes struct {
	Boot string   `json:"boot"`
	Done []change `json:"done"`
}

func (h *host) file() string { return filepath.Join(h.cfg.StateDir, "guest-host.json") }

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// reclaim takes back what a run changed that did not end by itself.
func (h *host) reclaim() error {
	b, err := os.ReadFile(h.file())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var last changes
	if err == nil {
		err = json.Unmarshal(b, &last)
	}
	if err == nil && last.Boot == bootID() {
		h.done = last.Done
	}
	return errors.Join(err, h.restore())
}

// note remembers a change that was just made. A file that cannot be written must keep nobody from serving.
func (h *host) note(c change) {
	h.done = append(h.done, c)
	b, err := json.MarshalIndent(changes{bootID(), h.done}, "", "  ")
	if err == nil {
		err = writeFile(h.file(), b)
	}
	if err != nil {
		h.cfg.Log.Warn("what is changed for guests is not noted; after a crash it stays", "err", err)
	}
}

// apply gives the interface our addresses and lets the kernel forward. It is called again every few seconds, because interfaces
// come, go and are configured anew by others while we serve.
func (h *host) apply() error {
	cfg, name := h.cfg, h.link.Attrs().Name
	link, err := netlink.LinkByName(name)
	if err != nil || link.Attrs().Index != h.link.Attrs().Index {
		return fmt.Errorf("the guests' interface %s was removed or made anew", name)
	}
	if link.Attrs().Flags&net.FlagUp == 0 && len(h.known) == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("switch %s on: %w", name, err)
		}
	}
	if cfg.Range.IsValid() {
		if err := h.addr(netip.PrefixFrom(cfg.Addr4(), cfg.Range.Bits())); err != nil {
			return err
		}
		// Per interface: the host's other interfaces forward no more than before. Replies come in by those that lead out.
		for _, dev := range append([]string{name}, cfg.Out...) {
			if err := h.sysctl("ipv4/conf/"+dev+"/forwarding", "1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	if !cfg.Prefix.IsValid() {
		return nil
	}
	// A forwarding host takes no addresses by advertisements unless it is told to (accept_ra 2): what did must go on.
	const all = "ipv6/conf/all/forwarding"
	if readSysctl(all) == "0" {
		devs, err := os.ReadDir("/proc/sys/net/ipv6/conf")
		if err != nil {
			return err
		}
		for _, d := range devs {
			file := "ipv6/conf/" + d.Name() + "/accept_ra"
			if d.Name() != "all" && d.Name() != name && readSysctl(file) == "1" {
				if err := h.sysctl(file, "2"); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			}
		}
	}
	for _, s := range [][2]string{{all, "1"}, {"ipv6/conf/" + name + "/forwarding", "1"}, {"ipv6/conf/" + name + "/accept_ra", "0"}} { // a guest shall not advertise to us
		if err := h.sysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	// Advertisements must come from a link-local address (RFC 4861 section 6.1.2); whoever empties the interface takes it too.
	have, err := netlink.AddrList(link, unix.AF_INET6)
	if err != nil {
		return fmt.Errorf("list the addresses of %s: %w", name, err)
	}
	if !slices.ContainsFunc(have, func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() }) {
		if err := h.addr(netip.PrefixFrom(linkLocal(MAC(link.Attrs().HardwareAddr)), 64)); err != nil {
			return err
		}
	}
	return h.addr(netip.PrefixFrom(cfg.Addr6(), 64))
}

// linkLocal is the address that a MAC address makes (RFC 4291 appendix A).
func linkLocal(m MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

func readSysctl(path string) string {
	b, err := os.ReadFile("/proc/sys/net/" + path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// sysctl writes a kernel setting if it is another, and remembers what it was.
func (h *host) sysctl(path, value string) error {
	file := "/proc/sys/net/" + path
	old, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	was := strings.TrimSpace(string(old))
	if was == value {
		return nil
	}
	if err := os.WriteFile(file, []byte(value), 0); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	h.note(change{Setting: path, Was: was, Set: value})
	return nil
}

// addr gives the interface an address; one that it has already is not ours to take away.
func (h *host) addr(p netip.Prefix) error {
	a := ipNet(p)
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // it is ours by right, and the page listens on it at once
	}
	err := netlink.AddrAdd(h.link, a)
	exists := errors.Is(err, fs.ErrExist)
	if err != nil && !exists {
		return fmt.Errorf("give %s the address %s: %w", h.link.Attrs().Name, p, err)
	}
	if !h.known[p] && !exists {
		h.note(change{Interface: h.link.Attrs().Name, Addr: p})
	}
	h.known[p] = true
	return nil
}

// restore takes everything back, the last first.
func (h *host) restore() (err error) {
	for i := len(h.done) - 1; i >= 0; i-- {
		err = errors.Join(err, h.done[i].undo())
	}
	h.done = nil
	if e := os.Remove(h.file()); !errors.Is(e, fs.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

// servePortal listens on our addresses, and on nothing else.
func (g *Guests) servePortal(ctx context.Context, eg *errgroup.Group) error {
	cfg := &g.cfg
	var ls []net.Listener
	listen := func(a netip.Addr, port uint16) error {
		l, err := net.Listen("tcp", netip.AddrPortFrom(a, port).String())
		if err != nil {
			for _, o := range ls {
				_ = o.Close()
			}
			return fmt.Errorf("listen for guests on port %d: %w; choose another port for the page", port, err)
		}
		ls = append(ls, newBounded(l))
		return nil
	}
	for _, a := range []netip.Addr{cfg.Addr4(), cfg.Addr6()} {
		if !a.IsValid() {
			continue
		}
		if err := listen(a, cfg.PortalPort); err != nil {
			return err
		}
		if cfg.TLS != nil {
			if err := listen(a, cfg.TLSPort); err != nil {
				return err
			}
		}
	}
	for _, l := range ls {
		srv := newServer(g.portal, cfg.Log) // one each: a server sets itself up for HTTP/2 when it first serves, and not twice at once
		eg.Go(func() error {
			var err error
			if l.Addr().(*net.TCPAddr).Port == int(cfg.TLSPort) {
				srv.TLSConfig = cfg.TLS.Clone()
				err = srv.ServeTLS(l, "", "")
			} else {
				err = srv.Serve(l)
			}
			if errors.Is(err, http.ErrServerClosed) {
				return nil
			}
			return fmt.Errorf("serve the page: %w", err)
		})
		eg.Go(func() error {
			<-ctx.Done()
			return srv.Close() // no request takes long enough to wait for
		})
	}
	return nil
}

// openICMP makes the socket for advertisements.
func openICMP(ifname string) (*ipv6.PacketConn, error) {
	ifi, err := net.InterfaceByName(ifname)
	if err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: bindTo(ifname)}
	c, err := lc.ListenPacket(context.Background(), "ip6:ipv6-icmp", "::")
	if err != nil {
		return nil, fmt.Errorf("open a socket for router advertisements: %w", err)
	}
	p := ipv6.NewPacketConn(c)
	var f ipv6.ICMPFilter
	f.SetAll(true)
	f.Accept(ipv6.ICMPTypeRouterSolicitation)
	err = errors.Join(p.SetICMPFilter(&f), p.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagInterface, true),
		p.SetMulticastHopLimit(255), p.SetHopLimit(255), p.SetMulticastInterface(ifi), p.SetMulticastLoopback(false),
		p.JoinGroup(ifi, &net.IPAddr{IP: net.IPv6linklocalallrouters}))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare the socket for router advertisements: %w", err), p.Close())
	}
	return p, nil
}

func bindTo(ifname string) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) {
			err = errors.Join(unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, ifname),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
		}); cerr != nil {
			return cerr
		}
		return err
	}
}

// advert is what is true at the moment.
func (g *Guests) advert(index int, last bool) []byte {
	var mac MAC
	if ifi, err := net.InterfaceByIndex(index); err == nil && len(ifi.HardwareAddr) == 6 {
		mac = MAC(ifi.HardwareAddr) // asked each time: a bridge's changes with its ports
	}
	_, up6 := g.uplink()
	a := advert{mac: mac, prefix: g.cfg.Prefix, dns: g.cfg.Addr6(), domain: g.cfg.Domain, mtu: g.cfg.MTU, portal: g.cfg.apiURL(), last: last}
	if up6 {
		a.router = routerLifetime
	}
	if g.cfg.Mesh != MeshClosed {
		a.routes = []netip.Prefix{meshPrefix()}
	}
	return a.appendTo(nil)
}

func (g *Guests) serveAdverts(ctx context.Context, eg *errgroup.Group, conn *ipv6.PacketConn, index int) {
	solicit := make(chan netip.Addr, 16)
	stopped := make(chan struct{})
	a := &advertiser{log: g.cfg.Log, solicit: solicit, change: g.change, make: func(last bool) []byte { return g.advert(index, last) },
		send: func(b []byte, to netip.Addr) error {
			_, err := conn.WriteTo(b, &ipv6.ControlMessage{IfIndex: index, HopLimit: 255}, &net.IPAddr{IP: to.AsSlice(), Zone: g.cfg.Interface})
			return err
		}}
	eg.Go(func() error {
		a.run(ctx)
		close(stopped)
		return conn.Close() // which ends the reader
	})
	eg.Go(func() error {
		buf := make([]byte, 1500)
		for {
			n, cm, src, err := conn.ReadFrom(buf)
			if err != nil {
				select {
				case <-stopped:
					return nil
				case <-ctx.Done():
					<-stopped
					return nil
				default:
				}
				if errors.Is(err, net.ErrClosed) {
					return nil
				}
				g.cfg.Log.Debug("router solicitation not read", "err", err)
				select { // the interface may be down for a while
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
				continue
			}
			ip, ok := src.(*net.IPAddr)
			if !ok || cm == nil || cm.IfIndex != index {
				continue
			}
			from, _ := netip.AddrFromSlice(ip.IP)
			if parseSolicitation(buf[:n], from, cm.HopLimit) != nil {
				continue
			}
			select {
			case solicit <- from:
			default: // more than we could answer anyway
			}
		}
	})
}

// serveDHCP gives out IPv4 addresses, unless somebody else does.
func (g *Guests) serveDHCP(ctx context.Context, index int, mac MAC, handed *leases, leaseFile string) error {
	log := g.cfg.Log
	if err := g.endOrphan(ctx); err != nil {
		return err
	}
	for {
		g.setDHCP("looking for other DHCP servers")
		other, err := probeDHCP(ctx, index, mac)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			log.Warn("other DHCP servers could not be looked for", "err", err)
		}
		if !other.IsValid() {
			break
		}
		g.setDHCP(fmt.Sprintf("off: %s serves DHCP on this network already", other))
		log.Warn("another DHCP server answers on the guests' network, so this one is silent: stop the other, or set dhcp to off", "other", other)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(probeAgain):
		}
	}
	prog, err := exec.LookPath("dnsmasq")
	for _, p := range []string{"/usr/sbin/dnsmasq", "/usr/local/sbin/dnsmasq"} { // often not in a service's PATH
		if err != nil {
			prog, err = exec.LookPath(p)
		}
	}
	switch {
	case g.cfg.DHCP == DHCPOwn, g.cfg.DHCP == DHCPAuto && err != nil:
		return g.ownDHCP(ctx, handed)
	case err != nil:
		return fmt.Errorf("dhcp is set to dnsmasq, but it is not installed: install it, or set dhcp to auto")
	}
	g.setDHCP("dnsmasq")
	if err := g.runDnsmasq(ctx, prog, leaseFile); err != nil || ctx.Err() != nil {
		return err
	}
	return g.ownDHCP(ctx, handed)
}

func (g *Guests) ownDHCP(ctx context.Context, handed *leases) error {
	lc := net.ListenConfig{Control: bindTo(g.cfg.Interface)}
	pc, err := lc.ListenPacket(ctx, "udp4", "0.0.0.0:67")
	if err != nil {
		return fmt.Errorf("listen for DHCP: %w; another DHCP server may run on this host: exclude %s from it, or set dhcp to off", err, g.cfg.Interface)
	}
	conn := pc.(*net.UDPConn)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	g.setDHCP("own")
	buf := make([]byte, maxDHCP+1)
	out := make([]byte, 0, maxDHCP)
	for {
		n, _, err := conn.ReadFromUDPAddrPort(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read DHCP: %w", err)
		}
		m, err := parseDHCP(buf[:n])
		if err != nil {
			continue
		}
		if reply, to := handed.answer(m); reply != nil {
			if _, err := conn.WriteToUDPAddrPort(reply.appendTo(out), netip.AddrPortFrom(to, 68)); err != nil {
				g.cfg.Log.Debug("DHCP answer not sent", "err", err)
			}
		}
	}
}

func (g *Guests) confFile() string { return filepath.Join(g.cfg.StateDir, "dnsmasq.conf") }

func (g *Guests) pidFile() string { return filepath.Join(g.cfg.StateDir, "dnsmasq.pid") }

// endOrphan ends the dnsmasq of a process that crashed. The kernel cannot do it at once: dnsmasq gives up root, and with it the
// death signal that we could set. Until now it has gone on to serve addresses, which does no harm.
func (g *Guests) endOrphan(ctx context.Context) error {
	b, err := os.ReadFile(g.pidFile())
	if err != nil {
		return nil
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid < 2 {
		return os.Remove(g.pidFile())
	}
	ours := func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return err == nil && strings.Contains(string(b), "--conf-file="+g.confFile()+"\x00")
	}
	for i := 0; ours() && ctx.Err() == nil; i++ {
		if sig := map[int]syscall.Signal{0: syscall.SIGTERM, 20: syscall.SIGKILL}[i]; sig != 0 {
			if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("end the dnsmasq of the last run: %w", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil
}

// runDnsmasq keeps a dnsmasq of our own running. It gives up on one that does not even start if it was our own choice.
func (g *Guests) runDnsmasq(ctx context.Context, prog, leaseFile string) error {
	conf := g.confFile()
	if err := writeFile(conf, []byte(dnsmasqConfig(&g.cfg, leaseFile, g.pidFile()))); err != nil {
		return fmt.Errorf("write the configuration of dnsmasq: %w", err)
	}
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		var last tail
		cmd := exec.CommandContext(ctx, prog, "--keep-in-foreground", "--conf-file="+conf)
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = 5 * time.Second
		cmd.Stdout, cmd.Stderr = &last, &last
		started := time.Now()
		err := cmd.Run()
		if ctx.Err() != nil {
			return nil
		}
		if ran := time.Since(started); ran > time.Minute {
			wait = time.Second
		} else if ran < 2*time.Second && g.cfg.DHCP == DHCPAuto {
			g.cfg.Log.Warn("dnsmasq does not start; serving DHCP without it", "err", err, "said", last.String())
			return nil
		}
		g.setDHCP("dnsmasq, which ended: " + last.String())
		g.cfg.Log.Warn("dnsmasq for guests ended; starting it again", "err", err, "said", last.String(), "wait", wait)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		g.setDHCP("dnsmasq")
	}
}

// tail keeps the last words of a program.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if n := len(t.b) - 300; n > 0 {
		t.b = append(t.b[:0], t.b[n:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return strings.TrimSpace(string(t.b)) }

// probeDHCP asks for an address and returns the server that offers one. It listens below IP, because an answer may come from a network
// that this host has no route to.
func probeDHCP(ctx context.Context, index int, mac MAC) (netip.Addr, error) {
	proto := func(p uint16) uint16 { return p<<8 | p>>8 }
	if native(1)[0] == 0 {
		proto = func(p uint16) uint16 { return p }
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(proto(unix.ETH_P_IP)))
	if err != nil {
		return netip.Addr{}, err
	}
	f := os.NewFile(uintptr(fd), "packet socket")
	defer f.Close()
	addr := &unix.SockaddrLinklayer{Protocol: proto(unix.ETH_P_IP), Ifindex: index}
	if err := unix.Bind(fd, addr); err != nil {
		return netip.Addr{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	xid := rand.Uint32()
	packet := udpBroadcast(dhcpProbe(mac, xid))
	to := &unix.SockaddrLinklayer{Protocol: proto(unix.ETH_P_IP), Ifindex: index, Halen: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255}}
	raw, err := f.SyscallConn()
	if err != nil {
		return netip.Addr{}, err
	}
	buf := make([]byte, 2048)
	for range 2 { // one may be lost
		if err := unix.Sendto(fd, packet, 0, to); err != nil && !errors.Is(err, unix.ENETDOWN) {
			return netip.Addr{}, err
		}
		if err := f.SetReadDeadline(time.Now().Add(probeTime / 2)); err != nil {
			return netip.Addr{}, err
		}
		for ctx.Err() == nil {
			var n int
			var rerr error
			if err := raw.Read(func(fd uintptr) bool {
				n, _, rerr = unix.Recvfrom(int(fd), buf, 0)
				return !errors.Is(rerr, unix.EAGAIN)
			}); err != nil {
				break // the time is over
			}
			if rerr != nil {
				break
			}
			if s, ok := dhcpOfferIn(buf[:n], xid); ok {
				return s, nil
			}
		}
	}
	return netip.Addr{}, nil
}
