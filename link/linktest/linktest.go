// Package linktest is the in-memory twin of the network below the mesh: hosts with interfaces on segments that delay,
// lose, reorder, fall silent or lose their carrier. It obeys the clock of the time package, so that inside
// testing/synctest whole nodes run in virtual time.
//
// It is for tests and simulations. Everything is safe for concurrent use, and no goroutine is started: datagrams wait in
// the receiver's queue until they are due.
package linktest

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weft/forward"
	"weft/link"
)

// Network holds hosts and segments.
type Network struct {
	mu       sync.Mutex // guards everything in the network
	rand     *rand.Rand
	hosts    []*Host
	segments []*Segment
	seq      uint64
	sent     uint64
	bytes    uint64
}

// New makes an empty network; seed decides what is lost.
func New(seed uint64) *Network {
	return &Network{rand: rand.New(rand.NewPCG(seed, 0))}
}

// Traffic returns how many datagrams were sent so far, and their bytes with 48 of IPv6 and UDP header each.
func (n *Network) Traffic() (datagrams, bytes uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sent, n.bytes
}

// Quality is what a segment does to datagrams.
type Quality struct {
	Delay   time.Duration
	Jitter  time.Duration // added at random: datagrams overtake one another
	Loss    float64       // 0 to 1
	MTU     int           // of the interfaces; zero: 1500
	Silence bool          // everything is lost and no interface notices
	Rate    int64         // bits/s that each host's interface sends, with IPv6 and UDP headers; zero: unlimited
	Buffer  time.Duration // what may wait for that; more is lost. Zero: 100 ms
}

// Segment is a LAN or a cable.
type Segment struct {
	n       *Network
	index   int
	q       Quality
	ports   []*port
	blocked map[[2]*Host]bool
	router  *Router   // the way out
	behind  []*Router // those that lead here
	routers int
}

// Segment adds a segment.
func (n *Network) Segment(q Quality) *Segment {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := &Segment{n: n, index: len(n.segments) + 1, q: q, blocked: map[[2]*Host]bool{}}
	n.segments = append(n.segments, s)
	return s
}

// Set changes the segment's quality.
func (s *Segment) Set(q Quality) {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	s.q = q
}

// Block loses everything from one host to another, or stops doing so.
func (s *Segment) Block(from, to *Host, block bool) {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	s.blocked[[2]*Host{from, to}] = block
}

// Host is a computer on the network. It is the link.Underlay of the nodes that run on it.
type Host struct {
	n        *Network
	index    int
	ports    []*port
	sockets  []*socket
	beacons  []*beacons
	watchers map[*func([]int)]struct{}
	nextPort uint16
	stale    map[uint16]bool // ports that a NAT forgot: silent
}

// port is a host's interface on a segment.
type port struct {
	host    *Host
	seg     *Segment
	index   int
	plugged bool
	addrs   []netip.Prefix
	free    time.Time     // when the line has sent what was given to it
	wait    time.Duration // of the datagram that is being sent
}

// line puts a datagram on the line; it reports whether there is room.
func (p *port) line(size int) bool {
	p.wait = 0
	rate := p.seg.q.Rate
	if rate == 0 {
		return true
	}
	now := time.Now()
	if p.free.Before(now) {
		p.free = now
	}
	if p.free.Sub(now) > cmp.Or(p.seg.q.Buffer, 100*time.Millisecond) {
		return false
	}
	p.free = p.free.Add(time.Duration(int64(size+48) * 8 * int64(time.Second) / rate))
	p.wait = p.free.Sub(now)
	return true
}

// Host adds a host with an interface on each of the segments.
func (n *Network) Host(on ...*Segment) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := &Host{n: n, index: len(n.hosts) + 1, watchers: map[*func([]int)]struct{}{}, nextPort: 40000, stale: map[uint16]bool{}}
	n.hosts = append(n.hosts, h)
	for _, s := range on {
		p := &port{host: h, seg: s, index: len(h.ports) + 1, plugged: true}
		p.addrs = []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("fe80::%x:%x/64", h.index, s.index)),
			netip.MustParsePrefix(fmt.Sprintf("fd00:0:0:%x::%x/64", s.index, h.index)),
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(s.index), byte(h.index >> 8), byte(h.index)}), 16),
		}
		h.ports = append(h.ports, p)
		s.ports = append(s.ports, p)
	}
	return h
}

