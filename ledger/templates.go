package ledger

import "weft/ledger/tx"

// Template is bylaws to begin with. A community takes one at its founding (Genesis.Settings) and changes it by votes.
type Template struct {
	Name    string
	Title   string
	Doc     string // for whom it is, and what it does not do
	Advice  string // NotLegalAdvice
	Sources []string
	Values  []TemplateValue
}

// TemplateValue is a parameter that differs from DefaultParams, or that people should know the reason of.
type TemplateValue struct {
	Name, Value string
	Why         string
}

// Settings returns the values for a genesis.
func (t *Template) Settings() (l []tx.Setting) {
	for _, v := range t.Values {
		l = append(l, tx.Setting{Name: v.Name, Value: v.Value})
	}
	return l
}

// Params returns the bylaws that the template makes.
func (t *Template) Params() (Params, error) {
	p := DefaultParams()
	for _, v := range t.Values {
		if err := p.Set(v.Name, v.Value); err != nil {
			return p, err
		}
	}
	return p, p.Check()
}

// FindTemplate returns a template by its name.
func FindTemplate(name string) (Template, bool) {
	for _, t := range Templates() {
		if t.Name == name {
			return t, true
		}
	}
	return Template{}, false
}

// Templates returns all templates.
func Templates() []Template {
	return []Template{
		{
			Name: "us-coop", Title: "Cooperative on the model of US telephone and electric co-ops", Advice: NotLegalAdvice,
			Doc: "Members buy service at cost: what is left at the end of the year is theirs by what they paid, partly in cash and partly as capital credits that are paid back when the members decide. " +
				"It does not register a corporation, watch the rule of 501(c)(12) that 85 % of income comes from members, or send forms 1099-PATR.",
			Sources: []string{
				"26 CFR 1.1388-1(a)(1): patronage by quantity or value, under an obligation that existed before, from net earnings with patrons",
				"26 USC 1388(c): a qualified notice pays at least 20 % in cash, within 8½ months of the year's end",
				"Maryland electric cooperative act and Kem Electric bylaws: quorum of 5 % to 10 % of the members, or 50",
				"Arkansas electric cooperative act: no retirement while unpaid obligations exceed 10 % of net assets",
			},
			Values: []TemplateValue{
				{"surplus.basis", "paid", "by value of business: what each paid for service"},
				{"surplus.cash", "200", "20 % in cash is the least that makes a patronage dividend a qualified one"},
				{"surplus.cash_least", "5000000000", "less than 5 credits is credited as capital, not paid: a cheque would cost more"},
				{"surplus.reserve", "100", "a tenth to the reserve, before members' shares"},
				{"surplus.solidarity", "0", "nothing, unless members vote it before the year begins"},
				{"surplus.loss", "carry", "a loss is made good by coming surpluses"},
				{"surplus.pooled", "yes", "one kind of service, one surplus"},
				{"year.month", "1", "the calendar year"},
				{"year.grace", "5184000", "60 days for late bills: well inside 8½ months"},
				{"capital.retirement", "fifo", "oldest years first, as most co-ops do"},
				{"capital.debt", "100", "nothing is paid back while debts exceed a tenth of net assets, the rule of Arkansas"},
				{"capital.equity", "300", "30 % equity is what lenders commonly want to see"},
				{"capital.kept", "0", "any capital can be paid back once the other two rules hold"},
				{"capital.unclaimed", "5", "years, then it goes to the solidarity fund; your state's law on unclaimed property may want it elsewhere"},
				{"capital.offset", "yes", "a debt may be set off only when capital is paid back"},
				{"vote.quorum", "100", "10 % of the members …"},
				{"vote.quorum_most", "50", "… and 50 are enough in any case"},
				{"vote.notice", "864000", "10 days: statutes and bylaws have 7 to 30"},
				{"proxy.allowed", "no", "one member one vote, by mail or in person; proxies are rare in these bylaws"},
				{"majority.bylaws", "666", "two thirds of those who vote"},
				{"treasurer.term", "31536000", "a year"},
				{"treasury.two_person", "100000000000", "from 100 credits on a second person signs"},
			},
		},
		{
			Name: "uk-cbs", Title: "Community benefit society", Advice: NotLegalAdvice,
			Doc: "For the benefit of the community, not of its members: shares are withdrawable at par with a modest interest, a surplus stays in the society, and its assets are locked. " +
				"It does not register the society with the FCA, and the lock is a rule of these books, not the statutory one.",
			Sources: []string{
				"Co-operative and Community Benefit Societies Act 2014, and regulations of 2006 on the restriction of use of assets",
				"B4RN share offer: withdrawable, non-transferable shares at par, with a least and a most per holder; share interest is a cost",
				"common UK model rules: 75 % to change the rules, one vote whatever the holding, proxies",
			},
			Values: []TemplateValue{
				{"member.share", "1000000000", "shares of 1 credit at par"},
				{"share.least", "25", "25 credits to join, as in many share offers"},
				{"share.most", "10000", "10 000 credits at most, so that nobody holds the society"},
				{"share.lock", "yes", "no surplus is divided among members: it stays for the community"},
				{"surplus.interest", "30", "3 % a year on shares: what is needed to get and keep the capital, and a cost, no share of profit"},
				{"surplus.reserve", "900", "the surplus stays in the reserve …"},
				{"surplus.solidarity", "100", "… but for a tenth, for those who cannot pay"},
				{"surplus.loss", "reserve", "the reserve bears a loss"},
				{"surplus.cash", "0", "there is no refund to pay"},
				{"year.month", "4", "April, as many accounts in the UK run"},
				{"majority.bylaws", "750", "75 % to change the rules"},
				{"vote.quorum", "100", "10 % of the members …"},
				{"vote.quorum_most", "50", "… and 50 are enough"},
				{"vote.notice", "1209600", "14 clear days"},
				{"proxy.allowed", "yes", "members may send another …"},
				{"proxy.most", "3", "… who speaks for few"},
				{"capital.equity", "0", "there is no capital but shares"},
				{"treasury.two_person", "100000000000", "from 100 credits on a second person signs"},
			},
		},
		{
			Name: "commons", Title: "Commons on the model of guifi.net", Advice: NotLegalAdvice,
			Doc: "The network belongs to all who extend it. Costs of what is shared are divided, the same fee from everybody and the rest by use; there is no profit to speak of, and what is left goes into the network. " +
				"It does not replace the licence (XOLN) that participants sign, or the agreements of operators with each other.",
			Sources: []string{
				"guifi.net compensation system: equal fixed fee and a remainder proportional to use",
				"Computer Networks 168:107067 (2020): that rule is close to the Shapley value",
				"guifi.net Foundation: steps in disputes before any sanction",
			},
			Values: []TemplateValue{
				{"member.admission", "vouch", "who connects is in, if neighbours know them"},
				{"member.vouches", "2", "two neighbours"},
				{"tariff.member_fee", "0", "no fee: bills are shared as they come (a shared line of the tariff)"},
				{"surplus.basis", "bytes", "by use, as costs are divided by use; and nobody gets back more than was paid"},
				{"surplus.cash", "1000", "what was paid too much goes back at once"},
				{"surplus.cash_least", "0", "however little it is"},
				{"surplus.reserve", "500", "half stays for new links"},
				{"surplus.solidarity", "50", "some for who cannot pay"},
				{"surplus.loss", "carry", "a loss is in the next bills"},
				{"surplus.shared", "bytes", "shared costs by use, too"},
				{"surplus.pooled", "no", "each service pays for itself"},
				{"year.months", "3", "compensation every quarter"},
				{"year.grace", "2592000", "30 days for late bills"},
				{"vote.quorum", "50", "those who care decide"},
				{"majority.bylaws", "666", "rules bind operators' investments: two thirds"},
				{"majority.block", "750", "to shut somebody out takes three quarters"},
				{"treasury.two_person", "50000000000", "from 50 credits on a second person signs"},
			},
		},
		{
			Name: "block", Title: "Association of a block or a village, without a legal form", Advice: NotLegalAdvice,
			Doc: "Neighbours who share a line and its cost. As few rules as will do: a small monthly fee, help for who cannot pay, and what is left pays next year's line. " +
				"Without a legal form somebody signs the contract with the provider and is liable for it: name that person in the minutes.",
			Sources: []string{
				"practice of small networks (NYC Mesh: suggested donations, waivers; Zenzeleni and Sarantaporo: villages that fund and own locally)",
				"People's Choice: subsidies end, so they must not cut people off",
			},
			Values: []TemplateValue{
				{"member.forms", "households", "one household, one vote"},
				{"member.vouches", "1", "a neighbour's word is enough"},
				{"tariff.member_fee", "5000000000", "5 credits a month: change it to your line's cost divided by households"},
				{"tariff.solidarity_discount", "500", "who cannot pay pays half; the fund pays the other"},
				{"surplus.reserve", "800", "most stays for repairs and the next line …"},
				{"surplus.solidarity", "200", "… and a fifth for who cannot pay"},
				{"surplus.cash", "0", "nothing is paid out"},
				{"surplus.loss", "reserve", "repairs eat the reserve: that is what it is for"},
				{"vote.notice", "86400", "a day: people meet on the stairs"},
				{"vote.window", "259200", "three days to vote"},
				{"vote.quorum", "250", "a quarter of the households"},
				{"vote.quorum_most", "0", "and no smaller number"},
				{"proxy.allowed", "yes", "a neighbour may vote for one who is away"},
				{"majority.bylaws", "600", "three of five"},
				{"treasury.two_person", "20000000000", "from 20 credits on a second neighbour signs"},
				{"treasurer.terms", "2", "two years in a row, then somebody else: volunteers burn out"},
			},
		},
	}
}
