package ledger

import (
	"bytes"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"

	"weft/ledger/tx"
)

// Report is what an audit found.
type Report struct {
	Blocks, Txs, Entries int
	Height               int64
	Periods              int // whose division was computed anew
	Balances             []Balance
	Differences          []string // none: the books are right
	Machine              *Machine // the replayed state
	shadow               shadow
}

// OK reports whether the books are right.
func (r *Report) OK() bool { return len(r.Differences) == 0 }

func (r *Report) differ(format string, args ...any) {
	if len(r.Differences) < 1000 {
		r.Differences = append(r.Differences, fmt.Sprintf(format, args...))
	}
}

// Audit replays a chain from its genesis and computes every balance and every division of a surplus a second time, from postings
// alone, by other code. It compares them with what the machine has, and the machine's state with live, the state of a running node
// at the same height; live may be nil. next returns the blocks in order.
//
// Of the machine's records the second computation takes only what is no amount: the dates and bylaws of fiscal periods, and whether
// the funds could pay.
func Audit(g Genesis, next func() (Header, [][]byte, bool), live Store) (Report, error) {
	var r Report
	store := NewMem()
	m, err := New(store)
	if err != nil {
		return r, err
	}
	if err := m.Init(g); err != nil {
		return r, fmt.Errorf("the genesis: %w", err)
	}
	r.Machine = m
	r.shadow = shadow{balance: map[string]int64{}, periods: map[uint64]*shadowPeriod{}}
	n := &r.shadow
	for {
		h, txs, more := next()
		if !more {
			break
		}
		if h.Height <= r.Height {
			return r, fmt.Errorf("block %d comes after block %d", h.Height, r.Height)
		}
		out := m.Block(h, txs)
		r.Blocks, r.Txs, r.Height = r.Blocks+1, r.Txs+len(txs), h.Height
		for _, e := range JournalEntries(out.Postings) {
			r.Entries++
			var money, claims int64
			for _, p := range e {
				if isClaim(p.Account) {
					claims += p.Amount
				} else {
					money += p.Amount
				}
				n.post(p)
			}
			if money != 0 || claims != 0 {
				r.differ("block %d, transaction %d: an entry sums to %d, and %d in claims", h.Height, e[0].Tx, money, claims)
			}
		}
	}
	if err := m.Check(); err != nil {
		r.differ("the state: %v", err)
	}
	n.compare(&r)
	n.divide(&r)
	if live != nil {
		var have, want []string
		read := func(s Store) (keys []string) {
			s.Scan(nil, func(k, v []byte) bool { keys = append(keys, string(k)); return true })
			return keys
		}
		have, want = read(live), read(store)
		for _, k := range want {
			if a, b := live.Get([]byte(k)), store.Get([]byte(k)); !bytes.Equal(a, b) {
				r.differ("record %x of the node is %x; it should be %x", k, a, b)
			}
		}
		for _, k := range have {
			if store.Get([]byte(k)) == nil {
				r.differ("record %x of the node should not be there", k)
			}
		}
	}
	return r, nil
}

// shadow is the second, simple book-keeping: sums of postings.
type shadow struct {
	balance map[string]int64
	shares  []Posting
	periods map[uint64]*shadowPeriod
}

type shadowPeriod struct {
	class                      [tx.Classes + 1]struct{ paid, aid, others, bytes, member, other, both int64 }
	paid, bytes                map[uint64]*[tx.Classes + 1]int64
	refund, retained, interest map[uint64]int64
}

