package economy

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"weft/ledger/tx"
	"weft/pay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func run(t *testing.T, o Options) *Report {
	t.Helper()
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// small is a world for a fault: a day, in which there is something in every part.
func small() Options { return Options{Homes: 24, Days: 1, Seed: 3} }

// The world that CI runs breaks no bound, has every player in it, and is the same when it is run again.
func TestShort(t *testing.T) {
	var last []byte
	for range 2 {
		r := run(t, Short())
		if err := r.Err(); err != nil {
			t.Error(err)
		}
		for _, p := range playerNames {
			if !slices.ContainsFunc(r.Players, func(row Row) bool { return row.Player == p.name && row.Value > 0 }) {
				t.Errorf("%s did nothing", p.name)
			}
		}
		var b bytes.Buffer
		if _, err := r.WriteTo(&b); err != nil {
			t.Fatal(err)
		}
		if err := r.WriteHTML(&b); err != nil {
			t.Fatal(err)
		}
		j, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(j)
		if last != nil && !bytes.Equal(last, b.Bytes()) {
			t.Errorf("the same seed gives another run: %s", cmp.Diff(string(last), b.String()))
		}
		last = b.Bytes()
	}
}

// Other seeds: other streets, other players at other places.
func TestSeeds(t *testing.T) {
	for seed := range uint64(3) {
		o := small()
		o.Seed = seed + 10
		if err := run(t, o).Err(); err != nil {
			t.Errorf("seed %d: %v", o.Seed, err)
		}
	}
}

// Among honest people without losses of power everybody who has a tab gets all that it wants, and pays for all of it.
func TestPeace(t *testing.T) {
	o := small()
	o.peace = true
	r := run(t, o)
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	for _, s := range r.Slow {
		if s.Seconds > 0 && s.Why != slowNames[slowCut] {
			t.Errorf("%d s: %s", s.Seconds, s.Why)
		}
	}
	if r.X == 0 || len(r.Players) != 1 {
		t.Errorf("%+v", r.Players)
	}
}

// broken runs a world in which something is spoilt, and wants the report to say so.
func broken(t *testing.T, want string, tamper func(*world)) {
	t.Helper()
	o := small()
	o.tamper = tamper
	err := run(t, o).Err()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a report without %q: %v", want, err)
	}
}

// first is the first member of a kind.
func (w *world) first(k Player) *node {
	return w.members[slices.IndexFunc(w.members, func(n *node) bool { return n.kind == k })]
}

