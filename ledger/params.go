package ledger

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"weft/ledger/tx"
)

// Params are the community's bylaws and tariffs: all that members may decide by vote and that programs obey. A field is known
// outside by its name in [Params.List]; bounds and defaults stand there too. Times are seconds of block time, money is ncredit, shares are
// permille. A new parameter gets a field and a row there; its default is for ever, as old states have no value for it.
type Params struct {
	Version uint64 // one more with each change that takes effect
	Since   int64  // when this version took effect, seconds since 1970

	// Members.
	Share             int64 // price of a member's share
	Admission         int64 // one of Admit…
	Forms             int64 // one of Forms…
	Vouches           int64 // members that must vouch for an applicant
	VouchesPerMember  int64 // that one member may give in VouchPeriod
	VouchPeriod       int64
	VouchAge          int64 // membership before one may vouch
	Applications      int64 // that may be open at once
	ApplicationLife   int64
	Delegates         int64 // further keys that may vote for a household or an organisation
	RekeyVouches      int64 // members that must vouch for a new key
	RekeyDelay        int64 // in which the old key may object
	CreditNew         int64 // limit of a member of class 1, and so on
	CreditFull        int64
	CreditTrusted     int64
	CreditOrg         int64
	TxPerMember       int64 // transactions of a member in TxWindow
	TxWindow          int64
	Validators        int64 // at most
	BlockList         int64 // entries at most
	SuspendDays       int64 // longest suspension by a vote without a further vote, days
	ProposeAge        int64 // membership before one may propose
	ProposeSupport    int64 // further members who must support a proposal before its vote begins
	OpenPerMember     int64 // proposals of a member at once
	OpenTotal         int64 // proposals of all at once
	Notice            int64 // from the proposal to the first ballot
	Voting            int64 // from the first ballot to the last
	VotingEarly       int64 // 1: a vote ends as soon as all have voted
	VoterAge          int64 // membership at the start of a vote
	QuorumPermille    int64 // of those who may vote
	QuorumMost        int64 // so many suffice, whatever the permille says; 0: no such rule
	QuorumLeast       int64 // at least so many
	Majority          [tx.Decisions]int64
	Proxy             int64 // 1: members may delegate their vote
	ProxyLimit        int64 // others that one member may vote for
	TreasurerTerm     int64
	TreasurerTerms    int64 // in a row; 0: any number
	TreasurersMost    int64
	BallotsKept       int64 // seconds after the close
	PriceCap          int64 // a gateway's highest price, ncredit per MiB
	Carriage          int64 // what a relay gets unless it says otherwise, ncredit per MiB
	Lambda            int64 // µs of latency that a price of 1000 ncredit per MiB weighs as much as, in choosing a path
	FreeKbit          int64 // free tier, kbit/s per member
	GuestKbit         int64 // free tier of strangers, kbit/s
	ExposureMin       int64 // bytes served ahead of payment, at least
	ExposureMax       int64
	ExposureSeconds   int64 // of the link's rate, between the two
	Trust             int64 // owed without a tab, ncredit
	LeaseLog          int64 // seconds that gateways keep the times of leases
	TabLife           int64 // longest life of a tab
	TabWindow         int64 // for claims after the payer closes: time …
	TabBlocks         int64 // … and blocks
	TabsPerMember     int64 // open at once
	NameLife          int64 // term of a name
	NameGrace         int64 // after it, in which only its owner can renew it
	NamesPerMember    int64
	NodeLife          int64 // longest registration of a node
	NodesPerMember    int64 // registered at once
	TwoPerson         int64 // entries of the treasury from here on need two treasurers
	PendingLife       int64 // in which the second one must sign
	FiscalMonth       int64 // in which a fiscal year begins, 1 is January
	FiscalMonths      int64 // length of a fiscal period
	Reserve           int64 // of a surplus, permille
	Solidarity        int64 // of a surplus, permille
	ShareInterest     int64 // on paid-up shares per year, permille, before the surplus
	Cash              int64 // of a member's refund, permille; the rest becomes capital
	CashLeast         int64 // smaller refunds are credited, not paid
	Minor             int64 // ncredit in the smallest unit that books speak of
	PatronageBasis    int64 // one of Basis…
	Retirement        int64 // one of Retire…
	RetireEquity      int64 // capital kept back at least, permille of all capital
	Witness           int64 // number of the member who countersigns where there is no second treasurer; 0: nobody is named
	ReversalTime      int64 // entries can be reversed so long
	YearGrace         int64 // from the end of a fiscal period to the close of its books
	Loss              int64 // one of Loss…
	Pooled            int64 // 1: one surplus for all margin classes
	SharedBy          int64 // one of Shared…: how margin classes carry costs that they share
	AssetLock         int64 // 1: a surplus stays in the reserve, none is allocated to members
	SharesLeast       int64 // of a holder
	SharesMost        int64
	EquityLeast       int64 // funds that a retirement must leave, permille of all assets; 0: no such rule
	DebtMost          int64 // owed to members and others at a retirement, permille of the funds; 0: no such rule
	UnclaimedYears    int64 // after which what a former member does not claim goes to the solidarity fund; 0: never
	Offset            int64 // 1: what is retired pays a member's debts first
	MemberFee         int64 // flat fee of a member per fiscal month
	SolidarityPercent int64 // discount of members on the solidarity tier, permille, paid by the fund
}

