package keysvc_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"pgregory.net/rapid"

	"github.com/keyweir/keyweir/keysvc"
)

func TestScope(t *testing.T) {
	rules := []keysvc.ScopeRule{
		{Match: "orders.*.archive", Scope: "archive"},
		{Match: "orders.*.>", Scope: "tenant/{{wildcard(1)}}"},
		{Match: "a.*.*", Scope: "{{wildcard(2)}}-{{ wildcard( 1 ) }}{{wildcard(2)}}"},
		{Match: "*", Scope: "one/{{wildcard(1)}}"},
		{Match: "brace.*", Scope: "}}{x}{{wildcard(1)}}}"},
		{Match: "deep.>", Scope: "deep"},
	}
	s, err := keysvc.NewScopeRules(rules)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(rules, s.Rules()); diff != "" {
		t.Errorf("Rules: %s", diff)
	}
	s.Rules()[0].Scope = "changed"
	if s.Rules()[0].Scope != "archive" {
		t.Error("Rules returns the rules themselves")
	}
	tests := []struct {
		subject, scope string
		rule           int
		err            error
	}{
		{"orders.acme.new", "tenant/acme", 1, nil},
		{"orders.acme.new.x.y", "tenant/acme", 1, nil},
		{"orders.acme.archive", "archive", 0, nil},
		{"orders.acme.archive.x", "tenant/acme", 1, nil},
		{"orders.acme", "", 0, keysvc.ErrNoScope},
		{"orders", "one/orders", 3, nil},
		{"Orders.acme.x", "", 0, keysvc.ErrNoScope},
		{"a.1.2", "2-12", 2, nil},
		{"a.1.2.3", "", 0, keysvc.ErrNoScope},
		{"brace.x", "}}{x}x}", 4, nil},
		{"deep", "one/deep", 3, nil},
		{"deep.a.b", "deep", 5, nil},
		{"orders.ü.x", "tenant/ü", 1, nil},
		{"", "", 0, keysvc.ErrInvalid},
		{".", "", 0, keysvc.ErrInvalid},
		{"orders..x", "", 0, keysvc.ErrInvalid},
		{"orders.acme.", "", 0, keysvc.ErrInvalid},
		{".orders", "", 0, keysvc.ErrInvalid},
		{"orders.*.x", "", 0, keysvc.ErrInvalid},
		{"orders.>", "", 0, keysvc.ErrInvalid},
		{"orders.a b.x", "", 0, keysvc.ErrInvalid},
		{"orders.a\n.x", "", 0, keysvc.ErrInvalid},
		{"orders.a\f.x", "", 0, keysvc.ErrInvalid},
		{"orders.a\xff.x", "", 0, keysvc.ErrInvalid},
		{"one.two", "", 0, keysvc.ErrNoScope},
		{strings.Repeat("x", keysvc.MaxScope-4), "one/" + strings.Repeat("x", keysvc.MaxScope-4), 3, nil},
		{strings.Repeat("x", keysvc.MaxScope-3), "", 0, keysvc.ErrNoScope},
	}
	for _, tt := range tests {
		scope, rule, err := s.Scope(tt.subject)
		if scope != tt.scope || rule != tt.rule || !errors.Is(err, tt.err) {
			t.Errorf("Scope(%q) = %q, %d, %v; want %q, %d, %v", tt.subject, scope, rule, err, tt.scope, tt.rule, tt.err)
		}
	}
	var zero keysvc.ScopeRules
	if _, _, err := zero.Scope("a"); !errors.Is(err, keysvc.ErrNoScope) {
		t.Errorf("the zero value answers %v", err)
	}
}

func TestScopeRulesRefused(t *testing.T) {
	for _, r := range []keysvc.ScopeRule{
		{"", "x"},
		{"a..b", "x"},
		{".a", "x"},
		{"a.", "x"},
		{"a.>.b", "x"},
		{">.a", "x"},
		{"a b", "x"},
		{"a.\t", "x"},
		{"a.\f", "x"},
		{"a*", "x"},
		{"a.b>", "x"},
		{"a.**", "x"},
		{"a.>>", "x"},
		{"a", ""},
		{"a.*", ""},
		{"a", "{{wildcard(1)}}"},
		{"a.>", "{{wildcard(1)}}"},
		{"a.*", "{{wildcard(0)}}"},
		{"a.*", "{{wildcard(2)}}"},
		{"a.*", "{{wildcard(-1)}}"},
		{"a.*", "{{wildcard()}}"},
		{"a.*", "{{wildcard(x)}}"},
		{"a.*", "{{wildcard(1}}"},
		{"a.*", "{{wildcard 1}}"},
		{"a.*", "{{wildcard(1)"},
		{"a.*", "{{wildcard(99999999999999999999)}}"},
		{"a.*", "{{Wildcard(1)}}"},
		{"a.*", "{{partition(10,1)}}"},
		{"a.*", "{{split(1,-)}}"},
		{"a.*", "{{}}"},
		{"a.*", "t/{{"},
		{"a.*", "{{{{wildcard(1)}}}}"},
		{"a.*", "x\xff"},
	} {
		s, err := keysvc.NewScopeRules([]keysvc.ScopeRule{{Match: "ok", Scope: "ok"}, r})
		if !errors.Is(err, keysvc.ErrInvalid) || s != nil || !strings.Contains(err.Error(), "scope rule 2") {
			t.Errorf("NewScopeRules(%+v) = %v, %v; want nil and ErrInvalid naming rule 2", r, s, err)
		}
	}
}

