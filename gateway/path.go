package gateway

import (
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weft/gateway/nat64"
	"weft/ident"
	"weft/shape"
	"weft/tun"
)

// item is a packet that waits, in a buffer of its own.
type item struct {
	buf   []byte // as it came from the pool
	pkt   tun.Packet
	line  *line  // where it goes
	lease *lease // of whom it is; nil: of this host
	held  bool   // its client's throttle has let it go
}

// line is one direction of the internet line: a queue that is only gone through when there is a reason to wait.
type line struct {
	shaper *shape.Shaper[*item]
	rate   atomic.Int64 // bit/s; 0: packets need not wait
	bytes  atomic.Uint64
	writer tun.Writer // of emitUp
	one    []tun.Packet
	pools  [len(bufferSizes)]sync.Pool // of *item
}

const (
	smallBuffer = 2048
	headroom    = 32 // NAT64 makes packets longer by 20 bytes
	// maxPiece is how long a piece of a super-packet may take the line: others wait for it.
	maxPiece = 2 * time.Millisecond
)

// bufferSizes are for packets, for pieces of super-packets on slow lines, and for whole ones.
var bufferSizes = [...]int{smallBuffer, 12 << 10, 1<<16 + 64}

func newLine(emit func([]*item)) *line {
	l := &line{}
	l.shaper = shape.NewShaper(shape.Config{MaxPackets: 2048}, emit, l.put)
	return l
}

func (l *line) setRate(bits int64) {
	l.rate.Store(bits)
	l.shaper.SetRate(bits)
}

func (l *line) get(n int) *item {
	for i, size := range bufferSizes {
		if n > size {
			continue
		}
		if it, ok := l.pools[i].Get().(*item); ok {
			return it
		}
		return &item{buf: make([]byte, size)}
	}
	return &item{buf: make([]byte, n)}
}

func (l *line) put(it *item) {
	it.pkt, it.line, it.lease, it.held = tun.Packet{}, nil, nil, false
	for i, size := range bufferSizes {
		if len(it.buf) == size {
			l.pools[i].Put(it)
		}
	}
}

// tiny is the longest packet that has a queue of its own: TCP's acknowledgements, calls, games, questions for names. Behind
// the same member's upload they would slow down its download.
const tiny = 128

// submit queues a packet, first behind the throttle of its client if that has one. What is tiny has a fifth of a member's share
// to itself, so sending everything in tiny pieces as well gains no more than that.
func (l *line) submit(of *lease, it *item) {
	it.line, it.lease = l, of
	share, weight, size := uint64(0), 1, len(it.pkt.Data)
	if of != nil {
		if th := of.throttle.Load(); th != nil && !it.held {
			th.put(it)
			return
		}
		share = of.share
		if t := of.tier.Load(); t != nil { // a lease is found a moment before it has terms
			weight = t.weight
		}
	}
	if size <= tiny {
		l.shaper.Submit(share<<1|1, weight, size, it)
		return
	}
	l.shaper.Submit(share<<1, 4*weight, size, it)
}

// recall sends back what came into the queue of a line before its client was throttled.
func recall(items []*item) []*item {
	return slices.DeleteFunc(items, func(it *item) bool {
		if it.held || it.lease == nil || it.lease.throttle.Load() == nil {
			return false
		}
		it.line.submit(it.lease, it)
		return true
	})
}

// push copies a packet into the queue.
func (l *line) push(of *lease, ip []byte, seg uint16, partial bool) {
	it := l.get(len(ip))
	it.pkt = tun.Packet{Data: it.buf[:copy(it.buf, ip)], SegSize: seg, Partial: partial}
	l.submit(of, it)
}

