package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"weft/config"
	"weft/proxy"
	"weft/tun"
	"weft/tun/netstack"
)

// network is how the node's own services reach the mesh and are reached from it.
type network = proxy.Network

// stackDevice is the userspace stack: a device and a network in one.
type stackDevice interface {
	tun.Device
	network
}

func newStack(a netip.Addr, mtu int) (stackDevice, error) {
	s, err := netstack.New(netstack.Config{Addr: a, MTU: mtu})
	if err != nil {
		return nil, err
	}
	return newSplitDevice(s), nil
}

// openProxies opens the proxies and port forwards that the config asks for.
func (n *Node) openProxies() (services []func(context.Context) error, err error) {
	base := proxy.Config{Mesh: n.net, Resolve: n.resolveName, Outside: n.sharing.dialOutside, Log: n.log.With("room", "proxy")}
	listen := func(at string, fallback bool) (string, error) {
		ln, err := net.Listen("tcp", at)
		if err != nil && fallback {
			ln, err = nextFree(at)
		}
		if err != nil {
			return "", fmt.Errorf("proxy: %w (set another port in [userspace])", err)
		}
		p, err := proxy.New(base)
		if err != nil {
			ln.Close()
			return "", err
		}
		services = append(services, func(ctx context.Context) error { return p.ServeListener(ctx, ln) })
		return ln.Addr().String(), nil
	}
	switch at := n.cfg.Userspace.SOCKS; {
	case at == "off" || at == "" || at == "auto" && n.mode == "tun":
	case at == "auto":
		if n.socks, err = listen(config.DefaultSOCKS, true); err != nil {
			return nil, err
		}
		n.http = n.socks // one port speaks both
	default:
		if n.socks, err = listen(at, false); err != nil {
			return nil, err
		}
	}
	if at := n.cfg.Userspace.HTTP; at != "off" && at != "" && at != n.socks {
		if n.http, err = listen(at, false); err != nil {
			return nil, err
		}
	}
	if len(n.cfg.Forwards)+len(n.cfg.Exposes) == 0 {
		return services, nil
	}
	for _, f := range n.cfg.Forwards {
		p, err := proxy.ParseForward(fmt.Sprintf("%s %s -> %s", protoOf(f.Proto), f.Listen, f.To))
		if err != nil {
			return nil, fmt.Errorf("forward: %w", err)
		}
		base.Forwards = append(base.Forwards, p)
	}
	for _, x := range n.cfg.Exposes {
		p, err := proxy.ParseExpose(fmt.Sprintf("%s %d -> %s", protoOf(x.Proto), x.Port, x.To))
		if err != nil {
			return nil, fmt.Errorf("expose: %w", err)
		}
		base.Exposed = append(base.Exposed, p)
	}
	p, err := proxy.New(base)
	if err != nil {
		return nil, err
	}
	return append(services, p.Serve), nil
}

func protoOf(p config.Proto) string {
	if p.UDP() {
		return "udp"
	}
	return "tcp"
}

// resolveName finds the address of NAME.weft: a node id or the name of exactly one node.
func (n *Node) resolveName(_ context.Context, name string) (netip.Addr, error) {
	key, err := n.find(strings.TrimSuffix(name, proxy.Domain))
	if err != nil {
		return netip.Addr{}, err
	}
	return key.Addr(), nil
}
