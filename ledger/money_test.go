package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weft/ident"
	"weft/ledger/tx"
)

var govChain = tx.ChainOf("gov-1")

// openTab lets a pay b; the vouchers are signed by a's router, agent 10+a.
func (w *gov) openTab(a, b int, earmark int64) tx.Opened {
	w.t.Helper()
	var o tx.Opened
	data := w.must(a, &tx.TabOpen{Payee: govKey(b), Signer: govKey(10 + a), Earmark: earmark, Expiry: w.now + 20*day})
	if err := tx.Decode(data, &o); err != nil {
		w.t.Fatal(err)
	}
	return o
}

func (w *gov) voucher(o tx.Opened, signer int, amount int64) [tx.VoucherLen]byte {
	w.t.Helper()
	v, err := tx.Voucher{Chain: govChain, Tab: o.Tab, Epoch: o.Epoch, Amount: amount}.Sign(govAgent(signer))
	if err != nil {
		w.t.Fatal(err)
	}
	return v.Encode()
}

func claim(l ...[tx.VoucherLen]byte) *tx.TabClaim { return &tx.TabClaim{Vouchers: l} }

func (w *gov) balance(i int) int64 {
	w.t.Helper()
	a, ok := w.m.Account(govKey(i))
	if !ok {
		w.t.Fatalf("%d has no account", i)
	}
	return a.Balance
}

func (w *gov) balances(want ...int64) {
	w.t.Helper()
	for i, n := range want {
		if got := w.balance(i + 1); got != n {
			w.t.Errorf("member %d has %d, want %d", i+1, got, n)
		}
	}
}

func TestTransfers(t *testing.T) {
	w := newGov(t, 3)
	pay := func(to int, n int64) *tx.Transfer {
		return &tx.Transfer{To: govKey(to), Amount: n, Memo: "eggs\nand milk"}
	}
	w.must(1, pay(2, 100))
	w.refuse(CodeFunds, 1, pay(2, 1))
	w.refuse(CodeFunds, 1, pay(2, tx.MaxAmount))
	w.must(2, pay(3, 200))
	w.refuse(CodeFunds, 2, pay(3, 1))
	w.refuse(CodeValue, 3, pay(3, 5))
	w.refuse(CodeValue, 3, pay(1, 0))
	w.refuse(CodeUnknown, 3, pay(77, 5))
	w.refuse(CodeForbid, 77, pay(3, 5))
	w.balances(-100, -100, 200)
	if diff := cmp.Diff([]Posting{{Height: 20, Account: "member:3", Amount: -7, Memo: "eggs\nand milk"}, {Height: 20, Account: "member:1", Amount: 7, Memo: "eggs\nand milk"}},
		func() []Posting { w.height = 19; w.must(3, pay(1, 7)); return w.last.Postings }(), cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Time" }, cmp.Ignore())); diff != "" {
		t.Error(diff)
	}
	// Amounts that no honest program writes: below zero, and beyond what sums can hold.
	for _, n := range []int64{-1, math.MinInt64, math.MaxInt64, tx.MaxAmount + 1} {
		raw := w.sign(3, pay(1, 5))
		binary.BigEndian.PutUint64(raw[60+32:], uint64(n))
		sig := govAgent(3).Sign(tx.Domain, raw[:len(raw)-64])
		copy(raw[len(raw)-64:], sig[:])
		if r := w.block(1, raw).Results[0]; r.Code != CodeMalform {
			t.Errorf("an amount of %d: %+v", n, r)
		}
	}
	// Balances that would not fit are refused and change nothing.
	var a Account
	load(w.store, accountKey(govKey(3)), &a)
	c := w.m.view(Header{})
	rich := a
	rich.Balance = math.MaxInt64 - 3
	c.save(accountKey(govKey(3)), &rich)
	var e *Error
	if err := c.pay(govKey(1), govKey(3), 4, ""); !errors.As(err, &e) || e.Code != CodeOverflow {
		t.Error(err)
	}
}

