package ledger

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"weft/ident"
	"weft/ledger/tx"
)

// gov is a community under test: every transaction is a block, and every block checks all invariants.
type gov struct {
	t      testing.TB
	m      *Machine
	store  *Mem
	now    int64
	height int64
	last   Outcome
}

func govAgent(i int) *ident.Agent {
	seed := make([]byte, 32)
	binary.BigEndian.PutUint32(seed[4:], uint32(i))
	a, err := ident.FromSeed(seed)
	if err != nil {
		panic(err)
	}
	return a
}

func govKey(i int) ident.PublicKey { return govAgent(i).Public() }

const govStart = 1_700_000_000

// newGov founds a community of n, members 1 to n with the agents of those numbers; agent 101 is the validator of member 1.
func newGov(t testing.TB, n int, settings ...string) *gov {
	t.Helper()
	g := Genesis{Chain: "gov-1", Time: govStart, Validators: []FirstValidator{{Key: govKey(101), Operator: 1, Node: govKey(201)}}}
	for i := 1; i <= n; i++ {
		g.Founders = append(g.Founders, Founder{Key: govKey(i), Name: fmt.Sprint("member ", i), Limit: 100})
	}
	for _, s := range append([]string{"tx.each=1000", "member.vouch_age=0"}, settings...) {
		name, value, _ := strings.Cut(s, "=")
		g.Settings = append(g.Settings, tx.Setting{Name: name, Value: value})
	}
	w := &gov{t: t, store: NewMem(), now: govStart}
	var err error
	if w.m, err = New(w.store); err != nil {
		t.Fatal(err)
	}
	w.m.Strict = true
	if err := w.m.Init(g); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *gov) sign(i int, b tx.Body) []byte {
	w.t.Helper()
	var a Account
	load(w.store, accountKey(govKey(i)), &a)
	raw, err := tx.Tx{Chain: tx.ChainOf("gov-1"), Nonce: a.Nonce + 1, Expiry: w.now + day, Body: b}.Sign(govAgent(i))
	if err != nil {
		w.t.Fatal(err)
	}
	return raw
}

func (w *gov) block(seconds int64, txs ...[]byte) Outcome {
	w.now += seconds
	w.height++
	w.last = w.m.Block(Header{Height: w.height, Time: w.now}, txs)
	return w.last
}

// send puts one transaction into a block of its own.
func (w *gov) send(i int, b tx.Body) Result { return w.block(1, w.sign(i, b)).Results[0] }

func (w *gov) must(i int, b tx.Body) []byte {
	w.t.Helper()
	r := w.send(i, b)
	if r.Code != OK {
		w.t.Fatalf("%s of %d: %d %s", tx.Name(b.Kind()), i, r.Code, r.Text)
	}
	return r.Data
}

func (w *gov) refuse(want Code, i int, b tx.Body) {
	w.t.Helper()
	if r := w.send(i, b); r.Code != want {
		w.t.Errorf("%s of %d: code %d %q, want %d", tx.Name(b.Kind()), i, r.Code, r.Text, want)
	}
}

// pass lets time go by in a dozen blocks and two.
func (w *gov) pass(seconds int64) {
	for range 12 {
		w.block(seconds / 12)
	}
	w.block(seconds % 12)
	w.block(1)
}

func (w *gov) apply(i, sponsor int) *tx.Apply {
	until := w.now + week
	word := govAgent(sponsor).Sign(tx.SponsorDomain, tx.SponsorMessage(tx.ChainOf("gov-1"), govKey(i), until))
	return &tx.Apply{Called: fmt.Sprint("member ", i), Sponsor: govKey(sponsor), Until: until, Word: word}
}

func (w *gov) rekey(member uint64, old, next int) tx.Rekey {
	return tx.Rekey{Member: member, New: govKey(next), Word: govAgent(next).Sign(tx.RekeyDomain, tx.RekeyMessage(tx.ChainOf("gov-1"), member, govKey(old), govKey(next)))}
}

func (w *gov) propose(i int, a tx.Action) uint64 {
	w.t.Helper()
	return binary.BigEndian.Uint64(w.must(i, &tx.Propose{Title: a.Decision().String(), Action: a}))
}

// decide proposes, lets all voters say yes, and waits for the effect.
func (w *gov) decide(a tx.Action, voters ...int) Progress {
	w.t.Helper()
	id := w.propose(voters[0], a)
	if w.m.Params().Notice == 0 {
		w.block(1)
	}
	for _, v := range voters[1:] {
		if _, g, _ := w.m.Proposal(id); g.Stage == Notice {
			w.must(v, &tx.Support{Proposal: id})
		}
	}
	if _, g, _ := w.m.Proposal(id); g.Stage == Notice {
		w.pass(w.m.Params().Notice)
	}
	for _, v := range voters {
		w.must(v, &tx.Vote{Proposal: id, Choice: tx.Yes})
	}
	if w.block(1); w.stage(id) == Voting {
		w.pass(w.m.Params().Voting)
	}
	_, g, _ := w.m.Proposal(id)
	return g
}

func (w *gov) stage(id uint64) Stage {
	_, g, _ := w.m.Proposal(id)
	return g.Stage
}

func (w *gov) member(id uint64) Member {
	w.t.Helper()
	m, ok := w.m.Member(id)
	if !ok {
		w.t.Fatalf("there is no member %d", id)
	}
	return m
}

func TestJoinByVouches(t *testing.T) {
	w := newGov(t, 2, "member.vouches=2", "member.vouches_each=2")
	w.refuse(CodeForbid, 3, &tx.Transfer{To: govKey(1), Amount: 1}) // a stranger
	w.refuse(CodeSig, 3, &tx.Apply{Called: "x", Sponsor: govKey(1), Until: w.now + week})
	stolen := w.apply(4, 1)
	stolen.Called = "thief"
	w.refuse(CodeSig, 3, stolen) // a word for another key
	old := w.apply(3, 1)
	old.Until = w.now - 1
	w.refuse(CodeExpired, 3, old)
	if w.store.Get(accountKey(govKey(3))) != nil {
		t.Error("something was stored for a stranger")
	}
	w.must(3, w.apply(3, 1))
	w.refuse(CodeExists, 3, w.apply(3, 2))
	w.refuse(CodeExists, 1, &tx.Vouch{Applicant: govKey(3)})
	w.refuse(CodeForbid, 3, &tx.Vouch{Applicant: govKey(3)})
	w.refuse(CodeForbid, 3, &tx.Propose{Title: "me", Action: &tx.ActText{}})
	w.must(2, &tx.Vouch{Applicant: govKey(3)})
	m := w.member(3)
	if m.Key != govKey(3) || m.State != Active || m.Class != ClassNew {
		t.Errorf("%+v", m)
	}
	var a Account
	if load(w.store, accountKey(m.Key), &a); a.Limit != w.m.Params().CreditNew || a.Nonce != 4 {
		t.Errorf("%+v", a)
	}
	w.must(4, w.apply(4, 1))
	w.refuse(CodeTooMany, 5, w.apply(5, 1)) // has given its two vouches
	w.must(2, &tx.Vouch{Applicant: govKey(4)})
	w.must(5, w.apply(5, 3))
	w.refuse(CodeTooMany, 2, &tx.Vouch{Applicant: govKey(5)})
	w.must(3, &tx.Unvouch{Applicant: govKey(5)})
	w.pass(30 * day)
	if l := w.m.Applications(); len(l) != 0 {
		t.Errorf("an application did not lapse: %+v", l)
	}
	w.refuse(CodeUnknown, 1, &tx.Vouch{Applicant: govKey(5)})
	w.must(5, w.apply(5, 3)) // and again
}

