package economy

import (
	"errors"
	"fmt"
	"html/template"
	"io"
	"strings"
	"text/tabwriter"

	"weft/pay"
)

// Report is what came of a run. Money is in ncredit.
type Report struct {
	Homes         int     `json:"homes"`
	Gateways      int     `json:"gateways"`
	Relays        int     `json:"relays"` // homes that carried for others
	Days          int     `json:"days"`
	Seed          uint64  `json:"seed"`
	Step          string  `json:"step"`
	Bytes         uint64  `json:"bytes"`
	Vouchers      uint64  `json:"vouchers"`
	Transactions  uint64  `json:"transactions"`
	Blocks        int64   `json:"blocks"`
	Accounts      int     `json:"accounts"`
	Reboots       int     `json:"reboots"`
	Strangers     int     `json:"strangers"`
	X             int64   `json:"x"` // users −X
	Y             int64   `json:"y"` // gateways +Y, what they pay relays is off
	Z             int64   `json:"z"` // relays +Z
	Players       []Row   `json:"players"`
	HonestSeconds int64   `json:"honest_seconds"` // of use by honest homes
	Slow          []Slow  `json:"held_back"`
	Checks        []Check `json:"checks"`
	Series        []Day   `json:"series"`
}

// Row is what one kind of player did to the honest, on one side of an account.
type Row struct {
	Player   string `json:"player"`
	What     string `json:"what"`
	Role     string `json:"role"` // the player's: "payer" or "payee"; the other end may lose, but for losses of power, which cost oneself
	Nodes    int    `json:"nodes"`
	Accounts int    `json:"accounts"`
	Value    int64  `json:"value"`     // of what was carried
	Paid     int64  `json:"paid"`      // promised for it
	FreeTier int64  `json:"free_tier"` // unpaid, within the free tier or forgiven at its rate: what the community has voted to give
	Lost     int64  `json:"lost"`      // by honest ones beyond that; below 0: they have gained
	Worst    int64  `json:"worst"`     // lost in the account that came nearest to its bound
	Rule     string `json:"rule"`      // what the bound is
	Bound    int64  `json:"bound"`     // of that account
	Broken   int    `json:"broken"`    // accounts above their bound
}

// Slow is how long honest homes had less than they wanted, for one reason.
type Slow struct {
	Why     string `json:"why"`
	Seconds int64  `json:"seconds"`
}

// Check is something that must hold for all.
type Check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Text string `json:"text"`
}

// Day is a day's end.
type Day struct {
	Day      int    `json:"day"`
	Bytes    uint64 `json:"bytes"`    // so far
	Gateways int64  `json:"gateways"` // what their balances and tabs have gained since the beginning
	Homes    int64  `json:"homes"`    // the same of all others
}

// rule is the bound in words: p is the price, R the highest rate that the account saw, E and T as in pay.md section 4.
func rule(p Player, role pay.Role) string {
	served := fmt.Sprintf("p·(E + R·%v), T for p·E without a tab", detect+pay.ShapeTime)
	switch {
	case p == Sybil:
		return fmt.Sprintf("p·R·%v for each key, beyond the guests' free tier", Step+pay.ShapeTime)
	case p == UnderReporter && role == pay.Payer:
		return served + fmt.Sprintf(", and p·R·%v once, till the gap acts", gapSeen+detect+pay.ShapeTime)
	case p == SlyReporter && role == pay.Payer:
		return served + ", and p·g each 10 s"
	case p == TurnReporter && role == pay.Payer:
		return served + fmt.Sprintf(", p·R·%v for each gap, at most one an hour, and p·g each 10 s", gapSeen+detect+pay.ShapeTime)
	case role == pay.Payee && (p == RebootHome || p == RebootGateway || p == RebootRelay):
		return served + fmt.Sprintf(", and p·R·%v each time", meterKept+Step)
	case role == pay.Payee:
		return fmt.Sprintf("p·(%d MiB + %d ‰)", pay.GapBytes>>20, pay.GapPermille)
	}
	return served
}

