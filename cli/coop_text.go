package cli

import (
	"encoding"
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode"

	"weft/ident"
	"weft/ledger"
	"weft/ledger/tx"
)

// What members vote on and sign, whole and in plain words: nobody shall say yes to what the screen does not show. Each text names all
// fields of the record; TestContents fails where one is left out.

// teller puts numbers of the ledger into words.
type teller struct{ m *ledger.Machine }

func (t teller) member(id uint64) string {
	if mb, ok := t.m.Member(id); ok {
		return fmt.Sprintf("%s, member %d", mb.Name, id)
	}
	return fmt.Sprintf("member %d", id)
}

func (t teller) fund(id uint64) string {
	for _, f := range t.m.Funds() {
		if f.ID == id {
			return "the fund " + f.Name
		}
	}
	return fmt.Sprintf("fund %d", id)
}

func (t teller) line(id uint64) string {
	for _, l := range t.m.Lines() {
		if l.SetLine.Line == id {
			return fmt.Sprintf("the tariff's line %s (no. %d)", l.Called, id)
		}
	}
	return fmt.Sprintf("line %d of the tariff", id)
}

func (t teller) budget(id uint64) string {
	for _, b := range t.m.Budgets() {
		if b.ID == id {
			return fmt.Sprintf("budget %d, %s, of %s", id, b.Purpose, t.fund(b.Fund))
		}
	}
	return fmt.Sprintf("budget %d", id)
}

// clock prints seconds since 1970 as people here read them.
func clock(at int64) string { return time.Unix(at, 0).Local().Format("2006-01-02 15:04") }

func class(n uint8) string {
	if n == 0 {
		return "what all margin classes share"
	}
	return fmt.Sprintf("margin class %d", n)
}

// action is what a proposal does if it passes, one thing a line.
func (t teller) action(a tx.Action) []string {
	one := func(format string, args ...any) []string { return []string{fmt.Sprintf(format, args...)} }
	switch a := a.(type) {
	case *tx.ActText:
		return one("The members say yes to the text; nothing in the ledger changes.")
	case *tx.ActBylaws:
		return t.settings(a.Settings)
	case *tx.ActTariff:
		return t.settings(a.Settings)
	case *tx.ActBudget:
		return t.measure(a.Measure)
	case *tx.ActSurplus:
		return t.measure(a.Measure)
	case *tx.ActValidators:
		var l []string
		for _, v := range a.Changes {
			if v.Remove {
				l = append(l, fmt.Sprintf("The engine %s is a validator no more.", v.Key))
			} else {
				l = append(l, fmt.Sprintf("The engine %s becomes a validator, run by %s, on the node %s.", v.Key, t.member(v.Operator), v.Node))
			}
		}
		return l
	case *tx.ActBlock:
		var l []string
		for _, b := range a.Changes {
			switch {
			case b.Unblock:
				l = append(l, fmt.Sprintf("The node %s is blocked no more.", b.Node))
			case b.Until == 0:
				l = append(l, fmt.Sprintf("No member's node routes for the node %s, until another vote.", b.Node))
			default:
				l = append(l, fmt.Sprintf("No member's node routes for the node %s, until %s.", b.Node, clock(b.Until)))
			}
		}
		return l
	case *tx.ActAdmission:
		called := "who is no applicant now"
		for _, x := range t.m.Applications() {
			if x.Key == a.Applicant {
				called = "called " + x.Name
			}
		}
		if mb, _, ok := t.m.MemberByKey(a.Applicant); ok {
			called = t.member(mb.ID)
		}
		return one("The key %s, %s, becomes a member.", a.Applicant, called)
	case *tx.ActStanding:
		switch a.Step {
		case tx.Suspend:
			return one("%s is suspended for %s: no vote and no credit in that time.", t.member(a.Member), count(int(a.Days), "day"))
		case tx.Expel:
			return one("%s is expelled.", t.member(a.Member))
		}
		return one("The suspension of %s ends.", t.member(a.Member))
	case *tx.ActCredit:
		limit, help := "the limit of that tier", "without help from the solidarity fund"
		if a.Grant >= 0 {
			limit = "a limit of its own, " + credits(a.Grant) + " credits"
		}
		if a.Solidarity != 0 {
			help = "the solidarity fund helps with bills until " + clock(a.Solidarity)
		}
		return one("Credit of %s: tier %s, %s; %s.", t.member(a.Member), tx.Class(a.Class), limit, help)
	case *tx.ActElection:
		if a.Remove {
			return one("%s is treasurer no more.", t.member(a.Member))
		}
		return one("%s becomes treasurer for a term of %s (treasurer.term).", t.member(a.Member), span(t.m.Params().TreasurerTerm))
	case *tx.ActUpgrade:
		return one("From block %d on the ledger goes by version %d of its rules.", a.Height, a.Version)
	case *tx.ActRekey:
		return one("The membership of %s goes to the key %s; the key before it is void for ever and cannot object.", t.member(a.Rekey.Member), a.Rekey.New)
	}
	return one("A decision on %s that this program does not know.", a.Decision())
}

