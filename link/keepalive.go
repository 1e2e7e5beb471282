package link

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"weft/forward"
)

// Keep-alives (docs/spec/link.md section 9). A NAT or firewall forgets a flow that was silent for some time: then the neighbour
// cannot reach this node until it speaks again. How long that is, a socket of its own finds out, at no risk to any link: it says
// something, asks a neighbour to answer after a silence, and sees whether the answer comes through.

const (
	keepFirst    = 25 * time.Second // the first silence to try: longer than what holds without trying, idleProbe
	keepLongest  = 120 * time.Second
	keepShortest = 8 * time.Second
	keepMetered  = 3 * time.Minute // quiet rather than reachable
	keepSettle   = 10 * time.Second
	keepRest     = 10 * time.Minute        // when there is nobody to ask
	keepStream   = 2500 * time.Millisecond // between two exchanges: some NATs only then take a flow for more than one question
	echoEvery    = 300 * time.Millisecond
	echoTries    = 5
	echoLate     = 2 * time.Second
	echoCopies   = 3
	echoGap      = 150 * time.Millisecond
	maxEchoes    = 64
	maxEchoHere  = 2 // of one neighbour
	maxAnswers   = 24
)

// keeper knows how long silence may last on the network that this node is on.
type keeper struct {
	m    *Manager
	wake chan struct{}

	mu       sync.Mutex    // guards what follows
	network  int           // counts changes of it
	good     time.Duration // the longest silence that did no harm; zero: unknown
	bad      time.Duration // the shortest that did; zero: none
	failures int           // of the test that runs: one may be a lost datagram
}

func newKeeper(m *Manager) *keeper { return &keeper{m: m, wake: make(chan struct{}, 1)} }

func (k *keeper) kick() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// reset forgets what was learnt: this node is on another network.
func (k *keeper) reset() {
	k.mu.Lock()
	k.network++
	k.good, k.bad, k.failures = 0, 0, 0
	k.mu.Unlock()
	k.kick()
}

// pause is how long a link that may lead through a NAT may be silent.
func (k *keeper) pause() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.good > 0:
		return k.good * 9 / 10
	case k.bad > 0:
		return min(idleProbe, max(k.bad*2/3, keepShortest))
	}
	return idleProbe
}

// nextLocked is the silence to try next; ok is false when enough is known.
func (k *keeper) nextLocked() (d time.Duration, ok bool) {
	switch {
	case k.good == 0 && k.bad == 0:
		return keepFirst, true
	case k.bad == 0:
		return min(k.good*3/2, keepLongest), k.good < keepLongest
	case k.good == 0:
		return max(k.bad*2/3, keepShortest), k.bad > keepShortest
	}
	return (k.good + k.bad) / 2, k.bad-k.good > max(k.good/5, 4*time.Second)
}

// run tests until enough is known, and again on every new network.
func (k *keeper) run(ctx context.Context) {
	rest := keepRest
	for {
		t := time.NewTimer(rest)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-k.wake:
			t.Stop()
			rest = keepSettle
			continue
		case <-t.C:
		}
		rest = keepRest
		k.mu.Lock()
		d, ok := k.nextLocked()
		network := k.network
		k.mu.Unlock()
		l := k.m.echoer()
		if !ok || l == nil {
			continue
		}
		d = d.Truncate(time.Second)
		through, err := k.m.test(ctx, l, d)
		k.mu.Lock()
		switch {
		case network != k.network:
		case err != nil:
			l.noEcho.Store(true)
		case through:
			k.good, k.failures = d, 0
		case k.failures == 0:
			k.failures++
		default:
			k.bad, k.failures = d, 0
		}
		k.mu.Unlock()
		if ctx.Err() == nil {
			k.m.cfg.Log.Debug("keep-alive tested", "silence", d, "through", through, "err", err)
		}
		rest = keepSettle
	}
}

// echoer finds a neighbour across the internet to test with.
func (m *Manager) echoer() *Link {
	for _, l := range m.Links() {
		if l.far.Load() && l.dialer && !l.noEcho.Load() && !l.Metered() {
			return l
		}
	}
	return nil
}

var errNoEcho = errors.New("the neighbour does not answer tests")

