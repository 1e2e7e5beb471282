// Package manifests holds the test worlds that come with Weft. It exists apart from lab/manifest so that the files stand in a
// folder of their own, where people look for them, and still are inside the program.
//
// Everything in lab and cli may use it; it keeps no state.
package manifests

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"weft/lab/manifest"
)

//go:embed *.toml
var files embed.FS

// Names lists the worlds that come with the program.
func Names() (names []string) {
	entries, err := fs.ReadDir(files, ".")
	if err != nil {
		panic(err) // the files are in the program
	}
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".toml"))
	}
	return names
}

// Load reads a manifest file, or the world of that name that comes with the program.
func Load(nameOrPath string) (*manifest.Manifest, error) {
	m, err := manifest.Load(nameOrPath)
	if !errors.Is(err, fs.ErrNotExist) || strings.ContainsRune(nameOrPath, os.PathSeparator) {
		return m, err
	}
	b, embedErr := files.ReadFile(strings.TrimSuffix(nameOrPath, ".toml") + ".toml")
	if embedErr != nil {
		return nil, fmt.Errorf("no file and no world called %q; there are %s", nameOrPath, strings.Join(Names(), ", "))
	}
	return manifest.Parse(b)
}
