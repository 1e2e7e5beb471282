package cli

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"weft/ident"
	"weft/ledger"
	"weft/ledger/tx"
)

// coopProposeCmd puts a question to the members. One proposal decides one thing: of the groups of flags below, one.
type coopProposeCmd struct {
	Title    string `help:"In a line; for a text, the text."`
	Text     string `help:"Reasons."`
	Document string `placeholder:"FILE" help:"A longer text, whose SHA-256 stands in the proposal; give the file to the members."`
	From     string `placeholder:"DATE" help:"When it takes effect if it passes, like 2027-01-01; at once when left out."`
	Until    string `placeholder:"DATE" help:"With --budget, --block or --solidarity: until when."`
	Days     uint32 `default:"30" help:"With --suspend: for so long."`
	Class    uint8  `placeholder:"1-8" help:"With --budget or --line: the margin class; 0 is what all classes share."`

	Set []string `group:"Rules:" sep:"none" placeholder:"RULE=VALUE" help:"Rules to change; all of one kind, bylaws or tariff. How a surplus is divided: --set surplus.…; it holds from the next period on."`

	Admit         string `group:"Members:" placeholder:"APPLICANT" help:"Make an applicant a member."`
	Suspend       string `group:"Members:" placeholder:"MEMBER" help:"Suspend a member."`
	Reinstate     string `group:"Members:" placeholder:"MEMBER" help:"End a suspension."`
	Expel         string `group:"Members:" placeholder:"MEMBER" help:"Expel a member."`
	Rekey         string `group:"Members:" placeholder:"WORD" help:"Give a member a new key, to which the old one cannot object: what the new node's weft coop rekey has printed."`
	Credit        string `group:"Members:" placeholder:"MEMBER=LIMIT" help:"Give a member a credit limit of its own; MEMBER=tier: that of its tier again."`
	Tier          string `group:"Members:" placeholder:"MEMBER=TIER" help:"Put a member into a credit tier: new, full, trusted or organisation. What they are worth: weft coop bylaws credit."`
	Solidarity    string `group:"Members:" placeholder:"MEMBER" help:"Have the solidarity fund pay a part of a member's bills (tariff.solidarity_discount), for a year or --until."`
	EndSolidarity string `group:"Members:" placeholder:"MEMBER" help:"End that."`

	Treasurer string `group:"Offices:" placeholder:"MEMBER" help:"Elect a treasurer."`
	Dismiss   string `group:"Offices:" placeholder:"MEMBER" help:"End a treasurer's office."`
	Validator string `group:"Offices:" placeholder:"KEY@NODE" help:"Make an engine a validator: its key, @, and the node that it runs on; see weft ledger status there."`
	Operator  string `group:"Offices:" placeholder:"MEMBER" help:"With --validator: the member who runs it."`
	Remove    string `group:"Offices:" placeholder:"KEY" help:"Take a validator out."`

	Budget     string `group:"Money:" placeholder:"FUND=AMOUNT" help:"Let the treasurers spend so much of a fund; --title says for what."`
	Cost       bool   `group:"Money:" help:"With --budget: what is spent is a cost of the fiscal period, not an investment."`
	Business   string `group:"Money:" enum:"members,others,both" default:"both" help:"With --budget --cost: of business with members, others or both."`
	For        string `group:"Money:" placeholder:"MEMBER" help:"With --budget: to be spent to this member only."`
	Fund       string `group:"Money:" placeholder:"NAME" help:"Begin a fund."`
	Move       string `group:"Money:" placeholder:"FUND:FUND=AMOUNT" help:"Move money from one fund to another; --title says why."`
	Line       string `group:"Money:" placeholder:"NAME=FEE" help:"Make or change a line of the tariff with a flat fee; --shared makes one by which bills are divided."`
	PerGB      string `group:"Money:" name:"per-gb" placeholder:"PRICE" help:"With --line: credits per GB; in steps like 10:0,50:0.10,0.05, the first ten free."`
	Cap        string `group:"Money:" placeholder:"AMOUNT" help:"With --line: no charge is more than this."`
	Shared     bool   `group:"Money:" help:"With --line: bills are divided by it (weft coop share-bill)."`
	Into       string `group:"Money:" default:"operating" help:"With --line: the fund that it pays into."`
	EndLine    string `group:"Money:" placeholder:"NAME" help:"End a line of the tariff."`
	Retire     string `group:"Money:" placeholder:"AMOUNT" help:"Pay members' capital back out of the capital fund."`
	Method     string `group:"Money:" enum:"fifo,lifo,percent,hybrid," default:"" help:"With --retire: fifo (oldest years first), lifo (newest), percent (all years alike) or hybrid; what the bylaws say (capital.retirement) when left out."`
	OldestPart uint16 `group:"Money:" placeholder:"PERMILLE" help:"With --method hybrid: the part that goes to the oldest years first."`

	Block   []string `group:"Network:" placeholder:"NODE" help:"Let no member's node route for these nodes, keys or names of nodes; for ever or --until."`
	Unblock []string `group:"Network:" placeholder:"NODE" help:"End that."`
	Upgrade uint64   `group:"Network:" placeholder:"VERSION" help:"Change the ledger's own rules to this version; every machine that keeps the ledger needs a weft that knows it before --at."`
	At      int64    `group:"Network:" placeholder:"BLOCK" help:"With --upgrade: from this block on."`
}

