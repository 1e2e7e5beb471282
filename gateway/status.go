package gateway

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"weft/ident"
)

// Status is both sides as people and programs see them.
type Status struct {
	Offering Offering          `json:"offering"`
	Using    Using             `json:"using"`
	Refused  map[string]uint64 `json:"refused"` // packets, by reason
	BadMsgs  uint64            `json:"bad_messages"`
}

// Offering is the serving side.
type Offering struct {
	On        bool        `json:"on"`
	Text      string      `json:"text"`
	Offer     *Offer      `json:"offer,omitempty"` // as announced; nil when nothing is
	Clients   []Client    `json:"clients"`
	MaxLeases int         `json:"max_leases,omitempty"`
	DownBytes uint64      `json:"down_bytes"` // to clients
	UpBytes   uint64      `json:"up_bytes"`
	DownDrops uint64      `json:"down_drops"` // packets that the queues dropped
	UpDrops   uint64      `json:"up_drops"`
	Past      []LeaseTime `json:"past"`
	LogError  string      `json:"log_error,omitempty"`
}

// Client is somebody with a lease.
type Client struct {
	Key      ident.PublicKey   `json:"key"`
	Name     string            `json:"name,omitempty"`
	Tier     string            `json:"tier,omitempty"`
	Member   bool              `json:"member"`
	FreeTier bool              `json:"free_tier,omitempty"`
	Weight   int               `json:"weight"`
	Families Families          `json:"families"`
	IPv4     netip.Addr        `json:"ipv4,omitzero"`
	IPv6     netip.Prefix      `json:"ipv6,omitzero"`
	From     time.Time         `json:"from"`
	Until    time.Time         `json:"until"`
	Limits   Limits            `json:"limits"`
	Down     uint64            `json:"down_bytes"`
	Up       uint64            `json:"up_bytes"`
	DownRate uint64            `json:"down_rate"` // bytes/s of late
	UpRate   uint64            `json:"up_rate"`
	Flows    int               `json:"flows"`
	Refused  map[string]uint64 `json:"refused,omitempty"`
}

// Using is the using side.
type Using struct {
	Mode       string         `json:"mode"` // off, auto or node
	Text       string         `json:"text"`
	Use        *Use           `json:"use,omitempty"`
	Since      time.Time      `json:"since,omitzero"`
	Down       uint64         `json:"down_bytes"`
	Up         uint64         `json:"up_bytes"`
	DownRate   uint64         `json:"down_rate"` // bytes/s of late
	UpRate     uint64         `json:"up_rate"`
	Standby    string         `json:"standby,omitempty"` // name or node id
	Candidates []CandidateRow `json:"candidates"`
	Failovers  uint64         `json:"failovers"` // gateways that were left because they had to be
	Switches   uint64         `json:"switches"`  // because another was better
	LastReason string         `json:"last_reason,omitempty"`
}

// CandidateRow is a gateway and what is thought of it.
type CandidateRow struct {
	Key    ident.PublicKey `json:"key"`
	Name   string          `json:"name,omitempty"`
	Offer  Offer           `json:"offer"`
	Text   string          `json:"text"`  // the offer in words
	Score  uint64          `json:"score"` // µs of delay and what counts like it; the least is best
	RTT    time.Duration   `json:"rtt_ns,omitempty"`
	State  string          `json:"state"` // in use, in reserve, asked, possible, left alone, unsuitable
	Why    string          `json:"why,omitempty"`
	Price  uint64          `json:"price"` // with the path's
	Leased bool            `json:"leased"`
}

// LeaseOf returns the lease of a client, for whoever serves it beside this package; false when it has none.
func (g *Gateway) LeaseOf(key ident.PublicKey) (Client, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if l := g.leases.of(key); l != nil {
		return g.describe(l, g.sec.Load()), true
	}
	return Client{}, false
}

func (g *Gateway) describe(l *lease, sec uint32) Client {
	t := l.tier.Load()
	c := Client{
		Key: l.key, Tier: t.name, Member: t.member, FreeTier: t.free, Weight: t.weight, Families: Families(l.families.Load()), IPv4: l.v4, IPv6: l.v6,
		From: l.from, Until: l.until, DownRate: l.speed[0].perSecond, UpRate: l.speed[1].perSecond, Limits: t.limits, Down: l.bytesDown.Load(), Up: l.bytesUp.Load(), Refused: map[string]uint64{},
	}
	if g.cfg.Name != nil {
		c.Name = g.cfg.Name(l.key)
	}
	for r := range reasons {
		if n := l.refused[r].Load(); n > 0 {
			c.Refused[reasonText[r]] = n
		}
	}
	l.mu.Lock()
	l.flows.sweep(sec)
	c.Flows = l.flows.live
	l.mu.Unlock()
	return c
}

