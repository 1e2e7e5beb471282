package ledger

import (
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"weft/ledger/tx"
)

// shop is a community under test whose blocks are kept, for audits.
type shop struct {
	*gov
	genesis  Genesis
	headers  []Header
	txs      [][][]byte
	postings []Posting
}

func newShop(t testing.TB, n int, settings ...string) *shop {
	t.Helper()
	s := &shop{gov: &gov{t: t, store: NewMem(), now: govStart}}
	s.genesis = Genesis{Chain: "gov-1", Time: govStart, Validators: []FirstValidator{{Key: govKey(101), Operator: 1, Node: govKey(201)}}}
	for i := 1; i <= n; i++ {
		s.genesis.Founders = append(s.genesis.Founders, Founder{Key: govKey(i), Name: fmt.Sprint("member ", i)})
	}
	for _, x := range append([]string{"tx.each=10000", "treasury.two_person=1000000000000000", "treasurer.term=315360000", "vote.notice=0"}, settings...) {
		name, value, _ := strings.Cut(x, "=")
		s.genesis.Settings = append(s.genesis.Settings, tx.Setting{Name: name, Value: value})
	}
	s.m, _ = New(s.store)
	s.m.Strict = true
	if err := s.m.Init(s.genesis); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *shop) block(seconds int64, txs ...[]byte) Outcome {
	out := s.gov.block(seconds, txs...)
	s.headers = append(s.headers, Header{Height: s.height, Time: s.now})
	s.txs = append(s.txs, txs)
	s.postings = append(s.postings, out.Postings...)
	return out
}

func (s *shop) send(i int, b tx.Body) Result { return s.block(1, s.sign(i, b)).Results[0] }

func (s *shop) must(i int, b tx.Body) uint64 {
	s.t.Helper()
	r := s.send(i, b)
	if r.Code != OK {
		s.t.Fatalf("%s of %d: code %d: %s", tx.Name(b.Kind()), i, r.Code, r.Text)
	}
	var id uint64
	for _, x := range r.Data {
		id = id<<8 | uint64(x)
	}
	return id
}

func (s *shop) refuse(want Code, i int, b tx.Body) {
	s.t.Helper()
	if r := s.send(i, b); r.Code != want {
		s.t.Errorf("%s of %d: code %d %q, want %d", tx.Name(b.Kind()), i, r.Code, r.Text, want)
	}
}

// vote has all founders decide something, at once.
func (s *shop) vote(a tx.Action) uint64 {
	s.t.Helper()
	id := s.must(1, &tx.Propose{Title: "x", Action: a})
	s.block(1)
	for i := range s.genesis.Founders {
		s.send(i+1, &tx.Vote{Proposal: id, Choice: tx.Yes})
	}
	for range 400 {
		if _, p, _ := s.m.Proposal(id); p.Stage == Done {
			return id
		} else if p.Stage > Done {
			s.t.Fatalf("the proposal %s: code %d", p.Stage, p.Why)
		}
		s.block(hour)
	}
	s.t.Fatal("the vote does not end")
	return 0
}

func (s *shop) measure(m tx.Measure) uint64 {
	s.t.Helper()
	b, err := tx.EncodeMeasure(m)
	if err != nil {
		s.t.Fatal(err)
	}
	if m.Decision() == tx.DecideSurplus {
		return s.vote(&tx.ActSurplus{Measure: b})
	}
	return s.vote(&tx.ActBudget{Measure: b})
}

// rest lets blocks pass until nothing is being worked on.
func (s *shop) rest() {
	for s.block(1); s.m.Busy(); s.block(1) {
	}
}

// pay deposits money for a member. For the treasurer himself a second person signs.
func (s *shop) pay(member uint64, amount int64) {
	s.t.Helper()
	if id := s.must(1, &tx.Deposit{Member: member, Amount: amount, Reference: "x"}); member == 1 {
		s.must(2, &tx.Countersign{Entry: id})
	}
}

func (s *shop) own(i int) int64 { a, _ := s.m.Account(govKey(i)); return a.Balance }

func (s *shop) in(fund uint64) int64 {
	for _, f := range s.m.Funds() {
		if f.ID == fund {
			return f.Balance
		}
	}
	s.t.Fatalf("there is no fund %d", fund)
	return 0
}

