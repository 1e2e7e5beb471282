package gateway

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Bounds on what an owner may write, so that the first packet of a flow costs little.
const (
	MaxRules = 256
	maxPorts = 32   // ranges in one rule
	maxLocal = 1024 // prefixes of SetLocal
)

// reason says why a packet did not pass; passed is 0.
type reason uint8

const (
	passed reason = iota
	malformed
	noLease
	wrongSource
	protocol
	private
	local
	meshAddress
	ownerDenies
	smtpClosed
	familyClosed
	tooManyFlows
	tooFast
	fragmentFirst
	unsolicited
	overRate
	noGateway
	wrongDestination
	reasons
)

var reasonText = [reasons]string{
	malformed:        "malformed",
	noLease:          "no lease",
	wrongSource:      "source address is not the client's",
	protocol:         "protocol is not carried",
	private:          "private or special destination",
	local:            "the gateway's own network",
	meshAddress:      "mesh address",
	ownerDenies:      "denied by the owner",
	smtpClosed:       "port 25 is closed",
	familyClosed:     "address family is not leased",
	tooManyFlows:     "too many open flows",
	tooFast:          "too many new flows a second",
	fragmentFirst:    "fragment without its first",
	unsolicited:      "answers nothing",
	overRate:         "more than the rate allows",
	noGateway:        "no gateway in use",
	wrongDestination: "destination is not this node's",
}

// Rule is one line of the owner's list. Its text form is
//
//	allow|deny [tcp|udp|icmp] [PORTS] [ADDRESS|PREFIX]
//
// with at least one of the three. PORTS are like 25 or 80,443,6881-6889, of TCP and UDP when neither is named.
type Rule struct {
	Deny  bool
	Proto uint8 // 6, 17, 1 for ICMP of both families, 0 for all
	Ports []PortRange
	Dest  netip.Prefix // the zero Prefix is everything
}

// PortRange is inclusive at both ends.
type PortRange struct{ Lo, Hi uint16 }

const ruleForm = "allow|deny [tcp|udp|icmp] [PORTS] [ADDRESS|PREFIX], for example: deny tcp 6881-6889, or: deny 203.0.113.0/24"

// ParseRule reads the text form of a rule.
func ParseRule(s string) (Rule, error) {
	r, err := parseRule(strings.Fields(s))
	if err != nil {
		if len(s) > 200 {
			s = s[:200] + "…"
		}
		return Rule{}, fmt.Errorf("gateway rule %q: %w", s, err)
	}
	return r, nil
}

func parseRule(w []string) (r Rule, err error) {
	if len(w) == 0 || w[0] != "allow" && w[0] != "deny" {
		return r, fmt.Errorf("it must start with allow or deny; a rule is written: %s", ruleForm)
	}
	r.Deny = w[0] == "deny"
	w = w[1:]
	if len(w) == 0 {
		return r, fmt.Errorf("it does not say what; a rule is written: %s", ruleForm)
	}
	if i := slices.Index([]string{"tcp", "udp", "icmp"}, w[0]); i >= 0 {
		r.Proto = []uint8{protoTCP, protoUDP, protoICMP}[i]
		w = w[1:]
	}
	if len(w) > 0 && !strings.ContainsAny(w[0], ".:/") && w[0][0] >= '0' && w[0][0] <= '9' {
		if r.Proto == protoICMP {
			return r, fmt.Errorf("icmp has no ports: leave out %q", w[0])
		}
		if r.Ports, err = parsePorts(w[0]); err != nil {
			return r, err
		}
		w = w[1:]
	}
	if len(w) > 0 {
		if r.Dest, err = parseDest(w[0]); err != nil {
			return r, err
		}
		w = w[1:]
	}
	if len(w) > 0 {
		return r, fmt.Errorf("nothing is expected after the address, so %q is too much; a rule is written: %s", w[0], ruleForm)
	}
	return r, nil
}

func parsePorts(s string) (out []PortRange, err error) {
	for part := range strings.SplitSeq(s, ",") {
		lo, hi, isRange := strings.Cut(part, "-")
		if !isRange {
			hi = lo
		}
		a, err1 := strconv.ParseUint(lo, 10, 16)
		b, err2 := strconv.ParseUint(hi, 10, 16)
		if err1 != nil || err2 != nil || a == 0 || b == 0 {
			return nil, fmt.Errorf("port %q: ports are numbers from 1 to 65535, like 25 or 80,443,6881-6889", part)
		}
		if a > b {
			return nil, fmt.Errorf("port range %q: write it upwards, %d-%d", part, b, a)
		}
		if len(out) == maxPorts {
			return nil, fmt.Errorf("more than %d port ranges: make two rules of it", maxPorts)
		}
		out = append(out, PortRange{uint16(a), uint16(b)})
	}
	return out, nil
}