// pushCut is push for what may be a super-packet: it is cut so that no piece takes the line for long.
func (l *line) pushCut(of *lease, p *tun.Packet) {
	rate := l.rate.Load()
	if th := of.throttle.Load(); th != nil {
		if slow := th.rate.Load(); slow != 0 && (rate == 0 || slow < rate) {
			rate = slow
		}
	}
	most := int(rate / 8 * int64(maxPiece) / int64(time.Second))
	hdr, ok := 0, false
	if p.SegSize != 0 && rate != 0 && len(p.Data) > most {
		hdr, ok = tun.HeaderLen(p.Data)
	}
	if !ok {
		l.push(of, p.Data, p.SegSize, p.Partial)
		return
	}
	seg := int(p.SegSize)
	piece := max(most/seg, 1) * seg
	tun.Cut(p.Data, hdr, piece, func(ip []byte) {
		size := p.SegSize
		if len(ip)-hdr <= seg {
			size = 0
		}
		l.push(of, ip, size, true)
	})
}

// emitDown sends what was waiting to peers, runs of one peer together.
func (g *Gateway) emitDown(items []*item) {
	items = recall(items)
	one := g.down.one[:0]
	for i, it := range items {
		one = append(one, it.pkt)
		if i+1 == len(items) || items[i+1].lease.key != it.lease.key {
			_ = g.cfg.Carrier.SendOutside(it.lease.key, one...) // no route: lost like on any line
			clear(one)
			one = one[:0]
		}
	}
	g.down.one = one
	for _, it := range items {
		g.down.put(it)
	}
}

// emitUp writes what was waiting to the host.
func (g *Gateway) emitUp(items []*item) {
	items = recall(items)
	if g.up.writer == nil {
		g.up.writer = g.cfg.Host()
	}
	for _, it := range items {
		g.up.writer.Write(it.pkt.Data, it.pkt.Partial)
	}
	_ = g.up.writer.Flush() // the device counts what it loses
	for _, it := range items {
		g.up.put(it)
	}
}

// ends reads where a packet goes, and where from, without looking at the rest.
func ends(ip []byte) (src, dst addr, ok bool) {
	if len(ip) >= 40 && ip[0]>>4 == 6 {
		return addr{binary.BigEndian.Uint64(ip[8:]), binary.BigEndian.Uint64(ip[16:])},
			addr{binary.BigEndian.Uint64(ip[24:]), binary.BigEndian.Uint64(ip[32:])}, true
	}
	if len(ip) >= 20 && ip[0]>>4 == 4 {
		return addr4(binary.BigEndian.Uint32(ip[12:])), addr4(binary.BigEndian.Uint32(ip[16:])), true
	}
	return addr{}, addr{}, false
}

// ours reports whether an address is this node's towards the gateway in use.
func (g *Gateway) ours(u *inUse, a addr) bool {
	if a.is4() {
		return u.has4 && a == u.v4
	}
	return a == g.self || a.hi == g.selfN || u.routed && u.v6.contains(a)
}

// FromHost says who carries a packet that the host sends outside, or that came from outside for a client. When ok is false the
// packet was dropped, or copied to be sent later.
func (g *Gateway) FromHost(p *tun.Packet) (peer ident.PublicKey, ok bool) {
	src, dst, ok := ends(p.Data)
	if !ok {
		g.counts[malformed].Add(1)
		return peer, false
	}
	if l := g.leases.to(dst); l != nil {
		return g.toClient(l, p)
	}
	if tr := g.table64.Load(); tr != nil && dst.is4() {
		if v6, owner, ok := tr.table.Reverse(dst.netip()); ok {
			if l := g.leases.of(ident.PublicKey(owner)); l != nil {
				g.toClient6(tr, l, p, addrOf(v6))
			}
			return peer, false
		}
	}
	return g.toGateway(p, src)
}

// toClient is a packet from the internet to a client.
func (g *Gateway) toClient(l *lease, p *tun.Packet) (ident.PublicKey, bool) {
	n := uint64(len(p.Data))
	t := l.tier.Load()
	if t == nil || l.families.Load() == 0 {
		g.counts[noLease].Add(1)
		return ident.PublicKey{}, false
	}
	if kbps := t.limits.DownKbps; kbps != 0 && !l.mayTake(&l.down, kbps, len(p.Data), g) {
		g.refuse(l, overRate)
		return ident.PublicKey{}, false
	}
	l.bytesDown.Add(n)
	l.packetsDown.Add(1)
	g.down.bytes.Add(n)
	if g.down.rate.Load() == 0 && l.throttle.Load() == nil {
		return l.key, true
	}
	g.down.pushCut(l, p)
	return ident.PublicKey{}, false
}

