package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"time"

	"golang.org/x/time/rate"
)

// What advertisements say and when they are sent (RFC 4861 sections 6.2.1 and 10). Ours are more frequent than the
// default of 600 s, because a phone should notice within minutes that the internet is gone.
const (
	maxInterval       = 200 * time.Second
	minInterval       = maxInterval / 3
	initialInterval   = 16 * time.Second // MAX_INITIAL_RTR_ADVERT_INTERVAL
	initialCount      = 3                // MAX_INITIAL_RTR_ADVERTISEMENTS
	betweenMulticasts = 3 * time.Second  // MIN_DELAY_BETWEEN_RAS
	maxAnswerDelay    = 500 * time.Millisecond
	maxWaiting        = 64 // solicitations answered by unicast that wait at one time

	routerLifetime    = 3 * maxInterval
	preferredLifetime = 30 * time.Minute
	validLifetime     = 2 * time.Hour // RFC 4862 section 5.5.3 (e): hosts keep a prefix two hours whatever is said
)

const (
	icmpSolicitation  = 133
	icmpAdvertisement = 134
)

// allNodes is where advertisements go.
func allNodes() netip.Addr { return netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 15: 1}) }

// meshPrefix is what the mesh's addresses are in.
func meshPrefix() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 2}), 7) }

// advert is one router advertisement.
type advert struct {
	mac    MAC
	prefix netip.Prefix  // /64
	router time.Duration // lifetime as default router
	routes []netip.Prefix
	dns    netip.Addr
	domain string
	mtu    int
	portal string // RFC 8910
	last   bool   // we are leaving: nothing of it holds any more
}

// appendTo appends the ICMPv6 message without its checksum, which the kernel fills in.
func (a *advert) appendTo(b []byte) []byte {
	secs := func(d time.Duration) uint32 {
		if a.last {
			return 0
		}
		return uint32(d / time.Second)
	}
	be := binary.BigEndian
	b = append(b, icmpAdvertisement, 0, 0, 0, 64, 0) // hop limit 64; neither managed nor other configuration: no DHCPv6
	b = be.AppendUint16(b, uint16(secs(a.router)))
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // reachable and retransmission time: the host's own
	if a.mac != (MAC{}) {
		b = append(append(b, 1, 1), a.mac[:]...)
	}
	if a.mtu > 0 {
		b = be.AppendUint32(append(b, 5, 1, 0, 0), uint32(a.mtu))
	}
	if a.prefix.IsValid() { // RFC 4861 section 4.6.2: on-link, autonomous
		b = append(b, 3, 4, 64, 0xc0)
		valid := uint32(validLifetime / time.Second)
		b = be.AppendUint32(b, valid)
		b = be.AppendUint32(b, secs(preferredLifetime))
		p := a.prefix.Masked().Addr().As16()
		b = append(append(b, 0, 0, 0, 0), p[:]...)
	}
	for _, r := range a.routes { // RFC 4191 section 2.3
		n := (r.Bits() + 63) / 64
		b = append(b, 24, byte(1+n), byte(r.Bits()), 0)
		b = be.AppendUint32(b, secs(routerLifetime))
		p := r.Masked().Addr().As16()
		b = append(b, p[:8*n]...)
	}
	if a.dns.IsValid() { // RFC 8106 section 5.1
		b = be.AppendUint32(append(b, 25, 3, 0, 0), secs(routerLifetime))
		d := a.dns.As16()
		b = append(b, d[:]...)
	}
	if name, ok := appendName(nil, a.domain); ok { // RFC 8106 section 5.2
		for len(name)%8 != 0 {
			name = append(name, 0)
		}
		b = be.AppendUint32(append(b, 31, byte(1+len(name)/8), 0, 0), secs(routerLifetime))
		b = append(b, name...)
	}
	if n := len(a.portal); n > 0 && n <= 254*8 && !a.last { // RFC 8910 section 2.3: padded with zeros
		units := (2 + n + 7) / 8
		at := len(b)
		b = append(append(b, 37, byte(units)), a.portal...)
		for len(b)-at < 8*units {
			b = append(b, 0)
		}
	}
	return b
}

