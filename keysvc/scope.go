package keysvc

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// MaxScope is the longest scope in bytes.
const MaxScope = 256

// ScopeRule computes the scope of origin subjects: what shares a data key.
type ScopeRule struct {
	// Match is a NATS subject pattern with * and >.
	Match string `json:"match"`
	// Scope is a text in which {{wildcard(n)}} stands for the subject token that
	// the n-th * of Match met (NATS mapping syntax).
	Scope string `json:"scope"`
}

// ScopeRules is a compiled list of rules; the first match wins. The zero value
// matches nothing. Safe for concurrent use.
type ScopeRules struct {
	rules    []ScopeRule
	compiled []compiledRule
}

type compiledRule struct {
	match []string
	parts []scopePart // alternating text and wildcard
}

type scopePart struct {
	text     string
	wildcard int // token index in the subject; -1 for text
}

// NewScopeRules compiles rules. Errors name the rule by its place, from 1.
func NewScopeRules(rules []ScopeRule) (*ScopeRules, error) {
	s := &ScopeRules{rules: append([]ScopeRule(nil), rules...)}
	for i, r := range rules {
		c, err := compileRule(r)
		if err != nil {
			return nil, fmt.Errorf("compiling scope rule %d (%q): %w", i+1, r.Match, err)
		}
		s.compiled = append(s.compiled, c)
	}
	return s, nil
}

func compileRule(r ScopeRule) (compiledRule, error) {
	var c compiledRule
	var wild []int
	c.match = strings.Split(r.Match, ".")
	for i, t := range c.match {
		switch {
		case t == "" || strings.ContainsAny(t, " \t\r\n\f"):
			return c, fmt.Errorf("%w: the pattern has an empty or blank token", ErrInvalid)
		case t == ">" && i != len(c.match)-1:
			return c, fmt.Errorf("%w: > is not the last token", ErrInvalid)
		case t == "*":
			wild = append(wild, i)
		case len(t) > 1 && strings.ContainsAny(t, "*>"):
			return c, fmt.Errorf("%w: token %q mixes a wildcard with text", ErrInvalid, t)
		}
	}
	if !utf8.ValidString(r.Scope) {
		return c, fmt.Errorf("%w: the scope is not UTF-8", ErrInvalid)
	}
	rest := r.Scope
	for rest != "" {
		text, after, found := strings.Cut(rest, "{{")
		if text != "" {
			c.parts = append(c.parts, scopePart{text: text, wildcard: -1})
		}
		if !found {
			break
		}
		fn, tail, closed := strings.Cut(after, "}}")
		fn = strings.TrimSpace(fn)
		num, isWild := strings.CutPrefix(fn, "wildcard(")
		num, ends := strings.CutSuffix(num, ")")
		n, err := strconv.Atoi(strings.TrimSpace(num))
		if !closed || !isWild || !ends || err != nil || n < 1 || n > len(wild) {
			return c, fmt.Errorf("%w: scope %q: {{%s}} is not {{wildcard(1..%d)}}", ErrInvalid, r.Scope, fn, len(wild))
		}
		c.parts = append(c.parts, scopePart{wildcard: wild[n-1]})
		rest = tail
	}
	if len(c.parts) == 0 {
		return c, fmt.Errorf("%w: the scope is empty", ErrInvalid)
	}
	return c, nil
}

// Rules returns a copy of the rules, in order.
func (s *ScopeRules) Rules() []ScopeRule { return append([]ScopeRule(nil), s.rules...) }

// Scope computes the scope of an origin subject and the place of the rule that
// matched, from 0. [ErrNoScope] if no rule matches or the scope would exceed
// MaxScope; [ErrInvalid] for a subject with empty or wildcard tokens, blanks or
// bytes that are not UTF-8, which neither JSON nor a key record can carry.
func (s *ScopeRules) Scope(subject string) (scope string, rule int, err error) {
	if !utf8.ValidString(subject) {
		return "", 0, fmt.Errorf("%w: subject %.64q is not UTF-8", ErrInvalid, subject)
	}
	tokens := strings.Split(subject, ".")
	for _, t := range tokens {
		if t == "" || t == "*" || t == ">" || strings.ContainsAny(t, " \t\r\n\f") {
			return "", 0, fmt.Errorf("%w: subject %q", ErrInvalid, subject)
		}
	}
	for i := range s.compiled {
		c := &s.compiled[i]
		if !matches(c.match, tokens) {
			continue
		}
		var b strings.Builder
		for _, p := range c.parts {
			if p.wildcard < 0 {
				b.WriteString(p.text)
			} else {
				b.WriteString(tokens[p.wildcard])
			}
		}
		if b.Len() > MaxScope {
			return "", 0, fmt.Errorf("%w: the scope of %q has %d bytes, at most %d", ErrNoScope, subject, b.Len(), MaxScope)
		}
		return b.String(), i, nil
	}
	return "", 0, fmt.Errorf("%w: subject %q", ErrNoScope, subject)
}

// SubjectMatches reports whether a NATS pattern matches a literal subject.
func SubjectMatches(pattern, subject string) bool {
	return matches(strings.Split(pattern, "."), strings.Split(subject, "."))
}

func matches(pattern, tokens []string) bool {
	for i, p := range pattern {
		if p == ">" {
			return len(tokens) > i
		}
		if i >= len(tokens) || p != "*" && p != tokens[i] {
			return false
		}
	}
	return len(pattern) == len(tokens)
}

// ScopeMatches reports whether a scope pattern of a grant or a reader's profile
// covers scope: equal, or ending in * which stands for any rest. "*" covers all.
func ScopeMatches(pattern, scope string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(scope, prefix)
	}
	return pattern != "" && pattern == scope
}
