package node

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"weft/gateway"
	"weft/gateway/exit"
	"weft/ident"
	"weft/tun"
)

// outsideStack is a userspace stack that can have addresses of a lease.
type outsideStack interface {
	stackDevice
	SetOutside(v4, v6 netip.Addr) error
}

// splitDevice is the device of a node without root: the userspace stack, and beside it, while the node shares its line, the
// exit. Packets for this node's own addresses go to the stack, those that clients send outside to the exit. What the exit
// gives comes by another way (exitWay), since a device has one reader.
type splitDevice struct {
	outsideStack
	exit atomic.Pointer[tun.Device]

	mu   sync.Mutex // guards what follows
	gate ident.PublicKey
	own  atomic.Pointer[[2]netip.Addr] // of the lease
}

func newSplitDevice(s outsideStack) *splitDevice {
	d := &splitDevice{outsideStack: s}
	d.own.Store(&[2]netip.Addr{})
	return d
}

// setOutside gives the stack the lease's addresses. Connections by another gateway end, even if the addresses stay.
func (d *splitDevice) setOutside(gate ident.PublicKey, four, six netip.Addr) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if gate != d.gate && !d.gate.IsZero() {
		if err := d.SetOutside(netip.Addr{}, netip.Addr{}); err != nil {
			return err
		}
	}
	d.gate = gate
	d.own.Store(&[2]netip.Addr{four, six})
	return d.SetOutside(four, six)
}

func (d *splitDevice) setExit(e tun.Device) {
	if e == nil {
		d.exit.Store(nil)
		return
	}
	d.exit.Store(&e)
}

// NewWriter implements tun.Device.
func (d *splitDevice) NewWriter() tun.Writer {
	return &splitWriter{d: d, stack: d.outsideStack.NewWriter()}
}

type splitWriter struct {
	d     *splitDevice
	stack tun.Writer
	of    *tun.Device // whose writer exit is
	exit  tun.Writer
}

// Write implements tun.Writer.
func (w *splitWriter) Write(p []byte, partial bool) {
	if e := w.d.exit.Load(); e != nil && w.d.leaves(p) {
		if e != w.of {
			w.of, w.exit = e, (*e).NewWriter()
		}
		w.exit.Write(p, partial)
		return
	}
	w.stack.Write(p, partial)
}

// Flush implements tun.Writer.
func (w *splitWriter) Flush() error {
	var err error
	if w.exit != nil {
		err = w.exit.Flush()
	}
	return errors.Join(w.stack.Flush(), err)
}

// leaves reports whether a packet is for the outside: neither for the mesh nor for an address of this node's lease.
func (d *splitDevice) leaves(p []byte) bool {
	var dst netip.Addr
	switch {
	case len(p) >= 40 && p[0]>>4 == 6:
		dst = netip.AddrFrom16([16]byte(p[24:40]))
		if ident.MeshPrefix.Contains(dst) {
			return false
		}
	case len(p) >= 20 && p[0]>>4 == 4:
		dst = netip.AddrFrom4([4]byte(p[16:20]))
	default:
		return false
	}
	own := d.own.Load()
	return dst != own[0] && dst != own[1]
}

// exitWay carries what the outside answers from the exit to the clients.
type exitWay struct {
	dev  *exit.Exit
	done chan struct{}
}

func (s *sharing) openExit() (*exitWay, error) {
	e, err := exit.Open(exit.Config{MTU: int(s.mtu()), Log: s.n.log.With("room", "exit"),
		Allow: func(_ netip.Addr, proto byte, dst netip.AddrPort) bool { return s.permit(proto, dst) },
	})
	if err != nil {
		return nil, err
	}
	w := &exitWay{dev: e, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		pkts := make([]tun.Packet, 64)
		for {
			n, err := e.Read(pkts)
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					s.n.log.Error("the exit has ended", "err", err)
				}
				return
			}
			for i := range n {
				// What cannot be carried is lost like any packet.
				if peer, ok := s.gw.FromHost(&pkts[i]); ok {
					_ = s.n.sessions.SendOutside(peer, pkts[i])
				}
			}
		}
	}()
	return w, nil
}

func (w *exitWay) close() {
	w.dev.Close()
	<-w.done
}

// permit is the exit's second look at where clients go, after all translation.
func (s *sharing) permit(proto byte, dst netip.AddrPort) bool {
	p := s.policy.Load()
	if p == nil {
		return false
	}
	_, ok := p.Permit(proto, dst)
	return ok
}

// setPolicy follows a change of this host's addresses.
func (s *sharing) setPolicy(local []netip.Prefix) {
	p, err := gateway.NewPolicy(s.rules, local, netip.Prefix{})
	if err != nil {
		s.n.log.Warn("where clients may go", "err", err)
		p = nil
	}
	s.policy.Store(p)
}
