package pay

import (
	"bytes"
	"fmt"
	"maps"
	"testing"
	"time"

	"weft/ident"
	"weft/ledger/tx"
)

// open lets two nodes do business until there is a tab with vouchers.
func (w *world) open(f *flow) {
	w.t.Helper()
	w.run(time.Minute)
	if c := f.credit(); c.state != Open || f.promised() == 0 {
		w.t.Fatalf("state %s, promised %d", c.state, f.promised())
	}
}

// checkPayer holds what a payer has signed against its own meter.
func (f *flow) checkPayer(own uint64) {
	f.payer.w.t.Helper()
	if got, most := f.debit().Signed, Cost(own+Gap(own), f.payee.price[f.service]); got > most {
		f.payer.w.t.Errorf("signed %d, the bound is %d", got, most)
	}
}

// A gateway bills twice what it carried. The user pays what its own meter says and the gap.
func TestOverBilling(t *testing.T) {
	w := newWorld(t)
	user, gw := w.add(), w.add()
	f := w.flow(user, gw, Internet, 1_250_000)
	var own uint64
	f.lie = func(n uint64) (uint64, uint64) { own += n; return n, 2 * n }
	w.run(10 * time.Minute)
	f.checkPayer(own)
	if f.debit().Signed < Cost(own/2, testPrice) {
		t.Errorf("signed %d of %d", f.debit().Signed, Cost(own, testPrice))
	}
	user.mustAudit() // it is the gateway's books that do not hold
	// Once the meter has noticed, not even the gap.
	user.meter.of(ID{gw.key, Internet}, Payer).Gap = true
	f.payee.pay.credits[ID{user.key, Internet}].Late = false
	before := f.debit().Signed - Cost(own, testPrice)
	w.run(10 * time.Minute)
	if over := f.debit().Signed - Cost(own, testPrice); over > max(before, 0) {
		t.Errorf("%d beyond the own meter, %d before the meter noticed", over, before)
	}
}

// A gap that was paid at a price is no fault in the books when the price falls.
func TestOverBillingBeforeFall(t *testing.T) {
	w := newWorld(t)
	user, gw := w.add(), w.add()
	f := w.flow(user, gw, Internet, 1_250_000)
	f.lie = func(n uint64) (uint64, uint64) { return n, 2 * n }
	w.run(time.Minute)
	gw.price[Internet] = testPrice / 10
	f.rate = 0
	w.run(2 * time.Minute)
	if q := f.debit().Quote; q.Price != testPrice/10 {
		t.Fatalf("the price is %d", q.Price)
	}
	user.mustAudit()
}

// A gateway that sends claims of its own making, each as high as can be, and quotes of all sorts.
func TestForgedClaims(t *testing.T) {
	w := newWorld(t)
	user, gw := w.add(), w.add()
	f := w.flow(user, gw, Internet, 1_250_000)
	w.open(f)
	gw.filter = func(_ *peer, b []byte) []byte {
		if m, err := ParseMessage(b); err == nil {
			if s, ok := m.(*DebtStatus); ok {
				s.Owed, s.Exposure, s.State, s.Bytes = tx.MaxAmount, 0, Throttled, maxBytes
				return s.AppendTo(nil)
			}
		}
		return b
	}
	vouchers := f.debit().Voucher.Seq
	f.eager = true
	w.run(5 * time.Minute)
	f.checkPayer(f.full + f.slow)
	if n := f.debit().Voucher.Seq - vouchers; n > 5*60*2 {
		t.Errorf("%d vouchers in 5 minutes", n)
	}
	dear := Quote{Service: Internet, Price: testPrice * 3 / 2, Seller: gw.key, Account: gw.key, Seq: 1 << 40, From: w.now.Unix(), Until: w.now.Unix() + 1000}
	dear.sign(gw.a)
	user.pay.Handle(w.now, gw.key, dear.AppendTo(nil))
	gw.filter = func(_ *peer, b []byte) []byte {
		if m, err := ParseMessage(b); err == nil {
			if s, ok := m.(*DebtStatus); ok {
				s.Quote = dear.ID()
				return s.AppendTo(nil)
			}
		}
		return b
	}
	before := f.full + f.slow
	w.run(50 * time.Second)
	f.checkPayer(f.full + f.slow)
	if q := f.debit().Quote; q.Price != testPrice {
		t.Errorf("a price without notice: %d", q.Price)
	}
	_ = before
	// Others' quotes are nobody's.
	other := agent(t, 99)
	bad := dear
	bad.Seller, bad.Seq = other.Public(), 1<<41
	bad.sign(other)
	refused := user.pay.View(w.now).Counts.Refused
	user.pay.Handle(w.now, gw.key, bad.AppendTo(nil))
	bad.Seller = gw.key
	user.pay.Handle(w.now, gw.key, bad.AppendTo(nil))
	if got := user.pay.View(w.now).Counts.Refused; got != refused+2 {
		t.Errorf("%d refused, want %d", got, refused+2)
	}
}

