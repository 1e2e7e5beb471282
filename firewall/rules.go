package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"weft/ident"
)

// Bounds on rules, so that a config cannot make every new flow slow.
const (
	MaxRules = 1024
	maxPorts = 64 // ranges in one rule
)

// Rules are what an owner writes: an ordered list, of which the first that matches decides, and the groups it names.
type Rules struct {
	List   []Rule
	Groups map[string][]ident.PublicKey
}

// Rule says who may, or may not, start which flows. Its text form is
//
//	allow|block PROTO [PORTS] [to DEST] from SOURCE
//
// PROTO is tcp, udp, icmp (echo requests) or any; PORTS, not for icmp, are like 22 or 80,443,8000-8100; DEST is self (this
// node, the default), behind (every device behind it), or the IPv6 address or prefix of some of them; SOURCE is any,
// community (members of this node's community), group:NAME or key:HEX.
type Rule struct {
	Action Action
	Proto  Proto
	Ports  []PortRange  // none: all
	To     Destination  // the zero value is self
	Dest   netip.Prefix // with To == Some
	From   Source
}

// Action is what a rule does.
type Action uint8

// The actions.
const (
	Allow Action = iota
	Block
)

// Proto is the protocol of a rule.
type Proto uint8

// The protocols. AnyProto with ports means TCP and UDP.
const (
	AnyProto Proto = iota
	TCP
	UDP
	ICMP
)

// PortRange is inclusive at both ends.
type PortRange struct{ Lo, Hi uint16 }

// Destination is the part of this node's addresses that a rule speaks of.
type Destination uint8

// The destinations.
const (
	Self Destination = iota
	Behind
	Some
)

// Source is whom a rule speaks of.
type Source struct {
	Kind  SourceKind
	Group string
	Key   ident.PublicKey
}

// SourceKind tells the fields of a Source that count.
type SourceKind uint8

// The kinds of source.
const (
	Anyone SourceKind = iota
	Members
	Group
	Key
)

