// Package session carries IP packets between two nodes, end to end: Noise IK handshakes, authenticated encryption of every
// packet, rekeying and replay protection. Relays in between see none of it. docs/spec/session.md is the normative text.
//
// node makes one [Manager] per node and runs Serve; forward delivers to it (Manager is a forward.Local) and carries what it
// sends. Handshakes and timers live on the goroutine of Serve, packets from the host on the one of its TUN reader, packets
// from the mesh on link's readers; Serve returns when its goroutines have. Public methods are safe for concurrent use.
//
// One session's keys, after WireGuard (Donenfeld, NDSS 2017, section 5.4, 6):
//
//	initiator                                     responder
//	 idle ──Init──────────────────────────────────► fresh key pair in next
//	 cur := new, prev := old cur ◄────────Resp──────┘
//	   └──first data or keep-alive──────────────────► next becomes cur, old cur becomes prev
//
// Invariants: a key pair sends at most 2^60 packets and for at most 180 s; a counter is used once; the responder never
// sends with keys that the initiator has not confirmed, so a replayed Init changes nothing that is in use; what is not
// authentic is dropped in silence.
package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/forward"
	"weft/ident"
	"weft/tun"
	"weft/wire"
)

// Timers. The first four are WireGuard's; the last two are shorter than its ten and fifteen seconds, so that a peer that was
// restarted is noticed while somebody still waits.
const (
	rekeyAfter   = 120 * time.Second
	rejectAfter  = 180 * time.Second
	rekeyPackets = 1 << 60
	giveUpAfter  = 90 * time.Second // of unanswered handshakes
	keepAlive    = 500 * time.Millisecond
	unanswered   = 1200 * time.Millisecond
	forgetAfter  = 240 * time.Second // a session without keys or traffic
	retryFirst   = 200 * time.Millisecond
	retryMost    = time.Second
	patience     = 6 // tries after which the waits grow again, to 8 s
)

// Bounds on what a hostile network can make a node keep.
const (
	maxSessions     = 4096
	maxStrangers    = maxSessions / 4 * 3 // above so many only this node's own traffic opens one: a crowd cannot keep it from calling others
	maxPendingBytes = 256 << 10           // per session, while a handshake runs
	maxPendingAll   = 8 << 20             // of all sessions
	maxHandshakes   = 128                 // handshake packets waiting for the worker
	loadThreshold   = 32                  // of which make the node ask for cookies
	loadedFor       = time.Second         // and so long after
	turn            = 250 * time.Millisecond
	turnMost        = 256 // Inits answered in a turn under load, one for each source
	maxBadResps     = 8   // for one Init: each false one costs two Diffie–Hellmans
)

// Plane carries sealed packets towards a node; *forward.Plane is one.
type Plane interface {
	Send(dest ident.NodeID, class wire.Class, buf []byte, seg int) error
}

// Resolver knows which node is behind an address and how large an end-to-end packet can get on the way to it.
type Resolver interface {
	ByAddr(netip.Addr) (ident.PublicKey, bool)
	Room(ident.NodeID) (bytes int, reachable bool)
}

// Filter decides about the packets of one peer: Out sees what leaves, In what arrives. The two are called from different
// goroutines.
type Filter interface {
	Out(ip []byte)
	In(ip []byte) bool
	Release() // the session is over
}

// Outside carries packets one of whose ends is no node of the mesh: those that a gateway takes for its clients and those
// that a client sends through its gateway. All IPv4 packets are such. The session itself lets none pass.
type Outside interface {
	// FromHost is asked whose session carries a packet that the device gave, a super-packet perhaps. ok is false when nobody's
	// does, or when the packet has been taken care of. It is called on the goroutine that reads the device, keeps nothing of p
	// and waits for nothing.
	FromHost(p *tun.Packet) (peer ident.PublicKey, ok bool)
	// FromPeer is given one whole IP packet that the peer sent; true hands it to the device. It is called on link's readers,
	// may change ip in place and keeps nothing of it. partial is as in tun.Writer.
	FromPeer(peer ident.PublicKey, ip []byte, partial bool) bool
}

