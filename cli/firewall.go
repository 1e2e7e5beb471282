package cli

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"weft/api"
	"weft/firewall"
)

type firewallCmd struct {
	Show firewallShowCmd `cmd:"" default:"1" help:"Show the rules in force."`
	Add  firewallAddCmd  `cmd:"" help:"Add a rule until the next start."`
	Rm   firewallRmCmd   `cmd:"" help:"Remove a rule until the next start."`
}

type firewallShowCmd struct{}

func (c *firewallShowCmd) Run(e *env) error {
	fw, err := e.node().Firewall(e.ctx)
	if err != nil {
		return err
	}
	return c.print(e, fw)
}

func (c *firewallShowCmd) print(e *env, fw api.Firewall) error {
	if e.json {
		return e.printJSON(fw)
	}
	if len(fw.Rules) == 0 {
		e.say("Closed: nobody may open connections to this device over the mesh; ping works.")
		e.say("To let someone in: weft firewall add 'allow tcp 22 from any'")
		return nil
	}
	t := columns(">NO", "RULE", ">USED", "")
	for i, r := range fw.Rules {
		note := " "
		if r.App {
			note = "opened by an app"
		}
		t.row(i+1, r.Rule, r.Hits, note)
	}
	t.print(e.out)
	for _, g := range slices.Sorted(maps.Keys(fw.Groups)) {
		e.say("group %s: %d keys", clean(g), len(fw.Groups[g]))
	}
	e.say("Everything else is refused, but ping.")
	return nil
}

type firewallAddCmd struct {
	Rule  []string `arg:"" help:"allow|block PROTO [PORTS] [to DEST] from SOURCE, such as: allow tcp 22 from key:HEX"`
	First bool     `help:"Ask it before the others."`
}

func (c *firewallAddCmd) Run(e *env) error {
	r, err := firewall.ParseRule(strings.Join(c.Rule, " "))
	if err != nil {
		return usageError{err}
	}
	return e.changeFirewall(func(rules []string) ([]string, error) {
		if c.First {
			return append([]string{r.String()}, rules...), nil
		}
		return append(rules, r.String()), nil
	})
}

type firewallRmCmd struct {
	Rule []string `arg:"" help:"Number or text of the rule, as shown."`
}

func (c *firewallRmCmd) Run(e *env) error {
	want := strings.Join(c.Rule, " ")
	return e.changeFirewall(func(rules []string) ([]string, error) {
		i := slices.Index(rules, want)
		if n, err := strconv.Atoi(want); err == nil {
			i = n - 1
		}
		if i < 0 || i >= len(rules) {
			return nil, api.Errorf(api.CodeBadRule, "there is no rule %q of yours", clean(want)).WithHint("see: weft firewall")
		}
		return slices.Delete(rules, i, i+1), nil
	})
}

// changeFirewall alters the owner's rules in the running node.
func (e *env) changeFirewall(f func([]string) ([]string, error)) error {
	node := e.node()
	fw, err := node.Firewall(e.ctx)
	if err != nil {
		return err
	}
	var rules []string
	for _, r := range fw.Rules {
		if !r.App {
			rules = append(rules, r.Rule)
		}
	}
	if rules, err = f(rules); err != nil {
		return err
	}
	if fw, err = node.SetFirewall(e.ctx, api.FirewallRequest{Rules: rules, Groups: fw.Groups}); err != nil {
		return fmt.Errorf("change the firewall: %w", err)
	}
	e.tell("This holds until the node stops. To keep it, write it into [firewall] in %s", e.paths.Config)
	return (&firewallShowCmd{}).print(e, fw)
}
