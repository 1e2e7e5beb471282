// Package sim runs whole networks of real routing cores in one process in virtual time: what a thousand homes do in an
// hour takes seconds. Worlds come from lab/manifest; Run drives one and reports what happened and whether it was what the
// manifest expects.
//
// What is real: every node is a route.Router with its own Ed25519 key, and every message is the one that it would send.
// What is modelled: links (delay, jitter, rate, loss as retransmission, silence), the time that neighbours take to meet,
// bytes on the wire (QUIC, UDP and IPv6 headers, acknowledgements, idle probes), and packets, which hop from table to
// table as forward would send them. Signatures are made by each node; since a thousand nodes in one process would check
// each of them a thousand times, one check is remembered for all.
//
// Of a node's own configuration only the community key counts; reordered and doubled packets are QUIC's business and do
// not exist here.
//
// The package starts no goroutine. One Run is one world; several may run at once.
package sim

import (
	"container/heap"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/pelletier/go-toml/v2"

	"weft/ident"
	"weft/lab/manifest"
	"weft/route"
	"weft/wire"
)

// What the model of links assumes. The overheads are per packet on the wire.
const (
	ipUDP         = 48                      // IPv6 and UDP headers
	quicOverhead  = 30                      // short header, stream frame header, tag
	quicPayload   = 1200                    // bytes of stream in one packet
	ackPacket     = ipUDP + quicOverhead    // sent for every second packet, and after each burst
	framing       = 4                       // class and length of a control message
	handshake     = 3000                    // bytes each way when a link comes up
	probeExchange = 2 * 104                 // bytes of one idle probe and its answer …
	probeEvery    = 15 * time.Second        // … and how often an idle link is probed
	silence       = 1500 * time.Millisecond // without an answer: the link is down
	burstVerdict  = 80 * time.Millisecond   // the same after a hint that the neighbour is gone
	burstBytes    = 3 * probeExchange
	meetFirst     = 200 * time.Millisecond // from boot to the first link …
	meetLast      = 500 * time.Millisecond // … and to the last
	echoBytes     = 150
	retry         = 100 * time.Millisecond // an application that has no answer tries again
	echoEvery     = 10 * time.Millisecond  // steady echoes, for gaps
	checkEvery    = 50 * time.Millisecond
	startWindow   = 10 * time.Second
)

// Progress is told now and then during a run.
type Progress struct {
	Now, End  time.Duration // virtual
	Events    uint64
	Nodes     int // alive
	Converged bool
	Answered  int // of the questions asked at the start
	Asked     int
}

type eventKind uint8

const (
	evTimer eventKind = iota
	evMessage
	evPacket
	evBoot
	evMeet
	evDetect
	evManifest
	evAsk
	evCheck
	evIdleStart
	evIdleEnd
	evLie
	evStart
)

type event struct {
	at    time.Duration
	order uint64
	kind  eventKind
	a, b  int
	life  int
	msg   []byte
	echo  *echo
}

type eventQueue []event

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].order < q[j].order
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *eventQueue) Push(x any)   { *q = append(*q, x.(event)) }
func (q *eventQueue) Pop() any {
	old := *q
	x := old[len(old)-1]
	old[len(old)-1] = event{}
	*q = old[:len(old)-1]
	return x
}

// world is a manifest in motion.
type world struct {
	m        *manifest.Manifest
	w        *manifest.World
	rng      *rand.Rand
	now, end time.Duration
	queue    eventQueue
	order    uint64
	events   uint64
	nodes    []*node
	links    []*link
	verified map[string]bool // the memory of signatures checked, by the whole LSA
	verify   uint64

	asked      []*question
	steady     []*steady
	waits      []*wait
	idles      []*idle
	counted    []int // questions of each expectation that asks its own
	flows      []int // steady flows of each that wants them
	startBytes []uint64
	report     *Report
}

