package ledger

import (
	"fmt"

	"weft/ident"
	"weft/ledger/tx"
)

// money handles the transactions of tx/money.go.
func (c *call) money(t tx.Tx) (known bool, err error) {
	from := t.Sender
	switch b := t.Body.(type) {
	case *tx.Transfer:
		return true, c.transfer(from, b)
	case *tx.TabOpen:
		return true, c.openTab(from, b)
	case *tx.TabTopUp:
		return true, c.topUpTab(from, b)
	case *tx.TabRenew:
		return true, c.renewTab(from, b)
	case *tx.TabClaim:
		return true, c.claimTabs(b)
	case *tx.TabClose:
		return true, c.closeTab(from, b)
	case *tx.NameRegister:
		return true, c.registerName(from, b)
	case *tx.NameRenew:
		return true, c.renewName(from, b)
	case *tx.NameSet:
		return true, c.setName(from, b)
	case *tx.NameOffer:
		return true, c.offerName(from, b)
	case *tx.NameRelease:
		return true, c.releaseName(from, b)
	case *tx.NodeRegister:
		return true, c.registerNode(from, b)
	case *tx.NodeRemove:
		return true, c.removeNode(from, b)
	case *tx.NodeRevoke:
		return true, c.revokeNode(from, b)
	}
	return false, nil
}

func (c *call) transfer(from ident.PublicKey, b *tx.Transfer) error {
	if b.Amount == 0 {
		return refuse(CodeValue, "a transfer of nothing")
	}
	return c.pay(from, b.To, b.Amount, b.Memo)
}

// pay moves money between accounts. The payer may not be left below its limit. A key that a member had before counts as the
// one that it has now.
func (c *call) pay(from, to ident.PublicKey, amount int64, memo string) error {
	if from, to = c.owner(from), c.owner(to); from == to {
		return refuse(CodeValue, "payer and payee are the same")
	}
	if err := c.change(from, -amount, memo); err != nil {
		return err
	}
	return c.change(to, amount, memo)
}

// change adds amount, which may be negative, to the account of a key, and posts it. It is one side of an entry: the caller sees to
// the others. On an error nothing has changed.
func (c *call) change(k ident.PublicKey, amount int64, memo string) error {
	a, err := c.changed(k, amount)
	if err != nil {
		return err
	}
	c.save(accountKey(k), &a)
	c.post(c.holder(k), amount, memo)
	return nil
}

// changed is what the account of a key would be after change.
func (c *call) changed(k ident.PublicKey, amount int64) (a Account, err error) {
	if !c.load(accountKey(k), &a) {
		return a, refuse(CodeUnknown, "there is no account %s", k)
	}
	if a.Balance, err = add(a.Balance, amount); err != nil {
		return a, err
	}
	if amount < 0 && a.Balance < -a.Limit {
		return a, refuse(CodeFunds, "not enough money: %d ncredit are missing", -a.Limit-a.Balance)
	}
	return a, nil
}

// holder is what books call the account of a key: by the member's number, which outlives the key.
func (c *call) holder(k ident.PublicKey) string {
	var r keyRole
	if c.load(key(kindKey, k), &r) && r.Role == roleMember {
		return memberHolder(r.Member)
	}
	return "account:" + k.String()
}

func memberHolder(id uint64) string { return fmt.Sprintf("member:%d", id) }

// post notes one side of an entry.
func (c *call) post(account string, amount int64, memo string) {
	c.postings = append(c.postings, Posting{Height: c.Height, Time: c.Time, Tx: c.tx, Account: account, Amount: amount, Memo: memo})
}

// count changes one of the numbers that an account keeps of what its owner holds, and refuses to let it pass most.
func (c *call) count(k ident.PublicKey, which func(*Account) *uint32, by int, most int64, what string) error {
	var a Account
	c.load(accountKey(k), &a)
	n := which(&a)
	if by > 0 && int64(*n)+int64(by) > most {
		return refuse(CodeTooMany, "you have %d %s, which is as many as a member may have; give one up first", *n, what)
	}
	*n = uint32(int64(*n) + int64(by))
	c.save(accountKey(k), &a)
	return nil
}

// Events of this group wait in the order of their time, kind and name, or, where blocks must pass too, of their block.
const (
	kindQueue = 'T'

	queueTime   = 0 // second byte of the keys under kindQueue: time 8, kind 1, name
	queueBlock  = 1 // height 8, tab 16
	queuePayer  = 2 // no events, but indexes: member 8, tab 16
	queuePayee  = 3
	queueEpochs = 4 // number of openings of tabs so far
)

// The kinds of event.
const (
	eventTab  = 1 // a tab expires, or its closing window ends in time: tab
	eventName = 2 // a name becomes free: label
	eventNode = 3 // a registration ends: key
)

// moneyPerBlock bounds the work at the beginning of a block; what is left waits for the next.
const moneyPerBlock = 500

func queueKey(at int64, what uint8, name []byte) []byte {
	return key(kindQueue, uint8(queueTime), uint64(max(at, 0)), what, name)
}

var one = []byte{1}

