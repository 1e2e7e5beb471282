package gateway

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"weft/ident"
)

// vectors are those of docs/spec/gateway.md section 9; the test looks for them there.
var offerVectors = map[string]Offer{
	"01130001000003e8000186a000004e20": {Families: IPv4 | IPv6 | DNS, SMTPClosed: true, Price: 1000, DownKbps: 100_000, UpKbps: 20_000},
	"011f850300000000000003e8000001f4": {Families: allFamilies, MembersOnly: true, FreeTier: true, Load: 2, SMTPClosed: true, Filtered: true, DownKbps: 1000, UpKbps: 500},
}

var messageVectors = map[string]message{
	"010100000001010117":                        {kind: msgRequest, id: 1, families: IPv4 | IPv6 | IPv6Routed | DNS},
	"01010000000201010102046456037f":            {kind: msgRequest, id: 2, families: IPv4, v4: netip.MustParseAddr("100.86.3.127")},
	"010400000003":                              {kind: msgRelease, id: 3},
	"010500000004010102" + "0e0107":             {kind: msgNotice, id: 4, families: IPv6, code: CodeUplinkLost},
	"01030000000506040000003c0e0102":            {kind: msgRefuse, id: 5, lifetime: 60, code: CodeFull},
	"010300000006" + "0e0103" + "0f02" + "6869": {kind: msgRefuse, id: 6, code: CodeMembers, text: "hi"},
	"010200000001" + "01011f" + "02046456037f" + "031120010db8000700010000000000000000" + "40" + "040c0064ff9b0000000000000000" +
		"051002010203040506070000000000000001" + "060400000258" + "0704000003e8" + "08020500" + "09040000c350" + "0a0400002710" + "0b0400000800" + "0c0400000064" + "0d0101": {
		kind: msgGrant, id: 1, families: allFamilies, v4: netip.MustParseAddr("100.86.3.127"), v6: netip.MustParsePrefix("2001:db8:7:1::/64"), nat64: netip.MustParsePrefix("64:ff9b::/96"),
		dns: []netip.Addr{netip.MustParseAddr("201:203:405:607::1")}, lifetime: 600, price: 1000, mtu: 1280, downKbps: 50_000, upKbps: 10_000, flows: 2048, newFlows: 100, grantBits: grantFreeTier,
	},
}

func spec(t *testing.T) string {
	b, err := os.ReadFile(filepath.FromSlash("../docs/spec/gateway.md"))
	if err != nil {
		t.Fatal(err)
	}
	var hexes strings.Builder // in the text a grant's bytes stand field by field, with words beside them
	for w := range strings.FieldsSeq(string(b)) {
		if _, err := hex.DecodeString(w); err == nil && len(w) > 4 || strings.HasPrefix(w, "`") {
			hexes.WriteString(w)
		}
	}
	return hexes.String()
}

func TestVectors(t *testing.T) {
	text := spec(t)
	for h, o := range offerVectors {
		b, err := hex.DecodeString(h)
		if err != nil {
			t.Fatal(err)
		}
		if got := o.AppendTo(nil); !bytes.Equal(got, b) {
			t.Errorf("%v is %x, want %s", o, got, h)
		}
		if got, err := ParseOffer(append(b, 1, 2, 3)); err != nil || got != o {
			t.Errorf("%s reads as %v: %v", h, got, err)
		}
		if !strings.Contains(text, h) {
			t.Errorf("the offer %s is not in the spec", h)
		}
	}
	for h, m := range messageVectors {
		b, err := hex.DecodeString(h)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.appendTo(nil); !bytes.Equal(got, b) {
			t.Errorf("%+v is\n%x, want\n%s", m, got, h)
		}
		if got, _, err := parseMessage(b); err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%s reads as %+v: %v", h, got, err)
		}
		if !strings.Contains(text, h) {
			t.Errorf("the message %s is not in the spec", h)
		}
	}
	var k ident.PublicKey
	for i := range k {
		k[i] = byte(i)
	}
	s := newLeases()
	a, _ := s.pick4(DefaultPool, "weft/lease4/1", k[:], netip.Addr{}, k)
	if !strings.Contains(text, "`"+a.String()+"`") {
		t.Errorf("the address %v of the key 00…1f is not in the spec", a)
	}
}

