package link

import (
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"weft/forward"
	"weft/wire"
)

// carrier is what a path's datagrams travel on: a UDP socket or one stream.
type carrier interface {
	Send(to forward.Endpoint, buf []byte, seg int) error
}

// path is a way to one neighbour. QUIC knows it as an address that never changes; where its datagrams really go may
// (when the neighbour roams), and QUIC need not notice. It is the forward.Sender of its link.
type path struct {
	name string               // the first endpoint; also what a QUIC Retry token is bound to
	to   atomic.Pointer[dest] // where datagrams go now
	root atomic.Pointer[path] // the path registered for the same endpoint, if that is another one

	refs int // guarded by mux.mu
}

type dest struct {
	ep  forward.Endpoint
	via carrier
}

func newPath(ep forward.Endpoint, via carrier) *path {
	p := &path{name: ep.AddrPort().String()}
	p.to.Store(&dest{ep, via})
	return p
}

// Network and String make path a net.Addr.
func (p *path) Network() string { return "weft" }
func (p *path) String() string  { return p.name }

// Send sends datagrams to where the neighbour is now.
func (p *path) Send(buf []byte, seg int) error {
	d := p.to.Load()
	return d.via.Send(d.ep, buf, seg)
}

func (p *path) canonical() *path {
	if r := p.root.Load(); r != nil {
		return r
	}
	return p
}

// mux is the packet connection that QUIC runs on: the control datagrams of all sockets and streams, by virtual address.
type mux struct {
	in      chan *packet
	free    sync.Pool
	dropped atomic.Uint64

	mu       sync.Mutex // guards what follows
	paths    map[forward.Endpoint]*path
	deadline time.Time
	wake     chan struct{} // closed when deadline changes
	closed   chan struct{}
}

// maxControlDatagram is above every QUIC packet that we send (1200) and receive.
const (
	maxControlDatagram = 1500
	controlInbox       = 512
)

type packet struct {
	buf  [maxControlDatagram]byte
	n    int
	from *path
}

func newMux() *mux {
	return &mux{
		in: make(chan *packet, controlInbox), free: sync.Pool{New: func() any { return new(packet) }},
		paths: map[forward.Endpoint]*path{}, wake: make(chan struct{}), closed: make(chan struct{}),
	}
}

// deliver takes a QUIC datagram from a socket's reader. It never blocks: QUIC repeats what is dropped.
func (x *mux) deliver(from forward.Endpoint, via carrier, b []byte) {
	if len(b) > maxControlDatagram {
		x.dropped.Add(1)
		return
	}
	x.mu.Lock()
	p := x.paths[from]
	x.mu.Unlock()
	if p == nil {
		if b[0]&0x80 == 0 {
			// A short header belongs to a connection that exists, and those have a path. A neighbour that roamed comes
			// in again by its next probe, which moves the path (Events.Moved); QUIC's own migration stays out of it.
			x.dropped.Add(1)
			return
		}
		p = newPath(from, via)
	}
	k := x.free.Get().(*packet)
	k.n, k.from = copy(k.buf[:], b), p
	select {
	case x.in <- k:
	default:
		x.free.Put(k)
		x.dropped.Add(1)
	}
}

// hold registers a path, or joins the one that is registered for its endpoint, and returns that. Undo with release.
func (x *mux) hold(p *path) *path {
	x.mu.Lock()
	defer x.mu.Unlock()
	ep := p.to.Load().ep
	if r := x.paths[ep]; r != nil {
		if r != p {
			p.root.Store(r)
		}
		p = r
	} else {
		x.paths[ep] = p
	}
	p.refs++
	return p
}

func (x *mux) release(p *path) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if p.refs--; p.refs == 0 {
		if ep := p.to.Load().ep; x.paths[ep] == p {
			delete(x.paths, ep)
		}
	}
}

// move switches a path to where its neighbour is now.
func (x *mux) move(p *path, ep forward.Endpoint, via carrier) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if old := p.to.Load().ep; x.paths[old] == p {
		delete(x.paths, old)
	}
	p.to.Store(&dest{ep, via})
	if x.paths[ep] == nil { // where another neighbour is, its control datagrams stay its own, whoever forges its address
		x.paths[ep] = p
	}
}

func (x *mux) count() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.paths)
}

// ReadFrom is called by QUIC only.
func (x *mux) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		x.mu.Lock()
		deadline, wake := x.deadline, x.wake
		x.mu.Unlock()
		var timeout <-chan time.Time
		if !deadline.IsZero() {
			d := time.Until(deadline)
			if d <= 0 {
				return 0, nil, os.ErrDeadlineExceeded
			}
			t := time.NewTimer(d)
			defer t.Stop()
			timeout = t.C
		}
		select {
		case k := <-x.in:
			n, from := copy(b, k.buf[:k.n]), k.from
			k.from = nil
			x.free.Put(k)
			return n, from, nil
		case <-wake:
		case <-timeout:
			return 0, nil, os.ErrDeadlineExceeded
		case <-x.closed:
			return 0, nil, net.ErrClosed
		}
	}
}

// WriteTo is called by QUIC only. A datagram that could not be sent is a lost datagram, never an error: errors would
// make QUIC give up the connection, and whether a link is alive is for its probes to say.
func (x *mux) WriteTo(b []byte, to net.Addr) (int, error) {
	p, ok := to.(*path)
	if !ok || len(b) == 0 || !wire.IsQUIC(b[0]) {
		return len(b), nil
	}
	_ = p.canonical().Send(b, len(b))
	return len(b), nil
}

// Close ends ReadFrom.
func (x *mux) Close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	select {
	case <-x.closed:
	default:
		close(x.closed)
	}
	return nil
}

func (x *mux) LocalAddr() net.Addr { return &path{name: "weft"} }

func (x *mux) SetReadDeadline(t time.Time) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.deadline = t
	close(x.wake)
	x.wake = make(chan struct{})
	return nil
}

func (x *mux) SetDeadline(t time.Time) error    { return x.SetReadDeadline(t) }
func (x *mux) SetWriteDeadline(time.Time) error { return nil }

// SetReadBuffer and SetWriteBuffer exist because quic-go complains about connections without them.
func (x *mux) SetReadBuffer(int) error  { return nil }
func (x *mux) SetWriteBuffer(int) error { return nil }
