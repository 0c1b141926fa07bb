package topology_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

func TestStreamJoins(t *testing.T) {
	t.Parallel()
	inner := func(v, row string) string { return v + row }
	left := func(v, row string, ok bool) string { return fmt.Sprintf("%s%s%t", v, row, ok) }
	script := `
		in a 1 1
		t a x 9
		in a 2 2
		t a y 3
		in a 3 12
		in - 4 13
		in a - 14
		t a - 15
		in a 5 16`
	runAll(t, []scenario{
		{
			"inner", func(b *topology.Builder) {
				topology.Join(streamOf(b, "in"), tableOf(b, "t"), inner, topology.Named("j")).To("out")
			},
			script, "a:2x@2 a:3y@12",
			[]string{"j null-key", "j null-value"},
		},
		{
			"left", func(b *topology.Builder) {
				topology.LeftJoin(streamOf(b, "in"), tableOf(b, "t"), left, topology.Named("j")).To("out")
			},
			script, "a:1false@1 a:2xtrue@2 a:3ytrue@12 null:4false@13 a:5false@16",
			[]string{"j null-value"},
		},
		{
			"global inner", func(b *topology.Builder) {
				g := topology.GlobalTable(b, "t", "rows", str, str)
				topology.GlobalJoin(streamOf(b, "in"), g, func(k, _ string) string { return k }, inner, topology.Named("j")).To("out")
			},
			// The key function sees the zero value for a null key.
			script, "a:2x@2 a:3y@12",
			[]string{"j null-value"},
		},
		{
			"global left, by a key of its own", func(b *topology.Builder) {
				g := topology.GlobalTable(b, "t", "rows", pointers{}, str)
				topology.GlobalLeftJoin(streamOf(b, "in"), g, func(_, v string) *string {
					if v == "none" {
						return nil
					}
					return &v
				}, left).To("out")
			}, `
			t x row 100
			in a x 1
			in a none 2
			in - x 3
			in a y 4`,
			"a:xrowtrue@1 a:nonefalse@2 null:xrowtrue@3 a:yfalse@4", nil,
		},
		{
			"global inner drops records without a key to look up", func(b *topology.Builder) {
				g := topology.GlobalTable(b, "t", "rows", pointers{}, str)
				topology.GlobalJoin(streamOf(b, "in"), g, func(string, string) *string { return nil }, inner, topology.Named("j")).To("out")
			}, "in a x 1", "", []string{"j null-key"},
		},
		{
			"a changed key goes through a repartition topic", func(b *topology.Builder) {
				s := topology.SelectKey(streamOf(b, "in"), func(_, v string) string { return v })
				topology.Join(s, tableOf(b, "t"), inner, topology.Named("j")).To("out")
			}, `
			t x row 1
			in a x 2
			in - x 3`,
			"x:xrow@2 x:xrow@3", nil,
		},
	})
}

func TestNilJoinResultIsNull(t *testing.T) {
	t.Parallel()
	b := topology.New("app")
	joined := topology.Join(streamOf(b, "in"), tableOf(b, "t"), func(v, row string) *string { return nil })
	joined.WithValueSerde(pointers{}).To("out")
	d := topologytest.New(t, b)
	pipe(t, d, "t a x 1\nin a y 2\n")
	out := d.RawOutput("out")
	if len(out) != 1 || out[0].Value != nil || string(out[0].Key) != "a" {
		t.Errorf("got %v, want a record without a value", out)
	}
}

func TestJoinKeepsHeaders(t *testing.T) {
	t.Parallel()
	b := topology.New("app")
	topology.Join(streamOf(b, "in"), tableOf(b, "t"), func(v, row string) string { return v + row }).To("out")
	d := topologytest.New(t, b)
	h := func(v string) []processors.Header { return []processors.Header{{Key: "h", Value: []byte(v)}} }
	topologytest.Input(d, "t", str, str).PipeRecord(processors.Record[string, string]{Key: "a", Value: "x", Timestamp: 1, Headers: h("table")})
	topologytest.Input(d, "in", str, str).PipeRecord(processors.Record[string, string]{Key: "a", Value: "y", Timestamp: 2, Headers: h("stream")})
	got := topologytest.Output(d, "out", str, str).Read()
	if len(got) != 1 || len(got[0].Headers) != 1 || string(got[0].Headers[0].Value) != "stream" {
		t.Errorf("got %+v, want the stream record's headers", got)
	}
}

