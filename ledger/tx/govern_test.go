package tx

import (
	"bytes"
	"encoding/hex"
	"testing"

	"weft/ident"
)

// governBodies is one body of each kind and one proposal of each decision.
func governBodies() []Body {
	k := func(b byte) (k ident.PublicKey) { k[0], k[31] = b, b; return k }
	l := []Body{
		&Apply{Called: "Ada", Form: Household, Sponsor: k(1), Until: 2_000_000_000}, &Vouch{k(2)}, &Unvouch{k(2)}, &Leave{}, &Rename{"Ada L."}, &Delegates{[]DelegateKey{{Key: k(3)}}},
		&Rekey{Member: 7, New: k(4)}, &Unrekey{7}, &Veto{}, &Delegate{On: DecideTariff, To: 9}, &Support{3}, &Withdraw{3}, &Vote{3, No}, &Resign{},
	}
	for _, a := range []Action{
		&ActText{}, &ActBylaws{[]Setting{{"vote.notice", "86400"}}}, &ActTariff{[]Setting{{"tariff.free", "512"}, {"tariff.lambda", "5"}}}, &ActBudget{[]byte{1, 2}},
		&ActValidators{[]ValidatorChange{{k(5), false, 2, k(6)}, {Key: k(7), Remove: true}}}, &ActBlock{[]BlockChange{{k(8), false, 5}}}, &ActAdmission{k(9)},
		&ActStanding{4, Suspend, 30}, &ActCredit{4, 2, -1, 0}, &ActElection{4, false}, &ActSurplus{[]byte{3}}, &ActUpgrade{1000, 2}, &ActRekey{Rekey{Member: 7, New: k(4)}},
	} {
		l = append(l, &Propose{Title: "T", Text: "line\nline", From: 1, Action: a})
	}
	return l
}

func TestGovernBodies(t *testing.T) {
	seen := map[Kind]bool{}
	for _, b := range governBodies() {
		seen[b.Kind()] = true
		raw := Encode(b)
		back := New(b.Kind())
		if err := Decode(raw, back); err != nil {
			t.Errorf("%s: %v", Name(b.Kind()), err)
			continue
		}
		if !bytes.Equal(Encode(back), raw) {
			t.Errorf("%s changes on its way", Name(b.Kind()))
		}
		for n := range raw {
			if Decode(raw[:n], New(b.Kind())) == nil {
				t.Errorf("%s: %d of %d bytes suffice", Name(b.Kind()), n, len(raw))
			}
		}
	}
	for k := KindApply; k <= KindResign; k++ {
		if !seen[k] || Name(k) == "unknown" {
			t.Errorf("kind %d is not tested", k)
		}
	}
}

func TestGovernRefuses(t *testing.T) {
	for name, b := range map[string]Body{
		"form": &Apply{Form: 3}, "choice 0": &Vote{Choice: 0}, "choice 4": &Vote{Choice: 4}, "decision": &Delegate{On: Decisions}, "no action": &Propose{},
		"step": &Propose{Action: &ActStanding{Step: 3}}, "class": &Propose{Action: &ActCredit{Class: 4}}, "grant": &Propose{Action: &ActCredit{Grant: -2}},
		"long title": &Propose{Title: string(make([]byte, 101)), Action: &ActText{}}, "control character": &Rename{"a\x07"},
	} {
		if Check(b) == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// Vectors of docs/spec/ledger.md section 3.
func TestGovernVectors(t *testing.T) {
	var k, n ident.PublicKey
	for i := range k {
		k[i], n[i] = byte(i), byte(0x80+i)
	}
	chain := ChainOf("test-1")
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"chain", chain[:], vectorChain},
		{"sponsor", SponsorMessage(chain, k, 2_000_000_000), vectorChain + hex.EncodeToString(k[:]) + "0000000077359400"},
		{"rekey", RekeyMessage(chain, 7, k, n), vectorChain + "0000000000000007" + hex.EncodeToString(k[:]) + hex.EncodeToString(n[:])},
		{"delegate key", DelegateMessage(chain, 7, k), vectorChain + "0000000000000007" + hex.EncodeToString(k[:])},
		{"vote", Encode(&Vote{3, Yes}), "0000000000000003" + "01"},
		{"delegate", Encode(&Delegate{DecideTariff, 9}), "03" + "0000000000000009"},
		{"propose", Encode(&Propose{Title: "Hi", From: 5, Action: &ActTariff{[]Setting{{"tariff.free", "512"}}}}),
			"0002" + "4869" + "0000" + "0000000000000000000000000000000000000000000000000000000000000000" + "0000000000000005" + "03" + "0001" + "000b" + "7461726966662e66726565" + "0003" + "353132"},
	} {
		if hex.EncodeToString(c.got) != c.want {
			t.Errorf("%s is %x, want %s", c.name, c.got, c.want)
		}
	}
}

const vectorChain = "5e161f0227b7d7d7"

func FuzzGovern(f *testing.F) {
	for _, b := range governBodies() {
		f.Add(uint16(b.Kind()), Encode(b))
	}
	f.Fuzz(func(t *testing.T, kind uint16, raw []byte) {
		b := newGovern(Kind(kind))
		if b == nil || Decode(raw, b) != nil {
			return
		}
		if got := Encode(b); !bytes.Equal(got, raw) {
			t.Errorf("%x re-encodes as %x", raw, got)
		}
	})
}
