package cli

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/api"
	"weft/config"
	"weft/ident"
	"weft/ledger"
	"weft/ledger/bft/bftclient"
	"weft/ledger/tx"
)

type coopCmd struct {
	Status    coopStatusCmd    `cmd:"" default:"1" help:"Show this node's community."`
	Found     coopFoundCmd     `cmd:"" help:"Found a community; its ledger is kept on this machine."`
	Join      coopJoinCmd      `cmd:"" help:"Follow the ledger of a community that another node keeps."`
	Sponsor   coopSponsorCmd   `cmd:"" help:"Sign for somebody who wants to become a member."`
	Apply     coopApplyCmd     `cmd:"" help:"Ask to become a member, with a member's word."`
	Vouch     coopVouchCmd     `cmd:"" help:"Speak for an applicant."`
	Leave     coopLeaveCmd     `cmd:"" help:"End one's membership."`
	Rename    coopRenameCmd    `cmd:"" help:"Change your name in the register."`
	Rekey     coopRekeyCmd     `cmd:"" help:"Give a membership a new key, when the old one is lost or stolen."`
	Agree     coopAgreeCmd     `cmd:"" help:"Sign with this node's key, for a member who sends it."`
	Act       coopActCmd       `cmd:"" help:"Say which further keys may propose and vote for your household or organisation."`
	Name      coopNameCmd      `cmd:"" help:"Names of the community, LABEL.COMMUNITY.weft."`
	Node      coopNodeCmd      `cmd:"" help:"Which nodes are whose, and which are gateways and relays."`
	Members   coopMembersCmd   `cmd:"" help:"Show members and applicants."`
	Bylaws    coopBylawsCmd    `cmd:"" help:"Show the rules in force."`
	Propose   coopProposeCmd   `cmd:"" help:"Put a question to the members."`
	Proposals coopProposalsCmd `cmd:"" help:"Show the proposals and how they stand."`
	Vote      coopVoteCmd      `cmd:"" help:"Vote on a proposal."`
	Support   coopSupportCmd   `cmd:"" help:"Support a proposal before its vote."`
	Withdraw  coopWithdrawCmd  `cmd:"" help:"Take back an own proposal."`
	Delegate  coopDelegateCmd  `cmd:"" help:"Let another member vote for you."`
	Books     coopBooksCmd     `cmd:"" help:"Show the funds and what the community has and owes."`
	Deposit   coopDepositCmd   `cmd:"" help:"Book money that came in (treasurers)."`
	Charge    coopChargeCmd    `cmd:"" help:"Bill a member by a line of the tariff (treasurers)."`
	Spend     coopSpendCmd     `cmd:"" help:"Spend of a budget that was voted (treasurers)."`
	Budgets   coopBudgetsCmd   `cmd:"" help:"Show the budgets."`
	Lines     coopLinesCmd     `cmd:"" help:"Show the lines of the tariff."`
	Payout    coopPayoutCmd    `cmd:"" help:"Ask for money of your account to be paid out."`
	Paid      coopPaidCmd      `cmd:"" help:"Book that a payout was paid (treasurers)."`
	Entries   coopEntriesCmd   `cmd:"" help:"Show the treasury's entries and which wait for a second person."`

	Countersign coopCountersignCmd `cmd:"" help:"Sign an entry of the treasury as the second person."`

	Cancel    coopCancelCmd    `cmd:"" help:"Take back an entry or a payout that waits."`
	Reverse   coopReverseCmd   `cmd:"" help:"Book the opposite of a wrong entry (treasurers)."`
	ShareBill coopShareBillCmd `cmd:"" help:"Divide a bill among members by use (treasurers)."`
	Give      coopGiveCmd      `cmd:"" help:"Give money of your account to a fund."`
	Shares    coopSharesCmd    `cmd:"" help:"Show, buy and give back shares in the community."`
	Capital   coopCapitalCmd   `cmd:"" help:"Show what capital members have in the community, by year."`
	Claim     coopClaimCmd     `cmd:"" help:"Take what waits for you as a former member into your account."`
	Tab       coopTabCmd       `cmd:"" help:"Show and change tabs by hand; nodes keep theirs by themselves."`

	Treasurers coopTreasurersCmd `cmd:"" help:"Show who is treasurer."`
	Blocked    coopBlockedCmd    `cmd:"" help:"Show the nodes that the members have blocked."`
	Resign     coopResignCmd     `cmd:"" help:"Take the validators that you run out of the set."`

	Allocate coopAllocateCmd `cmd:"" help:"Show how the surplus of a fiscal period is divided."`
	Export   coopExportCmd   `cmd:"" help:"Write the whole books as CSV or for Beancount."`
	Audit    coopAuditCmd    `cmd:"" help:"Replay the chain and compute every balance anew; fails on any difference."`
}