// A user's meter says half of what it got. The gateway serves until the debt is E, then the free tier.
func TestUnderReporting(t *testing.T) {
	w := newWorld(t)
	user, gw := w.add(), w.add()
	f := w.flow(user, gw, Internet, 12_500_000)
	f.lie = func(n uint64) (uint64, uint64) { return n / 2, n }
	w.run(10 * time.Minute)
	f.checkPayee(50<<20, w.tar.Trust)
	if f.throttledFor < 5*time.Minute {
		t.Errorf("throttled for %v only", f.throttledFor)
	}
	// Seen by the meter, it is throttled whatever it owes.
	w2 := newWorld(t)
	user, gw = w2.add(), w2.add()
	f = w2.flow(user, gw, Internet, 1_250_000)
	w2.open(f)
	gw.meter.of(ID{user.key, Internet}, Payee).Gap = true
	w2.run(5 * time.Second)
	if v := gw.pay.Verdict(ID{user.key, Internet}); v != (Verdict{true, w2.tar.FreeKbit}) {
		t.Errorf("verdict %+v while the meters differ", v)
	}
	gw.meter.of(ID{user.key, Internet}, Payee).Gap = false
	w2.run(5 * time.Second)
	if v := gw.pay.Verdict(ID{user.key, Internet}); v.FreeTier {
		t.Errorf("verdict %+v when they agree again", v)
	}
}

// Never-signers: without a tab T is the bound; with one, E. Beside it another user pays, and notices nothing.
func TestNeverSigner(t *testing.T) {
	for _, rate := range []uint64{125_000, 1_250_000, 12_500_000, 125_000_000} {
		w := newWorld(t)
		thief, honest, gw := w.add(), w.add(), w.add()
		gw.rate = rate
		f, g := w.flow(thief, gw, Internet, rate), w.flow(honest, gw, Internet, 1_250_000)
		w.open(g)
		w.open(f)
		thief.filter = func(_ *peer, b []byte) []byte {
			if b[0] == typeVoucher {
				return nil
			}
			return b
		}
		w.run(20 * time.Minute)
		f.checkPayee(min(max(4*rate, 8<<20), 256<<20), 0)
		if rate > 200_000 && f.throttledFor < 10*time.Minute {
			t.Errorf("at %d bytes/s: throttled for %v only", rate, f.throttledFor)
		}
		if g.slow != 0 {
			t.Errorf("the other was throttled: %d bytes", g.slow)
		}
		// One that never had a tab.
		w = newWorld(t)
		thief, gw = w.add(), w.add()
		gw.rate = rate
		f = w.flow(thief, gw, Internet, rate)
		thief.silent = true
		w.run(40 * time.Minute)
		f.checkPayee(0, w.tar.Trust)
		// It pays in the end: at once everything is as before.
		thief.silent = false
		w.run(30 * time.Second)
		if s := f.credit().state; s != Open && s != Due && s != Grace {
			t.Errorf("state %s after all was paid", s)
		}
	}
}

