// Package meter knows who carried what for whom, so that both ends of a session and both ends of a link can check any bill that is
// built on it. It counts, keeps what it has counted through crashes, compares it with what the other end has counted, and draws
// conclusions. It moves no money and stops no packet.
//
//   - Each session's two ends tell each other their counters in beacons inside the session (docs/spec/meter.md). What one says it
//     sent is held against what the other says arrived, at the same beacon; a gap beyond the tolerance is reported.
//   - Totals per peer and direction, per neighbour and class, and per day lie in one bbolt file, and are written every ten seconds
//     while there is traffic. A kill costs at most what came since: never is anything counted twice.
//   - What arrives at the far ends tells which neighbour drops what it is given; such a neighbour's link gets dearer.
//
// node makes one [Meter], gives it its views of session, forward and route as functions, hands it the messages of channel "meter"
// ([Meter.Handle]) and runs [Meter.Serve]. api shows [Meter.View]; pay stands on [Meter.Commit].
//
// Serve is the only goroutine, and the only caller of Config's Send, Links, NextHop, LinkLoss, Radio, Penalise and Notify, except
// that Commit calls Links and Sessions too. All methods may be called from any goroutine. Nothing of Config is called with a lock held.
// Memory is bounded: live state by the sessions there are, the rest by the limits below. This package imports ident alone.
package meter

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"weft/ident"
)

// NumClasses is how many traffic classes are counted apart. Those that this program does not know share the last.
const NumClasses = 4

// Limits bound what is kept. Where one is reached the smallest makes way: it is added to the entry of the zero key (or of neighbour
// zero), so that sums stay whole and nobody who brings many keys pushes out those who carry much.
const (
	maxPeers     = 4096
	maxLinks     = 4096 // (neighbour, class)
	maxDayRows   = 256  // peers with a row of their own in one day
	storeEvery   = 10 * time.Second
	storeRetry   = time.Minute // after an error: a full disk is not filled faster
	secondsInDay = 24 * 60 * 60
)

// SessionReading is the counters of the session with one peer. Sent counts what was sealed for it, before it was sent; Recv what came
// authentic and fresh. Counts are of whole IP packets. Epoch changes whenever the counters begin again at 0, also from one process to
// the next, and no value comes back: take 64 random bits. A session that is gone from the list comes back with another epoch.
type SessionReading struct {
	Peer                                         ident.PublicKey
	Epoch                                        uint64
	OutsideSent, OutsideRecv, MeshSent, MeshRecv Count
}

func (r *SessionReading) kind(k Kind) (sent, recv Count) {
	if k == Outside {
		return r.OutsideSent, r.OutsideRecv
	}
	return r.MeshSent, r.MeshRecv
}

// Flow is what passed between this node and a neighbour for one destination in one class.
type Flow struct {
	Dest           ident.NodeID
	Class          uint8
	Packets, Bytes uint64
}

// LinkReading is the counters of the link to one neighbour. The rules for Epoch are those of [SessionReading].
type LinkReading struct {
	Neighbour  ident.NodeID
	Epoch      uint64
	Recv, Sent []Flow
}

// Event tells that the verdict on one direction of one session has changed.
type Event struct {
	Peer      ident.PublicKey
	Kind      Kind
	Direction Direction
	Gap       bool   // false: it is over
	Reason    Reason // Agreed when it is over
	Lost      uint64 // billed bytes by which the ends differed in the last window, or in all that told together; 0 when a beacon told
}

// Config is what a meter needs. All functions but Radio, LinkLoss and Notify must be given.
type Config struct {
	Dir string // the node's state directory
	Log *slog.Logger

	Sessions func() []SessionReading
	Session  func(peer ident.PublicKey) (SessionReading, bool) // the same for one, from any goroutine
	Links    func() []LinkReading
	Send     func(peer ident.PublicKey, payload []byte) error // one datagram inside the session; may get lost

	NextHop  func(dest ident.NodeID) (neighbour ident.NodeID, ok bool)
	LinkLoss func(neighbour ident.NodeID) int // what the link by itself loses of what this node sends, in permille; nil is 0
	Radio    func(dest ident.NodeID) bool     // whether the way to dest is known to have radio in it; nil is no
	Penalise func(neighbour ident.NodeID, permille int)
	Notify   func(Event) // nil is nobody
}

