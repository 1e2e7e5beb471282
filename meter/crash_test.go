package meter

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"syscall"
	"weft/ident"
)

// fixture is a meter without Serve, whose counters a test moves and whose clock it tells.
type fixture struct {
	m        *Meter
	sessions []SessionReading
	links    []LinkReading
}

func open(dir string) (*fixture, error) {
	f := &fixture{}
	m, err := New(Config{
		Dir: dir, Log: quiet(),
		Sessions: func() []SessionReading { return f.sessions },
		Session: func(p ident.PublicKey) (SessionReading, bool) {
			for _, s := range f.sessions {
				if s.Peer == p {
					return s, true
				}
			}
			return SessionReading{}, false
		},
		Links:    func() []LinkReading { return f.links },
		Send:     func(ident.PublicKey, []byte) error { return nil },
		NextHop:  func(ident.NodeID) (ident.NodeID, bool) { return 0, false },
		Penalise: func(ident.NodeID, int) {},
	})
	f.m = m
	return f, err
}

func mustOpen(t *testing.T, dir string) *fixture {
	t.Helper()
	f, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.m.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// carry adds n packets to everything that is counted: twelve sessions, two kinds, two links.
func (f *fixture) carry(epoch, n uint64) {
	if len(f.sessions) == 0 {
		for i := range byte(12) {
			f.sessions = append(f.sessions, SessionReading{Peer: ident.PublicKey{1 + i}, Epoch: epoch})
		}
		for i := range ident.NodeID(2) {
			f.links = append(f.links, LinkReading{Neighbour: 1 + i, Epoch: epoch, Recv: []Flow{{Dest: 9, Class: 2}}})
		}
	}
	c := Count{n, n * 100}
	for i := range f.sessions {
		s := &f.sessions[i]
		s.OutsideSent, s.OutsideRecv, s.MeshSent, s.MeshRecv = s.OutsideSent.plus(c), s.OutsideRecv.plus(c), s.MeshSent.plus(c), s.MeshRecv.plus(c)
	}
	for i := range f.links {
		l := &f.links[i].Recv[0]
		l.Packets, l.Bytes = l.Packets+n, l.Bytes+n*100
	}
}

// packets returns the one number that all totals are, or an error when they are of different moments.
func (f *fixture) packets() (uint64, error) {
	var n uint64
	first := true
	same := func(c Count) error {
		if first {
			n, first = c.Packets, false
		}
		if c != (Count{n, n * 100}) {
			return fmt.Errorf("a total of %v beside others of %d", c, n)
		}
		return nil
	}
	var errs []error
	for _, p := range f.m.peers {
		for k := range p.led {
			errs = append(errs, same(p.led[k].sentTotal), same(p.led[k].recvTotal))
		}
	}
	for _, l := range f.m.links {
		errs = append(errs, same(l.recvTotal))
	}
	for _, u := range f.m.today {
		errs = append(errs, same(u.OutsideSent), same(u.MeshRecv))
	}
	return n, errors.Join(errs...)
}

// TestCrashAtEveryWrite takes bbolt's writes apart. Each commit turns one file into the next; a crash may leave any prefix of its pages,
// in any order before the meta page, or half a page. Whatever is left must open, and hold the one or the other state whole.
func TestCrashAtEveryWrite(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	dir, now := t.TempDir(), time.Date(2027, 5, 5, 12, 0, 0, 0, time.UTC)
	f := mustOpen(t, dir)
	read := func() []byte {
		b, err := os.ReadFile(filepath.Join(dir, FileName))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	page := os.Getpagesize()
	tried := 0
	try := func(what string, image []byte, old, fresh uint64, mustNew bool) {
		t.Helper()
		tried++
		d := t.TempDir()
		if err := os.WriteFile(filepath.Join(d, FileName), image, 0o600); err != nil {
			t.Fatal(err)
		}
		g, err := open(d)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer g.m.Close()
		g.m.day = dayOf(now)
		if g.m.today, g.m.month, err = g.m.store.loadDay(g.m.day); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		got, err := g.packets()
		if err != nil || g.m.aside != nil {
			t.Fatalf("%s: %v, %v", what, err, g.m.aside)
		}
		if got != fresh && (mustNew || got != old) {
			t.Fatalf("%s: %d packets, want %d or %d", what, got, old, fresh)
		}
		// And it goes on from there.
		g.carry(99, 5)
		if _, err := g.m.Commit(now); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if after, err := g.packets(); err != nil || after != got+5 {
			t.Fatalf("%s: %d after %d and 5 more, %v", what, after, got, err)
		}
	}
	total := uint64(0)
	f.carry(1, 1)
	total++
	f.m.day = dayOf(now)
	if _, err := f.m.Commit(now); err != nil {
		t.Fatal(err)
	}
	for range 12 {
		before := read()
		old := total
		total += 3
		f.carry(1, 3)
		if _, err := f.m.Commit(now); err != nil {
			t.Fatal(err)
		}
		after := read()
		image := make([]byte, len(after))
		copy(image, before)
		var data, meta []int
		for at := 0; at < len(after); at += page {
			if !bytes.Equal(image[at:at+page], after[at:at+page]) {
				if at < 2*page {
					meta = append(meta, at)
				} else {
					data = append(data, at)
				}
			}
		}
		if len(meta) != 1 || len(data) < 4 {
			t.Fatalf("a commit writes meta pages %v and data pages %v", meta, data)
		}
		rng.Shuffle(len(data), func(i, j int) { data[i], data[j] = data[j], data[i] })
		try("nothing written", bytes.Clone(before), old, old, true)
		for i, at := range data {
			copy(image[at:at+page/2], after[at:at+page/2])
			try(fmt.Sprintf("half of data page %d", i), bytes.Clone(image), old, old, true)
			copy(image[at:at+page], after[at:at+page])
			try(fmt.Sprintf("%d data pages", i+1), bytes.Clone(image), old, old, true)
		}
		for _, cut := range []int{17, 40, 64, 72} { // the meta page has 80 bytes of content
			torn := bytes.Clone(image)
			copy(torn[meta[0]:meta[0]+cut], after[meta[0]:meta[0]+cut])
			try(fmt.Sprintf("meta page torn at %d", cut), torn, old, total, false)
		}
		try("all written", bytes.Clone(after), total, total, true)
	}
	t.Logf("%d crashes", tried)
}

// crashHelper is the process that TestKill kills: it counts and commits as fast as it can, and prints each total that is durable.
func crashHelper() bool {
	dir := os.Getenv("MTR_CRASH_DIR")
	if dir == "" {
		return false
	}
	f, err := open(dir)
	if err != nil {
		fmt.Println("error", err)
		return true
	}
	base, err := f.packets()
	if err != nil {
		fmt.Println("error", err)
		return true
	}
	fmt.Println("start", base)
	epoch := rand.Uint64()
	for {
		f.carry(epoch, 1+rand.Uint64N(4))
		fmt.Println("counted", base+f.sessions[0].MeshRecv.Packets)
		if _, err := f.m.Commit(time.Now()); err != nil {
			fmt.Println("error", err)
			return true
		}
		n, _ := f.packets()
		fmt.Println("durable", n)
	}
}

// TestKill kills a process at random again and again. What it had called durable is there, and nothing that it had not counted.
func TestKill(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, rng := t.TempDir(), rand.New(rand.NewPCG(3, 3))
	var durable, counted uint64
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	for range rounds {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), "MTR_CRASH_DIR="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); errors.Is(err, syscall.ENOEXEC) {
			t.Skip("SKIPPED: under emulation a test cannot start itself")
		} else if err != nil {
			t.Fatal(err)
		}
		// A few lines, and then at some moment of the next commit.
		lines, spin := 2+rng.IntN(20), rng.IntN(300_000)
		in := bufio.NewScanner(out)
		take := func() {
			what, n, _ := strings.Cut(in.Text(), " ")
			var v uint64
			if _, err := fmt.Sscan(n, &v); err != nil || what == "error" {
				t.Fatalf("the helper says %q", in.Text())
			}
			switch what {
			case "start":
				if v < durable || v > counted {
					t.Fatalf("starts with %d; %d were durable and %d counted", v, durable, counted)
				}
				durable, counted = v, v
			case "counted":
				counted = v
			case "durable":
				durable = v
			}
		}
		for range lines {
			if !in.Scan() {
				t.Fatal("the helper has ended")
			}
			take()
		}
		var x atomic.Uint64
		for range spin {
			x.Add(1)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for in.Scan() { // what it had said before it died
			take()
		}
		io.Copy(io.Discard, out)
		_ = cmd.Wait() // killed
	}
	t.Logf("%d packets in %d lives", durable, rounds)
}

// TestDamaged spoils the file in many ways. The node starts, keeps the old file for a person to look at, and counts anew; or what
// was spoilt did not matter.
func TestDamaged(t *testing.T) {
	now := time.Now()
	dir := t.TempDir()
	f := mustOpen(t, dir)
	for range 5 {
		f.carry(1, 2)
		if _, err := f.m.Commit(now); err != nil {
			t.Fatal(err)
		}
	}
	good, err := os.ReadFile(filepath.Join(dir, FileName))
	if err != nil {
		t.Fatal(err)
	}
	ways := map[string]func([]byte) []byte{
		"text":        func([]byte) []byte { return []byte("hello\n") },
		"zeros":       func(b []byte) []byte { clear(b); return b },
		"half":        func(b []byte) []byte { return b[:len(b)/2] },
		"two pages":   func(b []byte) []byte { return b[:2*os.Getpagesize()] },
		"short":       func(b []byte) []byte { return b[:5000] },
		"no metas":    func(b []byte) []byte { clear(b[:2*os.Getpagesize()]); return b },
		"no data":     func(b []byte) []byte { clear(b[2*os.Getpagesize():]); return b },
		"all ones":    func(b []byte) []byte { return bytes.Repeat([]byte{0xff}, len(b)) },
		"a value bit": func(b []byte) []byte { spoilValues(b); return b },
	}
	rng := rand.New(rand.NewPCG(5, 5))
	for i := range 150 {
		ways[fmt.Sprintf("random %d", i)] = func(b []byte) []byte {
			at := rng.IntN(len(b))
			for j := range 1 + rng.IntN(64) {
				b[(at+j)%len(b)] ^= byte(1 + rng.IntN(255))
			}
			return b
		}
	}
	moved := 0
	for what, spoil := range ways {
		d := t.TempDir()
		if err := os.WriteFile(filepath.Join(d, FileName), spoil(bytes.Clone(good)), 0o600); err != nil {
			t.Fatal(err)
		}
		g, err := open(d)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		left, _ := filepath.Glob(filepath.Join(d, FileName+".damaged-*"))
		n, err := g.packets()
		switch {
		case err != nil:
			t.Errorf("%s: %v", what, err)
		case g.m.aside == nil && (n != 10 && n != 8 || len(left) != 0): // a spoilt meta page costs the last commit
			t.Errorf("%s: %d packets, and no word; left %v", what, n, left)
		case g.m.aside != nil && (n != 0 || len(left) != 1 || g.m.View().Damaged == ""):
			t.Errorf("%s: %d packets, left %v", what, n, left)
		}
		if g.m.aside != nil {
			moved++
		}
		before := n
		g.carry(2, 3)
		if _, err := g.m.Commit(now); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if n, err := g.packets(); err != nil || n != before+3 && n != 3 {
			t.Errorf("%s: then %d packets, %v", what, n, err)
		}
		g.m.Close()
	}
	if moved < 9 {
		t.Errorf("only %d files of %d were moved aside", moved, len(ways))
	}
	t.Logf("%d of %d were moved aside", moved, len(ways))
}

// spoilValues flips a bit in what looks like a count of ours: bbolt itself would never notice.
func spoilValues(b []byte) {
	want := []byte{0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 1000 >> 8, 1000 & 0xff}
	for i := 0; i+len(want) <= len(b); i++ {
		if bytes.Equal(b[i:i+len(want)], want) {
			b[i+7] ^= 0x40
		}
	}
}

// TestDamagedWhileRunning: the file is spoilt under a running meter. It keeps its totals and writes them to a new file.
func TestDamagedWhileRunning(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	f := mustOpen(t, dir)
	f.carry(1, 4)
	if _, err := f.m.Commit(now); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, FileName), int64(2*os.Getpagesize())); err != nil {
		t.Fatal(err)
	}
	f.carry(1, 4)
	total, err := f.m.Commit(now)
	if err != nil {
		t.Fatal(err)
	}
	if got := total.Find(ident.PublicKey{1}).Mesh.Sent.Packets; got != 8 || f.m.aside == nil {
		t.Errorf("%d packets, aside %v", got, f.m.aside)
	}
	if err := f.m.Close(); err != nil {
		t.Fatal(err)
	}
	g := mustOpen(t, dir)
	if n, err := g.packets(); err != nil || n != 8 {
		t.Errorf("%d packets in the new file, %v", n, err)
	}
}

