package keysvc_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/keyweir/keyweir/keysvc"
)

// TestRequestStrict: names are taken as they are, once, and no others.
func TestRequestStrict(t *testing.T) {
	t.Parallel()
	x := newExchange(t)
	refused := func(name, body string) {
		t.Helper()
		if r, err := keysvc.DecodeRequest(sign(t, x.requester, keysvc.PurposeRequest, body), x.check()); r != nil || !errors.Is(err, keysvc.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	refused("unknown member", append(slices.Clone(x.good), [2]string{"extra", "1"}).json())
	refused("empty member name", append(slices.Clone(x.good), [2]string{"", "1"}).json())
	refused("an array", "["+x.good.json()+"]")
	refused("two values", x.good.json()+x.good.json())
	refused("null", "null")
	refused("not JSON", "hello, this is a text that is long enough")
	refused("invalid UTF-8", x.good.with("op", "\"open\xff\"").json())
	refused("comment", x.good.json()+"// x")
	refused("byte order mark", "\ufeff"+x.good.json())
	refused("deep args", x.good.with("args", strings.Repeat("[", 100)+strings.Repeat("]", 100)).json())
	refused("duplicate deep in args", x.good.with("args", `{"keys":[{"id":"a","id":"b"}]}`).json())
	for _, m := range x.good {
		refused("duplicate "+m[0], append(slices.Clone(x.good), m).json())
		refused("case variant of "+m[0], append(x.good.without(m[0]), [2]string{strings.ToUpper(m[0]), m[1]}).json())
		refused("case variant beside "+m[0], append(slices.Clone(x.good), [2]string{strings.ToUpper(m[0][:1]) + m[0][1:], m[1]}).json())
		refused("null "+m[0], x.good.with(m[0], "null").json())
	}
}

// TestArgsStrict holds the arguments of every operation to the same rules.
func TestArgsStrict(t *testing.T) {
	x := newExchange(t)
	targets := map[string]func() any{
		"generate":  func() any { return new(keysvc.GenerateArgs) },
		"open":      func() any { return new(keysvc.OpenArgs) },
		"route-key": func() any { return new(keysvc.RouteKeyArgs) },
		"scopes":    func() any { return new(keysvc.ScopesArgs) },
		"status":    func() any { return new(keysvc.StatusArgs) },
	}
	good := map[string]string{
		"generate": `{"subjects":["a"]}`, "open": `{"keys":[{"id":"x","record":"AA=="}]}`,
		"route-key": `{"route":"r"}`, "scopes": `{}`, "status": `{}`,
	}
	bad := map[string][]string{
		"generate": {
			`{"Subjects":["a"]}`, `{"subjects":["a"],"subjects":["b"]}`, `{"subjects":["a"],"SUBJECTS":["b"]}`, `{"subjects":["a"],"x":1}`,
			`{"subjects":"a"}`, `{"subjects":[1]}`, `{"subjects":[null]}`, `{"subjects":null}`, `["a"]`, `null`, `1`, `"{}"`, `{"subjects":["\ud800"]}`,
		},
		"open": {
			`{"keys":[{"ID":"x"}]}`, `{"keys":[{"id":"x","Record":"AA=="}]}`, `{"keys":[{"id":"x","id":"y"}]}`, `{"keys":[{"id":"x","x":1}]}`,
			`{"keys":[{"id":"x"},{"id":"y","y":1}]}`, `{"keys":{"id":"x"}}`, `{"keys":[null]}`, `{"keys":[{"id":1}]}`, `{"keys":[{"id":"x","record":"A"}]}`,
			`{"keys":[{"id":"x","record":"AB=="}]}`, `{"keys":[{"id":"x","record":"AA==\n"}]}`, `{"keys":[{"id":"x","record":[0]}]}`,
		},
		"route-key": {`{"Route":"r"}`, `{"route":"r","route":"r"}`, `{"route":"r","key":"x"}`, `{"route":null}`},
		"scopes":    {`{"x":1}`, `null`, `[]`, `""`},
		"status":    {`{"x":1}`, `null`, `[]`, `""`},
	}
	decode := func(op, args string) error {
		c := x.check()
		c.Op = op
		f := x.good.with("op", quote(op)).with("args", args)
		r, err := keysvc.DecodeRequest(x.signed(t, f), c)
		if err != nil {
			return err
		}
		return r.Args(targets[op]())
	}
	for _, op := range slices.Sorted(maps.Keys(targets)) {
		if err := decode(op, good[op]); err != nil {
			t.Errorf("%s %s: %v", op, good[op], err)
		}
		for _, args := range bad[op] {
			if err := decode(op, args); !errors.Is(err, keysvc.ErrInvalid) {
				t.Errorf("%s %s: %v, want ErrInvalid", op, args, err)
			}
		}
	}
	f := x.good.without("args")
	r, err := keysvc.DecodeRequest(x.signed(t, f), x.check())
	if err == nil {
		err = r.Args(new(keysvc.OpenArgs))
	}
	if !errors.Is(err, keysvc.ErrInvalid) {
		t.Errorf("no args: %v, want ErrInvalid", err)
	}
}

// TestRequestMaxima: sizes are refused before anything is parsed or copied.
func TestRequestMaxima(t *testing.T) {
	x := newExchange(t)
	pad := func(n int) []byte {
		body := x.good.json()
		return sign(t, x.requester, keysvc.PurposeRequest, body+strings.Repeat(" ", n-keysvc.SignatureSize-len(body)))
	}
	if _, err := keysvc.DecodeRequest(pad(keysvc.MaxRequest), x.check()); err != nil {
		t.Errorf("the longest request: %v", err)
	}
	over := pad(keysvc.MaxRequest + 1)
	asked := false
	c := x.check()
	c.Enrolled = func(string) bool { asked = true; return true }
	if _, err := keysvc.DecodeRequest(over, c); !errors.Is(err, keysvc.ErrInvalid) || asked {
		t.Errorf("a byte more: %v, parsed %t", err, asked)
	}
	huge := make([]byte, 64<<20)
	copy(huge, x.signed(t, x.good))
	if n := testing.AllocsPerRun(10, func() { _, _ = keysvc.DecodeRequest(huge, c) }); n > 5 {
		t.Errorf("64 MiB cost %v allocations", n)
	}
	for _, n := range []int{0, 1, 63, 64} {
		if _, err := keysvc.DecodeRequest(huge[:n], c); !errors.Is(err, keysvc.ErrInvalid) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}
