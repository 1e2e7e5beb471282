package node

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/api"
	"weft/config"
	"weft/firewall"
	"weft/ident"
	"weft/link"
	"weft/wire"
)

var _ api.Backend = (*Node)(nil)

// Status implements api.Viewer.
func (n *Node) Status(ctx context.Context) (api.Status, error) {
	stats, lsdb := n.routing.stats()
	t := n.routing.table.Load()
	c, sc, fc := n.plane.Counts(), n.sessions.Counts(), n.firewall.Stats()
	s := api.Status{
		Version: api.Version(), Key: n.self, ID: n.self.ID().String(), Address: n.self.Addr(), Subnet: n.self.Subnet(),
		Name: n.cfg.Name, Role: string(n.cfg.Role), Metered: n.cfg.Metered, Community: n.communityName(),
		Mode: n.mode, MTU: n.device.MTU(), Listen: n.listening(), Portal: n.portal, SOCKS: n.socks, HTTP: n.http,
		Yggdrasil: n.yggState(), Started: n.started, UptimeS: int64(time.Since(n.started) / time.Second),
	}
	if n.mode == "tun" {
		s.TUN = n.device.Name()
	}
	seen, nat := n.links.Seen()
	for _, p := range seen {
		s.Seen = append(s.Seen, p.String())
	}
	s.NAT = nat
	s.Counters = api.Counters{
		Links: stats.Links, Nodes: len(lsdb), ForwardedPackets: c.Relayed, LocalRxPackets: c.Delivered, LocalTxPackets: c.Sent,
		Dropped: map[string]uint64{},
	}
	for range t.Routes() {
		s.Counters.Routes++
	}
	for name, v := range map[string]uint64{
		"no route": c.NoRoute, "ttl": c.TTLExpired, "way back": c.Bounced, "malformed": c.Malformed, "unknown link": c.UnknownLink,
		"false mac": c.BadMAC, "replayed": c.Replayed + sc.Replayed, "send error": c.SendErrors, "bad packet": sc.BadPacket,
		"firewall": sc.Filtered, "handshake": sc.HandshakesBad, "handshake queue": sc.QueueDrops, "too big": sc.TooBig,
		"unreachable": sc.Unreachable, "waited too long": sc.PendingDropped, "shed": c.Shed, "firewall malformed": fc.Malformed,
	} {
		if v > 0 {
			s.Counters.Dropped[name] = v
		}
	}
	for _, l := range n.links.Links() {
		st := l.Neighbour().Stats()
		s.Counters.RxPackets += st.RecvPackets
		s.Counters.RxBytes += st.RecvBytes
		s.Counters.TxPackets += st.SentPackets
		s.Counters.TxBytes += st.SentBytes
		for _, f := range l.Neighbour().Flows() {
			if f.Dest != n.self.ID() {
				s.Counters.ForwardedBytes += f.Bytes
			}
		}
	}
	for _, i := range n.sessions.Sessions() {
		x := api.Session{Key: i.Peer, ID: i.Peer.ID().String(), Address: i.Peer.Addr(), Name: n.routing.name(i.Peer.ID()), State: i.State,
			Cipher: i.Cipher, AgeS: int64(i.Age / time.Second), LastRxS: int64(i.Idle / time.Second), RxBytes: i.Recv.Bytes + i.OutsideRecv.Bytes, TxBytes: i.Sent.Bytes + i.OutsideSent.Bytes}
		if i.Recv.Packets+i.OutsideRecv.Packets == 0 {
			x.LastRxS = -1
		}
		if room, ok := n.routing.Room(i.Peer.ID()); ok {
			x.MTU = room
		}
		s.Sessions = append(s.Sessions, x)
	}
	if stats.DuplicateKey {
		s.Warnings = append(s.Warnings, "Another device uses this node's key, and both suffer. Give one of them a key of its own: stop it and move away its node.key.")
	}
	if stats.IDCollision {
		s.Warnings = append(s.Warnings, "Another key has the same short id. Make a new key for this node.")
	}
	if stats.SeqExhausted {
		s.Warnings = append(s.Warnings, "This node's sequence numbers have run out; it is silent until its last advertisement lapses.")
	}
	for _, r := range n.links.Refusals() {
		if time.Since(r.Time) < 10*time.Minute {
			s.Warnings = append(s.Warnings, fmt.Sprintf("No link with %s: %s", r.Endpoint, r.Reason))
		}
	}
	s.Warnings = append(s.Warnings, n.coop.warnings()...)
	var err error
	s.Internet, err = n.internet(ctx)
	return s, err
}

