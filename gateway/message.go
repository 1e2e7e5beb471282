package gateway

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Channel is the number of this package's messages in a session. docs/spec/session.md section 3.
const Channel = 1

const (
	messageVersion = 1
	messageHeader  = 6
	maxMessage     = 1100 // session.MaxMessage
	maxDNS         = 3
	maxText        = 200 // bytes
)

type messageType uint8

// Messages of the lease protocol. docs/spec/gateway.md section 3.
const (
	msgRequest messageType = iota + 1
	msgGrant
	msgRefuse
	msgRelease
	msgNotice
)

func (t messageType) String() string {
	return [...]string{"?", "request", "grant", "refusal", "release", "notice"}[min(t, 5)%6]
}

// Code says why a gateway refuses or gives notice.
type Code uint8

// The codes. docs/spec/gateway.md section 3.
const (
	codeNone       Code = iota
	CodeNoOffer         // nothing is offered here, or not any more
	CodeFull            // no room for another client
	CodeMembers         // members only
	CodeFamilies        // none of the families asked for
	CodeSlowDown        // asked too often
	CodeClosing         // the node is going down
	CodeUplinkLost      // the gateway's own line is down
	CodeLeaseEnded      // there is no lease; ask for one
	CodeTerms           // price or families have changed; ask again
	CodeBarred          // this client is not served
	codes
)

var codeText = [codes]string{"", "offers nothing any more", "is full", "is for members only", "has none of the address families asked for",
	"was asked too often", "is closing down", "has lost its line", "has no lease for us", "has changed its terms", "does not serve us"}

// String says it for people.
func (c Code) String() string {
	if c == codeNone || c >= codes {
		return fmt.Sprintf("gives reason %d", uint8(c))
	}
	return codeText[c]
}

// message is one datagram of the lease protocol. The zero value of a field is not sent.
type message struct {
	kind messageType
	id   uint32

	families  Families   // request: wanted; grant: granted; notice: what remains
	v4        netip.Addr // request: had before; grant
	v6        netip.Prefix
	nat64     netip.Prefix // a /96
	dns       []netip.Addr
	lifetime  uint32 // s; of a refusal: ask again after that
	price     uint32
	mtu       uint16
	downKbps  uint32
	upKbps    uint32
	flows     uint32
	newFlows  uint32 // a second
	grantBits uint8
	code      Code
	text      string
	features  uint32
}

const grantFreeTier = 1 << 0

// Numbers of the fields.
const (
	fFamilies = iota + 1
	fV4
	fV6
	fNAT64
	fDNS
	fLifetime
	fPrice
	fMTU
	fDown
	fUp
	fFlows
	fNewFlows
	fBits
	fCode
	fText
	fFeatures
)

// fieldsOf are the fields that a message may have.
var fieldsOf = [...]uint32{
	msgRequest: 1<<fFamilies | 1<<fV4 | 1<<fFeatures,
	msgGrant: 1<<fFamilies | 1<<fV4 | 1<<fV6 | 1<<fNAT64 | 1<<fDNS | 1<<fLifetime | 1<<fPrice | 1<<fMTU | 1<<fDown | 1<<fUp |
		1<<fFlows | 1<<fNewFlows | 1<<fBits,
	msgRefuse:  1<<fCode | 1<<fText | 1<<fLifetime,
	msgRelease: 0,
	msgNotice:  1<<fFamilies | 1<<fCode | 1<<fText,
}

