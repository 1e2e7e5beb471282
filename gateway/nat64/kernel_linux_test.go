package nat64

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestKernel sends translated packets to a real IPv4 stack, behind a TUN device in a network namespace of its own. The kernel
// answers only what it has found right; its answers come back through To6 and are checked. The namespace has no name
// and ends with the test's thread.
func TestKernel(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, for a network namespace and a TUN device")
	}
	done, skip := make(chan struct{}), ""
	go func() { // a thread that is never unlocked ends with its goroutine, and takes the namespace along
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			skip = "no network namespace here: " + err.Error()
			return
		}
		tun, err := openTUN("dnsr0")
		if err != nil {
			skip = "no TUN device here: " + err.Error()
			return
		}
		defer tun.Close()
		for _, args := range [][]string{{"addr", "add", "8.8.4.4/32", "dev", "dnsr0"}, {"link", "set", "dnsr0", "mtu", "1400", "up"},
			{"link", "set", "lo", "up"}, {"route", "add", "100.64.0.0/10", "dev", "dnsr0"}} {
			if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
				t.Errorf("ip %v: %v, %s", args, err, out)
				return
			}
		}
		talk(t, tun)
	}()
	<-done
	if skip != "" {
		t.Skip("SKIPPED: " + skip)
	}
}

func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "tun"), nil
}

func talk(t *testing.T, tun *os.File) {
	x := prefix(t, "64:ff9b::/96")
	srv, _ := x.Embed(server4)
	send := func(p []byte) {
		t.Helper()
		four, err := x.To4(nil, p, client4)
		if err != nil {
			t.Errorf("To4: %v", err)
			return
		}
		if _, err := tun.Write(four); err != nil {
			t.Errorf("write: %v", err)
		}
	}
	// answer returns the kernel's next IPv4 packet as IPv6.
	answer := func(what string) []byte {
		t.Helper()
		tun.SetReadDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 65536)
		for {
			n, err := tun.Read(buf)
			if err != nil {
				t.Errorf("%s: no answer: %v", what, err)
				return nil
			}
			if buf[0]>>4 != 4 || netip.AddrFrom4([4]byte(buf[16:])) != client4 {
				continue // the kernel's own chatter
			}
			six, err := x.To6(nil, buf[:n], client6)
			if err != nil {
				t.Errorf("%s: To6: %v, %x", what, err, buf[:n])
				return nil
			}
			if !bytes.Equal(six[8:40], append(srv.AsSlice(), client6.AsSlice()...)) {
				t.Errorf("%s: the answer's ends are %x", what, six[8:40])
			}
			return six
		}
	}

	data := bytes.Repeat([]byte("weft"), 100)
	send(ip6(client6, srv, 58, 0, 64, seal(client6, srv, 58, append([]byte{128, 0, 0, 0, 0, 7, 0, 1}, data...))))
	if p := answer("ping"); p != nil {
		check(t, p)
		if p[40] != 129 || !bytes.Equal(p[48:], data) {
			t.Errorf("ping: %x", p)
		}
	}

	syn := append([]byte{0x9c, 0x40, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0, 0x50, 0x02, 1, 0, 0, 0, 0, 0}, nil...)
	send(ip6(client6, srv, 6, 0, 64, seal(client6, srv, 6, syn)))
	if p := answer("SYN"); p != nil {
		check(t, p)
		if p[6] != 6 || p[53] != 0x14 || binary.BigEndian.Uint32(p[48:]) != 0x01020305 {
			t.Errorf("SYN to a closed port: %x; want RST and ACK", p)
		}
	}

	probe := ip6(client6, srv, 17, 0, 64, seal(client6, srv, 17, udpDatagram(data)))
	send(probe)
	if p := answer("UDP"); p != nil {
		check(t, p)
		if p[6] != 58 || p[40] != 1 || p[41] != 4 {
			t.Errorf("UDP to a closed port: %x; want port unreachable", p)
		}
		// Inside is what was sent, as its sender knows it, but for the hop limit.
		in := bytes.Clone(p[48:])
		in[7] = probe[7]
		if !bytes.Equal(in, probe[:len(in)]) {
			t.Errorf("inside is %x, sent was %x", in, probe)
		}
	}

	// Fragments: the kernel puts ours together, checks the sum over all, and answers in fragments of its own.
	whole := ip6(client6, srv, 17, 0, 64, seal(client6, srv, 17, udpDatagram(bytes.Repeat(data, 8))))
	if err := Fragment(whole, 1280, 77, make([]byte, 1280), func(f []byte) error { send(f); return nil }); err != nil {
		t.Error(err)
	}
	if p := answer("fragments"); p != nil {
		check(t, p)
		if p[6] != 58 || p[40] != 1 || p[41] != 4 {
			t.Errorf("fragmented UDP to a closed port: %x; want port unreachable", p)
		}
	}

	// A wrong checksum stays wrong: the kernel is silent, and answers what comes after it.
	bad := ip6(client6, srv, 17, 0, 64, seal(client6, srv, 17, udpDatagram(data)))
	bad[46] ^= 1
	send(bad)
	send(ip6(client6, srv, 58, 0, 64, seal(client6, srv, 58, []byte{128, 0, 0, 0, 0, 7, 0, 2})))
	if p := answer("ping after a wrong checksum"); p != nil && p[40] != 129 {
		t.Errorf("a wrong checksum was made right: %x", p)
	}
}
