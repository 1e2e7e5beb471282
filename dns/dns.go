// Package dns is a node's resolver: it answers for the names of the mesh itself and asks others for the rest, over
// connections that it is given. Programs on this machine, devices behind it and the node's own proxies use it.
//
// It opens no socket: node gives it listeners ([Resolver.Serve]) and the one function through which all upstreams are
// reached (Config.Dial), so whether a question goes through a gateway's tunnel is decided there and nowhere else. What
// belongs to the mesh, to this network or to nobody (see local.go) is never asked of anybody.
//
//	a question ─▶ limits ─▶ own zones, special names ─▶ cache ─▶ upstreams, by health, hedged
//	               DNS64 asks twice along this way; the guard strips what outsiders may not say before it is cached
//
// DNSSEC records are passed through to whoever sets DO, and are not validated. AD is passed on only when the answer came
// from an upstream over TLS, whose name or key was checked; in answers over plain DNS anybody on the way may have set it.
//
// All methods may be called from any goroutine. Serve returns when its goroutines have; questions to upstreams outlive
// whoever asked them, so that the cache has the answer, and end with [Resolver.Close].
package dns

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"weft/gateway/nat64"
	"weft/ident"
)

// Limits and times.
const (
	defaultCacheBytes = 4 << 20
	minCacheBytes     = 64 << 10
	maxTTL            = 24 * time.Hour
	minTTL            = 5 * time.Second // of what is cached at all: a TTL of zero is not
	maxNegative       = time.Hour       // RFC 2308 section 5 says one to three hours
	failureTTL        = 5 * time.Second // RFC 9520 section 3.2
	staleFor          = time.Hour       // RFC 8767: how long after its end an answer may still help
	staleTTL          = 30              // seconds; RFC 8767 section 4
	staleAfter        = 1800 * time.Millisecond
	localTTL          = 30 // seconds: names of the mesh may change
	hedge             = 300 * time.Millisecond
	askTime           = 6 * time.Second
	nameTime          = 4 * time.Second // for Config.Names
	maxFlights        = 512             // questions to upstreams at a time
	udpSize           = 1232            // bytes: what no path fragments (DNS flag day 2020)
)

// Config says what a Resolver knows and whom it asks.
type Config struct {
	// Dial opens every connection to an upstream: network is "udp" or "tcp", address a literal with a port. It must
	// heed ctx.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Upstreams are asked for what is not known here; see [Resolver.SetUpstreams] for the form.
	Upstreams []string

	// Zones are the domains of the mesh, like "weft". Names says which addresses a name in them has; the name is whole, in
	// lower case and without the dot at its end. False: there is no such name. A name may be there and have no address.
	Zones []string
	Names func(ctx context.Context, name string) ([]netip.Addr, bool)

	// Reverse returns the name of a mesh address. nil: none has one.
	Reverse func(netip.Addr) (string, bool)

	// DNS64 returns the prefix for IPv6-only clients (RFC 6147); nil or false: there is none now. WantDNS64 says whose
	// questions are answered so; the zero address is the node's own [Resolver.Lookup]. nil: everybody's.
	DNS64     func() (netip.Prefix, bool)
	WantDNS64 func(src netip.Addr) bool

	// Recurse says who may ask for names of the outside. nil: everybody who reaches a listener.
	Recurse func(src netip.Addr) bool

	// Guarded are the addresses that no name of the outside may have, so that no web page can reach them under its own name
	// (DNS rebinding). nil: [MeshAndLoopback]. Empty: no guard.
	Guarded []netip.Prefix

	// Why says in plain words what keeps the outside from being reached, and what to do; for those who ask in vain. nil or
	// empty: nothing that is known.
	Why func() string

	CacheBytes int64          // 0: 4 MiB
	Rate       float64        // questions a second by one client, after a burst of four seconds' worth; 0: 50; negative: no limit
	RootCAs    *x509.CertPool // nil: the system's
	Log        *slog.Logger
}

// MeshAndLoopback are what Config.Guarded is by default.
func MeshAndLoopback() []netip.Prefix {
	return prefixes(ident.MeshPrefix.String(), "127.0.0.0/8", "0.0.0.0/8", "::1/128", "::/128")
}

