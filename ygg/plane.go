//go:build !no_ygg

package ygg

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Arceliar/ironwood/types"
	"github.com/yggdrasil-network/yggdrasil-go/src/core"
	"github.com/yggdrasil-network/yggdrasil-go/src/multicast"
	"golang.org/x/sync/errgroup"

	"weft/ident"
)

// Built says whether the plane is in this program.
const Built = true

// maxBackoff is how long the core waits at most before it dials a dead peer again, unless the URI says otherwise. Its own
// limit is over an hour.
const maxBackoff = "30s"

// Plane is a node of the Yggdrasil network.
type Plane struct {
	cfg   Config
	self  ident.PublicKey
	core  *core.Core
	multi *multicast.Multicast
	admin net.Listener
	start time.Time
	up    atomic.Bool // there is a link
	stop  sync.Once

	contacts contacts

	mu      sync.Mutex          // guards what follows
	asked   map[string][]string // peers: URI without options → in full, one for each interface to dial from
	carried map[*carried]bool   // links over the mesh itself
}

// New starts a node. Nothing of it is left when it fails, or after Close or the end of Serve.
func New(cfg Config) (_ *Plane, err error) {
	p := &Plane{cfg: cfg, self: cfg.Agent.Public(), start: time.Now(), asked: map[string][]string{}, carried: map[*carried]bool{}}
	p.contacts.init(p)
	var groups []multicast.SetupOption
	for _, m := range cfg.Multicast {
		re, err := regexp.Compile(m.Regex)
		if err != nil {
			return nil, fmt.Errorf("yggdrasil: multicast interfaces %q: %w", m.Regex, err)
		}
		groups = append(groups, multicast.MulticastInterface{Regex: re, Beacon: m.Beacon, Listen: m.Listen, Port: m.Port, Priority: m.Priority, Password: m.Password})
	}
	opts := []core.SetupOption{core.NodeInfoPrivacy(true), core.GroupPassword(cfg.Password)}
	for _, k := range cfg.Allowed {
		opts = append(opts, core.AllowedPublicKey(k[:]))
	}
	logger := coreLog{cfg.Log}
	cert, err := cfg.Agent.Certificate()
	if err != nil {
		return nil, err
	}
	if p.core, err = core.New(&tls.Certificate{Certificate: cert.Certificate, PrivateKey: cfg.Agent.PrivateKeyForYggdrasil()}, logger, opts...); err != nil {
		return nil, fmt.Errorf("start the Yggdrasil core: %w", err)
	}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	p.core.SetPathNotify(func(key ed25519.PublicKey) { p.contacts.learn(ident.PublicKey(key)) })
	for _, s := range cfg.Listen {
		u, err := url.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("yggdrasil: listen on %q: %w", s, err)
		}
		if u.Scheme == "unix" {
			err = freeSocket(u.Path)
		}
		if err == nil {
			_, err = p.core.Listen(u, "")
		}
		if err != nil {
			return nil, fmt.Errorf("yggdrasil: listen on %s: %w (choose another in [yggdrasil] listen)", bare(u), err)
		}
	}
	for _, s := range cfg.Peers {
		if err := p.AddPeer(s); err != nil && !errors.Is(err, core.ErrLinkAlreadyConfigured) {
			return nil, err
		}
	}
	if cfg.Admin != "" {
		// The rest works without a socket for tools, and the place that came with a yggdrasil.conf may not be ours to write to.
		if p.admin, err = listenAdmin(cfg.Admin); err != nil {
			cfg.Log.Warn("yggdrasilctl and other tools cannot talk to this node", "err", err)
			p.admin, err = nil, nil
		}
	}
	if len(groups) > 0 {
		// Without discovery the rest still works, and a device without IPv6 cannot have it.
		if p.multi, err = multicast.New(p.core, logger, groups...); err != nil {
			cfg.Log.Warn("no multicast discovery of Yggdrasil nodes", "err", err)
			p.multi, err = nil, nil
		}
	}
	return p, nil
}

