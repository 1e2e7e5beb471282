// Package guest serves devices without Weft on a node's own LAN: phones, televisions, visitors. It gives them addresses
// (router advertisements and DHCPv4), shows them one page (the captive portal), lets them into the internet with a voucher,
// and takes care that they reach nothing else of the owner's.
//
// It knows no mesh. The node that opens it says which interface, which prefixes, which interface packets leave by, and
// tells it with [Guests.SetUplink] whether there is a way to the internet. All else is between this room and the kernel:
// what a guest may do is decided by one nftables table that belongs to this process and dies with it, so a crash leaves
// guests without internet and never with too much of it.
//
// node owns a [Guests] and runs [Guests.Serve] in one goroutine; Serve starts more and has waited for all of them when it
// returns. All other methods may be called from any goroutine, before, during and after Serve. [Vouchers] and the page
// ([Guests.Handler]) build on every system; Serve runs on Linux only. Who a guest is, is a MAC address, and MAC addresses can be
// forged by anybody in radio range: vouchers keep honest people honest, they are no proof of identity.
package guest

import (
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"time"
)

// Access says what a device needs before it may use the internet.
type Access string

// The ways to let guests in.
const (
	AccessVoucher Access = "voucher" // a code
	AccessTap     Access = "tap"     // a tap on the page, no code
	AccessOpen    Access = "open"    // nothing: no page is shown
)

// MeshAccess says what a device without internet may reach of the mesh. What it says does not open the node's firewall.
type MeshAccess string

// The ways to treat packets between guests and 200::/7.
const (
	MeshFree    MeshAccess = "free"    // without voucher, uncounted
	MeshVoucher MeshAccess = "voucher" // like the internet
	MeshClosed  MeshAccess = "closed"  // never
)

// DHCP says who gives IPv4 addresses to guests.
type DHCP string

// The DHCPv4 servers. Router advertisements are always this room's own: dnsmasq sends neither routes (RFC 4191) nor the
// portal's address (RFC 8910) in them.
const (
	DHCPAuto    DHCP = "auto" // dnsmasq where it is installed, else our own
	DHCPDnsmasq DHCP = "dnsmasq"
	DHCPOwn     DHCP = "own"
	DHCPOff     DHCP = "off" // somebody else's
)

// Config is what node decides for guests. The zero value of a field takes the default that its comment names.
type Config struct {
	Interface string        // where the guests are: an Ethernet device or a bridge. It must exist
	StateDir  string        // vouchers and leases are kept here
	Vouchers  *Vouchers     // the store, when it is open already; else the file vouchers.json in StateDir
	Prefix    netip.Prefix  // the /64 for guests; ::1 of it becomes ours. Invalid: no IPv6
	Range     netip.Prefix  // private IPv4 range, /16 to /29; its first address becomes ours. Invalid: no IPv4
	Out       []string      // the interfaces by which guests may leave, by name: the TUN. They need not exist yet
	MTU       int           // told to guests, bytes; 0: not told
	DHCP      DHCP          // "": auto
	Access    Access        // "": voucher
	Mesh      MeshAccess    // "": free
	Session   time.Duration // AccessTap: how long a tap lasts; 0: 24 h
	DNSPort   uint16        // where the node's resolver listens on our addresses; 0: 53
	Domain    string        // search domain for guests, "" for none
	Services  []Port        // what else of this host guests may reach, such as Weft's own link port

	PortalPort uint16      // where the page listens on our addresses; 0: 8480. Port 80 leads to it in any case
	Host       string      // the portal's name in links, if the node's resolver knows it; "": our address
	TLS        *tls.Config // a certificate for Host. With it the captive portal API is announced (RFC 8908 asks for TLS), else not
	TLSPort    uint16      // where the page listens with TLS; 0: 8483. Port 443 of our addresses leads to it
	Name       string      // the network's name on the page; "": "Weft"
	Welcome    string      // the owner's own words on the page, plain text
	Venue      string      // a URL that is about the place, for RFC 8908 (venue-info-url)

	Log *slog.Logger     // nil: silence
	Now func() time.Time // nil: time.Now
}

// Port is a port of this host.
type Port struct {
	Proto string // tcp, udp
	Port  uint16
}

// Guests is the guest network on one interface.
type Guests struct {
	cfg    Config
	store  *Vouchers
	desk   *desk
	portal *portal

	up     atomic.Uint32 // bit 0: IPv4, bit 1: IPv6
	change chan struct{} // SetUplink wakes the advertisements
	dhcp   atomic.Pointer[string]
}

var deviceName = regexp.MustCompile(`^[^\s/:"']{1,15}$`)

