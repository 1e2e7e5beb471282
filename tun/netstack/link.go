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

// Link is the only network card of a gvisor stack: what the stack sends waits in a queue for Read, and what a writer takes
// is delivered to the stack on the writer's goroutine. It is the device half of [Stack], and of other rooms' stacks.
type Link struct {
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

// NewLink makes a card for packets of up to mtu bytes. The stack attaches itself to it (stack.CreateNIC).
func NewLink(mtu int) *Link {
	l := &Link{mtu: uint32(mtu), arena: make([]byte, arenaSize)}
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
func (l *Link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
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
func (l *Link) Read(pkts []tun.Packet) (int, error) {
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
		if gso := p.GSOOptions; gso.Type == stack.GSOTCPv4 || gso.Type == stack.GSOTCPv6 {
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

// NewWriter implements tun.Device.
func (l *Link) NewWriter() tun.Writer { return &writer{l: l} }

// Stats returns the sums since the start.
func (l *Link) Stats() Stats { return Stats{Dropped: l.dropped.Load(), Bad: l.bad.Load()} }

// Stats counts what a stack has lost.
type Stats struct {
	Dropped uint64 // packets that it sent, because the queue was full
	Bad     uint64 // packets to it, malformed or with a wrong checksum
}

// Shut ends Read and drops what waits.
func (l *Link) Shut() {
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

func (l *Link) MTU() uint32                           { return l.mtu }
func (l *Link) SetMTU(uint32)                         {}
func (*Link) MaxHeaderLength() uint16                 { return 0 }
func (*Link) LinkAddress() tcpip.LinkAddress          { return "" }
func (*Link) SetLinkAddress(tcpip.LinkAddress)        {}
func (*Link) Wait()                                   {}
func (*Link) Close()                                  {}
func (*Link) SetOnCloseAction(func())                 {}
func (*Link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (*Link) AddHeader(*stack.PacketBuffer)           {}
func (*Link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (*Link) GSOMaxSize() uint32                      { return maxGSO }
func (*Link) SupportedGSO() stack.SupportedGSO        { return stack.HostGSOSupported }
func (l *Link) IsAttached() bool                      { return l.dispatcher.Load() != nil }

// Capabilities: received checksums are dealt with by the writer. Checksums of what is sent are left to the stack, except
// those of bulk TCP, which GSO leaves partial.
func (*Link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// Attach implements stack.LinkEndpoint; nil detaches.
func (l *Link) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		l.dispatcher.Store(nil)
		return
	}
	l.dispatcher.Store(&d)
}

func (l *Link) deliver(v *buffer.View) {
	proto := header.IPv6ProtocolNumber
	if v.AsSlice()[0]>>4 == 4 {
		proto = header.IPv4ProtocolNumber
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
	defer pkt.DecRef()
	if d := l.dispatcher.Load(); d != nil {
		(*d).DeliverNetworkPacket(proto, pkt)
	}
}

// writer implements tun.Writer. Segments of a TCP connection that follow one another are merged, so that the stack's cost
// per segment (locks, a hand-over to another goroutine, an ACK) is paid once for many. Nothing is copied before a run is
// whole, since packets stay untouched until Flush.
type writer struct {
	l    *Link
	run  [][]byte // the first packet and the payloads that follow it
	tcp  int      // where its TCP header is
	hdr  int      // length of its IP and TCP headers
	size int      // of run
	seg  int      // payload bytes of the first one
	next uint32   // the sequence number that continues the run
	psh  byte     // the last one's PSH flag
}

// Write implements tun.Writer.
func (w *writer) Write(p []byte, partial bool) {
	if !whole(p) || !partial && !checksumOK(p) {
		w.l.bad.Add(1)
		return
	}
	tcp, hdr := splitTCP(p)
	payload := len(p) - hdr
	if hdr > 0 && payload > 0 && len(w.run) > 0 && w.continues(p, tcp, hdr) {
		w.run = append(w.run, p[hdr:])
		w.size += payload
		w.next += uint32(payload)
		w.psh = p[tcp+13] & psh
		if payload < w.seg || w.psh != 0 {
			w.deliverRun()
		}
		return
	}
	w.deliverRun()
	if hdr == 0 || payload == 0 || p[tcp+13] != ack {
		w.l.deliver(buffer.NewViewWithData(p))
		return
	}
	w.run = append(w.run, p)
	w.tcp, w.hdr, w.size, w.seg, w.psh = tcp, hdr, len(p), payload, 0
	w.next = binary.BigEndian.Uint32(p[tcp+4:]) + uint32(payload)
}

const (
	ack = byte(header.TCPFlagAck)
	psh = byte(header.TCPFlagPsh)
)

// whole reports whether p is one IP packet, no more and no less, with a header that is as it was sent. IPv4 loopback
// addresses have no business in it, and the stack would print a line about them.
func whole(p []byte) bool {
	if len(p) < header.IPv4MinimumSize {
		return false
	}
	switch p[0] >> 4 {
	case 6:
		return len(p) >= header.IPv6MinimumSize && int(binary.BigEndian.Uint16(p[4:]))+header.IPv6MinimumSize == len(p)
	case 4:
		hdr := int(p[0]&0x0f) * 4
		return hdr >= header.IPv4MinimumSize && hdr <= len(p) && int(binary.BigEndian.Uint16(p[2:])) == len(p) && tun.Sum(p[:hdr], 0) == 0xffff &&
			p[12] != 127 && p[16] != 127
	}
	return false
}

// splitTCP returns where the TCP header is and where it ends; 0, 0 if p is not plain TCP. IPv4 options are not plain.
func splitTCP(p []byte) (tcp, hdr int) {
	l4, ok := tun.Transport(p)
	if !ok || l4.Proto != tun.ProtoTCP || p[0]>>4 == 4 && l4.Offset != header.IPv4MinimumSize {
		return 0, 0
	}
	if hdr, ok = tun.HeaderLen(p); !ok {
		return 0, 0
	}
	return l4.Offset, hdr
}

// continues reports whether p is the next segment of the run: same flow, acknowledgement, window and options.
func (w *writer) continues(p []byte, tcp, hdr int) bool {
	h := w.run[0]
	payload := len(p) - hdr
	if tcp != w.tcp || hdr != w.hdr || payload > w.seg || w.size+payload > maxMerged || !sameFlow(p, h) {
		return false
	}
	p, h, hdr = p[tcp:], h[tcp:], hdr-tcp
	return binary.BigEndian.Uint32(p[4:]) == w.next && p[13]&^psh == ack &&
		bytes.Equal(p[:4], h[:4]) && bytes.Equal(p[8:13], h[8:13]) && // ports; acknowledgement, length
		bytes.Equal(p[14:16], h[14:16]) && bytes.Equal(p[18:hdr], h[18:hdr]) // window; all behind the checksum
}

// sameFlow compares the IP headers of two TCP packets in all that a run shares: version, class, TTL and addresses.
func sameFlow(p, h []byte) bool {
	if p[0]>>4 == 4 {
		return bytes.Equal(p[:2], h[:2]) && bytes.Equal(p[6:10], h[6:10]) && bytes.Equal(p[12:20], h[12:20]) // DF goes with TTL
	}
	return bytes.Equal(p[:4], h[:4]) && p[7] == h[7] && bytes.Equal(p[8:40], h[8:40])
}

// deliverRun leaves the IPv4 header's checksum as it was: whole has checked it, and the stack does not.
func (w *writer) deliverRun() {
	if len(w.run) == 0 {
		return
	}
	v := buffer.NewView(w.size)
	for _, part := range w.run {
		v.Write(part) // cannot fail
	}
	head := v.AsSlice()
	if head[0]>>4 == 4 {
		binary.BigEndian.PutUint16(head[2:], uint16(w.size))
	} else {
		binary.BigEndian.PutUint16(head[4:], uint16(w.size-header.IPv6MinimumSize))
	}
	head[w.tcp+13] |= w.psh
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

// checksumOK checks the TCP or UDP checksum of a packet that is no fragment and has no extension headers. ICMP is checked by
// the stack. The rest is believed: session has authenticated the node it comes from.
func checksumOK(p []byte) bool {
	l4, ok := tun.Transport(p)
	if !ok {
		return true
	}
	t, at := p[l4.Offset:], 0
	switch l4.Proto {
	case tun.ProtoTCP:
		at = 16
	case tun.ProtoUDP:
		at = 6
	default:
		return true
	}
	if len(t) < at+2 {
		return false
	}
	if l4.Proto == tun.ProtoUDP && t[6] == 0 && t[7] == 0 {
		return p[0]>>4 == 4 // none was computed: RFC 768; with IPv6 there must be one, RFC 8200 section 8.1
	}
	return tun.Sum(t, tun.PseudoSum(p, l4.Proto, len(t))) == 0xffff
}
