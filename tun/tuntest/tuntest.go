// Package tuntest is the in-memory twin of the OS TUN: what a test injects the mesh reads, what the mesh writes the test
// takes. It has no goroutine.
package tuntest

import (
	"bytes"
	"net"
	"sync"

	"weft/tun"
)

// Device is a tun.Device in memory. All methods are safe for concurrent use.
type Device struct {
	mtu    int
	in     chan tun.Packet
	out    chan []byte
	closed chan struct{}
	once   sync.Once
}

// New returns a device whose queues hold depth packets each way.
func New(mtu, depth int) *Device {
	return &Device{mtu: mtu, in: make(chan tun.Packet, depth), out: make(chan []byte, depth), closed: make(chan struct{})}
}

// Inject is the host sending p. It blocks while the queue is full.
func (d *Device) Inject(p tun.Packet) {
	p.Data = bytes.Clone(p.Data)
	select {
	case d.in <- p:
	case <-d.closed:
	}
}

// Out yields what the mesh wrote, checksums finished.
func (d *Device) Out() <-chan []byte { return d.out }

func (d *Device) Name() string { return "memory" }
func (d *Device) MTU() int     { return d.mtu }

// Read implements tun.Device.
func (d *Device) Read(pkts []tun.Packet) (int, error) {
	select {
	case p := <-d.in:
		pkts[0] = p
	case <-d.closed:
		return 0, net.ErrClosed
	}
	for n := 1; n < len(pkts); n++ {
		select {
		case pkts[n] = <-d.in:
		default:
			return n, nil
		}
	}
	return len(pkts), nil
}

// Close implements tun.Device.
func (d *Device) Close() error { d.once.Do(func() { close(d.closed) }); return nil }

// NewWriter implements tun.Device.
func (d *Device) NewWriter() tun.Writer { return &writer{d: d} }

type writer struct {
	d       *Device
	pending [][]byte
}

func (w *writer) Write(p []byte, partial bool) {
	p = bytes.Clone(p)
	if partial {
		tun.FinishChecksum(p)
	}
	w.pending = append(w.pending, p)
}

func (w *writer) Flush() error {
	for _, p := range w.pending {
		select {
		case w.d.out <- p:
		case <-w.d.closed:
			return net.ErrClosed
		}
	}
	w.pending = w.pending[:0]
	return nil
}