func TestAdmissionByVote(t *testing.T) {
	for rule, want := range map[string]Code{"vouch": CodeState, "vote": OK, "both": CodeState, "either": OK} {
		t.Run(rule, func(t *testing.T) {
			w := newGov(t, 3, "member.admission="+rule, "member.vouches=2")
			w.must(9, w.apply(9, 1))
			w.refuse(CodeUnknown, 1, &tx.Propose{Title: "x", Action: &tx.ActAdmission{Applicant: govKey(8)}})
			if r := w.send(1, &tx.Propose{Title: "x", Action: &tx.ActAdmission{Applicant: govKey(9)}}); r.Code != want {
				t.Fatalf("%+v", r)
			} else if r.Code == OK {
				w.must(1, &tx.Withdraw{Proposal: 1})
			}
			if rule == "either" {
				w.must(2, &tx.Vouch{Applicant: govKey(9)})
				w.member(4)
				return
			}
			if rule == "vouch" {
				return
			}
			w.must(2, &tx.Vouch{Applicant: govKey(9)})
			if _, ok := w.m.Member(4); ok {
				t.Fatal("vouches alone sufficed")
			}
			if g := w.decide(&tx.ActAdmission{Applicant: govKey(9)}, 1, 2, 3); g.Stage != Done {
				t.Fatalf("%+v", g)
			}
			w.member(4)
		})
	}
}

func TestLeaveAndReturn(t *testing.T) {
	w := newGov(t, 2, "member.vouches=1")
	w.refuse(CodeState, 1, &tx.Leave{}) // runs the last validator
	w.must(2, &tx.Transfer{To: govKey(1), Amount: 5})
	w.refuse(CodeFunds, 2, &tx.Leave{})
	w.must(1, &tx.Transfer{To: govKey(2), Amount: 5})
	w.must(2, &tx.Delegate{To: 1})
	w.must(2, &tx.Leave{})
	w.refuse(CodeForbid, 2, &tx.Leave{})
	w.refuse(CodeState, 2, &tx.Propose{Title: "x", Action: &tx.ActText{}})
	w.refuse(CodeFunds, 2, &tx.Transfer{To: govKey(1), Amount: 1}) // no credit left
	w.refuse(CodeState, 1, &tx.Leave{})
	if _, from := w.m.Delegations(1); len(from) != 0 {
		t.Errorf("the delegation stayed: %v", from)
	}
	w.must(2, w.apply(2, 1))
	if m := w.member(2); m.State != Active || m.Founder || m.Joined != w.now || m.Grant != -1 {
		t.Errorf("%+v", m)
	}
	if n := w.m.ActiveMembers(); n != 2 {
		t.Errorf("%d members", n)
	}
}

func TestVoteWindow(t *testing.T) {
	w := newGov(t, 5, "vote.notice=3600", "vote.window=7200", "vote.quorum=400", "vote.early=no", "member.vouches=1")
	id := w.propose(1, &tx.ActText{})
	v := func(c tx.Choice) *tx.Vote { return &tx.Vote{Proposal: id, Choice: c} }
	w.refuse(CodeState, 1, v(tx.Yes)) // before it opens
	w.refuse(CodeUnknown, 1, &tx.Vote{Proposal: 7, Choice: tx.Yes})
	w.pass(3600)
	w.must(9, w.apply(9, 1)) // a member now, but after the vote began
	w.refuse(CodeForbid, 9, v(tx.Yes))
	w.refuse(CodeForbid, 10, v(tx.Yes))
	w.must(1, v(tx.Yes))
	w.refuse(CodeExists, 1, v(tx.Yes)) // twice
	w.must(1, v(tx.No))                // but one may think again
	w.must(1, v(tx.Yes))
	w.refuse(CodeState, 2, &tx.Support{Proposal: id})
	w.refuse(CodeForbid, 2, &tx.Withdraw{Proposal: id})
	w.must(2, v(tx.Abstain))
	if _, g, _ := w.m.Proposal(id); g.Yes != 1 || g.No != 0 || g.Abstain != 1 || g.Eligible != 5 || g.Quorum != 2 || g.Bylaws != 1 {
		t.Errorf("%+v", g)
	}
	w.pass(7200)
	w.refuse(CodeState, 3, v(tx.No)) // after the close
	w.refuse(CodeState, 1, &tx.Withdraw{Proposal: id})
	if s := w.stage(id); s != Done {
		t.Errorf("it is %s", s)
	}
	// The last second counts; the second of the close does not.
	id = w.propose(1, &tx.ActText{})
	w.pass(3600)
	_, g, _ := w.m.Proposal(id)
	for range fewestBlocks {
		w.block(1)
	}
	w.now = g.Closes - 2
	w.must(2, v(tx.Yes))
	w.refuse(CodeState, 3, v(tx.Yes))
}

func TestQuorumAndMajority(t *testing.T) {
	for _, c := range []struct {
		yes, no, abstain int
		want             Stage
	}{
		{0, 0, 0, NoQuorum}, {1, 0, 0, NoQuorum}, {2, 0, 0, Done}, {1, 1, 0, Rejected}, {2, 1, 0, Done}, {0, 0, 6, Rejected},
		{1, 0, 5, Done}, {3, 3, 0, Rejected}, {0, 3, 0, Rejected},
	} {
		w := newGov(t, 6, "vote.quorum=200", "vote.notice=0", "vote.early=no")
		id := w.propose(1, &tx.ActText{})
		w.block(1)
		i := 1
		for _, x := range []struct {
			n int
			c tx.Choice
		}{{c.yes, tx.Yes}, {c.no, tx.No}, {c.abstain, tx.Abstain}} {
			for range x.n {
				w.must(i, &tx.Vote{Proposal: id, Choice: x.c})
				i++
			}
		}
		w.pass(week)
		if s := w.stage(id); s != c.want {
			t.Errorf("%d yes, %d no, %d abstain of 6: %s, want %s", c.yes, c.no, c.abstain, s, c.want)
		}
	}
	// Majorities by decision: two thirds for the bylaws, half for the tariff.
	for _, c := range []struct {
		p        Progress
		decision tx.Decision
		want     bool
	}{
		{Progress{Yes: 2, No: 1}, tx.DecideBylaws, true}, {Progress{Yes: 65, No: 35}, tx.DecideBylaws, false},
		{Progress{Yes: 51, No: 49}, tx.DecideTariff, true}, {Progress{Yes: 50, No: 50}, tx.DecideTariff, false},
		{Progress{Yes: 3, No: 1}, tx.DecideRekey, true}, {Progress{Yes: 74, No: 26}, tx.DecideRekey, false}, {Progress{}, tx.DecideText, false},
	} {
		c.p.Majority = majorities[c.decision]
		if c.p.Carries() != c.want {
			t.Errorf("%+v on %s", c.p, c.decision)
		}
	}
	for _, c := range []struct{ n, permille, most, least, want int64 }{
		{500, 100, 50, 1, 50}, {5000, 100, 50, 1, 50}, {499, 100, 50, 1, 50}, {9, 100, 0, 1, 1}, {11, 100, 0, 1, 2}, {10, 0, 0, 3, 3}, {2, 0, 0, 3, 2}, {1000, 50, 0, 1, 50},
	} {
		if q := quorum(&Params{QuorumPermille: c.permille, QuorumMost: c.most, QuorumLeast: c.least}, uint64(c.n)); q != uint64(c.want) {
			t.Errorf("quorum of %+v is %d", c, q)
		}
	}
}

