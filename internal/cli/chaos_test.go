package cli_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/keyweir/keyweir/bench"
)

// TestChaos kills and freezes real gateway and server processes while they relay,
// and wants every message in the sealed stream once, in order and readable.
// KEYWEIR_CHAOS=full is the long version.
func TestChaos(t *testing.T) {
	t.Parallel() // waits for most of its time
	cfg := bench.ChaosConfig{Messages: 6000, Subjects: 32, Kills: 3, Zombies: 1, ServerKills: 2}
	switch {
	case os.Getenv("KEYWEIR_CHAOS") == "full":
		cfg.Messages, cfg.Kills, cfg.Zombies, cfg.ServerKills = 60_000, 30, 10, 5
	case testing.Short():
		cfg.Messages, cfg.Kills, cfg.Zombies, cfg.ServerKills = 1500, 1, 0, 1
	}
	chaos(t, cfg)
}

// TestChaosEngines is the long version for the engines that are not chosen there.
func TestChaosEngines(t *testing.T) {
	if os.Getenv("KEYWEIR_CHAOS") != "full" {
		t.Skip("kills processes for minutes: only with KEYWEIR_CHAOS=full")
	}
	for _, engine := range []string{"async", "fast"} {
		t.Run(engine, func(t *testing.T) {
			chaos(t, bench.ChaosConfig{Messages: 60_000, Kills: 30, Zombies: 10, Engine: engine})
		})
	}
}

// TestChaosCluster kills the leaders of a cluster.
func TestChaosCluster(t *testing.T) {
	if os.Getenv("KEYWEIR_CHAOS") != "full" {
		t.Skip("kills the leaders of a cluster for minutes: only with KEYWEIR_CHAOS=full")
	}
	chaos(t, bench.ChaosConfig{Messages: 60_000, Kills: 10, Zombies: 3, Servers: 3, ServerKills: 10})
}

// TestChaosDenied has the key service refuse scopes for a while, and gateways killed
// while they hold and release the messages of these.
func TestChaosDenied(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for keys to end and to be asked for again: not with -short")
	}
	t.Parallel() // waits for most of its time
	cfg := bench.ChaosConfig{Scopes: 8, Deny: 1, DenyFor: 2 * time.Second, Rate: 400, Kills: 2, Zombies: 1}
	if os.Getenv("KEYWEIR_CHAOS") == "full" {
		cfg.Scopes, cfg.Deny, cfg.DenyFor, cfg.Kills, cfg.Zombies = 50, 2, time.Minute, 8, 3
	}
	r := chaos(t, cfg)
	if r.DeniedSeconds < cfg.DenyFor.Seconds() || r.HeldMax == 0 || r.DrainSeconds == 0 {
		t.Errorf("denied for %v s, %d held, released within %v s", r.DeniedSeconds, r.HeldMax, r.DrainSeconds)
	}
	if r.KillsWhileHeld == 0 || r.KillsWhileReleasing == 0 {
		t.Errorf("%d kills while messages were held, %d while they were released", r.KillsWhileHeld, r.KillsWhileReleasing)
	}
	if r.OthersPublished == 0 || r.OthersSealed < r.OthersPublished {
		t.Errorf("%d messages of other scopes were published during the denial, %d sealed", r.OthersPublished, r.OthersSealed)
	}
}

func chaos(t *testing.T, cfg bench.ChaosConfig) *bench.ChaosReport {
	t.Helper()
	keyweir, err := exec.LookPath("keyweir") // this test binary, see TestMain
	if err != nil {
		t.Fatal(err)
	}
	cfg.Command, cfg.Dir, cfg.Log = []string{keyweir}, t.TempDir(), testWriter{t}
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
	return r
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b[:len(b)-1])
	return len(b), nil
}
