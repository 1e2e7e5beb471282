package ledger

import (
	"errors"
	"fmt"

	"weft/ident"
	"weft/ledger/tx"
)

// Genesis is the first state of a community.
type Genesis struct {
	Chain    string // id; never used twice
	Time     int64  // seconds since 1970
	Founders []Founder
	Settings []tx.Setting // where the bylaws differ from DefaultParams
	// Validators are the first ones; their operators are founders, numbered from 1 in their order.
	Validators []FirstValidator
}

// FirstValidator is a validator from the first block on.
type FirstValidator struct {
	Key      ident.PublicKey // consensus key
	Operator uint64
	Node     ident.PublicKey // the node that it runs on
}

// Founder is a member from the first block on.
type Founder struct {
	Key   ident.PublicKey
	Name  string
	Limit int64
}

// Fields implements tx.Record.
func (g *Genesis) Fields(c *tx.Coder) {
	c.Text(&g.Chain, 50)
	c.I64(&g.Time)
	tx.List(c, &g.Founders, 100, func(c *tx.Coder, f *Founder) {
		c.Key(&f.Key)
		c.Text(&f.Name, 60)
		c.Amount(&f.Limit)
	})
	tx.List(c, &g.Settings, 1000, func(c *tx.Coder, s *tx.Setting) { s.Fields(c) })
	tx.List(c, &g.Validators, 100, func(c *tx.Coder, v *FirstValidator) {
		c.Key(&v.Key)
		c.U64(&v.Operator)
		c.Key(&v.Node)
	})
}

// Init writes the first state into an empty store.
func (m *Machine) Init(g Genesis) error {
	if m.base.Get(keyChain) != nil {
		return errors.New("the ledger has begun already")
	}
	if g.Chain == "" || len(g.Founders) == 0 {
		return errors.New("a community needs a chain id and a founder")
	}
	c := &call{m: m, Header: Header{Time: g.Time}, s: newOverlay(m.base), tx: -1}
	c.s.Set(keyChain, []byte(g.Chain))
	m.chain = tx.ChainOf(g.Chain)
	if err := c.beginGovern(g); err != nil {
		return err
	}
	form := tx.Person
	if c.params().Forms == FormsHouseholds {
		form = tx.Household // the bylaws know no other: who founds stands for a household
	}
	for _, f := range g.Founders {
		if c.s.Get(accountKey(f.Key)) != nil {
			return fmt.Errorf("founder %s stands there twice", f.Key)
		}
		c.enroll(Member{Key: f.Key, Name: f.Name, Form: form, Founder: true, Grant: f.Limit})
	}
	if err := c.beginOffices(g); err != nil {
		return err
	}
	c.beginBooks()
	c.s.flush()
	return m.Check()
}

// Check verifies all invariants of the state. It reads everything: for tests, audits and after a restore.
func (m *Machine) Check() error {
	if sum := m.moneyTotal() + m.booksTotal(); sum != 0 {
		return fmt.Errorf("balances, earmarks and funds differ by %d from deposits less withdrawals", sum)
	}
	for _, check := range []func() error{m.checkMoney, m.checkGovern, m.checkBooks} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}
