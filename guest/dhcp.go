package guest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// A DHCPv4 server (RFC 2131, 2132) for one range on one link: no relays, no BOOTP, no options but what guests need. The message
// format is small enough to be here whole, where it can be fuzzed.

// DHCP message types.
const (
	dhcpDiscover = 1
	dhcpOffer    = 2
	dhcpRequest  = 3
	dhcpDecline  = 4
	dhcpAck      = 5
	dhcpNak      = 6
	dhcpRelease  = 7
	dhcpInform   = 8
)

// The options that we read or write.
const (
	optMask      = 1
	optRouter    = 3
	optDNS       = 6
	optHostname  = 12
	optDomain    = 15
	optMTU       = 26
	optRequested = 50
	optLease     = 51
	optType      = 53
	optServer    = 54
	optRenew     = 58
	optRebind    = 59
	optClientID  = 61
	optPortal    = 114 // RFC 8910 section 2.1
)

const (
	leaseTime   = time.Hour
	offerTime   = 30 * time.Second // an offer that nobody takes; short, so that nobody takes all by asking
	declineTime = 10 * time.Minute
	warnEvery   = time.Hour // that the range is full
	maxDHCP     = 1500      // bytes of a message that we read
	minDHCP     = 300       // BOOTP's smallest, which some devices insist on
)

var errDHCP = errors.New("no DHCP message")

type dhcpOption struct {
	code byte
	data []byte
}

// dhcpMessage is a message. Options keep their order; those that were split are whole (RFC 3396), pads and ends are gone.
type dhcpMessage struct {
	op      byte
	hops    byte
	xid     uint32
	secs    uint16
	flags   uint16
	client  netip.Addr // ciaddr
	your    netip.Addr // yiaddr
	next    netip.Addr // siaddr
	relay   netip.Addr // giaddr
	mac     MAC
	options []dhcpOption
}

// parseDHCP reads a message from an Ethernet device. Overloaded fields (option 52) are not read: no guest sends what would
// need them.
func parseDHCP(b []byte) (*dhcpMessage, error) {
	if len(b) < 240 || len(b) > maxDHCP || b[1] != 1 || b[2] != 6 || binary.BigEndian.Uint32(b[236:]) != 0x63825363 {
		return nil, errDHCP
	}
	ip := func(at int) netip.Addr { return netip.AddrFrom4([4]byte(b[at:])) }
	m := &dhcpMessage{op: b[0], hops: b[3], xid: binary.BigEndian.Uint32(b[4:]), secs: binary.BigEndian.Uint16(b[8:]),
		flags: binary.BigEndian.Uint16(b[10:]), client: ip(12), your: ip(16), next: ip(20), relay: ip(24), mac: MAC(b[28:34])}
	for o := b[240:]; len(o) > 0; {
		switch o[0] {
		case 0:
			o = o[1:]
			continue
		case 255:
			return m, nil
		}
		if len(o) < 2 || len(o) < 2+int(o[1]) {
			return nil, errDHCP
		}
		code, data := o[0], o[2:2+int(o[1])]
		o = o[2+int(o[1]):]
		if old := m.find(code); old != nil {
			old.data = append(bytes.Clone(old.data), data...)
		} else {
			m.options = append(m.options, dhcpOption{code, data})
		}
	}
	return m, nil // without an end: sloppy, but clear
}

func (m *dhcpMessage) find(code byte) *dhcpOption {
	for i := range m.options {
		if m.options[i].code == code {
			return &m.options[i]
		}
	}
	return nil
}

func (m *dhcpMessage) option(code byte) []byte {
	if o := m.find(code); o != nil {
		return o.data
	}
	return nil
}

// kind is the message type, 0 if there is none.
func (m *dhcpMessage) kind() byte {
	if d := m.option(optType); len(d) == 1 {
		return d[0]
	}
	return 0
}

// addr is an option that is one address, invalid if there is none.
func (m *dhcpMessage) addr(code byte) netip.Addr {
	if d := m.option(code); len(d) == 4 {
		return netip.AddrFrom4([4]byte(d))
	}
	return netip.Addr{}
}

