package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nkeys"

	"github.com/keyweir/keyweir/internal/config"
)

// TestDamagedUnseal damages the unseal section of the example in one place each.
func TestDamagedUnseal(t *testing.T) {
	good, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(good), "\nunseal:\n")
	if at < 0 {
		t.Fatal("the example has no unseal section")
	}
	tests := []struct{ name, old, new, want string }{
		{"identity of the gateway", "file:/run/keyweir/unseal.nk", "file:/run/keyweir/gateway.nk", "who seals and who opens are two principals"},
		{"no identity", "identity: file:/run/keyweir/unseal.nk", "claim_ttl: 5s", "unseal.identity: required"},
		{"short claim", "profile:", "claim_ttl: 10ms\n  profile:", "unseal.claim_ttl: at least 1s"},
		{"no profile", "profile: /etc/keyweir/unseal.json", "profile: ''", "unseal.profile: must be a text"},
		{"unknown connection", "nats: legacy", "nats: legasy", `no connection "legasy" in the nats section; did you mean "legacy"?`},
		{"dotted name", "name: legacy", "name: leg.acy", "unseal.routes[0].name"},
		{"long name", "name: legacy", "name: " + strings.Repeat("a", 58), "unseal.routes[0].name: at most 57 characters"},
		{"no start", "start: first", "start: ''", "unseal.routes[0].sealed.start: must be a text"},
		{"bad start", "start: first", "start: sometime", `invalid start "sometime"`},
		{"no plain subjects", `subjects: ["orders.>"]`, "subjects: []", "unseal.routes[0].plain.subjects: at least one subject"},
		{"bad plain subject", `subjects: ["orders.>"]`, `subjects: ["orders.>.x"]`, "unseal.routes[0].plain.subjects[0]"},
		{"bad sealed subject", `"sealed.orders.>"`, `"sealed..>"`, "unseal.routes[0].sealed.subjects[0]"},
		{"prefix", "stream: ORDERS\n", "stream: ORDERS\n        prefix: clear\n", "must be without wildcards and end in a dot"},
		{"replicas", "{storage: memory}", "{replicas: 2}", "unseal.routes[0].plain.create.replicas: must be 1, 3 or 5"},
		{"policy", "on_undecryptable: stop", "on_undecryptable: skip", `invalid value "skip": use stop or park`},
		{"park without a place", "on_undecryptable: stop", "on_undecryptable: park", "unseal.routes[0].park: required"},
		{"place without park", "on_undecryptable: stop", "park: {stream: P, subject: p}", "has no effect without on_undecryptable: park"},
		{"park with wildcard", "on_undecryptable: stop", "on_undecryptable: park\n      park: {stream: P, subject: p.>}", "unseal.routes[0].park.subject"},
		{"window", "on_undecryptable: stop", "window: 20000", "unseal.routes[0].window: must be from 1 to 16384"},
		{"into the sealed stream", "nats: legacy\n        stream: ORDERS", "nats: hub\n        stream: SEALED_ORDERS", "is the sealed stream as well"},
		{"cycle by stream", "nats: legacy\n        stream: ORDERS", "nats: landing\n        prefix: other.\n        stream: ORDERS", "a cycle of routes"},
		{"cycle by subject", "nats: legacy\n        stream: ORDERS", "nats: landing\n        stream: OTHER", "gateway.routes[0] seals what would be stored here"},
		{"cycle through core ingest", "nats: legacy\n        stream: ORDERS\n        # Origin subjects that may come out.\n        subjects: [\"orders.>\"]", "nats: hub\n        stream: OTHER\n        subjects: [payments.eu.>]", "gateway.routes[1] seals what would be stored here"},
		{"no cycle behind a prefix", "nats: legacy\n        stream: ORDERS", "nats: landing\n        prefix: clear.\n        stream: OTHER", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			section := strings.Replace(string(good[at:]), tt.old, tt.new, 1)
			if section == string(good[at:]) {
				t.Fatalf("%q does not stand in the section", tt.old)
			}
			_, err := config.Parse(example, append(good[:at:at], section...))
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("Parse = %v, want %q", err, tt.want)
			}
		})
	}
}

// TestUnsealSecrets: the identity of unsealing belongs to one host, and may be no
// other's.
func TestUnsealSecrets(t *testing.T) {
	dir := t.TempDir()
	seed := func(name string, kind nkeys.PrefixByte) {
		t.Helper()
		kp, err := nkeys.CreatePair(kind)
		if err != nil {
			t.Fatal(err)
		}
		b, err := kp.Seed()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	good, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(strings.ReplaceAll(string(good), "/run/keyweir/", dir+"/"), "creds: file:"+dir+"/hub.creds", "")
	f, err := config.Parse(example, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	seed("gateway.nk", nkeys.PrefixByteUser)
	seed("keysvc.nk", nkeys.PrefixByteServer)
	if err := f.CheckSecrets(); err != nil {
		t.Errorf("CheckSecrets on the host of a gateway = %v", err)
	}
	seed("unseal.nk", nkeys.PrefixByteUser)
	if err := f.CheckSecrets(); err != nil {
		t.Errorf("CheckSecrets = %v", err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "gateway.nk"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "unseal.nk"), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := f.CheckSecrets(); err == nil || !strings.Contains(err.Error(), "unseal.identity: is the same key as gateway.identity") {
		t.Errorf("CheckSecrets with one key for both = %v", err)
	}
	only := *f
	only.Gateway, only.Keysvc = nil, nil
	if err := os.Remove(filepath.Join(dir, "unseal.nk")); err != nil {
		t.Fatal(err)
	}
	if err := only.CheckSecrets(); err == nil || !strings.Contains(err.Error(), "unseal.identity: reading secret") {
		t.Errorf("CheckSecrets without the identity = %v", err)
	}
}
