package node

import (
	"testing"
	"testing/synctest"
	"time"

	"weft/config"
	"weft/link/linktest"
)

// Nodes behind routers of their own that talk get a direct link, and lose it when they are silent; owners can do without.
func TestIntroducedWhileTheyTalk(t *testing.T) {
	for _, off := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			v := newVillage(t)
			defer v.close()
			out, inA, inB := v.net.Segment(linktest.Quality{Delay: 10 * time.Millisecond}), v.net.Segment(cable), v.net.Segment(cable)
			v.net.Router(inA, out, linktest.NAT{No6: true})
			v.net.Router(inB, out, linktest.NAT{No6: true})
			third := v.house(named("third"), out)
			behind := func(name string, in *linktest.Segment) *house {
				return v.house(func(c *config.Config) {
					named(name)(c)
					c.Introduce.Direct = !off
					c.Peers = []config.Peer{{URI: "udp://" + third.host.Addr4(out).String() + ":7117"}}
				}, in)
			}
			a, b := behind("a", inA), behind("b", inB)
			time.Sleep(2 * time.Second)
			reach(t, a, b, 5*time.Second)
			if a.links.LinkTo(b.self) != nil {
				t.Fatal("they are linked before they talked")
			}
			for range 20 {
				time.Sleep(time.Second)
				reach(t, a, b, time.Second)
			}
			if (a.links.LinkTo(b.self) != nil) == off {
				t.Fatalf("direct link: %v, the owners want none: %v", !off, off)
			}
			if off {
				return
			}
			if hop, _ := a.routing.table.Load().Route(b.self.ID()); hop.Hops != 1 {
				t.Errorf("their traffic still takes %d hops", hop.Hops)
			}
			peers, _ := a.Peers(t.Context())
			found := false
			for _, p := range peers {
				found = found || p.Key == b.self && p.Source == "introduced"
			}
			if st, err := a.Status(t.Context()); err != nil || !st.NAT || len(st.Seen) == 0 || !found {
				t.Errorf("a says that it is behind a NAT: %v, seen at %v; %v; its peers are %+v", st.NAT, st.Seen, err, peers)
			}
			time.Sleep(15 * time.Minute)
			if a.links.LinkTo(b.self) != nil {
				t.Error("the link stays though nothing flows")
			}
			reach(t, b, a, 2*time.Second)
		})
	}
}
