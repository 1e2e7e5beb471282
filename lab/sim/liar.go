package sim

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"time"

	"weft/ident"
	"weft/wire"
)

const (
	lieEvery   = time.Second
	recordLSA  = 3 // docs/spec/route.md section 3
	recordAck  = 5
	sybils     = 200
	liesAtOnce = 50
)

// liar makes an honest core's node lie. What it says goes out over its links like anything else.
type liar struct {
	kind  string
	rng   *rand.Rand
	heard []wire.LSAView // of others, the older ones too
	crowd []wire.LSAView // invented nodes
	fakes []wire.Adjacency
	extra map[int]int64 // by link: bytes sent of which the core does not know
	acked map[int]int64
}

func newLiar(kind string, seed uint64, i int) *liar {
	return &liar{kind: kind, extra: map[int]int64{}, acked: map[int]int64{}, rng: rand.New(rand.NewPCG(seed, uint64(i)))}
}

// records walks over the records of a message.
func records(msg []byte, each func(kind byte, value, whole []byte)) {
	for len(msg) >= 3 {
		size := 3 + int(binary.BigEndian.Uint16(msg[1:]))
		if size > len(msg) {
			return
		}
		each(msg[0], msg[3:size], msg[:size])
		msg = msg[size:]
	}
}

func appendLSA(b []byte, age uint32, v wire.LSAView) []byte {
	b = append(b, recordLSA)
	b = binary.BigEndian.AppendUint16(b, uint16(4+len(v)))
	b = binary.BigEndian.AppendUint32(b, age)
	return append(b, v...)
}

// rewrite changes what the liar says of itself in a message it sends.
func (l *liar) rewrite(w *world, n *node, msg []byte) []byte {
	if l.kind != "claims" && l.kind != "sybil" {
		return msg
	}
	var out []byte
	records(msg, func(kind byte, value, whole []byte) {
		if kind != recordLSA {
			out = append(out, whole...)
			return
		}
		v, err := wire.ViewLSA(value[4:])
		if err != nil || v.Key() != n.agent.Public() {
			out = append(out, whole...)
			return
		}
		lie := v.Decode()
		add := l.fakes
		if l.kind == "claims" {
			add = nil
			for range 20 {
				other := w.nodes[l.rng.IntN(len(w.nodes))]
				add = append(add, wire.Adjacency{ID: other.id, Cost: 1, MTU: 1400})
			}
		} else if l.crowd == nil {
			l.invent(n)
			add = l.fakes
		}
		for _, a := range add {
			at, there := slices.BinarySearchFunc(lie.Neighbours, a.ID, func(x wire.Adjacency, id ident.NodeID) int {
				if x.ID < id {
					return -1
				}
				if x.ID > id {
					return 1
				}
				return 0
			})
			if !there && a.ID != n.id && len(lie.Neighbours) < wire.MaxNeighbours {
				lie.Neighbours = slices.Insert(lie.Neighbours, at, a)
			}
		}
		b, err := lie.Sign(func(m []byte) ident.Signature { return n.agent.Sign(ident.DomainLSA, m) })
		if err != nil {
			panic("sim: a lie of bad form: " + err.Error())
		}
		out = appendLSA(out, binary.BigEndian.Uint32(value), b)
	})
	return out
}

// listen keeps what others say, and hides from the liar's own core the echo of its lies.
func (l *liar) listen(n *node, id int, msg []byte) []byte {
	var out []byte
	records(msg, func(kind byte, value, whole []byte) {
		if kind == recordAck && len(value) == 8 { // of what the core has sent
			n := int64(binary.BigEndian.Uint64(value)) - l.extra[id]
			if n < l.acked[id] {
				return
			}
			l.acked[id] = n
			out = append(out, whole[:3]...)
			out = binary.BigEndian.AppendUint64(out, uint64(n))
			return
		}
		if kind == recordLSA {
			if v, err := wire.ViewLSA(value[4:]); err == nil {
				if v.Key() == n.agent.Public() {
					return
				}
				if len(l.heard) < 2000 {
					l.heard = append(l.heard, slices.Clone(v))
				} else {
					l.heard[l.rng.IntN(len(l.heard))] = slices.Clone(v)
				}
			}
		}
		out = append(out, whole...)
	})
	return out
}

// invent signs a crowd of nodes behind the liar, each with a key of its own.
func (l *liar) invent(n *node) {
	agents := make([]*ident.Agent, sybils)
	for i := range agents {
		seed := seedOf(uint64(n.id), uint64(i))
		agents[i], _ = ident.FromSeed(seed[:])
		l.fakes = append(l.fakes, wire.Adjacency{ID: agents[i].Public().ID(), Cost: 1, MTU: 1400})
	}
	for i, a := range agents {
		near := []wire.Adjacency{{ID: n.id, Cost: 1, MTU: 1400}, {ID: agents[(i+1)%sybils].Public().ID(), Cost: 1, MTU: 1400}, {ID: agents[(i+sybils-1)%sybils].Public().ID(), Cost: 1, MTU: 1400}}
		slices.SortFunc(near, func(a, b wire.Adjacency) int {
			if a.ID < b.ID {
				return -1
			}
			return 1
		})
		lie := wire.LSA{Key: a.Public(), Seq: 1, Lifetime: 4 * 3600, Neighbours: near}
		b, err := lie.Sign(func(m []byte) ident.Signature { return a.Sign(ident.DomainLSA, m) })
		if err != nil {
			panic("sim: a lie of bad form: " + err.Error())
		}
		l.crowd = append(l.crowd, b)
	}
}

// lie sends unasked lies to all neighbours, once a second.
func (w *world) lie(i, life int) {
	n := w.nodes[i]
	if n.r == nil || n.life != life {
		return
	}
	w.push(event{at: w.now + lieEvery, kind: evLie, a: i, life: life})
	l := n.liar
	var msg []byte
	for k := range liesAtOnce {
		switch l.kind {
		case "forger": // a newer LSA of somebody else, with the old signature
			if len(l.heard) > 0 {
				v := slices.Clone(l.heard[l.rng.IntN(len(l.heard))])
				binary.BigEndian.PutUint64(v[36:], v.Seq()+1+l.rng.Uint64N(1000))
				msg = appendLSA(msg, 0, v)
			}
		case "replayer":
			if len(l.heard) > 0 {
				msg = appendLSA(msg, 0, l.heard[l.rng.IntN(len(l.heard))])
			}
		case "sybil":
			if at := int(w.now/lieEvery)*liesAtOnce + k; len(l.crowd) > 0 {
				msg = appendLSA(msg, 0, l.crowd[at%len(l.crowd)])
			}
		}
	}
	if len(msg) == 0 {
		return
	}
	w.report.Lies += liesAtOnce
	for _, id := range n.links {
		if lk := w.links[id]; lk.up[0] && lk.up[1] {
			l.extra[id] += int64(len(msg))
			w.transmit(i, id, msg)
		}
	}
}