// What is not for this chain, this time or this sender does not get in, and what got in does not twice.
func TestAdmission(t *testing.T) {
	w := newGov(t, 3, "tx.each=5")
	body := &tx.Transfer{To: govKey(2), Amount: 1}
	good := tx.Tx{Chain: govChain, Nonce: 1, Expiry: w.now + 3600, Body: body}
	signed := func(change func(*tx.Tx)) []byte {
		x := good
		change(&x)
		raw, err := x.Sign(govAgent(1))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	first := signed(func(*tx.Tx) {})
	stolen := bytes.Clone(first)
	two := govKey(2)
	copy(stolen[12:], two[:])
	for _, c := range []struct {
		name string
		raw  []byte
		want Code
	}{
		{"nothing", nil, CodeMalform},
		{"too long", signed(func(x *tx.Tx) {})[:0:0], CodeMalform},
		{"4097 bytes", append(bytes.Clone(first), bytes.Repeat([]byte{0}, tx.MaxLen)...), CodeMalform},
		{"short", first[:len(first)-1], CodeMalform},
		{"long", append(bytes.Clone(first), 0), CodeMalform},
		{"another version", append([]byte{2}, first[1:]...), CodeMalform},
		{"another chain", signed(func(x *tx.Tx) { x.Chain = tx.ChainOf("gov-2") }), CodeChain},
		{"run out", signed(func(x *tx.Tx) { x.Expiry = w.now + 1 }), CodeExpired},
		{"before 1970", signed(func(x *tx.Tx) { x.Expiry = -1 }), CodeExpired},
		{"for ever", signed(func(x *tx.Tx) { x.Expiry = math.MaxInt64 }), CodeExpired},
		{"later nonce", signed(func(x *tx.Tx) { x.Nonce = 2 }), CodeNonce},
		{"nonce 0", signed(func(x *tx.Tx) { x.Nonce = 0 }), CodeNonce},
		{"last nonce", signed(func(x *tx.Tx) { x.Nonce = math.MaxUint64 }), CodeNonce},
		{"another's name", stolen, CodeSig},
		{"good", first, OK},
		{"again", first, CodeNonce},
	} {
		if r := w.m.Block(Header{Height: 1, Time: w.now + 1}, [][]byte{c.raw}).Results[0]; r.Code != c.want {
			t.Errorf("%s: %+v", c.name, r)
		}
	}
	w.now++
	// Transactions that fail count too; a forged one does not, or anybody could use up another's rate.
	for i := range 4 {
		forged := w.sign(1, body)
		forged[len(forged)-1] ^= 1
		if r := w.block(0, forged, w.sign(1, &tx.Transfer{To: govKey(77), Amount: 1})).Results; r[0].Code != CodeSig || r[1].Code != CodeUnknown {
			t.Errorf("%d: %+v", i, r)
		}
	}
	w.refuse(CodeRate, 1, body)
	w.block(60)
	w.must(1, body)
}

func TestTabs(t *testing.T) {
	w := newGov(t, 4, "tab.each=2")
	open := func(b int, number uint32, earmark, life int64) *tx.TabOpen {
		return &tx.TabOpen{Payee: govKey(b), Number: number, Signer: govKey(11), Earmark: earmark, Expiry: w.now + 1 + life}
	}
	w.refuse(CodeValue, 1, open(1, 0, 50, day))
	w.refuse(CodeUnknown, 1, open(77, 0, 50, day))
	w.refuse(CodeValue, 1, open(2, 0, 0, day))
	w.refuse(CodeValue, 1, open(2, 0, 50, 0))
	w.refuse(CodeValue, 1, open(2, 0, 50, 30*day+1))
	w.refuse(CodeValue, 1, &tx.TabOpen{Payee: govKey(2), Earmark: 5, Expiry: math.MaxInt64})
	w.refuse(CodeFunds, 1, open(2, 0, 101, day))
	weak := open(2, 0, 50, day)
	weak.Signer = ident.PublicKey{1} // a point of small order: anybody's signature
	w.refuse(CodeValue, 1, weak)
	o := w.openTab(1, 2, 60)
	w.refuse(CodeExists, 1, open(2, 0, 10, day))
	w.refuse(CodeFunds, 1, open(2, 1, 41, day))
	w.must(1, open(2, 1, 40, day))
	w.refuse(CodeTooMany, 1, open(3, 0, 1, day))
	w.refuse(CodeFunds, 1, &tx.Transfer{To: govKey(3), Amount: 1}) // what is set aside cannot be spent again
	w.balances(-100, 0, 0, 0)

	// Claims: by a stranger to the tab, in parts, never twice, never more than there is.
	v20, v25, v90 := w.voucher(o, 11, 20), w.voucher(o, 11, 25), w.voucher(o, 11, 90)
	w.must(4, claim(v20))
	w.refuse(CodeState, 4, claim(v20))
	w.must(2, claim(v25))
	w.refuse(CodeState, 2, claim(v20))
	w.balances(-100, 25, 0, 0)
	w.refuse(CodeSig, 2, claim(w.voucher(o, 1, 30))) // the payer's own key, but the router was named
	w.refuse(CodeSig, 2, claim(w.voucher(o, 2, 30)))
	forged := v25
	forged[47]++
	w.refuse(CodeSig, 2, claim(forged))
	w.refuse(CodeUnknown, 2, claim(w.voucher(tx.Opened{Tab: tx.TabID{9}, Epoch: o.Epoch}, 11, 30)))
	w.refuse(CodeState, 2, claim(w.voucher(tx.Opened{Tab: o.Tab, Epoch: o.Epoch + 1}, 11, 30)))
	other, _ := tx.Voucher{Chain: tx.ChainOf("gov-2"), Tab: o.Tab, Epoch: o.Epoch, Amount: 50}.Sign(govAgent(11))
	w.refuse(CodeChain, 2, claim(other.Encode()))
	w.refuse(CodeMalform, 2, claim([tx.VoucherLen]byte{}))
	w.refuse(CodeValue, 2, claim())
	w.must(2, claim(v90)) // only 60 are there
	w.refuse(CodeFunds, 2, claim(v90))
	w.balances(-100, 60, 0, 0)
	w.must(2, &tx.Transfer{To: govKey(1), Amount: 60})
	w.refuse(CodeForbid, 3, &tx.TabTopUp{Tab: o.Tab, Epoch: o.Epoch, Amount: 10})
	w.refuse(CodeState, 1, &tx.TabTopUp{Tab: o.Tab, Epoch: o.Epoch + 5, Amount: 10})
	w.refuse(CodeValue, 1, &tx.TabTopUp{Tab: o.Tab, Epoch: o.Epoch})
	w.refuse(CodeOverflow, 1, &tx.TabTopUp{Tab: o.Tab, Epoch: o.Epoch, Amount: tx.MaxAmount})
	w.must(1, &tx.TabTopUp{Tab: o.Tab, Epoch: o.Epoch, Amount: 10})
	w.must(3, claim(v90))
	w.balances(-50, 10, 0, 0)

	// The payee closes: at once. What was signed before is void, even when the same tab is opened again.
	w.must(1, &tx.TabTopUp{Tab: o.Tab, Epoch: o.Epoch, Amount: 30})
	w.refuse(CodeForbid, 4, &tx.TabClose{Tab: o.Tab, Epoch: o.Epoch})
	w.must(2, &tx.TabClose{Tab: o.Tab, Epoch: o.Epoch})
	w.balances(-50, 10, 0, 0)
	w.refuse(CodeUnknown, 2, claim(v90))
	again := w.openTab(1, 2, 20)
	if again.Tab != o.Tab || again.Epoch == o.Epoch {
		t.Errorf("%+v after %+v", again, o)
	}
	w.refuse(CodeState, 2, claim(v90))
	w.refuse(CodeState, 1, &tx.TabRenew{Tab: o.Tab, Epoch: o.Epoch, Expiry: w.now + 29*day})
	w.refuse(CodeState, 2, &tx.TabClose{Tab: o.Tab, Epoch: o.Epoch})
	w.refuse(CodeValue, 1, &tx.TabRenew{Tab: o.Tab, Epoch: again.Epoch, Expiry: w.now + day})
	w.must(1, &tx.TabRenew{Tab: o.Tab, Epoch: again.Epoch, Expiry: w.now + 29*day})
}

// The payer closes, or time does: the payee can claim until both time and blocks have passed, halts of the chain or not.
func TestTabWindow(t *testing.T) {
	for _, end := range []string{"closed", "expired"} {
		for _, how := range []string{"time, then blocks", "blocks, then time", "payee waits for neither"} {
			t.Run(end+": "+how, func(t *testing.T) {
				w := newGov(t, 3)
				o := w.openTab(1, 2, 50)
				if end == "closed" {
					w.must(1, &tx.TabClose{Tab: o.Tab, Epoch: o.Epoch})
					w.refuse(CodeState, 1, &tx.TabClose{Tab: o.Tab, Epoch: o.Epoch})
				} else {
					w.height += 1000
					w.block(60 * day) // the chain stood still: the window begins when it wakes
				}
				w.refuse(CodeState, 1, &tx.TabTopUp{Tab: o.Tab, Epoch: o.Epoch, Amount: 1})
				w.refuse(CodeState, 1, &tx.TabRenew{Tab: o.Tab, Epoch: o.Epoch, Expiry: w.now + 30*day})
				w.refuse(CodeExists, 1, &tx.TabOpen{Payee: govKey(2), Earmark: 1, Expiry: w.now + day})
				w.must(3, claim(w.voucher(o, 11, 10)))
				switch how {
				case "time, then blocks":
					w.block(8 * day)
					before := w.store.Clone()
					w.block(day) // a block in which nothing falls due
					if k, same := before.Equal(w.store); !same {
						t.Errorf("an empty block changed %q", k)
					}
					w.must(3, claim(w.voucher(o, 11, 20)))
					w.height += 100
				case "blocks, then time":
					w.height += 1000
					w.block(6 * day)
					w.must(3, claim(w.voucher(o, 11, 20)))
					w.now += day
				default:
					w.block(8 * day) // it waits for its block now
					w.must(3, claim(w.voucher(o, 11, 20)))
					w.must(2, &tx.TabClose{Tab: o.Tab, Epoch: o.Epoch})
				}
				w.block(1)
				w.refuse(CodeUnknown, 3, claim(w.voucher(o, 11, 30)))
				w.balances(-20, 20, 0)
				if a, _ := w.m.Account(govKey(1)); a.Tabs != 0 {
					t.Errorf("%+v", a)
				}
			})
		}
	}
}

// Vouchers are paid each by itself, in order.
func TestBatchClaim(t *testing.T) {
	w := newGov(t, 4)
	a, b := w.openTab(1, 2, 50), w.openTab(3, 2, 50)
	data := w.must(4, claim(w.voucher(a, 11, 10), w.voucher(a, 12, 20), w.voucher(b, 13, 70), w.voucher(a, 11, 5), w.voucher(a, 11, 30), w.voucher(b, 13, 80), [tx.VoucherLen]byte{}))
	got, err := tx.ParseClaimed(data)
	want := []tx.Claimed{{Paid: 10}, {Code: uint32(CodeSig)}, {Paid: 50}, {Code: uint32(CodeState)}, {Paid: 20}, {Code: uint32(CodeFunds)}, {Code: uint32(CodeMalform)}}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Error(d, err)
	}
	w.balances(-50, 80, -50, 0)
	w.refuse(CodeState, 4, claim(w.voucher(a, 11, 30), w.voucher(a, 12, 50)))
	w.balances(-50, 80, -50, 0)
	many := make([][tx.VoucherLen]byte, tx.MaxClaims)
	for i := range many {
		many[i] = w.voucher(a, 11, int64(31+i))
	}
	if raw := w.sign(4, claim(many...)); len(raw) > tx.MaxLen {
		t.Errorf("%d bytes", len(raw))
	}
	w.must(4, claim(many...))
	w.balances(-50, 100, -50, 0)
}

