package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"weft/ident"
)

// Limits of what clients may do.
const (
	defaultRate  = 50  // questions a second
	burstSeconds = 4   // of it at once
	maxUDP       = 512 // questions by UDP that are being answered
	maxUDPPer    = 64  // of these, by one client
	maxConns     = 128 // TCP connections
	maxConnsPer  = 8   // of these, by one client
	maxPipelined = 16  // questions of one connection that are being answered
	maxQuestion  = 4096
	idleConn     = 20 * time.Second // RFC 7766 section 6.2.3: seconds
	writeTime    = 5 * time.Second
	answerTime   = 8 * time.Second
	maxClients   = 4096 // whose rate is remembered
)

// Serve answers on listeners, each a net.PacketConn or a net.Listener, until ctx ends or one of them fails. It closes them,
// and returns when all its goroutines have. It may run several times at once. A packet listener must have one address and
// not all, since answers go out from what the system picks.
func (r *Resolver) Serve(ctx context.Context, listeners ...io.Closer) error {
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	for _, l := range listeners {
		switch l.(type) {
		case net.PacketConn, net.Listener:
		default:
			return fmt.Errorf("dns: cannot serve on a %T: it is neither a net.PacketConn nor a net.Listener", l)
		}
	}
	parent := ctx
	g, ctx := errgroup.WithContext(ctx)
	conns := newPlaces(maxConns, maxConnsPer)
	for _, l := range listeners {
		switch l := l.(type) {
		case net.PacketConn:
			g.Go(func() error { return r.servePackets(ctx, l) })
		case net.Listener:
			g.Go(func() error { return r.serveStreams(ctx, l, &conns) })
		}
	}
	g.Go(func() error {
		<-ctx.Done()
		for _, l := range listeners {
			l.Close()
		}
		return nil
	})
	err := g.Wait()
	if parent.Err() != nil {
		return parent.Err()
	}
	return err
}

// servePackets answers UDP. What is more than it can do is dropped: clients ask again.
func (r *Resolver) servePackets(ctx context.Context, c net.PacketConn) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	buf := make([]byte, maxQuestion)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return net.ErrClosed
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() || isRefused(err) {
				continue // what an ICMP error has left
			}
			return fmt.Errorf("dns: read: %w", err)
		}
		src := sourceOf(from)
		if !r.limiter.allow(src, time.Now()) {
			r.count.limited.Add(1)
			continue
		}
		client := clientOf(src)
		if !r.udp.enter(client) {
			r.count.limited.Add(1)
			continue
		}
		wire := slices.Clone(buf[:n])
		wg.Go(func() {
			defer r.udp.leave(client)
			if out := r.handle(ctx, wire, src, true); out != nil {
				c.WriteTo(out, from)
			}
		})
	}
}

// places are what clients take while they are served. A quarter is kept for programs on this machine, so that no
// neighbour can keep its owner from the names of the mesh while upstreams are silent.
type places struct {
	max, per int

	mu  sync.Mutex
	all int
	by  map[netip.Addr]int
}

func newPlaces(most, per int) places { return places{max: most, per: per, by: map[netip.Addr]int{}} }

func (t *places) enter(src netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all >= t.max || !src.IsLoopback() && (t.by[src] >= t.per || t.all >= t.max*3/4) {
		return false
	}
	t.all++
	t.by[src]++
	return true
}

func (t *places) leave(src netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all--
	if t.by[src]--; t.by[src] == 0 {
		delete(t.by, src)
	}
}

// serveStreams answers TCP.
func (r *Resolver) serveStreams(ctx context.Context, l net.Listener, conns *places) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return net.ErrClosed
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() || isExhausted(err) {
				select { // no file descriptors just now
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
				continue
			}
			return fmt.Errorf("dns: accept: %w", err)
		}
		src := sourceOf(c.RemoteAddr())
		if !conns.enter(clientOf(src)) {
			r.count.limited.Add(1)
			c.Close()
			continue
		}
		wg.Go(func() {
			defer conns.leave(clientOf(src))
			r.serveConn(ctx, c, src)
		})
	}
}

