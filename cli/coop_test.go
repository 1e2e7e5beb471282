package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"weft/api"
	"weft/ident"
	"weft/ledger"
	"weft/ledger/bft/bftclient"
	"weft/ledger/tx"
)

// changes calls f with each field of v that is not zero, and each flag, changed; then it puts the field back.
func changes(v reflect.Value, path string, f func(path string)) {
	for v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	old := reflect.New(v.Type()).Elem()
	old.Set(v)
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			changes(v.Field(i), path+"."+v.Type().Field(i).Name, f)
		}
		return
	case reflect.Slice:
		for i := range v.Len() {
			changes(v.Index(i), path, f)
		}
		return
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.String:
		v.SetString(v.String() + "!")
	case reflect.Int64:
		v.SetInt(2*v.Int() + 1)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(2*v.Uint() + 1)
	case reflect.Array:
		v.Index(3).SetUint(v.Index(3).Uint() ^ 0x5a)
	default:
		panic(v.Kind())
	}
	if !old.IsZero() || v.Kind() == reflect.Bool {
		f(path)
	}
	v.Set(old)
}

// Whatever is voted on or signed stands in the text: another value in any field is another text.
func TestContents(t *testing.T) {
	c := newCommons(t, 2)
	tell := teller{c.m}
	k, until := c.people[1].key(), int64(1_800_000_000)
	rekey := tx.Rekey{Member: 1, New: k}
	actions := []tx.Action{
		&tx.ActBylaws{Settings: []tx.Setting{{Name: "vote.quorum", Value: "110"}, {Name: "vote.kept", Value: "86400"}}},
		&tx.ActTariff{Settings: []tx.Setting{{Name: "tariff.carriage", Value: "6000"}}},
		&tx.ActValidators{Changes: []tx.ValidatorChange{{Key: k, Operator: 1, Node: k}}},
		&tx.ActBlock{Changes: []tx.BlockChange{{Node: k, Until: until}}},
		&tx.ActAdmission{Applicant: k}, &tx.ActStanding{Member: 1, Step: tx.Suspend, Days: 3},
		&tx.ActCredit{Member: 1, Class: 1, Grant: 30e9, Solidarity: until}, &tx.ActElection{Member: 1},
		&tx.ActUpgrade{Height: 9000, Version: 2}, &tx.ActRekey{Rekey: rekey},
	}
	for _, a := range actions {
		was := fmt.Sprint(tell.action(a))
		changes(reflect.ValueOf(a), fmt.Sprintf("%T", a), func(path string) {
			if now := fmt.Sprint(tell.action(a)); now == was {
				t.Errorf("%s does not stand in: %s", path, was)
			}
		})
	}
	for _, x := range []tx.Measure{
		&tx.NewBudget{Fund: 1, Amount: 60e9, Cost: true, Class: 2, Business: tx.WithOthers, Member: 1, Until: until, Purpose: "upstream bill"},
		&tx.NewFund{Called: "masts"}, &tx.MoveFund{From: 1, To: 2, Amount: 5e9, Why: "savings"},
		&tx.SetLine{Line: 100, Called: "Internet", Class: 1, Fund: 1, Fee: 5e9, Blocks: []tx.Block{{Bytes: 10e9, Price: 1e9}, {Bytes: 50e9, Price: 1e8}, {Price: 5e7}}, Cap: 40e9},
		&tx.Retire{Method: tx.Hybrid, Amount: 100e9, Oldest: 600},
	} {
		text := func() string {
			b, err := tx.EncodeMeasure(x)
			if err != nil { // a change out of bounds cannot be proposed at all
				return err.Error()
			}
			return fmt.Sprint(tell.measure(b))
		}
		was := text()
		changes(reflect.ValueOf(x), fmt.Sprintf("%T", x), func(path string) {
			if text() == was {
				t.Errorf("%s does not stand in: %s", path, was)
			}
		})
		b, err := tx.EncodeMeasure(x)
		if err != nil {
			t.Fatal(err)
		}
		out, _ := plain(&tx.ActBudget{Measure: b}).(map[string]any)
		if out["measure"] == "" || len(out) != reflect.TypeOf(x).Elem().NumField()+1 {
			t.Errorf("%T: %v", x, out)
		}
	}
	for _, b := range []tx.Body{
		&tx.Deposit{Member: 1, Amount: 20e9, Way: tx.Bank, Reference: "receipt 7"}, &tx.Deposit{Fund: 1, Amount: 20e9, Class: 2, Reference: "grant"},
		&tx.Payout{Amount: 5e9, Way: tx.Bank, Where: "IBAN"}, &tx.Paid{Payout: 3, Reference: "transfer"},
		&tx.Spend{Budget: 2, Amount: 55e9, Way: tx.Bank, Reference: "bill 7"}, &tx.Spend{Budget: 2, Amount: 55e9, Member: 1, Reference: "bill 7"},
		&tx.Reverse{Entry: 2, Reason: "typed wrong"}, &tx.Charge{Member: 1, Line: 100, Bytes: 12e9, Times: 1, Memo: "November"},
		&tx.ShareBill{Line: 100, Bill: 60e9, Equal: 5e9, Parts: []tx.Part{{Member: 1, Usage: 120e9}, {Member: 2, Usage: 40e9}}, Memo: "November"},
	} {
		x := ledger.Entry{Body: b, By: 1, Amount: 1e9}
		was := tell.entry(x)
		changes(reflect.ValueOf(b), fmt.Sprintf("%T", b), func(path string) {
			if tell.entry(x) == was {
				t.Errorf("%s does not stand in: %s", path, was)
			}
		})
		keys(t, plain(b))
	}
	if text := fmt.Sprint(tell.action(&tx.ActRekey{Rekey: tx.Rekey{Member: 1, New: ident.PublicKey{1}}})); !strings.Contains(text, "Fay, member 1") {
		t.Error(text)
	}
}

