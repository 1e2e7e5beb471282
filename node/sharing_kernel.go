package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/config"
	"weft/gateway"
	"weft/gateway/host"
	"weft/ident"
	"weft/meter"
	"weft/proxy"
	"weft/session"
)

// kernel is what sharing has changed in this host's kernel. It belongs to settle.
type kernel struct {
	gateway *host.Gateway
	wan     string
	pool    netip.Prefix
	four    bool
	six     bool
	dns     uint16

	client *host.Client
}

func (k *kernel) closeGateway() error {
	if k.gateway == nil {
		return nil
	}
	err := k.gateway.Close()
	k.gateway, k.pool = nil, netip.Prefix{}
	return err
}

func (k *kernel) closeClient() error {
	if k.client == nil {
		return nil
	}
	err := k.client.Close()
	k.client = nil
	return err
}

func (k *kernel) close() error { return errors.Join(k.closeClient(), k.closeGateway()) }

// route makes packets go where the wish, or the lease in force, says: by the kernel with a TUN, in the process without. whole
// says that the lease serves the whole device.
func (s *sharing) route(want config.Gateway, use gateway.Use, offer bool) (whole bool, err error) {
	if s.n.opt.World != nil { // the owner of the device moves its packets
		s.setMode("")
		return false, nil
	}
	if s.n.mode == "tun" {
		s.setMode("kernel")
		return s.routeKernel(want, use, offer)
	}
	s.setMode("userspace")
	return false, s.routeUserspace(want, use, offer)
}

func (s *sharing) setMode(m string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mode = m
}

// strict reports whether nothing may leave by this host's own line.
func strict(want config.Gateway) bool { return want.Strict && want.Use != "off" }

func (s *sharing) routeKernel(want config.Gateway, use gateway.Use, offer bool) (whole bool, err error) {
	k := &s.kernel
	if fenced := strict(want) && !offer; use.Gateway.IsZero() && !fenced {
		if err := k.closeClient(); err != nil {
			return false, err
		}
	} else { // a lease, or, in strict mode, a client without addresses, which refuses all
		if err := k.closeGateway(); err != nil {
			return false, err
		}
		addrs := host.ClientAddrs{IPv4: use.IPv4}
		switch {
		case use.IPv6.IsValid():
			addrs.IPv6 = use.IPv6.Addr()
		case use.Families&gateway.IPv6 != 0 && !use.Gateway.IsZero():
			addrs.IPv6 = s.n.self.Addr()
		}
		if k.client != nil {
			return true, k.client.Update(addrs)
		}
		cfg := host.ClientConfig{TUN: s.n.device.Name(), Addrs: addrs, MTU: int(s.mtu()), DNSPort: s.redirectTo(),
			StateFile: filepath.Join(s.n.opt.StateDir, "client.undo"), Log: s.n.log.With("room", "host")}
		k.client, err = host.OpenClient(cfg)
		return err == nil, err
	}
	if !offer {
		return false, k.closeGateway()
	}
	six := want.IPv6 == "nat"
	s.mu.Lock()
	dnsPort := s.names
	s.mu.Unlock()
	if dnsPort == 53 {
		dnsPort = 0 // nothing to redirect
	}
	if k.gateway != nil && (k.wan != want.Interface || k.four != want.IPv4 || k.six != six || k.dns != dnsPort) {
		if err := k.closeGateway(); err != nil {
			return false, err
		}
	}
	if k.gateway != nil {
		return false, nil
	}
	var pool netip.Prefix
	if want.IPv4 {
		taken, err := host.HostPrefixes(s.n.device.Name())
		if err != nil {
			return false, err
		}
		if pool = host.FreePool(gateway.DefaultPool, taken); !pool.IsValid() {
			return false, errors.New("no part of 100.64.0.0/10 is free on this host: share IPv6 only")
		}
	}
	k.gateway, err = host.OpenGateway(host.GatewayConfig{TUN: s.n.device.Name(), WAN: want.Interface, Pool: pool, IPv6: six, MTU: int(s.mtu()), DNSPort: dnsPort,
		StateFile: filepath.Join(s.n.opt.StateDir, "gateway.undo"), Log: s.n.log.With("room", "host")})
	if err != nil {
		k.gateway = nil
		return false, err
	}
	k.wan, k.pool, k.four, k.six, k.dns = want.Interface, pool, want.IPv4, six, dnsPort
	if blocked := k.gateway.Blocked(); len(blocked) > 0 {
		return false, fmt.Errorf("this host's own firewall drops what is forwarded (%s): let packets from and to %s through", strings.Join(blocked, ", "), s.n.device.Name())
	}
	return false, nil
}

