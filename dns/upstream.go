package dns

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	maxUpstreams = 16
	maxAttempts  = 8                // for one question, at all upstreams together
	idleStream   = 30 * time.Second // without question or answer
	dialTime     = 4 * time.Second
	firstRest    = time.Second // after a failure; doubled by each further one
	longestRest  = time.Minute
	patience     = 2 * time.Second // with servers over TLS, before plain ones are asked
	maxForged    = 8               // answers to other questions, after which TCP is the way
	maxWaiting   = 64              // questions on one connection
	padTo        = 128
)

// upstream is one server that is asked.
type upstream struct {
	uri     string
	scheme  string // udp, tcp, tls, https
	address string // what is dialled, a literal with a port
	url     string // of DoH
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	tls     *tls.Config

	mu       sync.Mutex
	rtt      time.Duration
	fails    int // in a row
	restTill time.Time
	sent     uint64
	failed   uint64
	lastErr  string
	stream   *stream
	dialing  chan struct{} // closed when who dials a stream has done so
	http     *http.Transport
	conns    map[net.Conn]bool // of http
	closed   bool
}

func (u *upstream) encrypted() bool { return u.scheme == "tls" || u.scheme == "https" }

// parseUpstream reads one of the forms that SetUpstreams names.
func (r *Resolver) parseUpstream(uri string) (*upstream, error) {
	fail := func(format string, args ...any) (*upstream, error) {
		return nil, fmt.Errorf("upstream %q: "+format, append([]any{uri}, args...)...)
	}
	if len(uri) > 512 {
		return nil, errors.New("upstream: longer than 512 bytes")
	}
	s := uri
	if !strings.Contains(s, "://") {
		if a, err := netip.ParseAddr(s); err == nil && a.Is6() {
			s = "[" + s + "]"
		}
		s = "udp://" + s
	}
	x, err := url.Parse(s)
	if err != nil {
		return fail("is no URI: %w", err)
	}
	u := &upstream{uri: uri, scheme: x.Scheme, dial: r.cfg.Dial, conns: map[net.Conn]bool{}}
	ports := map[string]string{"udp": "53", "tcp": "53", "tls": "853", "https": "443"}
	port := ports[x.Scheme]
	if port == "" {
		return fail("may begin with udp://, tcp://, tls:// or https://")
	}
	if x.Port() != "" {
		port = x.Port()
	}
	if x.User != nil || x.RawQuery != "" {
		return fail("has parts that mean nothing here")
	}
	host, where := x.Hostname(), x.Hostname()
	switch x.Scheme {
	case "https":
		path, at, ok := strings.Cut(x.Path, "@")
		if ok {
			where = strings.Trim(at, "[]")
		}
		if x.Fragment != "" || path == "" || path == "/" {
			return fail("must look like https://NAME/dns-query@ADDRESS")
		}
		u.url = (&url.URL{Scheme: "https", Host: x.Host, Path: path}).String()
		u.tls = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: r.cfg.RootCAs, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	case "tls":
		if u.tls, err = r.dotConfig(x.Fragment); err != nil {
			return fail("%w", err)
		}
		fallthrough
	default:
		if x.Path != "" && x.Path != "/" || x.Fragment != "" && x.Scheme != "tls" {
			return fail("has parts that mean nothing here")
		}
	}
	addr, err := netip.ParseAddr(where)
	switch {
	case err != nil && x.Scheme == "https":
		return fail("%s must be reached before any name is known: add its address, like https://%s/dns-query@192.0.2.1", host, host)
	case err != nil || addr.IsUnspecified() || addr.IsMulticast():
		return fail("%q is not the address of a server, and names cannot be asked for before there is one", where)
	}
	ap, err := netip.ParseAddrPort(net.JoinHostPort(addr.String(), port))
	if err != nil || ap.Port() == 0 {
		return fail("has the impossible port %q", port)
	}
	u.address = ap.String()
	return u, nil
}

