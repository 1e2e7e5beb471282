package session

import (
	"errors"
	"fmt"

	"weft/ident"
	"weft/tun"
	"weft/wire"
)

// MaxMessage is the longest payload of a message: with all headers it fits the smallest path, 1280 bytes.
const MaxMessage = 1100

// ErrNoRoom is returned when a node may have no session because too many others have one.
var ErrNoRoom = errors.New("no room for another session")

// SendMessage sends a part of another node one message inside the session, which is opened if need be. It arrives once or,
// like any datagram, not at all. Channels are numbered in docs/spec/session.md section 3.
//
// It is control traffic, which goes before all other.
func (m *Manager) SendMessage(peer ident.PublicKey, channel byte, payload []byte) error {
	return m.SendAlong(peer, channel, payload, wire.ClassControl)
}

// SendAlong is SendMessage in another class, for what speaks of that class's packets: it takes its turn among them, and so arrives
// in order with them.
func (m *Manager) SendAlong(peer ident.PublicKey, channel byte, payload []byte, class wire.Class) error {
	if len(payload) > MaxMessage {
		return fmt.Errorf("message of %d bytes: at most %d", len(payload), MaxMessage)
	}
	b := make([]byte, messageHeader, messageHeader+len(payload))
	b[0], b[1] = innerMessage, channel
	return m.sendOwn(peer, tun.Packet{Data: append(b, payload...), SegSize: uint16(class)}) // for want of a better place, see seal
}

// SendOutside sends outside packets through the session with peer, whole or super-packets, as if the host gave them now. It
// overwrites them and keeps nothing of them. For packets that Outside.FromHost took to send them later.
func (m *Manager) SendOutside(peer ident.PublicKey, pkts ...tun.Packet) error {
	return m.sendOwn(peer, pkts...)
}

func (m *Manager) sendOwn(peer ident.PublicKey, pkts ...tun.Packet) error {
	o, _ := m.spare.Get().(*outbound)
	if o == nil {
		o = m.newOutbound()
	}
	defer m.spare.Put(o)
	o.now = m.now()
	s, room := o.to(peer)
	if s == nil {
		if _, ok := m.cfg.Resolver.Room(peer.ID()); !ok {
			return errors.New("no route to that node")
		}
		return ErrNoRoom
	}
	for i := range pkts {
		o.send(s, room, &pkts[i])
	}
	o.flush()
	o.flushHost()
	return nil
}

// to finds or opens the session with a peer that a way leads to.
func (o *outbound) to(peer ident.PublicKey) (*Session, int) {
	m := o.m
	room, ok := m.cfg.Resolver.Room(peer.ID())
	s := m.session(peer, ok)
	if s == nil {
		return nil, 0
	}
	if !ok {
		s.away.Store(true)
		return nil, 0
	}
	if s.away.Load() && s.away.Swap(false) {
		s.renew.Store(true)
		m.wantHandshake(s)
	}
	return s, room
}

// resolveOutside finds who carries a packet that is not between mesh addresses.
func (o *outbound) resolveOutside(p *tun.Packet) (*Session, int) {
	f := o.m.cfg.Outside
	if f == nil {
		o.noOutside(p.Data)
		return nil, 0
	}
	peer, ok := f.FromHost(p)
	if !ok {
		return nil, 0
	}
	if peer == o.lastPeer && o.lastPeerAt == o.now && o.lastPeerSess != nil {
		return o.lastPeerSess, o.lastPeerRoom
	}
	s, room := o.to(peer)
	if s == nil {
		o.noOutside(p.Data)
		return nil, 0
	}
	o.lastPeer, o.lastPeerSess, o.lastPeerRoom, o.lastPeerAt = peer, s, room, o.now
	return s, room
}

// noOutside tells the host that nothing leads outside. IPv4 is dropped: the host has no IPv4 address of ours to be told at.
func (o *outbound) noOutside(ip []byte) {
	if ip[0]>>4 == 6 && ip[24] != 0xff { // multicast is never answered
		o.tell(ip[:min(len(ip), 1280)], icmpUnreachable, codeNoRoute, 0)
	}
}

// sealOutside seals one outside packet or super-packet as it is. What is too big is fragmented where IPv4 allows it, else
// the host is told.
func (o *outbound) sealOutside(s *Session, k *keypair, p *tun.Packet, most int) {
	ip := p.Data
	size := len(ip)
	hdr, ok := 0, false
	if p.SegSize != 0 {
		if hdr, ok = tun.HeaderLen(ip); !ok {
			return
		}
		size = hdr + int(p.SegSize)
	}
	if size > most {
		o.tooBig(s, k, p, most)
		return
	}
	if p.SegSize == 0 {
		o.add(s, k, wire.ClassGateway, ip, p.Partial)
		s.out.add(len(ip))
		return
	}
	tun.Cut(ip, hdr, int(p.SegSize), func(seg []byte) {
		n := len(seg)
		o.add(s, k, wire.ClassGateway, seg, true)
		s.out.add(n)
	})
}

func (o *outbound) tooBig(s *Session, k *keypair, p *tun.Packet, most int) {
	ip := p.Data
	if ip[0]>>4 == 6 {
		o.tell(ip[:min(len(ip), 1280)], icmpTooBig, 0, uint32(max(most, 1280)))
		return
	}
	each := func(ip []byte) bool {
		return tun.Fragment(ip, most, func(f []byte) {
			o.add(s, k, wire.ClassGateway, f, false)
			s.out.add(len(f))
		})
	}
	if p.Partial {
		tun.FinishChecksum(ip)
	}
	if p.SegSize == 0 && each(ip) {
		return
	}
	o.m.c.tooBig.Add(1)
	o.host.Write(icmp4TooBig(ip, most), false)
	o.told = true
}
