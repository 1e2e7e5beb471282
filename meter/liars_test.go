package meter

import (
	"testing"
	"time"
)

// billable is what the gateway may ask for, and what the user would pay at most by its own count.
func billable(gw, user *node) (asked, payable uint64) {
	g, u := gw.total(user).Outside, user.total(gw).Outside
	return g.Delivered.Billed() + g.Recv.Billed(), u.Recv.Billed() + u.Delivered.Billed()
}

// TestLiars lets each kind of liar do its worst against an honest peer for five minutes of 16 Mbit/s, and holds what comes of it
// against the bounds that docs/spec/meter.md states.
func TestLiars(t *testing.T) {
	const minutes = 5
	scale := func(c *Count, permille uint64) { *c = Count{c.Packets * permille / 1000, c.Bytes * permille / 1000} }
	for _, c := range []struct {
		name    string
		gateway bool // the liar; else the user
		lie     func(start time.Time) func(*Beacon) bool
		dir     Direction // in which the honest one shall see it
		reason  Reason
		within  time.Duration // 0: it is below the tolerance and not seen
		// Bounds on what the honest one's books say, in permille of the truth: the liar's gain is outside of them.
		check func(t *testing.T, honest, liar Tally)
	}{
		{
			name: "a gateway that says it sent half as much again", gateway: true,
			lie: func(time.Time) func(*Beacon) bool {
				return func(b *Beacon) bool { scale(&b.Sent, 1500); return true }
			},
			dir: In, reason: Lossy, within: 25 * time.Second,
			check: func(t *testing.T, user, gw Tally) {
				if user.Confirmed != user.Recv || user.Recv != gw.Sent {
					t.Errorf("the user's books moved: %+v", user)
				}
			},
		},
		{
			name: "a user that says a tenth less arrived",
			lie: func(time.Time) func(*Beacon) bool {
				return func(b *Beacon) bool { scale(&b.Recv, 900); scale(&b.EchoRecv, 900); return true }
			},
			dir: Out, reason: Lossy, within: 25 * time.Second,
			check: func(t *testing.T, gw, user Tally) {
				if gw.Delivered.Bytes < user.Recv.Bytes*899/1000 {
					t.Errorf("delivered %v of %v", gw.Delivered, user.Recv)
				}
			},
		},
		{
			name: "a user that stays just below the tolerance",
			lie: func(time.Time) func(*Beacon) bool {
				return func(b *Beacon) bool { scale(&b.Recv, 996); scale(&b.EchoRecv, 996); return true }
			},
			dir: Out, reason: Agreed,
			check: func(t *testing.T, gw, user Tally) { // it gains the tolerance, and no more
				if lost := user.Recv.Billed() - gw.Delivered.Billed(); lost > minutes*6*Tolerance(user.Recv.Billed()/(minutes*6), windowLen, false) {
					t.Errorf("%d lost", lost)
				}
			},
		},
		{
			name: "a user that is silent",
			lie:  func(time.Time) func(*Beacon) bool { return func(*Beacon) bool { return false } },
			dir:  Out, reason: Silent, within: 25 * time.Second,
			check: func(t *testing.T, gw, user Tally) {
				if gw.Delivered != (Count{}) || gw.Recv != user.Sent {
					t.Errorf("gateway %+v", gw)
				}
			},
		},
		{
			name: "a gateway that is silent", gateway: true,
			lie: func(time.Time) func(*Beacon) bool { return func(*Beacon) bool { return false } },
			dir: In, reason: Silent, within: 25 * time.Second,
			check: func(t *testing.T, user, gw Tally) {
				if user.Recv != gw.Sent || user.Delivered != (Count{}) {
					t.Errorf("user %+v", user)
				}
			},
		},
		{
			name: "a user that never echoes",
			lie: func(time.Time) func(*Beacon) bool {
				return func(b *Beacon) bool { b.EchoSeq, b.EchoEpoch, b.EchoRecv = 0, 0, Count{}; return true }
			},
			dir: Out, reason: Silent, within: 25 * time.Second,
		},
		{
			name: "a user that falls silent after a minute",
			lie: func(start time.Time) func(*Beacon) bool {
				return func(*Beacon) bool { return time.Since(start) < time.Minute }
			},
			dir: Out, reason: Silent, within: 90 * time.Second,
			check: func(t *testing.T, gw, user Tally) {
				if gw.Delivered.Bytes < user.Recv.Bytes/minutes*9/10 {
					t.Errorf("what was agreed is gone: %+v", gw)
				}
			},
		},
		{
			name: "a user that takes back what it has confirmed",
			lie: func(start time.Time) func(*Beacon) bool {
				return func(b *Beacon) bool {
					if time.Since(start) > time.Minute {
						scale(&b.Recv, 100)
						scale(&b.EchoRecv, 100)
					}
					return true
				}
			},
			dir: Out, reason: Rewound, within: 62 * time.Second,
			check: func(t *testing.T, gw, user Tally) {
				if gw.Delivered.Bytes < user.Recv.Bytes/minutes*9/10 {
					t.Errorf("it took back what was agreed: %+v", gw)
				}
			},
		},
		{
			name: "a gateway that takes back what it has sent", gateway: true,
			lie: func(start time.Time) func(*Beacon) bool {
				return func(b *Beacon) bool {
					if time.Since(start) > time.Minute {
						scale(&b.Sent, 100)
					}
					return true
				}
			},
			dir: In, reason: Rewound, within: 62 * time.Second,
		},
		{
			name: "a user that received more than was sent",
			lie: func(time.Time) func(*Beacon) bool {
				return func(b *Beacon) bool { scale(&b.Recv, 2000); scale(&b.EchoRecv, 2000); return true }
			},
			dir: Out, reason: Inflated, within: 10 * time.Second,
			check: func(t *testing.T, gw, user Tally) {
				if gw.Sent.behind(gw.Delivered) {
					t.Errorf("more delivered than sent: %+v", gw)
				}
			},
		},
		{
			name: "a user that received a little more than was sent",
			lie: func(time.Time) func(*Beacon) bool {
				return func(b *Beacon) bool { scale(&b.Recv, 1030); scale(&b.EchoRecv, 1030); return true }
			},
			dir: Out, reason: Inflated, within: time.Minute,
			check: func(t *testing.T, gw, user Tally) {
				if gw.Sent.behind(gw.Delivered) {
					t.Errorf("more delivered than sent: %+v", gw)
				}
			},
		},
		{
			name: "a gateway whose count jumps by a terabyte a second", gateway: true,
			lie: func(start time.Time) func(*Beacon) bool {
				return func(b *Beacon) bool {
					s := uint64(time.Since(start) / time.Second)
					b.Sent = b.Sent.plus(Count{s << 30, s << 40})
					return true
				}
			},
			dir: In, reason: Inflated, within: 5 * time.Second,
			check: func(t *testing.T, user, gw Tally) {
				if user.Recv != gw.Sent || user.Recv.behind(user.Confirmed) {
					t.Errorf("the user's books moved: %+v", user)
				}
			},
		},
		{
			name: "a user that says it sent half of what it did",
			lie: func(time.Time) func(*Beacon) bool {
				return func(b *Beacon) bool { scale(&b.Sent, 500); return true }
			},
			dir: In, reason: Understated, within: 25 * time.Second,
			check: func(t *testing.T, gw, user Tally) {
				if gw.Recv != user.Sent {
					t.Errorf("the gateway's own count moved: %+v", gw)
				}
			},
		},
		{
			name: "a user that starts anew with every beacon",
			lie: func(time.Time) func(*Beacon) bool {
				var last Beacon
				return func(b *Beacon) bool {
					now := *b
					b.Epoch += uint64(b.Seq)
					b.Sent, b.Recv = b.Sent.minus(last.Sent), Count{}
					b.EchoRecv = Count{}
					last = now
					return true
				}
			},
			dir: Out, reason: Lossy, within: 25 * time.Second,
			check: func(t *testing.T, gw, user Tally) {
				if gw.Recv != user.Sent {
					t.Errorf("the gateway's own count moved: %+v", gw)
				}
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			virtual(t, func(t *testing.T, w *world) {
				gw, user := w.node("gateway"), w.node("user")
				honest, liar := gw, user
				if c.gateway {
					honest, liar = user, gw
				}
				start := time.Now()
				liar.lie(c.lie(start))
				var seen time.Duration
				w.flow(minutes*time.Minute, func() {
					browse(gw, user)()
					honest.mu.Lock()
					defer honest.mu.Unlock()
					for _, e := range honest.events {
						if seen == 0 && e.Gap && e.Direction == c.dir && e.Reason == c.reason {
							seen = time.Since(start)
						}
					}
				})
				if c.within == 0 && len(honest.seen()) > 0 {
					t.Errorf("seen: %+v", honest.seen())
				}
				if c.within > 0 && (seen == 0 || seen > c.within) {
					t.Errorf("seen after %v, want within %v; events %+v", seen, c.within, honest.seen())
				}
				if gap, reason := honest.gap(liar, Outside, c.dir); gap != (c.within > 0) || gap && reason != c.reason {
					t.Errorf("after all: gap %v, %v", gap, reason)
				}
				if n := len(honest.seen()); n > 4 {
					t.Errorf("%d events: %+v", n, honest.seen())
				}
				time.Sleep(time.Minute)
				if c.check != nil {
					c.check(t, honest.total(liar).Outside, liar.total(honest).Outside)
				}
				// Whoever lies, what the honest one would pay or ask for stays below its own count.
				h := honest.total(liar).Outside
				if h.Sent.behind(h.Delivered) || h.Recv.behind(h.Confirmed) {
					t.Errorf("more agreed than counted: %+v", h)
				}

				// A liar that mends its ways is believed again after good windows, and not before.
				liar.lie(nil)
				liar.reboot() // true counters after false ones go back, but in a new epoch
				w.flow(3*time.Minute, browse(gw, user))
				if gap, reason := honest.gap(liar, Outside, c.dir); gap {
					t.Errorf("three honest minutes later: %v", reason)
				}
			})
		})
	}
}

