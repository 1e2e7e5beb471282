package config

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
)

// Gateway is sharing the internet: offering a line, and using another's.
type Gateway struct {
	Use      string `toml:"use" doc:"auto takes the internet from the best gateway of the mesh, a name, id or key from that node alone, off from none.\nWith root the whole device uses it, else what goes through the proxy of [userspace]."`
	Strict   bool   `toml:"strict" doc:"While use is not off, programs of this device never leave by its own line, not even when no gateway can be reached (root only).\nWithout it the own line, if there is one, is used meanwhile."`
	MaxPrice Price  `toml:"max_price" doc:"Use no gateway that asks for more, carriage on the way included; written like price. 0 is no limit." example:"\"0.20/GB\""`

	Offer     bool     `toml:"offer" doc:"Share this device's internet line with the mesh. weft gateway offer does the same while the node runs."`
	Price     Price    `toml:"price" doc:"What traffic costs through this gateway, both directions: credits per GB like \"0.10/GB\",\nor a whole number of ncredit (a thousand-millionth of a credit) per MiB." example:"\"0.10/GB\""`
	Down      Rate     `toml:"down" doc:"What of the line's download others may have together, such as \"20 Mbit/s\"; 10 to 20 % less than the line has keeps delays short.\n0 sets no limit, and then nobody is kept from crowding out others." example:"\"20 Mbit/s\""`
	Up        Rate     `toml:"up" doc:"The same for upload." example:"\"5 Mbit/s\""`
	Interface string   `toml:"interface" doc:"The interface that the line is on; empty is the one that the default route names." example:"\"eth0\""`
	IPv4      bool     `toml:"ipv4" doc:"Share IPv4."`
	IPv6      IPv6Mode `toml:"ipv6" doc:"nat shares IPv6 under this device's own address, off does not share it."`
	NAT64     string   `toml:"nat64" doc:"IPv6 prefix under which devices that have IPv6 alone reach the IPv4 internet, a /96, or off. The default is known to all devices."`
	Members   bool     `toml:"members_only" doc:"Share with members of this node's community only."`
	SMTP      bool     `toml:"smtp" doc:"Let others connect to port 25, which sends mail and, from abused devices, a lot of it."`
	Allow     []string `toml:"allow" doc:"Destinations that are open although a rule below or weft's own would close them: [tcp|udp|icmp] [PORTS] [ADDRESS or PREFIX]." example:"[\"tcp 25 192.0.2.25\"]"`
	Deny      []string `toml:"deny" doc:"Destinations that are closed, written alike. Your own network, this device, and private addresses always are." example:"[\"udp 6881-6889\", \"203.0.113.0/24\"]"`
	LogDays   int      `toml:"log_days" doc:"Days for which it is kept which node had a lease when, as your community decides; where it went is never kept. 0 keeps nothing."`
}

// DNS is the node's resolver.
type DNS struct {
	Listen   string   `toml:"listen" doc:"Where programs of this device can ask: an address of this device and a port, or off. Names end in .weft; the rest goes to upstream."`
	Upstream []string `toml:"upstream" doc:"Who is asked for names that are not in the mesh: tls://ADDRESS#NAME, https://NAME/dns-query@ADDRESS, udp://ADDRESS.\nEmpty asks the gateway in use, and without one the servers of this system." example:"[\"tls://9.9.9.9#dns.quad9.net\"]"`
	Redirect bool     `toml:"redirect" doc:"While a gateway is in use, all plain DNS questions of this device are answered here, whomever they are for (root only)."`
	DNS64    bool     `toml:"dns64" doc:"Give IPv4-only names IPv6 addresses that the gateway translates, for devices that have IPv6 alone."`
}

