package cli

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"weft/api"
)

func TestInternetLines(t *testing.T) {
	for _, c := range []struct {
		is   api.Internet
		want [][2]string
	}{
		{api.Internet{Use: "off", Offer: "off", Guests: -1}, [][2]string{{"Internet", "from no gateway; see: weft gateway"}}},
		{api.Internet{Use: "up", From: "roof", Price: 104858, Offer: "off"},
			[][2]string{{"Internet", "from roof, 0.10 credits/GB"}, {"Guests", "0 devices without Weft; see: weft guest"}}},
		{api.Internet{Use: "resting", Offer: "on", Clients: 1, Guests: -1},
			[][2]string{{"Internet", "by the own line; a gateway when it fails"}, {"Sharing", "this device's line, with 1 node"}}},
		{api.Internet{Use: "failing", Why: "no route", Offer: "waiting", Guests: -1},
			[][2]string{{"Internet", "failing: no route"}, {"Sharing", "on, but not now; see: weft gateway"}}},
		{api.Internet{Use: "off", Why: "no line", Offer: "waiting", Guests: -1},
			[][2]string{{"Internet", "from no gateway; see: weft gateway"}, {"Sharing", "on, but not now: no line"}}},
	} {
		if d := cmp.Diff(c.want, internetLines(c.is)); d != "" {
			t.Errorf("%+v: %s", c.is, d)
		}
	}
}