// One founder alone decides at once: everybody has supported, everybody has voted.
// Where only households may be members, the founder stands for one.
func TestFounderIsOfTheForm(t *testing.T) {
	for _, l := range Templates() {
		m, err := New(NewMem())
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Init(Genesis{Chain: "elm-1", Time: 1, Founders: []Founder{{Key: govKey(0), Name: "Fay"}}, Settings: l.Settings()}); err != nil {
			t.Fatal(l.Name, err)
		}
		want := tx.Person
		if l.Name == "block" {
			want = tx.Household
		}
		if mb, _ := m.Member(1); mb.Form != want {
			t.Errorf("%s: the founder is a %s", l.Name, mb.Form)
		}
	}
}

func TestDomain(t *testing.T) {
	a, b := ChainID("elm-street", "20261122", govKey(1)), ChainID("elm-street", "20261122", govKey(2))
	if a == b || Domain(a) != "elm-street" || Domain(b) != "elm-street" || len(ChainID(strings.Repeat("n", 30), "20261122", govKey(1))) > 50 {
		t.Error(a, b, Domain(a))
	}
	for id, want := range map[string]string{"elm-20261122": "elm", "riverside-1": "riverside-1", "a-20261122-20261122-00ff": "a-20261122", "-20261122": "-20261122"} {
		if got := Domain(id); got != want {
			t.Errorf("%s is called %s", id, got)
		}
	}
}

func TestAlone(t *testing.T) {
	w := newGov(t, 1)
	if g := w.decide(&tx.ActTariff{Settings: []tx.Setting{{Name: "tariff.free", Value: "1000"}}}, 1); g.Stage != Done || w.now > govStart+10 {
		t.Errorf("%+v after %d s", g, w.now-govStart)
	}
	if p := w.m.Params(); p.FreeKbit != 1000 || p.Version != 2 || p.Since != w.now {
		t.Errorf("%d in version %d", p.FreeKbit, p.Version)
	}
}

func TestBylaws(t *testing.T) {
	w := newGov(t, 2)
	set := func(l ...string) (s []tx.Setting) {
		for i := 0; i < len(l); i += 2 {
			s = append(s, tx.Setting{Name: l[i], Value: l[i+1]})
		}
		return s
	}
	for _, s := range [][]tx.Setting{nil, set("no.such", "1"), set("tariff.free", "0"), set("tariff.free", "+17"), set("tariff.free", "017"), set("member.admission", "maybe"),
		set("tariff.exposure_most", "1048576"), set("tariff.free", "20", "tariff.free", "30"), set("vote.window", "60"), set("vote.window", "99999999999999999999")} {
		if r := w.send(1, &tx.Propose{Title: "x", Action: &tx.ActBylaws{Settings: s}}); r.Code == OK {
			t.Errorf("%v may be proposed", s)
		}
	}
	w.refuse(CodeForbid, 1, &tx.Propose{Title: "x", Action: &tx.ActTariff{Settings: set("vote.window", "7200")}})

	// Several at once, at their time, with nobody's help; and a limit that falls below what is owed.
	w.must(1, &tx.Transfer{To: govKey(2), Amount: 90})
	w.must(2, &tx.Transfer{To: govKey(1), Amount: 1})
	from := w.now + 20*day
	id := binary.BigEndian.Uint64(w.must(1, &tx.Propose{Title: "x", From: from, Action: &tx.ActBylaws{Settings: set("tariff.free", "20", "vote.window", "7200", "tx.each", "1000")}}))
	w.must(2, &tx.Support{Proposal: id})
	w.must(1, &tx.Vote{Proposal: id, Choice: tx.Yes})
	w.must(2, &tx.Vote{Proposal: id, Choice: tx.Yes})
	w.pass(day)
	if p := w.m.Params(); w.stage(id) != Passed || p.FreeKbit != 512 || len(w.m.Scheduled()) != 1 {
		t.Errorf("%s, %d", w.stage(id), p.FreeKbit)
	}
	for w.now < from-1 {
		w.block(min(day, from-1-w.now))
	}
	before := w.store.Clone()
	if w.block(0); w.m.Params().FreeKbit != 512 {
		t.Error("too early")
	}
	if k, same := before.Equal(w.store); !same {
		t.Errorf("an empty block changed %q", k)
	}
	w.block(1)
	if p := w.m.Params(); p.FreeKbit != 20 || p.Voting != 7200 || p.TxPerMember != 1000 || p.Version != 2 || w.stage(id) != Done {
		t.Errorf("%+v", p)
	}
	if w.m.ParamsAt(from-1).FreeKbit != 512 || w.m.ParamsAt(from).FreeKbit != 20 || w.m.ParamsAt(0).FreeKbit != 512 {
		t.Error("history is wrong")
	}
	if g := w.decide(&tx.ActCredit{Member: 1, Class: uint8(ClassFull), Grant: 50}, 1, 2); g.Stage != Done {
		t.Fatalf("%+v", g)
	}
	limit := func() int64 {
		var a Account
		load(w.store, accountKey(govKey(1)), &a)
		return a.Limit
	}
	if limit() != 89 {
		t.Errorf("limit %d, want the 89 owed", limit())
	}
	w.must(2, &tx.Transfer{To: govKey(1), Amount: 30})
	w.refuse(CodeFunds, 1, &tx.Transfer{To: govKey(2), Amount: 1}) // what was paid back is not credit again
	w.must(2, &tx.Transfer{To: govKey(1), Amount: 40})
	w.must(1, &tx.Transfer{To: govKey(2), Amount: 31})
	if limit() != 50 {
		t.Errorf("limit %d", limit())
	}
}

