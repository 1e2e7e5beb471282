//go:build linux && !router

package netns

import (
	"strings"
	"testing"
	"time"
)

// In strict mode a device with a line of its own never uses it: not before there is a gateway, not after the last one is lost. Its
// own network stays, and without strict mode, or after weft has stopped, so does its line.
func TestStrictNeverUsesTheOwnLine(t *testing.T) {
	s := newShared(t)
	s.node("anna", 0, "\n[gateway]\nuse = \"auto\"\nstrict = true\n")
	s.node("gw", 0, offers+upstream)
	s.line(Shape{}, "anna", "gw")
	s.uplink("anna", 0)
	s.uplink("gw", 0)
	house, err := s.AddHouse(s.ctx, "anna")
	if err != nil {
		t.Fatal(err)
	}
	b := browser{t: t, ctx: s.ctx, w: s.World, node: "anna"}
	own := func() string {
		out, err := b.try("--connect-timeout", "1", "-m", "2", "-4", "http://"+WebAddr4.String()+"/whoami")
		if err != nil {
			return ""
		}
		return strings.TrimSpace(out)
	}
	if own() != s.up["anna"].Addr4.String() {
		t.Fatal("anna's own line does not work")
	}
	s.start("anna")
	fenced := func(when string) {
		t.Helper()
		for begin := time.Now(); own() != ""; wait(s.ctx, 100*time.Millisecond) {
			if time.Since(begin) > 10*time.Second {
				t.Fatalf("%s: the own line is used", when)
			}
		}
		for range 3 {
			if through := own(); through != "" {
				t.Errorf("%s: out through %s", when, through)
			}
			if _, err := b.try("--connect-timeout", "1", "-m", "2", "-g", "-6", "http://["+WebAddr6.String()+"]/whoami"); err == nil {
				t.Errorf("%s: out over IPv6", when)
			}
		}
		b.page(house.Page, "http://"+house.Addr4.String()+"/")
	}
	fenced("before there is a gateway")
	s.start("gw")
	if through := s.online(b, 20*time.Second); through != "gw" {
		t.Errorf("online through %s", through)
	}
	if err := s.Kill("gw"); err != nil {
		t.Fatal(err)
	}
	fenced("after the gateway is lost")
	if err := s.Stop("anna"); err != nil {
		t.Error(err)
	}
	if own() != s.up["anna"].Addr4.String() {
		t.Error("anna's own line is gone for good")
	}
}
