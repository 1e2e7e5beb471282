package gateway

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Families are the ways to the internet that a gateway has, or that a client wants. docs/spec/gateway.md section 2.
type Families uint8

// The families.
const (
	IPv4       Families = 1 << iota // an IPv4 address from 100.64.0.0/10, translated at the gateway
	IPv6                            // the client's own mesh address, translated at the gateway (NAT66)
	IPv6Routed                      // a global IPv6 address or prefix of the client's own
	NAT64                           // IPv4 destinations for IPv6 packets
	DNS                             // the gateway resolves names

	allFamilies = IPv4 | IPv6 | IPv6Routed | NAT64 | DNS
)

// String names the families for people.
func (f Families) String() string {
	var out []string
	for i, name := range []string{"IPv4", "IPv6", "IPv6 routed", "NAT64", "DNS"} {
		if f&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		return "nothing"
	}
	return strings.Join(out, ", ")
}

// MarshalText is String.
func (f Families) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// four and six say whether IPv4 and IPv6 destinations can be reached.
func (f Families) four() bool { return f&(IPv4|NAT64) != 0 }
func (f Families) six() bool  { return f&(IPv6|IPv6Routed) != 0 }

// Offer is what a gateway announces in its link-state advertisement. docs/spec/gateway.md section 2.
type Offer struct {
	Families    Families `json:"families"`
	MembersOnly bool     `json:"members_only,omitempty"`
	Metered     bool     `json:"metered,omitempty"`     // the line itself costs by volume: spare it
	FreeTier    bool     `json:"free_tier,omitempty"`   // who is no member gets a slow lease for nothing
	SMTPClosed  bool     `json:"smtp_closed,omitempty"` // port 25
	Filtered    bool     `json:"filtered,omitempty"`    // the owner denies more than every gateway does
	Load        uint8    `json:"load"`                  // 0 idle, 1 some, 2 busy, 3 full: coarse, so that advertisements rarely change
	Price       uint32   `json:"price"`                 // nano-credits per MiB, both directions alike
	DownKbps    uint32   `json:"down_kbps"`             // to clients, 1000 bit/s; 0: not told
	UpKbps      uint32   `json:"up_kbps"`               // from clients
}

const (
	offerVersion = 1
	offerSize    = 16
	maxOffer     = 64 // bytes that a reader looks at
)

// Flags of an offer, and its policy bits.
const (
	offerMembers  = 1 << 0
	offerMetered  = 1 << 1
	offerFreeTier = 1 << 2
	offerLoad     = 6 // shift

	policySMTP     = 1 << 0
	policyFiltered = 1 << 1
)

func bit(b bool, v byte) byte {
	if b {
		return v
	}
	return 0
}

// AppendTo appends the offer as bytes.
func (o Offer) AppendTo(b []byte) []byte {
	flags := bit(o.MembersOnly, offerMembers) | bit(o.Metered, offerMetered) | bit(o.FreeTier, offerFreeTier) | o.Load&3<<offerLoad
	b = append(b, offerVersion, byte(o.Families&allFamilies), flags, bit(o.SMTPClosed, policySMTP)|bit(o.Filtered, policyFiltered))
	b = binary.BigEndian.AppendUint32(b, o.Price)
	b = binary.BigEndian.AppendUint32(b, o.DownKbps)
	return binary.BigEndian.AppendUint32(b, o.UpKbps)
}

// ParseOffer reads an offer. Unknown bits, and bytes behind those it knows, belong to later versions and are skipped.
func ParseOffer(b []byte) (Offer, error) {
	switch {
	case len(b) > maxOffer:
		return Offer{}, fmt.Errorf("gateway offer of %d bytes: at most %d", len(b), maxOffer)
	case len(b) > 0 && b[0] != offerVersion:
		return Offer{}, fmt.Errorf("gateway offer of version %d: this program reads version %d, a newer one may read it", b[0], offerVersion)
	case len(b) < offerSize:
		return Offer{}, fmt.Errorf("gateway offer of %d bytes: at least %d", len(b), offerSize)
	}
	o := Offer{
		Families: Families(b[1]) & allFamilies, MembersOnly: b[2]&offerMembers != 0, Metered: b[2]&offerMetered != 0,
		FreeTier: b[2]&offerFreeTier != 0, Load: b[2] >> offerLoad, SMTPClosed: b[3]&policySMTP != 0, Filtered: b[3]&policyFiltered != 0,
		Price: binary.BigEndian.Uint32(b[4:]), DownKbps: binary.BigEndian.Uint32(b[8:]), UpKbps: binary.BigEndian.Uint32(b[12:]),
	}
	if !o.Families.four() && !o.Families.six() {
		return Offer{}, errors.New("gateway offer without a way to the internet")
	}
	return o, nil
}

// String tells people what is offered.
func (o Offer) String() string {
	parts := []string{o.Families.String(), FormatPrice(o.Price)}
	if o.DownKbps != 0 || o.UpKbps != 0 {
		parts = append(parts, fmt.Sprintf("%s down, %s up", formatRate(o.DownKbps), formatRate(o.UpKbps)))
	}
	parts = append(parts, [...]string{"idle", "some load", "busy", "full"}[o.Load&3])
	for _, w := range []struct {
		is   bool
		text string
	}{{o.MembersOnly && !o.FreeTier, "members only"}, {o.MembersOnly && o.FreeTier, "members; others slowly for nothing"},
		{o.Metered, "metered line"}, {o.SMTPClosed, "no port 25"}, {o.Filtered, "filtered"}} {
		if w.is {
			parts = append(parts, w.text)
		}
	}
	return strings.Join(parts, "; ")
}

// FormatPrice tells people a price, given in nano-credits per MiB, by the GB (10^9 bytes).
func FormatPrice(nano uint32) string {
	if nano == 0 {
		return "free"
	}
	micro := uint64(nano) * 1e9 / (1 << 20) / 1000 // micro-credits per GB
	s := fmt.Sprintf("%d.%06d", micro/1e6, micro%1e6)
	s = strings.TrimRight(s, "0")
	return strings.TrimSuffix(s, ".") + " credits/GB"
}

func formatRate(kbps uint32) string {
	switch {
	case kbps == 0:
		return "unknown"
	case kbps < 1000:
		return fmt.Sprintf("%d kbit/s", kbps)
	case kbps%1000 == 0 || kbps >= 100000:
		return fmt.Sprintf("%d Mbit/s", kbps/1000)
	}
	return fmt.Sprintf("%d.%d Mbit/s", kbps/1000, kbps%1000/100)
}
