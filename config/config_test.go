package config

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weft/ident"
)

const hexKey = "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"

// TestErrors: every mistake is told with file, line, key and what is allowed.
func TestErrors(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"nmae = \"x\"", "f:1: nmae: there is no such setting; did you mean name? allowed here: version, name, role"},
		{"\n\n[tun]\nmut = 1", "f:4: tun.mut: there is no such setting; did you mean mtu? allowed here: enabled, name, mtu"},
		{"[colour]\nred = 1", "there is no such setting; allowed here: version,"},
		{"[[peer]]\nuri = \"udp://h:1\"\nkost = 2", "f:3: peer.kost: there is no such setting; did you mean cost?"},
		{"role = \"king\"", "f:1: role: \"king\" is not allowed; allowed: router, leaf"},
		{"role = 3", "f:1: role: must be a string in quotes"},
		{"metered = \"yes\"", "f:1: metered: must be true or false"},
		{"[tun]\nmtu = \"big\"", "f:2: tun.mtu: must be a whole number"},
		{"[tun]\n\nmtu = 100", "f:3: tun.mtu: 100 is not allowed; allowed: 1280 to 65535, or 0 to let weft choose"},
		{"[tun]\nenabled = true", "f:2: tun.enabled: must be a string in quotes"},
		{"[tun]\nname = \"a/b\"", "f:2: tun.name: \"a/b\" is not a name for an interface"},
		{"tun = 1", "f:1: tun: must be a table: [tun]"},
		{"version = 2", "f:1: version: 2 is not allowed; this weft reads 1 to 1: the file is for a newer weft"},
		{"version = 0", "f:1: version: 0 is not allowed"},
		{"name = \"a\\u001b[2J\"", "f:1: name: may have at most 63 bytes of printable UTF-8"},
		{"listen = [\n  \"udp://[::]:1\",\n  \"tcp://[::]:1\",\n]", "f:3: listen[2]: \"tcp://[::]:1\": \"tcp\" is not a kind of link; allowed: udp, tls, wss"},
		{"listen = [\"udp://example.org:1\"]", "f:1: listen[1]: \"udp://example.org:1\": \"example.org\" is not an address of this device"},
		{"[[peer]]\nuri = \"udp://h:1\"\n[[peer]]\ncost = 2", "f:3: peer[2].uri: must be set; written like udp://"},
		{"[[peer]]\nuri = \"udp://h:1\"\n[[peer]]\nuri = \"udp://h:1\"", "f:4: peer[2].uri: udp://h:1 stands here twice"},
		{"[[peer]]\nuri = \"udp://h\"", "f:2: peer[1].uri: \"udp://h\" has no port"},
		{"[[peer]]\nuri = \"udp://h:99999\"", "f:2: peer[1].uri: \"udp://h:99999\""},
		{"[[peer]]\nuri = \"udp://h:1\"\ncost = 0", "f:3: peer[1].cost: 0 is not allowed; allowed: 0.01 to 1000"},
		{"[[peer]]\nuri = \"udp://h:1\"\ncost = nan", "f:3: peer[1].cost: NaN is not allowed"},
		{"[[peer]]\nuri = \"udp://h:1\"\nkey = \"12\"", "f:3: peer"},
		{"peer = [{uri = \"udp://h:1\"}, {uri = \"x\"}]", "f:1: peer[2].uri: \"x\" is not a URI"},
		{"[multicast]\ninterfaces = [\"[\"]", "f:2: multicast.interfaces[1]: \"[\" is not a pattern"},
		{"[multicast]\ncap = 0", "f:2: multicast.cap: 0 is not allowed; allowed: 1 to 64"},
		{"[community]\nkey = \"secretsecret\"", "f:2: community.key: a community key has 64 hex digits; make one with: weft init --closed"},
		{"[userspace]\nhttp = \"0.0.0.0:8080\"", "f:2: userspace.http: \"0.0.0.0:8080\" can be reached from other devices, and the proxy asks for no password; allowed: an address of this device only, such as 127.0.0.1:8080"},
		{"[userspace]\nsocks = \"here\"", "f:2: userspace.socks: \"here\" is not an address and port; allowed: 127.0.0.1:8080, [::1]:8080, auto, off"},
		{"[[forward]]\nlisten = \"127.0.0.1:80\"\nto = \"roof\"", "f:3: forward[1].to: \"roof\" is not a node and a port"},
		{"[[expose]]\nport = 70000\nto = \"127.0.0.1:80\"", "f:2: expose[1].port: 70000 is not allowed"},
		{"[[expose]]\nport = 80\nto = \"127.0.0.1:80\"\n[[expose]]\nport = 80\nto = \"127.0.0.1:81\"", "f:5: expose[2].port: 80 leads somewhere else already"},
		{"[firewall]\nrules = [\n\"allow tcp 22 from any\",\n\"permit all\",\n]", "f:4: firewall.rules[2]: firewall rule \"permit all\""},
		{"[firewall]\nrules = [\"allow any from group:x\"]\n[firewall.groups]\ny = []", "f:2: firewall.rules[1]: there is no group \"x\"; groups: y"},
		{"[firewall.groups]\ny = [\"12\"]", "f:2: firewall.groups.y: firewall group \"y\", key 1"},
		{"[portal]\nlisten = \"7118\"", "f:2: portal.listen: \"7118\" is not an address and port"},
		{"[yggdrasil]\npeers = [\"tls://h:1\", \"udp://h:1\"]", "f:2: yggdrasil.peers[2]: \"udp://h:1\": \"udp\" is not a kind of link of Yggdrasil"},
		{"[yggdrasil]\npeers = [\"tcp://h:1?key=12\"]", "f:2: yggdrasil.peers[1]: \"tcp://h:1?key=12\": key: "},
		{"[yggdrasil]\npeers = [\"tcp://h:1?priority=255\"]", "priority 255 is not allowed; allowed: 0 to 254"},
		{"[yggdrasil]\npeers = [\"tcp://h:1?max=1\"]", "there is no option max; allowed: key, password"},
		{"[yggdrasil]\npeers = [\"tcp://h\"]", "needs a host and a port"},
		{"[yggdrasil]\npeers = [\"socks://h:1\"]", "needs a proxy and a peer"},
		{"[yggdrasil]\nlisten = [\"socks://h:1/g:2\"]", "f:2: yggdrasil.listen[1]: \"socks://h:1/g:2\": nobody can listen through a proxy"},
		{"[yggdrasil]\nlisten = [\"tls://example.org:1\"]", "\"example.org\" is not an address of this device"},
		{"[yggdrasil]\nlisten = [\"unix://run/x\"]", "needs a whole path"},
		{"[yggdrasil]\nenabled = \"yes\"", "f:2: yggdrasil.enabled: \"yes\" is not allowed; allowed: auto, on, off"},
		{"[yggdrasil]\nadmin = \"tcp://0.0.0.0:9001\"", "f:2: yggdrasil.admin: \"tcp://0.0.0.0:9001\" is not allowed; allowed: unix:///PATH"},
		{"[yggdrasil]\n[[yggdrasil.multicast]]\nregex = \"(\"", "f:2: yggdrasil.multicast[1]: regex: \"(\" is not a regular expression"},
		{"[route]\nprice = -1", "f:2: route.price: "},
		{"[route]\nposition = [99, 1]", "f:2: route.position: must be latitude and longitude"},
		{"[log]\nlevel = \"loud\"", "f:2: log.level: \"loud\" is not allowed; allowed: debug, info, warn, error"},
		{"name = ", "f:1: "},
		{"name = \"a\"\nname = \"b\"", "f:2: "},
	} {
		_, err := Parse("f", []byte(tt.text))
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) && !(!strings.HasPrefix(tt.want, "f:") && strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%q\n got: %v\nwant: %s", tt.text, err, tt.want)
		}
	}
}