func (s *shop) audit(live Store) Report {
	s.t.Helper()
	i := 0
	r, err := Audit(s.genesis, func() (Header, [][]byte, bool) {
		if i == len(s.headers) {
			return Header{}, nil, false
		}
		i++
		return s.headers[i-1], s.txs[i-1], true
	}, live)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *shop) mustAudit() {
	s.t.Helper()
	if r := s.audit(s.store); !r.OK() {
		s.t.Fatalf("%d differences: %s", len(r.Differences), strings.Join(r.Differences[:min(5, len(r.Differences))], "\n"))
	}
}

const cent = credit / 100

// endYear goes to the close of the books of the fiscal period that is open now.
func (s *shop) endYear() Period {
	ps := s.m.Periods()
	p := ps[len(ps)-1]
	for s.now < p.End+s.m.view(Header{}).params().YearGrace+day {
		s.block(7 * day)
	}
	s.rest()
	p, _ = s.m.Period(p.ID)
	return p
}

// The worked example of the research, from deposits to capital: 1 000.00 among 300.00, 450.00 and 250.01.
func TestWorkedExample(t *testing.T) {
	s := newShop(t, 3, "surplus.reserve=0", "surplus.solidarity=0", "surplus.cash=200", "surplus.cash_least=0")
	line := uint64(1)
	s.measure(&tx.SetLine{Called: "internet", Class: 1, Fund: FundOperating, Blocks: []tx.Block{{Price: credit}}})
	budget := s.measure(&tx.NewBudget{Fund: FundOperating, Amount: cent, Cost: true, Class: 1, Purpose: "stamps"})
	for i, paid := range []int64{30000, 45000, 25001} {
		s.pay(uint64(i+1), paid*cent)
		s.must(1, &tx.Charge{Member: uint64(i + 1), Line: line, Bytes: uint64(paid) * 1e7})
		if got := s.own(i + 1); got != 0 {
			t.Fatalf("member %d has %d left", i+1, got)
		}
	}
	s.must(1, &tx.Spend{Budget: budget, Amount: cent, Reference: "post"})
	p := s.endYear()
	if p.State != PeriodFinished || p.Allocated != 100000*cent {
		t.Fatalf("%+v", p)
	}
	for i, want := range []int64{30000, 44999, 25001} {
		a, ok := s.m.Allotment(p.ID, uint64(i+1))
		cash := want * 200 / 1000
		if !ok || a != (Allotment{uint64(i + 1), want * cent, cash * cent, (want - cash) * cent, 0}) {
			t.Errorf("member %d: %+v", i+1, a)
		}
		if s.own(i+1) != cash*cent {
			t.Errorf("member %d has %d", i+1, s.own(i+1))
		}
		if v := s.m.Capital(uint64(i + 1)); len(v) != 1 || v[0] != (Vintage{2023, (want - cash) * cent}) {
			t.Errorf("member %d: %+v", i+1, v)
		}
	}
	s.mustAudit()
	// All of it is paid back.
	capital := s.m.Sheet().Capital
	s.measure(&tx.Retire{Method: tx.FIFO, Amount: capital})
	s.rest()
	if sh := s.m.Sheet(); sh.Capital != 0 || s.own(1)+s.own(2)+s.own(3) != 100000*cent || sh.Funds != 0 {
		t.Errorf("%+v", sh)
	}
	s.mustAudit()
}

