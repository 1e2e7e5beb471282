package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/bits"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A table of ours, and words to write its rules with.

// nftTableOwner is NFT_TABLE_F_OWNER (linux/netfilter/nf_tables.h, Linux 5.12): the table goes with the socket that made it.
const nftTableOwner = 0x2

// table is an nftables table that goes away with the process.
type table struct {
	*nftables.Table

	mu sync.Mutex // one batch at a time
	c  *nftables.Conn
}

// newTable makes an empty table of the inet family, which must not exist yet: fs.ErrExist.
func newTable(name string, log *slog.Logger) (*table, error) {
	// The library creates tables without flags. So the table is made on its socket, before it writes into it.
	var sock *netlink.Conn
	c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(s *netlink.Conn) error { sock = s; return nil }))
	if err != nil {
		return nil, fmt.Errorf("talk to nftables: %w (does this kernel have nf_tables? OpenWrt: kmod-nft-core, kmod-nft-nat, kmod-nft-fib)", err)
	}
	err = createTable(sock, name, nftTableOwner)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		log.Info("this kernel cannot remove firewall tables of processes that were killed: the next start does it", "table", name)
		err = createTable(sock, name, 0)
	}
	if err != nil {
		_ = c.CloseLasting()
		if there, _ := findTables(func(n string) bool { return n == name }); len(there) > 0 { // one that is owned is refused with EPERM
			return nil, fmt.Errorf("make firewall table %s: %w", name, fs.ErrExist)
		}
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			return nil, fmt.Errorf("make firewall table %s: %w (root or CAP_NET_ADMIN is needed)", name, err)
		}
		return nil, fmt.Errorf("make firewall table %s: %w", name, err)
	}
	return &table{Table: &nftables.Table{Name: name, Family: nftables.TableFamilyINet}, c: c}, nil
}

// createTable sends what `nft create table inet NAME { flags owner; }` sends.
func createTable(sock *netlink.Conn, name string, flags uint32) error {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(name), 0)},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, flags)},
	})
	if err != nil {
		return err
	}
	edge := func(t netlink.HeaderType) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: t, Flags: netlink.Request}, Data: []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES}}
	}
	_, err = sock.SendMessages([]netlink.Message{
		edge(unix.NFNL_MSG_BATCH_BEGIN),
		{
			Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE,
				Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Excl},
			Data: append([]byte{unix.NFPROTO_INET, 0, 0, 0}, attrs...),
		},
		edge(unix.NFNL_MSG_BATCH_END),
	})
	if err != nil {
		return err
	}
	_, err = sock.Receive()
	return err
}

// change sends what f asks for as one batch: all of it happens, or nothing.
func (t *table) change(f func(c *nftables.Conn) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := f(t.c); err != nil {
		return fmt.Errorf("write firewall table %s: %w", t.Name, err)
	}
	if err := t.c.Flush(); err != nil {
		return fmt.Errorf("write firewall table %s: %w", t.Name, err)
	}
	return nil
}

// close deletes the table.
func (t *table) close() error {
	err := t.change(func(c *nftables.Conn) error { c.DelTable(t.Table); return nil })
	if errors.Is(err, fs.ErrNotExist) { // somebody has flushed the rule set
		err = nil
	}
	return errors.Join(err, t.c.CloseLasting())
}

// findTables lists inet tables whose names fit.
func findTables(fits func(name string) bool) (out []*nftables.Table, err error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("talk to nftables: %w", err)
	}
	all, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list firewall tables: %w", err)
	}
	return slices.DeleteFunc(all, func(t *nftables.Table) bool { return !fits(t.Name) }), nil
}

// owned reports whether a listed table goes with a process that therefore lives.
func owned(t *nftables.Table) bool {
	return (t.Flags|bits.ReverseBytes32(t.Flags))&nftTableOwner != 0 // the library reads the big-endian field as native
}

// deleteTable removes a table that nobody owns any more.
func deleteTable(t *nftables.Table) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("talk to nftables: %w", err)
	}
	c.DelTable(t)
	if err := c.Flush(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete firewall table %s: %w", t.Name, err)
	}
	return nil
}

// chain adds a base chain that accepts what its rules do not decide.
func (t *table) chain(c *nftables.Conn, name string, typ nftables.ChainType, hook *nftables.ChainHook, prio int) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	p := nftables.ChainPriority(prio)
	return c.AddChain(&nftables.Chain{Table: t.Table, Name: name, Type: typ, Hooknum: hook, Priority: &p, Policy: &accept})
}

// rule adds a rule of parts: all must match.
func (t *table) rule(c *nftables.Conn, ch *nftables.Chain, parts ...[]expr.Any) {
	c.AddRule(&nftables.Rule{Table: t.Table, Chain: ch, Exprs: slices.Concat(parts...)})
}

const reg = 1 // the register that all expressions here work in

func ifname(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: reg}, &expr.Cmp{Op: op, Register: reg, Data: nameKey(name)}}
}

func nameKey(name string) []byte { return append([]byte(name), make([]byte, 16-len(name))...) }

func iif(name string) []expr.Any    { return ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq, name) }
func notIif(name string) []expr.Any { return ifname(expr.MetaKeyIIFNAME, expr.CmpOpNeq, name) }
func oif(name string) []expr.Any    { return ifname(expr.MetaKeyOIFNAME, expr.CmpOpEq, name) }

