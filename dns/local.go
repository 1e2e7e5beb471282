package dns

import (
	"context"
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"weft/gateway/nat64"
	"weft/ident"
)

// What is answered here and asked of nobody:
//
//	the zones of the mesh                          by Config.Names
//	localhost                                      RFC 6761 section 6.3
//	invalid, test                                  RFC 6761: there are none
//	onion, local, alt                              RFC 7686, 6762, 9476: other protocols' names, which must not leak
//	home.arpa                                      RFC 8375: this home's, and nobody here knows it
//	resolver.arpa                                  RFC 9462: would send clients past this resolver
//	ipv4only.arpa                                  RFC 8880, when there is DNS64
//	reverse names of the mesh, of private and      by Config.Reverse; RFC 6303, 7793: nobody outside knows them
//	of special networks, and of the DNS64 prefix

// reverseZones are those of RFC 6303 section 4, RFC 7793 and the mesh.
func reverseZones() []netip.Prefix {
	return prefixes(ident.MeshPrefix.String(),
		"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16",
		"192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "255.255.255.255/32",
		"::/128", "::1/128", "fd00::/8", "fe80::/10", "2001:db8::/32")
}

// local answers what is ours to answer.
func (r *Resolver) local(ctx context.Context, k key, prefix nat64.Prefix, has64 bool) (answer, bool) {
	for _, z := range r.zones {
		if dns.IsSubDomain(z, k.name) {
			return r.meshName(ctx, k, z), true
		}
	}
	labels := dns.SplitDomainName(k.name)
	n := len(labels)
	if n == 0 {
		return answer{}, false
	}
	switch last := labels[n-1]; last {
	case "localhost":
		switch k.qtype {
		case dns.TypeA:
			return found(addrRR(k.name, netip.MustParseAddr("127.0.0.1"))), true
		case dns.TypeAAAA:
			return found(addrRR(k.name, netip.IPv6Loopback())), true
		}
		return empty(k, "localhost."), true
	case "invalid", "test", "onion", "local", "alt":
		if n == 1 { // RFC 8020: what is below would not be there either, but the zone itself is
			return empty(k, last+"."), true
		}
		return nothing(last + "."), true
	case "arpa":
		return r.arpa(k, labels, prefix, has64)
	}
	return answer{}, false
}

// meshName answers for a name in a zone of the mesh.
func (r *Resolver) meshName(ctx context.Context, k key, zone string) answer {
	if k.name == zone && k.qtype == dns.TypeSOA {
		return found(soa(zone))
	}
	ctx, cancel := context.WithTimeout(ctx, nameTime)
	defer cancel()
	addrs, ok := r.cfg.Names(ctx, strings.TrimSuffix(k.name, "."))
	switch {
	case !ok && ctx.Err() != nil:
		return servfail(note{dns.ExtendedErrorCodeOther, "the mesh has not said in time what this name is: ask again in a moment"})
	case !ok && k.name != zone:
		return nothing(zone)
	}
	var a answer
	for _, addr := range addrs {
		addr = addr.Unmap().WithZone("")
		if rr := addrRR(k.name, addr); rr.Header().Rrtype == k.qtype {
			a.rrs = append(a.rrs, rr)
		}
	}
	if len(a.rrs) == 0 {
		return empty(k, zone)
	}
	a.authoritative = true
	return a
}

// arpa answers for reverse names and the other special names below arpa.
func (r *Resolver) arpa(k key, labels []string, prefix nat64.Prefix, has64 bool) (answer, bool) {
	n := len(labels)
	if n < 2 {
		return answer{}, false
	}
	switch zone := labels[n-2] + ".arpa."; zone {
	case "home.arpa.":
		switch {
		case n > 2:
			return nothing(zone), true
		case k.qtype == dns.TypeDS: // RFC 8375 section 4: the proof that it is not signed is outside
			return answer{}, false
		}
		return empty(k, zone), true
	case "resolver.arpa.":
		return empty(k, zone), true
	case "ipv4only.arpa.":
		if !has64 {
			return answer{}, false // maybe the gateway's own line has NAT64
		}
		return only4(k, n, prefix), true
	}
	addr, bits, ok := parseReverse(labels)
	if !ok {
		return answer{}, false
	}
	step := 4
	if addr.Is4() {
		step = 8
	}
	zones := slices.Clip(r.special)
	if has64 && addr.Is6() {
		zones = append(zones, prefix.Prefix())
	}
	for _, z := range zones {
		cut := (z.Bits() + step - 1) / step * step // zones begin at labels
		if bits < cut || !z.Contains(addr) {
			continue
		}
		p, err := addr.Prefix(cut)
		if err != nil {
			continue
		}
		return r.reverse(k, addr, bits, reverseName(p), z, prefix, has64), true
	}
	return answer{}, false
}