// dotConfig makes the TLS configuration for #NAME and #pin-sha256=… (RFC 7858, RFC 8310 section 5: the strict profile).
func (r *Resolver) dotConfig(fragment string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: r.cfg.RootCAs, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	var pins [][]byte
	for _, part := range strings.Split(fragment, ",") {
		if pin, ok := strings.CutPrefix(part, "pin-sha256="); ok {
			b, err := base64.StdEncoding.DecodeString(pin)
			if err != nil || len(b) != sha256.Size {
				return nil, fmt.Errorf("pin %q is not the SHA-256 of a key in base64", pin)
			}
			pins = append(pins, b)
			continue
		}
		if _, ok := dns.IsDomainName(part); !ok || part == "" || c.ServerName != "" {
			if fragment == "" {
				return nil, errors.New("says not who the server must be: add its name, like tls://192.0.2.1#dns.example, or #pin-sha256=…")
			}
			return nil, fmt.Errorf("%q is neither one name nor a pin", fragment)
		}
		c.ServerName = part
	}
	if len(pins) == 0 {
		return c, nil
	}
	named := c.ServerName != ""
	c.InsecureSkipVerify = true // VerifyConnection does it, since there may be a pin and no name
	c.ClientSessionCache = nil
	c.VerifyConnection = func(s tls.ConnectionState) error {
		leaf := s.PeerCertificates[0]
		sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
		if !slices.ContainsFunc(pins, func(p []byte) bool { return bytes.Equal(p, sum[:]) }) {
			return errors.New("the server has another key than the pinned one")
		}
		if !named {
			return nil
		}
		opts := x509.VerifyOptions{Roots: r.cfg.RootCAs, DNSName: c.ServerName, Intermediates: x509.NewCertPool()}
		for _, i := range s.PeerCertificates[1:] {
			opts.Intermediates.AddCert(i)
		}
		_, err := leaf.Verify(opts)
		return err
	}
	return c, nil
}

// pool is one immutable list of upstreams.
type pool struct{ list []*upstream }

// close ends the connections of all upstreams that keep does not hold.
func (p *pool) close(keep *pool) {
	for _, u := range p.list {
		if keep == nil || !slices.Contains(keep.list, u) {
			u.mu.Lock()
			u.closed = true
			u.mu.Unlock()
			u.hangUp()
		}
	}
}

// order is in which order to ask: those that rest last, those over TLS before plain ones, the fast before the slow.
func (p *pool) order(now time.Time) []*upstream {
	type rank struct {
		u              *upstream
		resting, plain int
		rest, rtt      time.Duration
	}
	var ranks []rank
	for _, u := range p.list {
		u.mu.Lock()
		k := rank{u: u, plain: 1, rest: max(0, u.restTill.Sub(now)), rtt: u.rtt}
		u.rtt -= u.rtt / 64 // so that a slow one is tried again one day
		u.mu.Unlock()
		if u.encrypted() {
			k.plain = 0
		}
		if k.rest > 0 {
			k.resting = 1
		}
		ranks = append(ranks, k)
	}
	slices.SortStableFunc(ranks, func(a, b rank) int {
		for _, d := range []int64{int64(a.resting - b.resting), int64(a.plain - b.plain), int64(a.rest - b.rest), int64(a.rtt - b.rtt)} {
			if d != 0 {
				return int(max(-1, min(d, 1)))
			}
		}
		return 0
	})
	var out []*upstream
	for _, k := range ranks {
		out = append(out, k.u)
	}
	return out
}

// resting reports whether all have failed just now.
func (p *pool) resting(now time.Time) bool {
	for _, u := range p.list {
		u.mu.Lock()
		till := u.restTill
		u.mu.Unlock()
		if !till.After(now) {
			return false
		}
	}
	return true
}

// result is what came of one attempt.
type result struct {
	u   *upstream
	m   *dns.Msg
	err error
}

