package meter

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"weft/ident"
)

// virtualTB hides that a test has a deadline, which nobody may ask for in virtual time, and rapid does.
type virtualTB struct{ testing.TB }

// denier hides a part of what it has received from its beacons, for good, and can fall silent.
type denier struct {
	epoch    uint64
	last     Count // received, in truth, in the echo before
	hidden   Count
	told     Count
	permille uint64 // of what comes on top
	mute     bool
	packets  uint64 // denied in all
}

func (d *denier) mangle(b *Beacon) bool {
	if b.Epoch != d.epoch {
		d.epoch, d.last, d.hidden, d.told = b.Epoch, Count{}, Count{}, Count{}
	}
	if b.EchoSeq != 0 {
		more := b.EchoRecv.minus(d.last).Packets * d.permille / 1000
		d.hidden, d.packets = d.hidden.plus(Count{more, more * size}), d.packets+more
		d.last = b.EchoRecv
		b.EchoRecv = b.EchoRecv.minus(d.hidden)
	}
	b.Recv = most(d.told, b.Recv.minus(d.hidden))
	d.told = b.Recv
	return !d.mute
}

// missing is what a node has sent to another and not been told the arrival of, and held whether it holds that against it.
func (n *node) missing(of *node) (bytes uint64, held bool) {
	m := n.meter()
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.peers[of.key]
	if p == nil {
		return 0, false
	}
	v := p.live[Outside]
	return p.led[Outside].apart()[Out], v != nil && v.dir[Out].gap
}

func reconnect(a, b *node) {
	for n, other := range map[*node]*node{a: b, b: a} {
		n.mu.Lock()
		delete(n.sessions, other.key)
		n.mu.Unlock()
	}
}

// unpaid is the bound of docs/spec/meter.md section 5: two windows of traffic, each up to 11 s and a step, and the tolerance of each.
func (w *world) unpaid(packets int, d time.Duration) uint64 {
	rate := uint64(packets) * (size + PacketBytes) * uint64(time.Second/w.step)
	return 2*(11*rate+uint64(packets)*(size+PacketBytes)) + uint64(d/windowLen+1)*Tolerance(10*rate, windowLen, false)
}

// TestAlternating: who denies, or withholds, for 7 s of each 20 s has never two bad windows in a row, and is seen within the bound.
func TestAlternating(t *testing.T) {
	for name, lie := range map[string]func(d *denier, lying bool){
		"denies":                func(d *denier, lying bool) { d.permille = map[bool]uint64{true: 1000}[lying] },
		"is silent, and denies": func(d *denier, lying bool) { d.permille, d.mute = map[bool]uint64{true: 1000}[lying], lying },
	} {
		t.Run(name, func(t *testing.T) {
			virtual(t, func(t *testing.T, w *world) {
				gw, user := w.node("gateway"), w.node("user")
				var d denier
				user.lie(d.mangle)
				start, seen, lost := time.Now(), time.Duration(0), uint64(0)
				w.flow(5*time.Minute, func() {
					at := time.Since(start)
					user.mu.Lock()
					lie(&d, at%(20*time.Second) >= time.Second && at%(20*time.Second) < 8*time.Second)
					user.mu.Unlock()
					browse(gw, user)()
					if missing, held := gw.missing(user); held && seen == 0 {
						seen, lost = at, missing
					}
				})
				if seen == 0 || lost > w.unpaid(down, seen) {
					t.Errorf("seen after %v, when %d of at most %d bytes were missing", seen, lost, w.unpaid(down, seen))
				}
				if ev := gw.seen(); len(ev) == 0 || ev[0].Direction != Out || ev[0].Reason != Lossy || ev[0].Lost == 0 {
					t.Errorf("events %+v", ev)
				}
				user.lie(nil) // it no longer changes
				if d.packets == 0 {
					t.Error("nothing was denied")
				}
			})
		})
	}
}

// TestLeavesEarly: sessions that end before a window does hide nothing either.
func TestLeavesEarly(t *testing.T) {
	for _, away := range []time.Duration{0, 2 * time.Second, 12 * time.Second} {
		virtual(t, func(t *testing.T, w *world) {
			gw, user := w.node("gateway"), w.node("user")
			d := denier{}
			user.lie(d.mangle)
			start := time.Now()
			for time.Since(start) < 5*time.Minute {
				w.flow(time.Second, browse(gw, user)) // a beacon that agrees
				user.mu.Lock()
				d.mute = true
				user.mu.Unlock()
				for end := time.Now().Add(7 * time.Second); time.Now().Before(end); time.Sleep(w.step) {
					browse(gw, user)()
					if missing, held := gw.missing(user); held {
						if at := time.Since(start); missing > w.unpaid(down, at) {
							t.Errorf("away for %v: %d bytes were missing after %v, more than %d", away, missing, at, w.unpaid(down, at))
						}
						return
					}
				}
				time.Sleep(100 * time.Millisecond) // what is under way
				user.mu.Lock()
				d.mute = false
				user.mu.Unlock()
				reconnect(gw, user)
				time.Sleep(away)
			}
			t.Errorf("away for %v: not seen", away)
		})
	}
}

