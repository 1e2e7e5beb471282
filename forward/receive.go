package forward

import (
	"weft/ident"
	"weft/wire"
)

// Receiver takes what one reader goroutine got from a socket or stream.
type Receiver struct {
	p    *Plane
	sink Sink
}

// NewReceiver returns a receiver for one goroutine.
func (p *Plane) NewReceiver() *Receiver { return &Receiver{p: p, sink: p.local.NewSink()} }

// Flush ends a read batch: what was gathered for this node is handed on.
func (r *Receiver) Flush() { r.sink.Flush() }

// verdict stands in the header's reserved byte between the two passes over a buffer. On the wire the byte is zero and
// under the MAC.
const (
	verdictDrop = 0
	verdictPass = 1
	verdictHold = 2 // it waits for the rate of the neighbour it came from
)

// Receive takes one read: datagrams of seg bytes each, the last may be shorter, all from one endpoint. A kernel joins what
// has one source address, which anybody may write into a datagram; so each run with one receiver index is looked at by
// itself, and nobody spoils what a neighbour sent by slipping something in front of it.
func (r *Receiver) Receive(from Endpoint, buf []byte, seg int) {
	if seg <= 0 {
		return
	}
	start := 0
	for at := seg; at+8 <= len(buf); at += seg {
		if [4]byte(buf[at+4:]) != [4]byte(buf[start+4:]) {
			r.receive(from, buf[start:at], seg)
			start = at
		}
	}
	r.receive(from, buf[start:], seg)
}

// receive works in place, in two passes: the first checks and books every datagram under its neighbour's lock, the second
// routes them, sending each run of neighbours-in-buffer for the same next hop as one burst without copying.
func (r *Receiver) receive(from Endpoint, buf []byte, seg int) {
	in, held := r.check(from, buf, seg)
	if in == nil {
		return
	}
	p := r.p
	var run struct {
		to         *Neighbour
		keys       *linkKeys
		start, end int
		count      int
		flow       flowKey // of the first
		mixed      bool    // there are others
	}
	flush := func() {
		if run.count > 0 {
			p.c.relayed.Add(uint64(run.count))
			out := buf[run.start:run.end]
			switch err := run.to.transmit(out, seg, run.count); {
			case err != nil:
			case run.mixed:
				run.to.handMixed(out, seg)
			default:
				run.to.hand(run.flow, run.count, len(out)-run.count*wire.HopLen, false)
			}
		}
		run.count = 0
	}
	var last struct {
		dest  ident.NodeID
		to    *Neighbour
		queue *shaping
		curb  *curb // of the next hop, for gateway traffic
	}
	transit := p.transit.Load()
	for at := 0; at < len(buf); at += seg {
		end := min(at+seg, len(buf))
		h := wire.Hop(buf[at:end])
		if len(h) < wire.MinHop || h[3] == verdictDrop {
			continue
		}
		verdict := h[3]
		h[3] = 0
		dest := h.Dest()
		if verdict == verdictHold {
			p.hold(held, in, h, false)
			continue
		}
		if dest == p.self {
			p.c.delivered.Add(1)
			r.sink.Deliver(h, in)
			continue
		}
		if h.TTL() <= 1 {
			p.c.ttl.Add(1)
			continue
		}
		to := last.to
		if to == nil || last.dest != dest || !to.up.Load() {
			var why = &p.c.noRoute
			if transit {
				to, why = p.pick(dest, in)
			} else {
				to = nil
			}
			if to == nil {
				why.Add(1)
				continue
			}
			last.dest, last.to, last.queue, last.curb = dest, to, to.queue.Load(), to.curb.Load()
			if last.curb != nil && !p.isGateway(dest) {
				last.curb = nil
			}
		}
		if last.curb != nil && h.Class() == wire.ClassGateway {
			p.hold(last.curb, in, h, true)
			continue
		}
		lowerTTL(h)
		if last.queue != nil {
			last.queue.put(in, h)
			continue
		}
		if run.count > 0 && (run.to != to || run.end != at || run.count == MaxBurst || end-run.start > MaxBurstBytes) {
			flush()
		}
		if run.count == 0 {
			run.to, run.keys, run.start = to, to.keys.Load(), at
			run.flow, run.mixed = keyOf(h), false
			if run.keys == nil {
				p.c.noKeys.Add(1)
				continue
			}
		}
		h.Seal(run.keys.send, wire.KindData, run.keys.epoch, run.keys.peerIndex, to.reserve(run.keys, 1))
		run.count++
		run.end = end
		if run.count > 1 && keyOf(h) != run.flow {
			run.mixed = true
		}
	}
	flush()
}

