package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"

	"weft/forward"
	"weft/ident"
	"weft/wire"
)

// Limits on what strangers can make this node hold.
const (
	maxLinks        = 256
	maxHalfOpen     = 64 // handshakes that others began and that have not become a link
	retryFrom       = 8  // above so many, a dialer must show that its address is real (QUIC Retry)
	helloTimeout    = 5 * time.Second
	probeTimeout    = 4 * time.Second
	holdFor         = time.Second // how long an incoming link waits for our own dial that goes before it
	settleFor       = 2 * time.Second
	controlIdle     = 30 * 24 * time.Hour // QUIC never gives a link up: probes do
	hopOverhead     = wire.HopLen
	minPathMTU      = 1280 - 48
	defaultPathMTU  = 1500 - 48
	maxPathMTU      = 9000 - 48
	firstProbeEvery = 100 * time.Millisecond
	reviveFor       = time.Minute
)

type keyPair struct{ send, recv wire.HopKey }

func quicConfig() *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout:           4 * time.Second,
		MaxIdleTimeout:                 controlIdle,
		InitialStreamReceiveWindow:     128 << 10,
		MaxStreamReceiveWindow:         512 << 10,
		InitialConnectionReceiveWindow: 256 << 10,
		MaxConnectionReceiveWindow:     1 << 20,
		MaxIncomingStreams:             1,
		MaxIncomingUniStreams:          numClasses,
		InitialPacketSize:              1200,
		DisablePathMTUDiscovery:        true,
		Versions:                       []quic.Version{quic.Version1},
	}
}

const alpn = "weft/1"

// tlsConfig trusts nobody by name: a peer is its key, which setup reads and checks.
func tlsConfig(cert tls.Certificate) *tls.Config {
	return &tls.Config{
		Certificates:           []tls.Certificate{cert},
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{alpn},
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true,
		SessionTicketsDisabled: true,
	}
}

// way is what a dial is made of.
type way struct {
	ep         forward.Endpoint
	via        carrier
	pin        ident.PublicKey // zero: whoever answers
	multiplier int
	metered    bool
	rate       int64 // bits/s to send, as said of the peer
	lan        bool  // found by discovery
	rank       int
	learned    *ident.PublicKey // set to the key of whom the dial reached
}

// Ranks of paths: a better one may replace a worse one between the same two nodes.
const (
	rankStream = iota
	rankRouted
	rankLAN
)

// dial makes a link, and returns when its first probe came back.
func (m *Manager) dial(ctx context.Context, w way) (*Link, error) {
	p := m.mux.hold(newPath(w.ep, w.via))
	conn, err := m.transport.Dial(ctx, p, m.tls, quicConfig())
	if err != nil {
		m.mux.release(p)
		var t *quic.TransportError
		if errors.As(err, &t) && t.Remote && t.ErrorCode == quic.ConnectionRefused {
			return nil, errors.New("the neighbour is busy")
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return nil, errors.New("no answer")
		}
		return nil, closeReason(err)
	}
	return m.setup(ctx, conn, p, w, true)
}

// accept turns a connection that someone dialed to us into a link.
func (m *Manager) accept(ctx context.Context, conn *quic.Conn, p *path) {
	w := way{multiplier: 1000}
	d := p.to.Load()
	w.ep, w.via = d.ep, d.via
	w.rank = m.rankOf(w)
	w.lan = w.ep.Scope != 0
	key, _ := ident.PeerKey(conn.ConnectionState().TLS)
	if _, err := m.setup(ctx, conn, p, w, false); err != nil && ctx.Err() == nil && !hasCode(err, codeDuplicate) {
		m.refused(key, w.ep, err)
	}
}

