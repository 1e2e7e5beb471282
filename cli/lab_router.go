//go:build router || !linux

package cli

// labVerbs are left out: a router has no room for a laboratory, and worlds are
// built from Linux network namespaces.
type labVerbs struct{}

// labVars has nothing to say without a lab.
func labVars() map[string]string { return nil }