// Newcomers that nobody vouches for get the free tier, however many they are, and nothing is owed.
func TestSybils(t *testing.T) {
	w := newWorld(t)
	gw := w.add()
	var flows []*flow
	for range 20 {
		s := w.add()
		s.guest, s.silent = true, true
		flows = append(flows, w.flow(s, gw, Internet, 12_500_000))
	}
	w.run(2 * time.Minute)
	var full uint64
	for _, f := range flows {
		full += f.full
		if v := gw.verdicts[ID{f.payer.key, Internet}]; v != (Verdict{true, w.tar.GuestKbit}) {
			t.Errorf("verdict %+v", v)
		}
	}
	if most := uint64(20 * 12_500_000 * 2); full > most {
		t.Errorf("%d bytes at the full rate", full)
	}
	if n := len(gw.store.m); n > 1+20 {
		t.Errorf("%d records", n)
	}
}

// Vouchers that are old, of another tab, epoch or chain, by another key, not rising, or for another node of the same member: none
// counts.
func TestReplay(t *testing.T) {
	w := newWorld(t)
	user, gw := w.add(), w.add()
	f := w.flow(user, gw, Internet, 1_250_000)
	w.open(f)
	f.rate = 0
	w.run(15 * time.Second)
	c, v := f.credit(), f.credit().Tab.Voucher
	before, amount := f.promised(), v.Amount
	sign := func(change func(*tx.Voucher), a *ident.Agent) []byte {
		n := v
		n.Seq, n.Amount, n.Bytes = v.Seq+10, v.Amount+1000, v.Bytes+1000
		change(&n)
		n, err := n.Sign(a)
		if err != nil {
			t.Fatal(err)
		}
		b := n.Encode()
		return b[:]
	}
	same := v.Encode()
	bad := map[string][]byte{
		"the same":       same[:],
		"older":          sign(func(n *tx.Voucher) { n.Seq = v.Seq - 1 }, user.a),
		"less":           sign(func(n *tx.Voucher) { n.Amount = amount - 1 }, user.a),
		"fewer bytes":    sign(func(n *tx.Voucher) { n.Bytes = v.Bytes - 1 }, user.a),
		"other epoch":    sign(func(n *tx.Voucher) { n.Epoch++ }, user.a),
		"other tab":      sign(func(n *tx.Voucher) { n.Tab[3]++ }, user.a),
		"other chain":    sign(func(n *tx.Voucher) { n.Chain[0]++ }, user.a),
		"other signer":   sign(func(*tx.Voucher) {}, gw.a),
		"spoilt":         func() []byte { b := sign(func(*tx.Voucher) {}, user.a); b[60] ^= 1; return b }(),
		"from elsewhere": nil,
	}
	for what, b := range bad {
		if b == nil {
			gw.pay.Handle(w.now, agent(t, 50).Public(), sign(func(*tx.Voucher) {}, user.a))
		} else {
			gw.pay.Handle(w.now, user.key, b)
		}
		w.now = w.now.Add(3 * time.Second)
		gw.pay.Tick(w.now)
		if f.promised() != before || c.Tab.Voucher != v {
			t.Errorf("%s: promised %d, was %d", what, f.promised(), before)
		}
	}
	gw.pay.Handle(w.now, user.key, sign(func(*tx.Voucher) {}, user.a))
	w.now = w.now.Add(bookEvery)
	gw.pay.Tick(w.now)
	if f.promised() != before+1000 {
		t.Errorf("a good one: promised %d, was %d", f.promised(), before)
	}
	// Another gateway of the same member does not take the tab, nor another service.
	second := w.add()
	g := w.flow(user, second, Internet, 0)
	w.run(5 * time.Second)
	second.pay.cfg.Account = gw.key
	tab := f.debit().Tab
	for _, s := range []Service{Internet, Carriage} {
		for _, p := range []*peer{second, gw} {
			if p == gw && s == Internet {
				continue
			}
			p.meter.of(ID{user.key, s}, Payee)
			p.pay.Tick(w.now)
			for _, part := range splitAnchor(s, 7, anchorOf(&tab, w.now)) {
				p.pay.Handle(w.now, user.key, part.AppendTo(nil))
			}
			p.pay.Tick(w.now)
			if c := p.pay.credits[ID{user.key, s}]; c == nil || c.tab != nil {
				t.Errorf("%s took the tab of %s for %s", p.key.String()[:6], f.payee.key.String()[:6], s)
			}
		}
	}
	_ = g
}