// mark notes the day's end.
func (w *world) mark() {
	d := Day{Day: len(w.days), Bytes: w.carried}
	for _, n := range w.members {
		a, _ := w.chain.m.Account(n.key)
		has := a.Balance - n.paidIn
		for _, t := range w.chain.openTabs(n) {
			has += t.Left()
		}
		if n.gateway {
			d.Gateways += has
		} else {
			d.Homes += has
		}
	}
	w.days = append(w.days, d)
}

// Err says which bounds are broken; nil when none is.
func (r *Report) Err() error {
	var bad []error
	for _, p := range r.Players {
		if p.Broken > 0 {
			bad = append(bad, fmt.Errorf("%s as %s: %d of %d accounts are above their bound; the worst has lost %s of %s", p.Player, p.Role, p.Broken, p.Accounts, money(p.Worst), money(p.Bound)))
		}
	}
	for _, c := range r.Checks {
		if !c.OK {
			bad = append(bad, fmt.Errorf("%s: %s", c.Name, c.Text))
		}
	}
	return errors.Join(bad...)
}

// report holds everything against its bounds.
func (w *world) report() (*Report, error) {
	s, err := w.close()
	if err != nil {
		return nil, err
	}
	r := &Report{Homes: w.o.Homes, Gateways: len(w.gateways), Days: w.o.Days, Seed: w.o.Seed, Step: Step.String(), Bytes: w.carried, Vouchers: w.vouchers,
		Transactions: w.chain.txs, Blocks: w.chain.height, Accounts: len(w.accounts), Reboots: w.reboots, Strangers: len(w.sybils), Series: w.days,
		HonestSeconds: w.usedHonest}
	for i, n := range w.slow {
		r.Slow = append(r.Slow, Slow{slowNames[i], n})
	}
	type key struct {
		p Player
		r pay.Role
	}
	rows := map[key]*Row{}
	nodes := map[key]map[*node]bool{}
	row := func(p Player, role pay.Role, n *node) *Row {
		k := key{p, role}
		if rows[k] == nil {
			rows[k], nodes[k] = &Row{Player: p.String(), What: playerNames[p].what, Role: role.String(), Rule: rule(p, role)}, map[*node]bool{}
		}
		nodes[k][n] = true
		rows[k].Nodes = len(nodes[k])
		return rows[k]
	}
	take := func(row *Row, value, paid, free, lost, bound int64) {
		first := row.Accounts == 0
		row.Accounts++
		row.Value, row.Paid, row.FreeTier, row.Lost = row.Value+value, row.Paid+paid, row.FreeTier+free, row.Lost+lost
		if first || float64(lost)*float64(row.Bound) > float64(row.Worst)*float64(bound) {
			row.Worst, row.Bound = lost, bound
		}
		if lost > bound {
			row.Broken++
		}
	}
	relays := map[*node]bool{}
	var near, nearMost, free, tooFree int64
	for i := range s.outcomes {
		o := &s.outcomes[i]
		if total(o.payerOwn) == 0 && total(o.payeeFull)+total(o.payeeSlow) == 0 {
			continue
		}
		switch {
		case o.service == pay.Internet:
			r.X += o.booked
			r.Y += o.booked
		case o.payer.gateway && o.payee.gateway:
		case o.payer.gateway:
			r.Y, r.Z = r.Y-o.booked, r.Z+o.booked
		case o.payee.gateway:
			r.Y, r.Z = r.Y+o.booked, r.Z-o.booked
		}
		if o.service == pay.Carriage {
			relays[o.payee] = true
		}
		if o.payer.kind == Sybil {
			t := w.chain.tariff
			free := min(pay.Cost(uint64(t.GuestKbit)*125*sybilStay, priceBefore), o.value)
			bound := pay.Cost(uint64(float64(o.peak)*(Step+pay.ShapeTime).Seconds()), priceBefore)
			take(row(Sybil, pay.Payer, o.payer), o.value, o.booked, free, o.value-free, bound)
			continue
		}
		free += o.freeTier
		if o.freeTier > o.freeBound {
			tooFree++
		}
		if !o.payee.hostile() {
			p := o.payer.kind
			if !o.payer.hostile() && o.payee.kind != Honest { // what a payee loses by its own reboots
				take(row(o.payee.kind, pay.Payee, o.payee), o.value, o.booked, o.freeTier, o.payeeLoss, o.payeeBound)
			} else {
				take(row(p, pay.Payer, o.payer), o.value, o.booked, o.freeTier, o.payeeLoss, o.payeeBound)
			}
		}
		if !o.payer.hostile() && o.payee.hostile() {
			take(row(o.payee.kind, pay.Payee, o.payee), o.value, o.booked, 0, o.payerLoss, o.payerBound)
		}
		if o.payer.kind == Honest && o.payee.kind == Honest {
			if o.payerLoss > o.payerBound {
				row(Honest, pay.Payer, o.payer).Broken++
			}
			if !o.cut && total(o.payerOwn) == total(o.payeeFull)+total(o.payeeSlow) {
				near += abs(o.booked - o.value)
				nearMost += o.payerBound
			}
		}
	}
	r.Relays = len(relays)
	for p := range players {
		for _, role := range []pay.Role{pay.Payer, pay.Payee} {
			if row := rows[key{p, role}]; row != nil {
				r.Players = append(r.Players, *row)
			}
		}
	}
	r.check(w, s, near, nearMost, free, tooFree)
	return r, nil
}