// Addr returns the host's global IPv6 address on a segment.
func (h *Host) Addr(s *Segment) netip.Addr {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	return h.portOn(s).addrs[1].Addr()
}

func (h *Host) portOn(s *Segment) *port {
	for _, p := range h.ports {
		if p.seg == s {
			return p
		}
	}
	panic("linktest: the host has no interface on that segment")
}

// Plug connects or disconnects the host's cable to a segment; the interface notices.
func (h *Host) Plug(s *Segment, in bool) {
	h.n.mu.Lock()
	p := h.portOn(s)
	p.plugged = in
	var watchers []func([]int)
	for w := range h.watchers {
		watchers = append(watchers, *w)
	}
	h.n.mu.Unlock()
	var down []int
	if !in {
		down = []int{p.index}
	}
	for _, w := range watchers {
		w(down)
	}
}

// Renumber moves all of the host's open sockets to new ports without telling anybody, as a NAT does that forgot.
func (h *Host) Renumber() {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	for _, s := range h.sockets {
		h.nextPort++
		h.stale[s.outside] = true
		s.outside = h.nextPort
	}
}

// Crash kills the programs on the host as kill -9 does: their ports are closed, and they say nothing any more. What
// still holds the sockets sends and receives nothing.
func (h *Host) Crash() {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	for _, s := range h.sockets {
		s.dead = true
	}
	for _, b := range h.beacons {
		b.dead = true
	}
	h.sockets, h.beacons = nil, nil
	clear(h.watchers)
}

// Interfaces implements link.Underlay.
func (h *Host) Interfaces() ([]link.Interface, error) {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	var out []link.Interface
	for _, p := range h.ports {
		out = append(out, p.describe())
	}
	return out, nil
}

func (p *port) describe() link.Interface {
	return link.Interface{
		Index: p.index, Name: fmt.Sprintf("eth%d", p.index-1), MTU: cmp.Or(p.seg.q.MTU, 1500), Running: p.plugged, Multicast: true,
		Addrs: slices.Clone(p.addrs),
	}
}

// Route implements link.Underlay.
func (h *Host) Route(to forward.Endpoint) (link.Interface, bool, error) {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	p, onLink := h.route(to)
	if p == nil {
		return link.Interface{}, false, fmt.Errorf("no way to %s", to.AddrPort().Addr())
	}
	return p.describe(), onLink, nil
}

func (h *Host) route(to forward.Endpoint) (_ *port, onLink bool) {
	dest := netip.AddrFrom16(to.IP).Unmap()
	for _, p := range h.ports {
		if to.Scope != 0 && p.index != int(to.Scope) || !p.plugged {
			continue
		}
		for _, a := range p.addrs {
			if a.Contains(dest) && (!dest.IsLinkLocalUnicast() || to.Scope != 0) {
				return p, true
			}
		}
	}
	for _, p := range h.ports {
		behind := slices.ContainsFunc(p.seg.behind, func(r *Router) bool { return r.in.holds(dest) })
		if to.Scope == 0 && p.plugged && (p.seg.router != nil || behind) && !dest.IsLinkLocalUnicast() {
			return p, false
		}
	}
	return nil, false
}

// Watch implements link.Underlay.
func (h *Host) Watch(ctx context.Context, changed func(down []int)) error {
	h.n.mu.Lock()
	h.watchers[&changed] = struct{}{}
	h.n.mu.Unlock()
	<-ctx.Done()
	h.n.mu.Lock()
	delete(h.watchers, &changed)
	h.n.mu.Unlock()
	return nil
}

