package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The table, as `nft list table inet weft-guest-IF` shows it:
//
//	prerouting   port 80 (and 443, 53) of our addresses → the page and the resolver; port 80 of whoever is not let in → the page
//	postrouting  masquerades the IPv4 range where it leaves
//	input        DHCP, DNS, the page, neighbour discovery, ping, the named services; nothing else of this host
//	forward      from guests → leave: by the named interfaces only, never to private addresses; no resolver in the mesh for
//	             whoever is not let in; each let-in device has a chain
//	             that counts, takes from the quota and marks the connection; to guests: by that mark, so that a device's bytes
//	             are counted in both directions whatever addresses it makes up
//
// Connections carry a device's number in the upper half of their mark; the lower half is left to others.
const (
	markMask = 0xffff0000
	// kernelGrace is how much later than we the kernel lets a right expire: it is there for the case that we hang.
	kernelGrace = 30 * time.Second
	tableOwner  = 2 // NFT_TABLE_F_OWNER, Linux 5.12
)

// nftGate is the kernel table of one interface, and who is in it.
type nftGate struct {
	cfg   *Config
	index int // of the interface

	mu      sync.Mutex
	conn    *nftables.Conn
	table   *nftables.Table
	up      *nftables.Set // MAC → the device's chain
	allowed *nftables.Set // MACs, for the address translation, where maps to chains cannot be asked
	down    *nftables.Set // mark → the device's chain
	devices map[MAC]*pass
	pools   map[string]int // devices in a pool with a quota
	last    uint16
	garbage []*pass // chains that the kernel still held when we wanted to delete them
	nameOf  func() map[MAC]string
}

// pass is what a device that was let in has in the kernel.
type pass struct {
	n    uint16
	pool string // with a quota; "" without
	u, d *nftables.Chain
}

// openGate makes the table. It belongs to this process: nobody else can change it, and it is gone when the process is.
func openGate(cfg *Config, index int) (_ *nftGate, err error) {
	g := &nftGate{cfg: cfg, index: index, devices: map[MAC]*pass{}, pools: map[string]int{}, nameOf: func() map[MAC]string { return nil }}
	var raw *mdnetlink.Conn
	g.conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
		raw = c
		return nil
	}))
	if err != nil {
		return nil, fmt.Errorf("talk to nftables: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.conn.CloseLasting())
		}
	}()
	g.table = &nftables.Table{Name: "weft-guest-" + cfg.Interface, Family: nftables.TableFamilyINet}
	if err := ownTable(raw, g.table.Name); err != nil {
		if errors.Is(err, os.ErrExist) || errors.Is(err, unix.EPERM) {
			return nil, fmt.Errorf("the nftables table %s is there already: another weft serves guests on %s", g.table.Name, cfg.Interface)
		}
		return nil, fmt.Errorf("make the nftables table %s: %w; guests need a kernel with nftables (kmod-nft-core, kmod-nft-nat)", g.table.Name, err)
	}
	if err := g.rules(); err != nil {
		return nil, fmt.Errorf("write the rules for guests: %w", err)
	}
	return g, nil
}

// ownTable makes the table with the owner flag, which the nftables library cannot send. On kernels before 5.12, which do
// not know the flag, the table is a plain one, and one that a crash has left is replaced.
func ownTable(c *mdnetlink.Conn, name string) error {
	attr, err := mdnetlink.MarshalAttributes([]mdnetlink.Attribute{{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(name), 0)}})
	if err != nil {
		return err
	}
	head := func(family byte, id uint16) []byte { return binary.BigEndian.AppendUint16([]byte{family, 0}, id) }
	do := func(typ uint16, flags mdnetlink.HeaderFlags, table []byte) error {
		const nft = unix.NFNL_SUBSYS_NFTABLES
		_, err := c.SendMessages([]mdnetlink.Message{
			{Header: mdnetlink.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: mdnetlink.Request}, Data: head(unix.AF_UNSPEC, nft)},
			{Header: mdnetlink.Header{Type: mdnetlink.HeaderType(nft<<8 | typ), Flags: mdnetlink.Request | mdnetlink.Acknowledge | flags},
				Data: append(head(unix.NFPROTO_INET, 0), table...)},
			{Header: mdnetlink.Header{Type: unix.NFNL_MSG_BATCH_END, Flags: mdnetlink.Request}, Data: head(unix.AF_UNSPEC, nft)},
		})
		if err == nil {
			_, err = c.Receive()
		}
		return err
	}
	withFlags := func(f uint32) []byte {
		b, _ := mdnetlink.MarshalAttributes([]mdnetlink.Attribute{{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, f)}})
		return append(slices.Clone(attr), b...)
	}
	const create = mdnetlink.Create | mdnetlink.Excl
	err = do(unix.NFT_MSG_NEWTABLE, create, withFlags(tableOwner))
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		_ = do(unix.NFT_MSG_DELTABLE, 0, attr)
		err = do(unix.NFT_MSG_NEWTABLE, create, withFlags(0))
	}
	return err
}