func abs(n int64) int64 { return max(n, -n) }

// check adds what must hold for all together.
func (r *Report) check(w *world, s *settled, near, nearMost, free, tooFree int64) {
	add := func(name string, ok bool, format string, args ...any) {
		r.Checks = append(r.Checks, Check{name, ok, fmt.Sprintf(format, args...)})
	}
	has, paidIn, wrong := w.money(s)
	add("no money is made or lost", has == paidIn, "balances, tabs and funds hold %s of %s paid in", money(has), money(paidIn))
	err := w.chain.m.Check()
	add("the ledger's invariants hold", err == nil, "%s", says(err, fmt.Sprintf("%d transactions, %d blocks", r.Transactions, r.Blocks)))
	err = w.funds()
	add("no fund was touched but by votes", err == nil, "%s", says(err, "each holds what was voted and charged"))
	add("money moves by vouchers alone", len(wrong)+len(w.unsettled) == 0, "%s", says(list(append(wrong, w.unsettled...)), fmt.Sprintf("the balances of all %d members, to the ncredit", len(w.members))))
	add("X = Y + Z", r.X == r.Y+r.Z, "users −%s, gateways %s, relays %s", money(r.X), money(r.Y), money(r.Z))
	add("paid is price times both meters", near <= nearMost, "honest with honest differ by %s, the gaps allow %s", money(near), money(nearMost))
	add("what is forgiven is the free tier", tooFree == 0, "%s in all; %d accounts got more", money(free), tooFree)
	add("honest books hold", len(s.audits) == 0, "%s", says(list(s.audits), "audits of all honest nodes found nothing"))
	add("the vote sets the price", s.wrong == 0 && s.after > 0, "%d lines of honest bills at the new prices, %d at others since", s.after, s.wrong)
	kept := map[*node]int64{}
	for i := range s.outcomes {
		if o := &s.outcomes[i]; o.service == pay.Internet {
			kept[o.payee] += o.booked
		} else {
			kept[o.payer] -= o.booked
		}
	}
	poor := 0
	for _, g := range w.gateways {
		if !g.hostile() && kept[g] < 0 {
			poor++
		}
	}
	add("carriage leaves gateways their part", poor == 0, "%d gateways paid relays more than they got; the longest way had %d relays", poor, w.relays)
	most := uint64(float64(w.carried) * w.dropShare / 2)
	add("who drops loses its traffic", w.dropCarried <= most, "%.2f %% of all bytes went by relays that drop, who stood on %.2f %% of the ways; %.1f MB were lost",
		100*float64(w.dropCarried)/float64(max(w.carried, 1)), 100*w.dropShare, float64(w.dropped)/1e6)
	add("no transaction applies twice", w.chain.applied == 0, "%d replayed, %d applied", w.chain.refused+w.chain.applied, w.chain.applied)
}

func list(l []string) error {
	if len(l) == 0 {
		return nil
	}
	more := ""
	if len(l) > 3 {
		more = fmt.Sprintf("; and %d more", len(l)-3)
	}
	return errors.New(strings.Join(l[:min(len(l), 3)], "; ") + more)
}