// ledger asks the community's ledger through the node.
func (e *env) ledger() *bftclient.Client {
	c, ok := e.node().(*api.Client)
	if !ok {
		panic("cli: the node is not reached by its socket")
	}
	return bftclient.Over(func(ctx context.Context) (net.Conn, error) { return c.DialLedger(ctx) }, api.LedgerPath)
}

// plainLedger says of an error of the ledger's what the node said, without how it was asked.
func plainLedger(err error) error {
	if a, ok := errors.AsType[*api.Error](err); ok {
		return a
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		return fmt.Errorf("the ledger does not answer: %w", u.Err)
	}
	return err
}

// books reads the state of the ledger at its newest block.
func (e *env) books(read func(m *ledger.Machine, now time.Time) error) error {
	cl := e.ledger()
	defer cl.Close()
	s, err := cl.Status(e.ctx)
	if err != nil {
		return plainLedger(err)
	}
	st, err := cl.State(e.ctx, s.Height)
	if err != nil {
		return err
	}
	m, err := ledger.New(st)
	if err != nil {
		return err
	}
	if err := read(m, time.Unix(s.Time, 0)); err != nil {
		return err
	}
	return st.Err()
}

// ncredits are the sums in the ledger's words.
var ncredits = regexp.MustCompile(`-?[0-9]+ ncredit\b`)

// send signs a transaction and tells what became of it.
func (e *env) send(body tx.Body) (api.CoopResult, error) {
	if err := tx.Check(body); err != nil {
		return api.CoopResult{}, usageError{err}
	}
	r, err := e.node().Transact(e.ctx, api.CoopTx{Kind: uint16(body.Kind()), Body: tx.Encode(body)})
	if err == nil && r.Code != 0 {
		text := ncredits.ReplaceAllStringFunc(clean(r.Text), func(s string) string {
			n, err := strconv.ParseInt(strings.TrimSuffix(s, " ncredit"), 10, 64)
			if err != nil {
				return s
			}
			return credits(n) + " credits"
		})
		err = api.Errorf(api.CodeRefused, "the ledger refuses: %s", text)
	}
	return r, err
}

// printResult prints what became of a transaction, with the number of what it made, if it made something numbered.
func (e *env) printResult(r api.CoopResult) error {
	out := struct {
		api.CoopResult
		Number uint64 `json:"number,omitempty"`
	}{CoopResult: r}
	if len(r.Data) == 8 {
		out.Number = binary.BigEndian.Uint64(r.Data)
	}
	return e.printJSON(out)
}

// did sends a transaction of which there is nothing to tell but that it is done.
func (e *env) did(body tx.Body, format string, args ...any) error {
	r, err := e.send(body)
	if err != nil {
		return err
	}
	if e.json {
		return e.printResult(r)
	}
	e.say(format, args...)
	return nil
}

// credits prints a sum of money.
func credits(ncredit int64) string { return config.Credits(ncredit).String() }

// parseCredits reads a sum of money.
func parseCredits(s string) (int64, error) {
	if strings.HasPrefix(strings.TrimSpace(s), "-") {
		return 0, fmt.Errorf("%s: a sum is not below zero", clean(s))
	}
	c, err := config.ParseCredits(s)
	return int64(c), err
}

type coopStatusCmd struct{}

func (c *coopStatusCmd) Run(e *env) error {
	s, err := e.node().Coop(e.ctx)
	if err != nil {
		return err
	}
	return e.printCoop(s)
}

func (e *env) printCoop(s api.Coop) error {
	if e.json {
		return e.printJSON(s)
	}
	if s.State == "none" {
		e.say("Community  none: %s", clean(s.Why))
		return nil
	}
	e.say("Community  %s", clean(s.Chain))
	switch s.State {
	case "keeping":
		e.say("Ledger     kept here, block %d of %s, %s%s", s.Height, s.Time.Local().Format("2006-01-02 15:04:05"), count(s.Validators, "validator"), map[bool]string{true: ", this one among them"}[s.Validating])
	case "following":
		e.say("Ledger     kept by %s, block %d of %s, %s", who(s.Name, s.Keeper), s.Height, s.Time.Local().Format("2006-01-02 15:04:05"), count(s.Validators, "validator"))
	default:
		e.say("Ledger     %s", s.State)
	}
	if s.Why != "" {
		e.say("           %s", clean(s.Why))
	}
	if s.Verifying != "" {
		e.say("           %s", clean(s.Verifying))
	}
	if s.Members > 0 {
		e.say("Members    %d", s.Members)
	}
	if s.Member > 0 {
		e.say("You        %s, member %d, %s", clean(s.Called), s.Member, s.Standing)
	} else if s.Height > 0 {
		e.say("You        no member yet. A member signs for your key (weft coop sponsor KEY), then: weft coop apply --name NAME WORD")
	}
	if len(s.Names) > 0 {
		e.say("Names      %s", clean(strings.Join(s.Names, " ")))
	}
	if s.Registered != "" {
		e.say("This node  %s", clean(s.Registered))
	}
	defer func() {
		for _, w := range s.Warnings {
			e.say("\nWarning: %s", clean(w))
		}
	}()
	if s.Member > 0 {
		e.say("Account    %s credits, %s more can be spent%s", credits(s.Balance), credits(s.Balance+s.Limit), map[bool]string{true: "", false: " (not verified yet)"}[s.Verified])
	}
	return nil
}

