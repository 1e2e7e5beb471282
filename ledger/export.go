package ledger

import (
	"fmt"
	"slices"
	"strings"

	"weft/ledger/tx"
)

// NotLegalAdvice goes with every paper by which money leaves the community.
const NotLegalAdvice = "This is arithmetic by the community's bylaws, not legal or tax advice. What may be paid out, when, and what tax is due on it differ from country to country: ask who knows yours before money leaves."

// FormatAmount is an amount in credits with all nine decimals, exactly.
func FormatAmount(ncredit int64) string {
	sign, u := "", uint64(ncredit)
	if ncredit < 0 {
		sign, u = "-", -u
	}
	return fmt.Sprintf("%s%d.%09d", sign, u/credit, u%credit)
}

// FormatTime is a time (seconds since 1970) as ISO 8601 in UTC.
func FormatTime(t int64) string {
	s := ((t % day) + day) % day
	return fmt.Sprintf("%sT%02d:%02d:%02dZ", formatDay(t), s/hour, s/60%60, s%60)
}

func formatDay(t int64) string {
	y, m, d := civil(t)
	return fmt.Sprintf("%04d-%02d-%02d", y, m, d)
}

// isClaim reports whether an account of the books is of the layer of claims, which are no money.
func isClaim(account string) bool {
	kind, _, _ := strings.Cut(account, ":")
	return kind == "capital" || kind == "shares" || kind == "arrears" || kind == "claims"
}

// JournalEntries divides postings, in the order of the chain, into entries: the shortest runs within a transaction, or within what
// fell due in a block, that sum to zero in both layers. What does not sum to zero is an entry too; audits find it.
func JournalEntries(postings []Posting) (entries [][]Posting) {
	begin := 0
	var money, claims int64
	moved := false
	for i, p := range postings {
		if isClaim(p.Account) {
			claims += p.Amount
		} else {
			money += p.Amount
		}
		moved = moved || p.Amount != 0
		end := i+1 == len(postings) || postings[i+1].Height != p.Height || postings[i+1].Tx != p.Tx
		if end || moved && money == 0 && claims == 0 {
			entries = append(entries, postings[begin:i+1])
			begin, money, claims, moved = i+1, 0, 0, false
		}
	}
	return entries
}

// AppendCSV appends postings as comma-separated values with a heading (RFC 4180): one line for each posting, amounts in credits.
func AppendCSV(b []byte, postings []Posting) []byte {
	b = append(b, "height,tx,entry,time,account,amount,memo\r\n"...)
	for n, e := range JournalEntries(postings) {
		for _, p := range e {
			b = fmt.Appendf(b, "%d,%d,%d,%s,%s,%s,%s\r\n", p.Height, p.Tx, n+1, FormatTime(p.Time), p.Account, FormatAmount(p.Amount), csvText(p.Memo))
		}
	}
	return b
}

// csvText quotes a text that anybody may have written. A spreadsheet would take one that begins like a formula for one.
func csvText(s string) string {
	if s != "" && strings.ContainsRune("=+-@\t\r", rune(s[0])) {
		s = "'" + s
	}
	return `"` + strings.ReplaceAll(s, `"`, `""`) + `"`
}

// AppendBeancount appends postings as text for Beancount (version 2 and 3): each account opened, each entry a transaction, and, with
// the trial balance at their end, an assertion for each account. What the books hold for somebody is negative there, as usual.
func AppendBeancount(b []byte, title string, postings []Posting, at []Balance) []byte {
	b = fmt.Appendf(b, "option \"title\" %s\noption \"operating_currency\" \"CREDIT\"\n", beanText(title))
	b = fmt.Appendf(b, "; %s\n\n", NotLegalAdvice)
	if len(postings) == 0 {
		return b
	}
	seen := map[string]bool{}
	var accounts []string
	first, last := postings[0].Time, postings[0].Time
	for _, p := range postings {
		if a := beanAccount(p.Account); !seen[a] {
			seen[a] = true
			accounts = append(accounts, a)
		}
		first, last = min(first, p.Time), max(last, p.Time)
	}
	slices.Sort(accounts)
	for _, a := range accounts {
		b = fmt.Appendf(b, "%s open %s CREDIT\n", formatDay(first), a)
	}
	for n, e := range JournalEntries(postings) {
		b = fmt.Appendf(b, "\n%s * %s\n  entry: \"%d\"\n  block: \"%d/%d\"\n", formatDay(e[0].Time), beanText(e[0].Memo), n+1, e[0].Height, e[0].Tx)
		for _, p := range e {
			b = fmt.Appendf(b, "  %s  %s CREDIT\n", beanAccount(p.Account), FormatAmount(-p.Amount))
		}
	}
	if len(at) > 0 {
		b = append(b, '\n')
	}
	for _, l := range at {
		if a := beanAccount(l.Account); seen[a] {
			b = fmt.Appendf(b, "%s balance %s  %s CREDIT\n", formatDay(last+day), a, FormatAmount(-l.Amount))
		}
	}
	return b
}

