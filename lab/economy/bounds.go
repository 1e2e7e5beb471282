package economy

import (
	"fmt"
	"slices"
	"time"

	"weft/ledger"
	"weft/pay"
)

// The bounds of docs/spec/pay.md section 7, with this world's step in place of the program's tick of 250 ms.
const (
	programTick = 250 * time.Millisecond
	detect      = pay.DetectTime - programTick + Step
	meterKept   = 10 * time.Second // meter.md section 7: what a loss of power costs
	gapSeen     = 20 * time.Second // meter.md section 5: two windows
)

func cost(counts [periods]uint64, prices [periods]uint32) (n int64) {
	for i, b := range counts {
		n += pay.Cost(b, prices[i])
	}
	return n
}

// prices by period: the least and the most that could hold in it.
func (a *account) prices() (least, most [periods]uint32) {
	before, after := uint32(priceBefore), uint32(priceAfter)
	if a.service == pay.Carriage {
		before, after = carriageBefore, carriageAfter
	}
	return [...]uint32{before, min(before, after), after}, [...]uint32{before, max(before, after), after}
}

func total(c [periods]uint64) (n uint64) {
	for _, b := range c {
		n += b
	}
	return n
}

// outcome is what became of an account. Money is in ncredit.
type outcome struct {
	*account
	value    int64 // of what the payee carried
	booked   int64 // promised by vouchers that the payee holds
	signed   int64
	forgiven int64
	owed     int64

	payeeLoss, freeTier, payeeBound int64
	payerLoss, payerBound           int64
	freeBound                       int64 // of freeTier: the member's free tier all the time since the account began
}

// outcome reads the books of both ends and holds them against what is true.
func (w *world) outcome(a *account, views map[*node]map[role]pay.AccountView, charged map[*node]map[role]int64) outcome {
	o := outcome{account: a}
	least, most := a.prices()
	bytes := a.payeeFull
	for i := range bytes {
		bytes[i] += a.payeeSlow[i]
	}
	o.value = cost(bytes, least)
	credit := views[a.payee][role{pay.Payee, a.ends[1].r.ID}]
	debit := views[a.payer][role{pay.Payer, a.ends[0].r.ID}]
	o.booked, o.signed, o.owed = credit.Paid, debit.Paid, credit.Owed
	o.forgiven = max(charged[a.payee][role{pay.Payee, a.ends[1].r.ID}]-o.booked-o.owed, 0)

	// What the payee carried and has no promise for, but for what went at the free tier's rate, or was forgiven at it.
	o.freeTier = min(max(o.forgiven, cost(a.payeeSlow, least)), max(o.value-o.booked, 0))
	o.payeeLoss = o.value - o.booked - o.freeTier
	price := slices.Max(most[:])
	o.freeBound = pay.Cost(uint64(w.chain.tariff.FreeKbit)*125*uint64(w.now-a.began), price)
	rate := uint64(linkRate)
	if a.service == pay.Internet {
		rate = max(a.payer.rate, a.payee.rate)
	}
	t := w.chain.tariff
	exposure := min(max(t.ExposureSeconds*rate, t.ExposureLeast), t.ExposureMost)
	ahead := func(d time.Duration) int64 { return pay.Cost(uint64(float64(a.peak)*d.Seconds()), price) }
	o.payeeBound = pay.Cost(exposure, price)
	if a.outside {
		o.payeeBound = max(o.payeeBound, t.Trust)
	}
	o.payeeBound += ahead(detect + pay.ShapeTime)
	if a.service == pay.Internet { // what the meters' own rules leave open: meter.md section 5
		switch a.payer.kind {
		case UnderReporter:
			o.payeeBound += ahead(gapSeen + detect + pay.ShapeTime)
		case SlyReporter:
			o.payeeBound += pay.Cost(a.allowed, price)
		case TurnReporter:
			o.payeeBound += int64(1+a.pardons)*ahead(gapSeen+detect+pay.ShapeTime) + pay.Cost(a.allowed, price)
		}
	}
	o.payeeBound += int64(a.reboots[1]) * ahead(meterKept+Step)

	// What the payer promised beyond what it got by its own count.
	o.payerLoss = max(o.booked, o.signed) - cost(a.payerOwn, most)
	o.payerBound = pay.Cost(pay.Gap(total(a.payerOwn)), price) + periods // the truth is rounded down in each
	return o
}

