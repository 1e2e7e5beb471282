//go:build !router

package exit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"weft/tun"
	"weft/tun/netstack"
)

const (
	nicID     = tcpip.NICID(1)
	ttl       = 64
	protoICMP = 1
	reapTime  = time.Second
)

// mesh is ident.MeshPrefix: this room imports nothing of the mesh, and a test sees that the two stay the same.
var mesh = netip.MustParsePrefix("200::/7")

// Exit is a tun.Device that leads to the internet.
type Exit struct {
	cfg    Config
	link   *netstack.Link
	stack  *stack.Stack
	fwd    *tcp.Forwarder
	ping   [2]*pinger // IPv4, IPv6; nil where the system has no ping sockets for us
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex // no other lock is taken with it held
	closed bool
	book   book
	tcp    map[stack.TransportEndpointID]*tcpFlow
	udp    map[udpKey]*udpFlow

	flows, refused, limited, failed, dropped, sent, received atomic.Uint64
}

// Open starts an Exit.
func Open(cfg Config) (*Exit, error) {
	if err := check(&cfg); err != nil {
		return nil, fmt.Errorf("open the way to the internet: %w", err)
	}
	e := &Exit{
		cfg:  cfg,
		link: netstack.NewLink(cfg.MTU),
		book: newBook(cfg.MaxFlows, cfg.MaxFlowsPerClient, cfg.Memory),
		tcp:  map[stack.TransportEndpointID]*tcpFlow{},
		udp:  map[udpKey]*udpFlow{},
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := e.configure(); err != nil {
		e.Close()
		return nil, fmt.Errorf("open the way to the internet: %w", err)
	}
	for i, v4 := range []bool{true, false} {
		c, raw, err := openPing(e.ctx, v4, cfg.Control)
		if err != nil {
			cfg.Log.Info("no ping through this gateway: the system allows no ping sockets (net.ipv4.ping_group_range)", "ipv4", v4, "err", err)
			continue
		}
		p := newPinger(e, c, v4, raw)
		e.ping[i] = p
		e.wg.Go(p.receive)
	}
	e.wg.Go(e.reap)
	return e, nil
}

func check(cfg *Config) error {
	if cfg.Log == nil || cfg.Allow == nil {
		return errors.New("needs a log, and an egress policy (Allow)")
	}
	if cfg.MTU < header.IPv6MinimumMTU || cfg.MTU > 65535 {
		return fmt.Errorf("MTU %d: may be 1280 to 65535", cfg.MTU)
	}
	setDefault(&cfg.MaxFlows, 2048)
	setDefault(&cfg.MaxFlowsPerClient, max(1, cfg.MaxFlows/4))
	setDefault(&cfg.Memory, max(256<<20, 2*int64(cfg.MaxFlows)*floorCost))
	setDefault(&cfg.ConnectTimeout, 20*time.Second)
	setDefault(&cfg.UDPIdle, 2*time.Minute)
	setDefault(&cfg.DNSIdle, 10*time.Second)
	if least := int64(cfg.MaxFlows) * floorCost; cfg.MaxFlows < 0 || cfg.MaxFlowsPerClient < 0 || cfg.Memory < least {
		return fmt.Errorf("%d flows, %d for a client, in %d bytes: numbers may not be negative, and %d bytes are needed", cfg.MaxFlows, cfg.MaxFlowsPerClient, cfg.Memory, least)
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Control: cfg.Control, KeepAlive: 2 * time.Minute}).DialContext
	}
	if cfg.ListenPacket == nil {
		cfg.ListenPacket = (&net.ListenConfig{Control: cfg.Control}).ListenPacket
	}
	return nil
}

