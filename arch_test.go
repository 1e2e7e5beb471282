package weft

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The architecture is a test. DO NOT CHANGE THESE TABLES TO MAKE THE BUILD PASS: a new line is a decision, with its
// reason here and its place in docs/arch.md, in the same commit.

// rooms are all folders with Go code, and what each may import of the others. A test file may import more: see testOnly.
var rooms = []struct {
	name string
	may  string // space-separated; "*" is all but cli and cmd
	why  string
}{
	{"ident", "", "keys and addresses are below everything: nothing above may be needed to make them"},
	{"wire", "ident", "a codec has no state and no socket, so that it can be fuzzed and reused whole"},
	{"shape", "", "queues with a rate know sizes and keys of what waits, and not what it is"},
	{"forward", "ident shape wire", "the packet path knows no transport, no protocol above it and no money: it stays short enough to be fast"},
	{"link", "forward ident wire", "neighbours know nothing of routes: routing decides over links, never the other way round"},
	{"link/linktest", "forward link", "the in-memory twin of the underlay, beside what it imitates"},
	{"route", "ident wire", "pure: neither link nor forward nor money, so that ten thousand cores run in one test in virtual time"},
	{"session", "forward ident tun wire", "end-to-end crypto stands between tun and forward and needs no route, link or rule"},
	{"tun", "", "a device knows nothing of meshes"},
	{"tun/netstack", "tun", "the userspace stack is one more device"},
	{"tun/tuntest", "tun", "the in-memory twin of a device"},
	{"ygg", "ident tun", "one more way to the same device: it knows packets and keys, and neither routes nor sessions"},
	{"firewall", "ident", "verdicts by key, protocol and port; who asks is session's business"},
	{"proxy", "ident tun/netstack", "proxies and port forwards reach the mesh through a dialler that node gives them"},
	{"gateway", "gateway/nat64 ident shape tun", "offers, leases, what a client may send, and which gateway to use; who carries is given to it. nat64 is pure, and its pool of addresses is the leases'"},
	{"gateway/host", "", "what sharing changes in the kernel, and how it is taken back: it knows interfaces and prefixes, no mesh"},
	{"gateway/exit", "tun tun/netstack", "the way out without root: one more device, whose host is the internet; its stack sits on the same card as tun/netstack's, since super-packets both ways are hard to get right twice"},
	{"gateway/nat64", "", "one packet in, one packet out: pure, so that it can be fuzzed and compared"},
	{"dns", "gateway/nat64 ident", "names: who knows them and who is asked is given to it; where IPv4 addresses lie in IPv6 is said once, in nat64"},
	{"guest", "", "devices without Weft behind this node: their addresses, their first page, their vouchers. It knows no mesh"},
	{"meter", "ident", "who carried what for whom: counts and conclusions; it neither sends nor charges"},
	{"ledger/tx", "ident", "transactions as bytes: routers link it, so it stays small"},
	{"ledger", "ident ledger/tx", "the books as a pure state machine: the same blocks give the same state on every machine"},
	{"ledger/lite", "ident ledger/tx", "what routers link: to sign, and to verify headers and proofs without an engine"},
	{"ledger/bft", "ident ledger ledger/bft/bftclient ledger/tx", "the engine, in a process of its own: the only room that knows CometBFT; the client's types are what it answers with"},
	{"ledger/bft/bftclient", "ident", "the way to the engine's process, and its supervisor: whoever imports it gets no engine with it"},
	{"pay", "ident ledger/tx", "tabs and vouchers: who owes whom; it settles through an interface that it declares"},
	{"config", "firewall ident", "what an owner may choose; firewall only for the form of its rules"},
	{"api", "ident", "the types that programs depend on: whoever imports api gets no node with it"},
	{"portal", "api", "a page over the same API as everything else, so that it can show nothing that others cannot get"},
	{"node", "*", "the only room that imports all: parts are put together in one place, by hand"},
	{"cli", "api config firewall ident ledger ledger/bft ledger/bft/bftclient ledger/tx node lab", "the verbs: they talk to a running node through api; only up is a node"},
	{"cmd/weft", "cli", "main is a few lines"},
	{"lab/manifest", "", "a description of worlds that every driver reads"},
	{"lab/manifests", "lab/manifest", "the worlds that are tests"},
	{"lab/sim", "ident lab/manifest wire route", "many real routing cores in virtual time: the routing core alone, no socket"},
	{"lab/economy", "ident ledger ledger/tx meter pay", "real tabs on a real ledger in virtual time; of meter only the tolerance, since what is counted is a model"},
	{"lab/netns", "api lab/manifest lab/manifests ledger/bft/bftclient", "the real program from outside: it sees what a user sees, through api"},
	{"lab/peers", "", "other systems to measure against share nothing with ours"},
	{"lab/bench", "api lab/netns lab/peers", "measures programs from outside"},
}

