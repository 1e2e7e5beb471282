package session

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"time"

	"weft/ident"
	"weft/wire"
)

// control is the goroutine of handshakes and timers.
func (m *Manager) control(ctx context.Context) {
	c := m.newController()
	tick := time.NewTimer(time.Hour)
	defer tick.Stop()
	due := m.now() + int64(time.Hour)
	// Only ever earlier: packets that ask for a handshake faster than the timer runs must not hold it up.
	soon := func() {
		if at := m.now() + int64(fineTick); at < due {
			due = at
			tick.Reset(fineTick)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-m.kick:
			if s.gone.Load() {
				continue
			}
			if s.cur.Load() != nil {
				c.o.flushPending(s)
			}
			switch k := s.sendKey(m.now()); {
			case s.renew.Swap(false):
				s.attempt.tries = 0 // a repeated attempt begins again with short waits
				c.initiate(s)
			case k == nil && s.attempt.state == nil:
				c.initiate(s)
			}
			soon()
		case e := <-m.work:
			c.handshake(e)
		case <-m.wake:
			soon()
		case <-tick.C:
			d := c.tick()
			due = m.now() + int64(d)
			tick.Reset(d)
		}
	}
}

// The timers run finely while packets are being exchanged or awaited, and rest otherwise: an idle node wakes rarely.
const (
	fineTick   = 50 * time.Millisecond
	coarseTick = 5 * time.Second
)

type controller struct {
	m        *Manager
	o        *outbound
	attempts map[uint32]*Session // by the index in the Init

	loadedUntil int64                     // until then an Init must prove its source
	turn        int64                     // when the turn in which served were served ends
	served      map[ident.NodeID]struct{} // sources that have proved themselves and had their turn
}

func (m *Manager) newController() *controller {
	return &controller{m: m, o: m.newOutbound(), attempts: map[uint32]*Session{}, served: map[ident.NodeID]struct{}{}}
}

// tick looks at every session and says when to look again.
func (c *controller) tick() time.Duration {
	m := c.m
	now := m.now()
	m.mu.RLock()
	all := make([]*Session, 0, len(m.byID))
	for _, s := range m.byID {
		all = append(all, s)
	}
	m.mu.RUnlock()
	for i, s := range c.attempts {
		if s.gone.Load() {
			delete(c.attempts, i)
		}
	}
	m.awake.Store(false)
	again := coarseTick
	for _, s := range all {
		if c.check(s, now) {
			again = fineTick
		}
	}
	if again == fineTick {
		m.awake.Store(true)
	}
	return again
}

// check does what a session's timers ask for and reports whether it wants to be looked at soon.
func (c *controller) check(s *Session, now int64) bool {
	m := c.m
	s.mu.Lock()
	waiting, old := len(s.pending) > 0, s.expireLocked(now)
	s.mu.Unlock()
	if old != nil {
		m.disown(old...)
	}
	if s.gone.Load() {
		return false
	}
	k := s.cur.Load()
	soon := false
	if a := &s.attempt; a.state != nil {
		switch {
		case now-a.started > int64(giveUpAfter) || a.tries > 3 && now-s.lastSent.Load() > int64(10*time.Second):
			c.abandon(s)
		case now >= a.next:
			if _, ok := m.cfg.Resolver.Room(s.id); ok { // without a way nothing is sent, nor counted as a try
				c.initiate(s)
			}
			soon = true
		default:
			soon = true
		}
	}
	if t := s.owedAt.Load(); t != 0 && k != nil {
		if now-t >= int64(keepAlive) {
			c.o.now = now
			c.o.idle(s, k)
		}
		soon = true
	}
	if t := s.askedAt.Load(); t != 0 && k != nil {
		switch limit := int64(max(unanswered, keepAlive+4*s.rtt)); {
		case now-s.lastSent.Load() > int64(10*time.Second):
			s.askedAt.Store(0) // nobody waits any more
		case now-t >= limit && s.attempt.state == nil:
			c.initiate(s)
			soon = true
		default:
			soon = true
		}
	}
	if k != nil && s.attempt.state == nil && now-s.lastSent.Load() < int64(rekeyAfter) {
		age := now - k.created
		if k.initiator && age > int64(rekeyAfter) || age > int64(rejectAfter-10*time.Second) || k.counter.Load() > rekeyPackets {
			c.initiate(s)
			soon = true
		}
	}
	if waiting && s.attempt.state == nil {
		if s.sendKey(now) != nil {
			c.o.flushPending(s)
		} else {
			c.initiate(s)
			soon = true
		}
	}
	if k == nil && !waiting && s.attempt.state == nil && now-max(s.lastRecv.Load(), s.lastSent.Load(), s.made) > int64(forgetAfter) {
		m.mu.Lock()
		m.dropLocked(s)
		m.mu.Unlock()
	}
	return soon
}