// appendTo appends the message. Text is cut to what fits.
func (m *message) appendTo(b []byte) []byte {
	b = append(b, messageVersion, byte(m.kind))
	b = binary.BigEndian.AppendUint32(b, m.id)
	field := func(n byte, v ...byte) { b = append(append(b, n, byte(len(v))), v...) }
	u32 := func(n byte, v uint32) {
		if v != 0 {
			field(n, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
		}
	}
	if m.families != 0 {
		field(fFamilies, byte(m.families))
	}
	if m.v4.Is4() {
		field(fV4, m.v4.AsSlice()...)
	}
	if m.v6.IsValid() {
		a := m.v6.Masked().Addr().As16()
		field(fV6, append(a[:], byte(m.v6.Bits()))...)
	}
	if m.nat64.IsValid() {
		a := m.nat64.Addr().As16()
		field(fNAT64, a[:12]...)
	}
	if len(m.dns) > 0 {
		var v []byte
		for _, a := range m.dns[:min(len(m.dns), maxDNS)] {
			x := a.As16()
			v = append(v, x[:]...)
		}
		field(fDNS, v...)
	}
	u32(fLifetime, m.lifetime)
	u32(fPrice, m.price)
	if m.mtu != 0 {
		field(fMTU, byte(m.mtu>>8), byte(m.mtu))
	}
	u32(fDown, m.downKbps)
	u32(fUp, m.upKbps)
	u32(fFlows, m.flows)
	u32(fNewFlows, m.newFlows)
	if m.grantBits != 0 {
		field(fBits, m.grantBits)
	}
	if m.code != 0 {
		field(fCode, byte(m.code))
	}
	if s := cleanText(m.text); s != "" {
		field(fText, []byte(s)...)
	}
	u32(fFeatures, m.features)
	return b
}

// cleanText makes a text fit for a message: printable UTF-8 of at most maxText bytes.
func cleanText(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	for len(s) > maxText {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}

// parseMessage reads a datagram: fields in ascending order, none twice, none that is zero, each of its own length. Fields it
// does not know are skipped and counted.
func parseMessage(b []byte) (m message, unknown int, err error) {
	if len(b) < messageHeader || len(b) > maxMessage {
		return m, 0, fmt.Errorf("lease message of %d bytes", len(b))
	}
	if b[0] != messageVersion {
		return m, 0, fmt.Errorf("lease message of version %d", b[0])
	}
	m.kind, m.id = messageType(b[1]), binary.BigEndian.Uint32(b[2:])
	if m.kind < msgRequest || m.kind > msgNotice {
		return m, 0, fmt.Errorf("lease message of unknown type %d", b[1])
	}
	last := byte(0)
	for b = b[messageHeader:]; len(b) > 0; {
		if len(b) < 2 || len(b) < 2+int(b[1]) || b[0] <= last {
			return m, 0, fmt.Errorf("%v with a field that is cut off or out of order", m.kind)
		}
		n, v := b[0], b[2:2+int(b[1])]
		b, last = b[2+len(v):], n
		if n > fFeatures {
			unknown++
			continue
		}
		if fieldsOf[m.kind]&(1<<n) == 0 || !m.set(n, v) {
			return m, 0, fmt.Errorf("%v with a field %d of %d bytes that makes no sense", m.kind, n, len(v))
		}
	}
	return m, unknown, nil
}

// set reads one field.
func (m *message) set(n byte, v []byte) bool {
	var u uint32
	switch len(v) {
	case 1:
		u = uint32(v[0])
	case 2:
		u = uint32(binary.BigEndian.Uint16(v))
	case 4:
		u = binary.BigEndian.Uint32(v)
	}
	size := 4
	switch n {
	case fFamilies:
		m.families, size = Families(u), 1
	case fV4:
		if len(v) == 4 {
			m.v4 = netip.AddrFrom4([4]byte(v))
		}
	case fV6:
		if len(v) != 17 || v[16] == 0 || v[16] > 128 {
			return false
		}
		m.v6 = netip.PrefixFrom(netip.AddrFrom16([16]byte(v)), int(v[16]))
		return m.v6 == m.v6.Masked() && !m.v6.Addr().Is4In6()
	case fNAT64:
		if len(v) != 12 {
			return false
		}
		var a [16]byte
		copy(a[:], v)
		m.nat64 = netip.PrefixFrom(netip.AddrFrom16(a), 96)
		return !m.nat64.Addr().Is4In6()
	case fDNS:
		if len(v) == 0 || len(v)%16 != 0 || len(v) > 16*maxDNS {
			return false
		}
		for ; len(v) > 0; v = v[16:] {
			a := netip.AddrFrom16([16]byte(v))
			if a.Is4In6() {
				return false
			}
			m.dns = append(m.dns, a)
		}
		return true
	case fLifetime:
		m.lifetime = u
	case fPrice:
		m.price = u
	case fMTU:
		m.mtu, size = uint16(u), 2
	case fDown:
		m.downKbps = u
	case fUp:
		m.upKbps = u
	case fFlows:
		m.flows = u
	case fNewFlows:
		m.newFlows = u
	case fBits:
		m.grantBits, size = uint8(u), 1
	case fCode:
		m.code, size = Code(u), 1
	case fText:
		m.text = string(v)
		return len(v) > 0 && len(v) <= maxText && m.text == cleanText(m.text)
	case fFeatures:
		m.features = u
	}
	return len(v) == size && (u != 0 || n == fV4)
}
