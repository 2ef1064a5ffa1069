package bench_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/keyweir/keyweir/bench"
)

func TestSeal(t *testing.T) {
	var done []int
	report, err := bench.Seal(t.Context(), bench.SealConfig{
		Sizes: []int{0, 64, 1 << 10}, Time: time.Millisecond, Progress: func(n, total int) { done = append(done, n*10+total) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int{13, 23, 33}, done); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
	for i, n := range []int{0, 64, 1 << 10} {
		r := report[i]
		if r.Size != n || r.FloorNs <= 0 || r.SealNs <= 0 || r.OpenNs <= 0 {
			t.Errorf("size %d: %+v", n, r)
		}
		if !cmp.Equal(r.SealRatio, r.SealNs/r.FloorNs, cmpopts.EquateApprox(1e-9, 0)) {
			t.Errorf("size %d: seal_ratio = %v, want %v", n, r.SealRatio, r.SealNs/r.FloorNs)
		}
		if r.SealAllocs != 0 || r.OpenAllocs != 0 {
			t.Errorf("size %d: %d allocations to seal, %d to open, want 0", n, r.SealAllocs, r.OpenAllocs)
		}
		if r.OverheadBytes != report[0].OverheadBytes || r.OverheadBytes < 100 || r.OverheadBytes > 250 {
			t.Errorf("size %d: overhead = %d", n, r.OverheadBytes)
		}
	}
	if s := report.String(); strings.Count(s, "\n") != 4 || !strings.Contains(s, "1024 B") {
		t.Errorf("table:\n%s", s)
	}
	b, err := json.Marshal(report[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"floor_ns", "seal_ns", "open_ns", "seal_ratio", "open_ratio", "seal_allocs", "open_allocs", "overhead_bytes"} {
		if !strings.Contains(string(b), `"`+k+`":`) {
			t.Errorf("no %q in %s", k, b)
		}
	}
}

func TestSealRefuses(t *testing.T) {
	for _, c := range []bench.SealConfig{{Time: -1}, {Sizes: []int{-1}}, {Sizes: []int{1 << 40}}, {Sizes: []int{1}, PadTo: 1 << 20}} {
		if r, err := bench.Seal(t.Context(), c); err == nil || r != nil {
			t.Errorf("Seal(%+v) = %v, %v, want an error", c, r, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := bench.Seal(ctx, bench.SealConfig{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Seal = %v, want canceled", err)
	}
}
