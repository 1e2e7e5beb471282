package session

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"weft/forward"
	"weft/ident"
	"weft/tun"
	"weft/wire"
)

// outbound seals packets of one goroutine into bursts for the plane.
type outbound struct {
	m    *Manager
	host tun.Writer // for ICMP errors to the own host
	now  int64
	told bool // something waits in host

	// the burst: equal datagrams to one node, the last may be shorter
	buf    []byte
	seg    int
	count  int
	closed bool // the last was shorter: nothing may follow
	dest   ident.NodeID
	class  wire.Class
	nonce  [12]byte

	// the last addresses, so that a run of packets is resolved once per batch
	lastSrc  [16]byte
	lastDst  [16]byte
	lastSess *Session
	lastRoom int
	lastAt   int64

	// the last peer that outside packets went to, likewise
	lastPeer     ident.PublicKey
	lastPeerSess *Session
	lastPeerRoom int
	lastPeerAt   int64
}

func (m *Manager) newOutbound() *outbound {
	return &outbound{m: m, host: m.cfg.Device.NewWriter(), buf: make([]byte, 0, forward.MaxBurstBytes)}
}

// packet takes one packet from the host.
func (o *outbound) packet(p *tun.Packet) {
	ip := p.Data
	var s *Session
	var room int
	switch {
	case len(ip) >= ipv6Header && ip[0]>>4 == 6 && !outside(ip):
		s, room = o.resolve(p)
	case len(ip) >= ipv6Header && ip[0]>>4 == 6, len(ip) >= ipv4Header && ip[0]>>4 == 4:
		s, room = o.resolveOutside(p)
	}
	if s != nil {
		o.send(s, room, p)
	}
}

// send seals a packet for the session, or keeps it until there are keys.
func (o *outbound) send(s *Session, room int, p *tun.Packet) {
	k := s.sendKey(o.now)
	if k == nil {
		s.queue(p)
		o.m.wantHandshake(s)
		return
	}
	o.seal(s, k, room, p)
}

// resolve finds the session and the room for end-to-end packets on the way. A packet for which there is none it takes care of.
func (o *outbound) resolve(p *tun.Packet) (*Session, int) {
	ip := p.Data
	src, dst := [16]byte(ip[8:24]), [16]byte(ip[24:40])
	if dst == o.lastDst && src == o.lastSrc && o.lastAt == o.now && o.lastSess != nil {
		return o.lastSess, o.lastRoom
	}
	m := o.m
	d := netip.AddrFrom16(dst)
	if s := netip.AddrFrom16(src); s != m.addr && !m.subnet.Contains(s) {
		o.tell(ip, icmpUnreachable, codeNoRoute, 0)
		return nil, 0
	}
	peer, ok := m.cfg.Resolver.ByAddr(d)
	if !ok {
		o.elsewhere(p, codeAddress)
		return nil, 0
	}
	s, room := o.to(peer)
	if s == nil {
		if _, ok := m.cfg.Resolver.Room(peer.ID()); !ok {
			o.elsewhere(p, codeNoRoute)
		}
		return nil, 0
	}
	o.lastSrc, o.lastDst, o.lastSess, o.lastRoom, o.lastAt = src, dst, s, room, o.now
	return s, room
}

// elsewhere hands a packet to the other network, or tells the host why it goes nowhere.
func (o *outbound) elsewhere(p *tun.Packet, code byte) {
	if f := o.m.cfg.Elsewhere; f != nil {
		mtu, ok := f(p)
		if mtu > 0 {
			o.tell(p.Data, icmpTooBig, 0, uint32(max(mtu, 1280)))
		}
		if ok {
			return
		}
	}
	o.tell(p.Data, icmpUnreachable, code, 0)
}

// tell sends the own host an ICMPv6 error, never about an ICMPv6 error (RFC 4443 section 2.4 e).
func (o *outbound) tell(ip []byte, typ, code byte, arg uint32) {
	if typ == icmpTooBig {
		o.m.c.tooBig.Add(1)
	} else {
		o.m.c.unreachable.Add(1)
	}
	if ip[6] == tun.ProtoICMPv6 && len(ip) > ipv6Header && ip[ipv6Header] < 128 {
		return
	}
	o.host.Write(icmpError(ip, typ, code, arg), false)
	o.told = true
}

func (o *outbound) flushHost() {
	if o.told {
		o.told = false
		_ = o.host.Flush() // the host's own errors get lost like any packet
	}
}

// seal puts one packet or super-packet into bursts.
func (o *outbound) seal(s *Session, k *keypair, room int, p *tun.Packet) {
	ip := p.Data
	most := room - overhead // the largest IP packet that fits
	switch {
	case ip[0]&innerTypeMask == innerMessage:
		o.add(s, k, wire.Class(p.SegSize), ip, false) // of a message: its class
		return
	case outside(ip):
		o.sealOutside(s, k, p, most)
		return
	}
	s.filter.Out(ip)
	elided := [16]byte(ip[8:24]) == o.m.addr.As16() && [16]byte(ip[24:40]) == s.addr.As16()
	if elided {
		most += ipv6Header - meshHeader
	}
	if p.SegSize == 0 {
		if len(ip) > most {
			o.tell(ip, icmpTooBig, 0, uint32(max(most, 1280)))
			return
		}
		o.add(s, k, wire.ClassBulk, inner(ip, elided), p.Partial)
		s.sent.add(len(ip))
		return
	}
	o.segments(s, k, p, elided, most)
}

