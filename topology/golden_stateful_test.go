package topology

import (
	"testing"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
)

// TestStatefulGolden holds what Build makes of tables, groups, windows and joins.
func TestStatefulGolden(t *testing.T) {
	s := serde.String()
	in := func(b *Builder) *KStream[string, string] { return Stream(b, "in", s, s) }
	rows := func(b *Builder, name string) *KTable[string, string] { return Table(b, name, name+"-rows", s, s) }
	value := func(_, v string) string { return v }
	concat := func(a, b string) string { return a + b }
	type shape struct{}
	golden(t, "stateful.txt", []goldenCase{
		{"count", func(b *Builder) { in(b).GroupByKey().Count("n").ToStream().To("out") }},
		{"two aggregations of one group", func(b *Builder) {
			g := GroupBy(in(b), "by-value", value)
			g.Count("n").ToStream().To("counts")
			g.Reduce("r", concat).ToStream().To("out")
		}},
		{"two aggregations of a group without a name", func(b *Builder) {
			g := SelectKey(in(b), value).GroupByKey()
			g.Count("n").ToStream().To("counts")
			g.Reduce("r", concat).ToStream().To("out")
		}},
		{"windows", func(b *Builder) {
			Count(in(b).GroupByKey(), "n", Hopping(time.Minute, time.Second, Grace(time.Hour), Retention(24*time.Hour), EmitFinal())).ToStream().To("out")
		}},
		{"sliding, session and unlimited windows", func(b *Builder) {
			g := in(b).GroupByKey()
			Count(g, "sliding", Sliding(time.Minute, Grace(time.Hour), Retention(3*time.Hour))).ToStream().To("out")
			Reduce(g, "session", Session(time.Minute, Grace(0), EmitFinal()), concat).ToStream().To("sessions")
			Count(g, "forever", Unlimited(time.UnixMilli(1000))).ToStream().To("counts")
		}},
		{"cogroup of a stream and one by another key", func(b *Builder) {
			add := func(_, v, agg string) string { return agg + v }
			c := Cogroup(in(b).GroupByKey(), add)
			c = CogroupWith(c, SelectKey(Stream(b, "other", s, s), value).GroupByKey(), add)
			WindowedCogroup(c, "all", Tumbling(time.Minute, Grace(0)), s, func() string { return "" }).ToStream().To("out")
			c.Aggregate("plain", s, func() string { return "" }).ToStream().To("plain-out")
		}},
		{"windows for the wrong function", func(b *Builder) {
			g := in(b).GroupByKey()
			start, add, merge := func() string { return "" }, func(_, _, a string) string { return a }, func(_, a, _ string) string { return a }
			WindowedAggregate(g, "sessions", Session(time.Minute, Grace(0)), s, start, add)
			SessionAggregate(g, "windows", Tumbling(time.Minute, Grace(0)), s, start, add, merge)
			SessionCogroup(Cogroup(g, add), "cogroup", Sliding(time.Minute, Grace(0)), s, start, merge)
			Count(g, "unlimited", Unlimited(time.UnixMilli(-1), Grace(0)))
			Count(g, "gapless", Session(0))
			Count(g, "short", Sliding(time.Minute, Grace(time.Minute), Retention(2*time.Minute)))
		}},
		{"stream-stream joins", func(b *Builder) {
			w := Between(time.Second, time.Minute, Grace(time.Hour))
			other := SelectKey(Stream(b, "other", s, s), value)
			StreamOuterJoin(in(b), other, "j", w, func(l string, _ bool, r string, _ bool) string { return l + r }).To("out")
		}},
		{"a stream joined with itself", func(b *Builder) {
			self := in(b)
			StreamJoin(self, self, "j", Within(time.Second, Grace(0)), concat).To("out")
		}},
		{"join windows that cannot be", func(b *Builder) {
			StreamJoin(in(b), in(b), "open", Within(time.Second), concat)
			StreamJoin(in(b), in(b), "gone", Between(-time.Minute, time.Second, Grace(-time.Second)), concat)
			shapes := MapValues(in(b), func(string) shape { return shape{} })
			StreamJoin(in(b), shapes, "micro", Within(time.Microsecond, Grace(0)), func(l string, _ shape) string { return l })
		}},
		{"suppressed tables", func(b *Builder) {
			calm := rows(b, "t").Suppress("calm", UntilTimeLimit(time.Minute, MaxRecords(10), MaxBytes(1000)))
			Join(in(b), calm.Filter(func(string, string) bool { return true }), concat).To("out")
			n := Count(in(b).GroupByKey(), "n", Tumbling(time.Minute, Grace(0)))
			n.Suppress("final", UntilWindowCloses(MaxRecords(5))).ToStream().To("counts")
		}},
		{"what cannot be suppressed", func(b *Builder) {
			rows(b, "t").Suppress("a", UntilWindowCloses())
			Count(in(b).GroupByKey(), "n", Unlimited(time.UnixMilli(0))).Suppress("b", UntilWindowCloses())
			Table(b, "v", "v", s, s, Versioned(time.Hour)).Suppress("c", UntilTimeLimit(time.Microsecond, MaxRecords(0), MaxBytes(-1)))
			rows(b, "u").Suppress("d", UntilTimeLimit(0, ShutDownWhenFull()))
		}},
		{"foreign-key join", func(b *Builder) {
			l, r := rows(b, "l"), rows(b, "r")
			j := ForeignKeyJoin(l, r, "j", s, func(_, v string) (string, bool) { return v, true }, concat)
			j.ToStream().To("out")
		}},
		{"a foreign-key join without serdes", func(b *Builder) {
			l := TableMapValues(rows(b, "l"), func(string) shape { return shape{} })
			ForeignKeyJoin(l, rows(b, "r"), "j", s, func(string, shape) (string, bool) { return "", true }, func(shape, string) string { return "" })
		}},
		{"grouped table", func(b *Builder) {
			TableGroupBy(rows(b, "t"), "g", func(k, v string) (string, string) { return v, k }).Count("n").ToStream().To("out")
		}},
		{"stream-table join, co-partitioned", func(b *Builder) { Join(in(b), rows(b, "t"), concat).To("out") }},
		{"stream-table join after a changed key", func(b *Builder) { Join(SelectKey(in(b), value), rows(b, "t"), concat, Named("j")).To("out") }},
		{"global join", func(b *Builder) {
			GlobalJoin(in(b), GlobalTable(b, "t", "rows", s, s), value, concat).To("out")
		}},
		{"table join of a filtered table", func(b *Builder) {
			l := rows(b, "l").Filter(func(string, string) bool { return true })
			TableJoin(l, rows(b, "r"), "j", s, concat).ToStream().To("out")
		}},
		{"joins with tables that have a history", func(b *Builder) {
			rows := Table(b, "t", "t-rows", s, s, Versioned(time.Hour))
			Join(in(b), rows, concat, Named("j"), Grace(time.Minute)).To("out")
			TableGroupBy(rows, "g", func(k, v string) (string, string) { return v, k }).Count("n").ToStream().To("counts")
		}},
		{"histories and graces that cannot be", func(b *Builder) {
			Table(b, "odd", "odd", s, s, Versioned(time.Microsecond))
			Join(in(b), rows(b, "plain"), concat, Named("plain-grace"), Grace(0))
			past := in(b).ToTable("past", Versioned(time.Second))
			Join(in(b), past, concat, Grace(time.Second))
			Join(in(b), past, concat, Named("long"), Grace(time.Minute))
			Join(in(b), past, concat, Named("micro"), Grace(time.Microsecond))
		}},
		{"windows without grace and of odd sizes", func(b *Builder) {
			Count(in(b).GroupByKey(), "none", Tumbling(time.Second))
			Count(in(b).GroupByKey(), "odd", Hopping(time.Second, time.Minute, Grace(-1), Retention(time.Millisecond)))
			Count(in(b).GroupByKey(), "micro", Tumbling(time.Microsecond, Grace(0)))
		}},
		{"no serde", func(b *Builder) {
			shapes := MapValues(in(b), func(string) shape { return shape{} })
			shapes.ToTable("rows")
			Aggregate(shapes.GroupByKey(), "agg", nil, func() shape { return shape{} }, func(_ string, _, a shape) shape { return a })
			TableGroupBy(rows(b, "t"), "g", func(string, string) (shape, string) { return shape{}, "" }).Count("n")
		}},
		{"a join that needs a name", func(b *Builder) { Join(SelectKey(in(b), value), rows(b, "t"), concat).To("out") }},
		{"names that clash", func(b *Builder) {
			g := GroupBy(in(b), "n", value)
			g.Count("n")
			rows(b, "t").ToStream().To("out")
			in(b).ToTable("t-rows")
			GlobalTable(b, "x", "n", s, s)
		}},
		{"another builder's table", func(b *Builder) {
			other := New("other")
			Join(in(b), rows(other, "t"), concat).To("out")
			GlobalJoin(in(b), GlobalTable(other, "g", "rows", s, s), value, concat).To("out")
		}},
		{"deduplicated, batched and tried again", func(b *Builder) {
			once := SelectKey(in(b), value).Deduplicate("once", time.Minute)
			Dropped[string, string](once).To("dropped")
			tried := Retry(once, "try", RetryPolicy{Attempts: 3, Backoff: time.Second}, func(r processors.Record[string, string]) (string, error) { return r.Value, nil })
			Batch(tried, "batch", 10, time.Second, AcrossKeys()).To("out")
		}},
		{"rows that expire", func(b *Builder) {
			rows(b, "t").TTL(time.Hour).ToStream().To("out")
			AddKeyValueStore(b, "mine", s, s, TTL(time.Minute))
			ProcessValues(in(b), "p", func() processors.Processor[string, string, string, string] { return nil }, Stores("mine")).To("out")
		}},
		{"times and sizes that cannot be", func(b *Builder) {
			in(b).Deduplicate("once", 0).To("out")
			Retry(in(b), "never", RetryPolicy{Backoff: time.Second}, func(processors.Record[string, string]) (string, error) { return "", nil })
			Retry(in(b), "shrinking", RetryPolicy{Attempts: 2, Backoff: time.Minute, MaxBackoff: time.Second}, func(processors.Record[string, string]) (string, error) { return "", nil })
			Retry[string, string, string](in(b), "nothing", RetryPolicy{Attempts: 2, Backoff: time.Second}, nil)
			Batch(in(b), "empty", 0, 0)
			rows(b, "t").TTL(-time.Second)
			AddKeyValueStore(b, "mine", s, s, TTL(0))
		}},
		{"tables that have no TTL", func(b *Builder) {
			rows(b, "a").TTL(time.Hour).TTL(time.Hour)
			rows(b, "b").Filter(func(string, string) bool { return true }).TTL(time.Hour)
			Count(in(b).GroupByKey(), "n", Tumbling(time.Minute, Grace(0))).TTL(time.Hour)
			Table(b, "c", "c", s, s, Versioned(time.Hour)).TTL(time.Hour)
		}},
		{"dropped records of the wrong steps and types", func(b *Builder) {
			Dropped[string, string](in(b).Filter(func(string, string) bool { return true })).To("out")
			Dropped[string, int64](in(b).GroupByKey().Count("n")).To("out")
		}},
	})
}