func ifnameIn(key expr.MetaKey, s *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: reg}, &expr.Lookup{SourceRegister: reg, SetName: s.Name, SetID: s.ID}}
}

func notFromGroup(group uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFGROUP, Register: reg}, &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: binaryutil.NativeEndian.PutUint32(group)}}
}

// ipv matches packets of IP version 4 or 6.
func ipv(version int) []expr.Any {
	proto := byte(unix.NFPROTO_IPV4)
	if version == 6 {
		proto = unix.NFPROTO_IPV6
	}
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{proto}}}
}

// side is where an address lies in an IP header.
type side struct{ at4, at6 uint32 }

func src() side { return side{12, 8} }
func dst() side { return side{16, 24} }

func (s side) load(v6 bool) *expr.Payload {
	if v6 {
		return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: s.at6, Len: 16}
	}
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: s.at4, Len: 4}
}

// in matches addresses of a prefix; it says nothing of packets of the other family, which ipv has to exclude before.
func (s side) in(p netip.Prefix) []expr.Any  { return s.cmp(expr.CmpOpEq, p) }
func (s side) not(p netip.Prefix) []expr.Any { return s.cmp(expr.CmpOpNeq, p) }

func (s side) cmp(op expr.CmpOp, p netip.Prefix) []expr.Any {
	p = p.Masked()
	load := s.load(p.Addr().Is6())
	mask := make([]byte, load.Len)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{load,
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: load.Len, Mask: mask, Xor: make([]byte, load.Len)},
		&expr.Cmp{Op: op, Register: reg, Data: p.Addr().AsSlice()}}
}

func (s side) inSet(set *nftables.Set) []expr.Any {
	return []expr.Any{s.load(set.KeyType == nftables.TypeIP6Addr), &expr.Lookup{SourceRegister: reg, SetName: set.Name, SetID: set.ID}}
}

// withinMesh matches packets between mesh addresses.
func withinMesh() []expr.Any { return slices.Concat(ipv(6), src().in(mesh), dst().in(mesh)) }

// state matches connections in one of the conntrack states.
func state(mask uint32) []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)}}
}

// answers matches packets of connections that were let in before.
func answers() []expr.Any { return state(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED) }

// reply matches packets against the direction in which their connection began.
func reply() []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{1}}}
}

func ctMark(m uint32) []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: reg}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.NativeEndian.PutUint32(m)}}
}

func setCtMark(m uint32) []expr.Any {
	return []expr.Any{&expr.Immediate{Register: reg, Data: binaryutil.NativeEndian.PutUint32(m)}, &expr.Ct{Key: expr.CtKeyMARK, Register: reg, SourceRegister: true}}
}

func mark(op expr.CmpOp, m uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: reg}, &expr.Cmp{Op: op, Register: reg, Data: binaryutil.NativeEndian.PutUint32(m)}}
}

func setMark(m uint32) []expr.Any {
	return []expr.Any{&expr.Immediate{Register: reg, Data: binaryutil.NativeEndian.PutUint32(m)}, &expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true}}
}

// toHere matches destinations that are this host's own.
func toHere() []expr.Any {
	return []expr.Any{&expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)}}
}

func l4(proto byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{proto}}}
}

func dport(port uint16) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.BigEndian.PutUint16(port)}}
}

// redirect sends to a port of this host.
func redirect(port uint16) []expr.Any {
	return []expr.Any{&expr.Immediate{Register: reg, Data: binaryutil.BigEndian.PutUint16(port)}, &expr.Redir{RegisterProtoMin: reg, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED}}
}

// clampMSS lowers the segment size that a TCP SYN offers to what fits the path's MTU, which IPv4 hosts behind filters of ICMP need.
func clampMSS() []expr.Any {
	const syn, rst = 0x02, 0x04
	return slices.Concat(l4(unix.IPPROTO_TCP), []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 1, Mask: []byte{syn | rst}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{syn}},
		&expr.Rt{Register: reg, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: reg, DestRegister: reg, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: reg, Type: 2, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	})
}

func accept() []expr.Any     { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() []expr.Any       { return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}} }
func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

// noRoute answers with ICMP's or ICMPv6's "no route", in either family.
func noRoute() []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_NO_ROUTE}}
}

func jump(to *nftables.Chain) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: to.Name}}
}

// names makes the elements of a set of interface names.
func names(list []string) []nftables.SetElement {
	var out []nftables.SetElement
	for _, n := range list {
		out = append(out, nftables.SetElement{Key: nameKey(n)})
	}
	return out
}

// intervals makes the elements of an interval set of prefixes that do not overlap: where each run of them begins, and where it is over. The
// kernel refuses two beginnings in a row.
func intervals(list []netip.Prefix) []nftables.SetElement {
	var out []nftables.SetElement
	var end netip.Addr // of the run so far
	for _, p := range list {
		if p.Addr() != end {
			if end.IsValid() {
				out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
			}
			out = append(out, nftables.SetElement{Key: p.Addr().AsSlice()})
		}
		end = after(p)
	}
	if end.IsValid() { // otherwise the run goes on to the last of all addresses
		out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
	}
	return out
}

// after returns the first address behind p; the zero Addr when there is none.
func after(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last.Next()
}