// inner turns an IP packet into the plaintext: as it is, or with the compact header over the end of its own.
func inner(ip []byte, elided bool) []byte {
	if !elided {
		return ip
	}
	pt := ip[ipv6Header-meshHeader:]
	compact(pt, ip)
	return pt
}

// segments cuts a super-packet and seals each segment before the next one's header is written over it.
func (o *outbound) segments(s *Session, k *keypair, p *tun.Packet, elided bool, most int) {
	ip := p.Data
	hdr, ok := tun.HeaderLen(ip)
	if !ok {
		return
	}
	size := int(p.SegSize)
	if hdr+size > most {
		o.tell(ip[:min(len(ip), 1280)], icmpTooBig, 0, uint32(max(most, 1280)))
		return
	}
	tun.Cut(ip, hdr, size, func(seg []byte) {
		n := len(seg)
		o.add(s, k, wire.ClassBulk, inner(seg, elided), true)
		s.sent.add(n)
	})
}

// add seals one plaintext into the burst, sending the burst first when it does not fit.
func (o *outbound) add(s *Session, k *keypair, class wire.Class, pt []byte, partial bool) {
	need := wire.HopLen + overhead + len(pt)
	if o.count > 0 && (o.closed || o.class != class || o.dest != s.id || need > o.seg || o.count == forward.MaxBurst || len(o.buf)+need > forward.MaxBurstBytes) {
		o.flush()
	}
	if o.count == 0 {
		o.dest, o.seg, o.closed, o.class = s.id, need, false, class
	}
	o.closed = need < o.seg
	at := len(o.buf)
	b := o.buf[:at+wire.HopLen+dataHeader]
	e := b[at+wire.HopLen:]
	counter := k.counter.Add(1)
	e[0], e[1], e[2], e[3] = typeData, 0, 0, 0
	if partial {
		e[1] = flagPartial
	}
	copy(o.nonce[:4], e)
	binary.BigEndian.PutUint32(e[4:], k.remote)
	binary.BigEndian.PutUint64(e[8:], counter)
	binary.BigEndian.PutUint64(o.nonce[4:], counter)
	o.buf = k.send.Seal(b, o.nonce[:], pt, nil)
	o.count++
	if len(pt) > 0 { // keep-alives answer, they do not ask
		if s.askedAt.Load() == 0 {
			s.askedAt.Store(o.now)
			o.m.stir()
		}
		s.lastSent.Store(o.now)
	}
	if s.owedAt.Load() != 0 {
		s.owedAt.Store(0)
	}
}

func (o *outbound) flush() {
	if o.count == 0 {
		return
	}
	o.m.c.sealed.Add(uint64(o.count))
	// A route that has gone is the routing core's business; the packets are lost like any others.
	_ = o.m.plane.Send(o.dest, o.class, o.buf, o.seg)
	o.buf, o.count = o.buf[:0], 0
}

// echo sends one echo request or reply.
func (o *outbound) echo(s *Session, typ byte, id, at uint64) {
	k := s.sendKey(o.now)
	if k == nil {
		return
	}
	var pt [echoLen]byte
	pt[0] = typ
	binary.BigEndian.PutUint64(pt[4:], id)
	binary.BigEndian.PutUint64(pt[12:], at)
	o.add(s, k, wire.ClassControl, pt[:], false)
	o.flush()
}

// idle sends a keep-alive.
func (o *outbound) idle(s *Session, k *keypair) {
	o.add(s, k, wire.ClassControl, nil, false)
	o.flush()
}

// sendKey returns the key pair to seal with, nil when there is none that may still be used.
func (s *Session) sendKey(now int64) *keypair {
	k := s.cur.Load()
	if k == nil || now-k.created > int64(rejectAfter) || k.counter.Load() >= rekeyPackets+1<<30 {
		return nil
	}
	return k
}

// queue keeps a copy of a packet until the handshake is done; the oldest give way.
func (s *Session) queue(p *tun.Packet) {
	size := int64(len(p.Data))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone.Load() || s.m.pending.Load()+size > maxPendingAll {
		s.m.c.pendingDropped.Add(1)
		return
	}
	q := *p
	q.Data = bytes.Clone(p.Data)
	s.m.pending.Add(size)
	s.pending = append(s.pending, q)
	s.pendingBytes += len(q.Data)
	for s.pendingBytes > maxPendingBytes || len(s.pending) > 256 {
		s.pendingBytes -= len(s.pending[0].Data)
		s.m.pending.Add(-int64(len(s.pending[0].Data)))
		s.pending[0] = tun.Packet{}
		s.pending = s.pending[1:]
		s.m.c.pendingDropped.Add(1)
	}
	s.lastSent.Store(s.m.now())
}

// flushPending sends what waited for the handshake, as if the host sent it now.
func (o *outbound) flushPending(s *Session) {
	o.now = o.m.now()
	k := s.sendKey(o.now)
	if k == nil {
		return // it goes on waiting, for the next keys
	}
	s.mu.Lock()
	waiting := s.takePendingLocked()
	s.mu.Unlock()
	room, ok := o.m.cfg.Resolver.Room(s.id)
	if !ok {
		o.m.c.pendingDropped.Add(uint64(len(waiting)))
		return
	}
	for i := range waiting {
		o.seal(s, k, room, &waiting[i])
	}
	o.flush()
	o.flushHost()
}
