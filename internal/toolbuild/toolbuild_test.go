package toolbuild

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestBuildConcurrently(t *testing.T) {
	paths := make([]string, 4)
	errs := make([]error, len(paths))
	var wg sync.WaitGroup
	for i := range paths {
		wg.Go(func() { paths[i], errs[i] = build(t.Context(), "local-kms") })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil && os.Getenv("CI") == "" {
			t.Skipf("local-kms cannot be built here: %v", err)
		}
		if err != nil || paths[i] != paths[0] {
			t.Fatalf("build %d = %q, %v, want %q", i, paths[i], err, paths[0])
		}
	}
	if !usable(paths[0]) || !strings.Contains(paths[0], "local-kms@v0.0.0-20231025161602-e4d9425700fe-") {
		t.Errorf("binary %q is not usable or not keyed by its version", paths[0])
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(paths[0]), "build-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestEveryToolIsPinned(t *testing.T) {
	dir, err := toolsDir()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for name, tl := range tools {
		key, err := cacheKey(dir, name, tl)
		if err != nil || seen[key] {
			t.Errorf("cacheKey(%s) = %q, %v", name, key, err)
		}
		seen[key] = true
	}
}

func TestCacheKeyFollowsTheModuleGraph(t *testing.T) {
	dir := t.TempDir()
	tl := tool{"example.org/x", "example.org/x"}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module m\n\nrequire (\n\texample.org/xyz v9.9.9\n\texample.org/x v1.2.3 // indirect\n)\n")
	write("go.sum", "a\n")
	first, err := cacheKey(dir, "x", tl)
	if err != nil || !strings.HasPrefix(first, "x@v1.2.3-") {
		t.Fatalf("cacheKey = %q, %v", first, err)
	}
	write("go.sum", "b\n")
	second, err := cacheKey(dir, "x", tl)
	if err != nil || second == first {
		t.Errorf("cacheKey after a change of go.sum = %q, %v, want another than %q", second, err, first)
	}
	write("go.mod", "module m\n\nrequire example.org/x v1.2.4\n")
	third, err := cacheKey(dir, "x", tl)
	if err != nil || !strings.HasPrefix(third, "x@v1.2.4-") {
		t.Errorf("cacheKey = %q, %v", third, err)
	}
	if _, err := cacheKey(dir, "y", tool{"example.org/y", "example.org/y"}); err == nil {
		t.Error("a tool the module does not require got a key")
	}
}

func TestCompileReportsTheReason(t *testing.T) {
	if _, err := exec.LookPath(goCommand()); err != nil {
		t.Fatalf("no go command: %v", err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module m\n\ngo 1.26\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	dst := filepath.Join(dir, "cache", "x")
	if err := os.Mkdir(filepath.Dir(dst), 0o700); err != nil {
		t.Fatal(err)
	}
	err := compile(t.Context(), dir, "m/absent", dst)
	if err == nil || !strings.Contains(err.Error(), "m/absent") {
		t.Errorf("compile of a missing package = %v", err)
	}
	if usable(dst) {
		t.Error("a failed build left a binary")
	}
	if _, err := build(t.Context(), "no-such-tool"); err == nil {
		t.Error("an unknown tool was built")
	}
}
