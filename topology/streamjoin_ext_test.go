package topology_test

import (
	"testing"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

func TestStreamJoinNulls(t *testing.T) {
	t.Parallel()
	w := topology.Within(ms(5), topology.Grace(ms(0)))
	concat := func(l string, _ bool, r string, _ bool) string { return l + "+" + r }
	script := `
		left - a 1
		right - b 2
		left k - 3
		right k c 4
		left k d 5
		right x - 20
		left k e 20`
	runAll(t, []scenario{
		{
			"inner", func(b *topology.Builder) {
				topology.StreamJoin(streamOf(b, "left"), streamOf(b, "right"), "j", w, func(l, r string) string { return l + "+" + r }).To("out")
			}, script, "k:d+c@5", []string{"j null-key", "j null-key", "j null-value", "j null-value"},
		},
		{
			"left", func(b *topology.Builder) {
				topology.StreamLeftJoin(streamOf(b, "left"), streamOf(b, "right"), "j", w, func(l, r string, _ bool) string { return l + "+" + r }).To("out")
			}, script, "null:a+@1 k:d+c@5", []string{"j null-key", "j null-value", "j null-value"},
		},
		{
			"outer", func(b *topology.Builder) {
				topology.StreamOuterJoin(streamOf(b, "left"), streamOf(b, "right"), "j", w, concat).To("out")
			}, script, "null:a+@1 null:+b@2 k:d+c@5", []string{"j null-value", "j null-value"},
		},
		{
			// A null value moves the time, but only another record forwards what closed.
			"time", func(b *topology.Builder) {
				topology.StreamOuterJoin(streamOf(b, "left"), streamOf(b, "right"), "j", w, concat).To("out")
			}, `
			left k a 1
			right k - 30
			right k b 29
			left k c 31`,
			"k:a+@1 k:c+b@31",
			[]string{"j null-value"},
		},
		{
			// Every record of a moment is kept.
			"duplicates", func(b *topology.Builder) {
				topology.StreamOuterJoin(streamOf(b, "left"), streamOf(b, "right"), "j", w, concat).To("out")
			}, `
			left k a 1
			left k a 1
			left x a 1
			left x a 1
			right k b 1
			left k c 10`,
			"k:a+b@1 k:a+b@1 x:a+@1 x:a+@1", nil,
		},
	})
}

// TestStreamJoinHeaders: a pair has the headers of the record that completed it,
// a record alone its own.
func TestStreamJoinHeaders(t *testing.T) {
	t.Parallel()
	b := topology.New("app")
	topology.StreamLeftJoin(streamOf(b, "left"), streamOf(b, "right"), "j", topology.Within(ms(5), topology.Grace(0)),
		func(l, r string, _ bool) string { return l + "+" + r }).To("out")
	d := topologytest.New(t, b)
	pipe := func(topic, key, value string, at int64) {
		h := []processors.Header{{Key: "of", Value: []byte(value)}}
		topologytest.Input(d, topic, str, str).PipeRecord(processors.Record[string, string]{Key: key, Value: value, Timestamp: at, Headers: h})
	}
	pipe("left", "k", "a", 1)
	pipe("right", "k", "b", 2)
	pipe("left", "x", "alone", 3)
	pipe("left", "k", "late", 20)
	var got []string
	for _, r := range topologytest.Output(d, "out", str, str).Read() {
		got = append(got, r.Value+" of "+string(r.Headers[0].Value))
	}
	if want := []string{"a+b of b", "alone+ of alone"}; len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %q, want %q", got, want)
	}
}
