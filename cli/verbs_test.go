package cli

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/api"
	"weft/config"
	"weft/ident"
	"weft/ledger"
	"weft/ledger/bft/bftclient"
	"weft/ledger/tx"
)

// commons is a community in memory: the real state machine, and for each person a node that answers the command line over a socket.
type commons struct {
	t     *testing.T
	chain string

	mu      sync.Mutex // guards what follows
	m       *ledger.Machine
	store   *ledger.Mem
	head    ledger.Header
	people  []*person
	chained                 // blocks and postings, as an engine keeps them
	seen    map[string]bool // kinds, decisions and measures that were executed
}

// person is a key with its node.
type person struct {
	api.Backend // what is not below nobody asks for
	c           *commons
	agent       *ident.Agent
	dir         string
}

func newCommons(t *testing.T, people int, settings ...string) *commons {
	c := &commons{t: t, chain: ledger.ChainID("elm-street", "20260101", ident.PublicKey{}), store: ledger.NewMem(), seen: map[string]bool{}}
	c.head = ledger.Header{Height: 1, Time: time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC).Unix()}
	var err error
	if c.m, err = ledger.New(c.store); err != nil {
		t.Fatal(err)
	}
	c.m.Strict = true
	for range people {
		c.person()
	}
	g := ledger.Genesis{Chain: c.chain, Time: c.head.Time, Founders: []ledger.Founder{{Key: c.people[0].key(), Name: "Fay", Limit: 20e9}}}
	for _, s := range settings {
		name, value, _ := strings.Cut(s, "=")
		g.Settings = append(g.Settings, tx.Setting{Name: name, Value: value})
	}
	g.Validators = []ledger.FirstValidator{{Key: c.people[0].key(), Operator: 1, Node: c.people[0].key()}}
	if err := c.m.Init(g); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *commons) person() *person {
	t := c.t
	t.Helper()
	agent, err := ident.FromSeed(append(make([]byte, 31), byte(len(c.people)+1)))
	if err != nil {
		t.Fatal(err)
	}
	p := &person{c: c, agent: agent, dir: t.TempDir()}
	c.people = append(c.people, p)
	sock, err := api.Listen(config.Default().Socket(p.dir))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = api.Serve(ctx, sock, api.Handler(p, log), log)
	}()
	t.Cleanup(func() { stop(); <-done })
	return p
}

func (p *person) key() ident.PublicKey { return p.agent.Public() }

func (p *person) Status(context.Context) (api.Status, error) { return api.Status{Key: p.key()}, nil }

func (p *person) LSDB(context.Context) (l []api.LSDBEntry, _ error) {
	for i, q := range p.c.people {
		l = append(l, api.LSDBEntry{Key: q.key(), ID: q.key().ID().String(), Address: q.key().Addr(), Name: fmt.Sprint("house", i)})
	}
	return l, nil
}

func (p *person) Coop(context.Context) (api.Coop, error) {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	s := api.Coop{State: "keeping", Chain: p.c.chain, Height: p.c.head.Height, Domain: ledger.Domain(p.c.chain) + ".weft", Members: p.c.m.ActiveMembers()}
	if mb, was, ok := p.c.m.MemberByKey(p.key()); ok && !was {
		s.Member, s.Called, s.Standing = mb.ID, mb.Name, mb.State.String()
	}
	return s, nil
}

func (p *person) Sponsor(_ context.Context, r api.CoopSponsor) (api.CoopWord, error) {
	until := p.c.head.Time + int64(r.Days)*86400
	sig := p.agent.Sign(tx.SponsorDomain, tx.SponsorMessage(tx.ChainOf(p.c.chain), r.Key, until))
	return api.CoopWord{Sponsor: p.key(), Until: until, Word: sig[:]}, nil
}

func (p *person) Agree(_ context.Context, r api.CoopAgree) (api.CoopAgreement, error) {
	chain := tx.ChainOf(p.c.chain)
	var sig ident.Signature
	switch r.To {
	case "rekey":
		p.c.mu.Lock()
		mb, _ := p.c.m.Member(r.Member)
		p.c.mu.Unlock()
		sig = p.agent.Sign(tx.RekeyDomain, tx.RekeyMessage(chain, r.Member, mb.Key, p.key()))
	case "act":
		sig = p.agent.Sign(tx.DelegateDomain, tx.DelegateMessage(chain, r.Member, p.key()))
	case "register":
		sig = p.agent.Sign(tx.NodeDomain, tx.NodeMessage(chain, r.Member, p.key()))
	case "revoke":
		sig = p.agent.Sign(tx.RevokeDomain, tx.RevokeMessage(chain, p.key()))
	}
	return api.CoopAgreement{To: r.To, Member: r.Member, Key: p.key(), Word: sig[:]}, nil
}