// Building blocks of rules.

func ifname(key expr.MetaKey, name string) []expr.Any {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b}}
}

func metaIs(key expr.MetaKey, v byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{v}}}
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

// addrIn matches a packet's source or destination.
func addrIn(p netip.Prefix, source bool) []expr.Any {
	size, at := uint32(4), uint32(16)
	if p.Addr().Is6() {
		size, at = 16, 24
	}
	if source {
		at -= size
	}
	mask := make([]byte, size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(metaIs(expr.MetaKeyNFPROTO, family(p.Addr())),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()})
}

func port(proto byte, n uint16) []expr.Any {
	return append(metaIs(expr.MetaKeyL4PROTO, proto),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(n)})
}

func lookup(s *nftables.Set, verdict bool) *expr.Lookup {
	return &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID, IsDestRegSet: verdict}
}

func sourceMAC() expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6}
}

func markBits() []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(markMask), Xor: native(0)}}
}

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

func verdict(k expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: k} }

func goTo(chain string) *expr.Verdict { return &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain} }

func reject() expr.Any {
	return &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}
}

func toPort(a netip.Addr, p uint16) []expr.Any {
	return []expr.Any{&expr.Immediate{Register: 1, Data: a.AsSlice()}, &expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(p)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(family(a)), RegAddrMin: 1, RegProtoMin: 2}}
}