// Anchors that do not fit are not believed; old ones neither.
func TestAnchors(t *testing.T) {
	w := newWorld(t)
	user, gw := w.add(), w.add()
	f := w.flow(user, gw, Internet, 0)
	w.run(time.Second)
	good := tx.Tab{Epoch: 5, Number: TabNumber(gw.key, Internet) | 3, Payer: user.key, Payee: gw.key, Signer: user.key, Earmark: credits, Expiry: w.now.Unix() + 20*86400}
	good.ID = tx.TabIDOf(testChain, good.Payer, good.Payee, good.Number)
	give := func(tab tx.Tab, at time.Time) bool {
		w.now = w.now.Add(10 * time.Second)
		for _, part := range splitAnchor(Internet, uint32(w.now.Unix()), anchorOf(&tab, at)) {
			gw.pay.Handle(w.now, user.key, part.AppendTo(nil))
		}
		gw.pay.Tick(w.now)
		return f.credit().tab != nil
	}
	for what, change := range map[string]func(*tx.Tab){
		"signer": func(t *tx.Tab) { t.Signer = gw.key }, "payee": func(t *tx.Tab) { t.Payee[0]++ }, "number": func(t *tx.Tab) { t.Number += 256 },
		"id": func(t *tx.Tab) { t.ID[0]++ }, "closing": func(t *tx.Tab) { t.Until = w.now.Unix() + 86400 }, "expired": func(t *tx.Tab) { t.Expiry = w.now.Unix() },
	} {
		bad := good
		change(&bad)
		if give(bad, w.now) {
			t.Errorf("a tab with a wrong %s", what)
			f.credit().tab = nil
		}
	}
	if give(good, w.now.Add(-anchorAge-time.Minute)) {
		t.Error("a tab by an old proof")
	}
	if !give(good, w.now) {
		t.Error("a good tab was not taken")
	}
	// A flood of parts costs verifications at 1 in 5 s, and memory of one anchor.
	n := 0
	gw.pay.cfg.VerifyAnchor = func(b []byte) (tx.Tab, time.Time, error) { n++; return verifyAnchor(b) }
	for i := range 1000 {
		for _, part := range splitAnchor(Internet, uint32(i)+1000, anchorOf(&good, w.now)) {
			gw.pay.Handle(w.now, user.key, part.AppendTo(nil))
		}
	}
	if n > 4 {
		t.Errorf("%d anchors verified at once", n)
	}
}

// The payer closes its tab on the chain as soon as it has been served. What it signed is claimed; what it did not sign is within
// E.
func TestEarlyCloser(t *testing.T) {
	w := newWorld(t)
	user, gw := w.add(), w.add()
	f := w.flow(user, gw, Internet, 12_500_000)
	w.open(f)
	user.filter = func(_ *peer, b []byte) []byte {
		if b[0] == typeVoucher {
			return nil
		}
		return b
	}
	for _, tab := range w.chain.tabs {
		tab.Until = w.now.Unix() + 7*86400
	}
	w.run(10 * time.Minute)
	f.checkPayee(50<<20, w.tar.Trust)
	f.rate = 0
	w.leap(61 * time.Minute) // it looks each hour, and claims at once when a tab is closing
	if got := w.chain.paid[gw.key]; got < f.promised() {
		t.Errorf("claimed %d of %d", got, f.promised())
	}
	if c := f.credit(); c.tab.live(w.now) {
		t.Error("a tab that is closing is relied on")
	}
	// A payee that is cut off for longer than the window loses what was promised: the bound says so, and the owner is told.
	w = newWorld(t)
	user, gw = w.add(), w.add()
	f = w.flow(user, gw, Internet, 1_250_000)
	w.open(f)
	f.rate = 0
	w.run(15 * time.Second)
	promised := f.promised()
	gw.chain.cut = true
	for _, tab := range w.chain.tabs {
		tab.Until = w.now.Unix() + 7*86400
	}
	w.leap(8 * 24 * time.Hour)
	gw.chain.cut = false
	w.chain.expire()
	// The payer has opened it anew: its epoch is another, and the voucher void.
	again := f.debit().Tab
	again.Epoch, again.Expiry = 100, w.now.Unix()+10*86400
	w.chain.tabs[again.ID] = &again
	w.leap(2 * time.Hour)
	if v := gw.pay.View(w.now); len(v.Over) != 1 || v.Over[0].State != Settled || v.Over[0].Lost+w.chain.paid[gw.key] != promised {
		t.Errorf("%+v, promised %d", v.Over, promised)
	}
}