// keys fails where a key of JSON is not in snake case.
func keys(t *testing.T, v any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, x := range v {
				if k != strings.ToLower(k) {
					t.Errorf("%q in %s", k, b)
				}
				walk(x)
			}
		case []any:
			for _, x := range v {
				walk(x)
			}
		}
	}
	var all any
	if err := json.Unmarshal(b, &all); err != nil {
		t.Fatal(err)
	}
	walk(all)
}

// says runs a verb and fails unless its output has all of texts.
func (c *commons) says(who int, line string, texts ...string) string {
	c.t.Helper()
	said := c.run(who, line)
	for _, x := range texts {
		if !strings.Contains(said, x) {
			c.t.Errorf("weft %s does not say %q:\n%s", line, x, said)
		}
	}
	return said
}

// What is voted on is shown whole, and what came of it.
func TestProposalsAreShown(t *testing.T) {
	const fay, bea = 0, 1
	c := newCommons(t, 2, "vote.notice=3600", "member.vouch_age=0", "vote.early=no", "member.vouches=1")
	c.run(bea, "coop apply --name Bea", c.run(fay, "coop sponsor", c.people[bea].key().String()))
	c.run(fay, "coop propose --line Internet=5.00 --per-gb 10:0,0.10 --cap 40")
	c.run(fay, `coop propose --budget operating=60 --cost --title "upstream bill"`)
	c.says(fay, "coop proposals", "5.00 credits each time, 0.00 for each GB of the first 10.0 GB, 0.10 for each GB more, never more than 40.00", "the fund operating, margin class 1",
		"up to 60.00 credits of the fund operating, to anybody, with no end, for: upstream bill")
	c.says(fay, "coop proposals 2", "Its vote begins", "By Fay, member 1")
	said := c.says(fay, "coop proposals 2 --json", `"amount_ncredit": 60000000000`, `"measure": "budget"`, `"outcome": "open"`, `"business": "members and others"`)
	var all any
	if err := json.Unmarshal([]byte(said), &all); err != nil {
		t.Fatal(err)
	}
	keys(t, all)
	c.wait(3700)
	c.says(fay, "coop proposals 2", "The vote lasts until")
	c.run(fay, "coop vote 1 yes")
	c.run(bea, "coop vote 1 yes")
	c.run(fay, "coop vote 2 yes")
	c.run(bea, "coop vote 2 no")
	c.run(fay, "coop propose --title greetings")
	c.pass(60)
	c.says(fay, "coop proposals", "passed", "failed: majority", "failed: quorum")
	c.says(fay, "coop proposals 1", "It has passed and took effect")
	c.says(fay, "coop proposals 2", "It has failed; majority: 1 yes and 1 no")
	c.says(fay, "coop proposals 3", "It has failed; quorum: 0 of 2 voted")
	c.says(fay, "coop proposals 2 --json", `"outcome": "failed"`, `"why": "majority`)
}

