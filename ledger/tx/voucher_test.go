package tx_test

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"weft/ident"
	"weft/ledger/tx"
)

var update = flag.Bool("update", false, "write testdata/money.txt anew")

func agent(t testing.TB, i byte) *ident.Agent {
	t.Helper()
	a, err := ident.FromSeed(bytes.Repeat([]byte{i}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func goldenVoucher(t testing.TB) tx.Voucher {
	t.Helper()
	chain := tx.ChainOf("riverside-1")
	v := tx.Voucher{Chain: chain, Tab: tx.TabIDOf(chain, agent(t, 1).Public(), agent(t, 2).Public(), 7), Epoch: 3, Seq: 41, Amount: 104_858, Bytes: 1 << 20, Quote: 5}
	for i := range v.Meter {
		v.Meter[i] = byte(i)
	}
	v, err := v.Sign(agent(t, 3))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// The vectors of docs/spec/ledger.md: keys are those of seeds of 32 times the same byte.
func TestVectors(t *testing.T) {
	a, b := agent(t, 1), agent(t, 2)
	chain := tx.ChainOf("riverside-1")
	v := goldenVoucher(t)
	var w strings.Builder
	line := func(name string, b []byte) { fmt.Fprintf(&w, "%s %x\n", name, b) }
	key := func(name string, k ident.PublicKey) { line(name, k[:]) }
	key("key-1", a.Public())
	key("key-2", b.Public())
	key("key-3", agent(t, 3).Public())
	line("chain", chain[:])
	line("tab", v.Tab[:])
	raw := v.Encode()
	line("voucher", raw[:])
	node := agent(t, 3)
	bodies := []tx.Body{
		&tx.Transfer{To: b.Public(), Amount: 1_500_000_000, Memo: "Brot"},
		&tx.TabOpen{Payee: b.Public(), Number: 7, Signer: node.Public(), Earmark: 5_000_000_000, Expiry: 1_800_000_000},
		&tx.TabTopUp{Tab: v.Tab, Epoch: 3, Amount: 1},
		&tx.TabRenew{Tab: v.Tab, Epoch: 3, Expiry: 1_800_600_000},
		&tx.TabClaim{Vouchers: [][tx.VoucherLen]byte{raw}},
		&tx.TabClose{Tab: v.Tab, Epoch: 3},
		&tx.NameRegister{Label: "bakery", Node: node.Public()},
		&tx.NameRenew{Label: "bakery"},
		&tx.NameSet{Label: "bakery", Node: b.Public()},
		&tx.NameOffer{Label: "bakery", To: 2},
		&tx.NameRelease{Label: "bakery"},
		&tx.NodeRegister{Node: node.Public(), Roles: tx.RoleGateway, Price: 104_858, Terms: "fair use", Contact: "bakery@example.org", Until: 1_810_000_000,
			Word: node.Sign(tx.NodeDomain, tx.NodeMessage(chain, 1, node.Public()))},
		&tx.NodeRemove{Node: node.Public()},
		&tx.NodeRevoke{Node: node.Public(), Reason: "lost", Word: node.Sign(tx.RevokeDomain, tx.RevokeMessage(chain, node.Public()))},
	}
	for i, body := range bodies {
		raw, err := tx.Tx{Chain: chain, Nonce: uint64(i + 1), Expiry: 1_790_000_000, Body: body}.Sign(a)
		if err != nil {
			t.Fatal(err)
		}
		got, err := tx.Parse(raw)
		if err != nil {
			t.Fatalf("%s: %v", tx.Name(body.Kind()), err)
		}
		if err := tx.Verify(got, raw); err != nil {
			t.Errorf("%s: %v", tx.Name(body.Kind()), err)
		}
		if d := cmp.Diff(body, got.Body); d != "" {
			t.Errorf("%s: %s", tx.Name(body.Kind()), d)
		}
		line(tx.Name(body.Kind()), raw)
	}
	acc := tx.Account{Balance: -5, Limit: 100, Nonce: 9, Window: 1_790_000_000, Sent: 2, Tabs: 1, Names: 1, Nodes: 1}
	tab := tx.Tab{ID: v.Tab, Epoch: 3, Number: 7, PayerID: 1, PayeeID: 2, Payer: a.Public(), Payee: b.Public(), Signer: node.Public(), Earmark: 5_000_000_000, Claimed: 104_858,
		Opened: 1_789_000_000, Expiry: 1_790_600_000}
	name := tx.NameEntry{Label: "bakery", Owner: 1, Node: node.Public(), Since: 1_789_000_000, Until: 1_820_536_000, Kept: 1_823_128_000}
	reg := tx.Node{Key: node.Public(), Member: 1, Roles: tx.RoleGateway, Price: 104_858, Terms: "fair use", Contact: "bakery@example.org", Since: 1_789_000_000, Until: 1_810_000_000}
	rev := tx.Revocation{Key: node.Public(), Member: 1, Time: 1_791_000_000, Height: 77, Reason: "lost"}
	line("state-key-account", tx.StateKeyAccount(a.Public()))
	line("state-account", tx.Encode(&acc))
	line("state-key-tab", tx.StateKeyTab(v.Tab))
	line("state-tab", tx.Encode(&tab))
	line("state-key-name", tx.StateKeyName("bakery"))
	line("state-name", tx.Encode(&name))
	line("state-key-node", tx.StateKeyNode(node.Public()))
	line("state-node", tx.Encode(&reg))
	line("state-key-revocation", tx.StateKeyRevocation(node.Public()))
	line("state-revocation", tx.Encode(&rev))

	const file = "testdata/money.txt"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(w.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), w.String()); d != "" {
		t.Error(d)
	}
}

func TestVoucher(t *testing.T) {
	v := goldenVoucher(t)
	b := v.Encode()
	got, err := tx.ParseVoucher(b[:])
	if err != nil || got != v {
		t.Fatalf("%+v, %v", got, err)
	}
	if !v.Verify(agent(t, 3).Public()) || v.Verify(agent(t, 1).Public()) {
		t.Error("the wrong key verifies")
	}
	// No bit of it is without meaning: each that changes makes it invalid.
	for i := range 8 * tx.VoucherLen {
		c := b
		c[i/8] ^= 1 << (i % 8)
		if got, err := tx.ParseVoucher(c[:]); err == nil && got.Verify(agent(t, 3).Public()) {
			t.Errorf("bit %d has no meaning", i)
		}
	}
	for _, n := range []int{0, tx.VoucherLen - 1, tx.VoucherLen + 1} {
		if _, err := tx.ParseVoucher(make([]byte, n)); err == nil {
			t.Errorf("a voucher of %d bytes", n)
		}
	}
	for _, amount := range []int64{-1, math.MinInt64, math.MaxInt64, tx.MaxAmount + 1} {
		bad := v
		bad.Amount = amount
		if _, err := bad.Sign(agent(t, 3)); err == nil {
			t.Errorf("signed an amount of %d", amount)
		}
		b := bad.Encode()
		if _, err := tx.ParseVoucher(b[:]); err == nil {
			t.Errorf("read an amount of %d", amount)
		}
	}
	// A signature in another domain does not count, though the bytes are the same.
	v.Sig = agent(t, 3).Sign(tx.Domain, b[:96])
	if v.Verify(agent(t, 3).Public()) {
		t.Error("domains are not apart")
	}
}

func TestVoucherRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := tx.Voucher{Epoch: rapid.Uint32().Draw(t, "epoch"), Seq: rapid.Uint64().Draw(t, "seq"), Amount: rapid.Int64Range(0, tx.MaxAmount).Draw(t, "amount"),
			Bytes: rapid.Uint64().Draw(t, "bytes"), Quote: rapid.Uint64().Draw(t, "quote")}
		copy(v.Tab[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "tab"))
		copy(v.Meter[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "meter"))
		b := v.Encode()
		if got, err := tx.ParseVoucher(b[:]); err != nil || got != v {
			t.Fatalf("%+v, %v", got, err)
		}
	})
}

