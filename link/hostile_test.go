package link

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/quic-go/quic-go"
	"pgregory.net/rapid"

	"weft/forward"
	"weft/ident"
	"weft/wire"
)

// Golden bytes of docs/spec/link.md: other implementations must produce and accept the same.
func TestVectors(t *testing.T) {
	key := ident.PublicKey(bytes.Repeat([]byte{0x11}, 32))
	b := beacon{Flags: 0, Port: 4660, Instance: 0x0102030405060708, Community: ident.Community{0xa0, 1, 2, 3, 4, 5, 6, 7}, Key: key}
	golden(t, "beacon", b.appendTo(nil), "77656674"+"01"+"00"+"1234"+"0102030405060708"+"a001020304050607"+strings.Repeat("11", 32))
	h := hello{Version: 1, Flags: 1, MTU: 1452, Index: 0xdeadbeef, Instance: 0x0102030405060708, Community: b.Community, Proof: [32]byte(key)}
	golden(t, "hello", h.appendTo(nil), "01"+"01"+"05ac"+"deadbeef"+"0102030405060708"+"a001020304050607"+strings.Repeat("11", 32))
	dest, payload := probe{Flags: 3, Seq: 7, Echo: 0x01020304, Time: 0x05060708, Highest: 9, Received: 10}.encode()
	golden(t, "probe", append(binary.BigEndian.AppendUint64(nil, dest), payload[:]...), "0300000701020304"+"05060708"+"00000009"+"0000000a"+"00000000")
	golden(t, "frame", appendFrame(nil, []byte("abc")), "00000003616263")

	export := func(label string, context []byte, n int) ([]byte, error) {
		return bytes.Repeat([]byte{byte(len(label) + len(context))}, n), nil
	}
	p, err := communityProof(export, [32]byte{1}, true)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "proof", p[:], "b1939989357a4b85d0a882cca320f4af58c96ee270cc91dc9eb4a2cc84f85b71")
}

func golden(t *testing.T, what string, got []byte, want string) {
	t.Helper()
	if hex.EncodeToString(got) != want {
		t.Errorf("%s is %x, the specification says %s", what, got, want)
	}
}

