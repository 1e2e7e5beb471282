package ident

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Agent keeps one private key and does what needs it. No method returns the key but the one that Yggdrasil's library makes
// necessary (PrivateKeyForYggdrasil). An Agent prints as its public half and is safe for concurrent use.
type Agent struct {
	priv   ed25519.PrivateKey
	x      *ecdh.PrivateKey
	public PublicKey
}

// KeyFile is the name of the private key in a node's state directory.
const KeyFile = "node.key"

// Generate makes a new key.
func Generate() (*Agent, error) {
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return FromSeed(priv.Seed())
}

// FromSeed rebuilds an agent from a 32-byte Ed25519 seed (RFC 8032 section 5.1.5).
func FromSeed(seed []byte) (*Agent, error) {
	if len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("a key seed has %d bytes, this has %d", ed25519.SeedSize, len(seed))
	}
	priv := ed25519.NewKeyFromSeed(seed)
	h := sha512.Sum512(seed) // the scalar of the Ed25519 key; ecdh clamps it as RFC 7748 section 5 asks
	x, err := ecdh.X25519().NewPrivateKey(h[:32])
	if err != nil {
		return nil, fmt.Errorf("derive X25519 key: %w", err)
	}
	return &Agent{priv: priv, x: x, public: PublicKey(priv.Public().(ed25519.PublicKey))}, nil
}

// Load reads the key in dir, or makes one there when there is none; created says which. The file is 0600 and is
// replaced by nothing here: a key file that cannot be read is an error, not a reason for a new identity.
func Load(dir string) (a *Agent, created bool, err error) {
	path := filepath.Join(dir, KeyFile)
	b, err := os.ReadFile(path)
	switch {
	case err == nil:
		a, err := parseKeyFile(b)
		if err != nil {
			return nil, false, fmt.Errorf("read %s: %w (restore it from your backup; deleting it gives this node a new address)", path, err)
		}
		if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
			if err := os.Chmod(path, 0o600); err != nil {
				return nil, false, fmt.Errorf("%s can be read by others and could not be locked: %w", path, err)
			}
		}
		return a, false, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, false, fmt.Errorf("read key: %w", err)
	}
	if a, err = Generate(); err != nil {
		return nil, false, err
	}
	return a, true, a.Save(dir)
}

// Save writes the key into dir, which it makes if need be. It refuses to replace a key that is already there.
func (a *Agent) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make state directory: %w (use one that you may write to: weft --state DIR)", err)
	}
	path := filepath.Join(dir, KeyFile)
	text := "# Weft private key. Whoever has this file is this node. Keep it secret, back it up.\n" + hex.EncodeToString(a.priv.Seed()) + "\n"
	tmp, err := os.CreateTemp(dir, ".key-*") // 0600 by CreateTemp
	if err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(text)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	if err := os.Link(tmp.Name(), path); err != nil { // link, not rename: never over an existing key
		return fmt.Errorf("write key: %w", err)
	}
	return nil
}

func parseKeyFile(b []byte) (*Agent, error) {
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		seed, err := hex.DecodeString(line)
		if err != nil {
			return nil, errors.New("the key is not written in hex digits")
		}
		return FromSeed(seed)
	}
	return nil, errors.New("the file holds no key")
}

// Public returns the public half.
func (a *Agent) Public() PublicKey { return a.public }

// Sign signs msg in domain d.
func (a *Agent) Sign(d Domain, msg []byte) Signature {
	return Signature(ed25519.Sign(a.priv, tagged(d, msg)))
}

// DH returns the X25519 shared secret with a peer's X25519 public key; an all-zero result is an error (RFC 7748 6.1).
func (a *Agent) DH(peer []byte) ([]byte, error) {
	p, err := ecdh.X25519().NewPublicKey(peer)
	if err != nil {
		return nil, fmt.Errorf("read X25519 key: %w", err)
	}
	s, err := a.x.ECDH(p)
	if err != nil {
		return nil, fmt.Errorf("agree on a secret: %w", err)
	}
	return s, nil
}

// X25519 returns the public half in its Diffie–Hellman form.
func (a *Agent) X25519() [32]byte { return [32]byte(a.x.PublicKey().Bytes()) }

// Certificate returns a self-signed certificate for the node's key, for the QUIC control channel. The key in it is the
// only thing a peer looks at; PeerKey reads it. TLS signs with its own context string (RFC 8446 section 4.4.3), which
// no Domain can equal.
func (a *Agent) Certificate() (tls.Certificate, error) {
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: a.public.ID().String()},
		NotBefore:    time.Unix(0, 0), // routers without a clock start in 1970
		NotAfter:     time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, a.priv.Public(), signer{a})
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: signer{a}}, nil
}

// PrivateKeyForYggdrasil returns a copy of the private key. It is the one hole in the Agent, and for package ygg alone (a test
// at the root of the repository holds all others to that): Yggdrasil's core wants an ed25519.PrivateKey and no signer,
// because it derives its session keys from the scalar. docs/adr/0004.
func (a *Agent) PrivateKeyForYggdrasil() ed25519.PrivateKey { return bytes.Clone(a.priv) }

// PeerKey returns the Ed25519 key in a TLS peer's first certificate.
func PeerKey(s tls.ConnectionState) (PublicKey, error) {
	if len(s.PeerCertificates) == 0 {
		return PublicKey{}, errors.New("the peer showed no certificate")
	}
	k, ok := s.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok {
		return PublicKey{}, errors.New("the peer's certificate has no Ed25519 key")
	}
	return PublicKey(k), nil
}

// signer lends the key to crypto/tls without handing it over.
type signer struct{ a *Agent }

func (s signer) Public() crypto.PublicKey { return s.a.priv.Public() }
func (s signer) Sign(r io.Reader, msg []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.a.priv.Sign(r, msg, opts)
}

// String, GoString, Format-by-%v and LogValue all show the public half only.
func (a *Agent) String() string       { return "agent of " + a.public.String() }
func (a *Agent) GoString() string     { return a.String() }
func (a *Agent) LogValue() slog.Value { return slog.StringValue(a.String()) }
