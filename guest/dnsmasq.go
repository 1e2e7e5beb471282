package guest

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// dnsmasqConfig is a configuration for a dnsmasq that gives IPv4 addresses on the guests' interface and does nothing else:
// no DNS, no other interface, none of the system's files.
func dnsmasqConfig(c *Config, leaseFile, pidFile string) string {
	base := c.Range.Addr().As4()
	n := binary.BigEndian.Uint32(base[:])
	at := func(i uint32) netip.Addr { return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, i))) }
	first, last := at(n+2), at(n+uint32(1)<<(32-c.Range.Bits())-2)
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Written by weft for its guests; it is written anew at every start.")
	line("port=0")
	line("interface=%s", c.Interface)
	line("except-interface=lo")
	line("bind-interfaces")
	line("no-hosts")
	line("no-resolv")
	line("no-ping")
	line("log-facility=-")
	line("pid-file=%s", pidFile)
	line("dhcp-leasefile=%s", leaseFile)
	line("dhcp-authoritative")
	line("dhcp-range=%s,%s,%s,%ds", first, last, maskOf(c.Range), int(leaseTime.Seconds()))
	line("dhcp-option=%d,%s", optRouter, c.Addr4())
	line("dhcp-option=%d,%s", optDNS, c.Addr4())
	if c.Domain != "" {
		line("dhcp-option=%d,%s", optDomain, c.Domain)
	}
	if c.MTU > 0 {
		line("dhcp-option=%d,%d", optMTU, c.MTU)
	}
	if u := c.apiURL(); u != "" {
		line("dhcp-option-force=%d,%s", optPortal, u)
	}
	return b.String()
}

// dnsmasqNames reads the names of devices out of dnsmasq's lease file: lines of expiry, MAC, address, name, client ID.
func dnsmasqNames(file string) map[MAC]string {
	out := map[MAC]string{}
	s := bufio.NewScanner(strings.NewReader(file))
	for s.Scan() && len(out) < maxClients {
		f := strings.Fields(s.Text())
		if len(f) < 4 || f[3] == "*" {
			continue
		}
		if m, err := ParseMAC(f[1]); err == nil {
			out[m] = cleanName(f[3])
		}
	}
	return out
}
