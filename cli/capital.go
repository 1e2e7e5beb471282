package cli

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"weft/ledger"
	"weft/ledger/tx"
)

// What members do with their money and their part in the community, and treasurers with entries that wait.

type coopCancelCmd struct {
	Entry  uint64 `arg:"" help:"Its number; see: weft coop entries."`
	Reason string `arg:"" optional:"" help:"Why."`
}

func (c *coopCancelCmd) Run(e *env) error {
	return e.did(&tx.Cancel{Entry: c.Entry, Reason: c.Reason}, "Entry %d is cancelled.", c.Entry)
}

type coopReverseCmd struct {
	Entry  uint64 `arg:"" help:"Its number; see: weft coop entries."`
	Reason string `arg:"" help:"Why."`
}

func (c *coopReverseCmd) Run(e *env) error {
	return e.entry(&tx.Reverse{Entry: c.Entry, Reason: c.Reason}, "entry %d is reversed; both stay in the books", c.Entry)
}

type coopShareBillCmd struct {
	Line   string   `arg:"" help:"A line of the tariff that was made with --shared; see: weft coop lines."`
	Amount string   `arg:"" help:"Of the bill, such as 60.00."`
	Parts  []string `arg:"" placeholder:"MEMBER=USE" help:"Who shares it, and how much each has used, such as Ann=120: gigabytes, or whatever you measure by."`
	Equal  string   `default:"0" help:"Credits that each pays whatever they used; the rest is divided by use."`
	Last   bool     `help:"For the fiscal period before, whose books are still open."`
	Memo   string   `help:"What for."`
}

func (c *coopShareBillCmd) Run(e *env) error {
	body := &tx.ShareBill{Last: c.Last, Memo: c.Memo}
	for _, x := range []struct {
		to   *int64
		text string
	}{{&body.Bill, c.Amount}, {&body.Equal, c.Equal}} {
		n, err := parseCredits(x.text)
		if err != nil {
			return usageError{err}
		}
		*x.to = n
	}
	if err := e.books(func(m *ledger.Machine, _ time.Time) error {
		l, ok := findLine(m, c.Line)
		if !ok {
			return fmt.Errorf("there is no line %q; see: weft coop lines", c.Line)
		}
		body.Line = l.SetLine.Line
		for _, p := range c.Parts {
			name, text, ok := strings.Cut(p, "=")
			use, err := strconv.ParseUint(text, 10, 48)
			if !ok || err != nil {
				return usageError{fmt.Errorf("%s: written like Ann=120, a whole number", p)}
			}
			mb, err := findMember(m, name)
			if err != nil {
				return err
			}
			body.Parts = append(body.Parts, tx.Part{Member: mb.ID, Usage: use * 1e9})
		}
		return nil
	}); err != nil {
		return err
	}
	return e.entry(body, "a bill of %s credits is divided among %s", credits(body.Bill), count(len(body.Parts), "member"))
}

type coopGiveCmd struct {
	Fund   string `arg:"" help:"Such as solidarity."`
	Amount string `arg:"" help:"Credits, such as 5.00."`
	Memo   string `arg:"" optional:"" help:"What for."`
}

func (c *coopGiveCmd) Run(e *env) error {
	amount, err := parseCredits(c.Amount)
	if err != nil {
		return usageError{err}
	}
	body := &tx.Contribute{Amount: amount, Memo: c.Memo}
	if err := e.books(func(m *ledger.Machine, _ time.Time) (err error) {
		body.Fund, err = findFund(m, c.Fund)
		return err
	}); err != nil {
		return err
	}
	return e.did(body, "%s credits are in the fund %s: a gift, which counts for no refund.", credits(amount), clean(c.Fund))
}

type coopSharesCmd struct {
	Show   sharesShowCmd   `cmd:"" default:"1" help:"Show what a share costs and who holds how many."`
	Buy    sharesBuyCmd    `cmd:"" help:"Buy shares with money that you own."`
	Redeem sharesRedeemCmd `cmd:"" help:"Give shares back for what was paid for them."`
}

