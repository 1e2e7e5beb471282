package node

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"weft/api"
	"weft/config"
	"weft/firewall"
	"weft/ident"
	"weft/ledger"
	"weft/ledger/bft/bftclient"
	"weft/ledger/lite"
	"weft/ledger/tx"
)

// The ledger is kept by engines, each a process of its own (weft-ledger). A node that keeps one answers others' questions about
// it at ledgerPort of its mesh address, and takes their transactions; engines speak with each other at enginePort. A node that
// keeps none follows one that does: it asks, and believes of blocks and of its own account only what it has verified (ledger/lite).
const (
	ledgerPort = 7171
	enginePort = 7172
)

// keeperPatience is how long a connection to the node that keeps the ledger may take; less than Coop waits, so that its reason is told.
const keeperPatience = 4 * time.Second

// coopFile is what lasts of a node's part in a community.
type coopFile struct {
	Chain  string          // id
	Keep   bool            // an engine runs here
	Keeper ident.PublicKey // else, or as its first peer: the node that keeps the ledger
	// Others are the nodes of other validators, as far as an engine here has seen.
	Others     []ident.PublicKey `json:",omitempty"`
	KeeperName string            `json:",omitempty"`
}

// coop is this node's part in a community.
type coop struct {
	n      *Node
	dir    string
	http   http.Handler // the ledger, wherever it is
	hits   *rate.Limiter
	asking atomic.Int64 // questions of others in progress

	nonce sync.Mutex // one transaction at a time

	mu   sync.Mutex // guards what follows
	file coopFile
	run  chan struct{} // tells serve of another file
	last error         // why the ledger could not be asked

	warned []string // what the owner must know

	light lightClient
	names *naming
}

// lightClient verifies blocks: for a node that keeps no ledger, and of what others prove.
type lightClient struct {
	mu sync.Mutex // guards what follows; never held while somebody is asked
	c  *lite.Client
}

func (l *lightClient) set(c *lite.Client) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.c = c
}

// usable reports whether more blocks can be verified with what is trusted.
func (l *lightClient) usable(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.c == nil {
		return false
	}
	s := l.c.Status(now).State
	return s != lite.Expired && s != lite.Forked
}

func newCoop(n *Node) (*coop, error) {
	c := &coop{n: n, dir: filepath.Join(n.opt.StateDir, "coop"), run: make(chan struct{}, 1), hits: rate.NewLimiter(200, 400)}
	b, err := os.ReadFile(filepath.Join(c.dir, "coop.json"))
	if err == nil {
		err = json.Unmarshal(b, &c.file)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read this node's community: %w", err)
	}
	if b, err := os.ReadFile(filepath.Join(c.dir, "light")); err == nil {
		if c.light.c, err = lite.Load(b); err != nil {
			n.log.Warn("verified blocks are forgotten", "why", err)
		}
	}
	c.names = newNaming(filepath.Join(c.dir, "names"), c.keeps, c.lookName, n.log.With("room", "names").Warn)
	c.http = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "ledger" },
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
			MaxIdleConns: 8, IdleConnTimeout: 30 * time.Second, ResponseHeaderTimeout: 10 * time.Minute},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, err.Error(), http.StatusBadGateway)
		},
	}
	return c, nil
}

// dial connects to the ledger: the engine here, or the one that is followed.
func (c *coop) dial(ctx context.Context) (net.Conn, error) {
	c.mu.Lock()
	f := c.file
	c.mu.Unlock()
	switch {
	case f.Chain == "":
		return nil, errors.New("this node has no community; to found one: weft coop found --name NAME, to join one: weft coop join NODE")
	case f.Keep:
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", filepath.Join(c.engine(), bftclient.Socket))
		if err != nil {
			return nil, fmt.Errorf("the ledger's engine does not answer yet; see: weft ledger status (%w)", err)
		}
		return conn, nil
	}
	limit, cancel := context.WithTimeout(ctx, keeperPatience)
	defer cancel()
	conn, err := c.n.net.DialContext(limit, "tcp", netip.AddrPortFrom(f.Keeper.Addr(), ledgerPort).String())
	if err != nil {
		name := cmp.Or(c.n.routing.name(f.Keeper.ID()), f.KeeperName, f.Keeper.Addr().String())
		return nil, fmt.Errorf("%s, which keeps the ledger, does not answer (%w); this works again when that node can be reached", name, undialled(err))
	}
	return conn, nil
}

