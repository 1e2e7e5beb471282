package config

import (
	"bytes"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Example returns a config file in which every setting stands with its
// explanation, commented out at its default, except those in set (by key, such
// as community.key), which are in force.
func Example(set map[string]any) ([]byte, error) {
	e := exampler{set: maps.Clone(set)}
	if e.set == nil {
		e.set = map[string]any{}
	}
	e.set["version"] = Version
	e.buf.WriteString("# Weft configuration. Everything has a default: a line that starts with #key shows it.\n" +
		"# Check a change with: weft up --check\n\n")
	e.table("", reflect.ValueOf(*Default()))
	if e.err != nil {
		return nil, e.err
	}
	if len(e.set) > 0 {
		return nil, fmt.Errorf("there are no such settings: %v", slices.Sorted(maps.Keys(e.set)))
	}
	return e.buf.Bytes(), nil
}

type exampler struct {
	buf bytes.Buffer
	set map[string]any
	err error
}

// table writes the settings of a table, then the tables below it.
func (e *exampler) table(prefix string, v reflect.Value) {
	t := v.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		if name := tomlName(f); name != "-" && !isTable(f.Type) {
			e.setting(prefix+name, name, f, v.Field(i), false)
		}
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name := tomlName(f)
		if name == "-" || !isTable(f.Type) {
			continue
		}
		e.comment("\n", f.Tag.Get("doc"))
		switch f.Type.Kind() {
		case reflect.Slice: // a table that repeats
			if set, ok := e.set[prefix+name]; ok {
				delete(e.set, prefix+name)
				e.repeated(prefix+name, reflect.ValueOf(set))
				continue
			}
			fmt.Fprintf(&e.buf, "#[[%s%s]]\n", prefix, name)
			el := reflect.New(f.Type.Elem()).Elem()
			for j := range el.NumField() {
				if ef := el.Type().Field(j); tomlName(ef) != "-" {
					e.setting("", tomlName(ef), ef, el.Field(j), true)
				}
			}
		case reflect.Map:
			fmt.Fprintf(&e.buf, "#[%s%s]\n#family = %s\n", prefix, name, f.Tag.Get("example"))
		default:
			fmt.Fprintf(&e.buf, "[%s%s]\n", prefix, name)
			e.table(prefix+name+".", v.Field(i))
		}
	}
}

// repeated writes tables that are in force.
func (e *exampler) repeated(name string, list reflect.Value) {
	for i := range list.Len() {
		b, err := toml.Marshal(list.Index(i).Interface())
		if err != nil && e.err == nil {
			e.err = fmt.Errorf("write %s: %w", name, err)
		}
		fmt.Fprintf(&e.buf, "[[%s]]\n%s", name, b)
	}
}

// setting writes one setting. A table that repeats has no defaults to show: all
// its settings have examples.
func (e *exampler) setting(key, name string, f reflect.StructField, v reflect.Value, repeats bool) {
	e.comment("", f.Tag.Get("doc"))
	if set, ok := e.set[key]; ok && !repeats {
		delete(e.set, key)
		e.buf.WriteString(e.assign(name, set))
		return
	}
	example := f.Tag.Get("example")
	switch {
	case repeats || v.IsZero() && example != "" && f.Type.Kind() != reflect.Bool:
		fmt.Fprintf(&e.buf, "#%s = %s\n", name, example)
	default:
		e.buf.WriteString("#" + e.assign(name, v.Interface()))
	}
}

func (e *exampler) assign(name string, v any) string {
	b, err := toml.Marshal(map[string]any{name: v})
	if err != nil && e.err == nil {
		e.err = fmt.Errorf("write %s: %w", name, err)
	}
	if s := string(b); !strings.ContainsAny(s, `"\`) { // one kind of quotes in the whole file
		return strings.ReplaceAll(s, "'", `"`)
	}
	return string(b)
}

func (e *exampler) comment(before, doc string) {
	e.buf.WriteString(before)
	for line := range strings.SplitSeq(doc, "\n") {
		e.buf.WriteString("# " + line + "\n")
	}
}

func isTable(t reflect.Type) bool {
	return t.Kind() == reflect.Struct || t.Kind() == reflect.Map || t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct
}