// ask asks upstreams in order: the next one after 300 ms or when one fails, until one answers. UDP servers are asked
// again, since packets get lost.
func (p *pool) ask(ctx context.Context, r *Resolver, k key) (*dns.Msg, *upstream, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	todo := p.order(time.Now())
	for range 3 {
		for _, u := range p.list {
			if u.scheme == "udp" {
				todo = append(todo, u)
			}
		}
	}
	todo = todo[:min(len(todo), maxAttempts)]
	results := make(chan result, len(todo))
	wait := hedge
	timer := time.NewTimer(0)
	defer timer.Stop()
	var soft *result // an answer that is none: SERVFAIL, REFUSED and the like
	var errs []error
	flying, lastPlain, began, tried := 0, false, time.Now(), map[*upstream]bool{}
	for len(todo) > 0 || flying > 0 {
		var tick <-chan time.Time
		if len(todo) > 0 {
			tick = timer.C
		}
		select {
		case <-tick:
			u := todo[0]
			if !u.encrypted() && !lastPlain && flying > 0 && time.Since(began) < patience {
				// Plain servers are no hedge for those over TLS: they are asked when these have failed.
				timer.Reset(hedge)
				continue
			}
			todo = todo[1:]
			lastPlain = !u.encrypted()
			flying++
			tried[u] = true
			r.wg.Go(func() {
				m, err := u.ask(ctx, k)
				results <- result{u, m, err}
			})
			timer.Reset(wait)
			wait += wait / 2
		case res := <-results:
			flying--
			switch {
			case res.err != nil:
				errs = append(errs, fmt.Errorf("%s: %w", res.u.uri, res.err))
			case failed(res.m.Rcode):
				if soft == nil {
					soft = &res
				}
				// Who says so says so again.
				todo = slices.DeleteFunc(todo, func(u *upstream) bool { return u == res.u })
			default:
				return res.m, res.u, nil
			}
			if len(todo) > 0 && tried[todo[0]] {
				timer.Reset(hedge) // the same one at once would fail the same way
			} else {
				timer.Reset(0)
			}
		case <-ctx.Done():
			if soft != nil {
				return soft.m, soft.u, nil
			}
			return nil, nil, errors.Join(append(errs, errors.New("no answer in time"))...)
		}
	}
	if soft != nil {
		return soft.m, soft.u, nil
	}
	return nil, nil, summary(errs)
}

// summary says each thing once, in one line.
func summary(errs []error) error {
	var texts []string
	for _, e := range errs {
		if s := e.Error(); !slices.Contains(texts, s) {
			texts = append(texts, s)
		}
	}
	return errors.New(strings.Join(texts, "; "))
}

// ask asks this server once, and notes how it did.
func (u *upstream) ask(ctx context.Context, k key) (*dns.Msg, error) {
	start := time.Now()
	u.mu.Lock()
	u.sent++
	u.mu.Unlock()
	m, err := u.exchange(ctx, k, true)
	if err == nil && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented) && m.IsEdns0() == nil {
		m, err = u.exchange(ctx, k, false) // older than EDNS (RFC 6891 section 7)
	}
	took := time.Since(start)
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case err == nil:
		u.fails, u.restTill, u.lastErr = 0, time.Time{}, ""
		if u.rtt == 0 {
			u.rtt = took
		}
		u.rtt += (took - u.rtt) / 8
	case took < patience && errors.Is(context.Cause(ctx), context.Canceled):
		// Another was faster: no failure, but it is known to be no faster than this.
		if took > u.rtt {
			u.rtt += (took - u.rtt) / 4
		}
	default:
		u.failed++
		u.lastErr = err.Error()
		rest := min(firstRest<<min(u.fails, 10), longestRest)
		u.fails++
		u.restTill = time.Now().Add(rest)
	}
	return m, err
}

func (u *upstream) forgive() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.rtt, u.fails, u.restTill, u.lastErr = 0, 0, time.Time{}, ""
}

func (u *upstream) stats(now time.Time) UpstreamStats {
	u.mu.Lock()
	defer u.mu.Unlock()
	return UpstreamStats{URI: u.uri, RTT: u.rtt, Sent: u.sent, Failures: u.failed, Resting: u.restTill.After(now), Error: u.lastErr}
}