// Who signs second sees what: for whom, of what, by which reference, and which way the money goes.
func TestEntriesAreShown(t *testing.T) {
	const fay, bea = 0, 1
	c := newCommons(t, 2, "member.vouch_age=0", "member.vouches=1", "treasury.two_person=10000000000")
	c.run(bea, "coop apply --name Bea", c.run(fay, "coop sponsor", c.people[bea].key().String()))
	c.says(fay, `coop deposit Bea 20 "receipt 7"`, "Entry 1, 20.00 credits for Bea, waits for a second person: weft coop countersign 1")
	c.says(bea, "coop entries", "waits", "Fay (1)", `20.00 credits came in by cash into the account of Bea, member 2, reference "receipt 7"`)
	c.says(bea, "coop countersign 1", `Entry 1 is signed by a second person: 20.00 credits came in by cash into the account of Bea, member 2, reference "receipt 7".`)
	c.says(fay, `coop reverse 1 "typed wrong"`, "Entry 2, which reverses entry 1, waits for a second person: weft coop countersign 2")
	c.refused(fay, `coop reverse 1 again`, "entry 2, which reverses entry 1, waits for a second person already\nhint: the second person signs it with: weft coop countersign 2")
	var all any
	if err := json.Unmarshal([]byte(c.says(bea, "coop entries --json", `"reference": "receipt 7"`, `"reason": "typed wrong"`, `"way": "cash"`)), &all); err != nil {
		t.Fatal(err)
	}
	keys(t, all)
	c.says(bea, "coop entries", `entry 1 is reversed, reason "typed wrong": 20.00 credits came in by cash into the account of Bea`)
	c.run(bea, "coop countersign 2")
	c.says(fay, "coop deposit Bea 2 small", "Entry 3 is booked")
	c.says(fay, `coop reverse 3 "typed wrong"`, "Entry 4 is booked: entry 3 is reversed; both stay in the books.")
}