// Transact puts a transaction into a block of its own.
func (p *person) Transact(_ context.Context, r api.CoopTx) (api.CoopResult, error) {
	body := tx.New(tx.Kind(r.Kind))
	if body == nil {
		return api.CoopResult{}, fmt.Errorf("kind %d", r.Kind)
	}
	if err := tx.Decode(r.Body, body); err != nil {
		return api.CoopResult{}, err
	}
	c := p.c
	c.mu.Lock()
	defer c.mu.Unlock()
	var a tx.Account
	if b := c.store.Get(tx.StateKeyAccount(p.key())); b != nil {
		if err := tx.Decode(b, &a); err != nil {
			return api.CoopResult{}, err
		}
	}
	raw, err := tx.Tx{Chain: tx.ChainOf(c.chain), Nonce: a.Nonce + 1, Expiry: c.head.Time + 3600, Body: body}.Sign(p.agent)
	if err != nil {
		return api.CoopResult{}, err
	}
	res := c.block(30, raw)
	if res.Code == ledger.OK {
		for _, s := range features(body) {
			c.seen[s] = true
		}
	}
	return api.CoopResult{Code: uint32(res.Code), Text: res.Text, Data: res.Data, Height: c.head.Height}, nil
}

func (c *commons) block(seconds int64, txs ...[]byte) ledger.Result {
	c.head.Height++
	c.head.Time += seconds
	out := c.m.Block(c.head, txs)
	c.keep(c.head, txs, out.Postings)
	if len(out.Results) == 0 {
		return ledger.Result{}
	}
	return out.Results[0]
}

// pass lets time pass: a day a block.
func (c *commons) pass(days int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range days {
		c.block(86400)
	}
}

// LedgerHandler answers what the command line asks of an engine's socket.
func (p *person) LedgerHandler() http.Handler {
	c := p.c
	answer := func(w http.ResponseWriter, v any) {
		if err := json.NewEncoder(w).Encode(v); err != nil {
			c.t.Error(err)
		}
	}
	raw := func(r *http.Request, name string) []byte {
		b, err := hex.DecodeString(r.FormValue(name))
		if err != nil {
			c.t.Error(err)
		}
		return b
	}
	mux := http.NewServeMux()
	c.serveChain(mux, answer)
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		answer(w, bftclient.Status{Chain: c.chain, Height: c.head.Height, Time: c.head.Time})
	})
	mux.HandleFunc("GET /get", func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		answer(w, bftclient.Value{Height: c.head.Height, Value: c.store.Get(raw(r, "key"))})
	})
	mux.HandleFunc("GET /scan", func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		behind, limit := raw(r, "behind"), 3 // small, so that pages are turned
		page := bftclient.Page{Height: c.head.Height}
		c.store.Scan(raw(r, "prefix"), func(k, v []byte) bool {
			if bytes.Compare(k, behind) <= 0 {
				return true
			}
			if page.More = len(page.Entries) == limit; page.More {
				return false
			}
			page.Entries = append(page.Entries, bftclient.Entry{Key: k, Value: v})
			return true
		})
		answer(w, page)
	})
	return mux
}

// features are what a transaction shows that it can do: its kind and, of a proposal, its decision, measure and the like.
func features(body tx.Body) []string {
	l := []string{"kind " + tx.Name(body.Kind())}
	p, ok := body.(*tx.Propose)
	if !ok {
		return l
	}
	l = append(l, "decision "+p.Action.Decision().String())
	var measure []byte
	switch a := p.Action.(type) {
	case *tx.ActBudget:
		measure = a.Measure
	case *tx.ActSurplus:
		measure = a.Measure
	case *tx.ActStanding:
		l = append(l, "step "+a.Step.String())
	case *tx.ActElection:
		l = append(l, fmt.Sprint("election, remove ", a.Remove))
	case *tx.ActBlock:
		l = append(l, fmt.Sprint("block, undo ", a.Changes[0].Unblock))
	case *tx.ActValidators:
		l = append(l, fmt.Sprint("validator, remove ", a.Changes[0].Remove))
	}
	if measure != nil {
		m, err := tx.DecodeMeasure(measure)
		if err != nil {
			panic(err)
		}
		l = append(l, fmt.Sprintf("measure %d", m.Measure()))
		if r, ok := m.(*tx.Retire); ok {
			l = append(l, "retirement "+r.Method.String())
		}
	}
	return l
}

