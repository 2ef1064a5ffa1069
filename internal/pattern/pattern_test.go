package pattern_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keyweir/keyweir/internal/pattern"
)

func TestUncovered(t *testing.T) {
	for _, c := range []struct {
		s    string
		by   string
		want string // "" covered
	}{
		{"a.b", "a.b", ""},
		{"a.b", "a.*", ""},
		{"a.b", "a.>", ""},
		{"a", "a.>", "a"},
		{"a.>", "a.* a.*.>", ""},
		{"a.>", "a.* a.*.* a.*.*.>", ""},
		{"a.>", "a.*.>", "a.any"},
		{"a.>", "a.*", "a.any.any"},
		{"a.*", "a.x a.y", "a.any"},
		{"a.*", "a.x a.*", ""},
		{">", "* *.>", ""},
		{">", "a.> b.>", "a"},
		{"*.>", "0.> 1.>", "any.any"},
		{"a.*.c", "a.b.c a.*.d", "a.any.c"},
		{"*.*", "a.* *.b", "any.any"},
		{"any.*", "any.any any.anyx", "any.anyxxx"},
		{"a", "", "a"},
	} {
		if got := pattern.Uncovered(c.s, strings.Fields(c.by)); got != c.want {
			t.Errorf("Uncovered(%q, %q) = %q, want %q", c.s, c.by, got, c.want)
		}
	}
}

// matches reports whether a subject matches a pattern, as NATS does it.
func matches(p, subject string) bool { return pattern.Covers(p, subject) }

// TestUncoveredIsExact compares with all subjects of up to five tokens out of
// one more letter than the patterns use; patterns here have at most four tokens.
func TestUncoveredIsExact(t *testing.T) {
	var subjects []string
	level := []string{"a", "b", "z"}
	for range 5 {
		subjects = append(subjects, level...)
		var next []string
		for _, s := range level {
			for _, l := range []string{"a", "b", "z"} {
				next = append(next, s+"."+l)
			}
		}
		level = next
	}
	gen := rapid.Custom(func(t *rapid.T) string {
		tokens := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "*", "*"}), 1, 4).Draw(t, "tokens")
		if rapid.Bool().Draw(t, "open") {
			tokens[len(tokens)-1] = ">"
		}
		return strings.Join(tokens, ".")
	})
	rapid.Check(t, func(t *rapid.T) {
		s, by := gen.Draw(t, "s"), rapid.SliceOfN(gen, 0, 6).Draw(t, "by")
		open := false
		for _, x := range subjects {
			if !matches(s, x) {
				continue
			}
			in := false
			for _, b := range by {
				in = in || matches(b, x)
			}
			open = open || !in
		}
		got := pattern.Uncovered(s, by)
		if (got != "") != open {
			t.Fatalf("Uncovered(%q, %q) = %q, by enumeration uncovered: %v", s, by, got, open)
		}
		if got == "" {
			return
		}
		if !matches(s, got) {
			t.Fatalf("Uncovered(%q, %q) = %q, which does not match", s, by, got)
		}
		for _, b := range by {
			if matches(b, got) {
				t.Fatalf("Uncovered(%q, %q) = %q, which %q matches", s, by, got, b)
			}
		}
	})
}

func TestCheckPartitions(t *testing.T) {
	many := make([][]string, pattern.MaxPartitions+1)
	for i := range many {
		many[i] = []string{fmt.Sprint("a.", i)}
	}
	for _, c := range []struct {
		subjects   string
		partitions [][]string
		want       string // part of the error; "" for none
	}{
		{"a.> b.>", [][]string{{"a.>"}, {"b.>"}}, ""},
		{"a.>", [][]string{{"a.*"}, {"a.*.>"}}, ""},
		{"a.* a.*.>", [][]string{{"a.>"}}, ""},
		{"0.> 1.> 2.>", [][]string{{"0.>", "2.>"}, {"1.>"}}, ""},
		{"a.>", [][]string{{"a.>"}, {}}, "partition 1 has no filter"},
		{"a.>", [][]string{{"a..x"}}, `partition 0: filter "a..x": empty or blank token`},
		{"a.>", [][]string{{"a.*"}, {"a.>"}}, `partition 1: filter "a.>" overlaps "a.*" of partition 0`},
		{"a.>", [][]string{{"a.>", "a.x"}}, `partition 0: filter "a.x" overlaps "a.>" of partition 0`},
		{"a.>", [][]string{{"a.>"}, {"b"}}, `partition 1: filter "b" takes b, which is none`},
		{"a.*", [][]string{{"a.>"}}, `partition 0: filter "a.>" takes a.any.any, which is none`},
		{"a.> b.>", [][]string{{"a.>"}, {"b.*"}}, "no partition takes b.any.any, which is one of the route's subjects (b.>)"},
		{"a.>", many, "257 partitions, at most 256"},
	} {
		err := pattern.CheckPartitions(strings.Fields(c.subjects), c.partitions)
		switch {
		case (err == nil) != (c.want == ""), err != nil && !strings.Contains(err.Error(), c.want):
			t.Errorf("CheckPartitions(%q, %q) = %v, want %q", c.subjects, c.partitions, err, c.want)
		}
	}
}

func TestStreamNames(t *testing.T) {
	for _, c := range []struct {
		name string
		n    int
		want []string
	}{
		{"S", 0, []string{"S"}},
		{"S", 2, []string{"S-0", "S-1"}},
		{"A_{partition}_B", 2, []string{"A_0_B", "A_1_B"}},
	} {
		if d := cmp.Diff(c.want, pattern.StreamNames(c.name, c.n)); d != "" {
			t.Errorf("StreamNames(%q, %d): %s", c.name, c.n, d)
		}
	}
}
