package dns

import (
	"context"
	"net/netip"
	"slices"

	"github.com/miekg/dns"

	"weft/gateway/nat64"
)

// noSOA is the TTL of what is synthesised when no SOA says how long there is no AAAA (RFC 6147 section 5.1.7).
const noSOA = 600

// synthesise answers a question of an IPv6-only client (RFC 6147). ok is false when DNS64 has nothing to do with it.
func (r *Resolver) synthesise(ctx context.Context, k key, prefix nat64.Prefix) (answer, bool) {
	switch {
	case k.qtype != dns.TypeAAAA || k.cd && k.do: // section 5.5: who validates cannot use what is made up
		return answer{}, false
	}
	six := r.outside(ctx, k)
	if six.rcode == dns.RcodeNameError {
		return six, true
	}
	usable := slices.DeleteFunc(slices.Clone(six.rrs), func(rr dns.RR) bool { return excluded(rr) })
	if !failed(six.rcode) && slices.ContainsFunc(usable, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeAAAA }) {
		six.rrs = usable
		return six, true
	}
	k4 := k
	k4.qtype = dns.TypeA
	four := r.outside(ctx, k4)
	if failed(four.rcode) {
		return six, true
	}
	ttl := uint32(noSOA)
	if i := slices.IndexFunc(six.ns, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeSOA }); i >= 0 && !failed(six.rcode) {
		ttl = min(six.ns[i].Header().Ttl, six.ns[i].(*dns.SOA).Minttl)
	}
	made := answer{notes: four.notes}
	any := false
	for _, rr := range four.rrs {
		switch rr := rr.(type) {
		case *dns.A:
			v6, ok := prefix.Embed(addrOf(rr))
			if !ok {
				continue // a private address: no translator goes there
			}
			h := rr.Hdr
			h.Rrtype, h.Ttl = dns.TypeAAAA, min(h.Ttl, ttl)
			made.rrs = append(made.rrs, &dns.AAAA{Hdr: h, AAAA: v6.AsSlice()})
			any = true
		case *dns.CNAME, *dns.DNAME:
			made.rrs = append(made.rrs, rr)
		}
	}
	if !any {
		if failed(six.rcode) { // section 5.1.2: as if it had been empty
			return answer{notes: six.notes, ns: four.ns}, true
		}
		six.rrs = usable
		return six, true
	}
	r.count.synthesised.Add(1)
	made.notes = append(made.notes, note{dns.ExtendedErrorCodeSynthesized, "an IPv4 address, through this network's NAT64"})
	return made, true
}

// excluded reports whether a record is an AAAA that stands for an IPv4 address and leads nowhere (section 5.1.4).
func excluded(rr dns.RR) bool {
	v6, ok := rr.(*dns.AAAA)
	if !ok {
		return false
	}
	a, ok := netip.AddrFromSlice(v6.AAAA.To16())
	return !ok || a.Is4In6()
}

// follow completes the answer for a reverse name in the prefix with the PTR of the IPv4 address (section 5.3.1).
func (r *Resolver) follow(ctx context.Context, k key, a answer) answer {
	if k.qtype != dns.TypePTR || len(a.rrs) != 1 {
		return a
	}
	alias, ok := a.rrs[0].(*dns.CNAME)
	if !ok {
		return a
	}
	k.name = alias.Target
	b, ok := r.local(ctx, k, nat64.Prefix{}, false)
	if !ok {
		b = r.outside(ctx, k)
	}
	b.rrs = append([]dns.RR{alias}, b.rrs...)
	b.authentic, b.authoritative = false, false
	return b
}