// TestRefusesToStart: what the owner must mend is an error that says so, and no file is moved for it.
func TestRefusesToStart(t *testing.T) {
	dir := t.TempDir()
	f := mustOpen(t, dir)
	if _, err := open(dir); err == nil || !strings.Contains(err.Error(), "another node") {
		t.Errorf("two nodes in one directory: %v", err)
	}
	if err := f.m.store.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyVersion, []byte{fileVersion + 1}) }); err != nil {
		t.Fatal(err)
	}
	if err := f.m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := open(dir); err == nil || !strings.Contains(err.Error(), "newer weft") {
		t.Errorf("a newer file: %v", err)
	}
	if _, err := open(filepath.Join(dir, "nowhere")); err == nil {
		t.Error("a directory that is not there")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 1 {
		t.Errorf("files %v", left)
	}
}

// TestDiskFails: while nothing can be written the meter goes on counting, says so, and catches up.
func TestDiskFails(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	f := mustOpen(t, dir)
	f.carry(1, 4)
	f.m.save(now, false)
	db := f.m.store.db
	f.m.store.db = nil
	f.carry(1, 4)
	if _, err := f.m.Commit(now); err == nil {
		t.Fatal("durable without a file")
	}
	f.m.save(now, true)
	if v := f.m.View(); v.StoreError == "" {
		t.Error("nobody is told")
	}
	f.m.store.db = db
	f.carry(1, 4)
	if !f.m.save(now, false) {
		t.Error("it does not catch up")
	}
	if v := f.m.View(); v.StoreError != "" {
		t.Errorf("still: %s", v.StoreError)
	}
	if err := f.m.Close(); err != nil {
		t.Fatal(err)
	}
	g := mustOpen(t, dir)
	for _, p := range g.m.peers {
		if p.led[0].sentTotal.Packets != 12 {
			t.Errorf("%d packets", p.led[0].sentTotal.Packets)
		}
	}
}

