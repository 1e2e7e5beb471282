package node

import (
	"testing"

	"weft/config"
)

func TestChoiceFor(t *testing.T) {
	auto := config.Gateway{Offer: true, Use: "auto"}
	for _, c := range []struct {
		what                   string
		want                   config.Gateway
		using, stable, leaving bool
		choice                 string
	}{
		{"at the start", auto, false, false, false, "auto"},
		{"the own line is down", auto, true, false, false, "auto"},
		{"it is back", auto, true, true, false, "off"},
		{"the lease is given up, the offer does not stand yet", auto, false, true, true, "off"},
		{"a node that shares nothing", config.Gateway{Use: "auto"}, true, true, false, "auto"},
		{"the owner chose one gateway", config.Gateway{Offer: true, Use: "roof"}, true, true, true, "roof"},
		{"the owner wants none", config.Gateway{Offer: true, Use: "off"}, false, true, true, "off"},
	} {
		if got := choiceFor(c.want, c.using, c.stable, c.leaving); got != c.choice {
			t.Errorf("%s: %q, want %q", c.what, got, c.choice)
		}
	}
}