// Private are the addresses of local networks, for Config.Guarded where no name of the outside points inside on purpose.
func Private() []netip.Prefix {
	return prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "fc00::/7", "fe80::/10")
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// Resolver answers questions.
type Resolver struct {
	cfg     Config
	zones   []string       // canonical
	special []netip.Prefix // whose reverse names are ours to answer
	limiter *limiter
	udp     places // of UDP questions that are being answered
	count   counters

	ctx    context.Context // of questions to upstreams; ends in Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	gen     uint64 // of upstreams and cache: what an older one says is not kept
	pool    *pool
	cache   cache
	flights map[key]*flight
}

// key is what answers are kept under.
type key struct {
	name   string // canonical
	qtype  uint16
	do, cd bool
}

// flight is one question on its way to upstreams, and all who wait for it.
type flight struct {
	done chan struct{} // closed when ans and err are set
	ans  answer
	err  error
}

// answer is what there is to say about a question.
type answer struct {
	rcode         int
	rrs, ns       []dns.RR
	authentic     bool // AD from an upstream that may say so
	authoritative bool // ours to answer
	notes         []note
}

// clone is for whoever may change records that others look at.
func (a answer) clone() answer {
	a.rrs, a.ns = slices.Clone(a.rrs), slices.Clone(a.ns)
	for _, rrs := range [][]dns.RR{a.rrs, a.ns} {
		for i := range rrs {
			rrs[i] = dns.Copy(rrs[i])
		}
	}
	a.notes = slices.Clone(a.notes)
	return a
}

// note is an Extended DNS Error (RFC 8914).
type note struct {
	code uint16
	text string
}

// failure is why there is no answer.
type failure struct {
	note
}

func (f *failure) Error() string { return f.text }

// New checks cfg. It opens nothing and asks nobody.
func New(cfg Config) (*Resolver, error) {
	if cfg.Dial == nil || cfg.Log == nil {
		return nil, errors.New("dns: needs a dialler and a log")
	}
	if len(cfg.Zones) > 0 && cfg.Names == nil {
		return nil, errors.New("dns: there are zones, but nobody who knows their names")
	}
	if cfg.CacheBytes == 0 {
		cfg.CacheBytes = defaultCacheBytes
	}
	if cfg.CacheBytes < minCacheBytes {
		return nil, fmt.Errorf("dns: a cache of %d bytes is too small: at least %d", cfg.CacheBytes, minCacheBytes)
	}
	if cfg.Guarded == nil {
		cfg.Guarded = MeshAndLoopback()
	}
	if cfg.Rate == 0 {
		cfg.Rate = defaultRate
	}
	if math.IsNaN(cfg.Rate) || math.IsInf(cfg.Rate, 0) {
		return nil, fmt.Errorf("dns: %v questions a second is no limit", cfg.Rate)
	}
	r := &Resolver{cfg: cfg, limiter: newLimiter(cfg.Rate), udp: newPlaces(maxUDP, maxUDPPer),
		special: reverseZones(), flights: map[key]*flight{}}
	for _, z := range cfg.Zones {
		name := dns.CanonicalName(z)
		if _, ok := dns.IsDomainName(name); !ok || name == "." {
			return nil, fmt.Errorf("dns: %q is not a zone: a domain like weft is", z)
		}
		r.zones = append(r.zones, name)
	}
	r.cache.init(cfg.CacheBytes)
	r.ctx, r.cancel = context.WithCancel(context.Background())
	if err := r.SetUpstreams(cfg.Upstreams); err != nil {
		r.cancel()
		return nil, err
	}
	return r, nil
}

// Close ends all questions to upstreams and closes their connections. It waits for both.
func (r *Resolver) Close() error {
	r.mu.Lock()
	r.closed = true
	p := r.pool
	r.mu.Unlock()
	r.cancel()
	p.close(nil)
	r.wg.Wait()
	return nil
}

