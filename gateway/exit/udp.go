//go:build !router

package exit

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"weft/tun"
)

// maxPeers is how many addresses a UDP port remembers to have sent to, at least; it may be twice as many.
const maxPeers = 128

// udpKey is a port of a client, with the family of the socket that stands for it: one socket for all destinations
// (endpoint-independent mapping, RFC 4787 section 4.1), so that what finds its way through NATs finds it here.
type udpKey struct {
	client netip.AddrPort
	v4     bool
}

// udpFlow is one port of a client.
type udpFlow struct {
	e    *Exit
	key  udpKey
	acct *account
	c    net.PacketConn
	send func(b []byte, to netip.AddrPort) error

	last atomic.Int64 // when a datagram passed, in nanoseconds since 1970
	more atomic.Bool  // it has sent to other ports than 53

	mu sync.Mutex // alone
	// Who was sent to may answer, from any port (address-dependent filtering, RFC 4787 section 5), under the address that the
	// client knows. Two generations: those that were not used since the new one was begun go with the old one.
	peers, before map[netip.Addr]netip.Addr
}

// fromUDP is called by the stack with all datagrams, put together again. False makes it answer that the port is unreachable.
func (e *Exit) fromUDP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.UDP(pkt.TransportHeader().Slice())
	if len(h) < header.UDPMinimumSize {
		return true
	}
	size := int(h.Length()) - header.UDPMinimumSize
	payload, ok := pkt.Data().PullUp(pkt.Data().Size())
	if !ok && pkt.Data().Size() > 0 || size < 0 || size > len(payload) || id.LocalPort == 0 || id.RemotePort == 0 {
		e.dropped.Add(1)
		return true
	}
	client, dst := netip.AddrPortFrom(addrOf(id.RemoteAddress), id.RemotePort), netip.AddrPortFrom(addrOf(id.LocalAddress), id.LocalPort)
	to, ok := e.target(client.Addr(), tun.ProtoUDP, dst)
	if !ok {
		return false
	}
	f, ok := e.udpFlow(udpKey{client, to.Addr().Is4()})
	if !ok {
		return false
	}
	f.remember(to.Addr(), dst.Addr())
	f.last.Store(time.Now().UnixNano())
	if to.Port() != 53 {
		f.more.Store(true)
	}
	if f.send(payload[:size], to) != nil {
		e.dropped.Add(1)
		return true
	}
	e.sent.Add(uint64(size))
	return true
}

// udpFlow finds or opens the socket of a client's port.
func (e *Exit) udpFlow(k udpKey) (*udpFlow, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f := e.udp[k]; f != nil {
		return f, true
	}
	if e.closed {
		return nil, false
	}
	f := &udpFlow{e: e, key: k, peers: map[netip.Addr]netip.Addr{}}
	if f.acct = e.book.open(k.client.Addr()); f.acct == nil {
		e.limited.Add(1)
		return nil, false
	}
	kind, at := "udp4", "0.0.0.0:0"
	if !k.v4 {
		kind, at = "udp6", "[::]:0"
	}
	c, err := e.cfg.ListenPacket(e.ctx, kind, at)
	if err != nil {
		e.failed.Add(1)
		e.book.close(f.acct)
		return nil, false
	}
	wantErrors(c, k.v4)
	f.c, f.send = c, sender(c)
	e.udp[k] = f
	e.flows.Add(1)
	e.wg.Go(f.receive)
	return f, true
}

func (f *udpFlow) remember(real, known netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.peers[real] == known {
		return
	}
	if len(f.peers) >= maxPeers {
		f.before, f.peers = f.peers, make(map[netip.Addr]netip.Addr, maxPeers)
	}
	f.peers[real] = known
}

// known returns the address under which the client knows real.
func (f *udpFlow) known(real netip.Addr) (netip.Addr, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, ok := f.peers[real]
	if !ok {
		a, ok = f.before[real]
	}
	return a, ok
}

// receive passes on what comes back, until the socket is closed.
func (f *udpFlow) receive() {
	defer func() {
		f.c.Close()
		f.e.mu.Lock()
		defer f.e.mu.Unlock()
		delete(f.e.udp, f.key)
		f.e.book.close(f.acct)
	}()
	receive(f.c, f.answer, f.unreachable)
}

// answer passes one datagram on. b is only lent.
func (f *udpFlow) answer(b []byte, from netip.AddrPort) {
	known, ok := f.known(from.Addr())
	if !ok || len(b) > 65535-header.UDPMinimumSize-header.IPv4MinimumSize {
		f.e.dropped.Add(1)
		return
	}
	f.last.Store(time.Now().UnixNano())
	f.e.received.Add(uint64(len(b)))
	u := make([]byte, header.UDPMinimumSize+len(b))
	copy(u[header.UDPMinimumSize:], b)
	f.header(u, from.Port(), f.key.client.Port())
	binary.BigEndian.PutUint16(u[6:], checksum(known, f.key.client.Addr(), tun.ProtoUDP, u))
	f.e.emit(known, f.key.client.Addr(), tun.ProtoUDP, u)
}

func (*udpFlow) header(u []byte, from, to uint16) {
	binary.BigEndian.PutUint16(u, from)
	binary.BigEndian.PutUint16(u[2:], to)
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
}

// unreachable passes on that a datagram to a peer did not arrive.
func (f *udpFlow) unreachable(to netip.AddrPort, why unreachable) {
	if known, ok := f.known(to.Addr()); ok {
		var u [header.UDPMinimumSize]byte
		f.header(u[:], f.key.client.Port(), to.Port())
		f.e.sendUnreachable(f.key.client.Addr(), known, tun.ProtoUDP, u[:], why)
	}
}

// expire is called each second.
func (f *udpFlow) expire(now time.Time) {
	limit := f.e.cfg.DNSIdle
	if f.more.Load() {
		limit = f.e.cfg.UDPIdle
	}
	if now.Sub(time.Unix(0, f.last.Load())) > limit {
		f.c.Close()
	}
}
