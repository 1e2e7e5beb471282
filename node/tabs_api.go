package node

import (
	"cmp"
	"context"
	"slices"
	"time"

	"weft/api"
	"weft/config"
	"weft/pay"
)

// Wallet implements api.Purse.
func (n *Node) Wallet(ctx context.Context) (api.Wallet, error) {
	t := n.tabs
	t.mu.Lock()
	out := api.Wallet{State: "none", Cap: int64(t.wallet.Cap)}
	problem := t.problem
	t.mu.Unlock()
	n.coop.mu.Lock()
	chain := n.coop.file.Chain
	n.coop.mu.Unlock()
	if chain == "" {
		out.Why = "this node has no community, so nothing costs and nothing is earned; to found one: weft coop found --name NAME, to join one: weft coop join NODE"
		return out, nil
	}
	p, r := t.pay.Load(), t.rules.Load()
	out.Member = t.self.Load()
	if p == nil || r == nil {
		out.State, out.Why, out.Problem = "starting", "the bylaws are not known yet; they come from the ledger: weft ledger status", problem
		if problem != "" {
			out.Why = "no tabs are kept, so nothing is paid and nobody pays"
		}
		return out, nil
	}
	out.State, out.FreeKbit, out.Carriage, out.PriceMost, out.Bylaws = "on", r.FreeKbit, r.Carriage, r.PriceMost, r.Version
	now := time.Now()
	v := p.View(now)
	out.Spent, out.Problem = v.Spent, v.StoreError
	using := n.sharing.gateway()
	if !using.IsZero() {
		out.From = n.routing.nameOf(using)
	}
	for _, a := range v.Accounts {
		w := n.walletAccount(a)
		if a.ID.Peer == using && a.ID.Service == pay.Internet && a.Role == pay.Payer {
			out.Price = a.Price
			out.Why = why(a, out.Cap)
		}
		out.Accounts = append(out.Accounts, w)
	}
	limit, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	a, err := (settler{n.coop}).Account(limit)
	t.mu.Lock()
	if err == nil {
		if a != t.account {
			t.news.Store(true)
		}
		t.account = a
	} else {
		a = t.account // as it was last
	}
	t.mu.Unlock()
	out.Balance, out.Limit, out.Available = a.Balance, a.Limit, a.Balance+a.Limit
	if err != nil && out.Why == "" {
		out.Why = "the ledger does not answer now, so the balance is the last that is known; tabs go on without it: " + plain(err).Error()
	}
	for i, a := range v.Accounts { // what is set aside in tabs can be spent too
		if a.Role != pay.Payer || a.Tab.Earmark == 0 {
			continue
		}
		out.Available += a.Left
		if tab, err := (settler{n.coop}).look(limit, a.Tab.ID); err == nil {
			out.Accounts[i].Claimed, out.Accounts[i].Earmark = tab.Claimed, tab.Earmark
		}
	}
	if out.Price > 0 {
		out.Left = min(uint64(max(0, min(out.Cap-out.Spent, out.Available)))/uint64(out.Price), 1<<43-1) << 20
	}
	switch {
	case out.Why != "":
	case !out.Member:
		out.Why = "you are no member yet, and have the guests' free tier: weft coop apply"
	case out.Cap == 0:
		out.Why = "nothing is paid by itself yet, and where it costs you have the free tier; say how much a month may cost: weft wallet cap 10.00"
	}
	lines, err := n.bill(now, "")
	if err != nil {
		return out, err
	}
	out.Days = daysOf(lines)
	for _, d := range out.Days {
		out.Earned += d.Earned
	}
	if today := now.UTC().Format(time.DateOnly); len(out.Days) > 0 && out.Days[len(out.Days)-1].Day == today {
		out.Today = out.Days[len(out.Days)-1]
	} else {
		out.Today.Day = today
	}
	return out, nil
}

// why says in plain words what is amiss with what this node owes its gateway.
func why(a pay.AccountView, limit int64) string {
	switch {
	case a.Refused > 0:
		return "the gateway asks for " + config.FormatPrice(uint64(a.Refused)) + ", more than you want to pay (gateway.max_price): it gives the free tier, or choose another: weft gateway use"
	case a.Dry && limit > 0:
		return "this month's cap of " + config.Credits(limit).String() + " credits is reached: the free tier remains; to raise it: weft wallet cap SUM"
	case a.State == pay.Throttled && a.Gap:
		return "the meters of this node and the gateway differ, so it gives the free tier until they agree; see: weft meter"
	case a.State == pay.Throttled && limit == 0:
		return "nothing is paid by itself, so the free tier remains; say how much a month may cost: weft wallet cap 10.00"
	case a.State == pay.Throttled:
		return "something is owed that is not paid, so the free tier remains; is there money in the account? weft wallet, weft coop"
	}
	return ""
}

func (n *Node) walletAccount(a pay.AccountView) api.WalletAccount {
	w := api.WalletAccount{ID: a.ID.Peer.ID().String(), Name: n.routing.name(a.ID.Peer.ID()), Role: a.Role.String(), Service: a.ID.Service.String(), State: a.State.String(),
		Price: a.Price, Refused: a.Refused, Bytes: a.Bytes, Owed: a.Owed, Paid: a.Paid, TabLeft: a.Left, Gap: a.Gap, Dry: a.Dry}
	if a.Role == pay.Payee {
		w.Exposure = a.Exposure
	}
	if a.Tab.Earmark > 0 {
		w.Tab = a.Tab.ID.String()
	}
	return w
}

