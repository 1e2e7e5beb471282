package manifests

import (
	"slices"
	"strings"
	"testing"
)

func TestEveryWorldLoads(t *testing.T) {
	names := Names()
	if !slices.Contains(names, "demo") {
		t.Fatalf("no demo among %v", names)
	}
	for _, name := range names {
		m, err := Load(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if m.Name != name || m.About == "" || len(m.Expect) == 0 {
			t.Errorf("%s: is called %q, is about %q, expects %d things", name, m.Name, m.About, len(m.Expect))
		}
	}
	if _, err := Load("nowhere"); err == nil || !strings.Contains(err.Error(), "demo") {
		t.Errorf("an unknown name says %v, not what there is", err)
	}
}
