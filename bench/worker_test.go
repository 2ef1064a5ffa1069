package bench

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A worker answers every order, refuses what is not the benchmark's, and ends with
// its input.
func TestWorker(t *testing.T) {
	dir := t.TempDir()
	server := `{"op":"start","server":{"Name":"t","Listen":"127.0.0.1:0","Store":"` + t.TempDir() + `"}}`
	tests := []struct{ name, order, want string }{
		{"usage", `{"op":"usage"}`, ""},
		{"profile", `{"op":"profile","file":"` + filepath.Join(dir, "p") + `"}`, ""},
		{"profile ends", `{"op":"profile"}`, ""},
		{"profile over another", `{"op":"profile","file":"` + filepath.Join(dir, "p") + `"}`, "creating profile"},
		{"unknown", `{"op":"dance"}`, `unknown order "dance"`},
		{"no server", `{"op":"start"}`, "no server"},
		{"nothing to stop", `{"op":"stop"}`, "no relay"},
		{"nothing to relay", `{"op":"relay"}`, "nothing to do"},
		{"stream of others", `{"op":"relay","relay":{"Source":"ORDERS","Sealed":"KEYWEIR_BENCH_1"}}`, "not the streams of a benchmark"},
		{"copy of others", `{"op":"relay","relay":{"Source":"KEYWEIR_BENCH_SOURCE","Sealed":"SEALED"}}`, "not the streams of a benchmark"},
		{"bad engine", `{"op":"relay","relay":{"Source":"KEYWEIR_BENCH_SOURCE","Sealed":"KEYWEIR_BENCH_1","Engine":"slow"}}`, "engine"},
		{"server", server, ""},
		{"server again", server, "one already"},
		{"plain into a sealed stream", `{"op":"relay","relay":{"Source":"KEYWEIR_BENCH_SOURCE","Sealed":"KEYWEIR_BENCH_1","Plain":true}}`, "unsealed"},
	}
	var in strings.Builder
	for _, tt := range tests {
		in.WriteString(tt.order + "\n")
	}
	var out bytes.Buffer
	if err := Worker(t.Context(), strings.NewReader(in.String()), &out, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatalf("Worker = %v", err)
	}
	answers := json.NewDecoder(&out)
	for _, tt := range tests {
		var a workerAnswer
		if err := answers.Decode(&a); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if (a.Error != "") != (tt.want != "") || !strings.Contains(a.Error, tt.want) {
			t.Errorf("%s: error %q, want %q", tt.name, a.Error, tt.want)
		}
		if tt.name == "usage" && a.CPU <= 0 {
			t.Errorf("usage = %v", a.CPU)
		}
	}
	if err := Worker(t.Context(), strings.NewReader("{"), io.Discard, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("Worker = nil for broken orders")
	}
	if info, err := os.Stat(filepath.Join(dir, "p")); err != nil || info.Size() == 0 {
		t.Errorf("the profile is empty or missing: %v", err)
	}
}