// SetUpstreams says whom to ask from now on. Each is one of
//
//	udp://ADDRESS[:53]                         plain, over TCP where an answer does not fit; a bare address means this
//	tcp://ADDRESS[:53]
//	tls://ADDRESS[:853]#NAME                   DoT (RFC 7858); the certificate must be NAME's, or have the key that
//	tls://ADDRESS[:853]#pin-sha256=BASE64      the pin is the hash of (RFC 7858 appendix A); both may be given: #NAME,pin-sha256=…
//	https://NAME[:443]/dns-query@ADDRESS       DoH (RFC 8484); the address is where NAME is reached, since nobody is asked
//
// Those over TLS are asked first, and plain ones only for what none of them answers; whoever wants no such fallback lists
// none. On an error nothing changes. What stays on the list keeps its connections. The cache is kept; see [Resolver.Flush].
func (r *Resolver) SetUpstreams(uris []string) error {
	if len(uris) > maxUpstreams {
		return fmt.Errorf("dns: %d upstreams: at most %d", len(uris), maxUpstreams)
	}
	var list []*upstream
	for _, uri := range uris {
		u, err := r.parseUpstream(uri)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(list, func(o *upstream) bool { return o.uri == u.uri }) {
			list = append(list, u)
		}
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return net.ErrClosed
	}
	old := r.pool
	r.pool = &pool{}
	for _, u := range list {
		if old != nil {
			if i := slices.IndexFunc(old.list, func(o *upstream) bool { return o.uri == u.uri }); i >= 0 {
				u = old.list[i]
			}
		}
		r.pool.list = append(r.pool.list, u)
	}
	keep := r.pool
	r.gen++
	r.mu.Unlock()
	if old != nil {
		old.close(keep)
	}
	return nil
}

// Flush forgets all answers, and all that Reconnect does: for when the gateway has changed, and with it whose view of the
// internet this is.
func (r *Resolver) Flush() {
	r.mu.Lock()
	r.gen++
	r.cache.clear()
	r.mu.Unlock()
	r.Reconnect()
}

// Reconnect closes the connections to upstreams and forgets how well they did: for when the way to them has changed.
// Questions on their way are asked again.
func (r *Resolver) Reconnect() {
	r.mu.Lock()
	r.gen++
	p := r.pool
	r.mu.Unlock()
	for _, u := range p.list {
		u.hangUp()
		u.forgive()
	}
}

// Lookup returns the addresses of a name, for the node's own use. network is "ip", "ip4" or "ip6". A name without any is an
// error of type *net.DNSError that says so.
func (r *Resolver) Lookup(ctx context.Context, name, network string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{a}, nil
	}
	fail := func(text string, notFound bool) error {
		return &net.DNSError{Err: text, Name: name, IsNotFound: notFound, IsTemporary: !notFound}
	}
	if _, ok := dns.IsDomainName(name); !ok || name == "" {
		return nil, fail("not a domain name", true)
	}
	var qtypes []uint16
	switch network {
	case "ip":
		qtypes = []uint16{dns.TypeAAAA, dns.TypeA}
	case "ip4":
		qtypes = []uint16{dns.TypeA}
	case "ip6":
		qtypes = []uint16{dns.TypeAAAA}
	default:
		return nil, fail("unknown network "+network, false)
	}
	answers := make([]answer, len(qtypes))
	var wg sync.WaitGroup
	for i, t := range qtypes {
		wg.Go(func() {
			r.count.queries.Add(1)
			answers[i] = r.resolve(ctx, key{name: dns.CanonicalName(name), qtype: t}, netip.Addr{})
		})
	}
	wg.Wait()
	var out []netip.Addr
	text, notFound := "no such host", true
	for _, a := range answers {
		for _, rr := range a.rrs {
			if ip := addrOf(rr); ip.IsValid() {
				out = append(out, ip)
			}
		}
		if a.rcode != dns.RcodeSuccess && a.rcode != dns.RcodeNameError {
			text, notFound = "server failure", false
		}
		for _, n := range a.notes {
			text = n.text
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, &net.DNSError{Err: err.Error(), Name: name, IsTimeout: true, IsTemporary: true, UnwrapErr: err}
	}
	return nil, fail(text, notFound)
}

