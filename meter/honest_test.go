package meter

import (
	"testing"
	"testing/synctest"
	"time"

	"weft/ident"
)

// 100 packets of 1000 bytes each 50 ms are 16 Mbit/s; 10 are what goes up meanwhile.
const (
	down, up = 100, 10
	size     = 1000
)

func browse(gw, user *node) func() {
	return func() {
		gw.send(user, Outside, down, size)
		user.send(gw, Outside, up, size)
	}
}

// TestHonest: two honest ends come to the same totals to the byte, report nothing, and fall silent after traffic has.
func TestHonest(t *testing.T) {
	for _, c := range []struct {
		name string
		loss int
	}{{"no loss", 0}, {"half a percent", 5}} {
		t.Run(c.name, func(t *testing.T) {
			virtual(t, func(t *testing.T, w *world) {
				gw, user := w.node("gateway"), w.node("user")
				w.lose(func(_, _, _ *node) int { return c.loss })
				w.flow(2*time.Minute, browse(gw, user))
				time.Sleep(30 * time.Second)
				g, u := gw.total(user).Outside, user.total(gw).Outside
				if g.Delivered != u.Confirmed || u.Delivered != g.Confirmed {
					t.Errorf("the ends disagree: gateway %+v, user %+v", g, u)
				}
				if g.Delivered != u.Recv || u.Delivered != g.Recv {
					t.Errorf("what arrived is not what is agreed: gateway %+v, user %+v", g, u)
				}
				if g.Sent.Packets != 2400*down || c.loss == 0 && g.Delivered != g.Sent {
					t.Errorf("gateway sent %+v, delivered %+v", g.Sent, g.Delivered)
				}
				if len(gw.seen())+len(user.seen()) > 0 {
					t.Errorf("events %v %v", gw.seen(), user.seen())
				}
				if per := gw.sentBeacons(); per > 2*120*4 {
					t.Errorf("%d beacons in two minutes", per)
				}
				before := gw.sentBeacons() + user.sentBeacons()
				time.Sleep(time.Hour)
				if n := gw.sentBeacons() + user.sentBeacons() - before; n != 0 {
					t.Errorf("%d beacons while idle", n)
				}
			})
		})
	}
}

// TestLastBeaconLost: the last beacons are repeated until answered, so that the ends agree although the way loses half of everything.
func TestLastBeaconLost(t *testing.T) {
	virtual(t, func(t *testing.T, w *world) {
		a, b := w.node("a"), w.node("b")
		for range 20 {
			a.send(b, Mesh, 7, 300)
			w.lose(func(_, _, _ *node) int { return 500 })
			time.Sleep(2 * time.Minute)
			w.lose(func(_, _, _ *node) int { return 0 })
		}
		a.send(b, Mesh, 7, 300)
		time.Sleep(time.Minute)
		if x, y := a.total(b).Mesh, b.total(a).Mesh; x.Delivered != y.Confirmed || x.Delivered.Packets != 21*7 {
			t.Errorf("a %+v, b %+v", x, y)
		}
		if per := a.sentBeacons() + b.sentBeacons(); per > 21*12 {
			t.Errorf("%d beacons for 21 small exchanges", per)
		}
	})
}

// TestRebootCleanly: a node that restarts continues its totals; nothing is forgiven and nothing doubled, at either end.
func TestRebootCleanly(t *testing.T) {
	for _, who := range []string{"gateway", "user"} {
		t.Run(who, func(t *testing.T) {
			virtual(t, func(t *testing.T, w *world) {
				gw, user := w.node("gateway"), w.node("user")
				for range 5 {
					w.flow(25*time.Second, browse(gw, user))
					time.Sleep(10 * time.Second)
					map[string]*node{"gateway": gw, "user": user}[who].reboot()
				}
				w.flow(25*time.Second, browse(gw, user))
				time.Sleep(10 * time.Second)
				g, u := gw.total(user).Outside, user.total(gw).Outside
				want := Count{6 * 500 * down, 6 * 500 * down * size}
				if g.Sent != want || u.Recv != want || g.Delivered != want || u.Confirmed != want {
					t.Errorf("want %v; gateway %+v, user %+v", want, g, u)
				}
				if len(gw.seen())+len(user.seen()) > 0 {
					t.Errorf("events %v %v", gw.seen(), user.seen())
				}
			})
		})
	}
}

// TestRebootInFullFlight: traffic does not stop for the reboot. What the ends agree on may lack what flowed between the last
// comparison and the new life, and never exceeds what either counted.
func TestRebootInFullFlight(t *testing.T) {
	virtual(t, func(t *testing.T, w *world) {
		gw, user := w.node("gateway"), w.node("user")
		for range 4 {
			w.flow(27300*time.Millisecond, browse(gw, user))
			user.reboot()
		}
		w.flow(30*time.Second, browse(gw, user))
		time.Sleep(10 * time.Second)
		g, u := gw.total(user).Outside, user.total(gw).Outside
		if u.Recv.behind(u.Confirmed) || g.Sent.behind(g.Delivered) || u.Recv.behind(g.Delivered) {
			t.Errorf("more agreed than counted: gateway %+v, user %+v", g, u)
		}
		second := uint64(20 * down)
		if lack := g.Sent.Packets - g.Delivered.Packets; lack > 4*2*second {
			t.Errorf("%d packets forgiven, %d a second flow", lack, second)
		}
		// What was in flight at a reboot may look like loss for two windows, now and then; never for longer.
		for _, n := range []*node{gw, user} {
			last := map[Direction]Event{}
			for _, e := range n.seen() {
				last[e.Direction] = e
			}
			for _, e := range last {
				if e.Gap {
					t.Errorf("a reboot is held against an honest node: %+v", e)
				}
			}
		}
	})
}

