package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"weft/ident"
	"weft/tun"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func key(n byte) ident.PublicKey {
	k := ident.PublicKey{n, 1}
	for i := range k[2:] {
		k[i+2] = n*31 + byte(i)*7
	}
	return k
}

// world carries messages, pings and outside packets between gateways, late and not always.
type world struct {
	t     *testing.T
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup
	mu    sync.Mutex
	rng   *rand.Rand
	loss  float64
	nodes map[ident.PublicKey]*node
}

type node struct {
	w   *world
	key ident.PublicKey
	*Gateway
	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	delay   time.Duration // of the way to it
	cut     bool          // nothing arrives, nothing leaves
	gone    bool          // and the routing table knows
	deaf    bool          // its internet does not answer
	rude    func(m *message) *message
	offer   []byte
	uses    []Use
	useAt   []time.Time
	host    [][]byte // written to its device
	price   uint32
	members func(ident.PublicKey) Tier
	slow    time.Duration // until others hear of its offer
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, nodes: map[ident.PublicKey]*node{}, rng: rand.New(rand.NewPCG(1, 2))}
	w.ctx, w.stop = context.WithCancel(t.Context())
	return w
}

func (w *world) close() {
	w.stop()
	for _, n := range w.all() {
		<-n.done
	}
	w.wg.Wait()
}

func (w *world) all() (out []*node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.nodes {
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b *node) int { return slices.Compare(a.key[:], b.key[:]) })
	return out
}

func (w *world) node(k ident.PublicKey, delay time.Duration) *node {
	n := &node{w: w, key: k, delay: delay}
	n.start()
	w.mu.Lock()
	w.nodes[k] = n
	w.mu.Unlock()
	return n
}

func (n *node) start() {
	g, err := New(Config{
		Self: n.key, Log: slog.New(slog.DiscardHandler), Carrier: n, Host: func() tun.Writer { return n }, Candidates: n.candidates,
		Changed: func(u Use) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.uses, n.useAt = append(n.uses, u), append(n.useAt, time.Now())
		},
		Announce: func(b []byte) {
			n.mu.Lock()
			slow := n.slow
			n.mu.Unlock()
			time.Sleep(slow)
			n.mu.Lock()
			n.offer = b
			n.mu.Unlock()
			for _, x := range n.w.all() {
				x.CandidatesChanged()
			}
		},
		Member: func(k ident.PublicKey) Tier {
			n.mu.Lock()
			defer n.mu.Unlock()
			if n.members != nil {
				return n.members(k)
			}
			return Tier{Member: true}
		},
	})
	if err != nil {
		n.w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(n.w.ctx)
	n.Gateway, n.stop, n.done = g, stop, make(chan struct{})
	done := n.done
	go func() {
		defer close(done)
		if err := g.Serve(ctx); err != nil {
			n.w.t.Error(err)
		}
	}()
}

// kill takes the node away without a word; known says whether routing sees it.
func (n *node) kill(known bool) {
	n.mu.Lock()
	n.cut, n.gone = true, known
	n.mu.Unlock()
	if known {
		for _, x := range n.w.all() {
			x.CandidatesChanged()
		}
	}
}

func (n *node) state() (delay time.Duration, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.delay, n.cut
}

func (n *node) candidates() (out []Candidate) {
	for _, x := range n.w.all() {
		x.mu.Lock()
		if o, err := ParseOffer(x.offer); err == nil && !x.gone && x.key != n.key {
			out = append(out, Candidate{Key: x.key, Name: "gw" + x.key.String()[:2], Offer: o, CostMicros: uint32(x.delay.Microseconds()), PathPrice: x.price})
		}
		x.mu.Unlock()
	}
	return out
}

// carry runs f at the other node after the way's delay, unless the packet is lost.
func (n *node) carry(to ident.PublicKey, f func(*node)) {
	w := n.w
	w.mu.Lock()
	x := w.nodes[to]
	lost := w.rng.Float64() < w.loss
	w.mu.Unlock()
	if x == nil || lost {
		return
	}
	d1, cut1 := n.state()
	d2, _ := x.state()
	if cut1 {
		return
	}
	w.wg.Go(func() {
		time.Sleep(d1 + d2)
		if _, cut := x.state(); !cut {
			f(x)
		}
	})
}

func (n *node) SendMessage(to ident.PublicKey, channel byte, payload []byte) error {
	n.mu.Lock()
	rude := n.rude
	n.mu.Unlock()
	if rude != nil {
		m, _, err := parseMessage(payload)
		if err != nil {
			return err
		}
		if x := rude(&m); x == nil {
			return nil
		} else {
			payload = x.appendTo(nil)
		}
	}
	if channel != Channel || len(payload) > maxMessage {
		return errors.New("wrong message")
	}
	payload = slices.Clone(payload)
	n.carry(to, func(x *node) { x.Handle(n.key, payload) })
	return nil
}

