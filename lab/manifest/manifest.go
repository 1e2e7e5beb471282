// Package manifest is the description of a test world: nodes, links, a timetable of faults and what is expected. One
// TOML file drives the simulator (lab/sim) and the namespaces lab (lab/netns) alike; what a driver cannot do it must
// refuse by name, never skip.
//
// The package reads and checks files and expands topologies; it runs nothing, starts no goroutine and its functions are
// safe for concurrent use. It may be imported by everything in lab and by cli.
package manifest

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// Manifest is one test world as the file states it. World expands it.
type Manifest struct {
	Name     string    `toml:"name"`
	About    string    `toml:"about"`    // one line for people
	Seed     uint64    `toml:"seed"`     // of everything random, topology included
	Duration Duration  `toml:"duration"` // how long the world runs
	Topology *Topology `toml:"topology"` // optional generator; explicit nodes and links come on top
	Defaults Shape     `toml:"defaults"` // for links that do not say
	Nodes    []Node    `toml:"node"`
	Links    []Link    `toml:"link"`
	LANs     []LAN     `toml:"lan"`
	Events   []Event   `toml:"event"`
	Expect   []Expect  `toml:"expect"`
}

// Topology generates nodes n0, n1, … and the links between them.
type Topology struct {
	Kind   string   `toml:"kind"`   // line, ring, grid, diamond, geometric
	N      int      `toml:"n"`      // number of nodes; for diamond the number of relays between n0 and the last node
	Width  int      `toml:"width"`  // grid: nodes in a row (default: about the square root of n)
	Degree float64  `toml:"degree"` // geometric: mean degree aimed at (default 6)
	Spread Duration `toml:"spread"` // nodes start evenly spread at random over this time
}

// Shape is how a link behaves, in both directions alike.
type Shape struct {
	Delay     Duration `toml:"delay"`     // one way
	Jitter    Duration `toml:"jitter"`    // added to the delay, uniformly at random
	Rate      Rate     `toml:"rate"`      // zero: unlimited
	Loss      float64  `toml:"loss"`      // probability that one packet is lost, 0 to 1
	Cost      uint32   `toml:"cost"`      // routing cost in µs that both ends announce; zero: measured, or derived from the delay in the simulator
	Reorder   float64  `toml:"reorder"`   // namespaces only: probability that a packet overtakes those before it
	Duplicate float64  `toml:"duplicate"` // namespaces only: probability that a packet arrives twice
	MTU       int      `toml:"mtu"`       // bytes of the underlay's IP packet; zero: 1500
}

// Node is one device.
type Node struct {
	Name    string   `toml:"name"`
	Start   Duration `toml:"start"`   // when it boots
	Leaf    bool     `toml:"leaf"`    // never transit
	Metered bool     `toml:"metered"` // avoid as transit
	Price   uint32   `toml:"price"`   // carriage price, ncredit per MiB
	Config  string   `toml:"config"`  // namespaces only: more lines of the node's weft.toml
	Liar    string   `toml:"liar"`    // simulator only: "claims" (neighbours that it has not), "cheap" (all its links cost 1), "forger" (LSAs of others), "replayer" (old LSAs), "sybil" (a crowd of invented nodes)
}

// Link joins two nodes. What it leaves zero comes from the defaults.
type Link struct {
	A       string `toml:"a"`
	B       string `toml:"b"`
	Metered bool   `toml:"metered"`
	Shape
}

// LAN joins many nodes as a switch does. To the simulator it is a link between every two of them.
type LAN struct {
	Name  string   `toml:"name"`
	Nodes []string `toml:"nodes"`
	Shape
}

// Event is one entry of the timetable.
type Event struct {
	At     Duration   `toml:"at"`
	Do     string     `toml:"do"`     // see the constants
	Node   string     `toml:"node"`   // for kill, restart, silent, heal
	Link   [2]string  `toml:"link"`   // for link-down, link-up, silent, heal, cost
	Groups [][]string `toml:"groups"` // for partition: links between different groups fall silent; nodes not named form one more group
	Cost   uint32     `toml:"cost"`   // for cost
}

