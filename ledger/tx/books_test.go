package tx

import (
	"bytes"
	"reflect"
	"testing"
)

var measures = []Measure{
	&NewBudget{Fund: 1, Amount: 5, Cost: true, Class: 2, Business: WithBoth, Member: 3, Until: 9, Purpose: "a mast"},
	&NewFund{Called: "roof"},
	&MoveFund{From: 1, To: 2, Amount: 7, Why: "x"},
	&SetLine{Called: "internet", Class: 1, Fund: 1, Fee: 3, Blocks: []Block{{Bytes: 10, Price: 1}, {Price: 2}}, Cap: 9},
	&Retire{Method: Hybrid, Amount: 8, Oldest: 300},
}

func TestMeasures(t *testing.T) {
	for _, m := range measures {
		b, err := EncodeMeasure(m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeMeasure(b)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%+v came back as %+v: %v", m, got, err)
		}
		if _, err := DecodeMeasure(append(b, 0)); err == nil {
			t.Errorf("%T: a byte too many", m)
		}
	}
	for _, bad := range []Measure{&NewBudget{Class: 9}, &NewBudget{Amount: -1}, &NewBudget{Business: 3}, &Retire{Oldest: 1001}, &Retire{Method: 4}, &SetLine{}, &SetLine{Class: 1, Blocks: make([]Block, 9)}} {
		if _, err := EncodeMeasure(bad); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

// A vector for other programs (docs/spec/ledger.md section 4).
func TestMeasureVector(t *testing.T) {
	b, err := EncodeMeasure(&Retire{Method: Hybrid, Amount: 8_000_000_000, Oldest: 300})
	want := []byte{10, 3, 0, 0, 0, 1, 0xdc, 0xd6, 0x50, 0, 1, 0x2c}
	if err != nil || !bytes.Equal(b, want) {
		t.Errorf("%x, want %x: %v", b, want, err)
	}
}

func FuzzMeasure(f *testing.F) {
	for _, m := range measures {
		b, _ := EncodeMeasure(m)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeMeasure(b)
		if err != nil {
			return
		}
		if again, err := EncodeMeasure(m); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x became %x: %v", b, again, err)
		}
	})
}

func FuzzBooksBodies(f *testing.F) {
	for k := KindDeposit; k <= KindClaim; k++ {
		b := New(k)
		f.Add(uint16(k), Encode(b))
	}
	f.Add(uint16(KindShareBill), Encode(&ShareBill{Line: 1, Bill: 3, Parts: []Part{{1, 2}, {3, 4}}, Memo: "m"}))
	f.Fuzz(func(t *testing.T, k uint16, raw []byte) {
		b := New(Kind(k))
		if b == nil || Kind(k) < KindDeposit || Kind(k) > KindClaim || Decode(raw, b) != nil {
			return
		}
		if again := Encode(b); !bytes.Equal(again, raw) || b.Kind() != Kind(k) || Name(b.Kind()) == "unknown" {
			t.Errorf("%x became %x", raw, again)
		}
	})
}
