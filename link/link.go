package link

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"

	"weft/forward"
	"weft/ident"
)

// Control classes: each has a QUIC stream of its own in each direction, so that a backlog in one does not hold up another.
const (
	ClassRoute         byte = 1
	ClassPay           byte = 2
	ClassMeter         byte = 3
	ClassIntroductions byte = 4 // stays in this room
	numClasses              = 8 // values below are accepted
)

// Link is a working connection with a neighbour. Its methods are safe for concurrent use.
type Link struct {
	m          *Manager
	id         uint32
	peer       ident.PublicKey
	dialer     bool // this side dialed
	conn       *quic.Conn
	stream     *quic.Stream // the link stream
	path       *path
	nb         *forward.Neighbour
	log        *slog.Logger
	instance   uint64 // the neighbour's
	peerIndex  uint32
	pathMTU    int // the narrower of both sides' UDP payloads
	multiplier int
	metered    bool
	peerRate   int64 // bits/s to send, as said of the peer; 0: nothing was
	rank       int   // of the path: better ones replace worse ones
	started    time.Time

	ctx  context.Context
	fail context.CancelCauseFunc
	up   chan struct{} // closed by the first probe that came back
	done chan struct{} // closed when all is torn down

	iface  atomic.Int64 // number of the interface that the path leaves by; 0 unknown or many
	lanID  atomic.Bool  // made by discovery, and not asked for by the operator
	far    atomic.Bool  // across routers: perhaps through a NAT
	noEcho atomic.Bool  // the neighbour is no help in testing the NAT
	met    atomic.Bool  // came from an introduction, and not asked for by the operator

	introLimit *rate.Limiter // of introductions that the neighbour asks for or makes

	pace struct {
		mu sync.Mutex // guards what follows, and the neighbour's rate
		on bool       // the neighbour's Serve runs
	}

	hmu       sync.Mutex // makes Handler calls serial; held while the handler runs
	announced bool       // guarded by hmu: LinkUp was called
	gone      bool       // guarded by hmu: LinkDown was called

	mu       sync.Mutex // guards what follows
	q        quality
	live     liveness
	seq      uint16
	metNow   bool // metered at either end
	wanted   time.Time
	lastData time.Time
	probesIn uint64
	streams  []streamListener // the neighbour's
	dataIn   uint64
	epoch    uint32
	epochAt  time.Time
	rekeying bool

	queues [numClasses]sendQueue
	writes sync.Mutex // one writer at a time on the link stream

	goMu    sync.Mutex // guards stopped, and wg.Go against wg.Wait
	stopped bool
	wg      sync.WaitGroup
}

// spawn starts a goroutine that the link's tear-down waits for; after that began it does nothing.
func (l *Link) spawn(f func()) {
	l.goMu.Lock()
	defer l.goMu.Unlock()
	if !l.stopped {
		l.wg.Go(f)
	}
}

// sendQueue holds the messages of one class that wait for the neighbour.
type sendQueue struct {
	mu      sync.Mutex // guards what follows
	buf     []byte     // framed
	wake    chan struct{}
	started bool
}

// maxQueued bounds what waits per class; a neighbour that lets it grow beyond is too slow to be one.
const maxQueued = 4 << 20

// ID names the link within this node; numbers are not reused.
func (l *Link) ID() uint32 { return l.id }

// Peer returns the neighbour's key, which the handshake proved.
func (l *Link) Peer() ident.PublicKey { return l.peer }

// Neighbour returns the packet path's side of the link.
func (l *Link) Neighbour() *forward.Neighbour { return l.nb }

// Cost returns the link's cost in µs, quantised; at least 1.
func (l *Link) Cost() uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.q.cost()
}

// RTT returns the smoothed round trip time.
func (l *Link) RTT() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.q.smooth
}

// Loss returns the estimated share of datagrams lost in each direction.
func (l *Link) Loss() (out, in float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.q.out.ratio(), l.q.in.ratio()
}

// MTU returns how many bytes an end-to-end packet may have on this link.
func (l *Link) MTU() uint16 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return uint16(l.pathMTU - hopOverhead)
}

// Metered reports whether traffic here costs money or battery at either end.
func (l *Link) Metered() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.metNow
}

