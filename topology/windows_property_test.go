package topology_test

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

type windowOf = topology.Windowed[string]

// last applies the updates of a table and returns its rows.
func last(recs []processors.Record[windowOf, int64]) map[windowOf]int64 {
	rows := map[windowOf]int64{}
	for _, r := range recs {
		if r.NoValue {
			delete(rows, r.Key)
		} else {
			rows[r.Key] = r.Value
		}
	}
	return rows
}

// differ returns the windows whose counts are not as wanted.
func differ(got, want map[windowOf]int64) string {
	var out []string
	for w := range want {
		if got[w] != want[w] {
			out = append(out, fmt.Sprintf("%v is %d, want %d", w, got[w], want[w]))
		}
	}
	for w := range got {
		if _, ok := want[w]; !ok {
			out = append(out, fmt.Sprintf("%v is %d, want none", w, got[w]))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// TestSlidingCountsMatchRecount feeds records in any order, none of them late,
// with restarts, and counts the windows of all of them afterwards.
func TestSlidingCountsMatchRecount(t *testing.T) {
	t.Parallel()
	seeds(t, func(t *testing.T, r *rand.Rand) {
		size := 1 + r.Int64N(20)
		b := topology.New("app")
		g := streamOf(b, "in").GroupByKey()
		const span = 120
		topology.Count(g, "all", topology.Sliding(ms(size), topology.Grace(ms(span)))).ToStream().To("all")
		topology.Count(g, "final", topology.Sliding(ms(size), topology.Grace(ms(span)), topology.EmitFinal())).ToStream().To("final")
		d := topologytest.New(t, b)
		in := topologytest.Input(d, "in", str, str)
		times := map[string][]int64{}
		for range 150 {
			key, at := fmt.Sprint("k", r.IntN(3)), r.Int64N(span)
			times[key] = append(times[key], at)
			in.Pipe(key, "v", at)
			if r.IntN(30) == 0 {
				d.Restart()
			}
		}
		want := map[windowOf]int64{}
		for key, all := range times {
			for _, at := range all {
				for _, start := range []int64{max(0, at-size), at + 1} {
					n := int64(0)
					for _, other := range all {
						if other >= start && other <= start+size {
							n++
						}
					}
					if n > 0 {
						want[windowOf{Key: key, Start: start, End: start + size}] = n
					}
				}
			}
		}
		keys := topology.WindowedSerde(str, ms(size))
		if got := last(topologytest.Output(d, "all", keys, serde.Int64()).Read()); !maps.Equal(got, want) {
			t.Errorf("difference %d:\n%s", size, differ(got, want))
		}
		in.Pipe("end", "v", 10_000)
		final := topologytest.Output(d, "final", keys, serde.Int64()).Read()
		if got := last(final); !maps.Equal(got, want) || len(final) != len(want) {
			t.Errorf("difference %d: %d final results of %d\n%s", size, len(final), len(want), differ(got, want))
		}
		if !slices.IsSortedFunc(final, func(a, b processors.Record[windowOf, int64]) int {
			return cmp.Or(cmp.Compare(a.Key.Start, b.Key.Start), cmp.Compare(a.Key.Key, b.Key.Key))
		}) {
			t.Errorf("final results are not ordered: %v", final)
		}
		if drops := d.Drops(); len(drops) > 0 {
			t.Errorf("drops: %v", drops)
		}
	})
}

// TestSessionsMatchModel feeds records out of order and late, with restarts, and
// keeps sessions in a list.
func TestSessionsMatchModel(t *testing.T) {
	t.Parallel()
	seeds(t, func(t *testing.T, r *rand.Rand) {
		gap, grace := 1+r.Int64N(10), r.Int64N(30)
		b := topology.New("app")
		g := streamOf(b, "in").GroupByKey()
		topology.Count(g, "all", topology.Session(ms(gap), topology.Grace(ms(grace)))).ToStream().To("all")
		topology.Count(g, "final", topology.Session(ms(gap), topology.Grace(ms(grace)), topology.EmitFinal())).ToStream().To("final")
		d := topologytest.New(t, b)
		in := topologytest.Input(d, "in", str, str)
		rows := map[windowOf]int64{}
		final := map[windowOf]int64{}
		now, dropped := int64(-1), 0
		pipe := func(key string, at int64) {
			in.Pipe(key, "v", at)
			now = max(now, at)
			closed := now - gap - grace
			one, n := windowOf{Key: key, Start: at, End: at}, int64(1)
			var merged []windowOf
			for w, m := range rows {
				if w.Key == key && w.End >= at-gap && w.Start <= at+gap && w.End >= closed {
					one.Start, one.End, n = min(one.Start, w.Start), max(one.End, w.End), n+m
					merged = append(merged, w)
				}
			}
			if one.End < closed {
				dropped++
			} else {
				for _, w := range merged {
					delete(rows, w)
				}
				rows[one] = n
			}
			for w, n := range rows {
				if w.End < closed {
					final[w] = n
				}
			}
		}
		for range 200 {
			pipe(fmt.Sprint("k", r.IntN(3)), max(0, now-gap-grace-5+r.Int64N(gap+grace+12)))
			if r.IntN(30) == 0 {
				d.Restart()
			}
		}
		pipe("end", now+1_000)
		keys := topology.SessionSerde(str)
		if got := last(topologytest.Output(d, "all", keys, serde.Int64()).Read()); !maps.Equal(got, rows) {
			t.Errorf("gap %d, grace %d:\n%s", gap, grace, differ(got, rows))
		}
		out := topologytest.Output(d, "final", keys, serde.Int64()).Read()
		if got := last(out); !maps.Equal(got, final) || len(out) != len(final) {
			t.Errorf("gap %d, grace %d: %d final results of %d\n%s", gap, grace, len(out), len(final), differ(got, final))
		}
		if !slices.IsSortedFunc(out, func(a, b processors.Record[windowOf, int64]) int { return cmp.Compare(a.Key.End, b.Key.End) }) {
			t.Errorf("final results are not ordered by end: %v", out)
		}
		if got := len(d.Drops()); got != 2*dropped {
			t.Errorf("%d records dropped, want %d by each step", got, dropped)
		}
	})
}