func setDefault[T int | int64 | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

func (e *Exit) configure() error {
	if err := netstack.Tune(e.stack); err != nil {
		return err
	}
	// A client that has gone must not hold its connection for long. There is nobody to protect in TIME-WAIT: the ports are
	// the client's own.
	wait, linger, retries := tcpip.TCPTimeWaitTimeoutOption(time.Second), tcpip.TCPLingerTimeoutOption(30*time.Second), tcpip.TCPSynRetriesOption(4)
	for _, o := range []tcpip.SettableTransportProtocolOption{&wait, &linger, &retries} {
		if err := e.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("set TCP option %T: %s", o, err)
		}
	}
	if err := e.stack.CreateNIC(nicID, e.link); err != nil {
		return fmt.Errorf("make interface: %s", err)
	}
	// Every address is the stack's own: it takes what is sent to anybody, and answers in their name.
	if err := e.stack.SetPromiscuousMode(nicID, true); err != nil {
		return fmt.Errorf("take packets for all addresses: %s", err)
	}
	if err := e.stack.SetSpoofing(nicID, true); err != nil {
		return fmt.Errorf("send from all addresses: %s", err)
	}
	e.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}, {Destination: header.IPv6EmptySubnet, NIC: nicID}})
	// Slots are counted before the forwarder is asked, so its own limit is never reached.
	e.fwd = tcp.NewForwarder(e.stack, startSize, e.cfg.MaxFlows+1, e.connect)
	e.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, e.fromTCP)
	e.stack.SetTransportProtocolHandler(udp.ProtocolNumber, e.fromUDP)
	return nil
}

// Name implements tun.Device.
func (*Exit) Name() string { return "userspace exit" }

// MTU implements tun.Device.
func (e *Exit) MTU() int { return e.cfg.MTU }

// Read implements tun.Device.
func (e *Exit) Read(pkts []tun.Packet) (int, error) { return e.link.Read(pkts) }

// Stats returns the counts.
func (e *Exit) Stats() Stats {
	l := e.link.Stats()
	s := Stats{
		Flows: e.flows.Load(), Refused: e.refused.Load(), Limited: e.limited.Load(), Failed: e.failed.Load(),
		Dropped: e.dropped.Load() + l.Dropped, Bad: l.Bad, Sent: e.sent.Load(), Received: e.received.Load(),
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s.TCP, s.UDP = len(e.tcp), len(e.udp)
	for _, p := range e.ping {
		if p != nil {
			s.Pings += len(p.sent)
		}
	}
	return s
}

// Forget ends the flows of a client's address, in IPv6 of its /64: whoever is given the address next does not inherit them, and who has
// gone holds no slots.
func (e *Exit) Forget(client netip.Addr) {
	who := clientOf(client)
	tcps, udps := e.list(func(a netip.Addr) bool { return clientOf(a) == who })
	for _, f := range tcps {
		f.abort()
	}
	for _, f := range udps {
		f.c.Close()
	}
	for _, p := range e.ping {
		if p != nil {
			p.forget(who)
		}
	}
}

// list returns the flows of the clients that want says.
func (e *Exit) list(want func(netip.Addr) bool) (tcps []*tcpFlow, udps []*udpFlow) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range e.tcp {
		if want(f.client) {
			tcps = append(tcps, f)
		}
	}
	for k, f := range e.udp {
		if want(k.client.Addr()) {
			udps = append(udps, f)
		}
	}
	return tcps, udps
}

// Close implements tun.Device. It ends every flow, without ceremony, and waits for all goroutines.
func (e *Exit) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	e.mu.Unlock()
	e.cancel()
	tcps, udps := e.list(func(netip.Addr) bool { return true })
	for _, f := range tcps {
		f.abort()
	}
	for _, f := range udps {
		f.c.Close()
	}
	for _, p := range e.ping {
		if p != nil {
			p.c.Close()
		}
	}
	done := make(chan struct{})
	go func() { e.wg.Wait(); close(done) }()
	for waiting := true; waiting; {
		// A handshake with a client is not in reach of any flow, only of the stack, and may begin just now.
		for _, ep := range e.stack.RegisteredEndpoints() {
			ep.Abort()
		}
		select {
		case <-done:
			waiting = false
		case <-time.After(10 * time.Millisecond):
		}
	}
	e.stack.Close()
	e.link.Shut()
	e.stack.Wait()
	return nil
}