func (s *sharing) routeUserspace(want config.Gateway, use gateway.Use, offer bool) error {
	stack, ok := s.n.device.(*splitDevice)
	if !ok {
		return nil
	}
	var four, six netip.Addr
	if !use.Gateway.IsZero() {
		four = use.IPv4
		switch {
		case use.IPv6.IsValid():
			six = use.IPv6.Addr()
		case use.Families&gateway.IPv6 != 0:
			six = s.n.self.Addr()
		}
	}
	if err := stack.setOutside(use.Gateway, four, six); err != nil {
		return err
	}
	if !offer {
		if s.exit != nil {
			stack.setExit(nil)
			s.exit.close()
			s.exit = nil
		}
		return nil
	}
	if s.exit != nil {
		return nil
	}
	e, err := s.openExit()
	if err != nil {
		return err
	}
	s.exit = e
	stack.setExit(e.dev)
	return nil
}

// pollAddresses is host.OpenUplink for systems where there is none: its lines count as there, its own networks are known.
func pollAddresses(changed func(host.State)) (stop func()) {
	var last []netip.Prefix
	look := func() {
		if local, err := ownNetworks(); err == nil && !slices.Equal(local, last) {
			last = local
			changed(host.State{IPv4: true, IPv6: true, Local: local})
		}
	}
	look()
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(3 * time.Second)
		defer t.Stop()
		for {
			select {
			case <-end:
				return
			case <-t.C:
				look()
			}
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}

// ownNetworks are this device's addresses and the networks they lie in, as gateway.SetLocal wants them.
func ownNetworks() (out []netip.Prefix, err error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	for _, x := range all {
		n, ok := x.(*net.IPNet)
		if !ok {
			continue
		}
		a, ok := netip.AddrFromSlice(n.IP)
		if !ok {
			continue
		}
		a = a.Unmap()
		bits, _ := n.Mask.Size()
		if len(n.Mask) == 16 && a.Is4() {
			bits -= 96
		}
		if p, err := a.Prefix(bits); err == nil {
			out = append(out, p, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out), nil
}

// redirectTo is the port that all of this host's DNS questions are sent to; 0 leaves them alone.
func (s *sharing) redirectTo() uint16 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.n.cfg.DNS.Redirect || len(s.dnsAt) == 0 {
		return 0
	}
	at, err := netip.ParseAddrPort(s.dnsAt[0])
	if err != nil || !at.Addr().IsLoopback() {
		return 0
	}
	return at.Port()
}

// listen opens the resolver's sockets: on this host, and in the mesh for clients of this gateway.
func (s *sharing) listen() (services []func(context.Context) error, err error) {
	if err := host.Recover(filepath.Join(s.n.opt.StateDir, "client.undo")); err != nil {
		s.n.log.Warn("what the last run left behind", "err", err)
	}
	if err := host.Recover(filepath.Join(s.n.opt.StateDir, "gateway.undo")); err != nil {
		s.n.log.Warn("what the last run left behind", "err", err)
	}
	if at := s.n.cfg.DNS.Listen; at != "off" && at != "" {
		ap, err := netip.ParseAddrPort(strings.Replace(at, "localhost:", "127.0.0.1:", 1))
		if err != nil {
			return nil, fmt.Errorf("dns.listen: %w", err)
		}
		socks, err := openDNSSockets(ap, ap == netip.MustParseAddrPort(config.DefaultDNS))
		if err != nil {
			return nil, fmt.Errorf("dns: %w (set [dns] listen to another port, or to \"off\")", err)
		}
		for _, c := range socks {
			if p, ok := c.(net.PacketConn); ok {
				s.dnsAt = append(s.dnsAt, p.LocalAddr().String())
			}
		}
		services = append(services, func(ctx context.Context) error { return s.dns.Serve(ctx, socks...) })
	}
	services = append(services, s.serveMeshDNS)
	return services, nil
}

// openDNSSockets opens UDP and TCP at an address, and beside 127.0.0.1 at ::1 too, all with one port. others allows the ports
// after a taken one.
func openDNSSockets(at netip.AddrPort, others bool) (socks []io.Closer, err error) {
	addrs := []netip.Addr{at.Addr()}
	if at.Addr() == netip.AddrFrom4([4]byte{127, 0, 0, 1}) {
		addrs = append(addrs, netip.IPv6Loopback())
	}
	for port := at.Port(); ; port++ {
		for i, a := range addrs {
			ap := netip.AddrPortFrom(a, port).String()
			var u net.PacketConn
			var t net.Listener
			if u, err = net.ListenPacket("udp", ap); err == nil {
				socks = append(socks, u)
				t, err = net.Listen("tcp", ap)
			}
			if err != nil && i > 0 && !errors.Is(err, os.ErrPermission) && !inUse(err) { // a host without IPv6
				err = nil
				continue
			}
			if err != nil {
				break
			}
			socks = append(socks, t)
		}
		if err == nil {
			return socks, nil
		}
		for _, c := range socks {
			c.Close()
		}
		socks = nil
		if !others || port >= at.Port()+20 {
			return nil, err
		}
	}
}

func inUse(err error) bool { return strings.Contains(err.Error(), "address already in use") }

// serveMeshDNS answers at port 53 of this node's mesh address, for clients of its gateway. Where something else has the
// port, such as a router's dnsmasq, the kernel leads clients to another: they are none of its business, and it is none of theirs.
func (s *sharing) serveMeshDNS(ctx context.Context) error {
	if s.n.net == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	u, t, err := s.listenMesh(ctx, 53)
	port := uint16(53)
	for free := uint16(7153); err != nil && s.n.mode == "tun" && free < 7163; free++ {
		if u, t, err = s.listenMesh(ctx, free); err == nil {
			port = free
		}
	}
	if err != nil {
		s.n.log.Info("no resolver at this node's mesh address", "why", err)
		<-ctx.Done()
		return ctx.Err()
	}
	s.mu.Lock()
	s.names = port
	s.mu.Unlock()
	s.stir()
	return s.dns.Serve(ctx, u, t)
}

func (s *sharing) listenMesh(ctx context.Context, port uint16) (net.PacketConn, net.Listener, error) {
	at := fmt.Sprintf(":%d", port)
	u, err := s.n.net.ListenPacket(ctx, "udp", at)
	if err != nil {
		return nil, nil, err
	}
	t, err := s.n.net.Listen(ctx, "tcp", at)
	if err != nil {
		u.Close()
		return nil, nil, err
	}
	return u, t, nil
}

// systemServers are the name servers of this system; public: only those that any line reaches.
func systemServers(public bool) []string {
	b, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil
	}
	return serversIn(string(b), public)
}

// serversIn reads the form of /etc/resolv.conf.
func serversIn(conf string, public bool) (list []string) {
	for line := range strings.Lines(conf) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(f[1])
		if err != nil || ident.MeshPrefix.Contains(a) || len(list) == 4 || public && !proxy.MayLeave(a) {
			continue
		}
		list = append(list, "udp://"+net.JoinHostPort(a.String(), strconv.Itoa(53)))
	}
	return list
}

// readingOf turns a session's counters into the meter's.
func readingOf(i session.Info) meter.SessionReading {
	c := func(c session.Count) meter.Count { return meter.Count{Packets: c.Packets, Bytes: c.Bytes} }
	return meter.SessionReading{Peer: i.Peer, Epoch: i.Epoch, OutsideSent: c(i.OutsideSent), OutsideRecv: c(i.OutsideRecv),
		MeshSent: c(i.Sent), MeshRecv: c(i.Recv)}
}