// A flood of vouchers costs few verifications and nothing else.
func TestVoucherFlood(t *testing.T) {
	w := newWorld(t)
	user, gw := w.add(), w.add()
	f := w.flow(user, gw, Internet, 1_250_000)
	w.open(f)
	v := f.credit().Tab.Voucher
	writes := gw.store.writes
	for i := range 5000 {
		v.Seq, v.Amount = v.Seq+1, v.Amount+1
		s, err := v, error(nil)
		if i%50 == 0 {
			s, err = v.Sign(user.a)
		}
		if err != nil {
			t.Fatal(err)
		}
		b := s.Encode()
		gw.pay.Handle(w.now, user.key, b[:])
	}
	gw.pay.Tick(w.now)
	if n := gw.store.writes - writes; n > 2 {
		t.Errorf("%d writes", n)
	}
	if c := gw.pay.View(w.now).Counts; c.Flood < 4900 {
		t.Errorf("%+v: too many were verified", c)
	}
	for range 1000 {
		gw.pay.Handle(w.now, user.key, []byte("hello"))
		gw.pay.Handle(w.now, user.key, (&Ask{Internet}).AppendTo(nil))
	}
	if n := len(gw.pay.out); n > 20 {
		t.Errorf("%d answers to a flood", n)
	}
	f.rate = 0
	w.run(15 * time.Second)
	user.mustAudit()
}

// Tiny payments neither end a debt nor make the exposure grow.
func TestTinyPayments(t *testing.T) {
	w := newWorld(t)
	user, gw := w.add(), w.add()
	gw.rate = 1e9
	f := w.flow(user, gw, Internet, 1_250_000)
	w.open(f)
	e := f.credit().Exposure
	if e >= w.tar.ExposureMost/2 {
		t.Fatalf("an exposure of %d cannot grow", e)
	}
	v := f.debit().Voucher
	user.filter = func(_ *peer, b []byte) []byte {
		if b[0] != typeVoucher {
			return b
		}
		v.Seq, v.Amount = v.Seq+1, v.Amount+1
		s, err := v.Sign(user.a)
		if err != nil {
			t.Fatal(err)
		}
		b2 := s.Encode()
		return b2[:]
	}
	w.run(10 * time.Minute)
	f.checkPayee(e, 0)
	if c := f.credit(); c.Exposure > e || f.throttledFor < 5*time.Minute {
		t.Errorf("exposure %d, was %d; throttled for %v", c.Exposure, e, f.throttledFor)
	}
}

// Nodes that start anew again and again, and that lose their files: no debt is forgiven, no voucher is given twice.
func TestRebooters(t *testing.T) {
	for _, who := range []string{"payer", "payee", "payer without memory"} {
		w := newWorld(t)
		user, gw := w.add(), w.add()
		f := w.flow(user, gw, Internet, 12_500_000)
		w.open(f)
		for i := range 30 {
			p := user
			if who == "payee" {
				p = gw
			}
			if who == "payer without memory" {
				p.store.m = map[string][]byte{}
			}
			late := f.credit().Late
			p.crash(time.Duration(1+i%3) * time.Second)
			w.run(8 * time.Second)
			if who == "payee" && late && !f.credit().Late && f.credit().owed() > 0 && f.credit().state == Throttled {
				t.Error("a restart ends what is throttled")
			}
		}
		f.rate = 0
		w.run(30 * time.Second)
		c := f.credit()
		// What a crash of the payee costs it is what its meter had not kept: ten seconds each, by the meter's own promise.
		lost := Cost(f.full, testPrice) - f.promised() - max(c.owed(), 0) - c.Forgiven.Amount
		if who != "payee" && lost > Cost(GapBytes, testPrice) {
			t.Errorf("%s: %d ncredit lost", who, lost)
		}
		if who != "payer without memory" {
			own := f.full + f.slow
			f.checkPayer(own)
			user.mustAudit()
		}
		f.checkPayee(50<<20, 0+boolInt(who == "payee", lost))
		w.leap(25 * time.Hour)
		if w.chain.paid[gw.key] != f.promised() {
			t.Errorf("%s: claimed %d of %d", who, w.chain.paid[gw.key], f.promised())
		}
		t.Logf("%s: %d carried, %d promised, %d owed, %d forgiven", who, Cost(f.full, testPrice), f.promised(), c.owed(), c.Forgiven.Amount)
	}
}

