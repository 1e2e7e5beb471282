//go:build !router

package exit

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"weft/tun"
)

const (
	idleTCP        = 2*time.Hour + 4*time.Minute // RFC 5382 section 5
	idleHalfClosed = 10 * time.Minute
	closingTime    = time.Minute     // for what a client has still to acknowledge when both sides are done
	restTime       = 5 * time.Second // after which a connection gives its memory back
	userTimeout    = 5 * time.Minute // a client that acknowledges nothing for so long is gone
	idleBuffer     = 2 << 10         // what a copying goroutine holds while it waits
)

// tcpFlow is one connection of a client.
type tcpFlow struct {
	e       *Exit
	id      stack.TransportEndpointID
	client  netip.Addr
	dst     netip.Addr     // as the client knows it
	target  netip.AddrPort // where it is
	syn     [8]byte        // the beginning of the client's SYN, for ICMP
	acct    *account
	ctx     context.Context // ends with the flow
	cancel  context.CancelFunc
	removed bool  // with Exit.mu
	size    int64 // of each buffer; with Exit.mu

	ep     atomic.Pointer[tcp.Endpoint] // nil until the client has its answer
	out    atomic.Pointer[net.Conn]
	last   atomic.Int64 // when bytes moved, in nanoseconds since 1970
	moved  atomic.Int64 // bytes since the buffers grew
	large  atomic.Int32 // directions that hold a large buffer
	halves atomic.Int32 // directions that have ended
	done   atomic.Bool  // both have, and the stack sends the rest
}

// fromTCP is called by the stack with segments that belong to no connection of its own. False makes it answer with RST.
func (e *Exit) fromTCP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.TCP(pkt.TransportHeader().Slice())
	if len(h) < header.TCPMinimumSize {
		return true
	}
	flags := h.Flags()
	e.mu.Lock()
	f := e.tcp[id]
	e.mu.Unlock()
	switch {
	case flags.Contains(header.TCPFlagRst):
		if f != nil { // the client has given up while we connect
			f.cancel()
		}
		return true
	case !flags.Contains(header.TCPFlagSyn) || flags.Contains(header.TCPFlagAck):
		return false
	case f != nil && !f.gone():
		return true // once more, while we connect
	case f != nil:
		e.remove(f)
	}
	f = &tcpFlow{e: e, id: id, client: addrOf(id.RemoteAddress), dst: addrOf(id.LocalAddress), size: floorSize, syn: [8]byte(h[:8])}
	var ok bool
	if f.target, ok = e.target(f.client, tun.ProtoTCP, netip.AddrPortFrom(f.dst, id.LocalPort)); !ok {
		return false
	}
	f.touch()
	if !e.admit(f) {
		return false
	}
	if !e.fwd.HandlePacket(id, pkt) { // malformed
		e.remove(f)
		e.wg.Done()
		return false
	}
	return true
}

// admit gives f a slot, and counts the goroutine that connects it.
func (e *Exit) admit(f *tcpFlow) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	if f.acct = e.book.open(f.client); f.acct == nil {
		e.limited.Add(1)
		return false
	}
	f.ctx, f.cancel = context.WithCancel(e.ctx)
	e.tcp[f.id] = f
	e.wg.Add(1)
	return true
}

// remove gives back what f holds.
func (e *Exit) remove(f *tcpFlow) {
	f.cancel()
	e.mu.Lock()
	defer e.mu.Unlock()
	if f.removed {
		return
	}
	f.removed = true
	delete(e.tcp, f.id)
	e.book.resize(f.acct, f.size, floorSize)
	e.book.close(f.acct)
}

// connect runs on a goroutine of its own for each SYN that fromTCP has let through: it connects to the outside, then lets
// the stack answer the client, then copies until both directions have ended.
func (e *Exit) connect(r *tcp.ForwarderRequest) {
	defer e.wg.Done()
	id := r.ID()
	e.mu.Lock()
	f := e.tcp[id]
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(f.ctx, e.cfg.ConnectTimeout)
	out, err := e.cfg.Dial(ctx, network("tcp", f.target.Addr()), f.target.String())
	cancel()
	if err != nil {
		why, known := reason(err)
		silent := f.ctx.Err() != nil // the client has gone, or we close
		r.Complete(!known && !silent)
		if known && !silent {
			e.sendUnreachable(f.client, f.dst, tun.ProtoTCP, f.syn[:], why)
		}
		if !silent {
			e.failed.Add(1)
		}
		e.remove(f)
		return
	}
	defer out.Close()
	f.out.Store(&out)
	var wq waiter.Queue
	made, terr := r.CreateEndpoint(&wq)
	r.Complete(false)
	if terr != nil {
		reset(out)
		e.remove(f)
		return
	}
	e.flows.Add(1)
	ep := made.(*tcp.Endpoint)
	f.ep.Store(ep)
	if f.ctx.Err() != nil { // Forget or Close came too early for abort to find ep
		f.abort()
	}
	timeout := tcpip.TCPUserTimeoutOption(userTimeout)
	_ = ep.SetSockOpt(&timeout) // cannot fail
	ep.SocketOptions().SetDelayOption(false)
	if !f.resize(startSize) {
		f.setBuffers(floorSize)
	}
	in := gonet.NewTCPConn(&wq, ep)
	var other sync.WaitGroup
	other.Go(func() { f.half(in, out, &e.received) })
	f.half(out, in, &e.sent)
	other.Wait()
	in.Close()
	f.touch()
	f.done.Store(true) // the slot is held until the stack has got rid of the rest: see expire
}