// addrOf returns the address in an A or AAAA record.
func addrOf(rr dns.RR) netip.Addr {
	var ip net.IP
	switch rr := rr.(type) {
	case *dns.A:
		ip = rr.A.To4()
	case *dns.AAAA:
		ip = rr.AAAA.To16()
	}
	a, _ := netip.AddrFromSlice(ip)
	return a
}

// resolve answers a question by src, whoever knows the answer.
func (r *Resolver) resolve(ctx context.Context, k key, src netip.Addr) answer {
	prefix, has64 := r.dns64(src)
	if a, ok := r.local(ctx, k, prefix, has64); ok {
		r.count.local.Add(1)
		if has64 {
			a = r.follow(ctx, k, a)
		}
		return a
	}
	if src.IsValid() && r.cfg.Recurse != nil && !r.cfg.Recurse(src) {
		r.count.refused.Add(1)
		return refused(dns.ExtendedErrorCodeProhibited, "this node answers you for names of the mesh only")
	}
	if has64 {
		if a, ok := r.synthesise(ctx, k, prefix); ok {
			return a
		}
	}
	return r.outside(ctx, k)
}

func (r *Resolver) dns64(src netip.Addr) (nat64.Prefix, bool) {
	if r.cfg.DNS64 == nil || r.cfg.WantDNS64 != nil && !r.cfg.WantDNS64(src) {
		return nat64.Prefix{}, false
	}
	p, ok := r.cfg.DNS64()
	if !ok {
		return nat64.Prefix{}, false
	}
	x, err := nat64.NewPrefix(p)
	return x, err == nil
}

func refused(code uint16, text string) answer {
	return answer{rcode: dns.RcodeRefused, notes: []note{{code, text}}}
}

// outside answers out of the cache or asks upstreams. It never fails: what went wrong is a SERVFAIL with a note.
func (r *Resolver) outside(ctx context.Context, k key) answer {
	now := time.Now()
	r.mu.Lock()
	a, state := r.cache.get(k, now)
	p := r.pool
	var f *flight
	if state != fresh {
		f = r.flyLocked(k)
	} else if r.cache.soonGone(k, now) {
		r.flyLocked(k) // nobody waits for it
	}
	r.mu.Unlock()
	if state == fresh {
		r.count.hits.Add(1)
		return a
	}
	if f == nil {
		r.count.refused.Add(1)
		return servfail(note{dns.ExtendedErrorCodeOther, "too many questions at a time: ask again in a moment"})
	}
	r.count.misses.Add(1)
	var late <-chan time.Time
	if state == stale { // RFC 8767 section 5: the client response timer
		after := staleAfter
		if p.resting(now) { // the failure recheck timer: asked all the same, but nobody waits for it
			after = 0
		}
		t := time.NewTimer(after)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-f.done:
		if f.err == nil && !(state == stale && failed(f.ans.rcode)) {
			return f.ans.clone()
		}
		if state != stale {
			return servfail(noteOf(f.err))
		}
	case <-late:
	case <-ctx.Done():
		return servfail(note{dns.ExtendedErrorCodeOther, "the question was given up"})
	}
	r.count.stale.Add(1)
	return a
}

func failed(rcode int) bool { return rcode != dns.RcodeSuccess && rcode != dns.RcodeNameError }

func servfail(n note) answer {
	return answer{rcode: dns.RcodeServerFailure, notes: []note{n}}
}

func noteOf(err error) note {
	var f *failure
	if errors.As(err, &f) {
		return f.note
	}
	return note{dns.ExtendedErrorCodeNetworkError, err.Error()}
}

// flyLocked returns the flight for k, and sends one off if there is none. nil: there are too many.
func (r *Resolver) flyLocked(k key) *flight {
	if f := r.flights[k]; f != nil {
		r.count.coalesced.Add(1)
		return f
	}
	if len(r.flights) >= maxFlights || r.closed {
		return nil
	}
	f := &flight{done: make(chan struct{})}
	r.flights[k] = f
	r.wg.Go(func() { r.fly(k, f) })
	return f
}

