package guest

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/time/rate"
)

// A resolver answers everybody, or the page could not be found, and what answers names carries data to whoever owns a zone and
// wants it to. So a device that was not let in gets an allowance: enough to find out where it is, too little to live on.
const (
	namesRate     = 2048    // bytes of questions and answers a second, by one device…
	namesBurst    = 1 << 16 // …after so many at once: the several hundred names that a computer asks for when it joins
	namesHeader   = 50      // what each message counts beside its bytes
	namesLogEvery = time.Hour
)

var errNames = errors.New("this device has asked for more names than it may without internet access")

// Names returns l, a [net.PacketConn] or [net.Listener] on which a resolver is to serve guests, with a bound on what devices that
// were not let in can send and get through it: 2 KiB a second after 64 KiB. Questions and answers beyond it are dropped, and
// connections closed. Devices are told apart as everywhere here, by MAC address; those too new to be known share one allowance.
func (g *Guests) Names(l io.Closer) io.Closer {
	if g.cfg.Access == AccessOpen {
		return l
	}
	switch l := l.(type) {
	case net.PacketConn:
		return &namesPackets{l, g.desk}
	case net.Listener:
		return &namesListener{l, g.desk}
	}
	return l
}

func newNames() *rate.Limiter { return rate.NewLimiter(namesRate, namesBurst) }

// mayName takes a message of n bytes from the allowance of the device at an address; false: it has none left. The message that
// uses the allowance up is let through whole.
func (d *desk) mayName(at net.Addr, n int) bool {
	var a netip.Addr
	switch at := at.(type) {
	case *net.UDPAddr:
		a = at.AddrPort().Addr()
	case *net.TCPAddr:
		a = at.AddrPort().Addr()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	left := d.names
	if dev := d.devices[d.byAddr[a.Unmap().WithZone("")]]; dev != nil {
		if dev.pool != "" {
			return true
		}
		left = dev.names
	}
	now := d.now()
	if left.TokensAt(now) < 1 {
		if now.Sub(d.namesTold) >= namesLogEvery {
			d.namesTold = now
			d.log.Info("a device without internet access asks for very many names; it gets few answers", "addr", a)
		}
		return false
	}
	left.ReserveN(now, min(n+namesHeader, namesBurst))
	return true
}

// namesPackets is a net.PacketConn with the bound.
type namesPackets struct {
	net.PacketConn
	desk *desk
}

// ReadFrom is [net.PacketConn].
func (c *namesPackets) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := c.PacketConn.ReadFrom(b)
		if err != nil || c.desk.mayName(from, n) {
			return n, from, err
		}
	}
}

// WriteTo is [net.PacketConn]. What is too much is lost, like any packet.
func (c *namesPackets) WriteTo(b []byte, to net.Addr) (int, error) {
	if !c.desk.mayName(to, len(b)) {
		return len(b), nil
	}
	return c.PacketConn.WriteTo(b, to)
}

// namesListener is a net.Listener with the bound.
type namesListener struct {
	net.Listener
	desk *desk
}

// Accept is [net.Listener].
func (l *namesListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &namesConn{c, l.desk}, nil
}

type namesConn struct {
	net.Conn
	desk *desk
}

// Read is [net.Conn].
func (c *namesConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && !c.desk.mayName(c.RemoteAddr(), n) {
		return 0, errors.Join(errNames, c.Close())
	}
	return n, err
}

// Write is [net.Conn].
func (c *namesConn) Write(b []byte) (int, error) {
	if !c.desk.mayName(c.RemoteAddr(), len(b)) {
		return 0, errors.Join(errNames, c.Close())
	}
	return c.Conn.Write(b)
}
