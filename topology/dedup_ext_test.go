package topology_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

// TestDeduplicateMatchesRecount feeds records out of order, with restarts, and decides
// about each again from the list of those that were forwarded.
func TestDeduplicateMatchesRecount(t *testing.T) {
	t.Parallel()
	seeds(t, func(t *testing.T, r *rand.Rand) {
		interval := 1 + r.Int64N(30)
		b := topology.New("app")
		once := topology.DeduplicateBy(topology.Stream(b, "in", str, str), "once", time.Duration(interval)*time.Millisecond, str, func(_, v string) string { return v })
		once.To("out")
		topology.Dropped[string, string](once).To("dropped")
		d := topologytest.New(t, b)
		in := topologytest.Input(d, "in", str, str)
		forwarded := map[string][]int64{}
		var want, dropped []string
		now := int64(-1)
		for i := range int64(400) {
			key, id, ts := strconv.Itoa(r.IntN(3)), strconv.Itoa(r.IntN(3)), max(0, i+r.Int64N(60)-30)
			in.Pipe(key, id, ts)
			now = max(now, ts)
			line := fmt.Sprintf("%s:%s@%d", key, id, ts)
			near := func(at int64) bool { return max(at-ts, ts-at) <= interval }
			switch {
			case ts < now-interval:
				dropped = append(dropped, line+" late")
			case slices.ContainsFunc(forwarded[key+id], near):
				dropped = append(dropped, line+" duplicate")
			default:
				forwarded[key+id] = append(forwarded[key+id], ts)
				want = append(want, line)
			}
			if r.IntN(50) == 0 {
				d.Restart()
			}
		}
		if got := topologytest.Output(d, "out", str, str).Text(); !slices.Equal(got, want) {
			t.Errorf("forwarded %q\nwant %q", got, want)
		}
		var got []string
		for _, rec := range topologytest.Output(d, "dropped", str, str).Read() {
			reason := rec.Headers[len(rec.Headers)-1]
			got = append(got, fmt.Sprintf("%s:%s@%d %s", rec.Key, rec.Value, rec.Timestamp, reason.Value))
		}
		if !slices.Equal(got, dropped) || len(d.Drops()) != len(dropped) {
			t.Errorf("dropped %q\nwant %q", got, dropped)
		}
		for _, row := range topologytest.KeyValue(d, "once", processors.KeyIDSerde(str, str), serde.Bytes()).Rows() {
			if row.Timestamp < now-2*interval-2*60 {
				t.Errorf("%v of %d is still kept at %d", row.Key, row.Timestamp, now)
			}
		}
	})
}

func TestDeduplicateWithoutKeyOrID(t *testing.T) {
	t.Parallel()
	b := topology.New("app")
	none := func(_, v string) []byte {
		if v == "" {
			return nil
		}
		return []byte(v)
	}
	topology.DeduplicateBy(topology.Stream(b, "in", str, str), "once", time.Second, serde.Bytes(), none).To("out")
	d := topologytest.New(t, b)
	in := topologytest.Input(d, "in", str, str)
	for range 2 {
		in.PipeRecord(processors.Record[string, string]{NoKey: true, Value: "a", Timestamp: 1})
		in.Pipe("k", "", 1)
		in.PipeRecord(processors.Record[string, string]{Key: "k", Value: "b", Timestamp: 1, Headers: []processors.Header{{Key: "h", Value: []byte("x")}}})
	}
	out := topologytest.Output(d, "out", str, str).Read()
	if len(out) != 5 || string(out[2].Headers[0].Value) != "x" {
		t.Errorf("forwarded %v, want all but the second b", out)
	}
}

func ExampleKStream_Deduplicate() {
	b := topology.New("shop")
	orders := topology.Stream(b, "orders", serde.String(), serde.String())
	once := orders.Deduplicate("orders-once", time.Minute)
	once.To("out")
	topology.Dropped[string, string](once).Peek(func(id, _ string) { fmt.Println("again:", id) }).To("orders.dropped")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "orders", serde.String(), serde.String())
	in.Pipe("order-1", "tea", 10_000)
	in.Pipe("order-1", "tea", 40_000) // sent twice
	in.Pipe("order-2", "milk", 41_000)
	in.Pipe("order-1", "tea", 70_001) // more than a minute later
	printOut(d, serde.String(), serde.String())
	// Output:
	// again: order-1
	// order-1:tea@10000
	// order-2:milk@41000
	// order-1:tea@70001
}

