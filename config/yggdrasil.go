package config

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"weft/ident"
)

// yggPrefix marks a URI as Yggdrasil's where those of Weft stand too: tls and wss are kinds of link in both.
const yggPrefix = "ygg+"

// YggdrasilURI says whether a URI that a person wrote for a command means the Yggdrasil plane, and returns it as Yggdrasil
// writes it. The rule: ygg+tls:// always does, and so do the kinds of link that Weft itself has not; tls:// and wss:// are
// Weft's own.
func YggdrasilURI(s string) (uri string, ok bool) {
	if rest, ok := strings.CutPrefix(s, yggPrefix); ok {
		return rest, true
	}
	scheme, _, _ := strings.Cut(s, "://")
	switch scheme {
	case "tcp", "quic", "ws", "unix", "socks", "sockstls":
		return s, true
	}
	return s, false
}

// CheckAnyURI checks a URI of either plane, as commands take them.
func CheckAnyURI(s string) error {
	if uri, ok := YggdrasilURI(s); ok {
		return CheckYggdrasilURI(uri, false)
	}
	return CheckURI(s, false)
}

// SameYggdrasilPeer reports whether two URIs name the same link: options do not count.
func SameYggdrasilPeer(a, b string) bool {
	a, _, _ = strings.Cut(a, "?")
	b, _, _ = strings.Cut(b, "?")
	return a == b
}

// CheckYggdrasilURI reports why a URI cannot be listened on or dialled in the Yggdrasil plane.
func CheckYggdrasilURI(s string, listen bool) error {
	const form = "written like tls://192.0.2.7:443, tcp://[2001:db8::1]:9002 or unix:///run/peer.sock"
	u, err := url.Parse(s)
	if err != nil || s == "" {
		return fmt.Errorf("%q is not a URI; %s", s, form)
	}
	switch u.Scheme {
	case "tcp", "tls", "quic", "ws", "wss":
		if u.Scheme == "wss" && listen {
			return fmt.Errorf("%q: Yggdrasil listens to no wss; listen to ws://[::1]:PORT and put a web server with your certificate before it", s)
		}
		if u.Hostname() == "" && !listen || u.Port() == "" {
			return fmt.Errorf("%q needs a host and a port; %s", s, form)
		}
		if _, err := netip.ParseAddr(u.Hostname()); listen && u.Hostname() != "" && err != nil {
			return fmt.Errorf("%q: %q is not an address of this device; [::] stands for all", s, u.Hostname())
		}
	case "unix":
		if u.Host != "" || !strings.HasPrefix(u.Path, "/") {
			return fmt.Errorf("%q needs a whole path: unix:///run/peer.sock", s)
		}
	case "socks", "sockstls":
		if listen {
			return fmt.Errorf("%q: nobody can listen through a proxy", s)
		}
		if u.Hostname() == "" || u.Port() == "" || len(u.Path) < 2 {
			return fmt.Errorf("%q needs a proxy and a peer: socks://127.0.0.1:9050/192.0.2.7:9002", s)
		}
	default:
		return fmt.Errorf("%q: %q is not a kind of link of Yggdrasil; allowed: tcp, tls, quic, ws, wss, unix, socks, sockstls", s, u.Scheme)
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return fmt.Errorf("%q: the options cannot be read: %w", s, err)
	}
	for name, values := range q {
		v := values[0]
		switch name {
		case "key":
			for _, v := range values {
				if _, err := ident.ParsePublicKey(v); err != nil {
					return fmt.Errorf("%q: key: %w", s, err)
				}
			}
		case "priority":
			if n, err := strconv.ParseUint(v, 10, 8); err != nil || n == 255 {
				return fmt.Errorf("%q: priority %s is not allowed; allowed: 0 to 254", s, v)
			}
		case "password":
			if len(v) > 64 {
				return fmt.Errorf("%q: a password has at most 64 bytes", s)
			}
		case "maxbackoff":
			if d, err := time.ParseDuration(v); err != nil || d < 5*time.Second {
				return fmt.Errorf("%q: maxbackoff %s is not allowed; allowed: 5s and more", s, v)
			}
		case "sni", "interface", "origin":
		default:
			return fmt.Errorf("%q: there is no option %s; allowed: key, password, priority, maxbackoff, sni, interface", s, name)
		}
	}
	return nil
}

func (f *file) checkYggdrasil(y *Yggdrasil) {
	f.word("yggdrasil.enabled", string(y.Enabled), "auto", "on", "off")
	for i, u := range y.Peers {
		if err := CheckYggdrasilURI(u, false); err != nil {
			f.report(fmt.Sprintf("yggdrasil.peers.%d", i), "%v", err)
		}
	}
	for i, u := range y.Listen {
		if err := CheckYggdrasilURI(u, true); err != nil {
			f.report(fmt.Sprintf("yggdrasil.listen.%d", i), "%v", err)
		}
	}
	f.short("yggdrasil.peers", len(y.Peers), maxList)
	f.short("yggdrasil.listen", len(y.Listen), 16)
	f.short("yggdrasil.allowed_public_keys", len(y.Allowed), maxList)
	f.short("yggdrasil.multicast", len(y.Multicast), 64)
	for i, m := range y.Multicast {
		if err := m.check(); err != nil {
			f.report(fmt.Sprintf("yggdrasil.multicast.%d", i), "%v", err)
		}
	}
	if y.Admin != "" {
		if err := checkAdmin(y.Admin); err != nil {
			f.report("yggdrasil.admin", "%v", err)
		}
	}
}

func (m YggMulticast) check() error {
	if _, err := regexp.Compile(m.Regex); err != nil || m.Regex == "" {
		return fmt.Errorf("regex: %q is not a regular expression; written like eth0 or wlan.*", m.Regex)
	}
	if len(m.Password) > 64 {
		return errors.New("password: has at most 64 bytes")
	}
	if m.Priority == 255 {
		return errors.New("priority: 255 is not allowed; allowed: 0 to 254")
	}
	return nil
}

// checkAdmin keeps the admin socket on this device: it asks nobody for a password.
func checkAdmin(s string) error {
	u, err := url.Parse(s)
	if err == nil && u.Scheme == "unix" && u.Host == "" && strings.HasPrefix(u.Path, "/") {
		return nil
	}
	if err == nil && u.Scheme == "tcp" && u.Port() != "" {
		if a, err := netip.ParseAddr(u.Hostname()); err == nil && a.IsLoopback() || u.Hostname() == "localhost" {
			return nil
		}
	}
	return fmt.Errorf("%q is not allowed; allowed: unix:///PATH, or tcp:// with an address of this device itself, like tcp://127.0.0.1:9001", s)
}