// Two decisions that contradict: the one that takes effect last holds; at one time the higher number.
func TestContradiction(t *testing.T) {
	w := newGov(t, 2)
	at := w.now + 30*day
	both := func(value string, from int64) uint64 {
		id := binary.BigEndian.Uint64(w.must(1, &tx.Propose{Title: value, From: from, Action: &tx.ActTariff{Settings: []tx.Setting{{Name: "tariff.free", Value: value}}}}))
		w.must(2, &tx.Support{Proposal: id})
		return id
	}
	ids := []uint64{both("100", at+5), both("200", at), both("300", at)}
	for _, id := range []uint64{3, 1, 2} {
		for _, i := range []int{1, 2} {
			w.must(i, &tx.Vote{Proposal: id, Choice: tx.Yes})
		}
	}
	w.pass(day)
	w.block(at - w.now)
	if v := w.m.Params().FreeKbit; v != 300 {
		t.Errorf("%d kbit/s", v)
	}
	w.block(100 * day) // all that is due, in its order, however late
	if v := w.m.Params().FreeKbit; v != 100 {
		t.Errorf("%d kbit/s", v)
	}
	for _, id := range ids {
		if w.stage(id) != Done {
			t.Errorf("%d is %s", id, w.stage(id))
		}
	}
	// What has become impossible fails and says why.
	id := w.propose(1, &tx.ActBylaws{Settings: []tx.Setting{{Name: "tariff.exposure_least", Value: fmt.Sprint(200 << 20)}}})
	_ = w.decide(&tx.ActTariff{Settings: []tx.Setting{{Name: "tariff.exposure_most", Value: fmt.Sprint(100 << 20)}}}, 1, 2)
	w.must(2, &tx.Support{Proposal: id})
	w.must(1, &tx.Vote{Proposal: id, Choice: tx.Yes})
	w.must(2, &tx.Vote{Proposal: id, Choice: tx.Yes})
	w.block(1)
	if _, g, _ := w.m.Proposal(id); g.Stage != Failed || g.Why != CodeValue || g.Reason() == "" {
		t.Errorf("%+v", g)
	}
}

func TestDelegation(t *testing.T) {
	w := newGov(t, 7, "vote.notice=0", "vote.early=no", "proxy.most=2")
	w.refuse(CodeValue, 1, &tx.Delegate{To: 1})
	w.refuse(CodeUnknown, 1, &tx.Delegate{To: 99})
	w.refuse(CodeUnknown, 1, &tx.Delegate{})
	w.must(2, &tx.Delegate{To: 1})
	w.must(3, &tx.Delegate{To: 1})
	w.refuse(CodeTooMany, 4, &tx.Delegate{To: 1})
	w.must(2, &tx.Delegate{On: tx.DecideBylaws, To: 1}) // the same two people
	w.must(3, &tx.Delegate{On: tx.DecideText, To: 5})
	w.must(4, &tx.Delegate{To: 2}) // not through 2 to 1
	w.must(1, &tx.Delegate{To: 4}) // a loop of three harms nobody
	id := w.propose(1, &tx.ActText{})
	w.block(1)
	tally := func(yes, no, abstain uint64) {
		t.Helper()
		if _, g, _ := w.m.Proposal(id); g.Yes != yes || g.No != no || g.Abstain != abstain {
			t.Errorf("%d:%d:%d, want %d:%d:%d", g.Yes, g.No, g.Abstain, yes, no, abstain)
		}
	}
	yes, no := &tx.Vote{Proposal: id, Choice: tx.Yes}, &tx.Vote{Proposal: id, Choice: tx.No}
	w.must(1, yes)
	tally(2, 0, 0) // 1 and 2; 3 has another for texts; 4 trusts 2
	w.must(5, no)
	tally(2, 2, 0)
	w.must(2, no) // own vote counts instead, and takes 4 along
	tally(1, 4, 0)
	w.must(1, &tx.Vote{Proposal: id, Choice: tx.Abstain})
	tally(0, 4, 1)
	w.must(5, yes)
	tally(2, 2, 1)
	w.must(3, yes) // his own word, though nothing changes in sum
	w.must(5, no)
	tally(1, 3, 1)
	if l := w.m.Ballots(id); len(l) != 5 || l[3].Member != 4 || l[3].By != 2 || l[2].By != 0 {
		t.Errorf("%+v", l)
	}
	w.must(2, &tx.Delegate{})
	if to, _ := w.m.Delegations(2); len(to) != 1 || to[0].On != tx.DecideBylaws {
		t.Errorf("%+v", to)
	}
	w.pass(week)
	w.pass(91 * day)
	if l := w.m.Ballots(id); len(l) != 0 {
		t.Errorf("ballots were kept: %v", l)
	}
	tally(1, 3, 1)
}

func TestHouseholdDelegates(t *testing.T) {
	w := newGov(t, 2, "member.vouches=1", "vote.notice=0", "vote.early=no")
	a := w.apply(9, 1)
	a.Form = tx.Household
	w.must(9, a)
	agree := func(i int, member uint64) tx.DelegateKey {
		return tx.DelegateKey{Key: govKey(i), Word: govAgent(i).Sign(tx.DelegateDomain, tx.DelegateMessage(tx.ChainOf("gov-1"), member, govKey(i)))}
	}
	w.refuse(CodeForbid, 1, &tx.Delegates{Keys: []tx.DelegateKey{agree(11, 1)}}) // a person
	w.refuse(CodeSig, 9, &tx.Delegates{Keys: []tx.DelegateKey{agree(11, 2)}})
	w.refuse(CodeExists, 9, &tx.Delegates{Keys: []tx.DelegateKey{agree(1, 3)}})
	w.refuse(CodeExists, 9, &tx.Delegates{Keys: []tx.DelegateKey{agree(11, 3), agree(11, 3)}})
	w.refuse(CodeTooMany, 9, &tx.Delegates{Keys: []tx.DelegateKey{agree(11, 3), agree(12, 3), agree(13, 3)}})
	w.must(9, &tx.Delegates{Keys: []tx.DelegateKey{agree(11, 3), agree(12, 3)}})
	id := w.propose(11, &tx.ActText{})
	w.block(1)
	w.must(9, &tx.Vote{Proposal: id, Choice: tx.Yes})
	w.must(12, &tx.Vote{Proposal: id, Choice: tx.No}) // one vote for all of them
	if _, g, _ := w.m.Proposal(id); g.Yes != 0 || g.No != 1 {
		t.Errorf("%+v", g)
	}
	w.refuse(CodeForbid, 11, &tx.Vouch{Applicant: govKey(20)})
	w.refuse(CodeForbid, 11, &tx.Delegate{To: 1})
	w.refuse(CodeForbid, 11, &tx.Leave{})
	w.must(9, &tx.Delegates{Keys: []tx.DelegateKey{agree(12, 3)}})
	w.refuse(CodeForbid, 11, &tx.Vote{Proposal: id, Choice: tx.Yes})
	w.must(12, &tx.Vote{Proposal: id, Choice: tx.Yes})
	// A thief who has the household's key cannot stay in it by a key of his own.
	if g := w.decide(&tx.ActRekey{Rekey: w.rekey(3, 9, 90)}, 1, 2); g.Stage != Done || len(w.member(3).Delegates) != 0 {
		t.Errorf("%+v %+v", g, w.member(3))
	}
	w.refuse(CodeForbid, 12, &tx.Propose{Title: "x", Action: &tx.ActText{}})
	w.must(90, &tx.Delegates{Keys: []tx.DelegateKey{agree(12, 3)}})
}