func (m *dhcpMessage) add(code byte, data ...byte) {
	m.options = append(m.options, dhcpOption{code, data})
}

func (m *dhcpMessage) addAddr(code byte, a netip.Addr) {
	b := a.As4()
	m.add(code, b[:]...)
}

func (m *dhcpMessage) addSecs(code byte, d time.Duration) {
	m.add(code, binary.BigEndian.AppendUint32(nil, uint32(d/time.Second))...)
}

// appendTo appends the message, padded to the size that the oldest devices expect.
func (m *dhcpMessage) appendTo(b []byte) []byte {
	start := len(b)
	be := binary.BigEndian
	b = append(b, m.op, 1, 6, m.hops)
	b = be.AppendUint32(b, m.xid)
	b = be.AppendUint16(b, m.secs)
	b = be.AppendUint16(b, m.flags)
	for _, a := range []netip.Addr{m.client, m.your, m.next, m.relay} {
		var ip [4]byte
		if a.Is4() {
			ip = a.As4()
		}
		b = append(b, ip[:]...)
	}
	b = append(b, m.mac[:]...)
	b = append(b, make([]byte, 10+64+128)...)
	b = be.AppendUint32(b, 0x63825363)
	for _, o := range m.options {
		data := o.data
		for first := true; first || len(data) > 0; first = false { // RFC 3396: what is too long goes in pieces
			n := min(len(data), 255)
			b = append(append(b, o.code, byte(n)), data[:n]...)
			data = data[n:]
		}
	}
	b = append(b, 255)
	for len(b)-start < minDHCP {
		b = append(b, 0)
	}
	return b
}

// lease is one address that is taken.
type lease struct {
	Addr  netip.Addr `json:"addr"`
	MAC   MAC        `json:"mac"`
	Name  string     `json:"name,omitempty"`
	Until time.Time  `json:"until"`
	bound bool       // by a request; offers are not written to disk
}

// leases is the server's memory and its answers.
type leases struct {
	cfg  *Config
	path string
	now  func() time.Time
	log  *slog.Logger

	mu     sync.Mutex
	byAddr map[netip.Addr]*lease
	byMAC  map[MAC]*lease
	others map[netip.Addr]bool // servers that guests have chosen instead of us
	dirty  bool
	full   time.Time // when no address was free: for a second nobody looks again, whoever asks how often
	warned time.Time
}

// newLeases reads the leases that were given before, if the file is there and can be read; addresses are cheap.
func newLeases(cfg *Config, path string) *leases {
	l := &leases{cfg: cfg, path: path, now: cfg.Now, log: cfg.Log, byAddr: map[netip.Addr]*lease{}, byMAC: map[MAC]*lease{}, others: map[netip.Addr]bool{}}
	b, err := os.ReadFile(path)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			l.log.Warn("DHCP leases not read; beginning without", "err", err)
		}
		return l
	}
	var all []lease
	if len(b) > 16<<20 || json.Unmarshal(b, &all) != nil {
		l.log.Warn("DHCP leases not understood; beginning without", "file", path)
		return l
	}
	for _, e := range all {
		if l.usable(e.Addr) && l.byAddr[e.Addr] == nil && l.byMAC[e.MAC] == nil {
			e.bound = true
			l.byAddr[e.Addr], l.byMAC[e.MAC] = &e, &e
		}
	}
	return l
}

// usable reports whether an address may be given away: in the range, not ours, neither the network nor its broadcast.
func (l *leases) usable(a netip.Addr) bool {
	return a.Is4() && l.cfg.Range.Contains(a) && a != l.cfg.Range.Addr() && a != l.cfg.Addr4() && l.cfg.Range.Contains(a.Next())
}

func (l *leases) dropLocked(e *lease) {
	delete(l.byAddr, e.Addr)
	if l.byMAC[e.MAC] == e {
		delete(l.byMAC, e.MAC)
	}
	l.dirty = true
}

