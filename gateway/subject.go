package gateway

import (
	"errors"
	"fmt"
	"strings"

	"github.com/keyweir/keyweir/internal/envelope"
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

func checkPattern(s string) error {
	tokens := strings.Split(s, ".")
	for i, t := range tokens {
		switch {
		case t == "" || strings.ContainsAny(t, " \t\r\n"):
			return errors.New("empty or blank token")
		case t == ">" && i != len(tokens)-1:
			return errors.New("> is not the last token")
		case len(t) > 1 && strings.ContainsAny(t, "*>"):
			return fmt.Errorf("token %q mixes a wildcard with text", t)
		}
	}
	return nil
}

// patternsOverlap reports whether some subject matches both patterns.
func patternsOverlap(a, b string) bool {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := 0; i < len(as) && i < len(bs); i++ {
		if as[i] == ">" || bs[i] == ">" {
			return true
		}
		if as[i] != bs[i] && as[i] != "*" && bs[i] != "*" {
			return false
		}
	}
	return len(as) == len(bs)
}

// patternCovers reports whether every subject that matches narrow matches wide.
func patternCovers(wide, narrow string) bool {
	ws, ns := strings.Split(wide, "."), strings.Split(narrow, ".")
	for i, w := range ws {
		switch {
		case w == ">":
			return len(ns) > i
		case i >= len(ns) || ns[i] == ">":
			return false
		case w != "*" && w != ns[i]:
			return false
		}
	}
	return len(ws) == len(ns)
}

// covered reports whether each of narrow is covered by one of wide. It may deny
// what several patterns cover only together.
func covered(wide, narrow []string) bool {
	for _, n := range narrow {
		ok := false
		for _, w := range wide {
			ok = ok || patternCovers(w, n)
		}
		if !ok {
			return false
		}
	}
	return true
}
