package economy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"weft/ident"
	"weft/ledger"
	"weft/ledger/tx"
	"weft/pay"
)

const (
	chainID = "economy-1"

	credit  = 1_000_000_000 // ncredit
	deposit = 20 * credit   // that each member pays in
	limit   = 50 * credit   // that each may owe

	// The tariff before and after the vote, ncredit per MiB.
	priceBefore, priceAfter       = 100_000, 80_000
	carriageBefore, carriageAfter = 5_000, 6_000
	trust                         = 10_000_000 // ncredit
)

var errDown = errors.New("the ledger is out of reach")

// chain is the real ledger; blocks are made as transactions come, and each five minutes.
type chain struct {
	w       *world
	m       *ledger.Machine
	tag     tx.Chain
	height  int64
	keeper  *ident.Agent // signs anchors, as the validators' headers do for a light client
	down    bool
	params  ledger.Params
	tariff  pay.Tariff
	members map[ident.PublicKey]bool
	anchors map[tx.TabID]anchored
	txs     uint64
	refused uint64 // replayed transactions that were refused, as they must be
	applied uint64 // … and that were not
}

// anchored is the newest proof of a tab.
type anchored struct {
	record string
	at     int64
	proof  []byte
}

// newChain founds the community: a treasurer and two others; everybody else applies with a member's word.
func newChain(w *world, all []*node) (*chain, error) {
	m, err := ledger.New(ledger.NewMem())
	if err != nil {
		return nil, err
	}
	c := &chain{w: w, m: m, tag: tx.ChainOf(chainID), keeper: w.agent(1 << 20), anchors: map[tx.TabID]anchored{}}
	g := ledger.Genesis{Chain: chainID, Time: w.now}
	for name, v := range map[string]int64{
		"member.vouches": 1, "member.vouches_each": 1000, "credit.new": limit, "tx.each": 10_000, "treasury.two_person": 1_000_000 * credit,
		"vote.notice": 0, "vote.window": hour, "tariff.price_most": priceBefore, "tariff.carriage": carriageBefore, "tariff.trust": trust, "tab.each": 10_000,
	} {
		g.Settings = append(g.Settings, tx.Setting{Name: name, Value: strconv.FormatInt(v, 10)})
	}
	slices.SortFunc(g.Settings, func(a, b tx.Setting) int { return compare(a.Name, b.Name) })
	founders := all[:3]
	for _, n := range founders {
		g.Founders = append(g.Founders, ledger.Founder{Key: n.key, Name: n.name(), Limit: limit})
	}
	if err := m.Init(g); err != nil {
		return nil, fmt.Errorf("found the community: %w", err)
	}
	for _, n := range all[3:] {
		until := w.now + day
		word := founders[0].a.Sign(tx.SponsorDomain, tx.SponsorMessage(c.tag, n.key, until))
		if _, err := c.submit(n.a, &tx.Apply{Called: n.name(), Form: tx.Household, Sponsor: founders[0].key, Until: until, Word: word}); err != nil {
			return nil, fmt.Errorf("admit %s: %w", n.name(), err)
		}
	}
	for _, n := range all {
		mb, _, ok := m.MemberByKey(n.key)
		if !ok || mb.State != ledger.Active {
			return nil, fmt.Errorf("%s is no member", n.name())
		}
		n.member = mb.ID
		if n == founders[0] { // nobody enters money for himself
			continue
		}
		if _, err := c.submit(founders[0].a, &tx.Deposit{Member: mb.ID, Amount: deposit, Reference: "cash"}); err != nil {
			return nil, fmt.Errorf("pay in for %s: %w", n.name(), err)
		}
		n.paidIn = deposit
	}
	c.block()
	return c, nil
}

// block executes transactions now, and reads what is in force since.
func (c *chain) block(txs ...[]byte) ledger.Outcome {
	c.height++
	out := c.m.Block(ledger.Header{Height: c.height, Time: c.w.now}, txs)
	if len(txs) == 0 || c.members == nil {
		c.params = c.m.Params()
		p := &c.params
		c.tariff = pay.Tariff{FreeKbit: uint32(p.FreeKbit), GuestKbit: uint32(p.GuestKbit), ExposureLeast: uint64(p.ExposureMin), ExposureMost: uint64(p.ExposureMax),
			ExposureSeconds: uint64(p.ExposureSeconds), Trust: p.Trust, PriceMost: uint32(p.PriceCap), TabLife: p.TabLife}
		c.members = map[ident.PublicKey]bool{}
		c.m.Members(func(m ledger.Member) bool {
			if m.State == ledger.Active {
				c.members[m.Key] = true
			}
			return true
		})
	}
	return out
}

// submit signs a body and executes it in a block of its own.
func (c *chain) submit(a *ident.Agent, body tx.Body) (ledger.Result, error) {
	acc, _ := c.m.Account(a.Public())
	raw, err := tx.Tx{Chain: c.tag, Nonce: acc.Nonce + 1, Expiry: c.w.now + hour, Body: body}.Sign(a)
	if err != nil {
		return ledger.Result{}, err
	}
	r := c.apply(raw)
	if r.Code == ledger.OK {
		return r, nil
	}
	return r, errors.New(r.Text)
}

func (c *chain) apply(raw []byte) ledger.Result {
	c.txs++
	return c.block(raw).Results[0]
}

// replay executes a transaction a second time.
func (c *chain) replay(raw []byte) {
	if c.apply(raw).Code == ledger.OK {
		c.applied++
	} else {
		c.refused++
	}
}

