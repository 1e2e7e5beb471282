package guest

import (
	"cmp"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits of what strangers can make us remember and try.
const (
	maxClients     = 4096
	maxAddrs       = 16               // addresses remembered of one device
	forgetAfter    = 24 * time.Hour   // a device that is gone and has nothing
	presentFor     = 3 * time.Minute  // how long after its last sign of life a device counts as here
	flushEvery     = time.Minute      // counters to disk
	clockStep      = 90 * time.Second // a clock that moves by more than this was set
	triesPerDevice = 5                // wrong codes in a row, then one every 12 s
	triesInAll     = 60               // of all devices, then one a second
)

// Brute force: at one guess a second for a year (2^25 of them) against a thousand unused vouchers of 44.6 bits (2^10), the
// chance to hit any is 2^-9.6, about 1 in 800. Changing MAC addresses does not help beyond the limit for all; it can only keep
// others from entering codes while it lasts, and right codes give their try back.

// The states of a client.
const (
	StateNew     = "new"     // has an address
	StateSeen    = "seen"    // has been shown the page
	StateAllowed = "allowed" // may use the internet
	StateExpired = "expired" // had a voucher or a session that is over
)

// Client is a device on the guest network.
type Client struct {
	MAC       MAC           `json:"mac"`
	Addrs     []netip.Addr  `json:"addrs"`
	Name      string        `json:"name,omitempty"` // as it calls itself by DHCP
	State     string        `json:"state"`
	Stay      bool          `json:"stay,omitempty"`    // stays without internet: its probes are answered
	Voucher   string        `json:"voucher,omitempty"` // ID
	Ends      time.Time     `json:"ends,omitzero"`
	Left      time.Duration `json:"left,omitempty"`       // until Ends
	Minutes   int64         `json:"minutes,omitempty"`    // of the voucher, for a bar
	BytesLeft *uint64       `json:"bytes_left,omitempty"` // absent: no limit
	Bytes     uint64        `json:"bytes,omitempty"`      // of the voucher, for a bar
	Up        uint64        `json:"up"`                   // bytes from the device since it was let in by this process
	Down      uint64        `json:"down"`                 // bytes to it
	UpBps     uint64        `json:"up_bps"`               // bits a second, over the last seconds
	DownBps   uint64        `json:"down_bps"`
	LastSeen  time.Time     `json:"last_seen"`
	Present   bool          `json:"present"`
}

// traffic is what a device has sent and got since it was let in, in bytes.
type traffic struct{ up, down uint64 }

// grant is the right that a gate is told of.
type grant struct {
	pool  string        // devices of one pool share its bytes
	bytes uint64        // left in the pool; 0: no limit
	left  time.Duration // 0: no end
}

// gate is the kernel's side: what it was told holds at once, and its limits hold without us.
type gate interface {
	allow(MAC, grant) error
	deny(MAC) (traffic, error)          // and what has passed until then
	counters() (map[MAC]traffic, error) // of all that are allowed
	neighbours() ([]neighbour, error)   // who is on the link
	names() (map[MAC]string, error)     // what devices call themselves
}

type neighbour struct {
	mac  MAC
	addr netip.Addr
	live bool // has answered lately
}

// errStranger: a request from an address that no device on the link has.
var errStranger = errors.New("this page is for devices of this network; yours has come another way")

// errTooFast is for people who guess.
var errTooFast = errors.New("too many wrong codes: wait a minute")

type device struct {
	mac      MAC
	addrs    []netip.Addr // the latest last
	name     string
	state    string
	stay     bool
	pool     string    // voucher ID, or "tap" and "open" without one
	until    time.Time // of a tap
	last     traffic   // counted already
	total    traffic
	rate     traffic // bits a second
	lastSeen time.Time
	tries    *rate.Limiter
	names    *rate.Limiter // bytes of name resolution while it is not let in
}

// desk knows the guests: who is here, who may, until when. It asks the store what vouchers are worth and tells the gate.
type desk struct {
	cfg   *Config
	store *Vouchers
	log   *slog.Logger
	now   func() time.Time

	mu      sync.Mutex
	gate    gate // nil while nothing is served
	devices map[MAC]*device
	byAddr  map[netip.Addr]MAC
	tries   *rate.Limiter
	names   *rate.Limiter // of devices that are not known yet
	ticked  time.Time
	flushed time.Time
	started time.Time

	namesTold time.Time // that somebody asks for too many names
}

func newDesk(cfg *Config, store *Vouchers) *desk {
	return &desk{cfg: cfg, store: store, log: cfg.Log, now: cfg.Now, devices: map[MAC]*device{}, byAddr: map[netip.Addr]MAC{},
		tries: rate.NewLimiter(1, triesInAll), names: newNames()}
}

// open begins to serve through g: whoever has an active voucher is let in before anything else happens.
func (d *desk) open(g gate) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gate = g
	d.started = d.now()
	d.ticked, d.flushed = d.started, d.started
	for _, m := range d.store.devices() {
		dev := d.deviceLocked(m)
		if d.devices[m] != dev {
			break // more than we can hold; they are let in when they ask for the page
		}
		if err := d.admitLocked(dev); err != nil {
			return err
		}
	}
	return nil
}

