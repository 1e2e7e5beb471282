package ledger

import (
	"slices"

	"weft/ident"
	"weft/ledger/tx"
)

// A lost or stolen key is replaced by another when enough members vouch for it and the old key does not object in time. All that
// names the member by number follows by itself; all that names the old key is looked up through owner. The old key is void for
// ever. A thief who has the old key can object too: then the members decide by a vote, to which there is no objection.

// Rekeying is a new key that waits for vouches, or for its time.
type Rekeying struct {
	Member  uint64
	New     ident.PublicKey
	Since   int64    // seconds since 1970
	Vouches []uint64 // members
	Due     int64    // then it takes effect; 0: more vouches are needed
	Height  int64    // when Due was set
}

// Fields implements tx.Record.
func (r *Rekeying) Fields(c *tx.Coder) {
	c.U64(&r.Member)
	c.Key(&r.New)
	c.I64(&r.Since)
	tx.List(c, &r.Vouches, 100, (*tx.Coder).U64)
	c.I64(&r.Due)
	c.I64(&r.Height)
}

const (
	kindRekey = 'v'

	maxRekeys    = 5        // requests for one member at once
	rekeyQuiet   = 30 * day // after an objection
	fewestBlocks = 10       // between what members must see and its effect: block time jumps over a halt of the chain
)

func rekeyKey(member uint64, next ident.PublicKey) []byte { return key(kindRekey, member, next) }

func (r *Rekeying) name() []byte { return append(number(r.Member), r.New[:]...) }

func (c *call) rekeys(member uint64) (l []Rekeying) {
	c.s.Scan(key(kindRekey, member), func(_, v []byte) bool {
		var r Rekeying
		mustDecode(v, &r)
		l = append(l, r)
		return true
	})
	return l
}

// unqueueRekey removes the event that waits for r.
func (c *call) unqueueRekey(r *Rekeying) {
	if r.Due != 0 {
		c.notAt(r.Due, eventRekey, r.name())
	} else {
		c.notAt(r.Since+30*day, eventRekeyEnd, r.name())
	}
}

func (c *call) dropRekeys(member uint64) {
	for _, r := range c.rekeys(member) {
		c.unqueueRekey(&r)
		c.drop(rekeyKey(member, r.New))
	}
}

// checkRekey checks what a new key must be, whoever asks for it.
func (c *call) checkRekey(b *tx.Rekey) (Member, error) {
	m, ok := c.member(b.Member)
	if !ok {
		return m, refuse(CodeUnknown, "there is no member %d", b.Member)
	}
	if err := c.free(b.New); err != nil {
		return m, err
	}
	if !b.New.Verify(tx.RekeyDomain, tx.RekeyMessage(c.m.chain, m.ID, m.Key, b.New), b.Word) {
		return m, refuse(CodeSig, "the new key has not signed for this member")
	}
	return m, nil
}

func (c *call) rekeyVouch(from ident.PublicKey, b *tx.Rekey) error {
	p := c.params()
	v, err := c.self(from)
	if err != nil {
		return err
	}
	if v.ID == b.Member {
		return refuse(CodeForbid, "others must vouch for your new key")
	}
	m, err := c.checkRekey(b)
	if err != nil {
		return err
	}
	if c.Time < m.Quiet {
		return refuse(CodeState, "the present key has objected: put it to the vote (a rekey proposal)")
	}
	r := Rekeying{Member: m.ID, New: b.New, Since: c.Time}
	found := false
	all := c.rekeys(m.ID)
	for _, o := range all {
		if slices.Contains(o.Vouches, v.ID) {
			return refuse(CodeExists, "you vouch for a new key of this member already; take that back first")
		}
		if o.New == b.New {
			r, found = o, true
		} else if o.Due != 0 {
			return refuse(CodeState, "another new key of this member waits for its time")
		}
	}
	if !found && len(all) >= maxRekeys {
		return refuse(CodeTooMany, "%d new keys are asked for already", maxRekeys)
	}
	if len(r.Vouches) == 100 {
		return refuse(CodeTooMany, "100 members vouch already")
	}
	if err := c.useVouch(&v); err != nil {
		return err
	}
	if found {
		c.unqueueRekey(&r)
	}
	r.Vouches = append(r.Vouches, v.ID)
	if r.Due == 0 && c.rekeyVouched(&r) {
		r.Due, r.Height = c.Time+p.RekeyDelay, c.Height
	}
	c.queueRekey(&r)
	return nil
}

