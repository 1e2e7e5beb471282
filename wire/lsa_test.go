package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"weft/ident"
)

var update = flag.Bool("update", false, "write the LSA test vectors anew")

func testAgent(t testing.TB, b byte) *ident.Agent {
	a, err := ident.FromSeed(bytes.Repeat([]byte{b}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func signWith(a *ident.Agent) func([]byte) ident.Signature {
	return func(m []byte) ident.Signature { return a.Sign(ident.DomainLSA, m) }
}

// lsaVector is one line of testdata/lsa.json, for other implementations to run. Key is the 32-byte seed of the key that
// signs; Error is empty for a good LSA, "form" for one that must not parse, "signature" for one that must not verify.
type lsaVector struct {
	Name  string `json:"name"`
	Seed  string `json:"seed"`
	LSA   string `json:"lsa"`
	ID    string `json:"id"`
	Addr  string `json:"address"`
	Error string `json:"error,omitempty"`
}

func goodLSAs(t testing.TB) map[string]LSA {
	key := testAgent(t, 1).Public()
	full := LSA{Key: key, Seq: MaxSeq, Lifetime: MaxLifetime, Flags: FlagLeaf | FlagMetered, Community: ident.SharedKey([32]byte{1}), Price: 1<<32 - 1,
		Extensions: []Extension{{Type: 255, Value: make([]byte, MaxExtBytes-3)}}}
	for i := range MaxNeighbours {
		full.Neighbours = append(full.Neighbours, Adjacency{ID: ident.NodeID(i + 1), Cost: 1<<32 - 1, MTU: 65535, Flags: AdjMetered})
	}
	return map[string]LSA{
		"least": {Key: key, Seq: 1, Lifetime: 1},
		"usual": {Key: key, Seq: 70_000, Lifetime: 4 * 3600, Price: 250, Neighbours: []Adjacency{
			{ID: 0x0123456789abcdef, Cost: 512, MTU: 1388}, {ID: 0xfedcba9876543210, Cost: 20_480, MTU: 1240, Flags: AdjMetered}},
			Extensions: []Extension{{ExtName, []byte("Anna's roof")}, {ExtPosition, binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 481_370_000), 115_750_000)}}},
		"full":           full,
		"unknown record": {Key: key, Seq: 5, Lifetime: 60, Extensions: []Extension{{Type: 77, Value: []byte{1, 2, 3}}, {Type: 78, Value: nil}}},
	}
}

// badLSAs breaks a good LSA in one way each, keeping the signature right where only the form is at fault.
func badLSAs(t testing.TB) map[string][]byte {
	agent := testAgent(t, 1)
	l := goodLSAs(t)["usual"]
	good, err := l.Sign(signWith(agent))
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func(b []byte) []byte) []byte {
		b := f(bytes.Clone(good[:len(good)-64]))
		sig := agent.Sign(ident.DomainLSA, b)
		return append(b, sig[:]...)
	}
	set := func(at int, v ...byte) []byte { return change(func(b []byte) []byte { copy(b[at:], v); return b }) }
	self := binary.BigEndian.AppendUint64(nil, uint64(agent.Public().ID()))
	return map[string][]byte{
		"empty":                  {},
		"cut short":              good[:127],
		"one byte less":          change(func(b []byte) []byte { return b[:len(b)-1] }),
		"one byte more":          change(func(b []byte) []byte { return append(b, 0) }),
		"magic":                  set(0, 'M'),
		"version":                set(1, 2),
		"unknown flag":           set(2, 0x80),
		"sequence 0":             set(36, 0, 0, 0, 0, 0, 0, 0, 0),
		"sequence 2^63":          set(36, 0x80, 0, 0, 0, 0, 0, 0, 0),
		"lifetime 0":             set(44, 0, 0, 0, 0),
		"lifetime a day and 1 s": set(44, 0, 1, 0x51, 0x81),
		"neighbours out of order": change(func(b []byte) []byte {
			first := bytes.Clone(b[64:80])
			copy(b[64:], b[80:96])
			copy(b[80:], first)
			return b
		}),
		"neighbour twice":          change(func(b []byte) []byte { copy(b[80:96], b[64:80]); return b }),
		"neighbour 0":              set(64, make([]byte, 8)...),
		"neighbour is itself":      set(64, self...),
		"neighbour cost 0":         set(72, 0, 0, 0, 0),
		"unknown neighbour flag":   set(78, 0, 2),
		"more neighbours than fit": set(60, 0, 3),
		"extension type 0":         set(96, 0),
		"extensions out of order":  set(96, 9),
		"extension too long":       set(97, 1, 0),
		"more than 512 extension bytes": change(func(b []byte) []byte {
			binary.BigEndian.PutUint16(b[62:], 513)
			b = append(b[:96], 9, 0, 0)
			binary.BigEndian.PutUint16(b[97:], 510)
			return append(b, make([]byte, 510)...)
		}),
	}
}

