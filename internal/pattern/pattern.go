// Package pattern compares NATS subject patterns: literal tokens, * for one
// token, > for one or more at the end.
package pattern

import (
	"errors"
	"fmt"
	"strings"
)

// Check reports why s is no pattern; nil if it is one.
func Check(s string) error {
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

// Overlap reports whether some subject matches both patterns.
func Overlap(a, b string) bool {
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

// Covers reports whether every subject that matches narrow matches wide.
func Covers(wide, narrow string) bool {
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

// Uncovered returns a subject that matches s and none of by, which all are
// patterns; "" if by together cover s. It is exact: a.* and a.*.> cover a.>, and
// no number of literal tokens covers a wildcard.
func Uncovered(s string, by []string) string {
	rest := make([][]string, len(by))
	for i, b := range by {
		rest[i] = strings.Split(b, ".")
	}
	return strings.Join(uncovered(strings.Split(s, "."), rest), ".")
}

// uncovered returns the tokens of such a subject, nil if there is none. The
// tokens that the patterns have in one place, and one that none of them has,
// stand for all tokens there.
func uncovered(s []string, by [][]string) []string {
	fresh := "any"
	candidates := []string{s[0]}
	if s[0] == "*" || s[0] == ">" {
		candidates = candidates[:0]
		for _, b := range by {
			if b[0] != "*" && b[0] != ">" {
				candidates = append(candidates, b[0])
			}
			if len(fresh) <= len(b[0]) {
				fresh = "any" + strings.Repeat("x", len(b[0]))
			}
		}
		candidates = append(candidates, fresh)
	}
	for i, token := range candidates {
		if contains(candidates[:i], token) {
			continue
		}
		var rest [][]string // what is left of the patterns that match the token
		ended, all := false, false
		for _, b := range by {
			switch {
			case b[0] == ">":
				all = true
			case b[0] != "*" && b[0] != token:
			case len(b) == 1:
				ended = true
			default:
				rest = append(rest, b[1:])
			}
		}
		if all {
			continue
		}
		if s[0] == ">" || len(s) == 1 {
			if !ended {
				return []string{token}
			}
		}
		var next []string
		switch {
		case s[0] == ">":
			next = s
		case len(s) > 1:
			next = s[1:]
		default:
			continue
		}
		if tail := uncovered(next, rest); tail != nil {
			return append([]string{token}, tail...)
		}
	}
	return nil
}

func contains(in []string, s string) bool {
	for _, x := range in {
		if x == s {
			return true
		}
	}
	return false
}