// TestWear measures what an hour of traffic writes to flash.
func TestWear(t *testing.T) {
	for _, c := range []struct {
		peers int
		most  uint64
	}{{3, 24 << 20}, {50, 48 << 20}} {
		dir, now := t.TempDir(), time.Now()
		f := mustOpen(t, dir)
		f.m.store.db.NoSync = true // the bytes are the same
		for i := range c.peers {
			f.sessions = append(f.sessions, SessionReading{Peer: ident.PublicKey{byte(i + 1), 7}, Epoch: 3})
		}
		f.links = []LinkReading{{Neighbour: 1, Recv: []Flow{{Class: 2}}}}
		for range 360 {
			f.carry(3, 10)
			if _, err := f.m.Commit(now); err != nil {
				t.Fatal(err)
			}
		}
		w := f.m.View().Written
		info, err := os.Stat(filepath.Join(dir, FileName))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d busy peers: %.1f MiB an hour, a file of %d KiB", c.peers, float64(w)/(1<<20), info.Size()>>10)
		if w > c.most {
			t.Errorf("%d bytes an hour", w)
		}
		before := w
		for range 360 {
			if _, err := f.m.Commit(now); err != nil {
				t.Fatal(err)
			}
		}
		if w := f.m.View().Written; w != before {
			t.Errorf("an idle hour writes %d bytes", w-before)
		}
	}
}