func (c *coop) engine() string { return filepath.Join(c.dir, "engine") }

// plain says why the ledger could not be asked, without how it was asked.
func plain(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("no answer in time")
	}
	return err
}

// undialled is what went wrong with a connection, without where it led.
func undialled(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	if call, ok := errors.AsType[*os.SyscallError](err); ok {
		err = call.Err
	}
	return plain(err)
}

// client asks the ledger.
func (c *coop) client() *bftclient.Client { return bftclient.Over(c.dial, "") }

// serve keeps the engine running and the light client up to date.
func (c *coop) serve(ctx context.Context) error {
	for ctx.Err() == nil {
		c.mu.Lock()
		f := c.file
		c.mu.Unlock()
		part, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		if f.Chain != "" {
			wg.Go(func() {
				if err := c.n.tabs.serve(part, f); err != nil && part.Err() == nil {
					c.n.log.Error("no tabs are kept", "err", err)
				}
			})
		}
		switch {
		case f.Keep:
			wg.Go(func() { c.keep(part, f) })
			wg.Go(func() { c.answer(part) })
			wg.Go(func() { c.follow(part) }) // for what others prove
			wg.Go(func() { c.introduce(part, f) })
		case f.Chain != "":
			wg.Go(func() { c.follow(part) })
		}
		if f.Chain != "" {
			wg.Go(func() { c.names.serve(part) })
			wg.Go(func() { c.watch(part) })
		}
		select {
		case <-ctx.Done():
		case <-c.run:
		}
		stop()
		wg.Wait()
	}
	return ctx.Err()
}

// keep runs the engine's process.
func (c *coop) keep(ctx context.Context, f coopFile) {
	exe, err := engineProgram()
	if err != nil {
		c.fail(err)
		<-ctx.Done()
		return
	}
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		if err = c.prepare(ctx, exe, f); err == nil {
			break
		}
		c.fail(err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
	c.fail(nil)
	listen := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
	if c.n.mode == "tun" && c.n.opt.World == nil {
		listen = netip.AddrPortFrom(c.n.self.Addr(), enginePort)
		shut, err := c.n.openPorts(enginePort)
		if err != nil {
			c.fail(err)
		} else {
			defer shut()
		}
	}
	args := []string{"ledger", "run", "--dir", c.engine(), "--listen", listen.String(), "--port", fmt.Sprint(enginePort)}
	if err := bftclient.Supervise(ctx, bftclient.Supervisor{Exe: exe, Args: args, Log: c.n.log.With("room", "ledger"), Ended: c.ended}); err != nil {
		c.fail(err)
	}
	<-ctx.Done()
}

// ended keeps why the engine ended, to be told while it does not answer: it is started again, but that need not help.
func (c *coop) ended(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = fmt.Errorf("the ledger's engine ended: %w", err)
}

// engineProgram finds weft-ledger: beside this program, or where programs are.
func engineProgram() (string, error) {
	if self, err := os.Executable(); err == nil {
		p := filepath.Join(filepath.Dir(self), "weft-ledger")
		if st, err := os.Stat(p); err == nil && !st.IsDir() {
			return p, nil
		}
	}
	p, err := exec.LookPath("weft-ledger")
	if err != nil {
		return "", errors.New("the program weft-ledger is missing, which keeps the ledger; it stands beside weft after make build. A router needs none: it follows the ledger that another node keeps (weft coop join NODE)")
	}
	return p, nil
}

func (c *coop) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil && (c.last == nil || c.last.Error() != err.Error()) {
		c.n.log.Warn("ledger", "err", err)
	}
	c.last = err
}

// openPorts lets other nodes connect to TCP ports of this node while something listens there.
func (n *Node) openPorts(ports ...int) (shut func(), err error) {
	var rules []firewall.Rule
	for _, p := range ports {
		r, err := firewall.ParseRule(fmt.Sprintf("allow tcp %d from any", p))
		if err != nil {
			return nil, err
		}
		rules = append(rules, r)
	}
	return n.firewall.Open(rules...)
}