// Guest is a network for devices without Weft.
type Guest struct {
	Interface string   `toml:"interface" doc:"The interface or bridge that guests are on, such as a second Wi-Fi; empty is none. Root only." example:"\"br-guest\""`
	Mode      GuestMd  `toml:"mode" doc:"voucher asks guests for a code before they get the internet, open does not. The mesh is free for them either way, as far as its nodes let them in."`
	Network   string   `toml:"network" doc:"This device's IPv4 address among guests, and how many addresses there are."`
	DHCP      DHCPMode `toml:"dhcp" doc:"auto drives dnsmasq when it is installed and serves DHCP itself otherwise; dnsmasq and own insist; off leaves it to another."`
	Host      string   `toml:"host" doc:"A name for the first page, with certificate and key: then devices are told of the page when they join (RFC 8910). Guests find it here." example:"\"wifi.example.org\""`
	Cert      string   `toml:"certificate" doc:"File of host's certificate and its chain, PEM, from an authority that devices know." example:"\"/etc/weft/wifi.pem\""`
	Key       string   `toml:"key" doc:"File of its private key, PEM." example:"\"/etc/weft/wifi.key\""`
	Welcome   string   `toml:"welcome" doc:"A line on the guests' first page." example:"\"Hello neighbour!\""`
}

// Price is in ncredit per MiB. Its text is credits per GB, such as 0.10/GB, or a whole number of ncredit per MiB.
type Price uint32

// UnmarshalText reads the text of a price. There is no MarshalText: what is written is the number, which loses nothing.
func (p *Price) UnmarshalText(b []byte) error {
	v, err := ParsePrice(string(b))
	*p = Price(v)
	return err
}

// LinkRate is the rate of links on some interfaces.
type LinkRate struct {
	Interface string `toml:"interface" doc:"Interface, * matches any letters." example:"\"wlan*\""`
	Rate      Rate   `toml:"rate" doc:"What the links on it may send together each second. A little below what the radio can do: packets then wait here, in fair turns." example:"\"30 Mbit/s\""`
}

// IPv6Mode is nat or off.
type IPv6Mode string

// GuestMd is voucher or open.
type GuestMd string

// DHCPMode is auto, dnsmasq, own or off.
type DHCPMode string

// Rate is in bits per second. Its text is a number with bit/s, kbit/s, Mbit/s or Gbit/s (in short k, M, G).
type Rate uint64

// leastRate is the least that packets get through with in bearable time.
const leastRate = 8000

