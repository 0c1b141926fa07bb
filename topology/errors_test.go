package topology

import (
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
)

var errorCases = []goldenCase{
	{"empty", func(*Builder) {}},
	{"all mistakes at once", func(b *Builder) {
		s := Stream[string, string](b, "in", serde.String(), nil)
		s.Filter(pass)
		s.To("bad topic")
		Process(s, "", noProcessor, Stores("nowhere"))
	}},
	{"unused source", func(b *Builder) { textStream(b) }},
	{"unused steps", func(b *Builder) {
		s := textStream(b)
		s.Filter(pass)
		MapValues(s, strings.ToUpper, Named("upper"))
		s.Repartition("again")
		s.Peek(func(string, string) {})
		s.Split().Branch("one", pass)
	}},
	{"names taken", func(b *Builder) {
		s := textStream(b, Named("tickets"))
		s.Filter(pass, Named("tickets")).To("out", Named("count"))
		counted(s, "count")
		s.Repartition("again").Repartition("again").To("out2")
		AddKeyValueStore(b, "again", serde.String(), serde.String())
	}},
	{"bad names", func(b *Builder) {
		s := textStream(b)
		counted(s, "..")
		counted(s, "a/b")
		counted(s, strings.Repeat("x", 250))
		s.Filter(pass, Named("")).To("")
	}},
	{"a name too long for its topic", func(b *Builder) { counted(textStream(b), strings.Repeat("x", 243)) }},
	{"topic with different serdes", func(b *Builder) {
		textStream(b).To("out")
		Stream(b, "in", serde.Int64(), serde.JSON[int]()).To("out2")
		Stream(b, "in2", serde.Bytes(), serde.Int64()).To("out")
		Stream(b, "out2", serde.Bytes(), serde.Bytes()).To("out3")
	}},
	{"topic with different starts and an extractor", func(b *Builder) {
		textStream(b).To("out")
		textStream(b, From(Latest)).To("out")
		textStream(b, Timestamps(func(r processors.Record[string, string], _ int64) (int64, error) { return r.Timestamp, nil })).To("out")
	}},
	{"two repartitions of one name", func(b *Builder) {
		s := SelectKey(textStream(b), first)
		repartitioned(s, "group", false).To("a")
		repartitioned(s, "group", false).To("b")
	}},
	{"topics of the application's own", func(b *Builder) {
		s := textStream(b)
		counted(SelectKey(s, first), "per-first").To("app.per-first-table")
		Stream(b, "app.per-first-repartition", serde.String(), serde.String()).To("app.dlq")
		results, _ := lookup(s, "ask")
		results.To("app.ask-loop")
	}},
	{"internal topics that clash", func(b *Builder) {
		s := textStream(b)
		counted(s, "a")
		counted(s, "a-task")
	}},
	{"missing serdes", func(b *Builder) {
		type plan struct{ Name string }
		s := MapValues(textStream(b), func(v string) plan { return plan{v} })
		s.To("plans")
		SelectKey(s, func(_ string, p plan) *plan { return &p }).Repartition("by-plan").ForEach(func(*plan, plan) {})
	}},
	{"options of the wrong type", func(b *Builder) {
		s := textStream(b, Timestamps(func(processors.Record[string, int64], int64) (int64, error) { return 0, nil }), OnDecodeError(processors.Retry))
		s.To("out", PartitionBy(func(string, int64, int32) int32 { return 0 }), Partitions(3))
		s.Repartition("again", Partitions(0), Named("other")).To("out2")
		s.ToEach(nil)
	}},
	{"branches", func(b *Builder) {
		br := textStream(b).Split(Named("route"))
		br.Branch("", pass).To("a")
		br.Branch("b", nil).To("b")
		br.Default("rest").To("c")
		br.Branch("rest", pass).To("d")
	}},
	{"stores", func(b *Builder) {
		AddKeyValueStore[string, string](b, "no-serdes", nil, nil)
		AddWindowStore(b, "bad-window", serde.String(), serde.String(), time.Minute, time.Second)
		AddKeyValueStore(b, "unused", serde.String(), serde.String())
		Process(textStream(b), "step", noProcessor, Stores("no-serdes", "bad-window", "unknown"))
		Process[string, string, string, string](textStream(b), "nil", nil)
	}},
	{"streams of two builders", func(b *Builder) { textStream(b).Merge(textStream(New("other"))).To("out") }},
	{"asynchronous step without a name", func(b *Builder) {
		results, _ := lookup(textStream(b), "")
		results.To("out")
	}},
}

func TestBuildErrors(t *testing.T) { golden(t, "errors.txt", errorCases) }

func TestApplicationNameIsChecked(t *testing.T) {
	t.Parallel()
	b := New("my app")
	textStream(b).To("out")
	if _, err := b.Build(); err == nil || !strings.Contains(err.Error(), `application "my app"`) {
		t.Errorf("error %v, want one about the application's name", err)
	}
}