// Endpoint says where the neighbour is, for people.
func (l *Link) Endpoint() string {
	d := l.path.to.Load()
	return d.via.(fmt.Stringer).String() + "://" + d.ep.AddrPort().String()
}

// Introduced reports whether a neighbour of both brought the two ends together.
func (l *Link) Introduced() bool { return l.met.Load() }

// Since returns when the link came up.
func (l *Link) Since() time.Time { return l.started }

// Interface returns the name of the interface that the link leaves by, empty when unknown.
func (l *Link) Interface() string { return l.m.interfaceName(int(l.iface.Load())) }

// Close takes the link down; both ends see the reason.
func (l *Link) Close(reason string) { l.die(localError(codeLeaving, reason)) }

// SendControl queues a message of a class for the neighbour. It does not block. Messages of a class arrive in order or
// the link goes down.
func (l *Link) SendControl(class byte, msg []byte) error {
	if class == 0 || class >= numClasses {
		return fmt.Errorf("there is no control class %d", class)
	}
	if len(msg) == 0 || len(msg) > maxControl {
		return fmt.Errorf("a control message has 1 to %d bytes, this has %d", maxControl, len(msg))
	}
	if err := l.ctx.Err(); err != nil {
		return context.Cause(l.ctx)
	}
	q := &l.queues[class]
	q.mu.Lock()
	if len(q.buf)+len(msg)+frameHeader > maxQueued {
		q.mu.Unlock()
		l.die(errSlow)
		return errSlow
	}
	q.buf = appendFrame(q.buf, msg)
	start := !q.started
	q.started = true
	q.mu.Unlock()
	if start {
		l.spawn(func() { l.writeClass(class, q) })
	} else {
		select {
		case q.wake <- struct{}{}:
		default:
		}
	}
	return nil
}

// writeClass opens the stream of a class and writes its queue until the link ends.
func (l *Link) writeClass(class byte, q *sendQueue) {
	s, err := l.conn.OpenUniStreamSync(l.ctx)
	if err != nil {
		l.die(closeReason(err))
		return
	}
	out := []byte{class}
	for {
		q.mu.Lock()
		out, q.buf = append(out, q.buf...), q.buf[:0]
		if cap(q.buf) > 1<<16 {
			q.buf = nil // a burst must not stay resident
		}
		q.mu.Unlock()
		if len(out) > 0 {
			if _, err := s.Write(out); err != nil {
				l.die(closeReason(err))
				return
			}
			if out = out[:0]; cap(out) > 1<<16 {
				out = nil
			}
			continue
		}
		select {
		case <-q.wake:
		case <-l.ctx.Done():
			return
		}
	}
}

// readClasses takes the neighbour's streams, one per class.
func (l *Link) readClasses() {
	var open [numClasses]bool
	for {
		s, err := l.conn.AcceptUniStream(l.ctx)
		if err != nil {
			l.die(closeReason(err))
			return
		}
		var class [1]byte
		if _, err := io.ReadFull(s, class[:]); err != nil {
			l.die(closeReason(err))
			return
		}
		if c := class[0]; c == 0 || c >= numClasses || open[c] {
			l.die(protocolError(fmt.Sprintf("a stream of class %d", c)))
			return
		}
		open[class[0]] = true
		l.spawn(func() {
			for {
				msg, err := readFrame(s, maxControl)
				if err != nil {
					l.die(closeReason(err))
					return
				}
				if class[0] == ClassIntroductions {
					if err := l.m.intro.control(l, msg); err != nil {
						l.die(err)
						return
					}
					continue
				}
				l.hmu.Lock()
				if !l.gone {
					l.m.cfg.Handler.Control(l, class[0], msg)
				}
				l.hmu.Unlock()
			}
		})
	}
}

// die takes the link down for a reason. Forwarding stops using it before this returns.
func (l *Link) die(reason error) {
	l.nb.SetUp(false)
	l.fail(reason)
}

