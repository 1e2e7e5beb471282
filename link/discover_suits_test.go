package link

import (
	"net/netip"
	"testing"
)

func TestExcludedInterfacesAreLeftOut(t *testing.T) {
	lan := Interface{Running: true, Multicast: true, Addrs: []netip.Prefix{netip.MustParsePrefix("fe80::1/64")}}
	for _, c := range []struct {
		name             string
		include, exclude []string
		want             bool
	}{
		{"eth0", nil, nil, true},
		{"eth0", []string{"wlan*"}, nil, false},
		{"wlan0", []string{"wlan*"}, nil, true},
		{"docker0", nil, []string{"docker*"}, false},
		{"wlan1", []string{"wlan*"}, []string{"wlan1"}, false},
	} {
		d := &discovery{m: &Manager{cfg: Config{Multicast: Multicast{Interfaces: c.include, Exclude: c.exclude}}}}
		lan.Name = c.name
		if got := d.suits(lan); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