// How one becomes a member.
const (
	AdmitVouch  = 0 // as soon as enough members vouch
	AdmitVote   = 1 // by a vote
	AdmitEither = 2
	AdmitBoth   = 3 // vouched for first, then a vote
)

// Who may be a member.
const (
	FormsAny        = 0
	FormsPersons    = 1
	FormsHouseholds = 2
)

// What patronage is measured in.
const (
	BasisPaid  = 0 // what was paid for service
	BasisBytes = 1 // bytes carried
)

// Which capital is paid back first.
const (
	RetireFIFO    = 0
	RetireLIFO    = 1
	RetirePercent = 2
	RetireHybrid  = 3
	RetireAny     = 4 // as each vote says
)

// What becomes of a loss.
const (
	LossCarry   = 0 // coming surpluses make it good
	LossReserve = 1 // the reserve does as far as it reaches; the rest is carried
	LossMembers = 2 // it is allocated as a surplus would be, and taken from members' capital
)

// How margin classes carry shared costs.
const (
	SharedRevenue = 0 // by what came in
	SharedEqual   = 1
	SharedBytes   = 2 // by bytes carried
)

// Param is one parameter of a [Params].
type Param struct {
	Name     string // such as vote.notice; for ever
	Class    tx.Decision
	Unit     string // s, ncredit, permille, …; with Words: ""
	Doc      string
	Min, Max int64
	Default  int64
	Words    []string // the names of values 0, 1, …
	v        *int64
}

// Text is the value as text: a decimal number, or one of Words.
func (p Param) Text() string {
	if p.Words != nil {
		return p.Words[*p.v]
	}
	return strconv.FormatInt(*p.v, 10)
}

// Value is the value as a number.
func (p Param) Value() int64 { return *p.v }

const (
	hour = 3600
	day  = 24 * hour
	week = 7 * day
	year = 365 * day

	credit = 1_000_000_000 // ncredit
)

// shortest is the shortest period: much longer than the heartbeat of blocks (300 s), as block time stands still between two of them.
const shortest = hour

