package weft

import (
	"path"
	"strings"
	"testing"
)

// TestPackageDocs: every package says once, in one of its files, what it is, who may use it and how it runs; a room
// without that is a room whose purpose nobody has thought through.
func TestPackageDocs(t *testing.T) {
	docs := map[string][]string{}
	for _, f := range sources(t) {
		if f.test {
			continue
		}
		docs[f.room] = append(docs[f.room], "") // so that a room without any is seen
		if f.ast.Doc == nil {
			continue
		}
		text := f.ast.Doc.Text()
		docs[f.room] = append(docs[f.room], text)
		want := "Package " + path.Base(f.room) + " "
		if f.ast.Name.Name == "main" {
			want = "Command " + path.Base(f.room) + " "
		}
		if !strings.HasPrefix(text, want) {
			t.Errorf("%s: the package doc begins with %.40q, not with %q", f.path, text, want)
		}
	}
	for room, all := range docs {
		n, text := 0, ""
		for _, d := range all {
			if d != "" {
				n, text = n+1, d
			}
		}
		if n != 1 {
			t.Errorf("%s has %d package docs, want one: say what it is, who may use it, its rules for goroutines", room, n)
		} else if len(strings.Fields(text)) < 25 {
			t.Errorf("%s: %q says too little: what is it, who may use it, what are its rules for goroutines?", room, text)
		}
	}
}
