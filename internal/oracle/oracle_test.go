package oracle

import (
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/millrace/millrace/internal/cases"
)

// TestFound runs the cases that once ran differently.
func TestFound(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases in testdata: ", err)
	}
	for _, file := range files {
		s, err := cases.Read(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range s.Cases {
			if r := c.Check(); !r.Pass {
				t.Errorf("%s: %s: %s\ngot %s", file, c.Name, r.Error, rows(r.Got))
			}
		}
	}
}

// TestAccidents checks what is done here where Kafka Streams decides by accident.
func TestAccidents(t *testing.T) {
	t.Parallel()
	list, err := Accidents()
	if err != nil || len(list) == 0 {
		t.Fatal("no accidents: ", err)
	}
	for _, a := range list {
		if a.Reason == "" || a.Avoided == "" {
			t.Errorf("%s: without a reason, or how it is avoided", a.Name)
		}
		if err := a.Check(); err != nil {
			t.Errorf("%s: %v", a.Name, err)
		}
	}
}

// TestGenerate makes cases: always the same ones, of all operators, that run.
func TestGenerate(t *testing.T) {
	t.Parallel()
	seen, windows := map[string]int{}, map[string]int{}
	emitted := 0
	for seed := range uint64(300) {
		c := Generate(seed)
		if !reflect.DeepEqual(c, Generate(seed)) {
			t.Fatalf("seed %d makes two cases", seed)
		}
		for _, s := range c.Setup.Topology {
			seen[s.Op]++
			if s.Window != nil {
				windows[s.Window.Type+" "+s.Emit]++
			}
		}
		if seed%10 > 0 {
			continue
		}
		got, err := c.Run()
		if err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		emitted += len(got)
	}
	for _, op := range []string{
		"stream", "table", "globalTable", "map", "selectKey", "mapValues", "flatMap", "flatMapValues", "filter", "filterNot", "peek", "merge",
		"split", "repartition", "toTable", "toStream", "to", "groupByKey", "groupBy", "count", "reduce", "aggregate", "cogroup", "suppress",
		"streamStreamJoin", "streamTableJoin", "globalTableJoin", "tableTableJoin", "foreignKeyJoin",
	} {
		if seen[op] == 0 {
			t.Errorf("no case with %s", op)
		}
	}
	for _, w := range []string{"tumbling ", "hopping ", "sliding ", "session ", "unlimited ", "tumbling on_window_close", "hopping on_window_close", "sliding on_window_close", "session on_window_close"} {
		if windows[w] == 0 {
			t.Errorf("no case with windows %s", w)
		}
	}
	if emitted < 300 {
		t.Errorf("30 cases emit %d records", emitted)
	}
}

// TestReductions takes records and steps out of a case.
func TestReductions(t *testing.T) {
	t.Parallel()
	c := cases.Case{Input: []cases.Input{{Topic: "a"}, {Topic: "b"}, {Topic: "a"}}}
	c.Setup.Topology = []cases.Step{
		{Op: "stream", ID: "A", Topic: "a"},
		{Op: "stream", ID: "B", Topic: "b"},
		{Op: "split", ID: "S", From: "A", Branches: []string{"key == 'k'"}},
		{Op: "merge", ID: "M", From: "S.0", With: []string{"B"}},
		{Op: "to", From: "M", Topic: "out"},
		{Op: "to", From: "S.default", Topic: "rest"},
	}
	var got []string
	for _, less := range reductions(c) {
		text := ""
		for _, s := range less.Setup.Topology {
			text += s.Op + ":" + s.From + " "
		}
		got = append(got, text)
		if len(less.Input) == 3 && len(less.Setup.Topology) == len(c.Setup.Topology) {
			t.Errorf("%s: not smaller", text)
		}
	}
	for _, want := range []string{
		"stream: stream: merge:A to:M to:A ",   // without the split
		"stream: split:A to:S.0 to:S.default ", // without the merge, and so without B
		"stream: split:A to:S.default ",        // without a sink, and what led there
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no case %q in %q", want, got)
		}
	}
}
