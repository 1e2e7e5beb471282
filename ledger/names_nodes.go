package ledger

import (
	"weft/ident"
	"weft/ledger/tx"
)

// Nodes are registered as a member's, so that others know whose they are and on what terms they serve. A node's key is revoked for
// ever; a blocked node (members' vote) is another thing and can come back.
const (
	kindNode       = 'g'
	kindRevocation = 'r'

	nodeByKey = 0 // second byte of the keys under kindNode
)

// maxRevoked bounds what one member can put into the state for ever.
const maxRevoked = 100

func countNodes(a *Account) *uint32   { return &a.Nodes }
func countRevoked(a *Account) *uint32 { return &a.Revoked }

func (c *call) registerNode(from ident.PublicKey, b *tx.NodeRegister) error {
	p := c.params()
	mb, err := c.self(from)
	if err != nil {
		return err
	}
	if b.Until <= c.Time || b.Until > c.Time+p.NodeLife {
		return refuse(CodeValue, "a node is registered for up to %d days from now (node.life)", p.NodeLife/day)
	}
	if int64(b.Price) > p.PriceCap {
		return refuse(CodeValue, "a price of %d ncredit/MiB is more than the members allow: %d (tariff.price_most)", b.Price, p.PriceCap)
	}
	if err := c.checkTarget(b.Node); err != nil {
		return err
	}
	n := tx.Node{Key: b.Node, Since: c.Time}
	switch c.load(tx.StateKeyNode(b.Node), &n); {
	case n.Member == mb.ID: // the node has agreed before
		c.drop(queueKey(n.Until, eventNode, b.Node[:]))
	case n.Member != 0:
		return refuse(CodeExists, "the node is registered as another member's: let him remove it first")
	default:
		if err := c.count(from, countNodes, 1, p.NodesPerMember, "nodes"); err != nil {
			return err
		}
		if b.Node != from && !b.Node.Verify(tx.NodeDomain, tx.NodeMessage(c.m.chain, mb.ID, b.Node), b.Word) {
			return refuse(CodeSig, "the node has not agreed to be yours")
		}
		if c.s.Get(accountKey(b.Node)) == nil { // so that a gateway can claim without its owner's key
			c.save(accountKey(b.Node), &Account{})
		}
	}
	n.Member, n.Roles, n.Price, n.Terms, n.Contact, n.Until = mb.ID, b.Roles, b.Price, b.Terms, b.Contact, b.Until
	c.s.Set(queueKey(n.Until, eventNode, n.Key[:]), one)
	c.save(tx.StateKeyNode(n.Key), &n)
	return nil
}

func (c *call) removeNode(from ident.PublicKey, b *tx.NodeRemove) error {
	var n tx.Node
	if !c.load(tx.StateKeyNode(b.Node), &n) {
		return refuse(CodeUnknown, "this node is not registered")
	}
	if mb, ok := c.memberByKey(from); !ok || mb.ID != n.Member {
		return refuse(CodeForbid, "the node is registered as another member's")
	}
	c.drop(queueKey(n.Until, eventNode, n.Key[:]))
	c.dropNode(&n)
	return nil
}

// dropNode removes all of a registration but the event that would. The account that came with it goes too if nothing of it matters any
// more: it is empty, and what its key has sent has run out, so that a nonce that begins anew lets nothing in twice.
func (c *call) dropNode(n *tx.Node) {
	mb, _ := c.member(n.Member)
	_ = c.count(mb.Key, countNodes, -1, 0, "")
	c.drop(tx.StateKeyNode(n.Key))
	var a Account
	if c.s.Get(key(kindKey, n.Key)) == nil && c.load(accountKey(n.Key), &a) && a.Balance == 0 && a.Window < c.Time-maxLife-hour {
		c.drop(accountKey(n.Key))
	}
}

func (c *call) nodeDue(k ident.PublicKey) {
	var n tx.Node
	c.load(tx.StateKeyNode(k), &n)
	c.dropNode(&n)
}

func (c *call) revokeNode(from ident.PublicKey, b *tx.NodeRevoke) error {
	mb, err := c.self(from)
	if err != nil {
		return err
	}
	if c.s.Get(tx.StateKeyRevocation(b.Node)) != nil {
		return refuse(CodeExists, "this key is revoked already")
	}
	if _, ok := c.memberByKey(b.Node); ok {
		return refuse(CodeState, "this key is a member's: change it first (rekey), then revoke it")
	}
	var n tx.Node
	registered := c.load(tx.StateKeyNode(b.Node), &n)
	// A key that the sender had before is his, and only his old key can be void.
	mine := registered && n.Member == mb.ID || c.owner(b.Node) == from
	if !mine && !b.Node.Verify(tx.RevokeDomain, tx.RevokeMessage(c.m.chain, b.Node), b.Word) {
		return refuse(CodeSig, "the node is not registered as yours, and its key has not signed for its revocation")
	}
	if err := c.count(from, countRevoked, 1, maxRevoked, "revocations"); err != nil {
		return err
	}
	if registered {
		c.drop(queueKey(n.Until, eventNode, n.Key[:]))
		c.dropNode(&n)
	}
	c.save(tx.StateKeyRevocation(b.Node), &tx.Revocation{Key: b.Node, Member: mb.ID, Time: c.Time, Height: c.Height, Reason: b.Reason})
	return nil
}
