package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace/millrace/internal/cases"
)

// TestConformance runs the folder of conformance cases, where there is one.
func TestConformance(t *testing.T) {
	folder := os.Getenv("MILLRACE_CASES")
	if folder == "" {
		folder = filepath.Join("..", "..", "..", "..", "shared", "cases")
	}
	files, err := filepath.Glob(filepath.Join(folder, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Skipf("no cases in %s; set MILLRACE_CASES to their folder", folder)
	}
	passed := 0
	for _, file := range files {
		s, err := cases.Read(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range s.Cases {
			t.Run(strings.TrimSuffix(filepath.Base(file), ".json")+"/"+c.Name, func(t *testing.T) {
				r := c.Check()
				switch {
				case r.Unsupported != "":
					t.Skipf("not yet supported: %s", r.Unsupported)
				case !r.Pass:
					got, err := json.Marshal(r.Got)
					if err != nil {
						t.Fatal(err)
					}
					t.Errorf("%s\ngot %s", r.Error, got)
				default:
					passed++
				}
			})
		}
	}
	if passed == 0 {
		t.Error("no case passed")
	}
}

const (
	joinCase = `{"cases": [
		{"name": "joins", "setup": {"topology": [
			{"op": "stream", "id": "L", "topic": "left"}, {"op": "table", "id": "R", "topic": "right"},
			{"op": "streamTableJoin", "id": "J", "stream": "L", "table": "R", "kind": "inner", "joiner": "{left}-{right}"},
			{"op": "to", "from": "J", "topic": "output"}]},
		 "input": [
			{"topic": "right", "key": 1, "value": "a", "timestamp": 1},
			{"topic": "left", "key": 1, "value": "A", "timestamp": 2}],
		 "expected": [{"key": 1, "value": "EXPECTED", "timestamp": 2, "after": 1}]},
		{"name": "later", "setup": {"topology": [{"op": "teleport", "id": "T"}]}, "input": [], "expected": []}]}`
	joined  = `{"name":"joins","pass":true,"got":[{"key":1,"value":"A-a","timestamp":2,"after":1}]}`
	differs = `{"name":"joins","pass":false,"got":[{"key":1,"value":"A-a","timestamp":2,"after":1}]}`
	later   = `{"name":"later","pass":false,"got":[],"unsupported":"teleport"}`
)

func TestRun(t *testing.T) {
	for _, tt := range []struct {
		name, file string
		status     int
		lines      []string
	}{
		{"unsupported cases do not fail", strings.Replace(joinCase, "EXPECTED", "A-a", 1), 0, []string{joined, later}},
		{"a difference fails", strings.Replace(joinCase, "EXPECTED", "A-b", 1), 1, []string{differs, later}},
		{"not JSON", "{", 2, nil},
		{"no cases", "{}", 2, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "cases.json")
			if err := os.WriteFile(file, []byte(tt.file), 0o600); err != nil {
				t.Fatal(err)
			}
			var stdout, stderr bytes.Buffer
			if status := run([]string{file}, &stdout, &stderr); status != tt.status {
				t.Errorf("exit status %d, want %d: %s", status, tt.status, &stderr)
			}
			want := ""
			for _, line := range tt.lines {
				want += line + "\n"
			}
			if got := stdout.String(); got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
	if status := run([]string{filepath.Join(t.TempDir(), "absent")}, &bytes.Buffer{}, &bytes.Buffer{}); status != 2 {
		t.Errorf("a missing file: exit status %d, want 2", status)
	}
}