func (t teller) settings(set []tx.Setting) []string {
	var l []string
	p := t.m.Params()
	for _, s := range set {
		text := s.Name + " becomes " + s.Value
		if rule, ok := p.Find(s.Name); ok {
			if rule.Unit != "" {
				text += " " + rule.Unit
			}
			if now := rule.Text(); now != s.Value {
				text += " (now " + now + ")"
			}
			text += ": " + rule.Doc
		}
		l = append(l, text+".")
	}
	return l
}

// measure is what the books are to do.
func (t teller) measure(b []byte) []string {
	x, err := tx.DecodeMeasure(b)
	if err != nil {
		return []string{"A measure that this program cannot read: " + err.Error() + "."}
	}
	switch x := x.(type) {
	case *tx.NewBudget:
		whom, until, cost := "to anybody", "with no end", "an investment: it makes no margin less"
		if x.Member != 0 {
			whom = "to " + t.member(x.Member) + " only"
		}
		if x.Until != 0 {
			until = "until " + clock(x.Until)
		}
		if x.Cost {
			cost = fmt.Sprintf("a cost of the fiscal period, of business with %s", business(x.Business))
		}
		return []string{fmt.Sprintf("The treasurers may spend up to %s credits of %s, %s, %s, for: %s.", credits(x.Amount), t.fund(x.Fund), whom, until, x.Purpose),
			fmt.Sprintf("In the books it is %s; %s.", cost, class(x.Class))}
	case *tx.NewFund:
		return []string{fmt.Sprintf("A fund named %s begins, with nothing in it.", x.Called)}
	case *tx.MoveFund:
		return []string{fmt.Sprintf("%s credits move from %s to %s: %s.", credits(x.Amount), t.fund(x.From), t.fund(x.To), x.Why)}
	case *tx.SetLine:
		which := "A new line of the tariff, " + x.Called
		if x.Line != 0 {
			which = fmt.Sprintf("Line %d of the tariff, %s", x.Line, x.Called)
		}
		to := fmt.Sprintf("what is paid goes into %s, %s", t.fund(x.Fund), class(x.Class))
		if x.Ended {
			return []string{which + ", ends: nobody is billed by it any more."}
		}
		if x.Shared {
			return []string{fmt.Sprintf("%s: bills are divided by it among those who share them; %s.", which, to)}
		}
		price := []string{credits(x.Fee) + " credits each time"}
		for i, b := range x.Blocks {
			rest := "each GB" + map[bool]string{true: " more"}[i > 0]
			if b.Bytes != 0 {
				rest = fmt.Sprintf("each GB of the %s %s", map[bool]string{true: "next", false: "first"}[i > 0], size(b.Bytes))
			}
			price = append(price, fmt.Sprintf("%s for %s", credits(b.Price), rest))
		}
		if x.Cap != 0 {
			price = append(price, "never more than "+credits(x.Cap)+" a charge")
		}
		return []string{fmt.Sprintf("%s: %s; %s.", which, strings.Join(price, ", "), to)}
	case *tx.Retire:
		how := map[tx.Method]string{tx.FIFO: "the oldest years first", tx.LIFO: "the newest years first", tx.Percent: "all years alike",
			tx.Hybrid: fmt.Sprintf("%d permille of it the oldest years first, the rest all years alike", x.Oldest)}[x.Method]
		return []string{fmt.Sprintf("%s credits of members' capital are paid back out of the capital fund, %s (%s).", credits(x.Amount), how, x.Method)}
	}
	return []string{fmt.Sprintf("Measure %d, which this program does not know.", x.Measure())}
}

