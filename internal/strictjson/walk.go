package strictjson

import (
	"encoding"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf16"
)

var (
	numberType          = reflect.TypeFor[json.Number]()
	jsonUnmarshalerType = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshalerType = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// walker goes through a document that is known to be valid JSON, comparing it
// with the Go type it will be decoded into.
type walker struct {
	data  []byte
	at    int // index of the next byte
	depth int // objects and arrays open
}

// value checks the value that starts next against t; t is nil inside values
// without a Go type (any, json.RawMessage, custom decoders).
func (w *walker) value(t reflect.Type, path string) error {
	c := w.peek()
	nullable := t == nil
	for t != nil && t.Kind() == reflect.Pointer {
		t, nullable = t.Elem(), true
	}
	if t != nil && t.Kind() == reflect.Interface {
		if t.NumMethod() > 0 {
			return &Error{Path: path, Reason: fmt.Sprintf("cannot decode into %v", t)}
		}
		t, nullable = nil, true
	}
	if c == 'n' {
		w.literal()
		if !nullable {
			return &Error{Path: path, Reason: "null is not allowed here"}
		}
		return nil
	}
	if t != nil && reflect.PointerTo(t).Implements(jsonUnmarshalerType) {
		t = nil
	}
	if t == nil {
		return w.untyped(c, path)
	}
	if reflect.PointerTo(t).Implements(textUnmarshalerType) {
		return w.str(c, path, nil)
	}
	switch t.Kind() {
	case reflect.Struct:
		return w.structure(c, t, path)
	case reflect.Map:
		return w.mapping(c, t, path)
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return w.str(c, path, checkBase64)
		}
		_, err := w.array(c, t.Elem(), path)
		return err
	case reflect.Array:
		n, err := w.array(c, t.Elem(), path)
		if err == nil && n != t.Len() {
			err = &Error{Path: path, Reason: fmt.Sprintf("%d elements, want %d", n, t.Len())}
		}
		return err
	case reflect.String:
		if t == numberType {
			return w.number(c, path, nil)
		}
		return w.str(c, path, nil)
	case reflect.Bool:
		if c != 't' && c != 'f' {
			return &Error{Path: path, Reason: fmt.Sprintf("%s, want a boolean", kindOf(c))}
		}
		w.literal()
		return nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return w.number(c, path, func(s string) error { _, err := strconv.ParseInt(s, 10, t.Bits()); return err })
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return w.number(c, path, func(s string) error { _, err := strconv.ParseUint(s, 10, t.Bits()); return err })
	case reflect.Float32, reflect.Float64:
		return w.number(c, path, func(s string) error { _, err := strconv.ParseFloat(s, t.Bits()); return err })
	}
	return &Error{Path: path, Reason: fmt.Sprintf("cannot decode into %v", t)}
}

func (w *walker) structure(c byte, t reflect.Type, path string) error {
	if c != '{' {
		return &Error{Path: path, Reason: fmt.Sprintf("%s, want an object", kindOf(c))}
	}
	fs, err := fieldsOf(t)
	if err != nil {
		return &Error{Path: path, Reason: err.Error()}
	}
	return w.object(path, func(name, path string) error {
		ft, ok := fs[name]
		if !ok {
			for known := range fs {
				if strings.EqualFold(known, name) {
					return &Error{Path: path, Reason: fmt.Sprintf("unknown name, differs in case from %q", known)}
				}
			}
			return &Error{Path: path, Reason: "unknown name"}
		}
		return w.value(ft, path)
	})
}

func (w *walker) mapping(c byte, t reflect.Type, path string) error {
	if c != '{' {
		return &Error{Path: path, Reason: fmt.Sprintf("%s, want an object", kindOf(c))}
	}
	// Any other key could be spelled in several ways, so that two names would
	// be one key.
	if k := t.Key(); k.Kind() != reflect.String || reflect.PointerTo(k).Implements(textUnmarshalerType) {
		return &Error{Path: path, Reason: fmt.Sprintf("cannot decode into %v: map keys must be plain strings", t)}
	}
	return w.object(path, func(_, path string) error { return w.value(t.Elem(), path) })
}

// untyped checks a value that has no Go type: only names, strings and depth.
func (w *walker) untyped(c byte, path string) error {
	switch c {
	case '{':
		return w.object(path, func(_, path string) error { return w.value(nil, path) })
	case '[':
		_, err := w.array(c, nil, path)
		return err
	case '"':
		_, err := w.text(path)
		return err
	}
	w.literal()
	return nil
}

