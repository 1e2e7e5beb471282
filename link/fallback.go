package link

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"weft/ident"
)

// Where UDP is blocked (docs/spec/link.md section 8): peers of one node are alternatives, tried in the order udp, tls, wss; and
// neighbours tell where they take streams, for the day when UDP no longer gets through.

const (
	fallbackAfter = 3 * time.Second // for every better way
	fallbackSoon  = time.Second     // the same when a link was just lost
	udpAgain      = 2 * time.Minute // a link on a stream looks whether UDP works again
	maxUDPAgain   = 15 * time.Minute
	maxListeners  = 4 // that a neighbour may name
	maxListenPath = 128
)

// streamListener is where a neighbour takes streams, on whatever address it is reached at.
type streamListener struct {
	scheme string
	port   uint16
	path   string
}

// LISTEN is type 1 | count 1, then for each listener: scheme 1 (1 tls, 2 wss) | length of path 1 | port 2 | path.
var listenSchemes = []string{1: "tls", 2: "wss"}

func appendListeners(b []byte, list []streamListener) []byte {
	b = append(b, introListen, byte(len(list)))
	for _, s := range list {
		b = append(b, byte(slices.Index(listenSchemes, s.scheme)), byte(len(s.path)))
		b = binary.BigEndian.AppendUint16(b, s.port)
		b = append(b, s.path...)
	}
	return b
}

// parseListeners skips schemes that it does not know.
func parseListeners(b []byte) (list []streamListener, err error) {
	bad := fmt.Errorf("a list of listeners of %d bytes", len(b))
	if len(b) < 2 || int(b[1]) > maxListeners {
		return nil, bad
	}
	count, rest := int(b[1]), b[2:]
	for range count {
		if len(rest) < 4 || len(rest) < 4+int(rest[1]) {
			return nil, bad
		}
		s := streamListener{port: binary.BigEndian.Uint16(rest[2:]), path: string(rest[4 : 4+int(rest[1])])}
		kind := int(rest[0])
		rest = rest[4+int(rest[1]):]
		if kind == 0 || kind >= len(listenSchemes) || s.port == 0 || len(s.path) > maxListenPath || s.path != "" && s.path[0] != '/' {
			continue
		}
		s.scheme = listenSchemes[kind]
		list = append(list, s)
	}
	if len(rest) > 0 {
		return nil, bad
	}
	return list, nil
}

// streamListeners is the LISTEN message of this node; nil when it takes no streams.
func (m *Manager) streamListeners() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []streamListener
	for _, l := range m.listens {
		u, err := parseURI(l.URI, true)
		if err != nil || u.scheme == "udp" || len(list) == maxListeners || len(u.path) > maxListenPath {
			continue
		}
		if u.scheme == "tls" {
			u.path = ""
		}
		list = append(list, streamListener{u.scheme, l.Port, u.path})
	}
	if list == nil {
		return nil
	}
	slices.SortStableFunc(list, func(a, b streamListener) int { return tier(a.scheme) - tier(b.scheme) })
	return appendListeners(nil, list)
}

// listens notes where a neighbour takes streams.
func (x *introductions) listens(l *Link, msg []byte) error {
	list, err := parseListeners(msg)
	if err != nil {
		return protocolError(err.Error())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streams = list
	return nil
}

// remember keeps what a neighbour said while it was there.
func (p *peerState) remember(l *Link) {
	l.mu.Lock()
	list := l.streams
	l.mu.Unlock()
	if p.uri.scheme == "udp" && list != nil {
		p.mu.Lock()
		p.streams = list
		p.mu.Unlock()
	}
}

// tier orders the ways to a node: the lower the better.
func tier(scheme string) int {
	switch scheme {
	case "udp":
		return 0
	case "tls":
		return 1
	}
	return 2
}

// patience is how long a peer leaves to better ways to the same node, of which the operator named some: same key or same host.
func (p *peerState) patience(soon bool) time.Duration {
	mine := p.get().Key
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	better := map[int]bool{}
	for _, q := range p.m.peers {
		if t := tier(q.uri.scheme); t < tier(p.uri.scheme) {
			if key := q.get().Key; !mine.IsZero() && key == mine || q.uri.host == p.uri.host {
				better[t] = true
			}
		}
	}
	each := fallbackAfter
	if soon {
		each = fallbackSoon
	}
	return time.Duration(len(better)) * each
}

// fallBack dials the streams that the peer named when it could still be reached by UDP.
func (p *peerState) fallBack(ctx context.Context) (key ident.PublicKey, err error) {
	p.mu.Lock()
	streams := p.streams
	p.mu.Unlock()
	err = errNoStreams
	for _, s := range streams {
		u := p.uri
		u.scheme, u.port, u.path = s.scheme, s.port, s.path
		actx, cancel := context.WithTimeout(ctx, dialAttempt)
		key, err = p.dialStream(actx, u)
		cancel()
		if err == nil || ctx.Err() != nil {
			return key, err
		}
	}
	return key, err
}

// again is how long a link on a stream waits until it looks whether UDP works again.
func again(tries int) time.Duration {
	d := min(udpAgain<<min(tries, 8), maxUDPAgain)
	return d - d/8 + rand.N(d/4)
}