// run serves a link whose first probe came back, until it dies.
func (l *Link) run() {
	l.hmu.Lock()
	if l.ctx.Err() == nil {
		l.announced = true
		l.m.cfg.Handler.LinkUp(l)
	}
	announced := l.announced
	l.hmu.Unlock()
	if announced {
		l.log.Info("link up", "endpoint", l.Endpoint(), "rtt", l.RTT(), "cost", l.Cost(), "mtu", l.MTU())
		l.m.intro.greet(l, true)
		if l.far.Load() {
			l.m.keep.kick()
		}
		l.spawn(l.readClasses)
		<-l.ctx.Done()
	}
	l.nb.SetUp(false)
	reason := context.Cause(l.ctx)
	l.hmu.Lock()
	l.gone = true
	if announced {
		l.m.cfg.Handler.LinkDown(l, reason)
	}
	l.hmu.Unlock()
	if announced {
		l.log.Info("link down", "reason", reason)
	}
}

// Probe is called by the packet path (forward.Events).
func (l *Link) Probe(from forward.Endpoint, dest uint64, payload [16]byte) {
	now := time.Now()
	p := decodeProbe(dest, payload)
	st := l.nb.Stats()
	us := clock(l.m.start, now)
	answer := probe{Time: us, Highest: uint32(st.HighestCounter), Received: uint32(st.RecvPackets)}
	l.mu.Lock()
	l.probesIn++
	first := false
	if p.Flags&probeAnswers != 0 {
		if d := time.Duration(us-p.Echo) * time.Microsecond; d < time.Minute {
			first = l.q.n == 0
			l.q.addRTT(max(d, time.Microsecond), now)
			l.live.nextIdle = now.Add(l.idlePause())
		}
	}
	l.q.out.mark(&l.q.outSeen, p.Highest, p.Received)
	l.q.in.mark(&l.q.inSeen, answer.Highest, answer.Received)
	reply := p.Flags&probeAsks != 0
	if reply {
		answer.Flags, answer.Echo, answer.Seq = probeAnswers, p.Time, p.Seq
		if p.Flags&probeAnswers == 0 && now.Sub(l.q.lastRTT) > idleProbe/2 {
			answer.Flags |= probeAsks // one exchange of three serves both ends
		}
	}
	if first {
		l.q.update(l.multiplier, l.metNow, now)
	}
	l.mu.Unlock()
	if reply {
		d, b := answer.encode()
		_ = l.nb.SendProbe(nil, d, b) // lost like any datagram
	}
	if first {
		close(l.up)
	}
}

// Moved is called by the packet path (forward.Events): the neighbour roamed.
func (l *Link) Moved(from forward.Endpoint) {
	via := l.m.carrier(from.Via)
	if via == nil {
		return
	}
	l.m.mux.move(l.path, from, via)
	l.m.roamed(l)
}

// sendProbe asks the neighbour for a sign of life.
func (l *Link) sendProbe(now time.Time) {
	st := l.nb.Stats()
	l.mu.Lock()
	l.seq++
	p := probe{
		Flags: probeAsks, Seq: l.seq, Time: clock(l.m.start, now),
		Highest: uint32(st.HighestCounter), Received: uint32(st.RecvPackets),
	}
	l.mu.Unlock()
	d, b := p.encode()
	_ = l.nb.SendProbe(nil, d, b)
}

func (l *Link) idlePause() time.Duration {
	d := idleProbe
	far := l.far.Load()
	dialed := far && !l.dialer && !l.met.Load() // whoever could be dialed has no NAT to keep open
	switch {
	case dialed && l.metNow:
		d = keepMetered * 3 / 2
	case dialed:
		d = keepLongest * 3 / 2
	case far && l.metNow:
		d = keepMetered
	case far:
		d = l.m.keep.pause() * 8 / 9 // at most
	case l.metNow:
		d = meteredProbe
	}
	return d - d/8 + rand.N(d/4)
}