func (n *shadow) post(p Posting) {
	n.balance[p.Account] += p.Amount
	if strings.HasPrefix(p.Account, "shares:") {
		n.shares = append(n.shares, p)
	}
	k := p.Mark
	if k.What == 0 || k.What == MarkRetired {
		return
	}
	s := n.periods[k.Period]
	if s == nil {
		s = &shadowPeriod{paid: map[uint64]*[tx.Classes + 1]int64{}, bytes: map[uint64]*[tx.Classes + 1]int64{}, refund: map[uint64]int64{}, retained: map[uint64]int64{}, interest: map[uint64]int64{}}
		n.periods[k.Period] = s
	}
	c := &s.class[k.Class]
	c.bytes += k.Bytes
	switch k.What {
	case MarkPaid:
		c.paid += p.Amount
		if s.paid[k.Member] == nil {
			s.paid[k.Member], s.bytes[k.Member] = new([tx.Classes + 1]int64), new([tx.Classes + 1]int64)
		}
		s.paid[k.Member][k.Class] += p.Amount
		s.bytes[k.Member][k.Class] += k.Bytes
	case MarkAid:
		c.aid += p.Amount
	case MarkOthers:
		c.others += p.Amount
	case MarkCostMember:
		c.member -= p.Amount
	case MarkCostOthers:
		c.other -= p.Amount
	case MarkCostBoth:
		c.both -= p.Amount
	case MarkRefund:
		s.refund[k.Member] += p.Amount
	case MarkRetained:
		s.retained[k.Member] += p.Amount
	case MarkInterest:
		s.interest[k.Member] += p.Amount
	}
}

// compare holds the machine's balances against the sums of postings.
func (n *shadow) compare(r *Report) {
	r.Balances = r.Machine.TrialBalance()
	seen := map[string]bool{}
	for _, b := range r.Balances {
		seen[b.Account] = true
		if v := n.balance[b.Account]; v != b.Amount {
			r.differ("%s is at %d; its postings sum to %d", b.Account, b.Amount, v)
		}
	}
	for _, a := range slices.Sorted(maps.Keys(n.balance)) {
		if !seen[a] && n.balance[a] != 0 {
			r.differ("%s is at 0; its postings sum to %d", a, n.balance[a])
		}
	}
}

// part is one party in the simple division.
type part struct {
	id        uint64
	weight    int64
	most, got *big.Int // most: nil for no bound
	rem       *big.Int
}

// share divides by the definition: whoever's exact part reaches its bound gets the bound; the others get the floors of their parts,
// and what is left goes out one by one to the largest fractions, at equal ones to the lower number.
func share(total int64, parts []*part) (rest int64) {
	left := big.NewInt(total)
	open := slices.DeleteFunc(slices.Clone(parts), func(p *part) bool { p.got = new(big.Int); return p.weight <= 0 })
	for {
		weight := new(big.Int)
		for _, p := range open {
			weight.Add(weight, big.NewInt(p.weight))
		}
		var below []*part
		now := new(big.Int).Set(left)
		for _, p := range open {
			exact := new(big.Int).Mul(now, big.NewInt(p.weight))
			if p.most != nil && exact.Cmp(new(big.Int).Mul(p.most, weight)) >= 0 {
				p.got.Set(p.most)
				left.Sub(left, p.most)
			} else {
				below = append(below, p)
			}
		}
		if len(below) == len(open) {
			if len(open) == 0 {
				return left.Int64()
			}
			for _, p := range open {
				p.rem = new(big.Int)
				p.got.QuoRem(new(big.Int).Mul(now, big.NewInt(p.weight)), weight, p.rem)
				left.Sub(left, p.got)
			}
			slices.SortFunc(open, func(a, b *part) int {
				if c := b.rem.Cmp(a.rem); c != 0 {
					return c
				}
				if a.id < b.id {
					return -1
				}
				return 1
			})
			for i := range left.Int64() {
				open[i].got.Add(open[i].got, big.NewInt(1))
			}
			return 0
		}
		open = below
	}
}

func thousandths(v, p int64) int64 {
	x := new(big.Int).Mul(big.NewInt(v), big.NewInt(p))
	return x.Quo(x, big.NewInt(1000)).Int64()
}

