package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func pack(f *testing.F, m *dns.Msg) []byte {
	f.Helper()
	m.Id = 0x1234
	b, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// FuzzQuestion: whatever a client sends, an answer is one: bounded, with its id, and again a message. Nobody is asked for
// names of the mesh.
func FuzzQuestion(f *testing.F) {
	for _, name := range []string{"www.example.", "anna.weft.", ".", "1.0.0.127.in-addr.arpa.", "a.0.0.2.0.ip6.arpa.", "ipv4only.arpa.", `a\.b\000.weft.`} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypePTR, dns.TypeANY, dns.TypeAXFR} {
			m := new(dns.Msg).SetQuestion(name, qtype)
			f.Add(pack(f, m))
			m.SetEdns0(1232, true)
			f.Add(pack(f, m))
		}
	}
	f.Add([]byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"))
	cfg := mesh
	cfg.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no network") }
	cfg.Log, cfg.Upstreams = slog.New(slog.DiscardHandler), []string{up1}
	cfg.DNS64 = func() (netip.Prefix, bool) { return netip.MustParsePrefix("64:ff9b::/96"), true }
	f.Fuzz(func(t *testing.T, wire []byte) {
		cfg := cfg
		cfg.Dial = func(context.Context, string, string) (net.Conn, error) {
			q := new(dns.Msg)
			if q.Unpack(wire) == nil && strings.HasSuffix(dns.CanonicalName(q.Question[0].Name), ".weft.") {
				t.Errorf("asked outside: %s", q.Question[0].Name)
			}
			return nil, errors.New("no network")
		}
		cfg.Upstreams = []string{"tcp://192.0.2.1"} // asked once, so that it fails at once
		r, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for _, udp := range []bool{true, false} {
			out := r.handle(t.Context(), bytes.Clone(wire), outsider, udp)
			if out == nil {
				continue
			}
			m := new(dns.Msg)
			if err := m.Unpack(out); err != nil || !m.Response || m.Id != binary.BigEndian.Uint16(wire) || udp && len(out) > udpSize {
				t.Fatalf("%x was answered with %x, %v", wire, out, err)
			}
		}
	})
}

// FuzzAnswer: whatever a server sends, over UDP and TCP, the client gets a message that answers its question, without an
// address that is guarded.
func FuzzAnswer(f *testing.F) {
	q := new(dns.Msg).SetQuestion("www.example.", dns.TypeAAAA)
	for _, s := range []string{"www.example. 100 IN AAAA 2001:db9::1", "www.example. 100 IN AAAA 200::1", "www.example. 0 IN CNAME www.example.",
		"www.example. 100 IN HTTPS 1 . ipv6hint=200:1111::a ipv4hint=127.0.0.1", "www.example. 100 IN A 127.0.0.1"} {
		rr, err := dns.NewRR(s)
		if err != nil {
			f.Fatal(err)
		}
		m := new(dns.Msg).SetReply(q)
		m.Answer = append(m.Answer, rr)
		m.SetEdns0(1232, true)
		m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_EDE{InfoCode: 3, ExtraText: "x\x00\xff"})
		f.Add(pack(f, m))
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		for _, uri := range []string{up1, "tcp://192.0.2.1"} {
			var wg sync.WaitGroup
			dial := func(_ context.Context, network, _ string) (net.Conn, error) {
				here, there := net.Pipe()
				wg.Go(func() {
					defer there.Close()
					buf := make([]byte, 4096)
					var b []byte
					if network == "udp" {
						n, err := there.Read(buf)
						if err != nil {
							return
						}
						b = buf[:n]
					} else {
						var err error
						if b, err = readFrame(there, 65535); err != nil {
							return
						}
					}
					q := new(dns.Msg)
					if q.Unpack(b) != nil {
						t.Error("a question that does not parse")
						return
					}
					reply := bytes.Clone(wire)
					if len(reply) > 2 {
						binary.BigEndian.PutUint16(reply, q.Id)
					}
					var m dns.Msg
					if m.Unpack(reply) == nil && len(m.Question) == 1 && strings.EqualFold(m.Question[0].Name, q.Question[0].Name) {
						m.Question[0].Name = q.Question[0].Name // the fuzzer cannot guess the letters
						if out, err := m.Pack(); err == nil {
							reply = out
						}
					}
					if network == "udp" {
						if len(reply) > 4096 {
							reply = reply[:4096]
						}
						there.Write(reply)
					} else {
						writeFrame(there, reply[:min(len(reply), 65535)])
					}
					there.SetReadDeadline(time.Now().Add(time.Millisecond))
					io.Copy(io.Discard, there)
				})
				return here, nil
			}
			r, err := New(Config{Dial: dial, Log: slog.New(slog.DiscardHandler), Upstreams: []string{uri}})
			if err != nil {
				t.Fatal(err)
			}
			q := new(dns.Msg).SetQuestion("www.example.", dns.TypeAAAA)
			q.SetEdns0(1232, true)
			b, _ := q.Pack()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			for range 2 { // the second time out of the cache, at times
				out := r.handle(ctx, b, outsider, false)
				m := new(dns.Msg)
				if err := m.Unpack(out); err != nil || m.Id != q.Id || len(m.Question) != 1 || m.Question[0] != q.Question[0] {
					t.Fatalf("%x made %x, %v", wire, out, err)
				}
				for _, rr := range m.Answer {
					if r.guardRR(rr) {
						t.Fatalf("passed: %v", rr)
					}
				}
			}
			cancel()
			r.Close()
			wg.Wait()
		}
	})
}

// FuzzUpstream: what parses dials a literal.
func FuzzUpstream(f *testing.F) {
	for _, s := range []string{"9.9.9.9", "udp://[2620:fe::fe]:53", "tls://9.9.9.9#dns.quad9.net", "https://dns.quad9.net/dns-query@9.9.9.9", "https://a/b@[::1]"} {
		f.Add(s)
	}
	r := &Resolver{}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := r.parseUpstream(s)
		if err != nil {
			return
		}
		if ap, err := netip.ParseAddrPort(u.address); err != nil || ap.Port() == 0 {
			t.Fatalf("%q dials %q", s, u.address)
		}
		if u.scheme == "tls" && u.tls.ServerName == "" && u.tls.VerifyConnection == nil {
			t.Fatalf("%q checks nobody", s)
		}
	})
}
