//go:build !linux

package link

import (
	"context"
	"errors"
	"net"
	"reflect"
	"syscall"
	"time"
)

// listenBeacons uses Go's multicast listener, which shares the port with other nodes on this host.
func listenBeacons() (*net.UDPConn, error) {
	return net.ListenMulticastUDP("udp6", nil, &net.UDPAddr{IP: beaconGroup.AsSlice(), Port: beaconPort})
}

// joinedAlready tells the error of joining a group twice: the listener joined by itself on the default interface.
func joinedAlready(err error) bool {
	const wsaeinval, wsaeaddrinuse = syscall.Errno(10022), syscall.Errno(10048)
	return errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, wsaeinval) || errors.Is(err, wsaeaddrinuse)
}

// watchEvery is how often interfaces are compared where there is no subscription.
const watchEvery = 2 * time.Second

// Watch polls the list of interfaces.
func (s system) Watch(ctx context.Context, changed func(down []int)) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	last, _ := s.Interfaces()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, err := s.Interfaces()
		if err != nil || reflect.DeepEqual(last, now) {
			continue
		}
		running := map[int]bool{}
		for _, i := range now {
			running[i.Index] = i.Running
		}
		var down []int
		for _, i := range last {
			if i.Running && !running[i.Index] {
				down = append(down, i.Index)
			}
		}
		last = now
		changed(down)
	}
}