func TestTabID(t *testing.T) {
	v := goldenVoucher(t)
	if got, err := tx.ParseTabID(v.Tab.String()); err != nil || got != v.Tab {
		t.Error(got, err)
	}
	for _, s := range []string{"", "00", strings.Repeat("g", 32), v.Tab.String() + "0"} {
		if _, err := tx.ParseTabID(s); err == nil {
			t.Errorf("%q is no id", s)
		}
	}
}

func FuzzVoucher(f *testing.F) {
	b := goldenVoucher(f).Encode()
	f.Add(b[:])
	f.Add(b[:100])
	f.Add(make([]byte, tx.VoucherLen))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := tx.ParseVoucher(b)
		if err != nil {
			return
		}
		if again := v.Encode(); !bytes.Equal(again[:], b) {
			t.Errorf("%x became %x", b, again)
		}
	})
}

// seeds are the transactions and records of the vectors.
func seeds(f *testing.F, prefix string, want bool) (l [][]byte) {
	b, err := os.ReadFile("testdata/money.txt")
	if err != nil {
		f.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		name, digits, _ := strings.Cut(strings.TrimSpace(line), " ")
		if raw, err := hex.DecodeString(digits); err == nil && strings.HasPrefix(name, prefix) == want {
			l = append(l, raw)
		}
	}
	return l
}

// Whatever can be parsed is encoded to the same bytes again: nothing can be written in two ways.
func FuzzParse(f *testing.F) {
	for _, raw := range seeds(f, "state-", false) {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := tx.Parse(raw)
		if err != nil {
			return
		}
		if again := tx.Encode(got.Body); !bytes.Equal(again, raw[60:len(raw)-64]) {
			t.Errorf("%s: %x became %x", tx.Name(got.Body.Kind()), raw[60:len(raw)-64], again)
		}
	})
}

func FuzzState(f *testing.F) {
	for _, raw := range seeds(f, "state-", true) {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, r := range []tx.Record{&tx.Account{}, &tx.Tab{}, &tx.NameEntry{}, &tx.Node{}, &tx.Revocation{}, &tx.Claimed{}, &tx.Opened{}} {
			if tx.Decode(raw, r) == nil {
				if again := tx.Encode(r); !bytes.Equal(again, raw) {
					t.Errorf("%T: %x became %x", r, raw, again)
				}
			}
		}
		if l, err := tx.ParseClaimed(raw); err == nil && len(l)*12 != len(raw) {
			t.Errorf("%d results of %d bytes", len(l), len(raw))
		}
	})
}