// serveConn answers one connection, several questions at a time and in any order (RFC 7766 section 6.2.1.1).
func (r *Resolver) serveConn(ctx context.Context, c net.Conn, src netip.Addr) {
	defer c.Close()
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var wmu sync.Mutex
	slots := make(chan struct{}, maxPipelined)
	for {
		c.SetReadDeadline(time.Now().Add(idleConn))
		wire, err := readFrame(c, maxQuestion)
		if err != nil {
			// Who has shut its half still gets its answers.
			for range maxPipelined {
				select {
				case slots <- struct{}{}:
				case <-ctx.Done():
				}
			}
			return
		}
		if !r.limiter.allow(src, time.Now()) {
			r.count.limited.Add(1)
			return
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		wg.Go(func() {
			defer func() { <-slots }()
			out := r.handle(ctx, wire, src, false)
			if out == nil {
				cancel()
				return
			}
			wmu.Lock()
			defer wmu.Unlock()
			c.SetWriteDeadline(time.Now().Add(writeTime))
			if writeFrame(c, out) != nil {
				cancel()
			}
		})
	}
}

// sourceOf returns the IP address of a peer; the zero Addr for what has none, like a pipe.
func sourceOf(a net.Addr) netip.Addr {
	var s string
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	case nil:
		return netip.Addr{}
	default:
		s = a.String()
	}
	ap, _ := netip.ParseAddrPort(s)
	return ap.Addr().Unmap().WithZone("")
}

// handle answers one message. nil: it deserves no answer.
func (r *Resolver) handle(ctx context.Context, wire []byte, src netip.Addr, udp bool) []byte {
	r.count.queries.Add(1)
	if len(wire) < 12 || wire[2]&0x80 != 0 { // an answer is never answered
		r.count.malformed.Add(1)
		return nil
	}
	q := new(dns.Msg)
	if err := q.Unpack(wire); err != nil {
		r.count.malformed.Add(1)
		m := &dns.Msg{MsgHdr: dns.MsgHdr{Id: binary.BigEndian.Uint16(wire), Response: true, Opcode: int(wire[2] >> 3 & 15), Rcode: dns.RcodeFormatError}}
		out, err := m.Pack()
		if err != nil {
			return nil
		}
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	m := r.reply(ctx, q, src)
	size := dns.MaxMsgSize
	if udp {
		size = dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = max(size, min(int(opt.UDPSize()), udpSize))
		}
	}
	m.Compress = true
	m.Truncate(size)
	out, err := m.Pack()
	if err != nil || len(out) > size {
		m.Answer, m.Ns, m.Extra = nil, nil, nil
		m.Rcode, m.Truncated = dns.RcodeServerFailure, false
		if out, err = m.Pack(); err != nil {
			return nil
		}
	}
	return out
}

// reply answers a message that parses.
func (r *Resolver) reply(ctx context.Context, q *dns.Msg, src netip.Addr) *dns.Msg {
	m := &dns.Msg{MsgHdr: dns.MsgHdr{Id: q.Id, Response: true, Opcode: q.Opcode, RecursionDesired: q.RecursionDesired,
		RecursionAvailable: true, CheckingDisabled: q.CheckingDisabled}}
	if len(q.Question) > 0 {
		m.Question = q.Question[:1]
	}
	opt := q.IsEdns0()
	a := r.judge(q, opt)
	if a == nil {
		x := q.Question[0]
		k := key{name: dns.CanonicalName(x.Name), qtype: x.Qtype, do: opt != nil && opt.Do(), cd: q.CheckingDisabled}
		ans := r.resolve(ctx, k, src)
		for _, rr := range ans.rrs {
			if h := rr.Header(); strings.EqualFold(h.Name, x.Name) {
				h.Name = x.Name // in the letters of the question
			}
		}
		a = &ans
	}
	m.Rcode, m.Answer, m.Ns, m.Authoritative = a.rcode, a.rrs, a.ns, a.authoritative
	// RFC 6840 section 5.8: AD for those who understand it.
	m.AuthenticatedData = a.authentic && (q.AuthenticatedData || opt != nil && opt.Do())
	if opt == nil {
		m.Rcode &= 0xf
		return m
	}
	o := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
	o.SetUDPSize(udpSize)
	o.SetDo(opt.Do())
	for _, n := range a.notes[:min(len(a.notes), 3)] {
		o.Option = append(o.Option, &dns.EDNS0_EDE{InfoCode: n.code, ExtraText: cut(n.text, 240)})
	}
	m.Extra = []dns.RR{o}
	return m
}