func FuzzBeacon(f *testing.F) {
	f.Add(beacon{Port: 1, Key: ident.PublicKey{1}}.appendTo(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := parseBeacon(b); err == nil && !bytes.Equal(p.appendTo(nil), b) {
			t.Fatalf("%x is not what it re-encodes to", b)
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add(hello{Version: 1, MTU: 1400}.appendTo(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := parseHello(b); err == nil && !bytes.Equal(h.appendTo(nil), b[:helloLen]) {
			t.Fatalf("%x is not what it re-encodes to", b)
		}
	})
}

func FuzzFrames(f *testing.F) {
	f.Add(appendFrame(appendFrame(nil, []byte("a")), []byte("bc")), 10)
	f.Add([]byte{0, 1, 0, 0}, 1<<16)
	f.Fuzz(func(t *testing.T, b []byte, limit int) {
		limit = max(1, min(limit, maxControl))
		r := bytes.NewReader(b)
		var out []byte
		for {
			msg, err := readFrame(iotest.OneByteReader(r), limit)
			if err != nil {
				break
			}
			if len(msg) == 0 || len(msg) > limit {
				t.Fatalf("a message of %d bytes with limit %d", len(msg), limit)
			}
			out = appendFrame(out, msg)
		}
		if !bytes.HasPrefix(b, out) {
			t.Fatal("messages do not re-encode to what was read")
		}
	})
}

func FuzzStreamFraming(f *testing.F) {
	f.Add([]byte{0, 1, 9, 0, 2, 8, 8})
	f.Fuzz(func(t *testing.T, b []byte) {
		rest := b
		for {
			d, r, ok, err := nextFrame(rest)
			if err != nil || !ok {
				break
			}
			if len(d) == 0 || len(d) > maxFrame || len(r) != len(rest)-2-len(d) {
				t.Fatalf("a datagram of %d bytes, %d of %d left", len(d), len(r), len(rest))
			}
			rest = r
		}
	})
}

func FuzzProbe(f *testing.F) {
	f.Add(uint64(1), make([]byte, 16))
	f.Fuzz(func(t *testing.T, dest uint64, b []byte) {
		if len(b) < 16 {
			return
		}
		p := decodeProbe(dest, [16]byte(b))
		d, payload := p.encode()
		if decodeProbe(d, payload) != p {
			t.Fatal("a probe does not round-trip")
		}
		// Hostile numbers must not upset the estimates.
		var e lossEstimate
		var m lossMark
		e.mark(&m, p.Highest, p.Received)
		e.mark(&m, p.Echo, p.Time)
		if r := e.ratio(); r < 0 || r > 1 || r != r {
			t.Fatalf("loss %v", r)
		}
	})
}

func FuzzURI(f *testing.F) {
	for _, s := range []string{"udp://[fe80::1%25eth0]:1", "wss://h/p?key=&cost=3", "tls://1.2.3.4:5", "wss://h:1/p", "udp://:0"} {
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, s string, listener bool) {
		if u, err := parseURI(s, listener); err == nil && (u.port == 0 && !listener || u.host == "" && !listener) {
			t.Fatalf("%q gave %+v", s, u)
		}
	})
}

func TestURIs(t *testing.T) {
	for _, c := range []struct{ uri, want string }{
		{"udp://example.net:7000", ""},
		{"udp://[fe80::1%25eth0]:7000", ""},
		{"tls://[2001:db8::1]:443", ""},
		{"wss://example.net/link", ""},
		{"example.net:7000", "unknown scheme"},
		{"10.0.0.1:7000", "udp://host:port"},
		{"tcp://example.net:7000", `unknown scheme "tcp"`},
		{"udp://example.net", "no port"},
		{"udp://:7000", "no host"},
		{"udp://example.net:70000", "70000"},
		{"udp://example.net:0", "between 1 and 65535"},
		{"udp://example.net:7000/path", "takes no path"},
		{"udp://example.net:7000/", "takes no path"},
		{"udp://example.net:7000?key=" + strings.Repeat("ab", 32), "beside it"},
		{"wss://example.net/link?metered=1", "beside it"},
		{"udp://[201:1::1]:7000", "inside the mesh"},
		{"udp://[fe80::1]:7000", "needs its interface"},
		{"udp://user@example.net:7000", "more than host, port"},
		{"udp://exa mple:1", "udp://host:port"},
	} {
		_, err := parseURI(c.uri, false)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.uri, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.uri)):
			t.Errorf("%s: %v, want %q and the address in it", c.uri, err, c.want)
		}
	}
	u, err := parseURI("udp://[fe80::1%25eth0]:7000", false)
	if err != nil || u.zone != "eth0" || u.host != "fe80::1" || u.port != 7000 {
		t.Errorf("%+v %v", u, err)
	}
}

// Whoever chooses the neighbours on a LAN, both ends choose alike, and the LAN is connected.
func TestLANChoice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 120).Draw(t, "nodes")
		limit := rapid.IntRange(1, 20).Draw(t, "limit")
		ids := make([]ident.NodeID, n)
		for i := range ids {
			ids[i] = ident.NodeID(rapid.Uint64Min(1).Draw(t, "id"))
		}
		if lanChoice(ids[0], ids[1:], 0) != nil {
			t.Fatal("without a cap somebody is left out")
		}
		choice := map[ident.NodeID]map[ident.NodeID]bool{}
		all := map[ident.NodeID]bool{}
		for _, id := range ids {
			all[id] = true
		}
		for id := range all {
			var others []ident.NodeID
			for o := range all {
				if o != id {
					others = append(others, o)
				}
			}
			c := lanChoice(id, others, limit)
			if c == nil {
				c = map[ident.NodeID]bool{}
				for _, o := range others {
					c[o] = true
				}
			} else if len(c) > 14 {
				t.Fatalf("%d chosen of %d", len(c), n)
			}
			choice[id] = c
		}
		seen := map[ident.NodeID]bool{}
		var visit func(ident.NodeID)
		visit = func(id ident.NodeID) {
			if seen[id] {
				return
			}
			seen[id] = true
			for o := range choice[id] {
				if !choice[o][id] {
					t.Fatalf("%v chooses %v but not the other way round", id, o)
				}
				visit(o)
			}
		}
		visit(ids[0])
		if len(seen) != len(all) {
			t.Fatalf("%d of %d connected", len(seen), len(all))
		}
	})
}

