package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"weft/api"
	"weft/config"
	"weft/ident"
	"weft/ledger"
	"weft/ledger/bft/bftclient"
	"weft/ledger/tx"
)

type walletCmd struct {
	Status walletStatusCmd `cmd:"" default:"1" help:"Show what is left of the month, what was used and earned, and who owes what."`
	Cap    walletCapCmd    `cmd:"" help:"Say what the internet may cost in a month; what is within it is paid without asking."`
	Bill   walletBillCmd   `cmd:"" help:"Show the bill of a month, with the meter readings behind each line."`
	Settle walletSettleCmd `cmd:"" help:"Claim at the ledger now what others have promised; by itself the node does so once a day."`
	Audit  walletAuditCmd  `cmd:"" help:"Check all bills, vouchers and receipts again against this node's own counters."`
	Send   walletSendCmd   `cmd:"" help:"Give money to another member."`
	Log    walletLogCmd    `cmd:"" help:"Show what came and went."`
}

type walletStatusCmd struct{}

func (c *walletStatusCmd) Run(e *env) error {
	w, err := e.node().Wallet(e.ctx)
	if err != nil {
		return err
	}
	return e.printWallet(w)
}

func (e *env) printWallet(w api.Wallet) error {
	if e.json {
		return e.printJSON(w)
	}
	if w.State == "none" {
		e.say("No wallet  %s", w.Why)
		return nil
	}
	e.say("Balance    %s credits; the community lets you owe %s: %s to spend", credits(w.Balance), credits(w.Limit), credits(w.Balance+w.Limit))
	var aside int64
	for _, a := range w.Accounts {
		if a.Role == "payer" {
			aside += a.TabLeft
		}
	}
	if aside > 0 {
		e.say("Set aside  %s credits more, in tabs for those you pay; what is not used comes back when a tab ends", credits(aside))
	}
	if w.Cap > 0 {
		e.say("Month      %s of at most %s credits spent, %s earned", credits(w.Spent), credits(w.Cap), credits(w.Earned))
	} else {
		e.say("Month      %s credits spent, %s earned; no cap is set", credits(w.Spent), credits(w.Earned))
	}
	switch {
	case w.From != "" && w.Price > 0:
		e.say("Internet   from %s at %s: about %s left", clean(w.From), config.FormatPrice(uint64(w.Price)), size(w.Left))
	case w.From != "":
		e.say("Internet   from %s, free so far", clean(w.From))
	}
	if w.Why != "" {
		e.say("           %s", clean(w.Why))
	}
	if w.Problem != "" {
		e.say("Problem    %s", clean(w.Problem))
	}
	if len(w.Days) > 0 {
		e.say("")
		most := uint64(1)
		for _, d := range w.Days {
			most = max(most, d.Used+d.Served)
		}
		t := columns("DAY", ">USED", ">COST", ">CARRIED", ">EARNED", "")
		for _, d := range w.Days {
			bar := strings.Repeat("█", int(20*d.Used/most)) + strings.Repeat("░", int(20*d.Served/most))
			t.row(d.Day, size(d.Used), credits(d.Cost), size(d.Served), credits(d.Earned), bar)
		}
		t.print(e.out)
	}
	if len(w.Accounts) > 0 {
		e.say("")
		t := columns("WITH", "FOR", "STATE", ">PRICE", ">CARRIED", ">PAID", ">OWED", ">LEFT IN TAB")
		for _, a := range w.Accounts {
			what := map[string]string{"payer": "you pay its ", "payee": "it pays your "}[a.Role] + a.Service
			t.row(cmp.Or(a.Name, a.ID), what, stateWord(a), config.FormatPrice(uint64(a.Price)), size(a.Bytes), credits(a.Paid), credits(a.Owed), credits(a.TabLeft))
		}
		t.print(e.out)
	}
	return nil
}

// stateWord says where a payer stands, docs/spec/pay.md section 3.
func stateWord(a api.WalletAccount) string {
	switch {
	case a.Gap:
		return "meters differ"
	case a.Refused > 0:
		return "too dear"
	case a.Dry:
		return "cap reached"
	}
	s, ok := map[string]string{"free": "guest", "trust": "on trust", "open": "good", "due": "due", "grace": "overdue", "throttled": "free tier"}[a.State]
	if !ok {
		return a.State
	}
	return s
}

type walletCapCmd struct {
	Sum  string `arg:"" help:"Credits a month, such as 10.00; 0 pays nothing."`
	Once bool   `help:"Only until the node's next start."`
}

func (c *walletCapCmd) Run(e *env) error {
	sum, err := parseCredits(c.Sum)
	if err != nil {
		return usageError{err}
	}
	w, err := e.node().SetWallet(e.ctx, api.WalletRequest{Cap: sum, Once: c.Once})
	if err != nil {
		return err
	}
	if !e.json {
		if sum == 0 {
			e.say("Nothing is paid by itself. Where the internet costs something you have the free tier.")
		} else {
			e.say("Up to %s credits a month are paid without asking.", credits(sum))
		}
	}
	return e.printWallet(w)
}

