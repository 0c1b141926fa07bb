package topology_test

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

// seeds runs a property with several seeds and says which one failed.
func seeds(t *testing.T, property func(t *testing.T, r *rand.Rand)) {
	t.Helper()
	for seed := range uint64(20) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			property(t, rand.New(rand.NewPCG(seed, 1)))
		})
	}
}

// TestWindowedCountsMatchRecount feeds records out of order, with restarts, and
// counts them again with the rule of windows alone.
func TestWindowedCountsMatchRecount(t *testing.T) {
	t.Parallel()
	seeds(t, func(t *testing.T, r *rand.Rand) {
		advance := 1 + r.Int64N(10)
		size := advance + r.Int64N(20)
		grace := r.Int64N(30)
		ms := func(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
		b := topology.New("app")
		g := topology.Stream(b, "in", str, str).GroupByKey()
		topology.Count(g, "all", topology.Hopping(ms(size), ms(advance), topology.Grace(ms(grace)))).ToStream().To("all")
		topology.Count(g, "final", topology.Hopping(ms(size), ms(advance), topology.Grace(ms(grace)), topology.EmitFinal())).ToStream().To("final")
		d := topologytest.New(t, b)
		in := topologytest.Input(d, "in", str, str)

		want, wantTime := map[topology.Windowed[string]]int64{}, map[topology.Windowed[string]]int64{}
		streamTime, late := int64(-1), 0
		for i := range int64(400) {
			key, ts := strconv.Itoa(r.IntN(4)), max(0, i+r.Int64N(60)-30)
			in.Pipe(key, "x", ts)
			streamTime = max(streamTime, ts)
			for start := int64(0); start <= ts; start += advance {
				w := topology.Windowed[string]{Key: key, Start: start, End: start + size}
				switch {
				case ts >= w.End:
				case w.End+grace <= streamTime:
					late++
				default:
					want[w]++
					wantTime[w] = max(wantTime[w], ts)
				}
			}
			if r.IntN(50) == 0 {
				d.Restart()
			}
		}

		key := topology.WindowedSerde(str, ms(size))
		got := map[topology.Windowed[string]]processors.Record[topology.Windowed[string], int64]{}
		for _, rec := range topologytest.Output(d, "all", key, serde.Int64()).Read() {
			if rec.Value != got[rec.Key].Value+1 {
				t.Fatalf("%v: count %d after %d", rec.Key, rec.Value, got[rec.Key].Value)
			}
			got[rec.Key] = rec
		}
		if len(got) != len(want) {
			t.Errorf("%d windows, want %d", len(got), len(want))
		}
		for w, n := range want {
			if got[w].Value != n || got[w].Timestamp != wantTime[w] {
				t.Errorf("%v: %d@%d, want %d@%d", w, got[w].Value, got[w].Timestamp, n, wantTime[w])
			}
		}
		if drops := len(d.Drops()); drops != 2*late { // both steps drop
			t.Errorf("%d late, want %d", drops, 2*late)
		}

		seen, end := map[topology.Windowed[string]]bool{}, int64(0)
		for _, rec := range topologytest.Output(d, "final", key, serde.Int64()).Read() {
			if seen[rec.Key] || rec.Key.End < end || rec.Key.End+grace > streamTime {
				t.Errorf("final %v: twice, out of order or before its window closed", rec.Key)
			}
			seen[rec.Key], end = true, rec.Key.End
			if rec.Value != want[rec.Key] || rec.Timestamp != wantTime[rec.Key] {
				t.Errorf("final %v: %d@%d, want %d@%d", rec.Key, rec.Value, rec.Timestamp, want[rec.Key], wantTime[rec.Key])
			}
		}
		for w := range want {
			if closed := w.End+grace <= streamTime; closed != seen[w] {
				t.Errorf("final %v: emitted %t, closed %t", w, seen[w], closed)
			}
		}
	})
}

// TestGroupedTablesMatchRecount counts values, then the values by their count,
// then sums these up, over three repartitions and several partitions: it comes out
// right only if every update carries the right old value, also of aggregates that
// are changed in place.
func TestGroupedTablesMatchRecount(t *testing.T) {
	t.Parallel()
	type sum map[string]int64
	seeds(t, func(t *testing.T, r *rand.Rand) {
		b := topology.New("app")
		counts := topology.GroupBy(topology.Stream(b, "in", str, str), "by-value", func(_, v string) string { return v }).Count("counts")
		byCount := topology.TableGroupBy(counts, "by-count", func(_ string, n int64) (int64, int64) { return n, n })
		byCount.Count("values-by-count")
		sums := topology.TableAggregate(byCount, "sums", serde.JSON[sum](), func() sum { return sum{} },
			func(_, n int64, s sum) sum { s["sum"] += n; return s },
			func(_, n int64, s sum) sum { s["sum"] -= n; return s })
		topology.TableGroupBy(sums, "all", func(_ int64, s sum) (string, int64) { return "all", s["sum"] }).
			Reduce("total", func(a, n int64) int64 { return a + n }, func(a, n int64) int64 { return a - n })
		d := topologytest.New(t, b, topologytest.Partitions(3))
		in := topologytest.Input(d, "in", str, str)
		model := map[string]int64{}
		const records = 300
		for i := range int64(records) {
			value := strconv.Itoa(r.IntN(20))
			in.Pipe(strconv.Itoa(r.IntN(5)), value, i)
			model[value]++
			if r.IntN(50) == 0 {
				d.Restart()
			}
		}
		want := map[int64]int64{}
		for _, n := range model {
			want[n]++
		}
		for _, row := range topologytest.KeyValue(d, "values-by-count", serde.Int64(), serde.Int64()).Rows() {
			if row.Value != want[row.Key] {
				t.Errorf("%d values were counted %d times, want %d", row.Value, row.Key, want[row.Key])
			}
			delete(want, row.Key)
		}
		if len(want) > 0 {
			t.Errorf("missing: %v", want)
		}
		if total, _ := topologytest.KeyValue(d, "total", str, serde.Int64()).Get("all"); total != records {
			t.Errorf("total %d, want %d", total, records)
		}
	})
}

// TestTableJoinMatchesModel joins two random tables and compares the rows.
func TestTableJoinMatchesModel(t *testing.T) {
	t.Parallel()
	seeds(t, func(t *testing.T, r *rand.Rand) {
		b := topology.New("app")
		l, right := tableOf(b, "l"), tableOf(b, "r")
		topology.TableJoin(l, right, "inner", str, func(a, c string) string { return a + c })
		topology.TableLeftJoin(l, right, "left", str, func(a, c string, _ bool) string { return a + c })
		topology.TableOuterJoin(l, right, "outer", str, func(a string, _ bool, c string, _ bool) string { return a + c })
		d := topologytest.New(t, b, topologytest.Partitions(3))
		inputs := map[string]*topologytest.InputTopic[string, string]{"l": topologytest.Input(d, "l", str, str), "r": topologytest.Input(d, "r", str, str)}
		type side map[string]state.Row[string, string]
		model := map[string]side{"l": {}, "r": {}}
		for i := range 300 {
			topic, key, ts := []string{"l", "r"}[r.IntN(2)], strconv.Itoa(r.IntN(8)), r.Int64N(1000)
			if r.IntN(3) == 0 {
				inputs[topic].Delete(key, ts)
				delete(model[topic], key)
			} else {
				value := topic + strconv.Itoa(i)
				inputs[topic].Pipe(key, value, ts)
				model[topic][key] = state.Row[string, string]{Key: key, Value: value, Timestamp: ts}
			}
			if r.IntN(50) == 0 {
				d.Restart()
			}
		}
		for _, kind := range []string{"inner", "left", "outer"} {
			got := map[string]string{}
			for _, row := range topologytest.KeyValue(d, kind, str, str).Rows() {
				got[row.Key] = row.Value
			}
			for k := range 8 {
				key := strconv.Itoa(k)
				a, hasA := model["l"][key]
				c, hasC := model["r"][key]
				want, ok := "", hasA && hasC || hasA && kind != "inner" || hasC && kind == "outer"
				if ok {
					want = a.Value + c.Value
				}
				if v, has := got[key]; has != ok || v != want {
					t.Errorf("%s %s: %q %t, want %q %t", kind, key, v, has, want, ok)
				}
			}
		}
	})
}
