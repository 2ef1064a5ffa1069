package authoritytest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/authoritytest"
)

// conformance runs the suite over a memory authority with the given bug.
func conformance(t *testing.T, bug string) {
	s := newStore(bug)
	keys := []string{s.create(t, "home"), s.create(t, "")}
	admin := func(f func(*memory, string) error) func(testing.TB, string) {
		return func(t testing.TB, key string) {
			t.Helper()
			if err := f(s.open(""), key); err != nil {
				t.Fatal(err)
			}
		}
	}
	authoritytest.Run(t, authoritytest.Harness{
		Open:    func(testing.TB) authority.Authority { return s.open(keys[0]) },
		Keys:    keys,
		Alias:   "home",
		Disable: admin(func(m *memory, key string) error { return m.DisableKey(context.Background(), key) }),
		Enable:  admin(func(m *memory, key string) error { return m.EnableKey(context.Background(), key) }),
	})
}

func TestCorrectAuthorityPasses(t *testing.T) { conformance(t, "") }

const bugVariable = "AUTHORITYTEST_BUG"

// TestBug runs in a process of its own, see TestBugsAreFound.
func TestBug(t *testing.T) {
	bug := os.Getenv(bugVariable)
	if bug == "" {
		t.Skip("runs only as a child of TestBugsAreFound")
	}
	conformance(t, bug)
}

// TestBugsAreFound runs the suite over authorities with one bug each: the check
// named must fail.
func TestBugsAreFound(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for bug, check := range map[string]string{
		"answers denied":               "WrongContext",
		"binds names only":             "WrongContext",
		"calls an unknown key invalid": "UnknownKey",
		"changes its input":            "Ownership",
		"closes once only":             "Closed",
		"defaults the key of a wrap":   "WrongKey",
		"forgets old versions":         "Manager/Rotate",
		"generates short keys":         "GenerateDataKey",
		"generates zeros":              "Fresh",
		"ignores cancellation":         "Cancelled",
		"ignores case":                 "WrongContext",
		"ignores empty values":         "WrongContext",
		"ignores the context":          "WrongContext",
		"ignores the version":          "WrongKey",
		"ignores trailing bytes":       "BlobLimits",
		"joins the context":            "WrongContext",
		"keeps the alias":              "Alias",
		"lists in reverse":             "Manager/List",
		"lists no destroyed keys":      "Manager/List",
		"loses keys on close":          "Reopen",
		"minds repeating":              "Manager/DisableEnable",
		"no sentinel":                  "BitFlips",
		"repeats nonces":               "Fresh",
		"replaces invalid utf-8":       "ContextLimits",
		"returns data with an error":   "Truncated",
		"reuses aliases":               "Manager/Create",
		"revives destroyed keys":       "Manager/Destroy",
		"rotates nothing":              "Manager/Rotate",
		"shares its result":            "Ownership",
		"shows the plaintext":          "PlaintextLimits",
		"stores the plaintext":         "RoundTrip",
		"takes an empty context":       "ContextLimits",
		"two sentinels":                "WrongContext",
		"uses destroyed keys":          "Manager/Destroy",
		"uses disabled keys":           "Disabled",
		"works after close":            "Closed",
		"wraps another key":            "GenerateDataKey",
		"wraps nothing":                "PlaintextLimits",
		"wraps too much":               "PlaintextLimits",
	} {
		t.Run(bug, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestBug$", "-test.v", "-test.timeout=60s")
			cmd.Env = append(os.Environ(), bugVariable+"="+bug)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) {
				t.Fatalf("the suite passed, or did not run: %v\n%s", err, out)
			}
			if !strings.Contains(string(out), "--- FAIL: TestBug/"+check+" ") {
				t.Errorf("%s did not find it:\n%s", check, out)
			}
		})
	}
}

func TestCheckError(t *testing.T) {
	secret := []byte{0xfe, 'h', 'u', 'n', 't', 'e', 'r', '2', 0, 1, 2, 3}
	wrap := func(text string) error { return fmt.Errorf("%s: %w", text, authority.ErrInvalid) }
	for name, c := range map[string]struct {
		err error
		ok  bool
	}{
		"right":           {wrap("malformed"), true},
		"with a cause":    {fmt.Errorf("%w: %w", context.Canceled, authority.ErrInvalid), true},
		"nil":             {nil, false},
		"other sentinel":  {fmt.Errorf("x: %w", authority.ErrDenied), false},
		"two sentinels":   {fmt.Errorf("%w: %w", authority.ErrDenied, authority.ErrInvalid), false},
		"no sentinel":     {errors.New("x"), false},
		"raw":             {wrap(string(secret)), false},
		"%x":              {wrap(fmt.Sprintf("%x", secret)), false},
		"%X":              {wrap(fmt.Sprintf("%X", secret)), false},
		"%v":              {wrap(fmt.Sprintf("%v", secret)), false},
		"%q":              {wrap(fmt.Sprintf("%q", secret)), false},
		"%#v":             {wrap(fmt.Sprintf("%#v", secret)), false},
		"base64":          {wrap("/mh1bnRlcjIAAQID"), false},
		"hidden in a %#v": {fmt.Errorf("x: %w", hiding{authority.ErrInvalid, secret}), false},
	} {
		if err := authoritytest.CheckError(c.err, authority.ErrInvalid, secret); (err == nil) != c.ok {
			t.Errorf("%s: CheckError = %v, want ok %v", name, err, c.ok)
		}
	}
}

// hiding shows its secret to %#v only.
type hiding struct {
	error
	secret []byte
}

func (h hiding) Unwrap() error { return h.error }
