// Package economy lets a neighbourhood of honest and hostile households use, carry, sell and pay for internet for a month in virtual
// time, and holds what everybody lost against the bounds of docs/spec/pay.md section 7.
//
// Every home, relay and gateway runs the real pay.Pay, on a store that loses at a reboot what was not written; the chain is the
// real ledger.Machine, with signed transactions and votes. What is modelled is what lies below: demand, routes, the meter's
// counters (docs/spec/meter.md) and the way of messages. docs/guide/economy.md says what is coarser than in reality.
//
// cli runs it for `weft lab economy`, CI runs the short world. [Run] is one call; it works on all cores and waits for what it
// starts. The same options give the same report, byte for byte: nodes touch only their own state within a round, and what they
// send is handed on in the order of nodes.
//
//	economy.go   options, the run, the calendar
//	world.go     nodes, streets, routes
//	traffic.go   demand, what flows, delivered ratios
//	counters.go  the meter's model
//	chain.go     the ledger, votes, how nodes reach it
//	players.go   who is honest and who is not
//	bounds.go    what was lost, and what may be
//	report.go    table, page
package economy

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Step is how often the world looks at everything; the program itself does each 250 ms while something moves, and meters speak
// each second.
const Step = time.Second

// Options say which world is run.
type Options struct {
	Homes int    // 24 to 2000
	Days  int    // 1 to 62
	Seed  uint64 // the same seed gives the same world
	// Progress is told each virtual hour; nil: nobody is.
	Progress func(Progress)

	tamper func(*world) // tests spoil something
	peace  bool         // tests: all are honest
}

// Short is the world that CI runs.
func Short() Options { return Options{Homes: 36, Days: 2, Seed: 1} }

// Progress is how far a run has come.
type Progress struct {
	Hour, Hours int
	Bytes       uint64 // carried
	Vouchers    uint64 // sent
}

// Check reports what is wrong with the options.
func (o *Options) Check() error {
	switch {
	case o.Homes < 24 || o.Homes > 2000:
		return errors.New("a neighbourhood has 24 to 2000 homes")
	case o.Days < 1 || o.Days > 62:
		return errors.New("a run takes 1 to 62 days")
	}
	return nil
}

// Run plays the world and returns what came of it. A broken bound is not an error: see [Report.Err].
func Run(ctx context.Context, o Options) (*Report, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	w, err := newWorld(o)
	if err != nil {
		return nil, err
	}
	if err := w.play(ctx); err != nil {
		return nil, err
	}
	return w.report()
}

const (
	hour = 3600
	day  = 24 * hour

	awake     = 20  // seconds that a node stays awake after something moved: the last voucher is signed within 10
	heartbeat = 300 // seconds between blocks without transactions
	settle    = 5   // seconds between calls of Settle while awake: the program is woken within 2
)

// play runs the calendar. Time leaps over what is idle: then nobody owes anybody anything that changes but by decay, which pay
// computes over any span.
func (w *world) play(ctx context.Context) error {
	end := w.begin + int64(w.o.Days)*day
	for w.now < end {
		if w.now%hour == 0 {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("stopped after %d hours: %w", (w.now-w.begin)/hour, err)
			}
			if err := w.hourly(); err != nil {
				return err
			}
		}
		if w.now%heartbeat == 0 {
			w.chain.block()
		}
		w.startFlows()
		if err := w.step(); err != nil {
			return err
		}
		w.now = w.next(end)
	}
	return w.finish(ctx)
}

// next is the next second in which something happens.
func (w *world) next(end int64) int64 {
	if w.busy() {
		return w.now + 1
	}
	next := min(end, (w.now/heartbeat+1)*heartbeat)
	if len(w.demand) > 0 {
		next = min(next, max(w.demand[0].at, w.now+1))
	}
	return next
}

// hourly does what happens by the clock.
func (w *world) hourly() error {
	h := int((w.now - w.begin) / hour)
	if w.o.Progress != nil {
		w.o.Progress(Progress{Hour: h, Hours: w.o.Days * 24, Bytes: w.carried, Vouchers: w.vouchers})
	}
	if h%24 == 0 {
		w.plan(h / 24)
		w.mark()
	}
	hours := w.o.Days * 24
	switch h {
	case hours * 3 / 8: // the chain is out of reach for a quarter of the run, a week of a month
		w.chain.down = true
	case hours * 5 / 8:
		w.chain.down = false
	case hours * 3 / 4:
		if err := w.vote(); err != nil {
			return fmt.Errorf("vote on the tariff: %w", err)
		}
	}
	w.hostileHour(h)
	for _, n := range w.nodes { // payees look at their tabs each hour, and claim once a day
		if n.pay != nil {
			w.settle(n)
		}
	}
	return nil
}

// finish lets what is open be said, and then claimed: everybody looks at the chain after the last voucher has come, a day later.
func (w *world) finish(ctx context.Context) error {
	w.flows, w.demand, w.over = nil, nil, true
	for _, n := range w.nodes {
		n.store.dieAt = 0
		n.revive()
	}
	w.attend(30)
	for range 30 {
		if err := w.step(); err != nil {
			return err
		}
		w.now++
	}
	w.now += day + hour
	w.chain.block()
	for range 2 { // the ledger's answer to a claim is looked at again
		for _, n := range w.nodes {
			if n.pay == nil {
				continue
			}
			if err := n.pay.Settle(ctx, w.time()); err != nil && n.kind != Sybil { // who has no money opens no tab
				w.unsettled = append(w.unsettled, fmt.Sprintf("%s: %v", n.name(), err))
			}
		}
		w.now += hour
		w.chain.block()
	}
	w.mark()
	return nil
}
