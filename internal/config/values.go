package config

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Duration is a length of time: a number with a unit of Go ("90s", "1h30m"), or
// of whole days ("30d"). Negative ones are refused.
type Duration time.Duration

// UnmarshalText parses a duration.
func (d *Duration) UnmarshalText(b []byte) error {
	s := string(b)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 32)
		if err != nil || n > uint64(math.MaxInt64/(24*time.Hour)) {
			return fmt.Errorf("invalid duration %q: use 90s, 5m, 1h30m or 30d", s)
		}
		*d = Duration(time.Duration(n) * 24 * time.Hour)
		return nil
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("invalid duration %q: use 90s, 5m, 1h30m or 30d", s)
	}
	if v < 0 {
		return fmt.Errorf("negative duration %q", s)
	}
	*d = Duration(v)
	return nil
}

// Or returns d, or def where the file says nothing (or 0).
func (d Duration) Or(def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return time.Duration(d)
}

func (d Duration) String() string { return time.Duration(d).String() }

// SyncInterval is a [Duration], or "always".
type SyncInterval struct {
	Always   bool
	Interval Duration // 0: not said
}

// UnmarshalText parses a sync interval.
func (s *SyncInterval) UnmarshalText(b []byte) error {
	if string(b) == "always" {
		*s = SyncInterval{Always: true}
		return nil
	}
	*s = SyncInterval{}
	return s.Interval.UnmarshalText(b)
}

// Size is a number of bytes: plain, or with a unit of 1024 (KiB, MiB, GiB, TiB)
// or of 1000 (kB, MB, GB, TB).
type Size int64

var units = []struct {
	name   string
	factor int64
}{
	{"KiB", 1 << 10},
	{"MiB", 1 << 20},
	{"GiB", 1 << 30},
	{"TiB", 1 << 40},
	{"kB", 1e3},
	{"MB", 1e6},
	{"GB", 1e9},
	{"TB", 1e12},
	{"B", 1},
}

