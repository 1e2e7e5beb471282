package link

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"weft/ident"
)

// Discovery on LANs (docs/spec/link.md section 2): beacons out, nodes heard, and the choice of whom to dial.

const (
	maxHeard       = 1024
	heardFor       = 100 * time.Second // three beacons at the slowest rate, and some
	maxDials       = 16                // at once
	answerAfter    = 5 * time.Millisecond
	answerEvery    = 200 * time.Millisecond
	giveWay        = 300 * time.Millisecond // the higher key waits so long for the lower one's dial
	lanDialTimeout = 3 * time.Second
	lanPause       = time.Second
	lanIdle        = 5 * time.Minute  // a link that the LAN cap does not choose goes when idle for so long
	lanUnused      = 10 * time.Second // …and sooner when nothing ever flowed: it dates from a time when few were heard
	lanAway        = 10 * time.Minute
	maxFailures    = 3 // a node that cannot be dialed does not take part in the choice
	sweepEvery     = 5 * time.Second
)

// beaconTimes are the pauses between beacons after an interface came up or a link was lost; the last one stays.
var beaconTimes = []time.Duration{
	0, 200 * time.Millisecond, 300 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second,
	8 * time.Second, 15 * time.Second, 30 * time.Second,
}

type discovery struct {
	m       *Manager
	sock    Beacons
	limiter *rate.Limiter
	wake    chan struct{}
	slots   chan struct{}

	mu     sync.Mutex // guards what follows
	lans   map[int]*lan
	heard  map[heardKey]*heardNode
	rescan bool
}

type lan struct {
	iface  Interface
	step   int
	next   time.Time
	last   time.Time
	choice map[ident.NodeID]bool // nil: all
	stale  bool                  // choice must be made anew
}

type heardKey struct {
	iface int
	key   ident.PublicKey
}

type heardNode struct {
	heardKey
	ip        netip.Addr
	beacon    beacon
	last      time.Time
	dialing   bool
	failures  int
	nextDial  time.Time
	away      time.Time // the neighbour said that the LAN does not need this link
	wanted    time.Time
	duplicate bool // another node here uses this node's key
	err       error
}

func newDiscovery(m *Manager) (*discovery, error) {
	s, err := m.under.OpenBeacons()
	if err != nil {
		return nil, err
	}
	return &discovery{
		m: m, sock: s, limiter: rate.NewLimiter(20, 40), wake: make(chan struct{}, 1), slots: make(chan struct{}, maxDials),
		lans: map[int]*lan{}, heard: map[heardKey]*heardNode{}, rescan: true,
	}, nil
}

func (d *discovery) kick() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// interfacesChanged makes run look at the interfaces again.
func (d *discovery) interfacesChanged() {
	d.mu.Lock()
	d.rescan = true
	d.mu.Unlock()
	d.kick()
}

// linkDown makes beacons frequent again and dials the neighbour anew.
func (d *discovery) linkDown(l *Link) {
	now := time.Now()
	reason := context.Cause(l.ctx)
	unneeded := hasCode(reason, codeUnneeded)
	d.mu.Lock()
	for _, h := range d.heard {
		if h.key != l.peer {
			continue
		}
		d.retryLocked(h, now)
		if reason == error(errCarrier) {
			h.nextDial = now.Add(lanPause) // sooner when the interface is back
		}
		if unneeded {
			h.away = now.Add(lanAway)
		} else if n := d.lans[h.iface]; n != nil {
			n.restart(now)
		}
	}
	d.mu.Unlock()
	d.kick()
}

// retryLocked makes a node be dialed soon: at once by the lower key, which goes first.
func (d *discovery) retryLocked(h *heardNode, now time.Time) {
	h.failures = 0
	h.nextDial = now
	if !d.m.before(h.key) {
		h.nextDial = now.Add(giveWay)
	}
}

func (n *lan) restart(now time.Time) {
	n.step, n.next = 0, now
	if early := n.last.Add(answerEvery); n.next.Before(early) {
		n.next = early
	}
}