func TestLSAVectors(t *testing.T) {
	const file = "testdata/lsa.json"
	agent := testAgent(t, 1)
	want := []lsaVector{}
	add := func(name string, b []byte, fault string) {
		want = append(want, lsaVector{name, strings.Repeat("01", 32), hex.EncodeToString(b), agent.Public().ID().String(), agent.Public().Addr().String(), fault})
	}
	for name, l := range goodLSAs(t) {
		b, err := l.Sign(signWith(agent))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		add(name, b, "")
		if name == "usual" {
			b = bytes.Clone(b)
			b[59] ^= 1 // the price
			add("price changed", b, "signature")
			other, _ := l.Sign(signWith(testAgent(t, 2)))
			add("signed by another key", other, "signature")
			plain := agent.Sign(ident.DomainInvite, b[:len(b)-64])
			add("signed in another domain", append(b[:len(b)-64:len(b)-64], plain[:]...), "signature")
		}
	}
	for name, b := range badLSAs(t) {
		add(name, b, "form")
	}
	slices.SortFunc(want, func(a, b lsaVector) int { return strings.Compare(a.Error+a.Name, b.Error+b.Name) })
	if *update {
		b, _ := json.MarshalIndent(want, "", "\t")
		if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got []lsaVector
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("the encoding has changed: an error, or a new version of it:\n%s", d)
	}
	for _, x := range got {
		b, _ := hex.DecodeString(x.LSA)
		v, err := ViewLSA(b)
		switch {
		case x.Error == "form":
			if !errors.Is(err, ErrLSA) {
				t.Errorf("%s: %v, want ErrLSA", x.Name, err)
			}
		case err != nil:
			t.Errorf("%s: %v", x.Name, err)
		case v.Verify() != (x.Error == ""):
			t.Errorf("%s: the signature counts as %v", x.Name, v.Verify())
		}
	}
}

func drawLSA(t *rapid.T, key ident.PublicKey) LSA {
	l := LSA{
		Key: key, Seq: rapid.Uint64Range(1, MaxSeq).Draw(t, "seq"), Lifetime: rapid.Uint32Range(1, MaxLifetime).Draw(t, "lifetime"),
		Flags: LSAFlags(rapid.IntRange(0, 3).Draw(t, "flags")), Price: rapid.Uint32().Draw(t, "price"),
	}
	copy(l.Community[:], rapid.SliceOfN(rapid.Byte(), 8, 8).Draw(t, "community"))
	ids := rapid.SliceOfNDistinct(rapid.Uint64Range(1, 1<<64-1), 0, 20, rapid.ID).Draw(t, "ids")
	slices.Sort(ids)
	for _, id := range ids {
		if ident.NodeID(id) != key.ID() {
			l.Neighbours = append(l.Neighbours, Adjacency{ident.NodeID(id), rapid.Uint32Min(1).Draw(t, "cost"), rapid.Uint16().Draw(t, "mtu"), AdjFlags(rapid.IntRange(0, 1).Draw(t, "adj"))})
		}
	}
	types := rapid.SliceOfNDistinct(rapid.Byte().Filter(func(b byte) bool { return b > 0 }), 0, 5, rapid.ID).Draw(t, "types")
	slices.Sort(types)
	for _, x := range types {
		l.Extensions = append(l.Extensions, Extension{ExtType(x), rapid.SliceOfN(rapid.Byte(), 0, 90).Draw(t, "value")})
	}
	return l
}