// TestReplayedBeacon: a beacon that comes again, or later than a newer one, changes nothing. Sessions see to that too.
func TestReplayedBeacon(t *testing.T) {
	virtual(t, func(t *testing.T, w *world) {
		gw, user := w.node("gateway"), w.node("user")
		w.flow(time.Minute, func() {
			browse(gw, user)()
			user.mu.Lock()
			old := append([][]byte(nil), user.lastSent...)
			user.mu.Unlock()
			for _, b := range old[:max(len(old)-1, 0)] {
				gw.meter().Handle(user.key, b)
			}
		})
		time.Sleep(10 * time.Second)
		g, u := gw.total(user).Outside, user.total(gw).Outside
		if len(gw.seen()) > 0 || g.Delivered != u.Recv || g.Confirmed != u.Sent {
			t.Errorf("events %v, gateway %+v, user %+v", gw.seen(), g, u)
		}
		if s := gw.meter().View().Sessions[0]; s.Stale == 0 {
			t.Error("replayed beacons are not counted")
		}
		// Nor do those of a life that is over.
		before := user.lastSent[len(user.lastSent)-1]
		user.reboot()
		w.flow(30*time.Second, func() { browse(gw, user)(); gw.meter().Handle(user.key, before) })
		time.Sleep(10 * time.Second)
		g2, u2 := gw.total(user).Outside, user.total(gw).Outside
		if len(gw.seen()) > 0 || g2.Delivered != u2.Recv || g2.Confirmed != u2.Sent {
			t.Errorf("after a reboot: events %v, gateway %+v, user %+v", gw.seen(), g2, u2)
		}
	})
}