// answer serves other nodes what they may know of the ledger, which is all of it, and takes their transactions.
func (c *coop) answer(ctx context.Context) {
	if c.n.net == nil {
		return
	}
	shut, err := c.n.openPorts(ledgerPort)
	if err != nil {
		c.fail(err)
		return
	}
	defer shut()
	ln, err := c.n.net.Listen(ctx, "tcp", fmt.Sprintf(":%d", ledgerPort))
	if err != nil {
		c.fail(err)
		return
	}
	reads := []string{"status", "get", "scan", "light", "blocks", "genesis", "postings", "result"}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		what := strings.Trim(r.URL.Path, "/")
		ok := r.Method == http.MethodGet && slices.Contains(reads, what) || r.Method == http.MethodPost && (what == "tx" || what == "follow")
		switch {
		case !ok:
			http.Error(w, "there is no such question", http.StatusNotFound)
		case !c.hits.Allow():
			http.Error(w, "too many questions at once; try again", http.StatusTooManyRequests)
		case what == "follow":
			c.letFollow(w, r)
		case c.asking.Add(1) > maxAsking:
			c.asking.Add(-1)
			http.Error(w, "too many questions at once; try again", http.StatusTooManyRequests)
		default:
			defer c.asking.Add(-1)
			r.Body = http.MaxBytesReader(w, r.Body, tx.MaxLen)
			c.http.ServeHTTP(w, r)
		}
	})
	_ = serveHTTP(ctx, ln, h) // ends with ctx
}

// maxAsking bounds others' questions in progress: whoever waits for a block holds one for a while.
const maxAsking = 256

// keeps reports whether an engine runs here.
func (c *coop) keeps() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.file.Keep
}

// follow verifies the ledger's blocks.
func (c *coop) follow(ctx context.Context) {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		next := time.Minute
		if err := c.verify(ctx); err != nil {
			next = 5 * time.Second
			if c.keeps() { // its own engine is starting
				next = 300 * time.Millisecond
			} else if ctx.Err() == nil {
				c.fail(err)
			}
		} else if !c.keeps() {
			c.fail(nil)
		}
		t.Reset(next)
	}
}

// verify asks for the blocks that the light client wants, until it has the newest. A node that keeps the ledger begins with what
// its own engine says.
func (c *coop) verify(ctx context.Context) error {
	cl := c.client()
	defer cl.Close()
	l := &c.light
	if c.keeps() && !l.usable(time.Now()) {
		s, err := cl.Status(ctx)
		if err != nil {
			return err
		}
		fresh, err := lite.New(lite.Trust{Chain: s.Chain, Height: s.Height, Hash: lite.Hash(s.Hash), Period: lite.DefaultPeriod})
		if err != nil {
			return err
		}
		l.set(fresh)
	}
	for range 200 {
		l.mu.Lock()
		if l.c == nil {
			l.mu.Unlock()
			return errors.New("no block of this ledger is trusted yet: weft coop join again")
		}
		height, ok := l.c.Want(time.Now())
		l.mu.Unlock()
		if !ok {
			return nil
		}
		before, after, err := c.fetch(ctx, cl, height)
		if err != nil && !errors.Is(err, lite.ErrFar) {
			return err
		}
		if height == 0 && before != 0 && after == before {
			break
		}
	}
	l.mu.Lock()
	b := l.c.Save()
	l.mu.Unlock()
	return config.WriteFile(filepath.Join(c.dir, "light"), b)
}

// fetch asks for a block and gives it to the light client; it returns the newest heights before and after.
func (c *coop) fetch(ctx context.Context, cl *bftclient.Client, height int64) (before, after int64, err error) {
	limit, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	b, err := cl.LightBlock(limit, height)
	if err != nil {
		return 0, 0, err
	}
	block, err := lite.ParseComet(b)
	if err != nil {
		return 0, 0, err
	}
	l := &c.light
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.c == nil {
		return 0, 0, errors.New("no block is trusted yet")
	}
	newest := func() int64 {
		if n := l.c.Newest(); n != nil {
			return n.Header.Height
		}
		return 0
	}
	before = newest()
	_, err = l.c.Update(time.Now(), block)
	return before, newest(), err
}

