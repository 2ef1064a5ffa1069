package exchangetest

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/keyweir/keyweir/keysvc"
)

// TestStrictAtTheServer: unknown, duplicate and case-variant members are errors at
// every level of every operation, signed as they are by somebody who may.
func TestStrictAtTheServer(t *testing.T) {
	w := newWorld(t, nil, nil)
	key := w.generate(t, "sealer", "acme")[0].Grant.KeyID().String()
	nc := w.nats.Conn(t)
	good := map[string]struct{ who, args string }{
		"open":      {"reader", `{"keys":[{"id":"` + key + `"}]}`},
		"generate":  {"gateway", `{"subjects":["orders.acme.x"]}`},
		"route-key": {"gateway", `{"route":"orders"}`},
		"scopes":    {"gateway", `{}`},
		"status":    {"reader", `{}`},
	}
	ask := func(op, body string) string {
		t.Helper()
		a, err := w.ask(nc, op, sign(w.people[good[op].who], keysvc.PurposeRequest, body))
		if err != nil {
			t.Fatalf("%s: %v", op, err)
		}
		return a.code
	}
	for op, g := range good {
		id := w.people[g.who]
		body := func() string { return w.body(id, op, json.RawMessage(g.args), nil) }
		if code := ask(op, body()); code != "ok" {
			t.Fatalf("%s: a good request is answered %q", op, code)
		}
		before := w.releases(t)
		refused := func(what, body string) {
			t.Helper()
			if code := ask(op, body); code != "invalid" {
				t.Errorf("%s, %s: answered %q, want invalid", op, what, code)
			}
		}
		refused("unknown member", strings.Replace(body(), "{", `{"extra":1,`, 1))
		refused("something after it", body()+"{}")
		for _, name := range []string{"op", "audience", "principal", "time", "nonce", "suite", "ephemeral", "args"} {
			var all map[string]json.RawMessage
			if err := json.Unmarshal([]byte(body()), &all); err != nil {
				t.Fatal(err)
			}
			again := fmt.Sprintf(`{"%s":%s,`, name, all[name])
			variant := strings.ToUpper(name[:1]) + name[1:]
			refused("duplicate "+name, strings.Replace(body(), "{", again, 1))
			refused("case variant beside "+name, strings.Replace(body(), "{", strings.Replace(again, name, variant, 1), 1))
			refused("case variant instead of "+name, strings.Replace(body(), `"`+name+`":`, `"`+variant+`":`, 1))
			refused("null for "+name, string(replace(t, all, name, "null")))
		}
		var bad []string
		switch op {
		case "open":
			bad = []string{
				`{"keys":[{"id":"` + key + `","x":1}]}`, `{"keys":[{"id":"` + key + `","id":"` + key + `"}]}`, `{"keys":[{"ID":"` + key + `"}]}`,
				`{"keys":[{"id":"` + key + `"}],"Keys":[]}`, `{"keys":[{"id":"` + key + `"}],"keys":[{"id":"` + key + `"}]}`, `{"keys":null}`, `{"keys":[]}`,
				`{"keys":[{"id":"` + key + `","record":"AB=="}]}`, `{"keys":[` + strings.Repeat(`{"id":"`+key+`"},`, 64) + `{"id":"` + key + `"}]}`,
			}
		case "generate":
			bad = []string{
				`{"subjects":["orders.acme.x"],"salt":"AAAAAAAAAAAAAAAAAAAAAA=="}`, `{"Subjects":["orders.acme.x"]}`, `{"subjects":["orders.acme.x"],"subjects":["orders.acme.x"]}`,
				`{"subjects":[]}`, `{"subjects":"orders.acme.x"}`, `{"subjects":["orders.acme.x"],"scope":"tenant/other"}`, `{"subjects":[` + strings.Repeat(`"orders.a.x",`, 64) + `"orders.a.x"]}`,
			}
		case "route-key":
			bad = []string{`{"route":"orders","x":1}`, `{"Route":"orders"}`, `{"route":"orders","route":"orders"}`, `{"route":"a.b"}`, `{"route":""}`, `{}`}
		default:
			bad = []string{`{"x":1}`, `[]`, `null`, `""`}
		}
		for _, args := range bad {
			refused("args "+args[:min(len(args), 80)], w.body(id, op, json.RawMessage(args), nil))
		}
		refused("no args", string(replace(t, decoded(t, body()), "args", "")))
		if n := w.releases(t) - before; n != 0 {
			t.Errorf("%s: %d keys were released", op, n)
		}
	}
}

func decoded(t *testing.T, body string) map[string]json.RawMessage {
	t.Helper()
	var m map[string]json.RawMessage
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// replace returns the members with one value replaced, or left out for "".
func replace(t *testing.T, all map[string]json.RawMessage, name, value string) []byte {
	t.Helper()
	out := map[string]json.RawMessage{}
	for n, v := range all {
		if n != name {
			out[n] = v
		} else if value != "" {
			out[n] = json.RawMessage(value)
		}
	}
	b, err := json.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