func (c *coopProposeCmd) Run(e *env) error {
	for _, t := range []struct {
		flag, text string
		most       int
	}{{"--title", c.Title, 100}, {"--text", c.Text, 2000}} {
		if len(t.text) > t.most {
			return usageError{fmt.Errorf("%s has %d bytes, and %d is the most", t.flag, len(t.text), t.most)}
		}
	}
	body := &tx.Propose{Title: c.Title, Text: c.Text}
	if c.Document != "" {
		b, err := os.ReadFile(c.Document)
		if err != nil {
			return usageError{fmt.Errorf("--document: %w", err)}
		}
		body.Document = sha256.Sum256(b)
	}
	if err := e.books(func(m *ledger.Machine, now time.Time) (err error) {
		if body.From, err = date("from", c.From); err != nil {
			return err
		}
		body.Action, err = c.action(e, m, now)
		if body.Title == "" && err == nil {
			body.Title = strings.ToValidUTF8(cut(describeAction(m, body.Action), 100), "")
		}
		return err
	}); err != nil {
		return err
	}
	r, err := e.send(body)
	if err != nil {
		return err
	}
	if e.json {
		return e.printResult(r)
	}
	return e.printProposed(r)
}

// date reads a day; none is 0.
func date(flag, text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	at, err := time.ParseInLocation("2006-01-02", text, time.Local)
	if err != nil {
		return 0, usageError{fmt.Errorf("--%s %s: written like 2027-01-01", flag, text)}
	}
	return at.Unix(), nil
}

// asker makes actions of words; the first word that means nothing stays in err.
type asker struct {
	e   *env
	m   *ledger.Machine
	err error
}

func (a *asker) fail(err error) { a.err = cmp.Or(a.err, err) }

func (a *asker) member(text string) ledger.Member {
	mb, err := findMember(a.m, text)
	if err != nil {
		a.fail(err)
	}
	return mb
}

func (a *asker) key(text string) ident.PublicKey {
	k, err := ident.ParsePublicKey(text)
	if err != nil {
		a.fail(usageError{fmt.Errorf("%q is no key of 64 hex digits", text)})
	}
	return k
}

func (a *asker) node(text string) ident.PublicKey {
	k, err := a.e.nodeKey(text)
	if err != nil {
		a.fail(err)
	}
	return k
}

func (a *asker) credits(flag, text string) int64 {
	n, err := parseCredits(text)
	if err != nil {
		a.fail(usageError{fmt.Errorf("--%s: %w", flag, err)})
	}
	return n
}

func (a *asker) fund(text string) uint64 {
	id, err := findFund(a.m, text)
	if err != nil {
		a.fail(err)
	}
	return id
}