// setup runs the HELLO exchange on a fresh connection and waits for the first probe. It owns conn and p.
//
//	dialer                          acceptor
//	HELLO  ──────────────────────►  is this community mine? is there a better link?
//	keys   ◄──────────────────────  HELLO, keys
//	READY  ──────────────────────►
//	probes ◄─────────────────────►  probes        first answer: LinkUp
func (m *Manager) setup(ctx context.Context, conn *quic.Conn, p *path, w way, dialer bool) (_ *Link, err error) {
	l := &Link{
		m: m, dialer: dialer, conn: conn, path: p, multiplier: w.multiplier, metered: w.metered, metNow: w.metered, rank: w.rank,
		peerRate: w.rate,
		up:       make(chan struct{}), done: make(chan struct{}), id: m.nextID.Add(1),
	}
	l.lanID.Store(w.lan)
	l.introLimit = rate.NewLimiter(rate.Every(introEvery), introBurst)
	for i := range l.queues {
		l.queues[i].wake = make(chan struct{}, 1)
	}
	l.ctx, l.fail = context.WithCancelCause(m.run)
	attempt := context.AfterFunc(ctx, func() { l.fail(context.Cause(ctx)) })
	defer attempt() // the link outlives the attempt
	stop := context.AfterFunc(conn.Context(), func() { l.fail(closeReason(context.Cause(conn.Context()))) })
	defer func() {
		if err == nil {
			return
		}
		if cause := context.Cause(l.ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			err = cause // what ended the connection says more than the read that failed
		}
		err = closeReason(err)
		code, reason := codeOf(err)
		if m.run.Err() != nil {
			code, reason = codeLeaving, errLeaving.Reason
		}
		l.fail(err)
		conn.CloseWithError(code, reason)
		stop()
		m.teardown(l)
	}()

	if w.learned != nil {
		defer func() { *w.learned = l.peer }()
	}
	if l.peer, err = ident.PeerKey(conn.ConnectionState().TLS); err != nil {
		return nil, protocolError(err.Error())
	}
	if l.peer == m.self {
		return nil, errSelf
	}
	if !w.pin.IsZero() && l.peer != w.pin {
		return nil, localError(codePin, fmt.Sprintf("the node there has key %v, expected was %v", l.peer, w.pin))
	}
	l.log = m.cfg.Log.With("peer", l.peer.ID())
	m.configure(l)

	hctx, cancel := context.WithTimeout(l.ctx, helloTimeout)
	defer cancel()
	var held *claim
	if dialer {
		if held, err = m.claimDial(l); err != nil {
			return nil, err
		}
	}
	defer func() { m.unclaim(held) }()
	if dialer {
		l.stream, err = conn.OpenStreamSync(hctx)
	} else {
		l.stream, err = conn.AcceptStream(hctx)
	}
	if err != nil {
		return nil, closeReason(err)
	}
	deadline, _ := hctx.Deadline()
	l.stream.SetReadDeadline(deadline)

	iface, ours, far := m.pathMTU(w.ep, w.via)
	l.iface.Store(int64(iface))
	l.far.Store(far)
	send := func() error {
		if l.nb, err = m.cfg.Plane.Add(l.peer, p, l); err != nil {
			return localError(codeBusy, err.Error())
		}
		l.nb.SetUp(false) // until the first probe came back
		return m.sendHello(l, ours)
	}
	receive := func() error {
		h, err := m.receiveHello(l)
		if err != nil {
			return err
		}
		l.instance, l.peerIndex = h.Instance, h.Index
		l.pathMTU = min(ours, int(h.MTU))
		l.metNow = l.metered || h.Flags&flagMetered != 0
		return nil
	}
	install := func() error {
		k, err := l.keys(0)
		if err != nil {
			return err
		}
		if s, ok := w.via.(*stream); ok {
			s.linked.Store(true)
		}
		l.epochAt = time.Now()
		l.nb.Install(0, l.peerIndex, k.send, k.recv)
		return nil
	}
	ready := func() error {
		if dialer {
			return l.writeLinkMessage([]byte{msgReady})
		}
		msg, err := readFrame(l.stream, maxLinkMsg)
		if err == nil && msg[0] != msgReady {
			err = protocolError("no READY after HELLO")
		}
		return closeReason(err)
	}
	admit := func() error {
		if !dialer {
			held, err = m.claimAccept(hctx, l)
		}
		return err
	}
	steps := []func() error{send, receive, install, ready}
	if !dialer {
		// Keys before HELLO: the dialer's first datagrams may overtake its READY.
		steps = []func() error{receive, admit, func() error {
			if l.nb, err = m.cfg.Plane.Add(l.peer, p, l); err != nil {
				return localError(codeBusy, err.Error())
			}
			l.nb.SetUp(false)
			return nil
		}, install, func() error { return m.sendHello(l, ours) }, ready}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	l.stream.SetReadDeadline(time.Time{})

	if err := m.firstProbe(l); err != nil {
		return nil, err
	}
	l.shape()
	old, err := m.commit(l)
	if err != nil {
		return nil, err
	}
	m.links.Go(func() {
		if old != nil {
			old.die(errReplaced)
			<-old.done
		}
		l.spawn(l.readLinkStream)
		l.run()
		code, reason := codeOf(context.Cause(l.ctx))
		if m.run.Err() != nil {
			code, reason = codeLeaving, errLeaving.Reason
		}
		conn.CloseWithError(code, reason)
		stop()
		m.teardown(l)
		m.revive(l)
	})
	return l, nil
}

// revive dials a neighbour that dials us as a rule and went silent. It may not have noticed yet, and would not dial for a
// while; where a NAT keeps our dial out, nothing is lost.
func (m *Manager) revive(l *Link) {
	if l.rank != rankRouted || context.Cause(l.ctx) != error(errSilent) || m.configured(l.peer) {
		return
	}
	d := l.path.to.Load()
	w := way{ep: d.ep, via: d.via, pin: l.peer, multiplier: l.multiplier, metered: l.metered, rate: l.peerRate, rank: l.rank}
	pause := soonPause
	for began := time.Now(); time.Since(began) < reviveFor; pause += pause / 2 {
		t := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-t.C:
		case <-m.run.Done():
		}
		t.Stop()
		if m.run.Err() != nil || m.LinkTo(l.peer) != nil {
			return
		}
		ctx, cancel := context.WithTimeout(m.run, soonAttempt)
		_, err := m.dial(ctx, w)
		cancel()
		if err == nil {
			return
		}
	}
}

