package tun

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kernel is the other end of a device: a socket pair keeps writes apart as the TUN does.
type kernel struct{ fd int }

func newDevice(t testing.TB) (*device, *kernel) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20)
	}
	d := &device{file: os.NewFile(uintptr(fds[0]), "pair"), mtu: 1420, tsoOK: true, usoOK: true, arena: make([]byte, arenaLen)}
	if d.conn, err = d.file.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	d.readFn = d.drain
	t.Cleanup(func() { d.Close(); unix.Close(fds[1]) })
	return d, &kernel{fds[1]}
}

// take reads all writes and cuts super-packets into the segments that the kernel would make of them, checksums finished.
func (k *kernel) take(t testing.TB) (segments [][]byte, writes int) {
	t.Helper()
	buf := make([]byte, 70000)
	for {
		n, err := unix.Read(k.fd, buf)
		if err == unix.EAGAIN {
			return segments, writes
		}
		if err != nil {
			t.Fatal(err)
		}
		writes++
		p, ok := parseVnet(bytes.Clone(buf[:n]))
		if !ok {
			t.Fatalf("the kernel would refuse %x", buf[:min(n, 80)])
		}
		if p.Partial {
			l4, _ := Transport(p.Data)
			field, _ := csumField(l4.Proto)
			if got, want := binary.BigEndian.Uint16(p.Data[l4.Offset+field:]), PseudoSum(p.Data, l4.Proto, len(p.Data)-l4.Offset); got != want {
				t.Fatalf("pseudo-header sum %#x, want %#x", got, want)
			}
		}
		segments = append(segments, cut(t, p)...)
	}
}

// cut is the naive segmentation.
func cut(t testing.TB, p Packet) (out [][]byte) {
	if p.SegSize == 0 {
		if p.Partial {
			FinishChecksum(p.Data)
		}
		return [][]byte{p.Data}
	}
	l4, _ := Transport(p.Data)
	hdr := l4.Offset + 8
	if l4.Proto == ProtoTCP {
		hdr = l4.Offset + int(p.Data[l4.Offset+12]>>4)*4
	}
	if v6 := p.Data[0]>>4 == 6; v6 && int(binary.BigEndian.Uint16(p.Data[4:])) != len(p.Data)-40 || !v6 && int(binary.BigEndian.Uint16(p.Data[2:])) != len(p.Data) {
		t.Fatal("wrong length in a super-packet")
	}
	body := p.Data[hdr:]
	for at := 0; at < len(body); at += int(p.SegSize) {
		n := min(int(p.SegSize), len(body)-at)
		s := append(bytes.Clone(p.Data[:hdr]), body[at:at+n]...)
		if s[0]>>4 == 6 {
			binary.BigEndian.PutUint16(s[4:], uint16(len(s)-40))
		} else {
			binary.BigEndian.PutUint16(s[2:], uint16(len(s)))
			s[10], s[11] = 0, 0
			binary.BigEndian.PutUint16(s[10:], ^Sum(s[:l4.Offset], 0))
		}
		if l4.Proto == ProtoTCP {
			binary.BigEndian.PutUint32(s[l4.Offset+4:], binary.BigEndian.Uint32(p.Data[l4.Offset+4:])+uint32(at))
			if at+n < len(body) {
				s[l4.Offset+13] &^= tcpPSH
			}
		} else {
			binary.BigEndian.PutUint16(s[l4.Offset+4:], uint16(len(s)-l4.Offset))
		}
		FinishChecksum(s)
		out = append(out, s)
	}
	return out
}

var (
	host = netip.MustParseAddr("201:1::1")
	far  = [3]netip.Addr{netip.MustParseAddr("202:2::2"), netip.MustParseAddr("203:3::3"), netip.MustParseAddr("10.1.2.3")}
)

