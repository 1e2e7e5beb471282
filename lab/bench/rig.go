//go:build linux && !router

package bench

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"weft/api"
	"weft/lab/netns"
	"weft/lab/peers"
)

// rig is one system on one topology: a world with its programs running.
type rig struct {
	b        *bench
	topology string
	system   string
	w        *netns.World
	nodes    []string
	edges    []edge
	far      int // index of the node at the other end
	addr     []netip.Addr
	procs    []*netns.Process
	failed   bool
}

// edge is a link with the addresses of its ends, for the systems that need some.
type edge struct {
	a, b         int
	aDev, bDev   string
	aAddr, bAddr netip.Addr
}

const (
	yggPort  = 9001
	flowPort = 5201 // iperf3's
)

// plane is Weft with its native links off: all goes over the Yggdrasil plane.
const plane = "weft-yggdrasil"

// paying is weft in a community in which the line has a price and relays are paid.
const paying = "weft-paid"

// planeConfig is weftConfig for it; the peers follow.
var planeConfig = weftConfig + fmt.Sprintf("\n[multicast]\nenabled = false\n\n[yggdrasil]\nenabled = \"on\"\nlisten = [\"tcp://[::]:%d\"]\n", yggPort)

// weftConfig lets the measuring tools in; all else is as a stranger finds it.
var weftConfig = fmt.Sprintf("[tun]\nname = %q\n\n[firewall]\nrules = [\"allow tcp %d from any\", \"allow udp %d from any\"]\n", netns.Interface, flowPort, flowPort)

func (b *bench) build(topology, system string, count int) (*rig, error) {
	w, err := netns.New(netns.Options{Binary: b.opt.Binary, Log: b.opt.Log})
	if err != nil {
		return nil, err
	}
	r := &rig{b: b, topology: topology, system: system, w: w, far: count - 1, addr: make([]netip.Addr, count), procs: make([]*netns.Process, count)}
	ports := make([]int, count)
	join := func(x, y int) {
		k := len(r.edges)
		side := func(i, host int) (string, netip.Addr) {
			ports[i]++
			return "eth" + strconv.Itoa(ports[i]-1), netip.AddrFrom16([16]byte{0xfd, 0x57, 7: byte(k), 15: byte(host)})
		}
		e := edge{a: x, b: y}
		e.aDev, e.aAddr = side(x, 1)
		e.bDev, e.bAddr = side(y, 2)
		r.edges = append(r.edges, e)
	}
	if topology == "diamond" {
		join(0, 1)
		join(0, 2)
		join(1, 3)
		join(2, 3)
	} else {
		for i := 1; i < count; i++ {
			join(i-1, i)
		}
	}
	if topology == "join" {
		r.far = 4
	}
	for i := range count {
		name := "n" + strconv.Itoa(i)
		r.nodes = append(r.nodes, name)
		if _, err := w.AddNode(name); err != nil {
			return r, err
		}
	}
	for _, e := range r.edges {
		if _, err := w.AddLink(fmt.Sprintf("n%d-n%d", e.a, e.b), []string{r.nodes[e.a], r.nodes[e.b]}, netns.Shape{}, 1); err != nil {
			return r, err
		}
	}
	if err := r.underlay(); err != nil {
		return r, err
	}
	ctx := context.Background()
	if topology == "gateway" {
		if err := r.outside(ctx); err != nil {
			return r, err
		}
	}
	for i := range r.nodes {
		if topology == "join" && i == count-1 {
			r.addr[i] = r.address(i)
			continue
		}
		if err := r.start(ctx, i); err != nil {
			return r, err
		}
	}
	return r, nil
}

// overlay says whether the system has processes of its own.
func (r *rig) overlay() bool { return !strings.HasPrefix(r.system, "kernel") }

// last is the node that the measures talk to, and target its address: behind the last of the line when that is a gateway.
func (r *rig) last() string {
	if r.topology == "gateway" {
		return "speed"
	}
	return r.nodes[r.far]
}

func (r *rig) target() netip.Addr {
	if r.topology == "gateway" {
		return netns.SpeedAddr4
	}
	return r.addr[r.far]
}