// question makes the message to send.
func (u *upstream) question(k key, edns bool) *dns.Msg {
	m := &dns.Msg{MsgHdr: dns.MsgHdr{Id: uint16(rand.Uint32()), RecursionDesired: true, CheckingDisabled: k.cd, AuthenticatedData: true}}
	m.Question = []dns.Question{{Name: k.name, Qtype: k.qtype, Qclass: dns.ClassINET}}
	if u.scheme == "udp" {
		m.Question[0].Name = mixCase(k.name)
	}
	if !edns {
		return m
	}
	m.SetEdns0(udpSize, k.do)
	if u.encrypted() { // RFC 8467: all questions have one of a few lengths
		opt := m.IsEdns0()
		opt.Option = append(opt.Option, &dns.EDNS0_PADDING{})
		opt.Option[0] = &dns.EDNS0_PADDING{Padding: make([]byte, (padTo-m.Len()%padTo)%padTo)}
	}
	return m
}

// mixCase writes a name in random letters, which an answer must repeat (draft-vixie-dnsext-dns0x20): it makes forging one
// without having seen the question some bits harder. The generator is the runtime's ChaCha8, seeded by the system.
func mixCase(name string) string {
	b := []byte(name)
	bits, have := uint64(0), 0
	for i, c := range b {
		if c|0x20 < 'a' || c|0x20 > 'z' || i > 0 && b[i-1] == '\\' {
			continue
		}
		if have == 0 {
			bits, have = rand.Uint64(), 64
		}
		b[i] ^= byte(bits&1) << 5
		bits, have = bits>>1, have-1
	}
	return string(b)
}

// Errors of exchanges.
var (
	errForged  = errors.New("answers to questions that nobody asked")
	errCase    = errors.New("the answer does not repeat the question letter by letter")
	errAnother = errors.New("an answer to another question")
)

// match checks that m answers q.
func match(q, m *dns.Msg) error {
	if !m.Response || m.Opcode != dns.OpcodeQuery || len(m.Question) != 1 {
		if m.Response && len(m.Question) == 0 && m.Rcode == dns.RcodeFormatError && m.Id == q.Id {
			return nil // it has not understood the question
		}
		return errAnother
	}
	a, b := m.Question[0], q.Question[0]
	if m.Id != q.Id || a.Qtype != b.Qtype || a.Qclass != b.Qclass || !strings.EqualFold(a.Name, b.Name) {
		return errAnother
	}
	if a.Name != b.Name {
		return errCase
	}
	return nil
}

func (u *upstream) exchange(ctx context.Context, k key, edns bool) (*dns.Msg, error) {
	q := u.question(k, edns)
	switch u.scheme {
	case "udp":
		m, err := u.overUDP(ctx, q)
		if err == nil && !m.Truncated {
			return m, nil
		}
		if err != nil && !errors.Is(err, errForged) && !errors.Is(err, errCase) {
			return nil, err
		}
		return u.overStream(ctx, q)
	case "https":
		return u.overHTTPS(ctx, q)
	}
	return u.overStream(ctx, q)
}

