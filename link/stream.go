package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"weft/forward"
	"weft/wire"
)

// Datagrams on a stream (docs/spec/link.md section 3): each has its length before it, two bytes; wss carries one binary
// message per datagram instead. A stream is a path like any other, only slower: QUIC and the probes run over it too.

const (
	firstStreamVia   = 256 // Endpoint.Via below are UDP sockets
	maxStreams       = 128 // accepted ones; dialed ones are bounded by the peers
	maxFrame         = 9216
	maxStreamQueue   = 256 << 10        // more waiting only makes delay
	streamIdle       = 3 * time.Minute  // probes are more frequent
	streamHandshake  = 10 * time.Second // TLS, HTTP upgrade
	streamSetup      = 15 * time.Second // until a link stands on an accepted stream
	streamFlush      = time.Second
	streamLinger     = 100 * time.Millisecond
	streamReadBuffer = 1 << 17
	streamChunk      = 64 << 10
	streamSendBuffer = 256 << 10 // of the kernel, which nothing can overtake
)

// framed is one scheme's connection. Read belongs to one goroutine, Write to another; Close is safe from any.
type framed interface {
	// Read blocks for datagrams, calls each with all it has, and returns. The datagrams stay untouched until the next Read.
	Read(each func(dgram []byte)) error
	// Write sends what queue holds: datagrams with their lengths before them.
	Write(queue []byte) error
	Close() error
}

// stream is a carrier of datagrams over one framed connection.
type stream struct {
	m      *Manager
	scheme string
	ep     forward.Endpoint
	conn   framed
	dialed bool

	linked  atomic.Bool // a neighbour proved itself here: its data is taken
	dropped atomic.Uint64
	closed  chan struct{}
	once    sync.Once
	flush   *time.Timer // set before closed is closed
	wake    chan struct{}

	mu     sync.Mutex // guards what follows
	urgent []byte     // control and probes: they overtake data, else a full queue would look like a dead neighbour
	queue  []byte
}

func (s *stream) String() string { return s.scheme }

