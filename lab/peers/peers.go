//go:build linux && !router

// Package peers runs the systems that Weft is measured against, each as a process of its own: the Yggdrasil core as a
// library and the userspace WireGuard device. `weft lab bench` starts them by running its own binary again with the hidden verb
// `weft lab peer …`, so that they are compiled by the same compiler and need nothing installed.
//
// Only lab/bench and the command line use it. Run owns every goroutine it starts through the peer libraries and returns
// when the context ends; a process should call it once.
package peers

import (
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"regexp"
	"strings"

	"github.com/gologme/log"
	"github.com/vishvananda/netlink"
	"github.com/yggdrasil-network/yggdrasil-go/src/address"
	yggconfig "github.com/yggdrasil-network/yggdrasil-go/src/config"
	"github.com/yggdrasil-network/yggdrasil-go/src/core"
	"github.com/yggdrasil-network/yggdrasil-go/src/ipv6rwc"
	"github.com/yggdrasil-network/yggdrasil-go/src/multicast"
	yggtun "github.com/yggdrasil-network/yggdrasil-go/src/tun"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	wgtun "golang.zx2c4.com/wireguard/tun"
)

// Ready is the line a peer prints to standard output when its interface is up and it takes traffic.
const Ready = "ready"

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// Run runs one peer until ctx ends. args are the words after `weft lab peer`: a system and its flags.
func Run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New("which peer? want yggdrasil or wireguard")
	}
	switch args[0] {
	case "yggdrasil":
		return yggdrasil(ctx, args[1:], out)
	case "wireguard":
		return wireguard(ctx, args[1:], out)
	}
	return fmt.Errorf("unknown peer %q: want yggdrasil or wireguard", args[0])
}

// YggdrasilAddr is the overlay address of the Yggdrasil node with this seed.
func YggdrasilAddr(seed [32]byte) netip.Addr {
	pub := ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey)
	return netip.AddrFrom16(*address.AddrForKey(pub))
}

func yggdrasil(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("yggdrasil", flag.ContinueOnError)
	seedHex := fs.String("seed", "", "32 bytes of hex: the private key")
	name := fs.String("tun", "ygg0", "name of the interface")
	mtu := fs.Uint64("mtu", yggtun.DefaultMTU(), "MTU of the interface")
	var listen, peer list
	fs.Var(&listen, "listen", "URI to listen on (repeat)")
	fs.Var(&peer, "peer", "URI of a peer (repeat)")
	find := fs.String("multicast", "", "find nodes on interfaces whose name matches this regular expression")
	password := fs.String("password", "", "password of multicast")
	if err := fs.Parse(args); err != nil {
		return err
	}
	seed, err := seedFrom(*seedHex)
	if err != nil {
		return err
	}
	logger := log.New(os.Stderr, "", log.Ltime)
	for _, level := range []string{"error", "warn", "info"} {
		logger.EnableLevel(level)
	}
	conf := yggconfig.NodeConfig{PrivateKey: yggconfig.KeyBytes(ed25519.NewKeyFromSeed(seed[:]))}
	if err := conf.GenerateSelfSignedCertificate(); err != nil {
		return fmt.Errorf("make the Yggdrasil certificate: %w", err)
	}
	opts := []core.SetupOption{core.NodeInfoPrivacy(true)}
	for _, l := range listen {
		opts = append(opts, core.ListenAddress(l))
	}
	for _, p := range peer {
		opts = append(opts, core.Peer{URI: p})
	}
	c, err := core.New(conf.Certificate, logger, opts...)
	if err != nil {
		return fmt.Errorf("start the Yggdrasil core: %w", err)
	}
	defer c.Stop()
	t, err := yggtun.New(ipv6rwc.NewReadWriteCloser(c), logger, yggtun.InterfaceName(*name), yggtun.InterfaceMTU(*mtu))
	if err != nil {
		return fmt.Errorf("start the Yggdrasil interface: %w", err)
	}
	defer t.Stop()
	if *find != "" {
		re, err := regexp.Compile(*find)
		if err != nil {
			return fmt.Errorf("--multicast: %w", err)
		}
		m, err := multicast.New(c, logger, multicast.MulticastInterface{Regex: re, Beacon: true, Listen: true, Password: *password})
		if err != nil {
			return fmt.Errorf("start Yggdrasil's multicast: %w", err)
		}
		defer m.Stop()
	}
	fmt.Fprintln(out, Ready, YggdrasilAddr(seed))
	<-ctx.Done()
	return nil
}

// WireGuardPublic is the hex public key of the WireGuard private key with this seed.
func WireGuardPublic(seed [32]byte) string {
	k, err := ecdh.X25519().NewPrivateKey(seed[:])
	if err != nil {
		panic(err) // any 32 bytes are a key
	}
	return hex.EncodeToString(k.PublicKey().Bytes())
}

func wireguard(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("wireguard", flag.ContinueOnError)
	seedHex := fs.String("seed", "", "32 bytes of hex: the private key")
	name := fs.String("tun", "wg0", "name of the interface")
	mtu := fs.Int("mtu", 1420, "MTU of the interface")
	addr := fs.String("addr", "", "address of the interface, with its prefix length")
	port := fs.Int("port", 51820, "UDP port")
	var peer list
	fs.Var(&peer, "peer", "publickey,host:port,prefix[,prefix…] (repeat)")
	if err := fs.Parse(args); err != nil {
		return err
	}
	seed, err := seedFrom(*seedHex)
	if err != nil {
		return err
	}
	var conf strings.Builder
	fmt.Fprintf(&conf, "private_key=%x\nlisten_port=%d\n", seed, *port)
	for _, p := range peer {
		f := strings.Split(p, ",")
		if len(f) < 3 {
			return fmt.Errorf("--peer %q: want publickey,host:port,prefix", p)
		}
		fmt.Fprintf(&conf, "public_key=%s\nendpoint=%s\n", f[0], f[1])
		for _, prefix := range f[2:] {
			fmt.Fprintf(&conf, "allowed_ip=%s\n", prefix)
		}
	}
	t, err := wgtun.CreateTUN(*name, *mtu)
	if err != nil {
		return fmt.Errorf("create the WireGuard interface: %w", err)
	}
	dev := device.NewDevice(t, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, "wireguard: "))
	defer dev.Close()
	if err := dev.IpcSet(conf.String()); err != nil {
		return fmt.Errorf("configure WireGuard: %w", err)
	}
	if err := dev.Up(); err != nil {
		return fmt.Errorf("bring WireGuard up: %w", err)
	}
	link, err := netlink.LinkByName(*name)
	if err != nil {
		return fmt.Errorf("find %s: %w", *name, err)
	}
	a, err := netlink.ParseAddr(*addr)
	if err != nil {
		return fmt.Errorf("--addr: %w", err)
	}
	if err := netlink.AddrAdd(link, a); err != nil {
		return fmt.Errorf("add %s to %s: %w", *addr, *name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", *name, err)
	}
	fmt.Fprintln(out, Ready, a.IP)
	select {
	case <-ctx.Done():
	case <-dev.Wait():
	}
	return nil
}

func seedFrom(s string) (seed [32]byte, err error) {
	if n, err := hex.Decode(seed[:], []byte(s)); err != nil || n != 32 || len(s) != 64 {
		return seed, errors.New("--seed: want 64 hex digits")
	}
	return seed, nil
}
