package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"weft/forward"
	"weft/ident"
	"weft/wire"
)

// Introductions (docs/spec/link.md section 7): a neighbour tells two of its neighbours where it sees each of them, both send
// knocks there at once, which opens the NATs before them, and an ordinary link follows. What the third says is a hint and
// no more: the link proves the key.
//
//	A           T (neighbour of both)         D
//	ASK(D)  ──────►  MEET(A, answer)  ──────►   may it?
//	                                  ◄──────  ASK(A)
//	        ◄──────  MEET(D)
//	knock   ◄────────────────────────────────►  knock    every 0.2 s, to all places at once
//	        ◄─────────── heard ──────────────►
//	the lower key dials, the link is pinned to the other's key

// Bounds on introductions. A node that is told lies sends no more than knockRate small datagrams a second.
const (
	maxPlaces     = 8 // in a message
	maxKnocked    = 4 // more of them that knocks came from
	maxMeetings   = 16
	maxTokens     = 4 // of one meeting: both ends may have asked
	maxBrokered   = 128
	maxWishes     = 256
	brokerFor     = 10 * time.Second
	meetFor       = 5 * time.Second
	knockEvery    = 200 * time.Millisecond
	knockSoon     = 50 * time.Millisecond
	knockRate     = 400
	introEvery    = 2 * time.Second // per neighbour, at length
	introBurst    = 8
	meetDial      = 3 * time.Second
	wishPause     = 30 * time.Second
	maxWishPause  = time.Hour
	metIdle       = lanIdle
	maxSeen       = 4
	meetHandovers = 8
)

// Messages of class 4.
const (
	introSeen   = 1 // where the sender sees the receiver
	introAsk    = 2 // bring me together with key; or: yes, I want to meet it
	introMeet   = 3 // key is at these places
	introRefuse = 4
	introEcho   = 5 // answer the knock with this token once more after Arg seconds
	introListen = 6 // the sender's stream listeners
)

const (
	seenFar = 1 // Arg of SEEN: there are routers on the way, as the sender sees it

	meetAnswer = 1 // Arg of MEET: the other end waits for an ASK in return

	refuseUnknown = 1 // Arg of REFUSE: no link with that node
	refuseOwner   = 2 // the owner of one of them does not want it
	refuseBusy    = 3
	refuseNowhere = 4 // no address is known for one of them
)

// introduction is a message of class 4, but LISTEN:
//
//	 0  type 1 | arg 1 | places 1 | 0 1
//	 4  token 8
//	12  key 32
//	44  places × 18: IP 16 (IPv4 is 4-in-6), port 2
type introduction struct {
	Type, Arg byte
	Token     uint64
	Key       ident.PublicKey
	Places    []netip.AddrPort
}

const (
	introLen = 44
	placeLen = 18
)

func (i introduction) appendTo(b []byte) []byte {
	b = append(b, i.Type, i.Arg, byte(len(i.Places)), 0)
	b = binary.BigEndian.AppendUint64(b, i.Token)
	b = append(b, i.Key[:]...)
	for _, p := range i.Places {
		ip := p.Addr().As16()
		b = append(b, ip[:]...)
		b = binary.BigEndian.AppendUint16(b, p.Port())
	}
	return b
}

func parseIntroduction(b []byte) (introduction, error) {
	if len(b) < introLen || int(b[2]) > maxPlaces || len(b) != introLen+int(b[2])*placeLen {
		return introduction{}, fmt.Errorf("an introduction of %d bytes", len(b))
	}
	i := introduction{Type: b[0], Arg: b[1], Token: binary.BigEndian.Uint64(b[4:]), Key: ident.PublicKey(b[12:44])}
	for at := introLen; at < len(b); at += placeLen {
		a := netip.AddrFrom16([16]byte(b[at:])).Unmap()
		i.Places = append(i.Places, netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[at+16:])))
	}
	return i, nil
}

// knock is a datagram that opens a NAT and shows a way:
//
//	0  0x20 | flags 1 | 0 6
//	8  token 8
const (
	knockLen   = 16
	knockHeard = 1 // the sender got a knock from where it sends this
	knockEcho  = 2 // of a test of the NAT's patience, not of a meeting
	knockLate  = 4 // the answer that was asked for later
)

func knock(flags byte, token uint64) []byte {
	b := make([]byte, 8, knockLen)
	b[0], b[1] = byte(wire.KindSetup), flags
	return binary.BigEndian.AppendUint64(b, token)
}

