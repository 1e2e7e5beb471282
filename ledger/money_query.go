package ledger

import (
	"weft/ident"
	"weft/ledger/tx"
)

// What follows reads the committed state and changes nothing. Light clients read the same records with proofs: see tx.StateKey….

// Account returns the account of a key, or of the key that has replaced it.
func (m *Machine) Account(k ident.PublicKey) (a Account, ok bool) {
	ok = load(m.base, accountKey(m.view(Header{}).owner(k)), &a)
	return a, ok
}

// Tab returns a tab that is open or closing.
func (m *Machine) Tab(id tx.TabID) (t tx.Tab, ok bool) {
	ok = load(m.base, tx.StateKeyTab(id), &t)
	return t, ok
}

// Tabs returns the tabs from which a member pays and those from which it is paid, in the order of their ids.
func (m *Machine) Tabs(member uint64) (pays, earns []tx.Tab) {
	return m.tabs(queuePayer, member), m.tabs(queuePayee, member)
}

func (m *Machine) tabs(index uint8, member uint64) (l []tx.Tab) {
	prefix := key(kindQueue, index, member)
	m.base.Scan(prefix, func(k, _ []byte) bool {
		t, _ := m.Tab(tx.TabID(k[len(prefix):]))
		l = append(l, t)
		return true
	})
	return l
}

// Name returns the entry of a name, which may have run out.
func (m *Machine) Name(label string) (n tx.NameEntry, ok bool) {
	ok = load(m.base, tx.StateKeyName(label), &n)
	return n, ok
}

// Names returns all names in order.
func (m *Machine) Names() []tx.NameEntry {
	return list[tx.NameEntry](m.base, key(kindName, uint8(nameByLabel)))
}

// Resolve returns the node to which a name leads at a time (seconds since 1970): none when the name has run out, or the node's key was
// revoked.
func (m *Machine) Resolve(label string, now int64) (ident.PublicKey, bool) {
	n, ok := m.Name(label)
	if _, revoked := m.Revocation(n.Node); !ok || now >= n.Until || revoked {
		return ident.PublicKey{}, false
	}
	return n.Node, true
}

// Node returns the registration of a node.
func (m *Machine) Node(k ident.PublicKey) (n tx.Node, ok bool) {
	ok = load(m.base, tx.StateKeyNode(k), &n)
	return n, ok
}

// Registrations returns all registered nodes in the order of their keys.
func (m *Machine) Registrations() []tx.Node {
	return list[tx.Node](m.base, key(kindNode, uint8(nodeByKey)))
}

// Revocation reports whether a node's key was revoked, and why.
func (m *Machine) Revocation(k ident.PublicKey) (r tx.Revocation, ok bool) {
	ok = load(m.base, tx.StateKeyRevocation(k), &r)
	return r, ok
}

// Revocations returns all revocations in the order of the keys.
func (m *Machine) Revocations() []tx.Revocation {
	return list[tx.Revocation](m.base, []byte{kindRevocation})
}
