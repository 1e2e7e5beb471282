package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"sync"

	"github.com/coder/websocket"
)

// messages is the framing of wss: one binary message per datagram.
type messages struct {
	c   *websocket.Conn
	buf [maxFrame + 1]byte
}

func (w *messages) Read(each func([]byte)) error {
	ctx, cancel := context.WithTimeout(context.Background(), streamIdle)
	defer cancel()
	kind, r, err := w.c.Reader(ctx)
	if err != nil {
		return err
	}
	if kind != websocket.MessageBinary {
		return errors.New("a text message on a link")
	}
	n, err := io.ReadFull(r, w.buf[:])
	switch {
	case err == nil || n == 0:
		return fmt.Errorf("a message of more than %d bytes, or an empty one", maxFrame)
	case !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF):
		return err
	}
	each(w.buf[:n])
	return nil
}

func (w *messages) Write(queue []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), streamIdle)
	defer cancel()
	for {
		d, rest, ok, err := nextFrame(queue)
		if err != nil || !ok {
			return err
		}
		if err := w.c.Write(ctx, websocket.MessageBinary, d); err != nil {
			return err
		}
		queue = rest
	}
}

func (w *messages) Close() error { return w.c.CloseNow() }

func (m *Manager) dialWSS(ctx context.Context, u uri) (*stream, error) {
	var remote netip.AddrPort
	conf := m.outerTLS("http/1.1")
	conf.Certificates = nil
	t := &http.Transport{
		TLSClientConfig: conf,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := m.dialTCP(ctx, u)
			if err == nil {
				remote = remoteOf(c)
			}
			return c, err
		},
	}
	defer t.CloseIdleConnections()
	host := net.JoinHostPort(u.host, fmt.Sprint(u.port))
	c, resp, err := websocket.Dial(ctx, "wss://"+host+u.path, &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: t}, Subprotocols: []string{alpn},
	})
	if err != nil {
		if resp != nil {
			return nil, fmt.Errorf("%s answered %s: is that the right path?", host, resp.Status)
		}
		return nil, err
	}
	c.SetReadLimit(maxFrame + 1)
	return m.addStream("wss", remote, &messages{c: c}, true)
}

func (m *Manager) serveWSS(ln net.Listener, path string, fail context.CancelCauseFunc) io.Closer {
	busy := make(chan struct{}, maxStreams)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != path {
			http.NotFound(w, r)
			return
		}
		select {
		case busy <- struct{}{}:
			defer func() { <-busy }()
		default:
			http.Error(w, "too many links", http.StatusServiceUnavailable)
			return
		}
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{alpn}, InsecureSkipVerify: true})
		if err != nil {
			return // it wrote the answer
		}
		c.SetReadLimit(maxFrame + 1)
		remote, _ := netip.ParseAddrPort(r.RemoteAddr)
		s, err := m.addStream("wss", remote, &messages{c: c}, false)
		if err == nil {
			<-s.closed
		}
	})
	srv := &http.Server{
		Handler: handler, TLSConfig: m.outerTLS("http/1.1"), ReadHeaderTimeout: streamHandshake, IdleTimeout: streamHandshake,
		ErrorLog: log.New(io.Discard, "", 0), MaxHeaderBytes: 16 << 10,
	}
	m.readers.Go(func() {
		if err := srv.ServeTLS(limitListener{ln, make(chan struct{}, 2*maxStreams)}, "", ""); !errors.Is(err, http.ErrServerClosed) {
			fail(fmt.Errorf("serve %s: %w", ln.Addr(), err))
		}
	})
	return srv
}

// limitListener bounds the connections that are open at once; more are closed as they come.
type limitListener struct {
	net.Listener
	busy chan struct{}
}

func (l limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.busy <- struct{}{}:
			shallow(c)
			return &limitedConn{Conn: c, free: sync.OnceFunc(func() { <-l.busy })}, nil
		default:
			c.Close()
		}
	}
}

type limitedConn struct {
	net.Conn
	free func()
}

func (c *limitedConn) Close() error {
	c.free()
	return c.Conn.Close()
}
