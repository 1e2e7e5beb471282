package guest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// namesWire is a socket whose packets the test writes and reads.
type namesWire struct {
	net.PacketConn // nil: nothing else is called
	in             []packetFrom
	out            int
}

type packetFrom struct {
	b    []byte
	from net.Addr
}

func (w *namesWire) ReadFrom(b []byte) (int, net.Addr, error) {
	if len(w.in) == 0 {
		return 0, nil, io.EOF
	}
	p := w.in[0]
	w.in = w.in[1:]
	return copy(b, p.b), p.from, nil
}

func (w *namesWire) WriteTo(b []byte, _ net.Addr) (int, error) { w.out += len(b); return len(b), nil }

func at(a string) net.Addr {
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(a), 4000))
}

// tunnel asks and answers until nothing more gets through, and says how many bytes did.
func tunnel(t *testing.T, c net.PacketConn, w *namesWire, from string) (through int) {
	t.Helper()
	question, answer, buf := make([]byte, 250), make([]byte, 1200), make([]byte, 4096)
	for range 1000 {
		w.in = append(w.in, packetFrom{question, at(from)})
		n, _, err := c.ReadFrom(buf)
		if errors.Is(err, io.EOF) {
			return through
		}
		before := w.out
		if _, err := c.WriteTo(answer, at(from)); err != nil {
			t.Fatal(err)
		}
		through += n + w.out - before
	}
	return through
}

func TestNamesAreNoTunnel(t *testing.T) {
	c := newClock()
	g, f := opened(t, c, nil)
	if err := g.desk.tick(); err != nil {
		t.Fatal(err)
	}
	w := &namesWire{}
	names := g.Names(w).(net.PacketConn)
	const a, a6, b, unknown = "10.1.2.10", "301:1:2:3::a", "10.1.2.11", "10.1.2.99"
	if n := tunnel(t, names, w, a); n < 50e3 || n > namesBurst+1200 {
		t.Errorf("%d bytes at once", n)
	}
	if n := tunnel(t, names, w, a6); n != 0 {
		t.Errorf("the device's other address gets %d bytes more", n)
	}
	if n := tunnel(t, names, w, b); n < 50e3 {
		t.Errorf("another device pays for it: %d bytes", n)
	}
	if n := tunnel(t, names, w, unknown); n < 50e3 || n > namesBurst+1200 {
		t.Errorf("a device that nobody knows gets %d bytes", n)
	}
	if n := tunnel(t, names, w, "10.1.2.98"); n != 0 {
		t.Errorf("the next address that nobody knows gets %d bytes", n)
	}
	c.add(10 * time.Second)
	if n := tunnel(t, names, w, a); n < 10e3 || n > 10*namesRate+1450 {
		t.Errorf("%d bytes in 10 s", n)
	}

	// By TCP it is the same allowance, and the connection ends.
	ours, theirs := net.Pipe()
	defer theirs.Close()
	conn := &namesConn{pipeFrom{ours, a}, g.desk}
	if _, err := conn.Write(bytes.Repeat([]byte("x"), 100)); !errors.Is(err, errNames) {
		t.Errorf("a stream goes on: %v", err)
	}
	if _, err := theirs.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the connection is open: %v", err)
	}

	// Who was let in is not bounded; who is not any more, is.
	made, err := g.Vouchers().Create(Spec{Count: 1, Minutes: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.desk.redeem(netip.MustParseAddr(a), made[0].Code); err != nil || f.in[macA] == nil {
		t.Fatal(err)
	}
	if n := tunnel(t, names, w, a6); n < 1e6 {
		t.Errorf("with a voucher %d bytes", n)
	}
	c.add(2 * time.Minute)
	if err := g.desk.tick(); err != nil {
		t.Fatal(err)
	}
	if n := tunnel(t, names, w, a); n > namesBurst+1200 {
		t.Errorf("after the voucher %d bytes", n)
	}
}

// pipeFrom is a pipe whose other end has an address.
type pipeFrom struct {
	net.Conn
	from string
}

func (p pipeFrom) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(p.from), 4000))
}

func TestNamesAreFreeWhereAllIs(t *testing.T) {
	g, _ := opened(t, newClock(), func(c *Config) { c.Access = AccessOpen })
	w := &namesWire{}
	if g.Names(w) != io.Closer(w) {
		t.Error("a network that is open bounds names")
	}
}

// Whatever is asked when, no more gets through than the rate and one burst.
func TestNamesBound(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		c := newClock()
		g, err := Open(testConfig(t, c))
		if err != nil {
			t.Fatal(err)
		}
		most, through, largest := float64(namesBurst), 0.0, 0
		for range rapid.IntRange(1, 200).Draw(r, "messages") {
			d := time.Duration(rapid.IntRange(0, 5000).Draw(r, "ms")) * time.Millisecond
			c.add(d)
			most += d.Seconds() * namesRate
			n := rapid.IntRange(12, 65537).Draw(r, "bytes")
			if g.desk.mayName(at("10.1.2.10"), n) {
				through, largest = through+float64(n), max(largest, n)
			}
		}
		if through > most+float64(largest) {
			r.Fatalf("%.0f bytes, bound %.0f", through, most)
		}
	})
}