type coopFoundCmd struct {
	Name     string   `required:"" help:"Of the community: letters and digits, at most 30."`
	Called   string   `help:"Your name in the register (default: the node's name)."`
	Template string   `help:"Bylaws to begin with: us-coop, uk-cbs, commons or block."`
	Set      []string `sep:"none" placeholder:"RULE=VALUE" help:"A bylaw that differs; see: weft coop bylaws."`
}

func (c *coopFoundCmd) Run(e *env) error {
	req := api.CoopFound{Name: c.Name, Called: c.Called, Template: c.Template, Settings: map[string]string{}}
	for _, s := range c.Set {
		name, value, ok := strings.Cut(s, "=")
		if !ok {
			return usageError{fmt.Errorf("--set %s: written like --set vote.window=604800", s)}
		}
		req.Settings[name] = value
	}
	if req.Called == "" {
		s, err := e.node().Status(e.ctx)
		if err != nil {
			return err
		}
		if req.Called = s.Name; req.Called == "" {
			return usageError{fmt.Errorf("say what you are called in the register: --called NAME")}
		}
	}
	s, err := e.node().FoundCoop(e.ctx, req)
	if err != nil {
		return e.oneCommunity(err)
	}
	if err := e.printCoop(s); err != nil || e.json {
		return err
	}
	e.say("\nThe community has begun. Others follow its ledger with: weft coop join NODE. To let somebody in: weft coop sponsor KEY")
	return nil
}

type coopJoinCmd struct {
	Node string `arg:"" help:"The node that keeps the ledger: name, id, key or address."`
	Full bool   `help:"Keep the whole ledger here too; needed to become a validator."`
}

func (c *coopJoinCmd) Run(e *env) error {
	s, err := e.node().JoinCoop(e.ctx, api.CoopJoin{Node: c.Node, Full: c.Full})
	if err != nil {
		return e.oneCommunity(err)
	}
	return e.printCoop(s)
}

type coopSponsorCmd struct {
	Key  ident.PublicKey `arg:"" help:"Of who wants to become a member; they see it with: weft id."`
	Days int             `default:"14" help:"For which the word holds."`
}

const wordPrefix = "weft-word:"

func (c *coopSponsorCmd) Run(e *env) error {
	late, err := e.mayNotVouch(c.Days)
	if err != nil {
		return err
	}
	w, err := e.node().Sponsor(e.ctx, api.CoopSponsor{Key: c.Key, Days: c.Days})
	if err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint64(w.Sponsor[:], uint64(w.Until))
	word := wordPrefix + base64.RawURLEncoding.EncodeToString(append(b, w.Word...))
	if late != "" {
		e.tell("Note: %s", late)
	}
	if e.json {
		return e.printJSON(map[string]any{"word": word, "sponsor": w.Sponsor, "until": w.Until})
	}
	e.say("%s", word)
	e.tell("Give it to them; it is of use to that key alone, until %s. They run: weft coop apply --name NAME WORD", time.Unix(w.Until, 0).Local().Format("2006-01-02"))
	return nil
}

// mayNotVouch says of this node's owner from when on a word of theirs counts, if not yet. It is an error when the word will have run out
// by then. A ledger that cannot be asked is none: a word is made without it too.
func (e *env) mayNotVouch(days int) (late string, refused error) {
	s, err := e.node().Coop(e.ctx)
	if err != nil || s.Member == 0 {
		return "", nil // the node says why it does not sign
	}
	err = e.books(func(m *ledger.Machine, now time.Time) error {
		mb, ok := m.Member(s.Member)
		from := vouchesFrom(m, mb)
		if !ok || from <= now.Unix() {
			return nil
		}
		late = fmt.Sprintf("you may vouch from %s on (member.vouch_age); before that an application with this word is refused.", clock(from))
		if from >= now.Unix()+int64(days)*86400 {
			e := api.Errorf(api.CodeRefused, "you may vouch from %s on (member.vouch_age), and the word would have run out by then", clock(from))
			refused = e.WithHint("another member can sponsor: %s; or make the word last with --days", clean(whoVouches(m, now, s.Member)))
		} else {
			late += " Who can sponsor now: " + clean(whoVouches(m, now, s.Member)) + "."
		}
		return nil
	})
	if err != nil {
		return "", nil
	}
	return late, refused
}

