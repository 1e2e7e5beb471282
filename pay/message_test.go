package pay

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"weft/ident"
	"weft/ledger/tx"
)

var update = flag.Bool("update", false, "write the vectors anew")

// vectors are in docs/spec/pay.md too. Keys are of the seeds 00…00 and 01…01.
func vectors(t testing.TB) map[string]Message {
	a, err := ident.FromSeed(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	b, err := ident.FromSeed(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	q := &Quote{Service: Internet, Price: 104_858, Seller: a.Public(), Account: b.Public(), Seq: 7, FreeKbit: 512, Exposure: 50_000_000, From: 1_800_000_000, Until: 1_800_086_400}
	q.sign(a)
	chain := tx.ChainOf("vector-1")
	tab := tx.TabIDOf(chain, b.Public(), b.Public(), TabNumber(a.Public(), Internet))
	mark := Mark{Epoch: 1, Sent: 2, Recv: 3, Beacon: 4}
	v, err := tx.Voucher{Chain: chain, Tab: tab, Epoch: 9, Seq: 3, Amount: 104_858, Bytes: 1 << 20, Quote: q.ID(), Meter: mark.Hash()}.Sign(b)
	if err != nil {
		t.Fatal(err)
	}
	r := &Receipt{Service: Internet, Tab: tab, Epoch: 9, Seq: 3, Amount: 104_858, Bytes: 1 << 20, Time: 1_800_000_100, Meter: [8]byte(v.Meter[:8])}
	r.Sig = a.Sign(ReceiptDomain, r.body())
	return map[string]Message{
		"voucher": &VoucherMessage{v}, "quote": q, "receipt": r,
		"status": &DebtStatus{Service: Internet, State: Due, Asks: AskTopUp | AskRenew, Tab: tab, Epoch: 9, FreeKbit: 512, Seq: 3, Signed: 104_858, Owed: -5, Exposure: 8 << 20, Bytes: 99, Quote: q.ID(), Number: 4},
		"anchor": &TabAnchor{Service: Carriage, Parts: 2, Number: 1, Len: 1027, ID: 6, Data: []byte("abc")},
		"ask":    &Ask{Internet},
	}
}

func TestVectors(t *testing.T) {
	path := filepath.Join("testdata", "vectors.txt")
	order := []string{"voucher", "quote", "status", "receipt", "anchor", "ask"}
	all := vectors(t)
	var b strings.Builder
	for _, name := range order {
		b.WriteString(name + " " + hex.EncodeToString(all[name].AppendTo(nil)) + "\n")
	}
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("the vectors are\n%s", b.String())
	}
	spec, err := os.ReadFile("../docs/spec/pay.md")
	if err != nil {
		t.Fatal(err)
	}
	flat := strings.Join(strings.Fields(string(spec)), "")
	for _, line := range strings.Split(strings.TrimSpace(string(want)), "\n") {
		name, h, _ := strings.Cut(line, " ")
		if !strings.Contains(flat, h) {
			t.Errorf("the vector of %s is not in docs/spec/pay.md", name)
		}
		raw, err := hex.DecodeString(h)
		if err != nil {
			t.Fatal(err)
		}
		m, err := ParseMessage(raw)
		if err != nil || !bytes.Equal(m.AppendTo(nil), raw) {
			t.Errorf("%s: %v", name, err)
		}
	}
	q, r := all["quote"].(*Quote), all["receipt"].(*Receipt)
	if !q.Verify() || !r.Verify(q.Seller) {
		t.Error("signatures")
	}
	q.Price++
	r.Amount++
	if q.Verify() || r.Verify(q.Seller) {
		t.Error("signatures of something else")
	}
}

// Whatever is spoilt in a message is refused, or another message that encodes to the same bytes.
func TestRefuses(t *testing.T) {
	for name, m := range vectors(t) {
		good := m.AppendTo(nil)
		for cut := range good {
			if cut > partHead && name == "anchor" {
				continue
			}
			if _, err := ParseMessage(good[:cut]); err == nil {
				t.Errorf("%s: %d bytes of it", name, cut)
			}
		}
		if _, err := ParseMessage(append(good, 0)); err == nil {
			t.Errorf("%s: a byte too many", name)
		}
		for i := range good {
			for _, x := range []byte{1, 0x80, 0xff} {
				bad := bytes.Clone(good)
				bad[i] ^= x
				if m, err := ParseMessage(bad); err == nil && !bytes.Equal(m.AppendTo(nil), bad) {
					t.Errorf("%s, byte %d: not canonical", name, i)
				}
			}
		}
	}
}

func FuzzParseMessage(f *testing.F) {
	for _, m := range vectors(f) {
		f.Add(m.AppendTo(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMessage(b)
		if err != nil {
			return
		}
		if got := m.AppendTo(nil); !bytes.Equal(got, b) {
			t.Errorf("%x became %x", b, got)
		}
	})
}

// FuzzHandle gives a node in business whatever a peer may send: it never panics, and nothing unsigned becomes money.
func FuzzHandle(f *testing.F) {
	for _, m := range vectors(f) {
		f.Add(m.AppendTo(nil), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, payee bool) {
		w := newWorld(t)
		user, gw := w.add(), w.add()
		fl := w.flow(user, gw, Internet, 1_000_000)
		w.run(10 * step)
		before := fl.promised()
		if payee {
			gw.pay.Handle(w.now, user.key, b)
			gw.pay.Tick(w.now)
			if fl.promised() != before {
				t.Errorf("promised %d, was %d", fl.promised(), before)
			}
		} else {
			user.pay.Handle(w.now, gw.key, b)
			user.pay.Tick(w.now)
		}
		w.run(4 * step)
	})
}

// FuzzRecords: what a damaged file may hold is an error, never a panic.
func FuzzRecords(f *testing.F) {
	w := newWorld(f)
	user, gw := w.add(), w.add()
	w.flow(user, gw, Internet, 1_000_000)
	w.run(120 * step)
	for _, p := range w.peers {
		for k, v := range p.store.m {
			f.Add([]byte(k), v)
		}
	}
	f.Fuzz(func(t *testing.T, k, v []byte) {
		load := func(k, v []byte) (l []Entry, err error) {
			p := &Pay{cfg: Config{Store: &memory{m: map[string][]byte{string(k): v}}}, credits: map[ID]*credit{}, debits: map[ID]*debit{}, old: map[tabKey]*held{}, spent: months{}}
			if err := p.load(); err != nil {
				return nil, err
			}
			for _, c := range p.credits {
				l = append(l, c.entry())
			}
			for _, d := range p.debits {
				l = append(l, d.entry())
			}
			for _, h := range p.old {
				l = append(l, h.entry())
			}
			return l, nil
		}
		l, err := load(k, v)
		if err != nil {
			return
		}
		for _, e := range l { // what was taken stays as it is from then on
			if again, err := load(e.Key, e.Value); err != nil || len(again) != 1 || !bytes.Equal(again[0].Value, e.Value) {
				t.Errorf("%x became %x, then %x, %v", v, e.Value, again, err)
			}
		}
	})
}

func TestCost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		price := rapid.Uint32().Draw(t, "price")
		var c charge
		var sum uint64
		for _, n := range rapid.SliceOfN(rapid.Uint64Range(0, 1<<40), 0, 20).Draw(t, "bytes") {
			c.add(n, price)
			sum += n
		}
		if got := Cost(sum, price); got != c.Amount {
			t.Fatalf("%d in pieces, %d at once", c.Amount, got)
		}
	})
	if Cost(1<<60, 1<<31) != tx.MaxAmount || Cost(1<<20, 7) != 7 || Cost(1<<20-1, 1) != 0 {
		t.Error("bounds")
	}
}

func TestCarried(t *testing.T) {
	var c Carried
	c.Add(1, nil)
	hauls := []Haul{{Dest: 1, Sent: 1000, Recv: 100, Relays: 2, Delivered: 1000}, {Dest: 2, Sent: 1000, Relays: 1, Delivered: 500}, {Dest: 3, Sent: 9999, Relays: 0, Delivered: 1000}}
	if s, r := c.Add(1, hauls); s != 2500 || r != 200 {
		t.Errorf("%d and %d", s, r)
	}
	hauls[0].Sent, hauls[0].Relays = 1500, 1 // the way is shorter now: only what comes later counts once
	if s, r := c.Add(1, hauls); s != 3000 || r != 200 {
		t.Errorf("%d and %d", s, r)
	}
	if s, r := c.Add(2, hauls[:1]); s != 4500 || r != 300 { // another life of the link
		t.Errorf("%d and %d", s, r)
	}
	hauls[0].Sent = 10 // counters do not go back within an epoch; nothing is subtracted if they do
	if s, _ := c.Add(2, hauls[:1]); s != 4500 {
		t.Errorf("%d", s)
	}
}
