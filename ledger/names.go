package ledger

import (
	"crypto/sha256"
	"fmt"
	"regexp"
	"strings"

	"weft/ident"
	"weft/ledger/tx"
)

// A name is a label below the community's own domain. It belongs to a member, leads to a node, and is kept by renewing it. Two names
// that look alike cannot both exist.
const (
	kindName = 'n'

	nameByLabel = 0 // second byte of the keys under kindName: label
	nameAlike   = 1 // what the label looks like; the value is the label
)

func alikeKey(label string) []byte { return key(kindName, uint8(nameAlike), lookOf(label)) }

func countNames(a *Account) *uint32 { return &a.Names }

// reserved are labels that mean something to people, to programs or to the mesh itself.
var reserved = func() map[string]bool {
	m := map[string]bool{}
	for _, l := range strings.Fields(`admin administrator alt api arpa autoconfig autodiscover bank board broadcasthost community coop
		council dns emergency example exit gateway guest help home hostmaster internal invalid isatap lan ledger local localhost mail
		mesh node ns onion pay police portal postmaster relay root router security support test treasurer treasury vote wallet weft
		webmaster wpad www`) {
		m[lookOf(l)] = true
	}
	return m
}()

// lookOf maps labels that people take for one another to the same text: digits that look like letters, letters side by side that look
// like another, and hyphens.
func lookOf(label string) string {
	var b strings.Builder
	for _, r := range label {
		switch r {
		case '0':
			r = 'o'
		case '1':
			r = 'l'
		case '5':
			r = 's'
		case '2':
			r = 'z'
		case '-':
			continue
		}
		b.WriteRune(r)
	}
	return strings.NewReplacer("rn", "m", "vv", "w", "cl", "d").Replace(b.String())
}

// CheckLabel reports whether a text may be a name: RFC 1123 section 2.1 in lower case, two characters at least, not a number,
// without two hyphens in a row (RFC 5891 gives those a meaning), and not reserved.
func CheckLabel(label string) error {
	if len(label) < 2 || len(label) > tx.MaxLabel {
		return refuse(CodeValue, "a name has 2 to %d characters", tx.MaxLabel)
	}
	number := true
	for i := range len(label) {
		switch r := label[i]; {
		case r >= 'a' && r <= 'z':
			number = false
		case r >= '0' && r <= '9':
		case r == '-' && i > 0 && i < len(label)-1 && label[i-1] != '-':
			number = false
		default:
			return refuse(CodeValue, "a name is made of the letters a to z, digits, and single hyphens between them")
		}
	}
	if number {
		return refuse(CodeValue, "a name must not be a number: programs would take it for an address")
	}
	if reserved[lookOf(label)] {
		return refuse(CodeValue, "the name %s is reserved, or looks like one that is", label)
	}
	return nil
}

// ChainID makes the id of a community's chain from its name, the day, and its founder's key, so that two that were founded with one name
// on one day differ: NAME-YYYYMMDD-XXXX.
func ChainID(name string, day string, founder ident.PublicKey) string {
	h := sha256.Sum256(founder[:])
	return fmt.Sprintf("%s-%s-%x", name, day, h[:2])
}

// Domain is the community's part of its names' domain: its name, without what ChainID puts behind it. A community that has another kind of
// id is called by all of it.
func Domain(chain string) string {
	if m := chainID.FindStringSubmatch(chain); m != nil {
		return m[1]
	}
	return chain
}

var chainID = regexp.MustCompile(`^(.+)-[0-9]{8}(?:-[0-9a-f]{4})?$`)

// ownName returns a name of from's, who is an active member.
func (c *call) ownName(from ident.PublicKey, label string) (n tx.NameEntry, err error) {
	mb, err := c.self(from)
	if err != nil {
		return n, err
	}
	if !c.load(tx.StateKeyName(label), &n) {
		return n, refuse(CodeUnknown, "there is no name %q", label)
	}
	if n.Owner != mb.ID {
		return n, refuse(CodeForbid, "the name %s is another member's", label)
	}
	return n, nil
}

