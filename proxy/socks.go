package proxy

import (
	"bufio"
	"context"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// SOCKS protocol numbers: RFC 1928 sections 3 to 7 and RFC 1929.
const (
	socksVersion  = 5
	passwordV1    = 1
	methodNone    = 0
	methodUser    = 2
	methodRefused = 0xff

	cmdConnect   = 1
	cmdAssociate = 3

	addrIPv4 = 1
	addrName = 3
	addrIPv6 = 4

	replyOK          = 0
	replyFailed      = 1
	replyForbidden   = 2
	replyNetwork     = 3
	replyHost        = 4
	replyRefused     = 5
	replyTTL         = 6 // also used for time-outs, as others do
	replyCommand     = 7
	replyAddressType = 8
)

func replyFor(err error) byte {
	switch failureOf(err) {
	case failedForbidden:
		return replyForbidden
	case failedNetwork, failedNoGateway:
		return replyNetwork
	case failedHost, failedNoName:
		return replyHost
	case failedRefused:
		return replyRefused
	case failedTimeout:
		return replyTTL
	}
	return replyFailed
}

// dest is where a SOCKS client wants to go: a name or an address, and a port.
type dest struct {
	host string
	port uint16
}

var (
	errSOCKS       = errors.New("not a SOCKS5 message")
	errAddressType = errors.New("unknown type of address")
)

// parseDest reads ATYP, ADDR and PORT at the start of b and returns what follows. io.ErrUnexpectedEOF means that b is
// too short.
func parseDest(b []byte) (dest, []byte, error) {
	if len(b) < 2 {
		return dest{}, nil, io.ErrUnexpectedEOF
	}
	typ := b[0]
	at, size := 1, 0
	switch typ {
	case addrIPv4:
		size = 4
	case addrIPv6:
		size = 16
	case addrName:
		at, size = 2, int(b[1])
		if size == 0 {
			return dest{}, nil, errSOCKS
		}
	default:
		return dest{}, nil, errAddressType
	}
	if len(b) < at+size+2 {
		return dest{}, nil, io.ErrUnexpectedEOF
	}
	raw := b[at : at+size]
	d := dest{port: binary.BigEndian.Uint16(b[at+size:])}
	if typ == addrName {
		d.host = string(raw)
	} else {
		a, _ := netip.AddrFromSlice(raw)
		d.host = a.Unmap().String()
	}
	return d, b[at+size+2:], nil
}

// appendAddr writes ATYP, ADDR and PORT.
func appendAddr(b []byte, a netip.AddrPort) []byte {
	switch ip := a.Addr(); {
	case ip.Is4() || ip.Is4In6():
		v4 := ip.As4()
		b = append(append(b, addrIPv4), v4[:]...)
	case ip.Is6():
		v6 := ip.As16()
		b = append(append(b, addrIPv6), v6[:]...)
	default: // unknown
		b = append(b, addrIPv4, 0, 0, 0, 0)
	}
	return binary.BigEndian.AppendUint16(b, a.Port())
}

// append writes ATYP, ADDR and PORT as d was read.
func (d dest) append(b []byte) []byte {
	if a, err := netip.ParseAddr(d.host); err == nil {
		return appendAddr(b, netip.AddrPortFrom(a, d.port))
	}
	b = append(append(b, addrName, byte(len(d.host))), d.host...)
	return binary.BigEndian.AppendUint16(b, d.port)
}

func reply(c net.Conn, code byte, bound netip.AddrPort) error {
	_, err := c.Write(appendAddr([]byte{socksVersion, code, 0}, bound))
	return err
}

// readDest reads ATYP, ADDR and PORT from r, no byte more.
func readDest(r *bufio.Reader) (dest, error) {
	size := 2
	for {
		b, err := r.Peek(size)
		if err != nil {
			return dest{}, err
		}
		d, rest, err := parseDest(b)
		if err == nil {
			_, err = r.Discard(size - len(rest))
			return d, err
		}
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			return d, err
		}
		switch b[0] {
		case addrIPv4:
			size = 1 + 4 + 2
		case addrIPv6:
			size = 1 + 16 + 2
		case addrName:
			size = 1 + 1 + int(b[1]) + 2
		}
	}
}