// wanted are all features that there are.
func wanted() (l []string) {
	for k := range 1 << 16 {
		if tx.New(tx.Kind(k)) != nil {
			l = append(l, "kind "+tx.Name(tx.Kind(k)))
		}
	}
	for d := tx.Decision(1); d < tx.Decisions; d++ {
		l = append(l, "decision "+d.String())
	}
	for n := range 256 {
		// A measure's number alone is malformed, or not: that there is none of it is said in other words.
		if _, err := tx.DecodeMeasure([]byte{byte(n)}); err == nil || !strings.HasPrefix(err.Error(), "there is no measure") {
			l = append(l, fmt.Sprintf("measure %d", n))
		}
	}
	for s := tx.Reinstate; s <= tx.Expel; s++ {
		l = append(l, "step "+s.String())
	}
	for m := tx.FIFO; m <= tx.Hybrid; m++ {
		l = append(l, "retirement "+m.String())
	}
	for _, b := range []bool{false, true} {
		l = append(l, fmt.Sprint("election, remove ", b), fmt.Sprint("block, undo ", b), fmt.Sprint("validator, remove ", b))
	}
	return l
}

// weft runs a command line at somebody's node; it returns its status and what it printed.
func (c *commons) weft(who int, args ...string) (int, string, string) {
	var out, errs bytes.Buffer
	p := c.people[who]
	status := Main(c.t.Context(), append(args, "--state", p.dir, "--config", filepath.Join(p.dir, "none.toml")), &out, &errs)
	return status, out.String(), errs.String()
}

// run is a line as people write it; a word in quotes may have spaces.
func (c *commons) run(who int, line string, words ...string) string {
	c.t.Helper()
	args := append(split(line), words...)
	status, out, errs := c.weft(who, args...)
	if status != 0 {
		c.t.Fatalf("%d: weft %s: %s%s", who, strings.Join(args, " "), out, errs)
	}
	return strings.TrimSpace(out)
}

func (c *commons) refused(who int, line, why string) {
	c.t.Helper()
	status, out, errs := c.weft(who, split(line)...)
	if status == 0 || !strings.Contains(errs, why) || out != "" {
		c.t.Errorf("weft %s: status %d, %s%s\nwanted: %s", line, status, out, errs, why)
	}
}

var words = regexp.MustCompile(`"[^"]*"|\S+`)

func split(line string) (l []string) {
	for _, w := range words.FindAllString(line, -1) {
		l = append(l, strings.Trim(w, `"`))
	}
	return l
}

// decide proposes, has people vote, and checks that it was done.
func (c *commons) decide(voters []int, line string, words ...string) uint64 {
	c.t.Helper()
	var r struct{ Number uint64 }
	if err := json.Unmarshal([]byte(c.run(voters[0], "coop propose --json "+line, words...)), &r); err != nil {
		c.t.Fatal(err)
	}
	c.wait(120)
	for _, who := range voters {
		c.run(who, fmt.Sprintf("coop vote %d yes", r.Number))
	}
	c.wait(1, 1, 1, 1)
	if _, g, _ := c.m.Proposal(r.Number); g.Stage != ledger.Done {
		c.t.Fatalf("%s is %s: %s", line, g.Stage, g.Reason())
	}
	return r.Number
}

// wait makes empty blocks, so many seconds apart.
func (c *commons) wait(seconds ...int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range seconds {
		c.block(s)
	}
}

func (c *commons) member(id uint64) ledger.Member {
	m, _ := c.m.Member(id)
	return m
}

