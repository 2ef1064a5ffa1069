package gateway

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The operations page has every reason a route stops for, and every metric.
func TestOperationsPage(t *testing.T) {
	b, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	for _, h := range hints {
		_, text, ok := strings.Cut(h.err.Error(), ": ")
		if !ok {
			text = h.err.Error()
		}
		if !strings.Contains(page, "`"+text+"`") {
			t.Errorf("docs/operations.md does not explain %q", h.err)
		}
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`"(keyweir\.gateway\.[a-z.]+)"`)
	found := 0
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range name.FindAllStringSubmatch(string(src), -1) {
			found++
			metric := strings.ReplaceAll(m[1], ".", "_")
			if !regexp.MustCompile("`" + metric + "(_total|_seconds)?`").MatchString(page) {
				t.Errorf("docs/operations.md lacks the metric %s", metric)
			}
		}
	}
	if found < 11 {
		t.Errorf("found %d metrics in the sources", found)
	}
}