func (r *rig) fail(doing string, err error) error {
	r.failed = true
	var logs strings.Builder
	r.w.WriteLogs(&logs, 8)
	return fmt.Errorf("%s: %s: %w\n%s", r.system, doing, err, logs.String())
}

func seed(i int) [32]byte { return sha256.Sum256([]byte("weft lab bench node " + strconv.Itoa(i))) }

// address is what the other nodes call node i, as far as it is known before the node runs.
func (r *rig) address(i int) netip.Addr {
	switch r.system {
	case "yggdrasil":
		return peers.YggdrasilAddr(seed(i))
	case "wireguard", "wireguard-hops":
		return netip.AddrFrom16([16]byte{0xfd, 0x77, 15: byte(i + 1)})
	case "kernel", "kernel-plain":
		for _, e := range r.edges {
			if e.b == i {
				return e.bAddr
			}
			if e.a == i {
				return e.aAddr
			}
		}
	}
	return netip.Addr{}
}

// underlay gives the links addresses and, where the kernel forwards, routes. Weft needs neither. It may be called again
// when an interface that was down has lost them.
func (r *rig) underlay() error {
	if r.system == "weft" || r.system == paying {
		return nil
	}
	for _, e := range r.edges {
		for _, s := range []struct {
			node int
			dev  string
			addr netip.Addr
		}{{e.a, e.aDev, e.aAddr}, {e.b, e.bDev, e.bAddr}} {
			if err := r.w.AddAddr(r.nodes[s.node], s.dev, netip.PrefixFrom(s.addr, 64)); err != nil && err != syscall.EEXIST {
				return fmt.Errorf("address of n%d: %w", s.node, err)
			}
		}
	}
	if r.system == "yggdrasil" || r.system == plane {
		return nil
	}
	var script strings.Builder
	for i, node := range r.nodes {
		script.Reset()
		if i > 0 && i < len(r.nodes)-1 {
			script.WriteString("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding\n")
		}
		if r.system != "wireguard-hops" { // a line: everything further down goes down, and up goes up
			for k, e := range r.edges {
				net := netip.PrefixFrom(e.aAddr, 64).Masked()
				if k > i {
					fmt.Fprintf(&script, "ip -6 route replace %s via %s\n", net, r.edges[i].bAddr)
				} else if k < i-1 {
					fmt.Fprintf(&script, "ip -6 route replace %s via %s\n", net, r.edges[i-1].aAddr)
				}
			}
		}
		if r.system == "kernel-plain" {
			if _, err := exec.LookPath("ethtool"); err != nil {
				return fmt.Errorf("kernel-plain needs ethtool: %w", err)
			}
			script.WriteString("for d in eth0 eth1; do [ -e /sys/class/net/$d ] && ethtool -K $d tso off gso off gro off tx off rx off; done; true\n")
		}
		if _, err := r.w.Exec(context.Background(), node, "sh", "-e", "-c", script.String()); err != nil {
			return err
		}
	}
	return nil
}

// outside adds the pretend internet with the last node's uplink into it and, for those that bring none, the translation there
// and IPv4 on the line.
func (r *rig) outside(ctx context.Context) error {
	o, err := r.w.AddOutside(ctx)
	if err != nil {
		return err
	}
	up, err := o.Uplink(ctx, r.nodes[r.far], 0)
	if err != nil || r.system == "weft" || r.system == paying {
		return err
	}
	script := make([]string, len(r.nodes))
	if r.overlay() { // the tunnel carries IPv4; start gives it addresses
		script[r.far] = "echo 1 > /proc/sys/net/ipv4/ip_forward\n"
	} else {
		for k, e := range r.edges {
			script[e.a] += fmt.Sprintf("ip addr add 10.9.%d.1/24 dev %s; ip route replace default via 10.9.%d.2\n", k, e.aDev, k)
			script[e.b] += fmt.Sprintf("ip addr add 10.9.%d.2/24 dev %s; echo 1 > /proc/sys/net/ipv4/ip_forward\n", k, e.bDev)
			for far := range k {
				script[e.b] += fmt.Sprintf("ip route add 10.9.%d.0/24 via 10.9.%d.1\n", far, k)
			}
		}
	}
	script[r.far] += fmt.Sprintf("nft 'table ip nat { chain post { type nat hook postrouting priority srcnat; oifname %q masquerade; }; }'\n", up.Interface)
	for i, text := range script {
		if _, err := r.w.Exec(ctx, r.nodes[i], "sh", "-ec", text); err != nil {
			return err
		}
	}
	return nil
}

