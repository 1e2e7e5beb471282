package ledger

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"weft/ledger/tx"
)

func TestTemplates(t *testing.T) {
	for _, x := range Templates() {
		p, err := x.Params()
		if err != nil {
			t.Fatalf("%s: %v", x.Name, err)
		}
		seen := map[string]bool{}
		for _, v := range x.Values {
			if r, ok := p.Find(v.Name); !ok || seen[v.Name] || v.Why == "" || r.Text() != v.Value {
				t.Errorf("%s: %s", x.Name, v.Name)
			}
			seen[v.Name] = true
		}
		if x.Title == "" || x.Doc == "" || x.Advice == "" || len(x.Sources) == 0 {
			t.Errorf("%s explains nothing", x.Name)
		}
		if got, ok := FindTemplate(x.Name); !ok || got.Title != x.Title {
			t.Error(x.Name)
		}
		m, _ := New(NewMem())
		if err := m.Init(Genesis{Chain: "t", Time: 1, Founders: []Founder{{Key: govKey(1)}}, Settings: x.Settings()}); err != nil {
			t.Errorf("%s: %v", x.Name, err)
		}
	}
}

// surplus makes a year in which members pay, at 1 credit for each of these.
func (s *shop) surplus(paid ...int64) {
	s.t.Helper()
	if len(s.m.Lines()) == 1 {
		s.measure(&tx.SetLine{Called: "internet", Class: 1, Fund: FundOperating, Fee: credit})
	}
	for i, v := range paid {
		if v > 0 {
			s.pay(uint64(i+1), v*credit)
			s.must(1, &tx.Charge{Member: uint64(i + 1), Line: 1, Times: uint32(v)})
		}
	}
}

var plain = []string{"surplus.reserve=0", "surplus.solidarity=0", "surplus.cash=0", "surplus.cash_least=0", "capital.retirement=any"}

func (s *shop) capital(member uint64, want ...Vintage) {
	s.t.Helper()
	if got := s.m.Capital(member); fmt.Sprint(got) != fmt.Sprint(want) {
		s.t.Errorf("member %d has capital %v, want %v", member, got, want)
	}
}

func TestRetirement(t *testing.T) {
	two := func(t *testing.T) *shop {
		s := newShop(t, 3, plain...)
		s.surplus(10, 20, 0)
		s.endYear()
		s.surplus(30, 0, 40)
		s.endYear()
		s.capital(1, Vintage{2023, 10 * credit}, Vintage{2024, 30 * credit})
		s.capital(2, Vintage{2023, 20 * credit})
		return s
	}
	for _, c := range []struct {
		r        tx.Retire
		of1, of2 []Vintage
	}{
		{tx.Retire{Method: tx.FIFO, Amount: 15 * credit}, []Vintage{{2023, 5 * credit}, {2024, 30 * credit}}, []Vintage{{2023, 10 * credit}}},
		{tx.Retire{Method: tx.FIFO, Amount: 37 * credit}, []Vintage{{2024, 27 * credit}}, nil},
		{tx.Retire{Method: tx.LIFO, Amount: 85 * credit}, []Vintage{{2023, 5 * credit}}, []Vintage{{2023, 10 * credit}}},
		{tx.Retire{Method: tx.Percent, Amount: 50 * credit}, []Vintage{{2023, 5 * credit}, {2024, 15 * credit}}, []Vintage{{2023, 10 * credit}}},
		{tx.Retire{Method: tx.Hybrid, Amount: 58 * credit, Oldest: 517}, []Vintage{{2024, 18*credit - 6_000_000}}, nil},
	} {
		t.Run(fmt.Sprint(c.r.Method, c.r.Amount/credit), func(t *testing.T) {
			s := two(t)
			had := s.m.Sheet().Capital
			s.measure(&c.r)
			s.rest()
			if c.r.Method != tx.Hybrid {
				s.capital(1, c.of1...)
				s.capital(2, c.of2...)
			}
			if got := s.m.Sheet().Capital; got > had-c.r.Amount+2*cent || got < had-c.r.Amount {
				t.Errorf("of %d are left %d", had, got)
			}
			s.mustAudit()
		})
	}
	s := two(t)
	b := func(m tx.Measure) []byte { x, _ := tx.EncodeMeasure(m); return x }
	refused := func(want Code, r tx.Retire, settings ...string) {
		t.Helper()
		for i := 0; i < len(settings); i += 2 {
			s.vote(&tx.ActBylaws{Settings: []tx.Setting{{Name: settings[i], Value: settings[i+1]}}})
		}
		s.refuse(want, 1, &tx.Propose{Title: "x", Action: &tx.ActSurplus{Measure: b(&r)}})
	}
	refused(CodeFunds, tx.Retire{Amount: 101 * credit})
	refused(CodeValue, tx.Retire{})
	refused(CodeFunds, tx.Retire{Amount: 60 * credit}, "capital.kept", "500")
	refused(CodeFunds, tx.Retire{Amount: 40 * credit}, "capital.equity", "700")
	s.pay(2, 50*credit)
	refused(CodeFunds, tx.Retire{Amount: credit}, "capital.equity", "0", "capital.debt", "400")
	refused(CodeForbid, tx.Retire{Amount: credit}, "capital.debt", "600", "capital.retirement", "lifo")
	s.refuse(CodeMalform, 1, &tx.Propose{Title: "x", Action: &tx.ActBudget{Measure: b(&tx.Retire{Amount: 1})}})
}

