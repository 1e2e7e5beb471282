// Package proxy lets programs that know nothing of the mesh use it: a SOCKS5 and HTTP proxy on a local port, port forwards
// from this machine into the mesh, and local services exposed to the mesh. It matters most without root, where the mesh
// exists only inside the process (tun/netstack), but works the same over an OS TUN (see [Host]).
//
// node makes a [Proxy] and runs [Proxy.Serve]; nothing else imports the package but node. Serve starts goroutines per
// connection, bounded in number, and returns when all of them have ended. The mesh is reached through a [Network] and
// names are looked up by a [Resolver], both given.
//
// Destinations outside the mesh are refused, unless Config.Outside says where they go: through a gateway of the mesh. Their
// names are not looked up here. This machine and private networks are out of reach by that way (see [MayLeave]).
package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/ident"
)

// Network is where connections are made and accepted: the userspace stack or the host's network. Addresses to dial are
// literals; addresses to listen on are :PORT.
type Network interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
	Listen(ctx context.Context, network, address string) (net.Listener, error)
	ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error)
}

// Resolver finds the mesh address of a name below .weft; it is given the name without that ending. Names that are a whole
// key in hex never get here.
type Resolver func(ctx context.Context, name string) (netip.Addr, error)

// Domain is the ending of the names that the mesh has.
const Domain = ".weft"

// Config says what a Proxy does.
type Config struct {
	Mesh    Network
	Resolve Resolver // nil: only keys and addresses are known
	Log     *slog.Logger

	Listen   []string // local addresses of the proxy, SOCKS5 and HTTP on the same port; none: no proxy
	User     string   // with Password asked of every client; needed to listen on more than loopback
	Password string
	Forwards []Forward
	Exposed  []Forward

	// Outside connects to what is not in the mesh: network is tcp or udp, host a name or an address, not looked up. Its errors
	// may wrap ErrNoGateway, ErrPolicy and ErrNoName. nil refuses, so that a mistake cannot turn the node into an open proxy.
	Outside func(ctx context.Context, network, host string, port uint16) (net.Conn, error)
}

// Limits.
const (
	maxConns        = 512 // of the proxy, and of each forward
	maxConnsPerPeer = 64  // of one exposed service, by one address
	maxUDPPeers     = 256 // clients of one UDP forward
	maxUDPPerPeer   = 32  // of these, by one address
	handshakeTime   = 15 * time.Second
	dialTime        = 20 * time.Second
	idleTCP         = 2*time.Hour + 4*time.Minute // as long as the firewall remembers a connection
	idleHalfClosed  = 10 * time.Minute
	idleUDP         = 5 * time.Minute
	maxOutside      = 256  // outside destinations of one UDP association; those that were not used for longest give way
	maxOutsideAll   = 1024 // of all associations; each has a buffer of 64 KiB
)

// Proxy serves what its Config says.
type Proxy struct {
	cfg Config
	far chan struct{} // a slot for each outside destination of a UDP association
}

// New checks cfg; it opens nothing.
func New(cfg Config) (*Proxy, error) {
	if cfg.Mesh == nil || cfg.Log == nil {
		return nil, errors.New("proxy: needs a network and a log")
	}
	if len(cfg.User) > 255 || len(cfg.Password) > 255 || (cfg.User == "") != (cfg.Password == "") {
		return nil, errors.New("proxy: user and password have 1 to 255 bytes each, and come together")
	}
	if strings.Contains(cfg.User, ":") {
		return nil, errors.New("proxy: the user's name may not contain a colon")
	}
	p := &Proxy{cfg: cfg, far: make(chan struct{}, maxOutsideAll)}
	for _, a := range cfg.Listen {
		at, err := parseLocal(a)
		if err != nil {
			return nil, fmt.Errorf("proxy: listen on %q: %w", a, err)
		}
		if err := p.mayListen(at.Addr()); err != nil {
			return nil, err
		}
	}
	for _, f := range cfg.Forwards {
		if f.expose {
			return nil, fmt.Errorf("proxy: %q exposes a service and is no forward", f)
		}
	}
	for _, f := range cfg.Exposed {
		if !f.expose {
			return nil, fmt.Errorf("proxy: %q is a forward and exposes nothing", f)
		}
	}
	return p, nil
}

// mayListen refuses what would be open to everybody.
func (p *Proxy) mayListen(a netip.Addr) error {
	if !a.IsLoopback() && p.cfg.User == "" {
		return fmt.Errorf("proxy: listen on %s: anybody who reaches it could act as this node; listen on 127.0.0.1, or set a user and password", a)
	}
	return nil
}

// parseLocal reads an address to listen on: an IP address and a port.
func parseLocal(s string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("may be an address and a port, like 127.0.0.1:1080: %w", err)
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	at, err := netip.ParseAddrPort(net.JoinHostPort(host, port))
	if err != nil {
		return at, fmt.Errorf("may be an address and a port, like 127.0.0.1:1080: %w", err)
	}
	return at, nil
}