type node struct {
	spec   manifest.Node
	agent  *ident.Agent
	id     ident.NodeID
	r      *route.Router // nil while dead
	life   int
	bootAt time.Duration
	timer  time.Duration
	seq    uint64
	links  []int
	liar   *liar
	closed string       // community key, if any: links between different ones do not come up
	table  *route.Table // last seen, to notice changes
}

type link struct {
	spec    manifest.WorldLink
	cost    uint32
	up      [2]bool // what each end's router has been told
	life    int     // rises whenever the channel is lost
	down    bool    // carrier
	silent  int     // number of reasons why everything is dropped
	mute    bool    // silent by a "silent" event on this link
	lost    []event // messages under way when it fell silent: sent again if it speaks before anybody noticed
	probe   time.Duration
	busy    [2]time.Duration // transmitter free again, by direction
	last    [2]time.Duration // arrival of the last message: order is kept
	bytes   uint64           // control bytes on the wire, both directions
	packets uint64
	seen    bool // somebody is about to notice the silence
}

const never = time.Duration(math.MaxInt64)

// Random is the manifest of a random neighbourhood of n nodes: mean degree about 6, links of 1 to 10 ms, everybody
// starting within the first second, idle for as long after the start as asked.
func Random(n int, seed uint64, idle time.Duration) *manifest.Manifest {
	ms := func(d int) manifest.Duration { return manifest.Duration{Duration: time.Duration(d) * time.Millisecond} }
	const settle = 10 * time.Second
	m := &manifest.Manifest{
		Name: fmt.Sprintf("random-%d", n), About: "A random neighbourhood, started from cold.", Seed: seed,
		Duration: manifest.Duration{Duration: settle + idle},
		Topology: &manifest.Topology{Kind: "geometric", N: n, Degree: 6, Spread: ms(1000)},
		Defaults: manifest.Shape{Delay: ms(2), Jitter: ms(2), Rate: 50e6, Loss: 0.002},
		Expect:   []manifest.Expect{{Converged: ms(5000)}, {Within: ms(5000)}, {Stretch: 1, After: ms(5000)}},
	}
	if idle > 0 {
		most := manifest.Rate(2000)
		if n <= 200 {
			most = 500
		}
		m.Expect = append(m.Expect, manifest.Expect{Idle: most, After: manifest.Duration{Duration: settle}})
	}
	return m
}

// Run drives a world to its end. It returns an error when the manifest is bad or ctx ends; expectations that fail are in
// the report, see Report.Err.
func Run(ctx context.Context, m *manifest.Manifest, progress func(Progress)) (*Report, error) {
	w, err := newWorld(m)
	if err != nil {
		return nil, err
	}
	started := time.Now()
	told := started
	for len(w.queue) > 0 && w.queue[0].at <= w.end {
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		w.events++
		w.do(e)
		if w.events%1024 == 0 {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			if progress != nil && time.Since(told) > 100*time.Millisecond {
				told = time.Now()
				progress(w.progress())
			}
		}
	}
	w.now = w.end
	if progress != nil {
		progress(w.progress())
	}
	w.finish(time.Since(started))
	return w.report, nil
}