func TestLosses(t *testing.T) {
	for _, policy := range []string{"carry", "reserve", "members"} {
		t.Run(policy, func(t *testing.T) {
			s := newShop(t, 3, append(plain, "surplus.loss="+policy)...)
			s.surplus(10, 20, 0)
			s.endYear()
			s.pay(2, 7*credit)
			s.must(2, &tx.Contribute{Fund: FundReserve, Amount: 7 * credit})
			s.must(1, &tx.Deposit{Fund: FundOperating, Amount: 60 * credit, Reference: "a loan"})
			spend := s.measure(&tx.NewBudget{Fund: FundOperating, Amount: 100 * credit, Cost: true, Purpose: "a bill"})
			s.surplus(30, 0, 10)
			s.must(1, &tx.Spend{Budget: spend, Amount: 60 * credit, Reference: "x"}) // 20 more than came in
			p := s.endYear()
			b := s.m.view(Header{}).bookState()
			switch policy {
			case "carry":
				if b.Carry[0] != 20*credit || p.Allocated != 0 {
					t.Errorf("%+v", p)
				}
			case "reserve":
				if b.Carry[0] != 13*credit || s.in(FundReserve) != 0 {
					t.Errorf("%+v", p)
				}
			case "members":
				s.capital(1, Vintage{2024, -5 * credit}) // 10 − 15
				s.capital(2, Vintage{2023, 20 * credit})
				s.capital(3, Vintage{2024, -5 * credit})
			}
			s.surplus(20, 0, 20)
			s.endYear()
			switch policy {
			case "carry":
				s.capital(3, Vintage{2025, 10 * credit})
			case "reserve":
				s.capital(3, Vintage{2025, 13.5 * credit})
			case "members":
				s.capital(3, Vintage{2025, 15 * credit}) // what was negative is made good first
			}
			s.mustAudit()
		})
	}
}