// natsScope is what nats-server's own subject mapping makes of the subject, for
// a scope whose tokens are whole: the oracle.
func natsScope(t *rapid.T, match, scope, subject string) (string, bool) {
	dest, rest := scope, strings.HasSuffix(match, ">")
	if rest {
		dest += ".>"
	}
	tr, err := server.NewSubjectTransform(match, dest)
	if err != nil {
		t.Fatalf("NewSubjectTransform(%q, %q): %v", match, dest, err)
	}
	got, err := tr.Match(subject)
	if err != nil {
		return "", false
	}
	if rest { // what > met stands at the end
		n := len(strings.Split(subject, ".")) - len(strings.Split(match, ".")) + 1
		tokens := strings.Split(got, ".")
		got = strings.Join(tokens[:len(tokens)-n], ".")
	}
	return got, true
}

var (
	tokens   = rapid.SampledFrom([]string{"a", "b", "orders", "ü", "a-b", "0"})
	subjects = rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(tokens, 1, 5).Draw(t, "tokens"), ".")
	})
	patterns = rapid.Custom(func(t *rapid.T) string {
		list := rapid.SliceOfN(rapid.OneOf(tokens, rapid.Just("*")), 1, 5).Draw(t, "pattern")
		if rapid.Bool().Draw(t, "rest") {
			list[len(list)-1] = ">"
		}
		return strings.Join(list, ".")
	})
)

func TestScopeLikeNATS(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		match := patterns.Draw(t, "match")
		if match == ">" {
			match = "a.>" // NATS keeps > alone for "no mapping"
		}
		parts := []string{"s"}
		if n := strings.Count(match, "*"); n > 0 {
			for range rapid.IntRange(1, 4).Draw(t, "parts") {
				i := rapid.IntRange(1, n).Draw(t, "wildcard")
				parts = append(parts, "{{wildcard("+string(rune('0'+i))+")}}")
			}
		}
		scope := strings.Join(parts, ".")
		s, err := keysvc.NewScopeRules([]keysvc.ScopeRule{{Match: match, Scope: scope}})
		if err != nil {
			t.Fatal(err)
		}
		subject := subjects.Draw(t, "subject")
		want, ok := natsScope(t, match, scope, subject)
		got, _, err := s.Scope(subject)
		if ok != (err == nil) || got != want {
			t.Fatalf("rule %q -> %q, subject %q: %q, %v; nats-server says %q, %t", match, scope, subject, got, err, want, ok)
		}
		if err != nil && !errors.Is(err, keysvc.ErrNoScope) {
			t.Fatalf("no match gives %v", err)
		}
	})
}

func TestSubjectMatchesLikeNATS(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pattern, subject := patterns.Draw(t, "pattern"), subjects.Draw(t, "subject")
		if got, want := keysvc.SubjectMatches(pattern, subject), server.SubjectMatchesFilter(subject, pattern); got != want {
			t.Fatalf("SubjectMatches(%q, %q) = %t, nats-server says %t", pattern, subject, got, want)
		}
	})
}

// TestFirstRuleWins compares a list with its rules one by one.
func TestFirstRuleWins(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var rules []keysvc.ScopeRule
		for i, p := range rapid.SliceOfN(patterns, 1, 6).Draw(t, "patterns") {
			rules = append(rules, keysvc.ScopeRule{Match: p, Scope: "rule" + string(rune('0'+i))})
		}
		s, err := keysvc.NewScopeRules(rules)
		if err != nil {
			t.Fatal(err)
		}
		subject := subjects.Draw(t, "subject")
		scope, rule, err := s.Scope(subject)
		for i, r := range rules {
			if keysvc.SubjectMatches(r.Match, subject) {
				if err != nil || rule != i || scope != r.Scope {
					t.Fatalf("Scope(%q) = %q, %d, %v; want rule %d", subject, scope, rule, err, i)
				}
				return
			}
		}
		if !errors.Is(err, keysvc.ErrNoScope) {
			t.Fatalf("Scope(%q) = %q, %v; want ErrNoScope", subject, scope, err)
		}
	})
}

func TestScopeMatches(t *testing.T) {
	tests := []struct {
		pattern, scope string
		want           bool
	}{
		{"tenant/acme", "tenant/acme", true},
		{"tenant/acme", "tenant/acme2", false},
		{"tenant/*", "tenant/acme", true},
		{"tenant/*", "tenant/", true},
		{"tenant/*", "tenant", false},
		{"tenant/*", "other/tenant/acme", false},
		{"*", "anything", true},
		{"", "", false},
		{"", "x", false},
		{"Tenant/*", "tenant/acme", false},
		{"a*b", "a*b", true},
		{"a*b", "axb", false},
		{"a.>", "a.b", false},
	}
	for _, tt := range tests {
		if got := keysvc.ScopeMatches(tt.pattern, tt.scope); got != tt.want {
			t.Errorf("ScopeMatches(%q, %q) = %t, want %t", tt.pattern, tt.scope, got, tt.want)
		}
	}
}