// run sends beacons and dials until ctx ends.
func (d *discovery) run(ctx context.Context) {
	defer d.sock.Close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	nextSweep := time.Now().Add(sweepEvery)
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.wake:
		case <-timer.C:
		}
		now := time.Now()
		d.mu.Lock()
		if d.rescan {
			d.rescan = false
			d.scanLocked(now)
		}
		if !now.Before(nextSweep) {
			nextSweep = now.Add(sweepEvery)
			d.sweepLocked(now)
		}
		next := nextSweep
		send := d.beaconsLocked(now, &next)
		dials := d.dialsLocked(now, &next)
		d.mu.Unlock()
		if b := d.m.beacon(); b.Port != 0 { // else no socket speaks IPv6
			for _, i := range send {
				_ = d.sock.Send(i, b.appendTo(nil)) // fails on an interface that just went away
			}
		}
		for _, h := range dials {
			d.m.links.Go(func() { d.dial(ctx, h) })
		}
		timer.Reset(max(time.Until(next), time.Millisecond))
	}
}

// scanLocked joins the group on new interfaces and leaves it on those that went.
func (d *discovery) scanLocked(now time.Time) {
	d.m.mu.Lock()
	ifaces := d.m.ifaces
	d.m.mu.Unlock()
	for i, n := range d.lans {
		if f, ok := ifaces[i]; !ok || !d.suits(f) {
			d.sock.Leave(i)
			delete(d.lans, i)
		} else {
			n.iface = f
		}
	}
	for i, f := range ifaces {
		if d.lans[i] == nil && d.suits(f) {
			if err := d.sock.Join(i); err != nil {
				d.m.cfg.Log.Debug("no discovery on interface", "interface", f.Name, "err", err)
				continue
			}
			d.lans[i] = &lan{iface: f, next: now, stale: true}
			for _, h := range d.heard { // heard before the cable was pulled
				if h.iface == i {
					d.retryLocked(h, now)
				}
			}
		}
	}
}

// suits reports whether an interface is a LAN to look for neighbours on: with a link-local address, and not the mesh's own.
func (d *discovery) suits(f Interface) bool {
	linkLocal := false
	for _, p := range f.Addrs {
		if ident.MeshPrefix.Contains(p.Addr()) {
			return false
		}
		linkLocal = linkLocal || p.Addr().Is6() && p.Addr().IsLinkLocalUnicast()
	}
	c := &d.m.cfg.Multicast
	wanted := len(c.Interfaces) == 0 || matchesAny(c.Interfaces, f.Name)
	return linkLocal && f.Running && f.Multicast && wanted && !matchesAny(c.Exclude, f.Name)
}

func (d *discovery) sweepLocked(now time.Time) {
	for k, h := range d.heard {
		if now.Sub(h.last) > heardFor && !h.dialing && d.m.LinkTo(h.key) == nil {
			delete(d.heard, k)
			if n := d.lans[k.iface]; n != nil {
				n.stale = true
			}
		}
	}
	for _, l := range d.m.Links() {
		if l.lanID.Load() && d.unneededLocked(l, now) {
			l.die(errUnneeded)
		}
	}
}

// unneededLocked reports whether the LAN cap leaves the link out and nothing flows over it.
func (d *discovery) unneededLocked(l *Link, now time.Time) bool {
	l.mu.Lock()
	quiet := lanIdle
	if l.lastData.IsZero() {
		quiet = lanUnused
	}
	idle := now.Sub(l.started) > quiet && now.Sub(l.lastData) > quiet && now.Sub(l.wanted) > lanIdle
	l.mu.Unlock()
	if !idle {
		return false
	}
	n := d.lans[int(l.path.to.Load().ep.Scope)]
	return n != nil && !d.chosenLocked(n, l.peer)
}

func (d *discovery) beaconsLocked(now time.Time, next *time.Time) (send []int) {
	for i, n := range d.lans {
		if !now.Before(n.next) {
			send = append(send, i)
			n.last = now
			n.step = min(n.step+1, len(beaconTimes)-1)
			pause := beaconTimes[n.step]
			n.next = now.Add(pause - pause/8 + rand.N(pause/4+1))
		}
		if n.next.Before(*next) {
			*next = n.next
		}
	}
	return send
}

