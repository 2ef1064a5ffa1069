package config_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nkeys"

	"github.com/keyweir/keyweir/internal/config"
)

const example = "../../keyweir.example.yaml"

func TestExample(t *testing.T) {
	f, err := config.Load(example)
	if err != nil {
		t.Fatal(err)
	}
	r := f.Gateway.Routes[0]
	if got, want := time.Duration(r.Sealed.Create.MaxAge), 30*24*time.Hour; got != want {
		t.Errorf("max_age = %v, want %v", got, want)
	}
	if got, want := r.Source.AfterSeal, config.AfterSealPurge; got != want {
		t.Errorf("after_seal = %v, want %v", got, want)
	}
	s := f.Keysvc.Scopes[0]
	if s.Reuse.Or(0) != 5*time.Minute || s.Stale.Open.Or(0) != 4*time.Hour {
		t.Errorf("times = %v, %v", s.Reuse, s.Stale.Open)
	}
	if got := f.Gateway.Identity.String(); got != "file:/run/keyweir/gateway.nk" {
		t.Errorf("identity = %s", got)
	}
	if got := f.Keysvc.Grants[2].Expires.Format(time.DateOnly); got != "2027-12-31" {
		t.Errorf("expires = %s", got)
	}
}

// TestDamagedExample damages the example in one place each and wants the error
// to name the place and the reason.
func TestDamagedExample(t *testing.T) {
	good, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, old, new string
		want           []string
	}{
		{"unknown key", "after_seal: purge", "after_seel: purge", []string{`unknown key "after_seel"; did you mean "after_seal"?`, "gateway.routes[0].source"}},
		{"unknown top key", "service: prod", "service: prod\ngatway: {}", []string{`unknown key "gatway"; did you mean "gateway"?`}},
		{"far unknown key", "record: auto", "banana: auto", []string{`unknown key "banana"`}},
		{"missing service", "service: prod", "", []string{"service: required"}},
		{"bad enum", "record: auto", "record: inlin", []string{`invalid value "inlin": use auto, inline or reference; did you mean "inline"?`}},
		{"bad duration", "reuse: 5m", "reuse: five", []string{`keysvc.scopes[0].reuse: invalid duration "five"`}},
		{"negative duration", "reuse: 5m", "reuse: -5m", []string{"negative duration"}},
		{"number as duration", "reuse: 5m", "reuse: 5", []string{`invalid duration "5"`}},
		{"long lease", "lease: 5m", "lease: 30d", []string{"lease: must be from 1s to 24h"}},
		{"budget", "reuse: 5m", "budget: {bytes: 65GiB}", []string{"64GiB"}},
		{"keys", "reuse: 5m", "keys: manged", []string{`did you mean "managed"?`}},
		{"signer", "store: /var", "directory: {signers: [X]}\n  store: /var", []string{"directory.signers[0]"}},
		{"null", "reuse: 5m", "reuse:", []string{"no value"}},
		{"twice", "record: auto", "record: auto\n      record: inline", []string{"record"}},
		{"list wanted", "subjects: [orders.>]", "subjects: orders.>", []string{"must be a list"}},
		{"section wanted", `landing: {url: "nats://127.0.0.1:4222"}`, `landing: "nats://127.0.0.1:4222"`, []string{"must be a section"}},
		{"anchor", "service: prod", "service: &a prod", []string{"anchors"}},
		{"unknown connection", "nats: landing", "nats: lnding", []string{`no connection "lnding" in the nats section; did you mean "landing"?`}},
		{"unknown authority", "authorities: [aws]", "authorities: [asw]", []string{`did you mean "aws"?`}},
		{"two authorities for single", "authorities: [aws]", "authorities: [aws, aws]", []string{"takes one authority, got 2"}},
		{"unknown principal", "to: billing", "to: biling", []string{`did you mean "billing"?`}},
		{"password in URL", "tls://hub.example.com:4222", "tls://u:hunter2@hub.example.com:4222", []string{"no user or password in a URL"}},
		{"scheme of URL", "tls://hub.example.com:4222", "http://hub.example.com:4222", []string{"nats, tls, ws or wss"}},
		{"reserved header", "[traceparent, tracestate]", "[NATS-msg-id]", []string{"cannot be passed"}},
		{"start", "start: first", "start: soon", []string{`invalid start "soon"`}},
		{"sealed subject", `"sealed.orders.>"`, "sealed.*.x", []string{"prefix without wildcards"}},
		{"no subjects", "subjects: [orders.>]", "subjects: []", []string{"at least one subject"}},
		{"window", "record: auto", "window: 100000", []string{"1 to 16384"}},
		{"bad pattern", "subjects: [orders.>]", `subjects: ["orders.>.x"]`, []string{"no subject pattern"}},
		{"partitions overlap", "subjects: [orders.>]", "subjects: [orders.>]\n        partitions: [[orders.>], [orders.eu.>]]", []string{"gateway.routes[0].source.partitions", `filter "orders.eu.>" overlaps "orders.>" of partition 0`}},
		{"partitions do not cover", "subjects: [orders.>]", "subjects: [orders.>]\n        partitions: [[orders.eu.>], [orders.us.>]]", []string{"gateway.routes[0].source.partitions", "no partition takes orders.eu"}},
		{"partition mark alone", "stream: SEALED_ORDERS", "stream: \"SEALED_{partition}\"", []string{"gateway.routes[0].sealed.stream", "the source has no partitions"}},
		{"shared without partitions", "subject: \"sealed.orders.>\"", "subject: \"sealed.>\"\n        shared: true", []string{"gateway.routes[0].sealed.shared", "no partitions to share"}},
		{"source is sealed", "stream: SEALED_ORDERS", "stream: ORDERS\n        # again", nil},
		{"sync interval", "subject: \"sealed.orders.>\"", "subject: \"sealed.>\"\n        sync_interval: never", []string{`sync_interval: invalid duration "never"`}},
		{"replicas", "replicas: 3", "replicas: 2", []string{"must be 1, 3 or 5"}},
		{"gateway key as pin", "pins: [N", "pins: [U", []string{"must be the public key of a service"}},
		{"scope in grant", `["tenant/*"], expires`, `["ten*t"], expires`, []string{"ending in *"}},
		{"listen", `"127.0.0.1:9464"`, `"9464"`, []string{"host:port"}},
		{"trace ratio", "# otlp: {endpoint: \"http://collector:4318\", trace_ratio: 0.01}", "otlp: {endpoint: \"http://collector:4318\", trace_ratio: 1.5}", []string{"from 0 to 1"}},
		{"core with a stream", "source: {nats: hub, subjects: [payments.>]}", "source: {nats: hub, stream: P, subjects: [payments.>]}", []string{"source.stream: not with ingest: core"}},
		{"core with after_seal", "source: {nats: hub, subjects: [payments.>]}", "source: {nats: hub, after_seal: purge, start: new, subjects: [payments.>]}", []string{"source.after_seal: not with ingest: core", "source.start: not with"}},
		{"core with an engine", "ingest: core", "ingest: core\n      engine: fast\n      window: 5", []string{"engine: not with ingest: core", "window: not with"}},
		{"core of everything", "subjects: [payments.>]", "subjects: [\">\"]", []string{"must begin with a word of your own"}},
		{"core queue", "queue_messages: 8192", "queue_messages: 2000000", []string{"1 to 1048576"}},
		{"core bytes", "queue_bytes: 64MiB", "queue_bytes: 64KiB", []string{"at least 1MiB"}},
		{"core wait", "key_wait: 2s", "key_wait: 2m", []string{"at most 1m"}},
		{"core keys without core", "ingest: core", "ingest: stream", []string{"queue_messages: only with ingest: core", "source.stream: required"}},
		{"unknown ingest", "ingest: core", "ingest: cor", []string{"ingest"}},
		{"core beside a relay", "stream: SEALED_PAYMENTS", "stream: SEALED_ORDERS", []string{"already written by routes[0]"}},
		{"dead letters wildcard", "stream: DEAD_LETTERS,", "stream: DEAD_LETTERS, subject: 'dead.*',", []string{"must have no wildcard"}},
		{"dead letters quarantine", "stream: DEAD_LETTERS,", "stream: DEAD_LETTERS, quarantine: 'a..b',", []string{"no subject pattern"}},
		{"dead letters in the sealed stream", "stream: DEAD_LETTERS,", "stream: SEALED_ORDERS,", []string{"is the sealed stream of routes[0]"}},
		{"dead letters replicas", "create: {replicas: 3}, refused", "create: {replicas: 2}, refused", []string{"must be 1, 3 or 5"}},
		{"refused", "refused: wait", "refused: drop", []string{"wait or park"}},
		{"reserved headers", "reserved_headers: drop", "reserved_headers: keep", []string{"drop or reject"}},
		{"passed status", "[traceparent, tracestate]", "[Status]", []string{"cannot be passed"}},
		{"no yaml", "service: prod", "service: [", []string{example + ":"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := strings.Replace(string(good), tt.old, tt.new, 1)
			if text == string(good) {
				t.Fatalf("%q does not stand in the example", tt.old)
			}
			_, err := config.Parse(example, []byte(text))
			if tt.want == nil {
				if err != nil {
					t.Fatalf("Parse: %v, want nil", err)
				}
				return
			}
			if err == nil {
				t.Fatal("Parse: nil, want an error")
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("Parse: %v\nwant %q in it", err, w)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("Parse: %v repeats the password", err)
			}
		})
	}
}

