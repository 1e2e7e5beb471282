package meter

import (
	"bytes"
	"cmp"
	"slices"
	"time"

	"weft/ident"
)

// DirectionView is one direction of one kind of traffic of a session. Rates are in bytes a second, of inner bytes.
type DirectionView struct {
	Rate, Rate10 uint64 // over the last second, and over ten
	Total        Count  // by this node's own count, for life
	Agreed       Count  // of it, what both ends say arrived
	Gap          bool
	Reason       Reason
	Lost         uint64 // billed bytes by which the ends differed in the last bad window
}

// SessionView is one kind of traffic of a session that is there.
type SessionView struct {
	Peer      ident.PublicKey
	Kind      Kind
	Out, In   DirectionView
	BeaconAge time.Duration // since the peer's last beacon that could be used; negative when none has come
	Stale     uint64        // beacons that came twice or late
}

// ClassView is what passed over a link in one class, for life.
type ClassView struct {
	Class      uint8
	Sent, Recv Count
}

// NeighbourView is one neighbour, there or not.
type NeighbourView struct {
	Neighbour ident.NodeID
	Classes   []ClassView
	Delivered int // permille of what it was given to hand on, a moving average; -1 when nothing is known
	Penalty   int // permille by which its link's cost is multiplied
}

// PeerUse is what one peer used. The zero key stands for those too small to be kept apart.
type PeerUse struct {
	Peer         ident.PublicKey
	Today, Month Use // Month includes today; both in UTC
}

// View is a meter at one moment. All lists are ordered by key or id.
type View struct {
	At         time.Time
	Sessions   []SessionView
	Neighbours []NeighbourView
	Use        []PeerUse
	Malformed  uint64    // datagrams that were no beacons
	Stored     time.Time // when all was last durable
	StoreError string    // why writing fails; empty when it does not
	Damaged    string    // where a damaged file was put, and what that means; empty when there was none
	Written    uint64    // bytes written to the disk since the file was opened
}

// View returns the meter as of the last tick, at most a second ago.
func (m *Meter) View() View {
	now := time.Now()
	m.mu.Lock()
	v := View{At: now, Malformed: m.malformed, Stored: m.stored, Written: m.storeBytes}
	if m.storeErr != nil {
		v.StoreError = m.storeErr.Error()
	}
	if m.aside != nil {
		v.Damaged = m.aside.Error()
	}
	for _, p := range m.peers {
		for k, l := range p.live {
			if l != nil && !l.gone {
				v.Sessions = append(v.Sessions, l.view(p.key, Kind(k), &p.led[k], now))
			}
		}
	}
	neighbours := map[ident.NodeID]*NeighbourView{}
	of := func(id ident.NodeID) *NeighbourView {
		if neighbours[id] == nil {
			neighbours[id] = &NeighbourView{Neighbour: id, Delivered: -1, Penalty: noPenalty}
		}
		return neighbours[id]
	}
	for k, l := range m.links {
		n := of(k.neighbour)
		n.Classes = append(n.Classes, ClassView{k.class, l.sentTotal, l.recvTotal})
	}
	for id, d := range m.delivery.neighbours {
		n := of(id)
		n.Penalty = d.factor
		if d.ratio > 0 {
			n.Delivered = min(d.ratio, 1000)
		}
	}
	use := map[ident.PublicKey]*PeerUse{}
	for key, u := range m.today {
		use[key] = &PeerUse{key, u.Use, u.Use}
	}
	for key, u := range m.month {
		if use[key] == nil {
			use[key] = &PeerUse{Peer: key}
		}
		use[key].Month = use[key].Month.plus(u)
	}
	m.mu.Unlock()

	for _, n := range neighbours {
		slices.SortFunc(n.Classes, func(a, b ClassView) int { return cmp.Compare(a.Class, b.Class) })
		v.Neighbours = append(v.Neighbours, *n)
	}
	for _, u := range use {
		v.Use = append(v.Use, *u)
	}
	slices.SortFunc(v.Sessions, func(a, b SessionView) int {
		return cmp.Or(bytes.Compare(a.Peer[:], b.Peer[:]), cmp.Compare(a.Kind, b.Kind))
	})
	slices.SortFunc(v.Neighbours, func(a, b NeighbourView) int { return cmp.Compare(a.Neighbour, b.Neighbour) })
	slices.SortFunc(v.Use, func(a, b PeerUse) int { return bytes.Compare(a.Peer[:], b.Peer[:]) })
	return v
}

func (v *live) view(key ident.PublicKey, k Kind, l *ledger, now time.Time) SessionView {
	s := SessionView{Peer: key, Kind: k, BeaconAge: -1, Stale: v.stale}
	if v.heard.seq != 0 {
		s.BeaconAge = now.Sub(v.heard.at)
	}
	s.Out = DirectionView{Total: l.sentTotal, Agreed: l.out.agreed, Gap: v.dir[Out].gap, Reason: v.dir[Out].reason, Lost: v.dir[Out].lost}
	s.In = DirectionView{Total: l.recvTotal, Agreed: l.in.agreed, Gap: v.dir[In].gap, Reason: v.dir[In].reason, Lost: v.dir[In].lost}
	s.Out.Rate, s.In.Rate, s.Out.Rate10, s.In.Rate10 = v.rates(now)
	return s
}

// Day is the use of one day.
type Day struct {
	Day time.Time // its beginning, UTC
	Use []PeerUse // Today only; ordered by key
}

// History returns the days from first to last (UTC, both included) that have any use, as last written, oldest first. At most 400 are kept.
func (m *Meter) History(first, last time.Time) ([]Day, error) {
	m.storing.Lock()
	defer m.storing.Unlock()
	var days []Day
	err := m.store.use(dayOf(first), dayOf(last), func(d uint32, p ident.PublicKey, u Use) {
		at := time.Unix(int64(d)*secondsInDay, 0).UTC()
		if n := len(days); n == 0 || !days[n-1].Day.Equal(at) {
			days = append(days, Day{Day: at})
		}
		day := &days[len(days)-1]
		day.Use = append(day.Use, PeerUse{Peer: p, Today: u, Month: u})
	})
	return days, err
}
