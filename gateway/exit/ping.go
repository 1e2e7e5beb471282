//go:build !router

package exit

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"weft/tun"
)

const (
	maxPings          = 4096 // echo requests that wait for their reply, of one family
	maxPingsPerClient = 128
	pingTime          = 10 * time.Second
)

// pinger is one family's socket for echo requests, shared by all clients: the sequence number of what it sends says whose it
// is. Its fields below c are guarded by Exit.mu.
type pinger struct {
	e   *Exit
	v4  bool
	raw bool   // the socket sees replies to others, too, and does not fill in the identifier
	id  uint16 // of a raw socket
	c   net.PacketConn
	out func(b []byte, to netip.AddrPort) error

	next uint16
	sent map[uint16]request
}

// request is an echo request that waits for its reply.
type request struct {
	client, dst netip.Addr // as the client sent it
	real        netip.Addr
	id, seq     uint16
	at          time.Time
	acct        *account
}

func newPinger(e *Exit, c net.PacketConn, v4, raw bool) *pinger {
	p := &pinger{e: e, v4: v4, raw: raw, id: uint16(rand.Uint32()), c: c, next: uint16(rand.Uint32()), sent: map[uint16]request{}}
	if p.out = sender(c); raw {
		p.out = func(b []byte, to netip.AddrPort) error {
			_, err := c.WriteTo(b, &net.IPAddr{IP: to.Addr().AsSlice()})
			return err
		}
	}
	return p
}

// echo takes a client's echo request m: type, code, checksum, identifier, sequence number, data.
func (e *Exit) echo(client, dst netip.Addr, m []byte) {
	proto := byte(tun.ProtoICMPv6)
	if client.Is4() {
		proto = protoICMP
	}
	if checksum(client, dst, proto, m) != 0 || m[1] != 0 { // over a right checksum the sum is zero
		e.dropped.Add(1)
		return
	}
	to, ok := e.target(client, proto, netip.AddrPortFrom(dst, 0))
	if !ok {
		return
	}
	p := e.ping[1]
	if to.Addr().Is4() {
		p = e.ping[0]
	}
	if p == nil {
		e.dropped.Add(1)
		return
	}
	r := request{client: client, dst: dst, real: to.Addr(), id: binary.BigEndian.Uint16(m[4:]), seq: binary.BigEndian.Uint16(m[6:]), at: time.Now()}
	seq, ok := p.note(r)
	if !ok {
		e.limited.Add(1)
		return
	}
	b := make([]byte, len(m))
	copy(b[8:], m[8:])
	b[0] = 128
	if p.v4 {
		b[0] = 8
	}
	binary.BigEndian.PutUint16(b[4:], p.id)
	binary.BigEndian.PutUint16(b[6:], seq)
	if p.v4 { // that of ICMPv6 is the kernel's: only it knows the source address
		binary.BigEndian.PutUint16(b[2:], checksum(client, dst, protoICMP, b))
	}
	if p.out(b, to) != nil {
		e.dropped.Add(1)
		p.take(seq, to.Addr())
		return
	}
	e.sent.Add(uint64(len(m) - 8))
}

// note finds a sequence number for r; false if there are too many requests.
func (p *pinger) note(r request) (uint16, bool) {
	p.e.mu.Lock()
	defer p.e.mu.Unlock()
	r.acct = p.e.book.account(r.client)
	if p.e.closed || len(p.sent) >= maxPings || r.acct.pings >= maxPingsPerClient {
		p.e.book.settle(r.acct)
		return 0, false
	}
	for { // most are free
		p.next++
		if _, taken := p.sent[p.next]; !taken {
			break
		}
	}
	r.acct.pings++
	p.sent[p.next] = r
	return p.next, true
}

// take finds and forgets the request that a reply with seq from an address answers.
func (p *pinger) take(seq uint16, from netip.Addr) (request, bool) {
	p.e.mu.Lock()
	defer p.e.mu.Unlock()
	r, ok := p.sent[seq]
	if !ok || r.real != from {
		return r, false
	}
	p.drop(seq, r)
	return r, true
}

// drop runs with Exit.mu held.
func (p *pinger) drop(seq uint16, r request) {
	delete(p.sent, seq)
	r.acct.pings--
	p.e.book.settle(r.acct)
}

// receive passes replies on until the socket is closed.
func (p *pinger) receive() { receive(p.c, p.answer, func(netip.AddrPort, unreachable) {}) }

func (p *pinger) answer(b []byte, from netip.AddrPort) {
	want := byte(129)
	if p.v4 {
		want = 0
	}
	if len(b) < 8 || b[0] != want || b[1] != 0 || p.raw && binary.BigEndian.Uint16(b[4:]) != p.id {
		return // not ours
	}
	r, ok := p.take(binary.BigEndian.Uint16(b[6:]), from.Addr())
	if !ok {
		return
	}
	p.e.received.Add(uint64(len(b) - 8))
	m := make([]byte, len(b))
	copy(m[8:], b[8:])
	proto := byte(protoICMP)
	if r.client.Is6() {
		m[0], proto = 129, tun.ProtoICMPv6
	}
	binary.BigEndian.PutUint16(m[4:], r.id)
	binary.BigEndian.PutUint16(m[6:], r.seq)
	binary.BigEndian.PutUint16(m[2:], checksum(r.dst, r.client, proto, m))
	p.e.emit(r.dst, r.client, proto, m)
}

// expire forgets what will not be answered.
func (p *pinger) expire(now time.Time) {
	p.e.mu.Lock()
	defer p.e.mu.Unlock()
	for seq, r := range p.sent {
		if now.Sub(r.at) > pingTime {
			p.drop(seq, r)
		}
	}
}

// forget drops a client's requests.
func (p *pinger) forget(client netip.Prefix) {
	p.e.mu.Lock()
	defer p.e.mu.Unlock()
	for seq, r := range p.sent {
		if clientOf(r.client) == client {
			p.drop(seq, r)
		}
	}
}