// Meter is one node's meter.
type Meter struct {
	cfg Config

	storing sync.Mutex // held for a write; taken before mu
	store   *store

	mu         sync.Mutex // guards what follows
	peers      map[ident.PublicKey]*peer
	links      map[linkKey]*link
	dropped    batch // what made way and is to be deleted from the file
	day        uint32
	today      map[ident.PublicKey]*dayUse
	month      map[ident.PublicKey]Use // of the days of this month before today
	delivery   delivery
	events     []Event
	malformed  uint64
	busy       bool // a session carries much: tick often
	stored     time.Time
	storeErr   error
	aside      error
	storeBytes uint64
}

type peer struct {
	key   ident.PublicKey
	id    ident.NodeID
	led   [numKinds]ledger
	live  [numKinds]*live // nil where nothing was carried yet, and when there is no session
	here  bool            // there is a session
	dirty bool
}

type link struct {
	carried
	dirty bool
}

type dayUse struct {
	Use
	dirty bool
}

// New opens the file in cfg.Dir. A damaged file is moved aside and the meter begins anew; the log and [View] say so. An error means
// that the directory cannot be used, or that another node uses it.
func New(cfg Config) (*Meter, error) {
	if cfg.Log == nil || cfg.Sessions == nil || cfg.Session == nil || cfg.Links == nil || cfg.Send == nil || cfg.NextHop == nil || cfg.Penalise == nil {
		return nil, errors.New("make a meter: a function or the logger is missing from its config")
	}
	now := time.Now()
	s, c, aside, err := openStore(cfg.Dir, now)
	if err != nil {
		return nil, fmt.Errorf("open the meter's file: %w", err)
	}
	if aside != nil {
		cfg.Log.Error("the meter's file was damaged", "err", aside)
	}
	m := &Meter{
		cfg: cfg, store: s, aside: aside, delivery: newDelivery(), stored: now, dropped: newBatch(),
		peers: make(map[ident.PublicKey]*peer, len(c.peers)), links: make(map[linkKey]*link, len(c.links)),
	}
	for key, led := range c.peers {
		m.peers[key] = &peer{key: key, id: key.ID(), led: led}
	}
	for key, l := range c.links {
		m.links[key] = &link{carried: l}
	}
	m.day = dayOf(now)
	if m.today, m.month, err = s.loadDay(m.day); err != nil {
		return nil, errors.Join(fmt.Errorf("open the meter's file: %w", err), s.close())
	}
	return m, nil
}

func newBatch() batch {
	return batch{map[ident.PublicKey]*[numKinds]ledger{}, map[linkKey]*carried{}, map[dayKey]*Use{}}
}

func dayOf(t time.Time) uint32 { return uint32(max(t.Unix(), 0) / secondsInDay) }

// loadDay reads the rows of a day, and the sums of the days before it in its month.
func (s *store) loadDay(day uint32) (today map[ident.PublicKey]*dayUse, month map[ident.PublicKey]Use, err error) {
	today, month = map[ident.PublicKey]*dayUse{}, map[ident.PublicKey]Use{}
	first := day - uint32(time.Unix(int64(day)*secondsInDay, 0).UTC().Day()-1)
	err = s.use(first, day, func(d uint32, p ident.PublicKey, u Use) {
		if d == day {
			today[p] = &dayUse{Use: u}
		} else {
			month[p] = month[p].plus(u)
		}
	})
	return today, month, err
}

// Serve runs until ctx ends, then writes what there is and closes the file. It returns an error only when that last write fails.
// A meter serves once.
func (m *Meter) Serve(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var written, tried time.Time
	for {
		select {
		case <-ctx.Done():
			_, err := m.Commit(time.Now())
			return errors.Join(err, m.Close())
		case <-timer.C:
		}
		now := time.Now()
		every := m.tick(now)
		wait := storeEvery
		if tried.After(written) {
			wait = storeRetry
		}
		if newDay := m.newDay(now); newDay || now.Sub(tried) >= wait {
			if tried = now; m.save(now, newDay) {
				written = now
			}
		}
		timer.Reset(every)
	}
}

// Close gives the file back. Serve does so by itself; it is for a meter that never served.
func (m *Meter) Close() error {
	m.storing.Lock()
	defer m.storing.Unlock()
	return m.store.close()
}