type sharesShowCmd struct{}

func (c *sharesShowCmd) Run(e *env) error {
	return e.books(func(m *ledger.Machine, _ time.Time) error {
		type holding struct {
			Member uint64 `json:"member"`
			Name   string `json:"name"`
			Shares uint32 `json:"shares"`
			Paid   int64  `json:"paid_ncredit"`
		}
		l := []holding{}
		m.Members(func(mb ledger.Member) bool {
			if h := m.Shares(mb.ID); h.Count > 0 {
				l = append(l, holding{mb.ID, mb.Name, h.Count, h.Paid})
			}
			return true
		})
		p := m.Params()
		if e.json {
			return e.printJSON(map[string]any{"price_ncredit": p.Share, "least": p.SharesLeast, "most": p.SharesMost, "holdings": l})
		}
		if p.Share == 0 {
			e.say("This community sells no shares (weft coop bylaws member.share).")
		} else {
			e.say("A share costs %s credits; a holder has %d to %d.", credits(p.Share), p.SharesLeast, p.SharesMost)
		}
		if len(l) > 0 {
			t := columns(">MEMBER", "NAME", ">SHARES", ">PAID")
			for _, h := range l {
				t.row(h.Member, h.Name, h.Shares, credits(h.Paid))
			}
			t.print(e.out)
		}
		return nil
	})
}

type sharesBuyCmd struct {
	Count uint32 `arg:"" help:"How many."`
}

func (c *sharesBuyCmd) Run(e *env) error {
	return e.did(&tx.BuyShares{Count: c.Count}, "You have bought %s.", count(int(c.Count), "share"))
}

type sharesRedeemCmd struct {
	Count uint32 `arg:"" help:"How many."`
}

func (c *sharesRedeemCmd) Run(e *env) error {
	return e.did(&tx.RedeemShares{Count: c.Count}, "%s are given back, and the money is in your account.", count(int(c.Count), "share"))
}

type coopCapitalCmd struct {
	Member string `arg:"" optional:"" help:"Of this member only: number, name or key."`
}

func (c *coopCapitalCmd) Run(e *env) error {
	return e.books(func(m *ledger.Machine, _ time.Time) error {
		type year struct {
			Member uint64 `json:"member"`
			Name   string `json:"name"`
			Year   uint64 `json:"year"`
			Amount int64  `json:"amount_ncredit"`
		}
		l := []year{}
		add := func(mb ledger.Member) bool {
			for _, v := range m.Capital(mb.ID) {
				l = append(l, year{mb.ID, mb.Name, v.Year, v.Amount})
			}
			return true
		}
		if c.Member != "" {
			mb, err := findMember(m, c.Member)
			if err != nil {
				return err
			}
			add(mb)
		} else {
			m.Members(add)
		}
		if e.json {
			return e.printJSON(l)
		}
		if len(l) == 0 {
			e.say("There is no capital: a part of each year's surplus becomes members' capital (weft coop bylaws surplus).")
			return nil
		}
		t := columns(">MEMBER", "NAME", ">YEAR", ">CREDITS")
		for _, y := range l {
			t.row(y.Member, y.Name, y.Year, credits(y.Amount))
		}
		t.print(e.out)
		e.say("To pay some of it back: weft coop propose --retire AMOUNT\n%s", ledger.NotLegalAdvice)
		return nil
	})
}

type coopClaimCmd struct{}

func (c *coopClaimCmd) Run(e *env) error {
	return e.did(&tx.Claim{}, "What waited for you is in your account. To have it paid: weft coop payout")
}

