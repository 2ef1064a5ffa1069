package config_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keyweir/keyweir/internal/config"
)

func TestHold(t *testing.T) {
	raw, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	const letters = "      dead_letters: {stream: DEAD_LETTERS, create: {replicas: 3}, refused: wait}\n"
	const hold = "on_scope_unavailable: hold"
	base := strings.NewReplacer("on_scope_unavailable: stop", hold, "      # hold:", "      hold:", letters, "").Replace(string(raw))
	load := func(old, new string) (*config.File, error) {
		if !strings.Contains(base, old) {
			t.Fatalf("the example lacks %q", old)
		}
		path := filepath.Join(t.TempDir(), "keyweir.yaml")
		if err := os.WriteFile(path, []byte(strings.Replace(base, old, new, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		return config.Load(path)
	}
	f, err := load(hold, hold)
	if err != nil {
		t.Fatal(err)
	}
	if r := f.Gateway.Routes[0]; r.OnScopeUnavailable != config.HoldScopes || r.Hold == nil || r.Hold.Create.Replicas != 3 {
		t.Errorf("route = %+v", r)
	}
	// All of it together, with a hold stream for each partition.
	f, err = load("subjects: [orders.>]", "partitions: [[orders.eu.>], [orders.us.>]]")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := f.Gateway.Routes[0].HoldStreams(), []string{"SEALED_ORDERS_HOLD-0", "SEALED_ORDERS_HOLD-1"}; !slices.Equal(got, want) {
		t.Errorf("hold streams %v, want %v", got, want)
	}
	base = strings.Replace(base, "reserved_headers: drop", "reserved_headers: reject", 1)
	if _, err := load("      "+hold, letters+"      "+hold); err != nil {
		t.Errorf("with dead letters: %v", err)
	}
	for name, c := range map[string]struct{ old, new, want string }{
		"hold without saying so": {hold, "on_scope_unavailable: stop", "needs on_scope_unavailable: hold"},
		"sealed stream":          {"hold: {create: {replicas: 3}}", "hold: {stream: SEALED_ORDERS}", "is a sealed stream as well"},
		"replicas":               {"hold: {create: {replicas: 3}}", "hold: {create: {replicas: 2}}", "must be 1, 3 or 5"},
		"engine":                 {"engine: auto", "engine: async", "needs the engine durable"},
		"number":                 {"hold: {create: {replicas: 3}}", "hold: {stream: 'H{partition}'}", "the source has no partitions"},
		"dead letters":           {"      " + hold, strings.Replace(letters, "DEAD_LETTERS", "SEALED_ORDERS_HOLD", 1) + "      " + hold, "is the hold stream as well"},
	} {
		if _, err := load(c.old, c.new); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
