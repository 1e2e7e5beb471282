//go:build linux && !router

package cli

import (
	"fmt"

	"weft/lab/peers"
)

type labVerbs struct {
	Lab labCmd `cmd:"" help:"Build test worlds, simulate and measure."`
}

type labCmd struct {
	Peer labPeerCmd `cmd:"" hidden:"" passthrough:"" help:"Run another system to measure against."`
}

// labPeerCmd is how `weft lab bench` runs other systems: as processes of their own.
type labPeerCmd struct {
	Args []string `arg:"" optional:""`
}

func (c *labPeerCmd) Run(e *env) error {
	if err := peers.Run(e.ctx, c.Args, e.out); err != nil {
		return fmt.Errorf("run the peer: %w", err)
	}
	return nil
}
