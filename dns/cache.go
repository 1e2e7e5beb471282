package dns

import (
	"container/list"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// cache keeps answers packed, so that their size is known and nobody can change them. It has no lock and no clock of its
// own. The least recently used goes first.
type cache struct {
	max, size int64
	entries   map[key]*list.Element
	recent    list.List // of *entry, the most recently used in front
}

type entry struct {
	key     key
	wire    []byte // the answer as a message
	notes   []note
	stored  time.Time
	ttl     time.Duration
	hits    int
	renewed bool // soonGone has said so
}

// overhead is about what an entry takes besides its bytes: the entry, list element and place in the map.
const overhead = 320

func (e *entry) size() int64 {
	n := overhead + len(e.key.name) + len(e.wire)
	for _, t := range e.notes {
		n += 24 + len(t.text)
	}
	return int64(n)
}

// freshness is what an entry is worth.
type freshness int

const (
	absent freshness = iota
	stale
	fresh
)

func (c *cache) init(most int64) {
	c.max = most
	c.clear()
}

func (c *cache) clear() {
	c.entries, c.size = map[key]*list.Element{}, 0
	c.recent.Init()
}

func (c *cache) stats() (entries int, bytes int64) { return len(c.entries), c.size }

func (c *cache) remove(el *list.Element) {
	e := c.recent.Remove(el).(*entry)
	delete(c.entries, e.key)
	c.size -= e.size()
}

// get returns what is known about k. TTLs are what is left of them; those of a stale answer are short, and it says that it
// is stale (RFC 8767 section 4, RFC 8914 section 4.4).
func (c *cache) get(k key, now time.Time) (answer, freshness) {
	el := c.entries[k]
	if el == nil {
		return answer{}, absent
	}
	e := el.Value.(*entry)
	age := max(0, now.Sub(e.stored))
	if age >= e.ttl+staleFor {
		c.remove(el)
		return answer{}, absent
	}
	var m dns.Msg
	if m.Unpack(e.wire) != nil { // we packed it
		c.remove(el)
		return answer{}, absent
	}
	c.recent.MoveToFront(el)
	e.hits++
	a := answer{rcode: m.Rcode, rrs: m.Answer, ns: m.Ns, authentic: m.AuthenticatedData, notes: slices.Clone(e.notes)}
	old := age >= e.ttl
	if old && failed(a.rcode) {
		c.remove(el) // an old failure helps nobody
		return answer{}, absent
	}
	for _, rr := range slices.Concat(a.rrs, a.ns) {
		h := rr.Header()
		if old {
			h.Ttl = staleTTL
		} else {
			h.Ttl -= min(h.Ttl, uint32(age/time.Second))
		}
	}
	if !old {
		return a, fresh
	}
	code := dns.ExtendedErrorCodeStaleAnswer
	if a.rcode == dns.RcodeNameError {
		code = dns.ExtendedErrorCodeStaleNXDOMAINAnswer
	}
	a.authentic = false // nothing vouches for it any more
	a.notes = append(a.notes, note{code, "nobody who could be asked answers: this is what was known last"})
	return a, stale
}

// soonGone reports, once, that an entry in use is about to expire, so that it can be asked for before.
func (c *cache) soonGone(k key, now time.Time) bool {
	el := c.entries[k]
	if el == nil {
		return false
	}
	e := el.Value.(*entry)
	if e.renewed || e.hits < 3 || e.ttl < time.Minute || now.Sub(e.stored) < e.ttl*9/10 {
		return false
	}
	e.renewed = true
	return true
}

// put keeps an answer for as long as it says, within bounds. A failure does not replace an answer that may yet be served
// stale.
func (c *cache) put(k key, a answer, now time.Time) {
	ttl := lifetime(k, a)
	if ttl <= 0 {
		return
	}
	if el := c.entries[k]; el != nil {
		e := el.Value.(*entry)
		if failed(a.rcode) && e.wire[3]&0xf != dns.RcodeServerFailure && now.Sub(e.stored) < e.ttl+staleFor {
			return
		}
		c.remove(el)
	}
	m := dns.Msg{MsgHdr: dns.MsgHdr{Response: true, Rcode: a.rcode, AuthenticatedData: a.authentic}, Compress: true, Answer: a.rrs, Ns: a.ns}
	for _, rr := range slices.Concat(a.rrs, a.ns) {
		h := rr.Header()
		h.Ttl = clampTTL(h.Ttl)
	}
	wire, err := m.Pack()
	if err != nil {
		return
	}
	e := &entry{key: k, wire: slices.Clip(wire), notes: a.notes, stored: now, ttl: ttl}
	if e.size() > c.max/8 {
		return
	}
	for c.size+e.size() > c.max {
		c.remove(c.recent.Back())
	}
	c.entries[k] = c.recent.PushFront(e)
	c.size += e.size()
}

// clampTTL: more than 2^31-1 means zero (RFC 2181 section 8).
func clampTTL(ttl uint32) uint32 {
	if ttl > 1<<31-1 {
		return 0
	}
	return max(min(ttl, uint32(maxTTL/time.Second)), uint32(minTTL/time.Second))
}

// lifetime is how long an answer may be kept: the least of its TTLs; without records that of the zone's SOA (RFC 2308
// section 5), and nothing without one.
func lifetime(k key, a answer) time.Duration {
	switch {
	case a.rcode == dns.RcodeServerFailure:
		return failureTTL
	case failed(a.rcode):
		return 0
	}
	least := uint32(1<<31 - 1)
	note := func(ttl uint32) {
		if ttl > 1<<31-1 {
			ttl = 0
		}
		least = min(least, ttl)
	}
	for _, rr := range a.rrs {
		note(rr.Header().Ttl)
	}
	most := maxTTL
	if a.rcode == dns.RcodeNameError || len(a.rrs) == 0 || k.qtype != dns.TypeCNAME && onlyAliases(a.rrs) {
		most = maxNegative
		i := slices.IndexFunc(a.ns, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeSOA })
		if i < 0 {
			if len(a.notes) > 0 && len(a.rrs) == 0 { // stripped by the guard: not to be asked for at once again
				return minTTL
			}
			return 0
		}
		soa := a.ns[i].(*dns.SOA)
		note(soa.Hdr.Ttl)
		note(soa.Minttl)
	}
	if least == 0 {
		return 0
	}
	return max(minTTL, min(most, time.Duration(least)*time.Second))
}

// onlyAliases reports whether an answer is a chain of CNAMEs that ends in nothing.
func onlyAliases(rrs []dns.RR) bool {
	return !slices.ContainsFunc(rrs, func(rr dns.RR) bool {
		t := rr.Header().Rrtype
		return t != dns.TypeCNAME && t != dns.TypeDNAME && t != dns.TypeRRSIG
	})
}