func TestTwoPersons(t *testing.T) {
	s := newShop(t, 3, "treasury.two_person=100000000000") // 100 credits
	s.refuse(CodeForbid, 2, &tx.Deposit{Member: 2, Amount: credit, Reference: "x"})
	s.refuse(CodeValue, 1, &tx.Deposit{Member: 2, Amount: credit})
	s.refuse(CodeValue, 1, &tx.Deposit{Member: 2, Fund: 1, Amount: credit, Reference: "x"})
	s.refuse(CodeUnknown, 1, &tx.Deposit{Member: 9, Amount: credit, Reference: "x"})
	s.refuse(CodeUnknown, 1, &tx.Deposit{Fund: 99, Amount: credit, Reference: "x"})
	s.refuse(CodeValue, 1, &tx.Deposit{Member: 2, Reference: "x"})
	s.must(1, &tx.Deposit{Member: 2, Amount: 60 * credit, Way: tx.Mobile, Reference: "M-PESA QK1"})
	if s.own(2) != 60*credit {
		t.Fatal(s.own(2))
	}
	// A day's entries count together, and what is in the treasurer's favour always.
	id := s.must(1, &tx.Deposit{Member: 3, Amount: 40 * credit, Reference: "x"})
	mine := s.must(1, &tx.Deposit{Member: 1, Amount: 1, Reference: "x"})
	if s.own(3) != 0 || s.own(1) != 0 || len(s.m.Waiting()) != 2 {
		t.Fatal("one signature was enough")
	}
	s.refuse(CodeForbid, 1, &tx.Countersign{Entry: id})
	s.refuse(CodeUnknown, 2, &tx.Countersign{Entry: 77})
	s.must(2, &tx.Countersign{Entry: id})
	s.refuse(CodeState, 3, &tx.Countersign{Entry: id})
	if s.own(3) != 40*credit {
		t.Fatal(s.own(3))
	}
	s.refuse(CodeForbid, 3, &tx.Cancel{Entry: mine})
	s.must(1, &tx.Cancel{Entry: mine, Reason: "no"})
	s.refuse(CodeState, 2, &tx.Countersign{Entry: mine})
	// With a second treasurer nobody else may.
	s.vote(&tx.ActElection{Member: 2})
	late := s.must(1, &tx.Deposit{Member: 3, Amount: 200 * credit, Reference: "x"})
	s.refuse(CodeForbid, 3, &tx.Countersign{Entry: late})
	for range 15 {
		s.block(day)
	}
	if e, _ := s.m.Entry(late); e.State != EntryLapsed {
		t.Fatal(e.State)
	}
	s.refuse(CodeState, 2, &tx.Countersign{Entry: late})
	// A payout: of own money only, set aside, paid, and another that nobody pays.
	s.refuse(CodeFunds, 2, &tx.Payout{Amount: 61 * credit})
	s.refuse(CodeFunds, 2, &tx.Payout{})
	p := s.must(2, &tx.Payout{Amount: 20 * credit, Way: tx.Bank, Where: "DE02"})
	if s.own(2) != 40*credit {
		t.Fatal(s.own(2))
	}
	s.refuse(CodeForbid, 3, &tx.Paid{Payout: p, Reference: "x"})
	s.refuse(CodeState, 1, &tx.Paid{Payout: id, Reference: "x"})
	s.must(1, &tx.Paid{Payout: p, Reference: "transfer 9"})
	s.refuse(CodeState, 1, &tx.Paid{Payout: p, Reference: "again"})
	s.must(2, &tx.Payout{Amount: 20 * credit})
	for range 15 {
		s.block(day)
	}
	if s.own(2) != 40*credit {
		t.Fatal("what nobody pays comes back", s.own(2))
	}
	if c := s.m.Sheet(); c.Cash != 80*credit || c.Owed != 80*credit || c.Funds != 0 {
		t.Errorf("%+v", c)
	}
	// A reversal leaves both entries, and a debt where the money is gone.
	d := s.must(1, &tx.Deposit{Member: 3, Amount: 10 * credit, Reference: "typed wrong"})
	s.must(3, &tx.Contribute{Fund: FundReserve, Amount: 50 * credit})
	s.refuse(CodeValue, 1, &tx.Reverse{Entry: d})
	s.must(1, &tx.Reverse{Entry: d, Reason: "not ten but none"})
	s.refuse(CodeState, 1, &tx.Reverse{Entry: d, Reason: "twice"})
	if s.own(3) != -10*credit {
		t.Fatal(s.own(3))
	}
	if e, _ := s.m.Entry(d); e.State != EntryReversed {
		t.Fatal(e.State)
	}
	// Money leaves funds by budgets only, and not more than they say.
	s.refuse(CodeUnknown, 1, &tx.Spend{Budget: 1, Amount: 1, Reference: "x"})
	b := s.measure(&tx.NewBudget{Fund: FundReserve, Amount: 30 * credit, Purpose: "a mast", Until: s.now + 90*day})
	s.refuse(CodeFunds, 1, &tx.Spend{Budget: b, Amount: 31 * credit, Reference: "x"})
	s.refuse(CodeValue, 1, &tx.Spend{Budget: b, Amount: credit})
	sp := s.must(1, &tx.Spend{Budget: b, Amount: 30 * credit, Reference: "bill 4"})
	s.must(1, &tx.Reverse{Entry: sp, Reason: "it was returned"})
	s.must(1, &tx.Spend{Budget: b, Amount: 29 * credit, Reference: "bill 5"})
	s.block(100 * day)
	s.refuse(CodeState, 1, &tx.Spend{Budget: b, Amount: credit, Reference: "x"})
	s.refuse(CodeUnknown, 1, &tx.Reverse{Entry: sp, Reason: "too late"})
	s.mustAudit()
}