// assigned reads NAME=AMOUNT.
func (a *asker) assigned(flag, text string) (string, int64) {
	name, sum, ok := strings.Cut(text, "=")
	amount, err := parseCredits(sum)
	if !ok || name == "" || err != nil {
		a.fail(usageError{fmt.Errorf("--%s %s: written like --%s NAME=12.50", flag, text, flag)})
	}
	return name, amount
}

func (a *asker) measure(x tx.Measure) tx.Action {
	b, err := tx.EncodeMeasure(x)
	if err != nil {
		a.fail(usageError{err})
	}
	if x.Decision() == tx.DecideSurplus {
		return &tx.ActSurplus{Measure: b}
	}
	return &tx.ActBudget{Measure: b}
}

// action makes the one thing that the flags ask for.
func (c *coopProposeCmd) action(e *env, m *ledger.Machine, now time.Time) (tx.Action, error) {
	a := &asker{e: e, m: m}
	until, err := date("until", c.Until)
	if err != nil {
		return nil, err
	}
	var acts []tx.Action
	add := func(asked bool, make func() tx.Action) {
		if asked {
			acts = append(acts, make())
		}
	}
	add(len(c.Set) > 0, func() tx.Action { return a.settings(c.Set) })

	add(c.Admit != "", func() tx.Action {
		k, err := findApplicant(m, c.Admit)
		if err != nil {
			a.fail(err)
		}
		return &tx.ActAdmission{Applicant: k}
	})
	add(c.Suspend != "", func() tx.Action {
		return &tx.ActStanding{Member: a.member(c.Suspend).ID, Step: tx.Suspend, Days: c.Days}
	})
	add(c.Reinstate != "", func() tx.Action { return &tx.ActStanding{Member: a.member(c.Reinstate).ID, Step: tx.Reinstate} })
	add(c.Expel != "", func() tx.Action { return &tx.ActStanding{Member: a.member(c.Expel).ID, Step: tx.Expel} })
	add(c.Rekey != "", func() tx.Action {
		b, err := parseRekey(c.Rekey)
		if err != nil {
			a.fail(err)
			return &tx.ActRekey{}
		}
		return &tx.ActRekey{Rekey: *b}
	})
	// A member's tier, limit and help are one decision: what is not asked for stays.
	credit := func(flag, text string, set func(a *tx.ActCredit, mb ledger.Member, value string)) func() tx.Action {
		return func() tx.Action {
			name, value, _ := strings.Cut(text, "=")
			mb := a.member(name)
			act := &tx.ActCredit{Member: mb.ID, Class: uint8(mb.Class), Grant: mb.Grant, Solidarity: mb.Aid}
			if mb.Aid <= now.Unix() {
				act.Solidarity = 0
			}
			set(act, mb, value)
			return act
		}
	}
	add(c.Credit != "", credit("credit", c.Credit, func(act *tx.ActCredit, _ ledger.Member, value string) {
		if act.Grant = -1; value != "tier" {
			_, act.Grant = a.assigned("credit", c.Credit)
		}
	}))
	add(c.Tier != "", credit("tier", c.Tier, func(act *tx.ActCredit, _ ledger.Member, value string) {
		for act.Class = 0; tx.Class(act.Class) <= tx.ClassOrganisation; act.Class++ {
			if tx.Class(act.Class).String() == value {
				act.Grant = -1
				return
			}
		}
		a.fail(usageError{fmt.Errorf("--tier %s: written like --tier NAME=trusted; the tiers are new, full, trusted and organisation", c.Tier)})
	}))
	add(c.Solidarity != "", credit("solidarity", c.Solidarity, func(act *tx.ActCredit, _ ledger.Member, _ string) {
		act.Solidarity = cmp.Or(until, now.AddDate(1, 0, 0).Unix())
	}))
	add(c.EndSolidarity != "", credit("end-solidarity", c.EndSolidarity, func(act *tx.ActCredit, mb ledger.Member, _ string) {
		if act.Solidarity == 0 && a.err == nil {
			a.fail(fmt.Errorf("%s is not on the solidarity tier", mb.Name))
		}
		act.Solidarity = 0
	}))

	add(c.Treasurer != "", func() tx.Action { return &tx.ActElection{Member: a.member(c.Treasurer).ID} })
	add(c.Dismiss != "", func() tx.Action { return &tx.ActElection{Member: a.member(c.Dismiss).ID, Remove: true} })
	add(c.Validator != "", func() tx.Action {
		k, node, ok := strings.Cut(c.Validator, "@")
		switch {
		case !ok:
			a.fail(usageError{fmt.Errorf("--validator %s: written like KEY@NODEKEY; weft ledger status on that machine shows both", c.Validator)})
		case c.Operator == "":
			a.fail(usageError{fmt.Errorf("say which member runs the validator: --operator MEMBER")})
		default:
			return &tx.ActValidators{Changes: []tx.ValidatorChange{{Key: a.key(k), Operator: a.member(c.Operator).ID, Node: a.key(node)}}}
		}
		return &tx.ActValidators{}
	})
	add(c.Remove != "", func() tx.Action {
		return &tx.ActValidators{Changes: []tx.ValidatorChange{{Key: a.key(c.Remove), Remove: true}}}
	})

	add(c.Budget != "", func() tx.Action { return c.budget(a, until) })
	add(c.Fund != "", func() tx.Action { return a.measure(&tx.NewFund{Called: c.Fund}) })
	add(c.Move != "", func() tx.Action {
		names, amount := a.assigned("move", c.Move)
		from, to, ok := strings.Cut(names, ":")
		if !ok {
			a.fail(usageError{fmt.Errorf("--move %s: written like --move operating:reserve=100", c.Move)})
		} else if c.Title == "" {
			a.fail(usageError{fmt.Errorf("say with --title why the money moves")})
		}
		return a.measure(&tx.MoveFund{From: a.fund(from), To: a.fund(to), Amount: amount, Why: c.Title})
	})
	add(c.Line != "", func() tx.Action { return c.line(a) })
	add(c.EndLine != "", func() tx.Action {
		l, ok := findLine(m, c.EndLine)
		if !ok {
			a.fail(fmt.Errorf("there is no line %q; see: weft coop lines", c.EndLine))
		}
		l.Ended = true
		return a.measure(&l.SetLine)
	})
	add(c.Retire != "", func() tx.Action {
		x := &tx.Retire{Amount: a.credits("retire", c.Retire), Oldest: c.OldestPart}
		method := c.Method
		if rule := m.Params().Retirement; method == "" && rule != ledger.RetireAny {
			method = tx.Method(rule).String()
		}
		for x.Method = tx.FIFO; x.Method < tx.Hybrid && x.Method.String() != cmp.Or(method, "fifo"); x.Method++ {
		}
		return a.measure(x)
	})

	add(len(c.Block) > 0, func() tx.Action {
		act := &tx.ActBlock{}
		for _, n := range c.Block {
			act.Changes = append(act.Changes, tx.BlockChange{Node: a.node(n), Until: until})
		}
		return act
	})
	add(len(c.Unblock) > 0, func() tx.Action {
		act := &tx.ActBlock{}
		for _, n := range c.Unblock {
			act.Changes = append(act.Changes, tx.BlockChange{Node: a.node(n), Unblock: true})
		}
		return act
	})
	add(c.Upgrade != 0, func() tx.Action {
		if c.At == 0 {
			a.fail(usageError{fmt.Errorf("say from which block on: --at BLOCK, far enough ahead for everybody who keeps the ledger to install the program that knows version %d; weft ledger status shows the newest block", c.Upgrade)})
		}
		return &tx.ActUpgrade{Height: c.At, Version: c.Upgrade}
	})

	with := func(flag string, given bool, of ...string) error {
		for _, f := range of {
			if f != "" {
				return nil
			}
		}
		if !given {
			return nil
		}
		return usageError{fmt.Errorf("%s goes with another flag; see: weft coop propose --help", flag)}
	}
	some := func(l []string) string { return strings.Join(l, " ") }
	for _, err := range []error{a.err,
		with("--operator", c.Operator != "", c.Validator), with("--until", c.Until != "", c.Budget, some(c.Block), c.Solidarity),
		with("--cost", c.Cost, c.Budget), with("--for", c.For != "", c.Budget), with("--class", c.Class != 0, c.Budget, c.Line),
		with("--per-gb", c.PerGB != "", c.Line), with("--cap", c.Cap != "", c.Line), with("--shared", c.Shared, c.Line),
		with("--method", c.Method != "", c.Retire), with("--oldest-part", c.OldestPart != 0, c.Retire), with("--at", c.At != 0 && c.Upgrade == 0)} {
		if err != nil {
			return nil, err
		}
	}
	switch {
	case len(acts) > 1:
		return nil, usageError{fmt.Errorf("one proposal decides one thing: make %d", len(acts))}
	case len(acts) == 1:
		return acts[0], nil
	case c.Title == "":
		return nil, usageError{fmt.Errorf("say what is to be decided: --title for a text, --set for a rule, or another; see: weft coop propose --help")}
	}
	return &tx.ActText{}, nil
}

