package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// accept gives each connection of l to handle, on a goroutine of its own, until ctx ends; handle's connection is closed
// when ctx ends. It returns when all of them have returned. perAddr, if not zero, bounds the connections of one source.
func accept(ctx context.Context, l net.Listener, limit, perAddr int, handle func(context.Context, net.Conn)) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, limit)
	var mu sync.Mutex
	held := map[netip.Prefix]int{}
	for {
		select {
		case slots <- struct{}{}: // when all are taken, more clients wait in the listener's backlog
		case <-ctx.Done():
			return nil
		}
		c, err := l.Accept()
		if err != nil {
			<-slots
			if ctx.Err() != nil {
				return nil
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() || isTemporary(err) {
				select { // out of descriptors, or the client was gone before we looked
				case <-time.After(100 * time.Millisecond):
					continue
				case <-ctx.Done():
					return nil
				}
			}
			return err
		}
		from := source(addrPortOf(c.RemoteAddr()))
		mu.Lock()
		tooMany := perAddr > 0 && held[from] >= perAddr
		if !tooMany {
			held[from]++
		}
		mu.Unlock()
		if tooMany {
			<-slots
			c.Close()
			continue
		}
		wg.Go(func() {
			defer func() {
				c.Close()
				mu.Lock()
				if held[from]--; held[from] == 0 {
					delete(held, from)
				}
				mu.Unlock()
				<-slots
			}()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			handle(ctx, c)
		})
	}
}

// isTemporary: net.Error's method is deprecated for want of a definition, but for Accept it means just what is needed.
func isTemporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

func addrPortOf(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case *net.UDPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// source is what counts as one client: whoever has a /64 has 2^64 addresses.
func source(a netip.AddrPort) netip.Prefix {
	p, _ := a.Addr().Prefix(min(a.Addr().BitLen(), 64))
	return p
}

// peeked is a connection of which something was read ahead.
type peeked struct {
	net.Conn
	r *bufio.Reader
}

func (c *peeked) Read(b []byte) (int, error) { return c.r.Read(b) }

// CloseWrite shuts the sending half.
func (c *peeked) CloseWrite() error { return closeWrite(c.Conn) }

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// join copies between a and b until both directions have ended, and closes both. The end of one direction is passed on as
// a half-close, so that a request may end before its answer. A connection that is silent both ways is closed.
func join(ctx context.Context, a, b net.Conn) {
	shut := func() { a.Close(); b.Close() }
	defer shut()
	stop := context.AfterFunc(ctx, shut)
	defer stop()
	idle := &idler{after: idleTCP}
	idle.timer = time.AfterFunc(idleTCP, shut)
	defer idle.timer.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { copyHalf(a, b, idle, shut) })
	copyHalf(b, a, idle, shut)
}

// idler closes a connection when nothing has happened for a while.
type idler struct {
	mu    sync.Mutex
	timer *time.Timer
	after time.Duration
}

func (i *idler) busy() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.timer.Reset(i.after)
}

// halfClosed shortens the wait: many programs shut down one half and forget the rest.
func (i *idler) halfClosed() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.after = idleHalfClosed
	i.timer.Reset(i.after)
}

func copyHalf(dst, src net.Conn, idle *idler, shut func()) {
	buf := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buf)
	for {
		n, err := src.Read(buf[:])
		if n > 0 {
			idle.busy()
			if _, err := dst.Write(buf[:n]); err != nil {
				shut()
				return
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) || closeWrite(dst) != nil {
				shut()
				return
			}
			idle.halfClosed()
			return
		}
	}
}

// relayUDP passes datagrams of every client of in to a connection of its own, and the answers back. It returns when ctx
// ends or in fails, after its goroutines.
func relayUDP(ctx context.Context, in net.PacketConn, dial func(context.Context) (net.Conn, error)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { in.Close() })
	defer stop()
	defer in.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	var mu sync.Mutex // guards the two maps; the reader below is the only one to add
	clients := map[netip.AddrPort]*udpClient{}
	held := map[netip.Prefix]int{}
	buf := make([]byte, 64<<10)
	for {
		n, from, err := in.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if isTemporary(err) {
				continue
			}
			return err
		}
		at := addrPortOf(from)
		mu.Lock()
		c := clients[at]
		if c == nil && len(clients) < maxUDPPeers && held[source(at)] < maxUDPPerPeer {
			c = newUDPClient()
			clients[at] = c
			held[source(at)]++
			wg.Go(func() {
				defer func() {
					mu.Lock()
					defer mu.Unlock()
					delete(clients, at)
					if held[source(at)]--; held[source(at)] == 0 {
						delete(held, source(at))
					}
				}()
				c.run(ctx, dial, func(b []byte) { in.WriteTo(b, from) })
			})
		}
		mu.Unlock()
		if c != nil {
			c.send(buf[:n])
		}
	}
}

// udpClient is one client of a UDP relay.
type udpClient struct {
	out chan []byte // datagrams that wait for the connection; a few, the rest is lost as UDP may
}

func newUDPClient() *udpClient { return &udpClient{out: make(chan []byte, 64)} }

func (c *udpClient) send(b []byte) {
	if len(c.out) < cap(c.out) { // the only sender: it cannot fill up in between
		c.out <- append([]byte(nil), b...)
	}
}

// run connects and relays until the client has been idle or ctx ends.
func (c *udpClient) run(ctx context.Context, dial func(context.Context) (net.Conn, error), back func([]byte)) {
	conn, err := dial(ctx)
	if err != nil {
		return // the datagrams so far are lost; the next one tries again
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	idle := &idler{after: idleUDP, timer: time.AfterFunc(idleUDP, cancel)}
	defer idle.timer.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		for {
			select {
			case b := <-c.out:
				idle.busy()
				conn.Write(b) // an ICMP error about an earlier datagram may come back here; UDP goes on
			case <-ctx.Done():
				return
			}
		}
	})
	buf := make([]byte, 64<<10)
	for ctx.Err() == nil {
		n, err := conn.Read(buf)
		if err != nil {
			if failureOf(err) == failedRefused { // nobody listens there yet
				continue
			}
			return
		}
		idle.busy()
		back(buf[:n])
	}
}
