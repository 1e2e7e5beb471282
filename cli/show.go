package cli

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"weft/api"
	"weft/config"
)

type statusCmd struct{}

func (c *statusCmd) Run(e *env) error {
	s, err := e.node().Status(e.ctx)
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(s)
	}
	line := func(name, format string, args ...any) { e.say("%-10s %s", name, clean(fmt.Sprintf(format, args...))) }
	if s.Name != "" {
		line("Name", "%s", s.Name)
	}
	line("Address", "%s", s.Address)
	line("Subnet", "%s", s.Subnet)
	line("Id", "%s", s.ID)
	line("Role", "%s%s", s.Role, map[bool]string{true: ", metered"}[s.Metered])
	line("Network", "%s", map[bool]string{true: "open", false: "closed, " + s.Community}[s.Community == ""])
	switch s.Mode {
	case "tun":
		line("Interface", "%s, MTU %d", s.TUN, s.MTU)
	default:
		line("Interface", "none: programs use the proxies")
	}
	if s.SOCKS != "" {
		line("SOCKS5", "%s", s.SOCKS)
	}
	if s.HTTP != "" {
		line("HTTP proxy", "%s", s.HTTP)
	}
	line("Listening", "%s", cmp.Or(strings.Join(s.Listen, " "), "nowhere"))
	line("Portal", "%s", cmp.Or(s.Portal, "off"))
	line("Up", "%s, weft %s", span(s.UptimeS), s.Version)
	n := s.Counters
	line("Mesh", "%s, %s, %s", count(n.Links, "neighbour"), count(n.Nodes, "node"), count(n.Routes, "route"))
	line("Yggdrasil", "%s", map[string]string{"absent": "not in this program", "off": "off", "alone": "no link yet", "up": "linked", "shared": "linked, and shared with the mesh"}[s.Yggdrasil])
	for _, l := range internetLines(s.Internet) {
		line(l[0], "%s", l[1])
	}
	line("Traffic", "%s in, %s out, %s carried for others", size(n.RxBytes), size(n.TxBytes), size(n.ForwardedBytes))
	if len(n.Dropped) > 0 {
		var parts []string
		for _, why := range slices.Sorted(maps.Keys(n.Dropped)) {
			parts = append(parts, fmt.Sprintf("%d %s", n.Dropped[why], why))
		}
		line("Dropped", "%s", strings.Join(parts, ", "))
	}
	if len(s.Sessions) > 0 {
		e.say("")
		t := columns("SESSION WITH", "STATE", "CIPHER", ">KEYS SINCE", ">HEARD", ">IN", ">OUT")
		for _, x := range s.Sessions {
			t.row(who(x.Name, x.Address.String()), x.State, x.Cipher, span(x.AgeS), span(x.LastRxS), size(x.RxBytes), size(x.TxBytes))
		}
		t.print(e.out)
	}
	for _, w := range s.Warnings {
		e.say("\nWarning: %s", clean(w))
	}
	if n.Links == 0 {
		e.say("\nNo neighbour yet. Next: connect a cable or a Wi-Fi with another node on it, or: weft peers add udp://HOST:PORT")
		return e.tellStrangers()
	}
	return nil
}

// internetLines tell who shares the internet with whom: pairs of a name and a text.
func internetLines(i api.Internet) (out [][2]string) {
	add := func(name, format string, args ...any) {
		out = append(out, [2]string{name, fmt.Sprintf(format, args...)})
	}
	switch i.Use {
	case "up":
		add("Internet", "from %s, %s", i.From, config.FormatPrice(uint64(i.Price)))
	case "off":
		add("Internet", "from no gateway; see: weft gateway")
	case "resting":
		add("Internet", "by the own line; a gateway when it fails")
	default:
		add("Internet", "%s", strings.Trim(i.Use+": "+i.Why, ": "))
	}
	switch {
	case i.Offer == "on":
		add("Sharing", "this device's line, with %s", count(i.Clients, "node"))
	case i.Offer == "waiting" && (i.Use == "off" || i.Use == "up"):
		add("Sharing", "on, but not now: %s", i.Why)
	case i.Offer == "waiting":
		add("Sharing", "on, but not now; see: weft gateway")
	}
	if i.Guests >= 0 {
		add("Guests", "%s without Weft; see: weft guest", count(i.Guests, "device"))
	}
	return out
}

type routesCmd struct{}

func (c *routesCmd) Run(e *env) error {
	routes, err := e.node().Routes(e.ctx)
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(routes)
	}
	if len(routes) == 0 {
		e.say("No other node is known yet. Next: weft peers")
		return nil
	}
	t := columns("NAME", "ADDRESS", "VIA", "ALTERNATE", ">HOPS", ">COST", ">PRICE/MiB", ">MTU")
	for _, r := range routes {
		if r.Unreachable {
			t.row(r.Name, r.Address, "no path", "", "", "", "", "")
			continue
		}
		t.row(r.Name, r.Address, who(r.NextName, r.NextHop), r.Alternate, r.Hops, micros(r.CostUs), r.Price, r.MTU)
	}
	t.print(e.out)
	return nil
}

type lsdbCmd struct{}

func (c *lsdbCmd) Run(e *env) error {
	entries, err := e.node().LSDB(e.ctx)
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(entries)
	}
	for i, n := range entries {
		if i > 0 {
			e.say("")
		}
		var notes []string
		if n.Metered {
			notes = append(notes, "metered")
		}
		if n.Price > 0 {
			notes = append(notes, fmt.Sprintf("price %d ncredit/MiB", n.Price))
		}
		if !n.Reachable {
			notes = append(notes, "no path")
		}
		e.say("%s  %s  %s  seq %d, %s old, %d bytes%s", who(n.Name, n.ID), n.Address, n.Role, n.Seq, span(n.AgeS), n.Bytes, strings.Join(append([]string{""}, notes...), ", "))
		if n.Offer != "" {
			e.say("  shares the internet: %s", clean(n.Offer))
		}
		t := columns("  LINK TO", ">COST", ">MTU", "")
		for _, l := range n.Neighbours {
			note := " "
			if !l.TwoWay {
				note = "one way: does not count"
			} else if l.Metered {
				note = "metered"
			}
			t.row("  "+who(l.Name, l.ID), micros(l.CostUs), l.MTU, note)
		}
		if len(n.Neighbours) > 0 {
			t.print(e.out)
		}
	}
	return nil
}