func TestAllErrorsAtOnce(t *testing.T) {
	_, err := Parse("f", []byte("name = \"\\u0007\"\n[tun]\nmtu = 1\n[multicast]\ncap = 99"))
	if n := strings.Count(fmt.Sprint(err), "\n") + 1; n != 3 {
		t.Errorf("%d errors, want 3: %v", n, err)
	}
	_, err = Parse("f", []byte("a = 1\nb = 2"))
	if n := strings.Count(fmt.Sprint(err), "\n") + 1; n != 2 {
		t.Errorf("%d unknown keys, want 2: %v", n, err)
	}
}

func TestParse(t *testing.T) {
	c, err := Parse("f", []byte(`
version = 1
listen = []
[[peer]]
uri = "wss://example.org/weft"
key = "`+hexKey+`"
cost = 2.5
[community]
key = "`+hexKey+`"
[multicast]
interfaces = ["eth0"]
[portal]
listen = "127.0.0.1:9"
[route]
position = [52.5166, -13.3888]
[firewall]
rules = ["allow tcp 22 from group:family"]
[firewall.groups]
family = ["`+hexKey+`"]
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	key, _ := ident.ParsePublicKey(hexKey)
	want.Listen, want.ListenSet = []string{}, true
	want.Peers = []Peer{{URI: "wss://example.org/weft", Key: key, Cost: 2.5, Source: FromConfig}}
	want.Community.Key = Secret(key)
	want.Multicast.Interfaces = []string{"eth0"}
	want.Portal = Portal{Listen: "127.0.0.1:9", Set: true}
	want.Route.Position = []float64{52.5166, -13.3888}
	want.Firewall = Firewall{Rules: []string{"allow tcp 22 from group:family"}, Groups: map[string][]string{"family": {hexKey}}}
	if d := cmp.Diff(want, c); d != "" {
		t.Error(d)
	}
	if m := c.Peers[0].Multiplier(); m != 2500 {
		t.Errorf("multiplier %d", m)
	}
	if lat, lon, ok := c.Route.BlurredPosition(); lat != 525200000 || lon != -133900000 || !ok {
		t.Errorf("blurred to %d, %d, %v", lat, lon, ok)
	}
	if _, _, ok := (Route{}).BlurredPosition(); ok {
		t.Error("a position from nowhere")
	}
}

func TestEmptyIsDefault(t *testing.T) {
	c, err := Parse("f", nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Default(), c); d != "" {
		t.Error(d)
	}
	c, err = Load(filepath.Join(t.TempDir(), "none"), false)
	if d := cmp.Diff(Default(), c); d != "" || err != nil {
		t.Error(d, err)
	}
	if _, err = Load(filepath.Join(t.TempDir(), "none"), true); err == nil {
		t.Error("a file that the user named is not there, and nobody says so")
	}
}

// TestExample: the example says nothing but defaults, and every line in it is
// true when its # is taken away.
func TestExample(t *testing.T) {
	text, err := Example(nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse("example", text)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Default(), c); d != "" {
		t.Errorf("the example changes the defaults:\n%s", d)
	}
	live := regexp.MustCompile(`(?m)^#(\[|[a-z])`).ReplaceAllString(string(text), "$1")
	c, err = Parse("example", []byte(live))
	if err != nil {
		t.Fatalf("%v\n%s", err, live)
	}
	if len(c.Peers) != 1 || len(c.Forwards) != 1 || len(c.Exposes) != 1 || len(c.Firewall.Rules) != 2 || len(c.Route.Position) != 2 {
		t.Errorf("the example lacks something: %+v", c)
	}
	for _, key := range []string{"role", "mtu", "cap", "lambda", "socks", "level"} {
		if !regexp.MustCompile(`(?m)^#` + key + ` = `).Match(text) {
			t.Errorf("%s does not stand in the example", key)
		}
	}

	set, err := Example(map[string]any{"name": "ro\"of", "community.key": Secret{7}})
	if err != nil {
		t.Fatal(err)
	}
	c, err = Parse("example", set)
	if err != nil {
		t.Fatal(err)
	}
	if c.Name != "ro\"of" || c.Community.Key != (Secret{7}) {
		t.Errorf("what was set is not in force: %q %v", c.Name, c.Community.Key.Reveal())
	}
	if _, err := Example(map[string]any{"colour": 1}); err == nil {
		t.Error("a setting that does not exist was taken")
	}
}

// TestMigration: an old file is brought forward step by step, a file of today
// is left alone.
func TestMigration(t *testing.T) {
	steps := []func(map[string]any){
		func(doc map[string]any) { doc["nom"] = doc["title"]; delete(doc, "title") },
		func(doc map[string]any) { doc["name"] = doc["nom"]; delete(doc, "nom") },
	}
	c, err := parse("f", []byte("version = 1\ntitle = \"roof\""), steps)
	if err != nil || c.Name != "roof" || c.Version != 3 {
		t.Errorf("from 1: %+v, %v", c, err)
	}
	c, err = parse("f", []byte("version = 2\nnom = \"roof\""), steps)
	if err != nil || c.Name != "roof" {
		t.Errorf("from 2: %+v, %v", c, err)
	}
	c, err = parse("f", []byte("name = \"roof\""), steps)
	if err != nil || c.Name != "roof" {
		t.Errorf("without a version, a file is today's: %+v, %v", c, err)
	}
	if _, err = parse("f", []byte("version = 1\ncolour = 1"), steps); err == nil || strings.Contains(err.Error(), "f:") && !strings.Contains(err.Error(), "f: colour") {
		t.Errorf("a line number of a text that nobody sees: %v", err)
	}
	if _, err = parse("f", []byte("version = 4"), steps); err == nil || !strings.Contains(err.Error(), "1 to 3") {
		t.Errorf("from the future: %v", err)
	}
}

func TestPaths(t *testing.T) {
	if os.Geteuid() == 0 {
		p, err := FindPaths("", "")
		if err != nil || p.State != SystemState || p.Config != "/etc/weft/weft.toml" || p.Chosen {
			t.Errorf("as root: %+v, %v", p, err)
		}
	}
	p, err := FindPaths("/s", "")
	if err != nil || p != (Paths{State: "/s", Config: "/s/weft.toml"}) {
		t.Errorf("with --state: %+v, %v", p, err)
	}
	p, err = FindPaths("/s", "/c")
	if err != nil || p != (Paths{State: "/s", Config: "/c", Chosen: true}) {
		t.Errorf("with both: %+v, %v", p, err)
	}
	if got := Default().Socket("/s"); got != "/s/weft.sock" {
		t.Error(got)
	}
}

func TestAdded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	a, err := LoadAdded(dir)
	if err != nil || len(a.Peers) != 0 {
		t.Fatal(a, err)
	}
	key, _ := ident.ParsePublicKey(hexKey)
	a = Added{CommunityKey: Secret{1}, Peers: []Peer{{URI: "udp://h:1", Cost: 2}, {URI: "udp://h:2", Key: key, Metered: true}}}
	if err := a.Save(dir); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(filepath.Join(dir, addedName))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v: a community key is in it", fi.Mode(), err)
	}
	b, err := LoadAdded(dir)
	if d := cmp.Diff(a, b); d != "" || err != nil {
		t.Error(d, err)
	}
	if err := os.WriteFile(filepath.Join(dir, addedName+".tmp"), nil, 0o644); err != nil { // what a crash left
		t.Fatal(err)
	}
	if err := b.Save(dir); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(dir, addedName)); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("after a crash: %v, %v", fi.Mode(), err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("temporary files stay: %v", left)
	}

	b.Put(Peer{URI: "udp://h:1", Cost: 3})
	b.Put(Peer{URI: "udp://h:3"})
	if len(b.Peers) != 3 || b.Peers[0].Cost != 3 || !b.Remove("udp://h:3") || b.Remove("udp://h:3") || len(b.Peers) != 2 {
		t.Errorf("put and remove: %+v", b.Peers)
	}

	c := Default()
	c.Peers = []Peer{{URI: "udp://h:1", Source: FromConfig}}
	c.Add(b)
	if len(c.Peers) != 2 || c.Peers[0].Source != FromConfig || c.Peers[0].Cost != 0 || c.Peers[1].Source != FromCommand || c.Community.Key != (Secret{1}) {
		t.Errorf("joined: %+v", c)
	}
	c.Community.Key = Secret{9}
	c.Add(b)
	if len(c.Peers) != 2 || c.Community.Key != (Secret{9}) {
		t.Errorf("the file does not win: %+v", c)
	}

	os.WriteFile(filepath.Join(dir, addedName), []byte("[[peer]]\nuri = \"x\""), 0o600)
	if _, err := LoadAdded(dir); err == nil || !strings.Contains(err.Error(), "added.toml: peer[1].uri") {
		t.Errorf("damaged: %v", err)
	}
}

func TestSecretIsNotPrinted(t *testing.T) {
	s := Secret{0xab, 0xcd}
	c := Default()
	c.Community.Key = s
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "config", c, "key", s, "community", c.Community)
	out := log.String() + fmt.Sprintf("%v %+v %#v %s %x %v", s, c.Community, c.Community, s, s, *c)
	if strings.Contains(strings.ToLower(out), "abcd") || strings.Contains(out, "171") {
		t.Errorf("the key is in: %s", out)
	}
}

func FuzzParse(f *testing.F) {
	text, err := Example(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("[[peer]]\nuri = \"udp://h:1\"\n[peer.x]\ny=[[1,{a.b=2}]]"))
	f.Add([]byte("version = 1\na.b.c = {d = [1]}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := Parse("f", b); err == nil {
			c.Add(Added{})
		}
	})
}
