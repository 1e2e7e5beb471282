//go:build engine

package bft

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestMeasure prints what the engine needs and reaches: four validators, a process each, on this machine. It asserts nothing, and
// runs when BFT_MEASURE names what to measure: finality, rate, idle, disk. BFT_DELAY is the one-way delay of each link (30ms).
func TestMeasure(t *testing.T) {
	what := os.Getenv("BFT_MEASURE")
	if what == "" {
		t.Skip("set BFT_MEASURE=finality,rate,idle,disk to measure")
	}
	delay := 30 * time.Millisecond
	if s := os.Getenv("BFT_DELAY"); s != "" {
		var err error
		if delay, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	const members = 100
	w := newNetwork(t, 4, 4, members, delay, nil)
	for _, p := range w.peers {
		p.apart = true
	}
	w.start()
	w.meet(3)
	ctx := context.Background()
	nonces := make([]uint64, members)
	if strings.Contains(what, "finality") {
		var l []time.Duration
		for i := range 30 {
			nonces[i]++
			raw := transfer(t, i, (i+1)%members, nonces[i])
			began := time.Now()
			w.peers[i%4].final(raw)
			l = append(l, time.Since(began))
			time.Sleep(400 * time.Millisecond) // the proof block goes by
		}
		slices.Sort(l)
		t.Logf("finality over links of %v: median %v, least %v, most %v of %d", delay, l[len(l)/2], l[0], l[len(l)-1], len(l))
	}
	if strings.Contains(what, "rate") {
		each := 100
		if s := os.Getenv("BFT_EACH"); s != "" {
			each, _ = strconv.Atoi(s)
		}
		raws := make([][][]byte, members)
		for i := range members {
			for range each {
				nonces[i]++
				raws[i] = append(raws[i], transfer(t, i, (i+1)%members, nonces[i]))
			}
		}
		h := w.peers[0].status().Height
		cpu := used(w)
		began := time.Now()
		var g sync.WaitGroup
		var mu sync.Mutex
		var last time.Time
		refused := 0
		for i := range members {
			g.Go(func() {
				c := w.peers[i%4].client
				for k := 0; k < each; k++ {
					for {
						raw := raws[i][k]
						var err error
						code, text := uint32(0), ""
						if k == each-1 {
							r, e := c.Finalise(ctx, raw)
							code, text, err = r.Code, r.Text, e
						} else {
							r, e := c.Submit(ctx, raw)
							code, text, err = r.Code, r.Text, e
						}
						if err == nil && code == 0 {
							break
						}
						mu.Lock()
						if refused++; refused%1000 == 1 {
							t.Logf("transfer %d of member %d: %v %d %s", k, i, err, code, text)
						}
						mu.Unlock()
						var is, want int
						if n, _ := fmt.Sscanf(text, "nonce %d where %d", &is, &want); n == 2 {
							k = max(k+want-is, 0) // some were lost on the way
						}
						time.Sleep(50 * time.Millisecond) // the pool is full, or the one before is not there yet
					}
				}
				mu.Lock()
				last = time.Now()
				mu.Unlock()
			})
		}
		g.Wait()
		took := last.Sub(began)
		n := members * each
		s := w.peers[0].status()
		t.Logf("%d transfers final on four validators in %v over links of %v: %.0f a second, %d blocks, %d tries again, CPU %v (%.2f ms a transfer on all four)",
			n, took.Round(time.Millisecond), delay, float64(n)/took.Seconds(), s.Height-h, refused, used(w)-cpu, float64((used(w)-cpu).Microseconds())/1000/float64(n))
	}
	if strings.Contains(what, "idle") {
		time.Sleep(10 * time.Second)
		cpu, h, began := used(w), w.peers[0].status().Height, time.Now()
		time.Sleep(40 * time.Second)
		took := time.Since(began)
		for i, p := range w.peers {
			t.Logf("validator %d: %s", i, resident(p.pid))
		}
		t.Logf("idle for %v: %d blocks, %.2f %% of a core a validator", took.Round(time.Second), w.peers[0].status().Height-h, 100*float64(used(w)-cpu)/4/float64(took))
	}
	if strings.Contains(what, "disk") {
		size := func() map[string]int64 {
			by := map[string]int64{}
			dir := w.peers[0].cfg.Dir
			_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
				if i, e := d.Info(); err == nil && e == nil && !d.IsDir() {
					rel, _ := filepath.Rel(dir, filepath.Dir(p))
					by[rel] += i.Size()
				}
				return nil
			})
			return by
		}
		h := w.peers[0].status().Height
		was := size()
		for i := range 150 {
			m := i % 50
			nonces[m]++
			w.peers[0].final(transfer(t, m, 99, nonces[m]))
		}
		blocks := w.peers[0].status().Height - h
		for dir, n := range size() {
			t.Logf("disk: %s grows by %d bytes a block over %d blocks, half of them empty", dir, (n-was[dir])/blocks, blocks)
		}
	}
}

// used is the CPU time of all engines.
func used(w *network) (d time.Duration) {
	for _, p := range w.peers {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
		if err != nil {
			w.t.Fatal(err)
		}
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
		for _, x := range f[11:13] {
			n, _ := strconv.Atoi(x)
			d += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return d
}

func resident(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	var out []string
	for _, l := range strings.Split(string(b), "\n") {
		if strings.HasPrefix(l, "VmRSS") || strings.HasPrefix(l, "VmHWM") {
			out = append(out, strings.Join(strings.Fields(l), " "))
		}
	}
	return strings.Join(out, ", ")
}
