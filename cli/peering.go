package cli

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	qrcode "github.com/skip2/go-qrcode"

	"weft/api"
	"weft/config"
	"weft/ident"
)

type peersCmd struct {
	List  peersListCmd  `cmd:"" default:"1" help:"Show neighbours and configured peers."`
	Heard peersHeardCmd `cmd:"" help:"Show nodes heard on local networks."`
	Add   peersAddCmd   `cmd:"" help:"Connect to a node, now and after every start."`
	Rm    peersRmCmd    `cmd:"" help:"Remove a peer that was added."`
}

type peersListCmd struct{}

// tellStrangers says so when there are nodes around which belong to another network.
func (e *env) tellStrangers() error {
	heard, err := e.node().Heard(e.ctx)
	if err != nil {
		return err
	}
	strangers := 0
	for _, h := range heard {
		if !h.Linked && !h.Member {
			strangers++
		}
	}
	if strangers > 0 {
		e.say("%s of another network around here: ask a member for an invitation (weft invite), then: weft join LINK", count(strangers, "node"))
	}
	return nil
}

func (c *peersListCmd) Run(e *env) error {
	peers, err := e.node().Peers(e.ctx)
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(peers)
	}
	if len(peers) == 0 {
		e.say("No neighbour yet. Nodes on the same cable or Wi-Fi are found by themselves;")
		e.say("for others: weft peers add udp://HOST:PORT, or weft join LINK")
		return e.tellStrangers()
	}
	t := columns("NEIGHBOUR", "STATE", "SOURCE", "ENDPOINT", ">RTT", ">LOSS", ">COST", ">IN", ">OUT", ">SINCE", "")
	for _, p := range peers {
		name := who(p.Name, p.ID)
		note := " "
		if p.State != "up" {
			note = cmp.Or(p.LastError, " ")
		} else if p.Metered {
			note = "metered"
		}
		t.row(cmp.Or(name, "?"), p.State, p.Source, cmp.Or(p.Endpoint, p.URI), micros(p.RTTUs), fmt.Sprintf("%.0f %%", p.Loss*100), micros(p.CostUs), size(p.RxBytes), size(p.TxBytes), since(p.Since), note)
	}
	t.print(e.out)
	return nil
}

type peersHeardCmd struct{}

func (c *peersHeardCmd) Run(e *env) error {
	heard, err := e.node().Heard(e.ctx)
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(heard)
	}
	if len(heard) == 0 {
		e.say("No beacon was heard. Is the other node up, on the same cable or Wi-Fi, with UDP let through?")
		return nil
	}
	t := columns("ID", "ADDRESS", "ENDPOINT", "INTERFACE", "NEIGHBOUR", ">LAST HEARD")
	for _, h := range heard {
		t.row(h.ID, h.Address, h.Endpoint, h.Interface, neighbour(h), span(h.LastS))
	}
	t.print(e.out)
	return nil
}

// neighbour says whether a node heard is one, and why not where that is its network.
func neighbour(h api.Heard) string {
	if !h.Linked && !h.Member {
		return "no: another network"
	}
	return yes(h.Linked)
}

type peersAddCmd struct {
	URI     string  `arg:"" help:"udp://HOST:PORT, tls://HOST:PORT or wss://HOST[/PATH]; for the Yggdrasil network tcp://, quic://, ws://, unix://, socks://, ygg+tls:// or ygg+wss://."`
	Key     string  `help:"Accept only the node with this key."`
	Cost    float64 `help:"Multiplier on the link's cost, 0.01 to 1000."`
	Metered bool    `help:"The link costs money or battery."`
	Once    bool    `help:"Forget it when the node stops."`
}

func (c *peersAddCmd) Run(e *env) error {
	if err := config.CheckAnyURI(c.URI); err != nil {
		return usageError{err}
	}
	yggURI, isYgg := config.YggdrasilURI(c.URI)
	if isYgg && (c.Key != "" || c.Cost != 0 || c.Metered) {
		return usageError{errors.New("a peer in the Yggdrasil network takes its options in the URI: ?key=HEX, priority=, password=")}
	}
	if c.Cost != 0 && !(c.Cost >= 0.01 && c.Cost <= 1000) {
		return usageError{fmt.Errorf("cost %v is not allowed; allowed: 0.01 to 1000", c.Cost)}
	}
	req := api.PeerRequest{URI: c.URI, Cost: c.Cost, Metered: c.Metered, Save: !c.Once}
	if c.Key != "" {
		k, err := ident.ParsePublicKey(c.Key)
		if err != nil {
			return usageError{err}
		}
		req.Key = k
	}
	p, err := e.node().AddPeer(e.ctx, req)
	if errors.Is(err, &api.Error{Code: api.CodeNotRunning}) && !c.Once {
		err = e.change(func(a *config.Added) error {
			if isYgg {
				a.PutYggdrasil(yggURI)
			} else {
				a.Put(config.Peer{URI: c.URI, Key: req.Key, Cost: c.Cost, Metered: c.Metered})
			}
			return nil
		})
		if err == nil {
			e.tell("No node is running: %s holds from the next weft up.", c.URI)
		}
		p = api.Peer{URI: c.URI, Key: req.Key, State: "down", Source: "command", Multiplier: max(c.Cost, 0), Metered: c.Metered}
		if c.Cost == 0 {
			p.Multiplier = 1
		}
		if err == nil && !e.json {
			return nil
		}
	}
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(p)
	}
	e.say("Added %s. See how it goes with: weft peers", c.URI)
	return nil
}

