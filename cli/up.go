package cli

import (
	"context"
	"errors"
	"log/slog"

	"weft/api"
	"weft/config"
	"weft/node"
)

type upCmd struct {
	Check     bool     `help:"Look whether the config is right, and start nothing."`
	Userspace bool     `help:"Make no network interface, even as root: offer the proxies instead."`
	Peer      []string `placeholder:"URI" help:"Connect to this node too, for this run only."`
	Verbose   bool     `short:"v" help:"Log more."`
}

func (c *upCmd) Run(e *env) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	for _, p := range c.Peer {
		if err := config.CheckAnyURI(p); err != nil {
			return usageError{err}
		}
		if uri, ok := config.YggdrasilURI(p); ok {
			cfg.Yggdrasil.Peers = append(cfg.Yggdrasil.Peers, uri)
			continue
		}
		cfg.Peers = append(cfg.Peers, config.Peer{URI: p, Source: config.FromCommand})
	}
	if c.Userspace {
		cfg.TUN.Enabled = config.Off
	}
	if c.Verbose {
		cfg.Log.Level = "debug"
	}
	if err := node.Check(cfg); err != nil {
		return usageError{err}
	}
	if c.Check {
		e.say("The config is right: %s", e.paths.Config)
		return nil
	}
	n, err := node.New(node.Options{Config: cfg, StateDir: e.paths.State, Log: e.log(cfg)})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- n.Serve(ctx) }()
	select {
	case err := <-done:
		return stopped(err)
	case <-n.Ready():
	}
	s, err := n.Status(ctx)
	if err == nil {
		err = e.welcome(s)
	}
	if err != nil {
		cancel()
		return errors.Join(err, stopped(<-done))
	}
	return stopped(<-done)
}

// stopped is nil for a node that was asked to stop.
func stopped(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (e *env) log(cfg *config.Config) *slog.Logger {
	o := &slog.HandlerOptions{Level: cfg.Log.Level.Slog()}
	if cfg.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(e.err, o))
	}
	return slog.New(slog.NewTextHandler(e.err, o))
}

// welcome says what is there now and what to do next.
func (e *env) welcome(s api.Status) error {
	if e.json {
		return e.printLine(s)
	}
	e.say("weft is up.")
	e.say("  Address  %s", s.Address)
	switch {
	case s.Mode == "tun":
		e.say("  Reach other nodes over the interface %s: ping, ssh, curl and all the rest.", s.TUN)
	case s.SOCKS != "":
		e.say("  Reach other nodes over the SOCKS5 proxy: curl --proxy socks5h://%s http://[ADDRESS]/", s.SOCKS)
	case s.HTTP != "":
		e.say("  Reach other nodes over the HTTP proxy: curl --proxy http://%s http://[ADDRESS]/", s.HTTP)
	}
	if s.Portal != "" {
		e.say("  Portal   %s", s.Portal)
	}
	e.say("  Next     weft status, weft peers; weft invite brings someone in. Ctrl-C stops.")
	for _, w := range s.Warnings {
		e.tell("Warning: %s", clean(w))
	}
	return nil
}
