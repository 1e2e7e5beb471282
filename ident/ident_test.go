package ident

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/yggdrasil-network/yggdrasil-go/src/address"
	"pgregory.net/rapid"
)

// The library's own derivation is the oracle.
func TestAddressesAreYggdrasils(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := PublicKey(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "key"))
		for i := range rapid.IntRange(0, 14).Draw(t, "zeros") { // strong keys begin with zero bits
			k[i] = 0
		}
		want := address.AddrForKey(ed25519.PublicKey(k[:]))
		if got := k.Addr().As16(); got != [16]byte(*want) {
			t.Fatalf("key %v: address %x, Yggdrasil says %x", k, got, *want)
		}
		sub := address.SubnetForKey(ed25519.PublicKey(k[:]))
		if got := k.Subnet().Addr().As16(); [8]byte(got[:8]) != [8]byte(*sub) {
			t.Fatalf("key %v: subnet %x, Yggdrasil says %x", k, got, *sub)
		}
	})
}

func TestX25519HalvesAgree(t *testing.T) {
	a, b := newAgent(t), newAgent(t)
	for _, ag := range []*Agent{a, b} {
		x, err := ag.Public().X25519()
		if err != nil || x != ag.X25519() {
			t.Fatalf("public key maps to %x (%v), the agent's half is %x", x, err, ag.X25519())
		}
	}
	bx, ax := b.X25519(), a.X25519()
	s1, err1 := a.DH(bx[:])
	s2, err2 := b.DH(ax[:])
	if err1 != nil || err2 != nil || !bytes.Equal(s1, s2) {
		t.Fatalf("secrets differ: %x %x %v %v", s1, s2, err1, err2)
	}
}

func TestX25519RefusesBadPoints(t *testing.T) {
	var small PublicKey
	small[0] = 1 // the identity
	if _, err := small.X25519(); err == nil {
		t.Error("the identity point was taken as a key")
	}
	if _, err := (PublicKey{}).X25519(); err == nil {
		t.Error("a point of order four was taken as a key")
	}
	if _, err := newAgent(t).DH(make([]byte, 32)); err == nil {
		t.Error("a zero shared secret was accepted")
	}
	if _, err := newAgent(t).DH(make([]byte, 31)); err == nil {
		t.Error("a short key was accepted")
	}
	if _, err := ecdh.X25519().GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
}

func TestSignaturesAreBoundToTheirDomain(t *testing.T) {
	a := newAgent(t)
	msg := []byte("hello")
	sig := a.Sign(DomainLSA, msg)
	if !a.Public().Verify(DomainLSA, msg, sig) {
		t.Fatal("own signature refused")
	}
	if a.Public().Verify(DomainInvite, msg, sig) {
		t.Error("a signature of one domain passed in another")
	}
	if a.Public().Verify(DomainLSA, []byte("hellp"), sig) {
		t.Error("a signature passed for another message")
	}
	if newAgent(t).Public().Verify(DomainLSA, msg, sig) {
		t.Error("a signature passed for another key")
	}
}

func TestKeyFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	a, created, err := Load(dir)
	if err != nil || !created {
		t.Fatalf("first load: created=%v err=%v", created, err)
	}
	path := filepath.Join(dir, KeyFile)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("key file is %v (%v), want 0600", info.Mode(), err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	b, created, err := Load(dir)
	if err != nil || created || b.Public() != a.Public() {
		t.Fatalf("second load: created=%v err=%v same=%v", created, err, b.Public() == a.Public())
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("a key file open to others stayed %v", info.Mode())
	}
	if err := newAgent(t).Save(dir); err == nil {
		t.Error("a key was written over another")
	}
	if err := os.WriteFile(path, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "backup") {
		t.Errorf("a broken key file gave %v", err)
	}
}

func TestAgentNeverPrintsItsKey(t *testing.T) {
	a := newAgent(t)
	secret := fmt.Sprintf("%x", a.priv.Seed())
	for _, s := range []string{fmt.Sprint(a), fmt.Sprintf("%+v", a), fmt.Sprintf("%#v", a), a.LogValue().String()} {
		if strings.Contains(s, secret) {
			t.Fatalf("the private key shows in %q", s)
		}
	}
}

func TestCertificateCarriesTheKey(t *testing.T) {
	a := newAgent(t)
	c, err := a.Certificate()
	if err != nil || len(c.Certificate) != 1 {
		t.Fatal(err)
	}
}

func TestTextForms(t *testing.T) {
	a := newAgent(t).Public()
	b, err := ParsePublicKey(a.String())
	if err != nil || a != b {
		t.Fatalf("key text does not round-trip: %v", err)
	}
	id, err := ParseNodeID(a.ID().String())
	if err != nil || id != a.ID() {
		t.Fatalf("id text does not round-trip: %v", err)
	}
	for _, bad := range []string{"", "zz", strings.Repeat("g", 64), a.String() + "00"} {
		if _, err := ParsePublicKey(bad); err == nil {
			t.Errorf("%q was taken as a key", bad)
		}
		if _, err := ParseNodeID(bad); err == nil {
			t.Errorf("%q was taken as an id", bad)
		}
	}
}

func ExamplePublicKey_Addr() {
	var k PublicKey
	k[0], k[1] = 0x00, 0x3f
	fmt.Println(k.Addr(), k.Subnet())
	// Output: 20a:7ff:ffff:ffff:ffff:ffff:ffff:ffff 30a:7ff:ffff:ffff::/64
}

func newAgent(t testing.TB) *Agent {
	t.Helper()
	a, err := Generate()
	if err != nil {
		t.Fatal(err)
	}
	return a
}
