package tun

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// writer gathers packets and hands runs of one flow to the kernel as super-packets, without copying: a run is one writev
// of the first packet and the payloads of the others. Only packets with partial checksums are joined, for theirs is
// vouched for by the session that sealed them; the kernel then needs no checksum over the payload at all.
type writer struct {
	d      *device
	runs   []run
	iovs   []unix.Iovec
	vnet   [vnetLen]byte // of the run being written
	lost   int
	fd     uintptr
	doneFn func(fd uintptr)
	err    error
}

// run is one packet or a run of segments of one flow. Its segments are packets[first:…] linked by the writer's order.
type run struct {
	head    []byte // first packet whole
	l4      int    // transport header offset, 0 when the run can take no more
	hdr     int    // length of all headers
	proto   byte
	seg     int // payload bytes of each segment but the last
	size    int // payload bytes in all
	segs    int
	nextSeq uint32
	partial bool
	tail    [][]byte // payloads of the further segments
}

const maxSegs = 64

func (d *device) NewWriter() Writer {
	w := &writer{d: d}
	w.doneFn = func(fd uintptr) { w.fd = fd; w.writeAll() }
	return w
}

const (
	tcpFIN = 1 << iota
	tcpSYN
	tcpRST
	tcpPSH
	tcpACK
)

// Write joins p to the newest run of its flow when that run goes on exactly where p begins, or starts a run.
func (w *writer) Write(p []byte, partial bool) {
	if len(p) < 20 {
		return
	}
	if partial && w.d.tsoOK {
		if w.join(p) {
			return
		}
	}
	r := w.next()
	r.head, r.partial, r.l4 = p, partial, 0
	if !partial || !w.d.tsoOK {
		return
	}
	l4, ok := Transport(p)
	if !ok || p[0]>>4 == 4 && l4.Offset != 20 {
		return
	}
	switch {
	case l4.Proto == ProtoTCP && len(p) >= l4.Offset+20:
		hdr := l4.Offset + int(p[l4.Offset+12]>>4)*4
		if flags := p[l4.Offset+13]; hdr < l4.Offset+20 || hdr >= len(p) || flags != tcpACK {
			return // only a plain ACK segment with data opens a run
		}
		r.l4, r.hdr, r.proto = l4.Offset, hdr, ProtoTCP
		r.nextSeq = binary.BigEndian.Uint32(p[l4.Offset+4:]) + uint32(len(p)-hdr)
	case l4.Proto == ProtoUDP && w.d.usoOK && len(p) > l4.Offset+8:
		r.l4, r.hdr, r.proto = l4.Offset, l4.Offset+8, ProtoUDP
	default:
		return
	}
	r.seg, r.size, r.segs = len(p)-r.hdr, len(p)-r.hdr, 1
}

// next returns a fresh run, reusing the memory of an old one.
func (w *writer) next() *run {
	if len(w.runs) < cap(w.runs) {
		w.runs = w.runs[:len(w.runs)+1]
	} else {
		w.runs = append(w.runs, run{})
	}
	r := &w.runs[len(w.runs)-1]
	*r = run{tail: r.tail[:0]}
	return r
}

// lookBack is how many runs back join searches: flows that interleave more widely are rare and merely go unjoined.
const lookBack = 8

func (w *writer) join(p []byte) bool {
	for i := len(w.runs) - 1; i >= 0 && i >= len(w.runs)-lookBack; i-- {
		r := &w.runs[i]
		if !sameFlow(r.head, p) {
			continue
		}
		// The newest run of the flow: p joins it or order asks for a new run.
		if r.l4 == 0 || len(p) <= r.hdr || r.segs >= maxSegs || r.hdr+r.size+len(p)-r.hdr > 65535 || !sameHeader(r, p) {
			return false
		}
		pay := p[r.hdr:]
		if len(pay) > r.seg {
			return false
		}
		last := len(pay) < r.seg
		if r.proto == ProtoTCP {
			flags := p[r.l4+13]
			if binary.BigEndian.Uint32(p[r.l4+4:]) != r.nextSeq || flags&^tcpPSH != tcpACK {
				return false
			}
			if flags&tcpPSH != 0 {
				r.head[r.l4+13] |= tcpPSH
				last = true
			}
			r.nextSeq += uint32(len(pay))
		}
		r.tail = append(r.tail, pay)
		r.segs++
		r.size += len(pay)
		if last {
			r.l4 = -r.l4 // closed: still the newest of its flow, but takes no more
		}
		return true
	}
	return false
}