// While one entry waits to pay a payout no other may; when it was cancelled or has lapsed, another may.
func TestPaidTwice(t *testing.T) {
	s := newShop(t, 3, "treasury.two_person=10000000000") // 10 credits
	s.must(2, &tx.Countersign{Entry: s.must(1, &tx.Deposit{Member: 2, Amount: 50 * credit, Reference: "x"})})
	p := s.must(2, &tx.Payout{Amount: 20 * credit})
	first := s.must(1, &tx.Paid{Payout: p, Reference: "transfer 10"})
	s.refuse(CodeExists, 1, &tx.Paid{Payout: p, Reference: "transfer 10"})
	s.must(1, &tx.Cancel{Entry: first, Reason: "another bank"})
	second := s.must(1, &tx.Paid{Payout: p, Reference: "transfer 11"})
	s.refuse(CodeExists, 1, &tx.Paid{Payout: p, Reference: "transfer 11"})
	if e, _ := s.m.Entry(p); e.State != EntryWaits || e.Other != second || e.Until <= s.now+s.m.Params().PendingLife {
		t.Fatalf("%+v", e)
	}
	s.block(s.m.Params().PendingLife)
	if e, _ := s.m.Entry(second); e.State != EntryLapsed {
		t.Fatalf("%+v", e)
	}
	third := s.must(1, &tx.Paid{Payout: p, Reference: "transfer 12"})
	s.must(3, &tx.Countersign{Entry: third})
	s.refuse(CodeState, 1, &tx.Paid{Payout: p, Reference: "transfer 12"})
	if e, _ := s.m.Entry(p); e.State != EntryDone || e.Other != third || s.own(2) != 30*credit {
		t.Fatalf("%+v", e)
	}
	s.mustAudit()
}

func TestTariff(t *testing.T) {
	l := Line{tx.SetLine{Fee: 2 * credit, Blocks: []tx.Block{{Bytes: 10e9, Price: 0}, {Bytes: 5e9, Price: credit}, {Price: credit / 2}}, Cap: 20 * credit}}
	for _, c := range []struct {
		times uint32
		bytes uint64
		want  int64
	}{{0, 0, 0}, {1, 9e9, 2 * credit}, {1, 12e9, 4 * credit}, {0, 17e9, 6 * credit}, {3, 15e9, 11 * credit}, {1, 1 << 60, 20 * credit}, {1 << 31, 0, 20 * credit}} {
		if got, ok := l.Price(c.times, c.bytes); !ok || got != c.want {
			t.Errorf("%d times and %d bytes: %d, want %d", c.times, c.bytes, got, c.want)
		}
	}
	l.Cap = 0
	if _, ok := l.Price(1, 1<<60); !ok {
		t.Error("an exabyte at half a credit fits")
	}
	l.Blocks[2].Price = tx.MaxAmount
	if _, ok := l.Price(1, 1<<63); ok {
		t.Error("a price that does not fit")
	}
}

