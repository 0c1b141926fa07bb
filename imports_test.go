package millrace_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/millrace/millrace"

// forbidden lists, for a package, what it must not import, itself or through
// others. Imports go one way: serde <- state <- processors <- topology <-
// internal/engine <- millrace. processors and topology also use llm, which knows
// none of them.
var forbidden = []struct {
	pkg string
	not []string
}{
	{"serde", []string{"state", "processors", "topology", "internal/engine", "internal/kafka", ""}},
	{"state", []string{"processors", "topology", "internal/engine", ""}},
	// Users link the SDK of the provider they name, and no other.
	{"processors", []string{"topology", "internal/engine", "internal/kafka", "llm/openai", "llm/anthropic", "llm/gemini", ""}},
	{"topology", []string{"internal/engine", "internal/kafka", "llm/openai", "llm/anthropic", "llm/gemini", ""}},
	{"topologytest", []string{"internal/engine", "internal/kafka", ""}},
	{"internal/kafka", []string{"processors", "topology", "internal/engine", ""}},
	{"internal/registry", []string{"state", "processors", "topology", "internal/engine", ""}},
	{"internal/engine", []string{"", "internal/broker"}},
	{"internal/checker", []string{"state", "processors", "topology", "internal/kafka", "internal/engine", ""}},
	{"llm", []string{"state", "processors", "topology", "internal/engine", "internal/kafka", ""}},
	{"llm/schema", []string{"state", "processors", "topology", "internal/engine", "internal/kafka", ""}},
	{"llm/answer", []string{"state", "processors", "topology", "internal/engine", "internal/kafka", ""}},
	{"llm/prompt", []string{"state", "processors", "topology", "internal/engine", "internal/kafka", ""}},
	{"llm/limit", []string{"state", "processors", "topology", "internal/engine", "internal/kafka", ""}},
	{"llm/openai", []string{"state", "processors", "topology", "internal/engine", "internal/kafka", ""}},
	{"llm/anthropic", []string{"state", "processors", "topology", "internal/engine", "internal/kafka", ""}},
	{"llm/gemini", []string{"state", "processors", "topology", "internal/engine", "internal/kafka", ""}},
	{"llm/genai", []string{"state", "processors", "topology", "internal/engine", "internal/kafka", ""}},
	{"alert", []string{"state", "processors", "topology", "internal/engine", "internal/kafka", "llm/openai", "llm/anthropic", "llm/gemini", ""}},
	{"", []string{"internal/broker", "internal/modelserver", "internal/chaos"}},
}

func TestImportsGoOneWay(t *testing.T) {
	t.Parallel()
	for _, f := range forbidden {
		t.Run(path(f.pkg), func(t *testing.T) {
			t.Parallel()
			deps := dependencies(t, path(f.pkg))
			for _, not := range f.not {
				if slices.Contains(deps, path(not)) {
					t.Errorf("%s imports %s, itself or through others", path(f.pkg), path(not))
				}
			}
			// Users' programs link what these packages import. (goka itself
			// imports testing.)
			for _, not := range []string{"github.com/golang/protobuf/proto", "github.com/twmb/franz-go/pkg/kfake"} {
				if slices.Contains(deps, not) {
					t.Errorf("%s links %s", path(f.pkg), not)
				}
			}
		})
	}
}

func path(pkg string) string { return strings.TrimSuffix(module+"/"+pkg, "/") }

func dependencies(t *testing.T, pkg string) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", pkg).Output()
	if err != nil {
		t.Fatalf("go list %s: %v", pkg, err)
	}
	return strings.Fields(string(out))
}
