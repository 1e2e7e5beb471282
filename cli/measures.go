package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"weft/ledger"
	"weft/ledger/tx"
)

// What treasurers do by what was voted.

type coopSpendCmd struct {
	Budget    uint64 `arg:"" help:"Number of its proposal; see: weft coop budgets."`
	Amount    string `arg:"" help:"Credits, such as 20.00."`
	Reference string `arg:"" help:"Of the bill."`
	Member    string `help:"To this member's account; without it the money leaves the community."`
	By        string `enum:"cash,bank,mobile" default:"bank" help:"cash, bank or mobile."`
	Last      bool   `help:"A cost of the fiscal period before, whose books are still open."`
}

func (c *coopSpendCmd) Run(e *env) error {
	amount, err := parseCredits(c.Amount)
	if err != nil {
		return usageError{err}
	}
	way, err := tx.ParseWay(c.By)
	if err != nil {
		return usageError{err}
	}
	body := &tx.Spend{Budget: c.Budget, Amount: amount, Way: way, Last: c.Last, Reference: c.Reference}
	if c.Member != "" {
		if body.Member, err = e.memberID(c.Member); err != nil {
			return err
		}
	}
	fmt.Fprintln(e.err, ledger.NotLegalAdvice)
	return e.entry(body, "%s credits of budget %d", credits(amount), c.Budget)
}

type coopChargeCmd struct {
	Member string  `arg:"" help:"Whom: number, name or key."`
	Line   string  `arg:"" help:"Line of the tariff; see: weft coop lines."`
	Times  uint32  `default:"1" help:"How many times its fee."`
	GB     float64 `name:"gb" help:"How much was used."`
	Last   bool    `help:"For the fiscal period before, whose books are still open."`
	Memo   string  `help:"What for."`
}

func (c *coopChargeCmd) Run(e *env) error {
	if !(c.GB >= 0 && c.GB < 1e9) {
		return usageError{fmt.Errorf("--gb: %v is no amount of data", c.GB)}
	}
	body := &tx.Charge{Times: c.Times, Bytes: uint64(c.GB * 1e9), Last: c.Last, Memo: c.Memo}
	id, err := e.memberID(c.Member)
	if err != nil {
		return err
	}
	body.Member = id
	if err := e.books(func(m *ledger.Machine, _ time.Time) error {
		for _, l := range m.Lines() {
			if strings.EqualFold(l.Called, c.Line) || strconv.FormatUint(l.SetLine.Line, 10) == c.Line {
				body.Line = l.SetLine.Line
			}
		}
		if body.Line == 0 {
			return fmt.Errorf("there is no line %q; see: weft coop lines", c.Line)
		}
		return nil
	}); err != nil {
		return err
	}
	return e.entry(body, "%s is charged by %s", clean(c.Member), clean(c.Line))
}

type coopLinesCmd struct{}

func (c *coopLinesCmd) Run(e *env) error {
	return e.books(func(m *ledger.Machine, _ time.Time) error {
		l := m.Lines()
		if e.json {
			return e.printJSON(append([]ledger.Line{}, l...))
		}
		if len(l) == 0 {
			e.say("The tariff has no lines. To propose one: weft coop propose --line NAME=FEE")
			return nil
		}
		t := columns(">NO", "LINE", ">FEE", ">PER GB", "")
		for _, x := range l {
			price, note := "", " "
			for _, b := range x.Blocks {
				price += credits(b.Price) + " "
			}
			if x.Ended {
				note = "ended"
			}
			t.row(x.SetLine.Line, x.Called, credits(x.Fee), strings.TrimSpace(price), note)
		}
		t.print(e.out)
		return nil
	})
}

type coopBudgetsCmd struct{}

func (c *coopBudgetsCmd) Run(e *env) error {
	return e.books(func(m *ledger.Machine, _ time.Time) error {
		l := m.Budgets()
		if e.json {
			return e.printJSON(append([]ledger.Budget{}, l...))
		}
		if len(l) == 0 {
			e.say("There is no budget. To propose one: weft coop propose --budget FUND=AMOUNT --title PURPOSE")
			return nil
		}
		t := columns(">PROPOSAL", "PURPOSE", ">CREDITS", ">LEFT")
		for _, x := range l {
			t.row(x.ID, x.Purpose, credits(x.Amount), credits(x.Left))
		}
		t.print(e.out)
		return nil
	})
}

// memberID finds a member's number.
func (e *env) memberID(text string) (id uint64, err error) {
	err = e.books(func(m *ledger.Machine, _ time.Time) error {
		mb, err := findMember(m, text)
		id = mb.ID
		return err
	})
	return id, err
}
