package config

import (
	"embed"
	"encoding"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"strings"
)

// manual is the source of the types, whose doc comments describe the schema.
//
//go:embed file.go gateway.go keysvc.go unseal.go
var manual embed.FS

// Schema returns the JSON schema (draft 2020-12) of a configuration file,
// generated from the types and their doc comments.
func Schema() ([]byte, error) {
	docs, err := readManual()
	if err != nil {
		return nil, err
	}
	root := schemaOf(reflect.TypeFor[File](), docs)
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "Keyweir configuration"
	b, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("generating schema: %w", err)
	}
	return append(b, '\n'), nil
}

const durationPattern = `[0-9]+d|([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+|0`

func schemaOf(t reflect.Type, docs map[string]string) map[string]any {
	switch t {
	case reflect.TypeFor[Duration]():
		return map[string]any{"type": "string", "pattern": `^(` + durationPattern + `)$`}
	case reflect.TypeFor[SyncInterval]():
		return map[string]any{"type": "string", "pattern": `^(always|` + durationPattern + `)$`}
	case reflect.TypeFor[Size]():
		return map[string]any{"type": []string{"integer", "string"}, "pattern": `^[0-9]+ *([KMGT]iB|kB|[MGT]?B)?$`}
	case reflect.TypeFor[SecretRef]():
		return map[string]any{"type": "string", "pattern": `^(file:.+|env:[^= \t\n]+|/.*|\.\.?/.*)$`}
	case reflect.TypeFor[Time]():
		return map[string]any{"type": "string"}
	}
	if t.Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		panic(fmt.Sprintf("config: internal error: no schema for %v", t))
	}
	switch t.Kind() {
	case reflect.Pointer:
		return schemaOf(t.Elem(), docs)
	case reflect.Struct:
		props := map[string]any{}
		required := []string{}
		for _, f := range fieldsOf(t) {
			sf := t.Field(f.index)
			p := schemaOf(sf.Type, docs)
			if doc := docs[t.Name()+"."+sf.Name]; doc != "" {
				p["description"] = doc
				if strings.HasSuffix(doc, "Required.") {
					required = append(required, f.name)
				}
			}
			props[f.name] = p
		}
		s := map[string]any{"type": "object", "additionalProperties": false, "properties": props}
		if doc := docs[t.Name()]; doc != "" {
			s["description"] = doc
		}
		if len(required) > 0 {
			s["required"] = required
		}
		return s
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": schemaOf(t.Elem(), docs)}
	case reflect.Slice:
		return map[string]any{"type": "array", "items": schemaOf(t.Elem(), docs)}
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.Int, reflect.Int64:
		return map[string]any{"type": "integer"}
	case reflect.Float64:
		return map[string]any{"type": "number"}
	case reflect.String:
		if e, ok := reflect.Zero(t).Interface().(enum); ok {
			return map[string]any{"type": "string", "enum": e.Values()}
		}
		return map[string]any{"type": "string", "minLength": 1}
	}
	panic(fmt.Sprintf("config: internal error: no schema for %v", t))
}

// readManual returns the doc comments of types ("Route") and fields
// ("Route.Name"), each as one line.
func readManual() (map[string]string, error) {
	docs := map[string]string{}
	files, err := manual.ReadDir(".")
	if err != nil {
		return nil, fmt.Errorf("generating schema: %w", err)
	}
	for _, de := range files {
		src, err := manual.ReadFile(de.Name())
		if err != nil {
			return nil, fmt.Errorf("generating schema: %w", err)
		}
		f, err := parser.ParseFile(token.NewFileSet(), de.Name(), src, parser.ParseComments)
		if err != nil {
			return nil, fmt.Errorf("generating schema: %w", err)
		}
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.TYPE {
				continue
			}
			for _, spec := range g.Specs {
				ts := spec.(*ast.TypeSpec)
				docs[ts.Name.Name] = line(g.Doc.Text())
				st, ok := ts.Type.(*ast.StructType)
				if !ok {
					continue
				}
				for _, fd := range st.Fields.List {
					for _, n := range fd.Names {
						docs[ts.Name.Name+"."+n.Name] = line(fd.Doc.Text())
					}
				}
			}
		}
	}
	return docs, nil
}

func line(s string) string { return strings.Join(strings.Fields(s), " ") }
