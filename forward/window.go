package forward

// Window is a sliding replay window over 64-bit counters (RFC 6479): a counter passes once, and only while it is no more
// than WindowSize behind the highest that passed. The zero value has seen nothing; counter zero never passes. Not safe for
// concurrent use.
type Window struct {
	highest uint64
	bits    [windowWords]uint64
}

const (
	windowWords = 128
	// WindowSize is how far behind the newest counter an older one may arrive. Batches of 64 on several paths and a relay
	// that reorders stay well inside.
	WindowSize = (windowWords - 1) * 64
)

// Accept reports whether c is fresh, and remembers it.
func (w *Window) Accept(c uint64) bool {
	if c == 0 || c+WindowSize < c { // zero is never sent; the last counters before wrap-around are refused
		return false
	}
	word := c / 64
	switch top := w.highest / 64; {
	case c > w.highest:
		for i := top + 1; i <= word && i <= top+windowWords; i++ {
			w.bits[i%windowWords] = 0
		}
		w.highest = c
	case w.highest-c >= WindowSize:
		return false
	}
	bit := uint64(1) << (c % 64)
	if w.bits[word%windowWords]&bit != 0 {
		return false
	}
	w.bits[word%windowWords] |= bit
	return true
}

// Highest returns the highest counter that passed.
func (w *Window) Highest() uint64 { return w.highest }