// Config is what a Manager needs.
type Config struct {
	Agent    *ident.Agent
	Device   tun.Device
	Resolver Resolver
	// Filter is asked for the filter of a peer that has proved its key and, in a closed network, that it knows the PSK.
	Filter func(peer ident.PublicKey) Filter
	PSK    [32]byte // the community key of a closed network, else zero
	// Elsewhere is another network behind the same addresses, asked for what the Resolver knows no way to; nil when there is
	// none. It may change p.Data, keeps none of it and waits for no network. mtu is not zero when the packet is too big: then
	// it is the largest that fits. ok is false when nothing leads there. It is called on the goroutine that reads the device.
	Elsewhere func(p *tun.Packet) (mtu int, ok bool)
	// Outside takes packets from and to what is not in the mesh; nil drops them.
	Outside Outside
	// Message takes what a peer sent with SendMessage, on link's readers; it keeps nothing of payload and waits for nothing.
	// nil drops it.
	Message func(peer ident.PublicKey, channel byte, payload []byte)
	Log     *slog.Logger
}

// Counts are totals since the start.
type Counts struct {
	Sealed, Opened                      uint64 // packets
	BadPacket, Replayed, Filtered       uint64
	Messages                            uint64 // received
	HandshakesSent, HandshakesOK        uint64
	HandshakesBad, Cookies, QueueDrops  uint64
	Unreachable, TooBig, PendingDropped uint64
}

// Manager holds all sessions of a node.
type Manager struct {
	cfg    Config
	plane  Plane
	self   ident.PublicKey
	addr   netip.Addr
	subnet netip.Prefix
	hs     handshaker
	start  time.Time

	work  chan []byte   // handshake packets, copied
	kick  chan *Session // wants a handshake
	wake  chan struct{} // there is something to time
	awake atomic.Bool

	mu       sync.RWMutex // guards what follows
	byID     map[ident.NodeID]*Session
	byIndex  map[uint32]*keypair
	pings    map[uint64]ping
	pingNext uint64
	epochs   uint64 // of the newest session; begins at random, so that none comes back after a restart

	spare   sync.Pool    // of *outbound, for who sends now and then
	pending atomic.Int64 // bytes that wait for handshakes in all sessions

	c struct {
		sealed, opened, bad, replayed, filtered     atomic.Uint64
		messages                                    atomic.Uint64
		hsSent, hsOK, hsBad, cookies, queueDrops    atomic.Uint64
		unreachable, tooBig, pendingDropped, icmped atomic.Uint64
	}
}

// ping is an echo request that waits for its peer's answer.
type ping struct {
	peer   ident.PublicKey
	at     int64
	answer chan time.Duration
}

// Session is the relation to one peer.
type Session struct {
	m      *Manager
	peer   ident.PublicKey
	id     ident.NodeID
	addr   netip.Addr
	subnet netip.Prefix
	filter Filter      // made when the peer's first keys are confirmed, before they are in use
	gone   atomic.Bool // dropped; set with Manager.mu held

	cur atomic.Pointer[keypair] // what packets are sealed with

	// coarse times (see now), zero when unset
	lastSent, lastRecv atomic.Int64 // data
	askedAt            atomic.Int64 // first data sent since anything was received
	owedAt             atomic.Int64 // first data received since anything was sent
	away               atomic.Bool  // packets found no way to the peer
	renew              atomic.Bool  // the peer was away: it may have been restarted and know nothing of our keys

	epoch      uint64  // tells the counters from those of an earlier session with the peer
	sent, recv traffic // between mesh addresses
	out, back  traffic // outside packets to and from the peer

	mu           sync.Mutex // guards what follows
	prev         *keypair
	next         [2]*keypair // unconfirmed, as responder: [0] from the newest Init, [1] from an older-looking one
	pending      []tun.Packet
	pendingBytes int
	made         int64

	// The rest belongs to the goroutine of Serve.
	attempt attempt
	newest  uint64 // greatest Init timestamp seen
	lastOld int64  // when an older-looking Init was last answered
	rtt     time.Duration
}

// traffic counts IP packets, sealed or authentic and fresh; each segment of a super-packet is one.
type traffic struct{ packets, bytes atomic.Uint64 }

func (t *traffic) add(bytes int) {
	t.packets.Add(1)
	t.bytes.Add(uint64(bytes))
}