// dueMoney handles tabs, names and registrations whose time has come, oldest first.
func (c *call) dueMoney() {
	for _, k := range c.ripe(queueTime, c.Time) {
		c.drop(k)
		switch name := k[11:]; k[10] {
		case eventTab:
			c.tabDue(tx.TabID(name))
		case eventName:
			c.nameDue(string(name))
		case eventNode:
			c.nodeDue(ident.PublicKey(name))
		}
	}
	for _, k := range c.ripe(queueBlock, c.Height) {
		c.drop(k)
		c.settleTab(tx.TabID(k[10:]))
	}
}

// ripe returns the oldest keys of a queue up to now.
func (c *call) ripe(queue uint8, now int64) (keys [][]byte) {
	end := string(key(kindQueue, queue, uint64(max(now, 0))))
	c.s.Scan(key(kindQueue, queue), func(k, _ []byte) bool {
		if string(k[:len(end)]) > end || len(keys) == moneyPerBlock {
			return false
		}
		keys = append(keys, append([]byte(nil), k...))
		return true
	})
	return keys
}

// moneyTotal is Σ balances + Σ earmarks. Sums wrap, as int64 does: what is equal is equal all the same.
func (m *Machine) moneyTotal() (sum int64) {
	for _, a := range list[Account](m.base, []byte{kindAccount}) {
		sum += a.Balance
	}
	for _, t := range list[tx.Tab](m.base, []byte{kindTab}) {
		sum += t.Left()
	}
	return sum
}

// checkMoney verifies accounts, tabs, names and registrations: limits, counts, and that each has the events and indexes that it
// must have and that there are no others.
func (m *Machine) checkMoney() error {
	c := m.view(Header{})
	var e complaint
	held := map[ident.PublicKey]*Account{} // what accounts should count
	of := func(id uint64) *Account {
		mb, ok := c.member(id)
		e.must(ok, "there is no member %d", id)
		if held[mb.Key] == nil {
			held[mb.Key] = &Account{}
		}
		return held[mb.Key]
	}
	waits := map[string]bool{} // the keys that must be under kindQueue
	epochs, opened := c.epochs(), map[uint32]bool{}
	for _, t := range list[tx.Tab](m.base, []byte{kindTab}) {
		of(t.PayerID).Tabs++
		waits[string(payerKey(&t))], waits[string(payeeKey(&t))] = true, true
		event := tabEvent(&t)
		if moved := blockQueueKey(&t); t.Closing() && c.s.Get(event) == nil {
			event = moved
		}
		waits[string(event)] = true
		e.must(t.Epoch > 0 && t.Epoch <= epochs && !opened[t.Epoch], "tab %s: epoch %d is not its own", t.ID, t.Epoch)
		e.must(t.PayerID != t.PayeeID && t.ID == tx.TabIDOf(m.chain, t.Payer, t.Payee, t.Number), "tab %s is not what its id says", t.ID)
		opened[t.Epoch] = true
	}
	if epochs > 0 {
		waits[string(keyEpochs)] = true
	}
	alike := map[string]bool{}
	for _, n := range list[tx.NameEntry](m.base, key(kindName, uint8(nameByLabel))) {
		of(n.Owner).Names++
		waits[string(queueKey(n.Kept, eventName, []byte(n.Label)))] = true
		alike[string(alikeKey(n.Label))] = true
		e.must(string(c.s.Get(alikeKey(n.Label))) == n.Label && n.Until < n.Kept, "name %s is not in order", n.Label)
	}
	m.base.Scan(key(kindName, uint8(nameAlike)), func(k, _ []byte) bool {
		e.must(alike[string(k)], "%q under %x is nobody's name", k, kindName)
		return true
	})
	for _, n := range list[tx.Node](m.base, key(kindNode, uint8(nodeByKey))) {
		of(n.Member).Nodes++
		waits[string(queueKey(n.Until, eventNode, n.Key[:]))] = true
		e.must(c.s.Get(tx.StateKeyRevocation(n.Key)) == nil, "node %s is registered and revoked", n.Key)
	}
	for _, r := range list[tx.Revocation](m.base, []byte{kindRevocation}) {
		of(r.Member).Revoked++
	}
	m.base.Scan([]byte{kindQueue}, func(k, _ []byte) bool {
		e.must(waits[string(k)], "%x waits for nothing", k)
		delete(waits, string(k))
		return true
	})
	e.must(len(waits) == 0, "%d events or index entries are missing", len(waits))
	m.base.Scan([]byte{kindAccount}, func(k, v []byte) bool {
		var a, want Account
		mustDecode(v, &a)
		if h := held[ident.PublicKey(k[1:])]; h != nil {
			want = *h
		}
		e.must(a.Balance >= -a.Limit, "account %x is %d below its limit", k[1:], -a.Limit-a.Balance)
		e.must(a.Tabs == want.Tabs && a.Names == want.Names && a.Nodes == want.Nodes && a.Revoked == want.Revoked,
			"account %x counts %d tabs, %d names, %d nodes, %d revocations: there are %d, %d, %d, %d",
			k[1:], a.Tabs, a.Names, a.Nodes, a.Revoked, want.Tabs, want.Names, want.Nodes, want.Revoked)
		delete(held, ident.PublicKey(k[1:]))
		return true
	})
	e.must(len(held) == 0, "%d members hold something and have no account", len(held))
	return e.err
}
