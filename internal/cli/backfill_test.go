//go:build unix

package cli_test

import (
	"encoding/json"
	"testing"
)

// TestBackfill seals the history of a stream, killed again and again on the way,
// and then purges exactly that from the source.
func TestBackfill(t *testing.T) {
	t.Parallel()
	n, kills, later := 200_000, 5, 500
	if testing.Short() {
		n, kills = 6_000, 2
	}
	f := newFleet(t)
	f.stream("orders")
	f.configure(route("orders", "after_seal: keep", ""))
	if err := f.publish("orders", 1, n); err != nil {
		t.Fatal(err)
	}
	for i := range kills {
		g := f.gateway()
		f.sealed("orders", (i+1)*n/(kills+1))
		g.kill()
	}
	g := f.gateway()
	f.sealed("orders", n)
	f.stop(g)
	if got := f.state("ORDERS").Msgs; got != uint64(n) {
		t.Errorf("%d source messages while the route keeps them, want %d", got, n)
	}
	if err := f.publish("orders", n+1, n+later); err != nil {
		t.Fatal(err)
	}

	type result struct {
		Position, Messages, Young uint64
		UpTo                      uint64 `json:"up_to"`
		Purged                    bool
	}
	want := result{Position: uint64(n), Messages: uint64(n), UpTo: uint64(n)}
	for _, args := range [][]string{{"--dry-run"}, {}} {
		var got result
		out := f.keyweir(append([]string{"purge", "orders", "--config", f.config(), "--json"}, args...)...)
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		if want.Purged = len(args) == 0; got != want {
			t.Errorf("purge %v: %+v, want %+v", args, got, want)
		}
		left := uint64(later)
		if !want.Purged {
			left += uint64(n)
		}
		if got := f.state("ORDERS").Msgs; got != left {
			t.Errorf("%d source messages after purge %v, want %d", got, args, left)
		}
	}
	if s := f.state("ORDERS"); s.FirstSeq != uint64(n+1) || s.LastSeq != uint64(n+later) {
		t.Errorf("source messages %d to %d are left, want what came later", s.FirstSeq, s.LastSeq)
	}
	f.verify("orders", n)

	// The route goes on with what is left.
	g = f.gateway()
	f.sealed("orders", n+later)
	f.stop(g)
	f.verify("orders", n+later)
}
