package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"weft/api"
	"weft/config"
	"weft/ident"
	"weft/node"
)

type initCmd struct {
	Name   string `help:"What this node calls itself."`
	Leaf   bool   `help:"Carry no traffic for others."`
	Closed bool   `help:"Found a closed network: make a key for it."`
	Force  bool   `help:"Write the config file anew. A key is never replaced."`

	FromYggdrasil string `placeholder:"FILE" help:"Take over the key, and with it the address, the peers and the settings of a yggdrasil.conf."`
}

type identity struct {
	Key     ident.PublicKey `json:"key"`
	ID      string          `json:"id"`
	Address string          `json:"address"`
	Subnet  string          `json:"subnet"`
	Config  string          `json:"config,omitempty"`
}

func identityOf(k ident.PublicKey) identity {
	return identity{Key: k, ID: k.ID().String(), Address: k.Addr().String(), Subnet: k.Subnet().String()}
}

func (c *initCmd) Run(e *env) error {
	if _, err := os.Stat(e.paths.Config); err == nil && !c.Force {
		return api.Errorf(api.CodeInternal, "%s exists already", e.paths.Config).WithHint("edit it, or write it anew with: weft init --force (the key stays)")
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for the config file: %w", err)
	}
	set := map[string]any{}
	var taken *ident.Agent
	var notes []string
	if c.FromYggdrasil != "" {
		from, err := config.ReadYggdrasil(c.FromYggdrasil)
		if err != nil {
			return usageError{err}
		}
		if taken, err = ident.FromSeed(from.Seed); err != nil {
			return usageError{err}
		}
		set, notes = from.Set, from.Notes
	}
	if c.Name != "" {
		set["name"] = c.Name
	}
	if c.Leaf {
		set["role"] = string(config.RoleLeaf)
	}
	if c.Closed {
		set["community.key"] = config.NewSecret()
	}
	text, err := config.Example(set)
	if err != nil {
		return err
	}
	if _, err := config.Parse("init", text); err != nil {
		return usageError{err}
	}
	if _, err := os.Lstat(filepath.Join(e.paths.State, ident.KeyFile)); taken != nil && errors.Is(err, fs.ErrNotExist) {
		if err := taken.Save(e.paths.State); err != nil {
			return err
		}
	}
	agent, created, err := ident.Load(e.paths.State)
	if err != nil {
		return err
	}
	if taken != nil && agent.Public() != taken.Public() {
		return api.Errorf(api.CodeInternal, "there is another key in %s already, and a key is never replaced", e.paths.State).
			WithHint("use a state directory of its own: weft --state DIR init --from-yggdrasil %s", c.FromYggdrasil)
	}
	if err := config.WriteFile(e.paths.Config, text); err != nil {
		return err
	}
	id := identityOf(agent.Public())
	id.Config = e.paths.Config
	if e.json {
		return e.printJSON(id)
	}
	if taken != nil {
		e.say("Took the key: %s", filepath.Join(e.paths.State, ident.KeyFile))
	} else if created {
		e.say("Made a key: %s", filepath.Join(e.paths.State, ident.KeyFile))
		e.say("Back it up: it is this node's identity and address.")
	} else {
		e.say("Kept the key: %s", filepath.Join(e.paths.State, ident.KeyFile))
	}
	e.say("Wrote:       %s", e.paths.Config)
	e.say("Address:     %s", id.Address)
	for _, n := range notes {
		e.say("Note:        %s", clean(n))
	}
	if taken != nil {
		e.say("Stop Yggdrasil before weft comes up: two nodes with one key harm each other.")
	}
	if c.Closed {
		e.say("The network is closed: only nodes with its key link. Others get it with: weft invite")
	}
	e.say("Next:        weft up")
	return nil
}

type idCmd struct{}

func (c *idCmd) Run(e *env) error {
	var id identity
	switch _, err := os.Stat(filepath.Join(e.paths.State, ident.KeyFile)); {
	case err == nil:
		agent, _, err := ident.Load(e.paths.State)
		if err != nil {
			return err
		}
		id = identityOf(agent.Public())
	default:
		s, err := e.node().Status(e.ctx)
		if err != nil {
			return api.Errorf(api.CodeNotFound, "there is no key in %s", e.paths.State).WithHint("make one with: weft init (or weft up, which makes one too)")
		}
		id = identityOf(s.Key)
	}
	if e.json {
		return e.printJSON(id)
	}
	e.say("Address  %s", id.Address)
	e.say("Subnet   %s", id.Subnet)
	e.say("Id       %s", id.ID)
	e.say("Key      %s", id.Key)
	return nil
}

type versionCmd struct {
	Verbose bool `short:"v" help:"Show what was built in, too."`
}

func (c *versionCmd) Run(e *env) error {
	parts := node.Parts()
	if e.json {
		return e.printJSON(map[string]any{"version": api.Version(), "parts": parts})
	}
	e.say("weft %s", api.Version())
	if c.Verbose {
		for _, name := range slices.Sorted(maps.Keys(parts)) {
			e.say("  %-10s %s", name, map[bool]string{true: "built in", false: "left out"}[parts[name]])
		}
		e.say("Yggdrasil costs about 1.8 MB of the program and 1.6 MB of memory (docs/develop.md):")
		e.say("[yggdrasil] enabled = \"off\" saves the memory, the build tag no_ygg both.")
	}
	return nil
}