// dialsLocked picks the nodes to dial now.
func (d *discovery) dialsLocked(now time.Time, next *time.Time) (dials []*heardNode) {
	for _, h := range d.heard {
		n := d.lans[h.iface]
		if n == nil || h.dialing || h.duplicate || h.beacon.Community != d.m.community || now.Sub(h.last) > heardFor {
			continue
		}
		wanted := now.Sub(h.wanted) < lanIdle
		if !wanted && (now.Before(h.away) || !d.chosenLocked(n, h.key)) {
			continue
		}
		if l := d.m.LinkTo(h.key); l != nil && l.rank >= rankLAN {
			continue
		}
		if now.Before(h.nextDial) {
			if h.nextDial.Before(*next) {
				*next = h.nextDial
			}
			continue
		}
		if len(dials)+len(d.slots) >= maxDials || !d.limiter.AllowN(now, 1) {
			if soon := now.Add(lanPause / 10); soon.Before(*next) {
				*next = soon
			}
			break
		}
		h.dialing = true
		dials = append(dials, h)
	}
	return dials
}

// chosenLocked applies the LAN cap.
func (d *discovery) chosenLocked(n *lan, key ident.PublicKey) bool {
	if n.stale {
		n.stale = false
		var ids []ident.NodeID
		for _, h := range d.heard {
			if h.iface == n.iface.Index && h.beacon.Community == d.m.community && !h.duplicate &&
				(h.failures < maxFailures || d.m.LinkTo(h.key) != nil) {
				ids = append(ids, h.key.ID())
			}
		}
		n.choice = lanChoice(d.m.self.ID(), ids, d.m.cfg.LANCap)
	}
	return n.choice == nil || n.choice[key.ID()]
}

// lanChoice chooses whom to link with on a LAN: everybody (nil) while there are at most limit others or no limit; else, on the ring
// of all ids in order, the nodes 1, 2, 4, 16, 64 … places away in both directions. The choice is symmetric when both ends
// hear the same nodes, and the ring keeps the LAN connected when some do not.
func lanChoice(self ident.NodeID, others []ident.NodeID, limit int) map[ident.NodeID]bool {
	if limit <= 0 || len(others) <= limit {
		return nil
	}
	ring := append(slices.Clone(others), self)
	slices.Sort(ring)
	ring = slices.Compact(ring)
	at, _ := slices.BinarySearch(ring, self)
	n := len(ring)
	choice := map[ident.NodeID]bool{}
	for _, step := range []int{1, 2, 4, 16, 64, 256, 1024} {
		if step >= n {
			break
		}
		choice[ring[(at+step)%n]] = true
		choice[ring[(at-step%n+n)%n]] = true
	}
	delete(choice, self)
	return choice
}

// dial tries one node that was heard.
func (d *discovery) dial(ctx context.Context, h *heardNode) {
	d.slots <- struct{}{}
	defer func() { <-d.slots }()
	d.mu.Lock()
	ip, b := h.ip, h.beacon
	d.mu.Unlock()
	var err error
	if s := d.m.socketFor(ip); s == nil {
		err = errors.New("no listening socket speaks IPv6")
	} else {
		w := way{pin: h.key, multiplier: 1000, lan: true, via: s, rank: rankLAN}
		w.ep = endpointOf(netip.AddrPortFrom(ip, b.Port), uint32(h.iface))
		w.ep.Via = s.via
		dctx, cancel := context.WithTimeout(ctx, lanDialTimeout)
		_, err = d.m.dial(dctx, w)
		cancel()
	}
	now := time.Now()
	d.mu.Lock()
	h.dialing = false
	h.err = err
	switch {
	case err == nil:
		h.failures = 0
	case hasCode(err, codeDuplicate):
		h.err = nil
		h.nextDial = now.Add(giveWay)
	case hasCode(err, codeUnneeded):
		h.away = now.Add(lanAway)
	default:
		h.failures++
		if h.failures == maxFailures {
			if n := d.lans[h.iface]; n != nil {
				n.stale = true
			}
		}
		pause := min(lanPause<<min(h.failures, 6), maxPause)
		h.nextDial = now.Add(pause - pause/4 + rand.N(pause/2))
	}
	d.mu.Unlock()
	d.kick()
}

