//go:build !no_ygg

package ygg

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/yggdrasil-network/yggdrasil-go/src/admin"
)

// TestAdmin talks to the socket as yggdrasilctl does: it writes a request with the library's types and reads an answer.
func TestAdmin(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "ygg.sock")
	t.Cleanup(func() { // the last thing: the node has ended
		if _, err := os.Lstat(filepath.Dir(path)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the folder that was made for the socket is still there: %v", err)
		}
	})
	s := startStock(t)
	uri := s.listen(t, "tcp://127.0.0.1:0")
	n := begin(t, func(c *Config) { c.Admin = "unix://" + path })
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in, out := json.NewDecoder(conn), json.NewEncoder(conn)
	ask := func(name string, args, res any) (fail string) {
		t.Helper()
		b, err := json.Marshal(args)
		if err != nil {
			t.Fatal(err)
		}
		if err := out.Encode(&admin.AdminSocketRequest{Name: name, Arguments: b, KeepAlive: true}); err != nil {
			t.Fatal(err)
		}
		var r admin.AdminSocketResponse
		if err := in.Decode(&r); err != nil {
			t.Fatal(err)
		}
		if r.Request.Name != name {
			t.Errorf("asked %s, the answer is to %s", name, r.Request.Name)
		}
		if r.Status == "error" {
			return r.Error
		}
		if err := json.Unmarshal(r.Response, res); err != nil || r.Status != "success" {
			t.Fatalf("%s: %s, %v: %s", name, r.Status, err, r.Response)
		}
		return ""
	}
	none := map[string]string{}
	var list admin.ListResponse
	ask("list", none, &list)
	for _, want := range []string{"list", "getself", "getpeers", "getsessions", "gettree", "getpaths", "addpeer", "removepeer", "getnodeinfo", "gettun", "getmulticastinterfaces"} {
		found := false
		for _, e := range list.List {
			found = found || e.Command == want
		}
		if !found {
			t.Errorf("%s is not offered", want)
		}
	}
	var self admin.GetSelfResponse
	ask("getSelf", none, &self)
	if self.IPAddress != n.addr.String() || self.PublicKey != n.self.String() || self.Subnet != n.self.Subnet().String() {
		t.Errorf("self: %+v", self)
	}
	if fail := ask("addPeer", admin.AddPeerRequest{Uri: uri}, &admin.AddPeerResponse{}); fail != "" {
		t.Fatal(fail)
	}
	if fail := ask("addPeer", admin.AddPeerRequest{Uri: uri}, &admin.AddPeerResponse{}); !strings.Contains(fail, "already") {
		t.Errorf("adding it twice: %q", fail)
	}
	var peers admin.GetPeersResponse
	eventually(t, "the peer is up", func() bool {
		ask("getPeers", none, &peers)
		return len(peers.Peers) == 1 && peers.Peers[0].PublicKey == s.self.String()
	})
	if p := peers.Peers[0]; !p.Up || p.Inbound || p.URI != uri || p.IPAddress != s.self.Addr().String() {
		t.Errorf("peer: %+v", p)
	}
	var tree admin.GetTreeResponse
	eventually(t, "the tree has both", func() bool { ask("getTree", none, &tree); return len(tree.Tree) == 2 })
	ask("getPaths", none, &admin.GetPathsResponse{})
	ask("getSessions", none, &admin.GetSessionsResponse{})
	if fail := ask("removePeer", admin.RemovePeerRequest{Uri: uri}, &admin.RemovePeerResponse{}); fail != "" {
		t.Error(fail)
	}
	if fail := ask("removePeer", admin.RemovePeerRequest{Uri: uri}, &admin.RemovePeerResponse{}); !strings.Contains(fail, "no peer") {
		t.Errorf("removing it twice: %q", fail)
	}
	// One peer by two interfaces is two links; one of them can go, or both.
	dead := "tcp://127.0.0.1:9"
	for _, dev := range []string{"", "lo"} {
		if fail := ask("addPeer", admin.AddPeerRequest{Uri: dead, Sintf: dev}, &admin.AddPeerResponse{}); fail != "" {
			t.Fatal(fail)
		}
	}
	for _, c := range []struct {
		dev  string
		left int
	}{{"lo", 1}, {"", 0}} {
		if fail := ask("removePeer", admin.RemovePeerRequest{Uri: dead, Sintf: c.dev}, &admin.RemovePeerResponse{}); fail != "" {
			t.Error(fail)
		}
		eventually(t, "the link is gone", func() bool { ask("getPeers", none, &peers); return len(peers.Peers) == c.left })
	}
	for _, dev := range []string{"", "lo"} {
		ask("addPeer", admin.AddPeerRequest{Uri: dead, Sintf: dev}, &admin.AddPeerResponse{})
	}
	if err := n.RemovePeer(dead); err != nil {
		t.Error(err)
	}
	eventually(t, "both links are gone", func() bool { ask("getPeers", none, &peers); return len(peers.Peers) == 0 })
	var tun struct {
		Enabled bool
		Name    string
		MTU     int
	}
	ask("getTUN", none, &tun)
	if !tun.Enabled || tun.Name != n.cfg.Device.Name() || tun.MTU != n.cfg.Device.MTU() {
		t.Errorf("interface: %+v", tun)
	}
	var groups struct {
		Interfaces []any `json:"multicast_interfaces"`
	}
	ask("getMulticastInterfaces", none, &groups)
	if groups.Interfaces == nil || len(groups.Interfaces) != 0 {
		t.Errorf("discovery is off, and the interfaces are %v", groups.Interfaces)
	}
	if fail := ask("dance", none, &none); !strings.Contains(fail, "unknown action") {
		t.Errorf("an unknown request: %q", fail)
	}

	// What is no request is answered and the connection shut; so is one after which the client wants no more.
	for _, say := range []string{"nonsense\n", `{"request":"getself"}`, `{"request":"` + strings.Repeat("x", maxAdminRequest) + `"}`} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(c, say)
		var r admin.AdminSocketResponse
		d := json.NewDecoder(bufio.NewReader(c))
		if err := d.Decode(&r); err == nil {
			if err := d.Decode(&r); err == nil {
				t.Error("a second answer")
			}
		}
		c.Close()
	}
}

// TestNoAdmin: a place where no socket can be keeps no node from the network.
func TestNoAdmin(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for _, at := range []string{"tcp://" + busy.Addr().String(), "unix:///proc/ygg.sock", "unix://" + filepath.Join(t.TempDir(), "a", "b", "ygg.sock")} {
		if n := begin(t, func(c *Config) { c.Admin = at }); n.admin != nil {
			t.Errorf("there is a socket at %s", at)
		}
	}
}
