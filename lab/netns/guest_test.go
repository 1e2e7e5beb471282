//go:build linux && !router

package netns

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"weft/api"
)

// dhcp asks for an address as a phone does (RFC 2131) and returns the options of what is granted; 0 is the address.
func (s *shared) dhcp(phone, ifname string) map[byte][]byte {
	s.t.Helper()
	n, err := s.World.node(phone)
	if err != nil {
		s.t.Fatal(err)
	}
	var c net.PacketConn
	var mac net.HardwareAddr
	if err := inside(n.ns, func() error {
		dev, err := net.InterfaceByName(ifname)
		if err != nil {
			return err
		}
		mac = dev.HardwareAddr
		open := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
			return errors.Join(raw.Control(func(fd uintptr) {
				err = errors.Join(unix.BindToDevice(int(fd), ifname), unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1))
			}), err)
		}}
		c, err = open.ListenPacket(s.ctx, "udp4", ":68")
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	const discover, offer, request, ack = 1, 2, 3, 5
	ask := func(kind byte, more ...byte) (map[byte][]byte, bool) {
		m := make([]byte, 240)
		copy(m, []byte{1, 1, 6, 0, 0x77, 0x65, 0x66, 0x74})
		m[10] = 0x80 // answer by broadcast: there is no address yet
		copy(m[28:], mac)
		copy(m[236:], []byte{99, 130, 83, 99})
		m = append(append(m, 53, 1, kind, 55, 4, 1, 3, 6, 114), more...)
		if _, err := c.WriteTo(append(m, 255), &net.UDPAddr{IP: net.IPv4bcast, Port: 67}); err != nil {
			s.t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(time.Second))
		buf := make([]byte, 1500)
		size, _, err := c.ReadFrom(buf)
		if err != nil || size < 241 || buf[0] != 2 {
			return nil, false
		}
		got := map[byte][]byte{0: buf[16:20]}
		for o := buf[240:size]; len(o) > 2 && o[0] != 255; o = o[2+int(o[1]):] {
			if len(o) < 2+int(o[1]) {
				s.t.Fatalf("DHCP's answer is cut short: %x", buf[:size])
			}
			got[o[0]] = o[2 : 2+int(o[1])]
		}
		return got, len(got[53]) == 1
	}
	for begin := time.Now(); time.Since(begin) < 10*time.Second; {
		o, ok := ask(discover)
		if !ok || o[53][0] != offer {
			continue
		}
		o, ok = ask(request, append(append([]byte{50, 4}, o[0]...), append([]byte{54, 4}, o[54]...)...)...)
		if ok && o[53][0] == ack {
			return o
		}
	}
	s.t.Fatal("nobody answers DHCP")
	return nil
}

// join does what a phone does on a new network: the kernel hears router advertisements, and DHCP asks for IPv4. It returns the
// address of the page that the network names (RFC 8910).
func (s *shared) join(phone, ifname string) (portal string) {
	s.t.Helper()
	o := s.dhcp(phone, ifname)
	if len(o[1]) != 4 || len(o[3]) < 4 || len(o[6]) < 4 {
		s.t.Fatalf("DHCP names no network, router or name server: %v", o)
	}
	at := func(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) }
	bits, _ := net.IPMask(o[1]).Size()
	if _, err := s.Exec(s.ctx, phone, "sh", "-ec", fmt.Sprintf("ip addr add %s/%d dev %s; ip route add default via %s", at(o[0]), bits, ifname, at(o[3]))); err != nil {
		s.t.Fatal(err)
	}
	if err := s.SetResolver(phone, at(o[6])); err != nil {
		s.t.Fatal(err)
	}
	return string(o[114])
}