func join(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

func one(e ...expr.Any) []expr.Any { return e }

// private are the addresses that are never the internet: the owner's other networks, and what routers give to each other.
func private() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range []string{"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
		"192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3", "::/96", "fc00::/7", "fe80::/9", "ff00::/8"} {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// rules writes all that does not depend on who is here.
func (g *nftGate) rules() error {
	c, cfg := g.conn, g.cfg
	set := func(s *nftables.Set) *nftables.Set {
		s.Table, s.HasTimeout = g.table, true
		if err := c.AddSet(s, nil); err != nil {
			panic(err) // only for elements that do not fit, and there are none
		}
		return s
	}
	g.up = set(&nftables.Set{Name: "up", IsMap: true, KeyType: nftables.TypeEtherAddr, DataType: nftables.TypeVerdict})
	g.down = set(&nftables.Set{Name: "down", IsMap: true, KeyType: nftables.TypeMark, DataType: nftables.TypeVerdict, KeyByteOrder: binaryutil.NativeEndian})
	g.allowed = set(&nftables.Set{Name: "allowed", KeyType: nftables.TypeEtherAddr})

	plain := func(name string) *nftables.Chain { return c.AddChain(&nftables.Chain{Name: name, Table: g.table}) }
	base := func(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: g.table, Type: typ, Hooknum: hook, Priority: &prio})
	}
	rule := func(ch *nftables.Chain, parts ...[]expr.Any) {
		c.AddRule(&nftables.Rule{Table: g.table, Chain: ch, Exprs: join(parts...)})
	}
	accept, drop, ret := one(verdict(expr.VerdictAccept)), one(verdict(expr.VerdictDrop)), one(verdict(expr.VerdictReturn))
	fromGuests, toGuests := ifname(expr.MetaKeyIIFNAME, cfg.Interface), ifname(expr.MetaKeyOIFNAME, cfg.Interface)
	mesh := meshPrefix()

	var ours []netip.Addr
	for _, a := range []netip.Addr{cfg.Addr4(), cfg.Addr6()} {
		if a.IsValid() {
			ours = append(ours, a)
		}
	}

	// Whoever is not let in. HTTPS is refused at once, so that no browser waits or warns of a forged certificate.
	captive := plain("captive")
	rule(captive, port(unix.IPPROTO_TCP, 443), one(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}))
	rule(captive, one(reject()))

	pre := base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest)
	for _, a := range ours {
		self := addrIn(netip.PrefixFrom(a, a.BitLen()), false)
		rule(pre, fromGuests, self, port(unix.IPPROTO_TCP, 80), toPort(a, cfg.PortalPort))
		if cfg.TLS != nil {
			rule(pre, fromGuests, self, port(unix.IPPROTO_TCP, 443), toPort(a, cfg.TLSPort))
		}
		if cfg.DNSPort != 53 {
			rule(pre, fromGuests, self, port(unix.IPPROTO_UDP, 53), toPort(a, cfg.DNSPort))
			rule(pre, fromGuests, self, port(unix.IPPROTO_TCP, 53), toPort(a, cfg.DNSPort))
		}
	}
	if cfg.Access != AccessOpen {
		rule(pre, fromGuests, one(sourceMAC(), lookup(g.allowed, false)), ret)
		if cfg.Mesh == MeshFree {
			rule(pre, fromGuests, addrIn(mesh, false), ret)
		}
		for _, a := range ours {
			rule(pre, fromGuests, metaIs(expr.MetaKeyNFPROTO, family(a)), port(unix.IPPROTO_TCP, 80), toPort(a, cfg.PortalPort))
		}
	}

	if cfg.Range.IsValid() {
		post := base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource)
		for _, o := range cfg.Out {
			rule(post, addrIn(cfg.Range, true), ifname(expr.MetaKeyOIFNAME, o), one(&expr.Masq{}))
		}
	}

	input := base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, *nftables.ChainPriorityFilter-5)
	host := plain("host")
	rule(input, fromGuests, one(goTo(host.Name)))
	rule(host, one(&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED), Xor: native(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: native(0)}), accept)
	rule(host, metaIs(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV4), port(unix.IPPROTO_UDP, 67), accept)
	icmp := func(proto, typ byte) []expr.Any {
		return append(metaIs(expr.MetaKeyL4PROTO, proto), &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Len: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{typ}})
	}
	rule(host, icmp(unix.IPPROTO_ICMP, 8), accept)
	rule(host, metaIs(expr.MetaKeyL4PROTO, unix.IPPROTO_IGMP), accept)
	for _, t := range []byte{128, 130, 131, 132, 143, 133, 134, 135, 136} { // ping, multicast listeners, neighbour discovery
		rule(host, icmp(unix.IPPROTO_ICMPV6, t), accept)
	}
	open := func(proto byte, p uint16) { rule(host, port(proto, p), accept) }
	for _, a := range ours { // at our guest addresses only: the host has others
		self := addrIn(netip.PrefixFrom(a, a.BitLen()), false)
		rule(host, self, port(unix.IPPROTO_UDP, cfg.DNSPort), accept)
		rule(host, self, port(unix.IPPROTO_TCP, cfg.DNSPort), accept)
		rule(host, self, port(unix.IPPROTO_TCP, cfg.PortalPort), accept)
		if cfg.TLS != nil {
			rule(host, self, port(unix.IPPROTO_TCP, cfg.TLSPort), accept)
		}
	}
	for _, s := range cfg.Services {
		if s.Proto == "tcp" {
			open(unix.IPPROTO_TCP, s.Port)
		} else {
			open(unix.IPPROTO_UDP, s.Port)
		}
	}
	rule(host, one(reject()))

	fwd := base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPriorityFilter-5)
	from, leave, to := plain("from"), plain("leave"), plain("to")
	// The mesh's packets are smaller than Ethernet's, and the way back may lose the ICMP that says so.
	clamp := append(metaIs(expr.MetaKeyL4PROTO, unix.IPPROTO_TCP),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{2}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0}},
		&expr.Rt{Register: 1, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: 1, Type: 2, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt})
	rule(fwd, fromGuests, clamp)
	rule(fwd, toGuests, clamp)
	rule(fwd, fromGuests, one(goTo(from.Name)))
	rule(fwd, toGuests, one(goTo(to.Name)))

	for _, o := range cfg.Out {
		rule(from, ifname(expr.MetaKeyOIFNAME, o), one(goTo(leave.Name)))
	}
	rule(from, one(reject()))

	switch cfg.Mesh {
	case MeshFree:
		if cfg.Access != AccessOpen {
			// The resolvers of gateways answer this node, and would take its guests for it: no way around [Guests.Names].
			for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
				stranger := lookup(g.allowed, false)
				stranger.Invert = true
				rule(leave, addrIn(mesh, false), port(proto, 53), one(sourceMAC(), stranger, reject()))
			}
		}
		rule(leave, addrIn(mesh, false), accept)
	case MeshClosed:
		rule(leave, addrIn(mesh, false), one(reject()))
	}
	for _, p := range private() {
		rule(leave, addrIn(p, false), one(reject()))
	}
	rule(leave, one(sourceMAC(), lookup(g.up, true)))
	if cfg.Access == AccessOpen {
		rule(leave, accept) // seen for the first time a moment ago
	}
	rule(leave, one(goTo(captive.Name)))

	rule(to, markBits(), one(lookup(g.down, true)))
	if cfg.Mesh != MeshClosed {
		rule(to, addrIn(mesh, true), accept) // the node's firewall has decided
	}
	if cfg.Access == AccessOpen {
		for _, o := range cfg.Out {
			rule(to, ifname(expr.MetaKeyIIFNAME, o), accept)
		}
	}
	rule(to, drop)
	return c.Flush()
}