// List returns all parameters with their present values, in a fixed order: that of the encoding.
func (p *Params) List() []Param {
	const rules, tariff = tx.DecideBylaws, tx.DecideTariff
	no, yes := "no", "yes"
	flag := []string{no, yes}
	l := make([]Param, 0, 90)
	num := func(class tx.Decision, name string, v *int64, unit string, low, high, def int64, doc string) {
		l = append(l, Param{Name: name, Class: class, Unit: unit, Doc: doc, Min: low, Max: high, Default: def, v: v})
	}
	word := func(class tx.Decision, name string, v *int64, words []string, def int64, doc string) {
		l = append(l, Param{Name: name, Class: class, Doc: doc, Max: int64(len(words)) - 1, Default: def, Words: words, v: v})
	}
	num(rules, "member.share", &p.Share, "ncredit", 0, tx.MaxAmount, 0, "price of a member's share")
	word(rules, "member.admission", &p.Admission, []string{"vouch", "vote", "either", "both"}, AdmitVouch, "what makes an applicant a member")
	word(rules, "member.forms", &p.Forms, []string{"any", "persons", "households"}, FormsAny, "who may be a member, with one vote each")
	num(rules, "member.vouches", &p.Vouches, "members", 1, 20, 2, "who must vouch for an applicant (all who may, where there are fewer)")
	num(rules, "member.vouches_each", &p.VouchesPerMember, "vouches", 1, 1000, 10, "that a member may give in member.vouch_period")
	num(rules, "member.vouch_period", &p.VouchPeriod, "s", day, year, 30*day, "see member.vouches_each")
	num(rules, "member.vouch_age", &p.VouchAge, "s", 0, year, 14*day, "membership before one may vouch, so that strangers cannot let in each other")
	num(rules, "member.applications", &p.Applications, "applications", 1, 1000, 50, "open at once")
	num(rules, "member.application_life", &p.ApplicationLife, "s", day, year, 30*day, "after which an application lapses")
	num(rules, "member.delegates", &p.Delegates, "keys", 0, 8, 2, "further keys that may vote for a household or organisation")
	num(rules, "member.suspension", &p.SuspendDays, "days", 1, 365, 90, "longest suspension")
	num(rules, "rekey.vouches", &p.RekeyVouches, "members", 2, 20, 3, "who must vouch for a member's new key")
	num(rules, "rekey.delay", &p.RekeyDelay, "s", 10, 90*day, week, "in which the old key can object; less than a day is for trials")
	num(rules, "credit.new", &p.CreditNew, "ncredit", 0, tx.MaxAmount, 5*credit, "credit limit of class new")
	num(rules, "credit.full", &p.CreditFull, "ncredit", 0, tx.MaxAmount, 20*credit, "credit limit of class full")
	num(rules, "credit.trusted", &p.CreditTrusted, "ncredit", 0, tx.MaxAmount, 100*credit, "credit limit of class trusted")
	num(rules, "credit.organisation", &p.CreditOrg, "ncredit", 0, tx.MaxAmount, 50*credit, "credit limit of class organisation")
	num(rules, "tx.each", &p.TxPerMember, "transactions", 5, 10_000, 20, "of a member in tx.window")
	num(rules, "tx.window", &p.TxWindow, "s", 10, hour, 60, "see tx.each")
	num(rules, "validators.most", &p.Validators, "validators", 1, 100, 7, "bound of the validator set")
	num(rules, "block.most", &p.BlockList, "nodes", 0, 10_000, 1000, "length of the block list")

	num(rules, "propose.age", &p.ProposeAge, "s", 0, year, 0, "membership before one may propose")
	num(rules, "propose.support", &p.ProposeSupport, "members", 0, 1000, 0, "who must support a proposal besides its author before the vote begins")
	num(rules, "propose.each", &p.OpenPerMember, "proposals", 1, 20, 3, "of a member open at once")
	num(rules, "propose.all", &p.OpenTotal, "proposals", 10, 500, 50, "open at once")
	num(rules, "vote.notice", &p.Notice, "s", 0, 90*day, 3*day, "from a proposal to the first ballot")
	num(rules, "vote.window", &p.Voting, "s", shortest, 90*day, week, "from the first ballot to the close")
	word(rules, "vote.early", &p.VotingEarly, flag, 1, "a vote ends, and its notice too, as soon as all have voted")
	num(rules, "vote.age", &p.VoterAge, "s", 0, year, 0, "membership at the start of a vote to take part")
	num(rules, "vote.quorum", &p.QuorumPermille, "permille", 0, 1000, 100, "of those who may vote")
	num(rules, "vote.quorum_most", &p.QuorumMost, "members", 0, 100_000, 50, "so many are a quorum whatever vote.quorum says; 0: no such rule")
	num(rules, "vote.quorum_least", &p.QuorumLeast, "members", 1, 100_000, 1, "at least so many (all, where there are fewer)")
	for d := tx.Decision(1); d < tx.Decisions; d++ {
		num(rules, "majority."+d.String(), &p.Majority[d], "permille", 500, 1000, majorities[d], "of yes among yes and no; and always more yes than no")
	}
	word(rules, "proxy.allowed", &p.Proxy, flag, 1, "members may let another vote for them")
	num(rules, "proxy.most", &p.ProxyLimit, "members", 1, 100, 3, "whom one member may vote for besides himself")
	num(rules, "treasurer.term", &p.TreasurerTerm, "s", 30*day, 10*year, year, "term of office")
	num(rules, "treasurer.terms", &p.TreasurerTerms, "terms", 0, 100, 0, "in a row; 0: any number")
	num(rules, "treasurer.most", &p.TreasurersMost, "members", 1, 20, 5, "treasurers at once")
	num(rules, "vote.kept", &p.BallotsKept, "s", 0, 10*year, 90*day, "ballots stay readable so long after the close; the tally stays for ever")

	num(tariff, "tariff.price_most", &p.PriceCap, "ncredit/MiB", 0, math.MaxUint32, 1_000_000, "a gateway's highest price")
	num(tariff, "tariff.carriage", &p.Carriage, "ncredit/MiB", 0, math.MaxUint32, 5_000, "what a relay gets unless it says otherwise")
	num(tariff, "tariff.lambda", &p.Lambda, "µs", 0, 1_000_000, 100, "latency that weighs as much as 1000 ncredit/MiB when a path is chosen")
	num(tariff, "tariff.free", &p.FreeKbit, "kbit/s", 16, 1_000_000, 512, "free tier of a member who cannot pay")
	num(tariff, "tariff.guest", &p.GuestKbit, "kbit/s", 0, 1_000_000, 128, "free tier of who is not a member")
	num(tariff, "tariff.exposure_least", &p.ExposureMin, "bytes", 1<<20, 1<<40, 8<<20, "served ahead of payment, at least")
	num(tariff, "tariff.exposure_most", &p.ExposureMax, "bytes", 1<<20, 1<<40, 256<<20, "served ahead of payment, at most")
	num(tariff, "tariff.exposure_time", &p.ExposureSeconds, "s", 1, 60, 4, "of a link's rate, served ahead of payment")
	num(tariff, "tariff.trust", &p.Trust, "ncredit", 0, tx.MaxAmount, credit/10, "a member may owe without a tab")
	num(tariff, "tariff.member_fee", &p.MemberFee, "ncredit", 0, tx.MaxAmount, 0, "flat fee of a member per fiscal month")
	num(tariff, "tariff.solidarity_discount", &p.SolidarityPercent, "permille", 0, 1000, 500, "what the solidarity fund pays for members on its tier")
	num(rules, "gateway.log", &p.LeaseLog, "s", 0, 2*year, week, "how long gateways keep the times of leases")

	num(rules, "tab.life", &p.TabLife, "s", day, year, 30*day, "longest life of a tab")
	num(rules, "tab.window", &p.TabWindow, "s", day, 60*day, week, "for claims after the payer closes a tab")
	num(rules, "tab.window_blocks", &p.TabBlocks, "blocks", 1, 1_000_000, 100, "that must pass too: block time jumps over a halt")
	num(rules, "tab.each", &p.TabsPerMember, "tabs", 1, 10_000, 64, "of a payer open at once")
	num(rules, "name.life", &p.NameLife, "s", 30*day, 10*year, year, "after which a name must have been renewed")
	num(rules, "name.grace", &p.NameGrace, "s", day, year, 30*day, "in which a name that has run out can still be renewed")
	num(rules, "name.each", &p.NamesPerMember, "names", 0, 1000, 10, "of a member")
	num(rules, "node.life", &p.NodeLife, "s", day, 10*year, year, "longest registration of a gateway, relay or other node")
	num(rules, "node.each", &p.NodesPerMember, "nodes", 1, 1000, 10, "of a member registered at once")

	num(rules, "treasury.two_person", &p.TwoPerson, "ncredit", 0, tx.MaxAmount, 100*credit, "entries from here on, one by one or of a day together, need a second signature: of another treasurer or treasury.witness, or, where there is neither, of any other member")
	num(rules, "treasury.pending", &p.PendingLife, "s", day, 90*day, 14*day, "in which the second treasurer signs")
	num(rules, "treasury.witness", &p.Witness, "member", 0, math.MaxInt64, 0, "who may countersign besides treasurers; 0: nobody")
	num(rules, "treasury.reversal", &p.ReversalTime, "s", day, 2*year, 90*day, "in which an entry can be reversed")
	num(rules, "year.month", &p.FiscalMonth, "month", 1, 12, 1, "in which a fiscal year begins")
	num(rules, "year.months", &p.FiscalMonths, "months", 1, 12, 12, "length of a fiscal period; divides 12")
	num(rules, "surplus.reserve", &p.Reserve, "permille", 0, 1000, 100, "goes to the reserve")
	num(rules, "surplus.solidarity", &p.Solidarity, "permille", 0, 1000, 50, "goes to the solidarity fund")
	num(rules, "surplus.interest", &p.ShareInterest, "permille", 0, 100, 0, "on paid-up shares per year, before all else")
	num(rules, "surplus.cash", &p.Cash, "permille", 0, 1000, 200, "of a refund paid at once; the rest becomes capital")
	num(rules, "surplus.cash_least", &p.CashLeast, "ncredit", 0, tx.MaxAmount, 5*credit, "smaller refunds are credited, not paid out")
	num(rules, "surplus.minor", &p.Minor, "ncredit", 1, 1_000*credit, credit/100, "the smallest unit that books speak of")
	word(rules, "surplus.basis", &p.PatronageBasis, []string{"paid", "bytes"}, BasisPaid, "what patronage is measured in")
	word(rules, "capital.retirement", &p.Retirement, []string{"fifo", "lifo", "percent", "hybrid", "any"}, RetireFIFO, "which capital is paid back first")
	num(rules, "capital.kept", &p.RetireEquity, "permille", 0, 1000, 0, "of all capital is never paid back")
	num(rules, "year.grace", &p.YearGrace, "s", day, 240*day, 60*day, "after a fiscal period in which what belongs to it may still be booked; then its surplus is divided")
	word(rules, "surplus.loss", &p.Loss, []string{"carry", "reserve", "members"}, LossCarry, "what becomes of a loss: coming surpluses make it good, the reserve does, or members' capital")
	word(rules, "surplus.pooled", &p.Pooled, flag, 1, "all margin classes make one surplus")
	word(rules, "surplus.shared", &p.SharedBy, []string{"revenue", "equal", "bytes"}, SharedRevenue, "by what margin classes carry the costs that they share")
	num(rules, "share.least", &p.SharesLeast, "shares", 0, 1_000_000, 0, "of a holder")
	num(rules, "share.most", &p.SharesMost, "shares", 1, 1_000_000, 1000, "of a holder")
	word(rules, "share.lock", &p.AssetLock, flag, 0, "asset lock: a surplus stays in the reserve, and none is allocated to members")
	num(rules, "capital.equity", &p.EquityLeast, "permille", 0, 1000, 0, "of all assets must be left in funds when capital is paid back; 0: no such rule")
	num(rules, "capital.debt", &p.DebtMost, "permille", 0, 1_000_000, 0, "of the funds at most may be owed to members and others when capital is paid back; 0: no such rule")
	word(rules, "capital.offset", &p.Offset, flag, 1, "capital that is paid back pays a member's debts first")
	num(rules, "capital.unclaimed", &p.UnclaimedYears, "years", 0, 50, 5, "after which what a former member does not claim goes to the solidarity fund; 0: never")
	return l
}