// Former members keep their capital; what is paid back waits for them, less what they owe, and in the end goes to others.
func TestFormerMembers(t *testing.T) {
	s := newShop(t, 4, append(plain, "surplus.cash=500", "tariff.member_fee=1000000000")...)
	s.surplus(10, 20, 30)
	s.must(2, &tx.Leave{})
	s.must(3, &tx.Leave{})
	s.endYear()
	if s.m.Due(2).Amount != 10*credit || s.m.Due(3).Amount != 15*credit || s.own(2) != 0 {
		t.Fatal(s.m.Due(2), s.m.Due(3))
	}
	s.must(2, &tx.Claim{})
	s.refuse(CodeUnknown, 2, &tx.Claim{})
	if s.own(2) != 10*credit {
		t.Fatal(s.own(2))
	}
	s.must(2, &tx.Payout{Amount: 10 * credit, Where: "home"})
	solidarity := s.in(FundSolidarity)
	for range 6 * 13 {
		s.block(28 * day)
	}
	s.rest()
	if s.m.Due(3).Amount != 0 || s.in(FundSolidarity) != solidarity+15*credit {
		t.Fatal(s.m.Due(3), s.in(FundSolidarity))
	}
	// Member 4 has paid nothing for years and has no capital; member 1 has capital, and arrears, which it pays first.
	owed := int64(0)
	for _, a := range s.m.Arrears(1) {
		owed += a.Amount
	}
	if owed == 0 {
		t.Fatal("member 1 owes nothing")
	}
	had := s.own(1)
	s.measure(&tx.Retire{Method: tx.FIFO, Amount: 30 * credit})
	s.rest()
	if s.own(1) != max(had+5*credit-owed, 0) || s.m.Due(3).Amount != 15*credit {
		t.Error(had, owed, s.own(1), s.m.Due(3))
	}
	s.mustAudit()
}

// Business with others stays apart, and goes to the reserve.
func TestOthersApart(t *testing.T) {
	s := newShop(t, 2, plain...)
	s.surplus(10, 20)
	s.must(1, &tx.Deposit{Fund: FundOperating, Amount: 90 * credit, Class: 1, Reference: "guests' vouchers"})
	b := s.measure(&tx.NewBudget{Fund: FundOperating, Amount: 100 * credit, Cost: true, Business: tx.WithBoth, Class: 1, Purpose: "upstream"})
	s.block(fromCivil(2024, 1, 3) - s.now)
	s.must(1, &tx.Spend{Budget: b, Amount: 40 * credit, Last: true, Reference: "came late"})
	s.refuse(CodeForbid, 2, &tx.Spend{Budget: b, Amount: credit, Reference: "x"})
	s.block(fromCivil(2024, 3, 2) - s.now)
	s.rest()
	p, _ := s.m.Period(1)
	// 40 by 30 to 90: 10 and 30.
	if p.State != PeriodFinished || p.Groups[0].Margin != 20*credit || p.Others != 60*credit || s.in(FundReserve) != 60*credit {
		t.Errorf("%+v", p)
	}
	s.refuse(CodeState, 1, &tx.Spend{Budget: b, Amount: credit, Last: true, Reference: "too late"})
	s.mustAudit()
}

// crowd is a community of n members with a year's business each, ready to be settled.
func crowd(t testing.TB, n int) (*Machine, *call) {
	store := NewMem()
	m, err := New(store)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Init(Genesis{Chain: "big", Time: govStart, Founders: []Founder{{Key: govKey(1)}}}); err != nil {
		t.Fatal(err)
	}
	// Keys are looked up, not verified: numbers will do. A sorted store is filled in the order of its keys.
	c := &call{m: m, Header: Header{Height: 1, Time: govStart}, s: newOverlay(store), tx: -1}
	r := rand.New(rand.NewPCG(1, 2))
	var total int64
	for i := 2; i <= n; i++ {
		var k [32]byte
		k[0], k[1], k[2], k[3] = 255, byte(i>>16), byte(i>>8), byte(i)
		mb := c.enroll(Member{Key: k, Name: fmt.Sprint(i), Grant: -1})
		paid := r.Int64N(500 * credit)
		total += paid
		to := on(hFund, FundOperating, paid)
		to.mark = Mark{What: MarkPaid, Class: 1, Period: 1, Member: mb.ID, Bytes: r.Int64N(1e12)}
		if err := c.entry("", on(hWorld, 0, -paid), to); err != nil {
			t.Fatal(err)
		}
	}
	c.s.flush()
	return m, c
}

