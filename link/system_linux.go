package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func listenBeacons() (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) {
			err = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
				// Only groups joined by this very socket, not those of other programs.
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_ALL, 0),
			)
		}); e != nil {
			return e
		}
		return err
	}}
	pc, err := lc.ListenPacket(context.Background(), "udp6", fmt.Sprintf("[::]:%d", beaconPort))
	if err != nil {
		return nil, err
	}
	return pc.(*net.UDPConn), nil
}

// joinedAlready tells the error of joining a group twice: never done here.
func joinedAlready(error) bool { return false }

// Watch subscribes to the kernel's link and address messages (rtnetlink), so that a pulled cable is noticed at once.
func (system) Watch(ctx context.Context, changed func(down []int)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("watch interfaces: %w", err)
	}
	groups := uint32(unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return fmt.Errorf("watch interfaces: %w", err)
	}
	f := os.NewFile(uintptr(fd), "rtnetlink") // non-blocking: the runtime's poller waits
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer func() {
		if stop() {
			f.Close()
		}
	}()
	changed(nil) // what happened between the first listing and the subscription
	buf := make([]byte, 1<<16)
	for {
		n, err := f.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // messages were lost: look for ourselves
			changed(nil)
			continue
		case err != nil:
			return fmt.Errorf("watch interfaces: %w", err)
		}
		if down, any := parseLinkMessages(buf[:n]); any {
			changed(down)
		}
	}
}

// parseLinkMessages reads rtnetlink messages: whether any matters, and which interfaces lost their carrier or are gone.
func parseLinkMessages(b []byte) (down []int, any bool) {
	msgs, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return nil, true
	}
	for _, m := range msgs {
		switch m.Header.Type {
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			any = true
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE: // only the way to everywhere: a router may have a million others
			any = any || len(m.Data) >= unix.SizeofRtMsg && (*unix.RtMsg)(unsafe.Pointer(&m.Data[0])).Dst_len == 0
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			any = true
			if len(m.Data) < unix.SizeofIfInfomsg {
				continue
			}
			info := *(*unix.IfInfomsg)(unsafe.Pointer(&m.Data[0]))
			if m.Header.Type == unix.RTM_DELLINK || info.Flags&unix.IFF_UP == 0 || info.Flags&unix.IFF_RUNNING == 0 {
				down = append(down, int(info.Index))
			}
		}
	}
	return down, any
}
