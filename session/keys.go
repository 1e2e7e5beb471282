package session

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/cpu"

	"weft/forward"
)

// keypair is what one handshake yields.
type keypair struct {
	s         *Session
	send      cipher.AEAD
	recv      cipher.AEAD
	cipher    suite
	local     uint32 // the index that the peer puts into its packets
	remote    uint32
	initiator bool
	created   int64
	counter   atomic.Uint64 // last used for sending
	confirmed atomic.Bool   // the peer is known to have the keys
	dead      atomic.Bool   // no longer in byIndex

	mu     sync.Mutex // guards window
	window forward.Window
}

// suite is the AEAD of a key pair, chosen by the responder from what both can do.
type suite uint8

const (
	suiteChaCha suite = 1
	suiteAES    suite = 2 // AES-256-GCM: only where both have it in hardware
)

func (s suite) String() string {
	switch s {
	case suiteChaCha:
		return "ChaCha20-Poly1305"
	case suiteAES:
		return "AES-256-GCM"
	}
	return fmt.Sprintf("suite %d", uint8(s))
}

func (s suite) aead(key [32]byte) (cipher.AEAD, error) {
	switch s {
	case suiteChaCha:
		return chacha20poly1305.New(key[:])
	case suiteAES:
		b, err := aes.NewCipher(key[:])
		if err != nil {
			return nil, err
		}
		return cipher.NewGCM(b)
	}
	return nil, fmt.Errorf("unknown %v", s)
}

// fastAES reports whether AES-GCM runs in hardware here; without, it is slow and leaks through the cache.
func fastAES() bool {
	switch runtime.GOARCH {
	case "amd64", "386":
		return cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ
	case "arm64":
		return cpu.ARM64.HasAES && cpu.ARM64.HasPMULL
	case "s390x":
		return cpu.S390X.HasAES && cpu.S390X.HasAESGCM
	}
	return false
}

// own makes k findable under the index that it has, and its session's by place, which is called with the session's lock
// and returns the keys that k pushes out. Both happen at once: a session that was dropped meanwhile takes no keys, or
// nobody would ever let go of them. False when it was, or when the index is taken.
func (m *Manager) own(k *keypair, place func() (out *keypair)) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := k.s
	if s.gone.Load() || m.byIndex[k.local] != nil {
		return false
	}
	s.mu.Lock()
	out := place()
	s.mu.Unlock()
	m.byIndex[k.local] = k
	m.disownLocked(out)
	return true
}

// disown makes keys unusable for receiving.
func (m *Manager) disown(ks ...*keypair) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.disownLocked(ks...)
}

func (m *Manager) disownLocked(ks ...*keypair) {
	for _, k := range ks {
		if k != nil {
			k.dead.Store(true)
			if m.byIndex[k.local] == k {
				delete(m.byIndex, k.local)
			}
		}
	}
}

// expireLocked takes keys that are too old out of use and returns them, to be disowned.
func (s *Session) expireLocked(now int64) (out []*keypair) {
	old := func(k *keypair) bool { return k != nil && now-k.created > int64(rejectAfter) }
	if k := s.cur.Load(); old(k) {
		s.cur.Store(nil)
		out = append(out, k)
	}
	for _, p := range []**keypair{&s.prev, &s.next[0], &s.next[1]} {
		if old(*p) {
			out = append(out, *p)
			*p = nil
		}
	}
	return out
}

// promote puts a key pair into use that the peer has confirmed by sending with it, and reports whether it is in use.
func (s *Session) promote(k *keypair) bool {
	s.mu.Lock()
	if k.confirmed.Load() || s.next[0] != k && s.next[1] != k {
		s.mu.Unlock()
		return k.confirmed.Load()
	}
	s.confirmLocked(k)
	for i, n := range s.next {
		if n == k {
			s.next[i] = nil
		}
	}
	out := s.prev
	s.prev = s.cur.Swap(k)
	waiting := len(s.pending) > 0
	s.mu.Unlock()
	s.m.disown(out)
	if waiting {
		s.m.wantHandshake(s) // the worker sends what waits
	}
	return true
}

// confirmLocked notes that the peer has the keys: it knows its private key and the PSK. Before that, whoever has written an
// Init is nobody to the firewall.
func (s *Session) confirmLocked(k *keypair) {
	if s.filter == nil {
		s.filter = s.m.cfg.Filter(s.peer)
	}
	k.confirmed.Store(true)
}

// adoptLocked puts a key pair into use that this node's own handshake yielded.
func (s *Session) adoptLocked(k *keypair) (out *keypair) {
	s.confirmLocked(k)
	out = s.prev
	s.prev = s.cur.Swap(k)
	return out
}
