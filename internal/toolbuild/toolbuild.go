// Package toolbuild builds the pinned tools that tests start as real processes.
//
// [Build] compiles a tool out of the tools module the first time and keeps the
// binary in a cache of the user, so that "go test ./..." needs nothing but Go:
//
//	bin := toolbuild.Build(t, "local-kms")
//	cmd := exec.Command(bin)
//
// The cache is keyed by the tool's version, the locked module graph, the Go
// version and the platform; binaries appear in it by rename, and one process
// builds while the others wait.
package toolbuild

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// module of the repository; its root holds the tools module.
const module = "github.com/keyweir/keyweir"

// buildTimeout bounds one compilation, downloads included.
const buildTimeout = 10 * time.Minute

// tool is a main package of the tools module.
type tool struct{ module, pkg string }

var tools = map[string]tool{
	"local-kms": {"github.com/nsmithuk/local-kms", "github.com/nsmithuk/local-kms"},
	"nats":      {"github.com/nats-io/natscli", "github.com/nats-io/natscli/nats"},
}

// Build returns the path of the named tool ("local-kms" or "nats"), compiling it
// if the cache has none. Where that is impossible, typically for want of a
// network, the test fails if the environment sets CI and is skipped with the
// reason otherwise. Build is safe for concurrent use, also by several processes.
func Build(t testing.TB, name string) string {
	t.Helper()
	bin, err := build(t.Context(), name)
	if err == nil {
		return bin
	}
	if _, ok := tools[name]; !ok || os.Getenv("CI") != "" {
		t.Fatalf("toolbuild: building %s: %v", name, err)
	}
	t.Skipf("toolbuild: %s cannot be built here: %v", name, err)
	return ""
}

func build(ctx context.Context, name string) (string, error) {
	tl, ok := tools[name]
	if !ok {
		return "", fmt.Errorf("no tool of that name is pinned")
	}
	dir, err := toolsDir()
	if err != nil {
		return "", err
	}
	key, err := cacheKey(dir, name, tl)
	if err != nil {
		return "", err
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	dst := filepath.Join(cache, key, exe(name))
	if usable(dst) {
		return dst, nil
	}
	if err := os.MkdirAll(filepath.Dir(dst), 0o700); err != nil {
		return "", fmt.Errorf("making the cache: %w", err)
	}
	unlock, err := lock(filepath.Join(cache, key, "lock"))
	if err != nil {
		return "", fmt.Errorf("locking the cache: %w", err)
	}
	defer unlock()
	if usable(dst) { // somebody else built it while this process waited
		return dst, nil
	}
	return dst, compile(ctx, dir, tl.pkg, dst)
}

// compile builds pkg beside dst and renames it there: a reader sees no binary or
// a whole one.
func compile(ctx context.Context, dir, pkg, dst string) error {
	tmp, err := os.MkdirTemp(filepath.Dir(dst), "build-*")
	if err != nil {
		return fmt.Errorf("making a build directory: %w", err)
	}
	defer os.RemoveAll(tmp)

	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	out := filepath.Join(tmp, filepath.Base(dst))
	cmd := exec.CommandContext(ctx, goCommand(), "build", "-trimpath", "-o", out, pkg)
	cmd.Dir = dir
	// The tool is not what is under test: no FIPS mode, no flags, no workspace of the caller.
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "GODEBUG=")
	}), "GOWORK=off", "GOFLAGS=-buildvcs=false", "CGO_ENABLED=0")
	cmd.WaitDelay = 10 * time.Second
	if msg, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("running go build %s: %w\n%s", pkg, err, tail(msg))
	}
	if err := os.Rename(out, dst); err != nil {
		return fmt.Errorf("placing the binary: %w", err)
	}
	return nil
}

// cacheKey names one build: NAME@VERSION-HASH, where the hash covers the locked
// module graph, the Go version and the platform.
func cacheKey(dir, name string, tl tool) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s %s/%s\n", runtime.Version(), runtime.GOOS, runtime.GOARCH)
	version := ""
	for _, f := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(dir, f))
		if err != nil {
			return "", fmt.Errorf("reading the tools module: %w", err)
		}
		fmt.Fprintf(h, "%s %d\n", f, len(b))
		h.Write(b)
		if f == "go.mod" {
			version = requiredVersion(string(b), tl.module)
		}
	}
	if version == "" {
		return "", fmt.Errorf("the tools module does not require %s", tl.module)
	}
	return name + "@" + version + "-" + hex.EncodeToString(h.Sum(nil)[:6]), nil
}

// requiredVersion finds the version of mod in the text of a go.mod; "" if absent.
func requiredVersion(gomod, mod string) string {
	for line := range strings.Lines(gomod) {
		f := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(f) >= 2 && f[0] == mod {
			return f[1]
		}
	}
	return ""
}

// toolsDir finds the tools module: a test runs in its package's directory, so the
// repository's root is above it.
func toolsDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the tools module: %w", err)
	}
	for {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if first, _, _ := strings.Cut(string(b), "\n"); err == nil && strings.TrimSpace(first) == "module "+module {
			return filepath.Join(dir, "tools"), nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("finding the tools module: not inside the repository")
		}
		dir = parent
	}
}

func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the user's cache: %w", err)
	}
	return filepath.Join(base, "keyweir-tools"), nil
}

// goCommand prefers the toolchain that runs the test.
func goCommand() string {
	if root := os.Getenv("GOROOT"); root != "" {
		if bin := filepath.Join(root, "bin", exe("go")); usable(bin) {
			return bin
		}
	}
	return "go"
}

func usable(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular() && (runtime.GOOS == "windows" || fi.Mode()&0o100 != 0)
}

func exe(name string) string {
	if runtime.GOOS == "windows" {
		return name + ".exe"
	}
	return name
}

// tail keeps the end of a compiler's output: the reason stands there.
func tail(b []byte) string {
	const most = 2000
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return strings.TrimSpace(string(b))
}