// Send queues datagrams, and drops those that find the queue full.
func (s *stream) Send(_ forward.Endpoint, buf []byte, seg int) error {
	s.mu.Lock()
	for at := 0; at < len(buf); at += seg {
		d := buf[at:min(at+seg, len(buf))]
		q := &s.queue
		if wire.IsQUIC(d[0]) || wire.KindOf(d[0]) == wire.KindProbe {
			q = &s.urgent
		}
		if len(*q)+2+len(d) > maxStreamQueue || len(d) > maxFrame {
			s.dropped.Add(1)
			continue
		}
		*q = binary.BigEndian.AppendUint16(*q, uint16(len(d)))
		*q = append(*q, d...)
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return nil
}

// Close sends what is queued, among it QUIC's good-bye, if that does not take long, and ends the stream's goroutines.
func (s *stream) Close() error {
	s.once.Do(func() {
		s.flush = time.AfterFunc(streamFlush, func() { s.conn.Close() })
		close(s.closed)
	})
	return nil
}

// addStream starts a stream's reader and writer. It owns conn, also when it fails.
func (m *Manager) addStream(scheme string, remote netip.AddrPort, conn framed, dialed bool) (*stream, error) {
	s := &stream{m: m, scheme: scheme, conn: conn, dialed: dialed, closed: make(chan struct{}), wake: make(chan struct{}, 1)}
	s.ep = endpointOf(netip.AddrPortFrom(remote.Addr().WithZone(""), remote.Port()), 0)
	m.mu.Lock()
	accepted := 0
	for o := range m.streams {
		if !o.dialed {
			accepted++
		}
	}
	if m.draining || !dialed && accepted >= maxStreams {
		m.mu.Unlock()
		conn.Close()
		return nil, errBusy
	}
	for m.carriers[m.nextVia] != nil || m.nextVia < firstStreamVia {
		m.nextVia++ // wraps; there are far fewer streams than numbers
	}
	s.ep.Via = m.nextVia
	m.nextVia++
	m.carriers[s.ep.Via] = s
	m.streams[s] = struct{}{}
	m.readers.Add(2)
	m.mu.Unlock()
	go s.read()
	go s.write()
	return s, nil
}

func (s *stream) read() {
	m := s.m
	defer m.readers.Done()
	var rx *forward.Receiver // costly, so not for strangers
	started := time.Now()
	for {
		err := s.conn.Read(func(d []byte) {
			if rx == nil && s.linked.Load() {
				rx = m.cfg.Plane.NewReceiver()
			}
			m.dispatch(rx, s, s.ep, d, len(d))
		})
		if rx != nil {
			rx.Flush()
		}
		if err != nil {
			break
		}
		if !s.dialed && time.Since(started) > streamSetup && !s.inUse() {
			break
		}
	}
	s.Close()
	m.mu.Lock()
	delete(m.streams, s)
	delete(m.carriers, s.ep.Via)
	m.mu.Unlock()
	for _, l := range m.Links() {
		if l.path.to.Load().via == carrier(s) {
			l.nb.SetUp(false)
			l.spawn(func() { // the neighbour's reason may have come just before the end, and waits to be read
				t := time.NewTimer(streamLinger)
				defer t.Stop()
				select {
				case <-t.C:
				case <-l.ctx.Done():
				}
				l.die(errStream)
			})
		}
	}
}

// inUse reports whether a link or a handshake goes over the stream.
func (s *stream) inUse() bool {
	s.m.mux.mu.Lock()
	defer s.m.mux.mu.Unlock()
	return s.m.mux.paths[s.ep] != nil
}

func (s *stream) write() {
	defer s.m.readers.Done()
	defer func() {
		s.Close()
		<-s.closed
		s.flush.Stop()
		s.conn.Close()
	}()
	var out []byte
	for closing := false; ; {
		s.mu.Lock()
		out = append(out[:0], s.urgent...)
		s.urgent = s.urgent[:0]
		n := wholeFrames(s.queue, streamChunk)
		out = append(out, s.queue[:n]...)
		s.queue = s.queue[:copy(s.queue, s.queue[n:])]
		s.mu.Unlock()
		if len(out) > 0 {
			if err := s.conn.Write(out); err != nil {
				return
			}
			continue
		}
		if closing {
			return
		}
		select {
		case <-s.wake:
		case <-s.closed:
			closing = true // once more for what came last
		}
	}
}

// closeStreams ends all streams and listeners, and lets no new one in.
func (m *Manager) closeStreams() {
	m.mu.Lock()
	m.draining = true
	closers := m.closers
	var streams []*stream
	for s := range m.streams {
		streams = append(streams, s)
	}
	m.mu.Unlock()
	for _, c := range closers {
		c.Close()
	}
	for _, s := range streams {
		s.Close()
	}
}

// dialStream opens a stream to a peer.
func (m *Manager) dialStream(ctx context.Context, u uri) (*stream, error) {
	ctx, cancel := context.WithTimeout(ctx, streamHandshake)
	defer cancel()
	switch u.scheme {
	case "tls":
		return m.dialTLS(ctx, u)
	case "wss":
		return m.dialWSS(ctx, u)
	}
	return nil, fmt.Errorf("%s:// is no stream", u.scheme)
}

// listenStreams opens the stream listeners of the configuration.
func (m *Manager) listenStreams(fail context.CancelCauseFunc) error {
	for _, l := range m.cfg.Listen {
		u, err := parseURI(l, true)
		if err != nil {
			return err
		}
		if u.scheme == "udp" {
			continue
		}
		host := u.host
		if u.zone != "" {
			host += "%" + u.zone
		}
		lc := net.ListenConfig{Control: m.cfg.Control}
		ln, err := lc.Listen(context.Background(), "tcp", net.JoinHostPort(host, fmt.Sprint(u.port)))
		if err != nil {
			return fmt.Errorf("%s: %w", l, err)
		}
		port := uint16(ln.Addr().(*net.TCPAddr).Port)
		var c io.Closer
		switch u.scheme {
		case "tls":
			c = m.serveTLS(ln, fail)
		case "wss":
			c = m.serveWSS(ln, u.path, fail)
		}
		m.mu.Lock()
		m.closers = append(m.closers, c)
		m.listens = append(m.listens, Listener{l, port})
		m.mu.Unlock()
	}
	return nil
}

// nextFrame cuts one datagram off b. ok is false when b holds only part of one.
func nextFrame(b []byte) (dgram, rest []byte, ok bool, err error) {
	if len(b) < 2 {
		return nil, b, false, nil
	}
	n := int(binary.BigEndian.Uint16(b))
	if n == 0 || n > maxFrame {
		return nil, b, false, fmt.Errorf("a datagram of %d bytes on a stream, allowed are 1 to %d", n, maxFrame)
	}
	if len(b) < 2+n {
		return nil, b, false, nil
	}
	return b[2 : 2+n], b[2+n:], true, nil
}

// wholeFrames returns the length of the datagrams at the head of a queue that end within limit bytes; at least one.
func wholeFrames(queue []byte, limit int) int {
	n := 0
	for len(queue) > n {
		next := n + 2 + int(binary.BigEndian.Uint16(queue[n:]))
		if n > 0 && next > limit {
			break
		}
		n = next
	}
	return n
}

// frames is the length-prefixed framing over a byte stream.
type frames struct {
	net.Conn
	buf  []byte
	have int
	done int // of have, already given out
}

func (f *frames) Read(each func([]byte)) error {
	if f.buf == nil {
		f.buf = make([]byte, streamReadBuffer)
	}
	f.have = copy(f.buf, f.buf[f.done:f.have])
	f.done = 0
	if err := f.SetReadDeadline(time.Now().Add(streamIdle)); err != nil {
		return err
	}
	n, err := f.Conn.Read(f.buf[f.have:])
	f.have += n
	for rest := f.buf[:f.have]; ; {
		d, r, ok, ferr := nextFrame(rest)
		if ferr != nil {
			return ferr
		}
		if !ok {
			break
		}
		each(d)
		rest = r
		f.done = f.have - len(rest)
	}
	return err
}

func (f *frames) Write(queue []byte) error {
	if err := f.SetWriteDeadline(time.Now().Add(streamIdle)); err != nil {
		return err
	}
	_, err := f.Conn.Write(queue)
	return err
}

// acceptStreams hands accepted connections to serve, each on a goroutine of the reader group.
func (m *Manager) acceptStreams(ln net.Listener, fail context.CancelCauseFunc, serve func(net.Conn)) {
	m.readers.Go(func() {
		busy := make(chan struct{}, maxStreams)
		for {
			c, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				var ne net.Error
				if errors.As(err, &ne) { // too many open files and the like pass
					m.cfg.Log.Warn("accept failed", "listener", ln.Addr(), "err", err)
					select {
					case <-m.run.Done():
						return
					case <-time.After(time.Second):
					}
					continue
				}
				fail(fmt.Errorf("accept on %s: %w", ln.Addr(), err))
				return
			}
			select {
			case busy <- struct{}{}:
			default:
				c.Close()
				continue
			}
			m.readers.Go(func() {
				serve(c)
				<-busy
			})
		}
	})
}