func TestStanding(t *testing.T) {
	w := newGov(t, 4, "vote.notice=0", "vote.early=no", "member.vouches=1")
	id := w.propose(4, &tx.ActText{})
	w.block(1)
	if g := w.decide(&tx.ActStanding{Member: 4, Step: tx.Suspend, Days: 30}, 1, 2, 3); g.Stage != Done {
		t.Fatalf("%+v", g)
	}
	for _, b := range []tx.Body{&tx.Vote{Proposal: id, Choice: tx.Yes}, &tx.Propose{Title: "x", Action: &tx.ActText{}}, &tx.Vouch{Applicant: govKey(1)}, &tx.Delegate{To: 1}} {
		w.refuse(CodeState, 4, b)
	}
	w.refuse(CodeFunds, 4, &tx.Transfer{To: govKey(1), Amount: 1}) // no credit
	w.refuse(CodeSig, 9, &tx.Apply{Called: "x", Sponsor: govKey(1), Until: w.now + 9})
	w.refuse(CodeForbid, 9, w.apply(9, 4))
	w.pass(31 * day)
	if m := w.member(4); m.State != Active {
		t.Errorf("still %s", m.State)
	}
	if g := w.decide(&tx.ActStanding{Member: 4, Step: tx.Suspend, Days: 90}, 1, 2, 3); g.Stage != Done {
		t.Fatalf("%+v", g)
	}
	if g := w.decide(&tx.ActStanding{Member: 4, Step: tx.Reinstate}, 1, 2, 3); g.Stage != Done || w.member(4).State != Active {
		t.Fatalf("%+v", g)
	}
	if g := w.decide(&tx.ActStanding{Member: 4, Step: tx.Expel}, 1, 2, 3); g.Stage != Done || w.member(4).State != Expelled {
		t.Fatalf("%+v", g)
	}
	w.must(4, w.apply(4, 1)) // vouched for, but who was expelled comes back by a vote
	if w.member(4).State != Expelled {
		t.Error("came back by a vouch")
	}
	if g := w.decide(&tx.ActAdmission{Applicant: govKey(4)}, 1, 2, 3); g.Stage != Done || w.member(4).State != Active {
		t.Errorf("%+v", g)
	}
	// Who runs the last validator cannot be expelled before there is another.
	if g := w.decide(&tx.ActStanding{Member: 1, Step: tx.Expel}, 2, 3, 4); g.Stage != Failed || w.member(1).State != Active {
		t.Errorf("%+v", g)
	}
}

func TestRekey(t *testing.T) {
	w := newGov(t, 5, "rekey.vouches=2", "vote.notice=0")
	w.must(1, &tx.Transfer{To: govKey(5), Amount: 7})
	w.must(5, &tx.Delegate{To: 1})
	r := w.rekey(5, 5, 50)
	bad := r
	bad.New = govKey(51)
	w.refuse(CodeSig, 1, &bad) // a key that has not signed
	w.refuse(CodeForbid, 5, &r)
	taken := w.rekey(5, 5, 4)
	w.refuse(CodeExists, 1, &taken)
	w.must(1, &r)
	w.refuse(CodeExists, 1, &r)
	w.must(2, &r)
	rival := w.rekey(5, 5, 52)
	w.refuse(CodeState, 3, &rival)
	// The old key objects: a theft by two members fails, and they cannot try again soon.
	w.must(5, &tx.Veto{})
	w.refuse(CodeState, 5, &tx.Veto{})
	w.refuse(CodeState, 1, &r)
	w.pass(31 * day)
	if w.member(5).Key != govKey(5) {
		t.Fatal("the key was stolen")
	}
	// Lost for good: nobody objects. One voucher thinks again, another comes.
	w.must(1, &r)
	w.must(2, &r)
	w.must(2, &tx.Unrekey{Member: 5})
	w.pass(8 * day)
	if w.member(5).Key != govKey(5) {
		t.Fatal("one voucher sufficed")
	}
	w.must(3, &r)
	w.block(8 * day) // a halt: nobody could object
	if w.member(5).Key != govKey(5) {
		t.Fatal("a halt of the chain took the time to object")
	}
	replay := w.sign(5, &tx.Transfer{To: govKey(2), Amount: 1})
	w.pass(2 * hour)
	if m := w.member(5); m.Key != govKey(50) {
		t.Fatalf("%+v; %+v", m, w.m.Rekeyings())
	}
	if res := w.block(1, replay).Results[0]; res.Code == OK {
		t.Error("the old key still pays")
	}
	w.refuse(CodeForbid, 5, &tx.Transfer{To: govKey(2), Amount: 1})
	w.refuse(CodeForbid, 5, &tx.Veto{})
	w.refuse(CodeForbid, 5, w.apply(5, 1)) // never again
	var a Account
	if load(w.store, accountKey(govKey(50)), &a); a.Balance != 7 || a.Limit != 100 {
		t.Errorf("%+v", a)
	}
	w.must(50, &tx.Transfer{To: govKey(2), Amount: 7})
	if to, _ := w.m.Delegations(5); len(to) != 1 {
		t.Error("the delegation did not follow")
	}
	if c := w.m.view(Header{}); c.owner(govKey(5)) != govKey(50) || c.owner(govKey(50)) != govKey(50) || c.owner(govKey(77)) != govKey(77) {
		t.Error("owner is wrong")
	}
	if m, was, ok := w.m.MemberByKey(govKey(5)); !ok || !was || m.ID != 5 {
		t.Errorf("%+v %v %v", m, was, ok)
	}
	stale := w.rekey(5, 5, 54)
	w.refuse(CodeSig, 1, &stale) // the words of the first change are worth nothing for the next
	// A thief with the present key objects for ever: the members vote.
	again := w.rekey(5, 50, 53)
	w.must(1, &again)
	w.must(50, &tx.Veto{})
	if g := w.decide(&tx.ActRekey{Rekey: again}, 1, 2, 3, 4); g.Stage != Done || w.member(5).Key != govKey(53) {
		t.Errorf("%+v", g)
	}
	if c := w.m.view(Header{}); c.owner(govKey(5)) != govKey(53) || c.owner(govKey(50)) != govKey(53) {
		t.Error("owner is wrong after two changes")
	}
}