// Open implements link.Underlay.
func (h *Host) Open(at netip.AddrPort, unreachable func(forward.Endpoint)) (link.Socket, error) {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	portNo := at.Port()
	if portNo == 0 {
		h.nextPort++
		portNo = h.nextPort
	}
	for _, s := range h.sockets {
		if s.portNo == portNo {
			return nil, fmt.Errorf("port %d is in use", portNo)
		}
	}
	s := &socket{host: h, portNo: portNo, outside: portNo, unreachable: unreachable, inbox: newInbox()}
	h.sockets = append(h.sockets, s)
	return s, nil
}

// OpenBeacons implements link.Underlay.
func (h *Host) OpenBeacons() (link.Beacons, error) {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	b := &beacons{host: h, joined: map[int]bool{}, inbox: newInbox()}
	h.beacons = append(h.beacons, b)
	return b, nil
}

// due returns when a datagram sent now arrives; ok is false when it is lost.
func (s *Segment) due(from, to *port) (at time.Time, ok bool) {
	if !from.plugged || !to.plugged || s.q.Silence || s.blocked[[2]*Host{from.host, to.host}] || s.n.rand.Float64() < s.q.Loss {
		return time.Time{}, false
	}
	d := s.q.Delay + from.wait
	if s.q.Jitter > 0 {
		d += time.Duration(s.n.rand.Int64N(int64(s.q.Jitter)))
	}
	return time.Now().Add(d), true
}

type socket struct {
	host        *Host
	portNo      uint16 // as its owner knows it
	outside     uint16 // as others see it
	unreachable func(forward.Endpoint)
	inbox       *inbox
	dead        bool // guarded by Network.mu
}

func (s *socket) LocalPort() uint16 { return s.portNo }

func (s *socket) Close() error {
	s.host.n.mu.Lock()
	s.host.sockets = slices.DeleteFunc(s.host.sockets, func(o *socket) bool { return o == s })
	s.host.n.mu.Unlock()
	s.inbox.close()
	return nil
}

func (s *socket) Send(to forward.Endpoint, buf []byte, seg int) error {
	n := s.host.n
	n.mu.Lock()
	if s.dead {
		n.mu.Unlock()
		return nil
	}
	refused := false
	out, _ := s.host.route(to)
	if out != nil {
		for at := 0; at < len(buf); at += seg {
			d := buf[at:min(at+seg, len(buf))]
			n.sent++
			n.bytes += uint64(len(d)) + 48
			if out.line(len(d)) {
				refused = out.carry(s, to, d) || refused
			}
		}
	}
	n.mu.Unlock()
	if out == nil {
		return errors.New("network is unreachable")
	}
	if refused && s.unreachable != nil {
		s.unreachable(to)
	}
	return nil
}

// carry takes one datagram to its host; it reports whether the host is there and has no such port.
func (p *port) carry(from *socket, to forward.Endpoint, d []byte) (refused bool) {
	dest := netip.AddrFrom16(to.IP).Unmap()
	for _, q := range p.seg.ports {
		which := slices.IndexFunc(q.addrs, func(a netip.Prefix) bool { return a.Addr() == dest })
		if which < 0 {
			continue
		}
		at, ok := p.seg.due(p, q)
		if !ok || len(d)+48 > cmp.Or(p.seg.q.MTU, 1500) {
			return false
		}
		for _, s := range q.host.sockets {
			if s.outside == to.Port {
				e := forward.Endpoint{IP: p.addrs[which].Addr().As16(), Port: from.outside}
				if which == 0 {
					e.Scope = uint32(q.index)
				}
				p.seg.n.seq++
				s.inbox.put(item{at, p.seg.n.seq, slices.Clone(d), e})
				return false
			}
		}
		return !q.host.stale[to.Port]
	}
	far := netip.AddrPortFrom(dest, to.Port)
	for _, r := range p.seg.behind { // back to where a router's flow comes from
		if at, ok := p.seg.leaves(p); ok && (r.addr == dest || r.in.holds(dest)) {
			own := p.addrs[2].Addr()
			if dest.Is6() {
				own = p.addrs[1].Addr()
			}
			r.inward(netip.AddrPortFrom(own, from.outside), far, at, d)
			return false
		}
	}
	if p.seg.router != nil && to.Scope == 0 {
		return p.seg.router.outward(p, from, far, d)
	}
	return false
}

