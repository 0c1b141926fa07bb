package millrace_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What docs/kafka-streams.md says stands for a method of Kafka Streams is there.
func TestKafkaStreamsTable(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("docs/kafka-streams.md")
	if err != nil {
		t.Fatal(err)
	}
	exported := exportedNames(t, "topology")
	name, rows := regexp.MustCompile("`([A-Z][A-Za-z.]*)`"), 0
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 || strings.HasPrefix(cells[1], "---") {
			continue
		}
		rows++
		for _, m := range name.FindAllStringSubmatch(cells[2], -1) {
			if !exported[m[1]] {
				t.Errorf("package topology has no %s, which is to stand for %s", m[1], strings.TrimSpace(cells[1]))
			}
		}
	}
	if rows < 80 {
		t.Errorf("found %d rows, the table was not read", rows)
	}
}

// exportedNames returns the exported functions and types of a package, and its methods
// as Type.Method.
func exportedNames(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if fn.Recv == nil {
				names[fn.Name.Name] = true
				continue
			}
			names[receiver(fn.Recv.List[0].Type)+"."+fn.Name.Name] = true
		}
	}
	return names
}

// receiver returns the name of a receiver's type, without pointer and type parameters.
func receiver(of ast.Expr) string {
	switch of := of.(type) {
	case *ast.StarExpr:
		return receiver(of.X)
	case *ast.IndexExpr:
		return receiver(of.X)
	case *ast.IndexListExpr:
		return receiver(of.X)
	case *ast.Ident:
		return of.Name
	}
	return ""
}