// account reads this node's account; verified says that its record is proved against a verified block.
func (c *coop) account(ctx context.Context, cl *bftclient.Client) (a tx.Account, verified bool, err error) {
	c.mu.Lock()
	keep := c.file.Keep
	c.mu.Unlock()
	k := tx.StateKeyAccount(c.n.self)
	v, err := cl.Get(ctx, k, 0, !keep)
	if err != nil || len(v.Value) == 0 {
		return a, false, err
	}
	if err := tx.Decode(v.Value, &a); err != nil {
		return a, false, fmt.Errorf("this node's account: %w", err)
	}
	if keep {
		return a, true, nil
	}
	_, err = c.prove(ctx, cl, k, v)
	return a, err == nil, nil
}

// prove checks a record against a block that this node has verified, asking for it if need be, and returns when it was so.
func (c *coop) prove(ctx context.Context, cl *bftclient.Client, k []byte, v bftclient.Value) (at time.Time, err error) {
	pk, pv, p, err := lite.ParseICS23(v.Proof)
	if err != nil {
		return at, err
	}
	if !bytes.Equal(pk, k) || !bytes.Equal(pv, v.Value) {
		return at, errors.New("the proof is of another record")
	}
	for range 2 {
		c.light.mu.Lock()
		if c.light.c == nil {
			c.light.mu.Unlock()
			return at, errors.New("no block is trusted yet")
		}
		at, err = c.light.c.Prove(time.Now(), k, v.Value, &p, v.Height)
		c.light.mu.Unlock()
		if !errors.Is(err, lite.ErrHeader) {
			return at, err
		}
		if _, _, err := c.fetch(ctx, cl, v.Height+1); err != nil {
			return at, err
		}
	}
	return at, err
}

var chainName = regexp.MustCompile(`[^a-z0-9]+`)

// FoundCoop implements api.Cooper.
func (n *Node) FoundCoop(ctx context.Context, r api.CoopFound) (api.Coop, error) {
	c := n.coop
	bad := func(format string, args ...any) (api.Coop, error) {
		return api.Coop{}, api.Errorf(api.CodeBadRequest, format, args...)
	}
	c.mu.Lock()
	chain := c.file.Chain
	c.mu.Unlock()
	name := strings.Trim(chainName.ReplaceAllString(strings.ToLower(r.Name), "-"), "-")
	switch {
	case chain != "":
		return bad("this node is in the community %s already; a node can be in one", chain)
	case name == "" || len(name) > 30:
		return bad("%q is no name for a community: it needs letters or digits, at most 30", r.Name)
	case strings.TrimSpace(r.Called) == "":
		return bad("say what the founder is called in the register")
	}
	exe, err := engineProgram()
	if err != nil {
		return bad("%v", err)
	}
	now := time.Now()
	g := ledger.Genesis{Chain: ledger.ChainID(name, now.UTC().Format("20060102"), n.self), Time: now.Unix(),
		Founders: []ledger.Founder{{Key: n.self, Name: r.Called}}}
	settings, rules, err := settingsOf(r.Template, r.Settings)
	if err != nil {
		return bad("%v", err)
	}
	g.Settings, g.Founders[0].Limit = settings, rules.CreditFull
	if err := tx.Check(&g); err != nil {
		return bad("%v", err)
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return api.Coop{}, err
	}
	if _, err := runEngine(ctx, exe, tx.Encode(&g), "ledger", "found", "--dir", c.engine(), "--on", n.self.String()); err != nil {
		return bad("%v", err)
	}
	return c.begin(ctx, coopFile{Chain: g.Chain, Keep: true})
}

// runEngine runs the engine's program to its end.
func runEngine(ctx context.Context, exe string, in []byte, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, exe, args...)
	var out, say bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &say
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %s", filepath.Base(exe), cmp.Or(strings.TrimSpace(say.String()), err.Error()))
	}
	return out.Bytes(), nil
}

