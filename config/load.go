package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"weft/firewall"
)

// maxFile bounds a config file, and maxList the entries of a list in it.
const (
	maxFile = 1 << 20
	maxList = 1024
)

// Error is what is wrong with one line of a config file.
type Error struct {
	File    string
	Line    int    // 0 when no line is to blame
	Key     string // such as tun.mtu
	Problem string // what is wrong and what is allowed
}

func (e *Error) Error() string {
	where := e.File
	if e.Line > 0 {
		where += ":" + strconv.Itoa(e.Line)
	}
	if e.Key != "" {
		where += ": " + e.Key
	}
	return where + ": " + e.Problem
}

// Errors are all that is wrong with a file, in the order of its lines.
type Errors []*Error

func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, err := range e {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// Load reads the file at name. When it does not exist and need not, the result
// is Default.
func Load(name string, mustExist bool) (*Config, error) {
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) && !mustExist {
		return Default(), nil
	}
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("there is no config file %s; make one with: weft init", name)
		}
		return nil, fmt.Errorf("read config: %w", err)
	}
	return Parse(name, b)
}

// Parse reads a config file's text; name is what errors call it. All that is
// wrong is reported at once, as Errors.
func Parse(name string, text []byte) (*Config, error) { return parse(name, text, migrations) }

// migrations[v-1] turns a file of version v into one of version v+1. A step is
// written when the first incompatible change is, with an old file in testdata.
var migrations = []func(doc map[string]any){}

func parse(name string, text []byte, steps []func(map[string]any)) (*Config, error) {
	if len(text) > maxFile {
		return nil, &Error{File: name, Problem: fmt.Sprintf("is larger than %d bytes", maxFile)}
	}
	f := file{name: name}
	latest := len(steps) + 1
	var v struct {
		Version *int `toml:"version"`
	}
	if err := toml.Unmarshal(text, &v); err != nil {
		return nil, f.decodeErrors(err)
	}
	if v.Version != nil && (*v.Version < 1 || *v.Version > latest) {
		f.index(text)
		f.report("version", "%d is not allowed; this weft reads 1 to %d%s", *v.Version, latest, ifelse(*v.Version > latest, ": the file is for a newer weft", ""))
		return nil, f.errs
	}
	if v.Version != nil && *v.Version < latest {
		doc := map[string]any{}
		if err := toml.Unmarshal(text, &doc); err != nil {
			return nil, f.decodeErrors(err)
		}
		for _, step := range steps[*v.Version-1:] {
			step(doc)
		}
		doc["version"] = latest
		var err error
		if text, err = toml.Marshal(doc); err != nil {
			return nil, fmt.Errorf("bring %s up to date: %w", name, err)
		}
		f.migrated = true
	}
	f.index(text)

	c := Default()
	c.Listen, c.Multicast.Interfaces, c.Multicast.Exclude = nil, nil, nil // so that a list in the file replaces, never extends
	d := toml.NewDecoder(strings.NewReader(string(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		return nil, f.decodeErrors(err)
	}
	f.restore(c)
	f.check(c)
	if f.errs != nil {
		slices.SortStableFunc(f.errs, func(a, b *Error) int { return a.Line - b.Line })
		return nil, f.errs
	}
	return c, nil
}

// file gathers what is wrong with a text, and knows where each key stands.
type file struct {
	name     string
	lines    map[string]int // such as peer.1.uri
	errs     Errors
	migrated bool // lines are those of the text after migration, which nobody sees
}

func (f *file) report(key, format string, args ...any) {
	line := f.lines[key]
	for k := key; line == 0 && k != ""; { // a missing key: point at the table that lacks it
		k = k[:max(strings.LastIndexByte(k, '.'), 0)]
		line = f.lines[k]
	}
	f.reportAt(line, key, fmt.Sprintf(format, args...))
}

func (f *file) reportAt(line int, key, problem string) {
	if f.migrated {
		line = 0
	}
	// People count tables that repeat from one.
	parts := strings.Split(key, ".")
	for i, p := range parts {
		if n, err := strconv.Atoi(p); err == nil && i > 0 {
			parts[i-1], parts[i] = fmt.Sprintf("%s[%d]", parts[i-1], n+1), ""
		}
	}
	key = strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ".")
	f.errs = append(f.errs, &Error{File: f.name, Line: line, Key: key, Problem: problem})
}

// index notes the line of every key and table. The text is known to be TOML.
func (f *file) index(text []byte) {
	f.lines = map[string]int{}
	var p unstable.Parser
	p.Reset(text)
	table, count := "", map[string]int{}
	name := func(it unstable.Iterator) (string, int) {
		var parts []string
		line := 0
		for it.Next() {
			n := it.Node()
			if line == 0 {
				line = p.Shape(n.Raw).Start.Line
			}
			parts = append(parts, string(n.Data))
		}
		return strings.Join(parts, "."), line
	}
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table:
			key, line := name(e.Key())
			if n, ok := count[key[:max(strings.IndexByte(key, '.'), 0)]]; ok { // a table below one that repeats
				head, rest, _ := strings.Cut(key, ".")
				key = head + "." + strconv.Itoa(n-1) + "." + rest
			}
			table = key + "."
			f.lines[key] = line
		case unstable.ArrayTable:
			key, line := name(e.Key())
			table = key + "." + strconv.Itoa(count[key]) + "."
			count[key]++
			f.lines[strings.TrimSuffix(table, ".")] = line
		case unstable.KeyValue:
			key, line := name(e.Key())
			f.lines[table+key] = line
			f.indexValue(&p, table+key, e.Value())
		}
	}
}

