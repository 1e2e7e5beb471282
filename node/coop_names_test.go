package node

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/ident"
	"weft/ledger"
	"weft/ledger/bft/bftclient"
	"weft/ledger/tx"
	"weft/route"
)

// registry is a ledger's names as a node asks for them.
type registry struct {
	names map[string]knownName
	err   error
	slow  time.Duration
	asked int
}

func (r *registry) look(ctx context.Context, label string) (knownName, error) {
	r.asked++
	select {
	case <-time.After(r.slow):
	case <-ctx.Done():
		return knownName{}, ctx.Err()
	}
	return r.names[label], r.err
}

func someAgent(i int) *ident.Agent {
	a, err := ident.FromSeed(append(make([]byte, 31), byte(i)))
	if err != nil {
		panic(err)
	}
	return a
}

func someKey(i int) ident.PublicKey { return someAgent(i).Public() }

func TestNaming(t *testing.T) {
	file := filepath.Join(t.TempDir(), "names")
	synctest.Test(t, func(t *testing.T) {
		r := &registry{names: map[string]knownName{}}
		until := time.Now().Add(10 * time.Minute).Unix()
		r.names["bread"] = knownName{Entry: tx.NameEntry{Label: "bread", Owner: 2, Node: someKey(1), Until: until}}
		r.names["stolen"] = knownName{Entry: tx.NameEntry{Label: "stolen", Node: someKey(2), Until: until}, Revoked: true}
		n := newNaming(file, func() bool { return false }, r.look, func(msg string, args ...any) { t.Error(msg, args) })
		ctx, stop := context.WithCancel(t.Context())
		go n.serve(ctx)
		find := func(label string) (ident.PublicKey, error) { return n.find(t.Context(), label) }
		is := func(label string, want ident.PublicKey) {
			t.Helper()
			if k, err := find(label); err != nil || k != want {
				t.Errorf("%s leads to %s, %v", label, k, err)
			}
		}
		not := func(label string, want error) {
			t.Helper()
			if k, err := find(label); err == nil || want != nil && !errors.Is(err, want) {
				t.Errorf("%s leads to %s, %v", label, k, err)
			}
		}
		is("bread", someKey(1))
		is("bread", someKey(1))
		not("cake", errNoName)
		not("cake", errNoName)
		not("stolen", errRevoked)
		not("no name", errNoName)
		not("xn--a", errNoName)
		if r.asked != 3 {
			t.Errorf("%d questions", r.asked)
		}
		// What changes is seen soon, what was not there sooner.
		r.names["bread"] = knownName{Entry: tx.NameEntry{Label: "bread", Node: someKey(3), Until: until}}
		r.names["cake"] = knownName{Entry: tx.NameEntry{Label: "cake", Node: someKey(4), Until: until}}
		time.Sleep(absentFresh + time.Second)
		is("cake", someKey(4))
		is("bread", someKey(1))
		time.Sleep(nameFresh)
		is("bread", someKey(3))
		// The ledger is away: what is known holds, and is told at once; what is not known is not denied.
		r.err = errors.New("no answer")
		time.Sleep(2 * nameFresh)
		is("bread", someKey(3))
		asked, begun := r.asked, time.Now()
		is("bread", someKey(3))
		is("cake", someKey(4))
		if r.asked != asked || time.Since(begun) != 0 {
			t.Errorf("%d more questions in %v", r.asked-asked, time.Since(begun))
		}
		if _, err := find("wine"); err == nil || errors.Is(err, errNoName) {
			t.Errorf("an unknown name: %v", err)
		}
		// One that does not answer in time keeps nobody waiting for long.
		r.err, r.slow = nil, time.Hour
		time.Sleep(nameRetry + time.Second)
		begun = time.Now()
		is("bread", someKey(3))
		if d := time.Since(begun); d != nameWait {
			t.Errorf("it took %v", d)
		}
		stop()
		synctest.Wait()

		// After a restart without a ledger names are still there, until they run out.
		r.err, r.slow = errors.New("no answer"), 0
		n = newNaming(file, func() bool { return false }, r.look, func(msg string, args ...any) { t.Error(msg, args) })
		ctx, stop = context.WithCancel(t.Context())
		go n.serve(ctx)
		is("cake", someKey(4))
		not("stolen", errRevoked)
		time.Sleep(10 * time.Minute)
		not("cake", errNoName)

		// What is remembered is bounded.
		r.err = nil
		time.Sleep(time.Minute)
		for i := range 2 * maxNames {
			find(fmt.Sprintf("n%dx", i))
		}
		if len(n.known) > maxNames {
			t.Errorf("%d names", len(n.known))
		}
		if _, ok := n.known["bread"]; !ok {
			t.Error("names go before what is no name")
		}
		stop()
		synctest.Wait()
	})
}

