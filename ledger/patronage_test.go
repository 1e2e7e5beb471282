package ledger

import (
	"math/big"
	"math/rand/v2"
	"slices"
	"sort"
	"testing"

	"pgregory.net/rapid"
)

// The worked example: 1 000.00 among 30000, 45000 and 25001.
func TestDivideWorkedExample(t *testing.T) {
	stakes := []Stake{{1, 30000, NoCap}, {2, 45000, NoCap}, {3, 25001, NoCap}}
	cut, rest, err := Divide(100000, stakes)
	if err != nil || rest != 0 {
		t.Fatal(rest, err)
	}
	for i, want := range []uint64{30000, 44999, 25001} {
		if got := cut.Share(stakes[i]); got != want {
			t.Errorf("%c gets %d, want %d", 'A'+i, got, want)
		}
	}
}

// naiveDivide is the same by exact fractions: caps round by round, then the largest remainder unit by unit.
func naiveDivide(total uint64, stakes []Stake) (map[uint64]uint64, uint64) {
	out, open := map[uint64]uint64{}, map[uint64]Stake{}
	for _, s := range stakes {
		out[s.ID] = 0
		if s.Weight > 0 {
			open[s.ID] = s
		}
	}
	left := new(big.Int).SetUint64(total)
	for {
		w := new(big.Int)
		for _, s := range open {
			w.Add(w, new(big.Int).SetUint64(s.Weight))
		}
		if len(open) == 0 {
			return out, left.Uint64()
		}
		var full []Stake
		for _, s := range open {
			part := new(big.Rat).SetFrac(new(big.Int).Mul(left, new(big.Int).SetUint64(s.Weight)), w)
			if part.Cmp(new(big.Rat).SetInt(new(big.Int).SetUint64(s.Cap))) >= 0 {
				full = append(full, s)
			}
		}
		if full == nil {
			type part struct {
				id   uint64
				frac *big.Rat
			}
			var parts []part
			sum := new(big.Int)
			for _, s := range open {
				q, r := new(big.Int).QuoRem(new(big.Int).Mul(left, new(big.Int).SetUint64(s.Weight)), w, new(big.Int))
				out[s.ID] = q.Uint64()
				sum.Add(sum, q)
				parts = append(parts, part{s.ID, new(big.Rat).SetFrac(r, w)})
			}
			sort.Slice(parts, func(i, j int) bool {
				if c := parts[i].frac.Cmp(parts[j].frac); c != 0 {
					return c > 0
				}
				return parts[i].id < parts[j].id
			})
			over := new(big.Int).Sub(left, sum).Uint64()
			for i := range over {
				out[parts[i].id]++
			}
			return out, 0
		}
		for _, s := range full {
			out[s.ID] = s.Cap
			left.Sub(left, new(big.Int).SetUint64(s.Cap))
			delete(open, s.ID)
		}
	}
}

func TestDivideAgainstNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 30).Draw(t, "n")
		big := rapid.Bool().Draw(t, "big")
		most := uint64(20)
		if big {
			most = 1 << 57
		}
		var stakes []Stake
		for i := range n {
			s := Stake{ID: uint64(i*7%31 + 1), Weight: rapid.Uint64Range(0, most).Draw(t, "w"), Cap: NoCap}
			switch rapid.IntRange(0, 2).Draw(t, "cap") {
			case 1:
				s.Cap = s.Weight
			case 2:
				s.Cap = rapid.Uint64Range(0, most).Draw(t, "c")
			}
			stakes = append(stakes, s)
		}
		total := rapid.Uint64Range(0, most*8).Draw(t, "total")
		cut, rest, err := Divide(total, stakes)
		if err != nil {
			t.Fatal(err)
		}
		want, wantRest := naiveDivide(total, stakes)
		sum := rest
		for _, s := range stakes {
			got := cut.Share(s)
			if got != want[s.ID] {
				t.Fatalf("stake %+v gets %d, want %d", s, got, want[s.ID])
			}
			if got > s.Cap {
				t.Fatalf("stake %+v gets %d", s, got)
			}
			sum += got
		}
		if sum != total || rest != wantRest {
			t.Fatalf("%d were divided, %d come out; rest %d, want %d", total, sum, rest, wantRest)
		}
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		r.Shuffle(len(stakes), func(i, j int) { stakes[i], stakes[j] = stakes[j], stakes[i] })
		if again, _, _ := Divide(total, stakes); again != cut {
			t.Fatalf("order matters: %+v, %+v", cut, again)
		}
	})
}

func TestDivideRefuses(t *testing.T) {
	if _, _, err := Divide(10, []Stake{{1, 1 << 63, NoCap}}); err == nil {
		t.Error("weights that do not fit")
	}
	if _, _, err := Divide(1<<63, []Stake{{1, 1, NoCap}}); err == nil {
		t.Error("a sum that does not fit")
	}
	if _, _, err := Divide(1, []Stake{{1, 1, NoCap}, {1, 1, NoCap}}); err == nil {
		t.Error("a stake twice")
	}
	if cut, rest, err := Divide(5, nil); err != nil || rest != 5 || cut.Share(Stake{ID: 1}) != 0 {
		t.Error("nobody to divide among", cut, rest, err)
	}
}

func TestCostShare(t *testing.T) {
	// 100.00 with 10.00 each: 70.00 by use of 1, 1 and 5.
	got, err := CostShare(10000, 1000, []Stake{{1, 1, 0}, {2, 1, 0}, {3, 5, 0}})
	if err != nil || got[1] != 2000 || got[2] != 2000 || got[3] != 6000 {
		t.Error(got, err)
	}
	if got, err := CostShare(10, 0, []Stake{{1, 0, 0}, {2, 0, 0}, {3, 0, 0}}); err != nil || got[1] != 4 || got[2] != 3 || got[3] != 3 {
		t.Error(got, err)
	}
	for _, bad := range [][]Stake{nil, {{1, 1, 0}, {1, 2, 0}}, {{1, 1, 0}, {2, 1, 0}, {3, 1, 0}}} {
		if _, err := CostShare(10, 4, bad); err == nil {
			t.Errorf("divided among %v", bad)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		var parts []Stake
		for i := range rapid.IntRange(1, 20).Draw(t, "n") {
			parts = append(parts, Stake{uint64(i + 1), rapid.Uint64Range(0, 1<<50).Draw(t, "use"), 0})
		}
		equal := rapid.Int64Range(0, 1000).Draw(t, "equal")
		bill := equal*int64(len(parts)) + rapid.Int64Range(0, 1e15).Draw(t, "rest")
		got, err := CostShare(bill, equal, parts)
		if err != nil {
			t.Fatal(err)
		}
		var sum int64
		for _, s := range parts {
			if sum += got[s.ID]; got[s.ID] < equal {
				t.Fatal("less than the fee")
			}
		}
		if sum != bill {
			t.Fatalf("parts of %d sum to %d", bill, sum)
		}
		slices.Reverse(parts)
		if again, _ := CostShare(bill, equal, parts); again[1] != got[1] {
			t.Fatal("order matters")
		}
	})
}

func BenchmarkDivide10000(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	stakes := make([]Stake, 10_000)
	for i := range stakes {
		w := r.Uint64N(1e12)
		stakes[i] = Stake{uint64(i + 1), w, w / 1e7}
	}
	for b.Loop() {
		cut, _, err := Divide(1e8, stakes)
		if err != nil {
			b.Fatal(err)
		}
		var sum uint64
		for _, s := range stakes {
			sum += cut.Share(s)
		}
		_ = sum
	}
}