func (m *Meter) newDay(now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return dayOf(now) != m.day
}

// save writes, turns the page of the day, and logs what fails, once.
func (m *Meter) save(now time.Time, newDay bool) bool {
	m.mu.Lock()
	before := m.storeErr
	m.mu.Unlock()
	_, err := m.Commit(now)
	if newDay {
		m.turn(now)
	}
	if err != nil && before == nil {
		m.cfg.Log.Error("the meter cannot write what it has counted; it goes on counting and tries again each minute", "err", err)
	} else if err == nil && before != nil {
		m.cfg.Log.Info("the meter writes again")
	}
	return err == nil
}

// turn begins another day. When the one that is over could not be written its rows wait, as deletions and others do, in dropped.
func (m *Meter) turn(now time.Time) {
	m.storing.Lock()
	defer m.storing.Unlock()
	day := dayOf(now)
	today, month, err := m.store.loadDay(day)
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, u := range m.today {
		if u.dirty && len(m.dropped.days) < 4*maxDayRows {
			m.dropped.days[dayKey{m.day, key}] = &u.Use
		}
	}
	if err != nil { // what can be known without the file
		today, month = map[ident.PublicKey]*dayUse{}, map[ident.PublicKey]Use{}
		m.storeErr = cmp.Or(m.storeErr, err)
	}
	m.day, m.today, m.month = day, today, month
}

// Handle takes a datagram that came inside the session with peer. It may be called from any goroutine, and asks Config.Session.
func (m *Meter) Handle(from ident.PublicKey, payload []byte) {
	b, err := DecodeBeacon(payload)
	if err != nil {
		m.mu.Lock()
		m.malformed++
		m.mu.Unlock()
		return
	}
	r, ok := m.cfg.Session(from)
	if !ok || r.Peer != from {
		return
	}
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.absorbLocked(&r, now)
	l, v := &p.led[b.Kind], p.liveLocked(b.Kind)
	if went, ok := v.hear(l, &b, now); ok {
		m.delivery.add(p.id, went, now)
	}
	p.dirty = true
}

func (p *peer) liveLocked(k Kind) *live {
	if p.live[k] == nil {
		p.live[k] = newLive(p.led[k].apart())
	}
	return p.live[k]
}

// absorbLocked takes a reading into totals, the day and the windows.
func (m *Meter) absorbLocked(r *SessionReading, now time.Time) *peer {
	p := m.peers[r.Peer]
	if p == nil {
		p = &peer{key: r.Peer, id: r.Peer.ID()}
		m.peers[r.Peer] = p
	}
	p.here = true
	var use Use
	for k := range Kind(numKinds) {
		sent, recv := r.kind(k)
		before := p.led[k].apart()
		dSent, dRecv := p.led[k].absorb(r.Epoch, sent, recv)
		if dSent == (Count{}) && dRecv == (Count{}) {
			continue
		}
		if p.live[k] == nil {
			p.live[k] = newLive(before)
		}
		p.live[k].moved(dSent, dRecv, now)
		p.dirty = true
		if k == Outside {
			use.OutsideSent, use.OutsideRecv = dSent, dRecv
		} else {
			use.MeshSent, use.MeshRecv = dSent, dRecv
		}
	}
	if use != (Use{}) {
		m.useLocked(p.key, use)
	}
	return p
}

// useLocked adds to a peer's day.
func (m *Meter) useLocked(key ident.PublicKey, u Use) {
	d := m.today[key]
	if d == nil {
		if len(m.today) >= maxDayRows {
			// The smallest makes way; the newcomer's own first bytes are as small.
			var least ident.PublicKey
			for k, o := range m.today {
				if !k.IsZero() && (least.IsZero() || smaller(o.Billed(), k, m.today[least].Billed(), least)) {
					least = k
				}
			}
			old := m.today[least].Use
			delete(m.today, least)
			m.dropped.days[dayKey{m.day, least}] = nil
			m.useLocked(ident.PublicKey{}, old)
		}
		d = &dayUse{}
		m.today[key] = d
		delete(m.dropped.days, dayKey{m.day, key})
	}
	d.Use, d.dirty = d.Use.plus(u), true
}

func smaller(a uint64, ak ident.PublicKey, b uint64, bk ident.PublicKey) bool {
	return a < b || a == b && bytes.Compare(ak[:], bk[:]) < 0
}