// vouchesFrom is when a member may begin to vouch, in seconds since 1970.
func vouchesFrom(m *ledger.Machine, mb ledger.Member) int64 {
	if mb.Founder {
		return mb.Joined
	}
	return mb.Joined + m.Params().VouchAge
}

// whoVouches names the members who may vouch now, but one; and where there is none, who may first and when.
func whoVouches(m *ledger.Machine, now time.Time, but uint64) string {
	var able []string
	first, when := "", int64(0)
	m.Members(func(mb ledger.Member) bool {
		if mb.State != ledger.Active || mb.ID == but {
			return true
		}
		from := vouchesFrom(m, mb)
		switch {
		case from <= now.Unix():
			able = append(able, mb.Name)
		case when == 0 || from < when:
			first, when = mb.Name, from
		}
		return true
	})
	const most = 8
	switch {
	case len(able) > most:
		return fmt.Sprintf("%s and %d more", strings.Join(able[:most], ", "), len(able)-most)
	case len(able) > 0:
		return strings.Join(able, ", ")
	case when != 0:
		return fmt.Sprintf("nobody yet; %s from %s on", first, clock(when))
	}
	return "nobody"
}

// nameFree refuses a newcomer's name that a member or another applicant has: the ledger would take it, and then nobody knows to whom
// "weft wallet send Kim" goes.
func nameFree(m *ledger.Machine, name string, own ident.PublicKey) (err error) {
	taken := func(whose string) {
		err = api.Errorf(api.CodeBadRequest, "%s is called %s already", whose, clean(name)).
			WithHint("choose a name by which others can tell you apart, such as --name %q", clean(name)+" 2")
	}
	m.Members(func(mb ledger.Member) bool {
		if mb.Key != own && (mb.State == ledger.Active || mb.State == ledger.Suspended) && strings.EqualFold(mb.Name, name) {
			taken(fmt.Sprint("member ", mb.ID))
		}
		return err == nil
	})
	for _, a := range m.Applications() {
		if a.Key != own && strings.EqualFold(a.Name, name) {
			taken("another applicant")
		}
	}
	return err
}

type coopApplyCmd struct {
	Word string `arg:"" help:"What a member's weft coop sponsor has printed."`
	Name string `required:"" help:"Your name in the register."`
	As   string `enum:"person,household,organisation," default:"" help:"person, household or organisation; each has one vote (default: person, or household where the bylaws have only those)."`
}

func (c *coopApplyCmd) Run(e *env) error {
	text, ok := strings.CutPrefix(strings.TrimSpace(c.Word), wordPrefix)
	b, err := base64.RawURLEncoding.DecodeString(text)
	if !ok {
		return usageError{fmt.Errorf("that is no word of a member; it begins with %s, and a member's weft coop sponsor prints it", wordPrefix)}
	}
	if err != nil || len(b) != 32+8+64 {
		return usageError{errors.New("the word is cut short or damaged; ask the sponsor for it again")}
	}
	body := &tx.Apply{Called: c.Name, Sponsor: ident.PublicKey(b[:32]), Until: int64(binary.BigEndian.Uint64(b[32:])), Word: ident.Signature(b[40:])}
	self, err := e.node().Status(e.ctx)
	if err != nil {
		return err
	}
	if err := e.books(func(m *ledger.Machine, _ time.Time) error {
		if c.As == "" && m.Params().Forms == ledger.FormsHouseholds {
			c.As = "household"
		}
		return nameFree(m, c.Name, self.Key)
	}); err != nil {
		return err
	}
	body.Form = map[string]tx.Form{"household": tx.Household, "organisation": tx.Organisation}[c.As]
	if _, err := e.send(body); err != nil {
		return err
	}
	s, err := e.node().Coop(e.ctx)
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(s)
	}
	if s.Member > 0 {
		e.say("Welcome: you are member %d.", s.Member)
	} else {
		e.say("The application stands. What is missing, the bylaws say (weft coop bylaws member): more members that vouch (weft coop vouch), or a vote.")
	}
	return nil
}

// findMember finds a member by number, key or name.
func findMember(m *ledger.Machine, text string) (ledger.Member, error) {
	if id, err := strconv.ParseUint(text, 10, 64); err == nil {
		if mb, ok := m.Member(id); ok {
			return mb, nil
		}
	}
	if k, err := ident.ParsePublicKey(text); err == nil {
		if mb, _, ok := m.MemberByKey(k); ok {
			return mb, nil
		}
	}
	var found []ledger.Member
	m.Members(func(mb ledger.Member) bool {
		if strings.EqualFold(mb.Name, text) {
			found = append(found, mb)
		}
		return true
	})
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return ledger.Member{}, fmt.Errorf("there is no member %q; see: weft coop members", text)
	}
	return ledger.Member{}, fmt.Errorf("%d members are called %q: name one by number; see: weft coop members", len(found), text)
}

