package tx

import (
	"encoding/binary"
	"fmt"

	"weft/ident"
)

// The kinds of this file.
const (
	KindApply     Kind = 200
	KindVouch     Kind = 201
	KindUnvouch   Kind = 202
	KindLeave     Kind = 203
	KindRename    Kind = 204
	KindDelegates Kind = 205
	KindRekey     Kind = 206
	KindUnrekey   Kind = 207
	KindVeto      Kind = 208
	KindDelegate  Kind = 209
	KindPropose   Kind = 210
	KindSupport   Kind = 211
	KindWithdraw  Kind = 212
	KindVote      Kind = 213
	KindResign    Kind = 214
)

func newGovern(k Kind) Body {
	switch k {
	case KindApply:
		return &Apply{}
	case KindVouch:
		return &Vouch{}
	case KindUnvouch:
		return &Unvouch{}
	case KindLeave:
		return &Leave{}
	case KindRename:
		return &Rename{}
	case KindDelegates:
		return &Delegates{}
	case KindRekey:
		return &Rekey{}
	case KindUnrekey:
		return &Unrekey{}
	case KindVeto:
		return &Veto{}
	case KindDelegate:
		return &Delegate{}
	case KindPropose:
		return &Propose{}
	case KindSupport:
		return &Support{}
	case KindWithdraw:
		return &Withdraw{}
	case KindVote:
		return &Vote{}
	case KindResign:
		return &Resign{}
	}
	return nil
}

// Decision is what a proposal decides. Each has its own majority, and members may delegate their vote by it.
type Decision uint8

// The decisions. Numbers and names are for ever.
const (
	DecideText       Decision = 1
	DecideBylaws     Decision = 2
	DecideTariff     Decision = 3
	DecideBudget     Decision = 4
	DecideValidators Decision = 5
	DecideBlock      Decision = 6
	DecideAdmission  Decision = 7
	DecideStanding   Decision = 8
	DecideCredit     Decision = 9
	DecideElection   Decision = 10
	DecideSurplus    Decision = 11
	DecideUpgrade    Decision = 12
	DecideRekey      Decision = 13

	Decisions = 14 // one more than the last
)

var decisionNames = [Decisions]string{1: "text", "bylaws", "tariff", "budget", "validators", "block", "admission", "standing", "credit", "election", "surplus", "upgrade", "rekey"}

func (d Decision) String() string {
	if d == 0 || d >= Decisions {
		return fmt.Sprintf("decision %d", uint8(d))
	}
	return decisionNames[d]
}

// ParseDecision is the inverse of String.
func ParseDecision(s string) (Decision, error) {
	for d := Decision(1); d < Decisions; d++ {
		if decisionNames[d] == s {
			return d, nil
		}
	}
	return 0, fmt.Errorf("there is no decision %q", s)
}

// Form is what kind of member one is. Each has one vote.
type Form uint8

// The forms.
const (
	Person       Form = 0
	Household    Form = 1
	Organisation Form = 2
)

func (f Form) String() string {
	if f > Organisation {
		return fmt.Sprintf("form %d", uint8(f))
	}
	return [...]string{"person", "household", "organisation"}[f]
}

// Choice is a ballot.
type Choice uint8

// The choices.
const (
	Yes     Choice = 1
	No      Choice = 2
	Abstain Choice = 3
)

func (c Choice) String() string {
	if c < Yes || c > Abstain {
		return fmt.Sprintf("choice %d", uint8(c))
	}
	return [...]string{"yes", "no", "abstain"}[c-1]
}

// Setting is a parameter's value by name (ledger.Params).
type Setting struct{ Name, Value string }

// Fields implements Record.
func (s *Setting) Fields(c *Coder) {
	c.Text(&s.Name, 40)
	c.Text(&s.Value, 40)
}

// among is a byte from low to high.
func among[T ~uint8](c *Coder, v *T, low, high T, what string) {
	u := uint8(*v)
	c.U8(&u)
	if *v = T(u); *v < low || *v > high {
		c.Fail(fmt.Errorf("%d is not a %s", u, what))
	}
}

// Domains of what is signed outside of a transaction and carried in one.
const (
	SponsorDomain  ident.Domain = "weft/sponsor/1"
	RekeyDomain    ident.Domain = "weft/rekey/1"
	DelegateDomain ident.Domain = "weft/delegate/1"
)

// SponsorMessage is what a member signs to let a key apply: chain tag 8 | applicant's key 32 | until 8, seconds since 1970.
func SponsorMessage(chain Chain, applicant ident.PublicKey, until int64) []byte {
	b := append(chain[:len(chain):len(chain)], applicant[:]...)
	return binary.BigEndian.AppendUint64(b, uint64(until))
}

