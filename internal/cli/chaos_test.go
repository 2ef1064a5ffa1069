package cli_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"testing"

	"github.com/keyweir/keyweir/bench"
)

// TestChaos kills and freezes real gateway processes while they relay, and wants
// every message in the sealed stream once, in order and readable. KEYWEIR_CHAOS=full
// is the long version.
func TestChaos(t *testing.T) {
	if testing.Short() && os.Getenv("KEYWEIR_CHAOS") == "" {
		t.Skip("kills processes for some 20 seconds: left out by -short")
	}
	keyweir, err := exec.LookPath("keyweir") // this test binary, see TestMain
	if err != nil {
		t.Fatal(err)
	}
	cfg := bench.ChaosConfig{
		Command: []string{keyweir}, Messages: 8000, Subjects: 32, Kills: 6, Zombies: 2, Dir: t.TempDir(), Log: testWriter{t},
	}
	if os.Getenv("KEYWEIR_CHAOS") == "full" {
		cfg.Messages, cfg.Kills, cfg.Zombies = 60_000, 30, 10
	}
	r, err := bench.Chaos(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", b)
	if !r.OK() {
		t.Errorf("seed %d: something was lost, doubled, reordered or damaged", r.Seed)
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b[:len(b)-1])
	return len(b), nil
}