// Status describes what is shared and used now.
func (g *Gateway) Status() Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	s := Status{Refused: map[string]uint64{}, BadMsgs: g.dead.Load()}
	for r := range reasons {
		if n := g.counts[r].Load(); n > 0 {
			s.Refused[reasonText[r]] = n
		}
	}
	g.offering(&s.Offering)
	g.using(&s.Using, now)
	return s
}

func (g *Gateway) offering(o *Offering) {
	o.On, o.Clients = g.offer != nil, []Client{}
	switch f := g.liveFamilies(); {
	case g.offer == nil:
		o.Text = "this node shares no line"
	case f == 0:
		o.Text = "the line is down, so nothing is offered until it is back"
		o.MaxLeases = g.offer.MaxLeases
	default:
		x := g.offerLocked(f)
		o.Offer, o.Text, o.MaxLeases = &x, x.String(), g.offer.MaxLeases
	}
	sec := g.sec.Load()
	for _, l := range g.leases.all() {
		o.Clients = append(o.Clients, g.describe(l, sec))
	}
	slices.SortFunc(o.Clients, func(a, b Client) int { return cmp.Or(a.From.Compare(b.From), slices.Compare(a.Key[:], b.Key[:])) })
	o.DownBytes, o.UpBytes = g.down.bytes.Load(), g.up.bytes.Load()
	d, u := g.down.shaper.Stats(), g.up.shaper.Stats()
	o.DownDrops, o.UpDrops = d.Full+d.Late, u.Full+u.Late
	past, err := g.log.last()
	if o.Past = past; err != nil {
		o.LogError = err.Error()
	}
}

func (g *Gateway) using(o *Using, now time.Time) {
	c := &g.client
	o.Mode = [...]string{"off", "auto", "node"}[c.choice.Mode]
	o.Failovers, o.Switches, o.LastReason, o.Candidates = c.failovers, c.switches, c.reason, []CandidateRow{}
	if u := c.use.Load(); u != nil {
		said := c.said
		o.Use, o.Since, o.Down, o.Up = &said, u.since, u.bytesDown.Load(), u.bytesUp.Load()
		o.DownRate, o.UpRate = u.speed[0].perSecond, u.speed[1].perSecond
	}
	if h := c.standby(); h != nil && h.granted && h != c.active {
		o.Standby = nameOf(&h.c)
	}
	for i := range c.cands {
		x := &c.cands[i]
		h := c.find(x.Key)
		b, off := c.backOf(x.Key, now)
		row := CandidateRow{Key: x.Key, Name: x.Name, Offer: x.Offer, Text: x.Offer.String(), Score: c.choice.score(x, h, b), Price: uint64(x.Offer.Price) + uint64(x.PathPrice)}
		why := c.choice.suits(x)
		switch {
		case h != nil && h == c.active:
			row.State = "in use"
		case h != nil && h.granted:
			row.State = "in reserve"
		case h != nil:
			row.State = "asked"
		case why != "":
			row.State, row.Why = "unsuitable", why
		case off:
			row.State, row.Why = "left alone", b.why
		default:
			row.State = "possible"
		}
		if h != nil {
			row.RTT, row.Leased = h.rtt, h.granted
		}
		o.Candidates = append(o.Candidates, row)
	}
	slices.SortStableFunc(o.Candidates, func(a, b CandidateRow) int { return cmp.Compare(a.Score, b.Score) })
	switch {
	case c.choice.Mode == Off:
		o.Text = "no gateway is used: the owner wants none"
	case c.active != nil:
		o.Text = "uses " + nameOf(&c.active.c) + ": " + c.reason
	case g.restingLocked():
		o.Text = "the own line is used, which this node shares; a gateway is used when it fails"
	case len(c.cands) == 0:
		o.Text = "no node that can be reached offers the internet"
	case len(c.held) > 0:
		o.Text = "asks " + nameOf(&c.held[0].c) + " for a lease"
	default:
		o.Text = "none of the gateways is suitable now: see why beside each"
	}
}