// teardown ends what setup began. The connection is closed already.
func (m *Manager) teardown(l *Link) {
	l.goMu.Lock()
	l.stopped = true
	l.goMu.Unlock()
	l.wg.Wait()
	if l.nb != nil {
		m.cfg.Plane.Remove(l.nb)
	}
	m.mux.release(l.path)
	if s, ok := l.path.to.Load().via.(*stream); ok {
		s.Close()
	}
	m.forget(l)
	close(l.done)
}

func (m *Manager) sendHello(l *Link, mtu int) error {
	proof, err := communityProof(l.exporter(), m.cfg.CommunityKey, l.dialer)
	if err != nil {
		return err
	}
	h := hello{Version: helloVersion, MTU: uint16(mtu), Index: l.nb.Index(), Instance: m.instance, Community: m.community, Proof: proof}
	if l.metered {
		h.Flags |= flagMetered
	}
	return closeReason(l.writeLinkMessage(h.appendTo([]byte{msgHello})))
}

func (m *Manager) receiveHello(l *Link) (hello, error) {
	msg, err := readFrame(l.stream, maxLinkMsg)
	if err != nil {
		return hello{}, closeReason(err)
	}
	if msg[0] != msgHello {
		return hello{}, protocolError("no HELLO")
	}
	h, err := parseHello(msg[1:])
	if err != nil {
		return h, localError(codeProtocol, err.Error())
	}
	want, err := communityProof(l.exporter(), m.cfg.CommunityKey, !l.dialer)
	if err != nil {
		return h, err
	}
	return h, checkCommunity(m.community, h, want)
}