// initiate sends a first or repeated Init.
func (c *controller) initiate(s *Session) {
	m, a := c.m, &s.attempt
	now := m.now()
	if s.gone.Load() {
		return
	}
	if a.state == nil {
		if len(c.attempts) >= maxSessions {
			return
		}
		cookie, cookieAt := a.cookie, a.cookieAt
		*a = attempt{started: now, cookie: cookie, cookieAt: cookieAt}
	}
	delete(c.attempts, a.local)
	local := c.freshIndex()
	a.tries++
	b, err := m.hs.buildInit(s.peer, local, a, now)
	if err != nil {
		m.cfg.Log.Warn("handshake cannot start", "peer", s.peer, "err", err)
		c.abandon(s)
		return
	}
	c.attempts[local] = s
	a.sent = now
	wait := min(retryFirst<<min(a.tries-1, 8), retryMost)
	if a.tries > patience { // a later Init voids the one before: give a very long path the time to answer
		wait = retryMost << min(a.tries-patience, 3)
	}
	a.next = now + int64(wait) + rand.Int64N(int64(wait)/4)
	m.c.hsSent.Add(1)
	c.send(s.id, b)
}

func (c *controller) freshIndex() uint32 {
	c.m.mu.RLock()
	defer c.m.mu.RUnlock()
	for {
		i := rand.Uint32()
		if i != 0 && c.attempts[i] == nil && c.m.byIndex[i] == nil {
			return i
		}
	}
}

// abandon ends an attempt and drops what waited for it.
func (c *controller) abandon(s *Session) {
	delete(c.attempts, s.attempt.local)
	s.attempt = attempt{cookie: s.attempt.cookie, cookieAt: s.attempt.cookieAt}
	s.mu.Lock()
	c.m.c.pendingDropped.Add(uint64(len(s.takePendingLocked())))
	s.mu.Unlock()
}

// send carries a handshake packet; it goes out without a session, so not through outbound.
func (c *controller) send(dest ident.NodeID, e []byte) {
	b := make([]byte, wire.HopLen+len(e))
	copy(b[wire.HopLen:], e)
	_ = c.m.plane.Send(dest, wire.ClassControl, b, len(b)) // repeated by timer
}

// handshake handles one plausible handshake packet.
func (c *controller) handshake(e []byte) {
	switch e[0] {
	case typeInit:
		c.takeInit(e)
	case typeResp:
		c.takeResp(e)
	case typeCookie:
		if s := c.attempts[binary.BigEndian.Uint32(e[4:])]; s != nil {
			if c.m.hs.readCookie(e, s.peer, &s.attempt, c.m.now()) == nil {
				// At once, since the peer waits for it, but once: whoever is on the way can make cookies too, from public keys, and
				// must not drive us from one Init to the next.
				if !s.attempt.hurried {
					s.attempt.hurried = true
					c.initiate(s)
				}
				return
			}
		}
		c.m.c.hsBad.Add(1)
	}
}

