//go:build linux && !router

// Package netns builds test worlds out of the real kernel: one network namespace per node, a veth pair, a bridge or a userspace
// wire per link, and real programs running in them. Whatever a world makes carries its prefix and goes away with Close;
// what a killed run left behind goes away with the next Build.
//
// The lab's runner, demo, benchmarks and tests use it, as root. A World may be used from several goroutines. It owns
// the goroutines of its wires and one per process; Close waits for all of them.
package netns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// World is a set of namespaces and the links between them.
type World struct {
	Prefix string // every namespace is called Prefix-NODE
	Dir    string // state, configuration and logs: one folder per node

	opt  Options
	lans int // namespaces made for them so far

	mu    sync.Mutex
	nodes map[string]*Node
	order []string
	links []*Link
	procs []*Process
	hubs  []netns.NsHandle
	ends  []func() // what else ends with the world
}

// Node is one machine of the world.
type Node struct {
	Name      string
	Namespace string // as `ip netns` lists it
	Dir       string // its folder

	ns     netns.NsHandle
	nl     *netlink.Handle
	ports  int
	uid    int    // who runs weft here; 0 is root
	resolv string // path of a resolv.conf of its own; empty: the machine's

	addr   netip.Addr // cached: a key has one for life
	config string     // what its weft.toml holds
	binary string     // a weft program of its own; empty: the world's
	weft   *Process   // nil when not running; guarded by World.mu
}

// Link joins two nodes, or more when it is a LAN.
type Link struct {
	Name string
	Ends []End

	shape Shape
	wire  *wire // nil when the kernel carries the frames
}

// End is where a link enters a node.
type End struct {
	Node, Interface string
	hub             netns.NsHandle // for a kernel LAN: where the bridge's side of this cable is
	hubPort         string
	silent          bool            // swallows everything
	deaf            map[string]bool // hardware addresses that it does not hear
}

var (
	worlds atomic.Int32
	ours   = regexp.MustCompile(`^wl(\d+)x\d+-`)
)

// errNotRoot says what is missing to build a world.
var errNotRoot = errors.New("network namespaces need root: run this with sudo")

// Usable says whether worlds can be built here, and if not, why.
func Usable() error {
	if os.Geteuid() != 0 {
		return errNotRoot
	}
	for _, tool := range []string{"ip", "ping"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("the lab needs %q (packages iproute2 and iputils): %w", tool, err)
		}
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("the lab needs the tun driver (modprobe tun): %w", err)
	}
	return nil
}

// Options say how to build a world.
type Options struct {
	Binary string       // the weft program that nodes run
	Log    *slog.Logger // nil: say nothing
	Keep   bool         // leave the folder with its logs when the world closes
}

// New makes an empty world. Build makes one from a manifest.
func New(opt Options) (*World, error) {
	if err := Usable(); err != nil {
		return nil, err
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	Sweep()
	w := &World{
		Prefix: fmt.Sprintf("wl%dx%d", os.Getpid(), worlds.Add(1)),
		opt:    opt, nodes: map[string]*Node{},
	}
	dir, err := os.MkdirTemp("", w.Prefix+"-")
	if err != nil {
		return nil, fmt.Errorf("make the world's folder: %w", err)
	}
	w.Dir = dir
	return w, os.Chmod(dir, 0o755) // nodes may run as other users
}

// Sweep removes what runs that were killed have left: namespaces, their processes, their folders.
func Sweep() {
	entries, _ := os.ReadDir("/run/netns")
	for _, e := range entries {
		m := ours.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		if pid, _ := strconv.Atoi(m[1]); pid > 0 && syscall.Kill(pid, 0) == syscall.ESRCH {
			removeNamespace(e.Name())
		}
	}
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), "wl*x*-*"))
	for _, d := range dirs {
		m := ours.FindStringSubmatch(filepath.Base(d))
		if m == nil {
			continue
		}
		if pid, _ := strconv.Atoi(m[1]); pid > 0 && syscall.Kill(pid, 0) == syscall.ESRCH {
			os.RemoveAll(d)
		}
	}
}