// indexValue notes the lines of the elements of a list and of an inline table.
func (f *file) indexValue(p *unstable.Parser, key string, v *unstable.Node) {
	i := 0
	for it := v.Children(); it.Next(); {
		n := it.Node()
		switch v.Kind {
		case unstable.Array:
			k := key + "." + strconv.Itoa(i)
			i++
			if n.Raw.Length > 0 {
				f.lines[k] = p.Shape(n.Raw).Start.Line
			}
			f.indexValue(p, k, n)
		case unstable.InlineTable:
			var parts []string
			line := 0
			for kit := n.Key(); kit.Next(); {
				parts = append(parts, string(kit.Node().Data))
				line = p.Shape(kit.Node().Raw).Start.Line
			}
			k := key + "." + strings.Join(parts, ".")
			f.lines[k] = line
			f.indexValue(p, k, n.Value())
		}
	}
}

// decodeErrors turns the decoder's errors into ours.
func (f *file) decodeErrors(err error) error {
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		for i := range strict.Errors {
			d := &strict.Errors[i]
			line, _ := d.Position()
			key := d.Key()
			f.reportAt(line, strings.Join(key, "."), "there is no such setting"+suggest(key))
		}
		return f.errs
	}
	if d, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, _ := d.Position()
		key := d.Key()
		problem := strings.TrimPrefix(d.Error(), "toml: ")
		if want := typeOf(key); want != "" && strings.Contains(problem, "cannot") {
			problem = "must be " + want
		}
		f.reportAt(line, strings.Join(key, "."), problem)
		return f.errs
	}
	return &Error{File: f.name, Problem: strings.TrimPrefix(err.Error(), "toml: ")}
}

// restore puts defaults back where the file is silent, and notes what it chose.
func (f *file) restore(c *Config) {
	d := Default()
	set := func(key string) bool { _, ok := f.lines[key]; return ok }
	if c.ListenSet = set("listen"); !c.ListenSet {
		c.Listen = d.Listen
	}
	if !set("multicast.interfaces") {
		c.Multicast.Interfaces = d.Multicast.Interfaces
	}
	if !set("multicast.exclude") {
		c.Multicast.Exclude = d.Multicast.Exclude
	}
	c.Portal.Set = set("portal.listen")
	for i := range c.Peers {
		c.Peers[i].Source = FromConfig
	}
}