// overUDP sends from a new port and believes only what repeats id and question.
func (u *upstream) overUDP(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	wire, err := q.Pack()
	if err != nil {
		return nil, err
	}
	c, err := u.dial(ctx, "udp", u.address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := c.Write(wire); err != nil {
		return nil, cause(ctx, err)
	}
	buf := make([]byte, 4096)
	for forged := 0; forged < maxForged; {
		n, err := c.Read(buf)
		if err != nil {
			return nil, cause(ctx, err)
		}
		m := new(dns.Msg)
		if n < 12 || binary.BigEndian.Uint16(buf) != q.Id {
			forged++
			continue
		}
		if err := m.Unpack(buf[:n]); err != nil && !m.Truncated {
			forged++
			continue
		}
		switch err := match(q, m); err {
		case nil:
			return m, nil
		case errCase:
			return nil, err
		default:
			forged++
		}
	}
	return nil, errForged
}

// cause prefers to say that time is up over what this did to a connection.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// overStream asks over TCP or TLS, on a connection that is kept. Servers close these when they like, some after a number of
// questions, and what was asked just then is asked again on a new one: as long as connections bring answers at all.
func (u *upstream) overStream(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	for try := 1; ; try++ {
		s, reused, err := u.getStream(ctx)
		if err != nil {
			return nil, err
		}
		m, err := s.ask(ctx, q)
		if err == nil || ctx.Err() != nil || try == maxAttempts || s.alive() || !reused && !s.useful.Load() {
			return m, err
		}
	}
}

// getStream returns the connection that there is, or makes one. Others who want one in the meantime wait for it.
func (u *upstream) getStream(ctx context.Context) (s *stream, reused bool, err error) {
	for {
		u.mu.Lock()
		if u.closed {
			u.mu.Unlock()
			return nil, false, net.ErrClosed
		}
		if s := u.stream; s != nil && s.alive() {
			u.mu.Unlock()
			return s, true, nil
		}
		wait := u.dialing
		if wait == nil {
			u.dialing = make(chan struct{})
			u.mu.Unlock()
			break
		}
		u.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
	c, err := u.connect(ctx)
	u.mu.Lock()
	defer u.mu.Unlock()
	close(u.dialing)
	u.dialing = nil
	if err != nil {
		return nil, false, err
	}
	if u.closed {
		c.Close()
		return nil, false, net.ErrClosed
	}
	u.stream = newStream(c)
	return u.stream, false, nil
}

// connect dials, and shakes hands over TLS.
func (u *upstream) connect(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	c, err := u.dial(ctx, "tcp", u.address)
	if err != nil || u.scheme != "tls" {
		return c, err
	}
	t := tls.Client(c, u.tls)
	if err := t.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, fmt.Errorf("check who the server is: %w", err)
	}
	return t, nil
}

// hangUp closes all connections.
func (u *upstream) hangUp() {
	u.mu.Lock()
	s, h := u.stream, u.http
	u.stream, u.http = nil, nil
	var conns []net.Conn
	for c := range u.conns {
		conns = append(conns, c)
	}
	u.mu.Unlock()
	if s != nil {
		s.close(net.ErrClosed)
		<-s.done
	}
	if h != nil {
		h.CloseIdleConnections()
	}
	for _, c := range conns {
		c.Close()
	}
}

// stream is a connection with messages behind their lengths (RFC 1035 section 4.2.2), several at a time (RFC 7766 section
// 6.2.1.1). One goroutine reads.
type stream struct {
	c    net.Conn
	done chan struct{} // closed when the reader has ended

	useful atomic.Bool   // it has brought an answer
	slots  chan struct{} // one for each question that waits: servers hang up on who asks too much at once

	wmu sync.Mutex // one message is written at a time

	mu      sync.Mutex
	err     error // why it is over
	waiting map[uint16]chan<- *dns.Msg
}

func newStream(c net.Conn) *stream {
	s := &stream{c: c, done: make(chan struct{}), waiting: map[uint16]chan<- *dns.Msg{}, slots: make(chan struct{}, maxWaiting)}
	c.SetReadDeadline(time.Now().Add(idleStream))
	go s.read()
	return s
}

func (s *stream) alive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err == nil
}

// close ends the stream; those who wait get err.
func (s *stream) close(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
		for _, w := range s.waiting {
			close(w)
		}
		s.waiting = nil
	}
	s.mu.Unlock()
	s.c.Close()
}

func (s *stream) read() {
	defer close(s.done)
	for {
		b, err := readFrame(s.c, 65535)
		if err != nil {
			s.close(fmt.Errorf("read answer: %w", err))
			return
		}
		s.c.SetReadDeadline(time.Now().Add(idleStream))
		m := new(dns.Msg)
		if err := m.Unpack(b); err != nil {
			s.close(fmt.Errorf("read answer: %w", err))
			return
		}
		s.mu.Lock()
		w := s.waiting[m.Id]
		delete(s.waiting, m.Id)
		s.mu.Unlock()
		if w != nil {
			s.useful.Store(true)
			w <- m
		}
	}
}