// One GRO read that mixes control and data is parted right.
func TestDispatch(t *testing.T) {
	n := newNode(t, nil)
	n.m.mux = newMux()
	var got [][]byte
	sink := &sinkFunc{f: func(d []byte) { got = append(got, bytes.Clone(d)) }}
	plane := forward.New(n.key().ID(), sink)
	peer := forward.New(1, sink)
	var key wire.HopKey
	out := &capture{}
	in, err := plane.Add(ident.PublicKey{1}, out, &Link{m: n.m})
	if err != nil {
		t.Fatal(err)
	}
	far, err := peer.Add(n.key(), out, &Link{m: n.m})
	if err != nil {
		t.Fatal(err)
	}
	far.Install(0, in.Index(), key, key)
	in.Install(0, far.Index(), key, key)
	peer.SetTable(forward.Table{n.key().ID(): {Primary: far}})
	const seg = 100
	var buf []byte
	control, data := 0, 0
	for i, c := range "DQDDQQD" {
		d := make([]byte, seg)
		if i == 6 {
			d = d[:80]
		}
		if c == 'Q' {
			control++
			d[0] = 0xc0
		} else {
			data++
			if err := peer.Send(n.key().ID(), wire.ClassBulk, d, len(d)); err != nil {
				t.Fatal(err)
			}
			d = out.last
		}
		buf = append(buf, d...)
	}
	rx := plane.NewReceiver()
	n.m.dispatch(rx, nil, forward.Endpoint{Port: 1}, buf, seg)
	rx.Flush()
	if len(got) != data || len(got[data-1]) != 80 {
		t.Errorf("%d data datagrams, want %d", len(got), data)
	}
	if len(n.m.mux.in) != control {
		t.Errorf("%d control datagrams, want %d", len(n.m.mux.in), control)
	}
}

type capture struct{ last []byte }

func (c *capture) Send(buf []byte, _ int) error {
	c.last = bytes.Clone(buf)
	return nil
}

type sinkFunc struct{ f func([]byte) }

func (s *sinkFunc) NewSink() forward.Sink                  { return s }
func (s *sinkFunc) Deliver(d []byte, _ *forward.Neighbour) { s.f(d) }
func (s *sinkFunc) Flush()                                 {}

// client dials a node's UDP listener with plain QUIC, to misbehave.
func client(t *testing.T, n *node) (*quic.Conn, *ident.Agent) {
	t.Helper()
	conn, agent, err := dialClient(t, n)
	if err != nil {
		t.Fatal(err)
	}
	return conn, agent
}

func dialClient(t *testing.T, n *node) (*quic.Conn, *ident.Agent, error) {
	t.Helper()
	agent, err := ident.Generate()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := agent.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := quic.DialAddr(ctx, strings.TrimPrefix(n.listening("udp"), "udp://"), tlsConfig(cert), quicConfig())
	if err == nil {
		t.Cleanup(func() { conn.CloseWithError(0, "") })
	}
	return conn, agent, err
}

// closedWith waits until the node closes a connection and returns the reason.
func closedWith(t *testing.T, conn *quic.Conn) *Error {
	t.Helper()
	select {
	case <-conn.Context().Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the connection stays open")
	}
	var e *Error
	if err := closeReason(context.Cause(conn.Context())); !errors.As(err, &e) || !e.Remote {
		t.Fatalf("closed without a reason: %v", err)
	}
	return e
}