// libs are the modules of others, and the only rooms that know them: each can be replaced in one place.
var libs = []struct {
	prefix, rooms, why string
}{
	{"filippo.io/edwards25519", "ident", "Edwards to Montgomery"},
	{"github.com/hdevalence/ed25519consensus", "ident ledger/lite", "the one verifier, ZIP-215, on and off chain; validators sign as CometBFT has it, without a domain of ours"},
	{"github.com/dchest/siphash", "wire route forward", "hop MACs, digests"},
	{"github.com/flynn/noise", "session", "the end-to-end handshake"},
	{"github.com/quic-go/quic-go", "link", "the control channel"},
	{"github.com/coder/websocket", "link", "wss:// links"},
	{"gvisor.dev/gvisor", "tun/netstack gateway/exit", "the userspace stack is large: the router profile drops these folders"},
	{"github.com/alecthomas/kong", "cli", "command lines"},
	{"github.com/skip2/go-qrcode", "cli", "invitations"},
	{"github.com/pelletier/go-toml", "config lab/manifest lab/sim", "TOML; the simulator reads the part of a node's config that it can act on"},
	{"github.com/hjson/hjson-go", "config", "yggdrasil.conf, to take it over"},
	{"github.com/vishvananda/netlink", "link tun gateway/host guest lab/netns lab/peers lab/bench", "kernel interfaces and addresses"},
	{"github.com/vishvananda/netns", "lab/netns lab/bench", "network namespaces"},
	{"github.com/google/nftables", "gateway/host guest lab/netns", "kernel rules: address translation, and what a test wants dropped"},
	{"github.com/mdlayher/netlink", "gateway/host guest", "the socket below google/nftables, which makes tables without flags: a table must go with its process (owner flag)"},
	{"github.com/miekg/dns", "dns", "DNS messages and servers"},
	{"github.com/insomniacslk/dhcp", "guest", "DHCP for guests where the system has no server for it"},
	{"go.etcd.io/bbolt", "meter pay", "what must outlive a crash"},
	{"github.com/yggdrasil-network/yggdrasil-go", "ygg lab/peers", "the core of the Yggdrasil plane; and measured against"},
	{"github.com/Arceliar/ironwood", "ygg", "the address type of Yggdrasil's core"},
	{"github.com/gologme/log", "lab/peers", "the logger that Yggdrasil asks for"},
	{"golang.zx2c4.com/wireguard", "lab/peers", "measured against"},
	{"github.com/thejerf/suture", "node", "the supervisor"},
	{"github.com/vbauerster/mpb", "cli lab/netns lab/sim lab/bench", "progress bars"},
	{"github.com/cometbft/cometbft", "ledger/bft", "the engine"},
	{"github.com/cometbft/cometbft-db", "ledger/bft", "the engine's own databases, closed in the right order"},
	{"github.com/cosmos/iavl", "ledger/bft", "the state as one versioned Merkle tree"},
	{"github.com/cosmos/cosmos-db", "ledger/bft", "the database under the tree, and the index of postings"},
	{"github.com/cosmos/gogoproto", "ledger/bft", "CometBFT's peers exchange its messages alone: bytes in one of them are our light blocks"},
	{"golang.org/x/sys", "*", "system calls that the standard library lacks"},
	{"golang.org/x/sync", "*", "errgroup: whoever starts a goroutine waits for it"},
	{"golang.org/x/net", "link tun/netstack proxy gateway/exit guest lab/netns", "batch calls on sockets, ICMP sockets"},
	{"golang.org/x/crypto", "session link ident", "ChaCha20-Poly1305, BLAKE2s"},
	{"golang.org/x/time", "link session gateway dns guest node", "rate limits"},
}

// testOnly may be imported by test files everywhere. (ics23: the oracle beside which ledger/lite verifies proofs.)
var testOnly = []string{"github.com/google/go-cmp", "go.uber.org/goleak", "pgregory.net/rapid", "github.com/rogpeppe/go-internal", "github.com/cosmos/ics23"}

