package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// MaxFile is the largest configuration file in bytes.
const MaxFile = 1 << 20

// Problem is one thing wrong with a configuration file.
type Problem struct {
	File         string // as given to Load
	Line, Column int    // from 1; 0 if the problem has no place
	Path         string // for example gateway.routes[0].name; "" for the whole file
	Reason       string
}

func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": ")
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Reason)
	return b.String()
}

// place is where in the file a value stands.
type place struct{ line, column int }

// places knows the place of every path of a file.
type places struct {
	file string
	at   map[string]place
}

// problem makes a Problem at path, or at the nearest path above it that stands
// in the file.
func (p places) problem(path, format string, args ...any) *Problem {
	pr := &Problem{File: p.file, Path: path, Reason: fmt.Sprintf(format, args...)}
	for at := path; ; {
		if l, ok := p.at[at]; ok {
			pr.Line, pr.Column = l.line, l.column
			return pr
		}
		i := strings.LastIndexAny(at, ".[")
		if i < 0 {
			return pr
		}
		at = at[:i]
	}
}

// decoder fills a value from a YAML tree and collects every problem.
type decoder struct {
	places
	errs []error
}

func (d *decoder) fail(n ast.Node, path, format string, args ...any) {
	pr := &Problem{File: d.file, Path: path, Reason: fmt.Sprintf(format, args...)}
	if tk := n.GetToken(); tk != nil && tk.Position != nil {
		pr.Line, pr.Column = tk.Position.Line, tk.Position.Column
	}
	d.errs = append(d.errs, pr)
}

// decodeFile parses data into v, a pointer to a struct.
func decodeFile(name string, data []byte, v any) (places, error) {
	d := decoder{places: places{file: name, at: map[string]place{}}}
	f, err := parser.ParseBytes(data, 0)
	if err != nil {
		pr := &Problem{File: name, Reason: "not valid YAML"}
		if ye := yaml.Error(nil); errors.As(err, &ye) {
			pr.Reason = ye.GetMessage()
			if tk := ye.GetToken(); tk != nil && tk.Position != nil {
				pr.Line, pr.Column = tk.Position.Line, tk.Position.Column
			}
		}
		return d.places, pr
	}
	var body ast.Node
	for _, doc := range f.Docs {
		if doc.Body == nil || doc.Body.Type() == ast.CommentType {
			continue
		}
		if body != nil {
			d.fail(doc.Body, "", "a second document; give one")
			return d.places, errors.Join(d.errs...)
		}
		body = doc.Body
	}
	if body == nil {
		return d.places, &Problem{File: name, Reason: "the file is empty"}
	}
	d.decode(body, reflect.ValueOf(v).Elem(), "")
	return d.places, errors.Join(d.errs...)
}

func (d *decoder) decode(n ast.Node, v reflect.Value, path string) {
	switch n.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode, *ast.TagNode:
		d.fail(n, path, "anchors, aliases, merges and tags are not used here")
		return
	case *ast.NullNode:
		d.fail(n, path, "no value; remove the key to get its default")
		return
	}
	if _, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok || v.Kind() == reflect.String {
		d.text(n, v, path)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.decode(n, v.Elem(), path)
	case reflect.Struct:
		d.structure(n, v, path)
	case reflect.Map:
		d.mapping(n, v, path)
	case reflect.Slice:
		d.sequence(n, v, path)
	case reflect.Bool:
		b, ok := n.(*ast.BoolNode)
		if !ok {
			d.fail(n, path, "must be true or false")
			return
		}
		v.SetBool(b.Value)
	case reflect.Int, reflect.Int64:
		i, err := strconv.ParseInt(scalar(n), 10, v.Type().Bits())
		if err != nil {
			d.fail(n, path, "must be a whole number")
			return
		}
		v.SetInt(i)
	case reflect.Float64:
		x, err := strconv.ParseFloat(scalar(n), 64)
		if err != nil {
			d.fail(n, path, "must be a number")
			return
		}
		v.SetFloat(x)
	default:
		panic(fmt.Sprintf("config: internal error: no decoder for %v", v.Type()))
	}
}

// scalar returns the text of a scalar as it stands in the file, or "".
func scalar(n ast.Node) string {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value
	case *ast.LiteralNode:
		return n.Value.Value
	case *ast.IntegerNode, *ast.FloatNode:
		return n.GetToken().Value
	}
	return ""
}

func (d *decoder) text(n ast.Node, v reflect.Value, path string) {
	s := scalar(n)
	if s == "" {
		d.fail(n, path, "must be a text that is not empty")
		return
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if err := u.UnmarshalText([]byte(s)); err != nil {
			d.fail(n, path, "%v", err)
		}
		return
	}
	if e, ok := v.Interface().(enum); ok {
		if err := checkEnum(e, s); err != nil {
			d.fail(n, path, "%v", err)
			return
		}
	}
	v.SetString(s)
}

// pairs yields the pairs of a mapping.
func (d *decoder) pairs(n ast.Node, path string, f func(key string, k, value ast.Node)) {
	var values []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	default:
		d.fail(n, path, "must be a section with keys")
		return
	}
	seen := map[string]bool{}
	for _, p := range values {
		key := scalar(p.Key)
		if key == "" {
			d.fail(p.Key, path, "a key must be a plain text")
			continue
		}
		if seen[key] {
			d.fail(p.Key, path, "key %q stands twice", key)
			continue
		}
		seen[key] = true
		if tk := p.Key.GetToken(); tk != nil && tk.Position != nil {
			d.at[join(path, key)] = place{tk.Position.Line, tk.Position.Column}
		}
		f(key, p.Key, p.Value)
	}
}

func (d *decoder) structure(n ast.Node, v reflect.Value, path string) {
	fields := fieldsOf(v.Type())
	d.pairs(n, path, func(key string, k, value ast.Node) {
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == key })
		if i < 0 {
			names := make([]string, len(fields))
			for i, f := range fields {
				names[i] = f.name
			}
			d.fail(k, path, "unknown key %q%s", key, didYouMean(key, names))
			return
		}
		d.decode(value, v.Field(fields[i].index), join(path, key))
	})
}

func (d *decoder) mapping(n ast.Node, v reflect.Value, path string) {
	v.Set(reflect.MakeMap(v.Type()))
	d.pairs(n, path, func(key string, _, value ast.Node) {
		e := reflect.New(v.Type().Elem()).Elem()
		d.decode(value, e, join(path, key))
		v.SetMapIndex(reflect.ValueOf(key), e)
	})
}

func (d *decoder) sequence(n ast.Node, v reflect.Value, path string) {
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		d.fail(n, path, "must be a list")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(s.Values), len(s.Values)))
	for i, e := range s.Values {
		at := fmt.Sprintf("%s[%d]", path, i)
		if tk := e.GetToken(); tk != nil && tk.Position != nil {
			d.at[at] = place{tk.Position.Line, tk.Position.Column}
		}
		d.decode(e, v.Index(i), at)
	}
}

// field is one key of a section.
type field struct {
	name  string
	index int
}

func fieldsOf(t reflect.Type) []field {
	var fs []field
	for i := range t.NumField() {
		if name := t.Field(i).Tag.Get("yaml"); name != "" {
			fs = append(fs, field{name, i})
		}
	}
	return fs
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