func TestTableJoins(t *testing.T) {
	t.Parallel()
	script := `
		l a 1 1
		r a x 5
		l a 2 3
		r a - 7
		r a - 8
		l a - 9
		l a - 10
		r a y 11
		l a - 12
		l b 3 13
		r a - 14
		l b - 15
		r c - 16`
	f := func(l string, hasL bool, r string, hasR bool) string {
		if !hasL {
			l = "?"
		}
		if !hasR {
			r = "?"
		}
		return l + r
	}
	runAll(t, []scenario{
		{
			"inner", func(b *topology.Builder) {
				topology.TableJoin(tableOf(b, "l"), tableOf(b, "r"), "j", str, func(l, r string) string { return l + r }).ToStream().To("out")
			}, script,
			"a:1x@5 a:2x@5 a:null@7 a:null@8 a:null@12", nil,
		},
		{
			"left", func(b *topology.Builder) {
				topology.TableLeftJoin(tableOf(b, "l"), tableOf(b, "r"), "j", str, func(l, r string, ok bool) string { return f(l, true, r, ok) }).ToStream().To("out")
			}, script,
			"a:1?@1 a:1x@5 a:2x@5 a:2?@7 a:2?@8 a:null@9 a:null@12 b:3?@13 b:null@15", nil,
		},
		{
			"outer", func(b *topology.Builder) {
				topology.TableOuterJoin(tableOf(b, "l"), tableOf(b, "r"), "j", str, f).ToStream().To("out")
			}, script,
			"a:1?@1 a:1x@5 a:2x@5 a:2?@7 a:2?@8 a:null@9 a:?y@11 a:?y@12 b:3?@13 a:null@14 b:null@15", nil,
		},
		{
			"a table with itself", func(b *topology.Builder) {
				l := tableOf(b, "l")
				topology.TableJoin(l, l, "j", str, func(l, r string) string { return l + r }).ToStream().To("out")
			}, `
			l a 1 1
			l a 2 2
			l a - 3`,
			// As in Kafka Streams: where both sides go at once, neither finds the
			// other, and the joined row stays.
			"a:11@1 a:11@1 a:22@2 a:22@2", nil,
		},
	})
}

// TestFailedRecordLeavesNothing has a joiner that fails after an aggregate was
// updated: the update is undone and the record dead-lettered.
func TestFailedRecordLeavesNothing(t *testing.T) {
	t.Parallel()
	b := topology.New("app")
	counts := streamOf(b, "in").GroupByKey().Count("n")
	joined := topology.TableJoin(counts, tableOf(b, "t"), "j", str, func(n int64, row string) string {
		if row == "bad" {
			panic("bad row")
		}
		return fmt.Sprint(n, row)
	})
	joined.ToStream().To("out")
	d := topologytest.New(t, b)
	out := topologytest.Output(d, "out", str, str)
	pipe(t, d, "in a 1 1\nt a ok 2\nin a 2 3\nt a bad 4\nin a 3 5\n")
	if got, want := out.Text(), []string{"a:1ok@2", "a:2ok@3", "a:3ok@5"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v: the bad row must not have been kept", got, want)
	}
	letters := d.DeadLetters()
	if len(letters) != 1 || string(letters[0].Value) != "bad" || letters[0].Topic != "app.dlq" {
		t.Fatalf("dead letters %v", letters)
	}
	if f := d.Failures(); len(f) != 1 || f[0].Err.Step != "j" || f[0].Err.Class != processors.ClassProcess {
		t.Errorf("failures %v, want one of step j", f)
	}
}