type peersRmCmd struct {
	Peer string `arg:"" help:"URI, key or id."`
}

func (c *peersRmCmd) Run(e *env) error {
	err := e.node().RemovePeer(e.ctx, c.Peer)
	if errors.Is(err, &api.Error{Code: api.CodeNotRunning}) {
		err = e.change(func(a *config.Added) error {
			uri, _ := config.YggdrasilURI(c.Peer)
			if !a.Remove(c.Peer) && !a.RemoveYggdrasil(uri) {
				return api.Errorf(api.CodePeerUnknown, "no command added a peer %s", clean(c.Peer)).WithHint("peers in %s are removed there", e.paths.Config)
			}
			return nil
		})
	}
	if err != nil {
		return err
	}
	if !e.json {
		e.say("Removed %s.", clean(c.Peer))
	}
	return nil
}

// change alters what commands added while no node runs.
func (e *env) change(f func(*config.Added) error) error {
	a, err := config.LoadAdded(e.paths.State)
	if err != nil {
		return err
	}
	if err := f(&a); err != nil {
		return err
	}
	return a.Save(e.paths.State)
}

type inviteCmd struct {
	Peer    []string      `placeholder:"URI" help:"Where the guest reaches this network; without it, this node's own addresses."`
	Expires time.Duration `placeholder:"24h" help:"The link lapses after this time."`
	NoKey   bool          `help:"Leave the key of a closed network out."`
	NoQR    bool          `name:"no-qr" help:"Print the link only."`
}

func (c *inviteCmd) Run(e *env) error {
	for _, p := range c.Peer {
		if err := config.CheckURI(p, false); err != nil {
			return usageError{err}
		}
	}
	if c.Expires < 0 || c.Expires > 0 && c.Expires < time.Second {
		return usageError{errors.New("the link must hold for at least 1s")}
	}
	inv, err := e.node().Invite(e.ctx, api.InviteRequest{Peers: c.Peer, ExpiresS: int64(c.Expires.Seconds()), NoNetwork: c.NoKey})
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(inv)
	}
	if !c.NoQR {
		q, err := qrcode.New(inv.Link, qrcode.Low)
		if err != nil {
			return fmt.Errorf("draw the QR code: %w", err)
		}
		fmt.Fprint(e.out, q.ToSmallString(false))
	}
	e.say("%s", inv.Link)
	e.tell("")
	e.tell("The other device joins with: weft join LINK (or by scanning the code)")
	if inv.Community != "" {
		e.tell("The link holds the key of the closed network %s: give it to members only.", inv.Community)
	}
	if !inv.Expires.IsZero() {
		e.tell("It lapses on %s.", inv.Expires.Local().Format("2006-01-02 15:04"))
	}
	for _, w := range inv.Warnings {
		e.tell("Warning: %s", clean(w))
	}
	return nil
}

type joinCmd struct {
	Link string `arg:"" help:"weft://join/…"`
}

func (c *joinCmd) Run(e *env) error {
	j, err := e.node().Join(e.ctx, api.JoinRequest{Link: c.Link})
	running := true
	if errors.Is(err, &api.Error{Code: api.CodeNotRunning}) {
		running = false
		j, err = e.joinOffline(c.Link)
	}
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(j)
	}
	e.say("Joined %s by invitation of %s.", map[bool]string{true: "the open network", false: "the closed network " + j.Community}[j.Community == ""], who(j.Name, j.Inviter.ID().String()))
	for _, p := range j.Peers {
		e.say("Peer %s", hostOnly(p))
	}
	switch {
	case !running:
		e.say("Next: weft up")
	case j.Restart:
		e.say("Next: stop weft and start it again, so that the network's key takes effect.")
	default:
		e.say("Next: weft peers")
	}
	return nil
}

func (e *env) joinOffline(link string) (api.Joined, error) {
	cfg, err := e.config()
	if err != nil {
		return api.Joined{}, err
	}
	v, err := api.ParseInvitation(link, time.Now())
	if err != nil {
		return api.Joined{}, err
	}
	j := api.Joined{Inviter: v.Inviter, Name: v.Name, Peers: append([]string{}, v.Peers...)}
	if v.CommunityKey != ([32]byte{}) {
		j.Community = fmt.Sprintf("%x", ident.SharedKey(v.CommunityKey))
		if cfg.Closed() && cfg.Community.Key.Reveal() != v.CommunityKey {
			return j, api.Errorf(api.CodeInviteOther, "this node belongs to another closed network already").
				WithHint("for a second network run a second node: weft --state DIR join LINK; or take the key out of %s", e.paths.Config)
		}
	}
	for _, p := range v.Peers {
		if err := config.CheckURI(p, false); err != nil {
			return j, api.Errorf(api.CodeInviteInvalid, "the invitation names a peer that cannot be dialled: %v", err)
		}
	}
	return j, e.change(func(a *config.Added) error {
		if j.Community != "" {
			a.CommunityKey = config.Secret(v.CommunityKey)
		}
		for _, p := range v.Peers {
			a.Put(config.Peer{URI: p})
		}
		return nil
	})
}

// hostOnly drops what a person does not read in a URI.
func hostOnly(uri string) string {
	u, err := url.Parse(uri)
	if err != nil {
		return clean(uri)
	}
	return clean(strings.TrimSuffix(u.String(), "/"))
}
