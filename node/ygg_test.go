package node

import (
	"regexp"
	"testing"

	"pgregory.net/rapid"

	"path"
)

// TestNamesRegex holds the regular expression against the patterns that it stands for.
func TestNamesRegex(t *testing.T) {
	pattern := rapid.StringMatching(`[ab]{0,3}\*?`).Filter(func(s string) bool { return s != "" })
	rapid.Check(t, func(t *rapid.T) {
		include := rapid.SliceOfN(pattern, 1, 3).Draw(t, "include")
		exclude := rapid.SliceOfN(pattern, 0, 4).Draw(t, "exclude")
		name := rapid.StringMatching(`[abc]{1,5}`).Draw(t, "name")
		matches := func(list []string) bool {
			for _, p := range list {
				if ok, _ := path.Match(p, name); ok {
					return true
				}
			}
			return false
		}
		want := matches(include) && !matches(exclude)
		re, ok := namesRegex(include, exclude)
		got := ok && regexp.MustCompile(re).MatchString(name)
		if got != want {
			t.Fatalf("%q in %q without %q: %v, want %v (%s)", name, include, exclude, got, want, re)
		}
	})
	if _, ok := namesRegex([]string{"et?0"}, nil); ok {
		t.Error("a pattern that cannot be turned was turned")
	}
	re, ok := namesRegex([]string{"*"}, []string{"docker*", "virbr*", "weft*", "tun*", "wg*"})
	if !ok {
		t.Fatal("the default cannot be turned")
	}
	for name, want := range map[string]bool{"eth0": true, "wlan0": true, "docker0": false, "wg0": false, "weft0": false, "dock": true, "w": true} {
		if got := regexp.MustCompile(re).MatchString(name); got != want {
			t.Errorf("%s: %v, want %v (%s)", name, got, want, re)
		}
	}
}
