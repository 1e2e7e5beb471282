package manifest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	m, err := Parse([]byte(`
name = "diamond"
seed = 7
duration = "30s"
[topology]
kind = "diamond"
n = 2
[defaults]
delay = "2ms"
rate = "100mbit"
[[node]]
name = "n1"
metered = true
[[node]]
name = "extra"
[[link]]
a = "n0"
b = "n1"
loss = 0.01
[[link]]
a = "extra"
b = "n3"
rate = "1.5gbit"
[[event]]
at = "10s"
do = "kill"
node = "n1"
[[event]]
at = "5s"
do = "silent"
link = ["n0", "n2"]
[[expect]]
from = "n0"
to = "n3"
within = "2s"
`))
	if err != nil {
		t.Fatal(err)
	}
	w, err := m.World()
	if err != nil {
		t.Fatal(err)
	}
	if len(w.Nodes) != 5 || len(w.Links) != 5 {
		t.Fatalf("%d nodes, %d links", len(w.Nodes), len(w.Links))
	}
	at := w.Between([2]string{"n1", "n0"})
	if len(at) != 1 || w.Links[at[0]].Loss != 0.01 || w.Links[at[0]].Delay.Milliseconds() != 2 || w.Links[at[0]].Rate != 100e6 {
		t.Errorf("the file's link did not replace the generated one: %v", at)
	}
	if got := w.Links[4].Rate; got != 1.5e9 || got.String() != "1.5gbit" {
		t.Errorf("rate %v", got)
	}
	if !w.Nodes[1].Metered || w.Events[0].Do != Silent {
		t.Error("node not replaced or events not in order")
	}
}

func TestLANsAreLinksBetweenAllTheirNodes(t *testing.T) {
	m, err := Parse([]byte("[topology]\nkind='line'\nn=2\n[[node]]\nname='x'\n[[lan]]\nname='home'\nnodes=['n0','n1','x']\nrate='1mbit'"))
	if err != nil {
		t.Fatal(err)
	}
	w, err := m.World()
	if err != nil {
		t.Fatal(err)
	}
	if len(w.Links) != 4 || w.Links[0].LAN != "" {
		t.Errorf("%d links, the first of LAN %q", len(w.Links), w.Links[0].LAN)
	}
	for _, l := range w.Links[1:] {
		if l.LAN != "home" || l.Rate != 1e6 {
			t.Errorf("link %s–%s: LAN %q, rate %v", l.A, l.B, l.LAN, l.Rate)
		}
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"nam = 'x'", "unknown key"},
		{"name = 'x'", "no nodes"},
		{"[topology]\nkind='star'\nn=3", "line, ring"},
		{"[topology]\nkind='ring'\nn=2", "from 3"},
		{"[[node]]\nname='a'\n[[link]]\na='a'\nb='b'", `no node "b"`},
		{"[[node]]\nname='a'\n[[node]]\nname='a'", "twice"},
		{"[[node]]\nname='a'\nliar='x'", "liar"},
		{"[[node]]\nname='a'\n[[event]]\nat='1s'\ndo='jump'", "unknown action"},
		{"[[node]]\nname='a'\n[[event]]\nat='1s'\ndo='kill'\nnode='b'", `no node "b"`},
		{"[[node]]\nname='a'\n[[expect]]\nfrom='a'", "demands nothing"},
		{"[[node]]\nname='a'\n[[lan]]\nname='l'\nnodes=['a','b']", `no node "b"`},
		{"[[node]]\nname='a'\n[[lan]]\nnodes=['a']", "a name of its own"},
		{"[[node]]\nname='a'\n[[node]]\nname='b'\n[[link]]\na='a'\nb='b'\nreorder=1.5", "reorder"},
		{"duration = '-1s'", "negative"},
		{"[defaults]\nrate = '100'", "unit"},
		{"[defaults]\nrate = 'x mbit'", "number"},
	} {
		if _, err := Parse([]byte(c.in)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.in, err, c.want)
		}
	}
}

func TestTopologiesAreConnectedAndRepeatable(t *testing.T) {
	for _, top := range []Topology{
		{Kind: "line", N: 5}, {Kind: "ring", N: 6}, {Kind: "grid", N: 12}, {Kind: "grid", N: 7, Width: 3},
		{Kind: "diamond", N: 3}, {Kind: "geometric", N: 300, Degree: 6}, {Kind: "geometric", N: 50, Degree: 3},
	} {
		m := Manifest{Seed: 3, Topology: &top}
		a, err := m.World()
		if err != nil {
			t.Fatal(err)
		}
		b, _ := m.World()
		if len(a.Links) != len(b.Links) || a.Links[0] != b.Links[0] {
			t.Errorf("%s is not repeatable", top.Kind)
		}
		seen := map[int]bool{0: true}
		for again := true; again; {
			again = false
			for _, l := range a.Links {
				if seen[l.From] != seen[l.To] {
					seen[l.From], seen[l.To], again = true, true, true
				}
			}
		}
		if len(seen) != len(a.Nodes) {
			t.Errorf("%s: %d of %d nodes connected", top.Kind, len(seen), len(a.Nodes))
		}
		if top.N == 300 {
			if d := 2 * float64(len(a.Links)) / 300; d < 4.5 || d > 7 {
				t.Errorf("mean degree %.1f, want about 6", d)
			}
		}
	}
}

// The manifests that ship must all load.
func TestShippedManifests(t *testing.T) {
	files, _ := filepath.Glob("../manifests/*.toml")
	for _, f := range files {
		if _, err := Load(f); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat("../manifests"); err == nil && len(files) == 0 {
		t.Error("lab/manifests is empty")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("[topology]\nkind='ring'\nn=3\n[defaults]\nrate='1mbit'\ndelay='1ms'"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 300 || strings.Contains(string(b), "geometric") { // large random worlds take seconds each
			return
		}
		if m, err := Parse(b); err == nil && (m.Topology == nil || m.Topology.N < 100) {
			if _, err := m.World(); err != nil {
				t.Fatal("Parse accepts what World refuses:", err)
			}
		}
	})
}
