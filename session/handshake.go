package session

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"time"

	"github.com/flynn/noise"
	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"

	"weft/ident"
)

// Handshake packets (docs/spec/session.md section 4), Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s (Noise rev. 34):
//
//	Init    1 | 0 0 0 | sender index 4 | e 32, s 48, payload 48+16 | hint 8 | mac1 16 | mac2 16          192 bytes
//	        payload: Ed25519 key 32 | timestamp 8 | suites 1 | 0 × 7
//	Resp    2 | 0 0 0 | sender index 4 | receiver index 4 | e 32, payload 8+16 | mac1 16 | mac2 16       100 bytes
//	        payload: suite 1 | 0 × 7
//	Cookie  3 | 0 0 0 | receiver index 4 | nonce 24 | sealed cookie 16+16                                 64 bytes
//
// mac1 and mac2 are WireGuard's. The header of a hop names no source, so a node under load could not answer with a cookie;
// an initiator that stays unanswered therefore names itself in the hint, masked with what only those who know the
// responder's key can compute. Without load nobody on the way learns who is calling.
const (
	initNoise  = 32 + 48 + 48 + 16
	initLen    = 8 + initNoise + 8 + 16 + 16
	respNoise  = 32 + 8 + 16
	respLen    = 12 + respNoise + 16 + 16
	cookieLen  = 8 + 24 + 32
	macsLen    = 32
	hintOffset = 8 + initNoise

	prologue    = "weft/session/1"
	labelMAC1   = "weft/mac1/1"
	labelCookie = "weft/cookie/1"
	labelHint   = "weft/hint/1"

	cookieLife = 120 * time.Second
)

// handshaker makes and reads handshake packets. It keeps no session.
type handshaker struct {
	agent  *ident.Agent
	suites byte
	psk    [32]byte
	noise  noise.CipherSuite
	pub    [32]byte

	mac1Key   [32]byte // of packets to this node
	cookieKey [32]byte
	hintKey   [32]byte

	mu          sync.Mutex // guards the cookie secret
	secret      [32]byte
	secretSince time.Time

	lastStamp uint64 // of own Inits; only the worker touches it
}

func (h *handshaker) init(a *ident.Agent, psk [32]byte) error {
	h.agent, h.psk, h.pub = a, psk, a.X25519()
	h.suites = 1 << suiteChaCha
	if fastAES() {
		h.suites |= 1 << suiteAES
	}
	h.noise = noise.NewCipherSuite(dh{a}, noise.CipherChaChaPoly, noise.HashBLAKE2s)
	h.mac1Key, h.cookieKey, h.hintKey = derived(a.Public())
	if _, err := rand.Read(h.secret[:]); err != nil {
		return fmt.Errorf("make cookie secret: %w", err)
	}
	h.secretSince = time.Now()
	return nil
}

func derived(k ident.PublicKey) (mac1, cookie, hint [32]byte) {
	sum := func(label string) [32]byte { return blake2s.Sum256(append([]byte(label), k[:]...)) }
	return sum(labelMAC1), sum(labelCookie), sum(labelHint)
}

// dh is noise's Diffie–Hellman with the static key left inside the agent: an empty private key means the agent's.
type dh struct{ a *ident.Agent }

func (dh) DHLen() int     { return 32 }
func (dh) DHName() string { return "25519" }
func (dh) GenerateKeypair(io.Reader) (noise.DHKey, error) {
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return noise.DHKey{}, err
	}
	return noise.DHKey{Private: k.Bytes(), Public: k.PublicKey().Bytes()}, nil
}

func (d dh) DH(private, public []byte) ([]byte, error) {
	if len(private) == 0 {
		return d.a.DH(public)
	}
	k, err := ecdh.X25519().NewPrivateKey(private)
	if err != nil {
		return nil, err
	}
	p, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		return nil, err
	}
	return k.ECDH(p)
}

func (h *handshaker) state(initiator bool, peer []byte) (*noise.HandshakeState, error) {
	return noise.NewHandshakeState(noise.Config{
		CipherSuite: h.noise, Pattern: noise.HandshakeIK, Initiator: initiator, Prologue: []byte(prologue),
		PresharedKey: h.psk[:], PresharedKeyPlacement: 2,
		StaticKeypair: noise.DHKey{Public: h.pub[:]}, PeerStatic: peer,
	})
}

func mac(key, msg []byte) (m [16]byte) {
	var f hash.Hash
	f, err := blake2s.New128(key)
	if err != nil {
		panic("session: blake2s refuses a 32-byte key: " + err.Error())
	}
	f.Write(msg)
	return [16]byte(f.Sum(nil))
}