// findApplicant finds an applicant by name or key.
func findApplicant(m *ledger.Machine, text string) (ident.PublicKey, error) {
	var keys []ident.PublicKey
	for _, a := range m.Applications() {
		if strings.EqualFold(a.Name, text) || a.Key.String() == text {
			keys = append(keys, a.Key)
		}
	}
	switch len(keys) {
	case 1:
		return keys[0], nil
	case 0:
		return ident.PublicKey{}, fmt.Errorf("there is no applicant %q; see: weft coop members", text)
	}
	return ident.PublicKey{}, fmt.Errorf("%d applicants are called %q: name one by key; see: weft coop members", len(keys), text)
}

type coopVouchCmd struct {
	Applicant string `arg:"" help:"Name or key of the applicant."`
	Undo      bool   `help:"Take a vouch back."`
}

func (c *coopVouchCmd) Run(e *env) error {
	var key ident.PublicKey
	if err := e.books(func(m *ledger.Machine, _ time.Time) (err error) {
		key, err = findApplicant(m, c.Applicant)
		return err
	}); err != nil {
		return err
	}
	if c.Undo {
		return e.did(&tx.Unvouch{Applicant: key}, "The vouch is taken back.")
	}
	return e.did(&tx.Vouch{Applicant: key}, "You vouch for %s.", clean(c.Applicant))
}

type coopLeaveCmd struct{}

func (c *coopLeaveCmd) Run(e *env) error {
	err := e.did(&tx.Leave{}, "You are no longer a member.")
	refused, ok := errors.AsType[*api.Error](err)
	if !ok || refused.Code != api.CodeRefused {
		return err
	}
	s, coopErr := e.node().Coop(e.ctx)
	if coopErr != nil || s.Member == 0 {
		return err
	}
	var hints []string
	if e.books(func(m *ledger.Machine, _ time.Time) error {
		hints = beforeLeaving(m, s.Member)
		if m.ActiveMembers() == 1 {
			hints = append(hints, e.foundedByMistake(s))
		}
		return nil
	}) != nil || len(hints) == 0 {
		return err
	}
	return refused.WithHint("%s", clean(strings.Join(hints, ". ")))
}

// beforeLeaving says how a member's account comes to zero.
func beforeLeaving(m *ledger.Machine, id uint64) (hints []string) {
	pays, _ := m.Tabs(id)
	var aside int64
	var closes []string
	for _, t := range pays {
		aside += t.Left()
		if how := "weft coop tab close " + hex.EncodeToString(t.ID[:4]); t.Closing() {
			closes = append(closes, "tab "+hex.EncodeToString(t.ID[:4])+" is closing until "+clock(t.Until))
		} else {
			closes = append(closes, how)
		}
	}
	if len(pays) > 0 {
		hints = append(hints, fmt.Sprintf("%s credits of yours are set aside in %s, so that those you pay are sure of it: %s; what is left comes back when the other side has had time to claim (tab.window). "+
			"So that the node opens no new ones: weft wallet cap 0", credits(aside), count(len(pays), "tab"), strings.Join(closes, "; ")))
	}
	mb, _ := m.Member(id)
	switch a, _ := m.Account(mb.Key); {
	case a.Balance > 0:
		hints = append(hints, fmt.Sprintf("%s credits are in your account: weft coop payout, weft wallet send or weft coop give takes them out", credits(a.Balance)))
	case a.Balance+aside < 0:
		hints = append(hints, fmt.Sprintf("you owe %s credits: pay them to a treasurer, who books it with weft coop deposit", credits(-a.Balance-aside)))
	}
	return hints
}

// foundedByMistake says how a node gets rid of a community, and at what price.
func (e *env) foundedByMistake(s api.Coop) string {
	lost := "its ledger stays with the node that keeps it; your membership stays too, with this node's key"
	if s.State == "keeping" {
		lost = "its members, accounts, votes and names are lost with that folder, unless other nodes keep the ledger too; moved back, it goes on"
	}
	return fmt.Sprintf("If %s was founded or joined by mistake: stop weft, move the folder %s aside, and start weft again. This node then has no community; %s", s.Chain, filepath.Join(e.paths.State, "coop"), lost)
}

// oneCommunity adds to a refusal that this node has a community already what can be done.
func (e *env) oneCommunity(err error) error {
	refused, ok := errors.AsType[*api.Error](err)
	if !ok || refused.Code != api.CodeBadRequest || refused.Hint != "" {
		return err
	}
	s, coopErr := e.node().Coop(e.ctx)
	if coopErr != nil || s.State == "none" {
		return err
	}
	return refused.WithHint("%s", clean(e.foundedByMistake(s)))
}

