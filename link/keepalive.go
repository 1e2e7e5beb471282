package link

import (
	"weft/forward"
)

type echo struct {
	from *Link
}

func (x *introductions) echo(l *Link, i introduction) {}

func (x *introductions) echoKnocked(from forward.Endpoint, flags byte, token uint64) {}