func TestValidators(t *testing.T) {
	w := newGov(t, 4, "vote.notice=0")
	ch := func(i int, op uint64, remove bool) tx.ValidatorChange {
		return tx.ValidatorChange{Key: govKey(100 + i), Operator: op, Node: govKey(200 + i), Remove: remove}
	}
	now := func() (l []int) {
		for _, v := range w.m.Validators() {
			for i := range 20 {
				if v.Key == govKey(100+i) && v.Power == 1 {
					l = append(l, i)
				}
			}
		}
		slices.Sort(l)
		return l
	}
	all := []int{1, 2, 3, 4}
	for _, bad := range [][]tx.ValidatorChange{nil, {ch(1, 1, true)}, {ch(1, 2, false)}, {ch(2, 9, false)}, {ch(2, 2, true)}, {ch(2, 2, false), ch(2, 3, false)}, {{Key: govKey(102), Operator: 2}}} {
		if r := w.send(1, &tx.Propose{Title: "x", Action: &tx.ActValidators{Changes: bad}}); r.Code == OK {
			t.Errorf("%+v may be proposed", bad)
		}
	}
	// Six more at once: each block changes less than a third, or one.
	id := w.propose(1, &tx.ActValidators{Changes: []tx.ValidatorChange{ch(2, 2, false), ch(3, 3, false), ch(4, 4, false), ch(5, 1, false), ch(6, 2, false), ch(7, 3, false)}})
	w.block(1)
	for _, i := range all {
		w.must(i, &tx.Vote{Proposal: id, Choice: tx.Yes})
	}
	n := 1
	for range 10 {
		out := w.block(1)
		if len(out.Validators) > max(1, (n-1)/3) {
			t.Errorf("%d of %d changed at once", len(out.Validators), n)
		}
		for i, p := range out.Validators {
			if p.Power != 1 || i > 0 && string(out.Validators[i-1].Key[:]) >= string(p.Key[:]) {
				t.Errorf("%+v", out.Validators)
			}
		}
		n += len(out.Validators)
	}
	if !slices.Equal(now(), []int{1, 2, 3, 4, 5, 6, 7}) {
		t.Fatal(now())
	}
	before := w.store.Clone()
	w.block(1)
	if k, same := before.Equal(w.store); !same {
		t.Errorf("an empty block changed %q", k)
	}
	// Signing twice: out at once, marked, and back by a vote.
	w.height++
	out := w.m.Block(Header{Height: w.height, Time: w.now, Evidence: []Misbehaviour{{govKey(107), 5}, {govKey(107), 5}, {govKey(188), 5}}}, nil)
	if len(out.Validators) != 1 || out.Validators[0] != (Power{govKey(107), 0}) || w.member(3).Flags&FlagDoubleSigned == 0 {
		t.Errorf("%+v %+v", out.Validators, w.member(3))
	}
	if g := w.decide(&tx.ActValidators{Changes: []tx.ValidatorChange{ch(7, 3, false)}}, all...); g.Stage != Done || len(now()) != 7 {
		t.Errorf("%+v %v", g, now())
	}
	w.height++
	if out := w.m.Block(Header{Height: w.height, Time: w.now, Evidence: []Misbehaviour{{govKey(107), 5}}}, nil); len(out.Validators) != 0 {
		t.Error("punished twice for one deed")
	}
	// Operators resign and leave; the last one may not.
	w.must(3, &tx.Resign{})
	w.must(2, &tx.Leave{})
	if !slices.Equal(now(), []int{1, 4, 5}) {
		t.Error(now())
	}
	w.refuse(CodeUnknown, 2, &tx.Resign{})
	if g := w.decide(&tx.ActValidators{Changes: []tx.ValidatorChange{ch(1, 0, true), ch(4, 0, true)}}, 1, 3, 4); g.Stage != Done {
		t.Error(g)
	}
	w.block(1)
	w.block(1)
	if !slices.Equal(now(), []int{5}) {
		t.Error(now())
	}
	w.refuse(CodeState, 1, &tx.Resign{})
	w.height++
	if out := w.m.Block(Header{Height: w.height, Time: w.now, Evidence: []Misbehaviour{{govKey(105), 9}}}, nil); len(out.Validators) != 0 || w.member(1).Flags == 0 {
		t.Error("the last validator went")
	}
}

func TestBlockListElectionUpgrade(t *testing.T) {
	w := newGov(t, 3, "vote.notice=0", "block.most=2", "treasurer.terms=1", "treasurer.most=2")
	bl := func(i int, until int64) tx.BlockChange { return tx.BlockChange{Node: govKey(i), Until: until} }
	until := w.now + 10*day
	if g := w.decide(&tx.ActBlock{Changes: []tx.BlockChange{bl(61, until), bl(62, 0)}}, 1, 2, 3); g.Stage != Done || len(w.m.BlockList()) != 2 {
		t.Errorf("%+v", g)
	}
	if g := w.decide(&tx.ActBlock{Changes: []tx.BlockChange{bl(63, 0)}}, 1, 2, 3); g.Stage != Failed || len(w.m.BlockList()) != 2 {
		t.Errorf("%+v", g)
	}
	w.pass(10 * day)
	if l := w.m.BlockList(); len(l) != 1 || l[0].Node != govKey(62) {
		t.Errorf("%+v", l)
	}
	if g := w.decide(&tx.ActBlock{Changes: []tx.BlockChange{{Node: govKey(62), Unblock: true}}}, 1, 2, 3); g.Stage != Done || len(w.m.BlockList()) != 0 {
		t.Errorf("%+v", g)
	}
	office := func() (l []uint64) {
		for _, o := range w.m.Treasurers(w.now) {
			l = append(l, o.Member)
		}
		return l
	}
	if !slices.Equal(office(), []uint64{1}) {
		t.Error(office())
	}
	w.refuse(CodeForbid, 1, &tx.Propose{Title: "x", Action: &tx.ActElection{Member: 1}}) // one term in a row
	if g := w.decide(&tx.ActElection{Member: 2}, 1, 2, 3); g.Stage != Done || !slices.Equal(office(), []uint64{1, 2}) {
		t.Errorf("%+v %v", g, office())
	}
	w.refuse(CodeTooMany, 1, &tx.Propose{Title: "x", Action: &tx.ActElection{Member: 3}})
	w.pass(year - 5*day)
	if !slices.Equal(office(), []uint64{2}) {
		t.Error(office())
	}
	w.pass(20 * day)
	if !slices.Equal(office(), []uint64{1, 2}) { // nobody's term runs: they stay until somebody is elected
		t.Error(office())
	}
	if g := w.decide(&tx.ActElection{Member: 3}, 1, 2, 3); g.Stage != Done || !slices.Equal(office(), []uint64{3}) {
		t.Errorf("%+v %v", g, office())
	}
	if g := w.decide(&tx.ActElection{Member: 3, Remove: true}, 1, 2, 3); g.Stage != Done || len(office()) != 0 {
		t.Errorf("%+v %v", g, office())
	}

	w.refuse(CodeState, 1, &tx.Propose{Title: "x", Action: &tx.ActUpgrade{Height: w.height, Version: 2}})
	w.refuse(CodeValue, 1, &tx.Propose{Title: "x", Action: &tx.ActUpgrade{Height: w.height + 1000, Version: 1}})
	h := w.height + 50
	if g := w.decide(&tx.ActUpgrade{Height: h, Version: 2}, 1, 2, 3); g.Stage != Done {
		t.Errorf("%+v", g)
	}
	if u, ok := w.m.Upgrade(); !ok || u.Height != h || w.m.Version() != 1 {
		t.Errorf("%+v", u)
	}
	for w.height < h-1 {
		w.block(1)
	}
	if w.m.Version() != 1 {
		t.Error("too early")
	}
	if w.block(1); w.m.Version() != 2 {
		t.Error("too late")
	}
}

