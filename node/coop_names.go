package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/api"
	"weft/config"
	"weft/ident"
	"weft/ledger"
	"weft/ledger/bft/bftclient"
	"weft/ledger/tx"
)

// A name of the community, LABEL.COMMUNITY.weft, is the ledger's: one member has it, whatever nodes call themselves (those are NAME.weft).
// It stands in the zone that the nodes' resolvers answer anyway and that devices send here already; one label more keeps it apart from a
// node's. A node that keeps the ledger reads the record there; any other asks and believes what is proved against a block that it has
// verified. What was learnt is kept on disk, so that names work while the ledger is away, until the day to which they are registered.

const (
	nameFresh   = 20 * time.Second // for so long a name is not asked for again
	absentFresh = 15 * time.Second // for so long a name that was not there
	localFresh  = time.Second      // for so long either, where the ledger is kept
	nameRetry   = 10 * time.Second // after the ledger did not answer, only what is known is told
	nameWait    = 2 * time.Second  // for an answer, by who asks; less than a resolver's patience
	nameLimit   = 10 * time.Second // for one question to the ledger
	maxNames    = 1024             // that are remembered
	maxNameAsks = 64               // that wait for an answer at once
)

// errNoName is what there is to say of a name that the ledger does not have.
var errNoName = errors.New("no member has this name")

// errRevoked is one that leads nowhere any more.
var errRevoked = fmt.Errorf("the key of the node to which this name leads was revoked: %w", errNoName)

// knownName is what was learnt of a label.
type knownName struct {
	Entry   tx.NameEntry // zero: there is no such name
	Revoked bool         // the key of the node to which it leads
	asked   time.Time
}

// naming answers for the community's names. look asks the ledger, which is here if local says so; tests have one of their own.
type naming struct {
	file  string
	local func() bool
	look  func(ctx context.Context, label string) (knownName, error)
	ask   chan string
	log   func(msg string, args ...any)

	mu      sync.Mutex // guards what follows
	known   map[string]knownName
	waiting map[string]chan struct{} // closed when the ledger has answered, or not
	failed  time.Time                // when it last did not
	why     error
}

func newNaming(file string, local func() bool, look func(context.Context, string) (knownName, error), log func(string, ...any)) *naming {
	n := &naming{file: file, local: local, look: look, log: log, ask: make(chan string, maxNameAsks), known: map[string]knownName{}, waiting: map[string]chan struct{}{}}
	b, err := os.ReadFile(file)
	if err != nil {
		return n
	}
	var l []knownName
	if err := json.Unmarshal(b, &l); err != nil {
		log("the names of the community are forgotten", "why", err)
		return n
	}
	for _, k := range l[:min(len(l), maxNames)] {
		n.known[k.Entry.Label] = k
	}
	return n
}

// find returns the node to which a label leads: as the ledger has it now, or as it had it when it last could be asked.
func (n *naming) find(ctx context.Context, label string) (ident.PublicKey, error) {
	if err := ledger.CheckLabel(label); err != nil {
		return ident.PublicKey{}, errNoName
	}
	ctx, cancel := context.WithTimeout(ctx, nameWait)
	defer cancel()
	n.mu.Lock()
	defer n.mu.Unlock()
	if k, ok := n.known[label]; !ok || time.Since(k.asked) > n.fresh(&k) {
		if time.Since(n.failed) > nameRetry {
			n.await(ctx, label)
		}
	}
	k, ok := n.known[label]
	switch {
	case !ok && n.why != nil:
		return ident.PublicKey{}, n.why
	case !ok:
		return ident.PublicKey{}, errors.New("the ledger has not answered in time")
	case k.Entry.Label == "" || time.Now().Unix() >= k.Entry.Until:
		return ident.PublicKey{}, errNoName
	case k.Revoked:
		return ident.PublicKey{}, errRevoked
	}
	return k.Entry.Node, nil
}

// fresh is for how long what is known is not asked for again.
func (n *naming) fresh(k *knownName) time.Duration {
	switch {
	case n.local():
		return localFresh
	case k.Entry.Label == "":
		return absentFresh
	}
	return nameFresh
}

// await has serve ask for a label and waits. It is called with mu held, and lets it go meanwhile.
func (n *naming) await(ctx context.Context, label string) {
	ch, ok := n.waiting[label]
	if !ok {
		ch = make(chan struct{})
		select {
		case n.ask <- label:
			n.waiting[label] = ch
		default:
			return // too many ask
		}
	}
	n.mu.Unlock()
	defer n.mu.Lock()
	select {
	case <-ch:
	case <-ctx.Done():
	}
}

// serve asks the ledger, one label after the other.
func (n *naming) serve(ctx context.Context) {
	for {
		var label string
		select {
		case <-ctx.Done():
			return
		case label = <-n.ask:
		}
		limit, cancel := context.WithTimeout(ctx, nameLimit)
		k, err := n.look(limit, label)
		cancel()
		n.mu.Lock()
		n.why = err
		save := false
		if err != nil {
			n.failed = time.Now()
		} else {
			k.asked = time.Now()
			old := n.known[label]
			save = old.Entry != k.Entry || old.Revoked != k.Revoked
			n.known[label] = k
			n.forget()
		}
		close(n.waiting[label])
		delete(n.waiting, label)
		var l []knownName
		if save {
			for _, label := range slices.Sorted(maps.Keys(n.known)) {
				if k := n.known[label]; k.Entry.Label != "" {
					l = append(l, k)
				}
			}
		}
		n.mu.Unlock()
		if !save {
			continue
		}
		b, err := json.Marshal(l)
		if err == nil {
			err = config.WriteFile(n.file, b)
		}
		if err != nil {
			n.log("a name of the community is not kept on disk", "why", err)
		}
	}
}