// coopTabCmd moves tabs by hand. A node that pays or earns does it by itself; this is for who has lost that node.
type coopTabCmd struct {
	List  tabListCmd  `cmd:"" default:"1" help:"Show your tabs."`
	Open  tabOpenCmd  `cmd:"" help:"Set money aside for a member whose gateway you use."`
	Add   tabAddCmd   `cmd:"" help:"Set more aside."`
	Renew tabRenewCmd `cmd:"" help:"Let a tab live longer."`
	Claim tabClaimCmd `cmd:"" help:"Present vouchers; the money goes to who has earned it."`
	Close tabCloseCmd `cmd:"" help:"End a tab: at once if you earn by it; otherwise the other side has time to claim first."`
}

// ownTabs are the tabs of this node's owner.
func (e *env) ownTabs(read func(m *ledger.Machine, now time.Time, pays, earns []tx.Tab) error) error {
	s, err := e.node().Coop(e.ctx)
	if err != nil {
		return err
	}
	if s.Member == 0 {
		return noMember(s)
	}
	return e.books(func(m *ledger.Machine, now time.Time) error {
		pays, earns := m.Tabs(s.Member)
		return read(m, now, pays, earns)
	})
}

type tabListCmd struct{}

func (c *tabListCmd) Run(e *env) error {
	return e.ownTabs(func(m *ledger.Machine, _ time.Time, pays, earns []tx.Tab) error {
		type tab struct {
			ID      string `json:"id"`
			Payer   uint64 `json:"payer"`
			Payee   uint64 `json:"payee"`
			Earmark int64  `json:"set_aside_ncredit"`
			Claimed int64  `json:"claimed_ncredit"`
			Expiry  int64  `json:"expiry"`
			Until   int64  `json:"until,omitempty"` // closing: vouchers are taken until then
		}
		l := []tab{}
		for _, x := range append(pays, earns...) {
			l = append(l, tab{hex.EncodeToString(x.ID[:]), x.PayerID, x.PayeeID, x.Earmark, x.Claimed, x.Expiry, x.Until})
		}
		if e.json {
			return e.printJSON(l)
		}
		if len(l) == 0 {
			e.say("You have no tab.")
			return nil
		}
		t := columns("TAB", ">PAYER", ">PAYEE", ">SET ASIDE", ">CLAIMED", "UNTIL")
		for _, x := range l {
			until := day(x.Expiry)
			if x.Until != 0 {
				until = "closing, " + day(x.Until)
			}
			t.row(x.ID, x.Payer, x.Payee, credits(x.Earmark), credits(x.Claimed), until)
		}
		t.print(e.out)
		return nil
	})
}

// tab finds a tab of the owner's by the beginning of its id.
func (e *env) tab(id string) (tab tx.Tab, now time.Time, err error) {
	err = e.ownTabs(func(_ *ledger.Machine, t time.Time, pays, earns []tx.Tab) error {
		now = t
		n := 0
		for _, x := range append(pays, earns...) {
			if strings.HasPrefix(hex.EncodeToString(x.ID[:]), strings.ToLower(id)) && id != "" {
				tab = x
				n++
			}
		}
		switch n {
		case 0:
			return fmt.Errorf("you have no tab %q; see: weft coop tab", id)
		case 1:
			return nil
		}
		return fmt.Errorf("%d tabs begin with %q: write more of it", n, id)
	})
	return tab, now, err
}

type tabOpenCmd struct {
	Member string `arg:"" help:"Whom to pay: number, name or key."`
	Amount string `arg:"" help:"Credits to set aside, such as 5.00."`
	Days   int    `default:"29" help:"For so long; tab.life is the most."`
}