// A tab is its members', whatever becomes of their keys and their standing; its vouchers are of the signer that was named.
func TestTabsOutliveKeysAndStanding(t *testing.T) {
	w := newGov(t, 6)
	o := w.openTab(1, 2, 50)
	w.must(3, &tx.TabOpen{Payee: govKey(2), Earmark: 50, Expiry: w.now + 29*day}) // member 3 signs itself
	pays, _ := w.m.Tabs(3)
	own := tx.Opened{Tab: pays[0].ID, Epoch: pays[0].Epoch}
	// Members 1, 2 and 3 get new keys.
	for i := 1; i <= 3; i++ {
		r := w.rekey(uint64(i), i, 50+i)
		for _, v := range []int{4, 5, 6} {
			w.must(v, &r)
		}
	}
	w.pass(8 * day)
	if mb := w.member(1); mb.Key != govKey(51) {
		t.Fatalf("%+v", mb)
	}
	w.must(4, claim(w.voucher(o, 11, 10)))
	w.must(52, claim(w.voucher(own, 3, 10)))
	w.refuse(CodeSig, 52, claim(w.voucher(own, 53, 20))) // the new key did not sign this epoch's vouchers
	w.refuse(CodeForbid, 1, &tx.TabClose{Tab: o.Tab, Epoch: o.Epoch})
	w.must(51, &tx.TabTopUp{Tab: o.Tab, Epoch: o.Epoch, Amount: 10})
	w.must(4, &tx.Transfer{To: govKey(2), Amount: 5}) // the old key is an address still
	if a, _ := w.m.Account(govKey(2)); a.Balance != 25 {
		t.Errorf("%+v", a)
	}
	// The payer is suspended: no new tabs, but the old one pays.
	if g := w.decide(&tx.ActStanding{Member: 1, Step: tx.Suspend, Days: 30}, 4, 5, 6, 52, 53); g.Stage != Done {
		t.Fatalf("%+v", g)
	}
	w.refuse(CodeState, 51, &tx.TabOpen{Payee: govKey(4), Earmark: 1, Expiry: w.now + day})
	w.refuse(CodeState, 51, &tx.TabTopUp{Tab: o.Tab, Epoch: o.Epoch, Amount: 1})
	w.must(4, claim(w.voucher(o, 11, 30)))
	w.must(52, &tx.TabClose{Tab: o.Tab, Epoch: o.Epoch})
	// Who goes pays to the end, and gets the rest.
	o = w.openTab(4, 52, 7)
	w.must(5, &tx.Transfer{To: govKey(4), Amount: 12})
	w.refuse(CodeState, 4, &tx.Leave{}) // his account is at zero, but the tab is not settled
	if g := w.decide(&tx.ActStanding{Member: 4, Step: tx.Expel}, 5, 6, 52, 53); g.Stage != Done {
		t.Fatalf("%+v", g)
	}
	w.must(6, claim(w.voucher(o, 14, 5)))
	w.pass(20 * day)
	w.height += 100
	w.pass(8 * day)
	w.block(1)
	if a, _ := w.m.Account(govKey(4)); a.Balance != 2 || a.Tabs != 0 {
		t.Errorf("%+v", a)
	}
	w.must(4, &tx.Transfer{To: govKey(5), Amount: 2})
	w.refuse(CodeState, 5, &tx.TabOpen{Payee: govKey(4), Earmark: 1, Expiry: w.now + day})
}