func TestMisbehaviour(t *testing.T) {
	n := newNode(t, nil)
	n.start()
	good := func(index uint32) []byte {
		return hello{Version: 1, MTU: 1400, Index: index, Instance: 5}.appendTo([]byte{msgHello})
	}
	for _, c := range []struct {
		name string
		send []byte
		want string
	}{
		{"oversize", []byte{0xff, 0, 0, 0}, "a message of 4278190080 bytes"},
		{"empty message", []byte{0, 0, 0, 0}, "a message of 0 bytes"},
		{"not a hello", appendFrame(nil, []byte{99, 1}), "no HELLO"},
		{"short hello", appendFrame(nil, []byte{msgHello, 1, 2}), "a HELLO has 56 bytes"},
		{"future version", appendFrame(nil, append([]byte{msgHello, 9}, make([]byte, 60)...)), "speaks link version 9"},
		{"narrow path", appendFrame(nil, hello{Version: 1, MTU: 100}.appendTo([]byte{msgHello})), "too narrow"},
		{"half a hello, then nothing", appendFrame(nil, good(1))[:20], "no answer"},
		{"no ready", append(appendFrame(nil, good(1)), appendFrame(nil, good(1))...), "no READY"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			conn, _ := client(t, n)
			s, err := conn.OpenStream()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Write(c.send); err != nil {
				t.Fatal(err)
			}
			if e := closedWith(t, conn); !strings.Contains(e.Reason, c.want) && c.want != "no answer" {
				t.Errorf("closed with %q, want %q", e.Reason, c.want)
			}
		})
	}
	t.Run("after the set-up no probe", func(t *testing.T) {
		t.Parallel()
		conn, _ := client(t, n)
		s, err := conn.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write(appendFrame(appendFrame(nil, good(7)), []byte{msgReady})); err != nil {
			t.Fatal(err)
		}
		if _, err := readFrame(s, maxLinkMsg); err != nil {
			t.Fatal(err)
		}
		if e := closedWith(t, conn); !strings.Contains(e.Reason, "probes do not come back") {
			t.Errorf("closed with %q", e.Reason)
		}
	})
}

// Handshakes that go nowhere are bounded, and a real neighbour gets in afterwards.
func TestHandshakeFlood(t *testing.T) {
	n := newNode(t, nil)
	n.start()
	n.listening("udp")
	var wg sync.WaitGroup
	var most int32
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				most = max(most, n.m.halfOpen.Load())
			}
		}
	})
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for range 20 {
				_, _, _ = dialClient(t, n) // and then says nothing
			}
		})
	}
	clients.Wait()
	close(stop)
	wg.Wait()
	if most > maxHalfOpen {
		t.Errorf("%d half-open handshakes at once, the bound is %d", most, maxHalfOpen)
	}
	if most < retryFrom {
		t.Errorf("at most %d half-open handshakes: this was no flood", most)
	}
	if k := n.m.mux.count(); k > maxHalfOpen {
		t.Errorf("%d paths are kept", k)
	}
	b := newNode(t, nil)
	b.start()
	if err := b.m.AddPeer(Peer{URI: n.listening("udp")}); err != nil {
		t.Fatal(err)
	}
	poll(t, "link after the flood", func() bool { return n.m.LinkTo(b.key()) != nil && b.m.LinkTo(n.key()) != nil })
	poll(t, "end of the half-open ones", func() bool { return n.m.halfOpen.Load() == 0 && n.m.mux.count() == 1 })
}

