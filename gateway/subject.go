package gateway

import (
	"fmt"
	"strings"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/pattern"
)

// sealedPrefix returns what stands before the origin subject in every sealed
// subject; see [Sealed].Subject.
func sealedPrefix(subject string, source []string) (string, error) {
	if err := checkPattern(subject); err != nil || !strings.HasSuffix(subject, ".>") {
		return "", fmt.Errorf("sealed subject %q, want a pattern like sealed.>", subject)
	}
	prefix := strings.TrimSuffix(subject, ">")
	if len(source) == 1 {
		if p, ok := strings.CutSuffix(subject, "."+source[0]); ok && p != "" {
			prefix = p + "."
		}
	}
	if strings.Contains(prefix, "*") {
		return "", fmt.Errorf("sealed subject %q: the prefix has a wildcard", subject)
	}
	if strings.HasPrefix(prefix, "$") || strings.HasPrefix(prefix, "_") {
		return "", fmt.Errorf("sealed subject %q lies among NATS's own subjects", subject)
	}
	if len(prefix) > envelope.MaxAffix {
		return "", fmt.Errorf("sealed subject %q: the prefix has %d bytes, at most %d", subject, len(prefix), envelope.MaxAffix)
	}
	return prefix, nil
}

// sealedPatterns returns the subjects that the route publishes to.
func sealedPatterns(prefix string, source []string) []string {
	out := make([]string, len(source))
	for i, s := range source {
		out[i] = prefix + s
	}
	return out
}

func overlapsSource(prefix string, source []string) bool {
	return anyOverlap(sealedPatterns(prefix, source), source)
}

// anyOverlap reports whether some subject matches a pattern of a and one of b.
func anyOverlap(a, b []string) bool {
	for _, p := range a {
		for _, s := range b {
			if patternsOverlap(p, s) {
				return true
			}
		}
	}
	return false
}

func checkPattern(s string) error { return pattern.Check(s) }

func patternsOverlap(a, b string) bool { return pattern.Overlap(a, b) }

func patternCovers(wide, narrow string) bool { return pattern.Covers(wide, narrow) }

// covered reports whether every subject that matches one of narrow matches one of
// wide.
func covered(wide, narrow []string) bool {
	for _, n := range narrow {
		if pattern.Uncovered(n, wide) != "" {
			return false
		}
	}
	return true
}
