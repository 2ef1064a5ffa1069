package sealedcheck_test

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/internal/sealedcheck"
)

func waitFor(t *testing.T, s jetstream.Stream, last uint64) {
	t.Helper()
	natstest.Eventually(t, 10*time.Second, func() error {
		info, err := s.Info(t.Context())
		if err != nil {
			return err
		}
		if got := info.State.LastSeq; got != last {
			return fmt.Errorf("the stream ends at %d, want %d", got, last)
		}
		return nil
	})
}

// TestRefusals keeps the list of settings equal to the gateway's own, which is not
// exported.
func TestRefusals(t *testing.T) {
	src, err := os.ReadFile("../../gateway/destination.go")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, m := range regexp.MustCompile(`(?m)^\t\{"([^"]+)", func\(c \*jetstream\.StreamConfig\) bool`).FindAllSubmatch(src, -1) {
		want = append(want, string(m[1]))
	}
	if len(want) < 5 {
		t.Fatalf("the gateway's refusals are not where they were: found %q", want)
	}
	if got := sealedcheck.Refused(); !slices.Equal(got, want) {
		t.Errorf("settings checked %q, refused by the gateway %q", got, want)
	}
}

func TestMatches(t *testing.T) {
	for _, tt := range []struct {
		pattern, subject string
		want             bool
	}{
		{">", "a", true},
		{">", "a.b.c", true},
		{"a.>", "a.b", true},
		{"a.>", "a.b.c", true},
		{"a.>", "a", false},
		{"a.*", "a.b", true},
		{"a.*", "a.b.c", false},
		{"a.*.c", "a.b.c", true},
		{"a.*.c", "a.b.d", false},
		{"a.b", "a.b", true},
		{"a.b", "a", false},
		{"a", "a.b", false},
		{"a.b", "a.bc", false},
	} {
		if got := sealedcheck.Matches(tt.pattern, tt.subject); got != tt.want {
			t.Errorf("Matches(%q, %q) = %v", tt.pattern, tt.subject, got)
		}
	}
}

const position = "0123456789abcdef0123456789abcdef:7:5:1700000000000000000:1700000000000000001:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

func TestParsePosition(t *testing.T) {
	chain, seq, previous, err := sealedcheck.ParsePosition(position)
	if err != nil || chain != position[:32] || seq != 7 || previous != 5 {
		t.Fatalf("ParsePosition = %s, %d, %d, %v", chain, seq, previous, err)
	}
	for name, v := range map[string]string{
		"empty":             "",
		"cut":               position[:len(position)-1],
		"longer":            position + "A",
		"one field more":    position + ":1",
		"upper case":        strings.ToUpper(position[:32]) + position[32:],
		"leading zero":      strings.Replace(position, ":7:", ":07:", 1),
		"sign":              strings.Replace(position, ":7:", ":+7:", 1),
		"previous not less": strings.Replace(position, ":5:", ":7:", 1),
		"no sequence":       strings.Replace(position, ":7:", "::", 1),
		"too large":         strings.Replace(position, ":7:", ":18446744073709551616:", 1),
		"padding bits":      position[:len(position)-1] + "B",
		"line break":        position[:len(position)-4] + "\nAAA",
	} {
		if _, _, _, err := sealedcheck.ParsePosition(v); err == nil {
			t.Errorf("%s: %q is accepted", name, v)
		}
	}
}

func FuzzParsePosition(f *testing.F) {
	f.Add(position)
	f.Add("::::::")
	f.Fuzz(func(t *testing.T, v string) {
		chain, seq, previous, err := sealedcheck.ParsePosition(v)
		if err == nil && !strings.HasPrefix(v, fmt.Sprintf("%s:%d:%d:", chain, seq, previous)) {
			t.Errorf("%q is read as %s, %d, %d", v, chain, seq, previous)
		}
	})
}
