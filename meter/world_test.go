package meter

import (
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"weft/ident"
)

func TestMain(m *testing.M) {
	if crashHelper() {
		return
	}
	goleak.VerifyTestMain(m)
}

// world is some nodes with real meters, and between them sessions that lose and delay packets and beacons alike, in virtual time.
type world struct {
	t     *testing.T
	delay time.Duration
	step  time.Duration
	radio bool // every way has radio in it
	nodes []*node

	mu  sync.Mutex // taken before a node's
	rng *rand.Rand
	// loss is the permille lost of what from sends to to by way of via.
	loss func(from, to, via *node) int
}

type node struct {
	w    *world
	name string
	key  ident.PublicKey
	id   ident.NodeID
	dir  string
	stop func()

	mu        sync.Mutex
	m         *Meter
	mangle    func(b *Beacon) bool // what a liar makes of its beacons; false: it sends none
	sessions  map[ident.PublicKey]*SessionReading
	links     []LinkReading
	events    []Event
	penalties map[ident.NodeID]int
	told      []penalty
	via       func(to *node) *node
	linkLoss  map[ident.NodeID]int
	beacons   int
	lastSent  [][]byte
}

func newWorld(t *testing.T) *world {
	return &world{t: t, rng: rand.New(rand.NewPCG(1, 2)), delay: 20 * time.Millisecond, step: 50 * time.Millisecond, loss: func(_, _, _ *node) int { return 0 }}
}

func (w *world) key(name string) ident.PublicKey {
	var seed [32]byte
	copy(seed[:], name)
	a, err := ident.FromSeed(seed[:])
	if err != nil {
		w.t.Fatal(err)
	}
	return a.Public()
}

func (w *world) node(name string) *node {
	n := &node{w: w, name: name, key: w.key(name), dir: w.t.TempDir(), sessions: map[ident.PublicKey]*SessionReading{},
		penalties: map[ident.NodeID]int{}, linkLoss: map[ident.NodeID]int{}}
	n.id = n.key.ID()
	w.nodes = append(w.nodes, n)
	n.start()
	return n
}

func (w *world) find(key ident.PublicKey) *node {
	for _, n := range w.nodes {
		if n.key == key {
			return n
		}
	}
	return nil
}

func (w *world) findID(id ident.NodeID) *node {
	for _, n := range w.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// start makes the node's meter of the file that is there, and serves it.
func (n *node) start() {
	n.w.t.Helper()
	m, err := New(Config{
		Dir: n.dir, Log: quiet(),
		Sessions: func() (rs []SessionReading) {
			n.mu.Lock()
			defer n.mu.Unlock()
			for _, s := range n.sessions {
				rs = append(rs, *s)
			}
			return rs
		},
		Session: func(p ident.PublicKey) (SessionReading, bool) {
			n.mu.Lock()
			defer n.mu.Unlock()
			if s := n.sessions[p]; s != nil {
				return *s, true
			}
			return SessionReading{}, false
		},
		Links: func() []LinkReading {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.links
		},
		Send: func(p ident.PublicKey, payload []byte) error {
			n.mu.Lock()
			if b, err := DecodeBeacon(payload); err != nil {
				n.w.t.Errorf("%s sends what is no beacon: %v", n.name, err)
			} else if n.mangle != nil {
				if !n.mangle(&b) {
					n.mu.Unlock()
					return nil
				}
				payload, _ = b.AppendTo(nil)
			}
			n.beacons++
			n.lastSent = append(n.lastSent[max(len(n.lastSent)-7, 0):], payload)
			n.mu.Unlock()
			to := n.w.find(p)
			if n.lost(to, 1) == 0 {
				time.AfterFunc(n.w.delay, func() { to.meter().Handle(n.key, payload) })
			}
			return nil
		},
		NextHop: func(dest ident.NodeID) (ident.NodeID, bool) {
			if to := n.w.findID(dest); to != nil {
				if v := n.way(to); v != nil {
					return v.id, true
				}
			}
			return 0, false
		},
		LinkLoss: func(id ident.NodeID) int { return n.linkLoss[id] },
		Radio:    func(ident.NodeID) bool { return n.w.radio },
		Penalise: func(id ident.NodeID, f int) {
			n.mu.Lock()
			n.penalties[id] = f
			n.told = append(n.told, penalty{id, f})
			n.mu.Unlock()
		},
		Notify: func(e Event) { n.mu.Lock(); n.events = append(n.events, e); n.mu.Unlock() },
	})
	if err != nil {
		n.w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := m.Serve(ctx); err != nil {
			n.w.t.Errorf("%s: %v", n.name, err)
		}
	}()
	n.mu.Lock()
	n.m = m
	n.mu.Unlock()
	n.stop = func() { cancel(); <-done }
}

func (n *node) meter() *Meter {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.m
}

// seen is what Notify was called with, and toldOf what Penalise was.
func (n *node) seen() []Event {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.events)
}