// cut shortens a text to n bytes.
func cut(s string, n int) string { return strings.ToValidUTF8(s[:min(len(s), n)], "") }

// judge answers what is not asked as one asks a resolver. nil: it is.
func (r *Resolver) judge(q *dns.Msg, opt *dns.OPT) *answer {
	say := func(a answer) *answer {
		r.count.refused.Add(1)
		return &a
	}
	switch {
	case q.Opcode != dns.OpcodeQuery:
		return say(answer{rcode: dns.RcodeNotImplemented})
	case len(q.Question) != 1 || len(q.Answer) > 0:
		return say(answer{rcode: dns.RcodeFormatError})
	case opt != nil && opt.Version() != 0:
		return say(answer{rcode: dns.RcodeBadVers})
	}
	x := q.Question[0]
	switch {
	case x.Qclass != dns.ClassINET:
		return say(refused(dns.ExtendedErrorCodeNotSupported, "only the internet class is served"))
	case x.Qtype == dns.TypeANY: // RFC 8482 section 4.2
		h := dns.RR_Header{Name: x.Name, Rrtype: dns.TypeHINFO, Class: dns.ClassINET, Ttl: 3600}
		return say(answer{rrs: []dns.RR{&dns.HINFO{Hdr: h, Cpu: "RFC8482"}}})
	case x.Qtype == 0 || x.Qtype == dns.TypeOPT || x.Qtype >= 128 && x.Qtype <= 255:
		return say(refused(dns.ExtendedErrorCodeNotSupported, "zone transfers and meta types are not served"))
	case !q.RecursionDesired && !r.ours(dns.CanonicalName(x.Name)):
		return say(refused(dns.ExtendedErrorCodeNotAuthoritative, "ask with recursion desired: this is a resolver"))
	}
	return nil
}

// ours reports whether a name is in a zone of the mesh.
func (r *Resolver) ours(name string) bool {
	return slices.ContainsFunc(r.zones, func(z string) bool { return dns.IsSubDomain(z, name) })
}

// limiter holds each client to a rate: a token bucket for each, of as many as are remembered.
type limiter struct {
	rate float64 // negative: none

	mu      sync.Mutex
	buckets map[netip.Addr]*rate.Limiter
}

func newLimiter(r float64) *limiter {
	return &limiter{rate: r, buckets: map[netip.Addr]*rate.Limiter{}}
}

// clientOf is who is held to the rate: a mesh node by its address, which it cannot choose; all else in IPv6 by its /64, in
// which anybody may have any address.
func clientOf(src netip.Addr) netip.Addr {
	if src.Is6() && !(ident.MeshPrefix.Contains(src) && src.As16()[0] == 2) {
		if p, err := src.Prefix(64); err == nil && !src.IsLoopback() {
			return p.Addr()
		}
	}
	return src
}

// allow takes a token. Programs on this machine, which all come from one address, have no limit.
func (l *limiter) allow(src netip.Addr, now time.Time) bool {
	if l.rate < 0 || src.IsLoopback() || !src.IsValid() {
		return true
	}
	src = clientOf(src)
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buckets[src]
	if b == nil {
		if len(l.buckets) >= maxClients {
			l.makeRoomLocked(now)
		}
		b = rate.NewLimiter(rate.Limit(l.rate), max(1, int(l.rate*burstSeconds)))
		l.buckets[src] = b
	}
	return b.AllowN(now, 1)
}

// makeRoomLocked forgets those who are at rest, and at least an eighth of all.
func (l *limiter) makeRoomLocked(now time.Time) {
	for src, b := range l.buckets {
		if b.TokensAt(now) >= float64(b.Burst()) {
			delete(l.buckets, src)
		}
	}
	for src := range l.buckets {
		if len(l.buckets) <= maxClients*7/8 {
			return
		}
		delete(l.buckets, src) // Go's map order makes this a random one
	}
}