func TestNamesOfTheCommunity(t *testing.T) {
	c := &coop{}
	if _, ok := c.ours("bread.elm-street"); ok {
		t.Error("a name without a community")
	}
	c.file.Chain = "elm-street-20261122-00ff"
	for name, want := range map[string]string{"bread.elm-street": "bread", "Bread.Elm-Street": "bread", "bread.elm-street-20261122-00ff": "bread", "elm-street": "", "a.b.elm-street": "a.b",
		"bread": "-", "bread.oak": "-", "breadelm-street": "-", "elm-street.bread": "-"} {
		if label, ok := c.ours(name); ok != (want != "-") || ok && label != want {
			t.Errorf("%s: %q, %v", name, label, ok)
		}
	}
}

// What DNS is told: the domain is there and has no address, a name that is not there is not there, and of what nobody could answer nothing
// is said until the resolver gives up.
func TestResolve(t *testing.T) {
	file := filepath.Join(t.TempDir(), "names")
	synctest.Test(t, func(t *testing.T) {
		r := &registry{names: map[string]knownName{"bread": {Entry: tx.NameEntry{Label: "bread", Node: someKey(1), Until: time.Now().Add(time.Hour).Unix()}}}}
		c := &coop{n: &Node{routing: &routing{}}}
		c.n.coop = c
		c.n.routing.table.Store(&route.Table{})
		c.file.Chain = "elm-street-20261122-00ff"
		c.names = newNaming(file, c.keeps, r.look, func(msg string, args ...any) { t.Error(msg, args) })
		ctx, stop := context.WithCancel(t.Context())
		go c.names.serve(ctx)
		for _, x := range []struct {
			name        string
			addr        netip.Addr
			there, ours bool
		}{{"bread.elm-street.weft", someKey(1).Addr(), true, true}, {"cake.elm-street.weft", netip.Addr{}, false, true}, {"elm-street.weft", netip.Addr{}, true, true},
			{"bread.weft", netip.Addr{}, false, false}, {"bread.oak.weft", netip.Addr{}, false, false}} {
			addrs, there, ours := c.resolve(t.Context(), x.name)
			if there != x.there || ours != x.ours || x.addr.IsValid() != (len(addrs) == 1) || len(addrs) == 1 && addrs[0] != x.addr {
				t.Errorf("%s: %v, %v, %v", x.name, addrs, there, ours)
			}
		}
		r.err = errors.New("no answer")
		limit, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		if _, there, ours := c.resolve(limit, "wine.elm-street.weft"); there || !ours || limit.Err() == nil {
			t.Error("what nobody could answer was denied")
		}
		stop()
		synctest.Wait()
	})
}

// keeperNet leads every connection to a keeper that says what it likes.
type keeperNet struct {
	network
	to string
}

func (k keeperNet) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", k.to)
}

// Where the ledger is another node's, a record that it does not prove leads nowhere.
func TestUnprovenNames(t *testing.T) {
	entry := tx.NameEntry{Label: "bread", Owner: 2, Node: someKey(6), Until: time.Now().Add(time.Hour).Unix()}
	var proof []byte
	asked := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		if r.FormValue("prove") == "" {
			t.Error("a name is asked for without proof")
		}
		v := bftclient.Value{Height: 7, Value: tx.Encode(&entry), Proof: proof}
		if r.FormValue("key") != hex.EncodeToString(tx.StateKeyName("bread")) {
			v = bftclient.Value{Height: 7}
		}
		_ = json.NewEncoder(w).Encode(v)
	}))
	defer s.Close()
	c := &coop{n: &Node{routing: &routing{}, net: keeperNet{to: s.Listener.Addr().String()}}}
	c.n.routing.table.Store(&route.Table{})
	c.file = coopFile{Chain: "elm-street-20261122-00ff", Keeper: someKey(5)}
	for _, proof = range [][]byte{nil, {1, 2, 3}, bytes.Repeat([]byte{0x0a, 0}, 20)} {
		if k, err := c.lookName(t.Context(), "bread"); err == nil || k.Entry.Label != "" {
			t.Errorf("with %x a false name leads to %s", proof, k.Entry.Node)
		}
	}
	if k, err := c.lookName(t.Context(), "cake"); err != nil || k.Entry.Label != "" {
		t.Errorf("what is not there: %+v, %v", k, err)
	}
	if asked != 4 {
		t.Errorf("%d questions", asked)
	}
}

