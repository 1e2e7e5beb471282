package config

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/hjson/hjson-go/v4"

	"weft/ident"
)

// FromYggdrasil is what a yggdrasil.conf says, in Weft's words.
type FromYggdrasil struct {
	Seed  []byte         // of the private key; secret
	Set   map[string]any // settings for Example
	Notes []string       // what was left out, and why
}

// ReadYggdrasil reads a yggdrasil.conf, HJSON or JSON, or what yggdrasil -genconf printed. Errors name the field.
func ReadYggdrasil(name string) (*FromYggdrasil, error) {
	text, err := readBounded(name)
	if err != nil {
		return nil, err
	}
	out, err := parseYggdrasil(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return out, nil
}

func readBounded(name string) ([]byte, error) {
	if fi, err := os.Stat(name); err == nil && fi.Size() > maxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, maxFile)
	}
	return os.ReadFile(name)
}

func parseYggdrasil(text []byte) (*FromYggdrasil, error) {
	if bytes.HasPrefix(text, []byte{0xff, 0xfe}) || bytes.HasPrefix(text, []byte{0xfe, 0xff}) {
		return nil, errors.New("the file is in UTF-16; save it as UTF-8")
	}
	var doc map[string]any
	if err := hjson.Unmarshal(bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")), &doc); err != nil {
		return nil, fmt.Errorf("this is not HJSON: %w", err)
	}
	r := yggReader{doc: doc}
	out := &FromYggdrasil{Set: map[string]any{"yggdrasil.enabled": string(On)}}
	key, path := r.text("PrivateKey"), r.text("PrivateKeyPath")
	peers := r.list("Peers")
	for _, dev := range slices.Sorted(maps.Keys(r.table("InterfacePeers"))) {
		for _, u := range (&yggReader{doc: r.table("InterfacePeers"), err: &r}).list(dev) {
			sep := map[bool]string{true: "&", false: "?"}[strings.Contains(u, "?")]
			peers = append(peers, u+sep+"interface="+dev)
		}
	}
	listen, allowed := r.list("Listen"), r.list("AllowedPublicKeys")
	group := r.text("GroupPassword")
	mtu := r.number("IfMTU", 65535)
	admin := r.text("AdminListen")
	multicast := r.multicast()
	if r.failed != nil {
		return nil, r.failed
	}
	var err error
	if out.Seed, err = yggSeed(key, path); err != nil {
		return nil, err
	}
	for i, u := range peers {
		if err := CheckYggdrasilURI(u, false); err != nil {
			return nil, fmt.Errorf("field Peers[%d]: %w", i+1, err)
		}
	}
	for i, u := range listen {
		if err := CheckYggdrasilURI(u, true); err != nil {
			return nil, fmt.Errorf("field Listen[%d]: %w", i+1, err)
		}
	}
	for i, k := range allowed {
		if _, err := ident.ParsePublicKey(k); err != nil {
			return nil, fmt.Errorf("AllowedPublicKeys[%d]: %w", i+1, err)
		}
	}
	set := func(name string, v any, is bool) {
		if is {
			out.Set["yggdrasil."+name] = v
		}
	}
	set("peers", peers, len(peers) > 0)
	set("listen", listen, len(listen) > 0)
	set("allowed_public_keys", allowed, len(allowed) > 0)
	set("group_password", group, group != "")
	set("multicast", multicast, len(multicast) > 0)
	switch {
	case admin == "" || admin == "none":
	case checkAdmin(admin) == nil:
		set("admin", admin, true)
	default:
		out.Notes = append(out.Notes, "AdminListen is left out: Weft's admin socket stays on this device (unix:///PATH or tcp://127.0.0.1:PORT).")
	}
	if mtu != 65535 {
		out.Notes = append(out.Notes, "IfMTU is left out: Weft finds out by itself how large packets may be.")
	}
	for _, name := range []string{"NodeInfo", "NodeInfoPrivacy", "IfName", "LogLookups"} {
		if v, ok := r.get(name); ok && v != nil && v != false && v != "auto" && fmt.Sprint(v) != "map[]" {
			out.Notes = append(out.Notes, name+" is left out: Weft has no such setting, or one of its own.")
		}
	}
	for name := range doc {
		if !slices.ContainsFunc(yggKnown, func(k string) bool { return strings.EqualFold(k, name) }) {
			out.Notes = append(out.Notes, fmt.Sprintf("%s is left out: Yggdrasil 0.5 has no such setting.", name))
		}
	}
	slices.Sort(out.Notes)
	return out, nil
}

var yggKnown = []string{"PrivateKey", "PrivateKeyPath", "Certificate", "Peers", "InterfacePeers", "Listen", "AdminListen", "MulticastInterfaces", "AllowedPublicKeys",
	"GroupPassword", "IfName", "IfMTU", "LogLookups", "NodeInfoPrivacy", "NodeInfo"}