// majorities are the defaults: what binds few is decided by half, what changes the rules by two thirds.
var majorities = [tx.Decisions]int64{
	tx.DecideText: 500, tx.DecideBylaws: 666, tx.DecideTariff: 500, tx.DecideBudget: 500, tx.DecideValidators: 666, tx.DecideBlock: 666,
	tx.DecideAdmission: 500, tx.DecideStanding: 666, tx.DecideCredit: 500, tx.DecideElection: 500, tx.DecideSurplus: 500, tx.DecideUpgrade: 666, tx.DecideRekey: 750,
}

// DefaultParams are the bylaws of a community that has chosen none.
func DefaultParams() Params {
	var p Params
	for _, r := range p.List() {
		*r.v = r.Default
	}
	return p
}

// Find returns a parameter by its name.
func (p *Params) Find(name string) (Param, bool) {
	l := p.List()
	if i := slices.IndexFunc(l, func(r Param) bool { return r.Name == name }); i >= 0 {
		return l[i], true
	}
	return Param{}, false
}

// Get returns the text of a parameter's value.
func (p *Params) Get(name string) (string, error) {
	r, ok := p.Find(name)
	if !ok {
		return "", refuse(CodeUnknown, "there is no parameter %q", name)
	}
	return r.Text(), nil
}