// The owner hears of all that the ledger has in store for this node's key.
func TestAlarms(t *testing.T) {
	agent := someAgent
	m, err := ledger.New(ledger.NewMem())
	if err != nil {
		t.Fatal(err)
	}
	m.Strict = true
	g := ledger.Genesis{Chain: "elm-1", Time: 1e9, Settings: []tx.Setting{{Name: "rekey.vouches", Value: "2"}, {Name: "vote.notice", Value: "0"}}}
	for i := range 3 {
		g.Founders = append(g.Founders, ledger.Founder{Key: agent(i).Public(), Name: fmt.Sprint("m", i)})
	}
	if err := m.Init(g); err != nil {
		t.Fatal(err)
	}
	nonces := map[int]uint64{}
	h := ledger.Header{Height: 1, Time: 1e9}
	send := func(i int, b tx.Body) {
		t.Helper()
		nonces[i]++
		raw, err := tx.Tx{Chain: tx.ChainOf("elm-1"), Nonce: nonces[i], Expiry: h.Time + 600, Body: b}.Sign(agent(i))
		if err != nil {
			t.Fatal(err)
		}
		h.Height, h.Time = h.Height+1, h.Time+10
		if r := m.Block(h, [][]byte{raw}).Results[0]; r.Code != 0 {
			t.Fatal(r.Text)
		}
	}
	hears := func(i int, parts ...string) {
		t.Helper()
		l := alarms(m, agent(i).Public())
		if len(l) != len(parts) {
			t.Fatalf("%q", l)
		}
		for j, p := range parts {
			if !strings.Contains(l[j], p) {
				t.Errorf("%q lacks %q", l[j], p)
			}
		}
	}
	hears(0)
	chain := tx.ChainOf("elm-1")
	next := agent(9)
	b := &tx.Rekey{Member: 1, New: next.Public(), Word: next.Sign(tx.RekeyDomain, tx.RekeyMessage(chain, 1, agent(0).Public(), next.Public()))}
	send(1, b)
	hears(0, "1 voucher so far")
	hears(1)
	send(2, b)
	hears(0, "rekey veto")
	for range 20 {
		h.Height, h.Time = h.Height+1, h.Time+86400
		m.Block(h, nil)
	}
	hears(0, "This node's key is void")
	hears(9)
	if registered(m, agent(1).Public()) != "" {
		t.Error("registered as nothing")
	}
	send(1, &tx.NodeRegister{Node: agent(1).Public(), Roles: tx.RoleGateway | tx.RoleRelay, Until: h.Time + 86400})
	if s := registered(m, agent(1).Public()); !strings.Contains(s, "member 2's, as gateway and relay, until") {
		t.Error(s)
	}
	send(1, &tx.Propose{Title: "x", Action: &tx.ActUpgrade{Height: h.Height + 50, Version: ledger.RulesVersion + 1}})
	send(1, &tx.Propose{Title: "x", Action: &tx.ActBlock{Changes: []tx.BlockChange{{Node: agent(2).Public()}}}})
	h.Height, h.Time = h.Height+1, h.Time+1
	m.Block(h, nil)
	nonces[9] = 0
	for _, id := range []uint64{1, 2} {
		for _, i := range []int{1, 2, 9} {
			send(i, &tx.Vote{Proposal: id, Choice: tx.Yes})
		}
	}
	h.Height, h.Time = h.Height+1, h.Time+1
	m.Block(h, nil)
	hears(1, "install a newer weft")
	hears(2, "The members have blocked this node by proposal 2", "install a newer weft")
	for m.Version() == 1 {
		h.Height, h.Time = h.Height+1, h.Time+1
		m.Block(h, nil)
	}
	hears(1, "install a newer weft")
}
