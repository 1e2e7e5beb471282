package pay

import (
	"context"
	"testing"
	"time"

	"weft/ledger/tx"
)

// keeper is the chain by the word of one who keeps it, and lies.
type keeper struct {
	*member
	hides, swallows bool
}

func (k *keeper) Tab(ctx context.Context, id tx.TabID) (tx.Tab, []byte, time.Time, error) {
	if k.hides {
		return tx.Tab{}, nil, time.Time{}, ErrUnproven
	}
	return k.member.Tab(ctx, id)
}

func (k *keeper) Submit(ctx context.Context, body tx.Body) ([]byte, error) {
	if c, ok := body.(*tx.TabClaim); ok && k.swallows { // the claim goes nowhere, and is said to be paid
		var data []byte
		for _, raw := range c.Vouchers {
			v, err := tx.ParseVoucher(raw[:])
			if err != nil {
				return nil, err
			}
			data = append(data, tx.Encode(&tx.Claimed{Paid: v.Amount})...)
		}
		return data, nil
	}
	return k.member.Submit(ctx, body)
}

// Whoever keeps the ledger for a payee hides its tabs, or swallows its claims, for days: the payee gives up nothing, and has all as
// soon as the truth is told. A restart meanwhile changes nothing.
func TestKeeperThatLies(t *testing.T) {
	for name, lie := range map[string]keeper{"hides": {hides: true}, "swallows": {swallows: true}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			user, gw := w.add(), w.add()
			k := &keeper{member: gw.chain}
			gw.settler = k
			gw.start()
			f := w.flow(user, gw, Internet, 1_250_000)
			w.open(f)
			w.run(time.Minute)
			f.rate = 0
			w.run(30 * time.Second)
			owed := f.promised()
			if owed < Cost(60*1_250_000, testPrice)/2 {
				t.Fatalf("%d ncredit are promised", owed)
			}
			w.leap(2 * time.Hour) // the tab is seen once more before the lies begin
			k.hides, k.swallows = lie.hides, lie.swallows
			for range 60 {
				w.leap(time.Hour)
			}
			if err := gw.pay.Flush(w.now); err != nil {
				t.Fatal(err)
			}
			gw.crash(0)
			gw.start()
			w.leap(time.Hour)
			k.hides, k.swallows = false, false
			for range 26 {
				w.leap(time.Hour)
			}
			if got := w.chain.paid[gw.key]; got != owed {
				t.Errorf("%d ncredit were promised, %d were paid", owed, got)
			}
		})
	}
}

// A tab that can have ended is given up when nobody shows it any more.
func TestTabThatIsOver(t *testing.T) {
	w := newWorld(t)
	user, gw := w.add(), w.add()
	k := &keeper{member: gw.chain}
	gw.settler = k
	gw.start()
	f := w.flow(user, gw, Internet, 1_250_000)
	w.open(f)
	f.rate = 0
	w.run(30 * time.Second)
	if f.credit().Tab.Voucher.Seq == 0 {
		t.Fatal("nothing was signed")
	}
	k.hides, k.swallows = true, true
	w.leap(40 * 24 * time.Hour)
	w.leap(2 * time.Hour)
	if c := f.credit(); c.HasTab {
		t.Errorf("a tab that ended is relied on: %+v", c.Tab)
	}
	if v := gw.pay.View(w.now); len(v.Over) != 0 && v.Over[0].State != Settled {
		t.Errorf("%+v", v.Over)
	}
}