func (n *Node) communityName() string {
	if !n.cfg.Closed() {
		return ""
	}
	return communityID(ident.SharedKey(n.cfg.Community.Key.Reveal()))
}

func communityID(c ident.Community) string {
	if c == (ident.Community{}) {
		return ""
	}
	return fmt.Sprintf("%x", c[:])
}

// listening lists the URIs that are really bound.
func (n *Node) listening() (out []string) {
	for _, l := range n.links.Listeners() {
		scheme, rest, _ := strings.Cut(l.URI, "://")
		host, _, err := net.SplitHostPort(rest)
		if err != nil {
			out = append(out, l.URI)
			continue
		}
		out = append(out, fmt.Sprintf("%s://%s", scheme, net.JoinHostPort(host, fmt.Sprint(l.Port))))
	}
	return out
}

// Peers implements api.Viewer: the links there are, then the peers that were asked for and have none.
func (n *Node) Peers(context.Context) ([]api.Peer, error) {
	out := []api.Peer{}
	states := n.links.Peers()
	for _, l := range n.links.Links() {
		st := l.Neighbour().Stats()
		lossOut, lossIn := l.Loss()
		p := api.Peer{Key: l.Peer(), ID: l.Peer().ID().String(), Address: l.Peer().Addr(), Name: n.routing.name(l.Peer().ID()), State: "up",
			Source: "inbound", Endpoint: l.Endpoint(), RTTUs: l.RTT().Microseconds(), Loss: max(lossOut, lossIn), CostUs: l.Cost(), Multiplier: 1,
			Metered: l.Metered(), MTU: int(l.MTU()), Since: l.Since(), RxPackets: st.RecvPackets, RxBytes: st.RecvBytes,
			TxPackets: st.SentPackets, TxBytes: st.SentBytes}
		for _, h := range n.links.Heard() {
			if h.Key == l.Peer() {
				p.Source = "multicast"
			}
		}
		if l.Introduced() {
			p.Source = "introduced"
		}
		for _, s := range states {
			if s.Link == l.ID() {
				n.describe(&p, s)
			}
		}
		out = append(out, p)
	}
	for _, s := range states {
		if s.Link != 0 {
			continue
		}
		p := api.Peer{State: "connecting", Multiplier: 1, LastError: s.Error}
		if s.Error != "" {
			p.State = "down"
		}
		n.describe(&p, s)
		if !s.Key.IsZero() {
			p.Key, p.ID, p.Address = s.Key, s.Key.ID().String(), s.Key.Addr()
		}
		out = append(out, p)
	}
	out = append(out, n.yggPeers()...)
	slices.SortStableFunc(out, func(a, b api.Peer) int {
		return cmp.Or(cmp.Compare(b.State, a.State), cmp.Compare(a.URI, b.URI), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

func (n *Node) describe(p *api.Peer, s link.PeerStatus) {
	p.URI, p.Multiplier, p.Source = s.URI, float64(s.Multiplier)/1000, string(config.FromConfig)
	if !slices.ContainsFunc(n.cfg.Peers, func(c config.Peer) bool { return c.URI == s.URI && c.Source == config.FromConfig }) {
		p.Source = string(config.FromCommand)
	}
}

// Heard implements api.Viewer.
func (n *Node) Heard(context.Context) ([]api.Heard, error) {
	out := []api.Heard{}
	for _, h := range n.links.Heard() {
		x := api.Heard{Key: h.Key, ID: h.Key.ID().String(), Address: h.Key.Addr(), Endpoint: h.Endpoint, Interface: h.Interface, Member: h.Member, Linked: h.Linked,
			LastS: int64(time.Since(h.Last) / time.Second)}
		if h.Member {
			x.Community = n.communityName()
		}
		out = append(out, x)
	}
	return out, nil
}

// Routes implements api.Viewer.
func (n *Node) Routes(context.Context) ([]api.Route, error) {
	out := []api.Route{}
	t := n.routing.table.Load()
	n.routing.mu.Lock()
	links := map[uint32]ident.PublicKey{}
	for id, l := range n.routing.links {
		links[id] = l.Peer()
	}
	n.routing.mu.Unlock()
	id := func(l uint32) string {
		if k, ok := links[l]; ok {
			return k.ID().String()
		}
		return ""
	}
	for dest, v := range t.Nodes() {
		if dest == n.self.ID() {
			continue
		}
		r := api.Route{ID: dest.String(), Key: v.Key(), Address: v.Key().Addr(), Subnet: v.Key().Subnet(), Name: string(v.Extension(wire.ExtName))}
		if hop, ok := t.Route(dest); ok {
			r.NextHop, r.Alternate, r.CostUs, r.Price, r.MTU, r.Hops = id(hop.Link), id(hop.Alt), uint32(min(hop.Cost, 1<<32-1)), hop.Price, int(hop.MTU), int(hop.Hops)
			if k, ok := links[hop.Link]; ok {
				r.NextName = n.routing.name(k.ID())
			}
		} else {
			r.Unreachable = true
		}
		out = append(out, r)
	}
	return out, nil
}

// LSDB implements api.Viewer.
func (n *Node) LSDB(context.Context) ([]api.LSDBEntry, error) {
	_, list := n.routing.stats()
	byID := map[ident.NodeID]wire.LSAView{}
	for _, i := range list {
		byID[i.LSA.Key().ID()] = i.LSA
	}
	out := []api.LSDBEntry{}
	for _, i := range list {
		v := i.LSA
		e := api.LSDBEntry{Key: v.Key(), ID: v.Key().ID().String(), Address: v.Key().Addr(), Name: string(v.Extension(wire.ExtName)), Seq: v.Seq(),
			AgeS: int64(i.Age / time.Second), LifetimeS: int64(v.Lifetime()), Role: "router", Metered: v.Flags()&wire.FlagMetered != 0,
			Community: communityID(v.Community()), Price: v.Price(), Reachable: i.Reachable, Bytes: len(v), Neighbours: []api.LSDBNeighbour{}}
		if v.Flags()&wire.FlagLeaf != 0 {
			e.Role = "leaf"
		}
		if p := v.Extension(wire.ExtPosition); len(p) == 8 {
			e.Position = &api.Position{Lat: float64(int32(binary.BigEndian.Uint32(p))) / 1e7, Lon: float64(int32(binary.BigEndian.Uint32(p[4:]))) / 1e7}
		}
		e.Offer = lineOf(v)
		for k := range v.NumNeighbours() {
			a := v.Neighbour(k)
			other, known := byID[a.ID]
			two := false
			if known {
				for j := range other.NumNeighbours() {
					two = two || other.Neighbour(j).ID == v.Key().ID()
				}
			}
			e.Neighbours = append(e.Neighbours, api.LSDBNeighbour{ID: a.ID.String(), Name: n.routing.name(a.ID), CostUs: a.Cost, MTU: int(a.MTU),
				Metered: a.Flags&wire.AdjMetered != 0, TwoWay: two})
		}
		out = append(out, e)
	}
	return out, nil
}

// Events implements api.Viewer.
func (n *Node) Events(ctx context.Context) iter.Seq2[api.Event, error] { return n.hub.Events(ctx) }

// find returns the node that somebody means.
func (n *Node) find(target string) (ident.PublicKey, error) {
	if key, ok, err := n.coop.findNamed(context.Background(), target); ok { // it waits for two seconds at most
		return key, err
	}
	t, err := api.ParseTarget(target)
	if err != nil {
		return ident.PublicKey{}, err
	}
	unknown := api.Errorf(api.CodeTargetUnknown, "no node %q is known here", target).WithHint("weft routes lists the nodes that can be reached")
	table := n.routing.table.Load()
	switch {
	case !t.Key.IsZero():
		return t.Key, nil
	case t.Addr.IsValid():
		if t.Addr == n.self.Addr() || n.self.Subnet().Contains(t.Addr) {
			return n.self, nil
		}
		if k, ok := table.ByAddr(t.Addr); ok {
			return k, nil
		}
	case t.ID != 0:
		if v, ok := table.Node(t.ID); ok {
			return v.Key(), nil
		}
		if t.ID == n.self.ID() {
			return n.self, nil
		}
	default:
		var found []ident.PublicKey
		for _, v := range table.Nodes() {
			if strings.EqualFold(string(v.Extension(wire.ExtName)), t.Name) {
				found = append(found, v.Key())
			}
		}
		if len(found) == 1 {
			return found[0], nil
		}
		if len(found) > 1 {
			return ident.PublicKey{}, api.Errorf(api.CodeTargetAmbiguous, "%d nodes are called %q", len(found), t.Name).WithHint("use the address: weft routes shows it")
		}
	}
	return ident.PublicKey{}, unknown
}

// Ping implements api.Prober: echoes inside the end-to-end session.
func (n *Node) Ping(ctx context.Context, req api.PingRequest) iter.Seq2[api.PingReply, error] {
	return func(yield func(api.PingReply, error) bool) {
		key, err := n.find(req.Target)
		if err != nil {
			yield(api.PingReply{}, err)
			return
		}
		every := time.Duration(cmp.Or(req.IntervalMs, 1000)) * time.Millisecond
		for i := 1; req.Count == 0 || i <= req.Count; i++ {
			begun := time.Now()
			r := api.PingReply{Seq: i, Address: key.Addr(), Name: n.routing.name(key.ID()), Bytes: 16}
			wait, cancel := context.WithTimeout(ctx, max(every, 2*time.Second))
			rtt, err := n.sessions.Ping(wait, key)
			cancel()
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				r.Lost, r.Error = true, "no answer"
				if _, ok := n.routing.Room(key.ID()); !ok && key != n.self {
					r.Error = "no route to this node"
				}
			} else {
				r.RTTUs = max(rtt.Microseconds(), 1)
			}
			if !yield(r, nil) {
				return
			}
			if i == req.Count {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(every - time.Since(begun)):
			}
		}
	}
}

// Trace implements api.Prober: the path from the link-state database, each node on it pinged.
func (n *Node) Trace(ctx context.Context, target string) ([]api.TraceHop, error) {
	key, err := n.find(target)
	if err != nil {
		return nil, err
	}
	t := n.routing.table.Load()
	out := []api.TraceHop{{ID: n.self.ID().String(), Key: n.self, Address: n.self.Addr(), Name: n.cfg.Name, Price: uint64(n.cfg.Route.Price)}}
	if key == n.self {
		return out, nil
	}
	path := t.Path(key.ID())
	if path == nil {
		return nil, api.Errorf(api.CodeTargetUnreachable, "there is no path to %s", n.routing.nameOf(key)).WithHint("weft peers shows which links are up")
	}
	for _, p := range path {
		v, ok := t.Node(p.ID)
		if !ok {
			continue
		}
		out = append(out, api.TraceHop{ID: p.ID.String(), Key: v.Key(), Address: v.Key().Addr(), Name: string(v.Extension(wire.ExtName)),
			CostUs: uint32(min(p.Cost, 1<<32-1)), Price: uint64(p.Price), Offer: lineOf(v)})
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for i := range out[1:] {
		h := &out[1+i]
		wg.Go(func() {
			if _, err := n.sessions.Ping(ctx, h.Key); err != nil { // opens the session
				return
			}
			if rtt, err := n.sessions.Ping(ctx, h.Key); err == nil {
				h.RTTUs = max(rtt.Microseconds(), 1)
			}
		})
	}
	wg.Wait()
	return out, nil
}

// AddPeer implements api.Peering.
func (n *Node) AddPeer(ctx context.Context, req api.PeerRequest) (api.Peer, error) {
	if uri, ok := config.YggdrasilURI(req.URI); ok {
		n.mu.Lock()
		defer n.mu.Unlock()
		if err := n.addYggPeerLocked(uri, req.Save); err != nil {
			return api.Peer{}, err
		}
		return api.Peer{URI: withoutOptions(uri), State: "connecting", Source: "yggdrasil", Multiplier: 1}, nil
	}
	if err := config.CheckURI(req.URI, false); err != nil {
		return api.Peer{}, api.Errorf(api.CodeBadURI, "%v", err).WithHint("for example: weft peers add udp://192.0.2.7:7117")
	}
	p := config.Peer{URI: req.URI, Key: req.Key, Cost: req.Cost, Metered: req.Metered, Source: config.FromCommand}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.addPeerLocked(p, req.Save); err != nil {
		return api.Peer{}, err
	}
	return api.Peer{URI: p.URI, Key: p.Key, State: "connecting", Source: string(p.Source), Multiplier: float64(p.Multiplier()) / 1000, Metered: p.Metered}, nil
}

func (n *Node) addPeerLocked(p config.Peer, save bool) error {
	if slices.ContainsFunc(n.links.Peers(), func(s link.PeerStatus) bool { return s.URI == p.URI }) {
		return api.Errorf(api.CodePeerExists, "%s is a peer already", p.URI).WithHint("weft peers shows how it does")
	}
	if err := n.links.AddPeer(linkPeer(p)); err != nil {
		return api.Errorf(api.CodeBadURI, "%v", err)
	}
	if save {
		n.added.Put(p)
		if err := n.added.Save(n.opt.StateDir); err != nil {
			return fmt.Errorf("the peer is dialled, but not kept for the next start: %w", err)
		}
	}
	n.hub.Publish(api.Event{Kind: api.EventPeers, Text: "peer added: " + p.URI})
	return nil
}

// RemovePeer implements api.Peering.
func (n *Node) RemovePeer(ctx context.Context, peer string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var uri string
	for _, s := range n.links.Peers() {
		if s.URI == peer || !s.Key.IsZero() && (s.Key.String() == peer || s.Key.ID().String() == peer || s.Key.Addr().String() == peer) {
			uri = s.URI
		}
	}
	if uri == "" {
		if known, err := n.removeYggPeerLocked(peer); known {
			return err
		}
		for _, l := range n.links.Links() {
			if k := l.Peer(); k.String() == peer || k.ID().String() == peer || k.Addr().String() == peer {
				l.Close("removed by the owner")
				return nil
			}
		}
		return api.Errorf(api.CodePeerUnknown, "there is no peer %q", peer).WithHint("weft peers lists them")
	}
	if err := n.links.RemovePeer(uri); err != nil {
		return err
	}
	if n.added.Remove(uri) {
		if err := n.added.Save(n.opt.StateDir); err != nil {
			return err
		}
	}
	n.hub.Publish(api.Event{Kind: api.EventPeers, Text: "peer removed: " + uri})
	if slices.ContainsFunc(n.cfg.Peers, func(c config.Peer) bool { return c.URI == uri && c.Source == config.FromConfig }) {
		return api.Errorf(api.CodePeerFixed, "%s is gone until the next start: it stands in the config file", uri).WithHint("take its [[peer]] out of the file as well")
	}
	return nil
}

// Invite implements api.Peering.
func (n *Node) Invite(_ context.Context, req api.InviteRequest) (api.Invite, error) {
	v := api.Invitation{Inviter: n.self, Name: n.cfg.Name, Peers: req.Peers}
	out := api.Invite{}
	if req.ExpiresS > 0 {
		v.Expires = time.Now().Add(time.Duration(req.ExpiresS) * time.Second).Truncate(time.Second)
		out.Expires = v.Expires
	}
	if len(v.Peers) == 0 {
		v.Peers = n.reachableAt()
	}
	if len(v.Peers) > api.MaxInvitePeers {
		v.Peers = v.Peers[:api.MaxInvitePeers]
	}
	for _, p := range v.Peers {
		if err := config.CheckURI(p, false); err != nil {
			return api.Invite{}, api.Errorf(api.CodeBadURI, "%v", err)
		}
	}
	if len(v.Peers) == 0 {
		out.Warnings = append(out.Warnings, "This node has no address that others could dial: the link works only on the same local network. Name one with --peer.")
	} else if len(req.Peers) == 0 && !slices.ContainsFunc(v.Peers, isPublic) {
		out.Warnings = append(out.Warnings, "All addresses in the link are private: it works only in the same local network. Name a public one with --peer.")
	}
	if n.cfg.Closed() && !req.NoNetwork {
		v.CommunityKey = n.cfg.Community.Key.Reveal()
		out.Community = n.communityName()
	}
	var err error
	out.Peers = append([]string{}, v.Peers...)
	out.Link, err = v.Link(func(msg []byte) ident.Signature { return n.agent.Sign(ident.DomainInvite, msg) })
	return out, err
}

// reachableAt guesses URIs at which others can dial this node, public ones first.
func (n *Node) reachableAt() (out []string) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, u := range n.listening() {
		scheme, rest, _ := strings.Cut(u, "://")
		ap, err := netip.ParseAddrPort(rest)
		if err != nil {
			continue
		}
		if !ap.Addr().IsUnspecified() {
			out = append(out, u)
			continue
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			ip := p.Addr().Unmap()
			if err != nil || ip.IsLoopback() || ip.IsLinkLocalUnicast() || ident.MeshPrefix.Contains(ip) {
				continue
			}
			out = append(out, fmt.Sprintf("%s://%s", scheme, netip.AddrPortFrom(ip, ap.Port())))
		}
	}
	slices.SortStableFunc(out, func(a, b string) int {
		switch pa, pb := isPublic(a), isPublic(b); {
		case pa == pb:
			return 0
		case pa:
			return -1
		}
		return 1
	})
	return out
}

func isPublic(uri string) bool {
	_, rest, _ := strings.Cut(uri, "://")
	ap, err := netip.ParseAddrPort(rest)
	return err != nil || !ap.Addr().IsPrivate() && !ap.Addr().IsLoopback() && ap.Addr().IsGlobalUnicast()
}

// Join implements api.Peering.
func (n *Node) Join(_ context.Context, req api.JoinRequest) (api.Joined, error) {
	v, err := api.ParseInvitation(req.Link, time.Now())
	if err != nil {
		return api.Joined{}, err
	}
	out := api.Joined{Inviter: v.Inviter, Name: v.Name, Peers: []string{}}
	own := n.cfg.Community.Key.Reveal()
	if v.CommunityKey != own {
		if n.cfg.Closed() {
			return out, api.Errorf(api.CodeInviteOther, "the invitation is for another network than this node's").WithHint("use another --state directory for the other network")
		}
		out.Restart = true
	}
	out.Community = communityID(ident.SharedKey(v.CommunityKey))
	n.mu.Lock()
	defer n.mu.Unlock()
	if out.Restart {
		n.added.CommunityKey = config.Secret(v.CommunityKey)
	}
	for _, uri := range v.Peers {
		p := config.Peer{URI: uri, Source: config.FromCommand}
		if out.Restart { // dialled after the restart, with the network's key
			n.added.Put(p)
		} else if err := n.addPeerLocked(p, true); err != nil && !errors.Is(err, &api.Error{Code: api.CodePeerExists}) {
			return out, err
		}
		out.Peers = append(out.Peers, uri)
	}
	return out, n.added.Save(n.opt.StateDir)
}

// Firewall implements api.Gatekeeper.
func (n *Node) Firewall(context.Context) (api.Firewall, error) {
	out := api.Firewall{Rules: []api.FirewallRule{}, Groups: n.firewall.Rules().Groups, Counts: map[string]uint64{}}
	for _, r := range n.firewall.InForce() {
		out.Rules = append(out.Rules, api.FirewallRule{Rule: r.Rule.String(), App: r.App, Hits: r.Hits})
	}
	s := n.firewall.Stats()
	for name, v := range map[string]uint64{"passed": s.Passed, "closed": s.Closed, "blocked": s.Blocked, "malformed": s.Malformed,
		"unsolicited": s.Unsolicited, "fragments": s.Fragments, "misdirected": s.Misdirected} {
		out.Counts[name] = v
	}
	return out, nil
}

// SetFirewall implements api.Gatekeeper.
func (n *Node) SetFirewall(ctx context.Context, req api.FirewallRequest) (api.Firewall, error) {
	rules := firewall.Rules{Groups: req.Groups}
	for _, s := range req.Rules {
		r, err := firewall.ParseRule(s)
		if err != nil {
			return api.Firewall{}, api.Errorf(api.CodeBadRule, "%v", err)
		}
		rules.List = append(rules.List, r)
	}
	if err := n.firewall.SetRules(rules); err != nil {
		return api.Firewall{}, api.Errorf(api.CodeBadRule, "%v", err)
	}
	n.hub.Publish(api.Event{Kind: api.EventFirewall, Text: "firewall rules changed"})
	return n.Firewall(ctx)
}