// reverse answers for a name in a reverse zone.
func (r *Resolver) reverse(k key, addr netip.Addr, bits int, zone string, z netip.Prefix, prefix nat64.Prefix, has64 bool) answer {
	if k.name == zone && k.qtype == dns.TypeSOA {
		return found(soa(zone))
	}
	if bits < addr.BitLen() {
		return empty(k, zone) // names below may be there: not NXDOMAIN (RFC 8020)
	}
	name := ""
	switch {
	case addr.IsLoopback():
		name = "localhost."
	case ident.MeshPrefix.Contains(addr):
		if r.cfg.Reverse != nil {
			if s, ok := r.cfg.Reverse(addr); ok {
				name = dns.CanonicalName(s)
				if _, ok := dns.IsDomainName(name); !ok {
					name = ""
				}
			}
		}
	case has64 && z == prefix.Prefix():
		// RFC 6147 section 5.3.1, the second way: the name that the IPv4 address has.
		v4, ok := prefix.Extract(addr)
		if !ok {
			return nothing(zone)
		}
		to := reverseName(netip.PrefixFrom(v4, 32))
		return answer{authoritative: true, rrs: []dns.RR{&dns.CNAME{Hdr: header(k.name, dns.TypeCNAME), Target: to}}}
	}
	if name == "" {
		return nothing(zone)
	}
	if k.qtype != dns.TypePTR {
		return empty(k, zone)
	}
	return found(&dns.PTR{Hdr: header(k.name, dns.TypePTR), Ptr: name})
}

// only4 answers for ipv4only.arpa, by which clients learn the prefix (RFC 7050 section 3, RFC 8880 section 7.1).
func only4(k key, labels int, prefix nat64.Prefix) answer {
	const zone = "ipv4only.arpa."
	if labels > 2 {
		return nothing(zone)
	}
	a := answer{authoritative: true}
	for _, last := range []byte{170, 171} {
		v4 := [4]byte{192, 0, 0, last}
		switch k.qtype {
		case dns.TypeA:
			a.rrs = append(a.rrs, addrRR(k.name, netip.AddrFrom4(v4)))
		case dns.TypeAAAA:
			a.rrs = append(a.rrs, addrRR(k.name, prefix.EmbedAny(v4)))
		}
	}
	if len(a.rrs) == 0 {
		return empty(k, zone)
	}
	return a
}

func header(name string, t uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: t, Class: dns.ClassINET, Ttl: localTTL}
}

func addrRR(name string, a netip.Addr) dns.RR {
	if a.Is4() {
		return &dns.A{Hdr: header(name, dns.TypeA), A: a.AsSlice()}
	}
	return &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: a.AsSlice()}
}

// soa is the SOA of a zone of ours, as RFC 6303 section 3 has it. Nobody fetches the zone, so the serial means nothing.
func soa(zone string) dns.RR {
	return &dns.SOA{Hdr: header(zone, dns.TypeSOA), Ns: zone, Mbox: "nobody.invalid.", Serial: 1, Refresh: 3600, Retry: 1200,
		Expire: 604800, Minttl: localTTL}
}

func found(rr dns.RR) answer { return answer{authoritative: true, rrs: []dns.RR{rr}} }

// empty says that the name is there, but has nothing of that type (NODATA).
func empty(k key, zone string) answer {
	if k.name == zone && k.qtype == dns.TypeSOA {
		return found(soa(zone))
	}
	return answer{authoritative: true, ns: []dns.RR{soa(zone)}}
}

// nothing says that there is no such name.
func nothing(zone string) answer {
	return answer{authoritative: true, rcode: dns.RcodeNameError, ns: []dns.RR{soa(zone)}}
}

// parseReverse reads a name below in-addr.arpa or ip6.arpa: the address, and how many of its bits the name gives.
func parseReverse(labels []string) (a netip.Addr, bits int, ok bool) {
	n := len(labels) - 2
	rev := slices.Clone(labels[:n])
	slices.Reverse(rev)
	switch labels[n] {
	case "in-addr":
		if n > 4 {
			rev = rev[:4] // RFC 2317 names and the like: they belong to the address
		}
		var b [4]byte
		for i, l := range rev {
			v, err := strconv.ParseUint(l, 10, 8)
			if err != nil || len(l) > 1 && l[0] == '0' {
				return netip.AddrFrom4(b), 8 * i, i > 0
			}
			b[i] = byte(v)
		}
		return netip.AddrFrom4(b), 8 * len(rev), true
	case "ip6":
		if n > 32 {
			rev = rev[:32]
		}
		var b [16]byte
		for i, l := range rev {
			v, err := hex.DecodeString("0" + l)
			if err != nil || len(v) != 1 {
				return netip.AddrFrom16(b), 4 * i, i > 0
			}
			b[i/2] |= v[0] << (4 * (1 - i%2))
		}
		return netip.AddrFrom16(b), 4 * len(rev), true
	}
	return netip.Addr{}, 0, false
}

// reverseName is the name of a prefix that ends at a label.
func reverseName(p netip.Prefix) string {
	var out []byte
	b := p.Addr().AsSlice()
	if p.Addr().Is4() {
		for i := p.Bits()/8 - 1; i >= 0; i-- {
			out = append(strconv.AppendUint(out, uint64(b[i]), 10), '.')
		}
		return string(out) + "in-addr.arpa."
	}
	for i := p.Bits()/4 - 1; i >= 0; i-- {
		v := b[i/2] >> (4 * (1 - i%2)) & 15
		out = append(out, "0123456789abcdef"[v], '.')
	}
	return string(out) + "ip6.arpa."
}
