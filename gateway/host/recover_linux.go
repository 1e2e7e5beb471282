package host

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Recover undoes what a process that was killed has left behind: sysctls and tables that its state file names, and a client's rules, whoever
// left them. Call it at each start; OpenGateway and OpenClient do too. Without a file only the rules are looked for. It fails when
// the one who wrote the file still runs.
func Recover(path string) error {
	if err := checkStateFile(path); err != nil {
		return err
	}
	j, err := loadJournal(path)
	if err != nil {
		return err
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("talk to the kernel's routing: %w", err)
	}
	defer nl.Close()
	if j != nil {
		if err := j.takeBack(nl); err != nil {
			return err
		}
	}
	return sweepClient(nl)
}

// takeBack undoes what a state file says.
func (j *journal) takeBack(nl *netlink.Handle) error {
	var self string
	if len(j.s.Tables) > 0 {
		tables, err := findTables(func(n string) bool { return slices.Contains(j.s.Tables, n) })
		if err != nil {
			return err
		}
		self = j.s.Tables[0]
		if i := slices.IndexFunc(tables, owned); i >= 0 {
			return fmt.Errorf("%s belongs to a process that runs, and has the firewall table %s: give each node a state folder of its own", j.path, tables[i].Name)
		}
		defer func() { // last, as in Close
			for _, t := range tables {
				if t.Name != clientTable { // sweepClient decides on that one
					_ = deleteTable(t)
				}
			}
		}()
	}
	for _, t := range j.s.Tables {
		name, ok := strings.CutPrefix(t, gatewayTables)
		if l, err := nl.LinkByName(name); ok && err == nil && l.Attrs().Group == tunGroup { // a TUN that outlives its process
			if err := nl.LinkSetGroup(l, 0); err != nil && !gone(err) {
				return fmt.Errorf("put %s into its group again: %w", name, err)
			}
		}
	}
	for _, r := range j.s.Routes {
		l, err := nl.LinkByName(r.Dev)
		if err != nil {
			continue // and its routes with it
		}
		if err := nl.RouteDel(tunRoute(r.Dst, l.Attrs().Index)); err != nil && !gone(err) {
			return fmt.Errorf("take back the route of %v: %w", r.Dst, err)
		}
	}
	return j.undo(neededByOthers(self))
}

// sweepClient deletes rules and table of a client that is no more. A client that lives has its table, and routes in the routing table; if
// the kernel does not know whose the table is, the routes tell.
func sweepClient(nl *netlink.Handle) error {
	tables, err := findTables(func(n string) bool { return n == clientTable })
	if err != nil {
		// A kernel without nf_tables has no client, and nothing of one.
		return nil
	}
	routes, err := retry(func() ([]netlink.Route, error) {
		return nl.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: Table}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	if slices.ContainsFunc(tables, func(t *nftables.Table) bool { return owned(t) || len(routes) > 0 }) {
		return nil
	}
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := retry(func() ([]netlink.Rule, error) { return nl.RuleList(family) })
		if err != nil {
			errs = append(errs, fmt.Errorf("list routing rules: %w", err))
			continue
		}
		for _, r := range rules {
			if r.Protocol != Protocol || r.Priority < Priority || r.Priority > Priority+2 {
				continue
			}
			r.Family = family
			if err := nl.RuleDel(&r); err != nil && !gone(err) {
				errs = append(errs, fmt.Errorf("delete routing rule %d: %w", r.Priority, err))
			}
		}
	}
	for _, r := range routes {
		if r.Protocol == Protocol {
			if err := nl.RouteDel(&r); err != nil && !gone(err) {
				errs = append(errs, fmt.Errorf("delete a route of table %d: %w", Table, err))
			}
		}
	}
	for _, t := range tables {
		errs = append(errs, deleteTable(t))
	}
	return errors.Join(errs...)
}