// tick runs the link's state machines and returns when it wants to be called again.
func (l *Link) tick(now time.Time) time.Time {
	st := l.nb.Stats()
	l.mu.Lock()
	v, next := l.live.tick(now, st, l.idlePause(), l.q.smooth, 1-(1-l.q.in.ratio())*(1-l.q.out.ratio()), l.rank == rankStream)
	if data := st.RecvPackets - l.probesIn; now.Sub(st.LastSent) < activeFor || data != l.dataIn {
		l.lastData, l.dataIn = now, data
	}
	changed := l.q.update(l.multiplier, l.metNow, now)
	unneeded := l.unneededLocked(now)
	rekey := l.dialer && !l.rekeying && (now.Sub(l.epochAt) > rekeyAfter || st.HighestCounter > rekeyPackets || st.SentPackets > rekeyPackets*uint64(l.epoch+1))
	if rekey {
		l.rekeying = true
	}
	l.mu.Unlock()
	if unneeded {
		l.die(errUnmet)
		return next
	}
	switch v {
	case sendProbe:
		l.sendProbe(now)
	case declareDead:
		l.die(errSilent)
		return next
	case checkCarrier:
		if !l.m.hasCarrier(int(l.iface.Load())) {
			l.m.interfacesChanged([]int{int(l.iface.Load())})
			return next
		}
	}
	if rekey {
		l.spawn(l.startRekey)
	}
	if changed {
		l.changed()
	}
	return next
}

// changed tells the handler, or leaves it to the next change when the handler is busy with this link just now.
func (l *Link) changed() {
	l.spawn(func() { // the handler may take its time; the pulse may not
		l.hmu.Lock()
		defer l.hmu.Unlock()
		if l.announced && !l.gone {
			l.m.cfg.Handler.LinkChanged(l)
		}
	})
}

// Suspect verifies at once whether the neighbour is still there, because something that may be forged hints that it is not.
func (l *Link) Suspect() {
	now := time.Now()
	l.mu.Lock()
	started := now.Sub(l.live.heard) > burstEvery && l.live.suspect(now)
	l.mu.Unlock()
	if started {
		l.m.kickPulse()
	}
}

// Rekeying: after an hour, or long before the counters could wear out.
const (
	rekeyAfter   = time.Hour
	rekeyPackets = 1 << 40
)

func (l *Link) keys(epoch uint32) (keyPair, error) {
	state := l.conn.ConnectionState().TLS
	d, a, err := hopKeys(state.ExportKeyingMaterial, epoch)
	if l.dialer {
		return keyPair{send: d, recv: a}, err
	}
	return keyPair{send: a, recv: d}, err
}

func (l *Link) writeLinkMessage(msg []byte) error {
	l.writes.Lock()
	defer l.writes.Unlock()
	_, err := l.stream.Write(appendFrame(nil, msg))
	return err
}

// startRekey is the dialer's part: it takes the next epoch's datagrams before it invites the neighbour to send them.
func (l *Link) startRekey() {
	l.mu.Lock()
	next := l.epoch + 1
	l.mu.Unlock()
	k, err := l.keys(next)
	if err != nil {
		l.die(err)
		return
	}
	l.nb.Expect(uint8(next), k.recv)
	if err := l.writeLinkMessage(binary.BigEndian.AppendUint32([]byte{msgRekey}, next)); err != nil {
		l.die(closeReason(err))
	}
}

// readLinkStream serves the link stream after the set-up.
func (l *Link) readLinkStream() {
	for {
		msg, err := readFrame(l.stream, maxLinkMsg)
		if err != nil {
			l.die(closeReason(err))
			return
		}
		if err := l.linkMessage(msg); err != nil {
			l.die(err)
			return
		}
	}
}

func (l *Link) linkMessage(msg []byte) error {
	kind := msg[0]
	if kind != msgRekey && kind != msgRekeyed {
		return nil // of a later version
	}
	if len(msg) != 5 || (kind == msgRekey) == l.dialer {
		return protocolError("a rekey message out of place")
	}
	epoch := binary.BigEndian.Uint32(msg[1:])
	l.mu.Lock()
	ok := epoch == l.epoch+1 && (kind == msgRekey || l.rekeying)
	l.mu.Unlock()
	if !ok {
		return protocolError(fmt.Sprintf("a rekey to epoch %d", epoch))
	}
	k, err := l.keys(epoch)
	if err != nil {
		return err
	}
	l.nb.Install(uint8(epoch), l.peerIndex, k.send, k.recv)
	l.mu.Lock()
	l.epoch, l.epochAt, l.rekeying = epoch, time.Now(), false
	l.mu.Unlock()
	if kind == msgRekey {
		if err := l.writeLinkMessage(binary.BigEndian.AppendUint32([]byte{msgRekeyed}, epoch)); err != nil {
			return closeReason(err)
		}
	}
	return nil
}