// yggSeed finds the private key. The seed is its first half; the second is the public key, which must fit.
func yggSeed(key, path string) ([]byte, error) {
	var priv ed25519.PrivateKey
	switch {
	case path != "":
		b, err := readBounded(path)
		if err != nil {
			return nil, fmt.Errorf("PrivateKeyPath: %w", err)
		}
		p, _ := pem.Decode(b)
		if p == nil || p.Type != "PRIVATE KEY" {
			return nil, fmt.Errorf("PrivateKeyPath: %s holds no PEM block PRIVATE KEY", path)
		}
		k, err := x509.ParsePKCS8PrivateKey(p.Bytes)
		if err != nil {
			return nil, fmt.Errorf("PrivateKeyPath: %s: %w", path, err)
		}
		ed, ok := k.(ed25519.PrivateKey)
		if !ok {
			return nil, fmt.Errorf("PrivateKeyPath: the key in %s is not an Ed25519 key", path)
		}
		priv = ed
	case key == "":
		return nil, errors.New("PrivateKey: is missing, and so is PrivateKeyPath")
	default:
		b, err := hex.DecodeString(key)
		if err != nil || len(b) != ed25519.PrivateKeySize {
			return nil, fmt.Errorf("PrivateKey: must have %d hex digits, has %d characters", 2*ed25519.PrivateKeySize, len(key)) // a secret: not quoted
		}
		priv = b
	}
	if !ed25519.NewKeyFromSeed(priv.Seed()).Equal(priv) {
		return nil, errors.New("PrivateKey: its two halves do not belong together; was it cut or mistyped?")
	}
	return priv.Seed(), nil
}

// yggReader reads fields of a document, whatever their case, and keeps the first thing that is wrong.
type yggReader struct {
	doc    map[string]any
	failed error
	err    *yggReader // where to report, when not here
}

func (r *yggReader) fail(name, want string) {
	to := r
	if r.err != nil {
		to = r.err
	}
	if to.failed == nil {
		to.failed = fmt.Errorf("%s: must be %s", name, want)
	}
}

func (r *yggReader) get(name string) (any, bool) {
	if v, ok := r.doc[name]; ok {
		return v, true
	}
	for k, v := range r.doc {
		if strings.EqualFold(k, name) {
			return v, true
		}
	}
	return nil, false
}

func (r *yggReader) text(name string) string {
	v, _ := r.get(name)
	s, ok := v.(string)
	if !ok && v != nil {
		r.fail(name, "a string")
	}
	return s
}

func (r *yggReader) flag(name string) bool {
	v, _ := r.get(name)
	b, ok := v.(bool)
	if !ok && v != nil {
		r.fail(name, "true or false")
	}
	return b
}

// number is the most there may be when it is missing.
func (r *yggReader) number(name string, most float64) float64 {
	v, ok := r.get(name)
	if !ok || v == nil {
		return most
	}
	f, ok := v.(float64)
	if !ok || f != math.Trunc(f) || f < 0 || f > most {
		r.fail(name, fmt.Sprintf("a whole number up to %.0f", most))
		return 0
	}
	return f
}

func (r *yggReader) list(name string) []string {
	v, _ := r.get(name)
	a, ok := v.([]any)
	if !ok && v != nil || len(a) > maxList {
		r.fail(name, fmt.Sprintf("a list of at most %d strings", maxList))
		return nil
	}
	var out []string
	for _, x := range a {
		s, ok := x.(string)
		if !ok {
			r.fail(name, "a list of strings")
		}
		out = append(out, s)
	}
	return out
}

func (r *yggReader) table(name string) map[string]any {
	v, _ := r.get(name)
	m, ok := v.(map[string]any)
	if !ok && v != nil {
		r.fail(name, "a table of lists")
	}
	return m
}

func (r *yggReader) multicast() (out []YggMulticast) {
	v, _ := r.get("MulticastInterfaces")
	list, ok := v.([]any)
	if !ok && v != nil || len(list) > 64 {
		r.fail("MulticastInterfaces", "a list of at most 64 tables")
		return nil
	}
	for i, x := range list {
		doc, ok := x.(map[string]any)
		if !ok {
			r.fail(fmt.Sprintf("MulticastInterfaces[%d]", i+1), "a table")
			return nil
		}
		in := &yggReader{doc: doc, err: r}
		m := YggMulticast{Regex: in.text("Regex"), Beacon: in.flag("Beacon"), Listen: in.flag("Listen"), Password: in.text("Password")}
		if _, ok := in.get("Port"); ok {
			m.Port = uint16(in.number("Port", 65535))
		}
		if _, ok := in.get("Priority"); ok {
			m.Priority = uint8(in.number("Priority", 254))
		}
		if err := m.check(); err != nil && r.failed == nil {
			r.failed = fmt.Errorf("MulticastInterfaces[%d]: %w", i+1, err)
		}
		out = append(out, m)
	}
	return out
}