var (
	actionNames = []string{"allow", "block"}
	protoNames  = []string{"any", "tcp", "udp", "icmp"}
	groupName   = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,31}$`)
)

const form = "allow|block any|tcp|udp|icmp [PORTS] [to self|behind|ADDRESS] from any|community|group:NAME|key:HEX"

// ParseRule reads the text form of a rule.
func ParseRule(s string) (Rule, error) {
	r, err := parseRule(s)
	if err != nil {
		if len(s) > 200 {
			s = s[:200] + "…"
		}
		return Rule{}, fmt.Errorf("firewall rule %q: %w", s, err)
	}
	return r, nil
}

func parseRule(s string) (r Rule, err error) {
	w := strings.Fields(s)
	next := func() string {
		if len(w) == 0 {
			return ""
		}
		s := w[0]
		w = w[1:]
		return s
	}
	word := next()
	i := slices.Index(actionNames, word)
	if i < 0 {
		return r, fmt.Errorf("starts with %q, not with allow or block; a rule is written: %s", word, form)
	}
	r.Action = Action(i)
	word = next()
	if i = slices.Index(protoNames, word); i < 0 {
		return r, fmt.Errorf("protocol %q: may be any, tcp, udp or icmp", word)
	}
	r.Proto = Proto(i)
	word = next()
	if word != "to" && word != "from" && word != "" {
		if r.Ports, err = parsePorts(word); err != nil {
			return r, err
		}
		word = next()
	}
	if word == "to" {
		switch word = next(); word {
		case "self":
		case "behind":
			r.To = Behind
		default:
			r.To = Some
			if r.Dest, err = parseDest(word); err != nil {
				return r, err
			}
		}
		word = next()
	}
	if word != "from" {
		return r, fmt.Errorf("%q stands where from SOURCE is expected; a rule is written: %s", word, form)
	}
	if r.From, err = parseSource(next()); err != nil {
		return r, err
	}
	if len(w) > 0 {
		return r, fmt.Errorf("%q after the source: a rule ends there", strings.Join(w, " "))
	}
	return r, r.check()
}

func parsePorts(s string) ([]PortRange, error) {
	var out []PortRange
	for part := range strings.SplitSeq(s, ",") {
		lo, hi, isRange := strings.Cut(part, "-")
		if !isRange {
			hi = lo
		}
		a, err1 := strconv.ParseUint(lo, 10, 16)
		b, err2 := strconv.ParseUint(hi, 10, 16)
		if err1 != nil || err2 != nil || a == 0 {
			return nil, fmt.Errorf("ports %q: written like 22 or 80,443,8000-8100, each from 1 to 65535", s)
		}
		if len(out) == maxPorts {
			return nil, fmt.Errorf("more than %d ranges of ports: split the rule", maxPorts)
		}
		out = append(out, PortRange{uint16(a), uint16(b)})
	}
	return out, nil
}

func parseDest(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if a, err2 := netip.ParseAddr(s); err2 == nil {
		p, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	if err != nil || !p.Addr().Is6() || p.Addr().Zone() != "" {
		return p, fmt.Errorf("destination %q: may be self, behind, or an IPv6 address or prefix of this node", s)
	}
	return p.Masked(), nil
}

func parseSource(s string) (Source, error) {
	switch kind, rest, _ := strings.Cut(s, ":"); {
	case s == "any":
		return Source{Kind: Anyone}, nil
	case s == "community":
		return Source{Kind: Members}, nil
	case kind == "group":
		return Source{Kind: Group, Group: rest}, nil
	case kind == "key":
		k, err := ident.ParsePublicKey(rest)
		return Source{Kind: Key, Key: k}, err
	}
	return Source{}, fmt.Errorf("source %q: may be any, community, group:NAME or key:HEX", s)
}

// check finds what the text form cannot say, too, since rules may be made by hand.
func (r *Rule) check() error {
	switch {
	case int(r.Action) >= len(actionNames), int(r.Proto) >= len(protoNames), r.To > Some, r.From.Kind > Key:
		return errors.New("has an action, protocol, destination or source that does not exist")
	case r.Proto == ICMP && len(r.Ports) > 0:
		return errors.New("icmp has no ports; leave them out")
	case len(r.Ports) > maxPorts:
		return fmt.Errorf("more than %d ranges of ports: split the rule", maxPorts)
	case r.From.Kind == Group && !groupName.MatchString(r.From.Group):
		return fmt.Errorf("group %q: a group's name has 1 to 32 of a-z, 0-9, - and _, and starts with a letter or digit", r.From.Group)
	case r.From.Kind == Key && r.From.Key.IsZero():
		return errors.New("the key is all zeros")
	case r.To == Some && !(r.Dest.IsValid() && r.Dest.Addr().Is6() && r.Dest == r.Dest.Masked()):
		return errors.New("the destination is not an IPv6 prefix")
	}
	for _, p := range r.Ports {
		if p.Lo == 0 || p.Hi < p.Lo {
			return fmt.Errorf("ports %d-%d: a range goes upwards, from 1 to 65535", p.Lo, p.Hi)
		}
	}
	return nil
}

// String returns the text form.
func (r Rule) String() string {
	b := []byte(name(actionNames, int(r.Action)) + " " + name(protoNames, int(r.Proto)))
	for i, p := range r.Ports {
		b = append(b, " ,"[min(i, 1)])
		b = strconv.AppendUint(b, uint64(p.Lo), 10)
		if p.Hi != p.Lo {
			b = append(b, '-')
			b = strconv.AppendUint(b, uint64(p.Hi), 10)
		}
	}
	switch {
	case r.To == Behind:
		b = append(b, " to behind"...)
	case r.To == Some && r.Dest.IsSingleIP():
		b = append(b, " to "+r.Dest.Addr().String()...)
	case r.To == Some:
		b = append(b, " to "+r.Dest.String()...)
	}
	return string(b) + " from " + r.From.String()
}

func name(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return "?"
}

// String returns the text form of a source.
func (s Source) String() string {
	switch s.Kind {
	case Anyone:
		return "any"
	case Members:
		return "community"
	case Group:
		return "group:" + s.Group
	case Key:
		return "key:" + s.Key.String()
	}
	return "?"
}

// MarshalText prints the rule as String does.
func (r Rule) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText prints.
func (r *Rule) UnmarshalText(b []byte) (err error) {
	*r, err = ParseRule(string(b))
	return err
}

func (r Rule) clone() Rule {
	r.Ports = slices.Clone(r.Ports)
	return r
}

// ParseRules reads a config's list of rules and its groups, whose members are keys in hex.
func ParseRules(list []string, groups map[string][]string) (Rules, error) {
	rules := Rules{Groups: map[string][]ident.PublicKey{}}
	for name, keys := range groups {
		rules.Groups[name] = []ident.PublicKey{}
		for i, s := range keys {
			k, err := ident.ParsePublicKey(s)
			if err != nil {
				return Rules{}, fmt.Errorf("firewall group %q, key %d: %w", name, i+1, err)
			}
			rules.Groups[name] = append(rules.Groups[name], k)
		}
	}
	for _, s := range list {
		r, err := ParseRule(s)
		if err != nil {
			return Rules{}, err
		}
		rules.List = append(rules.List, r)
	}
	return rules, nil
}

func (rs Rules) clone() Rules {
	out := Rules{List: make([]Rule, len(rs.List)), Groups: make(map[string][]ident.PublicKey, len(rs.Groups))}
	for i, r := range rs.List {
		out.List[i] = r.clone()
	}
	for name, keys := range rs.Groups {
		out.Groups[name] = slices.Clone(keys)
	}
	return out
}

// check reports the first rule that cannot hold on the node self, by name.
func (rs Rules) check(self local) error {
	if len(rs.List) > MaxRules {
		return fmt.Errorf("firewall: %d rules, may be %d; put keys into groups, and ports into lists", len(rs.List), MaxRules)
	}
	for name := range rs.Groups {
		if !groupName.MatchString(name) {
			return fmt.Errorf("firewall group %q: a group's name has 1 to 32 of a-z, 0-9, - and _, and starts with a letter or digit", name)
		}
	}
	for i := range rs.List {
		r := &rs.List[i]
		err := r.check()
		if _, known := rs.Groups[r.From.Group]; err == nil && r.From.Kind == Group && !known {
			err = fmt.Errorf("there is no group %q; define it under the firewall's groups", r.From.Group)
		}
		if err == nil && r.To == Some && !contains(self.net, r.Dest) && r.Dest != self.addr {
			err = fmt.Errorf("%s is not this node's: its addresses are %s and %s", r.Dest, self.addr.Addr(), self.net)
		}
		if err != nil {
			return fmt.Errorf("firewall rule %d %q: %w", i+1, r.String(), err)
		}
	}
	return nil
}

func contains(outer, inner netip.Prefix) bool {
	return inner.Bits() >= outer.Bits() && outer.Contains(inner.Addr())
}

// matches reports whether the rule speaks of the flow k, whose local end lies behind the node or is the node itself.
func (r *Rule) matches(k *flowKey, behind bool) bool {
	switch r.To {
	case Self:
		if behind {
			return false
		}
	case Behind:
		if !behind {
			return false
		}
	case Some:
		if !r.Dest.Contains(addrOf(k.local())) {
			return false
		}
	}
	proto := k.proto()
	switch r.Proto {
	case TCP:
		if proto != protoTCP {
			return false
		}
	case UDP:
		if proto != protoUDP {
			return false
		}
	case ICMP:
		if proto != protoICMP {
			return false
		}
	}
	if len(r.Ports) == 0 {
		return true
	}
	if proto != protoTCP && proto != protoUDP {
		return false
	}
	port := k.here()
	for _, p := range r.Ports {
		if port >= p.Lo && port <= p.Hi {
			return true
		}
	}
	return false
}
