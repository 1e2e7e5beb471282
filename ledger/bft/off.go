//go:build !engine

package bft

import (
	"context"

	"weft/ident"
	"weft/ledger"
)

type engine struct{}

// Run reports that there is no engine.
func Run(context.Context, Config) error { return errNoEngine }

// Found reports that there is no engine.
func Found(string, ledger.Genesis, ident.PublicKey) (ledger.Genesis, error) {
	return ledger.Genesis{}, errNoEngine
}

// Join reports that there is no engine.
func Join(string, []byte) error { return errNoEngine }

// Key reports that there is no engine.
func Key(string) (ident.PublicKey, error) { return ident.PublicKey{}, errNoEngine }
