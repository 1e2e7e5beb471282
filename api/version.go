package api

import "runtime/debug"

// version is set by the linker (see the Makefile); it never changes after that.
var version string

// Version returns the version of this program, "devel" and the commit when it
// was built without make.
func Version() string {
	if version != "" {
		return version
	}
	v := "devel"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v += "-" + s.Value[:min(len(s.Value), 8)]
			}
		}
	}
	return v
}
