//go:build engine

package bft

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/ident"
	"weft/ledger"
	"weft/ledger/bft/bftclient"
	"weft/ledger/tx"
)

const testChain = "test-1"

func agent(t testing.TB, name string) *ident.Agent {
	t.Helper()
	seed := sha256.Sum256([]byte(name))
	a, err := ident.FromSeed(seed[:])
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func founder(t testing.TB, i int) *ident.Agent { return agent(t, fmt.Sprint("founder ", i)) }

// settings let members send as much as a test likes.
var settings = []tx.Setting{{Name: "tx.each", Value: "10000"}, {Name: "tx.window", Value: "10"}, {Name: "vote.notice", Value: "0"}}

// testGenesis has n founders, who may owe, and validators' keys out of the given folders.
func testGenesis(t testing.TB, n int, dirs ...string) ledger.Genesis {
	t.Helper()
	g := ledger.Genesis{Chain: testChain, Time: time.Now().Unix() - 10, Settings: settings}
	for i := range n {
		g.Founders = append(g.Founders, ledger.Founder{Key: founder(t, i).Public(), Name: fmt.Sprint("founder ", i), Limit: 1e12})
	}
	for _, d := range dirs {
		k, err := Key(d)
		if err != nil {
			t.Fatal(err)
		}
		g.Validators = append(g.Validators, ledger.FirstValidator{Key: k, Operator: uint64(len(g.Validators)%n) + 1, Node: agent(t, d).Public()})
	}
	return g
}

// transfer is a signed payment of founder from to founder to.
func transfer(t testing.TB, from, to int, nonce uint64) []byte {
	t.Helper()
	return signed(t, from, nonce, &tx.Transfer{To: founder(t, to).Public(), Amount: 1})
}

func signed(t testing.TB, from int, nonce uint64, b tx.Body) []byte {
	t.Helper()
	raw, err := tx.Tx{Chain: tx.ChainOf(testChain), Nonce: nonce, Expiry: time.Now().Unix() + 3600, Body: b}.Sign(founder(t, from))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func nonceOf(t testing.TB, c *bftclient.Client, i int) uint64 {
	t.Helper()
	v, err := c.Get(t.Context(), append([]byte{'a'}, pub(t, i)...), 0, false)
	if err != nil {
		t.Fatal(err)
	}
	var a ledger.Account
	if v.Value != nil {
		if err := tx.Decode(v.Value, &a); err != nil {
			t.Fatal(err)
		}
	}
	return a.Nonce
}

func pub(t testing.TB, i int) []byte { k := founder(t, i).Public(); return k[:] }

// peer is an engine that a test can stop and start.
type peer struct {
	t      testing.TB
	cfg    Config
	client *bftclient.Client
	cancel context.CancelFunc
	done   chan error
	apart  bool // in a process of its own
	pid    int
}

func (p *peer) start() {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel, p.done = cancel, make(chan error, 1)
	if p.apart {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "BFT_CHILD="+p.cfg.Dir, "BFT_LISTEN="+p.cfg.Listen.String(), "BFT_PEERS="+strings.Join(p.cfg.Peers, " "))
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			p.t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			p.t.Fatal(err)
		}
		p.pid = cmd.Process.Pid
		go func() { <-ctx.Done(); in.Close() }()
		go func() { p.done <- cmd.Wait() }()
	} else {
		go func() { p.done <- Run(ctx, p.cfg) }()
	}
	p.client = bftclient.New(p.cfg.Dir)
	eventually(p.t, 20*time.Second, "the engine's socket", func() error {
		select {
		case err := <-p.done:
			p.done <- err
			p.t.Fatalf("the engine ended: %v", err)
		default:
		}
		_, err := p.client.Status(context.Background())
		return err
	})
}

