package topology

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
)

// strings returns a stream of strings of topic "in".
func textStream(b *Builder, opts ...SourceOption) *KStream[string, string] {
	return Stream(b, "in", serde.String(), serde.String(), opts...)
}

func TestStatelessSteps(t *testing.T) {
	t.Parallel()
	long := func(_, v string) bool { return len(v) > 1 }
	type stream = *KStream[string, string]
	for _, tc := range []struct {
		name string
		step func(s stream)
		want []string // of the records a=x@1, b=yy@2, a=zz@3
	}{
		{"to", func(s stream) { s.To("out") }, []string{"a=x@1", "b=yy@2", "a=zz@3"}},
		{"filter", func(s stream) { s.Filter(long).To("out") }, []string{"b=yy@2", "a=zz@3"}},
		{"filter not", func(s stream) { s.FilterNot(long).To("out") }, []string{"a=x@1"}},
		{"map values", func(s stream) { MapValues(s, strings.ToUpper).To("out") }, []string{"a=X@1", "b=YY@2", "a=ZZ@3"}},
		{"map values to another type", func(s stream) {
			n := MapValues(s, func(v string) int64 { return int64(len(v)) })
			MapValues(n, func(n int64) string { return fmt.Sprint(n) }).To("out")
		}, []string{"a=1@1", "b=2@2", "a=2@3"}},
		{"map", func(s stream) {
			Map(s, func(k, v string) (string, string) { return v, k }).To("out")
		}, []string{"x=a@1", "yy=b@2", "zz=a@3"}},
		{"try map sets time and drops the value", func(s stream) {
			TryMap(s, func(r processors.Record[string, string]) (processors.Record[string, string], error) {
				r.Timestamp *= 10
				r.NoValue = r.Value == "x"
				return r, nil
			}).To("out")
		}, []string{"a=-@10", "b=yy@20", "a=zz@30"}},
		{"select key", func(s stream) {
			SelectKey(s, func(_, v string) string { return v[:1] }).To("out")
		}, []string{"x=x@1", "y=yy@2", "z=zz@3"}},
		{"select key, nil is null", func(s stream) {
			SelectKey(s, func(k, _ string) []byte {
				if k == "a" {
					return nil
				}
				return []byte(k)
			}).To("out")
		}, []string{"-=x@1", "b=yy@2", "-=zz@3"}},
		{"map values, nil is null", func(s stream) {
			MapValues(s, func(v string) *string { return nil }).WithValueSerde(serde.JSON[*string]()).To("out")
		}, []string{"a=-@1", "b=-@2", "a=-@3"}},
		{"flat map", func(s stream) {
			FlatMap(s, func(k, v string) iter.Seq2[string, string] {
				if v == "x" {
					return nil
				}
				return maps.All(map[string]string{v: k})
			}).To("out")
		}, []string{"yy=b@2", "zz=a@3"}},
		{"flat map values", func(s stream) {
			FlatMapValues(s, func(v string) iter.Seq[string] { return slices.Values(strings.Split(v, "")) }).To("out")
		}, []string{"a=x@1", "b=y@2", "b=y@2", "a=z@3", "a=z@3"}},
		{"split takes the first match", func(s stream) {
			br := s.Split()
			br.Branch("long", long).To("out")
			br.Branch("also long", long).To("never")
		}, []string{"b=yy@2", "a=zz@3"}},
		{"split default", func(s stream) {
			br := s.Split()
			br.Branch("long", long).To("other")
			br.Default("rest").To("out")
		}, []string{"a=x@1"}},
		{"merge", func(s stream) {
			s.Filter(long).Merge(s.FilterNot(long), s).To("out")
		}, []string{"a=x@1", "a=x@1", "b=yy@2", "b=yy@2", "a=zz@3", "a=zz@3"}},
		{"repartition", func(s stream) {
			SelectKey(s, func(_, v string) string { return v }).Repartition("by-value").To("out")
		}, []string{"x=x@1", "yy=yy@2", "zz=zz@3"}},
		{"to each", func(s stream) {
			s.ToEach(func(r processors.Record[string, string]) (string, error) {
				if r.Key == "a" {
					return "out", nil
				}
				return "other", nil
			})
		}, []string{"a=x@1", "a=zz@3"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := New("app")
			tc.step(textStream(b))
			d := newDriver(t, b)
			for i, kv := range [][2]string{{"a", "x"}, {"b", "yy"}, {"a", "zz"}} {
				if err := d.text("in", kv[0], kv[1], int64(i+1)); err != nil {
					t.Fatal(err)
				}
			}
			d.want("out", tc.want...)
			if never := d.texts("never"); never != nil {
				t.Errorf("topic never got %q", never)
			}
		})
	}
}

