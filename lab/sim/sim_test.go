package sim

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"weft/lab/manifest"
)

func run(t *testing.T, m *manifest.Manifest) *Report {
	t.Helper()
	r, err := Run(t.Context(), m, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.WriteTo(t.Output())
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	return r
}

// TestNeighbourhood200 is the target of the design for 200 nodes, idle for two hours so that refreshes are in it.
func TestNeighbourhood200(t *testing.T) {
	r := run(t, Random(200, 1, 2*time.Hour))
	if r.Answered != r.Asked {
		t.Errorf("%d of %d answered", r.Answered, r.Asked)
	}
}

// TestNeighbourhoodLarge is for make soak: WEFT_SIM_NODES=1000.
func TestNeighbourhoodLarge(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("WEFT_SIM_NODES"))
	if err != nil {
		t.Skip("set WEFT_SIM_NODES")
	}
	run(t, Random(n, 1, 3*time.Hour))
}

// TestManifests runs every manifest that ships, as weft lab run would.
func TestManifests(t *testing.T) {
	files, err := filepath.Glob("../manifests/*.toml")
	if err != nil || len(files) == 0 {
		t.Fatal("no manifests", err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			m, err := manifest.Load(f)
			if err != nil {
				t.Fatal(err)
			}
			run(t, m)
		})
	}
}
