package cli

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"weft/api"
	"weft/ident"
	"weft/ledger"
	"weft/ledger/bft/bftclient"
	"weft/ledger/tx"
)

// The books' commands.

// replay reads the chain from its first block on. Evidence names validators by address; keys are those that the state knows.
func (e *env) replay(cl *bftclient.Client, each func(h ledger.Header, txs [][]byte) error) (ledger.Genesis, int64, error) {
	var g ledger.Genesis
	b, err := cl.Genesis(e.ctx)
	if err != nil {
		return g, 0, plainLedger(err)
	}
	if err := tx.Decode(b, &g); err != nil {
		return g, 0, fmt.Errorf("the genesis: %w", err)
	}
	s, err := cl.Status(e.ctx)
	if err != nil {
		return g, 0, err
	}
	st, err := cl.State(e.ctx, s.Height)
	if err != nil {
		return g, 0, err
	}
	m, err := ledger.New(st)
	if err != nil {
		return g, 0, err
	}
	keys := map[string]ident.PublicKey{}
	for _, v := range m.Validators() {
		h := sha256.Sum256(v.Key[:])
		keys[string(h[:20])] = v.Key
	}
	if err := st.Err(); err != nil {
		return g, 0, err
	}
	at := int64(1)
	for at <= s.Height {
		l, err := cl.Blocks(e.ctx, at, s.Height)
		if err != nil {
			return g, 0, err
		}
		if l.From > at {
			return g, 0, beginsLate{l.From, s.Height}
		}
		if len(l.List) == 0 {
			return g, 0, fmt.Errorf("block %d is not to be had", at)
		}
		for _, b := range l.List {
			h := ledger.Header{Height: b.Height, Time: b.Time, Proposer: keys[string(b.Proposer)]}
			for _, bad := range b.Evidence {
				h.Evidence = append(h.Evidence, ledger.Misbehaviour{Validator: keys[string(bad.Validator)], Height: bad.Height})
			}
			if err := each(h, b.Txs); err != nil {
				return g, 0, err
			}
			at = b.Height + 1
		}
		if isTerminal(e.err) {
			fmt.Fprintf(e.err, "\rblock %d of %d", at-1, s.Height)
		}
	}
	if isTerminal(e.err) {
		fmt.Fprint(e.err, "\r\x1b[K")
	}
	return g, s.Height, nil
}

type coopAuditCmd struct{}