func TestTenThousand(t *testing.T) {
	m, _ := crowd(t, 10_000)
	p, _ := m.Period(1)
	h := Header{Height: 2, Time: p.End}
	m.Block(h, nil)
	h.Time += 61 * day
	for h.Height = 3; h.Height == 3 || m.Busy(); h.Height++ {
		h.Time++
		m.Block(h, nil)
	}
	if p, _ = m.Period(1); p.State != PeriodFinished || h.Height < 10_000/page {
		t.Fatalf("%+v after %d blocks", p.State, h.Height)
	}
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, a := range m.Allotments(1) {
		sum += a.Share
	}
	if sum != p.Allocated || sum == 0 {
		t.Errorf("%d of %d were allocated", sum, p.Allocated)
	}
	// A third of the capital is paid back, over many blocks, to the unit.
	had := map[uint64]int64{}
	m.Members(func(mb Member) bool {
		for _, v := range m.Capital(mb.ID) {
			had[mb.ID] += v.Amount
		}
		return true
	})
	before := m.Sheet().Capital
	amount := before / 3 / cent * cent
	c := m.view(h)
	c.queueJob(Job{Kind: JobRetire, ID: 1, Plan: Retirement{Retire: tx.Retire{Amount: amount}}})
	c.s.flush()
	blocks := 0
	for ; m.Busy(); blocks++ {
		h.Height, h.Time = h.Height+1, h.Time+1
		m.Block(h, nil)
	}
	if got := m.Sheet().Capital; got != before-amount || blocks < 10_000/page {
		t.Errorf("%d of %d are left after %d", got, before, amount)
	}
	m.Members(func(mb Member) bool {
		var left int64
		for _, v := range m.Capital(mb.ID) {
			left += v.Amount
		}
		if exact := had[mb.ID] / 3; had[mb.ID]-left > exact+2*cent || had[mb.ID]-left < exact-2*cent {
			t.Errorf("member %d got %d of %d", mb.ID, had[mb.ID]-left, had[mb.ID])
		}
		return true
	})
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
}

// The second computation sees a unit that is not where it belongs, whatever the machine says.
func TestAuditComputes(t *testing.T) {
	s := newShop(t, 3, append(plain, "surplus.cash=300", "member.share=1000000000", "surplus.interest=50")...)
	s.pay(2, 20*credit)
	s.must(2, &tx.BuyShares{Count: 20})
	s.endYear()
	s.surplus(10, 20, 31)
	p := s.endYear()
	r := s.audit(nil)
	if !r.OK() || r.Periods != 2 || p.Interest != credit {
		t.Fatal(r.Differences, r.Periods, p.Interest)
	}
	store := r.Machine.base.(*Mem)
	for name, spoil := range map[string]func(){
		"an allotment": func() {
			a, _ := r.Machine.Allotment(p.ID, 3)
			a.Share, a.Cash = a.Share+cent, a.Cash+cent
			store.Set(allotKey(p.ID, 3), tx.Encode(&a))
		},
		"no allotment": func() { store.Set(allotKey(p.ID, 2), nil) },
		"one too many": func() { store.Set(allotKey(p.ID, 9), tx.Encode(&Allotment{Member: 9, Share: 1, Cash: 1})) },
		"a margin": func() {
			q := p
			q.Groups = append([]Group(nil), p.Groups...)
			q.Groups[0].Margin++
			store.Set(periodKey(p.ID), tx.Encode(&q))
		},
		"others":        func() { q := p; q.Others++; store.Set(periodKey(p.ID), tx.Encode(&q)) },
		"interest":      func() { q := p; q.Interest++; store.Set(periodKey(p.ID), tx.Encode(&q)) },
		"a fund":        func() { store.Set(fundKey(1), tx.Encode(&Fund{ID: 1, Balance: 1})) },
		"capital":       func() { store.Set(capitalKey(1, 2024), nil) },
		"posted apart":  func() { r.shadow.periods[p.ID].refund[1]++ },
		"paid for more": func() { r.shadow.periods[p.ID].paid[1][1] += credit },
	} {
		saved, shadow := store.Clone(), r.shadow.periods[p.ID]
		refund, paid := shadow.refund[1], *shadow.paid[1]
		spoil()
		r.Differences = nil
		r.shadow.compare(&r)
		r.shadow.divide(&r)
		if r.OK() {
			t.Errorf("%s: the audit saw nothing", name)
		}
		*store = *saved
		shadow.refund[1], *shadow.paid[1] = refund, paid
	}
}

