package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// event is a packet as the oracle sees it: not bytes, but what they mean.
type event struct {
	out         bool
	kind        string // tcp, udp, other, request, reply, error, fragment (a later one)
	here, there netip.AddrPort
	flags       uint8
	id          uint16
	about       *event // of an error: an outbound packet
	first       bool   // a first fragment
	fragID      uint32
}

func (e *event) bytes() []byte {
	src, dst := e.there, e.here
	if e.out {
		src, dst = dst, src
	}
	var ip []byte
	switch e.kind {
	case "tcp":
		ip = tcp(src, dst, e.flags)
	case "udp", "fragment":
		ip = udp(src, dst)
	case "other":
		ip = ip6(src.Addr(), dst.Addr(), 132, make([]byte, 12))
	case "request":
		ip = icmp(src.Addr(), dst.Addr(), 128, e.id, nil)
	case "reply":
		ip = icmp(src.Addr(), dst.Addr(), 129, e.id, nil)
	case "error":
		ip = icmp(src.Addr(), dst.Addr(), 1, 0, e.about.bytes())
	}
	if e.first || e.kind == "fragment" {
		whole := append(ip, make([]byte, 2000)...)
		at := 0
		if e.kind == "fragment" {
			at = 1024
		}
		return fragment(whole, e.fragID, at, 1024)
	}
	return ip
}

// oracle is the firewall written without any care for speed: lists, and one clause for each thing that it promises.
type oracle struct {
	now   int
	gen   int
	rules []Rule
	flows []*oracleFlow
	frags []oracleFrag
}

type oracleFlow struct {
	kind                        string
	here, there                 netip.AddrPort
	until, gen                  int
	ours, in, out               bool
	finIn, finOut, reset        bool
	established, refusedByRules bool
}

type oracleFrag struct {
	here, there netip.Addr
	id          uint32
	until       int
}

func (f *oracleFlow) ended() bool { return f.reset || f.finIn && f.finOut }

// ends returns the flow's ends as the kind of packet tells them.
func (e *event) ends() (string, netip.AddrPort, netip.AddrPort) {
	switch e.kind {
	case "request", "reply":
		return "echo", at(e.here.Addr(), e.id), at(e.there.Addr(), 0)
	case "other":
		return "other", at(e.here.Addr(), 0), at(e.there.Addr(), 0)
	}
	return e.kind, e.here, e.there
}

func (o *oracle) find(e *event) *oracleFlow {
	kind, here, there := e.ends()
	for _, f := range o.flows {
		if f.kind == kind && f.here == here && f.there == there && f.until > o.now {
			return f
		}
	}
	return nil
}

func (o *oracle) add(e *event) *oracleFlow {
	kind, here, there := e.ends()
	f := &oracleFlow{kind: kind, here: here, there: there}
	o.flows = append(slices.DeleteFunc(o.flows, func(f *oracleFlow) bool { return f.until <= o.now }), f)
	return f
}

func (o *oracle) note(f *oracleFlow, e *event) {
	if e.out {
		f.out = true
	} else {
		f.in = true
	}
	switch f.kind {
	case "echo":
		f.until = o.now + 60
		return
	case "udp", "other":
		f.until = o.now + 300
		return
	}
	if f.ended() {
		return
	}
	switch {
	case e.flags&rst != 0:
		f.reset = true
		f.until = o.now + 10
		return
	case e.flags&fin != 0 && e.out:
		f.finOut = true
	case e.flags&fin != 0:
		f.finIn = true
	}
	if f.ended() {
		f.until = o.now + 240
		return
	}
	if f.in && f.out && !f.refusedByRules && e.flags&ack != 0 && e.flags&syn == 0 {
		f.established = true
	}
	f.until = o.now + 240
	if f.established && !f.refusedByRules {
		f.until = o.now + 7440
	}
}

func (o *oracle) sent(e *event) {
	if e.kind == "reply" || e.kind == "error" || e.kind == "fragment" {
		return
	}
	f := o.find(e)
	if f == nil {
		if e.kind == "tcp" && e.flags&rst != 0 {
			return
		}
		f = o.add(e)
		f.ours = true
	}
	if e.kind == "tcp" {
		if e.flags&(syn|ack) == syn && (!f.ours || f.refusedByRules || f.ended()) {
			*f = oracleFlow{kind: f.kind, here: f.here, there: f.there, ours: true, gen: f.gen}
		}
		if f.reset && e.flags&(syn|fin|rst) == 0 {
			f.reset = false
		}
	}
	o.note(f, e)
}

func (o *oracle) allowed(e *event) bool {
	behindNode := me.Subnet().Contains(e.here.Addr())
	for _, r := range o.rules {
		proto := map[string]Proto{"tcp": TCP, "udp": UDP, "request": ICMP}[e.kind]
		port := e.here.Port()
		inPorts := len(r.Ports) == 0 || (proto == TCP || proto == UDP) &&
			slices.ContainsFunc(r.Ports, func(p PortRange) bool { return p.Lo <= port && port <= p.Hi })
		to := r.To == Self && !behindNode || r.To == Behind && behindNode || r.To == Some && r.Dest.Contains(e.here.Addr())
		from := r.From.Kind == Anyone || r.From.Kind == Members || r.From.Kind == Key && r.From.Key == friend
		if (r.Proto == AnyProto || r.Proto == proto) && inPorts && to && from {
			return r.Action == Allow
		}
	}
	return e.kind == "request" && !behindNode
}