// object goes through an object, refusing duplicate names; member must consume
// the member's value.
func (w *walker) object(path string, member func(name, path string) error) error {
	if err := w.open(path); err != nil {
		return err
	}
	seen := make(map[string]struct{})
	for w.peek() != '}' {
		name, err := w.text(path)
		if err != nil {
			return err
		}
		at := child(path, name)
		if _, dup := seen[name]; dup {
			return &Error{Path: at, Reason: "duplicate name"}
		}
		seen[name] = struct{}{}
		w.peek()
		w.at++ // ':'
		if err := member(name, at); err != nil {
			return err
		}
		if w.peek() == ',' {
			w.at++
		}
	}
	w.at++
	w.depth--
	return nil
}

// array goes through an array of t (nil: untyped) and returns its length.
func (w *walker) array(c byte, t reflect.Type, path string) (int, error) {
	if c != '[' {
		return 0, &Error{Path: path, Reason: fmt.Sprintf("%s, want an array", kindOf(c))}
	}
	if err := w.open(path); err != nil {
		return 0, err
	}
	n := 0
	for w.peek() != ']' {
		if err := w.value(t, element(path, n)); err != nil {
			return 0, err
		}
		n++
		if w.peek() == ',' {
			w.at++
		}
	}
	w.at++
	w.depth--
	return n, nil
}

// open consumes '{' or '['.
func (w *walker) open(path string) error {
	w.at++
	w.depth++
	if w.depth > MaxDepth {
		return &Error{Path: path, Reason: fmt.Sprintf("nested deeper than %d", MaxDepth)}
	}
	return nil
}

// str consumes a string and hands it, decoded, to check (nil: anything goes).
func (w *walker) str(c byte, path string, check func(string) error) error {
	if c != '"' {
		return &Error{Path: path, Reason: fmt.Sprintf("%s, want a string", kindOf(c))}
	}
	s, err := w.text(path)
	if err != nil {
		return err
	}
	if check == nil {
		return nil
	}
	if err := check(s); err != nil {
		return &Error{Path: path, Reason: err.Error()}
	}
	return nil
}

// number consumes a number and hands its text to check (nil: anything goes).
func (w *walker) number(c byte, path string, check func(string) error) error {
	if c != '-' && (c < '0' || c > '9') {
		return &Error{Path: path, Reason: fmt.Sprintf("%s, want a number", kindOf(c))}
	}
	if text := w.literal(); check != nil && check(text) != nil {
		return &Error{Path: path, Reason: "number out of range or not of the type wanted"}
	}
	return nil
}

// text consumes a string and returns it decoded.
func (w *walker) text(path string) (string, error) {
	w.peek()
	start := w.at
	w.at++
	for w.data[w.at] != '"' {
		if w.data[w.at] == '\\' {
			w.at++
		}
		w.at++
	}
	w.at++
	raw := w.data[start:w.at]
	if loneSurrogate(raw) {
		return "", &Error{Path: path, Reason: "a string with half a surrogate pair"}
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", &Error{Path: path, Reason: err.Error()}
	}
	return s, nil
}

// literal consumes a number, true, false or null.
func (w *walker) literal() string {
	w.peek()
	start := w.at
	for w.at < len(w.data) && !strings.ContainsRune(" \t\r\n,]}", rune(w.data[w.at])) {
		w.at++
	}
	return string(w.data[start:w.at])
}

// peek skips white space and returns the next byte.
func (w *walker) peek() byte {
	for w.data[w.at] == ' ' || w.data[w.at] == '\t' || w.data[w.at] == '\r' || w.data[w.at] == '\n' {
		w.at++
	}
	return w.data[w.at]
}

// loneSurrogate reports whether a string literal holds a \u escape of half a
// surrogate pair; encoding/json would silently turn it into U+FFFD, so that
// different names could become the same.
func loneSurrogate(raw []byte) bool {
	unit := func(i int) rune { // the \uXXXX at i, or 0
		if i+6 > len(raw) || raw[i] != '\\' || raw[i+1] != 'u' {
			return 0
		}
		n, err := strconv.ParseUint(string(raw[i+2:i+6]), 16, 16)
		if err != nil {
			return 0
		}
		return rune(n)
	}
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		r := unit(i)
		if !utf16.IsSurrogate(r) {
			i++ // the escaped byte is no escape itself
			continue
		}
		if utf16.DecodeRune(r, unit(i+6)) == '\uFFFD' {
			return true
		}
		i += 11
	}
	return false
}

// checkBase64 refuses what encoding/json tolerates in a []byte: line breaks and
// stray bits after the last byte.
func checkBase64(s string) error {
	if strings.ContainsAny(s, "\r\n") {
		return errors.New("a line break in base64")
	}
	if _, err := base64.StdEncoding.Strict().DecodeString(s); err != nil {
		return errors.New("malformed base64")
	}
	return nil
}

// kindOf names the kind of the value that starts with c.
func kindOf(c byte) string {
	switch c {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	}
	return "a number"
}