// RekeyMessage is what a new key signs, so that nobody's membership moves to a key that nobody holds:
// chain tag 8 | member's number 8 | present key 32 | new key 32.
func RekeyMessage(chain Chain, member uint64, present, next ident.PublicKey) []byte {
	b := binary.BigEndian.AppendUint64(chain[:len(chain):len(chain)], member)
	return append(append(b, present[:]...), next[:]...)
}

// DelegateMessage is what a key signs to act for a member: chain tag 8 | member's number 8 | key 32.
func DelegateMessage(chain Chain, member uint64, delegate ident.PublicKey) []byte {
	b := binary.BigEndian.AppendUint64(chain[:len(chain):len(chain)], member)
	return append(b, delegate[:]...)
}

// Apply asks for membership. Its sender is not a member yet; a member has signed for it, which is that member's vouch.
type Apply struct {
	Called  string // the applicant's name
	Form    Form
	Sponsor ident.PublicKey
	Until   int64           // of the sponsor's word, seconds since 1970
	Word    ident.Signature // of the sponsor over SponsorMessage, SponsorDomain
}

func (*Apply) Kind() Kind   { return KindApply }
func (*Apply) Name() string { return "apply" }
func (t *Apply) Fields(c *Coder) {
	c.Text(&t.Called, 60)
	among(c, &t.Form, Person, Organisation, "form of membership")
	c.Key(&t.Sponsor)
	c.I64(&t.Until)
	c.Fixed(t.Word[:])
}

// Vouch speaks for an applicant.
type Vouch struct{ Applicant ident.PublicKey }

func (*Vouch) Kind() Kind        { return KindVouch }
func (*Vouch) Name() string      { return "vouch" }
func (t *Vouch) Fields(c *Coder) { c.Key(&t.Applicant) }

// Unvouch takes a vouch back while the application is open.
type Unvouch struct{ Applicant ident.PublicKey }

func (*Unvouch) Kind() Kind        { return KindUnvouch }
func (*Unvouch) Name() string      { return "unvouch" }
func (t *Unvouch) Fields(c *Coder) { c.Key(&t.Applicant) }

// Leave ends the sender's membership. The account must be at zero.
type Leave struct{}

func (*Leave) Kind() Kind    { return KindLeave }
func (*Leave) Name() string  { return "leave" }
func (*Leave) Fields(*Coder) {}

// Rename changes the sender's name in the register.
type Rename struct{ To string }

func (*Rename) Kind() Kind        { return KindRename }
func (*Rename) Name() string      { return "rename" }
func (t *Rename) Fields(c *Coder) { c.Text(&t.To, 60) }

// DelegateKey is a key that agrees to act for a member.
type DelegateKey struct {
	Key  ident.PublicKey
	Word ident.Signature // of Key over DelegateMessage, DelegateDomain
}

// Delegates says which further keys may propose and vote for the household or organisation that sends it: these and no others.
type Delegates struct{ Keys []DelegateKey }

func (*Delegates) Kind() Kind   { return KindDelegates }
func (*Delegates) Name() string { return "delegates" }
func (t *Delegates) Fields(c *Coder) {
	List(c, &t.Keys, 8, func(c *Coder, k *DelegateKey) {
		c.Key(&k.Key)
		c.Fixed(k.Word[:])
	})
}

// Rekey vouches that a member has a new key now. Enough of them, and time for the old key to object, make it so.
type Rekey struct {
	Member uint64
	New    ident.PublicKey
	Word   ident.Signature // of New over RekeyMessage, RekeyDomain
}

func (*Rekey) Kind() Kind   { return KindRekey }
func (*Rekey) Name() string { return "rekey" }
func (t *Rekey) Fields(c *Coder) {
	c.U64(&t.Member)
	c.Key(&t.New)
	c.Fixed(t.Word[:])
}

// Unrekey takes the sender's Rekey for a member back.
type Unrekey struct{ Member uint64 }

func (*Unrekey) Kind() Kind        { return KindUnrekey }
func (*Unrekey) Name() string      { return "unrekey" }
func (t *Unrekey) Fields(c *Coder) { c.U64(&t.Member) }

// Veto is the present key's objection to every new key that is waiting.
type Veto struct{}

func (*Veto) Kind() Kind    { return KindVeto }
func (*Veto) Name() string  { return "veto" }
func (*Veto) Fields(*Coder) {}

