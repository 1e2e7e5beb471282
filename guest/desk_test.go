package guest

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

var (
	addrA = netip.MustParseAddr("10.1.2.10")
	addrB = netip.MustParseAddr("10.1.2.11")
)

func tick(t testing.TB, g *Guests) {
	t.Helper()
	if err := g.desk.tick(); err != nil {
		t.Fatal(err)
	}
}

func TestVoucherLetsIn(t *testing.T) {
	c := newClock()
	g, f := opened(t, c, nil)
	v := create(t, g.store, Spec{Minutes: 10, Bytes: 1000, Devices: 2})
	cl, err := g.desk.visit(addrA)
	if err != nil || cl.State != StateSeen {
		t.Fatalf("%v %+v", err, cl)
	}
	if _, err := g.desk.visit(netip.MustParseAddr("10.1.2.99")); !errors.Is(err, errStranger) {
		t.Errorf("a stranger: %v", err)
	}
	if cl, err = g.desk.redeem(addrA, v.Code); err != nil || cl.State != StateAllowed || cl.Left != 10*time.Minute || *cl.BytesLeft != 1000 {
		t.Fatalf("%v %+v", err, cl)
	}
	if _, err = g.desk.redeem(addrB, v.Code); err != nil {
		t.Fatal(err)
	}
	// Both drink from one pool.
	f.pass(macA, 100, 300)
	f.pass(macB, 0, 200)
	c.add(time.Second)
	tick(t, g)
	if v, _ := g.store.Get(v.ID); v.Used != 600 {
		t.Errorf("used %d of the voucher, want 600", v.Used)
	}
	st := g.Status()
	if len(st.Clients) != 2 || *st.Clients[0].BytesLeft != 400 || st.Clients[0].Down != 300 || st.Clients[0].DownBps != 1200 {
		t.Errorf("%+v", st.Clients)
	}
	if f.pass(macB, 0, 400) {
		t.Error("the pool has no bottom")
	}
	c.add(time.Second)
	tick(t, g)
	if len(f.in) != 0 || g.Status().Clients[0].State != StateExpired {
		t.Errorf("used up: %+v %+v", f.in, g.Status().Clients)
	}
	// More bytes let both in again, with all of the new ones.
	if _, err := g.store.Renew(v.ID, Renewal{Bytes: 500}); err != nil {
		t.Fatal(err)
	}
	if err := g.Refresh(v.ID); err != nil || len(f.in) != 2 || f.left[v.ID] != 500 {
		t.Errorf("%v %+v %+v", err, f.in, f.left)
	}
	if _, err := g.store.Renew(v.ID, Renewal{Bytes: 250}); err != nil {
		t.Fatal(err)
	}
	f.pass(macA, 50, 0)
	if err := g.Refresh(v.ID); err != nil || len(f.in) != 2 || f.left[v.ID] != 700 {
		t.Errorf("renewed while in use: %v %+v %+v", err, f.in, f.left)
	}
	c.add(10 * time.Minute)
	tick(t, g)
	if len(f.in) != 0 {
		t.Errorf("its time is over, and the kernel has %+v", f.in)
	}
}

func TestRestartKeepsWhatIsLeft(t *testing.T) {
	c := newClock()
	g, f := opened(t, c, nil)
	v := create(t, g.store, Spec{Bytes: 1000})
	if _, err := g.desk.redeem(addrA, v.Code); err != nil {
		t.Fatal(err)
	}
	f.pass(macA, 0, 250)
	if err := g.desk.close(); err != nil { // counts what the last tick has not seen
		t.Fatal(err)
	}
	h, err := Open(g.cfg)
	if err != nil {
		t.Fatal(err)
	}
	f2 := newFakeGate(t)
	if err := h.desk.open(f2); err != nil || f2.in[macA] == nil || f2.left[v.ID] != 750 {
		t.Errorf("%v %+v %+v", err, f2.in, f2.left)
	}
	if err := h.desk.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.desk.visit(addrA); err == nil {
		t.Error("served after the end")
	}
}

// TestCountersReachTheDisk: a crash costs a minute of counting at most.
func TestCountersReachTheDisk(t *testing.T) {
	c := newClock()
	g, f := opened(t, c, nil)
	v := create(t, g.store, Spec{Bytes: 1e6})
	if _, err := g.desk.redeem(addrA, v.Code); err != nil {
		t.Fatal(err)
	}
	used := func() uint64 {
		s, err := OpenVouchers(g.store.path, c.now)
		if err != nil {
			t.Fatal(err)
		}
		return s.List()[0].Used
	}
	f.pass(macA, 0, 1000)
	for range 59 {
		c.add(time.Second)
		tick(t, g)
	}
	if used() != 0 {
		t.Error("written all the time: flash wears out")
	}
	c.add(time.Second)
	tick(t, g)
	if used() != 1000 {
		t.Errorf("after a minute %d bytes are on disk", used())
	}
}