// Each bound is one that can break.
func TestBroken(t *testing.T) {
	t.Run("verdicts that nobody carries out", func(t *testing.T) {
		broken(t, "free rider as payer", func(w *world) {
			for _, g := range w.gateways {
				g.lies.mild = true
			}
			w.first(FreeRider).rate, w.first(FreeRider).busyness = 5_000_000, 200
		})
	})
	t.Run("gaps that nobody acts on", func(t *testing.T) {
		broken(t, "alternating under-reporter as payer", func(w *world) {
			for _, g := range w.gateways {
				g.lies.mild = true
			}
			w.first(TurnReporter).rate, w.first(TurnReporter).busyness = 5_000_000, 200
		})
	})
	t.Run("strangers at the full rate", func(t *testing.T) {
		broken(t, "sybil newcomers as payer", func(w *world) {
			for _, g := range w.gateways {
				g.lies.mild = true
			}
		})
	})
	t.Run("a payer without a cap", func(t *testing.T) {
		broken(t, "over-billing gateway as payee", func(w *world) {
			for _, n := range w.members {
				if n.kind == Honest && !n.gateway {
					n.lies.sign = func(to *node, v *tx.Voucher) {
						if to.kind == OverBiller {
							v.Amount += v.Amount / 3
						}
					}
				}
			}
		})
	})
	t.Run("honest with honest", func(t *testing.T) {
		broken(t, "paid is price times both meters", func(w *world) {
			for _, n := range w.members {
				if n.kind == Honest {
					n.lies.sign = func(_ *node, v *tx.Voucher) { v.Amount += v.Amount / 20 }
				}
			}
		})
	})
	t.Run("a fund that is not what was voted", func(t *testing.T) {
		broken(t, "no fund was touched but by votes", func(w *world) {
			if _, err := w.chain.submit(w.members[5].a, &tx.Contribute{Fund: 2, Amount: 1, Memo: "gift"}); err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("money that moves without a voucher", func(t *testing.T) {
		broken(t, "money moves by vouchers alone", func(w *world) {
			if _, err := w.chain.submit(w.members[5].a, &tx.Transfer{To: w.members[6].key, Amount: 1}); err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("money out of nothing", func(t *testing.T) {
		broken(t, "no money is made or lost", func(w *world) { w.members[7].paidIn-- })
	})
}

// The rest of what a report checks, on a report whose world was spoilt afterwards.
func TestChecks(t *testing.T) {
	w, err := newWorld(small())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.play(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, err := w.report()
	if err != nil || r.Err() != nil {
		t.Fatal(err, r.Err())
	}
	s, err := w.close()
	if err != nil {
		t.Fatal(err)
	}
	w.chain.applied, w.votedAt = 1, w.begin
	w.dropCarried = w.carried
	s.audits = []string{"something"}
	s.wrong = 1
	poor := *w.account(w.gateways[0], w.gateways[1], pay.Carriage)
	s.outcomes = append(s.outcomes, outcome{account: &poor, booked: tx.MaxAmount})
	bad := &Report{X: 1}
	bad.check(w, s, 2, 1, 0, 1)
	if err = bad.Err(); err == nil {
		t.Fatal("nothing is broken")
	}
	for _, want := range []string{"X = Y + Z", "price times both meters", "the free tier", "honest books", "sets the price", "applies twice", "their part", "loses its traffic"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %q: %v", want, err)
		}
	}
	for i := range s.outcomes { // more than the tab was good for
		if o := &s.outcomes[i]; o.service == pay.Internet && o.payer.kind == Honest && o.payee.kind == Honest {
			o.account.payeeFull[0] += 1 << 40
		}
	}
	if r, err = w.report(); err != nil || r.Err() == nil || !strings.Contains(r.Err().Error(), "honest as payer") {
		t.Errorf("%v, %v", err, r.Err())
	}
}

// The page is well-formed, whole, and asks for nothing from elsewhere.
func TestPage(t *testing.T) {
	r := &Report{Homes: 24, Days: 1, Step: "1s", Players: []Row{{Player: "<one> & \"two\"", What: "x < y", Role: "payer", Worst: 3, Bound: 2, Broken: 1}, {Player: "ok", Role: "payee", Worst: 1, Bound: 2}},
		Checks: []Check{{"a<b", false, "c&d"}}, Series: []Day{{0, 0, 0, 0}, {1, 5, 7, -7}}, Slow: []Slow{{"why", 3}}}
	var b bytes.Buffer
	if err := r.WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	d := xml.NewDecoder(strings.NewReader(b.String()))
	var open, seen int
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, b.String())
		}
		switch e := tok.(type) {
		case xml.StartElement:
			open++
			if e.Name.Local == "rect" {
				seen++
			}
			for _, a := range e.Attr {
				if a.Name.Local == "src" || a.Name.Local == "href" {
					t.Errorf("the page asks for %s", a.Value)
				}
			}
		case xml.EndElement:
			open--
		}
	}
	if open != 0 || seen != len(r.Players) || strings.Contains(b.String(), "<script") {
		t.Errorf("%d elements open, %d bars", open, seen)
	}
	for _, want := range []string{"&lt;one&gt; &amp;", "BROKEN", "#c0392b", "No bound"} {
		if strings.Contains(b.String(), want) == (want == "No bound") {
			t.Errorf("%q", want)
		}
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{{}, {Homes: 23, Days: 1}, {Homes: 24}, {Homes: 24, Days: 63}, {Homes: 2001, Days: 1}} {
		if _, err := Run(t.Context(), o); err == nil {
			t.Errorf("%+v was run", o)
		}
	}
}
