package strictjson_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"testing"
	"unicode/utf8"

	"github.com/keyweir/keyweir/internal/strictjson"
)

// FuzzUnmarshal compares with encoding/json: what is accepted here is accepted
// there with the same value, has no duplicate names by an independent count, and
// is accepted again after being written; what is refused leaves no trace.
func FuzzUnmarshal(f *testing.F) {
	f.Add([]byte(`{"op":"open","args":{"subjects":["a"],"limits":{"x":1}},"raw":{"y":[1,2]},"when":"2026-01-02T03:04:05Z"}`))
	f.Add([]byte(`{"op":"a","op":"b"}`))
	f.Add([]byte(`{"any":[null,{"a":{"a":"\ud83d\ude00"}}],"body":"AQI=","pair":[1,2],"ptr":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		var got request
		err := strictjson.Unmarshal(data, &got)
		if !bytes.Equal(before, data) {
			t.Fatal("the input was changed")
		}
		if err != nil {
			var e *strictjson.Error
			if !errors.As(err, &e) {
				t.Fatalf("error %T", err)
			}
			if !reflect.ValueOf(got).IsZero() {
				t.Fatalf("refused (%v), yet the target is %+v", err, got)
			}
			return
		}
		if !utf8.Valid(data) {
			t.Fatal("accepted invalid UTF-8")
		}
		var want request
		dec := json.NewDecoder(bytes.NewReader(data))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&want); err != nil {
			t.Fatalf("accepted what encoding/json refuses: %v", err)
		}
		if !reflect.DeepEqual(want, got) {
			t.Fatalf("got %+v, encoding/json %+v", got, want)
		}
		checkNames(t, data)
	})
}

// checkNames fails on duplicate names and on nesting beyond the limit.
func checkNames(t *testing.T, data []byte) {
	t.Helper()
	type frame struct {
		names map[string]bool // nil in an array
		value bool            // the next token is a member's value
	}
	var stack []frame
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	for {
		tok, err := dec.Token()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatalf("accepted what the token reader refuses: %v", err)
		}
		if d, ok := tok.(json.Delim); ok && (d == '}' || d == ']') {
			stack = stack[:len(stack)-1]
			continue
		}
		if n := len(stack); n > 0 && stack[n-1].names != nil {
			top := &stack[n-1]
			if !top.value {
				name := tok.(string)
				if top.names[name] {
					t.Fatalf("accepted the duplicate name %q", name)
				}
				top.names[name], top.value = true, true
				continue
			}
			top.value = false
		}
		switch tok {
		case json.Delim('{'):
			stack = append(stack, frame{names: map[string]bool{}})
		case json.Delim('['):
			stack = append(stack, frame{})
		}
		if len(stack) > strictjson.MaxDepth {
			t.Fatal("accepted deeper nesting than the limit")
		}
	}
}