// Alone waits until nobody else on this machine measures in a world, and keeps others waiting until release is called:
// two that measure at once would measure each other.
func Alone(ctx context.Context) (release func(), err error) {
	f, err := os.OpenFile(filepath.Join(os.TempDir(), "weft-lab.lock"), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lab's lock: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if err != unix.EWOULDBLOCK {
			f.Close()
			return nil, fmt.Errorf("take the lab's lock: %w", err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("another lab run is measuring: %w", ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func removeNamespace(name string) error {
	if target, err := inode(name); err == nil {
		killIn(map[string]bool{target: true}, time.Second)
	}
	out, err := exec.Command("ip", "netns", "del", name).CombinedOutput()
	if err != nil {
		return fmt.Errorf("remove namespace %s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// inode names a namespace as the links in /proc/PID/ns do.
func inode(name string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat("/run/netns/"+name, &st); err != nil {
		return "", err
	}
	return fmt.Sprintf("net:[%d]", st.Ino), nil
}

func (w *World) newNamespace(name string) (netns.NsHandle, error) {
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		return -1, fmt.Errorf("add namespace %s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	ns, err := netns.GetFromName(name)
	if err != nil {
		return -1, fmt.Errorf("open namespace %s: %w", name, err)
	}
	return ns, inside(ns, func() error {
		// A lab's addresses are unique by construction; waiting a second for the kernel to find that out tests nothing.
		for _, set := range [][2]string{{"ipv6/conf/default/accept_dad", "0"}, {"ipv6/conf/all/accept_dad", "0"}, {"ipv6/conf/default/dad_transmits", "0"}} {
			if err := os.WriteFile("/proc/sys/net/"+set[0], []byte(set[1]), 0); err != nil {
				return fmt.Errorf("set %s: %w", set[0], err)
			}
		}
		return nil
	})
}

// inside runs f on a thread that is in namespace ns. Descriptors that f opens stay in ns for life.
func inside(ns netns.NsHandle, f func() error) error {
	errs := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			errs <- err
			return
		}
		defer home.Close()
		if err := netns.Set(ns); err != nil {
			errs <- fmt.Errorf("enter namespace: %w", err)
			return
		}
		err = f()
		if back := netns.Set(home); back == nil {
			runtime.UnlockOSThread() // else the thread dies with this goroutine, as it must
		}
		errs <- err
	}()
	return <-errs
}

func (w *World) node(name string) (*Node, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.nodes[name]; n != nil {
		return n, nil
	}
	return nil, fmt.Errorf("no node %q in this world: it has %s", name, strings.Join(w.order, ", "))
}

// Nodes lists the nodes in the order of the manifest.
func (w *World) Nodes() []*Node {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []*Node
	for _, name := range w.order {
		all = append(all, w.nodes[name])
	}
	return all
}

// AddNode adds a machine with nothing but a loopback interface.
func (w *World) AddNode(name string) (*Node, error) {
	if w.nodes[name] != nil {
		return nil, fmt.Errorf("node %q is there twice", name)
	}
	n := &Node{Name: name, Namespace: w.Prefix + "-" + name, Dir: filepath.Join(w.Dir, name)}
	if err := os.MkdirAll(n.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of %s: %w", name, err)
	}
	var err error
	if n.ns, err = w.newNamespace(n.Namespace); err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.nodes[name] = n
	w.order = append(w.order, name)
	w.mu.Unlock()
	if n.nl, err = netlink.NewHandleAt(n.ns); err != nil {
		return nil, fmt.Errorf("netlink in %s: %w", name, err)
	}
	lo, err := n.nl.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find lo in %s: %w", name, err)
	}
	return n, n.nl.LinkSetUp(lo)
}

// AddLink lays a cable between two nodes, or builds a LAN of more. Interfaces are called eth0, eth1… in the order of the links.
func (w *World) AddLink(name string, ends []string, shape Shape, seed uint64) (*Link, error) {
	l := &Link{Name: name, shape: shape}
	var nodes []*Node
	for _, e := range ends {
		n, err := w.node(e)
		if err != nil {
			return nil, fmt.Errorf("link %s: %w", name, err)
		}
		nodes = append(nodes, n)
		l.Ends = append(l.Ends, End{Node: e, Interface: "eth" + strconv.Itoa(n.ports), hub: -1})
		n.ports++
	}
	var err error
	switch {
	case shape.emulated():
		err = w.layWire(l, nodes, seed)
	case len(nodes) == 2:
		err = w.layVeth(l, nodes)
	default:
		err = w.layBridge(l, nodes)
	}
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", name, err)
	}
	for i, n := range nodes {
		if err := n.setUp(l.Ends[i].Interface, true); err != nil {
			return nil, fmt.Errorf("link %s: %w", name, err)
		}
		if shape.Rate > 0 && l.wire == nil {
			if err := n.limit(l.Ends[i].Interface, shape.Rate); err != nil {
				return nil, fmt.Errorf("link %s: %w", name, err)
			}
		}
	}
	w.mu.Lock()
	w.links = append(w.links, l)
	w.mu.Unlock()
	return l, nil
}

func (w *World) layVeth(l *Link, nodes []*Node) error {
	v := netlink.NewVeth(netlink.NewLinkAttrs())
	v.Name, v.PeerName, v.PeerNamespace = l.Ends[0].Interface, l.Ends[1].Interface, netlink.NsFd(nodes[1].ns)
	return nodes[0].nl.LinkAdd(v)
}

// layBridge makes a LAN: a namespace that holds a bridge, and a cable from it to every node.
func (w *World) layBridge(l *Link, nodes []*Node) error {
	w.lans++
	hub, err := w.newNamespace(fmt.Sprintf("%s-lan%d~", w.Prefix, w.lans))
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.hubs = append(w.hubs, hub)
	w.mu.Unlock()
	h, err := netlink.NewHandleAt(hub)
	if err != nil {
		return err
	}
	defer h.Close()
	off := false
	br := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs(), MulticastSnooping: &off}
	br.Name = "br0"
	if err := h.LinkAdd(br); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	if err := h.LinkSetUp(br); err != nil {
		return err
	}
	for i, n := range nodes {
		v := netlink.NewVeth(netlink.NewLinkAttrs())
		v.Name, v.PeerName, v.PeerNamespace = "p"+strconv.Itoa(i), l.Ends[i].Interface, netlink.NsFd(n.ns)
		if err := h.LinkAdd(v); err != nil {
			return fmt.Errorf("add cable to %s: %w", n.Name, err)
		}
		port, err := h.LinkByName(v.Name)
		if err != nil {
			return err
		}
		if err := h.LinkSetMaster(port, br); err != nil {
			return err
		}
		if err := h.LinkSetUp(port); err != nil {
			return err
		}
		l.Ends[i].hub, l.Ends[i].hubPort = hub, v.Name
	}
	return nil
}

func (w *World) layWire(l *Link, nodes []*Node, seed uint64) error {
	var taps []*os.File
	for i, n := range nodes {
		err := inside(n.ns, func() error {
			tap, err := openTAP(l.Ends[i].Interface)
			taps = append(taps, tap)
			return err
		})
		if err != nil {
			return err
		}
	}
	l.wire = newWire(l.shape, seed, taps)
	return nil
}

func (n *Node) setUp(ifname string, up bool) error {
	link, err := n.nl.LinkByName(ifname)
	if err != nil {
		return fmt.Errorf("find %s of %s: %w", ifname, n.Name, err)
	}
	if up {
		return n.nl.LinkSetUp(link)
	}
	return n.nl.LinkSetDown(link)
}

// limit shapes what leaves the interface with a token bucket.
func (n *Node) limit(ifname string, rate float64) error {
	link, err := n.nl.LinkByName(ifname)
	if err != nil {
		return fmt.Errorf("find %s of %s: %w", ifname, n.Name, err)
	}
	bytesPerSecond := uint64(rate / 8)
	burst := uint32(max(65536, bytesPerSecond/100)) // 10 ms, and never less than one offloaded segment
	return n.nl.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       bytesPerSecond,
		Buffer:     uint32(netlink.Xmittime(bytesPerSecond, burst)),
		Limit:      burst + uint32(bytesPerSecond/20),
	})
}

// AddAddr gives an interface of a node an address.
func (w *World) AddAddr(node, ifname string, p netip.Prefix) error {
	n, err := w.node(node)
	if err != nil {
		return err
	}
	link, err := n.nl.LinkByName(ifname)
	if err != nil {
		return fmt.Errorf("find %s of %s: %w", ifname, node, err)
	}
	a, err := netlink.ParseAddr(p.String())
	if err != nil {
		return err
	}
	return n.nl.AddrAdd(link, a)
}

// Link finds the link between two nodes.
func (w *World) Link(a, b string) (*Link, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.links {
		if l.end(a) != nil && l.end(b) != nil {
			return l, nil
		}
	}
	return nil, fmt.Errorf("no link between %s and %s", a, b)
}

// LinkNamed finds a link by its name.
func (w *World) LinkNamed(name string) (*Link, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.links {
		if l.Name == name {
			return l, nil
		}
	}
	return nil, fmt.Errorf("no link called %q", name)
}

func (l *Link) end(node string) *End {
	for i := range l.Ends {
		if l.Ends[i].Node == node {
			return &l.Ends[i]
		}
	}
	return nil
}

// SetCarrier pulls the link's cable out of one node, or plugs it in again: the node sees its carrier go. On a cable
// between two nodes the other end loses it too.
func (w *World) SetCarrier(l *Link, node string, on bool) error {
	e := l.end(node)
	if e == nil {
		return fmt.Errorf("link %s does not reach %s", l.Name, node)
	}
	switch {
	case l.wire != nil:
		for i := range l.Ends {
			if l.Ends[i].Node == node || len(l.Ends) == 2 {
				if err := l.wire.ports[i].carrier(on); err != nil {
					return fmt.Errorf("link %s: %w", l.Name, err)
				}
			}
		}
		return nil
	case e.hubPort != "":
		h, err := netlink.NewHandleAt(e.hub)
		if err != nil {
			return err
		}
		defer h.Close()
		port, err := h.LinkByName(e.hubPort)
		if err != nil {
			return err
		}
		if on {
			return h.LinkSetUp(port)
		}
		return h.LinkSetDown(port)
	}
	// A veth pair has no cable to pull: one end is taken down and the other loses its carrier.
	n, err := w.node(node)
	if err != nil {
		return err
	}
	return n.setUp(e.Interface, on)
}

// SetSilent makes the link swallow every frame to and from the node, with the carrier up as if nothing had happened.
func (w *World) SetSilent(l *Link, node string, on bool) error {
	return w.silence(l, node, func(e *End) { e.silent = on })
}

// SetDeaf does the same between two nodes only, which matters on a LAN: each throws away what the other sends.
func (w *World) SetDeaf(l *Link, a, b string, on bool) error {
	for _, p := range [][2]string{{a, b}, {b, a}} {
		other := l.end(p[1])
		if other == nil {
			return fmt.Errorf("link %s does not reach %s", l.Name, p[1])
		}
		n, err := w.node(p[1])
		if err != nil {
			return err
		}
		link, err := n.nl.LinkByName(other.Interface)
		if err != nil {
			return fmt.Errorf("find %s of %s: %w", other.Interface, p[1], err)
		}
		mac := string(link.Attrs().HardwareAddr)
		if err := w.silence(l, p[0], func(e *End) {
			if e.deaf == nil {
				e.deaf = map[string]bool{}
			}
			if e.deaf[mac] = on; !on {
				delete(e.deaf, mac)
			}
		}); err != nil {
			return err
		}
	}
	return nil
}

// silence changes what an end swallows and writes the rules anew. They stand in a netdev table, before anything that the
// node itself could filter.
func (w *World) silence(l *Link, node string, change func(*End)) error {
	e := l.end(node)
	if e == nil {
		return fmt.Errorf("link %s does not reach %s", l.Name, node)
	}
	n, err := w.node(node)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	change(e)
	c, err := nftables.New(nftables.WithNetNSFd(int(n.ns)))
	if err != nil {
		return fmt.Errorf("nftables on %s: %w", node, err)
	}
	t := c.AddTable(&nftables.Table{Name: "weft-lab-" + e.Interface, Family: nftables.TableFamilyNetdev})
	c.DelTable(t)
	chain := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter, Device: e.Interface})
	}
	drop := &expr.Verdict{Kind: expr.VerdictDrop}
	if e.silent || len(e.deaf) > 0 {
		t = c.AddTable(t)
		in := chain("in", nftables.ChainHookIngress)
		if e.silent {
			c.AddRule(&nftables.Rule{Table: t, Chain: in, Exprs: []expr.Any{drop}})
			c.AddRule(&nftables.Rule{Table: t, Chain: chain("out", nftables.ChainHookEgress), Exprs: []expr.Any{drop}})
		}
		for mac := range e.deaf {
			c.AddRule(&nftables.Rule{Table: t, Chain: in, Exprs: []expr.Any{
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6}, // source address
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(mac)},
				drop,
			}})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("silence %s on %s: %w", e.Interface, node, err)
	}
	return nil
}

