package session

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"time"

	"weft/forward"
	"weft/ident"
	"weft/tun"
	"weft/wire"
)

// inbound opens what one reader goroutine of link got for this node, and gathers the packets for the host.
type inbound struct {
	m     *Manager
	host  tun.Writer
	out   *outbound // for echo replies
	now   int64     // of this batch, zero between batches
	wrote bool
	nonce [12]byte
	last  *keypair // the key pair of the last packet: a batch rarely has two
}

func (m *Manager) newInbound() *inbound {
	return &inbound{m: m, host: m.cfg.Device.NewWriter(), out: m.newOutbound()}
}

// Deliver implements forward.Sink.
func (in *inbound) Deliver(dgram []byte, _ *forward.Neighbour) {
	e := dgram[wire.HopLen:]
	if e[0] == typeData {
		in.data(dgram, e)
		return
	}
	in.m.takeHandshake(e)
}

// Flush implements forward.Sink.
func (in *inbound) Flush() {
	in.now = 0
	if in.wrote {
		in.wrote = false
		_ = in.host.Flush() // what the host cannot take is lost like any packet
	}
}

func (in *inbound) data(dgram, e []byte) {
	m := in.m
	if len(e) < overhead || e[1]&^flagsKnown != 0 || e[2]|e[3] != 0 {
		m.c.bad.Add(1)
		return
	}
	index, counter := binary.BigEndian.Uint32(e[4:]), binary.BigEndian.Uint64(e[8:])
	k := in.last
	if k == nil || k.local != index || k.dead.Load() {
		m.mu.RLock()
		k = m.byIndex[index]
		m.mu.RUnlock()
		if k == nil {
			m.c.bad.Add(1)
			return
		}
		in.last = k
	}
	if in.now == 0 {
		in.now = m.now()
	}
	if in.now-k.created > int64(rejectAfter) {
		m.c.bad.Add(1)
		return
	}
	copy(in.nonce[:4], e)
	copy(in.nonce[4:], e[8:16])
	pt, err := k.recv.Open(e[dataHeader:dataHeader], in.nonce[:], e[dataHeader:], nil)
	if err != nil {
		m.c.bad.Add(1)
		return
	}
	k.mu.Lock()
	fresh := k.window.Accept(counter)
	k.mu.Unlock()
	if !fresh {
		m.c.replayed.Add(1)
		return
	}
	s := k.s
	if !k.confirmed.Load() && !s.promote(k) {
		m.c.bad.Add(1) // its Init has been followed by another meanwhile
		return
	}
	m.c.opened.Add(1)
	s.askedAt.Store(0)
	s.lastRecv.Store(in.now)
	if len(pt) == 0 {
		return
	}
	if s.owedAt.Load() == 0 {
		s.owedAt.Store(in.now)
		m.stir()
	}
	partial := e[1]&flagPartial != 0
	switch pt[0] & innerTypeMask {
	case innerMesh:
		if len(pt) < meshHeader {
			break
		}
		// The headers in front of the plaintext are spent: the IPv6 header takes their place.
		const at = wire.HopLen + dataHeader + meshHeader - ipv6Header
		ip := dgram[at : wire.HopLen+dataHeader+len(pt)]
		src, dst := s.addr.As16(), m.addr.As16()
		expand(ip, pt[:meshHeader], len(pt)-meshHeader, &src, &dst)
		in.deliver(s, ip, partial)
		return
	case 0x40, 0x60:
		if !whole(pt) {
			break
		}
		if outside(pt) {
			in.outside(s, pt, partial)
			return
		}
		src, dst := netip.AddrFrom16([16]byte(pt[8:24])), netip.AddrFrom16([16]byte(pt[24:40]))
		if (src == s.addr || s.subnet.Contains(src)) && (dst == m.addr || m.subnet.Contains(dst)) {
			in.deliver(s, pt, partial)
			return
		}
	case innerEchoRequest:
		if len(pt) == echoLen {
			in.out.now = in.now
			in.out.echo(s, innerEchoReply, binary.BigEndian.Uint64(pt[4:]), binary.BigEndian.Uint64(pt[12:]))
			return
		}
	case innerMessage:
		if len(pt) >= messageHeader && pt[2]|pt[3] == 0 {
			m.c.messages.Add(1)
			if f := m.cfg.Message; f != nil {
				f(s.peer, pt[1], pt[messageHeader:])
			}
			return
		}
	case innerEchoReply:
		if len(pt) == echoLen {
			m.pong(s.peer, binary.BigEndian.Uint64(pt[4:]))
			return
		}
	}
	m.c.bad.Add(1)
}

// deliver gives the host a packet that the firewall lets pass.
func (in *inbound) deliver(s *Session, ip []byte, partial bool) {
	s.recv.add(len(ip))
	if !s.filter.In(ip) {
		in.m.c.filtered.Add(1)
		return
	}
	in.host.Write(ip, partial)
	in.wrote = true
}

// outside hands a packet that is not between mesh addresses to whoever shares the internet.
func (in *inbound) outside(s *Session, ip []byte, partial bool) {
	s.back.add(len(ip))
	if f := in.m.cfg.Outside; f == nil || !f.FromPeer(s.peer, ip, partial) {
		return
	}
	in.host.Write(ip, partial)
	in.wrote = true
}

// pong takes an echo reply. Only the node that was asked can answer, and what it says of the time counts for nothing.
func (m *Manager) pong(from ident.PublicKey, id uint64) {
	m.mu.RLock()
	p := m.pings[id]
	m.mu.RUnlock()
	if p.answer != nil && p.peer == from {
		select {
		case p.answer <- time.Duration(m.now() - p.at):
		default:
		}
	}
}

// takeHandshake checks what costs little and hands a copy to the worker.
func (m *Manager) takeHandshake(e []byte) {
	if !m.hs.plausible(e) {
		m.c.hsBad.Add(1)
		return
	}
	select {
	case m.work <- bytes.Clone(e):
	default:
		m.c.queueDrops.Add(1)
	}
}