func TestLSARoundTrip(t *testing.T) {
	agent := testAgent(t, 3)
	rapid.Check(t, func(rt *rapid.T) {
		l := drawLSA(rt, agent.Public())
		b, err := l.Sign(signWith(agent))
		if err != nil {
			rt.Fatal(err)
		}
		v, err := ViewLSA(b)
		if err != nil || !v.Verify() {
			rt.Fatal("what was signed is refused", err)
		}
		got := v.Decode()
		for i := range got.Extensions {
			if len(got.Extensions[i].Value) == 0 {
				got.Extensions[i].Value = l.Extensions[i].Value // nil and empty are one
			}
			if !bytes.Equal(v.Extension(got.Extensions[i].Type), l.Extensions[i].Value) {
				rt.Fatal("Extension finds another value")
			}
		}
		if d := cmp.Diff(l, got); d != "" {
			rt.Fatal(d)
		}
	})
}

// TestAppendToRefuses: a node cannot sign what the others would refuse.
func TestAppendToRefuses(t *testing.T) {
	good := goodLSAs(t)["usual"]
	for name, spoil := range map[string]func(*LSA){
		"sequence 0":          func(l *LSA) { l.Seq = 0 },
		"sequence too high":   func(l *LSA) { l.Seq = MaxSeq + 1 },
		"lifetime":            func(l *LSA) { l.Lifetime = MaxLifetime + 1 },
		"flags":               func(l *LSA) { l.Flags = 4 },
		"order":               func(l *LSA) { slices.Reverse(l.Neighbours) },
		"self":                func(l *LSA) { l.Neighbours = []Adjacency{{ID: l.Key.ID(), Cost: 1}} },
		"cost":                func(l *LSA) { l.Neighbours[0].Cost = 0 },
		"many neighbours":     func(l *LSA) { l.Neighbours = make([]Adjacency, 70_000) },
		"long extension":      func(l *LSA) { l.Extensions = []Extension{{1, make([]byte, 600)}} },
		"very long extension": func(l *LSA) { l.Extensions = []Extension{{1, make([]byte, 70_000)}} },
	} {
		l := good
		l.Neighbours = slices.Clone(good.Neighbours)
		spoil(&l)
		head := []byte("head")
		if b, err := l.AppendTo(head); !errors.Is(err, ErrLSA) || !bytes.Equal(b, head) {
			t.Errorf("%s: %v, %d bytes", name, err, len(b))
		}
	}
}

// TestViewDoesNotAllocate: the database reads views all the time.
func TestViewDoesNotAllocate(t *testing.T) {
	l := goodLSAs(t)["usual"]
	b, err := l.Sign(signWith(testAgent(t, 1)))
	if err != nil {
		t.Fatal(err)
	}
	var sink uint64
	if n := testing.AllocsPerRun(100, func() {
		v, err := ViewLSA(b)
		if err != nil {
			t.Fatal(err)
		}
		sink += v.Seq() + uint64(v.Price()) + uint64(v.Neighbour(1).Cost) + uint64(len(v.Extension(ExtName)))
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzViewLSA(f *testing.F) {
	agent := testAgent(f, 1)
	for _, l := range goodLSAs(f) {
		b, err := l.Sign(signWith(agent))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, b := range badLSAs(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := ViewLSA(b)
		if err != nil {
			if !errors.Is(err, ErrLSA) {
				t.Fatal("an error of another kind:", err)
			}
			return
		}
		l := v.Decode()
		again, err := l.AppendTo(nil)
		if err != nil || !bytes.Equal(again, v.Signed()) {
			t.Fatal("a parsed LSA is encoded to other bytes:", err)
		}
		v.Verify()
	})
}