func TestOfferText(t *testing.T) {
	for want, o := range map[string]Offer{
		"IPv4, IPv6, DNS; 0.953674 credits/GB; 100 Mbit/s down, 20 Mbit/s up; idle; no port 25": {Families: IPv4 | IPv6 | DNS, SMTPClosed: true, Price: 1_000_000, DownKbps: 100_000, UpKbps: 20_000},
		"IPv6; free; full; members only": {Families: IPv6, Load: 3, MembersOnly: true},
	} {
		if got := o.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestMalformedMessages(t *testing.T) {
	for _, h := range []string{
		"", "01", "0101000000", "020100000001010101", "010000000001", "010600000001",
		"0101000000010101", "010100000001010100", "01010000000101020101", "010100000001020464560001010101", "010100000001010101010101",
		"01010000000107040000000100", "0101000000010704000003e8", "010400000003010101", "01020000000103112001000000000000000000000000000140", "0102000000010500",
		"010300000001" + "0f02" + "0a0a", "010300000001" + "0f00", "01020000000103112001000000000000000000000000000081", "0102000000010302",
	} {
		b, err := hex.DecodeString(h)
		if err != nil {
			t.Fatal(err)
		}
		if m, _, err := parseMessage(b); err == nil {
			t.Errorf("%s reads as %+v", h, m)
		}
	}
	if m, unknown, err := parseMessage([]byte{1, 4, 0, 0, 0, 9, 200, 2, 1, 1}); err != nil || unknown != 1 || m.id != 9 {
		t.Errorf("a field of later versions: %+v, %d, %v", m, unknown, err)
	}
}

// FuzzMessage: what parses re-encodes to the same bytes, unless there were fields of later versions.
func FuzzMessage(f *testing.F) {
	for h := range messageVectors {
		b, _ := hex.DecodeString(h)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, unknown, err := parseMessage(b)
		if err != nil {
			return
		}
		out := m.appendTo(nil)
		if unknown == 0 && !bytes.Equal(out, b) {
			t.Fatalf("%x re-encodes to %x", b, out)
		}
		again, _, err := parseMessage(out)
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("%x reads as %+v, %+v: %v", out, again, m, err)
		}
		g, _ := serving(t, plain, key(4))
		g.mu.Lock()
		defer g.mu.Unlock()
		r := g.request(key(5), &m, time.Now())
		if len(r.appendTo(nil)) > maxMessage {
			t.Fatal("the answer is too long")
		}
		g.client.choice.Mode = Auto
		g.client.held = []*held{{c: Candidate{Key: key(6), Offer: Offer{Families: allFamilies, Price: 5}}, id: m.id}}
		g.fromGateway(key(6), &m, time.Now())
		g.clientStep(time.Now())
	})
}

func FuzzOffer(f *testing.F) {
	for h := range offerVectors {
		b, _ := hex.DecodeString(h)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := ParseOffer(b)
		if err != nil {
			return
		}
		_ = o.String()
		if again, err := ParseOffer(o.AppendTo(nil)); err != nil || again != o {
			t.Fatalf("%x: %+v, again %+v: %v", b, o, again, err)
		}
	})
}

func TestLeaseLog(t *testing.T) {
	file := filepath.Join(t.TempDir(), "leases")
	l, err := newLeaseLog(LogConfig{File: file, Days: 10})
	if err != nil {
		t.Fatal(err)
	}
	day := func(n int) time.Time { return time.Date(2026, 1, n, 0, 0, 0, 0, time.UTC) }
	l.begin(key(1), day(1))
	l.end(key(1), day(1), day(2))
	l.begin(key(2), day(3))
	l.end(key(2), day(3), day(20))
	l.flush()
	l.prune(day(25))
	l.flush()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if want := "2026-01-03T00:00:00Z 2026-01-20T00:00:00Z " + key(2).String() + "\n"; string(b) != want {
		t.Errorf("the file is %q, want %q", b, want)
	}
	if past, err := l.last(); len(past) != 2 || err != nil {
		t.Errorf("remembers %v, %v", past, err)
	}
	none, _ := newLeaseLog(LogConfig{File: file + "2"})
	none.begin(key(1), day(1))
	none.flush()
	if _, err := os.Stat(file + "2"); err == nil {
		t.Error("a log of no days wrote a file")
	}
}