// Set changes a parameter to the value that text says: as Get returns it, no other way of writing. It checks the
// parameter's own bounds; Check sees whether it goes with the others.
func (p *Params) Set(name, text string) error {
	r, ok := p.Find(name)
	if !ok {
		return refuse(CodeUnknown, "there is no parameter %q", name)
	}
	return r.set(text)
}

func (p Param) set(text string) error {
	if p.Words != nil {
		i := slices.Index(p.Words, text)
		if i < 0 {
			return refuse(CodeValue, "%s is one of %s, not %q", p.Name, strings.Join(p.Words, ", "), text)
		}
		*p.v = int64(i)
		return nil
	}
	v, err := strconv.ParseInt(text, 10, 64)
	if err != nil || strconv.FormatInt(v, 10) != text {
		return refuse(CodeValue, "%s is a whole number (%s), not %q", p.Name, p.Unit, text)
	}
	if v < p.Min || v > p.Max {
		return refuse(CodeValue, "%s is %d to %d %s, not %d", p.Name, p.Min, p.Max, p.Unit, v)
	}
	*p.v = v
	return nil
}

// Check reports the first value that is out of bounds or contradicts another.
func (p *Params) Check() error {
	for _, r := range p.List() {
		if v := *r.v; v < r.Min || v > r.Max {
			return refuse(CodeValue, "%s is %d to %d %s, not %d", r.Name, r.Min, r.Max, r.Unit, v)
		}
	}
	switch {
	case p.ExposureMin > p.ExposureMax:
		return refuse(CodeValue, "tariff.exposure_least is more than tariff.exposure_most")
	case p.Reserve+p.Solidarity > 1000:
		return refuse(CodeValue, "surplus.reserve and surplus.solidarity are more than the whole surplus")
	case 12%p.FiscalMonths != 0:
		return refuse(CodeValue, "year.months does not divide the year")
	case p.YearGrace > p.FiscalMonths*27*day:
		return refuse(CodeValue, "year.grace is not shorter than a fiscal period (year.months)")
	case p.SharesLeast > p.SharesMost:
		return refuse(CodeValue, "share.least is more than share.most")
	case p.TabWindow >= p.TabLife:
		return refuse(CodeValue, "tab.window is not shorter than tab.life")
	case p.QuorumMost != 0 && p.QuorumMost < p.QuorumLeast:
		return refuse(CodeValue, "vote.quorum_most is less than vote.quorum_least")
	}
	return nil
}