// TestBounded: who brings many keys fills neither memory nor disk, and pushes out nobody who carries more; sums stay whole.
func TestBounded(t *testing.T) {
	now := time.Now()
	f := mustOpen(t, t.TempDir())
	f.m.store.db.NoSync = true
	big := ident.PublicKey{0xff, 1}
	var sent uint64
	for round := range 20 {
		f.sessions = []SessionReading{{Peer: big, Epoch: 1, OutsideSent: Count{uint64(round+1) * 1000, uint64(round+1) * 1000000}}}
		f.links = []LinkReading{{Neighbour: 0xffff, Epoch: 1, Recv: []Flow{{Class: 2, Packets: 1000, Bytes: 1000000}}}}
		for i := range 1000 {
			f.sessions = append(f.sessions, SessionReading{Peer: ident.PublicKey{1, byte(round), byte(i), byte(i >> 8)}, Epoch: 1, MeshSent: Count{1, 100}})
			f.links = append(f.links, LinkReading{Neighbour: ident.NodeID(1 + round*1000 + i), Epoch: 1, Recv: []Flow{{Class: 0, Packets: 1, Bytes: 100}}})
			sent++
		}
		f.m.tick(now)
		if _, err := f.m.Commit(now); err != nil {
			t.Fatal(err)
		}
		if len(f.m.peers) > maxPeers+1 || len(f.m.links) > maxLinks+NumClasses || len(f.m.today) > maxDayRows+1 {
			t.Fatalf("%d peers, %d links, %d rows", len(f.m.peers), len(f.m.links), len(f.m.today))
		}
	}
	total, err := f.m.Commit(now)
	if err != nil {
		t.Fatal(err)
	}
	var mesh, day, link uint64
	for _, p := range total.Peers {
		mesh += p.Mesh.Sent.Packets
	}
	for _, u := range f.m.today {
		day += u.MeshSent.Packets
	}
	for k, l := range f.m.links {
		if k.class == 0 {
			link += l.recvTotal.Packets
		}
	}
	if mesh != sent || day != sent || link != sent {
		t.Errorf("sums %d, %d and %d, want %d", mesh, day, link, sent)
	}
	if got := total.Find(big).Outside.Sent.Packets; got != 20000 || f.m.today[big].OutsideSent.Packets != 20000 {
		t.Errorf("the big one has %d", got)
	}
	c := contents{peers: map[ident.PublicKey][numKinds]ledger{}, links: map[linkKey]carried{}}
	if err := f.m.store.db.View(func(tx *bolt.Tx) error { return c.load(tx) }); err != nil || len(c.peers) > maxPeers+1 || len(c.links) > maxLinks+NumClasses {
		t.Errorf("the file holds %d peers and %d links, %v", len(c.peers), len(c.links), err)
	}
}