// SetWallet implements api.Purse.
func (n *Node) SetWallet(ctx context.Context, r api.WalletRequest) (api.Wallet, error) {
	if r.Cap < 0 {
		return api.Wallet{}, api.Errorf(api.CodeBadRequest, "a cap is not below zero; 0 pays nothing")
	}
	w := config.Wallet{Cap: config.Credits(r.Cap)}
	t := n.tabs
	t.mu.Lock()
	t.wallet = w
	t.mu.Unlock()
	if !r.Once {
		if err := n.remember(func(a *config.Added) { a.Wallet = &w }); err != nil {
			return api.Wallet{}, err
		}
	}
	t.allow()
	return n.Wallet(ctx)
}

// SettleWallet implements api.Purse.
func (n *Node) SettleWallet(ctx context.Context) (api.Wallet, error) {
	if p := n.tabs.pay.Load(); p != nil {
		if err := p.Claim(ctx, time.Now()); err != nil {
			return api.Wallet{}, api.Errorf(api.CodeBadRequest, "not all could be claimed: %v", plain(err)).WithHint("nothing is lost: it is tried again each day, and before a tab ends")
		}
	}
	return n.Wallet(ctx)
}

// bill returns the lines of a month.
func (n *Node) bill(now time.Time, month string) ([]pay.Line, error) {
	p := n.tabs.pay.Load()
	if p == nil {
		return nil, nil
	}
	from := now.UTC()
	if month != "" {
		var err error
		if from, err = time.Parse("2006-01", month); err != nil {
			return nil, api.Errorf(api.CodeBadRequest, "%q is no month; written like %s", month, now.UTC().Format("2006-01"))
		}
	}
	from = time.Date(from.Year(), from.Month(), 1, 0, 0, 0, 0, time.UTC)
	return p.Bill(from, from.AddDate(0, 1, 0).Add(-time.Second)) // lines have whole seconds
}

// Bill implements api.Purse.
func (n *Node) Bill(_ context.Context, month string) ([]api.BillLine, error) {
	lines, err := n.bill(time.Now(), month)
	if err != nil {
		return nil, err
	}
	var out []api.BillLine
	for _, l := range lines {
		b := api.BillLine{Number: l.Number, Role: l.Role.String(), Service: l.ID.Service.String(), ID: l.ID.Peer.ID().String(), Name: n.routing.name(l.ID.Peer.ID()),
			From: l.From, Until: l.Until, Price: l.Price, First: readings(l.First), Last: readings(l.Last), Bytes: l.Bytes, Amount: l.Amount, Forgiven: l.Forgiven,
			Signed: l.Signed, Voucher: l.Voucher.Seq, Receipt: l.Receipt.Seq}
		if l.Voucher.Seq > 0 {
			b.Tab = l.Voucher.Tab.String()
		}
		out = append(out, b)
	}
	return out, nil
}

func readings(m pay.Mark) api.Readings {
	return api.Readings{Sent: m.Sent, Recv: m.Recv, Series: m.Epoch}
}

// daysOf sums up lines by day.
func daysOf(lines []pay.Line) []api.WalletUse {
	days := map[string]*api.WalletUse{}
	for _, l := range lines {
		day := l.From.UTC().Format(time.DateOnly)
		d := days[day]
		if d == nil {
			d = &api.WalletUse{Day: day}
			days[day] = d
		}
		if l.Role == pay.Payer {
			d.Cost += l.Amount
			if l.ID.Service == pay.Internet {
				d.Used += l.Bytes
			}
			continue
		}
		d.Earned += l.Amount - l.Forgiven
		d.Forgive += l.Forgiven
		d.Served += l.Bytes
	}
	var out []api.WalletUse
	for _, d := range days {
		out = append(out, *d)
	}
	slices.SortFunc(out, func(a, b api.WalletUse) int { return cmp.Compare(a.Day, b.Day) })
	return out
}

// AuditWallet implements api.Purse.
func (n *Node) AuditWallet(context.Context) (api.WalletAudit, error) {
	p := n.tabs.pay.Load()
	if p == nil {
		return api.WalletAudit{}, nil
	}
	a, err := p.Audit(time.Now())
	if err != nil {
		return api.WalletAudit{}, err
	}
	out := api.WalletAudit{Lines: a.Lines, Vouchers: a.Vouchers, Receipts: a.Receipts, Bytes: a.Bytes, Unbilled: a.Unbilled, Rewound: a.Rewound, Paid: a.Paid, Earned: a.Earned, Owing: a.Owing, Owned: a.Owned}
	for _, f := range a.Findings {
		text := f.Text
		if !f.Line.ID.Peer.IsZero() {
			text = f.Line.From.UTC().Format(time.DateTime) + ", " + f.Line.ID.Service.String() + " with " + n.routing.nameOf(f.Line.ID.Peer) + ": " + text
		}
		out.Findings = append(out.Findings, text)
	}
	return out, nil
}