// memberJSON is a member, applicationJSON an applicant as --json prints them; times in seconds since 1970.
type memberJSON struct {
	ID       uint64          `json:"id"`
	Key      ident.PublicKey `json:"key"`
	Name     string          `json:"name"`
	Form     string          `json:"form"`
	Standing string          `json:"standing"`
	Class    string          `json:"class"`
	Founder  bool            `json:"founder"`
	Joined   int64           `json:"joined"`
	Until    int64           `json:"until"` // of a suspension, 0: none
}

type applicationJSON struct {
	Key     ident.PublicKey `json:"key"`
	Name    string          `json:"name"`
	Form    string          `json:"form"`
	Since   int64           `json:"since"`
	Until   int64           `json:"until"`   // then it lapses
	Vouches []uint64        `json:"vouches"` // members, the sponsor first
}

func (e *env) printMembers(all []ledger.Member, apps []ledger.Application) error {
	ms, as := []memberJSON{}, []applicationJSON{}
	for _, m := range all {
		ms = append(ms, memberJSON{m.ID, m.Key, m.Name, fmt.Sprint(m.Form), fmt.Sprint(m.State), fmt.Sprint(m.Class), m.Founder, m.Joined, m.Until})
	}
	for _, a := range apps {
		as = append(as, applicationJSON{a.Key, a.Name, fmt.Sprint(a.Form), a.Since, a.Until, append([]uint64{}, a.Vouches...)})
	}
	return e.printJSON(map[string]any{"members": ms, "applications": as})
}

type coopMembersCmd struct{}

func (c *coopMembersCmd) Run(e *env) error {
	return e.books(func(m *ledger.Machine, now time.Time) error {
		var all []ledger.Member
		m.Members(func(mb ledger.Member) bool { all = append(all, mb); return true })
		apps := m.Applications()
		if e.json {
			return e.printMembers(all, apps)
		}
		t := columns(">NO", "NAME", "FORM", "STANDING", "CLASS", "SINCE", "KEY")
		for _, mb := range all {
			t.row(mb.ID, mb.Name, mb.Form, mb.State, mb.Class, time.Unix(mb.Joined, 0).Local().Format("2006-01-02"), mb.Key)
		}
		t.print(e.out)
		if len(apps) > 0 {
			e.say("")
			t := columns("APPLICANT", "FORM", ">VOUCHES", "UNTIL", "KEY")
			for _, a := range apps {
				t.row(a.Name, a.Form, len(a.Vouches), time.Unix(a.Until, 0).Local().Format("2006-01-02"), a.Key)
			}
			t.print(e.out)
			e.say("To speak for one: weft coop vouch NAME")
		}
		return nil
	})
}

type coopBylawsCmd struct {
	Prefix string `arg:"" optional:"" help:"Only rules whose name begins so, such as vote or tariff."`
}

func (c *coopBylawsCmd) Run(e *env) error {
	return e.books(func(m *ledger.Machine, now time.Time) error {
		p := m.Params()
		if !slices.ContainsFunc(p.List(), func(r ledger.Param) bool { return strings.HasPrefix(r.Name, c.Prefix) }) {
			return fmt.Errorf("no rule begins with %q; all of them: weft coop bylaws", c.Prefix)
		}
		if e.json {
			out := map[string]string{}
			for _, r := range p.List() {
				if strings.HasPrefix(r.Name, c.Prefix) {
					out[r.Name] = r.Text()
				}
			}
			return e.printJSON(out)
		}
		t := columns("RULE", ">VALUE", "UNIT", "WHAT IT IS")
		for _, r := range p.List() {
			if strings.HasPrefix(r.Name, c.Prefix) {
				t.row(r.Name, r.Text(), cmp.Or(r.Unit, strings.Join(r.Words, "|")), r.Doc)
			}
		}
		t.print(e.out)
		e.say("Version %d. To change a rule: weft coop propose --set RULE=VALUE", p.Version)
		return nil
	})
}

// proposalJSON is a proposal as --json prints it; times in seconds since 1970, 0 is not yet.
type proposalJSON struct {
	ID         uint64   `json:"id"`
	Author     uint64   `json:"author"` // member
	Made       int64    `json:"made"`
	Title      string   `json:"title"`
	Text       string   `json:"text,omitempty"`
	Document   string   `json:"document,omitempty"` // SHA-256 of a longer text
	From       int64    `json:"from,omitempty"`     // the earliest time of its effect
	Kind       string   `json:"kind"`
	Content    []string `json:"content"` // what it does if it passes, in words
	Action     any      `json:"action"`  // the same in fields
	Stage      string   `json:"stage"`
	Outcome    string   `json:"outcome"`       // open, passed, failed or withdrawn
	Why        string   `json:"why,omitempty"` // it failed
	Opens      int64    `json:"opens"`
	Closes     int64    `json:"closes"`
	Effect     int64    `json:"effect"`
	Eligible   uint64   `json:"eligible"` // members
	Quorum     uint64   `json:"quorum"`   // ballots
	Majority   int64    `json:"majority"` // permille
	Yes        uint64   `json:"yes"`
	No         uint64   `json:"no"`
	Abstain    uint64   `json:"abstain"`
	Supporters uint64   `json:"supporters"`
}