func says(err error, otherwise string) string {
	if err != nil {
		return err.Error()
	}
	return otherwise
}

// money is an amount in millicredits.
func money(n int64) string { return fmt.Sprintf("%.3f", float64(n)/1e6) }

// Percent is the worst account's loss of its bound.
func (p Row) Percent() float64 {
	if p.Worst <= 0 || p.Bound <= 0 {
		return 0
	}
	return 100 * float64(p.Worst) / float64(p.Bound)
}

// Verdict is for people.
func (p Row) Verdict() string {
	if p.Broken > 0 {
		return "BROKEN"
	}
	return "ok"
}

func (c Check) Verdict() string {
	if !c.OK {
		return "BROKEN"
	}
	return "ok"
}

// WriteTo writes the report as a table.
func (r *Report) WriteTo(w io.Writer) (int64, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "%d homes, %d gateways, %d relays, %d days, seed %d: %.1f GB, %d vouchers, %d transactions, %d accounts, %d reboots, %d strangers.\n",
		r.Homes, r.Gateways, r.Relays, r.Days, r.Seed, float64(r.Bytes)/1e9, r.Vouchers, r.Transactions, r.Accounts, r.Reboots, r.Strangers)
	b.WriteString("Amounts are millicredits.\n\n")
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "player\tas\tnodes\taccounts\tcarried for\tpaid\tfree tier\thonest lost\tworst account\tits bound\t%\t\t")
	for _, p := range r.Players {
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%.0f\t%s\t\n", p.Player, p.Role, p.Nodes, p.Accounts, money(p.Value), money(p.Paid), money(p.FreeTier), money(p.Lost),
			money(p.Worst), money(p.Bound), p.Percent(), p.Verdict())
	}
	if err := t.Flush(); err != nil {
		return 0, err
	}
	fmt.Fprintf(&b, "\nHonest homes used it for %d s. They had less than they wanted for\n", r.HonestSeconds)
	for _, l := range r.Slow {
		fmt.Fprintf(&b, "%7d s: %s\n", l.Seconds, l.Why)
	}
	b.WriteByte('\n')
	for _, c := range r.Checks {
		fmt.Fprintf(&b, "%-7s %s: %s\n", c.Verdict(), c.Name, c.Text)
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}

// bar is a row of the chart.
type bar struct {
	Row
	Y, Text int
	Width   float64
	Colour  string
}

// line is a series of the second chart.
type line struct {
	Name, Points, Colour string
	Y                    int
}