func (n *node) Ping(ctx context.Context, to ident.PublicKey) (time.Duration, error) {
	start := time.Now()
	c := make(chan struct{}, 1)
	n.carry(to, func(x *node) {
		x.carry(n.key, func(*node) { c <- struct{}{} })
	})
	select {
	case <-c:
		return time.Since(start), nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (n *node) SendOutside(to ident.PublicKey, pkts ...tun.Packet) error {
	for _, p := range pkts {
		ip := slices.Clone(p.Data)
		n.carry(to, func(x *node) { x.arrive(n.key, ip) })
	}
	return nil
}

// arrive is session with an outside packet: what passes goes to the device, behind which is the internet, which answers.
func (n *node) arrive(from ident.PublicKey, ip []byte) {
	if n.FromPeer(from, ip, false) {
		n.Write(ip, false)
	}
}

func (n *node) Write(p []byte, partial bool) {
	n.mu.Lock()
	n.host = append(n.host, slices.Clone(p))
	deaf := n.deaf
	n.mu.Unlock()
	var k packet
	if r := k.parse(p, false); deaf || r != passed || k.class != classFlow && k.class != classEcho {
		return
	}
	if src, dst, _ := ends(p); !dst.isMesh() && !special(dst) && src != dst { // the internet answers
		answer := swap(p)
		n.w.wg.Go(func() {
			time.Sleep(5 * time.Millisecond)
			n.sendFromHost(answer)
		})
	}
}

func (n *node) Flush() error { return nil }

// sendFromHost is session with a packet of the device.
func (n *node) sendFromHost(ip []byte) bool {
	p := tun.Packet{Data: slices.Clone(ip)}
	to, ok := n.FromHost(&p)
	if ok {
		_ = n.SendOutside(to, p)
	}
	return ok
}

func (n *node) written() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.host)
}

func (n *node) packets() [][]byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.host)
}

// told counts the calls of Changed.
func (n *node) told() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.uses)
}

func (n *node) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

func (n *node) use() Use {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.uses) == 0 {
		return Use{}
	}
	return n.uses[len(n.uses)-1]
}

// browse sends a new connection's first packet to a destination, and reports whether an answer came within wait.
func (n *node) browse(dst netip.Addr, port uint16, wait time.Duration) bool {
	before := n.written()
	if !n.sendFromHost(tcp(n.use().IPv4, dst, port, 443, tcpSYN)) {
		return false
	}
	time.Sleep(wait)
	return n.written() > before
}

// swap makes the answer of a packet.
func swap(p []byte) []byte {
	p = slices.Clone(p)
	at := 20
	if p[0]>>4 == 6 {
		at = 40
		a := slices.Clone(p[8:24])
		copy(p[8:], p[24:40])
		copy(p[24:], a)
	} else {
		a := slices.Clone(p[12:16])
		copy(p[12:], p[16:20])
		copy(p[16:], a)
	}
	switch proto := p[9]; {
	case at == 20 && proto == protoICMP:
		p[at] = 0
	default:
		a := slices.Clone(p[at : at+2])
		copy(p[at:], p[at+2:at+4])
		copy(p[at+2:], a)
	}
	return p
}

func ip(src, dst netip.Addr, proto uint8, body []byte) []byte {
	if src.Is4() {
		b := make([]byte, 20, 20+len(body))
		b[0], b[8], b[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(body)))
		copy(b[12:], src.AsSlice())
		copy(b[16:], dst.AsSlice())
		return append(b, body...)
	}
	b := make([]byte, 40, 40+len(body))
	b[0], b[6], b[7] = 0x60, proto, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(body)))
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	return append(b, body...)
}

func tcp(src, dst netip.Addr, sport, dport uint16, flags byte) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	b[12], b[13] = 5<<4, flags
	return ip(src, dst, protoTCP, b)
}

func udp(src, dst netip.Addr, sport, dport uint16, n int) []byte {
	b := make([]byte, 8+n)
	binary.BigEndian.PutUint16(b, sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	binary.BigEndian.PutUint16(b[4:], uint16(8+n))
	return ip(src, dst, protoUDP, b)
}

func echo(src, dst netip.Addr, id uint16) []byte {
	b := make([]byte, 16)
	b[0] = 8
	proto := uint8(protoICMP)
	if src.Is6() {
		b[0], proto = 128, protoICMP6
	}
	binary.BigEndian.PutUint16(b[4:], id)
	return ip(src, dst, proto, b)
}

func fragment(whole []byte, id uint16, from, to int, more bool) []byte {
	b := append(slices.Clone(whole[:20]), whole[20+from:20+to]...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[4:], id)
	f := uint16(from / 8)
	if more {
		f |= 0x2000
	}
	binary.BigEndian.PutUint16(b[6:], f)
	return b
}

var (
	web   = netip.MustParseAddr("203.0.113.80")
	web2  = netip.MustParseAddr("198.51.100.7")
	web6  = netip.MustParseAddr("2001:db8::80")
	lan   = netip.MustParseAddr("192.168.1.7")
	plain = OfferConfig{IPv4: true, IPv6: true, DNS: true, Price: 1000, DownKbps: 100_000, UpKbps: 100_000}
	both  = Choice{Mode: Auto}

	unshaped = OfferConfig{IPv4: true, IPv6: true, DNS: true, Price: 1000}
)

// in runs a test in virtual time.
func in(t *testing.T, f func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		f(t, w)
	})
}

func (n *node) mustOffer(c OfferConfig) {
	n.w.t.Helper()
	if err := n.Offer(c); err != nil {
		n.w.t.Fatal(err)
	}
}

func (n *node) mustUse(c Choice) {
	n.w.t.Helper()
	if err := n.Use(c); err != nil {
		n.w.t.Fatal(err)
	}
}