// bans are imports and calls that a room must not have. A ban ends in / when it covers all below it.
var bans = []struct {
	room, what, why string
}{
	{"route", "net", "no socket: events in, messages and tables out"},
	{"route", "os", "no system: the caller stores what must last"},
	{"route", "sync", "single-threaded: the caller serialises"},
	{"route", "context", "nothing in it blocks"},
	{"route", "log/slog", "the caller logs, in its own time"},
	{"route", "go statement", "no goroutine: it runs in virtual time"},
	{"route", "clock", "time comes in as an argument"},
	{"wire", "net", "a codec reads bytes, not sockets"},
	{"wire", "os", "a codec reads bytes, not files"},
	{"wire", "go statement", "no state, no goroutine"},
	{"wire", "clock", "the same bytes mean the same at any time"},
	{"firewall", "net", "verdicts only"},
	{"firewall", "go statement", "Tick is its only clock"},
	{"firewall", "clock", "Tick is its only clock"},
	{"ledger", "net", "state and blocks come in as arguments"},
	{"ledger", "os", "state and blocks come in as arguments"},
	{"ledger", "time", "time is the block's"},
	{"ledger", "math/rand", "the same on every machine"},
	{"ledger", "math/rand/v2", "the same on every machine"},
	{"ledger", "sync", "single-threaded: the caller serialises"},
	{"ledger", "go statement", "single-threaded"},
	{"ledger/tx", "net", "a codec reads bytes"},
	{"ledger/tx", "os", "a codec reads bytes"},
	{"ledger/tx", "time", "the same bytes mean the same at any time"},
	{"ledger/lite", "os", "the caller stores what must last"},
	{"forward", "net", "senders are an interface; link owns sockets"},
	{"forward", "os", "the packet path asks the system for nothing"},
	{"forward", "fmt.Print", "the packet path never prints"},
	{"api", "net/http/pprof", "registers itself on the global mux"},
}

// sourceFile is one parsed Go file.
type sourceFile struct {
	path, room string
	test       bool
	ast        *ast.File
	fset       *token.FileSet
}

// sources parses all Go files of the module, for whatever system they are.
func sources(t *testing.T) []sourceFile {
	t.Helper()
	var out []sourceFile
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && p != "." || d.Name() == "testdata" || p == "bin" || p == "dist") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(p, ".go") || filepath.Dir(p) == "." {
			return nil
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, p, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		out = append(out, sourceFile{filepath.ToSlash(p), path.Dir(filepath.ToSlash(p)), strings.HasSuffix(p, "_test.go"), f, fset})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (f *sourceFile) imports() []string {
	var out []string
	for _, i := range f.ast.Imports {
		s, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			panic(err) // the parser has accepted it
		}
		out = append(out, s)
	}
	return out
}

func under(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// TestRooms holds every import of one room in another against the table.
func TestRooms(t *testing.T) {
	guide, err := os.ReadFile("docs/arch.md")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]int{}
	for i, r := range rooms {
		known[r.name] = i
		if r.why == "" {
			t.Errorf("%s: a law without a reason", r.name)
		}
	}
	seen := map[string]bool{}
	for _, f := range sources(t) {
		i, ok := known[f.room]
		if !seen[f.room] {
			seen[f.room] = true
			if !ok {
				t.Errorf("%s/ is not a room: put it into the table here and into the map in docs/arch.md, or its code into a room that is there", f.room)
			} else if !strings.Contains(string(guide), "\n"+f.room+"/") {
				t.Errorf("%s/ is not in the map in docs/arch.md", f.room)
			}
		}
		if !ok || f.test { // tests may build what they need out of any room
			continue
		}
		r := rooms[i]
		for _, imp := range f.imports() {
			room, ok := strings.CutPrefix(imp, "weft/")
			if !ok {
				continue
			}
			allowed := slices.ContainsFunc(strings.Fields(r.may), func(m string) bool {
				return m == "*" && !under(room, "cli") && !under(room, "cmd") && !under(room, "lab") || m == room || m == "lab" && under(room, "lab")
			})
			if !allowed {
				t.Errorf("%s imports %s, but %s may import %q only: %s", f.path, imp, r.name, r.may, r.why)
			}
		}
	}
}

