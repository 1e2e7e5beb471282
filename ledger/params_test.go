package ledger

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"weft/ledger/tx"
)

func TestParamsTable(t *testing.T) {
	p := DefaultParams()
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
	seen, at := map[string]bool{}, map[*int64]string{}
	for _, r := range p.List() {
		if seen[r.Name] || at[r.v] != "" {
			t.Errorf("%s, or what it points to, is there twice", r.Name)
		}
		seen[r.Name], at[r.v] = true, r.Name
		if r.Min > r.Default || r.Default > r.Max || r.Doc == "" || r.Unit == "" && r.Words == nil || len(r.Name) > 40 || !strings.Contains(r.Name, ".") {
			t.Errorf("%+v", r)
		}
		if len(r.Words) > 0 && r.Max != int64(len(r.Words))-1 {
			t.Errorf("%s has %d words", r.Name, len(r.Words))
		}
		text, err := p.Get(r.Name)
		if err != nil || p.Set(r.Name, text) != nil || r.Value() != r.Default {
			t.Errorf("%s: %q, %v", r.Name, text, err)
		}
		if d := r.Class; d != tx.DecideBylaws && d != tx.DecideTariff {
			t.Errorf("%s is decided by %s", r.Name, d)
		}
	}
	for d := tx.Decision(1); d < tx.Decisions; d++ {
		if majorities[d] < 500 || !seen["majority."+d.String()] {
			t.Errorf("%s has no majority", d)
		}
		if back, err := tx.ParseDecision(d.String()); err != nil || back != d {
			t.Errorf("%s reads as %s, %v", d, back, err)
		}
		if a := tx.NewAction(d); a == nil || a.Decision() != d {
			t.Errorf("%s has no action", d)
		}
	}
}

// Any values within their bounds go through the encoding unchanged, and are what clients that know no parameter read.
func TestParamsEncoding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var p, back Params
		for _, r := range p.List() {
			*r.v = rapid.Int64Range(r.Min, r.Max).Draw(t, r.Name)
		}
		p.Version, p.Since = 7, 8
		b := tx.Encode(&p)
		if err := tx.Decode(b, &back); err != nil || back != p {
			t.Fatalf("%v", err)
		}
		var plain tx.Bylaws
		if err := tx.Decode(b, &plain); err != nil || plain.Version != 7 || len(plain.Settings) != len(p.List()) {
			t.Fatalf("%v %+v", err, plain)
		}
		for _, r := range p.List() {
			if v, ok := plain.Get(r.Name); !ok || v != r.Text() {
				t.Fatalf("%s is %q", r.Name, v)
			}
		}
	})
	// A state from before most parameters existed has their defaults.
	var p Params
	old := tx.Bylaws{Version: 3, Settings: []tx.Setting{{Name: "member.vouches", Value: "5"}, {Name: "tariff.free", Value: "99"}}}
	if err := tx.Decode(tx.Encode(&old), &p); err != nil || p.Vouches != 5 || p.FreeKbit != 99 || p.Voting != week {
		t.Errorf("%v %+v", err, p)
	}
	for _, s := range [][]tx.Setting{{{Name: "x", Value: "5"}}, {{Name: "tariff.free", Value: "99"}, {Name: "member.vouches", Value: "5"}}, {{Name: "member.vouches", Value: "05"}}} {
		if tx.Decode(tx.Encode(&tx.Bylaws{Settings: s}), &p) == nil {
			t.Errorf("%v was read", s)
		}
	}
}

// The specification has each parameter with its default and bounds.
func TestParamsAreDocumented(t *testing.T) {
	spec, err := os.ReadFile("../docs/spec/ledger.md")
	if err != nil {
		t.Fatal(err)
	}
	p := DefaultParams()
	for _, r := range p.List() {
		bounds := fmt.Sprintf("%d … %d %s", r.Min, r.Max, r.Unit)
		if r.Words != nil {
			bounds = strings.Join(r.Words, ", ")
		}
		row := fmt.Sprintf("| `%s` | %s | %s | %s |\n", r.Name, r.Text(), bounds, r.Doc)
		if !strings.Contains(string(spec), row) {
			t.Errorf("docs/spec/ledger.md section 3.8 lacks\n%s", row)
		}
	}
}
