package strictjson_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyweir/keyweir/internal/strictjson"
)

type base struct {
	ID   string `json:"id"`
	Kind string `json:"kind"`
}

type Hidden struct {
	Deep  string `json:"deep"`
	Clash int    `json:"clash"`
}

type args struct {
	Subjects []string       `json:"subjects"`
	Limits   map[string]int `json:"limits,omitempty"`
	Inner    *args          `json:"inner"`
}

type request struct {
	base
	*Hidden
	Kind     int             `json:"kind"` // hides base.Kind
	Op       string          `json:"op"`
	Args     args            `json:"args"`
	Raw      json.RawMessage `json:"raw"`
	Any      any             `json:"any"`
	Body     []byte          `json:"body"`
	Pair     [2]int8         `json:"pair"`
	When     time.Time       `json:"when"`
	Addr     netip.Addr      `json:"addr"`
	Ptr      *int            `json:"ptr"`
	Flag     bool            `json:"flag"`
	Num      json.Number     `json:"num"`
	Float    float32         `json:"float"`
	Count    uint8           `json:"count"`
	Ignored  string          `json:"-"`
	Untagged int
}

func TestUnmarshalAccepts(t *testing.T) {
	seven := 7
	tests := []struct {
		in   string
		want request
	}{
		{`{}`, request{}},
		{` { "op" : "open" } ` + "\n", request{Op: "open"}},
		{`{"id":"a","kind":3}`, request{base: base{ID: "a"}, Kind: 3}},
		{`{"deep":"x","clash":1}`, request{Hidden: &Hidden{Deep: "x", Clash: 1}}},
		{`{"args":{"subjects":["a","b"],"limits":{"A":1,"a":2}}}`, request{Args: args{Subjects: []string{"a", "b"}, Limits: map[string]int{"A": 1, "a": 2}}}},
		{`{"args":{"inner":{"subjects":[]}}}`, request{Args: args{Inner: &args{Subjects: []string{}}}}},
		{`{"args":{"inner":null}}`, request{}},
		{`{"raw":{"x":[1,null,"ü"]}}`, request{Raw: json.RawMessage(`{"x":[1,null,"ü"]}`)}},
		{`{"any":[null,{"a":true}]}`, request{Any: []any{nil, map[string]any{"a": true}}}},
		{`{"any":null}`, request{}},
		{`{"body":"AQI="}`, request{Body: []byte{1, 2}}},
		{`{"pair":[-128,127]}`, request{Pair: [2]int8{-128, 127}}},
		{`{"when":"2026-01-02T03:04:05Z"}`, request{When: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}},
		{`{"addr":"::1"}`, request{Addr: netip.IPv6Loopback()}},
		{`{"ptr":7}`, request{Ptr: &seven}},
		{`{"ptr":null}`, request{}},
		{`{"flag":true,"num":1.50,"float":0.5,"count":255}`, request{Flag: true, Num: "1.50", Float: 0.5, Count: 255}},
		{`{"Untagged":1}`, request{Untagged: 1}},
		{`{"op":"\ud83d\ude00 \\ud800 \""}`, request{Op: "😀 \\ud800 \""}},
	}
	for _, tt := range tests {
		var got request
		if err := strictjson.Unmarshal([]byte(tt.in), &got); err != nil {
			t.Errorf("Unmarshal(%s) = %v", tt.in, err)
			continue
		}
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(request{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("Unmarshal(%s): %s", tt.in, diff)
		}
	}
}

func TestUnmarshalRefuses(t *testing.T) {
	tests := []struct {
		in, path, reason string
	}{
		// names
		{`{"nope":1}`, "nope", "unknown name"},
		{`{"Op":"x"}`, "Op", `differs in case from "op"`},
		{`{"op":"x","OP":"y"}`, "OP", `differs in case from "op"`},
		{`{"\u212And":1}`, `["\u212and"]`, "unknown name"},
		{`{"op":"a","op":"a"}`, "op", "duplicate"},
		{`{"op":"a","\u006fp":"b"}`, "op", "duplicate"},
		{`{"args":{"inner":{"subjects":[],"subjects":[]}}}`, "args.inner.subjects", "duplicate"},
		{`{"args":{"limits":{"a":1,"a":1}}}`, "args.limits.a", "duplicate"},
		{`{"raw":{"x":[{"y":1,"y":2}]}}`, "raw.x[0].y", "duplicate"},
		{`{"any":[0,{"y":1,"y":2}]}`, "any[1].y", "duplicate"},
		{`{"args":{"limits":{"a b":1,"a b":1}}}`, `args.limits["a b"]`, "duplicate"},
		{`{"Ignored":"x"}`, "Ignored", "unknown"},
		{`{"-":"x"}`, "-", "unknown"},
		{`{"":1}`, `[""]`, "unknown"},
		// null
		{`null`, "", "null"},
		{`{"op":null}`, "op", "null"},
		{`{"args":null}`, "args", "null"},
		{`{"args":{"subjects":null}}`, "args.subjects", "null"},
		{`{"args":{"subjects":["a",null]}}`, "args.subjects[1]", "null"},
		{`{"args":{"limits":null}}`, "args.limits", "null"},
		{`{"raw":null}`, "raw", "null"},
		{`{"when":null}`, "when", "null"},
		{`{"flag":null}`, "flag", "null"},
		// kinds
		{`[]`, "", "an array, want an object"},
		{`"x"`, "", "a string, want an object"},
		{`{"args":[]}`, "args", "want an object"},
		{`{"args":{"limits":[]}}`, "args.limits", "want an object"},
		{`{"args":{"subjects":{}}}`, "args.subjects", "an object, want an array"},
		{`{"args":{"subjects":["a","b","c",4]}}`, "args.subjects[3]", "a number, want a string"},
		{`{"op":true}`, "op", "a boolean, want a string"},
		{`{"flag":"true"}`, "flag", "want a boolean"},
		{`{"count":"1"}`, "count", "want a number"},
		{`{"num":"1"}`, "num", "want a number"},
		{`{"addr":1}`, "addr", "want a string"},
		// values
		{`{"count":256}`, "count", "out of range"},
		{`{"count":-1}`, "count", "out of range"},
		{`{"kind":1.0}`, "kind", "out of range"},
		{`{"kind":1e2}`, "kind", "out of range"},
		{`{"float":1e39}`, "float", "out of range"},
		{`{"pair":[1]}`, "pair", "1 elements, want 2"},
		{`{"pair":[1,2,3]}`, "pair", "3 elements, want 2"},
		{`{"pair":[1,128]}`, "pair[1]", "out of range"},
		{`{"body":[1,2]}`, "body", "want a string"},
		{`{"body":"AQ\nI="}`, "body", "line break"},
		{`{"body":"AQJ="}`, "body", "base64"},
		{`{"body":"AQI"}`, "body", "base64"},
		{`{"op":"\ud800"}`, "op", "surrogate"},
		{`{"op":"\udc00\ud800"}`, "op", "surrogate"},
		{`{"op":"\ud800\\udc00"}`, "op", "surrogate"},
		{`{"\ud800":1}`, "", "surrogate"},
		{`{"raw":["\ud800"]}`, "raw[0]", "surrogate"},
		{"{\"op\":\"\xff\"}", "", "invalid UTF-8 at byte 7"},
		{"{\"op\":\"\xed\xa0\x80\"}", "", "invalid UTF-8"},
		// the document
		{``, "", "unexpected end"},
		{`{}{}`, "", "after top-level value"},
		{`{} x`, "", "after top-level value"},
		{`{"op":"a",}`, "", "invalid character"},
		{`{"op":'a'}`, "", "invalid character"},
		{`{"count":01}`, "", "invalid character"},
		{`{"op":"a"`, "", "unexpected end"},
		{"\ufeff{}", "", "invalid character"},
		{`{"any":1e999}`, "any", "number does not fit"},
		// refused by the type's own decoder; the value is not repeated
		{`{"when":"yesterday"}`, "", "refused by its type"},
		{`{"addr":"secret"}`, "", "refused by its type"},
	}
	for _, tt := range tests {
		got := request{Op: "before"}
		err := strictjson.Unmarshal([]byte(tt.in), &got)
		var e *strictjson.Error
		if !errors.As(err, &e) {
			t.Errorf("Unmarshal(%s) = %v, want an *Error", tt.in, err)
			continue
		}
		if e.Path != tt.path || !strings.Contains(e.Reason, tt.reason) {
			t.Errorf("Unmarshal(%s) = %q at %q, want %q at %q", tt.in, e.Reason, e.Path, tt.reason, tt.path)
		}
		if diff := cmp.Diff(request{Op: "before"}, got, cmp.AllowUnexported(request{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("Unmarshal(%s) changed its target: %s", tt.in, diff)
		}
	}
}

// TestErrorHoldsNoValue gives a secret in every place a value can stand.
func TestErrorHoldsNoValue(t *testing.T) {
	const secret = "hunter2hunter2"
	for _, doc := range []string{
		`{"count":"%s"}`, `{"when":"%s"}`, `{"addr":"%s"}`, `{"body":"%s!"}`, `{"flag":"%s"}`,
		`{"args":["%s"]}`, `{"op":"%s","op":"%s"}`, `{"nope":"%s"}`, `{"op":"%s\ud800"}`, `{"op":"%s"} x`,
	} {
		doc = strings.ReplaceAll(doc, "%s", secret)
		var r request
		err := strictjson.Unmarshal([]byte(doc), &r)
		if err == nil {
			t.Errorf("Unmarshal(%s) succeeded", doc)
			continue
		}
		if text := fmt.Sprintf("%v %+v %#v", err, err, err); strings.Contains(text, secret) {
			t.Errorf("Unmarshal(%s): the error repeats the value: %s", doc, text)
		}
	}
}

func TestErrorText(t *testing.T) {
	long := strings.Repeat("ü", 1000)
	var r request
	err := strictjson.Unmarshal([]byte(`{"args":{"`+long+`":1}}`), &r)
	if err == nil || len(err.Error()) > 400 || !strings.HasPrefix(err.Error(), `invalid JSON at args["\u00fc`) {
		t.Errorf("a long name gives %v", err)
	}
	err = strictjson.Unmarshal([]byte(`[]`), &r)
	if got, want := err.Error(), "invalid JSON: an array, want an object"; got != want {
		t.Errorf("error = %q, want %q", got, want)
	}
}

func TestDepth(t *testing.T) {
	nest := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	object := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	for _, doc := range []func(int) string{nest, object} {
		var v any
		if err := strictjson.Unmarshal([]byte(doc(strictjson.MaxDepth)), &v); err != nil {
			t.Errorf("depth %d: %v", strictjson.MaxDepth, err)
		}
		for _, n := range []int{strictjson.MaxDepth + 1, 9_000, 200_000} {
			var e *strictjson.Error
			if err := strictjson.Unmarshal([]byte(doc(n)), &v); !errors.As(err, &e) {
				t.Errorf("depth %d: error %v, want an *Error", n, err)
			}
		}
	}
	// Siblings do not add up.
	var v any
	if err := strictjson.Unmarshal([]byte("["+strings.Repeat(`{"a":[]},`, 100)+"1]"), &v); err != nil {
		t.Errorf("siblings: %v", err)
	}
}

func TestReplacesAndNeverMerges(t *testing.T) {
	got := args{Subjects: []string{"old"}, Limits: map[string]int{"old": 1}, Inner: &args{}}
	if err := strictjson.Unmarshal([]byte(`{"limits":{"new":2}}`), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(args{Limits: map[string]int{"new": 2}}, got); diff != "" {
		t.Error(diff)
	}
}

type left struct{ X int }

type right struct{ X int }

type (
	One struct{ left }
	Two struct{ left }
)

type upper string

func (*upper) UnmarshalText([]byte) error { return nil }

func TestTypes(t *testing.T) {
	var (
		ambiguous struct {
			left
			right
		}
		tagWins struct {
			left
			Other int `json:"X"`
		}
		twice struct {
			One
			Two
		}
		quoted struct {
			N int `json:"n,string"`
		}
		badTag struct {
			N int "json:\"a\u0000b\""
		}
		dash struct {
			//lint:ignore SA5008 a member named "-" is what is tested
			N int `json:"-,"`
		}
		intKeys map[int]string
		txtKeys map[upper]string
		channel struct {
			C chan int `json:"c"`
		}
		iface struct {
			E error `json:"e"`
		}
		ptrPtr **int
	)
	tests := []struct {
		in   string
		v    any
		want string // part of the error; "" is success
	}{
		{`{"X":1}`, &ambiguous, "unknown name"},
		{`{"X":1}`, &tagWins, ""},
		{`{"X":1}`, &twice, "unknown name"},
		{`{"n":"1"}`, &quoted, "not supported"},
		{`{"N":1}`, &badTag, ""},
		{`{"-":1}`, &dash, ""},
		{`{"1":"a"}`, &intKeys, "plain strings"},
		{`{"1":"a"}`, &txtKeys, "plain strings"},
		{`{"c":1}`, &channel, "cannot decode"},
		{`{"e":1}`, &iface, "cannot decode"},
		{`5`, &ptrPtr, ""},
		{`null`, &ptrPtr, ""},
	}
	for _, tt := range tests {
		err := strictjson.Unmarshal([]byte(tt.in), tt.v)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("Unmarshal(%s, %T) = %v, want %q", tt.in, tt.v, err, tt.want)
		}
	}
	for _, v := range []any{nil, request{}, (*request)(nil)} {
		var e *strictjson.Error
		if err := strictjson.Unmarshal([]byte(`{}`), v); err == nil || errors.As(err, &e) {
			t.Errorf("Unmarshal(%T) = %v, want a plain error", v, err)
		}
	}
}
