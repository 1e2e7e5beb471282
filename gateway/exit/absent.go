//go:build router

package exit

import (
	"errors"
	"net/netip"

	"weft/tun"
)

// ErrAbsent is what everything here returns in a build without the stack.
var ErrAbsent = errors.New("this build cannot share the internet without root (router profile): run weft as root, or use the full build")

// Exit stands in for the one that was left out; there is none.
type Exit struct{ tun.Device }

// Open returns ErrAbsent.
func Open(Config) (*Exit, error) { return nil, ErrAbsent }

// Stats returns nothing.
func (*Exit) Stats() Stats { return Stats{} }

// Forget does nothing.
func (*Exit) Forget(netip.Addr) {}