// forget drops what was asked for longest ago, first what is no name, when too much is known.
func (n *naming) forget() {
	if len(n.known) <= maxNames {
		return
	}
	l := slices.SortedFunc(maps.Keys(n.known), func(a, b string) int {
		x, y := n.known[a], n.known[b]
		if x.Entry.Label == "" != (y.Entry.Label == "") {
			return cmp.Compare(len(x.Entry.Label), len(y.Entry.Label))
		}
		return x.asked.Compare(y.asked)
	})
	for _, label := range l[:len(l)-maxNames*3/4] {
		delete(n.known, label)
	}
}

// lookName asks the ledger for a name. What is there is proved where the ledger is another node's; that nothing is there is its word, which
// can hide a name as its silence could, but lead nowhere else.
func (c *coop) lookName(ctx context.Context, label string) (knownName, error) {
	var k knownName
	c.mu.Lock()
	keep := c.file.Keep
	c.mu.Unlock()
	cl := c.client()
	defer cl.Close()
	read := func(key []byte, r tx.Record) (bool, error) {
		v, err := cl.Get(ctx, key, 0, !keep)
		if err != nil || len(v.Value) == 0 {
			return false, plain(err)
		}
		if !keep {
			if err := c.believe(ctx, cl, key, v); err != nil {
				return false, err
			}
		}
		return true, tx.Decode(v.Value, r)
	}
	ok, err := read(tx.StateKeyName(label), &k.Entry)
	if err != nil || !ok {
		return knownName{}, err
	}
	k.Revoked, err = read(tx.StateKeyRevocation(k.Entry.Node), new(tx.Revocation))
	return k, err
}

// maxOld is how far behind the newest block that this node has verified a record may be: more than a heartbeat of the ledger's, so that
// nobody shows what was true once.
const maxOld = 15 * time.Minute

// believe checks a record against a verified block.
func (c *coop) believe(ctx context.Context, cl *bftclient.Client, k []byte, v bftclient.Value) error {
	at, err := c.prove(ctx, cl, k, v)
	if err != nil {
		return err
	}
	c.light.mu.Lock()
	defer c.light.mu.Unlock()
	if n := c.light.c.Newest(); n != nil && n.Header.Time.Sub(at) > maxOld {
		return fmt.Errorf("what is shown of the ledger is of %s, and there are newer blocks", at.Local().Format("2006-01-02 15:04"))
	}
	return nil
}

// ours reports whether a name without .weft is the community's, or its domain itself, for which label is empty.
func (c *coop) ours(name string) (label string, ok bool) {
	c.mu.Lock()
	chain := c.file.Chain
	c.mu.Unlock()
	if chain == "" {
		return "", false
	}
	name = strings.ToLower(name)
	for _, domain := range []string{ledger.Domain(chain), chain} {
		if name == domain {
			return "", true
		}
		if label, ok := strings.CutSuffix(name, "."+domain); ok {
			return label, true
		}
	}
	return "", false
}

// findNamed returns the node that a name of the community leads to; ok is false when the name is no such one.
func (c *coop) findNamed(ctx context.Context, name string) (key ident.PublicKey, ok bool, err error) {
	label, ok := c.ours(strings.TrimSuffix(strings.ToLower(name), ".weft"))
	if !ok || label == "" {
		return key, false, nil
	}
	if key, err = c.names.find(ctx, label); err != nil {
		return key, true, api.Errorf(api.CodeTargetUnknown, "%s: %v", name, err).WithHint("weft coop name list shows the names of the community")
	}
	return key, true, nil
}

// resolve answers a question of DNS for a name that ends in .weft; ours says that it is the community's to answer.
func (c *coop) resolve(ctx context.Context, name string) (addrs []netip.Addr, there, ours bool) {
	label, ours := c.ours(strings.TrimSuffix(name, ".weft"))
	if !ours {
		return nil, false, false
	}
	if label == "" { // the domain is there, or RFC 8020 would have none of the names below it; a node may be called so
		if key, err := c.n.find(strings.TrimSuffix(name, ".weft")); err == nil {
			addrs = append(addrs, key.Addr())
		}
		return addrs, true, true
	}
	key, err := c.names.find(ctx, label)
	if err == nil {
		return []netip.Addr{key.Addr()}, true, true
	}
	if !errors.Is(err, errNoName) {
		<-ctx.Done() // so that the answer is not that there is no such name, which others would remember
	}
	return nil, false, true
}

// namesOf returns the names of a member, whole.
func namesOf(m *ledger.Machine, member uint64, domain string) (l []string) {
	for _, n := range m.Names() {
		if n.Owner == member {
			l = append(l, n.Label+"."+domain+".weft")
		}
	}
	return l
}