func (p *peer) stop() {
	p.t.Helper()
	if p.cancel == nil {
		return
	}
	p.cancel()
	p.cancel = nil
	p.client.Close()
	select {
	case err := <-p.done:
		if err != nil {
			p.t.Errorf("engine: %v", err)
		}
	case <-time.After(30 * time.Second):
		p.t.Fatal("the engine does not end")
	}
}

// eventually waits for f to succeed: what it waits for is other goroutines' and processes' work.
func eventually(t testing.TB, most time.Duration, what string, f func() error) {
	t.Helper()
	end := time.Now().Add(most)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited %v for %s: %v", most, what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (p *peer) status() bftclient.Status {
	s, err := p.client.Status(context.Background())
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

func (p *peer) height(atLeast int64) {
	p.t.Helper()
	eventually(p.t, 2*time.Minute, fmt.Sprint("height ", atLeast), func() error {
		if s := p.status(); s.Height < atLeast {
			return fmt.Errorf("%d; halted: %q peers: %v catching up: %v", s.Height, s.Halted, s.Peers, s.CatchingUp)
		}
		return nil
	})
}

// pay sends a transfer and waits until it is final.
func (p *peer) pay(from, to int, nonce uint64) bftclient.Result {
	p.t.Helper()
	return p.final(transfer(p.t, from, to, nonce))
}

func (p *peer) final(raw []byte) bftclient.Result {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := p.client.Finalise(ctx, raw)
	if err != nil {
		p.t.Fatal(err)
	}
	if r.Code != 0 || r.Height == 0 {
		p.t.Fatalf("%+v", r)
	}
	return r
}

// freePort is below the ports that the system takes for outgoing connections, or one of those would take it before the engine does.
func freePort(t testing.TB) netip.AddrPort {
	for {
		at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(12000+rand.IntN(18000)))
		if l, err := net.Listen("tcp", at.String()); err == nil {
			l.Close()
			return at
		}
	}
}

func testLog(t testing.TB, name string) *slog.Logger {
	if os.Getenv("BFT_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", name)
}

// network is engines on loopback. Each reaches the others through a proxy that delays, and cuts.
type network struct {
	t     testing.TB
	peers []*peer
	mu    sync.Mutex
	delay time.Duration
	side  map[int]int // partition: who is on which side
	mute  map[int]int // the same where nothing is closed and nothing arrives
	heal  *sync.Cond  // mute has changed
	down  map[int]bool
	conns map[net.Conn][2]int
}

// newNetwork makes n engines, the first v of them validators, and founders. Nothing is started.
func newNetwork(t testing.TB, n, v, founders int, delay time.Duration, change func(i int, c *Config)) *network {
	t.Helper()
	w := &network{t: t, delay: delay, side: map[int]int{}, down: map[int]bool{}, conns: map[net.Conn][2]int{}}
	w.heal = sync.NewCond(&w.mu)
	var dirs []string
	root := t.TempDir()
	for i := range n {
		dirs = append(dirs, filepath.Join(root, fmt.Sprint(i)))
	}
	g := testGenesis(t, founders, dirs[:v]...)
	for i, d := range dirs {
		if err := Join(d, tx.Encode(&g)); err != nil {
			t.Fatal(err)
		}
		c := Config{Dir: d, Listen: freePort(t), Heartbeat: time.Minute, Log: testLog(t, fmt.Sprint(i))}
		if change != nil {
			change(i, &c)
		}
		w.peers = append(w.peers, &peer{t: t, cfg: c})
	}
	for i := range n {
		for j := range n {
			if i != j {
				w.link(i, j)
			}
		}
	}
	t.Cleanup(func() {
		w.vanish(nil)
		for _, p := range w.peers {
			p.stop()
		}
	})
	return w
}