func (c *call) checkTarget(node ident.PublicKey) error {
	if _, err := node.X25519(); err != nil {
		return refuse(CodeValue, "this is no node's key: %v", err)
	}
	if c.s.Get(tx.StateKeyRevocation(node)) != nil {
		return refuse(CodeState, "the node's key was revoked")
	}
	return nil
}

func (c *call) registerName(from ident.PublicKey, b *tx.NameRegister) error {
	mb, err := c.self(from)
	if err != nil {
		return err
	}
	if err := CheckLabel(b.Label); err != nil {
		return err
	}
	if err := c.checkTarget(b.Node); err != nil {
		return err
	}
	if taken := c.s.Get(alikeKey(b.Label)); taken != nil {
		var n tx.NameEntry
		c.load(tx.StateKeyName(string(taken)), &n)
		switch {
		case n.Label != b.Label:
			return refuse(CodeExists, "the name %s exists, and looks alike", n.Label)
		case n.Owner == mb.ID:
			return refuse(CodeExists, "the name is yours already: renew it, or set its node")
		case n.Offer != mb.ID:
			return refuse(CodeExists, "the name is taken")
		}
		c.forgetName(&n)
	}
	if err := c.count(from, countNames, 1, c.params().NamesPerMember, "names"); err != nil {
		return err
	}
	c.keepName(&tx.NameEntry{Label: b.Label, Owner: mb.ID, Node: b.Node, Since: c.Time})
	return nil
}

// keepName saves a name for a full term from now.
func (c *call) keepName(n *tx.NameEntry) {
	p := c.params()
	n.Until = c.Time + p.NameLife
	n.Kept = n.Until + p.NameGrace
	c.s.Set(queueKey(n.Kept, eventName, []byte(n.Label)), one)
	c.s.Set(alikeKey(n.Label), []byte(n.Label))
	c.save(tx.StateKeyName(n.Label), n)
}

// dropName removes all of a name but the event that would.
func (c *call) dropName(n *tx.NameEntry) {
	mb, _ := c.member(n.Owner)
	_ = c.count(mb.Key, countNames, -1, 0, "")
	c.drop(alikeKey(n.Label))
	c.drop(tx.StateKeyName(n.Label))
}

func (c *call) forgetName(n *tx.NameEntry) {
	c.drop(queueKey(n.Kept, eventName, []byte(n.Label)))
	c.dropName(n)
}

func (c *call) nameDue(label string) {
	var n tx.NameEntry
	c.load(tx.StateKeyName(label), &n)
	c.dropName(&n)
}

func (c *call) renewName(from ident.PublicKey, b *tx.NameRenew) error {
	n, err := c.ownName(from, b.Label)
	if err != nil {
		return err
	}
	c.drop(queueKey(n.Kept, eventName, []byte(n.Label)))
	c.keepName(&n)
	return nil
}

func (c *call) setName(from ident.PublicKey, b *tx.NameSet) error {
	n, err := c.ownName(from, b.Label)
	if err != nil {
		return err
	}
	if err := c.checkTarget(b.Node); err != nil {
		return err
	}
	n.Node = b.Node
	c.save(tx.StateKeyName(n.Label), &n)
	return nil
}

func (c *call) offerName(from ident.PublicKey, b *tx.NameOffer) error {
	n, err := c.ownName(from, b.Label)
	if err != nil {
		return err
	}
	if b.To != 0 {
		switch mb, ok := c.member(b.To); {
		case !ok || mb.State != Active:
			return refuse(CodeUnknown, "there is no active member %d", b.To)
		case mb.ID == n.Owner:
			return refuse(CodeValue, "the name is yours already")
		}
	}
	n.Offer = b.To
	c.save(tx.StateKeyName(n.Label), &n)
	return nil
}

func (c *call) releaseName(from ident.PublicKey, b *tx.NameRelease) error {
	n, err := c.ownName(from, b.Label)
	if err != nil {
		return err
	}
	c.forgetName(&n)
	return nil
}
