package link

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// The outer TLS of tls:// and wss:// only hides the datagrams from filters; who the neighbour is, the QUIC handshake
// inside proves. So the outer certificates are not checked.

func (m *Manager) outerTLS(protos ...string) *tls.Config {
	return &tls.Config{
		Certificates: m.tls.Certificates, MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: protos,
	}
}

func (m *Manager) dialTLS(ctx context.Context, u uri) (*stream, error) {
	c, err := m.dialTCP(ctx, u)
	if err != nil {
		return nil, err
	}
	conf := m.outerTLS()
	conf.Certificates = nil
	conf.ServerName = u.host
	t := tls.Client(c, conf)
	if err := t.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, fmt.Errorf("TLS with %s: %w", c.RemoteAddr(), err)
	}
	return m.addStream("tls", remoteOf(c), &frames{Conn: t}, true)
}

// dialTCP connects to one of the addresses of a host that are outside the mesh.
func (m *Manager) dialTCP(ctx context.Context, u uri) (net.Conn, error) {
	addrs, err := m.resolve(ctx, u)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Control: m.cfg.Control}
	for _, a := range addrs {
		var c net.Conn
		if c, err = d.DialContext(ctx, "tcp", netip.AddrPortFrom(a, u.port).String()); err == nil {
			shallow(c)
			return c, nil
		}
	}
	return nil, err
}

// shallow keeps the kernel's send queue short.
func shallow(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetWriteBuffer(streamSendBuffer) // a wish
	}
}

func (m *Manager) serveTLS(ln net.Listener, fail context.CancelCauseFunc) io.Closer {
	conf := m.outerTLS()
	m.acceptStreams(ln, fail, func(c net.Conn) {
		shallow(c)
		t := tls.Server(c, conf)
		c.SetDeadline(time.Now().Add(streamHandshake))
		if err := t.HandshakeContext(m.run); err != nil {
			c.Close()
			return
		}
		c.SetDeadline(time.Time{})
		s, err := m.addStream("tls", remoteOf(c), &frames{Conn: t}, false)
		if err == nil {
			<-s.closed // the place in the accept queue stays taken
		}
	})
	return ln
}

func remoteOf(c net.Conn) netip.AddrPort {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort()
	}
	return netip.AddrPort{}
}
