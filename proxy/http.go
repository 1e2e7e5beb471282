package proxy

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"time"
)

// ServeListener serves SOCKS5 and HTTP proxy clients of l until ctx ends; the first byte tells them apart. It closes l,
// and returns when every connection is closed.
func (p *Proxy) ServeListener(ctx context.Context, l net.Listener) error {
	if err := p.mayListen(addrPortOf(l.Addr()).Addr()); err != nil {
		l.Close()
		return err
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			host, port, err := splitHostPort(address)
			if err != nil {
				return nil, err
			}
			return p.dial(ctx, "tcp", host, port)
		},
		DisableCompression:  true,
		MaxIdleConns:        32,
		MaxIdleConnsPerHost: 4,
		MaxConnsPerHost:     64,
		IdleConnTimeout:     30 * time.Second,
	}
	defer transport.CloseIdleConnections()
	h := &httpProxy{p: p, ctx: ctx, plain: &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.Host = r.In.Host
			if r.In.Header.Get("User-Agent") == "" {
				r.Out.Header.Set("User-Agent", "") // none, rather than Go's
			}
		},
		FlushInterval: -1, // event streams
		ErrorHandler:  func(w http.ResponseWriter, _ *http.Request, err error) { refuse(w, err) },
		ErrorLog:      slog.NewLogLogger(p.cfg.Log.Handler(), slog.LevelDebug),
	}}
	return accept(ctx, l, maxConns, 0, func(ctx context.Context, c net.Conn) {
		c.SetDeadline(time.Now().Add(handshakeTime))
		in := &peeked{Conn: c, r: bufio.NewReader(c)}
		first, err := in.r.Peek(1)
		if err != nil {
			return
		}
		if first[0] == socksVersion {
			err = p.socks(ctx, in)
		} else {
			c.SetDeadline(time.Time{})
			err = h.serve(in)
		}
		if err != nil {
			p.cfg.Log.Debug("proxy request failed", "err", err)
		}
	})
}

// httpProxy is the HTTP half of the proxy.
type httpProxy struct {
	p     *Proxy
	ctx   context.Context // the proxy's, not a request's: net/http makes those
	plain *httputil.ReverseProxy
}

// serve runs an HTTP server for one connection, so that the connection's goroutine is the one that waits for it.
func (h *httpProxy) serve(c *peeked) error {
	one := &oneConn{c: c, done: make(chan struct{})}
	var handlers sync.WaitGroup
	srv := &http.Server{
		ReadHeaderTimeout: handshakeTime,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		BaseContext:       func(net.Listener) context.Context { return h.ctx },
		ErrorLog:          slog.NewLogLogger(h.p.cfg.Log.Handler(), slog.LevelDebug),
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateClosed || s == http.StateHijacked {
				one.finish()
			}
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			handlers.Add(1)
			defer handlers.Done()
			h.ServeHTTP(w, r)
		}),
	}
	srv.Serve(one) // ends with oneConn's error when the connection is done
	handlers.Wait()
	return nil
}

// oneConn is a listener that yields one connection, and ends when that is finished.
type oneConn struct {
	mu   sync.Mutex
	c    net.Conn
	done chan struct{}
	once sync.Once
}

func (l *oneConn) Accept() (net.Conn, error) {
	l.mu.Lock()
	c := l.c
	l.c = nil
	l.mu.Unlock()
	if c != nil {
		return c, nil
	}
	<-l.done
	return nil, net.ErrClosed
}

func (l *oneConn) finish()        { l.once.Do(func() { close(l.done) }) }
func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

// ServeHTTP answers proxy requests (RFC 9110 sections 7.1 and 9.3.6).
func (h *httpProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.p.cfg.User != "" && !h.authorized(r) {
		w.Header().Set("Proxy-Authenticate", `Basic realm="weft"`)
		http.Error(w, "this proxy asks for a user and a password", http.StatusProxyAuthRequired)
		return
	}
	r.Header.Del("Proxy-Authorization")
	switch {
	case r.Method == http.MethodConnect:
		h.connect(w, r)
	case r.URL.Scheme == "http" && r.URL.Host != "":
		h.plain.ServeHTTP(w, r)
	default:
		// A page that makes the browser call this port lands here, too.
		http.Error(w, "this is a proxy: set it as HTTP or SOCKS5 proxy, and ask it for http://<key>"+Domain+"/", http.StatusBadRequest)
	}
}

func (h *httpProxy) authorized(r *http.Request) bool {
	kind, value, _ := strings.Cut(r.Header.Get("Proxy-Authorization"), " ")
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(value))
	user, password, ok := strings.Cut(string(raw), ":")
	return err == nil && ok && strings.EqualFold(kind, "Basic") && h.p.knows(user, password)
}

func (h *httpProxy) connect(w http.ResponseWriter, r *http.Request) {
	host, port, err := splitHostPort(r.Host)
	if err != nil {
		http.Error(w, "CONNECT is followed by HOST:PORT", http.StatusBadRequest)
		return
	}
	out, err := h.p.dial(r.Context(), "tcp", host, port)
	if err != nil {
		refuse(w, err)
		return
	}
	defer out.Close()
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "CONNECT needs HTTP/1.1", http.StatusHTTPVersionNotSupported)
		return
	}
	defer c.Close()
	c.SetDeadline(time.Time{})
	if _, err := c.Write([]byte("HTTP/1.1 200 Connection established\r\n\r\n")); err != nil {
		return
	}
	join(h.ctx, &peeked{Conn: c, r: rw.Reader}, out) // what the client sent in advance is still in rw
}

// refuse says why a destination was not reached: in a status, in words and, as RFC 9209 has it, for programs.
func refuse(w http.ResponseWriter, err error) {
	code, kind := http.StatusBadGateway, "proxy_internal_response"
	switch failureOf(err) {
	case failedForbidden:
		code, kind = http.StatusForbidden, "destination_ip_prohibited"
	case failedNoGateway:
		code, kind = http.StatusServiceUnavailable, "destination_unavailable"
	case failedNoName:
		kind = "dns_error"
	case failedRefused:
		kind = "connection_refused"
	case failedNetwork, failedHost:
		kind = "destination_ip_unroutable"
	case failedTimeout:
		code, kind = http.StatusGatewayTimeout, "connection_timeout"
	}
	w.Header().Set("Proxy-Status", "weft; error="+kind)
	http.Error(w, fmt.Sprintf("weft proxy: %v", err), code)
}