// close counts what is left to count and stops serving.
func (d *desk) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.countLocked(0)
	d.gate = nil
	for _, dev := range d.devices {
		if dev.state == StateAllowed {
			dev.state = StateSeen
		}
	}
	return errors.Join(err, d.store.Flush())
}

// deviceLocked finds or makes the entry of a device, at the cost of the one that has been away longest.
func (d *desk) deviceLocked(m MAC) *device {
	dev := d.devices[m]
	if dev != nil {
		return dev
	}
	if len(d.devices) >= maxClients {
		var victim *device
		for _, o := range d.devices {
			if o.state != StateAllowed && (victim == nil || o.lastSeen.Before(victim.lastSeen)) {
				victim = o
			}
		}
		if victim == nil {
			return &device{mac: m, state: StateNew, tries: rate.NewLimiter(0, 0), names: d.names} // full of guests with vouchers: not remembered, may try nothing
		}
		d.forgetLocked(victim)
	}
	dev = &device{mac: m, state: StateNew, lastSeen: d.now(), tries: rate.NewLimiter(rate.Every(12*time.Second), triesPerDevice), names: newNames()}
	d.devices[m] = dev
	return dev
}

func (d *desk) forgetLocked(dev *device) {
	for _, a := range dev.addrs {
		delete(d.byAddr, a)
	}
	delete(d.devices, dev.mac)
}

// lookLocked reads the neighbour table.
func (d *desk) lookLocked() error {
	if d.gate == nil {
		return errors.New("the guest network is not running")
	}
	ns, err := d.gate.neighbours()
	if err != nil {
		return err
	}
	now := d.now()
	for _, n := range ns {
		dev := d.deviceLocked(n.mac)
		if d.devices[n.mac] != dev {
			continue
		}
		if n.live {
			dev.lastSeen = now
		}
		old, known := d.byAddr[n.addr]
		if known && old == n.mac {
			continue
		}
		if known && d.devices[old] != nil { // the address has moved
			o := d.devices[old]
			o.addrs = slices.DeleteFunc(o.addrs, func(a netip.Addr) bool { return a == n.addr })
		}
		if len(dev.addrs) >= maxAddrs {
			delete(d.byAddr, dev.addrs[0])
			dev.addrs = dev.addrs[1:]
		}
		dev.addrs = append(dev.addrs, n.addr)
		d.byAddr[n.addr] = n.mac
	}
	return nil
}

// whoLocked finds the device that a request came from. An address that has just changed hands must not let its new owner
// act for the old one, so the neighbour table is read for every request; the page is asked for rarely.
func (d *desk) whoLocked(a netip.Addr) (*device, error) {
	if err := d.lookLocked(); err != nil {
		return nil, err
	}
	m, ok := d.byAddr[a.Unmap().WithZone("")]
	if !ok || d.devices[m] == nil {
		return nil, errStranger
	}
	return d.devices[m], nil
}

// visit notes that a device was shown the page, and returns what is known of it.
func (d *desk) visit(a netip.Addr) (Client, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dev, err := d.whoLocked(a)
	if err != nil {
		return Client{}, err
	}
	if dev.state == StateNew {
		dev.state = StateSeen
	}
	return d.clientLocked(dev), nil
}