// toClient6 is an IPv4 packet to an address that stands for an IPv6 one.
func (g *Gateway) toClient6(tr *translator, l *lease, p *tun.Packet, v6 addr) {
	t := l.tier.Load()
	if t == nil || Families(l.families.Load())&NAT64 == 0 {
		g.counts[familyClosed].Add(1)
		return
	}
	send := func(ip []byte) {
		it := g.down.get(len(ip) + headroom)
		b, err := tr.prefix.To6(it.buf[:0], ip, v6.netip())
		if err != nil || len(b) == 0 || len(b) > len(it.buf) {
			g.down.put(it)
			g.refuse(l, malformed)
			return
		}
		l.bytesDown.Add(uint64(len(b)))
		l.packetsDown.Add(1)
		g.down.bytes.Add(uint64(len(b)))
		if len(b) > int(tr.mtu) && ip[6]&0x40 == 0 { // cutting is allowed (RFC 7915 section 4.1)
			err := nat64.Fragment(b, int(tr.mtu), tr.id.Add(1), make([]byte, tr.mtu), func(piece []byte) error {
				g.down.push(l, piece, 0, false)
				return nil
			})
			g.down.put(it)
			if err != nil {
				g.refuse(l, malformed)
			}
			return
		}
		it.pkt = tun.Packet{Data: b}
		g.down.submit(l, it)
	}
	if kbps := t.limits.DownKbps; kbps != 0 && !l.mayTake(&l.down, kbps, len(p.Data), g) {
		g.refuse(l, overRate)
		return
	}
	switch hdr, ok := tun.HeaderLen(p.Data); {
	case p.SegSize != 0 && ok:
		tun.Cut(p.Data, hdr, int(p.SegSize), func(ip []byte) {
			tun.FinishChecksum(ip)
			send(ip)
		})
	case p.SegSize == 0:
		if p.Partial {
			tun.FinishChecksum(p.Data)
		}
		send(p.Data)
	}
}

// toGateway is a packet of this host to the internet.
func (g *Gateway) toGateway(p *tun.Packet, src addr) (ident.PublicKey, bool) {
	var pk packet
	r := pk.parse(p.Data, true)
	u := g.client.use.Load()
	switch {
	case r == malformed:
	case u == nil:
		r = noGateway
	case src.is4() && !u.has4, !src.is4() && !u.has6:
		r = familyClosed
	case !g.ours(u, src):
		r = wrongSource
	default:
		if r = never(pk.key.dst); r != passed {
			break
		}
		if g.cfg.Filter != nil {
			g.cfg.Filter.Out(p.Data)
		}
		if u.note(&pk) {
			g.kick()
		}
		u.packetsUp.Add(1)
		u.bytesUp.Add(uint64(len(p.Data)))
		return u.gateway, true
	}
	g.counts[r].Add(1)
	if (r == noGateway || r == familyClosed) && g.noties.Allow() { // so that programs need not wait for nothing
		g.answerHost(p, &pk)
	}
	return ident.PublicKey{}, false
}

func (g *Gateway) answerHost(p *tun.Packet, pk *packet) {
	it := g.up.get(smallBuffer)
	b := prohibited(it.buf, p.Data, pk)
	if b == nil {
		g.up.put(it)
		return
	}
	it.pkt = tun.Packet{Data: b}
	g.up.submit(nil, it)
}

// refuse counts a packet that does not pass.
func (g *Gateway) refuse(l *lease, r reason) {
	g.counts[r].Add(1)
	if l != nil {
		l.refused[r].Add(1)
	}
}

// mayTake is bucket.take under the lease's lock.
func (l *lease) mayTake(b *bucket, kbps uint32, size int, g *Gateway) bool {
	now := int64(time.Since(g.start))
	l.mu.Lock()
	defer l.mu.Unlock()
	return b.take(kbps, size, now)
}

