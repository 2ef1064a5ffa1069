package config_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/keyweir/keyweir/internal/config"
)

// TestShared: partitions may share a sealed stream, under conditions.
func TestShared(t *testing.T) {
	good, err := os.ReadFile("../../keyweir.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(good), "subjects: [orders.>]", "partitions: [[orders.eu.>], [orders.us.>]]", 1)
	text = strings.Replace(text, "subject: \"sealed.orders.>\"", "subject: \"sealed.>\"\n        shared: true", 1)

	f, err := config.Parse("f.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if got := f.Gateway.Routes[0].SealedStreams(); fmt.Sprint(got) != "[SEALED_ORDERS]" || !f.Gateway.Routes[0].Sealed.Shared {
		t.Errorf("sealed streams %v", got)
	}
	many := make([]string, 33)
	for i := range many {
		many[i] = fmt.Sprintf("[orders.%d.>]", i)
	}
	for name, c := range map[string]struct{ from, to, want string }{
		"engine":      {"engine: auto", "engine: fast", "does not go together with sealed.shared"},
		"hold":        {"on_scope_unavailable: stop", "on_scope_unavailable: hold", "hold does not go together with sealed.shared"},
		"mark":        {"stream: SEALED_ORDERS", "stream: \"S-{partition}\"", "the partitions share one stream"},
		"33":          {"[[orders.eu.>], [orders.us.>]]", "[" + strings.Join(many, ", ") + "]", "at most 32 share"},
		"checkpoints": {"subject: \"sealed.>\"", "subject: \"keyweir.checkpoint.>\"", "overlaps the subjects of checkpoints"},
	} {
		bad := strings.Replace(text, c.from, c.to, 1)
		if bad == text {
			t.Fatalf("%s: nothing to replace", name)
		}
		if _, err := config.Parse("f.yaml", []byte(bad)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