// tunnel4 is a node's IPv4 address in the WireGuard tunnel to the gateway.
func tunnel4(i int) string { return fmt.Sprintf("10.77.0.%d", i+1) }

// start runs the system's program on node i and learns its address.
func (r *rig) start(ctx context.Context, i int) error {
	r.addr[i] = r.address(i)
	peer := append(append([]string{}, r.b.opt.Self...), "lab", "peer")
	switch r.system {
	case "kernel", "kernel-plain":
		return nil
	case "weft", plane, paying:
		config := weftConfig
		if r.system == plane {
			var uris []string
			for _, e := range r.edges {
				if e.b == i {
					uris = append(uris, fmt.Sprintf("%q", fmt.Sprintf("tcp://[%s]:%d", e.aAddr, yggPort)))
				}
			}
			config = planeConfig + "peers = [" + strings.Join(uris, ", ") + "]\n"
		}
		if r.topology == "gateway" {
			switch i {
			case 0:
				config += "\n[gateway]\nuse = \"auto\"\n"
			case r.far:
				config += "\n[gateway]\noffer = true\n"
				if r.system == paying {
					config += "price = \"0.10/GB\"\n"
				}
			}
			if r.system == paying {
				config += "\n[wallet]\ncap = \"1000.00\"\n"
			}
		}
		if err := r.w.Configure(r.nodes[i], config); err != nil {
			return err
		}
		if err := r.w.Start(r.nodes[i]); err != nil {
			return err
		}
		r.procs[i] = r.w.Process(r.nodes[i])
		if r.topology == "join" && i == 5 {
			return nil // its address matters to nobody and asking takes time
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		var err error
		r.addr[i], err = r.w.Address(ctx, r.nodes[i])
		return err
	case "yggdrasil":
		s := seed(i)
		peer = append(peer, "yggdrasil", "--seed", fmt.Sprintf("%x", s), "--tun", "ygg0", "--listen", fmt.Sprintf("tcp://[::]:%d", yggPort))
		for _, e := range r.edges {
			if e.b == i {
				peer = append(peer, "--peer", fmt.Sprintf("tcp://[%s]:%d", e.aAddr, yggPort))
			}
		}
	case "wireguard", "wireguard-hops":
		if r.system == "wireguard" && i != 0 && i != r.far {
			return nil // its kernel forwards
		}
		s := seed(i)
		peer = append(peer, "wireguard", "--seed", fmt.Sprintf("%x", s), "--tun", "wg0", "--addr", r.addr[i].String()+"/64")
		one := func(to int, at netip.Addr, first, last int) {
			spec := fmt.Sprintf("%s,[%s]:51820", peers.WireGuardPublic(seed(to)), at)
			for k := first; k <= last; k++ {
				spec += "," + r.address(k).String() + "/128"
			}
			switch {
			case r.topology == "gateway" && to == r.far:
				spec += ",0.0.0.0/0"
			case r.topology == "gateway":
				spec += "," + tunnel4(to) + "/32"
			}
			peer = append(peer, "--peer", spec)
		}
		if r.system == "wireguard" {
			to := r.far - i
			at := r.edges[0].aAddr
			if to != 0 {
				at = r.edges[len(r.edges)-1].bAddr
			}
			one(to, at, to, to)
			break
		}
		if i > 0 {
			one(i-1, r.edges[i-1].aAddr, 0, i-1)
		}
		if i < r.far {
			one(i+1, r.edges[i].bAddr, i+1, r.far)
		}
	}
	p, err := r.w.Spawn(r.nodes[i], r.system, peer...)
	if err != nil {
		return err
	}
	r.procs[i] = p
	if r.topology == "gateway" && r.system == "wireguard" {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if _, err := p.WaitLine(ctx, peers.Ready); err != nil {
			return err
		}
		script := "ip addr add " + tunnel4(i) + "/24 dev wg0\n"
		if i == 0 {
			script += "ip route add default dev wg0\n"
		}
		_, err := r.w.Exec(ctx, r.nodes[i], "sh", "-ec", script)
		return err
	}
	return nil
}

func (r *rig) stop(i int) error {
	p := r.procs[i]
	r.procs[i] = nil
	return p.Stop(10 * time.Second)
}

// ready waits until the ends, and every node on the way, hear from each other.
func (r *rig) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 100*time.Second)
	defer cancel()
	for i := 1; i <= r.far; i++ {
		if r.system == "wireguard" && i != r.far {
			continue
		}
		if _, err := r.w.AwaitPing(ctx, r.nodes[0], r.addr[i]); err != nil {
			return err
		}
	}
	if r.topology == "gateway" {
		if _, err := r.w.AwaitPing(ctx, r.nodes[0], r.target()); err != nil {
			return err
		}
	}
	if r.system == paying {
		return r.found(ctx)
	}
	return nil
}

