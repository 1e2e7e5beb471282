package ledger

import (
	"cmp"
	"fmt"
	"math"
	"math/bits"
	"slices"
)

// Stake is one party's claim on a sum that is divided.
type Stake struct {
	ID     uint64
	Weight uint64
	Cap    uint64 // it gets no more; NoCap: no bound
}

// NoCap is a cap that nothing reaches.
const NoCap = math.MaxUint64

// Cut is a finished division, in a form in which each stake's share can be computed by itself: so a division among many can be
// carried out a page at a time without keeping a list of shares.
type Cut struct {
	Left   uint64 // what is divided by weight, after those at their caps …
	Weight uint64 // … among stakes that weigh so much together
	Rem    uint64 // who has a larger remainder than this gets one unit more, …
	ID     uint64 // … and, at this remainder, who has a number up to this
}

// Share returns what a stake of the division gets.
func (d Cut) Share(s Stake) uint64 {
	if s.Weight == 0 {
		return 0
	}
	if !lessProduct(d.Left, s.Weight, s.Cap, d.Weight) {
		return s.Cap
	}
	q, r := mulDiv(d.Left, s.Weight, d.Weight)
	if r > d.Rem || r == d.Rem && s.ID <= d.ID {
		q++
	}
	return q
}

// Divide divides total among stakes by their weights: each gets the floor of its part, and the units left over go to the largest
// remainders, at equal remainders to the lower number. No one gets more than its cap; what a cap withholds is divided among the
// others, and what none may have is returned as rest. The shares and rest sum to total exactly. The order of the stakes is of no
// meaning. Weights must sum to less than 2⁶³.
func Divide(total uint64, stakes []Stake) (cut Cut, rest uint64, err error) {
	var weight uint64
	live := make([]Stake, 0, len(stakes))
	for _, s := range stakes {
		if s.Weight > math.MaxInt64-weight {
			return cut, 0, fmt.Errorf("the weights of %d stakes do not fit", len(stakes))
		}
		if weight += s.Weight; s.Weight > 0 {
			live = append(live, s)
		}
	}
	if total > math.MaxInt64 {
		return cut, 0, fmt.Errorf("a sum of %d does not fit", total)
	}
	// Those that reach their caps first are those with the least cap for their weight. As each leaves, more is left for the
	// others, so one pass in this order finds all.
	byID := func(a, b Stake) int { return cmp.Compare(a.ID, b.ID) }
	slices.SortFunc(live, func(a, b Stake) int {
		switch {
		case lessProduct(a.Cap, b.Weight, b.Cap, a.Weight):
			return -1
		case lessProduct(b.Cap, a.Weight, a.Cap, b.Weight):
			return 1
		}
		return byID(a, b)
	})
	left := total
	for len(live) > 0 && !lessProduct(left, live[0].Weight, live[0].Cap, weight) {
		left, weight, live = left-live[0].Cap, weight-live[0].Weight, live[1:]
	}
	cut = Cut{Left: left, Weight: weight, Rem: math.MaxUint64}
	if len(live) == 0 {
		return cut, left, nil
	}
	type rem struct{ r, id uint64 }
	rems := make([]rem, len(live))
	over := left
	for i, s := range live {
		q, r := mulDiv(left, s.Weight, weight)
		over -= q
		rems[i] = rem{r, s.ID}
	}
	slices.SortFunc(rems, func(a, b rem) int { return cmp.Or(cmp.Compare(b.r, a.r), cmp.Compare(a.id, b.id)) })
	for i := 1; i < len(rems); i++ {
		if rems[i] == rems[i-1] {
			return cut, 0, fmt.Errorf("stake %d stands there twice", rems[i].id)
		}
	}
	if over > 0 { // there are fewer units left over than stakes with a remainder
		cut.Rem, cut.ID = rems[over-1].r, rems[over-1].id
	}
	return cut, 0, nil
}

// mulDiv is a·b/c and its remainder, with 128 bits between. c is not 0 and a·b/c fits.
func mulDiv(a, b, c uint64) (q, r uint64) {
	hi, lo := bits.Mul64(a, b)
	return bits.Div64(hi, lo, c)
}

// lessProduct reports whether a·b < c·d.
func lessProduct(a, b, c, d uint64) bool {
	h1, l1 := bits.Mul64(a, b)
	h2, l2 := bits.Mul64(c, d)
	return h1 < h2 || h1 == h2 && l1 < l2
}

// permille is the floor of so many thousandths of a sum that is not negative.
func permille(amount, p int64) int64 {
	q, _ := mulDiv(uint64(amount), uint64(p), 1000)
	return int64(q)
}

// positive is a number as a weight.
func positive(v int64) uint64 { return uint64(max(v, 0)) }

// CostShare divides an upstream bill as a commons does: the same fee from everybody, and the rest by use. Weight is the use; caps
// count for nothing. The parts sum to the bill exactly. When nobody used anything, the rest is divided evenly.
func CostShare(bill, equal int64, parts []Stake) (map[uint64]int64, error) {
	n := int64(len(parts))
	if n == 0 || bill < 0 || equal < 0 || equal > bill/n {
		return nil, fmt.Errorf("a bill of %d cannot be divided among %d who pay at least %d each", bill, n, equal)
	}
	used := false
	for _, s := range parts {
		used = used || s.Weight > 0
	}
	stakes := make([]Stake, n)
	for i, s := range parts {
		stakes[i] = Stake{s.ID, s.Weight, NoCap}
		if !used {
			stakes[i].Weight = 1
		}
	}
	cut, _, err := Divide(uint64(bill-equal*n), stakes)
	if err != nil {
		return nil, err
	}
	out := make(map[uint64]int64, n)
	for _, s := range stakes {
		if _, twice := out[s.ID]; twice {
			return nil, fmt.Errorf("member %d stands there twice", s.ID)
		}
		out[s.ID] = equal + int64(cut.Share(s))
	}
	return out, nil
}