type walletSettleCmd struct{}

func (c *walletSettleCmd) Run(e *env) error {
	w, err := e.node().SettleWallet(e.ctx)
	if err != nil {
		return err
	}
	if !e.json && slices.ContainsFunc(w.Accounts, func(a api.WalletAccount) bool { return a.Role == "payee" }) {
		e.say("All that others have promised is claimed.")
	} else if !e.json {
		e.say("Nobody has promised this node anything.")
	}
	return e.printWallet(w)
}

type walletBillCmd struct {
	Month string `help:"Such as 2026-11; this month if not said." placeholder:"YYYY-MM"`
}

func (c *walletBillCmd) Run(e *env) error {
	if _, err := time.Parse("2006-01", c.Month); err != nil && c.Month != "" {
		return usageError{fmt.Errorf("--month %s: written like 2026-11", clean(c.Month))}
	}
	lines, err := e.node().Bill(e.ctx, c.Month)
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(lines)
	}
	if len(lines) == 0 {
		e.say("Nothing was billed in %s.", cmp.Or(c.Month, "this month"))
		return nil
	}
	t := columns("FROM", "UNTIL", "WITH", "FOR", ">PRICE", ">SENT", ">RECEIVED", ">BILLED", ">COST", ">EARNED", "BACKED BY")
	var cost, earned int64
	for _, l := range lines {
		var c, g string
		if l.Role == "payer" {
			c = credits(l.Amount)
			cost += l.Amount
		} else {
			g = credits(l.Amount - l.Forgiven)
			earned += l.Amount - l.Forgiven
		}
		sent, recv := "-", "-"
		if l.First.Series == l.Last.Series && l.Last.Sent >= l.First.Sent && l.Last.Recv >= l.First.Recv {
			sent, recv = size(l.Last.Sent-l.First.Sent), size(l.Last.Recv-l.First.Recv)
		}
		back := "readings"
		if l.Voucher > 0 {
			back = fmt.Sprintf("voucher %d over %s", l.Voucher, credits(l.Signed))
		}
		if l.Receipt > 0 {
			back += fmt.Sprintf(", receipt for voucher %d", l.Receipt)
		}
		t.row(l.From.Local().Format("01-02 15:04"), l.Until.Local().Format("01-02 15:04"), cmp.Or(l.Name, l.ID), l.Service, config.FormatPrice(uint64(l.Price)),
			sent, recv, size(l.Bytes), c, g, back)
	}
	t.print(e.out)
	e.say("\nCost %s, earned %s credits. The exact readings: weft wallet bill --json", credits(cost), credits(earned))
	return nil
}

type walletAuditCmd struct{}

func (c *walletAuditCmd) Run(e *env) error {
	a, err := e.node().AuditWallet(e.ctx)
	if err != nil {
		return err
	}
	if e.json {
		if err := e.printJSON(a); err != nil {
			return err
		}
	} else {
		e.say("Checked %s, %s, %s over %s.", count(a.Lines, "line"), count(a.Vouchers, "voucher"), count(a.Receipts, "receipt"), size(a.Bytes))
		e.say("Promised by vouchers %s, by others to you %s; not yet promised %s and %s.", credits(a.Paid), credits(a.Earned), credits(a.Owing), credits(a.Owned))
		for _, f := range a.Findings {
			e.say("  %s", clean(f))
		}
	}
	if n := len(a.Findings); n > 0 {
		return fmt.Errorf("%s in the books of this node that cannot be: keep the folder with pay.db, and show this to your community", count(n, "thing"))
	}
	if !e.json {
		e.say("All of it agrees with this node's own counters.")
	}
	return nil
}

type walletSendCmd struct {
	To     string `arg:"" help:"Member: number, name or key."`
	Amount string `arg:"" help:"Credits, such as 12.50."`
	Memo   string `arg:"" optional:"" help:"What for."`
}

func (c *walletSendCmd) Run(e *env) error {
	amount, err := parseCredits(c.Amount)
	if err != nil {
		return usageError{err}
	}
	body := &tx.Transfer{Amount: amount, Memo: c.Memo}
	name := c.To
	if err := e.books(func(m *ledger.Machine, _ time.Time) error {
		mb, err := findMember(m, c.To)
		body.To, name = mb.Key, mb.Name
		return err
	}); err != nil {
		return err
	}
	return e.did(body, "%s credits are with %s.", credits(amount), clean(name))
}

type walletLogCmd struct {
	Limit int `default:"50" help:"How many lines, the newest."`
}