func (c *coopAuditCmd) Run(e *env) error {
	cl := e.ledger()
	defer cl.Close()
	type block struct {
		h   ledger.Header
		txs [][]byte
	}
	var blocks []block
	g, height, err := e.replay(cl, func(h ledger.Header, txs [][]byte) error {
		blocks = append(blocks, block{h, txs})
		return nil
	})
	if late, ok := errors.AsType[beginsLate](err); ok {
		return e.auditState(cl, late)
	}
	if err != nil {
		return err
	}
	live, err := cl.State(e.ctx, height)
	if err != nil {
		return err
	}
	i := 0
	r, err := ledger.Audit(g, func() (ledger.Header, [][]byte, bool) {
		if i == len(blocks) {
			return ledger.Header{}, nil, false
		}
		i++
		return blocks[i-1].h, blocks[i-1].txs, true
	}, live)
	if err == nil {
		err = live.Err()
	}
	if err != nil {
		return err
	}
	if e.json {
		type balance struct {
			Account string `json:"account"`
			Amount  int64  `json:"amount_ncredit"`
		}
		balances := []balance{}
		for _, b := range r.Balances {
			balances = append(balances, balance{b.Account, b.Amount})
		}
		if err := e.printJSON(map[string]any{"height": r.Height, "blocks": r.Blocks, "transactions": r.Txs, "entries": r.Entries, "periods": r.Periods,
			"balances": balances, "differences": append([]string{}, r.Differences...), "ok": r.OK()}); err != nil {
			return err
		}
	} else {
		e.say("Replayed %s with %s; every balance computed a second time from %s.", count(r.Blocks, "block"), count(r.Txs, "transaction"), plural(r.Entries, "entry", "entries"))
		for _, d := range r.Differences {
			e.say("DIFFERENT  %s", clean(d))
		}
		if r.OK() {
			e.say("The books are right, to the unit, up to block %d.", r.Height)
		}
	}
	if !r.OK() {
		return errFailed
	}
	return nil
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

type coopExportCmd struct {
	Format string `enum:"csv,beancount" default:"csv" help:"csv or beancount."`
	Output string `short:"o" placeholder:"FILE" help:"Where to; standard output when left out."`
}

func (c *coopExportCmd) Run(e *env) error {
	cl := e.ledger()
	defer cl.Close()
	store := ledger.NewMem()
	m, err := ledger.New(store)
	if err != nil {
		return err
	}
	var postings []ledger.Posting
	began := false
	var begin func() error
	each := func(h ledger.Header, txs [][]byte) error {
		if !began {
			began = true
			if err := begin(); err != nil {
				return err
			}
		}
		postings = append(postings, m.Block(h, txs).Postings...)
		return nil
	}
	begin = func() error {
		b, err := cl.Genesis(e.ctx)
		if err != nil {
			return err
		}
		var g ledger.Genesis
		if err := tx.Decode(b, &g); err != nil {
			return err
		}
		return m.Init(g)
	}
	g, _, err := e.replay(cl, each)
	if err != nil {
		return err
	}
	var b []byte
	if c.Format == "csv" {
		b = ledger.AppendCSV(nil, postings)
	} else {
		b = ledger.AppendBeancount(nil, g.Chain, postings, m.TrialBalance())
	}
	if c.Output == "" || c.Output == "-" {
		_, err = e.out.Write(b)
		return err
	}
	if err := os.WriteFile(c.Output, b, 0o600); err != nil {
		return err
	}
	e.say("%s written to %s.", count(len(postings), "posting"), c.Output)
	return nil
}

// periodJSON is a fiscal period as --json prints it; times in seconds since 1970.
type periodJSON struct {
	ID        uint64 `json:"id"`
	Start     int64  `json:"start"`
	End       int64  `json:"end"`
	State     string `json:"state"`
	Allocated int64  `json:"allocated_ncredit"`
	Cash      int64  `json:"cash_ncredit"` // of it paid
	Interest  int64  `json:"interest_ncredit"`
	Others    int64  `json:"others_ncredit"` // from business with others than members; goes to the reserve
}

func jsonPeriod(p ledger.Period) periodJSON {
	return periodJSON{p.ID, p.Start, p.End, p.State.String(), p.Allocated, p.Cash, p.Interest, p.Others}
}

type coopAllocateCmd struct {
	Period uint64 `arg:"" optional:"" help:"Number of the fiscal period; all periods when left out."`
}

func (c *coopAllocateCmd) Run(e *env) error {
	return e.books(func(m *ledger.Machine, now time.Time) error {
		periods := m.Periods()
		if e.json && c.Period == 0 {
			out := []periodJSON{}
			for _, p := range periods {
				out = append(out, jsonPeriod(p))
			}
			return e.printJSON(out)
		}
		if c.Period == 0 {
			t := columns(">PERIOD", "FROM", "TO", "STATE", ">ALLOCATED", ">OF IT PAID")
			for _, p := range periods {
				t.row(p.ID, day(p.Start), day(p.End), p.State, credits(p.Allocated), credits(p.Cash))
			}
			t.print(e.out)
			e.say("A period's surplus is divided by itself when its books close, as the bylaws say (weft coop bylaws surplus). What each gets: weft coop allocate PERIOD")
			return nil
		}
		p, ok := m.Period(c.Period)
		if !ok {
			return fmt.Errorf("there is no fiscal period %d; see: weft coop allocate", c.Period)
		}
		all := m.Allotments(c.Period)
		if e.json {
			type allotment struct {
				Member   uint64 `json:"member"`
				Share    int64  `json:"share_ncredit"`
				Paid     int64  `json:"paid_ncredit"`
				Capital  int64  `json:"capital_ncredit"`
				Interest int64  `json:"interest_ncredit"`
			}
			out := []allotment{}
			for _, a := range all {
				out = append(out, allotment{a.Member, a.Share, a.Cash, a.Retained, a.Interest})
			}
			return e.printJSON(map[string]any{"period": jsonPeriod(p), "allotments": out})
		}
		if len(all) == 0 {
			e.say("Period %d is %s: nothing is allocated yet.", p.ID, p.State)
			return nil
		}
		t := columns(">MEMBER", "NAME", ">SHARE", ">PAID", ">CAPITAL", ">INTEREST")
		for _, a := range all {
			mb, _ := m.Member(a.Member)
			t.row(a.Member, mb.Name, credits(a.Share), credits(a.Cash), credits(a.Retained), credits(a.Interest))
		}
		t.print(e.out)
		e.say("\n%s", ledger.NotLegalAdvice)
		return nil
	})
}

func day(t int64) string {
	if t == 0 {
		return "-"
	}
	return time.Unix(t, 0).UTC().Format("2006-01-02")
}

type coopDepositCmd struct {
	To        string `arg:"" help:"Whose account: number, name or key; with --fund, a fund."`
	Amount    string `arg:"" help:"Credits, such as 20.00."`
	Reference string `arg:"" help:"Of the receipt, the transfer, the message."`
	By        string `enum:"cash,bank,mobile" default:"cash" help:"cash, bank or mobile."`
	Fund      bool   `help:"Into a fund: a gift, a grant or, with --class, income."`
	Class     uint8  `placeholder:"1-8" help:"With --fund: income from business with others than members, in this margin class."`
	Last      bool   `help:"With --fund: of the fiscal period before, whose books are still open."`
}

func (c *coopDepositCmd) Run(e *env) error {
	amount, err := parseCredits(c.Amount)
	if err != nil {
		return usageError{err}
	}
	way, err := tx.ParseWay(c.By)
	if err != nil {
		return usageError{err}
	}
	if !c.Fund && (c.Class != 0 || c.Last) {
		return usageError{fmt.Errorf("--class and --last go with --fund")}
	}
	body := &tx.Deposit{Amount: amount, Way: way, Class: c.Class, Last: c.Last, Reference: c.Reference}
	if err := e.books(func(m *ledger.Machine, _ time.Time) (err error) {
		if c.Fund {
			body.Fund, err = findFund(m, c.To)
			return err
		}
		mb, err := findMember(m, c.To)
		body.Member = mb.ID
		return err
	}); err != nil {
		return err
	}
	return e.entry(body, "%s credits for %s", credits(amount), clean(c.To))
}

// entry sends an entry of the treasury and says whether it waits for a second person.
func (e *env) entry(body tx.Body, format string, args ...any) error {
	reversal, _ := body.(*tx.Reverse)
	if reversal != nil {
		if err := e.reversedOnce(reversal.Entry); err != nil {
			return err
		}
	}
	r, err := e.send(body)
	if err != nil {
		return err
	}
	if e.json {
		return e.printResult(r)
	}
	what := fmt.Sprintf(format, args...)
	if len(r.Data) == 8 {
		id := binary.BigEndian.Uint64(r.Data)
		waits := false
		if err := e.books(func(m *ledger.Machine, _ time.Time) error {
			for _, x := range m.Entries() {
				_, payout := x.Body.(*tx.Payout) // it waits to be paid, not for a signature
				waits = waits || x.ID == id && x.State == ledger.EntryWaits && !payout
			}
			return nil
		}); err != nil {
			return err
		}
		if waits {
			if reversal != nil {
				what = fmt.Sprintf("which reverses entry %d", reversal.Entry)
			}
			e.say("Entry %d, %s, waits for a second person: weft coop countersign %d", id, what, id)
			return nil
		}
		e.say("Entry %d is booked: %s.", id, what)
		return nil
	}
	e.say("Booked: %s.", what)
	return nil
}

// reversedOnce refuses a second reversal of an entry while the first one waits: it would fail, and late.
func (e *env) reversedOnce(id uint64) error {
	return e.books(func(m *ledger.Machine, _ time.Time) error {
		for _, x := range m.Waiting() {
			if r, ok := x.Body.(*tx.Reverse); ok && r.Entry == id {
				return api.Errorf(api.CodeRefused, "entry %d, which reverses entry %d, waits for a second person already", x.ID, id).
					WithHint("the second person signs it with: weft coop countersign %d; or take it back: weft coop cancel %d", x.ID, x.ID)
			}
		}
		return nil
	})
}

type coopPayoutCmd struct {
	Amount string `arg:"" help:"Credits, such as 20.00."`
	Where  string `arg:"" help:"A bank account, a telephone number, or to whom in cash."`
	By     string `enum:"cash,bank,mobile" default:"cash" help:"cash, bank or mobile."`
}

func (c *coopPayoutCmd) Run(e *env) error {
	amount, err := parseCredits(c.Amount)
	if err != nil {
		return usageError{err}
	}
	way, err := tx.ParseWay(c.By)
	if err != nil {
		return usageError{err}
	}
	e.tell("%s", ledger.NotLegalAdvice)
	return e.entry(&tx.Payout{Amount: amount, Way: way, Where: c.Where}, "%s credits are set aside until a treasurer pays them (weft coop paid)", credits(amount))
}

type coopPaidCmd struct {
	Entry     uint64 `arg:"" help:"Number of the payout."`
	Reference string `arg:"" help:"Of the receipt or the transfer."`
}

func (c *coopPaidCmd) Run(e *env) error {
	return e.entry(&tx.Paid{Payout: c.Entry, Reference: c.Reference}, "payout %d", c.Entry)
}

type coopCountersignCmd struct {
	Entry uint64 `arg:"" help:"Its number; see: weft coop entries."`
}

func (c *coopCountersignCmd) Run(e *env) error {
	what := fmt.Sprintf("entry %d", c.Entry)
	if err := e.books(func(m *ledger.Machine, _ time.Time) error {
		if x, ok := m.Entry(c.Entry); ok {
			what = teller{m}.entry(x)
		}
		return nil
	}); err != nil {
		return err
	}
	return e.did(&tx.Countersign{Entry: c.Entry}, "Entry %d is signed by a second person: %s.", c.Entry, clean(what))
}

// entryJSON is an entry of the treasury as --json prints it; times in seconds since 1970.
type entryJSON struct {
	ID      uint64 `json:"id"`
	State   string `json:"state"`
	Kind    string `json:"kind"`
	Content string `json:"content"` // what is signed, in words
	Amount  int64  `json:"amount_ncredit"`
	By      uint64 `json:"by"`               // member
	Second  uint64 `json:"second,omitempty"` // member who countersigned
	Made    int64  `json:"made"`
	Until   int64  `json:"until"`           // when it lapses, or can no more be reversed
	Other   uint64 `json:"other,omitempty"` // the entry that reverses or pays this one
	Body    any    `json:"body"`            // what is signed, in fields
}

type coopEntriesCmd struct{}

func (c *coopEntriesCmd) Run(e *env) error {
	return e.books(func(m *ledger.Machine, _ time.Time) error {
		l, tell := m.Entries(), teller{m}
		if e.json {
			out := []entryJSON{}
			for _, x := range l {
				out = append(out, entryJSON{x.ID, x.State.String(), tx.Name(x.Body.Kind()), tell.entry(x), x.Amount, x.By, x.Second, x.Made, x.Until, x.Other, plain(x.Body)})
			}
			return e.printJSON(out)
		}
		if len(l) == 0 {
			e.say("There are no entries of the treasury.")
			return nil
		}
		name := func(id uint64) string {
			mb, _ := m.Member(id)
			return fmt.Sprintf("%s (%d)", mb.Name, id)
		}
		t := columns(">NO", "STATE", "BY", "SECOND", "MADE", "WHAT")
		for _, x := range l {
			second := " "
			if x.Second != 0 {
				second = name(x.Second)
			}
			t.row(x.ID, x.State, name(x.By), second, day(x.Made), tell.entry(x))
		}
		t.print(e.out)
		return nil
	})
}
