// Command cases runs conformance cases on the topology test driver and prints
// one JSON line per case:
//
//	{"name": "testInner", "pass": true, "got": [{"key": 1, "value": "A-a", "timestamp": 5, "after": 3}]}
//
// A case that needs an operator that does not exist yet fails with the reason in
// "unsupported". The exit status is 1 if a supported case fails and 2 if a file
// cannot be read.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/millrace/millrace/internal/cases"
)

func main() {
	if len(os.Args) < 2 {
		_, _ = fmt.Fprintln(os.Stderr, "usage: cases FILE...")
		os.Exit(2)
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run runs the cases of all files and returns the exit status.
func run(files []string, stdout, stderr io.Writer) int {
	status := 0
	fail := func(err error) {
		_, _ = fmt.Fprintf(stderr, "cases: %v\n", err) // there is nowhere else to say it
		status = 2
	}
	lines := json.NewEncoder(stdout)
	lines.SetEscapeHTML(false)
	for _, file := range files {
		s, err := cases.Read(file)
		if err != nil {
			fail(err)
			continue
		}
		for _, c := range s.Cases {
			r := c.Check()
			if err := lines.Encode(r); err != nil {
				fail(err)
				return status
			}
			if !r.Pass && r.Unsupported == "" {
				status = max(status, 1)
			}
		}
	}
	return status
}
