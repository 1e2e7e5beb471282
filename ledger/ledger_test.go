package ledger

import (
	"testing"

	"pgregory.net/rapid"

	"weft/ident"
	"weft/ledger/tx"
)

func agent(t testing.TB, i byte) *ident.Agent {
	t.Helper()
	seed := make([]byte, 32)
	seed[0] = i
	a, err := ident.FromSeed(seed)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestTransfer(t *testing.T) {
	a, b := agent(t, 1), agent(t, 2)
	m, err := New(NewMem())
	if err != nil {
		t.Fatal(err)
	}
	m.Strict = true
	if err := m.Init(Genesis{Chain: "test-1", Time: 1000, Founders: []Founder{{Key: a.Public(), Limit: 100}, {Key: b.Public()}}}); err != nil {
		t.Fatal(err)
	}
	raw, err := tx.Tx{Chain: tx.ChainOf("test-1"), Nonce: 1, Expiry: 2000, Body: &tx.Transfer{To: b.Public(), Amount: 60}}.Sign(a)
	if err != nil {
		t.Fatal(err)
	}
	out := m.Block(Header{Height: 1, Time: 1001}, [][]byte{raw, raw})
	if out.Results[0].Code != OK || out.Results[1].Code != CodeNonce {
		t.Errorf("%+v", out.Results)
	}
	again, _ := tx.Tx{Chain: tx.ChainOf("test-1"), Nonce: 2, Expiry: 2000, Body: &tx.Transfer{To: b.Public(), Amount: 60}}.Sign(a)
	if out := m.Block(Header{Height: 2, Time: 1002}, [][]byte{again}); out.Results[0].Code != CodeFunds {
		t.Errorf("%+v", out.Results)
	}
}

// An overlay over an overlay is what a plain map says, scans included.
func TestOverlayAgainstMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base, naive := NewMem(), map[string]string{}
		layers := []Store{base}
		top := func() Store { return layers[len(layers)-1] }
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			k := rapid.SampledFrom([]string{"a", "aa", "ab", "b", "ba", "c"}).Draw(t, "key")
			switch rapid.IntRange(0, 4).Draw(t, "op") {
			case 0, 1:
				v := rapid.StringN(1, 3, -1).Draw(t, "value")
				top().Set([]byte(k), []byte(v))
				naive[k] = v
			case 2:
				top().Set([]byte(k), nil)
				delete(naive, k)
			case 3:
				if len(layers) < 3 {
					layers = append(layers, newOverlay(top()))
				}
			case 4:
				if o, ok := top().(*overlay); ok {
					o.flush()
					layers = layers[:len(layers)-1]
				}
			}
			if got := string(top().Get([]byte(k))); got != naive[k] {
				t.Fatalf("%s is %q, want %q", k, got, naive[k])
			}
			for _, p := range []string{"", "a", "ab", "d"} {
				var got, want []string
				top().Scan([]byte(p), func(k, v []byte) bool { got = append(got, string(k)+"="+string(v)); return true })
				for _, k := range []string{"a", "aa", "ab", "b", "ba", "c"} {
					if v, ok := naive[k]; ok && len(k) >= len(p) && k[:len(p)] == p {
						want = append(want, k+"="+v)
					}
				}
				if len(got) != len(want) {
					t.Fatalf("scan %q: %v, want %v", p, got, want)
				}
				for i := range got {
					if got[i] != want[i] {
						t.Fatalf("scan %q: %v, want %v", p, got, want)
					}
				}
			}
		}
	})
}