// found makes a community of all nodes, and pays in what the first is to spend.
func (r *rig) found(ctx context.Context) error {
	far := r.nodes[r.far]
	if err := r.w.Weft(ctx, far, nil, "coop", "found", "--name", "Bench", "--called", far, "--set", "member.vouch_age=0", "--set", "member.vouches=1"); err != nil {
		return err
	}
	for _, node := range slices.Backward(r.nodes[:r.far]) {
		if err := r.w.Weft(ctx, node, nil, "coop", "join", r.addr[r.far].String()); err != nil {
			return err
		}
		st, err := r.w.Status(ctx, node)
		if err != nil {
			return err
		}
		var word struct{ Word string }
		if err := r.w.Weft(ctx, far, &word, "coop", "sponsor", st.Key.String()); err != nil {
			return err
		}
		if err := r.w.Weft(ctx, node, nil, "coop", "apply", "--name", node, word.Word); err != nil {
			return err
		}
	}
	if err := r.w.Weft(ctx, far, nil, "coop", "deposit", r.nodes[0], "1000.00", "for the test"); err != nil {
		return err
	}
	var last api.Wallet
	for {
		if _, err := r.w.AwaitPing(ctx, r.nodes[0], r.target()); err != nil { // a price is told to who uses the line
			return err
		}
		var w api.Wallet
		if err := r.w.Weft(ctx, r.nodes[0], &w, "wallet"); err != nil {
			return fmt.Errorf("the first node knows no price (%+v): %w", last, err)
		}
		last = w
		if w.Price > 0 {
			return nil
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("the first node knows no price (%+v): %w", last, err)
		}
	}
}

// usage reads what each node's process has used; zero for a node that has none.
func (r *rig) usage() []netns.Usage {
	all := make([]netns.Usage, len(r.nodes))
	for i, p := range r.procs {
		if p != nil {
			all[i], _ = p.Usage() // one that died uses nothing; the measure itself will say so
		}
	}
	return all
}

// carrying finds which of two relays the running ping goes through, by what their first link receives.
func (r *rig) carrying(ctx context.Context, x, y int) (int, error) {
	count := func(i int) (int, error) {
		out, err := r.w.Exec(ctx, r.nodes[i], "cat", "/sys/class/net/eth0/statistics/rx_packets")
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(string(out)))
	}
	var n [4]int
	for k, i := range []int{x, y, x, y} {
		if k == 2 {
			if err := sleep(ctx, time.Second); err != nil {
				return 0, err
			}
		}
		var err error
		if n[k], err = count(i); err != nil {
			return 0, err
		}
	}
	if n[2]-n[0] > n[3]-n[1] {
		return x, nil
	}
	return y, nil
}