func newWorld(m *manifest.Manifest) (*world, error) {
	spec, err := m.World()
	if err != nil {
		return nil, err
	}
	w := &world{m: m, w: spec, rng: rand.New(rand.NewPCG(m.Seed, 0x73696d)), verified: map[string]bool{}, report: &Report{Name: m.Name}}
	w.end = m.Duration.Duration
	if w.end == 0 {
		for _, e := range m.Events {
			w.end = max(w.end, e.At.Duration)
		}
		w.end += 10 * time.Second
	}
	for i, n := range spec.Nodes {
		seed := sha256.Sum256(fmt.Appendf(nil, "weft/lab/sim %d %d", m.Seed, i))
		agent, err := ident.FromSeed(seed[:])
		if err != nil {
			return nil, err
		}
		x := &node{spec: n, agent: agent, id: agent.Public().ID(), timer: never, bootAt: n.Start.Duration}
		var config struct{ Community struct{ Key string } } // the one setting of a node that a world without packets can honour
		if err := toml.Unmarshal([]byte(n.Config), &config); err != nil {
			return nil, fmt.Errorf("config of node %s: %w", n.Name, err)
		}
		x.closed = config.Community.Key
		if n.Liar != "" {
			x.liar = newLiar(n.Liar, m.Seed, i)
		}
		w.nodes = append(w.nodes, x)
		w.push(event{at: n.Start.Duration, kind: evBoot, a: i})
	}
	for i, l := range spec.Links {
		w.links = append(w.links, &link{spec: l, cost: linkCost(l), probe: time.Duration(w.rng.Int64N(int64(probeEvery)))})
		w.nodes[l.From].links = append(w.nodes[l.From].links, i)
		w.nodes[l.To].links = append(w.nodes[l.To].links, i)
	}
	for i, e := range spec.Events {
		w.push(event{at: e.At.Duration, kind: evManifest, a: i})
	}
	w.expect()
	return w, nil
}

// linkCost is the cost that both ends announce: the time a full packet takes, a retry for each loss, in steps of an
// eighth so that both ends measure the same.
func linkCost(l manifest.WorldLink) uint32 {
	if l.Cost != 0 {
		return l.Cost
	}
	us := float64(l.Delay.Duration+l.Jitter.Duration/2) / float64(time.Microsecond)
	if l.Rate > 0 {
		us += 1400 * 8 / float64(l.Rate) * 1e6
	}
	us = max(us, 10) / ((1 - l.Loss) * (1 - l.Loss))
	step := math.Pow(2, math.Floor(math.Log2(us))-3)
	return uint32(min(math.Round(us/step)*step, 1e9))
}

func (w *world) push(e event) {
	w.order++
	e.order = w.order
	heap.Push(&w.queue, e)
}

func (w *world) clock() time.Time { return epoch.Add(w.now) }

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func (w *world) do(e event) {
	switch e.kind {
	case evTimer:
		if n := w.nodes[e.a]; n.r != nil && n.life == e.life && n.timer == e.at {
			n.timer = never
			n.r.Tick(w.clock())
			w.after(e.a)
		}
	case evMessage:
		w.arrive(e)
	case evPacket:
		w.packet(e.echo, e.a, e.b)
	case evBoot:
		w.boot(e.a)
	case evMeet:
		w.meet(e.a, e.life)
	case evDetect:
		w.detect(e.a, e.life)
	case evManifest:
		w.happen(w.w.Events[e.a])
	case evAsk:
		w.ask(e)
	case evCheck:
		w.check()
	case evIdleStart:
		w.idles[e.a].start = w.traffic()
	case evIdleEnd:
		w.idles[e.a].stop = w.traffic()
	case evStart:
		w.startBytes = w.traffic()
	case evLie:
		w.lie(e.a, e.life)
	}
}

// boot starts a node with the sequence number that it had stored.
func (w *world) boot(i int) {
	n := w.nodes[i]
	if n.r != nil {
		return
	}
	n.life++
	n.timer = never
	n.bootAt = w.now
	local := route.Local{Name: n.spec.Name, Price: n.spec.Price}
	if n.spec.Leaf {
		local.Flags |= wire.FlagLeaf
	}
	if n.spec.Metered {
		local.Flags |= wire.FlagMetered
	}
	if len(local.Name) > 63 {
		local.Name = local.Name[:63]
	}
	n.r = route.New(route.Config{
		Self:   n.agent.Public(),
		Sign:   func(msg []byte) ident.Signature { return n.agent.Sign(ident.DomainLSA, msg) },
		Verify: w.check1,
		Rand:   w.rng.Uint64,
		Seq:    n.seq,
		Local:  local,
	}, w.clock())
	w.after(i)
	for _, id := range n.links {
		l := w.links[id]
		if other := w.other(id, i); w.nodes[other].r != nil && !l.down {
			w.scheduleMeet(id)
		}
	}
	if n.liar != nil {
		w.push(event{at: w.now + lieEvery, kind: evLie, a: i, life: n.life})
	}
}