// appendName appends a domain name as labels (RFC 1035 section 3.1).
func appendName(b []byte, name string) ([]byte, bool) {
	if name == "" || len(name) > 253 {
		return b, false
	}
	start := 0
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '.' {
			continue
		}
		if i == start || i-start > 63 {
			return b, false
		}
		b = append(append(b, byte(i-start)), name[start:i]...)
		start = i + 1
	}
	return append(b, 0), true
}

// parseSolicitation checks a router solicitation as RFC 4861 section 6.1.1 asks. from and hops come from the IP header; the
// kernel has checked the checksum.
func parseSolicitation(b []byte, from netip.Addr, hops int) error {
	if len(b) < 8 || b[0] != icmpSolicitation || b[1] != 0 || hops != 255 {
		return errors.New("no router solicitation")
	}
	for o := b[8:]; len(o) > 0; {
		if len(o) < 2 || o[1] == 0 || int(o[1])*8 > len(o) {
			return errors.New("broken option")
		}
		if o[0] == 1 && from.IsUnspecified() {
			return errors.New("a link-layer address without an address")
		}
		o = o[int(o[1])*8:]
	}
	return nil
}

// advertiser decides when to advertise. make is asked for the advertisement of the moment.
type advertiser struct {
	log     *slog.Logger
	make    func(last bool) []byte
	send    func(b []byte, to netip.Addr) error
	solicit <-chan netip.Addr // who has asked; the unspecified address for those that have none yet
	change  <-chan struct{}   // something else is true now
}

// run advertises until ctx ends, and says goodbye then.
func (a *advertiser) run(ctx context.Context) {
	var (
		now      = time.Now()
		last     = now.Add(-betweenMulticasts)
		next     = now // of the multicast
		sent     int
		waiting  = map[netip.Addr]time.Time{} // unicast answers
		unicasts = rate.NewLimiter(20, 40)    // a second
		failing  bool
	)
	timer := time.NewTimer(0)
	defer timer.Stop()
	send := func(final bool, to netip.Addr) {
		err := a.send(a.make(final), to)
		if (err != nil) != failing {
			if failing = err != nil; failing {
				a.log.Warn("router advertisement not sent; trying again", "err", err)
			} else {
				a.log.Info("router advertisements work again")
			}
		}
	}
	sooner := func(t time.Time) { // a multicast, but not before the pause is over
		if e := last.Add(betweenMulticasts); t.Before(e) {
			t = e
		}
		if t.Before(next) {
			next = t
		}
	}
	for {
		wake := next
		for _, t := range waiting {
			if t.Before(wake) {
				wake = t
			}
		}
		timer.Reset(time.Until(wake))
		select {
		case <-ctx.Done():
			send(true, allNodes())
			return
		case <-a.change:
			sooner(time.Now())
		case from := <-a.solicit:
			at := time.Now().Add(rand.N(maxAnswerDelay))
			switch {
			case from.IsUnspecified():
				sooner(at)
			case len(waiting) < maxWaiting && waiting[from].IsZero() && unicasts.Allow(): // radio likes unicast (RFC 7772)
				waiting[from] = at
			}
		case <-timer.C:
			now = time.Now()
			for to, t := range waiting {
				if !t.After(now) {
					delete(waiting, to)
					send(false, to)
				}
			}
			if next.After(now) {
				continue
			}
			send(false, allNodes())
			last, sent = now, sent+1
			gap := minInterval + rand.N(maxInterval-minInterval)
			if sent < initialCount {
				gap = min(gap, initialInterval)
			}
			if failing {
				gap = betweenMulticasts
			}
			next = now.Add(gap)
		}
	}
}
