package nat64

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// TableConfig says how far a [Table] may grow.
type TableConfig struct {
	Max      int           // addresses in all
	PerOwner int           // of one client: its own and those of the devices behind it
	Idle     time.Duration // what has not been used for so long is given back

	// Take gives an IPv4 address of the pool to a client's IPv6 address; false when it has none left. Give takes it back. Both
	// are called with the table locked, and so must not call it.
	Take func(owner Owner, v6 netip.Addr) (netip.Addr, bool)
	Give func(v4 netip.Addr)
}

// Owner is a client's public key.
type Owner [32]byte

// reuse is how long an address of a client that has all it may have must have rested to be given to another device of the
// same client. Devices change their address every day or so (RFC 8981), so old ones pile up.
const reuse = 5 * time.Minute

// Table says which IPv4 address stands for which IPv6 address (what TAYGA calls its dynamic pool). Looking up a known one
// allocates nothing.
type Table struct {
	cfg TableConfig
	now atomic.Int64 // by Tick, in nanoseconds of its first time

	mu     sync.RWMutex
	first  time.Time
	by6    map[netip.Addr]*mapping
	by4    map[netip.Addr]*mapping
	owners map[Owner][]*mapping // each at most PerOwner long
}

type mapping struct {
	v6, v4 netip.Addr
	owner  Owner
	used   atomic.Int64 // as now
}

// NewTable checks cfg and returns an empty table.
func NewTable(cfg TableConfig) (*Table, error) {
	if cfg.Max <= 0 || cfg.PerOwner <= 0 || cfg.Idle <= 0 || cfg.Take == nil || cfg.Give == nil {
		return nil, fmt.Errorf("NAT64 table: limits and idle time must be positive (%d in all, %d per client, %s), and a pool given",
			cfg.Max, cfg.PerOwner, cfg.Idle)
	}
	return &Table{cfg: cfg, by6: map[netip.Addr]*mapping{}, by4: map[netip.Addr]*mapping{}, owners: map[Owner][]*mapping{}}, nil
}

// Map returns the IPv4 address that stands for v6, which belongs to owner, and takes one from the pool if it has none.
// False: the pool or the owner's share of it is used up, or v6 is another owner's.
func (t *Table) Map(owner Owner, v6 netip.Addr) (netip.Addr, bool) {
	t.mu.RLock()
	m := t.by6[v6]
	t.mu.RUnlock()
	if m == nil {
		if m = t.add(owner, v6); m == nil {
			return netip.Addr{}, false
		}
	}
	if m.owner != owner {
		return netip.Addr{}, false
	}
	m.used.Store(t.now.Load())
	return m.v4, true
}

func (t *Table) add(owner Owner, v6 netip.Addr) *mapping {
	if !v6.Is6() || v6.Is4In6() || v6.Zone() != "" {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if m := t.by6[v6]; m != nil {
		return m
	}
	if len(t.owners[owner]) >= t.cfg.PerOwner && !t.releaseOldestLocked(owner) || len(t.by6) >= t.cfg.Max {
		return nil
	}
	v4, ok := t.cfg.Take(owner, v6)
	if !ok {
		return nil
	}
	if !v4.Is4() || t.by4[v4] != nil {
		return nil // a pool that gives what is not its to give: better no NAT64 than two devices with one address
	}
	m := &mapping{v6: v6, v4: v4, owner: owner}
	m.used.Store(t.now.Load())
	t.by6[v6], t.by4[v4] = m, m
	t.owners[owner] = append(t.owners[owner], m)
	return m
}

// releaseOldestLocked makes room in an owner's share.
func (t *Table) releaseOldestLocked(owner Owner) bool {
	var old *mapping
	for _, m := range t.owners[owner] {
		if old == nil || m.used.Load() < old.used.Load() {
			old = m
		}
	}
	if old == nil || t.now.Load()-old.used.Load() < int64(reuse) {
		return false
	}
	t.releaseLocked(old)
	return true
}

func (t *Table) releaseLocked(m *mapping) {
	delete(t.by6, m.v6)
	delete(t.by4, m.v4)
	rest := slices.DeleteFunc(t.owners[m.owner], func(o *mapping) bool { return o == m })
	if t.owners[m.owner] = rest; len(rest) == 0 {
		delete(t.owners, m.owner)
	}
	t.cfg.Give(m.v4)
}

// Reverse says for whom an IPv4 address stands, and whose that is.
func (t *Table) Reverse(v4 netip.Addr) (v6 netip.Addr, owner Owner, ok bool) {
	t.mu.RLock()
	m := t.by4[v4]
	t.mu.RUnlock()
	if m == nil {
		return netip.Addr{}, Owner{}, false
	}
	m.used.Store(t.now.Load())
	return m.v6, m.owner, true
}

// Tick moves the clock and gives back what has been idle for too long. It never runs backwards.
func (t *Table) Tick(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.first.IsZero() {
		t.first = now
	}
	d := int64(now.Sub(t.first))
	if d <= t.now.Load() {
		return
	}
	t.now.Store(d)
	for _, m := range t.by6 {
		if d-m.used.Load() >= int64(t.cfg.Idle) {
			t.releaseLocked(m)
		}
	}
}

// Release gives back all addresses of an owner, whose lease has ended.
func (t *Table) Release(owner Owner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range slices.Clone(t.owners[owner]) {
		t.releaseLocked(m)
	}
}

// Len is how many addresses are in use.
func (t *Table) Len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.by6)
}