// Fees by the month, help from the solidarity fund, and arrears of who cannot pay.
func TestFees(t *testing.T) {
	s := newShop(t, 3, "tariff.member_fee=10000000000", "tariff.solidarity_discount=400", "surplus.reserve=0", "surplus.solidarity=0")
	s.must(1, &tx.Deposit{Fund: FundSolidarity, Amount: 5 * credit, Reference: "a gift"})
	s.pay(1, 100*credit)
	s.must(1, &tx.Deposit{Member: 2, Amount: 7 * credit, Reference: "x"})
	s.vote(&tx.ActCredit{Member: 2, Grant: 0, Solidarity: s.now + year})
	before := s.own(2)
	for _, at := range []int64{fromCivil(2023, 12, 1), fromCivil(2024, 1, 1)} {
		s.block(at - s.now)
		s.rest()
	}
	// 10: member 1 pays all twice. Member 2: 4 of 5 by the fund, 6, then 1 by the fund and 1 of 9. Member 3 owes 20.
	if s.own(1) != 80*credit || s.own(2) != 0 || s.own(3) != 0 || before != 7*credit {
		t.Fatal(s.own(1), s.own(2), s.own(3))
	}
	if a := s.m.Arrears(2); len(a) != 1 || a[0].Amount != 8*credit {
		t.Errorf("%+v", a)
	}
	if a := s.m.Arrears(3); len(a) != 1 || a[0].Amount != 20*credit {
		t.Errorf("%+v", a)
	}
	if s.in(FundOperating) != 32*credit || s.in(FundSolidarity) != 0 {
		t.Error(s.in(FundOperating), s.in(FundSolidarity))
	}
	st := MakeStatement(s.m.chain, 2, s.postings, 0, s.now+1)
	text := ""
	for _, l := range st.Lines {
		text += fmt.Sprintln(l.Text, FormatAmount(l.Amount))
	}
	for _, want := range []string{"the solidarity fund paid 4.000000000", "membership 2023-12 -6.0", "membership 2024-01: 8.000000000 credits are owed"} {
		if !strings.Contains(text, want) {
			t.Errorf("the statement lacks %q:\n%s", want, text)
		}
	}
	if st.Closing != 0 || strings.Contains(string(AppendCSV(nil, s.postings)), "member 2") {
		t.Error("the statement's end, or a name in the books")
	}
	// What is owed is paid when there is money again.
	s.must(1, &tx.Deposit{Member: 3, Amount: 100 * credit, Reference: "x"})
	s.block(fromCivil(2024, 2, 1) - s.now)
	s.rest()
	if s.own(3) != 70*credit || len(s.m.Arrears(3)) != 0 {
		t.Error(s.own(3), s.m.Arrears(3))
	}
	s.mustAudit()
}

func TestShares(t *testing.T) {
	s := newShop(t, 2, "member.share=25000000000", "share.least=1", "share.most=4", "surplus.interest=40", "share.lock=yes")
	s.pay(1, 200*credit)
	s.refuse(CodeValue, 1, &tx.BuyShares{Count: 5})
	s.refuse(CodeValue, 1, &tx.BuyShares{})
	s.refuse(CodeFunds, 2, &tx.BuyShares{Count: 1})
	s.must(1, &tx.BuyShares{Count: 4})
	s.refuse(CodeForbid, 1, &tx.RedeemShares{Count: 4})
	s.must(1, &tx.RedeemShares{Count: 1})
	if h := s.m.Shares(1); h.Count != 3 || h.Paid != 75*credit || s.own(1) != 125*credit {
		t.Fatalf("%+v %d", h, s.own(1))
	}
	s.endYear() // bought in this year: no interest yet
	s.measure(&tx.SetLine{Called: "x", Class: 1, Fund: FundOperating, Fee: 50 * credit})
	s.must(1, &tx.Charge{Member: 1, Line: 1, Times: 1})
	p := s.endYear()
	if p.Interest != 3*credit || s.own(1) != 78*credit || p.Allocated != 0 || s.in(FundReserve) != 44*credit+65*credit/100 || s.in(FundSolidarity) != 235*cent {
		t.Errorf("%+v %d %d", p, s.own(1), s.in(FundReserve))
	}
	s.mustAudit()
}