// readLinksLocked takes the counters of links into totals.
func (m *Meter) readLinksLocked(ls []LinkReading) {
	for i := range ls {
		r := &ls[i]
		var sent, recv [NumClasses]Count
		sum := func(to *[NumClasses]Count, flows []Flow) {
			for _, f := range flows {
				c := &to[min(f.Class, NumClasses-1)]
				*c = c.plus(Count{f.Packets, f.Bytes})
			}
		}
		sum(&sent, r.Sent)
		sum(&recv, r.Recv)
		for class := range uint8(NumClasses) {
			if sent[class] == (Count{}) && recv[class] == (Count{}) {
				continue
			}
			key := linkKey{r.Neighbour, class}
			l := m.links[key]
			if l == nil {
				l = &link{}
				m.links[key] = l
				delete(m.dropped.links, key)
			}
			if l.epoch != r.Epoch {
				l.epoch, l.sent, l.recv = r.Epoch, Count{}, Count{}
			}
			dSent, dRecv := sent[class].minus(l.sent), recv[class].minus(l.recv)
			if dSent == (Count{}) && dRecv == (Count{}) {
				continue
			}
			l.sent, l.recv = most(l.sent, sent[class]), most(l.recv, recv[class])
			l.sentTotal, l.recvTotal = l.sentTotal.plus(dSent), l.recvTotal.plus(dRecv)
			l.dirty = true
		}
	}
}

// shrinkLocked lets the smallest peers without a session, and links that are gone, make way when there are too many.
func (m *Meter) shrinkLocked(present []LinkReading) {
	if len(m.peers) > maxPeers {
		var idle []*peer
		for _, p := range m.peers {
			if !p.here && !p.key.IsZero() {
				idle = append(idle, p)
			}
		}
		slices.SortFunc(idle, func(a, b *peer) int {
			return cmp.Or(cmp.Compare(a.billed(), b.billed()), bytes.Compare(a.key[:], b.key[:]))
		})
		others := m.peers[ident.PublicKey{}]
		if others == nil {
			others = &peer{}
			m.peers[others.key] = others
		}
		for _, p := range idle[:min(len(idle), len(m.peers)-maxPeers*7/8)] {
			for k := range p.led {
				o, l := &others.led[k], &p.led[k]
				o.sentTotal, o.recvTotal = o.sentTotal.plus(l.sentTotal), o.recvTotal.plus(l.recvTotal)
				o.out.agreed, o.in.agreed = o.out.agreed.plus(l.out.agreed), o.in.agreed.plus(l.in.agreed)
			}
			others.dirty = true
			delete(m.peers, p.key)
			m.dropped.peers[p.key] = nil
		}
	}
	if len(m.links) > maxLinks {
		here := map[ident.NodeID]bool{0: true}
		for _, l := range present {
			here[l.Neighbour] = true
		}
		var gone []linkKey
		for k := range m.links {
			if !here[k.neighbour] {
				gone = append(gone, k)
			}
		}
		size := func(k linkKey) uint64 { return m.links[k].sentTotal.Billed() + m.links[k].recvTotal.Billed() }
		slices.SortFunc(gone, func(a, b linkKey) int {
			return cmp.Or(cmp.Compare(size(a), size(b)), cmp.Compare(a.neighbour, b.neighbour), cmp.Compare(a.class, b.class))
		})
		for _, k := range gone[:min(len(gone), len(m.links)-maxLinks*7/8)] {
			to := linkKey{0, k.class}
			o := m.links[to]
			if o == nil {
				o = &link{}
				m.links[to] = o
			}
			o.sentTotal, o.recvTotal, o.dirty = o.sentTotal.plus(m.links[k].sentTotal), o.recvTotal.plus(m.links[k].recvTotal), true
			delete(m.links, k)
			m.dropped.links[k] = nil
		}
	}
}

func (p *peer) billed() (n uint64) {
	for k := range p.led {
		n += p.led[k].sentTotal.Billed() + p.led[k].recvTotal.Billed()
	}
	return n
}

// dueBeacon is a beacon to be made once it is known which way it goes.
type dueBeacon struct {
	p     *peer
	kind  Kind
	via   ident.NodeID
	viaOK bool
	radio bool
	bytes []byte
}

