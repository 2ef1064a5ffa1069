// Package strictjson decodes JSON the way a signed request has to be read:
// what is not exactly expected is an error.
//
// [Unmarshal] takes the same types and tags as encoding/json and differs in
// what it refuses: unknown names, names that differ in case, duplicate names at
// any depth, null where the Go type is not a pointer or an interface, arrays
// and base64 text that do not fit exactly, invalid UTF-8 and lone surrogates,
// nesting deeper than [MaxDepth], and anything after the value. Every error is
// an [*Error] that names the place.
//
// Two limits follow from leaving the last step to encoding/json: what a type's
// own UnmarshalJSON accepts is up to that type (duplicate names inside it are
// still refused), and neither the ",string" tag option nor map keys other than
// plain strings are supported.
//
// The package imports the standard library only.
package strictjson

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

// MaxDepth is how many objects and arrays may stand inside each other; a
// document with one object and nothing in it has depth 1.
const MaxDepth = 32

// Unmarshal decodes the single JSON value in data into v, a non-nil pointer.
// The old content of *v is replaced, never merged into; on error *v is left as
// it was. Every error about data is an [*Error].
//
// Unmarshal does not limit the size of data: the caller does, before reading it.
func Unmarshal(data []byte, v any) error {
	rv := reflect.ValueOf(v)
	if rv.Kind() != reflect.Pointer || rv.IsNil() {
		return fmt.Errorf("strictjson: decoding into %T: a non-nil pointer is needed", v)
	}
	if i := invalidUTF8(data); i >= 0 {
		return &Error{Reason: fmt.Sprintf("invalid UTF-8 at byte %d", i)}
	}
	var whole json.RawMessage
	if err := json.Unmarshal(data, &whole); err != nil {
		return &Error{Reason: err.Error()} // one syntax error with its offset, or trailing data
	}
	w := walker{data: data}
	if err := w.value(rv.Type().Elem(), ""); err != nil {
		return err
	}
	fresh := reflect.New(rv.Type().Elem())
	if err := json.Unmarshal(data, fresh.Interface()); err != nil {
		return fromJSON(err)
	}
	rv.Elem().Set(fresh.Elem())
	return nil
}

// invalidUTF8 returns the index of the first byte that is not UTF-8, or -1.
func invalidUTF8(data []byte) int {
	if utf8.Valid(data) {
		return -1
	}
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return -1
}

// maxName bounds how much of a name found in data an error repeats, in bytes.
const maxName = 64

// Error says what is wrong with a document and where. It repeats names found in
// the document, shortened, and never a value: values may be secret.
type Error struct {
	// Path names the place: "args.subjects[3]". It is empty for the whole
	// document. A name that is not letters, digits, '_' and '-' stands quoted in
	// brackets: `args["a b"]`.
	Path string
	// Reason says what is wrong there.
	Reason string
}

func (e *Error) Error() string {
	if e.Path == "" {
		return "invalid JSON: " + e.Reason
	}
	return "invalid JSON at " + e.Path + ": " + e.Reason
}

// fromJSON turns what encoding/json still found, after the walk, into an Error.
// The text of a type's own UnmarshalJSON is not repeated: it may quote the value.
func fromJSON(err error) error {
	if te, ok := err.(*json.UnmarshalTypeError); ok {
		kind, _, _ := strings.Cut(te.Value, " ") // "number 1e999": the number is not repeated
		return &Error{Path: te.Field, Reason: fmt.Sprintf("%s does not fit %v", kind, te.Type)}
	}
	return &Error{Reason: fmt.Sprintf("a value was refused by its type (%T)", err)}
}

// child appends a name to a path.
func child(path, name string) string {
	if !plain(name) {
		return path + "[" + quote(name) + "]"
	}
	if path == "" {
		return name
	}
	return path + "." + name
}

// element appends an index to a path.
func element(path string, i int) string {
	return path + "[" + strconv.Itoa(i) + "]"
}

func plain(name string) bool {
	if name == "" || len(name) > maxName {
		return false
	}
	for _, c := range []byte(name) {
		if c != '_' && c != '-' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// quote is %q of a name, shortened.
func quote(name string) string {
	if len(name) <= maxName {
		return strconv.QuoteToASCII(name)
	}
	cut := maxName
	for !utf8.RuneStart(name[cut]) {
		cut--
	}
	return strconv.QuoteToASCII(name[:cut]) + "..."
}
