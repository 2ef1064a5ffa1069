package sealedcheck

import "strings"

// ParsePosition reports whether a header is well-formed, and what it says.
func ParsePosition(v string) (chain string, sequence, previous uint64, err error) {
	p, err := parsePosition(v)
	return p.chain.String(), p.sequence, p.previous, err
}

// Matches reports whether a subject matches a pattern.
func Matches(pattern, subject string) bool { return matches(strings.Split(pattern, "."), subject) }

// Refused returns the names of the settings that are checked.
func Refused() (out []string) {
	for _, f := range refusals {
		out = append(out, f.setting)
	}
	return out
}