func (n *node) toldOf() []penalty {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.told)
}

func (n *node) sentBeacons() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.beacons
}

func (n *node) lie(f func(*Beacon) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mangle = f
}

func (w *world) lose(f func(from, to, via *node) int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.loss = f
}

func (w *world) end() {
	for _, n := range w.nodes {
		n.stop()
	}
	time.Sleep(time.Second) // beacons under way arrive at meters that are closed
}

func (n *node) way(to *node) *node {
	if n.via == nil {
		return to
	}
	return n.via(to)
}

// lost draws how many of packets are lost on the way.
func (n *node) lost(to *node, packets int) (lost uint64) {
	via := n.way(to)
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	p := n.w.loss(n, to, via)
	for range packets {
		if p == 0 {
			break
		}
		if n.w.rng.IntN(1000) < p {
			lost++
		}
	}
	return lost
}

func (n *node) session(to *node) *SessionReading {
	s := n.sessions[to.key]
	if s == nil {
		s = &SessionReading{Peer: to.key, Epoch: rand.Uint64()}
		n.sessions[to.key] = s
	}
	return s
}

// send carries packets of size bytes to another node.
func (n *node) send(to *node, k Kind, packets int, size uint64) {
	count := func(p uint64) Count { return Count{p, p * size} }
	lost := n.lost(to, packets)
	n.mu.Lock()
	if s := n.session(to); k == Outside {
		s.OutsideSent = s.OutsideSent.plus(count(uint64(packets)))
	} else {
		s.MeshSent = s.MeshSent.plus(count(uint64(packets)))
	}
	n.mu.Unlock()
	time.AfterFunc(n.w.delay, func() {
		to.mu.Lock()
		defer to.mu.Unlock()
		if s := to.session(n); k == Outside {
			s.OutsideRecv = s.OutsideRecv.plus(count(uint64(packets) - lost))
		} else {
			s.MeshRecv = s.MeshRecv.plus(count(uint64(packets) - lost))
		}
	})
}

// flow calls each, a step apart, for d.
func (w *world) flow(d time.Duration, each func()) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(w.step) {
		each()
	}
}

// reboot stops a node, cleanly or with the file as it was when last written, and starts it with fresh counters.
func (n *node) reboot() {
	n.stop()
	n.mu.Lock()
	n.sessions = map[ident.PublicKey]*SessionReading{}
	n.mu.Unlock()
	n.start()
}

func (n *node) total(of *node) PeerTotals {
	n.w.t.Helper()
	t, err := n.meter().Commit(time.Now())
	if err != nil {
		n.w.t.Fatal(err)
	}
	return t.Find(of.key)
}

func (n *node) gap(of *node, k Kind, d Direction) (bool, Reason) {
	for _, s := range n.meter().View().Sessions {
		if s.Peer == of.key && s.Kind == k {
			return [...]DirectionView{s.Out, s.In}[d].Gap, [...]DirectionView{s.Out, s.In}[d].Reason
		}
	}
	return false, Agreed
}

func virtual(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f(t, w)
		w.end()
	})
}
