package session

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/ident"
	"weft/tun"
)

// gate is an Outside that sends what the host gives to one node or the other: each thinks the other its gateway.
type gate struct {
	mu   sync.Mutex
	to   map[netip.Addr]ident.PublicKey // by destination
	from []ident.PublicKey              // who sent what came
	deny bool
}

func (g *gate) FromHost(p *tun.Packet) (ident.PublicKey, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := netip.AddrFrom4([4]byte(p.Data[16:20]))
	if p.Data[0]>>4 == 6 {
		d = netip.AddrFrom16([16]byte(p.Data[24:40]))
	}
	k, ok := g.to[d]
	return k, ok
}

func (g *gate) FromPeer(peer ident.PublicKey, ip []byte, partial bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.from = append(g.from, peer)
	return !g.deny
}

// in4 makes a UDP packet over IPv4 with its checksum filled in.
func in4(from, to string, payload []byte) []byte {
	b := make([]byte, 28+len(payload))
	b[0], b[8], b[9] = 0x45, 61, tun.ProtoUDP
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], netip.MustParseAddr(from).AsSlice())
	copy(b[16:], netip.MustParseAddr(to).AsSlice())
	binary.BigEndian.PutUint16(b[10:], ^tun.Sum(b[:20], 0))
	binary.BigEndian.PutUint16(b[20:], 1000)
	binary.BigEndian.PutUint16(b[22:], 53)
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(payload)))
	copy(b[28:], payload)
	tun.FinishChecksum(b)
	return b
}

func counts(t *testing.T, a, b *peer) (sent, recv Count) {
	t.Helper()
	for _, i := range a.m.Sessions() {
		sent = i.OutsideSent
	}
	for _, i := range b.m.Sessions() {
		recv = i.OutsideRecv
	}
	return sent, recv
}

// What is not between mesh addresses goes where Outside says, whole, both families, super-packets cut; both ends count alike.
func TestOutsidePacketsGoThroughTheGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		g := &gate{to: map[netip.Addr]ident.PublicKey{}}
		w.outside = g
		a, b := w.add([32]byte{}), w.add([32]byte{})
		defer w.close()
		web4, web6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
		g.to[web4], g.to[web6] = b.agent.Public(), b.agent.Public()

		p := in4("100.64.0.9", "192.0.2.1", []byte("question"))
		a.dev.Inject(tun.Packet{Data: bytes.Clone(p)})
		b.expect(t, p, time.Second)
		q := udp(a.addr(), web6, []byte("question"))
		a.dev.Inject(tun.Packet{Data: bytes.Clone(q), Partial: true})
		tun.FinishChecksum(q)
		b.expect(t, q, time.Second)

		s := tcp(a.addr(), web6, 1, bytes.Repeat([]byte("0123456789"), 900)) // 9000 bytes
		a.dev.Inject(tun.Packet{Data: s, SegSize: 1200, Partial: true})
		got := 0
		for range 8 {
			seg := b.take(time.Second)
			if seg == nil || !bytes.Equal(seg[24:40], web6.AsSlice()) {
				t.Fatal("a segment is missing")
			}
			got += len(seg) - 60
		}
		if got != 9000 {
			t.Errorf("%d of 9000 bytes", got)
		}
		sent, recv := counts(t, a, b)
		if sent != recv || sent.Packets != 10 || sent.Bytes != uint64(len(p)+len(q)+9000+8*60) {
			t.Errorf("sent %+v, received %+v", sent, recv)
		}
		if g.from[0] != a.agent.Public() {
			t.Error("Outside was told the wrong peer")
		}
		g.mu.Lock()
		g.deny = true
		g.mu.Unlock()
		a.dev.Inject(tun.Packet{Data: bytes.Clone(p)})
		if x := b.take(time.Second); x != nil {
			t.Errorf("what Outside refused arrived: %x", x)
		}
	})
}

func TestWithoutAGatewayOutsideIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.add([32]byte{}), w.add([32]byte{})
		defer w.close()
		q := udp(a.addr(), netip.MustParseAddr("2001:db8::1"), []byte("?"))
		a.dev.Inject(tun.Packet{Data: q, Partial: true})
		if e := a.take(time.Second); e == nil || e[40] != icmpUnreachable || !bytes.Equal(e[8:24], q[24:40]) {
			t.Errorf("the host was told %x", e)
		}
		// A peer that sends such packets all the same gets nothing through.
		a.m.SendOutside(b.agent.Public(), tun.Packet{Data: in4("100.64.0.9", "192.0.2.1", nil)})
		if x := b.take(time.Second); x != nil {
			t.Errorf("got %x", x)
		}
	})
}

func TestOutsideTooBig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.room = 1300
		g := &gate{to: map[netip.Addr]ident.PublicKey{}}
		w.outside = g
		a, b := w.add([32]byte{}), w.add([32]byte{})
		defer w.close()
		g.to[netip.MustParseAddr("192.0.2.1")] = b.agent.Public()
		const most = 1300 - overhead

		p := in4("100.64.0.9", "192.0.2.1", make([]byte, 1350))
		a.dev.Inject(tun.Packet{Data: bytes.Clone(p)})
		f1, f2 := b.take(time.Second), b.take(time.Second)
		if len(f1) > most || len(f2) > most || len(f1)-20+len(f2)-20 != len(p)-20 {
			t.Fatalf("fragments of %d and %d bytes", len(f1), len(f2))
		}
		if x := a.take(time.Millisecond); x != nil {
			t.Errorf("the host was told %x", x)
		}
		p[6] |= 0x40 // do not fragment
		binary.BigEndian.PutUint16(p[10:], 0)
		binary.BigEndian.PutUint16(p[10:], ^tun.Sum(p[:20], 0))
		a.dev.Inject(tun.Packet{Data: bytes.Clone(p)})
		e := a.take(time.Second)
		if e == nil || e[9] != 1 || e[20] != 3 || e[21] != 4 || binary.BigEndian.Uint16(e[26:]) != most ||
			tun.Sum(e[:20], 0) != 0xffff || tun.Sum(e[20:], 0) != 0xffff || !bytes.Equal(e[16:20], p[12:16]) {
			t.Errorf("the host was told %x", e)
		}
	})
}

// A message opens the session, arrives once with its sender and channel, and is no packet.
func TestMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		type msg struct {
			from    ident.PublicKey
			channel byte
			text    string
		}
		got := make(chan msg, 10)
		w.message = func(from ident.PublicKey, ch byte, p []byte) { got <- msg{from, ch, string(p)} }
		a, b := w.add([32]byte{}), w.add([32]byte{})
		defer w.close()
		for _, text := range []string{"first", "", string(make([]byte, MaxMessage))} {
			if err := a.m.SendMessage(b.agent.Public(), 7, []byte(text)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			select {
			case m := <-got:
				if m.from != a.agent.Public() || m.channel != 7 || m.text != text {
					t.Errorf("got %v", m)
				}
			default:
				t.Fatal("the message is lost")
			}
		}
		if len(got) != 0 || b.m.Sessions()[0].Recv.Packets != 0 {
			t.Error("a message was delivered twice, or counted as a packet")
		}
		if a.m.SendMessage(b.agent.Public(), 7, make([]byte, MaxMessage+1)) == nil {
			t.Error("too long a message was taken")
		}
		w.mu.Lock()
		w.gone = map[ident.NodeID]bool{b.agent.Public().ID(): true}
		w.mu.Unlock()
		if a.m.SendMessage(b.agent.Public(), 7, nil) == nil {
			t.Error("a message to nowhere was taken")
		}
	})
}
