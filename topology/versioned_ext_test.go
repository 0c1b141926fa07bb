package topology_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

func ms(n int64) time.Duration { return time.Duration(n) * time.Millisecond }

func historyOf(b *topology.Builder, topic string) *table {
	return topology.Table(b, topic, topic+"-rows", str, str, topology.Versioned(ms(10)))
}

func TestVersionedTables(t *testing.T) {
	t.Parallel()
	pair := func(v, row string, ok bool) string { return fmt.Sprintf("%s,%s,%t", v, row, ok) }
	runAll(t, []scenario{
		{
			"past versions reach the stream, expired ones do not", func(b *topology.Builder) { historyOf(b, "in").ToStream().To("out") }, `
			in a 1 20
			in a 2 12
			in a 3 9
			in a - 11
			in - 4 20
			in a - 30`,
			"a:1@20 a:2@12 a:null@11 a:null@30",
			[]string{"in-rows expired", "in-rows null-key"},
		},
		{
			"a lookup sees the past", func(b *topology.Builder) {
				topology.LeftJoin(streamOf(b, "in"), historyOf(b, "t").Filter(func(_, v string) bool { return v != "hidden" }), pair).To("out")
			}, `
			t a one 2
			t a - 4
			t a hidden 6
			t a two 8
			in a at1 1
			in a at2 2
			in a at4 4
			in a at6 6
			in a at9 9
			t a late 5
			in a at5 5
			t a far 30
			in a at9 9`,
			"a:at1,,false@1 a:at2,one,true@2 a:at4,,false@4 a:at6,,false@6 a:at9,two,true@9 a:at5,late,true@5 a:at9,,false@9", nil,
		},
		{
			"groups and joins of tables count rows", func(b *topology.Builder) {
				rows := historyOf(b, "in").Filter(func(_, v string) bool { return v != "x" })
				g := topology.TableGroupBy(rows, "g", func(_, v string) (string, string) { return v, v })
				text(g.Count("n")).To("out")
				topology.TableJoin(rows, tableOf(b, "t"), "j", str, func(a, b string) string { return a + b }).ToStream().To("out")
			}, `
			t a T 1
			in a v 5
			in a w 3
			in a x 6
			in a x 7`,
			// The filter of a table with history forwards the deletion at 7 too.
			"a:vT@5 v:1@5 a:null@6 v:0@6 a:null@7",
			[]string{"g out-of-order", "j out-of-order"},
		},
		{
			"a stream's table", func(b *topology.Builder) {
				byValue := topology.SelectKey(streamOf(b, "t"), func(_, v string) string { return v[:1] })
				topology.LeftJoin(streamOf(b, "in"), byValue.ToTable("rows", topology.Versioned(ms(100))), pair).To("out")
			}, `
			t k a1 10
			t k a2 20
			in a x 15`,
			"a:x,a1,true@15", nil,
		},
		{
			"grace", func(b *topology.Builder) {
				topology.LeftJoin(streamOf(b, "in"), historyOf(b, "t"), pair, topology.Named("j"), topology.Grace(ms(5))).To("out")
			}, `
			in a first 10
			in a - 99
			in - lonely 10
			t a row 9
			t a later 50
			in b tick 14
			in c tock 15
			in a late 9
			in a early 12
			in a end 20`,
			// A lookup as of a time before the history finds the latest row only if it
			// is older.
			"a:first,,false@10 null:lonely,,false@10 a:late,,false@9 a:early,,false@12 b:tick,,false@14 c:tock,,false@15",
			[]string{"j null-value"},
		},
		{
			"an inner join with grace drops at once", func(b *topology.Builder) {
				topology.Join(streamOf(b, "in"), historyOf(b, "t"), func(v, row string) string { return v + row }, topology.Named("j"), topology.Grace(ms(5))).To("out")
			}, `
			in - x 10
			in a y 10
			t a 1 9
			in a z 15`,
			"a:y1@10",
			[]string{"j null-key"},
		},
	})
}

// TestDelayMatchesSort: what a join with grace does to the order of a stream is
// to sort it, but for records that are late.
func TestDelayMatchesSort(t *testing.T) {
	t.Parallel()
	seeds(t, func(t *testing.T, r *rand.Rand) {
		const wait = 20
		b := topology.New("app")
		rows := topology.Table(b, "t", "rows", str, str, topology.Versioned(ms(wait)))
		topology.LeftJoin(streamOf(b, "in"), rows, func(v, _ string, _ bool) string { return v }, topology.Named("j"), topology.Grace(ms(wait))).To("out")
		d := topologytest.New(t, b)
		in := topologytest.Input(d, "in", str, str)
		type event struct {
			name string
			at   int64
		}
		var held, want []event
		now := int64(-1)
		for i := range 200 {
			e := event{fmt.Sprint("e", i), max(0, now-wait-3+r.Int64N(wait+6))}
			if e.at < now-wait {
				want = append(want, e)
			} else {
				now = max(now, e.at)
				held = append(held, e)
				slices.SortStableFunc(held, func(a, b event) int { return int(a.at - b.at) })
				for len(held) > 0 && held[0].at <= now-wait {
					want, held = append(want, held[0]), held[1:]
				}
			}
			in.Pipe("k", e.name, e.at)
			if r.IntN(20) == 0 {
				d.Restart()
			}
		}
		var lines []string
		for _, e := range want {
			lines = append(lines, fmt.Sprintf("k:%s@%d", e.name, e.at))
		}
		if got := topologytest.Output(d, "out", str, str).Text(); !slices.Equal(got, lines) {
			t.Errorf("got  %s\nwant %s", strings.Join(got, " "), strings.Join(lines, " "))
		}
	})
}