// settings changes rules, all of one kind.
func (a *asker) settings(set []string) tx.Action {
	p := a.m.Params()
	var l []tx.Setting
	kinds := map[tx.Decision]bool{}
	for _, s := range set {
		name, value, ok := strings.Cut(s, "=")
		rule, known := p.Find(name)
		switch {
		case !ok:
			a.fail(usageError{fmt.Errorf("--set %s: written like --set vote.window=604800", s)})
		case !known:
			a.fail(usageError{fmt.Errorf("--set %s: there is no such rule; see: weft coop bylaws", s)})
		default:
			if err := p.Set(name, value); err != nil {
				a.fail(usageError{err})
			}
		}
		kinds[rule.Class] = true
		l = append(l, tx.Setting{Name: name, Value: value})
	}
	if len(kinds) > 1 {
		a.fail(usageError{fmt.Errorf("bylaws and tariff are decided apart: make two proposals")})
	}
	if kinds[tx.DecideTariff] {
		return &tx.ActTariff{Settings: l}
	}
	return &tx.ActBylaws{Settings: l}
}

func (c *coopProposeCmd) budget(a *asker, until int64) tx.Action {
	name, amount := a.assigned("budget", c.Budget)
	if c.Title == "" {
		a.fail(usageError{fmt.Errorf("say with --title what the budget is for")})
	}
	x := &tx.NewBudget{Fund: a.fund(name), Amount: amount, Cost: c.Cost, Class: c.Class, Until: until, Purpose: c.Title,
		Business: map[string]tx.Business{"members": tx.WithMembers, "others": tx.WithOthers, "both": tx.WithBoth}[c.Business]}
	if c.For != "" {
		x.Member = a.member(c.For).ID
	}
	return a.measure(x)
}

