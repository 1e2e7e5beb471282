package forward

import (
	"sync"
	"sync/atomic"
	"time"

	"weft/ident"
	"weft/wire"
)

// Neighbour is one link as the packet path sees it.
type Neighbour struct {
	plane  *Plane
	peer   ident.PublicKey
	id     ident.NodeID
	index  uint32
	sender Sender
	events Events

	up   atomic.Bool
	keys atomic.Pointer[linkKeys]

	queue atomic.Pointer[shaping] // nil: not shaped
	curb  atomic.Pointer[curb]    // nil: not throttled

	sentPackets, sentBytes atomic.Uint64
	lastSent               atomic.Int64 // coarse; data only

	mu          sync.Mutex // guards what follows, and the receive windows inside keys
	from        Endpoint
	recvPackets uint64 // authentic and fresh, probes included
	recvBytes   uint64
	lastRecv    int64
	badMAC      uint64
	replayed    uint64
	flows       tally

	handed struct {
		mu sync.Mutex // guards the tally
		tally
	}

	pace struct {
		mu      sync.Mutex // guards what follows
		rate    int64
		serving bool
		s       *shaping // nil until Serve runs for the first time
	}

	curbed *curb // guarded by Plane.mu; nil until Throttle is called for the first time
}

// linkKeys are the keys in force. They are replaced as a whole; only the windows and the send counter inside move on.
type linkKeys struct {
	epoch     uint8
	peerIndex uint32
	send      wire.HopKey
	counter   atomic.Uint64 // last used
	recv      [2]*recvKey   // this epoch's and the previous one's (nil when there is none)
}

type recvKey struct {
	epoch  uint8
	key    wire.HopKey
	window Window
}

// Stats describes the traffic on one link.
type Stats struct {
	SentPackets, SentBytes uint64 // data and probes
	RecvPackets, RecvBytes uint64 // authentic and fresh
	HighestCounter         uint64 // of the current epoch: RecvPackets against it tells loss
	BadMAC, Replayed       uint64
	LastSent, LastRecv     time.Time // LastSent: data only. Zero when never
}

// Index is the receiver index that the peer must put into its headers.
func (n *Neighbour) Index() uint32 { return n.index }

// Peer returns the neighbour's key.
func (n *Neighbour) Peer() ident.PublicKey { return n.peer }

// SetUp tells whether the link carries traffic. While it is down, forwarding uses alternates.
func (n *Neighbour) SetUp(up bool) { n.up.Store(up) }

// Up reports the last SetUp.
func (n *Neighbour) Up() bool { return n.up.Load() }

// Install puts keys in force. What the peer still sends under the previous epoch's key stays valid until the next Install.
// A new epoch starts counters and windows afresh, so keys that are in force already are left as they are.
func (n *Neighbour) Install(epoch uint8, peerIndex uint32, send, recv wire.HopKey) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if old := n.keys.Load(); old != nil && old.epoch == epoch&0x0f && (old.send == send || old.recv[0].key == recv) {
		return
	}
	k := &linkKeys{epoch: epoch & 0x0f, peerIndex: peerIndex, send: send}
	k.recv[0] = &recvKey{epoch: epoch & 0x0f, key: recv}
	if old := n.keys.Load(); old != nil && old.epoch != k.epoch {
		if next := old.recv[1]; next != nil && next.epoch == k.epoch && next.key == recv {
			k.recv[0] = next // expected and perhaps in use: its window must live on
		}
		k.recv[1] = old.recv[0]
	}
	n.keys.Store(k)
}

// Expect takes the peer's datagrams of the next epoch beside those of the current one, while this side still sends under
// the current key; Install then completes the change. One end expects before it invites the other to change, so that no
// datagram is lost. The epoch before the current one ends here.
func (n *Neighbour) Expect(epoch uint8, recv wire.HopKey) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if k := n.keys.Load(); k != nil && k.epoch != epoch&0x0f && (k.recv[1] == nil || k.recv[1].epoch != epoch&0x0f || k.recv[1].key != recv) {
		k.recv[1] = &recvKey{epoch: epoch & 0x0f, key: recv}
	}
}

// SendProbe sends a probe: 24 bytes, all under the MAC. s may name another way than the link's own; nil is the link's own.
func (n *Neighbour) SendProbe(s Sender, dest uint64, payload [wire.TagLen]byte) error {
	k := n.keys.Load()
	if k == nil {
		return ErrNoRoute
	}
	var b [wire.MinHop]byte
	h := wire.Hop(b[:])
	h.Start(0, wire.ClassControl, ident.NodeID(dest))
	copy(h.Payload(), payload[:])
	h.Seal(k.send, wire.KindProbe, k.epoch, k.peerIndex, n.reserve(k, 1))
	if s == nil {
		s = n.sender
	}
	n.sentPackets.Add(1)
	n.sentBytes.Add(wire.MinHop)
	return s.Send(b[:], len(b))
}

// Stats returns the link's counters.
func (n *Neighbour) Stats() Stats {
	s := Stats{SentPackets: n.sentPackets.Load(), SentBytes: n.sentBytes.Load(), LastSent: when(n.lastSent.Load())}
	n.mu.Lock()
	defer n.mu.Unlock()
	s.RecvPackets, s.RecvBytes, s.BadMAC, s.Replayed = n.recvPackets, n.recvBytes, n.badMAC, n.replayed
	s.LastRecv = when(n.lastRecv)
	if k := n.keys.Load(); k != nil {
		s.HighestCounter = k.recv[0].window.Highest()
	}
	return s
}

func when(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return epoch.Add(time.Duration(ns))
}

// Flows returns what the neighbour handed over, by destination, class and hops; those that differ in hops alone stand together.
// Destination zero gathers those over the bound.
func (n *Neighbour) Flows() []Flow {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := n.flows.all()
	out := make([]Flow, len(all))
	for i := range all {
		out[i] = all[i].Flow
	}
	return out
}

// Handed returns what this node sent or relayed to the neighbour, by destination, class and hops as [Neighbour.Flows] does: what its
// Sender took. Destination zero gathers those over the bound.
func (n *Neighbour) Handed() []Handed {
	n.handed.mu.Lock()
	defer n.handed.mu.Unlock()
	return n.handed.all()
}

// hand books datagrams of one flow that the Sender took.
func (n *Neighbour) hand(key flowKey, packets, bytes int, own bool) {
	n.handed.mu.Lock()
	f := n.handed.last
	if f == nil || key != n.handed.lastKey {
		f = n.handed.find(n.plane, key)
	}
	f.Packets += uint64(packets)
	f.Bytes += uint64(bytes)
	if own {
		f.OwnPackets += uint64(packets)
		f.OwnBytes += uint64(bytes)
	}
	n.handed.mu.Unlock()
}

// handMixed books relayed datagrams of several flows.
func (n *Neighbour) handMixed(buf []byte, seg int) {
	n.handed.mu.Lock()
	for at := 0; at < len(buf); at += seg {
		n.handed.add(n.plane, wire.Hop(buf[at:min(at+seg, len(buf))]))
	}
	n.handed.mu.Unlock()
}

// reserve takes count consecutive counters and returns the first.
func (n *Neighbour) reserve(k *linkKeys, count int) uint64 {
	return k.counter.Add(uint64(count)) - uint64(count) + 1
}

func (n *Neighbour) transmit(buf []byte, seg, count int) error {
	n.sentPackets.Add(uint64(count))
	n.sentBytes.Add(uint64(len(buf)))
	n.lastSent.Store(coarse())
	err := n.sender.Send(buf, seg)
	if err != nil {
		n.plane.c.sendErrors.Add(1)
	}
	return err
}
