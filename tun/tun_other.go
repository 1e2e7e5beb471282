//go:build !linux

package tun

import "net/netip"

// Config says what the OS TUN should look like.
type Config struct {
	Name   string
	MTU    int
	Addr   netip.Addr
	Routes []netip.Prefix
}

// Open returns ErrUnsupported: on this system Weft runs in userspace mode.
func Open(Config) (Device, error) { return nil, ErrUnsupported }
