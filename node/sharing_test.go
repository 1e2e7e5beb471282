package node

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"weft/gateway"
	"weft/ident"
	"weft/proxy"
)

// TestProxyKeepsOffTheOwnLine: while a lease is there but the kernel's routes do not lead to it, as where another node of this host has
// the default route, the proxy refuses: a plain dial would go by the own line.
func TestProxyKeepsOffTheOwnLine(t *testing.T) {
	s := &sharing{n: &Node{mode: "tun"}, use: gateway.Use{Gateway: ident.PublicKey{1}}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // should it dial all the same, nothing leaves
	if _, err := s.dialOutside(ctx, "tcp", "203.0.113.1", 80); !errors.Is(err, proxy.ErrNoGateway) {
		t.Errorf("without routes: %v", err)
	}
	s.whole = true
	if _, err := s.dialOutside(ctx, "tcp", "203.0.113.1", 80); errors.Is(err, proxy.ErrNoGateway) || err == nil {
		t.Errorf("with routes: %v", err)
	}
}

// TestServersThroughAGateway: servers of the LAN and of this device are not asked while a gateway is in use.
func TestServersThroughAGateway(t *testing.T) {
	const conf = "# resolv.conf\nnameserver 127.0.0.53\nnameserver 192.168.1.1\nnameserver 100.64.0.1\nnameserver fd00::1\nnameserver fe80::1%eth0\n" +
		"nameserver 198.51.100.53\nnameserver 201::1\nsearch lan\nnameserver\n"
	if got := serversIn(conf, true); !slices.Equal(got, []string{"udp://198.51.100.53:53"}) {
		t.Errorf("through a gateway: %v", got)
	}
	if got := serversIn(conf, false); len(got) != 4 || got[0] != "udp://127.0.0.53:53" {
		t.Errorf("by the own line: %v", got)
	}
	s := &sharing{use: gateway.Use{Gateway: ident.PublicKey{1}}, asked: []string{"via"}}
	if s.whyNoDNS() == "" {
		t.Error("nobody is told why names do not resolve")
	}
}

func TestOwnNetworks(t *testing.T) {
	got, err := ownNetworks()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"127.0.0.0/8", "127.0.0.1/32"} {
		if !slices.Contains(got, netip.MustParsePrefix(p)) {
			t.Errorf("%s is missing in %v", p, got)
		}
	}
}