// test reports whether a neighbour's answer comes through after a silence.
func (m *Manager) test(ctx context.Context, l *Link, silence time.Duration) (through bool, err error) {
	to := l.path.to.Load().ep
	if to.Via >= firstStreamVia {
		return false, errNoEcho
	}
	s, err := m.under.Open(netip.AddrPort{}, nil)
	if err != nil {
		return false, err
	}
	token := rand.Uint64()
	got := make(chan byte, 16)
	var reader sync.WaitGroup
	reader.Go(func() {
		msgs := []Message{{Buf: make([]byte, receiveBuffer)}}
		for {
			n, err := s.Receive(msgs)
			if errors.Is(err, net.ErrClosed) || err != nil {
				return
			}
			for _, msg := range msgs[:n] {
				if flags, t, ok := parseKnock(msg.Buf[:msg.N]); ok && t == token {
					select {
					case got <- flags:
					default:
					}
				}
			}
		}
	})
	defer reader.Wait()
	defer s.Close()
	ask := introduction{Type: introEcho, Arg: byte(silence / time.Second), Token: token}
	if err := l.SendControl(ClassIntroductions, ask.appendTo(nil)); err != nil {
		return false, err
	}
	await := func(flag byte, limit time.Duration) bool {
		t := time.NewTimer(limit)
		defer t.Stop()
		for {
			select {
			case f := <-got:
				if f&flag != 0 {
					return true
				}
			case <-t.C:
				return false
			case <-l.ctx.Done():
				return false
			case <-ctx.Done():
				return false
			}
		}
	}
	exchange := func() bool {
		for range echoTries {
			_ = s.Send(to, knock(knockEcho, token), knockLen)
			if await(knockHeard, echoEvery+l.RTT()) {
				return true
			}
		}
		return false
	}
	if !exchange() || !sleep(ctx, keepStream) || !exchange() {
		return false, errNoEcho
	}
	if await(knockLate, silence+echoLate+2*l.RTT()) {
		return true, nil
	}
	if !exchange() { // not forgotten, but cut off
		return false, errNoEcho
	}
	return false, nil
}

// echo is a neighbour's test of its NAT.
type echo struct {
	from    *Link
	delay   time.Duration
	expires time.Time
	at      forward.Endpoint
	last    time.Time
	answers int
	running bool
}

// echo notes that a knock will come that wants to be answered twice.
func (x *introductions) echo(l *Link, i introduction) {
	now := time.Now()
	x.mu.Lock()
	defer x.mu.Unlock()
	here := 0
	for t, e := range x.echoes {
		if now.After(e.expires) {
			delete(x.echoes, t)
		} else if e.from == l {
			here++
		}
	}
	delay := time.Duration(i.Arg) * time.Second
	if here >= maxEchoHere || len(x.echoes) >= maxEchoes || x.echoes[i.Token] != nil || delay < time.Second {
		return
	}
	x.echoes[i.Token] = &echo{from: l, delay: delay, expires: now.Add(delay + keepFirst)}
}

// echoKnocked answers a test's knock, on the reader's goroutine.
func (x *introductions) echoKnocked(from forward.Endpoint, flags byte, token uint64) {
	if flags != knockEcho {
		return
	}
	now := time.Now()
	x.mu.Lock()
	e := x.echoes[token]
	if e == nil || now.After(e.expires) || e.answers >= maxAnswers {
		x.mu.Unlock()
		return
	}
	e.answers++
	e.at, e.last = from, now
	start := !e.running
	e.running = true
	x.mu.Unlock()
	if start {
		e.from.spawn(func() { x.answerLate(e, token) })
	}
	x.send(from, knock(knockEcho|knockHeard, token))
}

// answerLate answers once more when the neighbour's socket has been silent for as long as it wanted.
func (x *introductions) answerLate(e *echo, token uint64) {
	for {
		x.mu.Lock()
		at, wait := e.at, time.Until(e.last.Add(e.delay))
		x.mu.Unlock()
		if wait <= 0 {
			for range echoCopies {
				x.send(at, knock(knockEcho|knockLate, token))
				if !sleep(e.from.ctx, echoGap) {
					return
				}
			}
			return
		}
		if !sleep(e.from.ctx, wait) {
			return
		}
	}
}