func packet(proto byte, from netip.Addr, port, size int, seq, ack uint32, flags byte, opts int) []byte {
	hdr := 8
	if proto == ProtoTCP {
		hdr = 20 + opts
	}
	ip := 40
	if from.Is4() {
		ip = 20
	}
	b := make([]byte, ip+hdr+size)
	if from.Is4() {
		b[0], b[8], b[9] = 0x45, 60, proto
		b[6] = 0x40
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		copy(b[12:], from.AsSlice())
		copy(b[16:], []byte{10, 0, 0, 1})
		binary.BigEndian.PutUint16(b[10:], ^Sum(b[:20], 0))
	} else {
		b[0], b[6], b[7] = 0x60, proto, 60
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
		copy(b[8:], from.AsSlice())
		copy(b[24:], host.AsSlice())
	}
	t := b[ip:]
	binary.BigEndian.PutUint16(t, uint16(port))
	binary.BigEndian.PutUint16(t[2:], 80)
	if proto == ProtoTCP {
		binary.BigEndian.PutUint32(t[4:], seq)
		binary.BigEndian.PutUint32(t[8:], ack)
		t[12], t[13] = byte(hdr/4)<<4, flags
		for i := range opts {
			t[20+i] = byte(ack) + byte(i)
		}
	} else {
		binary.BigEndian.PutUint16(t[4:], uint16(8+size))
	}
	for i := range size {
		b[ip+hdr+i] = byte(seq) + byte(i*3)
	}
	return b
}

// Whatever goes in, the same packets come out: all of them, and those of a flow in their order.
func TestWriterChangesNothing(t *testing.T) {
	d, k := newDevice(t)
	w := d.NewWriter()
	rapid.Check(t, func(rt *rapid.T) {
		type flow struct {
			proto byte
			from  netip.Addr
			port  int
			seq   uint32
			size  int
		}
		var flows []flow
		for range rapid.IntRange(1, 4).Draw(rt, "flows") {
			flows = append(flows, flow{rapid.SampledFrom([]byte{ProtoTCP, ProtoTCP, ProtoUDP, ProtoICMPv6}).Draw(rt, "proto"),
				far[rapid.IntRange(0, 2).Draw(rt, "from")], rapid.IntRange(1, 2).Draw(rt, "port"),
				rapid.SampledFrom([]uint32{0, 1000, 1<<32 - 3000}).Draw(rt, "seq"), rapid.SampledFrom([]int{1, 700, 1360}).Draw(rt, "size")})
		}
		want := map[string][][]byte{}
		keyOf := func(p []byte) string {
			l4, _ := Transport(p)
			if p[0]>>4 == 6 {
				return string(p[6]) + string(p[8:44])
			}
			return string(p[9]) + string(p[12:24]) + string(rune(l4.Proto))
		}
		total := 0
		for range rapid.IntRange(1, 150).Draw(rt, "packets") {
			f := &flows[rapid.IntRange(0, len(flows)-1).Draw(rt, "flow")]
			size, flags, ack, opts := f.size, byte(tcpACK), uint32(7), 12
			switch rapid.IntRange(0, 30).Draw(rt, "odd") {
			case 0:
				size = rapid.IntRange(0, f.size).Draw(rt, "short")
			case 1:
				flags |= tcpPSH
			case 2:
				flags = rapid.SampledFrom([]byte{tcpSYN, tcpFIN | tcpACK, tcpRST, tcpACK | 0x20}).Draw(rt, "flags")
			case 3:
				f.seq += 100
			case 4:
				ack = 8
			case 5:
				opts = 0
			}
			partial := f.proto != ProtoICMPv6 && rapid.IntRange(0, 20).Draw(rt, "partial") > 0
			if f.proto == ProtoICMPv6 {
				size = max(size, 8)
			}
			p := packet(f.proto, f.from, f.port, size, f.seq, ack, flags, opts)
			if f.proto == ProtoTCP {
				f.seq += uint32(size)
			}
			if f.proto != ProtoICMPv6 {
				FinishChecksum(p)
			}
			key := keyOf(p)
			want[key] = append(want[key], bytes.Clone(p))
			if partial { // the field holds whatever came over the wire
				l4, _ := Transport(p)
				field, _ := csumField(l4.Proto)
				p[l4.Offset+field] ^= 0x55
			}
			w.Write(p, partial)
			total++
		}
		if err := w.Flush(); err != nil {
			rt.Fatal(err)
		}
		got, _ := k.take(t)
		if len(got) != total {
			rt.Fatalf("%d packets in, %d out", total, len(got))
		}
		for _, p := range got {
			key := keyOf(p)
			if len(want[key]) == 0 || !bytes.Equal(want[key][0], p) {
				rt.Fatalf("out of order or changed: %x\nwant %x", p, want[key])
			}
			want[key] = want[key][1:]
		}
	})
}

