package deptest_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// machinePath matches an absolute path on somebody's machine. Its parts stand
// apart so that it does not match itself.
var machinePath = regexp.MustCompile(`(^|[^A-Za-z0-9_.~*-])/(` + strings.Join([]string{"work", "farm", "root", "home", "Users"}, "|") + `)/[A-Za-z0-9._]`)

// TestNoMachinePaths reads every tracked file as it stands in the work tree.
func TestNoMachinePaths(t *testing.T) {
	root := moduleRoot(t)
	out, err := exec.CommandContext(t.Context(), "git", "-C", root, "ls-files", "-z").Output()
	if err != nil {
		if os.Getenv("CI") == "" {
			t.Skipf("this tree is no git checkout, so there is no list of committed files: %v", err)
		}
		t.Fatalf("git ls-files: %v", err)
	}
	names := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	if len(names) < 10 {
		t.Fatalf("git lists %d files", len(names))
	}
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(root, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted, not committed yet
		}
		if err != nil {
			t.Error(err)
			continue
		}
		if bytes.IndexByte(b, 0) >= 0 {
			continue // binary
		}
		for i, line := range strings.Split(string(b), "\n") {
			if hit := machinePath.FindString(line); hit != "" {
				t.Errorf("%s:%d: a path of one machine: %q", name, i+1, hit)
			}
		}
	}
}

func TestMachinePathPattern(t *testing.T) {
	slash := "/"
	for line, want := range map[string]bool{
		`dir := "` + slash + `root` + slash + `x"`:                 true,
		slash + `work` + slash + `main`:                            true,
		`file:` + slash + slash + slash + `home` + slash + `me`:    true,
		`https:` + slash + `/example.com` + slash + `home/x`:       false,
		`internal` + slash + `work` + slash + `x`:                  false,
		slash + `var/lib/keyweir`:                                  false,
		`a ` + slash + `root` + slash + ` of trust (no path here)`: false,
	} {
		if got := machinePath.MatchString(line); got != want {
			t.Errorf("match of %q = %v, want %v", line, got, want)
		}
	}
}

func moduleRoot(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(strings.TrimSpace(string(out)))
}
