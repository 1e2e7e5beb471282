package link

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/ident"
)

// PeerState says how far a configured peer has got.
type PeerState string

const (
	PeerConnecting PeerState = "connecting"
	PeerConnected  PeerState = "connected"
	PeerWaiting    PeerState = "waiting" // for the next attempt
	PeerStopped    PeerState = "stopped" // Serve does not run
)

// PeerStatus describes a configured peer.
type PeerStatus struct {
	Peer
	State PeerState
	Key   ident.PublicKey // of whom the last attempt reached; zero: nobody yet
	Link  uint32          // number of the link when connected
	Error string          // of the last attempt
	Next  time.Time       // next attempt, when waiting
	Tries int             // attempts since the last success
}

// peerState is one configured peer and the goroutine that keeps it linked.
type peerState struct {
	m    *Manager
	conf Peer
	uri  uri
	wake chan struct{} // try now
	stop context.CancelFunc

	mu      sync.Mutex // guards what follows
	status  PeerStatus
	streams []streamListener // of this peer, for when UDP is blocked
}

const maxMultiplier = 1_000_000

// Redialing: soon after a loss, when the neighbour probably restarts, and patiently later.
const (
	maxPeers      = 256
	soonFor       = 30 * time.Second
	soonPause     = 150 * time.Millisecond
	firstPause    = time.Second
	maxPause      = time.Minute
	soonAttempt   = 2 * time.Second
	dialAttempt   = 8 * time.Second
	duplicateWait = 300 * time.Millisecond
)

// AddPeer adds a peer, and dials it when Serve runs. A peer with the same URI is an error.
func (m *Manager) AddPeer(p Peer) error {
	p.URI = strings.TrimSpace(p.URI)
	u, err := parseURI(p.URI, false)
	if err != nil {
		return err
	}
	if p.Multiplier == 0 {
		p.Multiplier = 1000
	}
	if p.Multiplier < 1 || p.Multiplier > maxMultiplier {
		return fmt.Errorf("peer %q: cost %d: write thousandths from 1 to %d", p.URI, p.Multiplier, maxMultiplier)
	}
	if err := checkRate(p.Rate); err != nil {
		return fmt.Errorf("peer %q: %w", p.URI, err)
	}
	if p.Key == m.self {
		return fmt.Errorf("peer %q: %w", p.URI, errSelf)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.peers[p.URI] != nil {
		return fmt.Errorf("peer %q is there already", p.URI)
	}
	if len(m.peers) >= maxPeers {
		return fmt.Errorf("peer %q: at most %d peers", p.URI, maxPeers)
	}
	s := &peerState{m: m, conf: p, uri: u, wake: make(chan struct{}, 1)}
	s.status = PeerStatus{Peer: p, State: PeerStopped, Key: p.Key}
	m.peers[p.URI] = s
	if m.dialing {
		m.startPeerLocked(s)
	}
	return nil
}

// RemovePeer forgets a peer and takes its link down.
func (m *Manager) RemovePeer(uri string) error {
	m.mu.Lock()
	p := m.peers[strings.TrimSpace(uri)]
	if p == nil {
		var have []string
		for u := range m.peers {
			have = append(have, u)
		}
		m.mu.Unlock()
		slices.Sort(have)
		return fmt.Errorf("there is no peer %q; there are: %s", uri, strings.Join(have, ", "))
	}
	delete(m.peers, p.conf.URI)
	stop := p.stop
	m.mu.Unlock()
	if stop != nil {
		stop()
	}
	if l := m.LinkTo(p.get().Key); l != nil {
		l.die(errRemoved)
	}
	return nil
}

// Peers describes the configured peers, in order of their URI.
func (m *Manager) Peers() []PeerStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]PeerStatus, 0, len(m.peers))
	for _, p := range m.peers {
		out = append(out, p.get())
	}
	slices.SortFunc(out, func(a, b PeerStatus) int { return strings.Compare(a.URI, b.URI) })
	return out
}

// configure gives a link what the operator said about this neighbour, whoever dialed.
func (m *Manager) configure(l *Link) {
	l.met.Store(!l.lanID.Load() && l.rank == rankRouted && m.intro.met(l.peer))
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.peers {
		if p.get().Key == l.peer {
			l.lanID.Store(false)
			l.met.Store(false)
			l.multiplier = p.conf.Multiplier
			l.peerRate = p.conf.Rate
			l.metered = l.metered || p.conf.Metered
			l.metNow = l.metered
		}
	}
}

// configured reports whether the operator named this neighbour, as far as is known.
func (m *Manager) configured(key ident.PublicKey) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.peers {
		if p.get().Key == key {
			return true
		}
	}
	return false
}

func (m *Manager) startPeerLocked(p *peerState) {
	ctx, stop := context.WithCancel(m.run)
	p.stop = stop
	m.links.Go(func() {
		defer stop()
		p.run(ctx)
	})
}

func (p *peerState) get() PeerStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

func (p *peerState) set(change func(*PeerStatus)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.status)
}