// link lets i dial j.
func (w *network) link(i, j int) {
	k, err := Key(w.peers[j].cfg.Dir)
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { l.Close() })
	w.peers[i].cfg.Peers = append(w.peers[i].cfg.Peers, string(idOf(k))+"@"+l.Addr().String())
	to := w.peers[j].cfg.Listen.String()
	go func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", to)
			if err != nil {
				a.Close()
				continue
			}
			w.mu.Lock()
			if w.side[i] != w.side[j] || w.down[i] || w.down[j] {
				w.mu.Unlock()
				a.Close()
				b.Close()
				continue
			}
			w.conns[a], w.conns[b] = [2]int{i, j}, [2]int{i, j}
			w.mu.Unlock()
			go w.carry(a, b, i, j)
			go w.carry(b, a, i, j)
		}
	}()
}

// carry copies with the delay of a link. What vanishes is sent again, as TCP does, when it is over.
func (w *network) carry(from, to net.Conn, i, j int) {
	type piece struct {
		b  []byte
		at time.Time
	}
	c := make(chan piece, 4096)
	go func() {
		for p := range c {
			time.Sleep(time.Until(p.at))
			w.mu.Lock()
			for w.mute[i] != w.mute[j] {
				w.heal.Wait()
			}
			w.mu.Unlock()
			if _, err := to.Write(p.b); err != nil {
				break
			}
		}
		to.Close()
		for range c {
		}
	}()
	for {
		b := make([]byte, 16<<10)
		n, err := from.Read(b)
		if err != nil {
			break
		}
		c <- piece{b[:n], time.Now().Add(w.delay)}
	}
	close(c)
	from.Close()
	w.mu.Lock()
	delete(w.conns, from)
	w.mu.Unlock()
}

// split puts peers on sides that cannot reach each other; none: all can.
func (w *network) split(side map[int]int) {
	w.mu.Lock()
	w.side = side
	var all []net.Conn
	for c, ij := range w.conns {
		if side[ij[0]] != side[ij[1]] {
			all = append(all, c)
		}
	}
	w.mu.Unlock()
	for _, c := range all {
		c.Close()
	}
}

// vanish lets nothing through between sides, and closes nothing; none: all arrives.
func (w *network) vanish(side map[int]int) {
	w.mu.Lock()
	w.mute = side
	w.mu.Unlock()
	w.heal.Broadcast()
}

// stop ends an engine and what is left of its connections: Comet leaves some open, which the end of a process would not.
func (w *network) stop(i int) {
	w.mu.Lock()
	w.down[i] = true
	w.mu.Unlock()
	w.peers[i].stop()
	w.mu.Lock()
	var all []net.Conn
	for c, ij := range w.conns {
		if ij[0] == i || ij[1] == i {
			all = append(all, c)
		}
	}
	w.mu.Unlock()
	for _, c := range all {
		c.Close()
	}
}

// again starts what was stopped.
func (w *network) again(i int) {
	w.mu.Lock()
	delete(w.down, i)
	w.mu.Unlock()
	w.peers[i].start()
}

func (w *network) start() {
	w.t.Helper()
	var g sync.WaitGroup
	for _, p := range w.peers {
		g.Go(p.start)
	}
	g.Wait()
	for _, p := range w.peers {
		p.height(1)
	}
}

// meet waits until everybody sees everybody.
func (w *network) meet(n int) {
	w.t.Helper()
	for i, p := range w.peers {
		eventually(w.t, time.Minute, fmt.Sprint("peers of ", i), func() error {
			if s := p.status(); len(s.Peers) < n {
				return fmt.Errorf("%d peers", len(s.Peers))
			}
			return nil
		})
	}
}

// same checks that all have the same block at a height.
func (w *network) same(h int64) {
	w.t.Helper()
	var first []byte
	for i, p := range w.peers {
		p.height(h)
		b, err := p.client.Blocks(context.Background(), h, h)
		if err != nil || len(b.List) != 1 {
			w.t.Fatalf("block %d of %d: %v %v", h, i, b, err)
		}
		if first == nil {
			first = b.List[0].Hash[:]
		} else if string(first) != string(b.List[0].Hash[:]) {
			w.t.Fatalf("validator %d has another block %d", i, h)
		}
	}
}