func TestChildrenRunInOrderOfAddition(t *testing.T) {
	t.Parallel()
	b := New("app")
	s := textStream(b)
	var seen []string
	note := func(who string) func(string, string) {
		return func(string, string) { seen = append(seen, who) }
	}
	s.ForEach(note("first"))
	p := s.Peek(note("second"))
	textStream(b).ForEach(note("second source"))
	s.ForEach(note("third"))
	p.ForEach(note("behind second"))
	d := newDriver(t, b)
	if err := d.text("in", "a", "x", 1); err != nil {
		t.Fatal(err)
	}
	if want := []string{"first", "second", "behind second", "third", "second source"}; !slices.Equal(seen, want) {
		t.Errorf("order %q, want %q", seen, want)
	}
}

func TestNullsAndHeadersPass(t *testing.T) {
	t.Parallel()
	b := New("app")
	var noKey, noValue bool
	s := textStream(b).TryFilter(func(r processors.Record[string, string]) (bool, error) {
		noKey, noValue = r.NoKey, r.NoValue
		return true, nil
	})
	s.Peek(func(k, v string) {
		if k != "" || v != "" {
			t.Errorf("nulls are seen as %q, %q; want zero values", k, v)
		}
	}).Repartition("again").To("out")
	d := newDriver(t, b)
	headers := []processors.Header{{Key: "h", Value: []byte("1")}, {Key: "h", Value: nil}}
	if err := d.pipe(processors.Raw{Topic: "in", Timestamp: 7, Headers: headers}); err != nil {
		t.Fatal(err)
	}
	if !noKey || !noValue {
		t.Errorf("flags are %v, %v; want both set", noKey, noValue)
	}
	d.want("out", "-=-@7")
	if got := d.out["out"][0].Headers; len(got) != 2 || got[0].Key != "h" || got[1].Value != nil {
		t.Errorf("headers %v, want %v", got, headers)
	}
}