// hurry ends a pause between attempts.
func (p *peerState) hurry() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// run keeps the peer linked until ctx ends.
func (p *peerState) run(ctx context.Context) {
	defer p.set(func(s *PeerStatus) { s.State, s.Link = PeerStopped, 0 })
	var lastUp time.Time
	pause := firstPause
	lost := time.Now() // or begun
	udpTries := 0
	for n := 0; ctx.Err() == nil; n++ {
		if l := p.m.LinkTo(p.get().Key); l != nil {
			p.set(func(s *PeerStatus) { s.State, s.Link, s.Error, s.Tries = PeerConnected, l.id, "", 0 })
			if p.uri.scheme != "udp" || l.rank != rankStream {
				udpTries = 0
			} else if !p.awaitUDP(ctx, l, &udpTries, n) {
				continue
			}
			select {
			case <-l.done:
			case <-ctx.Done():
				return
			}
			p.remember(l)
			lastUp, lost, pause = time.Now(), time.Now(), firstPause
			if reason := context.Cause(l.ctx); reason != nil {
				p.set(func(s *PeerStatus) { s.Error = reason.Error() })
			}
			continue
		}
		p.set(func(s *PeerStatus) { s.State, s.Link = PeerConnecting, 0 })
		attempt := dialAttempt
		soon := !lastUp.IsZero() && time.Since(lastUp) < soonFor
		if wait := p.patience(soon) - time.Since(lost); wait > 0 {
			if !sleep(ctx, wait) {
				return
			}
			continue
		}
		p.mu.Lock()
		spare := len(p.streams) > 0
		p.mu.Unlock()
		if soon {
			attempt = soonAttempt
		} else if spare {
			attempt = fallbackAfter
		}
		actx, cancel := context.WithTimeout(ctx, attempt)
		key, err := p.dial(actx, n)
		if spare && err != nil && actx.Err() != nil && ctx.Err() == nil {
			key, err = p.fallBack(ctx)
		}
		cancel()
		if ctx.Err() != nil {
			return
		}
		if !key.IsZero() {
			p.set(func(s *PeerStatus) { s.Key = key })
		}
		if err == nil {
			continue
		}
		wait := pause - pause/4 + rand.N(pause/2)
		switch {
		case hasCode(err, codeDuplicate):
			wait = duplicateWait/2 + rand.N(duplicateWait)
			err = nil
		case hasCode(err, codeSelf), hasCode(err, codeClosed), hasCode(err, codePin):
			wait = maxPause // nothing changes by itself
		case soon:
			wait = soonPause/2 + rand.N(soonPause)
		default:
			pause = min(2*pause, maxPause)
		}
		p.set(func(s *PeerStatus) {
			s.State, s.Next = PeerWaiting, time.Now().Add(wait)
			if err != nil {
				s.Error = err.Error()
				s.Tries++
			}
		})
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-p.wake:
			pause = firstPause
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// awaitUDP looks now and then, while the link is on a stream, whether UDP works again, which is better in every way. It returns
// false when another link took over; when it returns true the link has ended, or ctx.
func (p *peerState) awaitUDP(ctx context.Context, l *Link, tries *int, n int) bool {
	for {
		t := time.NewTimer(again(*tries))
		select {
		case <-l.done:
			t.Stop()
			return true
		case <-ctx.Done():
			t.Stop()
			return true
		case <-p.wake: // another network
			*tries = 0
		case <-t.C:
		}
		t.Stop()
		*tries++
		n++
		actx, cancel := context.WithTimeout(ctx, fallbackAfter)
		_, err := p.dial(actx, n)
		cancel()
		if err == nil {
			return false
		}
	}
}

// sleep waits; it returns false when ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (p *peerState) dialStream(ctx context.Context, u uri) (key ident.PublicKey, err error) {
	m := p.m
	w := way{pin: p.conf.Key, multiplier: p.conf.Multiplier, metered: p.conf.Metered, rate: p.conf.Rate, learned: &key}
	s, err := m.dialStream(ctx, u)
	if err != nil {
		return key, err
	}
	w.ep, w.via = s.ep, s
	w.rank = m.rankOf(w)
	if _, err = m.dial(ctx, w); err != nil {
		s.Close() // else the link closes it when it ends
	}
	return key, err
}

// dial makes one attempt, at one of the addresses that the name has now.
func (p *peerState) dial(ctx context.Context, n int) (key ident.PublicKey, err error) {
	m := p.m
	w := way{pin: p.conf.Key, multiplier: p.conf.Multiplier, metered: p.conf.Metered, rate: p.conf.Rate, learned: &key}
	if p.uri.scheme != "udp" {
		return p.dialStream(ctx, p.uri)
	}
	addrs, err := m.resolve(ctx, p.uri)
	if err != nil {
		return key, err
	}
	a := addrs[n%len(addrs)]
	scope, err := m.scope(a)
	if err != nil {
		return key, err
	}
	s := m.socketFor(a)
	if s == nil {
		return key, errors.New("no listening socket has that address's IP version")
	}
	w.ep = endpointOf(netip.AddrPortFrom(a.WithZone(""), p.uri.port), scope)
	w.ep.Via, w.via = s.via, s
	if _, _, err := m.under.Route(w.ep); err != nil {
		return key, err
	}
	w.rank = m.rankOf(w)
	_, err = m.dial(ctx, w)
	return key, err
}
