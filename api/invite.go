package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"weft/ident"
)

// LinkPrefix opens every invitation link.
const LinkPrefix = "weft://join/"

// Limits of an invitation: it must fit a QR code that a phone can read.
const (
	MaxInvitePeers = 8
	maxInviteURI   = 200
	maxInviteName  = 63
)

// Invitation is what an invitation link carries (docs/spec/link.md). All
// integers are big endian:
//
//	version 1 (= 1) | flags 1 (1: a community key follows)
//	inviter's key 32
//	expiry 8 (Unix seconds, 0 for none)
//	community key 32, if flagged
//	name: length 1, UTF-8
//	peers: count 1, then each: length 1, URI
//	signature 64 over everything before it, domain weft/invite/1
//	checksum 4: the first bytes of SHA-256 over everything before it
//
// The link is the prefix and the base64url form without padding. The signature
// says who invites; it is not proof that the inviter may be trusted.
type Invitation struct {
	Inviter      ident.PublicKey
	Name         string    // what the inviter calls itself
	Expires      time.Time // zero: never
	CommunityKey [32]byte  // zero: the open network
	Peers        []string  // URIs
}

// Link signs the invitation and returns its link.
func (v Invitation) Link(sign func(msg []byte) ident.Signature) (string, error) {
	switch {
	case len(v.Peers) > MaxInvitePeers:
		return "", Errorf(CodeTooMany, "an invitation carries at most %d peers, not %d", MaxInvitePeers, len(v.Peers))
	case !nameOK(v.Name):
		return "", Errorf(CodeBadRequest, "the name in an invitation has at most %d bytes of printable UTF-8", maxInviteName)
	}
	b := []byte{1, 0}
	b = append(b, v.Inviter[:]...)
	var exp uint64
	if !v.Expires.IsZero() {
		exp = uint64(max(v.Expires.Unix(), 1))
	}
	b = binary.BigEndian.AppendUint64(b, exp)
	if v.CommunityKey != ([32]byte{}) {
		b[1] = 1
		b = append(b, v.CommunityKey[:]...)
	}
	b = append(append(b, byte(len(v.Name))), v.Name...)
	b = append(b, byte(len(v.Peers)))
	for _, p := range v.Peers {
		if p == "" || len(p) > maxInviteURI || !printable(p) {
			return "", Errorf(CodeBadURI, "the peer %q does not fit an invitation", p)
		}
		b = append(append(b, byte(len(p))), p...)
	}
	sig := sign(b)
	b = append(b, sig[:]...)
	sum := sha256.Sum256(b)
	b = append(b, sum[:4]...)
	return LinkPrefix + base64.RawURLEncoding.EncodeToString(b), nil
}

// errLink is what ParseInvitation says of every malformed link.
var errLink = errors.New("malformed")

// ParseInvitation reads a link and checks its checksum, its signature and that
// it has not lapsed.
func ParseInvitation(link string, now time.Time) (Invitation, error) {
	bad := func(why string) (Invitation, error) {
		return Invitation{}, Errorf(CodeInviteInvalid, "this is not a whole invitation: %s", why).
			WithHint("copy the link again, from %s to its end", LinkPrefix)
	}
	link = strings.TrimSpace(link)
	text, ok := strings.CutPrefix(link, LinkPrefix)
	if !ok {
		return bad("it does not begin with " + LinkPrefix)
	}
	if len(text) > 4096 {
		return bad("it is too long")
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < 4+64 {
		return bad("characters are missing or wrong")
	}
	sum := sha256.Sum256(b[:len(b)-4])
	if subtle.ConstantTimeCompare(sum[:4], b[len(b)-4:]) != 1 {
		return bad("the checksum does not fit")
	}
	b = b[:len(b)-4]
	body, sig := b[:len(b)-64], ident.Signature(b[len(b)-64:])
	v, exp, err := parseInvitation(body)
	if err != nil {
		return bad("it is of a kind that this version does not know")
	}
	if !v.Inviter.Verify(ident.DomainInvite, body, sig) {
		return bad("the signature is wrong")
	}
	if exp != 0 {
		v.Expires = time.Unix(int64(exp), 0)
		if now.After(v.Expires) {
			return Invitation{}, Errorf(CodeInviteExpired, "this invitation lapsed on %s", v.Expires.Format("2006-01-02 15:04")).WithHint("ask for a new one; if it is new, look at this device's clock")
		}
	}
	return v, nil
}

// parseInvitation reads what the signature covers.
func parseInvitation(b []byte) (v Invitation, exp uint64, err error) {
	ok := true
	take := func(n int) []byte {
		if !ok || len(b) < n {
			ok = false
			return make([]byte, n)
		}
		p := b[:n]
		b = b[n:]
		return p
	}
	head := take(2)
	if head[0] != 1 || head[1]&^1 != 0 {
		return v, 0, errLink
	}
	v.Inviter = ident.PublicKey(take(32))
	exp = binary.BigEndian.Uint64(take(8))
	if head[1]&1 != 0 {
		v.CommunityKey = [32]byte(take(32))
		ok = ok && v.CommunityKey != [32]byte{}
	}
	v.Name = string(take(int(take(1)[0])))
	n := int(take(1)[0])
	if !ok || n > MaxInvitePeers || !nameOK(v.Name) || exp > 1<<40 {
		return v, 0, errLink
	}
	for range n {
		p := string(take(int(take(1)[0])))
		if p == "" || len(p) > maxInviteURI || !printable(p) {
			return v, 0, errLink
		}
		v.Peers = append(v.Peers, p)
	}
	if !ok || len(b) != 0 {
		return v, 0, fmt.Errorf("%w: its length is wrong", errLink)
	}
	return v, exp, nil
}

// nameOK reports whether s may stand as a name in an invitation.
func nameOK(s string) bool {
	return len(s) <= maxInviteName && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// printable reports whether s is visible ASCII, so that a terminal shows
// nothing but what is there.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
