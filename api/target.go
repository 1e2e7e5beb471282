package api

import (
	"net/netip"
	"strings"
	"unicode/utf8"

	"weft/ident"
)

// Target is a parsed reference to a node; exactly one field is set.
type Target struct {
	Addr netip.Addr
	Key  ident.PublicKey
	ID   ident.NodeID
	Name string
}

// ParseTarget reads an address, a 64-digit key, a 16-digit id or a name.
// Something that looks like an address but is outside the mesh is an error and
// not a name.
func ParseTarget(s string) (Target, error) {
	s = strings.TrimSpace(s)
	if k, err := ident.ParsePublicKey(s); err == nil {
		return Target{Key: k}, nil
	}
	if id, err := ident.ParseNodeID(s); err == nil && id != 0 {
		return Target{ID: id}, nil
	}
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		if a.Zone() != "" || !ident.MeshPrefix.Contains(a) {
			return Target{}, Errorf(CodeBadTarget, "%s is not a mesh address", s).WithHint("mesh addresses lie in %s; see: weft routes", ident.MeshPrefix)
		}
		return Target{Addr: a}, nil
	}
	if s == "" || len(s) > 63 || !utf8.ValidString(s) {
		return Target{}, Errorf(CodeBadTarget, "%q is not an address, a key, an id or a name", s).WithHint("see: weft routes")
	}
	return Target{Name: s}, nil
}