// check1 checks a signature once for all nodes.
func (w *world) check1(v wire.LSAView) bool {
	ok, known := w.verified[string(v)]
	if !known {
		ok = v.Verify()
		w.verify++
		if len(w.verified) > 1<<20 {
			clear(w.verified)
		}
		w.verified[string(v)] = ok
	}
	return ok
}

func (w *world) scheduleMeet(id int) {
	at := w.now + meetFirst + time.Duration(w.rng.Int64N(int64(meetLast-meetFirst)))
	w.push(event{at: at, kind: evMeet, a: id, life: w.links[id].life})
}

// meet brings a link up at both ends.
func (w *world) meet(id, life int) {
	l := w.links[id]
	a, b := w.nodes[l.spec.From], w.nodes[l.spec.To]
	if l.life != life || l.down || l.silent > 0 || a.closed != b.closed || a.r == nil || b.r == nil || l.up[0] && l.up[1] {
		return
	}
	w.lose(id, true) // an end that still believes in the old link learns better
	l.up = [2]bool{true, true}
	for _, n := range []*node{a, b} {
		if n.liar != nil {
			n.liar.extra[id], n.liar.acked[id] = 0, 0
		}
	}
	l.bytes += 2 * handshake
	for end, i := range w.ends(id) {
		w.nodes[i].r.LinkUp(w.clock(), w.info(id, end))
	}
	w.after(l.spec.From)
	w.after(l.spec.To)
}

func (w *world) info(id, end int) route.LinkInfo {
	l := w.links[id]
	peer := w.nodes[w.ends(id)[1-end]]
	cost := l.cost
	if me := w.nodes[w.ends(id)[end]]; me.liar != nil && me.liar.kind == "cheap" {
		cost = 1
	}
	mtu := l.spec.MTU
	if mtu == 0 {
		mtu = 1500
	}
	return route.LinkInfo{ID: uint32(id + 1), Peer: peer.agent.Public(), Cost: cost, MTU: uint16(max(0, min(mtu, 65535)-ipUDP-wire.HopLen)), Metered: l.spec.Metered}
}

func (w *world) ends(id int) [2]int { return [2]int{w.links[id].spec.From, w.links[id].spec.To} }

func (w *world) other(id, i int) int {
	if w.links[id].spec.From == i {
		return w.links[id].spec.To
	}
	return w.links[id].spec.From
}

// lose ends the channel of a link, for the ends that live.
func (w *world) lose(id int, tell bool) {
	l := w.links[id]
	l.life++
	l.lost, l.seen = nil, false
	for end, i := range w.ends(id) {
		if l.up[end] {
			l.up[end] = false
			if n := w.nodes[i]; n.r != nil && tell {
				n.r.LinkDown(w.clock(), uint32(id+1))
				w.after(i)
			}
		}
	}
}

// detect is the moment when the ends of a silent link give it up.
func (w *world) detect(id, life int) {
	if l := w.links[id]; l.life == life && (l.silent > 0 || w.deadEnd(id)) {
		w.lose(id, true)
	}
}

func (w *world) deadEnd(id int) bool {
	l := w.links[id]
	return w.nodes[l.spec.From].r == nil || w.nodes[l.spec.To].r == nil
}

// notice schedules the detection of a silence: soon when something was sent into it, else by the next idle probe.
func (w *world) notice(id int, sent bool) {
	l := w.links[id]
	if sent && !l.seen {
		l.seen = true
		w.push(event{at: w.now + silence, kind: evDetect, a: id, life: l.life})
	}
	if !sent {
		next := probeEvery - (w.now+probeEvery-l.probe)%probeEvery
		w.push(event{at: w.now + next + silence, kind: evDetect, a: id, life: l.life})
	}
}