// TestRestartInOneProcess: a meter that is made anew while sessions live on counts nothing again.
func TestRestartInOneProcess(t *testing.T) {
	virtual(t, func(t *testing.T, w *world) {
		a, b := w.node("a"), w.node("b")
		a.mu.Lock()
		a.links = []LinkReading{{Neighbour: b.id, Epoch: 9, Recv: []Flow{{1, 2, 10, 1000}, {2, 2, 5, 500}, {3, 0, 1, 60}}, Sent: []Flow{{4, 77, 1, 1}}}}
		a.mu.Unlock()
		for range 3 {
			w.flow(5*time.Second, browse(a, b))
			time.Sleep(5 * time.Second)
			a.stop()
			a.start()
		}
		if got, want := a.total(b).Outside.Sent.Packets, uint64(3*100*down); got != want {
			t.Errorf("sent %d, want %d", got, want)
		}
		n := a.meter().View().Neighbours
		if len(n) != 1 || len(n[0].Classes) != 3 || n[0].Classes[1].Recv != (Count{15, 1500}) || n[0].Classes[2].Sent != (Count{1, 1}) {
			t.Errorf("neighbours %+v", n)
		}
	})
}

// TestView shows what weft meter prints.
func TestView(t *testing.T) {
	virtual(t, func(t *testing.T, w *world) {
		gw, user := w.node("gateway"), w.node("user")
		w.flow(20*time.Second, browse(gw, user))
		v := gw.meter().View()
		if len(v.Sessions) != 1 || v.Sessions[0].Peer != user.key || v.Sessions[0].Kind != Outside {
			t.Fatalf("sessions %+v", v.Sessions)
		}
		s := v.Sessions[0]
		if want := uint64(20 * down * size); s.Out.Rate < want*8/10 || s.Out.Rate > want*12/10 || s.Out.Rate10 < want*9/10 || s.Out.Rate10 > want*11/10 {
			t.Errorf("rates %d and %d, want %d", s.Out.Rate, s.Out.Rate10, want)
		}
		if s.BeaconAge < 0 || s.BeaconAge > 2*time.Second {
			t.Errorf("beacon age %v", s.BeaconAge)
		}
		if len(v.Use) != 1 || v.Use[0].Today.OutsideSent.Packets < 390*down || v.Use[0].Month != v.Use[0].Today {
			t.Errorf("use %+v", v.Use)
		}
		if v.Stored.IsZero() || v.Written == 0 || v.StoreError != "" || v.Damaged != "" {
			t.Errorf("store: %+v", v)
		}
		time.Sleep(20 * time.Second)
		if s := gw.meter().View().Sessions[0]; s.Out.Rate != 0 || s.Out.Rate10 != 0 {
			t.Errorf("rates after the end: %+v", s)
		}
	})
}

// TestDays: use goes to the day it is of, months add up, also after a restart and when the clock goes back.
func TestDays(t *testing.T) {
	r := SessionReading{Peer: ident.PublicKey{1}, Epoch: 5}
	cfg := Config{
		Dir: t.TempDir(), Log: quiet(), Sessions: func() []SessionReading { return []SessionReading{r} },
		Session: func(ident.PublicKey) (SessionReading, bool) { return r, true }, Links: func() []LinkReading { return nil },
		Send:    func(ident.PublicKey, []byte) error { return nil },
		NextHop: func(ident.NodeID) (ident.NodeID, bool) { return 0, false }, Penalise: func(ident.NodeID, int) {},
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	at := func(now time.Time, packets uint64) {
		m.save(now, m.newDay(now))
		r.OutsideSent = r.OutsideSent.plus(Count{packets, packets * size})
		m.tick(now)
		m.save(now, m.newDay(now))
	}
	check := func(what string, today, month uint64) {
		t.Helper()
		v := m.View().Use
		if len(v) != 1 || v[0].Today.OutsideSent.Packets != today || v[0].Month.OutsideSent.Packets != month {
			t.Errorf("%s: want %d and %d, got %+v", what, today, month, v)
		}
	}
	begin := time.Date(2028, 1, 1, 12, 0, 0, 0, time.UTC)
	for d := range 40 { // to the ninth of February
		at(begin.AddDate(0, 0, d), 100)
	}
	check("after 40 days", 100, 900)
	at(begin.AddDate(0, 0, 38), 7)
	check("a day back", 107, 807)
	at(begin.AddDate(70, 0, 0), 1)
	check("in 2098", 1, 1)
	at(begin.AddDate(0, 0, 40), 1)
	check("the next day", 1, 908)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if m, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	at(begin.AddDate(0, 0, 40), 1)
	check("after a restart", 2, 909)
	days, err := m.History(begin, begin.AddDate(0, 0, 60))
	if err != nil || len(days) != 41 || !days[0].Day.Equal(begin.Truncate(24*time.Hour)) || days[7].Use[0].Today.OutsideSent.Packets != 100 {
		t.Errorf("%d days, %v", len(days), err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

func TestDaysKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _, err := openStore(t.TempDir(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		s.db.NoSync = true
		for day := range uint32(keepDays + 30) {
			b := newBatch()
			b.days[dayKey{1000 + day, ident.PublicKey{1}}] = &Use{}
			b.days[dayKey{1000 + day, ident.PublicKey{2}}] = &Use{}
			if err := s.write(&b); err != nil {
				t.Fatal(err)
			}
		}
		rows, first := 0, uint32(0)
		if err := s.use(0, 1<<31, func(d uint32, _ ident.PublicKey, _ Use) {
			if rows++; first == 0 {
				first = d
			}
		}); err != nil || rows != 2*keepDays || first != 1030 || len(s.days) != keepDays {
			t.Errorf("%d rows from %d on, %d days, %v", rows, first, len(s.days), err)
		}
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
}