// fly asks upstreams until one answers, time is up, or all have failed. When they change in the meantime, it asks anew.
func (r *Resolver) fly(k key, f *flight) {
	ctx, cancel := context.WithTimeout(r.ctx, askTime)
	defer cancel()
	for {
		r.mu.Lock()
		p, gen := r.pool, r.gen
		r.mu.Unlock()
		ans, err := r.ask(ctx, p, k)
		r.mu.Lock()
		if err != nil && gen != r.gen && ctx.Err() == nil {
			r.mu.Unlock()
			continue
		}
		if err == nil && gen == r.gen {
			r.cache.put(k, ans, time.Now())
		}
		f.ans, f.err = ans, err
		delete(r.flights, k)
		r.mu.Unlock()
		close(f.done)
		return
	}
}

// ask asks upstreams once and makes of their message what may be passed on.
func (r *Resolver) ask(ctx context.Context, p *pool, k key) (answer, error) {
	why := ""
	if r.cfg.Why != nil {
		why = r.cfg.Why()
	}
	if len(p.list) == 0 {
		if why == "" {
			why = "nobody to ask: no upstream DNS server is set"
		}
		return answer{}, &failure{note{dns.ExtendedErrorCodeNotReady, why}}
	}
	m, u, err := p.ask(ctx, r, k)
	if err != nil {
		text := "no DNS server answers: " + err.Error()
		if why != "" {
			text = why + " (" + text + ")"
		}
		return answer{}, &failure{note{dns.ExtendedErrorCodeNoReachableAuthority, text}}
	}
	a := answer{rcode: m.Rcode, authentic: m.AuthenticatedData && u.encrypted(), notes: notesOf(m)}
	a.rrs = r.guard(k, keep(m.Answer, k), &a.notes)
	for _, rr := range keep(m.Ns, k) {
		switch rr.Header().Rrtype {
		case dns.TypeSOA:
			a.ns = append(a.ns, rr)
		case dns.TypeNSEC, dns.TypeNSEC3, dns.TypeRRSIG, dns.TypeDS:
			if k.do {
				a.ns = append(a.ns, rr)
			}
		}
	}
	return a, nil
}

// keep drops records that no answer to a question holds: of other classes, and signatures for those who want none.
func keep(rrs []dns.RR, k key) []dns.RR {
	var out []dns.RR
	for _, rr := range rrs {
		h := rr.Header()
		if h.Class != dns.ClassINET || h.Rrtype == dns.TypeOPT || h.Rrtype == dns.TypeTSIG || h.Rrtype == dns.TypeSIG {
			continue
		}
		if h.Rrtype == dns.TypeRRSIG && !k.do && k.qtype != dns.TypeRRSIG {
			continue
		}
		if strings.EqualFold(h.Name, k.name) {
			h.Name = k.name // not in the letters of 0x20
		}
		out = append(out, rr)
	}
	return out
}

// notesOf returns the first of an upstream's extended errors, in letters that are safe to print.
func notesOf(m *dns.Msg) []note {
	opt := m.IsEdns0()
	if opt == nil {
		return nil
	}
	for _, o := range opt.Option {
		if e, ok := o.(*dns.EDNS0_EDE); ok {
			text := strings.Map(func(c rune) rune {
				if c < ' ' || c == 0x7f || c > 0xffff {
					return -1
				}
				return c
			}, strings.ToValidUTF8(e.ExtraText, ""))
			return []note{{e.InfoCode, "says the server: " + cut(text, 120)}}
		}
	}
	return nil
}

// guard strips addresses that no name of the outside may have.
func (r *Resolver) guard(k key, rrs []dns.RR, notes *[]note) []dns.RR {
	stripped := 0
	out := slices.DeleteFunc(rrs, func(rr dns.RR) bool {
		bad := r.guardRR(rr)
		if bad {
			stripped++
		}
		return bad
	})
	if stripped > 0 {
		r.count.guarded.Add(1)
		*notes = append(*notes, note{dns.ExtendedErrorCodeBlocked,
			fmt.Sprintf("%s is outside, but claims an address in here: removed (DNS rebinding)", strings.TrimSuffix(k.name, "."))})
	}
	return out
}

