package route

import (
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"weft/ident"
	"weft/wire"
)

// specVectors are the messages that docs/spec/route.md section 7 prints.
func specVectors(t *testing.T) map[string][]byte {
	agent, err := ident.FromSeed([]byte(strings.Repeat("\x01", 32)))
	if err != nil {
		t.Fatal(err)
	}
	l := wire.LSA{Key: agent.Public(), Seq: 1, Lifetime: 1}
	lsa, err := l.Sign(func(m []byte) ident.Signature { return agent.Sign(ident.DomainLSA, m) })
	if err != nil {
		t.Fatal(err)
	}
	const salt = 0x0102030405060708
	d := digest{wanted: true, bits: 1, salt: salt, sums: sumOf([]summary{{0x0123456789abcdef, 7, 0xdeadbeef}, {0x2000000000000000, 1, 1}, {0xfedcba9876543210, 9, 0xcafebabe}}, 1, salt)}
	span := appendRecord(nil, recRange, rangeFixed+rangeEntry)
	span = append(span, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	span = appendSummary(span, summary{0x0123456789abcdef, 7, 0xdeadbeef})
	return map[string][]byte{
		"digest": d.appendTo(nil),
		"range":  span,
		"lsa":    appendLSA(nil, 59, lsa),
		"ready":  appendMark(nil, markReady),
		"ack":    appendAck(nil, 70_000),
	}
}

func sumOf(list []summary, bits uint8, salt uint64) []byte {
	sums := make([]byte, 8<<bits)
	for _, s := range list {
		addSum(sums, bits, salt, s)
	}
	return sums
}

// TestSpecVectors keeps the specification and the code together.
func TestSpecVectors(t *testing.T) {
	b, err := os.ReadFile("../docs/spec/route.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(b), "## 7. Test vectors")
	got := map[string]string{}
	name := ""
	for line := range strings.Lines(section) {
		if f := strings.Fields(line); len(f) == 2 && !strings.HasPrefix(line, " ") {
			name = f[0]
			got[name] = f[1]
		} else if len(f) == 1 && strings.HasPrefix(line, " ") {
			got[name] += f[0]
		}
	}
	for name, want := range specVectors(t) {
		if got[name] != hex.EncodeToString(want) {
			t.Errorf("the specification's %s is %q, the code makes %x", name, got[name], want)
		}
	}
}
