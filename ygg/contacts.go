//go:build !no_ygg

package ygg

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yggdrasil-network/yggdrasil-go/src/address"

	"weft/ident"
	"weft/tun"
)

// Bounds on what the network can make the plane keep.
const (
	maxContacts  = 2048
	contactLife  = 2 * time.Minute // without a packet, as in Yggdrasil's own tables
	mtuLife      = 10 * time.Minute
	maxHeldDests = 256
	maxHeld      = 16 // packets for one destination
	maxHeldBytes = 1 << 20
	heldLife     = 10 * time.Second
	lookupEvery  = time.Second
	leastMTU     = 1280
)

// An address says only the first bits of a key. The network finds the rest: packets wait meanwhile, and for each
// destination the lookup is repeated until an answer comes or they are too old.

// contact is a node that packets are exchanged with.
type contact struct {
	key      ident.PublicKey
	addr     [16]byte
	subnet   [8]byte
	filter   Filter
	used     atomic.Int64
	mtu      atomic.Int64 // what a Packet Too Big said; 0 when nothing did
	mtuUntil atomic.Int64
}

// limit is the largest packet that the contact takes.
func (c *contact) limit(now int64, most int) int {
	if m := c.mtu.Load(); m != 0 && now < c.mtuUntil.Load() {
		return min(int(m), most)
	}
	return most
}

func (c *contact) owns(a []byte) bool {
	return bytes.Equal(a, c.addr[:]) || bytes.Equal(a[:8], c.subnet[:])
}

// held are the packets that wait for a key.
type held struct {
	packets []tun.Packet
	since   int64
	asked   int64
}

type contacts struct {
	p       *Plane
	self    [16]byte
	selfNet [8]byte

	mu        sync.Mutex // guards what follows
	closed    bool
	byKey     map[ident.PublicKey]*contact
	byAddr    map[[16]byte]*contact
	bySubnet  map[[8]byte]*contact
	waiting   map[[16]byte]*held
	heldBytes int
}

func (t *contacts) init(p *Plane) {
	t.p, t.self = p, p.self.Addr().As16()
	net := p.self.Subnet().Addr().As16()
	t.selfNet = [8]byte(net[:8])
	t.byKey, t.byAddr, t.bySubnet = map[ident.PublicKey]*contact{}, map[[16]byte]*contact{}, map[[8]byte]*contact{}
	t.waiting = map[[16]byte]*held{}
}

// to returns the contact behind an address. When there is none it keeps p until there is; ask says that it is time to look
// for it.
func (t *contacts) to(dst [16]byte, p *tun.Packet) (c *contact, ask bool) {
	now := t.p.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if c = t.byAddr[dst]; c == nil {
		c = t.bySubnet[[8]byte(dst[:8])]
	}
	if c != nil {
		c.used.Store(now)
		return c, false
	}
	h := t.waiting[dst]
	if h == nil {
		if len(t.waiting) >= maxHeldDests || t.closed {
			return nil, false
		}
		h = &held{since: now}
		t.waiting[dst] = h
	}
	if len(h.packets) < maxHeld && t.heldBytes+len(p.Data) <= maxHeldBytes {
		q := *p
		q.Data = bytes.Clone(p.Data)
		h.packets = append(h.packets, q)
		t.heldBytes += len(q.Data)
	}
	if ask = h.asked == 0 || now-h.asked >= int64(lookupEvery); ask {
		h.asked = now
	}
	return nil, ask
}

// from returns the contact with a key, making it when need be.
func (t *contacts) from(key ident.PublicKey) *contact {
	now := t.p.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.byKey[key]
	if c == nil && !t.closed && key != t.p.self {
		if len(t.byKey) >= maxContacts {
			t.evictLocked()
		}
		c = &contact{key: key, addr: key.Addr().As16(), filter: t.p.cfg.Filter(key)}
		s := key.Subnet().Addr().As16()
		c.subnet = [8]byte(s[:8])
		t.byKey[key] = c
		t.byAddr[c.addr] = c
		t.bySubnet[c.subnet] = c
	}
	if c != nil {
		c.used.Store(now)
	}
	return c
}

// learn takes a key that the network found, and sends what waited for it.
func (t *contacts) learn(key ident.PublicKey) {
	c := t.from(key)
	if c == nil {
		return
	}
	var ready []tun.Packet
	t.mu.Lock()
	for dst, h := range t.waiting {
		if c.owns(dst[:]) {
			ready = append(ready, h.packets...)
			t.dropHeldLocked(dst, h)
		}
	}
	t.mu.Unlock()
	for i := range ready {
		t.p.transmit(c, &ready[i])
	}
}

func (t *contacts) dropHeldLocked(dst [16]byte, h *held) {
	for i := range h.packets {
		t.heldBytes -= len(h.packets[i].Data)
	}
	delete(t.waiting, dst)
}

func (t *contacts) evictLocked() {
	var oldest *contact
	for _, c := range t.byKey {
		if oldest == nil || c.used.Load() < oldest.used.Load() {
			oldest = c
		}
	}
	t.dropLocked(oldest)
}

func (t *contacts) dropLocked(c *contact) {
	delete(t.byKey, c.key)
	if t.byAddr[c.addr] == c { // two keys may share an address: the address is shorter than the key
		delete(t.byAddr, c.addr)
	}
	if t.bySubnet[c.subnet] == c {
		delete(t.bySubnet, c.subnet)
	}
	c.filter.Release()
}

// sweep forgets what is old and returns the keys to look for again.
func (t *contacts) sweep(now int64) (lookup []ed25519.PublicKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.byKey {
		life := int64(contactLife)
		if c.mtu.Load() != 0 && now < c.mtuUntil.Load() {
			life = int64(mtuLife)
		}
		if now-c.used.Load() > life {
			t.dropLocked(c)
		}
	}
	for dst, h := range t.waiting {
		switch {
		case now-h.since > int64(heldLife):
			t.dropHeldLocked(dst, h)
		case now-h.asked >= int64(lookupEvery):
			h.asked = now
			lookup = append(lookup, partialKey(dst))
		}
	}
	return lookup
}

func (t *contacts) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for _, c := range t.byKey {
		t.dropLocked(c)
	}
	clear(t.waiting)
	t.heldBytes = 0
}

// partialKey is what an address says of a key, the rest zeros.
func partialKey(dst [16]byte) ed25519.PublicKey {
	if dst[0] == 0x03 {
		s := address.Subnet(dst[:8])
		return s.GetKey()
	}
	a := address.Address(dst)
	return a.GetKey()
}

// tooBig reads an ICMPv6 Packet Too Big (RFC 4443 section 3.2).
func tooBig(ip []byte) (mtu uint32, ok bool) {
	if len(ip) < 48 || ip[6] != tun.ProtoICMPv6 || ip[40] != 2 {
		return 0, false
	}
	return binary.BigEndian.Uint32(ip[44:]), true
}