func (c *controller) takeInit(e []byte) {
	m := c.m
	now := m.now()
	if len(m.work) > loadThreshold {
		c.loadedUntil = now + int64(loadedFor)
	}
	if now < c.loadedUntil {
		id := m.hs.hint(e)
		if id == 0 {
			m.c.queueDrops.Add(1)
			return
		}
		if !m.hs.provesSource(e, id) {
			if b, err := m.hs.buildCookie(e, id); err == nil {
				m.c.cookies.Add(1)
				c.send(id, b)
			}
			return
		}
		if !c.takesTurn(id, now) {
			m.c.queueDrops.Add(1)
			return
		}
	}
	o, err := m.hs.readInit(e)
	if err != nil {
		m.c.hsBad.Add(1)
		return
	}
	if _, ok := m.cfg.Resolver.Room(o.peer.ID()); !ok { // no way back: an answer would be lost, and the session wasted
		m.c.hsBad.Add(1)
		return
	}
	s := m.sessionUpTo(o.peer, maxStrangers)
	if s == nil {
		m.c.queueDrops.Add(1)
		return
	}
	// An Init is fresh when its time stamp is the greatest so far. Others may come from a peer whose clock was set back, or
	// from somebody who replays; they get a place of their own, seldom, so that replays never push out a fresh one.
	place := 0
	if o.stamp > s.newest {
		s.newest = o.stamp
	} else {
		if now-s.lastOld < int64(time.Second) {
			m.c.queueDrops.Add(1)
			return
		}
		place, s.lastOld = 1, now
	}
	if err := c.respond(s, o, place, now); err != nil {
		m.c.hsBad.Add(1)
		m.cfg.Log.Debug("handshake cannot be answered", "peer", o.peer, "err", err)
	}
}

// takesTurn reports whether a source that has proved itself is served under load: each once in a turn, and so many in all.
// A cookie is good for two minutes; without this whoever has one could keep the worker busy alone.
func (c *controller) takesTurn(id ident.NodeID, now int64) bool {
	if now >= c.turn {
		clear(c.served)
		c.turn = now + int64(turn)
	}
	if _, had := c.served[id]; had || len(c.served) >= turnMost {
		return false
	}
	c.served[id] = struct{}{}
	return true
}

// respond makes keys for an Init and answers it. The keys are in their place before the answer leaves: the first packet
// under them may come at once, and is perhaps the only one.
func (c *controller) respond(s *Session, o *opened, place int, now int64) error {
	local := c.freshIndex()
	b, err := c.m.hs.buildResp(o, local)
	if err != nil {
		return err
	}
	k, err := o.keypair(s, false, local, now)
	if err != nil {
		return err
	}
	if !c.m.own(k, func() (out *keypair) { out, s.next[place] = s.next[place], k; return out }) {
		return errGone
	}
	c.send(s.id, b)
	return nil
}

var errGone = errors.New("the session was given up meanwhile")

func (c *controller) takeResp(e []byte) {
	m := c.m
	index := binary.BigEndian.Uint32(e[8:])
	s := c.attempts[index]
	if s == nil || s.attempt.local != index || s.attempt.bad >= maxBadResps {
		m.c.hsBad.Add(1)
		return
	}
	o, err := m.hs.readResp(e, &s.attempt)
	if err != nil {
		s.attempt.bad++
		m.c.hsBad.Add(1)
		return
	}
	now := m.now()
	k, err := o.keypair(s, true, index, now)
	if err != nil {
		m.c.hsBad.Add(1)
		return
	}
	if !m.own(k, func() *keypair { return s.adoptLocked(k) }) {
		c.abandon(s)
		return
	}
	s.rtt = time.Duration(now - s.attempt.sent)
	delete(c.attempts, index)
	s.attempt = attempt{}
	s.askedAt.Store(0)
	m.c.hsOK.Add(1)
	m.cfg.Log.Debug("session open", "peer", s.peer, "cipher", k.cipher)
	s.mu.Lock()
	waiting := len(s.pending) > 0
	s.mu.Unlock()
	c.o.now = now
	if waiting {
		c.o.flushPending(s)
	} else {
		c.o.idle(s, k) // the responder may not send before it hears from these keys
	}
}