// ParseRate reads the text of a rate.
func ParseRate(s string) (Rate, error) {
	bad := fmt.Errorf("%q is no rate; written like \"20 Mbit/s\", \"512 kbit/s\" or 20M; 0 is no limit", s)
	num := strings.TrimSpace(s)
	for _, unit := range []string{"bit/s", "bits/s", "bps"} {
		num = strings.TrimSuffix(num, unit)
	}
	factor := 1.0
	if n := len(num); n > 0 {
		switch num[n-1] {
		case 'k', 'K':
			factor = 1e3
		case 'M':
			factor = 1e6
		case 'G':
			factor = 1e9
		}
		if factor > 1 {
			num = num[:n-1]
		}
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
	if err != nil || !(v >= 0) || v*factor > 1e12 {
		return 0, bad
	}
	r := Rate(math.Round(v * factor))
	if r != 0 && r < leastRate {
		return 0, fmt.Errorf("%q is too little to share; the least is 8 kbit/s; written like \"20 Mbit/s\" or 20M", s)
	}
	return r, nil
}

// UnmarshalText reads the text of a rate.
func (r *Rate) UnmarshalText(b []byte) (err error) {
	*r, err = ParseRate(string(b))
	return err
}

// MarshalText writes it.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

func (r Rate) String() string {
	switch {
	case r == 0:
		return "0"
	case r%1_000_000_000 == 0:
		return fmt.Sprintf("%d Gbit/s", r/1_000_000_000)
	case r%1_000_000 == 0:
		return fmt.Sprintf("%d Mbit/s", r/1_000_000)
	case r%1000 == 0:
		return fmt.Sprintf("%d kbit/s", r/1000)
	}
	return fmt.Sprintf("%d bit/s", uint64(r))
}

// Kbit returns the rate in kbit/s, rounded down.
func (r Rate) Kbit() uint32 { return uint32(min(uint64(r)/1000, math.MaxUint32)) }

// bytesPerGB is what people and their bills mean by a GB.
const bytesPerGB = 1e9

// ParsePrice reads a price: ncredit per MiB as a whole number, or credits per GB like 0.10/GB.
func ParsePrice(s string) (uint32, error) {
	bad := fmt.Errorf("%q is no price; written like 0.10/GB (credits per GB), or 100000 (ncredit per MiB)", s)
	num, perGB := strings.CutSuffix(strings.TrimSpace(s), "/GB")
	if !perGB {
		v, err := strconv.ParseUint(num, 10, 32)
		if err != nil {
			return 0, bad
		}
		return uint32(v), nil
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
	n := math.Round(v * 1e9 / bytesPerGB * (1 << 20))
	if err != nil || !(n >= 0 && n <= math.MaxUint32) {
		return 0, bad
	}
	return uint32(n), nil
}

// FormatPrice writes a price for people: credits per GB.
func FormatPrice(ncreditPerMiB uint64) string {
	if ncreditPerMiB == 0 {
		return "free"
	}
	v := float64(ncreditPerMiB) * bytesPerGB / (1 << 20) / 1e9
	digits := 2
	for p := v; p < 0.995 && digits < 7; p *= 10 {
		digits++
	}
	text := strconv.FormatFloat(v, 'f', digits, 64)
	for strings.HasSuffix(text, "0") && len(text)-strings.IndexByte(text, '.') > 3 {
		text = text[:len(text)-1]
	}
	return text + " credits/GB"
}

// checkSharing finds what cannot hold in [gateway], [dns], [guest] and [[rate]].
func (f *file) checkSharing(c *Config) {
	g := &c.Gateway
	f.word("gateway.ipv6", string(g.IPv6), "nat", "off")
	if g.Offer && !g.IPv4 && g.IPv6 == "off" {
		f.report("gateway.offer", "neither IPv4 nor IPv6 would be shared; set gateway.ipv4 or gateway.ipv6")
	}
	if strings.TrimSpace(g.Use) == "" {
		f.report("gateway.use", "must be auto, off or a node")
	}
	if p, err := netip.ParsePrefix(g.NAT64); g.NAT64 != "off" && (err != nil || p.Bits() != 96 || !p.Addr().Is6()) {
		f.report("gateway.nat64", "%q is not allowed; allowed: off, 64:ff9b::/96 or another /96", g.NAT64)
	}
	if g.Offer && g.Members && !c.Closed() {
		f.report("gateway.members_only", "this node is in the open network, which has no members; share with everybody, or found a closed network: weft init --closed")
	}
	f.rate("gateway.down", g.Down)
	f.rate("gateway.up", g.Up)
	f.span("gateway.log_days", float64(g.LogDays), 0, 3650)
	f.short("gateway.allow", len(g.Allow), maxList)
	f.short("gateway.deny", len(g.Deny), maxList)
	f.local("dns.listen", "this resolver is for this device alone", c.DNS.Listen, "off")
	f.short("dns.upstream", len(c.DNS.Upstream), 16)
	if g := c.Guest; (g.Host == "") != (g.Cert == "") || (g.Cert == "") != (g.Key == "") {
		f.report("guest.host", "host, certificate and key belong together: set all three or none")
	}
	f.word("guest.mode", string(c.Guest.Mode), "voucher", "open")
	f.word("guest.dhcp", string(c.Guest.DHCP), "auto", "dnsmasq", "own", "off")
	if p, err := netip.ParsePrefix(c.Guest.Network); err != nil || !p.Addr().Is4() || !p.Addr().IsPrivate() || p.Bits() < 8 || p.Bits() > 29 {
		f.report("guest.network", "%q is not a private IPv4 address with a prefix length; written like 10.77.0.1/24", c.Guest.Network)
	}
	f.short("rate", len(c.Rates), 64)
	for i, r := range c.Rates {
		if r.Interface == "" || r.Rate == 0 {
			f.report(fmt.Sprintf("rate.%d", i), "needs an interface and a rate, such as interface = \"wlan*\", rate = \"30 Mbit/s\"")
		}
		f.rate(fmt.Sprintf("rate.%d.rate", i), r.Rate)
	}
}

// rate finds numbers without a unit, which are bits, where somebody meant more.
func (f *file) rate(key string, r Rate) {
	if r != 0 && r < leastRate {
		f.report(key, "%d bit/s is too little to share; the least is 8 kbit/s; written like \"20 Mbit/s\"", uint64(r))
	}
}