func TestProposalBounds(t *testing.T) {
	w := newGov(t, 30, "propose.each=2", "propose.all=10", "propose.support=1", "vote.early=no", "vote.notice=86400", "tx.each=5", "tx.window=100")
	w.refuse(CodeValue, 1, &tx.Propose{Action: &tx.ActText{}})
	w.refuse(CodeValue, 1, &tx.Propose{Title: "x", From: w.now + 3*year, Action: &tx.ActText{}})
	w.refuse(CodeUnknown, 1, &tx.Propose{Title: "x", Action: &tx.ActBudget{}})
	a, b := w.propose(1, &tx.ActText{}), w.propose(1, &tx.ActText{})
	w.refuse(CodeRate, 1, &tx.Propose{Title: "x", Action: &tx.ActText{}})
	w.block(100)
	w.refuse(CodeTooMany, 1, &tx.Propose{Title: "x", Action: &tx.ActText{}})
	w.must(1, &tx.Withdraw{Proposal: a})
	w.refuse(CodeState, 1, &tx.Withdraw{Proposal: a})
	w.refuse(CodeState, 2, &tx.Support{Proposal: a})
	c := w.propose(1, &tx.ActText{})
	w.must(2, &tx.Support{Proposal: b})
	w.refuse(CodeExists, 2, &tx.Support{Proposal: b})
	for i := 2; i < 10; i++ {
		w.propose(i, &tx.ActText{})
	}
	w.refuse(CodeTooMany, 20, &tx.Propose{Title: "x", Action: &tx.ActText{}})
	w.pass(day)
	if w.stage(b) != Voting || w.stage(c) != Lapsed {
		t.Errorf("%s, %s", w.stage(b), w.stage(c))
	}
	// The chain stands still over the whole time of the vote: it goes on.
	if w.block(30 * day); w.stage(b) != Voting {
		t.Error("a halt of the chain took the vote")
	}
	w.pass(2 * hour)
	if w.stage(b) != NoQuorum {
		t.Error(w.stage(b))
	}
}

// Who refuses in the pool refuses in a block; and a judgement changes nothing.
func TestPoolGovern(t *testing.T) {
	w := newGov(t, 2)
	raw := w.sign(1, &tx.Propose{Title: "x", Action: &tx.ActText{}})
	before := w.store.Clone()
	pool := w.m.Pool(Header{Height: w.height, Time: w.now})
	if r := pool.Take(raw); r.Code != OK {
		t.Errorf("%+v", r)
	}
	if r := pool.Take(raw); r.Code != CodeNonce {
		t.Errorf("%+v", r)
	}
	if r := pool.Take(w.sign(9, w.apply(9, 1))); r.Code != OK {
		t.Errorf("%+v", r)
	}
	if k, same := before.Equal(w.store); !same {
		t.Errorf("the pool changed %q", k)
	}
}

// With ten thousand members the work at the beginning of a block stays small: the tally is kept with each ballot, and the
// electorate is counted once where the bylaws ask for a length of membership.
func TestManyMembers(t *testing.T) {
	w := newGov(t, 2, "vote.notice=0", "vote.early=no", "vote.age=86400", "vote.kept=0")
	w.m.Strict = false
	const n = 10_000
	c := w.m.view(Header{Height: 1, Time: w.now})
	for i := range n {
		var k ident.PublicKey
		binary.BigEndian.PutUint64(k[1:], uint64(i))
		c.enroll(Member{Key: k, Name: "many", Grant: -1})
	}
	c.s.flush()
	w.height = 1
	w.pass(2 * day)
	id := w.propose(1, &tx.ActText{})
	reads := &counting{Store: w.store}
	work := func() int { n := reads.n; reads.n = 0; return n }
	w.m.base = reads
	w.block(1)
	_, g, _ := w.m.Proposal(id)
	if g.Eligible != n+2 || g.Quorum != 50 {
		t.Fatalf("%+v", g)
	}
	if got := work(); got > n+100 {
		t.Errorf("opening a vote read %d records", got)
	}
	c = w.m.view(Header{Height: w.height, Time: w.now})
	for m := uint64(1); m <= n; m++ { // ballots as vote casts them
		c.cast(id, &g, m, Ballot{Choice: tx.Yes, Time: w.now})
	}
	c.save(progressKey(id), &g)
	c.s.flush()
	if err := w.m.Check(); err != nil {
		t.Fatal(err)
	}
	w.pass(week - 100)
	work()
	w.now = g.Closes - 1
	w.block(1)
	if got := work(); w.stage(id) != Done || got > 1200 {
		t.Errorf("%s; closing it read %d records", w.stage(id), got)
	}
	for range n/500 + 1 {
		w.block(1)
		if got := work(); got > 1200 {
			t.Errorf("forgetting ballots read %d records in a block", got)
		}
	}
	if l := w.m.Ballots(id); len(l) != 0 {
		t.Errorf("%d ballots are left", len(l))
	}
	before := w.store.Clone()
	w.block(1)
	if k, same := before.Equal(w.store); !same {
		t.Errorf("an empty block changed %q", k)
	}
}

// counting counts what is read.
type counting struct {
	Store
	n int
}

func (c *counting) Get(k []byte) []byte { c.n++; return c.Store.Get(k) }
func (c *counting) Scan(p []byte, f func(k, v []byte) bool) {
	c.Store.Scan(p, func(k, v []byte) bool { c.n++; return f(k, v) })
}

func BenchmarkOpenVote10k(b *testing.B) {
	w := newGov(b, 2, "vote.notice=0", "vote.age=86400")
	w.m.Strict = false
	c := w.m.view(Header{Height: 1, Time: w.now})
	for i := range 10_000 {
		var k ident.PublicKey
		binary.BigEndian.PutUint64(k[1:], uint64(i))
		c.enroll(Member{Key: k, Name: "many", Grant: -1})
	}
	c.s.flush()
	c = w.m.view(Header{Height: 2, Time: w.now + 2*day})
	for b.Loop() {
		c.voters = electors{}
		c.electorate(day)
	}
}

// Who becomes a member in the block in which a vote opens has no vote in it, before the opening or after it in that block.
func TestVotersOfTheSameBlock(t *testing.T) {
	w := newGov(t, 2, "vote.notice=3600", "vote.early=no", "member.vouches=2", "vote.quorum_least=1")
	w.must(9, w.apply(9, 1))
	id := w.propose(1, &tx.ActText{})
	_, g, _ := w.m.Proposal(id)
	w.block(g.Opens-w.now, w.sign(2, &tx.Vouch{Applicant: govKey(9)}))
	if w.stage(id) != Voting || w.member(3).State != Active || w.m.MayVote(id, 3) || !w.m.MayVote(id, 2) {
		t.Errorf("%s, %+v", w.stage(id), w.member(3))
	}
	w.refuse(CodeForbid, 9, &tx.Vote{Proposal: id, Choice: tx.Yes})
	// Nor has who is reinstated while it runs.
	if _, g, _ := w.m.Proposal(id); g.Eligible != 2 {
		t.Errorf("%+v", g)
	}
}

