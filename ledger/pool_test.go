package ledger

import (
	"testing"

	"weft/ledger/tx"
)

// What the mempool refuses uses up no nonce, for it gets into no block; but it counts, so nobody can go on for ever.
func TestRefusedByThePool(t *testing.T) {
	a, b := agent(t, 1), agent(t, 2)
	m, err := New(NewMem())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Init(Genesis{Chain: "test-1", Time: 1000, Founders: []Founder{{Key: a.Public(), Name: "A", Limit: 100}, {Key: b.Public(), Name: "B"}}}); err != nil {
		t.Fatal(err)
	}
	pool := m.Pool(Header{Height: 1, Time: 1001})
	try := func(nonce uint64, amount int64) Code {
		raw, err := tx.Tx{Chain: tx.ChainOf("test-1"), Nonce: nonce, Expiry: 2000, Body: &tx.Transfer{To: b.Public(), Amount: amount}}.Sign(a)
		if err != nil {
			t.Fatal(err)
		}
		return pool.Take(raw).Code
	}
	if c := try(1, 101); c != CodeFunds {
		t.Errorf("too much: code %d", c)
	}
	if c := try(1, 60); c != OK {
		t.Errorf("after a refusal: code %d", c)
	}
	if c := try(2, 60); c != CodeFunds {
		t.Errorf("too much beside what waits: code %d", c)
	}
	for i := 0; ; i++ {
		if c := try(2, 1000); c == CodeRate {
			break
		}
		if i > 1000 {
			t.Fatal("refusals do not count")
		}
	}
}
