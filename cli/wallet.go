package cli

import (
	"fmt"
	"time"

	"weft/ledger"
	"weft/ledger/tx"
)

type walletCmd struct {
	Status walletStatusCmd `cmd:"" default:"1" help:"Show what there is and what can be spent."`
	Send   walletSendCmd   `cmd:"" help:"Give money to another member."`
	Log    walletLogCmd    `cmd:"" help:"Show what came and went."`
}

type walletStatusCmd struct{}

func (c *walletStatusCmd) Run(e *env) error {
	s, err := e.node().Coop(e.ctx)
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(s)
	}
	if s.Member == 0 {
		return e.printCoop(s)
	}
	e.say("Balance    %s credits", credits(s.Balance))
	e.say("Credit     %s, as the community grants", credits(s.Limit))
	e.say("To spend   %s", credits(s.Balance+s.Limit))
	return e.books(func(m *ledger.Machine, now time.Time) error {
		pays, earns := m.Tabs(s.Member)
		price := m.Params().PriceCap
		if price > 0 && s.Balance+s.Limit > 0 {
			e.say("           about %s at the highest price that a gateway may ask", size(uint64(s.Balance+s.Limit)/uint64(price)<<20))
		}
		if len(pays)+len(earns) > 0 {
			t := columns("TAB", "WITH MEMBER", ">SET ASIDE", ">CLAIMED", "UNTIL")
			for _, x := range pays {
				t.row("to pay", x.PayeeID, credits(x.Earmark), credits(x.Claimed), time.Unix(x.Expiry, 0).Local().Format("2006-01-02"))
			}
			for _, x := range earns {
				t.row("to earn", x.PayerID, credits(x.Earmark), credits(x.Claimed), time.Unix(x.Expiry, 0).Local().Format("2006-01-02"))
			}
			t.print(e.out)
		}
		return nil
	})
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
	Limit int `default:"50" help:"How many lines."`
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
	p, err := cl.Postings(e.ctx, fmt.Sprintf("member:%d", s.Member), 0, c.Limit)
	if err != nil {
		return plainLedger(err)
	}
	if e.json {
		type line struct {
			Height int64  `json:"height"`
			Time   int64  `json:"time"` // seconds since 1970
			Amount int64  `json:"amount_ncredit"`
			Memo   string `json:"memo,omitempty"`
		}
		out := []line{}
		for _, x := range p.List {
			out = append(out, line{x.Height, x.Time, x.Amount, x.Memo})
		}
		return e.printJSON(out)
	}
	t := columns("WHEN", ">CREDITS", "WHAT")
	for _, x := range p.List {
		t.row(time.Unix(x.Time, 0).Local().Format("2006-01-02 15:04"), credits(x.Amount), x.Memo)
	}
	t.print(e.out)
	return nil
}
