//go:build router

package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"weft/tun"
)

// ErrAbsent is what everything here returns in a build without the stack.
var ErrAbsent = errors.New("this build has no userspace stack (router profile): run weft as root with a TUN, or use the full build")

// Stack stands in for the one that was left out; there is none.
type Stack struct{ tun.Device }

// New returns ErrAbsent.
func New(Config) (*Stack, error) { return nil, ErrAbsent }

// DialContext returns ErrAbsent.
func (*Stack) DialContext(context.Context, string, string) (net.Conn, error) { return nil, ErrAbsent }

// Listen returns ErrAbsent.
func (*Stack) Listen(context.Context, string, string) (net.Listener, error) { return nil, ErrAbsent }

// ListenPacket returns ErrAbsent.
func (*Stack) ListenPacket(context.Context, string, string) (net.PacketConn, error) {
	return nil, ErrAbsent
}

// SetOutside returns ErrAbsent.
func (*Stack) SetOutside(v4, v6 netip.Addr) error { return ErrAbsent }