// isKnock tells a datagram that is neither QUIC's nor a hop datagram.
func isKnock(first byte) bool { return first == byte(wire.KindSetup) }

func parseKnock(b []byte) (flags byte, token uint64, ok bool) {
	if len(b) != knockLen || !isKnock(b[0]) {
		return 0, 0, false
	}
	return b[1], binary.BigEndian.Uint64(b[8:]), true
}

// usable reports whether a place that somebody named can be that of a node on another network.
func usable(p netip.AddrPort) bool {
	a := p.Addr()
	return p.Port() != 0 && a.IsValid() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && !a.IsLinkLocalUnicast() &&
		!ident.MeshPrefix.Contains(a) && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// introductions is the part of a Manager that introduces and lets itself be introduced.
type introductions struct {
	m       *Manager
	limiter *rate.Limiter // of knocks

	mu       sync.Mutex // guards what follows
	wishes   map[ident.PublicKey]*wish
	meetings map[ident.PublicKey]*meeting
	tokens   map[uint64]*meeting
	broker   map[uint64]*brokered
	echoes   map[uint64]*echo
	seen     map[uint32]netip.AddrPort // by link: where the neighbour sees this node
}

// wish is a node that this one wants a direct link with.
type wish struct {
	token    uint64
	at       time.Time
	next     time.Time
	failures int
	reason   string
}

// meeting is an attempt to reach a node that was introduced.
type meeting struct {
	peer    ident.PublicKey
	asked   bool                  // here, not there
	found   chan forward.Endpoint // ways that work in both directions
	tokens  []uint64
	places  []forward.Endpoint
	knocked int // of places, learnt from knocks
	heard   map[forward.Endpoint]bool
}

// brokered is an introduction that waits for the second node's consent.
type brokered struct {
	from *Link
	to   ident.PublicKey
	at   time.Time
}

func newIntroductions(m *Manager) *introductions {
	return &introductions{
		m: m, limiter: rate.NewLimiter(knockRate, knockRate),
		wishes: map[ident.PublicKey]*wish{}, meetings: map[ident.PublicKey]*meeting{}, tokens: map[uint64]*meeting{},
		broker: map[uint64]*brokered{}, echoes: map[uint64]*echo{}, seen: map[uint32]netip.AddrPort{},
	}
}

// Introduce asks the neighbour by to bring this node together with another neighbour of its, because traffic flows to it. It does
// not wait; a link comes up, or a later call tries again.
func (m *Manager) Introduce(key, by ident.PublicKey) {
	x := m.intro
	l, now := m.LinkTo(by), time.Now()
	if l == nil || key == by || key == m.self || m.direct(key) {
		return
	}
	x.mu.Lock()
	w := x.wishes[key]
	if w == nil {
		if len(x.wishes) >= maxWishes {
			for k, o := range x.wishes {
				if now.After(o.next.Add(maxWishPause)) {
					delete(x.wishes, k)
				}
			}
		}
		if len(x.wishes) >= maxWishes {
			x.mu.Unlock()
			return
		}
		w = &wish{}
		x.wishes[key] = w
	}
	if now.Before(w.next) || x.meetings[key] != nil {
		x.mu.Unlock()
		return
	}
	w.token, w.at = rand.Uint64(), now
	w.failLocked(now, "no answer") // until it comes
	ask := introduction{Type: introAsk, Token: w.token, Key: key}
	x.mu.Unlock()
	ask.Places = m.places()
	_ = l.SendControl(ClassIntroductions, ask.appendTo(nil)) // the link is going down
}

func (w *wish) failLocked(now time.Time, reason string) {
	pause := min(wishPause<<min(w.failures, 10), maxWishPause)
	w.failures++
	w.next, w.reason = now.Add(pause-pause/8+rand.N(pause/4)), reason
}

// direct reports whether there is a link that an introduction could not better.
func (m *Manager) direct(key ident.PublicKey) bool {
	l := m.LinkTo(key)
	return l != nil && l.rank > rankStream
}

// movedAway forgets what was learnt on another network.
func (x *introductions) movedAway() {
	x.mu.Lock()
	defer x.mu.Unlock()
	clear(x.wishes)
}

// places lists where this node may be reached: where neighbours see it, and its own addresses.
func (m *Manager) places() (out []netip.AddrPort) {
	add := func(p netip.AddrPort) {
		if usable(p) && len(out) < maxPlaces && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	x := m.intro
	x.mu.Lock()
	ids := make([]uint32, 0, len(x.seen))
	for id := range x.seen {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	slices.Reverse(ids) // the newest links first
	for _, id := range ids {
		if len(out) < maxSeen {
			add(x.seen[id])
		}
	}
	x.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	var private []netip.AddrPort
	for _, i := range m.ifaces {
		if !i.Running || matchesAny(m.cfg.Multicast.Exclude, i.Name) {
			continue
		}
		for _, p := range i.Addrs {
			a := p.Addr().Unmap().WithZone("")
			s := m.socketForLocked(a)
			if s == nil {
				continue
			}
			if at := netip.AddrPortFrom(a, s.LocalPort()); a.IsPrivate() {
				private = append(private, at)
			} else {
				add(at)
			}
		}
	}
	for _, p := range private {
		add(p)
	}
	return out
}

// Seen lists where neighbours see this node, and whether some of that is not its own address: then it is behind a NAT.
func (m *Manager) Seen() (out []netip.AddrPort, nat bool) {
	m.intro.mu.Lock()
	for _, p := range m.intro.seen {
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	m.intro.mu.Unlock()
	slices.SortFunc(out, netip.AddrPort.Compare)
	own := map[netip.Addr]bool{}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range m.ifaces {
		for _, p := range i.Addrs {
			own[p.Addr().Unmap().WithZone("")] = true
		}
	}
	return out, slices.ContainsFunc(out, func(p netip.AddrPort) bool { return !own[p.Addr()] })
}

// at returns where this node sees a neighbour, unless that means nothing to others.
func (l *Link) at() (netip.AddrPort, bool) {
	d := l.path.to.Load()
	p := d.ep.AddrPort()
	return p, d.ep.Via < firstStreamVia && usable(p)
}

// greet tells a neighbour what only this node knows: where it sees it, and where it can be reached when UDP is blocked.
func (x *introductions) greet(l *Link, first bool) {
	if p, ok := l.at(); ok {
		seen := introduction{Type: introSeen, Places: []netip.AddrPort{p}}
		if l.far.Load() {
			seen.Arg = seenFar
		}
		_ = l.SendControl(ClassIntroductions, seen.appendTo(nil))
	}
	if first && l.rank != rankLAN {
		if msg := x.m.streamListeners(); msg != nil {
			_ = l.SendControl(ClassIntroductions, msg)
		}
	}
}

// linkDown forgets what a neighbour said and wanted.
func (x *introductions) linkDown(l *Link) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.seen, l.id)
	for t, b := range x.broker {
		if b.from == l {
			delete(x.broker, t)
		}
	}
	for t, e := range x.echoes {
		if e.from == l {
			delete(x.echoes, t)
		}
	}
	if w := x.wishes[l.peer]; w != nil && l.met.Load() {
		w.failures, w.next = 0, time.Now().Add(introEvery) // it worked once: ask again when traffic flows on
	}
}

// control takes a message of class 4. Unknown types are of later versions.
func (x *introductions) control(l *Link, msg []byte) error {
	if msg[0] == introListen {
		return x.listens(l, msg)
	}
	if msg[0] < introSeen || msg[0] > introEcho {
		return nil
	}
	i, err := parseIntroduction(msg)
	if err != nil {
		return protocolError(err.Error())
	}
	i.Places = slices.DeleteFunc(i.Places, func(p netip.AddrPort) bool { return !usable(p) })
	switch i.Type {
	case introSeen:
		if i.Arg&seenFar != 0 {
			l.far.Store(true)
		}
		if len(i.Places) == 1 {
			x.mu.Lock()
			x.seen[l.id] = i.Places[0]
			x.mu.Unlock()
		}
	case introAsk:
		x.asked(l, i)
	case introMeet:
		x.meet(l, i)
	case introRefuse:
		x.refused(l, i)
	case introEcho:
		x.echo(l, i)
	}
	return nil
}

func (l *Link) refuseIntroduction(token uint64, key ident.PublicKey, why byte) {
	_ = l.SendControl(ClassIntroductions, introduction{Type: introRefuse, Arg: why, Token: token, Key: key}.appendTo(nil))
}

// asked is the third's part: a neighbour wants to meet another, or agrees to.
func (x *introductions) asked(l *Link, i introduction) {
	now := time.Now()
	x.mu.Lock()
	b := x.broker[i.Token]
	agreed := b != nil && b.to == l.peer && b.from.peer == i.Key
	if agreed {
		delete(x.broker, i.Token)
	}
	x.mu.Unlock()
	places := func(l *Link) []netip.AddrPort {
		if p, ok := l.at(); ok && !slices.Contains(i.Places, p) {
			return append([]netip.AddrPort{p}, i.Places[:min(len(i.Places), maxPlaces-1)]...)
		}
		return i.Places
	}
	if agreed {
		_ = b.from.SendControl(ClassIntroductions, introduction{Type: introMeet, Token: i.Token, Key: l.peer, Places: places(l)}.appendTo(nil))
		return
	}
	other := x.m.LinkTo(i.Key)
	at := places(l)
	switch {
	case !l.introLimit.AllowN(now, 1):
		l.refuseIntroduction(i.Token, i.Key, refuseBusy)
		return
	case x.m.cfg.Introductions.Silent:
		l.refuseIntroduction(i.Token, i.Key, refuseOwner)
		return
	case other == nil || other == l:
		l.refuseIntroduction(i.Token, i.Key, refuseUnknown)
		return
	case len(at) == 0:
		l.refuseIntroduction(i.Token, i.Key, refuseNowhere)
		return
	}
	x.mu.Lock()
	for t, b := range x.broker {
		if now.Sub(b.at) > brokerFor {
			delete(x.broker, t)
		}
	}
	full := len(x.broker) >= maxBrokered || x.broker[i.Token] != nil
	if !full {
		x.broker[i.Token] = &brokered{from: l, to: i.Key, at: now}
	}
	x.mu.Unlock()
	if full {
		l.refuseIntroduction(i.Token, i.Key, refuseBusy)
		return
	}
	_ = other.SendControl(ClassIntroductions, introduction{Type: introMeet, Arg: meetAnswer, Token: i.Token, Key: l.peer, Places: at}.appendTo(nil))
}

// refused ends a wish, or hands the second node's no on to the first.
func (x *introductions) refused(l *Link, i introduction) {
	x.mu.Lock()
	b := x.broker[i.Token]
	if b != nil && b.to == l.peer && b.from.peer == i.Key {
		delete(x.broker, i.Token)
	} else {
		b = nil
		if w := x.wishes[i.Key]; w != nil && w.token == i.Token {
			w.reason = "refused"
			if i.Arg == refuseOwner {
				w.next = time.Now().Add(maxWishPause)
			}
		}
	}
	x.mu.Unlock()
	if b != nil {
		b.from.refuseIntroduction(i.Token, l.peer, i.Arg)
	}
}

// meet is told by a third where a node is. It begins to knock there if this node asked for that, or agrees.
func (x *introductions) meet(l *Link, i introduction) {
	m, now := x.m, time.Now()
	if i.Key == m.self || i.Key == l.peer {
		return
	}
	answer := i.Arg&meetAnswer != 0
	if answer {
		switch {
		case m.cfg.Introductions.Refuse:
			l.refuseIntroduction(i.Token, i.Key, refuseOwner)
			return
		case !l.introLimit.AllowN(now, 1) || m.direct(i.Key):
			l.refuseIntroduction(i.Token, i.Key, refuseBusy)
			return
		case len(i.Places) == 0:
			l.refuseIntroduction(i.Token, i.Key, refuseNowhere)
			return
		}
	}
	x.mu.Lock()
	if w := x.wishes[i.Key]; !answer && (w == nil || w.token != i.Token || now.Sub(w.at) > brokerFor) {
		x.mu.Unlock()
		return // nobody asked
	}
	mt := x.meetings[i.Key]
	fresh := mt == nil
	if fresh && len(x.meetings) >= maxMeetings || !fresh && len(mt.tokens) >= maxTokens || x.tokens[i.Token] != nil {
		x.mu.Unlock()
		if answer {
			l.refuseIntroduction(i.Token, i.Key, refuseBusy)
		}
		return
	}
	if fresh {
		mt = &meeting{peer: i.Key, found: make(chan forward.Endpoint, meetHandovers), heard: map[forward.Endpoint]bool{}}
		x.meetings[i.Key] = mt
	}
	mt.asked = mt.asked || !answer
	mt.tokens = append(mt.tokens, i.Token)
	x.tokens[i.Token] = mt
	for _, p := range i.Places {
		if s := m.socketFor(p.Addr()); s != nil && len(mt.places) < maxTokens*maxPlaces {
			ep := endpointOf(p, 0)
			if ep.Via = s.via; !slices.Contains(mt.places, ep) {
				mt.places = append(mt.places, ep)
			}
		}
	}
	x.mu.Unlock()
	if answer {
		ask := introduction{Type: introAsk, Token: i.Token, Key: i.Key, Places: m.places()}
		_ = l.SendControl(ClassIntroductions, ask.appendTo(nil))
	}
	if fresh {
		m.links.Go(func() { x.run(mt) }) // called on a link's goroutine, which m.links counts
	}
}

// run knocks until a link stands or time is up.
func (x *introductions) run(mt *meeting) {
	m := x.m
	ctx, cancel := context.WithTimeout(m.run, meetFor)
	defer cancel()
	var err error = errors.New("nothing came through: is a NAT on the way too strict?")
	timer := time.NewTimer(0)
	defer timer.Stop()
	for round := 0; ctx.Err() == nil && !m.direct(mt.peer); {
		select {
		case <-ctx.Done():
		case ep := <-mt.found:
			if !m.before(mt.peer) {
				break // the other one dials
			}
			err = x.dial(m.run, mt.peer, ep)
			if err == nil {
				cancel()
			}
		case <-timer.C:
			x.knockAll(mt, round)
			timer.Reset(min(knockSoon<<min(round, 8), knockEvery))
			round++
		}
	}
	now := time.Now()
	ok := m.direct(mt.peer)
	x.mu.Lock()
	delete(x.meetings, mt.peer)
	for _, t := range mt.tokens {
		delete(x.tokens, t)
	}
	if w := x.wishes[mt.peer]; w != nil {
		if ok {
			w.failures, w.next = 0, now.Add(introEvery)
		} else if mt.asked {
			w.reason = err.Error()
		}
	}
	x.mu.Unlock()
	if m.run.Err() == nil {
		m.cfg.Log.Debug("introduction over", "peer", mt.peer.ID(), "linked", ok, "asked", mt.asked)
	}
}

func (x *introductions) dial(ctx context.Context, peer ident.PublicKey, ep forward.Endpoint) error {
	via := x.m.carrier(ep.Via)
	if via == nil {
		return errors.New("the socket is gone")
	}
	ctx, cancel := context.WithTimeout(ctx, meetDial)
	defer cancel()
	_, err := x.m.dial(ctx, way{ep: ep, via: via, pin: peer, multiplier: 1000, rank: rankRouted})
	if hasCode(err, codeDuplicate) {
		err = nil
	}
	return err
}

// knockAll sends one knock to every place.
func (x *introductions) knockAll(mt *meeting, round int) {
	x.mu.Lock()
	places := slices.Clone(mt.places)
	token := mt.tokens[round%len(mt.tokens)]
	heard := make([]bool, len(places))
	for i, p := range places {
		heard[i] = mt.heard[p]
	}
	x.mu.Unlock()
	for i, p := range places {
		flags := byte(0)
		if heard[i] {
			flags = knockHeard
		}
		x.send(p, knock(flags, token))
	}
}

func (x *introductions) send(to forward.Endpoint, b []byte) {
	if via := x.m.carrier(to.Via); via != nil && x.limiter.Allow() {
		_ = via.Send(to, b, len(b)) // most places are wrong, and some cannot be reached at all
	}
}

// knocked takes a knock, on the reader's goroutine.
func (x *introductions) knocked(from forward.Endpoint, b []byte) {
	flags, token, ok := parseKnock(b)
	if !ok || from.Via >= firstStreamVia {
		return
	}
	if flags&knockEcho != 0 {
		x.echoKnocked(from, flags, token)
		return
	}
	x.mu.Lock()
	mt := x.tokens[token]
	if mt == nil {
		x.mu.Unlock()
		return
	}
	if !slices.Contains(mt.places, from) {
		if mt.knocked >= maxKnocked {
			x.mu.Unlock()
			return
		}
		mt.knocked++ // a NAT gave it another port than the third saw, or it has an address that nobody knew
		mt.places = append(mt.places, from)
	}
	first := !mt.heard[from]
	mt.heard[from] = true
	x.mu.Unlock()
	if flags&knockHeard != 0 {
		select {
		case mt.found <- from:
		default:
		}
	}
	if first || flags&knockHeard == 0 {
		x.send(from, knock(knockHeard, token))
	}
}

// met reports whether a neighbour is one that was introduced just now.
func (x *introductions) met(key ident.PublicKey) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.meetings[key] != nil
}

// unneeded reports whether a link that came from an introduction has nothing to carry any more.
func (l *Link) unneededLocked(now time.Time) bool {
	return l.met.Load() && now.Sub(l.started) > metIdle && now.Sub(l.lastData) > metIdle && now.Sub(l.wanted) > metIdle
}