func TestNames(t *testing.T) {
	w := newGov(t, 3, "name.each=2", "tx.each=10000")
	reg := func(s string) *tx.NameRegister { return &tx.NameRegister{Label: s, Node: govKey(20)} }
	for _, s := range []string{"", "a", "-a", "a-", "a--b", "Bakery", "bäckerei", "a.b", "a_b", "12", "007", strings.Repeat("a", 64), "xn--abc", "gateway", "g4teway\n", "rnail", "rnesh", "1ocal-h0st", "dn5", "a b", "\x00a"} {
		if tx.Check(reg(s)) != nil {
			continue
		}
		w.refuse(CodeValue, 1, reg(s))
	}
	w.must(1, reg("bakery"))
	w.refuse(CodeExists, 1, reg("bakery"))
	for _, s := range []string{"bakery", "bake-ry"} {
		w.refuse(CodeExists, 2, reg(s))
	}
	w.must(1, reg("corner-1"))
	w.refuse(CodeExists, 2, reg("comer1"))
	w.refuse(CodeExists, 2, reg("cornerl"))
	w.refuse(CodeTooMany, 1, reg("third"))
	w.refuse(CodeValue, 1, &tx.NameSet{Label: "bakery"}) // no key
	w.must(1, &tx.NameSet{Label: "bakery", Node: govKey(21)})
	w.refuse(CodeForbid, 2, &tx.NameSet{Label: "bakery", Node: govKey(22)})
	w.refuse(CodeUnknown, 2, &tx.NameSet{Label: "nobody", Node: govKey(22)})
	if k, ok := w.m.Resolve("bakery", w.now); !ok || k != govKey(21) {
		t.Error(k, ok)
	}
	// Handing on: offered, taken back, offered, taken.
	w.refuse(CodeUnknown, 1, &tx.NameOffer{Label: "bakery", To: 9})
	w.refuse(CodeValue, 1, &tx.NameOffer{Label: "bakery", To: 1})
	w.must(1, &tx.NameOffer{Label: "bakery", To: 2})
	w.refuse(CodeExists, 3, reg("bakery"))
	w.must(1, &tx.NameOffer{Label: "bakery"})
	w.refuse(CodeExists, 2, reg("bakery"))
	w.must(1, &tx.NameOffer{Label: "bakery", To: 2})
	w.must(2, reg("bakery"))
	w.refuse(CodeForbid, 1, &tx.NameRenew{Label: "bakery"})
	w.must(1, reg("third"))
	w.must(1, &tx.NameRelease{Label: "third"})
	w.must(3, reg("third"))
	// Time: a name that is not renewed leads nowhere, then it is free.
	w.block(300 * day)
	w.must(2, &tx.NameRenew{Label: "bakery"})
	w.block(70 * day)
	if _, ok := w.m.Resolve("third", w.now); ok {
		t.Error("a name that has run out leads somewhere")
	}
	w.refuse(CodeExists, 2, reg("third"))
	w.must(3, &tx.NameRenew{Label: "third"})
	if _, ok := w.m.Resolve("third", w.now); !ok {
		t.Error("a name that was renewed leads nowhere")
	}
	w.block(30 * day)
	if n := len(w.m.Names()); n != 2 {
		t.Errorf("%d names", n)
	}
	w.must(1, reg("comer1"))
	w.must(1, reg("fourth"))
	w.refuse(CodeTooMany, 1, reg("fifth"))
}