// reason says which ICMP message tells a client why its connection was not made; false if a RST says it better.
func reason(err error) (unreachable, bool) {
	// Windows has its own numbers for what the network says (WSAE…); none of them is used elsewhere.
	is := func(a, windows syscall.Errno) bool { return errors.Is(err, a) || errors.Is(err, windows) }
	var timeout net.Error
	switch {
	case is(syscall.ENETUNREACH, 10051), is(syscall.EADDRNOTAVAIL, 10049), is(syscall.EAFNOSUPPORT, 10047):
		return noNetwork, true
	case is(syscall.EHOSTUNREACH, 10065), is(syscall.ETIMEDOUT, 10060), errors.Is(err, context.DeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		return noHost, true
	}
	return unreachable{}, false
}

// large buffers of copying goroutines.
var large = sync.Pool{New: func() any { return new([inHand]byte) }}

// half copies one direction. The end of it is passed on as a half-close, anything worse as a RST both ways.
func (f *tcpFlow) half(dst, src net.Conn, count *atomic.Uint64) {
	if err := f.copy(dst, src, count); err == nil {
		if c, ok := dst.(interface{ CloseWrite() error }); ok && c.CloseWrite() == nil {
			f.halves.Add(1)
			return
		}
	}
	f.abort()
}

// copy holds a small buffer while it waits, and a large one while there is much to copy.
func (f *tcpFlow) copy(dst, src net.Conn, count *atomic.Uint64) error {
	small := make([]byte, idleBuffer)
	var big *[inHand]byte
	release := func() {
		if big != nil {
			large.Put(big)
			big = nil
			f.large.Add(-1)
		}
	}
	defer release()
	for {
		buf := small
		if big != nil {
			buf = big[:]
		}
		n, err := src.Read(buf)
		if n > 0 {
			f.touch()
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
			count.Add(uint64(n))
			f.grow(n)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case big == nil && n == len(small):
			big = large.Get().(*[inHand]byte)
			f.large.Add(1)
		case big != nil && n < idleBuffer:
			release()
		}
	}
}

func (f *tcpFlow) touch() { f.last.Store(time.Now().UnixNano()) }

// grow doubles the buffers of a connection that has filled them a few times.
func (f *tcpFlow) grow(n int) {
	if f.moved.Add(int64(n)) < 4*startSize {
		return
	}
	f.moved.Store(0)
	f.e.mu.Lock()
	size := f.size
	f.e.mu.Unlock()
	if size < fullSize {
		f.resize(2 * size)
	}
}

// resize gives f buffers of size, if there is memory to lend.
func (f *tcpFlow) resize(size int64) bool {
	f.e.mu.Lock()
	ok := !f.removed && f.size != size && f.e.book.resize(f.acct, f.size, size)
	if ok {
		f.size = size
	}
	f.e.mu.Unlock()
	if ok {
		f.setBuffers(size)
	}
	return ok
}

func (f *tcpFlow) setBuffers(size int64) {
	o := f.ep.Load().SocketOptions()
	o.SetReceiveBufferSize(size, true)
	o.SetSendBufferSize(size, true)
}

// abort ends f with a RST to both sides, or gives up connecting.
func (f *tcpFlow) abort() {
	f.cancel()
	if ep := f.ep.Load(); ep != nil {
		ep.Abort()
	}
	if out := f.out.Load(); out != nil {
		reset(*out)
	}
}

// reset closes with RST where that is possible.
func reset(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(0) // without it, the other side sees an end instead of a reset
	}
	c.Close()
}

// gone reports whether the stack has forgotten the connection.
func (f *tcpFlow) gone() bool {
	if !f.done.Load() {
		return false
	}
	switch tcp.EndpointState(f.ep.Load().State()) {
	case tcp.StateClose, tcp.StateError, tcp.StateInitial:
		return true
	}
	return false
}

// expire is called each second.
func (f *tcpFlow) expire(now time.Time) {
	ep := f.ep.Load()
	if ep == nil {
		return // connecting, which has its own end
	}
	idle := now.Sub(time.Unix(0, f.last.Load()))
	switch {
	case f.gone():
		f.e.remove(f)
	case f.done.Load() && idle > closingTime, f.halves.Load() == 1 && idle > idleHalfClosed, idle > idleTCP:
		f.abort()
	case idle > restTime:
		f.rest(ep)
	}
}

// rest takes back what a silent connection was lent, if its buffers are empty.
func (f *tcpFlow) rest(ep *tcp.Endpoint) {
	for _, o := range []tcpip.SockOptInt{tcpip.SendQueueSizeOption, tcpip.ReceiveQueueSizeOption} {
		if n, err := ep.GetSockOptInt(o); err == nil && n > 0 {
			return
		}
	}
	size := int64(floorSize)
	if f.large.Load() > 0 {
		size = startSize // a large buffer waits with its goroutine, and costs as much as this size does
	}
	f.e.mu.Lock()
	had := f.size
	f.e.mu.Unlock()
	if had > size {
		f.resize(size)
	}
}