type role struct {
	pay.Role
	pay.ID
}

// settled is everything that is known at the end.
type settled struct {
	outcomes []outcome
	audits   []string // what audits of honest nodes found
	lines    int
	wrong    int // lines at another price than the voted one
	after    int // lines at the new price
}

// close reads the books of all nodes.
func (w *world) close() (*settled, error) {
	s := &settled{}
	type books struct {
		view    map[role]pay.AccountView
		charged map[role]int64
		audit   pay.Audited
		lines   []pay.Line
		err     error
	}
	all := make([]books, len(w.nodes))
	w.each(w.nodes, func(n *node) {
		b := &all[n.index]
		if n.pay == nil {
			b.err = fmt.Errorf("%s did not come back", n.name())
			return
		}
		b.view, b.charged = map[role]pay.AccountView{}, map[role]int64{}
		for _, a := range n.pay.View(w.time()).Accounts {
			b.view[role{a.Role, a.ID}] = a
		}
		if b.lines, b.err = n.pay.Bill(time.Time{}, w.time().Add(24*time.Hour)); b.err != nil {
			return
		}
		for _, l := range b.lines {
			b.charged[role{l.Role, l.ID}] += l.Amount
		}
		if n.kind == Honest {
			b.audit, b.err = n.pay.Audit(w.time())
		}
	})
	views, charged := map[*node]map[role]pay.AccountView{}, map[*node]map[role]int64{}
	for _, n := range w.nodes {
		b := &all[n.index]
		if b.err != nil {
			return nil, b.err
		}
		views[n], charged[n] = b.view, b.charged
		for _, f := range b.audit.Findings {
			s.audits = append(s.audits, fmt.Sprintf("%s: %s", n.name(), f.Text))
		}
		if n.kind != Honest {
			continue
		}
		for _, l := range b.lines {
			if l.Role != pay.Payee {
				continue
			}
			s.lines++
			if w.votedAt == 0 {
				continue
			}
			want := uint32(priceAfter)
			if l.ID.Service == pay.Carriage {
				want = carriageAfter
			}
			switch from := l.From.Unix(); {
			case from > w.votedAt+notice && l.Price != want:
				s.wrong++
			case from > w.votedAt+notice:
				s.after++
			case l.Until.Unix() < w.votedAt && l.Price == want:
				s.wrong++
			}
		}
	}
	for _, a := range w.accounts {
		s.outcomes = append(s.outcomes, w.outcome(a, views, charged))
	}
	return s, nil
}

// money holds the ledger against the vouchers: nobody's money moved but by its own signature, and none was made or lost.
func (w *world) money(s *settled) (has, paidIn int64, wrong []string) {
	c := w.chain
	promised := map[*node]int64{}
	for i := range s.outcomes {
		o := &s.outcomes[i]
		promised[o.payee] += o.booked
		promised[o.payer] -= o.booked
	}
	for _, n := range w.members {
		a, _ := c.m.Account(n.key)
		own := a.Balance
		for _, t := range c.openTabs(n) {
			own += t.Left()
		}
		has += own
		if moved := own - n.paidIn + n.charged; moved != promised[n] {
			wrong = append(wrong, fmt.Sprintf("%s: the ledger moved %d, vouchers %d", n.name(), moved, promised[n]))
		}
		paidIn += n.paidIn
	}
	for _, f := range c.m.Funds() {
		has += f.Balance
	}
	return has, paidIn + w.funded, wrong
}

// funds reports whether funds hold anything but what votes and charges say.
func (w *world) funds() error {
	want := map[uint64]int64{}
	if w.funded > 0 {
		want[ledger.FundSolidarity] = w.funded - w.aided
		want[ledger.FundOperating] = 2 * upkeep
	}
	for _, f := range w.chain.m.Funds() {
		if f.Balance != want[f.ID] {
			return fmt.Errorf("fund %d holds %d, not %d", f.ID, f.Balance, want[f.ID])
		}
	}
	return nil
}