// UnmarshalText parses a size.
func (z *Size) UnmarshalText(b []byte) error {
	s, factor := string(b), int64(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(s, u.name); ok {
			s, factor = strings.TrimSpace(rest), u.factor
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/factor {
		return fmt.Errorf("invalid size %q: use 4096, 64KiB, 512MiB or 10GB", string(b))
	}
	*z = Size(n * factor)
	return nil
}

// Time is a point in time: a date, which means 00:00 UTC, or RFC 3339.
type Time struct{ time.Time }

// UnmarshalText parses a time.
func (t *Time) UnmarshalText(b []byte) error {
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if v, err := time.Parse(layout, string(b)); err == nil {
			t.Time = v
			return nil
		}
	}
	return fmt.Errorf("invalid time %q: use 2027-01-01 or 2027-01-01T12:00:00Z", string(b))
}

// SecretRef refers to a secret, which never stands in the file itself: "file:"
// and a path (a path alone, starting with / or ./, means the same), or "env:" and
// the name of an environment variable. The zero SecretRef refers to nothing.
type SecretRef struct {
	kind refKind
	name string
}

type refKind byte

const (
	refNone refKind = iota
	refFile
	refEnv
)

// FileRef refers to a file.
func FileRef(path string) SecretRef { return SecretRef{refFile, path} }

// UnmarshalText parses a reference. Its error does not repeat the text, which
// may be a secret.
func (r *SecretRef) UnmarshalText(b []byte) error {
	s := string(b)
	if p, ok := strings.CutPrefix(s, "file:"); ok && p != "" {
		*r = SecretRef{refFile, p}
		return nil
	}
	if n, ok := strings.CutPrefix(s, "env:"); ok && n != "" && !strings.ContainsAny(n, "= \t\n") {
		*r = SecretRef{refEnv, n}
		return nil
	}
	if filepath.IsAbs(s) || strings.HasPrefix(s, "./") || strings.HasPrefix(s, "../") {
		*r = SecretRef{refFile, s}
		return nil
	}
	return fmt.Errorf("a secret must be a reference, file:PATH or env:NAME, and never stand in the file itself")
}

// IsZero reports whether r refers to nothing.
func (r SecretRef) IsZero() bool { return r.kind == refNone }

// Path returns the path of a file reference.
func (r SecretRef) Path() (string, bool) { return r.name, r.kind == refFile }

// String returns the reference; the secret is never part of it.
func (r SecretRef) String() string {
	switch r.kind {
	case refFile:
		return "file:" + r.name
	case refEnv:
		return "env:" + r.name
	}
	return ""
}

// MaxSecret is the largest secret that is read, in bytes.
const MaxSecret = 64 << 10

// Read returns the secret. The caller clears it. Surrounding blank space is kept.
func (r SecretRef) Read() ([]byte, error) {
	switch r.kind {
	case refFile:
		fi, err := os.Stat(r.name)
		if err != nil {
			return nil, fmt.Errorf("reading secret: %w", err)
		}
		if !fi.Mode().IsRegular() && fi.Mode()&os.ModeNamedPipe == 0 || fi.Size() > MaxSecret {
			return nil, fmt.Errorf("reading secret %s: not a file of at most %d bytes", r.name, MaxSecret)
		}
		b, err := os.ReadFile(r.name)
		if err != nil {
			return nil, fmt.Errorf("reading secret: %w", err)
		}
		return b, nil
	case refEnv:
		v, ok := os.LookupEnv(r.name)
		if !ok || v == "" {
			return nil, fmt.Errorf("reading secret: environment variable %s is not set", r.name)
		}
		return []byte(v), nil
	}
	return nil, fmt.Errorf("reading secret: no reference given")
}

// enum is a string type with a closed list of values.
type enum interface{ Values() []string }

type (
	// LogLevel is a level of package log/slog.
	LogLevel string
	// LogFormat is how a log line looks.
	LogFormat string
	// AfterSeal says what becomes of plaintext.
	AfterSeal string
	// OnGap says what a lost message does.
	OnGap string
	// OnUnavailable says what a scope without a key does.
	OnUnavailable string
	// RecordMode says where the key record travels.
	RecordMode string
	// Nonces says how nonces are made.
	Nonces string
	// Storage is a storage type of JetStream.
	Storage string
	// KeysMode says how a scope gets its data keys.
	KeysMode string
	// SchemeName names a scheme.
	SchemeName string
	// GrantOp is an operation of the key service that needs a grant.
	GrantOp string
)

// HoldScopes as an OnUnavailable: the others go on.
const HoldScopes OnUnavailable = "hold"

// The values of AfterSeal.
const (
	AfterSealPurge AfterSeal = "purge"
	AfterSealKeep  AfterSeal = "keep"
)

// Values lists what the file may say.
func (LogLevel) Values() []string { return []string{"debug", "info", "warn", "error"} }

// Values lists what the file may say.
func (LogFormat) Values() []string { return []string{"text", "json"} }

// Values lists what the file may say.
func (AfterSeal) Values() []string { return []string{"purge", "keep"} }

// Values lists what the file may say.
func (OnGap) Values() []string { return []string{"stop", "continue"} }

// Values lists what the file may say.
func (OnUnavailable) Values() []string { return []string{"stop", "hold"} }

// Values lists what the file may say.
func (RecordMode) Values() []string { return []string{"auto", "inline", "reference"} }

// Values lists what the file may say.
func (Nonces) Values() []string { return []string{"counter", "random"} }

// Values lists what the file may say.
func (Storage) Values() []string { return []string{"file", "memory"} }

// Values lists what the file may say.
func (KeysMode) Values() []string { return []string{"direct", "managed"} }

// Values lists what the file may say.
func (SchemeName) Values() []string { return []string{"single"} }

// Values lists what the file may say.
func (GrantOp) Values() []string { return []string{"generate", "open", "route-key"} }

func checkEnum(e enum, s string) error {
	if slices.Contains(e.Values(), s) {
		return nil
	}
	return fmt.Errorf("invalid value %q: use %s%s", s, list(e.Values()), didYouMean(s, e.Values()))
}

func list(ss []string) string {
	if len(ss) < 2 {
		return strings.Join(ss, "")
	}
	return strings.Join(ss[:len(ss)-1], ", ") + " or " + ss[len(ss)-1]
}
