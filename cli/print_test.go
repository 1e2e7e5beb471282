package cli

import (
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTable(t *testing.T) {
	var b strings.Builder
	tab := columns("NAME", ">COST", "")
	tab.row("Café", 7, " ")
	tab.row("evil\x1b[2J\n\u202ename", "", "metered")
	tab.print(&b)
	want := "NAME         COST\n" +
		"Café            7\n" +
		"evil[2Jname     -  metered\n"
	if b.String() != want {
		t.Errorf("got\n%q\nwant\n%q", b.String(), want)
	}
}

func TestUnits(t *testing.T) {
	for got, want := range map[string]string{
		size(0): "0 B", size(999): "999 B", size(1000): "1.0 kB", size(1 << 40): "1.1 TB", size(1<<64 - 1): "18.4 EB",
		span(-1): "never", span(59): "59 s", span(60): "1 min", span(3660): "1 h 1 min", span(86400 * 3): "3 days",
		micros(int64(0)): "", micros(uint32(1500)): "1.50 ms",
		since(time.Time{}): "", since(time.Now().Add(time.Hour)): "0 s", // a clock that was set back
		count(0, "node"): "0 nodes", count(1, "node"): "1 node", count(2, "node"): "2 nodes",
		neighbour(api.Heard{Linked: true, Member: true}): "yes", neighbour(api.Heard{Member: true}): "no", neighbour(api.Heard{}): "no: another network",
		who("", "id"): "id", who("\x07", "id"): "id", who("roof", "id"): "roof",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