// Fields implements tx.Record: the bytes of a tx.Bylaws with each parameter as name and text, so that who knows none of them
// can read the record, and a state from before a parameter existed has its default.
func (p *Params) Fields(c *tx.Coder) {
	l := p.List()
	b := tx.Bylaws{Version: p.Version, Since: p.Since}
	if !c.Reading() {
		b.Settings = make([]tx.Setting, len(l))
		for i, r := range l {
			b.Settings[i] = tx.Setting{Name: r.Name, Value: r.Text()}
		}
	}
	b.Fields(c)
	if !c.Reading() {
		return
	}
	p.Version, p.Since = b.Version, b.Since
	for _, r := range l {
		*r.v = r.Default
	}
	at := 0
	for _, s := range b.Settings {
		for at < len(l) && l[at].Name != s.Name {
			at++
		}
		if at == len(l) {
			c.Fail(fmt.Errorf("parameter %q is not known here, or not in its place", s.Name))
			return
		}
		if err := l[at].set(s.Value); err != nil {
			c.Fail(err)
			return
		}
		at++
	}
}

var keyParams = tx.StateKeyBylaws()

// params returns the parameters in force.
func (c *call) params() *Params {
	if c.bylaws == nil {
		c.bylaws = &Params{}
		if !c.load(keyParams, c.bylaws) {
			*c.bylaws = DefaultParams()
		}
	}
	return c.bylaws
}