func TestNodes(t *testing.T) {
	w := newGov(t, 3, "node.each=2", "tx.each=10000")
	word := func(member uint64, node int) ident.Signature {
		return govAgent(node).Sign(tx.NodeDomain, tx.NodeMessage(govChain, member, govKey(node)))
	}
	reg := func(node int, word ident.Signature) *tx.NodeRegister {
		return &tx.NodeRegister{Node: govKey(node), Roles: tx.RoleGateway, Price: 100_000, Terms: "be fair", Contact: "ring the bell", Until: w.now + 100*day, Word: word}
	}
	w.refuse(CodeSig, 1, reg(20, ident.Signature{}))
	w.refuse(CodeSig, 1, reg(20, word(2, 20)))
	late := reg(20, word(1, 20))
	late.Until = w.now
	w.refuse(CodeValue, 1, late)
	late.Until = w.now + 400*day
	w.refuse(CodeValue, 1, late)
	dear := reg(20, word(1, 20))
	dear.Price = 1_000_001
	w.refuse(CodeValue, 1, dear)
	w.must(1, reg(20, word(1, 20)))
	w.refuse(CodeExists, 2, reg(20, word(2, 20)))
	w.refuse(CodeForbid, 2, &tx.NodeRemove{Node: govKey(20)})
	w.must(1, reg(1, ident.Signature{})) // the member's own key is a node too
	w.refuse(CodeTooMany, 1, reg(21, word(1, 21)))
	w.refuse(CodeUnknown, 1, &tx.NodeRemove{Node: govKey(21)})
	w.must(1, &tx.NodeRemove{Node: govKey(1)})
	w.block(90 * day)
	cheap := reg(20, ident.Signature{}) // agreed once
	cheap.Price = 1
	w.must(1, cheap)
	w.block(99 * day)
	if n, ok := w.m.Node(govKey(20)); !ok || n.Price != 1 || n.Member != 1 || len(w.m.Registrations()) != 1 {
		t.Errorf("%+v", n)
	}
	w.block(2 * day)
	if len(w.m.Registrations()) != 0 {
		t.Error("a registration lives for ever")
	}

	// Revocations.
	revoked := func(node int) ident.Signature {
		return govAgent(node).Sign(tx.RevokeDomain, tx.RevokeMessage(govChain, govKey(node)))
	}
	w.must(2, reg(20, word(2, 20)))
	w.must(3, &tx.NameRegister{Label: "bakery", Node: govKey(20)})
	w.refuse(CodeSig, 1, &tx.NodeRevoke{Node: govKey(20)})
	w.refuse(CodeSig, 1, &tx.NodeRevoke{Node: govKey(20), Word: revoked(21)})
	w.refuse(CodeState, 1, &tx.NodeRevoke{Node: govKey(1), Word: revoked(1)})
	w.refuse(CodeState, 2, &tx.NodeRevoke{Node: govKey(1), Word: revoked(1)})
	w.must(2, &tx.NodeRevoke{Node: govKey(20), Reason: "stolen"})
	w.refuse(CodeExists, 2, &tx.NodeRevoke{Node: govKey(20)})
	w.refuse(CodeState, 2, reg(20, word(2, 20)))
	w.refuse(CodeState, 3, &tx.NameSet{Label: "bakery", Node: govKey(20)})
	if _, ok := w.m.Resolve("bakery", w.now); ok {
		t.Error("a name leads to a revoked key")
	}
	w.must(1, &tx.NodeRevoke{Node: govKey(22), Word: revoked(22)})
	if l := w.m.Revocations(); len(l) != 2 {
		t.Errorf("%+v", l)
	}
	if _, ok := w.m.Node(govKey(20)); ok {
		t.Error("a revoked node is registered")
	}
}

