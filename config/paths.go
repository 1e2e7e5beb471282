package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/pelletier/go-toml/v2"
)

// Names of files in the state directory.
const (
	FileName   = "weft.toml"
	socketName = "weft.sock"
	addedName  = "added.toml"
)

// SystemState is the state directory of a node that root runs.
const SystemState = "/var/lib/weft"

// Paths are where a node's files lie.
type Paths struct {
	State  string // directory: key, what commands added, socket
	Config string // file
	Chosen bool   // the config file was named by the user and must exist
}

// FindPaths returns where files lie: the directory and the file that the user
// named, where that is not empty, or else the custom of the system. A node with
// a state directory of its own has its config there too.
func FindPaths(state, file string) (Paths, error) {
	p := Paths{State: state, Config: file, Chosen: file != ""}
	if state == "" {
		dir, conf, err := customary()
		if err != nil {
			return p, err
		}
		p.State = dir
		if file == "" {
			p.Config = conf
		}
	} else if file == "" {
		p.Config = filepath.Join(state, FileName)
	}
	var err error
	if p.State, err = filepath.Abs(p.State); err != nil {
		return p, fmt.Errorf("find the state directory: %w", err)
	}
	return p, nil
}

func customary() (state, file string, err error) {
	if os.Geteuid() == 0 {
		return SystemState, "/etc/weft/" + FileName, nil
	}
	if runtime.GOOS == "windows" || runtime.GOOS == "darwin" || runtime.GOOS == "ios" {
		dir, err := os.UserConfigDir()
		if err != nil {
			return "", "", fmt.Errorf("find a place for the node's files: %w; name one with --state DIR", err)
		}
		return filepath.Join(dir, "weft"), filepath.Join(dir, "weft", FileName), nil
	}
	home, err := os.UserHomeDir()
	xdg := func(env, fallback string) string {
		if d := os.Getenv(env); filepath.IsAbs(d) { // relative ones are to be ignored, says the XDG specification
			return d
		}
		return filepath.Join(home, fallback)
	}
	state, file = xdg("XDG_STATE_HOME", ".local/state"), xdg("XDG_CONFIG_HOME", ".config")
	if err != nil && (!filepath.IsAbs(state) || !filepath.IsAbs(file)) {
		return "", "", fmt.Errorf("find a place for the node's files: %w; name one with --state DIR", err)
	}
	return filepath.Join(state, "weft"), filepath.Join(file, "weft", FileName), nil
}

// Socket returns the path of the node's socket.
func (c *Config) Socket(state string) string {
	if c.API.Socket != "" {
		return c.API.Socket
	}
	return filepath.Join(state, socketName)
}

// Added is what commands have added: it lies in the state directory, so that
// the owner's own file keeps its comments and its order.
type Added struct {
	CommunityKey   Secret   `toml:"community_key,omitempty"`
	Peers          []Peer   `toml:"peer"`
	YggdrasilPeers []string `toml:"yggdrasil_peers,omitempty"`
	Gateway        *Sharing `toml:"gateway,omitempty"`
	Wallet         *Wallet  `toml:"wallet,omitempty"` // what weft wallet cap said last
}

// Sharing is what weft gateway was told last.
type Sharing struct {
	Use   string `toml:"use,omitempty"`
	Offer *Offer `toml:"offer,omitempty"`
}

// Offer is what weft gateway offer and stop said last.
type Offer struct {
	On      bool     `toml:"on"`
	Price   Price    `toml:"price"`
	Down    Rate     `toml:"down"`
	Up      Rate     `toml:"up"`
	IPv4    bool     `toml:"ipv4"`
	IPv6    IPv6Mode `toml:"ipv6"`
	Members bool     `toml:"members_only"`
}

// LoadAdded reads what commands have added to the node in dir.
func LoadAdded(dir string) (Added, error) {
	var a Added
	name := filepath.Join(dir, addedName)
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	if err != nil {
		return a, fmt.Errorf("read what commands added: %w", err)
	}
	f := file{name: name}
	if err := toml.Unmarshal(b, &a); err != nil {
		return a, f.decodeErrors(err)
	}
	for i, p := range a.Peers {
		if err := CheckURI(p.URI, false); err != nil {
			return a, &Error{File: name, Key: fmt.Sprintf("peer[%d].uri", i+1), Problem: err.Error()}
		}
	}
	for i, u := range a.YggdrasilPeers {
		if err := CheckYggdrasilURI(u, false); err != nil {
			return a, &Error{File: name, Key: fmt.Sprintf("yggdrasil_peers[%d]", i+1), Problem: err.Error()}
		}
	}
	return a, nil
}

// PutYggdrasil adds a peer of the Yggdrasil plane, or replaces the one that differs in options only.
func (a *Added) PutYggdrasil(uri string) {
	a.RemoveYggdrasil(uri)
	a.YggdrasilPeers = append(a.YggdrasilPeers, uri)
}

// RemoveYggdrasil takes out the peer with the URI, whatever its options, and reports whether it was there.
func (a *Added) RemoveYggdrasil(uri string) bool {
	n := len(a.YggdrasilPeers)
	a.YggdrasilPeers = slices.DeleteFunc(a.YggdrasilPeers, func(u string) bool { return SameYggdrasilPeer(u, uri) })
	return len(a.YggdrasilPeers) < n
}

// Put adds a peer, or replaces the one with its URI.
func (a *Added) Put(p Peer) {
	for i, q := range a.Peers {
		if q.URI == p.URI {
			a.Peers[i] = p
			return
		}
	}
	a.Peers = append(a.Peers, p)
}

// Remove takes out the peers with the URI, and reports whether there were any.
func (a *Added) Remove(uri string) bool {
	n := len(a.Peers)
	a.Peers = slices.DeleteFunc(a.Peers, func(p Peer) bool { return p.URI == uri })
	return len(a.Peers) < n
}

// Save writes a for the node in dir: as a whole or not at all, readable by the
// owner only, since a community key may be in it.
func (a Added) Save(dir string) error {
	b, err := toml.Marshal(a)
	if err != nil {
		return fmt.Errorf("write what commands added: %w", err)
	}
	b = append([]byte("# Written by weft peers, weft join and weft gateway, and holds over "+FileName+", where your own settings belong.\n"), b...)
	return WriteFile(filepath.Join(dir, addedName), b)
}

// WriteFile replaces a file at once, with mode 0600; a crash leaves the old one
// or the new one. One at a time may write a file: the temporary one has a fixed
// name, so that crashes do not heap them up.
func WriteFile(name string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	tmp := name + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) { // its mode may be another
		return fmt.Errorf("write %s: %w", name, err)
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(tmp, name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", name, err), os.Remove(tmp))
	}
	return nil
}