// redeem lets a device in by a code.
func (d *desk) redeem(a netip.Addr, code string) (Client, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dev, err := d.whoLocked(a)
	if err != nil {
		return Client{}, err
	}
	// A right code does not use up a try, so that nobody is kept out by his own success. The try is taken first: nothing is
	// looked up for who has none.
	now := d.now()
	mine := dev.tries.ReserveN(now, 1)
	if !mine.OK() || mine.DelayFrom(now) > 0 {
		mine.CancelAt(now)
		return d.clientLocked(dev), errTooFast
	}
	all := d.tries.ReserveN(now, 1)
	if !all.OK() || all.DelayFrom(now) > 0 {
		all.CancelAt(now)
		mine.CancelAt(now)
		return d.clientLocked(dev), errTooFast
	}
	v, err := d.store.Redeem(code, dev.mac)
	if err != nil {
		d.log.Debug("voucher refused", "mac", dev.mac, "err", err)
		return d.clientLocked(dev), err
	}
	mine.CancelAt(now)
	all.CancelAt(now)
	d.log.Info("voucher redeemed", "mac", dev.mac, "voucher", v.ID, "name", v.Name)
	if err := d.admitLocked(dev); err != nil {
		return d.clientLocked(dev), err
	}
	return d.clientLocked(dev), nil
}

// tap lets a device in without a code, where the owner allows it.
func (d *desk) tap(a netip.Addr) (Client, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dev, err := d.whoLocked(a)
	if err != nil {
		return Client{}, err
	}
	if d.cfg.Access != AccessTap {
		return d.clientLocked(dev), errors.New("this network asks for a voucher")
	}
	dev.until = d.now().Add(d.cfg.Session)
	return d.clientLocked(dev), d.admitLocked(dev)
}

// stay notes that a device wants to stay without internet.
func (d *desk) stay(a netip.Addr) (Client, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dev, err := d.whoLocked(a)
	if err != nil {
		return Client{}, err
	}
	dev.stay = true
	if dev.state == StateNew {
		dev.state = StateSeen
	}
	return d.clientLocked(dev), nil
}

// admitLocked puts the device's best right into force, or takes it away if there is none.
func (d *desk) admitLocked(dev *device) error {
	if d.gate == nil || d.devices[dev.mac] != dev {
		return errors.New("the guest network is full or not running")
	}
	now := d.now()
	var g grant
	v, ok := d.store.For(dev.mac)
	switch {
	case ok:
		g.pool = v.ID
		if v.Bytes > 0 {
			g.bytes = v.Bytes - v.Used
		}
		if end := v.Ends(); !end.IsZero() {
			g.left = max(end.Sub(now), time.Second)
		}
	case d.cfg.Access == AccessTap && now.Before(dev.until):
		g = grant{pool: "tap", left: dev.until.Sub(now)}
	case d.cfg.Access == AccessOpen:
		g.pool = "open"
	}
	if dev.pool != "" {
		if err := d.dismissLocked(dev); err != nil {
			return err
		}
	}
	if g.pool == "" {
		if dev.state == StateAllowed {
			dev.state = StateExpired
		}
		return nil
	}
	if err := d.gate.allow(dev.mac, g); err != nil {
		return err
	}
	dev.pool, dev.state, dev.last = g.pool, StateAllowed, traffic{}
	return nil
}

// dismissLocked takes the device's right away, and counts to the last byte.
func (d *desk) dismissLocked(dev *device) error {
	t, err := d.gate.deny(dev.mac)
	if err != nil {
		return err
	}
	d.addLocked(dev, t, 0)
	dev.pool, dev.rate = "", traffic{}
	return nil
}

func (d *desk) addLocked(dev *device, t traffic, over time.Duration) {
	up, down := t.up-min(dev.last.up, t.up), t.down-min(dev.last.down, t.down)
	dev.last = t
	dev.total.up += up
	dev.total.down += down
	if over > 0 {
		bps := func(old, n uint64) uint64 { return (old + uint64(float64(n)*8/over.Seconds())) / 2 }
		dev.rate = traffic{bps(dev.rate.up, up), bps(dev.rate.down, down)}
	}
	if up+down > 0 {
		dev.lastSeen = d.now()
		if dev.pool != "tap" && dev.pool != "open" {
			d.store.Use(dev.pool, up+down)
		}
	}
}

func (d *desk) countLocked(over time.Duration) error {
	if d.gate == nil {
		return nil
	}
	all, err := d.gate.counters()
	if err != nil {
		return err
	}
	for m, t := range all {
		if dev := d.devices[m]; dev != nil && dev.pool != "" {
			d.addLocked(dev, t, over)
		}
	}
	return nil
}

