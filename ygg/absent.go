//go:build no_ygg

package ygg

import (
	"context"
	"net"

	"weft/ident"
	"weft/tun"
)

// Built says whether the plane is in this program.
const Built = false

// Plane cannot be made in this program.
type Plane struct{}

// New returns ErrAbsent.
func New(Config) (*Plane, error) { return nil, ErrAbsent }

func (*Plane) Serve(context.Context) error  { return ErrAbsent }
func (*Plane) Close()                       {}
func (*Plane) Send(*tun.Packet) (int, bool) { return 0, false }
func (*Plane) Peers() []Peer                { return nil }
func (*Plane) AddPeer(string) error         { return ErrAbsent }
func (*Plane) RemovePeer(string) error      { return ErrAbsent }
func (*Plane) Carry(_ context.Context, _ ident.PublicKey, _ bool, c net.Conn) error {
	c.Close()
	return ErrAbsent
}