func beanText(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", " ").Replace(s) + `"`
}

// beanAccount is the name of an account in Beancount: parts begin with a capital or a digit.
func beanAccount(account string) string {
	part := strings.Split(account, ":")
	clean := func(s string) string {
		return strings.Map(func(r rune) rune {
			if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
				return r
			}
			return '-'
		}, s)
	}
	title := func(s string) string { s = clean(s); return strings.ToUpper(s[:1]) + s[1:] }
	arg := func(i int) string {
		if i < len(part) && part[i] != "" {
			return part[i]
		}
		return "0"
	}
	switch part[0] {
	case "world":
		return "Assets:" + title(arg(1))
	case "member":
		return "Liabilities:Members:M" + clean(arg(1))
	case "tab":
		return "Liabilities:Tabs:T" + clean(arg(1))
	case "payout":
		return "Liabilities:Payouts:P" + clean(arg(1))
	case "due":
		return "Liabilities:Due:M" + clean(arg(1))
	case "fund":
		if c := arg(1)[0]; c >= '0' && c <= '9' {
			return "Equity:Funds:F" + clean(arg(1))
		}
		return "Equity:Funds:" + title(arg(1))
	case "capital":
		return "Equity:Capital:M" + clean(arg(1)) + ":Y" + clean(arg(2))
	case "shares":
		return "Equity:Shares:M" + clean(arg(1))
	case "arrears":
		return "Equity:Arrears:M" + clean(arg(1)) + ":L" + clean(arg(2))
	case "claims":
		return "Equity:Claims:" + title(arg(1))
	}
	return "Liabilities:Others:A" + clean(account)
}

// Statement is a member's account over a time, each line explained.
type Statement struct {
	Member   uint64
	From, To int64 // seconds since 1970
	Opening  int64
	Lines    []StatementLine
	Closing  int64
	Advice   string // NotLegalAdvice, when money left or a surplus was divided
}

// StatementLine is one posting.
type StatementLine struct {
	Height  int64
	Time    int64
	Text    string   // what it was for
	With    []string // the other accounts of the entry
	Amount  int64    // 0 for what is told but is no money of the account
	Balance int64    // of the account after it
}

// MakeStatement reads a member's statement out of all postings from the first block on.
func MakeStatement(chain tx.Chain, member uint64, postings []Posting, from, to int64) Statement {
	s := Statement{Member: member, From: from, To: to}
	own, arrears := memberHolder(member), fmt.Sprintf("arrears:%d:", member)
	capital, shares, waits := fmt.Sprintf("capital:%d:", member), fmt.Sprintf("shares:%d", member), fmt.Sprintf("due:%d", member)
	balance := int64(0)
	for _, e := range JournalEntries(postings) {
		for i, p := range e {
			if p.Account == own {
				balance += p.Amount
			}
			if p.Time < from {
				s.Opening = balance
				continue
			}
			if p.Time >= to {
				continue
			}
			s.Closing = balance
			l := StatementLine{Height: p.Height, Time: p.Time, Text: p.Memo, Balance: balance}
			switch {
			case p.Account == own:
				l.Amount = p.Amount
				for j, o := range e {
					if j != i && !isClaim(o.Account) && (o.Amount < 0) != (p.Amount < 0) && o.Amount != 0 && !slices.Contains(l.With, o.Account) && len(l.With) < 8 {
						l.With = append(l.With, o.Account)
					}
				}
			case strings.HasPrefix(p.Account, arrears):
				l.Text = fmt.Sprintf("%s: %s credits are owed", p.Memo, FormatAmount(p.Amount))
				if p.Amount < 0 {
					l.Text = fmt.Sprintf("%s: %s credits of what was owed are paid", p.Memo, FormatAmount(-p.Amount))
				}
			case p.Mark.What == MarkAid && p.Memo == Pseudonym(chain, p.Mark.Period, member):
				l.Text = fmt.Sprintf("the solidarity fund paid %s credits of the following charge for you, who are %s in the public books", FormatAmount(p.Amount), p.Memo)
			case strings.HasPrefix(p.Account, capital):
				l.Text = fmt.Sprintf("%s: your capital of %s changes by %s credits", p.Memo, p.Account[len(capital):], FormatAmount(p.Amount))
			case p.Account == shares:
				l.Text = fmt.Sprintf("%s: your shares change by %s credits", p.Memo, FormatAmount(p.Amount))
			case p.Account == waits:
				l.Text = fmt.Sprintf("%s: what waits for you changes by %s credits", p.Memo, FormatAmount(p.Amount))
			default:
				continue
			}
			if p.Mark.What >= MarkRefund || strings.HasPrefix(p.Account, capital) || slices.ContainsFunc(l.With, func(a string) bool { return strings.HasPrefix(a, "world:") || strings.HasPrefix(a, "payout:") }) {
				s.Advice = NotLegalAdvice
			}
			s.Lines = append(s.Lines, l)
		}
	}
	if len(s.Lines) == 0 {
		s.Closing = s.Opening
	}
	return s
}