// A registered node sends claims by itself, with an account that comes and goes with the registration; its nonces never come back.
func TestNodesClaim(t *testing.T) {
	w := newGov(t, 3)
	reg := func() *tx.NodeRegister {
		return &tx.NodeRegister{Node: govKey(20), Until: w.now + 100*day, Word: govAgent(20).Sign(tx.NodeDomain, tx.NodeMessage(govChain, 2, govKey(20)))}
	}
	o := w.openTab(1, 2, 50)
	w.refuse(CodeForbid, 20, claim(w.voucher(o, 11, 5)))
	w.must(2, reg())
	w.must(20, claim(w.voucher(o, 11, 10)))
	old := w.sign(20, claim(w.voucher(o, 11, 20)))
	w.must(20, claim(w.voucher(o, 11, 15)))
	w.refuse(CodeFunds, 20, &tx.Transfer{To: govKey(3), Amount: 1})
	w.must(2, &tx.NodeRemove{Node: govKey(20)})
	w.block(13 * day)
	w.must(2, reg())
	if r := w.block(1, old).Results[0]; r.Code == OK {
		t.Errorf("%+v", r)
	}
	w.must(20, claim(w.voucher(o, 11, 20)))
	w.block(15 * day)
	w.must(2, &tx.NodeRemove{Node: govKey(20)})
	w.refuse(CodeForbid, 20, claim(w.voucher(o, 11, 30)))
	if _, ok := w.m.Account(govKey(20)); ok {
		t.Error("the account of a node stays for ever")
	}
	w.balances(-50, 20, 0)
	// One that has money stays.
	w.must(2, reg())
	w.must(2, &tx.Transfer{To: govKey(20), Amount: 3})
	w.must(2, &tx.NodeRemove{Node: govKey(20)})
	w.must(20, &tx.Transfer{To: govKey(2), Amount: 3})
}