func boolInt(b bool, n int64) int64 {
	if b {
		return n
	}
	return 0
}

// The node dies at each write in turn, before or after it is durable: no credit is lost or made beyond the bound.
func TestCrashAtEveryWrite(t *testing.T) {
	runs := 0
	for _, who := range []int{0, 1} {
		for _, after := range []bool{false, true} {
			for n := 1; ; n++ {
				w := newWorld(t)
				user, gw := w.add(), w.add()
				p := w.peers[who]
				p.store.dieAt, p.store.after = n, after
				f := w.flow(user, gw, Internet, 5_000_000)
				w.run(25 * time.Second)
				f.rate = 0
				w.run(15 * time.Second)
				w.leap(25 * time.Hour)
				w.run(15 * time.Second)
				runs++
				what := fmt.Sprintf("peer %d, write %d, durable %v", who, n, after)
				c, d := f.credit(), f.debit()
				carried := Cost(f.full, testPrice)
				if d.Signed > carried+Cost(Gap(f.full), testPrice) || f.promised() > d.Signed {
					t.Errorf("%s: carried %d, signed %d, promised %d", what, carried, d.Signed, f.promised())
				}
				if v := d.Voucher; d.tab != nil && c.tab != nil && v.Seq < c.Tab.Voucher.Seq {
					t.Errorf("%s: the payer has forgotten voucher %d", what, c.Tab.Voucher.Seq)
				}
				if lost, most := carried-f.promised(), Cost(StartExposure+4*5_000_000+12*5_000_000, testPrice); lost > most {
					t.Errorf("%s: %d of %d lost, at most %d", what, lost, carried, most)
				}
				if got := w.chain.paid[gw.key]; got != f.promised() || w.chain.total() != 200*credits {
					t.Errorf("%s: claimed %d of %d; %d of money", what, got, f.promised(), w.chain.total())
				}
				if len(w.chain.tabs) != 1 {
					t.Errorf("%s: %d tabs were opened", what, len(w.chain.tabs))
				}
				if p.store.writes < n {
					break
				}
			}
		}
	}
	t.Logf("%d crashes", runs)
}

// While nothing can be written nothing is signed or booked; then all goes on.
func TestDiskFails(t *testing.T) {
	w := newWorld(t)
	user, gw := w.add(), w.add()
	f := w.flow(user, gw, Internet, 1_250_000)
	w.open(f)
	for _, p := range []*peer{user, gw} {
		p.store.broken = true
		sent := 0
		p.filter = func(_ *peer, b []byte) []byte {
			if b[0] == typeVoucher {
				sent++
			}
			return b
		}
		signed, promised := f.debit().Signed, f.promised()
		w.run(20 * time.Second)
		if p == user && (f.debit().Signed != signed || user.pay.View(w.now).StoreError == "") {
			t.Errorf("signed %d without a disk, was %d", f.debit().Signed, signed)
		}
		if p == gw && f.promised() != promised {
			t.Errorf("booked %d without a disk, was %d", f.promised(), promised)
		}
		p.store.broken = false
		w.run(20 * time.Second)
		if f.promised() <= promised || p.pay.View(w.now).StoreError != "" {
			t.Errorf("it does not go on: %d", f.promised())
		}
		p.filter = nil
	}
	user.meter.err = errDied
	signed := f.debit().Signed
	w.run(20 * time.Second)
	if f.debit().Signed != signed {
		t.Error("signed by counts that are not durable")
	}
	user.meter.err = nil
	w.run(20 * time.Second)
	f.rate = 0
	w.run(20 * time.Second)
	near(t, "promised and forgiven", f.promised()+f.credit().Forgiven.Amount, Cost(f.full+f.slow, testPrice), Cost(GapBytes, testPrice))
	user.mustAudit()
	gw.mustAudit()
}