func (o *oracle) received(e *event) bool {
	pass := o.passes(e)
	if pass && e.first {
		o.frags = append(o.frags, oracleFrag{e.here.Addr(), e.there.Addr(), e.fragID, o.now + 60})
	}
	return pass
}

func (o *oracle) passes(e *event) bool {
	switch e.kind {
	case "fragment":
		return slices.ContainsFunc(o.frags, func(f oracleFrag) bool {
			return f.id == e.fragID && f.here == e.here.Addr() && f.there == e.there.Addr() && f.until > o.now
		})
	case "request":
		return o.allowed(e)
	case "reply":
		f := o.find(e)
		if f != nil {
			o.note(f, e)
		}
		return f != nil
	case "error":
		f := o.find(e.about)
		return f != nil && !f.refusedByRules && e.about.here.Addr() == e.here.Addr()
	}
	f := o.find(e)
	start := e.kind == "tcp" && e.flags&(syn|ack) == syn
	switch {
	case f == nil:
		if !o.allowed(e) {
			return false
		}
		if e.kind == "tcp" && e.flags&rst != 0 {
			return true
		}
		f = o.add(e)
	case start && (f.ended() || f.ours && f.established):
		if !o.allowed(e) {
			return false
		}
		*f = oracleFlow{kind: f.kind, here: f.here, there: f.there}
	case !f.ours && f.gen != o.gen:
		if !o.allowed(e) {
			f.refusedByRules, f.gen, f.until = true, o.gen, o.now+240
			return false
		}
		f.refusedByRules = false
	case f.refusedByRules:
		return false
	}
	f.gen = o.gen
	o.note(f, e)
	return true
}

var ruleSets = [][]string{
	nil,
	{"allow any from any"},
	{"allow tcp 1 from community", "allow udp 2 to behind from any"},
	{"block any from key:" + friend.String()},
	{"block tcp 1 from any", "allow tcp from key:" + friend.String(), "allow any to behind from community", "block icmp from any"},
	{"allow any 1-2 to " + behind(me, 1).String() + " from any", "allow udp 1 from key:" + other.String()},
}

// TestOracle feeds random packets to both. The universe is small, so that everything meets everything.
func TestOracle(t *testing.T) {
	parsed := make([]Rules, len(ruleSets))
	for i, s := range ruleSets {
		parsed[i] = mustRules(t, s...)
	}
	rapid.Check(t, func(t *rapid.T) {
		f, err := New(me, Rules{}, t0)
		if err != nil {
			t.Fatal(err)
		}
		p := f.Peer(friend, true)
		o := &oracle{}
		hereAddr := rapid.SampledFrom([]netip.Addr{me.Addr(), me.Addr(), me.Addr(), behind(me, 1)})
		thereAddr := rapid.SampledFrom([]netip.Addr{friend.Addr(), friend.Addr(), friend.Addr(), behind(friend, 1)})
		port := rapid.SampledFrom([]uint16{1, 1, 1, 1, 2})
		kinds := []string{"tcp", "tcp", "tcp", "tcp", "udp", "other", "request", "reply"}
		plain := func(kinds []string) *event {
			return &event{
				kind:  rapid.SampledFrom(kinds).Draw(t, "kind"),
				here:  at(hereAddr.Draw(t, "here"), port.Draw(t, "local port")),
				there: at(thereAddr.Draw(t, "there"), port.Draw(t, "remote port")),
				flags: rapid.SampledFrom([]uint8{syn, syn | ack, ack, ack, ack, fin | ack, rst, rst | ack}).Draw(t, "flags"),
				id:    rapid.Uint16Range(1, 2).Draw(t, "id"),
			}
		}
		var trace []string
		for range rapid.IntRange(1, 80).Draw(t, "length") {
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				d := rapid.SampledFrom([]int{1, 9, 10, 10, 59, 60, 239, 240, 300, 7439, 7440}).Draw(t, "seconds")
				o.now += d
				f.Tick(t0.Add(time.Duration(o.now) * time.Second))
				trace = append(trace, fmt.Sprint("wait ", d))
			case 1:
				i := rapid.IntRange(0, len(parsed)-1).Draw(t, "rules")
				if err := f.SetRules(parsed[i]); err != nil {
					t.Fatal(err)
				}
				o.rules = parsed[i].List
				o.gen++
				trace = append(trace, fmt.Sprintf("rules %q", ruleSets[i]))
			case 2, 3, 4:
				e := plain(kinds)
				e.out = true
				p.Out(e.bytes())
				o.sent(e)
				trace = append(trace, fmt.Sprintf("out %+v", *e))
			default:
				e := plain(append(kinds, "error", "fragment"))
				e.fragID = rapid.Uint32Range(1, 2).Draw(t, "fragment id")
				if e.kind == "error" {
					e.about = plain([]string{"tcp", "udp", "other", "request"})
					e.about.out = true
				}
				if e.kind == "udp" {
					e.first = rapid.Bool().Draw(t, "first fragment")
				}
				got, want := p.In(e.bytes()), o.received(e)
				trace = append(trace, fmt.Sprintf("in %+v", *e))
				if got != want {
					t.Fatalf("In = %v, want %v, after:\n%s", got, want, fmt.Sprint(trace))
				}
			}
		}
	})
}
