//go:build !router

package netstack

import (
	"bytes"
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"weft/tun"
)

const (
	maxGSO       = 60000   // bytes of a super-packet: sealed, its segments still fit one UDP GSO send
	arenaSize    = 4 << 16 // bytes that one Read hands out at most
	maxQueued    = 1 << 11 // packets that wait for Read; more are dropped, as by any network card
	maxQueuedMem = 4 << 20 // bytes of them
	maxMerged    = 60000   // bytes of one run of segments on the way in
)

// link is the stack's only network card: what the stack sends waits in a queue for Read, and what a writer takes is
// delivered to the stack on the writer's goroutine.
type link struct {
	mtu        uint32
	dispatcher atomic.Pointer[stack.NetworkDispatcher]

	mu     sync.Mutex
	ready  sync.Cond // the queue is not empty, or closed
	queue  ring
	bytes  int
	closed bool

	arena   []byte // Read's
	dropped atomic.Uint64
	bad     atomic.Uint64
}

func newLink(mtu int) *link {
	l := &link{mtu: uint32(mtu), arena: make([]byte, arenaSize)}
	l.ready.L = &l.mu
	return l
}

// ring is a queue in a circle that grows up to maxQueued.
type ring struct {
	p       []*stack.PacketBuffer
	head, n int
}

func (r *ring) push(p *stack.PacketBuffer) {
	if r.n == len(r.p) {
		next := make([]*stack.PacketBuffer, max(64, 2*len(r.p)))
		for i := range r.n {
			next[i] = r.p[(r.head+i)%len(r.p)]
		}
		r.p, r.head = next, 0
	}
	r.p[(r.head+r.n)%len(r.p)] = p
	r.n++
}

func (r *ring) first() *stack.PacketBuffer { return r.p[r.head] }

func (r *ring) pop() {
	r.p[r.head] = nil
	r.head = (r.head + 1) % len(r.p)
	r.n--
}

// WritePackets implements stack.LinkWriter. It never blocks: the stack calls it with its locks held.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, &tcpip.ErrClosedForSend{}
	}
	for i, p := range pkts.AsSlice() {
		if l.queue.n == maxQueued || l.bytes+p.Size() > maxQueuedMem || p.Size() > arenaSize {
			l.dropped.Add(uint64(pkts.Len() - i))
			return i, &tcpip.ErrNoBufferSpace{}
		}
		l.queue.push(p.IncRef())
		l.bytes += p.Size()
	}
	l.ready.Signal()
	return pkts.Len(), nil
}

// Read implements tun.Device.
func (l *link) Read(pkts []tun.Packet) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.queue.n == 0 && !l.closed {
		l.ready.Wait()
	}
	if l.closed {
		return 0, net.ErrClosed
	}
	n, free := 0, l.arena
	for ; n < len(pkts) && l.queue.n > 0; n++ {
		p := l.queue.first()
		size := p.Size()
		if size > len(free) {
			break
		}
		l.queue.pop()
		l.bytes -= size
		l.mu.Unlock() // copying is slow, and the stack must not wait for it; only Read takes from the queue
		data := free[:0:size]
		for _, v := range p.AsSlices() {
			data = append(data, v...)
		}
		free = free[size:]
		pkts[n] = tun.Packet{Data: data}
		if gso := p.GSOOptions; gso.Type == stack.GSOTCPv6 {
			pkts[n].Partial = gso.NeedsCsum
			if p.Data().Size() > int(gso.MSS) {
				pkts[n].SegSize = gso.MSS
			}
		}
		p.DecRef()
		l.mu.Lock()
	}
	return n, nil
}

// shut ends Read and drops what waits.
func (l *link) shut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for l.queue.n > 0 {
		l.queue.first().DecRef()
		l.queue.pop()
	}
	l.bytes = 0
	l.ready.Broadcast()
}

// What follows implements the rest of stack.LinkEndpoint and stack.GSOEndpoint.

func (l *link) MTU() uint32                           { return l.mtu }
func (l *link) SetMTU(uint32)                         {}
func (*link) MaxHeaderLength() uint16                 { return 0 }
func (*link) LinkAddress() tcpip.LinkAddress          { return "" }
func (*link) SetLinkAddress(tcpip.LinkAddress)        {}
func (*link) Wait()                                   {}
func (*link) Close()                                  {}
func (*link) SetOnCloseAction(func())                 {}
func (*link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (*link) AddHeader(*stack.PacketBuffer)           {}
func (*link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (*link) GSOMaxSize() uint32                      { return maxGSO }
func (*link) SupportedGSO() stack.SupportedGSO        { return stack.HostGSOSupported }
func (l *link) IsAttached() bool                      { return l.dispatcher.Load() != nil }

// Capabilities: received checksums are dealt with by the writer. Checksums of what is sent are left to the stack, except
// those of bulk TCP, which GSO leaves partial.
func (*link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// Attach implements stack.LinkEndpoint; nil detaches.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		l.dispatcher.Store(nil)
		return
	}
	l.dispatcher.Store(&d)
}

func (l *link) deliver(v *buffer.View) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
	defer pkt.DecRef()
	if d := l.dispatcher.Load(); d != nil {
		(*d).DeliverNetworkPacket(header.IPv6ProtocolNumber, pkt)
	}
}

