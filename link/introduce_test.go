package link

import (
	"bytes"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"weft/ident"
)

var someIntroduction = introduction{Type: introMeet, Arg: meetAnswer, Token: 0x0102030405060708, Key: ident.PublicKey(bytes.Repeat([]byte{0x11}, 32)),
	Places: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:7117"), netip.MustParseAddrPort("[2001:db8::1]:80")}}

func FuzzIntroduction(f *testing.F) {
	f.Add(someIntroduction.appendTo(nil))
	f.Add(introduction{Type: introSeen, Places: someIntroduction.Places[:1]}.appendTo(nil))
	f.Add([]byte{introAsk, 0, 9, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := parseIntroduction(b)
		if err != nil {
			return
		}
		if len(i.Places) > maxPlaces {
			t.Fatalf("%d places", len(i.Places))
		}
		again, err := parseIntroduction(i.appendTo(nil))
		if err != nil || !reflect.DeepEqual(again, i) {
			t.Fatalf("%+v became %+v, %v", i, again, err)
		}
		if b[3] = 0; !bytes.Equal(i.appendTo(nil), b) {
			t.Fatalf("%x became %x", b, i.appendTo(nil))
		}
	})
}

func FuzzKnock(f *testing.F) {
	f.Add(knock(knockHeard, 7))
	f.Add(knock(0, 0)[:12])
	n := newNode(f, nil)
	f.Fuzz(func(t *testing.T, b []byte) {
		if flags, token, ok := parseKnock(b); ok && !bytes.Equal(knock(flags, token)[8:], b[8:]) {
			t.Fatalf("%x", b)
		}
		n.m.intro.knocked(endpointOf(someIntroduction.Places[0], 0), b)
	})
}

func TestIntroductionVectors(t *testing.T) {
	golden(t, "introduction", someIntroduction.appendTo(nil),
		"03010200"+"0102030405060708"+"1111111111111111111111111111111111111111111111111111111111111111"+
			"00000000000000000000ffffc0000201"+"1bcd"+"20010db8000000000000000000000001"+"0050")
	golden(t, "knock", knock(knockHeard, 0x0102030405060708), "2001000000000000"+"0102030405060708")
}

// Places that mean nothing on another network, or that would turn a node against itself or the mesh, are not knocked at.
func TestUsablePlaces(t *testing.T) {
	for s, want := range map[string]bool{
		"192.0.2.1:1": true, "10.1.2.3:7117": true, "[2001:db8::1]:80": true, "[fd00::1]:80": true,
		"192.0.2.1:0": false, "127.0.0.1:80": false, "[::1]:80": false, "0.0.0.0:80": false, "[::]:80": false, "224.0.0.1:80": false,
		"[ff02::1]:80": false, "169.254.1.1:80": false, "[fe80::1]:80": false, "[200::1]:80": false, "[3ff::1]:80": false, "255.255.255.255:80": false,
	} {
		if got := usable(netip.MustParseAddrPort(s)); got != want {
			t.Errorf("usable(%s) = %v", s, got)
		}
	}
}

func FuzzListeners(f *testing.F) {
	f.Add(appendListeners(nil, []streamListener{{"tls", 443, ""}, {"wss", 8443, "/weft"}}))
	f.Add([]byte{introListen, 1, 9, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseListeners(b)
		if err != nil {
			return
		}
		again, err := parseListeners(appendListeners(nil, list))
		if err != nil || !slices.Equal(again, list) {
			t.Fatalf("%v became %v, %v", list, again, err)
		}
	})
}

func TestListenersVector(t *testing.T) {
	golden(t, "listeners", appendListeners(nil, []streamListener{{"tls", 443, ""}, {"wss", 8443, "/weft"}}), "0602"+"010001bb"+"020520fb2f77656674")
}

// A neighbour that sends rubbish about introductions loses its link; one that sends too many gets nothing for it.
func TestHostileIntroductions(t *testing.T) {
	a, b := newNode(t, nil), newNode(t, nil)
	a.start()
	b.start()
	if err := b.m.AddPeer(Peer{URI: a.listening("udp")}); err != nil {
		t.Fatal(err)
	}
	la := a.last("up", 1).link
	lb := b.last("up", 1).link
	send := func(msg []byte) {
		t.Helper()
		if err := lb.SendControl(ClassIntroductions, msg); err != nil {
			t.Fatal(err)
		}
	}
	send([]byte{200, 1, 2, 3}) // of a later version
	for i := range uint64(3000) {
		k := ident.PublicKey{byte(i), byte(i >> 8), 1}
		send(introduction{Type: introMeet, Arg: meetAnswer, Token: i, Key: k, Places: someIntroduction.Places}.appendTo(nil))
		send(introduction{Type: introMeet, Token: i << 40, Key: k, Places: someIntroduction.Places}.appendTo(nil)) // nobody asked
		send(introduction{Type: introAsk, Token: i, Key: k, Places: someIntroduction.Places}.appendTo(nil))
		send(introduction{Type: introAsk, Token: i, Key: a.key(), Places: someIntroduction.Places}.appendTo(nil))
		send(introduction{Type: introRefuse, Token: i, Key: k}.appendTo(nil))
		send(introduction{Type: introEcho, Arg: 200, Token: i}.appendTo(nil))
		send(introduction{Type: introSeen, Places: someIntroduction.Places[:1]}.appendTo(nil))
	}
	send(appendListeners(nil, []streamListener{{"tls", 444, ""}}))
	poll(t, "the last message", func() bool {
		la.mu.Lock()
		defer la.mu.Unlock()
		return len(la.streams) == 1
	})
	x := a.m.intro
	x.mu.Lock()
	if len(x.meetings) > introBurst || len(x.tokens) > introBurst || len(x.broker) > maxBrokered || len(x.echoes) > maxEchoHere || len(x.seen) != 1 || len(x.wishes) != 0 {
		t.Errorf("a keeps %d meetings, %d tokens, %d introductions, %d echoes, %d sights, %d wishes",
			len(x.meetings), len(x.tokens), len(x.broker), len(x.echoes), len(x.seen), len(x.wishes))
	}
	x.mu.Unlock()
	send([]byte{introMeet, 1, 9, 0})
	if e := b.last("down", 1); !hasCode(e.reason, codeProtocol) {
		t.Errorf("rubbish ended in %v", e.reason)
	}
}