// asks sends a resolver questions of 250 bytes for a time, 200 a second, and returns how many answers came.
func (s *shared) asks(phone string, resolver netip.Addr, during time.Duration) (answers int) {
	s.t.Helper()
	n, err := s.World.node(phone)
	if err != nil {
		s.t.Fatal(err)
	}
	var c net.Conn
	if err := inside(n.ns, func() error {
		c, err = net.Dial("udp", netip.AddrPortFrom(resolver, 53).String())
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	got := make(chan int)
	go func() {
		n, buf := 0, make([]byte, 1500)
		c.SetReadDeadline(time.Now().Add(during + 500*time.Millisecond))
		for {
			size, err := c.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				got <- n
				return
			}
			if err == nil && size > 12 && buf[2]&0x80 != 0 && buf[3]&0xf != 5 { // an answer, and no refusal
				n++
			}
		}
	}()
	for i, begin := 0, time.Now(); time.Since(begin) < during; i++ {
		q := []byte{byte(i >> 8), byte(i), 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
		for l := range 3 { // what a tunnel carries stands in the names
			label := fmt.Sprintf("%060x", i*3+l)
			q = append(append(q, byte(len(label))), label...)
		}
		q = append(q, "\x07example\x03net\x00\x00\x10\x00\x01"...)
		_, _ = c.Write(q) // a refusal is an error of the next one
		wait(s.ctx, 5*time.Millisecond)
	}
	return <-got
}

// A phone without Weft comes to a router: it gets addresses, sees the mesh and a first page, and with a voucher the internet
// through a gateway elsewhere in the mesh.
func TestGuest(t *testing.T) {
	s := newShared(t)
	s.node("router", 0, uses+"\n[guest]\ninterface = \"eth1\"\n")
	s.node("gw", 0, offers+upstream+"[firewall]\nrules = [\"allow tcp 80 from any\"]\n")
	s.line(Shape{}, "router", "gw")
	if _, err := s.AddNode("phone"); err != nil {
		t.Fatal(err)
	}
	s.line(Shape{}, "router", "phone")
	s.uplink("gw", 0)
	s.start()
	s.online(s.browser("router"), 15*time.Second)
	mesh := serve(t, s.ctx, s.World, "gw", 80, "a page in the mesh\n")

	portal := s.join("phone", "eth0")
	phone := browser{t: t, ctx: s.ctx, w: s.World, node: "phone"}
	until(t, s.ctx, "the phone gets a mesh address by router advertisement", func() bool {
		out, err := s.Exec(s.ctx, "phone", "ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "global")
		return err == nil && strings.Contains(string(out), " inet6 3")
	})
	limit := 5 * time.Second
	for begin := time.Now(); ; wait(s.ctx, 100*time.Millisecond) {
		got, err := phone.try("-m", "1", "-g", "http://"+mesh.String()+"/")
		if err == nil && got == "a page in the mesh\n" {
			break
		}
		if time.Since(begin) > limit {
			t.Fatalf("the mesh is free for guests, and the phone gets %q: %v", got, err)
		}
	}

	const code = "%{http_code} %{redirect_url}"
	got := phone.fetch("-o", "/dev/null", "-w", code, "http://"+WebAddr4.String()+"/generate_204")
	status, page, _ := strings.Cut(got, " ")
	if status != "302" || page == "" {
		t.Fatalf("the probe of a new phone is answered %q", got)
	}
	if body := phone.fetch(page); !strings.Contains(body, "<form") {
		t.Errorf("the first page has no form: %q", body)
	}
	if portal != "" { // RFC 8910 wants https, and a router in a village has no certificate
		t.Errorf("without a certificate the network names %q as its API", portal)
	}
	captive := func() bool {
		t.Helper()
		var a struct {
			Captive bool   `json:"captive"`
			Portal  string `json:"user-portal-url"`
		}
		said := phone.fetch("-H", "Accept: application/captive+json", strings.TrimSuffix(page, "/")+"/captive/api")
		if err := json.Unmarshal([]byte(said), &a); err != nil || a.Portal != page {
			t.Errorf("the API says %q: %v", said, err)
		}
		return a.Captive
	}
	if !captive() {
		t.Error("a new phone is not captive")
	}
	phone.refused("https://"+WebAddr4.String()+"/", "a guest without a voucher")
	phone.refused("telnet://"+SpeedAddr6.String()+":5201", "a guest without a voucher")

	// Names are answered before that, and carry little: neither the router's resolver nor the gateway's is a way out.
	resolver, far := netip.MustParseAddr("10.77.0.1"), mesh.Addr()
	if n := s.asks("phone", resolver, 3*time.Second); n < 50 { // the allowance of a new device
		t.Errorf("a new phone gets %d answers", n)
	}
	if n := s.asks("phone", resolver, time.Second); n > 20 {
		t.Errorf("a phone without a voucher gets %d answers in a second", n)
	}
	if n := s.asks("phone", far, 500*time.Millisecond); n > 0 {
		t.Errorf("the gateway's resolver answers a phone without a voucher %d times", n)
	}

	var made []api.Voucher
	if err := s.Weft(s.ctx, "router", &made, "voucher", "create", "--minutes", "60", "--data", "50MB"); err != nil || len(made) != 1 {
		t.Fatalf("%+v, %v", made, err)
	}
	phone.fetch("-o", "/dev/null", "--data-urlencode", "code="+made[0].Code, strings.TrimSuffix(page, "/")+"/voucher")
	if n := s.asks("phone", resolver, time.Second); n < 40 {
		t.Errorf("with a voucher the phone gets %d answers in a second", n)
	}
	if captive() {
		t.Error("with a voucher the phone is captive still")
	}
	phone.page(Page, "http://"+WebName+"/")
	phone.page(s.up["gw"].Addr4.String()+"\n", "-4", "http://"+WebName+"/whoami")
	phone.page(s.up["gw"].Addr6.String()+"\n", "-6", "http://"+WebName+"/whoami")
	if got := phone.fetch("-o", "/dev/null", "-w", code, "http://"+WebAddr4.String()+"/generate_204"); !strings.HasPrefix(got, "404") {
		t.Errorf("the probe of a guest does not reach its server: %q", got)
	}
	var known []api.Voucher
	if err := s.Weft(s.ctx, "router", &known, "voucher", "list"); err != nil || len(known) != 1 || known[0].State != "active" || len(known[0].MACs) != 1 {
		t.Errorf("%+v, %v", known, err)
	}
	// More than its bytes: it ends in the middle.
	if got, err := phone.try("-m", "20", "--speed-limit", "1000", "--speed-time", "2", "-o", "/dev/null", "http://"+WebAddr4.String()+"/big"); err == nil {
		t.Errorf("a voucher of 50 MB carried 200: %q", got)
	}
	if !captive() {
		t.Error("the voucher is used up, and the phone is not captive")
	}
}

// certify makes an authority and a certificate of it for a name, and returns their files in dir.
func certify(t *testing.T, dir, name string) (authority, cert, key string) {
	t.Helper()
	now := time.Now()
	write := func(file, kind string, der []byte) string {
		file = filepath.Join(dir, file)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	var parent *x509.Certificate
	var signer *ecdsa.PrivateKey
	for i, c := range []*x509.Certificate{
		{Subject: pkix.Name{CommonName: "An authority that the phone knows"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign},
		{Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
	} {
		c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(int64(i+1)), now.Add(-time.Hour), now.Add(24*time.Hour)
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if parent == nil {
			parent, signer = c, own
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, own.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			authority = write("authority.pem", "CERTIFICATE", der)
			continue
		}
		secret, err := x509.MarshalPKCS8PrivateKey(own)
		if err != nil {
			t.Fatal(err)
		}
		cert, key = write("portal.pem", "CERTIFICATE", der), write("portal.key", "PRIVATE KEY", secret)
	}
	return authority, cert, key
}

// advertisement asks for a router advertisement as a phone does (RFC 4861 section 6.3.7) and returns its options but those that
// stand in it several times.
func (s *shared) advertisement(phone, ifname string) map[byte][]byte {
	s.t.Helper()
	n, err := s.World.node(phone)
	if err != nil {
		s.t.Fatal(err)
	}
	var c *ipv6.PacketConn
	var out ipv6.ControlMessage
	if err := inside(n.ns, func() error {
		dev, err := net.InterfaceByName(ifname)
		if err != nil {
			return err
		}
		out.IfIndex = dev.Index
		raw, err := net.ListenPacket("ip6:ipv6-icmp", "::")
		if err != nil {
			return err
		}
		c = ipv6.NewPacketConn(raw)
		var f ipv6.ICMPFilter
		f.SetAll(true)
		f.Accept(ipv6.ICMPTypeRouterAdvertisement)
		return errors.Join(c.SetICMPFilter(&f), c.SetMulticastHopLimit(255))
	}); err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 1500)
	for begin := time.Now(); time.Since(begin) < 20*time.Second; {
		if _, err := c.WriteTo([]byte{133, 0, 0, 0, 0, 0, 0, 0}, &out, &net.IPAddr{IP: net.IPv6linklocalallrouters}); err != nil {
			s.t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(4 * time.Second)) // a router that nobody knows yet waits 3 s between two to all
		size, _, _, err := c.ReadFrom(buf)
		if err != nil || size < 16 {
			continue
		}
		got := map[byte][]byte{}
		for o := buf[16:size]; len(o) > 1 && o[1] > 0 && 8*int(o[1]) <= len(o); o = o[8*int(o[1]):] {
			got[o[0]] = o[2 : 8*int(o[1])]
		}
		return got
	}
	s.t.Fatal("nobody advertises a router")
	return nil
}

// A router with a certificate tells devices of its page by DHCP and by advertisement (RFC 8910), and a phone that trusts the
// certificate reads there whether it is captive and what it has left (RFC 8908), by name. Both DHCP servers say it.
func TestGuestIsTold(t *testing.T) {
	needs(t, "curl", "dnsmasq")
	const host = "portal.village.example"
	for _, dhcp := range []string{"dnsmasq", "own"} {
		t.Run(dhcp, func(t *testing.T) {
			w, ctx := worldFor(t, empty)
			s := &shared{World: w, t: t, ctx: ctx}
			authority, cert, key := certify(t, w.Dir, host)
			s.node("router", 0, fmt.Sprintf("\n[guest]\ninterface = \"eth0\"\ndhcp = %q\nhost = %q\ncertificate = %q\nkey = %q\n", dhcp, host, cert, key))
			if _, err := w.AddNode("phone"); err != nil {
				t.Fatal(err)
			}
			s.line(Shape{}, "router", "phone")
			s.start()

			const api8908 = "https://" + host + "/captive/api"
			if got := s.join("phone", "eth0"); got != api8908 {
				t.Errorf("DHCP names %q, want %s", got, api8908)
			}
			if got := string(bytes.TrimRight(s.advertisement("phone", "eth0")[37], "\x00")); got != api8908 {
				t.Errorf("the router advertises %q, want %s", got, api8908)
			}
			var served api.Guests
			if err := s.Weft(ctx, "router", &served, "guest"); err != nil || served.DHCP != dhcp {
				t.Errorf("DHCP comes from %q, %v", served.DHCP, err)
			}

			phone := browser{t: t, ctx: ctx, w: w, node: "phone"}
			if got, err := phone.try(api8908); err == nil || !strings.Contains(err.Error(), "certificate") {
				t.Errorf("a phone that does not know the authority gets %q, %v", got, err)
			}
			phone.args = []string{"--cacert", authority}
			state := func() (captive bool, seconds, left int64) {
				t.Helper()
				said := phone.fetch("-H", "Accept: application/captive+json", "-w", "\n%{http_code} %{content_type}", api8908)
				body, kind, _ := strings.Cut(said, "\n\n")
				var a struct {
					Captive *bool  `json:"captive"`
					Portal  string `json:"user-portal-url"`
					Seconds int64  `json:"seconds-remaining"`
					Bytes   int64  `json:"bytes-remaining"`
				}
				if err := json.Unmarshal([]byte(body), &a); err != nil || a.Captive == nil || a.Portal != "https://"+host+"/" || kind != "200 application/captive+json" {
					t.Fatalf("the API says %q: %v", said, err)
				}
				return *a.Captive, a.Seconds, a.Bytes
			}
			if captive, seconds, left := state(); !captive || seconds != 0 || left != 0 {
				t.Errorf("a new phone: captive %v, %d s, %d bytes left", captive, seconds, left)
			}
			if got := phone.fetch("-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", "http://192.0.2.1/generate_204"); got != "302 https://"+host+"/" {
				t.Errorf("the probe of a new phone is answered %q", got)
			}
			var made []api.Voucher
			if err := s.Weft(ctx, "router", &made, "voucher", "create", "--minutes", "60", "--data", "50MB"); err != nil || len(made) != 1 {
				t.Fatalf("%+v, %v", made, err)
			}
			phone.fetch("-o", "/dev/null", "--data-urlencode", "code="+made[0].Code, "https://"+host+"/voucher")
			if captive, seconds, left := state(); captive || seconds < 3000 || seconds > 3600 || left < 40e6 || left > 50e6 {
				t.Errorf("with a voucher: captive %v, %d s, %d bytes left", captive, seconds, left)
			}
		})
	}
}