// check finds the values that are of the right type and cannot hold.
func (f *file) check(c *Config) {
	if len(c.Name) > 63 || !utf8.ValidString(c.Name) || strings.ContainsFunc(c.Name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		f.report("name", "may have at most 63 bytes of printable UTF-8")
	}
	f.word("role", string(c.Role), "router", "leaf")
	f.word("tun.enabled", string(c.TUN.Enabled), "auto", "on", "off")
	f.word("log.level", string(c.Log.Level), "debug", "info", "warn", "error")
	f.word("log.format", string(c.Log.Format), "text", "json")
	for i, uri := range c.Listen {
		if err := CheckURI(uri, true); err != nil {
			f.report(fmt.Sprintf("listen.%d", i), "%v", err)
		}
	}
	f.short("listen", len(c.Listen), 16)
	f.short("peer", len(c.Peers), maxList)
	seen := map[string]bool{}
	for i, p := range c.Peers {
		at := fmt.Sprintf("peer.%d.", i)
		if err := CheckURI(p.URI, false); err != nil {
			f.report(at+"uri", "%v", err)
		} else if seen[p.URI] {
			f.report(at+"uri", "%s stands here twice", p.URI)
		}
		seen[p.URI] = true
		if p.Cost != 0 || f.lines[at+"cost"] != 0 {
			f.span(at+"cost", p.Cost, 0.01, 1000)
		}
	}
	for i, list := range [][]string{c.Multicast.Interfaces, c.Multicast.Exclude} {
		for j, pattern := range list {
			if _, err := path.Match(pattern, "x"); err != nil || pattern == "" {
				f.report(fmt.Sprintf("multicast.%s.%d", []string{"interfaces", "exclude"}[i], j), "%q is not a pattern; written like eth0 or wlan*", pattern)
			}
		}
	}
	f.span("multicast.cap", float64(c.Multicast.Cap), 1, 64)
	if n := c.TUN.Name; n == "" || len(n) > 15 || strings.ContainsAny(n, "/ \t%:") || n == "." || n == ".." {
		f.report("tun.name", "%q is not a name for an interface; allowed: auto, or up to 15 letters and digits", n)
	}
	if m := c.TUN.MTU; m != 0 && (m < 1280 || m > 65535) {
		f.report("tun.mtu", "%d is not allowed; allowed: 1280 to 65535, or 0 to let weft choose", m)
	}
	f.local("userspace.socks", noPassword, c.Userspace.SOCKS, "auto", "off")
	f.local("userspace.http", noPassword, c.Userspace.HTTP, "off")
	f.address("portal.listen", c.Portal.Listen, "off")
	for i, w := range c.Forwards {
		at := fmt.Sprintf("forward.%d.", i)
		f.address(at+"listen", w.Listen)
		f.word(at+"proto", string(w.Proto), "", "tcp", "udp")
		if host, port, err := net.SplitHostPort(w.To); err != nil || host == "" || !isPort(port) {
			f.report(at+"to", "%q is not a node and a port; written like [200:db8::1]:80 or roof.weft:80", w.To)
		}
	}
	f.short("forward", len(c.Forwards), maxList)
	ports := map[string]bool{}
	for i, e := range c.Exposes {
		at := fmt.Sprintf("expose.%d.", i)
		f.span(at+"port", float64(e.Port), 1, 65535)
		f.word(at+"proto", string(e.Proto), "", "tcp", "udp")
		if id := fmt.Sprint(e.Port, e.Proto.UDP()); ports[id] {
			f.report(at+"port", "%d leads somewhere else already", e.Port)
		} else {
			ports[id] = true
		}
		if host, port, err := net.SplitHostPort(e.To); err != nil || host == "" || !isPort(port) {
			f.report(at+"to", "%q is not an address and a port; written like 127.0.0.1:8080", e.To)
		}
	}
	f.short("expose", len(c.Exposes), maxList)
	f.checkYggdrasil(&c.Yggdrasil)
	f.checkFirewall(c.Firewall)
	f.checkSharing(c)
	f.span("route.lambda", c.Route.Lambda, 0, 1000)
	if p := c.Route.Position; len(p) != 0 && (len(p) != 2 || !(math.Abs(p[0]) <= 90) || !(math.Abs(p[1]) <= 180)) {
		f.report("route.position", "must be latitude and longitude in degrees, like [52.52, 13.40]")
	}
}