func (c *coopProposeCmd) line(a *asker) tx.Action {
	name, fee := a.assigned("line", c.Line)
	x := &tx.SetLine{Called: name, Class: max(c.Class, 1), Fee: fee, Fund: a.fund(c.Into), Shared: c.Shared}
	if old, ok := findLine(a.m, name); ok {
		x.Line = old.SetLine.Line
		if c.Class == 0 {
			x.Class = old.Class
		}
	}
	if c.Cap != "" {
		x.Cap = a.credits("cap", c.Cap)
	}
	if c.PerGB != "" {
		for step := range strings.SplitSeq(c.PerGB, ",") {
			var b tx.Block
			if gb, price, ok := strings.Cut(step, ":"); ok {
				n, err := strconv.ParseUint(gb, 10, 32)
				if err != nil {
					a.fail(usageError{fmt.Errorf("--per-gb %s: steps are written like 10:0,50:0.10,0.05", c.PerGB)})
				}
				b.Bytes, step = n*1e9, price
			}
			b.Price = a.credits("per-gb", step)
			x.Blocks = append(x.Blocks, b)
		}
	}
	return a.measure(x)
}

// findFund finds a fund by name or number.
func findFund(m *ledger.Machine, text string) (uint64, error) {
	var names []string
	for _, f := range m.Funds() {
		if strings.EqualFold(f.Name, text) || strconv.FormatUint(f.ID, 10) == text {
			return f.ID, nil
		}
		names = append(names, f.Name)
	}
	return 0, usageError{fmt.Errorf("there is no fund %q; there are: %s", text, strings.Join(names, ", "))}
}