// TestAnyPattern: whatever a peer denies, withholds and drops, and when, no more than the bound is missing before that is held against it.
func TestAnyPattern(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seen := 0
		rapid.Check(virtualTB{t}, func(r *rapid.T) {
			w := newWorld(t)
			w.step = 250 * time.Millisecond
			defer w.end()
			gw, user := w.node("gateway"), w.node("user")
			var d denier
			user.lie(d.mangle)
			rates := []int{1, 10, 100, 500} // packets a step
			most := rapid.SampledFrom(rates).Draw(r, "rate")
			steady := rapid.Bool().Draw(r, "steady")
			honest, lying := rapid.IntRange(0, 100).Draw(r, "honest"), rapid.IntRange(1, 100).Draw(r, "lying")
			permille := rapid.SampledFrom([]uint64{1000, 1000, 500, 100, 30, 0}).Draw(r, "permille")
			mute := rapid.Bool().Draw(r, "mute")
			jitter := rapid.IntRange(0, 20).Draw(r, "jitter")
			leaves := rapid.SampledFrom([]int{0, 0, 1, 3}).Draw(r, "leaves") // after each so many lies
			away := time.Duration(rapid.SampledFrom([]int{0, 2, 15}).Draw(r, "away")) * time.Second
			draw := rand.New(rand.NewPCG(rapid.Uint64().Draw(r, "seed"), 0))
			start, held := time.Now(), false
			phase := func(steps int, p uint64, silent bool) {
				user.mu.Lock()
				d.permille, d.mute = p, silent
				user.mu.Unlock()
				for range max(steps+draw.IntN(jitter+1)-jitter/2, 1) {
					n := most
					if !steady && draw.IntN(3) == 0 {
						n = draw.IntN(most + 1)
					}
					if gw.send(user, Outside, n, size); n > 0 && draw.IntN(4) == 0 {
						user.send(gw, Outside, 1, size)
					}
					time.Sleep(w.step)
					var missing uint64
					if missing, held = gw.missing(user); missing > w.unpaid(most, time.Since(start)) {
						r.Fatalf("after %v %d bytes are missing, more than %d; held: %v", time.Since(start), missing, w.unpaid(most, time.Since(start)), held)
					}
					if held {
						return
					}
				}
			}
			for i := 1; !held && time.Since(start) < 5*time.Minute; i++ {
				if phase(honest, 0, false); held {
					break
				}
				if phase(lying, permille, mute); leaves > 0 && i%leaves == 0 {
					reconnect(gw, user)
					time.Sleep(away)
				}
			}
			if held {
				seen++
			}
		})
		if seen == 0 {
			t.Error("nobody was ever seen")
		}
	})
}

// TestGreedy: a peer that denies all whenever nothing is held against it, and is honest whenever something is, gets in hours
// what docs/spec/meter.md says: two windows an hour, and the tolerance.
func TestGreedy(t *testing.T) {
	const hours = 6
	virtual(t, func(t *testing.T, w *world) {
		w.step = 500 * time.Millisecond
		gw, user := w.node("gateway"), w.node("user")
		var d denier
		user.lie(d.mangle)
		flags, before := 0, false
		w.flow(hours*time.Hour, func() {
			_, held := gw.missing(user)
			if held && !before {
				flags++
			}
			before = held
			user.mu.Lock()
			d.permille = 1000
			if held {
				d.permille = 0
			}
			user.mu.Unlock()
			gw.send(user, Outside, down, size)
		})
		rate := uint64(down) * (size + PacketBytes) * uint64(time.Second/w.step)
		// Each hour's two windows of 11 s, and a second in which it does not know yet.
		bound := hours*(23*rate) + hours*360*Tolerance(10*rate, windowLen, false)
		missing, _ := gw.missing(user)
		if missing > bound || flags < hours {
			t.Errorf("%d bytes are missing, at most %d may; %d times held against it", missing, bound, flags)
		}
		t.Logf("%d of %d bytes, %d gaps, %.2f %% of all", missing, bound, flags, float64(missing)*100/float64(rate*hours*3600))
	})
}