func business(b tx.Business) string {
	if int(b) > 2 {
		return fmt.Sprintf("business %d", b)
	}
	return [...]string{"members", "others", "members and others"}[b]
}

// outcome says of a stage what came of the proposal: a word for programs, and in a few words why.
func outcome(g ledger.Progress) (result, why string) {
	switch g.Stage {
	case ledger.Notice, ledger.Voting:
		return "open", ""
	case ledger.Passed, ledger.Done:
		return "passed", ""
	case ledger.Rejected:
		return "failed", fmt.Sprintf("majority: %d yes and %d no, and it takes more yes than no, and yes on at least %s of both together", g.Yes, g.No, percent(g.Majority))
	case ledger.NoQuorum:
		return "failed", fmt.Sprintf("quorum: %d of %d voted, and it takes %d", g.Ballots(), g.Eligible, g.Quorum)
	case ledger.Lapsed:
		return "failed", "support: too few members supported it before its vote (propose.support)"
	case ledger.Failed:
		return "failed", "it passed, but could not be done: " + g.Reason()
	case ledger.Withdrawn:
		return "withdrawn", "its author took it back"
	}
	return g.Stage.String(), ""
}

func percent(permille int64) string {
	return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(permille)/10), ".0") + " %"
}

// stage is where a proposal stands, for a column.
func stage(g ledger.Progress) string {
	switch g.Stage {
	case ledger.Passed:
		return "passed, waits"
	case ledger.Done:
		return "passed"
	case ledger.Rejected:
		return "failed: majority"
	case ledger.NoQuorum:
		return "failed: quorum"
	case ledger.Lapsed:
		return "failed: support"
	case ledger.Failed:
		return "failed: not possible"
	}
	return g.Stage.String()
}

// course is what comes next for a proposal, or what came.
func (t teller) course(id uint64, g ledger.Progress) string {
	p := t.m.Params()
	switch g.Stage {
	case ledger.Notice:
		text := fmt.Sprintf("Its vote begins %s and lasts %s.", clock(g.Opens), span(p.Voting))
		if p.ProposeSupport > 0 {
			text += fmt.Sprintf(" Before that %s must support it besides its author (weft coop support %d), or it lapses; so far %d.", count(int(p.ProposeSupport), "member"), id, max(g.Supporters, 1)-1)
		}
		if p.VotingEarly != 0 {
			text += fmt.Sprintf(" It begins at once when all %d members support it: weft coop support %d; so far %d.", t.m.ActiveMembers(), id, g.Supporters)
		}
		return text
	case ledger.Voting:
		return fmt.Sprintf("The vote lasts until %s: weft coop vote %d yes, no or abstain. It takes %s, more yes than no, and yes on at least %s of those that say either.", clock(g.Closes), id, plural(int(g.Quorum), "ballot", "ballots"), percent(g.Majority))
	case ledger.Passed:
		return fmt.Sprintf("It has passed and takes effect %s.", clock(g.Effect))
	case ledger.Done:
		return fmt.Sprintf("It has passed and took effect %s.", clock(g.Effect))
	case ledger.Withdrawn:
		return "It was withdrawn by its author."
	}
	_, why := outcome(g)
	return "It has failed; " + why + "."
}