// findLine finds a line of the tariff that was voted, by name or number.
func findLine(m *ledger.Machine, text string) (ledger.Line, bool) {
	for _, l := range m.Lines() {
		if l.SetLine.Line != 0 && (strings.EqualFold(l.Called, text) || strconv.FormatUint(l.SetLine.Line, 10) == text) {
			return l, true
		}
	}
	return ledger.Line{}, false
}

// describeAction is the title of a proposal that was given none.
func describeAction(m *ledger.Machine, a tx.Action) string {
	member := func(id uint64) string {
		mb, _ := m.Member(id)
		return fmt.Sprintf("%s, member %d", mb.Name, id)
	}
	switch a := a.(type) {
	case *tx.ActBylaws:
		return "Set " + settingsText(a.Settings)
	case *tx.ActTariff:
		return "Set " + settingsText(a.Settings)
	case *tx.ActElection:
		if a.Remove {
			return "No longer treasurer: " + member(a.Member)
		}
		return "Treasurer: " + member(a.Member)
	case *tx.ActStanding:
		switch a.Step {
		case tx.Suspend:
			return fmt.Sprintf("Suspend %s, for %s", member(a.Member), count(int(a.Days), "day"))
		case tx.Expel:
			return "Expel " + member(a.Member)
		case tx.Reinstate:
			return "Reinstate " + member(a.Member)
		}
	case *tx.ActAdmission:
		for _, x := range m.Applications() {
			if x.Key == a.Applicant {
				return "Admit " + x.Name
			}
		}
	case *tx.ActBlock:
		verb := "Block "
		if a.Changes[0].Unblock {
			verb = "Unblock "
		}
		if len(a.Changes) > 1 {
			return verb + count(len(a.Changes), "node")
		}
		return verb + a.Changes[0].Node.String()
	case *tx.ActValidators:
		if a.Changes[0].Remove {
			return "Remove validator " + a.Changes[0].Key.String()
		}
		return "Validator of " + member(a.Changes[0].Operator)
	case *tx.ActCredit:
		what := "tier " + tx.Class(a.Class).String()
		if a.Grant >= 0 {
			what = "a limit of " + credits(a.Grant)
		}
		if a.Solidarity != 0 {
			what += ", helped by the solidarity fund until " + day(a.Solidarity)
		}
		return fmt.Sprintf("Credit of %s: %s", member(a.Member), what)
	case *tx.ActRekey:
		return "A new key for " + member(a.Rekey.Member)
	case *tx.ActUpgrade:
		return fmt.Sprintf("The ledger's rules are version %d from block %d on", a.Version, a.Height)
	case *tx.ActSurplus:
		if x, err := tx.DecodeMeasure(a.Measure); err == nil {
			if r, ok := x.(*tx.Retire); ok {
				return fmt.Sprintf("Pay back %s credits of capital, %s", credits(r.Amount), r.Method)
			}
		}
	case *tx.ActBudget:
		x, _ := tx.DecodeMeasure(a.Measure)
		switch x := x.(type) {
		case *tx.NewFund:
			return "A fund: " + x.Called
		case *tx.SetLine:
			if x.Ended {
				return "End the tariff's line " + x.Called
			}
			return "A line of the tariff: " + x.Called
		}
	}
	return "Decide on " + a.Decision().String()
}

func settingsText(l []tx.Setting) string {
	var parts []string
	for _, s := range l {
		parts = append(parts, s.Name+" = "+s.Value)
	}
	return cut(strings.Join(parts, ", "), 90)
}

func cut(s string, most int) string { return s[:min(len(s), most)] }