// guardRR reports whether a record must go. Hints in SVCB and HTTPS records (RFC 9460 section 7.3) are addresses too; a
// record is dropped whole for one, since clients do without.
func (r *Resolver) guardRR(rr dns.RR) bool {
	var values []dns.SVCBKeyValue
	switch rr := rr.(type) {
	case *dns.A, *dns.AAAA:
		return r.guarded(addrOf(rr))
	case *dns.SVCB:
		values = rr.Value
	case *dns.HTTPS:
		values = rr.Value
	}
	for _, v := range values {
		var hints []net.IP
		switch v := v.(type) {
		case *dns.SVCBIPv4Hint:
			hints = v.Hint
		case *dns.SVCBIPv6Hint:
			hints = v.Hint
		}
		for _, ip := range hints {
			if a, ok := netip.AddrFromSlice(ip); !ok || r.guarded(a) {
				return true
			}
		}
	}
	return false
}

func (r *Resolver) guarded(a netip.Addr) bool {
	a = a.Unmap()
	if x, err := nat64.NewPrefix(nat64.WellKnown); err == nil && x.Prefix().Contains(a) {
		b := a.As16()
		a = netip.AddrFrom4([4]byte(b[12:])) // whatever it is: a translator would go there
	}
	return slices.ContainsFunc(r.cfg.Guarded, func(p netip.Prefix) bool { return p.Contains(a) })
}

// counters are what Stats shows.
type counters struct {
	queries, local, hits, stale, misses, coalesced, refused, limited, malformed, guarded, synthesised atomic.Uint64
}

// Stats are sums since the start, but for what is said to be otherwise.
type Stats struct {
	Queries     uint64 `json:"queries"`
	Local       uint64 `json:"local"`       // answered as names of the mesh or of nobody
	Hits        uint64 `json:"hits"`        // answered out of the cache
	Stale       uint64 `json:"stale"`       // of an expired answer, because nobody could be asked
	Misses      uint64 `json:"misses"`      // asked of others
	Coalesced   uint64 `json:"coalesced"`   // of these, while the same was being asked already
	Refused     uint64 `json:"refused"`     // forbidden, unsupported, or too many at a time
	Limited     uint64 `json:"limited"`     // dropped: more than the rate of one client
	Malformed   uint64 `json:"malformed"`   // no question at all
	Guarded     uint64 `json:"guarded"`     // answers of which addresses were stripped (DNS rebinding)
	Synthesised uint64 `json:"synthesised"` // by DNS64

	CacheEntries int             `json:"cache_entries"` // now
	CacheBytes   int64           `json:"cache_bytes"`   // now
	Upstreams    []UpstreamStats `json:"upstreams"`
}

// UpstreamStats is how one upstream does.
type UpstreamStats struct {
	URI      string        `json:"uri"`
	RTT      time.Duration `json:"rtt_ns"` // smoothed; 0: not known yet
	Sent     uint64        `json:"sent"`
	Failures uint64        `json:"failures"`
	Resting  bool          `json:"resting"` // asked last, because it has failed
	Error    string        `json:"error,omitempty"`
}

// Stats returns the counters.
func (r *Resolver) Stats() Stats {
	c := &r.count
	s := Stats{
		Queries: c.queries.Load(), Local: c.local.Load(), Hits: c.hits.Load(), Stale: c.stale.Load(), Misses: c.misses.Load(),
		Coalesced: c.coalesced.Load(), Refused: c.refused.Load(), Limited: c.limited.Load(), Malformed: c.malformed.Load(),
		Guarded: c.guarded.Load(), Synthesised: c.synthesised.Load(),
	}
	r.mu.Lock()
	s.CacheEntries, s.CacheBytes = r.cache.stats()
	p := r.pool
	r.mu.Unlock()
	for _, u := range p.list {
		s.Upstreams = append(s.Upstreams, u.stats(time.Now()))
	}
	return s
}