func (c *call) queueRekey(r *Rekeying) {
	if r.Due != 0 {
		c.at(r.Due, eventRekey, r.name())
	} else {
		c.at(r.Since+30*day, eventRekeyEnd, r.name())
	}
	c.save(rekeyKey(r.Member, r.New), r)
}

func (c *call) rekeyVouched(r *Rekeying) bool {
	var n int64
	for _, id := range r.Vouches {
		if m, _ := c.member(id); m.State == Active {
			n++
		}
	}
	return n >= c.params().RekeyVouches
}

func (c *call) rekeyUnvouch(from ident.PublicKey, b *tx.Unrekey) error {
	v, ok := c.memberByKey(from)
	if !ok {
		return refuse(CodeForbid, "only members vouch")
	}
	for _, r := range c.rekeys(b.Member) {
		i := slices.Index(r.Vouches, v.ID)
		if i < 0 {
			continue
		}
		c.unqueueRekey(&r)
		r.Vouches = slices.Delete(r.Vouches, i, i+1)
		if len(r.Vouches) == 0 {
			c.drop(rekeyKey(r.Member, r.New))
			return nil
		}
		if r.Due != 0 && !c.rekeyVouched(&r) {
			r.Due, r.Height, r.Since = 0, 0, c.Time
		}
		c.queueRekey(&r)
		return nil
	}
	return refuse(CodeUnknown, "you do not vouch for a new key of member %d", b.Member)
}

// rekeyVeto is the present key's word against all new ones.
func (c *call) rekeyVeto(from ident.PublicKey) error {
	m, ok := c.memberByKey(from)
	if !ok {
		return refuse(CodeForbid, "only a member's present key may object")
	}
	if len(c.rekeys(m.ID)) == 0 {
		return refuse(CodeState, "nobody asks for a new key of yours")
	}
	c.dropRekeys(m.ID)
	m.Quiet = c.Time + rekeyQuiet
	c.saveMember(&m)
	return nil
}

// rekeyDue gives the member the new key if it is vouched for still.
func (c *call) rekeyDue(member uint64, next ident.PublicKey) {
	var r Rekeying
	if !c.load(rekeyKey(member, next), &r) {
		return
	}
	m, _ := c.member(member)
	switch {
	case c.Height < r.Height+fewestBlocks:
		r.Due = c.Time + shortest // the chain stood still: the old key had no chance to object
		c.queueRekey(&r)
	case !c.rekeyVouched(&r) || c.free(next) != nil:
		c.drop(rekeyKey(member, next))
	default:
		c.drop(rekeyKey(member, next))
		c.moveKey(&m, next)
	}
}

// moveKey makes next the member's key. The account goes with it, but for the count of transactions, which is each key's own.
func (c *call) moveKey(m *Member, next ident.PublicKey) {
	c.dropRekeys(m.ID)
	c.dropDelegateKeys(m) // who had the old key may have named them
	old := m.Key
	c.lapse(old) // of a former member who would come back under the old key
	c.save(key(kindKey, old), &keyRole{Member: m.ID, Role: roleVoid})
	c.save(key(kindKey, next), &keyRole{Member: m.ID, Role: roleMember})
	var a, n Account
	c.load(accountKey(next), &n)
	c.load(accountKey(old), &a)
	a.Nonce, a.Window, a.Sent = n.Nonce, n.Window, n.Sent
	c.drop(accountKey(old))
	c.save(accountKey(next), &a)
	m.Key = next
	c.saveMember(m)
}