// Reshape changes what an emulated or rate-limited link does, while it runs.
func (w *World) Reshape(l *Link, s Shape) error {
	switch {
	case l.wire != nil:
		l.wire.setShape(s)
	case s.emulated():
		return fmt.Errorf("link %s is carried by the kernel: give it a delay or a loss in the manifest to make it change at run time", l.Name)
	case s.Rate > 0:
		for _, e := range l.Ends {
			n, err := w.node(e.Node)
			if err != nil {
				return err
			}
			if err := n.limit(e.Interface, s.Rate); err != nil {
				return err
			}
		}
	}
	l.shape = s
	return nil
}

// Close ends every process and removes every namespace and, unless the world is kept, its folder. It may be called twice.
func (w *World) Close() error {
	w.mu.Lock()
	nodes, links, procs, hubs, ends := w.nodes, w.links, w.procs, w.hubs, w.ends
	w.nodes, w.order, w.links, w.procs, w.hubs, w.ends = map[string]*Node{}, nil, nil, nil, nil, nil
	w.mu.Unlock()
	for _, end := range ends {
		end()
	}

	inodes := map[string]bool{}
	for _, n := range nodes {
		if id, err := inode(n.Namespace); err == nil {
			inodes[id] = true
		}
	}
	killIn(inodes, 3*time.Second)
	for _, p := range procs {
		select {
		case <-p.done:
		case <-time.After(5 * time.Second):
			w.opt.Log.Warn("a process outlived its world", "name", p.Name, "pid", p.Pid)
		}
	}
	for _, l := range links {
		if l.wire != nil {
			l.wire.close()
		}
	}
	var errs []error
	for _, n := range nodes {
		if n.nl != nil {
			n.nl.Close()
		}
		n.ns.Close()
	}
	for _, h := range hubs {
		h.Close()
	}
	// By name, not by what is in the maps: a node that was half made goes too.
	entries, _ := os.ReadDir("/run/netns")
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), w.Prefix+"-") {
			errs = append(errs, removeNamespace(e.Name()))
		}
	}
	if !w.opt.Keep {
		errs = append(errs, os.RemoveAll(w.Dir))
	}
	return errors.Join(errs...)
}