// TestLibs holds every import of another's module against the table.
func TestLibs(t *testing.T) {
	for _, f := range sources(t) {
		for _, imp := range f.imports() {
			first, _, _ := strings.Cut(imp, "/")
			if !strings.Contains(first, ".") {
				continue // ours, or the standard library
			}
			if f.test && slices.ContainsFunc(testOnly, func(p string) bool { return under(imp, p) }) {
				continue
			}
			i := slices.IndexFunc(libs, func(l struct{ prefix, rooms, why string }) bool { return under(imp, l.prefix) })
			if i < 0 {
				t.Errorf("%s imports %s: a new library is a decision; put it into the table with its reason, and argue in an ADR when docs/arch.md names another", f.path, imp)
				continue
			}
			if l := libs[i]; l.rooms != "*" && !slices.Contains(strings.Fields(l.rooms), f.room) && !f.test {
				t.Errorf("%s imports %s, which is for %s only: %s", f.path, imp, l.rooms, l.why)
			}
		}
	}
}

// TestBans finds imports, goroutines and clocks where the laws forbid them.
func TestBans(t *testing.T) {
	clocks := []string{"Now", "Since", "Until", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick", "Sleep"}
	for _, f := range sources(t) {
		if f.test {
			continue
		}
		for _, b := range bans {
			if b.room != f.room {
				continue
			}
			complain := func(n ast.Node) {
				t.Errorf("%s: %s in %s: %s", f.fset.Position(n.Pos()), b.what, b.room, b.why)
			}
			for _, i := range f.ast.Imports {
				if i.Path.Value == strconv.Quote(b.what) {
					complain(i)
				}
			}
			ast.Inspect(f.ast, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.GoStmt:
					if b.what == "go statement" {
						complain(n)
					}
				case *ast.SelectorExpr:
					x, ok := n.X.(*ast.Ident)
					if !ok {
						break
					}
					if b.what == "clock" && x.Name == "time" && slices.Contains(clocks, n.Sel.Name) {
						complain(n)
					}
					if b.what == "fmt.Print" && x.Name == "fmt" && strings.HasPrefix(n.Sel.Name, "Print") {
						complain(n)
					}
				}
				return true
			})
		}
	}
}

// TestNoSharedState: a hundred nodes run in one process, so nothing that changes lives in a package, and a logger is
// passed in, or two nodes would mix their logs.
func TestNoSharedState(t *testing.T) {
	global := []string{"Debug", "DebugContext", "Info", "InfoContext", "Warn", "WarnContext", "Error", "ErrorContext", "Log", "LogAttrs", "Default", "SetDefault", "With"}
	for _, f := range sources(t) {
		if f.test || under(f.room, "lab") {
			continue
		}
		for _, d := range f.ast.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, s := range g.Specs {
				v := s.(*ast.ValueSpec)
				if what := mutable(v); what != "" {
					t.Errorf("%s: the package variable %s (%s) would be shared by all nodes of a process; make it a field", f.fset.Position(v.Pos()), v.Names[0].Name, what)
				}
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "slog" && slices.Contains(global, s.Sel.Name) {
					t.Errorf("%s: slog.%s is the global logger; use the one that was passed in", f.fset.Position(n.Pos()), s.Sel.Name)
				}
			}
			return true
		})
	}
}

// TestKeyStays: one room alone may take the private key out of ident's agent (docs/adr/0004).
func TestKeyStays(t *testing.T) {
	for _, f := range sources(t) {
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "PrivateKeyForYggdrasil" && f.room != "ygg" {
				t.Errorf("%s: the private key stays with ident; only ygg may ask for it", f.fset.Position(n.Pos()))
			}
			return true
		})
	}
}

// mutable says what makes a package variable state: locks, atomics, channels, maps made to be filled. Pools of buffers
// hold nothing of anybody's.
func mutable(v *ast.ValueSpec) string {
	if s, ok := v.Type.(*ast.SelectorExpr); ok {
		name := fmt.Sprint(s.X, ".", s.Sel.Name)
		if (strings.HasPrefix(name, "sync.") || strings.HasPrefix(name, "atomic.")) && name != "sync.Pool" {
			return name
		}
	}
	if _, ok := v.Type.(*ast.ChanType); ok {
		return "channel"
	}
	for _, e := range v.Values {
		if c, ok := e.(*ast.CallExpr); ok {
			if fn, ok := c.Fun.(*ast.Ident); ok && fn.Name == "make" {
				return "make"
			}
		}
	}
	return ""
}