func TestWriterJoinsRuns(t *testing.T) {
	d, k := newDevice(t)
	w := d.NewWriter()
	for i := range 40 {
		w.Write(packet(ProtoTCP, far[0], 1, 1360, uint32(i*1360), 1, tcpACK, 12), true)
		w.Write(packet(ProtoUDP, far[1], 1, 1200, 0, 0, 0, 0), true)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if got, writes := k.take(t); len(got) != 80 || writes != 2 {
		t.Errorf("%d packets in %d writes", len(got), writes)
	}
}

func TestWriterAllocatesNothing(t *testing.T) {
	d, k := newDevice(t)
	w := d.NewWriter()
	pkts := make([][]byte, 40)
	for i := range pkts {
		pkts[i] = packet(ProtoTCP, far[0], 1, 1360, uint32(i*1360), 1, tcpACK, 12)
	}
	buf := make([]byte, 70000)
	if n := testing.AllocsPerRun(100, func() {
		for _, p := range pkts {
			w.Write(p, true)
		}
		w.Flush()
		unix.Read(k.fd, buf)
	}); n != 0 {
		t.Errorf("%v allocations for 40 packets", n)
	}
}

func TestReadTakesWhatIsThere(t *testing.T) {
	d, k := newDevice(t)
	for i := range 10 {
		p := packet(ProtoUDP, far[0], 1, 100+i, 0, 0, 0, 0)
		unix.Write(k.fd, append(make([]byte, vnetLen), p...))
	}
	unix.Write(k.fd, []byte{1, 2, 3}) // too short: skipped
	pkts := make([]Packet, 64)
	n, err := d.Read(pkts)
	if err != nil || n != 10 || len(pkts[9].Data) != 48+109 {
		t.Fatalf("%d packets, %v", n, err)
	}
}

func FuzzVnet(f *testing.F) {
	f.Add(append([]byte{1, gsoTCPv6, 60, 0, 0x50, 5, 40, 0, 16, 0}, packet(ProtoTCP, far[0], 1, 3000, 1, 1, tcpACK, 0)...))
	f.Add(append([]byte{1, 0, 0, 0, 0, 0, 40, 0, 2, 0}, packet(ProtoICMPv6, far[0], 1, 30, 1, 1, 0, 0)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := parseVnet(b)
		if ok && p.Partial {
			FinishChecksum(p.Data)
		}
	})
}

func FuzzWriter(f *testing.F) {
	d, k := newDevice(f)
	w := d.NewWriter()
	f.Add(packet(ProtoTCP, far[0], 1, 100, 1, 1, tcpACK, 0), packet(ProtoTCP, far[0], 1, 100, 101, 1, tcpACK, 0), true)
	f.Fuzz(func(t *testing.T, a, b []byte, partial bool) {
		if len(a) > 9000 || len(b) > 9000 {
			return
		}
		w.Write(bytes.Clone(a), partial)
		w.Write(bytes.Clone(b), partial)
		w.Write(bytes.Clone(b), partial)
		w.Flush()
		buf := make([]byte, 70000)
		for {
			if _, err := unix.Read(k.fd, buf); err != nil {
				return
			}
		}
	})
}
