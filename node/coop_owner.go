package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"weft/api"
	"weft/ident"
	"weft/ledger"
	"weft/ledger/tx"
)

// What the owner of a node must hear of the ledger without asking, and what the node signs for its owner beside transactions.

// watchEvery is how often the ledger is asked for what its owner must know: much less than the least time in which one can object to
// anything in earnest, a day.
const watchEvery = time.Minute

// watch warns of what the ledger has in store for this node's owner.
func (c *coop) watch(ctx context.Context) {
	t := time.NewTimer(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if _, err := c.n.Coop(ctx); err != nil && ctx.Err() == nil { // it warns by the way
			c.n.log.Debug("community", "err", err)
		}
		t.Reset(watchEvery)
	}
}

// warn tells the owner of what is new: in the log, as an event, and from now on in the node's status.
func (c *coop) warn(all []string) {
	c.mu.Lock()
	was := c.warned
	c.warned = all
	c.mu.Unlock()
	for _, w := range all {
		if !slices.Contains(was, w) {
			c.n.log.Warn("community", "warning", w)
			c.n.hub.Publish(api.Event{Kind: api.EventWarning, ID: c.n.self.ID().String(), Name: c.n.cfg.Name, Text: w})
		}
	}
	for _, w := range was {
		if !slices.Contains(all, w) {
			c.n.hub.Publish(api.Event{Kind: api.EventWarning, ID: c.n.self.ID().String(), Name: c.n.cfg.Name, Text: "no more: " + w})
		}
	}
}

func (c *coop) warnings() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.warned)
}

// alarms are what the owner of a key must know of the ledger's state.
func alarms(m *ledger.Machine, self ident.PublicKey) (l []string) {
	mb, was, ok := m.MemberByKey(self)
	switch {
	case ok && was:
		l = append(l, fmt.Sprintf("This node's key is void: the membership of %s, member %d, has the key %s now. If that is not yours, speak to the members at once: a vote gives the membership back (weft coop propose --rekey WORD).", mb.Name, mb.ID, mb.Key))
	case ok && mb.Key == self:
		for _, r := range m.Rekeyings() {
			if r.Member != mb.ID {
				continue
			}
			text := fmt.Sprintf("Members vouch that your membership shall have another key, %s: %s so far.", r.New, plural(len(r.Vouches), "voucher"))
			if r.Due != 0 {
				text = fmt.Sprintf("Your membership gets another key, %s, on %s, because %s say that you have lost this one.", r.New, time.Unix(r.Due, 0).Local().Format("2006-01-02 15:04"), plural(len(r.Vouches), "member"))
			}
			l = append(l, text+" If you did not ask for it, somebody wants your account: object now with: weft coop rekey veto")
		}
	}
	if r, ok := m.Revocation(self); ok {
		l = append(l, fmt.Sprintf("This node's key was revoked by member %d (%s). Nobody shall trust it: make a new key for this node.", r.Member, r.Reason))
	}
	for _, b := range m.BlockList() {
		if b.Node == self {
			l = append(l, fmt.Sprintf("The members have blocked this node by proposal %d: their nodes do not route for it. See: weft coop proposals %d", b.Proposal, b.Proposal))
		}
	}
	if u, ok := m.Upgrade(); ok && u.Version > ledger.RulesVersion {
		l = append(l, fmt.Sprintf("From block %d on the ledger's rules are version %d, and this weft knows %d: install a newer weft before, on every machine that keeps the ledger.", u.Height, u.Version, ledger.RulesVersion))
	}
	if v := m.Version(); v > ledger.RulesVersion {
		l = append(l, fmt.Sprintf("The ledger's rules are version %d, and this weft knows %d: install a newer weft.", v, ledger.RulesVersion))
	}
	return l
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// registered says how a node stands in the ledger, empty when it does not.
func registered(m *ledger.Machine, k ident.PublicKey) string {
	n, ok := m.Node(k)
	if !ok {
		return ""
	}
	var roles []string
	if n.Roles&tx.RoleGateway != 0 {
		roles = append(roles, "gateway")
	}
	if n.Roles&tx.RoleRelay != 0 {
		roles = append(roles, "relay")
	}
	as := "with no role"
	if len(roles) > 0 {
		as = "as " + strings.Join(roles, " and ")
	}
	return fmt.Sprintf("member %d's, %s, until %s", n.Member, as, time.Unix(n.Until, 0).Local().Format("2006-01-02"))
}

// Agree implements api.Cooper.
func (n *Node) Agree(ctx context.Context, r api.CoopAgree) (api.CoopAgreement, error) {
	c := n.coop
	c.mu.Lock()
	id := c.file.Chain
	c.mu.Unlock()
	if id == "" {
		return api.CoopAgreement{}, api.Errorf(api.CodeBadRequest, "this node has no community").WithHint("to follow one: weft coop join NODE")
	}
	chain := tx.ChainOf(id)
	var domain ident.Domain
	var msg []byte
	switch r.To {
	case "rekey":
		cl := c.client()
		defer cl.Close()
		limit, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		st, err := cl.State(limit, 0)
		if err != nil {
			return api.CoopAgreement{}, api.Errorf(api.CodeBadRequest, "%v", plain(err))
		}
		m, err := ledger.New(st)
		if err != nil {
			return api.CoopAgreement{}, err
		}
		mb, ok := m.Member(r.Member) // a false key makes a word that is of no use
		if err := st.Err(); err != nil {
			return api.CoopAgreement{}, api.Errorf(api.CodeBadRequest, "%v", plain(err))
		}
		switch {
		case !ok:
			return api.CoopAgreement{}, api.Errorf(api.CodeBadRequest, "there is no member %d", r.Member)
		case mb.Key == n.self:
			return api.CoopAgreement{}, api.Errorf(api.CodeBadRequest, "this node's key is that member's already").WithHint("ask on the node that shall have the membership, which has another key")
		}
		domain, msg = tx.RekeyDomain, tx.RekeyMessage(chain, r.Member, mb.Key, n.self)
	case "act":
		domain, msg = tx.DelegateDomain, tx.DelegateMessage(chain, r.Member, n.self)
	case "register":
		domain, msg = tx.NodeDomain, tx.NodeMessage(chain, r.Member, n.self)
	case "revoke":
		domain, msg = tx.RevokeDomain, tx.RevokeMessage(chain, n.self)
	default:
		return api.CoopAgreement{}, api.Errorf(api.CodeBadRequest, "a node agrees to rekey, act, register or revoke, not to %q", r.To)
	}
	sig := n.agent.Sign(domain, msg)
	return api.CoopAgreement{To: r.To, Member: r.Member, Key: n.self, Word: sig[:]}, nil
}
