package config

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weft/ident"
)

func yggKey() (ed25519.PrivateKey, string) {
	k := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))
	return k, hex.EncodeToString(k)
}

// TestReadYggdrasil: an HJSON file as yggdrasil -genconf writes it, and the same as JSON, become a config that loads.
func TestReadYggdrasil(t *testing.T) {
	key, hexed := yggKey()
	hj := "{\n  # Your private key. DO NOT share this with anyone!\n  PrivateKey: " + hexed + `
  Peers: [
    tls://192.0.2.7:443
    tcp://[2001:db8::1]:9002?key=` + hexKey + `
  ]
  InterfacePeers: { eth1: [ "quic://192.0.2.9:1?priority=3" ] }
  Listen: [ "tls://[::]:9003" ]
  AdminListen: unix:///var/run/yggdrasil/yggdrasil.sock
  MulticastInterfaces: [
    { Regex: "en.*", Beacon: true, Listen: true, Port: 9004, Priority: 2, Password: "pa\"ss" }
    { Regex: ".*", Beacon: false, Listen: true, Password: "" }
  ]
  AllowedPublicKeys: [ "` + hexKey + `" ]
  GroupPassword: club
  IfName: auto
  IfMTU: 9000
  NodeInfoPrivacy: false
  NodeInfo: { name: "x" }
  Colour: red
}`
	js := `{"PrivateKey":"` + hexed + `","Peers":["tls://192.0.2.7:443"],"Listen":[],"IfMTU":65535,"NodeInfo":{},"MulticastInterfaces":null}`
	for name, text := range map[string]string{"hjson": hj, "json": js, "bom": "\xef\xbb\xbf" + js} {
		file := filepath.Join(t.TempDir(), "yggdrasil.conf")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		from, err := ReadYggdrasil(file)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !bytes.Equal(from.Seed, key.Seed()) {
			t.Errorf("%s: another key", name)
		}
		if strings.Contains(strings.Join(from.Notes, " "), hexed) {
			t.Errorf("%s: the key is in the notes", name)
		}
		out, err := Example(from.Set)
		if err != nil {
			t.Fatal(err)
		}
		c, err := Parse(name, out)
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		want := Yggdrasil{Enabled: On, Peers: []string{"tls://192.0.2.7:443"}}
		if name == "hjson" {
			k, _ := ident.ParsePublicKey(hexKey)
			want.Peers = append(want.Peers, "tcp://[2001:db8::1]:9002?key="+hexKey, "quic://192.0.2.9:1?priority=3&interface=eth1")
			want.Listen, want.Allowed, want.Password = []string{"tls://[::]:9003"}, []ident.PublicKey{k}, "club"
			want.Admin = "unix:///var/run/yggdrasil/yggdrasil.sock"
			want.Multicast = []YggMulticast{{"en.*", true, true, 9004, 2, "pa\"ss"}, {".*", false, true, 0, 0, ""}}
			for _, n := range []string{"IfMTU", "NodeInfo", "Colour"} {
				if !strings.Contains(strings.Join(from.Notes, "\n"), n+" is left out") {
					t.Errorf("no note on %s: %q", n, from.Notes)
				}
			}
		} else if len(from.Notes) > 0 {
			t.Errorf("%s: notes %q", name, from.Notes)
		}
		if d := cmp.Diff(want, c.Yggdrasil); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// TestReadYggdrasilErrors: what is wrong is named by its field, and the key is not shown.
func TestReadYggdrasilErrors(t *testing.T) {
	key, hexed := yggKey()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good.pem"), filepath.Join(dir, "bad.pem")
	for name, b := range map[string][]byte{good: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), bad: []byte("no key")} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if from, err := parseYggdrasil([]byte(`{"PrivateKeyPath":"` + good + `"}`)); err != nil || !bytes.Equal(from.Seed, key.Seed()) {
		t.Errorf("a key in a file of its own: %v", err)
	}
	with := func(s string) string { return `{"PrivateKey":"` + hexed + `",` + s + `}` }
	for text, want := range map[string]string{
		`{`:                                                        "not HJSON",
		`{}`:                                                       "PrivateKey: is missing",
		`{"PrivateKey":"` + hexed[:126] + `"}`:                     "PrivateKey: must have 128 hex digits, has 126",
		`{"PrivateKey":"` + hexed[:126] + `00"}`:                   "PrivateKey: its two halves",
		`{"PrivateKey":5}`:                                         "PrivateKey: must be a string",
		`{"PrivateKeyPath":"` + bad + `"}`:                         "PrivateKeyPath: ",
		`{"PrivateKeyPath":"` + dir + `/none"}`:                    "PrivateKeyPath: ",
		with(`"Peers":["udp://h:1"]`):                              "Peers[1]: ",
		with(`"Peers":"tcp://h:1"`):                                "Peers: must be a list",
		with(`"InterfacePeers":{"e":"x"}`):                         "e: must be a list",
		with(`"Listen":["tcp://h:1"]`):                             "Listen[1]: ",
		with(`"AllowedPublicKeys":["12"]`):                         "AllowedPublicKeys[1]: ",
		with(`"IfMTU":"big"`):                                      "IfMTU: must be a whole number",
		with(`"MulticastInterfaces":[{"Regex":"("}]`):              "MulticastInterfaces[1]: regex",
		with(`"MulticastInterfaces":[{"Regex":"x","Beacon":1}]`):   "Beacon: must be true or false",
		with(`"MulticastInterfaces":[{"Regex":"x","Port":99999}]`): "Port: must be a whole number",
	} {
		_, err := parseYggdrasil([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s\n got: %v\nwant: %s", text, err, want)
		}
		if err != nil && strings.Contains(err.Error(), hexed[:40]) {
			t.Error("the key is in the error")
		}
	}
}

// FuzzReadYggdrasil: any file is read or refused, and what is read gives a config that loads.
func FuzzReadYggdrasil(f *testing.F) {
	_, hexed := yggKey()
	f.Add([]byte("{\n PrivateKey: " + hexed + "\n Peers: [\n tls://h:1\n ]\n}"))
	f.Add([]byte(`{"PrivateKey":"` + hexed + `","MulticastInterfaces":[{"Regex":".*"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if bytes.Contains(bytes.ToLower(text), []byte("privatekeypath")) {
			return // reads another file
		}
		from, err := parseYggdrasil(text)
		if err != nil {
			return
		}
		out, err := Example(from.Set)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse("x", out); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	})
}
