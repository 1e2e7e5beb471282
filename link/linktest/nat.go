package linktest

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"weft/forward"
)

// Router joins a segment to another one, towards which it leads: hosts on the inner one reach the outer one, and their answers
// find back. IPv4 goes through a NAT, IPv6 through a firewall that lets in what answers.
type Router struct {
	n        *Network
	in, out  *Segment
	addr     netip.Addr // IPv4, on the outer segment
	kind     NAT
	nextPort uint16
	flows    []*flow
}

// NAT says how a router behaves (RFC 4787).
type NAT struct {
	Timeout   time.Duration // of a mapping that nothing used; zero: 2 minutes
	Symmetric bool          // a mapping for each destination, else one for each inner address and port
	NoUDP     bool          // lets nothing through
	No6       bool          // knows no IPv6
}

// flow is what the router remembers of a host's traffic to one place.
type flow struct {
	inner, outer netip.AddrPort // the host as it is and as others see it
	far          netip.AddrPort
	used         time.Time
}

// Router makes a way from segment in to segment out. A segment has one router at most.
func (n *Network) Router(in, out *Segment, kind NAT) *Router {
	n.mu.Lock()
	defer n.mu.Unlock()
	if kind.Timeout == 0 {
		kind.Timeout = 2 * time.Minute
	}
	out.routers++
	r := &Router{n: n, in: in, out: out, kind: kind, nextPort: 20000 + uint16(n.rand.UintN(10000)),
		addr: netip.AddrFrom4([4]byte{10, byte(out.index), 250, byte(out.routers)})}
	in.router = r
	out.behind = append(out.behind, r)
	return r
}

// Addr4 returns the host's IPv4 address on a segment.
func (h *Host) Addr4(s *Segment) netip.Addr {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	return h.portOn(s).addrs[2].Addr()
}

// Set changes the router's behaviour; what it remembers stays.
func (r *Router) Set(kind NAT) {
	r.n.mu.Lock()
	defer r.n.mu.Unlock()
	if kind.Timeout == 0 {
		kind.Timeout = 2 * time.Minute
	}
	r.kind = kind
}

// Reboot makes the router forget everything.
func (r *Router) Reboot() {
	r.n.mu.Lock()
	defer r.n.mu.Unlock()
	r.flows = nil
	r.nextPort += 1000
}

// live drops what timed out.
func (r *Router) live() []*flow {
	now := time.Now()
	r.flows = slices.DeleteFunc(r.flows, func(f *flow) bool { return now.Sub(f.used) > r.kind.Timeout })
	return r.flows
}

// outward carries a datagram from an inner host to the outer segment and what lies behind that.
func (r *Router) outward(from *port, s *socket, far netip.AddrPort, d []byte) (refused bool) {
	if r.kind.NoUDP || r.kind.No6 && far.Addr().Is6() || far.Addr() == r.addr { // no hairpin
		return false
	}
	at, ok := r.in.leaves(from)
	if !ok {
		return false
	}
	inner := netip.AddrPortFrom(from.addrs[2].Addr(), s.outside)
	if far.Addr().Is6() {
		inner = netip.AddrPortFrom(from.addrs[1].Addr(), s.outside)
	}
	var f *flow
	outer := netip.AddrPort{}
	for _, o := range r.live() {
		if o.inner != inner {
			continue
		}
		if o.far == far {
			f = o
		}
		if !r.kind.Symmetric || o.far == far {
			outer = o.outer
		}
	}
	if f == nil {
		switch {
		case far.Addr().Is6():
			outer = inner
		case !outer.IsValid():
			r.nextPort++
			outer = netip.AddrPortFrom(r.addr, r.nextPort)
		}
		f = &flow{inner: inner, outer: outer, far: far}
		r.flows = append(r.flows, f)
	}
	f.used = time.Now()
	return r.out.arrive(f.outer, far, at, d)
}

// inward brings a datagram to the host that asked for it.
func (r *Router) inward(from, to netip.AddrPort, at time.Time, d []byte) {
	for _, f := range r.live() {
		if f.outer == to && f.far == from && !r.kind.NoUDP {
			f.used = time.Now()
			r.in.arrive(from, f.inner, at, d)
			return
		}
	}
}

// leaves returns when a datagram is across the segment; ok is false when it is lost.
func (s *Segment) leaves(from *port) (time.Time, bool) {
	if !from.plugged || s.q.Silence || s.n.rand.Float64() < s.q.Loss {
		return time.Time{}, false
	}
	return time.Now().Add(s.q.Delay + from.wait), true
}

// arrive delivers a datagram that came in through a router.
func (s *Segment) arrive(from, to netip.AddrPort, at time.Time, d []byte) (refused bool) {
	if s.q.Silence || s.n.rand.Float64() < s.q.Loss {
		return false
	}
	at = at.Add(s.q.Delay)
	for _, q := range s.ports {
		if q.plugged && slices.ContainsFunc(q.addrs, func(a netip.Prefix) bool { return a.Addr() == to.Addr() }) {
			for _, o := range q.host.sockets {
				if o.outside == to.Port() {
					s.n.seq++
					o.inbox.put(item{at, s.n.seq, slices.Clone(d), forward.Endpoint{IP: from.Addr().As16(), Port: from.Port()}})
					return false
				}
			}
			return !q.host.stale[to.Port()]
		}
	}
	for _, r := range s.behind {
		if r.addr == to.Addr() || r.in.holds(to.Addr()) {
			r.inward(from, to, at, d)
			return false
		}
	}
	return false
}

func (s *Segment) holds(a netip.Addr) bool {
	return slices.ContainsFunc(s.ports, func(p *port) bool {
		return a.Is6() && slices.ContainsFunc(p.addrs, func(x netip.Prefix) bool { return x.Addr() == a })
	})
}

// String names the router by its outer address.
func (r *Router) String() string { return fmt.Sprintf("router %v", r.addr) }
