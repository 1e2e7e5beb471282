package guest

import (
	"encoding/binary"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Limits of the page's server: a guest may keep it busy, but not away from the others.
const (
	maxConns        = 256
	maxConnsPerAddr = 16
	maxHeader       = 8 << 10
)

func newServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second,
		IdleTimeout: 15 * time.Second, MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
}

// bounded is a listener that turns away who has too many connections open.
type bounded struct {
	net.Listener
	mu   sync.Mutex
	all  int
	each map[netip.Addr]int
}

func newBounded(l net.Listener) *bounded { return &bounded{Listener: l, each: map[netip.Addr]int{}} }

// Accept is [net.Listener].
func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		ap, err := netip.ParseAddrPort(c.RemoteAddr().String())
		if err == nil && b.enter(ap.Addr()) {
			return &boundedConn{Conn: c, leave: func() { b.leave(ap.Addr()) }}, nil
		}
		_ = c.Close()
	}
}

func (b *bounded) enter(a netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all >= maxConns || b.each[a] >= maxConnsPerAddr {
		return false
	}
	b.all++
	b.each[a]++
	return true
}

func (b *bounded) leave(a netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all--
	if b.each[a]--; b.each[a] == 0 {
		delete(b.each, a)
	}
}

type boundedConn struct {
	net.Conn
	once  sync.Once
	leave func()
}

// Close is [net.Conn].
func (c *boundedConn) Close() error {
	c.once.Do(c.leave)
	return c.Conn.Close()
}

// udpBroadcast puts a payload from port 68 to port 67 into an IPv4 packet from nobody to everybody (RFC 2131 section 4.1).
func udpBroadcast(payload []byte) []byte {
	be := binary.BigEndian
	b := make([]byte, 28, 28+len(payload))
	b[0], b[8], b[9] = 0x45, 64, 17
	be.PutUint16(b[2:], uint16(28+len(payload)))
	copy(b[16:], []byte{255, 255, 255, 255})
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(be.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	be.PutUint16(b[10:], ^uint16(sum))
	be.PutUint16(b[20:], 68)
	be.PutUint16(b[22:], 67)
	be.PutUint16(b[24:], uint16(8+len(payload))) // no checksum: IPv4 allows it
	return append(b, payload...)
}