// Delegate lets another member vote for the sender, who can always vote himself instead.
type Delegate struct {
	On Decision // 0: on everything for which nobody else is named
	To uint64   // a member; 0 takes it back
}

func (*Delegate) Kind() Kind   { return KindDelegate }
func (*Delegate) Name() string { return "delegate" }
func (t *Delegate) Fields(c *Coder) {
	among(c, &t.On, 0, Decisions-1, "decision")
	c.U64(&t.To)
}

// Propose puts a question to the members.
type Propose struct {
	Title    string
	Text     string
	Document [32]byte // SHA-256 of a longer text, or zero
	From     int64    // when it takes effect if it passes, seconds since 1970; 0: at once
	Action   Action
}

func (*Propose) Kind() Kind   { return KindPropose }
func (*Propose) Name() string { return "propose" }
func (t *Propose) Fields(c *Coder) {
	c.Text(&t.Title, 100)
	c.Text(&t.Text, 2000)
	c.Fixed(t.Document[:])
	c.I64(&t.From)
	ActionField(c, &t.Action)
}

// Support joins a proposal before its vote begins.
type Support struct{ Proposal uint64 }

func (*Support) Kind() Kind        { return KindSupport }
func (*Support) Name() string      { return "support" }
func (t *Support) Fields(c *Coder) { c.U64(&t.Proposal) }

// Withdraw takes the sender's own proposal back while it is open.
type Withdraw struct{ Proposal uint64 }

func (*Withdraw) Kind() Kind        { return KindWithdraw }
func (*Withdraw) Name() string      { return "withdraw" }
func (t *Withdraw) Fields(c *Coder) { c.U64(&t.Proposal) }

// Vote is a ballot, which may be changed until the vote closes.
type Vote struct {
	Proposal uint64
	Choice   Choice
}

func (*Vote) Kind() Kind   { return KindVote }
func (*Vote) Name() string { return "vote" }
func (t *Vote) Fields(c *Coder) {
	c.U64(&t.Proposal)
	among(c, &t.Choice, Yes, Abstain, "choice")
}

// Resign takes the sender's validators out of the set.
type Resign struct{}

func (*Resign) Kind() Kind    { return KindResign }
func (*Resign) Name() string  { return "resign" }
func (*Resign) Fields(*Coder) {}

// Action is what happens when a proposal has passed.
type Action interface {
	Record
	Decision() Decision
}

// ActionField is an action: its decision in one byte, then its fields.
func ActionField(c *Coder, a *Action) {
	var d Decision
	if *a != nil {
		d = (*a).Decision()
	}
	c.U8((*uint8)(&d))
	if c.Reading() {
		*a = NewAction(d)
	}
	if *a == nil {
		c.Fail(fmt.Errorf("there is no decision %d", d))
		return
	}
	(*a).Fields(c)
}

// NewAction returns an empty action, nil when there is no such decision.
func NewAction(d Decision) Action {
	switch d {
	case DecideText:
		return &ActText{}
	case DecideBylaws:
		return &ActBylaws{}
	case DecideTariff:
		return &ActTariff{}
	case DecideBudget:
		return &ActBudget{}
	case DecideValidators:
		return &ActValidators{}
	case DecideBlock:
		return &ActBlock{}
	case DecideAdmission:
		return &ActAdmission{}
	case DecideStanding:
		return &ActStanding{}
	case DecideCredit:
		return &ActCredit{}
	case DecideElection:
		return &ActElection{}
	case DecideSurplus:
		return &ActSurplus{}
	case DecideUpgrade:
		return &ActUpgrade{}
	case DecideRekey:
		return &ActRekey{}
	}
	return nil
}

// ActText decides a text and nothing else.
type ActText struct{}

func (*ActText) Decision() Decision { return DecideText }
func (*ActText) Fields(*Coder)      {}

func settings(c *Coder, s *[]Setting) {
	List(c, s, 40, func(c *Coder, s *Setting) { s.Fields(c) })
}

// ActBylaws changes parameters, all of them at once.
type ActBylaws struct{ Settings []Setting }

func (*ActBylaws) Decision() Decision { return DecideBylaws }
func (a *ActBylaws) Fields(c *Coder)  { settings(c, &a.Settings) }

// ActTariff changes parameters of the tariff.
type ActTariff struct{ Settings []Setting }

func (*ActTariff) Decision() Decision { return DecideTariff }
func (a *ActTariff) Fields(c *Coder)  { settings(c, &a.Settings) }

// MaxMeasure bounds what books decide.
const MaxMeasure = 1500

// ActBudget and ActSurplus carry a record of the books (books.go).
type ActBudget struct{ Measure []byte }