// Count is a number of IP packets and their bytes, headers included.
type Count struct{ Packets, Bytes uint64 }

func (t *traffic) count() Count { return Count{t.packets.Load(), t.bytes.Load()} }

// New makes a manager. Bind must be called before Serve.
func New(cfg Config) (*Manager, error) {
	m := &Manager{
		cfg: cfg, self: cfg.Agent.Public(), addr: cfg.Agent.Public().Addr(), subnet: cfg.Agent.Public().Subnet(), start: time.Now(),
		work: make(chan []byte, maxHandshakes), kick: make(chan *Session, 256), wake: make(chan struct{}, 1),
		epochs: rand.Uint64(),
		byID:   map[ident.NodeID]*Session{}, byIndex: map[uint32]*keypair{}, pings: map[uint64]ping{},
	}
	if err := m.hs.init(cfg.Agent, cfg.PSK); err != nil {
		return nil, err
	}
	return m, nil
}

// Bind gives the manager the plane that it sends through; the plane needs the manager first, as its forward.Local.
func (m *Manager) Bind(p Plane) { m.plane = p }

// now is the session clock: nanoseconds since the manager was made, monotonic, never zero.
func (m *Manager) now() int64 { return int64(time.Since(m.start)) + 1 }

// Serve runs until ctx ends; it closes the device to stop the reader.
func (m *Manager) Serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.readHost() })
	g.Go(func() error { m.control(ctx); return ctx.Err() })
	g.Go(func() error { <-ctx.Done(); m.cfg.Device.Close(); return nil })
	err := g.Wait()
	if errors.Is(err, net.ErrClosed) && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return err
}

// readHost carries packets from the host into the mesh.
func (m *Manager) readHost() error {
	o := m.newOutbound()
	pkts := make([]tun.Packet, 64)
	for {
		n, err := m.cfg.Device.Read(pkts)
		if err != nil {
			return fmt.Errorf("session: %w", err)
		}
		o.now = m.now()
		for i := range n {
			o.packet(&pkts[i])
		}
		o.flush()
		o.flushHost()
	}
}

// session returns the session with a peer, making it when create is set and there is room.
func (m *Manager) session(peer ident.PublicKey, create bool) *Session {
	if create {
		return m.sessionUpTo(peer, maxSessions)
	}
	return m.sessionUpTo(peer, 0)
}