// TestAskingForever: a peer that asks and asks gets few beacons out of an idle node.
func TestAskingForever(t *testing.T) {
	virtual(t, func(t *testing.T, w *world) {
		a, b := w.node("a"), w.node("b")
		a.send(b, Mesh, 10, size)
		time.Sleep(time.Minute)
		before := b.sentBeacons()
		for seq := range uint32(3600) {
			ask := Beacon{Kind: Mesh, Ask: true, Seq: 1000 + seq, Epoch: a.sessions[b.key].Epoch, Sent: Count{10, 10 * size}}
			p, _ := ask.AppendTo(nil)
			b.meter().Handle(a.key, p)
			time.Sleep(time.Second)
		}
		if n := b.sentBeacons() - before; n == 0 || n > idleReplies {
			t.Errorf("%d beacons in an idle hour", n)
		}
	})
}

// TestVerdictOutlivesSession: opening another session clears nobody.
func TestVerdictOutlivesSession(t *testing.T) {
	virtual(t, func(t *testing.T, w *world) {
		gw, user := w.node("gateway"), w.node("user")
		user.lie(func(b *Beacon) bool {
			b.Recv, b.EchoRecv = Count{b.Recv.Packets / 2, b.Recv.Bytes / 2}, Count{b.EchoRecv.Packets / 2, b.EchoRecv.Bytes / 2}
			return true
		})
		for range 5 {
			w.flow(15*time.Second, browse(gw, user)) // shorter than two windows
			time.Sleep(2 * time.Second)
			for n, other := range map[*node]*node{gw: user, user: gw} {
				n.mu.Lock()
				delete(n.sessions, other.key)
				n.mu.Unlock()
			}
			time.Sleep(2 * time.Second)
		}
		if len(gw.seen()) != 1 || !gw.seen()[0].Gap || gw.seen()[0].Reason != Lossy {
			t.Errorf("events %+v", gw.seen())
		}
	})
}

// TestBillsMeet: what an honest gateway asks for and what an honest user would pay differ by no more than the loss on the way.
func TestBillsMeet(t *testing.T) {
	virtual(t, func(t *testing.T, w *world) {
		gw, user := w.node("gateway"), w.node("user")
		w.lose(func(_, _, _ *node) int { return 20 })
		w.flow(2*time.Minute, browse(gw, user))
		time.Sleep(30 * time.Second)
		if asked, payable := billable(gw, user); asked != payable {
			t.Errorf("asked %d, payable %d", asked, payable)
		}
	})
}