func parseDest(s string) (netip.Prefix, error) {
	var p netip.Prefix
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		p = netip.PrefixFrom(a, a.BitLen())
	} else if p, err = netip.ParsePrefix(s); err != nil {
		return p, fmt.Errorf("%q is neither an address nor a prefix such as 203.0.113.0/24 or 2001:db8::/32", s)
	}
	if p.Addr().Is4In6() {
		return p, fmt.Errorf("%q: write the IPv4 address alone", s)
	}
	if p != p.Masked() {
		return p, fmt.Errorf("%q has bits behind the prefix: did you mean %v?", s, p.Masked())
	}
	return p, nil
}

// String is the form that ParseRule reads.
func (r Rule) String() string {
	var b strings.Builder
	b.WriteString(map[bool]string{false: "allow", true: "deny"}[r.Deny])
	b.WriteString(map[uint8]string{protoTCP: " tcp", protoUDP: " udp", protoICMP: " icmp"}[r.Proto])
	for i, p := range r.Ports {
		b.WriteByte(" ,"[min(i, 1)])
		fmt.Fprint(&b, p.Lo)
		if p.Hi != p.Lo {
			fmt.Fprintf(&b, "-%d", p.Hi)
		}
	}
	switch {
	case r.Dest.IsSingleIP():
		fmt.Fprintf(&b, " %v", r.Dest.Addr())
	case r.Dest.IsValid():
		fmt.Fprintf(&b, " %v", r.Dest)
	}
	return b.String()
}

// MarshalText and UnmarshalText make a rule its text form in configs and in the API.
func (r Rule) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads the text form.
func (r *Rule) UnmarshalText(b []byte) (err error) {
	*r, err = ParseRule(string(b))
	return err
}

// Policy says where clients of a gateway may go. It is immutable: pure, and safe for all goroutines.
//
// In this order: what no gateway carries (loopback, link-local, multicast, broadcast, unspecified and mesh addresses, and
// the gateway's own); the owner's rules, of which the first that matches decides; the networks the gateway is connected to;
// private and other special ranges; port 25; and then yes. So an owner can open a printer in the LAN or port 25, and
// nobody can open the gateway itself. A rule that allows and names no destination, or a whole family, speaks of the internet: it
// opens port 25 there, and neither a connected network nor a special range. An IPv6 address that stands for an IPv4 one (64:ff9b::/96 of RFC 6052, 6to4, Teredo)
// is judged as both, and refused when either is; of the NAT64 prefix only what is served passes. Documentation prefixes are nothing special.
type Policy struct {
	gen   uint32
	rules []compiledRule
	own   map[addr]bool // addresses of the gateway
	near  []mask        // networks it is connected to
	nat64 mask          // the prefix that is served
	is64  bool          // one is
}

type compiledRule struct {
	deny  bool
	proto uint8
	all   bool // destinations
	wide  bool // the same, or all of a family
	ports []PortRange
	dest  mask
}

// NewPolicy compiles the owner's rules. Of local, the addresses and networks of the machine, single addresses (/32, /128)
// are its own and never reachable, and wider prefixes are its networks, which a rule may open. nat64 is the NAT64 prefix that
// is served, a /96, or the zero Prefix.
func NewPolicy(rules []Rule, local []netip.Prefix, nat64 netip.Prefix) (*Policy, error) {
	if len(rules) > MaxRules {
		return nil, fmt.Errorf("%d gateway rules: at most %d are possible, so put neighbouring prefixes together", len(rules), MaxRules)
	}
	if len(local) > maxLocal {
		return nil, fmt.Errorf("%d local prefixes: at most %d are possible", len(local), maxLocal)
	}
	p := &Policy{is64: nat64.IsValid(), own: map[addr]bool{}}
	if p.is64 {
		p.nat64 = maskOf(nat64)
	}
	for _, r := range rules {
		c := compiledRule{deny: r.Deny, proto: r.Proto, all: !r.Dest.IsValid(), wide: r.Dest.Bits() <= 0, ports: slices.Clone(r.Ports)}
		if !c.all {
			c.dest = maskOf(r.Dest)
		}
		p.rules = append(p.rules, c)
	}
	for _, l := range local {
		if !l.IsValid() {
			return nil, fmt.Errorf("a local prefix is not valid: %v", l)
		}
		if l.Addr().Is4In6() {
			return nil, fmt.Errorf("local prefix %v: write the IPv4 address alone", l)
		}
		if l.IsSingleIP() {
			p.own[addrOf(l.Addr())] = true
		} else {
			p.near = append(p.near, maskOf(l))
		}
	}
	return p, nil
}