func TestPlace(t *testing.T) {
	_, err := config.Parse("f.yaml", []byte("service: a b\nnats:\n  hub: {url: nats://h}\ngateway:\n  identitty: env:X\n  routes: []\n"))
	if err == nil {
		t.Fatal("Parse: nil, want an error")
	}
	want := []string{`f.yaml:5:3: gateway: unknown key "identitty"; did you mean "identity"?`}
	if diff := cmp.Diff(want, texts(err)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	_, err = config.Parse("f.yaml", []byte("service: a b\nnats:\n  hub: {url: nats://h}\ngateway:\n  identity: env:X\n  keysvc: {nats: hub}\n  routes: []\n"))
	want = []string{
		`f.yaml:1:1: service: "a b" must be 1 to 64 letters, digits, - and _`,
		`f.yaml:6:3: gateway.keysvc.pins: at least one public key of the service is required`,
		`f.yaml:7:3: gateway.routes: at least one route is required`,
	}
	if diff := cmp.Diff(want, texts(err)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func texts(err error) []string {
	var out []string
	for _, p := range config.Problems(err) {
		out = append(out, p.Error())
	}
	return out
}

func TestSecretInline(t *testing.T) {
	seed := newSeed(t, nkeys.PrefixByteUser)
	for _, key := range []string{"creds", "nkey", "token"} {
		_, err := config.Parse("f.yaml", fmt.Appendf(nil, "service: a\nnats:\n  hub: {url: nats://h, %s: %s}\n", key, seed))
		if err == nil || !strings.Contains(err.Error(), "must be a reference") {
			t.Errorf("%s: %v, want a refusal", key, err)
		}
		if err != nil && strings.Contains(err.Error(), seed) {
			t.Errorf("%s: the error repeats the secret", key)
		}
	}
}

func TestSizes(t *testing.T) {
	for in, want := range map[string]config.Size{"0": 0, "4096": 4096, "64KiB": 64 << 10, "2 GiB": 2 << 30, "10GB": 10e9, "3B": 3} {
		var z config.Size
		if err := z.UnmarshalText([]byte(in)); err != nil || z != want {
			t.Errorf("Size(%q) = %d, %v, want %d", in, z, err, want)
		}
	}
	for _, in := range []string{"", "-1", "1.5GiB", "KiB", "9999999TiB", "1kb"} {
		var z config.Size
		if err := z.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("Size(%q) = %d, want an error", in, z)
		}
	}
}

// TestIdentityIsConnectionKey: a NATS server makes a client sign any nonce, so an
// identity that is a connection key as well is refused, wherever that stands.
func TestIdentityIsConnectionKey(t *testing.T) {
	dir := t.TempDir()
	same, other := newSeed(t, nkeys.PrefixByteUser), newSeed(t, nkeys.PrefixByteUser)
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	creds := func(seed string) string {
		return "-----BEGIN NATS USER JWT-----\neyJ0\n------END NATS USER JWT------\n\n" +
			"-----BEGIN USER NKEY SEED-----\n" + seed + "\n------END USER NKEY SEED------\n"
	}
	t.Setenv("KW_TEST_SEED", same)
	context := func(seed string) string {
		return write("ctx.json", fmt.Sprintf(`{"url":"nats://h","nkey":%q}`, write("c.nk", seed)))
	}
	tests := []struct {
		name, conn string
		refused    bool
	}{
		{"nkey", "url: nats://h, nkey: file:" + write("same.nk", same+"\n"), true},
		{"creds", "url: nats://h, creds: file:" + write("same.creds", creds(same)), true},
		{"other nkey", "url: nats://h, nkey: file:" + write("other.nk", other), false},
		{"other creds", "url: nats://h, creds: file:" + write("other.creds", creds(other)), false},
		{"context", "context: " + context(same), true},
		{"missing", "url: nats://h, creds: file:" + filepath.Join(dir, "nothing"), true},
	}
	pins := newPublic(t, nkeys.PrefixByteServer)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := config.Parse("f.yaml", fmt.Appendf(nil, `
service: a
gateway:
  identity: env:KW_TEST_SEED
  keysvc: {nats: hub, pins: [%s]}
  routes:
    - {name: r, source: {nats: hub, stream: A, subjects: [a], after_seal: keep, start: first}, sealed: {nats: hub, stream: B, subject: "s.>"}}
nats:
  hub: {%s}
`, pins, tt.conn))
			if err != nil {
				t.Fatal(err)
			}
			err = f.CheckSecrets()
			if (err != nil) != tt.refused {
				t.Errorf("CheckSecrets: %v, want refused = %v", err, tt.refused)
			}
			if err != nil && !strings.Contains(err.Error(), "nats.hub") {
				t.Errorf("CheckSecrets: %v, want the place", err)
			}
			if err != nil && strings.Contains(err.Error(), same) {
				t.Error("CheckSecrets: the error repeats the seed")
			}
		})
	}
}