// sessionUpTo returns the session with a peer, making it when there are fewer than limit or another can go.
func (m *Manager) sessionUpTo(peer ident.PublicKey, limit int) *Session {
	id := peer.ID()
	m.mu.RLock()
	s := m.byID[id]
	m.mu.RUnlock()
	if s != nil && s.peer == peer {
		return s
	}
	if s != nil || limit == 0 || peer == m.self { // another key with the same id: the first one keeps its place
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.byID[id]; s != nil {
		if s.peer != peer {
			return nil
		}
		return s
	}
	if len(m.byID) >= limit && !m.evictLocked() {
		return nil
	}
	m.epochs++
	s = &Session{m: m, peer: peer, id: id, addr: peer.Addr(), subnet: peer.Subnet(), made: m.now(), epoch: m.epochs}
	m.byID[id] = s
	return s
}

// evictLocked drops the session that has been silent longest, if it has been so for a while.
func (m *Manager) evictLocked() bool {
	var oldest *Session
	at := m.now() - int64(10*time.Second)
	for _, s := range m.byID {
		if t := max(s.lastRecv.Load(), s.lastSent.Load(), s.made); t < at {
			oldest, at = s, t
		}
	}
	if oldest == nil {
		return false
	}
	m.dropLocked(oldest)
	return true
}

func (m *Manager) dropLocked(s *Session) {
	if s.gone.Swap(true) { // the timers and a full table may both want it to go, and another may have its id by now
		return
	}
	delete(m.byID, s.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.filter != nil {
		s.filter.Release()
	}
	m.disownLocked(s.cur.Swap(nil), s.prev, s.next[0], s.next[1])
	s.prev, s.next = nil, [2]*keypair{}
	s.takePendingLocked()
}

// takePendingLocked returns what waits for a handshake, which waits no longer.
func (s *Session) takePendingLocked() []tun.Packet {
	waiting := s.pending
	s.m.pending.Add(-int64(s.pendingBytes))
	s.pending, s.pendingBytes = nil, 0
	return waiting
}

// Info describes a session for people.
type Info struct {
	Peer                     ident.PublicKey
	State                    string // "open", "handshake", "idle"
	Cipher                   string
	Age                      time.Duration // of the keys in use
	Idle                     time.Duration // since the peer was last heard
	Sent, Recv               Count         // between mesh addresses
	OutsideSent, OutsideRecv Count         // through a gateway
	Epoch                    uint64        // changes when the counts begin again
	Counters                 uint64
}

// Sessions lists the sessions in the order of their peers' ids.
func (m *Manager) Sessions() []Info {
	m.mu.RLock()
	all := slices.SortedFunc(maps.Values(m.byID), func(a, b *Session) int {
		if a.id < b.id {
			return -1
		}
		return 1
	})
	m.mu.RUnlock()
	now := m.now()
	var out []Info
	for _, s := range all {
		out = append(out, s.info(now))
	}
	return out
}

// With describes the session with one peer, if there is one.
func (m *Manager) With(peer ident.PublicKey) (Info, bool) {
	s := m.session(peer, false)
	if s == nil {
		return Info{}, false
	}
	return s.info(m.now()), true
}

func (s *Session) info(now int64) Info {
	i := Info{Peer: s.peer, State: "idle", Sent: s.sent.count(), Recv: s.recv.count(),
		OutsideSent: s.out.count(), OutsideRecv: s.back.count(), Epoch: s.epoch}
	if t := s.lastRecv.Load(); t != 0 {
		i.Idle = time.Duration(now - t)
	}
	s.mu.Lock()
	waiting := len(s.pending) > 0
	s.mu.Unlock()
	switch k := s.cur.Load(); {
	case k != nil:
		i.State, i.Cipher, i.Age, i.Counters = "open", k.cipher.String(), time.Duration(now-k.created), k.counter.Load()
	case waiting:
		i.State = "handshake"
	}
	return i
}

// Counts returns the totals.
func (m *Manager) Counts() Counts {
	c := &m.c
	return Counts{
		Sealed: c.sealed.Load(), Opened: c.opened.Load(), BadPacket: c.bad.Load(), Replayed: c.replayed.Load(), Filtered: c.filtered.Load(), Messages: c.messages.Load(),
		HandshakesSent: c.hsSent.Load(), HandshakesOK: c.hsOK.Load(), HandshakesBad: c.hsBad.Load(), Cookies: c.cookies.Load(),
		QueueDrops: c.queueDrops.Load(), Unreachable: c.unreachable.Load(), TooBig: c.tooBig.Load(), PendingDropped: c.pendingDropped.Load(),
	}
}

// Ping measures the round trip to a node inside its session, which it opens if need be.
func (m *Manager) Ping(ctx context.Context, peer ident.PublicKey) (time.Duration, error) {
	if peer == m.self {
		return 0, nil
	}
	answer := make(chan time.Duration, 1)
	m.mu.Lock()
	m.pingNext++
	id := m.pingNext
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.pings, id)
		m.mu.Unlock()
	}()
	o := m.newOutbound()
	for sent := false; !sent; {
		s := m.session(peer, true) // each time: it may have been dropped
		if s == nil {
			return 0, errors.New("no room for another session")
		}
		if _, ok := m.cfg.Resolver.Room(s.id); ok {
			if s.cur.Load() != nil {
				o.now = m.now()
				m.mu.Lock()
				m.pings[id] = ping{peer, o.now, answer}
				m.mu.Unlock()
				o.echo(s, innerEchoRequest, id, uint64(m.now()))
				sent = true
				break
			}
			m.wantHandshake(s)
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	select {
	case d := <-answer:
		return d, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// wantHandshake asks the worker for a handshake; when its queue is full the next packet asks again.
func (m *Manager) wantHandshake(s *Session) {
	select {
	case m.kick <- s:
	default:
	}
}

// stir wakes the timers.
func (m *Manager) stir() {
	if !m.awake.Swap(true) {
		select {
		case m.wake <- struct{}{}:
		default:
		}
	}
}

// NewSink implements forward.Local.
func (m *Manager) NewSink() forward.Sink { return m.newInbound() }
