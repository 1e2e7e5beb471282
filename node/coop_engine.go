package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"weft/config"
	"weft/ident"
	"weft/ledger/bft/bftclient"
)

// How an engine begins, and how engines find each other. Validators do by the chain's state alone; the others ask to be let in.

// askAgain is how often an engine without a vote asks to be let in: others forget it after half an hour.
const askAgain = 10 * time.Minute

// prepare helps an engine begin that has nothing, or nothing left: it asks another node that keeps the ledger how the community began and
// from which snapshot to go on. The founder's engine begins by itself, as long as nobody else is known.
func (c *coop) prepare(ctx context.Context, exe string, f coopFile) error {
	has := func(name string) bool {
		_, err := os.Stat(filepath.Join(c.engine(), name))
		return err == nil
	}
	keepers := c.keepers(f)
	if has("genesis.json") && has("data") || len(keepers) == 0 {
		return nil
	}
	var errs []error
	for _, key := range keepers {
		err := c.prepareFrom(ctx, exe, f, key, has("genesis.json"))
		if err == nil || ctx.Err() != nil {
			return err
		}
		errs = append(errs, fmt.Errorf("%s: %w", c.n.routing.nameOf(key), plain(err)))
	}
	return fmt.Errorf("the ledger here is empty, and nobody who could fill it answers: %w", errors.Join(errs...))
}

func (c *coop) prepareFrom(ctx context.Context, exe string, f coopFile, key ident.PublicKey, begun bool) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cl := bftclient.Over(func(ctx context.Context) (net.Conn, error) { return c.dialKeeper(ctx, key) }, "")
	defer cl.Close()
	s, err := cl.Status(ctx)
	if err != nil {
		return err
	}
	if s.Chain != f.Chain {
		return fmt.Errorf("it keeps another ledger, %s", s.Chain)
	}
	if !begun {
		g, err := cl.Genesis(ctx)
		if err != nil {
			return err
		}
		peer := s.ID + "@" + netip.AddrPortFrom(key.Addr(), enginePort).String()
		if _, err := runEngine(ctx, exe, g, "ledger", "init", "--dir", c.engine(), "--peer", peer); err != nil {
			return err
		}
	}
	trust := filepath.Join(c.engine(), bftclient.TrustFile)
	if s.Begin == 0 {
		if err := os.Remove(trust); !errors.Is(err, os.ErrNotExist) { // of an earlier time
			return err
		}
		return nil
	}
	c.n.log.Info("the ledger here is empty: it begins with a snapshot", "from", c.n.routing.nameOf(key), "block", s.Height)
	return config.WriteFile(trust, bftclient.Trust(s))
}

// dialKeeper connects to the ledger of the node that has a key.
func (c *coop) dialKeeper(ctx context.Context, key ident.PublicKey) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, keeperPatience)
	defer cancel()
	return c.n.net.DialContext(ctx, "tcp", netip.AddrPortFrom(key.Addr(), ledgerPort).String())
}

// keepers are the nodes known to keep the ledger besides this one: where it joined, and the validators'.
func (c *coop) keepers(f coopFile) (l []ident.PublicKey) {
	for _, k := range append([]ident.PublicKey{f.Keeper}, f.Others...) {
		if !k.IsZero() && k != c.n.self && !slices.Contains(l, k) {
			l = append(l, k)
		}
	}
	return l
}

var engineID = regexp.MustCompile(`^[0-9a-f]{40}$`)

// letFollow lets another node's engine connect to this one. The address that it asks from, which nobody can forge, tells whose node it
// is: where there is little room, members' go first.
func (c *coop) letFollow(w http.ResponseWriter, r *http.Request) {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	id := r.URL.Query().Get("id")
	if err != nil || !engineID.MatchString(id) || !ident.MeshPrefix.Contains(from.Addr()) {
		http.Error(w, "say which engine wants to follow", http.StatusBadRequest)
		return
	}
	on, _ := c.n.routing.ByAddr(from.Addr())
	cl := c.client()
	defer cl.Close()
	if err := cl.LetFollow(r.Context(), id, on); err != nil {
		status := http.StatusBadGateway
		if e, ok := errors.AsType[*bftclient.Error](err); ok {
			status = e.Status
		}
		http.Error(w, err.Error(), status)
	}
}

// introduce asks others to let this node's engine in, as long as it has no vote: where the node joined, and when that is gone the nodes of
// the validators.
func (c *coop) introduce(ctx context.Context, f coopFile) {
	var asked time.Time
	for pause := time.Second; ; pause = min(2*pause, 15*time.Second) {
		cl := c.client()
		s, err := cl.Status(ctx)
		cl.Close()
		if err == nil {
			f = c.remember(f, s)
			if !s.Validating && (len(s.Peers) == 0 || time.Since(asked) > askAgain) {
				let := 0
				for _, key := range c.keepers(f) {
					if err := c.ask(ctx, key, s.ID); err != nil {
						c.n.log.Debug("an engine does not let this one in", "node", c.n.routing.nameOf(key), "err", err)
						continue
					}
					asked = time.Now()
					if let++; let == 2 { // so that one may fail
						break
					}
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// ask asks a node to let this one's engine in.
func (c *coop) ask(ctx context.Context, key ident.PublicKey, id string) error {
	h := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dialKeeper(ctx, key) }}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://ledger/follow?id="+id, nil)
	if err != nil {
		return err
	}
	res, err := h.Do(req)
	if err != nil {
		return err
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return errors.New(res.Status)
	}
	return nil
}

// maxOthers bounds the nodes that are remembered.
const maxOthers = 16

// remember keeps on disk which nodes run validators, for when nothing else is left of the ledger here.
func (c *coop) remember(f coopFile, s bftclient.Status) coopFile {
	var others []ident.PublicKey
	for _, v := range s.Validators {
		if v.Node != c.n.self && len(others) < maxOthers {
			others = append(others, v.Node)
		}
	}
	if len(others) == 0 || slices.Equal(others, f.Others) {
		return f
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file.Chain != f.Chain || !c.file.Keep {
		return f
	}
	c.file.Others, f.Others = others, others
	b, err := json.Marshal(c.file)
	if err == nil {
		err = config.WriteFile(filepath.Join(c.dir, "coop.json"), b)
	}
	if err != nil {
		c.n.log.Warn("the validators' nodes could not be noted", "err", err)
	}
	return f
}
