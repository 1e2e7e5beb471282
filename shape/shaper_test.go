package shape

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// serve runs a shaper; end stops it and waits.
func serve[T any](t *testing.T, s *Shaper[T]) (end func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(ctx); err != nil {
			t.Error(err)
		}
	})
	return func() { cancel(); wg.Wait() }
}

func TestPaceAtEveryRate(t *testing.T) {
	for _, rate := range []int64{100_000, 1_000_000, 20_000_000, 1_000_000_000} {
		synctest.Test(t, func(t *testing.T) {
			var sent int
			var last time.Time
			var longest time.Duration
			s := NewShaper(endless(rate), func(b []int) {
				if !last.IsZero() {
					longest = max(longest, time.Since(last))
				}
				last = time.Now()
				for _, n := range b {
					sent += n
				}
			}, nil)
			defer serve(t, s)()
			n := int(rate / 8 / 1500 * 5)
			for range n {
				s.Submit(1, 1, 1500, 1500)
			}
			time.Sleep(4 * time.Second)
			synctest.Wait()
			want := float64(rate) / 8 * 4
			if got := float64(sent); got < want-1500 || got > want*1.001+2*1500 {
				t.Errorf("%d bits/s: %v bytes in 4 s, want %v", rate, got, want)
			}
			if gap := time.Duration(1500 * 8 * second / rate); longest > gap+2*grain {
				t.Errorf("%d bits/s: nothing for %v, a packet takes %v", rate, longest, gap)
			}
		})
	}
}

func TestAnIdleLineWaitsForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at time.Time
		s := NewShaper(Config{Rate: 1_000_000}, func([]string) { at = time.Now() }, nil)
		defer serve(t, s)()
		for range 10 {
			time.Sleep(time.Second)
			now := time.Now()
			s.Submit(1, 1, 1500, "")
			synctest.Wait()
			if at != now {
				t.Fatalf("it went %v late", at.Sub(now))
			}
		}
	})
}

func TestUrgentGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []int
		s := NewShaper(endless(1_000_000), func(b []int) { got = append(got, b...) }, nil)
		defer serve(t, s)()
		for i := range 20 {
			s.Submit(1, 1, 1500, i)
		}
		s.SubmitUrgent(1, 1, 100, 100)
		time.Sleep(time.Second)
		synctest.Wait()
		if len(got) != 21 || got[0] != 0 && got[0] != 100 || got[0] == 0 && got[1] != 100 {
			t.Errorf("order %v", got)
		}
	})
}

func TestRateOfAShaperChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		s := NewShaper(endless(8_000), func(b []int) { n += len(b) }, nil)
		defer serve(t, s)()
		for range 1000 {
			s.Submit(1, 1, 1000, 0)
		}
		time.Sleep(10500 * time.Millisecond)
		synctest.Wait()
		if n != 11 {
			t.Errorf("%d in ten seconds at one a second", n)
		}
		s.SetRate(800_000)
		if s.Rate() != 800_000 {
			t.Error(s.Rate())
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n < 110 || n > 112 {
			t.Errorf("%d after a second with a hundred a second", n)
		}
		s.SetRate(0)
		synctest.Wait()
		if n != 1000 {
			t.Errorf("%d of 1000 without a rate", n)
		}
	})
}

func TestEndDropsWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sent, dropped := 0, 0
		s := NewShaper(Config{Rate: 8_000}, func(b []int) { sent += len(b) }, func(int) { dropped++ })
		end := serve(t, s)
		for i := range 10 {
			s.Submit(uint64(i), 1, 1000, 0)
		}
		synctest.Wait()
		if err := s.Serve(t.Context()); err == nil {
			t.Error("Serve ran twice")
		}
		end()
		if sent != 1 || dropped != 9 {
			t.Errorf("%d sent, %d dropped", sent, dropped)
		}
		s.Submit(1, 1, 1000, 0)
		defer serve(t, s)() // again
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if st := s.Stats(); sent != 2 || st.Packets != 2 || st.Full != 9 || st.Waiting != 0 {
			t.Errorf("%d sent, %+v", sent, st)
		}
	})
}

// Many goroutines submit, in real time, while the rate changes: for the race detector.
func TestSubmitFromEverywhere(t *testing.T) {
	var mu sync.Mutex
	sent, dropped := 0, 0
	s := NewShaper(Config{Rate: 1e9, MaxPackets: 50}, func(b []int) {
		mu.Lock()
		defer mu.Unlock()
		sent += len(b)
	}, func(int) {
		mu.Lock()
		defer mu.Unlock()
		dropped++
	})
	end := serve(t, s)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 2000 {
				if i%10 == 0 {
					s.SubmitUrgent(uint64(g), 1, 100, i)
					s.SetRate(int64(i) * 1e6)
				}
				s.Submit(uint64(g), 1, 1000, i)
				s.Stats()
			}
		})
	}
	wg.Wait()
	s.Flows()
	end()
	if sent+dropped != 4*2200 {
		t.Errorf("%d sent and %d dropped of %d", sent, dropped, 4*2200)
	}
}
