//go:build linux && !router

package netns

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"weft/api"
)

// Interface is what nodes call their mesh interface. Each has a namespace of its own, so the name can be the same.
const Interface = "weft0"

// StateDir is where the node keeps its key and its socket.
func (n *Node) StateDir() string { return filepath.Join(n.Dir, "state") }

// Configure writes the node's configuration; it counts from the next Start. With no call a node runs with none at all.
func (w *World) Configure(node, toml string) error {
	n, err := w.node(node)
	if err != nil {
		return err
	}
	n.config = toml
	if err := os.WriteFile(n.configPath(), []byte(toml), 0o644); err != nil {
		return fmt.Errorf("write the configuration of %s: %w", node, err)
	}
	return nil
}

func (n *Node) configPath() string { return filepath.Join(n.Dir, "weft.toml") }

// RunAs makes the node's weft run as an ordinary user from the next Start on.
func (w *World) RunAs(node string, uid int) error {
	n, err := w.node(node)
	if err != nil {
		return err
	}
	n.uid = uid
	if err := os.MkdirAll(n.StateDir(), 0o700); err != nil {
		return err
	}
	return os.Chown(n.StateDir(), uid, uid)
}

// argv is a weft command line for the node, run by whoever runs weft there.
func (w *World) argv(n *Node, verb ...string) []string {
	argv := append([]string{cmp.Or(n.binary, w.opt.Binary)}, verb...)
	argv = append(argv, "--state", n.StateDir())
	if n.config != "" {
		argv = append(argv, "--config", n.configPath())
	}
	if n.uid != 0 {
		id := strconv.Itoa(n.uid)
		argv = append([]string{"setpriv", "--reuid", id, "--regid", id, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "env", "HOME=" + n.StateDir()}, argv...)
	}
	return argv
}

// Start starts weft on the node. It returns when the process runs, not when it has neighbours: see Address and AwaitPing.
func (w *World) Start(node string) error {
	n, err := w.node(node)
	if err != nil {
		return err
	}
	if w.opt.Binary == "" && n.binary == "" {
		return errors.New("this world has no weft program to run")
	}
	if p := w.running(n); p != nil {
		return fmt.Errorf("weft runs on %s already", node)
	}
	p, err := w.Spawn(node, "weft", w.argv(n, "up")...)
	if err != nil {
		return err
	}
	w.mu.Lock()
	n.weft = p
	w.mu.Unlock()
	return nil
}

// StartAll starts weft on every node.
func (w *World) StartAll() error {
	for _, n := range w.Nodes() {
		if err := w.Start(n.Name); err != nil {
			return err
		}
	}
	return nil
}

func (w *World) running(n *Node) *Process {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n.weft == nil {
		return nil
	}
	select {
	case <-n.weft.done:
		return nil
	default:
		return n.weft
	}
}

// Process is the weft process of the node; nil when none runs.
func (w *World) Process(node string) *Process {
	n, err := w.node(node)
	if err != nil {
		return nil
	}
	return w.running(n)
}

// Stop ends weft on the node with SIGTERM and waits for it.
func (w *World) Stop(node string) error {
	if p := w.Process(node); p != nil {
		return p.Stop(5 * time.Second)
	}
	return fmt.Errorf("weft does not run on %s", node)
}

// Kill ends weft on the node as a power cut would: SIGKILL.
func (w *World) Kill(node string) error {
	p := w.Process(node)
	if p == nil {
		return fmt.Errorf("weft does not run on %s", node)
	}
	p.Kill()
	return nil
}

// Weft runs a weft command against the node and decodes its JSON into out, unless out is nil.
func (w *World) Weft(ctx context.Context, node string, out any, verb ...string) error {
	n, err := w.node(node)
	if err != nil {
		return err
	}
	if out != nil {
		verb = append(verb, "--json")
	}
	b, err := w.Exec(ctx, node, w.argv(n, verb...)...)
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("read what weft %v on %s printed: %w", verb, node, err)
	}
	return nil
}

// Status waits until the node answers on its socket and returns what it says.
func (w *World) Status(ctx context.Context, node string) (api.Status, error) {
	for {
		var st api.Status
		err := w.Weft(ctx, node, &st, "status")
		if err == nil && st.Address.IsValid() {
			return st, nil
		}
		if p := w.Process(node); p == nil {
			return st, fmt.Errorf("weft does not run on %s: %w", node, err)
		}
		select {
		case <-ctx.Done():
			return st, fmt.Errorf("weft on %s does not answer: %w", node, errors.Join(err, ctx.Err()))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Address is the mesh address of the node, once it runs.
func (w *World) Address(ctx context.Context, node string) (netip.Addr, error) {
	n, err := w.node(node)
	if err != nil {
		return netip.Addr{}, err
	}
	w.mu.Lock()
	known := n.addr
	w.mu.Unlock()
	if known.IsValid() {
		return known, nil
	}
	st, err := w.Status(ctx, node)
	if err != nil {
		return netip.Addr{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	n.addr = st.Address
	return n.addr, nil
}