// TestHonestLoss: a line that loses clearly less than is tolerated is never held against anybody, whatever the way it loses. What is dead for
// some seconds, or loses power, is not for long.
func TestHonestLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(virtualTB{t}, func(r *rapid.T) {
			w := newWorld(t)
			w.step, w.radio = 53*time.Millisecond, rapid.Bool().Draw(r, "radio")
			w.delay = time.Duration(rapid.IntRange(1, 300).Draw(r, "delay")) * time.Millisecond
			defer w.end()
			packets := rapid.SampledFrom([]int{1, 5, 10, 100, 400}).Draw(r, "packets") // a step
			loss := 4
			switch {
			case w.radio:
				loss = 30
			case packets <= 10: // 1.6 Mbit/s: the least tolerance is more than 2 %
				loss = 20
			}
			loss = rapid.IntRange(0, loss).Draw(r, "loss")
			onOff := time.Duration(rapid.SampledFrom([]int{0, 1, 7, 31}).Draw(r, "pause")) * time.Second
			dies := rapid.SampledFrom([]string{"", "", "line", "gateway", "user"}).Draw(r, "dies")
			at := time.Duration(rapid.IntRange(1, 200).Draw(r, "at")) * time.Second
			dead := time.Duration(rapid.IntRange(1, 8).Draw(r, "dead")) * time.Second
			gw, user := w.node("gateway"), w.node("user")
			// Ticks come at whole milliseconds, so no beacon leaves or comes in the very instant of a packet.
			time.Sleep(300 * time.Microsecond)
			start, rebooted := time.Now(), false
			w.lose(func(_, _, _ *node) int {
				if since := time.Since(start); dies == "line" && since >= at && since < at+dead {
					return 1000
				}
				return loss
			})
			held := map[ident.PublicKey]time.Duration{}
			w.flow(4*time.Minute, func() {
				since := time.Since(start)
				if onOff == 0 || since/onOff%2 == 0 {
					gw.send(user, Outside, packets, size)
					user.send(gw, Outside, packets/10+1, size)
				}
				if (dies == "gateway" || dies == "user") && since >= at && !rebooted {
					rebooted = true
					time.Sleep(300 * time.Microsecond)
					map[string]*node{"gateway": gw, "user": user}[dies].reboot()
				}
				for n, other := range map[*node]*node{gw: user, user: gw} {
					out, _ := n.gap(other, Outside, Out)
					if in, _ := n.gap(other, Outside, In); in || out {
						held[n.key] += w.step
					}
				}
			})
			for n, other := range map[*node]*node{gw: user, user: gw} {
				most := time.Duration(0)
				if dies != "" {
					most = 45 * time.Second
				}
				if held[n.key] > most {
					r.Errorf("the %s held something against the %s for %v: %+v", n.name, other.name, held[n.key], n.seen())
				}
			}
		})
	})
}

// TestDrift: the sum by itself.
func TestDrift(t *testing.T) {
	begin := time.Unix(1e9, 0)
	rapid.Check(t, func(r *rapid.T) {
		var d Drift
		var fullest, forgiven uint64
		missing := int64(0)
		for range rapid.IntRange(1, 100).Draw(r, "windows") {
			moved := rapid.Uint64Range(0, 1<<30).Draw(r, "moved")
			grown := rapid.Int64Range(-missing, int64(moved)).Draw(r, "grown")
			g := Tolerance(moved, windowLen, false)
			d.Take(grown, moved, g)
			missing += grown
			fullest, forgiven = max(fullest, moved), forgiven+g
			if !d.Over() && uint64(missing) > fullest+forgiven {
				r.Fatalf("%d missing, the fullest window is %d, %d are forgiven", missing, fullest, forgiven)
			}
			if d.Over() {
				break
			}
		}
	})
	d := Drift{}
	for range 3 {
		d.Take(1<<20, 1<<20, 1<<16)
	}
	if may, pardoned := d.Settle(begin); !may || !pardoned || d.Over() {
		t.Errorf("the first time is not pardoned: %v %v", may, pardoned)
	}
	for range 3 {
		d.Take(1<<20, 1<<20, 1<<16)
	}
	if may, _ := d.Settle(begin.Add(pardonEvery - 1)); may {
		t.Error("pardoned twice within the hour")
	}
	if may, pardoned := d.Settle(begin.Add(pardonEvery)); !may || !pardoned {
		t.Error("not pardoned after an hour")
	}
}
