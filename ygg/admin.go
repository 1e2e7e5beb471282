//go:build !no_ygg

package ygg

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/yggdrasil-network/yggdrasil-go/src/admin"
	"github.com/yggdrasil-network/yggdrasil-go/src/core"
	"github.com/yggdrasil-network/yggdrasil-go/src/multicast"

	"weft/ident"
)

// The admin socket speaks yggdrasilctl's protocol with the library's own types. Its server is ours: the library's ends the
// process when it cannot listen, and waits for none of its goroutines.

const (
	maxAdminConns   = 32
	maxAdminRequest = 64 << 10
	adminIdle       = 5 * time.Minute
)

// listenAdmin opens the socket; whoever may open it may change the plane's peers. A folder that is missing is made, and goes with
// the socket: Yggdrasil's own service takes /run/yggdrasil with it when it ends.
func listenAdmin(at string) (net.Listener, error) {
	fail := func(err error) (net.Listener, error) {
		return nil, fmt.Errorf("yggdrasil: admin socket %s: %w (choose another in [yggdrasil] admin)", at, err)
	}
	u, err := url.Parse(at)
	if err != nil {
		return fail(err)
	}
	if u.Scheme == "tcp" {
		ln, err := net.Listen("tcp", u.Host)
		if err != nil {
			return fail(err)
		}
		return ln, nil
	}
	if err := freeSocket(u.Path); err != nil {
		return fail(err)
	}
	dir := filepath.Dir(u.Path)
	made := os.Mkdir(dir, 0o755) == nil
	ln, err := net.Listen("unix", u.Path)
	if err != nil {
		if made {
			os.Remove(dir)
		}
		return fail(err)
	}
	if made {
		ln = &withFolder{ln, dir}
	}
	if err := os.Chmod(u.Path, 0o660); err != nil {
		ln.Close()
		return fail(err)
	}
	return ln, nil
}

// withFolder is a listener on a socket in a folder of its own.
type withFolder struct {
	net.Listener
	dir string
}

// Close removes the folder, too, unless there is something else in it.
func (l *withFolder) Close() error {
	err := l.Listener.Close()
	os.Remove(l.dir)
	return err
}

// freeSocket removes the socket that a run left which was killed; one that somebody answers at it leaves alone.
func freeSocket(path string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return nil
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return errors.New("somebody answers there already")
	}
	return os.Remove(path)
}

type adminHandler struct {
	desc   string
	fields []string
	call   core.AddHandlerFunc
}

// adminAPI is what the socket offers, by name in lower case.
type adminAPI map[string]adminHandler

// AddHandler implements core.AddHandler, by which the core adds what it alone knows.
func (a adminAPI) AddHandler(name, desc string, fields []string, call core.AddHandlerFunc) error {
	a[strings.ToLower(name)] = adminHandler{desc, fields, call}
	return nil
}

// on adds a handler with typed arguments.
func on[Req, Res any](a adminAPI, name, desc string, fields []string, call func(*Req) (Res, error)) {
	_ = a.AddHandler(name, desc, fields, func(in json.RawMessage) (any, error) {
		var req Req
		if err := json.Unmarshal(in, &req); err != nil {
			return nil, err
		}
		return call(&req)
	})
}