// reap ends what has been idle for too long.
func (e *Exit) reap() {
	t := time.NewTicker(reapTime)
	defer t.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case now := <-t.C:
			e.expire(now)
		}
	}
}

func (e *Exit) expire(now time.Time) {
	tcps, udps := e.list(func(netip.Addr) bool { return true })
	for _, f := range tcps {
		f.expire(now)
	}
	for _, f := range udps {
		f.expire(now)
	}
	for _, p := range e.ping {
		if p != nil {
			p.expire(now)
		}
	}
}

// target returns where dst really is, if client may send there.
func (e *Exit) target(client netip.Addr, proto byte, dst netip.AddrPort) (netip.AddrPort, bool) {
	if e.cfg.Translate != nil {
		if a, ok := e.cfg.Translate(dst.Addr()); ok {
			dst = netip.AddrPortFrom(a, dst.Port())
		}
	}
	if forbidden(dst.Addr()) || !e.cfg.Allow(client, proto, dst) {
		e.refused.Add(1)
		return dst, false
	}
	return dst, true
}

// forbidden is what no policy can open: addresses that lead back to this machine, to its links or into the mesh, or nowhere.
// Private networks may be an owner's wish, and are for Allow to judge.
func forbidden(a netip.Addr) bool {
	if a.Is4() {
		b := a.As4()
		return !a.IsGlobalUnicast() || b[0] == 0 || b[0] >= 240
	}
	b := a.As16()
	return !a.IsGlobalUnicast() || a.Is4In6() || a.Zone() != "" || mesh.Contains(a) ||
		b[0] == 0xfe && b[1]&0xc0 == 0xc0 || // site-local, deprecated
		[12]byte(b[:12]) == [12]byte{} // IPv4-compatible, deprecated
}

// emit sends a transport packet to a client.
func (e *Exit) emit(from, to netip.Addr, proto byte, transport []byte) {
	r, err := e.stack.FindRoute(nicID, tcpip.AddrFromSlice(from.AsSlice()), tcpip.AddrFromSlice(to.AsSlice()), netOf(to), false)
	if err != nil {
		e.dropped.Add(1)
		return
	}
	defer r.Release()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: int(r.MaxHeaderLength()), Payload: buffer.MakeWithData(transport)})
	defer pkt.DecRef()
	pkt.TransportProtocolNumber = tcpip.TransportProtocolNumber(proto)
	if r.WritePacket(stack.NetworkHeaderParams{Protocol: pkt.TransportProtocolNumber, TTL: ttl}, pkt) != nil {
		e.dropped.Add(1)
	}
}

// checksum computes a transport checksum over b, whose field must be zero.
func checksum(from, to netip.Addr, proto byte, b []byte) uint16 {
	var sum uint16
	if proto != protoICMP {
		var p [36]byte // the pseudo-header: addresses, length, protocol; zeros between do not matter
		n := copy(p[:], from.AsSlice())
		n += copy(p[n:], to.AsSlice())
		binary.BigEndian.PutUint16(p[n:], uint16(len(b)))
		binary.BigEndian.PutUint16(p[n+2:], uint16(proto))
		sum = tun.Sum(p[:n+4], 0)
	}
	sum = ^tun.Sum(b, sum)
	if sum == 0 && proto == tun.ProtoUDP {
		sum = 0xffff
	}
	return sum
}

// unreachable is an ICMP code, of each family (RFC 792, RFC 4443 section 3.1).
type unreachable struct{ v4, v6 byte }

var (
	noNetwork = unreachable{0, 0}
	noHost    = unreachable{1, 0} // not 3: gvisor, which clients without root have, would not give up
	noPort    = unreachable{3, 4}
)