// The division of a year's surplus among 10,000 members, with all reading, and all its pages of payment.
func BenchmarkYear10000(b *testing.B) {
	m, _ := crowd(b, 10_000)
	store := m.base.(*Mem)
	p, _ := m.Period(1)
	for b.Loop() {
		b.StopTimer()
		n, _ := New(store.Clone())
		n.Block(Header{Height: 2, Time: p.End}, nil)
		b.StartTimer()
		h := Header{Height: 3, Time: p.End + 61*day}
		for n.Block(h, nil); n.Busy(); n.Block(h, nil) {
			h.Height, h.Time = h.Height+1, h.Time+1
		}
	}
}

// Interest is on what was held all through the year, whatever was bought or redeemed while its books were still open.
func TestInterestOnWhatWasHeld(t *testing.T) {
	s := newShop(t, 2, append(plain, "member.share=1000000000", "surplus.interest=100")...)
	s.pay(2, 100*credit)
	s.must(2, &tx.BuyShares{Count: 40})
	s.endYear() // well into the second year
	s.must(2, &tx.RedeemShares{Count: 10})
	s.must(2, &tx.BuyShares{Count: 20})
	s.surplus(50)
	p, _ := s.m.Period(2)
	s.block(p.End + day - s.now)
	s.must(2, &tx.RedeemShares{Count: 45})
	s.must(2, &tx.BuyShares{Count: 30})
	s.block(61 * day)
	s.rest()
	if p, _ = s.m.Period(2); p.State != PeriodFinished || p.Interest != 3*credit {
		t.Errorf("interest %d in a year in which 30 shares were held throughout", p.Interest)
	}
	s.surplus(50)
	if p = s.endYear(); p.Interest != credit/2 {
		t.Errorf("interest %d in a year that 5 shares outlasted", p.Interest)
	}
	s.mustAudit()
}

// An entry of who is not treasurer any more is void.
func TestAuthorOutOfOffice(t *testing.T) {
	s := newShop(t, 3, "treasury.two_person=1000000000")
	id := s.must(1, &tx.Deposit{Member: 3, Amount: 5 * credit, Reference: "x"})
	s.vote(&tx.ActElection{Member: 2})
	s.vote(&tx.ActElection{Member: 1, Remove: true})
	s.refuse(CodeState, 2, &tx.Countersign{Entry: id})
	s.refuse(CodeForbid, 1, &tx.Deposit{Member: 3, Amount: 1, Reference: "x"})
	if e, _ := s.m.Entry(id); s.own(3) != 0 || s.m.MayCountersign(e, 1, s.now) {
		t.Error("it was carried out")
	}
	s.must(2, &tx.Cancel{Entry: id, Reason: "void"})
	// Who the bylaws name may sign besides treasurers; then nobody else may.
	s.vote(&tx.ActBylaws{Settings: []tx.Setting{{Name: "treasury.witness", Value: "3"}}})
	id = s.must(2, &tx.Deposit{Member: 3, Amount: 5 * credit, Reference: "x"})
	s.refuse(CodeForbid, 1, &tx.Countersign{Entry: id})
	s.must(3, &tx.Countersign{Entry: id})
	s.mustAudit()
}