// A former member asks to come back and gets a new key meanwhile: the old key does not come back with the application.
func TestRekeyOfFormerMember(t *testing.T) {
	w := newGov(t, 4, "rekey.vouches=2", "member.vouches=3", "rekey.delay=86400")
	w.must(4, &tx.Leave{})
	w.must(4, w.apply(4, 1))
	r := w.rekey(4, 4, 40)
	w.must(1, &r)
	w.must(2, &r)
	w.pass(day)
	if w.member(4).Key != govKey(40) || len(w.m.Applications()) != 0 {
		t.Fatalf("%+v %+v", w.member(4), w.m.Applications())
	}
	w.refuse(CodeUnknown, 2, &tx.Vouch{Applicant: govKey(4)})
	w.must(40, w.apply(40, 1))
	w.must(2, &tx.Vouch{Applicant: govKey(40)})
	w.must(3, &tx.Vouch{Applicant: govKey(40)})
	if m := w.member(4); m.State != Active || w.m.ActiveMembers() != 4 {
		t.Errorf("%+v", m)
	}
}

// A transaction of the past, of another chain, or altered, is refused whatever it does.
func TestReplayGovern(t *testing.T) {
	w := newGov(t, 3, "vote.notice=0", "vote.early=no")
	id := w.propose(1, &tx.ActText{})
	w.block(1)
	yes := w.sign(1, &tx.Vote{Proposal: id, Choice: tx.Yes})
	no := func() []byte {
		raw, err := tx.Tx{Chain: tx.ChainOf("gov-2"), Nonce: 2, Expiry: w.now + day, Body: &tx.Vote{Proposal: id, Choice: tx.No}}.Sign(govAgent(2))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}()
	bent := slices.Clone(yes)
	bent[len(bent)-65] = byte(tx.No)
	out := w.block(1, no, bent, yes, yes)
	for i, want := range []Code{CodeChain, CodeSig, OK, CodeNonce} {
		if out.Results[i].Code != want {
			t.Errorf("%d: %+v, want %d", i, out.Results[i], want)
		}
	}
	if _, g, _ := w.m.Proposal(id); g.Yes != 1 || g.No != 0 {
		t.Errorf("%+v", g)
	}
}

func TestGenesisGovern(t *testing.T) {
	good := func() Genesis {
		return Genesis{Chain: "g", Time: 1000, Founders: []Founder{{Key: govKey(1), Name: "x"}}, Settings: []tx.Setting{{Name: "tariff.free", Value: "100"}},
			Validators: []FirstValidator{{govKey(101), 1, govKey(201)}}}
	}
	for name, spoil := range map[string]func(*Genesis){
		"founder twice":       func(g *Genesis) { g.Founders = append(g.Founders, g.Founders[0]) },
		"unknown parameter":   func(g *Genesis) { g.Settings[0].Name = "x" },
		"value out of bounds": func(g *Genesis) { g.Settings[0].Value = "0" },
		"operator unknown":    func(g *Genesis) { g.Validators[0].Operator = 2 },
		"validator twice":     func(g *Genesis) { g.Validators = append(g.Validators, g.Validators[0]) },
		"no time":             func(g *Genesis) { g.Time = 0 },
		"no founder":          func(g *Genesis) { g.Founders = nil },
	} {
		g := good()
		spoil(&g)
		m, _ := New(NewMem())
		if m.Init(g) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	g := good()
	var back Genesis
	if err := tx.Decode(tx.Encode(&g), &back); err != nil || fmt.Sprint(back) != fmt.Sprint(g) {
		t.Errorf("%v: %+v", err, back)
	}
	m, _ := New(NewMem())
	if err := m.Init(g); err != nil {
		t.Fatal(err)
	}
	if p := m.Params(); p.FreeKbit != 100 || p.Version != 1 || p.Since != 1000 {
		t.Errorf("%+v", p)
	}
	if err := m.Init(g); err == nil {
		t.Error("began twice")
	}
}

// Two colluding members cannot fill the register: whom they let in may not vouch for a while. A founder alone can begin.
func TestVouchingInChains(t *testing.T) {
	w := newGov(t, 1, "member.vouch_age=1209600", "member.vouches=2", "member.vouches_each=3")
	for i := 2; i <= 4; i++ {
		w.must(i, w.apply(i, 1))
	}
	if n := w.m.ActiveMembers(); n != 4 {
		t.Fatalf("%d members", n)
	}
	w.refuse(CodeTooMany, 5, w.apply(5, 1))
	w.refuse(CodeTooMany, 5, w.apply(5, 2))
	w.pass(15 * day)
	w.must(5, w.apply(5, 2))
	if n := w.m.ActiveMembers(); n != 4 {
		t.Errorf("one vouch sufficed where four may vouch")
	}
	w.must(3, &tx.Vouch{Applicant: govKey(5)})
	w.member(5)
}

// A change of the rules does not reach into votes that are open: what was noted at the opening holds. It does reach into
// what is asked of the next ballot: whether members may vote for others.
func TestRulesChangeDuringVote(t *testing.T) {
	w := newGov(t, 4, "vote.notice=0", "vote.early=no", "vote.window=7200")
	rules := w.propose(1, &tx.ActBylaws{Settings: []tx.Setting{{Name: "majority.text", Value: "900"}, {Name: "vote.quorum", Value: "1000"}, {Name: "proxy.allowed", Value: "no"}}})
	w.block(1)
	for i := 1; i <= 4; i++ {
		w.must(i, &tx.Vote{Proposal: rules, Choice: tx.Yes})
	}
	w.must(4, &tx.Delegate{To: 1})
	w.pass(3600)
	text := w.propose(2, &tx.ActText{})
	w.block(1)
	w.pass(3600)
	if w.stage(rules) != Done || w.stage(text) != Voting {
		t.Fatalf("%s, %s", w.stage(rules), w.stage(text))
	}
	w.must(1, &tx.Vote{Proposal: text, Choice: tx.Yes})
	w.must(2, &tx.Vote{Proposal: text, Choice: tx.Yes})
	w.must(3, &tx.Vote{Proposal: text, Choice: tx.No})
	w.refuse(CodeForbid, 3, &tx.Delegate{To: 1})
	if _, g, _ := w.m.Proposal(text); g.Ballots() != 3 || g.Majority != 500 || g.Bylaws != 1 {
		t.Errorf("%+v", g)
	}
	w.pass(3600)
	if w.stage(text) != Done {
		t.Error(w.stage(text))
	}
	late := w.propose(2, &tx.ActText{})
	w.block(1)
	if _, g, _ := w.m.Proposal(late); g.Majority != 900 || g.Quorum != 4 || g.Bylaws != 2 {
		t.Errorf("%+v", g)
	}
	w.must(4, &tx.Delegate{}) // what is no longer allowed can be taken back
}
