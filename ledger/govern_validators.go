package ledger

import (
	"bytes"
	"slices"

	"weft/ident"
	"weft/ledger/tx"
)

// Validators sign blocks; each has one power. Members vote them in and out, an operator may resign, and who is proven to have
// signed two blocks at one height is out at once, until a vote lets it return. There is always one. Voted changes wait in a
// queue from which each block takes less than a third of the set (one, where a third is less), so that light clients that skip
// blocks can follow.

// Validator is a voting member of the engine. The record stays when it has left the set, as evidence may come late.
type Validator struct {
	Key      ident.PublicKey // consensus key
	Operator uint64          // member
	Node     ident.PublicKey // the node that it runs on: its address in the mesh
	Power    uint8           // 1; 0: no longer in the set
	Since    int64           // of Power, seconds since 1970
	Guilty   int64           // height at which it signed twice; 0: never
}

// Fields implements tx.Record.
func (v *Validator) Fields(c *tx.Coder) {
	c.Key(&v.Key)
	c.U64(&v.Operator)
	c.Key(&v.Node)
	c.U8(&v.Power)
	c.I64(&v.Since)
	c.I64(&v.Guilty)
}

const kindValidator = 'w'

// validatorSet counts validators, and changes that wait: those numbered Head to Tail-1.
type validatorSet struct{ N, Head, Tail uint64 }

func (s *validatorSet) Fields(c *tx.Coder) {
	c.U64(&s.N)
	c.U64(&s.Head)
	c.U64(&s.Tail)
}

// waiting is a change in the queue.
type waiting struct{ tx.ValidatorChange }

func (w *waiting) Fields(c *tx.Coder) {
	c.Key(&w.Key)
	c.Bool(&w.Remove)
	c.U64(&w.Operator)
	c.Key(&w.Node)
}

var keyValidators = key(kindValidator, uint8(0))

func validatorKey(k ident.PublicKey) []byte { return key(kindValidator, uint8(1), k) }
func waitingKey(n uint64) []byte            { return key(kindValidator, uint8(2), n) }

func (c *call) validatorSet() (s validatorSet) {
	c.load(keyValidators, &s)
	return s
}

func (c *call) checkValidators(a *tx.ActValidators) error {
	if len(a.Changes) == 0 {
		return refuse(CodeValue, "no validator is named")
	}
	n := int64(c.validatorSet().N)
	for i, ch := range a.Changes {
		for _, o := range a.Changes[:i] {
			if o.Key == ch.Key {
				return refuse(CodeValue, "validator %s is named twice", ch.Key)
			}
		}
		var v Validator
		c.load(validatorKey(ch.Key), &v)
		switch {
		case ch.Remove && v.Power == 0:
			return refuse(CodeUnknown, "%s is not a validator", ch.Key)
		case ch.Remove:
			n--
		case v.Power != 0:
			return refuse(CodeExists, "%s is a validator already", ch.Key)
		case ch.Key.IsZero() || ch.Node.IsZero():
			return refuse(CodeValue, "a validator needs its consensus key and the key of its node")
		default:
			if m, ok := c.member(ch.Operator); !ok || m.State != Active {
				return refuse(CodeState, "the operator, member %d, is not an active member", ch.Operator)
			}
			n++
		}
	}
	if n < 1 {
		return refuse(CodeState, "one validator must remain")
	}
	if most := c.params().Validators; n > most {
		return refuse(CodeTooMany, "there would be %d validators: at most %d (validators.most)", n, most)
	}
	return nil
}

// queueValidators puts changes into the queue, additions first so that the set need not pass through nothing.
func (c *call) queueValidators(a *tx.ActValidators) {
	s := c.validatorSet()
	for _, remove := range []bool{false, true} {
		for _, ch := range a.Changes {
			if ch.Remove == remove {
				c.save(waitingKey(s.Tail), &waiting{ch})
				s.Tail++
			}
		}
	}
	c.save(keyValidators, &s)
}

// dueValidators takes from the queue what this block may change.
func (c *call) dueValidators() {
	s := c.validatorSet()
	if s.Head == s.Tail {
		return
	}
	before := s.Head
	for may := max(1, (int64(s.N)-1)/3); may > 0 && s.Head < s.Tail; s.Head++ {
		var w waiting
		c.load(waitingKey(s.Head), &w)
		c.drop(waitingKey(s.Head))
		var v Validator
		c.load(validatorKey(w.Key), &v)
		op, _ := c.member(w.Operator)
		switch { // anything may have happened since it was decided
		case w.Remove && (v.Power == 0 || s.N == 1), !w.Remove && (v.Power != 0 || op.State != Active || int64(s.N) >= c.params().Validators):
			continue
		case w.Remove:
			v.Power = 0
			s.N--
		default:
			v = Validator{Key: w.Key, Operator: w.Operator, Node: w.Node, Power: 1, Guilty: v.Guilty}
			s.N++
		}
		may--
		v.Since = c.Time
		c.saveValidator(&v)
	}
	if s.Head != before {
		c.save(keyValidators, &s)
	}
}

func (c *call) saveValidator(v *Validator) {
	c.save(validatorKey(v.Key), v)
	c.touched = append(c.touched, v.Key)
}

// dismiss takes a validator out of the set, unless it is the only one.
func (c *call) dismiss(v *Validator) bool {
	s := c.validatorSet()
	if v.Power == 0 || s.N <= 1 {
		return false
	}
	s.N--
	c.save(keyValidators, &s)
	v.Power, v.Since = 0, c.Time
	c.saveValidator(v)
	return true
}

func (c *call) validators() (l []Validator) {
	c.s.Scan(key(kindValidator, uint8(1)), func(_, b []byte) bool {
		var v Validator
		mustDecode(b, &v)
		l = append(l, v)
		return true
	})
	return l
}

// resignAll takes a member's validators out of the set.
func (c *call) resignAll(member uint64) error {
	for _, v := range c.validators() {
		if v.Operator == member && v.Power != 0 && !c.dismiss(&v) {
			return refuse(CodeState, "member %d runs the last validator: vote in another one first", member)
		}
	}
	return nil
}

func (c *call) resign(from ident.PublicKey) error {
	m, ok := c.memberByKey(from)
	if !ok {
		return refuse(CodeForbid, "only members run validators")
	}
	if !slices.ContainsFunc(c.validators(), func(v Validator) bool { return v.Operator == m.ID && v.Power != 0 }) {
		return refuse(CodeUnknown, "you run no validator")
	}
	return c.resignAll(m.ID)
}

// evidence answers to proofs of signing twice: out of the set, and a mark in the register. Evidence comes more than once.
func (c *call) evidence() {
	for _, e := range c.Evidence {
		var v Validator
		if !c.load(validatorKey(e.Validator), &v) || v.Guilty >= e.Height {
			continue
		}
		v.Guilty = e.Height
		if !c.dismiss(&v) {
			c.saveValidator(&v)
		}
		if m, ok := c.member(v.Operator); ok && m.Flags&FlagDoubleSigned == 0 {
			m.Flags |= FlagDoubleSigned
			c.saveMember(&m)
		}
	}
}

// validatorChanges returns what the block changed in the validator set, sorted by key.
func (c *call) validatorChanges() []Power {
	slices.SortFunc(c.touched, func(a, b ident.PublicKey) int { return bytes.Compare(a[:], b[:]) })
	var l []Power
	for _, k := range slices.Compact(c.touched) {
		var was, is Validator
		load(c.m.base, validatorKey(k), &was)
		if c.load(validatorKey(k), &is); was.Power != is.Power {
			l = append(l, Power{k, int64(is.Power)})
		}
	}
	return l
}
