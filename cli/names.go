package cli

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"weft/ident"
	"weft/ledger"
	"weft/ledger/tx"
)

// Names of the community, and what the ledger says about nodes.

type coopNameCmd struct {
	List     nameListCmd     `cmd:"" default:"1" help:"Show the names of the community."`
	Register nameRegisterCmd `cmd:"" help:"Take a free name, or one that was offered to you."`
	Renew    nameRenewCmd    `cmd:"" help:"Keep a name for another term."`
	Point    namePointCmd    `cmd:"" help:"Let a name lead to another node."`
	Transfer nameTransferCmd `cmd:"" help:"Offer a name to another member, who takes it with: weft coop name register."`
	Release  nameReleaseCmd  `cmd:"" help:"Give a name back."`
}

// label is a name without the community's domain, which may be left out.
func (e *env) label(name string) (label, domain string, err error) {
	s, err := e.node().Coop(e.ctx)
	if err != nil {
		return "", "", err
	}
	if s.Domain == "" {
		return "", "", noMember(s)
	}
	return strings.TrimSuffix(strings.ToLower(name), "."+s.Domain), s.Domain, nil
}

type nameListCmd struct{}

func (c *nameListCmd) Run(e *env) error {
	s, err := e.node().Coop(e.ctx)
	if err != nil {
		return err
	}
	return e.books(func(m *ledger.Machine, now time.Time) error {
		l := m.Names()
		if e.json {
			type name struct {
				Name  string          `json:"name"`
				Owner uint64          `json:"owner"` // member
				Node  ident.PublicKey `json:"node"`
				Until int64           `json:"until"`           // then it leads nowhere …
				Kept  int64           `json:"kept"`            // … and from then on it is free
				Offer uint64          `json:"offer,omitempty"` // member who may take it
			}
			out := []name{}
			for _, n := range l {
				out = append(out, name{n.Label + "." + s.Domain, n.Owner, n.Node, n.Until, n.Kept, n.Offer})
			}
			return e.printJSON(out)
		}
		if len(l) == 0 {
			e.say("The community has no names yet. To take one for this node: weft coop name register LABEL")
			return nil
		}
		t := columns("NAME", "OWNER", "NODE", "UNTIL", "")
		for _, n := range l {
			mb, _ := m.Member(n.Owner)
			note := " "
			switch _, revoked := m.Revocation(n.Node); {
			case revoked:
				note = "its node's key was revoked"
			case now.Unix() >= n.Until:
				note = "run out; free from " + day(n.Kept)
			case n.Offer != 0:
				to, _ := m.Member(n.Offer)
				note = fmt.Sprintf("offered to %s, member %d", to.Name, n.Offer)
			}
			t.row(n.Label+"."+s.Domain, fmt.Sprintf("%s, member %d", mb.Name, n.Owner), n.Node.Addr(), day(n.Until), note)
		}
		t.print(e.out)
		return nil
	})
}

// ownNode is the key of this node, or of one that is named.
func (e *env) ownNode(text string) (ident.PublicKey, error) {
	if text != "" {
		return e.nodeKey(text)
	}
	s, err := e.node().Status(e.ctx)
	return s.Key, err
}

type nameRegisterCmd struct {
	Name string `arg:"" help:"Letters a to z, digits and hyphens, such as bakery."`
	Node string `help:"Where it leads: key, name, id or address of a node (default: this node)."`
}

func (c *nameRegisterCmd) Run(e *env) error {
	label, domain, err := e.label(c.Name)
	if err != nil {
		return err
	}
	if err := ledger.CheckLabel(label); err != nil {
		return usageError{err}
	}
	body := &tx.NameRegister{Label: label}
	if body.Node, err = e.ownNode(c.Node); err != nil {
		return err
	}
	return e.did(body, "%s.%s is yours, and leads to %s.", label, domain, body.Node.Addr())
}

type nameRenewCmd struct {
	Name string `arg:"" help:"Yours."`
}

func (c *nameRenewCmd) Run(e *env) error {
	label, domain, err := e.label(c.Name)
	if err != nil {
		return err
	}
	return e.did(&tx.NameRenew{Label: label}, "%s.%s is yours for another term (name.life).", label, domain)
}

type namePointCmd struct {
	Name string `arg:"" help:"Yours."`
	Node string `arg:"" optional:"" help:"Key, name, id or address of the node (default: this node)."`
}

func (c *namePointCmd) Run(e *env) error {
	label, domain, err := e.label(c.Name)
	if err != nil {
		return err
	}
	body := &tx.NameSet{Label: label}
	if body.Node, err = e.ownNode(c.Node); err != nil {
		return err
	}
	return e.did(body, "%s.%s leads to %s. Who has asked for it lately sees that within half a minute.", label, domain, body.Node.Addr())
}

type nameTransferCmd struct {
	Name string `arg:"" help:"Yours."`
	To   string `arg:"" help:"Member: number, name or key; nobody takes an offer back."`
}