// entry is what was entered in the books: all that a second person signs.
func (t teller) entry(x ledger.Entry) string {
	late := func(last bool) string {
		if last {
			return ", for the fiscal period before"
		}
		return ""
	}
	quoted := func(what, text string) string {
		if text == "" {
			return ", no " + what
		}
		return fmt.Sprintf(", %s %q", what, text)
	}
	switch b := x.Body.(type) {
	case *tx.Deposit:
		to := "into the account of " + t.member(b.Member)
		if b.Fund != 0 {
			to = "into " + t.fund(b.Fund)
			if b.Class != 0 {
				to += ", income from others in " + class(b.Class)
			} else {
				to += ", a gift, grant or loan"
			}
		}
		return fmt.Sprintf("%s credits came in by %s %s%s%s", credits(b.Amount), b.Way, to, late(b.Last), quoted("reference", b.Reference))
	case *tx.Payout:
		return fmt.Sprintf("%s credits leave the account of %s by %s to %q, once a treasurer pays them", credits(b.Amount), t.member(x.By), b.Way, b.Where)
	case *tx.Paid:
		text := fmt.Sprintf("payout %d was paid%s", b.Payout, quoted("reference", b.Reference))
		if o, ok := t.m.Entry(b.Payout); ok {
			text += ": " + t.entry(o)
		}
		return text
	case *tx.Spend:
		to := "and leave the community by " + b.Way.String()
		if b.Member != 0 {
			to = "to the account of " + t.member(b.Member)
		}
		return fmt.Sprintf("%s credits of %s are spent %s%s%s", credits(b.Amount), t.budget(b.Budget), to, late(b.Last), quoted("reference", b.Reference))
	case *tx.Charge:
		return fmt.Sprintf("%s is charged %s credits by %s, %d times its fee and %s%s%s", t.member(b.Member), credits(x.Amount), t.line(b.Line), b.Times, size(b.Bytes), late(b.Last), quoted("memo", b.Memo))
	case *tx.ShareBill:
		var parts []string
		for _, p := range b.Parts {
			parts = append(parts, fmt.Sprintf("%s (use %s)", t.member(p.Member), size(p.Usage)))
		}
		return fmt.Sprintf("a bill of %s credits is divided by %s, %s from each and the rest by use, among %s%s%s", credits(b.Bill), t.line(b.Line), credits(b.Equal), strings.Join(parts, "; "), late(b.Last), quoted("memo", b.Memo))
	case *tx.Reverse:
		text := fmt.Sprintf("entry %d is reversed%s", b.Entry, quoted("reason", b.Reason))
		if o, ok := t.m.Entry(b.Entry); ok {
			text += ": " + t.entry(o)
		}
		return text
	}
	return fmt.Sprintf("%s of %s credits", tx.Name(x.Body.Kind()), credits(x.Amount))
}

// plain turns a record of the ledger into what --json prints: names in snake case, sums as …_ncredit, enumerations in words, and the
// measure that a proposal carries decoded.
func plain(v any) any {
	switch a := v.(type) {
	case *tx.ActBudget:
		return plainMeasure(a.Measure)
	case *tx.ActSurplus:
		return plainMeasure(a.Measure)
	}
	return plainValue(reflect.ValueOf(v))
}

func plainMeasure(b []byte) any {
	x, err := tx.DecodeMeasure(b)
	if err != nil {
		return map[string]any{"measure": "unknown", "bytes": b}
	}
	out, _ := plainValue(reflect.ValueOf(x)).(map[string]any)
	out["measure"] = map[uint8]string{1: "budget", 2: "fund", 3: "move", 4: "line", 10: "retire"}[x.Measure()]
	return out
}

// sums are the fields of the ledger's records that hold money.
var sums = map[string]bool{"Amount": true, "Fee": true, "Price": true, "Cap": true, "Bill": true, "Equal": true, "Grant": true}

func plainValue(v reflect.Value) any {
	for v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	switch x := v.Interface().(type) {
	case tx.Business:
		return business(x)
	case ident.Signature:
		return fmt.Sprintf("%x", x[:])
	case encoding.TextMarshaler:
		return x
	case fmt.Stringer:
		return x.String()
	}
	switch v.Kind() {
	case reflect.Struct:
		out := map[string]any{}
		for i := range v.NumField() {
			f := v.Type().Field(i)
			name := snake(f.Name)
			if sums[f.Name] && f.Type.Kind() == reflect.Int64 {
				name += "_ncredit"
			}
			out[name] = plainValue(v.Field(i))
		}
		return out
	case reflect.Slice:
		out := []any{}
		for i := range v.Len() {
			out = append(out, plainValue(v.Index(i)))
		}
		return out
	}
	return v.Interface()
}

// snake turns GoName into go_name.
func snake(s string) string {
	var b strings.Builder
	for i, r := range s {
		if i > 0 && unicode.IsUpper(r) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