// Random business over some years, under random bylaws: the books hold together in every block, and an audit, which computes all of
// it a second time, finds nothing.
func TestBooksAgainstAudit(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		pick := func(l ...string) string { return rapid.SampledFrom(l).Draw(rt, "bylaw") }
		set := []string{
			"surplus.basis=" + pick("paid", "bytes"), "surplus.loss=" + pick("carry", "reserve", "members"), "surplus.pooled=" + pick("yes", "no"),
			"surplus.shared=" + pick("revenue", "equal", "bytes"), "surplus.cash=" + pick("0", "200", "1000"), "surplus.cash_least=" + pick("0", "1000000000"),
			"surplus.minor=" + pick("1", "10000000", "7"), "surplus.interest=" + pick("0", "50"), "surplus.reserve=" + pick("0", "100"),
			"member.share=1000000000", "year.months=" + pick("3", "12"), "capital.retirement=any", "tariff.member_fee=" + pick("0", "3000000000"),
			"tariff.solidarity_discount=333",
		}
		s := newShop(t, 4, set...)
		s.measure(&tx.SetLine{Called: "a", Class: 1, Fund: FundOperating, Fee: 3, Blocks: []tx.Block{{Price: 333_333_333}}})
		s.measure(&tx.SetLine{Called: "b", Class: 3, Fund: FundUpstream, Blocks: []tx.Block{{Bytes: 1e9, Price: 777}, {Price: credit}}, Cap: 9 * credit})
		s.measure(&tx.SetLine{Called: "c", Class: 3, Fund: FundUpstream, Shared: true})
		var budgets []uint64
		for i, b := range []tx.NewBudget{{Fund: FundOperating, Cost: true}, {Fund: FundOperating, Cost: true, Class: 1}, {Fund: FundUpstream, Cost: true, Class: 3, Business: tx.WithBoth}, {Fund: FundOperating, Cost: true, Business: tx.WithOthers}, {Fund: FundCapital}} {
			b.Amount, b.Purpose = 1000*credit, fmt.Sprint("purpose ", i)
			budgets = append(budgets, s.measure(&b))
		}
		s.vote(&tx.ActCredit{Member: 2, Grant: 0, Solidarity: s.now + year})
		for range rapid.IntRange(20, 60).Draw(rt, "steps") {
			who := rapid.IntRange(1, 4).Draw(rt, "who")
			amount := rapid.Int64Range(0, 40*credit).Draw(rt, "amount")
			bytes := rapid.Uint64Range(0, 30e9).Draw(rt, "bytes")
			last := rapid.Bool().Draw(rt, "last")
			switch rapid.IntRange(0, 13).Draw(rt, "step") {
			case 0, 1:
				s.send(1, &tx.Deposit{Member: uint64(who), Amount: amount * 3, Reference: "r", Way: tx.Way(who % 3)})
				for _, e := range s.m.Waiting() {
					s.send(2, &tx.Countersign{Entry: e.ID})
				}
			case 2:
				s.send(1, &tx.Deposit{Fund: uint64(who), Amount: amount, Class: uint8(who % 4), Last: last, Reference: "r"})
			case 3, 4, 5:
				s.send(1, &tx.Charge{Member: uint64(who), Line: uint64(1 + bytes%2), Bytes: bytes, Times: 1, Last: last})
			case 6:
				s.send(1, &tx.ShareBill{Line: 3, Bill: amount, Equal: amount / 9, Parts: []tx.Part{{Member: 4, Usage: bytes}, {Member: uint64(who%3 + 1), Usage: 1e9}}, Last: last})
			case 7, 8:
				s.send(1, &tx.Spend{Budget: budgets[bytes%uint64(len(budgets))], Amount: amount, Last: last, Reference: "r", Member: uint64(who-1) * (bytes % 2)})
			case 9:
				s.send(1, &tx.Reverse{Entry: bytes % 40, Reason: "r"})
			case 10:
				s.send(who, &tx.BuyShares{Count: uint32(bytes % 5)})
				s.send(who, &tx.RedeemShares{Count: uint32(bytes % 4)})
			case 11:
				if r := (&tx.Retire{Method: tx.Method(bytes % 4), Amount: min(s.in(FundCapital), s.m.Sheet().Capital) / int64(bytes%3+1), Oldest: 300}); r.Amount >= s.m.view(Header{}).params().Minor {
					s.measure(r)
					s.rest()
				}
			case 12, 13:
				s.block(rapid.Int64Range(1, 100).Draw(rt, "days") * day)
				s.rest()
			}
		}
		s.endYear()
		s.endYear()
		s.mustAudit()
		if _, err := parseBeancount(string(AppendBeancount(nil, "t", s.postings, s.m.TrialBalance()))); err != nil {
			rt.Fatal(err)
		}
	})
}

// An audit sees a single unit.
func TestAuditSees(t *testing.T) {
	s := newShop(t, 2)
	s.must(1, &tx.Deposit{Member: 2, Amount: 5 * credit, Reference: "x"})
	s.mustAudit()
	live := s.store.Clone()
	var a Account
	load(live, accountKey(govKey(2)), &a)
	a.Balance++
	live.Set(accountKey(govKey(2)), tx.Encode(&a))
	if r := s.audit(live); len(r.Differences) != 1 {
		t.Error(r.Differences)
	}
	live.Set(accountKey(govKey(2)), s.store.Get(accountKey(govKey(2))))
	live.Set([]byte("zz"), []byte{1})
	if r := s.audit(live); len(r.Differences) != 1 {
		t.Error(r.Differences)
	}
}

