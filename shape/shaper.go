package shape

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Shaper lets things go at a rate. All methods are safe for concurrent use.
type Shaper[T any] struct {
	emit  func([]T)
	wake  chan struct{}
	start time.Time

	mu      sync.Mutex // guards what follows
	q       *Queue[T]
	serving bool
}

// Batch is the most that emit gets at once.
const Batch = 64

// grain is the least time that Serve sleeps: timers are no finer, and what has become due meanwhile goes together.
const grain = time.Millisecond

// NewShaper makes a shaper. emit gets what is due, on Serve's goroutine and with no lock held; the slice is its own until it
// returns. drop, if not nil, gets what never will be emitted; it is called with a lock held and must not block or call the
// shaper.
func NewShaper[T any](c Config, emit func([]T), drop func(T)) *Shaper[T] {
	return &Shaper[T]{emit: emit, wake: make(chan struct{}, 1), start: time.Now(), q: NewQueue(c, drop)}
}

func (s *Shaper[T]) now() int64 { return int64(time.Since(s.start)) }

// Submit queues something of size bytes under a key: see [Queue.Push]. It does not block. Without Serve it waits, within the
// queue's bounds.
func (s *Shaper[T]) Submit(key uint64, weight, size int, item T) {
	s.mu.Lock()
	now := s.now()
	first := s.q.Len() == 0
	s.q.Push(now, key, weight, size, item)
	s.mu.Unlock()
	if first {
		s.kick()
	}
}

// SubmitUrgent queues something that goes first: see [Queue.PushUrgent].
func (s *Shaper[T]) SubmitUrgent(key uint64, weight, size int, item T) {
	s.mu.Lock()
	now := s.now()
	first := s.q.Len() == 0
	s.q.PushUrgent(now, key, weight, size, item)
	s.mu.Unlock()
	if first {
		s.kick()
	}
}

func (s *Shaper[T]) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// SetRate changes the rate (bits/s; 0: unlimited), also of what waits already.
func (s *Shaper[T]) SetRate(rate int64) {
	s.mu.Lock()
	s.q.SetRate(s.now(), rate)
	s.mu.Unlock()
	s.kick()
}

// Rate returns the rate in bits/s; 0 is unlimited.
func (s *Shaper[T]) Rate() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.q.Rate()
}

// Stats describes the queue.
func (s *Shaper[T]) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.q.Stats(s.now())
}

// Flows describes the flows, see [Queue.Flows].
func (s *Shaper[T]) Flows() []FlowStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.q.Flows(s.now())
}

// Serve emits what is due until ctx ends, drops what waits then, and returns nil. It may be called again.
func (s *Shaper[T]) Serve(ctx context.Context) error {
	s.mu.Lock()
	if s.serving {
		s.mu.Unlock()
		return errors.New("shape: Serve runs already")
	}
	s.serving = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.q.Drain()
		s.serving = false
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	room := make([]T, 0, Batch)
	for ctx.Err() == nil {
		batch, wait := s.due(room)
		if len(batch) > 0 {
			s.emit(batch)
			clear(batch)
		}
		var due <-chan time.Time
		switch {
		case wait > 0:
			timer.Reset(max(time.Duration(wait), grain))
			due = timer.C
		case len(batch) == Batch:
			continue // perhaps there is more
		}
		select {
		case <-ctx.Done():
		case <-due:
		case <-s.wake:
		}
	}
	return nil
}

// due fills a batch with what may go now; wait is as of Pop.
func (s *Shaper[T]) due(batch []T) (_ []T, wait int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for len(batch) < Batch {
		item, ok, w := s.q.Pop(now)
		if !ok {
			return batch, w
		}
		batch = append(batch, item)
	}
	return batch, 0
}