// Who changes a line, a voucher or a sum is found out.
func TestAuditFinds(t *testing.T) {
	for what, spoil := range map[string]func(*debit){
		"amount":   func(d *debit) { d.Line.Amount++ },
		"bytes":    func(d *debit) { d.Line.Bytes += 5 << 20 },
		"reading":  func(d *debit) { d.Line.Last.Recv += 5 },
		"price":    func(d *debit) { d.Line.Price++ },
		"voucher":  func(d *debit) { d.Line.Voucher.Amount++ },
		"receipt":  func(d *debit) { d.Line.Receipt.Amount++ },
		"counters": func(d *debit) { d.Line.At.Recv++ },
		"signed":   func(d *debit) { d.Signed += 10 * credits },
	} {
		w := newWorld(t)
		user, gw := w.add(), w.add()
		f := w.flow(user, gw, Internet, 1_250_000)
		w.open(f)
		user.mustAudit()
		spoil(f.debit())
		if a, err := user.pay.Audit(w.now); err != nil || len(a.Findings) == 0 {
			t.Errorf("%s: nothing was found (%v)", what, err)
		}
	}
}

// A gateway that restarts while somebody is throttled serves that one no faster for it.
func TestRestartForgivesNothing(t *testing.T) {
	w := newWorld(t)
	thief, gw := w.add(), w.add()
	f := w.flow(thief, gw, Internet, 12_500_000)
	w.open(f)
	thief.filter = func(_ *peer, b []byte) []byte {
		if b[0] == typeVoucher {
			return nil
		}
		return b
	}
	for f.credit().state != Throttled {
		w.step()
	}
	before, owed := f.full, f.credit().owed()
	const crashes = 20
	for range crashes {
		gw.crash(time.Second)
		w.run(5 * time.Second)
		if s := f.credit().state; s != Throttled {
			t.Fatalf("state %s after a restart", s)
		}
	}
	if more := f.full - before; more > crashes*uint64((ShapeTime+2*step).Seconds()*12_500_000) {
		t.Errorf("%d bytes at the full rate in %d restarts", more, crashes)
	}
	if o := f.credit().owed(); o < owed/2 {
		t.Errorf("owed %d, was %d", o, owed)
	}
}

// A voucher is worth no more than the tab holds, and nothing of what was claimed before the tab was known here.
func TestWorth(t *testing.T) {
	w := newWorld(t)
	user, gw := w.add(), w.add()
	f := w.flow(user, gw, Internet, 0)
	w.run(time.Second)
	tab := tx.Tab{Epoch: 5, Number: TabNumber(gw.key, Internet), Payer: user.key, Payee: gw.key, Signer: user.key, Earmark: 1000, Claimed: 300, Expiry: w.now.Unix() + 20*86400}
	tab.ID = tx.TabIDOf(testChain, tab.Payer, tab.Payee, tab.Number)
	rely := func(claimed, earmark int64) {
		tab.Claimed, tab.Earmark = claimed, earmark
		w.now = w.now.Add(10 * time.Second)
		for _, part := range splitAnchor(Internet, uint32(w.now.Unix()), anchorOf(&tab, w.now)) {
			gw.pay.Handle(w.now, user.key, part.AppendTo(nil))
		}
		gw.pay.Tick(w.now)
	}
	rely(300, 1000)
	for i, c := range []struct{ amount, want int64 }{{200, 0}, {400, 100}, {1000, 700}, {5000, 700}} {
		v, err := tx.Voucher{Chain: testChain, Tab: tab.ID, Epoch: 5, Seq: uint64(i + 1), Amount: c.amount}.Sign(user.a)
		if err != nil {
			t.Fatal(err)
		}
		b := v.Encode()
		gw.pay.Handle(w.now, user.key, b[:])
		w.now = w.now.Add(2 * time.Second)
		gw.pay.Tick(w.now)
		if got := f.promised(); got != c.want {
			t.Errorf("a voucher for %d is worth %d, want %d", c.amount, got, c.want)
		}
	}
	rely(300, 3000) // topped up: the voucher that was given is worth more now
	if got := f.promised(); got != 2700 {
		t.Errorf("worth %d after a top-up", got)
	}
	rely(300, 400) // an older proof changes nothing
	if got := f.promised(); got != 2700 {
		t.Errorf("worth %d after an old proof", got)
	}
}