// happen does what the timetable says.
func (w *world) happen(e manifest.Event) {
	between := w.w.Between(e.Link)
	switch e.Do {
	case manifest.Kill:
		w.kill(w.w.Node(e.Node))
	case manifest.Restart:
		w.boot(w.w.Node(e.Node))
	case manifest.LinkDown:
		for _, id := range between {
			w.links[id].down = true
			w.lose(id, true)
		}
	case manifest.LinkUp:
		for _, id := range between {
			w.links[id].down = false
			w.scheduleMeet(id)
		}
	case manifest.Cost:
		for _, id := range between {
			w.links[id].cost = e.Cost
			for end, i := range w.ends(id) {
				if n := w.nodes[i]; n.r != nil && w.links[id].up[end] {
					n.r.LinkChanged(w.clock(), w.info(id, end))
					w.after(i)
				}
			}
		}
	case manifest.Silent:
		if e.Node != "" {
			between = w.nodes[w.w.Node(e.Node)].links
		}
		for _, id := range between {
			w.mute(id)
		}
	case manifest.Partition:
		group := make([]int, len(w.nodes))
		for g, names := range e.Groups {
			for _, name := range names {
				group[w.w.Node(name)] = g + 1
			}
		}
		for id, l := range w.links {
			if group[l.spec.From] != group[l.spec.To] {
				w.mute(id)
			}
		}
	case manifest.Heal:
		switch {
		case e.Node != "":
			between = w.nodes[w.w.Node(e.Node)].links
		case e.Link == [2]string{}:
			between = nil
			for id := range w.links {
				between = append(between, id)
			}
		}
		for _, id := range between {
			w.unmute(id)
		}
	}
}

func (w *world) kill(i int) {
	n := w.nodes[i]
	if n.r == nil {
		return
	}
	n.r, n.table = nil, nil
	n.life++
	for _, id := range n.links {
		l := w.links[id]
		for end, j := range w.ends(id) {
			if j == i {
				l.up[end] = false
			}
		}
		if l.up[0] || l.up[1] {
			w.notice(id, false)
		}
	}
}

func (w *world) mute(id int) {
	l := w.links[id]
	if !l.mute {
		l.mute = true
		l.silent++
		if l.up[0] || l.up[1] {
			w.notice(id, false)
		}
	}
}

func (w *world) unmute(id int) {
	l := w.links[id]
	if !l.mute {
		return
	}
	l.mute = false
	l.silent--
	if l.up[0] && l.up[1] { // nobody noticed: QUIC sends again what was lost
		lost := l.lost
		l.lost, l.seen = nil, false
		for _, e := range lost {
			e.at = w.now + 2*l.spec.Delay.Duration + 30*time.Millisecond
			w.push(e)
		}
		return
	}
	if !l.down {
		w.scheduleMeet(id)
	}
}

// after sends what a router has to send, sets its timer and looks whether its table has changed.
func (w *world) after(i int) {
	n := w.nodes[i]
	for _, m := range n.r.Outbox() {
		w.send(i, int(m.Link-1), m.Bytes)
	}
	for _, id := range n.r.Suspects() { // the link room answers a hint with a burst of probes
		if l := w.links[id-1]; l.silent > 0 || w.deadEnd(int(id-1)) {
			w.push(event{at: w.now + burstVerdict, kind: evDetect, a: int(id - 1), life: l.life})
		}
		w.links[id-1].bytes += burstBytes
	}
	if s := n.r.Stats(); s.Seq > n.seq {
		n.seq = s.Seq
	}
	if t := n.r.Table(); t != n.table {
		n.table = t
		w.report.LastChange = w.now
	}
	if at := n.r.Next().Sub(epoch); at < n.timer {
		n.timer = max(at, w.now)
		w.push(event{at: n.timer, kind: evTimer, a: i, life: n.life})
	}
}