// TestDropped lists what every kind of step drops, with the reason.
func TestDropped(t *testing.T) {
	t.Parallel()
	second := time.Second
	add := func(_, v, agg string) string { return agg + v }
	none := func() string { return "" }
	concat := func(a, b string) string { return a + b }
	for name, step := range map[string]struct {
		make func(b *topology.Builder, s, other *topology.KStream[string, string]) topology.Dropper
		want []string
	}{
		"count": {func(_ *topology.Builder, s, _ *topology.KStream[string, string]) topology.Dropper {
			return s.GroupByKey().Count("x")
		}, []string{"null-key", "null-value"}},
		"tumbling": {func(_ *topology.Builder, s, _ *topology.KStream[string, string]) topology.Dropper {
			return topology.Count(s.GroupByKey(), "x", topology.Tumbling(second, topology.Grace(0)))
		}, []string{"null-key", "late"}},
		"repartitioned": {func(_ *topology.Builder, s, _ *topology.KStream[string, string]) topology.Dropper {
			other := topology.TryMap(s, func(r processors.Record[string, string]) (processors.Record[string, string], error) { return r, nil })
			return topology.Count(other.GroupByKey(), "x", topology.Tumbling(second, topology.Grace(0)))
		}, []string{"null-key", "late"}},
		"sliding": {func(_ *topology.Builder, s, _ *topology.KStream[string, string]) topology.Dropper {
			return topology.Count(s.GroupByKey(), "x", topology.Sliding(second, topology.Grace(0)))
		}, []string{"null-key", "null-value", "late"}},
		"session": {func(_ *topology.Builder, s, _ *topology.KStream[string, string]) topology.Dropper {
			return topology.SessionAggregate(s.GroupByKey(), "x", topology.Session(second, topology.Grace(0)), str, none, add, func(_, a, b string) string { return a + b })
		}, []string{"null-key", "late"}},
		"unlimited": {func(_ *topology.Builder, s, _ *topology.KStream[string, string]) topology.Dropper {
			return topology.Count(s.GroupByKey(), "x", topology.Unlimited(time.UnixMilli(5)))
		}, []string{"null-key", "early"}},
		"cogroup": {func(_ *topology.Builder, s, _ *topology.KStream[string, string]) topology.Dropper {
			return topology.WindowedCogroup(topology.Cogroup(s.GroupByKey(), add), "x", topology.Tumbling(second, topology.Grace(0)), str, none)
		}, []string{"null-key", "late"}},
		"table": {func(_ *topology.Builder, s, _ *topology.KStream[string, string]) topology.Dropper {
			return s.ToTable("x")
		}, []string{"null-key"}},
		"history": {func(_ *topology.Builder, s, _ *topology.KStream[string, string]) topology.Dropper {
			return s.ToTable("x", topology.Versioned(second))
		}, []string{"null-key", "expired"}},
		"stream join": {func(_ *topology.Builder, s, other *topology.KStream[string, string]) topology.Dropper {
			return topology.StreamJoin(s, other, "x", topology.Within(second, topology.Grace(0)), concat)
		}, []string{"null-key", "null-value"}},
		"table join": {func(_ *topology.Builder, s, other *topology.KStream[string, string]) topology.Dropper {
			return topology.Join(s, other.ToTable("rows"), concat)
		}, []string{"null-key", "null-value"}},
		"global join": {func(b *topology.Builder, s, _ *topology.KStream[string, string]) topology.Dropper {
			return topology.GlobalJoin(s, topology.GlobalTable(b, "global", "rows", str, str), func(k, _ string) string { return k }, concat)
		}, []string{"null-value"}},
		"foreign key": {func(_ *topology.Builder, s, other *topology.KStream[string, string]) topology.Dropper {
			return topology.ForeignKeyJoin(s.ToTable("left"), other.ToTable("right"), "x", str, func(_, v string) (string, bool) { return v, v != "first" }, concat)
		}, []string{"null-foreign-key"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := topology.New("app")
			s, other := topology.Stream(b, "in", str, str), topology.Stream(b, "other", str, str)
			dropped := step.make(b, s, other)
			topology.Dropped[string, string](dropped).To("dropped")
			switch of := dropped.(type) {
			case *topology.KStream[string, string]:
				of.To("out")
			}
			other.To("others")
			d := topologytest.New(t, b)
			in := topologytest.Input(d, "in", str, str)
			in.PipeRecord(processors.Record[string, string]{NoKey: true, Value: "first", Timestamp: 1})
			in.Pipe("k", "first", 10_000)
			in.Delete("k", 10_000)
			in.Pipe("k", "old", 1)
			var got []string
			for _, rec := range topologytest.Output(d, "dropped", str, str).Read() {
				got = append(got, string(rec.Headers[1].Value))
			}
			if !slices.Equal(got, step.want) || len(d.Failures()) > 0 {
				t.Errorf("dropped %q, want %q; %v", got, step.want, d.Failures())
			}
		})
	}
}
