package api

import (
	"context"
	"iter"
	"sync"
	"time"
)

// hubBuffer is how many events a reader may lag behind before it misses some,
// and maxReaders how many may listen at once.
const (
	hubBuffer  = 64
	maxReaders = 64
)

// Hub hands events to any number of readers. Publish never blocks: a reader
// that lags loses events. The zero Hub is ready to use.
type Hub struct {
	mu      sync.Mutex
	seq     uint64
	readers map[chan Event]struct{}
}

// Publish numbers and dates e and hands it to all readers.
func (h *Hub) Publish(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq++
	e.Seq = h.seq
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	for c := range h.readers {
		select {
		case c <- e:
		default:
		}
	}
}

// Events yields events from the start of the loop until ctx ends.
func (h *Hub) Events(ctx context.Context) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		c := make(chan Event, hubBuffer)
		h.mu.Lock()
		if len(h.readers) >= maxReaders {
			h.mu.Unlock()
			yield(Event{}, Errorf(CodeTooMany, "%d readers of events already", maxReaders).WithHint("close some pages of the portal"))
			return
		}
		if h.readers == nil {
			h.readers = make(map[chan Event]struct{})
		}
		h.readers[c] = struct{}{}
		h.mu.Unlock()
		defer func() {
			h.mu.Lock()
			delete(h.readers, c)
			h.mu.Unlock()
		}()
		for {
			select {
			case <-ctx.Done():
				return
			case e := <-c:
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}