type coopProposalsCmd struct {
	ID uint64 `arg:"" optional:"" help:"Show this one in full."`
}

func (c *coopProposalsCmd) Run(e *env) error {
	return e.books(func(m *ledger.Machine, now time.Time) error {
		type row struct {
			Proposal ledger.Proposal
			Progress ledger.Progress
			Decision string
		}
		var rows []row
		m.Proposals(func(p ledger.Proposal, g ledger.Progress) bool {
			if c.ID == 0 || p.ID == c.ID {
				rows = append(rows, row{p, g, p.Action.Decision().String()})
			}
			return len(rows) < 50
		})
		if c.ID != 0 && len(rows) == 0 {
			return fmt.Errorf("there is no proposal %d; see: weft coop proposals", c.ID)
		}
		tell := teller{m}
		if e.json {
			out := []proposalJSON{}
			for _, r := range rows {
				p, g := r.Proposal, r.Progress
				x := proposalJSON{ID: p.ID, Author: p.Author, Made: p.Made, Title: p.Title, Text: p.Text, From: p.From, Kind: r.Decision, Content: tell.action(p.Action), Action: plain(p.Action),
					Stage: g.Stage.String(), Opens: g.Opens, Closes: g.Closes, Effect: g.Effect, Eligible: g.Eligible, Quorum: g.Quorum, Majority: g.Majority,
					Yes: g.Yes, No: g.No, Abstain: g.Abstain, Supporters: g.Supporters}
				x.Outcome, x.Why = outcome(g)
				if p.Document != [32]byte{} {
					x.Document = hex.EncodeToString(p.Document[:])
				}
				out = append(out, x)
			}
			return e.printJSON(out)
		}
		if len(rows) == 0 {
			e.say("There is no proposal. To make one: weft coop propose --help")
			return nil
		}
		t := columns(">NO", "TITLE", "KIND", "STAGE", ">YES", ">NO", ">ABSTAIN", ">OF", ">QUORUM", "STAGE UNTIL")
		for _, r := range rows {
			g := r.Progress
			closes := g.Closes
			if closes == 0 {
				closes = g.Opens
			}
			t.row(r.Proposal.ID, r.Proposal.Title, r.Decision, stage(g), g.Yes, g.No, g.Abstain, g.Eligible, g.Quorum, clock(closes))
		}
		t.print(e.out)
		for _, r := range rows {
			e.say("")
			e.printProposal(tell, r.Proposal, r.Progress, c.ID != 0)
		}
		return nil
	})
}

// printProposal tells what a proposal does and how it goes; in full, its text too.
func (e *env) printProposal(tell teller, p ledger.Proposal, g ledger.Progress, full bool) {
	e.say("%d  %s", p.ID, clean(p.Title))
	for _, l := range tell.action(p.Action) {
		e.say("   %s", clean(l))
	}
	if p.From != 0 {
		e.say("   Not before %s.", clock(p.From))
	}
	if p.Document != [32]byte{} {
		e.say("   With a document of the SHA-256 %x.", p.Document)
	}
	e.say("   %s", clean(tell.course(p.ID, g)))
	if !full {
		return
	}
	e.say("   By %s, on %s.", clean(tell.member(p.Author)), clock(p.Made))
	if p.Text != "" {
		e.say("\n%s", clean(p.Text))
	}
}

// printProposed tells of a new proposal what it says and when its vote begins.
func (e *env) printProposed(r api.CoopResult) error {
	if len(r.Data) != 8 {
		e.say("The proposal stands. How it goes: weft coop proposals")
		return nil
	}
	id := binary.BigEndian.Uint64(r.Data)
	return e.books(func(m *ledger.Machine, _ time.Time) error {
		p, g, ok := m.Proposal(id)
		if !ok {
			return fmt.Errorf("proposal %d is made, and the ledger does not show it yet; see: weft coop proposals", id)
		}
		e.say("Proposal %d stands:", id)
		e.printProposal(teller{m}, p, g, false)
		if g.Stage == ledger.Notice {
			e.say("Then, to vote: weft coop vote %d yes, no or abstain", id)
		}
		return nil
	})
}

