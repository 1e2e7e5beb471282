//go:build engine

package bft

import (
	"sync"

	dbm "github.com/cometbft/cometbft-db"
)

// gentle is a database that can be read after it was closed: it is empty then. Comet closes its stores while goroutines that serve
// peers still look into them for a moment, and panics on an error.
type gentle struct {
	dbm.DB
	mu     sync.RWMutex
	closed bool
}

func (g *gentle) Get(k []byte) ([]byte, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.closed {
		return nil, nil
	}
	return g.DB.Get(k)
}

func (g *gentle) Has(k []byte) (bool, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.closed {
		return false, nil
	}
	return g.DB.Has(k)
}

func (g *gentle) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	return g.DB.Close()
}
