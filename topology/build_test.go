package topology

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"buf.build/go/protovalidate"

	reviewsv1 "github.com/millrace/millrace/examples/reviews/proto/reviews/v1"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
)

func build(t *testing.T, describe func(b *Builder)) *Topology {
	t.Helper()
	b := New("app")
	describe(b)
	top, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return top
}

func TestCompiledFacts(t *testing.T) {
	t.Parallel()
	top := build(t, func(b *Builder) {
		s := textStream(b, From(Latest))
		results, _ := lookup(s, "ask")
		results.To("answered")
		counted(SelectKey(s, first).Repartition("by-first", Partitions(3)), "per-first").To("counts")
	})
	type facts struct {
		sources []Source
		sinks   []Sink
		stores  []string
		loop    string
		rows    bool
	}
	want := map[string]facts{
		"in": {
			sources: []Source{{Topic: "in", Start: Latest}},
			sinks: []Sink{
				{"app.by-first-repartition", &InternalTopic{Partitions: 3, Kind: TopicRepartition}},
				{"app.dlq", &InternalTopic{Kind: TopicDeadLetter}},
			},
		},
		"by-first": {
			sources: []Source{{Topic: "app.by-first-repartition", Internal: &InternalTopic{Partitions: 3, Kind: TopicRepartition}}},
			sinks:   []Sink{{"app.dlq", &InternalTopic{Kind: TopicDeadLetter}}, {Topic: "counts"}},
			stores:  []string{"per-first"},
			rows:    true,
		},
		"ask": {
			sources: []Source{{Topic: "in", Start: Latest}},
			sinks:   []Sink{{Topic: "answered"}, {"app.ask.dlq", &InternalTopic{Kind: TopicDeadLetter}}},
			loop:    "app.ask-loop",
			rows:    true,
		},
	}
	for _, s := range top.Subs {
		got := facts{sources: s.Sources, sinks: slices.Clone(s.Sinks), loop: s.LoopTopic, rows: s.NeedsRows}
		for _, spec := range s.Stores {
			got.stores = append(got.stores, spec.Name)
		}
		w, ok := want[s.Name]
		if !ok {
			t.Errorf("unexpected sub-topology %q", s.Name)
			continue
		}
		if !reflect.DeepEqual(got, w) {
			t.Errorf("%s:\n got %+v\nwant %+v", s.Name, got, w)
		}
		if !slices.IsSortedFunc(s.Sinks, func(a, b Sink) int { return strings.Compare(a.Topic, b.Topic) }) {
			t.Errorf("%s: sinks are not in order of name", s.Name)
		}
		delete(want, s.Name)
	}
	for name := range want {
		t.Errorf("no sub-topology %q", name)
	}
}

func TestCoPartitioning(t *testing.T) {
	t.Parallel()
	second := func(b *Builder) *KStream[string, string] { return Stream(b, "in2", serde.String(), serde.String()) }
	for _, tc := range []struct {
		name     string
		describe func(b *Builder)
		want     bool
	}{
		{"merge of stateless streams", func(b *Builder) { textStream(b).Merge(second(b)).To("out") }, false},
		{"count of one topic", func(b *Builder) { counted(textStream(b), "n") }, false},
		{"one topic read twice", func(b *Builder) { counted(textStream(b).Merge(textStream(b)), "n") }, false},
		{"count of a merge", func(b *Builder) { counted(textStream(b).Merge(second(b)), "n") }, true},
		{"join", func(b *Builder) {
			Join(textStream(b), Table(b, "rows", "rows", serde.String(), serde.String()), func(a, b string) string { return a + b }).To("out")
		}, true},
		{"two stores of two topics that only merge later", func(b *Builder) {
			counted(textStream(b), "one").Merge(counted(second(b), "two")).To("out")
		}, false},
	} {
		top := build(t, tc.describe)
		if len(top.Subs) != 1 {
			t.Errorf("%s: %d sub-topologies, want 1", tc.name, len(top.Subs))
		}
		if got := top.Subs[0].CoPartitioned; got != tc.want {
			t.Errorf("%s: co-partitioned %v, want %v", tc.name, got, tc.want)
		}
	}
}

