package guest

import (
	"errors"
	"net/netip"
	"testing"
	"time"
)

// fakeGate is the kernel in memory: bytes pass when the test says so, and quotas hold.
type fakeGate struct {
	t      testing.TB
	in     map[MAC]*fakePass
	left   map[string]uint64 // of pools with a quota
	hosts  []neighbour
	broken error
}

type fakePass struct {
	grant
	traffic
}

func newFakeGate(t testing.TB) *fakeGate {
	return &fakeGate{t: t, in: map[MAC]*fakePass{}, left: map[string]uint64{}}
}

func (f *fakeGate) allow(m MAC, g grant) error {
	if f.broken != nil {
		return f.broken
	}
	if f.in[m] != nil {
		f.t.Errorf("%s let in twice", m)
	}
	f.in[m] = &fakePass{grant: g}
	if _, ok := f.left[g.pool]; g.bytes > 0 && !ok {
		f.left[g.pool] = g.bytes
	}
	return nil
}

func (f *fakeGate) deny(m MAC) (traffic, error) {
	p := f.in[m]
	if p == nil {
		return traffic{}, nil
	}
	delete(f.in, m)
	for _, o := range f.in {
		if o.pool == p.pool {
			return p.traffic, nil
		}
	}
	delete(f.left, p.pool)
	return p.traffic, nil
}

func (f *fakeGate) counters() (map[MAC]traffic, error) {
	out := map[MAC]traffic{}
	for m, p := range f.in {
		out[m] = p.traffic
	}
	return out, f.broken
}

func (f *fakeGate) neighbours() ([]neighbour, error) { return f.hosts, nil }

func (f *fakeGate) names() (map[MAC]string, error) { return nil, errors.New("no names") }

// pass sends bytes to and from a device and reports whether the kernel lets them through.
func (f *fakeGate) pass(m MAC, up, down uint64) bool {
	p := f.in[m]
	if p == nil {
		return false
	}
	p.up += up
	p.down += down
	if left, ok := f.left[p.pool]; ok {
		f.left[p.pool] = left - min(left, up+down)
		return f.left[p.pool] > 0
	}
	return true
}

func (f *fakeGate) host(m MAC, addr string) {
	f.hosts = append(f.hosts, neighbour{m, netip.MustParseAddr(addr), true})
}

// clock is a clock that tests move.
type clock struct{ t time.Time }

func newClock() *clock { return &clock{time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time { return c.t }

func (c *clock) add(d time.Duration) { c.t = c.t.Add(d) }

var (
	macA = MAC{2, 0, 0, 0, 0, 0xa}
	macB = MAC{2, 0, 0, 0, 0, 0xb}
)

func testConfig(t testing.TB, c *clock) Config {
	return Config{Interface: "br-guest", StateDir: t.TempDir(), Prefix: netip.MustParsePrefix("301:1:2:3::/64"), Range: netip.MustParsePrefix("10.1.2.0/24"),
		Out: []string{"weft0"}, Now: c.now}
}

// opened returns guests over a gate in memory, with two devices on the link.
func opened(t testing.TB, c *clock, change func(*Config)) (*Guests, *fakeGate) {
	t.Helper()
	cfg := testConfig(t, c)
	if change != nil {
		change(&cfg)
	}
	g, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	f := newFakeGate(t)
	f.host(macA, "10.1.2.10")
	f.host(macA, "301:1:2:3::a")
	f.host(macB, "10.1.2.11")
	if err := g.desk.open(f); err != nil {
		t.Fatal(err)
	}
	return g, f
}