// writer implements tun.Writer. Segments of a TCP connection that follow one another are merged, so that the stack's cost
// per segment (locks, a hand-over to another goroutine, an ACK) is paid once for many. Nothing is copied before a run is
// whole, since packets stay untouched until Flush.
type writer struct {
	l    *link
	run  [][]byte // the first packet and the payloads that follow it
	hdr  int      // length of the first one's IP and TCP headers
	size int      // of run
	seg  int      // payload bytes of the first one
	next uint32   // the sequence number that continues the run
	psh  byte     // the last one's PSH flag
}

// Write implements tun.Writer.
func (w *writer) Write(p []byte, partial bool) {
	if len(p) < header.IPv6MinimumSize || p[0]>>4 != 6 ||
		int(binary.BigEndian.Uint16(p[4:]))+header.IPv6MinimumSize != len(p) || !partial && !checksumOK(p) {
		w.l.bad.Add(1)
		return
	}
	hdr, payload := splitTCP(p)
	if payload > 0 && len(w.run) > 0 && w.continues(p, hdr, payload) {
		w.run = append(w.run, p[hdr:])
		w.size += payload
		w.next += uint32(payload)
		w.psh = p[40+13] & psh
		if payload < w.seg || w.psh != 0 {
			w.deliverRun()
		}
		return
	}
	w.deliverRun()
	if payload == 0 || p[40+13] != ack {
		w.l.deliver(buffer.NewViewWithData(p))
		return
	}
	w.run = append(w.run, p)
	w.hdr, w.size, w.seg, w.psh = hdr, len(p), payload, 0
	w.next = binary.BigEndian.Uint32(p[40+4:]) + uint32(payload)
}

const (
	ack = byte(header.TCPFlagAck)
	psh = byte(header.TCPFlagPsh)
)

// splitTCP returns the length of the IPv6 and TCP headers and of what follows them; 0, 0 if p is not plain TCP.
func splitTCP(p []byte) (hdr, payload int) {
	if p[6] != tun.ProtoTCP || len(p) < 60 {
		return 0, 0
	}
	hdr = 40 + int(p[40+12]>>4)*4
	if hdr < 60 || hdr > len(p) {
		return 0, 0
	}
	return hdr, len(p) - hdr
}

// continues reports whether p is the next segment of the run: same flow, acknowledgement, window and options.
func (w *writer) continues(p []byte, hdr, payload int) bool {
	h := w.run[0]
	return hdr == w.hdr && payload <= w.seg && w.size+payload <= maxMerged &&
		binary.BigEndian.Uint32(p[40+4:]) == w.next && p[40+13]&^psh == ack &&
		bytes.Equal(p[:4], h[:4]) && p[7] == h[7] && bytes.Equal(p[8:44], h[8:44]) && // class, TTL; addresses, ports
		bytes.Equal(p[48:53], h[48:53]) && bytes.Equal(p[54:56], h[54:56]) && bytes.Equal(p[58:hdr], h[58:hdr]) // all but flags and checksum
}

func (w *writer) deliverRun() {
	if len(w.run) == 0 {
		return
	}
	v := buffer.NewView(w.size)
	for _, part := range w.run {
		v.Write(part) // cannot fail
	}
	head := v.AsSlice()
	binary.BigEndian.PutUint16(head[4:], uint16(w.size-header.IPv6MinimumSize))
	head[40+13] |= w.psh
	clear(w.run)
	w.run = w.run[:0]
	w.l.deliver(v)
}

// Flush implements tun.Writer.
func (w *writer) Flush() error {
	w.deliverRun()
	if w.l.dispatcher.Load() == nil {
		return net.ErrClosed
	}
	return nil
}

// checksumOK checks the TCP or UDP checksum of a packet without extension headers. ICMPv6 is checked by the stack. What is
// behind extension headers is believed: session has authenticated the node it comes from.
func checksumOK(p []byte) bool {
	proto, at := p[6], 0
	switch proto {
	case tun.ProtoTCP:
		at = 16
	case tun.ProtoUDP:
		at = 6
	default:
		return true
	}
	t := p[header.IPv6MinimumSize:]
	if len(t) < at+2 || proto == tun.ProtoUDP && t[6] == 0 && t[7] == 0 { // RFC 8200 section 8.1: UDP must have one
		return false
	}
	return tun.Sum(t, tun.PseudoSum(p, proto, len(t))) == 0xffff
}
