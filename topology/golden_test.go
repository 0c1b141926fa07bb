package topology

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

// A goldenCase is a topology by name; testdata holds what Build makes of it.
type goldenCase struct {
	name  string
	build func(b *Builder)
}

// golden compares Describe's text, or Build's errors, of each case with the
// sections of a file in testdata: name, ----, text, blank line.
func golden(t *testing.T, file string, cases []goldenCase) {
	t.Helper()
	path := filepath.Join("testdata", file)
	var text strings.Builder
	got := map[string]string{}
	for _, c := range cases {
		if got[c.name] != "" {
			t.Fatalf("two cases are named %q", c.name)
		}
		got[c.name] = outcome(c)
		fmt.Fprintf(&text, "%s\n----\n%s\n", c.name, got[c.name])
	}
	if *update {
		if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; run go test with -update", err)
	}
	want := sections(string(data))
	for _, c := range cases {
		if got[c.name] != want[c.name] {
			t.Errorf("%s: %s: got\n%s\nwant\n%s", path, c.name, got[c.name], want[c.name])
		}
	}
	if len(want) != len(cases) {
		t.Errorf("%s has %d sections for %d cases; run go test with -update", path, len(want), len(cases))
	}
}

func outcome(c goldenCase) string {
	b := New("app")
	c.build(b)
	top, err := b.Build()
	if err == nil {
		return top.Describe()
	}
	var lines strings.Builder
	for _, e := range joined(err) {
		fmt.Fprintf(&lines, "error: %v\n", e)
	}
	return lines.String()
}

// joined returns the errors that Build joined.
func joined(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	return []error{errors.New("not joined: " + err.Error())}
}

func sections(data string) map[string]string {
	want := map[string]string{}
	var name string
	lines := strings.SplitAfter(data, "\n")
	for i, line := range lines {
		switch {
		case i+1 < len(lines) && lines[i+1] == "----\n":
			name = strings.TrimSuffix(line, "\n")
		case line == "----\n":
		case name != "":
			want[name] += line
		}
	}
	for name, text := range want {
		want[name] = strings.TrimSuffix(text, "\n")
	}
	return want
}

// TestDrawings keeps the drawings of one topology with everything in it.
func TestDrawings(t *testing.T) {
	b := New("app")
	br := textStream(b).Split(Named("route"))
	results, fallbacks := lookup(br.Branch("ask", pass), "ask")
	results.To("answered")
	counted(SelectKey(fallbacks.Merge(br.Default("rest")), first), "per-first").To("counts")
	top, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{"drawing.dot": top.DOT(), "drawing.mmd": top.Mermaid()} {
		path := filepath.Join("testdata", file)
		if *update {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatalf("%v; run go test with -update", err)
		}
		if text != string(want) {
			t.Errorf("%s: got\n%s", path, text)
		}
	}
}