// ask sends q under an id of this stream and waits for the answer.
func (s *stream) ask(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	answer := make(chan *dns.Msg, 1)
	q = q.Copy()
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return nil, s.err
	}
	for s.waiting[q.Id] != nil {
		q.Id++
	}
	s.waiting[q.Id] = answer
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		if s.waiting != nil && s.waiting[q.Id] == answer {
			delete(s.waiting, q.Id)
		}
		s.mu.Unlock()
	}()
	wire, err := q.Pack()
	if err != nil {
		return nil, err
	}
	s.wmu.Lock()
	s.c.SetDeadline(time.Now().Add(idleStream))
	err = writeFrame(s.c, wire)
	s.wmu.Unlock()
	if err != nil {
		s.close(err)
		return nil, err
	}
	select {
	case m, ok := <-answer:
		if !ok {
			s.mu.Lock()
			defer s.mu.Unlock()
			return nil, s.err
		}
		if err := match(q, m); err != nil && err != errCase { // over TCP letters prove nothing more
			return nil, err
		}
		return m, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// readFrame reads one message of at most limit bytes.
func readFrame(c io.Reader, limit int) ([]byte, error) {
	var n [2]byte
	if _, err := io.ReadFull(c, n[:]); err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint16(n[:]))
	if size < 12 || size > limit {
		return nil, fmt.Errorf("a message of %d bytes", size)
	}
	b := make([]byte, size)
	_, err := io.ReadFull(c, b)
	return b, err
}

// writeFrame writes length and message in one piece (RFC 7766 section 8).
func writeFrame(c io.Writer, wire []byte) error {
	b := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(wire)), uint16(len(wire)))
	_, err := c.Write(append(b, wire...))
	return err
}

// overHTTPS posts the question (RFC 8484 section 4.1).
func (u *upstream) overHTTPS(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	q.Id = 0 // section 4.1: the connection tells questions apart
	wire, err := q.Pack()
	if err != nil {
		return nil, err
	}
	t, err := u.transport()
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.url, bytes.NewReader(wire))
	if err != nil {
		return nil, err
	}
	const kind = "application/dns-message"
	req.Header.Set("Content-Type", kind)
	req.Header.Set("Accept", kind)
	req.Header.Set("User-Agent", "")
	resp, err := t.RoundTrip(req)
	if err != nil {
		return nil, cause(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != kind {
		return nil, fmt.Errorf("the server says %s, %q, which is not DNS", resp.Status, resp.Header.Get("Content-Type"))
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 65536))
	if err != nil {
		return nil, cause(ctx, err)
	}
	m := new(dns.Msg)
	if len(b) > 65535 || m.Unpack(b) != nil {
		return nil, errors.New("the server's answer is not DNS")
	}
	if err := match(q, m); err != nil && err != errCase {
		return nil, err
	}
	return m, nil
}

// transport returns the HTTP client of this server. It goes to the one address, whatever the URL says, and knows no proxy.
func (u *upstream) transport() (*http.Transport, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil, net.ErrClosed
	}
	if u.http == nil {
		u.http = &http.Transport{
			DialContext:           u.dialHTTP,
			TLSClientConfig:       u.tls.Clone(),
			TLSHandshakeTimeout:   dialTime,
			ForceAttemptHTTP2:     true,
			MaxConnsPerHost:       2,
			IdleConnTimeout:       idleStream,
			DisableCompression:    true,
			ResponseHeaderTimeout: askTime,
		}
	}
	return u.http, nil
}

// dialHTTP dials and remembers the connection, so that hangUp can close it under the HTTP client.
func (u *upstream) dialHTTP(ctx context.Context, _, _ string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	c, err := u.dial(ctx, "tcp", u.address)
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		c.Close()
		return nil, net.ErrClosed
	}
	k := &kept{Conn: c, u: u}
	u.conns[k] = true
	return k, nil
}

// kept is a connection of the HTTP client.
type kept struct {
	net.Conn
	u *upstream
}

func (k *kept) Close() error {
	k.u.mu.Lock()
	delete(k.u.conns, k)
	k.u.mu.Unlock()
	return k.Conn.Close()
}