// checkCommunity compares the neighbour's proof with the one it must have.
func checkCommunity(ours ident.Community, h hello, want [32]byte) error {
	open := ident.Community{}
	switch {
	case h.Community == ours && equal(h.Proof, want):
		return nil
	case ours == open:
		return errOpenNet
	case h.Community == open || h.Community == ours:
		return errStranger
	default:
		return errOtherNet
	}
}

func (l *Link) exporter() exporter {
	state := l.conn.ConnectionState().TLS
	return state.ExportKeyingMaterial
}

// firstProbe shows that data passes both ways before anything is routed over the link.
func (m *Manager) firstProbe(l *Link) error {
	limit := time.NewTimer(probeTimeout)
	defer limit.Stop()
	again := time.NewTicker(firstProbeEvery)
	defer again.Stop()
	for {
		l.sendProbe(time.Now())
		select {
		case <-l.up:
			return nil
		case <-again.C:
		case <-limit.C:
			return errNoProbe
		case <-l.ctx.Done():
			return context.Cause(l.ctx)
		}
	}
}

// A claim is the right to set up the one link with a neighbour. It settles who wins when both ends dial at once: the dial
// of the lower key does, and the other is refused as a duplicate before either end has called the link up.
type claim struct {
	l    *Link
	free chan struct{} // closed by unclaim
}

// claimDial is called when a dial has learnt whom it reached.
func (m *Manager) claimDial(l *Link) (*claim, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.byKey[l.peer]; old != nil && old.ctx.Err() == nil && l.rank <= old.rank {
		return nil, errDuplicate
	}
	if m.claims[l.peer] != nil {
		return nil, errDuplicate
	}
	return m.claimLocked(l), nil
}

func (m *Manager) claimLocked(l *Link) *claim {
	c := &claim{l: l, free: make(chan struct{})}
	m.claims[l.peer] = c
	return c
}

// claimAccept is called when a dialer's HELLO is good. It may wait for our own dial to the same neighbour.
func (m *Manager) claimAccept(ctx context.Context, l *Link) (*claim, error) {
	wait := time.NewTimer(holdFor)
	defer wait.Stop()
	late := false
	for {
		m.mu.Lock()
		old := m.byKey[l.peer]
		if old != nil && old.ctx.Err() == nil && old.instance == l.instance && old.dialer && m.before(l.peer) &&
			time.Since(old.started) < settleFor {
			m.mu.Unlock()
			return nil, errDuplicate // both dialed at once, and ours went first
		}
		c := m.claims[l.peer]
		if c == nil || late || !c.l.dialer || !m.before(l.peer) {
			if c != nil {
				c.l.fail(errDuplicate) // the newest dial of theirs, or theirs instead of ours
			}
			n := m.claimLocked(l)
			m.mu.Unlock()
			return n, nil
		}
		m.mu.Unlock()
		select {
		case <-c.free:
		case <-wait.C:
			late = true
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// before reports whether our dials win over the peer's.
func (m *Manager) before(peer ident.PublicKey) bool { return string(m.self[:]) < string(peer[:]) }

func (m *Manager) unclaim(c *claim) {
	if c == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.claims[c.l.peer] == c {
		delete(m.claims, c.l.peer)
	}
	close(c.free)
}

// commit makes l the link with its neighbour and returns the one that it replaces.
func (m *Manager) commit(l *Link) (old *Link, err error) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := l.ctx.Err(); err != nil {
		return nil, context.Cause(l.ctx)
	}
	old = m.byKey[l.peer]
	if old == nil && len(m.byKey) >= maxLinks {
		return nil, errBusy
	}
	l.mu.Lock()
	l.started = now
	l.live = liveness{heard: now, lastTick: now, nextIdle: now.Add(l.idlePause())}
	l.mu.Unlock()
	l.nb.SetUp(true)
	m.byKey[l.peer] = l
	m.kickPulse()
	return old, nil
}