func quotaName(pool string) string { return "pool-" + pool }

func objref(typ nftables.ObjType, name string) expr.Any {
	return &expr.Objref{Type: int(typ), Name: name}
}

// allow is [gate].
func (g *nftGate) allow(mac MAC, r grant) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sweepLocked()
	if g.devices[mac] != nil {
		return fmt.Errorf("%s is let in already", mac)
	}
	n, err := g.numberLocked()
	if err != nil {
		return err
	}
	p := &pass{n: n}
	id := strconv.Itoa(int(n))
	c := g.conn
	var limit []expr.Any
	if r.bytes > 0 {
		p.pool = r.pool
		if g.pools[r.pool] == 0 {
			c.AddObj(&nftables.QuotaObj{Table: g.table, Name: quotaName(r.pool), Bytes: r.bytes})
		}
		limit = one(objref(nftables.ObjTypeQuota, quotaName(r.pool)))
	}
	for _, name := range []string{"u" + id, "d" + id} {
		c.AddObj(&nftables.CounterObj{Table: g.table, Name: name})
	}
	p.u = c.AddChain(&nftables.Chain{Name: "u" + id, Table: g.table})
	p.d = c.AddChain(&nftables.Chain{Name: "d" + id, Table: g.table})
	rule := func(ch *nftables.Chain, parts ...[]expr.Any) {
		c.AddRule(&nftables.Rule{Table: g.table, Chain: ch, Exprs: join(parts...)})
	}
	mark := uint32(n) << 16
	setMark := one(&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(^uint32(markMask)), Xor: native(mark)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true})
	// What is over the quota is counted too: so our sum and the kernel's are the same, and we notice.
	rule(p.u, one(objref(nftables.ObjTypeCounter, "u"+id)))
	rule(p.u, limit, setMark, one(verdict(expr.VerdictAccept)))
	rule(p.u, one(goTo("captive")))
	rule(p.d, one(objref(nftables.ObjTypeCounter, "d"+id)))
	rule(p.d, limit, one(verdict(expr.VerdictAccept)))
	rule(p.d, one(verdict(expr.VerdictDrop)))
	var left time.Duration
	if r.left > 0 {
		left = r.left + kernelGrace
	}
	err = errors.Join(
		c.SetAddElements(g.up, []nftables.SetElement{{Key: mac[:], VerdictData: goTo(p.u.Name), Timeout: left}}),
		c.SetAddElements(g.allowed, []nftables.SetElement{{Key: mac[:], Timeout: left}}),
		c.SetAddElements(g.down, []nftables.SetElement{{Key: native(mark), VerdictData: goTo(p.d.Name), Timeout: left}}))
	if err = errors.Join(err, c.Flush()); err != nil {
		return fmt.Errorf("let %s in: %w", mac, err)
	}
	g.devices[mac] = p
	if p.pool != "" {
		g.pools[p.pool]++
	}
	return nil
}