func (c *nameTransferCmd) Run(e *env) error {
	label, domain, err := e.label(c.Name)
	if err != nil {
		return err
	}
	if c.To == "nobody" {
		return e.did(&tx.NameOffer{Label: label}, "%s.%s is offered to nobody any more.", label, domain)
	}
	mb, err := e.memberOf(c.To)
	if err != nil {
		return err
	}
	return e.did(&tx.NameOffer{Label: label, To: mb.ID}, "%s.%s stays yours until %s takes it: weft coop name register %s", label, domain, clean(mb.Name), label)
}

type nameReleaseCmd struct {
	Name string `arg:"" help:"Yours."`
}

func (c *nameReleaseCmd) Run(e *env) error {
	label, domain, err := e.label(c.Name)
	if err != nil {
		return err
	}
	return e.did(&tx.NameRelease{Label: label}, "%s.%s is free.", label, domain)
}

type coopNodeCmd struct {
	List     nodeListCmd     `cmd:"" default:"1" help:"Show the registered nodes: whose they are, gateways and relays with their terms."`
	Register nodeRegisterCmd `cmd:"" help:"Register a node as yours, and as gateway or relay; again, to change that or make it last."`
	Remove   nodeRemoveCmd   `cmd:"" help:"End a registration."`
	Revoke   nodeRevokeCmd   `cmd:"" help:"Say for ever that a node's key is nobody's any more: stolen, or thrown away."`
}

type nodeListCmd struct{}

func roleText(roles uint8) string {
	var l []string
	if roles&tx.RoleGateway != 0 {
		l = append(l, "gateway")
	}
	if roles&tx.RoleRelay != 0 {
		l = append(l, "relay")
	}
	return strings.Join(l, ", ")
}

func (c *nodeListCmd) Run(e *env) error {
	return e.books(func(m *ledger.Machine, _ time.Time) error {
		l, gone := m.Registrations(), m.Revocations()
		if e.json {
			type node struct {
				Key     ident.PublicKey `json:"key"`
				Member  uint64          `json:"member"`
				Gateway bool            `json:"gateway"`
				Relay   bool            `json:"relay"`
				Price   uint32          `json:"price_ncredit_per_mib"`
				Terms   string          `json:"terms,omitempty"`
				Contact string          `json:"contact,omitempty"`
				Since   int64           `json:"since"`
				Until   int64           `json:"until"`
			}
			type revoked struct {
				Key    ident.PublicKey `json:"key"`
				Member uint64          `json:"member"`
				Time   int64           `json:"time"`
				Reason string          `json:"reason,omitempty"`
			}
			nodes, keys := []node{}, []revoked{}
			for _, n := range l {
				nodes = append(nodes, node{n.Key, n.Member, n.Roles&tx.RoleGateway != 0, n.Roles&tx.RoleRelay != 0, n.Price, n.Terms, n.Contact, n.Since, n.Until})
			}
			for _, r := range gone {
				keys = append(keys, revoked{r.Key, r.Member, r.Time, r.Reason})
			}
			return e.printJSON(map[string]any{"nodes": nodes, "revoked": keys})
		}
		if len(l) == 0 && len(gone) == 0 {
			e.say("No node is registered. To register this one: weft coop node register --gateway --price 0.05")
			return nil
		}
		t := columns("NODE", "MEMBER", "SERVES AS", ">PER GIB", "UNTIL", "TERMS", "CONTACT")
		for _, n := range l {
			mb, _ := m.Member(n.Member)
			t.row(n.Key.Addr(), fmt.Sprintf("%s, member %d", mb.Name, n.Member), roleText(n.Roles), credits(int64(n.Price)<<10), day(n.Until), n.Terms, n.Contact)
		}
		t.print(e.out)
		if len(gone) > 0 {
			e.say("")
			t := columns("REVOKED KEY", "BY MEMBER", "ON", "WHY")
			for _, r := range gone {
				t.row(r.Key, r.Member, day(r.Time), r.Reason)
			}
			t.print(e.out)
		}
		return nil
	})
}

type nodeRegisterCmd struct {
	Word    string `arg:"" optional:"" help:"What weft coop agree register has printed on the node (default: this node); its key is enough when it is yours already."`
	Gateway bool   `help:"It shares its internet line."`
	Relay   bool   `help:"It carries for others."`
	Price   string `default:"0" help:"Credits per GiB, both directions."`
	Terms   string `help:"For people, such as: no mail on port 25."`
	Contact string `help:"For people."`
	Days    int    `default:"364" help:"For so long; node.life is the most."`
}