func (c *tabOpenCmd) Run(e *env) error {
	amount, err := parseCredits(c.Amount)
	if err != nil {
		return usageError{err}
	}
	if c.Days < 1 || c.Days > 366 {
		return usageError{fmt.Errorf("--days: 1 to 366, and no more than the bylaws allow (weft coop bylaws tab.life)")}
	}
	body := &tx.TabOpen{Earmark: amount}
	if err := e.ownTabs(func(m *ledger.Machine, now time.Time, pays, _ []tx.Tab) error {
		mb, err := findMember(m, c.Member)
		body.Payee, body.Expiry = mb.Key, now.Unix()+int64(c.Days)*86400
		for _, x := range pays {
			if x.PayeeID == mb.ID {
				body.Number = max(body.Number, x.Number+1)
			}
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
	var o tx.Opened
	if err := tx.Decode(r.Data, &o); err != nil {
		return fmt.Errorf("what the ledger says of the tab: %w", err)
	}
	e.say("Tab %x is open: %s credits for %s until %s.", o.Tab[:], credits(amount), clean(c.Member), day(body.Expiry))
	return nil
}

type tabAddCmd struct {
	Tab    string `arg:"" help:"Its id, or how that begins."`
	Amount string `arg:"" help:"Credits more, such as 5.00."`
}

func (c *tabAddCmd) Run(e *env) error {
	amount, err := parseCredits(c.Amount)
	if err != nil {
		return usageError{err}
	}
	t, _, err := e.tab(c.Tab)
	if err != nil {
		return err
	}
	return e.did(&tx.TabTopUp{Tab: t.ID, Epoch: t.Epoch, Amount: amount}, "%s credits more are set aside.", credits(amount))
}

type tabRenewCmd struct {
	Tab  string `arg:"" help:"Its id, or how that begins."`
	Days int    `default:"29" help:"From now on; tab.life is the most."`
}

func (c *tabRenewCmd) Run(e *env) error {
	t, now, err := e.tab(c.Tab)
	if err != nil {
		return err
	}
	until := now.Unix() + int64(c.Days)*86400
	return e.did(&tx.TabRenew{Tab: t.ID, Epoch: t.Epoch, Expiry: until}, "The tab lives until %s.", day(until))
}

type tabClaimCmd struct {
	Vouchers []string `arg:"" help:"Each 320 hex digits, at most 24."`
}

func (c *tabClaimCmd) Run(e *env) error {
	body := &tx.TabClaim{}
	for _, text := range c.Vouchers {
		b, err := hex.DecodeString(text)
		if err != nil || len(b) != tx.VoucherLen {
			return usageError{fmt.Errorf("a voucher is %d hex digits", 2*tx.VoucherLen)}
		}
		body.Vouchers = append(body.Vouchers, [tx.VoucherLen]byte(b))
	}
	r, err := e.send(body)
	if err != nil {
		return err
	}
	if e.json {
		return e.printResult(r)
	}
	l, err := tx.ParseClaimed(r.Data)
	if err != nil {
		return fmt.Errorf("what the ledger says of the vouchers: %w", err)
	}
	for i, x := range l {
		if x.Code != 0 {
			e.say("Voucher %d is not paid: %s", i+1, claimRefusal(x.Code))
		} else {
			e.say("Voucher %d: %s credits.", i+1, credits(x.Paid))
		}
	}
	return nil
}

// claimRefusal is why a voucher was not paid.
func claimRefusal(code uint32) string {
	switch ledger.Code(code) {
	case ledger.CodeMalform:
		return "these bytes are no voucher"
	case ledger.CodeChain:
		return "it is another community's"
	case ledger.CodeSig:
		return "it is not signed by the tab's signer"
	case ledger.CodeUnknown:
		return "there is no such tab; it may be settled already"
	case ledger.CodeState:
		return "as much or more was paid already, or it is of an earlier tab"
	case ledger.CodeFunds:
		return "the tab is used up: ask the payer to set more aside, then claim again"
	}
	return fmt.Sprintf("code %d", code)
}

type tabCloseCmd struct {
	Tab string `arg:"" help:"Its id, or how that begins."`
}

func (c *tabCloseCmd) Run(e *env) error {
	t, _, err := e.tab(c.Tab)
	if err != nil {
		return err
	}
	return e.did(&tx.TabClose{Tab: t.ID, Epoch: t.Epoch}, "The tab is closed; what is left comes back when the other side has had time to claim (tab.window), at once if you earn by it.")
}