type coopVoteCmd struct {
	Proposal uint64 `arg:"" help:"Its number."`
	Choice   string `arg:"" enum:"yes,no,abstain" help:"yes, no or abstain; it can be changed until the vote closes."`
}

func (c *coopVoteCmd) Run(e *env) error {
	choice := map[string]tx.Choice{"yes": tx.Yes, "no": tx.No, "abstain": tx.Abstain}[c.Choice]
	err := e.did(&tx.Vote{Proposal: c.Proposal, Choice: choice}, "Your vote on proposal %d is %s. It can be changed until the vote closes.", c.Proposal, c.Choice)
	if a, ok := errors.AsType[*api.Error](err); ok && a.Code == api.CodeRefused {
		return e.notVoting(c.Proposal, a)
	}
	return err
}

// notVoting says of a refused ballot when the vote is, if that is why.
func (e *env) notVoting(id uint64, refused *api.Error) error {
	err := e.books(func(m *ledger.Machine, _ time.Time) error {
		if _, g, ok := m.Proposal(id); ok && g.Stage != ledger.Voting {
			if g.Stage == ledger.Notice {
				refused = api.Errorf(refused.Code, "the vote on proposal %d has not begun: it begins %s", id, clock(g.Opens))
			}
			refused = refused.WithHint("%s", clean(teller{m}.course(id, g)))
		}
		return nil
	})
	if err != nil { // then without
		e.tell("weft: %v", err)
	}
	return refused
}

type coopSupportCmd struct {
	Proposal uint64 `arg:"" help:"Its number."`
}

func (c *coopSupportCmd) Run(e *env) error {
	return e.did(&tx.Support{Proposal: c.Proposal}, "You support proposal %d.", c.Proposal)
}

type coopWithdrawCmd struct {
	Proposal uint64 `arg:"" help:"Its number."`
}

func (c *coopWithdrawCmd) Run(e *env) error {
	return e.did(&tx.Withdraw{Proposal: c.Proposal}, "Proposal %d is withdrawn.", c.Proposal)
}

type coopDelegateCmd struct {
	Member string `arg:"" help:"Who votes for you; nobody takes it back."`
	On     string `help:"Only on this kind of decision, such as tariff."`
}

func (c *coopDelegateCmd) Run(e *env) error {
	body := &tx.Delegate{}
	if c.On != "" {
		d, err := tx.ParseDecision(c.On)
		if err != nil {
			return usageError{err}
		}
		body.On = d
	}
	if c.Member != "nobody" {
		if err := e.books(func(m *ledger.Machine, _ time.Time) error {
			mb, err := findMember(m, c.Member)
			body.To = mb.ID
			return err
		}); err != nil {
			return err
		}
	}
	if c.Member == "nobody" {
		return e.did(body, "Nobody votes for you any more%s.", map[bool]string{true: " on " + c.On}[c.On != ""])
	}
	return e.did(body, "%s votes for you where you do not vote yourself%s.", clean(c.Member), map[bool]string{true: ", on " + c.On}[c.On != ""])
}

type coopBooksCmd struct{}

func (c *coopBooksCmd) Run(e *env) error {
	return e.books(func(m *ledger.Machine, now time.Time) error {
		s, funds := m.Sheet(), m.Funds()
		if e.json {
			type fund struct {
				ID      uint64 `json:"id"`
				Name    string `json:"name"`
				Balance int64  `json:"balance_ncredit"`
			}
			fs := []fund{}
			for _, f := range funds {
				fs = append(fs, fund{f.ID, f.Name, f.Balance})
			}
			return e.printJSON(map[string]any{"funds": fs, "cash_ncredit": s.Cash, "lent_ncredit": s.Lent, "owed_ncredit": s.Owed, "funds_ncredit": s.Funds,
				"capital_ncredit": s.Capital, "shares_ncredit": s.Shares, "arrears_ncredit": s.Arrears, "accounts": s.Accounts})
		}
		t := columns("FUND", ">CREDITS")
		for _, f := range funds {
			t.row(f.Name, credits(f.Balance))
		}
		t.print(e.out)
		e.say("\nIn cash and banks %s, lent to members %s, owed %s; in funds %s.", credits(s.Cash), credits(s.Lent), credits(s.Owed), credits(s.Funds))
		return nil
	})
}

// noMember says why there is no account to speak of.
func noMember(s api.Coop) error {
	switch {
	case s.State == "none":
		return api.Errorf(api.CodeBadRequest, "this node has no community").WithHint("%s", s.Why)
	case s.Height == 0:
		return api.Errorf(api.CodeBadRequest, "the ledger is %s: %s", s.State, cmp.Or(s.Why, "it has no block yet"))
	}
	return api.Errorf(api.CodeBadRequest, "you are no member yet").WithHint("a member signs for your key (weft coop sponsor KEY), then: weft coop apply --name NAME WORD")
}
