//go:build !linux

package guest

import (
	"context"
	"errors"
)

// Serve needs Linux: only its kernel is driven here.
func (g *Guests) Serve(context.Context) error {
	return errors.New("guests can be served on Linux only: run Weft on a router for them")
}
