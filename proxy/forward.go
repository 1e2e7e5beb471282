package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Forward passes what arrives at one port on to another. There are two kinds, with these text forms:
//
//	tcp|udp LOCALADDRESS:PORT -> MESHHOST:PORT    a forward, from this machine into the mesh
//	tcp|udp PORT -> HOST:PORT                     an exposed service: a port of this node in the mesh, served by HOST
type Forward struct {
	proto  string
	listen string // LOCALADDRESS:PORT, or :PORT in the mesh
	host   string
	port   uint16
	expose bool
}

// ParseForward reads the text form of a forward into the mesh.
func ParseForward(s string) (Forward, error) {
	f, listen, err := parseForward(s)
	if err == nil {
		var at netip.AddrPort
		if at, err = parseLocal(listen); err == nil {
			f.listen = at.String()
		}
	}
	if err != nil {
		return Forward{}, fmt.Errorf("forward %q: %w; written like tcp 127.0.0.1:8080 -> [200:…]:80, or with NAME%s:80", s, err, Domain)
	}
	return f, nil
}

// ParseExpose reads the text form of an exposed service.
func ParseExpose(s string) (Forward, error) {
	f, listen, err := parseForward(s)
	if err == nil {
		var port uint64
		if port, err = strconv.ParseUint(listen, 10, 16); err == nil && port == 0 {
			err = fmt.Errorf("port 0: may be 1 to 65535")
		}
		f.listen, f.expose = ":"+strconv.FormatUint(port, 10), true
	}
	if err != nil {
		return Forward{}, fmt.Errorf("expose %q: %w; written like tcp 80 -> 127.0.0.1:8080", s, err)
	}
	return f, nil
}

func parseForward(s string) (f Forward, listen string, err error) {
	w := strings.Fields(s)
	if len(w) != 4 || w[2] != "->" {
		return f, "", fmt.Errorf("does not have the form PROTOCOL PORT -> DESTINATION")
	}
	if w[0] != "tcp" && w[0] != "udp" {
		return f, "", fmt.Errorf("protocol %q: may be tcp or udp", w[0])
	}
	f.proto = w[0]
	f.host, f.port, err = splitHostPort(w[3])
	return f, w[1], err
}

// String returns the text form.
func (f Forward) String() string {
	return f.proto + " " + strings.TrimPrefix(f.listen, ":") + " -> " + net.JoinHostPort(f.host, strconv.Itoa(int(f.port)))
}

// MarshalText prints the forward as String does.
func (f Forward) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// Port returns the mesh port of an exposed service, for which the firewall has to be opened, and its protocol.
func (f Forward) Port() (proto string, port uint16) {
	n, _ := strconv.ParseUint(strings.TrimPrefix(f.listen, ":"), 10, 16)
	return f.proto, uint16(n)
}

func (p *Proxy) openForward(ctx context.Context, f Forward) (port, error) {
	var lc net.ListenConfig
	listen, listenPacket := lc.Listen, lc.ListenPacket
	if f.expose {
		listen, listenPacket = p.cfg.Mesh.Listen, p.cfg.Mesh.ListenPacket
	}
	if f.proto == "udp" {
		c, err := listenPacket(ctx, "udp", f.listen)
		if err != nil {
			return port{}, err
		}
		return port{c.Close, func(ctx context.Context) error { return p.forwardUDP(ctx, c, f) }}, nil
	}
	l, err := listen(ctx, "tcp", f.listen)
	if err != nil {
		return port{}, err
	}
	return port{l.Close, func(ctx context.Context) error { return p.forwardTCP(ctx, l, f) }}, nil
}

func (p *Proxy) forwardTCP(ctx context.Context, l net.Listener, f Forward) error {
	perAddr := 0
	if f.expose {
		perAddr = maxConnsPerPeer
	}
	return accept(ctx, l, maxConns, perAddr, func(ctx context.Context, c net.Conn) {
		out, err := p.dialForward(ctx, f)
		if err != nil {
			p.cfg.Log.Debug("forward failed", "forward", f.String(), "err", err)
			return
		}
		join(ctx, c, out)
	})
}

func (p *Proxy) forwardUDP(ctx context.Context, c net.PacketConn, f Forward) error {
	return relayUDP(ctx, c, func(ctx context.Context) (net.Conn, error) {
		out, err := p.dialForward(ctx, f)
		if err != nil {
			p.cfg.Log.Debug("forward failed", "forward", f.String(), "err", err)
		}
		return out, err
	})
}

// dialForward connects to f's destination. What the owner exposes may be anywhere; forwards go into the mesh.
func (p *Proxy) dialForward(ctx context.Context, f Forward) (net.Conn, error) {
	if f.expose {
		d := net.Dialer{Timeout: dialTime}
		return d.DialContext(ctx, f.proto, net.JoinHostPort(f.host, strconv.Itoa(int(f.port))))
	}
	return p.dial(ctx, f.proto, f.host, f.port)
}

// Host is the host's own network, seen from the node's address: the Network for a node with an OS TUN.
type Host struct{ Addr netip.Addr }

// DialContext implements Network.
func (h Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTime, KeepAlive: 15 * time.Second}
	from := netip.AddrPortFrom(h.Addr, 0)
	if strings.HasPrefix(network, "udp") {
		d.LocalAddr = net.UDPAddrFromAddrPort(from)
	} else {
		d.LocalAddr = net.TCPAddrFromAddrPort(from)
	}
	return d.DialContext(ctx, network, address)
}

// Listen implements Network.
func (h Host) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	var lc net.ListenConfig
	return lc.Listen(ctx, network, h.at(address))
}

// ListenPacket implements Network.
func (h Host) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	var lc net.ListenConfig
	return lc.ListenPacket(ctx, network, h.at(address))
}

// at puts the node's address before :PORT, so that nothing is served to other networks.
func (h Host) at(address string) string {
	if host, port, err := net.SplitHostPort(address); err == nil && host == "" {
		return net.JoinHostPort(h.Addr.String(), port)
	}
	return address
}