// A vote that has not begun is told by its time, and so is who may not vouch yet.
func TestWhenItBegins(t *testing.T) {
	const fay, bea, cal = 0, 1, 2
	c := newCommons(t, 4, "vote.notice=3600", "member.vouch_age=1728000", "member.vouches=1", "vote.early=yes", "rekey.vouches=2")
	c.run(bea, "coop apply --name Bea", c.run(fay, "coop sponsor", c.people[bea].key().String()))
	begins := clock(c.head.Time + 30 + 3600)
	said := c.says(fay, "coop propose --fund masts", "Proposal 1 stands:", "A fund named masts begins", "Its vote begins "+begins, "when all 2 members support it: weft coop support 1", "Then, to vote: weft coop vote 1 yes")
	if strings.Contains(said, "To vote:") {
		t.Error(said)
	}
	c.refused(bea, "coop vote 1 yes", "the vote on proposal 1 has not begun: it begins "+begins+"\nhint: Its vote begins")
	c.run(bea, "coop support 1")
	c.run(bea, "coop vote 1 yes")

	// Bea is a member since today: the word of 14 days is of no use, one of 30 is, later.
	c.refused(bea, "coop sponsor "+c.people[cal].key().String(), "you may vouch from "+clock(c.member(2).Joined+1728000)+" on (member.vouch_age)")
	c.refused(bea, "coop sponsor "+c.people[cal].key().String(), "hint: another member can sponsor: Fay;")
	_, out, errs := c.weft(bea, "coop", "sponsor", "--days", "30", c.people[cal].key().String())
	if !strings.HasPrefix(out, wordPrefix) || !strings.Contains(errs, "before that an application with this word is refused. Who can sponsor now: Fay.") {
		t.Error(out, errs)
	}
	_, _, errs = c.weft(cal, "coop", "rekey", "Bea")
	if !strings.Contains(errs, "Who may vouch now: Fay.") {
		t.Error(errs)
	}
	_, _, errs = c.weft(cal, "coop", "rekey", "Fay")
	if !strings.Contains(errs, "Who may vouch now: nobody yet; Bea from "+clock(c.member(2).Joined+1728000)) {
		t.Error(errs)
	}
}

// A second Kim, and a word that lost its end on the way.
func TestApply(t *testing.T) {
	const fay, kim, other = 0, 1, 2
	c := newCommons(t, 3, "member.vouch_age=0", "member.vouches=1")
	c.run(kim, "coop apply --name Kim", c.run(fay, "coop sponsor", c.people[kim].key().String()))
	word := c.run(fay, "coop sponsor", c.people[other].key().String())
	c.refused(other, "coop apply --name kim "+word, "member 2 is called kim already\nhint: choose a name")
	c.refused(other, "coop apply --name Kit "+word[:len(word)-3], "the word is cut short or damaged; ask the sponsor for it again")
	c.refused(other, "coop apply --name Kit word", "it begins with weft-word:")
	c.says(other, `coop apply --name "Kim 2" `+word, "Welcome: you are member 3.")
}

// Who cannot leave yet hears where the money is.
func TestLeaveSaysWhy(t *testing.T) {
	const fay, bea = 0, 1
	c := newCommons(t, 2, "member.vouch_age=0", "member.vouches=1", "credit.new=10000000000")
	c.refused(fay, "coop leave", "you are the last active member\nhint: If elm-street-20260101-")
	c.refused(fay, "coop leave", "move the folder "+filepath.Join(c.people[fay].dir, "coop")+" aside")
	c.run(bea, "coop apply --name Bea", c.run(fay, "coop sponsor", c.people[bea].key().String()))
	c.run(bea, "coop tab open Fay 3.00 --days 10")
	pays, _ := c.m.Tabs(2)
	id := pays[0].ID.String()[:8]
	c.refused(bea, "coop leave", "your account is at -3.00 credits: bring it to zero before you leave\nhint: 3.00 credits of yours are set aside in 1 tab,")
	c.refused(bea, "coop leave", "weft coop tab close "+id)
	if _, _, errs := c.weft(bea, "coop", "leave"); strings.Contains(errs, "you owe") || strings.Contains(errs, "by mistake") {
		t.Error(errs)
	}
	c.run(bea, "coop tab close "+id)
	c.refused(bea, "coop leave", "tab "+id+" is closing until")
	c.run(bea, "wallet send Fay 2")
	c.refused(bea, "coop leave", "you owe 2.00 credits")
	c.refused(fay, "coop leave", "2.00 credits are in your account: weft coop payout")
	c.refused(fay, "coop found --name Oak --called Fay", "at one time\nhint: If elm-street-20260101-")
	c.refused(fay, "coop join house1", "at one time\nhint: If elm-street-20260101-")
}