// tick reads, judges, tells and sends; it returns when to come again.
func (m *Meter) tick(now time.Time) time.Duration {
	rs := m.cfg.Sessions()

	m.mu.Lock()
	due := m.readLocked(rs, now)
	closing := m.delivery.closing(now)
	m.mu.Unlock()

	for i := range due {
		d := &due[i]
		d.via, d.viaOK = m.cfg.NextHop(d.p.id)
		d.radio = m.cfg.Radio != nil && m.cfg.Radio(d.p.id)
	}
	loss := make([]int, len(closing))
	if m.cfg.LinkLoss != nil {
		for i, id := range closing {
			loss[i] = min(max(m.cfg.LinkLoss(id), 0), 1000)
		}
	}

	m.mu.Lock()
	for i := range due {
		d := &due[i]
		v := d.p.live[d.kind]
		if v == nil || v.gone {
			continue
		}
		v.radio = d.radio
		b := v.beacon(&d.p.led[d.kind], d.kind, d.via, d.viaOK, now)
		d.bytes, _ = b.AppendTo(nil) // it fails for counts that no node lives to see; then none is sent
	}
	for i, id := range closing {
		m.delivery.close(id, loss[i], now)
	}
	penalties := m.delivery.heal(now)
	events := m.events
	m.events = nil
	every := slowEvery
	if m.busy {
		every = fastEvery
	}
	m.mu.Unlock()

	for i := range due {
		if d := &due[i]; len(d.bytes) == BeaconLen {
			_ = m.cfg.Send(d.p.key, d.bytes) // a datagram may get lost: the next one says the same and more
		}
	}
	for _, p := range penalties {
		m.cfg.Penalise(p.neighbour, p.permille)
		m.cfg.Log.Info("a neighbour's link has a new factor for what it delivers", "neighbour", p.neighbour, "permille", p.permille)
	}
	for _, e := range events {
		m.cfg.Log.Info("the ends of a session count differently, or agree again",
			"peer", e.Peer, "kind", e.Kind, "direction", e.Direction, "gap", e.Gap, "reason", e.Reason, "bytes", e.Lost)
		if m.cfg.Notify != nil {
			m.cfg.Notify(e)
		}
	}
	return every
}

// readLocked takes in readings, ends windows, forgets sessions that are gone and finds the beacons that are due.
func (m *Meter) readLocked(rs []SessionReading, now time.Time) (due []dueBeacon) {
	for _, p := range m.peers {
		p.here = false
	}
	for i := range rs {
		m.absorbLocked(&rs[i], now)
	}
	m.busy = false
	for _, p := range m.peers {
		for k, v := range p.live {
			if v == nil {
				continue
			}
			l := &p.led[k]
			if !p.here {
				// The window goes on: who leaves before it ends is judged all the same.
				if !v.gone {
					v = v.leave(now)
				} else if m.judgeLocked(p, Kind(k), now); v.forgotten(now) {
					v = nil
				}
				p.live[k] = v
				continue
			}
			v.gone = false
			v.sample(l, now)
			out, in, _, _ := v.rates(now)
			_, volume := interval(Kind(k))
			m.busy = m.busy || out+in > volume
			m.judgeLocked(p, Kind(k), now)
			if v.due(l, Kind(k), now) {
				due = append(due, dueBeacon{p: p, kind: Kind(k)})
			}
		}
	}
	slices.SortFunc(due, func(a, b dueBeacon) int {
		return cmp.Or(bytes.Compare(a.p.key[:], b.p.key[:]), cmp.Compare(a.kind, b.kind))
	})
	return due
}

// judgeLocked ends the window of one kind of traffic when it is time, and notes what has changed.
func (m *Meter) judgeLocked(p *peer, k Kind, now time.Time) {
	v := p.live[k]
	for d, changed := range v.judge(&p.led[k], now) {
		if w := &v.dir[d]; changed {
			m.events = append(m.events, Event{p.key, k, Direction(d), w.gap, w.reason, w.lost})
		}
	}
}

// Tally is what lasts of one kind of traffic with one peer, for life. Sent and Recv are this node's own counts. Delivered is what
// both ends say of what this node sent, Confirmed what both say of what it received.
type Tally struct {
	Sent, Recv           Count
	Delivered, Confirmed Count
}