func TestAutomaticRepartitionDropsNullKeys(t *testing.T) {
	t.Parallel()
	b := New("app")
	changed := SelectKey(textStream(b), func(k, v string) []byte {
		if v == "null" {
			return nil
		}
		return []byte(v)
	})
	raw := textStream(b)
	raw.To("raw")
	if repartitioned(raw, "unused", false) != raw {
		t.Error("a stream whose key never changed was repartitioned")
	}
	s := repartitioned(changed, "group", false)
	s.To("out")
	if again := repartitioned(s, "again", false); again != s {
		t.Error("a repartitioned stream was repartitioned again")
	}
	d := newDriver(t, b)
	for i, v := range []string{"null", "x"} {
		if err := d.text("in", "k", v, int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	d.want("out", "x=x@1")
	if got := d.tasks[0].drops; !slices.Equal(got, []string{"group: null-key"}) {
		t.Errorf("drops %q", got)
	}
}

func TestRecordErrors(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	type stream = *KStream[string, string]
	for _, tc := range []struct {
		name   string
		raw    processors.Raw
		source []SourceOption
		step   func(s stream)
		class  processors.Class
		action processors.Action
		at     string // the step
		text   string // in the message
	}{
		{name: "returned", step: func(s stream) {
			TryMapValues(s, func(processors.Record[string, string]) (string, error) { return "", boom }, Named("upper")).To("out")
		}, class: processors.ClassProcess, at: "upper", text: "boom"},
		{name: "steered", step: func(s stream) {
			s.TryForEach(func(processors.Record[string, string]) error { return processors.WithAction(processors.Skip, boom) })
		}, class: processors.ClassProcess, action: processors.Skip, at: "for-each-1", text: "boom"},
		{name: "panic", step: func(s stream) {
			s.Filter(func(string, string) bool { panic(boom) }, Named("picky")).To("out")
		}, class: processors.ClassProcess, at: "picky", text: "panic: boom"},
		{name: "panic behind another step", step: func(s stream) {
			MapValues(s.Filter(func(string, string) bool { return true }), func(string) string { panic("no") }, Named("inner")).To("out")
		}, class: processors.ClassProcess, at: "inner", text: "panic: no"},
		{name: "panic in a sequence", step: func(s stream) {
			FlatMapValues(s, func(string) iter.Seq[string] {
				return func(yield func(string) bool) { yield("x"); panic("late") }
			}, Named("lazy")).To("out")
		}, class: processors.ClassProcess, at: "lazy", text: "late"},
		{name: "undecodable value", step: func(s stream) {
			Stream(s.b, "numbers", serde.String(), serde.Int64()).To("out")
			s.To("out2")
		}, raw: processors.Raw{Topic: "numbers", Key: []byte("k"), Value: []byte("abc")}, class: processors.ClassDecode, at: "source-1", text: "value of 3 bytes as int64"},
		{name: "undecodable key, policy of the source", step: func(s stream) {
			Stream(s.b, "numbers", serde.Int32(), serde.Int64(), OnDecodeError(processors.Skip)).To("out")
			s.To("out2")
		}, raw: processors.Raw{Topic: "numbers", Key: []byte("k"), Value: []byte("abc")}, class: processors.ClassDecode, action: processors.Skip, at: "source-1", text: "key of 1 bytes as int32"},
		{
			name: "negative timestamp", step: func(s stream) { s.To("out") }, raw: processors.Raw{Topic: "in", Timestamp: -1},
			class: processors.ClassDecode, at: "source-0", text: "timestamp -1 is negative",
		},
		{
			name: "extractor fails", source: []SourceOption{Timestamps(func(processors.Record[string, string], int64) (int64, error) { return 0, boom })},
			step: func(s stream) { s.To("out") }, class: processors.ClassDecode, at: "source-0", text: "timestamp extractor: boom",
		},
		{
			name: "extractor panics", source: []SourceOption{Timestamps(func(processors.Record[string, string], int64) (int64, error) { panic(boom) })},
			step: func(s stream) { s.To("out") }, class: processors.ClassDecode, at: "source-0", text: "panic: boom",
		},
		{name: "unencodable value", step: func(s stream) {
			MapValues(s, func(string) func() { return func() {} }).WithValueSerde(serde.JSON[func()]()).To("out", Named("json"))
		}, class: processors.ClassProduce, at: "json", text: "encode value as json"},
		{name: "no topic", step: func(s stream) {
			s.ToEach(func(processors.Record[string, string]) (string, error) { return "", nil }, Named("route"))
		}, class: processors.ClassProduce, at: "route", text: "named no topic"},
		{name: "bad topic", step: func(s stream) {
			s.ToEach(func(processors.Record[string, string]) (string, error) { return "a b", nil }, Named("route"))
		}, class: processors.ClassProduce, at: "route", text: "use letters"},
		{name: "topic function panics", step: func(s stream) {
			s.ToEach(func(processors.Record[string, string]) (string, error) { panic(boom) }, Named("route"))
		}, class: processors.ClassProduce, at: "route", text: "panic: boom"},
		{name: "bad partition", step: func(s stream) {
			s.To("out", PartitionBy(func(_, _ string, n int32) int32 { return n }))
		}, class: processors.ClassProduce, at: "sink-1", text: `chose partition 4, but topic "out" has 4`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := New("app")
			tc.step(textStream(b, tc.source...))
			d := newDriver(t, b)
			if tc.raw.Topic == "" {
				tc.raw = processors.Raw{Topic: "in", Key: []byte("k"), Value: []byte("v"), Timestamp: 1}
			}
			err := d.pipe(tc.raw)
			e, ok := errors.AsType[*processors.Error](err)
			if !ok {
				t.Fatalf("error %v, want a *processors.Error", err)
			}
			if e.Class != tc.class || e.Action != tc.action || e.Step != tc.at || !strings.Contains(e.Error(), tc.text) {
				t.Errorf("got class %s, action %s, step %s: %v\nwant class %s, action %s, step %s, text %q", e.Class, e.Action, e.Step, e, tc.class, tc.action, tc.at, tc.text)
			}
			if strings.Contains(tc.text, "boom") && !errors.Is(err, boom) {
				t.Error("the user's error is not in the chain")
			}
			if len(d.out) > 0 {
				t.Errorf("output of a failed record: %v", d.out)
			}
		})
	}
}

func TestPartitionerChooses(t *testing.T) {
	t.Parallel()
	b := New("app")
	textStream(b).To("out", PartitionBy(func(_, v string, n int32) int32 { return int32(len(v))%n - 1 }))
	d := newDriver(t, b)
	for _, v := range []string{"", "x", "xxx"} {
		if err := d.text("in", "k", v, 1); err != nil {
			t.Fatal(err)
		}
	}
	var got []int32
	for _, r := range d.out["out"] {
		got = append(got, r.Partition)
	}
	if !slices.Equal(got, []int32{-1, 0, 2}) {
		t.Errorf("partitions %v, want -1 0 2", got)
	}
}

func TestTimestampExtractor(t *testing.T) {
	t.Parallel()
	b := New("app")
	textStream(b, Timestamps(func(r processors.Record[string, string], partitionTime int64) (int64, error) {
		if r.Value == "now" {
			return partitionTime, nil
		}
		return int64(len(r.Value)), nil
	})).To("out")
	d := newDriver(t, b)
	for _, v := range []string{"xxx", "x", "now"} {
		if err := d.text("in", "k", v, -5); err != nil {
			t.Fatal(err)
		}
	}
	d.want("out", "k=xxx@3", "k=x@1", "k=now@3")
	src := d.top.Subs[0].Sources[0]
	if ts, err := src.Timestamp(&processors.Raw{Topic: "in", Value: []byte("now"), Timestamp: -5}, 9); ts != 9 || err != nil {
		t.Errorf("Source.Timestamp gave %d, %v; want 9", ts, err)
	}
	if !d.top.Subs[0].NeedsRows {
		t.Error("partition time needs task rows, but NeedsRows is false")
	}
}