// plausible checks form and mac1: all that is spent on a packet from somebody who does not know this node's key.
func (h *handshaker) plausible(e []byte) bool {
	if len(e) < 8 || e[1]|e[2]|e[3] != 0 {
		return false
	}
	switch e[0] {
	case typeInit:
		if len(e) != initLen {
			return false
		}
	case typeResp:
		if len(e) != respLen {
			return false
		}
	case typeCookie:
		return len(e) == cookieLen
	default:
		return false
	}
	at := len(e) - macsLen
	want := mac(h.mac1Key[:], e[:at])
	return subtle.ConstantTimeCompare(want[:], e[at:at+16]) == 1
}

// attempt is one side's try to open a session. The zero value is idle.
type attempt struct {
	state   *noise.HandshakeState
	local   uint32
	mac1    [16]byte
	started int64 // first try
	sent    int64 // newest try
	next    int64 // when to try again
	tries   int
	bad     int  // false Resps to the newest Init
	hurried bool // a cookie has made us repeat it at once

	cookie   [16]byte
	cookieAt int64
}

// buildInit makes an Init for peer.
func (h *handshaker) buildInit(peer ident.PublicKey, index uint32, a *attempt, now int64) ([]byte, error) {
	px, err := peer.X25519()
	if err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	st, err := h.state(true, px[:])
	if err != nil {
		return nil, fmt.Errorf("session: start handshake: %w", err)
	}
	self := h.agent.Public()
	payload := make([]byte, 48)
	copy(payload, self[:])
	h.lastStamp = max(uint64(max(time.Now().UnixMilli(), 0)), h.lastStamp+1)
	binary.BigEndian.PutUint64(payload[32:], h.lastStamp)
	payload[40] = h.suites
	b := make([]byte, 8, initLen)
	b[0] = typeInit
	binary.BigEndian.PutUint32(b[4:], index)
	if b, _, _, err = st.WriteMessage(b, payload); err != nil {
		return nil, fmt.Errorf("session: write Init: %w", err)
	}
	b = append(b, make([]byte, initLen-len(b))...)
	if a.tries > 1 { // unanswered: perhaps the peer is under load and would send a cookie
		binary.BigEndian.PutUint64(b[hintOffset:], uint64(self.ID())^hintMask(peer, b))
	}
	h.macs(b, peer, a, now)
	a.state, a.local, a.bad = st, index, 0
	return b, nil
}

// hintMask hides the hint from who does not know the responder's key.
func hintMask(responder ident.PublicKey, init []byte) uint64 {
	_, _, key := derived(responder)
	m := mac(key[:], init[8:40]) // over the ephemeral key, new in every Init
	return binary.BigEndian.Uint64(m[:])
}

func (h *handshaker) macs(b []byte, peer ident.PublicKey, a *attempt, now int64) {
	mac1Key, _, _ := derived(peer)
	at := len(b) - macsLen
	m1 := mac(mac1Key[:], b[:at])
	copy(b[at:], m1[:])
	if a != nil {
		a.mac1 = m1
		if a.cookieAt != 0 && now-a.cookieAt < int64(cookieLife) {
			m2 := mac(a.cookie[:], b[:at+16])
			copy(b[at+16:], m2[:])
		}
	}
}

// opened is what an Init or Resp says, once it is authentic.
type opened struct {
	peer   ident.PublicKey
	index  uint32
	stamp  uint64
	suite  suite
	state  *noise.HandshakeState
	c1, c2 *noise.CipherState // initiator to responder, and back
}

var errHandshake = errors.New("session: not a valid handshake packet")

// readInit opens an Init to this node.
func (h *handshaker) readInit(e []byte) (*opened, error) {
	st, err := h.state(false, nil)
	if err != nil {
		return nil, fmt.Errorf("session: answer handshake: %w", err)
	}
	payload, _, _, err := st.ReadMessage(nil, e[8:8+initNoise])
	if err != nil || len(payload) != 48 {
		return nil, errHandshake
	}
	o := &opened{peer: ident.PublicKey(payload), index: binary.BigEndian.Uint32(e[4:]), stamp: binary.BigEndian.Uint64(payload[32:]), state: st}
	x, err := o.peer.X25519()
	if err != nil || subtle.ConstantTimeCompare(x[:], st.PeerStatic()) != 1 { // the key that it names is the key that it has
		return nil, errHandshake
	}
	switch both := payload[40] & h.suites; {
	case both&(1<<suiteAES) != 0:
		o.suite = suiteAES
	case both&(1<<suiteChaCha) != 0:
		o.suite = suiteChaCha
	default:
		return nil, errHandshake
	}
	return o, nil
}

