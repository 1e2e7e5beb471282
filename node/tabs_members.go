package node

import (
	"bytes"
	"slices"
	"sync"
	"time"

	"weft/ident"
)

// register remembers who is a member's node.
type register struct {
	mu    sync.Mutex // guards known
	known map[ident.PublicKey]*standing
}

type standing struct {
	member bool
	barred bool      // nobody serves it, as the members have voted
	sure   bool      // the key was shown to be a member's own: its record is never deleted
	at     time.Time // when the ledger said so; zero: never
	asked  bool      // somebody wants to know
	times  uint      // in a row that the answer was no
}

// The standings of a key, as the ledger has them.
const (
	ofBlocked  = iota - 1 // the members have voted that nobody serves it
	ofNobody              // there is no record of it
	ofInactive            // void, or of one who is not in good standing
	ofNode                // a member's node or delegate
	ofMember              // a member
)

func (r *register) is(now time.Time, k ident.PublicKey) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.known[k]
	if s == nil {
		if len(r.known) >= maxRegister {
			r.shrinkLocked(now)
		}
		if len(r.known) >= maxRegister {
			return false
		}
		s = &standing{}
		r.known[k] = s
	}
	every := memberEvery
	if !s.member { // may become one any moment; who has been none for long is asked for less often
		every = memberEvery / 12 << min(s.times/12, 2)
	}
	s.asked = s.asked || now.Sub(s.at) >= every
	return s.member
}

// shrinkLocked forgets an eighth: strangers first, whoever they are, since anybody can make up keys; then members of whom nobody has
// asked lately.
func (r *register) shrinkLocked(now time.Time) {
	most := maxRegister / 8 * 7
	for _, goes := range []func(*standing) bool{
		func(s *standing) bool { return !s.member && !s.at.IsZero() },
		func(s *standing) bool { return !s.member },
		func(s *standing) bool { return now.Sub(s.at) > memberEvery && !s.asked },
	} {
		for k, s := range r.known {
			if len(r.known) <= most {
				return
			}
			if goes(s) {
				delete(r.known, k)
			}
		}
	}
}

// due returns some of those to be asked for.
func (r *register) due(time.Time) (l []ident.PublicKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, s := range r.known {
		if s.asked && len(l) < 64 {
			l = append(l, k)
		}
	}
	return l
}

// note keeps an answer, and reports whether it is news. That there is no record of somebody who was a member is true of no ledger;
// of one that another node keeps it is not believed (own: this node does).
func (r *register) note(now time.Time, k ident.PublicKey, st int, own bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.known[k]
	if s == nil {
		return false
	}
	was := *s
	*s = standing{member: st >= ofNode, barred: st == ofBlocked, sure: st == ofMember, at: now}
	if st == ofNobody && was.sure && !own {
		s.member, s.sure = was.member, true
	}
	if !s.member {
		s.times = was.times + 1
	}
	return was.member != s.member
}

// barred reports whether the members have voted that nobody serves a node.
func (r *register) barred(k ident.PublicKey) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.known[k]
	return s != nil && s.barred
}

func (r *register) knows(k ident.PublicKey) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.known[k]
	return s != nil && (s.member || !s.at.IsZero())
}

func (r *register) list() (l []ident.PublicKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, s := range r.known {
		if s.member {
			l = append(l, k)
		}
	}
	slices.SortFunc(l, func(a, b ident.PublicKey) int { return bytes.Compare(a[:], b[:]) })
	return l
}

func (r *register) recall(l []ident.PublicKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range l[:min(len(l), maxRegister)] {
		if r.known[k] == nil {
			r.known[k] = &standing{member: true}
		}
	}
}