// divide computes the division of each period whose books are closed anew, and compares.
func (n *shadow) divide(r *Report) {
	var carry [tx.Classes + 1]int64
	for _, p := range r.Machine.Periods() {
		if p.State != PeriodFinished && p.State != PeriodPaying {
			continue
		}
		r.Periods++
		s := n.periods[p.ID]
		if s == nil {
			s = &shadowPeriod{}
		}
		members, others := s.margins(&p.Rules)
		if others != p.Others {
			r.differ("period %d: the margin with non-members is %d, not %d", p.ID, others, p.Others)
		}
		groups := []int{0}
		if p.Rules.Pooled != 1 {
			groups = groups[:0]
			for class := 1; class <= tx.Classes; class++ {
				if members[class] != 0 || carry[class] != 0 {
					groups = append(groups, class)
				}
			}
		} else {
			for _, v := range members[1:] {
				members[0] += v
			}
		}
		if len(groups) != len(p.Groups) {
			r.differ("period %d: %d surpluses, not %d", p.ID, len(groups), len(p.Groups))
			continue
		}
		want := map[uint64]*Allotment{}
		of := func(id uint64) *Allotment {
			if want[id] == nil {
				want[id] = &Allotment{Member: id}
			}
			return want[id]
		}
		// Interest on what each held all through the period.
		interest := int64(0)
		if p.Interest > 0 {
			for id, v := range n.heldThrough(p.Start, p.End) {
				x := new(big.Int).Mul(big.NewInt(v), big.NewInt(p.Rules.Interest*p.Rules.Months))
				if a := x.Quo(x, big.NewInt(12_000)).Int64() / p.Rules.Minor * p.Rules.Minor; a > 0 {
					of(id).Interest = a
					interest += a
				}
			}
		}
		if interest != p.Interest {
			r.differ("period %d: share interest is %d, not %d", p.ID, interest, p.Interest)
		}
		var gains []*part
		for _, class := range groups {
			g := &part{id: uint64(class), got: new(big.Int)}
			if m := members[class]; m > 0 {
				g.weight = m - min(carry[class], m)
				g.most = big.NewInt(g.weight)
			}
			gains = append(gains, g)
		}
		share(interest, gains)
		minor := p.Rules.Minor
		for i, class := range groups {
			g, m := p.Groups[i], members[class]
			if g.Margin != m || int(g.Class) != class {
				r.differ("period %d, class %d: the margin is %d, not %d", p.ID, class, m, g.Margin)
				continue
			}
			parts, total := s.stakes(class, &p.Rules, m < 0), int64(0)
			if m < 0 {
				lost := -m
				switch {
				case p.Rules.Loss == LossReserve:
					lost += g.Reserve
				case p.Rules.Loss == LossMembers && slices.ContainsFunc(parts, func(p *part) bool { return p.weight > 0 }):
					share(lost/minor, parts)
					total = -(lost / minor * minor)
					lost += total
				}
				carry[class] += lost
			} else {
				base := gains[i].weight - gains[i].got.Int64()
				carry[class] -= m - gains[i].weight
				reserve, solidarity := thousandths(base, p.Rules.Reserve)/minor*minor, thousandths(base, p.Rules.Solidarity)/minor*minor
				left := base - reserve - solidarity
				if p.Rules.Lock == 1 {
					left = 0
				}
				total = left / minor
				total = (total - share(total, parts)) * minor
				if solidarity != g.Solidarity {
					r.differ("period %d, class %d: %d go to solidarity, not %d", p.ID, class, solidarity, g.Solidarity)
				}
			}
			if total != g.Alloc {
				r.differ("period %d, class %d: %d are allocated, not %d", p.ID, class, total, g.Alloc)
			}
			sum := int64(0)
			for _, x := range parts {
				v := x.got.Int64()
				if v == 0 || total == 0 {
					continue
				}
				a := of(x.id)
				if total < 0 {
					v = -v
				} else if !p.NoCash {
					a.Cash += thousandths(v, p.Rules.Cash) * minor
				}
				a.Share += v * minor
				sum += v * minor
			}
			if sum != total {
				r.differ("period %d, class %d: the shares sum to %d, not to %d", p.ID, class, sum, total)
			}
		}
		if p.State != PeriodFinished {
			continue
		}
		for _, id := range slices.Sorted(maps.Keys(want)) {
			a := want[id]
			if a.Cash < p.Rules.CashLeast {
				a.Cash = 0
			}
			a.Retained = a.Share - a.Cash
			got, _ := r.Machine.Allotment(p.ID, id)
			got.Member = id
			if got != *a {
				r.differ("period %d, member %d: the books have %+v; it comes to %+v", p.ID, id, got, *a)
			}
			if s.refund[id] != a.Cash || s.retained[id] != a.Retained || s.interest[id] != a.Interest {
				r.differ("period %d, member %d: %d, %d and %d were booked as refund, capital and interest; it comes to %+v", p.ID, id, s.refund[id], s.retained[id], s.interest[id], *a)
			}
		}
		for _, got := range r.Machine.Allotments(p.ID) {
			if want[got.Member] == nil {
				r.differ("period %d: member %d got %+v, and has no part", p.ID, got.Member, got)
			}
		}
	}
}