// pickLocked finds an address for a device: the one it has, the one it wishes if that is free, else the first free one from a
// place that its MAC decides, so that a device gets its old address even after the file is lost.
func (l *leases) pickLocked(mac MAC, wish netip.Addr) *lease {
	if e := l.byMAC[mac]; e != nil {
		return e
	}
	now := l.now()
	free := func(a netip.Addr) bool {
		e := l.byAddr[a]
		return e == nil || !now.Before(e.Until)
	}
	take := func(a netip.Addr) *lease {
		if old := l.byAddr[a]; old != nil {
			l.dropLocked(old)
		}
		e := &lease{Addr: a, MAC: mac, Until: now.Add(offerTime)}
		l.byAddr[a], l.byMAC[mac] = e, e
		return e
	}
	if wish.IsValid() && l.usable(wish) && free(wish) {
		return take(wish)
	}
	if since := now.Sub(l.full); since >= 0 && since < time.Second {
		return nil
	}
	base := l.cfg.Range.Addr().As4()
	first, size := binary.BigEndian.Uint32(base[:]), uint32(1)<<(32-l.cfg.Range.Bits())
	h := uint32(2166136261) // FNV-1a
	for _, c := range mac {
		h = (h ^ uint32(c)) * 16777619
	}
	for i := range size {
		a := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, first+(h+i)%size)))
		if l.usable(a) && free(a) {
			return take(a)
		}
	}
	l.full = now
	if since := now.Sub(l.warned); since < 0 || since >= warnEvery {
		l.warned = now
		l.log.Warn("no free address for a guest; take a larger range", "range", l.cfg.Range)
	}
	return nil
}

// answer handles one message and returns the reply and where it goes; nil if there is none. It never gives an address away that
// somebody has.
func (l *leases) answer(m *dhcpMessage) (reply *dhcpMessage, to netip.Addr) {
	if m.op != 1 || m.relay.IsValid() && !m.relay.IsUnspecified() || m.mac == (MAC{}) || m.mac[0]&1 != 0 {
		return nil, to
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	us := l.cfg.Addr4()
	server := m.addr(optServer)
	wish := m.addr(optRequested)
	now := l.now()
	to = netip.AddrFrom4([4]byte{255, 255, 255, 255}) // devices without an address hear broadcasts
	base := func(kind byte) *dhcpMessage {
		r := &dhcpMessage{op: 2, xid: m.xid, flags: m.flags, mac: m.mac}
		r.add(optType, kind)
		r.addAddr(optServer, us)
		return r
	}
	switch m.kind() {
	case dhcpDiscover:
		e := l.pickLocked(m.mac, wish)
		if e == nil {
			return nil, to
		}
		if !e.bound {
			e.Until = now.Add(offerTime)
		}
		r := base(dhcpOffer)
		r.your = e.Addr
		l.describe(r, true)
		return r, to
	case dhcpRequest:
		if server.IsValid() && server != us { // another server was chosen
			if e := l.byMAC[m.mac]; e != nil && !e.bound {
				l.dropLocked(e)
			}
			if len(l.others) < 16 && !l.others[server] {
				l.others[server] = true
				l.log.Warn("another DHCP server answers guests: stop one of the two", "other", server)
			}
			return nil, to
		}
		want := wish
		if !want.IsValid() {
			want = m.client // renewing
		}
		e := l.byMAC[m.mac]
		if e == nil && l.usable(want) { // rebooting, and we have forgotten: an address that is free may be kept
			e = l.pickLocked(m.mac, want)
		}
		if e == nil || e.Addr != want {
			if e != nil && !e.bound && server != us {
				l.dropLocked(e) // made a moment ago for a wish that cannot be granted
			}
			return base(dhcpNak), to
		}
		e.bound, e.Until, l.dirty = true, now.Add(leaseTime), true
		if h := m.option(optHostname); len(h) > 0 {
			e.Name = cleanName(string(h))
		}
		r := base(dhcpAck)
		r.your, r.client = e.Addr, m.client
		l.describe(r, true)
		if m.client.IsValid() && !m.client.IsUnspecified() {
			if m.client != e.Addr {
				return base(dhcpNak), to
			}
			to = m.client
		}
		return r, to
	case dhcpDecline:
		if e := l.byMAC[m.mac]; e != nil && e.Addr == wish && server == us { // somebody else has it
			l.dropLocked(e)
			l.byAddr[wish] = &lease{Addr: wish, Until: now.Add(declineTime)}
		}
	case dhcpRelease:
		if e := l.byMAC[m.mac]; e != nil && e.Addr == m.client && server == us {
			l.dropLocked(e)
		}
	case dhcpInform:
		if l.usable(m.client) {
			r := base(dhcpAck)
			r.client = m.client
			l.describe(r, false)
			return r, m.client
		}
	}
	return nil, to
}

// describe adds what a guest must know of the network.
func (l *leases) describe(r *dhcpMessage, leased bool) {
	if leased {
		r.addSecs(optLease, leaseTime)
		r.addSecs(optRenew, leaseTime/2)
		r.addSecs(optRebind, leaseTime*7/8)
	}
	us := l.cfg.Addr4()
	r.addAddr(optMask, maskOf(l.cfg.Range))
	r.addAddr(optRouter, us)
	r.addAddr(optDNS, us)
	if l.cfg.Domain != "" {
		r.add(optDomain, []byte(l.cfg.Domain)...)
	}
	if l.cfg.MTU > 0 {
		r.add(optMTU, byte(l.cfg.MTU>>8), byte(l.cfg.MTU))
	}
	if u := l.cfg.apiURL(); u != "" {
		r.add(optPortal, []byte(u)...)
	}
}

func maskOf(p netip.Prefix) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))))
}