// fill puts the defaults in and checks the rest; its errors are about what the owner wrote.
func (c *Config) fill() error {
	def := func(p *uint16, v uint16) {
		if *p == 0 {
			*p = v
		}
	}
	def(&c.DNSPort, 53)
	def(&c.PortalPort, 8480)
	def(&c.TLSPort, 8483)
	if c.DHCP == "" {
		c.DHCP = DHCPAuto
	}
	if c.Access == "" {
		c.Access = AccessVoucher
	}
	if c.Mesh == "" {
		c.Mesh = MeshFree
	}
	if c.Session == 0 {
		c.Session = 24 * time.Hour
	}
	if c.Name == "" {
		c.Name = "Weft"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	switch {
	case !deviceName.MatchString(c.Interface):
		return fmt.Errorf("guests: %q is no name of an interface: name the one that guests connect to, such as br-guest", c.Interface)
	case c.StateDir == "":
		return errors.New("guests: no folder for vouchers and leases")
	case !c.Prefix.IsValid() && !c.Range.IsValid():
		return errors.New("guests need an IPv6 /64 or an IPv4 range, or both")
	case c.Prefix.IsValid() && (c.Prefix.Bits() != 64 || !c.Prefix.Addr().Is6() || c.Prefix.Addr().Is4In6()):
		return fmt.Errorf("guests: devices make their own addresses in a /64 only; %s is none", c.Prefix)
	case c.Range.IsValid() && (!c.Range.Addr().Is4() || c.Range.Bits() < 16 || c.Range.Bits() > 29):
		return fmt.Errorf("guests: the IPv4 range must be between /16 and /29, not %s", c.Range)
	case c.Range.IsValid() && !c.Range.Addr().IsPrivate():
		return fmt.Errorf("guests: %s is not a private range: take one out of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16", c.Range)
	case len(c.Out) == 0:
		return errors.New("guests: name the interface by which their packets leave")
	case len(c.Out) > 8 || len(c.Services) > 32:
		return errors.New("guests: at most 8 interfaces to leave by, and 32 services")
	case c.MTU != 0 && (c.MTU < 1280 || c.MTU > 65535):
		return fmt.Errorf("guests: an MTU of %d bytes is not between 1280 and 65535", c.MTU)
	case c.DHCP != DHCPAuto && c.DHCP != DHCPDnsmasq && c.DHCP != DHCPOwn && c.DHCP != DHCPOff:
		return fmt.Errorf("guests: dhcp is auto, dnsmasq, own or off, not %q", c.DHCP)
	case c.Access != AccessVoucher && c.Access != AccessTap && c.Access != AccessOpen:
		return fmt.Errorf("guests: access is voucher, tap or open, not %q", c.Access)
	case c.Mesh != MeshFree && c.Mesh != MeshVoucher && c.Mesh != MeshClosed:
		return fmt.Errorf("guests: mesh is free, voucher or closed, not %q", c.Mesh)
	case c.Session < time.Minute || c.Session > 365*24*time.Hour:
		return fmt.Errorf("guests: a session lasts between a minute and a year, not %v", c.Session)
	case c.PortalPort == c.TLSPort || c.PortalPort == c.DNSPort || c.TLSPort == c.DNSPort:
		return errors.New("guests: the page, the page with TLS and DNS need three different ports")
	case c.Host != "" && !hostName.MatchString(c.Host), c.Domain != "" && !hostName.MatchString(c.Domain):
		return fmt.Errorf("guests: host %q and domain %q must be names of letters, digits, hyphens and dots", c.Host, c.Domain)
	case c.TLS != nil && c.Host == "":
		return errors.New("guests: a certificate is for a name; say in host which")
	case len(c.Name) > 64 || len(c.Welcome) > 2000:
		return errors.New("guests: the name may have 64 bytes and the welcome 2000")
	}
	for _, o := range c.Out {
		if !deviceName.MatchString(o) || o == c.Interface {
			return fmt.Errorf("guests cannot leave by %q: name the mesh's interface", o)
		}
	}
	for _, s := range c.Services {
		if s.Proto != "tcp" && s.Proto != "udp" || s.Port == 0 {
			return fmt.Errorf("guests: a service is tcp or udp and a port, not %q %d", s.Proto, s.Port)
		}
	}
	if c.Range.IsValid() {
		c.Range = c.Range.Masked()
	}
	if c.Prefix.IsValid() {
		c.Prefix = c.Prefix.Masked()
	}
	return nil
}

var hostName = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,251}[a-zA-Z0-9])?$`)

// Addr4 is our address in the IPv4 range, Addr6 that in the prefix; invalid when there is none.
func (c *Config) Addr4() netip.Addr {
	if !c.Range.IsValid() {
		return netip.Addr{}
	}
	return c.Range.Masked().Addr().Next()
}

// Addr6 is ::1 of the prefix.
func (c *Config) Addr6() netip.Addr {
	if !c.Prefix.IsValid() {
		return netip.Addr{}
	}
	a := c.Prefix.Masked().Addr().As16()
	a[15] = 1
	return netip.AddrFrom16(a)
}

// apiURL is what RFC 8910 announces: empty without a certificate, because RFC 8908 asks for TLS and phones ignore an API
// without it; they find the portal by their probes then.
func (c *Config) apiURL() string {
	if c.TLS == nil || c.Access == AccessOpen {
		return ""
	}
	return "https://" + c.Host + apiPath
}

// Open checks the configuration and opens the voucher store. It changes nothing on the system; [Guests.Serve] does.
func Open(cfg Config) (*Guests, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	g := &Guests{cfg: cfg, store: cfg.Vouchers, change: make(chan struct{}, 1)}
	if g.store == nil {
		var err error
		if g.store, err = OpenVouchers(filepath.Join(cfg.StateDir, "vouchers.json"), cfg.Now); err != nil {
			return nil, err
		}
	}
	g.desk = newDesk(&g.cfg, g.store)
	var err error
	if g.portal, err = newPortal(&g.cfg, g.desk, g.uplink); err != nil {
		return nil, err
	}
	return g, nil
}

// Vouchers returns the store.
func (g *Guests) Vouchers() *Vouchers { return g.store }

// SetUplink says whether there is a way to the internet, by IPv4 and by IPv6. Advertisements follow within seconds: a router
// that has no way out is no default router (its lifetime is 0) but keeps the route to the mesh.
func (g *Guests) SetUplink(up4, up6 bool) {
	var v uint32
	if up4 {
		v |= 1
	}
	if up6 {
		v |= 2
	}
	if g.up.Swap(v) == v {
		return
	}
	select {
	case g.change <- struct{}{}:
	default:
	}
}

func (g *Guests) uplink() (up4, up6 bool) {
	v := g.up.Load()
	return v&1 != 0, v&2 != 0
}

// Status describes the guest network at one moment.
type Status struct {
	Interface string       `json:"interface"`
	Prefix    netip.Prefix `json:"prefix,omitzero"`
	Range     netip.Prefix `json:"range,omitzero"`
	Access    Access       `json:"access"`
	Uplink4   bool         `json:"uplink4"`
	Uplink6   bool         `json:"uplink6"`
	DHCP      string       `json:"dhcp"` // who serves, or why nobody of us does
	Portal    string       `json:"portal"`
	Clients   []Client     `json:"clients"`
}

// Status lists who is here and what they may still use.
func (g *Guests) Status() Status {
	s := Status{Interface: g.cfg.Interface, Prefix: g.cfg.Prefix, Range: g.cfg.Range, Access: g.cfg.Access,
		DHCP: "not started", Portal: g.portal.url(g.anyAddr()), Clients: g.desk.clients()}
	s.Uplink4, s.Uplink6 = g.uplink()
	if d := g.dhcp.Load(); d != nil {
		s.DHCP = *d
	}
	return s
}

// Refresh puts into force what the owner has changed of a voucher: after Revoke at once instead of within a second, and
// after Renew, whose bytes the kernel must be told of.
func (g *Guests) Refresh(id string) error { return g.desk.refresh(id) }

func (g *Guests) anyAddr() netip.Addr {
	if a := g.cfg.Addr4(); a.IsValid() {
		return a
	}
	return g.cfg.Addr6()
}

// MAC is a device's hardware address.
type MAC [6]byte

// ParseMAC reads six pairs of hex digits with colons or hyphens between them.
func ParseMAC(s string) (MAC, error) {
	var m MAC
	t := strings.ReplaceAll(s, "-", ":")
	if len(t) == 17 {
		ok := true
		for i := range m {
			if _, err := hex.Decode(m[i:i+1], []byte(t[3*i:3*i+2])); err != nil || i < 5 && t[3*i+2] != ':' {
				ok = false
			}
		}
		if ok {
			return m, nil
		}
	}
	return MAC{}, fmt.Errorf("%q is no MAC address: write it as aa:bb:cc:dd:ee:ff", s)
}

// String returns the address in lower case with colons.
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// MarshalText is [MAC.String].
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText is [ParseMAC].
func (m *MAC) UnmarshalText(b []byte) (err error) {
	*m, err = ParseMAC(string(b))
	return err
}