// Permit reports whether a client may send to dst, and if not, why. proto is an IP protocol number, port the destination
// port, if it has one.
func (p *Policy) Permit(proto uint8, dst netip.AddrPort) (why string, ok bool) {
	r := p.judge(proto, addrOf(dst.Addr()), dst.Port())
	return reasonText[r], r == passed
}

func (p *Policy) judge(proto uint8, dst addr, port uint16) reason {
	if proto == protoICMP6 {
		proto = protoICMP
	}
	if proto != protoICMP && proto != protoTCP && proto != protoUDP {
		return protocol
	}
	if dst.is4() {
		return p.judge1(proto, dst, port)
	}
	// The IPv4 address that an IPv6 one stands for.
	switch {
	case p.is64 && p.nat64.contains(dst): // NAT64, RFC 6052
		if r := p.judge1(proto, addr4(uint32(dst.lo)), port); r != passed {
			return r
		}
		if r := p.match(proto, dst, port); r != nil && r.deny {
			return ownerDenies
		}
		return passed
	case dst.hi>>48 == 0x2002: // 6to4, RFC 3056
		if r := p.judge1(proto, addr4(uint32(dst.hi>>16)), port); r != passed {
			return r
		}
	case dst.hi>>32 == 0x20010000: // Teredo, RFC 4380 section 4: the server's address, and the client's with all bits inverted
		if r := p.judge1(proto, addr4(uint32(dst.hi)), port); r != passed {
			return r
		}
		if r := p.judge1(proto, addr4(^uint32(dst.lo)), port); r != passed {
			return r
		}
	case uint32(dst.lo>>32)&^0x02000000 == 0x00005efe: // ISATAP, RFC 5214 section 6.1
		if r := p.judge1(proto, addr4(uint32(dst.lo)), port); r != passed {
			return r
		}
	}
	return p.judge1(proto, dst, port)
}

func (p *Policy) judge1(proto uint8, dst addr, port uint16) reason {
	if r := never(dst); r != passed {
		return r
	}
	if p.own[dst] {
		return local
	}
	rule := p.match(proto, dst, port)
	switch {
	case rule == nil:
	case rule.deny:
		return ownerDenies
	case !rule.wide:
		return passed
	}
	for i := range p.near {
		if p.near[i].contains(dst) {
			return local
		}
	}
	if special(dst) {
		return private
	}
	if rule == nil && port == 25 && proto != protoICMP {
		return smtpClosed
	}
	return passed
}

func (p *Policy) match(proto uint8, dst addr, port uint16) *compiledRule {
	for i := range p.rules {
		r := &p.rules[i]
		if r.proto != 0 && r.proto != proto || !r.all && !r.dest.contains(dst) {
			continue
		}
		if len(r.ports) == 0 {
			return r
		}
		if proto == protoICMP {
			continue
		}
		for _, x := range r.ports {
			if port >= x.Lo && port <= x.Hi {
				return r
			}
		}
	}
	return nil
}

// never names what no rule can open.
func never(a addr) reason {
	if a.is4() {
		switch v := uint32(a.lo); {
		case v>>24 == 0, // this network, RFC 791
			v>>24 == 127,        // loopback
			v>>16 == 169<<8|254, // link-local
			v>>28 >= 0xe:        // multicast, class E, broadcast
			return private
		}
		return passed
	}
	switch {
	case a.isMesh():
		return meshAddress
	case a.hi == 0, // unspecified, loopback, IPv4-compatible and other forms of old
		a.hi>>54 == 0xfe80>>6, // link-local
		a.hi>>54 == 0xfec0>>6, // site-local, RFC 3879
		a.hi>>56 == 0xff:      // multicast
		return private
	}
	return passed
}

// special names what only a rule can open: ranges that mean something else at every place.
func special(a addr) bool {
	if a.is4() {
		v := uint32(a.lo)
		return v>>24 == 10 || v>>20 == 172<<4|1 || v>>16 == 192<<8|168 || // private, RFC 1918
			v>>22 == 100<<2|1 || // carriers' and ours, RFC 6598
			v>>8 == 192<<16 || // protocol assignments, RFC 6890
			v>>8 == 192<<16|88<<8|99 || // 6to4 relays, RFC 7526
			v>>17 == 198<<7|9 // benchmarks, RFC 2544
	}
	return a.hi>>61 != 1 // not global unicast, 2000::/3: RFC 4291 section 2.4, and so local addresses, RFC 4193
}
