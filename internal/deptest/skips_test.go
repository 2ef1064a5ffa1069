package deptest_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestSkipsAreListed compares the tests that may skip with CI set with the table in
// CONTRIBUTING.md.
func TestSkipsAreListed(t *testing.T) {
	root := moduleRoot(t)
	doc, err := os.ReadFile(filepath.Join(root, "CONTRIBUTING.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(doc), "| test | skips without | because |")
	if !ok {
		t.Fatal("CONTRIBUTING.md has no table of skips")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	var listed []string
	for line := range strings.Lines(table) {
		if cells := strings.Split(line, "|"); len(cells) > 1 {
			for _, m := range regexp.MustCompile("`([A-Za-z0-9]+)`").FindAllStringSubmatch(cells[1], -1) {
				listed = append(listed, m[1])
			}
		}
	}
	var found []string
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && strings.HasPrefix(e.Name(), ".") && path != root:
			return filepath.SkipDir
		case e.IsDir() || !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		found = append(found, skipping(file)...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(listed)
	slices.Sort(found)
	if found = slices.Compact(found); !slices.Equal(listed, found) {
		t.Errorf("CONTRIBUTING.md lists %v,\nthe tests that skip are %v", listed, found)
	}
}

// skipping names the functions of a file that skip for other reasons than -short
// or because CI is not set; for a function that helps tests of the same file, those.
func skipping(file *ast.File) []string {
	bodies := make(map[string]*ast.FuncDecl)
	skips := make(map[string]bool)
	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil {
			bodies[f.Name.Name] = f
			skips[f.Name.Name] = mayskip(f.Body)
		}
	}
	var out []string
	for name, f := range bodies {
		if !strings.HasPrefix(name, "Test") && !strings.HasPrefix(name, "Fuzz") {
			continue
		}
		ast.Inspect(f.Body, func(n ast.Node) bool {
			if c, ok := n.(*ast.CallExpr); ok {
				if id, ok := c.Fun.(*ast.Ident); ok && skips[id.Name] {
					skips[name] = true
				}
			}
			return true
		})
		if skips[name] {
			out = append(out, name)
		}
	}
	return out
}

// mayskip reports whether a block skips, outside of what -short and CI decide.
func mayskip(block ast.Node) (found bool) {
	ast.Inspect(block, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.IfStmt:
			decided := false
			ast.Inspect(n.Cond, func(c ast.Node) bool {
				switch c := c.(type) {
				case *ast.SelectorExpr:
					decided = decided || c.Sel.Name == "Short"
				case *ast.BasicLit:
					decided = decided || c.Value == `"CI"`
				}
				return true
			})
			return !decided
		case *ast.SelectorExpr:
			if id, ok := n.X.(*ast.Ident); ok && id.Name == "streams" { // streams.Skip is a verdict
				return true
			}
			found = found || n.Sel.Name == "Skip" || n.Sel.Name == "Skipf" || n.Sel.Name == "SkipNow"
		}
		return true
	})
	return found
}