// Every transaction and everything that a vote can decide has a verb, with which it works on the real state machine.
func TestEveryVerb(t *testing.T) {
	const fay, bea, cal, carl, dan, helper, box = 0, 1, 2, 3, 4, 5, 6
	c := newCommons(t, 7, "vote.notice=60", "member.vouch_age=0", "rekey.vouches=2", "member.vouches=3", "member.share=1000000000", "share.most=100", "share.least=0",
		"treasury.two_person=500000000000", "capital.retirement=any", "surplus.cash=0", "member.admission=either", "year.months=3", "year.grace=2592000",
		"surplus.cash_least=0", "propose.each=20", "tx.each=1000", "credit.full=0", "credit.new=0", "surplus.solidarity=0", "surplus.reserve=0")
	all := []int{fay, bea, cal}

	// Members.
	word := func(who int, line string, words ...string) string { return c.run(who, line, words...) }
	c.run(bea, "coop apply --name Bea --as household", word(fay, "coop sponsor", c.people[bea].key().String()))
	c.run(cal, "coop apply --name Cal", word(fay, "coop sponsor", c.people[cal].key().String()))
	c.run(bea, "coop vouch Cal")
	if c.m.ActiveMembers() != 3 {
		t.Fatal(c.m.ActiveMembers())
	}
	c.run(dan, "coop apply --name Dan", word(fay, "coop sponsor", c.people[dan].key().String()))
	c.run(bea, "coop vouch Dan")
	c.run(bea, "coop vouch Dan --undo")
	c.decide(all, "--admit Dan")
	all = append(all, dan)
	c.run(cal, "coop rename Carla")
	c.refused(fay, "coop vouch Nobody", "there is no applicant")

	// Keys.
	c.run(bea, "coop act", word(helper, "coop agree act Bea"))
	c.run(helper, "coop propose --title Greetings --text \"from another key\"")
	c.run(fay, "coop support 2")
	c.run(bea, "coop withdraw 2")
	c.run(bea, "coop act --none")
	c.refused(bea, "coop act", "or --none")
	c.refused(fay, "coop act weft-act:AAAA", "cut short or damaged")
	ask := word(carl, "coop rekey Carla")
	c.run(fay, "coop rekey vouch", ask)
	c.run(fay, "coop rekey undo Carla")
	c.run(fay, "coop rekey vouch", ask)
	if said := c.run(bea, "coop rekey vouch", ask); !strings.Contains(said, "unless the old key objects") {
		t.Error(said)
	}
	if said := c.run(fay, "coop rekey list"); !strings.Contains(said, "Carla") {
		t.Error(said)
	}
	c.run(cal, "coop rekey veto")
	c.refused(bea, "coop rekey vouch "+ask, "put it to the vote")
	c.refused(bea, "coop rekey vouch nonsense", "weft coop rekey MEMBER on the new node")
	c.decide(all, "--rekey "+ask)
	all[2] = carl
	if c.member(3).Key != c.people[carl].key() {
		t.Error("Carla has the old key")
	}
	c.refused(cal, "coop rekey veto", "replaced by another")

	// Votes.
	c.decide(all, "--title \"A text\"")
	c.decide(all, "--set vote.quorum=110 --set vote.kept=86400")
	c.decide(all, "--set tariff.price_most=900000")
	c.refused(fay, "coop propose --set vote.quorum=110 --set tariff.price_most=1", "make two proposals")
	c.refused(fay, "coop propose --set vote.quorum=110 --expel Dan", "make 2")
	c.refused(fay, "coop propose --until 2030-01-01 --expel Dan", "--until goes with another flag")
	c.refused(fay, "coop propose --at 2000 --title x", "--at goes with another flag")
	c.refused(fay, "coop propose --upgrade 2", "--at BLOCK")
	c.refused(fay, "coop propose --upgrade 1 --at 90000", "in force already")
	c.decide(all, "--upgrade 2 --at 90000")
	c.decide(all, "--credit Carla=30")
	if m := c.member(3); m.Grant != 30e9 {
		t.Errorf("%+v", m)
	}
	c.decide(all, "--solidarity Carla --until 2026-12-01")
	if m := c.member(3); m.Grant != 30e9 || m.Aid == 0 {
		t.Errorf("%+v", m)
	}
	c.decide(all, "--tier Carla=trusted")
	if m := c.member(3); m.Grant != -1 || m.Class != tx.ClassTrusted || m.Aid == 0 {
		t.Errorf("%+v", m)
	}
	c.refused(fay, "coop propose --tier Carla=gold", "the tiers are new, full, trusted and organisation")
	c.refused(fay, "coop propose --end-solidarity Dan", "not on the solidarity tier")
	c.decide(all, "--treasurer Bea")
	c.decide(all, "--dismiss Bea")
	c.decide(all, "--suspend Dan --days 3")
	c.decide(all[:3], "--reinstate Dan")
	c.run(dan, "coop delegate Fay --on tariff")
	c.run(dan, "coop delegate nobody --on tariff")
	c.decide(all, "--block house5 --block house6 --until 2027-01-01")
	if said := c.run(fay, "coop blocked"); strings.Count(said, "2027-01-01") != 2 {
		t.Error(said)
	}
	c.decide(all, "--unblock house5")
	c.refused(fay, "coop propose --block nobody", "no node \"nobody\" is known")
	c.decide(all, fmt.Sprintf("--operator Bea --validator %s@%s", c.people[bea].key(), c.people[bea].key()))
	c.decide(all, fmt.Sprintf("--remove %s", c.people[bea].key()))
	c.decide(all, fmt.Sprintf("--operator Bea --validator %s@%s", c.people[bea].key(), c.people[bea].key()))
	c.run(bea, "coop resign")
	c.refused(fay, "coop resign", "last validator")

	// Names and nodes.
	c.run(fay, "coop name register Bakery")
	c.refused(bea, "coop name register bakery", "taken")
	c.refused(bea, "coop name register wallet", "reserved")
	c.refused(bea, "coop name register b_d", "made of the letters")
	c.run(fay, "coop name point bakery.elm-street.weft house6")
	c.run(fay, "coop name renew bakery")
	c.run(fay, "coop name transfer bakery Bea")
	if said := c.run(fay, "coop name"); !strings.Contains(said, "bakery.elm-street.weft") || !strings.Contains(said, "offered to Bea, member 2") {
		t.Error(said)
	}
	c.run(fay, "coop name transfer bakery nobody")
	c.refused(bea, "coop name register bakery", "taken")
	c.run(fay, "coop name transfer bakery 2")
	c.run(bea, "coop name register bakery --node house1")
	c.run(bea, "coop name release bakery")
	c.run(fay, "coop node register --gateway --relay --price 0.05 --contact \"tel 1\"", word(box, "coop agree register Fay"))
	c.run(fay, "coop node register house6 --relay")
	c.refused(bea, "coop node register house6 --relay", "another member's")
	c.refused(bea, "coop node register house5 --relay", "has not agreed")
	if said := c.run(fay, "ledger status"); !strings.Contains(said, "Registered 0 gateways, 1 relay") || !strings.Contains(said, "to rules 2 from block 90000 on") {
		t.Error(said)
	}
	if said := c.run(fay, "coop node"); !strings.Contains(said, "relay") || !strings.Contains(said, "Fay, member 1") {
		t.Error(said)
	}
	c.run(fay, "coop node remove house6")
	c.refused(bea, "coop node revoke house6", "--yes")
	c.refused(bea, "coop node revoke house6 --yes", "name the key")
	c.run(bea, "coop node revoke --yes --reason stolen", word(box, "coop agree revoke"))

	// Money.
	c.run(fay, "coop deposit Bea 50 r1")
	c.run(fay, "coop deposit Dan 20 r2")
	c.run(fay, "coop deposit operating 100 \"a grant\" --fund")
	c.refused(fay, "coop deposit Bea 5 r --class 1", "go with --fund")
	c.run(bea, "coop give solidarity 10 \"for who cannot pay\"")
	c.run(bea, "wallet send Carla 4 bread")
	big := c.run(fay, "coop deposit solidarity 600 \"a large gift\" --fund")
	entry := regexp.MustCompile(`countersign (\d+)`).FindStringSubmatch(big)
	if entry == nil {
		t.Fatal(big)
	}
	c.run(bea, "coop countersign "+entry[1])
	wrong := regexp.MustCompile(`Entry (\d+)`).FindStringSubmatch(c.run(fay, "coop deposit Bea 7 typo"))[1]
	c.run(fay, "coop reverse "+wrong+" \"typed wrong\"")
	out := regexp.MustCompile(`Entry (\d+)`).FindStringSubmatch(c.run(bea, "coop payout 3 IBAN --by bank"))[1]
	c.run(bea, "coop cancel "+out)
	out = regexp.MustCompile(`Entry (\d+)`).FindStringSubmatch(c.run(bea, "coop payout 2 IBAN --by bank"))[1]
	c.run(fay, "coop paid "+out+" \"transfer 1\"")
	c.decide(all, "--line Internet=5.00 --per-gb 10:0,0.10 --cap 40")
	c.decide(all, "--line Upstream=0 --shared")
	c.run(fay, "coop charge Bea Internet --gb 20")
	c.run(fay, "coop charge Dan Internet")
	c.run(fay, "coop charge Carla Internet") // the solidarity fund pays half
	if p, _ := c.m.Period(1); p.Classes[1].Paid != (6+5+2.5)*1e9 || p.Classes[1].Aid != 2.5e9 {
		t.Errorf("%+v", p.Classes[1])
	}
	c.run(fay, "coop share-bill Upstream 6.00 Bea=1 Dan=2 --equal 1")
	c.refused(fay, "coop share-bill Upstream 6.00 Bea=much", "written like Ann=120")
	c.refused(fay, "coop share-bill Internet 6.00 Bea=1", "no line")
	budget := c.decide(all, "--budget operating=20 --title \"a mast\" --cost --business members --class 1 --until 2026-12-31")
	c.run(fay, fmt.Sprintf("coop spend %d 2.00 \"bill 4\"", budget))
	c.decide(all, "--fund masts")
	c.decide(all, "--move operating:masts=1 --title savings")
	c.decide(all, "--end-line Upstream")
	c.decide(all, "--end-solidarity Carla")
	c.run(bea, "coop shares buy 3")
	c.run(bea, "coop shares redeem 1")
	c.refused(bea, "coop shares redeem 5", "you hold 2 shares")

	// Tabs by hand.
	opened := regexp.MustCompile(`Tab ([0-9a-f]+)`).FindStringSubmatch(c.run(bea, "coop tab open Fay 2.00 --days 10"))[1]
	c.run(bea, "coop tab add "+opened[:6]+" 1")
	c.run(bea, "coop tab renew "+opened[:6]+" --days 20")
	pays, _ := c.m.Tabs(2)
	v := tx.Voucher{Chain: tx.ChainOf(c.chain), Tab: pays[0].ID, Epoch: pays[0].Epoch, Seq: 1, Amount: 5e8}
	signed, err := v.Sign(c.people[bea].agent)
	if err != nil {
		t.Fatal(err)
	}
	b := signed.Encode()
	claim := "coop tab claim " + hex.EncodeToString(b[:])
	if said := c.run(fay, claim); !strings.Contains(said, "Voucher 1: 0.50 credits.") {
		t.Error(said)
	}
	c.refused(fay, claim, "0.50 credits of this tab were claimed already, and the voucher is for 0.50 credits")
	c.refused(fay, "coop tab claim 00", "320 hex digits")
	c.run(fay, "coop tab close "+opened)

	// A year's end, capital, and its retirement.
	c.pass(130)
	if said := c.run(fay, "coop capital"); !strings.Contains(said, "Bea") || !strings.Contains(said, "Dan") {
		t.Fatal(said)
	}
	c.refused(fay, "coop propose --retire 1000", "the capital fund has")
	c.refused(fay, "coop propose --retire 1 --method fifo --at 3", "--at")
	for _, m := range []string{"fifo", "lifo", "percent", "hybrid --oldest-part 500"} {
		c.decide(all, "--retire 0.5 --method "+m)
	}
	c.decide(all, "--expel Dan")
	all = all[:3]
	c.decide(all, "--retire 1 --method percent")
	c.wait(1, 1, 1, 1)
	c.run(dan, "coop claim")
	c.refused(fay, "coop claim", "nothing waits for you")
	if a, _ := c.m.Account(c.people[carl].key()); a.Balance > 0 {
		c.run(carl, "wallet send Bea", credits(a.Balance))
	}
	c.run(carl, "coop leave")

	for _, w := range wanted() {
		if !c.seen[w] {
			t.Errorf("no verb for: %s", w)
		}
	}
	// All lists, for people and for programs.
	for _, verb := range []string{"", "members", "bylaws", "proposals", "books", "entries", "budgets", "lines", "allocate", "allocate 1", "name", "node", "rekey list", "blocked", "treasurers", "shares", "capital", "capital Bea", "tab"} {
		c.run(fay, "coop "+verb)
		if out := c.run(fay, "coop "+verb+" --json"); !json.Valid([]byte(out)) || out == "null" {
			t.Errorf("coop %s --json: %s", verb, out)
		}
	}
}