// sameFlow compares addresses, next protocol and ports.
func sameFlow(a, b []byte) bool {
	if len(a) < 44 || len(b) < 44 || a[0]>>4 != b[0]>>4 {
		return len(a) >= 24 && len(b) >= 24 && a[0]>>4 == 4 && b[0]>>4 == 4 && a[9] == b[9] && bytes.Equal(a[12:24], b[12:24])
	}
	if a[0]>>4 == 6 {
		return a[6] == b[6] && bytes.Equal(a[8:44], b[8:44])
	}
	return a[9] == b[9] && bytes.Equal(a[12:24], b[12:24])
}

// sameHeader compares what segments of one super-packet share besides the flow.
func sameHeader(r *run, p []byte) bool {
	h := r.head
	if r.l4 < 0 || len(p) < r.hdr {
		return false
	}
	if h[0]>>4 == 6 {
		if !bytes.Equal(h[0:4], p[0:4]) || h[7] != p[7] { // traffic class, flow label, hop limit
			return false
		}
	} else if h[0] != p[0] || h[1] != p[1] || h[6] != p[6] || h[8] != p[8] {
		return false
	}
	if r.proto == ProtoUDP {
		return true
	}
	t, u := h[r.l4:], p[r.l4:]
	return bytes.Equal(t[8:13], u[8:13]) && bytes.Equal(t[14:16], u[14:16]) && bytes.Equal(t[20:r.hdr-r.l4], u[20:r.hdr-r.l4])
}

// Flush writes all runs in order.
func (w *writer) Flush() error {
	if len(w.runs) == 0 {
		return nil
	}
	w.lost, w.err = 0, nil
	cerr := w.d.conn.Control(w.doneFn)
	for i := range w.runs {
		w.runs[i].head = nil
		clear(w.runs[i].tail)
	}
	w.runs = w.runs[:0]
	if cerr != nil {
		return fmt.Errorf("write TUN: %w", cerr)
	}
	if w.lost > 0 {
		return fmt.Errorf("write TUN: %d packets lost: %w", w.lost, w.err)
	}
	return nil
}

func (w *writer) writeAll() {
	vnet := &w.vnet
	for i := range w.runs {
		r := &w.runs[i]
		l4 := max(r.l4, -r.l4)
		clear(vnet[:])
		if r.segs > 1 {
			seal(r, l4, vnet)
		} else if r.partial {
			if f, ok := Transport(r.head); ok {
				if field, ok := csumField(f.Proto); ok && SetPartial(r.head) {
					vnet[0] = vnetNeedsCsum
					binary.NativeEndian.PutUint16(vnet[6:], uint16(f.Offset))
					binary.NativeEndian.PutUint16(vnet[8:], uint16(field))
				}
			}
		}
		w.iovs = append(w.iovs[:0], iov(vnet[:]), iov(r.head))
		for _, t := range r.tail {
			w.iovs = append(w.iovs, iov(t))
		}
		for {
			_, _, e := unix.Syscall(unix.SYS_WRITEV, w.fd, uintptr(unsafe.Pointer(&w.iovs[0])), uintptr(len(w.iovs)))
			if e == unix.EINTR {
				continue
			}
			if e != 0 {
				w.lost += max(r.segs, 1)
				w.err = e
			}
			break
		}
	}
	clear(w.iovs[:cap(w.iovs)])
}

// seal turns a run's first packet into the header of the super-packet.
func seal(r *run, l4 int, vnet *[vnetLen]byte) {
	p := r.head
	total := r.hdr + r.size
	vnet[0] = vnetNeedsCsum
	if p[0]>>4 == 6 {
		binary.BigEndian.PutUint16(p[4:], uint16(total-40))
		vnet[1] = gsoTCPv6
	} else {
		binary.BigEndian.PutUint16(p[2:], uint16(total))
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], ^Sum(p[:l4], 0))
		vnet[1] = gsoTCPv4
	}
	field := 16
	if r.proto == ProtoUDP {
		vnet[1] = gsoUDPL4
		field = 6
		binary.BigEndian.PutUint16(p[l4+4:], uint16(total-l4))
	}
	binary.BigEndian.PutUint16(p[l4+field:], PseudoSum(p, r.proto, total-l4))
	binary.NativeEndian.PutUint16(vnet[2:], uint16(r.hdr))
	binary.NativeEndian.PutUint16(vnet[4:], uint16(r.seg))
	binary.NativeEndian.PutUint16(vnet[6:], uint16(l4))
	binary.NativeEndian.PutUint16(vnet[8:], uint16(field))
}

func iov(b []byte) (v unix.Iovec) {
	v.Base = &b[0]
	v.SetLen(len(b))
	return v
}
