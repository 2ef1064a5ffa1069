package keyserver

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/nats-io/nkeys"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

// rules finds the scope rule of a subject, and that of a key record. It never changes.
type rules struct {
	subjects *keysvc.ScopeRules
	list     []*rule
}

// rule is one scope rule, ready for use.
type rule struct {
	ScopeRule
	shape *regexp.Regexp // matches every scope the rule can compute
}

func newRules(list []ScopeRule) (*rules, error) {
	rs := &rules{}
	var plain []keysvc.ScopeRule
	for _, r := range list {
		plain = append(plain, keysvc.ScopeRule{Match: r.Match, Scope: r.Scope})
		rs.list = append(rs.list, &rule{r, scopeShape(r.Scope)})
	}
	var err error
	if rs.subjects, err = keysvc.NewScopeRules(plain); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrConfig, err)
	}
	return rs, nil
}

// scopeShape turns the scope text of a rule that keysvc accepts into a pattern:
// a wildcard stands for one token of a subject.
func scopeShape(text string) *regexp.Regexp {
	var b strings.Builder
	b.WriteString(`\A`)
	for text != "" {
		plain, rest, found := strings.Cut(text, "{{")
		b.WriteString(regexp.QuoteMeta(plain))
		if !found {
			break
		}
		b.WriteString(`[^.\s]+`)
		_, text, _ = strings.Cut(rest, "}}")
	}
	b.WriteString(`\z`)
	return regexp.MustCompile(b.String())
}

// forSubject returns the scope of an origin subject and its rule.
func (rs *rules) forSubject(subject string) (scope string, r *rule, err error) {
	if len(subject) > envelope.MaxSubject {
		return "", nil, fmt.Errorf("%w: subject of %d bytes", keysvc.ErrInvalid, len(subject))
	}
	scope, i, err := rs.subjects.Scope(subject)
	if err != nil {
		return "", nil, err
	}
	return scope, rs.list[i], nil
}

// forCore returns the rule under which a key record may be opened: one that can
// compute its scope, with its scheme and its authorities. A record names what it
// wants; only the configuration says what is allowed.
func (rs *rules) forCore(c *envelope.Core) (*rule, error) {
	scope := c.Scope()
	known := false
	for _, r := range rs.list {
		if !r.shape.MatchString(scope) {
			continue
		}
		known = true
		if c.Scheme.String() == r.Scheme && len(c.Authorities) == 1 &&
			(slices.Contains(r.Authorities, c.Authorities[0].Authority) || slices.Contains(r.Accept, c.Authorities[0].Authority)) {
			return r, nil
		}
	}
	switch {
	case !known:
		return nil, fmt.Errorf("%w: scope %q of the key record", keysvc.ErrNoScope, scope)
	case c.Scheme != envelope.SchemeSingle:
		return nil, fmt.Errorf("%w: scheme %v", keysvc.ErrUnsupported, c.Scheme)
	}
	return nil, fmt.Errorf("%w: the key record names an authority that scope %q does not allow", keysvc.ErrInvalid, scope)
}

// core starts the core of a new key record; the commitments are still missing.
func (r *ScopeRule) core(scope string) envelope.Core {
	pairs := map[string]string{envelope.ContextScope: scope}
	for name, value := range r.Context {
		pairs[name] = value
	}
	c := envelope.Core{
		Scheme: envelope.SchemeSingle, K: 1, N: 1,
		RecordID: envelope.NewRecordID(),
		Context:  envelope.SortContext(pairs),
	}
	for _, name := range r.Authorities {
		c.Authorities = append(c.Authorities, envelope.PartHolder{Authority: name})
	}
	return c
}

func validRequester(key string) bool { return nkeys.IsValidPublicUserKey(key) }
func validService(key string) bool   { return nkeys.IsValidPublicServerKey(key) }