// tick is called about once a second: it counts, ends what is over, and lets the store write.
func (d *desk) tick() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	d.stepLocked(now)
	over := now.Sub(d.ticked)
	d.ticked = now
	err := errors.Join(d.lookLocked(), d.countLocked(over))
	ended := false // a voucher, which a crash must not give back
	for _, dev := range d.devices {
		switch {
		case dev.pool != "" && !d.rightLocked(dev, now), dev.pool == "" && d.cfg.Access == AccessOpen && now.Sub(dev.lastSeen) < presentFor:
			was := dev.pool
			err = errors.Join(err, d.admitLocked(dev))
			if dev.pool == "" {
				dev.stay = false // it shall see the page
				ended = true
				d.log.Info("guest's time or bytes are over", "mac", dev.mac, "voucher", was)
			}
		case dev.pool == "open" && now.Sub(dev.lastSeen) > presentFor:
			err = errors.Join(err, d.dismissLocked(dev))
			dev.state = StateNew
		case dev.pool == "" && now.Sub(dev.lastSeen) > forgetAfter:
			d.forgetLocked(dev)
		}
	}
	if ended || now.Sub(d.flushed) >= flushEvery {
		d.flushed = now
		err = errors.Join(err, d.store.Flush())
	}
	return err
}

// rightLocked reports whether what is in force for the device is still its right, and unchanged.
func (d *desk) rightLocked(dev *device, now time.Time) bool {
	switch dev.pool {
	case "open":
		return true
	case "tap":
		return now.Before(dev.until)
	}
	v, ok := d.store.Get(dev.pool)
	return ok && v.State(now) == VoucherActive && slices.Contains(v.MACs, dev.mac)
}

// refresh puts the rights of all devices into force anew, after the owner has renewed a voucher.
func (d *desk) refresh(id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gate == nil {
		return nil
	}
	err := d.countLocked(0)
	v, _ := d.store.Get(id)
	var again []*device
	for _, dev := range d.devices {
		if dev.pool == id { // all of the pool go before any comes back, or the old pool would live on
			err = errors.Join(err, d.dismissLocked(dev))
			again = append(again, dev)
		} else if dev.pool == "" && slices.Contains(v.MACs, dev.mac) {
			again = append(again, dev)
		}
	}
	for _, dev := range again {
		err = errors.Join(err, d.admitLocked(dev))
	}
	return err
}

// stepLocked notices that the system's clock was set: it moved otherwise than the monotonic one.
func (d *desk) stepLocked(now time.Time) {
	step := now.Round(0).Sub(d.ticked.Round(0)) - now.Sub(d.ticked)
	if step.Abs() < clockStep {
		return
	}
	d.log.Info("the clock was set; what guests have left is kept", "step", step)
	d.clockSetLocked(now, step)
}

func (d *desk) clockSetLocked(now time.Time, step time.Duration) {
	d.store.shift(d.started.Round(0).Truncate(time.Second), step)
	d.started = d.started.Round(0).Add(step)
	for _, dev := range d.devices {
		if !dev.until.IsZero() {
			dev.until = dev.until.Round(0).Add(step)
		}
		dev.lastSeen = dev.lastSeen.Round(0).Add(step)
	}
	d.flushed = now
}

func (d *desk) clientLocked(dev *device) Client {
	now := d.now()
	c := Client{MAC: dev.mac, Addrs: slices.Clone(dev.addrs), Name: dev.name, State: dev.state, Stay: dev.stay, Up: dev.total.up, Down: dev.total.down,
		UpBps: dev.rate.up, DownBps: dev.rate.down, LastSeen: dev.lastSeen, Present: now.Sub(dev.lastSeen) < presentFor}
	switch dev.pool {
	case "", "open":
	case "tap":
		c.Ends, c.Minutes = dev.until, int64(d.cfg.Session/time.Minute)
	default:
		v, ok := d.store.Get(dev.pool)
		if !ok {
			break
		}
		c.Voucher, c.Ends, c.Minutes, c.Bytes = v.ID, v.Ends(), v.Minutes, v.Bytes
		if v.Bytes > 0 {
			left := v.Bytes - min(v.Used, v.Bytes)
			c.BytesLeft = &left
		}
	}
	if !c.Ends.IsZero() {
		c.Left = max(c.Ends.Sub(now), 0)
	}
	return c
}

// clients lists the devices, those that are here first.
func (d *desk) clients() []Client {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gate != nil {
		if names, err := d.gate.names(); err == nil {
			for m, n := range names {
				if dev := d.devices[m]; dev != nil {
					dev.name = n
				}
			}
		}
	}
	out := make([]Client, 0, len(d.devices))
	for _, dev := range d.devices {
		out = append(out, d.clientLocked(dev))
	}
	slices.SortFunc(out, func(a, b Client) int {
		if a.Present != b.Present {
			if a.Present {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.MAC.String(), b.MAC.String())
	})
	return out
}
