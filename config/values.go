package config

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// Role is router or leaf.
type Role string

// The roles.
const (
	RoleRouter Role = "router"
	RoleLeaf   Role = "leaf"
)

// Switch is on, off or auto.
type Switch string

// The positions of a Switch.
const (
	Auto Switch = "auto"
	On   Switch = "on"
	Off  Switch = "off"
)

// Proto is tcp or udp; the zero value is tcp.
type Proto string

// UDP reports whether p is udp.
func (p Proto) UDP() bool { return p == "udp" }

// Level is how much is logged: debug, info, warn or error.
type Level string

// Slog returns the level as slog has it.
func (l Level) Slog() slog.Level {
	var s slog.Level
	s.UnmarshalText([]byte(l)) // Load has refused what is not a level
	return s
}

// Format is the form of the log: text or json.
type Format string

// Secret is the key of a closed network. It prints as stars everywhere but in
// the files that keep it; Reveal returns it.
type Secret [32]byte

// NewSecret makes a key.
func NewSecret() Secret {
	var s Secret
	rand.Read(s[:])
	return s
}

// Reveal returns the key, for deriving from it and for invitations.
func (s Secret) Reveal() [32]byte { return s }

// Format prints stars whatever the verb, LogValue whatever the handler.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, "***") }
func (s Secret) LogValue() slog.Value       { return slog.StringValue("***") }

// MarshalText writes the key: config files and the file of what commands added
// are its only users.
func (s Secret) MarshalText() ([]byte, error) {
	if s == (Secret{}) {
		return nil, nil
	}
	return []byte(hex.EncodeToString(s[:])), nil
}

// UnmarshalText reads what MarshalText writes.
func (s *Secret) UnmarshalText(b []byte) error {
	*s = Secret{}
	if len(b) == 0 {
		return nil
	}
	n, err := hex.Decode(s[:], b[:min(len(b), 64)])
	if err != nil || n != 32 || len(b) != 64 {
		*s = Secret{}
		return errors.New("a community key has 64 hex digits; make one with: weft init --closed") // the text is a secret: not quoted
	}
	if *s == (Secret{}) {
		return errors.New("a community key of zeros protects nothing; make one with: weft init --closed")
	}
	return nil
}