// send sends a core's message, or what a liar makes of it.
func (w *world) send(from, id int, msg []byte) {
	if n := w.nodes[from]; n.liar != nil {
		lie := n.liar.rewrite(w, n, msg)
		n.liar.extra[id] += int64(len(lie) - len(msg))
		msg = lie
	}
	w.transmit(from, id, msg)
}

// transmit puts a message on a link as QUIC would: in packets, each with its headers, in order, with what is lost sent again.
func (w *world) transmit(from, id int, msg []byte) {
	l := w.links[id]
	dir := 0
	if from == l.spec.To {
		dir = 1
	}
	packets := (len(msg) + framing + quicPayload - 1) / quicPayload
	wireBytes := len(msg) + framing + packets*(quicOverhead+ipUDP)
	acks := (packets + 1) / 2 * ackPacket
	delay := l.spec.Delay.Duration
	if l.spec.Jitter.Duration > 0 {
		delay += time.Duration(w.rng.Int64N(int64(l.spec.Jitter.Duration)))
	}
	if l.spec.Loss > 0 {
		rto := max(3*(l.spec.Delay.Duration+l.spec.Jitter.Duration), 30*time.Millisecond)
		worst := time.Duration(0)
		for range packets {
			wait := time.Duration(0)
			for again := rto; w.rng.Float64() < l.spec.Loss; again *= 2 {
				wait += again
				wireBytes += min(quicPayload, len(msg)) + quicOverhead + ipUDP
				packets++
			}
			worst = max(worst, wait)
		}
		delay += worst
	}
	l.bytes += uint64(wireBytes + acks)
	l.packets += uint64(packets)
	start := max(w.now, l.busy[dir])
	if l.spec.Rate > 0 {
		start += time.Duration(float64(wireBytes) * 8 / float64(l.spec.Rate) * 1e9)
		l.busy[dir] = start
	}
	l.last[dir] = max(l.last[dir], start+delay)
	e := event{at: l.last[dir], kind: evMessage, a: id, b: w.other(id, from), life: l.life, msg: msg}
	if l.silent > 0 || w.deadEnd(id) {
		l.lost = append(l.lost, e)
		w.notice(id, true)
		return
	}
	w.push(e)
}

func (w *world) arrive(e event) {
	l, n := w.links[e.a], w.nodes[e.b]
	if l.life != e.life || n.r == nil {
		return
	}
	if l.silent > 0 { // it fell silent while the message was under way
		l.lost = append(l.lost, e)
		return
	}
	if !l.up[0] || !l.up[1] {
		return
	}
	msg := e.msg
	if n.liar != nil {
		msg = n.liar.listen(n, e.a, msg)
	}
	if err := n.r.Receive(w.clock(), uint32(e.a+1), msg); err != nil {
		w.report.Refused++
		if !errors.Is(err, route.ErrForged) && w.nodes[w.other(e.a, e.b)].liar == nil {
			panic(fmt.Sprintf("sim: an honest message was refused: %v", err)) // a fault of route or of this package
		}
	}
	w.after(e.b)
}

func (w *world) progress() Progress {
	p := Progress{Now: w.now, End: w.end, Events: w.events, Converged: len(w.waits) > 0 && w.waits[0].done != 0, Asked: len(w.asked)}
	for _, n := range w.nodes {
		if n.r != nil {
			p.Nodes++
		}
	}
	for _, q := range w.asked {
		if q.answered != 0 {
			p.Answered++
		}
	}
	return p
}

func seedOf(parts ...uint64) (seed [32]byte) {
	var b []byte
	for _, p := range parts {
		b = binary.BigEndian.AppendUint64(b, p)
	}
	return sha256.Sum256(b)
}
