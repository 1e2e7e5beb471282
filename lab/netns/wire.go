//go:build linux && !router

package netns

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Shape is what a link does to the frames that cross it, each direction by itself. The zero Shape is a perfect cable.
type Shape struct {
	Rate      float64 // bit/s; 0: as fast as it goes
	Delay     time.Duration
	Jitter    time.Duration // added to Delay, uniform in [0, Jitter)
	Loss      float64       // 0…1
	Duplicate float64       // 0…1
	Reorder   float64       // 0…1: this share of the frames overtakes what is queued
}

// emulated says whether the shape needs the userspace wire. A kernel with netem would not; the ones Weft is tested on have none.
func (s Shape) emulated() bool {
	return s.Delay > 0 || s.Jitter > 0 || s.Loss > 0 || s.Duplicate > 0 || s.Reorder > 0
}

const (
	queueFrames = 4096                   // frames in flight per direction; more are dropped, as a full queue does
	queueDelay  = 200 * time.Millisecond // longest wait for a slow link's transmitter
	frameSize   = 2048                   // the largest frame: links have an MTU of 1500
)

// wire carries the frames of one link between TAP interfaces, in userspace: two ports are a cable, more are a switch. Every
// port has one goroutine that reads and one that delivers; close ends and waits for all of them.
type wire struct {
	shape Shape
	ports []*port
	done  chan struct{}
	wg    sync.WaitGroup

	mu  sync.Mutex
	rng *rand.Rand
	mac map[[6]byte]*port // where a switch has seen an address
}

type port struct {
	tap *os.File
	out atomic.Bool // the cable is unplugged

	mu    sync.Mutex
	queue frames
	last  time.Time // latest delivery promised
	busy  time.Time // when the transmitter is free
	seq   uint64
	kick  chan struct{}
}

type frame struct {
	due time.Time
	seq uint64
	n   int
	buf *[frameSize]byte
}

// frames is a heap by due time, then by arrival.
type frames []frame

func (f frames) Len() int { return len(f) }
func (f frames) Less(i, j int) bool {
	return f[i].due.Before(f[j].due) || f[i].due.Equal(f[j].due) && f[i].seq < f[j].seq
}
func (f frames) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f *frames) Push(x any)   { *f = append(*f, x.(frame)) }
func (f *frames) Pop() any {
	old := *f
	x := old[len(old)-1]
	*f = old[:len(old)-1]
	return x
}

var framePool = sync.Pool{New: func() any { return new([frameSize]byte) }}

func newWire(shape Shape, seed uint64, taps []*os.File) *wire {
	w := &wire{shape: shape, done: make(chan struct{}), rng: rand.New(rand.NewPCG(seed, 0x77656674)), mac: map[[6]byte]*port{}}
	for _, t := range taps {
		w.ports = append(w.ports, &port{tap: t, kick: make(chan struct{}, 1)})
	}
	for _, p := range w.ports {
		w.wg.Add(2)
		go func() { defer w.wg.Done(); w.read(p) }()
		go func() { defer w.wg.Done(); p.deliver(w.done) }()
	}
	return w
}

func (w *wire) close() {
	close(w.done)
	for _, p := range w.ports {
		p.tap.Close()
	}
	w.wg.Wait()
}

// setShape changes the link while it runs; frames in flight keep the time they were given.
func (w *wire) setShape(s Shape) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shape = s
}

func (w *wire) read(from *port) {
	var in [frameSize]byte
	for {
		n, err := from.tap.Read(in[:])
		if err != nil {
			select {
			case <-w.done:
				return
			default:
			}
			// The interface is down (EIO) or was taken away: nothing to carry until it comes back.
			select {
			case <-w.done:
				return
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		if n < 14 || from.out.Load() {
			continue
		}
		w.carry(from, in[:n])
	}
}

func (w *wire) carry(from *port, b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	dst, src := [6]byte(b[0:6]), [6]byte(b[6:12])
	if len(w.mac) < 1<<14 {
		w.mac[src] = from
	}
	if to, ok := w.mac[dst]; ok {
		if to != from {
			w.sendLocked(to, b)
		}
		return
	}
	for _, p := range w.ports {
		if p != from {
			w.sendLocked(p, b)
		}
	}
}

func (w *wire) sendLocked(to *port, b []byte) {
	s := w.shape
	if s.Loss > 0 && w.rng.Float64() < s.Loss {
		return
	}
	delay := s.Delay
	if s.Jitter > 0 {
		delay += time.Duration(w.rng.Int64N(int64(s.Jitter)))
	}
	overtake := s.Reorder > 0 && w.rng.Float64() < s.Reorder
	copies := 1
	if s.Duplicate > 0 && w.rng.Float64() < s.Duplicate {
		copies = 2
	}
	for range copies {
		to.enqueue(b, s.Rate, delay, overtake)
	}
}

func (p *port) enqueue(b []byte, rate float64, delay time.Duration, overtake bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	sent := now
	if rate > 0 {
		if p.busy.Sub(now) > queueDelay {
			return
		}
		if p.busy.After(now) {
			sent = p.busy
		}
		sent = sent.Add(time.Duration(float64(len(b)*8) / rate * 1e9))
		p.busy = sent
	}
	if len(p.queue) >= queueFrames {
		return
	}
	due := sent.Add(delay)
	if overtake {
		due = sent
	} else {
		// Jitter alone must not reorder: a real queue does not.
		if due.Before(p.last) {
			due = p.last
		}
		p.last = due
	}
	buf := framePool.Get().(*[frameSize]byte)
	p.seq++
	heap.Push(&p.queue, frame{due: due, seq: p.seq, n: copy(buf[:], b), buf: buf})
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

func (p *port) deliver(done chan struct{}) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		p.mu.Lock()
		wait := time.Hour
		var f frame
		if len(p.queue) > 0 {
			// Half a millisecond early beats a whole one late: that is how fine the runtime's timers are.
			if wait = time.Until(p.queue[0].due) - 500*time.Microsecond; wait <= 0 {
				f = heap.Pop(&p.queue).(frame)
			}
		}
		p.mu.Unlock()
		if f.buf != nil {
			if !p.out.Load() {
				p.tap.Write(f.buf[:f.n]) // an interface that is down swallows it, as it should
			}
			framePool.Put(f.buf)
			continue
		}
		timer.Reset(wait)
		select {
		case <-done:
			return
		case <-p.kick:
		case <-timer.C:
		}
	}
}

// carrier plugs the cable in or out at this port.
func (p *port) carrier(on bool) error {
	raw, err := p.tap.SyscallConn()
	if err != nil {
		return fmt.Errorf("reach the TAP descriptor: %w", err)
	}
	v := 0
	if on {
		v = 1
	}
	var ioErr error
	if err := raw.Control(func(fd uintptr) { ioErr = unix.IoctlSetPointerInt(int(fd), unix.TUNSETCARRIER, v) }); err != nil {
		return err
	}
	if ioErr != nil {
		return fmt.Errorf("set carrier: %w", ioErr)
	}
	p.out.Store(!on) // the kernel only tells the node; it would still take frames
	return nil
}

// openTAP makes a TAP interface in the namespace of the calling thread.
func openTAP(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("TAP name %q: %w", name, err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make TAP %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), "tap:"+name), nil
}