func (c *walletLogCmd) Run(e *env) error {
	s, err := e.node().Coop(e.ctx)
	if err != nil {
		return err
	}
	if s.Member == 0 {
		return noMember(s)
	}
	if c.Limit < 1 {
		return usageError{fmt.Errorf("--limit: at least 1")}
	}
	cl := e.ledger()
	defer cl.Close()
	var list []bftclient.Posting // the newest, which come last
	for from := int64(0); ; {
		p, err := cl.Postings(e.ctx, fmt.Sprintf("member:%d", s.Member), from, 1000)
		if err != nil {
			return plainLedger(err)
		}
		list = append(list, p.List...)
		list = list[max(0, len(list)-c.Limit):]
		if from = p.Next; from == 0 {
			break
		}
	}
	withs := e.counterparties(cl, list, s.Member)
	if e.json {
		type line struct {
			Height int64  `json:"height"`
			Time   int64  `json:"time"` // seconds since 1970
			Amount int64  `json:"amount_ncredit"`
			With   string `json:"counterparty,omitempty"`        // who paid it, or was paid
			Member uint64 `json:"counterparty_member,omitempty"` // its number; 0: it is no member
			Memo   string `json:"memo,omitempty"`
		}
		out := []line{}
		for i, x := range list {
			out = append(out, line{x.Height, x.Time, x.Amount, withs[i].Name, withs[i].ID, x.Memo})
		}
		return e.printJSON(out)
	}
	t := columns("WHEN", ">CREDITS", "", "WHAT")
	for i, x := range list {
		way := " "
		if withs[i].Name != "" {
			way = map[bool]string{true: "from ", false: "to "}[x.Amount > 0] + withs[i].Name
		}
		t.row(clock(x.Time), credits(x.Amount), way, x.Memo)
	}
	t.print(e.out)
	return nil
}

// party is who stands on the other side of a posting: a member, or with number 0 something else.
type party struct {
	Name string
	ID   uint64
}

// counterparties finds who paid each posting of a member's, or was paid. A posting names its own account alone, so the transactions
// tell. Of what fell due by itself, and of blocks that are not kept, nothing is said.
func (e *env) counterparties(cl *bftclient.Client, list []bftclient.Posting, self uint64) []party {
	out := make([]party, len(list))
	blocks := map[int64][][]byte{}
	_ = e.books(func(m *ledger.Machine, _ time.Time) error { // without names the log is good still
		for i, x := range list {
			if x.Tx < 0 {
				continue
			}
			txs, ok := blocks[x.Height]
			if !ok {
				if l, err := cl.Blocks(e.ctx, x.Height, x.Height); err == nil && len(l.List) > 0 && l.List[0].Height == x.Height {
					txs = l.List[0].Txs
				}
				blocks[x.Height] = txs
			}
			if x.Tx >= len(txs) {
				continue
			}
			if t, err := tx.Parse(txs[x.Tx]); err == nil {
				out[i] = counterparty(m, t, self)
			}
		}
		return nil
	})
	return out
}

// counterparty is who stands on the other side of a transaction by which a member's account changed.
func counterparty(m *ledger.Machine, t tx.Tx, self uint64) party {
	member := func(k ident.PublicKey) party {
		if mb, _, ok := m.MemberByKey(k); ok && mb.ID != self {
			return party{mb.Name, mb.ID}
		}
		return party{}
	}
	tab := func(id tx.TabID) party {
		if x, ok := m.Tab(id); ok {
			other := x.PayeeID
			if other == self {
				other = x.PayerID
			}
			mb, _ := m.Member(other)
			return party{mb.Name, other}
		}
		return member(t.Sender) // the tab is settled: who sent this is the other side, if it is not oneself
	}
	switch b := t.Body.(type) {
	case *tx.Transfer:
		if p := member(t.Sender); p.ID != 0 {
			return p
		}
		return member(b.To)
	case *tx.TabOpen:
		return member(b.Payee)
	case *tx.TabTopUp:
		return tab(b.Tab)
	case *tx.TabRenew:
		return tab(b.Tab)
	case *tx.TabClose:
		return tab(b.Tab)
	case *tx.TabClaim:
		var all party
		for _, raw := range b.Vouchers {
			v, err := tx.ParseVoucher(raw[:])
			if err != nil {
				return party{}
			}
			p := tab(v.Tab)
			if all.ID != 0 && p != all { // of several, which one this posting is of does not tell
				return party{}
			}
			all = p
		}
		return all
	case *tx.Contribute:
		return party{Name: teller{m}.fund(b.Fund)}
	case *tx.Deposit, *tx.Countersign, *tx.Spend, *tx.Charge, *tx.ShareBill, *tx.Reverse, *tx.Payout, *tx.Cancel, *tx.BuyShares, *tx.RedeemShares, *tx.Claim:
		return party{Name: "the community"}
	}
	return party{}
}