// lowerTTL is a relay's share of the way. Above 64 no source begins, so more counts as that: no relay on the way is left out.
func lowerTTL(h wire.Hop) { h.SetTTL(min(h.TTL(), wire.DefaultTTL) - 1) }

// check is the first pass. It returns the neighbour that the datagrams came from, nil when none passed, and where those wait
// that must. All of buf have one index, but for a last one that is too short to have any.
func (r *Receiver) check(from Endpoint, buf []byte, seg int) (in *Neighbour, held *curb) {
	p := r.p
	passed := 0
	var newest bool
	now := coarse()
	for at := 0; at < len(buf); at += seg {
		h := wire.Hop(buf[at:min(at+seg, len(buf))])
		if !wire.Check(h) {
			p.c.malformed.Add(1)
			continue
		}
		kind := h.Kind()
		if h[3] != 0 || h[0]&0xc0 != 0 || kind != wire.KindData && kind != wire.KindProbe {
			h[3] = verdictDrop
			p.c.malformed.Add(1)
			continue
		}
		if in == nil {
			if in = p.neighbour(h.Index()); in == nil {
				p.c.unknownLink.Add(1)
				continue
			}
			held = in.curb.Load()
			in.mu.Lock()
		}
		k := in.keys.Load()
		if k == nil {
			p.c.noKeys.Add(1)
			continue
		}
		rk := k.recv[0]
		if rk.epoch != h.Epoch() {
			rk = k.recv[1]
		}
		if rk == nil || rk.epoch != h.Epoch() || !h.Authentic(rk.key) {
			in.badMAC++
			p.c.badMAC.Add(1)
			continue
		}
		counter := h.Counter()
		ahead := rk == k.recv[0] && counter > rk.window.Highest()
		if !rk.window.Accept(counter) {
			in.replayed++
			p.c.replayed.Add(1)
			continue
		}
		newest = newest || ahead
		in.recvPackets++
		in.recvBytes += uint64(len(h))
		if kind == wire.KindProbe {
			dest, payload := uint64(h.Dest()), [wire.TagLen]byte(h[wire.HopLen:])
			if len(h) != wire.MinHop { // bytes that the MAC does not cover
				in.recvPackets--
				p.c.malformed.Add(1)
				continue
			}
			in.lastRecv = now
			moved := in.movedLocked(from, newest)
			in.mu.Unlock()
			if moved {
				in.events.Moved(from)
			}
			in.events.Probe(from, dest, payload)
			in.mu.Lock()
			continue
		}
		passed++
		if held != nil && h.Class() == wire.ClassGateway && h.Dest() != p.self && !p.isGateway(h.Dest()) {
			h[3] = verdictHold
			continue
		}
		in.flows.add(p, h)
		h[3] = verdictPass
	}
	if in == nil {
		return nil, nil
	}
	if passed > 0 {
		in.lastRecv = now
	}
	moved := passed > 0 && in.movedLocked(from, newest)
	in.mu.Unlock()
	if moved {
		in.events.Moved(from)
	}
	if passed == 0 {
		return nil, nil
	}
	return in, held
}

// movedLocked notes where the newest datagram came from and reports whether that is a new place. Older datagrams that
// arrive late do not move a link back.
func (n *Neighbour) movedLocked(from Endpoint, newest bool) bool {
	if !newest || n.from == from {
		return false
	}
	first := n.from == Endpoint{}
	n.from = from
	return !first
}