// Close ends the node; Serve returns.
func (p *Plane) Close() {
	p.stop.Do(func() {
		if p.multi != nil {
			p.multi.Stop()
		}
		if p.admin != nil {
			p.admin.Close()
		}
		p.core.Stop()
		p.mu.Lock()
		for c := range p.carried {
			c.Close()
		}
		p.mu.Unlock()
		p.contacts.close()
	})
}

// Serve carries packets until ctx ends.
func (p *Plane) Serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.read(ctx) })
	g.Go(func() error { return p.tick(ctx) })
	if p.admin != nil {
		g.Go(func() error { return p.serveAdmin(ctx) })
	}
	g.Go(func() error { <-ctx.Done(); p.Close(); return ctx.Err() })
	return g.Wait()
}

// read takes packets from the core.
func (p *Plane) read(ctx context.Context) error {
	w := p.cfg.Device.NewWriter()
	buf := make([]byte, 65535)
	for {
		n, from, err := p.core.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("read from the Yggdrasil core: %w", err)
		}
		key, ok := from.(types.Addr)
		if !ok || len(key) != ed25519.PublicKeySize {
			continue
		}
		if ok, partial := p.receive(ident.PublicKey(key), buf[:n]); ok {
			w.Write(buf[:n], partial)
			_ = w.Flush() // what the host cannot take is lost like any packet
		}
	}
}

// tick does what time asks for.
func (p *Plane) tick(ctx context.Context) error {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		up := false
		for _, x := range p.core.PacketConn.PacketConn.Debug.GetPeers() {
			up = up || len(x.Key) > 0
		}
		p.up.Store(up)
		for _, key := range p.contacts.sweep(p.now()) {
			p.core.SendLookup(key)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

// now is the plane's clock: nanoseconds since the start, never zero.
func (p *Plane) now() int64 { return int64(time.Since(p.start)) + 1 }

// bare is a URI without its options, as the core names a link.
func bare(u *url.URL) string {
	b := *u
	b.RawQuery = ""
	return b.String()
}

// parse reads a peer's URI: what the core wants of it, and the interface to dial from.
func parse(s string) (u *url.URL, dev string, err error) {
	if u, err = url.Parse(s); err != nil {
		return nil, "", fmt.Errorf("yggdrasil: peer %q: %w", s, err)
	}
	q := u.Query()
	dev = q.Get("interface")
	q.Del("interface")
	if !q.Has("maxbackoff") {
		q.Set("maxbackoff", maxBackoff)
	}
	u.RawQuery = q.Encode()
	return u, dev, nil
}

// AddPeer dials a peer, and dials it again whenever the link is lost.
func (p *Plane) AddPeer(uri string) error {
	u, dev, err := parse(uri)
	if err != nil {
		return err
	}
	if err := p.core.AddPeer(u, dev); err != nil {
		return fmt.Errorf("yggdrasil: peer %s: %w", bare(u), err)
	}
	p.mu.Lock()
	p.asked[bare(u)] = append(p.asked[bare(u)], uri)
	p.mu.Unlock()
	return nil
}

// RemovePeer ends what AddPeer asked for: the link from the interface that the URI names, or all when it names none. Other
// options in the URI do not matter.
func (p *Plane) RemovePeer(uri string) error {
	u, only, err := parse(uri)
	if err != nil {
		return err
	}
	name := bare(u)
	var gone, kept []string
	p.mu.Lock()
	for _, full := range p.asked[name] {
		if _, dev, err := parse(full); err == nil && (only == "" || only == dev) {
			gone = append(gone, full)
		} else {
			kept = append(kept, full)
		}
	}
	if p.asked[name] = kept; len(kept) == 0 {
		delete(p.asked, name)
	}
	p.mu.Unlock()
	if len(gone) == 0 {
		return fmt.Errorf("yggdrasil: there is no peer %s", name)
	}
	for _, full := range gone {
		u, dev, e := parse(full)
		if e == nil {
			e = p.core.RemovePeer(u, dev)
		}
		if e != nil && !errors.Is(e, net.ErrClosed) {
			err = errors.Join(err, fmt.Errorf("yggdrasil: remove %s: %w", name, e))
		}
	}
	return err
}

// Peers lists all links.
func (p *Plane) Peers() []Peer {
	var out []Peer
	links := p.core.GetPeers()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range links {
		q := Peer{URI: x.URI, Up: x.Up, Inbound: x.Inbound, RTT: x.Latency, Cost: x.Cost, Uptime: x.Uptime, Rx: x.RXBytes, Tx: x.TXBytes}
		_, q.Asked = p.asked[x.URI]
		q.Asked = q.Asked && !x.Inbound
		if len(x.Key) == ed25519.PublicKeySize {
			q.Key = ident.PublicKey(x.Key)
		}
		// The core shows a link before its handshake is done; one without a key carries nothing yet.
		q.Up = q.Up && !q.Key.IsZero()
		if x.LastError != nil && !q.Up {
			q.Error = plain(x.LastError)
		}
		out = append(out, q)
	}
	for c := range p.carried {
		out = append(out, Peer{URI: "mesh://" + c.RemoteAddr().String(), Key: c.key, Up: true, Inbound: c.inbound, Carried: true,
			Uptime: time.Since(c.since), Rx: c.rx.Load(), Tx: c.tx.Load()})
	}
	return out
}

// plain says in words what the core's errors mean to the owner.
func plain(err error) string {
	switch {
	case errors.Is(err, core.ErrHandshakeIncorrectPassword), errors.Is(err, core.ErrHandshakeInvalidPassword):
		return "the password is wrong: the peer has another one (?password=… in the URI)"
	case errors.Is(err, core.ErrHandshakeInvalidPreamble):
		return "what answers is not a Yggdrasil node"
	case errors.Is(err, core.ErrLinkToSelf):
		return "this is the node itself"
	}
	return err.Error()
}

// carried is a link over a connection in the mesh.
type carried struct {
	net.Conn
	key     ident.PublicKey
	inbound bool
	since   time.Time
	rx, tx  atomic.Uint64
}

func (c *carried) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.rx.Add(uint64(n))
	return n, err
}

func (c *carried) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.tx.Add(uint64(n))
	return n, err
}