// socks serves one SOCKS5 client; the version byte has been peeked at, not read.
func (p *Proxy) socks(ctx context.Context, c *peeked) error {
	if err := p.socksHello(c); err != nil {
		return err
	}
	var head [3]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return err
	}
	if head[0] != socksVersion {
		return errSOCKS
	}
	d, err := readDest(c.r)
	switch {
	case errors.Is(err, errAddressType):
		reply(c, replyAddressType, netip.AddrPort{})
		return err
	case err != nil:
		return err
	}
	switch head[1] {
	case cmdConnect:
		return p.socksConnect(ctx, c, d)
	case cmdAssociate:
		return p.socksAssociate(ctx, c, d)
	}
	reply(c, replyCommand, netip.AddrPort{})
	return fmt.Errorf("SOCKS command %d is not supported", head[1])
}

// socksHello agrees on a method of authentication and goes through it.
func (p *Proxy) socksHello(c *peeked) error {
	var head [2]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return err
	}
	var methods [255]byte
	if _, err := io.ReadFull(c.r, methods[:head[1]]); err != nil {
		return err
	}
	want := byte(methodNone)
	if p.cfg.User != "" {
		want = methodUser
	}
	for _, m := range methods[:head[1]] {
		if m != want {
			continue
		}
		if _, err := c.Write([]byte{socksVersion, want}); err != nil {
			return err
		}
		if want == methodUser {
			return p.socksPassword(c)
		}
		return nil
	}
	c.Write([]byte{socksVersion, methodRefused})
	return fmt.Errorf("the client does not offer the method of authentication %d", want)
}

// socksPassword is RFC 1929.
func (p *Proxy) socksPassword(c *peeked) error {
	var head [2]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return err
	}
	if head[0] != passwordV1 {
		return errSOCKS
	}
	var user, password [256]byte // with the length of the next field at the end of the first
	if _, err := io.ReadFull(c.r, user[:int(head[1])+1]); err != nil {
		return err
	}
	size := user[head[1]]
	if _, err := io.ReadFull(c.r, password[:size]); err != nil {
		return err
	}
	if !p.knows(string(user[:head[1]]), string(password[:size])) {
		c.Write([]byte{passwordV1, 1})
		return errors.New("wrong user or password")
	}
	_, err := c.Write([]byte{passwordV1, 0})
	return err
}

// knows compares in constant time.
func (p *Proxy) knows(user, password string) bool {
	a := subtle.ConstantTimeCompare([]byte(user), []byte(p.cfg.User))
	b := subtle.ConstantTimeCompare([]byte(password), []byte(p.cfg.Password))
	return a&b == 1
}

func (p *Proxy) socksConnect(ctx context.Context, c *peeked, d dest) error {
	c.SetDeadline(time.Time{})
	out, err := p.dial(ctx, "tcp", d.host, d.port)
	if err != nil {
		reply(c, replyFor(err), netip.AddrPort{})
		return err
	}
	if err := reply(c, replyOK, addrPortOf(out.LocalAddr())); err != nil {
		out.Close()
		return err
	}
	join(ctx, c, out)
	return nil
}

// socksAssociate relays datagrams (RFC 1928 section 7) for as long as the client keeps its connection.
func (p *Proxy) socksAssociate(ctx context.Context, c *peeked, d dest) error {
	c.SetDeadline(time.Time{})
	here, client := addrPortOf(c.LocalAddr()).Addr(), addrPortOf(c.RemoteAddr()).Addr()
	local, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(here, 0)))
	if err != nil {
		reply(c, replyFailed, netip.AddrPort{})
		return err
	}
	defer local.Close()
	mesh, err := p.cfg.Mesh.ListenPacket(ctx, "udp", ":0")
	if err != nil {
		reply(c, replyFor(err), netip.AddrPort{})
		return err
	}
	defer mesh.Close()
	if err := reply(c, replyOK, addrPortOf(local.LocalAddr())); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { local.Close(); mesh.Close(); c.Close() })
	defer stop()
	a := association{p: p, local: local, mesh: mesh, client: netip.AddrPortFrom(client, d.port), far: map[dest]*farEnd{}}
	var wg sync.WaitGroup
	a.wg = &wg
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { defer cancel(); a.out(ctx) })
	wg.Go(func() { defer cancel(); a.back() })
	io.Copy(io.Discard, c.r) // until the client goes
	return nil
}