// A loss with others is made good by later business with others, never by members.
func TestLossWithOthers(t *testing.T) {
	s := newShop(t, 2, plain...)
	s.surplus(10, 20)
	b := s.measure(&tx.NewBudget{Fund: FundOperating, Amount: 100 * credit, Cost: true, Business: tx.WithOthers, Class: 1, Purpose: "guests"})
	s.must(1, &tx.Spend{Budget: b, Amount: 8 * credit, Reference: "x"})
	p := s.endYear()
	if p.Others != -8*credit || p.Allocated != 30*credit || s.in(FundReserve) != 0 {
		t.Errorf("%+v", p)
	}
	s.must(1, &tx.Deposit{Fund: FundOperating, Class: 1, Amount: 11 * credit, Reference: "vouchers"})
	if p = s.endYear(); p.Others != 11*credit || p.Allocated != 0 || s.in(FundReserve) != 3*credit {
		t.Errorf("%+v %d", p, s.in(FundReserve))
	}
	s.mustAudit()
}

func TestMeasuresRefused(t *testing.T) {
	s := newShop(t, 1)
	line := tx.SetLine{Called: "x", Class: 1, Fund: FundOperating}
	for _, c := range []struct {
		want Code
		m    tx.Measure
	}{
		{CodeUnknown, &tx.NewBudget{Fund: 99, Amount: 1, Purpose: "x"}},
		{CodeUnknown, &tx.NewBudget{Fund: FundClearing, Amount: 1, Purpose: "x"}},
		{CodeValue, &tx.NewBudget{Fund: 1, Purpose: "x"}},
		{CodeValue, &tx.NewBudget{Fund: 1, Amount: 1}},
		{CodeValue, &tx.NewBudget{Fund: 1, Amount: 1, Purpose: "x", Until: 5}},
		{CodeValue, &tx.NewBudget{Fund: FundReserve, Amount: 1, Purpose: "x", Cost: true}},
		{CodeUnknown, &tx.NewBudget{Fund: 1, Amount: 1, Purpose: "x", Member: 9}},
		{CodeValue, &tx.NewFund{}},
		{CodeUnknown, &tx.MoveFund{From: 1, To: 1, Amount: 1, Why: "x"}},
		{CodeForbid, &tx.MoveFund{From: FundShares, To: 1, Amount: 1, Why: "x"}},
		{CodeValue, &tx.MoveFund{From: 1, To: 2, Why: "x"}},
		{CodeFunds, &tx.MoveFund{From: 1, To: 2, Amount: 1, Why: "x"}},
		{CodeValue, &tx.SetLine{Called: "x", Class: 1, Fund: FundReserve}},
		{CodeValue, &tx.SetLine{Class: 1, Fund: FundOperating}},
		{CodeUnknown, &tx.SetLine{Line: 4, Called: "x", Class: 1, Fund: FundOperating}},
		{CodeValue, &tx.SetLine{Called: "x", Class: 1, Fund: FundOperating, Blocks: []tx.Block{{Bytes: 1}}}},
		{CodeValue, &tx.SetLine{Called: "x", Class: 1, Fund: FundOperating, Blocks: []tx.Block{{}, {}}}},
	} {
		b, err := tx.EncodeMeasure(c.m)
		if err != nil {
			t.Fatal(err)
		}
		s.refuse(c.want, 1, &tx.Propose{Title: "x", Action: &tx.ActBudget{Measure: b}})
	}
	s.measure(&line)
	line.Line, line.Class = 1, 2
	b, _ := tx.EncodeMeasure(&line)
	s.refuse(CodeForbid, 1, &tx.Propose{Title: "x", Action: &tx.ActBudget{Measure: b}})
	// A voted fund, money moved into it, and a shared bill of one.
	s.measure(&tx.NewFund{Called: "roof"})
	s.must(1, &tx.Deposit{Fund: FundOperating, Amount: 9 * credit, Reference: "a gift"})
	s.measure(&tx.MoveFund{From: FundOperating, To: FirstVoted, Amount: 4 * credit, Why: "the roof"})
	if s.in(FirstVoted) != 4*credit || s.in(FundOperating) != 5*credit {
		t.Error(s.m.Funds())
	}
	s.refuse(CodeValue, 1, &tx.Deposit{Fund: FundReserve, Class: 1, Amount: 1, Reference: "x"})
	s.refuse(CodeForbid, 1, &tx.Deposit{Fund: FundShares, Amount: 1, Reference: "x"})
	s.refuse(CodeUnknown, 1, &tx.Charge{Member: 1, Line: 0, Times: 1})
	s.refuse(CodeUnknown, 1, &tx.Charge{Member: 5, Line: 1, Times: 1})
	s.refuse(CodeValue, 1, &tx.Charge{Member: 1, Line: 1, Times: 1})
	s.refuse(CodeUnknown, 1, &tx.ShareBill{Line: 1, Bill: 1, Parts: []tx.Part{{Member: 1}}})
	s.measure(&tx.SetLine{Called: "upstream", Class: 1, Fund: FundUpstream, Shared: true, Cap: 3 * credit})
	s.refuse(CodeValue, 1, &tx.ShareBill{Line: 2, Bill: 4 * credit, Parts: []tx.Part{{Member: 1}}})
	s.refuse(CodeState, 1, &tx.ShareBill{Line: 2, Bill: 1, Parts: []tx.Part{{Member: 7}}})
	s.refuse(CodeValue, 1, &tx.ShareBill{Line: 2, Bill: 3, Parts: []tx.Part{{Member: 1}, {Member: 1}}})
	s.must(1, &tx.ShareBill{Line: 2, Bill: 3 * credit, Equal: credit, Parts: []tx.Part{{Member: 1}}, Memo: "May"})
	if a := s.m.Arrears(1); len(a) != 1 || a[0] != (Owing{2, 3 * credit}) || len(s.m.Lines()) != 3 {
		t.Error(a, s.m.Lines())
	}
	s.mustAudit()
}