// carriedPriority makes the core prefer any other link with the same node: lower numbers win.
const carriedPriority = 200

// Carry makes c a link with the node that has key, until it breaks or ctx ends. The caller vouches for the key: c is a
// connection inside the mesh, whose ends are authentic. c is closed at the end.
func (p *Plane) Carry(ctx context.Context, key ident.PublicKey, inbound bool, conn net.Conn) error {
	c := &carried{Conn: conn, key: key, inbound: inbound, since: time.Now()}
	p.mu.Lock()
	p.carried[c] = true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.carried, c)
		p.mu.Unlock()
	}()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := p.core.HandleConn(key[:], c, carriedPriority); err != nil && ctx.Err() == nil {
		return fmt.Errorf("carry Yggdrasil over the mesh: %w", err)
	}
	return ctx.Err()
}

// coreLog writes the core's log into ours. What the core calls information is a line for every link that comes and goes.
type coreLog struct{ log *slog.Logger }

func (l coreLog) debug(s string) { l.log.Debug("core", "says", strings.TrimSpace(s)) }
func (l coreLog) warn(s string)  { l.log.Warn("core", "says", strings.TrimSpace(s)) }

func (l coreLog) Printf(f string, a ...any) { l.debug(fmt.Sprintf(f, a...)) }
func (l coreLog) Println(a ...any)          { l.debug(fmt.Sprintln(a...)) }
func (l coreLog) Infof(f string, a ...any)  { l.debug(fmt.Sprintf(f, a...)) }
func (l coreLog) Infoln(a ...any)           { l.debug(fmt.Sprintln(a...)) }
func (l coreLog) Warnf(f string, a ...any)  { l.warn(fmt.Sprintf(f, a...)) }
func (l coreLog) Warnln(a ...any)           { l.warn(fmt.Sprintln(a...)) }
func (l coreLog) Errorf(f string, a ...any) { l.warn(fmt.Sprintf(f, a...)) }
func (l coreLog) Errorln(a ...any)          { l.warn(fmt.Sprintln(a...)) }
func (l coreLog) Debugf(string, ...any)     {} // formats lists of addresses several times a second
func (l coreLog) Debugln(...any)            {}
func (l coreLog) Traceln(...any)            {}
