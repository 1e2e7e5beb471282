package link

import "fmt"

// Shaped links. A neighbour whose line is slower than this node's sockets, such as a radio or a leased line, gets no more than
// its rate, so that what waits, waits here, where it is shared fairly and control goes first, and not in a modem's buffer.
// Each end decides about what it sends itself; nothing is negotiated. The queue is forward's; here is which link has what rate
// and the goroutine that empties the queue. QUIC and probes go past it: they are few, and probes measure the link.

// InterfaceRate is the rate of each link over interfaces of certain names. It is per link, not shared by them. A stream
// (tls://, wss://) counts as being on no interface: its rate is [Peer.Rate] or none.
type InterfaceRate struct {
	Pattern string // of the names, as of path.Match
	Bits    int64  // bits/s, with UDP and IP headers
}

// minRate is where a full datagram takes a second, and a link would look dead.
const minRate = 12_000

func checkRate(bits int64) error {
	if bits != 0 && bits < minRate {
		return fmt.Errorf("a rate of %d bits/s: write at least %d, or 0 for none", bits, minRate)
	}
	return nil
}

func checkRates(rates []InterfaceRate) error {
	for _, r := range rates {
		if err := checkPatterns([]string{r.Pattern}); err != nil {
			return err
		}
		if err := checkRate(r.Bits); err != nil {
			return fmt.Errorf("interface pattern %q: %w", r.Pattern, err)
		}
	}
	return nil
}

// rate is what the operator allows the link: what is said of the peer, else the first pattern that fits the interface.
func (l *Link) rate() int64 {
	if l.peerRate > 0 {
		return l.peerRate
	}
	name := l.Interface()
	for _, r := range l.m.cfg.Rates {
		if name != "" && matchesAny([]string{r.Pattern}, name) {
			return r.Bits
		}
	}
	return 0
}

// shape puts the rate of the link in force, which may have changed because its path has.
func (l *Link) shape() {
	l.pace.mu.Lock()
	defer l.pace.mu.Unlock()
	bits := l.rate()
	l.nb.SetRate(bits)
	if bits > 0 && !l.pace.on {
		l.pace.on = true
		l.spawn(func() { _ = l.nb.Serve(l.ctx) }) // it fails only when it runs already
	}
}

// Rate returns how many bits/s this node sends to the neighbour at most; 0: no such bound.
func (l *Link) Rate() int64 {
	bits, _ := l.nb.Queue()
	return bits
}