// parseBeancount reads what AppendBeancount writes, by the rules of the language that matter: accounts are opened before use,
// transactions sum to zero, assertions hold.
func parseBeancount(text string) (map[string]int64, error) {
	balance, open := map[string]int64{}, map[string]bool{}
	sum, in := int64(0), false
	number := func(s string) (int64, error) {
		whole, frac, ok := strings.Cut(s, ".")
		if !ok || len(frac) != 9 {
			return 0, fmt.Errorf("amount %q", s)
		}
		return strconv.ParseInt(whole+frac, 10, 64)
	}
	for n, line := range append(strings.Split(text, "\n"), "") {
		f := strings.Fields(line)
		switch {
		case line == "":
			if in && sum != 0 {
				return nil, fmt.Errorf("line %d: the transaction sums to %d", n, sum)
			}
			sum, in = 0, false
		case strings.HasPrefix(line, "option ") || strings.HasPrefix(line, ";") || strings.HasPrefix(line, "  entry:") || strings.HasPrefix(line, "  block:"):
		case strings.HasPrefix(line, "  "):
			v, err := number(f[1])
			if err != nil || len(f) != 3 || f[2] != "CREDIT" || !in || !open[f[0]] {
				return nil, fmt.Errorf("line %d: %q: %v", n, line, err)
			}
			sum += v
			balance[f[0]] += v
		case len(f) > 2 && f[1] == "open":
			open[f[2]] = true
		case len(f) > 2 && f[1] == "*":
			in = true
		case len(f) == 5 && f[1] == "balance":
			if v, err := number(f[3]); err != nil || v != balance[f[2]] {
				return nil, fmt.Errorf("line %d: %s is at %d, not %s", n, f[2], balance[f[2]], f[3])
			}
		default:
			return nil, fmt.Errorf("line %d: %q", n, line)
		}
	}
	return balance, nil
}

func TestExports(t *testing.T) {
	s := newShop(t, 2, "member.share=1000000000", "tariff.member_fee=1000000000")
	s.must(1, &tx.Deposit{Member: 2, Amount: 5 * credit, Reference: "=HYPERLINK(\"x\") \"and\" \\ more\nlines"})
	s.must(2, &tx.Payout{Amount: 1, Where: "home"})
	s.must(2, &tx.BuyShares{Count: 1})
	s.must(2, &tx.Transfer{To: govKey(1), Amount: 7, Memo: "=1+1"})
	s.openTab(2, 1, 1000)
	s.postings = append(s.postings, s.last.Postings...)
	s.block(40 * day)
	s.rest()
	bean := AppendBeancount(nil, `our "books"`, s.postings, s.m.TrialBalance())
	got, err := parseBeancount(string(bean))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range s.m.TrialBalance() {
		if got[beanAccount(b.Account)] != -b.Amount {
			t.Errorf("%s is at %d in the books and at %d in Beancount", b.Account, b.Amount, got[beanAccount(b.Account)])
		}
	}
	csv := string(AppendCSV(nil, s.postings))
	if !strings.Contains(csv, `"'=1+1"`) || !strings.Contains(csv, "2023-11-14T22:13:2") {
		t.Error(csv)
	}
	if !slices.Equal(bean, AppendBeancount(nil, `our "books"`, s.postings, s.m.TrialBalance())) {
		t.Error("not the same twice")
	}
	path, err := exec.LookPath("bean-check")
	if err != nil {
		t.Skip("bean-check is not installed: only our own parser has read the export")
	}
	cmd := exec.Command(path, "/dev/stdin")
	cmd.Stdin = strings.NewReader(string(bean))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("bean-check: %v\n%s", err, out)
	}
}

func TestCalendar(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		at := rapid.Int64Range(-1e10, 1e11).Draw(t, "t")
		y, m, d := civil(at)
		if got := fromCivil(y, m, d); got > at || at-got >= day || m < 1 || m > 12 || d < 1 || d > 31 {
			t.Fatal(at, y, m, d, got)
		}
	})
	for _, c := range []struct {
		at, first, months int64
		want              string
	}{{govStart, 1, 12, "2024-01-01"}, {govStart, 4, 12, "2024-04-01"}, {govStart, 1, 3, "2024-01-01"}, {govStart, 11, 1, "2023-12-01"}, {fromCivil(2024, 2, 29), 1, 1, "2024-03-01"}, {fromCivil(2024, 4, 1), 4, 12, "2025-04-01"}} {
		if got := formatDay(periodEnd(c.at, c.first, c.months)); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
	if got := FormatTime(951_782_399); got != "2000-02-28T23:59:59Z" {
		t.Error(got)
	}
}
