//go:build !no_ygg

package ygg

import (
	"encoding/binary"

	"github.com/Arceliar/ironwood/types"

	"weft/ident"
	"weft/tun"
)

// mostPacket is the largest packet that the core carries. Stock nodes have interfaces of this MTU and the core cuts and joins
// nothing, so large packets are what makes the plane fast: its cost is per packet.
const mostPacket = 65535

// Send carries one packet or super-packet of the host; it is a session.Config.Elsewhere.
func (p *Plane) Send(pkt *tun.Packet) (mtu int, ok bool) {
	ip := pkt.Data
	if len(ip) < 40 || ip[0]>>4 != 6 || p.barred(ip) {
		return 0, false
	}
	dst := [16]byte(ip[24:40])
	if !p.up.Load() { // nobody would hear a lookup
		return 0, false
	}
	c, ask := p.contacts.to(dst, pkt)
	if c == nil {
		if ask {
			p.core.SendLookup(partialKey(dst))
		}
		return 0, true
	}
	return p.transmit(c, pkt), true
}

// transmit sends a packet to a contact, in as large pieces as it takes. The result is not zero when it is too big.
func (p *Plane) transmit(c *contact, pkt *tun.Packet) (mtu int) {
	ip := pkt.Data
	c.filter.Out(ip)
	if [16]byte(ip[8:24]) == p.contacts.self { // what lies behind this node has an MTU of its own
		raiseMSS(ip, mostPacket-40-20)
	}
	limit := c.limit(p.now(), mostPacket)
	l4, _ := tun.Transport(ip)
	switch {
	case pkt.SegSize == 0 && len(ip) > limit:
		return limit
	case pkt.SegSize == 0:
		if pkt.Partial {
			tun.FinishChecksum(ip)
		}
	case l4.Proto == tun.ProtoTCP && len(ip) <= limit:
		// A super-packet is a large segment but for its length field and checksum.
		binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-40))
		tun.FinishChecksum(ip)
	default:
		if !tun.Split(*pkt, limit, func(seg []byte) { p.write(c, seg) }) {
			return limit
		}
		return 0
	}
	p.write(c, ip)
	return 0
}

// write hands a packet to the core, which copies it. What it cannot send is lost like any packet.
func (p *Plane) write(c *contact, ip []byte) { _, _ = p.core.WriteTo(ip, types.Addr(c.key[:])) }

// receive decides about a packet from the core: ok lets it pass to the host, partial says that its checksum need not be
// verified again.
func (p *Plane) receive(key ident.PublicKey, ip []byte) (ok, partial bool) {
	if len(ip) < 40 || ip[0]>>4 != 6 || int(binary.BigEndian.Uint16(ip[4:]))+40 != len(ip) || p.barred(ip) {
		return false, false
	}
	dst := [16]byte(ip[24:40])
	if dst != p.contacts.self && [8]byte(dst[:8]) != p.contacts.selfNet {
		return false, false
	}
	c := p.contacts.from(key)
	if c == nil || !c.owns(ip[8:24]) || !c.filter.In(ip) {
		return false, false
	}
	if mtu, ok := tooBig(ip); ok {
		return p.learnMTU(c, mtu), false
	}
	// The core has authenticated every byte since the peer's host sent it. Not so for devices behind the peer: their packets
	// crossed a network of their own.
	return true, ip[6] == tun.ProtoTCP && [16]byte(ip[8:24]) == c.addr
}

// learnMTU notes what a Packet Too Big says, and reports whether the host must hear it too: it must cut its packets smaller
// only when they are smaller than its own MTU allows.
func (p *Plane) learnMTU(c *contact, said uint32) bool {
	mtu := int(max(min(said, mostPacket), leastMTU))
	now := p.now()
	if mtu < c.limit(now, mostPacket) {
		c.mtu.Store(int64(mtu))
		c.mtuUntil.Store(now + int64(mtuLife))
	}
	return mtu < p.cfg.Device.MTU()
}

// barred reports whether a packet belongs to a connection that carries the plane itself.
func (p *Plane) barred(ip []byte) bool {
	if p.cfg.BarredPort == 0 || ip[6] != tun.ProtoTCP || len(ip) < 44 {
		return false
	}
	return binary.BigEndian.Uint16(ip[40:]) == p.cfg.BarredPort || binary.BigEndian.Uint16(ip[42:]) == p.cfg.BarredPort
}

// raiseMSS sets the MSS option of a TCP SYN to at least mss and mends the checksum (RFC 1624), so that the other end sends
// segments as large as it can. Our own MTU is about the native plane; a TUN takes larger packets than it sends.
func raiseMSS(ip []byte, mss uint16) {
	if len(ip) < 60 || ip[6] != tun.ProtoTCP || ip[53]&0x02 == 0 {
		return
	}
	end := 40 + int(ip[52]>>4)*4
	if end > len(ip) {
		return
	}
	for at := 60; at < end; {
		switch kind := ip[at]; {
		case kind == 0:
			return
		case kind == 1:
			at++
			continue
		case at+1 >= end || ip[at+1] < 2 || at+int(ip[at+1]) > end:
			return
		case kind != 2 || ip[at+1] != 4:
			at += int(ip[at+1])
			continue
		}
		old := binary.BigEndian.Uint16(ip[at+2:])
		if old >= mss {
			return
		}
		binary.BigEndian.PutUint16(ip[at+2:], mss)
		if at%2 != 0 { // across two words of the sum
			old, mss = old<<8|old>>8, mss<<8|mss>>8
		}
		sum := uint32(^binary.BigEndian.Uint16(ip[56:])) + uint32(^old) + uint32(mss)
		sum = sum>>16 + sum&0xffff
		sum += sum >> 16
		binary.BigEndian.PutUint16(ip[56:], ^uint16(sum))
		return
	}
}
