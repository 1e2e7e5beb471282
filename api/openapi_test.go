package api

import (
	"bytes"
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"weft/ident"
)

var update = flag.Bool("update", false, "write openapi.json anew")

// TestOpenAPI makes the description from the routes and the types, and holds it
// against the committed one, so that a change of the API shows in the diff.
func TestOpenAPI(t *testing.T) {
	got := describe(t)
	if *update {
		if err := os.WriteFile("openapi.json", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("openapi.json is not what routes and types say; run: make gen")
	}
}

type object = map[string]any

func describe(t *testing.T) []byte {
	t.Helper()
	s := schemas{comments: comments(t), defs: object{}}
	paths := object{}
	for _, e := range endpoints {
		ok := object{"description": "done"}
		if e.response != nil {
			kind := "application/json"
			if e.stream {
				kind = "application/x-ndjson"
			}
			ok["content"] = object{kind: object{"schema": s.of(reflect.TypeOf(e.response))}}
		}
		code := "200"
		if e.response == nil {
			code = "204"
		}
		op := object{
			"operationId": strings.ToLower(e.method) + strings.ReplaceAll(e.path, "/", "_"),
			"summary":     e.summary,
			"responses": object{code: ok, "default": object{
				"description": "a problem (RFC 9457)",
				"content":     object{"application/problem+json": object{"schema": s.of(reflect.TypeFor[Error]())}},
			}},
		}
		if e.request != nil {
			op["requestBody"] = object{"required": true, "content": object{"application/json": object{"schema": s.of(reflect.TypeOf(e.request))}}}
		}
		if e.query != "" {
			op["parameters"] = []object{{"name": e.query, "in": "query", "required": true, "schema": object{"type": "string"}}}
		}
		if paths[e.path] == nil {
			paths[e.path] = object{}
		}
		paths[e.path].(object)[strings.ToLower(e.method)] = op
	}
	s.defs["Code"] = object{"type": "string", "enum": s.comments.codes, "description": s.comments.of["Code"]}
	b, err := json.MarshalIndent(object{
		"openapi":    "3.1.0",
		"info":       object{"title": "Weft node", "version": "1", "description": "What a running node offers to its owner, over its unix socket."},
		"paths":      paths,
		"components": object{"schemas": s.defs},
	}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

type schemas struct {
	comments docs
	defs     object
}

func (s schemas) of(t reflect.Type) object {
	switch t {
	case reflect.TypeFor[ident.PublicKey]():
		return object{"type": "string", "pattern": "^[0-9a-f]{64}$"}
	case reflect.TypeFor[netip.Addr](), reflect.TypeFor[netip.Prefix]():
		return object{"type": "string"}
	case reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case reflect.TypeFor[Code]():
		return object{"$ref": "#/components/schemas/Code"}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return s.of(t.Elem())
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int, reflect.Int64, reflect.Uint32, reflect.Uint64:
		return object{"type": "integer"}
	case reflect.Float64:
		return object{"type": "number"}
	case reflect.Uint16:
		return object{"type": "integer"}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return object{"type": "string", "format": "byte"}
		}
		return object{"type": "array", "items": s.of(t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": s.of(t.Elem())}
	case reflect.Struct:
		if _, ok := s.defs[t.Name()]; !ok {
			props, required := object{}, []string{}
			def := object{"type": "object", "description": s.comments.of[t.Name()], "properties": props}
			s.defs[t.Name()] = def
			for f := range t.Fields() {
				name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
				p := s.of(f.Type)
				p["description"] = s.comments.of[t.Name()+"."+f.Name]
				props[name] = p
				if !strings.Contains(opts, "omit") {
					required = append(required, name)
				}
			}
			def["required"] = required
		}
		return object{"$ref": "#/components/schemas/" + t.Name()}
	}
	panic("no schema for " + t.String())
}

// docs are the comments of the package's types and fields, and the codes in
// the order of the source.
type docs struct {
	of    map[string]string
	codes []string
}

func comments(t *testing.T) docs {
	d := docs{of: map[string]string{}}
	for _, file := range []string{"types.go", "errors.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range f.Decls {
			g, ok := decl.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, spec := range g.Specs {
				switch spec := spec.(type) {
				case *ast.ValueSpec:
					if id, ok := spec.Type.(*ast.Ident); ok && id.Name == "Code" {
						d.codes = append(d.codes, strings.Trim(spec.Values[0].(*ast.BasicLit).Value, `"`))
					}
				case *ast.TypeSpec:
					d.of[spec.Name.Name] = text(g.Doc.Text())
					if st, ok := spec.Type.(*ast.StructType); ok {
						for _, field := range st.Fields.List {
							for _, name := range field.Names {
								doc := text(field.Doc.Text() + field.Comment.Text())
								if doc == "" {
									t.Errorf("%s.%s has no comment: it is the description in openapi.json", spec.Name.Name, name.Name)
								}
								d.of[spec.Name.Name+"."+name.Name] = doc
							}
						}
					}
				}
			}
		}
	}
	return d
}

func text(s string) string { return strings.Join(strings.Fields(s), " ") }