func (g *nftGate) numberLocked() (uint16, error) {
	used := func(n uint16) bool {
		if n == 0 || slices.ContainsFunc(g.garbage, func(p *pass) bool { return p.n == n }) {
			return true
		}
		for _, p := range g.devices {
			if p.n == n {
				return true
			}
		}
		return false
	}
	for range 1 << 16 {
		if g.last++; !used(g.last) {
			return g.last, nil
		}
	}
	return 0, errors.New("too many guests at once")
}

// deny is [gate]. The device's rights go first, then it is counted, then its chains go.
func (g *nftGate) deny(mac MAC) (traffic, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.devices[mac]
	if p == nil {
		return traffic{}, nil
	}
	for _, e := range []struct {
		set *nftables.Set
		key []byte
	}{{g.up, mac[:]}, {g.allowed, mac[:]}, {g.down, native(uint32(p.n) << 16)}} {
		err := g.conn.SetDeleteElements(e.set, []nftables.SetElement{{Key: e.key}})
		if err = errors.Join(err, g.conn.Flush()); err != nil && !errors.Is(err, os.ErrNotExist) { // it may have expired
			return traffic{}, fmt.Errorf("shut %s out: %w", mac, err)
		}
	}
	all, err := g.countersLocked()
	delete(g.devices, mac)
	g.garbage = append(g.garbage, p)
	if p.pool != "" {
		g.pools[p.pool]--
	}
	g.sweepLocked()
	if err != nil {
		return traffic{}, err
	}
	return all[mac], nil
}

// sweepLocked deletes what nobody refers to any more. The kernel lets go of expired elements in its own time.
func (g *nftGate) sweepLocked() {
	g.garbage = slices.DeleteFunc(g.garbage, func(p *pass) bool {
		c := g.conn
		c.DelChain(p.u)
		c.DelChain(p.d)
		for _, ch := range []*nftables.Chain{p.u, p.d} {
			c.DeleteObject(&nftables.CounterObj{Table: g.table, Name: ch.Name})
		}
		if c.Flush() != nil {
			return false
		}
		if n, ok := g.pools[p.pool]; ok && n == 0 {
			c.DeleteObject(&nftables.QuotaObj{Table: g.table, Name: quotaName(p.pool)})
			if c.Flush() == nil {
				delete(g.pools, p.pool)
			}
		}
		return true
	})
}

// counters is [gate].
func (g *nftGate) counters() (map[MAC]traffic, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.countersLocked()
}

func (g *nftGate) countersLocked() (map[MAC]traffic, error) {
	out := make(map[MAC]traffic, len(g.devices))
	if len(g.devices) == 0 {
		return out, nil
	}
	objs, err := g.conn.GetObjects(g.table)
	if err != nil {
		return nil, fmt.Errorf("read guests' counters: %w", err)
	}
	bytes := make(map[string]uint64, len(objs))
	for _, o := range objs {
		if c, ok := o.(*nftables.CounterObj); ok {
			bytes[c.Name] = c.Bytes
		}
	}
	for m, p := range g.devices {
		out[m] = traffic{up: bytes[p.u.Name], down: bytes[p.d.Name]}
	}
	return out, nil
}

// neighbours is [gate].
func (g *nftGate) neighbours() ([]neighbour, error) {
	var out []neighbour
	for _, fam := range []int{unix.AF_INET, unix.AF_INET6} {
		ns, err := netlink.NeighList(g.index, fam)
		if err != nil {
			return nil, fmt.Errorf("read the neighbour table of %s: %w", g.cfg.Interface, err)
		}
		for _, n := range ns {
			a, ok := netip.AddrFromSlice(n.IP)
			const useful = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE | netlink.NUD_PERMANENT
			if !ok || len(n.HardwareAddr) != 6 || n.State&useful == 0 || a.IsMulticast() {
				continue
			}
			out = append(out, neighbour{MAC(n.HardwareAddr), a.Unmap(), n.State&(netlink.NUD_REACHABLE|netlink.NUD_DELAY|netlink.NUD_PROBE) != 0})
		}
	}
	return out, nil
}

// names is [gate].
func (g *nftGate) names() (map[MAC]string, error) { return g.nameOf(), nil }

// close removes the table, by letting go of it.
func (g *nftGate) close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conn.DelTable(g.table) // for kernels that know no owner
	return errors.Join(g.conn.Flush(), g.conn.CloseLasting())
}