// Rubbish on the UDP port is counted by the packet path or dropped, and nothing else happens.
func TestRubbish(t *testing.T) {
	a, b := newNode(t, nil), newNode(t, nil)
	a.start()
	b.start()
	if err := b.m.AddPeer(Peer{URI: a.listening("udp")}); err != nil {
		t.Fatal(err)
	}
	a.last("up", 1)
	c, err := net.Dial("udp", strings.TrimPrefix(a.listening("udp"), "udp://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 1600)
	for i := range 3000 {
		rand.Read(buf)
		if i%3 == 0 {
			buf[0] |= 0xc0 // QUIC's long header
		}
		if _, err := c.Write(buf[:i%len(buf)]); err != nil {
			t.Fatal(err)
		}
	}
	conformance(t, a, b)
	if len(a.m.Links()) != 1 || a.count("down") != 0 {
		t.Error("rubbish took the link down")
	}
	if n := a.m.mux.count(); n > 2 {
		t.Errorf("%d paths are kept", n)
	}
}

// A stream listener survives clients that speak something else, or nothing.
func TestStreamRubbish(t *testing.T) {
	for _, scheme := range []string{"tls", "wss"} {
		t.Run(scheme, func(t *testing.T) {
			uri := scheme + "://127.0.0.1:0"
			if scheme == "wss" {
				uri += "/link"
			}
			a, b := newNode(t, listen(uri)), newNode(t, nil)
			a.start()
			b.start()
			addr := strings.TrimSuffix(strings.TrimPrefix(a.listening(scheme), scheme+"://"), "/link")
			for i := range 20 {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if i%2 == 0 {
					fmt.Fprint(c, "GET / HTTP/1.1\r\n\r\n")
				}
			}
			if scheme == "tls" { // inside TLS: a frame that is too long
				u, err := parseURI(a.listening(scheme), false)
				if err != nil {
					t.Fatal(err)
				}
				c, err := b.m.dialTCP(t.Context(), u)
				if err != nil {
					t.Fatal(err)
				}
				tc := tlsClient(c)
				if _, err := tc.Write([]byte{0xff, 0xff, 1, 2, 3}); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadAll(tc); err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "reset") {
					t.Fatal(err)
				}
			}
			if err := b.m.AddPeer(Peer{URI: a.listening(scheme)}); err != nil {
				t.Fatal(err)
			}
			conformance(t, a, b)
		})
	}
}

func tlsClient(c net.Conn) net.Conn {
	return tls.Client(c, &tls.Config{InsecureSkipVerify: true})
}

// However much data waits on a stream, control and probes go first, whole datagrams at a time.
func TestStreamOrder(t *testing.T) {
	n := newNode(t, nil)
	written := make(chan []byte)
	s := &stream{m: n.m, conn: &slowFramed{written}, closed: make(chan struct{}), wake: make(chan struct{}, 1)}
	n.m.readers = new(sync.WaitGroup)
	data := make([]byte, 50*1000)
	for range 20 { // far more than fits
		if err := s.Send(forward.Endpoint{}, data, 1000); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.queue) > maxStreamQueue || s.dropped.Load() == 0 {
		t.Fatalf("%d bytes are queued, %d dropped", len(s.queue), s.dropped.Load())
	}
	n.m.readers.Add(1)
	go s.write()
	first := <-written
	probe := make([]byte, wire.MinHop)
	probe[0] = byte(wire.KindProbe)
	if err := s.Send(forward.Endpoint{}, probe, len(probe)); err != nil {
		t.Fatal(err)
	}
	var got [][]byte
	for len(got) < 3 {
		got = append(got, <-written)
	}
	// The write that was under way when the probe came may have been cut before it.
	at := -1
	for i, q := range append([][]byte{first}, got...) {
		for rest := q; len(rest) > 0; {
			d, r, ok, err := nextFrame(rest)
			if err != nil || !ok {
				t.Fatalf("write %d holds part of a datagram: %v", i, err)
			}
			if len(d) == len(probe) && at < 0 {
				at = i
			}
			rest = r
		}
	}
	if at < 1 || at > 2 {
		t.Errorf("the probe went in write %d", at)
	}
	var rest sync.WaitGroup
	rest.Go(func() {
		for range written {
		}
	})
	s.Close()
	n.m.readers.Wait()
	close(written)
	rest.Wait()
}

// slowFramed hands every write to the test.
type slowFramed struct{ written chan []byte }

func (f *slowFramed) Read(func([]byte)) error { return io.EOF }
func (f *slowFramed) Write(q []byte) error {
	f.written <- bytes.Clone(q)
	return nil
}
func (f *slowFramed) Close() error { return nil }