// stakes are the members' claims by the bylaws' basis.
func (s *shadowPeriod) stakes(class int, r *Rules, loss bool) (l []*part) {
	for _, id := range slices.Sorted(maps.Keys(s.paid)) {
		x := &part{id: id, got: new(big.Int)}
		var paid, bytes int64
		for c := range s.paid[id] {
			if class == 0 || c == class {
				paid += s.paid[id][c]
				bytes += s.bytes[id][c]
			}
		}
		if x.weight = max(paid, 0); r.Basis == BasisBytes {
			x.weight = max(bytes, 0)
		}
		if !loss {
			x.most = big.NewInt(max(paid, 0) / r.Minor)
		}
		l = append(l, x)
	}
	return l
}

// margins divides what classes and kinds of business share.
func (s *shadowPeriod) margins(r *Rules) (members [tx.Classes + 1]int64, others int64) {
	class := s.class
	for _, kind := range []int{0, 1, 2} {
		pick := func(i int) *int64 { return [3]*int64{&class[i].member, &class[i].other, &class[i].both}[kind] }
		cost := *pick(0)
		var parts []*part
		some := false
		for i := 1; i <= tx.Classes; i++ {
			in := class[i].paid + class[i].aid + class[i].others
			w := max(in, 0)
			if r.SharedBy == SharedBytes {
				w = max(class[i].bytes, 0)
			} else if r.SharedBy == SharedEqual {
				w = min(w, 1)
			}
			some = some || w > 0
			parts = append(parts, &part{id: uint64(i), weight: w})
		}
		if !some {
			parts[0].weight = 1
		}
		if cost < 0 {
			*pick(1) += cost
		} else {
			share(cost, parts)
			for i, x := range parts {
				*pick(i + 1) += x.got.Int64()
			}
		}
	}
	for i := 1; i <= tx.Classes; i++ {
		c := class[i]
		in := c.paid + c.aid
		both := []*part{{id: 1, weight: max(in, 0)}, {id: 2, weight: max(c.others, 0)}}
		if in <= 0 && c.others <= 0 {
			both[0].weight = 1
		}
		if c.both < 0 {
			c.member += c.both
			c.both = 0
		}
		share(c.both, both)
		members[i] = in - c.member - both[0].got.Int64()
		others += c.others - c.other - both[1].got.Int64()
	}
	return members, others
}

// heldThrough is what each member had paid up in shares all through a time.
func (n *shadow) heldThrough(start, end int64) map[uint64]int64 {
	held, low := map[uint64]int64{}, map[uint64]int64{}
	for _, p := range n.shares {
		var id uint64
		if _, err := fmt.Sscanf(p.Account, "shares:%d", &id); err != nil || p.Time >= end {
			continue
		}
		if p.Time >= start {
			if _, ok := low[id]; !ok {
				low[id] = held[id]
			}
		}
		if held[id] += p.Amount; p.Time >= start {
			low[id] = min(low[id], held[id])
		}
	}
	for id, v := range held {
		if _, ok := low[id]; !ok {
			low[id] = v
		}
	}
	return low
}
