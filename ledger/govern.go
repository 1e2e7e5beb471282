package ledger

import (
	"encoding/binary"

	"weft/ident"
	"weft/ledger/tx"
)

// govern handles the transactions of tx/govern.go.
func (c *call) govern(t tx.Tx) (known bool, err error) {
	from := t.Sender
	switch b := t.Body.(type) {
	case *tx.Apply:
		return true, c.applyFor(from, b)
	case *tx.Vouch:
		return true, c.vouch(from, b)
	case *tx.Unvouch:
		return true, c.unvouch(from, b)
	case *tx.Leave:
		return true, c.leave(from)
	case *tx.Rename:
		return true, c.rename(from, b)
	case *tx.Delegates:
		return true, c.setDelegates(from, b)
	case *tx.Rekey:
		return true, c.rekeyVouch(from, b)
	case *tx.Unrekey:
		return true, c.rekeyUnvouch(from, b)
	case *tx.Veto:
		return true, c.rekeyVeto(from)
	case *tx.Delegate:
		return true, c.delegate(from, b)
	case *tx.Propose:
		return true, c.propose(from, b)
	case *tx.Support:
		return true, c.support(from, b)
	case *tx.Withdraw:
		return true, c.withdraw(from, b)
	case *tx.Vote:
		return true, c.vote(from, b)
	case *tx.Resign:
		return true, c.resign(from)
	}
	return false, nil
}

// rate counts a transaction of a's owner and refuses it when there are too many. There are no fees: who may send, and how
// much, is what bounds spam. A key without an account can send nothing but an application that a member has signed for; that
// word is checked here, so that nothing is stored for strangers. Former members and applicants have a quarter of a member's rate.
//
// It also brings the account's limit up to date with the bylaws before its owner can spend: a vote that changes limits need not
// touch every account. Who owes more than his new limit keeps just what he owes, and less as he pays it back.
func (c *call) rate(t tx.Tx, a *Account) error {
	p := c.params()
	most := max(p.TxPerMember/4, 1)
	var r keyRole
	switch known := c.load(key(kindKey, t.Sender), &r); {
	case known && r.Role == roleVoid:
		return refuse(CodeForbid, "this key was replaced by another: send with the new one")
	case known:
		m, _ := c.member(r.Member)
		if m.State == Active || m.State == Suspended {
			most = p.TxPerMember
		}
		if r.Role == roleMember {
			a.Limit = max(m.Limit(p), -a.Balance)
		}
	case c.s.Get(accountKey(t.Sender)) == nil:
		b, ok := t.Body.(*tx.Apply)
		if !ok {
			return refuse(CodeForbid, "only members send transactions: apply for membership first")
		}
		if _, err := c.sponsor(t.Sender, b); err != nil {
			return err
		}
	}
	if c.Time >= a.Window+p.TxWindow {
		a.Window, a.Sent = c.Time, 0
	}
	if int64(a.Sent) >= most {
		return refuse(CodeRate, "more than %d transactions in %d seconds; wait", most, p.TxWindow)
	}
	a.Sent++
	return nil
}

// due does what has fallen due at the beginning of a block.
func (c *call) due() {
	c.evidence()
	c.dueUpgrade()
	c.dueGovern()
	c.dueMoney()
	c.dueBooks()
	c.dueValidators()
}

// Events wait under kindProposal in the order of their time, kind and name. One that was handled or has become pointless is
// removed: what waits has a meaning, which checkGovern sees to.
const (
	kindProposal = 'q'

	proposalQueue    = 0 // second byte of the keys under kindProposal
	proposalCount    = 1
	proposalStatic   = 2
	proposalProgress = 3
	proposalSupport  = 4
)

// The kinds of event, in the order in which they happen at one time.
const (
	eventOpen      = 1 // a vote opens: proposal
	eventClose     = 2 // a vote closes: proposal
	eventEffect    = 3 // a passed proposal takes effect: proposal
	eventApply     = 4 // an application lapses: key
	eventRekeyEnd  = 5 // a request for a new key lapses: member, key
	eventRekey     = 6 // a new key takes effect: member, key
	eventReinstate = 7 // a suspension ends: member
	eventUnblock   = 8 // an entry of the block list ends: node
	eventPrune     = 9 // ballots are forgotten: proposal
)

// eventsPerBlock bounds the work at the beginning of a block; what is left waits for the next.
const eventsPerBlock = 200

func eventKey(at int64, what uint8, name []byte) []byte {
	return key(kindProposal, uint8(proposalQueue), uint64(at), what, name)
}

func (c *call) at(when int64, what uint8, name []byte) {
	c.s.Set(eventKey(max(when, 0), what, name), []byte{1})
}
func (c *call) notAt(when int64, what uint8, name []byte) { c.drop(eventKey(max(when, 0), what, name)) }

func number(id uint64) []byte { return binary.BigEndian.AppendUint64(nil, id) }

// dueGovern handles events whose time has come, oldest first. An event may put others into the queue, at its own time or
// later; they have their turn in the same block if they are due.
func (c *call) dueGovern() {
	for range eventsPerBlock {
		var k []byte
		c.s.Scan(key(kindProposal, uint8(proposalQueue)), func(first, _ []byte) bool {
			k = append(k, first...)
			return false
		})
		if k == nil {
			return
		}
		when, what, name := int64(binary.BigEndian.Uint64(k[2:])), k[10], k[11:]
		if when > c.Time {
			return
		}
		c.drop(k)
		switch what {
		case eventOpen:
			c.openVote(binary.BigEndian.Uint64(name))
		case eventClose:
			c.closeVote(binary.BigEndian.Uint64(name), when)
		case eventEffect:
			c.takeEffect(binary.BigEndian.Uint64(name))
		case eventApply:
			c.lapse(ident.PublicKey(name))
		case eventRekeyEnd:
			c.drop(rekeyKey(binary.BigEndian.Uint64(name), ident.PublicKey(name[8:])))
		case eventRekey:
			c.rekeyDue(binary.BigEndian.Uint64(name), ident.PublicKey(name[8:]))
		case eventReinstate:
			m, _ := c.member(binary.BigEndian.Uint64(name))
			m.Until = 0
			c.setState(&m, Active)
		case eventUnblock:
			c.unblock(ident.PublicKey(name))
		case eventPrune:
			c.prune(binary.BigEndian.Uint64(name))
		}
	}
}