func (s *socket) Receive(msgs []link.Message) (int, error) {
	for n := 0; ; {
		it, ok, err := s.inbox.take(n == 0)
		if err != nil {
			return 0, err
		}
		if !ok {
			return n, nil
		}
		m := &msgs[n]
		m.N = copy(m.Buf, it.b)
		m.Seg, m.From = m.N, it.from
		if n++; n == len(msgs) {
			return n, nil
		}
	}
}

type beacons struct {
	host   *Host
	joined map[int]bool // guarded by Network.mu
	dead   bool         // guarded by Network.mu
	inbox  *inbox
}

func (b *beacons) Join(iface int) error {
	b.host.n.mu.Lock()
	defer b.host.n.mu.Unlock()
	b.joined[iface] = true
	return nil
}

func (b *beacons) Leave(iface int) {
	b.host.n.mu.Lock()
	defer b.host.n.mu.Unlock()
	delete(b.joined, iface)
}

func (b *beacons) Send(iface int, msg []byte) error {
	n := b.host.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if b.dead {
		return nil
	}
	if iface < 1 || iface > len(b.host.ports) {
		return errors.New("no such interface")
	}
	p := b.host.ports[iface-1]
	n.sent++
	n.bytes += uint64(len(msg)) + 48
	if !p.line(len(msg)) {
		return nil
	}
	for _, q := range p.seg.ports {
		at, ok := p.seg.due(p, q)
		if !ok {
			continue
		}
		for _, o := range q.host.beacons {
			if o.joined[q.index] {
				n.seq++
				o.inbox.put(item{at, n.seq, slices.Clone(msg), forward.Endpoint{IP: p.addrs[0].Addr().As16(), Scope: uint32(q.index), Port: 1}})
			}
		}
	}
	return nil
}

func (b *beacons) Receive(buf []byte) (int, forward.Endpoint, error) {
	it, _, err := b.inbox.take(true)
	if err != nil {
		return 0, forward.Endpoint{}, err
	}
	return copy(buf, it.b), it.from, nil
}

func (b *beacons) Close() error {
	b.host.n.mu.Lock()
	b.host.beacons = slices.DeleteFunc(b.host.beacons, func(o *beacons) bool { return o == b })
	b.host.n.mu.Unlock()
	b.inbox.close()
	return nil
}

// maxInbox is what a socket's buffer holds.
const maxInbox = 4096

type item struct {
	at   time.Time
	seq  uint64
	b    []byte
	from forward.Endpoint
}

type items []item

func (q items) Len() int { return len(q) }
func (q items) Less(i, j int) bool {
	if !q[i].at.Equal(q[j].at) {
		return q[i].at.Before(q[j].at)
	}
	return q[i].seq < q[j].seq
}
func (q items) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *items) Push(x any)   { *q = append(*q, x.(item)) }
func (q *items) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

// inbox holds datagrams under way to a socket, in order of arrival.
type inbox struct {
	wake   chan struct{}
	closed chan struct{}
	once   sync.Once

	mu sync.Mutex // guards q
	q  items
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1), closed: make(chan struct{})} }

func (b *inbox) close() { b.once.Do(func() { close(b.closed) }) }

func (b *inbox) put(it item) {
	b.mu.Lock()
	if len(b.q) < maxInbox {
		heap.Push(&b.q, it)
	}
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// take returns the next datagram that has arrived, waiting for one if need be.
func (b *inbox) take(wait bool) (it item, ok bool, err error) {
	for {
		select {
		case <-b.closed:
			return it, false, net.ErrClosed
		default:
		}
		var due <-chan time.Time
		b.mu.Lock()
		if len(b.q) > 0 {
			d := time.Until(b.q[0].at)
			if d <= 0 {
				it = heap.Pop(&b.q).(item)
				b.mu.Unlock()
				return it, true, nil
			}
			due = time.After(d)
		}
		b.mu.Unlock()
		if !wait {
			return it, false, nil
		}
		select {
		case <-b.wake:
		case <-due:
		case <-b.closed:
		}
	}
}