// buildResp answers an Init and completes the keys.
func (h *handshaker) buildResp(o *opened, local uint32) ([]byte, error) {
	b := make([]byte, 12, respLen)
	b[0] = typeResp
	binary.BigEndian.PutUint32(b[4:], local)
	binary.BigEndian.PutUint32(b[8:], o.index)
	var err error
	if b, o.c1, o.c2, err = o.state.WriteMessage(b, []byte{byte(o.suite), 0, 0, 0, 0, 0, 0, 0}); err != nil {
		return nil, fmt.Errorf("session: write Resp: %w", err)
	}
	b = append(b, make([]byte, macsLen)...)
	h.macs(b, o.peer, nil, 0)
	return b, nil
}

// readResp completes an attempt.
func (h *handshaker) readResp(e []byte, a *attempt) (*opened, error) {
	payload, c1, c2, err := a.state.ReadMessage(nil, e[12:12+respNoise])
	if err != nil { // flynn/noise rolls the state back: the genuine Resp may still come
		return nil, errHandshake
	}
	if len(payload) != 8 || c1 == nil {
		return nil, errHandshake
	}
	s := suite(payload[0])
	if s > 7 || h.suites&(1<<s) == 0 {
		return nil, errHandshake
	}
	return &opened{index: binary.BigEndian.Uint32(e[4:]), suite: s, c1: c1, c2: c2}, nil
}

// keypair turns the result of a handshake into keys.
func (o *opened) keypair(s *Session, initiator bool, local uint32, now int64) (*keypair, error) {
	k := &keypair{s: s, cipher: o.suite, local: local, remote: o.index, initiator: initiator, created: now}
	send, recv := o.c1, o.c2
	if !initiator {
		send, recv = recv, send
	}
	var err error
	if k.send, err = o.suite.aead(send.UnsafeKey()); err != nil {
		return nil, err
	}
	k.recv, err = o.suite.aead(recv.UnsafeKey())
	return k, err
}

// hint reads who sent an Init, zero when it does not say.
func (h *handshaker) hint(e []byte) ident.NodeID {
	v := binary.BigEndian.Uint64(e[hintOffset:])
	if v == 0 {
		return 0
	}
	m := mac(h.hintKey[:], e[8:40])
	return ident.NodeID(v ^ binary.BigEndian.Uint64(m[:]))
}

// cookie returns what proves that a node receives what is sent to id; the secret changes every two minutes.
func (h *handshaker) cookie(id ident.NodeID) [16]byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.secretSince) > cookieLife {
		if _, err := rand.Read(h.secret[:]); err == nil {
			h.secretSince = time.Now()
		}
	}
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(id))
	return mac(h.secret[:], b[:])
}

// provesSource checks mac2.
func (h *handshaker) provesSource(e []byte, id ident.NodeID) bool {
	c := h.cookie(id)
	at := len(e) - 16
	want := mac(c[:], e[:at])
	return subtle.ConstantTimeCompare(want[:], e[at:]) == 1
}

// buildCookie answers an Init under load.
func (h *handshaker) buildCookie(e []byte, id ident.NodeID) ([]byte, error) {
	b := make([]byte, 8+24, cookieLen)
	b[0] = typeCookie
	copy(b[4:8], e[4:8])
	if _, err := rand.Read(b[8:32]); err != nil {
		return nil, err
	}
	aead, err := chacha20poly1305.NewX(h.cookieKey[:])
	if err != nil {
		return nil, err
	}
	c := h.cookie(id)
	mac1 := e[len(e)-macsLen : len(e)-16]
	return aead.Seal(b, b[8:32], c[:], mac1), nil
}

// readCookie keeps the cookie for the attempt's next Init.
func (h *handshaker) readCookie(e []byte, peer ident.PublicKey, a *attempt, now int64) error {
	_, key, _ := derived(peer)
	aead, err := chacha20poly1305.NewX(key[:])
	if err != nil {
		return err
	}
	c, err := aead.Open(nil, e[8:32], e[32:], a.mac1[:])
	if err != nil || len(c) != 16 {
		return errHandshake
	}
	a.cookie, a.cookieAt = [16]byte(c), now
	return nil
}