// FromPeer takes an outside packet that an authenticated peer sent. True: it is to be written to this node's device, as it is.
// The packet may be changed.
func (g *Gateway) FromPeer(peer ident.PublicKey, ip []byte, partial bool) bool {
	src, dst, ok := ends(ip)
	if !ok {
		g.counts[malformed].Add(1)
		return false
	}
	if u := g.client.use.Load(); u != nil && g.ours(u, dst) {
		return g.fromInternet(u, peer, ip, src)
	}
	l := g.leases.of(peer)
	if l == nil {
		g.counts[noLease].Add(1)
		if dst.isMesh() || dst.is4() && dst.lo>>22 == mapped>>22|100<<2|1 {
			return false // to a client: of a gateway that we left
		}
		if g.noties.Allow() { // perhaps this node was started anew: let it ask again
			g.post(inMessage{peer: peer, lost: true})
		}
		return false
	}
	var p packet
	r := p.parse(ip, false)
	pol := g.policy.Load()
	if r == passed {
		r = l.pass(&p, g.sec.Load(), pol, &g.leases.budget)
	}
	t := l.tier.Load()
	if r == passed {
		if kbps := t.limits.UpKbps; kbps != 0 && !l.mayTake(&l.up, kbps, len(ip), g) {
			r = overRate
		}
	}
	if r != passed {
		g.refuse(l, r)
		switch r {
		case private, local, ownerDenies, smtpClosed, familyClosed, tooManyFlows, meshAddress:
			if l.mayAnswer(g.sec.Load()) {
				g.answerPeer(l, ip, &p)
			}
		}
		return false
	}
	n := uint64(len(ip))
	l.bytesUp.Add(n)
	l.packetsUp.Add(1)
	g.up.bytes.Add(n)
	if pol.is64 && pol.nat64.contains(p.key.dst) {
		g.translate(l, ip, partial)
		return false
	}
	if g.up.rate.Load() == 0 && l.throttle.Load() == nil {
		return true
	}
	g.up.push(l, ip, 0, partial)
	return false
}

// fromInternet is a packet that the gateway in use brings.
func (g *Gateway) fromInternet(u *inUse, peer ident.PublicKey, ip []byte, src addr) bool {
	r := passed
	switch {
	case peer != u.gateway:
		r = noLease
	case src.isMesh() || never(src) != passed:
		r = wrongSource
	case g.cfg.Filter != nil && !g.cfg.Filter.In(ip):
		r = unsolicited
	}
	if r != passed {
		g.counts[r].Add(1)
		return false
	}
	u.recv.Add(1)
	u.packetsDow.Add(1)
	u.bytesDown.Add(uint64(len(ip)))
	return true
}

// answerPeer tells a client's host that a packet is not let through.
func (g *Gateway) answerPeer(l *lease, ip []byte, p *packet) {
	it := g.down.get(smallBuffer)
	b := prohibited(it.buf, ip, p)
	if b == nil {
		g.down.put(it)
		return
	}
	it.pkt = tun.Packet{Data: b}
	g.down.submit(l, it)
}

// translate makes an IPv4 packet of one to the NAT64 prefix and sends it on its way.
func (g *Gateway) translate(l *lease, ip []byte, partial bool) {
	tr := g.table64.Load()
	if tr == nil {
		return
	}
	if partial {
		tun.FinishChecksum(ip)
	}
	src, ok := nat64.Source(ip)
	if !ok {
		g.refuse(l, malformed)
		return
	}
	if _, own := l.owns(addrOf(src)); !own {
		g.refuse(l, wrongSource)
		return
	}
	v4, ok := tr.table.Map(nat64.Owner(l.key), src)
	if !ok {
		g.refuse(l, tooManyFlows)
		return
	}
	it := g.up.get(len(ip) + headroom)
	b, err := tr.prefix.To4(it.buf[:0], ip, v4)
	if err != nil || len(b) == 0 || len(b) > len(it.buf) {
		g.up.put(it)
		g.refuse(l, protocol)
		return
	}
	it.pkt = tun.Packet{Data: b}
	g.up.submit(l, it)
}