func (p *Plane) adminAPI() (adminAPI, error) {
	a := adminAPI{}
	c := p.core
	addr := func(key []byte) string {
		if len(key) != len(ident.PublicKey{}) {
			return ""
		}
		return ident.PublicKey(key).Addr().String()
	}
	on(a, "list", "List available commands", nil, func(*struct{}) (*admin.ListResponse, error) {
		res := &admin.ListResponse{}
		for name, h := range a {
			res.List = append(res.List, admin.ListEntry{Command: name, Description: h.desc, Fields: h.fields})
		}
		slices.SortFunc(res.List, func(x, y admin.ListEntry) int { return cmp.Compare(x.Command, y.Command) })
		return res, nil
	})
	on(a, "getSelf", "Show details about this node", nil, func(*admin.GetSelfRequest) (*admin.GetSelfResponse, error) {
		s := c.GetSelf()
		return &admin.GetSelfResponse{BuildName: "weft", BuildVersion: "0.5.14", PublicKey: hex.EncodeToString(s.Key), IPAddress: p.self.Addr().String(),
			Subnet: p.self.Subnet().String(), RoutingEntries: s.RoutingEntries}, nil
	})
	on(a, "getPeers", "Show directly connected peers", []string{"sort"}, func(req *admin.GetPeersRequest) (*admin.GetPeersResponse, error) {
		res := &admin.GetPeersResponse{Peers: []admin.PeerEntry{}}
		for _, x := range c.GetPeers() {
			e := admin.PeerEntry{URI: x.URI, Up: x.Up, Inbound: x.Inbound, IPAddress: addr(x.Key), PublicKey: hex.EncodeToString(x.Key), Port: x.Port,
				Priority: uint64(x.Priority), Cost: x.Cost, RXBytes: admin.DataUnit(x.RXBytes), TXBytes: admin.DataUnit(x.TXBytes),
				RXRate: admin.DataUnit(x.RXRate), TXRate: admin.DataUnit(x.TXRate), Uptime: x.Uptime.Seconds(), Latency: max(x.Latency, 0)}
			if x.LastError != nil {
				e.LastError, e.LastErrorTime = x.LastError.Error(), time.Since(x.LastErrorTime)
			}
			res.Peers = append(res.Peers, e)
		}
		for _, x := range p.Peers() {
			if x.Carried { // the core does not count these among its links
				res.Peers = append(res.Peers, admin.PeerEntry{URI: x.URI, Up: x.Up, Inbound: x.Inbound, IPAddress: addr(x.Key[:]), PublicKey: x.Key.String(),
					Priority: carriedPriority, RXBytes: admin.DataUnit(x.Rx), TXBytes: admin.DataUnit(x.Tx), Uptime: x.Uptime.Seconds()})
			}
		}
		slices.SortStableFunc(res.Peers, func(x, y admin.PeerEntry) int {
			by := 0
			switch strings.ToLower(req.SortBy) {
			case "uptime":
				by = cmp.Compare(x.Uptime, y.Uptime)
			case "cost":
				by = cmp.Compare(x.Cost, y.Cost)
			}
			return cmp.Or(by, cmp.Compare(x.URI, y.URI))
		})
		return res, nil
	})
	on(a, "getTree", "Show known Tree entries", nil, func(*admin.GetTreeRequest) (*admin.GetTreeResponse, error) {
		res := &admin.GetTreeResponse{Tree: []admin.TreeEntry{}}
		for _, x := range c.GetTree() {
			res.Tree = append(res.Tree, admin.TreeEntry{IPAddress: addr(x.Key), PublicKey: hex.EncodeToString(x.Key), Parent: hex.EncodeToString(x.Parent), Sequence: x.Sequence})
		}
		slices.SortFunc(res.Tree, func(x, y admin.TreeEntry) int { return cmp.Compare(x.PublicKey, y.PublicKey) })
		return res, nil
	})
	on(a, "getPaths", "Show established paths through this node", nil, func(*admin.GetPathsRequest) (*admin.GetPathsResponse, error) {
		res := &admin.GetPathsResponse{Paths: []admin.PathEntry{}}
		for _, x := range c.GetPaths() {
			res.Paths = append(res.Paths, admin.PathEntry{IPAddress: addr(x.Key), PublicKey: hex.EncodeToString(x.Key), Path: x.Path, Sequence: x.Sequence})
		}
		slices.SortFunc(res.Paths, func(x, y admin.PathEntry) int { return cmp.Compare(x.PublicKey, y.PublicKey) })
		return res, nil
	})
	on(a, "getSessions", "Show established traffic sessions with remote nodes", nil, func(*admin.GetSessionsRequest) (*admin.GetSessionsResponse, error) {
		res := &admin.GetSessionsResponse{Sessions: []admin.SessionEntry{}}
		for _, x := range c.GetSessions() {
			res.Sessions = append(res.Sessions, admin.SessionEntry{IPAddress: addr(x.Key), PublicKey: hex.EncodeToString(x.Key),
				RXBytes: admin.DataUnit(x.RXBytes), TXBytes: admin.DataUnit(x.TXBytes), Uptime: x.Uptime.Seconds()})
		}
		slices.SortFunc(res.Sessions, func(x, y admin.SessionEntry) int { return cmp.Compare(x.PublicKey, y.PublicKey) })
		return res, nil
	})
	on(a, "addPeer", "Add a peer to the peer list", []string{"uri", "interface"}, func(req *admin.AddPeerRequest) (*admin.AddPeerResponse, error) {
		return &admin.AddPeerResponse{}, p.AddPeer(withInterface(req.Uri, req.Sintf))
	})
	on(a, "removePeer", "Remove a peer from the peer list", []string{"uri", "interface"}, func(req *admin.RemovePeerRequest) (*admin.RemovePeerResponse, error) {
		return &admin.RemovePeerResponse{}, p.RemovePeer(withInterface(req.Uri, req.Sintf))
	})
	type tunState struct {
		Enabled bool   `json:"enabled"`
		Name    string `json:"name,omitempty"`
		MTU     int    `json:"mtu,omitempty"`
	}
	on(a, "getTUN", "Show information about the node's TUN interface", nil, func(*struct{}) (tunState, error) {
		return tunState{true, p.cfg.Device.Name(), p.cfg.Device.MTU()}, nil
	})
	type multicastStates struct {
		Interfaces []multicast.MulticastInterfaceState `json:"multicast_interfaces"`
	}
	on(a, "getMulticastInterfaces", "Show which interfaces multicast is enabled on", nil, func(*struct{}) (multicastStates, error) {
		return multicastStates{p.multicastStates()}, nil
	})
	return a, c.SetAdmin(a)
}