func (m *Manager) beacon() beacon {
	b := beacon{Instance: m.instance, Community: m.community, Key: m.self}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.sockets {
		if a := s.at.Addr(); !a.IsValid() || a.Is6() {
			b.Port = s.LocalPort()
			break
		}
	}
	return b
}

// read takes beacons until the socket closes.
func (d *discovery) read() {
	var buf [beaconLen + 1]byte // one more, so that a longer datagram is not taken for a beacon
	for {
		n, from, err := d.sock.Receive(buf[:])
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			d.m.cfg.Log.Warn("discovery stopped", "err", err)
			return
		}
		b, err := parseBeacon(buf[:n])
		ip := addrOf(from)
		if err != nil || !ip.Is6() || !ip.IsLinkLocalUnicast() || from.Scope == 0 {
			continue
		}
		d.hear(b, ip, int(from.Scope), time.Now())
	}
}

// hear notes a beacon.
func (d *discovery) hear(b beacon, ip netip.Addr, iface int, now time.Time) {
	self := b.Key == d.m.self
	if self && b.Instance == d.m.instance {
		return // our own, looped back
	}
	d.mu.Lock()
	n := d.lans[iface]
	if n == nil {
		d.mu.Unlock()
		return
	}
	k := heardKey{iface, b.Key}
	h := d.heard[k]
	fresh := h == nil || h.beacon.Instance != b.Instance || h.beacon.Port != b.Port || h.ip != ip
	restarted := h != nil && h.beacon.Instance != b.Instance
	if h == nil {
		if len(d.heard) >= maxHeard && !d.evictLocked() {
			d.mu.Unlock()
			return
		}
		h = &heardNode{heardKey: k, duplicate: self}
		d.heard[k] = h
		n.stale = true
		if self {
			d.m.cfg.Log.Error("another node on this LAN uses this node's key; give it a key of its own", "interface", n.iface.Name, "endpoint", ip)
		}
	}
	h.last = now
	if fresh && (h.beacon.Key.IsZero() || h.failures == 0 || restarted) {
		d.retryLocked(h, now)
	}
	if fresh {
		h.ip, h.beacon = ip, b
		if h.beacon.Community == d.m.community && !self { // answer, so that the other need not wait for our next beacon
			answer := now.Add(answerAfter + rand.N(answerAfter))
			if early := n.last.Add(answerEvery); answer.Before(early) {
				answer = early
			}
			if answer.Before(n.next) {
				n.next = answer
			}
		}
	}
	d.mu.Unlock()
	if fresh {
		d.kick()
	}
	if l := d.m.LinkTo(b.Key); l != nil && l.instance != b.Instance {
		l.Suspect() // it restarted, if the beacon is true
	}
}

// evictLocked makes room for another node: one that has no link goes.
func (d *discovery) evictLocked() bool {
	for k, h := range d.heard { // in the map's random order
		if !h.dialing && d.m.LinkTo(h.key) == nil {
			delete(d.heard, k)
			return true
		}
	}
	return false
}

func (d *discovery) want(key ident.PublicKey) {
	d.mu.Lock()
	for _, h := range d.heard {
		if h.key == key {
			h.wanted = time.Now()
		}
	}
	d.mu.Unlock()
	d.kick()
}

func (d *discovery) list() []Heard {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]Heard, 0, len(d.heard))
	for _, h := range d.heard {
		n := d.lans[h.iface]
		if n == nil {
			continue
		}
		e := Heard{
			Key: h.key, Interface: n.iface.Name, Last: h.last, Member: h.beacon.Community == d.m.community,
			Endpoint: netip.AddrPortFrom(h.ip.WithZone(n.iface.Name), h.beacon.Port).String(),
			Linked:   d.m.LinkTo(h.key) != nil, Chosen: d.chosenLocked(n, h.key),
		}
		if h.err != nil {
			e.Error = h.err.Error()
		}
		if h.duplicate {
			e.Error = "uses this node's key"
		}
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Heard) int { return slices.Compare(a.Key[:], b.Key[:]) })
	return out
}