// What is stored is what was there.
func TestReload(t *testing.T) {
	w := newWorld(t)
	user, gw := w.add(), w.add()
	f := w.flow(user, gw, Internet, 1_250_000)
	w.open(f)
	for _, p := range w.peers {
		if err := p.pay.Flush(w.now); err != nil {
			t.Fatal(err)
		}
		_, _ = p.meter.Commit(w.now)
		old := p.pay
		p.start()
		for id, c := range old.credits {
			if got := p.pay.credits[id]; !bytes.Equal(tx.Encode(&got.creditRecord), tx.Encode(&c.creditRecord)) {
				t.Errorf("a credit:\n%+v\n%+v", got.creditRecord, c.creditRecord)
			}
		}
		for id, d := range old.debits {
			if got := p.pay.debits[id]; !bytes.Equal(tx.Encode(&got.debitRecord), tx.Encode(&d.debitRecord)) {
				t.Errorf("a debit:\n%+v\n%+v", got.debitRecord, d.debitRecord)
			}
		}
		if !maps.Equal(p.pay.spent, old.spent) {
			t.Errorf("spent %+v, was %+v", p.pay.spent, old.spent)
		}
	}
}

// A neighbourhood of all sorts, at two gateways that pay a relay: the honest notice nothing, every gateway is within its bounds, and no money
// comes from nowhere.
func TestNeighbourhood(t *testing.T) {
	w := newWorld(t)
	w.loss = 0.02
	relay, one, two := w.add(), w.add(), w.add()
	relay.price[Carriage] = testPrice / 5
	var honest, others []*flow
	links := []*flow{w.flow(one, relay, Carriage, 0), w.flow(two, relay, Carriage, 0)}
	for i := range 12 {
		user, gw := w.add(), []*peer{one, two}[i%2]
		f := w.flow(user, gw, Internet, 500_000+uint64(w.rng.IntN(3_000_000)))
		links[i%2].rate += f.rate
		switch i {
		case 3:
			user.wallet = Wallet{} // never signs
			user.pay.SetWallet(user.wallet)
		case 6:
			f.lie = func(n uint64) (uint64, uint64) { return n / 3, n }
		case 7:
			user.guest = true
		default:
			honest = append(honest, f)
			continue
		}
		others = append(others, f)
	}
	for minute := range 15 {
		w.run(time.Minute)
		if minute == 7 {
			others[0].payer.crash(3 * time.Second)
			w.chain.down = true
		}
		if minute == 11 {
			w.chain.down = false
		}
	}
	for _, f := range append(w.flows[:0:0], w.flows...) {
		f.rate = 0
	}
	w.loss = 0
	w.run(20 * time.Second)
	w.leap(25 * time.Hour)
	for i, f := range append(honest, links...) {
		carried := Cost(f.full+f.slow, f.payee.price[f.service])
		near(t, fmt.Sprint("what honest payer ", i, " has promised and was forgiven"), f.promised()+f.credit().Forgiven.Amount, carried, Cost(2*GapBytes, testPrice))
		if f.throttledFor > 2*time.Second {
			t.Errorf("honest payer %d was throttled for %v", i, f.throttledFor)
		}
		f.checkPayer(f.full + f.slow)
	}
	for i, f := range others {
		if f.payer.guest {
			continue
		}
		f.rate = 3_500_000
		f.checkPayee(50<<20, w.tar.Trust)
		t.Logf("other %d: %d carried, %d promised, %d forgiven, throttled for %v", i, Cost(f.full+f.slow, testPrice), f.promised(), f.credit().Forgiven.Amount, f.throttledFor)
	}
	if got, want := w.chain.total(), int64(len(w.peers))*100*credits; got != want {
		t.Errorf("money was made: %d of %d", got, want)
	}
	for _, f := range w.flows {
		if c := f.credit(); c.tab != nil && c.Tab.Claimed != c.Tab.Voucher.Amount {
			t.Errorf("claimed %d of %d", c.Tab.Claimed, c.Tab.Voucher.Amount)
		}
	}
	for _, p := range w.peers {
		p.mustAudit()
	}
}
