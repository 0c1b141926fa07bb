package topology

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/millrace/millrace"

// importRules says, for packages by path within the module, which packages of the
// module they may import: imports go one way, from the root down to serde. A
// path stands for everything below it; "" is the root package itself.
var importRules = []struct{ pkg, may []string }{
	{[]string{"serde", "proto"}, []string{"proto"}},
	{[]string{"state"}, []string{"serde", "state", "proto"}},
	{[]string{"processors"}, []string{"serde", "state", "proto"}},
	{[]string{"topology"}, []string{"serde", "state", "processors", "proto"}},
	{[]string{"topologytest"}, []string{"serde", "state", "processors", "topology", "proto"}},
	{[]string{"internal/kafka"}, []string{"serde", "state", "internal/kafka", "proto"}},
	{[]string{"internal/engine"}, []string{"serde", "state", "processors", "topology", "internal/kafka", "internal/engine", "proto"}},
	{[]string{""}, []string{"serde", "state", "processors", "topology", "internal/kafka", "internal/engine", "proto"}},
}

// production are the packages that users' programs contain: they must not drag in
// package testing.
var production = []string{"", "serde", "state", "processors", "topology", "internal/kafka", "internal/engine"}

// below reports whether a package path is that of pkg or below it.
func below(path, pkg string) bool {
	return path == pkg || pkg != "" && strings.HasPrefix(path, pkg+"/")
}

func TestImportsGoOneWay(t *testing.T) {
	t.Parallel()
	for _, p := range listPackages(t) {
		path := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		for _, rule := range importRules {
			if !slices.ContainsFunc(rule.pkg, func(pkg string) bool { return below(path, pkg) }) {
				continue
			}
			for _, imported := range p.Imports {
				inside, ours := strings.CutPrefix(imported, module)
				inside = strings.TrimPrefix(inside, "/")
				if ours && !slices.ContainsFunc(rule.may, func(may string) bool { return below(inside, may) }) {
					t.Errorf("%s imports %s; it may import of this module: %s", p.ImportPath, imported, strings.Join(rule.may, ", "))
				}
			}
		}
		if slices.Contains(p.Imports, "testing") && slices.ContainsFunc(production, func(pkg string) bool { return below(path, pkg) }) {
			t.Errorf("%s imports testing; helpers for tests belong into topologytest or statetest", p.ImportPath)
		}
		if i := slices.IndexFunc(p.Imports, func(imported string) bool { return strings.HasPrefix(imported, "github.com/golang/protobuf") }); i >= 0 {
			t.Errorf("%s imports %s, a deprecated shim; use google.golang.org/protobuf", p.ImportPath, p.Imports[i])
		}
	}
}

type listedPackage struct {
	ImportPath string
	Imports    []string
}

// listPackages returns the packages of the module with the imports of their
// non-test files.
func listPackages(t *testing.T) []listedPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Imports", module+"/...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var list []listedPackage
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p listedPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	if len(list) < 5 {
		t.Fatalf("go list found only %d packages", len(list))
	}
	return list
}
