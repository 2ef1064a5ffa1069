package config_test

import (
	"os"
	"path/filepath"
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
	for name, c := range map[string]struct{ old, new, want string }{
		"hold without saying so": {hold, "on_scope_unavailable: stop", "needs on_scope_unavailable: hold"},
		"sealed stream":          {"hold: {create: {replicas: 3}}", "hold: {stream: SEALED_ORDERS}", "is the sealed stream as well"},
		"replicas":               {"hold: {create: {replicas: 3}}", "hold: {create: {replicas: 2}}", "must be 1, 3 or 5"},
		"engine":                 {"engine: auto", "engine: async", "needs the engine durable"},
		"partitions":             {"subjects: [orders.>]", "partitions: [[orders.eu.>], [orders.us.>]]", "do not go together"},
		"dead letters":           {"      " + hold, letters + "      " + hold, "does not go together with dead_letters"},
	} {
		if _, err := load(c.old, c.new); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