// A member with a new key keeps account, capital and place in the books.
func TestRekeyKeepsBooks(t *testing.T) {
	s := newShop(t, 3, append(plain, "surplus.cash=500")...)
	s.surplus(10, 20)
	r := s.rekey(2, 2, 50)
	s.vote(&tx.ActRekey{Rekey: r})
	p := s.endYear()
	if a, _ := s.m.Allotment(p.ID, 2); a.Share != 20*credit || s.own(50) != 10*credit {
		t.Error(a, s.own(50))
	}
	s.must(50, &tx.Payout{Amount: credit, Where: "home"})
	s.refuse(CodeForbid, 2, &tx.Payout{Amount: credit})
	st := MakeStatement(s.m.chain, 2, s.postings, 0, s.now+1)
	if st.Closing != 9*credit || st.Advice == "" {
		t.Errorf("%+v", st)
	}
	s.mustAudit()
}

// A charge is reversed after what was owed of it has been collected: that goes back too.
func TestReversalOfArrears(t *testing.T) {
	for _, paid := range []int64{0, 3, 10} {
		s := newShop(t, 2, append(plain, "tariff.member_fee=1")...)
		s.measure(&tx.SetLine{Called: "x", Class: 2, Fund: FundUpstream, Fee: 10})
		id := s.must(1, &tx.Charge{Member: 2, Line: 1, Times: 1})
		if paid > 0 {
			s.pay(2, paid)
		}
		s.block(fromCivil(2023, 12, 1) - s.now) // collects
		s.rest()
		s.must(1, &tx.Reverse{Entry: id, Reason: "not used"})
		fee := int64(1) // of December: owed, or paid from what came back
		owed := int64(0)
		for _, a := range s.m.Arrears(2) {
			owed += a.Amount
		}
		if owed != fee || s.own(2) != paid || s.in(FundUpstream) != 0 {
			t.Errorf("after %d: %d owed, %d on the account, %d in the fund", paid, owed, s.own(2), s.in(FundUpstream))
		}
		s.mustAudit()
	}
}