func newSeed(t *testing.T, kind nkeys.PrefixByte) string {
	t.Helper()
	kp, err := nkeys.CreatePair(kind)
	if err != nil {
		t.Fatal(err)
	}
	seed, err := kp.Seed()
	if err != nil {
		t.Fatal(err)
	}
	return string(seed)
}

func newPublic(t *testing.T, kind nkeys.PrefixByte) string {
	t.Helper()
	kp, err := nkeys.CreatePair(kind)
	if err != nil {
		t.Fatal(err)
	}
	p, err := kp.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestSchema wants a description for every key, since the schema is the manual.
func TestSchema(t *testing.T) {
	b, err := config.Schema()
	if err != nil {
		t.Fatal(err)
	}
	var root map[string]any
	if err := json.Unmarshal(b, &root); err != nil {
		t.Fatal(err)
	}
	var n int
	var walk func(path string, m map[string]any)
	walk = func(path string, m map[string]any) {
		props, _ := m["properties"].(map[string]any)
		for name, p := range props {
			n++
			p := p.(map[string]any)
			if p["description"] == nil {
				t.Errorf("%s.%s has no description", path, name)
			}
			walk(path+"."+name, p)
		}
		for _, k := range []string{"items", "additionalProperties"} {
			if sub, ok := m[k].(map[string]any); ok {
				walk(path+"[]", sub)
			}
		}
	}
	walk("", root)
	if n < 60 {
		t.Errorf("%d keys, want all of them", n)
	}
	if diff := cmp.Diff([]any{"service"}, root["required"]); diff != "" {
		t.Errorf("required (-want +got):\n%s", diff)
	}
}

func FuzzParse(f *testing.F) {
	good, err := os.ReadFile(example)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("service: &a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := config.Parse("f", data)
		if (file == nil) == (err == nil) {
			t.Fatalf("Parse = %v, %v", file, err)
		}
	})
}