// cleanName keeps of what a device calls itself only what is safe to print.
func cleanName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.' {
			return r
		}
		return -1
	}, s)
	return s[:min(len(s), 63)]
}

// names returns what devices call themselves.
func (l *leases) names() map[MAC]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[MAC]string{}
	for m, e := range l.byMAC {
		if e.Name != "" {
			out[m] = e.Name
		}
	}
	return out
}

// flush forgets what is over and writes the rest, if anything has changed.
func (l *leases) flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	all := []lease{}
	for _, e := range l.byAddr {
		if now.Sub(e.Until) > 7*24*time.Hour || !e.bound && !now.Before(e.Until) {
			l.dropLocked(e)
		} else if e.bound {
			all = append(all, *e)
		}
	}
	if !l.dirty {
		return nil
	}
	b, err := json.Marshal(all)
	if err == nil {
		err = writeFile(l.path, b)
	}
	if err != nil {
		return fmt.Errorf("save DHCP leases: %w", err)
	}
	l.dirty = false
	return nil
}

// probe is a DISCOVER that asks whether anybody else serves.
func dhcpProbe(mac MAC, xid uint32) []byte {
	m := dhcpMessage{op: 1, xid: xid, flags: 0x8000, mac: mac}
	m.add(optType, dhcpDiscover)
	m.add(55, optMask, optRouter)
	return m.appendTo(nil)
}

// dhcpOfferIn finds an answer to a probe in an IPv4 packet and returns the server that sent it.
func dhcpOfferIn(ip []byte, xid uint32) (netip.Addr, bool) {
	if len(ip) < 20 || ip[0]>>4 != 4 || ip[9] != 17 || binary.BigEndian.Uint16(ip[6:])&0x1fff != 0 {
		return netip.Addr{}, false
	}
	head, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if head < 20 || total > len(ip) || total < head+8 || binary.BigEndian.Uint16(ip[head+2:]) != 68 {
		return netip.Addr{}, false
	}
	m, err := parseDHCP(ip[head+8 : total])
	if err != nil || m.op != 2 || m.xid != xid || m.kind() != dhcpOffer {
		return netip.Addr{}, false
	}
	if s := m.addr(optServer); s.IsValid() {
		return s, true
	}
	return netip.AddrFrom4([4]byte(ip[12:])), true
}