// A fingerprint must change with the shape and with nothing else: tasks move only
// between members that have the same one.
func TestFingerprint(t *testing.T) {
	t.Parallel()
	fingerprint := func(describe func(b *Builder)) string {
		top := build(t, describe)
		for _, s := range top.Subs {
			if s.Name == "n" {
				return s.Fingerprint
			}
		}
		t.Fatal("no sub-topology n")
		return ""
	}
	base := func(b *Builder) { counted(textStream(b).Filter(pass), "n").To("out") }
	want := fingerprint(base)
	if want != "380d6aa33503404984e85758863c9520" {
		t.Errorf("fingerprint %s differs from that of earlier builds: members of a rolling update would not share tasks", want)
	}
	for name, same := range map[string]func(b *Builder){
		"again": base,
		"another sub-topology before it": func(b *Builder) {
			Stream(b, "else", serde.Bytes(), serde.Bytes()).To("other")
			base(b)
		},
		"another start": func(b *Builder) { counted(textStream(b, From(Latest)).Filter(pass), "n").To("out") },
	} {
		if got := fingerprint(same); got != want {
			t.Errorf("%s: fingerprint changed", name)
		}
	}
	for name, other := range map[string]func(b *Builder){
		"a step less":   func(b *Builder) { counted(textStream(b), "n").To("out") },
		"another step":  func(b *Builder) { counted(textStream(b).FilterNot(pass), "n").To("out") },
		"a name":        func(b *Builder) { counted(textStream(b).Filter(pass, Named("f")), "n").To("out") },
		"another topic": func(b *Builder) { counted(textStream(b).Filter(pass), "n").To("out2") },
		"another serde": func(b *Builder) {
			counted(textStream(b).Filter(pass), "n").WithValueSerde(serde.JSON[string]()).To("out")
		},
		"another wiring": func(b *Builder) { s := textStream(b); s.Filter(pass).To("out"); counted(s, "n") },
		"two edges":      func(b *Builder) { s := textStream(b).Filter(pass); counted(s.Merge(s), "n").To("out") },
		"a partitioner": func(b *Builder) {
			counted(textStream(b).Filter(pass), "n").To("out", PartitionBy(func(_, _ string, _ int32) int32 { return 0 }))
		},
	} {
		if fingerprint(other) == want {
			t.Errorf("%s: fingerprint did not change", name)
		}
	}
	windowed := func(size time.Duration) string {
		return fingerprint(func(b *Builder) {
			AddWindowStore(b, "n", serde.String(), serde.String(), size, time.Hour)
			Process(textStream(b), "step", noProcessor, Stores("n"))
		})
	}
	if windowed(time.Minute) == windowed(time.Second) {
		t.Error("window size: fingerprint did not change")
	}
}

func TestProtobufValuesAreValidated(t *testing.T) {
	t.Parallel()
	product := serde.Proto[*reviewsv1.Product]()
	b := New("app")
	s := Stream(b, "products", serde.String(), product)
	s.To("valid")
	d := newDriver(t, b)
	b = New("app")
	Stream(b, "products", serde.String(), product).To("any", Unvalidated())
	unchecked := newDriver(t, b)

	for _, tc := range []struct {
		name  string
		value *reviewsv1.Product
		fault string
	}{
		{"valid", &reviewsv1.Product{Id: "1", Name: "one"}, ""},
		{"violation", &reviewsv1.Product{Id: "1"}, "name"},
		{"null", nil, ""},
	} {
		raw := processors.Raw{Topic: "products", Key: []byte("k")}
		if tc.value != nil {
			raw.Value, _ = product.Append(nil, tc.value)
		}
		err := d.pipe(raw)
		if tc.fault == "" {
			if err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
		} else {
			e, ok := errors.AsType[*processors.Error](err)
			if !ok || e.Class != processors.ClassProduce || !strings.Contains(e.Error(), tc.fault) {
				t.Errorf("%s: error %v, want a produce error about %q", tc.name, err, tc.fault)
			}
			if _, ok := errors.AsType[*protovalidate.ValidationError](err); !ok {
				t.Errorf("%s: the violations are not in the chain of %v", tc.name, err)
			}
		}
		if err := unchecked.pipe(raw); err != nil {
			t.Errorf("%s, unvalidated: %v", tc.name, err)
		}
	}
	if n := len(d.out["valid"]); n != 2 {
		t.Errorf("%d valid records, want 2", n)
	}
	if n := len(unchecked.out["any"]); n != 3 {
		t.Errorf("%d unvalidated records, want 3", n)
	}
}

// A builder may be built twice, and a topology started many times: every task has
// operators of its own.
func TestTasksAreSeparate(t *testing.T) {
	t.Parallel()
	var log []string
	b := counting(&log, false)
	one, two := newDriver(t, b), newDriver(t, b)
	for _, d := range []*driver{one, two} {
		if err := d.text("in", "a", "x", 1); err != nil {
			t.Fatal(err)
		}
		d.want("out", "other=in 1@1")
	}
}
