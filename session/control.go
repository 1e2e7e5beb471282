package session

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"time"

	"weft/ident"
	"weft/wire"
)

// control is the goroutine of handshakes and timers.
func (m *Manager) control(ctx context.Context) {
	c := &controller{m: m, o: m.newOutbound(), attempts: map[uint32]*Session{}}
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
	if k != nil && now-k.created > int64(rejectAfter) {
		s.mu.Lock()
		old := []*keypair{k, s.prev, s.next[0], s.next[1]}
		s.cur.CompareAndSwap(k, nil)
		s.prev, s.next = nil, [2]*keypair{}
		s.mu.Unlock()
		m.disown(old...)
		k = nil
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
	s.mu.Lock()
	waiting := len(s.pending) > 0
	s.mu.Unlock()
	if waiting && s.attempt.state == nil {
		if k != nil {
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
	a.next = now + int64(wait) + rand.Int64N(int64(wait)/4)
	m.c.hsSent.Add(1)
	c.send(s.id, b)
}

func (c *controller) freshIndex() uint32 {
	for {
		i := rand.Uint32()
		if i != 0 && c.attempts[i] == nil {
			return i
		}
	}
}

// abandon ends an attempt and drops what waited for it.
func (c *controller) abandon(s *Session) {
	delete(c.attempts, s.attempt.local)
	s.attempt = attempt{cookie: s.attempt.cookie, cookieAt: s.attempt.cookieAt}
	s.mu.Lock()
	c.m.c.pendingDropped.Add(uint64(len(s.pending)))
	s.pending, s.pendingBytes = nil, 0
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
				c.initiate(s) // at once: the peer waits for it
				return
			}
		}
		c.m.c.hsBad.Add(1)
	}
}

func (c *controller) takeInit(e []byte) {
	m := c.m
	if len(m.work) > loadThreshold {
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
	s := m.session(o.peer, true)
	if s == nil {
		m.c.queueDrops.Add(1)
		return
	}
	// An Init is fresh when its time stamp is the greatest so far. Others may come from a peer whose clock was set back, or
	// from somebody who replays; they get a place of their own, seldom, so that replays never push out a fresh one.
	now, place := m.now(), 0
	if o.stamp > s.newest {
		s.newest = o.stamp
	} else {
		if now-s.lastOld < int64(time.Second) {
			m.c.queueDrops.Add(1)
			return
		}
		place, s.lastOld = 1, now
	}
	k, err := c.respond(s, o, now)
	if err != nil {
		m.c.hsBad.Add(1)
		m.cfg.Log.Debug("handshake cannot be answered", "peer", o.peer, "err", err)
		return
	}
	s.mu.Lock()
	out := s.next[place]
	s.next[place] = k
	s.mu.Unlock()
	m.disown(out)
}

// respond makes keys for an Init and answers it. The keys are findable before the answer leaves.
func (c *controller) respond(s *Session, o *opened, now int64) (*keypair, error) {
	slot := &keypair{}
	c.m.own(slot)
	b, err := c.m.hs.buildResp(o, slot.local)
	if err == nil {
		var k *keypair
		if k, err = o.keypair(s, false, slot.local, now); err == nil {
			c.m.mu.Lock()
			c.m.byIndex[slot.local] = k
			c.m.mu.Unlock()
			c.send(s.id, b)
			return k, nil
		}
	}
	c.m.disown(slot)
	return nil, err
}

func (c *controller) takeResp(e []byte) {
	m := c.m
	index := binary.BigEndian.Uint32(e[8:])
	s := c.attempts[index]
	if s == nil || s.attempt.local != index {
		m.c.hsBad.Add(1)
		return
	}
	o, err := m.hs.readResp(e, &s.attempt)
	if err != nil {
		m.c.hsBad.Add(1)
		return
	}
	now := m.now()
	k, err := o.keypair(s, true, index, now)
	if err != nil {
		m.c.hsBad.Add(1)
		return
	}
	if !m.claim(k) { // the index was taken meanwhile: one in four thousand million
		c.abandon(s)
		return
	}
	s.rtt = time.Duration(now - s.attempt.sent)
	delete(c.attempts, index)
	s.attempt = attempt{}
	s.adopt(k)
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

// claim makes k findable under the index that it already has.
func (m *Manager) claim(k *keypair) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.byIndex[k.local] != nil {
		return false
	}
	m.byIndex[k.local] = k
	return true
}