// WriteHTML writes the report as one page that needs nothing else.
func (r *Report) WriteHTML(w io.Writer) error {
	type page struct {
		*Report
		Err             error
		Bars            []bar
		Height, Limit   int
		Lines           []line
		Top, GB, Unpaid string
	}
	p := page{Report: r, Err: r.Err(), Limit: 300 + 400}
	for i, row := range r.Players {
		b := bar{Row: row, Y: 20 + 22*i, Text: 33 + 22*i, Width: min(row.Percent(), 115) * 4, Colour: "#2a7f62"}
		if row.Broken > 0 {
			b.Colour = "#c0392b"
		}
		p.Bars = append(p.Bars, b)
	}
	p.Height = 30 + 22*len(r.Players)
	top := int64(1)
	for _, d := range r.Series {
		top = max(top, abs(d.Gateways), abs(d.Homes))
	}
	p.Top, p.GB = money(top), fmt.Sprintf("%.1f", float64(r.Bytes)/1e9)
	add := func(name, colour string, f func(Day) float64) {
		var s strings.Builder
		for i, d := range r.Series {
			fmt.Fprintf(&s, "%.1f,%.1f ", 60+820*float64(i)/float64(max(len(r.Series)-1, 1)), 120-100*f(d))
		}
		p.Lines = append(p.Lines, line{name, strings.TrimSpace(s.String()), colour, 30 + 18*len(p.Lines)})
	}
	add("gateways", "#2a7f62", func(d Day) float64 { return float64(d.Gateways) / float64(top) })
	add("homes, as users and relays", "#b9770e", func(d Day) float64 { return float64(d.Homes) / float64(top) })
	add("carried (of all)", "#5d6d7e", func(d Day) float64 { return float64(d.Bytes) / float64(max(r.Bytes, 1)) })
	if err := pageTemplate.Execute(w, p); err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	return nil
}

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{"money": money}).Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><title>Weft: who lost what</title>
<style>body{font:15px/1.4 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}table{border-collapse:collapse;font-size:13px}
th,td{padding:.25em .6em;text-align:right;border-bottom:1px solid #ddd}td:first-child,th:first-child,.left{text-align:left}.bad{color:#c0392b;font-weight:bold}
svg{max-width:100%;height:auto}text{font-size:12px;fill:#222}</style></head><body>
<h1>Who lost what</h1>
<p>{{.Homes}} homes, {{.Gateways}} gateways and {{.Relays}} relays for {{.Days}} days in virtual time (seed {{.Seed}}, a step is {{.Step}}): {{.GB}} GB, {{.Vouchers}} vouchers,
{{.Transactions}} transactions, {{.Reboots}} losses of power, {{.Strangers}} strangers. Users −{{money .X}}, gateways {{money .Y}}, relays {{money .Z}}. Amounts are millicredits.</p>
{{if .Err}}<p class="bad">Broken: {{.Err}}</p>{{else}}<p>No bound is broken.</p>{{end}}
<h2>The worst account of each player, of its bound</h2>
<svg viewBox="0 0 900 {{.Height}}" role="img" aria-label="Loss of the worst account as part of its bound">
{{range .Bars}}<text x="290" y="{{.Text}}" text-anchor="end">{{.Player}} as {{.Role}}</text><rect x="300" y="{{.Y}}" width="{{printf "%.1f" .Width}}" height="16" fill="{{.Colour}}"><title>{{.What}}</title></rect>
<text x="{{$.Limit}}" y="{{.Text}}" dx="70">{{money .Worst}} of {{money .Bound}}</text>
{{end}}<line x1="{{.Limit}}" y1="10" x2="{{.Limit}}" y2="{{.Height}}" stroke="#c0392b" stroke-dasharray="4 3"/><text x="{{.Limit}}" y="10" text-anchor="middle">bound</text></svg>
<table><tr><th>player</th><th>as</th><th>nodes</th><th>accounts</th><th>carried for</th><th>paid</th><th>free tier</th><th>honest lost</th><th>worst account</th><th>its bound</th><th class="left">the bound is</th><th class="left">what it does</th></tr>
{{range .Players}}<tr><td>{{.Player}}</td><td>{{.Role}}</td><td>{{.Nodes}}</td><td>{{.Accounts}}</td><td>{{money .Value}}</td><td>{{money .Paid}}</td><td>{{money .FreeTier}}</td><td>{{money .Lost}}</td><td>{{money .Worst}}</td><td>{{money .Bound}}</td><td class="left">{{.Rule}}</td><td class="left">{{.What}}</td></tr>
{{end}}</table>
<h2>Money on the ledger, day by day</h2>
<svg viewBox="0 0 900 240" role="img" aria-label="What gateways and homes hold on the ledger since the beginning"><line x1="60" y1="120" x2="880" y2="120" stroke="#999"/>
<text x="55" y="24" text-anchor="end">{{.Top}}</text><text x="55" y="124" text-anchor="end">0</text><text x="55" y="224" text-anchor="end">−{{.Top}}</text>
{{range .Lines}}<polyline points="{{.Points}}" fill="none" stroke="{{.Colour}}" stroke-width="2"/><text x="70" y="{{.Y}}" style="fill:{{.Colour}}">{{.Name}}</text>
{{end}}</svg>
<h2>Who was held back</h2>
<p>Honest homes used their lines for {{.HonestSeconds}} s. They had less than they wanted for</p>
<table>{{range .Slow}}<tr><td>{{.Seconds}} s</td><td class="left">{{.Why}}</td></tr>
{{end}}</table>
<h2>What holds for all</h2>
<table>{{range .Checks}}<tr><td{{if not .OK}} class="bad"{{end}}>{{.Verdict}}</td><td class="left">{{.Name}}</td><td class="left">{{.Text}}</td></tr>
{{end}}</table></body></html>
`))
