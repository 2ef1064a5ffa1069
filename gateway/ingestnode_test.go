package gateway_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyweir/keyweir/gateway"
)

// nodeClient returns a directory with publish.js and what it needs: what .ci/run
// installed, or else an installation of its own.
func nodeClient(ctx context.Context, t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("KEYWEIR_NODE_DIR"); dir != "" {
		if _, err := os.Stat(filepath.Join(dir, "node_modules", "@nats-io", "jetstream")); err != nil {
			t.Skipf("KEYWEIR_NODE_DIR does not hold the NATS client for Node: %v", err)
		}
		return dir
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		t.Skipf("npm is not installed: %v", err)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "node"))); err != nil {
		t.Fatal(err)
	}
	install := exec.CommandContext(ctx, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=0")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Skipf("the NATS client for Node cannot be installed here: %v\n%s", err, out)
	}
	return dir
}

// TestIngestNode publishes with the NATS client for Node, unmodified.
func TestIngestNode(t *testing.T) {
	t.Parallel()
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skipf("node is not installed: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	dir := nodeClient(ctx, t)
	f, _ := newIngest(t)
	run := f.startIngest()
	cmd := exec.CommandContext(ctx, node, "publish.js", f.srv.ClientURL())
	cmd.Dir = dir
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("publishing from node: %v\n%s", err, stderr.String())
	}
	var got struct {
		Acks      [][2]any
		Duplicate bool
		Refused   *struct {
			Code    int
			Message string
		}
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("output %q: %v", out, err)
	}
	stored := f.open()
	if len(got.Acks) != 200 || len(stored) != 200 {
		t.Fatalf("%d acknowledgements, %d sealed messages, want 200 each", len(got.Acks), len(stored))
	}
	seen := make(map[uint64]bool)
	for _, a := range got.Acks {
		seq, ok := a[1].(float64)
		if a[0] != sealed || !ok || seen[uint64(seq)] {
			t.Errorf("acknowledgement %v", a)
		}
		seen[uint64(seq)] = true
	}
	for _, o := range stored {
		if !seen[o.seq] || !strings.HasPrefix(o.payload, "published by node ") {
			t.Errorf("sealed message %d is %q", o.seq, o.payload)
		}
	}
	if !got.Duplicate {
		t.Error("the repeated message is not a duplicate")
	}
	if got.Refused == nil || got.Refused.Code != gateway.RefusalCode+int(gateway.RefusedHeader) || !strings.Contains(got.Refused.Message, "keyweir") {
		t.Errorf("the condition that is not granted: %+v", got.Refused)
	}
	if s := run.stats().Ingest; s.Published != 201 || s.Refused[gateway.RefusedHeader] != 1 {
		t.Errorf("stats %+v", s)
	}
}
