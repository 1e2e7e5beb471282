package pay

import "weft/ident"

// Haul is what passed over a link for one node at the far side of it, in the hop class of gateway traffic: cumulative since the
// link's counters began, in billed bytes.
type Haul struct {
	Dest       ident.NodeID
	Sent, Recv uint64
	Relays     int // still to be paid: the user's side of the link and those behind it, without the user itself
	Delivered  int // of what was sent, permille that is known to arrive; what the payee sends is its payer's to receive
}

// Carried turns hauls into the counts of a carriage account: a byte counts once for each relay that is paid from it, and what was
// sent only as far as it is delivered. Payer (the gateway's side) and payee (the user's side) of a link keep one each. The zero
// value is ready. It belongs to one goroutine, and its counts begin again with the process: Config.Meter gives them an epoch of
// their own.
type Carried struct {
	link       uint64
	last       map[ident.NodeID]Haul
	sent, recv uint64 // thousandths
}

// maxHauls bounds the destinations kept; forward has no more for a link.
const maxHauls = 8192

// Add takes the link's counters, of the given epoch, and returns the sums so far.
func (c *Carried) Add(epoch uint64, hauls []Haul) (sent, recv uint64) {
	if c.last == nil || c.link != epoch {
		c.link, c.last = epoch, map[ident.NodeID]Haul{}
	}
	for _, h := range hauls {
		was, known := c.last[h.Dest]
		if !known && len(c.last) >= maxHauls {
			continue
		}
		relays := uint64(min(max(h.Relays, 0), 64)) // no path is longer
		c.sent += (h.Sent - min(h.Sent, was.Sent)) * relays * uint64(min(max(h.Delivered, 0), 1000))
		c.recv += (h.Recv - min(h.Recv, was.Recv)) * relays * 1000
		c.last[h.Dest] = h
	}
	return c.sent / 1000, c.recv / 1000
}
