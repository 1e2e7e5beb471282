//go:build !engine

package bft

import (
	"context"
	"errors"

	"weft/ident"
	"weft/ledger"
)

type engine struct{}

// errNoEngine is what a program without the engine says.
var errNoEngine = errors.New("this weft was built without the ledger's engine: use the full program on a computer of its own, such as a Raspberry Pi; a router follows the ledger without it")

// Run reports that there is no engine.
func Run(context.Context, Config) error { return errNoEngine }

// Found reports that there is no engine.
func Found(string, ledger.Genesis, ident.PublicKey) (ledger.Genesis, error) {
	return ledger.Genesis{}, errNoEngine
}

// Join reports that there is no engine.
func Join(string, []byte, ...string) error { return errNoEngine }

// Key reports that there is no engine.
func Key(string) (ident.PublicKey, error) { return ident.PublicKey{}, errNoEngine }