// Serve opens all ports and serves them until ctx ends or one fails. It returns when every connection is closed.
func (p *Proxy) Serve(ctx context.Context) error {
	var opened []port
	shut := func() {
		for _, o := range opened {
			o.close()
		}
	}
	var lc net.ListenConfig
	for _, a := range p.cfg.Listen {
		at, err := parseLocal(a)
		if err != nil {
			shut()
			return err
		}
		l, err := lc.Listen(ctx, "tcp", at.String())
		if err != nil {
			shut()
			return fmt.Errorf("open the proxy's port: %w", err)
		}
		opened = append(opened, port{l.Close, func(ctx context.Context) error { return p.ServeListener(ctx, l) }})
	}
	for _, f := range slices.Concat(p.cfg.Forwards, p.cfg.Exposed) {
		o, err := p.openForward(ctx, f)
		if err != nil {
			shut()
			return fmt.Errorf("open the port of %q: %w", f, err)
		}
		opened = append(opened, o)
	}
	g, sub := errgroup.WithContext(ctx)
	for _, o := range opened {
		g.Go(func() error { return o.serve(sub) })
	}
	g.Go(func() error { <-sub.Done(); return nil })
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// port is an open port; serve closes it, too.
type port struct {
	close func() error
	serve func(context.Context) error
}

// Why a destination was not reached, beyond what the network says.
var (
	errOutside = errors.New("the destination is not in the mesh: addresses in 200::/7 and names that end in .weft are")
	errNoName  = errors.New("no node of that name is known")
)

// lookup returns the mesh address of host. A host outside the mesh is errOutside.
func (p *Proxy) lookup(ctx context.Context, host string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		if !ident.MeshPrefix.Contains(a) {
			return a, errOutside
		}
		return a, nil
	}
	name, isMesh := strings.CutSuffix(strings.ToLower(strings.TrimSuffix(host, ".")), Domain)
	if !isMesh || name == "" {
		return netip.Addr{}, errOutside
	}
	if len(name) == 2*len(ident.PublicKey{}) {
		k, err := ident.ParsePublicKey(name)
		if err != nil {
			return netip.Addr{}, fmt.Errorf("%w: %w", errNoName, err)
		}
		return k.Addr(), nil
	}
	if p.cfg.Resolve == nil {
		return netip.Addr{}, errNoName
	}
	a, err := p.cfg.Resolve(ctx, name)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%w: %w", errNoName, err)
	}
	if !ident.MeshPrefix.Contains(a) {
		return netip.Addr{}, errOutside
	}
	return a, nil
}

// dial connects to host with network tcp or udp, in the mesh or where Outside allows.
func (p *Proxy) dial(ctx context.Context, network, host string, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	a, err := p.lookup(ctx, host)
	if errors.Is(err, errOutside) {
		return p.outside(ctx, network, host, port)
	}
	if err != nil {
		return nil, err
	}
	return p.cfg.Mesh.DialContext(ctx, network, netip.AddrPortFrom(a, port).String())
}

// splitHostPort is net.SplitHostPort with a numeric port.
func splitHostPort(s string) (string, uint16, error) {
	host, p, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, err
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil || port == 0 || host == "" {
		return "", 0, fmt.Errorf("%q is not a host and a port from 1 to 65535", s)
	}
	return host, uint16(port), nil
}

// failure sorts the reasons why a destination was not reached.
type failure uint8

const (
	failedGenerally failure = iota
	failedForbidden
	failedNoGateway
	failedNoName
	failedRefused
	failedNetwork
	failedHost
	failedTimeout
)

func failureOf(err error) failure {
	// Windows has its own numbers for what the network says (WSAE…); none of them is used elsewhere.
	is := func(a, windows syscall.Errno) bool { return errors.Is(err, a) || errors.Is(err, windows) }
	var timeout net.Error
	var dns *net.DNSError
	switch {
	case errors.Is(err, errOutside), errors.Is(err, errPrivate), errors.Is(err, ErrPolicy), is(syscall.EACCES, 10013), is(syscall.EPERM, 10013):
		return failedForbidden
	case errors.Is(err, ErrNoGateway):
		return failedNoGateway
	case errors.Is(err, errNoName), errors.Is(err, ErrNoName), errors.As(err, &dns) && dns.IsNotFound:
		return failedNoName
	case is(syscall.ECONNREFUSED, 10061):
		return failedRefused
	case is(syscall.ENETUNREACH, 10051):
		return failedNetwork
	case is(syscall.EHOSTUNREACH, 10065):
		return failedHost
	case is(syscall.ETIMEDOUT, 10060), errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return failedTimeout
	}
	return failedGenerally
}
