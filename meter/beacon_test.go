package meter

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// vectors are in docs/spec/meter.md too, and TestVectors compares the two.
var vectors = map[string]Beacon{
	"010001000000000100000000000000070000000000000003000000000000119400000000000000000000000000000000" +
		"00000000000000000000000000000000000000000000000000000000": {
		Kind: Outside, Ask: true, Seq: 1, Epoch: 7, Sent: Count{3, 4500},
	},
	"010100000001020300112233445566770000000000010000000000000500000000000000000000020000000000000bb8" +
		"8899aabbccddeeff000000000000000100000000000005dc0000002a": {
		Kind: Mesh, Seq: 0x010203, Epoch: 0x0011223344556677, Sent: Count{65536, 0x05000000}, Recv: Count{2, 3000},
		EchoSeq: 42, EchoEpoch: 0x8899aabbccddeeff, EchoRecv: Count{1, 1500},
	},
}

func TestVectors(t *testing.T) {
	spec, err := os.ReadFile("../docs/spec/meter.md")
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`\s`).ReplaceAllString(string(spec), "")
	for h, want := range vectors {
		raw, err := hex.DecodeString(h)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeBeacon(raw)
		if err != nil {
			t.Errorf("%s: %v", h, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", h, diff)
		}
		if back, err := got.AppendTo(nil); err != nil || !bytes.Equal(back, raw) {
			t.Errorf("encodes to %x, %v", back, err)
		}
		if !strings.Contains(text, h) {
			t.Errorf("docs/spec/meter.md lacks the vector %s", h)
		}
	}
}

func TestBeaconRefuses(t *testing.T) {
	good, _ := (&Beacon{Seq: 1}).AppendTo(nil)
	for what, spoil := range map[string]func([]byte) []byte{
		"short":           func(b []byte) []byte { return b[:BeaconLen-1] },
		"long":            func(b []byte) []byte { return append(b, 0) },
		"empty":           func([]byte) []byte { return nil },
		"version":         func(b []byte) []byte { b[0] = 2; return b },
		"kind":            func(b []byte) []byte { b[1] = 2; return b },
		"flag":            func(b []byte) []byte { b[2] = 2; return b },
		"reserved":        func(b []byte) []byte { b[3] = 1; return b },
		"sequence zero":   func(b []byte) []byte { b[7] = 0; return b },
		"echo of nothing": func(b []byte) []byte { b[55] = 1; return b },
		"huge packets":    func(b []byte) []byte { b[16] = 0x10; return b },
		"huge bytes":      func(b []byte) []byte { b[24] = 0x10; return b },
	} {
		if _, err := DecodeBeacon(spoil(bytes.Clone(good))); !errors.Is(err, ErrBeacon) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := DecodeBeacon(good); err != nil {
		t.Error(err)
	}
}

func FuzzBeacon(f *testing.F) {
	for h := range vectors {
		raw, _ := hex.DecodeString(h)
		f.Add(raw)
	}
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, BeaconLen))
	f.Fuzz(func(t *testing.T, p []byte) {
		b, err := DecodeBeacon(p)
		if err != nil {
			return
		}
		back, err := b.AppendTo(nil)
		if err != nil || !bytes.Equal(back, p) {
			t.Fatalf("%x encodes to %x, %v", p, back, err)
		}
	})
}

func drawCount(t *rapid.T, name string, limit uint64) Count {
	p := rapid.Uint64Range(0, limit).Draw(t, name)
	return Count{p, p * rapid.Uint64Range(20, 1500).Draw(t, name+" size")}
}

// TestComparedNeverExceeds: whatever the two ends count and whichever of them starts anew, what is agreed never falls, and is never
// more than either has counted in all its lives; and the end that sees fewer comparisons comes to the same as the one that sees all.
func TestComparedNeverExceeds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all, some compared
		var sent, recv, sentLife, recvLife Count
		se, re := uint64(1), uint64(1)
		rebooted := false
		n := rapid.IntRange(1, 60).Draw(t, "steps")
		for i := range n {
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				se, sent, rebooted = se+1, Count{}, true
			case 1:
				re, recv, rebooted = re+1, Count{}, true
			}
			d := drawCount(t, "sent", 1000)
			e := least(d, drawCount(t, "received", 1000))
			sent, recv, sentLife, recvLife = sent.plus(d), recv.plus(e), sentLife.plus(d), recvLife.plus(e)
			before := all.agreed
			if _, _, _, ok := all.advance(se, re, sent, recv); !ok {
				t.Fatal("honest counters refused")
			}
			if all.agreed.behind(before) || sentLife.behind(all.agreed) || recvLife.behind(all.agreed) {
				t.Fatalf("agreed %v after %v; sent %v, received %v", all.agreed, before, sentLife, recvLife)
			}
			if i == n-1 || rapid.Bool().Draw(t, "echoed") {
				some.advance(se, re, sent, recv)
			}
		}
		if !rebooted && all.agreed != some.agreed {
			t.Fatalf("one end has %v, the other %v", all.agreed, some.agreed)
		}
	})
}

func TestTolerance(t *testing.T) {
	for _, c := range []struct {
		mbit  uint64
		radio bool
		want  uint64
	}{
		{0, false, 64 << 10},
		{1, false, 64 << 10},
		{10, false, 125_000}, // 1 % of 12.5 MB is more than 64 KiB
		{10, true, 625_000},
		{1000, false, 12_500_000},
	} {
		if got := Tolerance(c.mbit*1_250_000, windowLen, c.radio); got != c.want {
			t.Errorf("%d Mbit/s, radio %v: %d, want %d", c.mbit, c.radio, got, c.want)
		}
	}
	// The absolute part, without 1 % in the way: short windows of 100 Mbit/s and 2 Gbit/s.
	if got := Tolerance(12_500_000, time.Second, false); got != 64<<10+960<<10*90/990 {
		t.Errorf("1 s at 100 Mbit/s: %d", got)
	}
	if got := Tolerance(25_000_000, time.Second/10, false); got != 1<<20 {
		t.Errorf("0.1 s at 2 Gbit/s: %d", got)
	}
	if got, most := Tolerance(1<<63, windowLen, true), uint64(1<<63)/20; got != most {
		t.Errorf("no overflow expected: %d, want %d", got, most)
	}
}