// What an event can do.
const (
	Kill      = "kill"      // the node's process dies at once; its carrier stays
	Restart   = "restart"   // a killed node starts again with the state it had stored
	LinkDown  = "link-down" // carrier loss: both ends notice at once
	LinkUp    = "link-up"   // carrier is back
	Silent    = "silent"    // a link, or all links of a node, drop everything; nobody is told
	Partition = "partition" // silent on every link between two groups
	Heal      = "heal"      // end silence: of the link or node named, or everywhere
	Cost      = "cost"      // both ends announce another cost
)

// Expect is one demand; the fields that are set say which. From and To name nodes; "*" or "" means all.
type Expect struct {
	From      string   `toml:"from"`
	To        string   `toml:"to"`
	After     Duration `toml:"after"`     // when the window opens
	Until     Duration `toml:"until"`     // when it closes; zero: the end of the run
	Within    Duration `toml:"within"`    // reach: an echo asked for at After is answered this soon
	Gap       Duration `toml:"gap"`       // longest time without an answer under steady echoes between After and Until
	Converged Duration `toml:"converged"` // all nodes agree and their routes are optimal by then, counted from After
	Stretch   float64  `toml:"stretch"`   // largest mean ratio of path cost to the best possible
	Idle      Rate     `toml:"idle"`      // largest mean control traffic per link, both directions together, in the window
	Unreached bool     `toml:"unreached"` // From must not reach To in the window
}

// Duration is a time.Duration written as "1.5s".
type Duration struct{ time.Duration }

// UnmarshalText reads what time.ParseDuration reads, and refuses negative times.
func (d *Duration) UnmarshalText(b []byte) (err error) {
	d.Duration, err = time.ParseDuration(string(b))
	if err == nil && d.Duration < 0 {
		return fmt.Errorf("duration %s is negative", b)
	}
	return err
}

// MarshalText prints the duration.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Rate is bits per second, written as "500bit", "64kbit", "100mbit", "1.5gbit".
type Rate float64

// UnmarshalText reads a number and a unit.
func (r *Rate) UnmarshalText(b []byte) error {
	s := strings.ToLower(strings.TrimSpace(string(b)))
	num, ok := strings.CutSuffix(s, "bit")
	if !ok {
		return fmt.Errorf("rate %q has no unit: write bit, kbit, mbit or gbit", s)
	}
	unit := 1.0
	if n := len(num); n > 0 {
		switch num[n-1] {
		case 'k':
			unit, num = 1e3, num[:n-1]
		case 'm':
			unit, num = 1e6, num[:n-1]
		case 'g':
			unit, num = 1e9, num[:n-1]
		}
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
	if err != nil || v < 0 || math.IsInf(v, 0) || math.IsNaN(v) {
		return fmt.Errorf("rate %q is not a number and a unit", s)
	}
	*r = Rate(v * unit)
	return nil
}

// String prints the rate with the largest unit that fits.
func (r Rate) String() string {
	for _, u := range []struct {
		f float64
		s string
	}{{1e9, "gbit"}, {1e6, "mbit"}, {1e3, "kbit"}} {
		if float64(r) >= u.f {
			return strconv.FormatFloat(float64(r)/u.f, 'f', -1, 64) + u.s
		}
	}
	return strconv.FormatFloat(float64(r), 'f', -1, 64) + "bit"
}

// MarshalText prints the rate.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Load reads and checks a manifest file.
func Load(path string) (*Manifest, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	m, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// Parse reads and checks a manifest. Unknown keys are errors that name the line.
func Parse(b []byte) (*Manifest, error) {
	var m Manifest
	d := toml.NewDecoder(strings.NewReader(string(b)))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
			return nil, fmt.Errorf("unknown key:\n%s", strict.String())
		}
		if at, ok := errors.AsType[*toml.DecodeError](err); ok {
			return nil, fmt.Errorf("%w:\n%s", err, at.String())
		}
		return nil, err
	}
	if _, err := m.World(); err != nil {
		return nil, err
	}
	return &m, nil
}