func (*ActBudget) Decision() Decision { return DecideBudget }
func (a *ActBudget) Fields(c *Coder)  { c.Bytes(&a.Measure, MaxMeasure) }

// ActSurplus says what becomes of a year's surplus.
type ActSurplus struct{ Measure []byte }

func (*ActSurplus) Decision() Decision { return DecideSurplus }
func (a *ActSurplus) Fields(c *Coder)  { c.Bytes(&a.Measure, MaxMeasure) }

// ValidatorChange adds a validator or removes one.
type ValidatorChange struct {
	Key      ident.PublicKey // consensus key
	Remove   bool
	Operator uint64          // member; of no meaning when removing
	Node     ident.PublicKey // the node that it runs on, which has its address; likewise
}

// ActValidators changes the validator set.
type ActValidators struct{ Changes []ValidatorChange }

func (*ActValidators) Decision() Decision { return DecideValidators }
func (a *ActValidators) Fields(c *Coder) {
	List(c, &a.Changes, 20, func(c *Coder, v *ValidatorChange) {
		c.Key(&v.Key)
		c.Bool(&v.Remove)
		c.U64(&v.Operator)
		c.Key(&v.Node)
	})
}

// BlockChange blocks a node or unblocks it.
type BlockChange struct {
	Node    ident.PublicKey
	Unblock bool
	Until   int64 // seconds since 1970; 0: until a vote
}

// ActBlock changes the list of nodes that no member's node routes for.
type ActBlock struct{ Changes []BlockChange }

func (*ActBlock) Decision() Decision { return DecideBlock }
func (a *ActBlock) Fields(c *Coder) {
	List(c, &a.Changes, 30, func(c *Coder, b *BlockChange) {
		c.Key(&b.Node)
		c.Bool(&b.Unblock)
		c.I64(&b.Until)
	})
}

// ActAdmission makes an applicant a member.
type ActAdmission struct{ Applicant ident.PublicKey }

func (*ActAdmission) Decision() Decision { return DecideAdmission }
func (a *ActAdmission) Fields(c *Coder)  { c.Key(&a.Applicant) }

// Step is what a vote does to a member.
type Step uint8

// The steps.
const (
	Reinstate Step = 0
	Suspend   Step = 1
	Expel     Step = 2
)

func (s Step) String() string {
	if s > Expel {
		return fmt.Sprintf("step %d", uint8(s))
	}
	return [...]string{"reinstate", "suspend", "expel"}[s]
}

// ActStanding suspends, expels or reinstates a member.
type ActStanding struct {
	Member uint64
	Step   Step
	Days   uint32 // of a suspension
}

func (*ActStanding) Decision() Decision { return DecideStanding }
func (a *ActStanding) Fields(c *Coder) {
	c.U64(&a.Member)
	among(c, &a.Step, Reinstate, Expel, "step")
	c.U32(&a.Days)
}

// ActCredit says how much credit a member has, and whether the solidarity fund helps.
type ActCredit struct {
	Member     uint64
	Class      uint8 // ledger.Class
	Grant      int64 // a limit of its own; -1: that of the class
	Solidarity int64 // on the solidarity tier until then, seconds since 1970; 0: not
}

func (*ActCredit) Decision() Decision { return DecideCredit }
func (a *ActCredit) Fields(c *Coder) {
	c.U64(&a.Member)
	among(c, &a.Class, 0, 3, "class of member")
	c.I64(&a.Grant)
	if a.Grant < -1 || a.Grant > MaxAmount {
		c.Fail(fmt.Errorf("a credit limit of %d is not allowed", a.Grant))
	}
	c.I64(&a.Solidarity)
}

// ActElection makes a member treasurer for a term, or ends the office.
type ActElection struct {
	Member uint64
	Remove bool
}

func (*ActElection) Decision() Decision { return DecideElection }
func (a *ActElection) Fields(c *Coder) {
	c.U64(&a.Member)
	c.Bool(&a.Remove)
}

// ActUpgrade changes the rules of the ledger itself at a height: a program that does not know the version stops there.
type ActUpgrade struct {
	Height  int64
	Version uint64
}

func (*ActUpgrade) Decision() Decision { return DecideUpgrade }
func (a *ActUpgrade) Fields(c *Coder) {
	c.I64(&a.Height)
	c.U64(&a.Version)
}

// ActRekey gives a member a new key by vote: the old one cannot object.
type ActRekey struct{ Rekey Rekey }

func (*ActRekey) Decision() Decision { return DecideRekey }
func (a *ActRekey) Fields(c *Coder)  { a.Rekey.Fields(c) }
