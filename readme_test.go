package millrace_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The code of the README's section on models is that of an example that runs.
func TestReadmeShowsTheExample(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("topology/example_enrich_test.go")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)## Asking models.*?```go\n(.*?)```").FindSubmatch(readme)
	if block == nil {
		t.Fatal("README.md has no code under Asking models")
	}
	if code := "\t" + strings.ReplaceAll(strings.TrimSpace(string(block[1])), "\n", "\n\t"); !strings.Contains(string(example), code) {
		t.Errorf("topology/example_enrich_test.go does not contain, indented by a tab:\n%s", block[1])
	}
}