func TestGuessing(t *testing.T) {
	c := newClock()
	g, f := opened(t, c, nil)
	v := create(t, g.store, Spec{Devices: 9})
	for i := range 20 {
		_, err := g.desk.redeem(addrA, "WRONG")
		if want := i < triesPerDevice; errors.Is(err, ErrNoVoucher) != want || errors.Is(err, errTooFast) == want {
			t.Fatalf("try %d: %v", i, err)
		}
	}
	if _, err := g.desk.redeem(addrA, v.Code); !errors.Is(err, errTooFast) {
		t.Errorf("the right code from one that guesses: %v", err)
	}
	if _, err := g.desk.redeem(addrB, v.Code); err != nil {
		t.Errorf("another device: %v", err)
	}
	c.add(12 * time.Second)
	if _, err := g.desk.redeem(addrA, v.Code); err != nil {
		t.Errorf("after a while: %v", err)
	}
	// Many devices, or one with many addresses: together no more than one a second.
	wrong := 0
	for i := range 500 {
		m := MAC{2, 1, 0, 0, byte(i >> 8), byte(i)}
		f.hosts = []neighbour{{m, netip.AddrFrom4([4]byte{10, 1, byte(4 + i>>8), byte(i)}), true}}
		if _, err := g.desk.redeem(f.hosts[0].addr, "WRONG"); errors.Is(err, ErrNoVoucher) {
			wrong++
		}
	}
	if wrong > triesInAll {
		t.Errorf("%d guesses at once", wrong)
	}
	// Right codes use up nothing.
	f.hosts = []neighbour{{macB, addrB, true}}
	c.add(time.Minute)
	for range 50 {
		if _, err := g.desk.redeem(addrB, v.Code); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAddressMoves(t *testing.T) {
	c := newClock()
	g, f := opened(t, c, nil)
	if _, err := g.desk.redeem(addrA, create(t, g.store, Spec{}).Code); err != nil {
		t.Fatal(err)
	}
	f.hosts = []neighbour{{macB, addrA, true}}
	if cl, err := g.desk.visit(addrA); err != nil || cl.MAC != macB || cl.State == StateAllowed {
		t.Errorf("the address's new owner is %v %+v", err, cl)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	c := newClock()
	g, f := opened(t, c, nil)
	if _, err := g.desk.redeem(addrA, create(t, g.store, Spec{}).Code); err != nil {
		t.Fatal(err)
	}
	for i := range maxClients + 500 {
		c.add(time.Millisecond)
		f.hosts = []neighbour{{MAC{2, 2, 0, 0, byte(i >> 8), byte(i)}, netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), true}}
		if _, err := g.desk.visit(f.hosts[0].addr); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 100 { // and one device with many addresses
		f.hosts = []neighbour{{macA, netip.MustParseAddr(fmt.Sprintf("301:1:2:3::%x", i)), true}}
		if _, err := g.desk.visit(f.hosts[0].addr); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(g.desk.devices); n > maxClients {
		t.Errorf("%d devices remembered", n)
	}
	if n := len(g.desk.byAddr); n > maxClients+maxAddrs {
		t.Errorf("%d addresses remembered", n)
	}
	if dev := g.desk.devices[macA]; dev == nil || dev.state != StateAllowed || len(dev.addrs) > maxAddrs {
		t.Errorf("the one with a voucher: %+v", dev)
	}
}

func TestTapAndOpen(t *testing.T) {
	c := newClock()
	g, f := opened(t, c, func(c *Config) { c.Access, c.Session = AccessTap, time.Hour })
	if cl, err := g.desk.tap(addrA); err != nil || f.in[macA] == nil || f.in[macA].left != time.Hour {
		t.Errorf("%v %+v", err, cl)
	}
	c.add(time.Hour)
	tick(t, g)
	if f.in[macA] != nil {
		t.Error("an hour is over")
	}
	g, f = opened(t, c, func(c *Config) { c.Access = AccessOpen })
	tick(t, g)
	if len(f.in) != 2 {
		t.Errorf("an open network has let in %+v", f.in)
	}
	if _, err := g.desk.tap(addrA); err == nil {
		t.Error("there is nothing to tap")
	}
	f.hosts = nil
	c.add(time.Hour)
	tick(t, g)
	if len(f.in) != 0 {
		t.Errorf("all are gone, and the kernel has %+v", f.in)
	}
}

// TestClockIsSet: a router that wakes up in 1970 and learns the time takes no minutes from anybody.
func TestClockIsSet(t *testing.T) {
	c := newClock()
	g, f := opened(t, c, nil)
	old := create(t, g.store, Spec{Minutes: 10})
	if _, err := g.store.Redeem(old.Code, macB); err != nil {
		t.Fatal(err)
	}
	c.add(time.Minute)
	if err := g.desk.open(f); err != nil { // as if started now: what is older has true dates
		t.Fatal(err)
	}
	v := create(t, g.store, Spec{Minutes: 10})
	if _, err := g.desk.redeem(addrA, v.Code); err != nil {
		t.Fatal(err)
	}
	c.add(50 * 365 * 24 * time.Hour)
	g.desk.mu.Lock()
	g.desk.clockSetLocked(c.now(), 50*365*24*time.Hour)
	g.desk.mu.Unlock()
	tick(t, g)
	if v, _ := g.store.Get(old.ID); v.State(c.now()) != VoucherExpired {
		t.Errorf("a voucher of the true past has become %+v", v)
	}
	if f.in[macA] == nil || g.Status().Clients[0].Left < 9*time.Minute {
		t.Errorf("the step has cost the guest his time: %+v", g.Status().Clients[0])
	}
}
