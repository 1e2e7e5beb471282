package session

import (
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the test vectors into the specification")

const specFile = "../docs/spec/session.md"

type vector struct {
	suite   suite
	counter uint64
	flags   byte
	inner   string
}

var vectors = []vector{
	{suiteAES, 1, 0, ""},
	{suiteAES, 2, 1, "10063d2a000abcde03e80050000000640000000050180000000000006869"},
	{suiteChaCha, 1, 0, "2000000000000000000000070000000000000009"},
	{suiteChaCha, 1 << 40, 1, "10113d2a000abcde03e807d0000a00006869"},
}

func (v vector) row(t *testing.T) string {
	key := [32]byte{}
	for i := range key {
		key[i] = byte(i)
	}
	a, err := v.suite.aead(key)
	if err != nil {
		t.Fatal(err)
	}
	inner, err := hex.DecodeString(v.inner)
	if err != nil {
		t.Fatal(err)
	}
	e := []byte{typeData, v.flags, 0, 0, 1, 2, 3, 4}
	e = binary.BigEndian.AppendUint64(e, v.counter)
	nonce := append(append([]byte{}, e[:4]...), e[8:16]...)
	return fmt.Sprintf("| %d | %d | %d | `%s` | `%x` |", v.suite, v.counter, v.flags, v.inner, a.Seal(e, nonce, inner, nil))
}

func TestSpecVectors(t *testing.T) {
	spec, err := os.ReadFile(specFile)
	if err != nil {
		t.Fatal(err)
	}
	head, _, ok := strings.Cut(string(spec), "|--:|--:|--:|---|---|\n")
	if !ok {
		t.Fatal("the specification has no table of vectors")
	}
	var want strings.Builder
	want.WriteString(head + "|--:|--:|--:|---|---|\n")
	for _, v := range vectors {
		want.WriteString(v.row(t) + "\n")
	}
	if *update {
		if err := os.WriteFile(specFile, []byte(want.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want.String() != string(spec) {
		t.Errorf("the code and %s differ; the packets of the code are:\n%s", specFile, want.String()[len(head):])
	}
}