// A proposer cannot put into a block what would waste everybody's time.
func TestCheckBlock(t *testing.T) {
	w := newGov(t, 3, "tx.each=5")
	nonce := map[int]uint64{}
	next := func(i int, b tx.Body) []byte {
		nonce[i]++
		raw, err := tx.Tx{Chain: govChain, Nonce: nonce[i], Expiry: w.now + 60, Body: b}.Sign(govAgent(i))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	var l [][]byte
	for range 5 {
		l = append(l, next(1, &tx.Transfer{To: govKey(2), Amount: 1000})) // each of them fails, and none is the proposer's fault
	}
	h := Header{Height: 1, Time: w.now + 1}
	check := func(txs ...[]byte) Code {
		err := w.m.CheckBlock(h, txs)
		if err == nil {
			return OK
		}
		var e *Error
		if !errors.As(err, &e) {
			t.Fatal(err)
		}
		return e.Code
	}
	sixth := next(1, &tx.Transfer{To: govKey(2), Amount: 1})
	forged := bytes.Clone(l[0])
	forged[len(forged)-1] ^= 1
	for _, c := range []struct {
		name string
		txs  [][]byte
		want Code
	}{
		{"empty", nil, OK},
		{"good", l, OK},
		{"too many of one sender", append(l[:5:5], sixth), CodeRate},
		{"one twice", [][]byte{l[0], l[1], l[0]}, CodeNonce},
		{"out of order", [][]byte{l[1], l[0]}, CodeNonce},
		{"a gap", [][]byte{l[0], l[2]}, CodeNonce},
		{"forged", [][]byte{forged}, CodeSig},
		{"junk", [][]byte{{1, 2, 3}}, CodeMalform},
		{"a stranger's", [][]byte{next(77, &tx.Leave{})}, CodeForbid},
	} {
		if got := check(c.txs...); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	if got := w.m.Propose(h, [][]byte{forged, l[1], l[0], l[0], l[1], {9}, l[2]}, MaxBlockBytes); len(got) != 3 || check(got...) != OK {
		t.Errorf("%d proposed", len(got))
	}
	if got := w.m.Propose(h, l, 2*len(l[0])+1); len(got) != 2 {
		t.Errorf("%d fit", len(got))
	}

	// The whole block is bounded too.
	w = newGov(t, 3, "tx.each=10000")
	o := tx.Opened{Epoch: 1}
	many := make([][tx.VoucherLen]byte, tx.MaxClaims)
	for i := range many {
		many[i] = w.voucher(o, 11, 1)
	}
	nonce, l = map[int]uint64{}, nil
	for range MaxBlockCost/(1+tx.MaxClaims) + 1 {
		l = append(l, next(1, claim(many...)))
	}
	if check(l...) != CodeTooMany || check(l[1:]...) != CodeNonce || check(l[:len(l)-1]...) != OK {
		t.Error("the work of a block is not bounded")
	}
	if got := w.m.Propose(h, l, MaxBlockBytes); len(got) != len(l)-1 {
		t.Errorf("%d of %d", len(got), len(l))
	}
}

// Nothing that comes in a block makes the ledger panic, break an invariant, or differ between machines.
func FuzzDeliver(f *testing.F) {
	w := newGov(f, 3)
	o := w.openTab(1, 2, 50)
	for _, b := range []tx.Body{&tx.Transfer{To: govKey(2), Amount: 5}, claim(w.voucher(o, 11, 20)), &tx.TabClose{Tab: o.Tab, Epoch: o.Epoch},
		&tx.TabOpen{Payee: govKey(3), Earmark: 5, Expiry: w.now + day}, &tx.TabTopUp{Tab: o.Tab, Epoch: o.Epoch, Amount: 3}, &tx.TabRenew{Tab: o.Tab, Epoch: o.Epoch, Expiry: w.now + 25*day},
		&tx.NameRegister{Label: "bakery", Node: govKey(9)}, &tx.NameOffer{Label: "bakery", To: 2}, &tx.NodeRevoke{Node: govKey(9)}, &tx.NodeRegister{Node: govKey(1), Until: w.now + day}} {
		f.Add(uint16(b.Kind()), tx.Encode(b), int64(1), []byte(nil))
		f.Add(uint16(b.Kind()), tx.Encode(b), int64(40*day), w.sign(1, b))
	}
	base := w.store
	f.Fuzz(func(t *testing.T, kind uint16, body []byte, seconds int64, raw []byte) {
		// One transaction as it came, and one that is well signed, so that handlers are reached.
		txs := [][]byte{raw}
		if b := tx.New(tx.Kind(kind)); b != nil && tx.Decode(body, b) == nil {
			var a Account
			load(base, accountKey(govKey(1)), &a)
			if signed, err := (tx.Tx{Chain: govChain, Nonce: a.Nonce + 1, Expiry: w.now + 2*day, Body: b}).Sign(govAgent(1)); err == nil {
				txs = append(txs, signed)
			}
		}
		seconds = min(max(seconds, 0), 1000*day)
		var stores [2]*Mem
		for i := range stores {
			stores[i] = base.Clone()
			m, _ := New(stores[i])
			m.Strict = true
			h := Header{Height: w.height + 1, Time: w.now + min(seconds, day)}
			if got := m.Propose(h, txs, MaxBlockBytes); m.CheckBlock(h, got) != nil {
				t.Error("an honest proposal is refused")
			}
			for _, raw := range txs {
				m.Pool(h).Take(raw)
			}
			m.Block(h, txs)
			m.Block(Header{Height: h.Height + 1, Time: h.Time + seconds}, nil)
		}
		if k, same := stores[0].Equal(stores[1]); !same {
			t.Errorf("two machines disagree at %q", k)
		}
	})
}