func (f *file) checkFirewall(fw Firewall) {
	f.short("firewall.rules", len(fw.Rules), firewall.MaxRules)
	for i, s := range fw.Rules {
		r, err := firewall.ParseRule(s)
		if err != nil {
			f.report(fmt.Sprintf("firewall.rules.%d", i), "%v", err)
		} else if _, ok := fw.Groups[r.From.Group]; r.From.Kind == firewall.Group && !ok {
			f.report(fmt.Sprintf("firewall.rules.%d", i), "there is no group %q; groups: %s", r.From.Group, orNone(slices.Sorted(maps.Keys(fw.Groups))))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(fw.Groups)) {
		if _, err := firewall.ParseRules([]string{"allow any from group:" + name}, map[string][]string{name: fw.Groups[name]}); err != nil {
			f.report("firewall.groups."+name, "%v", err)
		}
	}
}

// CheckURI reports why a URI cannot be listened on or dialled.
func CheckURI(s string, listen bool) error {
	const form = "written like udp://192.0.2.7:7117, tls://[2001:db8::1]:443 or wss://example.org/weft"
	if s == "" {
		return errors.New("must be set; " + form)
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return fmt.Errorf("%q is not a URI; %s", s, form)
	}
	switch u.Scheme {
	case "udp", "tls":
		if u.Port() == "" {
			return fmt.Errorf("%q has no port; %s", s, form)
		}
		if u.Path != "" {
			return fmt.Errorf("%q has a path; only wss:// may", s)
		}
	case "wss":
		if listen && u.Port() == "" {
			return fmt.Errorf("%q has no port", s)
		}
	default:
		if CheckYggdrasilURI(s, listen) == nil {
			return fmt.Errorf("%q: %q is not a kind of link; allowed: udp, tls, wss (links of Yggdrasil belong into [yggdrasil])", s, u.Scheme)
		}
		return fmt.Errorf("%q: %q is not a kind of link; allowed: udp, tls, wss", s, u.Scheme)
	}
	if u.Port() != "" && !isPort(u.Port()) && !(listen && u.Port() == "0") {
		return fmt.Errorf("%q: a port is from 1 to 65535", s)
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%q has more than host, port and path", s)
	}
	if listen {
		if _, err := netip.ParseAddr(u.Hostname()); err != nil {
			return fmt.Errorf("%q: %q is not an address of this device; [::] stands for all", s, u.Hostname())
		}
	} else if u.Hostname() == "" {
		return fmt.Errorf("%q has no host", s)
	}
	return nil
}

func (f *file) span(key string, v, lo, hi float64) {
	if !(v >= lo && v <= hi) {
		f.report(key, "%v is not allowed; allowed: %v to %v", v, lo, hi)
	}
}

// word checks a value that is one of a few words; an empty one among them means
// that it may be left out.
func (f *file) word(key, s string, words ...string) {
	if !slices.Contains(words, s) {
		f.report(key, "%q is not allowed; allowed: %s", s, strings.TrimPrefix(strings.Join(words, ", "), ", "))
	}
}

func (f *file) short(key string, n, most int) {
	if n > most {
		f.report(key, "has %d entries, may have %d", n, most)
	}
}

// address checks an address and port to listen on, or one of the words.
func (f *file) address(key, s string, words ...string) {
	if slices.Contains(words, s) {
		return
	}
	host, port, err := net.SplitHostPort(s)
	_, bad := netip.ParseAddr(host)
	if err != nil || (bad != nil && host != "localhost") || (!isPort(port) && port != "0") {
		f.report(key, "%q is not an address and port; allowed: 127.0.0.1:8080, [::1]:8080%s", s, strings.Join(append([]string{""}, words...), ", "))
	}
}

// noPassword is why a proxy must not be reached from elsewhere.
const noPassword = "the proxy asks for no password"

// local is address for what serves this device alone, and why: everybody on the LAN would be let in.
func (f *file) local(key, why, s string, words ...string) {
	if host, _, err := net.SplitHostPort(s); err == nil {
		if ip, err := netip.ParseAddr(host); err == nil && !ip.IsLoopback() {
			f.report(key, "%q can be reached from other devices, and %s; allowed: an address of this device only, such as 127.0.0.1:8080", s, why)
			return
		}
	}
	f.address(key, s, words...)
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

func orNone(s []string) string {
	if len(s) == 0 {
		return "none"
	}
	return strings.Join(s, ", ")
}

func ifelse(b bool, yes, no string) string {
	if b {
		return yes
	}
	return no
}

// field finds the struct field that a key leads to, and the struct around it.
func field(key []string) (parent reflect.Type, fld reflect.StructField, ok bool) {
	t := reflect.TypeFor[Config]()
	for i, k := range key {
		parent = nil
		if t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct {
			return nil, fld, false
		}
		parent, ok = t, false
		for fl := range t.Fields() {
			if tomlName(fl) == k {
				fld, ok, t = fl, true, fl.Type
				break
			}
		}
		if !ok {
			return ifelseType(i == len(key)-1, parent), fld, false
		}
	}
	return parent, fld, ok
}

func ifelseType(b bool, t reflect.Type) reflect.Type {
	if b {
		return t
	}
	return nil
}

func tomlName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
	return name
}

// suggest says what is allowed where an unknown key stands.
func suggest(key []string) string {
	for n := 1; n <= len(key); n++ {
		parent, _, ok := field(key[:n])
		if ok {
			continue
		}
		if parent == nil {
			return ""
		}
		var names []string
		for f := range parent.Fields() {
			if name := tomlName(f); name != "-" {
				names = append(names, name)
			}
		}
		for _, name := range names {
			if near(name, key[n-1]) {
				return fmt.Sprintf("; did you mean %s? allowed here: %s", name, strings.Join(names, ", "))
			}
		}
		return "; allowed here: " + strings.Join(names, ", ")
	}
	return ""
}

// near reports whether one letter more, less or other, or two swapped, make the difference.
func near(a, b string) bool {
	a, b = strings.ToLower(a), strings.ToLower(b)
	if strings.TrimSuffix(a, "s") == strings.TrimSuffix(b, "s") {
		return true
	}
	i := 0
	for i < len(a) && i < len(b) && a[i] == b[i] {
		i++
	}
	a, b = a[i:], b[i:]
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return len(a) <= 1 && len(b) <= 1 || len(a) == 2 && len(b) == 2 && a[0] == b[1] && a[1] == b[0]
}

// typeOf says in words what a key's value must be.
func typeOf(key []string) string {
	_, f, ok := field(key)
	if !ok {
		return ""
	}
	if reflect.PointerTo(f.Type).Implements(reflect.TypeFor[interface{ UnmarshalText([]byte) error }]()) {
		return "a string in quotes"
	}
	switch f.Type.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Uint32:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	case reflect.String:
		return "a string in quotes"
	case reflect.Slice:
		if f.Type.Elem().Kind() == reflect.Struct {
			return "a table: [[" + tomlName(f) + "]]"
		}
		return "a list in [ ]"
	case reflect.Struct:
		return "a table: [" + tomlName(f) + "]"
	}
	return ""
}