// begin keeps a new part in a community, and waits a moment for the ledger to answer.
func (c *coop) begin(ctx context.Context, f coopFile) (api.Coop, error) {
	b, err := json.Marshal(f)
	if err != nil {
		return api.Coop{}, err
	}
	if err := config.WriteFile(filepath.Join(c.dir, "coop.json"), b); err != nil {
		return api.Coop{}, err
	}
	c.mu.Lock()
	c.file, c.last = f, nil
	c.mu.Unlock()
	select {
	case c.run <- struct{}{}:
	default:
	}
	limit, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for {
		s, err := c.n.Coop(limit)
		if err != nil || (s.State == "keeping" || s.State == "following") && s.Height > 0 || limit.Err() != nil {
			return s, err
		}
		select {
		case <-limit.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// JoinCoop implements api.Cooper.
func (n *Node) JoinCoop(ctx context.Context, r api.CoopJoin) (api.Coop, error) {
	c := n.coop
	c.mu.Lock()
	have := c.file
	c.mu.Unlock()
	if have.Keep {
		return api.Coop{}, api.Errorf(api.CodeBadRequest, "this node keeps the ledger of %s already", have.Chain)
	}
	key, err := n.find(r.Node)
	if err != nil {
		return api.Coop{}, err
	}
	if key == n.self {
		return api.Coop{}, api.Errorf(api.CodeBadRequest, "this is the node itself").WithHint("name the node that keeps the ledger; to begin one here: weft coop found --name NAME")
	}
	limit, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cl := bftclient.Over(func(ctx context.Context) (net.Conn, error) {
		return n.net.DialContext(ctx, "tcp", netip.AddrPortFrom(key.Addr(), ledgerPort).String())
	}, "")
	defer cl.Close()
	s, err := cl.Status(limit)
	if err != nil {
		return api.Coop{}, api.Errorf(api.CodeBadRequest, "%s keeps no ledger that answers: %v", n.routing.nameOf(key), undialled(err)).
			WithHint("name the node on which the community was founded, or one that joined with --full; it must be running")
	}
	if have.Chain != "" && have.Chain != s.Chain {
		return api.Coop{}, api.Errorf(api.CodeBadRequest, "this node follows %s already, and %s keeps %s", have.Chain, n.routing.nameOf(key), s.Chain)
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return api.Coop{}, err
	}
	f := coopFile{Chain: s.Chain, Keeper: key, KeeperName: n.routing.name(key.ID())}
	if r.Full {
		exe, err := engineProgram()
		if err != nil {
			return api.Coop{}, api.Errorf(api.CodeBadRequest, "%v", err)
		}
		g, err := cl.Genesis(limit)
		if err != nil {
			return api.Coop{}, err
		}
		peer := s.ID + "@" + netip.AddrPortFrom(key.Addr(), enginePort).String()
		if _, err := runEngine(ctx, exe, g, "ledger", "init", "--dir", c.engine(), "--peer", peer); err != nil {
			return api.Coop{}, api.Errorf(api.CodeBadRequest, "%v", err)
		}
		f.Keep = true
		return c.begin(ctx, f)
	}
	// The first block is believed on the keeper's word; from there on everything is verified.
	l, err := lite.New(lite.Trust{Chain: s.Chain, Height: s.Height, Hash: lite.Hash(s.Hash), Period: lite.DefaultPeriod})
	if err != nil {
		return api.Coop{}, api.Errorf(api.CodeBadRequest, "%v", err)
	}
	c.light.set(l)
	return c.begin(ctx, f)
}

// Coop implements api.Cooper.
func (n *Node) Coop(ctx context.Context) (api.Coop, error) {
	c := n.coop
	c.mu.Lock()
	f, last := c.file, c.last
	c.mu.Unlock()
	out := api.Coop{State: "none", Chain: f.Chain, Warnings: c.warnings()}
	if f.Chain != "" {
		out.Domain = ledger.Domain(f.Chain) + ".weft"
	}
	if f.Chain == "" {
		out.Why = "to found a community: weft coop found --name NAME; to join one: weft coop join NODE"
		return out, nil
	}
	if !f.Keeper.IsZero() {
		out.Keeper, out.Name = f.Keeper.ID().String(), n.routing.name(f.Keeper.ID())
	}
	cl := c.client()
	defer cl.Close()
	limit, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s, err := cl.Status(limit)
	if err != nil {
		out.State, out.Why = "unreachable", plain(err).Error()
		if f.Keep {
			out.State = "starting"
		}
		if last != nil {
			out.Why = plain(last).Error()
		}
		return out, nil
	}
	out.State = "following"
	if f.Keep {
		out.State = "keeping"
	}
	out.Height, out.Time, out.Validators, out.Why = s.Height, time.Unix(s.Time, 0), len(s.Validators), s.Halted
	out.Validating = f.Keep && s.Validating
	if s.Height == 0 {
		return out, nil
	}
	a, verified, err := c.account(limit, cl)
	if err != nil {
		out.Why = err.Error()
		return out, nil
	}
	out.Balance, out.Limit, out.Verified = a.Balance, a.Limit, verified
	st, err := cl.State(limit, 0)
	if err != nil {
		return out, nil
	}
	m, err := ledger.New(st)
	if err == nil {
		out.Members = m.ActiveMembers()
		if mb, was, ok := m.MemberByKey(n.self); ok && !was {
			out.Member, out.Called, out.Standing = mb.ID, mb.Name, mb.State.String()
		}
		if a.Names > 0 {
			out.Names = namesOf(m, out.Member, ledger.Domain(f.Chain))
		}
		out.Registered = registered(m, n.self)
		if warn := alarms(m, n.self); st.Err() == nil {
			c.warn(warn)
			out.Warnings = warn
		}
	}
	if !f.Keep {
		c.light.mu.Lock()
		if c.light.c != nil {
			out.Verifying = c.light.c.Status(time.Now()).Text
		}
		c.light.mu.Unlock()
	}
	return out, nil
}

// Transact implements api.Cooper.
func (n *Node) Transact(ctx context.Context, r api.CoopTx) (api.CoopResult, error) {
	body := tx.New(tx.Kind(r.Kind))
	if body == nil {
		return api.CoopResult{}, api.Errorf(api.CodeBadRequest, "transaction kind %d is not known here", r.Kind)
	}
	if err := tx.Decode(r.Body, body); err != nil {
		return api.CoopResult{}, api.Errorf(api.CodeBadRequest, "%s transaction: %v", tx.Name(tx.Kind(r.Kind)), err)
	}
	return n.coop.transact(ctx, body)
}

// stoodStill is how old the newest block may be for a transaction to be made: one may run out two weeks after it at most, and not before now.
const stoodStill = 13 * 24 * time.Hour

// transact signs a transaction with this node's key and waits for its block.
func (c *coop) transact(ctx context.Context, body tx.Body) (api.CoopResult, error) {
	c.nonce.Lock()
	defer c.nonce.Unlock()
	cl := c.client()
	defer cl.Close()
	s, err := cl.Status(ctx)
	if err != nil {
		return api.CoopResult{}, api.Errorf(api.CodeBadRequest, "%v", plain(err))
	}
	c.mu.Lock()
	chain := c.file.Chain
	c.mu.Unlock()
	if s.Chain != chain { // what is signed for another community could be used there
		return api.CoopResult{}, api.Errorf(api.CodeBadRequest, "the node that should keep the ledger of %s keeps %s: nothing is signed for that", chain, s.Chain)
	}
	if was := time.Unix(s.Time, 0); time.Since(was) > stoodStill {
		return api.CoopResult{}, api.Errorf(api.CodeBadRequest, "the ledger has stood still since %s", was.Local().Format("2006-01-02 15:04")).
			WithHint("it takes transactions again when it has made a block of today, which it does by itself within minutes; see: weft ledger status")
	}
	// The newest record: one that can be proved is a block older, and its nonce may be used up. A wrong one does no harm.
	var a tx.Account
	k := tx.StateKeyAccount(c.n.self)
	v, err := cl.Get(ctx, k, 0, false)
	if err == nil && len(v.Value) > 0 {
		err = tx.Decode(v.Value, &a)
	}
	if err != nil {
		return api.CoopResult{}, api.Errorf(api.CodeBadRequest, "this node's account: %v", plain(err))
	}
	raw, err := tx.Tx{Chain: tx.ChainOf(s.Chain), Nonce: a.Nonce + 1, Expiry: max(time.Now().Unix(), s.Time) + 3600, Body: body}.Sign(c.n.agent)
	if err != nil {
		return api.CoopResult{}, api.Errorf(api.CodeBadRequest, "%v", err)
	}
	limit, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	res, err := cl.Finalise(limit, raw)
	if err != nil {
		hint := "it may still get into a block; see: weft ledger status"
		return api.CoopResult{}, api.Errorf(api.CodeBadRequest, "the transaction has been sent and is in no block yet: %v", plain(err)).WithHint("%s", hint)
	}
	c.mu.Lock()
	keep := c.file.Keep
	c.mu.Unlock()
	limit, cancel = context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for res.Height > 0 { // whoever asks next shall see it, and where it is proved, by the block that proves it
		v, err := cl.Get(limit, k, 0, !keep)
		if err != nil || v.Height >= res.Height {
			break
		}
		select {
		case <-limit.Done():
		case <-time.After(10 * time.Millisecond):
			continue
		}
		break
	}
	return api.CoopResult{Hash: res.Hash.String(), Code: res.Code, Text: res.Text, Data: res.Data, Height: res.Height}, nil
}

// Sponsor implements api.Cooper.
func (n *Node) Sponsor(ctx context.Context, r api.CoopSponsor) (api.CoopWord, error) {
	n.coop.mu.Lock()
	chain := n.coop.file.Chain
	n.coop.mu.Unlock()
	switch {
	case chain == "":
		return api.CoopWord{}, api.Errorf(api.CodeBadRequest, "this node has no community").WithHint("to found one: weft coop found --name NAME; to join one: weft coop join NODE")
	case r.Key == n.self:
		return api.CoopWord{}, api.Errorf(api.CodeBadRequest, "that is this node's own key").WithHint("name the key of somebody who wants to become a member; they see it with: weft id")
	case r.Key.IsZero():
		return api.CoopWord{}, api.Errorf(api.CodeBadRequest, "name the key of somebody who wants to become a member; they see it with: weft id")
	case r.Days < 0 || r.Days > 365:
		return api.CoopWord{}, api.Errorf(api.CodeBadRequest, "a word holds for 1 to 365 days")
	}
	if s, err := n.Coop(ctx); err == nil && s.Members > 0 && s.Member == 0 {
		return api.CoopWord{}, api.Errorf(api.CodeBadRequest, "only a member's word counts, and you are none yet")
	}
	days := r.Days
	if days == 0 {
		days = 14
	}
	until := time.Now().Add(time.Duration(days) * 24 * time.Hour).Unix()
	sig := n.agent.Sign(tx.SponsorDomain, tx.SponsorMessage(tx.ChainOf(chain), r.Key, until))
	return api.CoopWord{Sponsor: n.self, Until: until, Word: sig[:]}, nil
}

// LedgerHandler implements api.Ledger.
func (n *Node) LedgerHandler() http.Handler { return n.coop.http }

// settingsOf are the bylaws of a template with changes.
func settingsOf(template string, changes map[string]string) ([]tx.Setting, ledger.Params, error) {
	p := ledger.DefaultParams()
	var out []tx.Setting
	set := func(name, value string) error {
		if err := p.Set(name, value); err != nil {
			return err
		}
		out = append(out, tx.Setting{Name: name, Value: value})
		return nil
	}
	if template != "" {
		t, ok := ledger.FindTemplate(template)
		if !ok {
			var names []string
			for _, t := range ledger.Templates() {
				names = append(names, t.Name)
			}
			return nil, p, fmt.Errorf("there is no template %q; there are: %s", template, strings.Join(names, ", "))
		}
		for _, s := range t.Settings() {
			if err := set(s.Name, s.Value); err != nil {
				return nil, p, err
			}
		}
	}
	var names []string
	for name := range changes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := set(name, changes[name]); err != nil {
			return nil, p, err
		}
	}
	return out, p, p.Check()
}