func TestContext(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	t.Setenv("HOME", dir)
	contexts := filepath.Join(dir, "nats", "context")
	if err := os.MkdirAll(contexts, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"good.json": `{"url":"nats://h","creds":"~/x.creds","color_scheme":"blue"}`,
		"bad.json":  `{`, "nsc.json": `{"nsc":"nsc://a/b"}`, "domain.json": `{"jetstream_domain":"d"}`,
	} {
		if err := os.WriteFile(filepath.Join(contexts, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := config.LoadContext("good")
	if err != nil {
		t.Fatal(err)
	}
	if c.URL != "nats://h" || c.Creds != filepath.Join(dir, "x.creds") {
		t.Errorf("context = %+v", *c)
	}
	if _, err := config.LoadContext(filepath.Join(contexts, "good.json")); err != nil {
		t.Errorf("by path: %v", err)
	}
	if _, err := config.LoadContext(""); err == nil {
		t.Error("a context is selected, want none")
	}
	if err := os.WriteFile(filepath.Join(dir, "nats", "context.txt"), []byte("good\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.LoadContext(""); err != nil {
		t.Errorf("selected: %v", err)
	}
	for _, name := range []string{"bad", "nsc", "domain", "none", ".."} {
		if c, err := config.LoadContext(name); err == nil {
			t.Errorf("LoadContext(%s) = %+v, want an error", name, *c)
		}
	}
}

func TestPartitions(t *testing.T) {
	good, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "keyweir.yaml")
	text := strings.Replace(string(good), "subjects: [orders.>]", "partitions: [[orders.eu.>], [orders.us.>, orders.asia.>]]", 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	r := f.Gateway.Routes[0]
	if d := cmp.Diff([]string{"SEALED_ORDERS-0", "SEALED_ORDERS-1"}, r.SealedStreams()); d != "" {
		t.Errorf("sealed streams: %s", d)
	}
	if d := cmp.Diff([][]string{{"orders.eu.>"}, {"orders.us.>", "orders.asia.>"}}, r.Source.Partitions); d != "" {
		t.Errorf("partitions: %s", d)
	}
}