// FoundCoop and JoinCoop refuse as a node does that has a community.
func (p *person) FoundCoop(context.Context, api.CoopFound) (api.Coop, error) {
	return api.Coop{}, api.Errorf(api.CodeBadRequest, "one community at one time")
}

func (p *person) JoinCoop(context.Context, api.CoopJoin) (api.Coop, error) {
	return api.Coop{}, api.Errorf(api.CodeBadRequest, "one community at one time")
}

// A number below zero is no flag, and an error names the help of its command.
func TestBelowZero(t *testing.T) {
	c := newCommons(t, 1)
	for line, why := range map[string]string{
		"wallet cap -3":                      "-3: a sum or number is not below zero; see: weft wallet cap --help",
		"wallet send Kim -1.50 bread":        "-1.50: a sum or number is not below zero; see: weft wallet send --help",
		"coop propose --retire=-5":           "--retire: -5: a sum is not below zero",
		"coop propose --budget operating=-5": "operating=-5: written like",
		"coop vote 1 yes --loud":             "unknown flag --loud; see: weft coop vote --help",
		"coop vote 1":                        `"<choice>"; see: weft coop vote --help`,
		"pear":                               "see: weft --help",
	} {
		c.refused(0, line, why)
	}
}

// chained is what an engine keeps of its blocks.
type chained struct {
	blocks   []bftclient.Block
	postings []bftclient.Posting
}

func (k *chained) keep(h ledger.Header, txs [][]byte, l []ledger.Posting) {
	k.blocks = append(k.blocks, bftclient.Block{Height: h.Height, Time: h.Time, Txs: txs})
	for _, p := range l {
		k.postings = append(k.postings, bftclient.Posting{Height: p.Height, Time: p.Time, Tx: p.Tx, Account: p.Account, Amount: p.Amount, Memo: p.Memo})
	}
}

func (c *commons) serveChain(mux *http.ServeMux, answer func(http.ResponseWriter, any)) {
	mux.HandleFunc("GET /blocks", func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		var out bftclient.Blocks
		for _, b := range c.blocks {
			if h := fmt.Sprint(b.Height); h == r.FormValue("from") && h == r.FormValue("to") {
				out.List = append(out.List, b)
			}
		}
		answer(w, out)
	})
	mux.HandleFunc("GET /postings", func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		var out bftclient.Postings
		for _, p := range c.postings {
			if p.Account == r.FormValue("account") {
				out.List = append(out.List, p)
			}
		}
		answer(w, out)
	})
}

// The log says who paid whom.
func TestLogNamesBothSides(t *testing.T) {
	const fay, bea = 0, 1
	c := newCommons(t, 2, "member.vouch_age=0", "member.vouches=1", "credit.new=10000000000", "treasury.two_person=500000000000")
	c.run(bea, "coop apply --name Bea", c.run(fay, "coop sponsor", c.people[bea].key().String()))
	c.run(fay, "coop deposit Bea 20 receipt")
	c.run(bea, "wallet send Fay 2 bread")
	c.run(bea, "coop tab open Fay 3.00 --days 10")
	c.run(bea, "coop give solidarity 1")
	log := strings.Join(strings.Fields(c.run(bea, "wallet log")), " ")
	for _, want := range []string{"20.00 from the community deposit, receipt", "-2.00 to Fay bread", "-3.00 to Fay", "-1.00 to the fund solidarity"} {
		if !strings.Contains(log, want) {
			t.Errorf("%q is not in:\n%s", want, log)
		}
	}
	log = strings.Join(strings.Fields(c.run(fay, "wallet log")), " ")
	if !strings.Contains(log, "2.00 from Bea bread") {
		t.Error(log)
	}
	if newest := c.run(bea, "wallet log --limit 1"); !strings.Contains(newest, "-1.00") || strings.Contains(newest, "20.00") {
		t.Errorf("the newest line is %s", newest)
	}
	c.says(fay, "wallet log --json", `"counterparty": "Bea"`, `"counterparty_member": 2`, `"memo": "bread"`)
}
