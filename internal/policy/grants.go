package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Actions that a grant may name.
var Actions = []string{"generate", "open", "route-key"}

// Grant allows principals actions on scopes.
type Grant struct {
	To  []string // names of principals, at least one
	May []string // of Actions, at least one
	// Scopes are patterns, at least one: a literal scope, or a prefix followed by
	// one * that stands for any rest, the empty one too. For "route-key" the
	// scope is "route/<name>".
	Scopes []string
	// Expires ends the grant at that moment; zero means never.
	Expires time.Time
}

// Grants decides by a list of grants: allowed is what at least one of them
// allows and that has not expired. It never changes and is safe for concurrent use.
type Grants struct {
	by map[asked][]held
}

type asked struct{ principal, action string }

type held struct {
	place   int // of the grant in the configuration, from 1
	scopes  []string
	expires time.Time
}

var (
	_ Decider = (*Grants)(nil)
	_ Holder  = (*Grants)(nil)
)

// NewGrants checks grants against the principals they are for. Errors wrap
// [ErrInvalid] and name the grant by its place, from 1.
func NewGrants(p *Principals, grants []Grant) (*Grants, error) {
	g := &Grants{by: map[asked][]held{}}
	for i, gr := range grants {
		if err := gr.check(p); err != nil {
			return nil, fmt.Errorf("grant %d: %w", i+1, err)
		}
		for _, to := range gr.To {
			for _, may := range gr.May {
				a := asked{to, may}
				g.by[a] = append(g.by[a], held{i + 1, slices.Clone(gr.Scopes), gr.Expires})
			}
		}
	}
	return g, nil
}

func (gr *Grant) check(p *Principals) error {
	for _, l := range []struct {
		what string
		list []string
		ok   func(string) bool
		want string
	}{
		{"to", gr.To, func(s string) bool { _, ok := p.Key(s); return ok }, "a configured principal"},
		{"may", gr.May, func(s string) bool { return slices.Contains(Actions, s) }, "one of " + strings.Join(Actions, ", ")},
		{"scopes", gr.Scopes, validPattern, "a scope, or a prefix and one * at its end"},
	} {
		if len(l.list) == 0 {
			return fmt.Errorf("%w: %s is empty", ErrInvalid, l.what)
		}
		for i, s := range l.list {
			if !l.ok(s) {
				return fmt.Errorf("%w: %s[%d] %q is not %s", ErrInvalid, l.what, i, s, l.want)
			}
			if slices.Contains(l.list[:i], s) {
				return fmt.Errorf("%w: %s[%d] %q is there twice", ErrInvalid, l.what, i, s)
			}
		}
	}
	return nil
}

// Decide answers r.
func (g *Grants) Decide(r Request) Decision {
	expired := 0
	for _, h := range g.by[asked{r.Principal, r.Action}] {
		if !slices.ContainsFunc(h.scopes, func(p string) bool { return Match(p, r.Scope) }) {
			continue
		}
		if h.over(r.Time) {
			expired = h.place
			continue
		}
		return Decision{Allow: true, Rule: fmt.Sprintf("grant %d", h.place), Reason: "granted"}
	}
	if expired > 0 {
		return Decision{Rule: fmt.Sprintf("grant %d", expired), Reason: "the grant has expired"}
	}
	return Decision{Reason: fmt.Sprintf("no grant allows %q on this scope", r.Action)}
}

// Holds reports whether principal holds, at that time, one of the actions on anything.
func (g *Grants) Holds(principal string, at time.Time, actions ...string) bool {
	for _, a := range actions {
		for _, h := range g.by[asked{principal, a}] {
			if !h.over(at) {
				return true
			}
		}
	}
	return false
}

func (h *held) over(at time.Time) bool { return !h.expires.IsZero() && !at.Before(h.expires) }

// Match reports whether a scope pattern covers scope: equal, or ending in *
// which stands for any rest. An empty scope is covered by nothing.
func Match(pattern, scope string) bool {
	if pattern == "" || scope == "" {
		return false
	}
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(scope, prefix)
	}
	return pattern == scope
}

func validPattern(p string) bool {
	return p != "" && !strings.Contains(strings.TrimSuffix(p, "*"), "*")
}
