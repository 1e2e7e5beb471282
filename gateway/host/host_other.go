//go:build !linux

package host

import (
	"net/netip"
	"syscall"
)

// Gateway exists on Linux only.
type Gateway struct{}

// OpenGateway returns ErrUnsupported.
func OpenGateway(GatewayConfig) (*Gateway, error) { return nil, ErrUnsupported }

// State returns nothing.
func (*Gateway) State() State { return State{} }

// Blocked returns nothing.
func (*Gateway) Blocked() []string { return nil }

// Forget does nothing.
func (*Gateway) Forget([]netip.Addr) error { return nil }

// Close does nothing.
func (*Gateway) Close() error { return nil }

// Client exists on Linux only.
type Client struct{}

// OpenClient returns ErrUnsupported.
func OpenClient(ClientConfig) (*Client, error) { return nil, ErrUnsupported }

// Update returns ErrUnsupported.
func (*Client) Update(ClientAddrs) error { return ErrUnsupported }

// Close does nothing.
func (*Client) Close() error { return nil }

// Uplink exists on Linux only.
type Uplink struct{}

// OpenUplink returns ErrUnsupported.
func OpenUplink(UplinkConfig) (*Uplink, error) { return nil, ErrUnsupported }

// State returns nothing.
func (*Uplink) State() State { return State{} }

// Close does nothing.
func (*Uplink) Close() error { return nil }

// HostPrefixes returns ErrUnsupported.
func HostPrefixes(...string) ([]netip.Prefix, error) { return nil, ErrUnsupported }

// Recover finds nothing to undo.
func Recover(string) error { return nil }

// Control does nothing: without a client there is nothing to go round.
func Control(_, _ string, _ syscall.RawConn) error { return nil }

// ControlTunnel does nothing: without a client nothing is redirected.
func ControlTunnel(_, _ string, _ syscall.RawConn) error { return nil }