// book is the ledger as one node reaches it, a pay.Settler.
type book struct{ n *node }

// Account implements pay.Settler.
func (b *book) Account(context.Context) (tx.Account, error) {
	c := b.n.w.chain
	if c.down {
		return tx.Account{}, errDown
	}
	a, _ := c.m.Account(b.n.key)
	return a, nil
}

// Tab implements pay.Settler. A proof is made anew when the record has changed, or is a quarter of a day old.
func (b *book) Tab(_ context.Context, id tx.TabID) (tx.Tab, []byte, time.Time, error) {
	c := b.n.w.chain
	if c.down {
		return tx.Tab{}, nil, time.Time{}, errDown
	}
	t, ok := c.m.Tab(id)
	if !ok {
		return tx.Tab{}, nil, time.Time{}, pay.ErrNoTab
	}
	raw := string(tx.Encode(&t))
	p := c.anchors[id]
	if p.record != raw || c.w.now-p.at > day/4 {
		p = anchored{raw, c.w.now, binary.BigEndian.AppendUint64(nil, uint64(c.w.now))}
		p.proof = append(p.proof, raw...)
		sig := c.keeper.Sign(anchorDomain, p.proof)
		p.proof = append(p.proof, sig[:]...)
		c.anchors[id] = p
	}
	return t, p.proof, time.Unix(p.at, 0), nil
}

const anchorDomain ident.Domain = "weft/lab-anchor/1"

// verifyAnchor believes what the chain's keeper has signed.
func (c *chain) verifyAnchor(b []byte) (t tx.Tab, at time.Time, err error) {
	n := len(b) - len(ident.Signature{})
	if n < 8 || !c.keeper.Public().Verify(anchorDomain, b[:n], ident.Signature(b[n:])) {
		return t, at, errors.New("the proof does not hold")
	}
	return t, time.Unix(int64(binary.BigEndian.Uint64(b)), 0), tx.Decode(b[8:n], &t)
}

// Submit implements pay.Settler.
func (b *book) Submit(_ context.Context, body tx.Body) ([]byte, error) {
	c := b.n.w.chain
	if c.down {
		return nil, errDown
	}
	acc, _ := c.m.Account(b.n.key)
	raw, err := tx.Tx{Chain: c.tag, Nonce: acc.Nonce + 1, Expiry: c.w.now + hour, Body: body}.Sign(b.n.a)
	if err != nil {
		return nil, err
	}
	b.n.remember(raw)
	switch r := c.apply(raw); r.Code {
	case ledger.OK:
		return r.Data, nil
	case ledger.CodeExists:
		return nil, pay.ErrTaken
	default:
		return nil, errors.New(r.Text)
	}
}

// vote lets all members vote for another tariff. It holds from the block in which the last of them has voted.
func (w *world) vote() error {
	c := w.chain
	id, err := c.decide(&tx.ActTariff{Settings: []tx.Setting{
		{Name: "tariff.carriage", Value: strconv.Itoa(carriageAfter)}, {Name: "tariff.price_most", Value: strconv.Itoa(priceAfter)},
	}})
	if err != nil {
		return err
	}
	if c.params.PriceCap != priceAfter || c.params.Carriage != carriageAfter {
		p, _, _ := c.m.Proposal(id)
		return fmt.Errorf("the vote changed nothing: %+v", p)
	}
	w.votedAt, w.votedHeight = w.now, c.height
	w.attend(notice)
	return w.solidarity()
}

// decide proposes an action and lets all vote for it.
func (c *chain) decide(a tx.Action) (uint64, error) {
	r, err := c.submit(c.w.members[0].a, &tx.Propose{Title: "from today", Action: a})
	if err != nil {
		return 0, err
	}
	id := binary.BigEndian.Uint64(r.Data)
	c.block()
	for _, n := range c.w.members {
		if _, err := c.submit(n.a, &tx.Vote{Proposal: id, Choice: tx.Yes}); err != nil {
			return id, fmt.Errorf("%s votes: %w", n.name(), err)
		}
	}
	c.block()
	return id, nil
}

// solidarity puts one home on the solidarity tier, by a vote, and charges it and another by the same line of the tariff.
func (w *world) solidarity() error {
	c := w.chain
	treasurer := w.members[0]
	poor, other := w.members[len(w.members)-1], w.members[len(w.members)-2]
	if _, err := c.submit(treasurer.a, &tx.Deposit{Fund: ledger.FundSolidarity, Amount: aidFund, Reference: "street party"}); err != nil {
		return err
	}
	if _, err := c.decide(&tx.ActCredit{Member: poor.member, Grant: -1, Solidarity: w.now + 30*day}); err != nil {
		return err
	}
	line, err := tx.EncodeMeasure(&tx.SetLine{Called: "upkeep", Class: 1, Fund: ledger.FundOperating, Fee: upkeep})
	if err != nil {
		return err
	}
	if _, err := c.decide(&tx.ActBudget{Measure: line}); err != nil {
		return err
	}
	l := c.m.Lines()
	for _, n := range []*node{poor, other} {
		if _, err := c.submit(treasurer.a, &tx.Charge{Member: n.member, Line: l[len(l)-1].Line, Times: 1, Memo: "a month"}); err != nil {
			return fmt.Errorf("charge %s: %w", n.name(), err)
		}
	}
	poor.charged, other.charged = upkeep-upkeep*c.params.SolidarityPercent/1000, upkeep
	w.funded, w.aided = w.funded+aidFund, poor.charged
	return nil
}

const (
	aidFund = 10 * credit
	upkeep  = credit / 2
)