func (c *nodeRegisterCmd) Run(e *env) error {
	price, err := parseCredits(c.Price)
	if err != nil {
		return usageError{fmt.Errorf("--price: %w", err)}
	}
	if price>>10 > 1<<32-1 {
		return usageError{fmt.Errorf("--price %s: that is too much", c.Price)}
	}
	if c.Days < 1 || c.Days > 3650 {
		return usageError{fmt.Errorf("--days: 1 to 3650, and no more than the bylaws allow (weft coop bylaws node.life)")}
	}
	body := &tx.NodeRegister{Price: uint32(price >> 10), Terms: c.Terms, Contact: c.Contact}
	if c.Gateway {
		body.Roles |= tx.RoleGateway
	}
	if c.Relay {
		body.Roles |= tx.RoleRelay
	}
	switch {
	case strings.HasPrefix(c.Word, nodePrefix):
		w, err := parseWord(nodePrefix, "weft coop agree register MEMBER", c.Word)
		if err != nil {
			return err
		}
		body.Node, body.Word = w.Key, w.Sig
	default:
		if body.Node, err = e.ownNode(c.Word); err != nil {
			return err
		}
	}
	if err := e.books(func(_ *ledger.Machine, now time.Time) error {
		body.Until = now.Unix() + int64(c.Days)*86400
		return nil
	}); err != nil {
		return err
	}
	return e.did(body, "%s is registered as yours until %s, as %s.", body.Node.Addr(), day(body.Until), cmp.Or(roleText(body.Roles), "neither gateway nor relay"))
}

type nodeRemoveCmd struct {
	Node string `arg:"" optional:"" help:"Key, name, id or address (default: this node)."`
}

func (c *nodeRemoveCmd) Run(e *env) error {
	k, err := e.ownNode(c.Node)
	if err != nil {
		return err
	}
	return e.did(&tx.NodeRemove{Node: k}, "%s is not registered any more.", k.Addr())
}

type nodeRevokeCmd struct {
	Node   string `arg:"" help:"Key of a node of yours or of your own former key, or the word that weft coop agree revoke has printed there."`
	Reason string `help:"For people."`
	Yes    bool   `help:"There is no way back: say that you know."`
}

func (c *nodeRevokeCmd) Run(e *env) error {
	if !c.Yes {
		return usageError{fmt.Errorf("a revoked key is void for ever, with no way back: say --yes if that is meant")}
	}
	body := &tx.NodeRevoke{Reason: c.Reason}
	if strings.HasPrefix(c.Node, revokePrefix) {
		w, err := parseWord(revokePrefix, "weft coop agree revoke", c.Node)
		if err != nil {
			return err
		}
		body.Node, body.Word = w.Key, w.Sig
	} else {
		var err error
		if body.Node, err = ident.ParsePublicKey(c.Node); err != nil {
			return usageError{fmt.Errorf("name the key, 64 hex digits: one does not revoke by a name that others may bear")}
		}
	}
	return e.did(body, "The key %s is void for ever.", body.Node)
}

type coopBlockedCmd struct{}

func (c *coopBlockedCmd) Run(e *env) error {
	return e.books(func(m *ledger.Machine, _ time.Time) error {
		l := m.BlockList()
		if e.json {
			type blocked struct {
				Key      ident.PublicKey `json:"key"`
				Since    int64           `json:"since"`
				Until    int64           `json:"until"` // 0: until a vote
				Proposal uint64          `json:"proposal"`
			}
			out := []blocked{}
			for _, b := range l {
				out = append(out, blocked{b.Node, b.Since, b.Until, b.Proposal})
			}
			return e.printJSON(out)
		}
		if len(l) == 0 {
			e.say("No node is blocked.")
			return nil
		}
		t := columns("NODE", "SINCE", "UNTIL", ">PROPOSAL")
		for _, b := range l {
			until := "a vote"
			if b.Until != 0 {
				until = day(b.Until)
			}
			t.row(b.Node, day(b.Since), until, b.Proposal)
		}
		t.print(e.out)
		return nil
	})
}

type coopResignCmd struct{}

func (c *coopResignCmd) Run(e *env) error {
	return e.did(&tx.Resign{}, "Your validators leave the set.")
}

type coopTreasurersCmd struct{}

func (c *coopTreasurersCmd) Run(e *env) error {
	return e.books(func(m *ledger.Machine, now time.Time) error {
		l := m.Treasurers(now.Unix())
		if e.json {
			type officer struct {
				Member uint64 `json:"member"`
				Since  int64  `json:"since"`
				Until  int64  `json:"until"`
			}
			out := []officer{}
			for _, o := range l {
				out = append(out, officer{o.Member, o.Since, o.Until})
			}
			return e.printJSON(out)
		}
		if len(l) == 0 {
			e.say("Nobody is treasurer. To elect one: weft coop propose --treasurer MEMBER")
			return nil
		}
		t := columns(">MEMBER", "NAME", "SINCE", "TERM ENDS")
		for _, o := range l {
			mb, _ := m.Member(o.Member)
			t.row(o.Member, mb.Name, day(o.Since), day(o.Until))
		}
		t.print(e.out)
		return nil
	})
}
