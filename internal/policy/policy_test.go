package policy_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keyweir/keyweir/internal/policy"
)

var noon = time.Date(2027, 1, 1, 12, 0, 0, 0, time.UTC)

func people(t testing.TB) *policy.Principals {
	t.Helper()
	p, err := policy.NewPrincipals(map[string]string{"gateway": "UA", "billing": "UB", "audit": "UC"})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestGrantsDecide(t *testing.T) {
	g, err := policy.NewGrants(people(t), []policy.Grant{
		{To: []string{"gateway"}, May: []string{"generate"}, Scopes: []string{"tenant/*"}},
		{To: []string{"billing", "audit"}, May: []string{"open"}, Scopes: []string{"tenant/acme", "eu/*"}, Expires: noon},
		{To: []string{"audit"}, May: []string{"open", "route-key"}, Scopes: []string{"*"}, Expires: noon.Add(time.Hour)},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		principal, action, scope string
		at                       time.Time
		allow                    bool
		rule                     string
	}{
		{"gateway", "generate", "tenant/acme", noon, true, "grant 1"},
		{"gateway", "generate", "tenant/", noon, true, "grant 1"},
		{"gateway", "generate", "tenant", noon, false, ""},
		{"gateway", "generate", "", noon, false, ""},
		{"gateway", "open", "tenant/acme", noon, false, ""},
		{"billing", "open", "tenant/acme", noon.Add(-1), true, "grant 2"},
		{"billing", "open", "tenant/acme", noon, false, "grant 2"},
		{"billing", "open", "tenant/acme2", noon.Add(-1), false, ""},
		{"billing", "open", "eu/x", noon.Add(-1), true, "grant 2"},
		{"billing", "generate", "eu/x", noon.Add(-1), false, ""},
		{"audit", "open", "tenant/acme", noon, true, "grant 3"},
		{"audit", "route-key", "route/a", noon, true, "grant 3"},
		{"audit", "open", "tenant/acme", noon.Add(time.Hour), false, "grant 3"},
		{"Gateway", "generate", "tenant/acme", noon, false, ""},
		{"", "generate", "tenant/acme", noon, false, ""},
		{"stranger", "open", "tenant/acme", noon, false, ""},
	} {
		got := g.Decide(policy.Request{Principal: c.principal, Action: c.action, Scope: c.scope, Time: c.at})
		if got.Allow != c.allow || got.Rule != c.rule || got.Reason == "" {
			t.Errorf("Decide(%s %s %q at %v) = %+v, want allow %v by %q with a reason", c.principal, c.action, c.scope, c.at, got, c.allow, c.rule)
		}
	}
	for _, c := range []struct {
		principal string
		at        time.Time
		actions   []string
		want      bool
	}{
		{"gateway", noon, []string{"generate", "open"}, true},
		{"gateway", noon, []string{"open"}, false},
		{"billing", noon.Add(-1), []string{"generate", "open"}, true},
		{"billing", noon, []string{"generate", "open"}, false},
		{"stranger", noon, []string{"generate", "open"}, false},
	} {
		if got := g.Holds(c.principal, c.at, c.actions...); got != c.want {
			t.Errorf("Holds(%s, %v, %v) = %v, want %v", c.principal, c.at, c.actions, got, c.want)
		}
	}
}

func TestGrantsRefuseBadConfiguration(t *testing.T) {
	ok := policy.Grant{To: []string{"gateway"}, May: []string{"open"}, Scopes: []string{"a"}}
	for name, c := range map[string]struct {
		change func(*policy.Grant)
		place  string
	}{
		"nobody":         {func(g *policy.Grant) { g.To = nil }, "to is empty"},
		"stranger":       {func(g *policy.Grant) { g.To = []string{"gateway", "x"} }, `to[1] "x"`},
		"twice":          {func(g *policy.Grant) { g.To = []string{"gateway", "gateway"} }, "to[1]"},
		"nothing":        {func(g *policy.Grant) { g.May = nil }, "may is empty"},
		"unknown action": {func(g *policy.Grant) { g.May = []string{"Open"} }, `may[0] "Open"`},
		"no scope":       {func(g *policy.Grant) { g.Scopes = nil }, "scopes is empty"},
		"empty scope":    {func(g *policy.Grant) { g.Scopes = []string{""} }, "scopes[0]"},
		"inner star":     {func(g *policy.Grant) { g.Scopes = []string{"a/*/b"} }, "scopes[0]"},
		"two stars":      {func(g *policy.Grant) { g.Scopes = []string{"a**"} }, "scopes[0]"},
	} {
		bad := ok
		c.change(&bad)
		_, err := policy.NewGrants(people(t), []policy.Grant{ok, bad})
		if !errors.Is(err, policy.ErrInvalid) || !strings.Contains(err.Error(), "grant 2") || !strings.Contains(err.Error(), c.place) {
			t.Errorf("%s: NewGrants = %v, want ErrInvalid naming grant 2 and %s", name, err, c.place)
		}
	}
	if _, err := policy.NewGrants(people(t), []policy.Grant{ok, ok}); err != nil {
		t.Errorf("NewGrants with the same grant twice = %v, want nil", err)
	}
}

func TestPrincipals(t *testing.T) {
	p := people(t)
	if n, ok := p.Name("UB"); n != "billing" || !ok {
		t.Errorf("Name(UB) = %q %v", n, ok)
	}
	if _, ok := p.Name("UX"); ok {
		t.Error("Name(UX) is known")
	}
	if k, ok := p.Key("audit"); k != "UC" || !ok || p.Len() != 3 || strings.Join(p.Names(), ",") != "audit,billing,gateway" {
		t.Errorf("Key(audit) = %q %v, Len %d, Names %v", k, ok, p.Len(), p.Names())
	}
	for name, keys := range map[string]map[string]string{
		"shared key": {"a": "U1", "b": "U1"},
		"no key":     {"a": ""},
		"no name":    {"": "U1"},
		"blank":      {"a b": "U1"},
		"newline":    {"a\n": "U1"},
		"bad utf8":   {"a\xff": "U1"},
		"long":       {strings.Repeat("a", policy.MaxPrincipal+1): "U1"},
	} {
		if _, err := policy.NewPrincipals(keys); !errors.Is(err, policy.ErrInvalid) {
			t.Errorf("%s: NewPrincipals = %v, want ErrInvalid", name, err)
		}
	}
}

// TestGrantsModel compares decisions with the definition, spelled out.
func TestGrantsModel(t *testing.T) {
	p := people(t)
	rapid.Check(t, func(t *rapid.T) {
		pick := func(list ...string) *rapid.Generator[[]string] {
			return rapid.SliceOfNDistinct(rapid.SampledFrom(list), 1, len(list), rapid.ID)
		}
		var grants []policy.Grant
		for range rapid.IntRange(0, 4).Draw(t, "grants") {
			g := policy.Grant{
				To: pick("gateway", "billing").Draw(t, "to"), May: pick(policy.Actions...).Draw(t, "may"),
				Scopes: pick("*", "a", "a*", "a/b", "a/*", "b").Draw(t, "scopes"),
			}
			if rapid.Bool().Draw(t, "expires") {
				g.Expires = noon.Add(time.Duration(rapid.IntRange(-1, 1).Draw(t, "offset")))
			}
			grants = append(grants, g)
		}
		gs, err := policy.NewGrants(p, grants)
		if err != nil {
			t.Fatal(err)
		}
		r := policy.Request{
			Principal: rapid.SampledFrom([]string{"gateway", "billing", "audit"}).Draw(t, "principal"),
			Action:    rapid.SampledFrom(policy.Actions).Draw(t, "action"),
			Scope:     rapid.SampledFrom([]string{"", "a", "a/", "a/b", "ab", "b", "c"}).Draw(t, "scope"), Time: noon,
		}
		want := false
		for _, g := range grants {
			for _, to := range g.To {
				for _, may := range g.May {
					for _, s := range g.Scopes {
						covers := s == r.Scope || strings.HasSuffix(s, "*") && strings.HasPrefix(r.Scope, s[:len(s)-1])
						live := g.Expires.IsZero() || noon.Before(g.Expires)
						want = want || to == r.Principal && may == r.Action && covers && live && r.Scope != ""
					}
				}
			}
		}
		if got := gs.Decide(r); got.Allow != want {
			t.Fatalf("Decide(%+v) = %+v under %+v, want allow %v", r, got, grants, want)
		}
	})
}