// association is one UDP ASSOCIATE.
type association struct {
	p     *Proxy
	local *net.UDPConn
	mesh  net.PacketConn

	mu     sync.Mutex
	client netip.AddrPort // port 0 until its first datagram
	far    map[dest]*farEnd

	wg *sync.WaitGroup // of all its goroutines
}

// farEnd is an outside destination of an association.
type farEnd struct {
	*udpClient
	cancel context.CancelFunc
	used   time.Time // by the client; only the reader of its datagrams looks
}

func (a *association) mayUse(from netip.AddrPort) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.client.Port() == 0 && from.Addr() == a.client.Addr() {
		a.client = from
	}
	return from == a.client
}

func (a *association) back() {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := a.mesh.ReadFrom(buf)
		if err != nil {
			if failureOf(err) == failedRefused {
				continue
			}
			return
		}
		a.reply(appendAddr([]byte{0, 0, 0}, addrPortOf(from)), buf[:n])
	}
}

// reply sends the client a datagram behind a header that says from whom.
func (a *association) reply(header, payload []byte) {
	a.mu.Lock()
	to := a.client
	a.mu.Unlock()
	if to.Port() != 0 {
		a.local.WriteToUDPAddrPort(append(header, payload...), to)
	}
}

// toFar sends to an outside destination, on a connection of its own: Outside gives no other.
func (a *association) toFar(ctx context.Context, d dest, payload []byte) {
	a.mu.Lock()
	f := a.far[d]
	if f == nil && len(a.far) >= maxOutside {
		a.evict()
	}
	a.mu.Unlock()
	if f == nil {
		select {
		case a.p.far <- struct{}{}:
		default:
			return // too many: lost, as UDP may be
		}
		f = a.openFar(ctx, d)
	}
	f.used = time.Now()
	f.send(payload)
}

// evict ends the destination that was not used for longest. It runs with mu held.
func (a *association) evict() {
	var oldest dest
	for d, f := range a.far {
		if o := a.far[oldest]; o == nil || f.used.Before(o.used) {
			oldest = d
		}
	}
	a.far[oldest].cancel()
	delete(a.far, oldest)
}

func (a *association) openFar(ctx context.Context, d dest) *farEnd {
	ctx, cancel := context.WithCancel(ctx)
	f := &farEnd{udpClient: newUDPClient(), cancel: cancel}
	a.mu.Lock()
	a.far[d] = f
	a.mu.Unlock()
	a.wg.Go(func() {
		defer func() {
			cancel()
			a.mu.Lock()
			if a.far[d] == f {
				delete(a.far, d)
			}
			a.mu.Unlock()
			<-a.p.far
		}()
		var from []byte
		f.run(ctx, func(ctx context.Context) (net.Conn, error) {
			c, err := a.p.dial(ctx, "udp", d.host, d.port)
			if err != nil {
				a.p.cfg.Log.Debug("proxy request failed", "err", err)
				return nil, err
			}
			from = d.append([]byte{0, 0, 0})
			if at := addrPortOf(c.RemoteAddr()); at.IsValid() {
				from = appendAddr([]byte{0, 0, 0}, at)
			}
			return c, nil
		}, func(b []byte) { a.reply(from[:len(from):len(from)], b) })
	})
	return f
}

func (a *association) out(ctx context.Context) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := a.local.ReadFromUDPAddrPort(buf)
		if err != nil {
			if isTemporary(err) || failureOf(err) == failedRefused {
				continue
			}
			return
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		d, payload, err := parseDatagram(buf[:n])
		if err != nil || d.port == 0 || !a.mayUse(from) {
			continue
		}
		look, cancel := context.WithTimeout(ctx, time.Second) // datagrams behind this one wait
		to, err := a.p.lookup(look, d.host)
		cancel()
		if errors.Is(err, errOutside) && a.p.cfg.Outside != nil {
			a.toFar(ctx, d, payload)
		}
		if err != nil {
			continue // UDP has no way to say so
		}
		a.mesh.WriteTo(payload, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, d.port)))
	}
}

// parseDatagram reads the header of a relayed datagram. Fragments are refused, as RFC 1928 allows.
func parseDatagram(b []byte) (dest, []byte, error) {
	if len(b) < 3 || b[0] != 0 || b[1] != 0 || b[2] != 0 {
		return dest{}, nil, errSOCKS
	}
	return parseDest(b[3:])
}