// multicastStates lists the interfaces that nodes are looked for on, each as the first group that matches it says.
func (p *Plane) multicastStates() []multicast.MulticastInterfaceState {
	out := []multicast.MulticastInterfaceState{}
	if p.multi == nil {
		return out
	}
	for name := range p.multi.Interfaces() {
		for _, m := range p.cfg.Multicast {
			if ok, err := regexp.MatchString(m.Regex, name); ok && err == nil && (m.Beacon || m.Listen) {
				out = append(out, multicast.MulticastInterfaceState{Name: name, Beacon: m.Beacon, Listen: m.Listen, Password: m.Password != ""})
				break
			}
		}
	}
	slices.SortFunc(out, func(x, y multicast.MulticastInterfaceState) int { return cmp.Compare(x.Name, y.Name) })
	return out
}

// withInterface writes the interface to dial from into a URI.
func withInterface(uri, dev string) string {
	if dev == "" {
		return uri
	}
	sep := "?"
	if strings.Contains(uri, "?") {
		sep = "&"
	}
	return uri + sep + "interface=" + url.QueryEscape(dev)
}

// serveAdmin answers until ctx ends, and then waits for what it started.
func (p *Plane) serveAdmin(ctx context.Context) error {
	api, err := p.adminAPI()
	if err != nil {
		return fmt.Errorf("yggdrasil: admin socket: %w", err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxAdminConns)
	for {
		conn, err := p.admin.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("yggdrasil: admin socket: %w", err)
			}
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			api.serve(conn)
		})
	}
}

// serve answers the requests of one connection.
func (a adminAPI) serve(conn net.Conn) {
	limit := &io.LimitedReader{R: conn}
	in, out := json.NewDecoder(limit), json.NewEncoder(conn)
	out.SetIndent("", "  ")
	for {
		limit.N = maxAdminRequest
		conn.SetDeadline(time.Now().Add(adminIdle))
		req := admin.AdminSocketRequest{Arguments: json.RawMessage("{}")}
		res := admin.AdminSocketResponse{Status: "success"}
		var err error
		var body any
		if derr := in.Decode(&req); derr != nil {
			if errors.Is(derr, io.EOF) || errors.Is(derr, net.ErrClosed) {
				return
			}
			err, req.KeepAlive = errors.New("failed to read the request"), false
		} else if h, ok := a[strings.ToLower(req.Name)]; !ok {
			err = fmt.Errorf("unknown action '%s', try 'list' for help", req.Name)
		} else {
			body, err = h.call(req.Arguments)
		}
		res.Request = req
		if err == nil {
			res.Response, err = json.Marshal(body)
		}
		if err != nil {
			res.Status, res.Error, res.Response = "error", err.Error(), nil
		}
		if out.Encode(res) != nil || !req.KeepAlive {
			return
		}
	}
}
