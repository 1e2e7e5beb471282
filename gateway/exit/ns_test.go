//go:build !router && linux

package exit

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// The tests run against real sockets, in a network of their own, where the internet is the loopback interface with more
// addresses. The test program starts itself there once for each test; the network goes with the process.

const inside = "WEFT_GEX_INSIDE"

var (
	site4   = netip.MustParseAddr("192.0.2.80")
	site6   = netip.MustParseAddr("2001:db8:2::80")
	dead4   = netip.MustParseAddr("198.51.100.1") // routed into the void, with an error
	dead6   = netip.MustParseAddr("2001:db8:dead::1")
	absent4 = netip.MustParseAddr("203.0.113.1") // no route
	absent6 = netip.MustParseAddr("2001:db8:aaaa::1")
)

// internet runs the rest of the test in a network of its own: it returns false to the test that is not there yet, and has
// done its work.
func internet(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) == "" {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(self, "-test.run=^"+t.Name()+"$", "-test.count=1", "-test.timeout=60s")
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		if os.Getuid() != 0 {
			cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{Size: 1, HostID: os.Getuid()}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{Size: 1, HostID: os.Getgid()}}
		}
		out, err := cmd.CombinedOutput()
		if _, exited := err.(*exec.ExitError); err != nil && !exited {
			t.Skipf("SKIPPED: no network of its own for this test: %v (run as root)", err)
		}
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		} else if testing.Verbose() {
			t.Logf("%s", out)
		}
		return false
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{site4, site6} {
		addr, err := netlink.ParseAddr(netip.PrefixFrom(a, a.BitLen()).String())
		if err != nil {
			t.Fatal(err)
		}
		addr.Flags = 0x02 // IFA_F_NODAD
		if err := netlink.AddrAdd(lo, addr); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range []netip.Addr{site4, site6} { // the kernel takes its time with routes to IPv6 addresses
		for quiet := 0; quiet < 20; quiet++ { // and may take one back once more
			eventually(t, "a route to "+a.String(), func() bool {
				_, err := net.Dial("tcp", netip.AddrPortFrom(a, 9).String())
				if !errors.Is(err, syscall.ECONNREFUSED) {
					quiet = 0
				}
				return errors.Is(err, syscall.ECONNREFUSED)
			})
			time.Sleep(time.Millisecond)
		}
	}
	for _, a := range []netip.Addr{dead4, dead6} {
		dst, err := netlink.ParseIPNet(netip.PrefixFrom(a, a.BitLen()).String())
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Type: syscall.RTN_UNREACHABLE}); err != nil {
			t.Fatal(err)
		}
	}
	return true
}

// groups says who may have ping sockets in this network.
func groups(t *testing.T, s string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte(s), 0); err != nil {
		t.Skipf("SKIPPED: cannot set net.ipv4.ping_group_range: %v", err)
	}
}