// sendUnreachable tells a client, in the name of the destination, what has become of its packet. transport is the beginning
// of that packet's transport header, at least 8 bytes.
func (e *Exit) sendUnreachable(client, dst netip.Addr, proto byte, transport []byte, why unreachable) {
	var b []byte
	size := len(transport)
	reply := byte(tun.ProtoICMPv6)
	if client.Is4() {
		reply = protoICMP
		b = append(b, 3, why.v4, 0, 0, 0, 0, 0, 0, 0x45, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(20+size))
		b = append(b, 0, 0, 0, 0, ttl, proto, 0, 0)
	} else {
		b = append(b, 1, why.v6, 0, 0, 0, 0, 0, 0, 0x60, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(size))
		b = append(b, proto, ttl)
	}
	b = append(append(b, client.AsSlice()...), dst.AsSlice()...)
	if client.Is4() {
		binary.BigEndian.PutUint16(b[18:], ^tun.Sum(b[8:28], 0))
	}
	b = append(b, transport...)
	binary.BigEndian.PutUint16(b[2:], checksum(dst, client, reply, b))
	e.emit(dst, client, reply, b)
}

// NewWriter implements tun.Device.
func (e *Exit) NewWriter() tun.Writer { return &writer{e, e.link.NewWriter()} }

// writer lets through what the stack should see.
type writer struct {
	e    *Exit
	link tun.Writer
}

// Write implements tun.Writer.
func (w *writer) Write(p []byte, partial bool) {
	src, dst, l4, ok := parse(p)
	if !ok {
		w.link.Write(p, partial) // which counts what is malformed
		return
	}
	if forbidden(dst) || !src.IsGlobalUnicast() {
		w.e.refused.Add(1)
		return
	}
	switch l4.Proto {
	case tun.ProtoTCP, tun.ProtoUDP:
		w.link.Write(p, partial)
		return
	case protoICMP, tun.ProtoICMPv6:
		if src.Is4() != (l4.Proto == protoICMP) || len(p) < l4.Offset+8 {
			break
		}
		switch m := p[l4.Offset:]; {
		case m[0] == 8 && src.Is4() || m[0] == 128 && src.Is6():
			w.e.echo(src, dst, m)
			return
		case src.Is4() && (m[0] == 3 || m[0] == 11 || m[0] == 12) || src.Is6() && m[0] >= 1 && m[0] <= 4: // errors, "too big" among them
			w.link.Write(p, partial)
			return
		}
	}
	w.e.dropped.Add(1)
}

// Flush implements tun.Writer.
func (w *writer) Flush() error { return w.link.Flush() }

// parse finds the addresses and the transport of a packet. The transport of a fragment is that of the whole, but ICMP does
// not travel in fragments here; other extension headers are not looked behind. False: p is malformed.
func parse(p []byte) (src, dst netip.Addr, l4 tun.L4, ok bool) {
	if len(p) < 20 {
		return src, dst, l4, false
	}
	switch p[0] >> 4 {
	case 4:
		src, dst = netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
		l4 = tun.L4{Proto: p[9], Offset: int(p[0]&0x0f) * 4}
		if binary.BigEndian.Uint16(p[6:])&0x3fff != 0 {
			l4.Offset = len(p)
		}
		return src, dst, l4, int(binary.BigEndian.Uint16(p[2:])) == len(p) && l4.Offset >= 20 && l4.Offset <= len(p)
	case 6:
		if len(p) < 40 || int(binary.BigEndian.Uint16(p[4:]))+40 != len(p) {
			return src, dst, l4, false
		}
		src, dst = netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))
		l4 = tun.L4{Proto: p[6], Offset: 40}
		if p[6] == 44 && len(p) >= 48 {
			l4 = tun.L4{Proto: p[40], Offset: len(p)}
		}
		return src, dst, l4, true
	}
	return src, dst, l4, false
}

func addrOf(a tcpip.Address) netip.Addr {
	ip, _ := netip.AddrFromSlice(a.AsSlice())
	return ip
}

func netOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

// network returns tcp4, udp6, … for a destination.
func network(kind string, a netip.Addr) string {
	if a.Is4() {
		return kind + "4"
	}
	return kind + "6"
}