// PeerTotals is what lasts of one peer. The zero key stands for those that were too small to be kept.
type PeerTotals struct {
	Peer          ident.PublicKey
	Outside, Mesh Tally
}

// Totals is all totals of one moment, by key.
type Totals struct {
	At    time.Time
	Peers []PeerTotals
}

// Find returns the totals of one peer.
func (t *Totals) Find(p ident.PublicKey) PeerTotals {
	i, ok := slices.BinarySearchFunc(t.Peers, p, func(a PeerTotals, p ident.PublicKey) int { return bytes.Compare(a.Peer[:], p[:]) })
	if !ok {
		return PeerTotals{Peer: p}
	}
	return t.Peers[i]
}

// Commit reads all counters, makes the totals durable, and returns just those. Whoever promises money by a total promises it by one
// that Commit has returned: after a crash no total is smaller.
func (m *Meter) Commit(now time.Time) (Totals, error) {
	m.storing.Lock()
	defer m.storing.Unlock()
	rs, ls := m.cfg.Sessions(), m.cfg.Links()

	m.mu.Lock()
	for i := range rs {
		m.absorbLocked(&rs[i], now)
	}
	m.readLinksLocked(ls)
	m.shrinkLocked(ls)
	b := m.batchLocked()
	t := Totals{At: now, Peers: make([]PeerTotals, 0, len(m.peers))}
	for key, p := range m.peers {
		t.Peers = append(t.Peers, PeerTotals{key, p.led[Outside].tally(), p.led[Mesh].tally()})
	}
	m.mu.Unlock()
	slices.SortFunc(t.Peers, func(a, b PeerTotals) int { return bytes.Compare(a.Peer[:], b.Peer[:]) })

	err := m.writeLocked(&b, now)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.storeErr, m.storeBytes = err, m.store.written
	if err != nil {
		m.restoreLocked(&b)
		return Totals{}, fmt.Errorf("keep what was counted: %w", err)
	}
	m.stored = now
	return t, nil
}

func (l *ledger) tally() Tally {
	return Tally{Sent: l.sentTotal, Recv: l.recvTotal, Delivered: l.out.agreed, Confirmed: l.in.agreed}
}

// writeLocked writes b; storing is held. When the file turns out to be damaged, all that is in memory goes into a new one.
func (m *Meter) writeLocked(b *batch, now time.Time) error {
	if b.empty() {
		return nil
	}
	err := m.store.write(b)
	if !errors.Is(err, errDamaged) {
		return err
	}
	aside, err := m.store.moveAside(err, now)
	if err != nil {
		return err
	}
	if _, err := m.store.open(); err != nil {
		return err
	}
	m.cfg.Log.Error("the meter's file was damaged", "err", aside)
	m.mu.Lock()
	m.aside = aside
	for _, p := range m.peers {
		p.dirty = true
	}
	for _, l := range m.links {
		l.dirty = true
	}
	for _, u := range m.today {
		u.dirty = true
	}
	all := m.batchLocked()
	m.mu.Unlock()
	return m.store.write(&all)
}

// batchLocked takes what is to be written; nothing is dirty then.
func (m *Meter) batchLocked() batch {
	b := m.dropped
	m.dropped = newBatch()
	for key, p := range m.peers {
		if p.dirty {
			led := p.led
			b.peers[key], p.dirty = &led, false
		}
	}
	for key, l := range m.links {
		if l.dirty {
			c := l.carried
			b.links[key], l.dirty = &c, false
		}
	}
	for key, u := range m.today {
		if u.dirty {
			use := u.Use
			b.days[dayKey{m.day, key}], u.dirty = &use, false
		}
	}
	return b
}

// restoreLocked marks as dirty again what could not be written.
func (m *Meter) restoreLocked(b *batch) {
	for key := range b.peers {
		if p := m.peers[key]; p != nil {
			p.dirty = true
		} else {
			m.dropped.peers[key] = nil
		}
	}
	for key := range b.links {
		if l := m.links[key]; l != nil {
			l.dirty = true
		} else {
			m.dropped.links[key] = nil
		}
	}
	for key, u := range b.days {
		if d := m.today[key.peer]; d != nil && key.day == m.day {
			d.dirty = true
		} else if len(m.dropped.days) < 4*maxDayRows {
			m.dropped.days[key] = u
		}
	}
}
